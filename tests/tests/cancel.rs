//! A cancel request reaches the query of the one who holds the key, at that moment, and nothing else.

use std::time::{Duration, Instant};

use harness::endpoint::{sqlstate, value};
use harness::pgsteady::{Config, Pgsteady};
use harness::postgres::{Node, Programs};
use harness::wire::{Message, Raw, query};
use tokio::task::JoinSet;
use tokio_postgres::{Client, NoTls};

const SLEEPING: &str = "SELECT count(*) FROM pg_stat_activity WHERE query LIKE 'SELECT pg_sleep%' AND state = 'active'";

async fn started(pool_size: i64) -> (Node, Pgsteady) {
    let node = Node::primary(&Programs::installed()).await;
    let config = Config::single(&node).set("database.app.pool_size", pool_size).set("auth.method", "trust");
    let pgsteady = Pgsteady::start(&config).await;
    (node, pgsteady)
}

async fn sleeping(node: &Client, count: usize) {
    let enough = || async { (value(node, SLEEPING).await == count.to_string()).then_some(()) };
    harness::wait_for(&format!("{count} sleeping queries"), Duration::from_secs(10), enough).await;
}

fn code(messages: &[Message]) -> String {
    messages.iter().find(|message| message.tag == b'E').and_then(|message| message.field(b'C')).unwrap_or_default()
}

#[test]
fn a_query_is_cancelled_and_its_client_goes_on() {
    harness::run(60, async {
        let (node, pgsteady) = started(2).await;
        let direct = node.client().await;
        let client = pgsteady.endpoint().client().await;
        let token = client.cancel_token();
        let began = Instant::now();
        let (slept, _) = tokio::join!(client.batch_execute("SELECT pg_sleep(60)"), async {
            sleeping(&direct, 1).await;
            token.cancel_query(NoTls).await.expect("a cancel request");
        });
        assert_eq!(sqlstate(&slept.expect_err("it was cancelled")), "57014");
        assert!(began.elapsed() < Duration::from_secs(15), "{:?}", began.elapsed());
        assert_eq!(value(&client, "SELECT 1").await, "1");
    });
}

#[test]
fn keys_that_are_wrong_cancel_nothing() {
    harness::run(60, async {
        let (node, pgsteady) = started(2).await;
        let direct = node.client().await;
        let mut victim = Raw::login(pgsteady.port(), "trusting", "app").await;
        let (pid, key) = victim.key.clone();
        victim.send(&query("SELECT pg_sleep(4)")).await;
        sleeping(&direct, 1).await;
        let real: i32 = value(&direct, "SELECT pid FROM pg_stat_activity WHERE query LIKE 'SELECT pg_sleep%'")
            .await
            .parse()
            .expect("a process number");
        let mut wrong = key.clone();
        for bit in 0..8 {
            wrong[0] = key[0] ^ (1 << bit);
            Raw::cancel(pgsteady.port(), pid, &wrong).await;
        }
        for (pid, key) in [(real, &key[..]), (pid.wrapping_add(1), &key), (pid, &key[..1]), (0, &[0; 4]), (pid, &[])] {
            Raw::cancel(pgsteady.port(), pid, key).await;
        }
        let mut flood = JoinSet::new();
        for number in 0..500_u32 {
            let port = pgsteady.port();
            flood.spawn(async move { Raw::cancel(port, pid, &number.to_be_bytes()).await });
        }
        flood.join_all().await;
        let answer = victim.until(b'Z').await;
        assert_eq!(code(&answer), "", "a wrong key cancelled a query");
        assert!(answer.iter().any(|message| message.tag == b'D'));
        assert_eq!(code(&victim.query("SELECT 1").await), "");
    });
}

#[test]
fn a_cancel_that_comes_too_late_hits_nobody() {
    harness::run(90, async {
        // One server: what the idle client cancels would be whoever has it now.
        let (node, pgsteady) = started(1).await;
        let direct = node.client().await;
        let mut idle = Raw::login(pgsteady.port(), "trusting", "app").await;
        let mut busy = Raw::login(pgsteady.port(), "trusting", "app").await;
        for _ in 0..10 {
            assert_eq!(code(&idle.query("SELECT 1").await), "");
            busy.send(&query("SELECT pg_sleep(0.3)")).await;
            sleeping(&direct, 1).await;
            Raw::cancel(pgsteady.port(), idle.key.0, &idle.key.1).await;
            assert_eq!(code(&busy.until(b'Z').await), "", "somebody else's query was cancelled");
        }
    });
}

#[test]
fn a_client_that_waits_for_a_server_can_cancel_its_wait() {
    harness::run(60, async {
        let (node, pgsteady) = started(1).await;
        let direct = node.client().await;
        let mut busy = Raw::login(pgsteady.port(), "trusting", "app").await;
        busy.send(&query("SELECT pg_sleep(3)")).await;
        sleeping(&direct, 1).await;
        let mut waiting = Raw::login(pgsteady.port(), "trusting", "app").await;
        waiting.send(&query("SELECT 'waited'")).await;
        tokio::time::sleep(Duration::from_millis(200)).await;
        let began = Instant::now();
        Raw::cancel(pgsteady.port(), waiting.key.0, &waiting.key.1).await;
        assert_eq!(code(&waiting.until(b'Z').await), "57014");
        assert!(began.elapsed() < Duration::from_secs(2), "{:?}", began.elapsed());
        assert_eq!(code(&busy.until(b'Z').await), "", "the query of another was cancelled");
        assert_eq!(code(&waiting.query("SELECT 1").await), "");
    });
}

/// Twelve clients on three servers run short queries; half of them are cancelled all the time, by their own keys.
#[test]
fn a_storm_of_cancels_hits_only_those_who_asked() {
    harness::run(90, async {
        let (_node, mut pgsteady) = started(3).await;
        let port = pgsteady.port();
        let mut clients = JoinSet::new();
        let mut storms = JoinSet::new();
        for number in 0..12 {
            let raw = Raw::login(port, "trusting", "app").await;
            let stormy = number % 2 == 0;
            if stormy {
                let (pid, key) = raw.key.clone();
                storms.spawn(async move {
                    loop {
                        Raw::cancel(port, pid, &key).await;
                        tokio::time::sleep(Duration::from_millis(7)).await;
                    }
                });
            }
            clients.spawn(busy_for_a_while(raw, number, stormy));
        }
        let cancelled: usize = clients.join_all().await.iter().sum();
        storms.shutdown().await;
        assert!(cancelled >= 10, "only {cancelled} queries were cancelled: this was no storm");
        pgsteady.lives();
        assert_eq!(value(&pgsteady.endpoint().client().await, "SELECT 1").await, "1");
    });
}

/// How many of its queries were cancelled; none may be if nobody asked.
async fn busy_for_a_while(mut raw: Raw, number: usize, stormy: bool) -> usize {
    let mut cancelled = 0;
    for turn in 0..100 {
        let answer = raw.query(&format!("SELECT {number} * 1000 + {turn} FROM pg_sleep(0.01)")).await;
        match code(&answer).as_str() {
            "" => {
                let row = answer.iter().find(|message| message.tag == b'D').expect("a row");
                assert_eq!(row.columns(), [(number * 1000 + turn).to_string()]);
            }
            "57014" if stormy => cancelled += 1,
            other => panic!("client {number}, stormy: {stormy}: {other}"),
        }
    }
    cancelled
}
