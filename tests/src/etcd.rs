//! A real etcd of one member or several, in the clear or with TLS and password; ended and removed when dropped.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use nix::sys::signal::Signal;

use crate::certificates::Certificate;
use crate::folder::Folder;
use crate::host::Host;
use crate::port::Port;
use crate::process;

/// How long it may take to listen, and to have a leader.
const LIMIT: Duration = Duration::from_secs(20);
/// The password of etcd's root and of `steady` there.
pub const PASSWORD: &str = "etcd-secret";

/// One member.
#[derive(Debug)]
pub struct Etcd {
    process: Option<Child>,
    name: String,
    host: Host,
    port: Port,
    peer: Port,
    /// All members and where they reach each other, as etcd takes it.
    members: String,
    folder: Folder,
    tls: Option<PathBuf>,
}

impl Etcd {
    /// In the clear, for everybody.
    pub async fn start() -> Self {
        Self::on(&[Host::here()]).await.remove(0)
    }

    /// One member on each of these hosts, in the clear, for everybody.
    pub async fn on(hosts: &[Host]) -> Vec<Self> {
        let mut members = Self::prepare(hosts);
        members.iter_mut().for_each(Self::launch);
        for member in &mut members {
            member.answers().await;
        }
        members
    }

    fn prepare(hosts: &[Host]) -> Vec<Self> {
        let member = |(host, number): (&Host, usize)| Self {
            process: None,
            name: format!("e{number}"),
            host: host.clone(),
            port: Port::new(),
            peer: Port::new(),
            members: String::new(),
            folder: Folder::new("etcd"),
            tls: None,
        };
        let mut members: Vec<Self> = hosts.iter().zip(1..).map(member).collect();
        let all: Vec<String> = members.iter().map(|member| format!("{}={}", member.name, member.peer())).collect();
        members.iter_mut().for_each(|member| member.members = all.join(","));
        members
    }

    /// With TLS, and for the users `root` and `steady` alone; `steady` may use what begins with `/pgsteady/`.
    pub async fn guarded() -> Self {
        let authority = Certificate::authority("etcd's authority");
        let mut etcd = Self::prepare(&[Host::here()]).remove(0);
        let (certificate, key) = authority.sign("localhost").write(&etcd.folder, "etcd");
        drop((certificate, key));
        let (ca, _) = authority.write(&etcd.folder, "ca");
        etcd.tls = Some(ca);
        etcd.restart().await;
        let user = format!("root:{PASSWORD}");
        etcd.control(&["user", "add", &user]);
        etcd.control(&["user", "grant-role", "root", "root"]);
        etcd.control(&["role", "add", "steady"]);
        etcd.control(&["role", "grant-permission", "steady", "--prefix=true", "readwrite", "/pgsteady/"]);
        etcd.control(&["user", "add", &format!("steady:{PASSWORD}")]);
        etcd.control(&["user", "grant-role", "steady", "steady"]);
        etcd.control(&["auth", "enable"]);
        etcd
    }

    /// Where it answers.
    #[must_use]
    pub fn endpoint(&self) -> String {
        match &self.tls {
            None => format!("http://{}:{}", self.host.address(), self.port.number()),
            Some(_) => format!("https://localhost:{}", self.port.number()),
        }
    }

    fn peer(&self) -> String {
        format!("http://{}:{}", self.host.address(), self.peer.number())
    }

    /// Where it runs.
    #[must_use]
    pub fn host(&self) -> &Host {
        &self.host
    }

    /// The authority that signed its certificate.
    #[must_use]
    pub fn ca(&self) -> Option<&Path> {
        self.tls.as_deref()
    }

    /// Starts it on what it had before, and waits until it answers.
    ///
    /// # Panics
    /// When it ends instead.
    pub async fn restart(&mut self) {
        self.launch();
        self.answers().await;
    }

    /// Starts it on what it had before, without waiting.
    ///
    /// # Panics
    /// When it runs.
    pub fn launch(&mut self) {
        assert!(self.process.is_none(), "it runs");
        let log = File::options().create(true).append(true).open(self.log_path()).expect("a log");
        let mut command = process::bound_to_us(Path::new("/usr/bin/etcd"));
        command.args(["--name", &self.name, "--data-dir"]).arg(self.folder.path().join("data"));
        command.args(["--listen-client-urls", &self.endpoint().replace("localhost", "127.0.0.1")]);
        command.args(["--advertise-client-urls", &self.endpoint()]);
        command.args(["--listen-peer-urls", &self.peer(), "--initial-advertise-peer-urls", &self.peer()]);
        command.args(["--initial-cluster", &self.members]);
        if self.tls.is_some() {
            command.arg("--cert-file").arg(self.folder.path().join("etcd.crt"));
            command.arg("--key-file").arg(self.folder.path().join("etcd.key"));
        }
        command.stdin(Stdio::null()).stdout(log.try_clone().expect("a file can be opened twice")).stderr(log);
        self.process = Some(self.host.inside(|| command.spawn()).expect("etcd can be run: package etcd-server"));
    }

    /// Waits until it answers, which it does when it knows a leader.
    ///
    /// # Panics
    /// When it ends instead.
    pub async fn answers(&mut self) {
        let (address, file) = ((self.host.address(), self.port.number()).into(), self.log_path());
        let process = self.process.as_mut().expect("it runs");
        process::listens(process, address, LIMIT, || std::fs::read_to_string(&file).unwrap_or_default()).await;
    }

    fn log_path(&self) -> PathBuf {
        self.folder.path().join("log")
    }

    /// Whether it was started and not ended since.
    #[must_use]
    pub fn is_running(&self) -> bool {
        self.process.is_some()
    }

    /// As if its machine had gone.
    ///
    /// # Panics
    /// When it does not run.
    pub fn kill(&mut self) {
        let mut process = self.process.take().expect("it runs");
        process.kill().and_then(|()| process.wait()).expect("a child can be killed");
    }

    /// Stops it without its end: nobody hears from it.
    ///
    /// # Panics
    /// When it does not run.
    pub fn signal(&self, signal: Signal) {
        let process = self.process.as_ref().expect("it runs");
        process::signal(process.id().cast_signed(), signal);
    }

    /// The value of a key, as `root` sees it.
    #[must_use]
    pub fn get(&self, key: &str) -> String {
        self.control(&["get", "--print-value-only", key])
    }

    fn control(&self, arguments: &[&str]) -> String {
        let mut command = Command::new("etcdctl");
        command.env("ETCDCTL_API", "3").args(["--endpoints", &self.endpoint()]);
        if let Some(ca) = &self.tls {
            command.arg("--cacert").arg(ca);
            if arguments[0] == "get" {
                command.args(["--user", &format!("root:{PASSWORD}")]);
            }
        }
        let output = command.args(arguments).output().expect("etcdctl can be run: package etcd-client");
        let error = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "etcdctl {}: {error}", arguments[0]);
        String::from_utf8_lossy(&output.stdout).trim().to_owned()
    }
}

impl Drop for Etcd {
    fn drop(&mut self) {
        if let Some(mut process) = self.process.take() {
            let _ = process.kill();
            let _ = process.wait();
        }
    }
}
