//! How the monitor logs in to a node, and how a login or a conversation fails. What is asked there is not here.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use deadpool::managed::{Manager, Metrics, RecycleError, RecycleResult};
use openssl::ssl::SslConnector;
use postgres_openssl::MakeTlsConnector;
use tokio::task::JoinHandle;
use tokio::time::timeout;
use tokio_postgres::config::SslMode;
use tokio_postgres::error::SqlState;
use tokio_postgres::{Client, NoTls};

use crate::Address;

/// `application_name` of the monitor's own servers; actions that end sessions leave these alone.
pub const APPLICATION_NAME: &str = "pgsteady monitor";

/// A lost peer is noticed by the kernel after this long even if nobody asks (TCP keep-alive and `TCP_USER_TIMEOUT`).
const PEER_LOST_AFTER: Duration = Duration::from_secs(5);

/// Settings of the monitor's own sessions. They shield it from `ALTER ROLE … SET`: the term row is always written with
/// synchronous commit, unqualified names are always PostgreSQL's own, and no lock is waited for without end.
const SESSION_OPTIONS: &str = "-c synchronous_commit=on -c search_path=pg_catalog \
    -c lock_timeout=500ms -c statement_timeout=0 -c client_min_messages=error -c idle_session_timeout=0";

/// A password. It has no way to be printed.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret(String);

impl Secret {
    /// Takes the secret's text.
    #[must_use]
    pub fn new(text: impl Into<String>) -> Self {
        Self(text.into())
    }

    pub(crate) fn expose(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("…")
    }
}

/// What the monitor asks of the encryption of its servers (libpq's `sslmode`). Unix sockets are never encrypted.
#[derive(Clone, Default)]
pub enum Encryption {
    /// `disable`
    #[default]
    Disable,
    /// `prefer`: in plain if the server has no TLS. The certificate is whatever the connector accepts.
    Prefer(SslConnector),
    /// `require`, `verify-ca`, `verify-full`: what is verified is in the connector; whether its name is, in `verify_host`.
    Require {
        /// With its roots, its verify mode and our own certificate.
        connector: SslConnector,
        /// Does the certificate have to carry the host's name (`verify-full`)?
        verify_host: bool,
    },
}

impl fmt::Debug for Encryption {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Encryption::Disable => "disable",
            Encryption::Prefer(_) => "prefer",
            Encryption::Require { verify_host: false, .. } => "require",
            Encryption::Require { verify_host: true, .. } => "verify-full",
        })
    }
}

/// Who the monitor is on every node of a cluster.
#[derive(Debug, Clone)]
pub struct Login {
    /// Its role; needs what `docs/privileges.md` grants.
    pub user: String,
    /// Its password, if the node asks for one.
    pub password: Option<Secret>,
    /// The database that holds the term row, on every node the same.
    pub dbname: String,
    /// Encryption of TCP connections.
    pub encryption: Encryption,
    /// Bound on name resolution, connection, encryption and login together.
    pub connect_timeout: Duration,
}

/// Why a node could not be asked. Refused, starting, silent and *my login fails* are four different things: only some
/// of them say anything about the node.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Failure {
    /// Nobody listens there (connection refused or closed before the login was through, or no such Unix socket).
    Refused(String),
    /// SQLSTATE 57P03: PostgreSQL starts, recovers or shuts down.
    Starting(String),
    /// No answer within this time.
    Silent(Duration),
    /// The way there is broken: name not resolved, no route, TLS does not come about.
    Unreachable(String),
    /// PostgreSQL is there, but does not let the monitor in (28xxx, 3D000, 53300, …).
    Denied(String),
    /// An open connection ended.
    Lost(String),
    /// PostgreSQL answered the question with an error, on a connection that is still good.
    Answered(String),
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Failure::Refused(cause) => write!(f, "connection refused ({cause})"),
            Failure::Starting(cause) => write!(f, "not accepting connections ({cause})"),
            Failure::Silent(after) => write!(f, "no answer within {} ms", after.as_millis()),
            Failure::Unreachable(cause) => write!(f, "not reachable ({cause})"),
            Failure::Denied(cause) => write!(f, "the monitor's login is denied ({cause})"),
            Failure::Lost(cause) => write!(f, "connection lost ({cause})"),
            Failure::Answered(cause) => write!(f, "error in answer to the monitor ({cause})"),
        }
    }
}

impl std::error::Error for Failure {}

impl Failure {
    /// What an error says that came while the connection was being made.
    fn at_login(error: &tokio_postgres::Error) -> Self {
        if let Some(code) = error.code() {
            return match *code {
                SqlState::CANNOT_CONNECT_NOW => Failure::Starting(cause(error)),
                SqlState::ADMIN_SHUTDOWN | SqlState::CRASH_SHUTDOWN => Failure::Starting(cause(error)),
                _ => Failure::Denied(cause(error)),
            };
        }
        let kind = io_error(error).map(std::io::Error::kind);
        match kind {
            Some(std::io::ErrorKind::ConnectionRefused | std::io::ErrorKind::NotFound) => {
                Failure::Refused(cause(error))
            }
            // somebody accepted (a forwarder, a listener that is closing) and let go at once: nobody serves there
            Some(std::io::ErrorKind::ConnectionReset | std::io::ErrorKind::UnexpectedEof) => {
                Failure::Refused(cause(error))
            }
            _ if error.is_closed() => Failure::Refused(cause(error)),
            _ => Failure::Unreachable(cause(error)),
        }
    }

