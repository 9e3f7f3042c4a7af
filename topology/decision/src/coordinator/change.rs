//! The rule follows who is there: fewer copies first in the store and then on the primary, more the other way round.

use super::picture::Picture;
use super::suspecting::ask_store;
use crate::action::Action;
use crate::event::Event;
use crate::node::{Millis, NodeId, NodeSet};
use crate::policy::Durability;
use crate::quorum::{self, Change};
use crate::record::{Record, Rule};

/// One change of the rule, at most.
#[derive(Debug, Clone, Default, PartialEq, Eq, Hash)]
pub(crate) struct Changing {
    stage: Stage,
    /// After a failure: not before this moment.
    retry_at: Millis,
    /// Since when fewer than k standbys stream.
    short_since: Option<Millis>,
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash)]
enum Stage {
    #[default]
    Idle,
    /// On its way into the store. `then_set`: the primary comes afterwards (weakening), or was before.
    Publishing { rule: Rule, then_set: bool },
    /// Being set on the primary. `then_publish`: the store comes last (strengthening).
    Setting { rule: Rule, then_publish: bool },
    /// The term row, acknowledged under the rule: k of the new cohort hold all that was acknowledged before.
    Writing { rule: Rule, then_publish: bool },
}

impl Changing {
    pub(crate) fn is_idle(&self) -> bool {
        self.stage == Stage::Idle
    }

    pub(crate) fn on(&mut self, picture: &mut Picture, rule: &Rule, event: &Event, may_start: bool) {
        self.advance(picture, rule, event);
        self.count(picture, rule);
        if !self.is_idle() || !may_start || picture.now < self.retry_at {
            return;
        }
        if picture.store_lost.is_some() || picture.settling() || picture.record.intent.is_some() {
            return;
        }
        let (cohort, k) = self.target(picture, rule);
        let Some(change) = quorum::change(rule, cohort, k) else { return };
        if picture.ownership().is_none() {
            return;
        }
        match change {
            Change::Weaken(to) => self.publish(picture, to, true),
            Change::Strengthen(to) => self.set(picture, to, true),
        }
    }

    fn publish(&mut self, picture: &mut Picture, rule: Rule, then_set: bool) {
        let record = Record { rule: Some(rule), ..picture.record.successor() };
        picture.publish(record);
        self.stage = Stage::Publishing { rule, then_set };
    }

    fn set(&mut self, picture: &mut Picture, rule: Rule, then_publish: bool) {
        let Some(claim) = picture.ownership() else { return self.fail(picture) };
        picture.order(Action::SetRule { node: rule.leader, rule, claim });
        self.stage = Stage::Setting { rule, then_publish };
    }

    fn advance(&mut self, picture: &mut Picture, rule: &Rule, event: &Event) {
        match (self.stage, event) {
            (Stage::Publishing { rule: to, then_set }, _) if *rule == to => {
                self.stage = Stage::Idle;
                if then_set {
                    self.set(picture, to, false);
                }
            }
            (Stage::Publishing { .. }, Event::PublishRefused { .. }) => self.fail(picture),
            (Stage::Publishing { .. }, _) if !picture.settling() => {
                self.fail(picture); // settled: somebody else wrote
            }
            (Stage::Setting { rule: to, then_publish }, Event::RuleSet { rule: set, .. }) if *set == to => {
                picture.order(Action::WriteTerm { node: to.leader, rule: to });
                self.stage = Stage::Writing { rule: to, then_publish };
            }
            (Stage::Setting { rule: to, .. }, Event::RuleSetFailed { rule: set, .. }) if *set == to => {
                self.fail(picture);
            }
            (Stage::Writing { rule: to, then_publish }, Event::TermWritten { rule: written, .. }) if *written == to => {
                self.stage = Stage::Idle;
                if then_publish {
                    self.publish(picture, to, false);
                }
            }
            (Stage::Writing { rule: to, .. }, Event::TermWriteFailed { rule: written, .. }) if *written == to => {
                self.fail(picture);
            }
            _ => {}
        }
    }

    fn fail(&mut self, picture: &mut Picture) {
        ask_store(picture);
        self.stage = Stage::Idle;
        self.retry_at = picture.now.plus(picture.policy.retry);
    }

    fn count(&mut self, picture: &Picture, rule: &Rule) {
        let short = streaming(picture, rule).len() < as_len(rule.k.max(1));
        self.short_since = short.then(|| self.short_since.unwrap_or(picture.now));
    }

    /// Whom and how many the rule should name, by who streams and for how long.
    fn target(&self, picture: &Picture, rule: &Rule) -> (NodeSet, u32) {
        let policy = &picture.policy;
        let there = streaming(picture, rule);
        let settled = |node: &NodeId| {
            let since = picture.seen(*node).and_then(|seen| seen.streaming_since);
            since.is_some_and(|since| picture.passed(since, policy.settle))
        };
        let missed = |node: &NodeId| {
            let since = picture.seen(*node).and_then(|seen| seen.absent_since);
            since.is_some_and(|since| picture.passed(since, policy.shrink_after))
        };
        let joined: NodeSet = there.iter().filter(settled).collect();
        let kept: NodeSet = rule.cohort.iter().filter(|node| !missed(node)).collect();
        let live = joined.union(there.intersection(rule.cohort));
        let count = u32::try_from(live.len()).unwrap_or(u32::MAX);
        if count >= policy.k {
            return (joined.union(kept), policy.k);
        }
        let short_enough = self.short_since.is_some_and(|since| picture.passed(since, policy.relax_after));
        if count >= rule.k.max(1) {
            // Not all that is aimed at, but what the rule asks for.
            return (joined.union(kept), if rule.k == 0 { count } else { rule.k });
        }
        match policy.durability {
            Durability::Available if short_enough => (live, count),
            Durability::Available | Durability::Strict => (rule.cohort.union(joined), rule.k),
        }
    }
}

/// Standbys that the leader has streaming now.
fn streaming(picture: &Picture, rule: &Rule) -> NodeSet {
    let there = picture.reached(rule.leader).map_or(NodeSet::EMPTY, |report| report.standbys);
    there.intersection(picture.cluster.nodes()).without(rule.leader)
}

fn as_len(k: u32) -> usize {
    usize::try_from(k).unwrap_or(usize::MAX)
}
