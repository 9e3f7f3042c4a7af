//! The program pgsteady as a library: clients, pools, routing, configuration, command line.

pub mod auth;
mod cancel;
pub mod check;
pub mod cli;
mod clock;
pub mod clusters;
pub mod config;
pub mod control;
pub mod dev;
mod entry;
pub mod error;
mod housekeeping;
mod listener;
pub mod log;
pub mod node;
pub mod pgbouncer;
mod pool;
pub mod routing;
pub mod run;
pub mod serve;
mod session;
mod settings;
mod shared;
pub mod tls;
mod wire;
mod worker;
