//! The first start: exactly one writing node with streaming standbys is adopted; anything else is refused, with the reason.

use super::Phase;
use super::picture::{Last, Picture};
use super::serving::Serving;
use super::suspecting::{Suspecting, ask_store};
use crate::action::Action;
use crate::event::Event;
use crate::node::{Millis, NodeId, NodeSet, Term};
use crate::reason::{self, Reason};
use crate::record::{Record, Rule};

/// There is no rule yet.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) struct Bootstrapping {
    stage: Stage,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum Stage {
    /// Looking at the nodes.
    Looking,
    /// The first term is being claimed for this node.
    Claiming { node: NodeId, to: Term },
    /// `synchronous_standby_names` is being set.
    Setting(Rule),
    /// The term row waits for its acknowledgement.
    Writing(Rule),
    /// The record is on its way.
    Publishing(Rule),
    /// Again at this moment.
    Pausing(Millis),
}

impl Bootstrapping {
    pub(crate) fn enter() -> Phase {
        Phase::Bootstrapping(Self { stage: Stage::Looking })
    }

    pub(crate) fn on(self, picture: &mut Picture, event: &Event) -> Phase {
        if let Some(rule) = picture.rule() {
            return match self.stage {
                Stage::Publishing(ours) if ours == rule => Serving::open_promoted(picture, &rule),
                _ => Suspecting::enter(picture),
            };
        }
        let stage = match (self.stage, event) {
            (Stage::Looking, _) => look(picture),
            (Stage::Pausing(until), _) if picture.now >= until => look(picture),
            (Stage::Claiming { node, to }, Event::TermClaimed { record }) if record.claimed == to => {
                set(picture, node, to)
            }
            (Stage::Setting(rule), Event::RuleSet { rule: set, .. }) if *set == rule => {
                picture.order(Action::WriteTerm { node: rule.leader, rule });
                Stage::Writing(rule)
            }
            (Stage::Writing(rule), Event::TermWritten { rule: written, .. }) if *written == rule => {
                publish(picture, rule)
            }
            (Stage::Setting(_), Event::RuleSetFailed { why, .. })
            | (Stage::Writing(_), Event::TermWriteFailed { why, .. }) => pause(picture, why),
            (Stage::Claiming { .. } | Stage::Publishing(_), Event::StoreLost { why }) => pause(picture, why),
            (Stage::Claiming { .. }, Event::TermRefused { .. })
            | (Stage::Publishing(_), Event::PublishRefused { .. }) => {
                pause(picture, "somebody else wrote to the store")
            }
            (stage, _) => stage,
        };
        Phase::Bootstrapping(Self { stage })
    }

    pub(crate) fn reason(&self, picture: &Picture) -> Reason {
        match (self.stage, &picture.obstacle, &picture.store_lost) {
            (_, _, Some(why)) => reason::store_lost(why),
            (Stage::Looking, ..) if !picture.is_coordinator() => reason::not_the_coordinator(),
            (Stage::Looking, ..) => adoptable(picture).err().unwrap_or_else(|| reason::under_way("adopting a primary")),
            (Stage::Pausing(_), Some(obstacle), _) => obstacle.clone(),
            _ => reason::under_way("adopting a primary"),
        }
    }
}

fn look(picture: &mut Picture) -> Stage {
    if picture.store_lost.is_some() {
        ask_store(picture);
        return Stage::Looking;
    }
    if !picture.is_coordinator() {
        return Stage::Looking;
    }
    let Ok(node) = adoptable(picture) else { return Stage::Looking };
    let shown = picture.reached(node).and_then(|report| report.row).map(|row| row.term).unwrap_or_default();
    let from = picture.record.claimed;
    let to = from.max(shown).next();
    picture.order(Action::ClaimTerm { from, to, handover: false });
    Stage::Claiming { node, to }
}

fn pause(picture: &mut Picture, why: &str) -> Stage {
    picture.back_off();
    let remedy = "see the log of that node; pgsteady's user needs the privileges that `pgsteady check` lists";
    picture.obstacle = Some(reason::no_bootstrap(why, remedy));
    Stage::Pausing(picture.retry_at)
}

fn set(picture: &mut Picture, node: NodeId, term: Term) -> Stage {
    if adoptable(picture) != Ok(node) {
        return Stage::Looking;
    }
    let cohort = standbys_of(picture, node);
    let k = picture.policy.k.min(u32::try_from(cohort.len()).unwrap_or(u32::MAX));
    let rule = Rule { term, leader: node, cohort, k };
    picture.order(Action::SetRule { node, rule, claim: term });
    Stage::Setting(rule)
}

fn publish(picture: &mut Picture, rule: Rule) -> Stage {
    let system_identifier = picture.reached(rule.leader).map(|report| report.system_identifier);
    let Some(system_identifier) = system_identifier else { return Stage::Looking };
    let record = Record { system_identifier: Some(system_identifier), rule: Some(rule), ..picture.record.successor() };
    picture.publish(record);
    Stage::Publishing(rule)
}

fn standbys_of(picture: &Picture, node: NodeId) -> NodeSet {
    let there = picture.reached(node).map_or(NodeSet::EMPTY, |report| report.standbys);
    there.intersection(picture.cluster.nodes()).without(node)
}

/// The one node that may be adopted.
fn adoptable(picture: &Picture) -> Result<NodeId, Reason> {
    let cluster = &picture.cluster;
    let of = |last: Last| -> NodeSet {
        cluster.nodes().iter().filter(|n| picture.seen(*n).is_some_and(|seen| seen.last == last)).collect()
    };
    if !of(Last::Never).is_empty() {
        return Err(reason::under_way(format!("{} have not been looked at yet", cluster.names(of(Last::Never)))));
    }
    let writers = picture.nodes_where(|_, report| !report.in_recovery);
    let mut each = writers.iter();
    let (Some(node), None) = (each.next(), each.next()) else {
        return Err(reason::no_bootstrap(
            format!("nodes that accept writes: {}; there has to be exactly one", cluster.names(writers)),
            "start the primary, or stop the nodes that should not be one (pg_rewind makes a standby of them)",
        ));
    };
    let Some(report) = picture.reached(node) else { return Err(reason::under_way("looking")) };
    let strange = picture.nodes_where(|_, other| other.system_identifier != report.system_identifier);
    if !strange.is_empty() {
        return Err(reason::no_bootstrap(
            format!("{} belong to another system than {}", cluster.names(strange), cluster.name(node)),
            "correct the addresses, or make those nodes anew with pg_basebackup",
        ));
    }
    let greatest = picture.nodes_where(|_, other| other.row.map(|row| row.term) > report.row.map(|row| row.term));
    if !greatest.is_empty() || report.row.is_some_and(|row| row.leader != Some(node)) {
        return Err(reason::no_bootstrap(
            format!("{} accepts writes, but by the term rows of the cluster it is not the primary", cluster.name(node)),
            "give pgsteady the store of this cluster, or start the node that the newest term row names",
        ));
    }
    let alone = cluster.members().len() == 1;
    if standbys_of(picture, node).len() < usize::try_from(picture.policy.k).unwrap_or(usize::MAX) && !alone {
        return Err(reason::no_bootstrap(
            format!(
                "{} standbys stream from {}; {} are needed",
                standbys_of(picture, node).len(),
                cluster.name(node),
                picture.policy.k
            ),
            "start the standbys; the application_name of each must be its name in the configuration",
        ));
    }
    Ok(node)
}
