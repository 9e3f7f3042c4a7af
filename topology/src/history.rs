//! The story of each failover with its durations, for the log, for `pgsteady status` and for the drill's report. Nothing is
//! decided by it.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant, SystemTime};

use decision::{Action, Cluster, Contact, Event, Lsn, NodeId, View};
use serde::{Deserialize, Serialize};
use tokio::sync::watch;

use crate::records::Records;

/// Failovers that are remembered.
pub const MAX_FAILOVERS: usize = 32;
/// Fences of one failover that are remembered.
const MAX_FENCES: usize = 16;

/// One change of primary, with what each of its steps took.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct FailoverRecord {
    /// An operator asked for it.
    pub planned: bool,
    /// When it was decided that the primary is lost.
    #[serde(with = "moment", rename = "detected_at_ms")]
    pub detected_at: SystemTime,
    /// From the first sign of trouble to that decision.
    #[serde(with = "length", rename = "detect_us")]
    pub detect: Duration,
    /// From there until enough standbys were fenced and drained and the candidate's promotion was ordered.
    #[serde(with = "length", rename = "fence_us")]
    pub fence: Duration,
    /// From there until the candidate was out of recovery.
    #[serde(with = "length", rename = "promote_us")]
    pub promote: Duration,
    /// From there until its term row was acknowledged, the store had it, and clients were let in.
    #[serde(with = "length", rename = "open_us")]
    pub open: Duration,
    /// How long clients were held.
    #[serde(with = "length", rename = "hold_us")]
    pub hold: Duration,
    /// Clients that had to wait.
    pub held: u64,
    /// Why the primary was given up, or who wanted another.
    pub why: String,
    /// The standbys that were fenced, and how far each had come.
    pub fenced: Vec<Fence>,
    /// The primary before.
    pub from: Option<Arc<str>>,
    /// The primary after.
    pub to: Arc<str>,
    /// Why it was chosen.
    pub chosen: String,
    /// The new term.
    pub term: u64,
}

/// A standby that was fenced and drained.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Fence {
    /// Which.
    pub node: Arc<str>,
    /// How far its WAL went.
    pub position: String,
}

/// Milliseconds since 1970.
mod moment {
    use super::{Duration, SystemTime};
    use serde::{Deserialize, Deserializer, Serializer};

    pub(super) fn serialize<S: Serializer>(time: &SystemTime, to: S) -> Result<S::Ok, S::Error> {
        let since = time.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        to.serialize_u64(u64::try_from(since.as_millis()).unwrap_or(u64::MAX))
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<SystemTime, D::Error> {
        let since = Duration::from_millis(u64::deserialize(from)?);
        SystemTime::UNIX_EPOCH.checked_add(since).ok_or_else(|| serde::de::Error::custom("not a time"))
    }
}

/// Microseconds.
mod length {
    use super::Duration;
    use serde::{Deserialize, Deserializer, Serializer};

    pub(super) fn serialize<S: Serializer>(length: &Duration, to: S) -> Result<S::Ok, S::Error> {
        to.serialize_u64(u64::try_from(length.as_micros()).unwrap_or(u64::MAX))
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<Duration, D::Error> {
        u64::deserialize(from).map(Duration::from_micros)
    }
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
    /// What was last wrong with the primary.
    sign: &'static str,
    under_way: Option<UnderWay>,
    /// When clients began to be held, and how many ever were by then.
    held: Option<(Instant, u64)>,
    /// Clients that were ever held.
    held_ever: Arc<AtomicU64>,
    done: VecDeque<FailoverRecord>,
    records: Option<Records>,
    published: watch::Sender<Failovers>,
}

/// A failover that is not through.
#[derive(Debug)]
struct UnderWay {
    planned: bool,
    detected: (Instant, SystemTime),
    why: String,
    drained: Vec<(NodeId, Lsn)>,
    ordered: Option<Instant>,
    promoted: Option<Instant>,
}

impl History {
    pub(crate) fn new(
        name: Arc<str>,
        cluster: Cluster,
        records: Option<Records>,
        held_ever: Arc<AtomicU64>,
    ) -> (Self, watch::Receiver<Failovers>) {
        let done: VecDeque<_> = records.as_ref().map(Records::read).unwrap_or_default().into();
        let (published, receiver) = watch::channel(done.iter().cloned().collect());
        let history = Self {
            cluster,
            name,
            serving: None,
            last: None,
            trouble: None,
            sign: "it was not what the store says",
            under_way: None,
            held: None,
            held_ever,
            done,
            records,
            published,
        };
        (history, receiver)
    }

