//! The program under test: its configuration, its process, its log.

use std::fs::{self, File};
use std::net::SocketAddr;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Output, Stdio};
use std::time::Duration;

use nix::sys::signal::Signal;
use toml::{Table, Value};

use crate::endpoint::Endpoint;
use crate::folder::Folder;
use crate::host::Host;
use crate::port::Port;
use crate::postgres::{Cluster, Node};
use crate::{process, wait_for};

/// The package `libfaketime`; the dynamic linker finds where it lies.
const FAKETIME: &str = "/usr/$LIB/faketime/libfaketimeMT.so.1";
/// How long pgsteady may take to listen, to end, or to log what a test waits for.
const LIMIT: Duration = Duration::from_secs(15);

/// How long a cluster may take until its standbys count.
const WHOLE: Duration = Duration::from_secs(30);

/// A configuration file as data.
#[derive(Debug, Clone, Default)]
pub struct Config {
    table: Table,
}

impl Config {
    /// Pools of four servers to one node that nobody watches, in transaction mode, for the databases `app` and
    /// `second` and the users of the golden data directory.
    #[must_use]
    pub fn single(node: &Node) -> Self {
        Self::to_port(node.port())
    }

    /// The same, to whatever listens on this port of this machine.
    #[must_use]
    pub fn to_port(port: u16) -> Self {
        let mut config = Self::users();
        for database in ["app", "second"] {
            config = config
                .set(&format!("database.{database}.host"), "127.0.0.1")
                .set(&format!("database.{database}.port"), i64::from(port))
                .set(&format!("database.{database}.pool_size"), 4);
        }
        config
    }

    /// The database `app` on a cluster that pgsteady manages; `ports` are where it finds the nodes. Its store lies in
    /// `folder`.
    #[must_use]
    pub fn cluster(cluster: &Cluster, ports: &[u16], folder: &Path) -> Self {
        let place = |(node, port): (&Node, &u16)| (node.name.clone(), SocketAddr::from((node.address(), *port)));
        Self::nodes(cluster.nodes.iter().zip(ports).map(place), folder)
    }

    /// The same with nodes by name and address, whoever runs them.
    #[must_use]
    pub fn nodes(nodes: impl IntoIterator<Item = (String, SocketAddr)>, folder: &Path) -> Self {
        let node = |(name, place): (String, SocketAddr)| {
            let fields = [("name", name.into()), ("host", place.ip().to_string().into())];
            let port = ("port", Value::Integer(i64::from(place.port())));
            Value::Table(fields.into_iter().chain([port]).map(|(key, value)| (key.to_owned(), value)).collect())
        };
        let nodes: Vec<Value> = nodes.into_iter().map(node).collect();
        Self::users()
            .set("database.app.cluster", "main")
            .set("database.app.pool_size", 8)
            .set("cluster.main.user", "steady")
            .set("cluster.main.password", "steady-secret")
            .set("cluster.main.store", folder.join("store").display().to_string())
            .set("cluster.main.node", Value::Array(nodes))
    }

    fn users() -> Self {
        let users = [
            ("app", "app-secret"),
            ("other", "other-secret"),
            ("old", "old-secret"),
            ("trusting", "unused"),
            ("steady", "steady-secret"),
        ];
        let user = |(name, password): (&str, &str)| {
            let fields = [("name", name), ("password", password)];
            Value::Table(fields.into_iter().map(|(key, value)| (key.to_owned(), value.into())).collect())
        };
        Self::default().set("user", Value::Array(users.into_iter().map(user).collect())).set("log.level", "debug")
    }

    /// Sets the key at a dotted path.
    ///
    /// # Panics
    /// When the path goes through something that is not a table.
    #[must_use]
    pub fn set(mut self, path: &str, value: impl Into<Value>) -> Self {
        let (sections, key) = path.rsplit_once('.').unwrap_or(("", path));
        let mut table = &mut self.table;
        for section in sections.split('.').filter(|section| !section.is_empty()) {
            let inner = table.entry(section).or_insert_with(|| Value::Table(Table::new()));
            table = inner.as_table_mut().unwrap_or_else(|| panic!("{path}: {section} is not a section"));
        }
        table.insert(key.to_owned(), value.into());
        self
    }

    /// The text of the file.
    ///
    /// # Panics
    /// Never: a table can be written as TOML.
    #[must_use]
    pub fn text(&self) -> String {
        toml::to_string(&self.table).expect("a table can be written as TOML")
    }
}

