//! What clients do while the cluster is in trouble: transactions whose histories show whether they were isolated,
//! transfers whose sum must not change, and clients that only want to stay connected. Each keeps a record; none knows of
//! the cluster. The writers of the harness work beside them.

use std::sync::atomic::{AtomicI64, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use harness::endpoint::{Endpoint, column, say, sqlstate};
use rand::rngs::SmallRng;
use rand::{RngExt, SeedableRng};
use serde_json::{Value, json};
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio_postgres::{Client, Error};

/// Tables of the workload, beside that of the writers. Where a row of the ledger was written is part of it.
pub(crate) const TABLES: &str = "\
CREATE TABLE lists (key int PRIMARY KEY, items int[] NOT NULL);
CREATE TABLE accounts (id int PRIMARY KEY, balance bigint NOT NULL);
INSERT INTO accounts SELECT id, 100 FROM generate_series(0, 19) AS id;
CREATE TABLE ledger (
    source int NOT NULL, target int NOT NULL, amount bigint NOT NULL,
    timeline int NOT NULL DEFAULT ('x' || left(pg_walfile_name(pg_current_wal_insert_lsn()), 8))::bit(32)::int);
GRANT ALL ON lists, accounts, ledger TO app";
/// Accounts of the bank, and what each has at first.
pub(crate) const ACCOUNTS: i32 = 20;
pub(crate) const FIRST_BALANCE: i64 = 100;
/// Clients of each kind at each instance.
const LISTERS: u64 = 3;
/// Keys that are appended to at a time.
const KEYS: i64 = 6;
/// Values on each key before another takes its place: lists stay short.
const LIST: i64 = 25;
/// Between two transactions of one client: the histories are for reading, not for load.
const PAUSE: Duration = Duration::from_millis(4);
/// Between two questions of the observers.
const LOOK: Duration = Duration::from_millis(40);
/// More than any hold: without an answer for as long, a client gives up.
const PATIENCE: Duration = Duration::from_secs(60);

/// The clients, at work.
pub(crate) struct Workload {
    stop: watch::Sender<bool>,
    clients: JoinSet<()>,
    shared: Arc<Shared>,
}

/// What all clients write their records into.
pub(crate) struct Shared {
    began: Instant,
    /// Transactions of the lists as operations of a history: `invoke`, then `ok`, `fail` or `info`.
    pub(crate) history: Mutex<Vec<Value>>,
    processes: AtomicU64,
    values: AtomicI64,
    /// Transfers that were acknowledged.
    pub(crate) transfers: Mutex<Vec<Transfer>>,
    /// What must not be: a wrong sum, another's answer, a number that went back.
    pub(crate) wrong: Mutex<Vec<String>>,
    /// Connections lost outside of a transaction, by instance.
    pub(crate) dropped: Mutex<Vec<(usize, String)>>,
    /// Questions of the observers that were answered.
    pub(crate) answers: AtomicU64,
}

/// An acknowledged transfer.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Transfer {
    pub(crate) began: Instant,
    pub(crate) acknowledged: Instant,
    pub(crate) timeline: i32,
}

/// How a transaction ended.
enum Ended<T> {
    Committed(T),
    /// For certain.
    RolledBack,
    /// Nobody knows, or the connection is gone.
    Unknown,
}

impl Workload {
    /// Starts clients of each kind at each of these; `seed` is for what they do.
    pub(crate) fn start(instances: &[Endpoint], seed: u64) -> Self {
        let shared = Arc::new(Shared {
            began: Instant::now(),
            history: Mutex::default(),
            processes: AtomicU64::new(0),
            values: AtomicI64::new(0),
            transfers: Mutex::default(),
            wrong: Mutex::default(),
            dropped: Mutex::default(),
            answers: AtomicU64::new(0),
        });
        let (stop, stopped) = watch::channel(false);
        let mut clients = JoinSet::new();
        for (instance, endpoint) in instances.iter().enumerate() {
            let numbered = |number: u64| At {
                instance,
                endpoint: endpoint.clone(),
                shared: Arc::clone(&shared),
                stopped: stopped.clone(),
                random: SmallRng::seed_from_u64(seed ^ (number << 8) ^ instance as u64),
            };
            for number in 0..LISTERS {
                clients.spawn(numbered(number).lists());
            }
            clients.spawn(numbered(LISTERS).transfers());
            clients.spawn(numbered(LISTERS + 1).observe());
        }
        Self { stop, clients, shared }
    }

