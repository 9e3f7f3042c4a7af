//! `pgsteady drill` on a cluster that is somebody's own: what it reports is true, and nothing of it is left.

use std::time::Duration;

use harness::folder::Folder;
use harness::pgsteady::{Config, Pgsteady};
use harness::postgres::{Cluster, Programs};
use serde_json::Value;

/// Time for one test.
const TEST_S: u64 = 90;
/// Patience with a cluster's start.
const SOON: Duration = Duration::from_secs(30);

struct Scene {
    cluster: Cluster,
    pgsteady: Pgsteady,
    _store: Folder,
}

impl Scene {
    async fn new() -> Self {
        let cluster = Cluster::start(&Programs::installed(), 3).await;
        let store = Folder::new("store");
        let pgsteady = Pgsteady::start(&Config::cluster(&cluster, &cluster.ports(), store.path())).await;
        let scene = Self { cluster, pgsteady, _store: store };
        scene.pgsteady.counts_on(2).await;
        scene
    }

    /// Runs a drill by these arguments: its exit status, and what it said.
    async fn drill(&self, arguments: &[&str]) -> (i32, String, String) {
        let place = format!("postgres://app:app-secret@127.0.0.1:{}/app", self.pgsteady.port());
        self.pgsteady.command(&[&["drill", &place, "--within", "8s"], arguments].concat()).await
    }

    async fn nothing_is_left(&self, primary: usize) {
        assert_eq!(self.cluster.nodes[primary].sql("SELECT to_regclass('pgsteady_drill') IS NULL").await, "t");
    }
}

/// The report of a drill that changed the primary once and lost nothing.
fn clean(out: &str) -> Value {
    let report: Value = serde_json::from_str(out).unwrap_or_else(|error| panic!("{error}: {out}"));
    assert!(report["acknowledged"].as_u64().is_some_and(|count| count > 100), "{report}");
    assert_eq!((&report["lost"], &report["dropped"]), (&0.into(), &0.into()), "{report}");
    assert_eq!(report["drills"].as_array().map(Vec::len), Some(1), "{report}");
    report["drills"][0].clone()
}

#[test]
fn a_switchover_is_measured() {
    harness::run(TEST_S, async {
        let scene = Scene::new().await;
        let (code, out, err) = scene.drill(&["--json"]).await;
        assert_eq!(code, 0, "{out}{err}");
        let measured = clean(&out);
        let steps: Vec<u64> =
            ["detect_ms", "fence_ms", "promote_ms"].iter().filter_map(|of| measured[of].as_u64()).collect();
        assert!(steps.len() == 3 && steps.iter().sum::<u64>() > 0, "{measured}");
        assert!(measured["hold_ms"].as_u64().is_some_and(|hold| hold < 8000), "{measured}");
        // nobody keeps the old primary: it says what to do
        assert!(err.contains("pg_rewind -D $PGDATA"), "{err}");
        let primary = scene.cluster.primary(&[0]).await.expect("another node is the primary");
        scene.nothing_is_left(primary).await;
    });
}

#[test]
fn a_primary_that_is_killed_is_measured() {
    harness::run(TEST_S, async {
        let scene = Scene::new().await;
        let pid = scene.cluster.nodes[0].data().join("postmaster.pid").display().to_string();
        let kill = format!("test $PGSTEADY_NODE = n1 && kill -9 $(head -1 {pid})");
        let (code, out, err) = scene.drill(&["--json", "--kill", &kill]).await;
        assert_eq!(code, 0, "{out}{err}");
        clean(&out);
        let primary = scene.cluster.primary(&[0]).await.expect("another node is the primary");
        scene.nothing_is_left(primary).await;
    });
}

#[test]
fn what_does_not_work_is_said_and_nothing_is_left() {
    harness::run(TEST_S, async {
        let mut scene = Scene::new().await;
        let (code, _, err) = scene.drill(&["--kill", "exit 7"]).await;
        assert!(code == 1 && err.contains("--kill: exit 7: exit status: 7"), "{code} {err}");
        scene.nothing_is_left(0).await;
        scene.cluster.nodes[0].sql("CREATE TABLE pgsteady_drill ()").await;
        let (code, _, err) = scene.drill(&[]).await;
        assert!(code == 1 && err.contains("DROP TABLE pgsteady_drill"), "{code} {err}");
        scene.cluster.nodes[2].kill_tree();
        let lost = || async { (scene.pgsteady.status().await["nodes"][2]["role"] == "out").then_some(()) };
        harness::wait_for("the loss of a standby", SOON, lost).await;
        let (code, _, err) = scene.drill(&[]).await;
        assert!(code == 1 && err.contains("not whole, so nothing is begun: n3"), "{code} {err}");
        assert!(scene.cluster.nodes[0].is_primary().await);
    });
}
