//! `pgsteady status` and `pgsteady switchover`: the asking side of the control socket.

use std::io::{Read, Write};
use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use clap::Args;
use topology::Verdict;

use super::status::Status;
use super::{MAX_ANSWER_BYTES, PASSING, Request, socket, text};
use crate::config::{Cluster, Config};

/// Time beyond `--max-wait` in which a switchover is done or undone, however slow the machine.
pub(super) const SWITCHING: Duration = Duration::from_secs(120);
/// Between two looks for it.
const LOOK: Duration = Duration::from_millis(200);

/// Which cluster of which running pgsteady.
#[derive(Debug, Clone, Args)]
pub(super) struct Target {
    /// The configuration of the running pgsteady; default: ./pgsteady.toml, then /etc/pgsteady/pgsteady.toml.
    #[arg(short, long, value_name = "FILE", env = "PGSTEADY_CONFIG")]
    pub(super) config: Option<PathBuf>,
    /// The cluster; may be left out where there is only one.
    #[arg(long, value_name = "NAME")]
    pub(super) cluster: Option<String>,
    /// Print one JSON object.
    #[arg(long)]
    pub(super) json: bool,
}

/// What `pgsteady status` is told.
#[derive(Debug, Clone, Args)]
pub struct StatusArgs {
    #[command(flatten)]
    target: Target,
}

/// What `pgsteady switchover` is told.
#[derive(Debug, Clone, Args)]
pub struct SwitchoverArgs {
    #[command(flatten)]
    target: Target,
    /// The standby that is to become primary; default: whom a failover would choose.
    #[arg(long, value_name = "NODE")]
    to: Option<String>,
    /// How long open transactions may take to end; new ones wait meanwhile.
    #[arg(long, value_name = "TIME", default_value = "2s", value_parser = humantime::parse_duration)]
    max_wait: Duration,
    /// End the transactions that are still open then (their clients get 40001), instead of giving up.
    #[arg(long)]
    end_transactions: bool,
    /// How long to wait for the old primary to be back as a standby, before the commands to make it one are shown.
    #[arg(long, value_name = "TIME", default_value = "20s", value_parser = humantime::parse_duration)]
    return_within: Duration,
}

/// Prints how a cluster is. `Ok(true)`: it has a primary.
///
/// # Errors
/// Why nobody answered, for people.
pub fn status(args: &StatusArgs, load: impl FnOnce(Option<PathBuf>) -> Result<Config, String>) -> Result<bool, String> {
    let config = load(args.target.config.clone())?;
    let cluster = chosen(&config, args.target.cluster.as_deref())?;
    let answer = ask(cluster, &Request::Status {}, PASSING)?;
    let status = read_status(&answer)?;
    if args.target.json {
        say(answer.trim_end());
    } else {
        say(text::status(&status).trim_end());
    }
    Ok(status.primary.is_some())
}

/// Changes the primary. `Ok(true)`: it is another one now.
///
/// # Errors
/// Why nobody answered, for people.
pub fn switchover(
    args: &SwitchoverArgs,
    load: impl FnOnce(Option<PathBuf>) -> Result<Config, String>,
) -> Result<bool, String> {
    let config = load(args.target.config.clone())?;
    let cluster = chosen(&config, args.target.cluster.as_deref())?;
    let max_wait_ms = u64::try_from(args.max_wait.as_millis()).unwrap_or(u64::MAX);
    let request = Request::Switchover { to: args.to.clone(), max_wait_ms, end_transactions: args.end_transactions };
    let answer = ask(cluster, &request, SWITCHING.saturating_add(args.max_wait))?;
    let verdict: Verdict =
        serde_json::from_str(&answer).map_err(|error| format!("the answer is not understood: {error}"))?;
    let Verdict::Done { from, to, term } = &verdict else {
        return told_why_not(&verdict, args.target.json);
    };
    let hold = hold_of(cluster, *term)?;
    if args.target.json {
        say(&serde_json::json!({"outcome": "done", "from": from, "to": to, "term": term, "hold_ms": hold}).to_string());
        return Ok(true);
    }
    let pause = hold.map_or(String::new(), |ms| format!("; clients were held for {ms} ms"));
    say(&format!("{to} is the primary now (term {term}){pause}"));
    if returned(cluster, from, args.return_within)? {
        say(&format!("{from} is back as a standby"));
    } else {
        say(&by_hand(cluster, from, to));
    }
    Ok(true)
}

