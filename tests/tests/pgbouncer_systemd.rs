//! The program called as `pgbouncer` under systemd: sockets that are passed, and what it tells.

use std::os::unix::net::UnixDatagram;
use std::time::Duration;

use harness::endpoint::{Endpoint, value};
use harness::pgbouncer::PgBouncer;
use harness::postgres::{Node, Programs};
use nix::sys::signal::Signal;

/// Patience with what has to be told.
const SOON: Duration = Duration::from_secs(15);

/// The next that is told, of those that begin with this.
fn told(heard: &UnixDatagram, wanted: &str) -> String {
    let mut part = [0; 4096];
    loop {
        let length = heard.recv(&mut part).unwrap_or_else(|error| panic!("waited for {wanted}: {error}"));
        let text = String::from_utf8_lossy(&part[..length]).into_owned();
        if text.starts_with(wanted) {
            return text;
        }
    }
}

#[test]
fn systemd_passes_sockets_and_is_told_what_becomes_of_them() {
    harness::run(60, async {
        let node = Node::primary(&Programs::installed()).await;
        let databases = format!("app = host=127.0.0.1 port={}", node.port());
        let settings = "auth_type = scram-sha-256\nstats_period = 1\n";
        let users = "\"admin\" \"admin-secret\"\n\"app\" \"app-secret\"\n";
        let (mut bouncer, heard) = PgBouncer::activated(&databases, settings, users);
        heard.set_read_timeout(Some(SOON)).expect("a socket can be impatient");
        let by_tcp = bouncer.endpoint("app", "app-secret", "app");
        let by_unix = Endpoint { host: bouncer.folder().path().display().to_string(), ..by_tcp.clone() };
        for endpoint in [by_tcp, by_unix] {
            let come = || async { endpoint.connect().await.ok() };
            let client = harness::wait_for("to be let in", SOON, come).await;
            assert_eq!(value(&client, "SELECT current_user").await, "app");
        }
        told(&heard, "READY=1");
        for ignored in ["cf_listen_addr", "cf_unix_socket_dir"] {
            bouncer.logged(0, &format!("sockets passed from service manager, {ignored} ignored")).await;
        }
        assert!(told(&heard, "STATUS=stats: ").contains(" queries/s"));
        bouncer.signal(Signal::SIGHUP);
        assert!(told(&heard, "RELOADING=1").contains("\nMONOTONIC_USEC="));
        told(&heard, "READY=1");
        bouncer.signal(Signal::SIGTERM);
        told(&heard, "STOPPING=1");
        assert!(bouncer.ended().await.success());
    });
}
