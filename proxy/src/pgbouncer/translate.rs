//! From `pgbouncer.ini` to the configuration that TOML makes. What is read from files is not decided here.

use std::collections::BTreeMap;
use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use topology::Address;

use super::connstr::{DatabaseLine, UserLine};
use super::{AuthType, Loaded, Seconds, Settings};
use crate::config::{
    AuthMethod, Config, Database, Dialect, FileMode, ListenAddress, ListenTls, Login, Route, ServerTls,
    SynchronousCommit, Target, User,
};

/// For ever, for waits that have to have an end.
const FOR_EVER: Duration = Duration::from_secs(366 * 24 * 3600);
/// What TOML's defaults are taken from; the entry is replaced.
const DEFAULTS: &str = "[database.none]\nhost = \"localhost\"\n";
/// More than this of anything is as good as no limit.
const MAX_COUNT: usize = 1 << 20;

/// Why an `ini` that could be read cannot be used.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Untranslatable(pub String);

impl fmt::Display for Untranslatable {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for Untranslatable {}

impl Loaded {
    /// The configuration that this says.
    ///
    /// # Errors
    /// What cannot be done.
    pub fn config(&self) -> Result<Config, Untranslatable> {
        let settings = &self.settings;
        let mut config = Config::parse(DEFAULTS, Path::new("")).expect("our own text is right");
        config.file.clone_from(&self.file);
        listen(settings, &mut config)?;
        limits(settings, &mut config);
        config.listen_tls = listen_tls(settings);
        config.auth.method = method(settings.auth_type)?;
        config.auth.users_file = path(settings.auth_file.as_deref().unwrap_or(""));
        lookup(self, &mut config);
        config.users =
            self.users.iter().map(|(name, line)| (name.as_str().into(), Arc::new(user(name, line)))).collect();
        let tls = Arc::new(server_tls(settings));
        let database = |name: &str, line: &DatabaseLine| Arc::new(database(settings, &tls, name, line));
        config.databases =
            self.databases.iter().map(|(name, line)| (name.as_str().into(), database(name, line))).collect();
        config.any_database = self.template.as_ref().map(|line| database("*", line));
        config.clusters = BTreeMap::new();
        config.dialect = Dialect::PgBouncer(Arc::new(self.clone()));
        Ok(config)
    }
}

fn listen(settings: &Settings, config: &mut Config) -> Result<(), Untranslatable> {
    let wrong = |what: &str, value: i32| Untranslatable(format!("{what} {value} is out of range"));
    let port = u16::try_from(settings.listen_port).map_err(|_| wrong("listen_port", settings.listen_port))?;
    let mode =
        u32::try_from(settings.unix_socket_mode).map_err(|_| wrong("unix_socket_mode", settings.unix_socket_mode))?;
    let listen = &mut config.listen;
    listen.address = list(&settings.listen_addr).map(|host| ListenAddress { host: host.to_owned(), port }).collect();
    listen.unix_socket_directory = path(&settings.unix_socket_dir);
    listen.unix_socket_port = Some(port);
    listen.unix_socket_mode = FileMode(mode);
    listen.unix_socket_group = Some(settings.unix_socket_group.clone()).filter(|group| !group.is_empty());
    listen.backlog = u16::try_from(settings.listen_backlog).unwrap_or(u16::MAX);
    listen.workers = 1;
    listen.share_ports = settings.so_reuseport != 0;
    Ok(())
}

fn limits(settings: &Settings, config: &mut Config) {
    let wait = |time: Seconds| time.limit().unwrap_or(FOR_EVER);
    let limits = &mut config.limits;
    limits.max_clients = count(settings.max_client_conn);
    limits.login_timeout = wait(settings.client_login_timeout);
    limits.query_wait_timeout = wait(settings.query_wait_timeout);
    limits.idle_transaction_timeout = settings.idle_transaction_timeout.limit();
    limits.client_idle_timeout = settings.client_idle_timeout.limit();
    limits.server_idle_timeout = settings.server_idle_timeout.limit();
    limits.server_lifetime = Some(settings.server_lifetime.duration());
    limits.server_connect_timeout = wait(settings.server_connect_timeout);
    limits.shutdown_timeout = FOR_EVER;
    limits.max_prepared_statements = count(settings.max_prepared_statements);
}

fn listen_tls(settings: &Settings) -> ListenTls {
    ListenTls {
        sslmode: settings.client_tls_sslmode,
        certificate: path(&settings.client_tls_cert_file),
        key: path(&settings.client_tls_key_file),
        ca: path(&settings.client_tls_ca_file),
    }
}

fn server_tls(settings: &Settings) -> ServerTls {
    ServerTls {
        sslmode: settings.server_tls_sslmode,
        ca: path(&settings.server_tls_ca_file),
        certificate: path(&settings.server_tls_cert_file),
        key: path(&settings.server_tls_key_file),
    }
}

fn method(auth_type: AuthType) -> Result<AuthMethod, Untranslatable> {
    match auth_type {
        AuthType::Any | AuthType::Trust => Ok(AuthMethod::Trust),
        AuthType::Plain => Ok(AuthMethod::Password),
        AuthType::Md5 => Ok(AuthMethod::Md5),
        AuthType::ScramSha256 => Ok(AuthMethod::ScramSha256),
        AuthType::Cert | AuthType::Hba | AuthType::Ldap | AuthType::Pam => {
            Err(Untranslatable(format!("auth_type {auth_type:?} is not supported")))
        }
    }
}

fn lookup(loaded: &Loaded, config: &mut Config) {
    config.auth.query_user.clone_from(&loaded.settings.auth_user);
    config.auth.query = Some(loaded.settings.auth_query.clone());
    config.auth.query_database.clone_from(&loaded.settings.auth_dbname);
}

fn user(name: &str, line: &UserLine) -> User {
    User {
        name: name.to_owned(),
        password: None,
        pool_mode: line.pool_mode,
        pool_size: line.pool_size.filter(|size| *size >= 0).map(count),
        max_clients: line.max_user_client_connections.filter(|limit| *limit > 0).map(count),
    }
}

fn database(settings: &Settings, tls: &Arc<ServerTls>, name: &str, line: &DatabaseLine) -> Database {
    let sized = |own: Option<i32>, global: i32| count(own.filter(|own| *own >= 0).unwrap_or(global));
    let address = address(settings, line.host.as_deref().and_then(|hosts| list(hosts).next()), line.port);
    let dbname = line.dbname.clone().or_else(|| (name != "*").then(|| name.to_owned()));
    Database {
        name: name.into(),
        target: Target::Server(address),
        tls: tls.clone(),
        dbname: dbname.map(|dbname| dbname.as_str().into()),
        forced: line.user.as_deref().map(|user| Login { user: user.into(), password: line.password.clone() }),
        pool_mode: line.pool_mode.unwrap_or(settings.pool_mode),
        pool_size: sized(line.pool_size, settings.default_pool_size),
        min_pool_size: sized(line.min_pool_size, settings.min_pool_size),
        max_wait: settings.query_wait_timeout.limit().unwrap_or(FOR_EVER),
        route: Route::Primary,
        max_lag: FOR_EVER,
        // nobody manages a cluster here
        resolve_commits: false,
        synchronous_commit: SynchronousCommit::Allow,
    }
}

/// Where a server answers; without a host at its Unix socket.
fn address(settings: &Settings, host: Option<&str>, port: u16) -> Address {
    match host {
        None if settings.unix_socket_dir.is_empty() => Address::Unix("/tmp".into(), port),
        None => Address::Unix(PathBuf::from(&settings.unix_socket_dir), port),
        Some(host) if host.starts_with(['/', '@']) => Address::Unix(PathBuf::from(host), port),
        Some(host) => Address::Tcp(host.to_owned(), port),
    }
}

/// The parts of a list with commas, without the blanks around them.
pub(super) fn list(text: &str) -> impl Iterator<Item = &str> {
    text.split(',').map(str::trim).filter(|part| !part.is_empty())
}

fn path(text: &str) -> Option<PathBuf> {
    (!text.is_empty()).then(|| PathBuf::from(text))
}

fn count(number: i32) -> usize {
    usize::try_from(number).unwrap_or(0).min(MAX_COUNT)
}
