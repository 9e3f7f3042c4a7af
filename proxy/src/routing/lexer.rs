//! The tokens of SQL as PostgreSQL's scanner cuts them, as far as it matters where a statement ends and which words are words:
//! comments, strings, quoted names. It knows no grammar, and no text makes it fail.
//!
//! It reads as with `standard_conforming_strings = on`, the default. The rules are those of PostgreSQL's
//! `src/backend/parser/scan.l` and of the manual's section "Lexical Structure".

/// One token.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Token<'s> {
    /// A keyword or a name without quotes, as written.
    Word(&'s [u8]),
    /// What is between the double quotes of a name, doubled quotes included.
    Quoted(&'s [u8]),
    /// A name with Unicode escapes, `U&"…"`: it may be any name.
    Escaped,
    /// A string of any kind.
    String,
    /// A number or a parameter.
    Number,
    /// What is in a comment.
    Comment(&'s [u8]),
    /// Any other character.
    Symbol(u8),
    /// A string, a quoted name or a comment without an end: the last token.
    Unterminated,
}

/// Cuts a text into tokens.
#[derive(Debug, Clone)]
pub(super) struct Lexer<'s> {
    text: &'s [u8],
    at: usize,
}

impl<'s> Lexer<'s> {
    pub(super) fn new(text: &'s [u8]) -> Self {
        Self { text, at: 0 }
    }

    /// Where the next token is looked for; after [`Iterator::next`], the end of the token that it gave.
    #[cfg(test)]
    fn at(&self) -> usize {
        self.at
    }

    fn peek(&self, ahead: usize) -> Option<u8> {
        self.text.get(self.at + ahead).copied()
    }

    #[inline]
    fn pass_over(&mut self, wanted: impl Fn(u8) -> bool) {
        let rest = self.text.get(self.at..).unwrap_or_default();
        self.at += rest.iter().position(|&byte| !wanted(byte)).unwrap_or(rest.len());
    }

    fn unterminated(&mut self) -> Token<'s> {
        self.at = self.text.len();
        Token::Unterminated
    }

    /// The word from here on, or the string or name that its letter introduces.
    #[inline]
    fn word(&mut self) -> Token<'s> {
        let start = self.at;
        self.pass_over(is_name);
        match &self.text[start..self.at] {
            [letter] => self.after_letter(*letter).unwrap_or(Token::Word(&self.text[start..=start])),
            word => Token::Word(word),
        }
    }

    /// The string or name that the letter before introduces. (The quote of B'', X'' and N'' follows as a string of its own.)
    fn after_letter(&mut self, letter: u8) -> Option<Token<'s>> {
        match (letter, self.peek(0)?, self.peek(1)) {
            (b'e' | b'E', b'\'', _) => Some(self.escape_string()),
            (b'u' | b'U', b'&', Some(b'"')) => {
                self.at += 1;
                Some(if self.quoted(b'"').is_some() { Token::Escaped } else { self.unterminated() })
            }
            (b'u' | b'U', b'&', Some(b'\'')) => {
                self.at += 1;
                Some(self.string())
            }
            _ => None,
        }
    }

    /// From an opening quote to behind the closing one; doubled quotes are part of it.
    fn quoted(&mut self, quote: u8) -> Option<&'s [u8]> {
        self.at += 1;
        let start = self.at;
        loop {
            let rest = self.text.get(self.at..)?;
            let end = self.at + rest.iter().position(|&byte| byte == quote)?;
            self.at = end + 1;
            if self.peek(0) != Some(quote) {
                return Some(&self.text[start..end]);
            }
            self.at += 1;
        }
    }

    fn string(&mut self) -> Token<'s> {
        if self.quoted(b'\'').is_some() { Token::String } else { self.unterminated() }
    }

    /// From the quote of `E'…'` on, with what continues it on further lines: there, too, a backslash escapes.
    fn escape_string(&mut self) -> Token<'s> {
        loop {
            self.at += 1;
            loop {
                match self.peek(0) {
                    None => return self.unterminated(),
                    Some(b'\\') => self.at += 2,
                    Some(b'\'') if self.peek(1) == Some(b'\'') => self.at += 2,
                    Some(b'\'') => break,
                    Some(_) => self.at += 1,
                }
            }
            self.at += 1;
            match self.continuation() {
                Some(quote) => self.at = quote,
                None => return Token::String,
            }
        }
    }

    /// Where the string that ended here is continued: white space and `--` comments with a line break, then a quote.
    fn continuation(&self) -> Option<usize> {
        let mut look = self.clone();
        let mut broken = false;
        loop {
            match (look.peek(0)?, look.peek(1)) {
                (b'\n' | b'\r', _) => broken = true,
                (byte, _) if is_space(byte) => {}
                (b'-', Some(b'-')) => {
                    look.pass_over(|byte| byte != b'\n' && byte != b'\r');
                    continue;
                }
                (b'\'', _) if broken => return Some(look.at),
                _ => return None,
            }
            look.at += 1;
        }
    }

    /// From a dollar on: a parameter, a dollar-quoted string, or the dollar alone.
    fn dollar(&mut self) -> Token<'s> {
        let tag_start = self.at + 1;
        if self.peek(1).is_some_and(|byte| byte.is_ascii_digit()) {
            self.at = tag_start;
            self.pass_over(|byte| byte.is_ascii_digit());
            return Token::Number;
        }
        let mut tag_end = tag_start;
        if self.peek(1).is_some_and(is_name_start) {
            let length = self.text[tag_start..].iter().position(|&byte| !is_name(byte) || byte == b'$');
            tag_end += length.unwrap_or(self.text.len() - tag_start);
        }
        if self.text.get(tag_end) != Some(&b'$') {
            self.at = tag_start;
            return Token::Symbol(b'$');
        }
        let mark = &self.text[self.at..=tag_end];
        let mut from = tag_end + 1;
        while let Some(found) = self.text[from..].iter().position(|&byte| byte == b'$') {
            if self.text[from + found..].starts_with(mark) {
                self.at = from + found + mark.len();
                return Token::String;
            }
            from += found + 1;
        }
        self.unterminated()
    }

    fn line_comment(&mut self) -> Token<'s> {
        let start = self.at + 2;
        self.pass_over(|byte| byte != b'\n' && byte != b'\r');
        Token::Comment(&self.text[start..self.at])
    }

    fn block_comment(&mut self) -> Token<'s> {
        let start = self.at + 2;
        let mut open = 1_usize;
        self.at = start;
        while open > 0 {
            match (self.peek(0), self.peek(1)) {
                (None, _) => return self.unterminated(),
                (Some(b'*'), Some(b'/')) => (open, self.at) = (open - 1, self.at + 2),
                (Some(b'/'), Some(b'*')) => (open, self.at) = (open + 1, self.at + 2),
                _ => self.at += 1,
            }
        }
        Token::Comment(&self.text[start..self.at - 2])
    }

    /// A number, with whatever letters are stuck to it (an error in PostgreSQL), so that they begin no word.
    fn number(&mut self) -> Token<'s> {
        self.pass_over(|byte| is_name(byte) && byte != b'$' || byte == b'.');
        Token::Number
    }
}

