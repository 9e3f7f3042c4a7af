//! Step 2: the term. Whoever wins the compare-and-set acts, and on nothing but the record as it is afterwards.

use super::Phase;
use super::committing::Committing;
use super::fencing::Fencing;
use super::picture::Picture;
use super::suspecting::{Suspecting, promoted};
use crate::event::Event;
use crate::node::Term;

/// The claim is under way.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) struct Claiming {
    to: Term,
}

impl Claiming {
    pub(crate) fn enter(picture: &mut Picture) -> Phase {
        let to = picture.claim();
        Phase::Claiming(Self { to })
    }

    pub(crate) fn on(self, picture: &mut Picture, event: &Event) -> Phase {
        match event {
            Event::TermClaimed { record } if record.claimed == self.to => self.claimed(picture),
            Event::TermRefused { .. } => {
                // Somebody else acts: leave them the time to finish.
                picture.retry_at = picture.now.plus(picture.policy.leftover_grace);
                Suspecting::enter(picture)
            }
            Event::StoreLost { .. } => {
                picture.back_off();
                Suspecting::enter(picture)
            }
            _ => Phase::Claiming(self),
        }
    }

    fn claimed(self, picture: &mut Picture) -> Phase {
        let Some(rule) = picture.rule() else { return Suspecting::enter(picture) };
        match promoted(picture) {
            Some((_, intent)) => Committing::finish(picture, self.to, &intent),
            None => Fencing::enter(picture, self.to, &rule),
        }
    }
}
