//! The front door: process, sockets, TLS and HTTP around `mail_proxy` and `route_cache`.
//!
//! A library only so that its parts can be tested and fuzzed; the program is `main.rs`.
// Not `forbid`: taking over a listening socket is unsafe by nature, and so are tickets and sessions of the TLS library.
// Each stands in a file of its own: listen/sockets.rs, tls/set_crl.rs, tls/set_session.rs, tls/ticket_method.rs.
#![deny(unsafe_code)]

mod acme;
pub mod admin;
mod app;
pub mod cli;
mod config;
pub mod http;
pub mod listen;
pub mod locations;
pub mod node;
mod nodes;
mod process;
mod provision;
mod tls;
mod upstream;
pub mod web;
