//! The lookup of users in PostgreSQL itself (PgBouncer's auth_query), on connections that never serve a client.
//!
//! The connections have `search_path = pg_catalog` from their startup packet (for PgBouncer's users that of the server: their
//! functions stand elsewhere) and no client can change it (CVE-2025-12819),
//! the name is a bound parameter, and by default a role that may not log in, or whose password has run out, has no
//! secret (CVE-2025-2291).

use std::collections::HashMap;
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use deadpool::Runtime;
use deadpool::managed::{self, Metrics, Pool, PoolError, RecycleError, RecycleResult, TimeoutType};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpStream, UnixStream};
use tokio_postgres::{Client, NoTls};
use topology::{Address, Role, Watch};

use super::store::Known;
use crate::config::{self, Config, Login, Secret};
use crate::pgbouncer::log::{Level, say};
use crate::tls::{self, Answer, Attempt, ServerTls};

/// What is asked if the configuration does not say otherwise. Every name and operator is qualified.
const DEFAULT_QUERY: &str = "SELECT rolname, CASE WHEN rolvaliduntil OPERATOR(pg_catalog.<) pg_catalog.now() \
     THEN NULL ELSE rolpassword END FROM pg_catalog.pg_authid \
     WHERE rolname OPERATOR(pg_catalog.=) $1 AND rolcanlogin";
/// Longest name of a role: PostgreSQL's NAMEDATALEN - 1.
const MAX_NAME_BYTES: usize = 63;
/// Time for which an answer is good.
const CACHE_TIME: Duration = Duration::from_secs(5);
/// Answers kept, with those that are being waited for.
const MAX_CACHED: usize = 10_000;
/// Connections for each place: lookups at a time.
const MAX_CONNECTIONS: usize = 2;
/// Places that have connections.
const MAX_PLACES: usize = 64;
/// Time for each step of a lookup: to get a connection, to connect, to ask.
const STEP_TIMEOUT: Duration = Duration::from_secs(5);
/// Time to reach one node, before the next is tried.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(2);

/// Where users are looked up: the servers of a database entry.
#[derive(Debug, Clone)]
pub struct Place {
    /// The entry.
    pub entry: Arc<str>,
    /// The database on the server that the client asks for; `auth.query_database` goes before it.
    pub dbname: Arc<str>,
    /// Its nodes; the primary is asked first, then standbys: logins go on while there is no primary.
    pub watch: Watch,
    /// Its server as it is configured now, where there is no cluster.
    pub address: Option<Address>,
    /// TLS towards them; none where there is nowhere to ask.
    pub tls: Option<Arc<ServerTls>>,
    /// What is said of the lookup for this entry.
    pub lookup: config::Lookup,
    /// Nobody can be looked up here: why, for the log, and what a client is told of it.
    pub broken: Option<(String, Option<String>)>,
}

/// Why a user could not be looked up. Clients are told that much and no more.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LookupError {
    why: String,
    /// PostgreSQL refused the login: its own words.
    refused: Option<String>,
}

impl LookupError {
    fn new(why: impl Into<String>) -> Self {
        Self { why: why.into(), refused: None }
    }

    /// PostgreSQL's words, if it refused the login of whoever asks.
    #[must_use]
    pub fn refused(&self) -> Option<&str> {
        self.refused.as_deref()
    }
}

impl fmt::Display for LookupError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.why)
    }
}

impl std::error::Error for LookupError {}

type Key = (Arc<str>, Arc<str>);
/// The last answer; locked while one is being fetched, so that others wait for it instead of asking too.
type Slot = Arc<tokio::sync::Mutex<Option<(Instant, Option<Arc<Known>>)>>>;

pub(super) struct Lookup {
    query: String,
    /// Who asks; none: only where an entry says who.
    login: Option<Login>,
    /// Passwords of those whom entries name.
    passwords: HashMap<Arc<str>, Secret>,
    dbname: Option<Arc<str>>,
    is_pgbouncer: bool,
    /// By entry and user.
    answers: Mutex<HashMap<Key, Slot>>,
    /// By entry and database.
    pools: Mutex<HashMap<Key, Pool<Connections>>>,
}

