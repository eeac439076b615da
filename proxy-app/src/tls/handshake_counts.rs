//! How many handshakes with clients have come to their end, and how many of them resumed a session.

use std::sync::atomic::{AtomicU64, Ordering};

use super::profile::InnerProtocol;

/// Full handshakes and resumed ones, by protocol.
#[derive(Default)]
pub(crate) struct HandshakeCounts([[AtomicU64; 2]; InnerProtocol::ALL.len()]);

/// The kinds of handshakes, as labels have them.
const KINDS: [&str; 2] = ["full", "resumed"];

impl HandshakeCounts {
    /// A handshake has come to its end.
    pub(super) fn count(&self, inner: InnerProtocol, resumed: bool) {
        self.0[inner as usize][usize::from(resumed)].fetch_add(1, Ordering::Relaxed);
    }

    /// How many there were, with the names of protocol and kind.
    pub(crate) fn all(&self) -> impl Iterator<Item = (&'static str, &'static str, u64)> {
        InnerProtocol::ALL.into_iter().flat_map(|inner| {
            let counts = &self.0[inner as usize];
            let of_kind = move |(count, kind): (&AtomicU64, _)| (inner.name(), kind, count.load(Ordering::Relaxed));
            counts.iter().zip(KINDS).map(of_kind)
        })
    }
}