    pub(crate) fn event(&mut self, now: Instant, event: &Event) {
        match event {
            Event::ConnectionLost { node, .. } if Some(*node) == self.last => {
                self.trouble.get_or_insert(now);
            }
            Event::Probed { node, contact } if Some(*node) == self.last => match contact {
                Contact::Reached(_) if self.serving.is_some() => self.trouble = None,
                Contact::Reached(_) => self.sign = "it was not what the store says",
                other => {
                    self.trouble.get_or_insert(now);
                    self.sign = sign(other);
                }
            },
            Event::Drained { node, position, .. } => {
                let Some(under_way) = &mut self.under_way else { return };
                under_way.drained.retain(|(of, _)| of != node);
                if under_way.drained.len() < MAX_FENCES {
                    under_way.drained.push((*node, position.lsn));
                }
            }
            Event::Promoted { node, term, .. } => {
                let took = ms(self.under_way.as_ref().and_then(|under_way| under_way.ordered), now);
                if let Some(under_way) = &mut self.under_way {
                    under_way.promoted = Some(now);
                }
                tracing::info!(cluster = %self.name, node = self.cluster.name(*node), term = term.0, ms = took, "promoted");
            }
            other => self.say(now, other),
        }
    }

    fn say(&self, now: Instant, event: &Event) {
        match event {
            Event::Fenced { node, term, .. } => {
                let took = ms(self.under_way.as_ref().map(|under_way| under_way.detected.0), now);
                tracing::info!(cluster = %self.name, node = self.cluster.name(*node), term = term.0, ms = took, "fenced");
            }
            Event::FenceFailed { node, term, why } => tracing::warn!(
                cluster = %self.name, node = self.cluster.name(*node), term = term.0, why = ?why, "not fenced"
            ),
            Event::Quiesced { node, lsn, .. } => tracing::info!(
                cluster = %self.name, node = self.cluster.name(*node), %lsn, "no transaction is open"
            ),
            Event::TermWritten { node, rule } => tracing::info!(
                cluster = %self.name, node = self.cluster.name(*node), term = rule.term.0, "term row acknowledged"
            ),
            Event::StoreLost { why } => tracing::error!(cluster = %self.name, why, "the store does not serve"),
            Event::SwitchoverAsked(plan) => {
                let to = plan.to.map(|to| self.cluster.name(to));
                tracing::info!(cluster = %self.name, to, "an operator asks for a switchover");
            }
            _ => {}
        }
    }

    pub(crate) fn action(&mut self, now: Instant, action: &Action) {
        match action {
            Action::ClaimTerm { to, handover: true, .. } => {
                tracing::info!(cluster = %self.name, term = to.0, "switching over: claiming a term");
                self.begin(now, true, "an operator asked for it".to_owned());
            }
            // with a primary that serves it is a claim for the store's sake
            Action::ClaimTerm { to, .. } if self.serving.is_none() => {
                let took = ms(self.trouble, now);
                tracing::warn!(cluster = %self.name, term = to.0, ms = took, "the primary is lost: claiming a term");
                // a later attempt after a failed one belongs to the same failover
                if self.under_way.is_none() {
                    self.begin(now, false, self.sign.to_owned());
                }
            }
            Action::Promote(promotion) => {
                let took = ms(self.under_way.as_ref().map(|under_way| under_way.detected.0), now);
                if let Some(under_way) = &mut self.under_way {
                    under_way.ordered = Some(now);
                }
                let node = self.cluster.name(promotion.node());
                tracing::info!(cluster = %self.name, node, term = promotion.term().0, ms = took, "promoting");
            }
            Action::Announce(view) => self.announced(now, view),
            _ => {}
        }
    }

    fn begin(&mut self, now: Instant, planned: bool, why: String) {
        let detected = (now, SystemTime::now());
        self.under_way = Some(UnderWay { planned, detected, why, drained: Vec::new(), ordered: None, promoted: None });
    }

