//! Server to client: what is done with each message. Rows pass in the memory they were read into; looked into is only
//! what changes what the session or the server is.

use std::sync::atomic::Ordering;
use std::task::Context;

use bytes::BytesMut;
use pgwire::conversation::{Fate, Outcome, TransactionStatus};
use pgwire::report::{Report, View};
use pgwire::{backend, frame, sqlstate};

use super::doubt::Doubt;
use super::lost::not_replicated;
use super::note::{About, Note};
use super::turn::{End, Released, Turn};
use super::weak::weak_commit;
use super::{Mode, Session};
use crate::error::Denial;
use crate::stats::Counted;

/// A message that has to be looked into is put together up to this size.
const MAX_HELD_BYTES: usize = 1 << 20;
/// Errors that may mean that the node is no good primary any more: shut down, crashed, starting, read-only, out of disk.
const SUSPICIOUS: [&str; 6] = ["57P01", "57P02", "57P03", "25006", "58000", "53100"];

impl Session {
    /// Uses what the server sent; returns how much of it was used.
    pub(super) fn server_bytes(&mut self, cx: &mut Context<'_>, input: &[u8]) -> (usize, Result<(), Turn>) {
        let mut from = 0;
        let mut at = 0;
        // What goes to the client in place of the message in work.
        let mut instead = BytesMut::new();
        let result = loop {
            if at == input.len() {
                break Ok(());
            }
            if self.server_passes > 0 {
                let passed = self.server_passes.min(input.len() - at);
                self.server_passes -= passed;
                at += passed;
                continue;
            }
            let rows = self.rows(&input[at..]);
            if rows > 0 {
                at += rows;
                continue;
            }
            match self.server_frame(&input[at..], &mut instead) {
                Ok(None) => break Ok(()),
                Ok(Some((length, true))) => {
                    if self.held_goes {
                        self.held_goes = false;
                        self.client.out().extend_from_slice(&input[from..at]);
                        self.client.out().unsplit(std::mem::take(&mut self.held));
                        from = at;
                    }
                    at += length;
                }
                Ok(Some((length, false))) => {
                    // Something else was, or will be, written in its place.
                    self.client.out().extend_from_slice(&input[from..at]);
                    self.client.out().extend_from_slice(&instead);
                    instead.clear();
                    at += length;
                    from = at;
                }
                Err(why) => break Err(Turn::Lost(why)),
            }
            if self.answers_are_due && self.answer_due(&input[from..at]) {
                from = at;
            }
        };
        self.count(Counted::Sent, at as u64);
        let sent = self.client.send(cx, &input[from..at]);
        if sent.is_err() || matches!(self.client.poll_flush(cx), std::task::Poll::Ready(Err(_))) {
            return (at, result.and(Err(Turn::End(End::ClientGone))));
        }
        (at, result)
    }

    /// Bytes of what comes in masses and passes, whole messages only.
    #[inline]
    fn rows(&self, input: &[u8]) -> usize {
        match &self.server {
            Some(server) if self.held.is_empty() => {
                server.conversation.passing().map_or(0, |tag| frame::run(input, tag, self.worker.shared.max_message()))
            }
            _ => 0,
        }
    }

    /// One message: its length in the input, and whether it passes. `None` if more of it has to arrive first.
    fn server_frame(&mut self, input: &[u8], instead: &mut BytesMut) -> Result<Option<(usize, bool)>, String> {
        let Some(header) = frame::header(input).map_err(|error| error.to_string())? else { return Ok(None) };
        let allowed = frame::backend_limit(header.tag)
            .ok_or_else(|| format!("PostgreSQL sent an unknown message type \"{}\"", header.tag.escape_ascii()))?;
        frame::within(header, allowed).map_err(|error| error.to_string())?;
        if header.length > self.worker.shared.max_message() {
            return Err(self.too_long());
        }
        let in_parts = matches!(header.tag, b'D' | b'd' | b'T' | b'V' | b't' | b'A');
        if input.len() < header.length && (!in_parts || self.wants_whole(header.tag)) {
            return if header.length > MAX_HELD_BYTES {
                Err("PostgreSQL sent a message that is too long".into())
            } else {
                Ok(None)
            };
        }
        let arrived = header.length.min(input.len());
        let passes = self.server_message(header.tag, &input[5..arrived], instead)?;
        self.server_passes = header.length - arrived;
        if !passes && self.server_passes > 0 {
            return Err("PostgreSQL sent a long answer to a short request".into()); // of our own: they bring no rows
        }
        Ok(Some((arrived, passes)))
    }

