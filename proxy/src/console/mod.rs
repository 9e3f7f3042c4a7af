//! The console: a database of no PostgreSQL, where operators look at the program and change what it does. It speaks both of
//! PostgreSQL's protocols, simple and extended, and takes PgBouncer's commands and some of its own.
//!
//! `command.rs` reads what is asked, `act.rs` does it, `show.rs` and its parts make the tables, `answer.rs` writes them.

use std::collections::HashMap;
use std::future::poll_fn;
use std::pin::pin;
use std::rc::Rc;
use std::sync::Arc;

use bytes::BytesMut;
use pgwire::backend;
use pgwire::conversation::TransactionStatus;
use pgwire::frontend::{self, Target};
use pgwire::report::Report;
use pgwire::sqlstate;
use pgwire::{Malformed, frame};
use tokio::sync::oneshot;

mod act;
mod answer;
mod command;
mod figures;
mod heir;
mod show;
mod sockets;

use crate::clients::{Client, State};
use crate::config::Config;
use crate::counts::Ending;
use crate::error::Denial;
use crate::stats::{Counted, Totals};
use crate::wire::{Filled, Wire};
use crate::worker::Worker;
use act::Refusal;
use answer::{Formats, Table};
use command::{Command, NoCommand};

/// Longest message of a client, in bytes.
const MAX_MESSAGE: usize = 64 * 1024;
/// Statements and portals that a client may have.
const MAX_NAMES: usize = 64;

/// What a user may do on the console.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Access {
    /// Everything.
    Admin,
    /// Look.
    Watch,
}

impl Access {
    /// What the configuration allows a user; `None`: nothing.
    pub(crate) fn of(config: &Config, user: &str) -> Option<Self> {
        let is_any = config.auth.method == crate::config::AuthMethod::Any;
        let lists = |list: &Option<String>| {
            list.as_deref().is_some_and(|list| list.split(',').any(|name| name.trim() == user && !user.is_empty()))
        };
        if is_any || lists(&config.auth.console_admins) {
            return Some(Self::Admin);
        }
        lists(&config.auth.console_watchers).then_some(Self::Watch)
    }
}

/// An order of the console for the program as a whole.
#[derive(Debug)]
pub(crate) enum Order {
    /// The configuration is to be read again.
    Reload(oneshot::Sender<Result<(), String>>),
    /// A setting of PgBouncer's is to be changed; the answer is a notice, if there is something to say.
    Set(String, String, oneshot::Sender<Result<Option<String>, String>>),
    /// The end.
    Shutdown(Option<Ending>),
    /// Another process has what it was given, and takes this one's place; answered when it may.
    GiveWay(oneshot::Sender<()>),
}

/// Why a console ends: something to tell the client, or nothing.
type End = Option<Denial>;

/// One client of the console.
pub(crate) struct Console {
    worker: Rc<Worker>,
    client: Arc<Client>,
    access: Access,
    wire: Wire,
    statements: HashMap<Vec<u8>, String>,
    portals: HashMap<Vec<u8>, Portal>,
    /// After an error: what comes is dropped up to Sync.
    skips: bool,
    /// It has suspended the program, which goes on when it leaves.
    suspended: bool,
}

/// A statement that is to be executed, and its result once it was described.
struct Portal {
    text: String,
    formats: Formats,
    result: Option<Table>,
}

impl Console {
    /// A client that may come in; `admitted` are the last words of its login.
    pub(crate) fn new(
        worker: &Rc<Worker>,
        client: &Arc<Client>,
        mut wire: Wire,
        access: Access,
        admitted: BytesMut,
    ) -> Self {
        client.enter(State::Idle);
        let out = wire.out();
        out.unsplit(admitted);
        let version = format!("{}/bouncer", crate::pgbouncer::VERSION.trim_start_matches("PgBouncer "));
        for (name, value) in [
            ("server_version", version.as_str()),
            ("client_encoding", "UTF8"),
            ("server_encoding", "UTF8"),
            ("DateStyle", "ISO"),
            ("TimeZone", "GMT"),
            ("standard_conforming_strings", "on"),
            ("is_superuser", "on"),
        ] {
            let _ = backend::write_parameter_status(out, name.as_bytes(), value.as_bytes());
        }
        let key = rand::random::<[u8; 4]>();
        let _ = backend::write_backend_key_data(out, rand::random::<u32>() >> 1, &key);
        out.extend_from_slice(&backend::write_ready_for_query(TransactionStatus::Idle));
        Self {
            worker: worker.clone(),
            client: client.clone(),
            access,
            wire,
            statements: HashMap::new(),
            portals: HashMap::new(),
            skips: false,
            suspended: false,
        }
    }

