//! Clusters, their nodes, and databases: the sections that say where PostgreSQL is. Part of `build`.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use topology::Address;

use super::build::Reader;
use super::options::{ClusterOptions, DatabaseOptions, NodeOptions};
use super::section::Table;
use super::{Cluster, ClusterNode, Database, Etcd, Login, Lookup, Managed, ServerTls, SslMode, Target};

impl Reader<'_, '_> {
    /// The clusters by name; `None` for one with an error, so that an entry that names it is not blamed too.
    pub(super) fn clusters(&mut self, root: &mut Table<'_, '_>) -> BTreeMap<Arc<str>, Option<Arc<Cluster>>> {
        let mut table = self.section(root, "cluster");
        let named = table.named_tables(self.problems);
        table.finish(self.problems);
        named.into_iter().map(|(name, table)| (name.into(), self.cluster(name, table).map(Arc::new))).collect()
    }

    fn cluster(&mut self, name: &str, mut table: Table<'_, '_>) -> Option<Cluster> {
        let tls = self.server_tls(&mut table);
        let nodes = self.nodes(&mut table);
        let etcd = self.etcd(&mut table);
        let options = ClusterOptions::read(&mut table, self.problems);
        let cluster = options.and_then(|options| self.cluster_of(name, &table, options, nodes, (tls?, etcd?)));
        table.finish(self.problems);
        cluster
    }

    fn cluster_of(
        &mut self,
        name: &str,
        table: &Table<'_, '_>,
        mut options: ClusterOptions,
        nodes: Vec<ClusterNode>,
        (tls, etcd): (ServerTls, Option<Etcd>),
    ) -> Option<Cluster> {
        self.absolute(&mut options.password_file);
        self.absolute(&mut options.replication_password_file);
        self.absolute(&mut options.store);
        if options.probe_interval.is_zero() || options.probe_timeout.is_zero() {
            let key = if options.probe_interval.is_zero() { "probe_interval" } else { "probe_timeout" };
            self.error(table, key, "is zero", "give a duration such as \"250ms\"");
        }
        let standbys = u32::try_from(nodes.len()).unwrap_or(u32::MAX).saturating_sub(1);
        if options.managed == Managed::Pgsteady && options.synchronous > standbys && standbys > 0 {
            let remedy = format!("{} nodes have {standbys} standbys; lower it or add nodes", nodes.len());
            self.error(table, "synchronous", "is more than there are standbys", &remedy);
        }
        let given = (options.password, options.password_file.as_deref());
        let password = self.password(table, ["password", "password_file"], given);
        let keys = ["replication_password", "replication_password_file"];
        let given = (options.replication_password, options.replication_password_file.as_deref());
        let replication_password = self.password(table, keys, given);
        let login = Login { user: options.user.as_str().into(), password };
        let replication = match options.replication_user {
            Some(user) => Login { user: user.as_str().into(), password: replication_password },
            None => Login { password: replication_password.or_else(|| login.password.clone()), ..login.clone() },
        };
        Some(Cluster {
            name: name.into(),
            managed: options.managed,
            login,
            dbname: options.dbname,
            replication,
            store: options.store.unwrap_or_else(|| Path::new("/var/lib/pgsteady").join(name)),
            etcd,
            synchronous: options.synchronous,
            durability: options.durability,
            probe_interval: options.probe_interval,
            probe_timeout: options.probe_timeout,
            partition_grace: options.partition_grace,
            stall_grace: options.stall_grace,
            crash_restart_grace: options.crash_restart_grace,
            nodes,
            tls: Arc::new(tls),
        })
    }

    fn nodes(&mut self, cluster: &mut Table<'_, '_>) -> Vec<ClusterNode> {
        let mut nodes: Vec<ClusterNode> = Vec::new();
        let tables = cluster.tables("node", self.problems);
        if tables.is_empty() {
            let remedy = format!("write [[{}]] with name and host, once for each node", cluster.full("node"));
            self.error(cluster, "node", "is missing", &remedy);
        }
        for mut table in tables {
            let node = NodeOptions::read(&mut table, self.problems);
            if let Some(node) = node {
                self.name(&table, "name", &node.name);
                let address = self.address(&table, &node.host, node.port);
                if nodes.iter().any(|n| *n.name == *node.name) {
                    self.error(&table, "name", "is given twice", "each node of a cluster has its own name");
                }
                if nodes.iter().any(|n| n.address == address) {
                    self.error(
                        &table,
                        "host",
                        "is the address of another node",
                        "two nodes cannot share host and port",
                    );
                }
                nodes.push(ClusterNode {
                    name: node.name.as_str().into(),
                    address,
                    priority: node.priority,
                    zone: node.zone,
                });
            }
            table.finish(self.problems);
        }
        nodes
    }

    pub(super) fn databases(
        &mut self,
        root: &mut Table<'_, '_>,
        clusters: &BTreeMap<Arc<str>, Option<Arc<Cluster>>>,
        max_wait: Duration,
    ) -> BTreeMap<Arc<str>, Arc<Database>> {
        let mut table = self.section(root, "database");
        let mut databases = BTreeMap::new();
        let named = table.named_tables(self.problems);
        if named.is_empty() {
            let remedy =
                "write [database.NAME] with cluster = \"...\" or host = \"...\"; [database.\"*\"] is for any name";
            self.problems.error(&table.span, "database", "no database is configured", remedy);
        }
        for (name, mut entry) in named {
            let tls = entry.has("tls").then(|| self.server_tls(&mut entry));
            let options = DatabaseOptions::read(&mut entry, self.problems);
            let target = options.as_ref().and_then(|o| self.target(&entry, o, clusters, tls));
            if let (Some(options), Some((target, tls))) = (options, target) {
                let database = self.database(name, &entry, options, target, tls, max_wait);
                databases.insert(database.name.clone(), Arc::new(database));
            }
            entry.finish(self.problems);
        }
        table.finish(self.problems);
        databases
    }

