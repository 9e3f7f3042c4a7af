//! The commands of the console: text in, command out. As PgBouncer reads them: `cmd [arg];` and `SET key = value;`, in any case.

/// Longest argument in bytes.
const MAX_ARGUMENT: usize = 63;
/// Longest value of SET in bytes.
const MAX_VALUE: usize = 255;
/// Longest name of a command in bytes.
const MAX_NAME: usize = 15;

use crate::counts::Ending;

/// What the console was asked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Command {
    /// Nothing.
    Empty,
    /// SHOW, or SELECT, with what; and the words in which it was asked for.
    Show(String, String),
    /// SET of a setting to a value.
    Set(String, String),
    /// RELOAD.
    Reload,
    /// PAUSE of all, or of a database.
    Pause(Option<String>),
    /// RESUME of all, or of a database.
    Resume(Option<String>),
    /// SUSPEND.
    Suspend,
    /// DISABLE of a database.
    Disable(Option<String>),
    /// ENABLE of a database.
    Enable(Option<String>),
    /// RECONNECT of all, or of a database.
    Reconnect(Option<String>),
    /// WAIT_CLOSE for all, or for a database.
    WaitClose(Option<String>),
    /// KILL of all, or of a database.
    Kill(Option<String>),
    /// KILL_CLIENT with a number.
    KillClient(Option<String>),
    /// SHUTDOWN, perhaps with what is waited for.
    Shutdown(Option<Ending>),
    /// SHUTDOWN HANDED_OVER: what SHOW FDS gave is the other process's now.
    GiveWay,
    /// SWITCHOVER, perhaps to a node.
    Switchover(Option<String>),
}

/// Settings of PostgreSQL that drivers set on every connection: taken, without effect.
const IGNORED: [&str; 6] = [
    "extra_float_digits",
    "client_encoding",
    "datestyle",
    "timezone",
    "standard_conforming_strings",
    "application_name",
];

/// Whether SET takes a setting without effect.
pub(super) fn is_ignored(key: &str) -> bool {
    IGNORED.iter().any(|known| known.eq_ignore_ascii_case(key))
}

/// Why a text is no command.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum NoCommand {
    /// There is no such command, or it is not written so.
    Invalid,
    /// An argument is too long.
    BadArguments,
}

impl Command {
    /// Reads one command.
    pub(super) fn read(text: &str) -> Result<Self, NoCommand> {
        let said = text.trim();
        let text = said.strip_suffix(';').unwrap_or(said).trim_end();
        if text.is_empty() {
            return Ok(Self::Empty);
        }
        let (name, rest) = word(text).ok_or(NoCommand::Invalid)?;
        if name.len() > MAX_NAME {
            return Err(NoCommand::BadArguments);
        }
        let name = name.to_ascii_lowercase();
        if name == "set" {
            return set(rest);
        }
        let argument = argument(rest)?;
        Ok(match (name.as_str(), argument) {
            ("show" | "select", Some(what)) => Self::Show(what.to_ascii_lowercase(), said.to_owned()),
            ("reload", None) => Self::Reload,
            ("pause", database) => Self::Pause(database),
            ("resume", database) => Self::Resume(database),
            ("suspend", None) => Self::Suspend,
            ("disable", database) => Self::Disable(database),
            ("enable", database) => Self::Enable(database),
            ("reconnect", database) => Self::Reconnect(database),
            ("wait_close", database) => Self::WaitClose(database),
            ("kill", database) => Self::Kill(database),
            ("kill_client", id) => Self::KillClient(id),
            ("shutdown", None) => Self::Shutdown(None),
            ("shutdown", Some(how)) if how.eq_ignore_ascii_case("wait_for_servers") => {
                Self::Shutdown(Some(Ending::WaitForServers))
            }
            ("shutdown", Some(how)) if how.eq_ignore_ascii_case("wait_for_clients") => {
                Self::Shutdown(Some(Ending::WaitForClients))
            }
            ("shutdown", Some(how)) if how.eq_ignore_ascii_case("handed_over") => Self::GiveWay,
            ("switchover", node) => Self::Switchover(node),
            _ => return Err(NoCommand::Invalid),
        })
    }

