//! Steps 6 and 7: the term row is the commit point in the cluster, the record the one in the store. No client before both.

use super::Phase;
use super::health;
use super::picture::Picture;
use super::serving::Serving;
use super::strays;
use super::suspecting::{Suspecting, ask_store};
use crate::action::Action;
use crate::event::Event;
use crate::node::{Millis, NodeId, NodeSet, Term};
use crate::policy::Durability;
use crate::reason;
use crate::record::{Intent, Origin, Record, Rule};

/// What the new primary is doing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum Doing {
    /// Its `synchronous_standby_names` are being set.
    Setting,
    /// The term row waits for its acknowledgement.
    Writing,
    /// It failed; again at this moment.
    Pausing(Millis),
}

/// A node is promoted; its term row is on the way.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) struct Committing {
    rule: Rule,
    origin: Origin,
    doing: Doing,
    /// Standbys that were told to follow, and did not answer yet or failed.
    followers: NodeSet,
    /// Since when fewer than k of the cohort stream from it.
    short_since: Option<Millis>,
}

impl Committing {
    /// Right after the promotion; its `synchronous_standby_names` are set.
    pub(crate) fn enter(picture: &mut Picture, rule: Rule, origin: Origin, followers: NodeSet) -> Phase {
        for node in followers.iter() {
            picture.order(Action::Repoint { node, upstream: rule.leader, marker: Some(rule.term), claim: rule.term });
            strays::was_ordered(picture, node);
        }
        picture.order(Action::WriteTerm { node: rule.leader, rule });
        let doing = Doing::Writing;
        let origin = Origin { next_xid: picture.next_xid_of(rule.term), ..origin };
        Phase::Committing(Box::new(Self { rule, origin, doing, followers, short_since: Some(picture.now) }))
    }

    /// Takes up a promotion that was ordered under an earlier term and not published.
    pub(crate) fn finish(picture: &mut Picture, term: Term, intent: &Intent) -> Phase {
        let rule = Rule { term, leader: intent.node, cohort: intent.cohort, k: intent.k };
        picture.order(Action::SetRule { node: rule.leader, rule, claim: term });
        let followers = NodeSet::EMPTY;
        let doing = Doing::Setting;
        let short_since = Some(picture.now);
        let origin = Origin { next_xid: picture.next_xid_of(intent.term), ..intent.origin };
        Phase::Committing(Box::new(Self { rule, origin, doing, followers, short_since }))
    }

    pub(crate) fn on(mut self: Box<Self>, picture: &mut Picture, event: &Event) -> Phase {
        let leader = self.rule.leader;
        if picture.record.claimed != self.rule.term || health::is_gone(picture, leader) {
            return Suspecting::enter(picture);
        }
        let row = picture.reached(leader).and_then(|report| report.row);
        if row.is_some_and(|row| row.term > self.rule.term) {
            ask_store(picture);
            return Suspecting::enter(picture);
        }
        match event {
            Event::TermWritten { node, rule } if *node == leader && *rule == self.rule => {
                return Publishing::enter(picture, self.rule, self.origin);
            }
            Event::TermWriteFailed { node, rule, why } if *node == leader && *rule == self.rule => {
                self.pause(picture, why);
            }
            Event::RuleSet { node, rule } if *node == leader && *rule == self.rule => {
                self.doing = Doing::Writing;
                picture.order(Action::WriteTerm { node: leader, rule: self.rule });
            }
            Event::RuleSetFailed { node, rule, why } if *node == leader && *rule == self.rule => {
                self.pause(picture, why);
            }
            Event::Repointed { node, upstream } if *upstream == leader => {
                self.followers = self.followers.without(*node);
            }
            _ => {}
        }
        self.go_on(picture);
        Phase::Committing(self)
    }

    fn pause(&mut self, picture: &mut Picture, why: &str) {
        picture.obstacle = Some(reason::commit_point_failed(&picture.cluster, &self.rule, why));
        self.doing = Doing::Pausing(picture.now.plus(picture.policy.retry));
    }

    fn go_on(&mut self, picture: &mut Picture) {
        strays::repoint(picture, &self.rule, Some(&self.origin), self.followers);
        if let Some(rule) = self.other_rule(picture) {
            self.rule = rule;
            self.short_since = Some(picture.now);
            self.set(picture);
        }
        if matches!(self.doing, Doing::Pausing(until) if picture.now >= until) {
            self.set(picture);
        }
    }

    fn set(&mut self, picture: &mut Picture) {
        self.doing = Doing::Setting;
        picture.order(Action::SetRule { node: self.rule.leader, rule: self.rule, claim: self.rule.term });
    }

    /// Nothing was acknowledged under the new term yet, so its rule may still become another one: those who are there
    /// instead of those who were expected.
    fn other_rule(&mut self, picture: &Picture) -> Option<Rule> {
        let there = picture.reached(self.rule.leader).map_or(NodeSet::EMPTY, |report| report.standbys);
        let there = there.intersection(picture.cluster.nodes()).without(self.rule.leader);
        let count = |set: NodeSet| u32::try_from(set.len()).unwrap_or(u32::MAX);
        if count(there.intersection(self.rule.cohort)) >= self.rule.k {
            self.short_since = None;
            return None;
        }
        let since = *self.short_since.get_or_insert(picture.now);
        let k = match picture.policy.durability {
            Durability::Strict => picture.policy.k,
            Durability::Available => picture.policy.k.min(count(there)),
        };
        let enough = count(there) >= k && picture.passed(since, picture.policy.relax_after);
        let cohort = if k == 0 { NodeSet::EMPTY } else { there };
        (enough && (cohort, k) != (self.rule.cohort, self.rule.k)).then_some(Rule { cohort, k, ..self.rule })
    }

    pub(crate) fn leader(&self) -> NodeId {
        self.rule.leader
    }
}

/// The term row is acknowledged; the record is on the way.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) struct Publishing {
    rule: Rule,
    record: Record,
    /// The store did not answer: what it holds is asked at this moment.
    ask_at: Option<Millis>,
}

impl Publishing {
    fn enter(picture: &mut Picture, rule: Rule, origin: Origin) -> Phase {
        let record = Record {
            rule: Some(rule),
            intent: None,
            origin: Some(origin),
            handover: false,
            ..picture.record.successor()
        };
        picture.publish(record.clone());
        Phase::Publishing(Box::new(Self { rule, record, ask_at: None }))
    }

    pub(crate) fn on(mut self: Box<Self>, picture: &mut Picture, event: &Event) -> Phase {
        if picture.record == self.record {
            picture.order(Action::Checkpoint { node: self.rule.leader });
            return Serving::open_promoted(picture, &self.rule);
        }
        if health::is_gone(picture, self.rule.leader) || picture.record.claimed != self.record.claimed {
            return Suspecting::enter(picture);
        }
        match event {
            Event::PublishRefused { .. } => return Suspecting::enter(picture),
            Event::StoreLost { .. } => self.ask_at = Some(picture.now.plus(picture.policy.retry)),
            Event::StoreRead { .. } if picture.record.revision + 1 == self.record.revision => {
                self.ask_at = None;
                picture.publish(self.record.clone());
            }
            Event::StoreRead { .. } => return Suspecting::enter(picture),
            _ => {}
        }
        if self.ask_at.is_some_and(|at| picture.now >= at) {
            self.ask_at = Some(picture.now.plus(picture.policy.retry));
            picture.order(Action::ReadStore);
        }
        Phase::Publishing(self)
    }
}
