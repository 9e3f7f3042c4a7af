//! What is handed down to everybody: the configuration in force, the entries, the keys, the counts. One value, made by
//! `serve.rs`; no statics.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock};

use topology::Watch;

use crate::auth::{Hashing, Store};
use crate::cancel::Cancels;
use crate::clock::Clock;
use crate::config::{Config, Limits, Managed, Target};
use crate::entry::Entry;
use crate::tls::TlsState;

/// Entries that may be made from the template `*`.
const MAX_ENTRIES: usize = 10_000;

/// What everybody shares.
pub(crate) struct Shared {
    config: RwLock<Arc<Config>>,
    entries: Mutex<HashMap<Arc<str>, Arc<Entry>>>,
    /// The clusters' monitors, by name.
    watches: HashMap<Arc<str>, Watch>,
    /// Who may log in.
    pub(crate) store: Store,
    /// The TLS contexts in force.
    pub(crate) tls: TlsState,
    /// The cancel keys of all clients.
    pub(crate) cancels: Arc<Cancels>,
    /// Bounds the hashing of passwords for servers.
    pub(crate) hashing: Arc<Hashing>,
    /// Time to the tick.
    pub(crate) clock: Arc<Clock>,
    clients: AtomicUsize,
    /// Clients of those users that have a limit.
    of_users: Mutex<HashMap<Arc<str>, usize>>,
    held_bytes: AtomicUsize,
    holding: AtomicUsize,
    statements: AtomicU64,
    workers: usize,
}

impl Shared {
    pub(crate) fn new(config: Arc<Config>, watches: HashMap<Arc<str>, Watch>, store: Store, tls: TlsState) -> Self {
        Self {
            workers: config.listen.workers.max(1),
            config: RwLock::new(config),
            entries: Mutex::default(),
            watches,
            store,
            tls,
            cancels: Arc::default(),
            hashing: Arc::default(),
            clock: Arc::default(),
            clients: AtomicUsize::new(0),
            of_users: Mutex::default(),
            held_bytes: AtomicUsize::new(0),
            holding: AtomicUsize::new(0),
            statements: AtomicU64::new(0),
        }
    }

    /// The configuration in force.
    pub(crate) fn config(&self) -> Arc<Config> {
        self.config.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// The limits in force.
    pub(crate) fn limits(&self) -> Limits {
        self.config().limits.clone()
    }

    /// Workers that serve clients.
    pub(crate) fn workers(&self) -> usize {
        self.workers
    }

    /// The entry that a client asks for; made on its first use. `None` if there is none of this name.
    pub(crate) fn entry(&self, name: &str) -> Option<Arc<Entry>> {
        let mut entries = lock(&self.entries);
        if let Some(entry) = entries.get(name) {
            return Some(entry.clone());
        }
        let config = self.config();
        let database = config.database(name)?;
        if entries.len() >= MAX_ENTRIES {
            return None;
        }
        let (watch, managed) = match &database.target {
            Target::Cluster(cluster) => {
                let managed = config.clusters.get(cluster).is_some_and(|cluster| cluster.managed == Managed::Pgsteady);
                (self.watches.get(cluster)?.clone(), managed)
            }
            Target::Server(address) => (Watch::fixed(topology::Topology::single(name, address.clone())), false),
        };
        let entry = Arc::new(Entry::new(name, database.clone(), watch, managed));
        entries.insert(name.into(), entry.clone());
        Some(entry)
    }

    /// All entries that are in use.
    pub(crate) fn entries(&self) -> Vec<Arc<Entry>> {
        lock(&self.entries).values().cloned().collect()
    }

    /// A new configuration takes effect: for new clients at once; entries that changed are made anew for them.
    pub(crate) fn replace_config(&self, config: Arc<Config>) {
        let mut entries = lock(&self.entries);
        entries.retain(|name, entry| config.database(name).is_some_and(|database| *database == entry.config));
        *self.config.write().unwrap_or_else(PoisonError::into_inner) = config;
    }

    /// Counts a client in, unless there are too many.
    pub(crate) fn admit(self: &Arc<Self>) -> Option<Counted> {
        Counted::within(self, |shared| &shared.clients, self.config().limits.max_clients)
    }

    /// Counts a client of this user in, unless there are too many.
    pub(crate) fn admit_user(self: &Arc<Self>, user: &Arc<str>) -> Option<OfUser> {
        let Some(limit) = self.config().users.get(user).and_then(|user| user.max_clients) else {
            return Some(OfUser(None));
        };
        let mut counts = lock(&self.of_users);
        let count = counts.entry(user.clone()).or_default();
        if *count >= limit {
            return None;
        }
        *count += 1;
        Some(OfUser(Some((self.clone(), user.clone()))))
    }

    /// Bytes that clients sent while they wait.
    pub(crate) fn held_bytes(&self) -> &AtomicUsize {
        &self.held_bytes
    }

    /// Counts a client in that has to wait for a server, unless too many do.
    pub(crate) fn hold(self: &Arc<Self>) -> Option<Counted> {
        Counted::within(self, |shared| &shared.holding, self.config().limits.hold_clients)
    }

    /// Clients that are connected.
    pub(crate) fn clients(&self) -> usize {
        self.clients.load(Ordering::Relaxed)
    }

    /// A number for a prepared statement, never used before.
    pub(crate) fn next_statement(&self) -> u64 {
        self.statements.fetch_add(1, Ordering::Relaxed) + 1
    }

    /// Prepared statements that a server may hold.
    pub(crate) fn max_prepared(&self) -> usize {
        self.config().limits.max_prepared_statements
    }
}

/// One more client of a user, until it is dropped.
pub(crate) struct OfUser(Option<(Arc<Shared>, Arc<str>)>);

impl Drop for OfUser {
    fn drop(&mut self) {
        let Some((shared, user)) = &self.0 else { return };
        let mut counts = lock(&shared.of_users);
        if let Some(count) = counts.get_mut(user) {
            *count -= 1;
            if *count == 0 {
                counts.remove(user);
            }
        }
    }
}

/// One more in a count, until it is dropped.
pub(crate) struct Counted {
    shared: Arc<Shared>,
    count: fn(&Shared) -> &AtomicUsize,
}

impl Counted {
    fn within(shared: &Arc<Shared>, count: fn(&Shared) -> &AtomicUsize, limit: usize) -> Option<Self> {
        if count(shared).fetch_add(1, Ordering::AcqRel) >= limit {
            count(shared).fetch_sub(1, Ordering::AcqRel);
            return None;
        }
        Some(Self { shared: shared.clone(), count })
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        (self.count)(&self.shared).fetch_sub(1, Ordering::AcqRel);
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
