//! Client to server: what is done with each message. Most pass as they are, in the memory they were read into.

use std::task::Context;

use bytes::BytesMut;
use pgwire::conversation::{Asker, Reply, Request, TooMuchOwed, TransactionStatus};
use pgwire::frontend::Target;
use pgwire::{frame, frontend};

use super::note::{About, Note};
use super::prepared::{hold, make_room};
use super::statements::Statement;
use super::turn::{End, Turn, cause};
use super::units::Danger;
use super::violation::{Broken, violation};
use super::{Mode, Session, Skip};
use crate::error::Denial;
use crate::pgbouncer::log;
use crate::pool::Server;
use crate::routing::{Class, Kind};
use crate::stats::Counted;
use crate::wire::SCRATCH_BYTES;

/// A Parse is put together up to this size, because it may have to be repeated on another server.
const MAX_PARSE_BYTES: usize = 64 << 20;

/// Longest declared length of a message that is little more than the name of a statement.
const LONGEST_NAMED: u32 = 1 << 20;
/// A message that may pass in parts does so when this much of it is here.
const PART_BYTES: usize = SCRATCH_BYTES / 2;
/// Why a message of ours can be written.
pub(super) const SHORT: &str = "our own messages are short";

/// A stretch of input that passes unchanged, and is handed over as one.
pub(super) struct Passing<'b> {
    input: &'b [u8],
    from: usize,
}

impl Passing<'_> {
    /// Everything before `at` goes out now; what follows is written by somebody else, and passing goes on at `next`.
    pub(super) fn cut(&mut self, at: usize, next: usize, out: &mut BytesMut) {
        out.extend_from_slice(&self.input[self.from..at]);
        self.from = next;
    }
}

/// One message of the client, as far as it has arrived.
pub(super) struct Frame<'b> {
    pub(super) tag: u8,
    /// Where it begins and ends in the input; the end may lie beyond what has arrived.
    pub(super) at: usize,
    pub(super) end: usize,
    /// Without tag and length, as far as it has arrived.
    pub(super) body: &'b [u8],
    pub(super) whole: bool,
    /// What its statement is, if that was asked already.
    pub(super) class: Option<Class>,
}

/// The session ends with these words of PgBouncer's.
fn told(words: &str) -> Turn {
    Turn::End(End::SentAway(Denial::Told(words.to_owned())))
}

pub(super) fn too_much(error: TooMuchOwed) -> Turn {
    violation(error.to_string())
}

impl Session {
    /// Uses what the client sent; returns how much of it was used.
    pub(super) fn client_bytes(&mut self, cx: &mut Context<'_>, input: &[u8]) -> (usize, Result<(), Turn>) {
        let mut passing = Passing { input, from: 0 };
        let mut at = 0;
        let result = loop {
            if at == input.len() {
                break Ok(());
            }
            if self.client_passes > 0 {
                let passed = self.client_passes.min(input.len() - at);
                self.client_passes -= passed;
                at += passed;
                continue;
            }
            let data = self.copy_data(&input[at..]);
            if data > 0 {
                at += data;
                continue;
            }
            match self.client_frame(&mut passing, at) {
                Ok(Some(next)) => at = next,
                Ok(None) => break Ok(()),
                Err(turn) => break Err(turn),
            }
        };
        self.count(Counted::Received, at as u64);
        let Some(server) = &mut self.server else { return (at, result) };
        let sent = match &input[passing.from.min(at)..at] {
            [] if server.wire.backlog() == 0 => Ok(()),
            rest => server.wire.send(cx, rest),
        };
        if server.wire.backlog() > 0 {
            let _ = server.wire.poll_flush(cx); // an error shows again at the next read
        }
        match (result, sent) {
            (Ok(()), Err(error)) => (at, Err(Turn::Lost(cause(&error)))),
            (result, _) => (at, result),
        }
    }

    /// Bytes of what a COPY reads, whole messages only.
    #[inline]
    fn copy_data(&self, input: &[u8]) -> usize {
        match &self.server {
            Some(server) if self.skip == Skip::Nothing && server.conversation.copy_in() => {
                frame::run(input, b'd', self.worker.shared.max_message())
            }
            _ => 0,
        }
    }

