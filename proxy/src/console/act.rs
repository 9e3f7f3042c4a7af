//! What the commands of the console do, and what they refuse.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use pgwire::report::Report;
use pgwire::sqlstate::{self, SqlState};
use tokio::sync::oneshot;
use tokio::time::{Instant, sleep};
use topology::Verdict;

use super::answer::Table;
use super::command::{Command, is_ignored};
use super::{Access, Order, show};
use crate::control::switch_over;
use crate::counts::Ending;
use crate::entry::Entry;
use crate::error::Denial;
use crate::pgbouncer::log::{Level, say};
use crate::shared::{CONSOLE, Shared};

/// Time for open transactions to end before another node becomes primary.
const DRAIN: Duration = Duration::from_secs(2);
/// Between two looks at whether what is waited for has come.
const POLL: Duration = Duration::from_millis(20);
/// Time for clients and servers to take what they were sent before SUSPEND closes them: PgBouncer's default.
const SUSPEND_TIMEOUT: Duration = Duration::from_secs(10);

/// Why a command was not carried out.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Refusal {
    pub(super) text: String,
    pub(super) sqlstate: SqlState,
}

impl Refusal {
    pub(super) fn new(text: impl Into<String>) -> Self {
        Self { text: text.into(), sqlstate: sqlstate::PROTOCOL_VIOLATION }
    }

    /// There is no such command.
    pub(super) fn unknown(said: &str) -> Self {
        Self::new(format!("invalid command '{said}', use SHOW HELP;"))
    }
}

/// Carries a command out; the rows that it answers, if it does.
pub(super) async fn carry_out(
    shared: &Arc<Shared>,
    command: &Command,
    access: Access,
    notices: &mut Vec<Report>,
) -> Result<Option<Table>, Refusal> {
    match command {
        Command::Empty => {}
        Command::Show(what, said) => return show::table(shared, (what, said), access, notices),
        Command::Set(key, value) => set(shared, key, value, notices).await?,
        Command::Reload => reload(shared).await?,
        Command::Pause(None) => pause_all(shared).await?,
        Command::Pause(Some(name)) => pause(shared, name).await?,
        Command::Resume(None) => resume_all(shared)?,
        Command::Resume(Some(name)) => resume(shared, name)?,
        Command::Suspend => suspend(shared).await?,
        Command::Disable(name) => able(shared, name.as_deref(), "DISABLE")?,
        Command::Enable(name) => able(shared, name.as_deref(), "ENABLE")?,
        Command::Reconnect(name) => {
            log_command("RECONNECT", name.as_deref());
            entries(shared, name.as_deref(), "cannot reconnect admin db")?.iter().for_each(|entry| reconnect(entry));
        }
        Command::WaitClose(name) => {
            log_command("WAIT_CLOSE", name.as_deref());
            wait_close(&entries(shared, name.as_deref(), "cannot wait in admin db")?).await;
        }
        Command::Kill(name) => kill(shared, name.as_deref()).await?,
        Command::KillClient(id) => kill_client(shared, id.as_deref()).await?,
        Command::Shutdown(how) => shutdown(shared, *how).await?,
        Command::GiveWay => give_way(shared).await?,
        Command::Switchover(node) => switchover(shared, node.as_deref()).await?,
    }
    Ok(None)
}

/// Another primary, of the one cluster that there is; open transactions get the time that the command line gives them.
async fn switchover(shared: &Shared, node: Option<&str>) -> Result<(), Refusal> {
    let watches: Vec<_> = shared.watches().values().collect();
    let [watch] = watches.as_slice() else {
        return Err(Refusal::new("SWITCHOVER is for one cluster: use pgsteady switchover, which takes its name"));
    };
    match switch_over(watch, node, DRAIN, false).await {
        Verdict::Done { .. } => Ok(()),
        Verdict::Refused { why, .. } => Err(Refusal::new(format!("not begun: {why}"))),
        Verdict::Undone { why } => Err(Refusal::new(format!("undone, the same primary serves: {why}"))),
    }
}

fn log_command(name: &str, database: Option<&str>) {
    match database {
        Some(database) => say(Level::Log, format_args!("{name} '{database}' command issued")),
        None => say(Level::Log, format_args!("{name} command issued")),
    }
}

/// The entry of this name, or all.
fn entries(shared: &Arc<Shared>, name: Option<&str>, of_console: &str) -> Result<Vec<Arc<Entry>>, Refusal> {
    match name {
        None => Ok(shared.entries()),
        Some(CONSOLE) => Err(Refusal::new(format!("{of_console}: {CONSOLE}"))),
        Some(name) => Ok(vec![named(shared, name)?]),
    }
}

fn named(shared: &Arc<Shared>, name: &str) -> Result<Arc<Entry>, Refusal> {
    let known = shared.config().databases.contains_key(name) || shared.entries().iter().any(|e| *e.name == *name);
    let entry = if known { shared.entry(name) } else { None };
    entry.ok_or_else(|| Refusal::new(format!("no such database: {name}")))
}