    /// Answers until the client leaves or is sent away; what it is to be told then.
    pub(crate) async fn run(mut self) -> (Wire, End) {
        let end = self.serve().await;
        if self.suspended {
            self.worker.shared.set_suspended(false);
        }
        (self.wire, end)
    }

    async fn serve(&mut self) -> End {
        let mut input = self.wire.take_rest();
        loop {
            loop {
                let (tag, body) = match split(&mut input) {
                    Ok(Some(message)) => message,
                    Ok(None) => break,
                    Err(what) => return Some(Denial::Told(what)),
                };
                self.client.requests();
                if let Err(end) = self.message(tag, &body).await {
                    return end;
                }
            }
            if self.wire.flush().await.is_err() {
                return None;
            }
            match self.more(&mut input).await {
                Ok(()) => {}
                Err(end) => return end,
            }
        }
    }

    /// Reads more of what the client sends.
    async fn more(&mut self, input: &mut BytesMut) -> Result<(), End> {
        let Self { worker, client, wire, .. } = self;
        let read = poll_fn(|cx| {
            let scratch = &mut worker.scratch.borrow_mut()[..];
            wire.poll_fill(cx, scratch).map_ok(|filled| match filled {
                Filled::Scratch(length) => Some(BytesMut::from(&scratch[..length])),
                Filled::Large(bytes) => Some(bytes),
                Filled::End => None,
            })
        });
        tokio::select! {
            denial = ended(client) => Err(Some(denial)),
            read = read => match read {
                Ok(Some(bytes)) => {
                    input.unsplit(bytes);
                    Ok(())
                }
                Ok(None) | Err(_) => Err(None),
            },
        }
    }

    async fn message(&mut self, tag: u8, body: &[u8]) -> Result<(), End> {
        let broken = |_: Malformed| Some(Denial::Told("bad packet".to_owned()));
        if self.skips && tag != b'S' && tag != b'X' {
            return Ok(());
        }
        let done = match tag {
            b'X' => return Err(None),
            b'S' => {
                self.skips = false;
                self.ready();
                Ok(())
            }
            b'Q' => {
                let text = String::from_utf8_lossy(frontend::query(body).map_err(broken)?).into_owned();
                let outcome = self.simple(&text).await?;
                if let Err(refusal) = outcome {
                    self.report(&refusal);
                }
                self.ready();
                Ok(())
            }
            b'P' => {
                let parse = frontend::Parse::read(body).map_err(broken)?;
                self.parse(parse.name, parse.text)
            }
            b'B' => {
                let bind = frontend::Bind::read(body).map_err(broken)?;
                self.bind(bind.portal, bind.statement, bind.rest)
            }
            b'D' => {
                let target = Target::read(body).map_err(broken)?;
                self.describe(target).await
            }
            b'E' => {
                let portal = frontend::Execute::read(body).map_err(broken)?.portal.to_vec();
                self.execute(&portal).await?
            }
            b'C' => {
                match Target::read(body).map_err(broken)? {
                    Target::Statement(name) => drop(self.statements.remove(name)),
                    Target::Portal(name) => drop(self.portals.remove(name)),
                }
                self.wire.out().extend_from_slice(b"3\0\0\0\x04");
                Ok(())
            }
            b'H' => Ok(()),
            other => {
                return Err(Some(Denial::Told(format!("unsupported packet type for admin console: {other}"))));
            }
        };
        if let Err(refusal) = done {
            self.report(&refusal);
            self.skips = true;
        }
        Ok(())
    }

    fn ready(&mut self) {
        self.wire.out().extend_from_slice(&backend::write_ready_for_query(TransactionStatus::Idle));
    }

    fn report(&mut self, refusal: &Refusal) {
        let report = Report::error(refusal.sqlstate, refusal.text.as_str()).terse();
        report.write(self.wire.out()).expect("our own texts are short");
        crate::pgbouncer::log::say(
            crate::pgbouncer::log::Level::Warning,
            format_args!("{} pooler error: {}", self.client, refusal.text),
        );
    }