    /// Handles the message at `at`; `None` if more of it has to arrive first.
    fn client_frame(&mut self, passing: &mut Passing<'_>, at: usize) -> Result<Option<usize>, Turn> {
        let input = passing.input;
        let Some(header) =
            frame::header(&input[at..]).map_err(|error| self.broken(Broken::Header(&input[at..]), error))?
        else {
            return Ok(None);
        };
        if header.length > self.worker.shared.max_message() {
            return Err(self.broken(Broken::Header(&input[at..]), "a message is longer than max_packet_size"));
        }
        let end = at + header.length;
        let whole = end <= input.len();
        if !self.may_begin(header, &input[at..])? {
            return Ok(None);
        }
        let arrived = end.min(input.len());
        let mut frame = Frame { tag: header.tag, at, end, body: &input[at + 5..arrived], whole, class: None };
        if self.skip != Skip::Nothing {
            self.skipped(&frame)?;
            passing.from = arrived;
        } else {
            if self.login_is_due() {
                return Err(Turn::Restore);
            }
            if self.server.is_some() || self.begin(&mut frame, &input[arrived..])? {
                self.client_message(passing, &mut frame)?;
            } else {
                passing.from = arrived; // answered without a server
            }
        }
        self.client_passes = end - arrived;
        Ok(Some(arrived))
    }

    /// Whether a message may be handled: it is of an allowed length, and here, or so long that it passes in parts.
    fn may_begin(&self, header: frame::Header, input: &[u8]) -> Result<bool, Turn> {
        let strange = || self.broken(Broken::Type, format_args!("invalid frontend message type {}", header.tag));
        let allowed = frame::frontend_limit(header.tag).ok_or_else(strange)?;
        // The name of a statement may be long: the server gets another one.
        let allowed =
            if self.is_plain && matches!(header.tag, b'D' | b'C') { (allowed.0, LONGEST_NAMED) } else { allowed };
        frame::within(header, allowed).map_err(|error| self.broken(Broken::Header(input), error))?;
        if header.tag == b'P' && header.length > MAX_PARSE_BYTES {
            return Err(violation(format!(
                "a Parse message of {} bytes is too large: {MAX_PARSE_BYTES} are allowed",
                header.length
            )));
        }
        let passes_from = match header.tag {
            b'd' | b'B' | b'F' => PART_BYTES,
            b'Q' => self.worker.max_query_bytes.max(PART_BYTES),
            _ => usize::MAX,
        };
        Ok(input.len() >= header.length || (header.length > passes_from && input.len() >= PART_BYTES))
    }

    /// One message, while there is a server.
    fn client_message(&mut self, passing: &mut Passing<'_>, frame: &mut Frame<'_>) -> Result<(), Turn> {
        let class = frame.class.take();
        let frame = &*frame;
        self.card.busy();
        if frame.tag != b'X' {
            self.query_begins();
        }
        match frame.tag {
            b'Q' => self.query(passing, frame, class),
            b'P' => self.parse(passing, frame, class),
            b'B' => self.bind(passing, frame),
            b'D' => self.describe(passing, frame),
            b'C' => self.close(passing, frame),
            b'E' => self.execute(passing, frame),
            b'S' => self.sync(passing, frame),
            b'H' => self.ask(Request::Flush, None),
            b'F' => {
                self.units.begin(Danger::Write);
                self.units.finish();
                self.ask(Request::FunctionCall, Some(About::Nothing.unit()))
            }
            b'd' => self.ask(Request::CopyData, None),
            b'c' => self.ask(Request::CopyDone, None),
            b'f' => self.ask(Request::CopyFail, None),
            b'X' => Err(Turn::End(End::Goodbye)),
            tag => Err(violation(format!("unexpected message type \"{}\"", tag.escape_ascii()))),
        }
    }

    pub(super) fn loan(&mut self) -> &mut Server {
        self.server.as_mut().expect("messages are handled only with a server on loan")
    }

