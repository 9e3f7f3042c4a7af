//! Somebody beside each node who brings it back when it ends: as a standby of whoever is primary by then. Who that is, is the
//! monitor's word.

use std::time::{Duration, Instant};

use tokio::sync::{mpsc, oneshot};
use topology::Watch;
use topology::node::{LocalNode, NodeError, Upstream};

use super::say;

/// What a keeper is asked to do.
pub(super) enum Order {
    /// `kill -9` of everything; the answer is when it began.
    Kill(oneshot::Sender<Instant>),
}

/// Keeps one node.
pub(super) struct Keeper {
    pub(super) node: LocalNode,
    /// Its place in the configuration.
    pub(super) index: usize,
    /// All nodes of the cluster, as one follows them.
    pub(super) upstreams: Vec<Upstream>,
    pub(super) watch: Watch,
    pub(super) orders: mpsc::Receiver<Order>,
}

/// Between two attempts to bring a node back.
const PAUSE: Duration = Duration::from_secs(1);
/// How long somebody else may take to become primary, before the node goes on as what it was. The monitor promotes within
/// seconds if it can; after this it cannot, without this node.
const NO_OTHER: Duration = Duration::from_secs(15);
/// Between two looks for a primary that was replaced while it ran on.
const LOOK: Duration = Duration::from_secs(1);
/// So many looks in a row must agree.
const LOOKS: u32 = 3;

impl Keeper {
    /// Never ends by itself.
    pub(super) async fn keep(mut self) {
        let mut replaced = Replaced::default();
        loop {
            tokio::select! {
                ended = self.node.exited() => self.ended(ended.map(|status| status.to_string())).await,
                order = self.orders.recv() => match order {
                    Some(Order::Kill(answer)) => self.kill(answer).await,
                    None => return,
                },
                () = tokio::time::sleep(LOOK) => {
                    if replaced.look(&self) {
                        say(&format!("node {} is a primary that was replaced: ending it", self.name()));
                        let ended = self.node.kill().await.map(|()| "kill -9".to_owned());
                        self.ended(ended).await;
                    }
                }
            }
        }
    }

    fn name(&self) -> &str {
        &self.node.site().name
    }

    /// Whoever else is primary.
    fn other_primary(&self) -> Option<usize> {
        self.watch.now().primary.filter(|primary| *primary != self.index)
    }

    async fn kill(&mut self, answer: oneshot::Sender<Instant>) {
        let began = Instant::now();
        let killed = self.node.kill().await;
        let _ = answer.send(began);
        self.ended(killed.map(|()| "kill -9".to_owned())).await;
    }

    async fn ended(&mut self, how: Result<String, NodeError>) {
        match how {
            Ok(status) => say(&format!("node {} ended ({status})", self.name())),
            Err(error) => say(&format!("node {}: {error}", self.name())),
        }
        while let Err(error) = self.bring_back().await {
            say(&format!("node {} does not come back yet: {error}", self.name()));
            tokio::time::sleep(PAUSE).await;
        }
    }

    async fn bring_back(&mut self) -> Result<(), NodeError> {
        // what an attempt before has left running
        self.node.kill().await?;
        let Some(primary) = self.wait_for_other_primary().await else { return self.go_on_as_it_was().await };
        let began = Instant::now();
        let upstream = self.upstreams[primary].clone();
        let how = self.node.rejoin(&upstream).await?;
        let name = &self.watch.now().nodes[primary].name;
        say(&format!(
            "node {} is back as a standby of {name} ({how}, {:.1} s)",
            self.name(),
            began.elapsed().as_secs_f64()
        ));
        Ok(())
    }

    async fn wait_for_other_primary(&self) -> Option<usize> {
        let mut snapshots = self.watch.subscribe();
        let patience = if self.upstreams.len() == 1 { Duration::ZERO } else { NO_OTHER };
        let found = snapshots.wait_for(|topology| topology.primary.is_some_and(|primary| primary != self.index));
        let _ = tokio::time::timeout(patience, found).await;
        self.other_primary()
    }

    /// Nobody was promoted. A standby goes on as one; a primary goes on as one too, and its rule keeps it from
    /// acknowledging anything that a promoted node does not have.
    async fn go_on_as_it_was(&mut self) -> Result<(), NodeError> {
        if self.node.is_marked_standby() {
            self.node.start_standby(None).await?;
        } else {
            self.node.start_primary().await?;
        }
        say(&format!("node {} goes on as it was", self.name()));
        Ok(())
    }
}

/// Has somebody else been primary for a while, in one and the same epoch, although our node runs read-write?
#[derive(Default)]
struct Replaced {
    epoch: u64,
    looks: u32,
}

impl Replaced {
    fn look(&mut self, keeper: &Keeper) -> bool {
        let epoch = keeper.watch.now().epoch;
        if keeper.other_primary().is_none() || keeper.node.is_marked_standby() || epoch != self.epoch {
            *self = Self { epoch, looks: 0 };
            return false;
        }
        self.looks += 1;
        self.looks >= LOOKS
    }
}
