//! From a client's first message to a server that may take it: choosing the node, holding, borrowing, bringing the server
//! to the session's settings, and cleaning up behind it.

use std::future::poll_fn;
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::task::Poll;
use std::time::Duration;

use bytes::BytesMut;
use pgwire::conversation::TransactionStatus;
use pgwire::frontend::write_query;
use pgwire::report::Report;
use pgwire::{backend, frame, frontend, sqlstate};
use tokio::sync::watch;
use tokio::time::{Instant, sleep_until, timeout};
use topology::Topology;

use super::lost::Lost;
use super::requests::{Frame, SHORT};
use super::turn::{End, Turn};
use super::{Asked, Mode, Session};
use crate::error::Denial;
use crate::pool::{Borrowed, Failure, Server};
use crate::routing::{self, Choice, ReplicaPolicy, Route};
use crate::settings::{Reported, Setting, Settings};
use crate::shared::Shared;
use crate::wire::Filled;

/// Bytes that are taken from a client while it waits for a server; then it has to wait with its words.
const HELD_BYTES_PER_CLIENT: usize = 64 * 1024;
/// Time for one round trip on our own account: bringing settings, cleaning up.
const OWN_ROUND_TRIP: Duration = Duration::from_secs(15);

/// The settings that say who a session is, in the order in which they are made: the first undoes the second.
const IDENTITY: [&str; 2] = ["session_authorization", "role"];