impl fmt::Debug for Lookup {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Lookup").field("login", &self.login).finish_non_exhaustive()
    }
}

impl Lookup {
    /// `None` if the configuration names no user for it. `listed` are passwords from the list of users.
    pub(super) fn new(config: &Config, listed: impl Fn(&str) -> Option<Secret>) -> Option<Self> {
        let of_entries = config.databases.values().chain(&config.any_database);
        let named = of_entries.filter_map(|database| database.lookup.user.as_deref());
        let passwords: HashMap<Arc<str>, Secret> =
            named.clone().filter_map(|user| Some((user.into(), listed(user)?))).collect();
        let user = config.auth.query_user.as_deref();
        if user.is_none() && named.count() == 0 {
            return None;
        }
        let password = || config.auth_query_password.clone().or_else(|| listed(user?));
        let is_pgbouncer = config.dialect.pgbouncer().is_some();
        Some(Self {
            query: config.auth.query.clone().unwrap_or_else(|| DEFAULT_QUERY.to_owned()),
            login: user.map(|user| Login { user: user.into(), password: password() }),
            passwords,
            is_pgbouncer,
            // There it names an entry, which the place is of already.
            dbname: config.auth.query_database.as_deref().filter(|_| !is_pgbouncer).map(Into::into),
            answers: Mutex::default(),
            pools: Mutex::default(),
        })
    }

    /// What PostgreSQL knows of a user, at most [`CACHE_TIME`] old. One question at a time for each user.
    pub(super) async fn find(&self, user: &str, place: &Place) -> Result<Option<Arc<Known>>, LookupError> {
        // Such names cannot exist; asking for them would be an error.
        if user.contains('\0') || user.len() > MAX_NAME_BYTES {
            return Ok(None);
        }
        if self.login_for(place).is_none() {
            return Ok(None);
        }
        if let Some((why, told)) = &place.broken {
            say(Level::Error, format_args!("{why}"));
            return Err(LookupError { why: why.clone(), refused: told.clone() });
        }
        let slot = self.slot(user, place);
        let mut answer = slot.lock().await;
        if let Some((at, known)) = &*answer
            && at.elapsed() < CACHE_TIME
        {
            return Ok(known.clone());
        }
        let known = self.ask(user, place).await?.map(|secret| Arc::new(Known::new(secret.as_deref())));
        *answer = Some((Instant::now(), known.clone()));
        Ok(known)
    }

    /// Whether users of this place are looked up.
    pub(super) fn is_for(&self, place: &Place) -> bool {
        self.login_for(place).is_some()
    }

    /// Who asks at this place.
    fn login_for(&self, place: &Place) -> Option<Login> {
        match &place.lookup.user {
            Some(user) => Some(Login { user: user.as_str().into(), password: self.passwords.get(&**user).cloned() }),
            None => self.login.clone(),
        }
    }

    /// The next lookup of this user asks again.
    pub(super) fn forget(&self, user: &str, place: &Place) {
        lock(&self.answers).remove(&(place.entry.clone(), user.into()));
    }

    fn slot(&self, user: &str, place: &Place) -> Slot {
        let mut answers = lock(&self.answers);
        let key = (place.entry.clone(), user.into());
        if let Some(slot) = answers.get(&key) {
            return slot.clone();
        }
        if answers.len() >= MAX_CACHED {
            // Old answers and failed questions go; one that is being waited for is held by its waiters too.
            answers.retain(|_, slot| {
                slot.try_lock().map_or(true, |a| a.as_ref().is_some_and(|(at, _)| at.elapsed() < CACHE_TIME))
            });
        }
        let slot = Slot::default();
        if answers.len() < MAX_CACHED {
            answers.insert(key, slot.clone());
        }
        slot
    }

