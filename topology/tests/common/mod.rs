//! Real PostgreSQL servers for the tests of this crate: a primary and standbys in a temporary folder, gone afterwards.
#![allow(dead_code, reason = "each test binary uses a part of it")]

use std::collections::HashMap;
use std::fs;
use std::os::unix::fs::{PermissionsExt, chown};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use decision::Policy;
use nix::sys::signal::{Signal, kill};
use nix::unistd::{Pid, User, geteuid};
use tokio_postgres::{Client, NoTls};
use topology::act::Remote;
use topology::node::Port;
use topology::probe::Pace;
use topology::{Address, ClusterConfig, Connector, Encryption, Login, NodeConfig, ReplicationLogin, Topology, Watch};

/// Debian's folders, newest first; 15 and later.
const VERSIONS: [&str; 4] = ["18", "17", "16", "15"];
pub(crate) const SECOND: Duration = Duration::from_secs(1);

pub(crate) fn bin(program: &str) -> PathBuf {
    let wanted = std::env::var("PGSTEADY_PG_BIN").map(PathBuf::from).ok();
    let folders = VERSIONS.iter().map(|version| PathBuf::from(format!("/usr/lib/postgresql/{version}/bin")));
    let mut all = wanted.into_iter().chain(folders);
    let folder = all.find(|folder| folder.join("initdb").exists());
    folder.expect("PostgreSQL 15 or later in /usr/lib/postgresql").join(program)
}

/// PostgreSQL refuses to run as root.
fn unprivileged(command: &mut Command) -> &mut Command {
    if geteuid().is_root() {
        let user = User::from_name("postgres").unwrap().expect("a user postgres");
        command.uid(user.uid.as_raw()).gid(user.gid.as_raw());
    }
    command.env("LC_ALL", "C").env("TZ", "UTC").current_dir("/")
}

fn run(command: &mut Command) {
    let output = unprivileged(command).output().unwrap();
    assert!(output.status.success(), "{command:?}: {}", String::from_utf8_lossy(&output.stderr));
}

pub(crate) struct Server {
    pub(crate) name: String,
    pub(crate) port: u16,
    pub(crate) data: PathBuf,
    child: Option<Child>,
    _reserved: Port,
}

impl Server {
    pub(crate) fn address(&self) -> Address {
        Address::Tcp("127.0.0.1".into(), self.port)
    }

    pub(crate) fn start(&mut self) {
        assert!(self.child.is_none(), "{} runs", self.name);
        let log = fs::File::options().create(true).append(true).open(self.data.with_extension("log")).unwrap();
        let mut command = Command::new(bin("postgres"));
        command.arg("-D").arg(&self.data).stdin(Stdio::null()).stdout(log.try_clone().unwrap()).stderr(log);
        self.child = Some(unprivileged(&mut command).spawn().unwrap());
    }

    /// Superuser's session, waiting for the server to come up.
    pub(crate) async fn connect(&self) -> Client {
        self.connect_as("postgres").await
    }

