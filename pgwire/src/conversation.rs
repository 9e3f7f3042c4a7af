//! What is owed on a server and what is open there: the one rule by which a server may be given back.
//!
//! PostgreSQL answers requests in order, so what a server owes is a queue, and each message that comes from it must fit the
//! request in front. What does not fit is a [`Desync`]: that server is closed, never used again. The rules are those of the
//! manual's chapter "Frontend/Backend Protocol" and of `PostgresMain` and `CopyGetData` (PostgreSQL 14 and later):
//!
//! - An error in an extended request makes the server skip all that follows, whatever it is, up to the next Sync.
//! - While a COPY reads, Sync and Flush are swallowed by it: a Sync sent along with the Execute gets no ReadyForQuery.
//! - CopyData, CopyDone and CopyFail outside of a COPY are ignored.
//!
//! **A failed COPY with a Sync in its data.** When a COPY fails, nobody outside can know whether it had read the Syncs that
//! were sent before its CopyDone: each such Sync may or may not get a ReadyForQuery. Then the server owes *up to* so many,
//! is never at rest while this is open, and is [`Conversation::uncertain`]; whatever comes next that is not a ReadyForQuery
//! settles it, such as the answer to an empty Query of ours. A caller that finds it so asks before it reads on from the client.
//!
//! Not here: what messages say, and the sockets they come from.

mod copy;
mod steps;
mod terms;

use std::collections::VecDeque;

pub use steps::Request;
use steps::{Stage, Step, step};
pub use terms::{Asker, Desync, Fate, Outcome, Reply, TooMuchOwed, TransactionStatus};

/// Most requests that a server may owe answers for; beyond, the caller stops reading its client. More than fit, answered by
/// five bytes each, in the 8 KiB that PostgreSQL holds back until a Flush, so stopping there cannot stop the server.
pub const MAX_OWED: usize = 65_536;
/// Capacity of the queue, in requests, that is kept when it has run empty.
const KEPT_CAPACITY: usize = 256;

#[derive(Clone, Copy)]
enum What {
    /// Sent to the server.
    Asked(Request),
    /// Not sent: answered by us in its turn.
    Answer(Reply),
}

struct Entry<T> {
    what: What,
    asker: Asker,
    note: Option<T>,
}

impl<T> Entry<T> {
    fn is(&self, request: Request) -> bool {
        matches!(self.what, What::Asked(asked) if asked == request)
    }

    fn is_unanswered(&self) -> bool {
        matches!(self.what, What::Asked(asked) if asked.is_unanswered())
    }

    /// The server answers it.
    fn is_awaited(&self) -> bool {
        matches!(self.what, What::Asked(asked) if !asked.is_unanswered())
    }
}

/// The requests that a server has not answered, and what they leave open. `T` is the caller's note on a request; it comes
/// back with the request's outcome, in the order of the requests (but that of a COPY comes after those of its data).
pub struct Conversation<T> {
    owed: VecDeque<Entry<T>>,
    /// How far the answer to the front has come.
    stage: Stage,
    /// The message that comes in masses and changes nothing: DataRow or CopyData, where it fits.
    stream: Option<u8>,
    /// What happens to answers to the front.
    fate: Fate,
    /// The front is not awaited: it is skipped, never answered, or answered by us.
    due: bool,
    status: TransactionStatus,
    /// An extended request was answered since the last ReadyForQuery: its implicit transaction is open.
    open: bool,
    /// One of those was the client's.
    open_for_client: bool,
    /// The server skips up to a Sync that has not been sent, or that is in the queue and not reached.
    skipping: bool,
    /// How many of the Syncs at the front may have been swallowed by a COPY that failed.
    phantoms: usize,
    /// A COPY that was not told that it has all has failed, and the ReadyForQuery behind it is owed.
    cut_short: bool,
    /// No ReadyForQuery has come since that COPY failed: if its Sync was swallowed, the server skips everything up to the next one.
    deaf: bool,
    /// Terminate was sent, or the server broke the protocol.
    ended: bool,
}

impl<T> Default for Conversation<T> {
    fn default() -> Self {
        Self::new()
    }
}

