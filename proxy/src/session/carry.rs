//! A client that another process has let in, and that this one goes on with.

use std::io;
use std::os::fd::OwnedFd;
use std::rc::Rc;
use std::sync::atomic::Ordering;

use socket2::{Domain, Socket};
use tokio::net::{TcpStream, UnixStream};

use super::Session;
use super::begin::{Beginning, introduce};
use super::greet::{live, local_address};
use crate::auth::Identity;
use crate::counts::{Counted, Place};
use crate::handover::{Passed, of_cancel_number};
use crate::listener::Peer;
use crate::pgbouncer::Carried;
use crate::pgbouncer::log::{Level, say};
use crate::settings::{Reported, Settings};
use crate::wire::{Stream, Wire};
use crate::worker::Worker;

/// Goes on with a client where the other process stopped; what cannot be gone on with is closed, and the log says why.
pub(crate) fn carry_on(worker: &Rc<Worker>, carried: Carried) {
    let who = format!(
        "{}/{}@{}:{}",
        carried.client.database.as_deref().unwrap_or("(nodb)"),
        carried.client.user.as_deref().unwrap_or("(nouser)"),
        carried.client.host,
        carried.client.port
    );
    if let Err(why) = begin(worker, carried) {
        say(Level::Warning, format_args!("C: {who} closing because: it cannot be carried over: {why}"));
    }
}

fn begin(worker: &Rc<Worker>, carried: Carried) -> Result<(), String> {
    let Carried { client: passed, server } = carried;
    let shared = &worker.shared;
    let user = passed.user.as_deref().ok_or("it has not logged in")?;
    let database = passed.database.as_deref().ok_or("it has no database")?;
    let entry = shared.entry(database).ok_or("there is no such database")?;
    let (stream, peer) = stream(passed.socket).map_err(|error| error.to_string())?;
    let id = shared.ids.fetch_add(1, Ordering::Relaxed) + 1;
    let keeper = &shared.keepers[worker.index];
    let enrolled = shared.clients.enrol(id, peer, local_address(&stream), &shared.clock, keeper);
    let client = enrolled.client();
    let server_login = shared.store.carried_login(user, passed.password.as_ref(), passed.keys);
    let identity = Identity { user: user.into(), server_login };
    entry.touch(shared.clock.now());
    let places = [Place::take(&entry.clients, 0), shared.admit_user(&identity.user, true)];
    let counted = Counted::always(shared, |shared| &shared.admitted);
    introduce(client, &entry, &identity);
    let (process_id, key) = of_cancel_number(passed.cancel);
    let cancel = shared.cancels.register_again(process_id, &key);
    let beginning = Beginning { settings: Settings::default(), route: None, cancel };
    let mut session = Session::new(worker, client, entry, Wire::new(stream), identity, beginning);
    let mut reported = Reported::of(&passed.parameters);
    if let Some(name) = reported.get("application_name") {
        client.known(|who| who.application_name = name.into());
    }
    worker.share(&mut reported);
    session.reported = reported;
    session.card.idle();
    let places = (counted, places, enrolled);
    match server {
        None => live(session, places),
        Some(server) => {
            session.adopt(&server)?;
            tokio::task::spawn_local(async move {
                if session.find_status().await {
                    live(session, places);
                }
            });
        }
    }
    Ok(())
}

impl Session {
    /// The server that the client had.
    fn adopt(&mut self, passed: &Passed) -> Result<(), String> {
        let socket = passed.socket.try_clone().map_err(|error| error.to_string())?;
        let (stream, _) = stream(socket).map_err(|error| error.to_string())?;
        let pool = self.pool(0).ok_or("its database has too many pools")?;
        let server = pool.adopt(passed, stream, self.worker.index);
        self.cancel.begin(&server.cancel);
        server.control.link.store(self.card.client.id, Ordering::Relaxed);
        self.card.client.link.store(server.control.origin.id, Ordering::Relaxed);
        self.server = Some(server);
        Ok(())
    }

    /// Finds out what is going on at the server that the client had; `false` if it is gone, and its client with it.
    async fn find_status(&mut self) -> bool {
        let Some(server) = &mut self.server else { return true };
        let found = server.find_status(self.client.out()).await;
        if let Err(why) = &found {
            server.control.closes(why);
            self.drop_server();
        }
        found.is_ok()
    }
}

/// The stream on a socket, and where its peer is.
fn stream(socket: OwnedFd) -> io::Result<(Stream, Peer)> {
    let socket = Socket::from(socket);
    socket.set_nonblocking(true)?;
    if socket.domain()? == Domain::UNIX {
        let stream = UnixStream::from_std(OwnedFd::from(socket).into())?;
        let peer = Peer::of(&stream);
        return Ok((Stream::Unix(stream), peer));
    }
    let stream = TcpStream::from_std(OwnedFd::from(socket).into())?;
    let peer = Peer::Tcp(stream.peer_addr()?);
    Ok((Stream::Tcp(stream), peer))
}
