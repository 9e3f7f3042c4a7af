//! The lines of PgBouncer's log, which alerts and readers of logs are built on: each is made to come, and looked for.

use std::fs;

use harness::certificates::Certificate;
use harness::endpoint::value;
use harness::folder::Folder;
use harness::pgbouncer::{PgBouncer, at, client_tls};
use harness::postgres::{Node, Programs};
use harness::wire::Raw;
use nix::sys::signal::Signal;
use tokio_postgres::Client;

const USERS: &str = "\"admin\" \"admin-secret\"\n\"app\" \"app-secret\"\n";

async fn app(bouncer: &PgBouncer, database: &str) -> Client {
    bouncer.endpoint("app", "app-secret", database).client().await
}

async fn started(node: &Node, databases: &str, settings: &str) -> PgBouncer {
    let settings = format!("pool_mode = transaction\nauth_type = trust\n{settings}");
    PgBouncer::start(&at(node, databases), &settings, USERS).await
}

/// What an operator asks for, on the console and by signals; the last is the end.
async fn orders(bouncer: &PgBouncer) {
    let console = bouncer.console().await;
    for command in ["RECONNECT", "WAIT_CLOSE", "PAUSE", "RESUME", "SUSPEND", "RESUME", "RELOAD"] {
        let from = bouncer.log().len();
        console.simple_query(command).await.expect("the console does it");
        bouncer.logged(from, &format!("LOG {command} command issued")).await;
    }
    for command in ["DISABLE", "ENABLE", "PAUSE", "RESUME", "KILL", "RESUME"] {
        let from = bouncer.log().len();
        console.simple_query(&format!("{command} app")).await.expect("the console does it");
        bouncer.logged(from, &format!("LOG {command} 'app' command issued")).await;
    }
    drop(console);
    for (signal, line) in [
        (Signal::SIGHUP, "got SIGHUP, re-reading config"),
        (Signal::SIGUSR1, "got SIGUSR1, pausing all activity"),
        (Signal::SIGUSR1, "got SIGUSR1, but already paused/suspended"),
        (Signal::SIGUSR2, "got SIGUSR2, continuing from PAUSE"),
        (Signal::SIGUSR2, "got SIGUSR2, but not paused/suspended"),
        (Signal::SIGTERM, "got SIGTERM, shutting down, waiting for all clients disconnect"),
    ] {
        bouncer.signal(signal);
        bouncer.logged(0, line).await;
    }
    bouncer.logged(0, "client connections dropped, exiting").await;
}

#[test]
fn a_life_from_start_to_end_is_in_the_log() {
    harness::run(90, async {
        let node = Node::primary(&Programs::installed()).await;
        let databases = "app = $\nsmall = $ dbname=app pool_size=1 reserve_pool_size=1\nwrong = $ dbname=nowhere\n\
                         asked = $ dbname=app connect_query='SELECT nonsense'\n* = $ dbname=app";
        let settings =
            "reserve_pool_timeout = 0.1\nautodb_idle_timeout = 1\nserver_idle_timeout = 1\nstats_period = 1\n";
        let mut bouncer = started(&node, databases, settings).await;
        let port = bouncer.port();
        let folder = bouncer.folder().path().display().to_string();
        bouncer.logged(0, "LOG kernel file descriptor limit: ").await;
        bouncer.logged(0, &format!("LOG listening on 127.0.0.1:{port}")).await;
        bouncer.logged(0, &format!("LOG listening on unix:{folder}/.s.PGSQL.{port}")).await;
        bouncer.logged(0, "LOG process up: PgBouncer 1.25.2, libevent ").await;

        // who comes, and who goes
        let client = app(&bouncer, "app").await;
        assert_eq!(value(&client, "SELECT 1").await, "1");
        bouncer.logged(0, "login attempt: db=app user=app tls=no replication=no").await;
        bouncer
            .logged(0, &format!(": app/app@127.0.0.1:{} new connection to server (from 127.0.0.1:", node.port()))
            .await;
        drop(client);
        bouncer.logged(0, "closing because: client close request (age=").await;
        Raw::connect(port).await.send(&[0]).await;
        bouncer.logged(0, ": (nodb)/(nouser)@127.0.0.1:").await;
        bouncer.logged(0, "closing because: client unexpected eof (age=").await;
        Raw::cancel(port, 1, &[0; 4]).await;
        bouncer.logged(0, "closing because: failed cancel request (age=").await;
        let endpoint = bouncer.endpoint("stranger", "x", "app");
        endpoint.connect().await.expect_err("nobody knows it");
        bouncer.logged(0, "WARNING C-0x").await;
        bouncer.logged(0, "pooler error: \"trust\" authentication failed").await;

        // pools
        let auto = app(&bouncer, "by_template").await;
        bouncer.logged(0, "registered new auto-database: ").await;
        drop(auto);
        bouncer.logged(0, "as it does not exist anymore or inactive auto-database").await;
        let (one, two) = (app(&bouncer, "small").await, app(&bouncer, "small").await);
        for client in [&one, &two] {
            client.batch_execute("BEGIN").await.expect("a server each");
        }
        bouncer.logged(0, "taking connection from reserve_pool").await;
        drop((one, two));
        bouncer.logged(0, "closing because: server idle timeout (age=").await;
        bouncer.endpoint("app", "app-secret", "wrong").connect().await.expect_err("there is no such database");
        bouncer.logged(0, "server login failed: FATAL database \"nowhere\" does not exist").await;
        assert_eq!(value(&app(&bouncer, "asked").await, "SELECT 1").await, "1");
        bouncer.logged(0, "error while executing exec_on_query: ").await;
        bouncer.logged(0, " xacts/s, ").await;

        orders(&bouncer).await;
        assert!(bouncer.ended().await.success());
        assert!(!bouncer.log().contains("app-secret"), "secrets are in no log");
    });
}