impl<T> Conversation<T> {
    /// With a server that has just logged in: at rest.
    #[must_use]
    pub const fn new() -> Self {
        Self {
            owed: VecDeque::new(),
            stage: Stage::Start,
            stream: None,
            fate: Fate::Forward,
            due: false,
            status: TransactionStatus::Idle,
            open: false,
            open_for_client: false,
            skipping: false,
            phantoms: 0,
            cut_short: false,
            deaf: false,
            ended: false,
        }
    }

    /// Notes a request that is sent to the server.
    ///
    /// # Errors
    /// Too many wait already; nothing was noted, and the request must not be sent.
    #[inline]
    pub fn sent(&mut self, request: Request, asker: Asker, note: Option<T>) -> Result<(), TooMuchOwed> {
        let forgettable = match request {
            Request::Flush | Request::CopyData => true,
            // Late ones are ignored; others end a COPY.
            Request::CopyDone | Request::CopyFail => self.owed.is_empty(),
            Request::Terminate => {
                self.ended = true;
                true
            }
            Request::Sync => false,
            _ => self.skipping,
        };
        if forgettable && note.is_none() {
            return Ok(());
        }
        self.push(Entry { what: What::Asked(request), asker, note })
    }

    /// Notes a request of the client that is not sent to the server: we answer it when its turn has come. See [`Conversation::due`].
    ///
    /// # Errors
    /// Too many wait already, or the turn of an answer cannot be known before the server is no more [`Conversation::uncertain`];
    /// nothing was noted.
    pub fn answer(&mut self, reply: Reply, note: Option<T>) -> Result<(), TooMuchOwed> {
        if self.phantoms > 0 {
            return Err(TooMuchOwed);
        }
        if self.skipping && note.is_none() {
            return Ok(());
        }
        self.push(Entry { what: What::Answer(reply), asker: Asker::Client, note })
    }

    #[inline]
    fn push(&mut self, entry: Entry<T>) -> Result<(), TooMuchOwed> {
        if self.owed.len() >= MAX_OWED {
            return Err(TooMuchOwed);
        }
        let first = self.owed.is_empty();
        if first && entry.is(Request::Sync) {
            self.skipping = false;
        }
        self.owed.push_back(entry);
        if first {
            self.look();
        }
        Ok(())
    }

    /// Takes a message from the server: checks that it fits and says what to do with it. Requests that it settles come to
    /// `settled` with their notes. Of a long message the beginning of the body is enough: only ReadyForQuery's is read.
    ///
    /// Answers to requests of ours are swallowed. An ErrorResponse to an extended request of ours is forwarded all the same
    /// when it undoes or skips anything of the client's (requests between it and the next Sync, work since the last
    /// ReadyForQuery, or that Sync itself): the client would otherwise miss answers without a reason. ParameterStatus and
    /// NotificationResponse are forwarded always, NoticeResponse unless a request of ours is in front.
    ///
    /// # Errors
    /// The message does not fit: close the server, and drop the conversation with it.
    #[inline]
    pub fn received(&mut self, tag: u8, body: &[u8], settled: &mut impl FnMut(T, Outcome)) -> Result<Fate, Desync> {
        if self.stream == Some(tag) {
            return Ok(self.fate);
        }
        self.received_other(tag, body, settled)
    }

    /// The message that comes in masses now and passes to the client without a change here: [`Conversation::received`] need not
    /// be told of it.
    #[inline]
    #[must_use]
    pub fn passing(&self) -> Option<u8> {
        if self.fate == Fate::Forward { self.stream } else { None }
    }

    /// Whether [`Conversation::due`] has something to do. Mostly not: what was sent or received last has looked ahead already.
    #[inline]
    #[must_use]
    pub const fn is_due(&self) -> bool {
        self.due
    }

    /// The next of our own answers whose turn has come. To be called after [`Conversation::answer`] and after each
    /// [`Conversation::received`], until `None`; it also settles what the server skips or ignores.
    #[inline]
    pub fn due(&mut self, settled: &mut impl FnMut(T, Outcome)) -> Option<Reply> {
        if !self.is_due() {
            return None;
        }
        self.shed(settled);
        let What::Answer(reply) = self.owed.front()?.what else { return None };
        self.settle(Outcome::Done, settled);
        Some(reply)
    }

