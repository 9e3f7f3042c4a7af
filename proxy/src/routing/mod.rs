//! What a statement is, and which node a transaction may go to. Pure logic: no socket, no clock, no catalog.
//!
//! [`Classifier`] turns the text of a statement into a [`Class`], [`Want`] says what a transaction asks for, and
//! [`choose()`] picks the node. Whatever is not proven to read only goes to the primary.

mod cache;
mod choose;
mod class;
mod classify;
mod functions;
mod grammar;
mod lexer;
mod reads;
mod route;
mod settings;
mod shape;

pub use choose::{Choice, ReadAfter, ReplicaPolicy, Want, choose};
pub use class::{Change, Class, Effect, Effects, Few, Kind, Parts, PinReason, SettingChange};
pub use classify::{Classifier, ClassifierLimits, MAX_GRAMMAR_BYTES, MAX_NESTING};
pub use functions::Functions;
pub use route::Route;
