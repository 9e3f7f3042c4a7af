//! The one loop that feeds the decision: readings, suspicions, time and outcomes go in, orders and snapshots come out.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use decision::{Action, Coordinator, Event, Millis, NodeId, View};
use tokio::sync::{Notify, mpsc, oneshot, watch};
use tokio::time::{MissedTickBehavior, interval};

use crate::ask::{Ask, Verdict, Wish};
use crate::history::History;
use crate::lag::Lag;
use crate::orders::undone;
use crate::presence::Standing;
use crate::probe::Report;
use crate::reigns::{Life, Reigns};
use crate::translate::{Names, contact, millis};
use crate::{Lsn, Node, Overview, PrimarySample, Reading, Role, Topology};

/// The decision's clock beats this often; everything urgent is an event of its own.
const TICK: Duration = Duration::from_millis(50);

pub(crate) struct Driver {
    pub(crate) coordinator: Coordinator,
    pub(crate) names: Arc<Names>,
    pub(crate) history: History,
    pub(crate) reports: mpsc::Receiver<Report>,
    pub(crate) suspicions: mpsc::Receiver<usize>,
    pub(crate) outcomes: mpsc::Receiver<Event>,
    pub(crate) nodes: Vec<mpsc::Sender<Action>>,
    pub(crate) store: mpsc::Sender<Action>,
    pub(crate) nudges: Vec<Arc<Notify>>,
    pub(crate) topology: Topology,
    pub(crate) published: watch::Sender<Arc<Topology>>,
    pub(crate) positions: Positions,
    pub(crate) reigns: Reigns,
    pub(crate) began: Instant,
    /// An answer that took longer than this is none.
    pub(crate) timeout: Duration,
    /// Outcomes of orders that found no room.
    pub(crate) refused: Vec<Event>,
    pub(crate) asks: mpsc::Receiver<Ask>,
    /// Who waits for the verdict on the request under way.
    pub(crate) asked: Option<oneshot::Sender<Verdict>>,
    /// Where the store is, for people.
    pub(crate) place: Arc<str>,
    /// Whether we may act.
    pub(crate) standing: Standing,
}

/// What is known of the nodes' positions: it goes into the snapshot, and no decision looks at it.
#[derive(Debug, Default)]
pub(crate) struct Positions {
    lag: Lag,
    replayed: HashMap<usize, (Lsn, Instant)>,
    /// Each node as it was read last.
    lives: HashMap<usize, Life>,
}

impl Driver {
    /// Until the probes are gone.
    pub(crate) async fn run(mut self) {
        let mut ticks = interval(TICK);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        // with nobody left to suspect anything, the branch rests
        let mut suspecting = true;
        loop {
            for event in std::mem::take(&mut self.refused) {
                self.feed(event);
            }
            tokio::select! {
                outcome = self.outcomes.recv() => match outcome {
                    Some(Event::Lease { held }) => {
                        let told = self.standing.leased(held);
                        self.stand(told);
                    }
                    Some(event) => self.feed(event),
                    None => return,
                },
                report = self.reports.recv() => match report {
                    Some(report) => self.report(&report),
                    None => return,
                },
                node = self.suspicions.recv(), if suspecting => match node {
                    Some(node) => self.suspect(node),
                    None => suspecting = false,
                },
                Some(ask) = self.asks.recv() => self.ask(ask),
                _ = ticks.tick() => self.feed(Event::Tick),
            }
        }
    }

    fn suspect(&mut self, node: usize) {
        let Some(nudge) = self.nudges.get(node) else { return };
        nudge.notify_one();
        if let Ok(node) = u8::try_from(node) {
            self.feed(Event::ConnectionLost { node: NodeId(node), own: false });
        }
    }

    /// One request at a time.
    fn ask(&mut self, ask: Ask) {
        if self.asked.as_ref().is_some_and(|waits| !waits.is_closed()) {
            let _ = ask.answer.send(Verdict::refused("another request is under way"));
            return;
        }
        let node = |index: usize| u8::try_from(index).ok().map(NodeId);
        let event = match ask.wish {
            Wish::Switchover { to, max_wait, end_transactions } => {
                let to = to.and_then(node);
                Event::SwitchoverAsked(decision::Switchover { to, max_wait: millis(max_wait), end_transactions })
            }
            Wish::Failover => {
                tracing::warn!("an operator asks for a failover that may lose commits");
                Event::FailoverAsked
            }
        };
        self.asked = Some(ask.answer);
        self.feed(event);
    }

