//! The four arms of a session: reading and writing, on the client's side and on the server's. None waits for another.
//!
//! One poll moves everything that can be moved, and registers for what can not; nothing here is `async`. What needs
//! waiting for more than the two sockets is handed to `mod.rs` as a [`Turn`].

use std::io;
use std::sync::atomic::Ordering;
use std::task::{Context, Poll};

use bytes::{Buf, BytesMut};
use pgwire::conversation::{Asker, Request};
use pgwire::frontend::write_query;

use super::borrow::NoServer;
use super::queue::Need;
use super::{Mode, Session};
use crate::error::Denial;
use crate::wire::Filled;

/// Requests of one client that may be owed before no more is read from it.
const MAX_OWED: usize = 10_000;

/// Why the arms came to rest.
#[derive(Debug)]
pub(super) enum Turn {
    /// The client's next transaction needs a server, and has to wait for it with care.
    Need(Need),
    /// It gets none.
    Refused(Box<NoServer>),
    /// A server was borrowed, and has to be brought to the session's settings first.
    Bring,
    /// The client reset what it had asked for at its login: that is made again first.
    Restore,
    /// The transaction cannot go on: its server is lost.
    Lost(String),
    /// The server needs a round trip of ours before it may go back.
    Recover,
    /// The session ends.
    End(End),
}

/// Why a session ends.
#[derive(Debug)]
pub(super) enum End {
    /// The client just left.
    ClientGone,
    /// The client said goodbye.
    Goodbye,
    /// The client broke the protocol: it is told, and closed.
    Violation(String),
    /// We end it.
    SentAway(Denial),
    /// Another process has its connections.
    HandedOver,
}

impl Session {
    /// Moves what can be moved.
    pub(super) fn poll_turn(&mut self, cx: &mut Context<'_>) -> Poll<Turn> {
        let worker = self.worker.clone();
        let scratch = &mut **worker.scratch.borrow_mut();
        self.card.register(cx.waker());
        if self.waiting.is_some() {
            match self.poll_queue(cx) {
                Poll::Ready(Ok(())) => {}
                Poll::Ready(Err(turn)) => return Poll::Ready(turn),
                Poll::Pending => return Poll::Ready(self.look_around()),
            }
        }
        loop {
            let suspended = self.card.given.get() != 0 || self.worker.shared.is_suspended();
            if suspended && let Some(poll) = self.poll_suspended() {
                return poll;
            }
            if let Some(denial) = self.card.kill() {
                return Poll::Ready(Turn::End(End::SentAway(denial)));
            }
            let listens = match self.pump_client(cx, scratch, suspended) {
                Ok(listens) => listens,
                Err(Turn::Need(need)) => match self.queue_up(cx, need) {
                    Ok(()) => return Poll::Pending,
                    Err(turn) => return Poll::Ready(turn),
                },
                Err(turn) => return Poll::Ready(turn),
            };
            match self.pump_server(cx, scratch) {
                Err(turn) => return Poll::Ready(turn),
                // The client's next transaction may stand in line already.
                Ok(Released::Yes) if !listens || self.client_rest_is_fresh || self.client.backlog() > 0 => {}
                Ok(_) => {
                    self.card.client.behind.store(self.is_behind(), Ordering::Relaxed);
                    return Poll::Pending;
                }
            }
        }
    }

    /// The client, or the server on loan, has not taken yet what it was sent.
    #[inline]
    fn is_behind(&self) -> bool {
        self.client.backlog() > 0 || self.server.as_ref().is_some_and(|server| server.wire.backlog() > 0)
    }

    /// Client to server, until one of the two has to be waited for; `true` if it is the client, which has said no more.
    fn pump_client(&mut self, cx: &mut Context<'_>, scratch: &mut [u8], suspended: bool) -> Result<bool, Turn> {
        loop {
            if !self.may_read_client(cx)? || suspended {
                return Ok(false);
            }
            if self.client_rest_is_fresh {
                self.client_rest_is_fresh = false;
                let rest = self.client.take_rest();
                self.use_client_rest(cx, rest)?;
                continue;
            }
            match self.client.poll_fill_again(cx, scratch) {
                Poll::Pending => return Ok(true),
                Poll::Ready(Ok(Filled::Scratch(length))) => {
                    let (used, result) = self.client_bytes(cx, &scratch[..length]);
                    self.client.keep(&scratch[used..length]);
                    result?;
                }
                Poll::Ready(Ok(Filled::Large(rest))) => self.use_client_rest(cx, rest)?,
                Poll::Ready(Ok(Filled::End) | Err(_)) => return Err(Turn::End(End::ClientGone)),
            }
        }
    }

