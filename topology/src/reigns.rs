//! Who led the cluster, one after the other, without a gap: as far as it was seen, transaction ids can be compared across it.
//! Nothing is decided by it.

use std::sync::Arc;

use crate::Reign;

/// Reigns that are remembered.
const MAX_REIGNS: usize = 16;

/// A node as a reading showed it.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Life {
    pub(crate) node: usize,
    pub(crate) incarnation: i64,
    pub(crate) witness: i32,
}

impl Life {
    fn is(&self, reign: &Reign) -> bool {
        (reign.node, reign.incarnation) == (self.node, self.incarnation)
    }
}

/// The latest reigns, in order.
#[derive(Debug, Default)]
pub(crate) struct Reigns(Vec<Reign>);

impl Reigns {
    /// A reading shows the leader of the record at work. `recovered` is the next transaction id that it came up with, if it
    /// can still tell.
    pub(crate) fn seen(&mut self, term: u64, leader: Life, recovered: Option<u64>, number: u64) {
        let Life { node, incarnation, witness } = leader;
        match self.0.last_mut() {
            Some(last) if leader.is(last) => {
                last.seen = last.seen.max(number);
                last.witness = witness;
            }
            Some(last) if (last.node, last.term) == (node, term) => {
                self.push(Reign { node, incarnation, term, next_xid: recovered, seen: number, witness });
            }
            // another primary counts when it is opened
            _ => {}
        }
    }

    /// A primary is opened. `origin`: the term that it was promoted from, and its next transaction id then.
    pub(crate) fn opened(&mut self, term: u64, leader: Life, origin: Option<(u64, Option<u64>)>) {
        let Life { node, incarnation, witness } = leader;
        let next_xid = match self.0.last_mut() {
            Some(last) if leader.is(last) => {
                last.term = term;
                return;
            }
            Some(last) if origin.is_some_and(|(parent, _)| parent == last.term) => origin.and_then(|(_, xid)| xid),
            // a reign in between was not seen
            _ => {
                self.0.clear();
                None
            }
        };
        self.push(Reign { node, incarnation, term, next_xid, seen: 0, witness });
    }

    fn push(&mut self, reign: Reign) {
        if self.0.len() >= MAX_REIGNS {
            self.0.remove(0);
        }
        self.0.push(reign);
    }

    /// For the snapshot.
    pub(crate) fn all(&self) -> Arc<[Reign]> {
        self.0.as_slice().into()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn life(node: usize, incarnation: i64) -> Life {
        Life { node, incarnation, witness: 1 }
    }

    fn story(reigns: &Reigns) -> Vec<(usize, i64, Option<u64>)> {
        reigns.0.iter().map(|reign| (reign.node, reign.incarnation, reign.next_xid)).collect()
    }

    #[test]
    fn promotions_and_restarts_follow_one_another() {
        let mut reigns = Reigns::default();
        reigns.opened(1, life(0, 10), None);
        reigns.seen(1, life(0, 10), None, 5);
        reigns.seen(1, life(0, 11), Some(700), 7);
        reigns.seen(1, life(0, 11), None, 9);
        reigns.opened(2, life(1, 20), Some((1, Some(900))));
        assert_eq!(story(&reigns), [(0, 10, None), (0, 11, Some(700)), (1, 20, Some(900))]);
        assert_eq!(reigns.all().iter().map(|reign| reign.seen).collect::<Vec<_>>(), [5, 9, 0]);
    }

    #[test]
    fn a_gap_makes_the_past_unknown() {
        let mut reigns = Reigns::default();
        reigns.opened(1, life(0, 10), None);
        reigns.opened(3, life(1, 20), Some((2, Some(900))));
        assert_eq!(story(&reigns), [(1, 20, None)], "the primary of term 2 was not seen");
        reigns.opened(4, life(2, 30), None);
        assert_eq!(story(&reigns), [(2, 30, None)]);
    }

    #[test]
    fn the_old_primary_is_no_reign_of_the_new_term() {
        let mut reigns = Reigns::default();
        reigns.opened(1, life(0, 10), None);
        reigns.opened(2, life(1, 20), Some((1, Some(900))));
        reigns.seen(1, life(0, 12), Some(950), 5);
        assert_eq!(story(&reigns), [(0, 10, None), (1, 20, Some(900))]);
        reigns.opened(3, life(1, 20), None);
        assert_eq!(reigns.0.last().map(|reign| reign.term), Some(3), "the same primary, finished under another term");
    }
}
