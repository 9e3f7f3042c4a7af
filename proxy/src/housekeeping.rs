//! What happens every third of a second, away from the path of a query: timeouts, idle servers, the end of the program.

use std::rc::Rc;
use std::time::Duration;

use tokio::sync::watch;

use crate::clock::{Moment, TICK};
use crate::config::Limits;
use crate::error::Denial;
use crate::serve::Phase;
use crate::session::{Card, State};
use crate::worker::Worker;

/// Keeps house for one worker until the program ends and its last client has gone.
pub(crate) async fn keep(worker: Rc<Worker>, phase: watch::Receiver<Phase>) {
    let mut tick = tokio::time::interval(TICK);
    tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        tick.tick().await;
        worker.shared.clock.tick();
        let now = worker.shared.clock.now();
        if worker.index == 0 {
            for entry in worker.shared.entries() {
                for (_, pool) in entry.pools() {
                    pool.tidy(now);
                }
            }
        }
        let cards = worker.cards();
        let phase = *phase.borrow();
        if phase != Phase::Serving && cards.is_empty() {
            return;
        }
        let limits = worker.shared.limits();
        for card in cards {
            check(&card, now, phase, &limits);
        }
    }
}

/// Sends a client away whose time is over.
fn check(card: &Card, now: Moment, phase: Phase, limits: &Limits) {
    let (state, since) = card.state();
    let over = |limit: Option<Duration>| limit.is_some_and(|limit| !limit.is_zero() && now.since(since) > limit);
    let denial = match (phase, state) {
        (Phase::Stopping, _) | (Phase::Draining, State::Idle) => Denial::ShuttingDown,
        (_, State::IdleInTransaction) if over(limits.idle_transaction_timeout) => Denial::IdleInTransaction,
        (_, State::Idle) if over(limits.client_idle_timeout) => Denial::Idle,
        _ => return,
    };
    card.send_away(denial);
}
