//! The exchange by which a client proves who it is. Unknown users and wrong passwords look the same from outside.

use std::fmt;
use std::io;
use std::net::IpAddr;
use std::sync::Arc;

use bytes::BytesMut;
use pgwire::auth::scram::server::Server;
use pgwire::auth::scram::{Nonce, ScramError};
use pgwire::auth::{Authentication, SaslInitial, Secret, Stored, cleartext, md5, read_password};
use pgwire::{Malformed, frame};
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt};

use super::lookup::{LookupError, Place};
use super::read::{self, ReadError};
use super::store::{Demand, Known, Store, Users};
use super::{Identity, ScramLogin, ServerLogin, ldap, pam};
use crate::shared::CONSOLE;

/// Who a client says to be.
#[derive(Debug, Clone, Copy)]
pub struct Claim<'a> {
    /// The user of its startup packet.
    pub user: &'a str,
    /// The channel binding data of its TLS connection (from `tls::accept`).
    pub end_point: Option<&'a [u8]>,
    /// Where users can be looked up: the servers of the database that it asks for.
    pub place: Option<&'a Place>,
    /// How it came.
    pub came: Came<'a>,
}

/// How a client came, and for what: what a rule of an HBA file looks at.
#[derive(Debug, Clone, Copy, Default)]
pub struct Came<'a> {
    /// The database that it asks for.
    pub database: &'a str,
    /// It asks for physical replication, of no database.
    pub replicates: bool,
    /// From where; none: over the Unix socket.
    pub address: Option<IpAddr>,
    /// Over the Unix socket: the user id of its process, as the kernel says.
    pub uid: Option<u32>,
    /// By TLS.
    pub is_encrypted: bool,
    /// The names in the certificate that it showed.
    pub certified: Option<&'a [String]>,
    /// Its database entry has a user of its own.
    pub has_forced_user: bool,
}

/// Why a client is not let in. `Display` is for the log; what the client is told is in `crate::error`.
#[derive(Debug)]
pub enum Refusal {
    /// The client left. Not an error: psql does so to ask its user for the password.
    Closed,
    /// The connection broke.
    Io(io::Error),
    /// The client sent something that is no message, or not one that may come now.
    Protocol {
        /// What.
        what: String,
        /// PgBouncer's words for it, if it has any.
        words: Option<&'static str>,
    },
    /// Wrong password, or no such user: the client is not told which.
    Failed {
        /// The user.
        user: Arc<str>,
        /// For the log alone.
        why: &'static str,
        /// PgBouncer's words for it.
        words: &'static str,
    },
    /// The client sent an empty password, which never counts.
    EmptyPassword(Arc<str>),
    /// Users could not be looked up.
    Lookup(LookupError),
    /// pgsteady stops.
    Stopping,
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Closed => f.write_str("the client left while it was asked who it is"),
            Self::Io(error) => write!(f, "{error}"),
            Self::Protocol { what, .. } => f.write_str(what),
            Self::Failed { user, why, .. } => write!(f, "authentication failed for user {user:?}: {why}"),
            Self::EmptyPassword(user) => write!(f, "authentication failed for user {user:?}: empty password"),
            Self::Lookup(error) => write!(f, "users cannot be looked up: {error}"),
            Self::Stopping => f.write_str("pgsteady stops"),
        }
    }
}

impl std::error::Error for Refusal {}

impl From<ReadError> for Refusal {
    fn from(error: ReadError) -> Self {
        match error {
            ReadError::Closed => Self::Closed,
            ReadError::Io(error) => Self::Io(error),
            ReadError::Malformed(what) => what.into(),
            ReadError::Unexpected(tag) => {
                Self::broken(format!("expected password response, got message type {tag}"), None)
            }
        }
    }
}

impl From<Malformed> for Refusal {
    fn from(what: Malformed) -> Self {
        Self::broken(what, None)
    }
}

impl Refusal {
    fn broken(what: impl fmt::Display, words: Option<&'static str>) -> Self {
        Self::Protocol { what: what.to_string(), words }
    }
}

