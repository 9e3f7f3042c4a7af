//! What counts as a fence, and the proof of enough of them. A [`Promotion`] is made nowhere else.
//!
//! ```compile_fail,E0451
//! // A promotion without a fence does not compile: its fields are private, and only a proof of fences makes one.
//! use decision::{NodeId, NodeSet, Promotion, Rule, Term};
//! let rule = Rule { term: Term(2), leader: NodeId(1), cohort: NodeSet::EMPTY, k: 0 };
//! let _ = Promotion { node: NodeId(1), rule, parent_row: None };
//! ```
//!
//! The same words without the last line compile, so it is the privacy that refuses:
//!
//! ```
//! use decision::{NodeId, NodeSet, Promotion, Rule, Term};
//! let rule = Rule { term: Term(2), leader: NodeId(1), cohort: NodeSet::EMPTY, k: 0 };
//! let _ = |promotion: Promotion| assert_eq!(promotion.rule(), &rule);
//! ```

use std::collections::BTreeMap;

use crate::event::Obstacle;
use crate::node::{Lsn, NodeId, NodeSet, Term, TermRow, Timeline};
use crate::record::{Intent, Origin, Rule};

/// What was read on a standby after it was fenced. That `ALTER SYSTEM` returned is no evidence: the receiver goes on
/// acknowledging while replay is paused (measured).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct FenceReading {
    /// `pg_is_in_recovery()`.
    pub in_recovery: bool,
    /// `primary_conninfo` is empty.
    pub conninfo_empty: bool,
    /// `pg_stat_wal_receiver` is empty.
    pub receiver_gone: bool,
    /// The marker.
    pub marker: Option<Term>,
}

/// How far a fenced standby's WAL goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Position {
    /// `pg_control_system()`.
    pub system_identifier: u64,
    /// The term row, after all was replayed.
    pub row: Option<TermRow>,
    /// Timeline of its last WAL.
    pub timeline: Timeline,
    /// The greater of received and replayed.
    pub lsn: Lsn,
}

impl Position {
    /// The order that says who holds more: first the term row, then the position. Position or timeline alone is wrong:
    /// two independent promotions make the same timeline number.
    #[must_use]
    pub(crate) fn rank(&self) -> (Option<Term>, Lsn) {
        (self.row.map(|row| row.term), self.lsn)
    }
}

/// One confirmed fence. Made only from a reading that shows it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) struct Confirmed {
    term: Term,
}

impl Confirmed {
    /// # Errors
    /// What is missing in the reading.
    pub(crate) fn check(reading: &FenceReading, term: Term) -> Result<Self, Obstacle> {
        if !reading.in_recovery {
            return Err(Obstacle::Writable);
        }
        match reading.marker {
            Some(marker) if marker == term => {}
            Some(marker) if marker > term => return Err(Obstacle::Superseded(marker)),
            _ => return Err(Obstacle::Other("it does not carry the marker of this fence".to_owned())),
        }
        if !reading.conninfo_empty {
            return Err(Obstacle::Other("primary_conninfo is not empty".to_owned()));
        }
        if !reading.receiver_gone {
            return Err(Obstacle::Other("its WAL receiver is still there".to_owned()));
        }
        Ok(Self { term })
    }

    /// With its position it can be counted.
    pub(crate) fn drained(self, position: Position) -> Drained {
        Drained { term: self.term, position }
    }
}

/// One confirmed fence of a standby whose position is known.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) struct Drained {
    term: Term,
    position: Position,
}

/// Why the fences are not a proof.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Short {
    /// Nobody may be promoted under this rule.
    Nobody,
    /// So many are confirmed and drained, so many are needed.
    Of {
        /// Confirmed and drained.
        have: usize,
        /// Needed.
        need: usize,
    },
    /// The node that was chosen before goes further than those that are fenced now.
    BestIsAway(NodeId),
    /// A fenced node shows a greater term than the store has ever given out.
    FromTheFuture(NodeId, Term),
}

/// Proof: among the standbys fenced and drained under this term is one that holds every commit acknowledged under `rule`.
///
/// Either enough of them are fenced, or an intent stands and one of them is as far as the node that was chosen then: the
/// choice was proven, and no fence is undone while an intent stands, so nothing was acknowledged since.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) struct Fenced {
    term: Term,
    fenced: BTreeMap<NodeId, Drained>,
}

