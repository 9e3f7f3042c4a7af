//! SHOW FDS for the process that is to take this one's place: each row with its socket, over a Unix socket and to a process of the same
//! system user alone. Everybody else sees the sockets that clients come to, which says where the program listens.

use std::time::Duration;

use bytes::BytesMut;
use tokio::time::{Instant, sleep};

use super::answer::{self, Formats};
use super::{Console, sockets};
use crate::clients::{Replication, State};
use crate::handover::Passed;
use crate::shared::{CONSOLE, Shared};

/// Time for the sessions to answer: each has its turn at once, unless its worker is busy.
const PATIENCE: Duration = Duration::from_secs(2);
/// Between two looks whether all have.
const POLL: Duration = Duration::from_millis(5);

impl Console {
    /// Whether this is the process that may have the sockets, and nobody else is served meanwhile.
    pub(super) fn is_heir(&self) -> bool {
        self.client.peer.is_own_user() && self.worker.shared.is_pgbouncer() && self.worker.shared.is_suspended()
    }

    /// Sends the rows with their sockets.
    ///
    /// # Errors
    /// The other process is gone.
    pub(super) async fn bequeath(&mut self) -> std::io::Result<()> {
        let shared = self.worker.shared.clone();
        let mut passed = shared.handover.listeners();
        passed.extend(given(&shared).await);
        let table = sockets::descriptors(&passed, true);
        answer::describe(self.wire.out(), &table, &Formats::default());
        self.wire.flush().await?;
        shared.handover.set_given(true);
        let mut out = BytesMut::new();
        for (row, Passed { socket, .. }) in table.rows.iter().zip(&passed) {
            out.clear();
            answer::row(&mut out, &table.columns, row, &Formats::default());
            self.wire.send_with(&out, socket).await?;
        }
        Ok(())
    }
}

/// What the sessions give.
async fn given(shared: &Shared) -> Vec<Passed> {
    let handover = &shared.handover;
    handover.ask();
    shared.wake_sessions();
    let deadline = Instant::now() + PATIENCE;
    let keeps_silent = |client: &crate::clients::Client| {
        let who = client.who();
        let speaks = who.replication == Replication::No && who.database.as_deref() != Some(CONSOLE);
        !speaks || matches!(client.state().0, State::Login | State::Waiting)
    };
    let answers = |client: &crate::clients::Client| keeps_silent(client) || handover.has_answered(client.id);
    while !shared.clients.all().iter().all(|client| answers(client)) && Instant::now() < deadline {
        sleep(POLL).await;
    }
    handover.take()
}
