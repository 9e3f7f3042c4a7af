//! Clients that are only there: what each of them costs in memory, and what they cost the busy ones.

use std::time::Duration;

use harness::endpoint::Endpoint;
use harness::process::memory;
use tokio::task::JoinSet;
use tokio_postgres::Client;

use crate::pooler::Pooler;

/// Logins at a time.
const AT_ONCE: usize = 50;
/// Until what was allocated meanwhile is given back.
const SETTLES: Duration = Duration::from_millis(300);

/// KiB of the pooler's own memory for each client: connected, after one query, after one prepared statement.
#[derive(Debug, Clone, Copy)]
pub(crate) struct PerClient {
    pub(crate) connected: f64,
    pub(crate) queried: f64,
    pub(crate) prepared: f64,
}

/// Connects so many clients.
pub(crate) async fn connect(pooler: &Pooler, count: usize) -> Vec<Client> {
    let mut clients = Vec::with_capacity(count);
    while clients.len() < count {
        let mut logins = JoinSet::new();
        for _ in 0..AT_ONCE.min(count - clients.len()) {
            let place = Endpoint::app(pooler.port);
            logins.spawn(async move { place.client().await });
        }
        clients.extend(logins.join_all().await);
    }
    clients
}

/// Measures it with so many clients.
pub(crate) async fn per_client(pooler: &Pooler, count: usize) -> PerClient {
    let own = || memory(pooler.pid).expect("the pooler runs") as f64 / 1024.0;
    // its first clients open the servers, which are no part of it
    let mut clients = connect(pooler, AT_ONCE).await;
    for client in &clients {
        client.simple_query("SELECT 1").await.expect("it serves");
    }
    tokio::time::sleep(SETTLES).await;
    let before = own();
    let each = |now: f64| (now - before) / count as f64;
    clients.extend(connect(pooler, count).await);
    tokio::time::sleep(SETTLES).await;
    let connected = each(own());
    for client in &clients {
        client.simple_query("SELECT 1").await.expect("it serves");
    }
    tokio::time::sleep(SETTLES).await;
    let queried = each(own());
    for client in &clients {
        let statement = client.prepare("SELECT $1::int").await.expect("it prepares");
        client.query(&statement, &[&1]).await.expect("it serves");
        // dropped, it would be closed
        std::mem::forget(statement);
    }
    tokio::time::sleep(SETTLES).await;
    PerClient { connected, queried, prepared: each(own()) }
}
