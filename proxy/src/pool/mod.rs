//! The servers for one database entry, one user and one node: borrowed in the order of asking, given back by `Drop`.
//!
//! Idle servers are kept by worker, so that a session finds one whose socket its own runtime watches; the limit and
//! the queue are one for all workers.

use std::collections::VecDeque;
use std::ops::{Deref, DerefMut};
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Duration;

use tokio::runtime::Handle;
use tokio::sync::oneshot;

use crate::clock::Moment;

mod failure;
mod open;
pub(crate) mod server;
mod survey;
mod trip;

pub(crate) use failure::Failure;
pub(crate) use open::Opener;
pub(crate) use server::{CancelTarget, Server};

/// Sessions that may wait for a server of one pool; one more is refused at once.
const MAX_WAITERS: usize = 100_000;
/// Connection attempts of one pool at the same time.
const MAX_OPENING: usize = 4;
/// Wait after a failed attempt: doubled with each, from the first to the second.
const RETRY: (Duration, Duration) = (Duration::from_millis(20), Duration::from_secs(1));

/// The servers for one database entry, one user and one node.
pub(crate) struct Pool {
    opener: Opener,
    size: usize,
    /// Servers kept even when unused.
    min_size: usize,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    /// By worker; the one given back last is borrowed first.
    idle: Vec<Vec<Server>>,
    /// Servers that exist or are being opened.
    taken: usize,
    /// Of those, the ones being opened.
    opening: usize,
    /// Who waits, first come first.
    waiters: VecDeque<oneshot::Sender<Result<Server, Failure>>>,
    /// Servers of an older epoch are closed.
    epoch: u64,
    /// The controls of all servers that exist, to revoke them.
    controls: Vec<Weak<server::Control>>,
}

/// The place that a server takes in its pool.
pub(crate) struct Slot(Weak<Pool>);

impl Drop for Slot {
    fn drop(&mut self) {
        if let Some(pool) = self.0.upgrade() {
            pool.lock().taken -= 1;
            pool.open_if_needed();
        }
    }
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
    server: Option<Server>,
    pool: Arc<Pool>,
    worker: usize,
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
    /// Takes the server out of the loan: it will not go back by itself.
    pub(crate) fn into_server(mut self) -> (Server, Arc<Pool>) {
        let server = self.server.take().expect("a loan holds its server until it is dropped");
        (server, self.pool.clone())
    }
}

impl Drop for Borrowed {
    fn drop(&mut self) {
        let Some(server) = self.server.take() else { return };
        let whole = server.conversation.at_rest() && server.wire.backlog() == 0;
        if whole && !server.dirty && !server.control.is_revoked() {
            self.pool.give_back(server, self.worker);
        }
    }
}

impl Pool {
    /// A pool without servers.
    pub(crate) fn new(opener: Opener, size: usize, min_size: usize, workers: usize) -> Arc<Self> {
        let state = State { idle: (0..workers).map(|_| Vec::new()).collect(), ..State::default() };
        Arc::new(Self { opener, size, min_size: min_size.min(size), state: Mutex::new(state) })
    }

