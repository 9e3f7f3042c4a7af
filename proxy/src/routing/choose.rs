//! Which node a transaction goes to: by what it wants, what the session has seen, and what the nodes are. It keeps nothing
//! but what it is given.
//!
//! *Causal reads.* After a commit the session notes how many readings of the primary's position have begun. A reading with
//! a greater number began after the commit, so its position bounds the commit from above: a standby that has replayed it
//! shows the commit. Until there is one, the session reads on the primary.
//!
//! *No way back in time.* What was read on the primary is tagged in the same way. What was read on a standby is visible
//! on that standby for ever, and on another one when it has replayed a position read from the primary later; so the session stays
//! with its standby until then. (The replay position in the snapshot is older than what the transaction saw, so it
//! bounds nothing.)

use std::time::Duration;

use topology::{Lsn, Node, Role, Topology};

use super::Route;

/// What a transaction asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Want {
    /// The primary and nothing else.
    Primary,
    /// A standby, because the client says so; the primary if none may be used.
    Replica,
    /// It is proven to read only: a standby, else the primary.
    Read,
}

/// Where the transaction goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Choice {
    /// To this node of the snapshot.
    Node(usize),
    /// Nowhere now: the client waits for the next snapshot.
    Hold,
}

/// What decides between standbys.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ReplicaPolicy<'a> {
    /// The data of a standby may be this old; one of unknown age is then not used. `None`: of any age.
    pub max_lag: Option<Duration>,
    /// Servers on loan by node, in the order of the snapshot; a node that is missing counts as idle.
    pub load: &'a [u32],
    /// A random number, fresh for each choice.
    pub random: u32,
}

/// What a session has written and seen, and therefore has to find again.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ReadAfter {
    /// The epoch under which the rest was noted; 0 before the first.
    epoch: u64,
    /// `samples_begun` after the last transaction on the primary, until a later reading bounds it.
    wrote: Option<u64>,
    /// A standby has to have replayed this.
    position: Lsn,
    /// The last read on a standby.
    seen: Option<Seen>,
}

/// A read on a standby.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Seen {
    /// The standby that shows it for ever.
    node: usize,
    /// `samples_begun` after it, until a later reading bounds it.
    begun: Option<u64>,
    /// Any other standby has to have replayed this.
    position: Lsn,
}

impl Want {
    /// What follows from the route that was decided and from what the transaction begins with.
    #[must_use]
    pub fn of(route: Route, reads_only: bool) -> Self {
        match route {
            Route::Primary => Want::Primary,
            Route::Replica => Want::Replica,
            Route::Auto if reads_only => Want::Read,
            Route::Auto => Want::Primary,
        }
    }
}

/// The node for a transaction. `session` has to have [met](ReadAfter::meet) this snapshot.
///
/// Of the standbys that may be used, two are drawn and the one with fewer servers on loan is taken.
#[must_use]
pub fn choose(topology: &Topology, want: Want, session: &ReadAfter, policy: &ReplicaPolicy<'_>) -> Choice {
    let primary = topology.primary.map_or(Choice::Hold, Choice::Node);
    if want == Want::Primary {
        return primary;
    }
    let eligible = || {
        let nodes = topology.nodes.iter().enumerate();
        nodes.filter(|(index, node)| session.accepts(topology, *index, node, policy.max_lag)).map(|(index, _)| index)
    };
    let count = eligible().count();
    let (first, second) = two_of(count, policy.random);
    let (Some(one), Some(two)) = (eligible().nth(first), eligible().nth(second)) else { return primary };
    let load = |node: usize| policy.load.get(node).copied().unwrap_or(0);
    Choice::Node(if load(two) < load(one) { two } else { one })
}

/// Two places out of `count`, different if there are two.
fn two_of(count: usize, random: u32) -> (usize, usize) {
    if count < 2 {
        return (0, 0);
    }
    let (high, low) = ((random >> 16) as usize, (random & 0xffff) as usize);
    let first = low % count;
    (first, (first + 1 + high % (count - 1)) % count)
}

