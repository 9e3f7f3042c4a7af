//! What is done to a primary: its rule, the term row that opens it, the barrier before reads, checkpoint, quarantine.

use std::collections::HashSet;
use std::time::Duration;

use super::rule::{establish, rule_text};
use super::{ActError, Cause, Claim, Ground, Remote, is_undefined_table};
use crate::Lsn;
use crate::login::APPLICATION_NAME;
use crate::reading::TermRow;

/// A write that the rule's standbys have flushed: acknowledged by PostgreSQL, and seen in `pg_stat_replication` as well.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TermWritten {
    /// A position of the primary at or after the write.
    pub position: Lsn,
    /// Standbys of the cohort that have flushed it, at least k.
    pub flushed_by: Vec<String>,
}

/// Creates `pgsteady.term` where it is missing. The table holds one row, which the standbys get with the WAL.
pub async fn prepare_term(remote: &Remote, deadline: Duration) -> Result<(), ActError> {
    let ground = remote.begin("create the term table", deadline).await?;
    // asked first: with the schema there, no privilege to create one is needed, and with the table none at all
    const THERE: &str = "SELECT to_regnamespace('pgsteady') IS NOT NULL AS schema,
        to_regclass('pgsteady.term') IS NOT NULL AS table";
    let there = ground.row(THERE, &[]).await?;
    if !ground.get::<bool>(&there, "schema")? {
        ground.execute("CREATE SCHEMA IF NOT EXISTS pgsteady").await?;
    }
    if !ground.get::<bool>(&there, "table")? {
        ground.execute(CREATE_TERM).await?;
    }
    ground.done().await;
    Ok(())
}

const CREATE_TERM: &str = "CREATE TABLE IF NOT EXISTS pgsteady.term (\
 one boolean PRIMARY KEY DEFAULT true CHECK (one), term bigint NOT NULL, leader text NOT NULL, cohort text[] NOT NULL, \
 k integer NOT NULL, written_at timestamptz NOT NULL DEFAULT now())";

/// Compare-and-set: a higher term, or another rule of the same term and leader. Anything else changes no row.
const WRITE_TERM: &str = "\
INSERT INTO pgsteady.term AS t (term, leader, cohort, k, written_at) VALUES ($1, $2, $3, $4, now())
 ON CONFLICT (one) DO UPDATE SET term = excluded.term, leader = excluded.leader, cohort = excluded.cohort,
   k = excluded.k, written_at = excluded.written_at
 WHERE t.term < excluded.term OR (t.term = excluded.term AND t.leader = excluded.leader)
 RETURNING t.term";

/// Writes the term row and waits for its synchronous acknowledgement: the commit point of a change of primary.
///
/// # Errors
/// `Guard` if the row holds a higher term or another leader. A lost or late write counts as not written, whatever
/// became of it; the same call may be repeated.
pub async fn write_term(remote: &Remote, rule: &TermRow, deadline: Duration) -> Result<TermWritten, ActError> {
    let ground = remote.begin("write the term row", deadline).await?;
    writable(&ground).await?;
    let (term, k) = numbers(&ground, rule)?;
    let written = ground.rows(WRITE_TERM, &[&term, &rule.leader, &rule.cohort, &k]).await?;
    if written.is_empty() {
        let found = read_term(&ground).await?;
        return Err(ground.fail(Cause::Guard(format!("the row says {found:?}, this is term {}", rule.term))));
    }
    let evidence = flushed(&ground, rule).await?;
    ground.done().await;
    Ok(evidence)
}

/// A write under the current term that the rule's standbys have flushed. After it, nothing that this primary shows can
/// be taken back.
///
/// # Errors
/// `Guard` if the term row is not the one expected.
pub async fn barrier(remote: &Remote, rule: &TermRow, deadline: Duration) -> Result<TermWritten, ActError> {
    let ground = remote.begin("barrier", deadline).await?;
    let (term, _) = numbers(&ground, rule)?;
    let touched = ground
        .rows(
            "UPDATE pgsteady.term SET written_at = now() WHERE term = $1 AND leader = $2 RETURNING term",
            &[&term, &rule.leader],
        )
        .await?;
    if touched.is_empty() {
        let found = read_term(&ground).await?;
        return Err(ground.fail(Cause::Guard(format!("the row says {found:?}, expected was term {term}"))));
    }
    let evidence = flushed(&ground, rule).await?;
    ground.done().await;
    Ok(evidence)
}

fn numbers(ground: &Ground, rule: &TermRow) -> Result<(i64, i32), ActError> {
    let too_big = |what: &str| ground.fail(Cause::Guard(format!("{what} does not fit the term row")));
    let term = i64::try_from(rule.term).map_err(|_| too_big("the term"))?;
    Ok((term, i32::try_from(rule.k).map_err(|_| too_big("k"))?))
}

