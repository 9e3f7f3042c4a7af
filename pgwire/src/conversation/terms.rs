//! The words of a conversation: who asks, what becomes of a request and of an answer, what can go wrong. No logic.

use std::fmt;

use super::MAX_OWED;
use super::steps::name;

/// Who sent a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Asker {
    /// The client: it gets the answers.
    Client,
    /// We did: the client must not see the answers.
    Ours,
}

/// What became of a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// It was answered in full.
    Done,
    /// An ErrorResponse answered it.
    Failed,
    /// The server did not look at it: skipped after an error, or ignored by a COPY or for want of one.
    Skipped,
}

/// What to do with a backend message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fate {
    /// Pass it to the client.
    Forward,
    /// Drop it: it answers us.
    Swallow,
}

/// An answer that we give in the server's stead, in its turn.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reply {
    /// ParseComplete.
    ParseComplete,
    /// CloseComplete.
    CloseComplete,
}

/// The byte in ReadyForQuery.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TransactionStatus {
    /// `I`: no transaction.
    Idle,
    /// `T`: in a transaction.
    InTransaction,
    /// `E`: in a transaction that has failed.
    Failed,
}

impl TransactionStatus {
    /// From its byte.
    #[must_use]
    pub const fn from_byte(byte: u8) -> Option<Self> {
        match byte {
            b'I' => Some(Self::Idle),
            b'T' => Some(Self::InTransaction),
            b'E' => Some(Self::Failed),
            _ => None,
        }
    }

    /// Its byte.
    #[must_use]
    pub const fn byte(self) -> u8 {
        match self {
            Self::Idle => b'I',
            Self::InTransaction => b'T',
            Self::Failed => b'E',
        }
    }
}

/// Wait before you send more: [`MAX_OWED`] requests wait for their answers, or (for an answer of ours) it is not known which do.
/// Nothing was noted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TooMuchOwed;

impl fmt::Display for TooMuchOwed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "too many requests wait for an answer (at most {MAX_OWED})")
    }
}

impl std::error::Error for TooMuchOwed {}

/// A message from the server that does not fit what it owes: close that server.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Desync {
    expected: &'static str,
    tag: u8,
}

impl Desync {
    pub(super) const fn new(expected: &'static str, tag: u8) -> Self {
        Self { expected, tag }
    }
}

impl fmt::Display for Desync {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "the server broke the protocol: expected {}, received {} (0x{:02X})",
            self.expected,
            name(self.tag),
            self.tag
        )
    }
}

impl std::error::Error for Desync {}
