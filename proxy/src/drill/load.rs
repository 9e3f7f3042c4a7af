//! Clients that write through the proxy and note what was acknowledged to them. They know nothing of the cluster.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use openssl::ssl::{SslConnector, SslMethod, SslVerifyMode};
use postgres_openssl::MakeTlsConnector;
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio_postgres::error::SqlState;
use tokio_postgres::{Client, Config, Statement};

/// The clients, at work.
pub(crate) struct Load {
    clients: JoinSet<Record>,
    stop: watch::Sender<bool>,
}

/// What one client saw.
#[derive(Debug, Default)]
pub(crate) struct Record {
    pub(crate) client: i32,
    /// Rows whose commit was acknowledged, and when; in the order of time.
    pub(crate) acknowledged: Vec<(i64, Instant)>,
    /// Rows whose commit was answered with "unknown", or not at all.
    pub(crate) in_doubt: Vec<i64>,
    /// How often its connection was lost.
    pub(crate) dropped: u64,
    /// Other errors by their text, and how often.
    pub(crate) errors: BTreeMap<String, u64>,
    /// When it stopped.
    pub(crate) stopped: Option<Instant>,
}

/// Table of the load.
pub(crate) const TABLE: &str = "pgsteady_drill";
/// Load before the first kill, and between the cluster being whole again and the next.
pub(crate) const KILL_FOLLOWS: Duration = Duration::from_secs(1);
/// Longer than any hold: a client that waits for longer counts as dropped.
const PATIENCE: Duration = Duration::from_secs(60);
/// Rows that one client notes (24 bytes each); then it stops.
const MAX_NOTED: usize = 1_000_000;
/// Different error texts that are kept.
const MAX_TEXTS: usize = 20;
/// Before another attempt after an error that says nothing about trying again, or without a connection.
const PAUSE: Duration = Duration::from_millis(50);

impl Load {
    /// Makes the table and lets the clients in.
    pub(crate) async fn start(place: &Config, clients: u16) -> Result<Self, String> {
        let failed = |error: tokio_postgres::Error| format!("the load does not start: {}", text(&error));
        let client = connect(place).await.map_err(failed)?;
        let table = format!("create table {TABLE} (client int not null, number bigint not null)");
        match client.batch_execute(&table).await {
            Err(error) if error.code() == Some(&SqlState::DUPLICATE_TABLE) => {
                return Err(format!(
                    "the table {TABLE} is there already: another drill is at work, or one was killed; if none is: DROP TABLE {TABLE}"
                ));
            }
            made => made.map_err(failed)?,
        }
        let (stop, stopped) = watch::channel(false);
        let mut set = JoinSet::new();
        for number in 0..i32::from(clients) {
            let writer = Writer { place: place.clone(), record: Record { client: number, ..Record::default() } };
            set.spawn(writer.work(stopped.clone()));
        }
        Ok(Self { clients: set, stop })
    }

    /// Ends it after the statements that are under way.
    pub(crate) async fn stop(self) -> Vec<Record> {
        let _ = self.stop.send(true);
        self.clients.join_all().await
    }
}

struct Writer {
    place: Config,
    record: Record,
}

/// How the attempt to write a row ended.
enum Outcome {
    Acknowledged,
    /// Certainly not committed; the same row may be tried again.
    RolledBack,
    /// Nobody knows.
    InDoubt,
    /// An error that says nothing else: the row is given up.
    Failed(String),
    /// The connection is gone, and the row is in doubt. Holds why.
    Dropped(String),
}

impl Writer {
    async fn work(mut self, stop: watch::Receiver<bool>) -> Record {
        let mut number = 0;
        while !*stop.borrow() && self.record.acknowledged.len() < MAX_NOTED {
            let Some((client, insert)) = self.connected().await else {
                tokio::time::sleep(PAUSE).await;
                continue;
            };
            self.write_on(&client, &insert, &mut number, &stop).await;
        }
        self.record.stopped = Some(Instant::now());
        self.record
    }

    async fn connected(&mut self) -> Option<(Client, Statement)> {
        let open = async {
            let client = connect(&self.place).await?;
            let insert = client.prepare(&format!("insert into {TABLE} values ($1, $2)")).await?;
            Ok((client, insert))
        };
        match tokio::time::timeout(PATIENCE, open).await {
            Ok(Ok(opened)) => Some(opened),
            Ok(Err(error)) => self.error(format!("connect: {}", text(&error))),
            Err(_) => self.error("connect: no answer".into()),
        }
    }

