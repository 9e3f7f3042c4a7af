//! The two that are compared, started alike: Debian's PgBouncer and pgsteady in front of one server.

use std::any::Any;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use harness::certificates::Certificate;
use harness::folder::{Folder, account, give};
use harness::pgsteady::{Config, Pgsteady, program};
use harness::port::Port;
use harness::postgres::{Cluster, Node};
use harness::process;

const PROGRAM: &str = "/usr/sbin/pgbouncer";
/// How long PgBouncer may take to listen.
const START_LIMIT: Duration = Duration::from_secs(10);
/// Servers of each pool.
pub(crate) const POOL_SIZE: i64 = 20;
/// Clients that each lets in.
const MAX_CLIENTS: i64 = 6000;

/// What both are told.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Setup {
    /// Session pooling instead of transaction pooling.
    pub(crate) session: bool,
    /// A Unix socket to PostgreSQL instead of TCP.
    pub(crate) socket: bool,
    /// Clients have to use TLS.
    pub(crate) tls: bool,
    /// Threads of pgsteady.
    pub(crate) workers: u8,
    /// pgsteady is called as `pgbouncer`, with the same pgbouncer.ini.
    pub(crate) drop_in: bool,
}

impl Setup {
    /// What most cases have.
    pub(crate) const PLAIN: Self = Self { session: false, socket: false, tls: false, workers: 1, drop_in: false };
}

/// A pooler that was started; ended when dropped.
pub(crate) struct Pooler {
    pub(crate) port: u16,
    pub(crate) pid: i32,
    _process: Box<dyn Any>,
}

/// PgBouncer, or pgsteady called as `pgbouncer`.
struct WithIni {
    process: Child,
    _port: Port,
    _folder: Folder,
}

impl Drop for WithIni {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// A certificate and its key that both can read.
pub(crate) struct Identity {
    certificate: PathBuf,
    key: PathBuf,
    _folder: Folder,
}

impl Identity {
    pub(crate) fn new() -> Self {
        let folder = Folder::new("tls");
        let (certificate, key) =
            Certificate::authority("the bench's authority").sign("localhost").write(&folder, "pooler");
        give(&certificate);
        give(&key);
        Self { certificate, key, _folder: folder }
    }
}

/// The version of the PgBouncer that is installed.
pub(crate) fn pgbouncer_version() -> (u32, u32) {
    let output = Command::new(PROGRAM).arg("--version").output().expect("PgBouncer is installed (tools/install.sh)");
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let version = text.split_whitespace().nth(1).expect("it says its version");
    let mut numbers = version.split('.').map(|number| number.parse().unwrap_or(0));
    (numbers.next().unwrap_or(0), numbers.next().unwrap_or(0))
}

impl Pooler {
    /// PgBouncer in front of the database `app` of this node.
    pub(crate) async fn pgbouncer(node: &Node, setup: Setup, identity: &Identity) -> Self {
        Self::with_ini(Command::new(PROGRAM), node, setup, identity).await
    }

    async fn with_ini(mut command: Command, node: &Node, setup: Setup, identity: &Identity) -> Self {
        let (folder, port) = (Folder::new("bouncer"), Port::new());
        let users = folder.write("users.txt", "\"app\" \"app-secret\"\n");
        let server = if setup.socket { node.socket_directory().display().to_string() } else { "127.0.0.1".to_owned() };
        let mode = if setup.session { "session" } else { "transaction" };
        let mut ini = format!(
            "[databases]\napp = host={server} port={}\n[pgbouncer]\nlisten_addr = 127.0.0.1\nlisten_port = {}\n\
             unix_socket_dir =\nauth_type = trust\nauth_file = {}\npool_mode = {mode}\ndefault_pool_size = {POOL_SIZE}\n\
             max_client_conn = {MAX_CLIENTS}\nlog_connections = 0\nlog_disconnections = 0\n",
            node.port(),
            port.number(),
            users.display()
        );
        if setup.tls {
            let (certificate, key) = (identity.certificate.display(), identity.key.display());
            ini += &format!(
                "client_tls_sslmode = require\nclient_tls_cert_file = {certificate}\nclient_tls_key_file = {key}\n"
            );
        }
        let file = folder.write("pgbouncer.ini", &ini);
        give(&file);
        give(&users);
        if let Some(account) = account() {
            command.args(["-u", &account.name]);
        }
        command.arg("-q").arg(file).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        let mut process = command.spawn().expect("it can be run");
        let place = ([127, 0, 0, 1], port.number()).into();
        process::listens(&mut process, place, START_LIMIT, String::new).await;
        let pid = i32::try_from(process.id()).expect("process numbers are small");
        let number = port.number();
        Self { port: number, pid, _process: Box::new(WithIni { process, _port: port, _folder: folder }) }
    }

    /// pgsteady in front of the same.
    pub(crate) async fn pgsteady(node: &Node, setup: Setup, identity: &Identity) -> Self {
        if setup.drop_in {
            let mut command = Command::new(program());
            command.arg("pgbouncer");
            return Self::with_ini(command, node, setup, identity).await;
        }
        let mut config = Config::single(node).set("database.app.pool_size", POOL_SIZE);
        if setup.socket {
            config = config.set("database.app.host", node.socket_directory().display().to_string());
        }
        if setup.tls {
            config = config
                .set("listen.tls.sslmode", "require")
                .set("listen.tls.certificate", identity.certificate.display().to_string())
                .set("listen.tls.key", identity.key.display().to_string());
        }
        let mode = if setup.session { "session" } else { "transaction" };
        Self::ours(config.set("database.app.pool_mode", mode).set("listen.workers", i64::from(setup.workers))).await
    }

    /// pgsteady over a cluster that it manages, with or without the look-up of commits in doubt.
    pub(crate) async fn managing(cluster: &Cluster, store: &Folder, resolve_commits: bool) -> Self {
        let ports = cluster.ports();
        let config = Config::cluster(cluster, &ports, store.path())
            .set("database.app.pool_size", POOL_SIZE)
            .set("database.app.resolve_commits", resolve_commits);
        Self::ours(config).await
    }

    async fn ours(config: Config) -> Self {
        let config = config.set("auth.method", "trust").set("log.level", "info").set("limits.max_clients", MAX_CLIENTS);
        let started = Pgsteady::start(&config).await;
        Self { port: started.port(), pid: started.pid(), _process: Box::new(started) }
    }
}
