//! A commit whose answer was lost is looked up on the primary that there is now.
//!
//! Transaction ids are used again: after a failover those that the new primary never heard of, after a crash those that were
//! not flushed. So an id is compared with the first one of every reign that followed its own, and only if it is older than
//! all of them, what PostgreSQL says of it is the truth. Within the same reign (only the connection was lost) the question has to be asked
//! in it too, and nothing counts as committed before a write behind it has been confirmed by the standbys.

use std::time::Duration;

use bytes::BytesMut;
use pgwire::frontend::write_query;
use tokio::time::{Instant, sleep, timeout_at};
use topology::Reign;

use super::borrow::NoServer;
use super::doubt::{Commit, Doubt, Owed};
use super::requests::SHORT;
use super::turn::End;
use super::{Asked, Session};
use crate::routing::Route;

/// Between two questions after the same transaction.
const AGAIN: Duration = Duration::from_millis(20);

/// A write that waits for the standbys.
const BARRIER: &str = "BEGIN READ WRITE; SET LOCAL statement_timeout = 0; SET LOCAL synchronous_commit = on; \
 SELECT pg_catalog.pg_logical_emit_message(true, 'pgsteady', ''); COMMIT";

/// What became of a commit.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Ended {
    /// The client has been told.
    Told {
        /// COMMIT AND CHAIN.
        chain: bool,
    },
    /// It was committed, and will last.
    Committed(Owed),
    /// It was not.
    RolledBack,
    /// Nobody can tell, and why.
    Unknown(String),
}

impl Ended {
    /// The client gets no error.
    pub(super) fn is_good(&self) -> bool {
        matches!(self, Self::Told { .. } | Self::Committed(_))
    }
}

/// What follows from the reigns alone.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Judged {
    /// The primary has to be asked.
    Ask,
    /// It is not certain yet that the connection at hand is of the same reign.
    Wait,
    RolledBack,
    Unknown(&'static str),
}

/// A connection to ask on.
#[derive(Debug, Clone, Copy)]
struct Asking {
    node: usize,
    /// It was open when so many readings had begun.
    born: u64,
    /// The reign that it surely belongs to.
    reign: Option<(usize, i64)>,
}

/// Judges a transaction of the reign `of`.
fn judge(reigns: &[Reign], of: (usize, i64), xid: u64, asking: Asking) -> Judged {
    let Some(place) = reigns.iter().position(|reign| (reign.node, reign.incarnation) == of) else {
        return Judged::Unknown("the monitor has not seen every primary since");
    };
    let later = &reigns[place + 1..];
    if later.iter().any(|next| next.next_xid.is_some_and(|next_xid| xid >= next_xid)) {
        return Judged::RolledBack;
    }
    if later.iter().any(|next| next.next_xid.is_none()) {
        return Judged::Unknown("the first transaction id of a later primary is not known");
    }
    let same_life = reigns[place].node == asking.node && reigns[place].seen > asking.born;
    if !later.is_empty() || asking.reign == Some(of) || same_life { Judged::Ask } else { Judged::Wait }
}

impl Session {
    /// Finds out what became of the commit that stood first, if it can be asked for.
    pub(super) async fn resolve(&mut self) -> Result<Option<Ended>, End> {
        let (commit, xid) = match std::mem::take(&mut self.doubt) {
            Doubt::Known(commit) => match commit.xid {
                Some(xid) => (commit, xid),
                None => return Ok(Some(Ended::RolledBack)),
            },
            Doubt::Refused(_) => return Ok(Some(Ended::RolledBack)),
            Doubt::Answered { chain } => return Ok(Some(Ended::Told { chain })),
            Doubt::Nothing | Doubt::Asked(_) => return Ok(None),
        };
        self.cancel.shield(true);
        let limit = self.worker.shared.limits().hold_timeout;
        let ended = match timeout_at(Instant::now() + limit, self.look_up(&commit, xid)).await {
            Ok(ended) => ended?,
            Err(_) => {
                self.drop_server(); // it may owe an answer
                Ended::Unknown(format!("transaction {xid} could not be looked up within {limit:?}"))
            }
        };
        self.cancel.waits_no_more();
        // Whoever was asked goes back to its pool.
        self.server = None;
        self.cancel.end();
        self.card.idle();
        tracing::info!(session = %self.name(), xid, ?ended, "a commit in doubt was looked up");
        Ok(Some(ended))
    }

    async fn look_up(&mut self, commit: &Commit, xid: u64) -> Result<Ended, End> {
        let Some(of) = commit.reign else {
            return Ok(Ended::Unknown("the server was too new to be told from another life of its node".into()));
        };
        let mut asked = Asked::primary();
        asked.class.hint = Some(Route::Primary);
        loop {
            match self.acquire(&asked).await {
                Ok(()) => {}
                Err(NoServer::End(end)) => return Err(end),
                Err(NoServer::Told(report)) => return Ok(Ended::Unknown(report.message().to_owned())),
                Err(NoServer::Words(_)) => return Ok(Ended::Unknown("the new primary refused the login".into())),
            }
            let ended = self.ask_on_loan(of, xid).await;
            match ended {
                Some(Ended::Committed(_)) => return Ok(Ended::Committed(commit.owed)),
                Some(ended) => return Ok(ended),
                None => {
                    self.drop_server();
                    self.cancel.shield(true);
                    sleep(AGAIN).await;
                }
            }
        }
    }

