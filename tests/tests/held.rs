//! Who is in the middle of something when the primary is lost, and who only waits: everybody stays connected, nobody is
//! told that something was done that was not, and a crowd that waits needs no more memory than it may.

use std::time::Duration;

use harness::endpoint::{sqlstate, value};
use harness::folder::Folder;
use harness::pgsteady::{Config, Pgsteady};
use harness::postgres::{Cluster, Programs};
use harness::process;
use harness::wire::{Message, Raw, bind, execute, frame, parse, query, sync};
use tokio::task::JoinSet;
use tokio_postgres::Client;

/// Time for one test.
const TEST_S: u64 = 120;
/// Clients that wait at once (F35 of docs/faults.md), and the memory that pgsteady may have then.
const CROWD: usize = 2000;
const MEMORY: u64 = 256 << 20;
/// How long they wait, at least.
const WAIT: Duration = Duration::from_secs(2);

struct Scene {
    cluster: Cluster,
    pgsteady: Pgsteady,
    _store: Folder,
}

impl Scene {
    async fn new() -> Self {
        let cluster = Cluster::start(&Programs::installed(), 3).await;
        let tables = "CREATE TABLE numbers (n int NOT NULL); GRANT ALL ON numbers TO PUBLIC";
        cluster.nodes[0].client().await.batch_execute(tables).await.expect("a table");
        let store = Folder::new("store");
        let config = Config::cluster(&cluster, &cluster.ports(), store.path())
            .set("limits.max_clients", 2 * i64::try_from(CROWD).expect("few"))
            .set("limits.hold_timeout", "60s")
            .set("auth.method", "trust");
        let pgsteady = Pgsteady::start(&config).await;
        let scene = Self { cluster, pgsteady, _store: store };
        scene.pgsteady.counts_on(2).await;
        scene
    }

    /// A primary that was killed comes back as a standby of the one after it.
    async fn replace(&mut self, old: usize) {
        let new = self.cluster.primary(&[old]).await.expect("another primary");
        let port = self.cluster.nodes[new].port();
        self.cluster.clone_from(old, new, port).await;
        self.pgsteady.counts_on(2).await;
    }

    async fn client(&self) -> Client {
        self.pgsteady.endpoint().client().await
    }

    async fn raw(&self) -> Raw {
        Raw::login(self.pgsteady.port(), "trusting", "app").await
    }

    async fn rows(&self) -> String {
        value(&self.client().await, "SELECT count(*) FROM (SELECT FROM numbers FOR SHARE) AS rows").await
    }
}

async fn told(client: &Client, sql: &str) -> String {
    match client.batch_execute(sql).await {
        Ok(()) => "done".to_owned(),
        Err(error) => sqlstate(&error).to_owned(),
    }
}

/// SQLSTATE of the error among these, and whether the connection is ready again.
fn failed(messages: &[Message]) -> (Option<String>, bool) {
    let error = messages.iter().find(|message| message.tag == b'E').and_then(|message| message.field(b'C'));
    (error, messages.last().is_some_and(|message| message.tag == b'Z'))
}

#[test]
fn a_transaction_and_its_cursor_end_with_an_error_and_the_client_goes_on() {
    harness::run(TEST_S, async {
        let mut scene = Scene::new().await;
        let client = scene.client().await;
        let begun = "BEGIN; INSERT INTO numbers VALUES (1); DECLARE hundred CURSOR FOR SELECT generate_series(1, 100)";
        client.batch_execute(begun).await.expect("a transaction");
        assert_eq!(value(&client, "FETCH hundred").await, "1");
        scene.cluster.nodes[0].kill_tree();
        assert_eq!(told(&client, "FETCH hundred").await, "40001");
        assert_eq!(told(&client, "COMMIT").await, "40001");
        assert_eq!(told(&client, "INSERT INTO numbers VALUES (2)").await, "done");
        assert_eq!(scene.rows().await, "1");
    });
}