    pub(super) fn ask(&mut self, request: Request, note: Option<Note>) -> Result<(), Turn> {
        self.loan().conversation.sent(request, Asker::Client, note).map_err(too_much)
    }

    fn query(&mut self, passing: &mut Passing<'_>, frame: &Frame<'_>, class: Option<Class>) -> Result<(), Turn> {
        if self.refuses_queries {
            return Err(told("PQexec disallowed"));
        }
        let class = if let Some(class) = class {
            class
        } else if frame.whole {
            self.class_of_text(text(frame.body)?)
        } else {
            self.soil(); // nobody has read what it does to the session
            Class::unknown()
        };
        if self.renames() {
            self.names.unnamed = None;
            self.loan().unnamed = None;
            if let Kind::Deallocate(name) = &class.kind
                && self.deallocate(passing, frame, name.as_bytes(), &class)?
            {
                return Ok(());
            }
        }
        if class.weakens_commits && self.refuses_weak_commits() {
            self.units.begin(Danger::Read);
            self.refuse(passing, frame)?;
            self.loan().wire.out().extend_from_slice(&frontend::SYNC);
            self.units.finish();
            return self.ask(Request::Sync, Some(About::Nothing.unit()));
        }
        match class.kind {
            Kind::Commit { chain } => self.before_commit_query(passing, frame.at, chain)?,
            Kind::Write if frame.whole && self.goes_apart(&class, text(frame.body)?) => {
                return self.query_apart(passing, frame, &class);
            }
            _ => {}
        }
        self.units.begin(Danger::of(&class));
        self.units.finish();
        self.shield();
        let note = self.effects_of(&class).unit();
        self.ask(Request::Query, Some(note))
    }

    /// DEALLOCATE of a name given by Parse: the server knows it under our name for it. `false` if it is no such name.
    fn deallocate(
        &mut self,
        passing: &mut Passing<'_>,
        frame: &Frame<'_>,
        name: &[u8],
        class: &Class,
    ) -> Result<bool, Turn> {
        let Some(statement) = self.names.get(name).cloned() else { return Ok(false) };
        let session = &mut *self;
        let server = session.server.as_mut().expect("messages are handled only with a server on loan");
        passing.cut(frame.at, frame.end, server.wire.out());
        hold(server, &statement, session.worker.shared.max_prepared())?;
        server.wire.out().extend_from_slice(&frontend::SYNC);
        let _ = server.conversation.sent(Request::Sync, Asker::Ours, None);
        let server_name = Statement::server_name(statement.number);
        let text = format!("DEALLOCATE {}", server_name.escape_ascii());
        frontend::write_query(server.wire.out(), text.as_bytes()).expect(SHORT);
        server.prepared.remove(statement.number);
        session.names.ask(name, None);
        session.units.begin(Danger::of(class));
        session.units.finish();
        self.ask(Request::Query, Some(About::Name(None).unit()))?;
        Ok(true)
    }

    fn parse(&mut self, passing: &mut Passing<'_>, frame: &Frame<'_>, class: Option<Class>) -> Result<(), Turn> {
        let parse = frontend::Parse::read(frame.body).map_err(|error| self.broken(Broken::Parse, error))?;
        let class = class.unwrap_or_else(|| self.class_of_text(parse.text));
        self.open_unit(Danger::Harmless);
        if class.weakens_commits && self.refuses_weak_commits() {
            return self.refuse(passing, frame);
        }
        if !self.renames() {
            self.note_parsed(class);
            return self.ask(Request::Parse, None);
        }
        if parse.name.is_empty() {
            let number = self.worker.next_unnamed();
            self.names.set_unnamed(number, &passing.input[frame.at..frame.end], class);
            self.loan().unnamed = Some(number);
            return self.ask(Request::Parse, Some(About::Unnamed.note()));
        }
        self.count(Counted::ClientParses, 1);
        if self.is_plain && self.names.get(parse.name).is_some() {
            return Err(self.name_is_used(parse.name));
        }
        if self.names.get(parse.name).is_some() || !self.names.has_room(frame.body.len()) {
            let server = self.loan();
            passing.cut(frame.at, frame.end, server.wire.out());
            Target::Statement(b"pgsteady: no such statement").describe(server.wire.out()).expect(SHORT);
            return self.ask(Request::Describe { statement: true }, Some(About::Duplicate.note()));
        }
        let worker = self.worker.clone();
        let statement = worker.intern(&frame.body[parse.name.len() + 1..], class);
        self.names.ask(parse.name, Some(statement.clone()));
        let server = self.loan();
        let failed = server.conversation.status() == TransactionStatus::Failed;
        let known = !failed && server.prepared.touch(statement.number);
        passing.cut(frame.at, frame.end, server.wire.out());
        if known {
            server.conversation.answer(Reply::ParseComplete, Some(About::Name(None).note())).map_err(too_much)?;
            self.answer_due(&[]);
            return Ok(());
        }
        make_room(server, statement.number, worker.shared.max_prepared());
        statement.write(server.wire.out());
        self.count(Counted::ServerParses, 1);
        self.ask(Request::Parse, Some(About::Name(Some(statement.number)).note()))
    }

