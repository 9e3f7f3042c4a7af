//! From an accepted socket to a session: TLS, startup packet, authentication, the first parameters. Or a cancel request.

use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use bytes::BytesMut;
use pgwire::conversation::TransactionStatus;
use pgwire::greeting::{Greeting, Startup, Step, TLS_HANDSHAKE};
use pgwire::report::Report;
use pgwire::sqlstate;
use pgwire::{backend, options};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::time::timeout;

use super::borrow::{NoServer, welcome};
use super::card::Card;
use super::{Asked, Session, Skip, pass_on, say, weak};
use crate::auth::{self, Claim, Identity, Place};
use crate::config;
use crate::entry::Entry;
use crate::error::{self, Denial};
use crate::listener::Peer;
use crate::pool::{Opener, Pool};
use crate::routing::Route;
use crate::settings::{Reported, Setting, Settings};
use crate::shared::{Counted, OfUser, Shared};
use crate::tls;
use crate::wire::{Stream, Wire};
use crate::worker::Worker;

/// Bytes of a cancel key: of protocol 3.0, and of 3.2.
const KEY_BYTES: (usize, usize) = (4, 32);

/// Why there is no session.
enum Refused {
    /// Nothing is told: a cancel request, or nobody who listens.
    Silently,
    /// The client is told, over what it came by.
    Told(Box<Wire>, Box<Report>),
    /// The client is told in PostgreSQL's own words.
    Words(Box<Wire>, bytes::Bytes),
}

/// A client that has said who it is and how it came.
struct Arrived {
    wire: Wire,
    startup: Startup,
    /// What was read behind the startup packet.
    rest: BytesMut,
    /// The channel binding data of the TLS connection.
    end_point: Option<Arc<[u8]>>,
}

/// A client's places in the counts of clients.
type Admitted = (Counted, OfUser);

/// Serves one client from its first byte to its last.
pub(crate) async fn serve_client(worker: Rc<Worker>, stream: Stream, peer: Peer) {
    let limit = worker.shared.limits().login_timeout;
    let greeted = Box::pin(timeout(limit, greet(&worker, stream, peer))).await;
    let refused = match greeted {
        Ok(Ok((session, counted))) => {
            session.run().await;
            drop(counted);
            return;
        }
        Ok(Err(refused)) => refused,
        Err(_) => return, // nothing can be told: the stream went with the attempt
    };
    let mut wire = match refused {
        Refused::Silently => return,
        Refused::Told(mut wire, report) => {
            say(wire.out(), &report.fatal());
            wire
        }
        Refused::Words(mut wire, body) => {
            pass_on(wire.out(), &body);
            wire
        }
    };
    let _ = timeout(super::FAREWELL, wire.say_goodbye()).await;
}

async fn greet(worker: &Rc<Worker>, stream: Stream, peer: Peer) -> Result<(Session, Admitted), Refused> {
    let mut arrived = arrive(worker, stream).await?;
    let Some(counted) = worker.shared.admit() else { return Err(refuse(arrived.wire, &Denial::TooManyClients)) };
    let (user, database) = match names(&arrived.startup) {
        Ok(Some(names)) => names,
        Ok(None) => return Err(refuse(arrived.wire, &Denial::NoUser)),
        Err(error) => {
            let report = Report::error(sqlstate::CHARACTER_NOT_IN_REPERTOIRE, error.to_string());
            return Err(Refused::Told(Box::new(arrived.wire), Box::new(report)));
        }
    };
    if arrived.startup.needs_negotiation() && arrived.startup.negotiate(arrived.wire.out()).is_err() {
        return Err(Refused::Silently);
    }
    arrived.wire.flush().await.map_err(|_| Refused::Silently)?;
    let entry = worker.shared.entry(&database);
    let place = entry.as_ref().and_then(|entry| place(&worker.shared, entry));
    let claim = Claim { user: &user, end_point: arrived.end_point.as_deref(), place: place.as_ref() };
    let mut out = BytesMut::new();
    let stream = arrived.wire.stream_mut();
    let identity = match auth::authenticate(stream, &mut arrived.rest, &mut out, claim, &worker.shared.store).await {
        Ok(identity) => identity,
        Err(refusal) => {
            tracing::info!(user, database, ?peer, why = %refusal, "a login was refused");
            let report = error::refusal(&refusal).ok_or(Refused::Silently)?;
            return Err(Refused::Told(Box::new(arrived.wire), Box::new(report)));
        }
    };
    let Some(of_user) = worker.shared.admit_user(&identity.user) else {
        return Err(refuse(arrived.wire, &Denial::TooManyClientsOfUser(user)));
    };
    let Some(entry) = entry else { return Err(refuse(arrived.wire, &Denial::NoDatabase(database))) };
    tracing::debug!(user, database, ?peer, "a client logged in");
    arrived.wire.keep(&arrived.rest);
    let session = Session::begin_with(worker, entry, arrived, identity)?;
    session.first_words(out).await.map(|session| (session, (counted, of_user)))
}

