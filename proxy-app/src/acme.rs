//! The client of an ACME authority (RFC 8555): account, orders, answers to challenges, and when a certificate is due.
//!
//! What is wanted and where it is stored is the matter of `app/acme_orders.rs`; nothing here knows the directory.

pub(crate) mod account_key;
pub(crate) mod care;
pub(crate) mod challenge_certificate;
pub(crate) mod challenges;
pub(crate) mod client;
pub(crate) mod dns;
pub(crate) mod exchange;
pub(crate) mod messages;
pub(crate) mod name_check;
pub(crate) mod renewal_info;
pub(crate) mod request;
pub(crate) mod self_request;
pub(crate) mod unstored;
