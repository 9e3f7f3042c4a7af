//! The monitor end to end on real servers: it adopts a primary, loses it, makes another one, and loses no row.

#![allow(clippy::unwrap_used)] // a test may panic

mod common;

use std::time::{Duration, Instant};

use common::{Cluster, SECOND, config, snapshot};
use topology::{Monitor, MonitorError, Role};

/// Inserts rows one after the other until the primary is gone; the last number that was acknowledged.
async fn write(server: &common::Server) -> tokio::task::JoinHandle<i64> {
    let client = server.connect().await;
    client.batch_execute("CREATE TABLE acked (v bigint)").await.unwrap();
    tokio::spawn(async move {
        let mut acknowledged = 0;
        while client.execute("INSERT INTO acked VALUES ($1)", &[&(acknowledged + 1)]).await.is_ok() {
            acknowledged += 1;
        }
        acknowledged
    })
}

#[tokio::test]
async fn a_killed_primary_is_replaced_and_no_acknowledged_row_is_lost() {
    common::log();
    let mut cluster = Cluster::start(2).await;
    let (watch, monitor) = Monitor::start(&config(&cluster)).unwrap();
    let before = snapshot(&watch, "n1 is adopted", |t| t.primary == Some(0)).await;
    assert!(before.term > 0 && before.epoch > 0, "{before:?}");
    snapshot(&watch, "both standbys take reads without lag", |t| {
        t.nodes[1..].iter().all(|node| node.role == Role::Standby && node.lag == Some(Duration::ZERO))
    })
    .await;
    let writer = write(&cluster.servers[0]).await;
    tokio::time::sleep(SECOND).await;

    let killed = Instant::now();
    cluster.servers[0].kill_tree();
    let after = snapshot(&watch, "another primary", |t| t.epoch > before.epoch && t.primary.is_some()).await;
    let open = killed.elapsed();
    let primary = after.primary.unwrap();
    assert!(primary != 0 && after.term > before.term, "{after:?}");
    let reigns: Vec<(usize, bool)> = after.reigns.iter().map(|reign| (reign.node, reign.next_xid.is_some())).collect();
    assert_eq!(reigns, [(0, false), (primary, true)], "{after:?}");
    let client = cluster.servers[primary].connect().await;
    let acknowledged = writer.await.unwrap();
    assert!(acknowledged > 20, "{acknowledged} rows are too few to lose one");
    let distinct = "SELECT count(DISTINCT v) FROM acked WHERE v BETWEEN 1 AND $1";
    let kept: i64 = client.query_one(distinct, &[&acknowledged]).await.unwrap().get(0);
    assert_eq!(kept, acknowledged);
    client.execute("INSERT INTO acked VALUES (-1)", &[]).await.unwrap();

    let failovers = watch.failovers();
    println!("open after {open:?}, {acknowledged} rows: {failovers:#?}");
    tracing::debug!("{}", cluster.servers[3 - primary].log());
    assert_eq!(failovers.len(), 1);
    let story = &failovers[0];
    assert_eq!((story.from.as_deref(), &*story.to), (Some("n1"), &*cluster.servers[primary].name));
    assert_eq!(story.term, after.term);
    assert!(story.hold <= open && story.fence > Duration::ZERO && story.promote > Duration::ZERO, "{story:?}");

    drop(monitor);
    let sample = watch.now().sample.number;
    tokio::time::sleep(SECOND).await;
    assert_eq!(watch.now().sample.number, sample, "dropped, it does nothing any more");
}

#[tokio::test]
async fn samples_bound_commits_and_a_restarted_monitor_goes_on() {
    let cluster = Cluster::start(1).await;
    let (watch, monitor) = Monitor::start(&config(&cluster)).unwrap();
    assert!(matches!(Monitor::start(&config(&cluster)), Err(MonitorError::Store(_))), "two on one store");
    let first = snapshot(&watch, "n1 is adopted", |t| t.primary == Some(0)).await;
    let client = cluster.servers[0].connect().await;
    client.batch_execute("CREATE TABLE t (v int)").await.unwrap();
    let position: i64 =
        client.query_one("SELECT (pg_current_wal_insert_lsn() - '0/0')::bigint", &[]).await.unwrap().get(0);
    let begun = watch.samples_begun();
    let bound = snapshot(&watch, "a sample that began later", |t| t.sample.number > begun).await;
    assert!(bound.sample.position.0 >= position.cast_unsigned());
    let replica = snapshot(&watch, "the replica has it", |t| t.nodes[1].replayed >= bound.sample.position).await;
    assert_eq!(replica.epoch, first.epoch, "positions change without the epoch");

    drop(monitor);
    // its tasks end at their next turn, and with them the lock
    tokio::time::sleep(SECOND / 5).await;
    let (watch, _monitor) = Monitor::start(&config(&cluster)).unwrap();
    let again = snapshot(&watch, "n1 is found again", |t| t.primary == Some(0)).await;
    assert!(again.term >= first.term);
}
