//! The program at work: workers started, clusters followed, configurations replaced, everything stopped again.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::thread::JoinHandle;

use tokio::runtime::{Builder, LocalOptions};
use tokio::sync::{mpsc, watch};
use topology::{Role, Topology, Watch};

use crate::auth::Store;
use crate::check;
use crate::config::{Change, Config};
use crate::console::Order;
use crate::counts::Ending;
use crate::hosts::watch_zones;
use crate::listener::{self, Bound, Part, SocketFile};
use crate::pgbouncer::{Carried, Inheritance};
use crate::session::carry_on;
use crate::shared::Shared;
use crate::tls::{TlsError, TlsState};
use crate::worker::{Worker, work};

/// Orders of the console that wait.
const MAX_ORDERS: usize = 16;

/// How far the program has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Phase {
    /// Clients are served.
    Serving,
    /// No new clients; those that are here go at the end of their transactions.
    Draining,
    /// All clients go now.
    Stopping,
}

/// The proxy at work, on threads of its own. Dropped, it stops at once.
pub struct Proxy {
    shared: Arc<Shared>,
    orders: mpsc::Receiver<Order>,
    phase: watch::Sender<Phase>,
    threads: Vec<JoinHandle<()>>,
    addresses: Vec<SocketAddr>,
    /// Removes the file of the Unix socket.
    socket_file: Option<SocketFile>,
}

impl Proxy {
    /// Binds the listeners and starts the workers. `watches` are the clusters, by the names that entries use.
    ///
    /// # Errors
    /// What could not be bound, read or started; nothing is left behind then.
    pub fn start(config: &Arc<Config>, watches: &HashMap<Arc<str>, Watch>) -> Result<Self, String> {
        Self::start_with(config, watches, None)
    }

    /// The same in the place of another process, with its sockets and its clients.
    ///
    /// # Errors
    /// As [`Proxy::start`]; the other process goes on then.
    pub(crate) fn start_with(
        config: &Arc<Config>,
        watches: &HashMap<Arc<str>, Watch>,
        inheritance: Option<Inheritance>,
    ) -> Result<Self, String> {
        let tls = TlsState::load(config).map_err(|(section, error)| format!("{section}: {error}"))?;
        let store = Store::load(config)?;
        let (sender, orders) = mpsc::channel(MAX_ORDERS);
        let shared = Arc::new(Shared::new(config.clone(), watches.clone(), store, tls, sender));
        let (listeners, mut clients) = inheritance.map(Inheritance::accept).transpose()?.unwrap_or_default();
        if !clients.is_empty() {
            shared.number_statements_anew();
        }
        let bound = listener::bind(config, shared.workers(), listeners)?;
        if shared.is_pgbouncer() {
            shared.handover.set_listeners(bound.copies());
        }
        let addresses = bound.addresses.clone();
        let (parts, socket_file) = bound.split();
        let (phase, phases) = watch::channel(Phase::Serving);
        let mut proxy = Self { shared, orders, phase, threads: Vec::new(), addresses, socket_file };
        for (index, part) in parts.into_iter().enumerate() {
            let (shared, phases) = (proxy.shared.clone(), phases.clone());
            let watches = if index == 0 { watches.clone() } else { HashMap::new() };
            let share = clients.len().div_ceil(proxy.shared.workers() - index);
            let clients = clients.split_off(clients.len() - share);
            let thread = std::thread::Builder::new().name(format!("worker {index}"));
            let thread = thread.spawn(move || run_worker(index, shared, part, phases, (watches, clients)));
            proxy.threads.push(thread.map_err(|error| format!("a worker could not be started: {error}"))?);
        }
        Ok(proxy)
    }

    /// Where clients may connect, with the ports that were chosen for port 0.
    #[must_use]
    pub fn addresses(&self) -> &[SocketAddr] {
        &self.addresses
    }

    /// Clients that are connected.
    #[must_use]
    pub fn clients(&self) -> usize {
        self.shared.clients.len()
    }

    /// What everybody shares.
    pub(crate) fn shared(&self) -> &Arc<Shared> {
        &self.shared
    }

    /// The next order of the console for the program as a whole.
    pub(crate) async fn order(&mut self) -> Order {
        match self.orders.recv().await {
            Some(order) => order,
            None => std::future::pending().await,
        }
    }