/// Asks a client to prove that it is who it claims to be.
///
/// On success the last words of the exchange, up to AuthenticationOk, are left in `out`, so that they leave in one write
/// with what the caller adds. `rest` is what was read behind the startup packet, and afterwards what was read behind the
/// exchange. The caller bounds the time, and tells the client of a refusal.
///
/// # Errors
/// [`Refusal`].
pub async fn authenticate<S>(
    stream: &mut S,
    rest: &mut BytesMut,
    out: &mut BytesMut,
    claim: Claim<'_>,
    store: &Store,
) -> Result<Identity, Refusal>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    let users = store.users();
    let failed = |why, words| Refusal::Failed { user: claim.user.into(), why, words };
    let demand = match users.demand(claim.user, &claim.came) {
        Demand::NoRule => return Err(failed("no rule of the HBA file is for it", "no authentication method is found")),
        Demand::Reject => return Err(failed("a rule of the HBA file rejects it", "login rejected")),
        demand => demand,
    };
    let known = users.find(claim.user, claim.place).await.map_err(Refusal::Lookup)?;
    if known.is_none() && users.tells_unknown(claim.place) && !demand.needs_nobody() {
        return Err(failed("no such user", "no such user"));
    }
    let known = known.as_deref();
    let mut exchange = Exchange { stream, rest, out, claim, store };
    let server_login = if demand.asks_scram(known, &users) {
        Box::pin(exchange.scram(known)).await
    } else {
        match demand {
            Demand::Any => exchange.any(),
            Demand::Trust => exchange.trust(&users, known),
            Demand::Peer { map } => exchange.peer(&users, known, map.as_deref()),
            Demand::Certificate { map } => exchange.certificate(&users, known, map.as_deref()),
            Demand::Password => Box::pin(exchange.password(known)).await,
            Demand::Ldap { options } => Box::pin(exchange.ldap(&options)).await,
            Demand::Pam { .. } if users.tells_unknown(claim.place) => {
                tracing::warn!(database = claim.came.database, "auth_type pam does not go together with auth_user");
                return Err(failed("users are looked up and PAM is asked", "bouncer config error"));
            }
            Demand::Pam { service } => Box::pin(exchange.pam(service)).await,
            Demand::Md5 | Demand::Scram | Demand::NoRule | Demand::Reject => Box::pin(exchange.md5(known)).await,
        }
    };
    if matches!(server_login, Err(Refusal::Failed { .. })) {
        users.forget(claim.user, claim.place);
    }
    let server_login = server_login?;
    Authentication::Ok.write(out)?;
    Ok(Identity { user: claim.user.into(), server_login })
}

/// PgBouncer's words for a SCRAM exchange that failed.
const SASL_FAILED: &str = "SASL authentication failed";
const NO_MECHANISM: &str = "client selected an invalid SASL authentication mechanism";

struct Exchange<'a, S> {
    stream: &'a mut S,
    rest: &'a mut BytesMut,
    out: &'a mut BytesMut,
    claim: Claim<'a>,
    store: &'a Store,
}

