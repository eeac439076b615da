//! Servers behind this node: their names, connections to them, groups of them.

pub mod connect;
pub mod connection;
pub mod dns;
pub mod groups;
