//! `primary_conninfo`: written for a standby, and read back to learn whom it follows. Never logged, it holds a password.

use std::fmt::Write as _;

use crate::{Address, Secret};

/// What a standby needs to log in to its primary: a template, the same for all nodes of a cluster.
#[derive(Debug, Clone, Default)]
pub struct ReplicationLogin {
    /// Role with `REPLICATION`.
    pub user: String,
    /// Its password. Better is a `passfile` in `extra`: PostgreSQL writes `ALTER SYSTEM` into its log if
    /// `log_statement` is `ddl` or `all`.
    pub password: Option<Secret>,
    /// More libpq keywords: `sslmode`, `sslrootcert`, `passfile`, …
    pub extra: Vec<(String, String)>,
}

impl ReplicationLogin {
    /// The `primary_conninfo` with which `standby` follows the node at `primary`. `application_name` is the standby's
    /// name: the rule knows it by that.
    #[must_use]
    pub(crate) fn conninfo(&self, standby: &str, primary: &Address) -> Secret {
        let mut text = String::new();
        let (host, port) = match primary {
            Address::Tcp(host, port) => (host.clone(), port),
            Address::Unix(directory, port) => (directory.display().to_string(), port),
        };
        push(&mut text, "host", &host);
        push(&mut text, "port", &port.to_string());
        push(&mut text, "user", &self.user);
        if let Some(password) = &self.password {
            push(&mut text, "password", password.expose());
        }
        push(&mut text, "application_name", standby);
        for (key, value) in DEFAULTS {
            if !self.extra.iter().any(|(k, _)| k == key) {
                push(&mut text, key, value);
            }
        }
        for (key, value) in &self.extra {
            push(&mut text, key, value);
        }
        Secret::new(text)
    }
}

/// A receiver whose primary vanished without a word must not wait for the kernel's two hours.
const DEFAULTS: [(&str, &str); 5] = [
    ("connect_timeout", "2"),
    ("keepalives_idle", "5"),
    ("keepalives_interval", "2"),
    ("keepalives_count", "3"),
    ("tcp_user_timeout", "10000"),
];

fn push(text: &mut String, key: &str, value: &str) {
    let space = if text.is_empty() { "" } else { " " };
    let value = value.replace('\\', "\\\\").replace('\'', "\\'");
    let _ = write!(text, "{space}{key}='{value}'");
}

/// Whom a `primary_conninfo` names: host or socket directory, and port. `None` if it is empty.
/// Keyword/value form only ("34.1.1.1. Keyword/Value Connection Strings"); of a URI, or of a text that libpq would refuse,
/// host and port stay empty and 5432.
pub(crate) fn upstream(conninfo: &str) -> Option<(String, u16)> {
    if conninfo.trim().is_empty() {
        return None;
    }
    let mut upstream = (String::new(), 5432);
    let mut rest = conninfo;
    while let Some((key, value, tail)) = pair(rest) {
        match key {
            "host" => upstream.0 = value,
            "hostaddr" if upstream.0.is_empty() => upstream.0 = value,
            "port" => upstream.1 = value.parse().unwrap_or(5432),
            _ => {}
        }
        rest = tail;
    }
    Some(upstream)
}

fn pair(text: &str) -> Option<(&str, String, &str)> {
    let (key, rest) = text.split_once('=')?;
    let mut value = String::new();
    let rest = rest.trim_start();
    let (quoted, rest) = match rest.strip_prefix('\'') {
        Some(inner) => (true, inner),
        None => (false, rest),
    };
    let mut letters = rest.char_indices();
    while let Some((at, letter)) = letters.next() {
        match letter {
            '\\' => value.extend(letters.next().map(|(_, escaped)| escaped)),
            '\'' if quoted => return Some((key.trim(), value, &rest[at + 1..])),
            space if !quoted && space.is_ascii_whitespace() => return Some((key.trim(), value, &rest[at..])),
            other => value.push(other),
        }
    }
    if quoted { None } else { Some((key.trim(), value, "")) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_is_read_back() {
        let login = ReplicationLogin {
            user: "rep".into(),
            password: Some(Secret::new(r"a'b\c d=e")),
            extra: vec![("sslmode".into(), "verify-full".into()), ("tcp_user_timeout".into(), "3000".into())],
        };
        let text = login.conninfo("n'2", &Address::Tcp("10.0.0.1".into(), 5433));
        assert_eq!(
            text.expose(),
            r"host='10.0.0.1' port='5433' user='rep' password='a\'b\\c d=e' application_name='n\'2' connect_timeout='2' keepalives_idle='5' keepalives_interval='2' keepalives_count='3' sslmode='verify-full' tcp_user_timeout='3000'"
        );
        assert_eq!(upstream(text.expose()), Some(("10.0.0.1".into(), 5433)));
        assert_eq!(format!("{login:?}").matches("a'b").count(), 0);
    }

    #[test]
    fn others_conninfo_is_understood() {
        assert_eq!(upstream(""), None);
        assert_eq!(upstream("  "), None);
        assert_eq!(upstream("user=postgres host = /run/pg port=5432"), Some(("/run/pg".into(), 5432)));
        assert_eq!(upstream("host='it\\'s' port='77'"), Some(("it's".into(), 77)));
        assert_eq!(upstream("hostaddr=10.0.0.9"), Some(("10.0.0.9".into(), 5432)));
        assert_eq!(upstream("postgresql://h:1/x"), Some((String::new(), 5432)));
        assert_eq!(upstream("host='open"), Some((String::new(), 5432)));
    }
}
