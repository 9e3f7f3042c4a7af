//! What the world is told about a phase: roles, and one reason.

use super::health::{self, Doubt, Health, Lost};
use super::picture::{Last, Picture};
use super::{Phase, suspecting};
use crate::node::{NodeId, Term};
use crate::policy::Managed;
use crate::reason::{self, Reason};
use crate::record::Rule;
use crate::view::{Role, Standing, View};

/// The view of this moment.
pub(crate) fn view(picture: &Picture, phase: &Phase) -> View {
    let primary = phase.open_primary();
    let rule = picture.rule();
    let term = rule.map(|rule| rule.term).unwrap_or_default();
    View {
        epoch: picture.epoch,
        primary,
        term,
        next_xid: picture.record.origin.filter(|_| primary.is_some()).and_then(|origin| origin.next_xid),
        nodes: picture.cluster.nodes().iter().map(|node| standing(picture, node, primary, term)).collect(),
        reason: reason_of(picture, phase, rule.as_ref()),
    }
}

fn standing(picture: &Picture, node: NodeId, primary: Option<NodeId>, term: Term) -> Standing {
    if primary == Some(node) {
        return Standing { role: Role::Primary, why: String::new() };
    }
    let why = why_out(picture, node, term);
    let role = if why.is_empty() { Role::Standby } else { Role::Out };
    Standing { role, why }
}

/// Why it is no standby that may be read; empty if it is one.
fn why_out(picture: &Picture, node: NodeId, term: Term) -> String {
    let Some(seen) = picture.seen(node) else { return "not configured".to_owned() };
    let report = match (seen.last, seen.reached()) {
        (_, Some(report)) => report,
        (Last::Never, _) => return "not looked at yet".to_owned(),
        (Last::Refused, _) => return "refuses connections".to_owned(),
        (Last::Starting, _) => return "is starting up".to_owned(),
        (Last::Silent, _) => return "does not answer".to_owned(),
        (Last::Mute | Last::Reached, _) => return format!("does not let pgsteady read it: {}", seen.said),
    };
    if picture.record.system_identifier.is_some_and(|ours| ours != report.system_identifier) {
        return "belongs to another system (system_identifier differs)".to_owned();
    }
    let external = picture.policy.managed == Managed::External;
    if !report.in_recovery {
        let leads = picture.rule().is_some_and(|rule| rule.leader == node);
        return match report.row {
            _ if leads || external => "is the primary, but held".to_owned(),
            Some(row) => format!("writes under term {}, which is not the primary's: quarantined", row.term),
            None => "writes without a term: quarantined".to_owned(),
        };
    }
    if external || report.row.is_some_and(|row| row.term == term) {
        return String::new();
    }
    match report.row {
        Some(row) => {
            format!("shows term {}, not {term}: it does not follow the primary yet, or needs pg_rewind", row.term)
        }
        None => "shows no term row: it does not follow the primary".to_owned(),
    }
}

fn reason_of(picture: &Picture, phase: &Phase, rule: Option<&Rule>) -> Option<Reason> {
    let cluster = &picture.cluster;
    let step = |what: String| picture.obstacle.clone().or(Some(reason::under_way(what)));
    match phase {
        Phase::Following(state) => state.reason(picture),
        Phase::Bootstrapping(state) => Some(state.reason(picture)),
        Phase::Suspecting(_) => rule.map(|rule| suspecting(picture, rule)),
        Phase::Claiming(state) if state.is_planned() => {
            Some(reason::under_way("switching over: claiming the next term"))
        }
        Phase::Claiming(_) => step("claiming the next term".to_owned()),
        Phase::Handing(state) => Some(state.reason(picture)),
        Phase::Fencing(state) => Some(state.reason(picture)),
        Phase::Undoing(_) => step("undoing fences".to_owned()),
        Phase::Intending(_) => step("recording the choice of a new primary".to_owned()),
        Phase::Promoting(state) => step(format!("promoting {}", cluster.name(state.node()))),
        Phase::Committing(state) => {
            step(format!("{} is promoted, its term row is on the way", cluster.name(state.leader())))
        }
        Phase::Publishing(_) => picture
            .store_lost
            .as_deref()
            .map(reason::store_lost)
            .or_else(|| step("the store is told who is primary".to_owned())),
        Phase::Serving(state) if state.open_primary().is_none() => {
            step("waiting until enough standbys hold all that the primary shows".to_owned())
        }
        Phase::Serving(_) => rule.and_then(|rule| shortcoming(picture, rule)),
    }
}

/// What is less than it should be while everything works.
fn shortcoming(picture: &Picture, rule: &Rule) -> Option<Reason> {
    if let Some(why) = &picture.store_lost {
        return Some(reason::store_lost(why));
    }
    let alone = picture.cluster.members().len() == 1;
    (rule.k < picture.policy.k && !alone).then(|| reason::relaxed(&picture.cluster, rule, picture.policy.k))
}

fn suspecting(picture: &Picture, rule: &Rule) -> Reason {
    let (cluster, leader) = (&picture.cluster, rule.leader);
    if let Some(why) = &picture.store_lost {
        return reason::store_lost(why);
    }
    if picture.yields() {
        return reason::under_way(format!("another pgsteady switches over from {}", cluster.name(leader)));
    }
    let reachable = suspecting::within_reach(picture, rule);
    let enough = rule.is_fenced_by(reachable);
    if let (Some(intent), false) = (&picture.record.intent, enough) {
        let need = rule.fences_needed().unwrap_or(rule.cohort.len() + 1);
        return reason::forward_only(cluster, intent, rule.cohort.minus(reachable), need);
    }
    let since = health::failing_for(picture, leader);
    match health::of_leader(picture, rule) {
        Health::Lost(lost) if !enough => {
            let why = format!("the primary {} {}", cluster.name(leader), how_lost(lost));
            reason::too_few_reachable(cluster, rule, reachable, &why)
        }
        Health::Lost(lost) => {
            picture.obstacle.clone().unwrap_or_else(|| reason::failing(cluster, leader, how_lost(lost), since))
        }
        Health::Doubtful(Doubt::Mute) => {
            reason::mute(cluster, leader, picture.seen(leader).map_or("", |seen| seen.said.as_str()))
        }
        Health::Unread if picture.seen(leader).is_some_and(|seen| seen.last == Last::Mute) => {
            reason::mute(cluster, leader, picture.seen(leader).map_or("", |seen| seen.said.as_str()))
        }
        Health::Doubtful(Doubt::Ahead) => reason::ahead(rule.term),
        Health::Doubtful(doubt) => reason::failing(cluster, leader, how_doubtful(doubt), since),
        Health::Unread | Health::Well => reason::failing(cluster, leader, "is being looked at again", since),
    }
}

fn how_lost(lost: Lost) -> &'static str {
    match lost {
        Lost::Refused => "refuses connections",
        Lost::Silent => "does not answer",
        Lost::StartsTooLong => "takes too long to start",
        Lost::InRecovery => "is in recovery",
        Lost::OtherSystem => "belongs to another system",
        Lost::WithoutRow => "does not show the term row of its own term",
        Lost::Stalled => "cannot write its WAL to its disk",
    }
}

fn how_doubtful(doubt: Doubt) -> &'static str {
    match doubt {
        Doubt::NotSeen => "has not been looked at yet",
        Doubt::Failing => "lost a connection and is being looked at",
        Doubt::Starting => "is starting up",
        Doubt::HeardByStandbys => "does not answer us, but its standbys hear from it",
        Doubt::Mute => "does not let pgsteady read it",
        Doubt::Ahead => "shows a greater term than the store",
    }
}
