//! The node that another one copies, follows or is rewound to, and how to log in to it.

use std::fmt::Write as _;
use std::time::Duration;

use tokio_postgres::{Client, Config, NoTls};

use super::NodeError;
use crate::Address;

/// A running primary, as others see it.
#[derive(Clone)]
pub struct Upstream {
    /// Where it answers.
    pub address: Address,
    /// Role with `REPLICATION`; for a rewind also superuser or one with the grants of pg_rewind's manual page.
    pub user: String,
    /// Its password for our own statements. PostgreSQL's programs and receivers take theirs from the password file of their
    /// own node ([`super::Site::passfile`]), so that it is in no configuration file and on no command line.
    pub password: Option<String>,
}

/// Bound on a login to it.
const LOGIN: Duration = Duration::from_secs(5);
/// A receiver whose primary vanished without a word must not wait for the kernel's two hours.
const LINK: [(&str, &str); 5] = [
    ("connect_timeout", "2"),
    ("keepalives_idle", "5"),
    ("keepalives_interval", "2"),
    ("keepalives_count", "3"),
    ("tcp_user_timeout", "10000"),
];

impl Upstream {
    /// One that lets `user` in without a password.
    #[must_use]
    pub fn trusting(address: Address, user: &str) -> Self {
        Self { address, user: user.to_owned(), password: None }
    }

    /// Keywords and values for libpq (PostgreSQL 34.1.1.1), under `application_name`; no secret is in it.
    #[must_use]
    pub fn conninfo(&self, application_name: &str, database: Option<&str>) -> String {
        let (host, port) = match &self.address {
            Address::Tcp(host, port) => (host.clone(), port),
            Address::Unix(folder, port) => (folder.display().to_string(), port),
        };
        let mut text = String::new();
        push(&mut text, "host", &host);
        push(&mut text, "port", &port.to_string());
        push(&mut text, "user", &self.user);
        push(&mut text, "application_name", application_name);
        if let Some(database) = database {
            push(&mut text, "dbname", database);
        }
        for (key, value) in LINK {
            push(&mut text, key, value);
        }
        text
    }

    /// Opens a connection to it.
    ///
    /// # Errors
    /// If it does not let us in within 5 s.
    pub async fn connect(&self) -> Result<Client, NodeError> {
        let mut config = Config::new();
        config.user(&self.user).dbname("postgres").application_name("pgsteady").connect_timeout(LOGIN);
        if let Some(password) = &self.password {
            config.password(password);
        }
        match &self.address {
            Address::Tcp(host, port) => config.host(host).port(*port),
            Address::Unix(folder, port) => config.host_path(folder).port(*port),
        };
        login(&config, &self.address.to_string()).await
    }
}

/// Logs in, within a bound; the connection ends with the client.
pub(crate) async fn login(config: &Config, whom: &str) -> Result<Client, NodeError> {
    let what = || format!("log in to {whom}");
    let Ok(outcome) = tokio::time::timeout(LOGIN, Box::pin(config.connect(NoTls))).await else {
        return Err(NodeError::TimedOut { what: what(), bound: LOGIN });
    };
    let (client, connection) = outcome.map_err(|error| NodeError::Sql { what: what(), error })?;
    tokio::spawn(connection);
    Ok(client)
}

fn push(text: &mut String, key: &str, value: &str) {
    let space = if text.is_empty() { "" } else { " " };
    let value = value.replace('\\', "\\\\").replace('\'', "\\'");
    let _ = write!(text, "{space}{key}='{value}'");
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_conninfo_is_quoted_and_holds_no_password() {
        let mut upstream = Upstream::trusting(Address::Tcp("db-1".into(), 5432), "rep'l");
        upstream.password = Some("geheim".into());
        let text = upstream.conninfo("n2", None);
        assert!(
            text.starts_with(r"host='db-1' port='5432' user='rep\'l' application_name='n2' connect_timeout="),
            "{text}"
        );
        assert!(!text.contains("geheim"), "{text}");
    }
}
