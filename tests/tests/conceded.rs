//! The primary and a standby are lost at once: nobody can prove that the one that is left has everything, so clients wait until
//! an operator says that this is good enough.

use std::time::Duration;

use harness::folder::Folder;
use harness::pgsteady::{Config, Pgsteady};
use harness::postgres::{Cluster, Programs};
use harness::writers::{self, Writers};

/// Time for the test.
const TEST_S: u64 = 90;
/// Patience with what follows a command.
const SOON: Duration = Duration::from_secs(30);

#[test]
fn clients_wait_until_an_operator_accepts_the_loss() {
    harness::run(TEST_S, async {
        let mut cluster = Cluster::prepare(&Programs::installed(), 3);
        let ports = cluster.ports();
        cluster.launch(ports[0]).await;
        cluster.nodes[0].sql(writers::TABLE).await;
        cluster.nodes[0].sql("GRANT ALL ON written TO app").await;
        let store = Folder::new("store");
        let config = Config::cluster(&cluster, &ports, store.path()).set("limits.hold_timeout", "60s");
        let pgsteady = Pgsteady::start(&config).await;
        let writers = Writers::start(&pgsteady.endpoint(), 4);
        writers.acknowledged(200, SOON).await;

        let (code, _, err) = pgsteady.command(&["failover", "--accept-data-loss"]).await;
        assert!(code != 0 && err.contains("there is a primary that serves"), "{code}: {err}");
        pgsteady.counts_on(2).await;

        cluster.nodes[1].kill_tree();
        cluster.nodes[0].kill_tree();
        tokio::time::sleep(Duration::from_secs(3)).await;
        let before = writers.so_far();
        tokio::time::sleep(Duration::from_secs(1)).await;
        assert_eq!(writers.so_far(), before, "clients wait");
        assert!(!cluster.nodes[2].is_primary().await, "nobody is promoted without a word");
        let (code, _, err) = pgsteady.command(&["failover"]).await;
        assert!(
            code != 0 && err.contains("1 of the 2 standbys") && err.contains("--accept-data-loss"),
            "{code}: {err}"
        );

        let (code, out, err) = pgsteady.command(&["failover", "--accept-data-loss"]).await;
        assert!(code == 0 && out.contains("n3 is the primary now"), "{code}: {out}{err}");
        assert!(out.contains("n1 was last seen at ") && out.contains("pg_rewind"), "{out}");
        writers.acknowledged(100, SOON).await;
        assert!(cluster.nodes[2].is_primary().await);
        let record = writers.stop().await;
        assert_eq!(record.dropped, Vec::<String>::new(), "errors: {:?}", record.errors);
    });
}
