//! The queue of a pool: who waits for a server has a place in it, and is served in the order of asking. Only where there
//! are several workers one of the server's own may be served a few places early: its runtime watches the socket.

use std::collections::VecDeque;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::task::{Context, Poll, Waker, ready};
use std::time::Instant;

use slab::Slab;

use super::{Borrowed, Failure, Pool, Server};

/// Sessions that may wait for a server of one pool; one more is refused at once.
const MAX_WAITERS: usize = 100_000;

/// Places that one may be served early, to save two workers the trouble of waking each other.
const MAX_EARLY: u64 = 32;

/// What comes to a place.
type Served<S> = Result<S, Failure>;

/// Who waits, by worker. A lock is around it: who waits and who serves meet here, so nothing else stands between them.
pub(super) struct Queue<S = Box<Server>> {
    lines: Vec<VecDeque<Waiter>>,
    /// One for each who waits, or has been served and has not come for it yet.
    seats: Slab<Seat<S>>,
    /// The place that was taken last.
    last: u64,
}

/// Somebody in the queue; whoever has left is in it until it is tidied.
pub(super) struct Waiter {
    pub(super) since: Instant,
    at: At,
}

/// A place in the queue: one number further than the last, and a seat.
#[derive(Debug, Clone, Copy)]
struct At {
    number: u64,
    seat: usize,
}

struct Seat<S> {
    /// Whose it is: a seat is used again.
    number: u64,
    waker: Waker,
    served: Option<Served<S>>,
}

impl<S> Queue<S> {
    /// Nobody waits.
    pub(super) fn new(workers: usize) -> Self {
        Self { lines: (0..workers).map(|_| VecDeque::new()).collect(), seats: Slab::new(), last: 0 }
    }

    pub(super) fn len(&self) -> usize {
        self.lines.iter().map(VecDeque::len).sum()
    }

    pub(super) fn is_empty(&self) -> bool {
        self.lines.iter().all(VecDeque::is_empty)
    }

    fn push(&mut self, worker: usize, since: Instant, waker: Waker) -> At {
        self.last += 1;
        let number = self.last;
        let at = At { number, seat: self.seats.insert(Seat { number, waker, served: None }) };
        self.lines[worker].push_back(Waiter { since, at });
        at
    }

    /// Who waits longest.
    pub(super) fn front(&self) -> Option<&Waiter> {
        self.lines.iter().filter_map(VecDeque::front).min_by_key(|waiter| waiter.at.number)
    }

    /// Gives a server of this worker to whoever is to be served now, who is to be woken then. It comes back if nobody waits.
    pub(super) fn serve(&mut self, worker: usize, server: S) -> Result<Waker, S> {
        while let Some(at) = self.pop(worker) {
            if let Some(seat) = self.seat(at) {
                return Ok(seat.serve(Ok(server)));
            }
        }
        Err(server)
    }

    fn pop(&mut self, worker: usize) -> Option<At> {
        let number = |line: &VecDeque<Waiter>| line.front().map(|waiter| waiter.at.number);
        let (first, longest) =
            self.lines.iter().enumerate().filter_map(|(line, waiters)| Some((number(waiters)?, line))).min()?;
        let is_near = number(&self.lines[worker]).is_some_and(|own| own - first <= MAX_EARLY);
        self.lines[if is_near { worker } else { longest }].pop_front().map(|waiter| waiter.at)
    }

    /// What has come to a place, which is given up with it.
    fn poll(&mut self, at: At, cx: &Context<'_>) -> Poll<Served<S>> {
        match self.seat(at) {
            Some(seat) if seat.served.is_none() => {
                seat.waker.clone_from(cx.waker());
                Poll::Pending
            }
            _ => Poll::Ready(self.leave(at).unwrap_or(Err(Failure::Closed))),
        }
    }

    /// Gives a place up; what has come to it.
    fn leave(&mut self, at: At) -> Option<Served<S>> {
        self.seat(at)?;
        self.seats.remove(at.seat).served
    }

    /// The seat of a place; `None`: it was left.
    fn seat(&mut self, at: At) -> Option<&mut Seat<S>> {
        self.seats.get_mut(at.seat).filter(|seat| seat.number == at.number)
    }

    /// Those who have left are forgotten.
    pub(super) fn tidy(&mut self) {
        let seats = &self.seats;
        let is_there = |at: At| seats.get(at.seat).is_some_and(|seat| seat.number == at.number);
        self.lines.iter_mut().for_each(|line| line.retain(|waiter| is_there(waiter.at)));
    }

    /// Everybody is told this, and to be woken then.
    pub(super) fn fail(&mut self, failure: &Failure) -> Vec<Waker> {
        let everybody: Vec<At> = self.lines.iter_mut().flat_map(std::mem::take).map(|waiter| waiter.at).collect();
        let told = everybody.into_iter().filter_map(|at| Some(self.seat(at)?.serve(Err(failure.clone()))));
        told.collect()
    }
}

impl<S> Seat<S> {
    /// Something has come for whoever has it, who is to be woken then.
    fn serve(&mut self, served: Served<S>) -> Waker {
        self.served = Some(served);
        std::mem::replace(&mut self.waker, Waker::noop().clone())
    }
}

/// A place in the queue, and the server that comes to it. Dropped, the place is given up.
///
/// # Errors
/// The queue is full, or PostgreSQL itself refused the login. A node that cannot be reached is no error here: the caller
/// decides how long to wait.
pub(crate) struct Place {
    at: At,
    pool: Arc<Pool>,
    worker: usize,
    epoch: u64,
}

