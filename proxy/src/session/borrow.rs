//! From a client's first message to a server that may take it: choosing the node, holding, borrowing.

use std::future::poll_fn;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::task::{Poll, Waker};
use std::time::{Duration, Instant};

use pgwire::backend;
use pgwire::conversation::TransactionStatus;
use pgwire::report::{Report, View};
use pgwire::sqlstate;
use tokio::sync::watch;
use tokio::time::sleep_until;
use topology::Topology;

use super::lost::Lost;
use super::queue::{Need, Waiting};
use super::requests::Frame;
use super::turn::{End, Turn};
use super::{Asked, Session, say};
use crate::error::Denial;
use crate::pool::{Borrowed, Failure, Place, Pool};
use crate::routing::{self, Choice, ReplicaPolicy, Route};
use crate::shared::Shared;
use crate::stats::Counted;

/// Bytes that are taken from a client while it waits for a server; then it has to wait with its words.
const HELD_BYTES_PER_CLIENT: usize = 64 * 1024;

/// Why the client's next transaction got no server.
#[derive(Debug)]
pub(super) enum NoServer {
    /// The client is told, and stays.
    Told(Report),
    /// PostgreSQL's own words, to be passed on.
    Words(bytes::Bytes),
    /// The session ends.
    End(End),
}

impl Session {
    /// The first message of a transaction: finds it a server at once, or says what has to be waited for. `false` if it was
    /// answered without one.
    pub(super) fn begin(&mut self, frame: &mut Frame<'_>, behind: &[u8]) -> Result<bool, Turn> {
        match frame.tag {
            b'X' => return Err(Turn::End(End::Goodbye)),
            b'H' | b'd' | b'c' | b'f' => return Ok(false), // nothing to flush; late COPY data is ignored
            b'S' if self.lost == Lost::No => {
                self.client.out().extend_from_slice(&backend::write_ready_for_query(TransactionStatus::Idle));
                return Ok(false);
            }
            b'Q' | b'P' | b'B' | b'D' | b'E' | b'C' | b'F' | b'S' => {}
            tag => {
                return Err(Turn::End(End::Violation(format!("unexpected message type \"{}\"", tag.escape_ascii()))));
            }
        }
        if !self.meet_loss(frame) {
            return Ok(false);
        }
        let asked = self.asks(frame, behind);
        if self.lost == Lost::Told {
            return Err(Turn::Need(Need::with_care(Asked::primary())));
        }
        if self.entry.is_paused() {
            return Err(Turn::Need(Need::with_care(asked)));
        }
        let (node, epoch) = match self.entry.alone {
            Some(epoch) => (0, epoch),
            None => {
                let topology = self.entry.watch.now();
                let Choice::Node(node) = self.choose(&topology, &asked) else {
                    return Err(Turn::Need(Need::with_care(asked)));
                };
                (node, topology.epoch)
            }
        };
        if self.pools.get(node).is_none() {
            self.pool(node);
        }
        let borrowed = self.pools.get(node).and_then(|pool| pool.try_borrow(self.worker.index, epoch));
        match borrowed {
            Some(server) => self.take(server, node).map(|()| true),
            None => Err(Turn::Need(Need { asked, at: Some((node, epoch)) })),
        }
    }

    fn choose(&mut self, topology: &Topology, asked: &Asked) -> Choice {
        let Some(read_after) = &mut self.read_after else {
            return topology.primary.map_or(Choice::Hold, Choice::Node);
        };
        read_after.meet(topology);
        let route = Route::decided(asked.class.hint, self.route, self.entry.route);
        let want = routing::Want::of(route, asked.alone && asked.class.starts_read_only());
        let policy = ReplicaPolicy { max_lag: Some(self.entry.max_lag), load: &[], random: rand::random() };
        routing::choose(topology, want, read_after, &policy)
    }

    /// A transaction ended: what it saw, later reads must see too.
    pub(super) fn note_what_was_seen(&mut self) {
        let Some(read_after) = &mut self.read_after else { return };
        let begun = self.entry.watch.samples_begun();
        if self.entry.watch.now().primary == Some(self.node) {
            read_after.used_primary(begun);
        } else {
            read_after.used_standby(self.node, begun);
        }
    }

    /// Makes a borrowed server the session's; `Turn::Bring` if it is not as the session left its last one.
    pub(super) fn take(&mut self, mut server: Borrowed, node: usize) -> Result<(), Turn> {
        self.cancel.begin(&server.cancel);
        if !self.logs_in {
            self.count(Counted::Assignments, 1);
        }
        server.control.link.store(self.card.client.id, Ordering::Relaxed);
        self.card.client.link.store(server.control.origin.id, Ordering::Relaxed);
        self.node = node;
        let mut same = self.reported.is(&server.reported) && self.settings.is(&server.applied);
        if !same && self.lost == Lost::No && !self.login.is_due() {
            let server = &mut *server;
            self.reported.unify(&mut server.reported);
            self.settings.unify(&mut server.applied);
            same = self.reported.is(&server.reported) && self.settings.is(&server.applied);
        }
        self.server = Some(server);
        if same { Ok(()) } else { Err(Turn::Bring) }
    }

