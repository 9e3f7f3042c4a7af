//! A server is brought to what the session set, and the client to what the server reports.

use bytes::BytesMut;
use pgwire::frontend::write_query;
use pgwire::report::Report;
use pgwire::{backend, frontend, sqlstate};
use tokio::time::timeout;

use super::Session;
use super::borrow::NoServer;
use super::give_back::OWN_ROUND_TRIP;
use super::lost::Lost;
use super::requests::SHORT;
use super::turn::End;
use crate::error::Denial;
use crate::pgbouncer::log;
use crate::pool::Control;
use crate::settings::{Reported, Setting, Settings};

/// The settings that say who a session is, in the order in which they are made: the first undoes the second.
const IDENTITY: [&str; 2] = ["session_authorization", "role"];

impl Session {
    /// Brings the borrowed server to what the session set, and the client to what the server reports.
    pub(super) async fn bring(&mut self) -> Result<(), NoServer> {
        let Some(server) = self.server.as_mut() else { return Ok(()) };
        let server = &mut **server;
        let is_there = self.reported.is(&server.reported) && self.settings.is(&server.applied);
        if is_there && self.lost == Lost::No && !self.login.is_due() {
            return Ok(());
        }
        let mut out = BytesMut::new();
        let again = self.login.take();
        if !again.is_empty() {
            self.reported = server.reported.clone(); // the server was the session's before
        }
        let again: Vec<(&str, &str)> = again.iter().map(|(name, value)| (&**name, &**value)).collect();
        let wanted = self.reported.to_assign(&server.reported);
        if self.is_plain && !wanted.is_empty() {
            log_applied(&server.control, &wanted);
        }
        let mut asked = assign(&mut out, &wanted);
        asked += assign(&mut out, &again);
        asked += make(&mut out, &self.settings, &server.applied);
        if self.lost == Lost::Told {
            asked += Self::failed_transaction(&mut out);
        }
        if asked > 0 {
            if out.starts_with(b"P") {
                server.unnamed = None;
            }
            let failed = self.lost == Lost::Told;
            match timeout(OWN_ROUND_TRIP, server.round_trip(&out, asked)).await {
                Ok(Ok(_)) if failed => {} // it was to fail
                Ok(Ok(answers)) => {
                    if let Some(body) = answers.failed {
                        server.control.closes("invalid server parameter");
                        self.drop_server();
                        if self.is_plain {
                            return Err(NoServer::End(End::SentAway(Denial::Told("invalid server parameter".into()))));
                        }
                        return Err(NoServer::Words(body));
                    }
                }
                Ok(Err(why)) => return Err(self.bring_failed(&why)),
                Err(_) => return Err(self.bring_failed("it did not answer in time")),
            }
        }
        let Some(server) = self.server.as_mut() else { return Ok(()) };
        // from here on the failed transaction is the server's own, and ends there
        self.lost = Lost::No;
        server.applied = self.settings.clone();
        if !self.reported.is(&server.reported) {
            if self.is_plain {
                log_canonical(&server.control, &self.reported, &server.reported);
            }
            for (name, value) in self.reported.to_tell(&server.reported) {
                let _ = backend::write_parameter_status(self.client.out(), name.as_bytes(), value.as_bytes());
            }
            let same = self.reported.to_tell(&server.reported).is_empty();
            if same {
                server.reported = self.reported.clone();
            } else {
                self.reported = server.reported.clone();
            }
        }
        Ok(())
    }

    fn bring_failed(&mut self, why: &str) -> NoServer {
        self.drop_server();
        self.entry.suspect(self.node);
        let text = "the server was lost before the transaction began";
        NoServer::Told(
            Report::error(sqlstate::SERIALIZATION_FAILURE, text).detail(why).hint("It is safe to run it again."),
        )
    }
}

fn log_applied(server: &Control, wanted: &[(&str, &str)]) {
    let quoted = |value: &str| value.replace('\'', "''");
    let sets: Vec<String> = wanted.iter().map(|(name, value)| format!("SET {name}='{}'", quoted(value))).collect();
    log::say(log::Level::Debug, format_args!("{server} varcache_apply: {}", sets.join(";")));
}

fn log_canonical(server: &Control, asked: &Reported, told: &Reported) {
    for (name, value) in asked.to_tell(told) {
        let Some(asked) = asked.get(name) else { continue };
        log::say(
            log::Level::Debug,
            format_args!("{server} varcache_set_canonical: setting {name} to its canonical version {asked} -> {value}"),
        );
    }
}

/// Appends the messages that set reported parameters; returns how many ReadyForQuery they bring. Values travel as
/// parameters, never as SQL.
fn assign(out: &mut BytesMut, values: &[(&str, &str)]) -> usize {
    if values.is_empty() {
        return 0;
    }
    frontend::parse(out, b"", b"SELECT pg_catalog.set_config($1, $2, false)", &[]).expect(SHORT);
    for (name, value) in values {
        frontend::bind(out, b"", b"", &[Some(name.as_bytes()), Some(value.as_bytes())]).expect(SHORT);
        frontend::Execute { portal: b"", rows: 0 }.write(out).expect(SHORT);
    }
    out.extend_from_slice(&frontend::SYNC);
    1
}

/// Appends the messages that bring `server` from the settings it has to those of the session; returns how many
/// ReadyForQuery they bring.
fn make(out: &mut BytesMut, settings: &Settings, server: &Settings) -> usize {
    if settings.is(server) || settings.equals(server) {
        return 0;
    }
    // Who the session is comes off first and is put on last: the rest is set by the role that logged in.
    let worn = IDENTITY.iter().rev().filter(|name| server.get(name).is_some()).copied();
    let dropped = settings.to_reset(server).into_iter().filter(|name| !IDENTITY.contains(name));
    let mut asked = 0;
    for name in worn.chain(dropped) {
        let reset = format!("RESET \"{}\"", name.replace('"', "\"\""));
        write_query(out, reset.as_bytes()).expect(SHORT);
        asked += 1;
    }
    let others = settings.to_make(server).into_iter().filter(|(name, _)| !IDENTITY.contains(name));
    let identity = IDENTITY.iter().filter_map(|name| settings.get(name).map(|setting| (*name, setting)));
    for (name, setting) in others.chain(identity) {
        asked += match setting {
            Setting::Value(value) => assign(out, &[(name, value)]),
            Setting::Statement(sql) => {
                write_query(out, sql.as_bytes()).expect(SHORT);
                1
            }
        };
    }
    asked
}
