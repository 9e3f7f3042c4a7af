//! What is known: of each node, of the store, of our own orders. Collects, and judges nothing.

use super::health;
use crate::action::Action;
use crate::event::Event;
use crate::node::{Contact, Lsn, Millis, NodeId, NodeSet, Report, Term, TermRow};
use crate::policy::{Cluster, Policy};
use crate::reason::{self, Reason};
use crate::record::{Record, Rule};
use crate::switchover::Verdict;
use crate::view::View;

/// A gap between two events after which nothing that was seen before counts (a tick comes several times a second).
const ASLEEP: Millis = Millis(1_000);

/// How the latest contact with a node ended.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash)]
pub(crate) enum Last {
    /// Not looked at yet.
    #[default]
    Never,
    /// It answered; the report is the latest.
    Reached,
    /// Refused.
    Refused,
    /// Starting up.
    Starting,
    /// Silent.
    Silent,
    /// It is alive, but told us nothing.
    Mute,
}

/// One node.
#[derive(Debug, Clone, Default, PartialEq, Eq, Hash)]
pub(crate) struct Seen {
    pub(crate) last: Last,
    pub(crate) report: Option<Report>,
    /// What a mute one said.
    pub(crate) said: String,
    /// Refusals and silences since it last answered in any way.
    pub(crate) refused: u32,
    pub(crate) silent: u32,
    /// When the first of them came.
    pub(crate) failing_since: Option<Millis>,
    pub(crate) starting_since: Option<Millis>,
    /// Its WAL has reached its disk as far as this, no further, and sessions wait for it, since.
    pub(crate) flushing_since: Option<(Lsn, Millis)>,
    /// Readings in a row in which the recorded primary is not what the record says: one may be older than our own act.
    pub(crate) contradictions: u32,
    /// Our own connection broke and it was not reached since.
    pub(crate) lost: bool,
    /// The leader has it streaming since.
    pub(crate) streaming_since: Option<Millis>,
    /// The leader misses it since.
    pub(crate) absent_since: Option<Millis>,
    /// It carries the same marker since.
    pub(crate) marker_since: Option<(Term, Millis)>,
    /// When it was last repointed or quarantined.
    pub(crate) ordered_at: Option<Millis>,
}

impl Seen {
    /// The report, if it is the latest word of this node.
    pub(crate) fn reached(&self) -> Option<&Report> {
        self.report.as_ref().filter(|_| self.last == Last::Reached)
    }

    fn take_in(&mut self, now: Millis, contact: &Contact) {
        self.last = match contact {
            Contact::Reached(_) => Last::Reached,
            Contact::Refused => Last::Refused,
            Contact::Starting => Last::Starting,
            Contact::Silent => Last::Silent,
            Contact::LoginFailed(_) | Contact::Unreadable(_) => Last::Mute,
        };
        match contact {
            Contact::Refused => self.refused = self.refused.saturating_add(1),
            Contact::Silent => self.silent = self.silent.saturating_add(1),
            _ => (self.refused, self.silent) = (0, 0),
        }
        self.failing_since = (self.refused + self.silent > 0).then(|| self.failing_since.unwrap_or(now));
        self.starting_since = match contact {
            Contact::Starting => Some(self.starting_since.unwrap_or(now)),
            Contact::Silent | Contact::Refused => self.starting_since,
            _ => None,
        };
        match contact {
            Contact::Reached(report) => {
                self.lost = false;
                self.marker_since = match (report.marker, self.marker_since) {
                    (Some(marker), Some((same, since))) if marker == same => Some((same, since)),
                    (marker, _) => marker.map(|m| (m, now)),
                };
                self.flushing_since = match (report.flushing, self.flushing_since) {
                    (Some(flushed), Some((same, since))) if flushed == same => Some((same, since)),
                    (flushed, _) => flushed.map(|lsn| (lsn, now)),
                };
                self.report = Some(Report::clone(report));
            }
            Contact::LoginFailed(why) | Contact::Unreadable(why) => self.said.clone_from(why),
            _ => {}
        }
    }
}

