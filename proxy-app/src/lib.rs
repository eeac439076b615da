//! The front door: process, sockets, TLS and HTTP around `mail_proxy` and `route_cache`.
//!
//! A library only so that its parts can be tested and fuzzed; the program is `main.rs`.
// Not `forbid`: taking over a listening socket is unsafe by nature, and stands alone in sockets.rs.
#![deny(unsafe_code)]

pub mod admin;
pub mod app;
pub mod cli;
pub mod config;
pub mod http;
pub mod listen;
pub mod locations;
pub mod node;
pub mod process;
pub mod provision;
pub mod tls;
pub mod upstream;
pub mod web;
