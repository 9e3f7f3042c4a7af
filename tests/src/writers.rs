//! Writers that keep a record of every row they tried to write, and the check that follows a fault: nothing
//! acknowledged is missing, nothing refused is there, nothing is there twice.

use std::collections::{HashMap, HashSet};
use std::ops::Range;
use std::time::{Duration, Instant, SystemTime};

use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio_postgres::{Client, Error};

use crate::endpoint::{Endpoint, say, sqlstate, value};

/// No primary key on purpose: a row written twice must show.
pub const TABLE: &str = "CREATE TABLE written (worker int NOT NULL, seq bigint NOT NULL)";
/// How long a writer waits for one answer before the test is wrong: more than any hold.
const ANSWER_LIMIT: Duration = Duration::from_secs(60);
/// Pause after an error, so that a refusing server is not asked in a tight loop.
const AFTER_ERROR: Duration = Duration::from_millis(50);

/// A row: worker and number.
pub type Row = (i32, i64);

/// What the writers saw.
#[derive(Debug, Default)]
pub struct Record {
    /// Acknowledged, with the time of the acknowledgement.
    pub acknowledged: Vec<(Row, Instant)>,
    /// Refused for certain: an error that says that nothing was committed.
    pub refused: Vec<Row>,
    /// Neither: the connection broke, or the error says that the outcome is not known.
    pub in_doubt: Vec<Row>,
    /// Connections that were closed under a writer.
    pub dropped: Vec<String>,
    /// Errors with their SQLSTATE, counted.
    pub errors: HashMap<String, usize>,
}

/// Writers at work.
#[derive(Debug)]
pub struct Writers {
    stop: watch::Sender<bool>,
    acknowledged: watch::Sender<usize>,
    tasks: JoinSet<Record>,
}

impl Writers {
    /// Starts `count` writers, each with a connection of its own. Every second one writes in explicit transactions.
    #[must_use]
    pub fn start(endpoint: &Endpoint, count: i32) -> Self {
        Self::numbered(endpoint, 0..count)
    }

    /// The same with numbers of their own, for several groups of writers on one table.
    #[must_use]
    pub fn numbered(endpoint: &Endpoint, workers: Range<i32>) -> Self {
        let (stop, stopped) = watch::channel(false);
        let (acknowledged, _) = watch::channel(0);
        let mut tasks = JoinSet::new();
        for worker in workers {
            let writer = Writer {
                endpoint: endpoint.clone(),
                worker,
                record: Record::default(),
                total: acknowledged.clone(),
                stopped: stopped.clone(),
            };
            tasks.spawn(writer.work());
        }
        Self { stop, acknowledged, tasks }
    }

    /// Waits until so many more rows have been acknowledged.
    ///
    /// # Panics
    /// When that takes longer than `limit`.
    pub async fn acknowledged(&self, more: usize, limit: Duration) {
        let mut total = self.acknowledged.subscribe();
        let goal = *total.borrow() + more;
        let reached = tokio::time::timeout(limit, total.wait_for(|total| *total >= goal)).await;
        assert!(reached.is_ok(), "fewer than {more} more rows were acknowledged within {limit:?}");
    }

    /// How many rows have been acknowledged so far.
    #[must_use]
    pub fn so_far(&self) -> usize {
        *self.acknowledged.borrow()
    }

    /// Stops them and puts their records together.
    ///
    /// # Panics
    /// When a writer panicked.
    pub async fn stop(mut self) -> Record {
        self.stop.send_replace(true);
        let mut whole = Record::default();
        while let Some(record) = self.tasks.join_next().await {
            whole.add(record.expect("a writer does not panic"));
        }
        whole
    }
}

struct Writer {
    endpoint: Endpoint,
    worker: i32,
    record: Record,
    total: watch::Sender<usize>,
    stopped: watch::Receiver<bool>,
}

impl Writer {
    async fn work(mut self) -> Record {
        let mut seq = 0;
        while !*self.stopped.borrow() {
            match self.endpoint.connect().await {
                Ok(client) => self.write_until_dropped(&client, &mut seq).await,
                Err(error) => self.note_error(&format!("login: {}", say(&error))).await,
            }
        }
        self.record
    }

    async fn write_until_dropped(&mut self, client: &Client, seq: &mut i64) {
        while !*self.stopped.borrow() {
            *seq += 1;
            let row = (self.worker, *seq);
            let written = tokio::time::timeout(ANSWER_LIMIT, write(client, row)).await;
            match written {
                Ok(Ok(())) => {
                    self.record.acknowledged.push((row, Instant::now()));
                    self.total.send_modify(|total| *total += 1);
                }
                Ok(Err(failure)) => self.note_failure(client, row, &failure).await,
                Err(_) => {
                    self.record.in_doubt.push(row);
                    self.record.dropped.push(format!("no answer for {ANSWER_LIMIT:?}"));
                    return;
                }
            }
            if client.is_closed() {
                return;
            }
        }
    }

