//! The monitor's SQL against real servers: each promise of a fence, a promotion, a term row is tried where it is hard.

#![allow(clippy::unwrap_used)] // a test may panic

mod common;

use std::future::ready;
use std::time::{Duration, Instant};

use common::{Cluster, SECOND, replication, until};
use decision::{Obstacle, Term};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use topology::act::{self, Cause, Order, Provided, rule_text};
use topology::{Address, Lsn, TermRow};

fn rule(term: u64, leader: &str, cohort: &[&str]) -> TermRow {
    TermRow { term, leader: leader.into(), cohort: cohort.iter().map(|name| (*name).into()).collect(), k: 1 }
}

/// Is a commit on the old primary still acknowledged? Waits half a second for it.
async fn acknowledges(client: &tokio_postgres::Client) -> bool {
    let insert = client.execute("INSERT INTO t VALUES (1)", &[]);
    tokio::time::timeout(SECOND / 2, insert).await.is_ok()
}

#[tokio::test]
async fn a_fence_of_all_standbys_stops_acknowledgement_and_survives_a_restart() {
    let mut cluster = Cluster::start(2).await;
    let primary = cluster.servers[0].connect().await;
    primary.batch_execute("CREATE TABLE t (v int)").await.unwrap();
    act::fence(&cluster.remote(1), 7, 5 * SECOND).await.unwrap();
    assert!(acknowledges(&primary).await, "one standby is left, and one is enough");
    let evidence = act::fence(&cluster.remote(2), 7, 5 * SECOND).await.unwrap();
    assert_eq!(evidence.escalated, Vec::<&str>::new());
    assert!(!acknowledges(&primary).await);

    cluster.servers[2].stop(Signal::SIGQUIT);
    cluster.servers[2].start();
    let standby = cluster.servers[2].connect().await;
    let row = standby
        .query_one("SELECT current_setting('primary_conninfo'), current_setting('primary_slot_name')", &[])
        .await
        .unwrap();
    assert_eq!((row.get(0), row.get(1)), ("", "fence_7"));
    assert!(!acknowledges(&cluster.servers[0].connect().await).await);

    // undone, the waiting commits go through
    let home = cluster.servers[0].address();
    let own = Provided { mark: Some(7), still_at: None };
    act::repoint(&cluster.remote(2), &home, &replication(), own, ready(Ok(())), 5 * SECOND).await.unwrap();
    let primary = cluster.servers[0].connect().await;
    until("the un-fenced standby flushes", async || acknowledges(&primary).await).await;
}

#[tokio::test]
async fn a_fence_frees_paused_replay() {
    let cluster = Cluster::start(1).await;
    let primary = cluster.servers[0].connect().await;
    primary.batch_execute("CREATE TABLE t (v int)").await.unwrap();
    let standby = cluster.servers[1].connect().await;
    standby.batch_execute("SELECT pg_wal_replay_pause()").await.unwrap();
    assert!(acknowledges(&primary).await, "a paused standby still flushes");
    let evidence = act::fence(&cluster.remote(1), 2, 5 * SECOND).await.unwrap();
    assert_eq!(evidence.escalated, ["paused replay resumed"]);
    assert!(!acknowledges(&primary).await);
}

#[tokio::test]
async fn a_fence_ends_a_recovery_conflict() {
    let cluster = Cluster::start_with(1, "max_standby_streaming_delay = -1").await;
    let primary = cluster.servers[0].connect().await;
    primary.batch_execute("CREATE TABLE t (v int); INSERT INTO t VALUES (1), (2)").await.unwrap();
    let reader = cluster.servers[1].connect().await;
    until("the table is there", async || reader.execute("SELECT FROM t", &[]).await.is_ok()).await;
    reader.batch_execute("BEGIN ISOLATION LEVEL REPEATABLE READ; SELECT * FROM t").await.unwrap();
    primary.batch_execute("DELETE FROM t").await.unwrap();
    primary.batch_execute("VACUUM t").await.unwrap();
    let witness = cluster.servers[1].connect().await;
    let conflict = "SELECT wait_event LIKE 'RecoveryConflict%' FROM pg_stat_activity WHERE backend_type = 'startup'";
    until("replay waits for the reader", async || {
        witness.query_one(conflict, &[]).await.unwrap().get::<_, Option<bool>>(0) == Some(true)
    })
    .await;
    let evidence = act::fence(&cluster.remote(1), 2, 5 * SECOND).await.unwrap();
    assert_eq!(evidence.escalated, ["sessions ended"]);
    assert!(reader.batch_execute("COMMIT").await.is_err(), "the reader's session was ended");
    assert!(!acknowledges(&primary).await);
}

