//! The transaction id of a commit is asked for in front of it, in the same write: if the answer to the commit is lost, it can be
//! looked up. Looking up is in `resolve.rs`.
//!
//! PostgreSQL answers the question before it commits, because a Flush (or a Sync, inside of a transaction) stands behind it: while
//! the commit waits for its standby, the id is known here. One commit at a time can be asked for: the one that
//! stands first among all that is not answered. What is pipelined behind goes without.

use bytes::BytesMut;
use pgwire::conversation::{Asker, Request, TransactionStatus};
use pgwire::frontend::{self, Target};
use pgwire::report::{Report, View};

use super::note::About;
use super::prepared::hold;
use super::requests::{Frame, Passing, SHORT, text, too_much};
use super::statements::Statement;
use super::turn::Turn;
use super::units::Danger;
use super::weak::weak_commit;
use super::{Mode, Session};
use crate::config::SynchronousCommit;
use crate::routing::{Class, Kind};

/// The name of our portal: the client's unnamed one survives.
const PORTAL: &[u8] = b"pgsteady";
/// The number of the question as a prepared statement; those of clients begin at 1.
const QUESTION_NUMBER: u64 = 0;
/// The same, where a commit that no standby has to confirm is an error.
const STRICT_QUESTION_NUMBER: u64 = u64::MAX;
const QUESTION: &str = "SELECT pg_catalog.pg_current_xact_id_if_assigned()";
/// An error is the only way to stop the commit that stands behind it already. (`xid8` itself takes any text in PostgreSQL 15.)
const STRICT_QUESTION: &str = "SELECT CASE WHEN pg_catalog.pg_current_xact_id_if_assigned() IS NULL \
 OR pg_catalog.current_setting('synchronous_commit') IN ('on', 'remote_apply') \
 THEN pg_catalog.pg_current_xact_id_if_assigned() \
 ELSE pg_catalog.concat('synchronous_commit is ', pg_catalog.current_setting('synchronous_commit'))::bigint::text::pg_catalog.xid8 END";

/// What is known of the commit that stands first.
#[derive(Debug, Default)]
pub(super) enum Doubt {
    /// There is none, or it is not asked for.
    #[default]
    Nothing,
    /// The question is on its way.
    Asked(Box<Commit>),
    /// PostgreSQL has answered it, and goes on to commit.
    Known(Box<Commit>),
    /// It could not be answered, and the transaction is rolled back for it: what the client is told instead of ROLLBACK.
    Refused(Box<[u8]>),
    /// The client has the answer to the commit; only the end of the unit is owed.
    Answered {
        /// COMMIT AND CHAIN.
        chain: bool,
    },
}

/// A commit that can be looked up.
#[derive(Debug)]
pub(super) struct Commit {
    /// The reign under which it was sent: node and incarnation. `None` if that is not certain.
    pub(super) reign: Option<(usize, i64)>,
    /// What the client is owed if it was committed, beside ReadyForQuery.
    pub(super) owed: Owed,
    /// The transaction's id, once the question is answered. Without one nothing was written.
    pub(super) xid: Option<u64>,
}

/// What the client of a commit is owed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Owed {
    /// CommandComplete of COMMIT.
    Commit {
        /// COMMIT AND CHAIN.
        chain: bool,
    },
    /// Nothing: the statements of a unit in autocommit were answered before the Sync.
    Nothing,
    /// What is held back ([`Session::held`]).
    Held,
}

/// Where the question stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Before {
    /// A simple query: whatever becomes of the question, the query behind has to be looked at.
    Query,
    /// An extended request.
    Extended,
}

/// The questions as prepared statements.
pub(crate) fn questions() -> [Statement; 2] {
    let question = |number, text: &str| {
        let body = [text.as_bytes(), &[0, 0, 0]].concat().into_boxed_slice();
        Statement { number, body, class: Class::unknown() }
    };
    [question(QUESTION_NUMBER, QUESTION), question(STRICT_QUESTION_NUMBER, STRICT_QUESTION)]
}

impl Doubt {
    fn is_asked(&self) -> bool {
        matches!(self, Self::Asked(_))
    }

    /// Whether a statement of ours is the question that is on its way.
    pub(super) fn is_asked_by(&self, number: u64) -> bool {
        self.is_asked() && matches!(number, QUESTION_NUMBER | STRICT_QUESTION_NUMBER)
    }

    /// A commit waits for its standby, as far as is known.
    pub(super) fn is_known(&self) -> bool {
        matches!(self, Self::Known(..))
    }
}

impl Session {
    /// Whether a commit is under way, or may be.
    pub(super) fn commits(&self) -> bool {
        self.units.commits() || self.doubt.is_known()
    }

    /// A statement or a part of one is sent in the open unit.
    pub(super) fn open_unit(&mut self, danger: Danger) {
        if self.units.none_sent() && !matches!(self.doubt, Doubt::Nothing) {
            self.doubt = Doubt::Nothing; // more is owed than the answer to the commit
        }
        self.units.begin(danger);
    }