    /// Stops them, and gives their records.
    pub(crate) async fn stop(self) -> Arc<Shared> {
        self.stop.send_replace(true);
        self.clients.join_all().await;
        self.shared
    }
}

/// One client at one instance.
struct At {
    instance: usize,
    endpoint: Endpoint,
    shared: Arc<Shared>,
    stopped: watch::Receiver<bool>,
    random: SmallRng,
}

impl At {
    fn is_over(&self) -> bool {
        *self.stopped.borrow()
    }

    /// A connection; `None` when the load is over before there is one.
    async fn connected(&self) -> Option<Client> {
        while !self.is_over() {
            match tokio::time::timeout(PATIENCE, self.endpoint.connect()).await {
                Ok(Ok(client)) => return Some(client),
                _ => tokio::time::sleep(LOOK).await,
            }
        }
        None
    }

    /// Serializable transactions that append to lists and read them, as a history.
    async fn lists(mut self) {
        while let Some(client) = self.connected().await {
            let process = self.shared.processes.fetch_add(1, Ordering::Relaxed);
            while !self.is_over() && !client.is_closed() {
                let operations = self.operations();
                self.shared.note("invoke", process, &operations);
                match ended(&client, "ISOLATION LEVEL SERIALIZABLE", perform(&client, &operations)).await {
                    Ended::Committed(done) => self.shared.note("ok", process, &done),
                    Ended::RolledBack => self.shared.note("fail", process, &operations),
                    Ended::Unknown => {
                        self.shared.note("info", process, &operations);
                        // whoever does not know how it ended is another one from now on
                        break;
                    }
                }
                tokio::time::sleep(PAUSE).await;
            }
        }
    }

    /// One to three appends and reads.
    fn operations(&mut self) -> Vec<Value> {
        let count = self.random.random_range(1..=3);
        (0..count).map(|_| self.operation()).collect()
    }

    fn operation(&mut self) -> Value {
        let value = self.shared.values.load(Ordering::Relaxed);
        let key = value / (KEYS * LIST) * KEYS + self.random.random_range(0..KEYS);
        if self.random.random_bool(0.5) {
            json!(["append", key, self.shared.values.fetch_add(1, Ordering::Relaxed)])
        } else {
            json!(["r", key, null])
        }
    }

    /// Transfers between accounts, with a ledger.
    async fn transfers(mut self) {
        while let Some(client) = self.connected().await {
            while !self.is_over() && !client.is_closed() {
                let began = Instant::now();
                let (from, to) = (self.random.random_range(0..ACCOUNTS), self.random.random_range(0..ACCOUNTS));
                let amount = self.random.random_range(1..10);
                match ended(&client, "", transfer(&client, from, to, amount)).await {
                    Ended::Committed(timeline) => {
                        let transfer = Transfer { began, acknowledged: Instant::now(), timeline };
                        locked(&self.shared.transfers).push(transfer);
                    }
                    Ended::RolledBack => {}
                    Ended::Unknown => break,
                }
                tokio::time::sleep(PAUSE).await;
            }
        }
    }

    /// Asks what has one right answer, and what must not go back, mostly from replicas; its connection is to last.
    async fn observe(mut self) {
        let mut asked = 0_u64;
        while let Some(client) = self.connected().await {
            let (mut seen, mut open) = (0, true);
            while open && !self.is_over() {
                asked += 1;
                let looked = tokio::time::timeout(PATIENCE, self.look(&client, asked, &mut seen)).await;
                match looked.map_err(|_| "no answer".to_owned()) {
                    Ok(Ok(())) => {}
                    Ok(Err(error)) if !client.is_closed() && !sqlstate(&error).is_empty() => self.refused(&error),
                    Ok(Err(error)) => open = self.lost(say(&error)),
                    Err(said) => open = self.lost(said),
                }
                tokio::time::sleep(LOOK).await;
            }
        }
    }

    /// A reader may be told to try again, and nothing else.
    fn refused(&self, error: &Error) {
        if !["40001", "57P03"].contains(&sqlstate(error)) {
            self.shared.wrong(format!("an observer was told {}", say(error)));
        }
    }

    fn lost(&self, why: String) -> bool {
        locked(&self.shared.dropped).push((self.instance, why));
        false
    }