impl<'s> Iterator for Lexer<'s> {
    type Item = Token<'s>;

    #[inline]
    fn next(&mut self) -> Option<Token<'s>> {
        self.pass_over(is_space);
        let first = self.peek(0)?;
        if is_name_start(first) {
            return Some(self.word());
        }
        Some(match (first, self.peek(1)) {
            (b'\'', _) => self.string(),
            (b'"', _) => match self.quoted(b'"') {
                Some(name) => Token::Quoted(name),
                None => self.unterminated(),
            },
            (b'-', Some(b'-')) => self.line_comment(),
            (b'/', Some(b'*')) => self.block_comment(),
            (b'$', _) => self.dollar(),
            (b'0'..=b'9', _) => self.number(),
            (byte, _) => {
                self.at += 1;
                Token::Symbol(byte)
            }
        })
    }
}

const SPACE: u8 = 1;
const NAME_START: u8 = 2;
const NAME: u8 = 4;

/// What each byte may be part of.
static PARTS: [u8; 256] = {
    let mut parts = [0; 256];
    let mut at = 0;
    while at < parts.len() {
        // White space of PostgreSQL's scanner; the vertical tab since release 16.
        parts[at] = match at {
            0x09..=0x0d | 0x20 => SPACE,
            0x41..=0x5a | 0x5f | 0x61..=0x7a | 0x80.. => NAME_START | NAME,
            0x24 | 0x30..=0x39 => NAME, // a dollar, a digit
            _ => 0,
        };
        at += 1;
    }
    parts
};

