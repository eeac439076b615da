//! Large portions of answers for clients that read: how many there may be.
//!
//! A large portion saves turns of the engine, and is memory that waits if its client stops reading after all.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::Arc;

use parking_lot::Mutex;

use crate::node::limits::{NodeLimits, Origin};

/// Most in the whole process.
const ALL: usize = 128;
/// Most for one address.
const PER_ADDRESS: usize = 8;

/// The leases of this node.
#[derive(Default)]
pub(super) struct Leases(Mutex<LeaseCounts>);

#[derive(Default)]
struct LeaseCounts {
    all: usize,
    by_origin: HashMap<Origin, usize>,
}

/// An answer that is read in large portions while this lives.
pub(crate) struct Lease {
    limits: Arc<NodeLimits>,
    origin: Option<Origin>,
}

impl NodeLimits {
    /// A lease for a client at this address, if there is one left.
    pub(crate) fn lease(self: &Arc<Self>, address: IpAddr) -> Option<Lease> {
        let settings = self.settings.load();
        let exempt = settings.exempt.iter().any(|network| network.contains(&address));
        let origin = (!exempt).then(|| Origin::of(address));
        let mut counts = self.leases.0.lock();
        if counts.all >= ALL {
            return None;
        }
        if let Some(origin) = origin {
            let count = counts.by_origin.entry(origin).or_default();
            if *count >= PER_ADDRESS {
                return None;
            }
            *count += 1;
        }
        counts.all += 1;
        Some(Lease {
            limits: self.clone(),
            origin,
        })
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        let mut counts = self.limits.leases.0.lock();
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
        let limits = NodeLimits::new(LimitsConfig::default());
        let lease = |last: u8| limits.lease([192, 0, 2, last].into());
        let mut held: Vec<_> = (0..PER_ADDRESS).map(|_| lease(1).expect("there is one left")).collect();
        assert!(lease(1).is_none() && lease(2).is_some());
        held.pop();
        held.push(lease(1).expect("one was given back"));
        // A balancer speaks for many.
        held.extend((PER_ADDRESS..ALL).map(|_| limits.lease([127, 0, 0, 1].into()).expect("there is one left")));
        assert!(limits.lease([127, 0, 0, 1].into()).is_none() && lease(2).is_none());
        drop(held);
        assert!(lease(2).is_some());
        assert!(limits.leases.0.lock().by_origin.is_empty());
    }
}
