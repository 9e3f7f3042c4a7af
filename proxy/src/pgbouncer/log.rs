//! The log as PgBouncer writes it: its prefix, its levels, its places. What is said is not decided here.
//!
//! Lines of PgBouncer's own come as events with the target [`TARGET`] and go out as they are; other events of the program
//! are shown with a level of PgBouncer's, warnings and errors always, the rest when `verbose` asks for it.

use std::borrow::Cow;
use std::fmt::{self, Write as _};
use std::fs::{File, OpenOptions};
use std::io::{self, Write as _};
use std::os::unix::net::UnixDatagram;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::SystemTime;

use tracing::field::{Field, Visit};
use tracing::{Event, Metadata, Subscriber};
use tracing_subscriber::Layer;
use tracing_subscriber::layer::{Context, SubscriberExt};

use super::Settings;
use super::journal::Journal;

/// The target of lines that are PgBouncer's own.
pub(crate) const TARGET: &str = "pgbouncer";

/// PgBouncer's levels.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
#[allow(missing_docs, reason = "the names are PgBouncer's")]
pub(crate) enum Level {
    Fatal,
    Error,
    Warning,
    Log,
    Debug,
    Noise,
}

impl Level {
    const ALL: [(Self, &'static str, u8); 6] = [
        (Self::Fatal, "FATAL", 2),
        (Self::Error, "ERROR", 3),
        (Self::Warning, "WARNING", 4),
        (Self::Log, "LOG", 6),
        (Self::Debug, "DEBUG", 7),
        (Self::Noise, "NOISE", 7),
    ];

    fn word(self) -> &'static str {
        Self::ALL.iter().find(|(level, ..)| *level == self).map_or("LOG", |(_, word, _)| word)
    }

    /// The severity of syslog.
    fn severity(self) -> u8 {
        Self::ALL.iter().find(|(level, ..)| *level == self).map_or(6, |(.., severity)| *severity)
    }

    fn named(word: &str) -> Option<Self> {
        Self::ALL.iter().find(|(_, known, _)| *known == word).map(|(level, ..)| *level)
    }

    /// From which `verbose` on it is written.
    fn verbose(self) -> i32 {
        match self {
            Self::Debug => 1,
            Self::Noise => 2,
            _ => 0,
        }
    }
}

/// Writes a line of PgBouncer's own; nowhere, if the program has other manners.
pub(crate) fn say(level: Level, text: fmt::Arguments<'_>) {
    match level {
        Level::Fatal | Level::Error => tracing::error!(target: "pgbouncer", level = level.word(), "{text}"),
        Level::Warning => tracing::warn!(target: "pgbouncer", "{text}"),
        Level::Log => tracing::info!(target: "pgbouncer", "{text}"),
        Level::Debug => tracing::debug!(target: "pgbouncer", "{text}"),
        Level::Noise => tracing::trace!(target: "pgbouncer", "{text}"),
    }
}

/// Where the log goes, and how much of it.
struct Places {
    verbose: i32,
    stderr: bool,
    /// In place of standard error, where that is the journal.
    journal: Option<Journal>,
    file: Option<File>,
    syslog: Option<Syslog>,
    clock: Clock,
    /// Where each line is put together.
    line: String,
}

/// The time of day as it is written; a new second costs a look into the rules of the time zone, the rest of it does not.
#[derive(Default)]
struct Clock {
    second: u64,
    /// Date and time to the second, and the abbreviation of the time zone.
    shown: (String, String),
}

impl Clock {
    fn write(&mut self, line: &mut String) {
        let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        if self.second != now.as_secs() || self.shown.0.is_empty() {
            let time = jiff::ZonedDateTime::now();
            self.second = now.as_secs();
            self.shown = (time.strftime("%Y-%m-%d %H:%M:%S").to_string(), time.strftime("%Z").to_string());
        }
        let (time, zone) = &self.shown;
        let _ = write!(line, "{time}.{:03} {zone}", now.subsec_millis());
    }
}

/// The log of this process; cheap to clone.
#[derive(Clone)]
pub(crate) struct Log(Arc<Mutex<Places>>);

impl Log {
    /// Begins to log, to standard error unless it is to be quiet.
    pub(crate) fn start(verbose: i32, quiet: bool) -> Result<Self, String> {
        let journal = if quiet { None } else { Journal::of_stderr() };
        let (clock, line) = (Clock::default(), String::new());
        let places = Places { verbose, stderr: !quiet, journal, file: None, syslog: None, clock, line };
        let log = Self(Arc::new(Mutex::new(places)));
        let subscriber = tracing_subscriber::registry().with(log.clone());
        tracing::subscriber::set_global_default(subscriber).map_err(|error| error.to_string())?;
        Ok(log)
    }

