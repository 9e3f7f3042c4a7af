//! `pgsteady drill`: a real change of primary on the user's own cluster, under load of our own, and what it cost.

use std::io::Write as _;
use std::path::PathBuf;
use std::process::Stdio;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use clap::Args;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::task::spawn_blocking;
use tokio_postgres::Config as Place;
use topology::{FailoverRecord, Verdict};

use super::command::{SWITCHING, Target, address_of, ask, by_hand, chosen, read_status, say};
use super::status::Status;
use super::{PASSING, Request};
use crate::config::{Cluster, Config};
use crate::drill::{Failover, KILL_FOLLOWS, Load, Moments, Report, remove, rows};

/// What `pgsteady drill` is told.
#[derive(Debug, Clone, Args)]
#[command(after_help = EXAMPLES)]
pub struct DrillArgs {
    #[command(flatten)]
    target: Target,
    /// How clients of this cluster connect to pgsteady, with an account that may create a table; the password may be in
    /// PGPASSWORD instead.
    #[arg(value_name = "CONNECTION")]
    connection: Place,
    /// How often the primary is changed.
    #[arg(long, value_name = "COUNT", default_value_t = 1, value_parser = clap::value_parser!(u16).range(1..=1000))]
    times: u16,
    /// A shell command that loses the primary, which is told by PGSTEADY_NODE, PGSTEADY_HOST and PGSTEADY_PORT; default: a
    /// switchover, in peace.
    #[arg(long, value_name = "COMMAND")]
    kill: Option<String>,
    /// Clients that write all the time.
    #[arg(long, value_name = "COUNT", default_value_t = 8, value_parser = clap::value_parser!(u16).range(1..=200))]
    clients: u16,
    /// How long a new primary, and then the old one as a standby, may take.
    #[arg(long, value_name = "TIME", default_value = "120s", value_parser = humantime::parse_duration)]
    within: Duration,
}

const EXAMPLES: &str = "\
Examples:
  pgsteady drill 'host=localhost port=6432 user=app dbname=app'
  pgsteady drill --times 3 --kill 'ssh root@$PGSTEADY_HOST systemctl kill -s KILL postgresql' postgres://app@localhost:6432/app

The clients write to a table of their own, pgsteady_drill, which is removed in the end. Other clients of the cluster are held
while the primary changes, as in any failover. Exit status: 0 nothing acknowledged was lost and no client was dropped.";

/// Between two looks at the cluster.
const LOOK: Duration = Duration::from_millis(50);

/// Changes the primary under load and prints what it cost. `Ok(true)`: nothing was lost and nobody was dropped.
///
/// # Errors
/// What did not work, for people.
pub fn drill(args: &DrillArgs, load: impl FnOnce(Option<PathBuf>) -> Result<Config, String>) -> Result<bool, String> {
    let config = load(args.target.config.clone())?;
    let cluster = chosen(&config, args.target.cluster.as_deref())?.clone();
    let mut place = args.connection.clone();
    if let (None, Some(password)) = (place.get_password(), std::env::var_os("PGPASSWORD")) {
        place.password(password.as_encoded_bytes());
    }
    place.application_name("pgsteady drill");
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build();
    let runtime = runtime.map_err(|error| format!("no runtime: {error}"))?;
    let report = runtime.block_on(Drill { args, cluster, place }.run())?;
    report.errors().iter().for_each(|line| progress(line));
    say(if args.target.json { report.json() } else { report.table() }.trim_end());
    Ok(report.is_clean())
}

struct Drill<'a> {
    args: &'a DrillArgs,
    cluster: Arc<Cluster>,
    place: Place,
}

