//! The startup parameter `options`: settings given as command line switches. Not what the settings mean.
//!
//! As `pg_split_opts` and `process_postgres_switches` read them, limited to `-c name=value` and `--name=value`.

use std::fmt;

use crate::sqlstate::{self, SqlState};

/// Why `options` is refused.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum BadOption {
    /// A switch other than `-c` and `--`.
    Switch,
    /// A setting without `=value`; its name.
    NoValue(Vec<u8>),
}

impl BadOption {
    /// The SQLSTATE to report it under, PostgreSQL's own for the same fault.
    #[must_use]
    pub const fn sqlstate(&self) -> SqlState {
        match self {
            Self::Switch => sqlstate::FEATURE_NOT_SUPPORTED,
            Self::NoValue(_) => sqlstate::SYNTAX_ERROR,
        }
    }
}

impl fmt::Display for BadOption {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Switch => {
                write!(f, "unsupported options startup parameter: only '-c config=val' and '--config=val' are allowed")
            }
            Self::NoValue(name) => write!(f, "-c {} requires a value", String::from_utf8_lossy(name)),
        }
    }
}

impl std::error::Error for BadOption {}

/// A setting's name and value, as bytes: what PostgreSQL asks of a startup packet.
pub type Setting = (Vec<u8>, Vec<u8>);

/// The settings in `options`, in order; a `-` in a name is a `_`, as PostgreSQL reads it.
///
/// # Errors
/// Another switch, or a setting without a value.
pub fn parse(options: &[u8]) -> Result<Vec<Setting>, BadOption> {
    let mut words = split(options).into_iter();
    let mut settings = Vec::new();
    while let Some(word) = words.next() {
        let setting = match (word.strip_prefix(b"-c"), word.strip_prefix(b"--")) {
            (Some(b""), _) => words.next().ok_or(BadOption::Switch)?,
            (Some(joined), _) => joined.to_vec(),
            (None, Some(long)) if !long.is_empty() => long.to_vec(),
            _ => return Err(BadOption::Switch),
        };
        settings.push(named(&setting)?);
    }
    Ok(settings)
}

fn named(setting: &[u8]) -> Result<Setting, BadOption> {
    let mut halves = setting.splitn(2, |&b| b == b'=');
    let name: Vec<u8> = halves.next().unwrap_or_default().iter().map(|&b| if b == b'-' { b'_' } else { b }).collect();
    match halves.next() {
        Some(value) if !name.is_empty() => Ok((name, value.to_vec())),
        _ => Err(BadOption::NoValue(name)),
    }
}

/// Words between white space; a backslash takes the character behind it as it is.
fn split(options: &[u8]) -> Vec<Vec<u8>> {
    let mut words = Vec::new();
    let mut word: Option<Vec<u8>> = None;
    let mut bytes = options.iter().copied();
    while let Some(byte) = bytes.next() {
        // `isspace` in the C locale: also the vertical tab, which is_ascii_whitespace leaves out.
        let space = byte.is_ascii_whitespace() || byte == 0x0b;
        if space {
            words.extend(word.take());
            continue;
        }
        let open = word.get_or_insert_with(Vec::new);
        // A backslash at the very end stands for nothing.
        open.extend(if byte == b'\\' { bytes.next() } else { Some(byte) });
    }
    words.extend(word);
    words
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(options: &str) -> Result<Vec<(String, String)>, BadOption> {
        let text = |bytes| String::from_utf8(bytes).unwrap();
        Ok(parse(options.as_bytes())?.into_iter().map(|(name, value)| (text(name), text(value))).collect())
    }

    fn pairs(list: &[(&str, &str)]) -> Result<Vec<(String, String)>, BadOption> {
        Ok(list.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect())
    }

    #[test]
    fn the_three_ways_to_give_a_setting() {
        assert_eq!(parsed("-c a=1 -cb=2 --c=3"), pairs(&[("a", "1"), ("b", "2"), ("c", "3")]));
        assert_eq!(parsed("  \t\n "), pairs(&[]));
        assert_eq!(parsed("--search-path=x-y"), pairs(&[("search_path", "x-y")]));
        assert_eq!(parsed("-c a=b=c -c d="), pairs(&[("a", "b=c"), ("d", "")]));
    }

    #[test]
    fn a_backslash_takes_the_next_character_as_it_is() {
        assert_eq!(parsed(r"-c a=one\ two\\three"), pairs(&[("a", r"one two\three")]));
        assert_eq!(parsed(r"-c a=x\"), pairs(&[("a", "x")]));
    }

    #[test]
    fn anything_else_is_refused() {
        for switch in ["-d 5", "-c", "--", "a=1", "-", "-c a=1 x"] {
            assert_eq!(parsed(switch), Err(BadOption::Switch), "{switch}");
        }
        for bare in ["-c a", "-ca", "--a", "-c =1"] {
            assert!(matches!(parsed(bare), Err(BadOption::NoValue(_))), "{bare}");
        }
    }
}
