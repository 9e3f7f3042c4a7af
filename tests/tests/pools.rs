//! Limits and waits: never more servers than the pool has, first come first served, and a client that vanishes gives
//! its server back.

use std::time::{Duration, Instant};

use harness::endpoint::{Endpoint, sqlstate, value};
use harness::pgsteady::{Config, Pgsteady};
use harness::postgres::{Node, Programs};
use harness::wire::{Raw, frame, query};
use tokio::task::JoinSet;

const SERVERS: &str = "SELECT count(*) FROM pg_stat_activity WHERE usename IN ('app', 'trusting')";
const ACTIVE: &str = "SELECT count(*) FROM pg_stat_activity WHERE usename = 'trusting' AND state = 'active'";

async fn started(config: impl FnOnce(Config) -> Config) -> (Node, Pgsteady) {
    let node = Node::primary(&Programs::installed()).await;
    let pgsteady = Pgsteady::start(&config(Config::single(&node))).await;
    (node, pgsteady)
}

#[test]
fn a_pool_never_has_more_servers_than_it_may() {
    harness::run(60, async {
        let (node, pgsteady) = started(|config| config.set("database.app.pool_size", 3)).await;
        let mut clients = JoinSet::new();
        for _ in 0..20 {
            let endpoint = pgsteady.endpoint();
            clients.spawn(async move {
                let client = endpoint.client().await;
                for _ in 0..10 {
                    client.simple_query("SELECT pg_sleep(0.01)").await.expect("a query that waits its turn");
                }
            });
        }
        let direct = node.client().await;
        let mut most = 0;
        while !clients.is_empty() {
            let servers: usize = value(&direct, SERVERS).await.parse().expect("a number");
            assert!(servers <= 3, "{servers} servers in a pool of 3");
            most = most.max(servers);
            while let Some(ended) = clients.try_join_next() {
                ended.expect("every client gets all of its answers");
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        assert_eq!(most, 3, "20 clients need the whole pool");
    });
}

#[test]
fn who_comes_first_is_served_first() {
    harness::run(60, async {
        let config = |config: Config| config.set("database.app.pool_size", 1).set("auth.method", "trust");
        let (_node, pgsteady) = started(config).await;
        let holder = pgsteady.endpoint().client().await;
        holder.batch_execute("CREATE TABLE turns (id serial, who int)").await.expect("a table");
        let mut waiting = Vec::new();
        for _ in 0..8 {
            waiting.push(Raw::login(pgsteady.port(), "app", "app").await);
        }
        holder.batch_execute("BEGIN; SELECT 1").await.expect("the only server");
        // One write each, in this order and from this task: a driver that prepares first would ask twice, and the order
        // of the second questions would be that of the machine's scheduler.
        for (who, client) in waiting.iter_mut().enumerate() {
            client.send(&query(&format!("INSERT INTO turns (who) VALUES ({who})"))).await;
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        holder.batch_execute("COMMIT").await.expect("the holder lets go");
        for client in &mut waiting {
            let answer = client.until(b'Z').await;
            assert!(answer.iter().any(|message| message.tag == b'C'), "an insert: {answer:?}");
        }
        let order = value(&holder, "SELECT string_agg(who::text, '' ORDER BY id) FROM turns").await;
        assert_eq!(order, "01234567");
    });
}

#[test]
fn who_leaves_the_queue_is_not_served() {
    harness::run(60, async {
        let config = |config: Config| config.set("database.app.pool_size", 1).set("auth.method", "trust");
        let (_node, pgsteady) = started(config).await;
        let holder = pgsteady.endpoint().client().await;
        holder.batch_execute("CREATE TABLE turns (who int)").await.expect("a table");
        let mut waiting = Vec::new();
        for _ in 0..20 {
            waiting.push(Raw::login(pgsteady.port(), "app", "app").await);
        }
        holder.batch_execute("BEGIN; SELECT 1").await.expect("the only server");
        for (who, client) in waiting.iter_mut().enumerate() {
            client.send(&query(&format!("INSERT INTO turns VALUES ({who})"))).await;
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
        let last = waiting.split_off(19).pop();
        drop(waiting);
        tokio::time::sleep(Duration::from_millis(100)).await;
        holder.batch_execute("COMMIT").await.expect("the holder lets go");
        last.expect("the last of them stays").until(b'Z').await;
        assert_eq!(value(&holder, "SELECT string_agg(who::text, ' ') FROM turns").await, "19");
    });
}

#[test]
fn a_wait_ends_at_its_limit_with_an_error_and_the_client_goes_on() {
    harness::run(60, async {
        let config = |config: Config| config.set("database.app.pool_size", 1).set("limits.query_wait_timeout", "500ms");
        let (_node, pgsteady) = started(config).await;
        let holder = pgsteady.endpoint().client().await;
        holder.batch_execute("BEGIN; SELECT 1").await.expect("the only server");
        let waiter = pgsteady.endpoint().connect().await;
        let began = Instant::now();
        let error = match &waiter {
            Ok(client) => client.simple_query("SELECT 1").await.expect_err("no server is free"),
            Err(_) => panic!("a login that needs no server was refused"),
        };
        assert!(!sqlstate(&error).is_empty(), "closed without a word: {error:?}");
        let waited = began.elapsed();
        assert!((Duration::from_millis(400)..Duration::from_secs(3)).contains(&waited), "{waited:?}");
        holder.batch_execute("COMMIT").await.expect("the holder was not disturbed");
        assert_eq!(value(&pgsteady.endpoint().client().await, "SELECT 1").await, "1");
    });
}

#[test]
fn one_client_too_many_is_told_so() {
    harness::run(60, async {
        let (_node, pgsteady) = started(|config| config.set("limits.max_clients", 3)).await;
        let endpoint = pgsteady.endpoint();
        let clients = [endpoint.client().await, endpoint.client().await, endpoint.client().await];
        let error = endpoint.connect().await.expect_err("a fourth client is refused");
        assert_eq!(sqlstate(&error), "53300", "{error:?}");
        drop(clients);
        let again = || async { endpoint.connect().await.ok() };
        harness::wait_for("room for a client", Duration::from_secs(5), again).await;
    });
}

/// How a client leaves in the middle of a query.
#[derive(Debug, Clone, Copy)]
enum Leaving {
    Close,
    Reset,
    Terminate,
}

#[test]
fn clients_that_vanish_give_their_servers_back_and_their_queries_end() {
    harness::run(90, async {
        let config = |config: Config| config.set("database.app.pool_size", 2).set("auth.method", "trust");
        let (node, pgsteady) = started(config).await;
        for leaving in [Leaving::Close, Leaving::Reset, Leaving::Terminate] {
            for _ in 0..3 {
                let pair = [vanishing(&pgsteady, leaving), vanishing(&pgsteady, leaving)];
                for vanishing in pair {
                    vanishing.await;
                }
            }
            let began = Instant::now();
            let client = Endpoint { user: "trusting".into(), ..pgsteady.endpoint() }.client().await;
            assert_eq!(value(&client, "SELECT 1").await, "1");
            assert!(
                began.elapsed() < Duration::from_secs(5),
                "{leaving:?}: the pool was stuck for {:?}",
                began.elapsed()
            );
            let over = || async { (node.sql(ACTIVE).await == "0").then_some(()) };
            harness::wait_for("the queries to be cancelled", Duration::from_secs(5), over).await;
        }
    });
}

async fn vanishing(pgsteady: &Pgsteady, leaving: Leaving) {
    let mut raw = Raw::login(pgsteady.port(), "trusting", "app").await;
    raw.send(&query("SELECT pg_sleep(600)")).await;
    tokio::time::sleep(Duration::from_millis(100)).await;
    match leaving {
        Leaving::Close => {}
        Leaving::Reset => socket2::SockRef::from(&raw.stream).set_linger(Some(Duration::ZERO)).expect("SO_LINGER"),
        Leaving::Terminate => raw.send(&frame(b'X', &[])).await,
    }
}

#[test]
fn an_open_transaction_of_a_vanished_client_is_rolled_back() {
    harness::run(60, async {
        let (node, pgsteady) = started(|config| config.set("database.app.pool_size", 1)).await;
        let client = pgsteady.endpoint().client().await;
        client.batch_execute("CREATE TABLE gone (n int)").await.expect("a table");
        client.batch_execute("BEGIN; INSERT INTO gone VALUES (1)").await.expect("an insert");
        drop(client);
        let next = pgsteady.endpoint().client().await;
        assert_eq!(value(&next, "SELECT count(*) FROM gone").await, "0");
        assert_eq!(node.sql("SELECT count(*) FROM gone").await, "0");
    });
}

#[test]
fn servers_that_the_server_closed_are_not_given_out() {
    harness::run(60, async {
        let (node, pgsteady) = started(|config| config).await;
        let client = pgsteady.endpoint().client().await;
        for _ in 0..20 {
            assert_eq!(value(&client, "SELECT 1").await, "1");
            node.sql("SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity WHERE usename = 'app'").await;
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        assert_eq!(value(&client, "SELECT 2").await, "2");
    });
}

#[test]
fn a_server_that_is_down_is_an_error_and_not_a_hang() {
    harness::run(60, async {
        let nobody = harness::port::Port::new();
        let config = Config::to_port(nobody.number())
            .set("limits.server_connect_timeout", "1s")
            .set("limits.query_wait_timeout", "2s");
        let mut pgsteady = Pgsteady::start(&config).await;
        let began = Instant::now();
        let failed = match pgsteady.endpoint().connect().await {
            Ok(client) => client.simple_query("SELECT 1").await.err(),
            Err(error) => Some(error),
        };
        let error = failed.expect("there is no server");
        assert!(!sqlstate(&error).is_empty(), "closed without a word: {error:?}");
        assert!(began.elapsed() < Duration::from_secs(10), "{:?}", began.elapsed());
        pgsteady.lives();
    });
}
