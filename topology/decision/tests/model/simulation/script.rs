//! A scenario file: one command a line, what happens and what has to come of it. See `tests/scenarios/`.

use std::collections::{BTreeMap, BTreeSet};

use decision::{
    Durability, Managed, Millis, NodeId, NodeSet, Role, Switchover, SyncNames, Term, TermRow, Upstream, Verdict,
};

use super::{Dice, Lie, Plan, Power, Simulation, Task, World, policy};

/// Simulated milliseconds that an `until` waits at most.
const PATIENCE: u64 = 12_000;

/// Runs a scenario; the error names the line.
pub(crate) fn run(text: &str, lie: Option<Lie>) -> Result<(), String> {
    let mut simulation = None;
    for (number, line) in text.lines().enumerate() {
        let line = line.split('#').next().unwrap_or_default().trim();
        if line.is_empty() {
            continue;
        }
        let words: Vec<&str> = line.split_whitespace().collect();
        let done = match (&mut simulation, words.as_slice()) {
            (None, ["cluster", n, options @ ..]) => begin(n, options, lie).map(|made| simulation = Some(made)),
            (None, _) => Err("the first command has to be `cluster`".to_owned()),
            (Some(simulation), words) => simulation.command(words),
        };
        let held = simulation.as_ref().and_then(|s| s.world.violations.first().cloned());
        let tail = || simulation.as_ref().map(Simulation::tail).unwrap_or_default();
        if let Err(why) = done.and_then(|()| held.map_or(Ok(()), Err)) {
            return Err(format!("line {}: `{line}`: {why}\n{}", number + 1, tail()));
        }
    }
    simulation.map(|_| ()).ok_or_else(|| "empty".to_owned())
}

fn begin(n: &str, options: &[&str], lie: Option<Lie>) -> Result<Simulation, String> {
    let nodes: u8 = n.parse().map_err(|_| "how many nodes?")?;
    let mut plan = Plan {
        nodes,
        k: 1,
        processes: 1,
        durability: Durability::Available,
        lie,
        shared: false,
        faults_until: 0,
        end: u64::MAX,
    };
    let (mut empty, mut external, mut asleep) = (false, false, BTreeSet::new());
    for option in options {
        match option.split_once('=') {
            Some(("k", k)) => plan.k = k.parse().map_err(|_| "k?")?,
            Some(("processes", p)) => plan.processes = p.parse().map_err(|_| "processes?")?,
            Some(("down", name)) => drop(asleep.insert(node_named(name)?)),
            None if *option == "strict" => plan.durability = Durability::Strict,
            None if *option == "lease" => plan.shared = true,
            None if *option == "empty" => empty = true,
            None if *option == "external" => external = true,
            _ => return Err(format!("no such option: {option}")),
        }
    }
    let mut world = World::new(plan.nodes, plan.k, empty);
    for node in asleep {
        world.node_mut(node).crash();
    }
    let mut policy = policy(&plan);
    if external {
        policy.managed = Managed::External;
    }
    Ok(Simulation::quiet(plan, world, policy))
}

fn node_named(name: &str) -> Result<NodeId, String> {
    name.strip_prefix('n').and_then(|n| n.parse().ok()).map(NodeId).ok_or_else(|| format!("no such node: {name}"))
}

fn set_named(names: &str) -> Result<NodeSet, String> {
    names.split(',').filter(|name| !name.is_empty()).map(node_named).collect()
}

impl Simulation {
    fn quiet(plan: Plan, world: World, policy: decision::Policy) -> Self {
        let mut simulation = Self {
            dice: Dice(1),
            now: 0,
            sequence: 0,
            tasks: BTreeMap::new(),
            world,
            processes: Vec::new(),
            waits: Vec::new(),
            in_peace: 0,
            trace: Some(Vec::new()),
            sabotage: Vec::new(),
            ordered: Vec::new(),
            policy,
            verdicts: Vec::new(),
            lease: None,
            plan,
        };
        simulation.begin();
        simulation
    }

