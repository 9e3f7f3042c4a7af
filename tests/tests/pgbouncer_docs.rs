//! The pages that say where each part of PgBouncer's surface is tried are true: what a row names stands in its test.

use std::fs;
use std::path::PathBuf;

use harness::postgres::repository;

/// Settings of PgBouncer 1.25.
const SETTINGS: usize = 98;
/// Rows of the page on everything else; fewer would mean that the page is not read.
const SURFACE: usize = 200;

/// The rows of the tables of a page, cell by cell.
fn rows(page: &str, cells: usize) -> Vec<Vec<String>> {
    let text = fs::read_to_string(repository().join("docs").join(page)).expect("the page");
    let row = |line: &str| line.split('|').map(|cell| cell.trim().trim_matches('`').to_owned()).collect::<Vec<_>>();
    text.lines().filter(|line| line.starts_with("| `")).map(row).filter(|row| row.len() >= cells + 2).collect()
}

/// The file of a test; none: it is one of PgBouncer's own, which are here only where they were run.
fn file(test: &str) -> Option<PathBuf> {
    let suite = repository().join(".cache/pgbouncer/pgbouncer-1.25.2/test");
    let own = test.strip_suffix(".py").is_some();
    if own { Some(suite.join(test)).filter(|_| suite.exists()) } else { Some(repository().join(test)) }
}

fn speaks_of(test: &str, what: &str) {
    let Some(file) = file(test) else { return };
    let text = fs::read_to_string(&file).unwrap_or_else(|_| panic!("{what}: there is no {test}"));
    assert!(text.contains(what), "{test} does not speak of {what}");
}

#[test]
fn the_page_names_a_test_of_every_setting() {
    let rows = rows("pgbouncer.md", 4);
    assert!(rows.len() >= SETTINGS, "only {} settings", rows.len());
    for row in rows {
        let (name, acts, test) = (row[1].as_str(), row[2].as_str(), row[3].as_str());
        assert!(["yes", "no"].contains(&acts), "{name}: {acts}");
        match test {
            "" => assert_eq!(acts, "no", "{name} acts, and nothing tries it"),
            suite if suite.ends_with(".py") => speaks_of(suite, name),
            ours => speaks_of(&format!("tests/{ours}"), name),
        }
    }
}

#[test]
fn the_page_names_a_test_of_everything_else() {
    let rows = rows("pgbouncer-surface.md", 2);
    assert!(rows.len() >= SURFACE, "only {} rows", rows.len());
    for row in rows {
        speaks_of(&row[2], &row[1]);
    }
}
