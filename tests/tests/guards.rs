//! The guards of `docs/guards.md`: each is where the page says, and each has a test that fails without it.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// Every file of the source, also those not committed yet.
const LIST: [&str; 4] = ["ls-files", "--cached", "--others", "--exclude-standard"];

/// One section of the page.
struct Guard {
    title: String,
    file: PathBuf,
    line: String,
    without: String,
    tests: String,
}

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("the workspace is above")
}

fn guards() -> Vec<Guard> {
    let page = fs::read_to_string(root().join("docs/guards.md")).expect("the page is there");
    let sections = page.split("\n## ").skip(1);
    let guards: Vec<Guard> = sections.map(read).collect();
    assert!(guards.len() >= 20, "only {} guards were read from the page", guards.len());
    guards
}

fn read(section: &str) -> Guard {
    let field = |name: &str| {
        let begin = format!("- {name}: `");
        let line = section.lines().find_map(|line| line.strip_prefix(&begin)?.strip_suffix('`'));
        line.unwrap_or_else(|| panic!("no {name} in: {section}")).to_owned()
    };
    Guard {
        title: section.lines().next().unwrap_or_default().to_owned(),
        file: field("file").into(),
        line: field("guard"),
        without: field("without"),
        tests: field("tests"),
    }
}

#[test]
fn every_guard_is_where_the_page_says() {
    for guard in guards() {
        let text = fs::read_to_string(root().join(&guard.file)).expect("its file is there");
        let times = text.matches(&guard.line).count();
        assert_eq!(times, 1, "{}: {:?} in {}", guard.title, guard.line, guard.file.display());
    }
}

/// `make guards`: minutes, for each guard is a build of its own. `GUARD=word` takes only those with the word in their title.
#[test]
#[ignore = "takes ten minutes: make guards"]
fn without_any_guard_a_test_fails() {
    let copy = harness::folder::Folder::new("guards");
    let listed = Command::new("git").args(LIST).current_dir(root()).output().expect("git can be run");
    for name in String::from_utf8(listed.stdout).expect("names are text").lines() {
        let to = copy.path().join(name);
        fs::create_dir_all(to.parent().expect("it is in a folder")).expect("a folder can be made");
        fs::copy(root().join(name), to).expect("a file can be copied");
    }
    let cargo = |arguments: &str| {
        let mut command = Command::new("cargo");
        command.args(arguments.split(' ')).current_dir(copy.path()).env("RUSTFLAGS", "-Awarnings");
        command.env("CARGO_TARGET_DIR", root().join("target/guards")).stdout(Stdio::null()).stderr(Stdio::null());
        command.status().expect("cargo can be run").success()
    };
    let mut unnoticed = Vec::new();
    let chosen = std::env::var("GUARD").unwrap_or_default();
    for guard in guards().into_iter().filter(|guard| guard.title.contains(&chosen)) {
        let file = copy.path().join(&guard.file);
        let whole = fs::read_to_string(&file).expect("a copy can be read");
        fs::write(&file, whole.replace(&guard.line, &guard.without)).expect("a copy can be written");
        // what end-to-end tests run is built beside them
        let is_run = guard.tests.contains("end-to-end");
        assert!(!is_run || cargo("build --bin pgsteady"), "does not compile without: {}", guard.title);
        assert!(cargo(&format!("test {} --no-run", guard.tests)), "does not compile without: {}", guard.title);
        let green = cargo(&format!("test {}", guard.tests));
        eprintln!("{}: {}", guard.title, if green { "NOT NOTICED" } else { "noticed" });
        if green {
            unnoticed.push(guard.title);
        }
        fs::write(&file, whole).expect("a copy can be written");
    }
    assert!(unnoticed.is_empty(), "no test fails without: {unnoticed:?}");
}
