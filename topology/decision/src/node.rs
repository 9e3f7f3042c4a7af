//! Nodes, and what a probe can find out about one. Plain data: no judgement is made here.

use std::fmt;

/// Nodes a cluster may have at most, so that a set of nodes is one word.
pub const MAX_NODES: usize = 64;

/// A node, by its place in the configuration (below [`MAX_NODES`]).
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct NodeId(pub u8);

impl NodeId {
    /// The place in the configuration.
    #[must_use]
    pub fn index(self) -> usize {
        usize::from(self.0)
    }
}

impl fmt::Display for NodeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "#{}", self.0)
    }
}

/// Number of a primary; grows by one or more with each change of primary.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Term(pub u64);

impl Term {
    /// The term after this one.
    #[must_use]
    pub fn next(self) -> Self {
        Self(self.0.saturating_add(1))
    }
}

impl fmt::Display for Term {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0)
    }
}

/// A position in the write-ahead log (`pg_lsn`).
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Lsn(pub u64);

impl fmt::Display for Lsn {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:X}/{:X}", self.0 >> 32, self.0 & 0xFFFF_FFFF)
    }
}

/// PostgreSQL's timeline number. Not an epoch: two independent promotions make the same number.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Timeline(pub u32);

/// Milliseconds of a monotonic clock; as a moment, since any fixed beginning; as a length, a length.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Millis(pub u64);

impl Millis {
    /// The moment `length` after this one.
    #[must_use]
    pub fn plus(self, length: Millis) -> Self {
        Self(self.0.saturating_add(length.0))
    }

    /// How long ago `earlier` was; 0 if it was not.
    #[must_use]
    pub fn since(self, earlier: Millis) -> Millis {
        Millis(self.0.saturating_sub(earlier.0))
    }
}

/// A set of nodes.
#[derive(Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct NodeSet(u64);

impl NodeSet {
    /// No node.
    pub const EMPTY: Self = Self(0);

    /// The first `count` nodes (at most [`MAX_NODES`]).
    #[must_use]
    pub fn first(count: usize) -> Self {
        (0..count.min(MAX_NODES)).filter_map(|i| u8::try_from(i).ok()).map(NodeId).collect()
    }

    /// Whether the node is in the set.
    #[must_use]
    pub fn contains(self, node: NodeId) -> bool {
        node.index() < MAX_NODES && self.0 & (1 << node.0) != 0
    }

    /// The set with this node (unchanged for an id of [`MAX_NODES`] or more, which no configuration gives out).
    #[must_use]
    pub fn with(self, node: NodeId) -> Self {
        if node.index() < MAX_NODES { Self(self.0 | (1 << node.0)) } else { self }
    }

    /// The set without this node.
    #[must_use]
    pub fn without(self, node: NodeId) -> Self {
        if node.index() < MAX_NODES { Self(self.0 & !(1 << node.0)) } else { self }
    }

    /// Nodes in either set.
    #[must_use]
    pub fn union(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }

    /// Nodes in both sets.
    #[must_use]
    pub fn intersection(self, other: Self) -> Self {
        Self(self.0 & other.0)
    }

    /// Nodes of this set that are not in the other.
    #[must_use]
    pub fn minus(self, other: Self) -> Self {
        Self(self.0 & !other.0)
    }

    /// Whether every node of this set is in the other.
    #[must_use]
    pub fn is_subset_of(self, other: Self) -> bool {
        self.minus(other).is_empty()
    }

    /// How many nodes.
    #[must_use]
    pub fn len(self) -> usize {
        self.0.count_ones() as usize
    }

    /// Whether there is none.
    #[must_use]
    pub fn is_empty(self) -> bool {
        self.0 == 0
    }

    /// The nodes, in the order of the configuration.
    pub fn iter(self) -> impl Iterator<Item = NodeId> {
        (0..64u8).map(NodeId).filter(move |n| self.contains(*n))
    }
}

