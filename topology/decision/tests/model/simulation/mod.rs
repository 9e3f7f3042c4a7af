//! The world under a seeded scheduler: coordinators with delays, pauses, lost answers and lost memories; nodes that
//! crash, freeze and lose links; clients that write all the time. Everything follows from the seed.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use decision::{Action, Coordinator, Durability, Event, Millis, NodeId, Policy, Verdict, View};

use super::{Lie, Postgres, Power, World};

mod faults;
mod processes;
pub(crate) mod script;

/// A small, good generator (splitmix64).
#[derive(Debug, Clone)]
pub(crate) struct Dice(pub(crate) u64);

impl Dice {
    pub(crate) fn roll(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ (z >> 31)
    }

    /// Below `n`.
    pub(crate) fn below(&mut self, n: u64) -> u64 {
        self.roll() % n.max(1)
    }

    pub(crate) fn percent(&mut self, chance: u64) -> bool {
        self.below(100) < chance
    }
}

#[derive(Debug, Clone)]
enum Task {
    Tick(usize),
    Probe(usize, NodeId),
    Read(usize, NodeId),
    /// `frees`: the queue whose order it answers.
    Deliver(usize, Event, Option<Queue>),
    Run(usize, Queue),
    Free(usize, Queue),
    TimeOut(u64),
    Replicate(NodeId),
    Ack {
        at: NodeId,
        from: NodeId,
        flushed: usize,
        incarnation: u64,
    },
    Promotion {
        node: NodeId,
        incarnation: u64,
        done: Option<(usize, Event)>,
    },
    Client(usize),
    Rogue,
    Fault,
    Started(NodeId, u64),
    Rejoin,
    Lease(usize),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Queue {
    Store,
    Node(NodeId),
}

/// One pgsteady process.
#[derive(Debug)]
struct Process {
    coordinator: Coordinator,
    /// Counts lives: what belongs to an earlier one is dropped.
    life: u32,
    alive: bool,
    paused: bool,
    inbox: VecDeque<(u64, Event, Option<Queue>)>,
    orders: BTreeMap<Queue, VecDeque<Action>>,
    busy: BTreeSet<Queue>,
    cut: BTreeSet<NodeId>,
    store_cut: bool,
    view: Option<View>,
    /// Until when it believes that it has the lease.
    leased_until: Option<u64>,
}

#[derive(Debug, Clone)]
struct Wait {
    number: u64,
    node: NodeId,
    incarnation: u64,
    write: u64,
    /// Where it is in that node's WAL.
    at: usize,
    /// A coordinator's order (process, success, failure), or a client.
    order: Option<(usize, Event, Option<Event>)>,
}

/// What one seed is made of.
#[derive(Debug, Clone)]
pub(crate) struct Plan {
    pub(crate) nodes: u8,
    pub(crate) k: u32,
    pub(crate) processes: usize,
    pub(crate) durability: Durability,
    pub(crate) lie: Option<Lie>,
    /// Processes share a store with a lease and a watch.
    pub(crate) shared: bool,
    /// Milliseconds of faults, then of peace.
    pub(crate) faults_until: u64,
    pub(crate) end: u64,
}

/// What came of it.
#[derive(Debug)]
pub(crate) struct Outcome {
    pub(crate) violations: Vec<String>,
    pub(crate) promotions: u32,
    pub(crate) acknowledged: usize,
    pub(crate) acknowledged_in_peace: usize,
    pub(crate) open: bool,
    /// Switchovers that were done, and that were asked for.
    pub(crate) switched: (usize, usize),
    pub(crate) last_reason: String,
    pub(crate) trace: Vec<String>,
}

pub(crate) struct Simulation {
    plan: Plan,
    dice: Dice,
    now: u64,
    sequence: u64,
    tasks: BTreeMap<(u64, u64), (Task, u32)>,
    world: World,
    processes: Vec<Process>,
    waits: Vec<Wait>,
    in_peace: usize,
    trace: Option<Vec<String>>,
    /// Orders that a scenario wants to fail: name, node, whether they are carried out all the same.
    sabotage: Vec<(String, NodeId, bool)>,
    /// Every order given, by name and node.
    ordered: Vec<(String, Option<NodeId>)>,
    policy: Policy,
    /// What operators were told.
    verdicts: Vec<Verdict>,
    /// Who has the lease, and until when.
    lease: Option<(usize, u64)>,
}

pub(crate) fn policy(plan: &Plan) -> Policy {
    Policy {
        k: plan.k,
        durability: plan.durability,
        shared: plan.shared,
        crash_restart_grace: Millis(600),
        partition_grace: Millis(500),
        stall_grace: Millis(500),
        fresh: Millis(300),
        fence_timeout: Millis(1_200),
        retry: Millis(100),
        retry_max: Millis(1_000),
        relax_after: Millis(1_000),
        shrink_after: Millis(1_500),
        settle: Millis(300),
        leftover_grace: Millis(500),
        quarantine_every: Millis(500),
        ..Policy::default()
    }
}

/// The first word of an order, in small letters: "fence", "writeterm".
fn name_of(action: &Action) -> String {
    let text = format!("{action:?}");
    text.split(|c: char| !c.is_alphanumeric()).next().unwrap_or_default().to_lowercase()
}

const ORDER_TIME_OUT: u64 = 400;

impl Simulation {
    pub(crate) fn run(seed: u64, plan: Plan, trace: bool) -> Outcome {
        let mut world = World::new(plan.nodes, plan.k, false);
        world.store.no_compare = plan.lie == Some(Lie::NoCompareAndSet);
        let mut dice = Dice(seed);
        dice.roll();
        let mut simulation = Self {
            dice,
            now: 0,
            sequence: 0,
            tasks: BTreeMap::new(),
            world,
            processes: Vec::new(),
            waits: Vec::new(),
            in_peace: 0,
            trace: trace.then(Vec::new),
            sabotage: Vec::new(),
            ordered: Vec::new(),
            policy: policy(&plan),
            verdicts: Vec::new(),
            lease: None,
            plan,
        };
        simulation.begin();
        simulation.at(700, Task::Fault, 0);
        simulation.at(300, Task::Rogue, 0);
        simulation.at(2_000, Task::Rejoin, 0);
        simulation.go();
        simulation.outcome()
    }

