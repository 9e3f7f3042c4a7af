//! Waits until a primary that is to hand over has no open transaction, and all that it has acknowledged is on disk.

use std::fmt::Write as _;
use std::time::{Duration, Instant};

use super::{ActError, Cause, Ground, Remote};
use crate::Lsn;
use crate::login::APPLICATION_NAME;

/// Nobody has begun a transaction for so long: who had taken a server before clients were held has used it by now.
const QUIET: Duration = Duration::from_millis(30);
/// How long sessions that were told to end may take.
const ENDING: Duration = Duration::from_secs(1);
/// Open transactions that are told of.
const MAX_TOLD: usize = 5;

const OPEN: &str = "\
SELECT a.pid, coalesce(a.usename, '') AS name, coalesce(a.state, '') AS state,
 (extract(epoch FROM now() - a.xact_start) * 1000)::bigint AS age FROM pg_stat_activity AS a
 WHERE a.backend_type = 'client backend' AND a.pid <> pg_backend_pid() AND a.application_name <> $1
 AND a.xact_start IS NOT NULL ORDER BY a.xact_start";

/// Who waits for a standby is left alone: its commit will be acknowledged, or is looked up on the new primary.
const END: &str = "\
SELECT count(pg_terminate_backend(a.pid)) AS ended FROM pg_stat_activity AS a JOIN pg_roles AS r ON r.oid = a.usesysid
 WHERE a.backend_type = 'client backend' AND a.pid <> pg_backend_pid() AND a.application_name <> $1
 AND a.xact_start IS NOT NULL AND a.wait_event IS DISTINCT FROM 'SyncRep'
 AND (NOT r.rolsuper OR (SELECT rolsuper FROM pg_roles WHERE rolname = current_user))";

/// Waits until no session but the monitors' own has a transaction open, and returns the end of the WAL that they wrote.
/// After `limit`, with `end`, sessions that still have one are ended.
///
/// # Errors
/// `Deadline` with the transactions that are still open.
pub async fn quiesce(remote: &Remote, limit: Duration, end: bool) -> Result<Lsn, ActError> {
    let begun = Instant::now();
    let ground = remote.begin("wait for open transactions", limit + 2 * ENDING).await?;
    let mut quiet_since = None;
    let mut ended = false;
    loop {
        let open = ground.rows(OPEN, &[&APPLICATION_NAME]).await?;
        let late = begun.elapsed() >= if ended { limit + ENDING } else { limit };
        if open.is_empty() {
            let since = *quiet_since.get_or_insert_with(Instant::now);
            if since.elapsed() >= QUIET {
                return flushed(ground).await;
            }
        } else {
            quiet_since = None;
            if late && (ended || !end) {
                return Err(ground.fail(Cause::Deadline(told(&ground, &open)?)));
            }
            if late {
                ended = true;
                ground.row(END, &[&APPLICATION_NAME]).await?;
            }
        }
        ground.wait(|| "sessions that were ended are still there".into()).await?;
    }
}

/// A write of our own is acknowledged, so all that was written before it is on disk here and on its way to the standbys, what
/// was committed without waiting for the disk too.
async fn flushed(ground: Ground) -> Result<Lsn, ActError> {
    ground.execute("UPDATE pgsteady.term SET written_at = now()").await?;
    let row = ground.row("SELECT (pg_current_wal_flush_lsn() - '0/0')::bigint AS position", &[]).await?;
    let position: i64 = ground.get(&row, "position")?;
    ground.done().await;
    Ok(Lsn(position.cast_unsigned()))
}

fn told(ground: &Ground, open: &[tokio_postgres::Row]) -> Result<String, ActError> {
    let mut text = format!("{} still open", open.len());
    for (row, begin) in open.iter().take(MAX_TOLD).zip([": "].into_iter().chain(std::iter::repeat("; "))) {
        let (pid, age) = (ground.get::<i32>(row, "pid")?, ground.get::<i64>(row, "age")?);
        let (name, state): (String, String) = (ground.get(row, "name")?, ground.get(row, "state")?);
        let _ = write!(text, "{begin}process {pid} of {name} ({state}, for {age} ms)");
    }
    Ok(text)
}
