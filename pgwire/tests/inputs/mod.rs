//! Hostile bytes for every parser, with what must hold whatever they are. Called with seeded noise by `hostile.rs` and with
//! a fuzzer's inputs by the targets in the folder `fuzz`.

#![allow(dead_code, clippy::unwrap_used, reason = "each user takes its part; a panic is how a check fails")]

use bytes::BytesMut;
use pgwire::auth::scram::client::{Binding, Client};
use pgwire::auth::scram::server::Server;
use pgwire::auth::scram::{Keys, Nonce, OwnKeys, salted_password};
use pgwire::auth::{self, Authentication, SaslInitial, Stored};
use pgwire::frontend::{self, Bind, Execute, Parse, Target};
use pgwire::greeting::{Greeting, Step};
use pgwire::{Asker, Conversation, Malformed, Reply, Request, backend, frame, options, report};

/// The beginning of a connection: an answer does not change when more bytes come, and takes no more than there are.
pub(crate) fn startup(bytes: &[u8]) {
    let whole = Greeting::new().read(bytes);
    let taken = match &whole {
        Ok(Step::Cancel(_, taken) | Step::Startup(_, taken)) => *taken,
        _ => bytes.len(),
    };
    assert!(taken <= bytes.len());
    if let Ok(Step::Startup(startup, _)) = &whole {
        let _ = (startup.user(), startup.database());
        let mut out = BytesMut::new();
        startup.negotiate(&mut out).unwrap();
        options(startup.get("options").unwrap_or_default());
        assert_eq!(Greeting::new().read(&bytes[..taken]), Greeting::new().read(bytes));
    }
    if matches!(whole, Ok(Step::More(_))) {
        for cut in 0..bytes.len().min(64) {
            assert!(matches!(Greeting::new().read(&bytes[..cut]), Ok(Step::More(_))), "more makes less");
        }
    }
}

/// The startup parameter `options`.
pub(crate) fn options(bytes: &[u8]) {
    if let Ok(settings) = options::parse(bytes) {
        let length: usize = settings.iter().map(|(name, value)| name.len() + value.len()).sum();
        assert!(length <= bytes.len());
    }
}

/// Messages of a client: what is read and written again is the same message, and each ends at a border.
pub(crate) fn frontend(mut bytes: &[u8]) {
    while let Ok(Some(message)) = frame::split(bytes) {
        let (tag, body) = (message.tag, message.body);
        let length = bytes.len() - message.rest.len();
        let whole = &bytes[..length];
        assert_eq!(length, frame::header(bytes).unwrap().unwrap().length);
        let _ = frame::frontend_limit(tag);
        let _ = (Request::from_tag(tag, body), auth::read_password(body), SaslInitial::read(body).is_ok());
        let mut again = BytesMut::new();
        let read = match tag {
            b'P' => Parse::read(body).and_then(|parse| parse.write(&mut again)),
            b'B' => Bind::read(body).and_then(|bind| {
                let _ = bind.check();
                bind.write(&mut again)
            }),
            b'D' => Target::read(body).and_then(|target| target.describe(&mut again)),
            b'C' => Target::read(body).and_then(|target| target.close(&mut again)),
            b'E' => Execute::read(body).and_then(|execute| execute.write(&mut again)),
            b'Q' => frontend::query(body).and_then(|text| frontend::write_query(&mut again, text)),
            _ => Err(Malformed::Invalid("not read")),
        };
        match read {
            Ok(()) => assert_eq!(again, whole),
            Err(_) => assert!(again.is_empty()),
        }
        bytes = message.rest;
    }
}

/// Messages of a server.
pub(crate) fn backend(mut bytes: &[u8]) {
    while let Ok(Some(message)) = frame::split(bytes) {
        let (tag, body) = (message.tag, message.body);
        let _ = frame::backend_limit(tag);
        let _ = (backend::ready_for_query(body), backend::parameter_status(body), backend::backend_key_data(body));
        let _ = (backend::command_complete(body), backend::negotiate_protocol_version(body));
        if let Ok(values) = backend::row_values(body) {
            let mut again = BytesMut::new();
            backend::data_row(&mut again, &values).unwrap();
            assert_eq!(&again[5..], body);
        }
        if let Ok(request) = Authentication::read(body) {
            let mut again = BytesMut::new();
            request.write(&mut again).unwrap();
            assert!(again.len() <= body.len() + 5);
        }
        report(body);
        bytes = message.rest;
    }
    report(bytes);
}