    async fn note_failure(&mut self, client: &Client, row: Row, failure: &Failure) {
        if client.is_closed() || sqlstate(&failure.error).is_empty() {
            self.record.dropped.push(format!("{}: {}", failure.step, say(&failure.error)));
            self.record.in_doubt.push(row);
        } else if ["08007", "40003", "08006"].contains(&sqlstate(&failure.error)) {
            self.record.in_doubt.push(row);
        } else {
            self.record.refused.push(row);
        }
        let _ = client.batch_execute("ROLLBACK").await;
        self.note_error(&format!("{}: {}", failure.step, say(&failure.error))).await;
    }

    async fn note_error(&mut self, error: &str) {
        *self.record.errors.entry(error.to_owned()).or_default() += 1;
        tokio::time::sleep(AFTER_ERROR).await;
    }
}

struct Failure {
    step: &'static str,
    error: Error,
}

/// Writes one row: even workers by one statement, odd ones in a transaction.
async fn write(client: &Client, (worker, seq): Row) -> Result<(), Failure> {
    let at = |step| move |error| Failure { step, error };
    let insert = "INSERT INTO written (worker, seq) VALUES ($1, $2)";
    if worker % 2 == 0 {
        return client.execute(insert, &[&worker, &seq]).await.map(|_| ()).map_err(at("autocommit"));
    }
    client.batch_execute("BEGIN").await.map_err(at("begin"))?;
    client.execute(insert, &[&worker, &seq]).await.map_err(at("insert"))?;
    client.batch_execute("COMMIT").await.map_err(at("commit"))
}

/// How often each row is there.
async fn found(client: &Client) -> HashMap<Row, i64> {
    let rows = client.query("SELECT worker, seq, count(*) FROM written GROUP BY 1, 2", &[]).await;
    let rows = rows.unwrap_or_else(|error| panic!("the rows cannot be read back: {}", say(&error)));
    rows.iter().map(|row| ((row.get(0), row.get(1)), row.get(2))).collect()
}

/// A moment as the logs show it: seconds since 1970.
fn wall_clock(at: Instant) -> String {
    let since = (SystemTime::now() - at.elapsed()).duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    format!("{:.3}", since.as_secs_f64())
}

/// Which node it is, and how far along.
async fn whereabouts(client: &Client) -> String {
    let sql = "SELECT current_setting('data_directory') || CASE WHEN pg_is_in_recovery() \
               THEN ' (standby, replayed ' || pg_last_wal_replay_lsn() ELSE ' (primary, wrote ' || pg_current_wal_lsn() END \
               || ')'";
    value(client, sql).await
}

impl Record {
    /// Takes in what others saw.
    pub fn add(&mut self, other: Self) {
        self.acknowledged.extend(other.acknowledged);
        self.acknowledged.sort_by_key(|(_, at)| *at);
        self.refused.extend(other.refused);
        self.in_doubt.extend(other.in_doubt);
        self.dropped.extend(other.dropped);
        for (error, count) in other.errors {
            *self.errors.entry(error).or_default() += count;
        }
    }

    /// The longest time without an acknowledgement, from the first to the last.
    #[must_use]
    pub fn longest_gap(&self) -> Duration {
        let times = self.acknowledged.iter().map(|(_, at)| *at);
        times.clone().zip(times.skip(1)).map(|(before, after)| after - before).max().unwrap_or_default()
    }

    /// Rows that were acknowledged and are not on a node.
    ///
    /// # Panics
    /// When they cannot be read.
    pub async fn missing(&self, client: &Client) -> Vec<Row> {
        let found = found(client).await;
        self.acknowledged.iter().map(|(row, _)| *row).filter(|row| !found.contains_key(row)).collect()
    }

    /// Compares the record with what a node holds.
    ///
    /// # Panics
    /// When an acknowledged row is missing, a refused one is there, one is there twice, or nobody wrote it; and when
    /// so little was written that the comparison means nothing.
    pub async fn check(&self, client: &Client) {
        let found = found(client).await;
        let acknowledged: HashSet<Row> = self.acknowledged.iter().map(|(row, _)| *row).collect();
        let tried: HashSet<Row> = acknowledged.iter().chain(&self.refused).chain(&self.in_doubt).copied().collect();
        let lost = self.acknowledged.iter().filter(|(row, _)| !found.contains_key(row));
        let lost: Vec<(Row, String)> = lost.map(|(row, at)| (*row, wall_clock(*at))).collect();
        let twice: Vec<&Row> = found.iter().filter(|(_, count)| **count > 1).map(|(row, _)| row).collect();
        let unasked: Vec<&Row> = found.keys().filter(|row| !tried.contains(*row)).collect();
        let despite: Vec<&Row> = self.refused.iter().filter(|row| found.contains_key(*row)).collect();
        if !lost.is_empty() {
            panic!("acknowledged and not on {}: {lost:?}", whereabouts(client).await);
        }
        assert!(twice.is_empty(), "written twice: {twice:?}");
        assert!(unasked.is_empty(), "written by nobody: {unasked:?}");
        assert!(despite.is_empty(), "refused and written: {despite:?}; errors: {:?}", self.errors);
        assert!(acknowledged.len() >= 100, "only {} rows: this shows nothing", acknowledged.len());
    }
}
