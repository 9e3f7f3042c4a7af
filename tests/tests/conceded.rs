//! The primary and a standby are lost at once: nobody can prove that the one that is left has everything, so clients wait until
//! an operator says that this is good enough.

use std::time::Duration;

use harness::folder::Folder;
use harness::pgsteady::{self, Config, Pgsteady};
use harness::postgres::{Cluster, Node, Programs};
use harness::writers::{self, Writers};
use serde_json::Value;

/// Time for the test.
const TEST_S: u64 = 90;
/// Patience with what follows a command.
const SOON: Duration = Duration::from_secs(30);

async fn command(pgsteady: &Pgsteady, arguments: &[&str]) -> (i32, String, String) {
    let file = pgsteady.folder().join("pgsteady.toml").display().to_string();
    let arguments: Vec<String> = arguments.iter().map(ToString::to_string).chain(["-c".to_owned(), file]).collect();
    let run = move || pgsteady::command(&arguments.iter().map(String::as_str).collect::<Vec<_>>());
    let output = tokio::task::spawn_blocking(run).await.expect("a command does not panic");
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    (output.status.code().expect("it ended by itself"), text(&output.stdout), text(&output.stderr))
}

#[test]
fn clients_wait_until_an_operator_accepts_the_loss() {
    harness::run(TEST_S, async {
        let mut cluster = Cluster::prepare(&Programs::installed(), 3);
        let ports: Vec<u16> = cluster.nodes.iter().map(Node::port).collect();
        cluster.launch(ports[0]).await;
        cluster.nodes[0].sql(writers::TABLE).await;
        cluster.nodes[0].sql("GRANT ALL ON written TO app").await;
        let store = Folder::new("store");
        let config = Config::cluster(&cluster, &ports, store.path()).set("limits.hold_timeout", "60s");
        let pgsteady = Pgsteady::start(&config).await;
        let writers = Writers::start(&pgsteady.endpoint(), 4);
        writers.acknowledged(200, SOON).await;

        let (code, _, err) = command(&pgsteady, &["failover", "--accept-data-loss"]).await;
        assert!(code != 0 && err.contains("there is a primary that serves"), "{code}: {err}");
        let both = || async {
            let (_, out, _) = command(&pgsteady, &["status", "--json"]).await;
            let status: Value = serde_json::from_str(&out).expect("JSON");
            (status["rule"]["standbys"].as_array().map(Vec::len) == Some(2)).then_some(())
        };
        harness::wait_for("both standbys in the rule", SOON, both).await;

        cluster.nodes[1].kill_tree();
        cluster.nodes[0].kill_tree();
        tokio::time::sleep(Duration::from_secs(3)).await;
        let before = writers.so_far();
        tokio::time::sleep(Duration::from_secs(1)).await;
        assert_eq!(writers.so_far(), before, "clients wait");
        assert!(!cluster.nodes[2].is_primary().await, "nobody is promoted without a word");
        let (code, _, err) = command(&pgsteady, &["failover"]).await;
        assert!(
            code != 0 && err.contains("1 of the 2 standbys") && err.contains("--accept-data-loss"),
            "{code}: {err}"
        );

        let (code, out, err) = command(&pgsteady, &["failover", "--accept-data-loss"]).await;
        assert!(code == 0 && out.contains("n3 is the primary now"), "{code}: {out}{err}");
        assert!(out.contains("n1 was last seen at ") && out.contains("pg_rewind"), "{out}");
        writers.acknowledged(100, SOON).await;
        assert!(cluster.nodes[2].is_primary().await);
        let record = writers.stop().await;
        assert_eq!(record.dropped, Vec::<String>::new(), "errors: {:?}", record.errors);
    });
}
