//! What is done to a standby besides the fence: drain it, point it at another primary, prepare it to be a candidate.

use std::time::Duration;

use super::primary::read_term;
use super::{ActError, Cause, Ground, Remote, literal, mark, marked_by};
use crate::reading::TermRow;
use crate::{Address, Lsn, ReplicationLogin};

/// A standby that has replayed all it has.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Drained {
    /// End of what it holds: the greater of received and replayed.
    pub position: Lsn,
    /// The term row as replayed.
    pub term: Option<TermRow>,
}

const POSITION: &str = "\
SELECT pg_is_in_recovery() AS in_recovery, pg_last_wal_receive_lsn() <= pg_last_wal_replay_lsn() AS through,
 (greatest(pg_last_wal_receive_lsn(), pg_last_wal_replay_lsn()) - '0/0')::bigint AS position,
 coalesce((SELECT wait_event FROM pg_stat_activity WHERE backend_type = 'startup'), '') AS startup_wait,
 EXISTS (SELECT FROM pg_stat_wal_receiver)
   OR EXISTS (SELECT FROM pg_stat_activity WHERE backend_type = 'walreceiver') AS receiving,
 current_setting('primary_slot_name') AS mark";

/// What the startup process waits for when it has come to the end of its WAL.
const AT_THE_END: [&str; 2] = ["RecoveryRetrieveRetryInterval", "RecoveryWalStream"];

/// Waits until a (fenced) standby has replayed everything that it holds. Received and replayed need not become equal:
/// the last record may be cut off; then it counts that the startup process waits at the end of WAL, seen twice.
pub async fn drain(remote: &Remote, deadline: Duration) -> Result<Drained, ActError> {
    let ground = remote.begin("drain", deadline).await?;
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
            let term = read_term(&ground).await?;
            ground.done();
            return Ok(Drained { position: Lsn(position.cast_unsigned()), term });
        }
        ground.wait(|| format!("replay goes on at {position:?}, startup process waits for {wait:?}")).await?;
    }
}

/// What must be true of a standby that is pointed at a primary; otherwise nothing is changed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Provided {
    /// The fence of this term has held: its mark, no receiver, and no position beyond the one at the fence.
    StillFenced {
        /// The fence's term.
        term: u64,
        /// Where it stood when it was fenced.
        position: Lsn,
    },
    /// No higher term than this has fenced it. For the undoing of a fence, and for a standby that follows nobody.
    NotFencedAfter {
        /// The term of the one who acts.
        term: u64,
    },
}

/// Makes a standby follow the node at `primary`, provided that what is required is so. Also what undoes a fence.
///
/// Returns when the setting is in force, not when it streams: that is for the probe to see.
pub async fn repoint(
    remote: &Remote,
    primary: &Address,
    login: &ReplicationLogin,
    provided: Provided,
    deadline: Duration,
) -> Result<(), ActError> {
    let ground = remote.begin("repoint", deadline).await?;
    require(&ground, provided).await?;
    let conninfo = login.conninfo(&remote.node, primary);
    let follow = format!("ALTER SYSTEM SET primary_conninfo = {}", literal(conninfo.expose()));
    // the old primary's slot, or the fence's mark, would keep the new one from sending
    let (unmarked, followed) =
        tokio::join!(ground.execute("ALTER SYSTEM SET primary_slot_name = ''"), ground.execute(&follow));
    unmarked.and(followed)?;
    ground.execute("SELECT pg_reload_conf()").await?;
    loop {
        let row = ground
            .row(
                "SELECT current_setting('primary_conninfo') = $1 AND current_setting('primary_slot_name') = '' AS set",
                &[&conninfo.expose()],
            )
            .await?;
        if ground.get(&row, "set")? {
            ground.done();
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
        Provided::NotFencedAfter { term } if marked_by(&marked) > Some(term) => "a higher term has fenced it",
        Provided::NotFencedAfter { .. } => return Ok(()),
        Provided::StillFenced { term, .. } if marked != mark(term) => "it carries the mark of another fence or of none",
        Provided::StillFenced { .. } if receiving => "it has a receiver in spite of its fence",
        Provided::StillFenced { position: fenced, .. } if position > Some(fenced) => "it took WAL after its fence",
        Provided::StillFenced { .. } => return Ok(()),
    };
    Err(ground.fail(Cause::Guard(seen.into())))
}

/// Gives a standby the settings of a candidate before it is needed: a promotion that is not held up by
/// `wal_retrieve_retry_interval` (5 s by default), and the rule, so that even a promotion by a stranger acknowledges nothing alone.
pub async fn prepare_standby(remote: &Remote, rule: &str, deadline: Duration) -> Result<(), ActError> {
    let ground = remote.begin("prepare", deadline).await?;
    let row = ground
        .row(
            "SELECT current_setting('wal_retrieve_retry_interval')::interval > '100ms'::interval AS slow_retry,
             current_setting('synchronous_standby_names') <> $1 AS other_rule",
            &[&rule],
        )
        .await?;
    let (slow, other) = (ground.get::<bool>(&row, "slow_retry")?, ground.get::<bool>(&row, "other_rule")?);
    if slow {
        ground.execute("ALTER SYSTEM SET wal_retrieve_retry_interval = '100ms'").await?;
    }
    if other {
        ground.execute(&format!("ALTER SYSTEM SET synchronous_standby_names = {}", literal(rule))).await?;
    }
    if slow || other {
        ground.execute("SELECT pg_reload_conf()").await?;
    }
    ground.done();
    Ok(())
}