/// The lease of a store that several instances share; held for ever where there is only one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum Lease {
    Away,
    /// Ours, but the record was not read since.
    Unread,
    Held,
}

/// Everything known, and the orders of this step.
#[derive(Debug, Clone)]
pub(crate) struct Picture {
    pub(crate) policy: Policy,
    pub(crate) cluster: Cluster,
    pub(crate) now: Millis,
    pub(crate) seen: Vec<Seen>,
    pub(crate) record: Record,
    /// The record we asked to be written, while it is not known whether the store has it.
    pub(crate) writing: Option<Record>,
    /// The store was lost since: that write may or may not be there.
    unanswered: bool,
    pub(crate) store_lost: Option<String>,
    /// The last claim that was ours. While it is the record's, nobody else may change nodes or record.
    pub(crate) owned: Option<Term>,
    /// A claim of ours without an answer.
    claiming: Option<Term>,
    /// Since when the record's claim is what it is.
    claimed_since: Millis,
    /// Whether we may act, of several instances.
    lease: Lease,
    pub(crate) epoch: u64,
    /// The primary as last opened: node, term, incarnation.
    pub(crate) opened: Option<(NodeId, Term, u64)>,
    /// The next transaction id at the last promotion that was seen here, and that promotion's term.
    promoted_at: Option<(Term, u64)>,
    /// Attempts since the last opening, and when the next may begin.
    pub(crate) attempts: u32,
    pub(crate) retry_at: Millis,
    /// What stands in the way, as the last attempt found it.
    pub(crate) obstacle: Option<Reason>,
    /// The primary from which an operator wants to switch over.
    pub(crate) asked: Option<NodeId>,
    pub(crate) announced: Option<View>,
    out: Vec<Action>,
}

impl Picture {
    pub(crate) fn new(mut policy: Policy, cluster: Cluster, record: Option<Record>) -> Self {
        policy.k = policy.k.max(1);
        let lease = if policy.shared { Lease::Away } else { Lease::Held };
        let seen = vec![Seen::default(); cluster.members().len()];
        Self {
            policy,
            cluster,
            now: Millis(0),
            seen,
            record: record.unwrap_or_else(Record::empty),
            writing: None,
            unanswered: false,
            store_lost: None,
            owned: None,
            claiming: None,
            claimed_since: Millis(0),
            lease,
            epoch: 0,
            opened: None,
            promoted_at: None,
            attempts: 0,
            retry_at: Millis(0),
            obstacle: None,
            asked: None,
            announced: None,
            out: Vec::new(),
        }
    }

    /// Takes in what the event says about nodes and store. A node that is not of the cluster is ignored.
    pub(crate) fn observe(&mut self, now: Millis, event: &Event) {
        if now.since(self.now) >= ASLEEP && self.announced.is_some() {
            // This process was stopped: what it saw is old, and clients must not read from it.
            self.seen.iter_mut().for_each(|seen| seen.lost = true);
        }
        self.now = self.now.max(now);
        match event {
            Event::Probed { node, contact } => self.probed(*node, contact),
            Event::ConnectionLost { node, own: true } => self.forget_contact(*node),
            Event::StoreLost { why } => {
                self.store_lost = Some(why.clone());
                self.unanswered = true;
                self.claiming = None;
            }
            Event::Lease { held } => self.leased(*held),
            Event::StoreRead { record } => {
                self.adopt(record.as_ref());
                if self.lease == Lease::Unread {
                    self.lease = Lease::Held;
                }
            }
            Event::TermClaimed { record } => {
                self.claiming = None;
                self.owned = Some(record.claimed);
                self.adopt(Some(record));
            }
            Event::TermRefused { record } => {
                self.claiming = None;
                self.adopt(Some(record));
            }
            Event::PublishRefused { record } => self.adopt(Some(record)),
            Event::Published { revision } => self.published(*revision),
            Event::Promoted { node, term, timeline, next_xid } => {
                self.promoted_at = Some((*term, *next_xid));
                self.correct(*node, |report| {
                    report.in_recovery = false;
                    report.timeline = *timeline;
                    report.receiver = None;
                });
            }
            Event::TermWritten { node, rule } => {
                let row = TermRow { term: rule.term, leader: Some(rule.leader) };
                self.correct(*node, |report| report.row = Some(row));
            }
            Event::RuleSet { node, rule } => {
                let names = rule.sync_names();
                self.correct(*node, |report| report.sync_names = names);
            }
            _ => {}
        }
    }

