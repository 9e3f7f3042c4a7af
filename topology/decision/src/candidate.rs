//! Which of the proven standbys becomes primary, and under which rule.

use std::cmp::Reverse;

use crate::fence::Fenced;
use crate::node::{NodeId, NodeSet};
use crate::policy::{Cluster, Durability, Policy};
use crate::record::Rule;

/// Among those that hold every acknowledged commit: priority, then our own zone, then the name.
pub(crate) fn choose(proof: &Fenced, cluster: &Cluster, policy: &Policy) -> Option<NodeId> {
    proof.best().iter().min_by_key(|node| {
        let member = cluster.member(*node);
        let near = member.is_some_and(|m| !policy.zone.is_empty() && m.zone == policy.zone);
        (Reverse(member.map_or(0, |m| m.priority)), !near, cluster.name(*node))
    })
}

/// Whose flush the new primary waits for: the standbys that are known to be there and able to follow it. Those that are
/// away join when they stream. With too few of them, `strict` waits for whoever comes back; `available` asks for fewer.
pub(crate) fn new_rule(proof: &Fenced, node: NodeId, old: &Rule, policy: &Policy) -> (NodeSet, u32) {
    let followers = proof.prefixes_of(node);
    let count = |set: NodeSet| u32::try_from(set.len()).unwrap_or(u32::MAX);
    if count(followers) >= policy.k {
        return (followers, policy.k);
    }
    match policy.durability {
        Durability::Available => (followers, count(followers)),
        Durability::Strict => {
            let all = old.cohort.with(old.leader).without(node);
            (all, policy.k.min(count(all)))
        }
    }
}
