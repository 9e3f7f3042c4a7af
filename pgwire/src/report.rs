//! ErrorResponse and NoticeResponse: what PostgreSQL reports, read leniently, and what we report, written strictly.
//!
//! Manual, section "Error and Notice Message Fields". Not when a report is sent, nor to whom.

use std::borrow::Cow;
use std::fmt::Write as _;

use bytes::BytesMut;

use crate::error::Malformed;
use crate::fields;
use crate::sqlstate::{self, SqlState};

/// Most fields that are looked at in a report from a server.
const MAX_FIELDS: usize = 64;
/// Most characters of a cleaned text: what a log line gets to see of a server's or a client's words.
pub const MAX_CLEANED: usize = 1_000;

/// A report as it lies in a message, borrowed. A field that is missing or broken is just not there: a server that leaves
/// out its SQLSTATE (CVE-2026-6666) or its last zero byte can confuse nobody.
#[derive(Clone, Copy, Debug)]
pub struct View<'a> {
    body: &'a [u8],
}

impl<'a> View<'a> {
    /// A view of the body of an ErrorResponse or NoticeResponse, whatever it holds.
    #[must_use]
    pub const fn new(body: &'a [u8]) -> Self {
        Self { body }
    }

    /// The fields in order: their code and text. Ends at the terminator or at the first fault.
    pub fn fields(&self) -> impl Iterator<Item = (u8, &'a [u8])> + use<'a> {
        let mut rest = self.body;
        std::iter::from_fn(move || {
            let (&code, text) = rest.split_first()?;
            let end = text.iter().position(|&b| b == 0)?;
            let (text, behind) = text.split_at_checked(end)?;
            rest = behind.get(1..)?;
            (code != 0).then_some((code, text))
        })
        .take(MAX_FIELDS)
    }

    /// The first field of this code.
    #[must_use]
    pub fn get(&self, code: u8) -> Option<&'a [u8]> {
        self.fields().find(|(c, _)| *c == code).map(|(_, text)| text)
    }

    /// The SQLSTATE, if there is a proper one.
    #[must_use]
    pub fn sqlstate(&self) -> Option<SqlState> {
        self.get(b'C').and_then(SqlState::new)
    }

    /// The severity in English (`V`, PostgreSQL 9.6 and later), else as the server's language has it.
    #[must_use]
    pub fn severity(&self) -> Option<&'a [u8]> {
        self.get(b'V').or_else(|| self.get(b'S'))
    }

    /// Whether the server closes the connection after this.
    #[must_use]
    pub fn is_fatal(&self) -> bool {
        matches!(self.severity(), Some(b"FATAL" | b"PANIC"))
    }

    /// The message, cleaned for a log or a screen; empty if there is none.
    #[must_use]
    pub fn message(&self) -> Cow<'a, str> {
        self.get(b'M').map_or(Cow::Borrowed(""), cleaned)
    }

    /// Whether this notice takes back the promise of the commit that follows it: the wait for the synchronous standby was
    /// cancelled, and the acknowledgement that comes next is worth nothing after a failover.
    ///
    /// By source file and function, as the text is translated and its SQLSTATE (01000) says nothing.
    #[must_use]
    pub fn is_commit_not_replicated(&self) -> bool {
        self.get(b'R') == Some(b"SyncRepWaitForLSN")
            && self.get(b'F').is_some_and(|file| file == b"syncrep.c" || file.ends_with(b"/syncrep.c"))
    }
}

