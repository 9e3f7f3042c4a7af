//! Why a session got no server. How it is told to the client is in `crate::error`.

use std::fmt;

use bytes::Bytes;
use pgwire::report::Report;
use pgwire::sqlstate::SqlState;

/// Why a session got no server.
#[derive(Debug, Clone)]
pub(crate) enum Failure {
    /// PostgreSQL answered the login with an error.
    Refused {
        /// The body of its ErrorResponse, as it came.
        body: Bytes,
        /// Its SQLSTATE, if there is a proper one.
        sqlstate: Option<SqlState>,
        /// Its message, for logs.
        message: String,
    },
    /// The login cannot be answered: there is no password, or another one.
    Login(Box<Report>),
    /// The node could not be reached, or did not speak as PostgreSQL does.
    Unreachable(String),
    /// Too many sessions wait already.
    QueueFull {
        /// So many.
        waiting: usize,
    },
    /// The pool is gone: its database entry was removed or replaced.
    Closed,
}

impl Failure {
    /// What PgBouncer would call it.
    pub(crate) fn in_pgbouncers_words(&self) -> String {
        match self {
            Failure::Refused { message, .. } => message.clone(),
            Failure::Login(report) => report.message().to_owned(),
            Failure::Unreachable(_) => "connect failed".to_owned(),
            Failure::QueueFull { .. } | Failure::Closed => self.to_string(),
        }
    }

    /// Whether trying again can only bring the same: the login itself is wrong, not the moment.
    /// Classes 28 (authorization), 3D (database), 42 and 22 are; starting up (57P03) and too many connections
    /// (53300) pass.
    ///
    /// PgBouncer takes every answer to a login for final but for "starting up".
    pub(crate) fn is_final(&self, is_pgbouncer: bool) -> bool {
        match self {
            Failure::Refused { sqlstate, .. } if is_pgbouncer => sqlstate.is_none_or(|state| state.as_str() != "57P03"),
            Failure::Refused { sqlstate, .. } => {
                sqlstate.is_some_and(|state| ["28", "3D", "42", "22"].iter().any(|class| state.is_class(class)))
            }
            Failure::Unreachable(_) => false,
            Failure::Login(_) | Failure::QueueFull { .. } | Failure::Closed => true,
        }
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Failure::Refused { message, .. } => write!(f, "login refused: {message}"),
            Failure::Login(report) => f.write_str(report.message()),
            Failure::Unreachable(why) => f.write_str(why),
            Failure::QueueFull { waiting } => write!(f, "{waiting} sessions wait for this pool already"),
            Failure::Closed => f.write_str("the database entry was removed or changed"),
        }
    }
}
