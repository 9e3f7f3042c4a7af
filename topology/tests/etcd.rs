//! The store on a real etcd: writes are compare-and-set, whoever writes, and what is no record is left alone.

#![allow(clippy::unwrap_used)] // a test may panic

use std::net::TcpStream;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use decision::{Cluster, Member, Record, Term};
use tempfile::TempDir;
use tokio::task::JoinSet;
use topology::node::Port;
use topology::store::{EtcdConfig, EtcdStore, StoreError, Swap};
use topology::{Endpoint, TlsFiles};

struct Etcd {
    process: Child,
    client: Port,
    _peer: Port,
    _folder: TempDir,
}

impl Drop for Etcd {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

impl Etcd {
    fn start() -> Self {
        let (client, peer) = (Port::reserve().unwrap(), Port::reserve().unwrap());
        let folder = tempfile::tempdir().unwrap();
        let url = |port: &Port| format!("http://127.0.0.1:{}", port.number());
        let mut command = Command::new("etcd");
        command.arg("--data-dir").arg(folder.path());
        command.args(["--listen-client-urls", &url(&client), "--advertise-client-urls", &url(&client)]);
        command.args(["--listen-peer-urls", &url(&peer), "--initial-advertise-peer-urls", &url(&peer)]);
        command.args(["--initial-cluster", &format!("default={}", url(&peer))]);
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        let process = command.spawn().expect("etcd can be run: package etcd-server");
        let started = Instant::now();
        while TcpStream::connect(("127.0.0.1", client.number())).is_err() {
            assert!(started.elapsed() < Duration::from_secs(20), "etcd does not listen");
            std::thread::sleep(Duration::from_millis(20));
        }
        Self { process, client, _peer: peer, _folder: folder }
    }

    /// The store by which this etcd is reached after a member that is not there.
    fn store(&self, name: &str, nodes: &[&str]) -> EtcdStore {
        let member = |name: &&str| Member { name: (*name).into(), zone: String::new(), priority: 0 };
        let here = Endpoint { tls: false, host: "127.0.0.1".into(), port: self.client.number() };
        let config = EtcdConfig {
            endpoints: vec![Endpoint { port: 1, ..here.clone() }, here],
            prefix: "/pgsteady".into(),
            login: None,
            tls: TlsFiles::default(),
            lease: Duration::from_secs(6),
        };
        EtcdStore::new(&config, name, &Cluster::new(nodes.iter().map(member).collect()).unwrap())
    }
}

const NODES: [&str; 3] = ["a", "b", "c"];

#[tokio::test]
async fn writes_are_compare_and_set() {
    let etcd = Etcd::start();
    let (store, other) = (etcd.store("main", &NODES), etcd.store("main", &["c", "b", "a"]));
    assert_eq!(store.read().await, Ok(None));
    let Ok(Swap::Done(first)) = store.claim(Term(0), Term(1), false).await else { panic!("an empty store is term 0") };
    assert_eq!((first.claimed, first.revision), (Term(1), 1));
    assert_eq!(other.claim(Term(0), Term(1), false).await, Ok(Swap::Refused(first.clone())));
    assert_eq!(other.publish(&first).await, Ok(Swap::Refused(first.clone())), "revision 1 is taken");
    let next = Record { system_identifier: Some(u64::MAX), ..first.successor() };
    assert_eq!(other.publish(&next).await, Ok(Swap::Done(next.clone())));
    assert_eq!(store.read().await, Ok(Some(next)));
    assert_eq!(etcd.store("other", &NODES).read().await, Ok(None), "clusters have their own keys");
}

#[tokio::test]
async fn of_many_claims_one_is_stored() {
    let etcd = Etcd::start();
    let mut claims = JoinSet::new();
    for _ in 0..16 {
        let store = etcd.store("main", &NODES);
        claims.spawn(async move { store.claim(Term(0), Term(1), false).await });
    }
    let outcomes = claims.join_all().await;
    let done = outcomes.iter().filter(|outcome| matches!(outcome, Ok(Swap::Done(_)))).count();
    let refused =
        outcomes.iter().filter(|outcome| matches!(outcome, Ok(Swap::Refused(now)) if now.revision == 1)).count();
    assert_eq!((done, refused), (1, 15), "{outcomes:?}");
}

#[tokio::test]
async fn what_is_no_record_of_this_cluster_is_left_alone() {
    let etcd = Etcd::start();
    etcd.store("main", &NODES).claim(Term(0), Term(1), false).await.unwrap();
    let wrong = etcd.store("main", &["a", "b", "c"]);
    let put = |value: &str| {
        let endpoint = format!("127.0.0.1:{}", etcd.client.number());
        let arguments = ["--endpoints", &endpoint, "put", "/pgsteady/main/record", value];
        let put = Command::new("etcdctl").env("ETCDCTL_API", "3").args(arguments).output().unwrap();
        assert!(put.status.success(), "{put:?}");
    };
    for value in ["x", "{}", "{\"format\": 1}"] {
        put(value);
        let error = wrong.claim(Term(1), Term(2), false).await.unwrap_err();
        assert!(matches!(error, StoreError::Unreadable { .. }), "{error}");
    }
}

#[tokio::test]
async fn an_etcd_that_is_not_there_is_named() {
    let etcd = Etcd::start();
    let store = etcd.store("main", &NODES);
    drop(etcd);
    let error = store.read().await.unwrap_err().to_string();
    assert!(error.contains("http://127.0.0.1:1:") && error.contains("refused"), "{error}");
}
