//! `pgbouncer.ini` as it is in force: what was read, and how a reload and a SET change it. Not what it means for the proxy.

use std::collections::BTreeMap;
use std::fs;
use std::io::Read;
use std::path::{Path, PathBuf};

use super::connstr::{DatabaseLine, PeerLine, UserLine};
use super::ini::{Item, Items};
use super::settings::{SETTINGS, Setting, Settings};

/// Files that may include each other.
const MAX_INCLUDES: usize = 10;
/// Longest file that is read, in bytes.
const MAX_FILE_BYTES: u64 = 64 << 20;

/// How grave a line of the log is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Grave {
    /// Reading stops there.
    Error,
    /// It goes on.
    Warning,
}

/// A line for the log.
pub type Said = (Grave, String);

/// What the files said, in force.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Loaded {
    /// The file that RELOAD reads.
    pub file: PathBuf,
    /// `[pgbouncer]`.
    pub settings: Settings,
    /// `[databases]`, without the template.
    pub databases: BTreeMap<String, DatabaseLine>,
    /// The entry `*`.
    pub template: Option<DatabaseLine>,
    /// `[users]`; they stay when the file does not name them any more.
    pub users: BTreeMap<String, UserLine>,
    /// `[peers]`.
    pub peers: BTreeMap<u16, PeerLine>,
    /// It was read to its end once: settings that only a start takes are fixed.
    booted: bool,
}

/// A reading that goes on.
struct Reading {
    loaded: Loaded,
    section: Option<Section>,
    said: Vec<Said>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Section {
    Pgbouncer,
    Databases,
    Users,
    Peers,
}

impl Section {
    fn named(name: &str) -> Option<Self> {
        match name {
            "pgbouncer" => Some(Self::Pgbouncer),
            "databases" => Some(Self::Databases),
            "users" => Some(Self::Users),
            "peers" => Some(Self::Peers),
            _ => None,
        }
    }
}

impl Loaded {
    /// What holds before any file was read.
    #[must_use]
    pub fn new(file: &Path, verbose: i32) -> Self {
        let mut loaded = Self { file: file.to_owned(), ..Self::default() };
        loaded.settings.verbose = verbose;
        loaded.settings.conffile = Some(file.display().to_string());
        loaded
    }

    /// Reads the file again (or for the first time); whether it could be read to its end, what is in force now, and
    /// what is to be logged. What stood before a mistake is taken; databases and peers go only with a good file.
    #[must_use]
    pub fn read(&self) -> (bool, Self, Vec<Said>) {
        let mut start = self.clone();
        let file = start.settings.conffile.clone().map_or_else(|| start.file.clone(), PathBuf::from);
        start.file.clone_from(&file);
        let (databases, peers) = (std::mem::take(&mut start.databases), std::mem::take(&mut start.peers));
        let mut reading = Reading { loaded: start, section: None, said: Vec::new() };
        let good = reading.file(&file, 0).is_ok();
        let Reading { mut loaded, mut said, .. } = reading;
        if good {
            loaded.booted = true;
        } else if self.booted {
            for (name, line) in &databases {
                loaded.databases.entry(name.clone()).or_insert_with(|| line.clone());
            }
            for (id, line) in &peers {
                loaded.peers.entry(*id).or_insert_with(|| line.clone());
            }
        }
        loaded.keep_forced_users(&databases, &mut said);
        (good, loaded, said)
    }

    /// A database that had a forced user keeps it.
    fn keep_forced_users(&mut self, before: &BTreeMap<String, DatabaseLine>, said: &mut Vec<Said>) {
        for (name, line) in &mut self.databases {
            let Some(old) = before.get(name).filter(|old| old.user.is_some() && line.user.is_none()) else { continue };
            line.user.clone_from(&old.user);
            line.password.clone_from(&old.password);
            said.push((Grave::Warning, "losing forced user not supported, keeping old setting".to_owned()));
        }
    }

    /// Takes a setting from the console. One that only a start takes is passed over in silence.
    ///
    /// # Errors
    /// What is to be logged.
    pub fn set(&mut self, key: &str, value: &str) -> Result<(), String> {
        let setting = Setting::named(key).ok_or_else(|| format!("unknown parameter: pgbouncer/{key}"))?;
        if !setting.live && self.booted {
            return Ok(());
        }
        setting
            .set(&mut self.settings, value)
            .map_err(|allowed| format!("invalid value \"{value}\" for parameter {key} in configuration: {allowed}"))
    }

