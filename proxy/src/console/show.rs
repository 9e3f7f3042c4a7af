//! SHOW: which table is which, and those about configuration, entries, users and pools.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::Ordering;

use pgwire::report::Report;
use topology::Address;

use super::act::Refusal;
use super::answer::{Column, Table, Type};
use super::{Access, figures, sockets};
use crate::clients::{Client, State};
use crate::config::{Database, PoolMode, Target};
use crate::entry::Entry;
use crate::pgbouncer::{SETTINGS, VERSION};
use crate::pool::{Pool, ServerState};
use crate::shared::{CONSOLE, Shared};

/// What SHOW HELP tells.
const HELP: &str = "\n\tSHOW HELP|CONFIG|DATABASES|POOLS|CLIENTS|SERVERS|USERS|VERSION\n\
    \tSHOW PEERS|PEER_POOLS\n\
    \tSHOW FDS|SOCKETS|ACTIVE_SOCKETS|LISTS|MEM|STATE\n\
    \tSHOW DNS_HOSTS|DNS_ZONES\n\
    \tSHOW STATS|STATS_TOTALS|STATS_AVERAGES|TOTALS\n\
    \tSHOW TOPOLOGY|FAILOVERS\n\
    \tSET key = arg\n\
    \tRELOAD\n\
    \tPAUSE [<db>]\n\
    \tRESUME [<db>]\n\
    \tDISABLE <db>\n\
    \tENABLE <db>\n\
    \tRECONNECT [<db>]\n\
    \tKILL [<db>]\n\
    \tKILL_CLIENT <client_id>\n\
    \tSUSPEND\n\
    \tSHUTDOWN\n\
    \tSHUTDOWN WAIT_FOR_SERVERS|WAIT_FOR_CLIENTS\n\
    \tSWITCHOVER [<node>]\n\
    \tWAIT_CLOSE [<db>]\n";

use Type::{Int4, Int8, Text};

/// The rows of a SHOW, which was asked for in these words; none where there is only a notice.
pub(super) fn table(
    shared: &Arc<Shared>,
    (what, said): (&str, &str),
    access: Access,
    notices: &mut Vec<Report>,
) -> Result<Option<Table>, Refusal> {
    let table = match what {
        "help" => {
            notices.push(Report::notice("Console usage").detail(HELP).terse());
            return Ok(None);
        }
        "version" => Table::one("version", VERSION),
        "state" => state(shared),
        "config" => config(shared),
        "databases" => databases(shared),
        "pools" => pools(shared),
        "users" => users(shared),
        "peers" => peers(shared),
        "peer_pools" => Table::new(&[
            ("peer_id", Int4),
            ("cl_active_cancel_req", Int4),
            ("cl_waiting_cancel_req", Int4),
            ("sv_active_cancel", Int4),
            ("sv_login", Int4),
        ]),
        "lists" => lists(shared),
        "mem" => Table::new(&[("name", Text), ("size", Int4), ("used", Int4), ("free", Int4), ("memtotal", Int4)]),
        "dns_hosts" => hosts(shared),
        "dns_zones" => zones(shared),
        "clients" => sockets::clients(shared),
        "servers" => sockets::servers(shared),
        "sockets" => sockets::all(shared, false),
        "active_sockets" => sockets::all(shared, true),
        "fds" | "fd_parameters" if access != Access::Admin => return Err(Refusal::new("admin access needed")),
        "fds" => sockets::descriptors(&shared.handover.listeners(), false),
        "fd_parameters" => sockets::parameters(shared),
        "stats" => figures::stats(shared),
        "stats_totals" => figures::totals_by_database(shared),
        "stats_averages" => figures::averages_by_database(shared),
        "totals" => figures::totals(shared),
        "topology" => topology(shared),
        "failovers" => failovers(shared),
        "client_encoding" => Table::one("client_encoding", "UTF-8"),
        "default_transaction_isolation" => Table::one("default_transaction_isolation", "read committed"),
        "standard_conforming_strings" => Table::one("standard_conforming_strings", "on"),
        "datestyle" => Table::one("datestyle", "ISO"),
        "timezone" => Table::one("timezone", "GMT"),
        _ => return Err(Refusal::unknown(said)),
    };
    Ok(Some(table))
}

fn state(shared: &Shared) -> Table {
    let yes = |is: bool| if is { "yes" } else { "no" };
    let (paused, suspended) = (shared.is_paused(), shared.is_suspended());
    let mut table = Table::new(&[("key", Text), ("value", Text)]);
    table.push(vec!["active".into(), yes(!paused && !suspended).into()]);
    table.push(vec!["paused".into(), yes(paused).into()]);
    table.push(vec!["suspended".into(), yes(suspended).into()]);
    table
}

