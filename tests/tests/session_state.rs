//! In transaction mode nothing that one client leaves on a server reaches another, and a client keeps what it set.

use harness::endpoint::{column, say, value};
use harness::pgsteady::{Config, Pgsteady};
use harness::postgres::{Node, Programs};
use harness::wire::{Raw, bind, execute, parse, sync};

async fn started() -> (Node, Pgsteady) {
    let node = Node::primary(&Programs::installed()).await;
    node.sql("CREATE ROLE half NOLOGIN; GRANT half TO app; CREATE ROLE whole LOGIN; GRANT whole TO app").await;
    let pgsteady = Pgsteady::start(&Config::single(&node).set("database.app.pool_size", 1)).await;
    (node, pgsteady)
}

/// What a client does, what another then asks, and the answer of a fresh session.
const TRACES: [(&str, &str, &str); 19] = [
    ("SET work_mem = '77MB'", "SHOW work_mem", "4MB"),
    ("SET search_path = pg_catalog", "SHOW search_path", "\"$user\", public"),
    ("SELECT set_config('search_path', 'pg_catalog', false)", "SHOW search_path", "\"$user\", public"),
    ("SET statement_timeout = '1h'", "SHOW statement_timeout", "0"),
    ("SET lock_timeout = '1h'", "SHOW lock_timeout", "0"),
    ("SET idle_in_transaction_session_timeout = '1h'", "SHOW idle_in_transaction_session_timeout", "0"),
    (
        "SET TIME ZONE 'Asia/Kolkata'",
        "SELECT count(*) FROM (SELECT 1 WHERE current_setting('TimeZone') = 'Asia/Kolkata') x",
        "0",
    ),
    ("SET DateStyle = 'German'", "SHOW DateStyle", "ISO, MDY"),
    ("SET default_transaction_read_only = on", "SHOW default_transaction_read_only", "off"),
    ("SET my.secret = 'of the first'", "SELECT coalesce(current_setting('my.secret', true), '')", ""),
    ("SET ROLE half", "SELECT current_user", "app"),
    ("SET SESSION AUTHORIZATION app", "SELECT session_user", "app"),
    ("CREATE TEMP TABLE mine (n int)", "SELECT to_regclass('pg_temp.mine') IS NULL", "t"),
    ("SELECT pg_advisory_lock(4711)", "SELECT pg_try_advisory_lock(4711)", "t"),
    ("LISTEN ears", "SELECT count(*) FROM pg_listening_channels()", "0"),
    ("PREPARE plan AS SELECT 1", "SELECT count(*) FROM pg_prepared_statements WHERE name = 'plan'", "0"),
    (
        "BEGIN; DECLARE rows CURSOR WITH HOLD FOR SELECT 1; COMMIT",
        "SELECT count(*) FROM pg_cursors WHERE name = 'rows'",
        "0",
    ),
    ("DO $$ BEGIN PERFORM set_config('work_mem', '55MB', false); END $$", "SHOW work_mem", "4MB"),
    ("SET application_name = 'the first'", "SELECT current_setting('application_name') = 'the first'", "f"),
];

#[test]
fn nothing_is_left_for_the_next_client() {
    harness::run(180, async {
        let (_node, pgsteady) = started().await;
        let mut leaked = Vec::new();
        for (trace, question, fresh) in TRACES {
            // The first client stays connected, and its session with it.
            let first = pgsteady.endpoint().client().await;
            if let Err(error) = first.batch_execute(trace).await {
                leaked.push(format!("{trace}: {}", say(&error)));
            }
            let endpoint = pgsteady.endpoint();
            let second = tokio::time::timeout(std::time::Duration::from_secs(10), endpoint.client()).await;
            let Ok(second) = second else {
                leaked.push(format!("{trace}: the next client could not log in"));
                continue;
            };
            let asked = tokio::time::timeout(std::time::Duration::from_secs(1), column(&second, question)).await;
            match asked {
                Ok(Ok(rows)) if rows == [fresh] => {}
                // A client whose state cannot be moved may keep its server: the next one waits, it does not see it.
                Err(_) => {}
                answered => leaked.push(format!("{trace}: {question} gave {answered:?}")),
            }
        }
        assert!(leaked.is_empty(), "leaked:\n{}", leaked.join("\n"));
    });
}

