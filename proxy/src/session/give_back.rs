//! What becomes of a server when its session has done with it: cleaned first, stopped first, or closed.

use std::future::poll_fn;
use std::sync::atomic::Ordering;
use std::time::Duration;

use bytes::BytesMut;
use pgwire::frame;
use pgwire::frontend::write_query;
use tokio::time::timeout;

use super::requests::SHORT;
use super::{Mode, Session};
use crate::pool::{Server, ServerState};
use crate::settings::Settings;
use crate::wire::Filled;

/// Time for one round trip on our own account: bringing settings, cleaning up.
pub(super) const OWN_ROUND_TRIP: Duration = Duration::from_secs(15);

impl Session {
    /// Closes the server on loan.
    pub(super) fn drop_server(&mut self) {
        if let Some(server) = self.server.take() {
            drop(server.into_server());
        }
        self.unlink();
        self.card.idle();
    }

    /// The session has no server any more.
    pub(super) fn unlink(&mut self) {
        self.was_hit = self.cancel.end();
        self.card.client.link.store(0, Ordering::Relaxed);
    }

    /// Puts the server on loan through a round trip before it goes back, away from the session: it holds state of the
    /// session that nobody tracks, or a cancel request may still be on its way to it.
    pub(super) fn recover(&mut self) {
        let Some(server) = self.server.take() else { return };
        let terms = server.pool().terms();
        let reset = server.dirty || self.mode == Mode::Session || terms.always_reset;
        let was_hit = self.cancel.end() || std::mem::take(&mut self.was_hit) || !self.is_plain;
        self.card.client.link.store(0, Ordering::Relaxed);
        if self.is_plain && !was_hit && (!reset || terms.reset_query.is_empty()) {
            return;
        }
        server.control.enter(ServerState::Tested);
        let cancel = self.cancel.clone();
        let query = if reset { terms.reset_query.clone() } else { String::new() };
        tokio::spawn(async move {
            let mut server = server;
            cancel.delivered().await;
            let mut out = BytesMut::new();
            let mut asked = 1;
            if was_hit || query.is_empty() {
                write_query(&mut out, b"").expect(SHORT); // takes the interrupt of a late cancel request
                asked += 1;
            }
            if write_query(&mut out, query.as_bytes()).is_err() {
                return;
            }
            let done = timeout(OWN_ROUND_TRIP, server.round_trip(&out, asked)).await;
            if !matches!(done, Ok(Ok(answers)) if answers.failed.is_none()) {
                server.control.closes("reset query failed");
                drop(server.into_server());
                return;
            }
            if reset {
                server.prepared.clear();
                server.control.prepared.store(0, Ordering::Relaxed);
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
