//! Counts that go down by themselves: of clients, of those who wait, of what belongs to a user; and how the program ends.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use crate::pool::Budget;
use crate::shared::Shared;

/// How the program ends when the console or a signal asks for it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Ending {
    /// When all servers were given back.
    WaitForServers,
    /// When all clients have left.
    WaitForClients,
}

/// What is counted of a user.
pub(crate) struct OfUser {
    /// Its clients.
    pub(crate) clients: Arc<AtomicUsize>,
    /// The servers of its pools.
    pub(crate) servers: Arc<Budget>,
}

/// A place in a count, until it is dropped.
pub(crate) struct Place(Arc<AtomicUsize>);

impl Place {
    /// One more, unless the limit is reached (0: no limit).
    pub(crate) fn take(count: &Arc<AtomicUsize>, limit: usize) -> Option<Self> {
        if count.fetch_add(1, Ordering::AcqRel) >= limit && limit > 0 {
            count.fetch_sub(1, Ordering::AcqRel);
            return None;
        }
        Some(Self(count.clone()))
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::AcqRel);
    }
}

/// One more in a count, until it is dropped.
pub(crate) struct Counted {
    shared: Arc<Shared>,
    count: fn(&Shared) -> &AtomicUsize,
}

impl Counted {
    /// One more, if that is within the limit.
    pub(crate) fn within(shared: &Arc<Shared>, count: fn(&Shared) -> &AtomicUsize, limit: usize) -> Option<Self> {
        if count(shared).fetch_add(1, Ordering::AcqRel) >= limit {
            count(shared).fetch_sub(1, Ordering::AcqRel);
            return None;
        }
        Some(Self { shared: shared.clone(), count })
    }

    /// One more, whatever the limit.
    pub(crate) fn always(shared: &Arc<Shared>, count: fn(&Shared) -> &AtomicUsize) -> Self {
        count(shared).fetch_add(1, Ordering::AcqRel);
        Self { shared: shared.clone(), count }
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        (self.count)(&self.shared).fetch_sub(1, Ordering::AcqRel);
    }
}
