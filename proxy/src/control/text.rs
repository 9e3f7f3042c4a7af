//! A cluster's status for people.

use std::fmt::Write as _;
use std::time::Duration;

use topology::FailoverRecord;

use super::status::{Node, Status};

/// Failovers that are shown; `--json` has all.
const SHOWN: usize = 5;

pub(super) fn status(status: &Status) -> String {
    let mut out = String::new();
    let primary = match &status.primary {
        Some(primary) => format!("primary {primary}, term {}, epoch {}", status.term, status.epoch),
        None => "no primary: clients are held".to_owned(),
    };
    let _ = writeln!(out, "cluster {}: {primary}", status.cluster);
    if !status.why.is_empty() {
        let _ = writeln!(out, "  ! {}", status.why);
    }
    if let Some(rivals) = &status.rivals {
        let _ = writeln!(
            out,
            "  ! another pgsteady, which shares no store with this one, watches {rivals}: this one does not act; stop one of \
             the two, or let them share etcd ([cluster.{}.etcd])",
            status.cluster
        );
    }
    if let Some(rule) = &status.rule {
        let of = if rule.standbys.is_empty() { "no standby".to_owned() } else { rule.standbys.join(", ") };
        let _ = writeln!(out, "  a commit waits for {} of {of}", rule.k);
    }
    if status.managed {
        let acts = if status.coordinator { "acts here" } else { "another pgsteady acts" };
        let lost = status.store_lost.as_ref().map_or(String::new(), |why| format!("; LOST: {why}"));
        let _ = writeln!(out, "  {}; {acts}; store: {}{lost}", status.phase, status.store);
    } else {
        let _ = writeln!(out, "  managed by somebody else: only followed");
    }
    table(&mut out, &status.nodes);
    for failover in status.failovers.iter().rev().take(SHOWN) {
        let _ = writeln!(out, "  {}", line(failover));
    }
    out
}

fn table(out: &mut String, nodes: &[Node]) {
    let width = |of: fn(&Node) -> usize| nodes.iter().map(of).max().unwrap_or(0);
    let (names, places) = (width(|node| node.name.len()), width(|node| node.address.len()));
    for node in nodes {
        let position = node.position.as_deref().unwrap_or("-");
        let lag = node.lag_ms.map_or("-".to_owned(), |ms| format!("{ms} ms"));
        let _ = write!(
            out,
            "  {:names$}  {:places$}  {:7}  {position:>12}  lag {lag:>8}",
            node.name, node.address, node.role
        );
        let _ = writeln!(out, "{}", if node.why.is_empty() { String::new() } else { format!("  {}", node.why) });
    }
}

fn line(record: &FailoverRecord) -> String {
    let kind = if record.planned { "switchover" } else { "failover" };
    let ms = |length: Duration| length.as_millis();
    let fenced: Vec<String> = record.fenced.iter().map(|fence| format!("{} {}", fence.node, fence.position)).collect();
    format!(
        "{} {kind} {} -> {} (term {}): {}; held {} clients {} ms (detect {}, fence {}, promote {}, open {}); fenced {}; {} {}",
        humantime::format_rfc3339_millis(record.detected_at),
        record.from.as_deref().unwrap_or("?"),
        record.to,
        record.term,
        record.why,
        record.held,
        ms(record.hold),
        ms(record.detect),
        ms(record.fence),
        ms(record.promote),
        ms(record.open),
        fenced.join(", "),
        record.to,
        record.chosen,
    )
}
