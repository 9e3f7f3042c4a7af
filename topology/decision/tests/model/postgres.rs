//! One model PostgreSQL node.

use std::collections::BTreeMap;

use decision::{Lsn, NodeId, NodeSet, Position, Report, SyncNames, Term, TermRow, Timeline, Upstream};

use super::SYSTEM;

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum Power {
    Up,
    Down,
    /// Stopped by a signal: keeps everything, says nothing.
    Frozen,
    /// 57P03.
    Starting,
}

/// One record of WAL. `parent` is the record before it where it was written: mixed histories show.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) struct Entry {
    pub(crate) id: u64,
    pub(crate) parent: u64,
    pub(crate) row: Option<TermRow>,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) struct Postgres {
    pub(crate) id: NodeId,
    pub(crate) power: Power,
    pub(crate) system: u64,
    pub(crate) incarnation: u64,
    pub(crate) recovery: bool,
    pub(crate) wal: Vec<Entry>,
    /// Timelines and where each begins, as PostgreSQL knows them: numbers only.
    pub(crate) history: Vec<(u32, usize)>,
    pub(crate) replayed: usize,
    /// `pg_last_wal_receive_lsn()` is not NULL.
    pub(crate) receive_known: bool,
    pub(crate) paused: bool,
    /// Replay cannot be resumed by us.
    pub(crate) stuck: bool,
    pub(crate) upstream: Upstream,
    pub(crate) marker: Option<Term>,
    pub(crate) receiver: Option<NodeId>,
    pub(crate) sync_names: SyncNames,
    pub(crate) acks: BTreeMap<NodeId, usize>,
    /// Its disk takes no more WAL than this.
    pub(crate) stalled: Option<usize>,
    /// Its WAL's end at the last restart or promotion: all of it is visible, acknowledged or not.
    pub(crate) shown: usize,
    /// `pg_promote` was accepted: nothing can stop it but a crash.
    pub(crate) promoting: bool,
}

impl Postgres {
    pub(crate) fn new(id: NodeId, leader: NodeId, cohort: NodeSet, k: u32) -> Self {
        let row = Entry { id: 1, parent: 0, row: Some(TermRow { term: Term(1), leader: Some(leader) }) };
        let leads = id == leader;
        Self {
            id,
            power: Power::Up,
            system: SYSTEM,
            incarnation: 1,
            recovery: !leads,
            wal: vec![row],
            history: vec![(1, 0)],
            replayed: 1,
            receive_known: true,
            paused: false,
            stuck: false,
            upstream: if leads { Upstream::Empty } else { Upstream::Node(leader) },
            marker: None,
            receiver: (!leads).then_some(leader),
            sync_names: SyncNames::Any { k, cohort },
            acks: if leads { cohort.iter().map(|node| (node, 1)).collect() } else { BTreeMap::new() },
            stalled: None,
            shown: 1,
            promoting: false,
        }
    }

    pub(crate) fn append(&mut self, id: u64, row: Option<TermRow>) {
        let parent = self.wal.last().map_or(0, |entry| entry.id);
        self.wal.push(Entry { id, parent, row });
        self.replayed = self.wal.len();
    }

    pub(crate) fn holds(&self, id: u64) -> bool {
        self.wal.iter().any(|entry| entry.id == id)
    }

    /// Whether what was received from this place on does not continue what was there.
    pub(crate) fn is_mixed_from(&self, at: usize) -> bool {
        self.wal[at.saturating_sub(1)..].windows(2).any(|pair| pair[1].parent != pair[0].id)
    }

    pub(crate) fn is_acknowledged(&self, at: usize) -> bool {
        match self.sync_names {
            _ if at > self.flushed() => false,
            SyncNames::Nobody => true,
            SyncNames::Any { k, cohort } => {
                let flushed = cohort.iter().filter(|node| self.acks.get(node).is_some_and(|lsn| *lsn >= at));
                flushed.count() >= k as usize
            }
            SyncNames::Other => false,
        }
    }

    /// As much as is on disk: only that is sent to standbys.
    pub(crate) fn flushed(&self) -> usize {
        self.stalled.unwrap_or(self.wal.len())
    }

    pub(crate) fn stall(&mut self) {
        self.stalled = self.stalled.or((!self.recovery).then_some(self.wal.len()));
    }

