//! The primary is lost in every way there is, under writers whose record is checked afterwards: no acknowledged row is
//! missing, none is there twice, no client was dropped, and the old primary acknowledges nothing more.

use std::time::{Duration, Instant};

use harness::endpoint::value;
use harness::folder::Folder;
use harness::pgsteady::{Config, Pgsteady};
use harness::postgres::{Cluster, Node, Programs};
use harness::relay::{Link, Relay};
use harness::wire::{Message, Raw, bind, execute, frame, parse, sync};
use harness::writers::{self, Record, Writers};

/// Time for one test, of which the cluster's start is about a second.
const TEST_S: u64 = 90;
/// From the fault to the first acknowledgements on the new primary, on a slow machine.
const FAILOVER: Duration = Duration::from_secs(30);
/// Writers at once, half of them in explicit transactions.
const WRITERS: i32 = 6;

/// Three nodes, pgsteady, writers at work, and for some tests a relay before each node, through which everybody reaches it.
struct Scene {
    cluster: Cluster,
    relays: Vec<Relay>,
    pgsteady: Pgsteady,
    _store: Folder,
    writers: Writers,
}

impl Scene {
    async fn new(settings: &[(&str, &str)]) -> Self {
        Self::with(Cluster::prepare(&Programs::installed(), 3), Vec::new(), settings).await
    }

    async fn relayed(settings: &[(&str, &str)]) -> Self {
        let cluster = Cluster::prepare(&Programs::installed(), 3);
        let mut relays = Vec::new();
        for node in &cluster.nodes {
            relays.push(Relay::to(node.port()).await);
        }
        Self::with(cluster, relays, settings).await
    }

    async fn with(mut cluster: Cluster, relays: Vec<Relay>, settings: &[(&str, &str)]) -> Self {
        let direct = cluster.nodes.iter().map(Node::port);
        let ports: Vec<u16> =
            if relays.is_empty() { direct.collect() } else { relays.iter().map(Relay::port).collect() };
        cluster.launch(ports[0]).await;
        cluster.nodes[0].sql(writers::TABLE).await;
        cluster.nodes[0].sql("GRANT ALL ON written TO app").await;
        let store = Folder::new("store");
        let mut config = Config::cluster(&cluster, &ports, store.path());
        for (key, value) in settings {
            config = config.set(key, *value);
        }
        let pgsteady = Pgsteady::start(&config).await;
        let writers = Writers::start(&pgsteady.endpoint(), WRITERS);
        writers.acknowledged(200, Duration::from_secs(30)).await;
        Self { cluster, relays, pgsteady, _store: store, writers }
    }

    /// Waits for acknowledgements after the fault, stops the writers and checks their record on the new primary, which
    /// must not be the node `lost`.
    async fn survives(mut self, lost: usize) -> (Cluster, Vec<Relay>, Pgsteady, Record) {
        self.writers.acknowledged(100, FAILOVER).await;
        let record = self.writers.stop().await;
        self.pgsteady.lives();
        let primary = self.cluster.primary(&[lost]).await.expect("a standby was promoted");
        let client = self.cluster.nodes[primary].client().await;
        record.check(&client).await;
        assert_eq!(record.dropped, Vec::<String>::new(), "clients were dropped; errors: {:?}", record.errors);
        let log = self.pgsteady.log();
        let unknown: Vec<&str> = log
            .lines()
            .filter(|line| line.contains("ended=Unknown") && !line.contains("there has been no primary"))
            .collect();
        assert!(unknown.is_empty(), "commits whose id was known were not resolved: {unknown:?}");
        eprintln!("hold {:?}, in doubt {}, errors {:?}", record.longest_gap(), record.in_doubt.len(), record.errors);
        (self.cluster, self.relays, self.pgsteady, record)
    }
}

#[test]
fn the_whole_tree_of_the_primary_is_killed() {
    harness::run(TEST_S, async {
        let mut scene = Scene::new(&[]).await;
        scene.cluster.nodes[0].kill_tree();
        let (.., record) = scene.survives(0).await;
        assert!(record.longest_gap() < Duration::from_secs(10), "held for {:?}", record.longest_gap());
    });
}