    fn bind(&mut self, passing: &mut Passing<'_>, frame: &Frame<'_>) -> Result<(), Turn> {
        let bind = frontend::Bind::read(frame.body).map_err(|error| self.broken(Broken::Message, error))?;
        if !self.renames() {
            self.open_unit(Danger::Write);
            return self.ask(Request::Bind, None);
        }
        let (portal, name) = (bind.portal, bind.statement);
        if !name.is_empty() {
            self.count(Counted::Binds, 1);
        }
        let class = self.class_of(name);
        self.open_unit(Danger::Harmless);
        self.portals.bind(portal, class);
        let Some(server_name) = self.prepare_for(passing, frame, name)? else {
            return self.ask(Request::Bind, None);
        };
        let server = self.loan();
        passing.cut(frame.at, frame.end.min(passing.input.len()), server.wire.out());
        let rest = frame.end - frame.at - 5 - (portal.len() + name.len() + 2);
        frontend::Bind::write_start(server.wire.out(), portal, &server_name, rest)
            .map_err(|error| violation(error.to_string()))?;
        server.wire.out().extend_from_slice(bind.rest);
        self.ask(Request::Bind, None)
    }

    fn describe(&mut self, passing: &mut Passing<'_>, frame: &Frame<'_>) -> Result<(), Turn> {
        let target = Target::read(frame.body).map_err(|error| self.broken(Broken::Message, error))?;
        self.open_unit(Danger::Harmless);
        let request = Request::Describe { statement: matches!(target, Target::Statement(_)) };
        if self.renames()
            && let Target::Statement(name) = target
            && let Some(server_name) = self.prepare_for(passing, frame, name)?
        {
            let server = self.loan();
            passing.cut(frame.at, frame.end, server.wire.out());
            Target::Statement(&server_name).describe(server.wire.out()).expect(SHORT);
        }
        self.ask(request, None)
    }

    /// Makes sure that the server holds what the client calls `name`, and returns what the server calls it; `None` if
    /// the message may pass as it is: the unnamed statement, or a name that nobody knows.
    fn prepare_for(
        &mut self,
        passing: &mut Passing<'_>,
        frame: &Frame<'_>,
        name: &[u8],
    ) -> Result<Option<[u8; 29]>, Turn> {
        let session = &mut *self;
        let server = session.server.as_mut().expect("messages are handled only with a server on loan");
        if name.is_empty() {
            let (number, parse) = match &session.names.unnamed {
                Some(unnamed) => (Some(unnamed.number), &unnamed.parse[..]),
                None => (None, &[][..]),
            };
            if server.unnamed == number {
                return Ok(None);
            }
            passing.cut(frame.at, frame.at, server.wire.out());
            let request = if parse.is_empty() {
                Target::Statement(b"").close(server.wire.out()).expect(SHORT);
                Request::Close
            } else {
                server.wire.out().extend_from_slice(parse);
                Request::Parse
            };
            server.unnamed = number;
            let _ = server.conversation.sent(request, Asker::Ours, Some(About::OursUnnamed.note()));
            return Ok(None);
        }
        let Some(statement) = session.names.get(name) else {
            if session.is_plain {
                return Err(told("prepared statement did not exist"));
            }
            return Ok(None);
        };
        if !server.prepared.touch(statement.number) {
            passing.cut(frame.at, frame.at, server.wire.out());
            hold(server, statement, session.worker.shared.max_prepared())?;
            session.entry.counters[session.worker.index].add(Counted::ServerParses, 1);
        }
        Ok(Some(Statement::server_name(statement.number)))
    }

