//! `pgsteady dev`: a throwaway cluster on this machine with the proxy over it, and drills that kill its primary. The nodes'
//! processes are `topology::node`'s; who is primary is the monitor's decision.

use std::io::Write as _;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use clap::Args;
use tokio::signal::unix::{Signal, SignalKind, signal};

mod cluster;
mod front;
mod keeper;
mod kills;

use cluster::Cluster;
use front::Front;

use crate::drill::{KILL_FOLLOWS, Load};

/// What `pgsteady dev` is told.
#[derive(Debug, Clone, Args)]
pub struct DevArgs {
    /// Nodes of the cluster: one primary, the others are standbys.
    #[arg(long, value_name = "COUNT", default_value_t = 3, value_parser = clap::value_parser!(u16).range(1..=9))]
    nodes: u16,
    /// Port of the proxy on 127.0.0.1; 0 takes a free one.
    #[arg(long, default_value_t = 6432)]
    port: u16,
    /// Folder of PostgreSQL's programs (15 or later); default: PATH, then Debian's folders, newest first.
    #[arg(long, value_name = "FOLDER")]
    bin_dir: Option<PathBuf>,
    /// Kill the primary this many times under load, report, and end.
    #[arg(long, value_name = "KILLS", value_parser = clap::value_parser!(u16).range(1..=1000))]
    drill: Option<u16>,
    /// Print the report of the drill as one JSON object.
    #[arg(long, requires = "drill")]
    json: bool,
    /// Leave the files (data, logs, configuration) where they are; processes are ended all the same.
    #[arg(long)]
    keep: bool,
    /// Clients that write all the time; default: 8 with --drill, otherwise none.
    #[arg(long, value_name = "CLIENTS", value_parser = clap::value_parser!(u16).range(0..=200))]
    load: Option<u16>,
    /// Log what the monitor and the proxy do.
    #[arg(short, long)]
    verbose: bool,
}

/// Clients of a drill.
const DRILL_CLIENTS: u16 = 8;
/// Exit status after an interrupted drill, as a shell has it for SIGINT.
const INTERRUPTED: u8 = 130;
/// Exit status if a drill lost something, or something did not work.
const FAILED: u8 = 1;
/// Bound on the end of what we run, once asked.
const SHUTDOWN: Duration = Duration::from_secs(5);

/// Runs until it is interrupted or the drill is over. Nothing is left running or on disk afterwards (`--keep` leaves the
/// files): see [`topology::node::Throwaway`].
#[must_use]
pub fn run(args: &DevArgs) -> ExitCode {
    let runtime = match tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => return fail(&format!("no runtime: {error}")),
    };
    let status = runtime.block_on(Box::pin(until_interrupted(args)));
    runtime.shutdown_timeout(SHUTDOWN);
    status
}

async fn until_interrupted(args: &DevArgs) -> ExitCode {
    let mut interrupts = match Interrupts::new() {
        Ok(interrupts) => interrupts,
        Err(error) => return fail(&format!("no signals: {error}")),
    };
    let mut cluster = None;
    let outcome = tokio::select! {
        outcome = Box::pin(work(args, &mut cluster)) => Some(outcome),
        () = interrupts.next() => None,
    };
    if let Some(cluster) = cluster {
        cluster.end().await;
    }
    match outcome {
        Some(Ok(status)) => status,
        Some(Err(said)) => fail(&said),
        None if args.drill.is_some() => {
            say("interrupted; everything is cleaned up");
            ExitCode::from(INTERRUPTED)
        }
        None => {
            say("stopped; everything is cleaned up");
            ExitCode::SUCCESS
        }
    }
}

/// The cluster stays with the caller, so that it is ended in the same way whatever happens here.
async fn work(args: &DevArgs, place: &mut Option<Cluster>) -> Result<ExitCode, String> {
    let started = std::time::Instant::now();
    let cluster = place.insert(Cluster::new(args).map_err(|error| error.to_string())?);
    cluster.make().await.map_err(|error| error.to_string())?;
    let front = Front::start(&cluster.configuration()?, &cluster.configuration_file())?;
    cluster.keep_nodes(&front.watch);
    kills::until_whole(&front.watch, cluster).await?;
    say(&format!("ready after {:.1} s", started.elapsed().as_secs_f64()));
    say(&format!("connect with: {}", cluster.url()));
    let file = cluster.configuration_file();
    say(&format!("look and act with: pgsteady status -c {0}; pgsteady switchover -c {0}", file.display()));
    let clients = args.load.unwrap_or(if args.drill.is_some() { DRILL_CLIENTS } else { 0 });
    let Some(kills) = args.drill else {
        result(&cluster.url());
        let _load = match clients {
            0 => None,
            clients => Some(load(cluster, clients).await?),
        };
        say("kill -9 any of its PostgreSQL processes and watch; Ctrl-C ends and removes everything");
        return std::future::pending().await;
    };
    let load = load(cluster, clients.max(1)).await?;
    tokio::time::sleep(KILL_FOLLOWS).await;
    let report = kills::run(kills, load, cluster, &front).await?;
    report.errors().iter().for_each(|line| say(line));
    if args.json {
        result(&report.json());
    } else {
        result(&report.table());
    }
    Ok(if report.is_clean() { ExitCode::SUCCESS } else { ExitCode::from(FAILED) })
}

async fn load(cluster: &Cluster, clients: u16) -> Result<Load, String> {
    let place = cluster.url().parse().expect("our own connection string is one");
    let load = Load::start(&place, clients).await?;
    say(&format!("{clients} clients write all the time"));
    Ok(load)
}

/// Whatever asks us to end.
struct Interrupts([Signal; 4]);

impl Interrupts {
    fn new() -> std::io::Result<Self> {
        let kinds = [SignalKind::interrupt(), SignalKind::terminate(), SignalKind::hangup(), SignalKind::quit()];
        let [a, b, c, d] = kinds.map(signal);
        Ok(Self([a?, b?, c?, d?]))
    }

    async fn next(&mut self) {
        let [a, b, c, d] = &mut self.0;
        tokio::select! { _ = a.recv() => {}, _ = b.recv() => {}, _ = c.recv() => {}, _ = d.recv() => {} }
    }
}

/// A line for whoever watches; standard output is for results. That nobody reads it any more must not keep us from
/// cleaning up, so it is no error.
fn say(line: &str) {
    let _ = writeln!(std::io::stderr(), "pgsteady dev: {line}");
}

fn result(text: &str) {
    let _ = writeln!(std::io::stdout(), "{}", text.trim_end());
}

fn fail(said: &str) -> ExitCode {
    say(said);
    ExitCode::from(FAILED)
}
