//! The everyday life of the program: psql through every pool mode, refusals, check, reload, stop.

use std::process::Command;
use std::time::Duration;

use harness::endpoint::{Endpoint, column, say, sqlstate, value};
use harness::folder::Folder;
use harness::pgsteady::{Config, Pgsteady, command};
use harness::postgres::{Cluster, Node, Programs, run};
use harness::wire::{Raw, frame, query};

const MODES: [&str; 3] = ["session", "transaction", "statement"];

fn psql(endpoint: &Endpoint, sql: &str) -> String {
    let arguments = ["-X", "-A", "-t", "-v", "ON_ERROR_STOP=1", "-c", sql];
    run(Command::new("psql").arg("-d").arg(endpoint.conninfo()).args(arguments)).trim().to_owned()
}

#[test]
fn psql_works_in_every_pool_mode() {
    harness::run(60, async {
        let node = Node::primary(&Programs::installed()).await;
        for mode in MODES {
            let pgsteady = Pgsteady::start(&Config::single(&node).set("database.app.pool_mode", mode)).await;
            let endpoint = pgsteady.endpoint();
            assert_eq!(psql(&endpoint, "SELECT current_user || current_database()"), "appapp", "{mode}");
            psql(&endpoint, &format!("CREATE TABLE {mode}_rows AS SELECT generate_series(1, 1000) AS n"));
            assert_eq!(psql(&endpoint, &format!("SELECT sum(n) FROM {mode}_rows")), "500500", "{mode}");
            assert_eq!(psql(&endpoint, &format!("COPY {mode}_rows TO STDOUT")).lines().count(), 1000, "{mode}");
        }
    });
}

#[test]
fn logins_are_refused_with_the_right_words() {
    harness::run(60, async {
        let node = Node::primary(&Programs::installed()).await;
        for method in ["password", "md5", "scram-sha-256"] {
            let pgsteady = Pgsteady::start(&Config::single(&node).set("auth.method", method)).await;
            let app = pgsteady.endpoint();
            assert_eq!(value(&app.client().await, "SELECT current_user").await, "app", "{method}");
            let wrong_password = refusal(&app.with_user("app", "wrong")).await;
            let unknown_user = refusal(&app.with_user("nobody", "app-secret")).await;
            assert_eq!(wrong_password.0, "28P01", "{method}: {wrong_password:?}");
            // Nobody learns from the answer which users there are.
            assert_eq!(unknown_user.0, wrong_password.0, "{method}");
            assert_eq!(unknown_user.1.replace("nobody", "app"), wrong_password.1, "{method}");
            let unknown_database = refusal(&app.with_database("nowhere")).await;
            assert_eq!(unknown_database.0, "3D000", "{method}: {unknown_database:?}");
            assert!(unknown_database.1.contains("nowhere"), "{unknown_database:?}");
            assert!(!pgsteady.log().contains("app-secret"), "a password is in the log");
        }
    });
}

async fn refusal(endpoint: &Endpoint) -> (String, String) {
    let error = endpoint.connect().await.err().unwrap_or_else(|| panic!("{} was let in", endpoint.uri()));
    (sqlstate(&error).to_owned(), error.as_db_error().map_or_else(|| say(&error), |db| db.message().to_owned()))
}

#[test]
fn a_user_with_an_md5_secret_on_the_server_can_log_in() {
    harness::run(30, async {
        let node = Node::primary(&Programs::installed()).await;
        let pgsteady = Pgsteady::start(&Config::single(&node)).await;
        let client = pgsteady.endpoint().with_user("old", "old-secret").client().await;
        assert_eq!(value(&client, "SELECT session_user").await, "old");
    });
}

