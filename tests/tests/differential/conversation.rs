//! A conversation as text. Lines that begin with `#` are comments; `databases`, `set` and `users` come first:
//!
//! ```text
//! databases app = $ pool_size=2      an entry of [databases]; $ is the address of PostgreSQL
//! set pool_mode = transaction        a setting of [pgbouncer]
//! users "app" "secret"               a line of the list of users
//! differs BECAUSE                    the next step may differ, and has to
//! a: startup user=app; database=app  `a` connects, and sends a startup packet
//! a: query SELECT 1                  and so on: see `Act::read`
//! a: until Z                         reads up to a message of this type, or the end of the connection
//! wait 500                           milliseconds
//! ```

use std::collections::BTreeMap;
use std::time::Duration;

use harness::pgbouncer::PgBouncer;
use harness::wire::{Raw, SSL_REQUEST, bind, execute, frame, parse, query, startup, sync};

use crate::transcript::Transcript;

/// For what is waited for; less than the limit of a read.
const PATIENCE: Duration = Duration::from_secs(6);
/// Most of the answer to bytes that are no message of a client's: the connection ends, or stays silent.
const SILENCE: Duration = Duration::from_millis(700);

/// What was heard at one step, a line a message.
pub(crate) type Heard = Vec<String>;

/// What the lines of a record begin with that were heard; the others are steps.
const INDENT: &str = "    ";

/// A conversation, as its file says.
#[derive(Debug, Default)]
pub(crate) struct Conversation {
    pub(crate) databases: String,
    pub(crate) settings: String,
    pub(crate) users: String,
    pub(crate) steps: Vec<Step>,
}

/// One line.
#[derive(Debug)]
pub(crate) struct Step {
    pub(crate) text: String,
    /// Why the programs differ here.
    pub(crate) differs: Option<String>,
    who: String,
    act: Act,
}

#[derive(Debug)]
enum Act {
    /// Connects and sends this.
    Come(Vec<u8>),
    Send(Vec<u8>),
    /// A byte in answer to an `SSLRequest`.
    Byte,
    Until(u8),
    /// Until the connection ends or nothing comes for a moment.
    Rest,
    /// Asks for the cancellation of what this one does.
    Cancel,
    Wait(Duration),
}

impl Conversation {
    /// # Errors
    /// The first line that says nothing.
    pub(crate) fn read(text: &str) -> Result<Self, String> {
        let mut read = Self::default();
        let mut differs = None;
        for line in text.lines().map(str::trim).filter(|line| !line.is_empty() && !line.starts_with('#')) {
            let (word, rest) = line.split_once(' ').unwrap_or((line, ""));
            match word {
                "databases" => read.databases.push_str(&format!("{rest}\n")),
                "set" => read.settings.push_str(&format!("{rest}\n")),
                "users" => read.users.push_str(&format!("{rest}\n")),
                "differs" if !rest.is_empty() => differs = Some(rest.to_owned()),
                _ => {
                    let (who, act) = Act::read(line).ok_or_else(|| format!("not understood: {line}"))?;
                    read.steps.push(Step { text: line.to_owned(), differs: differs.take(), who, act });
                }
            }
        }
        Ok(read)
    }

    /// As a record: each step, and what was heard.
    pub(crate) fn record(&self, heard: &[Heard]) -> String {
        let mut text = String::new();
        for (step, heard) in self.steps.iter().zip(heard) {
            text.push_str(&format!("{}\n", step.text));
            heard.iter().for_each(|line| text.push_str(&format!("{INDENT}{line}\n")));
        }
        text
    }

    /// What was heard at each step, from a record.
    ///
    /// # Errors
    /// It is the record of another conversation.
    pub(crate) fn recorded(&self, record: &str) -> Result<Vec<Heard>, String> {
        let mut steps = self.steps.iter();
        let mut heard: Vec<Heard> = Vec::new();
        for line in record.lines() {
            match (line.strip_prefix(INDENT), heard.last_mut()) {
                (Some(message), Some(heard)) => heard.push(message.to_owned()),
                _ if steps.next().is_some_and(|step| step.text == line) => heard.push(Vec::new()),
                _ => return Err(format!("the conversation has changed at {line:?}: UPDATE=1 make differential")),
            }
        }
        if steps.next().is_some() { Err("the conversation goes on".to_owned()) } else { Ok(heard) }
    }

