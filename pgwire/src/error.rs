//! What can be wrong with bytes from the wire. Not for what is wrong with their meaning: that is a `Refusal` or a `Desync`.

use std::fmt;

use crate::sqlstate::{self, SqlState};

/// Bytes that are not the message they claim to be. Names the message and the fault; never quotes the bytes, which may be secret.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Malformed {
    /// The declared length lies outside what a message of this tag can have.
    Length {
        /// First byte of the message.
        tag: u8,
        /// Length as declared: without the tag, including its own four bytes.
        declared: u32,
        /// Least and greatest declared length allowed.
        allowed: (u32, u32),
    },
    /// The message ends before the field does.
    Truncated(&'static str),
    /// A string has no terminating zero byte.
    Unterminated(&'static str),
    /// The message goes on after its last field.
    Trailing(&'static str),
    /// A field has a value that it cannot have.
    Invalid(&'static str),
    /// What was to be written contains a zero byte where the protocol ends a string with one.
    ZeroByte(&'static str),
    /// What was to be written does not fit a message: the length would wrap and its tail be read as other messages.
    TooLarge,
}

impl Malformed {
    /// The SQLSTATE under which this is reported: always 08P01, *protocol_violation*.
    #[must_use]
    pub const fn sqlstate(&self) -> SqlState {
        sqlstate::PROTOCOL_VIOLATION
    }
}

impl fmt::Display for Malformed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Length { tag, declared, allowed: (least, most) } => write!(
                f,
                "invalid message length {declared} for message type 0x{tag:02X}: {least} to {most} bytes are allowed"
            ),
            Self::Truncated(what) => write!(f, "invalid message format: {what} ends too early"),
            Self::Unterminated(what) => write!(f, "invalid message format: {what} has an unterminated string"),
            Self::Trailing(what) => write!(f, "invalid message format: {what} has bytes after its end"),
            Self::Invalid(what) => write!(f, "invalid message format: {what} has an invalid value"),
            Self::ZeroByte(what) => write!(f, "{what} contains a zero byte"),
            Self::TooLarge => write!(f, "message longer than {} bytes", crate::frame::MAX_DECLARED),
        }
    }
}

impl std::error::Error for Malformed {}
