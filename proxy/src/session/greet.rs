//! From an accepted socket to a session: TLS, startup packet, authentication, the first parameters. Or a cancel request.

use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use bytes::BytesMut;
use pgwire::greeting::{self, Greeting, Startup, Step, TLS_HANDSHAKE};
use pgwire::report::{Report, View};
use pgwire::sqlstate;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::time::{Instant, timeout, timeout_at};

use super::admit::Admission;
use super::replicate::Replication as Replicated;
use super::{Session, pass_on, say, startup};
use crate::clients::{Client, Replication};
use crate::console::Console;
use crate::counts::{Counted, Place};
use crate::error::{self, Denial};
use crate::listener::Peer;
use crate::shared::{CONSOLE, Shared};
use crate::tls;
use crate::wire::{Stream, Wire};
use crate::worker::Worker;

/// Why there is no session.
pub(super) enum Refused {
    /// Nothing is told: a cancel request, or nobody who listens.
    Silently,
    /// Nothing is told, and the log says this.
    Logged(&'static str),
    /// The client is told, over what it came by; and the log, in PgBouncer's words.
    Told(Box<Wire>, Box<Report>, String),
    /// The client is told in PostgreSQL's own words.
    Words(Box<Wire>, bytes::Bytes),
}

/// A client that has said who it is and how it came.
pub(super) struct Arrived {
    pub(super) wire: Wire,
    pub(super) startup: Startup,
    /// What was read behind the startup packet.
    pub(super) rest: BytesMut,
    /// The channel binding data of the TLS connection.
    pub(super) end_point: Option<Arc<[u8]>>,
    /// There is a TLS connection.
    pub(super) is_encrypted: bool,
    /// The names in the certificate that the client showed.
    pub(super) certified: Option<Vec<String>>,
}

/// Time beyond a login's for the words that it is over; a TLS handshake that takes longer ends without any.
const GRACE: Duration = Duration::from_millis(500);

/// Bytes that are read at first: nearly every startup packet has fewer.
const STARTUP_BYTES: usize = 512;

/// The log's word for a client that left without a word.
const EOF: &str = "client unexpected eof";

/// A client's places in the counts of clients.
type Admitted = (Option<Counted>, Vec<Place>);

/// Serves one client from its first byte to its last.
pub(crate) async fn serve_client(worker: Rc<Worker>, stream: Stream, peer: Peer) {
    let shared = worker.shared.clone();
    let id = shared.ids.fetch_add(1, Ordering::Relaxed) + 1;
    let keeper = &shared.keepers[worker.index];
    let enrolled = shared.clients.enrol(id, peer, local_address(&stream), &shared.clock, keeper);
    let client = enrolled.client();
    let deadline = Instant::now() + shared.limits().login_timeout;
    let greeted = Box::pin(timeout_at(deadline + GRACE, greet(&worker, client, stream, deadline))).await;
    let refused = match greeted {
        Ok(Ok(Greeted::Session(session, admitted))) => {
            return live(session, (admitted, enrolled));
        }
        Ok(Ok(Greeted::Replication(joined, admitted))) => {
            Box::pin(joined.run()).await;
            drop(admitted);
            return;
        }
        Ok(Ok(Greeted::Console(console, admitted))) => {
            let (wire, end) = Box::pin(console.run()).await;
            drop(admitted);
            match end {
                Some(denial) => refuse(&shared, wire, &denial),
                None => {
                    log_end(&shared, client, "client close request");
                    return;
                }
            }
        }
        Ok(Err(refused)) => refused,
        Err(_) => {
            // Nothing can be told: the stream went with the attempt.
            log_end(&shared, client, &Denial::LoginTimeout(false).words());
            return;
        }
    };
    let mut wire = match refused {
        Refused::Silently => {
            if client.who().user.is_some() {
                log_end(&shared, client, EOF);
            }
            return;
        }
        Refused::Logged(words) => return log_end(&shared, client, words),
        Refused::Told(mut wire, report, words) => {
            log_end(&shared, client, &words);
            log_error(&shared, client, &words);
            say(wire.out(), &report.fatal());
            wire
        }
        Refused::Words(mut wire, body) => {
            let words = View::new(&body).message().into_owned();
            log_end(&shared, client, &words);
            log_error(&shared, client, &words);
            if shared.is_pgbouncer() {
                say(wire.out(), &passed_on(&body));
            } else {
                pass_on(wire.out(), &body);
            }
            wire
        }
    };
    drop(enrolled);
    let _ = Box::pin(timeout(super::FAREWELL, wire.say_goodbye())).await;
}

/// A session in a task of its own, which is a third of the size of its login's for as long as the client stays. It gives up its
/// `places` when it ends.
pub(super) fn live<P: 'static>(session: Box<Session>, places: P) {
    tokio::task::spawn_local(async move {
        session.run().await;
        drop(places);
    });
}