/// Text of unknown origin made fit for a log: no control characters, no line or paragraph separators, no overlong tail.
#[must_use]
pub fn cleaned(bytes: &[u8]) -> Cow<'_, str> {
    let unfit = |c: char| {
        c.is_control()
            || matches!(c, '\u{2028}' | '\u{2029}' | '\u{200e}'..='\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
    };
    // Cut before decoding: four bytes a character are enough for all that is kept.
    let text = String::from_utf8_lossy(bytes.get(..MAX_CLEANED.saturating_mul(4)).unwrap_or(bytes));
    if bytes.len() <= MAX_CLEANED && !text.contains(unfit) {
        return text;
    }
    let mut clean = String::new();
    for c in text.chars().take(MAX_CLEANED) {
        if unfit(c) {
            // Writing to a String cannot fail.
            let _ = write!(clean, "{}", c.escape_unicode());
        } else {
            clean.push(c);
        }
    }
    if text.chars().nth(MAX_CLEANED).is_some() {
        clean.push('…');
    }
    Cow::Owned(clean)
}

/// How bad it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Severity {
    /// The statement failed.
    Error,
    /// The connection ends.
    Fatal,
    /// Something to know; an ErrorResponse never has it.
    Warning,
    /// Something to know; an ErrorResponse never has it.
    Notice,
}

impl Severity {
    /// The word on the wire.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Error => "ERROR",
            Self::Fatal => "FATAL",
            Self::Warning => "WARNING",
            Self::Notice => "NOTICE",
        }
    }
}

/// A report of our own.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Report {
    severity: Severity,
    sqlstate: SqlState,
    message: String,
    detail: Option<String>,
    hint: Option<String>,
    is_terse: bool,
}

impl Report {
    /// A failed statement.
    pub fn error(sqlstate: SqlState, message: impl Into<String>) -> Self {
        Self { severity: Severity::Error, sqlstate, message: message.into(), detail: None, hint: None, is_terse: false }
    }

    /// A warning.
    pub fn warning(message: impl Into<String>) -> Self {
        Self { severity: Severity::Warning, ..Self::error(sqlstate::WARNING, message) }
    }

    /// A notice.
    pub fn notice(message: impl Into<String>) -> Self {
        Self { severity: Severity::Notice, ..Self::error(sqlstate::SUCCESSFUL_COMPLETION, message) }
    }

    /// With more about it.
    #[must_use]
    pub fn detail(mut self, detail: impl Into<String>) -> Self {
        self.detail = Some(detail.into());
        self
    }

    /// Without the severity in English (`V`), as servers before 9.6 and PgBouncer have it.
    #[must_use]
    pub fn terse(mut self) -> Self {
        self.is_terse = true;
        self
    }

    /// With what to do about it.
    #[must_use]
    pub fn hint(mut self, hint: impl Into<String>) -> Self {
        self.hint = Some(hint.into());
        self
    }

    /// As the end of the connection.
    #[must_use]
    pub fn fatal(mut self) -> Self {
        self.severity = Severity::Fatal;
        self
    }

    /// How bad it is.
    #[must_use]
    pub const fn severity(&self) -> Severity {
        self.severity
    }

    /// Its SQLSTATE.
    #[must_use]
    pub const fn sqlstate(&self) -> SqlState {
        self.sqlstate
    }

    /// Its message.
    #[must_use]
    pub fn message(&self) -> &str {
        &self.message
    }