pub(super) fn told_why_not(verdict: &Verdict, json: bool) -> Result<bool, String> {
    match verdict {
        verdict if json => say(&serde_json::to_string(verdict).expect("plain data is JSON")),
        Verdict::Refused { why, .. } => return Err(format!("not begun: {why}")),
        Verdict::Undone { why } => return Err(format!("undone, the same primary serves: {why}")),
        Verdict::Done { .. } => {}
    }
    Ok(false)
}

pub(super) fn chosen<'c>(config: &'c Config, name: Option<&str>) -> Result<&'c Arc<Cluster>, String> {
    let names = || config.clusters.keys().map(|name| &**name).collect::<Vec<_>>().join(", ");
    match (name, config.clusters.len()) {
        (Some(name), _) => {
            let found = config.clusters.get(name);
            found.ok_or_else(|| format!("there is no cluster {name:?}; there is {}", names()))
        }
        (None, 0) => Err(format!("{} has no cluster", config.file.display())),
        (None, 1) => Ok(config.clusters.values().next().expect("there is one")),
        (None, _) => Err(format!("which cluster? --cluster NAME, one of {}", names())),
    }
}

pub(super) fn ask(cluster: &Cluster, request: &Request, limit: Duration) -> Result<String, String> {
    let path = socket(&cluster.store, &cluster.name);
    let wrong =
        |error: std::io::Error| format!("{}: {error}; does pgsteady run with this configuration?", path.display());
    let mut stream = UnixStream::connect(&path).map_err(wrong)?;
    stream.set_read_timeout(Some(limit)).map_err(wrong)?;
    let mut line = serde_json::to_string(request).expect("plain data is JSON");
    line.push('\n');
    stream.write_all(line.as_bytes()).map_err(wrong)?;
    stream.shutdown(Shutdown::Write).map_err(wrong)?;
    let mut answer = String::new();
    stream.take(MAX_ANSWER_BYTES).read_to_string(&mut answer).map_err(wrong)?;
    if answer.ends_with('\n') {
        return Ok(answer);
    }
    Err(format!("{}: the answer is not whole: pgsteady ended, or its log says why it does not answer", path.display()))
}

pub(super) fn read_status(answer: &str) -> Result<Status, String> {
    serde_json::from_str(answer).map_err(|error| format!("the answer is not understood: {error}"))
}

fn hold_of(cluster: &Cluster, term: u64) -> Result<Option<u128>, String> {
    let status = read_status(&ask(cluster, &Request::Status {}, PASSING)?)?;
    let record = status.failovers.iter().rev().find(|record| record.term == term);
    Ok(record.map(|record| record.hold.as_millis()))
}

/// Whether the old primary has become a standby: its keeper needs a moment to see that it was replaced.
fn returned(cluster: &Cluster, name: &str, within: Duration) -> Result<bool, String> {
    let began = Instant::now();
    loop {
        let status = read_status(&ask(cluster, &Request::Status {}, PASSING)?)?;
        if status.nodes.iter().any(|node| &*node.name == name && node.role == "standby") {
            return Ok(true);
        }
        if began.elapsed() >= within {
            return Ok(false);
        }
        std::thread::sleep(LOOK);
    }
}

/// Host, or folder of the Unix socket, and port of a node.
pub(super) fn address_of(cluster: &Cluster, name: &str) -> (String, u16) {
    match cluster.nodes.iter().find(|node| &*node.name == name).map(|node| &node.address) {
        Some(topology::Address::Tcp(host, port)) => (host.clone(), *port),
        Some(topology::Address::Unix(folder, port)) => (folder.display().to_string(), *port),
        None => (name.to_owned(), 5432),
    }
}

/// SQL cannot make a standby of a primary that runs: somebody on its machine has to.
pub(super) fn by_hand(cluster: &Cluster, from: &str, to: &str) -> String {
    let (host, port) = address_of(cluster, to);
    let user = &cluster.replication.user;
    let source = format!("host={host} port={port} user={user} application_name={from}");
    format!(
        "{from} is no standby yet: it is quarantined until somebody on its machine makes one of it. `pgsteady node` beside it does \
         that by itself. By hand, with its data directory in $PGDATA, as PostgreSQL's user:\n  \
         pg_ctl -D $PGDATA stop -m fast\n  \
         pg_rewind -D $PGDATA --source-server='{source} dbname=postgres' -R\n  \
         echo \"primary_conninfo = '{source}'\" >> $PGDATA/postgresql.auto.conf\n  \
         pg_ctl -D $PGDATA start\n\
         pg_rewind copies configuration files of {to}: look at port and addresses in them before the start. If it refuses: \
         pg_basebackup -D EMPTY_FOLDER -d '{source}' -R"
    )
}

pub(super) fn say(text: &str) {
    // whoever does not read on knows enough
    let _ = writeln!(std::io::stdout(), "{text}");
}