    fn report(&mut self, report: &Report) {
        let Ok(node) = u8::try_from(report.node).map(NodeId) else { return };
        let event = match &report.outcome {
            // it says how things were: this process may have been stopped since
            Ok(_) if report.begun.elapsed() > self.timeout => {
                Event::Probed { node, contact: decision::Contact::Silent }
            }
            Ok(reading) => {
                self.position(report, reading);
                self.reign(report, reading);
                let contact = decision::Contact::Reached(Box::new(self.names.report(reading)));
                Event::Probed { node, contact }
            }
            Err(failure) => {
                tracing::debug!(node = self.names.cluster.name(node), %failure, "not read");
                match contact(failure) {
                    Some(contact) => Event::Probed { node, contact },
                    None => Event::ConnectionLost { node, own: true },
                }
            }
        };
        let is_reading = report.outcome.is_ok();
        self.feed(event);
        let rival = report.outcome.as_ref().is_ok_and(|reading| reading.rival.is_some());
        let told = self.standing.looked(report.node, rival);
        self.stand(told);
        if is_reading {
            self.publish();
        }
    }

    /// Tells the decision whether we may act, and people who is in the way.
    fn stand(&mut self, told: Option<Event>) {
        let Some(event) = told else { return };
        let rivals = self.rivals();
        if let Some(rivals) = &rivals {
            tracing::error!(%rivals, "another pgsteady, which shares no store with this one, watches the same nodes: this one does not act");
        }
        self.feed(event);
    }

    /// Where another instance is that shares no store with us, for people.
    fn rivals(&self) -> Option<Arc<str>> {
        let names: Vec<&str> =
            self.standing.rivals().filter_map(|node| self.topology.nodes.get(node)).map(|node| &*node.name).collect();
        (!names.is_empty()).then(|| names.join(", ").into())
    }

    /// Notes what the snapshot says of positions.
    fn position(&mut self, report: &Report, reading: &Reading) {
        if let Some(node) = self.topology.nodes.get_mut(report.node) {
            node.position = reading.inserted.or(reading.received.max(reading.replayed));
        }
        match (self.topology.primary == Some(report.node), reading.inserted) {
            (true, Some(position)) => {
                self.positions.lag.primary_at(position, report.begun);
                if report.number > self.topology.sample.number {
                    self.topology.sample = PrimarySample { number: report.number, position };
                }
            }
            _ => {
                if let Some(replayed) = reading.replayed.filter(|_| reading.in_recovery) {
                    self.positions.replayed.insert(report.node, (replayed, report.begun));
                }
            }
        }
    }

    /// Notes whose reign it is.
    fn reign(&mut self, report: &Report, reading: &Reading) {
        let life = Life { node: report.node, incarnation: reading.started, witness: reading.backend };
        self.positions.lives.insert(report.node, life);
        let Some(rule) = self.coordinator.record().rule else { return };
        let leads = rule.leader.index() == report.node && !reading.in_recovery;
        if leads && reading.term.as_ref().is_some_and(|row| row.term == rule.term.0) {
            self.reigns.seen(rule.term.0, life, reading.recovered, report.number);
        }
    }

    /// The same when a primary is announced.
    fn opened(&mut self, node: usize, view: &View) {
        let Some(life) = self.positions.lives.get(&node) else { return };
        let origin = self.coordinator.record().origin.map(|origin| (origin.term.0, view.next_xid));
        self.reigns.opened(view.term.0, *life, origin);
    }

    /// Tells the decision, and does what it says.
    fn feed(&mut self, event: Event) {
        let now = Instant::now();
        if !matches!(event, Event::Tick | Event::Probed { .. }) {
            tracing::debug!(?event, "outcome");
        }
        self.history.event(now, &event);
        let actions = self.coordinator.step(self.millis(now), event);
        self.look_over();
        let mut verdict = None;
        for action in actions {
            if let Action::Tell(told) = action {
                verdict = Some(self.names.verdict(&told));
                continue;
            }
            if !matches!(action, Action::Announce(_)) {
                tracing::debug!(?action, phase = self.coordinator.phase(), "order");
            }
            self.history.action(now, &action);
            self.order(action);
        }
        // last, so that who hears of it finds the new snapshot
        if let Some((verdict, answer)) = verdict.and_then(|verdict| Some((verdict, self.asked.take()?))) {
            tracing::info!(?verdict, "an operator's request is answered");
            let _ = answer.send(verdict);
        }
    }

