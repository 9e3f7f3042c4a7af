//! What the processes of pgsteady do: look, decide, give orders one after the other, and hear how they ended.

use std::collections::VecDeque;

use decision::{Action, Contact, Event, Millis, NodeId, View};

use super::super::orders::node_of;
use super::super::{Answer, Power, failure};
use super::{ORDER_TIME_OUT, Queue, Simulation, Task, Wait, name_of};

impl Simulation {
    /// Whether the process's word reaches the node's PostgreSQL.
    pub(super) fn reaches(&self, p: usize, node: NodeId) -> bool {
        !self.processes[p].cut.contains(&node)
    }

    pub(super) fn probe(&mut self, p: usize, node: NodeId, life: u32) {
        if self.lives(p, life) {
            let delay = 1 + self.dice.below(4);
            self.at(delay, Task::Read(p, node), life);
            let next = 60 + self.dice.below(40);
            self.at(next, Task::Probe(p, node), life);
        }
    }

    pub(super) fn read(&mut self, p: usize, node: NodeId, life: u32) {
        if !self.lives(p, life) {
            return;
        }
        let mut contact = if self.reaches(p, node) { self.world.report(node) } else { Contact::Silent };
        if self.in_faults() && self.dice.percent(1) {
            contact = Contact::LoginFailed("too many connections".to_owned());
        }
        let slow = if self.dice.percent(5) { 80 } else { 5 };
        let delay = if contact == Contact::Silent { 40 } else { 1 + self.dice.below(slow) };
        self.at(delay, Task::Deliver(p, Event::Probed { node, contact }, None), life);
    }

    pub(super) fn deliver(&mut self, p: usize, event: Event, frees: Option<Queue>) {
        if self.processes[p].paused {
            self.processes[p].inbox.push_back((self.now, event, frees));
            return;
        }
        let quiet = matches!(event, Event::Tick | Event::Probed { contact: Contact::Reached(_), .. });
        if !quiet {
            self.say(|| format!("p{p} <- {event:?}"));
        }
        let before = self.processes[p].coordinator.phase();
        let actions = self.processes[p].coordinator.step(Millis(self.now), event);
        let after = self.processes[p].coordinator.phase();
        if before != after {
            self.say(|| format!("p{p} {before} => {after}"));
        }
        if let Some(queue) = frees {
            self.free(p, queue);
        }
        for action in actions {
            self.order(p, action);
        }
    }

    pub(super) fn free(&mut self, p: usize, queue: Queue) {
        self.processes[p].busy.remove(&queue);
        self.start(p, queue);
    }

    pub(super) fn order(&mut self, p: usize, action: Action) {
        self.say(|| format!("p{p} -> {action:?}"));
        let life = self.processes[p].life;
        if self.trace.is_some() {
            self.ordered.push((name_of(&action), node_of(&action)));
        }
        match action {
            Action::Announce(view) => self.announced(p, view),
            Action::Tell(verdict) => self.verdicts.push(verdict),
            Action::ProbeNow { node } => self.at(1, Task::Read(p, node), life),
            Action::Checkpoint { .. } | Action::Quarantine { .. } => {}
            action => {
                let queue = node_of(&action).map_or(Queue::Store, Queue::Node);
                self.processes[p].orders.entry(queue).or_default().push_back(action);
                self.start(p, queue);
            }
        }
    }

    pub(super) fn announced(&mut self, p: usize, view: View) {
        if self.policy.managed == decision::Managed::Pgsteady {
            self.world.check_view(&view);
        }
        let before = self.processes[p].view.as_ref().map_or(0, |view| view.epoch);
        if let (Some(primary), true) = (view.primary, view.epoch != before) {
            self.world.check_barrier(primary);
        }
        if view.epoch < before {
            self.world.violation(format!("epoch went back from {before} to {}", view.epoch));
        }
        let primary_before = self.processes[p].view.as_ref().and_then(|view| view.primary);
        if view.epoch == before && view.primary.is_some() && view.primary != primary_before {
            self.world.violation("a primary was opened without a new epoch".to_owned());
        }
        self.processes[p].view = Some(view);
    }

    pub(super) fn start(&mut self, p: usize, queue: Queue) {
        let process = &mut self.processes[p];
        let waiting = process.orders.get(&queue).is_some_and(|orders| !orders.is_empty());
        if waiting && process.busy.insert(queue) {
            let life = process.life;
            let delay = 1 + self.dice.below(if self.in_faults() { 25 } else { 4 });
            self.at(delay, Task::Run(p, queue), life);
        }
    }

