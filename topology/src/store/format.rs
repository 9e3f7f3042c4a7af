//! The record as JSON. Nodes are written by name: their places in the configuration may change, their names may not.

use decision::{Cluster, Intent, Lsn, NodeId, NodeSet, Origin, Record, Rule, Term, Timeline};
use serde::{Deserialize, Serialize};

/// Version of the format.
const FORMAT: u32 = 1;

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Stored {
    format: u32,
    cluster: String,
    revision: u64,
    system_identifier: Option<u64>,
    claimed: u64,
    rule: Option<StoredRule>,
    intent: Option<StoredIntent>,
    origin: Option<StoredOrigin>,
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    handover: bool,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct StoredRule {
    term: u64,
    leader: String,
    cohort: Vec<String>,
    k: u32,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct StoredIntent {
    node: String,
    term: u64,
    cohort: Vec<String>,
    k: u32,
    origin: StoredOrigin,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct StoredOrigin {
    term: u64,
    timeline: u32,
    lsn: u64,
    #[serde(default)]
    next_xid: Option<u64>,
}

/// The record's text; ends with a line end.
pub(super) fn write(name: &str, cluster: &Cluster, record: &Record) -> String {
    let names = |set: NodeSet| set.iter().map(|node| cluster.name(node).to_owned()).collect::<Vec<_>>();
    let origin =
        |o: &Origin| StoredOrigin { term: o.term.0, timeline: o.timeline.0, lsn: o.lsn.0, next_xid: o.next_xid };
    let stored = Stored {
        format: FORMAT,
        cluster: name.to_owned(),
        revision: record.revision,
        system_identifier: record.system_identifier,
        claimed: record.claimed.0,
        rule: record.rule.as_ref().map(|rule| StoredRule {
            term: rule.term.0,
            leader: cluster.name(rule.leader).to_owned(),
            cohort: names(rule.cohort),
            k: rule.k,
        }),
        intent: record.intent.as_ref().map(|intent| StoredIntent {
            node: cluster.name(intent.node).to_owned(),
            term: intent.term.0,
            cohort: names(intent.cohort),
            k: intent.k,
            origin: origin(&intent.origin),
        }),
        origin: record.origin.as_ref().map(origin),
        handover: record.handover,
    };
    let mut text = serde_json::to_string_pretty(&stored).expect("plain data with string keys is JSON");
    text.push('\n');
    text
}

/// The record back, or what is wrong with the text.
pub(super) fn read(name: &str, cluster: &Cluster, text: &str) -> Result<Record, String> {
    let stored: Stored = serde_json::from_str(text).map_err(|e| e.to_string())?;
    if stored.format != FORMAT {
        return Err(format!("its format is {}, this version knows {FORMAT}", stored.format));
    }
    if stored.cluster != name {
        return Err(format!("it is of cluster \"{}\", this is \"{name}\"", stored.cluster));
    }
    let origin = |o: StoredOrigin| Origin {
        term: Term(o.term),
        timeline: Timeline(o.timeline),
        lsn: Lsn(o.lsn),
        next_xid: o.next_xid,
    };
    let rule = stored.rule.map(|rule| {
        Ok::<_, String>(Rule {
            term: Term(rule.term),
            leader: id(cluster, &rule.leader)?,
            cohort: ids(cluster, &rule.cohort)?,
            k: rule.k,
        })
    });
    let intent = stored.intent.map(|intent| {
        Ok::<_, String>(Intent {
            node: id(cluster, &intent.node)?,
            term: Term(intent.term),
            cohort: ids(cluster, &intent.cohort)?,
            k: intent.k,
            origin: origin(intent.origin),
        })
    });
    Ok(Record {
        revision: stored.revision,
        system_identifier: stored.system_identifier,
        claimed: Term(stored.claimed),
        rule: rule.transpose()?,
        intent: intent.transpose()?,
        origin: stored.origin.map(origin),
        handover: stored.handover,
    })
}

/// The place of a name in the configuration.
fn id(cluster: &Cluster, name: &str) -> Result<NodeId, String> {
    let place = cluster.members().iter().position(|member| member.name == name);
    let place = place.and_then(|place| u8::try_from(place).ok());
    place.map(NodeId).ok_or_else(|| format!("it names the node \"{name}\", which is not configured"))
}

fn ids(cluster: &Cluster, names: &[String]) -> Result<NodeSet, String> {
    names.iter().map(|name| id(cluster, name)).collect()
}
