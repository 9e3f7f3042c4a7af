//! What a transaction asks for, as far as its first message and what stands behind it show.

use pgwire::frontend::Target;
use pgwire::{frame, frontend};

use super::requests::{Frame, text};
use super::{Asked, Session};
use crate::routing::Class;

impl Session {
    /// What the client's next transaction wants, as far as there is a choice. What the statement is stays known.
    pub(super) fn asks(&mut self, frame: &mut Frame<'_>, behind: &[u8]) -> Asked {
        if self.entry.nodes == 1 {
            return Asked::primary();
        }
        let asked = Asked::of(self, frame.tag, frame.body, frame.whole, behind);
        if matches!(frame.tag, b'Q' | b'P') && frame.whole {
            frame.class = Some(asked.class.clone());
        }
        asked
    }
}

impl Asked {
    /// What the client's next transaction wants, by its first message and what stands behind it.
    pub(super) fn of(session: &Session, tag: u8, body: &[u8], whole: bool, behind: &[u8]) -> Self {
        let class =
            match tag {
                b'Q' if whole => text(body).map_or_else(|_| Class::unknown(), |text| session.class_of_text(text)),
                b'P' => frontend::Parse::read(body)
                    .map_or_else(|_| Class::unknown(), |parse| session.class_of_text(parse.text)),
                b'B' => frontend::Bind::read(body)
                    .map_or_else(|_| Class::unknown(), |bind| session.class_of(bind.statement)),
                b'D' => match Target::read(body) {
                    Ok(Target::Statement(name)) => session.class_of(name),
                    _ => Class::unknown(),
                },
                _ => Class::unknown(),
            };
        let alone = tag == b'Q' || session.batch_only_reads(behind);
        Self { class, alone }
    }
}

impl Session {
    /// Whether everything up to Sync is here, and each statement in it is one that only reads.
    fn batch_only_reads(&self, mut input: &[u8]) -> bool {
        while let Ok(Some(header)) = frame::header(input) {
            if input.len() < header.length {
                return false;
            }
            let body = &input[5..header.length];
            let reads = match header.tag {
                b'S' => return true,
                b'P' => frontend::Parse::read(body).is_ok_and(|parse| self.class_of_text(parse.text).reads_only),
                b'B' => frontend::Bind::read(body)
                    .is_ok_and(|bind| bind.statement.is_empty() || self.class_of(bind.statement).reads_only),
                b'D' | b'E' | b'C' | b'H' => true,
                _ => false,
            };
            if !reads {
                return false;
            }
            input = &input[header.length..];
        }
        false
    }
}