    /// Whether the server may be given back: nothing is owed, skipped or open, and no transaction either.
    #[inline]
    #[must_use]
    pub fn at_rest(&self) -> bool {
        self.quiet() && self.status == TransactionStatus::Idle
    }

    /// Whether nothing is owed, skipped or unsynced, in a transaction or not.
    #[inline]
    #[must_use]
    pub fn quiet(&self) -> bool {
        self.owed.is_empty() && !self.open && !self.skipping && !self.ended
    }

    /// The status in the last ReadyForQuery.
    #[must_use]
    pub const fn status(&self) -> TransactionStatus {
        self.status
    }

    /// How many requests wait for their answers, ours included: stop reading the client before [`MAX_OWED`].
    #[must_use]
    pub fn owed(&self) -> usize {
        self.owed.len()
    }

    /// Whether the server reads CopyData.
    #[must_use]
    pub fn copy_in(&self) -> bool {
        self.stage == Stage::CopyIn
    }

    /// Whether the server sends CopyData.
    #[must_use]
    pub fn copy_out(&self) -> bool {
        self.stage == Stage::CopyOut
    }

    /// Whether the request in front is ours.
    #[must_use]
    pub fn ours_in_front(&self) -> bool {
        self.owed.front().is_some_and(|front| front.asker == Asker::Ours)
    }

    /// Ends the conversation: the notes that are left, in order. What became of their requests is not known.
    pub fn into_notes(self) -> impl Iterator<Item = T> {
        self.owed.into_iter().filter_map(|entry| entry.note)
    }

    fn received_other(&mut self, tag: u8, body: &[u8], settled: &mut impl FnMut(T, Outcome)) -> Result<Fate, Desync> {
        if self.is_due() {
            self.shed(settled);
        }
        match tag {
            b'S' | b'A' => return Ok(Fate::Forward),
            b'N' => return Ok(self.fate),
            b'Z' => return self.ready(body, settled),
            b'E' => return self.error(settled),
            _ => self.lay_phantoms(settled),
        }
        let request = match self.owed.front() {
            Some(Entry { what: What::Asked(request), .. }) => *request,
            Some(_) => return Err(self.desync("nothing before an answer of ours", tag)),
            None => return Err(self.desync("nothing", tag)),
        };
        let fate = self.fate;
        match step(request, self.stage, tag) {
            None => return Err(self.desync(request.expects(self.stage), tag)),
            Some(Step::To(stage)) => self.go_to(stage),
            Some(Step::Done) => self.extended_done(settled),
            Some(Step::CopyInDone) => {
                self.end_copy(settled)?;
                match request {
                    Request::Query => self.go_to(Stage::Between),
                    _ => self.extended_done(settled),
                }
            }
        }
        Ok(fate)
    }

    fn ready(&mut self, body: &[u8], settled: &mut impl FnMut(T, Outcome)) -> Result<Fate, Desync> {
        let status = match body {
            [byte] => TransactionStatus::from_byte(*byte),
            _ => None,
        };
        let Some(status) = status else { return Err(self.desync("a ReadyForQuery of status I, T or E", b'Z')) };
        let request = match self.owed.front() {
            Some(Entry { what: What::Asked(request), .. }) => *request,
            _ => return Err(self.desync("nothing", b'Z')),
        };
        if !self.stage.may_end(request) {
            return Err(self.desync(request.expects(self.stage), b'Z'));
        }
        let fate = self.fate;
        self.status = status;
        self.open = false;
        self.open_for_client = false;
        self.deaf = false;
        self.cut_short = false;
        let outcome = if self.stage == Stage::Failed { Outcome::Failed } else { Outcome::Done };
        self.settle(outcome, settled);
        Ok(fate)
    }

