//! `-R`: this process takes the place of the one that serves now. It asks on the other's console for its sockets (SUSPEND, SHOW FDS),
//! and goes on with its clients when the other has let go of them. The other may be PgBouncer itself.
//!
//! Clients that cannot be carried over (with TLS, with prepared statements, in the middle of a query) stay with a process of ours until
//! they leave; PgBouncer drops them.

use std::collections::{HashMap, VecDeque};
use std::io::{self, IoSliceMut, Write};
use std::mem::MaybeUninit;
use std::os::fd::{OwnedFd, RawFd};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::thread::sleep;
use std::time::{Duration, Instant};

use bytes::{Buf, BytesMut};
use pgwire::auth::Secret;
use pgwire::auth::scram::{Key, OwnKeys};
use pgwire::{backend, frame, frontend, report};
use rustix::cmsg_space;
use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, recvmsg};

use super::log::{Level, say};
use crate::handover::{IN_ROW, Passed, Task};
use crate::shared::CONSOLE;
use crate::systemd;

/// Time for each answer: SUSPEND takes as long as the other process's `suspend_timeout`.
const PATIENCE: Duration = Duration::from_secs(30);
/// Between two looks whether the other process has ended.
const POLL: Duration = Duration::from_millis(20);
/// Longest message of the console.
const MAX_MESSAGE: usize = 64 * 1024;
/// Sockets in one message; each row has one.
const MAX_SOCKETS: usize = 16;

/// A client of the other process, with its server if it had one.
#[derive(Debug)]
pub(crate) struct Carried {
    pub(crate) client: Passed,
    pub(crate) server: Option<Passed>,
}

/// What the other process gives.
#[derive(Debug)]
pub(crate) struct Inheritance {
    /// The sockets that clients come to.
    pub(crate) listeners: Vec<systemd::Passed>,
    pub(crate) clients: Vec<Carried>,
    giver: Giver,
}

impl Inheritance {
    /// Asks the process behind a Unix socket for all that it has; it stands still from then on. `pidfile` goes with it.
    ///
    /// # Errors
    /// Nobody answers, or not as PgBouncer's console does.
    pub(super) fn ask(socket: &Path, pidfile: &str) -> Result<Self, String> {
        let stream = UnixStream::connect(socket).map_err(|error| error.to_string())?;
        stream.set_read_timeout(Some(PATIENCE)).map_err(|error| error.to_string())?;
        let pidfile = (!pidfile.is_empty()).then(|| PathBuf::from(pidfile));
        let mut giver = Giver { stream, input: BytesMut::new(), sockets: VecDeque::new(), pidfile };
        giver.log_in()?;
        say(Level::Log, format_args!("login OK, sending SUSPEND"));
        giver.query("SUSPEND", |_, _| Ok(()))?;
        say(Level::Log, format_args!("SUSPEND finished, sending SHOW FDS"));
        let mut passed = Vec::new();
        giver.query("SHOW FDS", |row, sockets| {
            let socket = sockets.pop_front().ok_or("a row came without its socket")?;
            passed.push(read_row(row, socket).ok_or("a row cannot be read")?);
            Ok(())
        })?;
        giver.read_parameters(&mut passed)?;
        say(Level::Log, format_args!("SHOW FDS finished"));
        let (listeners, clients) = sort(passed)?;
        Ok(Self { listeners, clients, giver })
    }

    /// The other process lets go: from now on the sockets are this one's alone.
    ///
    /// # Errors
    /// It does not answer; it may go on with them.
    pub(crate) fn accept(self) -> Result<(Vec<systemd::Passed>, Vec<Carried>), String> {
        let Self { listeners, clients, giver } = self;
        giver.let_go()?;
        Ok((listeners, clients))
    }
}

/// The rows by what they are; a server without a client is the other process's to close.
fn sort(passed: Vec<Passed>) -> Result<(Vec<systemd::Passed>, Vec<Carried>), String> {
    let (mut listeners, mut clients, mut servers) = (Vec::new(), Vec::new(), HashMap::new());
    for passed in passed {
        match passed.task {
            Task::Pooler => {
                let unusable = |error: io::Error| format!("a socket to listen on cannot be used: {error}");
                listeners.push(systemd::Passed::of(passed.socket).map_err(unusable)?);
            }
            Task::Client => clients.push(passed),
            Task::Server => drop(servers.insert(passed.number, passed)),
        }
    }
    let pair = |client: Passed| {
        let server = if client.link == 0 { None } else { servers.remove(&client.link) };
        Carried { server, client }
    };
    Ok((listeners, clients.into_iter().map(pair).collect()))
}

fn read_row(row: &[Option<&[u8]>], socket: OwnedFd) -> Option<Passed> {
    let text =
        |index: usize| row.get(index).copied().flatten().map(|value| String::from_utf8_lossy(value).into_owned());
    let number = |index: usize| text(index)?.parse::<i64>().ok();
    let port = u16::try_from(number(5)?).ok()?;
    let mut passed = Passed::new(socket, Task::of(&text(1)?)?, text(4)?, port);
    passed.number = RawFd::try_from(number(0)?).ok()?;
    passed.user = text(2);
    passed.database = text(3);
    // as a signed number, or not
    passed.cancel = text(6)
        .and_then(|text| text.parse::<u64>().ok().or_else(|| Some(text.parse::<i64>().ok()?.cast_unsigned())))?;
    passed.link = RawFd::try_from(number(7)?).ok()?;
    let values = IN_ROW.iter().enumerate().filter_map(|(index, name)| Some(((*name).to_owned(), text(8 + index)?)));
    passed.parameters = values.collect();
    passed.password = row.get(12).copied().flatten().filter(|value| !value.is_empty()).map(Secret::new);
    let key = |index: usize| {
        let bytes = hexadecimal(&text(index)?)?;
        Some(Key::new(bytes.try_into().ok()?))
    };
    passed.keys = key(13).zip(key(14)).map(|(client_key, server_key)| OwnKeys { client_key, server_key });
    Some(passed)
}

