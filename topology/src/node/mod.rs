//! PostgreSQL's programs and processes on this machine: made, started, killed, brought back. Whether a node should be
//! primary is not decided here; nothing here makes a read-write primary of a node that was not asked to be one.
//!
//! What a node is called and where it listens is on its command line, not in its data directory: `pg_rewind` and
//! `pg_basebackup` copy the configuration files of another node over its own, and must not give it another's port.

use std::fmt;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

mod account;
mod files;
mod local;
mod port;
mod process;
mod programs;
mod rejoin;
mod settings;
mod throwaway;
mod upstream;

pub use account::Account;
pub use local::{Init, LocalNode, Log, Site, Stop};
pub use port::Port;
pub use programs::{OLDEST_MAJOR, Programs};
pub use rejoin::Rejoined;
pub use settings::{Settings, quoted};
pub use throwaway::Throwaway;
pub use upstream::Upstream;

/// Why something on this machine did not come about. Each names the node or file it is about.
#[derive(Debug)]
pub enum NodeError {
    /// PostgreSQL's programs are not on this machine, or only ones that are too old.
    NoPrograms {
        /// Folders that were looked at.
        looked: Vec<PathBuf>,
        /// What was found there instead, for people; empty if nothing.
        found: String,
    },
    /// The operating system refused.
    Io {
        /// What was tried.
        what: &'static str,
        /// With which file or folder.
        path: PathBuf,
        /// Its answer.
        error: io::Error,
    },
    /// One of PostgreSQL's programs failed.
    Program {
        /// Its name and the node's.
        program: String,
        /// How it ended.
        status: String,
        /// The end of what it wrote.
        output: String,
    },
    /// PostgreSQL did not start, or ended.
    Start {
        /// The node.
        node: String,
        /// What happened.
        why: String,
        /// The last lines of its log.
        log: String,
    },
    /// Something took longer than its bound.
    TimedOut {
        /// What was waited for, and at which node.
        what: String,
        /// The bound.
        bound: Duration,
    },
    /// A node answered a statement with an error, or not at all.
    Sql {
        /// What was asked, and of whom.
        what: String,
        /// The answer.
        error: tokio_postgres::Error,
    },
    /// It would not be safe, or makes no sense in this state.
    Refused {
        /// The node.
        node: String,
        /// Why.
        why: String,
    },
}

impl NodeError {
    pub(crate) fn io(what: &'static str, path: &Path, error: io::Error) -> Self {
        NodeError::Io { what, path: path.to_owned(), error }
    }

    pub(crate) fn refused(node: &str, why: impl Into<String>) -> Self {
        NodeError::Refused { node: node.to_owned(), why: why.into() }
    }
}

impl fmt::Display for NodeError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            NodeError::NoPrograms { looked, found } => {
                let looked: Vec<String> = looked.iter().map(|folder| folder.display().to_string()).collect();
                write!(f, "PostgreSQL's programs ({}) of version ", programs::NEEDED.join(", "))?;
                write!(f, "{OLDEST_MAJOR} or later were not found in: {}", looked.join(", "))?;
                if !found.is_empty() {
                    write!(f, " (found: {found})")?;
                }
                write!(f, "; install them (Debian and Ubuntu: apt-get install postgresql) or name their folder")
            }
            NodeError::Io { what, path, error } => write!(f, "{what} {}: {error}", path.display()),
            NodeError::Program { program, status, output } => write!(f, "{program} ended with {status}: {output}"),
            NodeError::Start { node, why, log } => {
                write!(f, "PostgreSQL of node {node} {why}; its log ends with:\n{log}")
            }
            NodeError::TimedOut { what, bound } => write!(f, "{what}: not within {} ms", bound.as_millis()),
            NodeError::Sql { what, error } => match error.as_db_error() {
                Some(db) => write!(f, "{what}: {} {}", db.code().code(), db.message()),
                None => write!(f, "{what}: {error}"),
            },
            NodeError::Refused { node, why } => write!(f, "node {node}: {why}"),
        }
    }
}

impl std::error::Error for NodeError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            NodeError::Io { error, .. } => Some(error),
            NodeError::Sql { error, .. } => Some(error),
            _ => None,
        }
    }
}