    /// Appends it: as NoticeResponse if it is a warning or a notice, as ErrorResponse otherwise.
    ///
    /// # Errors
    /// It is longer than a message may be.
    pub fn write(&self, out: &mut BytesMut) -> Result<(), Malformed> {
        let tag = match self.severity {
            Severity::Error | Severity::Fatal => b'E',
            Severity::Warning | Severity::Notice => b'N',
        };
        fields::message(out, tag, |body| {
            let severity = self.severity.as_str();
            let always = [(b'S', severity), (b'V', severity), (b'C', self.sqlstate.as_str()), (b'M', &self.message)];
            let sometimes = [(b'D', &self.detail), (b'H', &self.hint)];
            let sometimes = sometimes.into_iter().filter_map(|(code, text)| Some((code, text.as_deref()?)));
            let always = always.into_iter().filter(|(code, _)| *code != b'V' || !self.is_terse);
            for (code, text) in always.chain(sometimes) {
                body.u8(code)?;
                // A zero byte would end the field and make the rest of the text into fields of its own.
                body.cstr(text.replace('\0', "\u{fffd}").as_bytes())?;
            }
            body.u8(0)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cve_2026_6666_a_report_without_its_sqlstate_is_still_a_report() {
        let view = View::new(b"SFATAL\0Mx\0\0");
        assert_eq!((view.sqlstate(), view.is_fatal(), &*view.message()), (None, true, "x"));
        for broken in [&b""[..], b"\0", b"S", b"SERROR", b"M\0", b"C28P01", b"C\0M\0", b"Cxy\0\0", b"\0C28P01\0"] {
            assert_eq!(View::new(broken).sqlstate(), None, "{broken:?}");
            assert_eq!(View::new(broken).message(), "");
        }
    }

    #[test]
    fn a_commit_that_is_not_replicated_is_known_in_every_language() {
        let notice = b"SWARNUNG\0VWARNING\0C01000\0Mbreche Warten auf synchrone Replikation ab\0Fsyncrep.c\0L300\0RSyncRepWaitForLSN\0\0";
        assert!(View::new(notice).is_commit_not_replicated());
        assert!(
            !View::new(b"SWARNING\0C01000\0Fsyncrep.c\0RSyncRepGetCandidateStandbys\0\0").is_commit_not_replicated()
        );
        assert!(!View::new(b"SWARNING\0C01000\0MSyncRepWaitForLSN\0\0").is_commit_not_replicated());
        // What a function raises has its own place in the source, whatever its text says.
        assert!(
            !View::new(
                b"SWARNING\0C01000\0Mcanceling wait for synchronous replication\0Fpl_exec.c\0Rexec_stmt_raise\0\0"
            )
            .is_commit_not_replicated()
        );
    }

    #[test]
    fn what_is_written_is_what_is_read() {
        let mut out = BytesMut::new();
        let report = Report::error(sqlstate::CANNOT_CONNECT_NOW, "no primary").detail("d").hint("h").fatal();
        report.write(&mut out).unwrap();
        assert_eq!(out[0], b'E');
        let fields: Vec<_> = View::new(&out[5..]).fields().collect();
        let expected: [(u8, &[u8]); 6] =
            [(b'S', b"FATAL"), (b'V', b"FATAL"), (b'C', b"57P03"), (b'M', b"no primary"), (b'D', b"d"), (b'H', b"h")];
        assert_eq!(fields, expected);
        out.clear();
        Report::warning("careful").write(&mut out).unwrap();
        assert_eq!((out[0], View::new(&out[5..]).get(b'V')), (b'N', Some(&b"WARNING"[..])));
    }

    #[test]
    fn a_zero_byte_in_a_text_cannot_make_fields() {
        let mut out = BytesMut::new();
        Report::error(sqlstate::INTERNAL_ERROR, "a\0C00000\0\0b").write(&mut out).unwrap();
        assert_eq!(View::new(&out[5..]).sqlstate(), Some(sqlstate::INTERNAL_ERROR));
        assert_eq!(View::new(&out[5..]).fields().count(), 4);
    }

    #[test]
    fn what_goes_to_a_log_is_one_line_of_harmless_characters() {
        assert_eq!(cleaned(b"plain text"), "plain text");
        assert_eq!(cleaned(b"a\nb\x1b[31m\x07"), "a\\u{a}b\\u{1b}[31m\\u{7}");
        assert_eq!(cleaned("x\u{2028}y\u{202e}z".as_bytes()), "x\\u{2028}y\\u{202e}z");
        assert_eq!(cleaned(b"\xff"), "\u{fffd}");
        let long = cleaned(&[b'a'; 100_000]).into_owned();
        assert_eq!(long.chars().count(), MAX_CLEANED + 1);
        assert!(cleaned(&[b'a'; MAX_CLEANED]).ends_with('a'));
    }
}
