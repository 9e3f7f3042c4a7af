//! What a model node does with an order, and how a lying driver would answer.

use decision::{
    Action, Event, FenceReading, Lsn, NodeId, Obstacle, Position, Promotion, Rule, Term, TermRow, Timeline, Upstream,
};

use super::{SYSTEM, World};

/// A mistake that a driver or model could make; the simulation has to notice each.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Lie {
    /// Standbys that do not answer are counted as fenced.
    UnreachableIsFenced,
    /// `ALTER SYSTEM` returned, so it is fenced.
    AlterSystemIsEnough,
    /// The term row counts without an acknowledgement, and so does the barrier.
    NoWait,
    /// All fenced standbys are said to be equally far.
    SamePosition,
    /// Fences are undone without looking at the marker.
    BlindUnfence,
    /// The promoted node acknowledges alone.
    NoSyncNames,
    /// The store accepts every write.
    NoCompareAndSet,
}

/// How an order ended at the node.
#[derive(Debug, Clone)]
pub(crate) enum Answer {
    /// With this event (`None`: the order has no answer).
    Now(Option<Event>),
    /// It waits until this write is acknowledged.
    When(u64, Event),
    /// `pg_promote` is accepted.
    Promoting(Event),
}

pub(crate) fn node_of(action: &Action) -> Option<NodeId> {
    match action {
        Action::ReadStore
        | Action::ClaimTerm { .. }
        | Action::Publish { .. }
        | Action::Announce(_)
        | Action::Tell(_) => None,
        Action::Promote(promotion) => Some(promotion.node()),
        Action::ProbeNow { node }
        | Action::Quiesce { node, .. }
        | Action::Fence { node, .. }
        | Action::Unfence { node, .. }
        | Action::Drain { node, .. }
        | Action::Repoint { node, .. }
        | Action::WriteTerm { node, .. }
        | Action::SetRule { node, .. }
        | Action::Barrier { node, .. }
        | Action::Checkpoint { node }
        | Action::Quarantine { node } => Some(*node),
    }
}

/// The failure that an order ends with if nobody answers in time.
pub(crate) fn failure(action: &Action, lie: Option<Lie>) -> Option<Event> {
    let why = "no answer in time".to_owned();
    Some(match action.clone() {
        Action::Fence { node, term } if lie == Some(Lie::UnreachableIsFenced) => {
            let reading =
                FenceReading { in_recovery: true, conninfo_empty: true, receiver_gone: true, marker: Some(term) };
            Event::Fenced { node, term, reading }
        }
        Action::Drain { node, term } if lie == Some(Lie::UnreachableIsFenced) => {
            let nothing = Position { system_identifier: SYSTEM, row: None, timeline: Timeline(1), lsn: Lsn(0) };
            Event::Drained { node, term, position: nothing }
        }
        Action::Fence { node, term } => Event::FenceFailed { node, term, why: Obstacle::Unreachable },
        Action::Drain { node, term } => Event::DrainFailed { node, term, why },
        Action::Unfence { node, term, .. } => Event::UnfenceFailed { node, term, why },
        Action::Promote(promotion) => Event::PromoteFailed { node: promotion.node(), term: promotion.term(), why },
        Action::Repoint { node, upstream, .. } => Event::RepointFailed { node, upstream, why },
        Action::WriteTerm { node, rule } => Event::TermWriteFailed { node, rule, why },
        Action::SetRule { node, rule, .. } => Event::RuleSetFailed { node, rule, why },
        Action::Barrier { node, rule } => Event::BarrierFailed { node, rule, why },
        Action::Quiesce { node, term, .. } => Event::QuiesceFailed { node, term, why },
        Action::ReadStore | Action::ClaimTerm { .. } | Action::Publish { .. } => Event::StoreLost { why },
        Action::ProbeNow { .. }
        | Action::Checkpoint { .. }
        | Action::Quarantine { .. }
        | Action::Announce(_)
        | Action::Tell(_) => return None,
    })
}