fn config(shared: &Shared) -> Table {
    let mut table = Table::new(&[("key", Text), ("value", Text), ("default", Text), ("changeable", Text)]);
    let config = shared.config();
    let Some(loaded) = config.dialect.pgbouncer() else { return table };
    // another name of `job_name` is not shown
    for setting in SETTINGS.iter().filter(|setting| setting.name != "service_name") {
        let default = setting.default.map(str::to_owned);
        let changeable = if setting.live { "yes" } else { "no" };
        table.push(vec![
            setting.name.into(),
            setting.shown(&loaded.settings).into(),
            default.into(),
            changeable.into(),
        ]);
    }
    table
}

/// An entry as it is configured, and at work if somebody used it.
type InUse = (Arc<Database>, Option<Arc<Entry>>);

/// The entries of the configuration, and those that were made from the template.
pub(super) fn entries(shared: &Shared) -> BTreeMap<Arc<str>, InUse> {
    let config = shared.config();
    let mut all: BTreeMap<_, _> =
        config.databases.iter().map(|(name, database)| (name.clone(), (database.clone(), None))).collect();
    for entry in shared.entries() {
        all.insert(entry.name.clone(), (entry.config(), Some(entry)));
    }
    all
}

const DATABASES: &[Column] = &[
    ("name", Text),
    ("host", Text),
    ("port", Int4),
    ("database", Text),
    ("force_user", Text),
    ("pool_size", Int4),
    ("min_pool_size", Int4),
    ("reserve_pool_size", Int4),
    ("server_lifetime", Int4),
    ("pool_mode", Text),
    ("load_balance_hosts", Text),
    ("max_connections", Int4),
    ("current_connections", Int4),
    ("max_client_connections", Int4),
    ("current_client_connections", Int4),
    ("paused", Int4),
    ("disabled", Int4),
];

fn databases(shared: &Shared) -> Table {
    let mut table = Table::new(DATABASES);
    let config = shared.config();
    let line = |name: &str| config.dialect.pgbouncer().and_then(|loaded| loaded.databases.get(name));
    for (name, (database, entry)) in entries(shared) {
        let address = |address: &Address| match address {
            Address::Tcp(host, port) => (Some(host.clone()), *port),
            Address::Unix(directory, port) => (Some(directory.display().to_string()), *port),
        };
        let (host, port) = match (&database.target, line(&name)) {
            (_, Some(line)) => (line.host.clone(), line.port),
            (Target::Server(server), None) => address(server),
            (Target::Cluster(cluster), None) => (Some(cluster.to_string()), 0),
        };
        let balances = host.as_deref().is_some_and(|host| host.contains(','));
        let hosts = if database.stays_with_host { "disable" } else { "round-robin" };
        let lifetime = database.server_lifetime.or(config.limits.server_lifetime).unwrap_or_default();
        let count = |count: fn(&Entry) -> usize| entry.as_deref().map_or(0, count);
        table.push(vec![
            (*name).into(),
            host.into(),
            i32::from(port).into(),
            database.dbname.as_deref().unwrap_or(&name).into(),
            database.forced.as_ref().map(|forced| forced.user.to_string()).into(),
            database.pool_size.into(),
            database.min_pool_size.into(),
            database.reserve_pool_size.into(),
            lifetime.as_secs().into(),
            line(&name)
                .map_or(Some(database.pool_mode), |line| line.pool_mode)
                .map(|mode| mode_word(mode).to_owned())
                .into(),
            balances.then(|| hosts.to_owned()).into(),
            database.max_servers.into(),
            count(|entry| entry.servers.taken()).into(),
            database.max_clients.into(),
            count(|entry| entry.clients.load(Ordering::Relaxed)).into(),
            entry.as_deref().is_some_and(Entry::is_paused).into(),
            entry.as_deref().is_some_and(Entry::is_disabled).into(),
        ]);
    }
    let general = config.dialect.pgbouncer().map_or(0, |loaded| loaded.settings.max_db_client_connections);
    table.push(vec![
        CONSOLE.into(),
        None.into(),
        config.listen.unix_socket_port.map_or(6432, i32::from).into(),
        CONSOLE.into(),
        CONSOLE.into(),
        2.into(),
        0.into(),
        0.into(),
        config.limits.server_lifetime.unwrap_or_default().as_secs().into(),
        "statement".into(),
        None.into(),
        0.into(),
        0.into(),
        general.into(),
        shared.console_clients.load(Ordering::Relaxed).into(),
        0.into(),
        0.into(),
    ]);
    table.rows.sort_by_key(|row| format!("{:?}", row[0]));
    table
}