    async fn simple(&mut self, text: &str) -> Result<Result<(), Refusal>, End> {
        let command = match self.command(text) {
            Ok(Command::Empty) => {
                self.wire.out().extend_from_slice(b"I\0\0\0\x04");
                return Ok(Ok(()));
            }
            Ok(command) => command,
            Err(refusal) => return Ok(Err(refusal)),
        };
        if matches!(&command, Command::Show(what, _) if what == "fds") && self.is_heir() {
            self.bequeath().await.map_err(|_| None)?;
            let _ = backend::write_command_complete(self.wire.out(), &command.tag());
            return Ok(Ok(()));
        }
        let done = match self.carry_out(&command).await? {
            Ok(done) => done,
            Err(refusal) => return Ok(Err(refusal)),
        };
        if let Some(table) = done {
            answer::describe(self.wire.out(), &table, &Formats::default());
            answer::rows(self.wire.out(), &table, &Formats::default());
        }
        let _ = backend::write_command_complete(self.wire.out(), &command.tag());
        Ok(Ok(()))
    }

    fn command(&self, text: &str) -> Result<Command, Refusal> {
        let shared = &self.worker.shared;
        let index = self.worker.index;
        shared.console_counters[index].add(Counted::Queries, 1);
        shared.console_counters[index].add(Counted::Transactions, 1);
        match Command::read(text) {
            Ok(command) if command.acts() && self.access != Access::Admin => Err(Refusal::new("admin access needed")),
            Ok(command) => Ok(command),
            Err(NoCommand::Invalid) => Err(Refusal::unknown(text.trim())),
            Err(NoCommand::BadArguments) => Err(Refusal::new("bad arguments")),
        }
    }

    /// Does it; the client may leave meanwhile, or be sent away.
    async fn carry_out(&mut self, command: &Command) -> Result<Result<Option<Table>, Refusal>, End> {
        if matches!(command, Command::Suspend) {
            self.suspended = true;
        }
        if matches!(command, Command::Resume(None)) {
            self.suspended = false;
        }
        let shared = self.worker.shared.clone();
        let mut notices = Vec::new();
        let outcome = {
            let mut doing = pin!(act::carry_out(&shared, command, self.access, &mut notices));
            let Self { worker, client, wire, .. } = self;
            let leaving = poll_fn(|cx| {
                let _ = wire.poll_flush(cx);
                wire.poll_gone(cx, &mut worker.scratch.borrow_mut()[..], MAX_MESSAGE)
            });
            tokio::select! {
                biased;
                outcome = &mut doing => outcome,
                denial = ended(client) => return Err(Some(denial)),
                () = leaving => return Err(None),
            }
        };
        for notice in &notices {
            notice.write(self.wire.out()).expect("our own texts are short");
        }
        Ok(outcome)
    }

    fn parse(&mut self, name: &[u8], text: &[u8]) -> Result<(), Refusal> {
        if !name.is_empty() && self.statements.contains_key(name) {
            return Err(Refusal {
                text: format!("prepared statement \"{}\" already exists", String::from_utf8_lossy(name)),
                sqlstate: sqlstate::DUPLICATE_PREPARED_STATEMENT,
            });
        }
        if self.statements.len() >= MAX_NAMES {
            return Err(Refusal::new("too many prepared statements"));
        }
        let text = String::from_utf8_lossy(text).into_owned();
        self.command(&text)?;
        self.statements.insert(name.to_vec(), text);
        self.wire.out().extend_from_slice(b"1\0\0\0\x04");
        Ok(())
    }

    fn bind(&mut self, portal: &[u8], statement: &[u8], rest: &[u8]) -> Result<(), Refusal> {
        let text = self.statement(statement)?.to_owned();
        let formats = result_formats(rest).ok_or_else(|| Refusal::new("a command takes no parameters"))?;
        if self.portals.len() >= MAX_NAMES {
            return Err(Refusal::new("too many portals"));
        }
        self.portals.insert(portal.to_vec(), Portal { text, formats, result: None });
        self.wire.out().extend_from_slice(b"2\0\0\0\x04");
        Ok(())
    }

    fn statement(&self, name: &[u8]) -> Result<&str, Refusal> {
        self.statements.get(name).map(String::as_str).ok_or_else(|| Refusal {
            text: format!("prepared statement \"{}\" does not exist", String::from_utf8_lossy(name)),
            sqlstate: sqlstate::INVALID_SQL_STATEMENT_NAME,
        })
    }

