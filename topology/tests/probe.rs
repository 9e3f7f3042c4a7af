//! What the probe reads on real servers, and how it tells the ways apart in which a node does not answer.

#![allow(clippy::unwrap_used)] // a test may panic

mod common;

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use common::{Cluster, SECOND};
use nix::sys::signal::Signal;
use openssl::ssl::{SslConnector, SslMethod};
use tokio::sync::{Notify, mpsc};
use topology::act;
use topology::probe::{Pace, Probe, Report};
use topology::{Address, Connector, Encryption, Failure, Identity, Login, Reading, TermRow};

struct Probing {
    reports: mpsc::Receiver<Report>,
    nudge: Arc<Notify>,
    begun: Arc<AtomicU64>,
}

/// A probe with so slow a tick that whatever comes soon came without it.
fn probing(connector: Connector, interval: Duration) -> Probing {
    let (sender, reports) = mpsc::channel(16);
    let (nudge, begun) = (Arc::new(Notify::new()), Arc::new(AtomicU64::new(0)));
    let pace = Pace { interval, timeout: SECOND / 2 };
    let probe = Probe {
        node: 0,
        connector,
        pace,
        reports: sender,
        nudge: nudge.clone(),
        samples_begun: begun.clone(),
        identity: Identity::NOBODY,
    };
    tokio::spawn(probe.run());
    Probing { reports, nudge, begun }
}

impl Probing {
    async fn report(&mut self) -> Report {
        tokio::time::timeout(10 * SECOND, self.reports.recv()).await.unwrap().unwrap()
    }

    async fn reading(&mut self) -> Reading {
        self.report().await.outcome.unwrap()
    }

    async fn failure(&mut self) -> Failure {
        self.report().await.outcome.unwrap_err()
    }
}

#[tokio::test]
async fn both_roles_are_read_with_and_without_the_term_row() {
    let cluster = Cluster::start(1).await;
    let mut primary = probing(cluster.connector(0, "postgres"), 60 * SECOND);
    let mut standby = probing(cluster.connector(1, "postgres"), 60 * SECOND);
    let (p, s) = (primary.reading().await, standby.reading().await);
    assert_eq!(p.system, s.system);
    assert_eq!((p.in_recovery, s.in_recovery, p.timeline, s.timeline), (false, true, 1, 1));
    assert!(p.inserted.is_some() && s.inserted.is_none());
    assert!(s.replayed.unwrap() <= p.inserted.unwrap() && s.received.is_some());
    assert_eq!(s.upstream, Some(("127.0.0.1".into(), cluster.servers[0].port)));
    assert_eq!(s.receiver.as_ref().unwrap().status, "streaming");
    assert!(s.receiver_process && !p.receiver_process && p.upstream.is_none());
    assert_eq!(p.synchronous_standby_names, "ANY 1 (\"n2\")");
    assert_eq!((p.walsenders.len(), p.walsenders[0].name.as_str(), p.walsenders[0].sync.as_str()), (1, "n2", "quorum"));
    assert!(p.walsenders[0].flushed <= p.inserted.unwrap());
    assert_eq!((p.term, s.term), (None, None));

    let row = TermRow { term: 4, leader: "n1".into(), cohort: vec!["n2".into()], k: 1 };
    act::prepare_term(&cluster.remote(0), 5 * SECOND).await.unwrap();
    act::write_term(&cluster.remote(0), &row, 5 * SECOND).await.unwrap();
    primary.nudge.notify_one();
    assert_eq!(primary.reading().await.term, Some(row.clone()));
    common::until("the standby shows it", async || {
        standby.nudge.notify_one();
        standby.reading().await.term.as_ref() == Some(&row)
    })
    .await;
    let client = cluster.servers[0].connect().await;
    client.batch_execute("BEGIN; LOCK pgsteady.term IN ACCESS EXCLUSIVE MODE").await.unwrap();
    primary.nudge.notify_one();
    let locked = primary.report().await;
    assert!(!matches!(locked.outcome, Ok(Reading { term: Some(_), .. })), "locked: {locked:?}");
    client.batch_execute("DROP SCHEMA pgsteady CASCADE; COMMIT").await.unwrap();
    common::until("it is read without the table", async || {
        primary.nudge.notify_one();
        matches!(primary.report().await.outcome, Ok(Reading { term: None, .. }))
    })
    .await;
    let begun = primary.begun.load(Ordering::Acquire);
    primary.nudge.notify_one();
    assert!(primary.report().await.number > begun);
}

