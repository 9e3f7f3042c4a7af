//! A little cluster of model PostgreSQL nodes and a store, on which the real coordinator acts: WAL with history, flushes
//! acknowledged by `ANY k`, fences, promotions, restarts. No scheduler: who uses it says what happens next.
#![allow(dead_code, clippy::cast_possible_truncation)] // shared by three test programs; model positions are small

mod orders;
mod postgres;
pub(crate) mod simulation;
mod store;

#[allow(unused_imports)] // not every test program uses all of them
pub(crate) use orders::{Answer, Lie, failure, node_of};
pub(crate) use postgres::{Postgres, Power};
pub(crate) use store::Store;

use std::collections::{BTreeMap, BTreeSet};

use decision::{
    Cluster as Members, Contact, Member, Millis, NodeId, NodeSet, Receiver, SyncNames, Term, TermRow, Upstream, View,
};

/// All nodes, the links between them, and everything that was ever acknowledged.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) struct World {
    pub(crate) nodes: Vec<Postgres>,
    pub(crate) store: Store,
    /// Pairs of nodes (smaller first) whose link drops everything.
    pub(crate) cut: BTreeSet<(u8, u8)>,
    /// Commits and other writes that a client or coordinator was told are safe.
    pub(crate) acknowledged: BTreeSet<u64>,
    /// Which node wrote the row of which term.
    pub(crate) writers: BTreeMap<Term, NodeId>,
    pub(crate) promotions: u32,
    pub(crate) violations: Vec<String>,
    next_id: u64,
}

pub(crate) const SYSTEM: u64 = 7_000;

impl World {
    /// `n` nodes, the first of them primary with all others streaming, `ANY k`; the store knows it, unless `empty`.
    pub(crate) fn new(n: u8, k: u32, empty: bool) -> Self {
        let leader = NodeId(0);
        let cohort = NodeSet::first(usize::from(n)).without(leader);
        let mut nodes: Vec<_> = (0..n).map(|i| Postgres::new(NodeId(i), leader, cohort, k)).collect();
        if empty {
            for node in &mut nodes {
                node.wal.clear();
                node.replayed = 0;
                node.sync_names = SyncNames::Nobody;
            }
        }
        let store = if empty { Store::empty() } else { Store::with(leader, cohort, k) };
        Self {
            nodes,
            store,
            cut: BTreeSet::new(),
            acknowledged: BTreeSet::new(),
            writers: BTreeMap::from([(Term(1), leader)]),
            promotions: 0,
            violations: Vec::new(),
            next_id: 100,
        }
    }

    pub(crate) fn members(&self) -> Members {
        let member = |i: usize| Member { name: format!("n{i}"), zone: String::new(), priority: 0 };
        Members::new((0..self.nodes.len()).map(member).collect()).expect("a valid cluster")
    }

    pub(crate) fn node(&self, node: NodeId) -> &Postgres {
        &self.nodes[node.index()]
    }

    pub(crate) fn node_mut(&mut self, node: NodeId) -> &mut Postgres {
        &mut self.nodes[node.index()]
    }

    pub(crate) fn violation(&mut self, what: String) {
        self.violations.push(what);
    }

    pub(crate) fn is_cut(&self, a: NodeId, b: NodeId) -> bool {
        self.cut.contains(&(a.0.min(b.0), a.0.max(b.0)))
    }

    /// Appends a local write; it is safe once [`World::is_safe`].
    pub(crate) fn write(&mut self, node: NodeId, row: Option<TermRow>) -> u64 {
        self.next_id += 1;
        let id = self.next_id;
        self.node_mut(node).append(id, row);
        id
    }

    /// Whether PostgreSQL would acknowledge this write on this node now; `None` if it never will.
    pub(crate) fn is_safe(&self, node: NodeId, id: u64) -> Option<bool> {
        let postgres = self.node(node);
        let at = postgres.wal.iter().position(|entry| entry.id == id)? + 1;
        Some(postgres.is_acknowledged(at))
    }

    /// The same for a write whose place in the WAL (counted from 1) is known.
    pub(crate) fn is_safe_at(&self, node: NodeId, id: u64, at: usize) -> bool {
        let postgres = self.node(node);
        postgres.wal.get(at - 1).is_some_and(|entry| entry.id == id) && postgres.is_acknowledged(at)
    }

    /// A client or coordinator was told that this write is safe: from now on it must be on the recorded leader, always.
    pub(crate) fn acknowledge(&mut self, node: NodeId, id: u64) {
        self.acknowledged.insert(id);
        let leader = self.store.leader();
        if leader.is_some_and(|leader| !self.node(leader).holds(id)) {
            self.violation(format!("{node} acknowledged {id}, which the recorded leader does not hold"));
        }
    }

    /// The record names a leader: it has to hold everything acknowledged so far.
    pub(crate) fn check_leader(&mut self) {
        let Some(leader) = self.store.leader() else { return };
        let lost = self.acknowledged.iter().find(|id| !self.node(leader).holds(**id)).copied();
        if let Some(lost) = lost {
            self.violation(format!("leader {leader} of term {:?} does not hold {lost}", self.store.term()));
        }
    }

