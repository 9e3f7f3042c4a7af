//! Who a client is, whether it may come in, and to what: a database entry, replication, or the console.

use std::rc::Rc;
use std::sync::Arc;

use bytes::BytesMut;
use pgwire::auth::Authentication;
use tokio::time::{Instant, timeout_at};

use super::Session;
use super::greet::{Arrived, Greeted, Refused, refuse, tell};
use super::replicate::Replication as Replicated;
use crate::auth::{self, Came, Claim, Identity};
use crate::clients::{Client, Replication};
use crate::console::{Access, Console};
use crate::counts::{Counted, Place};
use crate::entry::Entry;
use crate::error::{self, Denial};
use crate::listener::Peer;
use crate::pgbouncer::log::{Level, say};
use crate::shared::{CONSOLE, Shared};
use crate::worker::Worker;

/// A client on its way in.
pub(super) struct Admission<'a> {
    pub(super) worker: &'a Rc<Worker>,
    pub(super) client: &'a Arc<Client>,
    pub(super) user: String,
    pub(super) database: String,
    /// When it has to be over.
    pub(super) deadline: Instant,
}

impl Admission<'_> {
    /// To a database entry.
    pub(super) async fn let_in(self, arrived: Box<Arrived>, counted: Option<Counted>) -> Result<Greeted, Refused> {
        let shared = &self.worker.shared;
        let entry = shared.entry(&self.database);
        if shared.ending().is_some() {
            return Err(refuse(shared, arrived.wire, &Denial::ShuttingDown));
        }
        if entry.as_ref().is_some_and(|entry| entry.is_disabled()) {
            return Err(refuse(shared, arrived.wire, &Denial::Disabled(self.database)));
        }
        let mut places = Vec::new();
        if let Some(entry) = &entry {
            entry.touch(shared.clock.now());
            let Some(place) = Place::take(&entry.clients, entry.config().max_clients) else {
                return Err(refuse(shared, arrived.wire, &Denial::TooManyClientsOfDatabase(self.database)));
            };
            places.push(place);
        }
        let (mut arrived, identity, out) = Box::pin(self.authenticate(arrived, entry.as_ref())).await?;
        let Some(place) = shared.admit_user(&identity.user, false) else {
            return Err(refuse(shared, arrived.wire, &Denial::TooManyClientsOfUser(self.user)));
        };
        places.push(place);
        let Some(entry) = entry else {
            return Err(refuse(shared, arrived.wire, &Denial::NoDatabase(self.database)));
        };
        tracing::debug!(user = self.user, database = self.database, peer = ?self.client.peer, "a client logged in");
        arrived.wire.keep(&arrived.rest);
        if self.client.who().replication != Replication::No {
            let Arrived { wire, startup, .. } = *arrived;
            let begun = Replicated::begin(self.worker, self.client, &entry, &identity, &startup, wire, out);
            return match Box::pin(begun).await {
                Ok(joined) => Ok(Greeted::Replication(Box::new(joined), (counted, places))),
                Err(refused) => {
                    let (wire, denial) = *refused;
                    Err(refuse(shared, wire, &denial))
                }
            };
        }
        let session = Session::begin_with(self.worker, self.client, entry, arrived, identity)?;
        Ok(Greeted::Session(session.first_words(out, self.deadline).await?, (counted, places)))
    }

    /// To the console.
    pub(super) async fn let_in_to_console(self, mut arrived: Box<Arrived>) -> Result<Greeted, Refused> {
        let shared = &self.worker.shared;
        let is_owner = self.client.peer.is_own_user() && self.user == CONSOLE;
        let mut out = BytesMut::new();
        let access = if is_owner {
            say(Level::Log, format_args!("{} pgbouncer access from unix socket", self.client));
            Authentication::Ok.write(&mut out).expect("it is short");
            Some(Access::Admin)
        } else {
            let (proved, identity, words) = self.authenticate(arrived, None).await?;
            (arrived, out) = (proved, words);
            Access::of(&shared.config(), &identity.user)
        };
        let Some(access) = access else { return Err(refuse(shared, arrived.wire, &Denial::NotAllowed)) };
        let user: Arc<str> = self.user.as_str().into();
        let is_admin = access == Access::Admin;
        let Some(of_user) = shared.admit_user(&user, is_admin) else {
            return Err(refuse(shared, arrived.wire, &Denial::TooManyClientsOfUser(self.user)));
        };
        let general = shared.config().dialect.pgbouncer().map_or(0, |l| l.settings.max_db_client_connections);
        let limit = if is_admin { 0 } else { usize::try_from(general).unwrap_or(0) };
        let Some(place) = Place::take(&shared.console_clients, limit) else {
            return Err(refuse(shared, arrived.wire, &Denial::TooManyClientsOfDatabase(self.database)));
        };
        arrived.wire.keep(&arrived.rest);
        let console = Console::new(self.worker, self.client, arrived.wire, access, out);
        Ok(Greeted::Console(Box::new(console), (None, vec![of_user, place])))
    }

    /// Who the client is, and the last words of the exchange.
    async fn authenticate(
        &self,
        mut arrived: Box<Arrived>,
        entry: Option<&Arc<Entry>>,
    ) -> Result<(Box<Arrived>, Identity, BytesMut), Refused> {
        let shared = &self.worker.shared;
        let is_console = self.database == CONSOLE;
        let somewhere = shared.store.looks_up() && (entry.is_some() || is_console);
        let place = if somewhere { place(shared, entry, is_console).map(Box::new) } else { None };
        let (address, uid) = match self.client.peer {
            Peer::Tcp(address) => (Some(address.ip()), None),
            Peer::Unix { uid, .. } => (None, Some(uid)),
        };
        let came = Came {
            database: &self.database,
            replicates: self.client.who().replication == Replication::Physical,
            address,
            uid,
            is_encrypted: arrived.is_encrypted,
            certified: arrived.certified.as_deref(),
            has_forced_user: entry.is_some_and(|entry| entry.config().forced.is_some()),
        };
        let claim = Claim { user: &self.user, end_point: arrived.end_point.as_deref(), place: place.as_deref(), came };
        let mut out = BytesMut::new();
        let stream = arrived.wire.stream_mut();
        let proved = auth::authenticate(stream, &mut arrived.rest, &mut out, claim, &shared.store);
        match timeout_at(self.deadline, proved).await {
            Ok(Ok(identity)) => Ok((arrived, identity, out)),
            Err(_) => Err(refuse(shared, arrived.wire, &Denial::LoginTimeout(false))),
            Ok(Err(refusal)) => {
                let (user, database) = (&self.user, &self.database);
                tracing::info!(user, database, peer = ?self.client.peer, why = %refusal, "a login was refused");
                let report = error::refusal(&refusal, shared.is_pgbouncer()).ok_or(Refused::Silently)?;
                Err(tell(arrived.wire, report))
            }
        }
    }
}

