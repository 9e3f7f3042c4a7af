//! What a reload changes, and what of it waits for a restart.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;

use super::Config;

/// One difference between the configuration in force and a new one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Change {
    /// The key (`limits.max_clients`) or the section (`database.app`).
    pub key: String,
    /// Whether it takes effect only after a restart.
    pub needs_restart: bool,
}

impl fmt::Display for Change {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.key)?;
        if self.needs_restart { f.write_str(" (needs a restart)") } else { Ok(()) }
    }
}

pub(super) fn diff(old: &Config, new: &Config) -> Vec<Change> {
    let mut changes = Vec::new();
    let mut keys = |section: &str, list: Vec<(&'static str, bool)>| {
        changes.extend(
            list.into_iter().map(|(key, needs_restart)| Change { key: format!("{section}.{key}"), needs_restart }),
        );
    };
    keys("listen", old.listen.changes(&new.listen));
    keys("listen.tls", old.listen_tls.changes(&new.listen_tls));
    keys("limits", old.limits.changes(&new.limits));
    keys("auth", old.auth.changes(&new.auth));
    keys("log", old.log.changes(&new.log));
    if old.auth_query_password != new.auth_query_password && old.auth.query_password == new.auth.query_password {
        keys("auth", vec![("query_password_file", false)]);
    }
    sections("user", &old.users, &new.users, &mut changes);
    // The monitor of a cluster lives as long as the process: its nodes and timings are handed to it once.
    let before = changes.len();
    sections("cluster", &old.clusters, &new.clusters, &mut changes);
    changes[before..].iter_mut().for_each(|change| change.needs_restart = true);
    sections("database", &old.databases, &new.databases, &mut changes);
    if old.any_database != new.any_database {
        changes.push(Change { key: "database.*".to_owned(), needs_restart: false });
    }
    changes
}

fn sections<T: PartialEq>(
    name: &str,
    old: &BTreeMap<Arc<str>, T>,
    new: &BTreeMap<Arc<str>, T>,
    changes: &mut Vec<Change>,
) {
    let added = new.keys().filter(|key| !old.contains_key(*key));
    let changed = old.iter().filter(|(key, value)| new.get(*key) != Some(value)).map(|(key, _)| key);
    changes.extend(added.chain(changed).map(|key| Change { key: format!("{name}.{key}"), needs_restart: false }));
}
