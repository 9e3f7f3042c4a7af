//! What the decision orders. Data only; the driver carries it out.
//!
//! An action that names an outcome gets exactly one: the driver turns its own time-out into the failure. Orders to one
//! node are carried out one after the other, in the order given, and answered in that order; so are orders to the store.
//! `ProbeNow`, `Checkpoint` and `Quarantine` run beside them.
//!
//! Everything that changes a node (fence, unfence, repoint, promote, set the rule) is done under that node's advisory lock,
//! taken by the session that does it, and whoever takes the lock ends the session that holds it: a coordinator that was
//! paused between its check and its change would otherwise undo the work of the next one. An order with a `claim` also
//! reads the store again *after* the lock is held, and fails without doing anything if `claimed` is another term by now.
//! (With a store that only one process can open, this check is always true.)

use crate::fence::Promotion;
use crate::node::{Millis, NodeId, Term};
use crate::record::{Record, Rule};
use crate::switchover::Verdict;
use crate::view::View;

/// One order.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Action {
    /// Read this node now rather than at its next tick. Answer: [`crate::Event::Probed`].
    ProbeNow {
        /// Whom.
        node: NodeId,
    },
    /// Read the record again. Answer: `StoreRead` or `StoreLost`.
    ReadStore,
    /// Compare-and-set `claimed` from → to (and the next revision). Answer: `TermClaimed` with the record *as it is
    /// afterwards*, `TermRefused` with the record as it is, or `StoreLost`.
    ClaimTerm {
        /// What it has to be.
        from: Term,
        /// What it becomes.
        to: Term,
        /// For a switchover; every other claim says no.
        handover: bool,
    },
    /// Write the whole record durably if the stored revision is `record.revision - 1` (for revision 1: if there is none
    /// or it is 0). Answer: `Published`, `PublishRefused` with the record as it is, or `StoreLost`.
    Publish {
        /// The record.
        record: Record,
    },
    /// Wait until no session but our own has a transaction open, seen for a while, and read the end of the WAL. After
    /// `limit`, with `end_transactions`, end the sessions that still have one and do not wait for a standby. Answer:
    /// `Quiesced` or `QuiesceFailed`.
    Quiesce {
        /// The primary.
        node: NodeId,
        /// The switchover's term.
        term: Term,
        /// How long transactions may take to end.
        limit: Millis,
        /// Whether to end them then.
        end_transactions: bool,
    },
    /// Set `primary_conninfo = ''`, `wal_retrieve_retry_interval = '100ms'`, `primary_slot_name = 'fence_<term>'`, reload, clear
    /// what keeps the receiver alive (paused replay, apply delay, recovery conflict), read until it is so. Refused if the
    /// marker there is of a greater term. Answer: `Fenced` or `FenceFailed`.
    Fence {
        /// A standby of the rule.
        node: NodeId,
        /// The claimed term: the marker.
        term: Term,
    },
    /// Undo the fence of `term` if the marker there is still `fence_<term>`: `primary_conninfo` to the upstream, no marker.
    /// Answer: `Unfenced` or `UnfenceFailed`.
    Unfence {
        /// The fenced standby.
        node: NodeId,
        /// Whose fence.
        term: Term,
        /// The primary it goes back to.
        upstream: NodeId,
    },
    /// Wait until replay has reached what was received, or the startup process waits at the end of the WAL (seen twice),
    /// and read the position. Answer: `Drained` or `DrainFailed`.
    Drain {
        /// A fenced standby.
        node: NodeId,
        /// Whose fence.
        term: Term,
    },
    /// Set its `synchronous_standby_names` to the promotion's rule, read the next xid, and order one `pg_promote(false)`
    /// guarded by marker, empty `primary_conninfo` and term row; poll until it has left recovery. Answer: `Promoted` or
    /// `PromoteFailed` (which may mean "not known").
    Promote(Promotion),
    /// Let a standby follow `upstream` and clear its marker, if its marker is still `marker`. Answer: `Repointed` or
    /// `RepointFailed`.
    Repoint {
        /// The standby.
        node: NodeId,
        /// Whom it is to follow.
        upstream: NodeId,
        /// The marker it must have.
        marker: Option<Term>,
        /// The claim under which this is ordered.
        claim: Term,
    },
    /// Write the term row with `synchronous_commit = on`, if the row there is of no greater term; creates the table if
    /// there is none. Its acknowledgement is the answer `TermWritten`; a `SyncRepWaitForLSN` warning is not one. Else
    /// `TermWriteFailed`.
    WriteTerm {
        /// The primary.
        node: NodeId,
        /// What the row says.
        rule: Rule,
    },
    /// Set `synchronous_standby_names` (`ANY k (cohort)`, or empty for k = 0), reload, read until this session and
    /// `pg_stat_replication.sync_state` show it. Answer: `RuleSet` or `RuleSetFailed`.
    SetRule {
        /// The primary.
        node: NodeId,
        /// The rule.
        rule: Rule,
        /// The claim under which this is ordered.
        claim: Term,
    },
    /// A small write acknowledged under the rule: with it, k standbys have flushed all that was there before. Answer:
    /// `BarrierPassed` or `BarrierFailed`.
    Barrier {
        /// The primary.
        node: NodeId,
        /// The rule in force.
        rule: Rule,
    },
    /// `CHECKPOINT`, so that `pg_rewind` sees the new timeline. No answer.
    Checkpoint {
        /// The new primary.
        node: NodeId,
    },
    /// Best effort on a node that writes but is not the primary: `default_transaction_read_only = on`, end its client
    /// sessions. No answer.
    Quarantine {
        /// The node.
        node: NodeId,
    },
    /// Tell the world. No answer.
    Announce(View),
    /// Tell the operator what became of the latest request. No answer.
    Tell(Verdict),
}
