//! What a client is told when pgsteady itself ends something: one mapping from our errors to SQLSTATE and text.
//!
//! PostgreSQL's own SQLSTATEs and, where it has one, its own text, so that drivers do the right thing without knowing us.
//! What a server said is passed on as it came; that is not here.

use std::time::Duration;

use pgwire::report::Report;
use pgwire::sqlstate;

use crate::auth::{LoginError, Refusal};

/// What pgsteady tells a client of itself. All end the connection, but for the three of a transaction without a server.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Denial {
    /// `limits.max_clients` are connected.
    TooManyClients,
    /// `max_clients` of this user are connected.
    TooManyClientsOfUser(String),
    /// `max_clients` of this database entry are connected.
    TooManyClientsOfDatabase(String),
    /// The login took longer than `limits.login_timeout`; whether it waited for a server.
    LoginTimeout(bool),
    /// TLS is required and the client did not ask for it.
    TlsRequired,
    /// The startup packet names no user.
    NoUser,
    /// There is no entry for this database.
    NoDatabase(String),
    /// The console lets nobody in to this entry.
    Disabled(String),
    /// The entry was removed by a reload.
    DatabaseRemoved,
    /// The console is not for this user.
    NotAllowed,
    /// The console sends it away.
    Killed,
    /// No server was free for this long.
    NoServer(Duration),
    /// There is no primary, and was none for this long; why.
    NoPrimary(Duration, String),
    /// Too many clients, or too many of their bytes, are held already; why there is no primary.
    TooManyHeld(String),
    /// Idle in a transaction for too long.
    IdleInTransaction,
    /// Idle for too long.
    Idle,
    /// A query took too long.
    QueryTimeout,
    /// A query waited for a server for too long.
    QueryTimeoutInQueue,
    /// A transaction took too long.
    TransactionTimeout,
    /// A transaction was opened where the pool is lent for single statements.
    TransactionBlock,
    /// pgsteady stops.
    ShuttingDown,
    /// pgsteady stops, and lends no server any more.
    ServerShuttingDown,
    /// In PgBouncer's words, whatever it is: these have no counterpart.
    Told(String),
}

impl Denial {
    /// The words for the client: PostgreSQL's, or PgBouncer's if the program has its manners.
    #[must_use]
    pub fn report(&self, is_pgbouncer: bool) -> Report {
        if is_pgbouncer {
            return in_pgbouncers_words(&self.words());
        }
        let report = self.in_postgresqls_words();
        match self {
            Self::NoServer(_) | Self::NoPrimary(..) | Self::TooManyHeld(_) => report,
            _ => report.fatal(),
        }
    }

