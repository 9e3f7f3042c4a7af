//! The failover decision: observations and `now` in, actions out. No clock, no I/O, no randomness, no async.

mod action;
mod candidate;
mod coordinator;
mod event;
mod fence;
mod node;
mod policy;
mod quorum;
mod reason;
mod record;
mod switchover;
mod view;

pub use action::Action;
pub use coordinator::Coordinator;
pub use event::{Event, Obstacle};
pub use fence::{FenceReading, Position, Promotion};
pub use node::{
    Contact, Lsn, MAX_NODES, Millis, NodeId, NodeSet, Receiver, Report, SyncNames, Term, TermRow, Timeline, Upstream,
};
pub use policy::{Cluster, ClusterError, Durability, Managed, Member, Policy};
pub use quorum::{Change, change, fences_needed};
pub use reason::Reason;
pub use record::{Intent, Origin, Record, Rule};
pub use switchover::{Switchover, Verdict};
pub use view::{Role, Standing, View};