#[test]
fn a_stop_that_waits_for_servers_says_so() {
    harness::run(60, async {
        let node = Node::primary(&Programs::installed()).await;
        let mut bouncer = started(&node, "app = $", "").await;
        let client = app(&bouncer, "app").await;
        client.batch_execute("BEGIN").await.expect("a server");
        bouncer.signal(Signal::SIGINT);
        bouncer.logged(0, "got SIGINT, shutting down, waiting for all servers connections to be released").await;
        bouncer.signal(Signal::SIGUSR2);
        bouncer.logged(0, "got SIGUSR2 while shutting down, ignoring").await;
        client.batch_execute("COMMIT").await.expect("its end");
        bouncer.logged(0, "server connections dropped, exiting").await;
        assert!(bouncer.ended().await.success());

        let mut bouncer = started(&node, "app = $", "").await;
        let client = app(&bouncer, "app").await;
        client.batch_execute("BEGIN").await.expect("a server");
        bouncer.signal(Signal::SIGTERM);
        bouncer.logged(0, "got SIGTERM, shutting down").await;
        bouncer.signal(Signal::SIGTERM);
        bouncer.logged(0, "got SIGTERM while shutting down, fast exit").await;
        assert!(bouncer.ended().await.success());

        let mut bouncer = started(&node, "app = $", "").await;
        bouncer.signal(Signal::SIGQUIT);
        bouncer.logged(0, "got SIGQUIT, fast exit").await;
        assert!(bouncer.ended().await.success());
    });
}

#[test]
fn a_wrong_configuration_is_named_by_its_place() {
    harness::run(60, async {
        let node = Node::primary(&Programs::installed()).await;
        let bouncer = started(&node, "app = $", "").await;
        let console = bouncer.console().await;
        let file = bouncer.folder().path().join("pgbouncer.ini").display().to_string();
        let good = "auth_type = trust\n";
        for (databases, settings, line) in [
            (
                "app = $",
                "pool_mode = sometimes\n",
                format!("invalid value \"sometimes\" for parameter pool_mode in configuration ({file}:"),
            ),
            ("app = $", "nonsense = 1\n", "unknown parameter: pgbouncer/nonsense".to_owned()),
            ("app = $ nonsense=1", good, "unrecognized connection parameter: nonsense".to_owned()),
        ] {
            bouncer.write(&at(&node, databases), settings);
            let from = bouncer.log().len();
            let error = console.simple_query("RELOAD").await.expect_err("the file is wrong");
            let error = error.as_db_error().expect("the console says so");
            assert_eq!(
                (error.code().code(), error.message()),
                ("F0000", "RELOAD failed, see logs for additional details")
            );
            bouncer.logged(from, &line).await;
            bouncer.logged(from, "config file loading failed").await;
        }
        bouncer.write(&at(&node, "app = $"), good);
        console.simple_query("RELOAD").await.expect("it is right again");
        assert_eq!(value(&app(&bouncer, "app").await, "SELECT 1").await, "1");
    });
}

#[test]
fn tls_and_lookups_are_in_the_log() {
    harness::run(60, async {
        let folder = Folder::new("tls");
        let pair = Certificate::authority("ours").sign("localhost").write(&folder, "server");
        let node = Node::with_tls(&Programs::installed(), &pair).await;
        let settings = "server_tls_sslmode = require\nauth_type = md5\nauth_user = app\nauth_query = SELECT $1::text\n";
        let settings = settings.to_owned() + &client_tls("allow", &pair);
        let bouncer = PgBouncer::start(&at(&node, "app = $"), &settings, USERS).await;
        assert_eq!(value(&app(&bouncer, "app").await, "SELECT 1").await, "1");
        bouncer.logged(0, "SSL established: TLSv1.").await;
        let mut raw = Raw::connect(bouncer.port()).await;
        raw.send(&[0, 0, 0, 8, 4, 210, 22, 47]).await;
        assert_eq!(raw.byte().await, Some(b'S'));
        raw.send(b"this is no handshake").await;
        bouncer.logged(0, "TLS handshake error: ").await;
        bouncer.endpoint("stranger", "secret", "app").connect().await.expect_err("the lookup is wrong");
        bouncer.logged(0, "expected 2 columns from auth_query, not 1").await;
        let log = fs::read_to_string(bouncer.folder().path().join("log")).expect("the log");
        let begins = |line: &str| line.len() > 30 && line.as_bytes()[4] == b'-' && line[23..].starts_with(" UTC [");
        assert!(log.lines().all(|line| line.starts_with('\t') || begins(line)), "{log}");
    });
}
