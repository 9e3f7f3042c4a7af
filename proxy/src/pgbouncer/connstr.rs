//! The values of `[databases]`, `[users]` and `[peers]`: `key=value` pairs between blanks. Not where they lead.

use super::value::{SettingValue, leading};
use crate::config::{PoolMode, Secret};

/// Longest name of a database in bytes.
const MAX_DBNAME: usize = 63;
/// Longest name of a user in bytes.
const MAX_USERNAME: usize = 127;

/// An entry of `[databases]`. What is `None` comes from `[pgbouncer]`.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
#[allow(missing_docs, reason = "the keys are PgBouncer's")]
pub struct DatabaseLine {
    pub dbname: Option<String>,
    pub host: Option<String>,
    pub port: u16,
    pub user: Option<String>,
    pub password: Option<Secret>,
    pub auth_user: Option<String>,
    pub auth_query: Option<String>,
    pub auth_dbname: Option<String>,
    pub pool_size: Option<i32>,
    pub min_pool_size: Option<i32>,
    pub reserve_pool_size: Option<i32>,
    pub max_db_connections: Option<i32>,
    pub max_db_client_connections: Option<i32>,
    pub server_lifetime: Option<i32>,
    pub pool_mode: Option<PoolMode>,
    /// `load_balance_hosts=disable`: stay with a host until it fails.
    pub stays_with_host: bool,
    pub connect_query: Option<String>,
    /// What goes into the startup packet to a server, as it is called there.
    pub startup: Vec<(&'static str, String)>,
}

/// An entry of `[users]`.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
#[allow(missing_docs, reason = "the keys are PgBouncer's")]
pub struct UserLine {
    pub pool_mode: Option<PoolMode>,
    pub pool_size: Option<i32>,
    pub reserve_pool_size: Option<i32>,
    pub max_user_connections: Option<i32>,
    pub max_user_client_connections: Option<i32>,
    pub query_timeout: Option<i32>,
    pub idle_transaction_timeout: Option<i32>,
    pub transaction_timeout: Option<i32>,
    pub client_idle_timeout: Option<i32>,
}

/// An entry of `[peers]`.
#[derive(Debug, Clone, PartialEq, Eq)]
#[allow(missing_docs, reason = "the keys are PgBouncer's")]
pub struct PeerLine {
    pub host: String,
    pub port: u16,
    pub pool_size: Option<i32>,
}

/// Parameters of a startup packet that an entry may fix: its key, and the parameter's name there.
const STARTUP: [&str; 4] = ["client_encoding", "datestyle", "timezone", "application_name"];

impl DatabaseLine {
    /// Reads the value of an entry.
    ///
    /// # Errors
    /// PgBouncer's words for what is wrong.
    pub(super) fn read(name: &str, text: &str) -> Result<Self, String> {
        if name == "pgbouncer" {
            return Err("database name \"pgbouncer\" is reserved".to_owned());
        }
        if name.len() > MAX_DBNAME {
            return Err(format!("too long db name: {name}"));
        }
        let mut line = Self { port: 5432, ..Self::default() };
        for (key, value) in pairs(text, "syntax error in connection string")? {
            line.set(&key, value)?;
        }
        line.startup.sort_by_key(|(key, _)| STARTUP.iter().position(|known| known == key));
        Ok(line)
    }

