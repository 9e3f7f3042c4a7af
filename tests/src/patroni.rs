//! A cluster that Patroni runs: its agent and PostgreSQL on a host each, killed with all that is on the host when dropped.

use std::fmt::Write as _;
use std::fs::{self, File};
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use nix::sys::signal::Signal;

use crate::endpoint::Endpoint;
use crate::folder::{Folder, base, give};
use crate::host::{self, Host};
use crate::port::Port;
use crate::programs::{Programs, as_account, lock, repository, run};
use crate::{process, wait_for};

/// How long it may take to make a primary and its standbys.
const START_LIMIT: Duration = Duration::from_secs(90);
/// For one request to an agent.
const REQUEST_LIMIT: Duration = Duration::from_secs(2);
/// The superuser's password.
const PASSWORD: &str = "postgres-secret";
/// The roles that the harness uses everywhere.
const ROLES: &str = "\
CREATE ROLE app LOGIN PASSWORD 'app-secret';
CREATE ROLE steady SUPERUSER LOGIN PASSWORD 'steady-secret';";

/// How fast it is told to be: seconds.
#[derive(Debug, Clone, Copy)]
pub struct Pace {
    /// Life of the leader's key in etcd.
    pub ttl: u32,
    /// Between two looks.
    pub loop_wait: u32,
    /// For one operation with PostgreSQL or etcd.
    pub retry_timeout: u32,
}

impl Pace {
    /// What Patroni does if it is told nothing.
    pub const DEFAULT: Self = Self { ttl: 30, loop_wait: 10, retry_timeout: 10 };
    /// The least that it accepts.
    pub const FASTEST: Self = Self { ttl: 20, loop_wait: 1, retry_timeout: 3 };
}

/// The members.
#[derive(Debug)]
pub struct Patroni {
    members: Vec<Member>,
}

#[derive(Debug)]
struct Member {
    name: String,
    host: Host,
    folder: Folder,
    port: Port,
    rest: Port,
    agent: Option<Child>,
}

impl Patroni {
    /// A primary and its standbys, one of them synchronous, on these hosts, with the database `app` and the roles of the harness.
    ///
    /// # Panics
    /// When `tools/install.sh` has not been run, or it takes too long.
    pub async fn start(hosts: &[Host], etcd: &str, pace: Pace) -> Self {
        let site = site();
        let member = |(host, number): (&Host, usize)| {
            let (name, host, folder) = (format!("n{number}"), host.clone(), Folder::new("patroni"));
            Member { name, host, folder, port: Port::new(), rest: Port::new(), agent: None }
        };
        let mut patroni = Self { members: hosts.iter().zip(1..).map(member).collect() };
        for member in &mut patroni.members {
            member.configure(etcd, pace);
            member.launch(&site);
        }
        let led = || async { patroni.leader() };
        let leader = wait_for("Patroni's leader", START_LIMIT, led).await;
        patroni.prepare(leader).await;
        patroni.whole().await;
        patroni
    }

    /// Waits until there is a leader, all others are its standbys, and one of them is synchronous: without one, Patroni
    /// promotes nobody when the leader is lost.
    ///
    /// # Panics
    /// When it takes too long.
    pub async fn whole(&self) {
        let standbys = self.members.len() - 1;
        let whole = || async { (self.say("/replica") == standbys && self.say("/synchronous") > 0).then_some(()) };
        wait_for("Patroni's standbys", START_LIMIT, whole).await;
    }

    async fn prepare(&self, leader: usize) {
        self.superuser(leader, "postgres").client().await.batch_execute(ROLES).await.expect("roles can be made");
        let database = "CREATE DATABASE app OWNER app";
        self.superuser(leader, "postgres").client().await.batch_execute(database).await.expect("so can a database");
    }

    /// Name and address of each member's PostgreSQL.
    #[must_use]
    pub fn nodes(&self) -> Vec<(String, SocketAddr)> {
        self.members.iter().map(|member| (member.name.clone(), member.place(&member.port))).collect()
    }

    /// Where each agent answers.
    #[must_use]
    pub fn agents(&self) -> Vec<SocketAddr> {
        self.members.iter().map(|member| member.place(&member.rest)).collect()
    }

    /// The superuser at a member, past every proxy.
    #[must_use]
    pub fn superuser(&self, member: usize, database: &str) -> Endpoint {
        let member = &self.members[member];
        let place = Endpoint { host: member.host.address().to_string(), ..Endpoint::app(member.port.number()) };
        place.with_user("postgres", PASSWORD).with_database(database)
    }

    /// The member whose agent says that it leads.
    #[must_use]
    pub fn leader(&self) -> Option<usize> {
        self.members.iter().position(|member| member.request("GET", "/primary", "").starts_with("HTTP/1.0 200"))
    }

    /// How many agents say yes to this question.
    fn say(&self, path: &str) -> usize {
        self.members.iter().filter(|member| member.request("GET", path, "").starts_with("HTTP/1.0 200")).count()
    }

    /// Where a member runs.
    #[must_use]
    pub fn host(&self, member: usize) -> &Host {
        &self.members[member].host
    }

