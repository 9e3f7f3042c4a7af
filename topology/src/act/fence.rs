//! The fence: a standby takes no more WAL from anybody, durably, and that is seen, not assumed.

use std::time::{Duration, Instant};

use decision::Obstacle;

use super::{ActError, Cause, Ground, Remote, literal, mark, marked_by};
use crate::Lsn;
use crate::login::APPLICATION_NAME;

/// A receiver that is still there this long after the cut is held by something: its sessions are ended.
const PATIENCE: Duration = Duration::from_millis(150);
/// Between two looks that both have to find the receiver gone. The startup process learns of the reload on its own: one
/// that was just then about to start a receiver would show within this time.
const CONFIRMATION: Duration = Duration::from_millis(10);

/// What was seen of a fenced standby.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FenceEvidence {
    /// Flushed by the last receiver; `None` after a restart.
    pub received: Option<Lsn>,
    /// Replayed so far; replay goes on.
    pub replayed: Option<Lsn>,
    /// When it was seen for the second time.
    pub at: Instant,
    /// What had to be done beyond the cut, for people.
    pub escalated: Vec<&'static str>,
}

/// A fence that was not seen to hold.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FenceFailed {
    /// For people.
    pub error: ActError,
    /// For the decision.
    pub obstacle: Obstacle,
}

impl From<ActError> for FenceFailed {
    fn from(error: ActError) -> Self {
        let obstacle = match &error.cause {
            Cause::Connection(_) => Obstacle::Unreachable,
            Cause::Statement(text) if text.starts_with("42501") => Obstacle::Forbidden(text.clone()),
            Cause::Statement(text) | Cause::Deadline(text) | Cause::Guard(text) => Obstacle::Other(text.clone()),
        };
        Self { error, obstacle }
    }
}

/// One look at a standby that is being fenced.
struct Look {
    in_recovery: bool,
    /// Does this session see the empty `primary_conninfo`?
    cut: bool,
    mark: String,
    receiving: bool,
    /// May we see the server's own processes at all? Without `pg_monitor`, no receiver would ever be seen.
    sighted: bool,
    paused: bool,
    delayed: bool,
    slow_retry: bool,
    /// The startup process waits for a session: recovery conflict.
    conflict: bool,
    startup_wait: Option<String>,
    received: Option<Lsn>,
    replayed: Option<Lsn>,
}

const LOOK: &str = "\
SELECT pg_is_in_recovery() AS in_recovery, current_setting('primary_conninfo') = '' AS cut,
 current_setting('primary_slot_name') AS mark,
 EXISTS (SELECT FROM pg_stat_wal_receiver)
   OR EXISTS (SELECT FROM pg_stat_activity WHERE backend_type = 'walreceiver') AS receiving,
 EXISTS (SELECT FROM pg_stat_activity WHERE backend_type = 'checkpointer') AS sighted,
 CASE WHEN pg_is_in_recovery() THEN pg_is_wal_replay_paused() ELSE false END AS paused,
 current_setting('recovery_min_apply_delay')::interval > '0'::interval AS delayed,
 current_setting('wal_retrieve_retry_interval')::interval > '100ms'::interval AS slow_retry,
 s.wait_event AS startup_wait,
 coalesce(s.wait_event LIKE 'RecoveryConflict%' OR s.wait_event_type IN ('Lock', 'BufferPin'), false) AS conflict,
 (pg_last_wal_receive_lsn() - '0/0')::bigint AS received, (pg_last_wal_replay_lsn() - '0/0')::bigint AS replayed
 FROM (SELECT) AS one LEFT JOIN pg_stat_activity AS s ON s.backend_type = 'startup'";

const TERMINATE: &str = "\
SELECT count(pg_terminate_backend(a.pid)) AS ended FROM pg_stat_activity AS a JOIN pg_roles AS r ON r.oid = a.usesysid
 WHERE a.backend_type = 'client backend' AND a.pid <> pg_backend_pid() AND a.application_name <> $1
 AND (a.xact_start IS NOT NULL OR $2)
 AND (NOT r.rolsuper OR (SELECT rolsuper FROM pg_roles WHERE rolname = current_user))";

/// Cuts a standby from its primary for `term`: empties `primary_conninfo`, marks `primary_slot_name`, and returns only
/// when twice the receiver was seen gone. Replay that keeps the receiver alive is freed: resumed if paused, its delay
/// set to 0, and the sessions ended that it waits for.
///
/// # Errors
/// If it is no standby, if a higher term has fenced it already, or if the receiver was not seen gone by the deadline.
/// The cut may then take effect later: un-fence with [`super::repoint`].
pub async fn fence(remote: &Remote, term: u64, deadline: Duration) -> Result<FenceEvidence, FenceFailed> {
    let ground = remote.begin_alone("fence", deadline).await?;
    let begun = Instant::now();
    let seen = look(&ground).await?;
    admit(&ground, &seen, term)?;
    let mut escalated = cut(&ground, &seen, term).await?;
    let mut gone_at = None;
    loop {
        let seen = look(&ground).await?;
        if seen.mark != mark(term) && seen.cut {
            admit(&ground, &seen, term)?;
        }
        if !seen.cut || seen.receiving || seen.mark != mark(term) {
            gone_at = None;
            free(&ground, &seen, begun.elapsed(), &mut escalated).await?;
            ground.wait(|| describe(&seen)).await.map_err(|error| seen.hinders(error))?;
            continue;
        }
        match gone_at {
            Some(first) if Instant::now().duration_since(first) >= CONFIRMATION => {
                let evidence =
                    FenceEvidence { received: seen.received, replayed: seen.replayed, at: Instant::now(), escalated };
                ground.done().await;
                return Ok(evidence);
            }
            Some(_) => {}
            None => gone_at = Some(Instant::now()),
        }
        ground.wait_for(CONFIRMATION, || describe(&seen)).await?;
    }
}

