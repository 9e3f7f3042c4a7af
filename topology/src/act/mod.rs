//! The SQL by which decisions are carried out: each action with a deadline of its own, each result with its evidence.
//! "The statement succeeded" is never evidence. What to do when is decided elsewhere.

use std::fmt;
use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use deadpool::managed::{Object, Pool, PoolError};
use tokio::time::{Instant, timeout_at};
use tokio_postgres::types::{ToSql, Type};
use tokio_postgres::{Client, Row};

use crate::Failure;

use crate::login::{Connector, Server, cause};

mod fence;
mod primary;
mod promote;
mod quiesce;
mod rule;
mod standby;

pub use fence::{FenceEvidence, FenceFailed, fence};
pub use primary::{TermWritten, barrier, checkpoint, prepare_term, quarantine, set_rule, write_term};
pub use promote::{Order, Promoted, promote};
pub use quiesce::quiesce;
pub(crate) use rule::is_unread;
pub use rule::rule_text;
pub use standby::{Drained, Provided, drain, repoint};

/// Servers that the monitor's actions may have open to one node at the same time, besides the probe's.
const MAX_SERVERS: usize = 4;

/// Between two looks at a node while an action waits for its effect. Short: these waits are the failover.
const POLL: Duration = Duration::from_millis(2);
/// Time that a look needs at most on a node that is well.
const LOOK: Duration = Duration::from_millis(20);

/// Advisory lock of a node, in the monitor's database: the letters `pgsteady`.
const NODE_LOCK: i64 = 0x7067_7374_6561_6479;

const END_HOLDER: &str = "\
SELECT pg_terminate_backend(pid) FROM pg_locks WHERE locktype = 'advisory' AND granted AND objsubid = 1
 AND database = (SELECT oid FROM pg_database WHERE datname = current_database())
 AND (classid::bigint << 32) | objid::bigint = $1 AND pid <> pg_backend_pid()";

/// A node, and the monitor's servers to it. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Remote {
    /// The node's name.
    pub node: Arc<str>,
    pool: Pool<Connector>,
}

/// What an action needs that did not come about; names the node, the action and the cause.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ActError {
    /// The node's name.
    pub node: Arc<str>,
    /// The action.
    pub action: &'static str,
    /// What went wrong.
    pub cause: Cause,
}

/// Why an action failed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Cause {
    /// No server to the node could be had, or it was lost during the action. What was sent may have had its effect.
    Connection(Failure),
    /// PostgreSQL refused a statement: SQLSTATE and message.
    Statement(String),
    /// The effect was not seen in time, and what was seen instead.
    Deadline(String),
    /// The node is not in the state that the action requires; nothing was changed.
    Guard(String),
}

impl fmt::Display for ActError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} on node {}: ", self.action, self.node)?;
        match &self.cause {
            Cause::Connection(failure) => write!(f, "{failure}"),
            Cause::Statement(text) => write!(f, "PostgreSQL answered {text}"),
            Cause::Deadline(seen) => write!(f, "not in time: {seen}"),
            Cause::Guard(seen) => write!(f, "not done: {seen}"),
        }
    }
}

impl std::error::Error for ActError {}

/// What an order is given under, asked when the node's lock is held: `Err` says why it may not be carried out any more.
/// Nothing happens before it is polled.
pub trait Claim: Future<Output = Result<(), String>> {}

impl<F: Future<Output = Result<(), String>>> Claim for F {}

impl Remote {
    /// No connection is made yet.
    #[must_use]
    pub fn new(connector: Connector) -> Self {
        let node = connector.node.clone();
        let pool = Pool::builder(connector).max_size(MAX_SERVERS).build();
        Self { node, pool: pool.expect("a pool without time-outs needs no runtime") }
    }

    /// Keeps one server open beside the probe's, so that an action does not begin with a login. Bounded by the login's
    /// own time-out; a failure is the probe's to report.
    pub async fn keep_warm(&self) {
        drop(self.pool.get().await);
    }