fn refuse(wire: Wire, denial: &Denial) -> Refused {
    Refused::Told(Box::new(wire), Box::new(denial.report()))
}

/// The user and the database of a startup packet; `None` without a user.
fn names(startup: &Startup) -> Result<Option<(String, String)>, pgwire::greeting::Refusal> {
    let user = startup.user()?.map(str::to_owned);
    let database = startup.database()?.map(str::to_owned);
    Ok(user.zip(database))
}

/// Where the users of an entry can be looked up.
fn place(shared: &Shared, entry: &Entry) -> Option<Place> {
    Some(Place {
        entry: entry.name.clone(),
        dbname: entry.config.dbname.clone().unwrap_or_else(|| entry.name.clone()),
        watch: entry.watch.clone(),
        tls: shared.tls.servers(&entry.config.tls)?,
    })
}

/// Reads until the startup packet, answering requests for encryption.
async fn arrive(worker: &Rc<Worker>, mut stream: Stream) -> Result<Arrived, Refused> {
    let tls = worker.shared.tls.clients();
    let mut end_point = None;
    let mut greeting = Greeting::new();
    let mut input = BytesMut::new();
    loop {
        if input.is_empty() && tls.is_some() && begins_with_tls(&stream).await {
            let Step::DirectTls(asked) = greeting.read(&[TLS_HANDSHAKE]).map_err(|_| Refused::Silently)? else {
                return Err(Refused::Silently);
            };
            stream = accept(stream, tls.as_deref(), true, &mut end_point).await?;
            greeting = asked.established();
        }
        if stream.read_buf(&mut input).await.map_err(|_| Refused::Silently)? == 0 {
            return Err(Refused::Silently);
        }
        match greeting.read(&input) {
            Ok(Step::More(same)) => greeting = same,
            Ok(Step::Ssl(asked)) => {
                input.clear();
                let with_tls = tls.is_some() && matches!(stream, Stream::Tcp(_));
                stream.write_all(if with_tls { b"S" } else { b"N" }).await.map_err(|_| Refused::Silently)?;
                greeting = if with_tls {
                    stream = accept(stream, tls.as_deref(), false, &mut end_point).await?;
                    asked.established()
                } else {
                    asked.refused()
                };
            }
            Ok(Step::Gss(asked)) => {
                input.clear();
                stream.write_all(b"N").await.map_err(|_| Refused::Silently)?;
                greeting = asked.refused();
            }
            Ok(Step::Cancel(request, _)) => {
                worker.shared.cancels.request(request.process, &request.key).await;
                return Err(Refused::Silently);
            }
            Ok(Step::Startup(startup, length)) => {
                let unencrypted = matches!(stream, Stream::Tcp(_));
                let wire = Wire::new(stream);
                if unencrypted && tls.as_ref().is_some_and(|tls| tls.is_required()) {
                    return Err(refuse(wire, &Denial::TlsRequired));
                }
                let rest = input.split_off(length);
                return Ok(Arrived { wire, startup, rest, end_point });
            }
            Ok(Step::DirectTls(_)) => return Err(Refused::Silently),
            Err(refusal) => {
                return match refusal.sqlstate() {
                    Some(sqlstate) => Err(Refused::Told(
                        Box::new(Wire::new(stream)),
                        Box::new(Report::error(sqlstate, refusal.to_string())),
                    )),
                    None => Err(Refused::Silently),
                };
            }
        }
    }
}

