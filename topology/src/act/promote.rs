//! The promotion of a fenced standby. Whether it may be promoted is decided elsewhere; here it is only guarded.

use std::time::Duration;

use tokio_postgres::Row;

use super::primary::{read_term, writable};
use super::rule::establish;
use super::{ActError, Cause, Ground, Remote, mark};

/// What is known of a promoted node.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Promoted {
    /// Its new timeline.
    pub timeline: u32,
    /// The next transaction id when it was promoted: a transaction of the old primary with this or a later id has not
    /// committed (ids are used again after a promotion).
    pub next_xid: u64,
}

const NEXT_XID: &str = "SELECT pg_snapshot_xmax(pg_current_snapshot())::text AS next_xid";

const AFTER: &str = "SELECT CASE WHEN NOT pg_is_in_recovery() THEN
 ('x' || substr(pg_walfile_name(pg_current_wal_insert_lsn()), 1, 8))::bit(32)::int END AS timeline";

/// One statement that both checks and promotes: a coordinator that slept and wakes up late finds another mark.
const GUARDED: &str = "\
SELECT pg_promote(false) AS promoted WHERE pg_is_in_recovery() AND current_setting('primary_conninfo') = ''
 AND current_setting('primary_slot_name') = $1 AND NOT EXISTS (SELECT FROM pg_stat_wal_receiver)";
const AND_OF_THIS_HISTORY: &str = " AND (SELECT term FROM pgsteady.term) = $2";

/// What is to be promoted, and into what.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Order {
    /// The new term; the node has to carry the mark of its fence.
    pub term: u64,
    /// The term row that it has to show: it was chosen as a node of that history. `None`: it has to have none.
    pub parent: Option<u64>,
    /// Its `synchronous_standby_names` from the first write on.
    pub rule: String,
}

/// Promotes a fenced standby. Returns as soon as it is out of recovery.
///
/// # Errors
/// `Guard` if the fence's mark is not there: nothing was promoted. Any other error leaves it open whether it was.
pub async fn promote(remote: &Remote, order: &Order, deadline: Duration) -> Result<Promoted, ActError> {
    let Order { term, parent, rule } = order;
    let ground = remote.begin_alone("promote", deadline).await?;
    // a quarantine of its earlier life
    writable(&ground).await?;
    establish(&ground, rule).await?;
    let next_xid: String = ground.get(&ground.row(NEXT_XID, &[]).await?, "next_xid")?;
    let next_xid = next_xid.parse().map_err(|_| ground.fail(Cause::Statement(format!("a next xid {next_xid:?}"))))?;
    let ordered = guarded(&ground, *term, *parent).await?;
    let Some(row) = ordered.first() else {
        let seen = format!("it is no standby of term {parent:?} with the mark {} and no receiver", mark(*term));
        return Err(ground.fail(Cause::Guard(seen)));
    };
    if !ground.get::<bool>(row, "promoted")? {
        return Err(ground.fail(Cause::Statement("pg_promote: false".into())));
    }
    let timeline = loop {
        let row = ground.row(AFTER, &[]).await?;
        if let Some(timeline) = ground.get::<Option<i32>>(&row, "timeline")? {
            break timeline.cast_unsigned();
        }
        ground.wait(|| "it is still in recovery".into()).await?;
    };
    ground.done().await;
    Ok(Promoted { timeline, next_xid })
}

async fn guarded(ground: &Ground, term: u64, parent: Option<u64>) -> Result<Vec<Row>, ActError> {
    let Some(parent) = parent else {
        return match read_term(ground).await? {
            Some(_) => Ok(Vec::new()),
            None => ground.rows(GUARDED, &[&mark(term)]).await,
        };
    };
    let too_big = |_| ground.fail(Cause::Guard("the term does not fit the term row".into()));
    let parent = i64::try_from(parent).map_err(too_big)?;
    ground.rows(&format!("{GUARDED}{AND_OF_THIS_HISTORY}"), &[&mark(term), &parent]).await
}
