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
    AuthMethod, Config, Database, Dialect, FileMode, ListenAddress, ListenTls, Login, Lookup, Route, ServerTls,
    SynchronousCommit, Target, User,
};

/// For ever, for waits that have to have an end.
const FOR_EVER: Duration = Duration::from_secs(366 * 24 * 3600);
/// What TOML's defaults are taken from; the entry is replaced.
const DEFAULTS: &str = "[database.none]\nhost = \"localhost\"\n";
/// More than this of anything is as good as no limit.
const MAX_COUNT: usize = 1 << 20;
/// The file of `/etc/pam.d` with PgBouncer's rules.
const PAM_SERVICE: &str = "pgbouncer";

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
        config.auth.method = method(settings.auth_type);
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
    limits.query_timeout = settings.query_timeout.limit();
    limits.transaction_timeout = settings.transaction_timeout.limit();
    limits.hold_clients = MAX_COUNT; // it counts all who wait
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
        protocols: Some(settings.client_tls_protocols.clone()),
        ciphers: ciphers(&settings.client_tls_ciphers),
        tls13_ciphers: settings.client_tls13_ciphers.clone().filter(|suites| !suites.is_empty()),
    }
}

fn server_tls(settings: &Settings) -> ServerTls {
    ServerTls {
        sslmode: settings.server_tls_sslmode,
        ca: path(&settings.server_tls_ca_file),
        protocols: Some(settings.server_tls_protocols.clone()),
        ciphers: ciphers(&settings.server_tls_ciphers),
        tls13_ciphers: settings.server_tls13_ciphers.clone().filter(|suites| !suites.is_empty()),
        certificate: path(&settings.server_tls_cert_file),
        key: path(&settings.server_tls_key_file),
    }
}

/// OpenSSL's text for what libtls calls a list of ciphers; `None`: OpenSSL's own choice.
fn ciphers(text: &str) -> Option<String> {
    match text {
        "" | "default" | "secure" => None,
        "normal" | "fast" | "compat" => Some("HIGH:!aNULL".to_owned()),
        "all" => Some("ALL:!aNULL:!eNULL".to_owned()),
        other => Some(other.to_owned()),
    }
}

fn method(auth_type: AuthType) -> AuthMethod {
    match auth_type {
        AuthType::Any => AuthMethod::Any,
        AuthType::Trust => AuthMethod::Trust,
        AuthType::Plain => AuthMethod::Password,
        AuthType::Md5 => AuthMethod::Md5,
        AuthType::ScramSha256 => AuthMethod::ScramSha256,
        AuthType::Cert => AuthMethod::Cert,
        AuthType::Hba => AuthMethod::Hba,
        AuthType::Ldap => AuthMethod::Ldap,
        AuthType::Pam => AuthMethod::Pam,
    }
}

fn lookup(loaded: &Loaded, config: &mut Config) {
    config.auth.query_user.clone_from(&loaded.settings.auth_user);
    config.auth.query = Some(loaded.settings.auth_query.clone());
    config.auth.query_database.clone_from(&loaded.settings.auth_dbname);
    config.auth.hba_file = path(&loaded.settings.auth_hba_file);
    config.auth.ident_file = path(loaded.settings.auth_ident_file.as_deref().unwrap_or(""));
    config.auth.ldap_options.clone_from(&loaded.settings.auth_ldap_options);
    config.auth.pam_service = PAM_SERVICE.to_owned();
    config.auth.console_admins = Some(loaded.settings.admin_users.clone());
    config.auth.console_watchers = Some(loaded.settings.stats_users.clone());
}

fn user(name: &str, line: &UserLine) -> User {
    let seconds =
        |time: Option<i32>| time.filter(|time| *time > 0).map(|time| Duration::from_secs(time.unsigned_abs().into()));
    User {
        name: name.to_owned(),
        password: None,
        pool_mode: line.pool_mode,
        pool_size: line.pool_size.filter(|size| *size >= 0).map(count),
        max_clients: line.max_user_client_connections.filter(|limit| *limit > 0).map(count),
        max_servers: line.max_user_connections.filter(|limit| *limit > 0).map(count),
        reserve_pool_size: line.reserve_pool_size.filter(|size| *size >= 0).map(count),
        query_timeout: seconds(line.query_timeout),
        transaction_timeout: seconds(line.transaction_timeout),
        idle_transaction_timeout: seconds(line.idle_transaction_timeout),
        client_idle_timeout: seconds(line.client_idle_timeout),
    }
}

fn database(settings: &Settings, tls: &Arc<ServerTls>, name: &str, line: &DatabaseLine) -> Database {
    let sized = |own: Option<i32>, global: i32| count(own.filter(|own| *own >= 0).unwrap_or(global));
    let limited = |own: Option<i32>, global: i32| count(own.filter(|own| *own > 0).unwrap_or(global));
    let hosts: Vec<Address> = match line.host.as_deref() {
        Some(hosts) => list(hosts).map(|host| address(settings, Some(host), line.port)).collect(),
        None => Vec::new(),
    };
    let address = hosts.first().cloned().unwrap_or_else(|| address(settings, None, line.port));
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
        hosts: if hosts.len() > 1 { hosts } else { Vec::new() },
        stays_with_host: line.stays_with_host,
        reserve_pool_size: sized(line.reserve_pool_size, settings.reserve_pool_size),
        max_servers: limited(line.max_db_connections, settings.max_db_connections),
        max_clients: limited(line.max_db_client_connections, settings.max_db_client_connections),
        server_lifetime: line
            .server_lifetime
            .filter(|seconds| *seconds > 0)
            .map(|seconds| Duration::from_secs(seconds.unsigned_abs().into())),
        startup: line.startup.iter().map(|(name, value)| ((*name).to_owned(), value.clone())).collect(),
        connect_query: line.connect_query.clone().filter(|query| !query.is_empty()),
        lookup: Lookup {
            user: line.auth_user.clone(),
            query: line.auth_query.clone(),
            database: line.auth_dbname.clone(),
        },
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