    /// The columns of a SHOW; other commands have none, and are not carried out before Execute.
    async fn describe(&mut self, target: Target<'_>) -> Result<(), Refusal> {
        let (text, portal) = match target {
            Target::Statement(name) => {
                let text = self.statement(name)?.to_owned();
                self.wire.out().extend_from_slice(b"t\0\0\0\x06\0\0");
                (text, None)
            }
            Target::Portal(name) => {
                let portal = self.portals.get(name).ok_or_else(no_portal)?;
                (portal.text.clone(), Some(name.to_vec()))
            }
        };
        let command = self.command(&text)?;
        let table = match &command {
            Command::Show(..) => {
                let shared = self.worker.shared.clone();
                act::carry_out(&shared, &command, self.access, &mut Vec::new()).await?
            }
            _ => None,
        };
        let Some(table) = table else {
            self.wire.out().extend_from_slice(b"n\0\0\0\x04");
            return Ok(());
        };
        let portal = portal.and_then(|name| self.portals.get_mut(&name));
        let formats = portal.as_ref().map(|portal| portal.formats.clone()).unwrap_or_default();
        answer::describe(self.wire.out(), &table, &formats);
        if let Some(portal) = portal {
            portal.result = Some(table);
        }
        Ok(())
    }

    async fn execute(&mut self, name: &[u8]) -> Result<Result<(), Refusal>, End> {
        let Some(portal) = self.portals.get_mut(name) else { return Ok(Err(no_portal())) };
        let (text, formats, described) = (portal.text.clone(), portal.formats.clone(), portal.result.take());
        let command = match self.command(&text) {
            Ok(Command::Empty) => {
                self.wire.out().extend_from_slice(b"I\0\0\0\x04");
                return Ok(Ok(()));
            }
            Ok(command) => command,
            Err(refusal) => return Ok(Err(refusal)),
        };
        let table = match described {
            Some(table) => Some(table),
            None => match self.carry_out(&command).await? {
                Ok(table) => table,
                Err(refusal) => return Ok(Err(refusal)),
            },
        };
        if let Some(table) = table {
            answer::rows(self.wire.out(), &table, &formats);
        }
        let _ = backend::write_command_complete(self.wire.out(), &command.tag());
        Ok(Ok(()))
    }
}

fn no_portal() -> Refusal {
    Refusal { text: "portal does not exist".to_owned(), sqlstate: sqlstate::INVALID_SQL_STATEMENT_NAME }
}

/// The formats of the result in a Bind, behind its names; `None` if it has parameters, or is broken.
fn result_formats(rest: &[u8]) -> Option<Formats> {
    let number = |at: usize| Some(u16::from_be_bytes(rest.get(at..at + 2)?.try_into().ok()?));
    let parameters = 2 + 2 * usize::from(number(0)?);
    if number(parameters)? != 0 {
        return None;
    }
    let results = usize::from(number(parameters + 2)?);
    (0..results).map(|index| number(parameters + 4 + 2 * index)).collect::<Option<Vec<_>>>().map(Formats)
}

/// The next whole message.
fn split(input: &mut BytesMut) -> Result<Option<(u8, BytesMut)>, String> {
    let Some(header) = frame::header(input).map_err(|_| "bad packet".to_owned())? else { return Ok(None) };
    if header.length > MAX_MESSAGE {
        return Err("bad packet".to_owned());
    }
    if input.len() < header.length {
        return Ok(None);
    }
    let mut message = input.split_to(header.length);
    Ok(Some((header.tag, message.split_off(5))))
}

/// Waits until the client is to be sent away.
async fn ended(client: &Client) -> Denial {
    loop {
        tokio::time::sleep(crate::clock::TICK).await;
        if let Some(denial) = client.take_end() {
            return denial;
        }
    }
}

/// PgBouncer's line at the end of each period.
pub(crate) fn stats_line(averages: &Totals) -> String {
    let n = |what| averages.get(what);
    format!(
        "stats: {} xacts/s, {} queries/s, {} client parses/s, {} server parses/s, {} binds/s, in {} B/s, out {} B/s, \
         xact {} us, query {} us, wait {} us",
        n(Counted::Transactions),
        n(Counted::Queries),
        n(Counted::ClientParses),
        n(Counted::ServerParses),
        n(Counted::Binds),
        n(Counted::Received),
        n(Counted::Sent),
        n(Counted::TransactionTime),
        n(Counted::QueryTime),
        n(Counted::WaitTime)
    )
}
