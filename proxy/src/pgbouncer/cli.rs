//! PgBouncer's command line: its options, texts and exit statuses. What it starts is in `run.rs`.

use std::ffi::{OsStr, OsString};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use super::{VERSION, run};

/// Options with their letters and whether they take a value.
const OPTIONS: [(&str, char, bool); 7] = [
    ("quiet", 'q', false),
    ("verbose", 'v', false),
    ("help", 'h', false),
    ("daemon", 'd', false),
    ("version", 'V', false),
    ("reboot", 'R', false),
    ("user", 'u', true),
];

/// What the command line says.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(super) struct Arguments {
    pub(super) daemon: bool,
    pub(super) quiet: bool,
    pub(super) reboot: bool,
    pub(super) user: Option<String>,
    pub(super) verbose: i32,
    pub(super) file: PathBuf,
}

/// What is to be done.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Asked {
    Run(Arguments),
    Help,
    Version,
    /// Wrong; the words for it.
    Wrong(String),
}

/// Whether the program was called by this name for PgBouncer.
#[must_use]
pub fn is_called(name: Option<&OsStr>) -> bool {
    name.and_then(|name| Path::new(name).file_name()).is_some_and(|name| name == "pgbouncer")
}

/// Does what the command line says. `name` is how the program was called, `arguments` what stands behind it.
#[must_use]
pub fn main(name: &str, arguments: impl Iterator<Item = OsString>) -> ExitCode {
    let arguments: Vec<String> = arguments.map(|text| text.to_string_lossy().into_owned()).collect();
    match read(name, &arguments) {
        Asked::Run(arguments) => run::run(&arguments),
        Asked::Help => {
            print!("{}", help(name));
            ExitCode::SUCCESS
        }
        Asked::Version => {
            print!("{VERSION}\n{}\nsystemd: yes\n", parts().join("\n"));
            ExitCode::SUCCESS
        }
        Asked::Wrong(said) => {
            eprintln!("{said}\nTry \"{name} --help\" for more information.");
            ExitCode::FAILURE
        }
    }
}

/// What takes the place of PgBouncer's libraries, in its order.
pub(super) fn parts() -> [String; 3] {
    [
        format!("libevent none (pgsteady {})", env!("CARGO_PKG_VERSION")),
        "adns: libc-getaddrinfo".to_owned(),
        format!("tls: {}", openssl::version::version()),
    ]
}

fn help(name: &str) -> String {
    format!(
        "{name} is a connection pooler for PostgreSQL.\n\n\
         Usage:\n  {name} [OPTION]... CONFIG_FILE\n\n\
         Options:\n\
         \x20 -d, --daemon         run in background (as a daemon)\n\
         \x20 -q, --quiet          run quietly\n\
         \x20 -R, --reboot         do an online reboot\n\
         \x20 -u, --user=USERNAME  assume identity of USERNAME\n\
         \x20 -v, --verbose        increase verbosity\n\
         \x20 -V, --version        show version, then exit\n\
         \x20 -h, --help           show this help, then exit\n\n\
         This is pgsteady, which takes PgBouncer's place.\n"
    )
}

/// Reads as `getopt_long` does: options and the file in any order, letters together, names cut short.
fn read(name: &str, arguments: &[String]) -> Asked {
    let mut read = Arguments::default();
    let mut files = Vec::new();
    let mut rest = arguments.iter();
    while let Some(argument) = rest.next() {
        if argument == "--" {
            files.extend(rest.by_ref().cloned());
        } else if let Some(long) = argument.strip_prefix("--") {
            let (option, value) = match long.split_once('=') {
                Some((option, value)) => (option, Some(value.to_owned())),
                None => (long, None),
            };
            let (option, letter, takes) = match named(option) {
                Ok(found) => found,
                Err(what) => return Asked::Wrong(format!("{name}: {what}")),
            };
            let value = match (takes, value) {
                (false, Some(_)) => {
                    return Asked::Wrong(format!("{name}: option '--{option}' doesn't allow an argument"));
                }
                (true, None) => match rest.next() {
                    Some(value) => Some(value.clone()),
                    None => return Asked::Wrong(format!("{name}: option '--{option}' requires an argument")),
                },
                (_, value) => value,
            };
            if let Some(asked) = read.take(letter, value) {
                return asked;
            }
        } else if argument.len() > 1 && argument.starts_with('-') {
            if let Some(asked) = read.letters(name, &argument[1..], &mut rest) {
                return asked;
            }
        } else {
            files.push(argument.clone());
        }
    }
    match files.as_slice() {
        [file] => Asked::Run(Arguments { file: file.into(), ..read }),
        _ => Asked::Wrong(format!("{name}: no configuration file specified")),
    }
}

