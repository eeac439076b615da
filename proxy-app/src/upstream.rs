//! Servers behind this node: their names, connections to them, groups of them.

pub(crate) mod body_clock;
pub(crate) mod connect;
pub(crate) mod connection;
pub(crate) mod dial;
pub(crate) mod dns;
mod early;
pub(crate) mod gathered;
pub(crate) mod groups;
pub(crate) mod http2;
mod link;
mod outgoing;
pub(crate) mod pace;
pub(crate) mod pool;
pub(crate) mod proxy_header;
pub(crate) mod socket;
