//! The program pgsteady as a library: clients, pools, routing, configuration, command line.

pub mod config;
