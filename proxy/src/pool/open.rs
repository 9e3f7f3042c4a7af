//! Opening a server: connecting, TLS, login. One attempt; repeating it is the pool's matter.

use std::net::{IpAddr, SocketAddr};
use std::sync::atomic::{AtomicU8, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::SystemTime;

use pgwire::report::View;
use socket2::SockRef;

use tokio::net::{TcpSocket, TcpStream, UnixStream};
use tokio::time::timeout;
use topology::{Address, Watch};

use super::server::{Prepared, Server};
use super::{CancelTarget, Control, Failure, Origin, ServerState, Slot, Terms};
use crate::auth::{self, Hashing, Link, LoginError, ServerLogin};
use crate::clock::Clock;
use crate::config::SynchronousCommit;
use crate::hosts::Hosts;
use crate::listener::TcpOptions;
use crate::pgbouncer::log::{Level, say};
use crate::settings::{Reported, Settings};
use crate::tls::{self, Answer, Attempt};
use crate::wire::{Stream, Wire};

/// How far an attempt came: its host is not known yet, is known, has answered.
const NOWHERE: u8 = 0;
const RESOLVED: u8 = 1;
const CONNECTED: u8 = 2;

/// Who opens the servers of a pool, and for whom.
pub(crate) struct Opener {
    /// The name of the node, for logs.
    pub(crate) node_name: Arc<str>,
    /// The node in the snapshot.
    pub(crate) node: usize,
    /// The cluster, to be told of losses.
    pub(crate) watch: Watch,
    /// Where the node is.
    pub(crate) address: Address,
    /// Who takes the next of the hosts that are the same to their users.
    pub(crate) turn: AtomicUsize,
    /// The entry.
    pub(crate) database: Arc<str>,
    /// Who logs in.
    pub(crate) user: Arc<str>,
    /// With what; replaced when a client of the user shows something newer.
    pub(crate) login: Mutex<ServerLogin>,
    /// Of a managed cluster: what a server is asked before it is lent, and what a weak `synchronous_commit` means.
    pub(crate) survey: Option<SynchronousCommit>,
    pub(crate) clock: Arc<Clock>,
    /// Numbers for servers.
    pub(crate) ids: Arc<AtomicU64>,
    /// Bounds the hashing of passwords for servers.
    pub(crate) hashing: Arc<Hashing>,
    /// What is known of host names.
    pub(crate) hosts: Arc<Hosts>,
    /// Why the last attempt failed, if it did.
    pub(crate) failure: Mutex<Option<String>>,
}

/// Whether the sslmode's next attempt may fare better.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Next {
    /// It may: TLS was the trouble, or the server refused this kind of connection.
    Try,
    /// It may not.
    Stop,
}

/// A server that has just logged in, without a place in a pool.
pub(crate) struct Opened {
    pub(super) wire: Wire,
    pub(super) reported: Reported,
    pub(super) cancel: CancelTarget,
    pub(super) origin: Origin,
    pub(super) epoch: u64,
    pub(super) born: u64,
}

impl Opener {
    /// One attempt to open a server, under this epoch.
    pub(crate) async fn open(&self, epoch: u64, terms: &Terms) -> Result<Opened, Failure> {
        self.open_with(epoch, terms, &terms.startup).await
    }

