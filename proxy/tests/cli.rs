//! The program from outside: what it prints, and the exit status that scripts rely on.

use std::process::{Command, Output};

fn pgsteady(folder: &std::path::Path, arguments: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_pgsteady"));
    command.args(arguments).current_dir(folder).env_remove("PGSTEADY_CONFIG").output().expect("the program starts")
}

fn said(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

#[test]
fn check_names_place_and_remedy_and_its_status_says_which() {
    let folder = tempfile::tempdir().expect("a folder");
    let file = folder.path().join("pgsteady.toml");
    std::fs::write(&file, "[database.app]\nhost = \"127.0.0.1\"\n").expect("written");
    let good = pgsteady(folder.path(), &["check"]);
    assert_eq!(good.status.code(), Some(0), "{}", said(&good));
    assert_eq!(String::from_utf8_lossy(&good.stdout), "pgsteady.toml: right: 1 databases, 0 clusters, 0 users\n");

    std::fs::write(&file, "[database.app]\nhost = \"127.0.0.1\"\npool_sice = 3\n").expect("written");
    let bad = pgsteady(folder.path(), &["check"]);
    assert_eq!(bad.status.code(), Some(1));
    let text = said(&bad);
    assert!(text.starts_with("pgsteady: pgsteady.toml:3:1: database.app.pool_sice: is unknown\n"), "{text}");
    assert!(text.contains("\n  did you mean pool_size? allowed: "), "{text}");

    let run = pgsteady(folder.path(), &["run", "-c", "pgsteady.toml"]);
    assert_eq!((run.status.code(), said(&run)), (Some(2), text), "run says the same and does not start");
}

#[test]
fn check_looks_into_the_files_that_are_named() {
    let folder = tempfile::tempdir().expect("a folder");
    let text = "[listen.tls]\nsslmode = \"require\"\ncertificate = \"c\"\nkey = \"k\"\n[database.a]\nhost = \"h\"\n";
    std::fs::write(folder.path().join("f.toml"), text).expect("written");
    std::fs::write(folder.path().join("c"), "no certificate").expect("written");
    std::fs::write(folder.path().join("k"), "no key").expect("written");
    let bad = pgsteady(folder.path(), &["check", "f.toml"]);
    assert_eq!(bad.status.code(), Some(1));
    assert!(said(&bad).starts_with("pgsteady: listen.tls: certificate c: "), "{}", said(&bad));
}

#[test]
fn without_a_configuration_it_says_where_it_looked() {
    let folder = tempfile::tempdir().expect("a folder");
    let run = pgsteady(folder.path(), &["run"]);
    assert_eq!(run.status.code(), Some(2));
    assert_eq!(
        said(&run),
        "pgsteady: no configuration: there is no pgsteady.toml and no /etc/pgsteady/pgsteady.toml\n"
    );
    assert_eq!(pgsteady(folder.path(), &["no-such-command"]).status.code(), Some(2));
    assert_eq!(pgsteady(folder.path(), &[]).status.code(), Some(2));
}

#[test]
fn docs_prints_the_page_that_is_in_the_repository() {
    let output = pgsteady(std::path::Path::new("."), &["docs", "config"]);
    let page = include_bytes!("../../docs/config.md");
    assert!(output.stdout == page);
}
