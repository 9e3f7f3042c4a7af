//! Instances that share no store would not know of each other, and both would act. So each leaves a mark on every node it
//! reads, an advisory lock of its probe's session, and whoever finds the mark of another one leaves none and does not act.
//! The mark ends with the session, so it outlives nobody.

use std::collections::BTreeMap;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::path::Path;

use decision::Event;
use tokio_postgres::Client;

use crate::login::Failure;

/// First key of the lock: the letters `pgst`. The second is who we are.
const CLASS: u32 = 0x7067_7374;

/// Expression for the least mark of another instance; its parameter is who we are, 0 for somebody who leaves no marks.
pub(crate) const RIVAL: &str = "\
(SELECT min(objid::bigint) FROM pg_locks WHERE locktype = 'advisory' AND granted AND objsubid = 2 AND classid = 1885827956
   AND database = (SELECT oid FROM pg_database WHERE datname = current_database()) AND objid <> $1) AS rival";

/// Who an instance is on the nodes: those that share a store are one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Identity(u32);

impl Identity {
    /// Somebody who only looks.
    pub const NOBODY: Self = Self(0);

    /// The one instance that can open this file of this machine.
    pub(crate) fn of_file(path: &Path) -> Self {
        let read = |path: &str| std::fs::read_to_string(path).unwrap_or_default();
        let machine = (read("/etc/machine-id"), nix::unistd::gethostname().unwrap_or_default());
        Self::hashed(&(machine, path.canonicalize().unwrap_or_else(|_| path.to_owned())))
    }

    /// All instances that keep this cluster's record in etcd below this prefix.
    pub(crate) fn of_etcd(prefix: &str) -> Self {
        Self::hashed(&("etcd", prefix))
    }

    fn hashed(what: &impl Hash) -> Self {
        let mut hasher = DefaultHasher::new();
        what.hash(&mut hasher);
        let low = u32::try_from(hasher.finish() & 0x7fff_ffff).expect("31 bits");
        Self(low.max(1))
    }

    /// As the parameter of [`RIVAL`].
    pub(crate) fn key(self) -> u32 {
        self.0
    }
}

/// The mark of one session.
#[derive(Debug)]
pub(crate) struct Mark {
    identity: Identity,
    is_set: bool,
}

impl Mark {
    pub(crate) fn new(identity: Identity) -> Self {
        Self { identity, is_set: false }
    }

    /// Leaves the mark where there is no other, and takes it back where two were left at the same time and the other
    /// one is less. `rival` is what [`RIVAL`] just gave.
    pub(crate) async fn follow(&mut self, client: &Client, rival: Option<u32>) -> Result<(), Failure> {
        let wanted = match rival {
            _ if self.identity == Identity::NOBODY => false,
            None => true,
            Some(other) => self.is_set && self.identity.0 < other,
        };
        if wanted == self.is_set {
            return Ok(());
        }
        let what = if wanted { "pg_try_advisory_lock_shared" } else { "pg_advisory_unlock_shared" };
        let statement = format!("SELECT {what}({CLASS}, {})", self.identity.0);
        client.simple_query(&statement).await.map_err(|error| Failure::in_answer(&error))?;
        self.is_set = wanted;
        Ok(())
    }
}

/// Whether this instance may act: it has the store's lease, has looked at every node, and is alone there.
#[derive(Debug)]
pub(crate) struct Standing {
    lease: bool,
    /// Of each node: `None`, not looked at yet; else whether another instance is there.
    rivals: BTreeMap<usize, Option<bool>>,
    told: bool,
}

impl Standing {
    /// `lease`: a store that only one instance can open needs no other word.
    pub(crate) fn new(nodes: usize, lease: bool) -> Self {
        Self { lease, rivals: (0..nodes).map(|node| (node, None)).collect(), told: false }
    }

    /// The store's word on its lease.
    pub(crate) fn leased(&mut self, held: bool) -> Option<Event> {
        self.lease = held;
        self.changed()
    }

    /// A look at a node; one that does not answer shows nobody.
    pub(crate) fn looked(&mut self, node: usize, rival: bool) -> Option<Event> {
        self.rivals.insert(node, Some(rival));
        self.changed()
    }

    /// The nodes on which another instance is.
    pub(crate) fn rivals(&self) -> impl Iterator<Item = usize> + '_ {
        self.rivals.iter().filter(|(_, rival)| **rival == Some(true)).map(|(node, _)| *node)
    }

    fn changed(&mut self) -> Option<Event> {
        let held = self.lease && self.rivals.values().all(|rival| *rival == Some(false));
        (held != self.told).then(|| {
            self.told = held;
            Event::Lease { held }
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_class_is_the_one_that_is_asked_for() {
        assert!(RIVAL.contains(&format!("classid = {CLASS}\n")));
    }

    #[test]
    fn whoever_shares_a_store_is_one() {
        let folder = tempfile::tempdir().unwrap();
        let (a, b) = (folder.path().join("a"), folder.path().join("b"));
        assert_eq!(Identity::of_file(&a), Identity::of_file(&a));
        assert_ne!(Identity::of_file(&a), Identity::of_file(&b));
        assert_eq!(Identity::of_etcd("/pgsteady/main/"), Identity::of_etcd("/pgsteady/main/"));
        assert_ne!(Identity::of_etcd("/pgsteady/main/"), Identity::NOBODY);
    }

    #[test]
    fn it_acts_when_it_has_looked_everywhere_and_is_alone() {
        let held = |held| Some(Event::Lease { held });
        let mut standing = Standing::new(2, true);
        assert_eq!(standing.looked(0, false), None);
        assert_eq!(standing.looked(1, false), held(true));
        assert_eq!(standing.looked(1, false), None);
        assert_eq!(standing.looked(0, true), held(false));
        assert_eq!(standing.rivals().collect::<Vec<_>>(), [0]);
        assert_eq!(standing.leased(false), None);
        assert_eq!(standing.looked(0, false), None);
        assert_eq!(standing.leased(true), held(true));
    }
}