/// What is done to a primary of a bygone term by an instance that knows of a later one; here nobody does.
#[test]
fn nobody_is_served_by_a_primary_in_quarantine() {
    harness::run(TEST_S, async {
        let scene = Scene::new().await;
        let client = scene.client().await;
        assert_eq!(value(&client, "SELECT 1").await, "1");
        let primary = &scene.cluster.nodes[0];
        primary.sql("ALTER SYSTEM SET default_transaction_read_only = on").await;
        primary.sql("SELECT pg_reload_conf()").await;
        let read_only = || async { (primary.sql("SHOW default_transaction_read_only").await == "on").then_some(()) };
        harness::wait_for("the reload", WAIT, read_only).await;
        primary.sql("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE usename = 'app'").await;
        // what is not known to read alone goes to the primary
        let read = "BEGIN ISOLATION LEVEL SERIALIZABLE; SELECT count(*) FROM numbers; COMMIT";
        let waiting = tokio::spawn(async move { told(&client, read).await });
        tokio::time::sleep(WAIT).await;
        assert!(!waiting.is_finished(), "it was answered");
        primary.sql("ALTER SYSTEM RESET default_transaction_read_only").await;
        primary.sql("SELECT pg_reload_conf()").await;
        assert_eq!(waiting.await.expect("no panic"), "done");
    });
}

#[test]
fn a_copy_ends_with_an_error_and_leaves_nothing() {
    harness::run(TEST_S, async {
        let mut scene = Scene::new().await;
        let mut client = scene.raw().await;
        client.send(&query("COPY numbers FROM STDIN")).await;
        client.until(b'G').await;
        client.send(&frame(b'd', &b"7\n".repeat(1000))).await;
        scene.cluster.nodes[0].kill_tree();
        client.send(&frame(b'd', &b"7\n".repeat(1000))).await;
        client.send(&frame(b'c', b"")).await;
        let (error, ready) = failed(&client.until(b'Z').await);
        assert!(error.is_some() && ready, "{error:?} {ready}");
        let (error, ready) = failed(&client.query("INSERT INTO numbers VALUES (1)").await);
        assert_eq!((error, ready), (None, true));
        assert_eq!(scene.rows().await, "1");
    });
}

#[test]
fn a_copy_whose_server_is_lost_within_a_message_leaves_nothing_and_the_client_goes_on() {
    harness::run(TEST_S, async {
        let mut scene = Scene::new().await;
        let mut client = scene.raw().await;
        let message = frame(b'd', &b"7\n".repeat(100_000));
        for (extended, part) in [(false, 3), (false, 70_000), (true, 70_000)] {
            let primary = scene.cluster.primary(&[]).await.expect("a primary");
            let (begin, end) = if extended {
                let begin = [parse("", "COPY numbers FROM STDIN"), bind("", &[]), execute()].concat();
                (begin, [frame(b'c', b""), sync()].concat())
            } else {
                (query("COPY numbers FROM STDIN"), frame(b'c', b""))
            };
            client.send(&begin).await;
            client.until(b'G').await;
            client.send(&message).await;
            client.send(&message[..part]).await;
            tokio::time::sleep(Duration::from_millis(300)).await;
            scene.cluster.nodes[primary].kill_tree();
            tokio::time::sleep(Duration::from_millis(300)).await;
            client.send(&message[part..]).await;
            client.send(&message).await;
            client.send(&end).await;
            let (error, ready) = failed(&client.until(b'Z').await);
            assert!(error.is_some() && ready, "{extended} {part}: {error:?} {ready}");
            let (error, ready) = failed(&client.query("SELECT FROM numbers FOR SHARE").await);
            assert_eq!((error, ready), (None, true), "{extended} {part}");
            assert_eq!(scene.rows().await, "0", "{extended} {part}");
            scene.replace(primary).await;
        }
    });
}

/// A COPY swallows the Sync that drivers send along with its Execute: one ReadyForQuery is owed, whatever becomes of it.
#[test]
fn a_copy_with_a_sync_of_its_own_ends_with_one_readyforquery() {
    harness::run(TEST_S, async {
        let mut scene = Scene::new().await;
        let begin = [parse("", "COPY numbers FROM STDIN"), bind("", &[]), execute(), sync()].concat();
        let (data, end) = (frame(b'd', &b"7\n".repeat(1000)), [frame(b'c', b""), sync()].concat());
        let bad = frame(b'd', b"seven\n");
        for (killed_before, parts) in [
            (usize::MAX, vec![&begin, &bad, &end]),
            (1, vec![&begin, &data, &data, &end]),
            (2, vec![&begin, &data, &data, &end]),
            (3, vec![&begin, &data, &data, &end]),
            (4, vec![&begin, &data, &bad, &end]),
        ] {
            let mut client = scene.raw().await;
            let primary = scene.cluster.primary(&[]).await.expect("a primary");
            for (number, part) in parts.iter().enumerate() {
                if number == killed_before {
                    scene.cluster.nodes[primary].kill_tree();
                    tokio::time::sleep(Duration::from_millis(300)).await;
                }
                client.send(part).await;
                if number == 0 {
                    client.until(b'G').await;
                }
            }
            let (error, ready) = failed(&client.until(b'Z').await);
            assert!(error.is_some() && ready, "{killed_before}: {error:?} {ready}");
            // it was not told that it had all: it is certain that nothing was committed
            let expected = if killed_before < parts.len() { "40001" } else { "22P02" };
            assert_eq!(error.as_deref(), Some(expected), "{killed_before}");
            let answer = client.query("SELECT FROM numbers FOR SHARE").await;
            let tags: String = answer.iter().map(|message| char::from(message.tag)).collect();
            assert_eq!(tags, "TCZ", "{killed_before}");
            assert_eq!(scene.rows().await, "0", "{killed_before}");
            if killed_before < parts.len() {
                scene.replace(primary).await;
            }
        }
    });
}

