//! Several workers: the limits are those of one, and a server goes to the worker that needs it, whatever carries it.

use std::time::Duration;

use harness::certificates::Certificate;
use harness::endpoint::{Endpoint, value};
use harness::folder::Folder;
use harness::pgsteady::{Config, Pgsteady};
use harness::postgres::{Node, Programs};
use tokio::task::JoinSet;

/// Workers of each pgsteady here.
const WORKERS: i64 = 4;
/// Clients, which the kernel spreads over the workers' listeners: that one has none of them is one case in a hundred.
const CLIENTS: usize = 16;
/// What each asks.
const ROUNDS: usize = 20;
/// Time for all of them.
const TEST_S: u64 = 120;

fn with_workers(node: &Node, pool_size: i64) -> Config {
    Config::single(node).set("listen.workers", WORKERS).set("database.app.pool_size", pool_size)
}

/// A client of its own connection: asks in every manner, and gets its own answers. Gives the backends that it met.
async fn talks(endpoint: Endpoint, who: usize) -> Vec<String> {
    let mut client = endpoint.client().await;
    let mut backends = Vec::new();
    let prepared = client.prepare("SELECT $1::text || repeat('x', $2)").await.expect("a statement");
    for round in 0..ROUNDS {
        let own = format!("{who}/{round}");
        assert_eq!(value(&client, &format!("SELECT '{own}'")).await, own);
        let length = [0, 100, 400_000][round % 3];
        let row = client.query_one(&prepared, &[&own, &length]).await.expect("a row");
        let text: &str = row.get(0);
        assert_eq!(
            (&text[..own.len()], text.len()),
            (own.as_str(), own.len() + usize::try_from(length).expect("small"))
        );
        let transaction = client.transaction().await.expect("a transaction");
        let first = transaction.query_one("SELECT pg_backend_pid()::text", &[]).await.expect("a row");
        let second = transaction.query_one("SELECT pg_backend_pid()::text", &[]).await.expect("a row");
        assert_eq!(first.get::<_, &str>(0), second.get::<_, &str>(0), "one server for a transaction");
        backends.push(first.get(0));
        transaction.commit().await.expect("a commit");
    }
    backends
}

/// All clients at once; gives the backends that they met.
async fn all_talk(pgsteady: &Pgsteady) -> Vec<String> {
    let mut clients = JoinSet::new();
    for who in 0..CLIENTS {
        clients.spawn(talks(pgsteady.endpoint(), who));
    }
    let mut backends: Vec<String> = clients.join_all().await.into_iter().flatten().collect();
    backends.sort_unstable();
    backends.dedup();
    backends
}

#[test]
fn the_only_server_goes_from_worker_to_worker() {
    harness::run(TEST_S, async {
        let folder = Folder::new("tls");
        let pair = Certificate::authority("an authority").sign("localhost").write(&folder, "server");
        let node = Node::with_tls(&Programs::installed(), &pair).await;
        let socket = node.socket_directory().display().to_string();
        for (host, sslmode) in [("127.0.0.1", "disable"), ("127.0.0.1", "require"), (socket.as_str(), "disable")] {
            let config = with_workers(&node, 1).set("database.app.host", host).set("database.app.tls.sslmode", sslmode);
            let pgsteady = Pgsteady::start(&config).await;
            let backends = all_talk(&pgsteady).await;
            assert_eq!(backends.len(), 1, "{host} {sslmode}: {backends:?}");
        }
    });
}

#[test]
fn workers_together_keep_to_the_limit_of_a_pool() {
    harness::run(TEST_S, async {
        let node = Node::primary(&Programs::installed()).await;
        let pgsteady = Pgsteady::start(&with_workers(&node, 3)).await;
        let all = all_talk(&pgsteady);
        tokio::pin!(all);
        let direct = node.client().await;
        let servers = "SELECT count(*) FROM pg_stat_activity WHERE usename = 'app'";
        let backends = loop {
            let count: usize = value(&direct, servers).await.parse().expect("a number");
            assert!(count <= 3, "{count} servers in a pool of 3");
            tokio::select! {
                backends = &mut all => break backends,
                () = tokio::time::sleep(Duration::from_millis(5)) => {}
            }
        };
        assert_eq!(backends.len(), 3, "{CLIENTS} clients need the whole pool");
    });
}
