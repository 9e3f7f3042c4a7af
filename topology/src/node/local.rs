//! One PostgreSQL instance on this machine: a data directory, and the processes if it runs.

use std::path::{Path, PathBuf};
use std::process::{ExitStatus, Stdio};
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;
use tokio_postgres::error::SqlState;
use tokio_postgres::{Client, Config};

use super::files::{following, remove};
use super::process::{Postmaster, end_orphans};
use super::programs::Run;
use super::upstream::login;
use super::{Account, NodeError, Programs, Settings, Upstream};
use crate::Address;

/// A node on this machine. It runs or not; dropping it kills what runs.
#[derive(Debug)]
pub struct LocalNode {
    pub(super) programs: Programs,
    pub(super) account: Account,
    pub(super) site: Site,
    postmaster: Option<Postmaster>,
}

/// What a node is called, and where it is and listens.
#[derive(Debug, Clone)]
pub struct Site {
    /// Its name: `cluster_name`, and so `application_name` as a standby.
    pub name: String,
    /// Its data directory. The folder above it is written to as well (a copy is made beside, then put in its place).
    pub data: PathBuf,
    /// The folder of its Unix socket.
    pub sockets: PathBuf,
    /// `listen_addresses`
    pub listen: String,
    /// Its port, of TCP and of the Unix socket's name.
    pub port: u16,
    /// The superuser that initdb makes, and as whom we ask it through the Unix socket.
    pub superuser: String,
    /// Password file (`PGPASSFILE`, PostgreSQL 34.16) for the node it copies or follows, if that asks for a password.
    /// Readable to the account that PostgreSQL runs as.
    pub passfile: Option<PathBuf>,
    /// Where its log goes.
    pub log: Log,
}

/// Where a node's log goes.
#[derive(Debug, Clone)]
pub enum Log {
    /// Appended to a file.
    File(PathBuf),
    /// To our own standard error.
    Inherit,
}

/// How a new data directory is made.
#[derive(Debug, Clone)]
pub struct Init {
    /// What is put into `postgresql.conf`.
    pub settings: Settings,
    /// The whole `pg_hba.conf`; with `None` everybody on this machine is let in without a password.
    pub hba: Option<String>,
    /// The superuser's password, written with `password_encryption`'s default (scram-sha-256).
    pub password_file: Option<PathBuf>,
    /// Waits until the files are on disk. Not for what is thrown away.
    pub sync: bool,
}

/// How a node is stopped (`pg_ctl`'s words).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stop {
    /// Sessions are ended, everything is written: SIGINT.
    Fast,
    /// As if it had crashed: SIGQUIT.
    Immediate,
}

/// Bound on making a data directory.
const INITDB: Duration = Duration::from_secs(120);
/// Bound on a base backup; the data has to be read, sent and written.
const BASE_BACKUP: Duration = Duration::from_secs(24 * 3600);
/// Bound on the start, crash recovery included.
const START: Duration = Duration::from_secs(300);
/// Bound on a fast stop; after it the node is killed.
const STOP: Duration = Duration::from_secs(60);
/// Between two looks at a node that starts.
const LOOK: Duration = Duration::from_millis(10);
/// Part of the log that goes into an error.
const LOG_TAIL_BYTES: u64 = 2000;

impl LocalNode {
    /// A node that does not run. Nothing is looked at or changed yet.
    #[must_use]
    pub fn new(programs: Programs, account: Account, site: Site) -> Self {
        Self { programs, account, site, postmaster: None }
    }

    /// What it is called, and where it is and listens.
    #[must_use]
    pub fn site(&self) -> &Site {
        &self.site
    }

    /// As whom it runs.
    #[must_use]
    pub fn account(&self) -> &Account {
        &self.account
    }

    /// Its address for TCP on this machine.
    #[must_use]
    pub fn address(&self) -> Address {
        Address::Tcp("127.0.0.1".into(), self.site.port)
    }

    /// Its address by Unix socket.
    #[must_use]
    pub fn socket(&self) -> Address {
        Address::Unix(self.site.sockets.clone(), self.site.port)
    }

    /// Is there a data directory with something in it?
    #[must_use]
    pub fn exists(&self) -> bool {
        self.site.data.join("PG_VERSION").is_file()
    }

