//! A replication connection: a server of its own, opened with all that the client asked for, and bytes that pass unread. Both
//! ends live and die together (PostgreSQL manual, "Streaming Replication Protocol").

use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use bytes::BytesMut;
use pgwire::backend;
use pgwire::conversation::TransactionStatus;
use pgwire::greeting::Startup;
use tokio::io::{AsyncWriteExt, copy_bidirectional};

use super::greet::log_end;
use super::startup::pool_for;
use crate::auth::Identity;
use crate::clients::{Client, State};
use crate::entry::Entry;
use crate::error::Denial;
use crate::pool::{Alone, Failure};
use crate::wire::Wire;
use crate::worker::Worker;

/// Bytes of a cancel key of protocol 3.0.
const KEY_BYTES: usize = 4;

/// Why there is no replication connection, over what the client is told.
pub(super) type Refused = Box<(Wire, Denial)>;

/// A client and its server, joined.
pub(super) struct Replication {
    worker: Rc<Worker>,
    client: Arc<Client>,
    wire: Wire,
    server: Alone,
}

impl Replication {
    /// Opens the server; `admitted` are the last words of the client's login.
    pub(super) async fn begin(
        worker: &Rc<Worker>,
        client: &Arc<Client>,
        entry: &Arc<Entry>,
        identity: &Identity,
        startup: &Startup,
        wire: Wire,
        admitted: BytesMut,
    ) -> Result<Self, Refused> {
        let shared = &worker.shared;
        let user = entry.user_of(&identity.user);
        client.known(|who| who.server_user = Some(user.clone()));
        let topology = entry.watch.now();
        let pool = topology.primary.and_then(|node| pool_for(shared, entry, &user, &identity.server_login, node));
        let Some(pool) = pool else {
            return Err(Box::new((wire, Denial::Told("there is no primary to replicate from".to_owned()))));
        };
        client.enter(State::Waiting);
        let parameters = startup
            .parameters()
            .filter(|(name, _)| !matches!(*name, b"user" | b"database") && !name.starts_with(b"_pq_."))
            .map(|(name, value)| {
                (String::from_utf8_lossy(name).into_owned(), String::from_utf8_lossy(value).into_owned())
            });
        let server = match pool.open_alone(parameters.collect(), topology.epoch).await {
            Ok(server) => server,
            Err(failure) => {
                let words = match failure {
                    Failure::Refused { .. } => "login failed".to_owned(),
                    other => other.in_pgbouncers_words(),
                };
                return Err(Box::new((wire, Denial::Told(words))));
            }
        };
        client.enter(State::Busy);
        client.link.store(server.control.origin.id, Ordering::Relaxed);
        server.control.link.store(client.id, Ordering::Relaxed);
        let mut joined = Self { worker: worker.clone(), client: client.clone(), wire, server };
        let out = joined.wire.out();
        out.clear();
        out.extend_from_slice(&admitted);
        joined.server.reported.write(out);
        Ok(joined)
    }

    /// Passes what comes, until one of the two goes.
    pub(super) async fn run(mut self) {
        let shared = self.worker.shared.clone();
        let cancel = shared.cancels.register(KEY_BYTES, shared.peer_id());
        cancel.begin(&self.server.cancel);
        let out = self.wire.out();
        backend::write_backend_key_data(out, cancel.process_id, &cancel.key).expect("the key has a good length");
        out.extend_from_slice(&backend::write_ready_for_query(TransactionStatus::Idle));
        let why = match self.pass().await {
            Ok(()) => "replication client was closed",
            Err(_) => "replication client disconnected",
        };
        self.server.control.closes(why);
        log_end(&shared, &self.client, "client close request");
    }

    async fn pass(&mut self) -> std::io::Result<()> {
        self.wire.flush().await?;
        let (from_client, from_server) = (self.wire.take_rest(), self.server.wire.take_rest());
        let (client, server) = (self.wire.stream_mut(), self.server.wire.stream_mut());
        server.write_all(&from_client).await?;
        client.write_all(&from_server).await?;
        let passing = copy_bidirectional(client, server);
        tokio::select! {
            passed = passing => passed.map(drop),
            () = ended(&self.client) => Ok(()),
        }
    }
}

/// Waits until the client is to be sent away.
async fn ended(client: &Client) {
    while client.take_end().is_none() {
        tokio::time::sleep(crate::clock::TICK).await;
    }
}
