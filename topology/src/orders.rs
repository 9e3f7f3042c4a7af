//! Carries out orders: one queue a node and one for the store, each in order. Every order that names an outcome gets one.

use std::future::ready;
use std::sync::Arc;
use std::time::Duration;

use decision::{Action, Event, FenceReading, NodeId, Obstacle, Position, Promotion, Record, Rule, Term, Timeline};
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio::time::sleep;

use crate::act::{self, ActError, Order, Provided, Remote};
use crate::store::{Store, StoreError, Swap};
use crate::translate::{Names, lsn};
use crate::{Lsn, ReplicationLogin};

/// Orders that may wait at one node or at the store. The decision has at most a few open at a time.
pub(crate) const MAX_ORDERS: usize = 64;

/// Pause between two checks that a server for the next order is open.
const WARM_EVERY: Duration = Duration::from_secs(1);

/// How long each kind of order may take.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Deadlines {
    /// Fence; the decision's own time-out.
    pub(crate) fence: Duration,
    /// What is one or two round trips and a reload.
    pub(crate) setting: Duration,
    /// A write that standbys have to acknowledge.
    pub(crate) write: Duration,
    /// Replay of what was received: a backlog is replayed at some 100 MB/s.
    pub(crate) drain: Duration,
    /// End of recovery.
    pub(crate) promote: Duration,
    /// A checkpoint, in the background.
    pub(crate) checkpoint: Duration,
}

/// Carries out the orders to one node.
pub(crate) struct NodeOrders {
    pub(crate) node: NodeId,
    pub(crate) remote: Remote,
    pub(crate) names: Arc<Names>,
    pub(crate) store: Store,
    pub(crate) replication: Arc<ReplicationLogin>,
    pub(crate) deadlines: Deadlines,
    pub(crate) outcomes: mpsc::Sender<Event>,
    /// Where it stood when it was drained, and for which term's fence.
    pub(crate) drained: Option<(Term, Lsn)>,
}

impl NodeOrders {
    /// Until the driver is gone.
    pub(crate) async fn run(mut self, mut orders: mpsc::Receiver<Action>) {
        let mut background = JoinSet::new();
        loop {
            let action = tokio::select! {
                biased;
                action = orders.recv() => action,
                () = keep_warm(&self.remote) => continue,
            };
            let Some(action) = action else { return };
            while background.try_join_next().is_some() {}
            match action {
                // nobody waits for these, and the node's next orders do not either
                Action::Checkpoint { .. } => drop(background.spawn(checkpoint(self.remote.clone(), self.deadlines))),
                Action::Quarantine { .. } => drop(background.spawn(quarantine(self.remote.clone(), self.deadlines))),
                action => {
                    if let Some(event) = Box::pin(self.carry_out(action)).await {
                        let _ = self.outcomes.send(event).await;
                    }
                }
            }
        }
    }

