//! The model store: one record, compare-and-set.

use std::collections::BTreeSet;

use decision::{Action, Event, NodeId, NodeSet, Record, Rule, Term};

use super::SYSTEM;

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) struct Store {
    pub(crate) record: Option<Record>,
    /// Every (term, leader) that was ever the rule.
    pub(crate) published: BTreeSet<(Term, NodeId)>,
    /// A lie: every write succeeds.
    pub(crate) no_compare: bool,
}

impl Store {
    pub(crate) fn empty() -> Self {
        Self { record: None, published: BTreeSet::new(), no_compare: false }
    }

    pub(crate) fn with(leader: NodeId, cohort: NodeSet, k: u32) -> Self {
        let term = Term(1);
        let record = Record {
            revision: 1,
            system_identifier: Some(SYSTEM),
            claimed: term,
            rule: Some(Rule { term, leader, cohort, k }),
            intent: None,
            origin: None,
            handover: false,
        };
        Self { record: Some(record), published: BTreeSet::from([(term, leader)]), no_compare: false }
    }

    pub(crate) fn rule(&self) -> Option<Rule> {
        self.record.as_ref()?.rule
    }

    pub(crate) fn leader(&self) -> Option<NodeId> {
        self.rule().map(|rule| rule.leader)
    }

    pub(crate) fn claimed(&self) -> Option<Term> {
        self.record.as_ref().map(|record| record.claimed)
    }

    pub(crate) fn term(&self) -> Option<Term> {
        self.rule().map(|rule| rule.term)
    }

    pub(crate) fn has_intent(&self) -> bool {
        self.record.as_ref().is_some_and(|record| record.intent.is_some())
    }

    pub(crate) fn execute(&mut self, action: &Action) -> Event {
        let current = self.record.clone().unwrap_or_else(Record::empty);
        match action {
            Action::ReadStore => Event::StoreRead { record: self.record.clone() },
            Action::ClaimTerm { from, to, handover } => {
                if current.claimed != *from && !self.no_compare {
                    return Event::TermRefused { record: current };
                }
                let record = Record { revision: current.revision + 1, claimed: *to, handover: *handover, ..current };
                self.record = Some(record.clone());
                Event::TermClaimed { record }
            }
            Action::Publish { record } => {
                if current.revision + 1 != record.revision && !self.no_compare {
                    return Event::PublishRefused { record: current };
                }
                self.record = Some(record.clone());
                self.published.extend(record.rule.map(|rule| (rule.term, rule.leader)));
                Event::Published { revision: record.revision }
            }
            other => unreachable!("not an order to the store: {other:?}"),
        }
    }
}
