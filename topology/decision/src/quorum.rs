//! How many fences are enough, and in which order a rule may be changed. Arithmetic only.
//!
//! With `ANY k` of n standbys, `n - k + 1` fences leave fewer than k that could still acknowledge for the old primary,
//! and every set of k that acknowledged something contains a fenced one: one number does both. Where that number is not
//! a majority, two coordinators could fence disjoint sets, so a majority is asked for.

use crate::node::NodeSet;
use crate::record::Rule;

/// Fences needed with `ANY k` of `n`; `None` if no number is enough (`k` is 0, or more than `n`).
#[must_use]
pub fn fences_needed(n: usize, k: u32) -> Option<usize> {
    let k = usize::try_from(k).ok()?;
    if k == 0 || k > n {
        return None;
    }
    let enough = n - k + 1;
    let majority = n / 2 + 1;
    Some(if 2 * enough <= n { majority } else { enough })
}

/// One safe step from a rule towards another of the same term and leader.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Change {
    /// Fewer acknowledgements suffice afterwards: the store first, then the primary.
    Weaken(Rule),
    /// More are asked for: the primary first, then a write acknowledged under it, then the store.
    Strengthen(Rule),
}

/// The next step from `from` to (`cohort`, `k`); `None` if there is nothing to do. At most two steps lead there.
///
/// Weakening first and in the store alone means: whatever the primary really has set, the fences that the store asks for
/// are enough. A set of `n' - k' + 1` of a larger cohort with a smaller k holds `n - k + 1` of the old one.
#[must_use]
pub fn change(from: &Rule, cohort: NodeSet, k: u32) -> Option<Change> {
    let cohort = if k == 0 { NodeSet::EMPTY } else { cohort };
    if from.cohort == cohort && from.k == k {
        return None;
    }
    let to = |cohort, k| Rule { cohort, k, ..*from };
    if k == 0 {
        return Some(Change::Weaken(to(NodeSet::EMPTY, 0)));
    }
    if from.k == 0 {
        return Some(Change::Strengthen(to(cohort, k)));
    }
    if cohort.is_subset_of(from.cohort) && k >= from.k {
        return Some(Change::Strengthen(to(cohort, k)));
    }
    Some(Change::Weaken(to(from.cohort.union(cohort), k.min(from.k))))
}
