//! Steps 4 and 5: choose, make the choice durable, promote.

use super::Phase;
use super::committing::Committing;
use super::picture::Picture;
use super::suspecting::Suspecting;
use crate::action::Action;
use crate::candidate;
use crate::event::Event;
use crate::fence::{Fenced, Promotion};
use crate::node::{NodeId, NodeSet};
use crate::reason;
use crate::record::{Intent, Origin, Record};

/// The choice is on its way into the store. From the moment it is written there is only forward.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) struct Intending {
    proof: Fenced,
    intent: Intent,
}

impl Intending {
    /// `wanted` is of the best.
    pub(crate) fn enter(picture: &mut Picture, proof: Fenced, wanted: Option<NodeId>) -> Phase {
        let old = picture.rule();
        let node = wanted.or_else(|| candidate::choose(&proof, &picture.cluster, &picture.policy));
        let Some((old, node)) = old.zip(node) else { return Suspecting::enter(picture) };
        let (cohort, k) = candidate::new_rule(&proof, node, &old, &picture.policy);
        let Some(intent) = proof.intent(node, cohort, k) else { return Suspecting::enter(picture) };
        let record = Record { intent: Some(intent), ..picture.record.successor() };
        picture.publish(record);
        Phase::Intending(Box::new(Self { proof, intent }))
    }

    pub(crate) fn on(self: Box<Self>, picture: &mut Picture, event: &Event) -> Phase {
        match event {
            Event::Published { .. } if picture.record.intent == Some(self.intent) => self.promote(picture),
            Event::PublishRefused { .. } => {
                picture.retry_at = picture.now.plus(picture.policy.leftover_grace);
                Suspecting::enter(picture)
            }
            Event::StoreLost { .. } => {
                picture.back_off();
                Suspecting::enter(picture)
            }
            _ => Phase::Intending(self),
        }
    }

    fn promote(&self, picture: &mut Picture) -> Phase {
        let Some(promotion) = self.proof.promotion(&self.intent) else { return Suspecting::enter(picture) };
        picture.order(Action::Promote(promotion.clone()));
        let followers = self.proof.prefixes_of(promotion.node());
        Phase::Promoting(Box::new(Promoting { promotion, origin: self.intent.origin, followers }))
    }
}

/// `pg_promote` is ordered.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Promoting {
    promotion: Promotion,
    origin: Origin,
    followers: NodeSet,
}

impl Promoting {
    pub(crate) fn node(&self) -> NodeId {
        self.promotion.node()
    }

    pub(crate) fn on(self: Box<Self>, picture: &mut Picture, event: &Event) -> Phase {
        let (ours, our_term) = (self.promotion.node(), self.promotion.term());
        match event {
            Event::Promoted { node, term, .. } if *node == ours && *term == our_term => {
                Committing::enter(picture, *self.promotion.rule(), self.origin, self.followers)
            }
            Event::PromoteFailed { node, term, why } if *node == ours && *term == our_term => {
                picture.obstacle = Some(reason::promotion_failed(&picture.cluster, ours, why));
                if picture.attempts > 0 {
                    picture.back_off();
                } else {
                    // The first failure may well be the node's death: another one holds as much.
                    picture.attempts = 1;
                    picture.retry_at = picture.now;
                }
                Suspecting::enter(picture)
            }
            _ => Phase::Promoting(self),
        }
    }
}
