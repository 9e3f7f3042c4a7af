//! A session that is passed to the next process: what it gives, and that it stands still until it is known whether that was taken.
//!
//! Only what is at a boundary between messages on both sides is given, and only what the rows of SHOW FDS can say. All others, those
//! with TLS or with prepared statements among them, stay where they are.

use std::os::fd::BorrowedFd;
use std::sync::atomic::Ordering;
use std::task::Poll;

use super::greet::log_end;
use super::lost::Lost;
use super::turn::{End, Turn};
use super::{Session, Skip};
use crate::handover::{Passed, Task, cancel_number};
use crate::listener::Peer;
use crate::pool::Borrowed;
use crate::wire::Wire;

/// The word in the log for a connection that goes on in another process.
const HANDED_OVER: &str = "handed over";

impl Session {
    /// While the program is suspended: `None` if the session may go on, which reads from no client then.
    #[cold]
    pub(super) fn poll_suspended(&mut self) -> Option<Poll<Turn>> {
        let shared = self.worker.shared.clone();
        let handover = &shared.handover;
        if handover.is_turn(self.card.given.get()) {
            if handover.is_over() {
                return Some(Poll::Ready(Turn::End(End::HandedOver)));
            }
            if shared.is_suspended() {
                return Some(Poll::Pending);
            }
        }
        self.card.given.set(0);
        if !handover.is_asked() {
            return None;
        }
        let gives = self.gives().unwrap_or_default();
        self.card.given.set(handover.answer(self.card.client.id, gives)?);
        Some(Poll::Pending)
    }

    /// The next process has the connections: nothing is said on them any more.
    pub(super) fn leave(&mut self) {
        log_end(&self.worker.shared, &self.card.client, HANDED_OVER);
        if let Some(server) = &self.server {
            server.control.closes(HANDED_OVER);
        }
        self.drop_server();
    }

    /// What the next process needs to go on in place of this one; `None` if that is more than it can be told.
    fn gives(&mut self) -> Option<Vec<Passed>> {
        let between = self.client_passes == 0 && self.skip == Skip::Nothing && self.lost == Lost::No;
        let can_be_told = self.is_plain && self.card.client.prepared.load(Ordering::Relaxed) == 0;
        if !between || !can_be_told {
            return None;
        }
        let (host, port) = match self.card.client.peer {
            Peer::Tcp(address) => (address.ip().to_string(), address.port()),
            Peer::Unix { .. } => ("unix".to_owned(), 0),
        };
        let socket = socket(&mut self.client)?.try_clone_to_owned().ok()?;
        let mut client = Passed::new(socket, Task::Client, host, port);
        client.user = Some(self.identity.user.to_string());
        client.database = Some(self.entry.name.to_string());
        client.cancel = cancel_number(self.cancel.process_id, &self.cancel.key)?;
        client.parameters = owned(self.reported.iter());
        let login = &self.identity.server_login;
        client.keys = login.keys().filter(|_| self.entry.config().forced.is_none());
        client.password = login.stored_text().filter(|_| !self.worker.shared.store.is_listed(&self.identity.user));
        let has_no_other_state = self.server_passes == 0 && self.held.is_empty();
        let Some(server) = &mut self.server else { return Some(vec![client]) };
        let mut server = gives_server(server).filter(|_| has_no_other_state)?;
        server.link = client.number;
        client.link = server.number;
        Some(vec![client, server])
    }
}

/// What goes with the client of a server.
fn gives_server(server: &mut Borrowed) -> Option<Passed> {
    if !server.conversation.quiet() || server.control.is_revoked() || server.control.is_retired() {
        return None;
    }
    let socket = socket(&mut server.wire)?.try_clone_to_owned().ok()?;
    let origin = &server.control.origin;
    let mut passed = Passed::new(socket, Task::Server, origin.host.clone(), origin.port);
    passed.user = Some(origin.user.to_string());
    passed.database = Some(origin.database.to_string());
    passed.cancel = cancel_number(server.cancel.process_id, &server.cancel.key)?;
    passed.parameters = owned(server.reported.iter());
    Some(passed)
}

/// The socket of a connection that is between two messages, and as another process may have it.
fn socket(wire: &mut Wire) -> Option<BorrowedFd<'_>> {
    if wire.backlog() > 0 || wire.has_rest() {
        return None;
    }
    wire.settle();
    wire.socket()
}

fn owned<'s>(parameters: impl Iterator<Item = (&'s str, &'s str)>) -> Vec<(String, String)> {
    parameters.map(|(name, value)| (name.to_owned(), value.to_owned())).collect()
}
