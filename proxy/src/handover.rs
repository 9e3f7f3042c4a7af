//! Connections that one process passes to the next one in its place: PgBouncer's online restart (`-R`). Here are the rows of SHOW FDS,
//! which both sides know, and what the giving side asks of its sessions. How the next process asks for them is in
//! `pgbouncer/handover.rs`, how it goes on with them in `session/carry.rs`.

use std::collections::HashSet;
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

use pgwire::auth::Secret;
use pgwire::auth::scram::OwnKeys;

/// The parameters that stand in a row of SHOW FDS, in the order of its columns.
pub(crate) const IN_ROW: [&str; 4] = ["client_encoding", "standard_conforming_strings", "DateStyle", "TimeZone"];

/// What a connection that is passed on is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Task {
    /// A socket that clients come to.
    Pooler,
    Client,
    Server,
}

impl Task {
    const ALL: [(Self, &'static str); 3] =
        [(Self::Pooler, "pooler"), (Self::Client, "client"), (Self::Server, "server")];

    /// The word of SHOW FDS.
    pub(crate) fn word(self) -> &'static str {
        Self::ALL.iter().find(|(task, _)| *task == self).map_or("", |(_, word)| word)
    }

    /// The task of this word.
    pub(crate) fn of(word: &str) -> Option<Self> {
        Self::ALL.iter().find(|(_, known)| *known == word).map(|(task, _)| *task)
    }
}

/// One connection: a row of SHOW FDS with its socket.
#[derive(Debug)]
pub(crate) struct Passed {
    pub(crate) socket: OwnedFd,
    /// The socket's number in the process that gives it.
    pub(crate) number: RawFd,
    pub(crate) task: Task,
    /// Who is logged in, and the database entry.
    pub(crate) user: Option<String>,
    pub(crate) database: Option<String>,
    /// The peer's address, or `unix`; and its port.
    pub(crate) host: String,
    pub(crate) port: u16,
    /// Process id and key for cancel requests, as they stand in such a request.
    pub(crate) cancel: u64,
    /// The number of the other half: of a client's server, or of a server's client; 0: there is none.
    pub(crate) link: RawFd,
    /// The parameters as the client believes them, or as the server reported them.
    pub(crate) parameters: Vec<(String, String)>,
    /// The stored password of a user who is in no list.
    pub(crate) password: Option<Secret>,
    /// The keys of the client's own login.
    pub(crate) keys: Option<OwnKeys>,
}

impl Passed {
    /// A connection of which nothing is known yet but what it is, and where its peer is.
    pub(crate) fn new(socket: OwnedFd, task: Task, host: String, port: u16) -> Self {
        let number = socket.as_raw_fd();
        Self {
            socket,
            number,
            task,
            user: None,
            database: None,
            host,
            port,
            cancel: 0,
            link: 0,
            parameters: Vec::new(),
            password: None,
            keys: None,
        }
    }

    /// The value of a parameter.
    pub(crate) fn parameter(&self, name: &str) -> Option<&str> {
        self.parameters.iter().find(|(known, _)| known == name).map(|(_, value)| value.as_str())
    }
}

/// Process id and key as one number; none for a key that is longer than those of protocol 3.0.
pub(crate) fn cancel_number(process_id: u32, key: &[u8]) -> Option<u64> {
    let key = u32::from_be_bytes(key.try_into().ok()?);
    Some(u64::from(process_id) << 32 | u64::from(key))
}

/// The process id and the key in such a number.
pub(crate) fn of_cancel_number(number: u64) -> (u32, [u8; 4]) {
    let [a, b, c, d, key @ ..] = number.to_be_bytes();
    (u32::from_be_bytes([a, b, c, d]), key)
}

/// What the giving side knows of it.
#[derive(Debug, Default)]
pub(crate) struct Handover {
    /// How often the sessions were asked.
    turn: AtomicU32,
    asked: Mutex<Option<Asked>>,
    /// What was given has left the process.
    given: AtomicBool,
    /// The sessions that have answered are the other process's now.
    over: AtomicBool,
    /// The sockets that clients come to.
    listeners: Mutex<Vec<(OwnedFd, String, u16)>>,
    /// The parameters of what was given last, by the numbers of the sockets.
    parameters: Mutex<Vec<(RawFd, String, String)>>,
}

/// What is known so far when the sessions are asked.
#[derive(Debug, Default)]
struct Asked {
    answered: HashSet<u64>,
    given: Vec<Passed>,
}

impl Handover {
    /// These sockets go with the clients.
    pub(crate) fn set_listeners(&self, listeners: Vec<(OwnedFd, String, u16)>) {
        *lock(&self.listeners) = listeners;
    }

