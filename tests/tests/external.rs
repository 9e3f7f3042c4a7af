//! `managed = "external"`: Patroni promotes, pgsteady follows. Clients wait instead of failing, nothing acknowledged is lost,
//! and pgsteady orders nothing.

use std::time::Duration;

use harness::endpoint::value;
use harness::etcd::Etcd;
use harness::folder::Folder;
use harness::host::{Host, Network};
use harness::patroni::{Pace, Patroni};
use harness::pgsteady::{Config, Pgsteady};
use harness::writers::{self, Record, Writers};

/// Time for the test: Patroni's leader key lives for twenty seconds at the least.
const TEST_S: u64 = 240;
/// From a loss to the first acknowledgements on the new primary.
const FAILOVER: Duration = Duration::from_secs(70);
const WRITERS: i32 = 4;

struct Scene {
    patroni: Patroni,
    pgsteady: Pgsteady,
    writers: Writers,
    _etcd: Vec<Etcd>,
    _store: Folder,
    _network: Network,
}

impl Scene {
    async fn new() -> Self {
        let mut network = Network::new();
        let hosts: Vec<Host> = (0..3).map(|_| network.host()).collect();
        let etcd = Etcd::on(&[network.host()]).await;
        let patroni = Patroni::start(&hosts, &etcd[0].endpoint(), Pace::FASTEST).await;
        let leader = patroni.leader().expect("it was just started");
        let table = format!("{}; GRANT ALL ON written TO app", writers::TABLE);
        let client = patroni.superuser(leader, "app").client().await;
        client.batch_execute(&table).await.expect("a table can be made");
        let store = Folder::new("store");
        let config = Config::nodes(patroni.nodes(), store.path())
            .set("cluster.main.managed", "external")
            .set("limits.hold_timeout", "100s");
        let pgsteady = Pgsteady::start_on(&network.host(), &config).await;
        let writers = Writers::start(&pgsteady.endpoint(), WRITERS);
        writers.acknowledged(300, FAILOVER).await;
        Self { patroni, pgsteady, writers, _etcd: etcd, _store: store, _network: network }
    }

    /// Waits until the writers go on at another leader.
    async fn goes_on_elsewhere(&self, old: usize) -> usize {
        let other = || async { self.patroni.leader().filter(|leader| *leader != old) };
        let leader = harness::wait_for("another leader", FAILOVER, other).await;
        self.writers.acknowledged(300, FAILOVER).await;
        let name = &self.patroni.nodes()[leader].0;
        let followed = || async { (self.pgsteady.status().await["primary"] == **name).then_some(()) };
        harness::wait_for("pgsteady to follow", FAILOVER, followed).await;
        leader
    }
}

#[test]
fn patroni_promotes_and_clients_only_wait() {
    harness::run(TEST_S, async {
        let mut scene = Scene::new().await;
        let first = scene.patroni.leader().expect("it leads");
        let (code, out, err) = scene.pgsteady.command(&["switchover", "--json"]).await;
        assert!(code == 1 && (out + &err).contains("managed by somebody else"), "{code} {err}");
        assert_eq!(scene.patroni.leader(), Some(first), "pgsteady orders nothing");
        let answer = scene.patroni.switch_over(first);
        assert!(answer.starts_with("HTTP/1.0 200"), "{answer}");
        let second = scene.goes_on_elsewhere(first).await;
        scene.patroni.whole().await;
        // the loss of everything on the primary's host
        scene.patroni.kill(second);
        let third = scene.goes_on_elsewhere(second).await;
        // its return: Patroni rewinds it, and nobody is sent there before it is a standby
        scene.patroni.restart(second);
        let name = scene.patroni.nodes()[second].0.clone();
        let back = || async {
            let status = scene.pgsteady.status().await;
            let nodes = status["nodes"].as_array()?;
            nodes.iter().any(|node| node["name"] == *name && node["role"] == "standby").then_some(())
        };
        harness::wait_for("the old primary as a standby", FAILOVER, back).await;
        scene.writers.acknowledged(100, FAILOVER).await;
        let Scene { patroni, pgsteady, writers, .. } = scene;
        let record: Record = writers.stop().await;
        assert_eq!(record.dropped, Vec::<String>::new(), "{:?}", record.errors);
        record.check(&patroni.superuser(third, "app").client().await).await;
        let client = pgsteady.endpoint().client().await;
        let served = value(&client, "SELECT host(inet_server_addr()) || ':' || inet_server_port() FOR UPDATE").await;
        assert_eq!(served, patroni.nodes()[third].1.to_string());
    });
}