    /// Takes what the settings say, and opens the file anew: it may have been moved away.
    ///
    /// # Errors
    /// The file cannot be opened: its name and why. The old one is better than none, and stays.
    pub(crate) fn reopen(&self, settings: &Settings) -> Result<(), String> {
        let (file, opened) = match settings.logfile.as_str() {
            "" => (None, Ok(())),
            name => match OpenOptions::new().create(true).append(true).open(name) {
                Ok(file) => (Some(file), Ok(())),
                Err(error) => {
                    let why = super::load::errno_text(&error);
                    (self.lock().file.take(), Err(format!("'{name}': {why}")))
                }
            },
        };
        let syslog = (settings.syslog != 0).then(|| Syslog::new(settings));
        let mut places = self.lock();
        places.verbose = settings.verbose;
        places.file = file;
        places.syslog = syslog;
        drop(places);
        // what was found not to be wanted is asked for again
        tracing::callsite::rebuild_interest_cache();
        opened
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Places> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Places {
    fn write(&mut self, level: Level, text: &str) {
        if self.verbose < level.verbose() {
            return;
        }
        let text = one_line(text);
        if let Some(syslog) = &self.syslog {
            syslog.write(level, &text);
        }
        let line = &mut self.line;
        line.clear();
        self.clock.write(line);
        let _ = writeln!(line, " [{}] {} {text}", std::process::id(), level.word());
        if let Some(file) = &mut self.file {
            let _ = file.write_all(line.as_bytes());
        }
        let is_noted = self.journal.as_ref().is_some_and(|journal| journal.write(level.severity(), &text).is_ok());
        if self.stderr && !is_noted {
            let _ = io::stderr().write_all(line.as_bytes());
        }
    }
}

/// A line feed becomes one with a tab behind it, so that a line that was forged begins with a tab; other control
/// characters are escaped.
fn one_line(text: &str) -> Cow<'_, str> {
    if text.bytes().all(|byte| matches!(byte, b' '..=b'~')) {
        return Cow::Borrowed(text);
    }
    let mut line = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '\n' => line.push_str("\n\t"),
            '\t' => line.push('\t'),
            c if crate::log::is_dangerous(c) => line.extend(c.escape_default()),
            c => line.push(c),
        }
    }
    Cow::Owned(line)
}

impl<S: Subscriber> Layer<S> for Log {
    fn enabled(&self, metadata: &Metadata<'_>, _: Context<'_, S>) -> bool {
        let verbose = self.lock().verbose;
        verbose >= level_of(metadata).verbose()
    }

    fn on_event(&self, event: &Event<'_>, _: Context<'_, S>) {
        let mut text = Text::default();
        event.record(&mut text);
        let level = text.level.unwrap_or_else(|| level_of(event.metadata()));
        text.message.push_str(&text.fields);
        self.lock().write(level, &text.message);
    }
}

/// Events of the program itself say more, more often, than PgBouncer does: what is no warning needs `verbose`.
fn level_of(metadata: &Metadata<'_>) -> Level {
    match (metadata.target() == TARGET, *metadata.level()) {
        (_, tracing::Level::ERROR) => Level::Error,
        (_, tracing::Level::WARN) => Level::Warning,
        (true, tracing::Level::INFO) => Level::Log,
        (true, tracing::Level::DEBUG) | (false, tracing::Level::INFO) => Level::Debug,
        _ => Level::Noise,
    }
}

/// The message and the fields of an event.
#[derive(Default)]
struct Text {
    message: String,
    fields: String,
    level: Option<Level>,
}

impl Visit for Text {
    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        let _ = match field.name() {
            "message" => write!(self.message, "{value:?}"),
            name => write!(self.fields, " {name}={value:?}"),
        };
    }

    fn record_str(&mut self, field: &Field, value: &str) {
        match (field.name(), Level::named(value)) {
            ("level", Some(level)) => self.level = Some(level),
            _ => self.record_debug(field, &format_args!("{value}")),
        }
    }
}

/// Where the system's log listens.
const SYSLOG: &str = "/dev/log";

/// The system's log, by its socket.
struct Syslog {
    socket: Option<UnixDatagram>,
    facility: u8,
    ident: String,
}

/// Facilities that `syslog_facility` may name, with their numbers.
const FACILITIES: [(&str, u8); 12] = [
    ("auth", 4),
    ("authpriv", 10),
    ("daemon", 3),
    ("user", 1),
    ("local0", 16),
    ("local1", 17),
    ("local2", 18),
    ("local3", 19),
    ("local4", 20),
    ("local5", 21),
    ("local6", 22),
    ("local7", 23),
];

impl Syslog {
    fn new(settings: &Settings) -> Self {
        let known = FACILITIES.iter().find(|(name, _)| *name == settings.syslog_facility);
        let socket = UnixDatagram::unbound().ok();
        if let Some(socket) = &socket {
            let _ = socket.connect(SYSLOG); // else it is tried again with the first line
        }
        Self { socket, facility: known.map_or(3, |(_, number)| *number), ident: settings.syslog_ident.clone() }
    }

    fn write(&self, level: Level, text: &str) {
        let Some(socket) = &self.socket else { return };
        let priority = self.facility * 8 + level.severity();
        let line = format!("<{priority}>{}[{}]: {} {text}", self.ident, std::process::id(), level.word());
        // whoever listened may have been started again
        if socket.send(line.as_bytes()).is_err() && socket.connect(SYSLOG).is_ok() {
            let _ = socket.send(line.as_bytes());
        }
    }
}