/// A wait on the program, which answers unless it ends.
async fn answer<T>(shared: &Shared, order: impl FnOnce(oneshot::Sender<T>) -> Order) -> Result<T, Refusal> {
    let (sender, receiver) = oneshot::channel();
    let ending = || Refusal::new("pooler is shutting down");
    shared.orders.send(order(sender)).await.map_err(|_| ending())?;
    receiver.await.map_err(|_| ending())
}

async fn reload(shared: &Arc<Shared>) -> Result<(), Refusal> {
    log_command("RELOAD", None);
    answer(shared, Order::Reload).await?.map_err(|_| Refusal {
        text: "RELOAD failed, see logs for additional details".to_owned(),
        sqlstate: sqlstate::CONFIG_FILE_ERROR,
    })
}

async fn set(shared: &Arc<Shared>, key: &str, value: &str, notices: &mut Vec<Report>) -> Result<(), Refusal> {
    if is_ignored(key) {
        notices.push(Report::notice("SET ignored").terse());
        return Ok(());
    }
    if !shared.is_pgbouncer() {
        return Err(Refusal::new("SET failed: settings are changed in pgsteady.toml, and taken by RELOAD"));
    }
    let (key, value) = (key.to_owned(), value.to_owned());
    let done = answer(shared, |sender| Order::Set(key, value, sender)).await?;
    if let Some(notice) = done.map_err(|_| Refusal::new("SET failed"))? {
        notices.push(Report::notice(notice).terse());
    }
    Ok(())
}

async fn pause_all(shared: &Arc<Shared>) -> Result<(), Refusal> {
    if shared.is_paused() || shared.is_suspended() {
        return Err(Refusal::new("already suspended/paused"));
    }
    log_command("PAUSE", None);
    shared.set_paused(true);
    let undo = Undo(Some(|| shared.set_paused(false)));
    paused(&shared.entries()).await;
    undo.keep();
    Ok(())
}

async fn pause(shared: &Arc<Shared>, name: &str) -> Result<(), Refusal> {
    if name == CONSOLE {
        return Err(Refusal::new(format!("cannot pause admin db: {CONSOLE}")));
    }
    let entry = named(shared, name)?;
    log_command("PAUSE", Some(name));
    entry.set_paused(true);
    let undo = Undo(Some(|| {
        entry.set_paused(false);
        shared.open_gate();
    }));
    paused(std::slice::from_ref(&entry)).await;
    undo.keep();
    Ok(())
}

/// Waits until no session has a server; idle ones are closed.
async fn paused(entries: &[Arc<Entry>]) {
    loop {
        let pools: Vec<_> = entries.iter().flat_map(|entry| entry.pools()).collect();
        pools.iter().for_each(|(_, pool)| pool.close_idle("pause mode"));
        if pools.iter().all(|(_, pool)| pool.counts().servers == pool.counts().opening) {
            return;
        }
        sleep(POLL).await;
    }
}

/// Takes something back if the wait for it is given up.
struct Undo<F: FnOnce()>(Option<F>);

impl<F: FnOnce()> Undo<F> {
    fn keep(mut self) {
        self.0 = None;
    }
}

impl<F: FnOnce()> Drop for Undo<F> {
    fn drop(&mut self) {
        if let Some(undo) = self.0.take() {
            undo();
        }
    }
}

pub(crate) fn resume_all(shared: &Arc<Shared>) -> Result<(), Refusal> {
    if shared.ending().is_some() {
        return Err(Refusal::new("pooler is shutting down"));
    }
    // KILL pauses PgBouncer's databases one by one, and they are resumed one by one
    let any_entry = || !shared.is_pgbouncer() && shared.entries().iter().any(|entry| entry.is_paused());
    if !shared.is_paused() && !shared.is_suspended() && !any_entry() {
        return Err(Refusal::new("pooler is not paused/suspended"));
    }
    log_command("RESUME", None);
    shared.set_paused(false);
    shared.set_suspended(false);
    Ok(())
}

fn resume(shared: &Arc<Shared>, name: &str) -> Result<(), Refusal> {
    let entry = named(shared, name)?;
    if !entry.is_paused() {
        return Err(Refusal::new(format!("database {name} is not paused")));
    }
    log_command("RESUME", Some(name));
    entry.set_paused(false);
    shared.open_gate();
    Ok(())
}

