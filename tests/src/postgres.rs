//! Real PostgreSQL: nodes that can be killed, frozen and looked into, and clusters of them. A node takes its processes and
//! its shared memory with it when it is dropped.

use std::fs::{self, File};
use std::net::Ipv4Addr;
use std::os::unix::fs::symlink;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use nix::sys::signal::Signal;
use tokio_postgres::Client;

use crate::endpoint::{Endpoint, value};
use crate::folder::{Folder, give};
use crate::host::Host;
use crate::port::Port;
pub use crate::programs::{Programs, repository, run};
use crate::programs::{append, as_account};
use crate::{process, wait_for};

/// How long a node may take to accept connections.
const START_LIMIT: Duration = Duration::from_secs(30);

/// One PostgreSQL instance.
#[derive(Debug)]
pub struct Node {
    /// Its name, and its `application_name` as a standby.
    pub name: String,
    programs: Programs,
    host: Host,
    folder: Folder,
    /// `pg_wal`, where it is not in the data directory.
    wal: Option<Folder>,
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
        let wal = host.folder_on_disk("wal");
        let node = Self { name, programs, host: host.clone(), folder, wal, port: Port::new(), process: None };
        node.move_wal();
        node.configure_address();
        node
    }

    /// To the host's disk, if it has one.
    fn move_wal(&self) {
        if let Some(wal) = &self.wal {
            let ours = self.data().join("pg_wal");
            run(Command::new("cp").arg("-a").arg(ours.join(".")).arg(wal.path()));
            fs::remove_dir_all(&ours).expect("a folder of the test can be removed");
            symlink(wal.path(), ours).expect("a link of the test can be made");
        }
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

    /// The same, with TLS by this certificate and key.
    pub async fn with_tls(programs: &Programs, (certificate, key): &(PathBuf, PathBuf)) -> Self {
        let mut node = Self::new(programs, "n1");
        let (certificate, key) = (certificate.display(), key.display());
        node.configure(&format!("ssl = on\nssl_cert_file = '{certificate}'\nssl_key_file = '{key}'\n"));
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

    /// Whether it was running and has ended by itself since; from then on it counts as not running.
    pub fn has_ended(&mut self) -> bool {
        let ended = |process: &mut Child| process.try_wait().expect("a child can be waited for").is_some();
        self.process.take_if(ended).is_some()
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

    /// Where each listens.
    #[must_use]
    pub fn ports(&self) -> Vec<u16> {
        self.nodes.iter().map(Node::port).collect()
    }

    /// The number of the node of this name.
    #[must_use]
    pub fn named(&self, name: &str) -> Option<usize> {
        self.nodes.iter().position(|node| node.name == name)
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
        node.wal = node.host.folder_on_disk("wal");
        let mut backup = node.programs.command("pg_basebackup");
        backup.args(["-h", &from, "-p", &source_port, "-U", "postgres", "-c", "fast", "-X", "stream", "-D"]);
        run(backup.arg(node.data()));
        node.move_wal();
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
