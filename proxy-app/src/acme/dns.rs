//! The DNS, as far as orders need it: records that show who controls a name, and what stands there about names.
//!
//! Addresses of servers are found otherwise: `upstream/dns.rs`.

pub(crate) mod client;
pub(crate) mod message;
pub(crate) mod name;
pub(crate) mod proof;
pub(crate) mod signature;
