//! Watches the nodes of a cluster, decides who is primary, and makes it so.
//!
//! The one thing that goes from here to the proxy is a `watch::Receiver<Arc<Topology>>`; the one thing that comes back
//! is a suspicion ([`Watch::suspect`]).

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use tokio::sync::{mpsc, watch};

pub mod act;
mod conninfo;
mod driver;
mod history;
mod lag;
mod login;
mod monitor;
pub mod node;
mod orders;
pub mod probe;
mod reading;
mod reigns;
mod snapshot;
pub mod store;
mod translate;

pub use conninfo::ReplicationLogin;
pub use decision::{Durability, Managed, Millis, Policy};
pub use history::{FailoverRecord, Failovers, MAX_FAILOVERS};
pub use login::{APPLICATION_NAME, Connector, Encryption, Failure, Login, Secret, Server};
pub use monitor::{ClusterConfig, Monitor, MonitorError, NodeConfig};
pub use reading::{Reading, Receiver, TermRow, Walsender};
pub use snapshot::{Address, Lsn, Node, PrimarySample, Reign, Role, Topology};

/// What a proxy holds of a cluster: the latest snapshot, and the ways to talk back.
#[derive(Debug, Clone)]
pub struct Watch {
    snapshots: watch::Receiver<Arc<Topology>>,
    suspicions: mpsc::Sender<usize>,
    samples_begun: Arc<AtomicU64>,
    failovers: watch::Receiver<Failovers>,
}

impl Watch {
    /// Puts the three ends together; made by the monitor, and by [`Watch::fixed`].
    #[must_use]
    pub fn new(
        snapshots: watch::Receiver<Arc<Topology>>,
        suspicions: mpsc::Sender<usize>,
        samples_begun: Arc<AtomicU64>,
    ) -> Self {
        let (_, failovers) = watch::channel(Arc::from(Vec::new()));
        Self { snapshots, suspicions, samples_begun, failovers }
    }

    /// A snapshot that never changes: a database entry that names one host.
    #[must_use]
    pub fn fixed(topology: Topology) -> Self {
        let (_, snapshots) = watch::channel(Arc::new(topology));
        let (suspicions, _) = mpsc::channel(1);
        Self::new(snapshots, suspicions, Arc::default())
    }

    /// The same, with failovers to tell of.
    #[must_use]
    pub fn with_failovers(self, failovers: watch::Receiver<Failovers>) -> Self {
        Self { failovers, ..self }
    }

    /// The failovers that this process has seen through, latest last, at most [`MAX_FAILOVERS`].
    #[must_use]
    pub fn failovers(&self) -> Failovers {
        self.failovers.borrow().clone()
    }

    /// The latest snapshot.
    #[must_use]
    pub fn now(&self) -> Arc<Topology> {
        self.snapshots.borrow().clone()
    }

    /// A receiver of its own, to wait for changes.
    #[must_use]
    pub fn subscribe(&self) -> watch::Receiver<Arc<Topology>> {
        self.snapshots.clone()
    }

    /// Tells the monitor that a server connection to this node was lost: it looks at once rather than at its next tick.
    /// Never waits; a suspicion too many is dropped.
    pub fn suspect(&self, node: usize) {
        let _ = self.suspicions.try_send(node);
    }

    /// How many readings of the primary's position have begun. A session notes this after a commit; a sample with a
    /// *greater* number bounds the commit.
    #[must_use]
    pub fn samples_begun(&self) -> u64 {
        self.samples_begun.load(Ordering::Acquire)
    }
}