    /// Nobody is let in any more: what could be passed on would keep the ports in use.
    pub(crate) fn forget_listeners(&self) {
        lock(&self.listeners).clear();
    }

    /// The sockets that clients come to, as others may have them.
    pub(crate) fn listeners(&self) -> Vec<Passed> {
        let listeners = lock(&self.listeners);
        let passed = listeners.iter().filter_map(|(socket, host, port)| {
            Some(Passed::new(socket.try_clone().ok()?, Task::Pooler, host.clone(), *port))
        });
        passed.collect()
    }

    /// From now on sessions that stand still may answer.
    pub(crate) fn ask(&self) {
        *lock(&self.asked) = Some(Asked::default());
        self.turn.fetch_add(1, Ordering::AcqRel);
    }

    /// Whether they may.
    pub(crate) fn is_asked(&self) -> bool {
        lock(&self.asked).is_some()
    }

    /// The session of this client answers: with what it gives, or that it keeps what it has. Whether it was in time; and which
    /// time of asking this is.
    pub(crate) fn answer(&self, client: u64, gives: Vec<Passed>) -> Option<u32> {
        let mut asked = lock(&self.asked);
        let asked = asked.as_mut()?;
        asked.answered.insert(client);
        let is_given = !gives.is_empty();
        asked.given.extend(gives);
        is_given.then(|| self.turn.load(Ordering::Acquire))
    }

    /// Whether the session of this client has answered.
    pub(crate) fn has_answered(&self, client: u64) -> bool {
        lock(&self.asked).as_ref().is_some_and(|asked| asked.answered.contains(&client))
    }

    /// What was given; later answers do not count.
    pub(crate) fn take(&self) -> Vec<Passed> {
        let given = lock(&self.asked).take().map(|asked| asked.given).unwrap_or_default();
        let of = |passed: &Passed| {
            let number = passed.number;
            passed.parameters.iter().map(move |(name, value)| (number, name.clone(), value.clone())).collect::<Vec<_>>()
        };
        *lock(&self.parameters) = given.iter().flat_map(of).collect();
        given
    }

    /// The parameters of what was given last, with the numbers of the sockets.
    pub(crate) fn parameters(&self) -> Vec<(RawFd, String, String)> {
        lock(&self.parameters).clone()
    }

    /// The other process was sent what was given.
    pub(crate) fn is_given(&self) -> bool {
        self.given.load(Ordering::Acquire)
    }

    /// It was, or what was given is no more: the program goes on.
    pub(crate) fn set_given(&self, given: bool) {
        self.given.store(given, Ordering::Release);
    }

    /// Whether what was given at this time of asking is still the last word.
    pub(crate) fn is_turn(&self, turn: u32) -> bool {
        turn != 0 && self.turn.load(Ordering::Acquire) == turn
    }

    /// The other process has what was given.
    pub(crate) fn finish(&self) {
        self.over.store(true, Ordering::Release);
        self.forget_listeners();
    }

    /// Whether it has.
    pub(crate) fn is_over(&self) -> bool {
        self.over.load(Ordering::Acquire)
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cancel_key_goes_through_a_number() {
        let number = cancel_number(0x0102_0304, &[5, 6, 7, 8]).expect("four bytes");
        assert_eq!(number, 0x0102_0304_0506_0708);
        assert_eq!(of_cancel_number(number), (0x0102_0304, [5, 6, 7, 8]));
        assert_eq!(cancel_number(1, &[0; 32]), None);
    }

    #[test]
    fn who_answers_too_late_keeps_what_it_has() {
        let socket = || OwnedFd::from(std::net::UdpSocket::bind("127.0.0.1:0").expect("a socket"));
        let row = || vec![Passed::new(socket(), Task::Client, "unix".to_owned(), 1)];
        let handover = Handover::default();
        assert_eq!(handover.answer(1, row()), None, "nobody asked");
        handover.ask();
        let turn = handover.answer(1, row()).expect("in time");
        assert_eq!(handover.answer(2, Vec::new()), None);
        assert!(handover.has_answered(1) && handover.has_answered(2) && !handover.has_answered(3));
        assert_eq!(handover.take().len(), 1);
        assert_eq!(handover.answer(3, row()), None, "too late");
        assert!(handover.is_turn(turn));
        handover.ask();
        assert!(!handover.is_turn(turn), "asked once more");
    }
}
