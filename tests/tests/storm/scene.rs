//! Three nodes, two pgsteady and three members of etcd, each on a host of its own, and how they are made whole again.

use std::path::PathBuf;
use std::time::Duration;

use harness::disk::Mounts;
use harness::endpoint::{Endpoint, value};
use harness::etcd::Etcd;
use harness::folder::Folder;
use harness::host::{self, Host, Network};
use harness::pgsteady::{Config, Pgsteady};
use harness::postgres::{Cluster, Node, Programs};
use harness::writers;
use nix::sys::signal::Signal;
use serde_json::Value;
use tokio::time::Instant;

use crate::guests::Guests;
use crate::workload;

/// Nodes, instances and members.
const NODES: usize = 3;
const INSTANCES: usize = 2;
const MEMBERS: usize = 3;
/// Patience with the cluster's way back after the last fault has ended.
const WHOLE: Duration = Duration::from_secs(60);
/// After so long libfaketime has read a new setting.
const CLOCK_IS_READ: Duration = Duration::from_millis(1100);
/// Between two looks at it.
const LOOK: Duration = Duration::from_millis(50);
/// Of each node's log, where it does not become whole.
const LAST_LINES: usize = 8;
/// How long after a heal a node may take to find its way back by itself, before its data is replaced.
const BY_ITSELF: Duration = Duration::from_secs(6);

/// A slow disk would take many seconds for the zeros of a new segment.
const REACHES_DISK: &str = "fsync = on\nwal_init_zero = off\n";

pub(crate) struct Scene {
    pub(crate) cluster: Cluster,
    pub(crate) instances: Vec<Pgsteady>,
    pub(crate) etcd: Vec<Etcd>,
    hosts: Vec<Host>,
    /// The primary when the cluster was last whole.
    pub(crate) primary: usize,
    /// Clients that a fault has brought along.
    pub(crate) guests: Guests,
    /// A server of another system in the place of a standby.
    stranger: Option<Node>,
    /// What the clock of the last instance is set to, as libfaketime takes it.
    clock: PathBuf,
    _stores: Vec<Folder>,
    _network: Network,
}

impl Scene {
    pub(crate) async fn new(mounts: &Mounts) -> Self {
        let mut network = Network::new();
        let mut hosts: Vec<Host> = (0..NODES).map(|_| network.host().with_disk(mounts.disk())).collect();
        hosts.extend((0..INSTANCES + MEMBERS).map(|_| network.host()));
        let (nodes, others) = hosts.split_at(NODES);
        let (instances_at, members_at) = others.split_at(INSTANCES);
        let etcd = Etcd::on(members_at).await;
        let mut cluster = Cluster::prepare_on(nodes, &Programs::installed());
        let ports = cluster.ports();
        cluster.nodes.iter().for_each(|node| node.configure(REACHES_DISK));
        cluster.launch(ports[0]).await;
        let tables = format!("{}; GRANT ALL ON written TO app; {}", writers::TABLE, workload::TABLES);
        cluster.nodes[0].client().await.batch_execute(&tables).await.expect("the tables can be made");
        let endpoints: Vec<toml::Value> = etcd.iter().map(|member| member.endpoint().into()).collect();
        let (mut instances, mut stores) = (Vec::new(), Vec::new());
        for host in instances_at {
            let store = Folder::new("store");
            let config = Config::cluster(&cluster, &ports, store.path())
                .set("cluster.main.etcd.lease", "3s")
                .set("cluster.main.etcd.endpoints", endpoints.clone())
                .set("limits.hold_timeout", "60s");
            instances.push(Pgsteady::prepare(host, &config));
            stores.push(store);
        }
        let last = instances.last_mut().expect("there are several");
        let clock = last.folder().join("clock");
        last.set_clock_from(&clock);
        for instance in &mut instances {
            instance.launch().await;
        }
        let mut scene = Self {
            cluster,
            instances,
            etcd,
            hosts,
            primary: 0,
            guests: Guests::new(),
            stranger: None,
            clock,
            _stores: stores,
            _network: network,
        };
        scene.settle().await;
        scene
    }

    /// Where clients connect to.
    pub(crate) fn endpoints(&self) -> Vec<Endpoint> {
        self.instances.iter().map(Pgsteady::endpoint).collect()
    }

    /// Hosts of nodes, of instances and of members of etcd.
    pub(crate) fn node_hosts(&self) -> &[Host] {
        &self.hosts[..NODES]
    }

    pub(crate) fn instance_hosts(&self) -> &[Host] {
        &self.hosts[NODES..NODES + INSTANCES]
    }

    pub(crate) fn member_hosts(&self) -> &[Host] {
        &self.hosts[NODES + INSTANCES..]
    }

