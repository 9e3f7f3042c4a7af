//! What a proxy may know of a cluster: an immutable snapshot, replaced as a whole. No decision is taken here.

use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;
use std::sync::Arc;
use std::time::Duration;

use serde::Serialize;

/// Where a node answers.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Address {
    /// Host name or IP address, and port.
    Tcp(String, u16),
    /// Directory of the Unix socket, and port (the socket is `DIR/.s.PGSQL.PORT`).
    Unix(PathBuf, u16),
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Address::Tcp(host, port) if host.contains(':') => write!(f, "[{host}]:{port}"),
            Address::Tcp(host, port) => write!(f, "{host}:{port}"),
            Address::Unix(directory, port) => write!(f, "{}/.s.PGSQL.{port}", directory.display()),
        }
    }
}

/// A position in the write-ahead log (PostgreSQL's `pg_lsn`).
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Lsn(pub u64);

impl FromStr for Lsn {
    type Err = ();

    /// PostgreSQL's own form: two hexadecimal numbers with a slash between them.
    fn from_str(text: &str) -> Result<Self, ()> {
        let (high, low) = text.split_once('/').ok_or(())?;
        let half = |text: &str| u32::from_str_radix(text, 16).map(u64::from).map_err(drop);
        Ok(Self(half(high)? << 32 | half(low)?))
    }
}

impl fmt::Display for Lsn {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:X}/{:X}", self.0 >> 32, self.0 & 0xFFFF_FFFF)
    }
}

/// What a node is at the moment, for somebody who wants to send it a transaction.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Role {
    /// The one node that takes writes; at most one a snapshot.
    Primary,
    /// A standby of the current primary that answers; reads may go there if its `lag` and `replayed` allow.
    Standby,
    /// Not to be used: unreachable, starting, quarantined, fenced, of another system.
    Out,
}

/// One node of the cluster, as of the snapshot.
#[derive(Debug, Clone)]
pub struct Node {
    /// The name in the configuration; also its `application_name` as a standby.
    pub name: Arc<str>,
    /// Where it answers.
    pub address: Arc<Address>,
    /// What it may be used for.
    pub role: Role,
    /// End of its WAL, as last seen: inserted, or received; `None` if it was never read.
    pub position: Option<Lsn>,
    /// Position up to which it has replayed, as last seen (standbys).
    pub replayed: Lsn,
    /// How old its data is at most, as last seen; `None` if that is not known.
    pub lag: Option<Duration>,
    /// Why it is `Out`, for people.
    pub why: Arc<str>,
}

/// One reading of the primary's insert position. A reading that *began* after a commit was acknowledged bounds that
/// commit's position from above.
#[derive(Debug, Clone, Copy, Default)]
pub struct PrimarySample {
    /// Its number: `Samples::begun` had this value right after this reading began.
    pub number: u64,
    /// What was read.
    pub position: Lsn,
}

/// The time of one primary: from its promotion or its start to its end. A crash restart begins another one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Reign {
    /// Index into `nodes`.
    pub node: usize,
    /// Tells two lives of a node apart: when its checkpointer was started, by its clock.
    pub incarnation: i64,
    /// Its term.
    pub term: u64,
    /// The next transaction id when it began, before it took any write: a transaction of the reign before it with this or a
    /// later id has not committed (ids are used again). `None` if nobody knows.
    pub next_xid: Option<u64>,
    /// Number of the latest reading that showed it ([`PrimarySample::number`]): a connection that was open before that reading
    /// began and still is belongs to this reign.
    pub seen: u64,
    /// Process id of the monitor's session there: a connection that sees it in `pg_stat_activity` belongs to this reign.
    pub witness: i32,
}

/// The cluster at one moment.
#[derive(Debug, Clone)]
pub struct Topology {
    /// Grows with every change of primary and with every re-opening of the same one after it was closed. A server
    /// connection opened under a lower epoch is never used again.
    pub epoch: u64,
    /// Index into `nodes`; `None` while there is no primary that may be used: clients are held.
    pub primary: Option<usize>,
    /// The term of that primary; 0 where no term is kept.
    pub term: u64,
    /// The latest reigns, each the direct successor of the one before it; the last is that of the primary, or of the last one.
    pub reigns: Arc<[Reign]>,
    /// The nodes, in the order of the configuration; the order and length change only with the configuration.
    pub nodes: Vec<Node>,
    /// The latest reading of the primary's position.
    pub sample: PrimarySample,
    /// Why there is no primary, or what is less than it should be, for people; empty if all is well.
    pub why: Arc<str>,
    /// The rule, the store, the step of the protocol: for people.
    pub overview: Arc<Overview>,
}

/// What is known of a cluster besides whom to use. No transaction is sent by it.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct Overview {
    /// Whether pgsteady promotes here, or somebody else does.
    pub managed: bool,
    /// The step of the protocol: "serving", "fencing", …
    pub phase: Arc<str>,
    /// Whether it is this instance that acts, of those that share the store.
    pub coordinator: bool,
    /// The nodes on which another instance is that shares no store with this one, which does not act therefore.
    pub rivals: Option<Arc<str>>,
    /// The highest term that anybody has claimed.
    pub claimed: u64,
    /// The rule in force; `None` until a primary was adopted.
    pub rule: Option<RuleInForce>,
    /// Where the record is kept.
    pub store: Arc<str>,
    /// Why the store cannot be used; `None` if it can.
    pub store_lost: Option<Arc<str>>,
}

/// Whose flush an acknowledged commit waits for.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct RuleInForce {
    /// Its term.
    pub term: u64,
    /// The primary.
    pub leader: Arc<str>,
    /// The standbys that count.
    pub standbys: Vec<Arc<str>>,
    /// How many of them have to have a commit.
    pub k: u32,
}

impl Topology {
    /// A cluster of one node that nobody watches: it is its own primary for ever.
    #[must_use]
    pub fn single(name: &str, address: Address) -> Self {
        let node = Node {
            name: name.into(),
            address: Arc::new(address),
            role: Role::Primary,
            position: None,
            replayed: Lsn(0),
            lag: None,
            why: "".into(),
        };
        Self {
            epoch: 1,
            primary: Some(0),
            term: 0,
            reigns: Arc::from([]),
            nodes: vec![node],
            sample: PrimarySample::default(),
            why: "".into(),
            overview: Arc::default(),
        }
    }
}
