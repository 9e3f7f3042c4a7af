//! What housekeeping may know of a session, and the one thing that it may do: send the client away.

use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::sync::Arc;
use std::task::Waker;

use crate::clock::{Clock, Moment};
use crate::error::Denial;

/// What a session is doing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum State {
    /// Between transactions.
    Idle,
    /// Waiting for a server.
    Waiting,
    /// A server works for it.
    Busy,
    /// In a transaction, and it is the client's turn.
    IdleInTransaction,
}

/// One session, as housekeeping sees it. Lives on the session's worker.
#[derive(Debug)]
pub(crate) struct Card {
    clock: Arc<Clock>,
    state: Cell<State>,
    since: Cell<Moment>,
    kill: RefCell<Option<Denial>>,
    killed: Cell<bool>,
    waker: RefCell<Option<Waker>>,
}

impl Card {
    pub(crate) fn new(clock: Arc<Clock>) -> Rc<Self> {
        let since = Cell::new(clock.now());
        Rc::new(Self {
            clock,
            state: Cell::new(State::Idle),
            since,
            kill: RefCell::new(None),
            killed: Cell::new(false),
            waker: RefCell::new(None),
        })
    }

    #[inline]
    fn enter(&self, state: State) {
        if self.state.get() != state {
            self.state.set(state);
            self.since.set(self.clock.now());
        }
    }

    /// Between transactions.
    #[inline]
    pub(super) fn idle(&self) {
        self.enter(State::Idle);
    }

    /// Waiting for a server.
    pub(super) fn waiting(&self) {
        self.enter(State::Waiting);
    }

    /// A request is on its way.
    #[inline]
    pub(super) fn busy(&self) {
        self.enter(State::Busy);
    }

    /// A server is on loan; with nothing owed it is the client's turn.
    #[inline]
    pub(super) fn rest(&self, quiet: bool) {
        self.enter(if quiet { State::IdleInTransaction } else { State::Busy });
    }

    /// What it is doing, and since when.
    pub(crate) fn state(&self) -> (State, Moment) {
        (self.state.get(), self.since.get())
    }

    /// Sends the client away, with these words.
    pub(crate) fn send_away(&self, denial: Denial) {
        self.kill.replace(Some(denial));
        self.killed.set(true);
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
        if self.killed.replace(false) { self.kill.take() } else { None }
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