pub(super) fn mode_word(mode: PoolMode) -> &'static str {
    match mode {
        PoolMode::Session => "session",
        PoolMode::Transaction => "transaction",
        PoolMode::Statement => "statement",
    }
}

const POOLS: &[Column] = &[
    ("database", Text),
    ("user", Text),
    ("cl_active", Int4),
    ("cl_waiting", Int4),
    ("cl_active_cancel_req", Int4),
    ("cl_waiting_cancel_req", Int4),
    ("sv_active", Int4),
    ("sv_active_cancel", Int4),
    ("sv_being_canceled", Int4),
    ("sv_idle", Int4),
    ("sv_used", Int4),
    ("sv_tested", Int4),
    ("sv_login", Int4),
    ("maxwait", Int4),
    ("maxwait_us", Int4),
    ("pool_mode", Text),
    ("load_balance_hosts", Text),
];

fn pools(shared: &Shared) -> Table {
    let mut table = Table::new(POOLS);
    let config = shared.config();
    let clients = shared.clients.all();
    for entry in shared.entries() {
        let mut of_users: BTreeMap<Arc<str>, Vec<Arc<Pool>>> = BTreeMap::new();
        for (_, pool) in entry.pools() {
            of_users.entry(pool.user.clone()).or_default().push(pool);
        }
        for (user, pools) in of_users {
            let of_pool = |client: &&Arc<Client>| {
                let who = client.who();
                who.database.as_deref() == Some(&*entry.name) && who.server_user.as_deref() == Some(&*user)
            };
            let (mut active, mut waiting) = (0_usize, 0_usize);
            for client in clients.iter().filter(of_pool) {
                match client.state().0 {
                    State::Login => {}
                    State::Waiting => waiting += 1,
                    State::Idle | State::Busy | State::IdleInTransaction => active += 1,
                }
            }
            let controls: Vec<_> = pools.iter().flat_map(|pool| pool.controls()).collect();
            let servers = |state| controls.iter().filter(|control| control.state().0 == state).count();
            let opening: usize = pools.iter().map(|pool| pool.counts().opening).sum();
            let wait = pools.iter().map(|pool| pool.longest_wait()).max().unwrap_or_default();
            let database = entry.config();
            let mode = config.users.get(&user).and_then(|user| user.pool_mode).unwrap_or(database.pool_mode);
            let hosts = if database.stays_with_host { "disable" } else { "round-robin" };
            table.push(vec![
                (*entry.name).into(),
                (*user).into(),
                active.into(),
                waiting.into(),
                0.into(),
                0.into(),
                servers(ServerState::Active).into(),
                0.into(),
                0.into(),
                servers(ServerState::Idle).into(),
                servers(ServerState::Used).into(),
                servers(ServerState::Tested).into(),
                opening.into(),
                wait.as_secs().into(),
                u64::from(wait.subsec_micros()).into(),
                mode_word(mode).into(),
                (database.hosts.len() > 1).then(|| hosts.to_owned()).into(),
            ]);
        }
    }
    let mut console = vec![CONSOLE.into(), CONSOLE.into(), shared.console_clients.load(Ordering::Relaxed).into()];
    console.extend((0..12).map(|_| 0.into()));
    console.extend(["statement".into(), None.into()]);
    table.push(console);
    table
}

const USERS: &[Column] = &[
    ("name", Text),
    ("pool_size", Text),
    ("reserve_pool_size", Text),
    ("pool_mode", Text),
    ("max_user_connections", Int4),
    ("current_connections", Int4),
    ("max_user_client_connections", Int4),
    ("current_client_connections", Int4),
];

/// All that are known, and in PgBouncer's dialect whoever is on its console without a name of their own.
fn user_names(shared: &Shared) -> BTreeSet<Arc<str>> {
    let mut names: BTreeSet<Arc<str>> = shared.store.listed().into_iter().collect();
    names.extend(shared.config().users.keys().cloned());
    names.extend(shared.users().into_iter().map(|(name, _)| name));
    if shared.is_pgbouncer() {
        names.insert(CONSOLE.into());
    }
    names
}