    /// Asks for another leader, as `patronictl switchover` does; returns what is answered.
    #[must_use]
    pub fn switch_over(&self, leader: usize) -> String {
        let wish = format!("{{\"leader\": \"{}\"}}", self.members[leader].name);
        self.members[leader].request("POST", "/switchover", &wish)
    }

    /// All on a member's host is gone.
    pub fn kill(&mut self, member: usize) {
        self.members[member].kill();
    }

    /// Starts its agent again.
    pub fn restart(&mut self, member: usize) {
        self.members[member].launch(&site());
    }
}

impl Member {
    fn place(&self, port: &Port) -> SocketAddr {
        (self.host.address(), port.number()).into()
    }

    fn configure(&self, etcd: &str, pace: Pace) {
        let Pace { ttl, loop_wait, retry_timeout } = pace;
        let (name, folder, bin) = (&self.name, self.folder.path().display(), Programs::installed().bin);
        let (place, rest, bin) = (self.place(&self.port), self.place(&self.rest), bin.display());
        let etcd = etcd.trim_start_matches("http://");
        let mut text = format!(
            "scope: main\nname: {name}\n\
             restapi: {{listen: '{rest}', connect_address: '{rest}'}}\n\
             etcd3: {{hosts: ['{etcd}']}}\n\
             bootstrap:\n  initdb: [{{encoding: UTF8}}, {{locale: C}}, no-sync]\n  dcs:\n    \
             ttl: {ttl}\n    loop_wait: {loop_wait}\n    retry_timeout: {retry_timeout}\n    synchronous_mode: true\n    \
             postgresql: {{use_pg_rewind: true}}\n\
             postgresql:\n  listen: '{place}'\n  connect_address: '{place}'\n  data_dir: '{folder}/data'\n  \
             bin_dir: '{bin}'\n  pgpass: '{folder}/pgpass'\n  basebackup: [{{checkpoint: fast}}]\n  authentication:\n    \
             superuser: {{username: postgres, password: {PASSWORD}}}\n    \
             replication: {{username: postgres, password: {PASSWORD}}}\n  \
             parameters: {{unix_socket_directories: '{folder}', fsync: 'off', max_connections: 60, \
             shared_buffers: 16MB, wal_keep_size: 64MB, dynamic_shared_memory_type: mmap}}\n  pg_hba:\n  - local all all trust\n"
        );
        for network in ["127.0.0.1/32", host::RANGE] {
            let _ = writeln!(text, "  - host all all {network} md5\n  - host replication all {network} md5");
        }
        give(&self.folder.write("patroni.yml", &text));
    }

    fn launch(&mut self, site: &Path) {
        let log = File::options().create(true).append(true).open(self.folder.path().join("log")).expect("a log");
        let errors = log.try_clone().expect("a file can be opened twice");
        let mut command = as_account(process::bound_to_us(Path::new("python3")));
        command.env("PYTHONPATH", site).args(["-m", "patroni"]).arg(self.folder.path().join("patroni.yml"));
        command.stdout(log).stderr(errors);
        self.agent = Some(self.host.inside(|| command.spawn()).expect("python3 can be run"));
    }

    fn kill(&mut self) {
        self.host.signal(Signal::SIGKILL);
        if let Some(mut agent) = self.agent.take() {
            let _ = agent.wait();
        }
    }

    /// What its agent answers; empty if it does not.
    fn request(&self, method: &str, path: &str, body: &str) -> String {
        let ask = || -> std::io::Result<String> {
            let mut stream = TcpStream::connect_timeout(&self.place(&self.rest), REQUEST_LIMIT)?;
            stream.set_read_timeout(Some(REQUEST_LIMIT.max(START_LIMIT)))?;
            write!(stream, "{method} {path} HTTP/1.0\r\nContent-Length: {}\r\n\r\n{body}", body.len())?;
            let mut answer = String::new();
            stream.read_to_string(&mut answer)?;
            Ok(answer)
        };
        ask().unwrap_or_default()
    }
}

impl Drop for Member {
    fn drop(&mut self) {
        self.kill();
        if std::thread::panicking() {
            let log = fs::read_to_string(self.folder.path().join("log")).unwrap_or_default();
            let lines: Vec<&str> = log.lines().collect();
            eprintln!("the end of {}'s log:\n{}", self.name, lines[lines.len().saturating_sub(15)..].join("\n"));
        }
    }
}

/// Patroni's Python packages, copied to where the account of PostgreSQL may read them.
fn site() -> PathBuf {
    let _lock = lock("patroni");
    let copy = base().join("patroni");
    if !copy.join("installed.txt").exists() {
        let installed = repository().join(".cache/patroni");
        assert!(installed.exists(), "Patroni is installed by tools/install.sh test");
        let _ = fs::remove_dir_all(&copy);
        run(Command::new("cp").arg("-r").arg(installed).arg(&copy).stdin(Stdio::null()));
        run(Command::new("chmod").arg("-R").arg("a+rX").arg(&copy));
    }
    copy
}
