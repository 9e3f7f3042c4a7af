//! Opening a server: connecting, TLS, login. One attempt; repeating it is the pool's matter.

use std::net::IpAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::net::{TcpStream, UnixStream};
use tokio::time::timeout;
use topology::{Address, Watch};

use super::server::{Control, Prepared, Server};
use super::{CancelTarget, Failure, Slot};
use crate::auth::{self, Hashing, Link, LoginError, ServerLogin};
use crate::clock::Clock;
use crate::config::SynchronousCommit;
use crate::listener::prepare_tcp;
use crate::settings::{Reported, Settings};
use crate::tls::{self, Answer, Attempt, ServerTls};
use crate::wire::{Stream, Wire};

/// What the servers of a pool are opened with.
pub(crate) struct Opener {
    /// The name of the node, for logs.
    pub(crate) node_name: Arc<str>,
    /// The node in the snapshot.
    pub(crate) node: usize,
    /// The cluster, to be told of losses.
    pub(crate) watch: Watch,
    /// Where to connect.
    pub(crate) address: Address,
    /// TLS, if the entry has it.
    pub(crate) tls: Arc<ServerTls>,
    /// Who logs in, to which database.
    pub(crate) user: Arc<str>,
    pub(crate) dbname: Arc<str>,
    /// With what; replaced when a client of the user shows something newer.
    pub(crate) login: Mutex<ServerLogin>,
    /// Time to connect and log in.
    pub(crate) connect_timeout: Duration,
    /// Time that an idle server is kept.
    pub(crate) idle_timeout: Duration,
    /// Age at which a server is closed when it is given back.
    pub(crate) lifetime: Duration,
    /// Of a managed cluster: what a server is asked before it is lent, and what a weak `synchronous_commit` means.
    pub(crate) survey: Option<SynchronousCommit>,
    pub(crate) clock: Arc<Clock>,
    /// Bounds the hashing of passwords for servers.
    pub(crate) hashing: Arc<Hashing>,
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
    wire: Wire,
    reported: Reported,
    cancel: CancelTarget,
    epoch: u64,
    born: u64,
}

impl Opener {
    /// One attempt to open a server, under this epoch.
    pub(crate) async fn open(&self, epoch: u64) -> Result<Opened, Failure> {
        match timeout(self.connect_timeout, self.attempts(epoch)).await {
            Ok(Ok(opened)) => {
                *self.failure.lock().unwrap_or_else(PoisonError::into_inner) = None;
                Ok(opened)
            }
            Ok(Err(failure)) => Err(failure),
            Err(_) => {
                Err(Failure::Unreachable(format!("{} did not answer within {:?}", self.address, self.connect_timeout)))
            }
        }
    }

    /// The attempts that the sslmode allows, in its order.
    async fn attempts(&self, epoch: u64) -> Result<Opened, Failure> {
        let mut last = Failure::Unreachable("no way to connect".into());
        for attempt in self.tls.attempts(&self.address) {
            match self.attempt(*attempt, epoch).await {
                Ok(opened) => return Ok(opened),
                Err((failure, Next::Stop)) => return Err(failure),
                Err((failure, Next::Try)) => last = failure,
            }
        }
        Err(last)
    }

    async fn attempt(&self, attempt: Attempt, epoch: u64) -> Result<Opened, (Failure, Next)> {
        let failed = |what: String, next| (Failure::Unreachable(format!("{}: {what}", self.address)), next);
        let unreachable = |what: String| failed(what, Next::Stop);
        let (mut stream, binding) = match &self.address {
            Address::Unix(directory, port) => {
                let file = directory.join(format!(".s.PGSQL.{port}"));
                let stream = UnixStream::connect(file).await.map_err(|error| unreachable(error.to_string()))?;
                (Stream::Unix(stream), None)
            }
            Address::Tcp(host, port) => {
                let mut stream =
                    TcpStream::connect((host.as_str(), *port)).await.map_err(|error| unreachable(error.to_string()))?;
                let _ = prepare_tcp(&stream);
                match tls::request(&mut stream, attempt).await.map_err(|error| failed(error.to_string(), Next::Try))? {
                    Answer::Plain => (Stream::Tcp(stream), None),
                    Answer::Tls => {
                        let (stream, binding) = tls::connect(stream, host, &self.tls)
                            .await
                            .map_err(|error| failed(error.to_string(), Next::Try))?;
                        (Stream::Tls(Box::new(stream)), binding)
                    }
                }
            }
        };
        let with = self.login.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let parameters = [("user", &*self.user), ("database", &*self.dbname), ("application_name", "pgsteady")];
        let is_private = !matches!(stream, Stream::Tcp(_)) || self.is_local();
        let link = Link { end_point: binding.as_deref(), is_private };
        let greeted = auth::login(&mut stream, &parameters, &with, link, &self.hashing).await;
        let greeted = greeted.map_err(|error| self.failure_of(error))?;
        let mut reported = Reported::default();
        for (name, value) in &greeted.parameters {
            reported.set(name, value);
        }
        let cancel = CancelTarget { address: self.address.clone(), process_id: greeted.process_id, key: greeted.key };
        let mut wire = Wire::new(stream);
        wire.keep(&greeted.rest);
        Ok(Opened { wire, reported, cancel, epoch, born: self.watch.samples_begun() })
    }

    /// Whether the server is on this machine, as far as its address says.
    fn is_local(&self) -> bool {
        match &self.address {
            Address::Unix(..) => true,
            Address::Tcp(host, _) => host == "localhost" || host.parse().is_ok_and(|ip: IpAddr| ip.is_loopback()),
        }
    }

    fn failure_of(&self, error: LoginError) -> (Failure, Next) {
        let told = crate::error::login(&error);
        // libpq: another attempt only if the server refused before it asked for anything.
        let next = if matches!(error, LoginError::Refused { unasked: true, .. }) { Next::Try } else { Next::Stop };
        let failure = match (error, told) {
            (LoginError::Refused { body, sqlstate, message, .. }, _) => Failure::Refused { body, sqlstate, message },
            (LoginError::Closed | LoginError::Io(_) | LoginError::Protocol(_), _) | (_, None) => {
                Failure::Unreachable(format!("{}: the connection was lost during login", self.address))
            }
            (_, Some(report)) => Failure::Login(Box::new(report)),
        };
        (failure, next)
    }

    /// Notes and logs a failed attempt, and lets the monitor look.
    pub(crate) fn failed(&self, failure: &Failure) {
        let text = failure.to_string();
        let mut last = self.failure.lock().unwrap_or_else(PoisonError::into_inner);
        if last.as_deref() != Some(&text) {
            tracing::warn!(node = %self.node_name, user = %self.user, database = %self.dbname, why = %text, "no server could be opened");
        }
        *last = Some(text);
        self.watch.suspect(self.node);
    }

    /// Why the last attempt failed, if it did.
    pub(crate) fn last_failure(&self) -> Option<String> {
        self.failure.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

impl Server {
    pub(super) fn new(opened: Opened, clock: &Clock) -> Self {
        let now = clock.now();
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
            control: Arc::new(Control::new(opened.epoch)),
            cancel: Arc::new(opened.cancel),
            opened: now,
            idle_since: now,
            _slot: None,
        }
    }

    /// It takes this place in its pool.
    pub(super) fn placed(self, slot: Slot) -> Self {
        Self { _slot: Some(slot), ..self }
    }
}