    /// Is there something unfinished: a copy that was not put in its place, or what it was to replace?
    #[must_use]
    pub fn has_remains(&self) -> bool {
        let data = &self.site.data;
        let filled = std::fs::read_dir(data).is_ok_and(|mut entries| entries.next().is_some());
        self.beside("new").exists() || self.beside("old").exists() || (filled && !self.exists())
    }

    /// Will it come up as a standby?
    #[must_use]
    pub fn is_marked_standby(&self) -> bool {
        self.standby_signal().is_file()
    }

    pub(super) fn standby_signal(&self) -> PathBuf {
        self.site.data.join("standby.signal")
    }

    /// The folder above the data directory.
    pub(super) fn folder(&self) -> &Path {
        self.site.data.parent().unwrap_or(Path::new("/"))
    }

    pub(super) fn not_running(&self) -> Result<(), NodeError> {
        match self.postmaster {
            None => Ok(()),
            Some(_) => Err(NodeError::refused(&self.site.name, "it runs")),
        }
    }

    /// Makes a new, empty cluster of databases: UTF8, locale C, with data checksums.
    ///
    /// # Errors
    /// If there is one already, or initdb fails.
    pub async fn init(&self, init: &Init) -> Result<(), NodeError> {
        self.not_running()?;
        if self.exists() {
            return Err(NodeError::refused(&self.site.name, "it has a data directory already"));
        }
        let mut arguments: Vec<std::ffi::OsString> = vec!["-D".into(), self.site.data.clone().into()];
        arguments.extend(["--encoding=UTF8", "--locale=C", "--data-checksums", "--no-instructions"].map(Into::into));
        arguments.extend(["-U".into(), self.site.superuser.clone().into(), "--auth=trust".into()]);
        if let Some(file) = &init.password_file {
            arguments.push(format!("--pwfile={}", file.display()).into());
        }
        if !init.sync {
            arguments.push("--no-sync".into());
        }
        self.run("initdb", arguments, INITDB).await?;
        let configuration = self.site.data.join("postgresql.conf");
        let ours = std::fs::read_to_string(&configuration).map_err(|e| NodeError::io("read", &configuration, e))?;
        self.account.write(&configuration, &(ours + &init.settings.text()))?;
        match &init.hba {
            Some(text) => self.account.write(&self.site.data.join("pg_hba.conf"), text),
            None => Ok(()),
        }
    }

    pub(super) async fn run(
        &self,
        program: &'static str,
        arguments: Vec<std::ffi::OsString>,
        bound: Duration,
    ) -> Result<String, NodeError> {
        let (node, folder, passfile) = (self.site.name.as_str(), self.folder(), self.site.passfile.as_deref());
        self.programs.run(&self.account, Run { program, node, folder, arguments, passfile, bound }).await
    }

    /// Copies a running node into our data directory (`pg_basebackup`), as a standby of it. What was there before stays
    /// until the copy is complete: it may be all that is left of something.
    ///
    /// # Errors
    /// If we run, or the copy fails.
    pub async fn clone_from(&mut self, upstream: &Upstream) -> Result<(), NodeError> {
        self.not_running()?;
        let fresh = self.beside("new");
        remove(&fresh)?;
        let mut arguments: Vec<std::ffi::OsString> = vec!["-D".into(), fresh.clone().into()];
        arguments.extend(["--wal-method=stream", "--checkpoint=fast", "--no-sync", "--no-password"].map(Into::into));
        // a copy needs no application_name of its own; with the node's it would count as a synchronous standby
        arguments.extend(["-d".into(), upstream.conninfo("pgsteady base backup", None).into()]);
        self.run("pg_basebackup", arguments, BASE_BACKUP).await?;
        self.mark_standby(&fresh, Some(upstream))?;
        let old = self.beside("old");
        remove(&old)?;
        if self.site.data.exists() {
            std::fs::rename(&self.site.data, &old).map_err(|e| NodeError::io("rename", &self.site.data, e))?;
        }
        std::fs::rename(&fresh, &self.site.data).map_err(|e| NodeError::io("rename", &fresh, e))?;
        remove(&old)
    }

    fn beside(&self, ending: &str) -> PathBuf {
        let mut path = self.site.data.clone();
        path.as_mut_os_string().push(format!(".{ending}"));
        path
    }

