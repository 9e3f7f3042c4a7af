//! What is handed down to everybody: the configuration in force, the entries, the keys, the counts. One value, made by
//! `serve.rs`; no statics.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock};
use std::time::{Duration, SystemTime};

use pgwire::report::Report;
use tokio::sync::{Notify, mpsc, watch};
use topology::Watch;

use crate::auth::{Hashing, Store};
use crate::cancel::Cancels;
use crate::clients::Clients;
use crate::clock::{Clock, Moment};
use crate::config::{Config, Database, Limits, Managed, Target};
use crate::console::Order;
use crate::counts::{Counted, Ending, OfUser, Place};
use crate::entry::Entry;
use crate::error::Denial;
use crate::handover::Handover;
use crate::hosts::{Hosts, Ttl};
use crate::listener::TcpOptions;
use crate::pgbouncer::log::{Level, say};
use crate::pool::{Budget, Terms};
use crate::stats::{Counters, Totals};
use crate::systemd;
use crate::tls::TlsState;

/// Entries that may be made from the template `*`.
const MAX_ENTRIES: usize = 10_000;

/// The database that is the console.
pub(crate) const CONSOLE: &str = "pgbouncer";
/// Users of whom something is counted.
const MAX_USERS: usize = 100_000;

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
    /// What is known of servers' host names.
    pub(crate) hosts: Arc<Hosts>,
    /// Time to the tick.
    pub(crate) clock: Arc<Clock>,
    /// All connected clients.
    pub(crate) clients: Arc<Clients>,
    /// Those of the console.
    pub(crate) console_clients: Arc<AtomicUsize>,
    /// What passed there.
    pub(crate) console_counters: Box<[Counters]>,
    /// What is passed to the next process.
    pub(crate) handover: Handover,
    /// Numbers for clients and servers.
    pub(crate) ids: Arc<AtomicU64>,
    /// To wake the housekeeping of each worker.
    pub(crate) keepers: Box<[Arc<Notify>]>,
    /// Orders of the console for the program as a whole.
    pub(crate) orders: mpsc::Sender<Order>,
    /// Wakes those who wait because something is paused.
    gate: watch::Sender<()>,
    /// Everything is paused.
    paused: AtomicBool,
    /// No client is read from.
    suspended: AtomicBool,
    /// The end was asked for: who may go on, and how long.
    ending: Mutex<Option<Ending>>,
    /// When the period of the statistics began, in milliseconds of the clock.
    period: AtomicU64,
    /// Clients that were let in.
    pub(crate) admitted: AtomicUsize,
    of_users: Mutex<HashMap<Arc<str>, Arc<OfUser>>>,
    held_bytes: AtomicUsize,
    holding: AtomicUsize,
    statements: AtomicU64,
    /// `limits.max_prepared_statements`, which the path of a query reads.
    max_prepared: AtomicUsize,
    /// The longest message that passes, in bytes, where PgBouncer's `max_packet_size` says so.
    max_message: AtomicUsize,
    workers: usize,
}