impl ReadAfter {
    /// A session that has seen nothing.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Takes in a snapshot: a reading of the primary's position may bound what was noted, and a new epoch makes
    /// older positions worthless, so that reads wait for the first reading after it.
    pub fn meet(&mut self, topology: &Topology) {
        if topology.epoch != self.epoch {
            self.meet_epoch(topology);
        }
        let sample = topology.sample;
        if self.wrote.is_some_and(|begun| sample.number > begun) {
            self.wrote = None;
            self.position = self.position.max(sample.position);
        }
        if let Some(seen) = &mut self.seen
            && seen.begun.is_some_and(|begun| sample.number > begun)
        {
            seen.begun = None;
            seen.position = seen.position.max(sample.position);
        }
    }

    fn meet_epoch(&mut self, topology: &Topology) {
        let tagged = self.wrote.is_some() || self.seen.is_some() || self.position > Lsn(0);
        *self = Self { epoch: topology.epoch, ..Self::default() };
        if tagged {
            self.wrote = Some(topology.sample.number);
        }
    }

    /// A transaction on the primary has ended, of whatever kind. `samples_begun` is taken *after* its end was seen.
    pub fn used_primary(&mut self, samples_begun: u64) {
        self.wrote = Some(samples_begun);
        self.seen = None; // the primary is ahead of every standby
    }

    /// A transaction on the standby `node` has ended. `samples_begun` is taken *after* its end was seen.
    pub fn used_standby(&mut self, node: usize, samples_begun: u64) {
        // The position of an earlier read on another standby was replayed here, or this one would not have been chosen.
        self.seen = Some(Seen { node, begun: Some(samples_begun), position: Lsn(0) });
    }

    /// Whether the session may read on this node as of this snapshot.
    fn accepts(&self, topology: &Topology, index: usize, node: &Node, max_lag: Option<Duration>) -> bool {
        node.role == Role::Standby
            && self.epoch_known(topology)
            && self.wrote.is_none()
            && node.replayed >= self.position
            && max_lag.is_none_or(|most| node.lag.is_some_and(|lag| lag <= most))
            && self.seen.is_none_or(|seen| seen.allows(index, node))
    }

    /// A session that has noted something under another epoch, and has not met this snapshot, is not led to a standby.
    fn epoch_known(&self, topology: &Topology) -> bool {
        self.epoch == topology.epoch || *self == Self { epoch: self.epoch, ..Self::default() }
    }
}

