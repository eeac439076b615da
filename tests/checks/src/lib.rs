//! What holds for any bytes from outside, one function for each fuzz target of `tests/fuzz`.
//!
//! The fuzz targets hunt with them for as long as they are let; the test of this crate plays them on stable for about
//! a second each, over the same dictionaries and seeds ([`input`]). Everything goes through public functions.

use std::fmt::Debug;

mod account;
mod client_hello;
mod frames;
mod head;
pub mod input;
mod line;
mod lookup;
mod mail;
mod memcached;
mod path;
mod proxy;
mod rewrite;
mod sasl;
mod sync_message;
mod yaml;

/// A fuzz target: its name, and what it checks.
pub type Target = (&'static str, fn(&[u8]));

/// All of them.
pub const TARGETS: &[Target] = &[
    ("account", account::check),
    ("client_hello", client_hello::check),
    ("frames", frames::check),
    ("head", head::check),
    ("imap", mail::imap),
    ("line", line::check),
    ("lookup_request", lookup::request),
    ("lookup_response", lookup::response),
    ("memcached", memcached::check),
    ("path", path::check),
    ("pop3", mail::pop3),
    ("proxy", proxy::check),
    ("rewrite", rewrite::check),
    ("sasl", sasl::check),
    ("sync_message", sync_message::check),
    ("yaml", yaml::check),
];

/// Checks bytes for the target of this name.
///
/// # Panics
/// Something does not hold, or there is no such target.
pub fn check(target: &str, bytes: &[u8]) {
    let found = TARGETS.iter().find(|(name, _)| *name == target);
    let (_, check) = found.unwrap_or_else(|| panic!("there is no target {target}"));
    check(bytes);
}

/// Some of the places before `end`, and all of the last ones.
fn cuts(end: usize) -> impl Iterator<Item = usize> {
    (0..end).step_by(97).chain(end.saturating_sub(8)..end)
}

/// The same comes of these bytes whole, cut in two and octet by octet.
fn check_ways<T: PartialEq + Debug>(bytes: &[u8], play: impl Fn(&[&[u8]]) -> T) -> T {
    let whole = play(&[bytes]);
    assert_eq!(whole, play(&bytes.chunks(1).collect::<Vec<_>>()), "octet by octet");
    let cut = bytes.first().map_or(0, |&first| usize::from(first) % bytes.len());
    assert_eq!(whole, play(&[&bytes[..cut], &bytes[cut..]]), "cut at {cut}");
    whole
}