    fn error<T>(&mut self, text: String) -> Option<T> {
        if self.record.errors.len() < MAX_TEXTS || self.record.errors.contains_key(&text) {
            *self.record.errors.entry(text).or_default() += 1;
        }
        None
    }

    /// Writes on one connection until it is lost or the load ends.
    async fn write_on(&mut self, client: &Client, insert: &Statement, number: &mut i64, stop: &watch::Receiver<bool>) {
        *number += 1;
        while !*stop.borrow() && self.record.acknowledged.len() < MAX_NOTED {
            let attempt = write(client, insert, self.record.client, *number);
            let outcome =
                tokio::time::timeout(PATIENCE, attempt).await.unwrap_or_else(|_| Outcome::Dropped("no answer".into()));
            match outcome {
                Outcome::Acknowledged => self.record.acknowledged.push((*number, Instant::now())),
                Outcome::RolledBack => continue,
                Outcome::InDoubt => self.record.in_doubt.push(*number),
                Outcome::Failed(text) => {
                    let _: Option<()> = self.error(text);
                    tokio::time::sleep(PAUSE).await;
                }
                Outcome::Dropped(why) => {
                    let _: Option<()> = self.error(format!("connection lost: {why}"));
                    self.record.in_doubt.push(*number);
                    self.record.dropped += 1;
                    return;
                }
            }
            *number += 1;
        }
    }
}

/// Writes one row, in one of three ways in turn: simple, prepared, in a transaction block.
async fn write(client: &Client, insert: &Statement, worker: i32, number: i64) -> Outcome {
    let simple = format!("insert into {TABLE} values ({worker}, {number})");
    let done = match number % 3 {
        0 => client.simple_query(&simple).await.map(drop),
        1 => client.execute(insert, &[&worker, &number]).await.map(drop),
        _ => return in_block(client, insert, worker, number).await,
    };
    match done {
        Ok(()) => Outcome::Acknowledged,
        Err(error) => outcome(client, &error, true),
    }
}

async fn in_block(client: &Client, insert: &Statement, worker: i32, number: i64) -> Outcome {
    let before_commit = async {
        client.simple_query("begin").await?;
        client.execute(insert, &[&worker, &number]).await
    };
    let failed = match before_commit.await {
        Err(error) => outcome(client, &error, false),
        Ok(_) => match client.simple_query("commit").await {
            Ok(_) => return Outcome::Acknowledged,
            Err(error) => outcome(client, &error, true),
        },
    };
    if !client.is_closed() {
        // outside of a block this is a warning
        let _ = client.simple_query("rollback").await;
    }
    failed
}

fn outcome(client: &Client, error: &tokio_postgres::Error, may_be_committed: bool) -> Outcome {
    let Some(db) = error.as_db_error() else { return Outcome::Dropped(text(error)) };
    if client.is_closed() || matches!(db.severity(), "FATAL" | "PANIC") {
        return Outcome::Dropped(text(error));
    }
    match *db.code() {
        SqlState::T_R_SERIALIZATION_FAILURE => Outcome::RolledBack,
        SqlState::TRANSACTION_RESOLUTION_UNKNOWN | SqlState::T_R_STATEMENT_COMPLETION_UNKNOWN if may_be_committed => {
            Outcome::InDoubt
        }
        _ => Outcome::Failed(text(error)),
    }
}

/// Connects; certificates are not looked at, as libpq does with `sslmode=prefer` and `require`.
pub(crate) async fn connect(place: &Config) -> Result<Client, tokio_postgres::Error> {
    let mut tls = SslConnector::builder(SslMethod::tls_client()).expect("OpenSSL has TLS");
    tls.set_verify(SslVerifyMode::NONE);
    let (client, connection) = place.connect(MakeTlsConnector::new(tls.build())).await?;
    tokio::spawn(connection);
    Ok(client)
}

pub(crate) fn text(error: &tokio_postgres::Error) -> String {
    match error.as_db_error() {
        Some(db) => format!("{} {}", db.code().code(), db.message()),
        None => match std::error::Error::source(error) {
            Some(cause) => format!("{error}: {cause}"),
            None => error.to_string(),
        },
    }
}
