//! Prepared statements in transaction mode: any name, on whatever server the transaction gets, and never somebody else's.

use harness::endpoint::{sqlstate, value};
use harness::pgsteady::{Config, Pgsteady};
use harness::postgres::{Node, Programs};
use harness::wire::{Message, Raw, bind, execute, frame, parse, query, sync};

/// Two servers, no password, so that raw clients get in.
async fn started() -> (Node, Pgsteady) {
    let node = Node::primary(&Programs::installed()).await;
    let config = Config::single(&node).set("database.app.pool_size", 2).set("auth.method", "trust");
    let pgsteady = Pgsteady::start(&config).await;
    (node, pgsteady)
}

async fn login(pgsteady: &Pgsteady) -> Raw {
    Raw::login(pgsteady.port(), "trusting", "app").await
}

fn tags(messages: &[Message]) -> String {
    messages.iter().map(|message| char::from(message.tag)).collect()
}

fn row(messages: &[Message]) -> Vec<String> {
    messages.iter().find(|message| message.tag == b'D').map(Message::columns).unwrap_or_default()
}

fn error(messages: &[Message]) -> String {
    messages.iter().find(|message| message.tag == b'E').and_then(|message| message.field(b'C')).unwrap_or_default()
}

async fn exchange(raw: &mut Raw, parts: &[Vec<u8>]) -> Vec<Message> {
    raw.send(&parts.concat()).await;
    raw.until(b'Z').await
}

/// Keeps one of the two servers busy, so that the next transaction gets the other.
async fn hold_one(raw: &mut Raw) {
    assert_eq!(tags(&raw.query("BEGIN").await), "CZ");
    assert_eq!(tags(&raw.query("SELECT 1").await), "TDCZ");
}

#[test]
fn a_statement_works_on_every_server() {
    harness::run(60, async {
        let (_node, pgsteady) = started().await;
        let (mut raw, mut holder) = (login(&pgsteady).await, login(&pgsteady).await);
        let pid = "SELECT pg_backend_pid()::text, $1::text";
        assert_eq!(tags(&exchange(&mut raw, &[parse("mine", pid), sync()]).await), "1Z");
        let mut servers = std::collections::BTreeSet::new();
        for turn in 0..6 {
            if turn % 2 == 0 {
                hold_one(&mut holder).await;
            } else {
                assert_eq!(tags(&holder.query("COMMIT").await), "CZ");
            }
            let answer = exchange(&mut raw, &[bind("mine", &["x"]), execute(), sync()]).await;
            assert_eq!(tags(&answer), "2DCZ", "turn {turn}: {}", error(&answer));
            servers.insert(row(&answer)[0].clone());
            // Whoever is in between takes a turn on this server, so that the next one is not given in order.
            let mut other = login(&pgsteady).await;
            assert_eq!(tags(&other.query("SELECT 1").await), "TDCZ");
        }
        assert_eq!(servers.len(), 2, "this has seen one server only");
    });
}

#[test]
fn the_same_name_means_each_clients_own_statement() {
    harness::run(60, async {
        let (_node, pgsteady) = started().await;
        let mut clients = Vec::new();
        for number in 0..6 {
            let mut raw = login(&pgsteady).await;
            let sql = format!("SELECT $1::text || ' of {number}'");
            assert_eq!(tags(&exchange(&mut raw, &[parse("s1", &sql), sync()]).await), "1Z");
            clients.push(raw);
        }
        for round in 0..3 {
            for (number, raw) in clients.iter_mut().enumerate() {
                let answer = exchange(raw, &[bind("s1", &["row"]), execute(), sync()]).await;
                assert_eq!(row(&answer), [format!("row of {number}")], "round {round}: {}", error(&answer));
            }
        }
    });
}