#[tokio::test]
async fn a_fence_ends_an_apply_delay() {
    let cluster = Cluster::start_with(1, "recovery_min_apply_delay = 5min").await;
    let primary = cluster.servers[0].connect().await;
    primary.batch_execute("CREATE TABLE t (v int); INSERT INTO t VALUES (1)").await.unwrap();
    let evidence = act::fence(&cluster.remote(1), 2, 5 * SECOND).await.unwrap();
    assert_eq!(evidence.escalated, ["recovery_min_apply_delay set to 0"]);
    assert!(!acknowledges(&primary).await);
    let drained = act::drain(&cluster.remote(1), 5 * SECOND).await.unwrap();
    assert!(drained.position >= evidence.received.unwrap());
}

#[tokio::test]
async fn a_fence_refuses_primaries_and_earlier_terms() {
    let cluster = Cluster::start(1).await;
    let failed = act::fence(&cluster.remote(0), 2, SECOND).await.unwrap_err();
    assert_eq!(failed.obstacle, Obstacle::Writable);
    assert_eq!(failed.error.to_string(), "fence on node n1: not done: it is not a standby");
    act::fence(&cluster.remote(1), 5, 5 * SECOND).await.unwrap();
    let failed = act::fence(&cluster.remote(1), 4, SECOND).await.unwrap_err();
    assert_eq!(failed.obstacle, Obstacle::Superseded(Term(5)));
    assert_eq!(failed.error.to_string(), "fence on node n2: not done: term 5 has fenced it already, this is term 4");
    let home = cluster.servers[0].address();
    let earlier = Provided { mark: Some(4), still_at: None };
    let error =
        act::repoint(&cluster.remote(1), &home, &replication(), earlier, ready(Ok(())), SECOND).await.unwrap_err();
    assert!(matches!(error.cause, Cause::Guard(_)), "{error}");
    act::fence(&cluster.remote(1), 5, SECOND).await.expect("the same fence again");
    act::fence(&cluster.remote(1), 6, 5 * SECOND).await.expect("a later one");
}

#[tokio::test]
async fn a_promotion_needs_the_mark_and_opens_with_its_rule() {
    let mut cluster = Cluster::start(2).await;
    let primary = cluster.servers[0].connect().await;
    act::prepare_term(&cluster.remote(0), 5 * SECOND).await.unwrap();
    act::write_term(&cluster.remote(0), &rule(1, "n1", &["n2", "n3"]), 5 * SECOND).await.unwrap();
    primary.batch_execute("CREATE TABLE t (v int); INSERT INTO t VALUES (1)").await.unwrap();
    let xid = "INSERT INTO t VALUES (2) RETURNING pg_current_xact_id()::text::bigint";
    let old_xid: i64 = primary.query_one(xid, &[]).await.unwrap().get(0);

    let order = Order { term: 2, parent: Some(1), rule: rule_text(1, &["n1", "n3"]) };
    let unmarked = act::promote(&cluster.remote(1), &order, SECOND).await.unwrap_err();
    assert!(matches!(unmarked.cause, Cause::Guard(_)), "{unmarked}");

    cluster.servers[0].kill_tree();
    let begun = Instant::now();
    let (n2, n3) = (cluster.remote(1), cluster.remote(2));
    let (first, second) = tokio::join!(act::fence(&n2, 2, 5 * SECOND), act::fence(&n3, 2, 5 * SECOND));
    let fences = (first.unwrap(), second.unwrap());
    for wrong in [
        Order { term: 3, ..order.clone() },
        Order { parent: Some(0), ..order.clone() },
        Order { parent: None, ..order.clone() },
    ] {
        let refused = act::promote(&n2, &wrong, SECOND).await.unwrap_err();
        assert!(matches!(refused.cause, Cause::Guard(_)), "another mark or history: {refused}");
    }
    let (drained, behind) = tokio::join!(act::drain(&n2, 5 * SECOND), act::drain(&n3, 5 * SECOND));
    let (drained, behind) = (drained.unwrap(), behind.unwrap());
    assert_eq!(drained.term, Some(rule(1, "n1", &["n2", "n3"])));
    assert!(drained.position >= behind.position.min(fences.0.received.unwrap()));
    let promoted = act::promote(&n2, &order, 10 * SECOND).await.unwrap();
    assert_eq!((drained.timeline, promoted.timeline), (1, 2));
    assert!(promoted.next_xid > old_xid.cast_unsigned());

    // with nobody following, the term row is not acknowledged, and that is what is said
    let alone = act::write_term(&n2, &rule(2, "n2", &["n1", "n3"]), SECOND / 2).await.unwrap_err();
    assert!(matches!(alone.cause, Cause::Connection(_)), "{alone}");
    let held = Provided { mark: Some(2), still_at: Some(behind.position) };
    let home = cluster.servers[1].address();
    let wrong = Provided { mark: Some(2), still_at: Some(Lsn(1)) };
    let error = act::repoint(&n3, &home, &replication(), wrong, ready(Ok(())), SECOND).await.unwrap_err();
    assert_eq!(error.to_string(), "repoint on node n3: not done: it took WAL after its fence");
    act::repoint(&n3, &home, &replication(), held, ready(Ok(())), 5 * SECOND).await.unwrap();
    let written = act::write_term(&n2, &rule(2, "n2", &["n1", "n3"]), 10 * SECOND).await.unwrap();
    assert_eq!(written.flushed_by, ["n3"]);
    println!("kill to synchronous write, with 0.5 s of waiting in vain: {:?}", begun.elapsed());

    let lower = act::write_term(&n2, &rule(1, "n1", &["n2", "n3"]), SECOND).await.unwrap_err();
    assert!(matches!(lower.cause, Cause::Guard(_)), "{lower}");
    act::barrier(&n2, &rule(2, "n2", &["n1", "n3"]), 5 * SECOND).await.unwrap();
    let lower = act::barrier(&n2, &rule(1, "n1", &["n2", "n3"]), SECOND).await.unwrap_err();
    assert!(matches!(lower.cause, Cause::Guard(_)), "{lower}");
    assert_eq!(act::checkpoint(&n2, 30 * SECOND).await.unwrap(), 2);
}

