//! Sections of the file: a table of options said once, from which the struct, its reader, the reference page and the
//! list of changes at a reload are made.

use std::ops::Range;

use toml::de::{DeTable, DeValue};

use super::problem::{Problems, near};
use super::value::Value;

/// One option, for the reference page and for error texts.
#[derive(Debug)]
pub struct OptionDoc {
    /// Its key.
    pub key: &'static str,
    /// What may be written.
    pub allowed: fn() -> String,
    /// The default as TOML text; `None`: there is none.
    pub default: Option<&'static str>,
    /// Whether a change takes effect only after a restart.
    pub restart: bool,
    /// The text, a line each.
    pub doc: &'static [&'static str],
}

/// A section: keys of one TOML table.
#[derive(Debug)]
pub struct SectionDoc {
    /// Its header, such as `[limits]`.
    pub header: &'static str,
    /// The text, a line each.
    pub about: &'static [&'static str],
    /// Its options, in the order of the page.
    pub options: &'static [OptionDoc],
}

/// Declares a section: `key: Type = "default as TOML" [restart],`. The doc comments are the reference page.
macro_rules! section {
    (
        $(#[doc = $about:literal])+ $name:ident $header:literal {
            $( $(#[doc = $doc:literal])+ $key:ident : $type:ty $(= $default:literal)? $([$restart:ident])? , )+
        }
    ) => {
        $(#[doc = $about])+
        #[derive(Debug, Clone, PartialEq)]
        pub struct $name {
            $( $(#[doc = $doc])+ pub $key: $type, )+
        }

        impl $name {
            /// The options as data.
            pub const DOC: $crate::config::section::SectionDoc = $crate::config::section::SectionDoc {
                header: $header,
                about: &[$($about),+],
                options: &[$( $crate::config::section::OptionDoc {
                    key: stringify!($key),
                    allowed: <$type as $crate::config::value::Value>::allowed,
                    default: $crate::config::section::section!(@default $($default)?),
                    restart: $crate::config::section::section!(@restart $($restart)?),
                    doc: &[$($doc),+],
                } ),+],
            };

            /// Takes the section's keys; `None` if one of them was wrong (all problems are noted).
            pub(super) fn read(
                table: &mut $crate::config::section::Table<'_, '_>,
                problems: &mut $crate::config::problem::Problems<'_>,
            ) -> Option<Self> {
                $( let $key = table.take::<$type>(
                    stringify!($key), $crate::config::section::section!(@default $($default)?), problems,
                ); )+
                Some(Self { $( $key: $key?, )+ })
            }

            /// The keys that differ, and whether the difference needs a restart.
            #[must_use]
            pub fn changes(&self, new: &Self) -> Vec<(&'static str, bool)> {
                let mut changes = Vec::new();
                $( if self.$key != new.$key {
                    changes.push((stringify!($key), $crate::config::section::section!(@restart $($restart)?)));
                } )+
                changes
            }
        }
    };
    (@default) => { None };
    (@default $default:literal) => { Some($default) };
    (@restart) => { false };
    (@restart restart) => { true };
}
pub(super) use section;

/// A TOML table while its keys are taken out; what is left at the end is unknown.
pub(super) struct Table<'t, 'i> {
    /// The path, such as `cluster.main`.
    pub(super) path: String,
    /// Where its header is.
    pub(super) span: Range<usize>,
    entries: Vec<Entry<'t, 'i>>,
    known: Vec<&'static str>,
}

struct Entry<'t, 'i> {
    key: &'t str,
    span: Range<usize>,
    value: &'t DeValue<'i>,
    value_span: Range<usize>,
    taken: bool,
}

impl<'t, 'i> Table<'t, 'i> {
    pub(super) fn new(path: String, span: Range<usize>, table: &'t DeTable<'i>) -> Self {
        let entries = table
            .iter()
            .map(|(key, value)| Entry {
                key: key.get_ref(),
                span: key.span(),
                value: value.get_ref(),
                value_span: value.span(),
                taken: false,
            })
            .collect();
        Self { path, span, entries, known: Vec::new() }
    }

    /// `section.key`.
    pub(super) fn full(&self, key: &str) -> String {
        if self.path.is_empty() { key.to_owned() } else { format!("{}.{key}", self.path) }
    }

    /// Where a key is written, or the section's header.
    pub(super) fn place(&self, key: &str) -> Range<usize> {
        self.entries.iter().find(|e| e.key == key).map_or_else(|| self.span.clone(), |e| e.span.clone())
    }

    pub(super) fn has(&self, key: &str) -> bool {
        self.entries.iter().any(|e| e.key == key)
    }

    fn entry(&mut self, key: &'static str) -> Option<&mut Entry<'t, 'i>> {
        self.known.push(key);
        let entry = self.entries.iter_mut().find(|e| e.key == key)?;
        entry.taken = true;
        Some(entry)
    }

    /// The value of an option; `None` after a noted problem.
    pub(super) fn take<T: Value>(
        &mut self,
        key: &'static str,
        default: Option<&str>,
        problems: &mut Problems<'_>,
    ) -> Option<T> {
        let full = self.full(key);
        let header = self.span.clone();
        let Some(entry) = self.entry(key) else {
            let value = default.map_or_else(T::absent, |text| Some(from_default(text)));
            if value.is_none() {
                problems.error(&header, &full, "is missing", format!("write {key} = {}", T::allowed()));
            }
            return value;
        };
        match T::read(entry.value) {
            Ok(value) => Some(value),
            Err(what) => {
                let what = if what.is_empty() { format!("is a {}", entry.value.type_str()) } else { what };
                problems.error(&entry.value_span, &full, what, format!("allowed: {}", T::allowed()));
                None
            }
        }
    }

    /// A table inside this one.
    pub(super) fn table(&mut self, key: &'static str, problems: &mut Problems<'_>) -> Option<Table<'t, 'i>> {
        let full = self.full(key);
        let entry = self.entry(key)?;
        match entry.value.as_table() {
            Some(table) => Some(Table::new(full, entry.span.clone(), table)),
            None => {
                problems.error(&entry.value_span, &full, "is not a section", format!("write [{full}] on its own line"));
                None
            }
        }
    }

    /// A list of tables inside this one (`[[key]]`).
    pub(super) fn tables(&mut self, key: &'static str, problems: &mut Problems<'_>) -> Vec<Table<'t, 'i>> {
        let full = self.full(key);
        let Some(entry) = self.entry(key) else { return Vec::new() };
        let items = entry.value.as_array().map_or(&[][..], |list| list.as_ref());
        let tables: Vec<_> = items
            .iter()
            .enumerate()
            .filter_map(|(i, item)| Some(Table::new(format!("{full}[{i}]"), item.span(), item.get_ref().as_table()?)))
            .collect();
        if tables.len() != items.len() || !entry.value.is_array() {
            let remedy = format!("write [[{full}]] on its own line, once for each");
            problems.error(&entry.value_span, &full, "is not a list of sections", remedy);
        }
        tables
    }

    /// The tables inside this one, under names of the writer's choice.
    pub(super) fn named_tables(&mut self, problems: &mut Problems<'_>) -> Vec<(&'t str, Table<'t, 'i>)> {
        let mut tables = Vec::new();
        let path = self.path.clone();
        for entry in &mut self.entries {
            entry.taken = true;
            let full = format!("{path}.{}", entry.key);
            match entry.value.as_table() {
                Some(table) => tables.push((entry.key, Table::new(full, entry.span.clone(), table))),
                None => {
                    let remedy = format!("write [{path}.NAME] with its keys below");
                    problems.error(&entry.span, &full, "is not a section", remedy);
                }
            }
        }
        tables
    }

    /// Notes every key that nobody took.
    pub(super) fn finish(self, problems: &mut Problems<'_>) {
        for entry in self.entries.iter().filter(|e| !e.taken) {
            let allowed = format!("allowed: {}", self.known.join(", "));
            let remedy = match near(entry.key, self.known.iter().copied()) {
                Some(meant) => format!("did you mean {meant}? {allowed}"),
                None => allowed,
            };
            problems.error(&entry.span, &self.full(entry.key), "is unknown", remedy);
        }
    }
}

/// A default is written in this program; a test reads each of them.
fn from_default<T: Value>(text: &str) -> T {
    let value = DeValue::parse(text).expect("a default is TOML");
    T::read(value.get_ref()).expect("a default is a value of its option")
}

impl Table<'_, '_> {
    /// A section that the file does not have.
    pub(super) fn empty(path: String, span: Range<usize>) -> Self {
        Self { path, span, entries: Vec::new(), known: Vec::new() }
    }
}
