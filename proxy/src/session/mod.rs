//! One client for its life: the loop over its transactions, and everything that is kept for it.
//!
//! `turn.rs` moves bytes without waiting for anything but the two sockets; `requests.rs` and `replies.rs` say what
//! is done with each message; what needs more waiting is done here, between two turns.

use std::future::{Future, poll_fn, ready};
use std::num::NonZeroU64;
use std::pin::Pin;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use pgwire::report::Report;
use pgwire::sqlstate;
use tokio::time::timeout;

mod admit;
mod asked;
mod begin;
mod borrow;
mod bring;
mod card;
mod carry;
mod doubt;
mod effects;
mod give_back;
mod greet;
mod hand_over;
mod login;
mod lost;
pub(crate) mod note;
mod pools;
mod prepared;
mod queue;
mod replicate;
mod replies;
mod requests;
mod resolve;
mod startup;
mod statements;
mod turn;
mod units;
mod violation;
mod weak;

pub(crate) use card::Card;
pub(crate) use carry::carry_on;
pub(crate) use doubt::questions;
pub(crate) use greet::serve_client;
pub(crate) use startup::{forced_login, pool_for};
pub(crate) use statements::{Interned, Statement};

use crate::auth::Identity;
use crate::cancel::Registered;
use crate::entry::Entry;
use crate::error::{Denial, in_pgbouncers_words};
use crate::pool::Borrowed;
use crate::routing::{Class, ReadAfter, Route};
use crate::settings::{Reported, Settings};
use crate::stats::Counted;
use crate::wire::Wire;
use crate::worker::Worker;
use borrow::NoServer;
use doubt::Doubt;
use effects::{Portals, Unsettled};
use login::Login;
use lost::Lost;
use pools::Pools;
use queue::Waiting;
use statements::Names;
use turn::{End, Turn};
use units::Units;

/// Time for a client to take its last message before its connection is closed.
const FAREWELL: Duration = Duration::from_secs(1);

/// How long a session keeps its server.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Mode {
    /// As long as it lives.
    Session,
    /// For a transaction.
    Transaction,
    /// For a statement: a transaction block is refused.
    Statement,
}

/// What a transaction asks for, as far as its first message shows.
#[derive(Debug, Clone)]
pub(super) struct Asked {
    /// What the first statement is.
    class: Class,
    /// Nothing that may write can follow in the same transaction.
    alone: bool,
}

impl Asked {
    /// The primary, whatever comes.
    fn primary() -> Self {
        Self { class: Class::unknown(), alone: false }
    }
}

/// What is dropped of what the client sends, because it has been answered with an error.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Skip {
    /// Nothing.
    Nothing,
    /// The next message, a Query or a FunctionCall.
    One,
    /// Everything up to the next Sync.
    ToSync,
}

/// What a turn waits for.
type Met<'s> = Pin<Box<dyn Future<Output = Result<(), NoServer>> + 's>>;

/// What is kept for a client.
pub(crate) struct Session {
    worker: Rc<Worker>,
    entry: Arc<Entry>,
    /// The pools of the entry for this user, by node.
    pools: Pools,
    user: Arc<str>,
    identity: Identity,
    mode: Mode,
    /// With PgBouncer's manners: no state of a session is followed but the parameters that PostgreSQL reports.
    is_plain: bool,
    /// It is being logged in: its wait for a server is no query's.
    logs_in: bool,
    /// It may not send simple queries.
    refuses_queries: bool,
    /// Its servers are reset after each transaction.
    always_resets: bool,
    /// A cancel request went to the server that goes back.
    was_hit: bool,
    /// When the query in work, and the transaction, were begun: microseconds of the clock.
    begun: (Option<NonZeroU64>, Option<NonZeroU64>),
    /// What the client asked for at its start; statements may say otherwise.
    route: Option<Route>,
    card: Rc<Card>,
    cancel: Registered,

    /// It waits for a server.
    waiting: Option<Box<Waiting>>,
    client: Wire,
    /// The client's leftover has not been looked at since a server was borrowed or given back.
    client_rest_is_fresh: bool,
    /// Bytes of the client's message in work that are still to come.
    client_passes: usize,
    /// After an error that we answered: what is dropped of what the client sends.
    skip: Skip,

    server: Option<Borrowed>,
    /// The node of the server on loan, or of the last one.
    node: usize,
    /// Bytes of the server's message in work that are still to come.
    server_passes: usize,
    /// A message of the server may have made it the turn of an answer of ours.
    answers_are_due: bool,
    /// The commit in work was not confirmed by a standby.
    not_replicated: bool,
    /// What is known of the commit in work.
    doubt: Doubt,
    /// A simple query was sent as extended requests: what a simple query would not bring does not pass.
    apart: bool,
    /// What of its answers waits for its place.
    held: bytes::BytesMut,
    /// Now is the place: it goes out before the server's message in work.
    held_goes: bool,
    weak_reported: bool,
    /// What the server said last before it went away.
    last_words: Option<Box<str>>,

