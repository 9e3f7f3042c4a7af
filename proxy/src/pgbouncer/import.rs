//! `pgsteady import`: what a `pgbouncer.ini` says, as `pgsteady.toml`, with a line for each thing that will be different.

use std::path::Path;
use std::time::Duration;

use toml::{Table, Value};
use topology::Address;

use super::load::{Grave, Loaded};
use super::settings::SETTINGS;
use crate::config::{AuthMethod, Config, Database, PoolMode, SslMode, Target};

/// What changes for everybody, whatever the file says.
const CHANGES: [&str; 4] = [
    "SET in transaction mode follows the session instead of staying on the server; what cannot follow keeps its server.",
    "A startup parameter that PgBouncer would refuse is set on each server that the session gets.",
    "A client stays when its server is lost, and is told 40001 or 08007; after a failed connect it is tried again at once.",
    "Clients authenticate with channel binding where they have TLS; an unknown user looks like a wrong password.",
];

/// The text of a `pgsteady.toml` that does what this file says.
///
/// # Errors
/// The file cannot be read to its end: what PgBouncer would log.
pub fn import(file: &Path) -> Result<String, String> {
    let (good, loaded, said) = Loaded::new(file, 0).read();
    if !good {
        let errors: Vec<_> =
            said.into_iter().filter(|(grave, _)| *grave == Grave::Error).map(|(_, text)| text).collect();
        return Err(errors.join("\n"));
    }
    let config = loaded.config().map_err(|error| error.to_string())?;
    let mut text = format!("# Made of {} by `pgsteady import`. What is different from PgBouncer:\n", file.display());
    for change in CHANGES.iter().map(|change| (*change).to_owned()).chain(left_out(&loaded)) {
        text += &format!("# - {change}\n");
    }
    text +=
        "# With [cluster.NAME] instead of a host, a database has routing and failover: see `pgsteady docs config`.\n\n";
    text += &toml::to_string_pretty(&table(&config, &loaded)).map_err(|error| error.to_string())?;
    Ok(text)
}

/// Settings that are not their default and have no counterpart.
fn left_out(loaded: &Loaded) -> Vec<String> {
    const TAKEN: &[&str] = &[
        "listen_addr",
        "listen_port",
        "unix_socket_dir",
        "unix_socket_mode",
        "unix_socket_group",
        "listen_backlog",
        "auth_type",
        "auth_file",
        "auth_hba_file",
        "auth_ident_file",
        "auth_ldap_options",
        "auth_query",
        "auth_user",
        "auth_dbname",
        "admin_users",
        "stats_users",
        "pool_mode",
        "default_pool_size",
        "min_pool_size",
        "max_client_conn",
        "client_login_timeout",
        "query_wait_timeout",
        "idle_transaction_timeout",
        "client_idle_timeout",
        "query_timeout",
        "transaction_timeout",
        "server_idle_timeout",
        "server_lifetime",
        "server_connect_timeout",
        "max_prepared_statements",
        "client_tls_sslmode",
        "client_tls_cert_file",
        "client_tls_key_file",
        "client_tls_ca_file",
        "client_tls_protocols",
        "client_tls_ciphers",
        "client_tls13_ciphers",
        "server_tls_sslmode",
        "server_tls_cert_file",
        "server_tls_key_file",
        "server_tls_ca_file",
        "server_tls_protocols",
        "server_tls_ciphers",
        "server_tls13_ciphers",
        "conffile",
        "verbose",
        "ignore_startup_parameters",
        "track_extra_parameters",
    ];
    SETTINGS
        .iter()
        .filter(|setting| !TAKEN.contains(&setting.name))
        .filter_map(|setting| {
            let shown = setting.shown(&loaded.settings)?;
            let is_default = setting.default == Some(shown.as_str());
            (!is_default).then(|| format!("{} = {shown} has no counterpart.", setting.name))
        })
        .collect()
}

