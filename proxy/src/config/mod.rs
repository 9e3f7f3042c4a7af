//! The configuration: what is written in `pgsteady.toml`, checked, as plain immutable values. Nothing here acts on it.

use std::collections::BTreeMap;
use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use topology::Address;

use crate::pgbouncer::Loaded;

mod build;
mod change;
mod etcd;
pub mod options;
mod problem;
mod reference;
mod secret;
mod section;
mod servers;
mod value;

pub use change::Change;
pub use options::{
    Auth, AuthMethod, Durability, Limits, Listen, ListenTls, Log, LogFormat, Managed, PoolMode, Route, ServerTls,
    SslMode, SynchronousCommit, User,
};
pub use problem::{ConfigErrors, Problem};
pub use reference::reference;
pub use secret::Secret;
pub use section::{OptionDoc, SectionDoc};
pub use value::{FileMode, ListenAddress, Size};

/// Longest configuration file that is read.
const MAX_FILE_BYTES: u64 = 4 << 20;

/// Places searched for the file when none is named.
pub const DEFAULT_PATHS: [&str; 2] = ["pgsteady.toml", "/etc/pgsteady/pgsteady.toml"];

/// Everything the proxy is told. Shared as `Arc<Config>`, replaced as a whole at a reload.
#[derive(Debug, Clone, PartialEq)]
pub struct Config {
    /// The file it was read from; empty if it was made in memory.
    pub file: PathBuf,
    /// Where clients connect.
    pub listen: Listen,
    /// TLS towards clients.
    pub listen_tls: ListenTls,
    /// What is bounded.
    pub limits: Limits,
    /// How clients prove who they are.
    pub auth: Auth,
    /// The password of `auth.query_user`, from the option or its file.
    pub auth_query_password: Option<Secret>,
    /// The users of `[[user]]`, by name.
    pub users: BTreeMap<Arc<str>, Arc<User>>,
    /// What is logged.
    pub log: Log,
    /// The clusters, by name.
    pub clusters: BTreeMap<Arc<str>, Arc<Cluster>>,
    /// The database entries, by name.
    pub databases: BTreeMap<Arc<str>, Arc<Database>>,
    /// The entry `"*"`, for every other name.
    pub any_database: Option<Arc<Database>>,
    /// What is allowed but worth a word.
    pub warnings: Vec<Problem>,
    /// Whose manners the program has.
    pub dialect: Dialect,
}

/// Whose manners the program has: what it calls things towards clients, and what it logs.
#[derive(Debug, Clone, PartialEq, Default)]
pub enum Dialect {
    /// Its own; configured by `pgsteady.toml`.
    #[default]
    Native,
    /// PgBouncer's; configured by `pgbouncer.ini`, which said this.
    PgBouncer(Arc<Loaded>),
}

impl Dialect {
    /// What `pgbouncer.ini` said, if the manners are PgBouncer's.
    #[must_use]
    pub fn pgbouncer(&self) -> Option<&Arc<Loaded>> {
        match self {
            Self::Native => None,
            Self::PgBouncer(loaded) => Some(loaded),
        }
    }
}

/// A name and a password.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Login {
    /// The role.
    pub user: Arc<str>,
    /// Its password; none: trust, peer or a client certificate.
    pub password: Option<Secret>,
}

/// A cluster and how it is watched.
#[derive(Debug, Clone, PartialEq)]
pub struct Cluster {
    /// Its name.
    pub name: Arc<str>,
    /// Who promotes.
    pub managed: Managed,
    /// Login with which pgsteady watches and acts.
    pub login: Login,
    /// Database to which it connects.
    pub dbname: String,
    /// Login with which standbys replicate.
    pub replication: Login,
    /// Folder of the store.
    pub store: PathBuf,
    /// The store, where it is etcd.
    pub etcd: Option<Etcd>,
    /// The k of `ANY k`.
    pub synchronous: u32,
    /// What happens when no standby is left.
    pub durability: Durability,
    /// Time between probes of a node.
    pub probe_interval: Duration,
    /// Time after which a probe is taken for lost.
    pub probe_timeout: Duration,
    /// Patience while standbys still hear from an unreachable primary.
    pub partition_grace: Duration,
    /// Patience with a primary whose disk takes no WAL.
    pub stall_grace: Duration,
    /// Patience with a crashed primary that restarts.
    pub crash_restart_grace: Duration,
    /// The nodes, at least one, names and addresses unique.
    pub nodes: Vec<ClusterNode>,
    /// TLS towards the nodes.
    pub tls: Arc<ServerTls>,
}

/// etcd as a store.
#[derive(Debug, Clone, PartialEq)]
pub struct Etcd {
    /// Its members, at least one.
    pub endpoints: Vec<topology::Endpoint>,
    /// What the keys begin with.
    pub prefix: String,
    /// Who we are there.
    pub login: Option<Login>,
    /// Files for TLS.
    pub tls: topology::TlsFiles,
    /// How long the right to act lasts without a word.
    pub lease: Duration,
}

