//! What the decision tells the world: who is primary, what each node may be used for, and why.

use crate::node::{NodeId, Term};
use crate::reason::Reason;

/// What a node may be used for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Role {
    /// The one node that takes writes.
    Primary,
    /// In recovery and of the current history: its term row is that of the rule.
    Standby,
    /// Not to be used.
    Out,
}

/// One node in a [`View`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Standing {
    /// What it may be used for.
    pub role: Role,
    /// Why it is `Out`, for people; empty otherwise.
    pub why: String,
}

/// The cluster as decided. Sent whenever it differs from the one before.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct View {
    /// Grows with each change of primary and with each opening after a hold, by one; 0 before the first opening.
    pub epoch: u64,
    /// The primary that may be used; `None`: clients are held.
    pub primary: Option<NodeId>,
    /// The term of the rule; 0 before there is one.
    pub term: Term,
    /// The next transaction id when the primary was promoted, before it took any write: an xid at or past it that was
    /// assigned by the primary before it did not commit. `None` if nobody wrote it down.
    pub next_xid: Option<u64>,
    /// One for each node, in the order of the configuration.
    pub nodes: Vec<Standing>,
    /// Why there is no primary, and what is less than it should be (a relaxed rule, a lost store).
    pub reason: Option<Reason>,
}
