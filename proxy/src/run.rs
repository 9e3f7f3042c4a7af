//! `pgsteady run`: the proxy and the monitors of its clusters, until a signal ends them.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::time::{Instant, sleep};

use crate::clusters::Clusters;
use crate::config::Config;
use crate::console::Order;
use crate::log::Started;
use crate::serve::Proxy;
use crate::systemd;

/// Between two looks at whether the last client has gone.
const END_POLL: Duration = Duration::from_millis(20);

/// Serves clients until SIGTERM or SIGINT; a second one ends the wait for the clients. SIGHUP reads the configuration
/// again.
///
/// # Errors
/// What could not be started, for people.
pub fn run(config: &Arc<Config>, log: &Started) -> Result<(), String> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let runtime = runtime.map_err(|error| format!("the runtime could not be started: {error}"))?;
    runtime.block_on(serve(config.clone(), log))
}

async fn serve(config: Arc<Config>, log: &Started) -> Result<(), String> {
    let mut reloads = signal(SignalKind::hangup()).map_err(|error| format!("signals could not be watched: {error}"))?;
    let mut ends = Ends::new().map_err(|error| format!("signals could not be watched: {error}"))?;
    let clusters = Clusters::start(&config)?;
    let mut proxy = Proxy::start(&config, clusters.watches())?;
    let mut current = config;
    systemd::ready();
    loop {
        tokio::select! {
            _ = reloads.recv() => current = reload(&proxy, current, log).0,
            order = proxy.order() => match order {
                Order::Reload(done) => {
                    let (new, good) = reload(&proxy, current, log);
                    current = new;
                    let _ = done.send(if good { Ok(()) } else { Err(String::new()) });
                }
                Order::GiveWay(done) => drop(done), // nothing is given here
                Order::Set(_, _, done) => drop(done.send(Ok(None))),
                Order::Shutdown(how) => {
                    tracing::info!(?how, "the console asks for the end");
                    break;
                }
            },
            name = ends.next() => {
                tracing::info!(signal = name, clients = proxy.clients(), "stopping at the end of the clients' transactions");
                break;
            }
        }
    }
    systemd::stopping();
    proxy.drain();
    let deadline = Instant::now() + current.limits.shutdown_timeout;
    while !proxy.is_drained() && Instant::now() < deadline {
        tokio::select! {
            () = sleep(END_POLL) => {}
            _ = ends.next() => break,
        }
    }
    clusters.stop().await;
    Ok(())
}

/// A bad file never replaces a good one.
fn reload(proxy: &Proxy, current: Arc<Config>, log: &Started) -> (Arc<Config>, bool) {
    systemd::reloading(|| take_new(proxy, current, log))
}

fn take_new(proxy: &Proxy, current: Arc<Config>, log: &Started) -> (Arc<Config>, bool) {
    let new = match Config::load(&current.file) {
        Ok(new) => Arc::new(new),
        Err(errors) => {
            tracing::error!(%errors, "the new configuration is not good: the old one stays in force");
            return (current, false);
        }
    };
    match proxy.reload(&new).and_then(|changes| log.set_level(&new.log.level).map(|()| changes)) {
        Ok(changes) => {
            for change in &changes {
                tracing::info!(%change, "changed");
            }
            tracing::info!(changes = changes.len(), "the configuration was read again");
            (new, true)
        }
        Err(why) => {
            tracing::error!(why, "the new configuration cannot be used: the old one stays in force");
            (current, false)
        }
    }
}

/// The signals that mean the end.
struct Ends {
    terminate: Signal,
    interrupt: Signal,
}

impl Ends {
    fn new() -> io::Result<Self> {
        Ok(Self { terminate: signal(SignalKind::terminate())?, interrupt: signal(SignalKind::interrupt())? })
    }

    /// The next of them.
    async fn next(&mut self) -> &'static str {
        tokio::select! {
            _ = self.terminate.recv() => "SIGTERM",
            _ = self.interrupt.recv() => "SIGINT",
        }
    }
}
