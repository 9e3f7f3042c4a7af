//! Watches the nodes of a cluster, decides who is primary, and makes it so.
//!
//! The one thing that goes from here to the proxy is a `watch::Receiver<Arc<Topology>>`; the one thing that comes back
//! is a suspicion ([`Watch::suspect`]).

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use ask::Ask;
use tokio::sync::{mpsc, oneshot, watch};

pub mod act;
mod ask;
mod conninfo;
mod driver;
mod history;
mod lag;
mod login;
mod monitor;
pub mod node;
mod orders;
mod presence;
pub mod probe;
mod reading;
mod records;
mod reigns;
mod snapshot;
pub mod store;
mod translate;

pub use ask::{Verdict, Wish};
pub use conninfo::ReplicationLogin;
pub use decision::{Durability, Managed, Millis, Policy};
pub use history::{FailoverRecord, Failovers, MAX_FAILOVERS};
pub use login::{APPLICATION_NAME, Connector, Encryption, Failure, Login, Secret, Server};
pub use monitor::{ClusterConfig, Monitor, MonitorError, NodeConfig};
pub use presence::Identity;
pub use reading::{Reading, Receiver, TermRow, Walsender};
pub use snapshot::{Address, Lsn, Node, Overview, PrimarySample, Reign, Role, RuleInForce, Topology};
pub use store::{Endpoint, EtcdConfig, TlsFiles};

/// What a proxy holds of a cluster: the latest snapshot, and the ways to talk back.
#[derive(Debug, Clone)]
pub struct Watch {
    snapshots: watch::Receiver<Arc<Topology>>,
    suspicions: mpsc::Sender<usize>,
    samples_begun: Arc<AtomicU64>,
    failovers: watch::Receiver<Failovers>,
    asks: Option<mpsc::Sender<Ask>>,
    held: Arc<AtomicU64>,
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
        Self { snapshots, suspicions, samples_begun, failovers, asks: None, held: Arc::default() }
    }

    /// A snapshot that never changes: a database entry that names one host.
    #[must_use]
    pub fn fixed(topology: Topology) -> Self {
        let (_, snapshots) = watch::channel(Arc::new(topology));
        let (suspicions, _) = mpsc::channel(1);
        Self::new(snapshots, suspicions, Arc::default())
    }

    /// The same with a monitor behind it: failovers to tell of, requests to take, a count of held clients to look at.
    pub(crate) fn of_monitor(
        self,
        failovers: watch::Receiver<Failovers>,
        asks: mpsc::Sender<Ask>,
        held: Arc<AtomicU64>,
    ) -> Self {
        Self { failovers, asks: Some(asks), held, ..self }
    }

    /// Asks the monitor for something and waits for what comes of it. It takes as long as it takes; whoever stops waiting does
    /// not stop what was begun.
    pub async fn ask(&self, wish: Wish) -> Verdict {
        let Some(asks) = &self.asks else { return Verdict::refused("nobody watches this server") };
        let (answer, answered) = oneshot::channel();
        if asks.try_send(Ask { wish, answer }).is_err() {
            return Verdict::refused("too many requests wait already");
        }
        answered.await.unwrap_or_else(|_| Verdict::refused("the monitor has ended"))
    }

    /// Counts a client that has to wait because there is no primary.
    pub fn count_held(&self) {
        self.held.fetch_add(1, Ordering::Relaxed);
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