    fn begin(&mut self) {
        for p in 0..self.plan.processes {
            let record = self.world.store.record.clone();
            let coordinator = Coordinator::new(self.policy.clone(), self.world.members(), record);
            self.processes.push(Process {
                coordinator,
                life: 0,
                alive: true,
                paused: false,
                inbox: VecDeque::new(),
                orders: BTreeMap::new(),
                busy: BTreeSet::new(),
                cut: BTreeSet::new(),
                store_cut: false,
                view: None,
                leased_until: None,
            });
            self.begin_process(p);
            self.at(50, Task::Client(p), 0);
        }
        for node in self.all_nodes() {
            self.at(5, Task::Replicate(node), 0);
        }
    }

    fn begin_process(&mut self, p: usize) {
        let life = self.processes[p].life;
        self.at(1, Task::Tick(p), life);
        if self.plan.shared {
            self.at(1, Task::Lease(p), life);
        }
        for node in self.all_nodes() {
            self.at(2, Task::Probe(p, node), life);
        }
    }

    fn all_nodes(&self) -> Vec<NodeId> {
        (0..self.plan.nodes).map(NodeId).collect()
    }

    fn at(&mut self, delay: u64, task: Task, life: u32) {
        self.sequence += 1;
        self.tasks.insert((self.now + delay, self.sequence), (task, life));
    }

    fn say(&mut self, line: impl FnOnce() -> String) {
        let now = self.now;
        if let Some(trace) = &mut self.trace {
            trace.push(format!("{now:>6} {}", line()));
        }
    }