/// The program that the tests run: `PGSTEADY_BIN`, else the one built beside them.
///
/// # Panics
/// When it has not been built.
#[must_use]
pub fn program() -> PathBuf {
    let beside = || {
        let test = std::env::current_exe().expect("a test knows its own file");
        test.ancestors().nth(2).expect("tests lie in target/PROFILE/deps").join("pgsteady")
    };
    let program = std::env::var_os("PGSTEADY_BIN").map_or_else(beside, PathBuf::from);
    assert!(program.exists(), "{} is not there: cargo build --workspace --bins", program.display());
    program
}

/// Runs `pgsteady` with these arguments to its end.
///
/// # Panics
/// When it cannot be run.
#[must_use]
pub fn command(arguments: &[&str]) -> Output {
    let output = Command::new(program()).args(arguments).stdin(Stdio::null()).output();
    output.expect("pgsteady can be run")
}

/// A running pgsteady; killed when dropped.
#[derive(Debug)]
pub struct Pgsteady {
    process: Option<Child>,
    host: Host,
    port: Port,
    folder: Folder,
    clock: Option<PathBuf>,
    /// The program that runs it, with its arguments; empty: none.
    under: Vec<String>,
}

impl Pgsteady {
    /// Starts it and waits until it listens.
    ///
    /// # Panics
    /// When it ends instead; its log is shown.
    pub async fn start(config: &Config) -> Self {
        Self::start_on(&Host::here(), config).await
    }

    /// The same on a host.
    ///
    /// # Panics
    /// As [`Pgsteady::start`].
    pub async fn start_on(host: &Host, config: &Config) -> Self {
        let mut started = Self::prepare(host, config);
        started.launch().await;
        started
    }

    /// One that has its place and its configuration, and is not started.
    #[must_use]
    pub fn prepare(host: &Host, config: &Config) -> Self {
        let (host, folder) = (host.clone(), Folder::new("p"));
        let started = Self { process: None, host, port: Port::new(), folder, clock: None, under: Vec::new() };
        started.configure(config);
        started
    }

    /// Starts it, after [`Pgsteady::kill`] where it was and with the same configuration, and waits until it listens.
    ///
    /// # Panics
    /// When it runs already, or ends instead; its log is shown.
    pub async fn launch(&mut self) {
        assert!(self.process.is_none(), "it runs");
        let path = self.folder.path().join("log");
        let log = File::options().create(true).append(true).open(&path).expect("a log can be opened");
        let errors = log.try_clone().expect("a file can be opened twice");
        let (program, file) = (program(), self.folder.path().join("pgsteady.toml"));
        let mut command = match self.under.split_first() {
            None => process::bound_to_us(&program),
            Some((under, arguments)) => {
                let mut command = process::bound_to_us(Path::new(under));
                command.args(arguments).arg(program);
                command
            }
        };
        command.arg("run").arg("-c").arg(file);
        if let Some(file) = &self.clock {
            command.env("LD_PRELOAD", FAKETIME).env("FAKETIME_TIMESTAMP_FILE", file);
            command.env("FAKETIME_CACHE_DURATION", "1").env("FAKETIME_DONT_FAKE_MONOTONIC", "1");
        }
        command.stdin(Stdio::null()).stdout(log).stderr(errors);
        let mut process = self.host.inside(|| command.spawn()).expect("pgsteady can be run");
        let log = || fs::read_to_string(&path).unwrap_or_default();
        process::listens(&mut process, self.address(), LIMIT, log).await;
        self.process = Some(process);
    }

    /// Whether it was started and not ended since.
    #[must_use]
    pub fn is_running(&self) -> bool {
        self.process.is_some()
    }

    /// From the next start on this program runs it, whose arguments go on with pgsteady's command.
    pub fn run_under(&mut self, program: &[&str]) {
        self.under = program.iter().map(ToString::to_string).collect();
    }

    /// From the next start on its wall clock is what this file says, as libfaketime takes it (`+2h`): read each second.
    pub fn set_clock_from(&mut self, file: &Path) {
        fs::write(file, "+0").expect("a file of the test can be written");
        self.clock = Some(file.to_owned());
    }

    /// As if its machine had gone.
    pub fn kill(&mut self) {
        if let Some(mut process) = self.process.take() {
            let _ = process.kill();
            let _ = process.wait();
        }
    }

