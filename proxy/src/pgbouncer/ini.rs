//! The grammar of `pgbouncer.ini`: sections, pairs, includes, comments. Not what a section or a key means.

/// One thing that stands in a file, with its line.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Item<'t> {
    /// `[name]`
    Section(&'t str),
    /// `key = value`
    Pair(&'t str, &'t str),
    /// `%include file`
    Include(&'t str),
}

/// A place that cannot be read; nothing behind it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct SyntaxError {
    /// Its line, from 1.
    pub(super) line: usize,
}

/// The items of a text in its order. A syntax error is the last thing that comes.
pub(super) struct Items<'t> {
    text: &'t str,
    at: usize,
    failed: bool,
    /// The line break behind the value that was read last, which PgBouncer does not count.
    uncounted: usize,
}

impl<'t> Items<'t> {
    pub(super) fn new(text: &'t str) -> Self {
        // C's strings end at a zero byte.
        Self { text: text.split('\0').next().unwrap_or(""), at: 0, failed: false, uncounted: 0 }
    }

    /// The line that reading has come to, as PgBouncer counts: that of a value is the last of the blank lines that follow it, and one more if
    /// there are blanks behind the value.
    pub(super) fn line(&self) -> usize {
        self.text[..self.at].bytes().filter(|byte| *byte == b'\n').count() + 1 - self.uncounted
    }

    fn rest(&self) -> &'t str {
        &self.text[self.at..]
    }

    fn skip(&mut self, while_true: impl Fn(u8) -> bool) -> &'t str {
        let rest = self.rest();
        let length = rest.bytes().take_while(|byte| while_true(*byte)).count();
        self.at += length;
        &rest[..length]
    }

    /// From here to the end of the line, without the blanks at its end.
    fn value(&mut self) -> &'t str {
        self.skip(is_blank);
        let value = self.skip(|byte| byte != b'\n');
        value.trim_end_matches(|c: char| c.is_ascii() && is_space(c as u8))
    }

    fn read(&mut self) -> Result<Option<Item<'t>>, SyntaxError> {
        self.uncounted = 0;
        loop {
            self.skip(is_space);
            match self.rest().as_bytes() {
                [] => return Ok(None),
                [b'#' | b';', ..] => self.skip(|byte| byte != b'\n'),
                _ => break,
            };
        }
        if let Some(behind) = self.rest().strip_prefix("%include")
            && behind.bytes().next().is_some_and(is_blank)
        {
            self.at += "%include".len();
            return Ok(Some(Item::Include(self.value())));
        }
        if self.rest().starts_with('[') {
            self.at += 1;
            let name = self.skip(|byte| byte != b']' && byte != b'\n');
            return if self.eat(b']') { Ok(Some(Item::Section(name))) } else { Err(self.error()) };
        }
        self.pair().map(Some)
    }

    fn pair(&mut self) -> Result<Item<'t>, SyntaxError> {
        let key = if self.eat(b'\'') {
            let key = self.skip(|byte| byte != b'\'' && byte != b'\n');
            if !self.eat(b'\'') {
                return Err(self.error());
            }
            key
        } else {
            self.skip(|byte| byte.is_ascii_alphanumeric() || b"_.-*".contains(&byte))
        };
        self.skip(is_blank);
        if !self.eat(b'=') {
            return Err(self.error());
        }
        let value = self.value();
        let begin = value.as_ptr().addr() - self.text.as_ptr().addr();
        self.uncounted = usize::from(self.text.as_bytes().get(begin + value.len()) == Some(&b'\n'));
        Ok(Item::Pair(key, value))
    }

    fn eat(&mut self, wanted: u8) -> bool {
        let found = self.rest().as_bytes().first() == Some(&wanted);
        self.at += usize::from(found);
        found
    }

    fn error(&self) -> SyntaxError {
        SyntaxError { line: self.line() }
    }
}

impl<'t> Iterator for Items<'t> {
    type Item = Result<Item<'t>, SyntaxError>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.failed {
            return None;
        }
        let item = self.read().transpose();
        self.failed = matches!(item, Some(Err(_)));
        if let Some(Ok(Item::Pair(..))) = item {
            self.skip(is_space);
        }
        item
    }
}

/// C's `isspace`.
fn is_space(byte: u8) -> bool {
    byte.is_ascii_whitespace() || byte == 0x0b
}

/// C's `isblank`.
fn is_blank(byte: u8) -> bool {
    byte == b' ' || byte == b'\t'
}

#[cfg(test)]
mod tests {
    use super::*;

    fn items(text: &str) -> Vec<Result<Item<'_>, SyntaxError>> {
        Items::new(text).collect()
    }

    #[test]
    fn what_pgbouncer_reads_is_read_as_it_reads_it() {
        use Item::{Include, Pair, Section};
        let table: &[(&str, &[Item<'_>])] = &[
            ("", &[]),
            (" \n\t\r\n", &[]),
            ("; c\n  # c\n[a]", &[Section("a")]),
            ("[a b] x=1", &[Section("a b"), Pair("x", "1")]),
            ("k=v", &[Pair("k", "v")]),
            ("  k \t=\t v  w \t\r\nl=", &[Pair("k", "v  w"), Pair("l", "")]),
            ("k = v ; not a comment", &[Pair("k", "v ; not a comment")]),
            ("a.b-c*d_9 = 'x y'", &[Pair("a.b-c*d_9", "'x y'")]),
            ("'a b\"' = 1", &[Pair("a b\"", "1")]),
            ("* = port=1", &[Pair("*", "port=1")]),
            ("%include a b.ini \nk=v", &[Include("a b.ini"), Pair("k", "v")]),
            ("k=1\0l=2", &[Pair("k", "1")]),
            ("= 1", &[Pair("", "1")]),
            ("k=[x]", &[Pair("k", "[x]")]),
        ];
        for (text, wanted) in table {
            let read: Result<Vec<_>, _> = items(text).into_iter().collect();
            assert_eq!(read.as_deref(), Ok(*wanted), "{text:?}");
        }
    }

    #[test]
    fn what_it_does_not_read_ends_the_reading_at_its_line() {
        for (text, line) in [
            ("k", 1),
            ("k v = 1", 1),
            ("\n\"a b\" = 1", 2),
            ("[a\nk=v", 1),
            ("k=v\n\n'a b = 1\n", 3),
            ("%includex = 1", 1),
            ("a/b = 1", 1),
        ] {
            assert_eq!(items(text).last(), Some(&Err(SyntaxError { line })), "{text:?}");
        }
    }

    #[test]
    fn the_line_of_a_value_is_that_of_the_blank_lines_that_follow_it() {
        let of_value = |text| {
            let mut items = Items::new(text);
            assert!(items.next().is_some());
            assert_eq!(items.line(), 1);
            assert_eq!(items.next(), Some(Ok(Item::Pair("k", "v"))));
            items.line()
        };
        assert_eq!(of_value("[s]\nk=v\n[t]"), 2);
        assert_eq!(of_value("[s]\nk=v\n\n\n[t]"), 4);
        assert_eq!(of_value("[s]\nk=v \n\n\n[t]"), 5, "blanks behind it");
        assert_eq!(of_value("[s]\nk=v"), 2);
    }
}
