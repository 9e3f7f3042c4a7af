//! Step 3: take the old primary's acknowledgements away. Short of enough fences, everything is undone.

use std::collections::BTreeMap;

use super::Phase;
use super::committing::Committing;
use super::health::{self, Health};
use super::picture::Picture;
use super::promoting::Intending;
use super::suspecting::{Suspecting, ask_store, promoted, standbys};
use super::undoing::Undoing;
use crate::action::Action;
use crate::event::{Event, Obstacle};
use crate::fence::{Confirmed, Drained, FenceReading, Fenced, Position, Short};
use crate::node::{Millis, NodeId, NodeSet, Term};
use crate::reason;
use crate::record::Rule;
use crate::switchover::{Switchover, Verdict};

/// How long the fences of a switchover may take.
const PLANNED: Millis = Millis(3_000);

/// The term is ours; standbys are being fenced and drained, all at once.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) struct Fencing {
    term: Term,
    rule: Rule,
    deadline: Millis,
    /// Who is to be fenced.
    targets: NodeSet,
    /// An operator accepts that what the fenced standbys lack is lost.
    conceded: bool,
    /// Fences and drains without an answer.
    asked: NodeSet,
    retry_at: BTreeMap<NodeId, Millis>,
    confirmed: BTreeMap<NodeId, Confirmed>,
    drained: BTreeMap<NodeId, Drained>,
    obstacles: BTreeMap<NodeId, String>,
    /// For a switchover: the primary is well, and that is no reason to give up.
    plan: Option<Switchover>,
}

impl Fencing {
    pub(crate) fn enter(picture: &mut Picture, term: Term, rule: &Rule) -> Phase {
        let limit = picture.policy.fence_timeout;
        Self::begin(picture, term, rule, limit, None)
    }

    /// Of all standbys within reach, also of those for which no commit waited.
    pub(crate) fn conceded(picture: &mut Picture, term: Term, rule: &Rule) -> Phase {
        let targets = standbys(picture, rule);
        let mut state = Self { targets, conceded: true, ..Self::new(picture, term, rule, None) };
        state.fence_missing(picture);
        Phase::Fencing(Box::new(state))
    }

    /// Clients wait for it, so it has less time than a failover.
    pub(crate) fn planned(picture: &mut Picture, term: Term, rule: &Rule, plan: Switchover) -> Phase {
        let limit = picture.policy.fence_timeout.min(PLANNED);
        Self::begin(picture, term, rule, limit, Some(plan))
    }

    fn begin(picture: &mut Picture, term: Term, rule: &Rule, limit: Millis, plan: Option<Switchover>) -> Phase {
        let deadline = picture.now.plus(limit);
        let mut state = Self { deadline, ..Self::new(picture, term, rule, plan) };
        state.fence_missing(picture);
        Phase::Fencing(Box::new(state))
    }

    fn new(picture: &Picture, term: Term, rule: &Rule, plan: Option<Switchover>) -> Self {
        Self {
            term,
            rule: *rule,
            deadline: picture.now.plus(picture.policy.fence_timeout),
            targets: rule.cohort,
            conceded: false,
            asked: NodeSet::EMPTY,
            retry_at: BTreeMap::new(),
            confirmed: BTreeMap::new(),
            drained: BTreeMap::new(),
            obstacles: BTreeMap::new(),
            plan,
        }
    }

    pub(crate) fn on(mut self: Box<Self>, picture: &mut Picture, event: &Event) -> Phase {
        if picture.rule() != Some(self.rule) || picture.record.claimed != self.term {
            return Suspecting::enter(picture); // somebody else has the term
        }
        if let Some(superseded) = self.take_in(picture, event) {
            picture.obstacle = Some(reason::superseded(&picture.cluster, superseded));
            picture.retry_at = picture.now;
            ask_store(picture);
            picture.retry_at = picture.now.plus(picture.policy.leftover_grace);
            return Suspecting::enter(picture);
        }
        if let Some((_, intent)) = promoted(picture) {
            return Committing::finish(picture, self.term, &intent);
        }
        match Fenced::prove(&self.rule, self.term, &self.drained, picture.record.intent.as_ref()) {
            Ok(proof) => self.choose(picture, proof),
            Err(Short::FromTheFuture(node, term)) => {
                picture.obstacle = Some(reason::from_the_future(&picture.cluster, node, term));
                self.give_up(picture)
            }
            Err(short) => match self.concession() {
                Some(fenced) => Intending::enter(picture, fenced, None),
                None => self.go_on(picture, short),
            },
        }
    }

    /// What there is, once everybody has answered, if that is to be enough.
    fn concession(&self) -> Option<Fenced> {
        (self.conceded && self.asked.is_empty()).then(|| Fenced::concede(self.term, &self.drained))?
    }