/// An error or a notice, or anything else in their place.
pub(crate) fn report(bytes: &[u8]) {
    let view = report::View::new(bytes);
    assert!(view.fields().count() <= bytes.len());
    let _ = (view.sqlstate(), view.is_fatal(), view.is_commit_not_replicated());
    let message = view.message();
    assert!(!message.contains(['\n', '\r', '\0', '\u{1b}', '\u{2028}']), "unfit for a log: {message}");
}

/// Any requests and any answers in any order: no request is settled twice or invented, what is at rest owes nothing, and a
/// server that broke the protocol never comes to rest again.
pub(crate) fn conversation(bytes: &[u8]) {
    let mut conversation = Conversation::new();
    let mut notes = 0_u32;
    let mut settled = Vec::new();
    let mut broken = false;
    for pair in bytes.chunks_exact(2) {
        let (kind, what) = (pair[0], pair[1]);
        let asker = if kind & 4 == 0 { Asker::Client } else { Asker::Ours };
        match (kind & 3, Request::from_tag(what, b"S")) {
            (0, Some(request)) => {
                notes += 1;
                conversation.sent(request, asker, Some(notes)).unwrap();
            }
            (1, _) => {
                let reply = if what & 1 == 0 { Reply::ParseComplete } else { Reply::CloseComplete };
                // Refused while a failed COPY leaves open what is owed.
                notes += u32::from(conversation.answer(reply, Some(notes + 1)).is_ok());
            }
            _ => {
                let body: &[u8] = if kind & 8 == 0 { b"I" } else { b"T" };
                broken |= conversation.received(what, body, &mut |note, _| settled.push(note)).is_err();
            }
        }
        if kind & 16 != 0 || kind & 3 != 0 {
            while conversation.due(&mut |note, _| settled.push(note)).is_some() {}
        }
        assert!(conversation.owed() <= notes as usize);
        assert!(!conversation.at_rest() || (conversation.owed() == 0 && !broken && !conversation.copy_in()));
        assert!(!conversation.uncertain() || !conversation.at_rest());
    }
    settled.extend(conversation.into_notes());
    settled.sort_unstable();
    let count = settled.len();
    settled.dedup();
    assert_eq!(settled.len(), count, "a request was settled twice");
    assert!(settled.iter().all(|note| (1..=notes).contains(note)));
    assert!(broken || count == notes as usize, "a request was lost");
}

fn keys() -> Keys {
    Keys::mock(b"secret", "user", 4096)
}

/// A client's messages to our SCRAM server; nobody gets in without the password.
pub(crate) fn scram_server(bytes: &[u8]) {
    let (first, last) = halves(bytes);
    for end_point in [None, Some(b"hash".to_vec())] {
        for mechanism in [&b"SCRAM-SHA-256"[..], b"SCRAM-SHA-256-PLUS"] {
            let server = Server::new(keys(), Nonce::given("server").unwrap(), end_point.clone());
            if let Ok((answer, server)) = server.first(mechanism, first) {
                assert!(answer.len() <= first.len() + 200);
                assert!(server.last(last).is_err(), "logged in");
            }
        }
    }
    if let Stored::Scram(keys) = Stored::parse(bytes) {
        assert!(Keys::parse(&keys.to_text()).is_some());
    }
}

/// A server's messages to our SCRAM client; nobody is believed who does not know the password.
pub(crate) fn scram_client(bytes: &[u8]) {
    let (first, last) = halves(bytes);
    for binding in [Binding::Unsupported, Binding::NotOffered, Binding::EndPoint(b"hash".to_vec())] {
        let client = Client::new(Nonce::given("client").unwrap(), binding);
        if let Ok(challenged) = client.challenged(first) {
            assert!((4096..=1_000_000).contains(&challenged.iterations()));
            let own = OwnKeys::new(&salted_password(b"x", challenged.salt(), 1));
            assert!(challenged.answer(&own).1.verify(last).is_err(), "believed");
        }
    }
}

/// Two messages in one input: split at the first line feed.
fn halves(bytes: &[u8]) -> (&[u8], &[u8]) {
    let at = bytes.iter().position(|&b| b == b'\n').unwrap_or(bytes.len());
    (&bytes[..at], bytes.get(at + 1..).unwrap_or_default())
}
