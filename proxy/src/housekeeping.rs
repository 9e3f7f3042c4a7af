//! What happens every third of a second, away from the path of a query: timeouts, idle servers, the end of the program.

use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;

use crate::clients::State;
use crate::clock::{Moment, TICK};
use crate::config::Limits;
use crate::counts::Ending;
use crate::entry::Entry;
use crate::error::Denial;
use crate::pgbouncer::log::{Level, say};
use crate::pool::Pool;
use crate::serve::Phase;
use crate::session::Card;
use crate::shared::Shared;
use crate::worker::Worker;

/// Keeps house for one worker until the program ends and its last client has gone.
pub(crate) async fn keep(worker: Rc<Worker>, phase: watch::Receiver<Phase>) {
    let mut tick = tokio::time::interval(TICK);
    tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    let keeper = worker.shared.keepers[worker.index].clone();
    loop {
        let is_round = tokio::select! {
            _ = tick.tick() => {
                worker.shared.clock.tick();
                if worker.index == 0 {
                    keep_pools(&worker.shared);
                }
                true
            }
            () = keeper.notified() => {
                worker.cards().iter().for_each(|card| card.wake());
                false
            }
        };
        let now = worker.shared.clock.now();
        let cards = worker.cards();
        let phase = *phase.borrow();
        let in_haste = phase == Phase::Stopping && worker.shared.is_pgbouncer();
        if phase != Phase::Serving && (cards.is_empty() || in_haste) {
            return;
        }
        let limits = worker.shared.limits();
        for card in cards {
            match card.client.take_end() {
                Some(denial) => card.send_away(denial),
                None if is_round => check(&worker.shared, &card, now, phase, &limits),
                None => {}
            }
        }
    }
}

/// Sends a client away whose time is over.
fn check(shared: &Shared, card: &Card, now: Moment, phase: Phase, limits: &Limits) {
    let (state, since) = card.state();
    if state == State::Waiting {
        card.wake(); // its own limits are for it to keep
    }
    let user = card.user.as_deref();
    let over = |own: Option<Duration>, general: Option<Duration>, since: Moment| {
        let limit = own.filter(|own| !own.is_zero()).or(general);
        limit.is_some_and(|limit| !limit.is_zero() && now.since(since) > limit)
    };
    let (query, transaction) = card.under_way();
    let busy = matches!(state, State::Busy | State::Waiting);
    let denial = match (phase, state) {
        (Phase::Stopping, _) => Denial::ShuttingDown,
        (Phase::Draining, State::Idle) if shared.ending().is_none() => Denial::ShuttingDown,
        (Phase::Draining, State::Waiting) if shared.ending() == Some(Ending::WaitForServers) => {
            Denial::ServerShuttingDown
        }
        (_, State::IdleInTransaction)
            if over(user.and_then(|u| u.idle_transaction_timeout), limits.idle_transaction_timeout, since) =>
        {
            Denial::IdleInTransaction
        }
        (_, State::Idle) if over(user.and_then(|u| u.client_idle_timeout), limits.client_idle_timeout, since) => {
            Denial::Idle
        }
        (_, State::Waiting) if over(user.and_then(|u| u.query_timeout), limits.query_timeout, since) => {
            Denial::QueryTimeoutInQueue
        }
        _ if busy
            && query.is_some_and(|begun| over(user.and_then(|u| u.query_timeout), limits.query_timeout, begun)) =>
        {
            Denial::QueryTimeout
        }
        _ if transaction
            .is_some_and(|begun| over(user.and_then(|u| u.transaction_timeout), limits.transaction_timeout, begun)) =>
        {
            Denial::TransactionTimeout
        }
        _ => return,
    };
    card.send_away(denial);
}

/// Looks after the servers of all pools, and makes room where the limits that pools share are reached.
fn keep_pools(shared: &Arc<Shared>) {
    let now = shared.clock.now();
    let entries = shared.entries();
    for host in shared.hosts.take_changed() {
        let pools = entries.iter().flat_map(|entry| entry.pools());
        pools.filter(|(_, pool)| pool.is_at(&host)).for_each(|(_, pool)| pool.retire());
    }
    for entry in &entries {
        if entry.is_paused() {
            entry.pools().iter().for_each(|(_, pool)| pool.close_idle("pause mode"));
        }
        let has_clients = entry.clients.load(std::sync::atomic::Ordering::Relaxed) > 0;
        for (_, pool) in entry.pools() {
            if entry.is_paused() { pool.tidy_paused() } else { pool.tidy(now, has_clients) }
        }
        expire(shared, entry, now);
    }
    make_room(&entries);
    shared.end_period(&entries);
}

/// An entry that was made from the template goes when nobody used it for long.
fn expire(shared: &Arc<Shared>, entry: &Arc<Entry>, now: Moment) {
    let config = shared.config();
    let Some(loaded) = config.dialect.pgbouncer().filter(|_| entry.is_automatic) else { return };
    let unused = now.since(entry.unused_since(now));
    let limit = loaded.settings.autodb_idle_timeout.duration();
    if !limit.is_zero() && unused > limit {
        let name = &entry.name;
        say(
            Level::Warning,
            format_args!("dropping database '{name}' as it does not exist anymore or inactive auto-database"),
        );
        shared.remove_entry(entry);
    }
}

/// A pool that needs a server and may not have it because of a limit that it shares gets the place of one that is idle
/// elsewhere.
fn make_room(entries: &[Arc<Entry>]) {
    let pools: Vec<(Arc<Entry>, Arc<Pool>)> =
        entries.iter().flat_map(|entry| entry.pools().into_iter().map(|(_, pool)| (entry.clone(), pool))).collect();
    for (entry, pool) in &pools {
        let (by_entry, by_user) = pool.is_crowded_out();
        let others = pools.iter().filter(|(_, other)| !Arc::ptr_eq(other, pool));
        if by_entry {
            evict(others.clone().filter(|(of, _)| Arc::ptr_eq(of, entry)).map(|(_, other)| other));
        }
        if by_user {
            evict(others.filter(|(_, other)| other.user == pool.user).map(|(_, other)| other));
        }
        if by_entry || by_user {
            pool.set_terms(pool.terms()); // tries again
        }
    }
}

fn evict<'p>(pools: impl Iterator<Item = &'p Arc<Pool>>) {
    let longest =
        pools.filter_map(|pool| pool.longest_idle().map(|since| (since, pool))).min_by_key(|(since, _)| *since);
    if let Some((_, pool)) = longest {
        pool.evict();
    }
}