/// The option of this name, or of one that begins so and is the only one.
fn named(option: &str) -> Result<(&'static str, char, bool), String> {
    if let Some(exact) = OPTIONS.iter().find(|(known, ..)| *known == option) {
        return Ok(*exact);
    }
    let found: Vec<_> = OPTIONS.iter().filter(|(known, ..)| known.starts_with(option)).collect();
    match found.as_slice() {
        [only] => Ok(**only),
        [] => Err(format!("unrecognized option '--{option}'")),
        several => {
            let names: Vec<_> = several.iter().map(|(known, ..)| format!("'--{known}'")).collect();
            Err(format!("option '--{option}' is ambiguous; possibilities: {}", names.join(" ")))
        }
    }
}

impl Arguments {
    fn letters<'a>(&mut self, name: &str, letters: &str, rest: &mut impl Iterator<Item = &'a String>) -> Option<Asked> {
        for (at, letter) in letters.char_indices() {
            let Some((_, _, takes)) = OPTIONS.iter().find(|(_, known, _)| *known == letter) else {
                return Some(Asked::Wrong(format!("{name}: invalid option -- '{letter}'")));
            };
            if *takes {
                let joined = &letters[at + letter.len_utf8()..];
                let value = if joined.is_empty() { rest.next().cloned() } else { Some(joined.to_owned()) };
                return match value {
                    Some(value) => self.take(letter, Some(value)),
                    None => Some(Asked::Wrong(format!("{name}: option requires an argument -- '{letter}'"))),
                };
            }
            if let Some(asked) = self.take(letter, None) {
                return Some(asked);
            }
        }
        None
    }

    /// Takes an option; what is to be done at once, for those that end the reading.
    fn take(&mut self, letter: char, value: Option<String>) -> Option<Asked> {
        match letter {
            'q' => self.quiet = true,
            'd' => self.daemon = true,
            'R' => self.reboot = true,
            'v' => self.verbose += 1,
            'u' => self.user = value,
            'h' => return Some(Asked::Help),
            _ => return Some(Asked::Version),
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn asked(line: &str) -> Asked {
        read("pgb", &line.split_whitespace().map(str::to_owned).collect::<Vec<_>>())
    }

    #[test]
    fn the_command_line_is_read_as_getopt_does() {
        let run = |line: &str| match asked(line) {
            Asked::Run(arguments) => arguments,
            other => panic!("{line}: {other:?}"),
        };
        assert_eq!(run("a.ini").file, PathBuf::from("a.ini"));
        let all = run("a.ini -qdvv -u joe");
        assert_eq!((all.quiet, all.daemon, all.verbose, all.user.as_deref()), (true, true, 2, Some("joe")));
        assert_eq!(run("-ujoe a.ini").user.as_deref(), Some("joe"));
        assert_eq!(run("--us=joe a.ini").user.as_deref(), Some("joe"));
        assert_eq!(run("--user joe -- -a.ini").file, PathBuf::from("-a.ini"));
        assert!(run("-R x").reboot);
        assert_eq!((asked("-V x"), asked("--help"), asked("-qh")), (Asked::Version, Asked::Help, Asked::Help));
        for (line, said) in [
            ("", "pgb: no configuration file specified"),
            ("a b", "pgb: no configuration file specified"),
            ("--bogus", "pgb: unrecognized option '--bogus'"),
            ("-z", "pgb: invalid option -- 'z'"),
            ("-u", "pgb: option requires an argument -- 'u'"),
            ("--us", "pgb: option '--user' requires an argument"),
            ("--quiet=1 x", "pgb: option '--quiet' doesn't allow an argument"),
            ("--ver", "pgb: option '--ver' is ambiguous; possibilities: '--verbose' '--version'"),
        ] {
            assert_eq!(asked(line), Asked::Wrong(said.to_owned()), "{line}");
        }
    }

    #[test]
    fn the_name_of_the_file_decides() {
        assert!(is_called(Some(OsStr::new("/usr/sbin/pgbouncer"))));
        assert!(!is_called(Some(OsStr::new("/pgbouncer/pgsteady"))));
        assert!(!is_called(None));
    }
}
