//! A pool's servers come and go here: opened for those who wait and up to the minimum, checked, closed when their time is over.

use std::collections::VecDeque;
use std::sync::{Arc, Weak};
use std::task::Waker;
use std::time::{Duration, Instant};

use bytes::BytesMut;
use pgwire::frontend::write_query;
use pgwire::report::View;

use super::{Alone, Failure, Opening, Pool, RETRY, Server, ServerState, Slot, State, Terms, runtime};
use crate::clock::Moment;
use crate::pgbouncer::log::{Level, say};

/// Between two looks whether there is a place for a server of one client alone.
const PLACE_POLL: Duration = Duration::from_millis(20);
/// Time for the check of a server.
const CHECK_TIMEOUT: Duration = Duration::from_secs(15);

impl Pool {
    /// Starts checks and connection attempts for those who wait, within the limits.
    pub(super) fn open_if_needed(self: &Arc<Self>) {
        let Some(runtime) = runtime() else { return };
        let mut state = self.lock();
        // Looking through the queue is for when something can be done for it.
        if state.is_full() || state.waiters.is_empty() {
            return;
        }
        state.waiters.tidy();
        if let Some(server) = self.to_check(&mut state) {
            server.control.enter(ServerState::Tested);
            runtime.spawn(self.clone().check(server));
            return;
        }
        while self.may_open(&state, Instant::now()) {
            if !self.begin_opening(&mut state) {
                return;
            }
            runtime.spawn(self.clone().open());
        }
    }

    /// A server with these startup parameters for one client alone; an idle one is closed for it if the pool is full.
    pub(crate) async fn open_alone(
        self: &Arc<Self>,
        startup: Vec<(String, String)>,
        epoch: u64,
    ) -> Result<Alone, Failure> {
        let terms = self.terms();
        loop {
            let has_place = {
                let mut state = self.lock();
                state.taken < state.terms.most() && self.begin_opening(&mut state)
            };
            if has_place {
                break;
            }
            self.evict();
            tokio::time::sleep(PLACE_POLL).await;
        }
        let slot = Slot { pool: Arc::downgrade(self), control: None };
        let opening = Opening(self.clone());
        let opened = self.opener.open_with(epoch, &terms, &startup).await?;
        drop(opening);
        let alone = Alone::new(opened, slot, &self.opener.clock);
        self.lock().controls.push(Arc::downgrade(&alone.control));
        Ok(alone)
    }

    /// Whether one more attempt may begin for those who wait.
    fn may_open(&self, state: &State, now: Instant) -> bool {
        let terms = &state.terms;
        let Some(waiter) = state.waiters.front() else { return false };
        if state.waiters.len() <= state.opening || state.opening >= terms.attempts {
            return false;
        }
        if state.retry_at.is_some_and(|at| now < at) {
            return false;
        }
        if state.taken < terms.size {
            return true;
        }
        let waited = !terms.reserve_after.is_zero() && now.duration_since(waiter.since) >= terms.reserve_after;
        if state.taken < terms.most() && waited {
            say(Level::Warning, format_args!("{}/{}: taking connection from reserve_pool", self.database, self.user));
            return true;
        }
        false
    }

    /// Takes a place for one more server; `false` if the limits that are shared with other pools do not allow it.
    fn begin_opening(&self, state: &mut State) -> bool {
        let [entry, user] = &self.budgets;
        if !entry.take() {
            return false;
        }
        if !user.take() {
            entry.give_back();
            return false;
        }
        state.taken += 1;
        state.opening += 1;
        true
    }

    /// A session waits that could have a server, but for the limits that are shared with other pools: of the entry, of the user.
    pub(crate) fn is_crowded_out(&self) -> (bool, bool) {
        let state = self.lock();
        let [entry, user] = &self.budgets;
        let wants = self.may_open(&state, Instant::now());
        (wants && !entry.has_room(), wants && !user.has_room())
    }

    /// How long its longest idle server has been idle.
    pub(crate) fn longest_idle(&self) -> Option<Moment> {
        self.lock().idle.iter().flatten().map(|server| server.idle_since).min()
    }

    /// Closes the server that is idle for longest, to make room in a limit.
    pub(crate) fn evict(&self) {
        let mut state = self.lock();
        let longest = |idle: &VecDeque<Box<Server>>| idle.front().map(|server| server.idle_since);
        let with_oldest = state.idle.iter_mut().filter(|idle| !idle.is_empty()).min_by_key(|idle| longest(idle));
        let server = with_oldest.and_then(VecDeque::pop_front);
        drop(state);
        if let Some(server) = server {
            server.control.closes("evicted");
        }
    }

    /// An idle server that has to be checked before it is lent.
    fn to_check(&self, state: &mut State) -> Option<Box<Server>> {
        state.terms.check.as_ref()?;
        let from_front = state.terms.round_robin;
        state.idle.iter_mut().find_map(|idle| if from_front { idle.pop_front() } else { idle.pop_back() })
    }

    /// Asks a server the check query; it goes to whoever waits, or is closed.
    async fn check(self: Arc<Self>, server: Box<Server>) {
        let epoch = self.lock().epoch;
        let Some(mut server) = self.fit(server, epoch) else { return self.open_if_needed() };
        if let Some((_, query)) = self.terms().check.clone() {
            let mut out = BytesMut::new();
            if write_query(&mut out, query.as_bytes()).is_err() {
                return;
            }
            let asked = tokio::time::timeout(CHECK_TIMEOUT, server.round_trip(&out, 1)).await;
            if !matches!(asked, Ok(Ok(answers)) if answers.failed.is_none()) {
                server.control.closes("test query failed");
                return;
            }
        }
        server.control.enter(ServerState::Idle);
        self.keep(server);
    }

