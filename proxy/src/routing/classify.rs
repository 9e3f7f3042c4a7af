//! From the text of a statement to its class: what was seen before from the cache, the plain from the lexer, the rest from
//! PostgreSQL's own grammar. What cannot be read is for the primary, and keeps its server where it may leave something there.

use super::cache::Cache;
use super::functions::Functions;
use super::grammar;
use super::shape::{Shape, is};
use super::{Class, Effect, Kind, PinReason};

/// Nesting of parentheses and brackets that the grammar is asked to read. Its parser recurses no deeper than its stack check
/// allows, and its tree is read to 100 levels; this keeps hostile texts from being tried at all.
pub const MAX_NESTING: usize = 100;

/// Bytes of a text that the grammar is asked to read; it takes 0.1 to 0.5 µs a byte, and the other clients of the worker wait.
pub const MAX_GRAMMAR_BYTES: usize = 16 * 1024;

/// Bytes of a text that is read by the lexer rather than looked up.
const SHORT: usize = 128;

/// What a classifier may use.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ClassifierLimits {
    /// Texts kept.
    pub entries: usize,
    /// Bytes of texts and classes kept.
    pub bytes: usize,
    /// A statement of more bytes is neither kept nor given to the grammar, which has its own limit, [`MAX_GRAMMAR_BYTES`].
    pub statement_bytes: usize,
}

/// Classifies statements. One a worker: it has no lock.
///
/// It reads as with `standard_conforming_strings = on`. For a session that turned it off, a text with a backslash is
/// [`Class::unknown`].
#[derive(Debug)]
pub struct Classifier {
    limits: ClassifierLimits,
    functions: Functions,
    cache: Cache,
}

impl Classifier {
    /// One that has seen nothing and knows PostgreSQL's own functions.
    #[must_use]
    pub fn new(limits: ClassifierLimits) -> Self {
        Self::with_functions(limits, Functions::builtin())
    }

    /// One that takes these functions, and no others, for readers.
    #[must_use]
    pub fn with_functions(limits: ClassifierLimits, functions: Functions) -> Self {
        Self { limits, functions, cache: Cache::new(limits.entries, limits.bytes) }
    }

    /// What this text is. `sql` comes without its closing zero. A short text that the lexer settles is read each time: that
    /// costs no more than to keep it, and literals make such texts new each time. Else a text seen before costs one hash and
    /// one comparison.
    #[inline]
    pub fn classify(&mut self, sql: &[u8]) -> Class {
        if sql.len() <= SHORT
            && let shape = Shape::of(sql, &self.functions)
            && let Some(mut class) = settled(&shape)
        {
            class.hint = shape.hint;
            return class;
        }
        match self.cache.get(sql) {
            Some(class) => class,
            None => self.read(sql),
        }
    }

    /// Texts and bytes that are kept at the moment.
    #[must_use]
    pub fn size(&self) -> (usize, usize) {
        self.cache.size()
    }

    #[cold]
    fn read(&mut self, sql: &[u8]) -> Class {
        let shape = Shape::of(sql, &self.functions);
        let fits = sql.len() <= self.limits.statement_bytes;
        let mut class = settled(&shape).unwrap_or_else(|| self.ask_grammar(sql, &shape, fits));
        class.hint = shape.hint;
        if fits {
            self.cache.insert(sql, &class);
        }
        class
    }

    fn ask_grammar(&self, sql: &[u8], shape: &Shape<'_>, fits: bool) -> Class {
        if !fits || sql.len() > MAX_GRAMMAR_BYTES || shape.depth > MAX_NESTING || shape.unterminated {
            return unread(shape);
        }
        let classes = std::str::from_utf8(sql).ok().and_then(|text| grammar::classes(text, &self.functions));
        match classes {
            Some(classes) => joined(classes),
            None => unread(shape),
        }
    }
}

