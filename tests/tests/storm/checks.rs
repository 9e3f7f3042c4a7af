//! What must be so after any faults, K1 to K9 of docs/faults.md: compared with what the clients were told.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::time::Duration;

use adya::{History, Opts, Valid, Workload as Kind};
use harness::endpoint::value;
use harness::postgres::repository;
use harness::process;
use harness::writers::Record;
use serde_json::{Value, json};
use tokio_postgres::Client;

use crate::scene::Scene;
use crate::workload::{self, FIRST_BALANCE, Shared, Transfer, locked};

/// Acknowledged rows below which a run shows nothing.
const ENOUGH: usize = 300;
/// What an instance may hold more than at the start, once the cluster is whole: open files, and bytes of memory.
const MORE_FILES: usize = 40;
const MORE_MEMORY: u64 = 64 << 20;
/// Time for the search for cycles in one history.
const SEARCH: Duration = Duration::from_secs(20);

/// What was counted on the way.
#[derive(Debug, Default)]
pub(crate) struct Counted {
    pub(crate) acknowledged: usize,
    pub(crate) in_doubt: usize,
    pub(crate) transactions: usize,
    pub(crate) transfers: usize,
    pub(crate) answers: u64,
    pub(crate) dropped: usize,
}

/// An instance holds what it held `before` (K8); one that was started since has nothing to compare.
pub(crate) fn holds_no_more(scene: &Scene, before: &[(usize, u64)], restarted: &BTreeSet<usize>) {
    for (index, (before, now)) in before.iter().zip(resources(scene)).enumerate() {
        let grown = now.0 > before.0 + MORE_FILES || now.1 > before.1 + MORE_MEMORY;
        assert!(!grown || restarted.contains(&index), "K8: instance {index} held {before:?}, now {now:?}");
    }
}

/// Primaries that were promoted so far, each with a timeline of its own (K7).
pub(crate) async fn timeline(scene: &Scene) -> i32 {
    let sql = "SELECT ('x' || left(pg_walfile_name(pg_current_wal_lsn()), 8))::bit(32)::int";
    scene.cluster.nodes[scene.primary].sql(sql).await.parse().expect("timelines are numbers")
}

/// Open files and memory of each instance.
pub(crate) fn resources(scene: &Scene) -> Vec<(usize, u64)> {
    let of = |pid| (process::open_files(pid).expect("it runs"), process::memory(pid).expect("it runs"));
    scene.instances.iter().map(|instance| of(instance.pid())).collect()
}

/// Everything but K7 and K8. `restarted`: the instances that were killed meanwhile, and may have dropped clients.
pub(crate) async fn all(scene: &Scene, written: Vec<Record>, shared: &Shared, restarted: &BTreeSet<usize>) -> Counted {
    let mut counted = Counted::default();
    dropped(&written, shared, restarted, &mut counted);
    let mut record = Record::default();
    written.into_iter().for_each(|one| record.add(one));
    counted.acknowledged = record.acknowledged.len();
    counted.in_doubt = record.in_doubt.len();
    assert!(record.acknowledged.len() >= ENOUGH, "only {} rows: {:?}", record.acknowledged.len(), record.errors);
    scene.replayed().await;
    for node in &scene.cluster.nodes {
        record.check(&node.client().await).await; // K1
    }
    let primary = scene.cluster.nodes[scene.primary].client().await;
    histories(&primary, shared, &mut counted).await;
    bank(&primary, shared, &mut counted).await;
    let wrong = locked(&shared.wrong);
    assert!(wrong.is_empty(), "K3, K5, K9: {wrong:?}");
    counted.answers = shared.answers.load(std::sync::atomic::Ordering::Relaxed);
    assert!(counted.answers > 0, "the observers were never answered");
    counted
}

/// K6: nobody lost a connection outside of a transaction, but for those of a killed instance.
fn dropped(written: &[Record], shared: &Shared, restarted: &BTreeSet<usize>, counted: &mut Counted) {
    let of_writers = written.iter().map(|record| &record.dropped).enumerate();
    let of_writers = of_writers.flat_map(|(instance, dropped)| dropped.iter().map(move |why| (instance, why.clone())));
    let dropped: Vec<_> = of_writers.chain(locked(&shared.dropped).iter().cloned()).collect();
    let unexpected: Vec<_> = dropped.iter().filter(|(instance, _)| !restarted.contains(instance)).collect();
    assert!(unexpected.is_empty(), "K6: dropped clients: {unexpected:?}");
    counted.dropped = unexpected.len();
}

