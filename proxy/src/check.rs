//! What `pgsteady check` looks at beyond the configuration itself: the files that it names.

use crate::config::Config;
use crate::tls::{ClientTls, ServerTls};

/// What is wrong with certificates and the list of users; empty if all can be used.
#[must_use]
pub fn files(config: &Config) -> Vec<String> {
    let mut found = Vec::new();
    if let Err(error) = ClientTls::load(&config.listen_tls) {
        found.push(format!("listen.tls: {error}"));
    }
    for (name, cluster) in &config.clusters {
        let section = format!("cluster.{name}.tls");
        found.extend(ServerTls::load(&section, cluster.tls.clone()).err().map(|e| format!("{section}: {e}")));
    }
    for database in config.databases.values().chain(&config.any_database) {
        let section = format!("database.{}.tls", database.name);
        found.extend(ServerTls::load(&section, database.tls.clone()).err().map(|e| format!("{section}: {e}")));
    }
    found
}