    /// Puts `standby.signal` in place, and whom to follow.
    pub(super) fn mark_standby(&self, data: &Path, upstream: Option<&Upstream>) -> Result<(), NodeError> {
        self.account.write(&data.join("standby.signal"), "")?;
        let Some(upstream) = upstream else { return Ok(()) };
        let path = data.join("postgresql.auto.conf");
        let text = match std::fs::read_to_string(&path) {
            Ok(text) => text,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => String::new(),
            Err(error) => return Err(NodeError::io("read", &path, error)),
        };
        self.account.write(&path, &following(&text, &upstream.conninfo(&self.site.name, None)))
    }

    /// Starts it read-write, as the primary, and waits until it answers.
    ///
    /// # Errors
    /// If it is marked as a standby: then somebody else is, or was, primary. If PostgreSQL does not start; the error
    /// holds the end of its log.
    pub async fn start_primary(&mut self) -> Result<(), NodeError> {
        if self.is_marked_standby() {
            return Err(NodeError::refused(&self.site.name, "it is a standby; promote it instead"));
        }
        self.launch().await?;
        self.wait_until_answering().await
    }

    /// Starts it as a standby, of `upstream` or of whom it followed before, and waits until it answers. Whatever it was
    /// before, it does not come up read-write.
    ///
    /// # Errors
    /// If that would mix two histories; if PostgreSQL does not start: the error holds the end of its log.
    pub async fn start_standby(&mut self, upstream: Option<&Upstream>) -> Result<(), NodeError> {
        self.not_running()?;
        end_orphans(&self.site.data).await?;
        self.mixes_no_histories().await?;
        self.launch_standby(upstream).await?;
        self.wait_until_answering().await
    }

    pub(super) async fn launch_standby(&mut self, upstream: Option<&Upstream>) -> Result<(), NodeError> {
        self.not_running()?;
        self.mark_standby(&self.site.data, upstream)?;
        self.launch().await
    }

    async fn launch(&mut self) -> Result<(), NodeError> {
        self.not_running()?;
        end_orphans(&self.site.data).await?;
        let mut command = self.account.command(&self.programs.path("postgres"), self.folder());
        command.arg("-D").arg(&self.site.data);
        let sockets = self.site.sockets.display().to_string();
        let own = [
            ("cluster_name", self.site.name.clone()),
            ("port", self.site.port.to_string()),
            ("listen_addresses", self.site.listen.clone()),
            ("unix_socket_directories", sockets),
        ];
        for (name, value) in own {
            command.arg("-c").arg(format!("{name}={value}"));
        }
        if let Some(passfile) = &self.site.passfile {
            command.env("PGPASSFILE", passfile);
        }
        command.stdin(Stdio::null());
        if let Log::File(path) = &self.site.log {
            let open = || std::fs::OpenOptions::new().append(true).create(true).open(path);
            let file = open().map_err(|error| NodeError::io("open", path, error))?;
            let both = file.try_clone().map_err(|error| NodeError::io("open", path, error))?;
            command.stdout(file).stderr(both);
        }
        self.postmaster = Some(Postmaster::spawn(command, &self.site.data)?);
        Ok(())
    }

    async fn wait_until_answering(&mut self) -> Result<(), NodeError> {
        let started = Instant::now();
        while started.elapsed() < START {
            if let Some(status) = self.has_exited()? {
                return Err(self.start_error(format!("did not start ({status})")));
            }
            match self.connect().await {
                Ok(_) => return Ok(()),
                // it listens and refuses us for another reason than that it starts: it is up
                Err(NodeError::Sql { error, .. })
                    if error.code().is_some_and(|code| *code != SqlState::CANNOT_CONNECT_NOW) =>
                {
                    return Ok(());
                }
                Err(_) => tokio::time::sleep(LOOK).await,
            }
        }
        Err(self.start_error(format!("did not answer within {} s", START.as_secs())))
    }

    pub(super) fn start_error(&self, why: String) -> NodeError {
        NodeError::Start { node: self.site.name.clone(), why, log: self.log_tail() }
    }

    fn log_tail(&self) -> String {
        use std::io::{Read, Seek, SeekFrom};
        let Log::File(path) = &self.site.log else { return "(on standard error)".into() };
        let read = || -> std::io::Result<Vec<u8>> {
            let mut file = std::fs::File::open(path)?;
            let length = file.metadata()?.len();
            file.seek(SeekFrom::Start(length.saturating_sub(LOG_TAIL_BYTES)))?;
            let mut tail = Vec::new();
            file.take(LOG_TAIL_BYTES).read_to_end(&mut tail)?;
            Ok(tail)
        };
        match read() {
            Ok(tail) => String::from_utf8_lossy(&tail).trim().to_owned(),
            Err(error) => format!("({}: {error})", path.display()),
        }
    }