    /// What is heard at each step.
    pub(crate) async fn hold(&self, bouncer: &PgBouncer) -> Vec<Heard> {
        let mut talkers: BTreeMap<&str, (Raw, Transcript)> = BTreeMap::new();
        let mut heard: Vec<Heard> = Vec::new();
        for step in &self.steps {
            if let Act::Come(_) = step.act {
                talkers.insert(&step.who, (Raw::connect(bouncer.port()).await, Transcript::default()));
            }
            if let Act::Wait(time) = step.act {
                tokio::time::sleep(time).await;
                heard.push(Vec::new());
                continue;
            }
            let (raw, transcript) = talkers.get_mut(step.who.as_str()).expect("whoever speaks has come");
            heard.push(step.act.take(raw, transcript, bouncer.port()).await);
        }
        let (folder, port) = (bouncer.folder().path().display().to_string(), bouncer.port().to_string());
        for line in heard.iter_mut().flatten() {
            *line = line.replace(&folder, "FOLDER").replace(&port, "PORT");
        }
        heard
    }
}

impl Act {
    fn read(line: &str) -> Option<(String, Self)> {
        if let Some(time) = line.strip_prefix("wait ") {
            return Some((String::new(), Self::Wait(Duration::from_millis(time.parse().ok()?))));
        }
        let (who, said) = line.split_once(": ")?;
        let (word, rest) = said.split_once(' ').unwrap_or((said, ""));
        let mut words = rest.split(' ').filter(|word| !word.is_empty());
        let act = match word {
            "startup" => {
                let pairs: Option<Vec<_>> = rest.split("; ").map(|pair| pair.split_once('=')).collect();
                Self::Come(startup(&pairs?))
            }
            "ssl" => Self::Come(SSL_REQUEST.to_vec()),
            "come" => Self::Come(bytes(rest)?),
            "bytes" => Self::Send(bytes(rest)?),
            "query" => Self::Send(query(rest)),
            "password" => Self::Send(frame(b'p', format!("{rest}\0").as_bytes())),
            "parse" => {
                let (name, sql) = rest.split_once(' ')?;
                Self::Send(parse(unquoted(name), sql))
            }
            "bind" => {
                let name = unquoted(words.next()?);
                Self::Send(bind(name, &words.collect::<Vec<_>>()))
            }
            "describe" => Self::Send(frame(b'D', format!("{}{}\0", words.next()?, unquoted(words.next()?)).as_bytes())),
            "close" => Self::Send(frame(b'C', format!("{}{}\0", words.next()?, unquoted(words.next()?)).as_bytes())),
            "execute" => Self::Send(execute()),
            "sync" => Self::Send(sync()),
            "flush" => Self::Send(frame(b'H', &[])),
            "data" => Self::Send(frame(b'd', format!("{rest}\n").as_bytes())),
            "done" => Self::Send(frame(b'c', &[])),
            "fail" => Self::Send(frame(b'f', format!("{rest}\0").as_bytes())),
            "terminate" => Self::Send(frame(b'X', &[])),
            "byte" => Self::Byte,
            "until" => Self::Until(*rest.as_bytes().first()?),
            "rest" => Self::Rest,
            "cancel" => Self::Cancel,
            _ => return None,
        };
        Some((who.to_owned(), act))
    }

    async fn take(&self, raw: &mut Raw, transcript: &mut Transcript, port: u16) -> Heard {
        match self {
            Self::Come(bytes) | Self::Send(bytes) => {
                raw.send(bytes).await;
                Vec::new()
            }
            Self::Byte => vec![raw.byte().await.map_or("end".to_owned(), |byte| format!("{:?}", char::from(byte)))],
            Self::Until(tag) => hear(raw, transcript, PATIENCE, Some(*tag)).await,
            Self::Rest => hear(raw, transcript, SILENCE, None).await,
            Self::Cancel => {
                let (pid, key) = raw.key.clone();
                Raw::cancel(port, pid, &key).await;
                Vec::new()
            }
            Self::Wait(_) => Vec::new(),
        }
    }
}

/// Messages up to one of this type, the end of the connection, or a silence of this length.
async fn hear(raw: &mut Raw, transcript: &mut Transcript, silence: Duration, tag: Option<u8>) -> Heard {
    let mut heard = Vec::new();
    let ended = loop {
        match tokio::time::timeout(silence, raw.message()).await {
            Ok(Some(message)) => {
                let is_last = Some(message.tag) == tag;
                heard.push(message);
                if is_last {
                    break None;
                }
            }
            Ok(None) => break Some("end"),
            Err(_) => break Some("silence"),
        }
    };
    transcript.all(raw, &heard, ended)
}

/// `-` is the empty name.
fn unquoted(name: &str) -> &str {
    if name == "-" { "" } else { name }
}

/// Hexadecimal digits, and text in quotes without spaces: `51 00 00 00 05 00`, `"user" 00`.
fn bytes(text: &str) -> Option<Vec<u8>> {
    let mut all = Vec::new();
    for word in text.split(' ').filter(|word| !word.is_empty()) {
        match word.strip_prefix('"') {
            Some(quoted) => all.extend(quoted.strip_suffix('"')?.as_bytes()),
            None => all.push(u8::from_str_radix(word, 16).ok()?),
        }
    }
    Some(all)
}