async fn begins_with_tls(stream: &Stream) -> bool {
    let Stream::Tcp(stream) = stream else { return false };
    let mut first = [0];
    matches!(stream.peek(&mut first).await, Ok(1) if first[0] == TLS_HANDSHAKE)
}

async fn accept(
    stream: Stream,
    tls: Option<&tls::ClientTls>,
    direct: bool,
    end_point: &mut Option<Arc<[u8]>>,
) -> Result<Stream, Refused> {
    let (Stream::Tcp(stream), Some(tls)) = (stream, tls) else { return Err(Refused::Silently) };
    match tls::accept(stream, tls, direct).await {
        Ok((stream, binding)) => {
            *end_point = binding;
            Ok(Stream::Tls(Box::new(stream)))
        }
        Err(error) => {
            tracing::info!(%error, "a TLS handshake with a client failed");
            Err(Refused::Silently)
        }
    }
}

impl Session {
    /// A session for an authenticated client. Its startup parameters are its settings.
    fn begin_with(
        worker: &Rc<Worker>,
        entry: Arc<Entry>,
        arrived: Arrived,
        identity: Identity,
    ) -> Result<Self, Refused> {
        let Arrived { wire, startup, .. } = arrived;
        let key_bytes = if startup.agreed_minor() >= 2 { KEY_BYTES.1 } else { KEY_BYTES.0 };
        let mut route = None;
        let settings = match settings_of(&startup, &mut route) {
            Ok(settings) => settings,
            Err(report) => return Err(Refused::Told(Box::new(wire), report)),
        };
        if let Some(report) = weak::refusal_at_login(&entry, &identity.user, &settings) {
            return Err(Refused::Told(Box::new(wire), Box::new(report)));
        }
        let card = Card::new(worker.shared.clock.clone());
        worker.enrol(&card);
        Ok(Self {
            cancel: worker.shared.cancels.register(key_bytes),
            mode: entry.mode(worker.shared.config().users.get(&identity.user).and_then(|user| user.pool_mode)),
            pools: vec![None; entry.nodes],
            user: identity.user.clone(),
            identity,
            route,
            card,
            worker: worker.clone(),
            entry,
            client: wire,
            client_rest_is_fresh: true,
            client_passes: 0,
            skip: Skip::Nothing,
            server: None,
            node: 0,
            on_primary: false,
            server_passes: 0,
            instead: BytesMut::new(),
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
            effects: std::collections::VecDeque::new(),
            pending_settings: Vec::new(),
            rolled_back: false,
            startup: settings.clone(),
            login: super::Login::new(settings.clone()),
            settings,
            reported: Reported::default(),
            pinned: None,
            lost: super::Lost::No,
            read_after: crate::routing::ReadAfter::new(),
        })
    }

    /// Tells the client what PostgreSQL tells at login. The first client of a kind needs a server for it, which also
    /// shows whether its settings are good.
    async fn first_words(mut self, admitted: BytesMut) -> Result<Self, Refused> {
        let all = self.settings.clone();
        let reported = match self.entry.welcome(&self.user, &all) {
            Some(reported) => reported,
            None => {
                let got = match self.acquire(&Asked::primary()).await {
                    Ok(()) => self.meet_server().await,
                    no_server => no_server,
                };
                match got {
                    Ok(()) => self.entry.remember_welcome(&self.user, &all, &self.reported),
                    Err(NoServer::Told(report)) => {
                        return Err(Refused::Told(Box::new(self.into_wire()), Box::new(report)));
                    }
                    Err(NoServer::Words(body)) => return Err(Refused::Words(Box::new(self.into_wire()), body)),
                    Err(NoServer::End(_)) => return Err(Refused::Silently),
                }
                self.reported.clone()
            }
        };
        self.split_settings(&reported);
        self.reported = reported;
        let (process_id, key) = (self.cancel.process_id, self.cancel.key.clone());
        let out = self.client.out();
        out.clear();
        out.extend_from_slice(&admitted);
        welcome(out, &self.reported);
        backend::write_backend_key_data(out, process_id, &key).expect("the key has one of two lengths");
        out.extend_from_slice(&backend::write_ready_for_query(TransactionStatus::Idle));
        self.card.idle();
        Ok(self)
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
        self.cancel.end();
        Ok(())
    }

