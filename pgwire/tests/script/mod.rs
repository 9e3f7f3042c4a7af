//! Conversations as text: what a line means, and playing it to a `Conversation` and, at will, to a real server.
//!
//! ```text
//! --- a title              a new conversation, at rest
//! > Query select 1         the client sends; each request is noted under its number, from 1
//! > ours Sync              we send
//! > answer ParseComplete   a request of the client that we answer ourselves
//! < RowDescription         comes from the server and is forwarded
//! < swallowed DataRow      comes from the server and is swallowed
//! < broken DataRow         comes from the server and does not fit
//! = at rest                and: not at rest, quiet, not quiet, uncertain, copy in, copy out, owed 2, status T,
//! = due ParseComplete      our own answer's turn has come; checked to be none otherwise
//! = settled 1 done, 2 skipped, 3 failed     all outcomes since the last such line
//! ```

use std::fmt::Write as _;

use bytes::BytesMut;
use pgwire::frontend::{self, Target};
use pgwire::{Asker, Conversation, Fate, Outcome, Reply, Request, fields, frame};

/// A server that a conversation is played to, beside the model.
pub(crate) trait Server {
    /// Sends a message to it.
    fn send(&mut self, message: &[u8]);
    /// The next message from it; `at` says where in the script.
    fn receive(&mut self, at: &str) -> (u8, Vec<u8>);
}

/// One conversation of a file.
pub(crate) struct Script<'a> {
    title: &'a str,
    lines: Vec<(usize, &'a str)>,
}

impl<'a> Script<'a> {
    /// The conversations in a file.
    pub(crate) fn read(text: &'a str) -> Vec<Self> {
        let mut scripts: Vec<Self> = Vec::new();
        for (number, line) in text.lines().enumerate().map(|(at, line)| (at + 1, line.trim())) {
            if let Some(title) = line.strip_prefix("---") {
                scripts.push(Self { title: title.trim(), lines: Vec::new() });
            } else if !line.is_empty() && !line.starts_with('#') {
                scripts.last_mut().expect("a title comes first").lines.push((number, line));
            }
        }
        scripts
    }

    /// What the conversation is about.
    pub(crate) fn title(&self) -> &str {
        self.title
    }

    /// Plays it; panics with file, title and line where something is not as it says.
    pub(crate) fn play(&self, file: &str, mut server: Option<&mut dyn Server>) {
        let mut play = Play { conversation: Conversation::new(), requests: 0, outcomes: Vec::new(), due: None };
        for (number, line) in &self.lines {
            let at = format!("{file}:{number}: {} | {line}", self.title);
            let (sign, rest) = line.split_once(' ').unwrap_or_else(|| panic!("{at}: no sign"));
            match sign {
                ">" => play.send(rest, server.as_deref_mut(), &at),
                "<" => play.receive(rest, server.as_deref_mut(), &at),
                "=" => play.check(rest, &at),
                _ => panic!("{at}: unknown sign"),
            }
        }
        assert_eq!(play.due, None, "{file}: {}: an answer of ours that the script does not know", self.title);
    }
}

struct Play {
    conversation: Conversation<usize>,
    requests: usize,
    outcomes: Vec<(usize, Outcome)>,
    due: Option<Reply>,
}

