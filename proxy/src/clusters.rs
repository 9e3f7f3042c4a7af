//! From the configuration of a cluster to its monitor. What the monitor does is in the crate `topology`.

use std::collections::HashMap;
use std::sync::Arc;

use topology::probe::Pace;
use topology::{ClusterConfig, EtcdConfig, Login, Millis, Monitor, NodeConfig, Policy, ReplicationLogin, Watch};

use crate::config::{self, Cluster, Config, Durability, Managed};
use crate::control::Control;
use crate::tls::{self, TlsError};

/// The monitors of all clusters, and what they show of them. Dropped, the monitors stop.
pub struct Clusters {
    watches: HashMap<Arc<str>, Watch>,
    monitors: Vec<Monitor>,
    /// Where commands come in.
    _controls: Vec<Control>,
}

impl Clusters {
    /// Starts a monitor for each cluster, on the current runtime.
    ///
    /// # Errors
    /// A cluster that cannot be watched: its name and why.
    pub fn start(config: &Config) -> Result<Self, String> {
        let mut clusters = Self { watches: HashMap::new(), monitors: Vec::new(), _controls: Vec::new() };
        for (name, cluster) in &config.clusters {
            let wrong = |error: &dyn std::fmt::Display| format!("cluster.{name}: {error}");
            let settings = translate(cluster).map_err(|error| wrong(&error))?;
            let (watch, monitor) = Monitor::start(&settings).map_err(|error| wrong(&error))?;
            match Control::start(cluster, &watch) {
                Ok(control) => clusters._controls.push(control),
                // serving clients matters more than taking commands
                Err(why) => tracing::warn!(cluster = %name, why, "no commands can be taken"),
            }
            clusters.watches.insert(name.clone(), watch);
            clusters.monitors.push(monitor);
        }
        Ok(clusters)
    }

    /// Stops the monitors, each with a word to the instances that share its store, so that one of them acts at once.
    pub async fn stop(self) {
        for monitor in self.monitors {
            monitor.stop().await;
        }
    }

    /// What they show, by the clusters' names.
    #[must_use]
    pub fn watches(&self) -> &HashMap<Arc<str>, Watch> {
        &self.watches
    }
}

fn translate(cluster: &Cluster) -> Result<ClusterConfig, TlsError> {
    let password =
        |login: &config::Login| login.password.as_ref().map(|password| topology::Secret::new(password.reveal()));
    let nodes = cluster.nodes.iter().map(|node| NodeConfig {
        name: node.name.clone(),
        address: node.address.clone(),
        priority: node.priority.into(),
        zone: node.zone.clone().unwrap_or_default(),
    });
    let login = Login {
        user: cluster.login.user.to_string(),
        password: password(&cluster.login),
        dbname: cluster.dbname.clone(),
        encryption: tls::encryption(&cluster.tls)?,
        connect_timeout: cluster.probe_timeout,
    };
    let replication = ReplicationLogin {
        user: cluster.replication.user.to_string(),
        password: password(&cluster.replication),
        extra: vec![("sslmode".to_owned(), cluster.tls.sslmode.word().to_owned())],
    };
    let acts = cluster.managed == Managed::Pgsteady;
    Ok(ClusterConfig {
        name: cluster.name.clone(),
        nodes: nodes.collect(),
        login,
        replication,
        policy: policy(cluster),
        pace: Pace { interval: cluster.probe_interval, timeout: cluster.probe_timeout },
        store: acts.then(|| cluster.store.clone()),
        etcd: cluster.etcd.as_ref().map(etcd),
    })
}

fn etcd(etcd: &config::Etcd) -> EtcdConfig {
    let login = etcd.login.as_ref().map(|login| {
        let password = login.password.as_ref().map_or("", |password| password.reveal());
        (login.user.to_string(), topology::Secret::new(password))
    });
    EtcdConfig {
        endpoints: etcd.endpoints.clone(),
        prefix: etcd.prefix.clone(),
        login,
        tls: etcd.tls.clone(),
        lease: etcd.lease,
    }
}

fn policy(cluster: &Cluster) -> Policy {
    let millis = |time: std::time::Duration| Millis(u64::try_from(time.as_millis()).unwrap_or(u64::MAX));
    Policy {
        managed: match cluster.managed {
            Managed::Pgsteady => topology::Managed::Pgsteady,
            Managed::External | Managed::None => topology::Managed::External,
        },
        durability: match cluster.durability {
            Durability::Strict => topology::Durability::Strict,
            Durability::Available => topology::Durability::Available,
        },
        k: cluster.synchronous,
        partition_grace: millis(cluster.partition_grace),
        stall_grace: millis(cluster.stall_grace),
        crash_restart_grace: millis(cluster.crash_restart_grace),
        ..Policy::default()
    }
}
