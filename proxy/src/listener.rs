//! The sockets that clients come to: TCP, one for each worker on the same port, and a Unix socket; or what systemd passes.

use std::cell::RefCell;
use std::fs;
use std::io;
use std::net::SocketAddr;
use std::os::fd::OwnedFd;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::time::Duration;

use nix::unistd::Group;
use socket2::{Domain, Protocol, SockRef, Socket, TcpKeepalive, Type};
use tokio::net::{TcpListener, UnixListener, UnixStream};

use crate::config::{Config, Dialect, Listen, ListenAddress};
use crate::pgbouncer::errno_text;
use crate::pgbouncer::log::{Level, say};
use crate::socket::set_defer_accept;
use crate::systemd::{self, Passed};
use crate::wire::Stream;

/// Wait after a failed accept (no file descriptors, say), so that it is not tried in a tight loop.
const ACCEPT_RETRY: Duration = Duration::from_millis(100);
/// Seconds of silence before a peer is asked whether it is still there.
const KEEPALIVE: Duration = Duration::from_secs(60);

/// A client speaks first: one that has not said anything yet is accepted after about so long (as in PgBouncer).
const SILENCE: Duration = Duration::from_secs(1);

/// Where PgBouncer's Unix socket is if nothing is said.
const DEFAULT_SOCKET_DIRECTORY: &str = "/tmp";

/// Where a client came from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Peer {
    /// Over TCP.
    Tcp(SocketAddr),
    /// Over the Unix socket: the process and its user, as the kernel says.
    Unix {
        /// The process id.
        pid: i32,
        /// The user id.
        uid: u32,
    },
}

impl Peer {
    /// Who is at the other end of a Unix socket.
    pub(crate) fn of(stream: &UnixStream) -> Self {
        let credentials = stream.peer_cred().ok();
        let pid = credentials.as_ref().and_then(|known| known.pid()).unwrap_or(0);
        let uid = credentials.map_or(u32::MAX, |known| known.uid());
        Self::Unix { pid, uid }
    }

    /// Whether it is a process of the system user that this one runs as, over the Unix socket.
    pub(crate) fn is_own_user(self) -> bool {
        matches!(self, Self::Unix { uid, .. } if uid == nix::unistd::getuid().as_raw())
    }

    /// As PgBouncer writes an address; `local` is where the client came to.
    pub(crate) fn place(self, local: Option<SocketAddr>) -> String {
        match self {
            Self::Tcp(address) => address.to_string(),
            Self::Unix { pid, .. } => format!("unix({pid}):{}", local.map_or(6432, |local| local.port())),
        }
    }
}

/// The sockets of one worker.
pub(crate) struct Listeners {
    tcp: Vec<TcpListener>,
    unix: Vec<UnixListener>,
    /// What its sockets were set to last: accepted ones inherit it.
    options: RefCell<Option<TcpOptions>>,
}

/// The sockets of all workers, bound but not yet listened to by a runtime.
pub(crate) struct Bound {
    workers: Vec<Part>,
    /// The addresses, with the ports that were chosen for port 0.
    pub(crate) addresses: Vec<SocketAddr>,
    socket_file: Option<SocketFile>,
}

/// The file of the Unix socket; removed at the end, unless it is another's by then.
pub(crate) struct SocketFile {
    file: PathBuf,
    inode: Option<u64>,
}

impl SocketFile {
    fn new(file: PathBuf) -> Self {
        let inode = fs::metadata(&file).ok().map(|found| found.ino());
        Self { file, inode }
    }

    /// It is another process's from now on.
    pub(crate) fn leave(&mut self) {
        self.inode = None;
    }
}

impl Drop for SocketFile {
    fn drop(&mut self) {
        let found = fs::metadata(&self.file).ok().map(|found| found.ino());
        if found.is_some() && found == self.inode {
            let _ = fs::remove_file(&self.file);
        }
    }
}

