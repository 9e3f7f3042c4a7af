//! Every order of events in a three-node cluster (`ANY 1` of two standbys), to a stated depth: the real coordinator, and at
//! each moment every probe, every order carried out, failed or with its answer lost, every replicated record, every
//! crash and return that the budget allows. A violation comes with the shortest way to it.

mod model;

use std::collections::hash_map::DefaultHasher;
use std::collections::{BTreeMap, HashSet, VecDeque};
use std::fmt::{self, Write as _};
use std::hash::Hasher;

use decision::{Action, Coordinator, Event, Millis, NodeId, Policy, Switchover};
use model::{Answer, Lie, Power, World, failure, node_of};

/// What may go wrong, in all.
#[derive(Debug, Clone, Copy)]
struct Budget {
    crashes: u8,
    returns: u8,
    failures: u8,
    writes: u8,
    ticks: u8,
}

/// One process and its orders.
#[derive(Debug, Clone)]
struct Process {
    coordinator: Coordinator,
    orders: BTreeMap<Option<NodeId>, VecDeque<Action>>,
}

#[derive(Debug, Clone)]
struct State {
    world: World,
    processes: Vec<Process>,
    /// Client writes without an answer.
    pending: Vec<(NodeId, u64)>,
    /// Orders begun that wait for an acknowledgement: process, node, write, answer.
    waiting: Vec<(usize, NodeId, u64, Event, Action)>,
    budget: Budget,
    now: u64,
    lie: Option<Lie>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Choice {
    Probe(usize, NodeId),
    Run(usize, Option<NodeId>),
    Fail(usize, Option<NodeId>),
    LoseAnswer(usize, Option<NodeId>),
    Acknowledged(usize),
    TimedOut(usize),
    Replicate(NodeId),
    Write(NodeId),
    Crash(NodeId),
    Return(NodeId),
    Tick,
}

/// Feeds what `Debug` prints into a hash without making a string.
struct Hashed(DefaultHasher);

impl fmt::Write for Hashed {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        self.0.write(text.as_bytes());
        Ok(())
    }
}

impl State {
    fn new(processes: usize, budget: Budget) -> Self {
        let world = World::new(3, 1, false);
        let policy =
            Policy { refusals: 1, silences: 1, leftover_grace: Millis(0), retry: Millis(100), ..Policy::default() };
        let make = |_| Process {
            coordinator: Coordinator::new(policy.clone(), world.members(), world.store.record.clone()),
            orders: BTreeMap::new(),
        };
        let processes = (0..processes).map(make).collect();
        let mut state = Self { world, processes, pending: Vec::new(), waiting: Vec::new(), budget, now: 0, lie: None };
        state.settle();
        state
    }

    /// Everybody has looked at everything and the primary is open; then a write reaches one standby and the primary dies.
    fn settle(&mut self) {
        for p in 0..self.processes.len() {
            for node in nodes() {
                self.take(Choice::Probe(p, node));
            }
            while let Some(queue) = self.queues(p).first().copied() {
                self.take(Choice::Run(p, queue));
                nodes().for_each(|node| self.take(Choice::Replicate(node)));
                while !self.waiting.is_empty() {
                    self.take(Choice::Acknowledged(0));
                }
            }
            assert_eq!(self.processes[p].coordinator.phase(), "serving");
        }
        self.take(Choice::Write(NodeId(0)));
        self.take(Choice::Replicate(NodeId(2)));
        self.take(Choice::Write(NodeId(0)));
    }

    fn fingerprint(&self) -> u64 {
        let mut hashed = Hashed(DefaultHasher::new());
        write!(hashed, "{self:?}").expect("hashing does not fail");
        hashed.0.finish()
    }

    fn queues(&self, p: usize) -> Vec<Option<NodeId>> {
        let idle =
            |queue: &Option<NodeId>| !self.waiting.iter().any(|(of, node, ..)| *of == p && Some(*node) == *queue);
        let orders = self.processes[p].orders.iter();
        orders.filter(|(_, orders)| !orders.is_empty()).map(|(queue, _)| *queue).filter(idle).collect()
    }