impl Fenced {
    /// # Errors
    /// What is missing.
    pub(crate) fn prove(
        rule: &Rule,
        term: Term,
        drained: &BTreeMap<NodeId, Drained>,
        standing: Option<&Intent>,
    ) -> Result<Self, Short> {
        let need = rule.fences_needed().ok_or(Short::Nobody)?;
        let counts = |(node, d): &(NodeId, Drained)| rule.cohort.contains(*node) && d.term == term;
        let fenced: BTreeMap<_, _> = drained.iter().map(|(n, d)| (*n, *d)).filter(counts).collect();
        let row_of = |(node, d): (&NodeId, &Drained)| Some((*node, d.position.row?.term));
        if let Some((node, row)) = fenced.iter().filter_map(row_of).find(|(_, row)| *row > term) {
            return Err(Short::FromTheFuture(node, row));
        }
        let as_far = |d: &Drained, intent: &Intent| {
            let (row, lsn) = d.position.rank();
            (row.unwrap_or_default(), lsn) >= (intent.origin.term, intent.origin.lsn)
        };
        let proven_before = standing.is_some_and(|intent| fenced.values().any(|d| as_far(d, intent)));
        let have = fenced.len();
        match standing {
            _ if have >= need || proven_before => Ok(Self { term, fenced }),
            Some(intent) if have > 0 => Err(Short::BestIsAway(intent.node)),
            _ => Err(Short::Of { have, need }),
        }
    }

    /// No proof, but an operator's word that what these standbys lack may be lost; `None` without any. Everything that follows is
    /// as with a proof: the old primary's term is over, and the one furthest on is chosen.
    pub(crate) fn concede(term: Term, drained: &BTreeMap<NodeId, Drained>) -> Option<Self> {
        let fenced: BTreeMap<_, _> = drained.iter().map(|(n, d)| (*n, *d)).filter(|(_, d)| d.term == term).collect();
        (!fenced.is_empty()).then_some(Self { term, fenced })
    }

    /// Those that hold every acknowledged commit: the ones of the highest rank.
    pub(crate) fn best(&self) -> NodeSet {
        let best = self.fenced.values().map(|d| d.position.rank()).max();
        self.fenced.iter().filter(|(_, d)| Some(d.position.rank()) == best).map(|(n, _)| *n).collect()
    }

    /// Those fenced whose WAL is a prefix of this node's.
    pub(crate) fn prefixes_of(&self, node: NodeId) -> NodeSet {
        let Some(of) = self.fenced.get(&node).map(|d| d.position) else { return NodeSet::EMPTY };
        let holds = |p: &Position| {
            p.timeline == of.timeline && p.lsn <= of.lsn && p.row.map(|r| r.term) == of.row.map(|r| r.term)
        };
        self.fenced.iter().filter(|(n, d)| **n != node && holds(&d.position)).map(|(n, _)| *n).collect()
    }

    /// What the store has to hold before [`Fenced::promotion`] is ordered; `None` if this node is not of the best.
    pub(crate) fn intent(&self, node: NodeId, cohort: NodeSet, k: u32) -> Option<Intent> {
        if !self.best().contains(node) {
            return None;
        }
        let position = self.fenced.get(&node)?.position;
        let term = position.row.map(|row| row.term).unwrap_or_default();
        let origin = Origin { term, timeline: position.timeline, lsn: position.lsn, next_xid: None };
        Some(Intent { node, term: self.term, cohort, k, origin })
    }

    /// The permission, once the intent is durable; `None` if it is not of this proof.
    pub(crate) fn promotion(&self, durable: &Intent) -> Option<Promotion> {
        if durable.term != self.term || !self.best().contains(durable.node) {
            return None;
        }
        let rule = Rule { term: self.term, leader: durable.node, cohort: durable.cohort, k: durable.k };
        let parent_row = self.fenced.get(&durable.node)?.position.row.map(|row| row.term);
        Some(Promotion { node: durable.node, rule, parent_row })
    }
}

/// Permission to promote one node, under one term, with one rule set first.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Promotion {
    node: NodeId,
    rule: Rule,
    parent_row: Option<Term>,
}

