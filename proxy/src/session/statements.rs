//! Prepared statements of clients that share servers: any name, named and unnamed.
//!
//! A client's name stands for a [`Statement`], which has one number for all clients of a worker; a server holds it as
//! `pgsteady_NUMBER`. A name counts only after ParseComplete: until then it stands in `pending`, in the order of asking.

use std::collections::{HashMap, VecDeque};
use std::sync::{Arc, Weak};

use bytes::{BufMut, BytesMut};
use pgwire::conversation::Outcome;
use pgwire::frontend::Parse;

use crate::routing::Class;

/// Bytes of prepared statements that one client may hold.
const MAX_CLIENT_BYTES: usize = 64 << 20;
/// A Parse of the unnamed statement up to this size is kept, to be repeated on another server.
const MAX_UNNAMED_BYTES: usize = 1 << 20;
/// Statements interned by a worker before those that nobody holds any more are looked for.
const SWEEP_FROM: usize = 1024;

/// A query text with its parameter types, as clients prepared it.
#[derive(Debug)]
pub(crate) struct Statement {
    /// The number that makes its name on servers.
    pub(super) number: u64,
    /// What follows the name in Parse: the text with its NUL, and the parameter types.
    pub(super) body: Box<[u8]>,
    /// What the text is.
    pub(super) class: Class,
}

impl Statement {
    /// Appends the Parse that gives it to a server.
    pub(super) fn write(&self, out: &mut BytesMut) {
        let text = self.body.iter().position(|byte| *byte == 0).unwrap_or(self.body.len());
        let (text, types) = (&self.body[..text], self.body.get(text + 1..).unwrap_or_default());
        let parse = Parse { name: &Self::server_name(self.number), text, types };
        parse.write(out).expect("it came as a Parse message with a longer or shorter name");
    }

    /// Its name on a server.
    pub(super) fn server_name(number: u64) -> [u8; 29] {
        let mut name = *b"pgsteady_00000000000000000000";
        let mut left = number;
        for digit in name.iter_mut().rev() {
            *digit = b'0' + u8::try_from(left % 10).unwrap_or(0);
            left /= 10;
            if left == 0 {
                break;
            }
        }
        name
    }
}

/// The statements of all clients of a worker, each text once.
#[derive(Debug, Default)]
pub(crate) struct Interned {
    statements: HashMap<Arc<[u8]>, Weak<Statement>>,
    sweep_at: usize,
}

impl Interned {
    /// The statement with this body; made, with a number of its own, if nobody holds it.
    pub(crate) fn get(
        &mut self,
        body: &[u8],
        number: impl FnOnce() -> u64,
        class: impl FnOnce() -> Class,
    ) -> Arc<Statement> {
        if let Some(statement) = self.statements.get(body).and_then(Weak::upgrade) {
            return statement;
        }
        if self.statements.len() >= self.sweep_at.max(SWEEP_FROM) {
            self.statements.retain(|_, statement| statement.strong_count() > 0);
            self.sweep_at = self.statements.len() * 2;
        }
        let statement = Arc::new(Statement { number: number(), body: body.into(), class: class() });
        self.statements.insert(body.into(), Arc::downgrade(&statement));
        statement
    }
}

impl Interned {
    /// The next to prepare this text gets a statement of its own.
    pub(crate) fn forget(&mut self, statement: &Statement) {
        self.statements.remove(&*statement.body);
    }
}

/// The unnamed statement of a client.
#[derive(Debug)]
pub(super) struct Unnamed {
    /// Its number: a server that notes this number holds it.
    pub(super) number: u64,
    /// The whole Parse message; empty if it was too large to be kept.
    pub(super) parse: BytesMut,
    /// What the text is.
    pub(super) class: Class,
}

/// A name that is being given (`Some`) or taken back (`None`).
type Pending = (Box<[u8]>, Option<Arc<Statement>>);

/// The names of one client.
#[derive(Debug, Default)]
pub(super) struct Names {
    /// None before the first, and after all were taken back: many clients never give any.
    given: Option<Box<Given>>,
    /// The unnamed statement.
    pub(super) unnamed: Option<Box<Unnamed>>,
}

/// The names that a client has given.
#[derive(Debug, Default)]
struct Given {
    held: HashMap<Box<[u8]>, Arc<Statement>>,
    /// Asked for and not settled.
    pending: VecDeque<Pending>,
    bytes: usize,
}

impl Names {
    /// The statement of this name, as it will be when all that was asked is done.
    pub(super) fn get(&self, name: &[u8]) -> Option<&Arc<Statement>> {
        let given = self.given.as_ref()?;
        match given.pending.iter().rev().find(|(pending, _)| **pending == *name) {
            Some((_, statement)) => statement.as_ref(),
            None => given.held.get(name),
        }
    }

    /// The client asked to give a name, or with `None` to take it back.
    pub(super) fn ask(&mut self, name: &[u8], statement: Option<Arc<Statement>>) {
        self.given.get_or_insert_default().pending.push_back((name.into(), statement));
    }

    /// The oldest of what was asked is settled.
    pub(super) fn settle(&mut self, outcome: Outcome) {
        let Some(given) = &mut self.given else { return };
        let Some((name, statement)) = given.pending.pop_front() else { return };
        if outcome != Outcome::Done {
            return;
        }
        let cost = |statement: &Arc<Statement>| statement.body.len() + 64;
        let before = match statement {
            Some(statement) => {
                given.bytes += cost(&statement);
                given.held.insert(name, statement)
            }
            None => given.held.remove(&name),
        };
        given.bytes -= before.as_ref().map_or(0, cost);
    }

    /// Nothing that was asked will be answered.
    pub(super) fn forget_pending(&mut self) {
        if let Some(given) = &mut self.given {
            given.pending.clear();
        }
    }

    /// The server was told to forget all (DISCARD ALL, DEALLOCATE ALL).
    pub(super) fn clear(&mut self) {
        *self = Self::default();
    }

    /// How many the client holds.
    pub(super) fn len(&self) -> usize {
        self.given.as_ref().map_or(0, |given| given.held.len())
    }

    /// The statements that have names.
    pub(super) fn held(&self) -> impl Iterator<Item = &Arc<Statement>> {
        self.given.iter().flat_map(|given| given.held.values())
    }

    /// Whether another statement of this size may be held.
    pub(super) fn has_room(&self, bytes: usize) -> bool {
        self.given.as_ref().map_or(0, |given| given.bytes) + bytes <= MAX_CLIENT_BYTES
    }

    /// A Parse of the unnamed statement was sent. The memory of the one before is used again.
    pub(super) fn set_unnamed(&mut self, number: u64, parse: &[u8], class: Class) {
        let keep = if parse.len() <= MAX_UNNAMED_BYTES { parse } else { &[] };
        match &mut self.unnamed {
            Some(unnamed) => {
                unnamed.number = number;
                unnamed.class = class;
                unnamed.parse.clear();
                unnamed.parse.put_slice(keep);
            }
            none => *none = Some(Box::new(Unnamed { number, parse: keep.into(), class })),
        }
    }
}