    fn close(&mut self, passing: &mut Passing<'_>, frame: &Frame<'_>) -> Result<(), Turn> {
        let target = Target::read(frame.body).map_err(|error| self.broken(Broken::Message, error))?;
        self.open_unit(Danger::Nothing);
        let Target::Statement(name) = target else { return self.ask(Request::Close, None) };
        if !self.renames() {
            return self.ask(Request::Close, None);
        }
        if name.is_empty() {
            self.names.unnamed = None;
            self.loan().unnamed = None;
            return self.ask(Request::Close, None);
        }
        if self.names.get(name).is_none() && !self.is_plain {
            return self.ask(Request::Close, None); // perhaps a name given by PREPARE
        }
        self.names.ask(name, None);
        let server = self.loan();
        passing.cut(frame.at, frame.end, server.wire.out());
        server.conversation.answer(Reply::CloseComplete, Some(About::Name(None).note())).map_err(too_much)?;
        self.answer_due(&[]);
        Ok(())
    }

    /// Whether prepared statements get names of ours: sessions share servers.
    pub(super) fn renames(&self) -> bool {
        self.mode != Mode::Session && !(self.is_plain && self.worker.shared.max_prepared() == 0)
    }

    /// With PgBouncer's manners a name is not given twice.
    fn name_is_used(&self, name: &[u8]) -> Turn {
        let name = String::from_utf8_lossy(name);
        log::say(
            log::Level::Warning,
            format_args!("{} prepared statement '{name}' was already prepared", self.card.client),
        );
        told("prepared statement name is already in use")
    }

    fn execute(&mut self, passing: &mut Passing<'_>, frame: &Frame<'_>) -> Result<(), Turn> {
        let portal = frontend::Execute::read(frame.body).map_err(|error| violation(error.to_string()))?.portal;
        let class = self.portals.get(portal);
        self.open_unit(Danger::Harmless);
        if let Kind::Commit { chain } = class.kind {
            self.before_commit_execute(passing, frame.at, chain)?;
        }
        self.units.begin(Danger::of(&class));
        self.units.executes(&class.kind);
        let about = if self.mode == Mode::Session { self.resets_of_parsed() } else { self.effects_of(&class) };
        self.ask(Request::Execute, Some(about.note()))
    }

    fn sync(&mut self, passing: &mut Passing<'_>, frame: &Frame<'_>) -> Result<(), Turn> {
        self.before_sync(passing, frame.at)?;
        self.units.begin(Danger::Nothing);
        self.units.finish();
        self.shield();
        self.ask(Request::Sync, Some(About::Nothing.unit()))
    }

    /// What a text is; with PgBouncer's manners nobody asks. Where backslashes escape in plain strings, a text with one cannot be told.
    pub(super) fn class_of_text(&self, text: &[u8]) -> Class {
        if self.is_plain {
            return Class::unknown(); // nothing is done by it
        }
        if text.contains(&b'\\') && self.reported.get("standard_conforming_strings") == Some("off") {
            return Class::unknown();
        }
        self.worker.classify(text)
    }

    /// What a prepared statement of the client is.
    pub(super) fn class_of(&self, name: &[u8]) -> Class {
        if name.is_empty() {
            self.names.unnamed.as_ref().map_or_else(Class::unknown, |unnamed| unnamed.class.clone())
        } else {
            self.names.get(name).map_or_else(Class::unknown, |statement| statement.class.clone())
        }
    }
}

/// The text of a Query, without its NUL.
pub(super) fn text(body: &[u8]) -> Result<&[u8], Turn> {
    frontend::query(body).map_err(|error| violation(error.to_string()))
}
