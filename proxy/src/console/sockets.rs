//! Clients and servers as the console shows them, one row each.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, SystemTime};

use pgwire::auth::Secret;

use super::answer::{Column, Table, Type, Value};
use crate::clients::{Client, Replication, State, pointer};
use crate::handover::{IN_ROW, Passed};
use crate::listener::Peer;
use crate::pool::{Control, ServerState};
use crate::shared::Shared;

use Type::{Bytea, Int4, Int8, Text};

const SOCKET: [Column; 21] = [
    ("type", Text),
    ("user", Text),
    ("database", Text),
    ("replication", Text),
    ("state", Text),
    ("addr", Text),
    ("port", Int4),
    ("local_addr", Text),
    ("local_port", Int4),
    ("connect_time", Text),
    ("request_time", Text),
    ("wait", Int4),
    ("wait_us", Int4),
    ("close_needed", Int4),
    ("ptr", Text),
    ("link", Text),
    ("remote_pid", Int4),
    ("tls", Text),
    ("application_name", Text),
    ("prepared_statements", Int4),
    ("id", Int4),
];

const BUFFERS: [Column; 7] = [
    ("recv_pos", Int4),
    ("pkt_pos", Int4),
    ("pkt_remain", Int4),
    ("send_pos", Int4),
    ("send_remain", Int4),
    ("pkt_avail", Int4),
    ("send_avail", Int4),
];

pub(super) fn clients(shared: &Shared) -> Table {
    let mut table = Table::new(&SOCKET);
    let now = shared.clock.now();
    for client in shared.clients.all().iter().filter(|client| client.state().0 != State::Login) {
        table.push(client_row(client, now, client_state(client)));
    }
    table
}

pub(super) fn servers(shared: &Shared) -> Table {
    let mut table = Table::new(&SOCKET);
    for control in controls(shared) {
        let state = server_state(control.state().0);
        table.push(server_row(&control, state));
    }
    table
}

/// Clients and servers with their buffers, of which there are none here while nothing waits.
pub(super) fn all(shared: &Shared, active_only: bool) -> Table {
    let columns: Vec<Column> = SOCKET.iter().chain(&BUFFERS).copied().collect();
    let mut table = Table::new(&columns);
    let now = shared.clock.now();
    let with_buffers = |mut row: Vec<Value>| {
        row.extend((0..BUFFERS.len()).map(|_| 0.into()));
        row
    };
    for client in shared.clients.all() {
        let state = match client.state().0 {
            State::Login => "cl_login",
            State::Waiting => "cl_waiting",
            State::Idle | State::Busy | State::IdleInTransaction => "cl_active",
        };
        if !active_only || client.link.load(Ordering::Relaxed) != 0 {
            table.push(with_buffers(client_row(&client, now, state)));
        }
    }
    for control in controls(shared) {
        let state = match control.state().0 {
            ServerState::Login => "sv_login",
            ServerState::Idle => "sv_idle",
            ServerState::Used => "sv_used",
            ServerState::Tested => "sv_tested",
            ServerState::Active => "sv_active",
        };
        if !active_only || control.state().0 == ServerState::Active {
            table.push(with_buffers(server_row(&control, state)));
        }
    }
    table
}

/// The connections that another process may have, and of those what it is to know; secrets only `for_heir`.
pub(super) fn descriptors(passed: &[Passed], for_heir: bool) -> Table {
    let mut table = Table::new(&[
        ("fd", Int4),
        ("task", Text),
        ("user", Text),
        ("database", Text),
        ("addr", Text),
        ("port", Int4),
        ("cancel", Int8),
        ("link", Int4),
        ("client_encoding", Text),
        ("std_strings", Text),
        ("datestyle", Text),
        ("timezone", Text),
        ("password", Text),
        ("scram_client_key", Bytea),
        ("scram_server_key", Bytea),
    ]);
    for passed in passed {
        let secret = |secret: &Secret| String::from_utf8_lossy(secret.reveal()).into_owned();
        let keys = passed.keys.as_ref().filter(|_| for_heir);
        let cancel = if for_heir { passed.cancel } else { 0 };
        let mut row: Vec<Value> = vec![
            passed.number.into(),
            passed.task.word().into(),
            passed.user.clone().into(),
            passed.database.clone().into(),
            passed.host.clone().into(),
            i32::from(passed.port).into(),
            // bit by bit: PgBouncer's keys use the sign
            Value::Int(i64::from_ne_bytes(cancel.to_ne_bytes())),
            passed.link.into(),
        ];
        row.extend(IN_ROW.iter().map(|name| Value::from(passed.parameter(name).map(str::to_owned))));
        row.push(passed.password.as_ref().filter(|_| for_heir).map(secret).into());
        row.push(keys.map(|keys| bytea(keys.client_key.reveal())).into());
        row.push(keys.map(|keys| bytea(keys.server_key.reveal())).into());
        table.push(row);
    }
    table
}

