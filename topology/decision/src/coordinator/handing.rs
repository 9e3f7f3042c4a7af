//! A planned change of primary, up to its fences: clients are held, open transactions end, a standby gets all there is.
//! Whatever fails before the fences is undone by letting the clients in again.

use super::Phase;
use super::fencing::Fencing;
use super::health::{self, Health};
use super::picture::Picture;
use super::suspecting::{Suspecting, within_reach};
use crate::action::Action;
use crate::event::Event;
use crate::node::{Lsn, Millis, NodeId, NodeSet, Term};
use crate::policy::Durability;
use crate::reason::{self, Reason};
use crate::record::Rule;
use crate::switchover::Switchover;

/// How long a standby may take to receive the last of the WAL. It streams, so it has nearly all.
const CATCH_UP: Millis = Millis(2_000);
/// What the order to the primary may take beyond its own limit.
const MARGIN: Millis = Millis(3_000);

/// The term is ours and marked as a switchover's.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) struct Handing {
    term: Term,
    rule: Rule,
    plan: Switchover,
    stage: Stage,
    deadline: Millis,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum Stage {
    /// Open transactions end.
    Quieting,
    /// The WAL up to here is on its way to the standby.
    Catching(Lsn),
}

/// What has to be so before anybody is held.
pub(crate) fn check(picture: &mut Picture, rule: &Rule, plan: &Switchover) -> Result<(), Reason> {
    if let Some(why) = &picture.store_lost {
        return Err(reason::store_lost(why));
    }
    if !picture.is_coordinator() {
        return Err(reason::not_the_coordinator());
    }
    if picture.settling() {
        return Err(reason::settling("the rule is being changed"));
    }
    let reachable = within_reach(picture, rule);
    let cluster = &picture.cluster;
    match plan.to {
        Some(to) if to == rule.leader => return Err(reason::is_primary(cluster, to)),
        Some(to) if !rule.cohort.contains(to) => return Err(reason::not_synchronous(cluster, to, rule)),
        Some(to) if !reachable.contains(to) => return Err(reason::not_reachable(cluster, to)),
        _ => {}
    }
    let enough = rule.is_fenced_by(reachable);
    if !enough {
        return Err(reason::too_few_reachable(cluster, rule, reachable, "a switchover fences the standbys"));
    }
    let followers = u32::try_from(reachable.len()).unwrap_or(u32::MAX).saturating_sub(1);
    if picture.policy.durability == Durability::Strict && followers < picture.policy.k {
        return Err(reason::nobody_would_acknowledge(cluster, rule, picture.policy.k));
    }
    Ok(())
}

impl Handing {
    pub(crate) fn enter(picture: &mut Picture, term: Term, rule: &Rule, plan: Switchover) -> Phase {
        let Switchover { max_wait: limit, end_transactions, .. } = plan;
        picture.order(Action::Quiesce { node: rule.leader, term, limit, end_transactions });
        let deadline = picture.now.plus(limit).plus(MARGIN);
        Phase::Handing(Box::new(Self { term, rule: *rule, plan, stage: Stage::Quieting, deadline }))
    }

    pub(crate) fn on(mut self: Box<Self>, picture: &mut Picture, event: &Event) -> Phase {
        if picture.rule() != Some(self.rule) || picture.record.claimed != self.term {
            return Suspecting::enter(picture); // somebody else has the term
        }
        match health::of_leader(picture, &self.rule) {
            Health::Well | Health::Unread => {}
            Health::Doubtful(_) | Health::Lost(_) => return Suspecting::enter(picture),
        }
        match (self.stage, event) {
            (Stage::Quieting, Event::Quiesced { term, lsn, .. }) if *term == self.term => {
                self.stage = Stage::Catching(*lsn);
                self.deadline = picture.now.plus(CATCH_UP);
                picture.look_at(self.candidates());
            }
            (Stage::Quieting, Event::QuiesceFailed { term, why, .. }) if *term == self.term => {
                return undo(picture, reason::not_quiet(&picture.cluster, self.rule.leader, why));
            }
            (Stage::Catching(lsn), Event::Probed { node, .. }) if self.candidates().contains(*node) => {
                if holds(picture, *node, lsn) {
                    return Fencing::planned(picture, self.term, &self.rule, self.plan);
                }
                picture.order(Action::ProbeNow { node: *node });
            }
            _ => {}
        }
        if picture.now >= self.deadline {
            return undo(picture, self.late(picture));
        }
        Phase::Handing(self)
    }

    fn candidates(&self) -> NodeSet {
        self.plan.to.map_or(self.rule.cohort, |to| NodeSet::EMPTY.with(to))
    }

    fn late(&self, picture: &Picture) -> Reason {
        match self.stage {
            Stage::Quieting => reason::not_quiet(&picture.cluster, self.rule.leader, "it did not answer"),
            Stage::Catching(lsn) => reason::behind(&picture.cluster, self.candidates(), lsn),
        }
    }

    /// What is waited for, for people.
    pub(crate) fn reason(&self, picture: &Picture) -> Reason {
        let cluster = &picture.cluster;
        let from = cluster.name(self.rule.leader);
        let to = self.plan.to.map_or(String::new(), |to| format!(" to {}", cluster.name(to)));
        reason::under_way(match self.stage {
            Stage::Quieting => format!("switching over from {from}{to}: open transactions end"),
            Stage::Catching(lsn) => format!("switching over from {from}{to}: a standby receives the WAL up to {lsn}"),
        })
    }
}

fn holds(picture: &Picture, node: NodeId, lsn: Lsn) -> bool {
    picture.reached(node).is_some_and(|report| report.in_recovery && report.position() >= lsn)
}

fn undo(picture: &mut Picture, why: Reason) -> Phase {
    picture.obstacle = Some(why);
    Suspecting::enter(picture)
}