/// Why the client's next transaction got no server.
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
    pub(super) fn begin(&mut self, frame: &Frame<'_>, behind: &[u8]) -> Result<bool, Turn> {
        match frame.tag {
            b'X' => return Err(Turn::End(End::ClientGone)),
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
        let asked = Asked::of(self, frame.tag, frame.body, frame.whole, behind);
        if self.lost == Lost::Told {
            return Err(Turn::Need(Asked::primary()));
        }
        let topology = self.entry.watch.now();
        let Choice::Node(node) = self.choose(&topology, &asked) else { return Err(Turn::Need(asked)) };
        let borrowed = self.pool(node).and_then(|pool| pool.try_borrow(self.worker.index, topology.epoch));
        match borrowed {
            Some(server) => self.take(server, node).map(|()| true),
            None => Err(Turn::Need(asked)),
        }
    }

    fn choose(&mut self, topology: &Topology, asked: &Asked) -> Choice {
        if self.entry.nodes == 1 {
            return topology.primary.map_or(Choice::Hold, Choice::Node);
        }
        self.read_after.meet(topology);
        let route = Route::decided(asked.class.hint, self.route, self.entry.route());
        let want = routing::Want::of(route, asked.alone && asked.class.starts_read_only());
        let policy = ReplicaPolicy { max_lag: Some(self.entry.max_lag), load: &[], random: rand::random() };
        routing::choose(topology, want, &self.read_after, &policy)
    }

    /// A transaction ended: what it saw, later reads must see too.
    pub(super) fn note_what_was_seen(&mut self) {
        if self.entry.nodes < 2 {
            return;
        }
        let begun = self.entry.watch.samples_begun();
        if self.on_primary {
            self.read_after.used_primary(begun);
        } else {
            self.read_after.used_standby(self.node, begun);
        }
    }

    /// Makes a borrowed server the session's; `Turn::Bring` if it is not as the session left its last one.
    fn take(&mut self, server: Borrowed, node: usize) -> Result<(), Turn> {
        self.cancel.begin(&server.cancel);
        self.node = node;
        let same = self.reported.is(&server.reported) && self.settings.is(&server.applied);
        self.server = Some(server);
        if same { Ok(()) } else { Err(Turn::Bring) }
    }

    /// Waits for a server, in the order of asking; while there is no primary, for one of those.
    pub(super) async fn acquire(&mut self, asked: &Asked) -> Result<(), NoServer> {
        self.cancel.waits(true);
        let outcome = self.wait_for_server(asked).await;
        self.cancel.waits(false);
        outcome
    }

    async fn wait_for_server(&mut self, asked: &Asked) -> Result<(), NoServer> {
        let limits = self.worker.shared.limits();
        let Some(_held) = self.worker.shared.hold() else {
            let why = self.entry.watch.now().why.to_string();
            return Err(NoServer::Told(Denial::TooManyHeld(why).report()));
        };
        self.card.waiting();
        let mut held_bytes = HeldBytes { shared: self.worker.shared.clone(), bytes: 0 };
        let begun = Instant::now();
        let mut changes = self.entry.watch.subscribe();
        let mut counted = false;
        loop {
            let topology = changes.borrow_and_update().clone();
            let choice = self.choose(&topology, asked);
            let (deadline, node) = match choice {
                Choice::Node(node) => (begun + self.entry.max_wait, Some(node)),
                Choice::Hold => (begun + limits.hold_timeout, None),
            };
            if node.is_none() && !counted {
                counted = true;
                self.entry.watch.count_held();
            }
            let pool = node.map(|node| self.pool(node));
            if let Some(None) = pool {
                let text = "the database entry has too many pools, or was changed";
                return Err(NoServer::Told(Report::error(sqlstate::TOO_MANY_CONNECTIONS, text)));
            }
            let pool = pool.flatten();
            let borrowing = async {
                match &pool {
                    Some(pool) => pool.borrow(self.worker.index, topology.epoch).await,
                    None => std::future::pending().await,
                }
            };
            let worker = self.worker.clone();
            let client = &mut self.client;
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
                borrowed = pin!(borrowing) => return self.borrowed(borrowed, node.unwrap_or(0)),
                () = next(&mut changes) => {}
                () = leaving => {
                    if self.cancel.was_interrupted() {
                        let text = "canceling statement due to user request";
                        return Err(NoServer::Told(Report::error(sqlstate::QUERY_CANCELED, text)));
                    }
                    let sent_away = self.card.kill().map(End::SentAway);
                    return Err(NoServer::End(sent_away.unwrap_or(End::ClientGone)));
                }
                () = sleep_until(deadline) => return Err(NoServer::Told(self.waited_too_long(&topology, node, begun))),
            }
        }
    }

    fn borrowed(&mut self, borrowed: Result<Borrowed, Failure>, node: usize) -> Result<(), NoServer> {
        match borrowed {
            Ok(server) => {
                let _ = self.take(server, node); // it is brought to the session's settings in any case
                Ok(())
            }
            Err(Failure::Refused { body, .. }) => Err(NoServer::Words(body)),
            Err(Failure::Login(report)) => Err(NoServer::Told(*report)),
            Err(failure @ (Failure::QueueFull { .. } | Failure::Unreachable(_))) => {
                Err(NoServer::Told(Report::error(sqlstate::TOO_MANY_CONNECTIONS, failure.to_string())))
            }
            Err(Failure::Closed) => Err(NoServer::End(End::SentAway(Denial::ShuttingDown))),
        }
    }

    fn waited_too_long(&mut self, topology: &Topology, node: Option<usize>, begun: Instant) -> Report {
        let waited = begun.elapsed();
        let Some(node) = node else { return Denial::NoPrimary(waited, topology.why.to_string()).report() };
        let report = Denial::NoServer(waited).report();
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

    /// Brings the borrowed server to what the session set, and the client to what the server reports.
    pub(super) async fn bring(&mut self) -> Result<(), NoServer> {
        let Some(server) = self.server.as_mut() else { return Ok(()) };
        let server = &mut **server;
        let mut out = BytesMut::new();
        let again = self.login.take();
        if !again.is_empty() {
            self.reported = server.reported.clone(); // the server was the session's before
        }
        let again: Vec<(&str, &str)> = again.iter().map(|(name, value)| (&**name, &**value)).collect();
        let mut asked = assign(&mut out, &self.reported.to_assign(&server.reported));
        asked += assign(&mut out, &again);
        asked += make(&mut out, &self.settings, &server.applied);
        if self.lost == Lost::Told {
            asked += Self::failed_transaction(&mut out);
        }
        if asked > 0 {
            if out.starts_with(b"P") {
                server.unnamed = None;
            }
            let failed = self.lost == Lost::Told;
            match timeout(OWN_ROUND_TRIP, server.round_trip(&out, asked)).await {
                Ok(Ok(_)) if failed => {} // it was to fail
                Ok(Ok(answers)) => {
                    if let Some(body) = answers.failed {
                        self.drop_server();
                        return Err(NoServer::Words(body));
                    }
                }
                Ok(Err(why)) => return Err(self.bring_failed(&why)),
                Err(_) => return Err(self.bring_failed("it did not answer in time")),
            }
        }
        let Some(server) = self.server.as_mut() else { return Ok(()) };
        // from here on the failed transaction is the server's own, and ends there
        self.lost = Lost::No;
        server.applied = self.settings.clone();
        if !self.reported.is(&server.reported) {
            for (name, value) in self.reported.to_tell(&server.reported) {
                let _ = backend::write_parameter_status(self.client.out(), name.as_bytes(), value.as_bytes());
            }
            let same = self.reported.to_tell(&server.reported).is_empty();
            if same {
                server.reported = self.reported.clone();
            } else {
                self.reported = server.reported.clone();
            }
        }
        Ok(())
    }

    fn bring_failed(&mut self, why: &str) -> NoServer {
        self.drop_server();
        self.entry.suspect(self.node);
        let text = "the server was lost before the transaction began";
        NoServer::Told(
            Report::error(sqlstate::SERIALIZATION_FAILURE, text).detail(why).hint("It is safe to run it again."),
        )
    }

    /// Closes the server on loan.
    pub(super) fn drop_server(&mut self) {
        if let Some(server) = self.server.take() {
            drop(server.into_server());
        }
        self.cancel.end();
        self.card.idle();
    }

    /// Puts the server on loan through a round trip before it goes back, away from the session: it holds state of the
    /// session that nobody tracks, or a cancel request may still be on its way to it.
    pub(super) fn recover(&mut self) {
        let Some(server) = self.server.take() else { return };
        let reset = server.dirty || self.mode == Mode::Session;
        let cancel = self.cancel.clone();
        tokio::spawn(async move {
            let mut server = server;
            cancel.delivered().await;
            let mut out = BytesMut::new();
            write_query(&mut out, b"").expect(SHORT); // takes the interrupt of a late cancel request
            write_query(&mut out, if reset { b"DISCARD ALL" } else { b"" }).expect(SHORT);
            let done = timeout(OWN_ROUND_TRIP, server.round_trip(&out, 2)).await;
            if !matches!(done, Ok(Ok(answers)) if answers.failed.is_none()) {
                drop(server.into_server());
                return;
            }
            if reset {
                server.prepared.clear();
                server.unnamed = None;
                server.applied = Settings::default();
                server.dirty = false;
            }
        });
    }

    /// The client left in the middle: its query is stopped, and the place of its server is free once that is known.
    pub(super) fn abandon(&mut self) {
        let Some(server) = self.server.take() else { return };
        let commits = self.commits() && self.entry.managed;
        let target = server.cancel.clone();
        let quiet = server.conversation.quiet();
        tokio::spawn(async move {
            let (mut server, _pool) = server.into_server();
            if !quiet && !commits {
                let _ = timeout(Duration::from_secs(5), crate::cancel::deliver(&target)).await;
            }
            let _ = timeout(Duration::from_secs(1), until_quiet(&mut server)).await;
        });
    }
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

/// Waits for the next snapshot; for ever where nobody makes one.
async fn next(changes: &mut watch::Receiver<Arc<Topology>>) {
    if changes.changed().await.is_err() {
        std::future::pending::<()>().await;
    }
}

/// Appends the messages that set reported parameters; returns how many ReadyForQuery they bring. Values travel as
/// parameters, never as SQL.
fn assign(out: &mut BytesMut, values: &[(&str, &str)]) -> usize {
    if values.is_empty() {
        return 0;
    }
    frontend::parse(out, b"", b"SELECT pg_catalog.set_config($1, $2, false)", &[]).expect(SHORT);
    for (name, value) in values {
        frontend::bind(out, b"", b"", &[Some(name.as_bytes()), Some(value.as_bytes())]).expect(SHORT);
        frontend::Execute { portal: b"", rows: 0 }.write(out).expect(SHORT);
    }
    out.extend_from_slice(&frontend::SYNC);
    1
}

/// Appends the messages that bring `server` from the settings it has to those of the session; returns how many
/// ReadyForQuery they bring.
fn make(out: &mut BytesMut, settings: &Settings, server: &Settings) -> usize {
    if settings.is(server) || settings.equals(server) {
        return 0;
    }
    // Who the session is comes off first and is put on last: the rest is set by the role that logged in.
    let worn = IDENTITY.iter().rev().filter(|name| server.get(name).is_some()).copied();
    let dropped = settings.to_reset(server).into_iter().filter(|name| !IDENTITY.contains(name));
    let mut asked = 0;
    for name in worn.chain(dropped) {
        let reset = format!("RESET \"{}\"", name.replace('"', "\"\""));
        write_query(out, reset.as_bytes()).expect(SHORT);
        asked += 1;
    }
    let others = settings.to_make(server).into_iter().filter(|(name, _)| !IDENTITY.contains(name));
    let identity = IDENTITY.iter().filter_map(|name| settings.get(name).map(|setting| (*name, setting)));
    for (name, setting) in others.chain(identity) {
        asked += match setting {
            Setting::Value(value) => assign(out, &[(name, value)]),
            Setting::Statement(sql) => {
                write_query(out, sql.as_bytes()).expect(SHORT);
                1
            }
        };
    }
    asked
}

/// Reads until nothing is owed, or the server goes away.
async fn until_quiet(server: &mut Server) -> Result<(), String> {
    let mut scratch = vec![0; 8192];
    let mut passes = 0;
    while !server.conversation.quiet() {
        let filled = poll_fn(|cx| {
            let _ = server.wire.poll_flush(cx);
            server.wire.poll_fill(cx, &mut scratch)
        });
        let Ok(Filled::Scratch(length)) = filled.await else { return Ok(()) };
        let mut rest = &scratch[..length];
        while !rest.is_empty() {
            let passed = passes.min(rest.len());
            passes -= passed;
            rest = &rest[passed..];
            let Some(header) = frame::header(rest).map_err(|error| error.to_string())? else { break };
            let arrived = header.length.min(rest.len());
            let body = &rest[5..arrived];
            server.conversation.received(header.tag, body, &mut |_, _| {}).map_err(|error| error.to_string())?;
            passes = header.length - arrived;
            rest = &rest[arrived..];
        }
        server.wire.keep(rest);
    }
    Ok(())
}

/// What a fresh client is told of the parameters.
pub(super) fn welcome(out: &mut BytesMut, reported: &Reported) {
    for (name, value) in reported.iter() {
        let _ = backend::write_parameter_status(out, name.as_bytes(), value.as_bytes());
    }
}