#[test]
fn the_postmaster_alone_is_killed() {
    harness::run(TEST_S, async {
        let mut scene = Scene::new(&[]).await;
        scene.cluster.nodes[0].kill_postmaster();
        scene.survives(0).await;
    });
}

#[test]
fn the_primary_is_frozen_and_wakes_up_again() {
    harness::run(TEST_S, async {
        let scene = Scene::new(&[]).await;
        scene.cluster.nodes[0].freeze();
        scene.writers.acknowledged(100, FAILOVER).await;
        scene.cluster.nodes[0].thaw();
        // It still thinks that it is primary; through pgsteady nobody may reach it.
        let before = scene.writers.so_far();
        scene.writers.acknowledged(200, FAILOVER).await;
        assert!(scene.writers.so_far() > before);
        let (cluster, _relays, _pgsteady, _) = scene.survives(0).await;
        // Nor does it acknowledge anything to one who comes past pgsteady: no standby listens to it any more.
        let old = cluster.nodes[0].client().await;
        let written = old.batch_execute("INSERT INTO written VALUES (-1, -1)");
        let acknowledged = tokio::time::timeout(Duration::from_secs(3), written).await;
        assert!(!matches!(acknowledged, Ok(Ok(()))), "two primaries acknowledge writes");
    });
}

#[test]
fn the_link_to_the_primary_goes_silent_and_comes_back() {
    harness::run(TEST_S, async {
        let scene = Scene::relayed(&[("cluster.main.partition_grace", "2s")]).await;
        assert!(scene.relays[0].carried() > 0, "nobody uses the link that is to be cut");
        scene.relays[0].set(Link::Silent);
        scene.writers.acknowledged(100, FAILOVER).await;
        scene.relays[0].set(Link::Up);
        scene.writers.acknowledged(200, FAILOVER).await;
        scene.survives(0).await;
    });
}

/// As behind a load balancer: the connection is accepted and closed at once.
#[test]
fn the_link_to_the_primary_is_closed_at_once() {
    harness::run(TEST_S, async {
        let scene = Scene::relayed(&[("cluster.main.partition_grace", "2s")]).await;
        scene.relays[0].set(Link::Down);
        scene.survives(0).await;
    });
}

#[test]
fn a_slow_link_is_no_failover() {
    harness::run(TEST_S, async {
        let scene = Scene::relayed(&[]).await;
        scene.relays[0].set(Link::Slow(Duration::from_millis(100)));
        tokio::time::sleep(Duration::from_secs(4)).await;
        scene.relays[0].set(Link::Up);
        scene.writers.acknowledged(100, FAILOVER).await;
        let record = scene.writers.stop().await;
        assert_eq!(scene.cluster.primary(&[]).await, Some(0), "it failed over without need");
        record.check(&scene.cluster.nodes[0].client().await).await;
        assert_eq!(record.dropped, Vec::<String>::new());
    });
}

/// What keeps a standby from noticing its fence: it goes on acknowledging for the old primary until it is made to stop.
async fn with_deaf_standbys(prepare: &str, settings: &[(&str, &str)]) {
    let mut scene = Scene::new(settings).await;
    for node in &scene.cluster.nodes[1..] {
        node.sql(prepare).await;
        node.sql("SELECT pg_reload_conf()").await;
    }
    scene.writers.acknowledged(50, FAILOVER).await;
    scene.cluster.nodes[0].freeze();
    tokio::time::sleep(Duration::from_millis(300)).await;
    scene.cluster.nodes[0].thaw();
    scene.cluster.nodes[0].kill_tree();
    scene.survives(0).await;
}

#[test]
fn replay_is_paused_on_the_standbys() {
    harness::run(TEST_S, with_deaf_standbys("SELECT pg_wal_replay_pause()", &[]));
}

#[test]
fn the_standbys_apply_with_a_delay() {
    harness::run(TEST_S, with_deaf_standbys("ALTER SYSTEM SET recovery_min_apply_delay = '1h'", &[]));
}

