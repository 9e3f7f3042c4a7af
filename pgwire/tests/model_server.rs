//! Random clients against a model of PostgreSQL's main loop: whatever is pipelined and however it interleaves, what the
//! `Conversation` says of the server is true of the server.
//!
//! The model is written from `PostgresMain` and `CopyGetData`, reading one message at a time, and knows nothing of queues of
//! owed answers. `postgresql.rs` holds the same rules against the real thing.

#![allow(clippy::unwrap_used, reason = "a panic is how a test fails")]

use std::collections::VecDeque;

use pgwire::{Asker, Conversation, Outcome, Reply, Request, TransactionStatus};
use proptest::prelude::*;

/// What a statement does.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Effect {
    Rows(u8),
    Command,
    Begin,
    Commit,
    Empty,
    Fail,
    RowsAndFail,
    CopyOut,
    /// Reads data; fails at the message of this number, or never.
    CopyIn {
        fails_at: Option<u8>,
    },
}

#[derive(Clone, Debug)]
enum Sent {
    Query(Vec<Effect>),
    Execute(Effect),
    Extended(Request, bool),
    Call(bool),
    Sync,
    Flush,
    CopyData,
    CopyDone,
    CopyFail,
}

impl Sent {
    fn request(&self) -> Request {
        match self {
            Self::Query(_) => Request::Query,
            Self::Execute(_) => Request::Execute,
            Self::Extended(request, _) => *request,
            Self::Call(_) => Request::FunctionCall,
            Self::Sync => Request::Sync,
            Self::Flush => Request::Flush,
            Self::CopyData => Request::CopyData,
            Self::CopyDone => Request::CopyDone,
            Self::CopyFail => Request::CopyFail,
        }
    }
}

struct Copy {
    read: u8,
    fails_at: Option<u8>,
    /// Of a Query: what comes after it.
    rest: Option<VecDeque<Effect>>,
}

struct Server {
    inbox: VecDeque<Sent>,
    /// Tags, and the status at the time.
    outbox: VecDeque<(u8, TransactionStatus)>,
    skipping: bool,
    open: bool,
    status: TransactionStatus,
    copy: Option<Copy>,
}

impl Server {
    fn new() -> Self {
        Self {
            inbox: VecDeque::new(),
            outbox: VecDeque::new(),
            skipping: false,
            open: false,
            status: TransactionStatus::Idle,
            copy: None,
        }
    }

    fn truly_at_rest(&self) -> bool {
        self.inbox.is_empty()
            && self.outbox.is_empty()
            && !self.skipping
            && !self.open
            && self.copy.is_none()
            && self.status == TransactionStatus::Idle
    }

    fn say(&mut self, tags: &[u8]) {
        self.outbox.extend(tags.iter().map(|tag| (*tag, self.status)));
    }

    fn ready(&mut self) {
        self.open = false;
        self.say(b"Z");
    }

    fn fail(&mut self, extended: bool) {
        self.say(b"E");
        if self.status == TransactionStatus::InTransaction {
            self.status = TransactionStatus::Failed;
        }
        if extended {
            self.skipping = true;
            self.open = true;
        } else {
            self.ready();
        }
    }

    /// Reads one message; false if there is none.
    fn step(&mut self) -> bool {
        let Some(sent) = self.inbox.pop_front() else { return false };
        if let Some(copy) = self.copy.take() {
            self.copy_step(copy, &sent);
            return true;
        }
        if self.skipping && !matches!(sent, Sent::Sync) {
            return true;
        }
        match sent {
            Sent::Query(effects) => self.query(effects.into()),
            Sent::Execute(effect) => {
                self.open = true;
                self.execute(effect);
            }
            Sent::Extended(_, true) => self.fail(true),
            Sent::Extended(request, false) => {
                self.open = true;
                self.say(match request {
                    Request::Parse => b"1",
                    Request::Bind => b"2",
                    Request::Close => b"3",
                    Request::Describe { statement: true } => b"tT",
                    _ => b"n",
                });
            }
            Sent::Call(true) => self.fail(false),
            Sent::Call(false) => {
                self.say(b"V");
                self.ready();
            }
            Sent::Sync => {
                self.skipping = false;
                self.ready();
            }
            Sent::Flush | Sent::CopyData | Sent::CopyDone | Sent::CopyFail => {}
        }
        true
    }

    fn query(&mut self, mut effects: VecDeque<Effect>) {
        while let Some(effect) = effects.pop_front() {
            match effect {
                Effect::Fail => return self.fail(false),
                Effect::RowsAndFail => {
                    self.say(b"TDD");
                    return self.fail(false);
                }
                Effect::CopyIn { fails_at } => {
                    self.say(b"G");
                    if fails_at == Some(0) {
                        return self.fail(false);
                    }
                    self.copy = Some(Copy { read: 0, fails_at, rest: Some(effects) });
                    return;
                }
                Effect::Rows(rows) => {
                    self.say(b"T");
                    (0..rows).for_each(|_| self.say(b"D"));
                    self.say(b"C");
                }
                other => self.plain(other),
            }
        }
        self.ready();
    }