    fn choices(&self) -> Vec<Choice> {
        let mut all = Vec::new();
        for p in 0..self.processes.len() {
            all.extend(nodes().map(|node| Choice::Probe(p, node)));
            for queue in self.queues(p) {
                all.push(Choice::Run(p, queue));
                if self.budget.failures > 0 {
                    all.extend([Choice::Fail(p, queue), Choice::LoseAnswer(p, queue)]);
                }
            }
        }
        for (at, (_, node, write, ..)) in self.waiting.iter().enumerate() {
            match self.world.is_safe(*node, *write) {
                Some(true) => all.push(Choice::Acknowledged(at)),
                _ => all.push(Choice::TimedOut(at)),
            }
        }
        let up = |node: &NodeId| self.world.node(*node).power == Power::Up;
        all.extend(nodes().filter(up).map(Choice::Replicate));
        if self.budget.writes > 0 {
            all.extend(
                nodes().filter(|n| up(n) && !self.world.node(*n).recovery && self.may_write(*n)).map(Choice::Write),
            );
        }
        if self.budget.crashes > 0 {
            all.extend(nodes().filter(up).map(Choice::Crash));
        }
        if self.budget.returns > 0 {
            all.extend(nodes().filter(|node| !up(node)).map(Choice::Return));
        }
        if self.budget.ticks > 0 {
            all.push(Choice::Tick);
        }
        all
    }

    /// A session that knows this node as primary: announced to it, or from before.
    fn may_write(&self, node: NodeId) -> bool {
        let row = self.world.node(node).row();
        row.is_some_and(|row| self.world.store.published.contains(&(row.term, node)))
    }

    fn take(&mut self, choice: Choice) {
        match choice {
            Choice::Probe(p, node) => {
                let contact = self.world.report(node);
                self.tell(p, Event::Probed { node, contact });
            }
            Choice::Run(p, queue) => self.run(p, queue),
            Choice::Fail(p, queue) | Choice::LoseAnswer(p, queue) => {
                self.budget.failures -= 1;
                let Some(action) = self.next(p, queue) else { return };
                if choice == Choice::LoseAnswer(p, queue) {
                    self.carry_out(&action, queue);
                }
                if let Some(event) = failure(&action, self.lie) {
                    self.tell(p, event);
                }
            }
            Choice::Acknowledged(at) => {
                let (p, _, _, event, _) = self.waiting.remove(at);
                self.tell(p, event);
            }
            Choice::TimedOut(at) => {
                let (p, _, _, _, action) = self.waiting.remove(at);
                if let Some(event) = failure(&action, self.lie) {
                    self.tell(p, event);
                }
            }
            Choice::Replicate(node) => {
                if let Some((at, flushed)) = self.world.replicate(node, 1) {
                    self.world.take_ack(at, node, flushed);
                }
            }
            Choice::Write(node) => {
                self.budget.writes = self.budget.writes.saturating_sub(1);
                let id = self.world.write(node, None);
                self.pending.push((node, id));
            }
            Choice::Crash(node) => {
                self.budget.crashes -= 1;
                self.world.node_mut(node).crash();
                self.pending.retain(|(at, _)| *at != node);
            }
            Choice::Return(node) => {
                self.budget.returns -= 1;
                self.world.node_mut(node).restart();
            }
            Choice::Tick => {
                self.budget.ticks -= 1;
                self.now += 500;
                (0..self.processes.len()).for_each(|p| self.tell(p, Event::Tick));
            }
        }
        self.acknowledge();
    }

    fn acknowledge(&mut self) {
        for (node, id) in std::mem::take(&mut self.pending) {
            if self.world.is_safe(node, id) == Some(true) {
                self.world.acknowledge(node, id);
            } else {
                self.pending.push((node, id));
            }
        }
    }

    fn next(&mut self, p: usize, queue: Option<NodeId>) -> Option<Action> {
        self.processes[p].orders.get_mut(&queue)?.pop_front()
    }

