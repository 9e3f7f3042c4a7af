//! A planned change of primary under load: no client sees an error, whatever fails is undone, and what happened can be read.

use std::process::Stdio;
use std::time::Duration;

use harness::endpoint::sqlstate;
use harness::folder::Folder;
use harness::pgsteady::{Config, Pgsteady};
use harness::postgres::{Cluster, Programs};
use harness::writers::{self, Writers};
use serde_json::Value;

/// Time for one test, of which the cluster's start is about a second.
const TEST_S: u64 = 90;
/// Patience with the first acknowledgements after a change.
const SOON: Duration = Duration::from_secs(30);
/// Writers at once, half of them in explicit transactions.
const WRITERS: i32 = 6;

struct Scene {
    cluster: Cluster,
    pgsteady: Pgsteady,
    store: Folder,
}

impl Scene {
    async fn new() -> Self {
        let mut cluster = Cluster::prepare(&Programs::installed(), 3);
        let ports = cluster.ports();
        cluster.launch(ports[0]).await;
        cluster.nodes[0].sql(writers::TABLE).await;
        cluster.nodes[0].sql("GRANT ALL ON written TO app").await;
        let store = Folder::new("store");
        let config = Config::cluster(&cluster, &ports, store.path())
            .set("limits.hold_timeout", "60s")
            .set("auth.console_admins", "app");
        let pgsteady = Pgsteady::start(&config).await;
        Self { cluster, pgsteady, store }
    }

    async fn command(&self, arguments: &[&str]) -> (i32, String, String) {
        self.pgsteady.command(arguments).await
    }

    async fn status(&self) -> Value {
        self.pgsteady.status().await
    }

    /// Waits until this many standbys take part.
    async fn whole(&self, standbys: usize) {
        let counted = || async {
            let status = self.status().await;
            (status["rule"]["standbys"].as_array().map_or(0, Vec::len) == standbys && status["primary"].is_string())
                .then_some(())
        };
        harness::wait_for("all standbys in the rule", SOON, counted).await;
    }
}

#[test]
fn nobody_sees_an_error_there_and_back_again() {
    harness::run(TEST_S, async {
        let mut scene = Scene::new().await;
        let writers = Writers::start(&scene.pgsteady.endpoint(), WRITERS);
        writers.acknowledged(200, SOON).await;
        for (from, to) in [(0, 1), (1, 2)] {
            scene.whole(2).await;
            let name = scene.cluster.nodes[to].name.clone();
            let (code, out, err) = scene.command(&["switchover", "--to", &name, "--json"]).await;
            assert_eq!(code, 0, "{out}{err}");
            let done: Value = serde_json::from_str(&out).expect("one JSON object");
            assert_eq!((&done["outcome"], &done["to"]), (&"done".into(), &name.as_str().into()), "{out}");
            eprintln!("clients were held for {} ms", done["hold_ms"]);
            writers.acknowledged(200, SOON).await;
            assert!(scene.cluster.nodes[to].is_primary().await);
            // as a keeper on its machine would: the old primary is made a standby of the new one
            scene.cluster.nodes[from].kill_tree();
            let port = scene.cluster.nodes[to].port();
            scene.cluster.clone_from(from, to, port).await;
        }
        scene.whole(2).await;
        let record = writers.stop().await;
        record.check(&scene.cluster.nodes[2].client().await).await;
        assert_eq!(record.dropped, Vec::<String>::new());
        assert!(record.refused.is_empty() && record.in_doubt.is_empty(), "errors: {:?}", record.errors);
        told_of_both(&scene).await;
    });
}

/// What happened is there for people and programs, and outlives the process.
async fn told_of_both(scene: &Scene) {
    let status = scene.status().await;
    let failovers = status["failovers"].as_array().expect("a list").clone();
    assert_eq!(failovers.len(), 2, "{status}");
    for record in &failovers {
        assert_eq!(record["planned"], true, "{record}");
        assert_eq!(record["fenced"].as_array().map(Vec::len), Some(2), "{record}");
        assert!(record["held"].as_u64() > Some(0), "nobody was held: {record}");
        assert!(record["hold_us"].as_u64() < Some(10_000_000), "{record}");
    }
    let (code, text, _) = scene.command(&["status"]).await;
    let name = &scene.cluster.nodes[2].name;
    assert!(code == 0 && text.contains(&format!("primary {name}")) && text.contains("switchover"), "{text}");
    let file = scene.store.path().join("store").join("main.failovers.json");
    let kept: Value = serde_json::from_str(&std::fs::read_to_string(file).expect("it is kept")).expect("JSON");
    assert_eq!(kept, Value::Array(failovers));
}