    fn set(&mut self, key: &str, value: String) -> Result<(), String> {
        match key {
            "dbname" => self.dbname = Some(value),
            "host" => self.host = Some(value),
            "port" => self.port = port(&value)?,
            "user" => self.user = Some(value),
            "password" => self.password = Some(Secret::new(&value)),
            "auth_user" => self.auth_user = Some(value),
            "auth_query" => self.auth_query = Some(value),
            "auth_dbname" => self.auth_dbname = Some(value),
            "pool_size" => self.pool_size = Some(leading(&value)),
            "min_pool_size" => self.min_pool_size = Some(leading(&value)),
            "reserve_pool" | "reserve_pool_size" => self.reserve_pool_size = Some(leading(&value)),
            "max_db_connections" => self.max_db_connections = Some(leading(&value)),
            "max_db_client_connections" => self.max_db_client_connections = Some(leading(&value)),
            "server_lifetime" => self.server_lifetime = Some(leading(&value)),
            "pool_mode" => self.pool_mode = Some(pool_mode(&value)?),
            "load_balance_hosts" => {
                self.stays_with_host = match value.to_ascii_lowercase().as_str() {
                    "disable" => true,
                    "round-robin" => false,
                    _ => return Err(format!("invalid load_balance_hosts: {value}")),
                };
            }
            "connect_query" => self.connect_query = Some(value),
            key => match STARTUP.iter().find(|known| **known == key) {
                Some(known) => {
                    self.startup.retain(|(set, _)| set != known);
                    self.startup.push((known, value));
                }
                None => return Err(format!("unrecognized connection parameter: {key}")),
            },
        }
        Ok(())
    }
}

impl UserLine {
    /// Reads the value of an entry.
    ///
    /// # Errors
    /// PgBouncer's words for what is wrong.
    pub(super) fn read(name: &str, text: &str) -> Result<Self, String> {
        if name.len() > MAX_USERNAME {
            return Err(format!("too long user name: {name}"));
        }
        let mut line = Self::default();
        for (key, value) in pairs(text, "syntax error in user settings")? {
            let number = Some(leading(&value));
            match key.as_str() {
                "pool_mode" => line.pool_mode = Some(pool_mode(&value)?),
                "pool_size" => line.pool_size = number,
                "reserve_pool_size" => line.reserve_pool_size = number,
                "max_user_connections" => line.max_user_connections = number,
                "max_user_client_connections" => line.max_user_client_connections = number,
                "query_timeout" => line.query_timeout = number,
                "idle_transaction_timeout" => line.idle_transaction_timeout = number,
                "transaction_timeout" => line.transaction_timeout = number,
                "client_idle_timeout" => line.client_idle_timeout = number,
                key => return Err(format!("unrecognized user parameter: {key}")),
            }
        }
        Ok(line)
    }
}

impl PeerLine {
    /// Reads the value of an entry, and its name as a number.
    ///
    /// # Errors
    /// PgBouncer's words for what is wrong.
    pub(super) fn read(name: &str, text: &str) -> Result<(u16, Self), String> {
        let id = name.parse().ok().filter(|id| *id > 0);
        let id = id.ok_or("ids of peers must be a number larger than 0 and at most 65536")?;
        let (mut host, mut at, mut pool_size) = (None, 6432, None);
        for (key, value) in pairs(text, "syntax error in connection string")? {
            match key.as_str() {
                "host" => host = Some(value),
                "port" => at = port(&value)?,
                "pool_size" => pool_size = Some(leading(&value)),
                key => return Err(format!("unrecognized connection parameter: {key}")),
            }
        }
        let host = host.ok_or_else(|| format!("host was not provided for peer {id}"))?;
        Ok((id, Self { host, port: at, pool_size }))
    }
}

fn pool_mode(value: &str) -> Result<PoolMode, String> {
    <PoolMode as SettingValue>::read(value).map_err(|_| format!("invalid pool mode: {value}"))
}

fn port(value: &str) -> Result<u16, String> {
    let port = u16::try_from(leading(value)).ok().filter(|port| *port != 0);
    port.ok_or_else(|| format!("invalid port: {value}"))
}

/// The pairs of a text, quotes taken off.
fn pairs(text: &str, error: &str) -> Result<Vec<(String, String)>, String> {
    let mut pairs = Vec::new();
    let mut rest = skip_blanks(text);
    while !rest.is_empty() {
        let end = rest.find(['=', ' ']).unwrap_or(rest.len());
        let (key, behind) = rest.split_at(end);
        let behind = skip_blanks(behind).strip_prefix('=').filter(|_| !key.is_empty()).ok_or(error)?;
        let (value, behind) = value(skip_blanks(behind)).filter(|(value, _)| !value.is_empty()).ok_or(error)?;
        pairs.push((key.to_owned(), value));
        rest = skip_blanks(behind);
    }
    Ok(pairs)
}

fn value(text: &str) -> Option<(String, &str)> {
    let Some(mut rest) = text.strip_prefix('\'') else {
        let (value, behind) = text.split_at(text.find(' ').unwrap_or(text.len()));
        return Some((value.to_owned(), behind));
    };
    let mut value = String::new();
    loop {
        let (part, behind) = rest.split_once('\'')?;
        value.push_str(part);
        match behind.strip_prefix('\'') {
            Some(more) => {
                value.push('\'');
                rest = more;
            }
            None => return Some((value, behind)),
        }
    }
}

fn skip_blanks(text: &str) -> &str {
    text.trim_start_matches([' ', '\t'])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pairs_are_read_as_pgbouncer_reads_them() {
        let table: &[(&str, &[(&str, &str)])] = &[
            ("", &[]),
            ("  ", &[]),
            ("a=1 b=2", &[("a", "1"), ("b", "2")]),
            (" a = 1\t b ='x y'", &[("a", "1\t"), ("b", "x y")]),
            ("a='it''s' b=2", &[("a", "it's"), ("b", "2")]),
            ("a='x'b=1", &[("a", "x"), ("b", "1")]),
            ("a=b=c", &[("a", "b=c")]),
        ];
        for (text, wanted) in table {
            let read = pairs(text, "no").unwrap();
            let read: Vec<_> = read.iter().map(|(key, value)| (key.as_str(), value.as_str())).collect();
            assert_eq!(read, *wanted, "{text:?}");
        }
        for text in ["a", "a b=1", "=1", "a=", "a= ", "a='x", "a=''", "a='x''"] {
            assert_eq!(pairs(text, "no"), Err("no".to_owned()), "{text:?}");
        }
    }

    #[test]
    fn what_is_wrong_is_said_in_pgbouncers_words() {
        let database = |text: &str| DatabaseLine::read("d", text).err().unwrap_or_default();
        assert_eq!(database("port=x"), "invalid port: x");
        assert_eq!(database("port=0"), "invalid port: 0");
        assert_eq!(database("prt=1"), "unrecognized connection parameter: prt");
        assert_eq!(database("host"), "syntax error in connection string");
        assert_eq!(database("pool_mode=x"), "invalid pool mode: x");
        assert_eq!(database("port=5432x pool_size=3 reserve_pool=2"), "");
        assert!(DatabaseLine::read("pgbouncer", "").is_err());
        assert!(DatabaseLine::read(&"d".repeat(63), "").is_ok());
        assert!(DatabaseLine::read(&"d".repeat(64), "").is_err());
        let user = |text: &str| UserLine::read("u", text).err().unwrap_or_default();
        assert_eq!(user("foo=1"), "unrecognized user parameter: foo");
        assert_eq!(user("pool_mode=x"), "invalid pool mode: x");
        assert_eq!(user("x"), "syntax error in user settings");
        let peer = |name: &str, text: &str| PeerLine::read(name, text).err().unwrap_or_default();
        assert_eq!(peer("0", "host=x"), "ids of peers must be a number larger than 0 and at most 65536");
        assert_eq!(peer("1", "port=1"), "host was not provided for peer 1");
        assert_eq!(peer("65535", "host=x"), "");
    }
}
