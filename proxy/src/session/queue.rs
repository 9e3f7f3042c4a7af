//! A session in the queue of a pool, as long as nothing but its turn comes: no timer, no task, nothing to subscribe to.
//!
//! Where clients outnumber servers, every transaction begins with such a wait. Whatever else may happen to one that
//! waits (a deadline, a pause, another primary, a client that leaves) wakes it up, the clock of housekeeping at the
//! latest, and it goes on waiting in the careful manner of `borrow.rs`, without losing its place.

use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll, Waker};
use std::time::{Duration, Instant};

use super::turn::Turn;
use super::{Asked, Session};
use crate::counts::Counted as Held;
use crate::pool::Place;
use crate::stats::Counted;

/// Limits of a wait below this are looked after from its beginning: housekeeping is too slow for them.
const SHORTEST_LIMIT: Duration = Duration::from_secs(1);

/// What a transaction needs before it can begin.
#[derive(Debug)]
pub(super) struct Need {
    /// What it asks for.
    pub(super) asked: Asked,
    /// The node that is to serve it, and the epoch in which it was chosen; none: more has to be thought of.
    pub(super) at: Option<(usize, u64)>,
}

impl Need {
    /// More has to be thought of than whose turn it is.
    pub(super) fn with_care(asked: Asked) -> Self {
        Self { asked, at: None }
    }
}

/// A wait that goes on.
pub(super) struct Waiting {
    asked: Asked,
    pub(super) place: Place,
    node: usize,
    epoch: u64,
    pub(super) since: Instant,
    /// It is counted among all who wait.
    pub(super) held: Held,
}

impl Session {
    /// Takes a place in the queue of the node that was chosen, which wakes the session up. An error says what the session waits for instead.
    pub(super) fn queue_up(&mut self, cx: &mut Context<'_>, need: Need) -> Result<(), Turn> {
        let Some((node, epoch)) = need.at else { return Err(Turn::Need(need)) };
        let since = Instant::now();
        let Some((place, held)) = self.place_at(node, epoch, since, cx.waker()) else { return Err(Turn::Need(need)) };
        self.cancel.waits(cx.waker());
        self.card.waiting();
        self.waiting = Some(Box::new(Waiting { asked: need.asked, place, node, epoch, since, held }));
        if self.client.poll_readable(cx).is_pending() { Ok(()) } else { Err(self.look_around()) }
    }

    fn place_at(&self, node: usize, epoch: u64, since: Instant, waker: &Waker) -> Option<(Place, Held)> {
        if self.entry.config().max_wait < SHORTEST_LIMIT {
            return None;
        }
        let pool = self.pools.get(node).filter(|pool| pool.is_failing().is_none())?;
        let held = self.worker.shared.hold()?;
        Some((pool.queue(self.worker.index, epoch, since, waker).ok()?, held))
    }

    /// Ready when the wait is over, one way or the other.
    pub(super) fn poll_queue(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Turn>> {
        let Some(mut waiting) = self.waiting.take() else { return Poll::Ready(Ok(())) };
        let Poll::Ready(served) = Pin::new(&mut waiting.place).poll(cx) else {
            self.waiting = Some(waiting);
            return Poll::Pending;
        };
        let Waiting { asked, node, epoch, since, .. } = *waiting;
        self.cancel.waits_no_more();
        self.count_time(Counted::WaitTime, since.elapsed());
        Poll::Ready(match served {
            // Dropped, the server is the next one's; who was paused, or has another primary, waits with care.
            Ok(_) if self.entry.is_paused() || !self.is_still(epoch) => Err(Turn::Need(Need::with_care(asked))),
            Ok(server) => {
                self.client_rest_is_fresh = self.client.has_rest();
                self.take(server, node)
            }
            Err(failure) => Err(Turn::Refused(Box::new(self.told_of(failure)))),
        })
    }

    fn is_still(&self, epoch: u64) -> bool {
        self.entry.alone.is_some() || self.entry.watch.now().epoch == epoch
    }

    /// Something happened to one who waits: it waits on with care.
    pub(super) fn look_around(&self) -> Turn {
        let asked = self.waiting.as_ref().map_or_else(Asked::primary, |waiting| waiting.asked.clone());
        Turn::Need(Need::with_care(asked))
    }
}
