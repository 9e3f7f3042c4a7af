//! What a client is told that breaks the protocol: PostgreSQL's words, or PgBouncer's for what both know.

use std::fmt::Display;

use super::Session;
use super::turn::{End, Turn};
use crate::error::bad_packet_header;

/// What PgBouncer has words of its own for.
#[derive(Clone, Copy)]
pub(super) enum Broken<'a> {
    /// These bytes do not begin a message of a possible length.
    Header(&'a [u8]),
    /// A client has no messages of this type.
    Type,
    /// What follows the header of a Parse.
    Parse,
    /// What follows that of Bind, Describe or Close.
    Message,
}

/// The end of a session that sent something that may not come.
pub(super) fn violation(what: impl Into<String>) -> Turn {
    Turn::End(End::Violation(what.into()))
}

impl Session {
    /// The same; `what` is PostgreSQL's text for it.
    pub(super) fn broken(&self, broken: Broken<'_>, what: impl Display) -> Turn {
        if !self.is_plain {
            return violation(what.to_string());
        }
        violation(match broken {
            Broken::Header(input) => bad_packet_header(input),
            Broken::Type => "unknown pkt".to_owned(),
            Broken::Parse => "broken Parse packet".to_owned(),
            Broken::Message => "failed to parse packet".to_owned(),
        })
    }
}