    names: Names,
    portals: Portals,
    units: Units,
    effects: Unsettled,
    rolled_back: bool,
    /// The settings of the session, and those that it began with.
    settings: Settings,
    startup: Settings,
    login: Login,
    /// What the client was told of the parameters.
    reported: Reported,
    pinned: Option<Box<str>>,
    lost: Lost,
    /// What its reads must see; none: there is no standby to read from.
    read_after: Option<Box<ReadAfter>>,
}

impl Session {
    /// Serves the client until it leaves, is sent away, or breaks the protocol.
    pub(crate) async fn run(mut self: Box<Self>) {
        let end = loop {
            let turn = poll_fn(|cx| self.poll_turn(cx)).await;
            let outcome = match self.meet(turn) {
                Ok(met) => met.await,
                Err(end) => break end,
            };
            self.client_rest_is_fresh = self.client.has_rest();
            match outcome {
                Ok(()) => {}
                Err(NoServer::End(end)) => break end,
                Err(NoServer::Told(report)) => self.refuse_transaction(|out| say(out, &report)),
                Err(NoServer::Words(body)) => self.refuse_transaction(|out| pass_on(out, &body)),
            }
        };
        if let Some(farewell) = self.part(end) {
            farewell.await;
        }
    }

    /// Ends the session; if the client is to hear of it, that is left to be done, in a box of its own.
    fn part(self: Box<Self>, end: End) -> Option<Pin<Box<dyn Future<Output = ()>>>> {
        let (mut client, report) = self.end(end);
        let words = report.is_some();
        if let Some(report) = report {
            say(client.out(), &report.fatal());
        }
        let is_heard = words || client.is_encrypted() || client.backlog() > 0;
        is_heard.then(|| Box::pin(farewell(client, words)) as Pin<Box<dyn Future<Output = ()>>>)
    }

