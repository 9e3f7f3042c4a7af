//! Parts of the path of a query, each done as often as is asked for: `parts PART TIMES`. Run under callgrind with two numbers, the
//! difference is what one costs in instructions (`tests/tests/instructions.rs` does that, and keeps it).

use std::hint::black_box;
use std::process::ExitCode;

use pgwire::conversation::{Asker, Conversation, Request};
use pgwire::frame;
use proxy::routing::{Classifier, ClassifierLimits, Kind};

/// PostgreSQL's answer to `SELECT 1`: a row, its description and its end; then that it is ready.
const ANSWER: [(u8, &[u8]); 4] = [
    (b'T', b"\0\x01?column?\0\0\0\0\0\0\0\0\0\0\x17\0\x04\xff\xff\xff\xff\0\0"),
    (b'D', b"\0\x01\0\0\0\x011"),
    (b'C', b"SELECT 1\0"),
    (b'Z', b"I"),
];

/// A statement that is too long to be read each time, so that it is looked up.
const LONG: &str = "SELECT abalance, aid, bid, filler FROM pgbench_accounts WHERE aid = $1 AND bid IN ($2, $3, $4, $5) AND filler IS NOT NULL \
                    ORDER BY abalance DESC, aid ASC LIMIT 10";

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [part, times] = &arguments[..] else { return usage() };
    let Ok(times) = times.parse() else { return usage() };
    match part.as_str() {
        "framing" => framing(times),
        "conversation" => conversation(times),
        "extended-conversation" => extended_conversation(times),
        "classification" => classification(times, "SELECT abalance FROM pgbench_accounts WHERE aid = 4711;"),
        "lookup" => classification(times, LONG),
        "reading" => reading(times),
        _ => return usage(),
    }
    ExitCode::SUCCESS
}

fn usage() -> ExitCode {
    eprintln!("parts framing|conversation|extended-conversation|classification|lookup|reading TIMES");
    ExitCode::FAILURE
}

/// Where each message of an answer begins, and whether it may be as long as it is.
fn framing(times: u32) {
    let mut answer = Vec::new();
    for (tag, body) in ANSWER {
        let declared = u32::try_from(body.len() + 4).expect("it is short");
        answer.push(tag);
        answer.extend_from_slice(&declared.to_be_bytes());
        answer.extend_from_slice(body);
    }
    for _ in 0..times {
        let mut rest = black_box(&answer[..]);
        while let Some(header) = frame::header(rest).expect("it is well formed") {
            let allowed = frame::backend_limit(header.tag).expect("PostgreSQL sends these");
            frame::within(header, allowed).expect("it is short");
            rest = &rest[header.length..];
        }
        assert!(rest.is_empty());
    }
}

/// A simple query and its answer.
fn conversation(times: u32) {
    let mut conversation = Conversation::<u32>::new();
    for number in 0..times {
        conversation.sent(Request::Query, Asker::Client, Some(number)).expect("little is owed");
        for (tag, body) in black_box(ANSWER) {
            conversation.received(tag, body, &mut |note, _| assert_eq!(note, number)).expect("it is the answer");
        }
        assert!(conversation.at_rest());
    }
}

/// The same by Parse, Bind, Describe, Execute and Sync.
fn extended_conversation(times: u32) {
    let asked =
        [Request::Parse, Request::Bind, Request::Describe { statement: false }, Request::Execute, Request::Sync];
    let mut conversation = Conversation::<u32>::new();
    for number in 0..times {
        for request in asked {
            conversation.sent(request, Asker::Client, Some(number)).expect("little is owed");
        }
        let confirmed: [(u8, &[u8]); 2] = [(b'1', b""), (b'2', b"")];
        for (tag, body) in black_box(confirmed).into_iter().chain(black_box(ANSWER)) {
            conversation.received(tag, body, &mut |note, _| assert_eq!(note, number)).expect("it is the answer");
        }
        assert!(conversation.at_rest());
    }
}

fn classifier() -> Classifier {
    Classifier::new(ClassifierLimits { entries: 1000, bytes: 1 << 20, statement_bytes: 1 << 20 })
}

/// What a text is that was seen before.
fn classification(times: u32, text: &str) {
    let mut classifier = classifier();
    for _ in 0..times {
        assert_eq!(classifier.classify(black_box(text.as_bytes())).kind, Kind::Query);
    }
}

/// What a text of that length is that is new.
fn reading(times: u32) {
    let mut classifier = classifier();
    for number in 0..times {
        let text = format!("{LONG} OFFSET {number}");
        assert_eq!(classifier.classify(black_box(text.as_bytes())).kind, Kind::Query);
    }
}