/// Binds everything that the configuration names, for all workers; or takes what listens already in its place, `inherited` from another
/// process or passed by systemd.
///
/// # Errors
/// An address that cannot be resolved or bound: the text names it.
pub(crate) fn bind(config: &Config, workers: usize, inherited: Vec<Passed>) -> Result<Bound, String> {
    let mut bound = Bound { workers: Vec::new(), addresses: Vec::new(), socket_file: None };
    bound.workers.resize_with(workers, Part::default);
    let unusable = |error| format!("a socket that was passed cannot be used: {error}");
    if !inherited.is_empty() {
        for socket in inherited {
            let place = bound.take_over(socket, &TcpOptions::of(config)).map_err(unusable)?;
            say(Level::Log, format_args!("got pooler socket: {place}"));
        }
        if let Some(file) = socket_file(config, &bound).filter(|file| file.exists()) {
            bound.socket_file = Some(SocketFile::new(file));
        }
        return Ok(bound);
    }
    let passed = systemd::sockets().map_err(unusable)?;
    if !passed.is_empty() {
        ignores_addresses(config);
        for socket in passed {
            let place = bound.take_over(socket, &TcpOptions::of(config)).map_err(unusable)?;
            listening(config, format_args!("{place}"));
        }
        return Ok(bound);
    }
    let is_pgbouncer = config.dialect.pgbouncer().is_some();
    for address in &config.listen.address {
        let resolved = address.resolve().map_err(|error| {
            if is_pgbouncer { not_found(address, &error) } else { format!("cannot listen on {address}: {error}") }
        })?;
        for address in resolved {
            match bound.tcp(address, &config.listen, &TcpOptions::of(config)) {
                Ok(address) => listening(config, format_args!("{address}")),
                Err(error) if is_pgbouncer => {
                    let why = errno_text(&error);
                    say(Level::Warning, format_args!("cannot listen on {address}: bind(): {why}"));
                }
                Err(error) => return Err(format!("cannot listen on {address}: {error}")),
            }
        }
    }
    if bound.addresses.is_empty()
        && let Some(loaded) = config.dialect.pgbouncer().filter(|loaded| !loaded.settings.listen_addr.is_empty())
    {
        let addresses = &loaded.settings.listen_addr;
        return Err(format!("failed to listen on any address in listen_addr list: {addresses}"));
    }
    if let Some(file) = socket_file(config, &bound) {
        let listener = bind_unix(&file, &config.listen)
            .map_err(|error| if is_pgbouncer { no_unix_socket(&file, &error) } else { cannot_listen(&file, &error) })?;
        bound.socket_file = Some(SocketFile::new(file.clone()));
        bound.workers[0].1.push(listener);
        listening(config, format_args!("unix:{}", file.display()));
    }
    if bound.addresses.is_empty() && bound.socket_file.is_none() {
        return Err("nowhere to listen on".to_owned());
    }
    Ok(bound)
}

/// Where the Unix socket is, if there is to be one.
fn socket_file(config: &Config, bound: &Bound) -> Option<PathBuf> {
    let first = bound.addresses.first().map_or(6432, SocketAddr::port);
    let port = config.listen.unix_socket_port.unwrap_or(first);
    config.listen.unix_socket_directory.as_ref().map(|directory| directory.join(format!(".s.PGSQL.{port}")))
}

fn cannot_listen(file: &Path, error: &io::Error) -> String {
    format!("cannot listen on {}: {error}", file.display())
}

/// PgBouncer's words for a Unix socket that cannot be had.
fn no_unix_socket(file: &Path, error: &io::Error) -> String {
    if let Some(NoGroup(name)) = error.get_ref().and_then(|inner| inner.downcast_ref()) {
        return format!("could not find group '{name}': Success");
    }
    let why = errno_text(error);
    say(Level::Warning, format_args!("cannot listen on unix:{}: bind(): {why}", file.display()));
    "failed to create unix socket".to_owned()
}

/// PgBouncer's words for a name that has no address; the numbers are glibc's (`getaddrinfo(3)`).
fn not_found(place: &ListenAddress, error: &io::Error) -> String {
    let text = error.to_string();
    let why = text.rsplit(": ").next().unwrap_or_default();
    let number = match why {
        "Name or service not known" => -2,
        "Temporary failure in name resolution" => -3,
        "No address associated with hostname" => -5,
        _ => -11,
    };
    let ListenAddress { host, port } = place;
    format!("getaddrinfo('{host}', '{port}') = {why} [{number}]")
}

/// There is no such group.
#[derive(Debug)]
struct NoGroup(String);

impl std::error::Error for NoGroup {}

impl std::fmt::Display for NoGroup {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "there is no group {:?}", self.0)
    }
}

fn listening(config: &Config, place: std::fmt::Arguments<'_>) {
    match config.dialect {
        Dialect::Native => tracing::info!(address = %place, "listening"),
        Dialect::PgBouncer(_) => say(Level::Log, format_args!("listening on {place}")),
    }
}

/// Says which settings do not count because there are sockets already.
fn ignores_addresses(config: &Config) {
    let Some(loaded) = config.dialect.pgbouncer() else {
        return tracing::info!("systemd has passed sockets: the addresses in [listen] do not count");
    };
    let settings = &loaded.settings;
    if !settings.listen_addr.is_empty() {
        say(Level::Warning, format_args!("sockets passed from service manager, cf_listen_addr ignored"));
    }
    if !["", DEFAULT_SOCKET_DIRECTORY].contains(&settings.unix_socket_dir.as_str()) {
        say(Level::Warning, format_args!("sockets passed from service manager, cf_unix_socket_dir ignored"));
    }
}