    /// Takes a new configuration: what can change at once does, and all that differs is returned.
    ///
    /// # Errors
    /// A file that the new configuration names cannot be used; the old one stays in force.
    pub fn reload(&self, config: &Arc<Config>) -> Result<Vec<Change>, String> {
        let changes = self.shared.config().diff(config);
        let tls = |(section, error)| format!("{section}: {error}");
        if config.dialect.pgbouncer().is_none() {
            if let Some(wrong) = check::files(config).first() {
                return Err(wrong.clone());
            }
            self.shared.store.replace(config)?;
            self.shared.tls.replace(config).map_err(tls)?;
        } else {
            self.shared.store.replace(config)?;
        }
        self.shared.replace_config(config);
        Ok(changes)
    }

    /// Takes the TLS settings of a configuration before the rest of it, as PgBouncer does: the old ones stay if they are not good.
    ///
    /// # Errors
    /// What is wrong with them.
    pub(crate) fn reload_tls(&self, config: &Config) -> Result<(), TlsError> {
        self.shared.tls.replace(config).map_err(|(_, error)| error)
    }

    /// Begins to stop: no new clients, and those that are here go at the end of their transactions. Dropping stops at once.
    pub fn drain(&self) {
        self.shared.handover.forget_listeners();
        self.phase.send_replace(Phase::Draining);
    }

    /// Another process serves in the place of this one, with the clients that it was given; the others go on here until they leave.
    pub(crate) fn give_way(&mut self) {
        if let Some(file) = &mut self.socket_file {
            file.leave();
        }
        self.shared.handover.finish();
        self.shared.end(Ending::WaitForClients);
        self.drain();
        self.shared.set_suspended(false);
    }

    /// Whether the last client has gone after [`Proxy::drain`].
    #[must_use]
    pub fn is_drained(&self) -> bool {
        self.threads.iter().all(JoinHandle::is_finished)
    }

    fn stop_now(&mut self) {
        self.phase.send_replace(Phase::Stopping);
        for thread in self.threads.drain(..) {
            if thread.join().is_err() {
                tracing::error!("a worker ended in a panic");
            }
        }
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.stop_now();
    }
}

fn run_worker(
    index: usize,
    shared: Arc<Shared>,
    part: Part,
    phases: watch::Receiver<Phase>,
    (watches, clients): (HashMap<Arc<str>, Watch>, Vec<Carried>),
) {
    let runtime = match Builder::new_current_thread().enable_all().build_local(LocalOptions::default()) {
        Ok(runtime) => runtime,
        Err(error) => return tracing::error!(%error, "a worker could not be started"),
    };
    runtime.block_on(async move {
        let listeners = match Bound::take(part) {
            Ok(listeners) => listeners,
            Err(error) => return tracing::error!(%error, "a worker could not listen"),
        };
        for (name, watch) in watches {
            tokio::task::spawn_local(follow(shared.clone(), name, watch));
        }
        if index == 0 {
            shared.open_forced_pools();
            tokio::task::spawn_local(watch_zones(shared.clone()));
            let shared = shared.clone();
            tokio::task::spawn_local(async move { shared.tls.watch_files().await });
        }
        let worker = Worker::new(index, shared);
        clients.into_iter().for_each(|carried| carry_on(&worker, carried));
        work(worker, listeners, phases).await;
    });
}

/// Carries each change of a cluster over to the pools: servers of an older epoch are closed, and those of a node that is
/// no longer what it was are ended under their sessions.
async fn follow(shared: Arc<Shared>, cluster: Arc<str>, watch: Watch) {
    let mut changes = watch.subscribe();
    let mut last = changes.borrow_and_update().clone();
    while changes.changed().await.is_ok() {
        let now = changes.borrow_and_update().clone();
        for entry in shared.entries().iter().filter(|entry| entry.is_of(&cluster)) {
            for (node, pool) in entry.pools() {
                let revoked = is_revoked(&last, &now, node);
                if now.epoch > last.epoch || revoked {
                    pool.advance(now.epoch, revoked);
                }
            }
            if now.epoch > last.epoch {
                entry.forget_welcomes();
            }
        }
        if now.epoch > last.epoch || now.primary != last.primary {
            shared.wake_sessions();
        }
        // Until there is a primary again the last one counts as what its servers were opened for.
        if now.primary.is_some() || last.primary.is_none() {
            last = now;
        }
    }
}

/// Whether a node's servers are of no use any more: it was the primary and another one is, or it was a standby and is out.
fn is_revoked(last: &Topology, now: &Topology, node: usize) -> bool {
    let was_primary = last.primary == Some(node);
    match now.primary {
        Some(primary) if was_primary => primary != node,
        _ if was_primary => false,
        _ => now.nodes.get(node).is_none_or(|node| node.role == Role::Out),
    }
}
