//! The life of the program under PgBouncer's name: start, signals, reload, end.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::time::sleep;

use super::cli::{Arguments, parts};
use super::load::{Grave, Loaded, Said};
use super::log::{Level, Log, say};
use super::process::{self, Pidfile};
use super::{Inheritance, SETTINGS, Settings, VERSION, tls};
use crate::config::Config;
use crate::console::Order;
use crate::counts::Ending;
use crate::serve::Proxy;
use crate::shared::Shared;
use crate::systemd;
use crate::tls::TlsState;

/// What is told when new TLS settings are not good.
const TLS_NOT_APPLIED: &str = "TLS settings could not be applied, still using old configuration";
/// Between two looks at whether the last client has gone.
const END_POLL: Duration = Duration::from_millis(20);

/// Runs until a signal or the console ends it.
pub(super) fn run(arguments: &Arguments) -> ExitCode {
    let log = match Log::start(arguments.verbose, arguments.quiet || process::is_in_background()) {
        Ok(log) => log,
        Err(error) => {
            eprintln!("{error}");
            return ExitCode::FAILURE;
        }
    };
    match start(arguments, &log) {
        Ok(()) => ExitCode::SUCCESS,
        Err(why) => {
            say(Level::Fatal, format_args!("{why}"));
            ExitCode::FAILURE
        }
    }
}

/// The way to the first client, in PgBouncer's order: whoever reads the log meets its first trouble first.
fn start(arguments: &Arguments, log: &Log) -> Result<(), String> {
    let program = std::env::current_exe().map_err(|error| error.to_string())?;
    let (good, mut loaded, said) = Loaded::new(&arguments.file, arguments.verbose).read();
    if let Some(user) = &arguments.user {
        loaded.settings.user = Some(user.clone());
    }
    tell(&said);
    if !good {
        return Err("cannot load config file".to_owned());
    }
    let config = Arc::new(loaded.config().map_err(|error| error.to_string())?);
    log.reopen(&loaded.settings).map_err(|why| {
        if arguments.quiet {
            eprintln!("Cannot open logfile: {why}");
        }
        format!("Cannot open logfile: {why}")
    })?;
    let read = || TlsState::load(&config).map(drop).map_err(|(_, error)| error);
    if let Some(why) = tls::wrong(&loaded.settings, read) {
        say(Level::Error, format_args!("{why}"));
        return Err("TLS setup failed".to_owned());
    }
    let settings = &loaded.settings;
    process::take_rights(arguments.user.as_deref().or(settings.user.as_deref()), &settings.logfile)?;
    if arguments.reboot {
        say(Level::Warning, format_args!("Online restart is deprecated, use so_reuseport instead"));
    }
    // what systemd has passed is taken over from nobody
    let own_socket = unix_socket(settings).filter(|_| !systemd::passes_sockets());
    let in_use = own_socket.filter(|socket| process::is_in_use(socket));
    if in_use.is_some() && !arguments.reboot {
        return Err("unix socket is in use, cannot continue".to_owned());
    }
    if in_use.is_none() {
        if arguments.reboot {
            say(Level::Log, format_args!("old process not found, try to continue normally"));
        }
        // else it goes with the other process
        process::check_pidfile(&settings.pidfile)?;
    }
    if arguments.daemon && !process::is_in_background() {
        if settings.pidfile.is_empty() {
            return Err("daemon needs pidfile configured".to_owned());
        }
        return process::to_background(&program);
    }
    if process::is_in_background() {
        process::own_session()?;
    }
    warn_of_inert(&loaded);
    limits(&loaded);
    let inheritance = in_use
        .map(|socket| Inheritance::ask(&socket, &loaded.settings.pidfile))
        .transpose()
        .map_err(|why| format!("the old process does not give way: {why}"))?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    runtime.map_err(|error| error.to_string())?.block_on(serve(config, log, inheritance))
}

fn tell(said: &[Said]) {
    for (grave, text) in said {
        let level = if *grave == Grave::Error { Level::Error } else { Level::Warning };
        say(level, format_args!("{text}"));
    }
}

/// Settings of libraries that are not used here are accepted, but not in silence.
fn warn_of_inert(loaded: &Loaded) {
    for setting in SETTINGS {
        let Some(why) = setting.inert else { continue };
        let shown = setting.shown(&loaded.settings);
        if shown.as_deref() != setting.default {
            say(Level::Warning, format_args!("{} has no effect: {why}", setting.name));
        }
    }
}

