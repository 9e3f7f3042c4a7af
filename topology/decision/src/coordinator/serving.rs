//! There is a primary and it is well. The gate is open once all that it shows is held by k standbys.

use super::Phase;
use super::change::Changing;
use super::claiming::Claiming;
use super::handing;
use super::health::{self, Health};
use super::picture::Picture;
use super::strays;
use super::suspecting::Suspecting;
use super::unfencing::Unfencing;
use crate::action::Action;
use crate::event::Event;
use crate::node::{Millis, NodeId, NodeSet};
use crate::reason::{self, Reason};
use crate::record::{Record, Rule};
use crate::switchover::Switchover;

/// Whether clients may in.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum Gate {
    Open,
    /// `synchronous_standby_names` is being set to the rule.
    Setting,
    /// A write waits for k standbys. `void`: the primary restarted since it was ordered, or it was ordered under
    /// another rule; its answer says nothing.
    Barring {
        void: bool,
    },
    /// Again at this moment.
    Pausing(Millis),
}

/// The steady state.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) struct Serving {
    rule: Rule,
    incarnation: u64,
    gate: Gate,
    change: Changing,
    unfencing: Unfencing,
    /// Readings in a row with `synchronous_standby_names` that ask for less than the rule.
    weaker: u32,
    /// The last attempt to set what is merely different.
    set_at: Millis,
}

/// Readings in a row that make weaker `synchronous_standby_names` true: the first may be older than our own change.
const WEAKER: u32 = 2;

impl Serving {
    /// For a primary that is well. Clients wait for the barrier, unless it is the very incarnation they were with.
    pub(crate) fn enter(picture: &mut Picture, rule: &Rule) -> Phase {
        let mut state = Self::new(picture, rule);
        if picture.opened == Some((rule.leader, rule.term, state.incarnation)) {
            state.open(picture);
        } else {
            state.close(picture);
        }
        Phase::Serving(Box::new(state))
    }

    /// For one whose term row has just been acknowledged: that was the barrier.
    pub(crate) fn open_promoted(picture: &mut Picture, rule: &Rule) -> Phase {
        let mut state = Self::new(picture, rule);
        state.open(picture);
        Phase::Serving(Box::new(state))
    }

    fn new(picture: &Picture, rule: &Rule) -> Self {
        let incarnation = picture.reached(rule.leader).map_or(0, |report| report.incarnation);
        Self {
            rule: *rule,
            incarnation,
            gate: Gate::Open,
            change: Changing::default(),
            unfencing: Unfencing::default(),
            weaker: 0,
            set_at: picture.now,
        }
    }

    pub(crate) fn open_primary(&self) -> Option<NodeId> {
        (self.gate == Gate::Open).then_some(self.rule.leader)
    }

    pub(crate) fn on(mut self: Box<Self>, picture: &mut Picture, event: &Event) -> Phase {
        let Some(rule) = picture.rule() else { return Suspecting::enter(picture) };
        if (rule.leader, rule.term) != (self.rule.leader, self.rule.term) || picture.record.intent.is_some() {
            return Suspecting::enter(picture);
        }
        if picture.yields() {
            return Suspecting::enter(picture);
        }
        self.rule = rule;
        match health::of_leader(picture, &rule) {
            Health::Well => {}
            Health::Unread => self.look_again(picture, event),
            Health::Doubtful(_) | Health::Lost(_) => return Suspecting::enter(picture),
        }
        if let Event::ConnectionLost { node, own: false } = event {
            picture.order(Action::ProbeNow { node: *node });
        }
        self.watch(picture, event);
        self.turn_gate(picture, event);
        self.change.on(picture, &rule, event, self.gate != Gate::Setting);
        self.unfencing.on(picture, &rule, event);
        end_handover(picture);
        let origin = picture.record.origin;
        strays::repoint(picture, &rule, origin.as_ref(), NodeSet::EMPTY);
        strays::quarantine(picture, &rule);
        if !picture.settling() && picture.store_lost.is_some() {
            super::suspecting::ask_store(picture);
        }
        Phase::Serving(self)
    }

    /// Only while all is as it should be: a switchover is no way out of trouble.
    ///
    /// # Errors
    /// Why not, and the state as it was.
    pub(crate) fn switch_over(
        self: Box<Self>,
        picture: &mut Picture,
        plan: Switchover,
    ) -> Result<Phase, (Phase, Reason)> {
        let busy = self.gate != Gate::Open || !self.change.is_idle() || self.unfencing != Unfencing::Idle;
        let checked = if busy {
            Err(reason::settling("the primary was opened a moment ago, or its rule is being changed"))
        } else {
            handing::check(picture, &self.rule, &plan)
        };
        if let Err(why) = checked {
            return Err((Phase::Serving(self), why));
        }
        picture.asked = Some(self.rule.leader);
        Ok(Claiming::for_switchover(picture, plan))
    }