    /// The server sent a message longer than `max_packet_size`.
    #[cold]
    fn too_long(&self) -> String {
        let words = "bad pkt header";
        if let Some(server) = &self.server {
            server.control.closes(words);
        }
        words.to_owned()
    }

    /// Messages that are looked into, though others of their kind pass in parts.
    #[cold]
    fn wants_whole(&self, tag: u8) -> bool {
        let ours = || self.server.as_ref().is_some_and(|server| server.conversation.ours_in_front());
        (tag == b'T' && self.apart) || (tag == b'D' && ours())
    }

    /// Whether one message passes to the client.
    fn server_message(&mut self, tag: u8, body: &[u8], instead: &mut BytesMut) -> Result<bool, String> {
        let Some(server) = self.server.as_mut() else { return Err("a message without a server".into()) };
        let server = &mut **server;
        let mut settled = Settled { units: 0, first: None, more: Vec::new() };
        let fate = server
            .conversation
            .received(tag, body, &mut |note, outcome| settled.push(note, outcome))
            .map_err(|desync| format!("the connection to PostgreSQL is out of step: {desync}"))?;
        self.answers_are_due = tag != b'D' && tag != b'd';
        if tag == b'D' || tag == b'd' {
            if fate == Fate::Swallow {
                self.take_xid(body);
            }
            self.held_goes = !self.held.is_empty() && fate == Fate::Forward;
            return Ok(fate == Fate::Forward);
        }
        let failed = settled.settle(self);
        match tag {
            b'T' | b'n' if fate == Fate::Forward => return Ok(self.answer_apart(tag, body)),
            b'S' => self.parameter_status(body)?,
            b'N' if self.entry.managed && View::new(body).is_commit_not_replicated() => {
                self.not_replicated = true;
                return Ok(false);
            }
            b'C' if fate == Fate::Forward => {
                self.note_tag(body);
                let passes = self.answer_to_commit(tag, body, instead);
                if self.not_replicated && !self.apart {
                    self.not_replicated = false;
                    instead.clear();
                    super::say(instead, &not_replicated());
                    return Ok(false);
                }
                return Ok(passes);
            }
            b'E' if failed.is_some() => return Ok(self.failed_for(failed, fate, body, instead)),
            // The server's end is not the client's: it is told what became of its transaction, and stays.
            b'E' if fate == Fate::Forward && !self.is_plain && View::new(body).is_fatal() => {
                self.server_error(body);
                return Err(self.farewell());
            }
            b'E' if fate == Fate::Forward => {
                self.server_error(body);
                self.answer_to_commit(tag, body, instead);
            }
            b'Z' => {
                if fate == Fate::Forward {
                    self.unit_ends();
                }
                self.transaction_may_have_ended();
                if self.mode == Mode::Statement && self.in_transaction() {
                    self.card.send_away(Denial::TransactionBlock);
                    return Ok(false);
                }
            }
            b'W' => self.pin("replication"),
            _ => {}
        }
        Ok(fate == Fate::Forward)
    }

    /// An error to a request that stands for another one, or to a question of ours.
    #[cold]
    fn failed_for(&mut self, failed: Option<About>, fate: Fate, body: &[u8], instead: &mut BytesMut) -> bool {
        let report = match failed {
            Some(About::Duplicate) => {
                let text =
                    "prepared statement already exists, or the prepared statements of this session are too large";
                Report::error(sqlstate::DUPLICATE_PREPARED_STATEMENT, text)
            }
            Some(About::Weak) => weak_commit(),
            _ if fate == Fate::Swallow => {
                self.refuse_commit(body);
                return false;
            }
            _ => {
                self.held.clear();
                self.doubt = Doubt::Answered { chain: false };
                match self.refusal(body) {
                    Some(report) => report,
                    None => return true,
                }
            }
        };
        super::say(instead, &report);
        false
    }