    /// The same with other parameters in the startup packet.
    pub(super) async fn open_with(
        &self,
        epoch: u64,
        terms: &Terms,
        startup: &[(String, String)],
    ) -> Result<Opened, Failure> {
        let address = self.next_address(terms);
        let id = self.ids.fetch_add(1, Ordering::Relaxed) + 1;
        let reached = AtomicU8::new(NOWHERE);
        let asked = Asked { id, address: &address, epoch, terms, startup, reached: &reached };
        let opened = timeout(terms.connect_timeout, self.attempts(&asked)).await;
        let failure = match opened {
            Ok(Ok(opened)) => {
                *self.failure.lock().unwrap_or_else(PoisonError::into_inner) = None;
                return Ok(opened);
            }
            Ok(Err(failure)) => failure,
            Err(_) => Failure::Unreachable(format!("{address} did not answer within {:?}", terms.connect_timeout)),
        };
        if !matches!(failure, Failure::Refused { .. }) {
            self.turn.fetch_add(1, Ordering::Relaxed); // the next host may be better
        }
        let reached = reached.into_inner();
        let replicates = startup.iter().any(|(name, _)| name == "replication");
        let why = match &failure {
            Failure::Refused { .. } if replicates => "login failed",
            Failure::Refused { message, .. } => message.as_str(),
            Failure::Login(report) => report.message(),
            _ if reached == NOWHERE && matches!(address, Address::Tcp(..)) => "server DNS lookup failed",
            Failure::Unreachable(why) if why.contains("did not answer") && reached == CONNECTED => "connect timeout",
            Failure::Unreachable(_) if reached == CONNECTED => "server conn crashed?",
            _ => "connect failed",
        };
        if terms.logs_ends {
            let origin = self.origin(id, &address, &TcpEnds::default());
            say(Level::Log, format_args!("{origin} closing because: {why} (age=0s)"));
        }
        Err(failure)
    }

    /// The host whose turn it is.
    fn next_address(&self, terms: &Terms) -> Address {
        if terms.addresses.is_empty() {
            return self.address.clone();
        }
        let turn = if terms.stays_with_host {
            self.turn.load(Ordering::Relaxed)
        } else {
            self.turn.fetch_add(1, Ordering::Relaxed)
        };
        terms.addresses[turn % terms.addresses.len()].clone()
    }

    /// The attempts that the sslmode allows, in its order.
    async fn attempts(&self, asked: &Asked<'_>) -> Result<Opened, Failure> {
        let mut last = Failure::Unreachable("no way to connect".into());
        for attempt in asked.terms.tls.attempts(asked.address) {
            match self.attempt(asked, *attempt).await {
                Ok(opened) => return Ok(opened),
                Err((failure, Next::Stop)) => return Err(failure),
                Err((failure, Next::Try)) => last = failure,
            }
        }
        Err(last)
    }