/// Where the users of an entry (or, for PgBouncer's users, of the console) can be looked up.
fn place(shared: &Arc<Shared>, entry: Option<&Arc<Entry>>, of_console: bool) -> Option<auth::Place> {
    let lookup = entry.map(|entry| entry.config().lookup.clone()).unwrap_or_default();
    let elsewhere = lookup.database.clone().or_else(|| shared.config().auth.query_database.clone());
    let mut broken = None;
    let entry = match (elsewhere.filter(|_| shared.is_pgbouncer()), entry) {
        (Some(name), _) if name == CONSOLE => {
            broken = Some((format!("cannot use the reserved \"{name}\" database as an auth_dbname"), None));
            entry.cloned()
        }
        (Some(name), _) => match shared.entry(&name) {
            Some(found) => {
                if found.is_disabled() {
                    let text = format!("authentication database \"{name}\" is disabled");
                    broken = Some((text.clone(), Some(text)));
                }
                Some(found)
            }
            None => {
                broken = Some((format!("authentication database \"{name}\" is not configured."), None));
                entry.cloned()
            }
        },
        (None, None) if of_console && shared.is_pgbouncer() => {
            broken = Some((format!("cannot use the reserved \"{CONSOLE}\" database as an auth_dbname"), None));
            None
        }
        (None, entry) => entry.cloned(),
    };
    let Some(entry) = entry else {
        let name: Arc<str> = CONSOLE.into();
        let watch = topology::Watch::fixed(topology::Topology::single(CONSOLE, topology::Address::Unix("".into(), 0)));
        let broken = broken.filter(|_| of_console)?;
        return Some(auth::Place {
            entry: name.clone(),
            dbname: name,
            watch,
            address: None,
            tls: None,
            lookup,
            broken: Some(broken),
        });
    };
    let config = entry.config();
    Some(auth::Place {
        entry: entry.name.clone(),
        dbname: config.dbname.clone().unwrap_or_else(|| entry.name.clone()),
        watch: entry.watch.clone(),
        address: match &config.target {
            crate::config::Target::Server(address) => Some(address.clone()),
            crate::config::Target::Cluster(_) => None,
        },
        tls: Some(shared.tls.servers(&config.tls)?),
        lookup,
        broken,
    })
}
