//! How the text of a setting becomes a value, and a value the text of `SHOW CONFIG`: C's `strtol` and `%g`, names without case.

use std::time::Duration;

use crate::config::{PoolMode, SslMode};

/// Longest time that is told apart from for ever: a year.
const LONGEST: f64 = 366.0 * 24.0 * 3600.0;

/// A type that a setting may have.
pub(super) trait SettingValue: Sized {
    /// The value of a text.
    fn read(text: &str) -> Result<Self, String>;
    /// The text of a value; `None`: NULL.
    fn shown(&self) -> Option<String>;
}

/// A time in seconds, with a fraction.
#[derive(Debug, Clone, Copy, PartialEq, PartialOrd, Default)]
pub struct Seconds(pub f64);

impl Seconds {
    /// As a duration; more than a year is a year.
    #[must_use]
    pub fn duration(self) -> Duration {
        Duration::try_from_secs_f64(self.0.min(LONGEST)).unwrap_or_default()
    }

    /// As a limit: zero is none.
    #[must_use]
    pub fn limit(self) -> Option<Duration> {
        Some(self.duration()).filter(|limit| !limit.is_zero())
    }
}

/// How clients prove who they are.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[allow(missing_docs, reason = "the names are PgBouncer's")]
pub enum AuthType {
    Any,
    Trust,
    Plain,
    #[default]
    Md5,
    Cert,
    Hba,
    Ldap,
    Pam,
    ScramSha256,
}

impl AuthType {
    const NAMES: [(&'static str, Self); 9] = [
        ("any", Self::Any),
        ("trust", Self::Trust),
        ("plain", Self::Plain),
        ("md5", Self::Md5),
        ("cert", Self::Cert),
        ("hba", Self::Hba),
        ("ldap", Self::Ldap),
        ("pam", Self::Pam),
        ("scram-sha-256", Self::ScramSha256),
    ];
}

impl SettingValue for AuthType {
    fn read(text: &str) -> Result<Self, String> {
        let found = Self::NAMES.iter().find(|(name, _)| name.eq_ignore_ascii_case(text));
        found.map(|(_, value)| *value).ok_or_else(|| one_of(&Self::NAMES.map(|(name, _)| name)))
    }

    fn shown(&self) -> Option<String> {
        Self::NAMES.iter().find(|(_, value)| value == self).map(|(name, _)| (*name).to_owned())
    }
}

fn one_of(names: &[&str]) -> String {
    format!("allowed: {}", names.join(", "))
}

impl SettingValue for SslMode {
    fn read(text: &str) -> Result<Self, String> {
        Self::from_word(&text.to_ascii_lowercase())
            .ok_or_else(|| one_of(&["disable", "allow", "prefer", "require", "verify-ca", "verify-full"]))
    }

    fn shown(&self) -> Option<String> {
        Some(self.word().to_owned())
    }
}

impl SettingValue for PoolMode {
    fn read(text: &str) -> Result<Self, String> {
        Self::from_word(&text.to_ascii_lowercase()).ok_or_else(|| one_of(&["session", "transaction", "statement"]))
    }

    fn shown(&self) -> Option<String> {
        Some(self.word().to_owned())
    }
}

impl SettingValue for i32 {
    /// As PgBouncer: C's long, cut to an int.
    #[allow(clippy::cast_possible_truncation, reason = "PgBouncer cuts it too")]
    fn read(text: &str) -> Result<Self, String> {
        integer(text).map(|value| value as Self).ok_or_else(|| "allowed: a whole number".to_owned())
    }

    fn shown(&self) -> Option<String> {
        Some(self.to_string())
    }
}

impl SettingValue for u32 {
    #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "PgBouncer cuts it too")]
    fn read(text: &str) -> Result<Self, String> {
        integer(text).map(|value| value as Self).ok_or_else(|| "allowed: a whole number".to_owned())
    }

    fn shown(&self) -> Option<String> {
        Some(self.to_string())
    }
}

impl SettingValue for Seconds {
    fn read(text: &str) -> Result<Self, String> {
        let plain = text.trim_start_matches([' ', '\t']);
        let is_decimal = plain.bytes().all(|b| b.is_ascii_digit() || matches!(b, b'.' | b'+' | b'-' | b'e' | b'E'));
        match plain.parse::<f64>() {
            Ok(seconds) if is_decimal && seconds >= 0.0 && seconds.is_finite() => Ok(Self(seconds)),
            _ => Err("allowed: seconds, not negative, with a point before a fraction".to_owned()),
        }
    }

    fn shown(&self) -> Option<String> {
        Some(general(self.0))
    }
}

impl SettingValue for String {
    fn read(text: &str) -> Result<Self, String> {
        Ok(text.to_owned())
    }

