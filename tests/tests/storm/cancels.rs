//! Cancel requests at random moments of commits: a statement that says it was cancelled has left nothing, one that says
//! it was done is there.

use std::collections::HashSet;
use std::time::{Duration, Instant};

use harness::endpoint::{Endpoint, column, sqlstate};
use rand::rngs::SmallRng;
use rand::{RngExt, SeedableRng};
use tokio_postgres::NoTls;

/// Clients at each instance.
const CLIENTS: u64 = 2;
/// Where they write; the table goes when they have ended.
const TABLE: &str = "CREATE TABLE IF NOT EXISTS cancelled (client bigint NOT NULL, number bigint NOT NULL)";

/// Rows that were acknowledged, and those that were refused.
#[derive(Default)]
struct Told {
    done: HashSet<(i64, i64)>,
    refused: HashSet<(i64, i64)>,
}

/// Cancels for so long, and compares. What another fault makes of a client ends that client only.
pub(crate) async fn storm(instances: &[Endpoint], random: &mut SmallRng, lasts: Duration) {
    let Ok(first) = instances[0].connect().await else { return };
    if first.batch_execute(TABLE).await.is_err() {
        return;
    }
    let mut clients = tokio::task::JoinSet::new();
    for (instance, endpoint) in instances.iter().enumerate() {
        for number in 0..CLIENTS {
            let client = i64::try_from(instance as u64 * CLIENTS + number).expect("few clients");
            clients.spawn(write(endpoint.clone(), client, random.random(), lasts));
        }
    }
    let mut told = Told::default();
    for one in clients.join_all().await {
        told.done.extend(one.done);
        told.refused.extend(one.refused);
    }
    let Ok(rows) = first.query("SELECT client, number FROM cancelled FOR SHARE", &[]).await else { return };
    let rows: HashSet<(i64, i64)> = rows.iter().map(|row| (row.get(0), row.get(1))).collect();
    let lost: Vec<_> = told.done.difference(&rows).collect();
    let despite: Vec<_> = told.refused.intersection(&rows).collect();
    assert!(lost.is_empty(), "acknowledged among cancels and lost: {lost:?}");
    assert!(despite.is_empty(), "cancelled and written: {despite:?}");
    assert!(
        told.done.len() > 20 && !told.refused.is_empty(),
        "{} done, {} refused",
        told.done.len(),
        told.refused.len()
    );
    first.batch_execute("DROP TABLE cancelled").await.expect("the table can be dropped");
}

async fn write(endpoint: Endpoint, client: i64, seed: u64, lasts: Duration) -> Told {
    let (mut told, mut random, began) = (Told::default(), SmallRng::seed_from_u64(seed), Instant::now());
    let Ok(connection) = endpoint.connect().await else { return told };
    let mut number = 0;
    while began.elapsed() < lasts {
        number += 1;
        let sql = format!("INSERT INTO cancelled VALUES ({client}, {number})");
        let (cancel, after) = (connection.cancel_token(), Duration::from_micros(random.random_range(0..3000)));
        let cancelled = async {
            tokio::time::sleep(after).await;
            let _ = cancel.cancel_query(NoTls).await;
        };
        match tokio::join!(column(&connection, &sql), cancelled).0 {
            Ok(_) => drop(told.done.insert((client, number))),
            Err(error) if sqlstate(&error) == "57014" => drop(told.refused.insert((client, number))),
            Err(_) if connection.is_closed() => return told,
            Err(_) => {}
        }
    }
    told
}