    /// The tag of its CommandComplete.
    pub(super) fn tag(&self) -> String {
        let tag = match self {
            Self::Empty => "",
            Self::Show(..) => "SHOW",
            Self::Set(key, _) if is_ignored(key) => "SET",
            Self::Set(key, value) => return format!("SET {key}={value}"),
            Self::Reload => "RELOAD",
            Self::Pause(_) => "PAUSE",
            Self::Resume(_) => "RESUME",
            Self::Suspend => "SUSPEND",
            Self::Disable(_) => "DISABLE",
            Self::Enable(_) => "ENABLE",
            Self::Reconnect(_) => "RECONNECT",
            Self::WaitClose(_) => "WAIT_CLOSE",
            Self::Kill(_) => "KILL",
            Self::KillClient(_) => "KILL_CLIENT",
            Self::Shutdown(_) | Self::GiveWay => "SHUTDOWN",
            Self::Switchover(_) => "SWITCHOVER",
        };
        tag.to_owned()
    }

    /// Whether it changes something.
    pub(super) fn acts(&self) -> bool {
        !matches!(self, Self::Empty | Self::Show(..))
    }
}

/// The word at the beginning, and what is behind it.
fn word(text: &str) -> Option<(&str, &str)> {
    let end = text.find(|c: char| !c.is_ascii_alphanumeric() && c != '_').unwrap_or(text.len());
    (end > 0).then(|| text.split_at(end))
}

/// One argument, plain or in double quotes, or none.
fn argument(text: &str) -> Result<Option<String>, NoCommand> {
    let text = text.trim();
    if text.is_empty() {
        return Ok(None);
    }
    let value = match text.strip_prefix('"') {
        Some(quoted) => {
            let inner = quoted.strip_suffix('"').ok_or(NoCommand::Invalid)?;
            if inner.replace("\"\"", "").contains('"') {
                return Err(NoCommand::Invalid);
            }
            inner.replace("\"\"", "\"")
        }
        None => match word(text) {
            Some((word, "")) => word.to_owned(),
            _ => return Err(NoCommand::Invalid),
        },
    };
    if value.len() > MAX_ARGUMENT { Err(NoCommand::BadArguments) } else { Ok(Some(value)) }
}

/// `key = value` or `key to value`, the value in quotes or not.
fn set(text: &str) -> Result<Command, NoCommand> {
    let (key, rest) = word(text.trim_start()).ok_or(NoCommand::Invalid)?;
    let rest = rest.trim_start();
    let value = match rest.strip_prefix('=') {
        Some(value) => value.trim(),
        None => match word(rest) {
            Some((to, value)) if to.eq_ignore_ascii_case("to") => value.trim(),
            _ => return Err(NoCommand::Invalid),
        },
    };
    let value = match value.strip_prefix('\'') {
        Some(quoted) => {
            let inner = quoted.strip_suffix('\'').ok_or(NoCommand::Invalid)?;
            if inner.replace("''", "").contains('\'') {
                return Err(NoCommand::Invalid);
            }
            inner.replace("''", "'")
        }
        None if value.is_empty() || value.contains(char::is_whitespace) => return Err(NoCommand::Invalid),
        None => value.to_owned(),
    };
    if key.len() > MAX_ARGUMENT || value.len() > MAX_VALUE {
        return Err(NoCommand::BadArguments);
    }
    Ok(Command::Set(key.to_owned(), value))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn commands_are_read_as_pgbouncer_reads_them() {
        let some = |text: &str| Some(text.to_owned());
        for (text, command) in [
            ("SHOW POOLS;", Command::Show("pools".into(), "SHOW POOLS;".into())),
            ("  show  Version ", Command::Show("version".into(), "show  Version".into())),
            ("pause", Command::Pause(None)),
            ("PAUSE p0;", Command::Pause(some("p0"))),
            ("pause \"My \"\"db\"\"\"", Command::Pause(some("My \"db\""))),
            ("set a=1", Command::Set("a".into(), "1".into())),
            ("SET a TO 'it''s'", Command::Set("a".into(), "it's".into())),
            ("SET a = 'x, y';", Command::Set("a".into(), "x, y".into())),
            (";", Command::Empty),
            ("", Command::Empty),
        ] {
            assert_eq!(Command::read(text), Ok(command), "{text}");
        }
        for text in ["show", "pause p0 p1", "set a", "set =1", "1;2", "nothing", "reload x", "pause \"x", "set a='b"] {
            assert_eq!(Command::read(text), Err(NoCommand::Invalid), "{text}");
        }
        assert_eq!(Command::read(&format!("pause {}", "x".repeat(64))), Err(NoCommand::BadArguments));
        assert_eq!(Command::read(&format!("set a={}", "x".repeat(256))), Err(NoCommand::BadArguments));
    }
}
