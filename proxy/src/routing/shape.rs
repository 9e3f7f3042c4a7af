//! What one pass over the tokens tells of a text: how many statements, the first words, how deep it nests, words that
//! bear on the server's session, the comment hint, and whether it surely only reads. No grammar.

use super::functions::Functions;
use super::lexer::{Lexer, Token};
use super::{PinReason, Route};

/// Words kept of the beginning of the first statement.
const WORDS: usize = 4;

/// What a text looks like.
#[derive(Debug, Default)]
pub(super) struct Shape<'s> {
    /// Statements: what is between semicolons and holds a token.
    pub(super) statements: usize,
    /// The words that the first statement begins with, up to the first token that is no word.
    pub(super) words: [&'s [u8]; WORDS],
    /// Tokens of the first statement.
    pub(super) tokens: usize,
    /// How deep parentheses and brackets are nested.
    pub(super) depth: usize,
    /// It is SELECT, VALUES, TABLE or WITH, and no token of it can belong to anything that writes, locks, or calls a
    /// function that is not known to read only. (If it is no SQL at all, no server does anything with it.)
    pub(super) reads_only: bool,
    /// Names of functions that leave something in the session, wherever they stand.
    pub(super) session: SessionWords,
    /// The hint in a comment before the first or after the last token.
    pub(super) hint: Option<Route>,
    /// A string, a name or a comment has no end.
    pub(super) unterminated: bool,
}

/// Names that bear on the server's session.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct SessionWords {
    /// How often `set_config` is named.
    pub(super) set_config: usize,
    /// A function that takes an advisory lock for the session.
    pub(super) advisory_lock: bool,
    /// Another function that leaves something in the session.
    pub(super) other: bool,
    /// A schema of temporary objects.
    pub(super) temporary: bool,
    /// A keyword of a statement that leaves something: SET, PREPARE, LISTEN, TEMP, HOLD, …
    pub(super) keyword: bool,
    /// A name in Unicode escapes, which may be any of them.
    pub(super) escaped: bool,
}

/// The token before, as far as an opening parenthesis has to know.
#[derive(Debug, Clone, Copy)]
enum Before<'s> {
    Word { word: &'s [u8], qualified: bool },
    Quoted,
    Dot,
    Other,
}

impl<'s> Shape<'s> {
    /// Looks at a text.
    pub(super) fn of(text: &'s [u8], functions: &Functions) -> Self {
        let mut pass =
            Pass { shape: Shape::default(), functions, before: Before::Other, open: 0, empty: true, trailing: None };
        pass.shape.reads_only = true;
        for token in Lexer::new(text) {
            pass.token(token);
        }
        let mut shape = pass.shape;
        shape.hint = shape.hint.or(pass.trailing);
        shape.reads_only &= shape.statements == 1
            && !shape.unterminated
            && ["select", "values", "table", "with"].iter().any(|first| shape.first_is(first));
        shape
    }

    /// Whether the first statement begins with this word.
    pub(super) fn first_is(&self, word: &str) -> bool {
        is(self.words[0], word)
    }
}

impl SessionWords {
    /// Why a session keeps its server when the functions named are called, other than for `set_config`.
    pub(super) fn pins(self) -> impl Iterator<Item = PinReason> {
        let advisory = self.advisory_lock.then_some(PinReason::AdvisoryLock);
        advisory.into_iter().chain((self.other || self.escaped).then_some(PinReason::SessionFunction))
    }

    /// Whether no function is named that leaves anything.
    pub(super) fn calls_none(self) -> bool {
        self.set_config == 0 && self.pins().next().is_none()
    }

    fn note(&mut self, word: &[u8]) {
        self.set_config += usize::from(is(word, SET_CONFIG));
        self.keyword |= KEEPING.iter().any(|keyword| is(word, keyword));
        self.other |= begins(word, DBLINK);
        if begins(word, PG) {
            self.note_pg(word);
        }
    }

    fn note_pg(&mut self, word: &[u8]) {
        let locks = begins(word, "pg_advisory_lock") || begins(word, "pg_try_advisory_lock");
        let slot = (begins(word, "pg_create_") || begins(word, "pg_copy_")) && ends(word, "_slot");
        self.advisory_lock |= locks;
        self.other |= slot || is(word, "pg_replication_origin_session_setup");
        self.temporary |= begins(word, "pg_temp");
    }
}

struct Pass<'s, 'f> {
    shape: Shape<'s>,
    functions: &'f Functions,
    before: Before<'s>,
    open: usize,
    /// The statement has no token yet.
    empty: bool,
    /// The hint since the last token.
    trailing: Option<Route>,
}

