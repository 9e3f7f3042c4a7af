//! As whom PostgreSQL runs: it refuses to be root.

use std::ffi::OsStr;
use std::io;
use std::os::unix::fs::chown;
use std::path::{Path, PathBuf};

use nix::unistd::{Uid, User};

use super::NodeError;

/// The operating system's account of PostgreSQL's processes.
#[derive(Debug, Clone)]
pub struct Account {
    /// Somebody else: only if we are root.
    other: Option<(u32, u32)>,
    name: String,
}

/// Who PostgreSQL may be if we are root, best first.
const UNPRIVILEGED: [&str; 2] = ["postgres", "nobody"];
/// What PostgreSQL's processes keep of our environment. None of libpq's variables: they would lead elsewhere.
const KEPT: [&str; 3] = ["PATH", "LD_LIBRARY_PATH", "TZ"];

impl Account {
    /// Ourselves; `postgres` or else `nobody` if we are root.
    ///
    /// # Errors
    /// If we are root and neither exists.
    pub fn choose() -> Result<Self, NodeError> {
        let own = Uid::effective();
        let accounts = Path::new("/etc/passwd");
        let read = |error: nix::Error| NodeError::io("read the accounts of", accounts, error.into());
        if !own.is_root() {
            let name = User::from_uid(own).map_err(read)?.map_or_else(|| own.to_string(), |user| user.name);
            return Ok(Self { other: None, name });
        }
        for name in UNPRIVILEGED {
            if let Some(user) = User::from_name(name).map_err(read)? {
                return Ok(Self { other: Some((user.uid.as_raw(), user.gid.as_raw())), name: user.name });
            }
        }
        let error =
            io::Error::new(io::ErrorKind::NotFound, "no account `postgres` or `nobody`; PostgreSQL refuses to be root");
        Err(NodeError::io("read the accounts of", accounts, error))
    }

    /// Its name.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// User and group, if it is somebody else than we are.
    #[must_use]
    pub fn ids(&self) -> Option<(u32, u32)> {
        self.other
    }

    /// Gives a file or folder to it; nothing to do if it is ourselves.
    ///
    /// # Errors
    /// If the operating system refuses.
    pub fn own(&self, path: &Path) -> Result<(), NodeError> {
        let Some((uid, gid)) = self.other else { return Ok(()) };
        chown(path, Some(uid), Some(gid)).map_err(|error| NodeError::io("change the owner of", path, error))
    }

    /// A program that runs as this account in `folder`, in a process group of its own: Ctrl-C in our terminal is for us
    /// alone, and we decide what becomes of it.
    pub(crate) fn command(&self, program: &Path, folder: &Path) -> std::process::Command {
        use std::os::unix::process::CommandExt;
        let mut command = std::process::Command::new(program);
        let kept = KEPT.iter().filter_map(|key| Some((key, std::env::var_os(key)?)));
        let kept: Vec<_> = kept.collect();
        command
            .env_clear()
            .envs(kept)
            .env("HOME", folder)
            .env("LC_ALL", "C.UTF-8")
            .current_dir(folder)
            .process_group(0);
        if let Some((uid, gid)) = self.other {
            command.uid(uid).gid(gid);
        }
        command
    }

    /// Writes a file that only this account may read, in one step: no reader sees half of it.
    ///
    /// # Errors
    /// If the operating system refuses.
    pub fn write(&self, path: &Path, text: &str) -> Result<(), NodeError> {
        use std::io::Write;
        use std::os::unix::fs::OpenOptionsExt;
        let mut beside = PathBuf::from(path);
        beside.as_mut_os_string().push(OsStr::new(".new"));
        let put = || -> io::Result<()> {
            let mut file =
                std::fs::OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&beside)?;
            file.write_all(text.as_bytes())?;
            file.sync_all()
        };
        put().map_err(|error| NodeError::io("write", &beside, error))?;
        self.own(&beside)?;
        std::fs::rename(&beside, path).map_err(|error| NodeError::io("rename to", path, error))
    }
}
