//! Whether the recorded primary is well, uncertain or lost. Judges the picture; orders nothing.

use super::picture::{Last, Picture, Seen};
use super::suspecting::within_reach;
use crate::node::{Millis, NodeId, Report};
use crate::record::Rule;

/// Why a primary counts as lost.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum Lost {
    /// Nobody listens there.
    Refused,
    /// It says nothing, and fewer than k standbys hear from it (or the grace is over).
    Silent,
    /// It was starting up for longer than `crash_restart_grace`.
    StartsTooLong,
    /// It is in recovery.
    InRecovery,
    /// Another system answers at its address.
    OtherSystem,
    /// Its term row is older than the rule, or missing: restored or emptied.
    WithoutRow,
    /// It answers, but its WAL does not reach its disk, so that nothing commits.
    Stalled,
}

/// Why it cannot be said yet.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum Doubt {
    /// Not looked at yet.
    NotSeen,
    /// The connection broke, or one probe failed.
    Failing,
    /// It is starting up, within the grace.
    Starting,
    /// Silent towards us, but k standbys hear from it.
    HeardByStandbys,
    /// It is there, but tells us nothing.
    Mute,
    /// It shows a greater term than the record: the record is stale.
    Ahead,
}

/// The recorded primary.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum Health {
    /// It answered, and is what the record says.
    Well,
    /// Clients wait; nothing is done.
    Doubtful(Doubt),
    /// Not well, but no reason to hold clients: a first silence, or our own login failing.
    Unread,
    /// It has to be replaced.
    Lost(Lost),
}

/// Judges the leader of `rule`.
pub(crate) fn of_leader(picture: &Picture, rule: &Rule) -> Health {
    let Some(seen) = picture.seen(rule.leader) else { return Health::Lost(Lost::OtherSystem) };
    match seen.last {
        Last::Never => Health::Doubtful(Doubt::NotSeen),
        Last::Reached if seen.lost => Health::Doubtful(Doubt::Failing),
        Last::Reached => seen.report.as_ref().map_or(Health::Unread, |r| of_report(picture, rule, seen, r)),
        Last::Mute if seen.lost => Health::Doubtful(Doubt::Mute),
        Last::Mute => Health::Unread,
        Last::Starting => of_starting(picture, seen),
        Last::Refused | Last::Silent => of_failing(picture, rule, seen),
    }
}

fn of_report(picture: &Picture, rule: &Rule, seen: &Seen, report: &Report) -> Health {
    if report.row.is_some_and(|row| row.term > rule.term) || overtaken(picture, rule) {
        return Health::Doubtful(Doubt::Ahead);
    }
    if !contradicts(picture, rule, report) {
        return if is_stalled(picture, rule, seen) { Health::Lost(Lost::Stalled) } else { Health::Well };
    }
    if seen.contradictions < CONTRADICTIONS {
        return Health::Unread;
    }
    Health::Lost(if picture.record.system_identifier.is_some_and(|ours| ours != report.system_identifier) {
        Lost::OtherSystem
    } else if report.in_recovery {
        Lost::InRecovery
    } else {
        Lost::WithoutRow
    })
}

/// Whether nothing commits for longer than the grace, and somebody can do better: it still answers those who only read.
fn is_stalled(picture: &Picture, rule: &Rule, seen: &Seen) -> bool {
    let stalled = seen.flushing_since.is_some_and(|(_, since)| picture.passed(since, picture.policy.stall_grace));
    stalled && rule.is_fenced_by(within_reach(picture, rule))
}

/// Readings in a row that make a contradiction true. The first may have been taken before our own last act there.
const CONTRADICTIONS: u32 = 2;

/// Whether a reading of the recorded primary is not that of the recorded primary. A missing row is forgiven to the very
/// incarnation that was opened: then the table was dropped, and is written again.
pub(crate) fn contradicts(picture: &Picture, rule: &Rule, report: &Report) -> bool {
    if picture.record.system_identifier.is_some_and(|ours| ours != report.system_identifier) || report.in_recovery {
        return true;
    }
    match report.row {
        Some(row) => row.term < rule.term || (row.term == rule.term && row.leader != Some(rule.leader)),
        None => picture.opened != Some((rule.leader, rule.term, report.incarnation)),
    }
}

/// Whether another node writes under a term greater than the record's, and it is not a promotion that we know of.
fn overtaken(picture: &Picture, rule: &Rule) -> bool {
    let ahead =
        |report: &Report| !report.in_recovery && report.row.is_some_and(|row| row.term > picture.record.claimed);
    !picture.nodes_where(|node, report| node != rule.leader && ahead(report)).is_empty()
}

fn of_starting(picture: &Picture, seen: &Seen) -> Health {
    let since = seen.starting_since.unwrap_or(picture.now);
    if picture.passed(since, picture.policy.crash_restart_grace) {
        Health::Lost(Lost::StartsTooLong)
    } else {
        Health::Doubtful(Doubt::Starting)
    }
}

fn of_failing(picture: &Picture, rule: &Rule, seen: &Seen) -> Health {
    let policy = &picture.policy;
    if seen.refused >= policy.refusals {
        return Health::Lost(Lost::Refused);
    }
    if seen.refused + seen.silent >= policy.silences {
        let since = seen.failing_since.unwrap_or(picture.now);
        let grace_over = picture.passed(since, policy.partition_grace);
        return if !grace_over && heard_by_k(picture, rule) {
            Health::Doubtful(Doubt::HeardByStandbys)
        } else {
            Health::Lost(Lost::Silent)
        };
    }
    if seen.refused > 0 || seen.lost { Health::Doubtful(Doubt::Failing) } else { Health::Unread }
}

/// Whether k standbys of the rule have a message of the primary that is not older than `fresh`.
fn heard_by_k(picture: &Picture, rule: &Rule) -> bool {
    let fresh = |r: &Report| r.receiver.is_some_and(|w| w.streaming && w.silent_for <= picture.policy.fresh);
    let hear = picture.nodes_where(|node, report| rule.cohort.contains(node) && fresh(report));
    rule.k > 0 && hear.len() >= usize::try_from(rule.k).unwrap_or(usize::MAX)
}

/// Whether a node that was just promoted is gone: the same counts, without anybody's veto.
pub(crate) fn is_gone(picture: &Picture, node: NodeId) -> bool {
    let Some(seen) = picture.seen(node) else { return true };
    let policy = &picture.policy;
    match seen.last {
        Last::Refused | Last::Silent => {
            seen.refused >= policy.refusals || seen.refused + seen.silent >= policy.silences
        }
        Last::Starting => seen.starting_since.is_some_and(|s| picture.passed(s, policy.crash_restart_grace)),
        _ => false,
    }
}

/// How long the primary has been failing, for people.
pub(crate) fn failing_for(picture: &Picture, node: NodeId) -> Millis {
    let stalled = |seen: &Seen| seen.flushing_since.map(|(_, since)| since);
    let since = picture.seen(node).and_then(|s| s.failing_since.or(s.starting_since).or_else(|| stalled(s)));
    since.map_or(Millis(0), |since| picture.now.since(since))
}
