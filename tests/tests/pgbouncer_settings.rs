//! Settings of PgBouncer's that no other test speaks of, each by what is to be seen of it from outside.

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::process::Command;
use std::time::{Duration, Instant};

use harness::certificates::Certificate;
use harness::endpoint::value;
use harness::folder::Folder;
use harness::pgbouncer::{PgBouncer, at, client_tls, show, shown};
use harness::postgres::{Node, Programs};
use harness::wait_for;
use harness::wire::{Raw, frame, query, startup};
use tokio_postgres::Client;

const USERS: &str = "\"admin\" \"admin-secret\"\n\"app\" \"app-secret\"\n";
const SOON: Duration = Duration::from_secs(10);
/// The connections of `app`.
const SERVERS: &str = "SELECT count(*) FROM pg_stat_activity WHERE usename = 'app'";

async fn started(databases: &str, settings: &str) -> (Node, PgBouncer) {
    let settings = format!("pool_mode = transaction\nauth_type = trust\n{settings}");
    PgBouncer::with_node(databases, &settings, USERS).await
}

async fn app(bouncer: &PgBouncer, database: &str) -> Client {
    bouncer.endpoint("app", "app-secret", database).client().await
}

/// What `ss` says of the sockets with this local port, with these options.
fn sockets(options: &str, port: u16) -> String {
    let listed = Command::new("ss").args([options, "-H", "sport", "=", &format!(":{port}")]).output();
    let listed = listed.expect("ss can be run: package iproute2");
    String::from_utf8_lossy(&listed.stdout).into_owned()
}

#[test]
fn the_kernel_has_the_options_of_sockets() {
    harness::run(60, async {
        let settings = "listen_backlog = 77\ntcp_keepalive = 1\ntcp_keepidle = 300\ntcp_keepintvl = 7\ntcp_keepcnt = 3\n\
                        tcp_user_timeout = 5000\ntcp_socket_buffer = 20000\nunix_socket_mode = 0711\n\
                        unix_socket_group = daemon\n";
        // only a member of a group, or root, may give a file to it
        let settings = if harness::folder::account().is_some() {
            settings.replace("unix_socket_group = daemon\n", "")
        } else {
            settings.to_owned()
        };
        let (_node, bouncer) = started("app = $", &settings).await;
        let client = app(&bouncer, "app").await;
        assert_eq!(value(&client, "SELECT 1").await, "1");
        let listening = sockets("-ltn", bouncer.port());
        assert_eq!(listening.split_whitespace().nth(2), Some("77"), "{listening}");
        let kept = || async {
            let connected = sockets("-tnoem", bouncer.port());
            ["keepalive,4min", "keepalive,5min"].iter().any(|timer| connected.contains(timer)).then_some(connected)
        };
        let connected = wait_for("the timer of a quiet connection", SOON, kept).await;
        // the kernel doubles what is asked for
        assert!(connected.contains("rb40000") && connected.contains("tb40000"), "{connected}");
        let file = bouncer.folder().path().join(format!(".s.PGSQL.{}", bouncer.port()));
        assert_eq!(fs::metadata(file).expect("a socket").permissions().mode() & 0o777, 0o711);
    });
}

#[test]
fn the_log_leaves_out_what_is_not_wanted() {
    harness::run(60, async {
        let quiet =
            "log_connections = 0\nlog_disconnections = 0\nlog_pooler_errors = 0\nlog_stats = 0\nstats_period = 1\n";
        let (_node, bouncer) = started("app = $", quiet).await;
        let client = app(&bouncer, "app").await;
        assert_eq!(value(&client, "SELECT 1").await, "1");
        drop(client);
        bouncer.endpoint("app", "app-secret", "nowhere").connect().await.expect_err("no such database");
        let console = bouncer.console().await;
        console.simple_query("PAUSE app").await.expect("a pause");
        bouncer.logged(0, "PAUSE 'app' command issued").await;
        tokio::time::sleep(Duration::from_millis(1500)).await;
        for unwanted in ["login attempt", "closing because", "pooler error", "stats:"] {
            assert!(!bouncer.log().contains(unwanted), "{unwanted}: {}", bouncer.log());
        }
        console.simple_query("SET log_stats = 1").await.expect("it is live");
        bouncer.logged(0, "LOG stats: ").await;
    });
}