    /// Asks, once more on another connection if the first was lost meanwhile.
    async fn ask(&self, user: &str, place: &Place) -> Result<Option<Option<String>>, LookupError> {
        let pool = self.pool(place)?;
        for last in [false, true] {
            let connection = pool.get().await.map_err(said)?;
            let query = place.lookup.query.as_deref().unwrap_or(&self.query);
            let asked = tokio::time::timeout(STEP_TIMEOUT, self.ask_on(&connection.client, query, user)).await;
            match asked {
                Ok(Ok(answer)) => return Ok(answer),
                // A connection with an unfinished question or a broken one is not given back.
                Ok(Err(error)) if connection.client.is_closed() && !last => {
                    tracing::debug!(error, "the lookup's connection was lost");
                    drop(managed::Object::take(connection));
                }
                Ok(Err(error)) => {
                    say(Level::Error, format_args!("{}/{user}: S: error in auth_query: {error}", place.entry));
                    return Err(LookupError::new(error));
                }
                Err(_) => {
                    drop(managed::Object::take(connection));
                    return Err(LookupError::new(format!("no answer within {STEP_TIMEOUT:?}")));
                }
            }
        }
        Err(LookupError::new("connections are lost as soon as they are made".to_owned()))
    }

    /// `None`: no such user. `Some(None)`: no password is right.
    async fn ask_on(&self, client: &Client, query: &str, user: &str) -> Result<Option<Option<String>>, String> {
        let row = client.query_opt(query, &[&user]).await.map_err(|e| describe(&e))?;
        let Some(row) = row else { return Ok(None) };
        if row.len() != 2 {
            return Err(format!("expected 2 columns from auth_query, not {}: name and secret", row.len()));
        }
        let name: Option<&str> = row.try_get(0).map_err(|e| describe(&e))?;
        if name != Some(user) {
            return Err("auth.query gives another user than it was asked for".to_owned());
        }
        row.try_get(1).map(Some).map_err(|e| describe(&e))
    }

