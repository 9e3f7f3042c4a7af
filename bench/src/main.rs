//! pgsteady side by side with PgBouncer on this machine: CPU time of the pooler per transaction of `pgbench -S`.
//! The two take turns (A B A B …), so that whatever else the machine does hits both. Only ratios mean anything.

use std::fs;
use std::path::PathBuf;

use clap::Parser;
use harness::pgsteady::{Config, Pgsteady};
use harness::postgres::{Node, Programs};
use serde_json::{Value, json};

use crate::measure::{Load, Sample};
use crate::pgbouncer::PgBouncer;

mod measure;
mod pgbouncer;

/// Servers of each pool.
const POOL_SIZE: i64 = 20;
/// Rows of pgbench's accounts, in units of 100,000.
const SCALE: &str = "5";

/// What to measure.
#[derive(Debug, Parser)]
struct Options {
    /// Clients at a time.
    #[arg(long, default_value_t = 16)]
    clients: u32,
    /// Seconds of one measurement.
    #[arg(long, default_value_t = 4)]
    seconds: u32,
    /// Measurements of each pooler in each mode.
    #[arg(long, default_value_t = 5)]
    rounds: u32,
    /// Where the results go, as JSON.
    #[arg(long, default_value = "target/bench.json")]
    output: PathBuf,
}

/// One line of the table.
struct Line {
    mode: &'static str,
    note: &'static str,
    pgbouncer: Vec<Sample>,
    pgsteady: Vec<Sample>,
}

#[tokio::main]
async fn main() {
    let options = Options::parse();
    let programs = Programs::installed();
    let node = Node::primary(&programs).await;
    let config = Config::single(&node)
        .set("auth.method", "trust")
        .set("log.level", "info")
        .set("database.app.pool_mode", "transaction")
        .set("database.app.pool_size", POOL_SIZE);
    let pgsteady = Pgsteady::start(&config).await;
    let load = Load { programs: &programs, clients: options.clients, seconds: options.seconds };
    load.prepare(&node.endpoint(), SCALE);
    let mut lines = Vec::new();
    for mode in ["simple", "extended", "prepared"] {
        // PgBouncer has prepared statements in transaction mode from 1.21 on.
        let (pool_mode, note) = match mode {
            "prepared" if PgBouncer::version() < (1, 21) => ("session", "PgBouncer in session mode"),
            _ => ("transaction", ""),
        };
        let pgbouncer = PgBouncer::start(node.port(), pool_mode, POOL_SIZE).await;
        let mut line = Line { mode, note, pgbouncer: Vec::new(), pgsteady: Vec::new() };
        // The first round opens servers and fills caches; it is not counted.
        for round in 0..=options.rounds {
            let a = load.run(mode, pgbouncer.port(), pgbouncer.pid()).await;
            let b = load.run(mode, pgsteady.port(), pgsteady.pid()).await;
            if round > 0 {
                line.pgbouncer.push(a);
                line.pgsteady.push(b);
            }
            eprintln!("{mode} {round}/{}: {a} | {b}", options.rounds);
        }
        lines.push(line);
    }
    report(&options, &lines);
}

/// Lowest, median and highest CPU time per transaction, in microseconds.
fn spread(samples: &[Sample]) -> (f64, f64, f64) {
    let mut costs: Vec<f64> = samples.iter().map(Sample::microseconds).collect();
    costs.sort_by(f64::total_cmp);
    (costs[0], costs[costs.len() / 2], costs[costs.len() - 1])
}

fn median_rate(samples: &[Sample]) -> f64 {
    let mut rates: Vec<f64> = samples.iter().map(|sample| sample.rate).collect();
    rates.sort_by(f64::total_cmp);
    rates[rates.len() / 2]
}

fn report(options: &Options, lines: &[Line]) {
    let (major, minor) = PgBouncer::version();
    println!(
        "\nCPU time of the pooler per transaction, pgbench -S, {} clients, median (min–max) in µs",
        options.clients
    );
    println!("| mode | PgBouncer {major}.{minor} | pgsteady | ratio | transactions/s, each | |");
    println!("|---|---|---|---|---|---|");
    let mut results = Vec::new();
    for line in lines {
        let (a, b) = (spread(&line.pgbouncer), spread(&line.pgsteady));
        let ratio = b.1 / a.1;
        let rates = (median_rate(&line.pgbouncer), median_rate(&line.pgsteady));
        let shown = |(low, middle, high): (f64, f64, f64)| format!("{middle:.1} ({low:.1}–{high:.1})");
        println!(
            "| {} | {} | {} | {ratio:.2} | {:.0} / {:.0} | {} |",
            line.mode,
            shown(a),
            shown(b),
            rates.0,
            rates.1,
            line.note
        );
        let pooler = |(low, middle, high): (f64, f64, f64), rate: f64| json!({ "cpu_us": { "min": low, "median": middle, "max": high }, "transactions_per_second": rate });
        results.push(json!({
            "mode": line.mode,
            "note": line.note,
            "pgbouncer": pooler(a, rates.0),
            "pgsteady": pooler(b, rates.1),
            "ratio": ratio,
        }));
    }
    let whole: Value = json!({
        "pgbouncer_version": format!("{major}.{minor}"),
        "clients": options.clients,
        "seconds": options.seconds,
        "rounds": options.rounds,
        "results": results,
    });
    if let Err(error) = fs::write(&options.output, format!("{whole:#}\n")) {
        eprintln!("{}: {error}", options.output.display());
    }
}
