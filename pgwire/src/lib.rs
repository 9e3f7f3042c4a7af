//! PostgreSQL's wire protocol without the wire: bytes in, bytes out. No socket, no clock, no task lives here.
//!
//! Every parser takes what came from the network and trusts none of it: each length, count and string is checked
//! before it is believed, nothing panics, and whatever is refused is refused before anything behind it is read.
#![cfg_attr(
    not(test),
    deny(
        clippy::indexing_slicing,
        clippy::arithmetic_side_effects,
        clippy::unwrap_used,
        clippy::cast_possible_truncation
    )
)]

pub mod auth;
pub mod backend;
pub mod conversation;
pub mod error;
pub mod fields;
pub mod frame;
pub mod frontend;
pub mod greeting;
pub mod options;
pub mod parameters;
pub mod report;
pub mod sqlstate;

pub use conversation::{Asker, Conversation, Desync, Fate, Outcome, Reply, Request, TooMuchOwed, TransactionStatus};
pub use error::Malformed;
pub use frame::Header;
pub use report::Report;