impl Look {
    /// Why the fence did not come about in time.
    fn hinders(&self, error: ActError) -> FenceFailed {
        if !matches!(error.cause, Cause::Deadline(_)) {
            return error.into();
        }
        let obstacle = match self {
            Look { paused: true, .. } => Obstacle::ReplayPaused,
            Look { conflict: true, .. } => Obstacle::Conflict,
            Look { delayed: true, .. } => Obstacle::ApplyDelay,
            _ => return error.into(),
        };
        FenceFailed { error, obstacle }
    }
}

fn admit(ground: &Ground, seen: &Look, term: u64) -> Result<(), FenceFailed> {
    let refused = |obstacle, text: String| Err(FenceFailed { error: ground.fail(Cause::Guard(text)), obstacle });
    if !seen.in_recovery {
        return refused(Obstacle::Writable, "it is not a standby".into());
    }
    if !seen.sighted {
        let text = "the monitor's role does not see PostgreSQL's own processes: it needs pg_monitor";
        return refused(Obstacle::Forbidden("pg_monitor".into()), text.into());
    }
    match marked_by(&seen.mark) {
        Some(higher) if higher > term => {
            let text = format!("term {higher} has fenced it already, this is term {term}");
            refused(Obstacle::Superseded(decision::Term(higher)), text)
        }
        _ => Ok(()),
    }
}

/// The cut itself, the promise first. All is one pipelined round trip; an empty statement does nothing.
async fn cut(ground: &Ground, seen: &Look, term: u64) -> Result<Vec<&'static str>, ActError> {
    let marking = format!("ALTER SYSTEM SET primary_slot_name = {}", literal(&mark(term)));
    let is_cut = seen.cut && seen.mark == mark(term);
    let when = |needed: bool, statement| if needed { statement } else { "" };
    let (cut, marked, quick, undelayed, reloaded) = tokio::join!(
        ground.execute(when(!is_cut, "ALTER SYSTEM SET primary_conninfo = ''")),
        ground.execute(when(!is_cut, &marking)),
        ground.execute(when(seen.slow_retry, "ALTER SYSTEM SET wal_retrieve_retry_interval = '100ms'")),
        ground.execute(when(seen.delayed, "ALTER SYSTEM SET recovery_min_apply_delay = 0")),
        ground.execute("SELECT pg_reload_conf()"),
    );
    cut.and(marked).and(quick).and(undelayed).and(reloaded)?;
    Ok(if seen.delayed { vec!["recovery_min_apply_delay set to 0"] } else { Vec::new() })
}

/// Frees the startup process, which alone can end the receiver, from what it waits for.
async fn free(
    ground: &Ground,
    seen: &Look,
    elapsed: Duration,
    escalated: &mut Vec<&'static str>,
) -> Result<(), ActError> {
    if seen.paused {
        ground.execute("SELECT pg_wal_replay_resume()").await?;
        note(escalated, "paused replay resumed");
    }
    if seen.conflict || (seen.receiving && elapsed > PATIENCE) {
        // without pg_signal_backend this fails; the receiver may still go by itself before the deadline
        match ground.row(TERMINATE, &[&APPLICATION_NAME, &(elapsed > PATIENCE * 3)]).await {
            Ok(row) if ground.get::<i64>(&row, "ended")? > 0 => note(escalated, "sessions ended"),
            Ok(_) => {}
            Err(error) => match error.cause {
                Cause::Statement(_) => tracing::warn!(node = %error.node, %error, "cannot end sessions"),
                _ => return Err(error),
            },
        }
        ground.wait_for(CONFIRMATION, || describe(seen)).await?;
    }
    Ok(())
}

/// Frees replay on a standby whose receiver went by itself: it may be paused, or wait for a session, all the same.
pub(super) async fn free_replay(ground: &Ground, elapsed: Duration) -> Result<(), ActError> {
    let seen = look(ground).await?;
    free(ground, &seen, elapsed, &mut Vec::new()).await
}

fn note(escalated: &mut Vec<&'static str>, what: &'static str) {
    if !escalated.contains(&what) {
        escalated.push(what);
    }
}

fn describe(seen: &Look) -> String {
    format!(
        "primary_conninfo {}, receiver {}, replay {}, startup process waits for {}",
        if seen.cut { "empty" } else { "not yet empty" },
        if seen.receiving { "still there" } else { "gone" },
        if seen.paused { "paused" } else { "not paused" },
        seen.startup_wait.as_deref().unwrap_or("nothing"),
    )
}

async fn look(ground: &Ground) -> Result<Look, ActError> {
    let row = ground.row(LOOK, &[]).await?;
    let lsn = |field| ground.get::<Option<i64>>(&row, field).map(|lsn| lsn.map(|lsn| Lsn(lsn.cast_unsigned())));
    Ok(Look {
        in_recovery: ground.get(&row, "in_recovery")?,
        cut: ground.get(&row, "cut")?,
        mark: ground.get(&row, "mark")?,
        receiving: ground.get(&row, "receiving")?,
        sighted: ground.get(&row, "sighted")?,
        paused: ground.get(&row, "paused")?,
        delayed: ground.get(&row, "delayed")?,
        slow_retry: ground.get(&row, "slow_retry")?,
        conflict: ground.get(&row, "conflict")?,
        startup_wait: ground.get(&row, "startup_wait")?,
        received: lsn("received")?,
        replayed: lsn("replayed")?,
    })
}