    /// Whom a switchover names has to be among those who hold everything.
    fn choose(self: Box<Self>, picture: &mut Picture, proof: Fenced) -> Phase {
        let Some(to) = self.plan.and_then(|plan| plan.to) else { return Intending::enter(picture, proof, None) };
        if proof.best().contains(to) {
            return Intending::enter(picture, proof, Some(to));
        }
        if !self.drained.contains_key(&to) {
            let have = self.drained.len();
            return self.go_on(picture, Short::Of { have, need: have + 1 });
        }
        picture.obstacle = Some(reason::not_the_furthest(&picture.cluster, to, proof.best()));
        self.give_up(picture)
    }

    fn go_on(mut self: Box<Self>, picture: &mut Picture, short: Short) -> Phase {
        let planned = self.plan.is_some();
        let back = !planned && health::of_leader(picture, &self.rule) == Health::Well && !only_forward(picture);
        if back || picture.now >= self.deadline {
            picture.obstacle = Some(reason::short_of_fences(&picture.cluster, &self.rule, short, &self.obstacles));
            return self.give_up(picture);
        }
        self.fence_missing(picture);
        Phase::Fencing(self)
    }

    fn give_up(&self, picture: &mut Picture) -> Phase {
        picture.back_off();
        if only_forward(picture) {
            return Suspecting::enter(picture);
        }
        if self.conceded && picture.asked.take().is_some() {
            let why = picture.obstacle.clone().unwrap_or_else(|| reason::not_now("it was interrupted"));
            picture.order(Action::Tell(Verdict::Undone(why)));
        }
        let fences = self.targets.iter().map(|node| (node, self.term)).collect();
        Undoing::enter(picture, &fences, self.rule.leader)
    }

    fn fence_missing(&mut self, picture: &mut Picture) {
        for node in self.targets.iter() {
            let waits = self.retry_at.get(&node).is_some_and(|at| picture.now < *at);
            if self.confirmed.contains_key(&node) || self.asked.contains(node) || waits {
                continue;
            }
            self.asked = self.asked.with(node);
            picture.order(Action::Fence { node, term: self.term });
        }
    }

    /// Returns the node that carries a marker of a greater term.
    fn take_in(&mut self, picture: &mut Picture, event: &Event) -> Option<NodeId> {
        match event {
            Event::Fenced { node, term, reading } if *term == self.term => self.fenced(picture, *node, reading),
            Event::FenceFailed { node, term, why } if *term == self.term => self.failed(picture, *node, why),
            Event::Drained { node, term, position } if *term == self.term => {
                self.drained(picture, *node, position);
                None
            }
            Event::DrainFailed { node, term, why } if *term == self.term => {
                self.failed(picture, *node, &Obstacle::Other(why.clone()))
            }
            _ => None,
        }
    }

    fn fenced(&mut self, picture: &mut Picture, node: NodeId, reading: &FenceReading) -> Option<NodeId> {
        match Confirmed::check(reading, self.term) {
            Ok(confirmed) if self.asked.contains(node) => {
                self.confirmed.insert(node, confirmed);
                self.obstacles.remove(&node);
                picture.order(Action::Drain { node, term: self.term });
                None
            }
            Ok(_) => None,
            Err(why) => self.failed(picture, node, &why),
        }
    }

    fn failed(&mut self, picture: &mut Picture, node: NodeId, why: &Obstacle) -> Option<NodeId> {
        self.asked = self.asked.without(node);
        self.confirmed.remove(&node);
        self.drained.remove(&node);
        self.retry_at.insert(node, picture.now.plus(picture.policy.retry));
        self.obstacles.insert(node, reason::obstacle(why));
        match why {
            Obstacle::Superseded(_) => return Some(node),
            Obstacle::Writable => picture.order(Action::ProbeNow { node }),
            _ => {}
        }
        None
    }

    fn drained(&mut self, picture: &mut Picture, node: NodeId, position: &Position) {
        self.asked = self.asked.without(node);
        let Some(confirmed) = self.confirmed.get(&node).copied() else { return };
        if picture.record.system_identifier.is_some_and(|ours| ours != position.system_identifier) {
            self.failed(picture, node, &Obstacle::Other("it belongs to another system".to_owned()));
            return;
        }
        self.drained.insert(node, confirmed.drained(*position));
    }

    /// What is asked of whom, for people.
    pub(crate) fn reason(&self, picture: &Picture) -> reason::Reason {
        let have = self.drained.len();
        let short = self.rule.fences_needed().map_or(Short::Nobody, |need| Short::Of { have, need });
        reason::short_of_fences(&picture.cluster, &self.rule, short, &self.obstacles)
    }
}

/// A promotion may have been ordered: undoing a fence could let the old primary acknowledge beside it, and would take
/// away the ground on which the intent is a proof.
fn only_forward(picture: &Picture) -> bool {
    picture.record.intent.is_some()
}