    /// The oldest unit was answered. While the question is not, that was one before the commit's.
    #[inline]
    pub(super) fn unit_settled(&mut self) {
        if !self.doubt.is_asked() {
            self.doubt = Doubt::Nothing;
        }
    }

    /// Nothing stands before the next commit, and nobody knows of a failed transaction.
    fn may_ask(&self) -> bool {
        let Some(server) = &self.server else { return false };
        self.entry.resolves
            && self.units.none_sent()
            && matches!(self.doubt, Doubt::Nothing)
            && server.conversation.status() != TransactionStatus::Failed
    }

    /// A COMMIT as simple query is about to be sent.
    pub(super) fn before_commit_query(
        &mut self,
        passing: &mut Passing<'_>,
        at: usize,
        chain: bool,
    ) -> Result<(), Turn> {
        if self.may_ask() && self.units.is_closed() && self.units.wrote() && self.is_in_transaction_block() {
            return self.ask_xid(passing, at, Before::Query, Owed::Commit { chain });
        }
        Ok(())
    }

    /// An Execute of COMMIT is about to be sent.
    pub(super) fn before_commit_execute(
        &mut self,
        passing: &mut Passing<'_>,
        at: usize,
        chain: bool,
    ) -> Result<(), Turn> {
        if self.may_ask() && self.units.is_at_most(Danger::Write) && self.units.wrote() {
            return self.ask_xid(passing, at, Before::Extended, Owed::Commit { chain });
        }
        Ok(())
    }

    /// A Sync is about to be sent: in autocommit it commits what the unit wrote.
    pub(super) fn before_sync(&mut self, passing: &mut Passing<'_>, at: usize) -> Result<(), Turn> {
        if self.units.writes_plainly() && self.may_ask() && !self.is_in_transaction_block() {
            return self.ask_xid(passing, at, Before::Extended, Owed::Nothing);
        }
        Ok(())
    }

    fn is_in_transaction_block(&self) -> bool {
        self.server.as_ref().is_some_and(|server| server.conversation.status() == TransactionStatus::InTransaction)
    }

    /// Whether a simple query in autocommit is sent as extended requests, so that its id can be asked for. What the client
    /// gets is the same to the byte. Not so with rules, which may add results; and `$1` is an error in a simple query.
    pub(super) fn goes_apart(&self, class: &Class, text: &[u8]) -> bool {
        class.kind == Kind::Write
            && self.may_ask()
            && self.units.is_closed()
            && !self.is_in_transaction_block()
            && self.server.as_ref().is_some_and(|server| !server.has_rules)
            && !text.windows(2).any(|pair| pair[0] == b'$' && pair[1].is_ascii_digit())
            && !text.windows(11).any(|word| word.eq_ignore_ascii_case(b"pg_settings"))
    }

    /// Sends a simple query as extended requests.
    pub(super) fn query_apart(
        &mut self,
        passing: &mut Passing<'_>,
        frame: &Frame<'_>,
        class: &Class,
    ) -> Result<(), Turn> {
        let sql = text(frame.body)?;
        let worker = self.worker.clone();
        let server = self.loan();
        passing.cut(frame.at, frame.end, server.wire.out());
        let out = server.wire.out();
        let long = |error: pgwire::Malformed| Turn::Lost(error.to_string());
        frontend::parse(out, b"", sql, &[]).map_err(long)?;
        frontend::bind(out, b"", b"", &[]).expect(SHORT);
        Target::Portal(b"").describe(out).expect(SHORT);
        frontend::Execute { portal: b"", rows: 0 }.write(out).expect(SHORT);
        // A simple query leaves no unnamed statement behind: whoever asks for it on this server is told so.
        server.unnamed = Some(worker.next_unnamed());
        for request in [Request::Parse, Request::Bind] {
            server.conversation.sent(request, Asker::Ours, None).map_err(too_much)?;
        }
        self.units.begin(Danger::Write);
        self.apart = true;
        let note = self.effects_of(class).note();
        self.ask(Request::Describe { statement: false }, None)?;
        self.ask(Request::Execute, Some(note))?;
        self.ask_xid(passing, frame.end, Before::Extended, Owed::Held)?;
        if self.mode == Mode::Session {
            let server = self.loan();
            Target::Statement(b"").close(server.wire.out()).expect(SHORT);
            server.conversation.sent(Request::Close, Asker::Ours, None).map_err(too_much)?;
        }
        self.loan().wire.out().extend_from_slice(&frontend::SYNC);
        self.units.finish();
        self.shield();
        self.ask(Request::Sync, Some(About::Nothing.unit()))
    }

