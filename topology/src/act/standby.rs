//! What is done to a standby besides the fence: drain it, point it at another primary.

use std::time::{Duration, Instant};

use super::fence::free_replay;
use super::primary::read_term;
use super::{ActError, Cause, Claim, Ground, Remote, literal, marked_by};
use crate::reading::TermRow;
use crate::reading::timeline_of_standby;
use crate::{Address, Lsn, ReplicationLogin};

/// A standby that has replayed all it has.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Drained {
    /// End of what it holds: the greater of received and replayed.
    pub position: Lsn,
    /// The timeline it is on.
    pub timeline: u32,
    /// `pg_control_system().system_identifier`
    pub system: u64,
    /// The term row as replayed.
    pub term: Option<TermRow>,
}

const POSITION: &str =
    "SELECT pg_is_in_recovery() AS in_recovery, pg_last_wal_receive_lsn() <= pg_last_wal_replay_lsn() AS through,
 (greatest(pg_last_wal_receive_lsn(), pg_last_wal_replay_lsn()) - '0/0')::bigint AS position,
 coalesce((SELECT wait_event FROM pg_stat_activity WHERE backend_type = 'startup'), '') AS startup_wait,
 EXISTS (SELECT FROM pg_stat_wal_receiver)
   OR EXISTS (SELECT FROM pg_stat_activity WHERE backend_type = 'walreceiver') AS receiving,
 current_setting('primary_slot_name') AS mark";

/// What the startup process waits for when it has come to the end of its WAL.
const AT_THE_END: [&str; 2] = ["RecoveryRetrieveRetryInterval", "RecoveryWalStream"];

/// Waits until a (fenced) standby has replayed everything that it holds. Received and replayed need not become equal:
/// the last record may be cut off; then it counts that the startup process waits at the end of WAL, seen twice. Replay that
/// is paused, or waits for a session, is freed.
pub async fn drain(remote: &Remote, deadline: Duration) -> Result<Drained, ActError> {
    let ground = remote.begin("drain", deadline).await?;
    let begun = Instant::now();
    let mut at_the_end = 0;
    loop {
        let row = ground.row(POSITION, &[]).await?;
        if !ground.get::<bool>(&row, "in_recovery")? {
            return Err(ground.fail(Cause::Guard("it is not a standby".into())));
        }
        let wait: String = ground.get(&row, "startup_wait")?;
        at_the_end = if AT_THE_END.contains(&wait.as_str()) { at_the_end + 1 } else { 0 };
        let position = ground.get::<Option<i64>>(&row, "position")?;
        if (ground.get::<Option<bool>>(&row, "through")? == Some(true) || at_the_end >= 2)
            && let Some(position) = position
        {
            let drained = position_of(&ground, Lsn(position.cast_unsigned())).await?;
            ground.done().await;
            return Ok(drained);
        }
        free_replay(&ground, begun.elapsed()).await?;
        ground.wait(|| format!("replay goes on at {position:?}, startup process waits for {wait:?}")).await?;
    }
}

async fn position_of(ground: &Ground, position: Lsn) -> Result<Drained, ActError> {
    const HISTORY: &str = concat!(
        "SELECT (SELECT system_identifier FROM pg_control_system()) AS system, ",
        timeline_of_standby!(),
        " AS timeline"
    );
    let row = ground.row(HISTORY, &[]).await?;
    Ok(Drained {
        position,
        timeline: ground.get::<i32>(&row, "timeline")?.cast_unsigned(),
        system: ground.get::<i64>(&row, "system")?.cast_unsigned(),
        term: read_term(ground).await?,
    })
}

/// What must be true of a standby that is pointed at a primary; otherwise nothing is changed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Provided {
    /// The term of the fence whose mark it carries; `None`: it carries none.
    pub mark: Option<u64>,
    /// Its fence has held: no receiver, and it stands where it stood when it was drained. `None`: need not be so.
    pub still_at: Option<Lsn>,
}

/// Makes a standby follow the node at `primary`, provided that what is required is so. Also what undoes a fence.
///
/// Returns when the setting is in force, not when it streams: that is for the probe to see.
pub async fn repoint(
    remote: &Remote,
    primary: &Address,
    login: &ReplicationLogin,
    provided: Provided,
    claim: impl Claim,
    deadline: Duration,
) -> Result<(), ActError> {
    let ground = remote.begin_under("repoint", claim, deadline).await?;
    require(&ground, provided).await?;
    let conninfo = login.conninfo(&remote.node, primary);
    let follow = format!("ALTER SYSTEM SET primary_conninfo = {}", literal(conninfo.expose()));
    // the old primary's slot, or the fence's mark, would keep the new one from sending
    let (unmarked, followed, reloaded) = tokio::join!(
        ground.execute("ALTER SYSTEM SET primary_slot_name = ''"),
        ground.execute(&follow),
        ground.execute("SELECT pg_reload_conf()"),
    );
    unmarked.and(followed).and(reloaded)?;
    loop {
        let row = ground
            .row(
                "SELECT current_setting('primary_conninfo') = $1 AND current_setting('primary_slot_name') = '' AS set",
                &[&conninfo.expose()],
            )
            .await?;
        if ground.get(&row, "set")? {
            ground.done().await;
            return Ok(());
        }
        ground.wait(|| "the reload has not come into force".into()).await?;
    }
}

async fn require(ground: &Ground, provided: Provided) -> Result<(), ActError> {
    let row = ground.row(POSITION, &[]).await?;
    let marked: String = ground.get(&row, "mark")?;
    let position = ground.get::<Option<i64>>(&row, "position")?.map(|p| Lsn(p.cast_unsigned()));
    let receiving: bool = ground.get(&row, "receiving")?;
    if !ground.get::<bool>(&row, "in_recovery")? {
        return Err(ground.fail(Cause::Guard("it is no standby".into())));
    }
    let seen = match provided {
        Provided { mark, .. } if marked_by(&marked) != mark => format!("primary_slot_name is \"{marked}\""),
        Provided { still_at: Some(_), .. } if receiving => "it has a receiver in spite of its fence".into(),
        Provided { still_at: Some(fenced), .. } if position > Some(fenced) => "it took WAL after its fence".into(),
        Provided { .. } => return Ok(()),
    };
    Err(ground.fail(Cause::Guard(seen)))
}
