//! The servers for one database entry, one user and one node: borrowed in the order of asking, given back by `Drop`.
//!
//! Idle servers are kept by the worker whose runtime watches their socket, so that a session finds one of its own; one
//! that is borrowed by another worker moves to it. The limit and the queue are one for all workers.

use std::collections::VecDeque;
use std::ops::{Deref, DerefMut};
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::{Duration, Instant};

use tokio::runtime::Handle;
use topology::Address;

use crate::entry::Entry;
use crate::pgbouncer::log::{Level, say};
use crate::shared::Shared;
use queue::Queue;

mod adopt;
mod control;
mod failure;
mod open;
mod queue;
pub(crate) mod server;
mod survey;
mod terms;
mod trip;
mod upkeep;

pub(crate) use control::{Control, Origin, ServerState};
pub(crate) use failure::Failure;
pub(crate) use open::{Alone, Opener};
pub(crate) use queue::Place;
pub(crate) use server::{CancelTarget, Server};
pub(crate) use terms::{Budget, Terms};

/// Wait after a failed attempt, where no other is configured: doubled with each, from the first to the second.
const RETRY: (Duration, Duration) = (Duration::from_millis(20), Duration::from_secs(1));

/// The servers for one database entry, one user and one node.
pub(crate) struct Pool {
    /// The name of the entry.
    pub(crate) database: Arc<str>,
    /// Whose servers they are.
    pub(crate) user: Arc<str>,
    opener: Opener,
    /// The limits that it shares with other pools.
    budgets: [Arc<Budget>; 2],
    state: Mutex<State>,
}

struct State {
    terms: Arc<Terms>,
    /// By worker; the one given back last is borrowed first.
    idle: Vec<VecDeque<Box<Server>>>,
    /// Servers that exist or are being opened.
    taken: usize,
    /// Of those, the ones being opened.
    opening: usize,
    /// Who waits, first come first.
    waiters: Queue,
    /// Servers of an older epoch are closed.
    epoch: u64,
    /// The controls of all servers that exist.
    controls: Vec<Weak<Control>>,
    /// No attempt is made before.
    retry_at: Option<Instant>,
    /// Why the last attempt failed; none: it did not.
    failure: Option<Failure>,
}

impl State {
    /// Nothing can be done for those who wait before a server comes back.
    fn is_full(&self) -> bool {
        self.taken >= self.terms.most() && self.idle.iter().all(VecDeque::is_empty)
    }
}

/// The place that a server takes in its pool.
pub(crate) struct Slot {
    pool: Weak<Pool>,
    control: Option<Arc<Control>>,
}

impl Drop for Slot {
    fn drop(&mut self) {
        let (control, pool) = (self.control.take(), self.pool.upgrade());
        if let Some(control) = control
            && pool.as_ref().is_none_or(|pool| pool.terms().logs_ends)
        {
            log_end(&control);
        }
        if let Some(pool) = pool {
            pool.lock().taken -= 1;
            pool.budgets.iter().for_each(|budget| budget.give_back());
            pool.open_if_needed();
        }
    }
}

fn log_end(control: &Control) {
    let why = control.why_closed().unwrap_or_else(|| "server conn crashed?".to_owned());
    say(Level::Log, format_args!("{control} closing because: {why} (age={}s)", control.age()));
}

/// A connection attempt that goes on.
struct Opening(Arc<Pool>);

impl Drop for Opening {
    fn drop(&mut self) {
        self.0.lock().opening -= 1;
    }
}

/// A server on loan to a session. Dropped, it goes back if it is at rest and clean, else it is closed.
pub(crate) struct Borrowed {
    server: Option<Box<Server>>,
    pool: Arc<Pool>,
}

impl Deref for Borrowed {
    type Target = Server;
    #[inline]
    fn deref(&self) -> &Server {
        self.server.as_ref().expect("a loan holds its server until it is dropped")
    }
}

impl DerefMut for Borrowed {
    #[inline]
    fn deref_mut(&mut self) -> &mut Server {
        self.server.as_mut().expect("a loan holds its server until it is dropped")
    }
}

