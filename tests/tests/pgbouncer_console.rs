//! The console of the program called as `pgbouncer`: its tables, its commands, who may do what, and what it refuses.

use std::time::{Duration, Instant};

use harness::endpoint::{say, sqlstate, value};
use harness::pgbouncer::{PgBouncer, show, shown};
use harness::postgres::{Node, Programs};
use harness::wire::{Raw, query};
use nix::sys::signal::Signal;
use tokio::task::JoinHandle;
use tokio_postgres::Client;
use tokio_postgres::types::Type;

const USERS: &str =
    "\"admin\" \"admin-secret\"\n\"watcher\" \"watcher-secret\"\n\"app\" \"app-secret\"\n\"other\" \"other-secret\"\n";
const SETTINGS: &str = "stats_users = watcher\npool_mode = transaction\nauth_type = scram-sha-256\n";

async fn started(settings: &str) -> (Node, PgBouncer) {
    let node = Node::primary(&Programs::installed()).await;
    let bouncer = PgBouncer::start(&databases(&node), &format!("{SETTINGS}{settings}"), USERS).await;
    (node, bouncer)
}

fn databases(node: &Node) -> String {
    let port = node.port();
    format!("app = host=127.0.0.1 port={port} pool_size=2\nsecond = host=127.0.0.1 port={port}")
}

async fn app(bouncer: &PgBouncer) -> Client {
    bouncer.endpoint("app", "app-secret", "app").client().await
}

async fn refusal(console: &Client, command: &str) -> (String, String) {
    let error = console.simple_query(command).await.expect_err(command);
    let told = error.as_db_error().expect("the console's own words");
    (told.message().to_owned(), sqlstate(&error).to_owned())
}

/// `SHOW x: name type, name type` for each table.
const COLUMNS: &str = include_str!("../pgbouncer/columns.txt");

#[test]
fn every_table_has_pgbouncers_columns_in_its_order_with_its_types() {
    harness::run(60, async {
        let (_node, bouncer) = started("").await;
        let console = bouncer.console().await;
        let _client = app(&bouncer).await;
        for line in COLUMNS.lines() {
            let (what, columns) = line.split_once(": ").expect("a line of the golden file");
            // The extended protocol, which tells the types; PgBouncer has only the simple one.
            let statement =
                console.prepare(&format!("SHOW {what}")).await.unwrap_or_else(|e| panic!("{what}: {}", say(&e)));
            let word = |kind: &Type| match *kind {
                Type::TEXT => "text",
                Type::INT4 => "int4",
                Type::INT8 => "int8",
                Type::NUMERIC => "num",
                Type::BYTEA => "bytea",
                _ => "?",
            };
            let told = statement.columns().iter().map(|column| format!("{} {}", column.name(), word(column.type_())));
            assert_eq!(told.collect::<Vec<_>>().join(", "), columns, "SHOW {what}");
            console.simple_query(&format!("SHOW {what}")).await.unwrap_or_else(|e| panic!("{what}: {}", say(&e)));
        }
        let rows = console.query("SHOW DATABASES", &[]).await.expect("rows in binary form");
        let ports: Vec<i32> = rows.iter().map(|row| row.get("port")).collect();
        assert_eq!(ports.len(), 3, "two databases and the console");
    });
}