#[test]
fn check_accepts_what_is_right_and_names_the_place_of_what_is_wrong() {
    let folder = Folder::new("check");
    let good = Config::to_port(5432).text();
    let file = folder.write("good.toml", &good);
    let output = command(&["check", &file.display().to_string()]);
    assert!(output.status.success(), "{output:?}");
    let cluster = Cluster::prepare(&Programs::installed(), 3);
    let file = folder.write("cluster.toml", &Config::cluster(&cluster, &[5432, 5433, 5434], folder.path()).text());
    let output = command(&["check", &file.display().to_string()]);
    assert!(output.status.success(), "{output:?}");

    let wrong = [
        ("[database.app]\nhost = \"a\"\nport = 5432\npool_size = \"many\"\n", "4", "pool_size"),
        ("[database.app]\nhost = \"a\"\nport = 5432\n[limits]\nmax_client = 5\n", "5", "max_clients"),
        ("[database.app]\nhost = \"a\"\nport = 5432\npool_mode = \"trans\"\n", "4", "transaction"),
        ("[limits]\nlogin_timeout = 15\n", "2", "login_timeout"),
        ("[database.app]\ncluster = \"nowhere\"\n", "2", "nowhere"),
        ("[listen\n", "1", ""),
    ];
    for (text, line, word) in wrong {
        let file = folder.write("wrong.toml", text);
        let output = command(&["check", &file.display().to_string()]);
        let said = [output.stdout, output.stderr].concat();
        let said = String::from_utf8_lossy(&said);
        assert!(!output.status.success(), "accepted:\n{text}");
        assert!(said.contains(&format!("wrong.toml:{line}:")), "no place in:\n{said}\nfor:\n{text}");
        assert!(said.contains(word), "no {word:?} in:\n{said}");
    }
}

#[test]
fn it_does_not_start_on_a_wrong_file_and_says_why() {
    let folder = Folder::new("start");
    let file = folder.write("wrong.toml", "[limits]\nmax_clients = \"many\"\n");
    let output = command(&["run", "-c", &file.display().to_string()]);
    assert!(!output.status.success());
    let said = String::from_utf8_lossy(&output.stderr).into_owned() + &String::from_utf8_lossy(&output.stdout);
    assert!(said.contains("wrong.toml:2:"), "{said}");
}

#[test]
fn a_reload_takes_effect_and_a_bad_one_changes_nothing_and_says_so() {
    harness::run(60, async {
        let node = Node::primary(&Programs::installed()).await;
        let config = Config::single(&node);
        let mut pgsteady = Pgsteady::start(&config).await;
        let endpoint = pgsteady.endpoint();
        let client = endpoint.client().await;
        let third = endpoint.with_database("third");
        assert!(third.connect().await.is_err());

        let before = pgsteady.reload_text("[limits]\nmax_clients = \"many\"\n");
        pgsteady.logged(before, &["pgsteady.toml:2:"]).await;
        assert_eq!(value(&client, "SELECT 1").await, "1");
        assert_eq!(value(&endpoint.client().await, "SELECT 2").await, "2");

        let added = config
            .set("database.third.host", "127.0.0.1")
            .set("database.third.port", i64::from(node.port()))
            .set("database.third.dbname", "second");
        pgsteady.reload(&added);
        let connected = || async { third.connect().await.ok() };
        let in_third = harness::wait_for("the third database", Duration::from_secs(10), connected).await;
        assert_eq!(value(&in_third, "SELECT current_database()").await, "second");
        assert_eq!(value(&client, "SELECT 3").await, "3");
        pgsteady.lives();
    });
}

#[test]
fn a_stop_waits_for_transactions_and_takes_no_new_clients() {
    harness::run(60, async {
        let node = Node::primary(&Programs::installed()).await;
        let mut pgsteady = Pgsteady::start(&Config::single(&node)).await;
        let endpoint = pgsteady.endpoint();
        let busy = endpoint.client().await;
        let idle = endpoint.client().await;
        busy.batch_execute("CREATE TABLE kept (n int); BEGIN; INSERT INTO kept VALUES (1)").await.expect("an insert");
        pgsteady.terminate();
        let refused = || async { endpoint.connect().await.is_err().then_some(()) };
        harness::wait_for("new clients to be refused", Duration::from_secs(10), refused).await;
        let closed = || async { idle.is_closed().then_some(()) };
        harness::wait_for("the idle client to be let go", Duration::from_secs(10), closed).await;
        busy.batch_execute("INSERT INTO kept VALUES (2); COMMIT").await.expect("the transaction goes on to its end");
        let status = pgsteady.ended(Duration::from_secs(10)).await;
        assert!(status.success(), "{status}");
        assert_eq!(node.sql("SELECT sum(n) FROM kept").await, "3");
    });
}