    /// What PostgreSQL reports is no setting of ours to track.
    fn split_settings(&mut self, reported: &Reported) {
        let names: Vec<String> = self.settings.iter().map(|(name, _)| name.to_owned()).collect();
        for name in names.iter().filter(|name| reported.get(name).is_some()) {
            self.settings.reset(name);
        }
        self.startup = self.settings.clone();
    }

    fn into_wire(mut self) -> Wire {
        self.abandon();
        self.client
    }

    /// The session's pool for a node; `None` if there are too many pools.
    pub(super) fn pool(&mut self, node: usize) -> Option<Arc<Pool>> {
        if self.pools[node].is_none() {
            let shared = self.worker.shared.clone();
            let identity = &self.identity;
            let entry = &self.entry;
            self.pools[node] =
                entry.pool_of(&shared, &self.user, node, |topology| opener(&shared, entry, identity, topology, node));
        }
        self.pools[node].clone()
    }
}

fn opener(
    shared: &Shared,
    entry: &Entry,
    identity: &Identity,
    topology: &topology::Topology,
    node: usize,
) -> Option<Opener> {
    let limits = shared.limits();
    let (user, login) = match &entry.config.forced {
        Some(forced) => (forced.user.clone(), forced_login(shared, forced)),
        None => (identity.user.clone(), identity.server_login.clone()),
    };
    Some(Opener {
        node_name: topology.nodes[node].name.clone(),
        node,
        watch: entry.watch.clone(),
        address: (*topology.nodes[node].address).clone(),
        tls: shared.tls.servers(&entry.config.tls)?,
        user,
        dbname: entry.config.dbname.clone().unwrap_or_else(|| entry.name.clone()),
        login: std::sync::Mutex::new(login),
        connect_timeout: limits.server_connect_timeout,
        idle_timeout: limits.server_idle_timeout.unwrap_or(Duration::MAX),
        lifetime: limits.server_lifetime.unwrap_or(Duration::MAX),
        survey: entry.managed.then_some(entry.synchronous_commit),
        clock: shared.clock.clone(),
        hashing: shared.hashing.clone(),
        failure: std::sync::Mutex::default(),
    })
}

/// The login of an entry that has one: its own password, else what is known of the user.
fn forced_login(shared: &Shared, forced: &config::Login) -> auth::ServerLogin {
    match &forced.password {
        Some(password) => auth::ServerLogin::password(password.reveal().as_bytes()),
        None => shared.store.server_login(&forced.user),
    }
}

/// The settings in a startup packet, and the route that it asks for.
fn settings_of(startup: &Startup, route: &mut Option<Route>) -> Result<Settings, Box<Report>> {
    let invalid = |text: String| Box::new(Report::error(sqlstate::INVALID_PARAMETER_VALUE, text));
    let mut pairs: Vec<(Vec<u8>, Vec<u8>)> = Vec::new();
    for (name, value) in startup.parameters() {
        match name {
            b"user" | b"database" => {}
            b"replication" if matches!(value, b"false" | b"off" | b"no" | b"0") => {}
            b"replication" => {
                let text = "replication connections do not pass through pgsteady: connect to PostgreSQL directly";
                return Err(Box::new(Report::error(sqlstate::FEATURE_NOT_SUPPORTED, text)));
            }
            b"options" => pairs.extend(
                options::parse(value).map_err(|error| Box::new(Report::error(error.sqlstate(), error.to_string())))?,
            ),
            name if name.starts_with(b"_pq_.") => {}
            name => pairs.push((name.to_vec(), value.to_vec())),
        }
    }
    let mut settings = Settings::default();
    for (name, value) in pairs {
        let (Ok(name), Ok(value)) = (String::from_utf8(name), String::from_utf8(value)) else {
            return Err(invalid("a startup parameter is not valid UTF-8".into()));
        };
        if name.eq_ignore_ascii_case(Route::PARAMETER) {
            let known = Route::parse(value.as_bytes());
            *route = Some(known.ok_or_else(|| {
                invalid(format!("invalid value for parameter \"{}\": auto, primary or replica", Route::PARAMETER))
            })?);
        } else if !settings.set(&name, Setting::Value(value.into())) {
            return Err(invalid("too many startup parameters".into()));
        }
    }
    Ok(settings)
}