    /// What the session seldom waits for, in a box of its own that goes afterwards: an idle client is no larger for it.
    fn meet(&mut self, turn: Turn) -> Result<Met<'_>, End> {
        Ok(match turn {
            Turn::Need(need) => Box::pin(self.acquire_and_bring(need.asked)),
            Turn::Refused(why) => Box::pin(ready(Err(*why))),
            Turn::Bring => Box::pin(self.bring()),
            Turn::Restore => Box::pin(self.restore()),
            Turn::Lost(why) if self.is_plain => {
                tracing::debug!(session = %self.name(), why, "a server was lost");
                let denial = self.lost_in_pgbouncers_words();
                self.drop_server(); // its end stands in the log before its client's
                return Err(End::SentAway(denial));
            }
            Turn::Lost(why) => Box::pin(async move { self.lose_server(&why).await.map_err(NoServer::End) }),
            Turn::Recover => {
                self.recover();
                Box::pin(ready(Ok(())))
            }
            Turn::End(end) => return Err(end),
        })
    }

    async fn acquire_and_bring(&mut self, asked: Asked) -> Result<(), NoServer> {
        self.acquire(&asked).await?;
        self.bring().await
    }

    /// The server is gone, and PgBouncer's client goes with it.
    fn lost_in_pgbouncers_words(&self) -> Denial {
        let why = self.server.as_ref().and_then(|server| server.control.why_closed());
        Denial::Told(why.unwrap_or_else(|| "server conn crashed?".to_owned()))
    }

    /// Makes settings of the login again; a server that has nothing else to do goes back.
    async fn restore(&mut self) -> Result<(), NoServer> {
        self.bring().await?;
        if self.may_release() && self.release().is_err() {
            self.recover();
        }
        Ok(())
    }

    /// The client's next transaction cannot begin: it is told so, and may try again.
    fn refuse_transaction(&mut self, write: impl FnOnce(&mut bytes::BytesMut)) {
        write(self.client.out());
        // The message that asked for the server is still there: it is dropped, with the others up to Sync.
        let rest = self.client.take_rest();
        self.skip = if matches!(rest.first(), Some(b'Q' | b'F')) { Skip::One } else { Skip::ToSync };
        self.client_rest_is_fresh = !rest.is_empty();
        self.client.keep_large(rest);
    }

    /// Gives the server up. What is left are the client's connection, and the last words for it.
    fn end(mut self: Box<Self>, end: End) -> (Wire, Option<Report>) {
        let shared = self.worker.shared.clone();
        let (report, words) = match end {
            End::ClientGone => (None, "client unexpected eof".to_owned()),
            End::Goodbye => (None, "client close request".to_owned()),
            End::Violation(what) if self.is_plain => (Some(in_pgbouncers_words(&what)), what),
            End::Violation(what) => (Some(Report::error(sqlstate::PROTOCOL_VIOLATION, what.as_str())), what),
            End::SentAway(denial) => (Some(shared.words(&denial)), denial.words()),
            End::HandedOver => {
                self.leave();
                return (self.client, None);
            }
        };
        greet::log_end(&shared, &self.card.client, &words);
        if let Some(server) = &self.server {
            if report.is_some() {
                server.control.closes(&words);
            } else if !server.conversation.at_rest() {
                server.control.closes("client disconnect while server was not ready");
            }
        }
        // before the goodbye, which a client may draw out
        let rest =
            self.server.as_ref().is_some_and(|server| server.conversation.at_rest() && server.wire.backlog() == 0);
        if rest && self.client_passes == 0 {
            self.recover();
        } else {
            self.abandon();
        }
        if let Some(report) = &report {
            greet::log_error(&shared, &self.card.client, &words);
            tracing::info!(session = %self.name(), why = report.message(), "a client is sent away");
        }
        // in the middle of a message of the server there is no place for words
        let report = report.filter(|_| self.server_passes == 0);
        (self.client, report)
    }

    /// Counts what passed for the statistics.
    #[inline]
    fn count(&self, what: Counted, n: u64) {
        self.entry.counters[self.worker.index].add(what, n);
    }

    /// A request of the client begins a query, and perhaps a transaction.
    #[inline]
    fn query_begins(&mut self) {
        if self.begun.0.is_some() {
            return;
        }
        let now = self.worker.shared.clock.micros();
        self.begun.0 = Some(now);
        self.count(Counted::Queries, 1);
        self.card.client.requests();
        if self.begun.1.is_none() {
            self.begun.1 = Some(now);
            self.count(Counted::Transactions, 1);
        }
    }

    /// Nothing is owed to the client: its query is over, and its transaction too if `idle`.
    #[inline]
    fn query_ends(&mut self, idle: bool) {
        let now = self.worker.shared.clock.micros();
        let since = |begun: NonZeroU64| now.get().saturating_sub(begun.get());
        if let Some(begun) = self.begun.0.take() {
            self.count(Counted::QueryTime, since(begun));
        }
        if idle {
            self.card.transaction_ended();
            if let Some(begun) = self.begun.1.take() {
                self.count(Counted::TransactionTime, since(begun));
            }
        }
    }

    /// Counts a time for the statistics.
    fn count_time(&self, what: Counted, time: Duration) {
        self.entry.counters[self.worker.index].add_time(what, time);
    }

    /// For logs: who it is.
    pub(crate) fn name(&self) -> String {
        format!("{}/{}#{}", self.entry.name, self.user, self.cancel.process_id)
    }
}

/// Sends what the client has not taken yet, with our last `words` in it, and closes in the manner of TLS; for a while.
async fn farewell(mut client: Wire, words: bool) {
    if words {
        let _ = timeout(FAREWELL, client.say_goodbye()).await;
    }
    let _ = timeout(FAREWELL, client.close()).await;
}

/// Writes a report of our own.
fn say(out: &mut bytes::BytesMut, report: &Report) {
    report.write(out).expect("our own texts are short");
}

/// Writes an ErrorResponse of PostgreSQL, whose body this is.
fn pass_on(out: &mut bytes::BytesMut, body: &[u8]) {
    let length = u32::try_from(body.len() + 4).expect("it came in a message of this length");
    out.extend_from_slice(b"E");
    out.extend_from_slice(&length.to_be_bytes());
    out.extend_from_slice(body);
}
#[cfg(test)]
mod tests {
    use super::*;

    /// Bytes that an idle client holds in these, each once; tokio's share and a few strings come on top. What makes one larger makes
    /// every client larger, of which there are many: seldom-used state goes into a box.
    #[test]
    fn an_idle_client_is_small() {
        fn task<A, F>(_: fn(A) -> F) -> usize {
            size_of::<F>()
        }
        let parts = [
            ("session", size_of::<Session>(), 608),
            ("its task", task(Session::run), 80),
            ("client", size_of::<crate::clients::Client>(), 288),
            ("card", size_of::<Card>(), 136),
            ("cancel key", size_of::<crate::cancel::Cancel>(), 112),
        ];
        for (part, bytes, limit) in parts {
            assert!(bytes <= limit, "{part}: {bytes} bytes, {limit} before");
        }
    }
}
