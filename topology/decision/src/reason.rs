//! Why clients are held, or what is less than it should be: what is missing, and what the operator can do.

use std::collections::BTreeMap;
use std::fmt;

use crate::event::Obstacle;
use crate::fence::Short;
use crate::node::{Lsn, Millis, NodeId, NodeSet, Term};
use crate::policy::Cluster;
use crate::record::{Intent, Rule};

/// One reason, as text made in one place. Equal reasons have equal texts.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Reason {
    /// What is the matter.
    pub what: String,
    /// What the operator can do; empty if waiting is all.
    pub remedy: String,
    /// It is under way and passes by itself: asked again a moment later, the answer may be another.
    pub passes: bool,
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.what)?;
        if self.remedy.is_empty() { Ok(()) } else { write!(f, "; {}", self.remedy) }
    }
}

fn reason(what: impl Into<String>, remedy: impl Into<String>) -> Reason {
    Reason { what: what.into(), remedy: remedy.into(), passes: false }
}

/// A step that is simply under way.
pub(crate) fn under_way(what: impl Into<String>) -> Reason {
    reason(what, "")
}

pub(crate) fn obstacle(why: &Obstacle) -> String {
    match why {
        Obstacle::Unreachable => "does not answer, and unreachable is not fenced".to_owned(),
        Obstacle::ReplayPaused => "its replay is paused: run SELECT pg_wal_replay_resume() there".to_owned(),
        Obstacle::Conflict => {
            "its replay waits for a query: end that query, or GRANT pg_signal_backend to pgsteady's user".to_owned()
        }
        Obstacle::ApplyDelay => "recovery_min_apply_delay holds its replay: set it to 0".to_owned(),
        Obstacle::Writable => "is not in recovery".to_owned(),
        Obstacle::Superseded(term) => format!("was fenced for term {term} by somebody else"),
        Obstacle::Forbidden(what) => format!("refuses for want of a privilege: {what}"),
        Obstacle::Other(why) => why.clone(),
    }
}

pub(crate) fn short_of_fences(
    cluster: &Cluster,
    rule: &Rule,
    short: Short,
    obstacles: &BTreeMap<NodeId, String>,
) -> Reason {
    let why: Vec<String> = obstacles.iter().map(|(node, why)| format!("{} {why}", cluster.name(*node))).collect();
    let why = if why.is_empty() { String::new() } else { format!(": {}", why.join(", ")) };
    match short {
        Short::Nobody => nobody_may(cluster, rule),
        Short::Of { have, need } => reason(
            format!("{have} of the {need} standbys that have to be fenced are{why}"),
            format!("bring back {} or the primary {}", cluster.names(rule.cohort), cluster.name(rule.leader)),
        ),
        Short::BestIsAway(node) => reason(
            format!("{} holds commits that no reachable standby holds{why}", cluster.name(node)),
            format!("bring {} back", cluster.name(node)),
        ),
        Short::FromTheFuture(node, term) => from_the_future(cluster, node, term),
    }
}

pub(crate) fn nobody_may(cluster: &Cluster, rule: &Rule) -> Reason {
    let leader = cluster.name(rule.leader);
    reason(
        format!("no standby was there when {leader} acknowledged its last commits, so none may be promoted"),
        format!("bring {leader} back; only if its commits may be lost: `pgsteady failover --accept-data-loss`"),
    )
}

pub(crate) fn from_the_future(cluster: &Cluster, node: NodeId, term: Term) -> Reason {
    reason(
        format!("{} shows term {term}, which the store has never given out", cluster.name(node)),
        "the store was restored or belongs to another cluster: give pgsteady the right one",
    )
}

pub(crate) fn superseded(cluster: &Cluster, node: NodeId) -> Reason {
    reason(
        format!("{} was fenced for a greater term by somebody else", cluster.name(node)),
        "let the other pgsteady finish, or look why it does not",
    )
}

pub(crate) fn promotion_failed(cluster: &Cluster, node: NodeId, why: &str) -> Reason {
    reason(
        format!("the promotion of {} was not confirmed: {why}", cluster.name(node)),
        format!("another standby is tried; if this stays, bring {} back", cluster.name(node)),
    )
}

pub(crate) fn commit_point_failed(cluster: &Cluster, rule: &Rule, why: &str) -> Reason {
    reason(
        format!("{} is promoted, but its term row is not acknowledged: {why}", cluster.name(rule.leader)),
        format!("{} of {} must stream from it", rule.k, cluster.names(rule.cohort)),
    )
}

pub(crate) fn barrier_failed(cluster: &Cluster, rule: &Rule, why: &str) -> Reason {
    reason(
        format!(
            "{} is there, but not yet may its data be shown: {} of {} have not confirmed it ({why})",
            cluster.name(rule.leader),
            rule.k,
            cluster.names(rule.cohort)
        ),
        "bring a standby back, or wait until the rule is relaxed (durability = \"available\")",
    )
}

pub(crate) fn store_lost(why: &str) -> Reason {
    reason(
        format!("the store cannot be used, so no failover can begin: {why}"),
        "make its directory (or service) writable again",
    )
}

