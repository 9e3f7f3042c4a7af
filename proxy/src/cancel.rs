//! Cancel requests: the keys that clients were given, and the one server that each may stop at the moment.
//!
//! A request reaches a server only while its client has it on loan, and the loan does not end before the request has
//! been delivered: nobody else's query can be hit.

use std::collections::HashMap;
use std::ops::Deref;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use bytes::BytesMut;
use subtle::ConstantTimeEq;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpStream, UnixStream};
use tokio::sync::Notify;
use topology::Address;

use crate::pgbouncer::log::{Level, say};
use crate::pool::CancelTarget;
use crate::shared::Shared;

/// Cancel requests that are being delivered at the same time; more are dropped, as PostgreSQL may drop them.
const MAX_DELIVERIES: usize = 64;
/// Time for one delivery.
const DELIVERY_TIMEOUT: Duration = Duration::from_secs(5);

/// The bits of a key's last byte that count how often it may be passed on between peers.
const HOPS: u8 = 3;

/// The cancel keys of all clients.
#[derive(Debug, Default)]
pub(crate) struct Cancels {
    clients: Mutex<HashMap<u32, Arc<Cancel>>>,
    deliveries: AtomicUsize,
}

/// What a client's cancel key stands for.
#[derive(Debug)]
pub(crate) struct Cancel {
    /// The process id that the client was told.
    pub(crate) process_id: u32,
    /// The key that the client was told.
    pub(crate) key: Box<[u8]>,
    /// The server on loan.
    target: Mutex<Option<Arc<CancelTarget>>>,
    /// Whether the client waits for a server, and is to be told that its wait was cancelled.
    wait: Mutex<Wait>,
    /// A request went to the server on loan.
    hit: AtomicBool,
    /// A commit is under way: PostgreSQL would acknowledge it without waiting for its standbys.
    shielded: AtomicBool,
    /// Deliveries under way to the server on loan.
    under_way: AtomicUsize,
    delivered: Notify,
}

/// A client's cancel key, until it is dropped.
#[derive(Debug)]
pub(crate) struct Registered {
    cancels: Arc<Cancels>,
    cancel: Arc<Cancel>,
}

impl Deref for Registered {
    type Target = Arc<Cancel>;
    fn deref(&self) -> &Arc<Cancel> {
        &self.cancel
    }
}

impl Drop for Registered {
    fn drop(&mut self) {
        lock(&self.cancels.clients).remove(&self.cancel.process_id);
    }
}

impl Cancels {
    /// Gives a client its key, of `key_bytes` bytes. In a group of peers (`peer_id` not 0) it says whose it is.
    pub(crate) fn register(self: &Arc<Self>, key_bytes: usize, peer_id: u16) -> Registered {
        let mut key: Box<[u8]> = (0..key_bytes).map(|_| rand::random::<u8>()).collect();
        if let (true, Some(last)) = (peer_id != 0, key.last_mut()) {
            *last |= HOPS;
        }
        let mut clients = lock(&self.clients);
        let process_id = loop {
            let mut process_id = rand::random::<u32>() >> 1;
            if peer_id != 0 {
                process_id = process_id & 0xff00_00ff | u32::from(peer_id.swap_bytes()) << 8;
            }
            if process_id != 0 && !clients.contains_key(&process_id) {
                break process_id;
            }
        };
        self.insert(&mut clients, process_id, key)
    }

    /// A client that another process has let in keeps its key; where that is another's here, it can cancel nothing.
    pub(crate) fn register_again(self: &Arc<Self>, process_id: u32, key: &[u8]) -> Registered {
        let mut clients = lock(&self.clients);
        if clients.contains_key(&process_id) {
            drop(clients);
            return self.register(key.len(), 0);
        }
        self.insert(&mut clients, process_id, key.into())
    }

    fn insert(
        self: &Arc<Self>,
        clients: &mut HashMap<u32, Arc<Cancel>>,
        process_id: u32,
        key: Box<[u8]>,
    ) -> Registered {
        let cancel = Arc::new(Cancel {
            process_id,
            key,
            target: Mutex::new(None),
            wait: Mutex::new(Wait::No),
            hit: AtomicBool::new(false),
            shielded: AtomicBool::new(false),
            under_way: AtomicUsize::new(0),
            delivered: Notify::new(),
        });
        clients.insert(process_id, cancel.clone());
        Registered { cancels: self.clone(), cancel }
    }

