//! Causal reads against a model: whatever order commits, replay, readings and snapshots come in, a session finds its
//! writes again and never reads back in time.

use proptest::prelude::*;
use proxy::routing::{Choice, ReadAfter, ReplicaPolicy, Want, choose};
use topology::{Address, Lsn, PrimarySample, Role, Topology};

const NODES: usize = 4;

/// What may happen next.
#[derive(Debug, Clone)]
enum Event {
    /// Others write this much.
    Others(u64),
    /// The session writes on the primary.
    Write,
    /// The session reads where it is sent.
    Read(u32),
    /// A standby replays up to a share (of 255) of what it is behind.
    Replay(usize, u8),
    /// A reading of the primary's position begins; at most one is under way.
    SampleBegins,
    /// It reads the position.
    SampleReads,
    /// It is in the next snapshot.
    SampleEnds,
    /// A snapshot with the standbys' positions of this moment, but as of up to this many events ago each.
    Snapshot,
    /// The most advanced standby becomes primary; the old one comes back as a standby of it.
    Failover,
}

fn event() -> impl Strategy<Value = Event> {
    prop_oneof![
        2 => (1..50_u64).prop_map(Event::Others),
        3 => Just(Event::Write),
        6 => any::<u32>().prop_map(Event::Read),
        5 => (0..NODES, any::<u8>()).prop_map(|(node, share)| Event::Replay(node, share)),
        3 => Just(Event::SampleBegins),
        3 => Just(Event::SampleReads),
        3 => Just(Event::SampleEnds),
        3 => Just(Event::Snapshot),
        1 => Just(Event::Failover),
    ]
}

/// The cluster as it is, which the session does not see, and the snapshot, which it does.
struct Model {
    replayed: [u64; NODES],
    primary: usize,
    begun: u64,
    reading: Option<PrimarySample>,
    snapshot: Topology,
    session: ReadAfter,
    /// What the session wrote or saw last: it must never see less.
    seen: u64,
    standby_reads: usize,
}

impl Model {
    fn new() -> Self {
        let mut snapshot = Topology::single("n", Address::Tcp("n".into(), 5432));
        let mut standby = snapshot.nodes[0].clone();
        standby.role = Role::Standby;
        snapshot.nodes.resize(NODES, standby);
        Self {
            replayed: [100; NODES],
            primary: 0,
            begun: 0,
            reading: None,
            snapshot,
            session: ReadAfter::new(),
            seen: 0,
            standby_reads: 0,
        }
    }

    fn happens(&mut self, event: &Event) {
        match *event {
            Event::Others(bytes) => self.replayed[self.primary] += bytes,
            Event::Write => {
                self.replayed[self.primary] += 1;
                self.seen = self.replayed[self.primary];
                self.session.used_primary(self.begun);
            }
            Event::Read(random) => self.read(random),
            Event::Replay(node, share) => {
                let behind = self.replayed[self.primary].saturating_sub(self.replayed[node]);
                self.replayed[node] += behind * u64::from(share) / 255;
            }
            Event::SampleBegins if self.reading.is_none() => {
                self.begun += 1;
                self.reading = Some(PrimarySample { number: self.begun, position: Lsn(0) });
            }
            Event::SampleReads => {
                if let Some(reading) = &mut self.reading {
                    reading.position = Lsn(self.replayed[self.primary]);
                }
            }
            Event::SampleEnds => {
                if let Some(reading) = self.reading.take_if(|reading| reading.position > Lsn(0)) {
                    self.snapshot.sample = reading;
                }
            }
            Event::SampleBegins => {}
            Event::Snapshot => {
                for (node, replayed) in self.snapshot.nodes.iter_mut().zip(self.replayed) {
                    node.replayed = Lsn(replayed);
                }
            }
            Event::Failover => self.fail_over(),
        }
    }

    fn fail_over(&mut self) {
        let standbys = (0..NODES).filter(|node| *node != self.primary);
        let best = standbys.max_by_key(|node| self.replayed[*node]).expect("there are standbys");
        let kept = self.replayed[best];
        self.replayed = self.replayed.map(|position| position.min(kept));
        self.seen = self.seen.min(kept); // what was lost was never acknowledged; it cannot be found again
        self.snapshot.nodes[self.primary].role = Role::Standby;
        self.snapshot.nodes[best].role = Role::Primary;
        (self.primary, self.snapshot.primary) = (best, Some(best));
        self.snapshot.epoch += 1;
        self.reading = None;
        self.happens(&Event::Snapshot);
    }

    fn read(&mut self, random: u32) {
        self.session.meet(&self.snapshot);
        let policy = ReplicaPolicy { max_lag: None, load: &[], random };
        let Choice::Node(node) = choose(&self.snapshot, Want::Read, &self.session, &policy) else {
            panic!("there always is a primary");
        };
        assert!(self.replayed[node] >= self.seen, "node {node} shows {:?}, not {}", self.replayed, self.seen);
        self.seen = self.replayed[node];
        if node == self.primary {
            self.session.used_primary(self.begun);
        } else {
            self.standby_reads += 1;
            self.session.used_standby(node, self.begun);
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 20_000, ..ProptestConfig::default() })]

    #[test]
    fn a_session_finds_its_writes_and_never_reads_back_in_time(events in proptest::collection::vec(event(), 1..60)) {
        let mut model = Model::new();
        for event in &events {
            model.happens(event);
        }
    }
}

/// The rule is of use: a session that writes and then waits for a reading and for replay is served by standbys again.
#[test]
fn a_session_comes_back_to_the_standbys() {
    let mut model = Model::new();
    let catch_up = [Event::SampleBegins, Event::SampleReads, Event::SampleEnds, Event::Replay(1, 255), Event::Snapshot];
    for round in 0..10 {
        model.happens(&Event::Write);
        model.happens(&Event::Read(round));
        catch_up.iter().for_each(|event| model.happens(event));
        model.happens(&Event::Read(round));
    }
    assert_eq!(model.standby_reads, 10);
}
