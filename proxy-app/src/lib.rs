//! The front door: process, sockets, TLS and HTTP around `mail_proxy` and `route_cache`.
//!
//! A library only so that its parts can be tested and fuzzed; the program is `main.rs`.
// Not `forbid`: taking over a listening socket is unsafe by nature, and stands alone in inherited.rs.
#![deny(unsafe_code)]

pub mod admin;
pub mod app;
pub mod background;
pub mod changes;
pub mod cli;
pub mod client_certs;
pub mod config;
pub mod connector;
pub mod end;
pub mod inherited;
pub mod listener;
pub mod names;
pub mod node;
pub mod prov;
pub mod proxy_protocol;
pub mod routes;
pub mod sites;
pub mod snapshot;
pub mod stream;
pub mod tls;
pub mod upgrade;
pub mod web;
