//! What was read, in the words of the decision: names become node ids, settings become what they mean.

use std::sync::Arc;
use std::time::Duration;

use decision::{Cluster, Contact, Millis, NodeId, NodeSet, Rule, SyncNames, Term, Timeline, Upstream};

use crate::act::{is_unread, marked_by};
use crate::{Address, Failure, Reading, RuleInForce, TermRow, Verdict};

/// The configured nodes, by name and by address.
#[derive(Debug, Clone)]
pub(crate) struct Names {
    pub(crate) cluster: Cluster,
    pub(crate) addresses: Arc<[Arc<Address>]>,
}

impl Names {
    pub(crate) fn address(&self, node: NodeId) -> &Address {
        &self.addresses[node.index()]
    }

    fn id(&self, name: &str) -> Option<NodeId> {
        let place = self.cluster.members().iter().position(|member| member.name == name)?;
        u8::try_from(place).ok().map(NodeId)
    }

    fn upstream(&self, upstream: Option<&(String, u16)>) -> Upstream {
        let Some((host, port)) = upstream else { return Upstream::Empty };
        let is_there = |address: &Address| match address {
            Address::Tcp(name, number) => name == host && number == port,
            Address::Unix(folder, number) => folder.as_os_str() == host.as_str() && number == port,
        };
        let place = self.addresses.iter().position(|address| is_there(address));
        let id = place.and_then(|place| u8::try_from(place).ok());
        id.map_or(Upstream::Elsewhere, |id| Upstream::Node(NodeId(id)))
    }

    pub(crate) fn row(&self, row: &TermRow) -> decision::TermRow {
        decision::TermRow { term: Term(row.term), leader: self.id(&row.leader) }
    }

    pub(crate) fn rule(&self, rule: &Rule) -> TermRow {
        TermRow {
            term: rule.term.0,
            leader: self.cluster.name(rule.leader).to_owned(),
            cohort: rule.cohort.iter().map(|node| self.cluster.name(node).to_owned()).collect(),
            k: rule.k,
        }
    }

    fn shared(&self, node: NodeId) -> Arc<str> {
        self.cluster.name(node).into()
    }

    pub(crate) fn in_force(&self, rule: &Rule) -> RuleInForce {
        RuleInForce {
            term: rule.term.0,
            leader: self.shared(rule.leader),
            standbys: rule.cohort.iter().map(|node| self.shared(node)).collect(),
            k: rule.k,
        }
    }

    pub(crate) fn verdict(&self, verdict: &decision::Verdict) -> Verdict {
        match verdict {
            decision::Verdict::Refused(why) => Verdict::Refused { why: why.to_string(), passes: why.passes },
            decision::Verdict::Undone(why) => Verdict::Undone { why: why.to_string() },
            decision::Verdict::Done { from, to, term } => {
                Verdict::Done { from: self.shared(*from), to: self.shared(*to), term: term.0 }
            }
        }
    }

    /// A reading as a report.
    pub(crate) fn report(&self, reading: &Reading) -> decision::Report {
        let streaming = reading.walsenders.iter().filter(|sender| sender.state == "streaming");
        decision::Report {
            system_identifier: reading.system,
            incarnation: reading.started.cast_unsigned(),
            in_recovery: reading.in_recovery,
            timeline: Timeline(reading.timeline),
            received: reading.received.filter(|_| reading.in_recovery).map(lsn),
            replayed: reading.replayed.filter(|_| reading.in_recovery).map(lsn),
            inserted: reading.inserted.map(lsn),
            flushing: reading.flushing.map(lsn),
            row: reading.term.as_ref().map(|row| self.row(row)),
            upstream: self.upstream(reading.upstream.as_ref()),
            marker: marked_by(&reading.slot_name).map(Term),
            receiver: reading.receiver.as_ref().map(|receiver| decision::Receiver {
                streaming: receiver.status == "streaming",
                silent_for: receiver.heard.map_or(Millis(u64::MAX), millis),
            }),
            replay_paused: reading.replay_paused,
            sync_names: self.sync_names(&reading.synchronous_standby_names),
            standbys: streaming.filter_map(|sender| self.id(&sender.name)).collect(),
        }
    }

    /// `synchronous_standby_names` (manual 20.6.1). Only the form that we set is understood: anything else is `Other`. So is one that
    /// is set and perhaps not in force.
    fn sync_names(&self, setting: &str) -> SyncNames {
        if setting.trim().is_empty() {
            return SyncNames::Nobody;
        }
        if is_unread(setting) {
            return SyncNames::Other;
        }
        self.any(setting).map_or(SyncNames::Other, |(k, cohort)| SyncNames::Any { k, cohort })
    }

