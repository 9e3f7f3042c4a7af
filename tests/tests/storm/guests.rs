//! Clients that a fault brings along: in the middle of something, or many. What becomes of them is judged when it has
//! healed: nobody outside of a transaction is disconnected, and nobody is told that something was done that was not.

use std::pin::Pin;
use std::time::Duration;

use bytes::Bytes;
use futures_util::SinkExt;
use harness::endpoint::{Endpoint, column, sqlstate};
use rand::RngExt;
use rand::rngs::SmallRng;
use tokio::task::JoinSet;
use tokio_postgres::{Client, CopyInSink, Error};

/// Those of one round. One ends with its instance and how, if it was disconnected.
pub(crate) type Guests = JoinSet<Result<(), (usize, String)>>;

/// Where they write.
const TABLE: &str = "CREATE TABLE IF NOT EXISTS guests (n bigint NOT NULL)";
/// Many, at each instance.
const CROWD: usize = 150;
/// Rows before and after the fault in one copy.
const COPIED: usize = 1000;
/// How long a transaction goes on if nothing befalls it.
const FETCHES: u32 = 100;
const PAUSE: Duration = Duration::from_millis(50);

/// One of them.
struct Guest {
    client: Client,
    instance: usize,
    /// What it writes, and nobody else.
    number: u32,
}

/// Those who come in at every instance, while there is a primary.
async fn let_in(instances: &[Endpoint], random: &mut SmallRng, each: usize) -> Vec<Guest> {
    let mut coming = JoinSet::new();
    for (instance, endpoint) in instances.iter().enumerate() {
        for _ in 0..each {
            let (endpoint, number) = (endpoint.clone(), random.random());
            coming.spawn(async move { Some(Guest { client: endpoint.connect().await.ok()?, instance, number }) });
        }
    }
    let guests: Vec<Guest> = coming.join_all().await.into_iter().flatten().collect();
    match guests.first() {
        Some(guest) if guest.told(TABLE).await == "done" => guests,
        _ => Vec::new(),
    }
}

/// A transaction with a cursor, a copy and a listener at each instance.
pub(crate) async fn busy(instances: &[Endpoint], random: &mut SmallRng, guests: &mut Guests) {
    for guest in let_in(instances, random, 1).await {
        let cursor = "DECLARE numbers CURSOR FOR SELECT generate_series(1, 1000)";
        if guest.told(&format!("BEGIN; INSERT INTO guests VALUES ({}); {cursor}", guest.number)).await == "done" {
            guests.spawn(transaction(guest));
        }
    }
    for guest in let_in(instances, random, 1).await {
        let Ok(sink) = guest.client.copy_in("COPY guests FROM STDIN").await else { continue };
        let mut sink = Box::pin(sink);
        if sink.send(guest.lines()).await.is_ok() {
            guests.spawn(copy(guest, sink));
        }
    }
    for guest in let_in(instances, random, 1).await {
        if guest.told("LISTEN guests").await == "done" {
            guests.spawn(async move { guest.ended("a listener", "none", 0).await });
        }
    }
}

async fn transaction(guest: Guest) -> Result<(), (usize, String)> {
    let mut told = "done".to_owned();
    for _ in 0..FETCHES {
        told = guest.told("FETCH numbers").await;
        if told != "done" {
            break;
        }
        tokio::time::sleep(PAUSE).await;
    }
    let commit = guest.told("COMMIT").await;
    let told = if told == "done" { commit } else { told };
    guest.ended("a transaction", &told, 1).await
}

async fn copy(guest: Guest, mut sink: Pin<Box<CopyInSink<Bytes>>>) -> Result<(), (usize, String)> {
    tokio::time::sleep(PAUSE).await;
    let told = match sink.send(guest.lines()).await {
        Ok(()) => sink.as_mut().finish().await.map(drop),
        Err(error) => Err(error),
    };
    guest.ended("a copy", &as_text(told), 2 * COPIED).await
}

/// Many who have just come, and write when [`Crowd::write`] says so.
pub(crate) struct Crowd(Vec<Guest>);

impl Crowd {
    pub(crate) async fn new(instances: &[Endpoint], random: &mut SmallRng) -> Self {
        Self(let_in(instances, random, CROWD).await)
    }

    pub(crate) fn write(self, guests: &mut Guests) {
        for guest in self.0 {
            guests.spawn(async move {
                let told = guest.told(&format!("INSERT INTO guests VALUES ({})", guest.number)).await;
                guest.ended("one of a crowd", &told, 1).await
            });
        }
    }
}

/// Clients whose commits would wait for no standby: none of them is told that it has committed.
pub(crate) async fn careless(instances: &[Endpoint], random: &mut SmallRng, guests: &mut Guests) {
    for guest in let_in(instances, random, 1).await {
        guests.spawn(async move {
            for sql in ["SET synchronous_commit = off", "SELECT set_config('synchronous_commit', 'local', false)"] {
                assert_ne!(guest.told(sql).await, "done", "{sql}");
            }
            let unseen = "DO $$ BEGIN PERFORM set_config('synchronous_commit', 'off', true); END $$";
            let insert = format!("INSERT INTO guests VALUES ({})", guest.number);
            let mut told = "done".to_owned();
            for sql in ["BEGIN", &insert, unseen, "COMMIT"] {
                told = guest.told(sql).await;
            }
            assert_ne!(told, "done", "a commit that waited for nobody");
            let _ = guest.told("ROLLBACK").await;
            guest.ended("one who does not wait", &told, 1).await
        });
    }
}

/// Waits for their ends; those whose instance was killed may have been disconnected.
pub(crate) async fn leave(guests: &mut Guests, faults: &str, killed: &[usize]) {
    while let Some(ended) = guests.join_next().await {
        if let Err((instance, how)) = ended.expect("a guest's own checks hold") {
            assert!(killed.contains(&instance), "K6: {faults}: {how}");
        }
    }
}

impl Guest {
    /// `done`, or the SQLSTATE of the error.
    async fn told(&self, sql: &str) -> String {
        as_text(self.client.batch_execute(sql).await)
    }

    /// Half of what it copies.
    fn lines(&self) -> Bytes {
        format!("{}\n", self.number).repeat(COPIED).into()
    }

    /// It was told how something ended that would have left so many rows; the connection has to be as good as ever.
    async fn ended(self, what: &str, told: &str, rows: usize) -> Result<(), (usize, String)> {
        // by the primary, whenever there is one
        let count = format!("SELECT count(*) FROM (SELECT FROM guests WHERE n = {} FOR SHARE) AS rows", self.number);
        let there = loop {
            match column(&self.client, &count).await {
                Ok(counted) => break counted[0].parse::<usize>().expect("a count"),
                Err(_) if self.client.is_closed() => return Err((self.instance, format!("{what} is disconnected"))),
                Err(_) => tokio::time::sleep(PAUSE).await,
            }
        };
        match told {
            "done" => assert_eq!(there, rows, "{what}: acknowledged, and lost"),
            "08007" => assert!(there == 0 || there == rows, "{what}: {there} of {rows} rows"),
            other => assert_eq!(there, 0, "{what}: {other}, and written"),
        }
        Ok(())
    }
}

fn as_text(ended: Result<(), Error>) -> String {
    match ended {
        Ok(()) => "done".to_owned(),
        Err(error) => sqlstate(&error).to_owned(),
    }
}
