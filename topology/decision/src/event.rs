//! What the decision is told: readings, suspicions, the clock, and how its orders ended.

use crate::fence::{FenceReading, Position};
use crate::node::{Contact, Lsn, NodeId, Term, Timeline};
use crate::record::{Record, Rule};
use crate::switchover::Switchover;

/// Why a fence was not confirmed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Obstacle {
    /// The node did not answer, or the connection broke.
    Unreachable,
    /// Replay is paused and could not be resumed: the receiver goes on acknowledging.
    ReplayPaused,
    /// Replay waits for a query, and its session could not be ended.
    Conflict,
    /// `recovery_min_apply_delay` holds the startup process, and could not be cleared.
    ApplyDelay,
    /// It is not in recovery.
    Writable,
    /// It carries the marker of a greater term.
    Superseded(Term),
    /// A privilege is missing; the text names it.
    Forbidden(String),
    /// Anything else.
    Other(String),
}

/// One thing that happened.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Event {
    /// Time passed. Comes several times a second.
    Tick,
    /// A probe ended. An answer that came later than the time-out after its question is `Silent`, also when this process
    /// was stopped meanwhile: it says how things were, not how they are.
    Probed {
        /// Of whom.
        node: NodeId,
        /// How.
        contact: Contact,
    },
    /// A connection to this node broke.
    ConnectionLost {
        /// To whom.
        node: NodeId,
        /// The monitor's own connection: clients are held at once, for a restarted primary shows commits that nobody
        /// acknowledged. A session's: only a reason to look.
        own: bool,
    },
    /// The answer to `ReadStore`, or the store's own word that the record changed or that it is back.
    StoreRead {
        /// The record; `None` if there is none.
        record: Option<Record>,
    },
    /// The store's word on its lease, which says who of several instances acts. Held: the record is read again before
    /// anything is done (a stale picture split a brain in seven steps: measured).
    Lease {
        /// Ours from now on, or ours no longer.
        held: bool,
    },
    /// The store cannot be read or written; also the answer to an order to it that failed that way.
    StoreLost {
        /// Why, for people.
        why: String,
    },
    /// An operator wants another primary. Answer: `Tell`.
    SwitchoverAsked(Switchover),
    /// An operator wants clients to go on with what the standbys within reach have, although acknowledged commits may be lost.
    /// Answer: `Tell`.
    FailoverAsked,
    /// No transaction is open on the primary.
    Quiesced {
        /// The primary.
        node: NodeId,
        /// The switchover's term.
        term: Term,
        /// The end of its WAL.
        lsn: Lsn,
    },
    /// Transactions are still open, or nobody answered.
    QuiesceFailed {
        /// The primary.
        node: NodeId,
        /// The switchover's term.
        term: Term,
        /// Why, for people.
        why: String,
    },
    /// Ours is the claim.
    TermClaimed {
        /// The record, read after the claim (a stale picture split a brain in seven steps: measured).
        record: Record,
    },
    /// The claimed term was another one.
    TermRefused {
        /// The record as it is.
        record: Record,
    },
    /// The record is durable.
    Published {
        /// Its revision.
        revision: u64,
    },
    /// Somebody else wrote first.
    PublishRefused {
        /// The record as it is.
        record: Record,
    },
    /// What was read on the node after the fence, in the session that set it.
    Fenced {
        /// Of whom.
        node: NodeId,
        /// Whose fence.
        term: Term,
        /// What was read.
        reading: FenceReading,
    },
    /// Not confirmed in time. The node may be fenced all the same.
    FenceFailed {
        /// Of whom.
        node: NodeId,
        /// Whose fence.
        term: Term,
        /// Why.
        why: Obstacle,
    },
    /// It follows its upstream again.
    Unfenced {
        /// Who.
        node: NodeId,
        /// Whose fence it was.
        term: Term,
    },
    /// The marker was not ours any more, or nobody answered.
    UnfenceFailed {
        /// Who.
        node: NodeId,
        /// Whose fence it was.
        term: Term,
        /// Why, for people.
        why: String,
    },
    /// How far a fenced standby's WAL goes, at its end.
    Drained {
        /// Who.
        node: NodeId,
        /// Whose fence.
        term: Term,
        /// How far.
        position: Position,
    },
    /// The position is not known.
    DrainFailed {
        /// Who.
        node: NodeId,
        /// Whose fence.
        term: Term,
        /// Why, for people.
        why: String,
    },
    /// It has left recovery.
    Promoted {
        /// Who.
        node: NodeId,
        /// Under which term.
        term: Term,
        /// Its new timeline.
        timeline: Timeline,
        /// The next transaction id before it took any write.
        next_xid: u64,
    },
    /// It has not left recovery in time, or this is not known.
    PromoteFailed {
        /// Who.
        node: NodeId,
        /// Under which term.
        term: Term,
        /// Why, for people.
        why: String,
    },
    /// It follows.
    Repointed {
        /// Who.
        node: NodeId,
        /// Whom.
        upstream: NodeId,
    },
    /// It does not.
    RepointFailed {
        /// Who.
        node: NodeId,
        /// Whom it was to follow.
        upstream: NodeId,
        /// Why, for people.
        why: String,
    },
    /// The term row was acknowledged by k of the cohort.
    TermWritten {
        /// Where.
        node: NodeId,
        /// What it says.
        rule: Rule,
    },
    /// Not acknowledged in time, or the row there is of a greater term. It may have been written.
    TermWriteFailed {
        /// Where.
        node: NodeId,
        /// What it was to say.
        rule: Rule,
        /// Why, for people.
        why: String,
    },
    /// `synchronous_standby_names` is as ordered.
    RuleSet {
        /// Where.
        node: NodeId,
        /// What was set.
        rule: Rule,
    },
    /// It may be or not.
    RuleSetFailed {
        /// Where.
        node: NodeId,
        /// What was to be set.
        rule: Rule,
        /// Why, for people.
        why: String,
    },
    /// All that this primary shows is flushed by k standbys.
    BarrierPassed {
        /// Who.
        node: NodeId,
        /// The rule it was asked under.
        rule: Rule,
    },
    /// Not in time.
    BarrierFailed {
        /// Who.
        node: NodeId,
        /// The rule it was asked under.
        rule: Rule,
        /// Why, for people.
        why: String,
    },
}