#[test]
fn the_tables_say_what_is_going_on() {
    harness::run(60, async {
        let (_node, bouncer) = started("").await;
        let console = bouncer.console().await;
        let client = app(&bouncer).await;
        client.batch_execute("SELECT 1; SELECT 2").await.expect("a query");
        client.batch_execute("BEGIN").await.expect("a transaction");
        assert_eq!(shown(&console, "POOLS", "database", "app", "sv_active").await, "1");
        assert_eq!(shown(&console, "POOLS", "database", "app", "cl_active").await, "1");
        assert_eq!(shown(&console, "CLIENTS", "database", "app", "state").await, "active");
        let link = shown(&console, "CLIENTS", "database", "app", "link").await;
        assert_eq!(shown(&console, "SERVERS", "database", "app", "ptr").await, link);
        client.batch_execute("COMMIT").await.expect("the end of it");
        assert_eq!(shown(&console, "CLIENTS", "database", "app", "state").await, "idle");
        assert_eq!(shown(&console, "DATABASES", "name", "app", "current_client_connections").await, "1");
        assert_eq!(shown(&console, "USERS", "name", "app", "current_client_connections").await, "1");
        assert_eq!(shown(&console, "STATS", "database", "app", "total_query_count").await, "3");
        assert_eq!(shown(&console, "STATS", "database", "app", "total_xact_count").await, "2");
        let _statement = client.prepare("SELECT 3").await.expect("it is prepared");
        assert_eq!(shown(&console, "CLIENTS", "database", "app", "prepared_statements").await, "1");
        assert_eq!(shown(&console, "SERVERS", "database", "app", "prepared_statements").await, "1");
        assert_eq!(shown(&console, "CONFIG", "key", "default_pool_size", "value").await, "20");
        assert_eq!(shown(&console, "LISTS", "list", "databases", "items").await, "3");
        assert_eq!(shown(&console, "STATE", "key", "active", "value").await, "yes");
        assert_eq!(value(&console, "SHOW VERSION").await, "PgBouncer 1.25.2");
    });
}

#[test]
fn who_is_not_named_may_not_come_and_who_may_look_may_not_act() {
    harness::run(60, async {
        let (_node, bouncer) = started("").await;
        let stranger = bouncer.endpoint("app", "app-secret", "pgbouncer").connect().await;
        assert!(say(&stranger.expect_err("a stranger")).contains("not allowed"));
        let wrong = bouncer.endpoint("admin", "wrong", "pgbouncer").connect().await;
        assert!(say(&wrong.expect_err("a wrong password")).contains("SASL authentication failed"));
        let watcher = bouncer.endpoint("watcher", "watcher-secret", "pgbouncer").client().await;
        show(&watcher, "POOLS").await;
        for command in ["PAUSE", "RELOAD", "SET verbose=1", "KILL app", "SHUTDOWN", "SHOW FDS"] {
            assert_eq!(refusal(&watcher, command).await.0, "admin access needed", "{command}");
        }
    });
}

#[test]
fn what_is_no_command_is_refused_in_pgbouncers_words_and_the_console_stays() {
    harness::run(60, async {
        let (_node, bouncer) = started("").await;
        let console = bouncer.console().await;
        let long = "x".repeat(64);
        for (command, told) in [
            ("NONSENSE", "invalid command 'NONSENSE', use SHOW HELP;"),
            ("SHOW NOTHING", "invalid command 'SHOW NOTHING', use SHOW HELP;"),
            ("PAUSE nowhere", "no such database: nowhere"),
            ("PAUSE pgbouncer", "cannot pause admin db: pgbouncer"),
            ("KILL pgbouncer", "cannot kill admin db: pgbouncer"),
            ("RECONNECT pgbouncer", "cannot reconnect admin db: pgbouncer"),
            ("RESUME", "pooler is not paused/suspended"),
            ("RESUME app", "database app is not paused"),
            ("DISABLE", "a database is required"),
            ("KILL_CLIENT x", "invalid client pointer supplied"),
            ("KILL_CLIENT 99999", "client not found"),
            ("SET nothing=1", "SET failed"),
            ("SET default_pool_size=x", "SET failed"),
            (&format!("PAUSE {long}"), "bad arguments"),
        ] {
            assert_eq!(refusal(&console, command).await, (told.to_owned(), "08P01".to_owned()), "{command}");
        }
        console.simple_query("SET extra_float_digits = 2").await.expect("what drivers set is taken");
        console.simple_query("SET listen_port=1").await.expect("what only a start takes is passed over");
        let port = shown(&console, "CONFIG", "key", "listen_port", "value").await;
        assert_eq!(port, bouncer.port().to_string());
    });
}

/// A query in the background.
fn asks(client: Client, sql: &'static str) -> JoinHandle<(Client, Result<(), tokio_postgres::Error>)> {
    tokio::spawn(async move {
        let done = client.batch_execute(sql).await;
        (client, done)
    })
}