/// A wait for standbys that somebody cancelled ends like one that was satisfied, and a rule that is not yet in force is
/// not waited for. So the acknowledgement is not believed until k standbys are seen to have flushed it.
async fn flushed(ground: &Ground, rule: &TermRow) -> Result<TermWritten, ActError> {
    let row = ground.row("SELECT (pg_current_wal_flush_lsn() - '0/0')::bigint AS position", &[]).await?;
    let position: i64 = ground.get(&row, "position")?;
    loop {
        let rows = ground
            .rows(
                "SELECT DISTINCT application_name AS name FROM pg_stat_replication
                 WHERE application_name = ANY ($1) AND (flush_lsn - '0/0')::bigint >= $2 AND state = 'streaming'",
                &[&rule.cohort, &position],
            )
            .await?;
        if rows.len() >= rule.k as usize || rule.cohort.is_empty() {
            let names: Result<HashSet<String>, _> = rows.iter().map(|row| ground.get(row, "name")).collect();
            let position = Lsn(position.cast_unsigned());
            return Ok(TermWritten { position, flushed_by: names?.into_iter().collect() });
        }
        ground.wait(|| format!("{} of {} standbys have flushed it", rows.len(), rule.k)).await?;
    }
}

/// The term row as this node has it; `None` without table or row.
pub(super) async fn read_term(ground: &Ground) -> Result<Option<TermRow>, ActError> {
    let rows = match ground.rows("SELECT row_to_json(t)::text AS term FROM pgsteady.term AS t", &[]).await {
        Err(error) if is_undefined_table(&error) => return Ok(None),
        outcome => outcome?,
    };
    let Some(row) = rows.first() else { return Ok(None) };
    let json: String = ground.get(row, "term")?;
    serde_json::from_str(&json).map(Some).map_err(|e| ground.fail(Cause::Statement(format!("a term row {json}: {e}"))))
}

const READ_ONLY: &str = "SELECT current_setting('default_transaction_read_only')::bool AS read_only";

/// Undoes a quarantine; a session that was there before the reload follows within moments.
pub(super) async fn writable(ground: &Ground) -> Result<(), ActError> {
    if !ground.get::<bool>(&ground.row(READ_ONLY, &[]).await?, "read_only")? {
        return Ok(());
    }
    ground.execute("ALTER SYSTEM RESET default_transaction_read_only").await?;
    ground.execute("SELECT pg_reload_conf()").await?;
    while ground.get(&ground.row(READ_ONLY, &[]).await?, "read_only")? {
        ground.wait(|| "default_transaction_read_only is still on".into()).await?;
    }
    Ok(())
}

/// Sets `synchronous_standby_names` on a primary and sees it in force: in a session, in the checkpointer, and in the
/// walsenders.
pub async fn set_rule(
    remote: &Remote,
    k: u32,
    cohort: &[String],
    claim: impl Claim,
    deadline: Duration,
) -> Result<(), ActError> {
    const FOLLOWED: &str = "\
        SELECT NOT EXISTS (SELECT FROM pg_stat_replication
          WHERE state = 'streaming' AND (application_name = ANY ($1)) <> (sync_state <> 'async')) AS followed";
    let ground = remote.begin_under("set synchronous_standby_names", claim, deadline).await?;
    let rule = rule_text(k, cohort);
    let cohort = if rule.is_empty() { &[] } else { cohort };
    establish(&ground, &rule).await?;
    while !ground.get::<bool>(&ground.row(FOLLOWED, &[&cohort]).await?, "followed")? {
        ground.wait(|| "the walsenders do not follow it yet".into()).await?;
    }
    ground.done().await;
    Ok(())
}

/// Checkpoints a new primary and returns the timeline in its control file. Until then `pg_rewind` takes the new primary
/// for one on the old timeline and does nothing (PostgreSQL 15).
pub async fn checkpoint(remote: &Remote, deadline: Duration) -> Result<u32, ActError> {
    let ground = remote.begin("checkpoint", deadline).await?;
    ground.execute("CHECKPOINT").await?;
    let row = ground.row("SELECT timeline_id FROM pg_control_checkpoint()", &[]).await?;
    let timeline: i32 = ground.get(&row, "timeline_id")?;
    ground.done().await;
    Ok(timeline.cast_unsigned())
}

/// Makes a primary of a bygone term as harmless as SQL can: new transactions are read only by default, the sessions end.
/// Returns how many were ended. It is no fence: the standbys' fence is what keeps this node from acknowledging.
pub async fn quarantine(remote: &Remote, deadline: Duration) -> Result<u64, ActError> {
    let ground = remote.begin("quarantine", deadline).await?;
    if !ground.get::<bool>(&ground.row(READ_ONLY, &[]).await?, "read_only")? {
        ground.execute("ALTER SYSTEM SET default_transaction_read_only = on").await?;
        ground.execute("SELECT pg_reload_conf()").await?;
    }
    // The postmaster knows it before its children do: whoever is ended now finds it when coming back.
    while !ground.get::<bool>(&ground.row(READ_ONLY, &[]).await?, "read_only")? {
        ground.wait(|| "default_transaction_read_only is not on yet".into()).await?;
    }
    let row = ground
        .row(
            "SELECT count(pg_terminate_backend(a.pid)) AS ended FROM pg_stat_activity AS a
             JOIN pg_roles AS r ON r.oid = a.usesysid
             WHERE a.backend_type = 'client backend' AND a.pid <> pg_backend_pid() AND a.application_name <> $1
             AND (NOT r.rolsuper OR (SELECT rolsuper FROM pg_roles WHERE rolname = current_user))",
            &[&APPLICATION_NAME],
        )
        .await?;
    let ended = ground.get::<i64>(&row, "ended")?;
    ground.done().await;
    Ok(u64::try_from(ended).unwrap_or(0))
}