    /// Waits for a server, in the order of asking; while there is no primary, for one of those.
    pub(super) async fn acquire(&mut self, asked: &Asked) -> Result<(), NoServer> {
        let waiting = self.waiting.take();
        if waiting.is_none() {
            self.cancel.waits(Waker::noop());
        }
        let outcome = self.wait_for_server(asked, waiting).await;
        self.cancel.waits_no_more();
        outcome
    }

    async fn wait_for_server(&mut self, asked: &Asked, waiting: Option<Box<Waiting>>) -> Result<(), NoServer> {
        let config = self.worker.shared.config();
        let limits = &config.limits;
        let (mut place, begun, held) = match waiting {
            Some(waiting) => (Some(waiting.place), waiting.since, Some(waiting.held)),
            None => (None, Instant::now(), self.worker.shared.hold()),
        };
        let Some(_held) = held else {
            let why = self.entry.watch.now().why.to_string();
            return Err(NoServer::Told(Denial::TooManyHeld(why).report(false)));
        };
        self.card.waiting();
        let mut held_bytes = HeldBytes { shared: self.worker.shared.clone(), bytes: 0 };
        let mut changes = self.entry.watch.subscribe();
        let mut gate = self.worker.shared.gate();
        let mut counted = false;
        let mut notice = self.notice_after(begun);
        loop {
            gate.borrow_and_update();
            let topology = changes.borrow_and_update().clone();
            let (deadline, node) = match self.choose(&topology, asked) {
                Choice::Node(node) => (begun + self.entry.config().max_wait, Some(node)),
                Choice::Hold => (begun + limits.hold_timeout, None),
            };
            if node.is_none() && !counted {
                counted = true;
                self.entry.watch.count_held();
            }
            let is_paused = self.entry.is_paused();
            place = self.place_in_queue(place, node.filter(|_| !is_paused), topology.epoch, begun)?;
            while self.entry.is_paused() == is_paused && !self.entry.is_removed() {
                let (worker, client) = (self.worker.clone(), &mut self.client);
                let (card, cancel) = (&self.card, &self.cancel);
                let leaving = poll_fn(|cx| {
                    card.register(cx.waker());
                    if card.kill_pending() || cancel.poll_interrupted(cx).is_ready() {
                        return Poll::Ready(());
                    }
                    let limit = held_bytes.limit(limits.hold_bytes.0);
                    let gone = client.poll_gone(cx, &mut worker.scratch.borrow_mut()[..], limit);
                    held_bytes.set(client.rest_len());
                    gone
                });
                tokio::select! {
                    biased;
                    served = come(&mut place) => {
                        self.count_time(Counted::WaitTime, begun.elapsed());
                        return self.borrowed(served, node.unwrap_or(0));
                    }
                    () = next(&mut changes) => break,
                    _ = gate.changed() => {}
                    () = sleep_until(notice.unwrap_or(deadline).into()), if notice.is_some() => {
                        notice = None;
                        self.tell_of_queue();
                    }
                    () = leaving => return Err(self.left_the_queue()),
                    () = sleep_until(deadline.into()) => return Err(self.out_of_time(&topology, node, begun)),
                }
            }
        }
    }

    /// A place in the right queue, if there is one: the same as long as it is the same queue.
    fn place_in_queue(
        &mut self,
        place: Option<Place>,
        node: Option<usize>,
        epoch: u64,
        since: Instant,
    ) -> Result<Option<Place>, NoServer> {
        let Some(pool) = self.pool_to_wait_for(node)? else { return Ok(None) };
        if let Some(place) = place.filter(|place| place.is_in(&pool, epoch)) {
            return Ok(Some(place));
        }
        // whoever awaits the place is woken
        let place = pool.queue(self.worker.index, epoch, since, Waker::noop());
        place.map(Some).map_err(|failure| self.told_of(failure))
    }

    /// The pool whose queue is the right one; `None` while there is none, or nothing is lent.
    fn pool_to_wait_for(&mut self, node: Option<usize>) -> Result<Option<Arc<Pool>>, NoServer> {
        if self.entry.is_removed() {
            return Err(NoServer::End(End::SentAway(Denial::DatabaseRemoved)));
        }
        let Some(node) = node else { return Ok(None) };
        let Some(pool) = self.pool(node) else {
            let text = "the database entry has too many pools, or was changed";
            return Err(NoServer::Told(Report::error(sqlstate::TOO_MANY_CONNECTIONS, text)));
        };
        match pool.is_failing().filter(|_| !self.logs_in) {
            None => Ok(Some(pool)),
            Some(failure) => {
                let words = format!(
                    "server login has been failing, cached error: {} (server_login_retry)",
                    failure.in_pgbouncers_words()
                );
                Err(NoServer::End(End::SentAway(Denial::Told(words))))
            }
        }
    }

