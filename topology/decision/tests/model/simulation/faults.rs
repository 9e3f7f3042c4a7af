//! What the dice do to nodes, links and processes.

use decision::{Contact, Coordinator, Event, Millis, NodeId, Switchover};

use super::{Power, Simulation, Task};

impl Simulation {
    pub(super) fn fault(&mut self) {
        if !self.in_faults() {
            self.heal();
            return;
        }
        let next = 100 + self.dice.below(1_500);
        self.at(next, Task::Fault, 0);
        let leader = self.world.store.leader().unwrap_or(NodeId(0));
        let any = NodeId(self.dice.below(u64::from(self.plan.nodes)) as u8);
        let node = if self.dice.percent(50) { leader } else { any };
        let p = self.dice.below(self.plan.processes as u64) as usize;
        let kind = self.dice.below(25);
        self.say(|| format!("fault {kind} on {node} p{p}"));
        self.fault_on_node(kind, node);
        self.fault_on_process(kind, p, node);
    }

    fn fault_on_node(&mut self, kind: u64, node: NodeId) {
        let other = NodeId(self.dice.below(u64::from(self.plan.nodes)) as u8);
        let power = self.world.node(node).power;
        match kind {
            0..=3 if power != Power::Down => {
                self.world.node_mut(node).crash();
                for p in 0..self.plan.processes {
                    self.tell_lost(p, node);
                }
            }
            4..=6 => self.start_down_nodes(),
            7 if power == Power::Up => {
                // One backend was killed: everything restarts in place.
                self.world.node_mut(node).crash();
                let postgres = self.world.node_mut(node);
                postgres.power = Power::Starting;
                let incarnation = postgres.incarnation;
                let delay = 50 + self.dice.below(900);
                self.at(delay, Task::Started(node, incarnation), 0);
                for p in 0..self.plan.processes {
                    self.tell_lost(p, node);
                }
            }
            8 if power == Power::Up => self.world.node_mut(node).power = Power::Frozen,
            9 => self.thaw(),
            10 if node != other => {
                self.world.cut.insert((node.0.min(other.0), node.0.max(other.0)));
            }
            11 => self.world.cut.clear(),
            12 => {
                let postgres = self.world.node_mut(node);
                postgres.paused = postgres.recovery;
                postgres.stuck = postgres.recovery;
            }
            13 => self.unstick(),
            23 if power == Power::Up => self.world.node_mut(node).stall(),
            24 => self.unstick(),
            _ => {}
        }
    }

    pub(super) fn tell_lost(&mut self, p: usize, node: NodeId) {
        if self.reaches(p, node) && self.dice.percent(80) {
            let life = self.processes[p].life;
            self.at(3, Task::Deliver(p, Event::ConnectionLost { node, own: true }, None), life);
        }
    }

    fn fault_on_process(&mut self, kind: u64, p: usize, node: NodeId) {
        match kind {
            14 => {
                self.processes[p].cut.insert(node);
            }
            15 => self.processes[p].cut.clear(),
            16 => self.processes[p].store_cut = !self.processes[p].store_cut,
            17 => self.restart_process(p),
            18 => self.processes[p].paused = true,
            19 => self.resume(p),
            20..=22 => self.ask_to_switch_over(p, node),
            _ => {}
        }
    }

    /// An operator asks, whether it fits or not.
    fn ask_to_switch_over(&mut self, p: usize, node: NodeId) {
        let to = self.dice.percent(50).then_some(node);
        let plan = Switchover { to, max_wait: Millis(300), end_transactions: self.dice.percent(50) };
        let life = self.processes[p].life;
        self.at(1, Task::Deliver(p, Event::SwitchoverAsked(plan), None), life);
    }

    fn start_down_nodes(&mut self) {
        for node in self.all_nodes() {
            if self.world.node(node).power == Power::Down {
                self.world.node_mut(node).restart();
            }
        }
    }

    fn thaw(&mut self) {
        for node in self.all_nodes() {
            if self.world.node(node).power == Power::Frozen {
                self.world.node_mut(node).power = Power::Up;
            }
        }
    }

    fn unstick(&mut self) {
        for node in self.all_nodes() {
            let postgres = self.world.node_mut(node);
            (postgres.paused, postgres.stuck) = (false, false);
            postgres.stalled = None;
        }
    }

    pub(super) fn resume(&mut self, p: usize) {
        self.processes[p].paused = false;
        for (came, mut event, frees) in std::mem::take(&mut self.processes[p].inbox) {
            if let (true, Event::Probed { contact, .. }) = (self.now - came > 100, &mut event) {
                *contact = Contact::Silent; // the probe's own time-out has passed
            }
            self.deliver(p, event, frees);
        }
    }

    /// It forgets everything but the store. Orders that had begun may still have happened.
    pub(super) fn restart_process(&mut self, p: usize) {
        let record = self.world.store.record.clone();
        let process = &mut self.processes[p];
        process.life += 1;
        process.paused = false;
        process.inbox.clear();
        process.orders.clear();
        process.busy.clear();
        process.view = None;
        process.leased_until = None;
        process.coordinator = Coordinator::new(self.policy.clone(), self.world.members(), record);
        self.waits.retain(|wait| wait.order.as_ref().is_none_or(|(of, ..)| *of != p));
        self.begin_process(p);
    }

    pub(super) fn heal(&mut self) {
        self.say(|| "peace".to_owned());
        self.thaw();
        self.start_down_nodes();
        self.unstick();
        self.world.cut.clear();
        for p in 0..self.plan.processes {
            self.processes[p].cut.clear();
            self.processes[p].store_cut = false;
            self.resume(p);
        }
    }
}