fn table(config: &Config, loaded: &Loaded) -> Table {
    let settings = &loaded.settings;
    let mut root = Table::new();
    let mut listen = Table::new();
    let addresses = config.listen.address.iter().map(|address| Value::from(address.to_string()));
    listen.insert("address".to_owned(), Value::Array(addresses.collect()));
    put(&mut listen, "unix_socket_directory", path(config.listen.unix_socket_directory.as_deref()));
    let tls = &config.listen_tls;
    if tls.sslmode != SslMode::Disable {
        let mut section = Table::new();
        section.insert("sslmode".to_owned(), tls.sslmode.word().into());
        put(&mut section, "certificate", path(tls.certificate.as_deref()));
        put(&mut section, "key", path(tls.key.as_deref()));
        put(&mut section, "ca", path(tls.ca.as_deref()));
        listen.insert("tls".to_owned(), section.into());
    }
    root.insert("listen".to_owned(), listen.into());
    root.insert("limits".to_owned(), limits(config).into());
    root.insert("auth".to_owned(), auth(config, settings.auth_file.as_deref()).into());
    let mut databases = Table::new();
    for (name, database) in
        config.databases.iter().map(|(name, d)| (&**name, d)).chain(config.any_database.iter().map(|d| ("*", d)))
    {
        databases.insert(name.to_owned(), entry(database).into());
    }
    root.insert("database".to_owned(), databases.into());
    let users: Vec<Value> = config
        .users
        .values()
        .map(|user| {
            let mut section = Table::new();
            section.insert("name".to_owned(), user.name.as_str().into());
            put(&mut section, "pool_mode", user.pool_mode.map(|mode| mode_word(mode).into()));
            put(&mut section, "pool_size", user.pool_size.map(number));
            put(&mut section, "max_clients", user.max_clients.map(number));
            put(&mut section, "max_servers", user.max_servers.map(number));
            put(&mut section, "query_timeout", user.query_timeout.map(time));
            section.into()
        })
        .collect();
    if !users.is_empty() {
        root.insert("user".to_owned(), Value::Array(users));
    }
    root
}

fn limits(config: &Config) -> Table {
    let limits = &config.limits;
    let mut section = Table::new();
    section.insert("max_clients".to_owned(), number(limits.max_clients));
    section.insert("max_prepared_statements".to_owned(), number(limits.max_prepared_statements));
    for (key, limit) in [
        ("login_timeout", Some(limits.login_timeout)),
        ("query_wait_timeout", Some(limits.query_wait_timeout)),
        ("server_connect_timeout", Some(limits.server_connect_timeout)),
        ("server_idle_timeout", limits.server_idle_timeout),
        ("server_lifetime", limits.server_lifetime),
        ("idle_transaction_timeout", limits.idle_transaction_timeout),
        ("client_idle_timeout", limits.client_idle_timeout),
        ("query_timeout", limits.query_timeout),
        ("transaction_timeout", limits.transaction_timeout),
    ] {
        put(&mut section, key, limit.map(time));
    }
    section
}

fn auth(config: &Config, users_file: Option<&str>) -> Table {
    let auth = &config.auth;
    let mut section = Table::new();
    let method = match auth.method {
        AuthMethod::Any => "any",
        AuthMethod::Trust => "trust",
        AuthMethod::Password => "password",
        AuthMethod::Md5 => "md5",
        AuthMethod::ScramSha256 => "scram-sha-256",
        AuthMethod::Cert => "cert",
        AuthMethod::Ldap => "ldap",
        AuthMethod::Pam => "pam",
        AuthMethod::Hba => "hba",
    };
    section.insert("method".to_owned(), method.into());
    put(&mut section, "users_file", users_file.map(Value::from));
    put(&mut section, "hba_file", path(auth.hba_file.as_deref()));
    put(&mut section, "ident_file", path(auth.ident_file.as_deref()));
    if auth.method == AuthMethod::Pam {
        section.insert("pam_service".to_owned(), auth.pam_service.as_str().into());
    }
    put(&mut section, "ldap_options", auth.ldap_options.as_deref().map(Value::from));
    if auth.query_user.is_some() {
        put(&mut section, "query_user", auth.query_user.as_deref().map(Value::from));
        put(&mut section, "query", auth.query.as_deref().map(Value::from));
        put(&mut section, "query_database", auth.query_database.as_deref().map(Value::from));
    }
    for (key, list) in [("console_admins", &auth.console_admins), ("console_watchers", &auth.console_watchers)] {
        put(&mut section, key, list.as_deref().filter(|list| !list.is_empty()).map(Value::from));
    }
    section
}

