//! As much of Rust's lexical structure as it takes to find functions and names in source text. Not a parser.

/// A function found in source text.
#[derive(Debug, PartialEq, Eq)]
pub struct Function {
    /// Its name.
    pub name: String,
    /// The line of its `fn`, from 1.
    pub line: usize,
    /// Lines from its `fn` to its closing brace.
    pub lines: usize,
}

/// The same text with the contents of comments, strings and character literals turned into blanks: lines and columns
/// stay where they were.
#[must_use]
pub fn blank_out(source: &str) -> String {
    let text: Vec<char> = source.chars().collect();
    let mut blanked = String::with_capacity(source.len());
    let mut at = 0;
    while at < text.len() {
        let length = literal_or_comment(&text[at..], at.checked_sub(1).map(|before| text[before]));
        if length == 0 {
            blanked.push(text[at]);
            at += 1;
        } else {
            blanked.extend(text[at..at + length].iter().map(|&c| if c == '\n' { '\n' } else { ' ' }));
            at += length;
        }
    }
    blanked
}

/// How many characters of a comment or literal begin here; 0 if none does.
fn literal_or_comment(text: &[char], before: Option<char>) -> usize {
    let starts = |prefix: &str| prefix.chars().zip(text).filter(|(a, b)| a == *b).count() == prefix.chars().count();
    let in_word = before.is_some_and(|c| c.is_alphanumeric() || c == '_');
    match text[0] {
        '/' if starts("//") => text.iter().position(|&c| c == '\n').unwrap_or(text.len()),
        '/' if starts("/*") => block_comment(text),
        '"' => quoted(text, '"'),
        'r' if !in_word || before == Some('b') || before == Some('c') => raw_string(text),
        '\'' => character(text),
        _ => 0,
    }
}

fn block_comment(text: &[char]) -> usize {
    let (mut depth, mut at) = (0, 0);
    while at + 1 < text.len() {
        match (text[at], text[at + 1]) {
            ('/', '*') => (depth, at) = (depth + 1, at + 2),
            ('*', '/') => (depth, at) = (depth - 1, at + 2),
            _ => at += 1,
        }
        if depth == 0 {
            return at;
        }
    }
    text.len()
}

/// From an opening quote to the closing one, over escapes.
fn quoted(text: &[char], quote: char) -> usize {
    let mut at = 1;
    while at < text.len() {
        match text[at] {
            '\\' => at += 2,
            c if c == quote => return at + 1,
            _ => at += 1,
        }
    }
    text.len()
}

/// `r"…"`, `r#"…"#` and so on; 0 if it is an `r` of something else (a raw identifier, a word).
fn raw_string(text: &[char]) -> usize {
    let hashes = text[1..].iter().take_while(|&&c| c == '#').count();
    if text.get(1 + hashes) != Some(&'"') {
        return 0;
    }
    let mut at = 2 + hashes;
    while at < text.len() {
        if text[at] == '"' && text[at + 1..].iter().take_while(|&&c| c == '#').count() >= hashes {
            return at + 1 + hashes;
        }
        at += 1;
    }
    text.len()
}

/// A character literal; 0 for a lifetime.
fn character(text: &[char]) -> usize {
    match (text.get(1), text.get(2)) {
        (Some('\\'), _) => quoted(text, '\''),
        (Some(_), Some('\'')) => 3,
        _ => 0,
    }
}

/// The functions with a body, in text that went through [`blank_out`].
#[must_use]
pub fn functions(blanked: &str) -> Vec<Function> {
    let mut found = Vec::new();
    let mut offset = 0;
    for (number, line) in blanked.lines().enumerate() {
        for name in names_after_fn(line) {
            let body = blanked.get(offset + name.end..).and_then(body_lines);
            if let Some(lines) = body {
                found.push(Function { name: name.text, line: number + 1, lines });
            }
        }
        offset += line.len() + 1;
    }
    found
}

struct Name {
    text: String,
    end: usize,
}

fn names_after_fn(line: &str) -> Vec<Name> {
    let mut names = Vec::new();
    for (at, _) in line.match_indices("fn ") {
        let starts_word = at == 0 || !line[..at].ends_with(|c: char| c.is_alphanumeric() || c == '_');
        let rest = line[at + 3..].trim_start();
        let text: String = rest.chars().take_while(|c| c.is_alphanumeric() || *c == '_').collect();
        if starts_word && !text.is_empty() {
            names.push(Name { text, end: at + 3 });
        }
    }
    names
}

/// Lines up to the brace that closes the first block here; `None` if a `;` outside brackets comes first (no body).
fn body_lines(rest: &str) -> Option<usize> {
    let (mut lines, mut braces, mut brackets) = (1, 0, 0);
    for character in rest.chars() {
        match character {
            '\n' => lines += 1,
            '(' | '[' if braces == 0 => brackets += 1,
            ')' | ']' if braces == 0 => brackets -= 1,
            ';' if braces == 0 && brackets == 0 => return None,
            '{' => braces += 1,
            '}' if braces == 1 => return Some(lines),
            '}' => braces -= 1,
            _ => {}
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn literals_and_comments_are_blank_and_nothing_moves() {
        let source = "a /* { /* { */ */ b // {\n'{' \"{\\\"{\" r#\"{\"{\"# '\\'' &'a str";
        let blanked = blank_out(source);
        assert_eq!(blanked.len(), source.len());
        assert!(!blanked.contains('{'), "{blanked}");
        assert!(blanked.contains("&'a str"), "{blanked}");
        assert_eq!(blanked.lines().count(), 2);
    }

    #[test]
    fn functions_are_measured_to_their_closing_brace() {
        let source = "fn none();\nfn one(a: [u8; 2]) -> u8 { 1 }\npub fn two() {\n    if x {\n    }\n}\n";
        let found = functions(&blank_out(source));
        let one = Function { name: "one".into(), line: 2, lines: 1 };
        let two = Function { name: "two".into(), line: 3, lines: 4 };
        assert_eq!(found, vec![one, two]);
    }
}
