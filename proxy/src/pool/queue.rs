//! The queue of a pool: who waits for a server has a place in it, and is served in the order of asking.

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::task::{Context, Poll, ready};
use std::time::Instant;

use tokio::sync::oneshot;

use super::{Borrowed, Failure, Pool, Server, ServerState};

/// Sessions that may wait for a server of one pool; one more is refused at once.
const MAX_WAITERS: usize = 100_000;

/// What comes to a place.
type Served = Result<Box<Server>, Failure>;

/// Somebody in the queue.
pub(super) struct Waiter {
    pub(super) since: Instant,
    pub(super) sender: oneshot::Sender<Served>,
}

/// A place in the queue, and the server that comes to it. Dropped, the place is given up.
///
/// # Errors
/// The queue is full, or PostgreSQL itself refused the login. A node that cannot be reached is no error here: the caller
/// decides how long to wait.
pub(crate) struct Place {
    server: oneshot::Receiver<Served>,
    pool: Arc<Pool>,
    worker: usize,
    epoch: u64,
}

impl Pool {
    /// A place behind all who wait already, for a server of this epoch.
    ///
    /// # Errors
    /// The queue is full.
    pub(crate) fn queue(self: &Arc<Self>, worker: usize, epoch: u64, since: Instant) -> Result<Place, Failure> {
        let server = self.line_up(epoch, since)?;
        Ok(Place { server, pool: self.clone(), worker, epoch })
    }

    fn line_up(self: &Arc<Self>, epoch: u64, since: Instant) -> Result<oneshot::Receiver<Served>, Failure> {
        let (sender, receiver) = oneshot::channel();
        {
            let mut state = self.lock();
            state.epoch = state.epoch.max(epoch);
            if state.waiters.len() >= MAX_WAITERS {
                return Err(Failure::QueueFull { waiting: state.waiters.len() });
            }
            state.waiters.push_back(Waiter { since, sender });
        }
        self.open_if_needed();
        Ok(receiver)
    }
}

impl Place {
    /// Whether it is in the queue of this pool, for a server of this epoch.
    pub(crate) fn is_in(&self, pool: &Arc<Pool>, epoch: u64) -> bool {
        Arc::ptr_eq(&self.pool, pool) && self.epoch == epoch
    }
}

impl Future for Place {
    type Output = Result<Borrowed, Failure>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        loop {
            let server = ready!(Pin::new(&mut self.server).poll(cx)).unwrap_or(Err(Failure::Closed))?;
            if server.control.epoch.load(Ordering::Relaxed) >= self.epoch && !server.control.is_revoked() {
                server.control.enter(ServerState::Active);
                let (pool, worker) = (self.pool.clone(), self.worker);
                return Poll::Ready(Ok(Borrowed { server: Some(server), pool, worker }));
            }
            self.server = self.pool.line_up(self.epoch, Instant::now())?;
        }
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.server.close();
        if let Ok(Ok(server)) = self.server.try_recv() {
            self.pool.keep(server, self.worker); // it came too late for this one
        }
    }
}
