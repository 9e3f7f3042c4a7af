//! docs/privileges.md is enough: its text is run, and then everything is done with that role.

#![allow(clippy::unwrap_used)] // a test may panic

mod common;

use std::future::ready;

use common::{Cluster, SECOND, config, login, replication, snapshot};
use topology::act::{self, Provided, Remote};
use topology::{Monitor, ReplicationLogin, TermRow};

const PRIVILEGES: &str = include_str!("../../docs/privileges.md");

#[tokio::test]
async fn the_documented_privileges_are_enough_for_every_action() {
    let cluster = Cluster::start(1).await;
    let sql = PRIVILEGES.split("```").nth(1).unwrap().strip_prefix("sql").unwrap();
    let superuser = cluster.servers[0].connect().await;
    superuser.batch_execute(sql).await.unwrap();
    let remote = |n| Remote::new(cluster.connector(n, "pgsteady"));
    let (n1, n2) = (remote(0), remote(1));
    act::prepare_term(&n1, 5 * SECOND).await.unwrap();
    let rule = TermRow { term: 1, leader: "n1".into(), cohort: vec!["n2".into()], k: 1 };
    act::write_term(&n1, &rule, 5 * SECOND).await.unwrap();
    act::set_rule(&n1, 0, &[], ready(Ok(())), 5 * SECOND).await.unwrap();
    act::set_rule(&n1, 1, &rule.cohort, ready(Ok(())), 5 * SECOND).await.unwrap();
    act::barrier(&n1, &rule, 5 * SECOND).await.unwrap();
    act::quarantine(&n1, 5 * SECOND).await.unwrap();
    act::write_term(&n1, &rule, 5 * SECOND).await.unwrap();
    act::checkpoint(&n1, 30 * SECOND).await.unwrap();

    let standby = cluster.servers[1].connect().await;
    standby.batch_execute("SELECT pg_wal_replay_pause()").await.unwrap();
    standby.batch_execute("ALTER SYSTEM SET recovery_min_apply_delay = '1min'").await.unwrap();
    standby.batch_execute("SELECT pg_reload_conf()").await.unwrap();
    let evidence = act::fence(&n2, 2, 5 * SECOND).await.unwrap();
    assert!(!evidence.escalated.is_empty());
    let own = Provided { mark: Some(2), still_at: None };
    act::repoint(&n2, &cluster.servers[0].address(), &replication(), own, ready(Ok(())), 5 * SECOND).await.unwrap();

    // without pg_monitor nobody sees a receiver: that must not pass for a fence
    let superuser = cluster.servers[0].connect().await;
    superuser.batch_execute("CREATE ROLE blind LOGIN; GRANT pg_read_all_settings TO blind").await.unwrap();
    let blind = Remote::new(cluster.connector(1, "blind"));
    drop(cluster.servers[1].connect_as("blind").await); // the role is replicated
    let failed = act::fence(&blind, 3, SECOND).await.unwrap_err();
    assert!(failed.error.to_string().contains("needs pg_monitor"), "{}", failed.error);
}

#[tokio::test]
async fn the_documented_roles_see_a_failover_through() {
    let mut cluster = Cluster::start(2).await;
    let sql = PRIVILEGES.split("```").nth(1).unwrap().strip_prefix("sql").unwrap();
    cluster.servers[0].connect().await.batch_execute(sql).await.unwrap();
    let mut config = config(&cluster);
    config.login = login("pgsteady");
    config.replication = ReplicationLogin { user: "replicator".into(), ..replication() };
    let (watch, _monitor) = Monitor::start(&config).unwrap();
    let before = snapshot(&watch, "n1 is adopted", |t| t.primary == Some(0)).await;
    cluster.servers[0].kill_tree();
    let after = snapshot(&watch, "another primary", |t| t.epoch > before.epoch && t.primary.is_some()).await;
    let client = cluster.servers[after.primary.unwrap()].connect().await;
    client.batch_execute("CREATE TABLE t (v int)").await.unwrap();
}