    /// What an error says that came in answer to a question. FATAL answers end the connection.
    pub(crate) fn in_answer(error: &tokio_postgres::Error) -> Self {
        match error.as_db_error() {
            Some(db) if matches!(db.severity(), "FATAL" | "PANIC") => Failure::Lost(cause(error)),
            Some(_) => Failure::Answered(cause(error)),
            None => Failure::Lost(cause(error)),
        }
    }
}

fn io_error(error: &tokio_postgres::Error) -> Option<&std::io::Error> {
    let mut source = std::error::Error::source(error);
    while let Some(inner) = source {
        if let Some(io) = inner.downcast_ref() {
            return Some(io);
        }
        source = inner.source();
    }
    None
}

/// The error's text with its SQLSTATE or its innermost cause; no statement text, which might hold a password.
pub(crate) fn cause(error: &tokio_postgres::Error) -> String {
    if let Some(db) = error.as_db_error() {
        return format!("{} {}", db.code().code(), db.message());
    }
    match io_error(error) {
        Some(io) => io.to_string(),
        None => error.to_string(),
    }
}

/// Makes the monitor's servers to one node; also what fills its pool.
#[derive(Debug, Clone)]
pub struct Connector {
    /// The node's name.
    pub node: Arc<str>,
    /// Where it answers; a host name is resolved on each connect.
    pub address: Arc<Address>,
    /// Who we are.
    pub login: Arc<Login>,
}

impl Connector {
    /// Opens a server within [`Login::connect_timeout`].
    pub async fn connect(&self) -> Result<Server, Failure> {
        let limit = self.login.connect_timeout;
        // tokio-postgres' own time-out ends with the TCP connection: a listener that says nothing would hold us for ever
        match timeout(limit, Box::pin(self.connect_unbounded())).await {
            Ok(outcome) => outcome,
            Err(_) => Err(Failure::Silent(limit)),
        }
    }

    async fn connect_unbounded(&self) -> Result<Server, Failure> {
        let config = self.config();
        let connector = match (&self.login.encryption, &*self.address) {
            (Encryption::Disable, _) | (_, Address::Unix(..)) => None,
            (Encryption::Prefer(connector), _) => Some((connector, false)),
            (Encryption::Require { connector, verify_host }, _) => Some((connector, *verify_host)),
        };
        if let Some((connector, verify_host)) = connector {
            let mut tls = MakeTlsConnector::new(connector.clone());
            tls.set_callback(move |tls, _| {
                tls.set_verify_hostname(verify_host);
                Ok(())
            });
            let (client, connection) = config.connect(tls).await.map_err(|e| Failure::at_login(&e))?;
            return Ok(Server { client, ended: tokio::spawn(ending(connection)) });
        }
        let (client, connection) = config.connect(NoTls).await.map_err(|e| Failure::at_login(&e))?;
        Ok(Server { client, ended: tokio::spawn(ending(connection)) })
    }

    fn config(&self) -> tokio_postgres::Config {
        let mut config = tokio_postgres::Config::new();
        config
            .user(&self.login.user)
            .dbname(&self.login.dbname)
            .application_name(APPLICATION_NAME)
            .options(SESSION_OPTIONS)
            .connect_timeout(self.login.connect_timeout)
            .keepalives_idle(PEER_LOST_AFTER / 2)
            .keepalives_interval(PEER_LOST_AFTER / 4)
            .keepalives_retries(2)
            .tcp_user_timeout(PEER_LOST_AFTER);
        if let Some(password) = &self.login.password {
            config.password(password.expose());
        }
        let encrypted = match &self.login.encryption {
            Encryption::Disable => SslMode::Disable,
            Encryption::Prefer(_) => SslMode::Prefer,
            Encryption::Require { .. } => SslMode::Require,
        };
        match &*self.address {
            Address::Tcp(host, port) => config.host(host).port(*port).ssl_mode(encrypted),
            Address::Unix(directory, port) => config.host_path(directory).port(*port).ssl_mode(SslMode::Disable),
        };
        config
    }
}

/// Drives a connection to its end and says what ended it.
async fn ending<S, T>(connection: tokio_postgres::Connection<S, T>) -> Failure
where
    S: tokio::io::AsyncRead + tokio::io::AsyncWrite + Unpin,
    T: tokio::io::AsyncRead + tokio::io::AsyncWrite + Unpin,
{
    match connection.await {
        Ok(()) => Failure::Lost("closed".into()),
        Err(error) => Failure::Lost(cause(&error)),
    }
}

impl Manager for Connector {
    type Type = Server;
    type Error = Failure;

    async fn create(&self) -> Result<Server, Failure> {
        self.connect().await
    }

    async fn recycle(&self, server: &mut Server, _: &Metrics) -> RecycleResult<Failure> {
        if server.client.is_closed() {
            return Err(RecycleError::Backend(Failure::Lost("closed while idle".into())));
        }
        Ok(())
    }
}

/// One open connection of the monitor. Dropping it closes the socket at once, whatever is still owed on it: a question
/// that was given up must not hold up the next one.
#[derive(Debug)]
pub struct Server {
    client: Client,
    ended: JoinHandle<Failure>,
}

impl Server {
    /// To ask something.
    #[must_use]
    pub fn client(&self) -> &Client {
        &self.client
    }

    /// Waits until the connection ends, be it idle or not, and says why.
    pub async fn lost(&mut self) -> Failure {
        match (&mut self.ended).await {
            Ok(failure) => failure,
            Err(_) => Failure::Lost("its task ended".into()),
        }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.ended.abort();
    }
}