impl Borrowed {
    /// Lends it to a session of this worker, on which this is called.
    fn new(mut server: Box<Server>, pool: Arc<Pool>, worker: usize) -> Self {
        server.control.enter(ServerState::Active);
        server.move_to(worker);
        Self { server: Some(server), pool }
    }

    /// Takes the server out of the loan: it will not go back by itself.
    pub(crate) fn into_server(mut self) -> (Box<Server>, Arc<Pool>) {
        let server = self.server.take().expect("a loan holds its server until it is dropped");
        (server, self.pool.clone())
    }

    /// Its pool.
    pub(crate) fn pool(&self) -> &Arc<Pool> {
        &self.pool
    }
}

impl Drop for Borrowed {
    fn drop(&mut self) {
        let Some(server) = self.server.take() else { return };
        let whole = server.conversation.at_rest() && server.wire.backlog() == 0;
        if whole && !server.dirty && !server.control.is_revoked() {
            self.pool.give_back(server);
        }
    }
}

impl Pool {
    /// A pool without servers.
    pub(crate) fn new(
        entry: &Entry,
        user: &Arc<str>,
        opener: Opener,
        terms: Arc<Terms>,
        shared: &Arc<Shared>,
    ) -> Arc<Self> {
        let state = State {
            terms,
            idle: (0..shared.workers()).map(|_| VecDeque::new()).collect(),
            taken: 0,
            opening: 0,
            waiters: Queue::new(shared.workers()),
            epoch: 0,
            controls: Vec::new(),
            retry_at: None,
            failure: None,
        };
        let budgets = [entry.servers.clone(), shared.budget_of(user)];
        let (database, user) = (entry.name.clone(), user.clone());
        Arc::new(Self { database, user, opener, budgets, state: Mutex::new(state) })
    }

    /// What its servers are opened with.
    pub(crate) fn opener(&self) -> &Opener {
        &self.opener
    }

    /// What it keeps to.
    pub(crate) fn terms(&self) -> Arc<Terms> {
        self.lock().terms.clone()
    }

    /// Whether this is the name of its host, or of one of them.
    pub(crate) fn is_at(&self, host: &str) -> bool {
        let terms = self.terms();
        let mut addresses = terms.addresses.iter().chain(std::iter::once(&self.opener.address));
        addresses.any(|address| matches!(address, Address::Tcp(name, _) if name == host))
    }

    /// It keeps to this from now on.
    pub(crate) fn set_terms(self: &Arc<Self>, terms: Arc<Terms>) {
        self.lock().terms = terms;
        self.open_if_needed();
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// An idle server of this epoch, if there is one: never waits.
    #[inline]
    pub(crate) fn try_borrow(self: &Arc<Self>, worker: usize, epoch: u64) -> Option<Borrowed> {
        loop {
            let server = {
                let mut state = self.lock();
                state.epoch = state.epoch.max(epoch);
                if let Some((delay, _)) = &state.terms.check {
                    let (now, delay) = (self.opener.clock.now(), *delay);
                    let fresh = |server: &Server| now.since(server.idle_since) < delay;
                    if delay.is_zero() || !state.idle.iter().flatten().any(|server| fresh(server)) {
                        return None;
                    }
                }
                let from_front = state.terms.round_robin;
                let take =
                    |idle: &mut VecDeque<Box<Server>>| if from_front { idle.pop_front() } else { idle.pop_back() };
                match take(&mut state.idle[worker]) {
                    Some(server) => server,
                    None => state.idle.iter_mut().find_map(take)?,
                }
            };
            if let Some(server) = self.fit(server, epoch) {
                return Some(Borrowed::new(server, self.clone(), worker));
            }
        }
    }

    /// The server if it may still be used: of this epoch, and nothing but notices came while it was idle.
    #[inline]
    fn fit(&self, mut server: Box<Server>, epoch: u64) -> Option<Box<Server>> {
        let control = &server.control;
        if control.epoch.load(Ordering::Relaxed) < epoch || control.is_revoked() || control.is_retired() {
            control.closes("database configuration changed");
            return None;
        }
        server.listen_idle().then_some(server)
    }

    /// Gives a server to whoever waits longest, or keeps it.
    fn give_back(&self, mut server: Box<Server>) {
        server.idle_since = self.opener.clock.now();
        server.control.link.store(0, Ordering::Relaxed);
        server.control.enter(ServerState::Idle);
        self.keep(server);
    }

    fn keep(&self, mut server: Box<Server>) {
        server.wire.settle();
        let mut state = self.lock();
        if let Some(why) = self.must_close(&server, &state) {
            server.control.closes(why);
            drop(state); // the slot locks again
            return;
        }
        let worker = server.worker.unwrap_or(0);
        match state.waiters.serve(worker, server) {
            Ok(waker) => {
                drop(state);
                waker.wake();
            }
            Err(server) => state.idle[worker].push_back(server),
        }
    }

    /// Why a server that nobody has is closed instead of kept.
    fn must_close(&self, server: &Server, state: &State) -> Option<&'static str> {
        let control = &server.control;
        let age = self.opener.clock.now().since(server.opened);
        if control.epoch.load(Ordering::Relaxed) < state.epoch || control.is_retired() {
            Some("database configuration changed")
        } else if state.taken > state.terms.most() {
            Some("too many servers in the pool")
        } else if age > state.terms.lifetime || state.terms.lifetime.is_zero() && server.was_lent {
            Some("server lifetime over")
        } else {
            None
        }
    }