    /// Renews what the snapshot says of rule, store and step, if it has changed.
    fn look_over(&mut self) {
        let (phase, record) = (self.coordinator.phase(), self.coordinator.record());
        let (lost, coordinator) = (self.coordinator.store_lost(), self.coordinator.is_coordinator());
        let rivals = self.rivals();
        let old = &self.topology.overview;
        let rule = record.rule.map(|rule| self.names.in_force(&rule));
        let same = *old.phase == *phase
            && old.rule == rule
            && old.claimed == record.claimed.0
            && old.store_lost.as_deref() == lost
            && old.coordinator == coordinator
            && old.rivals == rivals
            && !old.store.is_empty();
        if same {
            return;
        }
        self.topology.overview = Arc::new(Overview {
            managed: phase != "following",
            phase: phase.into(),
            coordinator,
            rivals,
            claimed: record.claimed.0,
            rule,
            store: self.place.clone(),
            store_lost: lost.map(Into::into),
        });
        self.published.send_replace(Arc::new(self.topology.clone()));
    }

    fn millis(&self, now: Instant) -> Millis {
        millis(now.saturating_duration_since(self.began))
    }

    fn order(&mut self, action: Action) {
        let queue = match &action {
            Action::Announce(view) => {
                self.announce(&view.clone());
                return;
            }
            Action::ProbeNow { node } => {
                if let Some(nudge) = self.nudges.get(node.index()) {
                    nudge.notify_one();
                }
                return;
            }
            Action::Tell(_) => return,
            Action::ReadStore | Action::ClaimTerm { .. } | Action::Publish { .. } => Some(&self.store),
            Action::Promote(promotion) => self.nodes.get(promotion.node().index()),
            Action::Quiesce { node, .. }
            | Action::Fence { node, .. }
            | Action::Unfence { node, .. }
            | Action::Drain { node, .. }
            | Action::Repoint { node, .. }
            | Action::WriteTerm { node, .. }
            | Action::SetRule { node, .. }
            | Action::Barrier { node, .. }
            | Action::Checkpoint { node }
            | Action::Quarantine { node } => self.nodes.get(node.index()),
        };
        let refused = match queue {
            Some(queue) if queue.try_send(action.clone()).is_ok() => return,
            Some(_) => "too many orders wait for it",
            None => "there is no such node",
        };
        tracing::error!(?action, refused, "an order is not carried out");
        // its outcome is fed at the next turn of the loop, not from within this one
        if let Some(event) = undone(action, refused) {
            self.refused.push(event);
        }
    }

    fn announce(&mut self, view: &View) {
        self.topology.epoch = view.epoch;
        self.topology.primary = view.primary.map(NodeId::index);
        self.topology.term = view.term.0;
        if let Some(primary) = self.topology.primary {
            self.opened(primary, view);
        }
        self.topology.why = view.reason.as_ref().map(ToString::to_string).unwrap_or_default().into();
        for (node, standing) in self.topology.nodes.iter_mut().zip(&view.nodes) {
            node.role = match standing.role {
                decision::Role::Primary => Role::Primary,
                decision::Role::Standby => Role::Standby,
                decision::Role::Out => Role::Out,
            };
            if *node.why != *standing.why {
                node.why = standing.why.as_str().into();
            }
        }
        self.publish();
    }

    fn publish(&mut self) {
        for (index, node) in self.topology.nodes.iter_mut().enumerate() {
            let seen = self.positions.replayed.get(&index);
            place(node, seen.copied(), &self.positions.lag);
        }
        self.topology.reigns = self.reigns.all();
        self.published.send_replace(Arc::new(self.topology.clone()));
    }
}

fn place(node: &mut Node, seen: Option<(Lsn, Instant)>, lag: &Lag) {
    match (node.role, seen) {
        (Role::Standby, Some((replayed, at))) => {
            node.replayed = replayed;
            node.lag = lag.of(replayed, at);
        }
        (Role::Primary, _) => node.lag = Some(Duration::ZERO),
        _ => node.lag = None,
    }
}