    async fn attempt(&self, asked: &Asked<'_>, attempt: Attempt) -> Result<Opened, (Failure, Next)> {
        let Asked { id, address, epoch, terms, startup, reached } = *asked;
        let failed = |what: String, next| (Failure::Unreachable(format!("{address}: {what}")), next);
        let unreachable = |what: String| failed(what, Next::Stop);
        let mut ends = TcpEnds::default();
        let (mut stream, binding) = match address {
            Address::Unix(directory, port) => {
                let file = directory.join(format!(".s.PGSQL.{port}"));
                let stream = UnixStream::connect(file).await.map_err(|error| unreachable(error.to_string()))?;
                if terms.logs_connections {
                    say(Level::Log, format_args!("{} new connection to server", self.origin(id, address, &ends)));
                }
                (Stream::Unix(stream), None)
            }
            Address::Tcp(host, port) => {
                let found =
                    self.hosts.addresses(host, terms.ttl).await.map_err(|error| unreachable(error.to_string()))?;
                let found = found.into_iter().map(|address| SocketAddr::new(address, *port));
                reached.store(RESOLVED, Ordering::Relaxed);
                let mut stream =
                    connect_to_one(found, &terms.tcp).await.map_err(|error| unreachable(error.to_string()))?;
                reached.store(CONNECTED, Ordering::Relaxed);
                let _ = terms.tcp.apply(&SockRef::from(&stream));
                ends = TcpEnds { local: stream.local_addr().ok(), remote: stream.peer_addr().ok(), tls: None };
                if let Some(local) = ends.local.filter(|_| terms.logs_connections) {
                    let origin = self.origin(id, address, &ends);
                    say(Level::Log, format_args!("{origin} new connection to server (from {local})"));
                }
                match tls::request(&mut stream, attempt).await.map_err(|error| failed(error.to_string(), Next::Try))? {
                    Answer::Plain => (Stream::Tcp(stream), None),
                    Answer::Tls => {
                        let (stream, binding) = tls::connect(stream, host, &terms.tls)
                            .await
                            .map_err(|error| failed(error.to_string(), Next::Try))?;
                        ends.tls = Some(tls::describe(stream.ssl()).into());
                        (Stream::Tls(Box::new(stream)), binding)
                    }
                }
            }
        };
        let mut origin = self.origin(id, address, &ends);
        if let Some(tls) = &origin.tls {
            say(Level::Log, format_args!("{origin} SSL established: {tls}"));
        }
        let with = self.login.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let mut parameters = vec![("user", &*self.user), ("database", &*terms.dbname)];
        parameters.extend(startup.iter().map(|(name, value)| (name.as_str(), value.as_str())));
        let is_private = !matches!(stream, Stream::Tcp(_)) || is_local(address) || terms.is_pgbouncer;
        let link = Link { end_point: binding.as_deref(), is_private };
        let greeted = auth::login(&mut stream, &parameters, &with, link, &self.hashing).await;
        let greeted = greeted.map_err(|error| self.failure_of(error, address, &origin, terms.is_pgbouncer))?;
        let reported = Reported::of(&greeted.parameters);
        origin.process_id = greeted.process_id;
        let cancel = CancelTarget { address: address.clone(), process_id: greeted.process_id, key: greeted.key };
        let mut wire = Wire::to_server(stream);
        wire.keep(&greeted.rest);
        Ok(Opened { wire, reported, cancel, origin, epoch, born: self.watch.samples_begun() })
    }

    /// Who a new server is.
    fn origin(&self, id: u64, address: &Address, ends: &TcpEnds) -> Origin {
        let (host, port) = match (address, ends.remote) {
            (_, Some(remote)) => (remote.ip().to_string(), remote.port()),
            (Address::Tcp(host, port), None) => (host.clone(), *port),
            (Address::Unix(_, port), None) => ("unix".to_owned(), *port),
        };
        let local = ends.local.map_or(("unix".to_owned(), port), |local| (local.ip().to_string(), local.port()));
        Origin {
            id,
            database: self.database.clone(),
            user: self.user.clone(),
            host,
            port,
            local,
            connected: SystemTime::now(),
            tls: ends.tls.clone(),
            process_id: 0,
        }
    }

    fn failure_of(&self, error: LoginError, address: &Address, origin: &Origin, is_pgbouncer: bool) -> (Failure, Next) {
        let words = |words: &str| Failure::Login(Box::new(crate::error::in_pgbouncers_words(words)));
        let told = crate::error::login(&error);
        // libpq: another attempt only if the server refused before it asked for anything.
        let next = if matches!(error, LoginError::Refused { unasked: true, .. }) { Next::Try } else { Next::Stop };
        let failure = match (error, told) {
            (LoginError::Refused { body, sqlstate, message, .. }, _) => {
                let severity =
                    View::new(&body).severity().map(String::from_utf8_lossy).unwrap_or_default().into_owned();
                say(Level::Warning, format_args!("{origin} server login failed: {severity} {message}"));
                Failure::Refused { body, sqlstate, message }
            }
            (LoginError::Closed | LoginError::Io(_) | LoginError::Protocol(_), _) | (_, None) => {
                Failure::Unreachable(format!("{address}: the connection was lost during login"))
            }
            (LoginError::Scram(_), Some(_)) if is_pgbouncer => words("server login failed: invalid server signature"),
            (_, Some(_)) if is_pgbouncer => words("server login failed: wrong password type"),
            (_, Some(report)) => Failure::Login(Box::new(report)),
        };
        (failure, next)
    }

