//! Options of sockets that neither tokio nor socket2 has.

use std::os::fd::AsFd;
use std::time::Duration;

use nix::libc;
use nix::sys::socket::setsockopt;
use nix::sys::socket::sockopt::SetUsize;

/// Bytes that have to be there before a reader is woken (`SO_RCVLOWAT`, socket(7)).
#[derive(Debug, Clone, Copy)]
struct ReceiveLowWater;

nix::setsockopt_impl!(ReceiveLowWater, libc::SOL_SOCKET, libc::SO_RCVLOWAT, usize, SetUsize);

/// Seconds that a connection may be silent before it is accepted all the same (`TCP_DEFER_ACCEPT`, tcp(7)).
#[derive(Debug, Clone, Copy)]
struct DeferAccept;

nix::setsockopt_impl!(DeferAccept, libc::IPPROTO_TCP, libc::TCP_DEFER_ACCEPT, usize, SetUsize);

/// Has a reader woken only when so many bytes are there, or the peer has ended; of the last one asked for, the kernel tells at
/// once if they are there already.
///
/// # Errors
/// As the operating system says: it is no TCP socket, say.
pub(crate) fn set_receive_low_water(socket: &impl AsFd, bytes: usize) -> nix::Result<()> {
    setsockopt(socket, ReceiveLowWater, &bytes)
}

/// Has a listener accept who has said something already, or has been silent for so long; zero: at once.
///
/// # Errors
/// As the operating system says.
pub(crate) fn set_defer_accept(listener: &impl AsFd, silence: Duration) -> nix::Result<()> {
    setsockopt(listener, DeferAccept, &usize::try_from(silence.as_secs()).unwrap_or(usize::MAX))
}
