//! How a node comes back after a failover: as a standby of the new primary, with none of its own divergent history.
//!
//! pg_rewind decides by the timeline in the source's control file, which is written by its first checkpoint after the
//! promotion; before it, pg_rewind of PostgreSQL 15 says "no rewind required" and leaves the divergence in place. So the
//! new primary is made to write a checkpoint, and the timeline is looked at, before anything else.
//!
//! A standby can diverge too: it followed the old primary past the point where the new one forked off. While it runs
//! it refuses the new timeline; but once it has fetched that timeline's history file and is *restarted*, PostgreSQL 15
//! replays what it has of the old timeline past the fork, and then streams the new one on top of it: no error, mixed
//! data. So a standby is started as it is only if its WAL has been seen to end before the fork.

use std::fmt;
use std::path::Path;
use std::time::{Duration, Instant};

use super::files::{fence_in, release_segment};
use super::local::Stop;
use super::process::end_orphans;
use super::{LocalNode, NodeError, Upstream};
use crate::Lsn;

/// How it came back.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Rejoined {
    /// It was a standby, and what it has is a part of the primary's history.
    AsItWas,
    /// Its divergent changes were undone (`pg_rewind`).
    Rewound,
    /// It was copied anew.
    BaseBackup,
}

impl fmt::Display for Rejoined {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Rejoined::AsItWas => "as it was",
            Rejoined::Rewound => "rewound",
            Rejoined::BaseBackup => "by a base backup",
        })
    }
}

/// Bound on the checkpoint of the new primary.
const CHECKPOINT: Duration = Duration::from_secs(600);
/// Bound on pg_rewind, which may run crash recovery first.
const REWIND: Duration = Duration::from_secs(3600);
/// How long a started standby may take until it streams, if it does not say anything. Replay of what it has does not
/// count against it.
const STREAMING: Duration = Duration::from_secs(20);
/// Between two looks at it.
const LOOK: Duration = Duration::from_millis(20);

/// What the control file of a stopped node says.
#[derive(Debug, PartialEq, Eq)]
struct Control {
    timeline: u32,
    /// Where replay begins.
    redo: String,
    was_standby: bool,
}

impl LocalNode {
    /// Brings a node that does not run back as a streaming standby of `primary`, by the mildest way that works: as it is, by
    /// `pg_rewind`, by a base backup. At no time does it come up read-write.
    ///
    /// A node that was fenced for a term follows only a primary of that term or a later one, now as after a restart: the fence
    /// is what a promotion relies on.
    ///
    /// # Errors
    /// If even the base backup fails, or its fence forbids it; then it does not run.
    pub async fn rejoin(&mut self, primary: &Upstream) -> Result<Rejoined, NodeError> {
        self.not_running()?;
        end_orphans(&self.site.data).await?;
        release_segment(&self.site.data);
        self.obey_fence(primary).await?;
        let primary_timeline = checkpoint(primary, &self.site.name).await?;
        if self.exists() {
            match self.rejoin_in_place(primary, primary_timeline).await {
                Ok(how) => return Ok(how),
                Err(error) => {
                    tracing::info!(node = %self.site.name, %error, "comes back by a base backup");
                    self.kill().await?;
                }
            }
        }
        self.clone_from(primary).await?;
        self.launch_standby(Some(primary)).await?;
        self.wait_until_streaming(primary_timeline).await?;
        Ok(Rejoined::BaseBackup)
    }

    async fn obey_fence(&self, primary: &Upstream) -> Result<(), NodeError> {
        let path = self.site.data.join("postgresql.auto.conf");
        let automatic = match std::fs::read_to_string(&path) {
            Ok(text) => text,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(()),
            Err(error) => return Err(NodeError::io("read", &path, error)),
        };
        // a read-write node is not under a fence; what it says of that is from its time as a standby
        let Some(fence) = fence_in(&automatic).filter(|_| self.is_marked_standby()) else { return Ok(()) };
        let sql = |error| NodeError::Sql { what: format!("read the term of {}", primary.address), error };
        let client = primary.connect().await?;
        let row = client.query_opt("select term from pgsteady.term", &[]).await.map_err(sql)?;
        let term = row.and_then(|row| u64::try_from(row.get::<_, i64>(0)).ok());
        if term.is_some_and(|term| term >= fence) {
            return Ok(());
        }
        let why = format!("it is fenced for term {fence}; {} is of term {}", primary.address, term.unwrap_or(0));
        Err(NodeError::refused(&self.site.name, why))
    }