    fn execute(&mut self, effect: Effect) {
        match effect {
            Effect::Fail => self.fail(true),
            Effect::RowsAndFail => {
                self.say(b"DD");
                self.fail(true);
            }
            Effect::CopyIn { fails_at: Some(0) } => {
                self.say(b"G");
                self.fail(true);
            }
            Effect::CopyIn { fails_at } => {
                self.say(b"G");
                self.copy = Some(Copy { read: 0, fails_at, rest: None });
            }
            Effect::Rows(rows) => {
                (0..rows).for_each(|_| self.say(b"D"));
                self.say(if rows == 2 { b"s" } else { b"C" });
            }
            other => self.plain(other),
        }
    }

    fn plain(&mut self, effect: Effect) {
        match effect {
            Effect::Begin => self.status = TransactionStatus::InTransaction,
            Effect::Commit => self.status = TransactionStatus::Idle,
            _ => {}
        }
        self.say(match effect {
            Effect::Empty => b"I",
            Effect::CopyOut => b"HddcC",
            _ => b"C",
        });
    }

    fn copy_step(&mut self, mut copy: Copy, sent: &Sent) {
        let extended = copy.rest.is_none();
        match sent {
            Sent::Sync | Sent::Flush => self.copy = Some(copy),
            Sent::CopyData => {
                copy.read += 1;
                if copy.fails_at == Some(copy.read) {
                    return self.fail(extended);
                }
                self.copy = Some(copy);
            }
            Sent::CopyFail => self.fail(extended),
            Sent::CopyDone => {
                if copy.fails_at.is_some() {
                    return self.fail(extended);
                }
                self.say(b"C");
                if let Some(rest) = copy.rest {
                    self.query(rest);
                }
            }
            other => panic!("the generator sends no {other:?} into a COPY"),
        }
    }
}

/// What happens in a client and in the world, in order.
#[derive(Clone, Debug)]
enum Event {
    Send(Sent, bool),
    Answer,
    /// So many messages go from the server to the proxy, after the server has read all it was sent.
    Deliver(usize),
}

fn effect() -> impl Strategy<Value = Effect> {
    prop_oneof![
        (0_u8..4).prop_map(Effect::Rows),
        Just(Effect::Command),
        Just(Effect::Begin),
        Just(Effect::Commit),
        Just(Effect::Fail),
        Just(Effect::RowsAndFail),
        Just(Effect::CopyOut),
        prop_oneof![Just(None), (0_u8..4).prop_map(Some)].prop_map(|fails_at| Effect::CopyIn { fails_at }),
    ]
}

/// What a client sends once it has asked for a COPY: data with a Sync or Flush here and there, and an end.
fn data() -> impl Strategy<Value = Vec<Sent>> {
    let piece = prop_oneof![4 => Just(Sent::CopyData), 1 => Just(Sent::Sync), 1 => Just(Sent::Flush)];
    let end = prop_oneof![3 => Just(Sent::CopyDone), 1 => Just(Sent::CopyFail)];
    (proptest::collection::vec(piece, 0..5), end).prop_map(|(mut data, end)| {
        data.push(end);
        data
    })
}

/// A piece of a client's stream that keeps to the protocol, whatever becomes of it.
fn phrase() -> impl Strategy<Value = Vec<Sent>> {
    let extended = prop_oneof![
        Just(Request::Parse),
        Just(Request::Bind),
        Just(Request::Close),
        Just(Request::Describe { statement: true }),
        Just(Request::Describe { statement: false }),
    ];
    prop_oneof![
        4 => (extended, proptest::bool::weighted(0.15)).prop_map(|(request, fails)| vec![Sent::Extended(request, fails)]),
        3 => Just(vec![Sent::Sync]),
        1 => Just(vec![Sent::Flush]),
        1 => any::<bool>().prop_map(|fails| vec![Sent::Call(fails)]),
        1 => Just(vec![Sent::Query(vec![Effect::Empty])]),
        // Late ends of a COPY.
        1 => prop_oneof![Just(vec![Sent::CopyDone]), Just(vec![Sent::CopyData, Sent::CopyFail])],
        3 => (effect(), data()).prop_map(|(effect, mut data)| {
            let copies = matches!(effect, Effect::CopyIn { .. });
            data.insert(0, Sent::Execute(effect));
            data.truncate(if copies { data.len() } else { 1 });
            // A client ends an extended COPY with Sync: see `Conversation` on what follows otherwise.
            data.extend(copies.then_some(Sent::Sync));
            data
        }),
        3 => (proptest::collection::vec(effect(), 1..4), proptest::collection::vec(data(), 4)).prop_map(|(effects, data)| {
            let copies = effects.iter().filter(|effect| matches!(effect, Effect::CopyIn { .. })).count();
            std::iter::once(Sent::Query(effects)).chain(data.into_iter().take(copies).flatten()).collect()
        }),
    ]
}