    fn pool(&self, place: &Place) -> Result<Pool<Connections>, LookupError> {
        let dbname = self.dbname.clone().unwrap_or_else(|| place.dbname.clone());
        let mut pools = lock(&self.pools);
        let key = (place.entry.clone(), dbname.clone());
        if let Some(pool) = pools.get(&key) {
            return Ok(pool.clone());
        }
        if pools.len() >= MAX_PLACES {
            pools.retain(|_, pool| pool.status().size > pool.status().available);
        }
        if pools.len() >= MAX_PLACES {
            return Err(LookupError::new(format!("lookups in {MAX_PLACES} databases are under way already")));
        }
        let login = self.login_for(place).ok_or_else(|| LookupError::new("nobody is named who may ask".to_owned()))?;
        let connections = Connections { place: place.clone(), login, dbname, is_pgbouncer: self.is_pgbouncer };
        let pool = Pool::builder(connections)
            .max_size(MAX_CONNECTIONS)
            .runtime(Runtime::Tokio1)
            .wait_timeout(Some(STEP_TIMEOUT))
            .create_timeout(Some(STEP_TIMEOUT))
            .build()
            .map_err(|e| LookupError::new(e.to_string()))?;
        pools.insert(key, pool.clone());
        Ok(pool)
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn said(error: PoolError<LookupError>) -> LookupError {
    match error {
        PoolError::Backend(error) => error,
        PoolError::Timeout(TimeoutType::Wait) => {
            LookupError::new(format!("no connection free within {STEP_TIMEOUT:?}"))
        }
        PoolError::Timeout(_) => LookupError::new(format!("no connection made within {STEP_TIMEOUT:?}")),
        other => LookupError::new(other.to_string()),
    }
}

/// PostgreSQL's own words, or those of the driver.
fn describe(error: &tokio_postgres::Error) -> String {
    match error.as_db_error() {
        Some(error) => format!("{} (SQLSTATE {})", error.message(), error.code().code()),
        None => error.to_string(),
    }
}

/// Makes the connections of a place.
#[derive(Debug)]
struct Connections {
    place: Place,
    login: Login,
    dbname: Arc<str>,
    is_pgbouncer: bool,
}

struct Connection {
    client: Client,
    /// The node that it is to.
    node: usize,
}

impl managed::Manager for Connections {
    type Type = Connection;
    type Error = LookupError;

    async fn create(&self) -> Result<Connection, LookupError> {
        if let Some(address) = &self.place.address {
            return match tokio::time::timeout(CONNECT_TIMEOUT, self.connect(address)).await {
                Ok(Ok(client)) => Ok(Connection { client, node: 0 }),
                Ok(Err(error)) => Err(error),
                Err(_) => Err(LookupError::new(format!("{address}: no login within {CONNECT_TIMEOUT:?}"))),
            };
        }
        let topology = self.place.watch.now();
        let standbys = (0..topology.nodes.len()).filter(|n| topology.nodes[*n].role == Role::Standby);
        let mut failed = LookupError::new("no node can be asked".to_owned());
        for node in topology.primary.into_iter().chain(standbys) {
            let address = &topology.nodes[node].address;
            match tokio::time::timeout(CONNECT_TIMEOUT, self.connect(address)).await {
                Ok(Ok(client)) => return Ok(Connection { client, node }),
                Ok(Err(error)) => failed = error,
                Err(_) => failed = LookupError::new(format!("{address}: no login within {CONNECT_TIMEOUT:?}")),
            }
        }
        Err(failed)
    }

    async fn recycle(&self, connection: &mut Connection, _: &Metrics) -> RecycleResult<LookupError> {
        let topology = self.place.watch.now();
        let is_out = topology.nodes.get(connection.node).is_none_or(|node| node.role == Role::Out);
        if is_out || connection.client.is_closed() {
            return Err(RecycleError::message("the connection is closed, or its node is out"));
        }
        Ok(())
    }
}

impl Connections {
    /// Goes through the attempts of the sslmode.
    async fn connect(&self, address: &Address) -> Result<Client, LookupError> {
        let mut failed = LookupError::new("no way to connect");
        let Some(tls) = &self.place.tls else { return Err(failed) };
        for attempt in tls.attempts(address) {
            match self.attempt(address, tls, *attempt).await {
                Ok(client) => return Ok(client),
                Err(error) => failed = error,
            }
        }
        Err(failed)
    }

    async fn attempt(&self, address: &Address, tls: &ServerTls, attempt: Attempt) -> Result<Client, LookupError> {
        let cannot = |error: &dyn fmt::Display| LookupError::new(format!("{address}: {error}"));
        let stream: Box<dyn Stream> = match address {
            Address::Unix(directory, port) => {
                let file = directory.join(format!(".s.PGSQL.{port}"));
                Box::new(UnixStream::connect(file).await.map_err(|e| cannot(&e))?)
            }
            Address::Tcp(host, port) => {
                let mut stream = TcpStream::connect((host.as_str(), *port)).await.map_err(|e| cannot(&e))?;
                match tls::request(&mut stream, attempt).await.map_err(|e| cannot(&e))? {
                    Answer::Plain => Box::new(stream),
                    Answer::Tls => Box::new(tls::connect(stream, host, tls).await.map_err(|e| cannot(&e))?.0),
                }
            }
        };
        let mut options = tokio_postgres::Config::new();
        options.user(&*self.login.user).dbname(&*self.dbname).application_name("pgsteady lookup");
        if !self.is_pgbouncer {
            options.options("-c search_path=pg_catalog -c default_transaction_read_only=on");
        }
        if let Some(password) = &self.login.password {
            options.password(password.reveal());
        }
        let (client, connection) = options.connect_raw(stream, NoTls).await.map_err(|error| {
            if let Some(told) = error.as_db_error() {
                let database = &self.place.entry;
                let user = &self.login.user;
                say(
                    Level::Warning,
                    format_args!("{database}/{user}: server login failed: {} {}", told.severity(), told.message()),
                );
            }
            LookupError {
                why: format!("{address}: {}", describe(&error)),
                refused: error.as_db_error().map(|told| told.message().to_owned()),
            }
        })?;
        tokio::spawn(async move {
            if let Err(error) = connection.await {
                tracing::debug!(error = describe(&error), "a connection of the lookup ended");
            }
        });
        Ok(client)
    }
}

/// Any stream to a server.
trait Stream: AsyncRead + AsyncWrite + Unpin + Send {}

impl<S: AsyncRead + AsyncWrite + Unpin + Send> Stream for S {}