#[test]
fn a_stop_does_not_wait_for_ever() {
    harness::run(60, async {
        let node = Node::primary(&Programs::installed()).await;
        let config = Config::single(&node).set("limits.shutdown_timeout", "1s");
        let mut pgsteady = Pgsteady::start(&config).await;
        let client = pgsteady.endpoint().client().await;
        client.batch_execute("BEGIN; SELECT 1").await.expect("a transaction");
        pgsteady.terminate();
        pgsteady.ended(Duration::from_secs(10)).await;
        let nobody = || async {
            let sql = "SELECT count(*) FROM pg_stat_activity WHERE usename = 'app'";
            (node.sql(sql).await == "0").then_some(())
        };
        harness::wait_for("servers to be closed", Duration::from_secs(5), nobody).await;
    });
}

#[test]
fn settings_of_the_client_arrive_and_are_reported() {
    harness::run(60, async {
        let node = Node::primary(&Programs::installed()).await;
        let pgsteady = Pgsteady::start(&Config::single(&node)).await;
        let mut config: tokio_postgres::Config = pgsteady.endpoint().conninfo().parse().expect("a conninfo");
        config.application_name("the-name").options("-c search_path=pg_catalog -c extra_float_digits=0");
        let (client, connection) = config.connect(tokio_postgres::NoTls).await.expect("a login with options");
        tokio::spawn(connection);
        assert_eq!(value(&client, "SHOW application_name").await, "the-name");
        assert_eq!(value(&client, "SHOW search_path").await, "pg_catalog");
        assert_eq!(value(&client, "SHOW extra_float_digits").await, "0");
        let other = pgsteady.endpoint().client().await;
        let names = column(&other, "SELECT current_setting('application_name')").await.expect("a query");
        assert_ne!(names, ["the-name"]);
    });
}

/// A long stream is taken in gulps (proxy/src/gulp.rs): what does not fill one is not waited for.
#[test]
fn rows_arrive_although_the_next_are_far_away() {
    harness::run(60, async {
        let node = Node::primary(&Programs::installed()).await;
        let config = Config::single(&node).set("auth.method", "trust").set("database.app.pool_mode", "transaction");
        let pgsteady = Pgsteady::start(&config).await;
        let mut client = Raw::login(pgsteady.port(), "app", "app").await;
        let rows = "SELECT repeat('x', 8100) FROM generate_series(1, 201) UNION ALL SELECT pg_sleep(30)::text";
        client.send(&query(rows)).await;
        // PostgreSQL keeps the last of them itself, until its buffer is full
        let arrived = async {
            for _ in 0..200 {
                while client.message().await.expect("the connection stays").tag != b'D' {}
            }
        };
        tokio::time::timeout(Duration::from_secs(15), arrived).await.expect("the rows come before the end");

        // and in the other direction, where PostgreSQL sees each as it comes
        let other = pgsteady.endpoint().client().await;
        other.batch_execute("CREATE TABLE copied (line text)").await.expect("a table");
        let mut client = Raw::login(pgsteady.port(), "app", "app").await;
        client.send(&query("COPY copied FROM STDIN")).await;
        client.until(b'G').await;
        let line = frame(b'd', &["x".repeat(5000).as_bytes(), b"\n"].concat());
        for _ in 0..100 {
            client.send(&line).await;
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        client.send(&frame(b'c', b"")).await;
        client.until(b'Z').await;
        assert_eq!(value(&other, "SELECT count(*) FROM copied").await, "100");
    });
}
