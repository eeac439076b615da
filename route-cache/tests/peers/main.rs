//! The route cache with real peers: memcached, and lookup services that answer, fail and lie.
// What cannot be unwrapped in a test fails it.
#![allow(clippy::unwrap_used)]

mod lookup;
mod memcached;
mod stage;
