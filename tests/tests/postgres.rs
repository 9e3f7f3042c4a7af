//! The harness itself, against PostgreSQL without pgsteady: a check that cannot fail would be found here.

use std::time::Duration;

use harness::endpoint::value;
use harness::postgres::{Cluster, Node, Programs};
use harness::relay::{Link, Relay};
use harness::wire::Raw;
use harness::writers::{self, Writers};

#[test]
fn both_versions_start_and_take_passwords() {
    harness::run(90, async {
        for programs in [Programs::installed(), Programs::newer()] {
            let node = Node::primary(&programs).await;
            let version = value(&node.endpoint().client().await, "SHOW server_version").await;
            assert!(version.starts_with(&programs.major.to_string()), "{version}");
            assert!(node.endpoint().with_user("app", "wrong").connect().await.is_err());
            let raw = Raw::login(node.port(), "trusting", "app").await;
            assert_eq!(raw.key.1.len(), 4);
        }
    });
}

#[test]
fn a_cut_link_stops_acknowledgements_and_every_row_is_accounted_for() {
    harness::run(90, async {
        let cluster = Cluster::start(&Programs::installed(), 3).await;
        cluster.nodes[0].sql(writers::TABLE).await;
        cluster.nodes[0].sql("GRANT ALL ON written TO app").await;
        let relay = Relay::to(cluster.nodes[0].port()).await;
        let endpoint = harness::endpoint::Endpoint { port: relay.port(), ..cluster.nodes[0].endpoint() };
        let writers = Writers::start(&endpoint, 4);
        writers.acknowledged(200, Duration::from_secs(20)).await;
        relay.set(Link::Silent);
        tokio::time::sleep(Duration::from_millis(300)).await;
        let before = writers.so_far();
        tokio::time::sleep(Duration::from_secs(1)).await;
        assert_eq!(writers.so_far(), before, "a silent link passes nothing");
        relay.set(Link::Up);
        writers.acknowledged(50, Duration::from_secs(20)).await;
        let mut record = writers.stop().await;
        assert_eq!(record.dropped, Vec::<String>::new());
        assert!(record.longest_gap() >= Duration::from_secs(1), "{:?}", record.longest_gap());
        let client = cluster.nodes[0].client().await;
        record.check(&client).await;

        // The check finds what it is there to find.
        let (row, at) = record.acknowledged[0];
        record.acknowledged.push(((row.0, -1), at));
        let found = tokio::spawn(async move { record.check(&client).await }).await;
        assert!(found.is_err(), "a lost row was not noticed");
    });
}

#[test]
fn standbys_that_are_frozen_hold_commits_back() {
    harness::run(60, async {
        let cluster = Cluster::start(&Programs::installed(), 3).await;
        cluster.nodes[1].freeze();
        cluster.nodes[0].sql("CREATE TABLE one ()").await;
        cluster.nodes[2].freeze();
        let sql = cluster.nodes[0].sql("CREATE TABLE two ()");
        assert!(tokio::time::timeout(Duration::from_secs(1), sql).await.is_err(), "no standby acknowledged this");
        cluster.nodes[1].thaw();
        cluster.nodes[2].thaw();
        assert_eq!(cluster.primary(&[]).await, Some(0));
    });
}
