//! HTTP without a server: heads, bodies and answers, each on its own.

pub mod account;
pub(crate) mod answer_head;
pub(crate) mod answers;
pub(crate) mod behind;
pub(crate) mod bound_login;
pub(crate) mod compression;
pub(crate) mod encoder;
pub mod frames;
pub(crate) mod headers;
pub(crate) mod login;
pub(crate) mod login_words;
pub(crate) mod old_clients;
pub(crate) mod relocation;
pub(crate) mod repeat;
pub(crate) mod request_id;
pub(crate) mod request_line;
pub(crate) mod static_ui;
pub(crate) mod streams;
pub(crate) mod trusted_forwarders;

/// Longest request head: nginx's four buffers of 8 KiB.
pub const HEAD_MAX: usize = 32 * 1024;