fn events() -> impl Strategy<Value = Vec<Event>> {
    let piece = prop_oneof![
        6 => (phrase(), proptest::bool::weighted(0.2), proptest::collection::vec(0_usize..6, 8)).prop_map(|(phrase, ours, pauses)| {
            let mut events = Vec::new();
            for (at, sent) in phrase.into_iter().enumerate() {
                events.push(Event::Send(sent, ours));
                // Messages come back between any two that are sent.
                events.extend(pauses.get(at).filter(|pause| **pause < 3).map(|pause| Event::Deliver(*pause)));
            }
            events
        }),
        1 => Just(vec![Event::Answer]),
        2 => (1_usize..20).prop_map(|count| vec![Event::Deliver(count)]),
    ];
    proptest::collection::vec(piece, 0..14).prop_map(|pieces| pieces.concat())
}

struct World {
    server: Server,
    conversation: Conversation<usize>,
    notes: usize,
    outcomes: Vec<(usize, Outcome)>,
    replies: usize,
    given_up: bool,
}

impl World {
    fn note(&mut self) -> Option<usize> {
        self.notes += 1;
        Some(self.notes)
    }

    fn send(&mut self, sent: Sent, asker: Asker) {
        let note = self.note();
        self.conversation.sent(sent.request(), asker, note).unwrap();
        self.server.inbox.push_back(sent);
        self.turn();
    }

    fn turn(&mut self) {
        while self.conversation.due(&mut |note, outcome| self.outcomes.push((note, outcome))).is_some() {
            self.replies += 1;
        }
        if self.conversation.at_rest() {
            while self.server.step() {}
            assert!(self.server.truly_at_rest(), "given back too early");
        }
    }

    /// Hands over the next message; false if there is none.
    fn deliver(&mut self) -> bool {
        while self.server.step() {}
        if self.given_up {
            return false;
        }
        let Some((tag, status)) = self.server.outbox.pop_front() else { return false };
        let outcomes = &mut self.outcomes;
        let settled = &mut |note, outcome| outcomes.push((note, outcome));
        match self.conversation.received(tag, &[status.byte()], settled) {
            Ok(_) => {}
            // An answer of ours among the data of a COPY that fails: its turn cannot be known, so the server is given up.
            Err(desync) if desync.to_string().contains("behind a Sync that a COPY may have swallowed") => {
                self.given_up = true;
            }
            Err(desync) => panic!("{desync}"),
        }
        self.turn();
        true
    }

    fn finish(&mut self) {
        while self.deliver() {}
        // Whatever is open is ended as a client would end it.
        self.send(Sent::Sync, Asker::Client);
        while self.deliver() {}
        if self.conversation.uncertain() {
            self.send(Sent::Query(vec![Effect::Empty]), Asker::Ours);
            while self.deliver() {}
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 4_000, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn what_is_said_of_a_server_is_true_of_it(events in events()) {
        let mut world = World {
            server: Server::new(), conversation: Conversation::new(), notes: 0, outcomes: Vec::new(), replies: 0, given_up: false,
        };
        let mut answers = 0;
        for event in events {
            match event {
                Event::Send(sent, ours) => world.send(sent, if ours { Asker::Ours } else { Asker::Client }),
                Event::Answer => {
                    // Refused while a failed COPY leaves open what is owed.
                    if world.conversation.answer(Reply::ParseComplete, Some(world.notes + 1)).is_ok() {
                        world.notes += 1;
                        answers += 1;
                    }
                    world.turn();
                }
                Event::Deliver(count) => (0..count).for_each(|_| { world.deliver(); }),
            }
        }
        world.finish();
        if world.given_up {
            prop_assert!(!world.conversation.at_rest());
            return Ok(());
        }
        let status = world.server.status;
        prop_assert!(world.conversation.quiet(), "owed {}", world.conversation.owed());
        prop_assert_eq!(world.conversation.status(), status);
        prop_assert_eq!(world.conversation.at_rest(), status == TransactionStatus::Idle);
        prop_assert!(world.replies <= answers);
        let mut notes: Vec<_> = world.outcomes.iter().map(|(note, _)| *note).collect();
        notes.sort_unstable();
        prop_assert_eq!(notes, (1..=world.notes).collect::<Vec<_>>());
    }
}