    /// The client gave its wait up, or left, or is sent away.
    fn left_the_queue(&self) -> NoServer {
        if self.cancel.was_interrupted() {
            let text = "canceling statement due to user request";
            return NoServer::Told(Report::error(sqlstate::QUERY_CANCELED, text));
        }
        NoServer::End(self.card.kill().map_or(End::ClientGone, End::SentAway))
    }

    fn out_of_time(&mut self, topology: &Topology, node: Option<usize>, begun: Instant) -> NoServer {
        if self.is_plain {
            return NoServer::End(End::SentAway(Denial::NoServer(begun.elapsed())));
        }
        NoServer::Told(self.waited_too_long(topology, node, begun))
    }

    /// When a client that waits is told so, with PgBouncer's manners.
    fn notice_after(&self, begun: Instant) -> Option<Instant> {
        let config = self.worker.shared.config();
        let seconds = config.dialect.pgbouncer().map_or(0, |loaded| loaded.settings.query_wait_notify);
        let after = u64::try_from(seconds).ok().filter(|seconds| *seconds > 0 && !self.logs_in)?;
        Some(begun + Duration::from_secs(after))
    }

    fn tell_of_queue(&mut self) {
        let text = format!(
            "No server connection available in {} backend, client being queued",
            self.entry.config().dbname.as_deref().unwrap_or(&self.entry.name)
        );
        say(self.client.out(), &Report::notice(text).terse());
        let _ = poll_once(|cx| self.client.poll_flush(cx));
    }

    fn borrowed(&mut self, served: Result<Borrowed, Failure>, node: usize) -> Result<(), NoServer> {
        let server = served.map_err(|failure| self.told_of(failure))?;
        let _ = self.take(server, node); // it is brought to the session's settings in any case
        Ok(())
    }

    /// What a failure of the pool means for the client.
    pub(super) fn told_of(&self, failure: Failure) -> NoServer {
        match failure {
            Failure::Refused { body, .. } if self.is_plain && !self.logs_in => {
                NoServer::End(End::SentAway(Denial::Told(View::new(&body).message().into_owned())))
            }
            Failure::Refused { body, .. } => NoServer::Words(body),
            Failure::Login(report) if self.is_plain => {
                NoServer::End(End::SentAway(Denial::Told(report.message().to_owned())))
            }
            Failure::Login(report) => NoServer::Told(*report),
            Failure::QueueFull { .. } | Failure::Unreachable(_) => {
                NoServer::Told(Report::error(sqlstate::TOO_MANY_CONNECTIONS, failure.to_string()))
            }
            Failure::Closed => NoServer::End(End::SentAway(Denial::ShuttingDown)),
        }
    }

    fn waited_too_long(&mut self, topology: &Topology, node: Option<usize>, begun: Instant) -> Report {
        let waited = begun.elapsed();
        let Some(node) = node else { return Denial::NoPrimary(waited, topology.why.to_string()).report(false) };
        let report = Denial::NoServer(waited).report(false);
        let Some(pool) = self.pool(node) else { return report };
        let counts = pool.counts();
        let mut detail = format!(
            "Of the pool for node \"{}\", {} servers exist, {} of them idle, and {} sessions wait.",
            topology.nodes[node].name, counts.servers, counts.idle, counts.waiting
        );
        if let Some(why) = pool.opener().last_failure() {
            detail += &format!(" The last attempt to open one failed: {why}");
        }
        report.detail(detail)
    }
}

/// Polls once, without waiting for more.
fn poll_once<T>(mut poll: impl FnMut(&mut std::task::Context<'_>) -> Poll<T>) -> Poll<T> {
    poll(&mut std::task::Context::from_waker(Waker::noop()))
}

/// What a waiting client has sent, counted in with the others'.
struct HeldBytes {
    shared: Arc<Shared>,
    bytes: usize,
}

impl HeldBytes {
    /// Up to how many bytes are taken from this client.
    fn limit(&self, of_all: usize) -> usize {
        let full = self.shared.held_bytes().load(Ordering::Relaxed) >= of_all;
        if full { self.bytes } else { HELD_BYTES_PER_CLIENT }
    }

    fn set(&mut self, bytes: usize) {
        self.shared.held_bytes().fetch_add(bytes, Ordering::Relaxed);
        self.shared.held_bytes().fetch_sub(self.bytes, Ordering::Relaxed);
        self.bytes = bytes;
    }
}

impl Drop for HeldBytes {
    fn drop(&mut self) {
        self.set(0);
    }
}

/// Waits for the server that comes to a place; for ever without one.
async fn come(place: &mut Option<Place>) -> Result<Borrowed, Failure> {
    match place {
        Some(place) => place.await,
        None => std::future::pending().await,
    }
}

/// Waits for the next snapshot; for ever where nobody makes one.
async fn next(changes: &mut watch::Receiver<Arc<Topology>>) {
    if changes.changed().await.is_err() {
        std::future::pending::<()>().await;
    }
}
