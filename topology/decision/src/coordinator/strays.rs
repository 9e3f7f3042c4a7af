//! Nodes that do not follow the primary: standbys that may follow are told to, writers are quarantined.

use super::picture::Picture;
use crate::action::Action;
use crate::node::{Millis, NodeId, NodeSet, Report, Term, Upstream};
use crate::record::{Origin, Rule};

/// Tells standbys to follow the leader of `rule` whose history is a prefix of its own, and those of `proven`. Others that
/// follow somebody else are fenced: should that node be made anew as a standby of the leader, they would go on from it
/// and mix two histories, for the timeline numbers may be the same.
pub(crate) fn repoint(picture: &mut Picture, rule: &Rule, origin: Option<&Origin>, proven: NodeSet) {
    let leader_timeline = picture.reached(rule.leader).map(|report| report.timeline);
    let stray = |node: NodeId, report: &Report| node != rule.leader && report.in_recovery && astray(report, rule);
    for node in picture.nodes_where(stray).iter() {
        let Some(report) = picture.reached(node) else { continue };
        let same_timeline = leader_timeline == Some(report.timeline);
        let may_follow = proven.contains(node) || is_prefix(report, rule, origin, same_timeline);
        let (marker, fenced) = (report.marker, report.upstream == Upstream::Empty);
        if !may_follow && fenced {
            continue;
        }
        let Some(claim) = picture.ownership() else { return };
        if !is_due(picture, node) {
            continue;
        }
        picture.order(if may_follow {
            Action::Repoint { node, upstream: rule.leader, marker, claim }
        } else {
            Action::Fence { node, term: claim }
        });
    }
}

/// Fenced under this rule's term or an earlier one, or pointing at another configured node: all of them follow the
/// primary itself, for only then do their flushes count. An empty `primary_conninfo` without a marker is somebody's
/// wish; a marker of a greater term is somebody's work.
fn astray(report: &Report, rule: &Rule) -> bool {
    match (report.marker, report.upstream) {
        (Some(marker), _) => marker <= rule.term,
        (None, Upstream::Node(node)) => node != rule.leader,
        (None, Upstream::Empty | Upstream::Elsewhere) => false,
    }
}

/// Whether all that this standby holds is also held by the leader. The term row says which history it is of; timeline
/// numbers alone do not (two promotions make the same number, and PostgreSQL streams on without an error: measured).
pub(crate) fn is_prefix(report: &Report, rule: &Rule, origin: Option<&Origin>, same_timeline: bool) -> bool {
    let Some(row) = report.row else { return false };
    // Written by this leader since its promotion, perhaps under a term that was claimed for it before this one.
    let own = row.leader == Some(rule.leader) && origin.is_some_and(|origin| row.term > origin.term);
    if row.term == rule.term || (own && row.term < rule.term) {
        return same_timeline;
    }
    origin.is_some_and(|origin| {
        row.term == origin.term && report.timeline == origin.timeline && report.position() <= origin.lsn
    })
}

/// Ends the sessions of every node that writes and is not the leader.
pub(crate) fn quarantine(picture: &mut Picture, rule: &Rule) {
    let writers = picture.nodes_where(|node, report| node != rule.leader && !report.in_recovery);
    for node in writers.iter() {
        if is_due_after(picture, node, picture.policy.quarantine_every) {
            picture.order(Action::Quarantine { node });
        }
    }
}

/// Notes that this node was told something: not again at once.
pub(crate) fn was_ordered(picture: &mut Picture, node: NodeId) {
    let now = picture.now;
    if let Some(seen) = picture.seen.get_mut(node.index()) {
        seen.ordered_at = Some(now);
    }
}

/// Whether a standby may be told something again; notes that it is.
pub(crate) fn is_due(picture: &mut Picture, node: NodeId) -> bool {
    is_due_after(picture, node, picture.policy.retry)
}

fn is_due_after(picture: &mut Picture, node: NodeId, pause: Millis) -> bool {
    let before = picture.seen(node).and_then(|seen| seen.ordered_at);
    let due = before.is_none_or(|at| picture.passed(at, pause));
    if due {
        was_ordered(picture, node);
    }
    due
}

/// Fences of a term above the rule's that nobody has finished for `leftover_grace`, on standbys that may follow the
/// leader.
pub(crate) fn leftovers(picture: &Picture, rule: &Rule) -> Vec<(NodeId, Term)> {
    let leader_timeline = picture.reached(rule.leader).map(|report| report.timeline);
    let old = |node: &NodeId| {
        let report = picture.reached(*node).filter(|report| report.in_recovery)?;
        let (marker, since) = picture.seen(*node)?.marker_since?;
        // One above the record's claim: the record is stale, and the fence somebody's work.
        let left = report.marker == Some(marker) && marker > rule.term && marker <= picture.record.claimed;
        let same_timeline = leader_timeline == Some(report.timeline);
        let may_follow = is_prefix(report, rule, picture.record.origin.as_ref(), same_timeline);
        (left && may_follow && picture.passed(since, picture.policy.leftover_grace)).then_some((*node, marker))
    };
    picture.cluster.nodes().iter().filter_map(|node| old(&node)).collect()
}