    /// Asks on the server on loan; `None` if it is lost, or the cluster has changed.
    async fn ask_on_loan(&mut self, of: (usize, i64), xid: u64) -> Option<Ended> {
        let mut changes = self.entry.watch.subscribe();
        let epoch = changes.borrow_and_update().epoch;
        let changed = async {
            while changes.changed().await.is_ok() {
                let now = changes.borrow_and_update();
                if now.epoch != epoch || now.primary.is_none() {
                    return;
                }
            }
            std::future::pending::<()>().await;
        };
        tokio::select! {
            ended = self.ask_until_settled(of, xid) => ended,
            () = changed => None,
        }
    }

    async fn ask_until_settled(&mut self, of: (usize, i64), xid: u64) -> Option<Ended> {
        let node = self.node;
        let watch = self.entry.watch.clone();
        let server = self.server.as_mut()?;
        let asking = Asking { node, born: server.born, reign: server.reign };
        let question = format!("SELECT pg_catalog.pg_xact_status('{xid}'::pg_catalog.xid8)");
        let mut out = BytesMut::new();
        write_query(&mut out, question.as_bytes()).expect(SHORT);
        loop {
            match judge(&watch.now().reigns, of, xid, asking) {
                Judged::RolledBack => return Some(Ended::RolledBack),
                Judged::Unknown(why) => return Some(Ended::Unknown(why.into())),
                Judged::Wait => {
                    watch.suspect(node); // a reading is due
                    sleep(AGAIN).await;
                    continue;
                }
                Judged::Ask => {}
            }
            let answers = server.round_trip(&out, 1).await.ok()?;
            match answers.column(0).as_deref() {
                Some("committed") => break,
                Some("aborted") => return Some(Ended::RolledBack),
                Some("in progress") => sleep(AGAIN).await,
                _ => return Some(Ended::Unknown("PostgreSQL does not remember the transaction".into())),
            }
        }
        let mut out = BytesMut::new();
        write_query(&mut out, BARRIER.as_bytes()).expect(SHORT);
        let answers = server.round_trip(&out, 1).await.ok()?;
        if answers.failed.is_some() || answers.not_replicated {
            return Some(Ended::Unknown("it was committed, but no standby has confirmed it".into()));
        }
        Some(Ended::Committed(Owed::Nothing))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn reign(node: usize, incarnation: i64, next_xid: Option<u64>, seen: u64) -> Reign {
        Reign { node, incarnation, term: 1, next_xid, seen, witness: 1 }
    }

    fn on(node: usize, born: u64) -> Asking {
        Asking { node, born, reign: None }
    }

    #[test]
    fn an_id_that_the_next_reign_had_not_reached_was_not_committed() {
        let reigns = [reign(0, 10, None, 50), reign(1, 20, Some(1000), 60)];
        for (xid, judged) in [(999, Judged::Ask), (1000, Judged::RolledBack), (1001, Judged::RolledBack)] {
            assert_eq!(judge(&reigns, (0, 10), xid, on(1, 99)), judged, "{xid}");
        }
    }

    #[test]
    fn an_id_that_any_later_reign_had_not_reached_was_not_committed() {
        // 1005 was used again by the second reign, whose ids go on in the third
        let reigns = [reign(0, 10, None, 50), reign(0, 11, Some(1000), 55), reign(1, 20, Some(2000), 60)];
        assert_eq!(judge(&reigns, (0, 10), 1005, on(1, 99)), Judged::RolledBack);
        assert_eq!(judge(&reigns, (0, 11), 1005, on(1, 99)), Judged::Ask);
        // 1950 was flushed before the crash, but not by the standby that was promoted then: it uses it again
        let reigns = [reign(0, 10, None, 50), reign(0, 11, Some(2000), 55), reign(1, 20, Some(1900), 60)];
        assert_eq!(judge(&reigns, (0, 10), 1950, on(1, 99)), Judged::RolledBack);
        assert_eq!(judge(&reigns, (0, 10), 1899, on(1, 99)), Judged::Ask);
        // where one of them cannot tell, another may
        let reigns = [reign(0, 10, None, 50), reign(0, 11, None, 55), reign(1, 20, Some(1900), 60)];
        assert_eq!(judge(&reigns, (0, 10), 1950, on(1, 99)), Judged::RolledBack);
        assert!(matches!(judge(&reigns, (0, 10), 1899, on(1, 99)), Judged::Unknown(_)));
    }

    #[test]
    fn within_a_reign_the_connection_has_to_be_of_it_too() {
        let reigns = [reign(0, 10, None, 50)];
        assert_eq!(judge(&reigns, (0, 10), 7, on(0, 50)), Judged::Wait);
        assert_eq!(judge(&reigns, (0, 10), 7, on(0, 49)), Judged::Ask);
        let sure = Asking { reign: Some((0, 10)), ..on(0, 50) };
        assert_eq!(judge(&reigns, (0, 10), 7, sure), Judged::Ask);
        assert_eq!(judge(&reigns, (0, 10), 7, on(1, 49)), Judged::Wait, "another node");
    }

    #[test]
    fn what_was_not_seen_is_not_known() {
        let reigns = [reign(1, 20, None, 50), reign(2, 30, None, 60)];
        assert!(matches!(judge(&reigns, (0, 10), 7, on(2, 40)), Judged::Unknown(_)));
        assert!(matches!(judge(&reigns, (1, 20), 7, on(2, 40)), Judged::Unknown(_)));
        assert_eq!(judge(&[], (0, 10), 7, on(2, 40)), Judged::Unknown("the monitor has not seen every primary since"));
    }
}
