//! The state machine of failover: fed by one loop, deterministic. Each phase is a type of its own and is consumed by its
//! transition; what is known of nodes and store is in [`picture`], and orders are returned as data.

use crate::action::Action;
use crate::event::Event;
use crate::node::{Millis, NodeId};
use crate::policy::{Cluster, Managed, Policy};
use crate::reason::{self, Reason};
use crate::record::Record;
use crate::switchover::{Switchover, Verdict};
use crate::view::View;

mod announce;
mod bootstrapping;
mod change;
mod claiming;
mod committing;
mod fencing;
mod following;
mod handing;
mod health;
mod picture;
mod promoting;
mod serving;
mod strays;
mod suspecting;
mod undoing;
mod unfencing;

use bootstrapping::Bootstrapping;
use claiming::Claiming;
use committing::{Committing, Publishing};
use fencing::Fencing;
use following::Following;
use handing::Handing;
use picture::Picture;
use promoting::{Intending, Promoting};
use serving::Serving;
use suspecting::Suspecting;
use undoing::Undoing;

/// The decision for one cluster. Feed it everything that happens, carry out what it returns, in order.
///
/// The first event returns the first [`Action::Announce`].
#[derive(Debug, Clone)]
pub struct Coordinator {
    picture: Picture,
    phase: Phase,
}

/// Where the protocol stands.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Phase {
    Following(Following),
    Bootstrapping(Bootstrapping),
    Suspecting(Suspecting),
    Serving(Box<Serving>),
    Claiming(Claiming),
    Handing(Box<Handing>),
    Fencing(Box<Fencing>),
    Undoing(Undoing),
    Intending(Box<Intending>),
    Promoting(Box<Promoting>),
    Committing(Box<Committing>),
    Publishing(Box<Publishing>),
}

impl Phase {
    fn open_primary(&self) -> Option<NodeId> {
        match self {
            Self::Serving(state) => state.open_primary(),
            Self::Following(state) => state.open_primary(),
            _ => None,
        }
    }

    fn on(self, picture: &mut Picture, event: &Event) -> Self {
        if let Event::SwitchoverAsked(plan) = event {
            return self.switch_over(picture, *plan);
        }
        if *event == Event::FailoverAsked {
            return self.fail_over(picture);
        }
        match self {
            Self::Following(state) => state.on(picture, event),
            Self::Bootstrapping(state) => state.on(picture, event),
            Self::Suspecting(state) => state.on(picture, event),
            Self::Serving(state) => state.on(picture, event),
            Self::Claiming(state) => state.on(picture, event),
            Self::Handing(state) => state.on(picture, event),
            Self::Fencing(state) => state.on(picture, event),
            Self::Undoing(state) => state.on(picture, event),
            Self::Intending(state) => state.on(picture, event),
            Self::Promoting(state) => state.on(picture, event),
            Self::Committing(state) => state.on(picture, event),
            Self::Publishing(state) => state.on(picture, event),
        }
    }

    /// Begins a switchover if there is a primary that serves and nothing else is under way.
    fn switch_over(self, picture: &mut Picture, plan: Switchover) -> Self {
        let begun = match self {
            Self::Serving(state) => state.switch_over(picture, plan),
            Self::Following(_) => Err((self, reason::managed_by_others())),
            other => Err((other, reason::not_now("there is no primary that serves"))),
        };
        Self::or_refused(begun, picture)
    }

    /// Begins a failover that may lose commits, if the primary is lost and no other failover is possible.
    fn fail_over(self, picture: &mut Picture) -> Self {
        let begun = match self {
            Self::Suspecting(state) => state.concede(picture),
            Self::Following(_) => Err((self, reason::managed_by_others())),
            Self::Serving(_) => Err((self, reason::needless("there is a primary that serves"))),
            Self::Bootstrapping(_) => Err((self, reason::not_now("no primary was ever adopted here"))),
            other => Err((other, reason::settling("a failover or a switchover is under way"))),
        };
        Self::or_refused(begun, picture)
    }

    /// What an operator's request has become; or nothing, and he is told why.
    fn or_refused(begun: Result<Self, (Self, Reason)>, picture: &mut Picture) -> Self {
        begun.unwrap_or_else(|(phase, why)| {
            picture.order(Action::Tell(Verdict::Refused(why)));
            phase
        })
    }

    fn name(&self) -> &'static str {
        match self {
            Self::Following(_) => "following",
            Self::Bootstrapping(_) => "bootstrapping",
            Self::Suspecting(_) => "suspecting",
            Self::Serving(_) => "serving",
            Self::Claiming(_) => "claiming",
            Self::Handing(_) => "handing",
            Self::Fencing(_) => "fencing",
            Self::Undoing(_) => "undoing",
            Self::Intending(_) => "intending",
            Self::Promoting(_) => "promoting",
            Self::Committing(_) => "committing",
            Self::Publishing(_) => "publishing",
        }
    }
}

impl Coordinator {
    /// `record` is what the store holds; `None` if it was readable and empty. A store that cannot be read is no empty one:
    /// then wait, or begin with `None` and tell `StoreLost` first.
    #[must_use]
    pub fn new(policy: Policy, cluster: Cluster, record: Option<Record>) -> Self {
        let phase = match policy.managed {
            Managed::External => Phase::Following(Following::default()),
            Managed::Pgsteady if record.as_ref().is_some_and(|record| record.rule.is_some()) => {
                Phase::Suspecting(Suspecting)
            }
            Managed::Pgsteady => Bootstrapping::enter(),
        };
        Self { picture: Picture::new(policy, cluster, record), phase }
    }

    /// Takes in one event at `now`, which never goes back, and returns what has to be done, in order.
    #[expect(clippy::needless_pass_by_value, reason = "an event is told once and is gone")]
    pub fn step(&mut self, now: Millis, event: Event) -> Vec<Action> {
        let event = &event;
        self.picture.observe(now, event);
        let phase = std::mem::replace(&mut self.phase, Phase::Suspecting(Suspecting));
        self.phase = phase.on(&mut self.picture, event);
        let view = announce::view(&self.picture, &self.phase);
        if self.picture.announced.as_ref() != Some(&view) {
            self.picture.announced = Some(view.clone());
            self.picture.order(Action::Announce(view));
        }
        self.picture.take_orders()
    }

    /// The latest announced view; `None` before the first step.
    #[must_use]
    pub fn view(&self) -> Option<&View> {
        self.picture.announced.as_ref()
    }

    /// Whether it is this instance that acts, of those that share the store.
    #[must_use]
    pub fn is_coordinator(&self) -> bool {
        self.picture.is_coordinator()
    }

    /// Why the store cannot be used; `None` if it can.
    #[must_use]
    pub fn store_lost(&self) -> Option<&str> {
        self.picture.store_lost.as_deref()
    }

    /// The record as last read or written.
    #[must_use]
    pub fn record(&self) -> &Record {
        &self.picture.record
    }

    /// The name of the phase, for logs and tests.
    #[must_use]
    pub fn phase(&self) -> &'static str {
        self.phase.name()
    }
}
