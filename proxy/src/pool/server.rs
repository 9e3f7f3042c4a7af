//! A connection to PostgreSQL: what it carries from one session to the next. How it is opened is in `open.rs`.

use std::collections::HashMap;
use std::sync::Arc;
use std::task::Poll;

use bytes::Bytes;
use pgwire::conversation::Conversation;
use pgwire::{backend, frame};
use topology::Address;

use super::{Control, Slot};
use crate::clock::Moment;
use crate::session::note::Note;
use crate::settings::{Reported, Settings};
use crate::wire::{Filled, Wire};

/// Bytes read at a time from an idle server; it has hardly anything to say.
const IDLE_BYTES: usize = 256;

/// A server that has logged in. It is borrowed by one session at a time and goes back to its pool only at rest.
pub(crate) struct Server {
    /// The stream.
    pub(crate) wire: Wire,
    /// What is owed on it.
    pub(crate) conversation: Conversation<Note>,
    /// The prepared statements of ours that it holds.
    pub(crate) prepared: Prepared,
    /// Whose unnamed statement it holds: the number that the session gave it.
    pub(crate) unnamed: Option<u64>,
    /// The parameters that it reports, as it reported them last.
    pub(crate) reported: Reported,
    /// The settings that were made on it and are not reported.
    pub(crate) applied: Settings,
    /// It holds state of a session that is not tracked: it is reset before the next session.
    pub(crate) dirty: bool,
    /// Its database has rules other than those of views: a statement may bring more results by simple query than otherwise.
    pub(crate) has_rules: bool,
    /// How many of the monitor's readings had begun when it had logged in: a later one is of the node's same life.
    pub(crate) born: u64,
    /// The reign that it surely belongs to: node and incarnation.
    pub(crate) reign: Option<(usize, i64)>,
    /// What others may do to it while it is borrowed.
    pub(crate) control: Arc<Control>,
    /// Where a cancel request for it goes.
    pub(crate) cancel: Arc<CancelTarget>,
    /// When it was opened; its life is counted from here.
    pub(crate) opened: Moment,
    /// A session had it.
    pub(crate) was_lent: bool,
    /// When it was given back last (housekeeping's clock).
    pub(crate) idle_since: Moment,
    /// The worker whose runtime watches its socket; none: it is not known which runtime does.
    pub(super) worker: Option<usize>,
    /// The place that it takes in its pool; given up with it.
    pub(super) _slot: Option<Slot>,
}

impl Server {
    /// The runtime of this worker, on which this is called, watches its socket from now on. Were another to do so, each
    /// answer would wake up two threads.
    #[inline]
    pub(super) fn move_to(&mut self, worker: usize) {
        if self.worker != Some(worker) && self.wire.watch_here().is_ok() {
            self.worker = Some(worker);
        }
    }

    /// Takes in what came while the server was idle: notices and changed parameters. `false` if it is of no use any more:
    /// it said something else, or is gone.
    #[inline]
    pub(crate) fn listen_idle(&mut self) -> bool {
        let mut scratch = [0; IDLE_BYTES];
        loop {
            let Poll::Ready(filled) = self.wire.poll_unasked(&mut scratch) else { return !self.wire.has_rest() };
            let Ok(Filled::Scratch(length)) = filled else {
                self.control.closes("server conn crashed?");
                return false;
            };
            let mut rest = &scratch[..length];
            while let Ok(Some(frame::Frame { tag, body, rest: behind })) = frame::split(rest) {
                match (tag, backend::parameter_status(body)) {
                    (b'N' | b'A', _) => {}
                    (b'S', Ok((name, value))) => {
                        self.reported.set(&String::from_utf8_lossy(name), &String::from_utf8_lossy(value));
                    }
                    (b'E', _) => {
                        self.control.closes("server conn crashed?");
                        return false;
                    }
                    _ => {
                        self.control.closes("idle server got dirty");
                        return false;
                    }
                }
                rest = behind;
            }
            self.wire.keep(rest);
        }
    }
}

/// Where a cancel request for a server goes.
#[derive(Debug)]
pub(crate) struct CancelTarget {
    /// The address that the server was opened to.
    pub(crate) address: Address,
    /// The process id and the key of BackendKeyData, as they came.
    pub(crate) process_id: u32,
    /// The secret.
    pub(crate) key: Bytes,
}

/// The prepared statements that a server holds under our names, least recently used first out.
#[derive(Debug, Default)]
pub(crate) struct Prepared {
    used: HashMap<u64, u64>,
    turn: u64,
}

impl Prepared {
    /// Whether the server holds this statement; if so it counts as used now.
    pub(crate) fn touch(&mut self, statement: u64) -> bool {
        self.turn += 1;
        self.used.get_mut(&statement).map(|turn| *turn = self.turn).is_some()
    }

    /// The server is being given this statement; returns those that have to go to keep to `limit`, which are few.
    pub(crate) fn insert(&mut self, statement: u64, limit: usize) -> Vec<u64> {
        self.turn += 1;
        let mut gone = Vec::new();
        while self.used.len() >= limit.max(1) {
            let Some(oldest) = self.used.iter().min_by_key(|(_, turn)| **turn).map(|(oldest, _)| *oldest) else {
                break;
            };
            self.used.remove(&oldest);
            gone.push(oldest);
        }
        self.used.insert(statement, self.turn);
        gone
    }

    /// The server does not hold it (any more).
    pub(crate) fn remove(&mut self, statement: u64) {
        self.used.remove(&statement);
    }

    /// How many the server holds.
    pub(crate) fn len(&self) -> usize {
        self.used.len()
    }

    /// The server holds none.
    pub(crate) fn clear(&mut self) {
        self.used.clear();
    }
}
