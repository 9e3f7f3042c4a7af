//! How long clients wait when the primary is lost or changed: pgsteady beside Patroni with HAProxy, on the same hosts
//! (network namespaces) in one run, under the same writers. Needs root.

use std::fs;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use clap::Parser;
use harness::endpoint::Endpoint;
use harness::patroni::Pace;
use harness::writers::{Record, Writers};
use serde_json::{Value, json};
use tokio_postgres::Client;

use crate::patroni::WithPatroni;
use crate::steady::WithPgsteady;

mod patroni;
mod steady;

/// Writers at once, half of them in transaction blocks.
const WRITERS: i32 = 8;
/// Rows before each event, and after it on the new primary.
const ROWS: usize = 500;
/// Before an event.
const CALM: Duration = Duration::from_secs(2);
/// More than any of them takes.
const PATIENCE: Duration = Duration::from_secs(120);

/// What to measure.
#[derive(Debug, Parser)]
struct Options {
    /// Times that each event is brought about with pgsteady.
    #[arg(long, default_value_t = 10)]
    times: u32,
    /// Times with Patroni, which takes longer.
    #[arg(long, default_value_t = 2)]
    patroni_times: u32,
    /// Where the results go, as JSON.
    #[arg(long, default_value = "target/bench-failover.json")]
    output: PathBuf,
}

/// What happens to the primary.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Event {
    /// Everything on its host is killed.
    Killed,
    /// Its host says nothing more.
    Silent,
    /// An operator wants another one.
    Switchover,
}

impl Event {
    const ALL: [Self; 3] = [Self::Killed, Self::Silent, Self::Switchover];

    fn name(self) -> &'static str {
        match self {
            Self::Killed => "primary killed",
            Self::Silent => "host silent",
            Self::Switchover => "switchover",
        }
    }
}

/// A cluster, and what clients connect to.
trait System {
    /// Where clients connect.
    fn endpoint(&self) -> Endpoint;
    /// The superuser at the primary.
    async fn primary(&self) -> Client;
    /// Brings it about; returns before its end.
    async fn bring(&mut self, event: Event);
    /// After the new primary has been written to: all nodes are back.
    async fn restore(&mut self);
}

/// What clients saw of one event.
struct Seen {
    pause: Duration,
    dropped: usize,
    errors: usize,
    lost: usize,
}

/// All of one kind of event with one system.
struct Line {
    system: &'static str,
    event: Event,
    seen: Vec<Seen>,
}

#[tokio::main]
async fn main() {
    let options = Options::parse();
    let mut lines = Vec::new();
    let mut pgsteady = WithPgsteady::start().await;
    measure("pgsteady", &mut pgsteady, options.times, &mut lines).await;
    drop(pgsteady);
    for (name, pace) in [("Patroni, fastest", Pace::FASTEST), ("Patroni, default", Pace::DEFAULT)] {
        let mut patroni = WithPatroni::start(pace).await;
        measure(name, &mut patroni, options.patroni_times, &mut lines).await;
    }
    report(&options, &lines);
}

async fn measure(name: &'static str, system: &mut impl System, times: u32, lines: &mut Vec<Line>) {
    for event in Event::ALL {
        let mut line = Line { system: name, event, seen: Vec::new() };
        for number in 1..=times {
            let seen = one(system, event).await;
            eprintln!("{name}: {} {number}/{times}: {:.2?}, {} dropped", event.name(), seen.pause, seen.dropped);
            line.seen.push(seen);
        }
        lines.push(line);
    }
}

async fn one(system: &mut impl System, event: Event) -> Seen {
    system.primary().await.batch_execute("TRUNCATE written").await.expect("the table can be emptied");
    let writers = Writers::start(&system.endpoint(), WRITERS);
    writers.acknowledged(ROWS, PATIENCE).await;
    tokio::time::sleep(CALM).await;
    let from = Instant::now();
    system.bring(event).await;
    // rows that were under way, then those of the new primary
    tokio::time::sleep(CALM).await;
    writers.acknowledged(ROWS, PATIENCE).await;
    let record = writers.stop().await;
    let lost = record.missing(&system.primary().await).await.len();
    let seen =
        Seen { pause: pause(&record, from), dropped: record.dropped.len(), errors: record.errors.values().sum(), lost };
    system.restore().await;
    seen
}

/// The longest time after `from` without an acknowledgement to anybody.
fn pause(record: &Record, from: Instant) -> Duration {
    let after = record.acknowledged.iter().map(|(_, at)| *at).filter(|at| *at > from);
    let times: Vec<Instant> = std::iter::once(from).chain(after).collect();
    times.windows(2).map(|pair| pair[1] - pair[0]).max().unwrap_or_default()
}

fn report(options: &Options, lines: &[Line]) {
    println!(
        "\nTime without an acknowledged write when the primary is lost or changed; {WRITERS} writers, three nodes"
    );
    println!("| event | system | times | median | longest | clients dropped | errors | acknowledged and lost |");
    println!("|---|---|---|---|---|---|---|---|");
    let mut results = Vec::new();
    for event in Event::ALL {
        for line in lines.iter().filter(|line| line.event == event) {
            let mut pauses: Vec<f64> = line.seen.iter().map(|seen| seen.pause.as_secs_f64()).collect();
            pauses.sort_by(f64::total_cmp);
            let (median, longest) = (pauses[pauses.len() / 2], pauses[pauses.len() - 1]);
            let sum = |of: fn(&Seen) -> usize| line.seen.iter().map(of).sum::<usize>();
            let (dropped, errors, lost) = (sum(|seen| seen.dropped), sum(|seen| seen.errors), sum(|seen| seen.lost));
            println!(
                "| {} | {} | {} | {median:.2} s | {longest:.2} s | {dropped} | {errors} | {lost} |",
                event.name(),
                line.system,
                pauses.len()
            );
            results.push(json!({
                "event": event.name(), "system": line.system, "pauses_s": pauses, "dropped": dropped, "errors": errors,
                "lost": lost,
            }));
        }
    }
    if let Some(folder) = options.output.parent() {
        fs::create_dir_all(folder).expect("the folder of the results can be made");
    }
    let text = serde_json::to_string_pretty(&Value::Array(results)).expect("plain data is JSON");
    fs::write(&options.output, text).expect("the results can be written");
}
