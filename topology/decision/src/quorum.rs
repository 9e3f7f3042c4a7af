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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::node::{NodeId, Term};

    fn subsets(of: NodeSet) -> Vec<NodeSet> {
        of.iter().fold(vec![NodeSet::EMPTY], |all, node| all.iter().flat_map(|set| [*set, set.with(node)]).collect())
    }

    fn rule(cohort: NodeSet, k: u32) -> Rule {
        Rule { term: Term(1), leader: NodeId(9), cohort, k }
    }

    /// Whether every set of fences that the store's rule asks for stops a primary that has `set` in force, and meets
    /// every set of standbys that may have acknowledged for it.
    fn protects(store: &Rule, set: &Rule) -> bool {
        let Some(need) = store.fences_needed() else { return true };
        let k = set.k as usize;
        let fences = subsets(store.cohort).into_iter().filter(|fences| fences.len() >= need);
        let mut acks = subsets(set.cohort).into_iter().filter(|acks| acks.len() == k).collect::<Vec<_>>();
        acks.dedup();
        fences.into_iter().all(|fences| {
            set.cohort.minus(fences).len() < k && acks.iter().all(|ack| !ack.intersection(fences).is_empty())
        })
    }

    #[test]
    fn fences_stop_acknowledgements_and_meet_each_other() {
        for n in 1..=6 {
            for k in 1..=n {
                let rule = rule(NodeSet::first(n), u32::try_from(k).unwrap());
                assert!(protects(&rule, &rule), "ANY {k} of {n}");
                let need = rule.fences_needed().unwrap();
                let sets: Vec<_> = subsets(rule.cohort).into_iter().filter(|set| set.len() == need).collect();
                let majority = 2 * need > n;
                let disjoint = sets.iter().any(|a| sets.iter().any(|b| a.intersection(*b).is_empty()));
                assert!(majority && !disjoint, "two coordinators of ANY {k} of {n} pass each other");
            }
        }
        assert_eq!(fences_needed(2, 1), Some(2));
        assert_eq!(fences_needed(4, 2), Some(3));
        assert_eq!(fences_needed(5, 4), Some(3));
        assert_eq!(fences_needed(3, 0), None);
        assert_eq!(fences_needed(1, 2), None);
    }

    /// Every change between rules of up to four standbys: at each moment of each step, the store's rule protects what is
    /// in force, and at most two steps lead there.
    #[test]
    fn each_step_of_a_change_is_safe() {
        let all = subsets(NodeSet::first(4));
        let rules = || {
            let with_k = |set: &NodeSet| (1..=set.len()).map(|k| (*set, u32::try_from(k).unwrap())).collect::<Vec<_>>();
            all.iter().flat_map(with_k).chain([(NodeSet::EMPTY, 0)])
        };
        for (from, k) in rules() {
            for (to, aim) in rules() {
                let mut now = rule(from, k);
                let mut steps = 0;
                while let Some(step) = change(&now, to, aim) {
                    let (Change::Weaken(next) | Change::Strengthen(next)) = step;
                    match step {
                        // The store has it, the primary does not yet.
                        Change::Weaken(next) => assert!(protects(&next, &now), "{now:?} to {next:?}"),
                        // The primary has it, the store does not yet.
                        Change::Strengthen(next) => assert!(protects(&now, &next), "{now:?} to {next:?}"),
                    }
                    now = next;
                    steps += 1;
                    assert!(steps <= 2, "{from:?} {k} to {to:?} {aim}");
                }
                assert_eq!((now.cohort, now.k), (to, aim));
            }
        }
    }
}