    fn announced(&mut self, now: Instant, view: &View) {
        let why = || view.reason.as_ref().map(|reason| reason.what.clone()).unwrap_or_default();
        match (self.serving, view.primary) {
            (Some(_), None) => {
                self.held = Some((now, self.held_ever.load(Ordering::Relaxed)));
                self.trouble.get_or_insert(now);
                tracing::warn!(cluster = %self.name, epoch = view.epoch, why = why(), "clients are held");
            }
            (None, Some(node)) => self.opened(now, node, view),
            _ => {}
        }
        self.serving = view.primary;
        self.last = view.primary.or(self.last);
    }

    fn opened(&mut self, now: Instant, node: NodeId, view: &View) {
        let (since_when, before) = self.held.take().unzip();
        let hold = since(since_when, now);
        let name = self.cluster.name(node);
        let hold_ms = hold.as_millis();
        tracing::info!(cluster = %self.name, node = name, epoch = view.epoch, term = view.term.0, hold_ms, "open");
        if let Some(under_way) = self.under_way.take()
            && let (Some(ordered), Some(promoted)) = (under_way.ordered, under_way.promoted)
        {
            let (detected, detected_at) = under_way.detected;
            let held = before.map_or(0, |before| self.held_ever.load(Ordering::Relaxed).saturating_sub(before));
            let fence = |(node, lsn): &(NodeId, Lsn)| Fence {
                node: self.cluster.name(*node).into(),
                position: lsn.to_string(),
            };
            self.remember(FailoverRecord {
                planned: under_way.planned,
                detected_at,
                detect: if under_way.planned { Duration::ZERO } else { since(self.trouble, detected) },
                fence: since(Some(detected), ordered),
                promote: since(Some(ordered), promoted),
                open: since(Some(promoted), now),
                hold,
                held,
                chosen: self.why_chosen(node, &under_way),
                why: under_way.why,
                fenced: under_way.drained.iter().map(fence).collect(),
                from: self.last.map(|node| self.cluster.name(node).into()),
                to: name.into(),
                term: view.term.0,
            });
        }
        self.trouble = None;
    }

    /// In the words of the choice itself: position, then priority, zone and name.
    fn why_chosen(&self, node: NodeId, under_way: &UnderWay) -> String {
        let of = |node| under_way.drained.iter().find(|(other, _)| *other == node).map(|(_, lsn)| *lsn);
        let Some(position) = of(node) else { return "it was promoted before and only had to be opened".to_owned() };
        let (mut behind, mut equal) = (Vec::new(), Vec::new());
        for (other, lsn) in under_way.drained.iter().filter(|(other, _)| *other != node) {
            let list = if *lsn < position { &mut behind } else { &mut equal };
            list.push(self.cluster.name(*other));
        }
        let fenced = under_way.drained.len();
        match (behind.is_empty(), equal.is_empty()) {
            (true, true) => format!("the only one fenced, at {position}"),
            (false, true) => format!("the furthest of {fenced} fenced, at {position}; {} less far", behind.join(", ")),
            (_, false) => {
                format!("at {position}, as far as {}: by wish, priority, zone or name", equal.join(", "))
            }
        }
    }

    fn remember(&mut self, record: FailoverRecord) {
        let story = serde_json::to_string(&record).expect("plain data is JSON");
        tracing::warn!(
            cluster = %self.name, from = record.from.as_deref(), to = &*record.to, term = record.term,
            planned = record.planned, detect_ms = record.detect.as_millis(), fence_ms = record.fence.as_millis(),
            promote_ms = record.promote.as_millis(), open_ms = record.open.as_millis(),
            hold_ms = record.hold.as_millis(), record = story, "failover done"
        );
        if self.done.len() == MAX_FAILOVERS {
            self.done.pop_front();
        }
        self.done.push_back(record);
        if let Some(records) = &self.records {
            records.write(self.done.make_contiguous());
        }
        self.published.send_replace(self.done.iter().cloned().collect());
    }
}

fn sign(contact: &Contact) -> &'static str {
    match contact {
        Contact::Refused => "it refused connections",
        Contact::Silent => "it did not answer",
        Contact::Starting => "it took too long to start",
        Contact::Reached(_) | Contact::LoginFailed(_) | Contact::Unreadable(_) => "it could not be read",
    }
}

fn since(from: Option<Instant>, to: Instant) -> Duration {
    from.map_or(Duration::ZERO, |from| to.saturating_duration_since(from))
}

fn ms(from: Option<Instant>, to: Instant) -> u128 {
    since(from, to).as_millis()
}
