//! One worker: a thread with a runtime of its own, its listeners, and what its sessions share without locks.

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::rc::{Rc, Weak};
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;

use crate::listener::Listeners;
use crate::routing::{Class, Classifier, ClassifierLimits};
use crate::session::{Card, Interned, Statement, questions, serve_client};
use crate::settings::Reported;
use crate::shared::Shared;
use crate::wire::SCRATCH_BYTES;
use crate::{housekeeping, serve::Phase};

/// Between two looks at whether the last client has gone.
const DRAINED_POLL: Duration = Duration::from_millis(100);
/// Different sets of parameters that are remembered, so that clients share them.
const MAX_TOLD: usize = 8;

/// What the sessions of one worker share.
pub(crate) struct Worker {
    /// Its number, from 0.
    pub(crate) index: usize,
    /// What all workers share.
    pub(crate) shared: Arc<Shared>,
    /// The buffer that each read goes to.
    pub(crate) scratch: RefCell<Box<[u8]>>,
    /// A longer Query is not read as a whole.
    pub(crate) max_query_bytes: usize,
    /// What a server is asked in front of a commit; the second one is strict.
    pub(crate) questions: [Statement; 2],
    classifier: RefCell<Classifier>,
    interned: RefCell<Interned>,
    cards: RefCell<Vec<Weak<Card>>>,
    /// What clients were told of the parameters lately.
    told: RefCell<VecDeque<Reported>>,
    unnamed: Cell<u64>,
}

impl Worker {
    pub(crate) fn new(index: usize, shared: Arc<Shared>) -> Rc<Self> {
        let limits = shared.limits();
        let limits = ClassifierLimits {
            entries: limits.statement_cache_entries,
            bytes: limits.statement_cache_bytes.0,
            statement_bytes: limits.max_query_bytes.0,
        };
        Rc::new(Self {
            index,
            scratch: RefCell::new(vec![0; SCRATCH_BYTES].into_boxed_slice()),
            max_query_bytes: limits.statement_bytes,
            questions: questions(),
            classifier: RefCell::new(Classifier::new(limits)),
            interned: RefCell::default(),
            cards: RefCell::default(),
            told: RefCell::default(),
            // Numbers of one worker never meet those of another, because servers may move.
            unnamed: Cell::new((index as u64) << 48),
            shared,
        })
    }

    /// What a statement is.
    #[inline]
    pub(crate) fn classify(&self, sql: &[u8]) -> Class {
        self.classifier.borrow_mut().classify(sql)
    }

    /// The statement with this body, shared by all clients of the worker.
    pub(crate) fn intern(&self, body: &[u8], class: Class) -> Arc<Statement> {
        self.interned.borrow_mut().get(body, || self.shared.next_statement(), || class)
    }

    /// Clients that are told the same at their login hold it once.
    pub(crate) fn share(&self, reported: &mut Reported) {
        let mut told = self.told.borrow_mut();
        told.iter_mut().for_each(|known| reported.unify(known));
        if !told.iter().any(|known| known.is(reported)) {
            told.truncate(MAX_TOLD - 1);
            told.push_front(reported.clone());
        }
    }

    /// The next to prepare these texts get statements of their own.
    pub(crate) fn forget<'s>(&self, statements: impl Iterator<Item = &'s Arc<Statement>>) {
        let mut interned = self.interned.borrow_mut();
        statements.for_each(|statement| interned.forget(statement));
    }

    /// A number for an unnamed statement.
    #[inline]
    pub(crate) fn next_unnamed(&self) -> u64 {
        let number = self.unnamed.get() + 1;
        self.unnamed.set(number);
        number
    }

    /// A session lives from now on.
    pub(crate) fn enrol(&self, card: &Rc<Card>) {
        self.cards.borrow_mut().push(Rc::downgrade(card));
    }

    /// The sessions that live.
    pub(crate) fn cards(&self) -> Vec<Rc<Card>> {
        let mut cards = self.cards.borrow_mut();
        cards.retain(|card| card.strong_count() > 0);
        cards.iter().filter_map(Weak::upgrade).collect()
    }
}

/// Serves clients until the phase says stop and the last has gone.
pub(crate) async fn work(worker: Rc<Worker>, listeners: Listeners, mut phase: watch::Receiver<Phase>) {
    let keeper = tokio::task::spawn_local(housekeeping::keep(worker.clone(), phase.clone()));
    let mut listeners = listeners;
    tokio::select! {
        biased;
        _ = phase.wait_for(|phase| *phase != Phase::Serving) => {}
        () = let_in(&worker, &listeners) => {}
    }
    // PgBouncer's console is reached over the Unix socket to the end.
    let stays = worker.shared.is_pgbouncer() && !worker.shared.handover.is_over();
    if stays && listeners.keep_unix_alone() {
        tokio::select! {
            biased;
            _ = phase.wait_for(|phase| *phase == Phase::Stopping) => {}
            () = drained(&worker) => {}
            () = let_in(&worker, &listeners) => {}
        }
    }
    drop(listeners);
    let _ = keeper.await;
}

/// Serves whoever comes; never ends.
async fn let_in(worker: &Rc<Worker>, listeners: &Listeners) {
    loop {
        listeners.follow(worker.shared.tcp_options());
        let (stream, peer) = listeners.accept().await;
        tokio::task::spawn_local(serve_client(worker.clone(), stream, peer));
    }
}

/// Waits until nobody is served any more.
async fn drained(worker: &Worker) {
    loop {
        tokio::time::sleep(DRAINED_POLL).await;
        if worker.shared.has_ended() {
            return;
        }
    }
}
