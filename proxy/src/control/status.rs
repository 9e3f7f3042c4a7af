//! How a cluster is, as data: what `pgsteady status --json` prints. Its text form is in `text.rs`.

use std::sync::Arc;

use serde::{Deserialize, Serialize};
use topology::{FailoverRecord, Role, Watch};

/// A cluster.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(super) struct Status {
    pub(super) cluster: Arc<str>,
    /// Whether pgsteady promotes.
    pub(super) managed: bool,
    /// The primary that clients are sent to; `None`: they are held.
    pub(super) primary: Option<Arc<str>>,
    pub(super) epoch: u64,
    pub(super) term: u64,
    /// What is amiss; empty if nothing is.
    pub(super) why: String,
    /// The step of the protocol.
    pub(super) phase: String,
    /// Whether this instance acts, of those that share the store.
    pub(super) coordinator: bool,
    /// The nodes on which another instance is that shares no store with this one.
    pub(super) rivals: Option<String>,
    pub(super) rule: Option<Rule>,
    pub(super) store: String,
    /// Why the store cannot be used; `None` if it can.
    pub(super) store_lost: Option<String>,
    pub(super) nodes: Vec<Node>,
    /// The latest last.
    pub(super) failovers: Vec<FailoverRecord>,
}

/// Whose flush an acknowledged commit waits for.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(super) struct Rule {
    pub(super) k: u32,
    pub(super) standbys: Vec<String>,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
pub(super) struct Node {
    pub(super) name: Arc<str>,
    pub(super) address: String,
    /// `primary`, `standby`, or `out`.
    pub(super) role: String,
    /// Why it is out; empty otherwise.
    pub(super) why: String,
    /// End of its WAL as last read.
    pub(super) position: Option<String>,
    pub(super) lag_ms: Option<u64>,
}

impl Status {
    pub(super) fn of(cluster: &Arc<str>, watch: &Watch) -> Self {
        let topology = watch.now();
        let overview = &topology.overview;
        let nodes = topology.nodes.iter().map(|node| Node {
            name: node.name.clone(),
            address: node.address.to_string(),
            role: match node.role {
                Role::Primary => "primary",
                Role::Standby => "standby",
                Role::Out => "out",
            }
            .to_owned(),
            why: node.why.to_string(),
            position: node.position.map(|position| position.to_string()),
            lag_ms: node.lag.map(|lag| u64::try_from(lag.as_millis()).unwrap_or(u64::MAX)),
        });
        Self {
            cluster: cluster.clone(),
            managed: overview.managed,
            primary: topology.primary.map(|primary| topology.nodes[primary].name.clone()),
            epoch: topology.epoch,
            term: topology.term,
            why: topology.why.to_string(),
            phase: overview.phase.to_string(),
            coordinator: overview.coordinator,
            rivals: overview.rivals.as_deref().map(str::to_owned),
            rule: overview
                .rule
                .as_ref()
                .map(|rule| Rule { k: rule.k, standbys: rule.standbys.iter().map(ToString::to_string).collect() }),
            store: overview.store.to_string(),
            store_lost: overview.store_lost.as_deref().map(ToOwned::to_owned),
            nodes: nodes.collect(),
            failovers: watch.failovers().to_vec(),
        }
    }
}
