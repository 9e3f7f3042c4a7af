//! `userlist.txt` as PgBouncer has it: `"user" "secret"` on a line. Not what a secret means.

use crate::config::Secret;

/// Longest file that is read, in bytes.
pub(super) const MAX_FILE_BYTES: u64 = 64 << 20;
/// Longest user name in bytes (PgBouncer's limit; PostgreSQL cuts at 63).
const MAX_USER_BYTES: usize = 127;
/// Longest secret in bytes (PgBouncer's limit).
const MAX_SECRET_BYTES: usize = 2047;

/// The users with their secrets, in the order of the file. Everything behind the secret is ignored, `;` begins a comment
/// line, and `""` inside quotes is one quote.
///
/// # Errors
/// The first line that is not such a pair, and what is wrong with it; its content is not quoted, it may be a secret.
pub(super) fn parse(text: &str) -> Result<Vec<(String, Secret)>, String> {
    let mut users = Vec::new();
    for (i, line) in text.lines().enumerate() {
        let line = line.trim_start();
        if line.is_empty() || line.starts_with(';') {
            continue;
        }
        users.push(pair(line).map_err(|what| format!("line {}: {what}", i + 1))?);
    }
    Ok(users)
}

/// The users as PgBouncer itself reads them: those before the first mistake, and what its log says of that. A pair is a pair wherever its quotes
/// stand; what is behind it on its line is ignored.
pub(super) fn parse_in_part(text: &str) -> (Vec<(String, Secret)>, Option<&'static str>) {
    const BROKEN: &str = "broken auth file";
    let mut users = Vec::new();
    let mut rest = text.split('\0').next().unwrap_or("").trim_start();
    while !rest.is_empty() {
        let end_of_line = |text: &'_ str| text.find('\n').unwrap_or(text.len());
        if rest.starts_with(';') {
            rest = rest[end_of_line(rest)..].trim_start();
            continue;
        }
        let Some((user, behind)) = quoted(rest) else { return (users, Some(BROKEN)) };
        if rest.len() - behind.len() - 2 > MAX_USER_BYTES {
            return (users, Some("username too long in auth file"));
        }
        let Some(secret) = behind.find('"').map(|at| &behind[at..]) else { return (users, Some(BROKEN)) };
        let Some((password, behind)) = quoted(secret) else { return (users, Some(BROKEN)) };
        if secret.len() - behind.len() - 2 > MAX_SECRET_BYTES {
            return (users, Some("password too long in auth file"));
        }
        users.push((user, Secret::new(&password)));
        rest = behind[end_of_line(behind)..].trim_start();
    }
    (users, None)
}

fn pair(line: &str) -> Result<(String, Secret), &'static str> {
    let (user, rest) = quoted(line).ok_or("the user is not in double quotes")?;
    let secret = rest.strip_prefix([' ', '\t']).ok_or("there is no blank behind the user")?;
    let (secret, _) = quoted(secret.trim_start()).ok_or("the secret is not in double quotes")?;
    if user.is_empty() || user.len() > MAX_USER_BYTES {
        return Err("the user has a wrong length: 1 to 127 bytes are allowed");
    }
    if secret.len() > MAX_SECRET_BYTES {
        return Err("the secret is too long: 2047 bytes are allowed");
    }
    if user.contains('\0') || secret.contains('\0') {
        return Err("there is a zero byte");
    }
    Ok((user, Secret::new(&secret)))
}

/// A quoted text at the beginning, and what is behind it.
fn quoted(text: &str) -> Option<(String, &str)> {
    let mut rest = text.strip_prefix('"')?;
    let mut value = String::new();
    loop {
        let (part, behind) = rest.split_once('"')?;
        value.push_str(part);
        match behind.strip_prefix('"') {
            Some(more) => {
                value.push('"');
                rest = more;
            }
            None => return Some((value, behind)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pairs_are_read_as_pgbouncer_reads_them() {
        let text =
            "; a comment\n\n\"joe\" \"secret\"\n  \"o\"\"x\"\t  \"p\"\"w\" anything \"else\"\n\"nobody\" \"\"\r\n";
        let users = parse(text).unwrap();
        let shown: Vec<_> = users.iter().map(|(user, secret)| (user.as_str(), secret.reveal())).collect();
        assert_eq!(shown, [("joe", "secret"), ("o\"x", "p\"w"), ("nobody", "")]);
    }

    #[test]
    fn pgbouncer_takes_what_stands_before_a_mistake() {
        let read = |text: &str| {
            let (users, wrong) = parse_in_part(text);
            (users.iter().map(|(user, secret)| format!("{user}={}", secret.reveal())).collect::<Vec<_>>(), wrong)
        };
        let broken = Some("broken auth file");
        assert_eq!(read("; x\n\"a\" \"b\" more\n\"o\"\"x\" \"\"\n"), (vec!["a=b".into(), "o\"x=".into()], None));
        assert_eq!(read("\"a\" \"b\"\nc\n\"d\" \"e\""), (vec!["a=b".into()], broken));
        assert_eq!(read("\"a\""), (vec![], broken));
        assert_eq!(read("\"a\" \"b"), (vec![], broken));
        assert_eq!(read("# x\n"), (vec![], broken));
        let long = |bytes: usize| "x".repeat(bytes);
        assert_eq!(read(&format!("\"{}\" \"b\"", long(127))).1, None);
        assert_eq!(read(&format!("\"{}\" \"b\"", long(128))).1, Some("username too long in auth file"));
        assert_eq!(read(&format!("\"a\" \"{}\"", long(2047))).1, None);
        assert_eq!(read(&format!("\"a\" \"{}\"", long(2048))).1, Some("password too long in auth file"));
    }

    #[test]
    fn a_broken_line_is_named_and_not_shown() {
        let long_user = format!("\"{}\" \"x\"", "u".repeat(128));
        let long_secret = format!("\"u\" \"{}\"", "hunter2".repeat(300));
        for (line, what) in [
            ("joe hunter2", "line 2: the user is not in double quotes"),
            ("\"joe\" hunter2", "line 2: the secret is not in double quotes"),
            ("\"joe\"\"hunter2", "line 2: the user is not in double quotes"),
            ("\"joe\" \"hunter2", "line 2: the secret is not in double quotes"),
            ("\"joe\"", "line 2: there is no blank behind the user"),
            ("\"\" \"hunter2\"", "line 2: the user has a wrong length: 1 to 127 bytes are allowed"),
            (&long_user, "line 2: the user has a wrong length: 1 to 127 bytes are allowed"),
            (&long_secret, "line 2: the secret is too long: 2047 bytes are allowed"),
            ("\"joe\" \"a\0b\"", "line 2: there is a zero byte"),
        ] {
            assert_eq!(parse(&format!("\"a\" \"b\"\n{line}\n")), Err(what.to_owned()), "{line:?}");
        }
    }
}