#[test]
fn the_unnamed_statement_is_each_clients_own_too() {
    harness::run(60, async {
        let (_node, pgsteady) = started().await;
        let (mut one, mut two) = (login(&pgsteady).await, login(&pgsteady).await);
        assert_eq!(tags(&exchange(&mut one, &[parse("", "SELECT 'one'"), sync()]).await), "1Z");
        assert_eq!(tags(&exchange(&mut two, &[parse("", "SELECT 'two'"), sync()]).await), "1Z");
        // The unnamed statement outlives its transaction; the server of the second bind may be another one.
        let answer = exchange(&mut one, &[bind("", &[]), execute(), sync()]).await;
        assert_eq!(row(&answer), ["one"], "{}", error(&answer));
        let answer = exchange(&mut two, &[bind("", &[]), execute(), sync()]).await;
        assert_eq!(row(&answer), ["two"], "{}", error(&answer));
    });
}

#[test]
fn a_name_counts_only_when_the_server_took_it() {
    harness::run(60, async {
        let (_node, pgsteady) = started().await;
        let mut raw = login(&pgsteady).await;
        let answer = exchange(&mut raw, &[parse("bad", "SELECT * FROM nowhere"), sync()]).await;
        assert_eq!((tags(&answer).as_str(), error(&answer).as_str()), ("EZ", "42P01"));
        let answer = exchange(&mut raw, &[bind("bad", &[]), execute(), sync()]).await;
        assert_eq!((tags(&answer).as_str(), error(&answer).as_str()), ("EZ", "26000"));
        // The second Parse is skipped by the server, because an error came before it.
        let parts = [parse("worse", "SELECT 1 FROM nowhere"), parse("skipped", "SELECT 1"), sync()];
        assert_eq!(tags(&exchange(&mut raw, &parts).await), "EZ");
        let answer = exchange(&mut raw, &[bind("skipped", &[]), execute(), sync()]).await;
        assert_eq!(error(&answer), "26000", "{}", tags(&answer));
        let answer = exchange(&mut raw, &[parse("bad", "SELECT 5"), bind("bad", &[]), execute(), sync()]).await;
        assert_eq!(tags(&answer), "12DCZ");
        let answer = exchange(&mut raw, &[parse("bad", "SELECT 6"), sync()]).await;
        assert_eq!(error(&answer), "42P05", "a name is taken until it is closed: {}", tags(&answer));
    });
}

#[test]
fn closing_forgets_it() {
    harness::run(60, async {
        let (_node, pgsteady) = started().await;
        let mut raw = login(&pgsteady).await;
        let close = frame(b'C', b"Sgone\0");
        let parts = [parse("gone", "SELECT 1"), close, sync()];
        assert_eq!(tags(&exchange(&mut raw, &parts).await), "13Z");
        let answer = exchange(&mut raw, &[bind("gone", &[]), execute(), sync()]).await;
        assert_eq!(error(&answer), "26000");
        let answer = exchange(&mut raw, &[parse("gone", "SELECT 'new'"), bind("gone", &[]), execute(), sync()]).await;
        assert_eq!(row(&answer), ["new"]);
        for all in ["DEALLOCATE ALL", "DISCARD ALL"] {
            let answer = exchange(&mut raw, &[parse("", "SELECT 1"), parse(all, "SELECT 'kept'"), sync()]).await;
            assert_eq!(tags(&answer), "11Z");
            assert_eq!(tags(&raw.query(all).await), "CZ", "{all}");
            let answer = exchange(&mut raw, &[bind(all, &[]), execute(), sync()]).await;
            assert_eq!(error(&answer), "26000", "after {all}: {}", tags(&answer));
        }
    });
}

#[test]
fn describe_answers_for_the_clients_own_statement() {
    harness::run(60, async {
        let (_node, pgsteady) = started().await;
        let client = pgsteady.endpoint().client().await;
        let statement = client.prepare("SELECT $1::int AS first, $2::text AS second").await.expect("a prepare");
        let names: Vec<&str> = statement.columns().iter().map(tokio_postgres::Column::name).collect();
        assert_eq!((statement.params().len(), names), (2, vec!["first", "second"]));
        for number in 0..20_i32 {
            let row = client.query_one(&statement, &[&number, &"x"]).await.expect("a query");
            assert_eq!(row.get::<_, i32>(0), number);
        }
    });
}