    pub(crate) async fn connect_as(&self, user: &str) -> Client {
        let text = format!("host=127.0.0.1 port={} user={user} dbname=postgres application_name=test", self.port);
        let end = Instant::now() + 20 * SECOND;
        loop {
            match tokio_postgres::connect(&text, NoTls).await {
                Ok((client, connection)) => {
                    tokio::spawn(connection);
                    return client;
                }
                Err(error) => assert!(Instant::now() < end, "{}: {error:?}\n{}", self.name, self.log()),
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    pub(crate) fn log(&self) -> String {
        fs::read_to_string(self.data.with_extension("log")).unwrap_or_default()
    }

    /// The postmaster and everything it started.
    pub(crate) fn tree(&self) -> Vec<Pid> {
        let postmaster = self.child.as_ref().expect("it runs").id();
        let mut parents: HashMap<u32, Vec<u32>> = HashMap::new();
        for entry in fs::read_dir("/proc").unwrap().flatten() {
            let Ok(pid) = entry.file_name().to_string_lossy().parse::<u32>() else { continue };
            let Ok(stat) = fs::read_to_string(entry.path().join("stat")) else { continue };
            let after_name = stat.rsplit(')').next().unwrap_or_default();
            if let Some(parent) = after_name.split_whitespace().nth(1).and_then(|p| p.parse().ok()) {
                parents.entry(parent).or_default().push(pid);
            }
        }
        let children = parents.remove(&postmaster).unwrap_or_default();
        std::iter::once(postmaster).chain(children).map(|pid| Pid::from_raw(pid.cast_signed())).collect()
    }

    pub(crate) fn signal_tree(&self, signal: Signal) {
        for pid in self.tree() {
            let _ = kill(pid, signal);
        }
    }

    /// As if the machine's power had gone.
    pub(crate) fn kill_tree(&mut self) {
        self.signal_tree(Signal::SIGKILL);
        let _ = self.child.take().unwrap().wait();
    }

    pub(crate) fn stop(&mut self, signal: Signal) {
        if let Some(mut child) = self.child.take() {
            let _ = kill(Pid::from_raw(child.id().cast_signed()), signal);
            let _ = child.wait();
        }
    }

    /// A certificate for `localhost` and its key, as `openssl req -x509` makes them; returns the certificate.
    pub(crate) fn certify(&self) -> PathBuf {
        let (key, certificate) = (self.data.join("server.key"), self.data.join("server.crt"));
        let mut openssl = Command::new("openssl");
        openssl.args(["req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", "/CN=localhost"]);
        openssl.args(["-addext", "subjectAltName=DNS:localhost"]);
        run(openssl.arg("-keyout").arg(&key).arg("-out").arg(&certificate));
        self.configure("ssl = on");
        certificate
    }

    pub(crate) fn configure(&self, lines: &str) {
        let path = self.data.join("postgresql.conf");
        let text = fs::read_to_string(&path).unwrap() + lines + "\n";
        fs::write(&path, text).unwrap();
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        if self.child.is_some() {
            self.signal_tree(Signal::SIGCONT);
            self.kill_tree();
        }
    }
}

/// `n1` is the primary, the others follow it; `ANY 1` of them has to flush.
pub(crate) struct Cluster {
    pub(crate) servers: Vec<Server>,
    pub(crate) folder: tempfile::TempDir,
    _alone: tokio::sync::MutexGuard<'static, ()>,
}

/// Two cores carry one cluster at a time well.
static ALONE: tokio::sync::Mutex<()> = tokio::sync::Mutex::const_new(());

impl Cluster {
    pub(crate) async fn start(standbys: usize) -> Self {
        Self::start_with(standbys, "").await
    }

    pub(crate) async fn start_with(standbys: usize, more: &str) -> Self {
        let alone = ALONE.lock().await;
        let folder = tempfile::tempdir().unwrap();
        fs::set_permissions(folder.path(), fs::Permissions::from_mode(0o755)).unwrap();
        if geteuid().is_root() {
            let user = User::from_name("postgres").unwrap().expect("a user postgres");
            chown(folder.path(), Some(user.uid.as_raw()), Some(user.gid.as_raw())).unwrap();
        }
        let base = folder.path().join("base");
        run(Command::new(bin("initdb")).args(["--no-sync", "-A", "trust", "-U", "postgres", "-D"]).arg(&base));
        let names: Vec<String> = (2..standbys + 2).map(|n| format!("n{n}")).collect();
        let mut servers = Vec::new();
        for n in 1..standbys + 2 {
            let data = folder.path().join(format!("n{n}"));
            run(Command::new("cp").arg("-a").arg(&base).arg(&data));
            let reserved = Port::reserve().unwrap();
            let port = reserved.number();
            let server = Server { name: format!("n{n}"), port, data, child: None, _reserved: reserved };
            server.configure(&settings(&server, folder.path()));
            server.configure(more);
            servers.push(server);
        }
        if standbys > 0 {
            let rule = topology::act::rule_text(1, &names);
            servers[0].configure(&format!("synchronous_standby_names = '{rule}'"));
        }
        let primary_port = servers[0].port;
        for server in &servers[1..] {
            server.configure(&format!(
                "primary_conninfo = 'host=127.0.0.1 port={primary_port} user=postgres application_name={}'",
                server.name
            ));
            run(Command::new("touch").arg(server.data.join("standby.signal")));
        }
        servers.iter_mut().for_each(Server::start);
        let cluster = Self { servers, folder, _alone: alone };
        cluster.streaming(standbys).await;
        cluster
    }

    pub(crate) async fn streaming(&self, standbys: usize) {
        let client = self.servers[0].connect().await;
        let all = "SELECT count(*) FROM pg_stat_replication WHERE state = 'streaming'";
        let end = Instant::now() + 20 * SECOND;
        while client.query_one(all, &[]).await.unwrap().get::<_, i64>(0) != standbys as i64 {
            let logs: String = self.servers.iter().map(Server::log).collect();
            assert!(Instant::now() < end, "not all standbys stream\n{logs}");
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }

    pub(crate) fn remote(&self, n: usize) -> Remote {
        Remote::new(self.connector(n, "postgres"))
    }

    pub(crate) fn connector(&self, n: usize, user: &str) -> Connector {
        let server = &self.servers[n];
        Connector {
            node: server.name.as_str().into(),
            address: Arc::new(server.address()),
            login: Arc::new(login(user)),
        }
    }
}

pub(crate) fn login(user: &str) -> Login {
    Login {
        user: user.into(),
        password: None,
        dbname: "postgres".into(),
        encryption: Encryption::Disable,
        connect_timeout: SECOND,
    }
}

pub(crate) fn replication() -> ReplicationLogin {
    ReplicationLogin { user: "postgres".into(), password: None, extra: Vec::new() }
}

fn settings(server: &Server, folder: &Path) -> String {
    format!(
        "port = {}\nlisten_addresses = '127.0.0.1'\nunix_socket_directories = '{}'\nfsync = off\nshared_buffers = 16MB\n\
         wal_level = replica\nhot_standby = on\nhot_standby_feedback = off\nwal_log_hints = on\n\
         wal_keep_size = 256MB\nwal_receiver_timeout = 5s\nwal_receiver_status_interval = 1s\nautovacuum = off\n\
         log_min_messages = info\nlog_line_prefix = '%m [%b] '\nmax_wal_senders = 10",
        server.port,
        folder.display()
    )
}

/// Waits at most 20 s.
pub(crate) async fn until(what: &str, mut holds: impl AsyncFnMut() -> bool) {
    let end = Instant::now() + 20 * SECOND;
    while !holds().await {
        assert!(Instant::now() < end, "not in 20 s: {what}");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

/// A cluster as its monitor is told of it.
pub(crate) fn config(cluster: &Cluster) -> ClusterConfig {
    let node = |server: &Server| NodeConfig {
        name: server.name.as_str().into(),
        address: server.address(),
        priority: 0,
        zone: String::new(),
    };
    ClusterConfig {
        name: "main".into(),
        nodes: cluster.servers.iter().map(node).collect(),
        login: login("postgres"),
        replication: replication(),
        policy: Policy::default(),
        pace: Pace { interval: SECOND / 4, timeout: SECOND },
        etcd: None,
        store: Some(cluster.folder.path().join("store")),
    }
}

/// Waits at most 30 s for a snapshot.
pub(crate) async fn snapshot(watch: &Watch, what: &str, holds: impl Fn(&Topology) -> bool) -> Arc<Topology> {
    let mut snapshots = watch.subscribe();
    let seen = tokio::time::timeout(30 * SECOND, snapshots.wait_for(|topology| holds(topology))).await;
    match seen {
        Ok(Ok(topology)) => topology.clone(),
        _ => panic!("not in 30 s: {what}; now {:#?}", watch.now()),
    }
}

/// What the monitor says, with `RUST_LOG` and `--nocapture`.
pub(crate) fn log() {
    let filter = tracing_subscriber::EnvFilter::from_default_env();
    let _ = tracing_subscriber::fmt().with_env_filter(filter).with_test_writer().try_init();
}
