//! What has to be remembered: the rule, and the record of it that the store keeps.

use crate::node::{Lsn, NodeId, NodeSet, SyncNames, Term, Timeline};
use crate::quorum;

/// Who is primary, and whose flush an acknowledged commit waited for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Rule {
    /// The term.
    pub term: Term,
    /// Its primary.
    pub leader: NodeId,
    /// The standbys that count; empty if `k` is 0.
    pub cohort: NodeSet,
    /// How many of them have to flush a commit. 0: none is left and `durability = "available"`; then nobody may be
    /// promoted, for nobody is known to hold every commit.
    pub k: u32,
}

impl Rule {
    /// Fences needed to take over from this rule; `None` if no number is enough.
    #[must_use]
    pub fn fences_needed(&self) -> Option<usize> {
        quorum::fences_needed(self.cohort.len(), self.k)
    }

    /// Whether these are enough standbys to fence.
    #[must_use]
    pub fn is_fenced_by(&self, standbys: NodeSet) -> bool {
        self.fences_needed().is_some_and(|need| standbys.len() >= need)
    }

    /// As `synchronous_standby_names`.
    #[must_use]
    pub fn sync_names(&self) -> SyncNames {
        if self.k == 0 { SyncNames::Nobody } else { SyncNames::Any { k: self.k, cohort: self.cohort } }
    }

    /// Whether a commit that waits for `names` waits for at least what this rule asks for.
    #[must_use]
    pub fn is_held_by(&self, names: &SyncNames) -> bool {
        match names {
            _ if self.k == 0 => true,
            SyncNames::Any { k, cohort } => *k >= self.k && cohort.is_subset_of(self.cohort),
            SyncNames::Nobody | SyncNames::Other => false,
        }
    }
}

/// Written before a promotion is ordered: from here on there is only forward. Fences are not undone while it stands,
/// because this node may be a primary already.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Intent {
    /// The node chosen.
    pub node: NodeId,
    /// Under which term.
    pub term: Term,
    /// Whose flush it will wait for: `ANY k (cohort)`, set on it before the promotion.
    pub cohort: NodeSet,
    /// How many of them.
    pub k: u32,
    /// Where its own history will begin.
    pub origin: Origin,
}

/// Where the leader's own history begins: a standby that is not past this point on this timeline, and has this term
/// row, holds a prefix of the leader's history and may follow it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Origin {
    /// The term row the leader held when it was promoted.
    pub term: Term,
    /// Its timeline before the promotion.
    pub timeline: Timeline,
    /// Its position at the promotion.
    pub lsn: Lsn,
    /// Its next transaction id before it took any write; `None` before it was promoted, or if nobody who knows it lived to
    /// write it down.
    pub next_xid: Option<u64>,
}

/// The one record of a cluster in the store. Every write is a compare-and-set on `revision`.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Record {
    /// Grows by one with every write.
    pub revision: u64,
    /// The cluster's `system_identifier`; `None` until it was adopted.
    pub system_identifier: Option<u64>,
    /// The highest term that anybody has claimed.
    pub claimed: Term,
    /// The rule in force; `None` until a primary was adopted.
    pub rule: Option<Rule>,
    /// A promotion that may have been ordered and is not published.
    pub intent: Option<Intent>,
    /// Where the leader's history begins; `None` if it was not promoted by us.
    pub origin: Option<Origin>,
    /// The claimed term is a switchover's: whoever did not claim it holds its clients too.
    pub handover: bool,
}

impl Record {
    /// What an empty store stands for.
    #[must_use]
    pub fn empty() -> Self {
        Self {
            revision: 0,
            system_identifier: None,
            claimed: Term(0),
            rule: None,
            intent: None,
            origin: None,
            handover: false,
        }
    }

    /// The record as the next write would leave it, before anything else in it is changed.
    #[must_use]
    pub fn successor(&self) -> Self {
        Self { revision: self.revision + 1, ..self.clone() }
    }
}
