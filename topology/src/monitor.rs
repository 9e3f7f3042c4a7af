//! Puts a cluster's probes, orders, store and decision together and lets them run. Dropping the monitor stops all of it.

use std::fmt;
use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::time::{Duration, Instant};

use decision::{Action, Cluster, ClusterError, Coordinator, Event, Managed, Member, NodeId, Policy, Record};
use tokio::sync::{Notify, mpsc, oneshot, watch};
use tokio::task::JoinSet;

use crate::act::Remote;
use crate::ask::MAX_ASKS;
use crate::driver::{Driver, Positions};
use crate::history::History;
use crate::login::Connector;
use crate::orders::{Deadlines, MAX_ORDERS, NodeOrders, store_orders};
use crate::presence::{Identity, Standing};
use crate::probe::{Pace, Probe, Report};
use crate::records::Records;
use crate::reigns::Reigns;
use crate::store::{EtcdConfig, EtcdStore, FileStore, Keeper, Stop, Store, StoreError};
use crate::translate::Names;
use crate::{Address, Login, Lsn, Node, PrimarySample, ReplicationLogin, Role, Topology, Watch};

/// Reports, outcomes and suspicions that may wait for the driver.
const MAX_EVENTS: usize = 256;

/// A cluster, as the configuration has it.
#[derive(Debug, Clone)]
pub struct ClusterConfig {
    /// Its name; also the name of its file in the store's folder.
    pub name: Arc<str>,
    /// Its nodes, in the order of the snapshot.
    pub nodes: Vec<NodeConfig>,
    /// Who the monitor is on the nodes; `docs/privileges.md` says what it has to be allowed.
    pub login: Login,
    /// How standbys log in to their primary.
    pub replication: ReplicationLogin,
    /// Patience and aims; also who promotes.
    pub policy: Policy,
    /// How often and how long a node is asked.
    pub pace: Pace,
    /// Folder of the file store and of the records of failovers; made if it is missing. Needed unless somebody else manages
    /// the cluster.
    pub store: Option<PathBuf>,
    /// Where the store is etcd, which several instances share.
    pub etcd: Option<EtcdConfig>,
}

/// A node, as the configuration has it.
#[derive(Debug, Clone)]
pub struct NodeConfig {
    /// Its name; also its `application_name` as a standby.
    pub name: Arc<str>,
    /// Where it answers, for us as for its standbys.
    pub address: Address,
    /// Among standbys that hold equally much, the greater is promoted.
    pub priority: u32,
    /// Where it stands; empty if nobody said.
    pub zone: String,
}

/// Why a cluster cannot be monitored.
#[derive(Debug)]
pub enum MonitorError {
    /// The list of nodes is not a cluster.
    Cluster(ClusterError),
    /// The store does not serve.
    Store(StoreError),
    /// The store's folder cannot be made.
    Folder(PathBuf, io::Error),
    /// No store is named, but we are to promote.
    NoStore(Arc<str>),
    /// The cluster's name cannot be the name of a file.
    Name(Arc<str>),
}

impl fmt::Display for MonitorError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            MonitorError::Cluster(error) => error.fmt(f),
            MonitorError::Store(error) => error.fmt(f),
            MonitorError::Folder(path, error) => {
                write!(f, "cannot make the store's folder {}: {error}", path.display())
            }
            MonitorError::NoStore(name) => {
                write!(
                    f,
                    "cluster \"{name}\" is managed by pgsteady and needs a store; name its folder, or manage it externally"
                )
            }
            MonitorError::Name(name) => write!(f, "cluster name {name:?}: letters, digits, - and _ only, at most 63"),
        }
    }
}

impl std::error::Error for MonitorError {}

/// A running monitor. Dropping it stops all its tasks and closes its connections; an order that is under way ends where
/// it is, and the next instance on the store finds and finishes it.
#[derive(Debug)]
#[must_use = "dropping it stops the monitor"]
pub struct Monitor {
    tasks: JoinSet<()>,
    /// Tells the keeper of a shared store to give up the office of the coordinator.
    stop: Option<Stop>,
}

