//! Where the record of a cluster is kept: the one thing that must survive all of us. Only compare-and-set, no decisions.

use std::fmt;
use std::path::PathBuf;

use decision::{Record, Term};

mod file;
mod format;
mod memory;

pub use file::FileStore;
pub use memory::MemoryStore;

/// A store, whichever it is. Its calls may block on a disk.
#[derive(Debug)]
pub enum Store {
    /// A file of this machine, for one instance.
    File(FileStore),
    /// Nothing durable: for a cluster that somebody else manages.
    Memory(MemoryStore),
}

impl Store {
    /// The record; `None` if there is none yet.
    ///
    /// # Errors
    /// If it cannot be read.
    pub fn read(&self) -> Result<Option<Record>, StoreError> {
        match self {
            Store::File(store) => store.read(),
            Store::Memory(store) => Ok(store.read()),
        }
    }

    /// Sets the claimed term to `to` if it is `from`; `handover`: for a switchover.
    ///
    /// # Errors
    /// If it cannot be read or written; then it is open whether the claim is stored.
    pub fn claim(&self, from: Term, to: Term, handover: bool) -> Result<Swap, StoreError> {
        match self {
            Store::File(store) => store.claim(from, to, handover),
            Store::Memory(store) => Ok(store.claim(from, to, handover)),
        }
    }

    /// Stores the record if what is stored is its predecessor.
    ///
    /// # Errors
    /// If it cannot be read or written; then it is open whether the record is stored.
    pub fn publish(&self, record: &Record) -> Result<Swap, StoreError> {
        match self {
            Store::File(store) => store.publish(record),
            Store::Memory(store) => Ok(store.publish(record)),
        }
    }
}

impl fmt::Display for Store {
    /// Which it is and where, for people.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Store::File(store) => write!(f, "file {}", store.path().display()),
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
        /// The file.
        path: PathBuf,
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
            StoreError::Unreadable { path, why } => write!(
                f,
                "{} is not a record of this cluster ({why}): nobody is promoted until it is put right; restore it from a \
                 backup, or, if you are sure which node is the primary, move it away and the primary is adopted anew",
                path.display()
            ),
            StoreError::Io { what, path, why } => write!(f, "cannot {what} {}: {why}", path.display()),
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

/// A claim, as the record that it makes of another one; `None` if the claimed term there is not `from`.
pub(crate) fn claim(stored: &Record, from: Term, to: Term, handover: bool) -> Option<Record> {
    if stored.claimed != from || to <= from {
        return None;
    }
    Some(Record { claimed: to, handover, ..stored.successor() })
}
