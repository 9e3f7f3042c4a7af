//! The record in memory. It forgets with the process, so nobody may be promoted by it.

use std::sync::{Mutex, PoisonError};

use decision::{Record, Term};

use super::{Swap, claim, follows};

/// The memory store.
#[derive(Debug, Default)]
pub struct MemoryStore(Mutex<Option<Record>>);

impl MemoryStore {
    pub(super) fn read(&self) -> Option<Record> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    pub(super) fn claim(&self, from: Term, to: Term, handover: bool) -> Swap {
        self.swap(|stored| claim(stored, from, to, handover))
    }

    pub(super) fn publish(&self, record: &Record) -> Swap {
        self.swap(|stored| follows(stored, record).then(|| record.clone()))
    }

    fn swap(&self, next: impl FnOnce(&Record) -> Option<Record>) -> Swap {
        let mut place = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let stored = place.clone().unwrap_or_else(Record::empty);
        let Some(next) = next(&stored) else { return Swap::Refused(stored) };
        *place = Some(next.clone());
        Swap::Done(next)
    }
}