    fn in_postgresqls_words(&self) -> Report {
        match self {
            Self::TooManyClients => Report::error(sqlstate::TOO_MANY_CONNECTIONS, "sorry, too many clients already")
                .hint("limits.max_clients of pgsteady is reached."),
            Self::TooManyClientsOfUser(user) => {
                Report::error(sqlstate::TOO_MANY_CONNECTIONS, format!("too many connections for role \"{user}\""))
            }
            Self::TooManyClientsOfDatabase(name) => {
                Report::error(sqlstate::TOO_MANY_CONNECTIONS, format!("too many connections for database \"{name}\""))
            }
            Self::LoginTimeout(_) => Report::error(sqlstate::QUERY_CANCELED, "canceling authentication due to timeout"),
            Self::TlsRequired => {
                Report::error(sqlstate::INVALID_AUTHORIZATION_SPECIFICATION, "SSL connection is required")
            }
            Self::NoUser => Report::error(
                sqlstate::INVALID_AUTHORIZATION_SPECIFICATION,
                "no PostgreSQL user name specified in startup packet",
            ),
            Self::NoDatabase(name) => {
                Report::error(sqlstate::INVALID_CATALOG_NAME, format!("database \"{name}\" does not exist"))
            }
            Self::Disabled(name) => Report::error(
                sqlstate::OBJECT_NOT_IN_PREREQUISITE_STATE,
                format!("database \"{name}\" is not currently accepting connections"),
            )
            .hint("ENABLE on the console lets clients in again."),
            Self::NotAllowed => Report::error(sqlstate::INSUFFICIENT_PRIVILEGE, "permission denied for the console")
                .hint("auth.console_admins and auth.console_watchers name those who may log in to it."),
            Self::NoServer(waited) => Report::error(
                sqlstate::TOO_MANY_CONNECTIONS,
                format!("no server connection was free within {}", seconds(*waited)),
            ),
            Self::NoPrimary(waited, why) => Report::error(
                sqlstate::CANNOT_CONNECT_NOW,
                format!("there has been no primary for {}", seconds(*waited)),
            )
            .detail(why.as_str()),
            Self::TooManyHeld(why) => {
                Report::error(sqlstate::CANNOT_CONNECT_NOW, "there is no primary, and too many clients wait for one")
                    .detail(why.as_str())
            }
            Self::IdleInTransaction => Report::error(
                sqlstate::IDLE_IN_TRANSACTION_SESSION_TIMEOUT,
                "terminating connection due to idle-in-transaction timeout",
            ),
            Self::Idle => {
                Report::error(sqlstate::IDLE_SESSION_TIMEOUT, "terminating connection due to idle-session timeout")
            }
            Self::QueryTimeout | Self::QueryTimeoutInQueue => {
                Report::error(sqlstate::QUERY_CANCELED, "terminating connection due to query timeout")
            }
            Self::TransactionTimeout => {
                Report::error(sqlstate::QUERY_CANCELED, "terminating connection due to transaction timeout")
            }
            Self::TransactionBlock => Report::error(
                sqlstate::FEATURE_NOT_SUPPORTED,
                "transaction blocks not allowed in statement pooling mode",
            )
            .hint("pool_mode = \"transaction\" allows them."),
            Self::DatabaseRemoved | Self::Killed | Self::ShuttingDown | Self::ServerShuttingDown => {
                Report::error(sqlstate::ADMIN_SHUTDOWN, "terminating connection due to administrator command")
            }
            Self::Told(words) => Report::error(sqlstate::PROTOCOL_VIOLATION, words.as_str()),
        }
    }

    /// PgBouncer's words for it; its log has them too.
    #[must_use]
    pub fn words(&self) -> String {
        let words = match self {
            Self::TooManyClients => "no more connections allowed (max_client_conn)",
            Self::TooManyClientsOfUser(_) => "client connections exceeded (max_user_client_connections)",
            Self::TooManyClientsOfDatabase(_) => "client connections exceeded (max_db_client_connections)",
            Self::LoginTimeout(false) => "client_login_timeout",
            Self::LoginTimeout(true) => "client_login_timeout (server down)",
            Self::TlsRequired => "SSL required",
            Self::NoUser => "no username supplied",
            Self::NoDatabase(name) => return format!("no such database: {name}"),
            Self::Disabled(name) => return format!("database \"{name}\" is disabled"),
            Self::DatabaseRemoved => "database removed",
            Self::NotAllowed => "not allowed",
            Self::Killed => "admin forced disconnect",
            Self::NoServer(_) | Self::NoPrimary(..) | Self::TooManyHeld(_) => "query_wait_timeout",
            Self::IdleInTransaction => "idle transaction timeout",
            Self::Idle => "client_idle_timeout",
            Self::QueryTimeout => "query timeout",
            Self::QueryTimeoutInQueue => "query_timeout",
            Self::TransactionTimeout => "transaction timeout",
            Self::TransactionBlock => "transaction blocks not allowed in statement pooling mode",
            Self::ShuttingDown => "pooler is shutting down",
            Self::ServerShuttingDown => "server shutting down",
            Self::Told(words) => words,
        };
        words.to_owned()
    }
}

/// Longest text of a FATAL of PgBouncer's, in bytes.
const MAX_FATAL: usize = 127;

/// A FATAL as PgBouncer reports it: always the same SQLSTATE, and no more than 127 bytes.
#[must_use]
pub fn in_pgbouncers_words(words: &str) -> Report {
    let end = (0..=words.len().min(MAX_FATAL)).rev().find(|end| words.is_char_boundary(*end)).unwrap_or(0);
    Report::error(sqlstate::PROTOCOL_VIOLATION, &words[..end]).fatal().terse()
}

