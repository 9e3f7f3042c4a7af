//! Keeps the shape of the repository: lengths, headers, words, and the direction between crates. Formatting is rustfmt's
//! and everything about types is clippy's.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

use harness::source::{blank_out, functions};

/// Lines of a file.
const FILE_LINES: usize = 500;
/// Lines of a function, from its `fn` to its closing brace.
const FUNCTION_LINES: usize = 70;
/// Words that say nothing about what a thing is.
const EMPTY_WORDS: [&str; 7] = ["manager", "helper", "helpers", "util", "utils", "context", "handler"];
/// Work that is not done is not marked, it is done or it is not there.
const UNFINISHED: [&str; 2] = [concat!("TO", "DO"), concat!("FIX", "ME")];
/// Our crates, by folder: which of ours each may use, and what else it must not use.
const WALLS: [(&str, &[&str], &[&str]); 6] = [
    ("pgwire", &[], &["tokio", "tokio-postgres", "tokio-openssl", "openssl", "socket2", "nix"]),
    ("topology/decision", &[], &["tokio", "tracing"]),
    ("topology", &["decision"], &[]),
    ("proxy", &["pgwire", "topology"], &[]),
    ("tests", &["pgwire", "topology"], &[]),
    ("bench", &["end-to-end"], &[]),
];
const OURS: [&str; 6] = ["pgwire", "decision", "topology", "pgsteady", "end-to-end", "bench"];

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("tests/ is in the repository").to_owned()
}

/// Files of ours with one of these endings; what was built, downloaded or generated is not ours.
fn files(endings: &[&str]) -> Vec<PathBuf> {
    let mut found = Vec::new();
    let mut folders = vec![root()];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(&folder).expect("a folder of the repository is readable") {
            let entry = entry.expect("an entry of the repository is readable");
            let name = entry.file_name().to_string_lossy().into_owned();
            let skipped = [".git", ".cache", "target", "corpus", "artifacts", "generated"].contains(&name.as_str());
            let is_folder = entry.file_type().is_ok_and(|kind| kind.is_dir());
            if is_folder && !skipped {
                folders.push(entry.path());
            } else if !is_folder && endings.iter().any(|ending| name.ends_with(ending)) {
                found.push(entry.path());
            }
        }
    }
    assert!(!found.is_empty(), "no file ends in {endings:?}: this test looks in the wrong place");
    found.sort();
    found
}