    /// The controls of all servers that exist.
    pub(crate) fn controls(&self) -> Vec<Arc<Control>> {
        self.lock().controls.iter().filter_map(Weak::upgrade).collect()
    }

    /// A new epoch: idle servers of older ones are closed; with `revoke`, the borrowed ones are ended as well.
    pub(crate) fn advance(&self, epoch: u64, revoke: bool) {
        let (idle, controls) = {
            let mut state = self.lock();
            state.epoch = state.epoch.max(epoch);
            let idle: Vec<VecDeque<Box<Server>>> = state.idle.iter_mut().map(std::mem::take).collect();
            (idle, if revoke { state.controls.clone() } else { Vec::new() })
        };
        for control in controls.iter().filter_map(Weak::upgrade) {
            if control.epoch.load(Ordering::Relaxed) < epoch {
                control.revoke();
            }
        }
        for server in idle.into_iter().flatten() {
            self.keep(server); // closes those of an older epoch
        }
    }

    /// All servers that exist now are closed as soon as nobody has them.
    pub(crate) fn retire(&self) {
        self.controls().iter().for_each(|control| control.retire());
        self.close_idle("database configuration changed");
    }

    /// Closes the idle servers.
    pub(crate) fn close_idle(&self, why: &str) {
        let idle: Vec<VecDeque<Box<Server>>> = self.lock().idle.iter_mut().map(std::mem::take).collect();
        for server in idle.iter().flatten() {
            server.control.closes(why);
        }
    }

    /// How many servers there are, and how many sessions wait.
    pub(crate) fn counts(&self) -> Counts {
        let state = self.lock();
        let idle = state.idle.iter().map(VecDeque::len).sum();
        Counts { servers: state.taken, opening: state.opening, idle, waiting: state.waiters.len() }
    }

    /// Nothing can be expected of it soon: it has no server, and the last attempt to open one failed. Why.
    pub(crate) fn is_failing(&self) -> Option<Failure> {
        let state = self.lock();
        let without_servers = state.taken == state.opening;
        state.failure.clone().filter(|_| state.terms.is_pgbouncer && without_servers)
    }
}

/// The figures of a pool.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Counts {
    /// Servers that exist or are being opened.
    pub(crate) servers: usize,
    /// Of those, the ones being opened.
    pub(crate) opening: usize,
    /// Of those, idle.
    pub(crate) idle: usize,
    /// Sessions that wait.
    pub(crate) waiting: usize,
}

impl Counts {
    /// Servers that sessions have, or that are being reset.
    pub(crate) fn busy(&self) -> usize {
        self.servers.saturating_sub(self.opening + self.idle)
    }
}

/// The runtime to open servers on; none while the program ends.
fn runtime() -> Option<Handle> {
    Handle::try_current().ok()
}