    /// All hosts but these.
    pub(crate) fn others<'a>(&'a self, but: &[&Host]) -> Vec<&'a Host> {
        host::others(&self.hosts, but)
    }

    /// The nodes that were standbys when the cluster was last whole.
    pub(crate) fn standbys(&self) -> Vec<usize> {
        (0..NODES).filter(|node| *node != self.primary).collect()
    }

    /// The instance that acts, or else the first.
    pub(crate) async fn coordinator(&self) -> usize {
        for (index, instance) in self.instances.iter().enumerate() {
            if instance.is_running() && instance.status().await["coordinator"] == true {
                return index;
            }
        }
        0
    }

    /// Whatever runs on this node's host is gone, as if the power had failed.
    pub(crate) fn kill(&mut self, node: usize) {
        if self.cluster.nodes[node].is_running() {
            self.cluster.nodes[node].kill_tree();
        }
        self.hosts[node].signal(Signal::SIGKILL);
    }

    /// Another system's server takes the place of this node.
    pub(crate) fn replace_by_stranger(&mut self, node: usize) {
        self.kill(node);
        let mut stranger = Node::stranger(&self.cluster.nodes[node]);
        stranger.launch();
        self.stranger = Some(stranger);
    }

    /// Sets the wall clock of the last instance.
    pub(crate) async fn set_clock(&self, clock: &str) {
        std::fs::write(&self.clock, clock).expect("a file of the test can be written");
        tokio::time::sleep(CLOCK_IS_READ).await;
    }

    /// Ends every fault and makes the cluster whole: what was killed runs again, and a node that does not find its way back
    /// gets the data of the primary. Returns how many packets the cut links would have carried.
    pub(crate) async fn heal(&mut self) -> u64 {
        let met = self.hosts.iter().map(Host::heal).sum();
        self.node_hosts().iter().for_each(|host| host.limit_files(None));
        self.stranger = None;
        self.set_clock("+0").await;
        self.hosts.iter().for_each(|host| host.signal(Signal::SIGCONT));
        self.etcd.iter_mut().filter(|member| !member.is_running()).for_each(Etcd::launch);
        for member in &mut self.etcd {
            member.answers().await;
        }
        for instance in &mut self.instances {
            if !instance.is_running() {
                instance.launch().await;
            }
        }
        for standby in self.standbys() {
            if !self.cluster.nodes[standby].is_running() {
                self.cluster.nodes[standby].launch();
            }
        }
        self.settle().await;
        met
    }

    /// Until each instance shows the same primary, with both standbys in its rule.
    async fn settle(&mut self) {
        let first = self.primary;
        let deadline = Instant::now() + WHOLE;
        let mut patience = Instant::now() + BY_ITSELF;
        while !self.is_whole().await {
            assert!(Instant::now() < deadline, "not whole within {WHOLE:?}: {}", self.amiss().await);
            for node in &mut self.cluster.nodes {
                if node.has_ended() {
                    eprintln!("{} had ended and is started again: {}", node.name, last_lines(node));
                    node.launch();
                }
            }
            match self.served().await {
                Some(primary) => {
                    let streaming = self.streaming(primary).await;
                    let missing = (0..NODES).filter(|node| *node != primary && !streaming.contains(node));
                    // the primary that was replaced never comes back by itself, the others may
                    for node in missing.filter(|node| *node == first || Instant::now() > patience).collect::<Vec<_>>() {
                        self.rebuild(node, primary).await;
                    }
                }
                // nobody was promoted: the primary is wanted as it is
                None if Instant::now() > patience && !self.cluster.nodes[first].is_running() => {
                    self.kill(first);
                    self.cluster.nodes[first].launch();
                    patience = Instant::now() + BY_ITSELF;
                }
                None => {}
            }
            tokio::time::sleep(LOOK).await;
        }
        self.primary = self.served().await.expect("it was just served");
    }

    /// The node that every instance serves from.
    async fn served(&self) -> Option<usize> {
        let mut served = Vec::new();
        for instance in &self.instances {
            let primary = instance.status().await["primary"].as_str()?.to_owned();
            served.push(self.cluster.named(&primary)?);
        }
        let agreed = served.windows(2).all(|pair| pair[0] == pair[1]) && self.cluster.nodes[served[0]].is_running();
        agreed.then_some(served[0])
    }

    /// The standbys that stream from this node.
    async fn streaming(&self, primary: usize) -> Vec<usize> {
        let Ok(client) = self.cluster.nodes[primary].try_client().await else { return Vec::new() };
        let sql = "SELECT coalesce(string_agg(application_name, ','), '') FROM pg_stat_replication \
                   WHERE state = 'streaming'";
        let names = value(&client, sql).await;
        names.split(',').filter_map(|name| self.cluster.named(name)).collect()
    }

    async fn rebuild(&mut self, node: usize, primary: usize) {
        self.kill(node);
        let port = self.cluster.nodes[primary].port();
        self.cluster.clone_from(node, primary, port).await;
    }

    async fn is_whole(&self) -> bool {
        for instance in &self.instances {
            let status = instance.status().await;
            let counted = status["rule"]["standbys"].as_array().map_or(0, Vec::len);
            if counted != NODES - 1 || !status["store_lost"].is_null() {
                return false;
            }
        }
        self.served().await.is_some()
    }

    async fn amiss(&self) -> String {
        let mut found = Vec::new();
        for instance in &self.instances {
            let status = instance.status().await;
            let seen = ["primary", "why", "phase", "rule", "nodes", "store_lost"];
            let seen: Vec<(&str, &Value)> = seen.iter().map(|field| (*field, &status[*field])).collect();
            found.push(format!("{seen:?}"));
        }
        for node in &self.cluster.nodes {
            found.push(format!("{}: {}", node.name, last_lines(node)));
        }
        found.join("\n")
    }

    /// Waits until the standbys have replayed what the primary has written.
    pub(crate) async fn replayed(&self) {
        let primary = &self.cluster.nodes[self.primary];
        let written = primary.sql("SELECT pg_current_wal_lsn()").await;
        for standby in self.standbys() {
            let node = &self.cluster.nodes[standby];
            let sql = format!("SELECT pg_last_wal_replay_lsn() >= '{written}'");
            // it may be starting still
            let reached = || async { (value(&node.try_client().await.ok()?, &sql).await == "t").then_some(()) };
            harness::wait_for(&format!("{} to replay", node.name), WHOLE, reached).await;
        }
    }
}

/// The end of its log.
fn last_lines(node: &Node) -> String {
    let log = node.log();
    let last: Vec<&str> = log.lines().rev().take(LAST_LINES).collect();
    last.into_iter().rev().collect::<Vec<_>>().join("\n    ")
}
