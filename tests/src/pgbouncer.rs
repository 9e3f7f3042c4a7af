//! The program under PgBouncer's name: its `pgbouncer.ini`, its process, its console, its log.

use std::fmt::Write as _;
use std::fs;
use std::net::Ipv4Addr;
use std::os::unix::net::UnixDatagram;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::Duration;

use nix::sys::signal::Signal;
use tokio_postgres::{Client, SimpleQueryMessage};

use crate::endpoint::Endpoint;
use crate::folder::{self, Folder};
use crate::pgsteady::program;
use crate::port::Port;
use crate::postgres::{Node, Programs};
use crate::{process, wait_for};

/// How long it may take to listen, to end, or to log what a test waits for.
const LIMIT: Duration = Duration::from_secs(15);

/// A running process that was called as `pgbouncer`; killed when dropped.
pub struct PgBouncer {
    process: Child,
    port: Port,
    folder: Folder,
}

impl PgBouncer {
    /// Starts it with these databases and settings, and a list of users; waits until it listens. Where it listens and logs,
    /// and that `admin` may do everything, is added.
    ///
    /// # Panics
    /// When it ends instead; its log is shown.
    pub async fn start(databases: &str, settings: &str, users: &str) -> Self {
        Self::start_program(None, databases, settings, users).await
    }

    /// The same in front of a node of its own, which `$` stands for in the databases.
    pub async fn with_node(databases: &str, settings: &str, users: &str) -> (Node, Self) {
        let node = Node::primary(&Programs::installed()).await;
        let bouncer = Self::start(&at(&node, databases), settings, users).await;
        (node, bouncer)
    }

    /// The same with PgBouncer itself, if its program is given.
    ///
    /// # Panics
    /// When it ends instead; its log is shown.
    pub async fn start_program(theirs: Option<&Path>, databases: &str, settings: &str, users: &str) -> Self {
        let (folder, port, file) = prepare(databases, settings, users);
        let process = theirs.map_or_else(|| launch(&file, &[]), |theirs| run(process::bound_to_us(theirs), &file, &[]));
        let mut started = Self { process, port, folder };
        let (port, log) = (started.port(), started.folder.path().join("log"));
        let log = || fs::read_to_string(&log).unwrap_or_default();
        process::listens(&mut started.process, (Ipv4Addr::LOCALHOST, port).into(), LIMIT, log).await;
        started
    }

    /// The same under systemd's own program for socket activation, which listens at this port and at a Unix socket and starts
    /// it with the first client, and with a socket that hears what systemd would be told; both have to be waited for.
    pub fn activated(databases: &str, settings: &str, users: &str) -> (Self, UnixDatagram) {
        let (folder, port, file) = prepare(databases, settings, users);
        let notify = folder.path().join("notify");
        let heard = UnixDatagram::bind(&notify).expect("a socket of the test can be made");
        folder::give(&notify);
        let mut command = process::bound_to_us(Path::new("systemd-socket-activate"));
        command.arg("-l").arg(format!("127.0.0.1:{}", port.number())).arg("-l");
        command.arg(folder.path().join(format!(".s.PGSQL.{}", port.number())));
        command.arg("-E").arg(format!("NOTIFY_SOCKET={}", notify.display())).arg(program()).arg("pgbouncer");
        (Self { process: run(command, &file, &[]), port, folder }, heard)
    }

    /// Another process with `-R`, which takes the place of this one; the old process.
    pub async fn hand_over(&mut self) -> Child {
        self.hand_over_to(None).await
    }

    /// The same, to PgBouncer itself if its program is given.
    pub async fn hand_over_to(&mut self, theirs: Option<&Path>) -> Child {
        let before = self.log().matches("process up").count();
        let file = self.folder.path().join("pgbouncer.ini");
        let ours = || launch(&file, &["-R"]);
        let new = theirs.map_or_else(ours, |theirs| run(process::bound_to_us(theirs), &file, &["-R"]));
        let old = std::mem::replace(&mut self.process, new);
        let ups = || self.log().matches("process up").count();
        let up = || async { (ups() > before).then_some(()) };
        wait_for("the new process", LIMIT, up).await;
        old
    }

    /// Where it listens.
    #[must_use]
    pub fn port(&self) -> u16 {
        self.port.number()
    }

    /// Its folder, with its Unix socket.
    #[must_use]
    pub fn folder(&self) -> &Folder {
        &self.folder
    }

    /// Where a user connects to a database.
    #[must_use]
    pub fn endpoint(&self, user: &str, password: &str, database: &str) -> Endpoint {
        Endpoint::app(self.port()).with_user(user, password).with_database(database)
    }

    /// The console, as the user `admin`.
    pub async fn console(&self) -> Client {
        self.endpoint("admin", "admin-secret", "pgbouncer").client().await
    }

    /// Replaces databases and settings; they count after a RELOAD.
    pub fn write(&self, databases: &str, settings: &str) {
        self.folder.write("pgbouncer.ini", &ini(self.folder.path(), self.port(), databases, settings));
    }