    /// Where it listens.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        (self.host.address(), self.port()).into()
    }

    /// The port of that.
    #[must_use]
    pub fn port(&self) -> u16 {
        self.port.number()
    }

    /// Its process number.
    ///
    /// # Panics
    /// When it does not run.
    #[must_use]
    pub fn pid(&self) -> i32 {
        i32::try_from(self.process.as_ref().expect("pgsteady runs").id()).expect("process numbers are small")
    }

    /// Where `app` connects to.
    #[must_use]
    pub fn endpoint(&self) -> Endpoint {
        Endpoint { host: self.host.address().to_string(), ..Endpoint::app(self.port()) }
    }

    /// A folder that goes when it does.
    #[must_use]
    pub fn folder(&self) -> &Path {
        self.folder.path()
    }

    /// What it has logged.
    #[must_use]
    pub fn log(&self) -> String {
        fs::read_to_string(self.folder.path().join("log")).unwrap_or_default()
    }

    /// Waits until the part of the log after the first `from` bytes contains one of these texts.
    pub async fn logged(&self, from: usize, texts: &[&str]) {
        let found = || async {
            let log = self.log();
            texts.iter().any(|text| log[from..].contains(text)).then_some(())
        };
        wait_for(&format!("{texts:?} in the log"), LIMIT, found).await;
    }

    /// Runs a command against it: its exit status, and what it said.
    ///
    /// # Panics
    /// When it cannot be run, or was ended by a signal.
    pub async fn command(&self, arguments: &[&str]) -> (i32, String, String) {
        let file = self.folder.path().join("pgsteady.toml").display().to_string();
        let arguments: Vec<String> = arguments.iter().map(ToString::to_string).chain(["-c".to_owned(), file]).collect();
        let run = move || command(&arguments.iter().map(String::as_str).collect::<Vec<_>>());
        let output = tokio::task::spawn_blocking(run).await.expect("a command does not panic");
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        (output.status.code().expect("it ended by itself"), text(&output.stdout), text(&output.stderr))
    }

    /// What `pgsteady status --json` says of it.
    ///
    /// # Panics
    /// When that is not JSON.
    pub async fn status(&self) -> serde_json::Value {
        let (_, out, err) = self.command(&["status", "--json"]).await;
        serde_json::from_str(&out).unwrap_or_else(|error| panic!("{error}: {out}{err}"))
    }

    /// Waits until the rule of its cluster has so many standbys.
    pub async fn counts_on(&self, standbys: usize) {
        let counted =
            || async { (self.status().await["rule"]["standbys"].as_array()?.len() == standbys).then_some(()) };
        wait_for(&format!("{standbys} standbys in the rule"), WHOLE, counted).await;
    }

    fn configure(&self, config: &Config) {
        let address = Value::Array(vec![self.address().to_string().into()]);
        let text = config.clone().set("listen.address", address).text();
        let file = self.folder.write("pgsteady.toml", &text);
        fs::set_permissions(&file, fs::Permissions::from_mode(0o600)).expect("our own file's mode can be set");
    }

    /// Replaces the configuration file and sends SIGHUP; returns how long the log was before.
    pub fn reload(&self, config: &Config) -> usize {
        let before = self.log().len();
        self.configure(config);
        process::signal(self.pid(), Signal::SIGHUP);
        before
    }

    /// Replaces the configuration file by this text and sends SIGHUP; returns how long the log was before.
    pub fn reload_text(&self, text: &str) -> usize {
        let before = self.log().len();
        self.folder.write("pgsteady.toml", text);
        process::signal(self.pid(), Signal::SIGHUP);
        before
    }

    /// Sends SIGTERM.
    pub fn terminate(&self) {
        process::signal(self.pid(), Signal::SIGTERM);
    }

    /// Waits until it has ended.
    ///
    /// # Panics
    /// When it does not end within `limit`.
    pub async fn ended(&mut self, limit: Duration) -> ExitStatus {
        let deadline = tokio::time::Instant::now() + limit;
        loop {
            let process = self.process.as_mut().expect("pgsteady runs");
            if let Some(status) = process.try_wait().expect("a child can be waited for") {
                return status;
            }
            assert!(tokio::time::Instant::now() < deadline, "pgsteady did not end:\n{}", self.log());
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    /// That it lives.
    ///
    /// # Panics
    /// When it has ended.
    pub fn lives(&mut self) {
        let ended = self.process.as_mut().expect("pgsteady runs").try_wait().expect("a child can be waited for");
        assert!(ended.is_none(), "pgsteady ended ({}):\n{}", ended.unwrap_or_default(), self.log());
    }
}

impl Drop for Pgsteady {
    fn drop(&mut self) {
        self.kill();
        if std::thread::panicking() {
            let log = self.log();
            let lines: Vec<&str> = log.lines().filter(|line| !line.contains(" DEBUG ")).collect();
            eprintln!("the end of pgsteady's log:\n{}", lines[lines.len().saturating_sub(60)..].join("\n"));
        }
    }
}
