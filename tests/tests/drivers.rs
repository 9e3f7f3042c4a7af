//! Drivers as they come, without any setting for a pooler, through transaction pooling: eight clients on three servers.
//! What they do is in `tests/drivers/`.

use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::time::Duration;

use harness::endpoint::Endpoint;
use harness::folder::Folder;
use harness::pgsteady::{Config, Pgsteady};
use harness::postgres::{Node, Programs, repository, run};

/// Time for one driver's checks, the start of its runtime included.
const LIMIT: Duration = Duration::from_secs(60);

fn script(name: &str) -> PathBuf {
    repository().join("tests/drivers").join(name)
}

fn python() -> Command {
    let python = repository().join(".cache/venv/bin/python");
    assert!(python.exists(), "the drivers are not installed (tools/install.sh)");
    Command::new(python)
}

/// Runs the driver's checks and expects `checks` lines that begin with `ok`. A driver that hangs is killed.
async fn passes(mut command: Command, checks: usize) {
    let output = Folder::new("driver");
    let (out, errors) = (output.write("out", ""), output.write("err", ""));
    let open = |path: &PathBuf| std::fs::File::create(path).expect("a file of the test can be made");
    command.stdin(Stdio::null()).stdout(open(&out)).stderr(open(&errors));
    let mut child = tokio::process::Command::from(command).kill_on_drop(true).spawn().expect("the driver can be run");
    let ended = tokio::time::timeout(LIMIT, child.wait()).await;
    let read = |path: &PathBuf| std::fs::read_to_string(path).unwrap_or_default();
    let said = read(&out);
    let passed = said.lines().filter(|line| line.starts_with("ok ")).count();
    let well = matches!(&ended, Ok(Ok(status)) if status.success());
    assert!(well && passed == checks, "{ended:?}\n{said}{}", read(&errors));
}

/// Runs a driver's six checks through transaction pooling on the installed PostgreSQL and on a newer one; `command` makes
/// the driver's program for an endpoint.
async fn passes_on_both(command: impl Fn(Endpoint) -> Command) {
    for programs in [Programs::installed(), Programs::newer()] {
        let node = Node::primary(&programs).await;
        let config =
            Config::single(&node).set("database.app.pool_size", 3).set("database.app.pool_mode", "transaction");
        let mut pgsteady = Pgsteady::start(&config).await;
        passes(command(pgsteady.endpoint()), 6).await;
        pgsteady.lives();
    }
}

#[test]
fn psycopg() {
    harness::run(
        120,
        passes_on_both(|endpoint| {
            let mut command = python();
            command.arg(script("psycopg_default.py")).arg(endpoint.conninfo());
            command
        }),
    );
}

#[test]
fn asyncpg() {
    harness::run(
        120,
        passes_on_both(|Endpoint { host, port, user, password, database }| {
            let mut command = python();
            command.arg(script("asyncpg_default.py")).args([host, port.to_string(), user, password, database]);
            command
        }),
    );
}

#[test]
fn jdbc() {
    harness::run(180, async {
        let classes = Folder::new("jdbc");
        let path = format!("/usr/share/java/postgresql.jar:{}", classes.path().display());
        run(Command::new("javac").args(["-cp", &path, "-d"]).arg(classes.path()).arg(script("JdbcDefault.java")));
        passes_on_both(|Endpoint { host, port, user, password, database }| {
            let mut command = Command::new("java");
            command.args(["-cp", &path, "JdbcDefault", &format!("jdbc:postgresql://{host}:{port}/{database}")]);
            command.args([user, password]);
            command
        })
        .await;
    });
}