#[inline]
fn is_space(byte: u8) -> bool {
    PARTS[usize::from(byte)] & SPACE != 0
}

#[inline]
fn is_name_start(byte: u8) -> bool {
    PARTS[usize::from(byte)] & NAME_START != 0
}

#[inline]
fn is_name(byte: u8) -> bool {
    PARTS[usize::from(byte)] & NAME != 0
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// The tokens in a short notation: words as they are, `'` a string, `#` a number, `"x"` a name, `{x}` a comment, `!` no end.
    fn cut(text: &str) -> String {
        let show = |token: Token<'_>| match token {
            Token::Word(word) => String::from_utf8_lossy(word).into_owned(),
            Token::Quoted(name) => format!("\"{}\"", String::from_utf8_lossy(name)),
            Token::Escaped => "U&".to_owned(),
            Token::String => "'".to_owned(),
            Token::Number => "#".to_owned(),
            Token::Comment(text) => format!("{{{}}}", String::from_utf8_lossy(text)),
            Token::Symbol(byte) => char::from(byte).to_string(),
            Token::Unterminated => "!".to_owned(),
        };
        Lexer::new(text.as_bytes()).map(show).collect::<Vec<_>>().join(" ")
    }

    #[test]
    fn tokens_are_cut_as_postgresql_cuts_them() {
        let table = [
            ("SELECT 1;insert", "SELECT # ; insert"),
            ("", ""),
            (" \t\r\n\x0b\x0c ", ""),
            ("'a''b;' ;", "' ;"),
            (r"'a\';x", "' ; x"),
            (r"E'a\';x' y", "' y"),
            (r"e'\\'y", "' y"),
            ("E'a'\n'b\\';c' d", "' d"),
            ("E'a' -- why\n -- not\n 'b\\';c' d", "' d"),
            ("E'a' 'b\\' c", "' ' c"),
            (r"fe'\'", "fe '"),
            (r"U&'\' x", "' x"),
            (r#"U&"\" x"#, "U& x"),
            ("B'1' X'f' N'n'", "B ' X ' N '"),
            (r#""a""b;" c"#, r#""a""b;" c"#),
            ("/* a /* b */ ; */ c", "{ a /* b */ ; } c"),
            ("/*/ x */ y", "{/ x } y"),
            ("a--;\nb", "a {;} b"),
            ("a--;\rb", "a {;} b"),
            ("1*/*x*/2", "# * {x} #"),
            ("$$;$$ $a$ $b$ $$ $a$ x", "' ' x"),
            ("$a$ $b$a$ x", "' x"),
            ("$1$$;$$", "# '"),
            ("a$1 a$$b", "a$1 a$$b"),
            ("$a b", "$ a b"),
            ("$é$;$é$ x", "' x"),
            ("1.5e10 0xFF 1_000 1e'x'", "# # # # '"),
            ("'", "!"),
            ("E'\\", "!"),
            ("\"a", "!"),
            ("/* /* */", "!"),
            ("$a$ $b$", "!"),
            ("U&\"", "!"),
            ("é.ß", "é . ß"),
        ];
        for (text, tokens) in table {
            assert_eq!(cut(text), tokens, "{text:?}");
        }
    }

    proptest! {
        #[test]
        fn no_text_makes_it_fail_or_stand_still(text in proptest::collection::vec(any::<u8>(), 0..200)) {
            walk(&text);
        }

        #[test]
        fn no_mix_of_openings_makes_it_fail(parts in proptest::collection::vec(
            prop::sample::select(vec!["'", "\"", "E'", "U&\"", "U&'", "$$", "$a$", "$", "/*", "*/", "--", "\n", "\\", "''", "e", "1", "x", ";", "(", "é"]),
            0..40,
        )) {
            walk(parts.concat().as_bytes());
        }
    }

    /// Each token moves on and none ends behind the text.
    fn walk(text: &[u8]) {
        let mut lexer = Lexer::new(text);
        let mut before = 0;
        while lexer.next().is_some() {
            assert!(lexer.at() > before && lexer.at() <= text.len());
            before = lexer.at();
        }
    }
}
