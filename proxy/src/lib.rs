//! The program pgsteady as a library: clients, pools, routing, configuration, command line.

pub mod auth;
pub mod check;
pub mod cli;
pub mod config;
pub mod error;
pub mod log;
pub mod node;
pub mod routing;
pub mod tls;
