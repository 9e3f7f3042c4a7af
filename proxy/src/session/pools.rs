//! The pools that a session gets its servers from, by node. The first node's takes no memory of its own: most entries have
//! no other, and idle clients are many.

use std::sync::Arc;

use crate::pool::Pool;

/// Pools of one entry and one user, as far as they were asked for.
pub(super) struct Pools {
    first: Option<Arc<Pool>>,
    others: Box<[Option<Arc<Pool>>]>,
}

impl Pools {
    /// None yet, of so many nodes.
    pub(super) fn new(nodes: usize) -> Self {
        Self { first: None, others: vec![None; nodes.saturating_sub(1)].into() }
    }

    /// The pool of a node.
    #[inline]
    pub(super) fn get(&self, node: usize) -> Option<&Arc<Pool>> {
        match node.checked_sub(1) {
            None => self.first.as_ref(),
            Some(other) => self.others[other].as_ref(),
        }
    }

    /// From now on this is the pool of a node.
    pub(super) fn set(&mut self, node: usize, pool: Option<Arc<Pool>>) {
        match node.checked_sub(1) {
            None => self.first = pool,
            Some(other) => self.others[other] = pool,
        }
    }
}