pub(crate) fn forward_only(cluster: &Cluster, intent: &Intent, missing: NodeSet, need: usize) -> Reason {
    reason(
        format!(
            "{} may have been promoted under term {} and does not answer as primary; without it {need} standbys have to \
             be fenced",
            cluster.name(intent.node),
            intent.term
        ),
        format!("bring back {}", cluster.names(missing.with(intent.node))),
    )
}

pub(crate) fn too_few_reachable(cluster: &Cluster, rule: &Rule, reachable: NodeSet, why: &str) -> Reason {
    let Some(need) = rule.fences_needed() else { return nobody_may(cluster, rule) };
    reason(
        format!("{why}, and {} of the {need} standbys that have to be fenced can be reached", reachable.len()),
        format!("bring back {} or the primary", cluster.names(rule.cohort.minus(reachable))),
    )
}

pub(crate) fn relaxed(cluster: &Cluster, rule: &Rule, aim: u32) -> Reason {
    let what = if rule.k == 0 {
        "commits are acknowledged without any standby: a loss of the primary now loses them".to_owned()
    } else {
        format!("commits wait for {} standby(s) of {}, not {aim}", rule.k, cluster.names(rule.cohort))
    };
    reason(what, "bring the missing standbys back; the rule is restored when they stream")
}

pub(crate) fn failing(cluster: &Cluster, node: NodeId, how: &str, since: Millis) -> Reason {
    // Whole seconds, so that the text does not change with every look.
    let seconds = since.0 / 1000;
    let since = if seconds == 0 { String::new() } else { format!(" for {seconds} s") };
    reason(format!("the primary {} {how}{since}", cluster.name(node)), "")
}

pub(crate) fn mute(cluster: &Cluster, node: NodeId, said: &str) -> Reason {
    reason(
        format!("the primary {} is alive but does not let pgsteady read it: {said}", cluster.name(node)),
        "correct the monitor's user, password or privileges, or pg_hba.conf; it is not failed over for this",
    )
}

pub(crate) fn ahead(term: Term) -> Reason {
    reason(
        format!("a node shows a term greater than the store's {term}"),
        "another pgsteady acted on another store, or this store was restored: give both the same one",
    )
}

pub(crate) fn no_bootstrap(why: impl Into<String>, remedy: impl Into<String>) -> Reason {
    reason(format!("no primary has been adopted yet: {}", why.into()), remedy)
}

pub(crate) fn not_now(why: &str) -> Reason {
    reason(why, "try again when `pgsteady status` shows nothing amiss")
}

pub(crate) fn needless(why: &str) -> Reason {
    reason(why, "`pgsteady switchover` makes another node primary, and loses nothing")
}

pub(crate) fn nobody_in_reach(cluster: &Cluster, leader: NodeId) -> Reason {
    let others = cluster.names(cluster.nodes().without(leader));
    reason("no standby can be reached, so there is nothing to go on with", format!("bring back one of {others}"))
}

/// What follows each opening of a primary, and each change of its rule, for a moment.
pub(crate) fn settling(why: &str) -> Reason {
    Reason { passes: true, ..not_now(why) }
}

pub(crate) fn not_the_coordinator() -> Reason {
    reason("another pgsteady is the coordinator of this cluster", "ask that one; `pgsteady status` shows which it is")
}

pub(crate) fn managed_by_others() -> Reason {
    reason("this cluster is managed by somebody else (managed = \"external\")", "use their tool to change the primary")
}

pub(crate) fn is_primary(cluster: &Cluster, node: NodeId) -> Reason {
    reason(format!("{} is the primary already", cluster.name(node)), "")
}

pub(crate) fn not_synchronous(cluster: &Cluster, node: NodeId, rule: &Rule) -> Reason {
    reason(
        format!("{} is not one of the standbys that commits wait for", cluster.name(node)),
        format!("name one of {}, or wait until it streams", cluster.names(rule.cohort)),
    )
}

pub(crate) fn not_reachable(cluster: &Cluster, node: NodeId) -> Reason {
    reason(format!("{} does not answer as a standby", cluster.name(node)), "bring it back, or name another")
}

pub(crate) fn nobody_would_acknowledge(cluster: &Cluster, rule: &Rule, k: u32) -> Reason {
    reason(
        format!(
            "with durability = \"strict\" the new primary would wait for {k} standby(s), and until {} has come back as one \
             there are fewer",
            cluster.name(rule.leader)
        ),
        "bring another standby, or set durability = \"available\"",
    )
}

pub(crate) fn not_quiet(cluster: &Cluster, node: NodeId, why: &str) -> Reason {
    reason(
        format!("transactions on {} did not end: {why}", cluster.name(node)),
        "give it more time (--max-wait), or let them be ended (--end-transactions)",
    )
}

pub(crate) fn behind(cluster: &Cluster, nodes: NodeSet, lsn: Lsn) -> Reason {
    reason(
        format!("{} did not receive the WAL up to {lsn} in time", cluster.names(nodes)),
        "look why its replication is slow, or name another standby",
    )
}

pub(crate) fn not_the_furthest(cluster: &Cluster, node: NodeId, best: NodeSet) -> Reason {
    reason(
        format!("{} has received a little less than {}", cluster.name(node), cluster.names(best)),
        "try again, or name no node",
    )
}
