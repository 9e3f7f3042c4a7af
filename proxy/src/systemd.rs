//! What a service and systemd tell each other: `sd_notify(3)` and `sd_listen_fds(3)`. Nothing happens where nobody asked for it.

use std::io;
use std::net::TcpListener;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixListener;

use listenfd::ListenFd;
use sd_notify::NotifyState;
use socket2::{Domain, Socket};

/// A socket that systemd listens on already (socket activation).
#[derive(Debug)]
pub(crate) enum Passed {
    Tcp(TcpListener),
    Unix(UnixListener),
}

impl Passed {
    /// What stands on a socket that listens.
    ///
    /// # Errors
    /// It cannot be asked.
    pub(crate) fn of(socket: OwnedFd) -> io::Result<Self> {
        let socket = Socket::from(socket);
        Ok(if socket.domain()? == Domain::UNIX { Self::Unix(socket.into()) } else { Self::Tcp(socket.into()) })
    }
}

/// Whether there are any; `false` once [`sockets`] has taken them.
pub(crate) fn passes_sockets() -> bool {
    let number = |name| std::env::var(name).ok()?.parse::<u32>().ok();
    number("LISTEN_PID") == Some(std::process::id()) && number("LISTEN_FDS").is_some_and(|count| count > 0)
}

/// All of them; to be called once.
///
/// # Errors
/// One is neither TCP nor a Unix socket for streams.
pub(crate) fn sockets() -> io::Result<Vec<Passed>> {
    let mut passed = ListenFd::from_env();
    let mut sockets = Vec::new();
    for index in 0..passed.len() {
        let socket = match passed.take_tcp_listener(index) {
            Ok(tcp) => tcp.map(Passed::Tcp),
            Err(_) => passed.take_unix_listener(index)?.map(Passed::Unix),
        };
        sockets.extend(socket);
    }
    Ok(sockets)
}

/// Clients are served.
pub(crate) fn ready() {
    notify(&[NotifyState::Ready]);
}

/// This process serves in the place of another one.
pub(crate) fn took_over() {
    notify(&[NotifyState::MainPid(std::process::id())]);
}

/// The configuration is read again by this (`Type=notify-reload` wants to know when that began).
pub(crate) fn reloading<T>(reload: impl FnOnce() -> T) -> T {
    match NotifyState::monotonic_usec_now() {
        Ok(now) => notify(&[NotifyState::Reloading, now]),
        Err(error) => tracing::debug!(%error, "no monotonic clock"),
    }
    let reloaded = reload();
    ready();
    reloaded
}

/// The end has begun.
pub(crate) fn stopping() {
    notify(&[NotifyState::Stopping]);
}

/// A line for `systemctl status`.
pub(crate) fn status(line: &str) {
    notify(&[NotifyState::Status(line)]);
}

fn notify(state: &[NotifyState<'_>]) {
    if let Err(error) = sd_notify::notify(state) {
        tracing::debug!(%error, "systemd was not told");
    }
}
