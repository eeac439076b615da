//! What requests may take that not all can have: large portions of answers for clients that read, encoders, bodies that
//! are held. How many there may be, for one address and for the process.
//!
//! A large portion saves turns of the engine, an encoder saves bytes; both are memory that waits if the client stops
//! reading. No answer is refused: without a lease it goes in small portions, or as it is. A body is held until it is
//! known whether its login may go on; without a lease it is refused.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::Arc;

use parking_lot::Mutex;

use crate::node::limits::{NodeLimits, Origin};

/// What a lease is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum LeaseKind {
    /// An answer is read in large portions.
    Portion,
    /// An answer is compressed.
    Encoder,
    /// The body of what may be a login is held.
    Body,
}

impl LeaseKind {
    /// Most in the whole process: 32 MiB of portions, at most 125 MiB of encoders (docs/static-files.md),
    /// 125 MiB of bodies.
    const fn most(self) -> usize {
        match self {
            Self::Portion => 128,
            Self::Encoder => 240,
            Self::Body => 1_000,
        }
    }

    /// Most for one address. A browser that loads a page has some six answers at once; a house full of users logs in
    /// within some seconds.
    const fn most_of_address(self) -> usize {
        match self {
            Self::Portion => 8,
            Self::Encoder => 16,
            Self::Body => 200,
        }
    }
}

/// The leases of this node.
#[derive(Default)]
pub(super) struct Leases([Mutex<LeaseCounts>; 3]);

#[derive(Default)]
struct LeaseCounts {
    all: usize,
    refused: u64,
    by_origin: HashMap<Origin, usize>,
}

/// An answer has what this was given for while this lives.
pub(crate) struct Lease {
    limits: Arc<NodeLimits>,
    kind: LeaseKind,
    origin: Option<Origin>,
}

impl NodeLimits {
    /// A lease for a client at this address, if there is one left.
    pub(crate) fn lease(self: &Arc<Self>, kind: LeaseKind, address: IpAddr) -> Option<Lease> {
        let settings = self.settings.load();
        let exempt = settings.exempt.iter().any(|network| network.contains(&address));
        let origin = (!exempt).then(|| Origin::of(address));
        let mut counts = self.leases.0[kind as usize].lock();
        if counts.all >= kind.most() {
            counts.refused += 1;
            return None;
        }
        if let Some(origin) = origin {
            let count = counts.by_origin.entry(origin).or_default();
            if *count >= kind.most_of_address() {
                counts.refused += 1;
                return None;
            }
            *count += 1;
        }
        counts.all += 1;
        Some(Lease {
            limits: self.clone(),
            kind,
            origin,
        })
    }

    /// How often there was none left since the start.
    pub(crate) fn refused_leases(&self, kind: LeaseKind) -> u64 {
        self.leases.0[kind as usize].lock().refused
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        let mut counts = self.limits.leases.0[self.kind as usize].lock();
        counts.all -= 1;
        if let Some(origin) = self.origin
            && let Some(count) = counts.by_origin.get_mut(&origin)
        {
            *count -= 1;
            if *count == 0 {
                counts.by_origin.remove(&origin);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::node::limits::LimitsConfig;

    #[test]
    fn each_address_and_the_process_have_so_many() {
        for (kind, other) in [
            (LeaseKind::Portion, LeaseKind::Encoder),
            (LeaseKind::Encoder, LeaseKind::Portion),
            (LeaseKind::Body, LeaseKind::Portion),
        ] {
            let (most, most_of_address) = (kind.most(), kind.most_of_address());
            let limits = NodeLimits::new(LimitsConfig::default());
            let lease = |last: u8| limits.lease(kind, [192, 0, 2, last].into());
            let mut held: Vec<_> = (0..most_of_address)
                .map(|_| lease(1).expect("there is one left"))
                .collect();
            assert!(lease(1).is_none() && lease(2).is_some());
            held.pop();
            held.push(lease(1).expect("one was given back"));
            // A balancer speaks for many.
            let balancer = || limits.lease(kind, [127, 0, 0, 1].into());
            held.extend((most_of_address..most).map(|_| balancer().expect("there is one left")));
            assert!(balancer().is_none() && lease(2).is_none());
            assert!(
                limits.lease(other, [192, 0, 2, 1].into()).is_some(),
                "each kind by itself"
            );
            assert_eq!((limits.refused_leases(kind), limits.refused_leases(other)), (3, 0));
            drop(held);
            assert!(lease(2).is_some());
            assert!(limits.leases.0.iter().all(|counts| counts.lock().by_origin.is_empty()));
        }
    }
}