impl Pool {
    /// A place behind all who wait already, for a server of this epoch. Whose `waker` it is wakes up when one comes.
    ///
    /// # Errors
    /// The queue is full.
    pub(crate) fn queue(
        self: &Arc<Self>,
        worker: usize,
        epoch: u64,
        since: Instant,
        waker: &Waker,
    ) -> Result<Place, Failure> {
        let at = self.line_up(worker, epoch, since, waker)?;
        Ok(Place { at, pool: self.clone(), worker, epoch })
    }

    fn line_up(self: &Arc<Self>, worker: usize, epoch: u64, since: Instant, waker: &Waker) -> Result<At, Failure> {
        let mut state = self.lock();
        state.epoch = state.epoch.max(epoch);
        let waiting = state.waiters.len();
        if waiting >= MAX_WAITERS {
            return Err(Failure::QueueFull { waiting });
        }
        let at = state.waiters.push(worker, since, waker.clone());
        let is_full = state.is_full();
        drop(state);
        if !is_full {
            self.open_if_needed();
        }
        Ok(at)
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
            let server = ready!(self.pool.lock().waiters.poll(self.at, cx))?;
            if server.control.epoch.load(Ordering::Relaxed) >= self.epoch && !server.control.is_revoked() {
                return Poll::Ready(Ok(Borrowed::new(server, self.pool.clone(), self.worker)));
            }
            self.at = self.pool.line_up(self.worker, self.epoch, Instant::now(), cx.waker())?;
        }
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let late = self.pool.lock().waiters.leave(self.at);
        if let Some(Ok(server)) = late {
            self.pool.keep(server); // it came too late for this one
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A queue of two workers in which these wait, in this order, and their places. Servers are numbers here.
    fn queue(order: impl IntoIterator<Item = usize>) -> (Queue<u32>, Vec<At>) {
        let mut queue = Queue::new(2);
        let places = order.into_iter().map(|worker| queue.push(worker, Instant::now(), Waker::noop().clone()));
        let places = places.collect();
        (queue, places)
    }

    fn popped(queue: &mut Queue<u32>, worker: usize) -> Vec<u64> {
        std::iter::from_fn(|| queue.pop(worker).map(|at| at.number)).collect()
    }

    fn poll(queue: &mut Queue<u32>, at: At) -> Poll<Option<u32>> {
        queue.poll(at, &Context::from_waker(Waker::noop())).map(Result::ok)
    }

    #[test]
    fn those_of_the_servers_worker_come_first_and_the_others_after_them() {
        let (mut queue, _places) = queue([0, 1, 0, 1, 1]);
        assert_eq!(queue.front().map(|waiter| waiter.at.number), Some(1));
        assert_eq!(popped(&mut queue, 1), [2, 4, 5, 1, 3]);
        assert!(queue.is_empty());
    }

    #[test]
    fn nobody_is_served_more_than_a_few_places_early() {
        // one of worker 0, and many of worker 1 behind it
        let (mut queue, _places) = queue(std::iter::once(0).chain(std::iter::repeat_n(1, 100)));
        let order = popped(&mut queue, 1);
        let early = usize::try_from(MAX_EARLY).expect("few");
        assert_eq!(order.iter().position(|number| *number == 1), Some(early), "{order:?}");
        assert_eq!(order.len(), 101);
    }

    #[test]
    fn each_gets_what_was_served_to_it_and_once() {
        let (mut queue, places) = queue([0, 0]);
        assert_eq!(poll(&mut queue, places[0]), Poll::Pending);
        assert!(queue.serve(0, 7).is_ok() && queue.serve(0, 8).is_ok());
        assert_eq!(queue.serve(0, 9).err(), Some(9), "nobody waits any more");
        assert_eq!(poll(&mut queue, places[1]), Poll::Ready(Some(8)));
        assert_eq!(poll(&mut queue, places[0]), Poll::Ready(Some(7)));
        assert_eq!(poll(&mut queue, places[0]), Poll::Ready(None));
        assert!(queue.seats.is_empty());
    }

    #[test]
    fn who_has_left_is_passed_over_though_another_has_its_seat() {
        let (mut queue, places) = queue([0, 0]);
        assert!(queue.leave(places[0]).is_none());
        let third = queue.push(0, Instant::now(), Waker::noop().clone());
        assert_eq!(third.seat, places[0].seat);
        assert!(queue.serve(0, 7).is_ok());
        assert_eq!(poll(&mut queue, third), Poll::Pending);
        assert_eq!(queue.leave(places[1]).and_then(Result::ok), Some(7), "it came too late");
        assert!(queue.serve(0, 8).is_ok());
        assert_eq!(poll(&mut queue, third), Poll::Ready(Some(8)));
    }

    #[test]
    fn a_failure_is_told_to_all_who_wait() {
        let (mut queue, places) = queue([0, 1, 1]);
        assert!(queue.leave(places[1]).is_none());
        assert_eq!(queue.fail(&Failure::Closed).len(), 2);
        assert!(queue.is_empty());
        assert_eq!((poll(&mut queue, places[0]), poll(&mut queue, places[2])), (Poll::Ready(None), Poll::Ready(None)));
    }

    #[test]
    fn who_has_left_is_forgotten() {
        let (mut queue, places) = queue([0, 1, 0]);
        assert!(queue.leave(places[1]).is_none());
        queue.tidy();
        assert_eq!((queue.len(), popped(&mut queue, 1)), (2, vec![1, 3]));
    }
}
