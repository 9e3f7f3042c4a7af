//! One reading of a node: everything the monitor wants to know of it, by one statement. When to read is in `probe`.

use std::time::{Duration, Instant};

use serde::Deserialize;
use tokio_postgres::types::PgLsn;
use tokio_postgres::{Client, Row, Statement};

use crate::login::Failure;
use crate::presence::{Identity, RIVAL};
use crate::{Lsn, conninfo};

/// Most walsenders that are looked at; more than a cohort ever has, and a bound on what a node can make us hold.
const MAX_WALSENDERS: usize = 64;

/// What a node said of itself.
#[derive(Debug, Clone, PartialEq)]
pub struct Reading {
    /// Right before the question was sent. What is read is at least as new.
    pub begun: Instant,
    /// Until the answer had come.
    pub took: Duration,
    /// `pg_control_system().system_identifier`: nodes of one cluster share it.
    pub system: u64,
    /// Start of the checkpointer, µs since 1970 by the node's clock. A change means a restart; the postmaster's own start
    /// stays the same when it restarts everything after the crash of one session.
    pub started: i64,
    /// `pg_backend_pid()`
    pub backend: i32,
    /// The next transaction id when it came up, before it took any write; `None` if it has made a checkpoint since. A checkpoint
    /// at a start or a stop begins where it ends: one at work does not.
    pub recovered: Option<u64>,
    /// `pg_is_in_recovery()`
    pub in_recovery: bool,
    /// Timeline: written to (primary), received or replayed (standby). Not an epoch: two promotions may share one.
    pub timeline: u32,
    /// Next position to be written; `None` on a standby.
    pub inserted: Option<Lsn>,
    /// How far WAL has reached the disk, while sessions wait for it to; `None` if none does, and on a standby.
    pub flushing: Option<Lsn>,
    /// Flushed by the receiver; `None` on a primary, and after a standby's restart until it streams.
    pub received: Option<Lsn>,
    /// Replayed; `None` on a primary that never was a standby.
    pub replayed: Option<Lsn>,
    /// `pg_stat_wal_receiver`, if there is one.
    pub receiver: Option<Receiver>,
    /// Is there a WAL receiver process, streaming or not yet?
    pub receiver_process: bool,
    /// Whom `primary_conninfo` names; `None` if it is empty.
    pub upstream: Option<(String, u16)>,
    /// `primary_slot_name`; carries the fence's mark.
    pub slot_name: String,
    /// `pg_is_wal_replay_paused()`
    pub replay_paused: bool,
    /// `recovery_min_apply_delay`
    pub apply_delay: Duration,
    /// What the startup process waits for, as in `pg_stat_activity`.
    pub startup_wait: Option<String>,
    /// `synchronous_standby_names`
    pub synchronous_standby_names: String,
    /// `pg_stat_replication`
    pub walsenders: Vec<Walsender>,
    /// The term row; `None` if there is no table or no row.
    pub term: Option<TermRow>,
    /// The mark of another instance, one that shares no store with us, which watches this node to act on it; the least if there
    /// are several.
    pub rival: Option<u32>,
}

/// One row of `pg_stat_wal_receiver`.
#[derive(Debug, Clone, PartialEq)]
pub struct Receiver {
    /// `streaming`, `starting`, …
    pub status: String,
    /// Host and port it is connected to.
    pub sender: (String, u16),
    /// Since the last message of the primary.
    pub heard: Option<Duration>,
}

/// One row of `pg_stat_replication`.
#[derive(Debug, Clone, PartialEq, Deserialize)]
pub struct Walsender {
    /// `application_name` of the standby.
    pub name: String,
    /// `streaming`, `catchup`, `startup`, `backup`, …
    pub state: String,
    /// `quorum`, `sync`, `potential`, `async`
    pub sync: String,
    /// What the standby says that it has flushed.
    #[serde(deserialize_with = "lsn_from_text")]
    pub flushed: Lsn,
}

/// The row of `pgsteady.term`: the rule, in the cluster itself.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub struct TermRow {
    /// Number of the current primary.
    pub term: u64,
    /// Its name.
    pub leader: String,
    /// The standbys whose flush counts.
    pub cohort: Vec<String>,
    /// How many of them an acknowledged commit waits for.
    pub k: u32,
}

fn lsn_from_text<'de, D: serde::Deserializer<'de>>(deserializer: D) -> Result<Lsn, D::Error> {
    let text: Option<String> = Option::deserialize(deserializer)?;
    let Some(text) = text else { return Ok(Lsn(0)) };
    text.parse::<PgLsn>().map(|lsn| Lsn(lsn.into())).map_err(|_| serde::de::Error::custom("not an LSN"))
}