/// Only a superuser can do this, and then it is another user who would be served by a superuser's server, or the reverse.
#[test]
fn who_a_session_is_stays_with_it() {
    harness::run(60, async {
        let (_node, pgsteady) = started().await;
        let endpoint = pgsteady.endpoint().with_user("steady", "steady-secret");
        for trace in
            ["SET SESSION AUTHORIZATION other", "SET ROLE other", "BEGIN; SET SESSION AUTHORIZATION other; COMMIT"]
        {
            let first = endpoint.client().await;
            first.batch_execute(trace).await.expect("a superuser may do this");
            let second = endpoint.client().await;
            let asked = column(&second, "SELECT session_user || ' as ' || current_user");
            // A client that keeps its server makes the next one wait; seeing it is what must not be.
            if let Ok(rows) = tokio::time::timeout(std::time::Duration::from_secs(1), asked).await {
                assert_eq!(rows.expect("a query"), ["steady as steady"], "after {trace}");
            }
            drop((first, second));
            let third = endpoint.client().await;
            assert_eq!(
                value(&third, "SELECT session_user || ' as ' || current_user").await,
                "steady as steady",
                "{trace}"
            );
        }
    });
}

#[test]
fn nothing_is_left_by_a_client_that_is_gone() {
    harness::run(180, async {
        let (_node, pgsteady) = started().await;
        for (trace, question, fresh) in TRACES {
            let first = pgsteady.endpoint().client().await;
            let _ = first.batch_execute(trace).await;
            drop(first);
            let second = pgsteady.endpoint().client().await;
            assert_eq!(value(&second, question).await, fresh, "{question} after {trace}");
        }
    });
}

#[test]
fn a_client_keeps_its_settings_whatever_server_it_gets() {
    harness::run(60, async {
        let node = Node::primary(&Programs::installed()).await;
        let pgsteady = Pgsteady::start(&Config::single(&node).set("database.app.pool_size", 2)).await;
        let mut clients = Vec::new();
        for number in 0..6 {
            let client = pgsteady.endpoint().client().await;
            client.batch_execute(&format!("SET application_name = 'client {number}'")).await.expect("a SET");
            client.batch_execute("SET DateStyle = 'German'").await.expect("a SET");
            clients.push(client);
        }
        for _ in 0..3 {
            for (number, client) in clients.iter().enumerate() {
                assert_eq!(value(client, "SHOW application_name").await, format!("client {number}"));
                assert_eq!(value(client, "SHOW DateStyle").await, "German, DMY");
            }
        }
    });
}

#[test]
fn set_local_and_a_rolled_back_set_end_with_the_transaction() {
    harness::run(60, async {
        let (_node, pgsteady) = started().await;
        let client = pgsteady.endpoint().client().await;
        client.batch_execute("BEGIN; SET LOCAL DateStyle = 'German'; COMMIT").await.expect("a transaction");
        assert_eq!(value(&client, "SHOW DateStyle").await, "ISO, MDY");
        client.batch_execute("BEGIN; SET DateStyle = 'German'; ROLLBACK").await.expect("a transaction");
        assert_eq!(value(&client, "SHOW DateStyle").await, "ISO, MDY");
        client.batch_execute("BEGIN; SET DateStyle = 'German'; COMMIT").await.expect("a transaction");
        assert_eq!(value(&client, "SHOW DateStyle").await, "German, DMY");
        client.batch_execute("RESET DateStyle").await.expect("a RESET");
        assert_eq!(value(&client, "SHOW DateStyle").await, "ISO, MDY");
    });
}