    pub(super) fn run_order(&mut self, p: usize, queue: Queue, life: u32) {
        if !self.lives(p, life) {
            return;
        }
        if self.processes[p].paused {
            self.at(20, Task::Run(p, queue), life); // not begun: it happens after the pause
            return;
        }
        let Some(action) = self.processes[p].orders.get_mut(&queue).and_then(VecDeque::pop_front) else { return };
        let lost = self.in_faults() && self.dice.percent(3);
        if let Some(carried_out) = self.sabotaged(&action) {
            if carried_out {
                self.world.execute(&action, None);
            }
            self.answer(p, ORDER_TIME_OUT, failure(&action, None), queue);
            return;
        }
        match queue {
            Queue::Store => self.run_store(p, &action, lost),
            Queue::Node(node) => self.run_on_node(p, node, &action, lost),
        }
    }

    pub(super) fn sabotaged(&mut self, action: &Action) -> Option<bool> {
        if self.sabotage.is_empty() {
            return None;
        }
        let node = node_of(action)?;
        let name = name_of(action);
        let at = self.sabotage.iter().position(|(what, whom, _)| *what == name && *whom == node)?;
        Some(self.sabotage.remove(at).2)
    }

    pub(super) fn answer(&mut self, p: usize, delay: u64, event: Option<Event>, queue: Queue) {
        let life = self.processes[p].life;
        match event {
            Some(event) => self.at(delay, Task::Deliver(p, event, Some(queue)), life),
            None => self.at(delay, Task::Free(p, queue), life),
        }
    }

    pub(super) fn run_store(&mut self, p: usize, action: &Action, lost: bool) {
        let failed = failure(action, None);
        if self.processes[p].store_cut {
            self.answer(p, 100, failed, Queue::Store);
            return;
        }
        let event = self.world.store.execute(action);
        if matches!(event, Event::Published { .. }) {
            self.world.check_leader();
        }
        if self.plan.shared && matches!(event, Event::Published { .. } | Event::TermClaimed { .. }) {
            self.tell_others(p);
        }
        let (delay, event) = if lost { (100, failed) } else { (1 + self.dice.below(10), Some(event)) };
        self.answer(p, delay, event, Queue::Store);
    }

    pub(super) fn run_on_node(&mut self, p: usize, node: NodeId, action: &Action, lost: bool) {
        let failed = failure(action, self.plan.lie);
        let queue = Queue::Node(node);
        if !self.reaches(p, node) || self.world.node(node).power != Power::Up {
            let quick = self.world.node(node).power == Power::Down && self.reaches(p, node);
            self.answer(p, if quick { 2 } else { ORDER_TIME_OUT }, failed, queue);
            return;
        }
        let life = self.processes[p].life;
        let incarnation = self.world.node(node).incarnation;
        match self.world.execute(action, self.plan.lie) {
            Answer::Now(event) => {
                let (delay, event) = if lost { (ORDER_TIME_OUT, failed) } else { (1 + self.dice.below(5), event) };
                self.answer(p, delay, event, queue);
            }
            Answer::When(write, event) => {
                self.sequence += 1;
                let number = self.sequence;
                let event = if lost { failed.clone().unwrap_or(event) } else { event };
                let at = self.world.node(node).wal.len();
                self.waits.push(Wait { number, node, incarnation, write, at, order: Some((p, event, failed)) });
                self.at(ORDER_TIME_OUT, Task::TimeOut(number), life);
            }
            Answer::Promoting(event) => {
                let delay = 5 + self.dice.below(if self.in_faults() { 300 } else { 30 });
                let done = if lost || delay > 250 {
                    self.answer(p, 250, failed, queue);
                    None
                } else {
                    Some((p, event))
                };
                self.at(delay, Task::Promotion { node, incarnation, done }, life);
            }
        }
    }

    /// The store's watch: the others hear of the record as it is.
    fn tell_others(&mut self, p: usize) {
        for other in (0..self.plan.processes).filter(|other| *other != p) {
            if self.processes[other].store_cut {
                continue;
            }
            let (life, delay) = (self.processes[other].life, 1 + self.dice.below(10));
            let record = self.world.store.record.clone();
            self.at(delay, Task::Deliver(other, Event::StoreRead { record }, None), life);
        }
    }

    /// Renews the lease or takes a free one. Who cannot reach the store finds by its own clock that it has lost it; who was
    /// stopped learns of it late, and goes on with what it believed meanwhile.
    pub(super) fn keep_lease(&mut self, p: usize, life: u32) {
        if !self.lives(p, life) {
            return;
        }
        self.at(LEASE_EVERY, Task::Lease(p), life);
        let process = &self.processes[p];
        if process.paused {
            return;
        }
        let before = process.leased_until;
        let free = self.lease.is_none_or(|(holder, until)| holder == p || until <= self.now);
        let until = if process.store_cut {
            before.filter(|until| *until > self.now)
        } else if free {
            self.lease = Some((p, self.now + LEASE));
            Some(self.now + LEASE)
        } else {
            None
        };
        self.processes[p].leased_until = until;
        if before.is_some() != until.is_some() {
            self.deliver(p, Event::Lease { held: until.is_some() }, None);
        }
    }
}

/// How long a lease lasts, and how often it is renewed.
const LEASE: u64 = 400;
const LEASE_EVERY: u64 = 100;
