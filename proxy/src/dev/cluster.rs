//! The throwaway cluster: its folder, its nodes, and the configuration with which the proxy finds them.

use std::path::{Path, PathBuf};
use std::time::Instant;

use serde::Serialize;
use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinSet;
use topology::node::{Account, Init, LocalNode, Log, NodeError, Port, Programs, Settings, Site, Throwaway, Upstream};
use topology::{Address, Watch};

use super::keeper::{Keeper, Order};
use super::{DevArgs, say};

/// Name of the cluster, and of the superuser everywhere.
pub(super) const NAME: &str = "dev";
const SUPERUSER: &str = "postgres";
/// Orders that a keeper may have before it.
const ORDERS: usize = 4;

/// A primary and its standbys in a temporary folder. What runs ends with this value.
pub(super) struct Cluster {
    /// Until they are given to their keepers.
    nodes: Vec<LocalNode>,
    addresses: Vec<Address>,
    orders: Vec<mpsc::Sender<Order>>,
    keepers: JoinSet<()>,
    /// Port of the proxy.
    port: u16,
    verbose: bool,
    _ports: Vec<Port>,
    // last: the nodes go first
    folder: Throwaway,
}

impl Cluster {
    pub(super) fn new(args: &DevArgs) -> Result<Self, NodeError> {
        let programs = Programs::find(args.bin_dir.as_deref())?;
        let account = Account::choose()?;
        let mut folder = Throwaway::new("pgsteady-dev", &account)?;
        if args.keep {
            folder.keep();
            say(&format!("files stay in {}", folder.path().display()));
        }
        folder.folder("store", &account)?;
        let version = programs.major();
        say(&format!("PostgreSQL {version} in {}, as {}", programs.directory().display(), account.name()));
        let mut ports = Vec::new();
        let mut nodes = Vec::new();
        for number in 1..=args.nodes {
            let port = Port::reserve()?;
            let name = format!("n{number}");
            let home = folder.folder(&name, &account)?;
            let site = Site {
                data: home.join("data"),
                log: Log::File(home.join("log")),
                sockets: home,
                listen: "127.0.0.1".into(),
                port: port.number(),
                superuser: SUPERUSER.into(),
                passfile: None,
                name,
            };
            nodes.push(LocalNode::new(programs.clone(), account.clone(), site));
            ports.push(port);
        }
        let proxy = match args.port {
            0 => Port::reserve()?.number(),
            given => given,
        };
        let addresses = nodes.iter().map(LocalNode::address).collect();
        let (orders, keepers, verbose) = (Vec::new(), JoinSet::new(), args.verbose);
        Ok(Self { nodes, addresses, orders, keepers, port: proxy, verbose, _ports: ports, folder })
    }

    /// Makes and starts the nodes: the first is the primary, the others are copies of it.
    pub(super) async fn make(&mut self) -> Result<(), NodeError> {
        let names: Vec<String> = self.nodes.iter().map(|node| node.site().name.clone()).collect();
        let (primary, standbys) = self.nodes.split_first_mut().expect("at least one node is asked for");
        say(&format!("making the primary {}", names[0]));
        let init = Init { settings: Settings::throwaway(), hba: None, password_file: None, sync: false };
        primary.init(&init).await?;
        primary.start_primary().await?;
        if standbys.is_empty() {
            return Ok(());
        }
        say(&format!("making the standbys {}", names[1..].join(", ")));
        let upstream = Upstream::trusting(primary.address(), SUPERUSER);
        let mut copies = JoinSet::new();
        for (index, mut standby) in self.nodes.drain(1..).enumerate() {
            let upstream = upstream.clone();
            copies.spawn(async move {
                let made = standby.clone_from(&upstream).await;
                let made = match made {
                    Ok(()) => standby.start_standby(None).await,
                    error => error,
                };
                (index, standby, made)
            });
        }
        let mut made = copies.join_all().await;
        made.sort_by_key(|(index, ..)| *index);
        for (_, standby, outcome) in made {
            outcome?;
            self.nodes.push(standby);
        }
        self.set_rule(&names[1..]).await
    }

    /// A commit is acknowledged when one of the standbys has it. Lower case leaves it to the monitor to see that this is in force.
    async fn set_rule(&self, standbys: &[String]) -> Result<(), NodeError> {
        let rule = format!("any 1 ({})", standbys.join(", "));
        let client = self.nodes[0].connect().await?;
        let sql = |error| NodeError::Sql { what: "set synchronous_standby_names".into(), error };
        client.batch_execute(&format!("alter system set synchronous_standby_names = '{rule}'")).await.map_err(sql)?;
        client.batch_execute("select pg_reload_conf()").await.map_err(sql)
    }

    /// Each node gets somebody who brings it back when it ends.
    pub(super) fn keep_nodes(&mut self, watch: &Watch) {
        for (index, node) in self.nodes.drain(..).enumerate() {
            let (orders, received) = mpsc::channel(ORDERS);
            let upstreams =
                self.addresses.iter().map(|address| Upstream::trusting(address.clone(), SUPERUSER)).collect();
            let keeper = Keeper { node, index, upstreams, watch: watch.clone(), orders: received };
            self.keepers.spawn(keeper.keep());
            self.orders.push(orders);
        }
    }