#[test]
fn servers_take_turns_are_checked_and_reset_as_they_should() {
    harness::run(60, async {
        let settings = "server_round_robin = 1\nserver_check_delay = 0\nserver_check_query = SELECT nextval('checks')\n\
                        server_reset_query = SET work_mem = '3MB'\nserver_reset_query_always = 1\n";
        let (node, bouncer) = started("app = $", settings).await;
        node.sql("CREATE SEQUENCE checks").await;
        node.sql("GRANT ALL ON SEQUENCE checks TO app").await;
        let (one, two) = (app(&bouncer, "app").await, app(&bouncer, "app").await);
        for client in [&one, &two] {
            client.batch_execute("BEGIN").await.expect("a server each");
        }
        for client in [&one, &two] {
            client.batch_execute("COMMIT").await.expect("both come back");
        }
        let checks = async || {
            value(&node.client().await, "SELECT last_value FROM checks").await.parse::<i64>().expect("a number")
        };
        let before = checks().await;
        let mut servers = Vec::new();
        for _ in 0..4 {
            servers.push(value(&one, "SELECT pg_backend_pid()").await);
            // until both are idle again: else there is no choice
            tokio::time::sleep(Duration::from_millis(300)).await;
        }
        assert_eq!(value(&one, "SHOW work_mem").await, "3MB", "reset after each transaction");
        servers.sort();
        servers.dedup();
        assert_eq!(servers.len(), 2, "{servers:?}");
        assert!(checks().await >= before + 4, "each borrowing is checked");
    });
}

#[test]
fn a_pool_keeps_its_least_size_and_lets_go_of_the_rest() {
    harness::run(60, async {
        let databases = "app = $\nforced = $ dbname=app user=app password=app-secret min_pool_size=2\n* = $ dbname=app";
        let settings = "server_idle_timeout = 1\nautodb_idle_timeout = 1\nserver_fast_close = 1\nmin_pool_size = 0\n";
        let (node, bouncer) = started(databases, settings).await;
        let kept = || async { (node.sql(SERVERS).await == "2").then_some(()) };
        wait_for("the least of a forced user", SOON, kept).await;
        let (client, auto) = (app(&bouncer, "app").await, app(&bouncer, "by_template").await);
        assert_eq!((value(&client, "SELECT 1").await, value(&auto, "SELECT 1").await), ("1".into(), "1".into()));
        assert_eq!(node.sql(SERVERS).await, "4");
        wait_for("idle servers to go", SOON, kept).await;
        let console = bouncer.console().await;
        assert_eq!(shown(&console, "DATABASES", "name", "by_template", "database").await, "app");
        drop(auto);
        let gone = || async {
            let rows = show(&console, "DATABASES").await;
            rows.iter().all(|row| row[0].1 != "by_template").then_some(())
        };
        wait_for("what the template made to go", SOON, gone).await;
    });
}

#[test]
fn another_file_is_read_when_it_is_named() {
    harness::run(60, async {
        let (_node, bouncer) = started("app = $", "").await;
        let file = bouncer.folder().path().join("pgbouncer.ini");
        let text = fs::read_to_string(&file).expect("its file");
        assert_eq!(fs::metadata(&file).expect("its file").uid(), nix::unistd::Uid::effective().as_raw());
        let other = bouncer.folder().write("other.ini", &format!("{text}\nquery_timeout = 77\n"));
        let console = bouncer.console().await;
        assert_eq!(shown(&console, "CONFIG", "key", "query_timeout", "value").await, "0");
        console.simple_query(&format!("SET conffile = '{}'", other.display())).await.expect("it is live");
        console.simple_query("RELOAD").await.expect("the other file is good");
        assert_eq!(shown(&console, "CONFIG", "key", "query_timeout", "value").await, "77");
        assert_eq!(shown(&console, "CONFIG", "key", "conffile", "value").await, other.display().to_string());
    });
}

#[test]
fn messages_that_are_too_long_do_not_pass() {
    harness::run(60, async {
        let (_node, bouncer) = started("app = $", "max_packet_size = 3000\n").await;
        let refused = async |sql: &str| {
            let client = app(&bouncer, "app").await;
            assert_eq!(value(&client, "SELECT 1").await, "1");
            let error = client.simple_query(sql).await.expect_err("it is too long");
            error.as_db_error().map(|error| error.message().to_owned()).unwrap_or_default()
        };
        let long = format!("SELECT '{}'", "x".repeat(4000));
        assert!(refused(&long).await.starts_with("bad packet header: '510000"));
        assert_eq!(refused("SELECT repeat('x', 4000)").await, "bad pkt header");
        bouncer.logged(0, "closing because: bad pkt header").await;
        let console = bouncer.console().await;
        console.simple_query("SET max_packet_size = 10000").await.expect("it is live");
        assert_eq!(value(&app(&bouncer, "app").await, &long).await.len(), 4000);
    });
}