impl Monitor {
    /// Starts on the current tokio runtime, of any flavour. The snapshot says "no primary" until the nodes were looked at.
    ///
    /// # Errors
    /// If the configuration is no cluster, or the store is torn, foreign, or held by another instance.
    pub fn start(config: &ClusterConfig) -> Result<(Watch, Monitor), MonitorError> {
        let names = Arc::new(names(config)?);
        let (store, record) = store(config, &names.cluster)?;
        let place = store.to_string();
        // before it acts it looks whether it is alone, and has the lease of a store that is shared
        let policy = Policy { shared: true, ..config.policy.clone() };
        // what nobody has read yet is not empty
        let unread =
            matches!(store, Store::Etcd(_)).then(|| Event::StoreLost { why: "it has not been read yet".into() });
        let coordinator = Coordinator::new(policy, names.cluster.clone(), record);
        let mut tasks = JoinSet::new();

        let topology = unseen(config, &names);
        let (published, snapshots) = watch::channel(Arc::new(topology.clone()));
        let (suspect, suspicions) = mpsc::channel(MAX_EVENTS);
        let (reporter, reports) = mpsc::channel(MAX_EVENTS);
        let (outcome, outcomes) = mpsc::channel(MAX_EVENTS);
        let (ask, asks) = mpsc::channel(MAX_ASKS);
        let held = Arc::new(AtomicU64::new(0));
        let samples_begun = Arc::new(AtomicU64::new(0));

        let store_queue = {
            let (queue, orders) = mpsc::channel(MAX_ORDERS);
            tasks.spawn(store_orders(store.clone(), orders, outcome.clone()));
            queue
        };
        let stop = keep(&store, &outcome, &mut tasks);
        let (identity, lease) = (store.identity(), !matches!(store, Store::Etcd(_)));
        let ends = Ends { store, identity, outcome, reporter, samples_begun: samples_begun.clone() };
        let (queues, nudges) = attend(config, &names, &ends, &mut tasks);
        drop(ends); // the driver ends when the tasks have
        let records = config.store.as_ref().map(|folder| Records::of(folder, &config.name));
        let (history, failovers) = History::new(config.name.clone(), names.cluster.clone(), records, held.clone());
        let driver = Driver {
            coordinator,
            history,
            names,
            reports,
            suspicions,
            outcomes,
            nodes: queues,
            store: store_queue,
            nudges,
            topology,
            published,
            positions: Positions::default(),
            reigns: Reigns::default(),
            began: Instant::now(),
            timeout: config.pace.timeout,
            refused: unread.into_iter().collect(),
            asks,
            asked: None,
            standing: Standing::new(config.nodes.len(), lease),
            place: place.into(),
        };
        tasks.spawn(driver.run());
        let watch = Watch::new(snapshots, suspect, samples_begun).of_monitor(failovers, ask, held);
        Ok((watch, Monitor { tasks, stop }))
    }

    /// Stops it; of several instances another one acts at once. Takes as long as one request to the store at most.
    pub async fn stop(mut self) {
        if let Some(stop) = self.stop.take().filter(|_| !self.tasks.is_empty()) {
            let (confirm, confirmed) = oneshot::channel();
            if stop.send(confirm).is_ok() {
                let _ = confirmed.await;
            }
        }
    }
}

/// Keeps in touch with a store that others write to.
fn keep(store: &Store, outcome: &mpsc::Sender<Event>, tasks: &mut JoinSet<()>) -> Option<Stop> {
    let Store::Etcd(store) = store else { return None };
    let (stop, stopped) = oneshot::channel();
    tasks.spawn(Keeper::new(store.clone(), outcome.clone()).run(stopped));
    Some(stop)
}

/// What the tasks of a node hold of the driver.
struct Ends {
    store: Store,
    identity: Identity,
    outcome: mpsc::Sender<Event>,
    reporter: mpsc::Sender<Report>,
    samples_begun: Arc<AtomicU64>,
}

type Queues = (Vec<mpsc::Sender<Action>>, Vec<Arc<Notify>>);