    /// `kill -9` of all processes of a node. Returns when it began.
    pub(super) async fn kill(&self, node: usize) -> Result<Instant, String> {
        let gone = || format!("nobody keeps node {node}");
        let (answer, answered) = oneshot::channel();
        let orders = self.orders.get(node).ok_or_else(gone)?;
        orders.send(Order::Kill(answer)).await.map_err(|_| gone())?;
        answered.await.map_err(|_| gone())
    }

    pub(super) fn size(&self) -> usize {
        self.addresses.len()
    }

    /// A node by itself, past the proxy.
    pub(super) fn upstream(&self, node: usize) -> Upstream {
        Upstream::trusting(self.addresses[node].clone(), SUPERUSER)
    }

    /// The same for a client: what is counted there was not told by the proxy.
    pub(super) fn direct(&self, node: usize) -> tokio_postgres::Config {
        let mut place = tokio_postgres::Config::new();
        place.user(SUPERUSER).dbname("postgres");
        match &self.addresses[node] {
            Address::Tcp(host, port) => place.host(host).port(*port),
            Address::Unix(folder, port) => place.host_path(folder).port(*port),
        };
        place
    }

    /// What a client connects to.
    pub(super) fn url(&self) -> String {
        format!("postgresql://{SUPERUSER}@127.0.0.1:{}/postgres", self.port)
    }

    pub(super) fn configuration_file(&self) -> PathBuf {
        self.folder.path().join("pgsteady.toml")
    }

    /// The proxy's configuration; it is also left in the folder, to be looked at with `--keep`.
    pub(super) fn configuration(&self) -> Result<String, String> {
        let store = self.folder.path().join("store");
        let text = configuration(self.port, &self.addresses, &store, self.verbose)?;
        let file = self.configuration_file();
        std::fs::write(&file, &text).map_err(|error| format!("write {}: {error}", file.display()))?;
        Ok(text)
    }

    /// Ends everything and removes the folder. The keepers first: they would start again what the watchman ends.
    pub(super) async fn end(mut self) {
        self.keepers.shutdown().await;
        // waits for the watchman
        let dropped = tokio::task::spawn_blocking(move || drop(self)).await;
        if dropped.is_err() {
            say("the clean-up panicked");
        }
    }
}

#[derive(Serialize)]
struct File {
    listen: Listen,
    auth: Auth,
    user: [User; 1],
    log: LogSection,
    cluster: std::collections::BTreeMap<&'static str, ClusterSection>,
    database: std::collections::BTreeMap<&'static str, Database>,
}

#[derive(Serialize)]
struct Listen {
    address: [String; 1],
}

#[derive(Serialize)]
struct Auth {
    method: &'static str,
}

#[derive(Serialize)]
struct User {
    name: &'static str,
}

#[derive(Serialize)]
struct LogSection {
    level: &'static str,
}

#[derive(Serialize)]
struct ClusterSection {
    user: &'static str,
    store: PathBuf,
    node: Vec<NodeSection>,
    tls: Tls,
}

#[derive(Serialize)]
struct Tls {
    sslmode: &'static str,
}

#[derive(Serialize)]
struct NodeSection {
    name: String,
    host: String,
    port: u16,
}

#[derive(Serialize)]
struct Database {
    cluster: &'static str,
}

fn configuration(port: u16, nodes: &[Address], store: &Path, verbose: bool) -> Result<String, String> {
    let node = nodes.iter().enumerate().map(|(index, address)| {
        let (host, port) = match address {
            Address::Tcp(host, port) => (host.clone(), *port),
            Address::Unix(folder, port) => (folder.display().to_string(), *port),
        };
        NodeSection { name: format!("n{}", index + 1), host, port }
    });
    let cluster = ClusterSection {
        user: SUPERUSER,
        store: store.to_owned(),
        node: node.collect(),
        tls: Tls { sslmode: "disable" },
    };
    let file = File {
        listen: Listen { address: [format!("127.0.0.1:{port}")] },
        auth: Auth { method: "trust" },
        user: [User { name: SUPERUSER }],
        log: LogSection { level: if verbose { "info" } else { "error" } },
        cluster: [(NAME, cluster)].into(),
        database: [("*", Database { cluster: NAME })].into(),
    };
    toml::to_string(&file).map_err(|error| format!("the configuration cannot be written: {error}"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Config;

    #[test]
    fn the_configuration_is_one_that_pgsteady_takes() {
        let nodes = [20_001, 20_002, 20_003].map(|port| Address::Tcp("127.0.0.1".into(), port));
        let text = configuration(6432, &nodes, Path::new("/tmp/x/store"), true).unwrap();
        let config = Config::parse(&text, Path::new("/tmp/x/pgsteady.toml")).unwrap_or_else(|e| panic!("{e}\n{text}"));
        assert_eq!(config.warnings, [], "{text}");
        assert_eq!(config.clusters[NAME].nodes.len(), 3);
        assert_eq!(config.clusters[NAME].login.user.as_ref(), SUPERUSER);
        assert_eq!(config.users.len(), 1);
        assert!(config.any_database.is_some());
    }
}
