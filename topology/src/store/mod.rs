//! Where the record of a cluster is kept: the one thing that must survive all of us. Only compare-and-set, no decisions.

use std::fmt;
use std::path::PathBuf;
use std::sync::Arc;

use decision::{Record, Term};

use crate::presence::Identity;

mod etcd;
mod file;
mod format;
mod memory;

pub use etcd::{Endpoint, EtcdConfig, EtcdStore, TlsFiles};
pub(crate) use etcd::{Keeper, Stop};
pub use file::FileStore;
pub use memory::MemoryStore;

/// A store, whichever it is.
#[derive(Debug, Clone)]
pub enum Store {
    /// A file of this machine, for one instance.
    File(Arc<FileStore>),
    /// etcd, for several instances.
    Etcd(Arc<EtcdStore>),
    /// Nothing durable: for a cluster that somebody else manages.
    Memory(Arc<MemoryStore>),
}

impl Store {
    /// The record; `None` if there is none yet.
    ///
    /// # Errors
    /// If it cannot be read.
    pub async fn read(&self) -> Result<Option<Record>, StoreError> {
        match self {
            Store::File(store) => on_disk(store, FileStore::read).await,
            Store::Etcd(store) => store.read().await,
            Store::Memory(store) => Ok(store.read()),
        }
    }

    /// Sets the claimed term to `to` if it is `from`; `handover`: for a switchover.
    ///
    /// # Errors
    /// If it cannot be read or written; then it is open whether the claim is stored.
    pub async fn claim(&self, from: Term, to: Term, handover: bool) -> Result<Swap, StoreError> {
        match self {
            Store::File(store) => on_disk(store, move |store| store.claim(from, to, handover)).await,
            Store::Etcd(store) => store.claim(from, to, handover).await,
            Store::Memory(store) => Ok(store.claim(from, to, handover)),
        }
    }

    /// Stores the record if what is stored is its predecessor.
    ///
    /// # Errors
    /// If it cannot be read or written; then it is open whether the record is stored.
    pub async fn publish(&self, record: Record) -> Result<Swap, StoreError> {
        match self {
            Store::File(store) => on_disk(store, move |store| store.publish(&record)).await,
            Store::Etcd(store) => store.publish(&record).await,
            Store::Memory(store) => Ok(store.publish(&record)),
        }
    }

    /// Who we are to instances that do not share it.
    pub(crate) fn identity(&self) -> Identity {
        match self {
            Store::File(store) => Identity::of_file(store.path()),
            Store::Etcd(store) => Identity::of_etcd(store.prefix()),
            Store::Memory(_) => Identity::NOBODY,
        }
    }

    /// Whether `term` is still the claimed one, for an order under this claim that has just taken its node's lock: another
    /// instance may have claimed while this one slept. What only one instance can open need not be read for that.
    ///
    /// # Errors
    /// The claim that came after it, or why it cannot be known; the order must not be carried out.
    pub async fn still_claimed(&self, term: Term) -> Result<(), String> {
        let Store::Etcd(store) = self else { return Ok(()) };
        match store.read().await {
            Ok(Some(record)) if record.claimed == term => Ok(()),
            Ok(Some(record)) => Err(format!("term {} was claimed meanwhile", record.claimed.0)),
            Ok(None) => Err("the store is empty".into()),
            Err(error) => Err(error.to_string()),
        }
    }
}

/// The file store blocks on the disk: that is for a thread that may.
async fn on_disk<T: Send + 'static>(
    store: &Arc<FileStore>,
    call: impl FnOnce(&FileStore) -> Result<T, StoreError> + Send + 'static,
) -> Result<T, StoreError> {
    let store = store.clone();
    let ended = tokio::task::spawn_blocking(move || call(&store)).await;
    ended.unwrap_or_else(|error| Err(StoreError::Ended(error.to_string())))
}

impl fmt::Display for Store {
    /// Which it is and where, for people.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Store::File(store) => write!(f, "file {}", store.path().display()),
            Store::Etcd(store) => store.fmt(f),
            Store::Memory(_) => f.write_str("none"),
        }
    }
}

/// Why the store does not serve. Each says what to do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum StoreError {
    /// Another instance holds it.
    Locked(PathBuf),
    /// What is there is not a record of this cluster, or not whole.
    Unreadable {
        /// The file or the key.
        place: String,
        /// What is wrong with it.
        why: String,
    },
    /// The operating system refused.
    Io {
        /// What was tried.
        what: &'static str,
        /// With which file.
        path: PathBuf,
        /// Its answer.
        why: String,
    },
    /// etcd could not be asked, or refused.
    Etcd(String),
    /// The thread that waits for the disk has ended.
    Ended(String),
}

impl fmt::Display for StoreError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            StoreError::Locked(path) => write!(
                f,
                "{} is held by another instance: two instances may not decide on one file store; stop the other one, or give \
                 this one a store of its own cluster",
                path.display()
            ),
            StoreError::Unreadable { place, why } => write!(
                f,
                "{place} is not a record of this cluster ({why}): nobody is promoted until it is put right; restore it from a \
                 backup, or, if you are sure which node is the primary, move it away and the primary is adopted anew"
            ),
            StoreError::Io { what, path, why } => write!(f, "cannot {what} {}: {why}", path.display()),
            StoreError::Etcd(why) => write!(f, "etcd: {why}"),
            StoreError::Ended(why) => write!(f, "the store's thread ended: {why}"),
        }
    }
}

impl std::error::Error for StoreError {}

/// How a compare-and-set ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Swap {
    /// It is durable, and this is what is stored now.
    Done(Record),
    /// Something else is stored, this.
    Refused(Record),
}

/// Whether `record` may be written over what is stored.
pub(crate) fn follows(stored: &Record, record: &Record) -> bool {
    stored.revision.checked_add(1) == Some(record.revision)
}

/// A claim, as the record that it makes of another one; `None` if the claimed term there is not `from`.
pub(crate) fn claim(stored: &Record, from: Term, to: Term, handover: bool) -> Option<Record> {
    if stored.claimed != from || to <= from {
        return None;
    }
    Some(Record { claimed: to, handover, ..stored.successor() })
}