/// The file of the Unix socket, if there is to be one.
fn unix_socket(settings: &Settings) -> Option<PathBuf> {
    let directory = settings.unix_socket_dir.as_str();
    let has_file = !directory.is_empty() && !directory.starts_with('@');
    has_file.then(|| Path::new(directory).join(format!(".s.PGSQL.{}", settings.listen_port)))
}

/// Says how many descriptors there are, and how many may be needed.
fn limits(loaded: &Loaded) {
    let (soft, hard) = process::descriptors();
    let settings = &loaded.settings;
    let users = i64::try_from(loaded.users.len()).unwrap_or(i64::MAX).max(1);
    let of_databases = loaded.databases.values().map(|line| {
        let size = i64::from(line.pool_size.filter(|size| *size >= 0).unwrap_or(settings.default_pool_size));
        if line.user.is_some() { size } else { size.saturating_mul(users) }
    });
    // Ten to be sure, and two for the console's own pool.
    let needed = of_databases.fold(i64::from(settings.max_client_conn) + 12, i64::saturating_add);
    let text = format_args!(
        "kernel file descriptor limit: {soft} (hard: {hard}); max_client_conn: {}, max expected fd use: {needed}",
        settings.max_client_conn
    );
    say(Level::Log, text);
}

async fn serve(config: Arc<Config>, log: &Log, inheritance: Option<Inheritance>) -> Result<(), String> {
    let mut signals = Signals::new().map_err(|error| error.to_string())?;
    if inheritance.is_some() {
        systemd::took_over();
    }
    let mut proxy = Proxy::start_with(&config, &HashMap::new(), inheritance)?;
    let pidfile = config.dialect.pgbouncer().map_or("", |loaded| &loaded.settings.pidfile);
    let mut pidfile = Some(Pidfile::write(pidfile)?);
    say(Level::Log, format_args!("process up: {VERSION}, {}", parts().join(", ")));
    let mut current = config;
    systemd::ready();
    loop {
        let shared = proxy.shared().clone();
        let ending = shared.ending();
        tokio::select! {
            name = signals.next() => match signal_means(name, &shared) {
                Meaning::Nothing => {}
                Meaning::Reload => {
                    say(Level::Log, format_args!("got SIGHUP, re-reading config"));
                    current = reload(&proxy, current, log).0;
                }
                Meaning::End => return Ok(()),
                Meaning::Ending(how) => end(&proxy, how),
            },
            order = proxy.order() => match order {
                Order::Reload(done) => {
                    let (new, good) = reload(&proxy, current, log);
                    current = new;
                    let _ = done.send(if good { Ok(()) } else { Err(String::new()) });
                }
                Order::Set(key, value, done) => {
                    let changed = set(&proxy, &current, log, &key, &value);
                    let _ = done.send(changed.map(|(new, notice)| {
                        current = new;
                        notice
                    }));
                }
                Order::Shutdown(None) => {
                    if shared.handover.is_given() {
                        proxy.give_way();
                    }
                    return Ok(());
                }
                Order::GiveWay(done) => {
                    drop(pidfile.take());
                    systemd::stopping();
                    proxy.give_way();
                    let _ = done.send(());
                }
                Order::Shutdown(Some(how)) => end(&proxy, how),
            },
            () = sleep(END_POLL), if ending.is_some() => {
                if shared.has_ended() {
                    let what = match ending {
                        Some(Ending::WaitForServers) => "server",
                        _ => "client",
                    };
                    say(Level::Log, format_args!("{what} connections dropped, exiting"));
                    return Ok(());
                }
            }
        }
    }
}

/// The program ends when what is waited for is over.
fn end(proxy: &Proxy, how: Ending) {
    systemd::stopping();
    proxy.shared().end(how);
    proxy.drain();
}

/// What a signal asks for.
enum Meaning {
    Nothing,
    Reload,
    End,
    Ending(Ending),
}