    fn run(&mut self, p: usize, queue: Option<NodeId>) {
        let Some(action) = self.next(p, queue) else { return };
        let Some(node) = queue else {
            let event = self.world.store.execute(&action);
            self.world.check_leader();
            return self.tell(p, event);
        };
        if self.world.node(node).power != Power::Up {
            return failure(&action, self.lie).map_or((), |event| self.tell(p, event));
        }
        match self.world.execute(&action, self.lie) {
            Answer::Now(Some(event)) => self.tell(p, event),
            Answer::Now(None) => {}
            Answer::When(write, event) => self.waiting.push((p, node, write, event, action)),
            Answer::Promoting(event) => {
                self.world.node_mut(node).promote();
                self.tell(p, event);
            }
        }
    }

    /// Without anybody hearing of it.
    fn carry_out(&mut self, action: &Action, queue: Option<NodeId>) {
        let Some(node) = queue else {
            self.world.store.execute(action);
            return self.world.check_leader();
        };
        let up = self.world.node(node).power == Power::Up;
        if up && let Answer::Promoting(_) = self.world.execute(action, self.lie) {
            self.world.node_mut(node).promote();
        }
    }

    fn tell(&mut self, p: usize, event: Event) {
        let opened = self.processes[p].coordinator.view().map_or(0, |view| view.epoch);
        for action in self.processes[p].coordinator.step(Millis(self.now), event) {
            match action {
                Action::Announce(view) => {
                    self.world.check_view(&view);
                    if let (Some(primary), true) = (view.primary, view.epoch > opened) {
                        self.world.check_barrier(primary);
                    }
                }
                Action::ProbeNow { .. } | Action::Checkpoint { .. } | Action::Quarantine { .. } | Action::Tell(_) => {}
                action => self.processes[p].orders.entry(node_of(&action)).or_default().push_back(action),
            }
        }
    }
}

fn nodes() -> impl Iterator<Item = NodeId> {
    (0..3).map(NodeId)
}

/// Breadth first, each state once. Returns how many states there were and how many of them had a new primary open.
///
/// # Errors
/// The first violation and the shortest way to it.
fn search(start: State, depth: usize) -> Result<(usize, usize), String> {
    let mut seen = HashSet::from([start.fingerprint()]);
    let mut ways: Vec<(usize, Option<Choice>)> = vec![(0, None)];
    let mut layer = vec![(start, 0)];
    let mut reopened = 0;
    for _ in 0..depth {
        let mut next = Vec::new();
        for (state, way) in layer {
            for choice in state.choices() {
                let mut after = state.clone();
                after.take(choice);
                if !seen.insert(after.fingerprint()) {
                    continue;
                }
                ways.push((way, Some(choice)));
                let here = ways.len() - 1;
                if let Some(violation) = after.world.violations.first() {
                    return Err(format!("{violation}\n{}", path(&ways, here)));
                }
                let open =
                    |p: &Process| p.coordinator.view().is_some_and(|v| v.primary.is_some_and(|n| n != NodeId(0)));
                reopened += usize::from(after.processes.iter().any(open));
                next.push((after, here));
            }
        }
        layer = next;
    }
    Ok((seen.len(), reopened))
}

fn path(ways: &[(usize, Option<Choice>)], mut at: usize) -> String {
    let mut steps = Vec::new();
    while let (before, Some(choice)) = ways[at] {
        steps.push(format!("{choice:?}"));
        at = before;
    }
    steps.reverse();
    steps.join("\n")
}

/// The primary is dead and everybody knows.
fn after_the_kill(processes: usize, budget: Budget) -> State {
    let mut start = State::new(processes, Budget { crashes: budget.crashes + 1, ..budget });
    start.take(Choice::Crash(NodeId(0)));
    for p in 0..processes {
        start.take(Choice::Probe(p, NodeId(0)));
        assert_eq!(start.processes[p].coordinator.phase(), "claiming");
    }
    start
}

/// An undisturbed failover by the first process, up to its arrival in this phase.
fn up_to(phase: &str, processes: usize, budget: Budget) -> State {
    advance(after_the_kill(processes, budget), phase)
}

