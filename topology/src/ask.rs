//! What an operator asks of the monitor, and the answer. The way there; what comes of it is decided in `decision`.

use std::sync::Arc;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use tokio::sync::oneshot;

/// Requests that may wait for the driver; one at a time is worked on.
pub(crate) const MAX_ASKS: usize = 4;

/// What is asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Wish {
    /// Another primary, in peace.
    Switchover {
        /// Index of the node; `None`: whom a failover would choose.
        to: Option<usize>,
        /// How long open transactions may take to end.
        max_wait: Duration,
        /// Whether to end those that are still open then, instead of giving up.
        end_transactions: bool,
    },
    /// A standby promoted in place of a lost primary, although commits that no standby within reach has may be lost.
    Failover,
}

/// What came of it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "outcome", rename_all = "snake_case")]
pub enum Verdict {
    /// Nothing was begun.
    Refused {
        /// Why, and what can be done.
        why: String,
        /// What is in the way is under way itself, and passes: it may be asked again.
        passes: bool,
    },
    /// What was begun is undone: the same primary serves.
    Undone {
        /// Why, and what can be done.
        why: String,
    },
    /// Another primary serves.
    Done {
        /// The primary before.
        from: Arc<str>,
        /// The primary now.
        to: Arc<str>,
        /// Its term.
        term: u64,
    },
}

impl Verdict {
    /// Nothing was begun, for a reason that does not pass by itself.
    pub fn refused(why: impl Into<String>) -> Self {
        Verdict::Refused { why: why.into(), passes: false }
    }
}

/// A request on its way.
#[derive(Debug)]
pub(crate) struct Ask {
    pub(crate) wish: Wish,
    pub(crate) answer: oneshot::Sender<Verdict>,
}