/// An error of a server as PgBouncer passes it on: without its details, and fatal.
fn passed_on(body: &[u8]) -> Report {
    let view = View::new(body);
    let sqlstate = view.sqlstate().unwrap_or(sqlstate::PROTOCOL_VIOLATION);
    Report::error(sqlstate, view.message().into_owned()).fatal().terse()
}

pub(super) fn local_address(stream: &Stream) -> Option<SocketAddr> {
    match stream {
        Stream::Tcp(stream) => stream.local_addr().ok(),
        Stream::Unix(_) | Stream::Tls(_) => None,
    }
}

/// What a client became that was let in.
pub(super) enum Greeted {
    Session(Box<Session>, Admitted),
    Console(Box<Console>, Admitted),
    Replication(Box<Replicated>, Admitted),
}

async fn greet(
    worker: &Rc<Worker>,
    client: &Arc<Client>,
    stream: Stream,
    deadline: Instant,
) -> Result<Greeted, Refused> {
    let shared = &worker.shared;
    let mut arrived = arrive(worker, client, stream, deadline).await?;
    let names = match names(&arrived.startup) {
        Ok(Some(names)) => names,
        Ok(None) => return Err(refuse(shared, arrived.wire, &Denial::NoUser)),
        Err(error) => {
            let report = Report::error(sqlstate::CHARACTER_NOT_IN_REPERTOIRE, error.to_string());
            return Err(tell(arrived.wire, report));
        }
    };
    let (user, database) = names;
    let replication = match startup::replication(&arrived.startup) {
        Ok(replication) => replication,
        Err(report) => return Err(tell(arrived.wire, report)),
    };
    client.known(|who| {
        who.user = Some(user.as_str().into());
        who.database = Some(database.as_str().into());
        who.replication = replication;
    });
    log_attempt(shared, client);
    let is_console = database == CONSOLE && !shared.config().databases.contains_key(CONSOLE);
    let counted = if is_console { None } else { shared.admit() };
    if counted.is_none() && !is_console {
        return Err(refuse(shared, arrived.wire, &Denial::TooManyClients));
    }
    if arrived.startup.needs_negotiation() && arrived.startup.negotiate(arrived.wire.out()).is_err() {
        return Err(Refused::Silently);
    }
    arrived.wire.flush().await.map_err(|_| Refused::Silently)?;
    if is_console {
        return Box::pin(Admission { worker, client, user, database, deadline }.let_in_to_console(arrived)).await;
    }
    let admission = Admission { worker, client, user, database, deadline };
    admission.let_in(arrived, counted).await
}

pub(super) fn refuse(shared: &Shared, wire: Wire, denial: &Denial) -> Refused {
    Refused::Told(Box::new(wire), Box::new(shared.words(denial)), denial.words())
}

pub(super) fn tell(wire: Wire, report: Report) -> Refused {
    let words = report.message().to_owned();
    Refused::Told(Box::new(wire), Box::new(report), words)
}

/// The user and the database of a startup packet; `None` without a user.
fn names(startup: &Startup) -> Result<Option<(String, String)>, greeting::Refusal> {
    let user = startup.user()?.map(str::to_owned);
    let database = startup.database()?.map(str::to_owned);
    Ok(user.zip(database))
}