impl Play {
    fn send(&mut self, line: &str, server: Option<&mut (dyn Server + '_)>, at: &str) {
        assert_eq!(self.due, None, "{at}: an answer of ours is due before");
        self.requests += 1;
        let note = Some(self.requests);
        if let Some(reply) = line.strip_prefix("answer ") {
            self.conversation.answer(reply_of(reply, at), note).expect(at);
        } else {
            let (asker, line) = line.strip_prefix("ours ").map_or((Asker::Client, line), |rest| (Asker::Ours, rest));
            let message = message_of(line, at);
            let request = Request::from_tag(message[0], &message[frame::HEADER..]).expect(at);
            if let Some(server) = server {
                server.send(&message);
            }
            self.conversation.sent(request, asker, note).expect(at);
        }
        self.turn();
    }

    fn receive(&mut self, line: &str, server: Option<&mut (dyn Server + '_)>, at: &str) {
        assert_eq!(self.due, None, "{at}: an answer of ours is due before");
        let (mark, line) = match line.split_once(' ') {
            Some((mark @ ("swallowed" | "broken"), rest)) => (mark, rest),
            _ => ("", line),
        };
        let (tag, mut body) = reply_from(line, at);
        if let Some(server) = server {
            let (came, real) = server.receive(at);
            let said = described(came, &real);
            assert!(said.starts_with(line), "{at}: the server sent {said}");
            body = real;
        }
        let outcomes = &mut self.outcomes;
        let received = self.conversation.received(tag, &body, &mut |note, outcome| outcomes.push((note, outcome)));
        match (mark, received) {
            ("broken", Err(_)) => assert!(!self.conversation.at_rest() && !self.conversation.quiet(), "{at}"),
            ("swallowed", Ok(fate)) => assert_eq!(fate, Fate::Swallow, "{at}"),
            ("", Ok(fate)) => assert_eq!(fate, Fate::Forward, "{at}"),
            (_, Ok(_)) => panic!("{at}: it fits"),
            (_, Err(desync)) => panic!("{at}: {desync}"),
        }
        self.turn();
    }

    /// Looks once whether an answer of ours is due.
    fn turn(&mut self) {
        let outcomes = &mut self.outcomes;
        self.due = self.conversation.due(&mut |note, outcome| outcomes.push((note, outcome)));
    }

    fn check(&mut self, line: &str, at: &str) {
        let conversation = &self.conversation;
        if let Some(reply) = line.strip_prefix("due ") {
            assert_eq!(self.due.take(), Some(reply_of(reply, at)), "{at}");
            return self.turn();
        }
        assert_eq!(self.due, None, "{at}: an answer of ours is due before");
        if let Some(list) = line.strip_prefix("settled ") {
            let words = |(note, outcome): (usize, Outcome)| format!("{note} {outcome:?}").to_lowercase();
            let settled: Vec<_> = self.outcomes.drain(..).map(words).collect();
            let settled = if settled.is_empty() { "nothing".to_owned() } else { settled.join(", ") };
            return assert_eq!(settled, list, "{at}");
        }
        let (negated, line) = line.strip_prefix("not ").map_or((false, line), |rest| (true, rest));
        let holds = match line {
            "at rest" => conversation.at_rest(),
            "quiet" => conversation.quiet(),
            "uncertain" => conversation.uncertain(),
            "copy in" => conversation.copy_in(),
            "copy out" => conversation.copy_out(),
            _ => match line.split_once(' ') {
                Some(("owed", count)) => conversation.owed().to_string() == count,
                Some(("status", status)) => char::from(conversation.status().byte()).to_string() == status,
                _ => panic!("{at}: unknown check"),
            },
        };
        assert!(holds != negated, "{at}: owed {}, status {:?}", conversation.owed(), conversation.status());
    }
}

fn reply_of(name: &str, at: &str) -> Reply {
    match name {
        "ParseComplete" => Reply::ParseComplete,
        "CloseComplete" => Reply::CloseComplete,
        _ => panic!("{at}: unknown answer"),
    }
}

/// The message that a `>` line stands for; `''` is an empty name.
fn message_of(line: &str, at: &str) -> BytesMut {
    let mut out = BytesMut::new();
    let (kind, rest) = line.split_once(' ').unwrap_or((line, ""));
    let (first, second) = rest.split_once(' ').unwrap_or((rest, ""));
    let unquoted = |word: &str| if word == "''" { Vec::new() } else { word.as_bytes().to_vec() };
    let named = unquoted(second);
    let target = || match first {
        "statement" => Target::Statement(&named),
        "portal" => Target::Portal(&named),
        _ => panic!("{at}: statement or portal?"),
    };
    let written: Result<(), pgwire::Malformed> = match known(kind, at) {
        "Query" => frontend::write_query(&mut out, rest.as_bytes()),
        "Parse" => frontend::parse(&mut out, &unquoted(first), second.as_bytes(), &[]),
        "Bind" => frontend::bind(&mut out, &unquoted(first), &unquoted(second), &[]),
        "Describe" => target().describe(&mut out),
        "Close" => target().close(&mut out),
        "Execute" => frontend::Execute { portal: &unquoted(first), rows: second.parse().unwrap_or(0) }.write(&mut out),
        "CopyData" => fields::message(&mut out, b'd', |body| body.bytes(rest.replace("\\n", "\n").as_bytes())),
        "CopyFail" => frontend::copy_fail(&mut out, rest.as_bytes()),
        "FunctionCall" => fields::message(&mut out, b'F', |body| {
            body.u32(rest.parse().expect(at))?;
            body.count(0)?;
            body.count(0)?;
            body.count(0)
        }),
        whole => {
            out.extend_from_slice(match whole {
                "Sync" => &frontend::SYNC,
                "Flush" => &frontend::FLUSH,
                "CopyDone" => &frontend::COPY_DONE,
                _ => &frontend::TERMINATE,
            });
            Ok(())
        }
    };
    written.expect(at);
    out
}

fn known(kind: &str, at: &str) -> &'static str {
    let all = [
        "Query",
        "Parse",
        "Bind",
        "Describe",
        "Close",
        "Execute",
        "CopyData",
        "CopyFail",
        "FunctionCall",
        "Sync",
        "Flush",
        "CopyDone",
        "Terminate",
    ];
    all.into_iter().find(|name| *name == kind).unwrap_or_else(|| panic!("{at}: unknown request"))
}

const REPLIES: [(u8, &str); 24] = [
    (b'1', "ParseComplete"),
    (b'2', "BindComplete"),
    (b'3', "CloseComplete"),
    (b'A', "NotificationResponse"),
    (b'C', "CommandComplete"),
    (b'D', "DataRow"),
    (b'E', "ErrorResponse"),
    (b'G', "CopyInResponse"),
    (b'H', "CopyOutResponse"),
    (b'I', "EmptyQueryResponse"),
    (b'K', "BackendKeyData"),
    (b'N', "NoticeResponse"),
    (b'R', "Authentication"),
    (b'S', "ParameterStatus"),
    (b'T', "RowDescription"),
    (b'V', "FunctionCallResponse"),
    (b'W', "CopyBothResponse"),
    (b'Z', "ReadyForQuery"),
    (b'c', "CopyDone"),
    (b'd', "CopyData"),
    (b'n', "NoData"),
    (b's', "PortalSuspended"),
    (b't', "ParameterDescription"),
    (b'?', "Unknown"),
];

/// Tag and body that a `<` line stands for; the body only as far as it is looked at.
fn reply_from(line: &str, at: &str) -> (u8, Vec<u8>) {
    let (kind, rest) = line.split_once(' ').unwrap_or((line, ""));
    let known = REPLIES.iter().find(|(_, name)| *name == kind).unwrap_or_else(|| panic!("{at}: unknown message"));
    (known.0, rest.as_bytes().to_vec())
}

/// A message of a server as a `<` line has it.
fn described(tag: u8, body: &[u8]) -> String {
    let known = REPLIES.iter().find(|(t, _)| *t == tag).map_or("?", |(_, name)| name);
    let mut said = known.to_owned();
    match tag {
        b'Z' => write!(said, " {}", String::from_utf8_lossy(body)).unwrap(),
        b'C' => write!(said, " {}", String::from_utf8_lossy(&body[..body.len() - 1])).unwrap(),
        b'E' | b'N' => {
            let report = pgwire::report::View::new(body);
            let severity = String::from_utf8_lossy(report.severity().unwrap_or(b"?"));
            write!(said, " {} {severity} {}", report.sqlstate().unwrap(), report.message()).unwrap();
        }
        _ => {}
    }
    said
}