    /// What it last said says nothing of now.
    pub(crate) fn forget_contact(&mut self, node: NodeId) {
        if let Some(seen) = self.seen.get_mut(node.index()) {
            seen.lost = true;
        }
    }

    fn leased(&mut self, held: bool) {
        self.lease = match (held, self.lease) {
            (false, _) => Lease::Away,
            (true, Lease::Held) => Lease::Held,
            (true, _) => {
                self.order(Action::ReadStore);
                Lease::Unread
            }
        };
    }

    /// Whether it is ours to act.
    pub(crate) fn is_coordinator(&self) -> bool {
        self.lease == Lease::Held
    }

    fn probed(&mut self, node: NodeId, contact: &Contact) {
        let now = self.now;
        let Some(seen) = self.seen.get_mut(node.index()) else { return };
        seen.take_in(now, contact);
        let Contact::Reached(report) = contact else { return };
        let Some(rule) = self.record.rule.filter(|rule| rule.leader == node) else { return };
        let contradicts = health::contradicts(self, &rule, report);
        let seen = &mut self.seen[node.index()];
        seen.contradictions = if contradicts { seen.contradictions.saturating_add(1) } else { 0 };
        self.count_standbys(report.standbys);
    }

    /// The next transaction id at the promotion of this term, if it was seen here.
    pub(crate) fn next_xid_of(&self, term: Term) -> Option<u64> {
        self.promoted_at.filter(|(of, _)| *of == term).map(|(_, xid)| xid)
    }

    /// What we have just done there is known without another look.
    fn correct(&mut self, node: NodeId, change: impl FnOnce(&mut Report)) {
        if let Some(report) = self.seen.get_mut(node.index()).and_then(|seen| seen.report.as_mut()) {
            change(report);
        }
    }

    fn count_standbys(&mut self, streaming: NodeSet) {
        for (node, seen) in self.cluster.nodes().iter().zip(&mut self.seen) {
            let there = streaming.contains(node);
            seen.streaming_since = there.then(|| seen.streaming_since.unwrap_or(self.now));
            seen.absent_since = (!there).then(|| seen.absent_since.unwrap_or(self.now));
        }
    }

    fn adopt(&mut self, record: Option<&Record>) {
        self.store_lost = None;
        let Some(record) = record else { return };
        // A write without an answer is settled only by a revision that it cannot have any more, or has.
        self.writing.take_if(|writing| record.revision >= writing.revision);
        if record.revision >= self.record.revision {
            if record.rule.map(|rule| rule.leader) != self.record.rule.map(|rule| rule.leader) {
                for seen in &mut self.seen {
                    (seen.streaming_since, seen.absent_since, seen.contradictions) = (None, None, 0);
                }
            }
            if record.claimed != self.record.claimed {
                self.claimed_since = self.now;
            }
            self.record = record.clone();
        }
    }

    fn published(&mut self, revision: u64) {
        self.store_lost = None;
        if let Some(record) = self.writing.take_if(|record| record.revision == revision) {
            self.adopt(Some(&record));
        }
    }

    /// Orders one thing.
    pub(crate) fn order(&mut self, action: Action) {
        self.out.push(action);
    }

    /// Orders a write of the record; its `Published` will find it.
    pub(crate) fn publish(&mut self, record: Record) {
        self.writing = Some(record.clone());
        self.unanswered = false;
        self.order(Action::Publish { record });
    }