    /// A server for one action, which has to be through by `deadline` from now.
    pub(crate) async fn begin(&self, action: &'static str, deadline: Duration) -> Result<Ground, ActError> {
        let until = Instant::now() + deadline;
        let failed = |cause| ActError { node: self.node.clone(), action, cause };
        let server = match timeout_at(until, self.pool.get()).await {
            Ok(Ok(server)) => server,
            Ok(Err(PoolError::Backend(failure))) => return Err(failed(Cause::Connection(failure))),
            Ok(Err(other)) => return Err(failed(Cause::Connection(Failure::Lost(other.to_string())))),
            Err(_) => return Err(failed(Cause::Connection(Failure::Silent(deadline)))),
        };
        Ok(Ground { server: Some(server), node: self.node.clone(), action, until, deadline, locked: false })
    }

    /// The same under the node's lock: what checks and then changes a node is not to be overtaken by another coordinator
    /// in between. Whoever holds it is ended: it slept, or its deadline has passed.
    pub(crate) async fn begin_alone(&self, action: &'static str, deadline: Duration) -> Result<Ground, ActError> {
        let mut ground = self.begin(action, deadline).await?;
        while !ground
            .get::<bool>(&ground.row("SELECT pg_try_advisory_lock($1) AS mine", &[&NODE_LOCK]).await?, "mine")?
        {
            ground.rows(END_HOLDER, &[&NODE_LOCK]).await?;
            ground.wait(|| "another session holds the node's lock".into()).await?;
        }
        ground.locked = true;
        Ok(ground)
    }

    /// The same for an order that is given under a claim.
    pub(crate) async fn begin_under(
        &self,
        action: &'static str,
        claim: impl Claim,
        deadline: Duration,
    ) -> Result<Ground, ActError> {
        let ground = self.begin_alone(action, deadline).await?;
        match timeout_at(ground.until, claim).await {
            Ok(Ok(())) => Ok(ground),
            Ok(Err(why)) => Err(ground.fail(Cause::Guard(why))),
            Err(_) => Err(ground.late()),
        }
    }
}

/// A borrowed server, for one action. It goes back to the pool by [`Ground::done`] alone: if the action fails or is
/// dropped, something may still be owed on it, and it is closed.
pub(crate) struct Ground {
    server: Option<Object<Connector>>,
    node: Arc<str>,
    action: &'static str,
    until: Instant,
    deadline: Duration,
    locked: bool,
}

impl Drop for Ground {
    fn drop(&mut self) {
        if let Some(server) = self.server.take() {
            drop::<Server>(Object::take(server));
        }
    }
}

impl Ground {
    fn client(&self) -> &Client {
        self.server.as_ref().expect("given back only by `done`, which consumes").client()
    }

    /// Gives the server back. One that does not give up its lock is closed instead: that ends the lock too.
    pub(crate) async fn done(mut self) {
        if !self.locked || self.row("SELECT pg_advisory_unlock($1)", &[&NODE_LOCK]).await.is_ok() {
            self.server = None;
        }
    }

    pub(crate) fn fail(&self, cause: Cause) -> ActError {
        ActError { node: self.node.clone(), action: self.action, cause }
    }

    fn failed(&self, error: &tokio_postgres::Error) -> ActError {
        match Failure::in_answer(error) {
            Failure::Answered(text) => self.fail(Cause::Statement(text)),
            failure => self.fail(Cause::Connection(failure)),
        }
    }

    fn late(&self) -> ActError {
        self.fail(Cause::Connection(Failure::Silent(self.deadline)))
    }

    /// Runs one statement of which only the success matters. Statements awaited together are pipelined in order.
    pub(crate) async fn execute(&self, statement: &str) -> Result<(), ActError> {
        match timeout_at(self.until, self.client().simple_query(statement)).await {
            Ok(outcome) => outcome.map(drop).map_err(|e| self.failed(&e)),
            Err(_) => Err(self.late()),
        }
    }

    /// The one row of a query.
    pub(crate) async fn row(&self, query: &str, values: &[&dyn Value]) -> Result<Row, ActError> {
        let mut rows = self.rows(query, values).await?;
        rows.pop().ok_or_else(|| self.fail(Cause::Statement("an answer without a row".into())))
    }

