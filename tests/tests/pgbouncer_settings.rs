//! Settings of PgBouncer's that no other test speaks of, each by what is to be seen of it from outside.

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::process::Command;
use std::time::Duration;

use harness::endpoint::value;
use harness::pgbouncer::{PgBouncer, show, shown};
use harness::postgres::{Node, repository};
use harness::wait_for;
use tokio_postgres::Client;

const USERS: &str = "\"admin\" \"admin-secret\"\n\"app\" \"app-secret\"\n";
const SOON: Duration = Duration::from_secs(10);
/// Settings that act and that nothing tries: no more than these.
const UNTESTED: usize = 6;
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

/// The table of docs/pgbouncer.md: each setting that acts is named by the test beside it, or said to have none.
#[test]
fn the_page_names_a_test_of_every_setting() {
    let page = fs::read_to_string(repository().join("docs/pgbouncer.md")).expect("the page");
    let rows: Vec<Vec<&str>> = page
        .lines()
        .filter(|line| line.starts_with("| `") && line.matches(" | ").count() >= 3)
        .map(|line| line.split('|').map(|cell| cell.trim().trim_matches('`')).collect())
        .collect();
    assert!(rows.len() >= 98, "only {} settings", rows.len());
    let suite = repository().join(".cache/pgbouncer/pgbouncer-1.25.2/test");
    let mut untested = Vec::new();
    for row in rows {
        let (name, acts, test) = (row[1], row[2], row[3]);
        let file = match test {
            "" if acts != "yes" => continue,
            "nothing" => {
                untested.push(name);
                continue;
            }
            suites if suites.ends_with(".py") => suite.join(suites),
            ours => repository().join("tests").join(ours),
        };
        // PgBouncer's own tests are here only where they were run
        if file.starts_with(&suite) && !suite.exists() {
            continue;
        }
        let text = fs::read_to_string(&file).unwrap_or_else(|_| panic!("{name}: there is no {test}"));
        assert!(text.contains(name), "{test} does not speak of {name}");
    }
    assert!(untested.len() <= UNTESTED, "settings without any test: {untested:?}");
}