    /// Logs in as the superuser, through the Unix socket. The connection ends with the client.
    ///
    /// # Errors
    /// If it does not let us in.
    pub async fn connect(&self) -> Result<Client, NodeError> {
        let mut config = Config::new();
        config.user(&self.site.superuser).dbname("postgres").application_name("pgsteady");
        config.host_path(&self.site.sockets).port(self.site.port);
        login(&config, &format!("node {}", self.site.name)).await
    }

    /// The postmaster's process id, if it runs.
    #[must_use]
    pub fn pid(&self) -> Option<i32> {
        self.postmaster.as_ref()?.pid().map(nix::unistd::Pid::as_raw)
    }

    /// Waits until its postmaster ends, however. May be dropped and called again; a node that does not run never ends.
    ///
    /// # Errors
    /// If the operating system cannot say.
    pub async fn exited(&mut self) -> Result<ExitStatus, NodeError> {
        let Some(postmaster) = &mut self.postmaster else { return std::future::pending().await };
        let status = postmaster.exited().await?;
        self.postmaster = None;
        Ok(status)
    }

    /// How its postmaster ended, if it did since it was last asked.
    ///
    /// # Errors
    /// If the operating system cannot say.
    pub fn has_exited(&mut self) -> Result<Option<ExitStatus>, NodeError> {
        let Some(postmaster) = &mut self.postmaster else { return Ok(None) };
        let status = postmaster.has_exited()?;
        if status.is_some() {
            self.postmaster = None;
        }
        Ok(status)
    }

    /// Stops it and waits for its end; after 60 s it is killed.
    ///
    /// # Errors
    /// If it cannot be signalled.
    pub async fn stop(&mut self, how: Stop) -> Result<(), NodeError> {
        let Some(postmaster) = &mut self.postmaster else { return Ok(()) };
        let signal = match how {
            Stop::Fast => Signal::SIGINT,
            Stop::Immediate => Signal::SIGQUIT,
        };
        postmaster.signal(signal)?;
        match tokio::time::timeout(STOP, postmaster.exited()).await {
            Ok(ended) => ended.map(|_| self.postmaster = None),
            Err(_) => self.kill().await,
        }
    }

    /// `kill -9` of everything: the postmaster and its children. Returns when they are gone.
    ///
    /// # Errors
    /// If they cannot be signalled.
    pub async fn kill(&mut self) -> Result<(), NodeError> {
        if let Some(postmaster) = &mut self.postmaster {
            postmaster.signal_tree(Signal::SIGKILL)?;
            postmaster.exited().await?;
            self.postmaster = None;
        }
        end_orphans(&self.site.data).await
    }

    /// `kill -9` of the postmaster alone. Its children end by themselves when they notice; a busy one first ends its
    /// statement.
    ///
    /// # Errors
    /// If it cannot be signalled.
    pub async fn kill_postmaster(&mut self) -> Result<(), NodeError> {
        let Some(postmaster) = &mut self.postmaster else { return Ok(()) };
        postmaster.signal(Signal::SIGKILL)?;
        postmaster.exited().await?;
        self.postmaster = None;
        Ok(())
    }

    /// SIGSTOP to all of it: it is there, and says nothing.
    ///
    /// # Errors
    /// If they cannot be signalled.
    pub fn freeze(&self) -> Result<(), NodeError> {
        self.signal_all(Signal::SIGSTOP)
    }

    /// SIGCONT to all of it.
    ///
    /// # Errors
    /// If they cannot be signalled.
    pub fn thaw(&self) -> Result<(), NodeError> {
        self.signal_all(Signal::SIGCONT)
    }

    /// Has it read its configuration files again.
    ///
    /// # Errors
    /// If it cannot be signalled.
    pub fn reload(&self) -> Result<(), NodeError> {
        self.postmaster.as_ref().map_or(Ok(()), |postmaster| postmaster.signal(Signal::SIGHUP))
    }

    fn signal_all(&self, signal: Signal) -> Result<(), NodeError> {
        self.postmaster.as_ref().map_or(Ok(()), |postmaster| postmaster.signal_tree(signal))
    }
}