/// A switchover by the first process, with the primary well, up to its arrival in this phase.
fn switching_up_to(phase: &str, processes: usize, budget: Budget) -> State {
    let mut state = State::new(processes, budget);
    let plan = Switchover { to: None, max_wait: Millis(500), end_transactions: false };
    state.tell(0, Event::SwitchoverAsked(plan));
    assert_eq!(state.processes[0].coordinator.phase(), "claiming");
    advance(state, phase)
}

fn advance(mut state: State, phase: &str) -> State {
    for _ in 0..100 {
        if state.processes[0].coordinator.phase() == phase {
            return state;
        }
        match state.queues(0).first().copied() {
            Some(queue) => state.take(Choice::Run(0, queue)),
            None => nodes().for_each(|node| {
                state.take(Choice::Replicate(node));
                if phase == "fencing" || state.processes[0].coordinator.phase() == "handing" {
                    state.take(Choice::Probe(0, node));
                }
            }),
        }
        let safe = |(_, node, write, ..): &(usize, NodeId, u64, Event, Action)| {
            state.world.is_safe(*node, *write) == Some(true)
        };
        if let Some(at) = state.waiting.iter().position(safe) {
            state.take(Choice::Acknowledged(at));
        }
    }
    panic!("no {phase}: {}", state.processes[0].coordinator.phase());
}

const PHASES: [&str; 7] = ["claiming", "fencing", "intending", "promoting", "committing", "publishing", "serving"];

/// From each phase on, with one more crash, one return, one failed or lost order, writes and time.
#[test]
fn one_process_from_every_phase() {
    let budget = Budget { crashes: 1, returns: 1, failures: 1, writes: 1, ticks: 1 };
    for phase in PHASES {
        let (states, _) = search(up_to(phase, 1, budget), 5).unwrap();
        println!("one process from {phase}: {states} states to depth 5");
        assert!(states > 500, "{phase}: {states}");
    }
}

/// The primary lives on, in the middle of being replaced, and may die at any moment of it.
#[test]
fn a_switchover_from_every_phase() {
    let budget = Budget { crashes: 1, returns: 1, failures: 1, writes: 1, ticks: 1 };
    for phase in ["claiming", "handing", "fencing", "intending", "promoting", "committing", "publishing"] {
        let (states, _) = search(switching_up_to(phase, 1, budget), 5).unwrap();
        println!("switchover, one process from {phase}: {states} states to depth 5");
        assert!(states > 500, "{phase}: {states}");
    }
    let budget = Budget { failures: 0, ..budget };
    for phase in ["handing", "promoting"] {
        let (states, _) = search(switching_up_to(phase, 2, budget), 4).unwrap();
        println!("switchover, two processes from {phase}: {states} states to depth 4");
        assert!(states > 500, "{phase}: {states}");
    }
}

/// The second process believes that it has to act as well.
#[test]
fn two_processes_from_every_phase() {
    let budget = Budget { crashes: 1, returns: 1, failures: 0, writes: 1, ticks: 1 };
    for phase in PHASES {
        let (states, _) = search(up_to(phase, 2, budget), 4).unwrap();
        println!("two processes from {phase}: {states} states to depth 4");
        assert!(states > 500, "{phase}: {states}");
    }
}

/// Without further faults, all the way to a new primary.
#[test]
fn one_process_to_the_new_primary() {
    let budget = Budget { crashes: 0, returns: 0, failures: 0, writes: 1, ticks: 0 };
    let (states, reopened) = search(after_the_kill(1, budget), 16).unwrap();
    println!("one process, no more faults: {states} states to depth 16, {reopened} with a new primary open");
    assert!(reopened > 0, "no way leads to a new primary in {states} states");
}

/// The second standby holds the only copy of an acknowledged commit and dies too; the driver says that it is fenced.
#[test]
fn unreachable_counted_as_fenced_is_found() {
    let budget = Budget { crashes: 1, returns: 0, failures: 0, writes: 0, ticks: 0 };
    let mut start = after_the_kill(1, budget);
    start.lie = Some(Lie::UnreachableIsFenced);
    let way = search(start, 12).expect_err("a lost commit");
    println!("{way}");
    assert!(way.contains("does not hold"), "{way}");
}