/// The class of what needs no grammar: it is one plain statement, whatever else is in it.
fn settled(shape: &Shape<'_>) -> Option<Class> {
    let first = |words: &[&str]| words.iter().any(|word| shape.first_is(word));
    if shape.statements == 0 && !shape.unterminated {
        return Some(Class::of(Kind::Empty));
    }
    if shape.statements != 1 || shape.unterminated || !shape.session.calls_none() {
        return None;
    }
    if shape.reads_only && shape.depth <= MAX_NESTING {
        let mut class = Class::of(Kind::Query);
        class.reads_only = true;
        return Some(class);
    }
    if first(&["insert", "update", "delete", "merge"]) {
        return Some(Class::of(Kind::Write));
    }
    if first(&["copy"]) {
        return Some(Class::of(Kind::Copy));
    }
    if shape.tokens != 1 {
        return None;
    }
    Some(Class::of(match () {
        () if first(&["begin"]) => Kind::Begin { read_only: None },
        () if first(&["commit", "end"]) => Kind::Commit { chain: false },
        () if first(&["rollback", "abort"]) => Kind::Rollback { chain: false },
        () => return None,
    }))
}

/// One class for all statements of a text.
fn joined(mut classes: Vec<Class>) -> Class {
    if classes.len() < 2 {
        return classes.pop().unwrap_or(Class::of(Kind::Empty));
    }
    let mut class = Class::of(Kind::Several);
    let ends = |part: &Class| matches!(part.kind, Kind::Commit { .. } | Kind::Rollback { .. });
    class.reads_only = classes.iter().all(|part| part.reads_only || ends(part));
    class.weakens_commits = classes.iter().any(|part| part.weakens_commits);
    class.effects = classes.iter().flat_map(|part| part.effects.iter().cloned()).collect();
    class.parts = classes.into_iter().collect();
    class
}

/// What is said of a text that was not read: its kind by its first words, for the primary; and if it holds a word of what
/// stays in a session, its session keeps the server.
fn unread(shape: &Shape<'_>) -> Class {
    let kind = if shape.statements > 1 { Kind::Several } else { kind_by_words(&shape.words) };
    let words = shape.session;
    let mut class = Class::of(kind);
    let data = matches!(class.kind, Kind::Write | Kind::Copy);
    if !words.calls_none() || (!data && (words.keyword || words.temporary)) {
        class.effects = [Effect::Pin(PinReason::Unread)].into_iter().collect();
    }
    class
}

/// The kind of a statement as far as its first words say it.
fn kind_by_words(words: &[&[u8]]) -> Kind {
    let word = |at: usize, keywords: &[&str]| {
        words.get(at).is_some_and(|word| keywords.iter().any(|keyword| is(word, keyword)))
    };
    let second = |keyword: &str| word(1, &[keyword]) || (word(1, &["work", "transaction"]) && word(2, &[keyword]));
    let chain = word(1, &["and"]) && word(2, &["chain"]) || word(2, &["and"]) && word(3, &["chain"]);
    match () {
        () if word(0, &["select", "values", "table", "show", "fetch", "move", "close"]) => Kind::Query,
        () if word(0, &["insert", "update", "delete", "merge", "with", "explain"]) => Kind::Write,
        () if word(0, &["copy"]) => Kind::Copy,
        () if word(0, &["begin"]) || word(0, &["start"]) && second("transaction") => Kind::Begin { read_only: None },
        () if word(0, &["commit"]) && second("prepared") => Kind::CommitPrepared,
        () if word(0, &["commit", "end"]) => Kind::Commit { chain },
        () if word(0, &["rollback"]) && second("prepared") => Kind::RollbackPrepared,
        () if word(0, &["rollback"]) && second("to") => Kind::RollbackTo,
        () if word(0, &["rollback", "abort"]) => Kind::Rollback { chain },
        () if word(0, &["savepoint"]) => Kind::Savepoint,
        () if word(0, &["release"]) => Kind::Release,
        () if word(0, &["prepare"]) && second("transaction") => Kind::PrepareTransaction,
        () if word(0, &["create", "alter", "drop", "grant", "revoke", "truncate", "comment"]) => Kind::Ddl,
        () => Kind::Unknown,
    }
}