impl Seen {
    fn allows(&self, index: usize, node: &Node) -> bool {
        index == self.node || (self.begun.is_none() && node.replayed >= self.position)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use topology::{Address, PrimarySample};

    const FREE: ReplicaPolicy<'_> = ReplicaPolicy { max_lag: None, load: &[], random: 0 };

    /// A primary and standbys that have replayed this far.
    fn cluster(replayed: &[u64]) -> Topology {
        let mut topology = Topology::single("n0", Address::Tcp("n0".into(), 5432));
        for (index, position) in replayed.iter().enumerate() {
            let mut node = topology.nodes[0].clone();
            node.name = format!("n{}", index + 1).into();
            node.role = Role::Standby;
            node.replayed = Lsn(*position);
            topology.nodes.push(node);
        }
        topology
    }

    fn sampled(mut topology: Topology, number: u64, position: u64) -> Topology {
        topology.sample = PrimarySample { number, position: Lsn(position) };
        topology
    }

    fn met(topology: &Topology) -> ReadAfter {
        let mut session = ReadAfter::new();
        session.meet(topology);
        session
    }

    /// Every node that a read may be sent to, over many random numbers.
    fn reachable(topology: &Topology, session: &ReadAfter, policy: ReplicaPolicy<'_>) -> Vec<usize> {
        let mut nodes: Vec<usize> = (0..200_u32)
            .map(|seed| seed.wrapping_mul(0x9e37_79b9))
            .filter_map(|random| match choose(topology, Want::Read, session, &ReplicaPolicy { random, ..policy }) {
                Choice::Node(node) => Some(node),
                Choice::Hold => None,
            })
            .collect();
        nodes.sort_unstable();
        nodes.dedup();
        nodes
    }

    #[test]
    fn a_route_and_what_it_reads_make_a_want() {
        assert_eq!(Want::of(Route::Auto, true), Want::Read);
        assert_eq!(Want::of(Route::Auto, false), Want::Primary);
        assert_eq!(Want::of(Route::Primary, true), Want::Primary);
        assert_eq!(Want::of(Route::Replica, false), Want::Replica);
    }

    #[test]
    fn writes_go_to_the_primary_and_wait_without_one() {
        let mut topology = cluster(&[0, 0]);
        assert_eq!(choose(&topology, Want::Primary, &met(&topology), &FREE), Choice::Node(0));
        topology.primary = None;
        topology.nodes[0].role = Role::Out;
        assert_eq!(choose(&topology, Want::Primary, &met(&topology), &FREE), Choice::Hold);
        assert_eq!(reachable(&topology, &met(&topology), FREE), [1, 2]);
    }

    #[test]
    fn a_read_goes_to_a_standby_and_else_to_the_primary() {
        let mut topology = cluster(&[0, 0, 0]);
        assert_eq!(reachable(&topology, &met(&topology), FREE), [1, 2, 3]);
        topology.nodes[2].role = Role::Out;
        assert_eq!(reachable(&topology, &met(&topology), FREE), [1, 3]);
        topology.nodes[1].role = Role::Out;
        topology.nodes[3].role = Role::Out;
        assert_eq!(reachable(&topology, &met(&topology), FREE), [0]);
        assert_eq!(choose(&topology, Want::Replica, &met(&topology), &FREE), Choice::Node(0));
        topology.primary = None;
        assert_eq!(choose(&topology, Want::Replica, &met(&topology), &FREE), Choice::Hold);
    }

    #[test]
    fn an_old_standby_and_one_of_unknown_age_are_not_used() {
        let mut topology = cluster(&[0, 0, 0]);
        topology.nodes[1].lag = Some(Duration::from_secs(10));
        topology.nodes[2].lag = Some(Duration::from_millis(10_001));
        topology.nodes[3].lag = None;
        let policy = ReplicaPolicy { max_lag: Some(Duration::from_secs(10)), ..FREE };
        assert_eq!(reachable(&topology, &met(&topology), policy), [1]);
        assert_eq!(reachable(&topology, &met(&topology), FREE), [1, 2, 3]);
    }

    #[test]
    fn of_two_the_one_with_less_on_loan_is_taken_and_all_get_their_share() {
        let topology = cluster(&[0, 0]);
        let policy = ReplicaPolicy { load: &[0, 5, 4], ..FREE };
        assert_eq!(reachable(&topology, &met(&topology), policy), [2]);
        let many = cluster(&[0, 0, 0, 0]);
        let busiest = ReplicaPolicy { load: &[0, 9, 1, 1, 1], ..FREE };
        assert_eq!(reachable(&many, &met(&many), busiest), [2, 3, 4]);
        for count in 0..9 {
            for random in [0, 1, 0xffff, 0x1_0000, u32::MAX, 0xdead_beef] {
                let (one, two) = two_of(count, random);
                assert!(one < count.max(1) && two < count.max(1) && (one != two || count < 2));
            }
        }
    }

    #[test]
    fn a_session_finds_its_write_again() {
        let mut session = ReadAfter::new();
        let before = sampled(cluster(&[100, 200]), 7, 100);
        session.meet(&before);
        session.used_primary(8); // a reading may be under way: number 8 began before the commit
        let begun_before = sampled(cluster(&[100, 200]), 8, 140);
        session.meet(&begun_before);
        assert_eq!(reachable(&begun_before, &session, FREE), [0]);
        let begun_after = sampled(cluster(&[149, 150]), 9, 150);
        session.meet(&begun_after);
        assert_eq!(reachable(&begun_after, &session, FREE), [2]);
        let nobody = sampled(cluster(&[149, 149]), 10, 160);
        session.meet(&nobody);
        assert_eq!(reachable(&nobody, &session, FREE), [0]);
        assert_eq!(choose(&nobody, Want::Replica, &session, &FREE), Choice::Node(0));
        let both = sampled(cluster(&[150, 151]), 11, 170);
        session.meet(&both);
        assert_eq!(reachable(&both, &session, FREE), [1, 2], "a later reading does not move the mark");
    }

    #[test]
    fn a_session_with_a_write_waits_for_a_primary_rather_than_read_without_it() {
        let mut topology = sampled(cluster(&[100]), 1, 100);
        let mut session = met(&topology);
        session.used_primary(1);
        topology.primary = None;
        session.meet(&topology);
        assert_eq!(choose(&topology, Want::Read, &session, &FREE), Choice::Hold);
    }

    #[test]
    fn a_session_stays_with_its_standby_until_another_one_shows_what_it_saw() {
        let mut topology = sampled(cluster(&[100, 300]), 1, 300);
        let mut session = met(&topology);
        session.used_standby(1, 1);
        assert_eq!(reachable(&topology, &session, FREE), [1], "the snapshot's 100 may be long behind what was seen");
        topology = sampled(cluster(&[310, 310]), 2, 320);
        session.meet(&topology);
        assert_eq!(reachable(&topology, &session, FREE), [1]);
        topology = sampled(cluster(&[310, 320]), 3, 400);
        session.meet(&topology);
        assert_eq!(reachable(&topology, &session, FREE), [1, 2]);
        topology.nodes[1].role = Role::Out;
        topology.nodes[2].replayed = Lsn(319);
        assert_eq!(reachable(&topology, &session, FREE), [0], "its own is gone and the other one is behind");
    }

    #[test]
    fn a_read_on_a_standby_does_not_take_the_mark_of_a_write() {
        let mut topology = sampled(cluster(&[100, 100]), 1, 100);
        let mut session = met(&topology);
        session.used_primary(1);
        topology = sampled(cluster(&[200, 100]), 2, 200);
        session.meet(&topology);
        session.used_standby(1, 2);
        topology = sampled(cluster(&[199, 199]), 3, 190);
        session.meet(&topology);
        assert_eq!(reachable(&topology, &session, FREE), [0]);
    }

    #[test]
    fn a_new_epoch_sends_a_session_with_a_past_to_the_primary_until_a_fresh_reading() {
        let old = sampled(cluster(&[900, 900]), 5, 900);
        let mut written = met(&old);
        written.used_primary(4);
        written.meet(&old); // bound: 900
        let mut seen = met(&old);
        seen.used_standby(1, 5);
        let mut fresh = met(&old);
        let mut new = sampled(cluster(&[500, 500]), 6, 900);
        new.epoch += 1;
        for session in [&written, &seen] {
            assert_eq!(reachable(&new, session, FREE), [0], "not even before it met the snapshot");
        }
        for session in [&mut written, &mut seen, &mut fresh] {
            session.meet(&new);
        }
        assert_eq!(reachable(&new, &written, FREE), [0]);
        assert_eq!(reachable(&new, &seen, FREE), [0]);
        assert_eq!(reachable(&new, &fresh, FREE), [1, 2], "nothing to find again");
        new.sample = PrimarySample { number: 7, position: Lsn(500) };
        written.meet(&new);
        seen.meet(&new);
        assert_eq!(reachable(&new, &written, FREE), [1, 2], "the old position counts no more");
        assert_eq!(reachable(&new, &seen, FREE), [1, 2]);
    }
}
