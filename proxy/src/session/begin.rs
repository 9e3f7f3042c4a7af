//! The beginning of a session: its parts, and what its client is told of the parameters.

use std::rc::Rc;
use std::sync::Arc;

use bytes::BytesMut;
use pgwire::backend;
use pgwire::conversation::TransactionStatus;
use pgwire::greeting::Startup;
use pgwire::report::Report;
use tokio::time::{Instant, timeout_at};

use super::borrow::NoServer;
use super::card::Card;
use super::greet::{Arrived, Refused, refuse, tell};
use super::turn::End;
use super::{Asked, Login, Session, Skip, startup, weak};
use crate::auth::Identity;
use crate::cancel::Registered;
use crate::clients::Client;
use crate::config::Config;
use crate::entry::{Entry, Welcome};
use crate::error::Denial;
use crate::pool::Pool;
use crate::routing::Route;
use crate::settings::{Reported, Setting, Settings};
use crate::wire::Wire;
use crate::worker::Worker;

/// Bytes of a cancel key: of protocol 3.0, and of 3.2.
const KEY_BYTES: (usize, usize) = (4, 32);

/// Bytes of a welcome with PostgreSQL's own parameters.
const WELCOME_BYTES: usize = 512;

/// What a session begins with.
pub(super) struct Beginning {
    /// What the client asked for at its start.
    pub(super) settings: Settings,
    pub(super) route: Option<Route>,
    pub(super) cancel: Registered,
}

impl Session {
    /// A session for an authenticated client. Its startup parameters are its settings.
    pub(super) fn begin_with(
        worker: &Rc<Worker>,
        client: &Arc<Client>,
        entry: Arc<Entry>,
        arrived: Box<Arrived>,
        identity: Identity,
    ) -> Result<Box<Self>, Refused> {
        let Arrived { wire, startup, .. } = *arrived;
        let config = worker.shared.config();
        let (settings, route) = match login_settings(&config, &startup, client) {
            Ok(asked) => asked,
            Err(report) => return Err(tell(wire, report)),
        };
        if let Some(report) = weak::refusal_at_login(&entry, &identity.user, &settings) {
            return Err(tell(wire, report));
        }
        introduce(client, &entry, &identity);
        let cancel = worker.shared.cancels.register(key_bytes(&startup), worker.shared.peer_id());
        Ok(Self::new(worker, client, entry, wire, identity, Beginning { settings, route, cancel }))
    }

    /// A session without a server.
    pub(super) fn new(
        worker: &Rc<Worker>,
        client: &Arc<Client>,
        entry: Arc<Entry>,
        wire: Wire,
        identity: Identity,
        beginning: Beginning,
    ) -> Box<Self> {
        let config = worker.shared.config();
        let Beginning { settings, route, cancel } = beginning;
        let user = config.users.get(&identity.user).cloned();
        let mode = entry.mode(user.as_ref().and_then(|user| user.pool_mode));
        let card = Card::new(client, user, worker);
        let given = config.dialect.pgbouncer().map(|loaded| &loaded.settings);
        Box::new(Self {
            cancel,
            mode,
            is_plain: given.is_some(),
            logs_in: false,
            always_resets: given.is_some_and(|given| given.server_reset_query_always != 0),
            refuses_queries: given.is_some_and(|given| given.disable_pqexec != 0),
            was_hit: false,
            begun: (None, None),
            pools: super::Pools::new(entry.nodes),
            read_after: (entry.nodes > 1).then(|| Box::new(crate::routing::ReadAfter::new())),
            user: entry.user_of(&identity.user),
            identity,
            route,
            card,
            worker: worker.clone(),
            entry,
            client: wire,
            client_rest_is_fresh: true,
            client_passes: 0,
            skip: Skip::Nothing,
            waiting: None,
            server: None,
            node: 0,
            server_passes: 0,
            answers_are_due: false,
            not_replicated: false,
            doubt: super::Doubt::Nothing,
            apart: false,
            held: BytesMut::new(),
            held_goes: false,
            weak_reported: false,
            last_words: None,
            names: super::Names::default(),
            portals: super::Portals::default(),
            units: super::Units::default(),
            effects: super::Unsettled::default(),
            rolled_back: false,
            startup: settings.clone(),
            login: Login::new(settings.clone()),
            settings,
            reported: Reported::default(),
            pinned: None,
            lost: super::Lost::No,
        })
    }