    /// Carries out a CancelRequest; answers nothing, whatever happens (PostgreSQL manual, "Canceling Requests in
    /// Progress"). What became of it, for the log.
    pub(crate) async fn request(&self, process_id: u32, key: &[u8]) -> &'static str {
        let cancel = lock(&self.clients).get(&process_id).cloned();
        let Some(cancel) = cancel.filter(|cancel| bool::from(cancel.key.ct_eq(key))) else {
            return "failed cancel request";
        };
        if cancel.shielded.load(Ordering::Acquire) {
            return "a commit is under way, which is not cancelled";
        }
        cancel.interrupt();
        // given back even if whoever asked for it stops waiting
        let _place = InWork::begin(&self.deliveries);
        if self.deliveries.load(Ordering::Acquire) > MAX_DELIVERIES {
            return outcome(false);
        }
        let Some(delivery) = Delivery::begin(&cancel) else { return "cancel request for idle client" };
        let delivered = tokio::time::timeout(DELIVERY_TIMEOUT, deliver(&delivery.target)).await;
        outcome(matches!(delivered, Ok(Ok(_))))
    }
}

/// One of the deliveries in work, until it is dropped.
struct InWork<'a>(&'a AtomicUsize);

impl<'a> InWork<'a> {
    fn begin(deliveries: &'a AtomicUsize) -> Self {
        deliveries.fetch_add(1, Ordering::AcqRel);
        Self(deliveries)
    }
}

impl Drop for InWork<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::AcqRel);
    }
}

impl Shared {
    /// Carries out a cancel request, or passes it on to the peer whose it is.
    /// What became of it, for the log.
    pub(crate) async fn cancel(&self, process: u32, key: &[u8]) -> &'static str {
        let own = self.peer_id();
        if own == 0 {
            return self.cancels.request(process, key).await;
        }
        let of = peer_of(process);
        if of == own {
            return self.cancels.request(process, &with_all_hops(key)).await;
        }
        let config = self.config();
        let Some(peer) = config.dialect.pgbouncer().and_then(|loaded| loaded.peers.get(&of)) else {
            return "could not find peer to forward request to";
        };
        let Some(key) = one_hop_less(key) else {
            return "failed to forward cancel request because its TTL was exhausted";
        };
        let address = if peer.host.starts_with(['/', '@']) {
            Address::Unix(peer.host.as_str().into(), peer.port)
        } else {
            Address::Tcp(peer.host.clone(), peer.port)
        };
        say(Level::Debug, format_args!("forwarding cancellation request to peer {of}"));
        let target = CancelTarget { address, process_id: process, key: key.into() };
        outcome(deliver(&target).await.is_ok())
    }
}

/// What the log says of a request that went on to PostgreSQL, or to a peer.
pub(crate) fn outcome(is_sent: bool) -> &'static str {
    if is_sent { "successfully sent cancel request" } else { "failed to send cancel request" }
}

/// The peer that a cancel key is of, by the layout that PgBouncer's groups have: two bytes of the process id.
pub(crate) fn peer_of(process_id: u32) -> u16 {
    let [_, low, high, _] = process_id.to_be_bytes();
    u16::from_le_bytes([low, high])
}

/// The same key with one hop less to go; `None` if it has gone far enough.
pub(crate) fn one_hop_less(key: &[u8]) -> Option<Vec<u8>> {
    let (last, rest) = key.split_last()?;
    let less = (last & HOPS).checked_sub(1)?;
    Some([rest, &[(last & !HOPS) | less]].concat())
}

/// The same key as it was given: with all its hops.
pub(crate) fn with_all_hops(key: &[u8]) -> Vec<u8> {
    let mut key = key.to_vec();
    if let Some(last) = key.last_mut() {
        *last |= HOPS;
    }
    key
}

/// A client's wait for a server.
#[derive(Debug)]
enum Wait {
    No,
    Yes(Waker),
    Interrupted,
}

/// A request on its way; while it exists the loan cannot end.
struct Delivery {
    cancel: Arc<Cancel>,
    target: Arc<CancelTarget>,
}

impl Delivery {
    fn begin(cancel: &Arc<Cancel>) -> Option<Self> {
        let held = lock(&cancel.target);
        let target = held.clone()?;
        cancel.under_way.fetch_add(1, Ordering::AcqRel); // under the lock that `end` takes
        cancel.hit.store(true, Ordering::Release);
        Some(Self { cancel: cancel.clone(), target })
    }
}

impl Drop for Delivery {
    fn drop(&mut self) {
        self.cancel.under_way.fetch_sub(1, Ordering::AcqRel);
        self.cancel.delivered.notify_waiters();
    }
}

impl Cancel {
    /// The client borrowed this server.
    #[inline]
    pub(crate) fn begin(&self, target: &Arc<CancelTarget>) {
        *lock(&self.target) = Some(target.clone());
    }