impl World {
    /// Carries an order out on a node that is up and reachable.
    pub(crate) fn execute(&mut self, action: &Action, lie: Option<Lie>) -> Answer {
        match action {
            Action::Fence { node, term } => Answer::Now(Some(self.fence(*node, *term, lie))),
            Action::Drain { node, term } => Answer::Now(Some(self.drain(*node, *term, lie))),
            Action::Unfence { node, term, upstream } => {
                let own = self.node(*node).marker == Some(*term) || lie == Some(Lie::BlindUnfence);
                if !own || !self.node(*node).recovery {
                    return Answer::Now(failure(action, None));
                }
                self.point(*node, *upstream);
                Answer::Now(Some(Event::Unfenced { node: *node, term: *term }))
            }
            Action::Repoint { node, upstream, marker, claim } => {
                if self.store.claimed() != Some(*claim)
                    || self.node(*node).marker != *marker
                    || !self.node(*node).recovery
                {
                    return Answer::Now(failure(action, None));
                }
                self.point(*node, *upstream);
                Answer::Now(Some(Event::Repointed { node: *node, upstream: *upstream }))
            }
            Action::Promote(promotion) => self.promote(action, promotion, lie),
            Action::WriteTerm { node, rule } => self.write_term(action, *node, rule, lie),
            Action::SetRule { node, rule, claim } => {
                if self.store.claimed() != Some(*claim) {
                    return Answer::Now(failure(action, None));
                }
                self.node_mut(*node).sync_names = rule.sync_names();
                Answer::Now(Some(Event::RuleSet { node: *node, rule: *rule }))
            }
            Action::Quiesce { node, term, .. } => {
                let postgres = self.node(*node);
                if postgres.recovery {
                    return Answer::Now(failure(action, None));
                }
                let lsn = Lsn(postgres.wal.len() as u64);
                Answer::Now(Some(Event::Quiesced { node: *node, term: *term, lsn }))
            }
            Action::Barrier { node, rule } => {
                if self.node(*node).recovery {
                    return Answer::Now(failure(action, None));
                }
                let id = self.write(*node, None);
                let passed = Event::BarrierPassed { node: *node, rule: *rule };
                if lie == Some(Lie::NoWait) { Answer::Now(Some(passed)) } else { Answer::When(id, passed) }
            }
            _ => Answer::Now(None),
        }
    }

    fn point(&mut self, node: NodeId, upstream: NodeId) {
        let node = self.node_mut(node);
        node.upstream = Upstream::Node(upstream);
        node.marker = None;
    }

    fn fence(&mut self, node: NodeId, term: Term, lie: Option<Lie>) -> Event {
        let postgres = self.node_mut(node);
        if !postgres.recovery {
            return Event::FenceFailed { node, term, why: Obstacle::Writable };
        }
        if let Some(marker) = postgres.marker.filter(|marker| *marker > term) {
            return Event::FenceFailed { node, term, why: Obstacle::Superseded(marker) };
        }
        postgres.upstream = Upstream::Empty;
        postgres.marker = Some(term);
        if !postgres.stuck {
            postgres.paused = false;
        }
        if !postgres.paused {
            postgres.receiver = None;
            postgres.replayed = postgres.wal.len();
        }
        let gone = postgres.receiver.is_none() || lie == Some(Lie::AlterSystemIsEnough);
        if !gone {
            return Event::FenceFailed { node, term, why: Obstacle::ReplayPaused };
        }
        let reading =
            FenceReading { in_recovery: true, conninfo_empty: true, receiver_gone: true, marker: postgres.marker };
        Event::Fenced { node, term, reading }
    }

    fn drain(&mut self, node: NodeId, term: Term, lie: Option<Lie>) -> Event {
        let postgres = self.node_mut(node);
        if postgres.marker != Some(term) || !postgres.recovery || (postgres.paused && lie.is_none()) {
            return Event::DrainFailed { node, term, why: "not fenced by this term, or stuck".to_owned() };
        }
        postgres.replayed = postgres.wal.len();
        let mut position = postgres.position();
        if lie == Some(Lie::SamePosition) {
            position.lsn = Lsn(1);
        }
        Event::Drained { node, term, position }
    }

    fn promote(&mut self, action: &Action, promotion: &Promotion, lie: Option<Lie>) -> Answer {
        let (node, term) = (promotion.node(), promotion.term());
        let postgres = self.node_mut(node);
        let guard = postgres.recovery
            && postgres.marker == Some(term)
            && postgres.upstream == Upstream::Empty
            && postgres.row().map(|row| row.term) == promotion.parent_row();
        if !guard {
            return Answer::Now(failure(action, None));
        }
        postgres.sync_names = match lie {
            Some(Lie::NoSyncNames) => decision::SyncNames::Nobody,
            _ => promotion.rule().sync_names(),
        };
        postgres.promoting = true;
        let timeline = Timeline(postgres.timeline() + 1);
        Answer::Promoting(Event::Promoted { node, term, timeline, next_xid: 1_000 + postgres.wal.len() as u64 })
    }

    fn write_term(&mut self, action: &Action, node: NodeId, rule: &Rule, lie: Option<Lie>) -> Answer {
        let there = self.node(node).row().map(|row| row.term);
        if self.node(node).recovery || there > Some(rule.term) {
            return Answer::Now(failure(action, None));
        }
        let writer = *self.writers.entry(rule.term).or_insert(node);
        if writer != node {
            self.violation(format!("{writer} and {node} both write under term {}", rule.term));
        }
        let id = self.write(node, Some(TermRow { term: rule.term, leader: Some(rule.leader) }));
        let written = Event::TermWritten { node, rule: *rule };
        if lie == Some(Lie::NoWait) { Answer::Now(Some(written)) } else { Answer::When(id, written) }
    }
}
