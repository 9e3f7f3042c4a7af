//! Clients are held: is the primary lost, will it come back, can anything be done? Step 0 and 1 of the protocol.

use super::claiming::Claiming;
use super::health::{self, Doubt, Health};
use super::picture::{Last, Picture};
use super::serving::Serving;
use super::{Phase, bootstrapping::Bootstrapping};
use crate::action::Action;
use crate::event::Event;
use crate::node::{NodeId, NodeSet};
use crate::reason::{self, Reason};
use crate::record::{Intent, Rule};

/// Nothing was ordered that would have to be undone.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) struct Suspecting;

impl Suspecting {
    /// Looks at the primary and at everybody who would be needed without it.
    pub(crate) fn enter(picture: &mut Picture) -> Phase {
        if let Some(rule) = picture.rule() {
            if picture.asked.is_some() {
                // A switchover is given up: it may have restarted meanwhile, so it is opened on a new reading only.
                picture.forget_contact(rule.leader);
            }
            picture.look_at(rule.cohort.with(rule.leader));
        }
        Self.decide(picture)
    }

    pub(crate) fn on(self, picture: &mut Picture, event: &Event) -> Phase {
        if let Some(rule) = picture.rule() {
            look_again(picture, &rule, event);
        }
        self.decide(picture)
    }

    /// A failover without the proof that nothing is lost, because an operator says so.
    pub(crate) fn concede(self, picture: &mut Picture) -> Result<Phase, (Phase, Reason)> {
        let refuse = |why| Err((Phase::Suspecting(Suspecting), why));
        let Some(rule) = picture.rule() else { return refuse(reason::not_now("no primary was ever adopted here")) };
        if let Some(why) = &picture.store_lost {
            return refuse(reason::store_lost(why));
        }
        if !picture.is_coordinator() {
            return refuse(reason::not_the_coordinator());
        }
        if !matches!(health::of_leader(picture, &rule), Health::Lost(_)) {
            return refuse(reason::settling("whether the primary is lost is not known yet"));
        }
        if can_act(picture, &rule) && picture.obstacle.is_none() {
            return refuse(reason::settling("a failover that loses nothing is possible and will begin"));
        }
        if standbys(picture, &rule).is_empty() {
            return refuse(reason::nobody_in_reach(&picture.cluster, rule.leader));
        }
        picture.asked = Some(rule.leader);
        Ok(Claiming::for_concession(picture))
    }

    fn decide(self, picture: &mut Picture) -> Phase {
        let Some(rule) = picture.rule() else { return Bootstrapping::enter() };
        if picture.yields() {
            return Phase::Suspecting(self);
        }
        if picture.record.intent.is_some() {
            return self.forward(picture, &rule);
        }
        match health::of_leader(picture, &rule) {
            Health::Well if picture.settling() => Phase::Suspecting(self),
            Health::Well => Serving::enter(picture, &rule),
            Health::Lost(_) => self.forward(picture, &rule),
            Health::Doubtful(Doubt::Ahead) => {
                ask_store(picture);
                Phase::Suspecting(self)
            }
            Health::Doubtful(_) | Health::Unread => Phase::Suspecting(self),
        }
    }

    fn forward(self, picture: &mut Picture, rule: &Rule) -> Phase {
        if picture.store_lost.is_some() {
            ask_store(picture);
            return Phase::Suspecting(self);
        }
        if picture.now < picture.retry_at || !picture.is_coordinator() || !can_act(picture, rule) {
            return Phase::Suspecting(self);
        }
        Claiming::enter(picture)
    }
}

/// One refusal may be a glitch: the second look follows at once, not at the next tick.
fn look_again(picture: &mut Picture, rule: &Rule, event: &Event) {
    let Event::Probed { node, .. } = event else { return };
    let Some(seen) = picture.seen(*node).filter(|_| *node == rule.leader) else { return };
    let refused_once = seen.last == Last::Refused && seen.refused < picture.policy.refusals;
    if refused_once || (seen.last == Last::Reached && seen.contradictions == 1) {
        picture.order(Action::ProbeNow { node: *node });
    }
}

/// Asks the store again, not more often than every `retry`.
pub(crate) fn ask_store(picture: &mut Picture) {
    if picture.now >= picture.retry_at {
        picture.retry_at = picture.now.plus(picture.policy.retry);
        picture.order(Action::ReadStore);
    }
}

/// Whether an attempt has a chance: a promoted node to finish, one that may be as far as a choice made before, or enough
/// standbys to fence.
fn can_act(picture: &Picture, rule: &Rule) -> bool {
    let reachable = within_reach(picture, rule);
    let finishes = promoted(picture).is_some() || (picture.record.intent.is_some() && !reachable.is_empty());
    rule.is_fenced_by(reachable) || finishes
}

/// Standbys of the rule that answer.
pub(crate) fn within_reach(picture: &Picture, rule: &Rule) -> NodeSet {
    picture.nodes_where(|_, report| report.in_recovery).intersection(rule.cohort)
}

/// Standbys that answer, whether commits waited for them or not.
pub(crate) fn standbys(picture: &Picture, rule: &Rule) -> NodeSet {
    picture.nodes_where(|_, report| report.in_recovery).without(rule.leader)
}

/// The node of the intent, if it was promoted under it: it holds every acknowledged commit, for no fence is undone while
/// the intent stands. What is left to do is the commit point.
pub(crate) fn promoted(picture: &Picture) -> Option<(NodeId, Intent)> {
    let intent = picture.record.intent?;
    let report = picture.reached(intent.node).filter(|report| !report.in_recovery)?;
    let marked = report.marker.is_some_and(|marker| marker >= intent.term);
    let written = report.row.is_some_and(|row| row.term >= intent.term && row.leader == Some(intent.node));
    (marked || written).then_some((intent.node, intent))
}