impl Promotion {
    /// The node.
    #[must_use]
    pub fn node(&self) -> NodeId {
        self.node
    }

    /// The new term: also the marker that the node must carry.
    #[must_use]
    pub fn term(&self) -> Term {
        self.rule.term
    }

    /// What its `synchronous_standby_names` has to be before it is promoted.
    #[must_use]
    pub fn rule(&self) -> &Rule {
        &self.rule
    }

    /// The term row it must show: it was chosen as a node of that history.
    #[must_use]
    pub fn parent_row(&self) -> Option<Term> {
        self.parent_row
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::node::NodeSet;

    const TERM: Term = Term(5);

    fn reading() -> FenceReading {
        FenceReading { in_recovery: true, conninfo_empty: true, receiver_gone: true, marker: Some(TERM) }
    }

    fn fenced_at(lsn: u64, row: u64) -> Drained {
        let position = Position {
            system_identifier: 1,
            row: Some(TermRow { term: Term(row), leader: None }),
            timeline: Timeline(1),
            lsn: Lsn(lsn),
        };
        Confirmed::check(&reading(), TERM).unwrap().drained(position)
    }

    fn rule() -> Rule {
        Rule { term: Term(4), leader: NodeId(0), cohort: [NodeId(1), NodeId(2)].into_iter().collect(), k: 1 }
    }

    #[test]
    fn every_part_of_the_evidence_is_needed() {
        assert!(Confirmed::check(&reading(), TERM).is_ok());
        for broken in [
            FenceReading { in_recovery: false, ..reading() },
            FenceReading { conninfo_empty: false, ..reading() },
            FenceReading { receiver_gone: false, ..reading() },
            FenceReading { marker: None, ..reading() },
            FenceReading { marker: Some(Term(4)), ..reading() },
        ] {
            assert!(Confirmed::check(&broken, TERM).is_err(), "{broken:?}");
        }
        let later = FenceReading { marker: Some(Term(6)), ..reading() };
        assert_eq!(Confirmed::check(&later, TERM), Err(Obstacle::Superseded(Term(6))));
    }

    #[test]
    fn the_term_row_goes_before_the_position() {
        let drained = BTreeMap::from([(NodeId(1), fenced_at(900, 3)), (NodeId(2), fenced_at(10, 4))]);
        let proof = Fenced::prove(&rule(), TERM, &drained, None).unwrap();
        assert_eq!(proof.best(), [NodeId(2)].into_iter().collect::<NodeSet>());
        assert_eq!(proof.intent(NodeId(1), NodeSet::EMPTY, 0), None);
    }

    #[test]
    fn one_fence_is_not_two_but_with_an_intent_that_stands() {
        let one = BTreeMap::from([(NodeId(2), fenced_at(10, 4))]);
        assert_eq!(Fenced::prove(&rule(), TERM, &one, None), Err(Short::Of { have: 1, need: 2 }));
        let origin = Origin { term: Term(4), timeline: Timeline(1), lsn: Lsn(10), next_xid: None };
        let stands = Intent { node: NodeId(1), term: Term(4), cohort: NodeSet::EMPTY, k: 0, origin };
        assert!(Fenced::prove(&rule(), TERM, &one, Some(&stands)).is_ok());
        let further = Intent { origin: Origin { lsn: Lsn(11), ..origin }, ..stands };
        assert_eq!(Fenced::prove(&rule(), TERM, &one, Some(&further)), Err(Short::BestIsAway(NodeId(1))));
    }

    #[test]
    fn fences_of_another_term_or_of_strangers_do_not_count() {
        let stranger = BTreeMap::from([(NodeId(2), fenced_at(10, 4)), (NodeId(3), fenced_at(10, 4))]);
        assert_eq!(Fenced::prove(&rule(), TERM, &stranger, None), Err(Short::Of { have: 1, need: 2 }));
        let both = BTreeMap::from([(NodeId(1), fenced_at(10, 4)), (NodeId(2), fenced_at(10, 4))]);
        assert_eq!(Fenced::prove(&rule(), Term(6), &both, None), Err(Short::Of { have: 0, need: 2 }));
        let nobody = Rule { cohort: NodeSet::EMPTY, k: 0, ..rule() };
        assert_eq!(Fenced::prove(&nobody, TERM, &both, None), Err(Short::Nobody));
    }
}