    fn database(
        &mut self,
        name: &str,
        table: &Table<'_, '_>,
        mut options: DatabaseOptions,
        target: Target,
        tls: Arc<ServerTls>,
        max_wait: Duration,
    ) -> Database {
        self.absolute(&mut options.password_file);
        let given = (options.password, options.password_file.as_deref());
        let password = self.password(table, ["password", "password_file"], given);
        if password.is_some() && options.user.is_none() {
            self.error(table, "password", "has no effect without user", "name the user to log in as");
        }
        if options.pool_size == 0 {
            self.error(table, "pool_size", "is zero", "a pool needs at least one server");
        }
        if options.min_pool_size > options.pool_size {
            self.error(table, "min_pool_size", "is more than pool_size", "lower it or raise pool_size");
        }
        Database {
            name: name.into(),
            target,
            tls,
            dbname: options.dbname.map(|d| d.as_str().into()),
            forced: options.user.map(|user| Login { user: user.as_str().into(), password }),
            pool_mode: options.pool_mode,
            pool_size: options.pool_size,
            hosts: Vec::new(),
            stays_with_host: false,
            reserve_pool_size: 0,
            max_servers: 0,
            max_clients: 0,
            server_lifetime: None,
            startup: vec![("application_name".to_owned(), "pgsteady".to_owned())],
            connect_query: None,
            lookup: Lookup::default(),
            min_pool_size: options.min_pool_size,
            max_wait: options.max_wait.unwrap_or(max_wait),
            route: options.route,
            max_lag: options.max_lag,
            resolve_commits: options.resolve_commits,
            synchronous_commit: options.synchronous_commit,
        }
    }

    /// Where an entry points to, and the TLS that belongs to it.
    fn target(
        &mut self,
        table: &Table<'_, '_>,
        options: &DatabaseOptions,
        clusters: &BTreeMap<Arc<str>, Option<Arc<Cluster>>>,
        tls: Option<Option<ServerTls>>,
    ) -> Option<(Target, Arc<ServerTls>)> {
        match (&options.cluster, &options.host) {
            (Some(_), Some(_)) => {
                self.error(table, "host", "is given beside cluster", "keep one of the two");
                None
            }
            (None, None) => {
                self.error(table, "cluster", "is missing", "write cluster = \"NAME\", or host = \"...\"");
                None
            }
            (None, Some(host)) => {
                let address = self.address(table, host, options.port.unwrap_or(5432));
                let tls = tls.unwrap_or_else(|| Some(ServerTls::none_given()))?;
                Some((Target::Server(address), Arc::new(tls)))
            }
            (Some(name), None) => {
                if options.port.is_some() {
                    self.error(table, "port", "is given beside cluster", "the cluster's nodes have their own ports");
                }
                if tls.is_some() {
                    let remedy = format!("write it under [cluster.{name}.tls]");
                    self.error(table, "tls", "is given beside cluster", &remedy);
                }
                let Some(cluster) = clusters.get(name.as_str()) else {
                    let known: Vec<_> = clusters.keys().map(|k| &**k).collect();
                    let remedy = if known.is_empty() {
                        format!("write [cluster.{name}] with its nodes")
                    } else {
                        format!("known: {}", known.join(", "))
                    };
                    self.error(table, "cluster", &format!("there is no cluster {name:?}"), &remedy);
                    return None;
                };
                let cluster = cluster.as_ref()?;
                Some((Target::Cluster(cluster.name.clone()), cluster.tls.clone()))
            }
        }
    }

    fn server_tls(&mut self, parent: &mut Table<'_, '_>) -> Option<ServerTls> {
        let mut table = self.section(parent, "tls");
        let mut tls = ServerTls::read(&mut table, self.problems);
        if let Some(tls) = &mut tls {
            for path in [&mut tls.certificate, &mut tls.key, &mut tls.ca] {
                self.absolute(path);
            }
            if matches!(tls.sslmode, SslMode::VerifyCa | SslMode::VerifyFull) && tls.ca.is_none() {
                self.error(&table, "ca", "is missing", "checking the servers' certificates needs ca");
            }
            if tls.certificate.is_some() != tls.key.is_some() {
                self.error(&table, "certificate", "and key belong together", "give both or none");
            }
            self.files_exist(&table, &[("certificate", &tls.certificate), ("key", &tls.key), ("ca", &tls.ca)]);
        }
        table.finish(self.problems);
        tls
    }

    fn address(&mut self, table: &Table<'_, '_>, host: &str, port: u16) -> Address {
        if host.is_empty() || port == 0 {
            let key = if host.is_empty() { "host" } else { "port" };
            self.error(table, key, "is empty", "give the place where PostgreSQL answers");
        }
        if host.starts_with('/') {
            return Address::Unix(host.into(), port);
        }
        let bare = host.strip_prefix('[').and_then(|h| h.strip_suffix(']')).unwrap_or(host);
        Address::Tcp(bare.to_owned(), port)
    }
}