/// Timeline of the last WAL that a standby holds. Without a receiver PostgreSQL does not say it (the control file is as
/// old as the last restart point), but the file that holds that position is named after it.
macro_rules! timeline_of_standby {
    () => {
        "coalesce((SELECT received_tli FROM pg_stat_wal_receiver),
   (SELECT max(('x' || left(f.name, 8))::bit(32)::int)
     FROM (SELECT (greatest(pg_last_wal_receive_lsn(), pg_last_wal_replay_lsn()) - '0/1')::bigint AS last,
       pg_size_bytes(current_setting('wal_segment_size')) AS segment) AS p, pg_ls_waldir() AS f
     WHERE length(f.name) = 24 AND right(f.name, 16) = upper(lpad(to_hex(p.last / 4294967296), 8, '0')
       || lpad(to_hex((p.last % 4294967296) / p.segment), 8, '0'))),
   (SELECT timeline_id FROM pg_control_checkpoint()))"
    };
}
pub(crate) use timeline_of_standby;

/// Everything but the term row. `pg_is_in_recovery()` guards what only one of the two roles may call.
const EVERYTHING: &str = concat!(
    "SELECT (SELECT system_identifier FROM pg_control_system()) AS system,
 (SELECT (extract(epoch FROM backend_start) * 1000000)::bigint FROM pg_stat_activity
   WHERE backend_type = 'checkpointer') AS started,
 pg_backend_pid() AS backend,
 (SELECT split_part(next_xid, ':', 1)::bigint << 32 | split_part(next_xid, ':', 2)::bigint
   FROM pg_control_checkpoint() WHERE checkpoint_lsn = redo_lsn) AS recovered,
 pg_is_in_recovery() AS in_recovery,
 CASE WHEN pg_is_in_recovery() THEN ",
    timeline_of_standby!(),
    " ELSE ('x' || substr(pg_walfile_name(pg_current_wal_insert_lsn()), 1, 8))::bit(32)::int END AS timeline,
 CASE WHEN pg_is_in_recovery() THEN NULL ELSE pg_current_wal_insert_lsn() END AS inserted,
 CASE WHEN NOT pg_is_in_recovery() AND EXISTS (SELECT FROM pg_stat_activity
   WHERE lower(wait_event) IN ('walwrite', 'walsync', 'walinitwrite', 'walinitsync'))
   THEN pg_current_wal_flush_lsn() END AS flushing,
 CASE WHEN pg_is_in_recovery() THEN pg_last_wal_receive_lsn() END AS received,
 pg_last_wal_replay_lsn() AS replayed,
 (SELECT coalesce(status, 'hidden') FROM pg_stat_wal_receiver) AS receiver_status,
 (SELECT sender_host FROM pg_stat_wal_receiver) AS sender_host,
 (SELECT sender_port FROM pg_stat_wal_receiver) AS sender_port,
 (SELECT (extract(epoch FROM clock_timestamp() - last_msg_receipt_time) * 1000)::bigint
   FROM pg_stat_wal_receiver) AS heard_ms,
 EXISTS (SELECT FROM pg_stat_activity WHERE backend_type = 'walreceiver') AS receiver_process,
 current_setting('primary_conninfo') AS conninfo,
 current_setting('primary_slot_name') AS slot_name,
 CASE WHEN pg_is_in_recovery() THEN pg_is_wal_replay_paused() ELSE false END AS replay_paused,
 (extract(epoch FROM current_setting('recovery_min_apply_delay')::interval) * 1000)::bigint AS apply_delay_ms,
 (SELECT wait_event FROM pg_stat_activity WHERE backend_type = 'startup') AS startup_wait,
 current_setting('synchronous_standby_names') AS ssn,
 (SELECT json_agg(json_build_object('name', application_name, 'state', coalesce(state, ''),
   'sync', coalesce(sync_state, ''), 'flushed', flush_lsn))::text
   FROM (SELECT * FROM pg_stat_replication LIMIT 64) AS senders) AS walsenders,
 "
);

/// With the table missing, its row cannot be asked for: whether it has come is asked instead.
const TABLE_ABSENT: &str = "NULL::text AS term, to_regclass('pgsteady.term') IS NOT NULL AS has_term";
const TABLE_PRESENT: &str = "(SELECT row_to_json(t)::text FROM pgsteady.term AS t) AS term, true AS has_term";

/// The statement, prepared on one connection, in the variant that fits the node: is the term's table there?
#[derive(Debug)]
pub(crate) struct Question {
    statement: Statement,
    has_term: bool,
    identity: Identity,
}

impl Question {
    /// Prepares it. One more round trip, once a connection.
    pub(crate) async fn prepare(client: &Client, identity: Identity) -> Result<Self, Failure> {
        Self::variant(client, identity, false).await
    }