/// No client is read from; ready when all have taken what they were sent, and those are gone that did not in time.
async fn suspend(shared: &Arc<Shared>) -> Result<(), Refusal> {
    if shared.is_paused() || shared.is_suspended() {
        return Err(Refusal::new("already suspended/paused"));
    }
    if shared.entries().iter().any(|entry| entry.is_paused()) {
        return Err(Refusal::new("cannot suspend with paused databases"));
    }
    log_command("SUSPEND", None);
    shared.set_suspended(true);
    let timeout = shared.config().dialect.pgbouncer().map(|loaded| loaded.settings.suspend_timeout.duration());
    let deadline = Instant::now() + timeout.unwrap_or(SUSPEND_TIMEOUT);
    loop {
        sleep(POLL).await;
        let mut behind = shared.clients.all();
        behind.retain(|client| client.behind.load(Ordering::Relaxed));
        if behind.is_empty() {
            return Ok(());
        }
        if Instant::now() >= deadline {
            behind.iter().for_each(|client| client.send_away(Denial::Told("suspend_timeout".to_owned())));
        }
    }
}

fn able(shared: &Arc<Shared>, name: Option<&str>, command: &str) -> Result<(), Refusal> {
    let name = name.ok_or_else(|| Refusal::new("a database is required"))?;
    let disables = command == "DISABLE";
    if name == CONSOLE {
        return Err(Refusal::new(format!("cannot {} admin db: {CONSOLE}", command.to_ascii_lowercase())));
    }
    let entry = named(shared, name)?;
    log_command(command, Some(name));
    entry.set_disabled(disables);
    Ok(())
}

fn reconnect(entry: &Entry) {
    entry.pools().iter().for_each(|(_, pool)| pool.retire());
}

async fn wait_close(entries: &[Arc<Entry>]) {
    let waits = |entry: &Arc<Entry>| {
        entry.pools().iter().any(|(_, pool)| pool.controls().iter().any(|control| control.is_retired()))
    };
    while entries.iter().any(waits) {
        sleep(POLL).await;
    }
}

/// Sends the clients of a database away, closes its servers, and pauses it.
async fn kill(shared: &Arc<Shared>, name: Option<&str>) -> Result<(), Refusal> {
    let is_pgbouncer = shared.is_pgbouncer();
    if (name.is_none() || is_pgbouncer) && (shared.is_paused() || shared.is_suspended()) {
        return Err(Refusal::new("already suspended/paused"));
    }
    let entries = entries(shared, name, "cannot kill admin db")?;
    log_command("KILL", name);
    match name {
        None if !is_pgbouncer => shared.set_paused(true),
        _ => entries.iter().for_each(|entry| entry.set_paused(true)),
    }
    let of_these = |database: Option<&str>| {
        database.is_some_and(|database| {
            database != CONSOLE && (name.is_none() || entries.iter().any(|entry| *entry.name == *database))
        })
    };
    let clients: Vec<_> =
        shared.clients.all().into_iter().filter(|client| of_these(client.who().database.as_deref())).collect();
    let denial = if is_pgbouncer { Denial::DatabaseRemoved } else { Denial::Killed };
    clients.iter().for_each(|client| client.send_away(denial.clone()));
    for entry in &entries {
        for (_, pool) in entry.pools() {
            pool.close_idle("admin forced disconnect");
            pool.controls().iter().for_each(|control| control.closes("admin forced disconnect"));
        }
    }
    gone(shared, &clients.iter().map(|client| client.id).collect::<Vec<_>>()).await;
    Ok(())
}

async fn kill_client(shared: &Arc<Shared>, id: Option<&str>) -> Result<(), Refusal> {
    let number = id.and_then(|id| id.parse::<u64>().ok());
    let number = number.ok_or_else(|| Refusal::new("invalid client pointer supplied"))?;
    let client = shared.clients.get(number).ok_or_else(|| Refusal::new("client not found"))?;
    client.send_away(Denial::Killed);
    gone(shared, &[number]).await;
    Ok(())
}

/// Waits until these clients are gone, a second at most.
async fn gone(shared: &Shared, ids: &[u64]) {
    for _ in 0..50 {
        if ids.iter().all(|id| shared.clients.get(*id).is_none()) {
            return;
        }
        sleep(POLL).await;
    }
}

/// What SHOW FDS gave is another process's; clients that were not given stay here until they leave.
async fn give_way(shared: &Arc<Shared>) -> Result<(), Refusal> {
    if !shared.handover.is_given() {
        return Err(Refusal::new("nothing was handed over: SUSPEND and SHOW FDS come first"));
    }
    log_command("SHUTDOWN HANDED_OVER", None);
    answer(shared, Order::GiveWay).await
}

async fn shutdown(shared: &Arc<Shared>, ending: Option<Ending>) -> Result<(), Refusal> {
    if ending.is_some() && shared.ending().is_some() {
        return Err(Refusal::new("already shutting down"));
    }
    match ending {
        None => log_command("SHUTDOWN", None),
        Some(Ending::WaitForServers) => log_command("SHUTDOWN WAIT_FOR_SERVERS", None),
        Some(Ending::WaitForClients) => log_command("SHUTDOWN WAIT_FOR_CLIENTS", None),
    }
    let _ = shared.orders.send(Order::Shutdown(ending)).await;
    if ending.is_none() {
        std::future::pending::<()>().await;
    }
    while shared.ending().is_none() {
        sleep(POLL).await;
    }
    Ok(())
}
