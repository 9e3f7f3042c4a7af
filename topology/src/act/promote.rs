//! The promotion of a fenced standby. Whether it may be promoted is decided elsewhere; here it is only guarded.

use std::time::Duration;

use super::primary::writable;
use super::{ActError, Cause, Remote, literal, mark};

/// What is known of a promoted node.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Promoted {
    /// The next transaction id when it was promoted: a transaction of the old primary with this or a later id has not
    /// committed (ids are used again after a promotion).
    pub next_xid: u64,
}

const BEFORE: &str = "\
SELECT current_setting('synchronous_standby_names') = $1 AS ruled,
 pg_snapshot_xmax(pg_current_snapshot())::text AS next_xid";

/// One statement that both checks and promotes: a coordinator that slept and wakes up late finds another mark.
const GUARDED: &str = "\
SELECT pg_promote(false) AS promoted WHERE pg_is_in_recovery() AND current_setting('primary_conninfo') = ''
 AND current_setting('primary_slot_name') = $1 AND NOT EXISTS (SELECT FROM pg_stat_wal_receiver)";

/// Promotes the standby that the fence of `term` has marked, with `rule` as its `synchronous_standby_names` from the first
/// write on. Returns as soon as it is out of recovery.
///
/// # Errors
/// `Guard` if the fence's mark is not there: nothing was promoted. Any other error leaves it open whether it was.
pub async fn promote(remote: &Remote, term: u64, rule: &str, deadline: Duration) -> Result<Promoted, ActError> {
    let ground = remote.begin("promote", deadline).await?;
    // a quarantine of its earlier life
    writable(&ground).await?;
    let row = ground.row(BEFORE, &[&rule]).await?;
    if !ground.get::<bool>(&row, "ruled")? {
        ground.execute(&format!("ALTER SYSTEM SET synchronous_standby_names = {}", literal(rule))).await?;
        ground.execute("SELECT pg_reload_conf()").await?;
    }
    let next_xid = loop {
        let row = ground.row(BEFORE, &[&rule]).await?;
        if ground.get(&row, "ruled")? {
            break ground.get::<String>(&row, "next_xid")?;
        }
        ground.wait(|| "synchronous_standby_names is not in force".into()).await?;
    };
    let next_xid = next_xid.parse().map_err(|_| ground.fail(Cause::Statement(format!("a next xid {next_xid:?}"))))?;
    let promoted = ground.rows(GUARDED, &[&mark(term)]).await?;
    let Some(row) = promoted.first() else {
        let seen = format!("it is no standby that carries the mark {} and has no receiver", mark(term));
        return Err(ground.fail(Cause::Guard(seen)));
    };
    if !ground.get::<bool>(row, "promoted")? {
        return Err(ground.fail(Cause::Statement("pg_promote: false".into())));
    }
    while ground.get(&ground.row("SELECT pg_is_in_recovery() AS still", &[]).await?, "still")? {
        ground.wait(|| "it is still in recovery".into()).await?;
    }
    ground.done();
    Ok(Promoted { next_xid })
}