    fn error(&mut self, settled: &mut impl FnMut(T, Outcome)) -> Result<Fate, Desync> {
        if self.owed.iter().any(|entry| !entry.is(Request::Sync)) {
            self.lay_phantoms(settled);
        }
        let request = match self.owed.front() {
            Some(Entry { what: What::Asked(request), .. }) => *request,
            Some(_) => return Err(self.desync("nothing before an answer of ours", b'E')),
            // The server says why it goes away.
            None => return Ok(Fate::Forward),
        };
        if self.stage == Stage::CopyIn {
            self.cut_short = self.reads_copy();
            self.phantoms = self.swallowable();
            self.deaf = request.is_extended();
            if self.phantoms > 0 && self.owed.iter().any(|entry| matches!(entry.what, What::Answer(_))) {
                // Its turn cannot be known, and the client would get it before or after the wrong ReadyForQuery.
                return Err(self.desync("no answer of ours behind a Sync that a COPY may have swallowed", b'E'));
            }
        }
        if !request.is_extended() {
            let undoes_client = request == Request::Sync && self.open_for_client;
            self.go_to(Stage::Failed);
            return Ok(if undoes_client { Fate::Forward } else { self.fate });
        }
        let fate = self.fate_of_skipping();
        self.skipping = true;
        self.settle(Outcome::Failed, settled);
        Ok(fate)
    }

    /// An error to an extended request is the client's to know when it undoes or skips anything of the client's.
    fn fate_of_skipping(&self) -> Fate {
        if self.fate == Fate::Forward || self.open_for_client {
            return Fate::Forward;
        }
        let concerned = self.owed.iter().skip(1).find(|entry| entry.is(Request::Sync) || entry.asker == Asker::Client);
        match concerned {
            Some(entry) if entry.asker == Asker::Ours => Fate::Swallow,
            // The Sync that ends the skipping is the client's, even if it has not come yet.
            _ => Fate::Forward,
        }
    }

    fn extended_done(&mut self, settled: &mut impl FnMut(T, Outcome)) {
        self.open = true;
        self.open_for_client |= self.fate == Fate::Forward;
        self.settle(Outcome::Done, settled);
    }

    /// Takes the front off and turns to the next.
    fn settle(&mut self, outcome: Outcome, settled: &mut impl FnMut(T, Outcome)) {
        if let Some(note) = self.owed.pop_front().and_then(|entry| entry.note) {
            settled(note, outcome);
        }
        self.stage = Stage::Start;
        self.look();
        if self.due {
            self.shed(settled);
        }
        if self.phantoms > 0 && !self.owed.front().is_some_and(|front| front.is(Request::Sync)) {
            self.phantoms = 0;
        }
        if self.owed.is_empty() && self.owed.capacity() > KEPT_CAPACITY {
            self.owed.shrink_to(KEPT_CAPACITY);
        }
    }

    /// Takes off the front what the server skips or never answers.
    fn shed(&mut self, settled: &mut impl FnMut(T, Outcome)) {
        while let Some(front) = self.owed.front() {
            let outcome = match (self.skipping, front.is(Request::Sync)) {
                (true, true) => {
                    self.skipping = false;
                    break;
                }
                (true, false) => Outcome::Skipped,
                (false, _) if !front.is_unanswered() => break,
                (false, _) if front.is(Request::CopyDone) || front.is(Request::CopyFail) => Outcome::Skipped,
                (false, _) => Outcome::Done,
            };
            if let Some(note) = self.owed.pop_front().and_then(|entry| entry.note) {
                settled(note, outcome);
            }
        }
        self.look();
    }

    /// The answer to the front has come further.
    fn go_to(&mut self, stage: Stage) {
        self.stage = stage;
        self.stream = match self.owed.front() {
            Some(Entry { what: What::Asked(request), .. }) if !self.skipping => request.streams(stage),
            _ => None,
        };
    }

    /// There is another front, or it is skipped now.
    fn look(&mut self) {
        let front = self.owed.front();
        let is_ours = front.is_some_and(|front| front.asker == Asker::Ours);
        self.fate = if is_ours { Fate::Swallow } else { Fate::Forward };
        self.due = self.skipping || front.is_some_and(|front| !front.is_awaited());
        self.go_to(self.stage);
    }

    fn desync(&mut self, expected: &'static str, tag: u8) -> Desync {
        self.ended = true;
        self.stream = None;
        Desync::new(expected, tag)
    }
}
