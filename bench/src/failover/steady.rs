//! Three nodes and pgsteady, each on a host.

use std::time::Duration;

use harness::endpoint::Endpoint;
use harness::folder::Folder;
use harness::host::{self, Host, Network, Way};
use harness::pgsteady::{Config, Pgsteady};
use harness::postgres::{Cluster, Programs};
use harness::{wait_for, writers};
use tokio_postgres::Client;

use crate::{Event, PATIENCE, System};

pub(crate) struct WithPgsteady {
    cluster: Cluster,
    pgsteady: Pgsteady,
    hosts: Vec<Host>,
    primary: usize,
    _store: Folder,
    _network: Network,
}

impl WithPgsteady {
    pub(crate) async fn start() -> Self {
        let mut network = Network::new();
        let hosts: Vec<Host> = (0..4).map(|_| network.host()).collect();
        let mut cluster = Cluster::prepare_on(&hosts[..3], &Programs::installed());
        let ports = cluster.ports();
        cluster.launch(ports[0]).await;
        let table = format!("{}; GRANT ALL ON written TO app", writers::TABLE);
        cluster.nodes[0].client().await.batch_execute(&table).await.expect("a table can be made");
        let store = Folder::new("store");
        let config = Config::cluster(&cluster, &ports, store.path()).set("log.level", "info");
        let pgsteady = Pgsteady::start_on(&hosts[3], &config).await;
        let mut started = Self { cluster, pgsteady, hosts, primary: 0, _store: store, _network: network };
        started.primary = started.whole().await;
        started
    }

    /// Waits until both standbys count; returns the primary.
    async fn whole(&self) -> usize {
        self.pgsteady.counts_on(2).await;
        self.served().await
    }

    async fn served(&self) -> usize {
        let primary = || async {
            let status = self.pgsteady.status().await;
            self.cluster.named(status["primary"].as_str()?)
        };
        wait_for("a primary", PATIENCE, primary).await
    }
}

impl System for WithPgsteady {
    fn endpoint(&self) -> Endpoint {
        self.pgsteady.endpoint()
    }

    async fn primary(&self) -> Client {
        self.cluster.nodes[self.served().await].client().await
    }

    async fn bring(&mut self, event: Event) {
        match event {
            Event::Killed => self.cluster.nodes[self.primary].kill_tree(),
            Event::Silent => {
                let host = &self.hosts[self.primary];
                host.cut(&host::others(&self.hosts, &[host]), Way::Both);
            }
            Event::Switchover => {
                let (code, out, err) = self.pgsteady.command(&["switchover", "--json"]).await;
                assert_eq!(code, 0, "{out}{err}");
            }
        }
    }

    async fn restore(&mut self) {
        let (old, new) = (self.primary, self.served().await);
        assert_ne!(old, new, "the primary has changed");
        if self.cluster.nodes[old].is_running() {
            self.cluster.nodes[old].kill_tree();
        }
        self.hosts[old].heal();
        let port = self.cluster.nodes[new].port();
        self.cluster.clone_from(old, new, port).await;
        self.primary = self.whole().await;
        // its servers are warm again
        tokio::time::sleep(Duration::from_secs(1)).await;
    }
}
