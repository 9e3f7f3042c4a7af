//! The sockets that clients come to: TCP, one for each worker on the same port, and a Unix socket.

use std::fs;
use std::io;
use std::net::SocketAddr;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use socket2::{Domain, Protocol, SockRef, Socket, TcpKeepalive, Type};
use tokio::net::{TcpListener, UnixListener};

use crate::config::Config;
use crate::wire::Stream;

/// Wait after a failed accept (no file descriptors, say), so that it is not tried in a tight loop.
const ACCEPT_RETRY: Duration = Duration::from_millis(100);
/// Seconds of silence before a peer is asked whether it is still there.
const KEEPALIVE: Duration = Duration::from_secs(60);

/// Where a client came from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Peer {
    /// Over TCP.
    Tcp(SocketAddr),
    /// Over the Unix socket.
    Unix,
}

/// The sockets of one worker.
pub(crate) struct Listeners {
    tcp: Vec<TcpListener>,
    unix: Option<UnixListener>,
}

/// The sockets of all workers, bound but not yet listened to by a runtime.
pub(crate) struct Bound {
    workers: Vec<(Vec<std::net::TcpListener>, Option<std::os::unix::net::UnixListener>)>,
    /// The addresses, with the ports that were chosen for port 0.
    pub(crate) addresses: Vec<SocketAddr>,
    socket_file: Option<SocketFile>,
}

/// The file of the Unix socket; removed at the end.
struct SocketFile(PathBuf);

impl Drop for SocketFile {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.0);
    }
}

/// Binds everything that the configuration names, for all workers.
///
/// # Errors
/// An address that cannot be resolved or bound: the text names it.
pub(crate) fn bind(config: &Config, workers: usize) -> Result<Bound, String> {
    let mut bound = Bound { workers: Vec::new(), addresses: Vec::new(), socket_file: None };
    bound.workers.resize_with(workers, || (Vec::new(), None));
    for address in &config.listen.address {
        let resolved = address.resolve().map_err(|error| format!("cannot listen on {address}: {error}"))?;
        for mut address in resolved {
            for worker in &mut bound.workers {
                let listener = bind_tcp(address, config.listen.backlog.into())
                    .map_err(|error| format!("cannot listen on {address}: {error}"))?;
                // Port 0 is chosen once, and then the same for all workers.
                address = listener.local_addr().map_err(|error| error.to_string())?;
                worker.0.push(listener);
            }
            bound.addresses.push(address);
        }
    }
    if let Some(directory) = &config.listen.unix_socket_directory {
        let port = bound.addresses.first().map_or(6432, SocketAddr::port);
        let file = directory.join(format!(".s.PGSQL.{port}"));
        let listener = bind_unix(&file, config.listen.unix_socket_mode.into())
            .map_err(|error| format!("cannot listen on {}: {error}", file.display()))?;
        bound.socket_file = Some(SocketFile(file));
        bound.workers[0].1 = Some(listener);
    }
    Ok(bound)
}

fn bind_tcp(address: SocketAddr, backlog: i32) -> io::Result<std::net::TcpListener> {
    let socket = Socket::new(Domain::for_address(address), Type::STREAM, Some(Protocol::TCP))?;
    socket.set_reuse_address(true)?;
    socket.set_reuse_port(true)?;
    socket.set_nonblocking(true)?;
    if address.is_ipv6() {
        socket.set_only_v6(true)?;
    }
    socket.bind(&address.into())?;
    socket.listen(backlog)?;
    Ok(socket.into())
}

fn bind_unix(file: &Path, mode: u32) -> io::Result<std::os::unix::net::UnixListener> {
    if std::os::unix::net::UnixStream::connect(file).is_ok() {
        return Err(io::Error::new(io::ErrorKind::AddrInUse, "another process answers there"));
    }
    match fs::remove_file(file) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let listener = std::os::unix::net::UnixListener::bind(file)?;
    listener.set_nonblocking(true)?;
    fs::set_permissions(file, fs::Permissions::from_mode(mode))?;
    Ok(listener)
}

impl Bound {
    /// The sockets of one worker, once; to be called on its runtime.
    ///
    /// # Errors
    /// The runtime cannot watch them.
    pub(crate) fn take(parts: Part) -> io::Result<Listeners> {
        let tcp = parts.0.into_iter().map(TcpListener::from_std).collect::<io::Result<_>>()?;
        let unix = parts.1.map(UnixListener::from_std).transpose()?;
        Ok(Listeners { tcp, unix })
    }

    /// The parts for the workers, and what has to be kept until the end.
    pub(crate) fn split(self) -> (Vec<Part>, impl Drop + Send) {
        struct Keep {
            _file: Option<SocketFile>,
        }
        impl Drop for Keep {
            fn drop(&mut self) {}
        }
        (self.workers, Keep { _file: self.socket_file })
    }
}

/// The sockets of one worker, not yet on its runtime.
pub(crate) type Part = (Vec<std::net::TcpListener>, Option<std::os::unix::net::UnixListener>);

impl Listeners {
    /// The next client.
    pub(crate) async fn accept(&self) -> (Stream, Peer) {
        loop {
            let accepted = std::future::poll_fn(|cx| self.poll_accept(cx)).await;
            match accepted {
                Ok(client) => return client,
                Err(error) => {
                    tracing::warn!(%error, "a client could not be accepted");
                    tokio::time::sleep(ACCEPT_RETRY).await;
                }
            }
        }
    }

    fn poll_accept(&self, cx: &mut std::task::Context<'_>) -> std::task::Poll<io::Result<(Stream, Peer)>> {
        use std::task::Poll;
        for listener in &self.tcp {
            if let Poll::Ready(accepted) = listener.poll_accept(cx) {
                return Poll::Ready(accepted.map(|(stream, peer)| {
                    let _ = prepare_tcp(&stream);
                    (Stream::Tcp(stream), Peer::Tcp(peer))
                }));
            }
        }
        if let Some(listener) = &self.unix
            && let Poll::Ready(accepted) = listener.poll_accept(cx)
        {
            return Poll::Ready(accepted.map(|(stream, _)| (Stream::Unix(stream), Peer::Unix)));
        }
        Poll::Pending
    }
}

/// No delay, and keep-alive: for clients and servers alike.
///
/// # Errors
/// The operating system refuses an option; the connection works all the same.
pub(crate) fn prepare_tcp(stream: &tokio::net::TcpStream) -> io::Result<()> {
    stream.set_nodelay(true)?;
    SockRef::from(stream).set_tcp_keepalive(&TcpKeepalive::new().with_time(KEEPALIVE))
}
