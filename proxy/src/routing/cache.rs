//! Classes by text, bounded by entries and bytes. It does not know how a class comes about.
//!
//! Two generations: what is asked for lives in the young one; when that is half of the limits, the old one is dropped and
//! the young one becomes old. A text that is asked for again returns from the old to the young. So each text that is in use
//! survives, with no list to keep on a hit.

use std::collections::HashMap;

use super::Class;

/// What an entry takes in the table beside its text and its class, about; in bytes.
const ENTRY_BYTES: usize = 48;

/// Texts and their classes. The hash is the standard library's keyed one: clients choose the texts.
#[derive(Debug)]
pub(super) struct Cache {
    young: Generation,
    old: Generation,
    /// Limits of one generation: half of the whole.
    entries: usize,
    bytes: usize,
}

#[derive(Debug, Default)]
struct Generation {
    classes: HashMap<Box<[u8]>, Class>,
    bytes: usize,
}

impl Cache {
    /// One that holds at most this many entries and bytes.
    pub(super) fn new(entries: usize, bytes: usize) -> Self {
        Self { young: Generation::default(), old: Generation::default(), entries: entries / 2, bytes: bytes / 2 }
    }

    /// The class of a text seen before.
    #[inline]
    pub(super) fn get(&mut self, text: &[u8]) -> Option<Class> {
        match self.young.classes.get(text) {
            Some(class) => Some(class.clone()),
            None => self.get_old(text),
        }
    }

    #[cold]
    fn get_old(&mut self, text: &[u8]) -> Option<Class> {
        let (text, class) = self.old.classes.remove_entry(text)?;
        self.old.bytes = self.old.bytes.saturating_sub(weight(&text, &class));
        self.keep(text, class.clone());
        Some(class)
    }

    /// Keeps a class; one that alone is beyond the limits is not kept.
    pub(super) fn insert(&mut self, text: &[u8], class: &Class) {
        if self.entries > 0 && weight(text, class) <= self.bytes {
            self.keep(text.into(), class.clone());
        }
    }

    fn keep(&mut self, text: Box<[u8]>, class: Class) {
        let weight = weight(&text, &class);
        if self.young.classes.len() >= self.entries || self.young.bytes + weight > self.bytes {
            self.old = std::mem::take(&mut self.young);
        }
        if self.young.classes.insert(text, class).is_none() {
            self.young.bytes += weight;
        }
    }

    /// Texts and bytes that are held.
    pub(super) fn size(&self) -> (usize, usize) {
        (self.young.classes.len() + self.old.classes.len(), self.young.bytes + self.old.bytes)
    }
}

fn weight(text: &[u8], class: &Class) -> usize {
    ENTRY_BYTES + text.len() + class.weight()
}

#[cfg(test)]
mod tests {
    use super::super::Kind;
    use super::*;

    #[test]
    fn what_was_kept_is_found_by_its_exact_text() {
        let mut cache = Cache::new(4, 10_000);
        cache.insert(b"COMMIT", &Class::of(Kind::Commit { chain: false }));
        assert_eq!(cache.get(b"COMMIT"), Some(Class::of(Kind::Commit { chain: false })));
        assert_eq!(cache.get(b"commit"), None);
    }

    #[test]
    fn neither_entries_nor_bytes_pass_their_limit() {
        let mut cache = Cache::new(10, 3_000);
        for number in 0..1_000_u32 {
            cache.insert(
                format!("SELECT {number:0width$}", width = (number % 300) as usize).as_bytes(),
                &Class::unknown(),
            );
            let (entries, bytes) = cache.size();
            assert!(entries <= 10 && bytes <= 3_000, "{entries} entries, {bytes} bytes after {number}");
        }
        assert!(cache.size().0 > 1);
    }

    #[test]
    fn a_text_in_use_survives_a_flood_of_others() {
        let mut cache = Cache::new(10, 1_000_000);
        cache.insert(b"in use", &Class::of(Kind::Query));
        for number in 0..1_000 {
            cache.insert(format!("SELECT {number}").as_bytes(), &Class::unknown());
            assert!(cache.get(b"in use").is_some(), "after {number} others");
        }
        assert!(cache.get(b"SELECT 1").is_none());
    }

    #[test]
    fn what_is_too_large_or_not_wanted_is_not_kept() {
        let mut cache = Cache::new(10, 1_000);
        cache.insert(&[b'x'; 600], &Class::unknown());
        assert_eq!(cache.size(), (0, 0));
        let mut none = Cache::new(0, 1_000_000);
        none.insert(b"SELECT 1", &Class::unknown());
        assert_eq!(none.size(), (0, 0));
    }
}