    /// The loan ends; `true` if a request went to the server, which must not go to anybody else before
    /// [`Cancel::delivered`] and a round trip: the interrupt may still be on its way to the process.
    #[inline]
    pub(crate) fn end(&self) -> bool {
        *lock(&self.target) = None;
        self.hit.load(Ordering::Acquire) && self.hit.swap(false, Ordering::AcqRel)
    }

    /// Waits until no request is under way any more.
    pub(crate) async fn delivered(&self) {
        loop {
            let delivered = self.delivered.notified();
            if self.under_way.load(Ordering::Acquire) == 0 {
                return;
            }
            delivered.await;
        }
    }

    /// The client waits for a server from now on: who is woken when the wait is cancelled.
    pub(crate) fn waits(&self, waker: &Waker) {
        *lock(&self.wait) = Wait::Yes(waker.clone());
    }

    /// The client waits no longer.
    pub(crate) fn waits_no_more(&self) {
        *lock(&self.wait) = Wait::No;
    }

    /// Ready when the wait is cancelled.
    pub(crate) fn poll_interrupted(&self, cx: &mut Context<'_>) -> Poll<()> {
        match &mut *lock(&self.wait) {
            Wait::Interrupted => return Poll::Ready(()),
            Wait::Yes(waker) => waker.clone_from(cx.waker()),
            Wait::No => {}
        }
        Poll::Pending
    }

    /// Whether the wait was cancelled.
    pub(crate) fn was_interrupted(&self) -> bool {
        matches!(*lock(&self.wait), Wait::Interrupted)
    }

    fn interrupt(&self) {
        let mut wait = lock(&self.wait);
        if let Wait::Yes(waker) = &*wait {
            waker.wake_by_ref();
            *wait = Wait::Interrupted;
        }
    }

    /// From now on (or no longer) requests are ignored, because they would make a commit lie.
    #[inline]
    pub(crate) fn shield(&self, shielded: bool) {
        self.shielded.store(shielded, Ordering::Release);
    }
}

/// Sends one CancelRequest to PostgreSQL and waits until it has been read.
///
/// # Errors
/// The connection could not be made or was cut.
pub(crate) async fn deliver(target: &CancelTarget) -> std::io::Result<()> {
    let mut request = BytesMut::new();
    pgwire::frontend::cancel_request(&mut request, target.process_id, &target.key)
        .map_err(|error| std::io::Error::new(std::io::ErrorKind::InvalidData, error))?;
    let mut end = [0; 1];
    match &target.address {
        Address::Tcp(host, port) => {
            let mut stream = TcpStream::connect((host.as_str(), *port)).await?;
            stream.write_all(&request).await?;
            let _ = stream.read(&mut end).await?;
        }
        Address::Unix(directory, port) => {
            let mut stream = UnixStream::connect(directory.join(format!(".s.PGSQL.{port}"))).await?;
            stream.write_all(&request).await?;
            let _ = stream.read(&mut end).await?;
        }
    }
    Ok(())
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_says_whose_it_is_and_how_far_it_may_go() {
        let cancels = Arc::new(Cancels::default());
        for peer_id in [1, 255, 256, 16_383] {
            let key = cancels.register(4, peer_id);
            assert_eq!(peer_of(key.process_id), peer_id);
            assert!(key.process_id >> 31 == 0);
            let mut passed = key.key.to_vec();
            for _ in 0..3 {
                passed = one_hop_less(&passed).expect("three hops");
                assert_eq!(with_all_hops(&passed), *key.key);
            }
            assert_eq!(one_hop_less(&passed), None);
        }
    }

    #[tokio::test]
    async fn a_delivery_that_nobody_waits_for_any_more_gives_its_place_back() {
        let silent = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let port = silent.local_addr().expect("an address").port();
        let address = Address::Tcp("127.0.0.1".into(), port);
        let target = Arc::new(CancelTarget { address, process_id: 1, key: [0; 4].as_slice().into() });
        let cancels = Arc::new(Cancels::default());
        let client = cancels.register(4, 0);
        client.begin(&target);
        let asked = cancels.request(client.process_id, &client.key);
        assert!(tokio::time::timeout(Duration::from_millis(50), asked).await.is_err(), "nobody answers there");
        assert_eq!(cancels.deliveries.load(Ordering::Acquire), 0);
        assert!(client.end(), "it may have arrived all the same");
        client.delivered().await;
        assert_eq!(cancels.request(client.process_id, &client.key).await, "cancel request for idle client");
        assert_eq!(cancels.request(client.process_id, &[0; 5]).await, "failed cancel request");
    }
}