/// K2: the lists are what some order of the transactions makes of them that respects real time.
pub(crate) async fn histories(primary: &Client, shared: &Shared, counted: &mut Counted) {
    let mut history = std::mem::take(&mut *locked(&shared.history));
    let finished = history.iter().filter(|operation| operation["type"] != "invoke").count();
    let kinds = |kind: &str| history.iter().filter(|operation| operation["type"] == kind).count();
    counted.transactions = kinds("ok");
    let unknown = kinds("info");
    assert!(unknown * 5 < finished, "{unknown} of {finished} transactions have no known end");
    final_reads(primary, &mut history).await;
    let lines: Vec<String> = history.iter().map(Value::to_string).collect();
    let parsed = History::from_json(&lines.join("\n")).expect("our own history can be read");
    let report = adya::check(&parsed, Kind::ListAppend, &Opts { timeout: SEARCH, ..Opts::default() });
    if report.valid != Valid::True {
        let explained: BTreeMap<&String, &str> = report
            .anomalies
            .iter()
            .filter_map(|(kind, found)| Some((kind, found.first()?.explanation.as_str())))
            .collect();
        panic!("K2: not strictly serializable (history: {}): {explained:#?}", kept(&lines).display());
    }
}

/// Reads every list once more, as a transaction that follows all others.
async fn final_reads(primary: &Client, history: &mut Vec<Value>) {
    let operations = history.iter().filter_map(|operation| operation["value"].as_array()).flatten();
    let keys: BTreeSet<i64> = operations.filter_map(|operation| operation[1].as_i64()).collect();
    let last = |field: &str| history.iter().filter_map(|operation| operation[field].as_u64()).max().unwrap_or(0);
    let (process, time) = (last("process") + 1, last("time") + 1);
    let mut reads = Vec::new();
    for key in keys {
        reads.push(json!(["r", key, workload::read(primary, &key.into()).await.expect("the lists can be read")]));
    }
    for (kind, time) in [("invoke", time), ("ok", time + 1)] {
        let index = history.len();
        history
            .push(json!({"index": index, "type": kind, "f": "txn", "process": process, "time": time, "value": reads}));
    }
}

/// Where the history of a failed check can be looked at.
fn kept(lines: &[String]) -> PathBuf {
    let path = repository().join(format!("target/storm-{}.jsonl", std::process::id()));
    std::fs::write(&path, lines.join("\n")).expect("target can be written to");
    path
}

/// K3: balances are what the ledger says; K4: no acknowledgement from a timeline that was already left.
pub(crate) async fn bank(primary: &Client, shared: &Shared, counted: &mut Counted) {
    let sql = format!(
        "SELECT count(*) FROM accounts WHERE balance <> {FIRST_BALANCE} \
         + coalesce((SELECT sum(amount) FROM ledger WHERE target = id), 0) \
         - coalesce((SELECT sum(amount) FROM ledger WHERE source = id), 0)"
    );
    assert_eq!(value(primary, &sql).await, "0", "K3: accounts whose balance is not what the ledger says");
    let transfers = std::mem::take(&mut *locked(&shared.transfers));
    counted.transfers = transfers.len();
    let rows: usize = value(primary, "SELECT count(*) FROM ledger").await.parse().expect("a number");
    assert!(rows >= transfers.len(), "K3: {} transfers acknowledged, {rows} there", transfers.len());
    let late = late(transfers);
    assert!(late.is_none(), "K4: acknowledged by a timeline that was left: {late:?}");
}

/// A transfer that began after one of a later timeline was acknowledged.
pub(crate) fn late(mut transfers: Vec<Transfer>) -> Option<Transfer> {
    let mut ends = transfers.clone();
    ends.sort_by_key(|transfer| transfer.acknowledged);
    transfers.sort_by_key(|transfer| transfer.began);
    let (mut ends, mut newest) = (ends.into_iter().peekable(), 0);
    transfers.into_iter().find(|transfer| {
        while let Some(end) = ends.next_if(|end| end.acknowledged <= transfer.began) {
            newest = newest.max(end.timeline);
        }
        transfer.timeline < newest
    })
}