    fn look_again(&self, picture: &mut Picture, event: &Event) {
        if matches!(event, Event::Probed { node, .. } if *node == self.rule.leader) {
            picture.order(Action::ProbeNow { node: self.rule.leader });
        }
    }

    /// A new incarnation shows commits that nobody acknowledged; weaker names acknowledge what nobody holds.
    fn watch(&mut self, picture: &mut Picture, event: &Event) {
        if !matches!(event, Event::Probed { node, .. } if *node == self.rule.leader) {
            return;
        }
        let Some(report) = picture.reached(self.rule.leader) else { return };
        let (incarnation, names, row) = (report.incarnation, report.sync_names, report.row);
        if incarnation != self.incarnation {
            self.incarnation = incarnation;
            self.close(picture);
        }
        let idle = self.change.is_idle();
        self.weaker = if self.rule.is_held_by(&names) || !idle { 0 } else { self.weaker + 1 };
        if self.weaker == 1 {
            picture.order(Action::ProbeNow { node: self.rule.leader });
        }
        if self.weaker >= WEAKER && self.gate != Gate::Setting {
            self.weaker = 0;
            self.close(picture);
            return;
        }
        if self.gate == Gate::Open && idle && picture.passed(self.set_at, picture.policy.retry) {
            self.repair(picture, names == self.rule.sync_names(), row.is_some());
        }
    }

    /// Different but not weaker names (a change that failed half-way), or a dropped table: set again, nobody waits.
    fn repair(&mut self, picture: &mut Picture, names_right: bool, row_there: bool) {
        let (node, rule) = (self.rule.leader, self.rule);
        if names_right && row_there {
            return;
        }
        let Some(claim) = picture.ownership() else { return };
        if !names_right {
            picture.order(Action::SetRule { node, rule, claim });
        }
        if !row_there {
            picture.order(Action::WriteTerm { node, rule });
        }
        self.set_at = picture.now;
    }

    fn open(&mut self, picture: &mut Picture) {
        self.gate = Gate::Open;
        picture.open(&self.rule, self.incarnation);
    }

    /// Nobody may in until names and barrier are confirmed. An outstanding barrier's answer will not do.
    fn close(&mut self, picture: &mut Picture) {
        match self.gate {
            Gate::Barring { .. } => self.gate = Gate::Barring { void: true },
            Gate::Setting => {}
            Gate::Open | Gate::Pausing(_) => self.set_soon(picture),
        }
    }

    /// At once, unless the rule is being changed: between the two, names weaker than the stored rule could come out.
    fn set_soon(&mut self, picture: &mut Picture) {
        if !self.change.is_idle() {
            self.gate = Gate::Pausing(picture.now);
            return;
        }
        let (node, rule) = (self.rule.leader, self.rule);
        if picture.reached(node).is_some_and(|report| report.sync_names == rule.sync_names()) {
            self.gate = Gate::Barring { void: false };
            picture.order(Action::Barrier { node, rule });
        } else if let Some(claim) = picture.ownership() {
            self.gate = Gate::Setting;
            picture.order(Action::SetRule { node, rule, claim });
        } else {
            self.gate = Gate::Pausing(picture.now);
        }
    }

    fn turn_gate(&mut self, picture: &mut Picture, event: &Event) {
        let leader = self.rule.leader;
        match (self.gate, event) {
            (Gate::Setting, Event::RuleSet { node, rule }) if *node == leader && *rule == self.rule => {
                self.gate = Gate::Barring { void: false };
                picture.order(Action::Barrier { node: leader, rule: self.rule });
            }
            (Gate::Setting, Event::RuleSetFailed { node, why, .. }) if *node == leader => self.pause(picture, why),
            (Gate::Barring { void }, Event::BarrierPassed { node, rule }) if *node == leader => {
                if void || *rule != self.rule {
                    self.set_soon(picture);
                } else {
                    self.open(picture);
                }
            }
            (Gate::Barring { .. }, Event::BarrierFailed { node, why, .. }) if *node == leader => {
                self.pause(picture, why);
            }
            (Gate::Setting, Event::RuleSet { node, .. }) if *node == leader => self.set_soon(picture),
            (Gate::Pausing(until), _) if picture.now >= until => self.set_soon(picture),
            _ => {}
        }
    }

    fn pause(&mut self, picture: &mut Picture, why: &str) {
        super::suspecting::ask_store(picture);
        picture.obstacle = Some(reason::barrier_failed(&picture.cluster, &self.rule, why));
        self.gate = Gate::Pausing(picture.now.plus(picture.policy.retry));
    }
}

/// The mark of a switchover that was given up, or of one whose coordinator is gone: taken off, so that nobody holds for it.
/// A claim takes it off too.
fn end_handover(picture: &mut Picture) {
    if !picture.record.handover || picture.store_lost.is_some() || picture.settling() || picture.ownership().is_none() {
        return;
    }
    let record = Record { handover: false, ..picture.record.successor() };
    picture.publish(record);
}
