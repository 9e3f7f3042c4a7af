//! All TLS contexts of a configuration: replaced together at a reload, refreshed one by one when their files change.

use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use super::{Certificates, ClientTls, ServerTls, TlsError};
use crate::config::{self, Config};

/// Time between two looks at the files of certificates.
const WATCH_INTERVAL: Duration = Duration::from_secs(10);

/// The TLS contexts in force.
#[derive(Debug)]
pub struct TlsState {
    contexts: RwLock<Arc<Contexts>>,
}

#[derive(Debug)]
struct Contexts {
    clients: Option<Arc<ClientTls>>,
    servers: Vec<(Arc<config::ServerTls>, Arc<ServerTls>)>,
}

impl TlsState {
    /// Reads all files of a configuration.
    ///
    /// # Errors
    /// The first section whose files cannot be used: its name and why.
    pub fn load(config: &Config) -> Result<Self, (String, TlsError)> {
        Ok(Self { contexts: RwLock::new(Arc::new(Contexts::load(config)?)) })
    }

    /// Takes a new configuration, and all its files anew.
    ///
    /// # Errors
    /// As [`TlsState::load`]; the contexts in force stay.
    pub fn replace(&self, config: &Config) -> Result<(), (String, TlsError)> {
        let contexts = Arc::new(Contexts::load(config)?);
        *self.contexts.write().unwrap_or_else(PoisonError::into_inner) = contexts;
        Ok(())
    }

    /// For the listeners; `None` if sslmode is `disable`.
    #[must_use]
    pub fn clients(&self) -> Option<Arc<ClientTls>> {
        self.get().clients.clone()
    }

    /// For the servers of a section of the configuration in force; `None` if it is of another configuration.
    #[must_use]
    pub fn servers(&self, options: &config::ServerTls) -> Option<Arc<ServerTls>> {
        self.get().servers.iter().find(|(known, _)| **known == *options).map(|(_, tls)| tls.clone())
    }

    /// Looks at the files every [`WATCH_INTERVAL`], for ever. A few file times: too little to leave the worker for.
    pub async fn watch_files(&self) {
        let mut tick = tokio::time::interval(WATCH_INTERVAL);
        loop {
            tick.tick().await;
            self.refresh(false);
        }
    }

    /// Reads files that have changed (or all, if `always`), and says what came of it.
    pub fn refresh(&self, always: bool) {
        let contexts = self.get();
        let clients = contexts.clients.iter().map(|tls| &**tls as &dyn Certificates);
        let servers = contexts.servers.iter().map(|(_, tls)| &**tls as &dyn Certificates);
        for certificates in clients.chain(servers) {
            let section = certificates.section();
            match certificates.refresh(always) {
                Ok(false) => {}
                Ok(true) => tracing::info!(section, "certificates were read again"),
                Err(error) => tracing::error!(section, %error, "new certificates are not good: the old stay in force"),
            }
        }
    }

    fn get(&self) -> Arc<Contexts> {
        self.contexts.read().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

impl Contexts {
    fn load(config: &Config) -> Result<Self, (String, TlsError)> {
        let clients = ClientTls::load(&config.listen_tls).map_err(|e| ("listen.tls".to_owned(), e))?.map(Arc::new);
        let clusters = config.clusters.iter().map(|(name, cluster)| (format!("cluster.{name}.tls"), &cluster.tls));
        let databases = config.databases.values().chain(&config.any_database);
        let databases = databases.map(|database| (format!("database.{}.tls", database.name), &database.tls));
        let mut servers: Vec<(Arc<config::ServerTls>, Arc<ServerTls>)> = Vec::new();
        for (section, options) in clusters.chain(databases) {
            if servers.iter().any(|(known, _)| known == options) {
                continue;
            }
            let tls = ServerTls::load(&section, options.clone()).map_err(|e| (section, e))?;
            servers.push((options.clone(), Arc::new(tls)));
        }
        Ok(Self { clients, servers })
    }
}