    /// At ReadyForQuery: what was held back goes out now, unless the commit is worth nothing.
    fn unit_ends(&mut self) {
        self.apart = false;
        if std::mem::take(&mut self.not_replicated) {
            self.held.clear();
            super::say(&mut self.held, &not_replicated());
        }
        self.held_goes = !self.held.is_empty();
    }

    /// Sends the replies of our own whose turn has come, behind what passed `before` them. `false`: there were none, and
    /// nothing was sent.
    #[inline]
    pub(super) fn answer_due(&mut self, before: &[u8]) -> bool {
        self.answers_are_due = false;
        self.server.as_ref().is_some_and(|server| server.conversation.is_due()) && self.answer_all_due(before)
    }

    #[inline(never)]
    fn answer_all_due(&mut self, before: &[u8]) -> bool {
        let Some(server) = self.server.as_mut() else { return false };
        let server = &mut **server;
        let mut settled = Settled { units: 0, first: None, more: Vec::new() };
        let mut any = false;
        while let Some(reply) = server.conversation.due(&mut |note, outcome| settled.push(note, outcome)) {
            if !any {
                self.client.out().extend_from_slice(before);
                any = true;
            }
            self.client.out().extend_from_slice(reply.bytes());
        }
        settled.settle(self);
        any
    }

    fn parameter_status(&mut self, body: &[u8]) -> Result<(), String> {
        let (name, value) = backend::parameter_status(body).map_err(|error| error.to_string())?;
        let (name, value) = (String::from_utf8_lossy(name), String::from_utf8_lossy(value));
        if name == "application_name" {
            self.card.client.known(|who| who.application_name = value.as_ref().into());
        }
        if let Some(server) = &mut self.server {
            if name == "application_name" {
                server.control.set_application_name(&value);
            }
            server.reported.set(&name, &value);
        }
        Ok(())
    }

    fn server_error(&mut self, body: &[u8]) {
        let report = View::new(body);
        if report.sqlstate().is_some_and(|state| SUSPICIOUS.contains(&state.as_str())) {
            self.entry.suspect(self.node);
        }
        if report.get(b'R') == Some(b"RevalidateCachedQuery") {
            // Its result has another shape now: who prepares it from now on gets a new statement, on every server.
            self.worker.forget(self.names.held());
            self.soil();
        }
        if report.is_fatal() {
            self.last_words = Some(report.message().into());
        }
    }

    /// Why a server went away, in its own words if it had any.
    pub(super) fn farewell(&mut self) -> String {
        match self.last_words.take() {
            Some(words) => format!("PostgreSQL closed the connection: {words}"),
            None => "PostgreSQL closed the connection".into(),
        }
    }

    fn note_tag(&mut self, body: &[u8]) {
        match body {
            b"DISCARD ALL\0" if self.mode == Mode::Session => self.login.all_reset(),
            b"ROLLBACK\0" => self.rolled_back = true,
            b"DISCARD ALL\0" | b"DEALLOCATE ALL\0" if self.renames() => {
                self.names.clear();
                if let Some(server) = &mut self.server {
                    server.prepared.clear();
                    server.unnamed = None;
                }
                self.count_statements();
                if body == b"DISCARD ALL\0" {
                    self.discarded_all();
                }
            }
            _ => {}
        }
    }

    /// At ReadyForQuery: what was set in the transaction counts now, or never did.
    fn transaction_may_have_ended(&mut self) {
        let Some(server) = &self.server else { return };
        let quiet = server.conversation.quiet();
        let idle = server.conversation.status() == TransactionStatus::Idle;
        self.card.rest(quiet);
        if quiet {
            self.query_ends(idle);
        }
        if idle {
            self.settle_settings();
            self.units.transaction_ended();
            if std::mem::take(&mut self.rolled_back) {
                self.login.forget(); // what it reset is as it was
            }
        }
        self.shield();
    }

    fn in_transaction(&self) -> bool {
        self.server.as_ref().is_some_and(|server| server.conversation.status() != TransactionStatus::Idle)
    }

