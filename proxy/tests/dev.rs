//! `pgsteady dev`: drills that lose nothing, and nothing left behind, however it ends.

#![allow(clippy::unwrap_used)] // a test may panic

use std::io::{BufRead, BufReader, Read};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStderr, Command, Output, Stdio};
use std::time::{Duration, Instant};

/// Bound on anything that is waited for.
const PATIENCE: Duration = Duration::from_secs(120);

/// A folder for temporary files of its own: what is left in it was left behind.
fn place() -> tempfile::TempDir {
    let folder = tempfile::Builder::new().prefix("dev").rand_bytes(4).tempdir().unwrap();
    std::fs::set_permissions(folder.path(), std::fs::Permissions::from_mode(0o1777)).unwrap();
    folder
}

fn dev(place: &Path, arguments: &[&str]) -> Child {
    let mut command = Command::new(env!("CARGO_BIN_EXE_pgsteady"));
    command.arg("dev").args(["--port", "0"]).args(arguments).env("TMPDIR", place);
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap()
}

fn signal(child: &Child, name: &str) {
    assert!(Command::new("kill").args([name, &child.id().to_string()]).status().unwrap().success());
}

/// What is left: files, and processes that work in the place.
fn left(place: &Path) -> Vec<PathBuf> {
    let files = std::fs::read_dir(place).unwrap().flatten().map(|entry| entry.path());
    let processes = std::fs::read_dir("/proc").unwrap().flatten();
    let cwds = processes.filter_map(|entry| std::fs::read_link(entry.path().join("cwd")).ok());
    files.chain(cwds.filter(|cwd| cwd.starts_with(place))).collect()
}