    fn shown(&self) -> Option<String> {
        Some(self.clone())
    }
}

impl SettingValue for Option<String> {
    fn read(text: &str) -> Result<Self, String> {
        Ok(Some(text.to_owned()))
    }

    fn shown(&self) -> Option<String> {
        self.clone()
    }
}

/// C's `strtol(text, &end, 0)`, all of the text: blanks, a sign, `0x…` and `0…` for other bases.
pub(super) fn integer(text: &str) -> Option<i64> {
    let text = text.trim_start_matches([' ', '\t', '\n', '\r', '\x0b', '\x0c']);
    let (negative, digits) = match text.as_bytes().first() {
        Some(b'-') => (true, &text[1..]),
        Some(b'+') => (false, &text[1..]),
        _ => (false, text),
    };
    let (radix, digits) = match digits.get(..2) {
        Some("0x" | "0X") => (16, &digits[2..]),
        _ if digits.len() > 1 && digits.starts_with('0') => (8, &digits[1..]),
        _ => (10, digits),
    };
    if digits.is_empty() || !digits.chars().all(|c| c.is_digit(radix)) {
        return None;
    }
    // What does not fit is cut to the ends of the range, as C does.
    let value = i64::from_str_radix(digits, radix).unwrap_or(i64::MAX);
    Some(if negative { -value } else { value })
}

/// C's `atoi`: the digits at the beginning, zero without any.
pub(super) fn leading(text: &str) -> i32 {
    let text = text.trim_start();
    let sign = usize::from(text.starts_with(['-', '+']));
    let digits = text[sign..].bytes().take_while(u8::is_ascii_digit).count();
    text[..sign + digits].parse().unwrap_or(0)
}

/// C's `%g`: six digits, without zeros at the end.
fn general(value: f64) -> String {
    if value == 0.0 {
        return "0".to_owned();
    }
    let scientific = format!("{value:.5e}");
    let (mantissa, exponent) = scientific.split_once('e').unwrap_or((&scientific, "0"));
    let exponent: i32 = exponent.parse().unwrap_or(0);
    if (-4..6).contains(&exponent) {
        let decimals = usize::try_from(5 - exponent).unwrap_or(0);
        return without_zeros(&format!("{value:.decimals$}"));
    }
    let sign = if exponent < 0 { '-' } else { '+' };
    format!("{}e{sign}{:02}", without_zeros(mantissa), exponent.abs())
}

fn without_zeros(number: &str) -> String {
    if !number.contains('.') {
        return number.to_owned();
    }
    number.trim_end_matches('0').trim_end_matches('.').to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn integers_are_read_as_c_reads_them() {
        for (text, value) in [
            ("10", Some(10)),
            ("0x10", Some(16)),
            ("0777", Some(511)),
            ("-1", Some(-1)),
            ("+5", Some(5)),
            (" 7", Some(7)),
            ("0", Some(0)),
            ("", None),
            ("x", None),
            ("10s", None),
            ("1.5", None),
            ("08", None),
            ("0x", None),
            ("-", None),
            ("99999999999999999999", Some(i64::MAX)),
        ] {
            assert_eq!(integer(text), value, "{text:?}");
        }
        assert_eq!(["12x", "x", "-3", ""].map(leading), [12, 0, -3, 0]);
    }

    #[test]
    fn times_are_seconds_with_a_fraction_and_printed_as_c_does() {
        for (text, shown) in [
            ("10", "10"),
            ("1.5", "1.5"),
            ("0.25", "0.25"),
            (".5", "0.5"),
            ("3600", "3600"),
            ("1000000", "1e+06"),
            ("123456.7", "123457"),
            ("0.00001", "1e-05"),
            ("1e3", "1000"),
            ("0", "0"),
        ] {
            assert_eq!(Seconds::read(text).ok().and_then(|s| s.shown()).as_deref(), Some(shown), "{text}");
        }
        for text in ["", "-1", "10s", "abc", "1,5", "inf", "nan"] {
            assert!(Seconds::read(text).is_err(), "{text:?}");
        }
        assert_eq!(Seconds(0.0).limit(), None);
        assert_eq!(Seconds(0.5).limit(), Some(Duration::from_millis(500)));
    }

    #[test]
    fn names_have_no_case() {
        assert_eq!(AuthType::read("SCRAM-SHA-256"), Ok(AuthType::ScramSha256));
        assert_eq!(PoolMode::read("Transaction"), Ok(PoolMode::Transaction));
        assert_eq!(SslMode::read("verify-FULL"), Ok(SslMode::VerifyFull));
        assert!(AuthType::read("scram").is_err());
    }
}
