//! What everybody may know of a client: who it is, where it came from, what it is doing; and the one thing that may be
//! done to it from elsewhere: it is sent away. Not its session, which lives on its worker alone.

use std::collections::BTreeMap;
use std::fmt;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::SystemTime;

use tokio::sync::Notify;

use crate::clock::{Clock, Moment};
use crate::error::Denial;
use crate::listener::Peer;

/// What a session is doing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum State {
    /// It has not logged in yet.
    Login,
    /// Between transactions.
    Idle,
    /// Waiting for a server.
    Waiting,
    /// A server works for it.
    Busy,
    /// In a transaction, and it is the client's turn.
    IdleInTransaction,
}

impl State {
    const ALL: [Self; 5] = [Self::Login, Self::Idle, Self::Waiting, Self::Busy, Self::IdleInTransaction];
}

/// Who a client said to be, as far as it did.
#[derive(Debug, Clone, Default)]
pub(crate) struct Who {
    /// The user of its startup packet.
    pub(crate) user: Option<Arc<str>>,
    /// The database that it asked for.
    pub(crate) database: Option<Arc<str>>,
    /// Its replication mode, if it has one.
    pub(crate) replication: Replication,
    /// Protocol and cipher of its TLS connection.
    pub(crate) tls: Option<Arc<str>>,
    /// The `application_name` that it has now.
    pub(crate) application_name: Arc<str>,
    /// The user whose servers it gets.
    pub(crate) server_user: Option<Arc<str>>,
}

/// The replication mode of a startup packet (PostgreSQL manual, "Streaming Replication Protocol").
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) enum Replication {
    /// An ordinary connection.
    #[default]
    No,
    /// `replication=database`.
    Logical,
    /// `replication=true` and its like.
    Physical,
}

impl Replication {
    /// As a log and the console say it.
    pub(crate) fn word(self) -> &'static str {
        match self {
            Self::No => "none",
            Self::Logical => "logical",
            Self::Physical => "physical",
        }
    }
}

/// A connected client, as others see it.
pub(crate) struct Client {
    /// Its number, of one count with that of servers.
    pub(crate) id: u64,
    /// Where it came from.
    pub(crate) peer: Peer,
    /// Where it came to; none for a Unix socket.
    pub(crate) local: Option<SocketAddr>,
    /// When it came.
    pub(crate) connected: SystemTime,
    clock: Arc<Clock>,
    who: Mutex<Who>,
    state: AtomicU8,
    since: AtomicU64,
    /// When its last request came: milliseconds of the clock.
    requested: AtomicU64,
    /// The number of the server on loan; 0: none.
    pub(crate) link: AtomicU64,
    /// Prepared statements that it holds.
    pub(crate) prepared: AtomicUsize,
    /// It, or the server on loan, has not taken yet what it was sent.
    pub(crate) behind: AtomicBool,
    end: Mutex<Option<Box<Denial>>>,
    ending: AtomicBool,
    /// Wakes the housekeeping of its worker.
    keeper: Arc<Notify>,
}

impl Client {
    /// What it is doing, and since when.
    pub(crate) fn state(&self) -> (State, Moment) {
        let state = State::ALL.get(usize::from(self.state.load(Ordering::Relaxed))).copied();
        (state.unwrap_or(State::Login), Moment::at(self.since.load(Ordering::Relaxed)))
    }

    /// It does something else from now on.
    #[inline]
    pub(crate) fn enter(&self, state: State) {
        if self.state.load(Ordering::Relaxed) != state as u8 {
            self.state.store(state as u8, Ordering::Relaxed);
            self.since.store(self.clock.now().millis(), Ordering::Relaxed);
        }
    }

    /// A request came.
    #[inline]
    pub(crate) fn requests(&self) {
        self.requested.store(self.clock.now().millis(), Ordering::Relaxed);
    }

    /// When its last request came; when it came itself, if there was none.
    pub(crate) fn requested(&self) -> SystemTime {
        match self.requested.load(Ordering::Relaxed) {
            0 => self.connected,
            millis => self.clock.time_of(Moment::at(millis)).max(self.connected),
        }
    }

    /// Who it is.
    pub(crate) fn who(&self) -> Who {
        lock(&self.who).clone()
    }

    /// It is known better now.
    pub(crate) fn known(&self, change: impl FnOnce(&mut Who)) {
        change(&mut lock(&self.who));
    }

    /// Sends it away, with these words, as soon as its worker gets round to it.
    pub(crate) fn send_away(&self, denial: Denial) {
        lock(&self.end).get_or_insert_with(|| Box::new(denial));
        self.ending.store(true, Ordering::Release);
        self.keeper.notify_one();
    }

    /// Why it is to be sent away, once.
    pub(crate) fn take_end(&self) -> Option<Denial> {
        if self.ending.swap(false, Ordering::AcqRel) { lock(&self.end).take().map(|denial| *denial) } else { None }
    }

    /// Since when it is connected, in seconds.
    pub(crate) fn age(&self) -> u64 {
        SystemTime::now().duration_since(self.connected).map_or(0, |age| age.as_secs())
    }
}

impl fmt::Display for Client {
    /// As PgBouncer's log begins a line about a client.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let who = self.who();
        let database = who.database.as_deref().unwrap_or("(nodb)");
        let user = who.user.as_deref().unwrap_or("(nouser)");
        write!(f, "C-{:#x}: {database}/{user}@{}", pointer(self.id), self.peer.place(self.local))
    }
}

/// What stands for an address in memory, where PgBouncer shows one.
pub(crate) fn pointer(id: u64) -> u64 {
    0x5500_0000_0000 | (id << 8)
}

/// All connected clients.
#[derive(Default)]
pub(crate) struct Clients {
    all: Mutex<BTreeMap<u64, Arc<Client>>>,
}

impl Clients {
    /// All of them, by number.
    pub(crate) fn all(&self) -> Vec<Arc<Client>> {
        lock(&self.all).values().cloned().collect()
    }

    /// How many.
    pub(crate) fn len(&self) -> usize {
        lock(&self.all).len()
    }

    /// The one of this number.
    pub(crate) fn get(&self, id: u64) -> Option<Arc<Client>> {
        lock(&self.all).get(&id).cloned()
    }

    /// Notes a client that has just come, until the answer is dropped.
    pub(crate) fn enrol(
        self: &Arc<Self>,
        id: u64,
        peer: Peer,
        local: Option<SocketAddr>,
        clock: &Arc<Clock>,
        keeper: &Arc<Notify>,
    ) -> Enrolled {
        let client = Arc::new(Client {
            id,
            peer,
            local,
            connected: SystemTime::now(),
            clock: clock.clone(),
            who: Mutex::default(),
            state: AtomicU8::new(State::Login as u8),
            since: AtomicU64::new(clock.now().millis()),
            requested: AtomicU64::new(0),
            link: AtomicU64::new(0),
            prepared: AtomicUsize::new(0),
            behind: AtomicBool::new(false),
            end: Mutex::new(None),
            ending: AtomicBool::new(false),
            keeper: keeper.clone(),
        });
        lock(&self.all).insert(id, client.clone());
        Enrolled { clients: self.clone(), client }
    }
}

/// A client in the list, until this is dropped.
pub(crate) struct Enrolled {
    clients: Arc<Clients>,
    client: Arc<Client>,
}

impl Enrolled {
    /// The client.
    pub(crate) fn client(&self) -> &Arc<Client> {
        &self.client
    }
}

impl Drop for Enrolled {
    fn drop(&mut self) {
        lock(&self.clients.all).remove(&self.client.id);
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