fn until_nothing_is_left(place: &Path) {
    let started = Instant::now();
    while !left(place).is_empty() {
        assert!(started.elapsed() < Duration::from_secs(20), "left: {:?}", left(place));
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// What it says, line by line.
struct Said(BufReader<ChildStderr>);

impl Said {
    fn of(child: &mut Child) -> Self {
        Self(BufReader::new(child.stderr.take().unwrap()))
    }

    /// Reads on to a line that has this in it.
    fn until(&mut self, word: &str) {
        let mut said = Vec::new();
        for line in self.0.by_ref().lines() {
            let line = line.unwrap();
            if line.contains(word) {
                return;
            }
            said.push(line);
        }
        panic!("it never said {word:?}: {said:#?}");
    }
}

fn text(output: &Output) -> String {
    format!("{}\n{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr))
}

#[test]
fn a_drill_loses_nothing_drops_nobody_and_leaves_nothing() {
    let place = place();
    let output = dev(place.path(), &["--drill", "2", "--json"]).wait_with_output().unwrap();
    assert!(output.status.success(), "{}", text(&output));
    assert_eq!(left(place.path()), Vec::<PathBuf>::new());
    let report: serde_json::Value = serde_json::from_slice(&output.stdout).expect("one JSON object and nothing else");
    let keys: Vec<&String> = report.as_object().unwrap().keys().collect();
    assert_eq!(keys, ["acknowledged", "drills", "dropped", "in_doubt", "lost"]);
    assert_eq!((report["lost"].as_u64(), report["dropped"].as_u64()), (Some(0), Some(0)), "{report}");
    assert!(report["acknowledged"].as_u64().unwrap() > 100, "{report}");
    let drills = report["drills"].as_array().unwrap();
    assert_eq!(drills.len(), 2, "{report}");
    for drill in drills {
        let hold = drill["hold_ms"].as_u64().unwrap();
        let steps = ["detect_ms", "fence_ms", "promote_ms"].map(|step| drill[step].as_u64().expect("a number"));
        assert!(steps[2] > 0 && hold >= steps[1] + steps[2], "{report}: a hold is as long as its steps at least");
        assert!(hold < 10_000, "{report}");
    }
}

#[test]
fn interrupted_at_any_moment_it_leaves_nothing() {
    for (name, after) in [("-INT", 100), ("-TERM", 900), ("-HUP", 2200), ("-INT", 3500), ("-TERM", 8000)] {
        let place = place();
        let mut child = dev(place.path(), &["--drill", "50"]);
        std::thread::sleep(Duration::from_millis(after));
        signal(&child, name);
        let started = Instant::now();
        let status = loop {
            if let Some(status) = child.try_wait().unwrap() {
                break status;
            }
            assert!(started.elapsed() < Duration::from_secs(20), "{name} after {after} ms is not heard");
            std::thread::sleep(Duration::from_millis(10));
        };
        assert_eq!(status.code(), Some(130), "{name} after {after} ms");
        assert_eq!(left(place.path()), Vec::<PathBuf>::new(), "{name} after {after} ms");
    }
}

#[test]
fn killed_with_9_it_leaves_nothing() {
    let place = place();
    let mut child = dev(place.path(), &["--drill", "50"]);
    Said::of(&mut child).until("kill -9 of the primary");
    child.kill().unwrap();
    child.wait().unwrap();
    until_nothing_is_left(place.path());
}

#[test]
fn a_node_that_somebody_kills_comes_back() {
    let place = place();
    let mut child = dev(place.path(), &["--load", "2"]);
    let mut said = Said::of(&mut child);
    said.until("Ctrl-C ends");
    let folder = std::fs::read_dir(place.path()).unwrap().next().unwrap().unwrap().path();
    for node in ["n1", "n3"] {
        let pid = std::fs::read_to_string(folder.join(node).join("data/postmaster.pid")).unwrap();
        assert!(Command::new("kill").args(["-9", pid.lines().next().unwrap()]).status().unwrap().success());
        said.until(&format!("node {node} is back as a standby"));
    }
    signal(&child, "-TERM");
    let started = Instant::now();
    let status = child.wait().unwrap();
    assert!(started.elapsed() < PATIENCE && status.success());
    assert_eq!(left(place.path()), Vec::<PathBuf>::new());
}

#[test]
fn a_switchover_brings_the_old_primary_back_as_a_standby() {
    let place = place();
    let mut child = dev(place.path(), &["--load", "2"]);
    Said::of(&mut child).until("Ctrl-C ends");
    let folder = std::fs::read_dir(place.path()).unwrap().next().unwrap().unwrap().path();
    let pgsteady = |arguments: &[&str]| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_pgsteady"));
        let output = command.args(arguments).arg("-c").arg(folder.join("pgsteady.toml")).output().unwrap();
        (output.status.code(), text(&output))
    };
    let (code, said) = pgsteady(&["switchover", "--to", "n3", "--return-within", "60s"]);
    assert!(code == Some(0) && said.contains("n3 is the primary now"), "{said}");
    assert!(said.contains("n1 is back as a standby"), "{said}");
    let (code, said) = pgsteady(&["status"]);
    assert!(code == Some(0) && said.contains("primary n3") && said.contains("switchover n1 -> n3"), "{said}");
    let (code, said) = pgsteady(&["switchover", "--to", "n9"]);
    assert!(code == Some(1) && said.contains("no node \"n9\""), "{said}");
    signal(&child, "-TERM");
    assert!(child.wait().unwrap().success());
    assert_eq!(left(place.path()), Vec::<PathBuf>::new());
}

#[test]
fn kept_files_stay_and_processes_do_not() {
    let place = place();
    let mut child = dev(place.path(), &["--keep", "--nodes", "1"]);
    Said::of(&mut child).until("Ctrl-C ends");
    signal(&child, "-INT");
    assert!(child.wait().unwrap().success());
    let folder = std::fs::read_dir(place.path()).unwrap().next().unwrap().unwrap().path();
    assert!(folder.join("n1/data/PG_VERSION").is_file() && folder.join("pgsteady.toml").is_file());
    assert_eq!(left(place.path()), [folder]);
}