/// Starts each node's probe and the task that carries out its orders.
fn attend(config: &ClusterConfig, names: &Arc<Names>, ends: &Ends, tasks: &mut JoinSet<()>) -> Queues {
    let login = Arc::new(config.login.clone());
    let replication = Arc::new(config.replication.clone());
    let (mut queues, mut nudges) = (Vec::new(), Vec::new());
    for (index, node) in (0u8..).zip(&config.nodes) {
        let address = names.addresses[usize::from(index)].clone();
        let connector = Connector { node: node.name.clone(), address, login: login.clone() };
        let (queue, orders) = mpsc::channel(MAX_ORDERS);
        let worker = NodeOrders {
            node: NodeId(index),
            remote: Remote::new(connector.clone()),
            names: names.clone(),
            store: ends.store.clone(),
            replication: replication.clone(),
            deadlines: deadlines(config),
            outcomes: ends.outcome.clone(),
            drained: None,
        };
        tasks.spawn(worker.run(orders));
        queues.push(queue);
        let nudge = Arc::new(Notify::new());
        nudges.push(nudge.clone());
        let probe = Probe {
            node: usize::from(index),
            connector,
            pace: config.pace,
            reports: ends.reporter.clone(),
            nudge,
            samples_begun: ends.samples_begun.clone(),
            identity: ends.identity,
        };
        tasks.spawn(probe.run());
    }
    (queues, nudges)
}

fn names(config: &ClusterConfig) -> Result<Names, MonitorError> {
    let member =
        |node: &NodeConfig| Member { name: node.name.to_string(), zone: node.zone.clone(), priority: node.priority };
    let cluster = Cluster::new(config.nodes.iter().map(member).collect()).map_err(MonitorError::Cluster)?;
    let addresses = config.nodes.iter().map(|node| Arc::new(node.address.clone())).collect();
    Ok(Names { cluster, addresses })
}

/// The store, and what it holds if that is known without asking anybody.
fn store(config: &ClusterConfig, cluster: &Cluster) -> Result<(Store, Option<Record>), MonitorError> {
    if config.policy.managed == Managed::External {
        return Ok((Store::Memory(Arc::default()), None));
    }
    let plain = |letter: char| letter.is_ascii_alphanumeric() || matches!(letter, '-' | '_');
    if config.name.is_empty() || config.name.len() > 63 || !config.name.chars().all(plain) {
        return Err(MonitorError::Name(config.name.clone()));
    }
    let Some(folder) = &config.store else { return Err(MonitorError::NoStore(config.name.clone())) };
    std::fs::create_dir_all(folder).map_err(|error| MonitorError::Folder(folder.clone(), error))?;
    if let Some(etcd) = &config.etcd {
        return Ok((Store::Etcd(Arc::new(EtcdStore::new(etcd, &config.name, cluster))), None));
    }
    let file = folder.join(format!("{}.json", config.name));
    let store = FileStore::open(&file, &config.name, cluster).map_err(MonitorError::Store)?;
    let record = store.read().map_err(MonitorError::Store)?;
    Ok((Store::File(Arc::new(store)), record))
}

fn deadlines(config: &ClusterConfig) -> Deadlines {
    Deadlines {
        fence: Duration::from_millis(config.policy.fence_timeout.0),
        setting: Duration::from_secs(5),
        write: Duration::from_secs(5),
        drain: Duration::from_secs(60),
        promote: Duration::from_secs(60),
        checkpoint: Duration::from_secs(600),
    }
}

/// What is known before anybody has looked.
fn unseen(config: &ClusterConfig, names: &Names) -> Topology {
    let node = |(node, address): (&NodeConfig, &Arc<Address>)| Node {
        name: node.name.clone(),
        address: address.clone(),
        role: Role::Out,
        position: None,
        replayed: Lsn(0),
        lag: None,
        why: "not looked at yet".into(),
    };
    Topology {
        epoch: 0,
        primary: None,
        term: 0,
        reigns: Arc::from([]),
        nodes: config.nodes.iter().zip(names.addresses.iter()).map(node).collect(),
        sample: PrimarySample::default(),
        why: "the nodes have not been looked at yet".into(),
        overview: Arc::default(),
    }
}