    async fn look(&mut self, client: &Client, asked: u64, seen: &mut i64) -> Result<(), Error> {
        let token = format!("{}-{asked}-{}", self.instance, self.random.random::<u32>());
        let simple = column(client, &format!("SELECT '{token}'")).await?;
        if simple != [token.as_str()] {
            self.shared.wrong(format!("asked for {token}, answered {simple:?}"));
        }
        let prepared: String = client.query_one("SELECT $1::text", &[&token]).await?.get(0);
        if prepared != token {
            self.shared.wrong(format!("asked for {token}, answered {prepared}"));
        }
        let sum: i64 = client.query_one("SELECT sum(balance)::bigint FROM accounts", &[]).await?.get(0);
        if sum != i64::from(ACCOUNTS) * FIRST_BALANCE {
            self.shared.wrong(format!("the sum of all accounts is {sum}"));
        }
        let rows: i64 = client.query_one("SELECT count(*) FROM ledger", &[]).await?.get(0);
        if rows < *seen {
            self.shared.wrong(format!("a session saw {seen} rows of the ledger, then {rows}"));
        }
        *seen = rows;
        self.shared.answers.fetch_add(4, Ordering::Relaxed);
        Ok(())
    }
}

impl Shared {
    fn note(&self, kind: &str, process: u64, operations: &[Value]) {
        let mut history = locked(&self.history);
        let time = u64::try_from(self.began.elapsed().as_nanos()).unwrap_or(u64::MAX);
        let index = history.len();
        history.push(json!({
            "index": index, "type": kind, "f": "txn", "process": process, "time": time, "value": operations,
        }));
    }

    fn wrong(&self, what: String) {
        locked(&self.wrong).push(what);
    }
}

/// What a record holds; a panic of its writer shows elsewhere.
pub(crate) fn locked<T>(record: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    record.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Begins a transaction, does this in it and commits.
async fn ended<T>(client: &Client, mode: &str, work: impl Future<Output = Result<T, Error>>) -> Ended<T> {
    let before_commit = async {
        client.batch_execute(&format!("BEGIN {mode}")).await?;
        work.await
    };
    match tokio::time::timeout(PATIENCE, before_commit).await {
        Ok(Ok(done)) => match tokio::time::timeout(PATIENCE, client.batch_execute("COMMIT")).await {
            Ok(Ok(())) => Ended::Committed(done),
            Ok(Err(error)) if !client.is_closed() && ["40001", "40P01", "25006"].contains(&sqlstate(&error)) => {
                Ended::RolledBack
            }
            _ => Ended::Unknown,
        },
        // no COMMIT was sent: whatever happens to the connection, nothing is committed
        Ok(Err(_)) => {
            let _ = tokio::time::timeout(PATIENCE, client.batch_execute("ROLLBACK")).await;
            Ended::RolledBack
        }
        Err(_) => Ended::Unknown,
    }
}

/// Performs operations of a history; what was read is filled in.
async fn perform(client: &Client, operations: &[Value]) -> Result<Vec<Value>, Error> {
    let mut done = Vec::new();
    for operation in operations {
        let (key, value) = (&operation[1], &operation[2]);
        if operation[0] == "append" {
            let appended = format!(
                "INSERT INTO lists VALUES ({key}, ARRAY[{value}]) \
                 ON CONFLICT (key) DO UPDATE SET items = lists.items || {value}"
            );
            client.batch_execute(&appended).await?;
            done.push(operation.clone());
        } else {
            done.push(json!(["r", key, read(client, key).await?]));
        }
    }
    Ok(done)
}

/// A list as it is now.
pub(crate) async fn read(client: &Client, key: &Value) -> Result<Vec<i64>, Error> {
    let items = column(client, &format!("SELECT unnest(items) FROM lists WHERE key = {key}")).await?;
    Ok(items.iter().map(|item| item.parse().expect("items are numbers")).collect())
}

async fn transfer(client: &Client, from: i32, to: i32, amount: i64) -> Result<i32, Error> {
    let sign = if from < to { 1 } else { -1 };
    // in one order, so that two of them do not wait for each other
    for (account, change) in [(from.min(to), -sign * amount), (from.max(to), sign * amount)] {
        let update = format!("UPDATE accounts SET balance = balance + {change} WHERE id = {account}");
        client.batch_execute(&update).await?;
    }
    let insert = format!("INSERT INTO ledger VALUES ({from}, {to}, {amount}) RETURNING timeline");
    let timeline = column(client, &insert).await?;
    Ok(timeline[0].parse().expect("timelines are numbers"))
}