impl FromIterator<NodeId> for NodeSet {
    fn from_iter<I: IntoIterator<Item = NodeId>>(nodes: I) -> Self {
        nodes.into_iter().fold(Self::EMPTY, Self::with)
    }
}

impl fmt::Debug for NodeSet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_set().entries(self.iter()).finish()
    }
}

/// The term row as a node shows it (a standby: as far as it has replayed).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct TermRow {
    /// The term.
    pub term: Term,
    /// Its primary; `None` if the row names a node that is not in the configuration.
    pub leader: Option<NodeId>,
}

/// Where `primary_conninfo` points.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Upstream {
    /// `primary_conninfo` is empty.
    Empty,
    /// The address of this node.
    Node(NodeId),
    /// Anywhere else.
    Elsewhere,
}

/// A WAL receiver (`pg_stat_wal_receiver` has a row).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Receiver {
    /// `status = 'streaming'`.
    pub streaming: bool,
    /// Age of `last_msg_receipt_time`, by the standby's own clock.
    pub silent_for: Millis,
}

/// `synchronous_standby_names` as a node has it, parsed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum SyncNames {
    /// Empty: a commit waits for nobody.
    Nobody,
    /// `ANY k (cohort)`, all of them nodes of the configuration, each once.
    Any {
        /// How many have to flush.
        k: u32,
        /// Who counts.
        cohort: NodeSet,
    },
    /// Anything else: `FIRST`, `*`, a strange name.
    Other,
}

/// What one probe read on a node that answered.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Report {
    /// `pg_control_system()`: the same on all nodes of a cluster.
    pub system_identifier: u64,
    /// Another number after each start *and each crash restart*: `backend_start` of the checkpointer in microseconds
    /// (`pg_postmaster_start_time()` stays the same when one backend was killed).
    pub incarnation: u64,
    /// `pg_is_in_recovery()`.
    pub in_recovery: bool,
    /// Timeline of what was last received (standby) or is being written (primary).
    pub timeline: Timeline,
    /// `pg_last_wal_receive_lsn()`; `None` after a restart and on a primary.
    pub received: Option<Lsn>,
    /// `pg_last_wal_replay_lsn()`; `None` on a primary.
    pub replayed: Option<Lsn>,
    /// `pg_current_wal_insert_lsn()`; `None` on a standby.
    pub inserted: Option<Lsn>,
    /// `pg_current_wal_flush_lsn()` while sessions wait for WAL to reach the disk; `None` if none does, and on a standby.
    pub flushing: Option<Lsn>,
    /// The term row readable there; `None` if there is no such table or row.
    pub row: Option<TermRow>,
    /// `primary_conninfo`.
    pub upstream: Upstream,
    /// The fence marker: `primary_slot_name = 'fence_<term>'`.
    pub marker: Option<Term>,
    /// The WAL receiver, if there is one.
    pub receiver: Option<Receiver>,
    /// `pg_is_wal_replay_paused()`.
    pub replay_paused: bool,
    /// `synchronous_standby_names`.
    pub sync_names: SyncNames,
    /// On a primary: standbys with `state = 'streaming'` in `pg_stat_replication`, by `application_name`.
    pub standbys: NodeSet,
}

impl Report {
    /// How far its WAL goes: the greater of received and replayed (received is `NULL` after a restart), or inserted.
    #[must_use]
    pub fn position(&self) -> Lsn {
        self.received.max(self.replayed).max(self.inserted).unwrap_or_default()
    }
}

/// How an attempt to read a node ended. The first five are five different things and are never mixed up.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Contact {
    /// It answered.
    Reached(Box<Report>),
    /// Nobody listens there: connection refused or reset at once, no such socket.
    Refused,
    /// 57P03: it is starting up, in crash recovery or shutting down.
    Starting,
    /// No answer in time. Not the same as gone.
    Silent,
    /// It answered, but would not let *us* in (password, `pg_hba.conf`, too many connections). It is alive.
    LoginFailed(String),
    /// It let us in, but the reading failed (missing privilege, unexpected value). It is alive.
    Unreadable(String),
}