#[test]
fn the_standbys_are_in_a_recovery_conflict() {
    harness::run(TEST_S, async {
        let mut scene = Scene::new(&[]).await;
        scene.cluster.nodes[0].sql("CREATE TABLE locked (n int); INSERT INTO locked VALUES (1)").await;
        let mut readers = Vec::new();
        for node in &scene.cluster.nodes[1..] {
            node.sql("ALTER SYSTEM SET max_standby_streaming_delay = -1").await;
            node.sql("SELECT pg_reload_conf()").await;
            let reader = node.client().await;
            let there = || async { (node.sql("SELECT to_regclass('locked') IS NOT NULL").await == "t").then_some(()) };
            harness::wait_for("the table on the standby", Duration::from_secs(10), there).await;
            reader.batch_execute("BEGIN ISOLATION LEVEL REPEATABLE READ; SELECT * FROM locked").await.expect("a read");
            readers.push(reader);
        }
        // Replaying this needs a lock that the readers keep from it.
        scene.cluster.nodes[0].sql("ALTER TABLE locked ADD m int").await;
        scene.writers.acknowledged(50, FAILOVER).await;
        for node in &scene.cluster.nodes[1..] {
            let behind = node.sql("SELECT pg_last_wal_replay_lsn() < pg_last_wal_receive_lsn()").await;
            assert_eq!(behind, "t", "{} is in no conflict: this shows nothing", node.name);
        }
        scene.cluster.nodes[0].kill_tree();
        scene.survives(0).await;
    });
}

#[test]
fn a_standby_restarts_while_it_is_fenced() {
    harness::run(TEST_S, async {
        let mut scene = Scene::new(&[]).await;
        scene.cluster.nodes[0].freeze();
        let fenced = |log: String| log.contains("\"primary_conninfo\" changed to \"\"");
        let seen = || async { scene.cluster.nodes[1..].iter().position(|node| fenced(node.log())) };
        let which = 1 + harness::wait_for("a fence", FAILOVER, seen).await;
        scene.cluster.nodes[which].kill_tree();
        scene.cluster.nodes[which].launch();
        scene.writers.acknowledged(100, FAILOVER).await;
        scene.cluster.nodes[0].thaw();
        let (cluster, ..) = scene.survives(0).await;
        cluster.nodes[which].answers().await;
    });
}

#[test]
fn one_standby_is_lost_and_nothing_stops() {
    harness::run(TEST_S, async {
        let mut scene = Scene::new(&[]).await;
        scene.cluster.nodes[1].kill_tree();
        scene.writers.acknowledged(200, FAILOVER).await;
        let record = scene.writers.stop().await;
        assert_eq!(scene.cluster.primary(&[1]).await, Some(0));
        record.check(&scene.cluster.nodes[0].client().await).await;
        assert_eq!(record.dropped, Vec::<String>::new());
        assert!(record.refused.is_empty() && record.in_doubt.is_empty(), "{:?}", record.errors);
    });
}

/// With the primary and one standby gone, the other cannot know that it has everything: clients wait, and are told.
#[test]
fn nobody_is_promoted_without_a_quorum_of_fences() {
    harness::run(TEST_S, async {
        let mut scene = Scene::new(&[("limits.hold_timeout", "3s")]).await;
        let client = scene.pgsteady.endpoint().client().await;
        scene.cluster.nodes[1].kill_tree();
        scene.cluster.nodes[0].kill_tree();
        let error = client.simple_query("INSERT INTO written VALUES (-2, -2)").await.expect_err("there is no primary");
        assert_eq!(harness::endpoint::sqlstate(&error), "57P03", "{error:?}");
        assert!(!client.is_closed(), "the client was dropped");
        assert!(!scene.cluster.nodes[2].is_primary().await, "a standby was promoted that may lack acknowledged rows");
        // With one of the two back there is a quorum again, whichever way it goes.
        scene.cluster.nodes[1].start().await;
        scene.survives(0).await;
    });
}