#[tokio::test]
async fn an_acknowledgement_without_a_flush_is_not_believed() {
    let cluster = Cluster::start(1).await;
    act::prepare_term(&cluster.remote(0), 5 * SECOND).await.unwrap();
    act::fence(&cluster.remote(1), 2, 5 * SECOND).await.unwrap();
    // somebody turns waiting off: PostgreSQL acknowledges at once
    act::set_rule(&cluster.remote(0), 0, &[], ready(Ok(())), 5 * SECOND).await.unwrap();
    let error = act::write_term(&cluster.remote(0), &rule(1, "n1", &["n2"]), SECOND).await.unwrap_err();
    assert_eq!(error.to_string(), "write the term row on node n1: not in time: 0 of 1 standbys have flushed it");
}

/// Stops the checkpointer in the midst of a checkpoint, as a slow disk does.
async fn stop_in_checkpoint(server: &common::Server) -> Pid {
    let client = server.connect().await;
    client.batch_execute("SET synchronous_commit = local").await.unwrap();
    let about = "SELECT pid, wait_event FROM pg_stat_activity WHERE backend_type = 'checkpointer'";
    let pid = Pid::from_raw(client.query_one(about, &[]).await.unwrap().get(0));
    for attempt in 0..60 {
        client
            .batch_execute("CREATE TABLE IF NOT EXISTS dirty AS SELECT generate_series(1, 100000) AS n")
            .await
            .unwrap();
        client.batch_execute("UPDATE dirty SET n = n + 1").await.unwrap();
        let other = server.connect().await;
        let checkpoint = tokio::spawn(async move { other.batch_execute("CHECKPOINT").await });
        // how soon it begins, and how long it takes, is the machine's affair
        tokio::time::sleep(Duration::from_millis(1 + attempt % 12)).await;
        kill(pid, Signal::SIGSTOP).unwrap();
        // Stopped with a lock in its hands that others need, it is of no use: nobody could do anything.
        let look = tokio::time::timeout(SECOND / 2, async {
            let wait: Option<String> = client.query_one(about, &[]).await.unwrap().get(1);
            client.batch_execute("INSERT INTO dirty VALUES (0)").await.unwrap();
            server.connect().await.batch_execute("SELECT count(*) FROM dirty").await.unwrap();
            wait.as_deref() != Some("CheckpointerMain")
        });
        if look.await == Ok(true) {
            return pid;
        }
        kill(pid, Signal::SIGCONT).unwrap();
        checkpoint.await.unwrap().unwrap();
    }
    panic!("no checkpoint took long enough to be stopped");
}

