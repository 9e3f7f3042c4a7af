//! `managed = "external"`: somebody else promotes. Says who writes, and orders nothing but looks.

use super::Phase;
use super::health;
use super::picture::{Last, Picture};
use crate::action::Action;
use crate::event::Event;
use crate::node::{NodeId, Term, Timeline};
use crate::reason::{self, Reason};

/// The node that is followed, if there is one.
#[derive(Debug, Clone, Default, PartialEq, Eq, Hash)]
pub(crate) struct Following {
    primary: Option<(NodeId, u64)>,
}

impl Following {
    pub(crate) fn on(mut self, picture: &mut Picture, event: &Event) -> Phase {
        if let Event::ConnectionLost { node, .. } = event {
            picture.order(Action::ProbeNow { node: *node });
        }
        if let Event::Probed { node, .. } = event {
            let seen = picture.seen(*node);
            if seen.is_some_and(|s| s.last == Last::Refused && s.refused < picture.policy.refusals) {
                picture.order(Action::ProbeNow { node: *node });
            }
        }
        let next = writer(picture).or_else(|| self.primary.filter(|(node, _)| !is_lost(picture, *node)));
        let held = next.is_some_and(|(node, _)| picture.seen(node).is_some_and(|s| s.lost || s.last == Last::Starting));
        let next = next.filter(|_| !held);
        if next != self.primary {
            if next.is_some() {
                picture.epoch += 1;
            }
            self.primary = next;
        }
        Phase::Following(self)
    }

    pub(crate) fn open_primary(&self) -> Option<NodeId> {
        self.primary.map(|(node, _)| node)
    }

    pub(crate) fn reason(&self, _: &Picture) -> Option<Reason> {
        self.primary.is_none().then(|| {
            reason::under_way(
                "no node accepts writes; whoever manages this cluster (managed = \"external\") has to promote one",
            )
        })
    }
}

/// Of the nodes that write, the one of the highest term and timeline; none if two are equal in both.
fn writer(picture: &Picture) -> Option<(NodeId, u64)> {
    let rank = |node: NodeId| -> Option<(Option<Term>, Timeline, u64)> {
        let report = picture.reached(node)?;
        Some((report.row.map(|row| row.term), report.timeline, report.incarnation))
    };
    let writers = picture.nodes_where(|_, report| !report.in_recovery);
    let best = writers.iter().filter_map(rank).map(|(term, timeline, _)| (term, timeline)).max()?;
    let mut first = writers.iter().filter(|n| rank(*n).is_some_and(|(term, timeline, _)| (term, timeline) == best));
    match (first.next(), first.next()) {
        (Some(node), None) => Some((node, rank(node)?.2)),
        _ => None,
    }
}

fn is_lost(picture: &Picture, node: NodeId) -> bool {
    let demoted = picture.reached(node).is_some();
    demoted || health::is_gone(picture, node)
}
