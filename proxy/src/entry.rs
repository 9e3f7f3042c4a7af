//! A database entry at work: where its transactions go, and its pools.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use topology::{Topology, Watch};

use crate::config::{Database, PoolMode, SynchronousCommit, Target};
use crate::pool::{Opener, Pool};
use crate::routing::Route;
use crate::session::Mode;
use crate::settings::{Reported, Settings};
use crate::shared::Shared;

/// Greetings that are remembered for one entry.
const MAX_WELCOMES: usize = 64;
/// Users that may have pools of one entry.
const MAX_USERS: usize = 10_000;

/// User and node.
type PoolKey = (Arc<str>, usize);

/// A database entry at work.
pub(crate) struct Entry {
    /// The name that clients ask for.
    pub(crate) name: Arc<str>,
    /// As it is configured.
    pub(crate) config: Arc<Database>,
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
    /// How far behind a replica may be.
    pub(crate) max_lag: Duration,
    /// Time a client waits for a server.
    pub(crate) max_wait: Duration,
    pools: Mutex<HashMap<PoolKey, Arc<Pool>>>,
    welcomes: Mutex<Vec<(Arc<str>, Settings, Reported)>>,
}

impl Entry {
    pub(crate) fn new(name: &str, config: Arc<Database>, watch: Watch, managed: bool) -> Self {
        Self {
            name: name.into(),
            max_lag: config.max_lag,
            max_wait: config.max_wait,
            resolves: managed && config.resolve_commits,
            synchronous_commit: if managed { config.synchronous_commit } else { SynchronousCommit::Allow },
            config,
            nodes: watch.now().nodes.len(),
            watch,
            managed,
            pools: Mutex::default(),
            welcomes: Mutex::default(),
        }
    }

    /// Whether it is on this cluster.
    pub(crate) fn is_of(&self, cluster: &str) -> bool {
        matches!(&self.config.target, Target::Cluster(name) if **name == *cluster)
    }

    /// How long its sessions keep a server; what is said of the user counts first.
    pub(crate) fn mode(&self, of_user: Option<PoolMode>) -> Mode {
        match of_user.unwrap_or(self.config.pool_mode) {
            PoolMode::Session => Mode::Session,
            PoolMode::Transaction => Mode::Transaction,
            PoolMode::Statement => Mode::Statement,
        }
    }

    /// Where its transactions go, unless the session or the statement says otherwise.
    pub(crate) fn route(&self) -> Route {
        self.config.route
    }

    /// A server of this node was lost: the monitor looks at once.
    pub(crate) fn suspect(&self, node: usize) {
        self.watch.suspect(node);
    }

    /// The pool of a user for a node; made if there is none. `None` if too many users have one.
    pub(crate) fn pool_of(
        &self,
        shared: &Shared,
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
        let size = shared.config().users.get(user).and_then(|user| user.pool_size).unwrap_or(self.config.pool_size);
        let pool = Pool::new(opener(&self.watch.now())?, size, self.config.min_pool_size, shared.workers());
        pools.insert((user.clone(), node), pool.clone());
        Some(pool)
    }

    /// All pools, with their nodes.
    pub(crate) fn pools(&self) -> Vec<(usize, Arc<Pool>)> {
        lock(&self.pools).iter().map(|((_, node), pool)| (*node, pool.clone())).collect()
    }

    /// What a client of this user with these settings is told at login, if one was before.
    pub(crate) fn welcome(&self, user: &str, settings: &Settings) -> Option<Reported> {
        let welcomes = lock(&self.welcomes);
        let known = welcomes.iter().find(|(name, known, _)| **name == *user && known.equals(settings));
        known.map(|(_, _, reported)| reported.clone())
    }

    /// Remembers it for the next.
    pub(crate) fn remember_welcome(&self, user: &Arc<str>, settings: &Settings, reported: &Reported) {
        let mut welcomes = lock(&self.welcomes);
        if welcomes.len() >= MAX_WELCOMES {
            welcomes.remove(0);
        }
        welcomes.push((user.clone(), settings.clone(), reported.clone()));
    }

    /// What servers reported may be different now.
    pub(crate) fn forget_welcomes(&self) {
        lock(&self.welcomes).clear();
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