fn bind_tcp(address: SocketAddr, options: &Listen, tcp: &TcpOptions) -> io::Result<std::net::TcpListener> {
    let socket = Socket::new(Domain::for_address(address), Type::STREAM, Some(Protocol::TCP))?;
    socket.set_reuse_address(true)?;
    socket.set_reuse_port(options.share_ports)?;
    socket.set_nonblocking(true)?;
    if address.is_ipv6() {
        socket.set_only_v6(true)?;
    }
    tcp.prepare(&SockRef::from(&socket))?;
    socket.bind(&address.into())?;
    socket.listen(options.backlog.into())?;
    Ok(socket.into())
}

fn bind_unix(file: &Path, options: &Listen) -> io::Result<std::os::unix::net::UnixListener> {
    if let Some(name) = abstract_name(file) {
        let name = std::os::unix::net::SocketAddr::from_abstract_name(name)?;
        let listener = std::os::unix::net::UnixListener::bind_addr(&name)?;
        listener.set_nonblocking(true)?;
        return Ok(listener);
    }
    if std::os::unix::net::UnixStream::connect(file).is_ok() {
        return Err(io::Error::new(io::ErrorKind::AddrInUse, "another process answers there"));
    }
    match fs::remove_file(file) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let listener = std::os::unix::net::UnixListener::bind(file)?;
    listener.set_nonblocking(true)?;
    if let Some(name) = &options.unix_socket_group {
        let group = Group::from_name(name)?.ok_or_else(|| io::Error::other(NoGroup(name.clone())))?;
        std::os::unix::fs::chown(file, None, Some(group.gid.as_raw()))?;
    }
    fs::set_permissions(file, fs::Permissions::from_mode(options.unix_socket_mode.into()))?;
    Ok(listener)
}

/// The name of a socket in Linux's abstract namespace: a directory that begins with `@` is in none.
pub(crate) fn abstract_name(file: &Path) -> Option<&[u8]> {
    file.as_os_str().as_bytes().strip_prefix(b"@")
}

impl Bound {
    /// Listens on an address for all workers; the address, with the port that was chosen for port 0.
    fn tcp(&mut self, mut address: SocketAddr, options: &Listen, tcp: &TcpOptions) -> io::Result<SocketAddr> {
        for worker in &mut self.workers {
            let listener = bind_tcp(address, options, tcp)?;
            // Port 0 is chosen once, and then the same for all workers.
            address = listener.local_addr()?;
            worker.0.push(listener);
        }
        self.addresses.push(address);
        Ok(address)
    }

    /// Listens on a socket that listens already, TCP for all workers; where it is.
    fn take_over(&mut self, socket: Passed, tcp: &TcpOptions) -> io::Result<String> {
        match socket {
            Passed::Tcp(listener) => {
                tcp.prepare(&SockRef::from(&listener))?;
                listener.set_nonblocking(true)?;
                let address = listener.local_addr()?;
                for worker in &mut self.workers {
                    worker.0.push(listener.try_clone()?);
                }
                self.addresses.push(address);
                Ok(address.to_string())
            }
            Passed::Unix(listener) => {
                listener.set_nonblocking(true)?;
                let address = listener.local_addr()?;
                self.workers[0].1.push(listener);
                Ok(address.as_pathname().map_or("unix".to_owned(), |file| format!("unix:{}", file.display())))
            }
        }
    }

    /// The sockets of one worker, once; to be called on its runtime.
    ///
    /// # Errors
    /// The runtime cannot watch them.
    pub(crate) fn take(parts: Part) -> io::Result<Listeners> {
        let tcp = parts.0.into_iter().map(TcpListener::from_std).collect::<io::Result<_>>()?;
        let unix = parts.1.into_iter().map(UnixListener::from_std).collect::<io::Result<_>>()?;
        Ok(Listeners { tcp, unix, options: RefCell::default() })
    }

    /// The sockets once more, as another process may have them: each with its address, or `unix`, and its port.
    pub(crate) fn copies(&self) -> Vec<(OwnedFd, String, u16)> {
        let tcp = self.workers.iter().flat_map(|(tcp, _)| tcp).filter_map(|listener| {
            let address = listener.local_addr().ok()?;
            Some((listener.try_clone().ok()?.into(), address.ip().to_string(), address.port()))
        });
        let port = self.addresses.first().map_or(6432, SocketAddr::port);
        let unix = self.workers.iter().flat_map(|(_, unix)| unix);
        let unix = unix.filter_map(|listener| Some((listener.try_clone().ok()?.into(), "unix".to_owned(), port)));
        tcp.chain(unix).collect()
    }

    /// The parts for the workers, and what has to be kept until the end.
    pub(crate) fn split(self) -> (Vec<Part>, Option<SocketFile>) {
        (self.workers, self.socket_file)
    }
}