    async fn rejoin_in_place(&mut self, primary: &Upstream, primary_timeline: u32) -> Result<Rejoined, NodeError> {
        let control = self.control().await?;
        if control.was_standby && self.is_part_of(primary, primary_timeline, &control).await? {
            self.launch_standby(Some(primary)).await?;
            match self.wait_until_streaming(primary_timeline).await {
                Ok(()) => return Ok(Rejoined::AsItWas),
                Err(error) => tracing::info!(node = %self.site.name, %error, "does not come back as it is"),
            }
            self.stop(Stop::Fast).await?;
        }
        if control.timeline >= primary_timeline {
            // who wrote on a timeline cannot rewind to that same number: two histories would share a name (pg_rewind
            // compares numbers, not histories)
            let why = format!("its timeline {} is not older than the primary's {primary_timeline}", control.timeline);
            return Err(NodeError::refused(&self.site.name, why));
        }
        let outcome = self.rewind(primary).await;
        // also after a failure: from here on nothing starts this directory read-write
        self.mark_standby(&self.site.data, Some(primary))?;
        outcome?;
        self.launch_standby(Some(primary)).await?;
        self.wait_until_streaming(primary_timeline).await?;
        Ok(Rejoined::Rewound)
    }

    /// Does all that this stopped standby holds belong to the primary's history? In doubt it does not.
    async fn is_part_of(&self, primary: &Upstream, timeline: u32, control: &Control) -> Result<bool, NodeError> {
        if control.timeline == timeline {
            return Ok(true);
        }
        let Some(fork) = fork_from(primary, timeline, control.timeline, &self.site.name).await? else {
            return Ok(false);
        };
        self.ends_before(fork, control).await
    }

    /// Does the WAL that this stopped node holds of its timeline end before this position? In doubt it does not.
    async fn ends_before(&self, fork: Lsn, control: &Control) -> Result<bool, NodeError> {
        let mut arguments: Vec<std::ffi::OsString> = vec!["--stats".into(), "-p".into()];
        arguments.push(self.site.data.join("pg_wal").into());
        arguments.extend(["-t".into(), control.timeline.to_string().into(), "-s".into(), control.redo.clone().into()]);
        // it reads on until there is no valid record, and calls that an error
        match self.run("pg_waldump", arguments, REWIND).await {
            Err(NodeError::Program { output, .. }) => Ok(last_record(&output).is_some_and(|last| last < fork)),
            Err(error) => Err(error),
            Ok(_) => Ok(false),
        }
    }

    /// Refuses a standby whose start would mix two histories: it knows of a newer timeline, and holds more of its own than
    /// that one took over.
    pub(super) async fn mixes_no_histories(&self) -> Result<(), NodeError> {
        let folder = self.site.data.join("pg_wal");
        let entries = std::fs::read_dir(&folder).map_err(|error| NodeError::io("read", &folder, error))?;
        let known: Vec<_> =
            entries.flatten().map(|entry| entry.path()).filter(|path| timeline_of(path).is_some()).collect();
        if known.is_empty() {
            return Ok(());
        }
        let control = self.control().await?;
        for path in known.iter().filter(|path| timeline_of(path) > Some(control.timeline)) {
            let text = std::fs::read_to_string(path).map_err(|error| NodeError::io("read", path, error))?;
            let Some(fork) = fork_in(&text, control.timeline) else { continue };
            if !self.ends_before(fork, &control).await? {
                let why = format!("it holds WAL past the point where {} forked off; it has to rejoin", path.display());
                return Err(NodeError::refused(&self.site.name, why));
            }
        }
        Ok(())
    }

