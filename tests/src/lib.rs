//! The stage: everything around the program that the tests, the demo and the benchmarks need.
//!
//! Real peers run as children on ports of their own, in a temporary directory: Dovecot as mailbox server,
//! HAProxy as balancer, and the built `portico` between them. What cannot be had from a real peer is played
//! here: a web mail server that echoes requests as JSON ([`web`]), mailbox servers that lie ([`fake`]).
//!
//! What is deliberately not here: any code of the program. The stage uses it from outside only.

#![forbid(unsafe_code)]

pub mod acme_authority;
pub mod bare;
pub mod bind;
pub mod browser;
pub mod certs;
pub mod child;
pub mod config;
pub mod dovecot;
pub mod fake;
pub mod forwarder;
pub mod h2;
pub mod haproxy;
pub mod imaptest;
pub mod jetty;
pub mod ldap_stage;
pub mod load;
pub mod lookup;
pub mod memcached;
pub mod nginx;
pub mod pebble;
pub mod player;
pub mod portico;
pub mod redis;
pub mod rivals;
pub mod rustls_client;
pub mod s_client;
pub mod secrets;
pub mod simulator;
pub mod slapd;
mod stage;
pub mod table;
pub mod tokens;
pub mod town;
pub mod web;
pub mod wire;

pub use stage::{Stage, until, wait_until};

/// How much of something a test does: little in the suite, and as much as this environment variable says where somebody
/// wants to know more.
pub fn amount(variable: &str, little: usize) -> usize {
    let wanted = std::env::var(variable).ok();
    wanted.and_then(|wanted| wanted.parse().ok()).unwrap_or(little)
}

/// The figure of a sorted series below which so many percent of it are; 0 of none.
pub fn percentile(sorted: &[u64], percent: usize) -> u64 {
    let at = (sorted.len() * percent / 100).min(sorted.len().saturating_sub(1));
    sorted.get(at).copied().unwrap_or_default()
}