/// Reads until the startup packet, answering requests for encryption.
async fn arrive(
    worker: &Rc<Worker>,
    client: &Client,
    mut stream: Stream,
    deadline: Instant,
) -> Result<Box<Arrived>, Refused> {
    let tls = worker.shared.tls.clients();
    let mut end_point = None;
    let mut greeting = Greeting::new();
    let mut input = BytesMut::with_capacity(STARTUP_BYTES);
    loop {
        if input.is_empty() && tls.is_some() && begins_with_tls(&stream).await {
            let Step::DirectTls(asked) = greeting.read(&[TLS_HANDSHAKE]).map_err(|_| Refused::Silently)? else {
                return Err(Refused::Silently);
            };
            stream = accept(client, stream, tls.as_deref(), true, &mut end_point).await?;
            greeting = asked.established();
        }
        match timeout_at(deadline, stream.read_buf(&mut input)).await {
            Ok(Ok(1..)) => {}
            // who never said anything may have looked only whether somebody listens
            Ok(_) if input.is_empty() => return Err(Refused::Silently),
            Ok(_) => return Err(Refused::Logged(EOF)),
            Err(_) => return Err(refuse(&worker.shared, Wire::new(stream), &Denial::LoginTimeout(false))),
        }
        match greeting.read(&input) {
            Ok(Step::More(same)) => greeting = same,
            Ok(Step::Ssl(asked)) => {
                input.clear();
                let with_tls = tls.is_some() && matches!(stream, Stream::Tcp(_));
                stream.write_all(if with_tls { b"S" } else { b"N" }).await.map_err(|_| Refused::Silently)?;
                greeting = if with_tls {
                    stream = accept(client, stream, tls.as_deref(), false, &mut end_point).await?;
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
                let limit = worker.shared.cancel_wait();
                let asked = worker.shared.cancel(request.process, &request.key);
                let asked = Box::pin(timeout(limit, asked)).await;
                return Err(Refused::Logged(asked.unwrap_or("cancel_wait_timeout")));
            }
            Ok(Step::Startup(startup, length)) => {
                let unencrypted = matches!(stream, Stream::Tcp(_));
                let wire = Wire::new(stream);
                if unencrypted && tls.as_ref().is_some_and(|tls| tls.is_required()) {
                    return Err(refuse(&worker.shared, wire, &Denial::TlsRequired));
                }
                let rest = input.split_off(length);
                let certified = wire.certified_names();
                let is_encrypted = wire.is_encrypted();
                return Ok(Box::new(Arrived { wire, startup, rest, end_point, is_encrypted, certified }));
            }
            Ok(Step::DirectTls(_)) => return Err(Refused::Silently),
            Err(refusal) => {
                return Err(match startup_report(&worker.shared, &refusal, &input) {
                    Some(report) => tell(Wire::new(stream), report),
                    None => Refused::Silently,
                });
            }
        }
    }
}

/// The words for a startup packet that is none of ours; `None`: there are none.
fn startup_report(shared: &Shared, refusal: &greeting::Refusal, input: &[u8]) -> Option<Report> {
    if !shared.is_pgbouncer() {
        return refusal.sqlstate().map(|sqlstate| Report::error(sqlstate, refusal.to_string()));
    }
    let words = match refusal {
        greeting::Refusal::Length if input.get(4..8) == Some(&greeting::CANCEL_CODE.to_be_bytes()) => return None,
        greeting::Refusal::Version(0x0002_0000) => "old V2 protocol not supported".to_owned(),
        greeting::Refusal::Version(_) | greeting::Refusal::Length => error::bad_packet_header(input),
        _ => refusal.to_string(),
    };
    Some(error::in_pgbouncers_words(&words))
}

async fn begins_with_tls(stream: &Stream) -> bool {
    let Stream::Tcp(stream) = stream else { return false };
    let mut first = [0];
    matches!(stream.peek(&mut first).await, Ok(1) if first[0] == TLS_HANDSHAKE)
}

async fn accept(
    client: &Client,
    stream: Stream,
    tls: Option<&tls::ClientTls>,
    direct: bool,
    end_point: &mut Option<Arc<[u8]>>,
) -> Result<Stream, Refused> {
    let (Stream::Tcp(stream), Some(tls)) = (stream, tls) else { return Err(Refused::Silently) };
    match tls::accept(stream, tls, direct).await {
        Ok((stream, binding)) => {
            *end_point = binding;
            client.known(|who| who.tls = Some(tls::describe(stream.ssl()).into()));
            Ok(Stream::Tls(Box::new(stream)))
        }
        Err(error) => {
            tracing::info!(%error, "a TLS handshake with a client failed");
            {
                use crate::pgbouncer::log::{Level, say};
                say(Level::Warning, format_args!("{client} TLS handshake error: {error}"));
            }
            Err(Refused::Silently)
        }
    }
}

fn log_attempt(shared: &Shared, client: &Client) {
    use crate::pgbouncer::log::{Level, say};
    let config = shared.config();
    if config.dialect.pgbouncer().is_none_or(|loaded| loaded.settings.log_connections == 0) {
        return;
    }
    let who = client.who();
    let (database, user) = (who.database.as_deref().unwrap_or(""), who.user.as_deref().unwrap_or(""));
    let tls = who.tls.as_deref().unwrap_or("no");
    let replication = match who.replication {
        Replication::No => "no",
        Replication::Physical => "yes",
        Replication::Logical => "database",
    };
    say(
        Level::Log,
        format_args!("{client} login attempt: db={database} user={user} tls={tls} replication={replication}"),
    );
}

/// PgBouncer's line at the end of a client.
pub(super) fn log_end(shared: &Shared, client: &Client, why: &str) {
    use crate::pgbouncer::log::{Level, say};
    let config = shared.config();
    if config.dialect.pgbouncer().is_some_and(|loaded| loaded.settings.log_disconnections != 0) {
        say(Level::Log, format_args!("{client} closing because: {why} (age={}s)", client.age()));
    }
}

/// PgBouncer's line when a client is told something.
pub(super) fn log_error(shared: &Shared, client: &Client, words: &str) {
    use crate::pgbouncer::log::{Level, say};
    let config = shared.config();
    if config.dialect.pgbouncer().is_some_and(|loaded| loaded.settings.log_pooler_errors != 0) {
        say(Level::Warning, format_args!("{client} pooler error: {words}"));
    }
}
