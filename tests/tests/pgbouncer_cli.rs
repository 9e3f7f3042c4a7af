//! The command line under PgBouncer's name: what it takes, what it refuses to begin with, and how it ends then.

use std::path::Path;
use std::process::{Command, Output, Stdio};

use harness::endpoint::value;
use harness::folder::{Folder, account};
use harness::pgbouncer::{PgBouncer, at, shown};
use harness::pgsteady::program;
use harness::port::Port;
use harness::postgres::{Node, Programs};

const USERS: &str = "\"admin\" \"admin-secret\"\n\"app\" \"app-secret\"\n";

/// Runs it to its end; the exit status, and what it said.
fn run(arguments: &[&str]) -> (Option<i32>, String) {
    let mut command = Command::new(program());
    let Output { status, stdout, stderr } =
        command.arg("pgbouncer").args(arguments).stdin(Stdio::null()).output().expect("pgsteady can be run");
    (status.code(), String::from_utf8_lossy(&stdout).into_owned() + &String::from_utf8_lossy(&stderr))
}

/// The same as the account that PgBouncer would run as, with a file; it has to end by itself.
fn refused(options: &[&str], file: &Path) -> String {
    let mut arguments = options.to_vec();
    let account = account();
    if let Some(account) = &account {
        arguments.extend(["-u", &account.name]);
    }
    let file = file.display().to_string();
    arguments.push(&file);
    let (status, said) = run(&arguments);
    assert_eq!(status, Some(1), "{arguments:?}: {said}");
    said
}

fn ini(folder: &Folder, settings: &str) -> String {
    let folder = folder.path().display();
    format!(
        "[databases]\napp = host=127.0.0.1\n[pgbouncer]\nlisten_addr = 127.0.0.1\nunix_socket_dir = {folder}\n{settings}"
    )
}

#[test]
fn it_says_what_it_takes() {
    let (status, said) = run(&[]);
    assert_eq!(status, Some(1));
    assert!(said.contains("no configuration file specified") && said.contains("--help"), "{said}");
    let (status, said) = run(&["--nonsense", "file"]);
    assert_eq!(status, Some(1), "{said}");
    let (status, said) = run(&["--help"]);
    assert_eq!(status, Some(0));
    for option in ["-d, --daemon", "-q, --quiet", "-R, --reboot", "-u, --user", "-v, --verbose", "-V, --version"] {
        assert!(said.contains(option), "{option}: {said}");
    }
    let (status, said) = run(&["--version"]);
    assert_eq!(status, Some(0));
    assert!(said.starts_with("PgBouncer 1.25.2\n"), "{said}");
}

#[test]
fn it_does_not_begin_with_what_cannot_work() {
    let folder = Folder::new("cli");
    let port = Port::new();
    let listen = format!("listen_port = {}\n", port.number());
    let daemon = folder.write("daemon.ini", &ini(&folder, &listen));
    assert!(refused(&["-d"], &daemon).contains("daemon needs pidfile configured"));
    let wrong = folder.write("wrong.ini", &ini(&folder, "pool_mode = sometimes\n"));
    let said = refused(&[], &wrong);
    assert!(said.contains("invalid value \"sometimes\" for parameter pool_mode") && said.contains("FATAL"), "{said}");
    let said = refused(&[], &folder.path().join("none.ini"));
    assert!(said.contains("none.ini") && said.contains("FATAL"), "{said}");
    if account().is_some() {
        let (status, said) = run(&[&daemon.display().to_string()]);
        assert_eq!(status, Some(1));
        assert!(said.contains("should not run as root"), "{said}");
    }
}

#[test]
fn two_do_not_take_the_same_place() {
    harness::run(60, async {
        let node = Node::primary(&Programs::installed()).await;
        let settings = |folder: &Folder| format!("auth_type = trust\npidfile = {}/pid\n", folder.path().display());
        let pids = Folder::new("pids");
        let bouncer = PgBouncer::start(&at(&node, "app = $"), &settings(&pids), USERS).await;
        let here = bouncer.folder().path().display();
        let own = Folder::new("cli");
        let same = format!("[databases]\n[pgbouncer]\nlisten_port = {}\nunix_socket_dir = {here}\n", bouncer.port());
        let said = refused(&[], &own.write("same.ini", &same));
        assert!(said.contains("unix socket is in use, cannot continue"), "{said}");
        let other = format!(
            "{}pidfile = {}/pid\nlisten_port = {}\n",
            ini(&own, ""),
            pids.path().display(),
            Port::new().number()
        );
        let said = refused(&[], &own.write("other.ini", &other));
        assert!(said.contains("exists, another instance running?"), "{said}");
        assert_eq!(value(&bouncer.endpoint("app", "app-secret", "app").client().await, "SELECT 1").await, "1");
    });
}

#[test]
fn a_file_may_include_others_and_verbose_says_more() {
    harness::run(60, async {
        let node = Node::primary(&Programs::installed()).await;
        let folder = Folder::new("included");
        let more = folder.write("more.ini", "auth_type = trust\nquery_timeout = 77\n");
        let settings = format!("%include {}\n", more.display());
        let bouncer = PgBouncer::start(&at(&node, "app = $"), &settings, USERS).await;
        let console = bouncer.console().await;
        assert_eq!(shown(&console, "CONFIG", "key", "query_timeout", "value").await, "77");
        assert_eq!(value(&bouncer.endpoint("app", "app-secret", "app").client().await, "SELECT 1").await, "1");
        let stranger = bouncer.endpoint("stranger", "x", "app");
        stranger.connect().await.expect_err("nobody knows it");
        assert!(!bouncer.log().contains(" DEBUG "), "{}", bouncer.log());
        console.simple_query("SET verbose = 1").await.expect("it is live");
        stranger.connect().await.expect_err("nobody knows it");
        bouncer.logged(0, " DEBUG ").await;
    });
}
