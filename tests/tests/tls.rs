//! TLS on both sides, with libpq's sslmodes as psql and PostgreSQL understand them, and certificates replaced at run time.

use std::path::Path;
use std::process::{Command, Output};
use std::time::Duration;

use harness::certificates::Certificate;
use harness::folder::Folder;
use harness::pgsteady::{Config, Pgsteady};
use harness::postgres::{Node, Programs};

/// psql over TCP with these parameters of libpq; gives what it printed, or its complaint.
fn psql(pgsteady: &Pgsteady, parameters: &str, sql: &str) -> Result<String, String> {
    let conninfo = format!("{} {parameters}", pgsteady.endpoint().conninfo());
    let Output { status, stdout, stderr } =
        Command::new("psql").args(["-X", "-A", "-t", "-d", &conninfo, "-c", sql]).output().expect("psql can be run");
    let text = |bytes| String::from_utf8_lossy(bytes).trim().to_owned();
    if status.success() { Ok(text(&stdout)) } else { Err(text(&stderr)) }
}

fn encrypted(pgsteady: &Pgsteady, parameters: &str) -> Result<bool, String> {
    psql(pgsteady, parameters, "\\conninfo").map(|said| said.contains("SSL connection"))
}

fn listening(node: &Node, sslmode: &str, pair: &(std::path::PathBuf, std::path::PathBuf)) -> Config {
    Config::single(node)
        .set("listen.tls.sslmode", sslmode)
        .set("listen.tls.certificate", pair.0.display().to_string())
        .set("listen.tls.key", pair.1.display().to_string())
}

#[test]
fn clients_get_the_tls_they_ask_for() {
    harness::run(60, async {
        let node = Node::primary(&Programs::installed()).await;
        let folder = Folder::new("tls");
        let authority = Certificate::authority("the authority");
        let (root, _) = authority.write(&folder, "root");
        let root = format!("sslrootcert={}", root.display());
        let pair = authority.sign("localhost").write(&folder, "server");
        let pgsteady = Pgsteady::start(&listening(&node, "prefer", &pair)).await;
        for mode in ["prefer", "require"] {
            assert_eq!(encrypted(&pgsteady, &format!("sslmode={mode}")), Ok(true), "{mode}");
        }
        assert_eq!(encrypted(&pgsteady, "sslmode=disable"), Ok(false));
        assert_eq!(encrypted(&pgsteady, &format!("sslmode=verify-ca {root}")), Ok(true));
        assert_eq!(
            encrypted(&pgsteady, &format!("sslmode=verify-full host=localhost hostaddr=127.0.0.1 {root}")),
            Ok(true)
        );
        assert!(encrypted(&pgsteady, &format!("sslmode=verify-full {root}")).is_err(), "127.0.0.1 is not in it");
        assert_eq!(encrypted(&pgsteady, "sslmode=require channel_binding=require"), Ok(true));
        // Large in both directions.
        let sql = format!("SELECT length('{}'), length(repeat('y', 3000000))", "x".repeat(100_000));
        assert_eq!(psql(&pgsteady, "sslmode=require", &sql), Ok("100000|3000000".into()));
    });
}

#[test]
fn a_listener_that_requires_tls_takes_nothing_else() {
    harness::run(60, async {
        let node = Node::primary(&Programs::installed()).await;
        let folder = Folder::new("tls");
        let pair = Certificate::authority("a").sign("localhost").write(&folder, "server");
        let pgsteady = Pgsteady::start(&listening(&node, "require", &pair)).await;
        assert_eq!(encrypted(&pgsteady, "sslmode=require"), Ok(true));
        assert!(encrypted(&pgsteady, "sslmode=disable").is_err());
    });
}

#[test]
fn a_listener_can_demand_a_certificate_of_the_client() {
    harness::run(60, async {
        let node = Node::primary(&Programs::installed()).await;
        let folder = Folder::new("tls");
        let (ours, others) = (Certificate::authority("ours"), Certificate::authority("others"));
        let (root, _) = ours.write(&folder, "root");
        let pair = ours.sign("localhost").write(&folder, "server");
        let config = listening(&node, "verify-ca", &pair).set("listen.tls.ca", root.display().to_string());
        let pgsteady = Pgsteady::start(&config).await;
        let with = |(certificate, key): &(std::path::PathBuf, std::path::PathBuf)| {
            format!("sslmode=require sslcert={} sslkey={}", certificate.display(), key.display())
        };
        // psql insists that the owner of the key is who runs it.
        let own = |certificate: Certificate, name| {
            let pair = certificate.write(&folder, name);
            let _ = std::os::unix::fs::chown(&pair.1, Some(nix::unistd::getuid().as_raw()), None);
            pair
        };
        assert_eq!(encrypted(&pgsteady, &with(&own(ours.sign("app"), "good"))), Ok(true));
        assert!(encrypted(&pgsteady, &with(&own(others.sign("app"), "foreign"))).is_err());
        assert!(encrypted(&pgsteady, "sslmode=require sslcert=/nowhere sslkey=/nowhere").is_err());
    });
}

