//! Settings that PostgreSQL reports (`ParameterStatus`), as a session wants them and as a server has them. Not how they are set.

use crate::error::Malformed;

/// Most settings that are kept of one session or server.
pub const MAX_SETTINGS: usize = 128;
/// Most bytes of names and values together.
pub const MAX_BYTES: usize = 64 * 1024;

/// The settings that PostgreSQL reports (`GUC_REPORT` in `guc_tables.c`) and that any client may change with SET.
/// `scram_iterations` is reported since PostgreSQL 16, `search_path` since 18.
pub const CHANGEABLE: [&str; 9] = [
    "application_name",
    "client_encoding",
    "DateStyle",
    "default_transaction_read_only",
    "IntervalStyle",
    "scram_iterations",
    "search_path",
    "standard_conforming_strings",
    "TimeZone",
];

/// Settings by name; the case of names does not count, as in PostgreSQL. Bounded in number and bytes.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Parameters {
    settings: Vec<(Vec<u8>, Vec<u8>)>,
}

impl Parameters {
    /// None.
    #[must_use]
    pub const fn new() -> Self {
        Self { settings: Vec::new() }
    }

    /// Keeps a setting, in place of an older one of that name. Returns whether anything changed.
    ///
    /// # Errors
    /// There are too many, or they are too long.
    pub fn set(&mut self, name: &[u8], value: &[u8]) -> Result<bool, Malformed> {
        let at = self.settings.iter().position(|(n, _)| n.eq_ignore_ascii_case(name));
        let old = at.and_then(|at| self.settings.get(at));
        if old.is_some_and(|(_, v)| v == value) {
            return Ok(false);
        }
        let freed = old.map_or(0, |(_, v)| v.len());
        let more = if at.is_some() { value.len() } else { name.len().saturating_add(value.len()) };
        let bytes = self.bytes().saturating_sub(freed).saturating_add(more);
        if bytes > MAX_BYTES || (at.is_none() && self.settings.len() >= MAX_SETTINGS) {
            return Err(Malformed::TooLarge);
        }
        match at.and_then(|at| self.settings.get_mut(at)) {
            Some((_, old)) => value.clone_into(old),
            None => self.settings.push((name.to_vec(), value.to_vec())),
        }
        Ok(true)
    }

    /// The value of a setting.
    #[must_use]
    pub fn get(&self, name: &[u8]) -> Option<&[u8]> {
        self.iter().find(|(n, _)| n.eq_ignore_ascii_case(name)).map(|(_, value)| value)
    }

    /// All of them, in the order in which they were first set.
    pub fn iter(&self) -> impl Iterator<Item = (&[u8], &[u8])> {
        self.settings.iter().map(|(name, value)| (name.as_slice(), value.as_slice()))
    }

    /// Those that a server with the settings `server` must be given to look as these want it.
    pub fn missing_on<'a>(&'a self, server: &'a Self) -> impl Iterator<Item = (&'a [u8], &'a [u8])> {
        self.iter().filter(|(name, value)| server.get(name) != Some(value))
    }

    fn bytes(&self) -> usize {
        self.iter().fold(0, |sum, (name, value)| sum.saturating_add(name.len()).saturating_add(value.len()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn settings(list: &[(&str, &str)]) -> Parameters {
        let mut settings = Parameters::new();
        for (name, value) in list {
            settings.set(name.as_bytes(), value.as_bytes()).unwrap();
        }
        settings
    }

    #[test]
    fn the_case_of_a_name_does_not_count_and_the_last_value_does() {
        let mut kept = settings(&[("DateStyle", "ISO, MDY"), ("TimeZone", "UTC")]);
        assert_eq!(kept.set(b"datestyle", b"German, DMY"), Ok(true));
        assert_eq!(kept.set(b"DATESTYLE", b"German, DMY"), Ok(false));
        assert_eq!(kept.get(b"DateStyle"), Some(&b"German, DMY"[..]));
        assert_eq!(kept.iter().count(), 2);
    }

    #[test]
    fn only_what_differs_is_missing_on_a_server() {
        let client = settings(&[("TimeZone", "UTC"), ("DateStyle", "ISO"), ("application_name", "a")]);
        let server = settings(&[("timezone", "UTC"), ("DateStyle", "German"), ("server_version", "15")]);
        let missing: Vec<_> = client.missing_on(&server).collect();
        assert_eq!(missing, [(&b"DateStyle"[..], &b"ISO"[..]), (b"application_name", b"a")]);
    }

    #[test]
    fn their_number_and_size_are_bounded() {
        let mut many = Parameters::new();
        for number in 0..MAX_SETTINGS {
            many.set(number.to_string().as_bytes(), b"").unwrap();
        }
        assert_eq!(many.set(b"one more", b""), Err(Malformed::TooLarge));
        assert_eq!(many.set(b"0", b"changed"), Ok(true));
        let mut long = Parameters::new();
        long.set(b"a", &[b'x'; MAX_BYTES - 1]).unwrap();
        assert_eq!(long.set(b"b", b""), Err(Malformed::TooLarge));
        assert_eq!(long.set(b"a", &[b'x'; MAX_BYTES]), Err(Malformed::TooLarge));
        assert_eq!(long.set(b"a", b"short"), Ok(true));
        assert_eq!(long.set(b"b", b""), Ok(true));
    }
}