    async fn rewind(&self, primary: &Upstream) -> Result<(), NodeError> {
        // pg_rewind recovers a crashed node in single-user mode, which refuses a standby; it starts nothing that listens
        let signal = self.standby_signal();
        match std::fs::remove_file(&signal) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                return Err(NodeError::io("remove", &signal, error));
            }
            _ => {}
        }
        let source = primary.conninfo("pgsteady rewind", Some("postgres"));
        let mut arguments: Vec<std::ffi::OsString> = vec!["-D".into(), self.site.data.clone().into()];
        arguments.push(format!("--source-server={source}").into());
        arguments.push("--no-sync".into());
        self.run("pg_rewind", arguments, REWIND).await.map(drop)
    }

    async fn control(&self) -> Result<Control, NodeError> {
        let arguments = vec!["-D".into(), self.site.data.clone().into()];
        let text = self.run("pg_controldata", arguments, REWIND).await?;
        parse(&text).ok_or_else(|| NodeError::refused(&self.site.name, "its control file makes no sense"))
    }

    /// Waits until it receives WAL of the primary's timeline. It may still be replaying what it has, and not answer. That it
    /// streams is not enough: one that holds more of the old timeline than the primary took over streams that for a
    /// moment again and again, and never gets on to the new one.
    async fn wait_until_streaming(&mut self, timeline: u32) -> Result<(), NodeError> {
        let mut since = Instant::now();
        let mut replayed = None;
        while since.elapsed() < STREAMING {
            if let Some(status) = self.has_exited()? {
                return Err(self.start_error(format!("ended ({status})")));
            }
            let state = self.receiving(timeline).await;
            if let Some((true, _)) = state {
                return Ok(());
            }
            let now = state.and_then(|(_, position)| position);
            if now != replayed {
                (since, replayed) = (Instant::now(), now);
            }
            tokio::time::sleep(LOOK).await;
        }
        Err(self.start_error(format!("did not stream within {} s", STREAMING.as_secs())))
    }

    /// Does it stream this timeline, and how far has it replayed? `None` if it does not answer.
    async fn receiving(&self, timeline: u32) -> Option<(bool, Option<String>)> {
        let client = self.connect().await.ok()?;
        let asked = "select coalesce(status = 'streaming', false), received_tli, pg_last_wal_replay_lsn()::text \
             from (values (1)) one left join pg_stat_wal_receiver on true where pg_is_in_recovery()";
        let row = client.query_opt(asked, &[]).await.ok()??;
        let received: Option<i32> = row.get(1);
        let of_primary = received.and_then(|number| u32::try_from(number).ok()) == Some(timeline);
        let streams: bool = row.get(0);
        Some((streams && of_primary, row.get(2)))
    }
}

/// Has the primary write a checkpoint of the timeline it is on, and returns that timeline.
async fn checkpoint(primary: &Upstream, node: &str) -> Result<u32, NodeError> {
    let what = || format!("checkpoint at {} for node {node}", primary.address);
    let sql = |error| NodeError::Sql { what: what(), error };
    let work = async {
        let client = primary.connect().await?;
        loop {
            client.batch_execute("checkpoint").await.map_err(sql)?;
            // a standby refuses the position
            let asked =
                "select timeline_id, substr(pg_walfile_name(pg_current_wal_lsn()), 1, 8) from pg_control_checkpoint()";
            let row = client.query_one(asked, &[]).await.map_err(sql)?;
            let (control, current): (i32, &str) = (row.get(0), row.get(1));
            match (u32::try_from(control), u32::from_str_radix(current, 16)) {
                (Ok(control), Ok(current)) if control == current => return Ok(control),
                _ => {}
            }
            tokio::time::sleep(LOOK).await;
        }
    };
    match tokio::time::timeout(CHECKPOINT, work).await {
        Ok(outcome) => outcome,
        Err(_) => Err(NodeError::TimedOut { what: what(), bound: CHECKPOINT }),
    }
}