    async fn carry_out(&mut self, action: Action) -> Option<Event> {
        let node = self.node;
        Some(match action {
            Action::Fence { term, .. } => self.fence(term).await,
            Action::Drain { term, .. } => self.drain(term).await,
            Action::Unfence { term, upstream, .. } => {
                let mark = Provided { mark: Some(term.0), still_at: None };
                match self.repoint(upstream, mark, ready(Ok(()))).await {
                    Ok(()) => Event::Unfenced { node, term },
                    Err(error) => Event::UnfenceFailed { node, term, why: said(&error) },
                }
            }
            Action::Repoint { upstream, marker, claim, .. } => {
                let drained = self.drained.filter(|(term, _)| Some(*term) == marker);
                let mark = marker.map(|term| term.0);
                let provided = Provided { mark, still_at: drained.map(|(_, position)| position) };
                match self.repoint(upstream, provided, self.store.still_claimed(claim)).await {
                    Ok(()) => Event::Repointed { node, upstream },
                    Err(error) => Event::RepointFailed { node, upstream, why: said(&error) },
                }
            }
            Action::Promote(promotion) => self.promote(&promotion).await,
            Action::Quiesce { term, limit, end_transactions, .. } => {
                let limit = Duration::from_millis(limit.0);
                match act::quiesce(&self.remote, limit, end_transactions).await {
                    Ok(position) => Event::Quiesced { node, term, lsn: lsn(position) },
                    Err(error) => Event::QuiesceFailed { node, term, why: said(&error) },
                }
            }
            Action::WriteTerm { rule, .. } => self.write_term(rule).await,
            Action::SetRule { rule, claim, .. } => {
                let row = self.names.rule(&rule);
                let claim = self.store.still_claimed(claim);
                match act::set_rule(&self.remote, row.k, &row.cohort, claim, self.deadlines.setting).await {
                    Ok(()) => Event::RuleSet { node, rule },
                    Err(error) => Event::RuleSetFailed { node, rule, why: said(&error) },
                }
            }
            Action::Barrier { rule, .. } => {
                match act::barrier(&self.remote, &self.names.rule(&rule), self.deadlines.write).await {
                    Ok(_) => Event::BarrierPassed { node, rule },
                    Err(error) => Event::BarrierFailed { node, rule, why: said(&error) },
                }
            }
            // carried out elsewhere
            Action::Checkpoint { .. } | Action::Quarantine { .. } | Action::ProbeNow { .. } => return None,
            Action::Announce(_) | Action::Tell(_) => return None,
            Action::ReadStore | Action::ClaimTerm { .. } | Action::Publish { .. } => return None,
        })
    }

    async fn fence(&self, term: Term) -> Event {
        let node = self.node;
        match act::fence(&self.remote, term.0, self.deadlines.fence).await {
            Ok(evidence) => {
                for what in evidence.escalated {
                    tracing::warn!(node = %self.remote.node, what, "needed more for its fence");
                }
                let reading =
                    FenceReading { in_recovery: true, conninfo_empty: true, receiver_gone: true, marker: Some(term) };
                Event::Fenced { node, term, reading }
            }
            Err(failed) => {
                said(&failed.error);
                Event::FenceFailed { node, term, why: failed.obstacle }
            }
        }
    }

    async fn drain(&mut self, term: Term) -> Event {
        let node = self.node;
        match act::drain(&self.remote, self.deadlines.drain).await {
            Ok(drained) => {
                self.drained = Some((term, drained.position));
                let position = Position {
                    system_identifier: drained.system,
                    row: drained.term.as_ref().map(|row| self.names.row(row)),
                    timeline: Timeline(drained.timeline),
                    lsn: lsn(drained.position),
                };
                Event::Drained { node, term, position }
            }
            Err(error) => Event::DrainFailed { node, term, why: said(&error) },
        }
    }

    async fn repoint(&self, upstream: NodeId, provided: Provided, claim: impl act::Claim) -> Result<(), ActError> {
        let address = self.names.address(upstream);
        act::repoint(&self.remote, address, &self.replication, provided, claim, self.deadlines.setting).await
    }

    async fn promote(&self, promotion: &Promotion) -> Event {
        let (node, term) = (self.node, promotion.term());
        let rule = self.names.rule(promotion.rule());
        let order = Order {
            term: term.0,
            parent: promotion.parent_row().map(|term| term.0),
            rule: act::rule_text(rule.k, &rule.cohort),
        };
        match act::promote(&self.remote, &order, self.deadlines.promote).await {
            Ok(promoted) => {
                let timeline = Timeline(promoted.timeline);
                Event::Promoted { node, term, timeline, next_xid: promoted.next_xid }
            }
            Err(error) => Event::PromoteFailed { node, term, why: said(&error) },
        }
    }

