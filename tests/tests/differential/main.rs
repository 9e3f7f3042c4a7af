//! The same conversations as with PgBouncer 1.25, message by message. A conversation is a file in `tests/conversations`; what
//! PgBouncer says in it is on record beside it, and what may differ is marked, with the reason, and has to differ.
//! `make differential` compares the record with PgBouncer itself; `UPDATE=1 make differential` writes it.

use std::fs;
use std::path::{Path, PathBuf};

use harness::pgbouncer::{PgBouncer, at};
use harness::postgres::{Node, Programs};

use conversation::{Conversation, Heard};

mod conversation;
mod starts;
mod transcript;

/// Time for one conversation.
const TEST_S: u64 = 120;
/// Conversations that are held at the same time: they mostly wait.
const AT_A_TIME: usize = 4;

/// Where they are.
fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("conversations")
}

/// All of them, or the one that `CONVERSATION` names, each with the file of its record.
fn conversations() -> Vec<(String, Conversation, PathBuf)> {
    let only = std::env::var("CONVERSATION").ok();
    let files = fs::read_dir(folder()).expect("the folder").map(|entry| entry.expect("an entry").path());
    let mut files: Vec<PathBuf> = files.filter(|file| file.extension().is_some_and(|kind| kind == "txt")).collect();
    files.sort();
    let mut conversations = Vec::new();
    for file in files {
        let name = file.file_stem().expect("files have names").to_string_lossy().into_owned();
        let conversation = Conversation::read(&fs::read_to_string(&file).expect("a conversation"));
        let conversation = conversation.unwrap_or_else(|why| panic!("{name}: {why}"));
        if only.as_ref().is_none_or(|only| *only == name) {
            conversations.push((name, conversation, file.with_extension("heard")));
        }
    }
    assert!(!conversations.is_empty(), "no conversation");
    conversations
}

/// Holds it with PgBouncer, if its program is given, or with ours.
fn hold(conversation: &Conversation, theirs: Option<&Path>) -> Vec<Heard> {
    let mut heard = Vec::new();
    harness::run(TEST_S, async {
        let node = Node::primary(&Programs::installed()).await;
        let databases = at(&node, &conversation.databases);
        let bouncer = PgBouncer::start_program(theirs, &databases, &conversation.settings, &conversation.users).await;
        heard = conversation.hold(&bouncer).await;
    });
    heard
}

fn shown(heard: &Heard) -> String {
    heard.join("\n             ")
}

/// What differs in one conversation and is not marked, and what is marked and does not differ.
fn differences(name: &str, conversation: &Conversation, record: &Path) -> Vec<String> {
    let theirs = fs::read_to_string(record).unwrap_or_else(|_| panic!("{name}: no record: UPDATE=1 make differential"));
    let theirs = conversation.recorded(&theirs).unwrap_or_else(|why| panic!("{}: {why}", record.display()));
    let ours = hold(conversation, None);
    let mut wrong = Vec::new();
    for (step, (theirs, ours)) in conversation.steps.iter().zip(theirs.iter().zip(&ours)) {
        match (&step.differs, theirs == ours) {
            (None, false) => {
                let (theirs, ours) = (shown(theirs), shown(ours));
                wrong.push(format!("{name}: {}\n  PgBouncer: {theirs}\n  pgsteady:  {ours}", step.text));
            }
            (Some(why), true) => wrong.push(format!("{name}: {}: does not differ, although: {why}", step.text)),
            _ => {}
        }
    }
    wrong
}

#[test]
fn every_conversation_is_the_same_but_for_what_is_marked() {
    let conversations = conversations();
    let mut wrong = Vec::new();
    for some in conversations.chunks(AT_A_TIME) {
        std::thread::scope(|scope| {
            let held: Vec<_> =
                some.iter().map(|(name, it, record)| scope.spawn(|| differences(name, it, record))).collect();
            wrong.extend(held.into_iter().flat_map(|held| held.join().expect("a conversation is held")));
        });
    }
    let steps = conversations.iter().flat_map(|(_, conversation, _)| &conversation.steps);
    let marked = steps.clone().filter(|step| step.differs.is_some()).count();
    eprintln!("{} steps, {marked} of them marked as different", steps.count());
    assert!(wrong.is_empty(), "{} differences\n{}", wrong.len(), wrong.join("\n"));
}

#[test]
#[ignore = "needs PgBouncer 1.25: make differential"]
fn pgbouncer_says_what_is_on_record() {
    let program = PathBuf::from(std::env::var_os("PGBOUNCER").expect("PGBOUNCER names the program: make differential"));
    let mut wrong = Vec::new();
    for (name, conversation, record) in conversations() {
        let heard = conversation.record(&hold(&conversation, Some(&program)));
        if std::env::var_os("UPDATE").is_some() {
            fs::write(&record, &heard).expect("a record can be written");
        }
        if fs::read_to_string(&record).ok().as_ref() != Some(&heard) {
            wrong.push(format!("{name}:\n{heard}"));
        }
    }
    assert!(wrong.is_empty(), "not what is on record:\n{}", wrong.join("\n"));
}

#[test]
fn what_is_no_conversation_is_not_taken_for_one() {
    assert!(Conversation::read("a: sing\n").is_err());
    assert!(Conversation::read("differs\na: sync\n").is_err(), "a difference has a reason");
    let conversation = Conversation::read("a: sync\na: until Z\n").expect("it is one");
    let heard = vec![Vec::new(), vec!["Z \"I\"".to_owned(), "end".to_owned()]];
    assert_eq!(conversation.recorded(&conversation.record(&heard)), Ok(heard));
    assert!(conversation.recorded("a: until Z\n    Z \"I\"\n").is_err(), "another conversation");
}
