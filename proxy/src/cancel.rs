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

use crate::pool::CancelTarget;

/// Cancel requests that are being delivered at the same time; more are dropped, as PostgreSQL may drop them.
const MAX_DELIVERIES: usize = 64;
/// Time for one delivery.
const DELIVERY_TIMEOUT: Duration = Duration::from_secs(5);

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
    /// Gives a client its key, of `key_bytes` bytes.
    pub(crate) fn register(self: &Arc<Self>, key_bytes: usize) -> Registered {
        let key: Box<[u8]> = (0..key_bytes).map(|_| rand::random::<u8>()).collect();
        let mut clients = lock(&self.clients);
        let process_id = loop {
            let process_id = rand::random::<u32>() >> 1;
            if process_id != 0 && !clients.contains_key(&process_id) {
                break process_id;
            }
        };
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
    /// Progress").
    pub(crate) async fn request(&self, process_id: u32, key: &[u8]) {
        let Some(cancel) = lock(&self.clients).get(&process_id).cloned() else { return };
        if !bool::from(cancel.key.ct_eq(key)) || cancel.shielded.load(Ordering::Acquire) {
            return;
        }
        cancel.interrupt();
        if self.deliveries.fetch_add(1, Ordering::AcqRel) < MAX_DELIVERIES
            && let Some(delivery) = Delivery::begin(&cancel)
        {
            let _ = tokio::time::timeout(DELIVERY_TIMEOUT, deliver(&delivery.target)).await;
        }
        self.deliveries.fetch_sub(1, Ordering::AcqRel);
    }
}

/// A client's wait for a server.
#[derive(Debug)]
enum Wait {
    No,
    Yes(Option<Waker>),
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

    /// The client waits for a server from now on, or no longer.
    pub(crate) fn waits(&self, waits: bool) {
        *lock(&self.wait) = if waits { Wait::Yes(None) } else { Wait::No };
    }

    /// Ready when the wait is cancelled.
    pub(crate) fn poll_interrupted(&self, cx: &mut Context<'_>) -> Poll<()> {
        match &mut *lock(&self.wait) {
            Wait::Interrupted => return Poll::Ready(()),
            Wait::Yes(waker) => *waker = Some(cx.waker().clone()),
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
        if let Wait::Yes(waker) = &mut *wait {
            let waker = waker.take();
            *wait = Wait::Interrupted;
            if let Some(waker) = waker {
                waker.wake();
            }
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
