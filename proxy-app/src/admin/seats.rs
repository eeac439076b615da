//! Who has a connection to `admin.http`: so many in all, a share for each address, and for those who find no seat some
//! more that are told of health and nothing else.
//!
//! Whoever reaches the address may open connections, and a balancer that cannot ask `/readyz` takes the node out.

use std::collections::{HashMap, VecDeque};
use std::net::IpAddr;
use std::sync::Arc;

use parking_lot::Mutex;
use tokio::task::AbortHandle;

/// Connections in all; a console and a scraper need a handful.
const SEATS: usize = 64;
/// Connections of one address.
const SHARE: usize = 16;
/// Connections without a seat, at one time.
const STANDING: usize = 16;
/// Of these from one address before its own oldest makes room.
const STANDING_SHARE: usize = 4;

/// What may be asked on a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reach {
    /// All.
    All,
    /// What a balancer and a scraper ask.
    Health,
}

/// The seats of a socket.
#[derive(Default)]
pub struct Seats {
    taken: Arc<Mutex<Taken>>,
    standing: VecDeque<(IpAddr, AbortHandle)>,
}

#[derive(Default)]
struct Taken {
    all: usize,
    by_address: HashMap<IpAddr, usize>,
}

/// A seat, until it is dropped.
pub struct Seat {
    taken: Arc<Mutex<Taken>>,
    address: IpAddr,
}

impl Seats {
    /// A seat for a connection from this address, if there is one.
    pub fn take(&self, address: IpAddr) -> Option<Seat> {
        let address = address.to_canonical();
        let mut taken = self.taken.lock();
        let own = taken.by_address.get(&address).copied().unwrap_or(0);
        if taken.all == SEATS || own == SHARE {
            return None;
        }
        taken.all += 1;
        taken.by_address.insert(address, own + 1);
        Some(Seat {
            taken: self.taken.clone(),
            address,
        })
    }

    /// Keeps a connection without a seat. Where there are too many, an old one ends: of the same address, if it has
    /// some already.
    pub fn stand(&mut self, address: IpAddr, task: AbortHandle) {
        let address = address.to_canonical();
        self.standing.retain(|(_, task)| !task.is_finished());
        let is_own = |(other, _): &(IpAddr, AbortHandle)| *other == address;
        let own = self.standing.iter().filter(|standing| is_own(standing)).count();
        let leaves = match own >= STANDING_SHARE {
            true => self.standing.iter().position(is_own),
            false => (self.standing.len() >= STANDING).then_some(0),
        };
        if let Some((_, old)) = leaves.and_then(|at| self.standing.remove(at)) {
            old.abort();
        }
        self.standing.push_back((address, task));
    }
}

impl Drop for Seat {
    fn drop(&mut self) {
        let mut taken = self.taken.lock();
        taken.all -= 1;
        if let Some(own) = taken.by_address.get_mut(&self.address) {
            *own -= 1;
            if *own == 0 {
                taken.by_address.remove(&self.address);
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
    fn an_address_has_its_share_of_the_seats() {
        let seats = Seats::default();
        let greedy: Vec<Seat> = (0..100).filter_map(|_| seats.take(from(1))).collect();
        assert_eq!(greedy.len(), SHARE);
        let others: Vec<Seat> = (2..100).filter_map(|last| seats.take(from(last))).collect();
        assert_eq!(greedy.len() + others.len(), SEATS);
        drop(greedy);
        assert!(seats.take(from(1)).is_some());
        drop(others);
        assert!(seats.taken.lock().by_address.is_empty());
    }

    /// Lets every task take its turn.
    async fn settled() {
        for _ in 0..1000 {
            tokio::task::yield_now().await;
        }
    }

    #[tokio::test]
    async fn whoever_comes_last_may_stand() {
        let mut seats = Seats::default();
        let mut stand = |last| {
            let task = tokio::spawn(std::future::pending::<()>());
            seats.stand(from(last), task.abort_handle());
            task
        };
        let guest = stand(1);
        let greedy: Vec<_> = (0..100).map(|_| stand(2)).collect();
        settled().await;
        assert!(!guest.is_finished());
        assert_eq!(greedy.iter().filter(|task| !task.is_finished()).count(), STANDING_SHARE);
        let many: Vec<_> = (3..100).map(&mut stand).collect();
        settled().await;
        assert!(guest.is_finished());
        assert_eq!(many.iter().filter(|task| !task.is_finished()).count(), STANDING);
    }
}
