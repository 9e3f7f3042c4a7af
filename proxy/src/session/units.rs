//! What a client has asked and not been answered, in units that each end in one ReadyForQuery: for the day when the
//! server is lost, and it must be said of each whether it can have happened.

use std::collections::VecDeque;

use crate::routing::{Class, Kind};

/// The worst that a unit can have done when its answer is lost.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Danger {
    /// Statements were closed, which cannot even fail.
    Nothing,
    /// Nothing was executed.
    Harmless,
    /// Nothing that outlives it: it can be asked again.
    Read,
    /// A change; in autocommit it may have been committed.
    Write,
    /// The end of a transaction by rollback.
    Rollback,
    /// The end of a transaction by commit.
    Commit,
}

impl Danger {
    /// Of a statement.
    pub(super) fn of(class: &Class) -> Self {
        match class.kind {
            Kind::Commit { .. } | Kind::PrepareTransaction | Kind::CommitPrepared | Kind::Several => Danger::Commit,
            Kind::Rollback { .. } => Danger::Rollback,
            Kind::Begin { .. }
            | Kind::Savepoint
            | Kind::Release
            | Kind::RollbackTo
            | Kind::Set { .. }
            | Kind::Reset
            | Kind::DiscardAll
            | Kind::DeallocateAll
            | Kind::Deallocate(_)
            | Kind::Empty => Danger::Read,
            _ if class.reads_only => Danger::Read,
            _ => Danger::Write,
        }
    }
}

/// The units of one client.
#[derive(Debug, Default)]
pub(super) struct Units {
    sent: VecDeque<Danger>,
    /// The one that no Sync has ended yet.
    open: Option<Danger>,
    /// Something in the open one is more than a query or a change of rows.
    special: bool,
    /// The transaction has written, or may have.
    wrote: bool,
}

impl Units {
    /// A statement was sent.
    #[inline]
    pub(super) fn begin(&mut self, danger: Danger) {
        self.open = Some(self.open.map_or(danger, |open| open.max(danger)));
        self.wrote |= danger >= Danger::Write;
    }

    /// What was executed in it is of this kind.
    #[inline]
    pub(super) fn executes(&mut self, kind: &Kind) {
        self.special |= !matches!(kind, Kind::Write | Kind::Query | Kind::Set { .. } | Kind::Empty);
    }

    /// Query, FunctionCall or Sync: its ReadyForQuery is owed now.
    #[inline]
    pub(super) fn finish(&mut self) {
        self.sent.push_back(self.open.take().unwrap_or(Danger::Nothing));
        self.special = false;
    }

    /// What was asked and ended was answered, or does not matter: drivers close a statement with what they send next.
    #[inline]
    pub(super) fn none_sent(&self) -> bool {
        self.sent.iter().all(|danger| *danger == Danger::Nothing)
    }

    /// No unit is open.
    #[inline]
    pub(super) fn is_closed(&self) -> bool {
        self.open.is_none()
    }

    /// The open one does nothing worse.
    pub(super) fn is_at_most(&self, danger: Danger) -> bool {
        self.open.is_none_or(|open| open <= danger)
    }

    /// The open one writes, and does nothing but that and reading.
    #[inline]
    pub(super) fn writes_plainly(&self) -> bool {
        self.open == Some(Danger::Write) && !self.special
    }

    /// Whether the transaction has written, or may have.
    pub(super) fn wrote(&self) -> bool {
        self.wrote
    }

    /// No transaction is open any more.
    #[inline]
    pub(super) fn transaction_ended(&mut self) {
        self.wrote &= !(self.sent.is_empty() && self.open.is_none());
    }

    /// The oldest was answered, or will not be.
    #[inline]
    pub(super) fn settle(&mut self) {
        self.sent.pop_front();
    }

    /// A COPY has swallowed so many of the Syncs that ended the oldest: what they ended goes on. If it was not told that it has
    /// all, it cannot have been committed.
    pub(super) fn copied(&mut self, swallowed: usize, unfinished: bool) {
        for _ in 0..swallowed {
            let Some(first) = self.sent.pop_front() else { return };
            match self.sent.front_mut() {
                Some(next) => *next = first.max(*next),
                None => self.open = Some(self.open.map_or(first, |open| open.max(first))),
            }
        }
        if let Some(first) = self.sent.front_mut().or(self.open.as_mut())
            && unfinished
            && *first == Danger::Write
        {
            *first = Danger::Read;
        }
    }

    /// Whether one of them commits a transaction, or may.
    pub(super) fn commits(&self) -> bool {
        self.sent.iter().chain(&self.open).any(|danger| *danger == Danger::Commit)
    }

    /// Takes them all: those that owe a ReadyForQuery, and the open one.
    pub(super) fn take(&mut self) -> (VecDeque<Danger>, Option<Danger>) {
        let all = std::mem::take(self);
        (all.sent, all.open)
    }
}
