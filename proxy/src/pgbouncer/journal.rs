//! systemd's journal, by its own protocol (systemd, "Native Journal Protocol"), where standard error goes there anyway: a line keeps
//! its level and its line feeds.

use std::io;
use std::os::unix::net::UnixDatagram;

use nix::sys::stat::fstat;

/// Where the journal listens.
const SOCKET: &str = "/run/systemd/journal/socket";
/// What the journal's lines are found by.
const IDENTIFIER: &str = "pgbouncer";

/// The journal, connected.
pub(super) struct Journal(UnixDatagram);

impl Journal {
    /// If standard error is the stream that `JOURNAL_STREAM` names (systemd.exec(5)), and the journal listens.
    pub(super) fn of_stderr() -> Option<Self> {
        let said = std::env::var("JOURNAL_STREAM").ok()?;
        let (device, inode) = said.split_once(':')?;
        let stderr = fstat(io::stderr()).ok()?;
        let is_it = device.parse() == Ok(stderr.st_dev) && inode.parse() == Ok(stderr.st_ino);
        let socket = UnixDatagram::unbound().ok().filter(|_| is_it)?;
        socket.connect(SOCKET).ok()?;
        Some(Self(socket))
    }

    /// Writes a line with its severity (syslog(3)).
    ///
    /// # Errors
    /// The journal does not listen any more, or the line is too long for it.
    pub(super) fn write(&self, severity: u8, text: &str) -> io::Result<()> {
        let mut entry = format!("PRIORITY={severity}\nSYSLOG_IDENTIFIER={IDENTIFIER}\nMESSAGE\n").into_bytes();
        // with its length before it, a text may have any number of lines
        entry.extend_from_slice(&(text.len() as u64).to_le_bytes());
        entry.extend_from_slice(text.as_bytes());
        entry.push(b'\n');
        self.0.send(&entry).map(drop)
    }
}
