//! Step 2: the term. Whoever wins the compare-and-set acts, and on nothing but the record as it is afterwards.

use super::Phase;
use super::committing::Committing;
use super::fencing::Fencing;
use super::handing::Handing;
use super::picture::Picture;
use super::suspecting::{Suspecting, promoted};
use crate::event::Event;
use crate::node::Term;
use crate::reason;
use crate::switchover::Switchover;

/// The claim is under way.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) struct Claiming {
    to: Term,
    why: Why,
}

/// What the term is claimed for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum Why {
    /// The primary is lost.
    Loss,
    /// The primary is lost, and an operator gives up what cannot be proven to be kept.
    Concession,
    /// An operator wants another primary.
    Switchover(Switchover),
}

impl Claiming {
    pub(crate) fn enter(picture: &mut Picture) -> Phase {
        let to = picture.claim(false);
        Phase::Claiming(Self { to, why: Why::Loss })
    }

    /// With an operator's word that commits may be lost.
    pub(crate) fn for_concession(picture: &mut Picture) -> Phase {
        let to = picture.claim(false);
        Phase::Claiming(Self { to, why: Why::Concession })
    }

    /// With the primary well: clients are held from here on.
    pub(crate) fn for_switchover(picture: &mut Picture, plan: Switchover) -> Phase {
        let to = picture.claim(true);
        Phase::Claiming(Self { to, why: Why::Switchover(plan) })
    }

    pub(crate) fn is_planned(&self) -> bool {
        matches!(self.why, Why::Switchover(_))
    }

    pub(crate) fn on(self, picture: &mut Picture, event: &Event) -> Phase {
        match event {
            Event::TermClaimed { record } if record.claimed == self.to => self.claimed(picture),
            Event::TermRefused { .. } => {
                // Somebody else acts: leave them the time to finish.
                picture.retry_at = picture.now.plus(picture.policy.leftover_grace);
                picture.obstacle = Some(reason::not_now("another pgsteady acts"));
                Suspecting::enter(picture)
            }
            Event::StoreLost { why } => {
                picture.back_off();
                picture.obstacle = Some(reason::store_lost(why));
                Suspecting::enter(picture)
            }
            _ => Phase::Claiming(self),
        }
    }

    fn claimed(self, picture: &mut Picture) -> Phase {
        let Some(rule) = picture.rule() else { return Suspecting::enter(picture) };
        match (promoted(picture), self.why) {
            (Some((_, intent)), _) => Committing::finish(picture, self.to, &intent),
            (None, Why::Switchover(plan)) => Handing::enter(picture, self.to, &rule, plan),
            (None, Why::Loss) => Fencing::enter(picture, self.to, &rule),
            (None, Why::Concession) => Fencing::conceded(picture, self.to, &rule),
        }
    }
}
