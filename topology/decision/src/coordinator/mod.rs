//! The state machine of failover: fed by one loop, deterministic.

use crate::action::Action;
use crate::event::Event;
use crate::node::{Millis, Term};
use crate::policy::{Cluster, Policy};
use crate::reason::Reason;
use crate::record::Record;
use crate::view::{Role, Standing, View};

/// The decision for one cluster. Feed it everything that happens, carry out what it returns, in order.
///
/// The first `Tick` returns the first [`Action::Announce`].
#[derive(Debug, Clone)]
pub struct Coordinator {
    cluster: Cluster,
    announced: Option<View>,
}

impl Coordinator {
    /// `record` is what the store holds; `None` if it was readable and empty.
    #[must_use]
    pub fn new(policy: Policy, cluster: Cluster, record: Option<Record>) -> Self {
        let _ = (policy, record);
        Self { cluster, announced: None }
    }

    /// Takes in one event at `now` (which never goes back).
    pub fn step(&mut self, now: Millis, event: Event) -> Vec<Action> {
        let _ = (now, event);
        if self.announced.is_some() {
            return Vec::new();
        }
        let out = Standing { role: Role::Out, why: "not looked at yet".to_owned() };
        let view = View {
            epoch: 0,
            primary: None,
            term: Term(0),
            next_xid: None,
            nodes: vec![out; self.cluster.members().len()],
            reason: Some(Reason { what: "the nodes have not been looked at yet".to_owned(), remedy: String::new() }),
        };
        self.announced = Some(view.clone());
        vec![Action::Announce(view)]
    }

    /// The latest announced view.
    #[must_use]
    pub fn view(&self) -> Option<&View> {
        self.announced.as_ref()
    }
}