#[test]
fn pause_waits_for_transactions_and_resume_lets_clients_go_on() {
    harness::run(60, async {
        let (node, bouncer) = started("auth_type = trust\n").await;
        let console = bouncer.console().await;
        let busy = app(&bouncer).await;
        busy.batch_execute("BEGIN").await.expect("a transaction");
        let other = bouncer.console().await;
        let pausing = tokio::spawn(async move { other.simple_query("PAUSE app").await.map(drop) });
        tokio::time::sleep(Duration::from_millis(300)).await;
        assert!(!pausing.is_finished(), "a transaction is open");
        let waiting = asks(app(&bouncer).await, "SELECT 1");
        busy.batch_execute("COMMIT").await.expect("the end of it");
        pausing.await.expect("no panic").expect("paused");
        let servers = "SELECT count(*) FROM pg_stat_activity WHERE usename = 'app'";
        assert_eq!(node.sql(servers).await, "0", "no server is left");
        tokio::time::sleep(Duration::from_millis(500)).await;
        assert!(!waiting.is_finished(), "nothing is lent");
        assert_eq!(shown(&console, "DATABASES", "name", "app", "paused").await, "1");
        assert_eq!(shown(&console, "POOLS", "database", "app", "cl_waiting").await, "1");
        console.simple_query("RESUME app").await.expect("resumed");
        waiting.await.expect("no panic").1.expect("the query goes on");
        // A console that leaves takes its unfinished PAUSE with it.
        busy.batch_execute("BEGIN").await.expect("a transaction");
        let mut leaving = Raw::login(bouncer.port(), "admin", "pgbouncer").await;
        leaving.send(&query("PAUSE")).await;
        tokio::time::sleep(Duration::from_millis(200)).await;
        drop(leaving);
        tokio::time::sleep(Duration::from_millis(200)).await;
        busy.batch_execute("COMMIT").await.expect("the end of it");
        busy.batch_execute("SELECT 1").await.expect("nothing is paused");
    });
}

#[test]
fn suspend_reads_nothing_and_goes_when_its_console_does() {
    harness::run(60, async {
        let (_node, bouncer) = started("").await;
        let client = app(&bouncer).await;
        let console = bouncer.console().await;
        console.simple_query("SUSPEND").await.expect("suspended");
        assert_eq!(refusal(&console, "PAUSE").await.0, "already suspended/paused");
        let waiting = asks(client, "SELECT 1");
        tokio::time::sleep(Duration::from_millis(500)).await;
        assert!(!waiting.is_finished());
        drop(console);
        waiting.await.expect("no panic").1.expect("the query goes on");
    });
}

#[test]
fn clients_are_killed_one_by_one_or_all_and_the_database_is_paused_then() {
    harness::run(60, async {
        let (_node, bouncer) = started("").await;
        let console = bouncer.console().await;
        let client = app(&bouncer).await;
        let id = shown(&console, "CLIENTS", "database", "app", "id").await;
        console.simple_query(&format!("KILL_CLIENT {id}")).await.expect("killed");
        let error = client.batch_execute("SELECT 1").await.expect_err("it is gone");
        assert!(client.is_closed() || say(&error).contains("admin forced disconnect"), "{}", say(&error));
        let (first, second) = (app(&bouncer).await, app(&bouncer).await);
        console.simple_query("KILL app").await.expect("killed");
        assert!(first.batch_execute("SELECT 1").await.is_err() && second.batch_execute("SELECT 1").await.is_err());
        assert_eq!(show(&console, "CLIENTS").await.len(), 1, "the console itself");
        assert!(bouncer.log().contains("closing because: admin forced disconnect"));
        console.simple_query("RESUME app").await.expect("KILL pauses");
        app(&bouncer).await.batch_execute("SELECT 1").await.expect("clients may come again");
        console.simple_query("DISABLE app").await.expect("disabled");
        let error = bouncer.endpoint("app", "app-secret", "app").connect().await.expect_err("nobody may come");
        assert!(say(&error).contains("database \"app\" is disabled"));
        console.simple_query("ENABLE app").await.expect("enabled");
        app(&bouncer).await;
    });
}

