//! `pgsteady failover`: what an operator says when a primary is lost and nobody can prove that a standby has all it acknowledged.

use std::path::PathBuf;

use clap::Args;
use topology::{FailoverRecord, Lsn, Verdict};

use super::command::{SWITCHING, Target, ask, by_hand, chosen, read_status, say, told_why_not};
use super::status::Status;
use super::{PASSING, Request};
use crate::config::Config;

/// What `pgsteady failover` is told.
#[derive(Debug, Clone, Args)]
pub struct FailoverArgs {
    #[command(flatten)]
    target: Target,
    /// Go on with what the standbys within reach have: commits that were acknowledged and that none of them has are lost.
    #[arg(long)]
    accept_data_loss: bool,
}

/// Promotes a standby although commits may be lost, and says how much is. `Ok(true)`: another node is the primary now.
///
/// # Errors
/// Why it was not begun, or why nobody answered, for people.
pub fn failover(
    args: &FailoverArgs,
    load: impl FnOnce(Option<PathBuf>) -> Result<Config, String>,
) -> Result<bool, String> {
    let config = load(args.target.config.clone())?;
    let cluster = chosen(&config, args.target.cluster.as_deref())?;
    let before = read_status(&ask(cluster, &Request::Status {}, PASSING)?)?;
    if !args.accept_data_loss {
        return Err(without_word(&before));
    }
    let answer = ask(cluster, &Request::Failover {}, SWITCHING)?;
    let verdict: Verdict =
        serde_json::from_str(&answer).map_err(|error| format!("the answer is not understood: {error}"))?;
    let Verdict::Done { from, to, term } = &verdict else {
        return told_why_not(&verdict, args.target.json);
    };
    let after = read_status(&ask(cluster, &Request::Status {}, PASSING)?)?;
    let loss = Loss::of(&before, &after, from, to, *term);
    if args.target.json {
        let (seen, kept, bytes) = (&loss.seen, &loss.kept, loss.bytes());
        say(&serde_json::json!({"outcome": "done", "from": from, "to": to, "term": term,
            "last_seen": seen.map(|at| at.to_string()), "kept": kept.map(|at| at.to_string()), "lost_bytes": bytes})
        .to_string());
        return Ok(true);
    }
    say(&format!("{to} is the primary now (term {term})"));
    say(&loss.text(from, to));
    say(&by_hand(cluster, from, to));
    Ok(true)
}

/// A failover that loses nothing needs nobody's word.
fn without_word(status: &Status) -> String {
    match &status.primary {
        Some(primary) => {
            format!("{primary} serves: nothing is to be done; `pgsteady switchover` makes another node primary")
        }
        None => format!(
            "a failover that loses nothing begins by itself as soon as it is possible. It is not yet: {}. To go on with what the \
             standbys within reach have, and lose the rest: --accept-data-loss",
            status.why
        ),
    }
}

/// How much was given up.
struct Loss {
    /// Where the old primary was when it was last read.
    seen: Option<Lsn>,
    /// Where the new one was when it was promoted.
    kept: Option<Lsn>,
}

impl Loss {
    fn of(before: &Status, after: &Status, from: &str, to: &str, term: u64) -> Self {
        let seen = before.nodes.iter().find(|node| &*node.name == from).and_then(|node| node.position.as_deref());
        let record = after.failovers.iter().rev().find(|record| record.term == term);
        let kept = record.and_then(|record| position_of(record, to));
        Self { seen: seen.and_then(|text| text.parse().ok()), kept }
    }

    /// Of WAL; `None` if one of the two places is not known.
    fn bytes(&self) -> Option<u64> {
        Some(self.seen?.0.saturating_sub(self.kept?.0))
    }

    fn text(&self, from: &str, to: &str) -> String {
        match (self.seen, self.kept, self.bytes()) {
            (Some(seen), Some(kept), Some(0)) => format!(
                "nothing is known to be lost: {from} was last seen at {seen}, and {to} has the WAL up to {kept}; what {from} \
                 wrote after it was last seen, and {to} has not, is lost"
            ),
            (Some(seen), Some(kept), Some(bytes)) => format!(
                "lost: {bytes} bytes of WAL at least. {from} was last seen at {seen}, and {to} has the WAL up to {kept}; what \
                 {from} wrote after it was last seen is lost too"
            ),
            (_, kept, _) => format!(
                "it is not known how much is lost: this pgsteady has never read {from}; {to} has the WAL up to {}",
                kept.map_or_else(|| "an unknown place".to_owned(), |at| at.to_string())
            ),
        }
    }
}

fn position_of(record: &FailoverRecord, node: &str) -> Option<Lsn> {
    record.fenced.iter().find(|fenced| &*fenced.node == node).and_then(|fenced| fenced.position.parse().ok())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_loss_is_said_as_far_as_it_is_known() {
        let loss = |seen: Option<u64>, kept: Option<u64>| Loss { seen: seen.map(Lsn), kept: kept.map(Lsn) };
        assert_eq!(loss(Some(300), Some(100)).bytes(), Some(200));
        assert!(loss(Some(300), Some(100)).text("n1", "n2").starts_with("lost: 200 bytes of WAL at least. n1"));
        assert!(loss(Some(100), Some(100)).text("n1", "n2").starts_with("nothing is known to be lost"));
        assert!(loss(None, Some(100)).text("n1", "n2").contains("never read n1"));
    }
}