    /// What it has logged.
    #[must_use]
    pub fn log(&self) -> String {
        fs::read_to_string(self.folder.path().join("log")).unwrap_or_default()
    }

    /// Waits until the part of the log after the first `from` bytes contains this text.
    pub async fn logged(&self, from: usize, text: &str) {
        let found = || async { self.log()[from..].contains(text).then_some(()) };
        wait_for(&format!("{text:?} in the log"), LIMIT, found).await;
    }

    /// Sends it a signal.
    ///
    /// # Panics
    /// Never: process numbers are small.
    pub fn signal(&self, signal: Signal) {
        process::signal(i32::try_from(self.process.id()).expect("process numbers are small"), signal);
    }

    /// Waits until it has ended.
    pub async fn ended(&mut self) -> ExitStatus {
        ended(&mut self.process).await
    }
}

/// Waits until a process has ended.
///
/// # Panics
/// When it does not.
pub async fn ended(process: &mut Child) -> ExitStatus {
    let deadline = tokio::time::Instant::now() + LIMIT;
    loop {
        if let Some(status) = process.try_wait().expect("a child can be waited for") {
            return status;
        }
        assert!(tokio::time::Instant::now() < deadline, "it did not end");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

impl Drop for PgBouncer {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
        if std::thread::panicking() {
            let log = self.log();
            let lines: Vec<&str> = log.lines().collect();
            eprintln!("the end of its log:\n{}", lines[lines.len().saturating_sub(60)..].join("\n"));
        }
    }
}

/// The settings of a listener with TLS, by this certificate and key.
#[must_use]
pub fn client_tls(sslmode: &str, (certificate, key): &(PathBuf, PathBuf)) -> String {
    let (certificate, key) = (certificate.display(), key.display());
    format!("client_tls_sslmode = {sslmode}\nclient_tls_cert_file = {certificate}\nclient_tls_key_file = {key}\n")
}

/// Databases with the address of a node in the place of each `$`.
#[must_use]
pub fn at(node: &Node, databases: &str) -> String {
    databases.replace('$', &format!("host=127.0.0.1 port={}", node.port()))
}

/// The files of a process, and where it will listen.
fn prepare(databases: &str, settings: &str, users: &str) -> (Folder, Port, PathBuf) {
    let (folder, port) = (Folder::new("b"), Port::new());
    folder.write("userlist.txt", users);
    let file = folder.write("pgbouncer.ini", &ini(folder.path(), port.number(), databases, settings));
    (folder, port, file)
}

/// Runs as the account that PostgreSQL runs as: PgBouncer refuses to be root.
fn launch(file: &Path, options: &[&str]) -> Child {
    let mut command = process::bound_to_us(&program());
    command.arg("pgbouncer");
    run(command, file, options)
}

fn run(mut command: Command, file: &Path, options: &[&str]) -> Child {
    command.arg("-q").args(options);
    if let Some(account) = folder::account() {
        command.arg("-u").arg(account.name);
    }
    command.arg(file).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    command.spawn().expect("pgsteady can be run")
}

fn ini(folder: &Path, port: u16, databases: &str, settings: &str) -> String {
    let folder = folder.display();
    let mut text = String::new();
    let _ = write!(
        text,
        "[databases]\n{databases}\n[pgbouncer]\nlisten_addr = 127.0.0.1\nlisten_port = {port}\nunix_socket_dir = {folder}\n\
         logfile = {folder}/log\nauth_file = {folder}/userlist.txt\nadmin_users = admin\n{settings}\n"
    );
    text
}

/// The rows of a SHOW, each as `column=value` pairs; the protocol is the simple one.
///
/// # Panics
/// When the console refuses.
pub async fn show(console: &Client, what: &str) -> Vec<Vec<(String, String)>> {
    let answers = console.simple_query(&format!("SHOW {what}")).await;
    let answers = answers.unwrap_or_else(|error| panic!("SHOW {what}: {}", crate::endpoint::say(&error)));
    let row = |message: SimpleQueryMessage| match message {
        SimpleQueryMessage::Row(row) => {
            let names = row.columns().iter().map(|column| column.name().to_owned());
            Some(names.enumerate().map(|(i, name)| (name, row.get(i).unwrap_or("").to_owned())).collect())
        }
        _ => None,
    };
    answers.into_iter().filter_map(row).collect()
}

/// A value of the first row whose column `key` is `is`.
///
/// # Panics
/// When there is no such row or column.
pub async fn shown(console: &Client, what: &str, key: &str, is: &str, column: &str) -> String {
    let rows = show(console, what).await;
    let value = |row: &[(String, String)], name: &str| row.iter().find(|(n, _)| n == name).map(|(_, v)| v.clone());
    let row = rows.iter().find(|row| value(row, key).as_deref() == Some(is));
    row.and_then(|row| value(row, column)).unwrap_or_else(|| panic!("SHOW {what}: no {column} where {key} is {is}"))
}
