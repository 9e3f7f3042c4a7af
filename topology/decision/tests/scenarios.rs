//! Readable failovers: every file in `tests/scenarios/` is played against the real coordinator and a model cluster.
//! Commands are explained by their use; `tests/model/simulation/script.rs` is the list.

mod model;

use std::fs;
use std::path::Path;

#[test]
fn every_scenario_holds() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/scenarios");
    let mut files: Vec<_> = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()).collect();
    files.sort();
    assert!(files.len() >= 20, "only {} scenarios found", files.len());
    let mut failed = Vec::new();
    for file in files {
        if let Err(why) = model::simulation::script::run(&fs::read_to_string(&file).unwrap(), None) {
            failed.push(format!("{}: {why}", file.display()));
        }
    }
    assert!(failed.is_empty(), "{}", failed.join("\n\n"));
}

#[test]
fn an_unknown_command_fails() {
    assert!(model::simulation::script::run("cluster 3\nfly n0\n", None).is_err());
    assert!(model::simulation::script::run("cluster 3\nuntil primary n0\nexpect primary n1\n", None).is_err());
    assert!(model::simulation::script::run("kill n0\n", None).is_err());
}

/// Without the look at the marker, a stopped coordinator gives the old primary its standby back, and a commit is lost.
#[test]
fn a_blind_unfence_would_lose_a_commit() {
    let text = include_str!("scenarios/39-stale-unfence.txt");
    let violation = model::simulation::script::run(text, Some(model::Lie::BlindUnfence)).unwrap_err();
    assert!(violation.contains("does not hold"), "{violation}");
}