fn text(path: &Path) -> String {
    fs::read_to_string(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

/// Fails with all findings at once, each as `file:line: what`.
fn none(findings: &[String]) {
    assert!(findings.is_empty(), "\n{}\n", findings.join("\n"));
}

fn shown(path: &Path) -> String {
    path.strip_prefix(root()).unwrap_or(path).display().to_string()
}

#[test]
fn files_are_short_and_say_what_they_are_for() {
    let mut findings = Vec::new();
    for path in files(&[".rs"]) {
        let source = text(&path);
        let lines = source.lines().count();
        if lines > FILE_LINES {
            findings.push(format!("{}:{FILE_LINES}: {lines} lines; {FILE_LINES} are allowed", shown(&path)));
        }
        if !source.starts_with("//! ") {
            findings.push(format!("{}:1: the file does not begin with a `//! ` line", shown(&path)));
        }
    }
    none(&findings);
}

#[test]
fn functions_are_short() {
    let mut findings = Vec::new();
    let mut seen = 0;
    for path in files(&[".rs"]) {
        for function in functions(&blank_out(&text(&path))) {
            seen += 1;
            if function.lines > FUNCTION_LINES {
                findings.push(format!(
                    "{}:{}: `{}` has {} lines; {FUNCTION_LINES} are allowed",
                    shown(&path),
                    function.line,
                    function.name,
                    function.lines
                ));
            }
        }
    }
    assert!(seen > 20, "only {seen} functions found: this test does not see the code");
    none(&findings);
}

/// `HttpManager` and `http_manager` both contain the word `manager`.
fn words(name: &str) -> Vec<String> {
    let mut words = vec![String::new()];
    for character in name.chars() {
        if (character == '_' || character == '-' || character.is_uppercase())
            && words.last().is_some_and(|w| !w.is_empty())
        {
            words.push(String::new());
        }
        if character.is_alphanumeric() {
            words.last_mut().expect("there is always one").extend(character.to_lowercase());
        }
    }
    words
}

fn empty_word(name: &str) -> Option<String> {
    words(name).into_iter().find(|word| EMPTY_WORDS.contains(&word.as_str()))
}

#[test]
fn names_say_something() {
    let mut findings = Vec::new();
    for path in files(&[".rs", ".sh", ".py", ".java"]) {
        let stem = path.file_stem().unwrap_or_default().to_string_lossy().into_owned();
        if let Some(word) = empty_word(&stem) {
            findings.push(format!("{}:1: a file is called `{word}`", shown(&path)));
        }
    }
    for path in files(&[".rs"]) {
        for (number, line) in blank_out(&text(&path)).lines().enumerate() {
            let tokens: Vec<&str> =
                line.split(|c: char| !(c.is_alphanumeric() || c == '_')).filter(|token| !token.is_empty()).collect();
            for pair in tokens.windows(2) {
                let names = ["struct", "enum", "trait", "type", "mod", "union"].contains(&pair[0]);
                if let Some(word) = empty_word(pair[1]).filter(|_| names) {
                    findings.push(format!("{}:{}: {} {}: `{word}`", shown(&path), number + 1, pair[0], pair[1]));
                }
            }
        }
    }
    none(&findings);
}

#[test]
fn nothing_is_marked_unfinished() {
    let mut findings = Vec::new();
    for path in files(&[".rs", ".toml", ".sh", ".py", ".java", ".yml", "Makefile", "Dockerfile", "run"]) {
        for (number, line) in text(&path).lines().enumerate() {
            if let Some(mark) = UNFINISHED.iter().find(|mark| line.contains(**mark)) {
                findings.push(format!("{}:{}: {mark}", shown(&path), number + 1));
            }
        }
    }
    none(&findings);
}

fn manifest(folder: &str) -> toml::Table {
    let path = root().join(folder).join("Cargo.toml");
    text(&path).parse().unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

fn dependencies(manifest: &toml::Table, section: &str) -> BTreeSet<String> {
    manifest.get(section).and_then(toml::Value::as_table).into_iter().flatten().map(|(name, _)| name.clone()).collect()
}

#[test]
fn crates_know_only_what_they_may() {
    let mut findings = Vec::new();
    for (folder, ours, forbidden) in WALLS {
        let manifest = manifest(folder);
        for name in dependencies(&manifest, "dependencies") {
            let of_ours = OURS.contains(&name.as_str());
            if (of_ours && !ours.contains(&name.as_str())) || forbidden.contains(&name.as_str()) {
                findings.push(format!("{folder}/Cargo.toml:1: `{name}` is on the other side of a wall"));
            }
        }
        let lints = manifest.get("lints").and_then(|lints| lints.get("workspace")).and_then(toml::Value::as_bool);
        if lints != Some(true) {
            findings.push(format!("{folder}/Cargo.toml:1: the workspace's lints are not taken over"));
        }
    }
    none(&findings);
}

#[test]
fn the_decision_depends_on_nothing() {
    let manifest = manifest("topology/decision");
    for section in ["dependencies", "build-dependencies"] {
        let found = dependencies(&manifest, section);
        assert!(found.is_empty(), "topology/decision/Cargo.toml:1: [{section}] is not empty: {found:?}");
    }
}

#[test]
fn every_member_has_a_wall() {
    let manifest = manifest("");
    let members = manifest["workspace"]["members"].as_array().expect("the workspace has members");
    let members: BTreeSet<&str> = members.iter().filter_map(toml::Value::as_str).collect();
    let walls: BTreeSet<&str> = WALLS.iter().map(|(folder, _, _)| *folder).collect();
    assert_eq!(members, walls, "Cargo.toml:1: members and walls differ");
    let unsafe_code = manifest["workspace"]["lints"]["rust"]["unsafe_code"].as_str();
    assert_eq!(unsafe_code, Some("forbid"), "Cargo.toml:1: unsafe_code");
}