/// The server says that it goes, and why: that makes what it had not all of no less certain.
#[test]
fn a_copy_that_is_ended_by_an_operator_was_not_committed() {
    harness::run(TEST_S, async {
        let scene = Scene::new().await;
        let operator = scene.cluster.nodes[0].client().await;
        let begin = [parse("", "COPY numbers FROM STDIN"), bind("", &[]), execute(), sync()].concat();
        let (data, end) = (frame(b'd', &b"7\n".repeat(1000)), [frame(b'c', b""), sync()].concat());
        let ended = "SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity WHERE query LIKE 'COPY numbers%' \
                     AND pid <> pg_backend_pid()";
        for begin in [begin, query("COPY numbers FROM STDIN")] {
            let mut client = scene.raw().await;
            client.send(&begin).await;
            client.until(b'G').await;
            client.send(&data).await;
            assert_eq!(value(&operator, ended).await, "1");
            tokio::time::sleep(Duration::from_millis(300)).await;
            client.send(&data).await;
            client.send(&end).await;
            let (error, ready) = failed(&client.until(b'Z').await);
            assert_eq!((error.as_deref(), ready), (Some("40001"), true));
            assert_eq!(scene.rows().await, "0");
        }
    });
}

#[test]
fn a_session_that_listens_is_told_what_it_has_lost() {
    harness::run(TEST_S, async {
        let mut scene = Scene::new().await;
        let client = scene.client().await;
        client.batch_execute("LISTEN ears").await.expect("it listens");
        assert_eq!(value(&client, "SELECT count(*) FROM pg_listening_channels()").await, "1");
        scene.cluster.nodes[0].kill_tree();
        let other = scene.client().await;
        assert_eq!(told(&other, "INSERT INTO numbers VALUES (1)").await, "done");
        assert_eq!(told(&client, "SELECT 1").await, "08006");
        assert_eq!(value(&client, "SELECT count(*) FROM pg_listening_channels()").await, "0");
    });
}

#[test]
fn a_crowd_waits_within_the_memory_it_may_have() {
    harness::run(TEST_S, async {
        let mut scene = Scene::new().await;
        let mut clients = Vec::new();
        for _ in 0..CROWD {
            clients.push(scene.raw().await);
        }
        // with one standby gone nobody can be promoted: everybody waits
        scene.cluster.nodes[2].kill_tree();
        scene.cluster.nodes[0].kill_tree();
        let held = || async { scene.pgsteady.status().await["primary"].is_null().then_some(()) };
        harness::wait_for("the loss to be seen", WAIT, held).await;
        let mut waiting = JoinSet::new();
        for (number, mut client) in clients.into_iter().enumerate() {
            waiting.spawn(async move {
                client.send(&query(&format!("INSERT INTO numbers VALUES ({number})"))).await;
                let (error, ready) = failed(&client.until(b'Z').await);
                assert_eq!((error, ready), (None, true), "client {number}");
            });
        }
        tokio::time::sleep(WAIT).await;
        let memory = process::memory(scene.pgsteady.pid()).expect("it runs");
        assert_eq!(waiting.try_join_next().map(|ended| ended.is_ok()), None, "somebody did not wait");
        assert!(memory < MEMORY, "{CROWD} clients wait in {memory} bytes");
        scene.cluster.nodes[2].launch();
        while let Some(ended) = waiting.join_next().await {
            ended.expect("a client is answered");
        }
        assert_eq!(scene.rows().await, CROWD.to_string());
    });
}
