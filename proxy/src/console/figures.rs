//! The statistics as the console shows them.

use super::answer::{Column, Table, Type, Value};
use super::show;
use crate::shared::{CONSOLE, Shared};
use crate::stats::Totals;

use Type::{Numeric, Text};

/// The names of the counters in SHOW STATS, without `total_` and `avg_`.
const STATS: [(&str, &str); 11] = [
    ("total_server_assignment_count", "avg_server_assignment_count"),
    ("total_xact_count", "avg_xact_count"),
    ("total_query_count", "avg_query_count"),
    ("total_received", "avg_recv"),
    ("total_sent", "avg_sent"),
    ("total_xact_time", "avg_xact_time"),
    ("total_query_time", "avg_query_time"),
    ("total_wait_time", "avg_wait_time"),
    ("total_client_parse_count", "avg_client_parse_count"),
    ("total_server_parse_count", "avg_server_parse_count"),
    ("total_bind_count", "avg_bind_count"),
];

/// Those of SHOW STATS_TOTALS.
const PLAIN: [&str; 11] = [
    "server_assignment_count",
    "xact_count",
    "query_count",
    "bytes_received",
    "bytes_sent",
    "xact_time",
    "query_time",
    "wait_time",
    "client_parse_count",
    "server_parse_count",
    "bind_count",
];

/// Those of SHOW TOTALS.
const TOTALS: [&str; 11] = [
    "server_assignment_count",
    "xact_count",
    "query_count",
    "client_bytes",
    "server_bytes",
    "xact_time",
    "query_time",
    "wait_time",
    "ps_client_parse_count",
    "ps_server_parse_count",
    "ps_bind_count",
];

/// Totals and averages of each entry that was used, and of the console.
fn by_database(shared: &Shared) -> Vec<(String, Totals, Totals)> {
    let mut all: Vec<_> = show::entries(shared)
        .into_iter()
        .filter_map(|(name, (_, entry))| Some((name.to_string(), entry?)))
        .map(|(name, entry)| (name, entry.totals(), entry.averages()))
        .collect();
    all.push((CONSOLE.to_owned(), Totals::of(&shared.console_counters), Totals::default()));
    all.sort_by(|a, b| a.0.cmp(&b.0));
    all
}

fn values(totals: &Totals) -> impl Iterator<Item = Value> + '_ {
    totals.0.iter().map(|total| Value::from(*total))
}

fn with_database(columns: impl Iterator<Item = &'static str>) -> Table {
    let columns: Vec<Column> = [("database", Text)].into_iter().chain(columns.map(|name| (name, Numeric))).collect();
    Table::new(&columns)
}

pub(super) fn stats(shared: &Shared) -> Table {
    let mut table = with_database(STATS.iter().map(|(total, _)| *total).chain(STATS.iter().map(|(_, avg)| *avg)));
    for (name, totals, averages) in by_database(shared) {
        let row = [Value::from(name)].into_iter().chain(values(&totals)).chain(values(&averages));
        table.push(row.collect());
    }
    table
}

pub(super) fn totals_by_database(shared: &Shared) -> Table {
    let mut table = with_database(PLAIN.into_iter());
    for (name, totals, _) in by_database(shared) {
        table.push([Value::from(name)].into_iter().chain(values(&totals)).collect());
    }
    table
}

/// PgBouncer gives the last three columns another prefix than the rest.
pub(super) fn averages_by_database(shared: &Shared) -> Table {
    let names = PLAIN.into_iter().take(8).chain(STATS.iter().skip(8).map(|(_, avg)| *avg));
    let mut table = with_database(names);
    for (name, _, averages) in by_database(shared) {
        table.push([Value::from(name)].into_iter().chain(values(&averages)).collect());
    }
    table
}

pub(super) fn totals(shared: &Shared) -> Table {
    let (mut totals, mut averages) = (Totals::default(), Totals::default());
    for (_, total, average) in by_database(shared) {
        totals.add(&total);
        averages.add(&average);
    }
    let mut table = Table::new(&[("name", Text), ("value", Numeric)]);
    for (prefix, all) in [("total_", &totals), ("avg_", &averages)] {
        for (name, value) in TOTALS.iter().zip(values(all)) {
            table.push(vec![format!("{prefix}{name}").into(), value]);
        }
    }
    table
}
