//! Connections to `admin.http`: so many in all, a share for each address, and without a slot some more that may ask for
//! health and nothing else.
//!
//! Any client that reaches the address may open connections, and a balancer that cannot ask `/readyz` takes the node
//! out.

use std::collections::{HashMap, VecDeque};
use std::net::IpAddr;
use std::sync::Arc;

use parking_lot::Mutex;
use tokio::task::AbortHandle;

/// Connections in all; a console and a scraper need a handful.
const SLOTS: usize = 64;
/// Connections of one address.
const SHARE: usize = 16;
/// Connections without a slot, at one time.
const HEALTH_ONLY: usize = 16;
/// Of these from one address before its own oldest is closed.
const HEALTH_ONLY_SHARE: usize = 4;

/// Which paths may be requested on a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Reach {
    /// All.
    All,
    /// What a balancer and a scraper ask.
    Health,
}

/// The slots of a socket.
#[derive(Default)]
pub(crate) struct ConnectionSlots {
    counts: Arc<Mutex<SlotCounts>>,
    health_only: VecDeque<(IpAddr, AbortHandle)>,
}

#[derive(Default)]
struct SlotCounts {
    all: usize,
    by_address: HashMap<IpAddr, usize>,
}

/// A slot, until it is dropped.
pub(crate) struct ConnectionSlot {
    counts: Arc<Mutex<SlotCounts>>,
    address: IpAddr,
}

impl ConnectionSlots {
    /// A slot for a connection from this address, if one is free.
    pub(crate) fn take(&self, address: IpAddr) -> Option<ConnectionSlot> {
        let address = address.to_canonical();
        let mut counts = self.counts.lock();
        let own = counts.by_address.get(&address).copied().unwrap_or(0);
        if counts.all == SLOTS || own == SHARE {
            return None;
        }
        counts.all += 1;
        counts.by_address.insert(address, own + 1);
        Some(ConnectionSlot {
            counts: self.counts.clone(),
            address,
        })
    }

    /// Keeps a connection without a slot. Where there are too many, an old one is closed: one of the same address, if
    /// it has some already.
    pub(crate) fn keep_for_health(&mut self, address: IpAddr, task: AbortHandle) {
        let address = address.to_canonical();
        self.health_only.retain(|(_, task)| !task.is_finished());
        let is_own = |(other, _): &(IpAddr, AbortHandle)| *other == address;
        let own = self
            .health_only
            .iter()
            .filter(|health_only| is_own(health_only))
            .count();
        let leaves = match own >= HEALTH_ONLY_SHARE {
            true => self.health_only.iter().position(is_own),
            false => (self.health_only.len() >= HEALTH_ONLY).then_some(0),
        };
        if let Some((_, old)) = leaves.and_then(|at| self.health_only.remove(at)) {
            old.abort();
        }
        self.health_only.push_back((address, task));
    }
}

impl Drop for ConnectionSlot {
    fn drop(&mut self) {
        let mut counts = self.counts.lock();
        counts.all -= 1;
        if let Some(own) = counts.by_address.get_mut(&self.address) {
            *own -= 1;
            if *own == 0 {
                counts.by_address.remove(&self.address);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn from(last: u8) -> IpAddr {
        IpAddr::from([192, 0, 2, last])
    }

    #[test]
    fn an_address_has_its_share_of_the_slots() {
        let slots = ConnectionSlots::default();
        let greedy: Vec<ConnectionSlot> = (0..100).filter_map(|_| slots.take(from(1))).collect();
        assert_eq!(greedy.len(), SHARE);
        let others: Vec<ConnectionSlot> = (2..100).filter_map(|last| slots.take(from(last))).collect();
        assert_eq!(greedy.len() + others.len(), SLOTS);
        drop(greedy);
        assert!(slots.take(from(1)).is_some());
        drop(others);
        assert!(slots.counts.lock().by_address.is_empty());
    }

    /// Lets every task take its turn.
    async fn settled() {
        for _ in 0..1000 {
            tokio::task::yield_now().await;
        }
    }

    #[tokio::test]
    async fn the_latest_connections_may_ask_for_health() {
        let mut slots = ConnectionSlots::default();
        let mut keep_for_health = |last| {
            let task = tokio::spawn(std::future::pending::<()>());
            slots.keep_for_health(from(last), task.abort_handle());
            task
        };
        let guest = keep_for_health(1);
        let greedy: Vec<_> = (0..100).map(|_| keep_for_health(2)).collect();
        settled().await;
        assert!(!guest.is_finished());
        assert_eq!(
            greedy.iter().filter(|task| !task.is_finished()).count(),
            HEALTH_ONLY_SHARE
        );
        let many: Vec<_> = (3..100).map(&mut keep_for_health).collect();
        settled().await;
        assert!(guest.is_finished());
        assert_eq!(many.iter().filter(|task| !task.is_finished()).count(), HEALTH_ONLY);
    }
}