    /// Enters `[pgbouncer]`: everything that may change goes back to its default.
    fn reset(&mut self) {
        for setting in SETTINGS.iter().filter(|setting| setting.live || !self.booted) {
            setting.reset(&mut self.settings);
        }
    }
}

/// The rest of the file is not read.
struct Stop;

impl Reading {
    fn error(&mut self, said: String) -> Stop {
        self.said.push((Grave::Error, said));
        Stop
    }

    fn file(&mut self, file: &Path, depth: usize) -> Result<(), Stop> {
        let text = match text_of(file) {
            Ok(text) => text,
            Err(error) => return Err(self.error(format!("could not load file \"{}\": {error}", file.display()))),
        };
        let mut items = Items::new(&text);
        while let Some(item) = items.next() {
            let line = items.line();
            match item {
                Err(error) => {
                    let place = format!("{}:{}", file.display(), error.line);
                    return Err(self.error(format!("syntax error in configuration ({place}), stopping loading")));
                }
                Ok(item) => self.item(item, file, line, depth)?,
            }
        }
        Ok(())
    }

    fn item(&mut self, item: Item<'_>, file: &Path, line: usize, depth: usize) -> Result<(), Stop> {
        let place = format!("{}:{line}", file.display());
        match item {
            Item::Include(_) if depth >= MAX_INCLUDES => {
                Err(self.error(format!("include nesting level too deep ({place}), stopping loading")))
            }
            Item::Include(name) => self.file(Path::new(name), depth + 1).map_err(|Stop| {
                self.error(format!("error processing include file in configuration ({place}), stopping loading"))
            }),
            Item::Section(name) => {
                let Some(section) = Section::named(name) else {
                    self.error("fill_defaults fail".to_owned());
                    return Err(self.error(format!("invalid section \"{name}\" in configuration ({place})")));
                };
                self.section = Some(section);
                if section == Section::Pgbouncer {
                    self.loaded.reset();
                }
                Ok(())
            }
            Item::Pair(key, value) => self.pair(key, value).map_err(|why| {
                if let Some(why) = why {
                    self.error(why);
                }
                // A password may stand in it.
                let shown = without_password(value);
                self.error(format!("invalid value \"{shown}\" for parameter {key} in configuration ({place})"))
            }),
        }
    }

    /// Takes a pair; what is wrong, where PgBouncer has a line for it.
    fn pair(&mut self, key: &str, value: &str) -> Result<(), Option<String>> {
        let loaded = &mut self.loaded;
        match self.section {
            None => return Err(Some(format!("load_init_file: value without section: {key}"))),
            Some(Section::Pgbouncer) => {
                let setting = Setting::named(key).ok_or_else(|| Some(format!("unknown parameter: pgbouncer/{key}")))?;
                if key == "auth_dbname" && value == "pgbouncer" {
                    return Err(Some("cannot use the reserved \"pgbouncer\" database as an auth_dbname".to_owned()));
                }
                if setting.live || !loaded.booted {
                    setting.set(&mut loaded.settings, value).map_err(|_| None)?;
                }
            }
            Some(Section::Databases) if key == "*" => {
                loaded.template = Some(DatabaseLine::read(key, value).map_err(Some)?);
            }
            Some(Section::Databases) => {
                let line = DatabaseLine::read(key, value).map_err(Some)?;
                loaded.databases.insert(key.to_owned(), line);
            }
            Some(Section::Users) => {
                let line = UserLine::read(key, value).map_err(Some)?;
                loaded.users.insert(key.to_owned(), line);
            }
            Some(Section::Peers) => {
                let (id, line) = PeerLine::read(key, value).map_err(Some)?;
                loaded.peers.insert(id, line);
            }
        }
        Ok(())
    }
}

/// A value as it may be logged.
fn without_password(value: &str) -> String {
    match value.find("password") {
        Some(at) => format!("{}password=…", &value[..at]),
        None => value.to_owned(),
    }
}

fn text_of(file: &Path) -> Result<String, String> {
    let said = |error: std::io::Error| errno_text(&error);
    let mut bytes = Vec::new();
    let opened = fs::File::open(file).map_err(said)?;
    opened.take(MAX_FILE_BYTES + 1).read_to_end(&mut bytes).map_err(said)?;
    if bytes.len() as u64 > MAX_FILE_BYTES {
        return Err(format!("it is longer than {MAX_FILE_BYTES} bytes"));
    }
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

/// The words of C's `strerror`, without the number that Rust adds.
pub(crate) fn errno_text(error: &std::io::Error) -> String {
    let text = error.to_string();
    text.split(" (os error").next().unwrap_or(&text).to_owned()
}
