//! What counts as a fence, and the proof of enough of them. A [`Promotion`] is made nowhere else.
//!
//! ```compile_fail
//! // A promotion without a fence does not compile: its fields are private, and only a proof of fences makes one.
//! use decision::{Lsn, NodeId, NodeSet, Promotion, Rule, Term, Timeline};
//! let rule = Rule { term: Term(2), leader: NodeId(1), cohort: NodeSet::EMPTY, k: 0 };
//! let _ = Promotion { node: NodeId(1), rule, parent_row: None };
//! ```

use crate::node::{Lsn, NodeId, Term, TermRow, Timeline};
use crate::record::Rule;

/// What was read on a standby after it was fenced. That `ALTER SYSTEM` returned is no evidence: the receiver goes on
/// acknowledging while replay is paused (measured).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct FenceReading {
    /// `pg_is_in_recovery()`.
    pub in_recovery: bool,
    /// `primary_conninfo` is empty.
    pub conninfo_empty: bool,
    /// `pg_stat_wal_receiver` is empty.
    pub receiver_gone: bool,
    /// The marker.
    pub marker: Option<Term>,
}

/// How far a fenced standby's WAL goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Position {
    /// `pg_control_system()`.
    pub system_identifier: u64,
    /// The term row, after all was replayed.
    pub row: Option<TermRow>,
    /// Timeline of its last WAL.
    pub timeline: Timeline,
    /// The greater of received and replayed.
    pub lsn: Lsn,
}

/// Permission to promote one node, under one term, with one rule set first.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Promotion {
    node: NodeId,
    rule: Rule,
    parent_row: Option<Term>,
}

impl Promotion {
    /// The node.
    #[must_use]
    pub fn node(&self) -> NodeId {
        self.node
    }

    /// The new term: also the marker that the node must carry.
    #[must_use]
    pub fn term(&self) -> Term {
        self.rule.term
    }

    /// What its `synchronous_standby_names` has to be before it is promoted.
    #[must_use]
    pub fn rule(&self) -> &Rule {
        &self.rule
    }

    /// The term row it must show: it was chosen as a node of that history.
    #[must_use]
    pub fn parent_row(&self) -> Option<Term> {
        self.parent_row
    }
}