/// The sockets of one worker, not yet on its runtime.
pub(crate) type Part = (Vec<std::net::TcpListener>, Vec<std::os::unix::net::UnixListener>);

impl Listeners {
    /// Closes all but the Unix sockets; `false` if there is none.
    pub(crate) fn keep_unix_alone(&mut self) -> bool {
        self.tcp.clear();
        !self.unix.is_empty()
    }

    /// Clients that are accepted from now on have these options (Linux has them inherit what their listener has), and are
    /// left to the kernel while they are silent: they cost no wake-up of ours.
    pub(crate) fn follow(&self, options: TcpOptions) {
        if self.options.borrow().as_ref() == Some(&options) {
            return;
        }
        for listener in &self.tcp {
            let applied = options.apply(&SockRef::from(listener));
            let deferred = set_defer_accept(listener, options.defer_accept).map_err(io::Error::from);
            if let Err(error) = applied.and(deferred) {
                tracing::debug!(%error, "an option of TCP is not to be had");
            }
        }
        self.options.replace(Some(options));
    }

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
                return Poll::Ready(accepted.map(|(stream, peer)| (Stream::Tcp(stream), Peer::Tcp(peer))));
            }
        }
        for listener in &self.unix {
            if let Poll::Ready(accepted) = listener.poll_accept(cx) {
                return Poll::Ready(accepted.map(|(stream, _)| {
                    let peer = Peer::of(&stream);
                    (Stream::Unix(stream), peer)
                }));
            }
        }
        Poll::Pending
    }
}

/// The options of a TCP connection, to a client or a server.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct TcpOptions {
    /// Seconds of silence before a peer is asked whether it is still there; none: it never is. Then between questions, and how
    /// many; 0: as the system has it.
    pub(crate) keepalive: Option<(Duration, Duration, u32)>,
    /// Time for a peer to acknowledge what it was sent; zero: as the system has it.
    pub(crate) user_timeout: Duration,
    /// Bytes of the kernel's buffers; 0: as the system has it.
    pub(crate) buffer: usize,
    /// A client is accepted once it has said something, or after so long; zero: at once.
    pub(crate) defer_accept: Duration,
}

impl Default for TcpOptions {
    fn default() -> Self {
        Self {
            keepalive: Some((KEEPALIVE, Duration::ZERO, 0)),
            user_timeout: Duration::ZERO,
            buffer: 0,
            defer_accept: SILENCE,
        }
    }
}

impl TcpOptions {
    /// Sets them, and no delay.
    ///
    /// # Errors
    /// The operating system refuses one; the connection works all the same.
    pub(crate) fn apply(&self, socket: &SockRef<'_>) -> io::Result<()> {
        socket.set_tcp_nodelay(true)?;
        if let Some((idle, interval, count)) = self.keepalive {
            let mut keepalive = TcpKeepalive::new();
            if !idle.is_zero() {
                keepalive = keepalive.with_time(idle);
            }
            if !interval.is_zero() {
                keepalive = keepalive.with_interval(interval);
            }
            if count > 0 {
                keepalive = keepalive.with_retries(count);
            }
            socket.set_tcp_keepalive(&keepalive)?;
        }
        // also off again: a listener may have had others
        socket.set_keepalive(self.keepalive.is_some())?;
        socket.set_tcp_user_timeout(Some(self.user_timeout))
    }

    /// Sets the size of the buffers, on a socket that is not connected yet: a peer that was told of a larger one would wait
    /// for room that never comes.
    ///
    /// # Errors
    /// The operating system refuses it.
    pub(crate) fn prepare(&self, socket: &SockRef<'_>) -> io::Result<()> {
        if self.buffer > 0 {
            socket.set_send_buffer_size(self.buffer)?;
            socket.set_recv_buffer_size(self.buffer)?;
        }
        Ok(())
    }

    /// Those of a configuration.
    pub(crate) fn of(config: &Config) -> Self {
        let Some(loaded) = config.dialect.pgbouncer() else { return Self::default() };
        let settings = &loaded.settings;
        let seconds = |time: i32| Duration::from_secs(u64::try_from(time).unwrap_or(0));
        let count = u32::try_from(settings.tcp_keepcnt).unwrap_or(0);
        let keepalive = (seconds(settings.tcp_keepidle), seconds(settings.tcp_keepintvl), count);
        Self {
            keepalive: (settings.tcp_keepalive != 0).then_some(keepalive),
            user_timeout: Duration::from_millis(u64::try_from(settings.tcp_user_timeout).unwrap_or(0)),
            buffer: usize::try_from(settings.tcp_socket_buffer).unwrap_or(0),
            defer_accept: if settings.tcp_defer_accept == 0 { Duration::ZERO } else { SILENCE },
        }
    }
}
