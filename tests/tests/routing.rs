//! Where transactions go: writes to the primary, reads where they may, and never so that a session misses its own writes.

use std::time::Duration;

use harness::endpoint::value;
use harness::folder::Folder;
use harness::pgsteady::{Config, Pgsteady};
use harness::postgres::{Cluster, Programs};
use tokio_postgres::Client;

const IN_RECOVERY: &str = "SELECT pg_is_in_recovery()";
/// Scans of the table, as a node counts them.
const READS: &str = "SELECT seq_scan FROM pg_stat_user_tables WHERE relname = 'counted'";

struct Scene {
    cluster: Cluster,
    pgsteady: Pgsteady,
    _store: Folder,
}

impl Scene {
    async fn new() -> Self {
        let mut cluster = Cluster::prepare(&Programs::installed(), 3);
        let ports = cluster.ports();
        cluster.launch(ports[0]).await;
        cluster.nodes[0].sql("CREATE TABLE counted (n int)").await;
        cluster.nodes[0].sql("GRANT ALL ON counted TO app").await;
        let store = Folder::new("store");
        let pgsteady = Pgsteady::start(&Config::cluster(&cluster, &ports, store.path())).await;
        let scene = Self { cluster, pgsteady, _store: store };
        let client = scene.pgsteady.endpoint().client().await;
        // The monitor needs a reading of each standby before it takes reads.
        let there = || async {
            let sql = format!("/* pgsteady.route=replica */ {IN_RECOVERY}");
            (value(&client, &sql).await == "t").then_some(())
        };
        harness::wait_for("a replica that takes reads", Duration::from_secs(20), there).await;
        scene
    }

    async fn reads_on_standbys(&self) -> i64 {
        let mut reads = 0;
        for node in &self.cluster.nodes[1..] {
            reads += node.sql(READS).await.parse::<i64>().unwrap_or(0);
        }
        reads
    }
}

async fn write_and_read(client: &Client, n: i32) {
    client.batch_execute(&format!("INSERT INTO counted VALUES ({n})")).await.expect("a write");
    assert_eq!(
        value(client, &format!("SELECT count(*) FROM counted WHERE n = {n}")).await,
        "1",
        "the write {n} is missed"
    );
}

#[test]
fn a_hint_and_a_session_choose_the_node() {
    harness::run(60, async {
        let scene = Scene::new().await;
        let client = scene.pgsteady.endpoint().client().await;
        assert_eq!(value(&client, &format!("/* pgsteady.route=primary */ {IN_RECOVERY}")).await, "f");
        client.batch_execute("SET pgsteady.route = 'replica'").await.expect("a setting");
        // What ran on the primary has to be on the standby before the session reads there.
        let moved = || async { (value(&client, IN_RECOVERY).await == "t").then_some(()) };
        harness::wait_for("the session's route", Duration::from_secs(20), moved).await;
        client.batch_execute("SET pgsteady.route = 'primary'").await.expect("a setting");
        assert_eq!(value(&client, IN_RECOVERY).await, "f");
    });
}

#[test]
fn reads_go_to_replicas_and_a_session_never_misses_its_own_writes() {
    harness::run(60, async {
        let scene = Scene::new().await;
        let client = scene.pgsteady.endpoint().client().await;
        for n in 0..200 {
            write_and_read(&client, n).await;
        }
        let before = scene.reads_on_standbys().await;
        let reader = scene.pgsteady.endpoint().client().await;
        for _ in 0..50 {
            assert_eq!(value(&reader, "SELECT count(*) FROM counted").await, "200");
        }
        let counted = || async { (scene.reads_on_standbys().await >= before + 50).then_some(()) };
        harness::wait_for("the reads on the standbys", Duration::from_secs(20), counted).await;
    });
}
