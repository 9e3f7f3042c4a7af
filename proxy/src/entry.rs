//! A database entry at work: where its transactions go, its pools, whether it is paused, and what passed through it.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use topology::{Topology, Watch};

use crate::clock::Moment;
use crate::config::{Database, PoolMode, SynchronousCommit, Target};
use crate::pool::{Budget, Opener, Pool};
use crate::routing::Route;
use crate::session::Mode;
use crate::settings::{Reported, Settings};
use crate::shared::Shared;
use crate::stats::{Counters, Period, Totals};

/// Greetings that are remembered for one entry.
const MAX_WELCOMES: usize = 64;
/// Users that may have pools of one entry.
const MAX_USERS: usize = 10_000;

/// How clients are met that ask for the same.
#[derive(Clone)]
pub(crate) struct Welcome {
    /// Whose clients.
    pub(crate) user: Arc<str>,
    /// What they ask for.
    pub(crate) asked: Settings,
    /// What of it PostgreSQL does not report.
    pub(crate) settings: Settings,
    /// What they are told of the parameters.
    pub(crate) reported: Reported,
    /// That as messages.
    pub(crate) messages: Bytes,
}

impl Welcome {
    /// For clients that ask for this and are told that.
    pub(crate) fn new(user: Arc<str>, asked: Settings, reported: Reported) -> Self {
        let mut settings = asked.clone();
        settings.leave_out(&reported);
        let mut messages = BytesMut::new();
        reported.write(&mut messages);
        Self { user, asked, settings, reported, messages: messages.freeze() }
    }
}

/// User and node.
type PoolKey = (Arc<str>, usize);

/// A database entry at work.
pub(crate) struct Entry {
    /// The name that clients ask for.
    pub(crate) name: Arc<str>,
    /// As it is configured.
    config: RwLock<Arc<Database>>,
    /// Its cluster.
    pub(crate) watch: Watch,
    /// A monitor acts for the cluster: its commits wait for standbys.
    pub(crate) managed: bool,
    /// A commit's transaction id is asked for along with it.
    pub(crate) resolves: bool,
    /// What happens to a session that sets `synchronous_commit` below `on`.
    pub(crate) synchronous_commit: SynchronousCommit,
    /// Nodes of the cluster.
    pub(crate) nodes: usize,
    /// There is no cluster, and nothing to choose: the epoch for ever.
    pub(crate) alone: Option<u64>,
    /// How far behind a replica may be.
    pub(crate) max_lag: Duration,
    /// Where its transactions go, unless the session or the statement says otherwise.
    pub(crate) route: Route,
    /// No server is lent.
    paused: AtomicBool,
    /// No client is let in.
    disabled: AtomicBool,
    /// It is in no configuration any more: its clients go.
    removed: AtomicBool,
    /// It was made from the template `*`.
    pub(crate) is_automatic: bool,
    /// When it was last used, in milliseconds of the clock.
    used: AtomicU64,
    /// Clients that are connected.
    pub(crate) clients: Arc<AtomicUsize>,
    /// Servers of all its pools, and how many there may be.
    pub(crate) servers: Arc<Budget>,
    /// What passed, by worker.
    pub(crate) counters: Box<[Counters]>,
    period: Mutex<Period>,
    pools: Mutex<HashMap<PoolKey, Arc<Pool>>>,
    welcomes: Mutex<Vec<Welcome>>,
}

impl Entry {
    pub(crate) fn new(name: &str, config: Arc<Database>, watch: Watch, managed: bool, workers: usize) -> Self {
        Self {
            name: name.into(),
            max_lag: config.max_lag,
            route: config.route,
            resolves: managed && config.resolve_commits,
            synchronous_commit: if managed { config.synchronous_commit } else { SynchronousCommit::Allow },
            nodes: watch.now().nodes.len(),
            alone: matches!(config.target, Target::Server(_)).then(|| watch.now().epoch),
            watch,
            managed,
            paused: AtomicBool::new(false),
            disabled: AtomicBool::new(false),
            removed: AtomicBool::new(false),
            is_automatic: *config.name == *"*",
            used: AtomicU64::new(0),
            clients: Arc::default(),
            servers: Arc::new(Budget::new(config.max_servers)),
            counters: (0..workers).map(|_| Counters::default()).collect(),
            period: Mutex::default(),
            pools: Mutex::default(),
            welcomes: Mutex::default(),
            config: RwLock::new(config),
        }
    }