    fn tail(&self) -> String {
        let trace = self.trace.as_deref().unwrap_or_default();
        trace[trace.len().saturating_sub(25)..].join("\n")
    }

    fn run_until(&mut self, time: u64) {
        while let Some(entry) = self.tasks.first_entry().filter(|entry| entry.key().0 <= time) {
            let ((at, _), (task, life)) = entry.remove_entry();
            self.now = at;
            self.perform(task, life);
            self.check_waits();
        }
        self.now = time;
    }

    fn until(&mut self, what: &str, holds: impl Fn(&Self) -> bool) -> Result<(), String> {
        let end = self.now + PATIENCE;
        while !holds(self) {
            if self.now >= end {
                return Err(format!("{what} did not come; phase {}, {:?}", self.phase(), self.reason()));
            }
            self.run_until(self.now + 1);
        }
        Ok(())
    }

    fn phase(&self) -> &'static str {
        self.processes[0].coordinator.phase()
    }

    fn reason(&self) -> String {
        let view = self.processes[0].view.as_ref();
        view.and_then(|view| view.reason.as_ref()).map(ToString::to_string).unwrap_or_default()
    }

    fn primary(&self) -> Option<NodeId> {
        self.processes[0].view.as_ref().and_then(|view| view.primary)
    }

    fn command(&mut self, words: &[&str]) -> Result<(), String> {
        match words {
            ["run", ms] => {
                let ms: u64 = ms.parse().map_err(|_| "how many milliseconds?")?;
                self.run_until(self.now + ms);
                Ok(())
            }
            ["until", "phase", phase] => self.until(&format!("phase {phase}"), |s| s.phase() == *phase),
            ["until", "other-phase", phase] => {
                self.until(&format!("phase {phase}"), |s| s.processes[1].coordinator.phase() == *phase)
            }
            ["until", "primary", name] => {
                let node = node_named(name)?;
                self.until(&format!("primary {name}"), |s| s.primary() == Some(node))
            }
            ["until", "verdict", rest @ ..] => {
                self.until("a verdict", |s| !s.verdicts.is_empty())?;
                self.verdict(rest)
            }
            ["until", "held"] => self.until("a hold", |s| s.primary().is_none()),
            ["until", "rule", k, cohort] => {
                let wanted = (k.parse().map_err(|_| "k?")?, set_named(cohort)?);
                self.until("that rule", |s| s.world.store.rule().is_some_and(|r| (r.k, r.cohort) == wanted))
            }
            ["until", "rule", "0"] => {
                self.until("no standby in the rule", |s| s.world.store.rule().is_some_and(|r| r.k == 0))
            }
            ["expect", rest @ ..] => self.expect(rest),
            ["switchover", to @ ..] => {
                let to = to.first().map(|name| node_named(name)).transpose()?;
                let plan = Switchover { to, max_wait: Millis(500), end_transactions: false };
                self.verdicts.clear();
                let life = self.processes[0].life;
                self.at(0, Task::Deliver(0, decision::Event::SwitchoverAsked(plan), None), life);
                Ok(())
            }
            ["failover"] => {
                // what nobody has who is there is given up
                let up: Vec<_> = self.world.nodes.iter().filter(|node| node.power == Power::Up).cloned().collect();
                self.world.acknowledged.retain(|id| up.iter().any(|node| node.holds(*id)));
                self.verdicts.clear();
                let life = self.processes[0].life;
                self.at(0, Task::Deliver(0, decision::Event::FailoverAsked, None), life);
                Ok(())
            }
            ["forget", "orders"] => {
                self.ordered.clear();
                Ok(())
            }
            [what, name, rest @ ..] if name.starts_with('n') => self.on_node(what, node_named(name)?, rest),
            [what, rest @ ..] => self.on_process(what, rest),
            [] => Ok(()),
        }
    }

    fn on_node(&mut self, what: &str, node: NodeId, rest: &[&str]) -> Result<(), String> {
        match (what, rest) {
            ("kill", []) => {
                self.world.node_mut(node).crash();
                self.tell_all_lost(node);
            }
            ("start", []) => self.world.node_mut(node).restart(),
            ("restart", [ms]) => {
                self.world.node_mut(node).crash();
                let postgres = self.world.node_mut(node);
                postgres.power = Power::Starting;
                let incarnation = postgres.incarnation;
                let delay = ms.parse().map_err(|_| "how long?")?;
                self.at(delay, Task::Started(node, incarnation), 0);
                self.tell_all_lost(node);
            }
            ("freeze", []) => self.world.node_mut(node).power = Power::Frozen,
            ("stall", []) => self.world.node_mut(node).stall(),
            ("go-on", []) => self.world.node_mut(node).stalled = None,
            ("thaw", []) => self.world.node_mut(node).power = Power::Up,
            ("cut", [other]) => {
                let other = node_named(other)?;
                self.world.cut.insert((node.0.min(other.0), node.0.max(other.0)));
            }
            ("stick", []) => {
                let postgres = self.world.node_mut(node);
                (postgres.paused, postgres.stuck) = (true, true);
            }
            ("pause", []) => self.world.node_mut(node).paused = true,
            ("unstick", []) => {
                let postgres = self.world.node_mut(node);
                (postgres.paused, postgres.stuck) = (false, false);
            }
            ("rogue", []) => self.write(node),
            ("foreign", []) => self.world.node_mut(node).system += 1,
            ("rejoin", []) => self.world.rejoin_strays(),
            ("set-sync-names", ["empty"]) => self.world.node_mut(node).sync_names = SyncNames::Nobody,
            ("drop-row", []) => self.world.node_mut(node).wal.iter_mut().for_each(|entry| entry.row = None),
            ("wipe-row", [term]) => {
                let term = Term(term.parse().map_err(|_| "which term?")?);
                let row = TermRow { term, leader: Some(node) };
                self.world.node_mut(node).wal.iter_mut().for_each(|entry| entry.row = Some(row));
            }
            ("promote-by-hand", []) => {
                self.world.node_mut(node).promote();
                self.world.node_mut(node).upstream = Upstream::Empty;
            }
            ("unreachable", []) => drop(self.processes[0].cut.insert(node)),
            ("reachable", []) => drop(self.processes[0].cut.remove(&node)),
            ("fail", [name]) => self.sabotage.push(((*name).to_owned(), node, false)),
            ("lose-answer-of", [name]) => self.sabotage.push(((*name).to_owned(), node, true)),
            ("suspect", []) => {
                let life = self.processes[0].life;
                let event = decision::Event::ConnectionLost { node, own: false };
                self.at(0, Task::Deliver(0, event, None), life);
            }
            _ => return Err("no such command for a node".to_owned()),
        }
        Ok(())
    }

    fn tell_all_lost(&mut self, node: NodeId) {
        for p in 0..self.plan.processes {
            let life = self.processes[p].life;
            let event = decision::Event::ConnectionLost { node, own: true };
            self.at(3, Task::Deliver(p, event, None), life);
        }
    }

    fn on_process(&mut self, what: &str, rest: &[&str]) -> Result<(), String> {
        match (what, rest) {
            ("pgsteady", ["restart"]) => self.restart_process(0),
            ("other-pgsteady", ["stop"]) => self.processes[1].paused = true,
            ("other-pgsteady", ["continue"]) => self.resume(1),
            ("pgsteady", ["stop"]) => self.processes[0].paused = true,
            ("pgsteady", ["continue"]) => self.resume(0),
            ("store", ["lost"]) => self.processes[0].store_cut = true,
            ("store", ["back"]) => self.processes[0].store_cut = false,
            ("heal", ["links"]) => self.world.cut.clear(),
            _ => return Err("no such command".to_owned()),
        }
        Ok(())
    }

    fn expect(&mut self, words: &[&str]) -> Result<(), String> {
        let check = |holds: bool, seen: String| if holds { Ok(()) } else { Err(format!("but it is {seen}")) };
        let view = self.processes[0].view.as_ref().ok_or("nothing announced yet")?;
        match words {
            ["primary", name] => check(self.primary() == Some(node_named(name)?), format!("{:?}", self.primary())),
            ["held"] => check(self.primary().is_none(), format!("{:?}", self.primary())),
            ["epoch", n] => check(view.epoch.to_string() == **n, view.epoch.to_string()),
            ["term", n] => check(view.term.to_string() == **n, view.term.to_string()),
            ["next-xid"] => check(view.next_xid.is_some(), "unknown".to_owned()),
            ["no", "next-xid"] => check(view.next_xid.is_none(), format!("{:?}", view.next_xid)),
            ["phase", phase] => check(self.phase() == *phase, self.phase().to_owned()),
            ["reason", "none"] => check(view.reason.is_none(), self.reason()),
            ["reason", text @ ..] => check(self.reason().contains(&text.join(" ")), self.reason()),
            ["node", name, "standby"] => {
                let standing = &view.nodes[node_named(name)?.index()];
                check(standing.role == Role::Standby, format!("{standing:?}"))
            }
            ["node", name, "out", text @ ..] => {
                let standing = &view.nodes[node_named(name)?.index()];
                let out = standing.role == Role::Out && standing.why.contains(&text.join(" "));
                check(out, format!("{standing:?}"))
            }
            ["follows", name, upstream] => {
                let there = self.world.node(node_named(name)?).upstream;
                check(there == Upstream::Node(node_named(upstream)?), format!("{there:?}"))
            }
            ["acknowledged", "more", "than", n] => {
                let n: usize = n.parse().map_err(|_| "how many?")?;
                check(self.world.acknowledged.len() > n, self.world.acknowledged.len().to_string())
            }
            ["writes", "acknowledged"] => self.expect_writes(true),
            ["writes", "wait"] => self.expect_writes(false),
            ["ordered", name] => check(self.was_ordered(name, None), "not".to_owned()),
            ["ordered", name, node] => check(self.was_ordered(name, Some(node_named(node)?)), "not".to_owned()),
            ["not", "ordered", name] => check(!self.was_ordered(name, None), "ordered".to_owned()),
            ["not", "ordered", name, node] => {
                check(!self.was_ordered(name, Some(node_named(node)?)), "ordered".to_owned())
            }
            _ => Err("no such expectation".to_owned()),
        }
    }

    fn verdict(&self, words: &[&str]) -> Result<(), String> {
        let told = self.verdicts.last().ok_or("nothing was told")?;
        let fits = match (words, told) {
            (["done", name], Verdict::Done { to, .. }) => *to == node_named(name)?,
            (["undone", text @ ..], Verdict::Undone(why)) | (["refused", text @ ..], Verdict::Refused(why)) => {
                why.to_string().contains(&text.join(" "))
            }
            _ => false,
        };
        if fits { Ok(()) } else { Err(format!("but it is {told:?}")) }
    }

    fn was_ordered(&self, name: &str, node: Option<NodeId>) -> bool {
        self.ordered.iter().any(|(what, whom)| what == name && (node.is_none() || *whom == node))
    }

    /// Whether what clients send in the next 400 ms is acknowledged.
    fn expect_writes(&mut self, acknowledged: bool) -> Result<(), String> {
        let before = self.world.acknowledged.len();
        self.run_until(self.now + 400);
        let more = self.world.acknowledged.len() > before;
        if more == acknowledged { Ok(()) } else { Err(format!("writes are acknowledged: {more}")) }
    }
}
