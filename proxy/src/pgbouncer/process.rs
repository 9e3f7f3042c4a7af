//! The process as PgBouncer keeps it: whose rights it has, its pid file, its life in the background. No configuration is read here.

use std::fs::{self, File, OpenOptions};
use std::io::Write;
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use nix::errno::Errno;
use nix::sys::resource::{Resource, getrlimit};
use nix::sys::signal::kill;
use nix::unistd::{Pid, User, getuid, initgroups, setgid, setsid, setuid};

use super::load::errno_text;
use super::log::{Level, say};

/// In the environment of a process that was put into the background by another one.
const IN_BACKGROUND: &str = "PGSTEADY_IN_BACKGROUND";

/// Takes the rights of a user, if one is named, and refuses to be root. The log file becomes the user's.
pub(super) fn take_rights(user: Option<&str>, logfile: &str) -> Result<(), String> {
    if let Some(name) = user.filter(|name| !name.is_empty()) {
        let found = User::from_name(name).ok().flatten();
        let user = found.ok_or_else(|| format!("could not find user '{name}' to switch to"))?;
        if user.uid != getuid() {
            let failed = |what: &str, error: Errno| format!("{what} failed: {}", error.desc());
            if !logfile.is_empty() {
                // It is opened again by the user.
                let _ = std::os::unix::fs::chown(logfile, Some(user.uid.as_raw()), Some(user.gid.as_raw()));
            }
            let group = std::ffi::CString::new(name).map_err(|error| error.to_string())?;
            initgroups(&group, user.gid).map_err(|error| failed("failed to reset groups: setgroups", error))?;
            setgid(user.gid).map_err(|error| failed("setgid", error))?;
            setuid(user.uid).map_err(|error| failed("setuid", error))?;
        }
    }
    if getuid().is_root() { Err("PgBouncer should not run as root".to_owned()) } else { Ok(()) }
}

/// Whether somebody answers at the Unix socket.
pub(super) fn is_in_use(socket: &Path) -> bool {
    UnixStream::connect(socket).is_ok()
}

/// Looks whether the pid file is of a process that lives; removes one that is not.
pub(super) fn check_pidfile(file: &str) -> Result<(), String> {
    if file.is_empty() {
        return Ok(());
    }
    let text = match fs::read(file) {
        Ok(text) => String::from_utf8_lossy(&text).into_owned(),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(format!("could not open pidfile '{file}': {}", errno_text(&error))),
    };
    let pid = super::value::leading(&text);
    if pid <= 0 || kill(Pid::from_raw(pid), None) != Err(Errno::ESRCH) {
        return Err(format!("pidfile '{file}' exists, another instance running?"));
    }
    say(Level::Log, format_args!("stale pidfile, removing"));
    fs::remove_file(file).map_err(|error| format!("could not remove stale pidfile: {}", errno_text(&error)))
}

/// The pid file of this process; goes with it.
pub(super) struct Pidfile(Option<PathBuf>);

impl Pidfile {
    /// Writes it, if one is wanted.
    pub(super) fn write(file: &str) -> Result<Self, String> {
        if file.is_empty() {
            return Ok(Self(None));
        }
        let failed =
            |what: &str, error: std::io::Error| format!("could not {what} pidfile '{file}': {}", errno_text(&error));
        let mut opened: File =
            OpenOptions::new().write(true).create_new(true).open(file).map_err(|error| failed("open", error))?;
        writeln!(opened, "{}", std::process::id()).map_err(|error| failed("write", error))?;
        let path = std::path::absolute(file).unwrap_or_else(|_| PathBuf::from(file));
        Ok(Self(Some(path)))
    }
}

impl Drop for Pidfile {
    fn drop(&mut self) {
        let Some(file) = &self.0 else { return };
        // It may be another's by now, which took our place.
        let is_ours = fs::read_to_string(file).is_ok_and(|text| text.trim() == std::process::id().to_string());
        if is_ours {
            let _ = fs::remove_file(file);
        }
    }
}

/// The limit of file descriptors, and the hard one.
pub(super) fn descriptors() -> (u64, u64) {
    getrlimit(Resource::RLIMIT_NOFILE).unwrap_or((0, 0))
}

/// Whether this process was put into the background.
pub(super) fn is_in_background() -> bool {
    std::env::var_os(IN_BACKGROUND).is_some()
}

/// Leaves the session of whoever put this process into the background.
pub(super) fn own_session() -> Result<(), String> {
    match setsid() {
        Ok(_) | Err(Errno::EPERM) => Ok(()),
        Err(error) => Err(format!("setsid failed: {}", error.desc())),
    }
}

/// Runs the program once more, in the background; this process may then end. (Forking without a new program is not
/// for a process that may have threads.)
pub(super) fn to_background(program: &Path) -> Result<(), String> {
    let mut arguments = std::env::args_os();
    let mut command = Command::new(program);
    if let Some(name) = arguments.next() {
        command.arg0(name);
    }
    command.args(arguments).env(IN_BACKGROUND, "1");
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    command.spawn().map(drop).map_err(|error| format!("fork failed: {}", errno_text(&error)))
}