    async fn variant(client: &Client, identity: Identity, has_term: bool) -> Result<Self, Failure> {
        let term = if has_term { TABLE_PRESENT } else { TABLE_ABSENT };
        let statement =
            client.prepare(&format!("{EVERYTHING}{RIVAL}, {term}")).await.map_err(|e| Failure::in_answer(&e))?;
        Ok(Self { statement, has_term, identity })
    }

    /// Asks; one round trip, and some more when the term's table has just come, gone, or is locked.
    pub(crate) async fn ask(&mut self, client: &Client) -> Result<Reading, Failure> {
        let begun = Instant::now();
        let row = match client.query_one(&self.statement, &[&self.identity.key()]).await {
            Ok(row) => row,
            Err(error) => {
                let failure = Failure::in_answer(&error);
                if !matches!(failure, Failure::Answered(_)) {
                    return Err(failure);
                }
                // the table is gone, locked or forbidden, or the node was promoted between two words of the statement
                *self = Self::variant(client, self.identity, false).await?;
                client.query_one(&self.statement, &[&self.identity.key()]).await.map_err(|e| Failure::in_answer(&e))?
            }
        };
        if !self.has_term && row.try_get("has_term").unwrap_or(false) {
            return self.ask_for_term(client, begun, &row).await;
        }
        read(&row, begun)
    }

    async fn ask_for_term(&mut self, client: &Client, begun: Instant, row: &Row) -> Result<Reading, Failure> {
        let Ok(with_term) = Self::variant(client, self.identity, true).await else { return read(row, begun) };
        let Ok(row_with_term) = client.query_one(&with_term.statement, &[&self.identity.key()]).await else {
            return read(row, begun);
        };
        *self = with_term;
        read(&row_with_term, begun)
    }
}

fn read(row: &Row, begun: Instant) -> Result<Reading, Failure> {
    fields(row, begun).map_err(|e| Failure::Answered(format!("the answer is not what was asked for: {e}")))
}

/// Somebody who does not see the receiver must not conclude that there is none.
const BLIND: &str = "the monitor's role does not see PostgreSQL's own processes: it needs pg_monitor";

fn fields(row: &Row, begun: Instant) -> Result<Reading, Box<dyn std::error::Error + Send + Sync>> {
    let lsn = |name| row.try_get::<_, Option<PgLsn>>(name).map(|lsn| lsn.map(|lsn| Lsn(lsn.into())));
    let number = |name| row.try_get::<_, Option<i64>>(name);
    let conninfo: String = row.try_get("conninfo")?;
    let walsenders: Option<String> = row.try_get("walsenders")?;
    let mut walsenders: Vec<Walsender> = walsenders.map_or(Ok(Vec::new()), |json| serde_json::from_str(&json))?;
    walsenders.truncate(MAX_WALSENDERS);
    let term: Option<String> = row.try_get("term")?;
    Ok(Reading {
        begun,
        took: begun.elapsed(),
        system: row.try_get::<_, i64>("system")?.cast_unsigned(),
        started: row.try_get::<_, Option<i64>>("started")?.ok_or(BLIND)?,
        backend: row.try_get("backend")?,
        recovered: number("recovered")?.map(i64::cast_unsigned),
        in_recovery: row.try_get("in_recovery")?,
        timeline: row.try_get::<_, i32>("timeline")?.cast_unsigned(),
        inserted: lsn("inserted")?,
        flushing: lsn("flushing")?,
        received: lsn("received")?,
        replayed: lsn("replayed")?,
        receiver: receiver(row, number("heard_ms")?)?,
        receiver_process: row.try_get("receiver_process")?,
        upstream: conninfo::upstream(&conninfo),
        slot_name: row.try_get("slot_name")?,
        replay_paused: row.try_get("replay_paused")?,
        apply_delay: millis(number("apply_delay_ms")?.unwrap_or(0)),
        startup_wait: row.try_get("startup_wait")?,
        synchronous_standby_names: row.try_get("ssn")?,
        walsenders,
        term: term.map(|json| serde_json::from_str(&json)).transpose()?,
        rival: number("rival")?.and_then(|mark| u32::try_from(mark).ok()),
    })
}

fn receiver(row: &Row, heard: Option<i64>) -> Result<Option<Receiver>, tokio_postgres::Error> {
    let Some(status) = row.try_get::<_, Option<String>>("receiver_status")? else { return Ok(None) };
    let host: Option<String> = row.try_get("sender_host")?;
    let port: Option<i32> = row.try_get("sender_port")?;
    let port = port.and_then(|port| u16::try_from(port).ok()).unwrap_or(0);
    Ok(Some(Receiver { status, sender: (host.unwrap_or_default(), port), heard: heard.map(millis) }))
}

/// A clock that was set back gives a negative age: that is no age.
fn millis(ms: i64) -> Duration {
    Duration::from_millis(u64::try_from(ms).unwrap_or(0))
}