impl Drill<'_> {
    async fn run(&self) -> Result<Report, String> {
        if self.until(&is_whole).await?.is_none() {
            return Err(format!("the cluster is not whole, so nothing is begun: {}", amiss(&self.status().await?)));
        }
        let mut interrupts = [SignalKind::interrupt(), SignalKind::terminate()].map(signal);
        let load = Load::start(&self.place, self.args.clients).await?;
        progress(&format!("{} clients write all the time", self.args.clients));
        let rounds = tokio::select! {
            rounds = self.rounds() => rounds,
            () = interrupted(&mut interrupts) => Err("interrupted".to_owned()),
        };
        let records = load.stop().await;
        let found = match rounds {
            Ok(moments) => rows(&self.place).await.map(|found| Report::new(&moments, &records, &found)),
            Err(said) => Err(said),
        };
        match (found, remove(&self.place).await) {
            (Ok(report), Ok(())) => Ok(report),
            (Ok(_), Err(said)) | (Err(said), Ok(())) => Err(said),
            (Err(said), Err(also)) => Err(format!("{said}; {also}")),
        }
    }

    async fn rounds(&self) -> Result<Vec<Moments>, String> {
        let mut moments = Vec::new();
        for number in 1..=self.args.times {
            tokio::time::sleep(KILL_FOLLOWS).await;
            let round = self.round(number).await?;
            moments.push(round);
        }
        tokio::time::sleep(KILL_FOLLOWS).await;
        Ok(moments)
    }

    async fn round(&self, number: u16) -> Result<Moments, String> {
        let before = self.status().await?;
        let primary = before.primary.clone().ok_or_else(|| format!("there is no primary: {}", before.why))?;
        let way = if self.args.kill.is_some() { "the primary is killed" } else { "switchover" };
        progress(&format!("{number} of {}: {way}: {primary}", self.args.times));
        let (at, killed) = (SystemTime::now(), Instant::now());
        match &self.args.kill {
            Some(command) => self.kill(command, &primary).await?,
            None => self.switch_over().await?,
        }
        let replaced = |status: &Status| status.primary.is_some() && status.epoch > before.epoch;
        let after = self.until(&replaced).await?;
        let after = after.ok_or_else(|| format!("no new primary within {:?}", self.args.within))?;
        let now = after.primary.clone().unwrap_or_default();
        progress(&format!("{now} is the primary (term {})", after.term));
        // by the term: what is read from the status has its time in whole milliseconds, so it can lie before `at`
        let record = |record: &&FailoverRecord| record.term > before.term;
        let failover = after.failovers.iter().find(record).map(|record| Failover::of(record, at));
        match self.until(&is_whole).await? {
            Some(_) => progress(&format!("whole again after {:.1} s", killed.elapsed().as_secs_f64())),
            None if number == self.args.times => progress(&by_hand(&self.cluster, &primary, &now)),
            None => return Err(by_hand(&self.cluster, &primary, &now)),
        }
        Ok(Moments { killed, whole: Instant::now(), failover })
    }

    async fn kill(&self, command: &str, primary: &str) -> Result<(), String> {
        let (host, port) = address_of(&self.cluster, primary);
        let mut shell = tokio::process::Command::new("sh");
        shell.args(["-c", command]).stdin(Stdio::null()).stdout(Stdio::null()).kill_on_drop(true);
        shell.env("PGSTEADY_NODE", primary).env("PGSTEADY_HOST", host).env("PGSTEADY_PORT", port.to_string());
        let ended = tokio::time::timeout(self.args.within, shell.status()).await;
        match ended {
            Ok(Ok(status)) if status.success() => Ok(()),
            Ok(Ok(status)) => Err(format!("--kill: {command}: {status}")),
            Ok(Err(error)) => Err(format!("--kill: {command}: {error}")),
            Err(_) => Err(format!("--kill: {command}: it did not end within {:?}", self.args.within)),
        }
    }

    async fn switch_over(&self) -> Result<(), String> {
        let max_wait = Duration::from_secs(2);
        let max_wait_ms = u64::try_from(max_wait.as_millis()).unwrap_or(u64::MAX);
        let answer =
            self.ask(Request::Switchover { to: None, max_wait_ms, end_transactions: false }, SWITCHING).await?;
        match serde_json::from_str(&answer) {
            Ok(Verdict::Done { .. }) => Ok(()),
            Ok(Verdict::Refused { why, .. }) => Err(format!("the switchover is not begun: {why}")),
            Ok(Verdict::Undone { why }) => Err(format!("the switchover is undone, the same primary serves: {why}")),
            Err(error) => Err(format!("the answer is not understood: {error}")),
        }
    }

    /// The first status for which this holds. `None`: none within the time.
    async fn until(&self, holds: &(dyn Fn(&Status) -> bool + Sync)) -> Result<Option<Status>, String> {
        let began = Instant::now();
        while began.elapsed() < self.args.within {
            let status = self.status().await?;
            if holds(&status) {
                return Ok(Some(status));
            }
            tokio::time::sleep(LOOK).await;
        }
        Ok(None)
    }

    async fn status(&self) -> Result<Status, String> {
        read_status(&self.ask(Request::Status {}, PASSING).await?)
    }

    async fn ask(&self, request: Request, limit: Duration) -> Result<String, String> {
        let cluster = self.cluster.clone();
        let asked = spawn_blocking(move || ask(&cluster, &request, limit)).await;
        asked.map_err(|error| error.to_string())?
    }
}

/// Whether there is a primary, and every other node is a standby whose flush counts.
fn is_whole(status: &Status) -> bool {
    let parts = status.nodes.iter().filter(|node| node.role != "out").count();
    let counted = status.rule.as_ref().map_or(parts, |rule| rule.standbys.len() + 1);
    status.primary.is_some() && parts.min(counted) == status.nodes.len()
}

fn amiss(status: &Status) -> String {
    let nodes =
        status.nodes.iter().filter(|node| !node.why.is_empty()).map(|node| format!("{}: {}", node.name, node.why));
    let found: Vec<String> = Some(status.why.clone()).filter(|why| !why.is_empty()).into_iter().chain(nodes).collect();
    if found.is_empty() {
        "a standby is not in the rule yet; try again in a moment".to_owned()
    } else {
        found.join("; ")
    }
}

async fn interrupted(signals: &mut [std::io::Result<Signal>; 2]) {
    match signals {
        [Ok(interrupt), Ok(terminate)] => tokio::select! { _ = interrupt.recv() => {}, _ = terminate.recv() => {} },
        _ => std::future::pending().await,
    }
}

/// A line for whoever watches; standard output is for the result.
fn progress(line: &str) {
    let _ = writeln!(std::io::stderr(), "pgsteady drill: {line}");
}