#[test]
fn a_plain_password_is_hashed_as_often_as_is_asked_for() {
    harness::run(60, async {
        let (_node, bouncer) = started("app = $", "auth_type = scram-sha-256\nscram_iterations = 7000\n").await;
        for user in ["app", "nobody"] {
            let mut raw = Raw::connect(bouncer.port()).await;
            raw.send(&startup(&[("user", user), ("database", "app")])).await;
            let asked = raw.message().await.expect("a request for SASL");
            assert!(asked.body.windows(13).any(|bytes| bytes == b"SCRAM-SHA-256"));
            let first = b"n,,n=,r=abcdefgh";
            let mut body = b"SCRAM-SHA-256\0".to_vec();
            body.extend_from_slice(&u32::try_from(first.len()).expect("it is short").to_be_bytes());
            body.extend_from_slice(first);
            raw.send(&frame(b'p', &body)).await;
            let answer = raw.message().await.expect("a challenge");
            assert!(answer.body.ends_with(b",i=7000"), "{user}: {:?}", String::from_utf8_lossy(&answer.body));
        }
        assert_eq!(value(&app(&bouncer, "app").await, "SELECT 1").await, "1");
    });
}

#[test]
fn suspend_does_not_wait_for_ever_for_a_client_that_does_not_read() {
    harness::run(60, async {
        let (_node, bouncer) = started("app = $", "suspend_timeout = 1\n").await;
        let other = app(&bouncer, "app").await;
        let mut raw = Raw::login(bouncer.port(), "app", "app").await;
        raw.send(&query("SELECT repeat('x', 1000) FROM generate_series(1, 100000)")).await;
        tokio::time::sleep(Duration::from_millis(500)).await;
        let (console, began) = (bouncer.console().await, Instant::now());
        console.simple_query("SUSPEND").await.expect("it ends");
        assert!(began.elapsed() >= Duration::from_secs(1), "it waits for its time");
        bouncer.logged(0, "closing because: suspend_timeout").await;
        console.simple_query("RESUME").await.expect("it goes on");
        assert_eq!(value(&other, "SELECT 1").await, "1", "who had read everything stays");
    });
}

#[test]
fn a_client_that_says_nothing_is_left_to_the_kernel() {
    harness::run(60, async {
        let (_node, bouncer) = started("app = $", "").await;
        let console = bouncer.console().await;
        let logging_in = async || shown(&console, "LISTS", "list", "login_clients", "items").await;
        let _silent = Raw::connect(bouncer.port()).await;
        tokio::time::sleep(Duration::from_millis(300)).await;
        assert_eq!(logging_in().await, "0");
        console.simple_query("SET tcp_defer_accept = 0").await.expect("it is live");
        assert_eq!(value(&app(&bouncer, "app").await, "SELECT 1").await, "1");
        let _silent = Raw::connect(bouncer.port()).await;
        let seen = || async { (logging_in().await == "1").then_some(()) };
        wait_for("a silent client to be accepted", SOON, seen).await;
    });
}

#[test]
fn ciphers_are_those_that_are_asked_for() {
    harness::run(60, async {
        let folder = Folder::new("tls");
        let pair = Certificate::authority("ours").sign("localhost").write(&folder, "server");
        let node = Node::with_tls(&Programs::installed(), &pair).await;
        let tls12 = "client_tls_protocols = tlsv1.2\nclient_tls_ciphers = ECDHE-ECDSA-AES128-SHA256:ECDHE-RSA-AES128-SHA256\n\
                     server_tls_sslmode = require\nserver_tls_protocols = tlsv1.2\nserver_tls_ciphers = ECDHE-ECDSA-AES256-SHA384:ECDHE-RSA-AES256-SHA384\n";
        let tls13 = "server_tls_sslmode = require\nserver_tls13_ciphers = TLS_CHACHA20_POLY1305_SHA256\n";
        for (settings, client, server) in
            [(tls12, "AES128-SHA256", "AES256-SHA384"), (tls13, "TLSv1.3/", "TLSv1.3/TLS_CHACHA20_POLY1305_SHA256")]
        {
            let settings = format!("auth_type = trust\n{settings}{}", client_tls("require", &pair));
            let bouncer = PgBouncer::start(&at(&node, "app = $"), &settings, USERS).await;
            let conninfo = |user, database| {
                format!("host=127.0.0.1 port={} user={user} dbname={database} sslmode=require", bouncer.port())
            };
            let psql = |user, database, sql| {
                let mut command = Command::new("psql");
                command.args(["-XAt", "-d", &conninfo(user, database), "-c", sql]);
                let output = command.output().expect("psql can be run");
                assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
                String::from_utf8_lossy(&output.stdout).into_owned()
            };
            assert_eq!(psql("app", "app", "SELECT ssl FROM pg_stat_ssl WHERE pid = pg_backend_pid()").trim(), "t");
            let own = psql("admin", "pgbouncer", "SHOW CLIENTS");
            assert!(own.contains(client), "{client}: {own}");
            let servers = psql("admin", "pgbouncer", "SHOW SERVERS");
            assert!(servers.contains(server), "{server}: {servers}");
        }
    });
}