    /// Tells the client what PostgreSQL tells at login. The first client of a kind needs a server for it, which also
    /// shows whether its settings are good; for PgBouncer's users one server of the pool is enough for all of them.
    pub(super) async fn first_words(
        mut self: Box<Self>,
        admitted: BytesMut,
        deadline: Instant,
    ) -> Result<Box<Self>, Refused> {
        let asked = if self.is_plain { Settings::default() } else { self.settings.clone() };
        let welcome = match self.entry.welcome(&self.user, &asked) {
            Some(welcome) => welcome,
            None => {
                self.logs_in = true;
                let met = timeout_at(deadline, Box::pin(self.meet_first_server())).await;
                let got = met.unwrap_or_else(|_| Err(NoServer::End(End::SentAway(Denial::LoginTimeout(true)))));
                self.logs_in = false;
                match got {
                    Ok(()) => {}
                    Err(NoServer::Told(report)) => return Err(tell(self.into_wire(), report)),
                    Err(NoServer::Words(body)) => return Err(Refused::Words(Box::new(self.into_wire()), body)),
                    Err(NoServer::End(End::SentAway(denial))) => {
                        let shared = self.worker.shared.clone();
                        return Err(refuse(&shared, self.into_wire(), &denial));
                    }
                    Err(NoServer::End(_)) => return Err(Refused::Silently),
                }
                self.worker.share(&mut self.reported);
                let welcome = Welcome::new(self.user.clone(), asked, self.reported.clone());
                self.entry.remember_welcome(welcome.clone());
                welcome
            }
        };
        let out = self.client.out();
        out.clear();
        out.reserve(WELCOME_BYTES);
        out.extend_from_slice(&admitted);
        self.greet(welcome);
        let (process_id, key) = (self.cancel.process_id, self.cancel.key.clone());
        let out = self.client.out();
        backend::write_backend_key_data(out, process_id, &key).expect("the key has one of two lengths");
        out.extend_from_slice(&backend::write_ready_for_query(TransactionStatus::Idle));
        self.card.idle();
        Ok(self)
    }

    /// Tells the client of the parameters, as others like it, and holds with them what they have in common.
    fn greet(&mut self, welcome: Welcome) {
        if self.is_plain {
            let mut reported = self.with_own_values(welcome.reported);
            self.worker.share(&mut reported);
            self.split_settings(&reported);
            reported.write(self.client.out());
            self.reported = reported;
        } else {
            self.client.out().extend_from_slice(&welcome.messages);
            self.login = Login::new(welcome.asked);
            self.startup = welcome.settings.clone();
            self.settings = welcome.settings;
            self.reported = welcome.reported;
        }
    }

    /// Waits for a server, and learns from it what the client is told.
    async fn meet_first_server(&mut self) -> Result<(), NoServer> {
        self.acquire(&Asked::primary()).await?;
        if self.is_plain {
            self.meet_any_server();
            return Ok(());
        }
        self.meet_server().await
    }

    /// Learns from a server what the pool's clients are told.
    fn meet_any_server(&mut self) {
        if let Some(server) = &self.server {
            self.reported = server.reported.clone();
        }
        self.server = None;
        self.unlink();
    }

    /// What the client asked for, in place of what the first server of its pool reported.
    fn with_own_values(&self, mut reported: Reported) -> Reported {
        for (name, setting) in self.settings.iter() {
            if let (Some(known), Setting::Value(value)) = (reported.name_of(name), setting) {
                reported.set(&known, value);
            }
        }
        reported
    }

    /// Brings the first server to the client's settings, and learns what it reports then.
    async fn meet_server(&mut self) -> Result<(), NoServer> {
        let Some(server) = &self.server else { return Ok(()) };
        let mut wanted = server.reported.clone();
        for (name, setting) in self.settings.iter() {
            if let (Some(known), Setting::Value(value)) = (server.reported.name_of(name), setting) {
                wanted.set(&known, value);
            }
        }
        self.split_settings(&wanted);
        self.reported = wanted;
        self.bring().await?;
        if let Some(server) = &self.server {
            self.reported = server.reported.clone();
        }
        self.server = None;
        self.unlink();
        Ok(())
    }

    /// What PostgreSQL reports is no setting of ours to track.
    fn split_settings(&mut self, reported: &Reported) {
        self.settings.leave_out(reported);
        self.startup = self.settings.clone();
    }

    fn into_wire(mut self: Box<Self>) -> Wire {
        self.abandon();
        self.client
    }

    /// The session's pool for a node; `None` if there are too many pools.
    pub(super) fn pool(&mut self, node: usize) -> Option<Arc<Pool>> {
        if self.pools.get(node).is_none() {
            let login = self.identity.server_login.clone();
            let pool = startup::pool_for(&self.worker.shared, &self.entry, &self.user, &login, node);
            self.pools.set(node, pool);
        }
        self.pools.get(node).cloned()
    }
}

/// Who the client is, in texts that it shares with others.
pub(super) fn introduce(client: &Client, entry: &Entry, identity: &Identity) {
    client.known(|who| {
        who.user = Some(identity.user.clone());
        who.database = Some(entry.name.clone());
        who.server_user = Some(entry.user_of(&identity.user));
    });
}

/// What a client asks for at its login.
fn login_settings(config: &Config, startup: &Startup, client: &Client) -> Result<(Settings, Option<Route>), Report> {
    let mut route = None;
    let settings = match config.dialect.pgbouncer() {
        None => startup::settings(startup, &mut route),
        Some(loaded) => startup::tracked(startup, &loaded.settings, client),
    }?;
    if let Some(Setting::Value(name)) = settings.get("application_name") {
        client.known(|who| who.application_name = (&**name).into());
    }
    Ok((settings, route))
}

/// Bytes of the client's cancel key.
fn key_bytes(startup: &Startup) -> usize {
    if startup.agreed_minor() >= 2 { KEY_BYTES.1 } else { KEY_BYTES.0 }
}