/// What sessions keep across a failover: sockets, settings, prepared statements.
#[test]
fn sessions_survive() {
    harness::run(TEST_S, async {
        let mut scene = Scene::new(&[]).await;
        let client = scene.pgsteady.endpoint().client().await;
        client.batch_execute("SET application_name = 'the same'").await.expect("a SET");
        let statement = client.prepare("SELECT $1::int + 1, pg_is_in_recovery()").await.expect("a prepare");
        scene.cluster.nodes[0].kill_tree();
        // A statement that meets the very moment of the loss may be refused (40001); this one comes after it.
        tokio::time::sleep(Duration::from_millis(100)).await;
        let row = client.query_one(&statement, &[&41_i32]).await.expect("the statement waits and is answered");
        assert_eq!(row.get::<_, i32>(0), 42);
        assert_eq!(value(&client, "SHOW application_name").await, "the same");
        scene.survives(0).await;
    });
}

#[test]
fn twice_in_a_row() {
    harness::run(TEST_S, async {
        let mut scene = Scene::new(&[]).await;
        scene.cluster.nodes[0].kill_tree();
        scene.writers.acknowledged(100, FAILOVER).await;
        // The old primary comes back as a standby of the new one, as an operator would make it: from a copy.
        let first = scene.cluster.primary(&[0]).await.expect("a new primary");
        let port = scene.cluster.nodes[first].port();
        scene.cluster.clone_from(0, first, port).await;
        scene.cluster.streaming(first, 2).await;
        tokio::time::sleep(Duration::from_secs(2)).await;
        scene.cluster.nodes[first].kill_tree();
        scene.survives(first).await;
    });
}

/// A dying server says so (FATAL 57P01) to whoever it serves. That is not for the client, whose session goes on: it would take
/// the words for the answer to its next message.
#[test]
fn answers_stay_in_order_when_the_postmaster_dies() {
    harness::run(TEST_S, async {
        let mut scene = Scene::new(&[("auth.method", "trust")]).await;
        scene.cluster.nodes[0].sql("CREATE TABLE piped (who int, n bigint); GRANT ALL ON piped TO PUBLIC").await;
        let mut clients = tokio::task::JoinSet::new();
        for number in 0..6 {
            let raw = Raw::login(scene.pgsteady.port(), "trusting", "app").await;
            clients.spawn(pipelining(raw, number));
        }
        tokio::time::sleep(Duration::from_millis(500)).await;
        scene.cluster.nodes[0].kill_postmaster();
        let rounds: usize = clients.join_all().await.iter().sum();
        assert!(rounds > 100, "only {rounds} rounds: this shows nothing");
        scene.survives(0).await;
    });
}

/// What drivers do: the close of the last statement travels with the parse of the next. Each `Sync` has one answer, and an error
/// in it is the only thing that may be wrong with it.
async fn pipelining(mut raw: Raw, number: i64) -> usize {
    let until = Instant::now() + Duration::from_secs(4);
    let mut rounds = 0;
    while Instant::now() < until {
        rounds += 1;
        let (name, last) = (format!("s{rounds}"), format!("Ss{}\0", rounds - 1));
        let describe = frame(b'D', format!("S{name}\0").as_bytes());
        let insert = parse(&name, &format!("INSERT INTO piped VALUES ({number}, $1::text::bigint)"));
        raw.send(&[frame(b'C', last.as_bytes()), sync(), insert, describe, sync()].concat()).await;
        let mut answers = vec![raw.until(b'Z').await, raw.until(b'Z').await];
        raw.send(&[bind(&name, &[&rounds.to_string()]), execute(), sync()].concat()).await;
        answers.push(raw.until(b'Z').await);
        let tags = |answer: &Vec<Message>| answer.iter().map(|message| char::from(message.tag)).collect::<String>();
        for (answer, right) in answers.iter().map(tags).zip(["3Z", "1tnZ", "2CZ"]) {
            let failed = answer.ends_with("EZ") && right.starts_with(answer.trim_end_matches("EZ"));
            assert!(answer == right || failed, "client {number}, round {rounds}: {answer} where {right} belongs");
        }
    }
    rounds
}