    fn use_client_rest(&mut self, cx: &mut Context<'_>, mut rest: BytesMut) -> Result<(), Turn> {
        let (used, result) = self.client_bytes(cx, &rest);
        rest.advance(used);
        if !rest.is_empty() {
            self.client.keep_large(rest);
        }
        result
    }

    /// Whether more may be taken from the client: what it sent is on its way, and so is what it was sent.
    #[inline]
    fn may_read_client(&mut self, cx: &mut Context<'_>) -> Result<bool, Turn> {
        let Some(server) = &mut self.server else {
            return match self.client.poll_flush(cx) {
                Poll::Ready(Ok(())) => Ok(true),
                Poll::Ready(Err(_)) => Err(Turn::End(End::ClientGone)),
                Poll::Pending => Ok(false),
            };
        };
        if server.wire.backlog() > 0 {
            match server.wire.poll_flush(cx) {
                Poll::Ready(Ok(())) => {}
                Poll::Ready(Err(error)) => return Err(Turn::Lost(cause(&error))),
                Poll::Pending => return Ok(false),
            }
        }
        Ok(server.conversation.owed() < MAX_OWED)
    }

    /// Server to client, until one of the two has to be waited for or the server is given back.
    fn pump_server(&mut self, cx: &mut Context<'_>, scratch: &mut [u8]) -> Result<Released, Turn> {
        if let Poll::Ready(Err(_)) = self.client.poll_flush(cx) {
            return Err(Turn::End(End::ClientGone));
        }
        loop {
            let Some(server) = &mut self.server else { return Ok(Released::No) };
            if server.control.is_revoked() {
                return Err(Turn::Lost("the node is no longer the primary".into()));
            }
            if self.client.backlog() > 0 {
                // A slow client: nothing is taken from the server until it has what it was sent.
                server.control.register(cx.waker());
                return Ok(Released::No);
            }
            let filled = match server.wire.poll_fill(cx, scratch) {
                Poll::Pending => {
                    server.control.register(cx.waker());
                    self.card.rest(server.conversation.quiet());
                    if server.control.is_retired() && self.closes_fast() {
                        return Err(Turn::End(End::SentAway(Denial::Told(
                            "database configuration changed".to_owned(),
                        ))));
                    }
                    return Ok(Released::No);
                }
                Poll::Ready(Ok(filled)) => filled,
                Poll::Ready(Err(error)) => return Err(Turn::Lost(cause(&error))),
            };
            match filled {
                Filled::Scratch(length) => self.take_server_bytes(cx, &scratch[..length])?,
                Filled::Large(bytes) => self.take_server_bytes(cx, &bytes)?,
                Filled::End => return Err(Turn::Lost(self.farewell())),
            }
            self.settle_uncertainty()?;
            if self.may_release() {
                return self.release();
            }
        }
    }

    /// A session that has a server for itself gives it up between transactions, if it is to be closed and the settings say so.
    #[cold]
    fn closes_fast(&self) -> bool {
        self.mode == Mode::Session
            && self
                .server
                .as_ref()
                .is_some_and(|server| server.conversation.at_rest() && server.pool().terms().fast_close)
    }

    /// After a COPY that failed nobody can know which Syncs the server still answers: an empty query shows it.
    fn settle_uncertainty(&mut self) -> Result<(), Turn> {
        let Some(server) = &mut self.server else { return Ok(()) };
        if !server.conversation.uncertain() {
            return Ok(());
        }
        let asked = server.conversation.sent(Request::Query, Asker::Ours, None);
        asked.map_err(|error| Turn::Lost(error.to_string()))?;
        write_query(server.wire.out(), b"").map_err(|error| Turn::Lost(error.to_string()))
    }

    fn take_server_bytes(&mut self, cx: &mut Context<'_>, input: &[u8]) -> Result<(), Turn> {
        let (used, result) = self.server_bytes(cx, input);
        if let Some(server) = &mut self.server {
            server.wire.keep(&input[used..]);
        }
        result
    }
}

/// Whether the server went back to its pool.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Released {
    /// Yes: the client's next transaction may begin.
    Yes,
    /// No, or there was none.
    No,
}

pub(super) fn cause(error: &io::Error) -> String {
    format!("the connection to PostgreSQL broke: {error}")
}