    /// Notes and logs a failed attempt, and lets the monitor look.
    pub(crate) fn failed(&self, failure: &Failure) {
        let text = failure.to_string();
        let mut last = self.failure.lock().unwrap_or_else(PoisonError::into_inner);
        if last.as_deref() != Some(&text) {
            tracing::warn!(node = %self.node_name, user = %self.user, database = %self.database, why = %text, "no server could be opened");
        }
        *last = Some(text);
        self.watch.suspect(self.node);
    }

    /// Why the last attempt failed, if it did.
    pub(crate) fn last_failure(&self) -> Option<String> {
        self.failure.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

/// One attempt to open a server.
#[derive(Clone, Copy)]
struct Asked<'a> {
    id: u64,
    address: &'a Address,
    epoch: u64,
    terms: &'a Terms,
    startup: &'a [(String, String)],
    /// How far it came.
    reached: &'a AtomicU8,
}

/// A server that is one client's for its life. Dropped, it is closed.
pub(crate) struct Alone {
    /// The stream.
    pub(crate) wire: Wire,
    /// The parameters that it reported.
    pub(crate) reported: Reported,
    /// Where a cancel request for it goes.
    pub(crate) cancel: Arc<CancelTarget>,
    /// What others may know of it.
    pub(crate) control: Arc<Control>,
    /// The place that it takes in its pool.
    _slot: Slot,
}

impl Alone {
    pub(super) fn new(opened: Opened, mut slot: Slot, clock: &Arc<Clock>) -> Self {
        let control = Arc::new(Control::new(opened.origin, opened.epoch, clock));
        control.enter(ServerState::Active);
        slot.control = Some(control.clone());
        Self { wire: opened.wire, reported: opened.reported, cancel: Arc::new(opened.cancel), control, _slot: slot }
    }
}

/// The two ends of a TCP connection, and what encrypts it.
#[derive(Default)]
struct TcpEnds {
    local: Option<SocketAddr>,
    remote: Option<SocketAddr>,
    tls: Option<Arc<str>>,
}

/// The first of a host's addresses that answers.
async fn connect_to_one(
    addresses: impl Iterator<Item = SocketAddr>,
    options: &TcpOptions,
) -> std::io::Result<TcpStream> {
    let mut failed = std::io::Error::other("the host has no address");
    for address in addresses {
        let socket = if address.is_ipv4() { TcpSocket::new_v4()? } else { TcpSocket::new_v6()? };
        let _ = options.prepare(&SockRef::from(&socket));
        match socket.connect(address).await {
            Ok(stream) => return Ok(stream),
            Err(error) => failed = error,
        }
    }
    Err(failed)
}

/// Whether a server is on this machine, as far as its address says.
fn is_local(address: &Address) -> bool {
    match address {
        Address::Unix(..) => true,
        Address::Tcp(host, _) => host == "localhost" || host.parse().is_ok_and(|ip: IpAddr| ip.is_loopback()),
    }
}

impl Server {
    pub(super) fn new(opened: Opened, clock: &Arc<Clock>) -> Self {
        let now = clock.now();
        let control = Control::new(opened.origin, opened.epoch, clock);
        if let Some(name) = opened.reported.get("application_name") {
            control.set_application_name(name);
        }
        Self {
            wire: opened.wire,
            conversation: pgwire::conversation::Conversation::new(),
            prepared: Prepared::default(),
            unnamed: None,
            reported: opened.reported,
            applied: Settings::default(),
            dirty: false,
            has_rules: false,
            born: opened.born,
            reign: None,
            control: Arc::new(control),
            was_lent: false,
            cancel: Arc::new(opened.cancel),
            opened: now,
            idle_since: now,
            worker: None,
            _slot: None,
        }
    }

    /// It takes this place in its pool.
    pub(super) fn placed(self, slot: Slot) -> Self {
        Self { _slot: Some(slot), ..self }
    }
}