    /// One connection attempt, repeated as long as somebody waits for it.
    pub(super) async fn open(self: Arc<Self>) {
        let slot = Slot { pool: Arc::downgrade(&self), control: None };
        let opening = Opening(self.clone());
        let mut wait = RETRY.0;
        loop {
            let (epoch, terms) = {
                let state = self.lock();
                (state.epoch, state.terms.clone())
            };
            let opened = match self.opener.open(epoch, &terms).await {
                Ok(opened) => {
                    let mut server = Server::new(opened, &self.opener.clock);
                    let surveyed = self.opener.survey(&mut server).await;
                    if let Some(query) = &terms.connect_query {
                        run_connect_query(&mut server, query).await;
                    }
                    surveyed.map(|()| server)
                }
                Err(failure) => Err(failure),
            };
            let failure = match opened {
                Ok(server) => return self.take_in(server, slot, opening),
                Err(failure) => failure,
            };
            self.opener.failed(&failure);
            self.note_failure(&failure, &terms);
            if failure.is_final(terms.is_pgbouncer) {
                return self.fail_waiters(&failure);
            }
            if terms.retry.is_some() {
                return; // upkeep begins the next one
            }
            tokio::time::sleep(wait).await;
            wait = (wait * 2).min(RETRY.1);
            if !self.somebody_waits() {
                return;
            }
        }
    }

    fn note_failure(&self, failure: &Failure, terms: &Terms) {
        let mut state = self.lock();
        state.failure = Some(failure.clone());
        if let Some(retry) = terms.retry {
            state.retry_at = Some(Instant::now() + retry);
        }
    }

    fn take_in(self: &Arc<Self>, server: Server, mut slot: Slot, opening: Opening) {
        drop(opening);
        slot.control = Some(server.control.clone());
        {
            let mut state = self.lock();
            state.controls.push(Arc::downgrade(&server.control));
            state.failure = None;
            state.retry_at = None;
        }
        self.give_back(Box::new(server.placed(slot)));
        self.open_if_needed();
    }

    fn somebody_waits(&self) -> bool {
        let mut state = self.lock();
        state.waiters.tidy();
        !state.waiters.is_empty()
    }

    /// Housekeeping: closes idle servers that are too old, idle too long, of an older epoch, or gone; opens what is missing.
    pub(crate) fn tidy(self: &Arc<Self>, now: Moment, has_clients: bool) {
        let (idle, epoch, terms) = {
            let mut state = self.lock();
            let idle: Vec<VecDeque<Box<Server>>> = state.idle.iter_mut().map(std::mem::take).collect();
            state.controls.retain(|control| Weak::strong_count(control) > 0);
            state.waiters.tidy();
            (idle, state.epoch, state.terms.clone())
        };
        let mut spare = self.lock().taken.saturating_sub(terms.min_size);
        for server in idle.into_iter().flatten() {
            let too_long = now.since(server.idle_since) >= terms.idle_timeout;
            if too_long && spare > 0 {
                spare -= 1;
                server.control.closes("server idle timeout");
                continue;
            }
            if terms.check.as_ref().is_some_and(|(delay, _)| now.since(server.idle_since) >= *delay) {
                server.control.enter(ServerState::Used);
            }
            match self.fit(server, epoch) {
                Some(server) => self.keep(server),
                None => self.opener.watch.suspect(self.opener.node),
            }
        }
        self.open_if_needed();
        if has_clients || terms.min_without_clients {
            self.open_to_minimum();
        }
    }

    /// Housekeeping while nothing is lent.
    pub(crate) fn tidy_paused(&self) {
        self.lock().controls.retain(|control| Weak::strong_count(control) > 0);
    }

    /// Opens one more server if there are fewer than are to be kept.
    fn open_to_minimum(self: &Arc<Self>) {
        let Some(runtime) = runtime() else { return };
        let mut state = self.lock();
        let waits = state.retry_at.is_some_and(|at| Instant::now() < at);
        if state.taken < state.terms.min_size && state.opening == 0 && !waits && self.begin_opening(&mut state) {
            runtime.spawn(self.clone().open());
        }
    }

    /// How long the first in the queue has waited.
    pub(crate) fn longest_wait(&self) -> Duration {
        self.lock().waiters.front().map_or(Duration::ZERO, |waiter| waiter.since.elapsed())
    }

    /// Everybody who waits is told this.
    fn fail_waiters(&self, failure: &Failure) {
        let told = self.lock().waiters.fail(failure);
        told.into_iter().for_each(Waker::wake);
    }
}

/// What is run on a new server; an error is logged, and the server is good all the same.
async fn run_connect_query(server: &mut Server, query: &str) {
    let mut out = BytesMut::new();
    if write_query(&mut out, query.as_bytes()).is_err() {
        return;
    }
    let done = tokio::time::timeout(CHECK_TIMEOUT, server.round_trip(&out, 1)).await;
    if let Ok(Ok(answers)) = done
        && let Some(body) = answers.failed
    {
        let text = View::new(&body).message().into_owned();
        say(Level::Error, format_args!("{} S: error while executing exec_on_query: {text}", server.control));
    }
}