fn signal_means(name: &str, shared: &Arc<Shared>) -> Meaning {
    match name {
        "SIGHUP" => Meaning::Reload,
        "SIGQUIT" => {
            say(Level::Log, format_args!("got SIGQUIT, fast exit"));
            Meaning::End
        }
        "SIGUSR1" => {
            if shared.is_paused() || shared.is_suspended() {
                say(Level::Log, format_args!("got SIGUSR1, but already paused/suspended"));
            } else {
                say(Level::Log, format_args!("got SIGUSR1, pausing all activity"));
                shared.set_paused(true);
            }
            Meaning::Nothing
        }
        "SIGUSR2" => {
            let what = match (shared.ending(), shared.is_paused(), shared.is_suspended()) {
                (Some(_), ..) => "got SIGUSR2 while shutting down, ignoring",
                (None, true, _) => "got SIGUSR2, continuing from PAUSE",
                (None, _, true) => "got SIGUSR2, continuing from SUSPEND",
                _ => "got SIGUSR2, but not paused/suspended",
            };
            say(Level::Log, format_args!("{what}"));
            if shared.ending().is_none() {
                shared.set_paused(false);
                shared.set_suspended(false);
            }
            Meaning::Nothing
        }
        name if shared.ending().is_some() => {
            say(Level::Log, format_args!("got {name} while shutting down, fast exit"));
            Meaning::End
        }
        "SIGTERM" => {
            say(Level::Log, format_args!("got SIGTERM, shutting down, waiting for all clients disconnect"));
            Meaning::Ending(Ending::WaitForClients)
        }
        name => {
            say(
                Level::Log,
                format_args!("got {name}, shutting down, waiting for all servers connections to be released"),
            );
            Meaning::Ending(Ending::WaitForServers)
        }
    }
}

/// Reads the configuration again; what can be used of it is. Whether all of it could be.
fn reload(proxy: &Proxy, current: Arc<Config>, log: &Log) -> (Arc<Config>, bool) {
    systemd::reloading(|| take_new(proxy, current, log))
}

fn take_new(proxy: &Proxy, current: Arc<Config>, log: &Log) -> (Arc<Config>, bool) {
    let Some(loaded) = current.dialect.pgbouncer() else { return (current, true) };
    let (good, loaded, said) = loaded.read();
    tell(&said);
    if !good {
        say(Level::Warning, format_args!("config file loading failed"));
    }
    reopen(log, &loaded.settings);
    match take(proxy, &loaded) {
        Ok((new, _)) => (new, good),
        Err(why) => {
            say(Level::Error, format_args!("{why}"));
            (current, false)
        }
    }
}

/// Opens the log anew; where that is not possible it stays as it is.
fn reopen(log: &Log, settings: &Settings) {
    if let Err(why) = log.reopen(settings) {
        say(Level::Error, format_args!("could not open logfile: {why}"));
    }
}

fn take(proxy: &Proxy, loaded: &Loaded) -> Result<(Arc<Config>, Option<String>), String> {
    let new = Arc::new(loaded.config().map_err(|error| error.to_string())?);
    let mut notice = None;
    if let Some(why) = tls::wrong(&loaded.settings, || proxy.reload_tls(&new)) {
        say(Level::Error, format_args!("{why}"));
        say(Level::Error, format_args!("{TLS_NOT_APPLIED}"));
        notice = Some(TLS_NOT_APPLIED.to_owned());
    }
    proxy.reload(&new).map(|_| (new, notice))
}

/// SET on the console.
fn set(
    proxy: &Proxy,
    current: &Arc<Config>,
    log: &Log,
    key: &str,
    value: &str,
) -> Result<(Arc<Config>, Option<String>), String> {
    let Some(loaded) = current.dialect.pgbouncer() else { return Ok((current.clone(), None)) };
    let mut loaded = Loaded::clone(loaded);
    let changed = loaded.set(key, value).and_then(|()| take(proxy, &loaded));
    match &changed {
        Ok(_) => reopen(log, &loaded.settings),
        Err(why) => say(Level::Error, format_args!("{why}")),
    }
    changed
}

/// The signals that mean something.
struct Signals {
    all: Vec<(&'static str, Signal)>,
}

impl Signals {
    fn new() -> std::io::Result<Self> {
        let known = [
            ("SIGHUP", SignalKind::hangup()),
            ("SIGTERM", SignalKind::terminate()),
            ("SIGINT", SignalKind::interrupt()),
            ("SIGQUIT", SignalKind::quit()),
            ("SIGUSR1", SignalKind::user_defined1()),
            ("SIGUSR2", SignalKind::user_defined2()),
        ];
        let all = known.into_iter().map(|(name, kind)| Ok((name, signal(kind)?))).collect::<std::io::Result<_>>()?;
        Ok(Self { all })
    }

    /// The next of them.
    async fn next(&mut self) -> &'static str {
        std::future::poll_fn(|cx| {
            for (name, signal) in &mut self.all {
                if signal.poll_recv(cx).is_ready() {
                    return std::task::Poll::Ready(*name);
                }
            }
            std::task::Poll::Pending
        })
        .await
    }
}
