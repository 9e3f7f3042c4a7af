//! What others may know of a server and do to it while a session has it: its number, its address, its state, and the word that it
//! must not be used any more.

use std::fmt;
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::task::Waker;
use std::time::SystemTime;

use crate::clients::pointer;
use crate::clock::{Clock, Moment};

/// What a server is doing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum ServerState {
    /// It is being logged in on.
    Login,
    /// It may be lent.
    Idle,
    /// It was idle for so long that it is checked before it is lent.
    Used,
    /// It is being checked, or reset.
    Tested,
    /// A session has it.
    Active,
}

impl ServerState {
    const ALL: [Self; 5] = [Self::Login, Self::Idle, Self::Used, Self::Tested, Self::Active];
}

/// Where a server is, and since when.
#[derive(Debug, Clone)]
pub(crate) struct Origin {
    /// Its number, of one count with that of clients.
    pub(crate) id: u64,
    /// The entry.
    pub(crate) database: Arc<str>,
    /// Who is logged in.
    pub(crate) user: Arc<str>,
    /// Its host, as the console shows it, and its port.
    pub(crate) host: String,
    pub(crate) port: u16,
    /// Our end of the connection, likewise.
    pub(crate) local: (String, u16),
    /// When it was connected.
    pub(crate) connected: SystemTime,
    /// Protocol and cipher of its TLS connection.
    pub(crate) tls: Option<Arc<str>>,
    /// The process id of its backend.
    pub(crate) process_id: u32,
}

/// What others may know of a server, and do to it.
pub(crate) struct Control {
    /// Where it is.
    pub(crate) origin: Origin,
    clock: Arc<Clock>,
    state: AtomicU8,
    since: AtomicU64,
    /// The number of the client that has it; 0: none.
    pub(crate) link: AtomicU64,
    /// Prepared statements of ours that it holds.
    pub(crate) prepared: AtomicUsize,
    revoked: AtomicBool,
    retired: AtomicBool,
    why: Mutex<Option<String>>,
    waker: Mutex<Option<Waker>>,
    /// The epoch that it was opened under.
    pub(crate) epoch: AtomicU64,
    /// The `application_name` that it reports.
    application_name: Mutex<Arc<str>>,
}

impl Control {
    /// Opened under this epoch.
    pub(crate) fn new(origin: Origin, epoch: u64, clock: &Arc<Clock>) -> Self {
        Self {
            origin,
            clock: clock.clone(),
            state: AtomicU8::new(ServerState::Login as u8),
            since: AtomicU64::new(clock.now().millis()),
            link: AtomicU64::new(0),
            prepared: AtomicUsize::new(0),
            revoked: AtomicBool::new(false),
            retired: AtomicBool::new(false),
            why: Mutex::new(None),
            waker: Mutex::new(None),
            epoch: AtomicU64::new(epoch),
            application_name: Mutex::new("".into()),
        }
    }

    /// What it is doing, and since when.
    pub(crate) fn state(&self) -> (ServerState, Moment) {
        let state = ServerState::ALL.get(usize::from(self.state.load(Ordering::Relaxed))).copied();
        (state.unwrap_or(ServerState::Login), Moment::at(self.since.load(Ordering::Relaxed)))
    }

    /// It does something else from now on.
    #[inline]
    pub(crate) fn enter(&self, state: ServerState) {
        self.state.store(state as u8, Ordering::Relaxed);
        self.since.store(self.clock.now().millis(), Ordering::Relaxed);
    }

    /// The time of day of a moment.
    pub(crate) fn time_of(&self, moment: Moment) -> SystemTime {
        self.clock.time_of(moment)
    }

    /// Ends the server under its session: what it was asked counts as lost.
    pub(crate) fn revoke(&self) {
        self.revoked.store(true, Ordering::Release);
        if let Some(waker) = lock(&self.waker).take() {
            waker.wake();
        }
    }

    /// Whether it was revoked.
    #[inline]
    pub(crate) fn is_revoked(&self) -> bool {
        self.revoked.load(Ordering::Acquire)
    }

    /// It is to be closed as soon as nobody has it.
    pub(crate) fn retire(&self) {
        self.retired.store(true, Ordering::Release);
        if let Some(waker) = lock(&self.waker).take() {
            waker.wake();
        }
    }

    /// Whether it is to be closed.
    #[inline]
    pub(crate) fn is_retired(&self) -> bool {
        self.retired.load(Ordering::Acquire)
    }

    /// Why it is closed, for the log; the first word counts.
    pub(crate) fn closes(&self, why: &str) {
        lock(&self.why).get_or_insert_with(|| why.to_owned());
    }

    /// Why it is closed, if that was said.
    pub(crate) fn why_closed(&self) -> Option<String> {
        lock(&self.why).clone()
    }

    /// The `application_name` that it reports.
    pub(crate) fn application_name(&self) -> Arc<str> {
        lock(&self.application_name).clone()
    }

    /// It reports another `application_name`.
    pub(crate) fn set_application_name(&self, name: &str) {
        *lock(&self.application_name) = name.into();
    }

    /// Since when it is connected, in seconds.
    pub(crate) fn age(&self) -> u64 {
        SystemTime::now().duration_since(self.origin.connected).map_or(0, |age| age.as_secs())
    }

    /// Who is to be woken by `revoke` and `retire`.
    #[inline]
    pub(crate) fn register(&self, waker: &Waker) {
        let mut held = lock(&self.waker);
        match &mut *held {
            Some(known) if known.will_wake(waker) => {}
            other => *other = Some(waker.clone()),
        }
    }
}

impl fmt::Display for Control {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.origin.fmt(f)
    }
}

impl fmt::Display for Origin {
    /// As PgBouncer's log begins a line about a server.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let host = if self.host.contains(':') { format!("[{}]", self.host) } else { self.host.clone() };
        write!(f, "S-{:#x}: {}/{}@{host}:{}", pointer(self.id), self.database, self.user, self.port)
    }
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