    /// Writes the question in front of what stands at `at`.
    fn ask_xid(&mut self, passing: &mut Passing<'_>, at: usize, before: Before, owed: Owed) -> Result<(), Turn> {
        let worker = self.worker.clone();
        let strict = self.entry.synchronous_commit == SynchronousCommit::Refuse;
        let question = &worker.questions[usize::from(strict)];
        let topology = self.entry.watch.now();
        let node = self.node;
        let server = self.loan();
        let last = topology.reigns.last().filter(|reign| reign.node == node && reign.seen > server.born);
        let reign = server.reign.or(last.map(|reign| (reign.node, reign.incarnation)));
        passing.cut(at, at, server.wire.out());
        hold(server, question, worker.shared.max_prepared())?;
        let out = server.wire.out();
        frontend::bind(out, PORTAL, &Statement::server_name(question.number), &[]).expect(SHORT);
        frontend::Execute { portal: PORTAL, rows: 0 }.write(out).expect(SHORT);
        Target::Portal(PORTAL).close(out).expect(SHORT);
        out.extend_from_slice(if before == Before::Query { &frontend::SYNC } else { &frontend::FLUSH });
        let conversation = &mut server.conversation;
        conversation.sent(Request::Bind, Asker::Ours, Some(About::Xid.note())).map_err(too_much)?;
        conversation.sent(Request::Execute, Asker::Ours, Some(About::Xid.note())).map_err(too_much)?;
        conversation.sent(Request::Close, Asker::Ours, None).map_err(too_much)?;
        if before == Before::Query {
            conversation.sent(Request::Sync, Asker::Ours, None).map_err(too_much)?;
        }
        self.doubt = Doubt::Asked(Box::new(Commit { reign, owed, xid: None }));
        Ok(())
    }

    /// A row that is not the client's: the answer to the question.
    #[cold]
    pub(super) fn take_xid(&mut self, body: &[u8]) {
        if !self.doubt.is_asked() {
            return;
        }
        let value = pgwire::backend::row_values(body).ok().and_then(|values| values.first().copied().flatten());
        let xid = value.and_then(|value| std::str::from_utf8(value).ok()?.parse().ok());
        if (value.is_none() || xid.is_some())
            && let Doubt::Asked(mut commit) = std::mem::take(&mut self.doubt)
        {
            commit.xid = xid;
            self.doubt = Doubt::Known(commit);
            self.shield();
        }
    }

    /// The question was not answered.
    pub(super) fn xid_not_told(&mut self) {
        if self.doubt.is_asked() {
            self.doubt = Doubt::Nothing;
        }
    }

    /// The words for a question that failed. `None`: they are PostgreSQL's.
    pub(super) fn refusal(&mut self, body: &[u8]) -> Option<Report> {
        let view = View::new(body);
        if let Some(server) = &mut self.server {
            // a function may have run DEALLOCATE ALL
            if view.sqlstate().is_some_and(|state| state.as_str() == "26000") {
                server.prepared.remove(QUESTION_NUMBER);
                server.prepared.remove(STRICT_QUESTION_NUMBER);
            }
        }
        let strict = self.entry.synchronous_commit == SynchronousCommit::Refuse;
        let weak = view.sqlstate().is_some_and(|state| state.as_str() == "22P02");
        (strict && weak).then(weak_commit)
    }

    /// The question failed, and the client is not told of it now: its COMMIT will come to a ROLLBACK.
    pub(super) fn refuse_commit(&mut self, body: &[u8]) {
        let mut words = BytesMut::new();
        match self.refusal(body) {
            Some(report) => super::say(&mut words, &report),
            None => super::pass_on(&mut words, body),
        }
        self.doubt = Doubt::Refused(words[..].into());
    }

    /// CommandComplete or an error for the client has come: whether it goes out, or something else, or later.
    pub(super) fn answer_to_commit(&mut self, tag: u8, body: &[u8], instead: &mut BytesMut) -> bool {
        if matches!(self.doubt, Doubt::Nothing) && !self.apart {
            return true;
        }
        if tag == b'E' {
            self.held.clear();
        }
        match std::mem::take(&mut self.doubt) {
            Doubt::Refused(words) if tag == b'C' => {
                instead.extend_from_slice(&words);
                self.doubt = Doubt::Answered { chain: false };
                return false;
            }
            Doubt::Known(commit) => {
                self.doubt = match commit.owed {
                    Owed::Commit { chain } => Doubt::Answered { chain: chain && tag == b'C' },
                    _ if tag == b'E' => Doubt::Answered { chain: false },
                    _ => Doubt::Known(commit),
                };
            }
            same => self.doubt = same,
        }
        if self.apart && tag == b'C' {
            hold_back(&mut self.held, tag, body);
            return false;
        }
        true
    }

    /// An answer that only a statement sent apart has: `true` if it goes out.
    pub(super) fn answer_apart(&mut self, tag: u8, body: &[u8]) -> bool {
        if !self.apart {
            return true;
        }
        if tag == b'T' {
            hold_back(&mut self.held, tag, body);
        }
        false
    }
}

fn hold_back(held: &mut BytesMut, tag: u8, body: &[u8]) {
    let length = u32::try_from(body.len() + 4).expect("it came in a message of this length");
    held.extend_from_slice(&[tag]);
    held.extend_from_slice(&length.to_be_bytes());
    held.extend_from_slice(body);
}
