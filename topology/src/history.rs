//! The story of each failover with its durations, for the log and for the drill's report. Nothing is decided by it.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use decision::{Action, Cluster, Contact, Event, NodeId, Term, View};
use tokio::sync::watch;

/// Failovers that are remembered.
pub const MAX_FAILOVERS: usize = 32;

/// One change of primary, with what each of its steps took.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FailoverRecord {
    /// When it was decided that the primary is lost.
    pub detected_at: SystemTime,
    /// From the first sign of trouble to that decision.
    pub detect: Duration,
    /// From there until enough standbys were fenced and drained and the candidate's promotion was ordered.
    pub fence: Duration,
    /// From there until the candidate was out of recovery.
    pub promote: Duration,
    /// From there until its term row was acknowledged, the store had it, and clients were let in.
    pub open: Duration,
    /// How long clients were held.
    pub hold: Duration,
    /// The primary before.
    pub from: Option<Arc<str>>,
    /// The primary after.
    pub to: Arc<str>,
    /// The new term.
    pub term: u64,
}

/// Latest last, at most [`MAX_FAILOVERS`].
pub type Failovers = Arc<[FailoverRecord]>;

/// Watches what goes in and out of the decision.
#[derive(Debug)]
pub(crate) struct History {
    cluster: Cluster,
    name: Arc<str>,
    serving: Option<NodeId>,
    last: Option<NodeId>,
    trouble: Option<Instant>,
    held: Option<Instant>,
    detected: Option<(Instant, SystemTime)>,
    ordered: Option<Instant>,
    promoted: Option<Instant>,
    done: VecDeque<FailoverRecord>,
    published: watch::Sender<Failovers>,
}

impl History {
    pub(crate) fn new(name: Arc<str>, cluster: Cluster, published: watch::Sender<Failovers>) -> Self {
        Self {
            cluster,
            name,
            serving: None,
            last: None,
            trouble: None,
            held: None,
            detected: None,
            ordered: None,
            promoted: None,
            done: VecDeque::new(),
            published,
        }
    }

    pub(crate) fn event(&mut self, now: Instant, event: &Event) {
        match event {
            Event::ConnectionLost { node, .. } if Some(*node) == self.last => {
                self.trouble.get_or_insert(now);
            }
            Event::Probed { node, contact } if Some(*node) == self.last => match contact {
                Contact::Reached(_) if self.serving.is_some() => self.trouble = None,
                Contact::Reached(_) => {}
                _ => {
                    self.trouble.get_or_insert(now);
                }
            },
            Event::Promoted { node, term, .. } => {
                self.promoted = Some(now);
                let took = ms(self.ordered, now);
                tracing::info!(cluster = %self.name, node = self.cluster.name(*node), term = term.0, ms = took, "promoted");
            }
            Event::Fenced { node, term, .. } => {
                let took = ms(self.detected.map(|(at, _)| at), now);
                tracing::info!(cluster = %self.name, node = self.cluster.name(*node), term = term.0, ms = took, "fenced");
            }
            Event::FenceFailed { node, term, why } => tracing::warn!(
                cluster = %self.name, node = self.cluster.name(*node), term = term.0, why = ?why, "not fenced"
            ),
            Event::TermWritten { node, rule } => tracing::info!(
                cluster = %self.name, node = self.cluster.name(*node), term = rule.term.0, "term row acknowledged"
            ),
            Event::StoreLost { why } => tracing::error!(cluster = %self.name, why, "the store does not serve"),
            _ => {}
        }
    }

    pub(crate) fn action(&mut self, now: Instant, action: &Action) {
        match action {
            Action::ClaimTerm { to, .. } => {
                // a later attempt after a failed one belongs to the same failover
                self.detected.get_or_insert((now, SystemTime::now()));
                let took = ms(self.trouble, now);
                tracing::warn!(cluster = %self.name, term = to.0, ms = took, "the primary is lost: claiming a term");
            }
            Action::Promote(promotion) => {
                self.ordered = Some(now);
                let took = ms(self.detected.map(|(at, _)| at), now);
                let node = self.cluster.name(promotion.node());
                tracing::info!(cluster = %self.name, node, term = promotion.term().0, ms = took, "promoting");
            }
            Action::Announce(view) => self.announced(now, view),
            _ => {}
        }
    }

    fn announced(&mut self, now: Instant, view: &View) {
        match (self.serving, view.primary) {
            (Some(_), None) => {
                self.held = Some(now);
                self.trouble.get_or_insert(now);
                let why = view.reason.as_ref().map(ToString::to_string).unwrap_or_default();
                tracing::warn!(cluster = %self.name, epoch = view.epoch, why, "clients are held");
            }
            (None, Some(node)) => self.opened(now, node, view),
            _ => {}
        }
        self.serving = view.primary;
        self.last = view.primary.or(self.last);
    }

    fn opened(&mut self, now: Instant, node: NodeId, view: &View) {
        let hold = since(self.held.take(), now);
        let name = self.cluster.name(node);
        let hold_ms = hold.as_millis();
        tracing::info!(cluster = %self.name, node = name, epoch = view.epoch, term = view.term.0, hold_ms, "open");
        let promotion = (self.detected.take(), self.ordered.take(), self.promoted.take());
        if let (Some((detected, detected_at)), Some(ordered), Some(promoted)) = promotion {
            let record = FailoverRecord {
                detected_at,
                detect: since(self.trouble, detected),
                fence: since(Some(detected), ordered),
                promote: since(Some(ordered), promoted),
                open: since(Some(promoted), now),
                hold,
                from: self.last.map(|node| self.cluster.name(node).into()),
                to: name.into(),
                term: view.term.0,
            };
            self.remember(record, view.term);
        }
        self.trouble = None;
    }

    fn remember(&mut self, record: FailoverRecord, term: Term) {
        tracing::warn!(
            cluster = %self.name, from = record.from.as_deref(), to = &*record.to, term = term.0,
            detect_ms = record.detect.as_millis(), fence_ms = record.fence.as_millis(),
            promote_ms = record.promote.as_millis(), open_ms = record.open.as_millis(),
            hold_ms = record.hold.as_millis(), "failover done"
        );
        if self.done.len() == MAX_FAILOVERS {
            self.done.pop_front();
        }
        self.done.push_back(record);
        self.published.send_replace(self.done.iter().cloned().collect());
    }
}

fn since(from: Option<Instant>, to: Instant) -> Duration {
    from.map_or(Duration::ZERO, |from| to.saturating_duration_since(from))
}

fn ms(from: Option<Instant>, to: Instant) -> u128 {
    since(from, to).as_millis()
}