/// PostgreSQL's hexadecimal form of bytes.
fn hexadecimal(text: &str) -> Option<Vec<u8>> {
    let digits = text.strip_prefix("\\x")?.as_bytes();
    let digit = |byte: u8| char::from(byte).to_digit(16).and_then(|digit| u8::try_from(digit).ok());
    digits.chunks(2).map(|pair| Some(digit(pair[0])? << 4 | digit(*pair.get(1)?)?)).collect()
}

/// The console of the other process.
#[derive(Debug)]
struct Giver {
    stream: UnixStream,
    input: BytesMut,
    /// Sockets that came, and whose rows are still to be read.
    sockets: VecDeque<OwnedFd>,
    pidfile: Option<PathBuf>,
}

/// What is done with a row.
type Row<'r> = &'r [Option<&'r [u8]>];

impl Giver {
    fn log_in(&mut self) -> Result<(), String> {
        let mut out = BytesMut::new();
        let parameters = [(&b"user"[..], CONSOLE.as_bytes()), (&b"database"[..], CONSOLE.as_bytes())];
        frontend::startup(&mut out, 0, &parameters).map_err(|error| error.to_string())?;
        self.stream.write_all(&out).map_err(|error| error.to_string())?;
        self.until_ready(|_, _| Ok(()))
    }

    fn query(
        &mut self,
        text: &str,
        each: impl FnMut(Row<'_>, &mut VecDeque<OwnedFd>) -> Result<(), &'static str>,
    ) -> Result<(), String> {
        let mut out = BytesMut::new();
        frontend::write_query(&mut out, text.as_bytes()).map_err(|error| error.to_string())?;
        self.stream.write_all(&out).map_err(|error| error.to_string())?;
        self.until_ready(each).map_err(|why| format!("{text}: {why}"))
    }

    /// Reads up to ReadyForQuery; an error that came before it is the answer.
    fn until_ready(
        &mut self,
        mut each: impl FnMut(Row<'_>, &mut VecDeque<OwnedFd>) -> Result<(), &'static str>,
    ) -> Result<(), String> {
        let mut failed = None;
        loop {
            while let Some(message) = frame::split(&self.input).map_err(|error| error.to_string())? {
                let (tag, length) = (message.tag, self.input.len() - message.rest.len());
                match tag {
                    b'E' => failed = Some(report::View::new(message.body).message().into_owned()),
                    b'D' => {
                        let values = backend::row_values(message.body).map_err(|error| error.to_string())?;
                        each(&values, &mut self.sockets)?;
                    }
                    _ => {}
                }
                self.input.advance(length);
                if tag == b'Z' {
                    return failed.map_or(Ok(()), Err);
                }
            }
            if self.input.len() > MAX_MESSAGE {
                return Err("a message is too long".to_owned());
            }
            if self.receive().map_err(|error| error.to_string())? == 0 {
                return Err(failed.unwrap_or_else(|| "the other process closed the connection".to_owned()));
            }
        }
    }

    /// Reads what has come, with the sockets in it.
    fn receive(&mut self) -> io::Result<usize> {
        let mut part = [0; 8192];
        let mut space = [MaybeUninit::uninit(); cmsg_space!(ScmRights(MAX_SOCKETS))];
        let mut control = RecvAncillaryBuffer::new(&mut space);
        let parts = &mut [IoSliceMut::new(&mut part)];
        let length = recvmsg(&self.stream, parts, &mut control, RecvFlags::CMSG_CLOEXEC)?.bytes;
        for message in control.drain() {
            if let RecvAncillaryMessage::ScmRights(sockets) = message {
                self.sockets.extend(sockets);
            }
        }
        self.input.extend_from_slice(&part[..length]);
        Ok(length)
    }

    /// All parameters, where the other process is one of ours; PgBouncer names four.
    fn read_parameters(&mut self, passed: &mut [Passed]) -> Result<(), String> {
        let mut all: HashMap<RawFd, Vec<(String, String)>> = HashMap::new();
        let asked = self.query("SHOW FD_PARAMETERS", |row, _| {
            let text = |index: usize| row.get(index).copied().flatten().map(String::from_utf8_lossy);
            if let (Some(number), Some(name), Some(value)) = (text(0).and_then(|t| t.parse().ok()), text(1), text(2)) {
                all.entry(number).or_default().push((name.into_owned(), value.into_owned()));
            }
            Ok(())
        });
        if let Err(why) = asked {
            say(Level::Debug, format_args!("{why}"));
        }
        for passed in passed {
            if let Some(parameters) = all.remove(&passed.number) {
                passed.parameters = parameters;
            }
        }
        Ok(())
    }

    /// A process of ours goes on with the clients that were not carried over; PgBouncer ends.
    fn let_go(mut self) -> Result<(), String> {
        say(Level::Log, format_args!("sending SHUTDOWN;"));
        if self.query("SHUTDOWN HANDED_OVER", |_, _| Ok(())).is_err() {
            // it ends without an answer
            let _ = self.query("SHUTDOWN", |_, _| Ok(()));
        }
        let Some(pidfile) = &self.pidfile else { return Ok(()) };
        say(Level::Log, format_args!("waiting for old pidfile to go away"));
        let limit = Instant::now() + PATIENCE;
        while pidfile.exists() {
            if Instant::now() > limit {
                return Err(format!("the other process still has its pidfile '{}'", pidfile.display()));
            }
            sleep(POLL);
        }
        say(Level::Log, format_args!("old process killed, resuming work"));
        Ok(())
    }
}
