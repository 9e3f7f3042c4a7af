//! Three nodes that Patroni runs, etcd, and HAProxy with the configuration that Patroni's repository shows.

use std::fmt::Write as _;
use std::net::SocketAddr;
use std::path::Path;
use std::process::{Child, Stdio};
use std::time::Duration;

use harness::endpoint::Endpoint;
use harness::etcd::Etcd;
use harness::folder::Folder;
use harness::host::{self, Host, Network, Way};
use harness::patroni::{Pace, Patroni};
use harness::port::Port;
use harness::{process, wait_for, writers};
use tokio_postgres::Client;

use crate::{Event, PATIENCE, System};

pub(crate) struct WithPatroni {
    patroni: Patroni,
    haproxy: HaProxy,
    hosts: Vec<Host>,
    leader: usize,
    _etcd: Vec<Etcd>,
    _network: Network,
}

impl WithPatroni {
    pub(crate) async fn start(pace: Pace) -> Self {
        let mut network = Network::new();
        let hosts: Vec<Host> = (0..5).map(|_| network.host()).collect();
        let etcd = Etcd::on(&hosts[3..4]).await;
        let patroni = Patroni::start(&hosts[..3], &etcd[0].endpoint(), pace).await;
        let leader = patroni.leader().expect("it was just started");
        let table = format!("{}; GRANT ALL ON written TO app", writers::TABLE);
        let client = patroni.superuser(leader, "app").client().await;
        client.batch_execute(&table).await.expect("a table can be made");
        let haproxy = HaProxy::start(&hosts[4], &patroni).await;
        Self { patroni, haproxy, hosts, leader, _etcd: etcd, _network: network }
    }

    /// The leader by its agent, or the one that follows it.
    async fn led(&self) -> usize {
        wait_for("Patroni's leader", PATIENCE, || async { self.patroni.leader() }).await
    }
}

impl System for WithPatroni {
    fn endpoint(&self) -> Endpoint {
        let host = self.haproxy.place.ip().to_string();
        Endpoint { host, ..Endpoint::app(self.haproxy.place.port()) }
    }

    async fn primary(&self) -> Client {
        self.patroni.superuser(self.led().await, "app").client().await
    }

    async fn bring(&mut self, event: Event) {
        match event {
            Event::Killed => self.patroni.kill(self.leader),
            Event::Silent => {
                let host = &self.hosts[self.leader];
                host.cut(&host::others(&self.hosts, &[host]), Way::Both);
            }
            Event::Switchover => {
                let answer = self.patroni.switch_over(self.leader);
                assert!(answer.starts_with("HTTP/1.0 200"), "{answer}");
            }
        }
    }

    async fn restore(&mut self) {
        let old = self.leader;
        self.leader = self.led().await;
        assert_ne!(old, self.leader, "the leader has changed");
        self.hosts[old].heal();
        if self.hosts[old].processes().is_empty() {
            self.patroni.restart(old);
        }
        self.patroni.whole().await;
        // until HAProxy has seen them all
        tokio::time::sleep(Duration::from_secs(10)).await;
    }
}

/// HAProxy in front of the leader; ended when dropped.
struct HaProxy {
    process: Child,
    place: SocketAddr,
    _port: Port,
    _folder: Folder,
}

impl HaProxy {
    async fn start(host: &Host, patroni: &Patroni) -> Self {
        let (folder, port) = (Folder::new("haproxy"), Port::new());
        let place = SocketAddr::from((host.address(), port.number()));
        let mut text = format!(
            "global\n  maxconn 200\ndefaults\n  mode tcp\n  retries 2\n  timeout client 30m\n  timeout connect 4s\n  \
             timeout server 30m\n  timeout check 5s\nlisten primary\n  bind {place}\n  option httpchk OPTIONS /primary\n  \
             http-check expect status 200\n  default-server inter 3s fall 3 rise 2 on-marked-down shutdown-sessions\n"
        );
        for ((name, node), agent) in patroni.nodes().iter().zip(patroni.agents()) {
            let _ = writeln!(text, "  server {name} {node} maxconn 100 check port {}", agent.port());
        }
        let mut command = process::bound_to_us(Path::new("/usr/sbin/haproxy"));
        command.arg("-db").arg("-f").arg(folder.write("haproxy.cfg", &text));
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        let mut process = host.inside(|| command.spawn()).expect("HAProxy can be run");
        process::listens(&mut process, place, Duration::from_secs(10), String::new).await;
        Self { process, place, _port: port, _folder: folder }
    }
}

impl Drop for HaProxy {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}
