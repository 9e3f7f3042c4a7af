//! A TCP relay between two parties that can go silent, drop, delay, or refuse: a link that can be cut on any machine.

use std::net::Ipv4Addr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::{AbortHandle, JoinSet};

use crate::port::Port;

/// What the link does with what it carries.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Link {
    /// Passes it on.
    Up,
    /// Takes nothing and says nothing, in either direction; connections stay open and new ones get no answer.
    Silent,
    /// Passes it on after a while.
    Slow(Duration),
    /// Closes every connection, also new ones.
    Down,
}

/// The relay; closes when dropped.
#[derive(Debug)]
pub struct Relay {
    port: Port,
    link: watch::Sender<Link>,
    carried: Arc<AtomicU64>,
    accepting: AbortHandle,
}

impl Relay {
    /// Listens on a port of its own and connects to `target` on this machine for every connection that comes.
    ///
    /// # Panics
    /// When the port was taken by somebody outside the tests.
    pub async fn to(target: u16) -> Self {
        let port = Port::new();
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, port.number())).await.expect("the port was free");
        let (link, states) = watch::channel(Link::Up);
        let carried = Arc::new(AtomicU64::new(0));
        let accepting = tokio::spawn(accept(listener, target, states, carried.clone())).abort_handle();
        Self { port, link, carried, accepting }
    }

    /// Where it listens.
    #[must_use]
    pub fn port(&self) -> u16 {
        self.port.number()
    }

    /// Changes the link, for connections that are open and for new ones.
    pub fn set(&self, link: Link) {
        self.link.send_replace(link);
    }

    /// Bytes passed on so far, in both directions: the proof that the link was used.
    #[must_use]
    pub fn carried(&self) -> u64 {
        self.carried.load(Ordering::Relaxed)
    }
}

impl Drop for Relay {
    fn drop(&mut self) {
        self.accepting.abort();
    }
}

async fn accept(listener: TcpListener, target: u16, states: watch::Receiver<Link>, carried: Arc<AtomicU64>) {
    // Owned by this task: when it is aborted, every connection goes with it.
    let mut connections = JoinSet::new();
    loop {
        let Ok((client, _)) = listener.accept().await else { return };
        connections.spawn(connection(client, target, states.clone(), carried.clone()));
        while connections.try_join_next().is_some() {}
    }
}

async fn connection(client: TcpStream, target: u16, mut states: watch::Receiver<Link>, carried: Arc<AtomicU64>) {
    let _ = states.wait_for(|link| *link != Link::Silent).await;
    if *states.borrow() == Link::Down {
        return;
    }
    let Ok(server) = TcpStream::connect((Ipv4Addr::LOCALHOST, target)).await else { return };
    let _ = (client.set_nodelay(true), server.set_nodelay(true));
    let (from_client, to_client) = client.into_split();
    let (from_server, to_server) = server.into_split();
    let mut down = states.clone();
    tokio::select! {
        () = pass(from_client, to_server, states.clone(), &carried) => {}
        () = pass(from_server, to_client, states.clone(), &carried) => {}
        _ = down.wait_for(|link| *link == Link::Down) => {}
    }
}

async fn pass(mut from: OwnedReadHalf, mut to: OwnedWriteHalf, mut states: watch::Receiver<Link>, carried: &AtomicU64) {
    let mut buffer = vec![0; 64 * 1024];
    loop {
        let _ = states.wait_for(|link| *link != Link::Silent).await;
        let Ok(length @ 1..) = from.read(&mut buffer).await else { return };
        // It may have been cut while we were reading.
        let _ = states.wait_for(|link| *link != Link::Silent).await;
        let link = *states.borrow();
        if let Link::Slow(delay) = link {
            tokio::time::sleep(delay).await;
        }
        if to.write_all(&buffer[..length]).await.is_err() {
            return;
        }
        carried.fetch_add(length as u64, Ordering::Relaxed);
    }
}