fn users(shared: &Shared) -> Table {
    let mut table = Table::new(USERS);
    let config = shared.config();
    let counted: BTreeMap<_, _> = shared.users().into_iter().collect();
    let general = config.dialect.pgbouncer().map_or(0, |loaded| loaded.settings.max_user_connections);
    for name in user_names(shared) {
        let user = config.users.get(&name);
        let size = |size: Option<usize>| size.map(|size| format!("{size:>9}")).unwrap_or_default();
        let of_user = counted.get(&name);
        let max_servers = user.and_then(|user| user.max_servers).unwrap_or(usize::try_from(general).unwrap_or(0));
        table.push(vec![
            (*name).into(),
            size(user.and_then(|user| user.pool_size)).into(),
            size(user.and_then(|user| user.reserve_pool_size)).into(),
            user.and_then(|user| user.pool_mode).map(|mode| mode_word(mode).to_owned()).into(),
            max_servers.into(),
            of_user.map_or(0, |of_user| of_user.servers.taken()).into(),
            shared.max_clients_of(&name).into(),
            of_user.map_or(0, |of_user| of_user.clients.load(Ordering::Relaxed)).into(),
        ]);
    }
    table
}

fn peers(shared: &Shared) -> Table {
    let mut table = Table::new(&[("peer_id", Int4), ("host", Text), ("port", Int4), ("pool_size", Int4)]);
    let config = shared.config();
    let Some(loaded) = config.dialect.pgbouncer() else { return table };
    for (id, peer) in &loaded.peers {
        let size = peer.pool_size.unwrap_or(loaded.settings.default_pool_size);
        table.push(vec![i32::from(*id).into(), peer.host.clone().into(), i32::from(peer.port).into(), size.into()]);
    }
    table
}

fn lists(shared: &Shared) -> Table {
    let mut table = Table::new(&[("list", Text), ("items", Int4)]);
    let config = shared.config();
    let clients = shared.clients.all();
    let logging_in = clients.iter().filter(|client| client.state().0 == State::Login).count();
    let entries = shared.entries();
    let pools: usize = entries.iter().map(|entry| entry.pools().len()).sum();
    let servers: usize = entries.iter().map(|entry| entry.servers.taken()).sum();
    let peers = config.dialect.pgbouncer().map_or(0, |loaded| loaded.peers.len());
    for (name, items) in [
        ("databases", self::entries(shared).len() + 1),
        ("users", user_names(shared).len()),
        ("peers", peers),
        ("pools", pools + 1),
        ("peer_pools", peers),
        ("free_clients", 0),
        ("used_clients", clients.len() - logging_in),
        ("login_clients", logging_in),
        ("free_servers", 0),
        ("used_servers", servers),
        ("dns_names", shared.hosts.all().len()),
        ("dns_zones", shared.hosts.zones().len()),
        ("dns_queries", 0),
        ("dns_pending", 0),
    ] {
        table.push(vec![name.into(), items.into()]);
    }
    table
}

fn hosts(shared: &Shared) -> Table {
    let mut table = Table::new(&[("hostname", Text), ("ttl", Int8), ("addrs", Text)]);
    for known in shared.hosts.all() {
        let with_port = |address: &IpAddr| SocketAddr::new(*address, 0).to_string(); // as PgBouncer shows them
        let addresses: Vec<String> = known.addresses.iter().map(with_port).collect();
        table.push(vec![known.host.as_ref().into(), known.left.as_secs().into(), addresses.join(",").into()]);
    }
    table
}

fn zones(shared: &Shared) -> Table {
    let mut table = Table::new(&[("zonename", Text), ("serial", Int8), ("count", Int4)]);
    for (zone, serial, names) in shared.hosts.zones() {
        table.push(vec![zone.as_ref().into(), u64::from(serial).into(), names.into()]);
    }
    table
}

fn topology(shared: &Shared) -> Table {
    let mut table = Table::new(&[
        ("cluster", Text),
        ("node", Text),
        ("address", Text),
        ("role", Text),
        ("epoch", Int8),
        ("lag_ms", Int8),
        ("why", Text),
    ]);
    for (name, watch) in shared.watches() {
        let now = watch.now();
        for node in &now.nodes {
            let lag = node.lag.map(|lag| lag.as_millis().to_string());
            table.push(vec![
                (**name).into(),
                (*node.name).into(),
                node.address.to_string().into(),
                format!("{:?}", node.role).to_ascii_lowercase().into(),
                now.epoch.into(),
                lag.into(),
                now.why.to_string().into(),
            ]);
        }
    }
    table
}

fn failovers(shared: &Shared) -> Table {
    let mut table = Table::new(&[("cluster", Text), ("record", Text)]);
    for (name, watch) in shared.watches() {
        for record in watch.failovers().iter() {
            let text = serde_json::to_string(record).expect("plain data is JSON");
            table.push(vec![(**name).into(), text.into()]);
        }
    }
    table
}
