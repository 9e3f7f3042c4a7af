//! The queue of a pool: who waits for a server has a place in it, and is served in the order of asking. Only where there
//! are several workers one of the server's own may be served a few places early: its runtime watches the socket.

use std::collections::VecDeque;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::task::{Context, Poll, ready};
use std::time::Instant;

use tokio::sync::oneshot;

use super::{Borrowed, Failure, Pool, Server};

/// Sessions that may wait for a server of one pool; one more is refused at once.
const MAX_WAITERS: usize = 100_000;

/// Places that one may be served early, to save two workers the trouble of waking each other.
const MAX_EARLY: u64 = 32;

/// What comes to a place.
type Served = Result<Box<Server>, Failure>;

/// Somebody in the queue.
pub(super) struct Waiter {
    pub(super) since: Instant,
    sender: oneshot::Sender<Served>,
    /// The place: one further than the last.
    number: u64,
}

impl Waiter {
    /// Gives it what it waits for; what could not be given comes back.
    pub(super) fn serve(self, served: Served) -> Result<(), Served> {
        self.sender.send(served)
    }
}

/// Who waits, by worker.
pub(super) struct Queue {
    lines: Vec<VecDeque<Waiter>>,
    /// The place that was taken last.
    last: u64,
}

impl Queue {
    /// Nobody waits.
    pub(super) fn new(workers: usize) -> Self {
        Self { lines: (0..workers).map(|_| VecDeque::new()).collect(), last: 0 }
    }

    pub(super) fn len(&self) -> usize {
        self.lines.iter().map(VecDeque::len).sum()
    }

    pub(super) fn is_empty(&self) -> bool {
        self.lines.iter().all(VecDeque::is_empty)
    }

    fn push(&mut self, worker: usize, since: Instant, sender: oneshot::Sender<Served>) {
        self.last += 1;
        self.lines[worker].push_back(Waiter { since, sender, number: self.last });
    }

    /// Who waits longest.
    pub(super) fn front(&self) -> Option<&Waiter> {
        self.lines.iter().filter_map(VecDeque::front).min_by_key(|waiter| waiter.number)
    }

    /// Who is to be served now, by a server of this worker.
    pub(super) fn pop(&mut self, worker: usize) -> Option<Waiter> {
        let number = |line: &VecDeque<Waiter>| line.front().map(|waiter| waiter.number);
        let (first, longest) =
            self.lines.iter().enumerate().filter_map(|(line, waiters)| Some((number(waiters)?, line))).min()?;
        let is_near = number(&self.lines[worker]).is_some_and(|own| own - first <= MAX_EARLY);
        self.lines[if is_near { worker } else { longest }].pop_front()
    }

    /// Those who have left are forgotten.
    pub(super) fn tidy(&mut self) {
        self.lines.iter_mut().for_each(|line| line.retain(|waiter| !waiter.sender.is_closed()));
    }

    /// Everybody is told this.
    pub(super) fn fail(&mut self, failure: &Failure) {
        for waiter in self.lines.iter_mut().flat_map(std::mem::take) {
            let _ = waiter.serve(Err(failure.clone()));
        }
    }
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
        let server = self.line_up(worker, epoch, since)?;
        Ok(Place { server, pool: self.clone(), worker, epoch })
    }

    fn line_up(
        self: &Arc<Self>,
        worker: usize,
        epoch: u64,
        since: Instant,
    ) -> Result<oneshot::Receiver<Served>, Failure> {
        let (sender, receiver) = oneshot::channel();
        {
            let mut state = self.lock();
            state.epoch = state.epoch.max(epoch);
            let waiting = state.waiters.len();
            if waiting >= MAX_WAITERS {
                return Err(Failure::QueueFull { waiting });
            }
            state.waiters.push(worker, since, sender);
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
                return Poll::Ready(Ok(Borrowed::new(server, self.pool.clone(), self.worker)));
            }
            self.server = self.pool.line_up(self.worker, self.epoch, Instant::now())?;
        }
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.server.close();
        if let Ok(Ok(server)) = self.server.try_recv() {
            self.pool.keep(server); // it came too late for this one
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A queue of two workers in which these wait, in this order, and the receivers that keep them there.
    fn queue(order: impl IntoIterator<Item = usize>) -> (Queue, Vec<oneshot::Receiver<Served>>) {
        let mut queue = Queue::new(2);
        let receivers = order.into_iter().map(|worker| {
            let (sender, receiver) = oneshot::channel();
            queue.push(worker, Instant::now(), sender);
            receiver
        });
        let receivers = receivers.collect();
        (queue, receivers)
    }

    fn popped(queue: &mut Queue, worker: usize) -> Vec<u64> {
        std::iter::from_fn(|| queue.pop(worker).map(|waiter| waiter.number)).collect()
    }

    #[test]
    fn those_of_the_servers_worker_come_first_and_the_others_after_them() {
        let (mut queue, _receivers) = queue([0, 1, 0, 1, 1]);
        assert_eq!(queue.front().map(|waiter| waiter.number), Some(1));
        assert_eq!(popped(&mut queue, 1), [2, 4, 5, 1, 3]);
        assert!(queue.is_empty());
    }

    #[test]
    fn nobody_is_served_more_than_a_few_places_early() {
        // one of worker 0, and many of worker 1 behind it
        let (mut queue, _receivers) = queue(std::iter::once(0).chain(std::iter::repeat_n(1, 100)));
        let order = popped(&mut queue, 1);
        let early = usize::try_from(MAX_EARLY).expect("few");
        assert_eq!(order.iter().position(|number| *number == 1), Some(early), "{order:?}");
        assert_eq!(order.len(), 101);
    }

    #[test]
    fn who_has_left_is_forgotten() {
        let (mut queue, mut receivers) = queue([0, 1, 0]);
        receivers.remove(1).close();
        queue.tidy();
        assert_eq!((queue.len(), popped(&mut queue, 1)), (2, vec![1, 3]));
    }
}
