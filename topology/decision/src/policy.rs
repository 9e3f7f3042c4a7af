//! What the operator decides: members, patience, durability. Lengths are milliseconds.

use std::collections::BTreeSet;
use std::fmt;

use crate::node::{MAX_NODES, Millis, NodeId, NodeSet};

/// Who promotes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Managed {
    /// We do.
    Pgsteady,
    /// Somebody else does (Patroni, a cloud): only follow.
    External,
}

/// What to do when fewer than k standbys are left.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Durability {
    /// Commits wait for them.
    Strict,
    /// After [`Policy::relax_after`] go on with fewer copies, say so, and restore the rule when they are back.
    Available,
}

/// One configured node.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Member {
    /// Its name: also its `application_name` as a standby.
    pub name: String,
    /// Where it stands; empty if nobody said.
    pub zone: String,
    /// Among standbys that hold equally much, the greater number is promoted. A preference, never a veto.
    pub priority: u32,
}

/// The configured nodes, in their order.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Cluster {
    members: Vec<Member>,
}

/// Why a list of members is not a cluster.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ClusterError {
    /// No member.
    Empty,
    /// More than [`MAX_NODES`].
    TooMany(usize),
    /// Two of one name.
    Twice(String),
}

impl fmt::Display for ClusterError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Empty => f.write_str("a cluster needs at least one node"),
            Self::TooMany(n) => write!(f, "a cluster may have {MAX_NODES} nodes, not {n}"),
            Self::Twice(name) => write!(f, "two nodes are called \"{name}\""),
        }
    }
}

impl std::error::Error for ClusterError {}

impl Cluster {
    /// # Errors
    /// No member, more than [`MAX_NODES`], or two of one name.
    pub fn new(members: Vec<Member>) -> Result<Self, ClusterError> {
        if members.is_empty() {
            return Err(ClusterError::Empty);
        }
        if members.len() > MAX_NODES {
            return Err(ClusterError::TooMany(members.len()));
        }
        let mut names = BTreeSet::new();
        if let Some(twice) = members.iter().find(|m| !names.insert(m.name.as_str())) {
            return Err(ClusterError::Twice(twice.name.clone()));
        }
        Ok(Self { members })
    }

    /// The members, in the order of the configuration.
    #[must_use]
    pub fn members(&self) -> &[Member] {
        &self.members
    }

    /// All nodes.
    #[must_use]
    pub fn nodes(&self) -> NodeSet {
        NodeSet::first(self.members.len())
    }

    /// The member behind an id; `None` if the id is not of this cluster.
    #[must_use]
    pub fn member(&self, node: NodeId) -> Option<&Member> {
        self.members.get(node.index())
    }

    /// The name for people.
    #[must_use]
    pub fn name(&self, node: NodeId) -> &str {
        self.member(node).map_or("(unknown node)", |m| m.name.as_str())
    }

    /// Names of a set, separated by commas, for people.
    #[must_use]
    pub fn names(&self, nodes: NodeSet) -> String {
        if nodes.is_empty() {
            return "none".to_owned();
        }
        nodes.iter().map(|n| self.name(n)).collect::<Vec<_>>().join(", ")
    }
}

/// Patience and aims.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Policy {
    /// Who promotes.
    pub managed: Managed,
    /// Several instances decide on one store: only the one that holds its lease acts.
    pub shared: bool,
    /// What to do when standbys are missing.
    pub durability: Durability,
    /// Standbys that have to flush each commit (the k that is aimed at).
    pub k: u32,
    /// Zone of this instance: preferred among standbys that hold equally much and have equal priority; empty: none.
    pub zone: String,
    /// Refusals in a row that make a primary lost.
    pub refusals: u32,
    /// Silent probes in a row that make a primary lost.
    pub silences: u32,
    /// How long a primary that says 57P03 may take before it is lost.
    pub crash_restart_grace: Millis,
    /// How long a silent primary is left alone while k standbys still hear from it.
    pub partition_grace: Millis,
    /// How long the WAL of a primary may stand still on its disk while sessions wait for it.
    pub stall_grace: Millis,
    /// A standby hears from the primary if its last message is not older.
    pub fresh: Millis,
    /// How long one attempt to fence enough standbys may take before it is given up and undone.
    pub fence_timeout: Millis,
    /// Pause after a failed attempt; doubled up to `retry_max`.
    pub retry: Millis,
    /// Longest pause between attempts.
    pub retry_max: Millis,
    /// How long fewer than k standbys may be there before `Available` relaxes the rule.
    pub relax_after: Millis,
    /// How long a member of the cohort may be away before the others do without it.
    pub shrink_after: Millis,
    /// How long a standby must have streamed before it is counted (again).
    pub settle: Millis,
    /// How long a fence that somebody else left behind is left alone.
    pub leftover_grace: Millis,
    /// Least pause between two quarantines of one node.
    pub quarantine_every: Millis,
}

impl Default for Policy {
    fn default() -> Self {
        Self {
            managed: Managed::Pgsteady,
            shared: false,
            durability: Durability::Available,
            k: 1,
            zone: String::new(),
            refusals: 2,
            silences: 3,
            crash_restart_grace: Millis(3_000),
            partition_grace: Millis(3_000),
            stall_grace: Millis(4_000),
            fresh: Millis(1_000),
            fence_timeout: Millis(10_000),
            retry: Millis(500),
            retry_max: Millis(10_000),
            relax_after: Millis(5_000),
            shrink_after: Millis(10_000),
            settle: Millis(2_000),
            leftover_grace: Millis(10_000),
            quarantine_every: Millis(5_000),
        }
    }
}