    /// The rows of a query. The types of its parameters go with it: that makes it one round trip instead of two.
    pub(crate) async fn rows(&self, query: &str, values: &[&dyn Value]) -> Result<Vec<Row>, ActError> {
        let typed: Vec<(&(dyn ToSql + Sync), Type)> =
            values.iter().map(|value| (*value as &(dyn ToSql + Sync), value.sql_type())).collect();
        match timeout_at(self.until, self.client().query_typed(query, &typed)).await {
            Ok(outcome) => outcome.map_err(|e| self.failed(&e)),
            Err(_) => Err(self.late()),
        }
    }

    /// A field of a row of our own query.
    pub(crate) fn get<'r, T: tokio_postgres::types::FromSql<'r>>(
        &self,
        row: &'r Row,
        field: &str,
    ) -> Result<T, ActError> {
        row.try_get(field).map_err(|e| self.fail(Cause::Statement(cause(&e))))
    }

    /// Waits until the next look; an error with what was last seen if the deadline comes first.
    pub(crate) async fn wait(&self, seen: impl FnOnce() -> String) -> Result<(), ActError> {
        self.wait_for(POLL, seen).await
    }

    pub(crate) async fn wait_for(&self, pause: Duration, seen: impl FnOnce() -> String) -> Result<(), ActError> {
        // the next look has to fit in, or a time-out would hide what was seen
        if Instant::now() + pause + LOOK >= self.until {
            return Err(self.fail(Cause::Deadline(seen())));
        }
        tokio::time::sleep(pause).await;
        Ok(())
    }
}

/// Is it that the term's table (or its schema) is missing?
#[must_use]
pub fn is_undefined_table(error: &ActError) -> bool {
    matches!(&error.cause, Cause::Statement(text) if text.starts_with("42P01") || text.starts_with("3F000"))
}

/// A parameter that knows its SQL type.
pub(crate) trait Value: ToSql + Sync {
    fn sql_type(&self) -> Type;
}

macro_rules! values {
    ($($rust:ty => $sql:ident,)*) => {
        $(impl Value for $rust {
            fn sql_type(&self) -> Type {
                Type::$sql
            }
        })*
    };
}

values! {
    bool => BOOL,
    i32 => INT4,
    i64 => INT8,
    &str => TEXT,
    String => TEXT,
    &[String] => TEXT_ARRAY,
    Vec<String> => TEXT_ARRAY,
}

/// A string literal for `ALTER SYSTEM`, which takes no parameters. Doubling quotes and backslashes in an `E''` literal is
/// right whatever `standard_conforming_strings` says. A line end would end the setting's line in `postgresql.auto.conf`
/// (PostgreSQL refuses it itself since 2015), a NUL the statement: neither is passed on.
pub(crate) fn literal(text: &str) -> String {
    let mut quoted = String::with_capacity(text.len() + 4);
    quoted.push_str("E'");
    for letter in text.chars().filter(|letter| !matches!(letter, '\n' | '\r' | '\0')) {
        if matches!(letter, '\'' | '\\') {
            quoted.push(letter);
        }
        quoted.push(letter);
    }
    quoted.push('\'');
    quoted
}

/// `"name"` for an identifier or a member of `synchronous_standby_names`.
pub(crate) fn identifier(name: &str) -> String {
    format!("\"{}\"", name.replace('"', "\"\"").replace('\0', ""))
}

/// The mark that a fence leaves in `primary_slot_name`: the term it was made for. It survives a restart.
#[must_use]
pub fn mark(term: u64) -> String {
    format!("fence_{term}")
}

/// The term of a mark; `None` if it is none.
#[must_use]
pub fn marked_by(slot_name: &str) -> Option<u64> {
    slot_name.strip_prefix("fence_").and_then(|term| term.parse().ok())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn literals_cannot_be_left() {
        assert_eq!(literal("a'b"), "E'a''b'");
        assert_eq!(literal("a\\'b\n\0"), "E'a\\\\''b'");
        assert_eq!(identifier("a\"b"), "\"a\"\"b\"");
        assert_eq!(rule_text(1, &["n2", "n3"]), "ANY 1 (\"n2\", \"n3\")");
        assert_eq!(rule_text(1, &[] as &[&str]), "");
    }
}