    /// What somebody who asks this node would read.
    pub(crate) fn report(&self, node: NodeId) -> Contact {
        let postgres = self.node(node);
        match postgres.power {
            Power::Down => return Contact::Refused,
            Power::Starting => return Contact::Starting,
            Power::Frozen => return Contact::Silent,
            Power::Up => {}
        }
        let receiver = postgres.receiver.map(|from| Receiver {
            streaming: true,
            silent_for: if self.reaches(node, from) { Millis(0) } else { Millis(60_000) },
        });
        let mut report = postgres.report();
        report.receiver = receiver;
        if !report.in_recovery {
            let follows = |other: &NodeId| self.streams(*other, node);
            report.standbys = (0..self.nodes.len() as u8).map(NodeId).filter(follows).collect();
        }
        Contact::Reached(Box::new(report))
    }

    /// Whether two nodes can talk at the moment.
    pub(crate) fn reaches(&self, a: NodeId, b: NodeId) -> bool {
        let up = |node: NodeId| self.node(node).power == Power::Up;
        up(a) && up(b) && !self.is_cut(a, b)
    }

    fn streams(&self, standby: NodeId, from: NodeId) -> bool {
        standby != from
            && self.node(standby).recovery
            && self.node(standby).receiver == Some(from)
            && self.reaches(standby, from)
            && self.node(standby).can_follow(self.node(from))
    }

    /// The standby's receiver lives or dies, and receives up to `most` entries. Returns what it acknowledges to whom.
    pub(crate) fn replicate(&mut self, standby: NodeId, most: usize) -> Option<(NodeId, usize)> {
        self.connect(standby);
        let from = self.node(standby).receiver?;
        if !self.streams(standby, from) {
            return None;
        }
        let pair = [standby.index(), from.index()];
        let [node, upstream] = self.nodes.get_disjoint_mut(pair).expect("two nodes");
        let before = node.wal.len();
        node.receive(upstream, most);
        let flushed = node.wal.len();
        if node.is_mixed_from(before) {
            self.violation(format!("{standby} mixed two histories"));
        }
        Some((from, flushed))
    }

    fn connect(&mut self, standby: NodeId) {
        let node = self.node(standby);
        if node.power != Power::Up || !node.recovery {
            return;
        }
        let wanted = match node.upstream {
            Upstream::Node(upstream) => Some(upstream),
            Upstream::Empty | Upstream::Elsewhere => None,
        };
        let mut receiver = node.receiver;
        // A receiver that should stop goes on while the startup process is stuck (measured).
        if receiver != wanted && !node.paused {
            receiver = None;
        }
        if receiver.is_some_and(|from| matches!(self.node(from).power, Power::Down | Power::Starting)) {
            receiver = None;
        }
        if receiver.is_none() && !node.paused {
            receiver = wanted.filter(|upstream| self.reaches(standby, *upstream));
            if let Some(upstream) = receiver {
                self.node_mut(upstream).acks.remove(&standby);
            }
        }
        self.node_mut(standby).receiver = receiver;
    }

    /// The acknowledgement of a standby arrives.
    pub(crate) fn take_ack(&mut self, at: NodeId, from: NodeId, flushed: usize) {
        let node = self.node_mut(at);
        if node.power == Power::Up && !node.recovery {
            let known = node.acks.entry(from).or_default();
            *known = flushed.max(*known);
        }
    }

    /// A view that names a primary may be announced only after the commit point of its term, and after a barrier.
    pub(crate) fn check_view(&mut self, view: &View) {
        let Some(primary) = view.primary else { return };
        if !self.store.published.contains(&(view.term, primary)) {
            self.violation(format!("{primary} announced for term {} before the record said so", view.term));
        }
        if view.nodes.iter().filter(|node| node.role == decision::Role::Primary).count() != 1 {
            self.violation("a view with a primary has not exactly one".to_owned());
        }
    }

    /// All that a primary shows when it is opened has to be held by k of its rule.
    pub(crate) fn check_barrier(&mut self, primary: NodeId) {
        let Some(rule) = self.store.rule().filter(|rule| rule.leader == primary) else { return };
        let shown = self.node(primary).shown;
        let Some(last) = shown.checked_sub(1).and_then(|at| self.node(primary).wal.get(at)).map(|e| e.id) else {
            return;
        };
        let holders = rule.cohort.iter().filter(|node| self.node(*node).holds(last)).count();
        if holders < rule.k as usize {
            self.violation(format!("{primary} was opened while {holders} of {} hold what it shows", rule.k));
        }
    }

    /// What the operator (or the node's agent) does with a node that cannot follow: makes it anew from the leader, or
    /// from the node that was promoted and waits for its commit point.
    pub(crate) fn rejoin_strays(&mut self) {
        let intent = self.store.record.as_ref().and_then(|record| record.intent);
        let promoted = intent.map(|intent| intent.node);
        let Some(source) = promoted.or(self.store.leader()) else { return };
        if self.node(source).power != Power::Up || self.node(source).recovery {
            return;
        }
        for node in (0..self.nodes.len() as u8).map(NodeId).filter(|node| *node != source) {
            let postgres = self.node(node);
            // PostgreSQL's own test would let a node of an abandoned history with the same timeline number pass.
            let lost = !postgres.recovery || !postgres.is_prefix_of(self.node(source));
            // Whoever still follows this node would stream its new content on top of the abandoned one.
            let followed = self.nodes.iter().any(|other| other.upstream == Upstream::Node(node) && other.recovery);
            if postgres.power == Power::Up && lost && !followed {
                let copy = self.node(source).clone();
                self.node_mut(node).clone_from_leader(&copy, source);
            }
        }
    }
}
