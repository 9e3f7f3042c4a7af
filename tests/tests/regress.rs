//! PostgreSQL's own regression suite, directly, through session pooling and through transaction pooling: `make regress`.
//! Pooling gives what the direct run gives, but for what docs/regression.md lists with its reason.

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Stdio;

use harness::folder::{Folder, account};
use harness::pgsteady::{Config, Pgsteady};
use harness::postgres::{Node, Programs, repository, run};

/// Time for the three runs.
const LIMIT_S: u64 = 45 * 60;

/// What `pg_regress` does to a database that it makes itself.
const DATABASE: [&str; 7] = [
    "CREATE DATABASE regression TEMPLATE template0",
    "ALTER DATABASE regression SET lc_messages TO 'C'",
    "ALTER DATABASE regression SET lc_monetary TO 'C'",
    "ALTER DATABASE regression SET lc_numeric TO 'C'",
    "ALTER DATABASE regression SET lc_time TO 'C'",
    "ALTER DATABASE regression SET bytea_output TO 'hex'",
    "ALTER DATABASE regression SET timezone_abbreviations TO 'Default'",
];

/// The suite, copied to where the account of PostgreSQL may read and write.
fn suite(folder: &Folder) -> PathBuf {
    let source = repository().join(".cache/regress/src/test/regress");
    assert!(source.join("regress.so").exists(), "the suite is not there: make regress");
    let copy = folder.path().join("suite");
    run(std::process::Command::new("cp").arg("-r").arg(source).arg(&copy));
    if let Some(account) = account() {
        run(std::process::Command::new("chown").arg("-R").arg(&account.name).arg(&copy));
    }
    copy
}

/// A server as the suite wants it: everybody is let in, and its libraries may be loaded.
async fn server(programs: &Programs) -> Node {
    let mut node = Node::new(programs, "n1");
    fs::write(node.data().join("pg_hba.conf"), "local all all trust\nhost all all 127.0.0.1/32 trust\n")
        .expect("a file of the test can be written");
    node.configure("max_prepared_transactions = 2\nlog_min_messages = fatal\nshared_buffers = 128MB\n");
    node.start().await;
    for sql in DATABASE {
        node.sql(sql).await;
    }
    node
}

/// Runs the suite against a port; gives the tests that failed, and leaves the differences in `target/regress/NAME`.
fn failures(programs: &Programs, suite: &Path, port: u16, name: &str) -> BTreeSet<String> {
    let output = repository().join("target/regress").join(name);
    let work = suite.join(format!("results-{name}"));
    let bin = programs.bin.display().to_string();
    let program = format!("/usr/lib/postgresql/{}/lib/pgxs/src/test/regress/pg_regress", programs.major);
    let mut command = std::process::Command::new(program);
    if let Some(account) = account() {
        command.uid(account.uid.as_raw()).gid(account.gid.as_raw());
    }
    let home = suite.parent().expect("the suite is in a folder").to_owned();
    command.env("HOME", home).env("LC_ALL", "C").current_dir(suite).stdin(Stdio::null());
    command.args(["--use-existing", "--dbname=regression", "--user=postgres", "--host=127.0.0.1"]);
    command.args([format!("--port={port}"), format!("--bindir={bin}"), "--max-connections=10".into()]);
    command.args([format!("--inputdir={}", suite.display()), format!("--dlpath={}", suite.display())]);
    command.arg(format!("--outputdir={}", work.display())).arg("--schedule=parallel_schedule");
    let result = command.output().expect("pg_regress can be run");
    let report = String::from_utf8_lossy(&result.stdout).into_owned();
    let _ = fs::remove_dir_all(&output);
    fs::create_dir_all(&output).expect("a folder can be made");
    for file in ["regression.out", "regression.diffs"] {
        let _ = fs::copy(work.join(file), output.join(file));
    }
    let tests: Vec<&str> = report.lines().filter(|line| line.contains(" ... ")).collect();
    assert!(tests.len() > 150, "only {} tests ran:\n{report}{}", tests.len(), String::from_utf8_lossy(&result.stderr));
    let failed = tests.into_iter().filter(|line| line.contains("FAILED"));
    failed
        .map(|line| line.trim_start_matches("test ").split_whitespace().next().unwrap_or_default().to_owned())
        .collect()
}

/// The tests that docs/regression.md lists under the heading of this pool mode: the first column of its table.
fn listed(mode: &str) -> BTreeSet<String> {
    let page = fs::read_to_string(repository().join("docs/regression.md")).expect("the page is there");
    let heading = format!("## In {mode} mode");
    let section = page.split(&heading).nth(1).unwrap_or_else(|| panic!("no heading {heading:?} in the page"));
    let section = section.split("\n## ").next().unwrap_or_default();
    section.lines().filter_map(|line| line.strip_prefix("| `")?.split('`').next().map(str::to_owned)).collect()
}

#[test]
#[ignore = "takes minutes: make regress"]
fn the_regression_suite_gives_what_it_gives_directly() {
    harness::run(LIMIT_S, async {
        let programs = Programs::installed();
        let folder = Folder::new("regress");
        let suite = suite(&folder);
        let mut failed = Vec::new();
        for mode in ["direct", "session", "transaction"] {
            let node = server(&programs).await;
            let config = Config::single(&node)
                .set("auth.method", "trust")
                .set("auth.query_user", "steady")
                .set("auth.query_password", "steady-secret")
                .set("auth.query_database", "app")
                .set("log.level", "warn")
                .set("database.regression.host", "127.0.0.1")
                .set("database.regression.port", i64::from(node.port()))
                .set("database.regression.pool_size", 30)
                .set("database.regression.pool_mode", if mode == "transaction" { mode } else { "session" });
            let pgsteady = Pgsteady::start(&config).await;
            let port = if mode == "direct" { node.port() } else { pgsteady.port() };
            let (programs, suite) = (programs.clone(), suite.clone());
            let found = tokio::task::spawn_blocking(move || failures(&programs, &suite, port, mode)).await;
            let found = found.expect("the suite runs");
            eprintln!("{mode}: {} failed: {found:?}", found.len());
            failed.push(found);
        }
        for (mode, found) in ["session", "transaction"].into_iter().zip(&failed[1..]) {
            let differs: BTreeSet<String> = found.difference(&failed[0]).cloned().collect();
            let unlisted: Vec<_> = differs.difference(&listed(mode)).cloned().collect();
            assert!(unlisted.is_empty(), "not in docs/regression.md: {unlisted:?}; see target/regress/{mode}");
        }
    });
}