impl<'s> Pass<'s, '_> {
    fn token(&mut self, token: Token<'s>) {
        match token {
            Token::Comment(text) => return self.comment(text),
            Token::Symbol(b';') => {
                self.empty = true;
                self.before = Before::Other;
                return;
            }
            _ => self.trailing = None,
        }
        if self.empty {
            self.empty = false;
            self.shape.statements += 1;
            self.shape.reads_only &= self.shape.statements == 1;
        }
        self.before = match token {
            Token::Word(word) => self.word(word),
            Token::Quoted(name) => {
                self.shape.session.note(name);
                self.shape.reads_only &= !begins(name, "pg_");
                Before::Quoted
            }
            Token::Escaped => {
                self.shape.session.escaped = true;
                self.shape.reads_only = false;
                Before::Quoted
            }
            Token::Symbol(symbol) => self.symbol(symbol),
            Token::Unterminated => {
                self.shape.unterminated = true;
                Before::Other
            }
            Token::String | Token::Number | Token::Comment(_) => Before::Other,
        };
        self.shape.tokens += usize::from(self.shape.statements == 1);
    }

    fn word(&mut self, word: &'s [u8]) -> Before<'s> {
        let place = self.shape.tokens;
        let follows = place == 0 || self.shape.words.get(place - 1).is_some_and(|before| !before.is_empty());
        if self.shape.statements == 1 && place < WORDS && follows {
            self.shape.words[place] = word;
        }
        if matters(word) {
            self.shape.session.note(word);
            self.shape.reads_only &= !may_write(word);
        }
        Before::Word { word, qualified: matches!(self.before, Before::Dot) }
    }

    fn symbol(&mut self, symbol: u8) -> Before<'s> {
        match symbol {
            b'(' => {
                self.shape.reads_only = self.shape.reads_only && self.may_open();
                self.deeper();
            }
            b'[' => self.deeper(),
            b')' | b']' => self.open = self.open.saturating_sub(1),
            b'.' => return Before::Dot,
            _ => {}
        }
        Before::Other
    }

    fn deeper(&mut self) {
        self.open += 1;
        self.shape.depth = self.shape.depth.max(self.open);
    }

    /// Whether a parenthesis here surely opens no call of a function that is not known.
    fn may_open(&self) -> bool {
        match self.before {
            Before::Word { word, qualified } => !qualified && (is_no_function(word) || self.functions.allows(word)),
            Before::Quoted | Before::Dot => false,
            Before::Other => true,
        }
    }

    fn comment(&mut self, text: &[u8]) {
        let hint = hint_in(text);
        if self.shape.statements == 0 {
            self.shape.hint = self.shape.hint.or(hint);
        } else {
            self.trailing = self.trailing.or(hint);
        }
    }
}

/// The route in a comment: `pgsteady.route=replica`, with or without quotes, alone or among other words.
fn hint_in(comment: &[u8]) -> Option<Route> {
    let name = Route::PARAMETER.as_bytes();
    let found = comment.windows(name.len()).position(|window| window == name)?;
    let rest = comment[found + name.len()..].trim_ascii_start().strip_prefix(b"=")?.trim_ascii_start();
    let rest = rest.strip_prefix(b"'").unwrap_or(rest);
    let end = rest.iter().position(|byte| !byte.is_ascii_alphabetic()).unwrap_or(rest.len());
    Route::parse(&rest[..end])
}

/// A function that sets a parameter.
const SET_CONFIG: &str = "set_config";
/// Functions of an extension that leave connections behind begin with this.
const DBLINK: &str = "dblink_connect";
/// The catalog's and the server's own names begin with this.
const PG: &str = "pg_";
/// Keywords of what writes or locks.
const WRITING: [&str; 6] = ["into", "insert", "for", "update", "delete", "merge"];
/// Keywords of what leaves something in the session.
const KEEPING: [&str; 8] = ["set", "prepare", "temp", "temporary", "hold", "listen", "load", "reset"];

/// Words that a plain read does not hold as words.
fn may_write(word: &[u8]) -> bool {
    begins(word, PG) || WRITING.iter().any(|keyword| is(word, keyword))
}

/// Lengths that a word can have which one of the lists above may hold, a bit each, by the lower bits of its first letter;
/// the last bit is for all that are longer.
static LENGTHS: [u64; 32] = {
    const fn add(mut lengths: [u64; 32], words: &[&str], longer: bool) -> [u64; 32] {
        let mut at = 0;
        while at < words.len() {
            let bit = 1 << words[at].len();
            let letter = (words[at].as_bytes()[0] & 31) as usize;
            lengths[letter] |= if longer { !(bit - 1) } else { bit };
            at += 1;
        }
        lengths
    }
    let lengths = add(add([0; 32], &WRITING, false), &KEEPING, false);
    add(add(lengths, &[SET_CONFIG], false), &[DBLINK, PG], true)
};