    /// Whether a write is under way or its outcome unknown. In the latter case asks again for the very same write, which
    /// settles it: either it is there already, or it is now, or it never will be.
    pub(crate) fn settling(&mut self) -> bool {
        let Some(record) = self.writing.clone() else { return false };
        if self.unanswered && self.now >= self.retry_at {
            self.retry_at = self.now.plus(self.policy.retry);
            self.publish(record);
        }
        true
    }

    /// Orders the next claim.
    pub(crate) fn claim(&mut self, handover: bool) -> Term {
        let (from, to) = (self.record.claimed, self.record.claimed.next());
        self.claiming = Some(to);
        self.order(Action::ClaimTerm { from, to, handover });
        to
    }

    /// The claim under which nodes may be changed in the steady state; asks for one if the last is somebody else's. They
    /// get the time to finish what they may have begun.
    pub(crate) fn ownership(&mut self) -> Option<Term> {
        if self.store_lost.is_some() || !self.is_coordinator() {
            return None;
        }
        if self.owned == Some(self.record.claimed) {
            return self.owned;
        }
        let patient = self.passed(self.claimed_since, self.policy.leftover_grace);
        if patient && self.claiming.is_none() && self.writing.is_none() && self.now >= self.retry_at {
            self.claim(false);
        }
        None
    }

    /// The orders of this step.
    pub(crate) fn take_orders(&mut self) -> Vec<Action> {
        std::mem::take(&mut self.out)
    }

    /// The node; an id that is not of the cluster was never looked at.
    pub(crate) fn seen(&self, node: NodeId) -> Option<&Seen> {
        self.seen.get(node.index())
    }

    /// Its report, if that is its latest word and it is of this cluster.
    pub(crate) fn reached(&self, node: NodeId) -> Option<&Report> {
        let report = self.seen(node)?.reached()?;
        self.record.system_identifier.is_none_or(|ours| ours == report.system_identifier).then_some(report)
    }

    /// The rule in force.
    pub(crate) fn rule(&self) -> Option<Rule> {
        self.record.rule
    }

    /// Nodes whose latest word satisfies this.
    pub(crate) fn nodes_where(&self, holds: impl Fn(NodeId, &Report) -> bool) -> NodeSet {
        self.cluster.nodes().iter().filter(|n| self.reached(*n).is_some_and(|r| holds(*n, r))).collect()
    }

    /// Notes a failed attempt: the next one waits, longer each time.
    pub(crate) fn back_off(&mut self) {
        let doublings = self.attempts.min(16);
        let pause = self.policy.retry.0.saturating_mul(1 << doublings).min(self.policy.retry_max.0);
        self.attempts = self.attempts.saturating_add(1);
        self.retry_at = self.now.plus(Millis(pause));
    }

    /// Opens this primary: a new epoch.
    pub(crate) fn open(&mut self, rule: &Rule, incarnation: u64) {
        self.epoch += 1;
        self.opened = Some((rule.leader, rule.term, incarnation));
        self.attempts = 0;
        let obstacle = self.obstacle.take();
        if let Some(from) = self.asked.take() {
            let verdict = if from == rule.leader {
                Verdict::Undone(obstacle.unwrap_or_else(|| reason::not_now("it was interrupted")))
            } else {
                Verdict::Done { from, to: rule.leader, term: rule.term }
            };
            self.order(Action::Tell(verdict));
        }
    }

    /// Whether somebody else switches the primary over at the moment.
    pub(crate) fn yields(&self) -> bool {
        self.record.handover
            && self.owned != Some(self.record.claimed)
            && !self.passed(self.claimed_since, self.policy.leftover_grace)
    }

    /// Whether `length` has passed since `moment`.
    pub(crate) fn passed(&self, moment: Millis, length: Millis) -> bool {
        self.now.since(moment) >= length
    }

    /// Asks for a look at these nodes.
    pub(crate) fn look_at(&mut self, nodes: NodeSet) {
        for node in nodes.iter() {
            self.order(Action::ProbeNow { node });
        }
    }
}