    /// Cancel requests are kept from a server on which a commit is under way, where a standby has to confirm it.
    pub(super) fn shield(&mut self) {
        if self.entry.managed {
            self.cancel.shield(self.commits());
        }
    }

    /// Whether the server may go back.
    #[inline]
    pub(super) fn may_release(&self) -> bool {
        let Some(server) = &self.server else { return false };
        self.mode != Mode::Session
            && self.pinned.is_none()
            && self.server_passes == 0
            && self.client_passes == 0
            && server.conversation.at_rest()
            && server.wire.backlog() == 0
    }

    /// The transaction is over: the server goes back.
    pub(super) fn release(&mut self) -> Result<Released, Turn> {
        if self.login.is_due() {
            return Err(Turn::Restore);
        }
        let Some(server) = &mut self.server else { return Ok(Released::No) };
        if !self.reported.is(&server.reported) {
            self.reported = server.reported.clone();
        }
        let dirty = server.dirty;
        self.card.idle();
        self.note_what_was_seen();
        self.unlink();
        if self.was_hit || dirty || self.always_resets {
            return Err(Turn::Recover);
        }
        self.server = None;
        self.client_rest_is_fresh = self.client.has_rest();
        Ok(Released::Yes)
    }
}

/// What one message settled: mostly nothing or one, without allocation.
struct Settled {
    units: usize,
    first: Option<(About, Outcome)>,
    more: Vec<(About, Outcome)>,
}

impl Settled {
    fn push(&mut self, note: Note, outcome: Outcome) {
        self.units += usize::from(note.unit);
        match (note.about, &self.first) {
            (About::Nothing, _) => {}
            (about, None) => self.first = Some((about, outcome)),
            (about, Some(_)) => self.more.push((about, outcome)),
        }
    }

    /// Carries it over to the session; what failed, if the error to it is not simply passed on.
    #[inline]
    fn settle(self, session: &mut Session) -> Option<About> {
        if self.units == 0 && self.first.is_none() { None } else { self.settle_all(session) }
    }

    fn settle_all(self, session: &mut Session) -> Option<About> {
        for _ in 0..self.units {
            session.units.settle();
            session.unit_settled();
        }
        let mut failed = None;
        for (about, outcome) in self.first.into_iter().chain(self.more) {
            if outcome == Outcome::Failed && session.has_words_for(about) {
                failed = Some(about);
            }
            session.settle(about, outcome);
        }
        failed
    }
}

impl Session {
    /// Whether an error to this is told in other words, or later.
    fn has_words_for(&self, about: About) -> bool {
        match about {
            About::Duplicate | About::Weak | About::Xid => true,
            About::Ours(number) => self.doubt.is_asked_by(number),
            _ => false,
        }
    }

    fn settle(&mut self, about: About, outcome: Outcome) {
        let done = outcome == Outcome::Done;
        match about {
            About::Nothing | About::Duplicate | About::Weak => {}
            About::Xid if !done => self.xid_not_told(),
            About::Xid => {}
            About::Name(number) => {
                self.names.settle(outcome);
                self.forget_unless(done, number);
                self.count_statements();
            }
            About::Ours(number) => {
                self.forget_unless(done, Some(number));
                self.count_statements();
            }
            About::Unnamed if !done => {
                self.names.unnamed = None;
                self.forget_unnamed();
            }
            About::OursUnnamed if !done => self.forget_unnamed(),
            About::Unnamed | About::OursUnnamed => {}
            About::Effects => {
                if let Some(class) = self.effects.answered() {
                    self.take_effect(&class, done);
                }
            }
        }
    }

    /// The console shows how many statements the client and its server hold.
    fn count_statements(&self) {
        self.card.client.prepared.store(self.names.len(), Ordering::Relaxed);
        if let Some(server) = &self.server {
            server.control.prepared.store(server.prepared.len(), Ordering::Relaxed);
        }
    }

    fn forget_unless(&mut self, done: bool, number: Option<u64>) {
        if let (false, Some(number), Some(server)) = (done, number, &mut self.server) {
            server.prepared.remove(number);
        }
    }

    fn forget_unnamed(&mut self) {
        if let Some(server) = &mut self.server {
            server.unnamed = None;
        }
    }
}
