//! What housekeeping may know of a session, and the one thing that it may do: send the client away.

use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::sync::Arc;
use std::task::Waker;

use crate::clients::{Client, State};
use crate::clock::{Clock, Moment};
use crate::config::User;
use crate::error::Denial;
use crate::worker::Worker;

/// One session, as housekeeping sees it. Lives on the session's worker.
pub(crate) struct Card {
    /// What others know of its client.
    pub(crate) client: Arc<Client>,
    /// What is configured of its user.
    pub(crate) user: Option<Arc<User>>,
    clock: Arc<Clock>,
    kill: RefCell<Option<Box<Denial>>>,
    killed: Cell<bool>,
    /// At which time of asking the session gave its connections to the next process; 0: it did not.
    pub(super) given: Cell<u32>,
    /// When the query in work was begun; nothing if none is.
    query: Cell<Option<Moment>>,
    /// When the transaction in work was begun.
    transaction: Cell<Option<Moment>>,
    waker: RefCell<Option<Waker>>,
}

impl Card {
    /// The card of a session that begins, known to its worker's housekeeping.
    pub(crate) fn new(client: &Arc<Client>, user: Option<Arc<User>>, worker: &Worker) -> Rc<Self> {
        let card = Rc::new(Self {
            client: client.clone(),
            user,
            clock: worker.shared.clock.clone(),
            kill: RefCell::new(None),
            killed: Cell::new(false),
            given: Cell::new(0),
            query: Cell::new(None),
            transaction: Cell::new(None),
            waker: RefCell::new(None),
        });
        worker.enrol(&card);
        card
    }

    /// Between transactions.
    #[inline]
    pub(super) fn idle(&self) {
        self.query.set(None);
        self.transaction.set(None);
        self.client.enter(State::Idle);
    }

    /// Waiting for a server.
    pub(super) fn waiting(&self) {
        self.client.enter(State::Waiting);
    }

    /// A request is on its way.
    #[inline]
    pub(super) fn busy(&self) {
        if self.query.get().is_none() {
            self.query.set(Some(self.clock.now()));
        }
        if self.transaction.get().is_none() {
            self.transaction.set(Some(self.clock.now()));
        }
        self.client.enter(State::Busy);
    }

    /// A server is on loan; with nothing owed it is the client's turn.
    #[inline]
    pub(super) fn rest(&self, quiet: bool) {
        if quiet {
            self.query.set(None);
        }
        self.client.enter(if quiet { State::IdleInTransaction } else { State::Busy });
    }

    /// No transaction is open any more, though the session keeps its server.
    pub(super) fn transaction_ended(&self) {
        self.transaction.set(None);
    }

    /// What it is doing, and since when.
    pub(crate) fn state(&self) -> (State, Moment) {
        match self.client.state() {
            (State::IdleInTransaction, since) if self.transaction.get().is_none() => (State::Idle, since),
            state => state,
        }
    }

    /// Since when a query, and a transaction, are under way.
    pub(crate) fn under_way(&self) -> (Option<Moment>, Option<Moment>) {
        (self.query.get(), self.transaction.get())
    }

    /// Sends the client away, with these words.
    pub(crate) fn send_away(&self, denial: Denial) {
        self.kill.borrow_mut().get_or_insert_with(|| Box::new(denial));
        self.killed.set(true);
        self.wake();
    }

    /// The session looks around: something may have changed.
    pub(crate) fn wake(&self) {
        if let Some(waker) = self.waker.take() {
            waker.wake();
        }
    }

    /// Whether the client is to be sent away.
    #[inline]
    pub(super) fn kill_pending(&self) -> bool {
        self.killed.get()
    }

    /// Why the client is to be sent away, once.
    #[inline]
    pub(super) fn kill(&self) -> Option<Denial> {
        if self.killed.replace(false) { self.kill.take().map(|denial| *denial) } else { None }
    }

    /// Who is woken by `send_away`.
    #[inline]
    pub(super) fn register(&self, waker: &Waker) {
        let mut held = self.waker.borrow_mut();
        if !held.as_ref().is_some_and(|known| known.will_wake(waker)) {
            *held = Some(waker.clone());
        }
    }
}
