//! The golden conversations, played to the model. `postgresql.rs` plays the same files to a real server.

#![allow(clippy::unwrap_used, reason = "a panic is how a test fails")]

mod script;

use script::Script;

#[test]
fn the_model_follows_every_conversation() {
    let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/conversations");
    let mut played = 0;
    for file in std::fs::read_dir(folder).expect(folder) {
        let path = file.unwrap().path();
        let name = path.file_name().unwrap().to_string_lossy().into_owned();
        for script in Script::read(&std::fs::read_to_string(&path).unwrap()) {
            assert!(!script.title().is_empty(), "{name}: a conversation without a title");
            script.play(&name, None);
            played += 1;
        }
    }
    assert!(played > 40, "only {played} conversations were found");
}