    async fn write_term(&self, rule: Rule) -> Event {
        let node = self.node;
        let limit = self.deadlines.write;
        let written = match act::write_term(&self.remote, &self.names.rule(&rule), limit).await {
            Err(error) if act::is_undefined_table(&error) => match act::prepare_term(&self.remote, limit).await {
                Ok(()) => act::write_term(&self.remote, &self.names.rule(&rule), limit).await,
                Err(error) => Err(error),
            },
            outcome => outcome,
        };
        match written {
            Ok(_) => Event::TermWritten { node, rule },
            Err(error) => Event::TermWriteFailed { node, rule, why: said(&error) },
        }
    }
}

/// Logs it; for the event that says the same.
fn said(error: &ActError) -> String {
    tracing::warn!(node = %error.node, %error, "an order failed");
    error.to_string()
}

async fn keep_warm(remote: &Remote) {
    remote.keep_warm().await;
    sleep(WARM_EVERY).await;
}

async fn checkpoint(remote: Remote, deadlines: Deadlines) {
    match act::checkpoint(&remote, deadlines.checkpoint).await {
        Ok(timeline) => tracing::info!(node = %remote.node, timeline, "checkpoint done"),
        Err(error) => drop(said(&error)),
    }
}

async fn quarantine(remote: Remote, deadlines: Deadlines) {
    match act::quarantine(&remote, deadlines.setting).await {
        Ok(sessions) => tracing::warn!(node = %remote.node, sessions, "quarantined"),
        Err(error) => drop(said(&error)),
    }
}

/// What an order becomes that was not carried out at all.
pub(crate) fn undone(action: Action, why: &str) -> Option<Event> {
    let why = why.to_owned();
    Some(match action {
        Action::Fence { node, term } => Event::FenceFailed { node, term, why: Obstacle::Other(why) },
        Action::Unfence { node, term, .. } => Event::UnfenceFailed { node, term, why },
        Action::Drain { node, term } => Event::DrainFailed { node, term, why },
        Action::Promote(promotion) => Event::PromoteFailed { node: promotion.node(), term: promotion.term(), why },
        Action::Repoint { node, upstream, .. } => Event::RepointFailed { node, upstream, why },
        Action::WriteTerm { node, rule } => Event::TermWriteFailed { node, rule, why },
        Action::SetRule { node, rule, .. } => Event::RuleSetFailed { node, rule, why },
        Action::Barrier { node, rule } => Event::BarrierFailed { node, rule, why },
        Action::Quiesce { node, term, .. } => Event::QuiesceFailed { node, term, why },
        Action::ReadStore | Action::ClaimTerm { .. } | Action::Publish { .. } => Event::StoreLost { why },
        Action::Checkpoint { .. }
        | Action::Quarantine { .. }
        | Action::ProbeNow { .. }
        | Action::Announce(_)
        | Action::Tell(_) => return None,
    })
}

/// Carries out the orders to the store.
pub(crate) async fn store_orders(store: Store, mut orders: mpsc::Receiver<Action>, outcomes: mpsc::Sender<Event>) {
    while let Some(action) = orders.recv().await {
        if let Some(event) = on_store(&store, action).await {
            let _ = outcomes.send(event).await;
        }
    }
}

async fn on_store(store: &Store, action: Action) -> Option<Event> {
    let outcome = match action {
        Action::ReadStore => store.read().await.map(|record| Event::StoreRead { record }),
        Action::ClaimTerm { from, to, handover } => swapped(
            store.claim(from, to, handover).await,
            |record| Event::TermClaimed { record },
            |record| Event::TermRefused { record },
        ),
        Action::Publish { record } => swapped(
            store.publish(record).await,
            |record| Event::Published { revision: record.revision },
            |record| Event::PublishRefused { record },
        ),
        _ => return None,
    };
    Some(outcome.unwrap_or_else(|error| Event::StoreLost { why: error.to_string() }))
}

fn swapped(
    outcome: Result<Swap, StoreError>,
    done: impl FnOnce(Record) -> Event,
    refused: impl FnOnce(Record) -> Event,
) -> Result<Event, StoreError> {
    Ok(match outcome? {
        Swap::Done(record) => done(record),
        Swap::Refused(record) => refused(record),
    })
}