    /// As it is configured now.
    pub(crate) fn config(&self) -> Arc<Database> {
        self.config.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Takes what a reload says of it, in its place: its clients stay, and its servers are replaced if they lead elsewhere.
    pub(crate) fn reconfigure(&self, config: &Arc<Database>, shared: &Shared) {
        let old = std::mem::replace(&mut *self.config.write().unwrap_or_else(PoisonError::into_inner), config.clone());
        self.servers.set_limit(config.max_servers);
        let leads_elsewhere = !old.leads_where(config);
        if leads_elsewhere {
            self.forget_welcomes();
        }
        for (_, pool) in self.pools() {
            if let Some(terms) = shared.terms(&self.name, config, &pool.user) {
                pool.set_terms(terms);
            }
            if leads_elsewhere {
                pool.retire();
            }
        }
    }

    /// Whose servers a client of this user gets.
    pub(crate) fn user_of(&self, client: &Arc<str>) -> Arc<str> {
        self.config().forced.as_ref().map_or_else(|| client.clone(), |forced| forced.user.clone())
    }

    /// Whether it is on this cluster.
    pub(crate) fn is_of(&self, cluster: &str) -> bool {
        matches!(&self.config().target, Target::Cluster(name) if **name == *cluster)
    }

    /// How long its sessions keep a server; what is said of the user counts first.
    pub(crate) fn mode(&self, of_user: Option<PoolMode>) -> Mode {
        match of_user.unwrap_or(self.config().pool_mode) {
            PoolMode::Session => Mode::Session,
            PoolMode::Transaction => Mode::Transaction,
            PoolMode::Statement => Mode::Statement,
        }
    }

    /// A server of this node was lost: the monitor looks at once.
    pub(crate) fn suspect(&self, node: usize) {
        self.watch.suspect(node);
    }

    /// The pool of a user for a node; made if there is none. `None` if too many users have one.
    pub(crate) fn pool_of(
        self: &Arc<Self>,
        shared: &Arc<Shared>,
        user: &Arc<str>,
        node: usize,
        opener: impl FnOnce(&Topology) -> Option<Opener>,
    ) -> Option<Arc<Pool>> {
        let mut pools = lock(&self.pools);
        if let Some(pool) = pools.get(&(user.clone(), node)) {
            return Some(pool.clone());
        }
        if pools.len() >= MAX_USERS {
            return None;
        }
        let terms = shared.terms(&self.name, &self.config(), user)?;
        let pool = Pool::new(self, user, opener(&self.watch.now())?, terms, shared);
        pools.insert((user.clone(), node), pool.clone());
        Some(pool)
    }

    /// All pools, with their nodes.
    pub(crate) fn pools(&self) -> Vec<(usize, Arc<Pool>)> {
        lock(&self.pools).iter().map(|((_, node), pool)| (*node, pool.clone())).collect()
    }

    /// How a client of this user is met that asks for these settings, if one was before.
    pub(crate) fn welcome(&self, user: &str, asked: &Settings) -> Option<Welcome> {
        let welcomes = lock(&self.welcomes);
        welcomes.iter().find(|known| *known.user == *user && known.asked.equals(asked)).cloned()
    }

    /// Remembers it for the next.
    pub(crate) fn remember_welcome(&self, welcome: Welcome) {
        let mut welcomes = lock(&self.welcomes);
        if welcomes.len() >= MAX_WELCOMES {
            welcomes.remove(0);
        }
        welcomes.push(welcome);
    }

    /// What servers reported may be different now.
    pub(crate) fn forget_welcomes(&self) {
        lock(&self.welcomes).clear();
    }

    /// Whether no server is lent.
    #[inline]
    pub(crate) fn is_paused(&self) -> bool {
        self.paused.load(Ordering::Acquire)
    }

    /// Lends no server from now on, or again.
    pub(crate) fn set_paused(&self, paused: bool) {
        self.paused.store(paused, Ordering::Release);
    }

    /// Whether no client is let in.
    pub(crate) fn is_disabled(&self) -> bool {
        self.disabled.load(Ordering::Acquire)
    }

    /// Lets no client in from now on, or again.
    pub(crate) fn set_disabled(&self, disabled: bool) {
        self.disabled.store(disabled, Ordering::Release);
    }

    /// Whether a reload took it away.
    pub(crate) fn is_removed(&self) -> bool {
        self.removed.load(Ordering::Acquire)
    }

    /// A reload took it away, or its template was not used for long.
    pub(crate) fn remove(&self) {
        self.removed.store(true, Ordering::Release);
        self.pools().iter().for_each(|(_, pool)| pool.retire());
    }

    /// It is used now.
    pub(crate) fn touch(&self, now: Moment) {
        self.used.store(now.millis(), Ordering::Relaxed);
    }

    /// When it was used last; its clients and servers count as use.
    pub(crate) fn unused_since(&self, now: Moment) -> Moment {
        if self.clients.load(Ordering::Relaxed) > 0 || self.servers.taken() > 0 {
            self.touch(now);
        }
        Moment::at(self.used.load(Ordering::Relaxed))
    }

    /// What passed so far.
    pub(crate) fn totals(&self) -> Totals {
        Totals::of(&self.counters)
    }

    /// The averages of the last period.
    pub(crate) fn averages(&self) -> Totals {
        lock(&self.period).averages()
    }

    /// A period of the statistics ends; its averages.
    pub(crate) fn period_ends(&self, length: Duration) -> Totals {
        lock(&self.period).ends(self.totals(), length)
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