#[test]
fn a_session_keeps_who_it_is_whatever_server_it_gets() {
    harness::run(60, async {
        let (_node, pgsteady) = started().await;
        let endpoint = pgsteady.endpoint().with_user("steady", "steady-secret");
        let client = endpoint.client().await;
        client.batch_execute("CREATE ROLE worn; GRANT worn TO other").await.expect("a superuser may do this");
        client.batch_execute("SET work_mem = '7MB'").await.expect("a setting");
        client.batch_execute("SET SESSION AUTHORIZATION other").await.expect("a superuser may do this");
        client.batch_execute("SET ROLE worn").await.expect("a member may do this");
        let who = "SELECT session_user || ' as ' || current_user || ' with ' || current_setting('work_mem')";
        let other = endpoint.client().await;
        for _ in 0..5 {
            assert_eq!(value(&other, who).await, "steady as steady with 4MB");
            assert_eq!(value(&client, who).await, "other as worn with 7MB");
        }
        client.batch_execute("RESET SESSION AUTHORIZATION").await.expect("anybody may do this");
        assert_eq!(value(&other, who).await, "steady as steady with 4MB");
        assert_eq!(value(&client, who).await, "steady as steady with 7MB");
    });
}

/// What resets, and what a login asked for is as it was there. The last ones are undone, or followed by another value.
const RESETS: [(&str, &str); 9] = [
    ("RESET DateStyle; RESET search_path", "Postgres, MDY/pg_catalog"),
    ("SET DateStyle = 'German'; SET DateStyle TO DEFAULT", "Postgres, MDY/pg_catalog"),
    ("RESET ALL", "Postgres, MDY/pg_catalog"),
    ("DISCARD ALL", "Postgres, MDY/pg_catalog"),
    ("BEGIN; RESET DateStyle; RESET search_path", "Postgres, MDY/pg_catalog"),
    ("COMMIT", "Postgres, MDY/pg_catalog"),
    ("SET DateStyle = 'German'; SET search_path = public", "German, DMY/public"),
    ("BEGIN; RESET ALL; ROLLBACK", "German, DMY/public"),
    ("RESET DateStyle; SET DateStyle = 'SQL, DMY'; RESET search_path", "SQL, DMY/pg_catalog"),
];

#[test]
fn reset_goes_back_to_what_was_asked_at_the_login() {
    harness::run(90, async {
        for mode in ["session", "transaction"] {
            let node = Node::primary(&Programs::installed()).await;
            let config = Config::single(&node).set("auth.method", "trust").set("database.app.pool_mode", mode);
            let pgsteady = Pgsteady::start(&config).await;
            let login = [
                ("user", "app"),
                ("database", "app"),
                ("DateStyle", "Postgres, MDY"),
                ("options", "-c search_path=pg_catalog"),
            ];
            let mut client = Raw::login_with(pgsteady.port(), &login).await;
            let question = "SELECT current_setting('DateStyle') || '/' || current_setting('search_path')";
            for (statement, expected) in RESETS {
                client.query(statement).await;
                assert_eq!(answer(&client.query(question).await), expected, "{mode}: {statement}");
            }
            // The extended protocol, as drivers do it.
            client.query("SET DateStyle = 'German'").await;
            client.send(&[parse("", "RESET DateStyle"), bind("", &[]), execute(), sync()].concat()).await;
            client.until(b'Z').await;
            assert_eq!(answer(&client.query(question).await), "Postgres, MDY/pg_catalog", "{mode}, extended");
            // And nobody else gets it.
            let mut other = Raw::login(pgsteady.port(), "app", "app").await;
            assert_eq!(answer(&other.query(question).await), "ISO, MDY/\"$user\", public", "{mode}, another client");
        }
    });
}

/// The only value of an answer.
fn answer(messages: &[harness::wire::Message]) -> String {
    let row = messages.iter().find(|message| message.tag == b'D');
    row.unwrap_or_else(|| panic!("no row: {messages:?}")).columns().remove(0)
}
