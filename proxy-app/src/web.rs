//! The web side: HTTPS, from the client's connection to the answer of a server.

pub(crate) mod access_log;
pub(crate) mod client;
pub mod connection;
pub(crate) mod decision;
pub(crate) mod engine;
pub(crate) mod keeping;
pub(crate) mod login_gate;
pub(crate) mod phases;
pub(crate) mod read_ahead;
pub(crate) mod request_context;
pub(crate) mod server_choice;
pub(crate) mod sso;
pub(crate) mod stream;
pub(crate) mod throttle;
pub(crate) mod upstream_headers;
pub(crate) mod upstream_peer;
pub(crate) mod websocket;