#[test]
fn pgbench_goes_on() {
    harness::run(TEST_S, async {
        let scene = Scene::new().await;
        let pgbench = |arguments: &[&str], port: u16| {
            let mut command = Programs::installed().command("pgbench");
            command.args(["-h", "127.0.0.1", "-p", &port.to_string(), "-U", "app"]).args(arguments).arg("app");
            command.env("PGPASSWORD", "app-secret").stdout(Stdio::piped()).stderr(Stdio::piped());
            command.spawn().expect("pgbench can be run")
        };
        let prepared = pgbench(&["-i", "-q"], scene.cluster.nodes[0].port());
        let prepared = prepared.wait_with_output().expect("it ends");
        assert!(prepared.status.success(), "{prepared:?}");
        scene.whole(2).await;
        let load = pgbench(&["-n", "-c", "8", "-j", "2", "-T", "6", "-M", "prepared"], scene.pgsteady.port());
        tokio::time::sleep(Duration::from_secs(2)).await;
        let (code, out, err) = scene.command(&["switchover", "--json"]).await;
        assert_eq!(code, 0, "{out}{err}");
        let output = tokio::task::spawn_blocking(|| load.wait_with_output()).await.expect("no panic").expect("it ends");
        let said = format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
        assert!(output.status.success() && said.contains("number of failed transactions: 0"), "{said}");
        eprintln!("{} {said}", out.trim());
    });
}

#[test]
fn a_transaction_that_stays_open_undoes_it_or_is_ended() {
    harness::run(TEST_S, async {
        let scene = Scene::new().await;
        scene.whole(2).await;
        let writers = Writers::start(&scene.pgsteady.endpoint(), WRITERS);
        writers.acknowledged(100, SOON).await;
        let client = scene.pgsteady.endpoint().client().await;
        client.batch_execute("BEGIN; CREATE TABLE slow (n int)").await.expect("a transaction");
        let (code, _, err) = scene.command(&["switchover", "--max-wait", "300ms"]).await;
        assert!(code == 1 && err.contains("still open") && err.contains("idle in transaction"), "{err}");
        client.batch_execute("COMMIT").await.expect("the transaction goes on where it was");
        assert!(scene.cluster.nodes[0].is_primary().await);
        client.batch_execute("BEGIN; INSERT INTO slow VALUES (1)").await.expect("a transaction");
        // asked for at once: what the undone one left to settle is waited for
        let ended = ["switchover", "--max-wait", "300ms", "--end-transactions", "--return-within", "0s"];
        let (code, out, err) = scene.command(&ended).await;
        assert_eq!(code, 0, "{out}{err}");
        assert!(out.contains("pg_rewind") && out.contains("quarantined"), "what is left to do is not said: {out}");
        let error = client.batch_execute("SELECT 1").await.expect_err("its transaction is gone");
        assert!(["40001", "25P02"].contains(&sqlstate(&error)), "{error:?}");
        let _ = client.batch_execute("ROLLBACK").await;
        client.batch_execute("INSERT INTO slow VALUES (2)").await.expect("the client stays");
        writers.acknowledged(100, SOON).await;
        let record = writers.stop().await;
        let primary = scene.cluster.primary(&[0]).await.expect("another primary");
        record.check(&scene.cluster.nodes[primary].client().await).await;
        assert!(record.refused.is_empty() && record.in_doubt.is_empty(), "errors: {:?}", record.errors);
    });
}

/// Nothing is begun that could not be finished, and only one's own user and root may ask.
#[test]
fn what_cannot_be_done_is_refused_and_said() {
    harness::run(TEST_S, async {
        use std::os::unix::fs::PermissionsExt;
        let mut scene = Scene::new().await;
        scene.whole(2).await;
        let primary = scene.cluster.nodes[0].name.clone();
        let (code, _, err) = scene.command(&["switchover", "--to", &primary]).await;
        assert!(code == 1 && err.contains("is the primary already"), "{err}");
        let socket = scene.store.path().join("store/main.sock");
        let mode = std::fs::metadata(&socket).expect("there is a socket").permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
        scene.cluster.nodes[1].kill_tree();
        scene.cluster.nodes[2].kill_tree();
        let (code, _, err) = scene.command(&["switchover"]).await;
        assert!(code == 1 && err.contains("not begun"), "{err}");
        scene.pgsteady.lives();
        scene.pgsteady.terminate();
        scene.pgsteady.ended(SOON).await;
        assert!(!socket.exists(), "the socket is left behind");
        let (code, _, err) = scene.command(&["status"]).await;
        assert!(code == 1 && err.contains("does pgsteady run"), "{err}");
    });
}

#[test]
fn the_console_does_it_too_and_shows_what_happened() {
    harness::run(TEST_S, async {
        let scene = Scene::new().await;
        scene.whole(2).await;
        let console = scene.pgsteady.endpoint().with_database("pgbouncer").client().await;
        let error = console.simple_query("SWITCHOVER nobody").await.expect_err("there is no such node");
        assert!(harness::endpoint::say(&error).contains("not begun"), "{}", harness::endpoint::say(&error));
        let name = &scene.cluster.nodes[1].name;
        console.simple_query(&format!("SWITCHOVER \"{name}\"")).await.expect("it is done");
        assert!(scene.cluster.nodes[1].is_primary().await);
        let nodes = console.query("SHOW TOPOLOGY", &[]).await.expect("a table");
        let primaries: Vec<&str> =
            nodes.iter().filter(|row| row.get::<_, &str>("role") == "primary").map(|row| row.get("node")).collect();
        assert_eq!(primaries, [name.as_str()]);
        let records = console.query("SHOW FAILOVERS", &[]).await.expect("a table");
        let record: Value = serde_json::from_str(records[0].get("record")).expect("JSON");
        assert!(record.to_string().contains(name.as_str()), "{record}");
    });
}
