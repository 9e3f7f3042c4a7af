//! Fences that somebody left behind while the primary is well: undone, but only under a claim of our own. With the claim
//! their coordinator cannot make its choice durable any more, so nobody is promoted on fences that are being undone.

use super::picture::Picture;
use super::strays;
use crate::action::Action;
use crate::event::Event;
use crate::node::NodeSet;
use crate::record::Rule;

/// Whether such fences are being undone.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash)]
pub(crate) enum Unfencing {
    #[default]
    Idle,
    /// These have not answered yet.
    Undoing(NodeSet),
}

impl Unfencing {
    pub(crate) fn on(&mut self, picture: &mut Picture, rule: &Rule, event: &Event) {
        if let (Self::Undoing(left), Event::Unfenced { node, .. } | Event::UnfenceFailed { node, .. }) = (*self, event)
        {
            let left = left.without(*node);
            *self = if left.is_empty() { Self::Idle } else { Self::Undoing(left) };
        }
        let leftovers = strays::leftovers(picture, rule);
        if *self != Self::Idle || leftovers.is_empty() || picture.ownership().is_none() {
            return;
        }
        let due: Vec<_> = leftovers.into_iter().filter(|(node, _)| strays::is_due(picture, *node)).collect();
        for (node, term) in &due {
            picture.order(Action::Unfence { node: *node, term: *term, upstream: rule.leader });
        }
        if !due.is_empty() {
            *self = Self::Undoing(due.iter().map(|(node, _)| *node).collect());
        }
    }
}
