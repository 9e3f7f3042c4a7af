//! What a pool keeps to: how many servers, for how long, opened how. Made from the configuration, and replaced by a reload.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use topology::Address;

use crate::hosts::Ttl;
use crate::listener::TcpOptions;
use crate::tls::ServerTls;

/// What a pool keeps to.
pub(crate) struct Terms {
    /// Hosts that are the same to its users, instead of the node of the snapshot; empty: the node.
    pub(crate) addresses: Vec<Address>,
    /// Stay with a host until it fails; else take them in turn.
    pub(crate) stays_with_host: bool,
    /// How long the addresses of a host name are good for; none: they are asked for each time.
    pub(crate) ttl: Option<Ttl>,
    /// The options of its TCP connections.
    pub(crate) tcp: TcpOptions,
    /// TLS, if the entry has it.
    pub(crate) tls: Arc<ServerTls>,
    /// The database on the server.
    pub(crate) dbname: Arc<str>,
    /// What goes into the startup packet besides user and database.
    pub(crate) startup: Vec<(String, String)>,
    /// What is run on a new server before anybody gets it.
    pub(crate) connect_query: Option<String>,
    /// Time to connect and log in.
    pub(crate) connect_timeout: Duration,
    /// Time that an idle server is kept.
    pub(crate) idle_timeout: Duration,
    /// Age at which a server is closed when it is not lent.
    pub(crate) lifetime: Duration,
    /// Servers.
    pub(crate) size: usize,
    /// More servers, for those who waited for `reserve_after`.
    pub(crate) reserve: usize,
    /// How long is waited before the reserve is used.
    pub(crate) reserve_after: Duration,
    /// Servers kept even when unused.
    pub(crate) min_size: usize,
    /// The minimum is kept without clients too.
    pub(crate) min_without_clients: bool,
    /// Connection attempts at the same time.
    pub(crate) attempts: usize,
    /// Wait after a failed attempt; none: short, and doubled with each.
    pub(crate) retry: Option<Duration>,
    /// A server that was idle for this long is asked this before it is lent.
    pub(crate) check: Option<(Duration, String)>,
    /// What is run on a server after a session that had it for itself.
    pub(crate) reset_query: String,
    /// The same after each transaction.
    pub(crate) always_reset: bool,
    /// The server idle for longest is lent first; else the last one.
    pub(crate) round_robin: bool,
    /// A session in between transactions gives up a server that is to be closed.
    pub(crate) fast_close: bool,
    /// PgBouncer's log tells of connections to servers.
    pub(crate) logs_connections: bool,
    /// And of their ends.
    pub(crate) logs_ends: bool,
    /// The manners are PgBouncer's.
    pub(crate) is_pgbouncer: bool,
}

impl Terms {
    /// Servers at most, with the reserve.
    pub(crate) fn most(&self) -> usize {
        self.size.saturating_add(self.reserve)
    }
}

/// A number of servers that several pools share: those of an entry, those of a user.
#[derive(Debug)]
pub(crate) struct Budget {
    taken: AtomicUsize,
    limit: AtomicUsize,
}

impl Budget {
    /// Nothing is taken; `limit` 0 is none.
    pub(crate) fn new(limit: usize) -> Self {
        Self { taken: AtomicUsize::new(0), limit: AtomicUsize::new(limit) }
    }

    /// Another limit from now on.
    pub(crate) fn set_limit(&self, limit: usize) {
        self.limit.store(limit, Ordering::Relaxed);
    }

    /// Servers that exist or are being opened.
    pub(crate) fn taken(&self) -> usize {
        self.taken.load(Ordering::Acquire)
    }

    /// Whether there is room for one more.
    pub(crate) fn has_room(&self) -> bool {
        let limit = self.limit.load(Ordering::Relaxed);
        limit == 0 || self.taken() < limit
    }

    /// Takes one, unless the limit is reached.
    pub(crate) fn take(&self) -> bool {
        let limit = self.limit.load(Ordering::Relaxed);
        if limit != 0 && self.taken.fetch_add(1, Ordering::AcqRel) >= limit {
            self.give_back();
            return false;
        }
        if limit == 0 {
            self.taken.fetch_add(1, Ordering::AcqRel);
        }
        true
    }

    /// Takes one, whatever the limit: it is there already.
    pub(crate) fn take_always(&self) {
        self.taken.fetch_add(1, Ordering::AcqRel);
    }

    /// Gives one back.
    pub(crate) fn give_back(&self) {
        self.taken.fetch_sub(1, Ordering::AcqRel);
    }
}