#[test]
fn a_new_certificate_is_shown_after_a_reload_and_nobody_is_dropped() {
    harness::run(60, async {
        let node = Node::primary(&Programs::installed()).await;
        let folder = Folder::new("tls");
        let (before, after) = (Certificate::authority("before"), Certificate::authority("after"));
        let verify = |path: &Path| format!("sslmode=verify-ca sslrootcert={}", path.display());
        let old = verify(&before.write(&folder, "before").0);
        let new = verify(&after.write(&folder, "after").0);
        let pair = before.sign("localhost").write(&folder, "server");
        let config = listening(&node, "prefer", &pair);
        let pgsteady = Pgsteady::start(&config).await;
        assert_eq!(encrypted(&pgsteady, &old), Ok(true));
        assert!(encrypted(&pgsteady, &new).is_err());
        let client = pgsteady.endpoint().client().await;
        after.sign("localhost").write(&folder, "server");
        pgsteady.reload(&config);
        let shown = || async { (encrypted(&pgsteady, &new) == Ok(true)).then_some(()) };
        harness::wait_for("the new certificate", Duration::from_secs(10), shown).await;
        assert!(encrypted(&pgsteady, &old).is_err());
        assert_eq!(harness::endpoint::value(&client, "SELECT 1").await, "1");

        // A file that is no certificate changes nothing.
        folder.write("server.crt", "not a certificate\n");
        let length = pgsteady.reload(&config);
        pgsteady.logged(length, &["server.crt"]).await;
        assert_eq!(encrypted(&pgsteady, &new), Ok(true));
    });
}

/// Whether the servers of `app` are encrypted, or why there are none.
fn to_server(pgsteady: &Pgsteady) -> Result<String, String> {
    psql(pgsteady, "sslmode=disable", "SELECT ssl FROM pg_stat_ssl WHERE pid = pg_backend_pid()")
}

#[test]
fn servers_are_reached_with_the_sslmode_that_is_asked_for() {
    harness::run(120, async {
        let folder = Folder::new("tls");
        let (ours, others) = (Certificate::authority("ours"), Certificate::authority("others"));
        let (root, foreign) = (ours.write(&folder, "root").0, others.write(&folder, "foreign").0);
        let pair = ours.sign("localhost").write(&folder, "server");
        let node = Node::with_tls(&Programs::installed(), &pair).await;
        let cases: [(&str, &str, Option<&Path>, Option<&str>); 8] = [
            ("disable", "127.0.0.1", None, Some("f")),
            ("prefer", "127.0.0.1", None, Some("t")),
            ("require", "127.0.0.1", None, Some("t")),
            ("verify-ca", "127.0.0.1", Some(&root), Some("t")),
            ("verify-ca", "127.0.0.1", Some(&foreign), None),
            ("verify-full", "localhost", Some(&root), Some("t")),
            ("verify-full", "127.0.0.1", Some(&root), None),
            ("verify-full", "localhost", Some(&foreign), None),
        ];
        for (mode, host, ca, expected) in cases {
            let mut config = Config::single(&node)
                .set("database.app.host", host)
                .set("database.app.tls.sslmode", mode)
                .set("limits.query_wait_timeout", "2s");
            if let Some(ca) = ca {
                config = config.set("database.app.tls.ca", ca.display().to_string());
            }
            let pgsteady = Pgsteady::start(&config).await;
            let found = to_server(&pgsteady);
            assert_eq!(found.as_deref().ok(), expected, "{mode} {host} {ca:?}: {found:?}");
        }
    });
}

#[test]
fn a_server_without_tls_is_refused_where_tls_is_required() {
    harness::run(60, async {
        let node = Node::primary(&Programs::installed()).await;
        for (mode, expected) in [("prefer", Ok("f".to_owned())), ("require", Err(()))] {
            let config =
                Config::single(&node).set("database.app.tls.sslmode", mode).set("limits.query_wait_timeout", "2s");
            let pgsteady = Pgsteady::start(&config).await;
            assert_eq!(to_server(&pgsteady).map_err(|_| ()), expected, "{mode}");
        }
    });
}