/// Where `timeline`'s history leaves `older`; `None` if it does not come from there.
async fn fork_from(primary: &Upstream, timeline: u32, older: u32, node: &str) -> Result<Option<Lsn>, NodeError> {
    let sql =
        |error| NodeError::Sql { what: format!("read the history of {} for node {node}", primary.address), error };
    let client = primary.connect().await?;
    let asked = format!("select pg_read_file('pg_wal/{timeline:08X}.history')");
    let row = client.query_one(&asked, &[]).await.map_err(sql)?;
    Ok(fork_in(row.get(0), older))
}

/// `0000000A.history` is of timeline 10.
fn timeline_of(path: &Path) -> Option<u32> {
    u32::from_str_radix(path.file_name()?.to_str()?.strip_suffix(".history")?, 16).ok()
}

/// A line of a history file is `TIMELINE<tab>FORK<tab>REASON`.
fn fork_in(history: &str, older: u32) -> Option<Lsn> {
    history.lines().find_map(|line| {
        let mut fields = line.split_whitespace();
        let of_older = fields.next()?.parse() == Ok(older);
        fields.next().filter(|_| of_older).and_then(lsn)
    })
}

/// The begin of the last valid record, in what pg_waldump says of the end.
fn last_record(output: &str) -> Option<Lsn> {
    let (_, rest) = output.split_once("error in WAL record at ")?;
    lsn(rest.split_once(": ")?.0)
}

/// `16/B374D848`
fn lsn(text: &str) -> Option<Lsn> {
    let (high, low) = text.split_once('/')?;
    let (high, low) = (u32::from_str_radix(high, 16).ok()?, u32::from_str_radix(low, 16).ok()?);
    Some(Lsn(u64::from(high) << 32 | u64::from(low)))
}

fn parse(text: &str) -> Option<Control> {
    let value = |name: &str| text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':').map(str::trim));
    let state = value("Database cluster state")?;
    let checkpoint: u32 = value("Latest checkpoint's TimeLineID")?.parse().ok()?;
    // a node that was promoted and died before its first checkpoint has its timeline only here
    let recovery: u32 = value("Min recovery ending loc's timeline")?.parse().ok()?;
    Some(Control {
        timeline: checkpoint.max(recovery),
        redo: value("Latest checkpoint's REDO location")?.to_owned(),
        was_standby: matches!(state, "in archive recovery" | "shut down in recovery"),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_control_file_is_understood() {
        let text = "pg_control version number:            1300\n\
             Database cluster state:               in production\n\
             Latest checkpoint's REDO location:    0/3000028\n\
             Latest checkpoint's TimeLineID:       3\n\
             Latest checkpoint's PrevTimeLineID:   2\n\
             Min recovery ending loc's timeline:   0\n";
        let control = Control { timeline: 3, redo: "0/3000028".into(), was_standby: false };
        assert_eq!(parse(text), Some(control));
        let promoted = parse(&text.replace("timeline:   0", "timeline:   4")).unwrap();
        assert_eq!((promoted.timeline, promoted.was_standby), (4, false));
        assert!(parse(&text.replace("in production", "shut down in recovery")).unwrap().was_standby);
        assert_eq!(parse("Database cluster state: in production\n"), None);
    }

    #[test]
    fn the_fork_and_the_end_are_found() {
        let history = "1\t0/4018298\tno recovery target specified\n2\t1/20\tno recovery target specified\n";
        assert_eq!(fork_in(history, 1), Some(Lsn(0x0401_8298)));
        assert_eq!(fork_in(history, 2), Some(Lsn(0x1_0000_0020)));
        assert_eq!(fork_in(history, 3), None);
        let end =
            "pg_waldump: error: error in WAL record at 0/4056D80: invalid record length at 0/4056DA8: wanted 24, got 0";
        assert_eq!(last_record(end), Some(Lsn(0x0405_6D80)));
        assert_eq!(last_record("pg_waldump: error: could not find file"), None);
    }
}