impl<S: AsyncRead + AsyncWrite + Unpin> Exchange<'_, S> {
    fn trust(&self, users: &Users, known: Option<&Known>) -> Result<ServerLogin, Refusal> {
        match known {
            Some(known) => Ok(known.login.clone()),
            None if users.is_open() => Ok(ServerLogin::Nothing),
            None => Err(self.failed_with("no such user", "\"trust\" authentication failed")),
        }
    }

    /// Whoever it is: the database entry says who logs in on the server.
    fn any(&self) -> Result<ServerLogin, Refusal> {
        let Came { has_forced_user, database, .. } = self.claim.came;
        if has_forced_user || database == CONSOLE || self.claim.place.is_none() {
            return Ok(ServerLogin::Nothing);
        }
        Err(self.failed_with("the database entry has no user", "no such user"))
    }

    /// The operating system says who is at the other end of the Unix socket.
    fn peer(&self, users: &Users, known: Option<&Known>, map: Option<&str>) -> Result<ServerLogin, Refusal> {
        let rejected = || self.failed_with("the user of the system is another one", "unix socket login rejected");
        let uid = self.claim.came.uid.ok_or_else(rejected)?;
        let found = nix::unistd::User::from_uid(uid.into()).ok().flatten().ok_or_else(rejected)?;
        if !users.is_named(&[found.name], map, self.claim.user) {
            return Err(rejected());
        }
        self.known_login(known)
    }

    /// The certificate that it showed has its name.
    fn certificate(&self, users: &Users, known: Option<&Known>, map: Option<&str>) -> Result<ServerLogin, Refusal> {
        let names = self.claim.came.certified.unwrap_or_default();
        if !users.is_named(names, map, self.claim.user) {
            return Err(self.failed_with("the certificate is for another name", "certificate authentication failed"));
        }
        self.known_login(known)
    }

    fn known_login(&self, known: Option<&Known>) -> Result<ServerLogin, Refusal> {
        let known = known.ok_or_else(|| self.failed_with("no such user", "certificate authentication failed"))?;
        Ok(known.login.clone())
    }

    /// An LDAP server knows the password.
    async fn ldap(&mut self, options: &str) -> Result<ServerLogin, Refusal> {
        let password = self.ask(&Authentication::Cleartext).await?;
        let text = String::from_utf8_lossy(password.reveal()).into_owned();
        match ldap::check(options, self.claim.user, &text).await {
            Ok(true) => Ok(ServerLogin::password(password.reveal())),
            Ok(false) => {
                Err(self.failed_with("the LDAP server does not take the password", "LDAP authentication failed"))
            }
            Err(error) => {
                tracing::warn!(%error, user = self.claim.user, "the LDAP server could not be asked");
                Err(self.failed_with("the LDAP server could not be asked", "LDAP authentication failed"))
            }
        }
    }

    /// The modules of the system know the password.
    async fn pam(&mut self, service: String) -> Result<ServerLogin, Refusal> {
        let password = self.ask(&Authentication::Cleartext).await?;
        let (user, address) = (self.claim.user.to_owned(), self.claim.came.address);
        let question = pam::Question { service, user, password: password.clone(), address };
        match self.store.pam.check(question).await {
            Ok(()) => Ok(ServerLogin::password(password.reveal())),
            Err(error) => {
                tracing::info!(%error, user = self.claim.user, "PAM does not let a user in");
                Err(self.failed_with("PAM does not take the password", "PAM authentication failed"))
            }
        }
    }

    async fn password(&mut self, known: Option<&Known>) -> Result<ServerLogin, Refusal> {
        let password = self.ask(&Authentication::Cleartext).await?;
        // Hashed for everybody: neither an unknown user nor the form of a secret shows in the time that it takes.
        let keys = self.store.scram_keys(self.claim.user, known).await.ok_or(Refusal::Stopping)?;
        let salted = self.store.hashing.salted(&password, keys.salt(), keys.iterations()).await;
        let salted = salted.ok_or(Refusal::Stopping)?;
        let is_right = match known.and_then(|known| known.stored.as_ref()) {
            Some(Stored::Scram(_)) => keys.is_of(&salted),
            Some(stored) => cleartext::check(stored, self.claim.user, password.reveal()),
            None => false,
        };
        match (is_right, known) {
            (true, Some(Known { stored: Some(Stored::Plain(_)), login, .. })) => Ok(login.clone()),
            (true, Some(_)) => Ok(ServerLogin::password(password.reveal())),
            _ => Err(self.failed(why_not(known, "wrong password"))),
        }
    }

    async fn md5(&mut self, known: Option<&Known>) -> Result<ServerLogin, Refusal> {
        let question = md5::Question::new();
        let answer = self.ask(&Authentication::Md5(question.salt())).await?;
        // Checked against something in any case, so that it takes as long. No answer is right for a zero byte.
        let nothing = Stored::Plain(Secret::new(&b"\0"[..]));
        let stored = known.and_then(|known| known.stored.as_ref());
        let is_right = question.check(stored.unwrap_or(&nothing), self.claim.user, answer.reveal());
        match (is_right, known) {
            (true, Some(known)) if stored.is_some() => Ok(known.login.clone()),
            _ => Err(self.failed(why_not(known, "wrong password"))),
        }
    }

    async fn scram(&mut self, known: Option<&Known>) -> Result<ServerLogin, Refusal> {
        let keys = self.store.scram_keys(self.claim.user, known).await.ok_or(Refusal::Stopping)?;
        let end_point = self.claim.end_point.map(<[u8]>::to_vec);
        let server = Server::new(keys.clone(), Nonce::random(), end_point);
        self.send(&Authentication::Sasl(server.mechanisms())).await?;
        let first = self.read().await?;
        let first = SaslInitial::read(&first).map_err(|error| Refusal::broken(error, Some(NO_MECHANISM)))?;
        // A client may leave its first message for later (RFC 4422); no driver of PostgreSQL does.
        let message =
            first.response.ok_or_else(|| Refusal::broken("SASL initial response is empty", Some(SASL_FAILED)))?;
        let (answer, challenged) = server.first(first.mechanism, message).map_err(|e| self.scram_error(&e, known))?;
        self.send(&Authentication::SaslContinue(answer.as_bytes())).await?;
        let last = self.read().await?;
        let accepted = challenged.last(&last).map_err(|e| self.scram_error(&e, known))?;
        Authentication::SaslFinal(accepted.message.as_bytes()).write(self.out)?;
        match known {
            Some(Known { stored: Some(Stored::Plain(_)), login, .. }) => Ok(login.clone()),
            _ => {
                let (salt, iterations) = (keys.salt().to_vec(), keys.iterations());
                let own = keys
                    .unlocked(accepted.client_key)
                    .ok_or_else(|| self.failed_with("wrong password", SASL_FAILED))?;
                Ok(ServerLogin::Scram(Arc::new(ScramLogin { keys: own, salt, iterations })))
            }
        }
    }

    fn scram_error(&self, error: &ScramError, known: Option<&Known>) -> Refusal {
        match error {
            ScramError::Proof => self.failed_with(why_not(known, "wrong password"), SASL_FAILED),
            ScramError::Mechanism => Refusal::broken(error, Some(NO_MECHANISM)),
            error => Refusal::broken(error, Some(SASL_FAILED)),
        }
    }

    fn failed(&self, why: &'static str) -> Refusal {
        self.failed_with(why, "password authentication failed")
    }

    fn failed_with(&self, why: &'static str, words: &'static str) -> Refusal {
        Refusal::Failed { user: self.claim.user.into(), why, words }
    }

    /// Asks for a password or its like, and reads it.
    async fn ask(&mut self, question: &Authentication<'_>) -> Result<Secret, Refusal> {
        self.send(question).await?;
        let mut message = self.read().await?;
        let password = read_password(&message);
        message.fill(0);
        let password = password?;
        if password.reveal().is_empty() {
            return Err(Refusal::EmptyPassword(self.claim.user.into()));
        }
        Ok(password)
    }

    async fn send(&mut self, message: &Authentication<'_>) -> Result<(), Refusal> {
        message.write(self.out)?;
        self.stream.write_all(self.out).await.map_err(Refusal::Io)?;
        self.out.clear();
        self.stream.flush().await.map_err(Refusal::Io)
    }

    async fn read(&mut self) -> Result<BytesMut, Refusal> {
        let allowed = |tag| (tag == b'p').then_some((frame::MIN_DECLARED, frame::MAX_AUTH_DECLARED));
        Ok(read::message(self.stream, self.rest, allowed).await?.1)
    }
}

/// Why a login failed, for the log.
fn why_not(known: Option<&Known>, otherwise: &'static str) -> &'static str {
    match known {
        None => "no such user",
        Some(Known { stored: None, .. }) => "the user has no password",
        Some(_) => otherwise,
    }
}
