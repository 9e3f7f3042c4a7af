//! That the checks see what they are for: what is really lost makes them red. And that the page tells of every fault.

use std::fs;
use std::time::{Duration, Instant};

use harness::postgres::{Cluster, Programs, repository};
use harness::writers::{self, Writers};

use crate::checks::{self, Counted};
use crate::faults;
use crate::workload::{self, Transfer, Workload};

/// Whether a check is red.
async fn is_red(check: impl Future<Output = ()> + Send + 'static) -> bool {
    tokio::spawn(check).await.is_err_and(|ended| ended.is_panic())
}

/// Without pgsteady and without synchronous replication: the standby that is promoted lacks what was acknowledged.
#[test]
fn what_an_asynchronous_standby_loses_is_seen() {
    harness::run(60, async {
        let mut cluster = Cluster::start(&Programs::installed(), 2).await;
        let tables = format!("{}; GRANT ALL ON written TO app; {}", writers::TABLE, workload::TABLES);
        cluster.nodes[0].client().await.batch_execute(&tables).await.expect("the tables can be made");
        cluster.nodes[0].sql("ALTER SYSTEM SET synchronous_standby_names = ''").await;
        cluster.nodes[0].sql("SELECT pg_reload_conf()").await;
        let there = "SELECT to_regclass('ledger') IS NOT NULL";
        let replayed = || async { (cluster.nodes[1].sql(there).await == "t").then_some(()) };
        harness::wait_for("the tables on the standby", Duration::from_secs(10), replayed).await;
        cluster.nodes[1].sql("ALTER SYSTEM SET primary_conninfo = ''").await;
        cluster.nodes[1].sql("SELECT pg_reload_conf()").await;
        let place = cluster.nodes[0].endpoint();
        let (workload, writers) = (Workload::start(std::slice::from_ref(&place), 1), Writers::start(&place, 2));
        writers.acknowledged(1000, Duration::from_secs(30)).await;
        tokio::time::sleep(Duration::from_secs(1)).await;
        let (shared, record) = (workload.stop().await, writers.stop().await);
        cluster.nodes[0].kill_tree();
        cluster.nodes[1].sql("SELECT pg_promote()").await;
        let node = &cluster.nodes[1];
        let (first, second, third) = (node.client().await, node.client().await, node.client().await);
        let also = shared.clone();
        assert!(is_red(async move { record.check(&first).await }).await, "K1");
        assert!(is_red(async move { checks::histories(&second, &also, &mut Counted::default()).await }).await, "K2");
        assert!(is_red(async move { checks::bank(&third, &shared, &mut Counted::default()).await }).await, "K3");
    });
}

#[test]
fn a_late_acknowledgement_is_seen() {
    let began = Instant::now();
    let at = |from: u64, to: u64, timeline| Transfer {
        began: began + Duration::from_millis(from),
        acknowledged: began + Duration::from_millis(to),
        timeline,
    };
    let overlapping = vec![at(0, 10, 1), at(5, 30, 2), at(20, 40, 1), at(31, 50, 2)];
    assert!(checks::late(overlapping.clone()).is_none());
    let late = checks::late([overlapping, vec![at(32, 60, 1)]].concat());
    assert_eq!(late.map(|transfer| transfer.timeline), Some(1));
}

/// `docs/faults.md` is what is brought about, neither more nor less, and the tests that it names are there.
#[test]
fn the_page_tells_of_every_fault() {
    let page = fs::read_to_string(repository().join("docs/faults.md")).expect("the page is there");
    let (ours, elsewhere) = page.split_once("## Faults elsewhere").expect("two tables");
    let rows: Vec<&str> = ours.lines().filter(|line| line.starts_with("| F")).collect();
    let row = |fault: &faults::Fault| {
        let what = fault.what[..1].to_uppercase() + &fault.what[1..];
        format!("| {} | {what}; healed after {} s. |", fault.id, fault.lasts.as_secs())
    };
    assert_eq!(rows, faults::ALL.iter().map(row).collect::<Vec<_>>());
    let named = elsewhere.split('`').filter(|name| name.starts_with("tests/"));
    let missing: Vec<&str> = named.filter(|name| !repository().join(name).exists()).collect();
    assert!(missing.is_empty(), "{missing:?}");
}
