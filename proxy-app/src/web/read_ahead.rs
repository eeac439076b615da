//! How much of an answer is read at once: little for a client of which it is not known that it reads, more for others.

use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use crate::node::limits::{Lease, LeaseKind, NodeLimits};
use crate::upstream::pace::Pace;

/// Portion before the head has been passed on: what comes together with the head is copied, and the copy's buffer stays.
const FIRST: usize = 4 * 1024;
/// Portion of a client of which no more is known.
const PORTION: usize = 8 * 1024;
/// Portion of a client that reads.
const LEASED: usize = 128 * 1024;
/// A client reads once it has taken this much: more than the systems on the way take for a program that does not.
const READS: u64 = 512 * 1024;
/// Most that waits in the system for a client (TCP_NOTSENT_LOWAT); it would be megabytes.
pub(crate) const UNSENT: u32 = 128 * 1024;

/// What is known of a client's reading.
#[derive(Debug, Default)]
pub(crate) struct ClientReading {
    /// Bytes that the system has taken for it.
    taken: AtomicU64,
    /// One of its answers has a lease.
    leased: AtomicBool,
}

impl ClientReading {
    /// The system has taken so many bytes for it.
    pub(crate) fn took(&self, count: usize) {
        self.taken.fetch_add(count as u64, Ordering::Relaxed);
    }

    /// A lease for one of its answers, if it reads and none has one.
    fn lease(self: &Arc<Self>, limits: &Arc<NodeLimits>, address: IpAddr) -> Option<ConnectionLease> {
        if self.taken.load(Ordering::Relaxed) < READS || self.leased.swap(true, Ordering::Relaxed) {
            return None;
        }
        let lease = limits.lease(LeaseKind::Portion, address);
        if lease.is_none() {
            self.leased.store(false, Ordering::Relaxed);
        }
        Some(ConnectionLease {
            _lease: lease?,
            client: self.clone(),
        })
    }
}

/// The one lease that a connection may have.
struct ConnectionLease {
    _lease: Lease,
    client: Arc<ClientReading>,
}

impl Drop for ConnectionLease {
    fn drop(&mut self) {
        self.client.leased.store(false, Ordering::Relaxed);
    }
}

/// How much of one answer is read at once.
pub(crate) struct Portions {
    client: Arc<ClientReading>,
    limits: Arc<NodeLimits>,
    address: IpAddr,
    lease: Option<ConnectionLease>,
}

impl Portions {
    /// Of an answer to this client at this address.
    pub(crate) fn new(client: &Arc<ClientReading>, limits: &Arc<NodeLimits>, address: IpAddr) -> Self {
        Self {
            client: client.clone(),
            limits: limits.clone(),
            address,
            lease: None,
        }
    }

    /// What has been read is passed on: so much may be read next.
    pub(crate) fn next(&mut self) -> usize {
        if self.lease.is_none() {
            self.lease = self.client.lease(&self.limits, self.address);
        }
        match self.lease {
            Some(_) => LEASED,
            None => PORTION,
        }
    }
}

/// The reading of an answer of a server.
pub(crate) struct ReadAhead {
    pub(crate) pace: Arc<Pace>,
    portions: Portions,
}

impl ReadAhead {
    /// Of one of which nothing is read yet.
    pub(crate) fn new(portions: Portions) -> Self {
        Self {
            pace: Arc::new(Pace::new(FIRST)),
            portions,
        }
    }

    /// The engine passes on what it has read.
    pub(crate) fn pass(&mut self) {
        self.pace.pass(self.portions.next());
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::node::limits::LimitsConfig;

    #[test]
    fn who_has_read_much_gets_one_lease() {
        let limits = NodeLimits::new(LimitsConfig::default());
        let client = Arc::new(ClientReading::default());
        let lease = || client.lease(&limits, [192, 0, 2, 1].into());
        assert!(lease().is_none());
        client.took(READS as usize);
        let first = lease();
        assert!(first.is_some() && lease().is_none());
        drop(first);
        assert!(lease().is_some());
    }
}