#[test]
fn reconnect_replaces_servers_and_wait_close_waits_for_that() {
    harness::run(60, async {
        let (_node, bouncer) = started("").await;
        let console = bouncer.console().await;
        let client = app(&bouncer).await;
        let first = value(&client, "SELECT pg_backend_pid()").await;
        assert_eq!(value(&client, "SELECT pg_backend_pid()").await, first);
        client.batch_execute("BEGIN").await.expect("a transaction");
        console.simple_query("RECONNECT app").await.expect("told");
        let other = bouncer.console().await;
        let closing = tokio::spawn(async move { other.simple_query("WAIT_CLOSE app").await.map(drop) });
        tokio::time::sleep(Duration::from_millis(300)).await;
        assert!(!closing.is_finished(), "a session has it");
        client.batch_execute("COMMIT").await.expect("the end of it");
        closing.await.expect("no panic").expect("closed");
        assert_ne!(value(&client, "SELECT pg_backend_pid()").await, first);
    });
}

#[test]
fn a_reload_takes_what_is_good_and_tells_what_is_not() {
    harness::run(60, async {
        let (node, bouncer) = started("").await;
        let console = bouncer.console().await;
        let client = app(&bouncer).await;
        console.simple_query("SET default_pool_size=7").await.expect("set");
        assert_eq!(shown(&console, "DATABASES", "name", "second", "pool_size").await, "7");
        console.simple_query("RELOAD").await.expect("read");
        assert_eq!(shown(&console, "DATABASES", "name", "second", "pool_size").await, "20", "SET lives until RELOAD");
        bouncer.write(&databases(&node), &format!("{SETTINGS}server_lifetime = never\n"));
        let told = refusal(&console, "RELOAD").await;
        assert_eq!(told, ("RELOAD failed, see logs for additional details".to_owned(), "F0000".to_owned()));
        let log = bouncer.log();
        assert!(log.contains("invalid value \"never\" for parameter server_lifetime in configuration"), "{log}");
        client.batch_execute("SELECT 1").await.expect("clients stay");
        let gone = format!("second = host=127.0.0.1 port={}", node.port());
        bouncer.write(&gone, SETTINGS);
        let from = bouncer.log().len();
        bouncer.signal(Signal::SIGHUP);
        bouncer.logged(from, "closing because: database removed").await;
        assert!(client.batch_execute("SELECT 1").await.is_err());
    });
}

#[test]
fn shutdown_waits_for_servers_or_for_clients_or_for_nobody() {
    harness::run(90, async {
        let (_node, mut bouncer) = started("").await;
        let (busy, idle) = (app(&bouncer).await, app(&bouncer).await);
        busy.batch_execute("BEGIN").await.expect("a transaction");
        let console = bouncer.console().await;
        console.simple_query("SHUTDOWN WAIT_FOR_SERVERS").await.expect("told");
        assert_eq!(refusal(&console, "RESUME").await.0, "pooler is shutting down");
        busy.batch_execute("SELECT 1").await.expect("the transaction goes on");
        assert!(idle.batch_execute("SELECT 1").await.is_err());
        assert!(bouncer.log().contains("closing because: server shutting down"));
        assert!(bouncer.endpoint("app", "app-secret", "app").connect().await.is_err());
        busy.batch_execute("COMMIT").await.expect("the end of it");
        assert!(bouncer.ended().await.success());

        let (_node, mut bouncer) = started("").await;
        let client = app(&bouncer).await;
        bouncer.signal(Signal::SIGTERM);
        bouncer.logged(0, "got SIGTERM, shutting down, waiting for all clients disconnect").await;
        client.batch_execute("SELECT 1").await.expect("clients may stay");
        drop(client);
        let begun = Instant::now();
        assert!(bouncer.ended().await.success());
        assert!(begun.elapsed() < Duration::from_secs(2));

        let (_node, mut bouncer) = started("").await;
        let _client = app(&bouncer).await;
        let console = bouncer.console().await;
        let _ = console.simple_query("SHUTDOWN").await;
        assert!(bouncer.ended().await.success());
        assert!(!bouncer.folder().path().join(format!(".s.PGSQL.{}", bouncer.port())).exists());
    });
}
