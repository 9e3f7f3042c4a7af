//! What a server is given of the clients' prepared statements on our own account, within its limit.

use pgwire::conversation::{Asker, Request};
use pgwire::frontend::Target;

use super::note::About;
use super::requests::{SHORT, too_much};
use super::statements::Statement;
use super::turn::Turn;
use crate::pool::Server;

/// Gives a server a statement that it lacks.
pub(super) fn hold(server: &mut Server, statement: &Statement, limit: usize) -> Result<(), Turn> {
    if server.prepared.touch(statement.number) {
        return Ok(());
    }
    make_room(server, statement.number, limit);
    statement.write(server.wire.out());
    let note = Some(About::Ours(statement.number).note());
    server.conversation.sent(Request::Parse, Asker::Ours, note).map_err(too_much)
}

/// Notes that a server is being given a statement; the one used longest ago is closed if there are too many.
pub(super) fn make_room(server: &mut Server, number: u64, limit: usize) {
    for oldest in server.prepared.insert(number, limit) {
        let name = Statement::server_name(oldest);
        Target::Statement(&name).close(server.wire.out()).expect(SHORT);
        let _ = server.conversation.sent(Request::Close, Asker::Ours, None);
    }
}