impl Shared {
    pub(crate) fn new(
        config: Arc<Config>,
        watches: HashMap<Arc<str>, Watch>,
        store: Store,
        tls: TlsState,
        orders: mpsc::Sender<Order>,
    ) -> Self {
        let workers = config.listen.workers.max(1);
        Self {
            workers,
            max_prepared: AtomicUsize::new(config.limits.max_prepared_statements),
            max_message: AtomicUsize::new(config.max_message()),
            clients: Arc::default(),
            console_clients: Arc::default(),
            console_counters: (0..workers).map(|_| Counters::default()).collect(),
            handover: Handover::default(),
            ids: Arc::default(),
            keepers: (0..workers).map(|_| Arc::default()).collect(),
            orders,
            gate: watch::Sender::new(()),
            paused: AtomicBool::new(false),
            suspended: AtomicBool::new(false),
            ending: Mutex::default(),
            config: RwLock::new(config),
            entries: Mutex::default(),
            watches,
            store,
            tls,
            cancels: Arc::default(),
            hashing: Arc::default(),
            hosts: Arc::default(),
            clock: Arc::default(),
            period: AtomicU64::new(0),
            admitted: AtomicUsize::new(0),
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

    /// Whether the manners are PgBouncer's.
    pub(crate) fn is_pgbouncer(&self) -> bool {
        self.config().dialect.pgbouncer().is_some()
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
        let entry = Arc::new(self.new_entry(name, database, &config)?);
        if entry.is_automatic {
            say(Level::Log, format_args!("registered new auto-database: {name}"));
        }
        entries.insert(name.into(), entry.clone());
        Some(entry)
    }

    fn new_entry(&self, name: &str, database: &Arc<Database>, config: &Config) -> Option<Entry> {
        let (watch, managed) = match &database.target {
            Target::Cluster(cluster) => {
                let managed = config.clusters.get(cluster).is_some_and(|cluster| cluster.managed == Managed::Pgsteady);
                (self.watches.get(cluster)?.clone(), managed)
            }
            Target::Server(address) => (Watch::fixed(topology::Topology::single(name, address.clone())), false),
        };
        let entry = Entry::new(name, database.clone(), watch, managed, self.workers);
        entry.set_paused(self.is_paused());
        entry.touch(self.clock.now());
        Some(entry)
    }

    /// The clusters' monitors, by name.
    pub(crate) fn watches(&self) -> &HashMap<Arc<str>, Watch> {
        &self.watches
    }

    /// All entries that are in use.
    pub(crate) fn entries(&self) -> Vec<Arc<Entry>> {
        let mut entries: Vec<_> = lock(&self.entries).values().cloned().collect();
        entries.sort_by(|a, b| a.name.cmp(&b.name));
        entries
    }

    /// A new configuration takes effect. For PgBouncer's users entries change in their places, and clients of those that are
    /// gone are sent away; else entries that changed are made anew for new clients.
    pub(crate) fn replace_config(self: &Arc<Self>, config: &Arc<Config>) {
        *self.config.write().unwrap_or_else(PoisonError::into_inner) = config.clone();
        self.max_prepared.store(config.limits.max_prepared_statements, Ordering::Relaxed);
        self.max_message.store(config.max_message(), Ordering::Relaxed);
        for (name, of_user) in &*lock(&self.of_users) {
            of_user.servers.set_limit(max_servers(config, name));
        }
        if config.dialect.pgbouncer().is_none() {
            let mut entries = lock(&self.entries);
            entries.retain(|name, entry| config.database(name).is_some_and(|database| *database == entry.config()));
            return;
        }
        for entry in self.entries() {
            match config.database(&entry.name) {
                Some(database) => entry.reconfigure(database, self),
                None => self.remove_entry(&entry),
            }
        }
        self.open_forced_pools();
        self.open_gate();
    }

    /// An entry is gone: its clients go too.
    pub(crate) fn remove_entry(&self, entry: &Arc<Entry>) {
        lock(&self.entries).remove(&entry.name);
        entry.remove();
        for client in self.clients.all() {
            if client.who().database.as_deref() == Some(&*entry.name) {
                client.send_away(Denial::DatabaseRemoved);
            }
        }
    }

    /// Entries whose servers are kept open without clients exist from the start.
    pub(crate) fn open_forced_pools(self: &Arc<Self>) {
        let config = self.config();
        if config.dialect.pgbouncer().is_none() {
            return;
        }
        for (name, database) in &config.databases {
            if let Some(forced) = database.forced.as_ref().filter(|_| database.min_pool_size > 0)
                && let Some(entry) = self.entry(name)
            {
                let login = crate::session::forced_login(self, forced);
                let _ = crate::session::pool_for(self, &entry, &forced.user, &login, 0);
            }
        }
    }

    /// What a pool of this entry for this user keeps to; `None` if its TLS files were not read.
    pub(crate) fn terms(&self, entry: &Arc<str>, database: &Database, user: &str) -> Option<Arc<Terms>> {
        let config = self.config();
        let of_user = config.users.get(user).filter(|_| database.forced.is_none());
        let limits = &config.limits;
        let size = of_user.and_then(|user| user.pool_size).unwrap_or(database.pool_size);
        let reserve = of_user.and_then(|user| user.reserve_pool_size).unwrap_or(database.reserve_pool_size);
        let lifetime = database.server_lifetime.or(limits.server_lifetime);
        let settings = config.dialect.pgbouncer().map(|loaded| &loaded.settings);
        Some(Arc::new(Terms {
            addresses: match (&database.target, database.hosts.as_slice()) {
                (_, [_, ..]) => database.hosts.clone(),
                (Target::Server(address), []) => vec![address.clone()],
                (Target::Cluster(_), []) => Vec::new(),
            },
            stays_with_host: database.stays_with_host,
            ttl: settings.map(Ttl::of),
            tcp: self.tcp_options(),
            tls: self.tls.servers(&database.tls)?,
            dbname: database.dbname.clone().unwrap_or_else(|| entry.clone()),
            startup: database.startup.clone(),
            connect_query: database.connect_query.clone(),
            connect_timeout: limits.server_connect_timeout,
            idle_timeout: limits.server_idle_timeout.unwrap_or(Duration::MAX),
            lifetime: lifetime.unwrap_or(Duration::MAX),
            size,
            reserve,
            reserve_after: settings.map_or(Duration::from_secs(5), |s| s.reserve_pool_timeout.duration()),
            min_size: database.min_pool_size.min(size),
            min_without_clients: settings.is_none() || database.forced.is_some(),
            attempts: if settings.is_some() { 1 } else { 4 },
            retry: settings.map(|s| s.server_login_retry.duration()),
            check: settings.and_then(|s| s.check_query()),
            reset_query: settings.map_or_else(|| "DISCARD ALL".to_owned(), |s| s.server_reset_query.clone()),
            always_reset: settings.is_some_and(|s| s.server_reset_query_always != 0),
            round_robin: settings.is_some_and(|s| s.server_round_robin != 0),
            fast_close: settings.is_some_and(|s| s.server_fast_close != 0),
            logs_connections: settings.is_some_and(|s| s.log_connections != 0),
            logs_ends: settings.is_some_and(|s| s.log_disconnections != 0),
            is_pgbouncer: settings.is_some(),
        }))
    }

    /// The words for a client that is refused or sent away.
    pub(crate) fn words(&self, denial: &Denial) -> Report {
        denial.report(self.is_pgbouncer())
    }

    /// The statistics of a period are made up when it is over.
    pub(crate) fn end_period(&self, entries: &[Arc<Entry>]) {
        let config = self.config();
        let settings = config.dialect.pgbouncer().map(|loaded| &loaded.settings);
        let length = settings.map_or(60, |settings| settings.stats_period.max(1).unsigned_abs());
        let length = Duration::from_secs(length.into());
        let now = self.clock.now();
        let begun = Moment::at(self.period.load(Ordering::Relaxed));
        let gone = now.since(begun);
        if gone < length {
            return;
        }
        self.period.store(now.millis(), Ordering::Relaxed);
        let mut all = Totals::default();
        for entry in entries {
            all.add(&entry.period_ends(gone));
        }
        let line = crate::console::stats_line(&all);
        systemd::status(&line);
        if settings.is_some_and(|settings| settings.log_stats != 0) {
            say(Level::Log, format_args!("{line}"));
        }
    }

    /// The options of TCP connections.
    pub(crate) fn tcp_options(&self) -> TcpOptions {
        TcpOptions::of(&self.config())
    }

    /// The number of this process in a group of peers; 0: there is no group.
    pub(crate) fn peer_id(&self) -> u16 {
        let config = self.config();
        config.dialect.pgbouncer().map_or(0, |loaded| u16::try_from(loaded.settings.peer_id).unwrap_or(0))
    }

    /// Time for a cancel request to be delivered.
    pub(crate) fn cancel_wait(&self) -> Duration {
        let config = self.config();
        let limit = config.dialect.pgbouncer().and_then(|loaded| loaded.settings.cancel_wait_timeout.limit());
        limit.unwrap_or(Duration::from_secs(10))
    }

    /// Counts a client in, unless there are too many.
    pub(crate) fn admit(self: &Arc<Self>) -> Option<Counted> {
        Counted::within(self, |shared| &shared.admitted, self.config().limits.max_clients)
    }

    /// Counts a client of this user in, unless there are too many; who may not be refused is counted all the same.
    pub(crate) fn admit_user(&self, user: &Arc<str>, always: bool) -> Option<Place> {
        let limit = self.max_clients_of(user);
        Place::take(&self.of_user(user).clients, if always { 0 } else { limit })
    }

    /// Clients that a user may have at a time; 0: no limit.
    pub(crate) fn max_clients_of(&self, user: &str) -> usize {
        let config = self.config();
        let general = config.dialect.pgbouncer().map_or(0, |l| l.settings.max_user_client_connections);
        let own = config.users.get(user).and_then(|user| user.max_clients);
        own.unwrap_or(usize::try_from(general).unwrap_or(0))
    }

    /// What is counted of a user.
    pub(crate) fn of_user(&self, user: &Arc<str>) -> Arc<OfUser> {
        let mut users = lock(&self.of_users);
        if users.len() >= MAX_USERS {
            users.retain(|_, of_user| Arc::strong_count(of_user) > 1 || of_user.servers.taken() > 0);
        }
        let make = || {
            let servers = Arc::new(Budget::new(max_servers(&self.config(), user)));
            Arc::new(OfUser { clients: Arc::default(), servers })
        };
        users.entry(user.clone()).or_insert_with(make).clone()
    }

    /// The users that were ever here, with what is counted of them.
    pub(crate) fn users(&self) -> Vec<(Arc<str>, Arc<OfUser>)> {
        lock(&self.of_users).iter().map(|(name, of_user)| (name.clone(), of_user.clone())).collect()
    }

    /// The limit on the servers of a user.
    pub(crate) fn budget_of(&self, user: &Arc<str>) -> Arc<Budget> {
        self.of_user(user).servers.clone()
    }

    /// Whether everything is paused.
    pub(crate) fn is_paused(&self) -> bool {
        self.paused.load(Ordering::Acquire)
    }

    /// Pauses everything, or nothing.
    pub(crate) fn set_paused(&self, paused: bool) {
        self.paused.store(paused, Ordering::Release);
        self.entries().iter().for_each(|entry| entry.set_paused(paused));
        self.open_gate();
    }

    /// Whether clients are not read from.
    #[inline]
    pub(crate) fn is_suspended(&self) -> bool {
        self.suspended.load(Ordering::Relaxed)
    }

    /// Reads from no client, or from all again.
    pub(crate) fn set_suspended(&self, suspended: bool) {
        self.suspended.store(suspended, Ordering::Release);
        self.handover.set_given(false);
        self.open_gate();
    }

    /// Something may have been resumed, or paused: every session looks around.
    pub(crate) fn open_gate(&self) {
        self.gate.send_replace(());
        self.wake_sessions();
    }

    /// Every session looks around: something happened that it cannot see by itself.
    pub(crate) fn wake_sessions(&self) {
        self.keepers.iter().for_each(|keeper| keeper.notify_one());
    }

    /// Changes whenever something may have been resumed, or the end was asked for.
    pub(crate) fn gate(&self) -> watch::Receiver<()> {
        self.gate.subscribe()
    }

    /// How the program ends, if the end was asked for.
    pub(crate) fn ending(&self) -> Option<Ending> {
        *lock(&self.ending)
    }

    /// Whether the end was asked for, and what was to be waited for is over.
    pub(crate) fn has_ended(&self) -> bool {
        let is_console = |client: &crate::clients::Client| client.who().database.as_deref() == Some(CONSOLE);
        match self.ending() {
            None => false,
            Some(Ending::WaitForClients) => self.clients.all().iter().all(|client| is_console(client)),
            Some(Ending::WaitForServers) => {
                let active = |pool: &crate::pool::Pool| pool.counts().busy() > 0;
                !self.entries().iter().any(|entry| entry.pools().iter().any(|(_, pool)| active(pool)))
            }
        }
    }

    /// The end is asked for.
    pub(crate) fn end(&self, how: Ending) {
        *lock(&self.ending) = Some(how);
        if how == Ending::WaitForServers {
            self.set_paused(true); // housekeeping tells those who wait, at its next round
        }
    }

    /// Bytes that clients sent while they wait.
    pub(crate) fn held_bytes(&self) -> &AtomicUsize {
        &self.held_bytes
    }

    /// Counts a client in that has to wait for a server, unless too many do.
    pub(crate) fn hold(self: &Arc<Self>) -> Option<Counted> {
        Counted::within(self, |shared| &shared.holding, self.config().limits.hold_clients)
    }

    /// A number for a prepared statement, never used before.
    pub(crate) fn next_statement(&self) -> u64 {
        self.statements.fetch_add(1, Ordering::Relaxed) + 1
    }

    /// Servers of another process come along, which may hold statements of its numbers: ours are others.
    pub(crate) fn number_statements_anew(&self) {
        let seconds = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).map_or(0, |now| now.as_secs());
        self.statements.fetch_max(seconds << 20, Ordering::Relaxed);
    }

    /// Prepared statements that a server may hold.
    #[inline]
    pub(crate) fn max_prepared(&self) -> usize {
        self.max_prepared.load(Ordering::Relaxed)
    }

    /// Bytes of the longest message that passes.
    #[inline]
    pub(crate) fn max_message(&self) -> usize {
        self.max_message.load(Ordering::Relaxed)
    }
}

/// Servers that a user may have at a time; 0: no limit.
fn max_servers(config: &Config, user: &str) -> usize {
    let general = config.dialect.pgbouncer().map_or(0, |loaded| loaded.settings.max_user_connections);
    let own = config.users.get(user).and_then(|user| user.max_servers);
    own.unwrap_or(usize::try_from(general).unwrap_or(0))
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
