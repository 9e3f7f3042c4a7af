//! What a startup packet asks for besides user and database, and the pool that a session of that user gets its servers from.

use std::sync::Arc;

use pgwire::greeting::Startup;
use pgwire::options;
use pgwire::report::Report;
use pgwire::sqlstate;

use crate::auth;
use crate::clients::{Client, Replication};
use crate::config::Login;
use crate::entry::Entry;
use crate::error::in_pgbouncers_words;
use crate::pgbouncer::Settings as PgBouncerSettings;
use crate::pool::{Opener, Pool};
use crate::routing::Route;
use crate::settings::{Setting, Settings};
use crate::shared::Shared;

/// Parameters that PgBouncer tracks for each client, besides those of `track_extra_parameters`.
const TRACKED: [&str; 5] =
    ["DateStyle", "client_encoding", "TimeZone", "standard_conforming_strings", "application_name"];

/// The settings in a startup packet, and the route that it asks for.
pub(super) fn settings(startup: &Startup, route: &mut Option<Route>) -> Result<Settings, Report> {
    let invalid = |text: String| Report::error(sqlstate::INVALID_PARAMETER_VALUE, text);
    let mut pairs: Vec<(Vec<u8>, Vec<u8>)> = Vec::new();
    for (name, value) in startup.parameters() {
        match name {
            b"user" | b"database" | b"replication" => {}
            b"options" => {
                pairs
                    .extend(options::parse(value).map_err(|error| Report::error(error.sqlstate(), error.to_string()))?);
            }
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

/// The same for PgBouncer's users: only tracked parameters are taken, others have to be on the list of those that are ignored.
pub(super) fn tracked(startup: &Startup, given: &PgBouncerSettings, client: &Client) -> Result<Settings, Report> {
    let list = |text: &str| -> Vec<String> { text.split(',').map(|part| part.trim().to_ascii_lowercase()).collect() };
    let extra = list(&given.track_extra_parameters);
    let ignored = list(&given.ignore_startup_parameters);
    let is_tracked = |name: &str| {
        TRACKED.iter().any(|known| known.eq_ignore_ascii_case(name)) || extra.contains(&name.to_ascii_lowercase())
    };
    let is_ignored = |name: &str| ignored.contains(&name.to_ascii_lowercase());
    let mut settings = Settings::default();
    let mut take = |name: &str, value: &[u8]| {
        let value = String::from_utf8_lossy(value);
        settings.set(name, Setting::Value(value.as_ref().into()));
    };
    let mut application_name = None;
    for (name, value) in startup.parameters() {
        let name = String::from_utf8_lossy(name).into_owned();
        match name.as_str() {
            "user" | "database" | "replication" => {}
            "options" => {
                for (name, value) in options::parse(value).map_err(|error| match error {
                    options::BadOption::Switch | options::BadOption::NoValue(_) => in_pgbouncers_words(
                        "unsupported options startup parameter: only '-c config=val' and '--config=val' are allowed",
                    ),
                })? {
                    let name = String::from_utf8_lossy(&name).into_owned();
                    if is_tracked(&name) {
                        take(&name, &value);
                    } else if !is_ignored(&name) && !is_ignored("options") {
                        let text = format!("unsupported startup parameter in options: {name}");
                        return Err(in_pgbouncers_words(&text));
                    }
                }
            }
            "application_name" => application_name = Some(String::from_utf8_lossy(value).into_owned()),
            name if name.starts_with("_pq_.") => {}
            name if is_tracked(name) => take(name, value),
            name if is_ignored(name) => {}
            name => return Err(in_pgbouncers_words(&format!("unsupported startup parameter: {name}"))),
        }
    }
    if given.application_name_add_host != 0 {
        let name = application_name.unwrap_or_else(|| "app".to_owned());
        application_name = Some(format!("{name} - {}", client.peer.place(client.local)));
    }
    if let Some(name) = application_name {
        take("application_name", name.as_bytes());
    }
    Ok(settings)
}

/// What a startup packet says of replication.
pub(super) fn replication(startup: &Startup) -> Result<Replication, Report> {
    let Some(value) = startup.get("replication") else { return Ok(Replication::No) };
    let word = String::from_utf8_lossy(value).to_ascii_lowercase();
    let is_start_of = |whole: &str| !word.is_empty() && whole.starts_with(&word);
    if word == "database" {
        Ok(Replication::Logical)
    } else if is_start_of("true") || is_start_of("yes") || word == "on" || word == "1" {
        Ok(Replication::Physical)
    } else if is_start_of("false") || is_start_of("no") || (word.len() > 1 && is_start_of("off")) || word == "0" {
        Ok(Replication::No)
    } else {
        let text = format!("invalid value for parameter \"replication\": \"{}\"", word.escape_default());
        Err(Report::error(sqlstate::INVALID_PARAMETER_VALUE, text))
    }
}

/// The pool of an entry for a user and a node; made if there is none. `None` if there are too many.
pub(crate) fn pool_for(
    shared: &Arc<Shared>,
    entry: &Arc<Entry>,
    user: &Arc<str>,
    login: &auth::ServerLogin,
    node: usize,
) -> Option<Arc<Pool>> {
    let config = entry.config();
    entry.pool_of(shared, user, node, |topology| {
        let login = match &config.forced {
            Some(forced) => forced_login(shared, forced),
            None => login.clone(),
        };
        Some(Opener {
            node_name: topology.nodes[node].name.clone(),
            node,
            watch: entry.watch.clone(),
            address: (*topology.nodes[node].address).clone(),
            turn: std::sync::atomic::AtomicUsize::new(0),
            database: entry.name.clone(),
            user: user.clone(),
            login: std::sync::Mutex::new(login),
            survey: entry.managed.then_some(entry.synchronous_commit),
            clock: shared.clock.clone(),
            ids: shared.ids.clone(),
            hashing: shared.hashing.clone(),
            hosts: shared.hosts.clone(),
            failure: std::sync::Mutex::default(),
        })
    })
}

/// The login of an entry that has one: its own password, else what is known of the user.
pub(crate) fn forced_login(shared: &Shared, forced: &Login) -> auth::ServerLogin {
    match &forced.password {
        Some(password) => auth::ServerLogin::stored(&pgwire::auth::Stored::parse(password.reveal().as_bytes())),
        None => shared.store.server_login(&forced.user),
    }
}