/// All parameters of the connections that SHOW FDS gave last: of those it names four.
pub(super) fn parameters(shared: &Shared) -> Table {
    let mut table = Table::new(&[("fd", Int4), ("name", Text), ("value", Text)]);
    for (number, name, value) in shared.handover.parameters() {
        table.push(vec![number.into(), name.into(), value.into()]);
    }
    table
}

/// PostgreSQL's hexadecimal form of bytes.
fn bytea(bytes: &[u8]) -> String {
    bytes.iter().fold("\\x".to_owned(), |text, byte| text + &format!("{byte:02x}"))
}

fn controls(shared: &Shared) -> Vec<Arc<Control>> {
    let mut controls: Vec<_> =
        shared.entries().iter().flat_map(|entry| entry.pools()).flat_map(|(_, pool)| pool.controls()).collect();
    controls.sort_by_key(|control| control.origin.id);
    controls
}

fn client_state(client: &Client) -> &'static str {
    match client.state().0 {
        State::Login => "login",
        State::Waiting => "waiting",
        State::Idle if client.link.load(Ordering::Relaxed) == 0 => "idle",
        State::Idle | State::Busy | State::IdleInTransaction => "active",
    }
}

fn server_state(state: ServerState) -> &'static str {
    match state {
        ServerState::Login => "new",
        ServerState::Idle => "idle",
        ServerState::Used => "used",
        ServerState::Tested => "tested",
        ServerState::Active => "active",
    }
}

fn client_row(client: &Client, now: crate::clock::Moment, state: &str) -> Vec<Value> {
    let who = client.who();
    let wait = match client.state() {
        (State::Waiting, since) => now.since(since),
        _ => Duration::ZERO,
    };
    let text = |text: Option<&str>, none: &str| Value::from(text.unwrap_or(none));
    let (address, port) = match client.peer {
        Peer::Tcp(address) => (address.ip().to_string(), address.port()),
        Peer::Unix { .. } => ("unix".to_owned(), client.local.map_or(6432, |local| local.port())),
    };
    let (local, local_port) = match client.local {
        Some(local) => (local.ip().to_string(), local.port()),
        None => ("unix".to_owned(), port),
    };
    let remote_pid = match client.peer {
        Peer::Unix { pid, .. } => pid,
        Peer::Tcp(_) => 0,
    };
    vec![
        "C".into(),
        text(who.user.as_deref(), "(nouser)"),
        text(who.database.as_deref(), "(nodb)"),
        who.replication.word().into(),
        state.into(),
        address.into(),
        i32::from(port).into(),
        local.into(),
        i32::from(local_port).into(),
        time(client.connected).into(),
        time(client.requested()).into(),
        wait.as_secs().into(),
        u64::from(wait.subsec_micros()).into(),
        0.into(),
        format!("{:#x}", pointer(client.id)).into(),
        link(client.link.load(Ordering::Relaxed)),
        remote_pid.into(),
        text(who.tls.as_deref(), ""),
        (*who.application_name).into(),
        client.prepared.load(Ordering::Relaxed).into(),
        client.id.into(),
    ]
}

fn server_row(control: &Control, state: &str) -> Vec<Value> {
    let origin = &control.origin;
    let (_, since) = control.state();
    vec![
        "S".into(),
        (*origin.user).into(),
        (*origin.database).into(),
        Replication::No.word().into(),
        state.into(),
        origin.host.clone().into(),
        i32::from(origin.port).into(),
        origin.local.0.clone().into(),
        i32::from(origin.local.1).into(),
        time(origin.connected).into(),
        time(control.time_of(since).max(origin.connected)).into(),
        0.into(),
        0.into(),
        control.is_retired().into(),
        format!("{:#x}", pointer(origin.id)).into(),
        link(control.link.load(Ordering::Relaxed)),
        i32::try_from(origin.process_id).unwrap_or(0).into(),
        origin.tls.as_deref().unwrap_or("").into(),
        (*control.application_name()).into(),
        control.prepared.load(Ordering::Relaxed).into(),
        origin.id.into(),
    ]
}

fn link(id: u64) -> Value {
    if id == 0 { "".into() } else { format!("{:#x}", pointer(id)).into() }
}

/// `YYYY-MM-DD HH:MM:SS TZ`.
fn time(time: SystemTime) -> String {
    jiff::Timestamp::try_from(time).map_or_else(
        |_| String::new(),
        |time| {
            jiff::ZonedDateTime::new(time, jiff::tz::TimeZone::system()).strftime("%Y-%m-%d %H:%M:%S %Z").to_string()
        },
    )
}