    fn go(&mut self) {
        while let Some(((time, _), (task, life))) = self.tasks.pop_first() {
            if time > self.plan.end || !self.world.violations.is_empty() {
                return;
            }
            self.now = time;
            self.perform(task, life);
            self.check_waits();
        }
    }

    fn in_faults(&self) -> bool {
        self.now < self.plan.faults_until
    }

    fn perform(&mut self, task: Task, life: u32) {
        match task {
            Task::Tick(p) => {
                if self.lives(p, life) {
                    self.deliver(p, Event::Tick, None);
                    self.at(50, Task::Tick(p), life);
                }
            }
            Task::Probe(p, node) => self.probe(p, node, life),
            Task::Read(p, node) => self.read(p, node, life),
            Task::Deliver(p, event, frees) => {
                if self.lives(p, life) {
                    self.deliver(p, event, frees);
                }
            }
            Task::Run(p, queue) => self.run_order(p, queue, life),
            Task::Free(p, queue) => {
                if self.lives(p, life) {
                    self.free(p, queue);
                }
            }
            Task::TimeOut(number) => self.time_out(number),
            Task::Replicate(node) => self.replicate(node),
            Task::Ack { at, from, flushed, incarnation } => {
                if self.world.node(at).incarnation == incarnation && !self.world.is_cut(at, from) {
                    self.world.take_ack(at, from, flushed);
                }
            }
            Task::Promotion { node, incarnation, done } => self.finish_promotion(node, incarnation, done, life),
            Task::Client(p) => self.client(p),
            Task::Rogue => self.rogue(),
            Task::Fault => self.fault(),
            Task::Started(node, incarnation) => {
                if self.world.node(node).power == Power::Starting && self.world.node(node).incarnation == incarnation {
                    self.world.node_mut(node).restart();
                }
            }
            Task::Lease(p) => self.keep_lease(p, life),
            Task::Rejoin => {
                if self.dice.percent(60) || !self.in_faults() {
                    self.world.rejoin_strays();
                }
                self.at(1_000, Task::Rejoin, 0);
            }
        }
    }

    fn lives(&self, p: usize, life: u32) -> bool {
        self.processes[p].alive && self.processes[p].life == life
    }

    fn finish_promotion(&mut self, node: NodeId, incarnation: u64, done: Option<(usize, Event)>, life: u32) {
        let postgres = self.world.node_mut(node);
        let goes_on = postgres.incarnation == incarnation && postgres.promoting;
        if goes_on && postgres.power == Power::Up {
            postgres.promote();
            self.world.promotions += 1;
            self.say(|| format!("{node} promoted"));
        } else if goes_on {
            self.at(100, Task::Promotion { node, incarnation, done: None }, life); // frozen: goes on when thawed
        }
        let Some((p, event)) = done else { return };
        let Event::Promoted { term, .. } = event else { return };
        let success = goes_on && self.world.node(node).power == Power::Up;
        let event = if success { event } else { Event::PromoteFailed { node, term, why: "it went away".to_owned() } };
        if self.lives(p, life) {
            self.deliver(p, event, Some(Queue::Node(node)));
        }
    }

    fn check_waits(&mut self) {
        let mut left = Vec::new();
        for wait in std::mem::take(&mut self.waits) {
            let postgres = self.world.node(wait.node);
            if postgres.incarnation != wait.incarnation || postgres.power == Power::Down {
                if let Some((p, _, failed)) = wait.order {
                    self.answer(p, 1, failed, Queue::Node(wait.node));
                }
                continue;
            }
            if postgres.power != Power::Up || !self.world.is_safe_at(wait.node, wait.write, wait.at) {
                left.push(wait);
                continue;
            }
            match wait.order {
                Some((p, event, _)) => self.answer(p, 1, Some(event), Queue::Node(wait.node)),
                None => {
                    self.world.acknowledge(wait.node, wait.write);
                    self.in_peace += usize::from(self.now > self.plan.faults_until);
                }
            }
        }
        self.waits.append(&mut left);
    }