/// A node of a cluster.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ClusterNode {
    /// Its name; also its `application_name` as a standby.
    pub name: Arc<str>,
    /// Where it answers.
    pub address: Address,
    /// Between standbys equally far on, the higher is promoted.
    pub priority: u16,
    /// Where it is.
    pub zone: Option<String>,
}

/// Where a database is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Target {
    /// On this cluster (a key of `Config::clusters`).
    Cluster(Arc<str>),
    /// On one server that nobody watches.
    Server(Address),
}

/// A database that clients may ask for.
#[derive(Debug, Clone, PartialEq)]
pub struct Database {
    /// The name of the entry (`*` for the template).
    pub name: Arc<str>,
    /// Where it is.
    pub target: Target,
    /// TLS towards its server or servers.
    pub tls: Arc<ServerTls>,
    /// Its name on the server; none: the name the client asks for.
    pub dbname: Option<Arc<str>>,
    /// The login used whoever the client is; none: the client's own.
    pub forced: Option<Login>,
    /// How long a client keeps a server.
    pub pool_mode: PoolMode,
    /// Servers of a pool.
    pub pool_size: usize,
    /// Servers kept even when unused.
    pub min_pool_size: usize,
    /// Time a client waits for a server.
    pub max_wait: Duration,
    /// Where transactions go.
    pub route: Route,
    /// A replica further behind is not used.
    pub max_lag: Duration,
    /// Commits in doubt are looked up.
    pub resolve_commits: bool,
    /// What happens to a session that sets `synchronous_commit` below `on`.
    pub synchronous_commit: SynchronousCommit,
    /// Hosts that are the same to its users, the target first; empty: the target alone.
    pub hosts: Vec<Address>,
    /// Stay with a host until it fails; else take them in turn.
    pub stays_with_host: bool,
    /// Servers for those who waited long, on top of `pool_size`.
    pub reserve_pool_size: usize,
    /// Servers of all its pools; 0: no limit.
    pub max_servers: usize,
    /// Clients; 0: no limit.
    pub max_clients: usize,
    /// Age at which a server is closed; none: `limits.server_lifetime`.
    pub server_lifetime: Option<Duration>,
    /// What goes into the startup packet to a server, besides user and database.
    pub startup: Vec<(String, String)>,
    /// What is run on a new server before anybody gets it.
    pub connect_query: Option<String>,
    /// Who looks users up instead of `auth.query_user`, by what, and where.
    pub lookup: Lookup,
}

/// How the users of one database entry are looked up; what is `None` comes from `[auth]`.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Lookup {
    /// The role that asks.
    pub user: Option<String>,
    /// The query.
    pub query: Option<String>,
    /// The database, or the entry, that it is asked in.
    pub database: Option<String>,
}

impl Database {
    /// Whether both lead to the same place in the same way, so that a server of one will do for the other.
    #[must_use]
    pub fn leads_where(&self, other: &Self) -> bool {
        let key = |d: &Self| {
            (
                d.target.clone(),
                d.hosts.clone(),
                d.dbname.clone(),
                d.forced.clone(),
                d.startup.clone(),
                d.connect_query.clone(),
            )
        };
        key(self) == key(other) && self.tls == other.tls && self.stays_with_host == other.stays_with_host
    }
}

impl Config {
    /// Bytes of the longest message that passes, where PgBouncer's `max_packet_size` says so.
    pub(crate) fn max_message(&self) -> usize {
        let asked = self.dialect.pgbouncer().map(|loaded| usize::try_from(loaded.settings.max_packet_size));
        asked.and_then(Result::ok).unwrap_or(usize::MAX)
    }

    /// Reads and checks a file.
    ///
    /// # Errors
    /// All problems of the file, with their places and remedies.
    pub fn load(file: &Path) -> Result<Self, ConfigErrors> {
        let unreadable = |e: std::io::Error| {
            ConfigErrors::whole(file, format!("cannot be read: {e}"), "name another file with -c FILE")
        };
        let size = std::fs::metadata(file).map_err(unreadable)?.len();
        if size > MAX_FILE_BYTES {
            return Err(ConfigErrors::whole(file, format!("is longer than {MAX_FILE_BYTES} bytes"), ""));
        }
        let text = std::fs::read_to_string(file).map_err(unreadable)?;
        Self::parse(&text, file)
    }

    /// Checks a text; `file` is for error texts, for relative paths and for the check of its permissions.
    ///
    /// # Errors
    /// All problems of the text, with their places and remedies.
    pub fn parse(text: &str, file: &Path) -> Result<Self, ConfigErrors> {
        build::build(text, file)
    }

    /// The entry for a name that a client asks for.
    #[must_use]
    pub fn database(&self, name: &str) -> Option<&Arc<Database>> {
        self.databases.get(name).or(self.any_database.as_ref())
    }

    /// What differs in a new configuration.
    #[must_use]
    pub fn diff(&self, new: &Self) -> Vec<Change> {
        change::diff(self, new)
    }
}

impl fmt::Display for Config {
    /// One line for a log: how much of everything.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let databases = self.databases.len() + usize::from(self.any_database.is_some());
        write!(f, "{databases} databases, {} clusters, {} users", self.clusters.len(), self.users.len())
    }
}