/// Whether a word may be one of the lists above; most are not.
#[inline]
fn matters(word: &[u8]) -> bool {
    let letter = word.first().map_or(0, |first| first & 31);
    LENGTHS[usize::from(letter)] >> word.len().min(63) & 1 != 0
}

/// Keywords that can stand before a parenthesis and that no function of a user can be named: reserved ones, and those that
/// PostgreSQL allows as column names only (manual, appendix "SQL Key Words").
fn is_no_function(word: &[u8]) -> bool {
    const NAMES: [&str; 44] = [
        "all",
        "and",
        "any",
        "array",
        "as",
        "between",
        "bit",
        "case",
        "char",
        "character",
        "coalesce",
        "dec",
        "decimal",
        "distinct",
        "else",
        "except",
        "exists",
        "extract",
        "float",
        "from",
        "greatest",
        "having",
        "in",
        "intersect",
        "interval",
        "lateral",
        "least",
        "limit",
        "not",
        "nullif",
        "numeric",
        "on",
        "or",
        "row",
        "select",
        "some",
        "then",
        "time",
        "timestamp",
        "union",
        "using",
        "values",
        "varchar",
        "when",
    ];
    is(word, "where") || is(word, "substring") || is(word, "trim") || NAMES.iter().any(|name| is(word, name))
}

pub(super) fn is(word: &[u8], keyword: &str) -> bool {
    word.len() == keyword.len() && word.eq_ignore_ascii_case(keyword.as_bytes())
}

fn begins(word: &[u8], start: &str) -> bool {
    word.get(..start.len()).is_some_and(|head| is(head, start))
}

fn ends(word: &[u8], end: &str) -> bool {
    word.len() >= end.len() && is(&word[word.len() - end.len()..], end)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shape(text: &str) -> Shape<'_> {
        let functions = Functions::builtin();
        Shape::of(text.as_bytes(), &functions)
    }

    #[test]
    fn statements_words_and_depth_are_counted() {
        let two = shape(" ; /* ; */ SELECT ((1)), ARRAY[(2)]; ';' ; ");
        assert_eq!((two.statements, two.depth), (2, 2));
        assert_eq!(two.words[0], b"SELECT");
        assert_eq!(two.words[1], b"", "a parenthesis ends the words");
        let words = shape("commit and no chain x");
        assert_eq!(words.words, [&b"commit"[..], b"and", b"no", b"chain"]);
        assert_eq!(words.tokens, 5);
        assert!(shape("SELECT 'a").unterminated);
        assert_eq!(shape("(((").depth, 3);
    }

    #[test]
    fn a_hint_counts_at_the_start_and_at_the_end_and_nowhere_else() {
        let table = [
            ("/* pgsteady.route=replica */ SELECT 1", Some(Route::Replica)),
            ("/*a*/ /*pgsteady.route='primary',b='c'*/ SELECT 1", Some(Route::Primary)),
            ("-- pgsteady.route = auto\nSELECT 1", Some(Route::Auto)),
            ("SELECT 1 -- pgsteady.route=REPLICA", Some(Route::Replica)),
            ("SELECT 1; /* pgsteady.route=replica */ ;", Some(Route::Replica)),
            ("/* pgsteady.route=primary */ SELECT 1 /* pgsteady.route=replica */", Some(Route::Primary)),
            ("SELECT /* pgsteady.route=replica */ 1", None),
            ("SELECT '/* pgsteady.route=replica */'", None),
            ("SELECT 1 /* pgsteady.route=replica */ + 1", None),
            ("/* pgsteady.route=replicas */ SELECT 1", None),
            ("/* pgsteady.route */ SELECT 1", None),
            ("/* pgsteady.route=replica SELECT 1", None),
        ];
        for (text, hint) in table {
            assert_eq!(shape(text).hint, hint, "{text}");
        }
    }

    #[test]
    fn names_that_bear_on_the_session_are_seen_in_any_dress() {
        assert_eq!(shape("SELECT set_config('a','b',false), \"set_config\"($1)").session.set_config, 2);
        assert!(shape("SELECT PG_Try_Advisory_Lock_Shared(1)").session.advisory_lock);
        assert!(!shape("SELECT pg_advisory_xact_lock(1), 'pg_advisory_lock'").session.advisory_lock);
        assert!(shape("SELECT U&\"set\\005fconfig\"('a')").session.escaped);
        assert!(shape("SELECT pg_create_logical_replication_slot('a', 'b', true)").session.other);
        assert!(shape("SELECT 1").session.calls_none());
    }
}