fn entry(database: &Database) -> Table {
    let mut section = Table::new();
    if let Target::Server(address) = &database.target {
        let (host, port) = match address {
            Address::Tcp(host, port) => (host.clone(), *port),
            Address::Unix(directory, port) => (directory.display().to_string(), *port),
        };
        section.insert("host".to_owned(), host.into());
        section.insert("port".to_owned(), i64::from(port).into());
    }
    put(&mut section, "dbname", database.dbname.as_deref().map(Value::from));
    if let Some(forced) = &database.forced {
        section.insert("user".to_owned(), (*forced.user).into());
        put(&mut section, "password", forced.password.as_ref().map(|secret| secret.reveal().into()));
    }
    section.insert("pool_mode".to_owned(), mode_word(database.pool_mode).into());
    section.insert("pool_size".to_owned(), number(database.pool_size));
    if database.min_pool_size > 0 {
        section.insert("min_pool_size".to_owned(), number(database.min_pool_size.min(database.pool_size)));
    }
    section
}

fn mode_word(mode: PoolMode) -> &'static str {
    match mode {
        PoolMode::Session => "session",
        PoolMode::Transaction => "transaction",
        PoolMode::Statement => "statement",
    }
}

fn put(section: &mut Table, key: &str, value: Option<Value>) {
    if let Some(value) = value {
        section.insert(key.to_owned(), value);
    }
}

fn number(n: usize) -> Value {
    Value::from(i64::try_from(n).unwrap_or(i64::MAX))
}

fn time(time: Duration) -> Value {
    humantime::format_duration(time).to_string().into()
}

fn path(path: Option<&Path>) -> Option<Value> {
    path.map(|path| path.display().to_string().into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_imported_is_a_configuration_that_says_the_same() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("pgbouncer.ini");
        let ini = "[databases]\napp = host=db port=5433 dbname=real user=joe password=secret pool_size=7\n* = host=/run\n\
                   [users]\nann = pool_mode=session max_user_connections=3\n[pgbouncer]\nlisten_addr = 127.0.0.1\nauth_type = md5\n\
                   pool_mode = transaction\nserver_lifetime = 120\nquery_timeout = 1.5\nadmin_users = root\nserver_round_robin = 1\n";
        std::fs::write(&file, ini).unwrap();
        let text = import(&file).unwrap();
        assert!(text.contains("# - server_round_robin = 1 has no counterpart."), "{text}");
        let config = Config::parse(&text, Path::new("")).unwrap_or_else(|errors| panic!("{text}\n{errors}"));
        let app = &config.databases["app"];
        assert_eq!(app.target, Target::Server(Address::Tcp("db".to_owned(), 5433)));
        assert_eq!((app.pool_size, app.pool_mode), (7, PoolMode::Transaction));
        assert_eq!(app.forced.as_ref().map(|forced| &*forced.user), Some("joe"));
        assert_eq!(config.limits.query_timeout, Some(Duration::from_millis(1500)));
        assert_eq!(config.limits.server_lifetime, Some(Duration::from_secs(120)));
        assert_eq!(config.users["ann"].max_servers, Some(3));
        assert_eq!(config.auth.console_admins.as_deref(), Some("root"));
        assert!(config.any_database.is_some());
        std::fs::write(&file, "[pgbouncer]\nnonsense = 1\n").unwrap();
        assert!(import(&file).unwrap_err().contains("unknown parameter: pgbouncer/nonsense"));
    }
}
