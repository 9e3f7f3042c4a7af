//! The proxy and the monitor over a throwaway cluster: the one place where `dev` needs them.

use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use topology::{FailoverRecord, Watch};

use super::cluster::NAME;
use crate::clusters::Clusters;
use crate::config::Config;
use crate::log::Started;
use crate::serve::Proxy;

/// The proxy at work. Dropped, it stops at once, and then the monitor.
pub(super) struct Front {
    pub(super) watch: Watch,
    _proxy: Proxy,
    _clusters: Clusters,
    _log: Started,
}

/// How long the record of a failover may come after the new primary.
const RECORD: Duration = Duration::from_secs(2);
/// Between two looks for it.
const LOOK: Duration = Duration::from_millis(10);

impl Front {
    /// Starts both with this configuration.
    pub(super) fn start(configuration: &str, file: &Path) -> Result<Self, String> {
        let config = Config::parse(configuration, file).map_err(|errors| errors.to_string())?;
        let config = Arc::new(config);
        let log = crate::log::start(&config.log)?;
        let clusters = Clusters::start(&config)?;
        let watch = clusters.watches().get(NAME).cloned();
        let watch = watch.ok_or_else(|| format!("the configuration has no cluster {NAME}"))?;
        let proxy = Proxy::start(&config, clusters.watches())?;
        Ok(Self { watch, _proxy: proxy, _clusters: clusters, _log: log })
    }

    /// The first failover that the monitor began after this moment. `None`: it has no record of it.
    pub(super) async fn failover_after(&self, killed: SystemTime) -> Option<FailoverRecord> {
        let began = Instant::now();
        while began.elapsed() < RECORD {
            let found = self.watch.failovers().iter().find(|record| record.detected_at >= killed).cloned();
            if found.is_some() {
                return found;
            }
            tokio::time::sleep(LOOK).await;
        }
        None
    }
}
