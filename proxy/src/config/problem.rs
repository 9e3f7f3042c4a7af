//! What is wrong with a configuration file: place, key, what is allowed, remedy. Collected, not thrown one by one.

use std::fmt;
use std::ops::Range;
use std::path::{Path, PathBuf};

/// Problems kept of one file; more would not be read anyway.
const MAX_PROBLEMS: usize = 100;

/// One thing that is wrong, or worth a warning.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Problem {
    /// Line and column from 1; `None` if it concerns the file as a whole.
    pub place: Option<(usize, usize)>,
    /// The key with its section (`limits.max_clients`); empty for a syntax error.
    pub key: String,
    /// What is wrong.
    pub what: String,
    /// What to do about it; may be empty.
    pub remedy: String,
}

/// Why a configuration was not taken: all of its errors.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ConfigErrors {
    /// The file.
    pub file: PathBuf,
    /// The errors, in the order of the file.
    pub errors: Vec<Problem>,
}

impl ConfigErrors {
    /// An error about the file as a whole.
    #[must_use]
    pub fn whole(file: &Path, what: String, remedy: &str) -> Self {
        let problem = Problem { place: None, key: String::new(), what, remedy: remedy.to_owned() };
        Self { file: file.to_owned(), errors: vec![problem] }
    }
}

impl fmt::Display for ConfigErrors {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (i, problem) in self.errors.iter().enumerate() {
            if i > 0 {
                writeln!(f)?;
            }
            problem.write(f, &self.file)?;
        }
        Ok(())
    }
}

impl std::error::Error for ConfigErrors {}

impl Problem {
    /// `FILE:LINE:COLUMN: KEY: WHAT`, and the remedy on a line of its own.
    fn write(&self, f: &mut fmt::Formatter<'_>, file: &Path) -> fmt::Result {
        write!(f, "{}", file.display())?;
        if let Some((line, column)) = self.place {
            write!(f, ":{line}:{column}")?;
        }
        if !self.key.is_empty() {
            write!(f, ": {}", self.key)?;
        }
        write!(f, ": {}", self.what)?;
        if !self.remedy.is_empty() {
            write!(f, "\n  {}", self.remedy)?;
        }
        Ok(())
    }

    /// The problem as text, with the file's name.
    #[must_use]
    pub fn text(&self, file: &Path) -> String {
        struct In<'a>(&'a Problem, &'a Path);
        impl fmt::Display for In<'_> {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.write(f, self.1)
            }
        }
        In(self, file).to_string()
    }
}

/// Collects while a file is read.
pub(super) struct Problems<'i> {
    text: &'i str,
    pub(super) errors: Vec<Problem>,
    pub(super) warnings: Vec<Problem>,
}

impl<'i> Problems<'i> {
    pub(super) fn new(text: &'i str) -> Self {
        Self { text, errors: Vec::new(), warnings: Vec::new() }
    }

    pub(super) fn error(&mut self, span: &Range<usize>, key: &str, what: impl Into<String>, remedy: impl Into<String>) {
        let problem = self.problem(span, key, what.into(), remedy.into());
        push(&mut self.errors, problem);
    }

    pub(super) fn warn(&mut self, span: &Range<usize>, key: &str, what: impl Into<String>, remedy: impl Into<String>) {
        let problem = self.problem(span, key, what.into(), remedy.into());
        push(&mut self.warnings, problem);
    }

    fn problem(&self, span: &Range<usize>, key: &str, what: String, remedy: String) -> Problem {
        Problem { place: Some(place(self.text, span.start)), key: key.to_owned(), what, remedy }
    }
}

fn push(list: &mut Vec<Problem>, problem: Problem) {
    if list.len() < MAX_PROBLEMS {
        list.push(problem);
    }
}

/// Line and column (in characters) of a byte offset, both from 1.
fn place(text: &str, offset: usize) -> (usize, usize) {
    let mut offset = offset.min(text.len());
    while !text.is_char_boundary(offset) {
        offset -= 1;
    }
    let before = &text[..offset];
    let line_start = before.rfind('\n').map_or(0, |i| i + 1);
    (before.matches('\n').count() + 1, before[line_start..].chars().count() + 1)
}

/// The word of a list that the writer probably meant: at most two letters away, or the same but for `-`, `_` and case.
pub(super) fn near<'a>(word: &str, allowed: impl Iterator<Item = &'a str>) -> Option<&'a str> {
    let plain = |w: &str| w.to_lowercase().replace(['-', '_'], "");
    let wanted = plain(word);
    allowed.map(|a| (distance(&wanted, &plain(a)), a)).filter(|(d, a)| *d <= 2 && *d < a.len()).min().map(|(_, a)| a)
}

/// Levenshtein's distance; words over 64 bytes are far from everything.
fn distance(a: &str, b: &str) -> usize {
    if a.len() > 64 || b.len() > 64 {
        return usize::MAX;
    }
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, x) in a.bytes().enumerate() {
        let mut diagonal = row[0];
        row[0] = i + 1;
        for (j, y) in b.bytes().enumerate() {
            let changed = diagonal + usize::from(x != y);
            diagonal = row[j + 1];
            row[j + 1] = changed.min(row[j] + 1).min(diagonal + 1);
        }
    }
    row[b.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn places_count_lines_and_characters_from_one() {
        assert_eq!(place("", 0), (1, 1));
        assert_eq!(place("a\nüb", 4), (2, 2));
        assert_eq!(place("a\nüb", 3), (2, 1), "inside a character: its beginning");
        assert_eq!(place("a\n", 99), (2, 1));
    }

    #[test]
    fn a_slip_of_the_finger_is_recognised() {
        let keys = ["max_clients", "hold_timeout", "to"];
        assert_eq!(near("max_client", keys.into_iter()), Some("max_clients"));
        assert_eq!(near("Hold-Timeout", keys.into_iter()), Some("hold_timeout"));
        assert_eq!(near("pool_size", keys.into_iter()), None);
        assert_eq!(near("x", keys.into_iter()), None);
    }
}
