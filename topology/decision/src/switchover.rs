//! What an operator may ask for, and what becomes of it. Data only.

use crate::node::{Millis, NodeId, Term};
use crate::reason::Reason;

/// A planned change of primary.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Switchover {
    /// Who is to be primary; `None`: whom a failover would choose.
    pub to: Option<NodeId>,
    /// How long open transactions may take to end.
    pub max_wait: Millis,
    /// Those that are still open then: end them, instead of giving the switchover up.
    pub end_transactions: bool,
}

/// What became of what an operator asked for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Verdict {
    /// Nothing was begun.
    Refused(Reason),
    /// What was begun is undone: the same primary serves.
    Undone(Reason),
    /// Another primary serves.
    Done {
        /// The primary before.
        from: NodeId,
        /// The primary now.
        to: NodeId,
        /// Its term.
        term: Term,
    },
}
