//! What a COPY does to the requests behind it: it reads Sync and Flush as if they were data, and a COPY that fails leaves open
//! which of them it had read.

use super::steps::{Request, Stage};
use super::terms::Asker;
use super::{Conversation, Desync, Entry, Outcome, What};

impl<T> Conversation<T> {
    /// Whether all that is owed may never come, after a COPY that failed: send an empty Query of ours to find out, or close.
    #[must_use]
    pub fn uncertain(&self) -> bool {
        if self.phantoms == 0 || self.deaf {
            return false;
        }
        let mut answered = self.owed.iter().filter(|entry| !entry.is_unanswered());
        let syncs = self.owed.iter().filter(|entry| entry.is(Request::Sync)).count();
        answered.all(|entry| entry.is(Request::Sync)) && syncs <= self.phantoms
    }

    /// The client's Syncs in front that a COPY has swallowed, if nothing more comes from the server: no ReadyForQuery is owed for
    /// them.
    #[must_use]
    pub fn swallowed(&self) -> usize {
        let swallowed = if self.stage == Stage::CopyIn { self.swallowable() } else { self.phantoms };
        let syncs = self.owed.iter().filter(|entry| entry.is(Request::Sync));
        syncs.take(swallowed).filter(|entry| entry.asker == Asker::Client).count()
    }

    /// Whether a COPY reads, or has failed, that was not told that it has all: whatever becomes of it, it has not been committed.
    #[must_use]
    pub fn reads_copy(&self) -> bool {
        let reads = self.stage == Stage::CopyIn && !self.owed.iter().any(|entry| entry.is(Request::CopyDone));
        reads || self.cut_short
    }

    /// How many Syncs a COPY in front, which fails now, may have swallowed: those before its CopyDone. It has read no other
    /// request: that would have ended the connection.
    pub(super) fn swallowable(&self) -> usize {
        let data =
            |entry: &&Entry<T>| entry.is(Request::Sync) || entry.is(Request::Flush) || entry.is(Request::CopyData);
        self.owed.iter().skip(1).take_while(data).filter(|entry| entry.is(Request::Sync)).count()
    }

    /// A COPY has succeeded, so it has read everything up to its CopyDone.
    pub(super) fn end_copy(&mut self, settled: &mut impl FnMut(T, Outcome)) -> Result<(), Desync> {
        let Some(front) = self.owed.pop_front() else { return Ok(()) };
        loop {
            let Some(entry) = self.owed.pop_front() else { return Err(self.desync("CopyDone to be waited for", b'C')) };
            let (outcome, last) = match entry.what {
                What::Asked(Request::CopyDone) => (Outcome::Done, true),
                What::Asked(Request::CopyData) => (Outcome::Done, false),
                What::Asked(Request::Sync | Request::Flush) => (Outcome::Skipped, false),
                _ => return Err(self.desync("an error after CopyFail or another request", b'C')),
            };
            if let Some(note) = entry.note {
                settled(note, outcome);
            }
            if last {
                break;
            }
        }
        self.owed.push_front(front);
        Ok(())
    }

    /// What has come is not a ReadyForQuery, so the Syncs in front that a COPY may have swallowed have been swallowed.
    pub(super) fn lay_phantoms(&mut self, settled: &mut impl FnMut(T, Outcome)) {
        while self.phantoms > 0
            && self.stage == Stage::Start
            && self.owed.front().is_some_and(|front| front.is(Request::Sync))
        {
            let left = self.phantoms.saturating_sub(1);
            self.settle(Outcome::Skipped, settled);
            self.phantoms = self.phantoms.min(left);
        }
    }
}