    /// The driver gives up; PostgreSQL goes on waiting. Answers belong to the life that ordered.
    fn time_out(&mut self, number: u64) {
        let Some(at) = self.waits.iter().position(|wait| wait.number == number) else { return };
        let wait = self.waits.remove(at);
        if let Some((p, _, failed)) = wait.order {
            self.answer(p, 1, failed, Queue::Node(wait.node));
        }
    }

    fn replicate(&mut self, node: NodeId) {
        let most = 1 + self.dice.below(4) as usize;
        let skip = self.in_faults() && self.dice.percent(20);
        if let Some((at, flushed)) = (!skip).then(|| self.world.replicate(node, most)).flatten() {
            let incarnation = self.world.node(at).incarnation;
            let delay = 1 + self.dice.below(30);
            self.at(delay, Task::Ack { at, from: node, flushed, incarnation }, 0);
        }
        let next = 5 + self.dice.below(15);
        self.at(next, Task::Replicate(node), 0);
    }

    fn client(&mut self, p: usize) {
        let next = 20 + self.dice.below(60);
        self.at(next, Task::Client(p), 0);
        let process = &self.processes[p];
        let primary = process.view.as_ref().and_then(|view| view.primary);
        let Some(primary) = primary.filter(|_| process.alive && !process.paused) else { return };
        if self.reaches(p, primary) {
            self.write(primary);
        }
    }

    /// A session that was opened earlier goes on with the node it knows.
    fn rogue(&mut self) {
        let node = NodeId(self.dice.below(u64::from(self.plan.nodes)) as u8);
        let row = self.world.node(node).row();
        if row.is_some_and(|row| self.world.store.published.contains(&(row.term, node))) {
            self.write(node);
        }
        let next = 50 + self.dice.below(200);
        self.at(next, Task::Rogue, 0);
    }

    fn write(&mut self, node: NodeId) {
        let postgres = self.world.node(node);
        if postgres.power != Power::Up || postgres.recovery {
            return;
        }
        let incarnation = postgres.incarnation;
        let write = self.world.write(node, None);
        let at = self.world.node(node).wal.len();
        self.waits.push(Wait { number: 0, node, incarnation, write, at, order: None });
    }

    fn outcome(mut self) -> Outcome {
        for node in self.all_nodes() {
            let Postgres {
                power,
                recovery,
                replayed,
                history,
                paused,
                upstream,
                marker,
                receiver,
                sync_names,
                acks,
                ..
            } = self.world.node(node).clone();
            let end = self.world.node(node).wal.len();
            self.say(|| {
                format!(
                    "{node}: {power:?} recovery {recovery} WAL {end} replayed {replayed} {history:?} paused {paused} \
                     {upstream:?} {marker:?} from {receiver:?}, {sync_names:?} {acks:?}"
                )
            });
        }
        let done = self.verdicts.iter().filter(|verdict| matches!(verdict, Verdict::Done { .. })).count();
        let leader = self.world.store.leader();
        let open =
            self.processes.iter().any(|p| p.view.as_ref().is_some_and(|v| v.primary.is_some() && v.primary == leader));
        let reasons: Vec<_> = self
            .processes
            .iter()
            .filter_map(|p| Some(format!("{}: {}", p.coordinator.phase(), p.view.as_ref()?.reason.as_ref()?)))
            .collect();
        Outcome {
            violations: self.world.violations,
            promotions: self.world.promotions,
            acknowledged: self.world.acknowledged.len(),
            acknowledged_in_peace: self.in_peace,
            open,
            switched: (done, self.verdicts.len()),
            last_reason: reasons.join(" | "),
            trace: self.trace.unwrap_or_default(),
        }
    }
}