#[tokio::test]
async fn an_end_is_noticed_at_once_and_silence_refusal_and_denial_are_told_apart() {
    let mut cluster = Cluster::start(0).await;
    let connector = cluster.connector(0, "postgres");
    let mut probe = probing(connector.clone(), 60 * SECOND);
    let before = probe.reading().await;
    let client = cluster.servers[0].connect().await;
    let end = "SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity WHERE application_name LIKE 'pgsteady%'";
    let ended = Instant::now();
    client.batch_execute(end).await.unwrap();
    let lost = probe.failure().await;
    assert!(matches!(&lost, Failure::Lost(why) if why.contains("57P01")), "{lost:?}");
    let again = probe.reading().await;
    assert!(ended.elapsed() < SECOND, "without a tick");
    assert_eq!(again.started, before.started);

    cluster.servers[0].signal_tree(Signal::SIGSTOP);
    probe.nudge.notify_one();
    assert_eq!(probe.failure().await, Failure::Silent(SECOND / 2));
    cluster.servers[0].signal_tree(Signal::SIGCONT);
    let mut stranger = probing(cluster.connector(0, "nobody"), 60 * SECOND);
    let denied = stranger.failure().await;
    assert!(matches!(&denied, Failure::Denied(why) if why.starts_with("28")), "{denied:?}");

    let mut probe = probing(connector, 60 * SECOND);
    probe.reading().await;
    let killed = Instant::now();
    cluster.servers[0].kill_tree();
    let lost = probe.failure().await;
    assert!(matches!(lost, Failure::Lost(_)), "{lost:?}");
    let refused = probe.failure().await;
    assert!(matches!(refused, Failure::Refused(_)), "{refused:?}");
    assert!(killed.elapsed() < SECOND / 2, "{:?}", killed.elapsed());
}

#[tokio::test]
async fn a_crash_restart_shows_and_a_unix_socket_serves() {
    let cluster = Cluster::start(0).await;
    let mut connector = cluster.connector(0, "postgres");
    connector.address = Arc::new(Address::Unix(cluster.folder.path().into(), cluster.servers[0].port));
    let mut probe = probing(connector.clone(), SECOND / 20);
    let before = probe.reading().await;
    let client = cluster.servers[0].connect().await;
    let pid: i32 = client.query_one("SELECT pg_backend_pid()", &[]).await.unwrap().get(0);
    nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid), Signal::SIGKILL).unwrap();
    common::until(
        "it is another incarnation",
        async || matches!(probe.report().await.outcome, Ok(reading) if reading.started != before.started),
    )
    .await;
    connector.address = Arc::new(Address::Unix("/nowhere".into(), 1));
    let refused = probing(connector.clone(), SECOND).failure().await;
    assert!(matches!(refused, Failure::Refused(_)), "{refused:?}");
    connector.address = Arc::new(Address::Tcp("no.such.host.invalid".into(), 1));
    let unknown = probing(connector, SECOND).failure().await;
    assert!(matches!(unknown, Failure::Unreachable(_) | Failure::Silent(_)), "{unknown:?}");
}

#[tokio::test]
async fn the_monitor_speaks_tls_and_checks_whom_it_speaks_to() {
    let mut cluster = Cluster::start(0).await;
    let certificate = cluster.servers[0].certify();
    cluster.servers[0].stop(Signal::SIGQUIT);
    cluster.servers[0].start();
    drop(cluster.servers[0].connect().await);
    let tls = |host: &str, verify_host| {
        let mut tls = SslConnector::builder(SslMethod::tls()).unwrap();
        tls.set_ca_file(&certificate).unwrap();
        let mut connector = cluster.connector(0, "postgres");
        connector.address = Arc::new(Address::Tcp(host.into(), cluster.servers[0].port));
        let encryption = Encryption::Require { connector: tls.build(), verify_host };
        connector.login = Arc::new(Login { encryption, ..common::login("postgres") });
        connector
    };
    for (host, verify_host) in [("localhost", true), ("127.0.0.1", false)] {
        let server = tls(host, verify_host).connect().await.unwrap();
        let ssl = "SELECT ssl FROM pg_stat_ssl WHERE pid = pg_backend_pid()";
        assert!(server.client().query_one(ssl, &[]).await.unwrap().get::<_, bool>(0));
    }
    let wrong_name = tls("127.0.0.1", true).connect().await.unwrap_err();
    assert!(matches!(wrong_name, Failure::Unreachable(_)), "{wrong_name:?}");
}