#[test]
fn a_changed_table_is_an_error_once_and_not_a_wrong_row() {
    harness::run(60, async {
        let (_node, pgsteady) = started().await;
        let client = pgsteady.endpoint().client().await;
        client.batch_execute("CREATE TABLE shape (a int)").await.expect("a table");
        client.batch_execute("INSERT INTO shape VALUES (1)").await.expect("a row");
        let statement = client.prepare("SELECT * FROM shape").await.expect("a prepare");
        client.query_one(&statement, &[]).await.expect("one row");
        client.batch_execute("ALTER TABLE shape ADD b text DEFAULT 'b'").await.expect("a column");
        let answer = client.query_one(&statement, &[]).await;
        // PostgreSQL: "cached plan must not change result type".
        assert!(answer.is_err_and(|error| sqlstate(&error) == "0A000"));
        let fresh = client.query_one("SELECT * FROM shape", &[]).await.expect("a new statement");
        assert_eq!(fresh.len(), 2);
    });
}

#[test]
fn more_statements_than_a_server_keeps() {
    harness::run(120, async {
        let node = Node::primary(&Programs::installed()).await;
        let config = Config::single(&node)
            .set("database.app.pool_size", 2)
            .set("limits.max_prepared_statements", 20)
            .set("auth.method", "trust");
        let pgsteady = Pgsteady::start(&config).await;
        let mut raw = login(&pgsteady).await;
        for number in 0..200 {
            let sql = format!("SELECT {number}, count(*) FROM pg_prepared_statements");
            assert_eq!(tags(&exchange(&mut raw, &[parse(&format!("s{number}"), &sql), sync()]).await), "1Z");
        }
        for number in (0..200).rev() {
            let answer = exchange(&mut raw, &[bind(&format!("s{number}"), &[]), execute(), sync()]).await;
            let columns = row(&answer);
            assert_eq!(columns.first(), Some(&number.to_string()), "{}", error(&answer));
            let kept: usize = columns[1].parse().expect("a number");
            assert!(kept <= 21, "{kept} statements on a server that may keep 20");
        }
    });
}

#[test]
fn a_long_pipeline_with_an_error_in_it_answers_in_order() {
    harness::run(60, async {
        let (_node, pgsteady) = started().await;
        let mut raw = login(&pgsteady).await;
        let mut bytes = Vec::new();
        for number in 0..300 {
            let sql = if number % 50 == 17 { "SELECT 1/0".to_owned() } else { format!("SELECT {number}") };
            bytes.extend([parse("", &sql), bind("", &[]), execute(), sync()].concat());
        }
        bytes.extend(query("SELECT 'end'"));
        raw.send(&bytes).await;
        for number in 0..300 {
            let answer = raw.until(b'Z').await;
            if number % 50 == 17 {
                assert_eq!(error(&answer), "22012", "{number}: {}", tags(&answer));
            } else {
                assert_eq!(row(&answer), [number.to_string()], "{}", tags(&answer));
            }
        }
        assert_eq!(row(&raw.until(b'Z').await), ["end"]);
    });
}

#[test]
fn sql_level_prepare_stays_with_its_client() {
    harness::run(60, async {
        let (_node, pgsteady) = started().await;
        let client = pgsteady.endpoint().client().await;
        client.batch_execute("PREPARE plan AS SELECT 'planned'").await.expect("a PREPARE");
        for _ in 0..10 {
            let other = pgsteady.endpoint().client().await;
            assert_eq!(value(&other, "SELECT count(*) FROM pg_prepared_statements WHERE name = 'plan'").await, "0");
            assert_eq!(value(&client, "EXECUTE plan").await, "planned");
        }
    });
}
