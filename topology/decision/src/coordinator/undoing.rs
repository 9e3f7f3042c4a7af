//! An attempt is given up: the standbys go back to their primary. Only before a promotion could have been ordered.

use std::collections::BTreeMap;

use super::Phase;
use super::picture::Picture;
use super::suspecting::Suspecting;
use crate::action::Action;
use crate::event::Event;
use crate::node::{NodeId, NodeSet, Term};

/// Fences are being undone.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) struct Undoing {
    waiting: NodeSet,
}

impl Undoing {
    pub(crate) fn enter(picture: &mut Picture, fences: &BTreeMap<NodeId, Term>, upstream: NodeId) -> Phase {
        for (node, term) in fences {
            picture.order(Action::Unfence { node: *node, term: *term, upstream });
        }
        Phase::Undoing(Self { waiting: fences.keys().copied().collect() })
    }

    pub(crate) fn on(mut self, picture: &mut Picture, event: &Event) -> Phase {
        if let Event::Unfenced { node, .. } | Event::UnfenceFailed { node, .. } = event {
            self.waiting = self.waiting.without(*node);
        }
        if self.waiting.is_empty() { Suspecting::enter(picture) } else { Phase::Undoing(self) }
    }
}