/// PgBouncer's words for what does not begin as a message does.
#[must_use]
pub fn bad_packet_header(input: &[u8]) -> String {
    let shown = input.iter().take(8).map(|byte| format!("{byte:02x}")).collect::<String>();
    format!("bad packet header: '{shown}'")
}

fn seconds(time: Duration) -> String {
    humantime::format_duration(Duration::from_millis(u64::try_from(time.as_millis()).unwrap_or(u64::MAX))).to_string()
}

/// The words for a client that is not let in; `None`: it left, or cannot be told.
#[must_use]
pub fn refusal(refusal: &Refusal, is_pgbouncer: bool) -> Option<Report> {
    if is_pgbouncer {
        let words = match refusal {
            Refusal::Closed | Refusal::Io(_) => return None,
            Refusal::Protocol { what, words } => words.unwrap_or(what),
            Refusal::Failed { words, .. } => words,
            Refusal::EmptyPassword(_) => "empty password returned by client",
            Refusal::Lookup(error) => error.refused().unwrap_or("bouncer config error"),
            Refusal::Stopping => "pooler is shutting down",
        };
        return Some(in_pgbouncers_words(words));
    }
    let report = match refusal {
        Refusal::Closed | Refusal::Io(_) => return None,
        Refusal::Protocol { what, .. } => Report::error(sqlstate::PROTOCOL_VIOLATION, what.as_str()),
        Refusal::Failed { user, .. } => {
            Report::error(sqlstate::INVALID_PASSWORD, format!("password authentication failed for user \"{user}\""))
        }
        Refusal::EmptyPassword(_) => Report::error(sqlstate::INVALID_PASSWORD, "empty password returned by client"),
        // Why is for the log: it names hosts and databases.
        Refusal::Lookup(_) => Report::error(sqlstate::CANNOT_CONNECT_NOW, "users cannot be looked up at the moment"),
        Refusal::Stopping => Denial::ShuttingDown.report(false),
    };
    Some(report.fatal())
}

/// The words for a client whose server did not log us in; `None` for [`LoginError::Refused`], whose own words are passed on.
#[must_use]
pub fn login(error: &LoginError) -> Option<Report> {
    let report = match error {
        LoginError::Refused { .. } => return None,
        LoginError::Closed | LoginError::Io(_) | LoginError::Protocol(_) => {
            Report::error(sqlstate::CONNECTION_FAILURE, "the server connection was lost during login")
        }
        LoginError::Missing(_) | LoginError::OtherSecret | LoginError::InTheClear | LoginError::Scram(_) => {
            Report::error(sqlstate::INVALID_PASSWORD, format!("pgsteady cannot log in on the server: {error}"))
                .hint("Both sides need the same secret; or give the database entry a user and a password.")
        }
        LoginError::Stopping => Denial::ShuttingDown.report(false),
    };
    Some(report.fatal())
}

#[cfg(test)]
mod tests {
    use bytes::BytesMut;
    use pgwire::report::View;

    use super::*;

    #[test]
    fn an_unknown_user_and_a_wrong_password_are_told_the_same() {
        let told = |why| {
            refusal(&Refusal::Failed { user: "joe".into(), why, words: "" }, false)
                .map(|r| (r.sqlstate(), r.message().to_owned()))
        };
        assert_eq!(told("no such user"), told("wrong password"));
        assert_eq!(told("x").unwrap().1, "password authentication failed for user \"joe\"");
    }

    #[test]
    fn a_client_without_a_server_stays_and_all_others_go() {
        let no_primary = Denial::NoPrimary(Duration::from_millis(1500), "n1 is lost".to_owned());
        for (denial, ends) in [
            (Denial::TooManyClients, true),
            (Denial::ShuttingDown, true),
            (Denial::NoServer(Duration::from_secs(3)), false),
            (no_primary, false),
        ] {
            let mut out = BytesMut::new();
            denial.report(false).write(&mut out).unwrap();
            assert_eq!(View::new(&out[5..]).is_fatal(), ends, "{denial:?}");
        }
        let report = Denial::NoPrimary(Duration::from_millis(1500), String::new()).report(false);
        assert_eq!(report.message(), "there has been no primary for 1s 500ms");
    }
}