#[tokio::test]
async fn names_are_not_in_force_before_the_checkpointer_has_read_them() {
    let cluster = Cluster::start(1).await;
    let (n1, client) = (cluster.remote(0), cluster.servers[0].connect().await);
    let nobody_follows = ["n9".to_owned()];
    client.batch_execute("CREATE TABLE t (v int)").await.unwrap();
    act::set_rule(&n1, 0, &[], ready(Ok(())), 5 * SECOND).await.unwrap();
    let checkpointer = stop_in_checkpoint(&cluster.servers[0]).await;
    for _ in 0..2 {
        let error = act::set_rule(&n1, 1, &nobody_follows, ready(Ok(())), SECOND).await.unwrap_err();
        assert!(error.to_string().contains("the checkpointer is busy"), "{error}");
        assert!(acknowledges(&client).await, "PostgreSQL waits by now: this shows nothing");
    }
    kill(checkpointer, Signal::SIGCONT).unwrap();
    act::set_rule(&n1, 1, &nobody_follows, ready(Ok(())), 5 * SECOND).await.unwrap();
    assert!(!acknowledges(&client).await);
    // from one name to another nothing has to be waited for
    let checkpointer = stop_in_checkpoint(&cluster.servers[0]).await;
    act::set_rule(&n1, 1, &["n8".to_owned()], ready(Ok(())), 5 * SECOND).await.unwrap();
    kill(checkpointer, Signal::SIGCONT).unwrap();
}

#[tokio::test]
async fn an_order_whose_claim_is_another_ones_by_now_changes_nothing() {
    let cluster = Cluster::start(1).await;
    let gone = || ready(Err("term 7 was claimed meanwhile".to_owned()));
    let cohort = ["n2".to_owned()];
    let settings = async |server: usize| {
        let text = "SELECT current_setting('synchronous_standby_names') || current_setting('primary_conninfo')";
        cluster.servers[server].connect().await.query_one(text, &[]).await.unwrap().get::<_, String>(0)
    };
    let before = (settings(0).await, settings(1).await);
    let error = act::set_rule(&cluster.remote(0), 2, &cohort, gone(), 5 * SECOND).await.unwrap_err();
    assert!(error.to_string().contains("not done: term 7 was claimed meanwhile"), "{error}");
    let elsewhere = Address::Tcp("192.0.2.1".into(), 5432);
    let unmarked = Provided { mark: None, still_at: None };
    let error =
        act::repoint(&cluster.remote(1), &elsewhere, &replication(), unmarked, gone(), SECOND).await.unwrap_err();
    assert!(matches!(error.cause, Cause::Guard(_)), "{error}");
    assert_eq!((settings(0).await, settings(1).await), before);
}

#[tokio::test]
async fn a_quarantined_primary_is_read_only_and_a_term_write_lifts_it() {
    let cluster = Cluster::start(1).await;
    let session = cluster.servers[0].connect().await;
    act::prepare_term(&cluster.remote(0), 5 * SECOND).await.unwrap();
    assert_eq!(act::quarantine(&cluster.remote(0), 5 * SECOND).await.unwrap(), 1);
    tokio::time::sleep(Duration::from_millis(50)).await;
    assert!(session.batch_execute("SELECT 1").await.is_err(), "its sessions were ended");
    let session = cluster.servers[0].connect().await;
    let error = session.batch_execute("CREATE TABLE t (v int)").await.unwrap_err();
    assert_eq!(error.code().unwrap().code(), "25006");
    act::write_term(&cluster.remote(0), &rule(1, "n1", &["n2"]), 5 * SECOND).await.unwrap();
    until("sessions may write again", async || session.batch_execute("CREATE TABLE IF NOT EXISTS t ()").await.is_ok())
        .await;
}

#[tokio::test]
async fn a_coordinator_that_sleeps_loses_the_nodes_lock() {
    let cluster = Cluster::start(1).await;
    let sleeper = cluster.servers[1].connect().await;
    sleeper.batch_execute("SELECT pg_advisory_lock(8099569398603408505)").await.unwrap();
    let evidence = act::fence(&cluster.remote(1), 2, 5 * SECOND).await.unwrap();
    assert!(evidence.received.is_some());
    assert!(sleeper.batch_execute("SELECT 1").await.is_err(), "its session was ended");
    // and the lock was given back
    act::fence(&cluster.remote(1), 3, 5 * SECOND).await.unwrap();
    let free = cluster.servers[1].connect().await;
    let held = "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory'";
    assert_eq!(free.query_one(held, &[]).await.unwrap().get::<_, i64>(0), 0);
}