    /// What its servers are opened with.
    pub(crate) fn opener(&self) -> &Opener {
        &self.opener
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
                match state.idle[worker].pop() {
                    Some(server) => server,
                    None => state.idle.iter_mut().find_map(Vec::pop)?,
                }
            };
            if let Some(server) = self.fit(server, epoch) {
                return Some(Borrowed { server: Some(server), pool: self.clone(), worker });
            }
        }
    }

    /// The server if it may still be used: of this epoch, and nothing but notices came while it was idle.
    #[inline]
    fn fit(&self, mut server: Server, epoch: u64) -> Option<Server> {
        if server.control.epoch.load(Ordering::Relaxed) < epoch || server.control.is_revoked() {
            return None;
        }
        server.listen_idle().then_some(server)
    }

    /// A server of this epoch, in the order of asking. Cancelled by dropping.
    ///
    /// # Errors
    /// The queue is full, or PostgreSQL itself refused the login. A node that cannot be reached is no error here: the
    /// caller decides how long to wait.
    pub(crate) async fn borrow(self: &Arc<Self>, worker: usize, epoch: u64) -> Result<Borrowed, Failure> {
        loop {
            let receiver = {
                let mut state = self.lock();
                state.epoch = state.epoch.max(epoch);
                if state.waiters.len() >= MAX_WAITERS {
                    return Err(Failure::QueueFull { waiting: state.waiters.len() });
                }
                let (sender, receiver) = oneshot::channel();
                state.waiters.push_back(sender);
                receiver
            };
            self.open_if_needed();
            let server = receiver.await.unwrap_or(Err(Failure::Closed))?;
            if server.control.epoch.load(Ordering::Relaxed) >= epoch && !server.control.is_revoked() {
                return Ok(Borrowed { server: Some(server), pool: self.clone(), worker });
            }
        }
    }

    /// Gives a server to whoever waits longest, or keeps it.
    fn give_back(&self, mut server: Server, worker: usize) {
        server.idle_since = self.opener.clock.now();
        self.keep(server, worker);
    }

    fn keep(&self, mut server: Server, worker: usize) {
        let mut state = self.lock();
        let stale = server.control.epoch.load(Ordering::Relaxed) < state.epoch;
        let too_many = state.taken > self.size;
        let too_old = self.opener.clock.now().since(server.opened) > self.opener.lifetime;
        if stale || too_many || too_old {
            drop(state); // the slot locks again
            return;
        }
        while let Some(waiter) = state.waiters.pop_front() {
            match waiter.send(Ok(server)) {
                Ok(()) => return,
                Err(Ok(back)) => server = back,
                Err(Err(_)) => unreachable!("a server was sent"),
            }
        }
        state.idle[worker].push(server);
    }

    /// Starts connection attempts for those who wait, within the limits.
    fn open_if_needed(self: &Arc<Self>) {
        let Ok(runtime) = Handle::try_current() else { return }; // the program is ending
        let mut state = self.lock();
        state.waiters.retain(|waiter| !waiter.is_closed());
        let room = self.size.saturating_sub(state.taken);
        let wanted =
            state.waiters.len().saturating_sub(state.opening).min(MAX_OPENING - state.opening.min(MAX_OPENING));
        for _ in 0..wanted.min(room) {
            state.taken += 1;
            state.opening += 1;
            runtime.spawn(self.clone().open());
        }
    }

    /// One connection attempt, repeated with growing waits as long as somebody waits for it.
    async fn open(self: Arc<Self>) {
        let slot = Slot(Arc::downgrade(&self));
        let opening = Opening(self.clone());
        let mut retry = RETRY.0;
        let failure = loop {
            let epoch = self.lock().epoch;
            let opened = match self.opener.open(epoch).await {
                Ok(opened) => {
                    let mut server = Server::new(opened, &self.opener.clock);
                    self.opener.survey(&mut server).await.map(|()| server)
                }
                Err(failure) => Err(failure),
            };
            match opened {
                Ok(server) => return self.take_in(server.placed(slot), opening),
                Err(failure) if failure.is_final() => break failure,
                Err(failure) => self.opener.failed(&failure),
            }
            tokio::time::sleep(retry).await;
            retry = (retry * 2).min(RETRY.1);
            if !self.somebody_waits() {
                return;
            }
        };
        self.opener.failed(&failure);
        let waiters = std::mem::take(&mut self.lock().waiters);
        for waiter in waiters {
            let _ = waiter.send(Err(failure.clone()));
        }
    }

    fn take_in(self: &Arc<Self>, server: Server, opening: Opening) {
        drop(opening);
        self.lock().controls.push(Arc::downgrade(&server.control));
        self.give_back(server, 0);
        self.open_if_needed();
    }

    fn somebody_waits(&self) -> bool {
        let mut state = self.lock();
        state.waiters.retain(|waiter| !waiter.is_closed());
        !state.waiters.is_empty()
    }

    /// Housekeeping: closes idle servers that are too old, idle too long, of an older epoch, or gone.
    pub(crate) fn tidy(self: &Arc<Self>, now: Moment) {
        let (idle, epoch) = {
            let mut state = self.lock();
            let idle: Vec<Vec<Server>> = state.idle.iter_mut().map(std::mem::take).collect();
            state.controls.retain(|control| control.strong_count() > 0);
            (idle, state.epoch)
        };
        let mut spare = self.lock().taken.saturating_sub(self.min_size);
        for (worker, servers) in idle.into_iter().enumerate() {
            for server in servers {
                let too_long = now.since(server.idle_since) >= self.opener.idle_timeout;
                if too_long && spare > 0 {
                    spare -= 1;
                    continue;
                }
                match self.fit(server, epoch) {
                    Some(server) => self.keep(server, worker),
                    None => self.opener.watch.suspect(self.opener.node),
                }
            }
        }
        self.open_to_minimum();
    }

    /// Opens one more server if there are fewer than are to be kept.
    fn open_to_minimum(self: &Arc<Self>) {
        let mut state = self.lock();
        if state.taken < self.min_size && state.opening == 0 {
            state.taken += 1;
            state.opening += 1;
            tokio::spawn(self.clone().open());
        }
    }

    /// A new epoch: idle servers of older ones are closed; with `revoke`, the borrowed ones are ended as well.
    pub(crate) fn advance(&self, epoch: u64, revoke: bool) {
        let (idle, controls) = {
            let mut state = self.lock();
            state.epoch = state.epoch.max(epoch);
            let idle: Vec<Vec<Server>> = state.idle.iter_mut().map(std::mem::take).collect();
            (idle, if revoke { state.controls.clone() } else { Vec::new() })
        };
        for control in controls.iter().filter_map(Weak::upgrade) {
            if control.epoch.load(Ordering::Relaxed) < epoch {
                control.revoke();
            }
        }
        for (worker, servers) in idle.into_iter().enumerate() {
            for server in servers {
                self.keep(server, worker); // closes those of an older epoch
            }
        }
    }

    /// How many servers there are, and how many sessions wait.
    pub(crate) fn counts(&self) -> Counts {
        let state = self.lock();
        let idle = state.idle.iter().map(Vec::len).sum();
        Counts { servers: state.taken, idle, waiting: state.waiters.len() }
    }
}

/// The figures of a pool.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Counts {
    /// Servers that exist or are being opened.
    pub(crate) servers: usize,
    /// Of those, idle.
    pub(crate) idle: usize,
    /// Sessions that wait.
    pub(crate) waiting: usize,
}