    fn any(&self, setting: &str) -> Option<(u32, NodeSet)> {
        let text = setting.trim();
        let (word, rest) = text.split_at_checked(3)?;
        if !word.eq_ignore_ascii_case("any") {
            return None;
        }
        let (k, list) = rest.trim().strip_suffix(')')?.split_once('(')?;
        let mut cohort = NodeSet::EMPTY;
        for name in names(list)? {
            let id = self.id(&name).filter(|id| !cohort.contains(*id))?;
            cohort = cohort.with(id);
        }
        let k = k.trim().parse().ok().filter(|k| *k > 0)?;
        Some((k, cohort))
    }
}

/// Names between commas, quoted or not; `None` if the list is not well-formed.
fn names(list: &str) -> Option<Vec<String>> {
    let mut names = Vec::new();
    let mut rest = list.trim();
    loop {
        let (name, tail) = match rest.strip_prefix('"') {
            Some(quoted) => quoted_name(quoted)?,
            None => {
                let end = rest.find(|c: char| c == ',' || c.is_whitespace()).unwrap_or(rest.len());
                (rest[..end].to_owned(), &rest[end..])
            }
        };
        if name.is_empty() {
            return None;
        }
        names.push(name);
        match tail.trim_start().strip_prefix(',') {
            Some(next) => rest = next.trim_start(),
            None => return tail.trim().is_empty().then_some(names),
        }
    }
}

fn quoted_name(text: &str) -> Option<(String, &str)> {
    let mut name = String::new();
    let mut rest = text;
    loop {
        let (part, tail) = rest.split_once('"')?;
        name.push_str(part);
        match tail.strip_prefix('"') {
            Some(tail) => {
                name.push('"');
                rest = tail;
            }
            None => return Some((name, tail)),
        }
    }
}

/// A failed attempt as a contact; `None`: the connection was lost, which is an event of its own.
pub(crate) fn contact(failure: &Failure) -> Option<Contact> {
    Some(match failure {
        Failure::Refused(_) => Contact::Refused,
        Failure::Starting(_) => Contact::Starting,
        // no route, no name: nothing was heard of the node, so nothing is known of it
        Failure::Silent(_) | Failure::Unreachable(_) => Contact::Silent,
        Failure::Denied(why) => Contact::LoginFailed(why.clone()),
        Failure::Answered(why) => Contact::Unreadable(why.clone()),
        Failure::Lost(_) => return None,
    })
}

pub(crate) fn lsn(lsn: crate::Lsn) -> decision::Lsn {
    decision::Lsn(lsn.0)
}

pub(crate) fn millis(duration: Duration) -> Millis {
    Millis(u64::try_from(duration.as_millis()).unwrap_or(u64::MAX))
}

#[cfg(test)]
mod tests {
    use decision::Member;

    use super::*;

    fn three() -> Names {
        let member = |name: &str| Member { name: name.into(), zone: String::new(), priority: 0 };
        let addresses = [
            Address::Tcp("a.example".into(), 5432),
            Address::Unix("/run/pg".into(), 5433),
            Address::Tcp("::1".into(), 5432),
        ];
        Names {
            cluster: Cluster::new(vec![member("a"), member("b \"2\""), member("c")]).unwrap(),
            addresses: addresses.into_iter().map(Arc::new).collect(),
        }
    }

    #[test]
    fn only_a_rule_of_ours_counts_as_one() {
        let names = three();
        let set = |ids: &[u8]| ids.iter().copied().map(NodeId).collect::<NodeSet>();
        let any = |k, ids: &[u8]| SyncNames::Any { k, cohort: set(ids) };
        let text = crate::act::rule_text(1, &["a", "b \"2\""]);
        assert_eq!(names.sync_names(&text), any(1, &[0, 1]));
        assert_eq!(names.sync_names("Any 2(a ,c)"), any(2, &[0, 2]));
        assert_eq!(names.sync_names("any 2(a ,c)"), SyncNames::Other, "commits may not wait yet");
        assert_eq!(names.sync_names("  "), SyncNames::Nobody);
        for other in [
            "*",
            "a",
            "a, c",
            "1 (a)",
            "FIRST 1 (a)",
            "ANY 1 (z)",
            "ANY 1 (a,a)",
            "ANY 0 (a)",
            "ANY 1 (a",
            "ANY 1 ()",
            "ANY 1 (a c)",
            "ANY 1 (\"a)",
            "anÿ",
        ] {
            assert_eq!(names.sync_names(other), SyncNames::Other, "{other}");
        }
    }

    #[test]
    fn an_upstream_is_a_node_by_its_address() {
        let names = three();
        let of = |host: &str, port| names.upstream(Some(&(host.into(), port)));
        assert_eq!(of("a.example", 5432), Upstream::Node(NodeId(0)));
        assert_eq!(of("/run/pg", 5433), Upstream::Node(NodeId(1)));
        assert_eq!(of("a.example", 5433), Upstream::Elsewhere);
        assert_eq!(names.upstream(None), Upstream::Empty);
    }
}