    pub(crate) fn timeline(&self) -> u32 {
        self.history.last().map_or(1, |(timeline, _)| *timeline)
    }

    /// PostgreSQL's own test, which knows timeline numbers and positions, not contents.
    pub(crate) fn can_follow(&self, upstream: &Postgres) -> bool {
        let mine = self.timeline();
        let Some(at) = upstream.history.iter().position(|(timeline, _)| *timeline == mine) else { return false };
        let end = upstream.history.get(at + 1).map_or(usize::MAX, |(_, begin)| *begin);
        self.wal.len() <= end && self.wal.len() <= upstream.wal.len()
    }

    /// The truth that PostgreSQL does not see.
    pub(crate) fn is_prefix_of(&self, other: &Postgres) -> bool {
        self.wal.len() <= other.wal.len() && self.wal.iter().zip(&other.wal).all(|(a, b)| a.id == b.id)
    }

    pub(crate) fn receive(&mut self, upstream: &Postgres, most: usize) {
        let end = upstream.flushed().min(self.wal.len() + most).max(self.wal.len());
        self.wal.extend_from_slice(&upstream.wal[self.wal.len()..end]);
        let followed: Vec<_> = upstream.history.iter().copied().filter(|(_, begin)| *begin < end).collect();
        if !followed.is_empty() && followed.len() >= self.history.len() {
            self.history = followed;
        }
        self.receive_known = true;
        if !self.paused {
            self.replayed = self.wal.len();
        }
    }

    pub(crate) fn row(&self) -> Option<TermRow> {
        self.wal[..self.replayed.min(self.wal.len())].iter().rev().find_map(|entry| entry.row)
    }

    pub(crate) fn position(&self) -> Position {
        Position {
            system_identifier: self.system,
            row: self.row(),
            timeline: Timeline(self.timeline()),
            lsn: Lsn(self.wal.len() as u64),
        }
    }

    pub(crate) fn report(&self) -> Report {
        let end = Some(Lsn(self.wal.len() as u64));
        Report {
            system_identifier: self.system,
            incarnation: self.incarnation,
            in_recovery: self.recovery,
            timeline: Timeline(self.timeline()),
            received: end.filter(|_| self.recovery && self.receive_known),
            replayed: self.recovery.then_some(Lsn(self.replayed as u64)),
            inserted: end.filter(|_| !self.recovery),
            flushing: self.stalled.filter(|end| *end < self.wal.len()).map(|end| Lsn(end as u64)),
            row: self.row(),
            upstream: self.upstream,
            marker: self.marker,
            receiver: None,
            replay_paused: self.paused,
            sync_names: self.sync_names,
            standbys: NodeSet::EMPTY,
        }
    }

    /// The process is gone, with all that was not on disk; a promotion under way is forgotten.
    pub(crate) fn crash(&mut self) {
        self.power = Power::Down;
        self.wal.truncate(self.flushed());
        self.stalled = None;
        self.acks.clear();
        self.receiver = None;
        self.promoting = false;
    }

    /// It is back: everything on disk is visible. A standby replays again from its last restart point.
    pub(crate) fn restart(&mut self) {
        self.power = Power::Up;
        self.incarnation += 1;
        self.shown = self.wal.len();
        self.receive_known = false;
        self.paused = false;
        if !self.recovery {
            self.replayed = self.wal.len();
        }
    }

    pub(crate) fn promote(&mut self) {
        self.promoting = false;
        self.recovery = false;
        self.receiver = None;
        self.acks.clear();
        self.replayed = self.wal.len();
        self.shown = self.wal.len();
        // The next number: another node's promotion makes the same one.
        self.history.push((self.timeline() + 1, self.wal.len()));
    }

    pub(crate) fn clone_from_leader(&mut self, source: &Postgres, leader: NodeId) {
        source.wal[..source.flushed()].clone_into(&mut self.wal);
        self.history.clone_from(&source.history);
        self.replayed = self.wal.len();
        self.recovery = true;
        self.incarnation += 1;
        self.upstream = Upstream::Node(leader);
        self.marker = None;
        self.receiver = None;
        self.paused = false;
        self.stuck = false;
        self.stalled = None;
        self.acks.clear();
        self.promoting = false;
        self.system = source.system;
    }
}
