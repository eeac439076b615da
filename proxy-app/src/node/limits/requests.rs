//! Web requests under way: how many of one address there may be.
//!
//! A request that has been under way for long waits for something: a long poll, a large download. Such are counted apart,
//! as WebSockets are, so that a house full of phones that wait for mail does not use up what its browsers need. Where
//! there are too many that wait, further ones go on counting as what they began as.

use std::collections::{BTreeMap, HashMap};
use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use parking_lot::Mutex;
use tokio::time::Instant;

use super::{NodeLimits, Origin, SHARDS};

/// A request that has been under way for so long waits for something.
const LONG: Duration = Duration::from_secs(30);

/// The part of `limits` about web requests of one address; 0 is no limit.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct RequestsConfig {
    /// RequestCounts under way.
    pub per_address: usize,
    /// RequestCounts that wait, and WebSockets.
    pub waiting_per_address: usize,
}

/// A busy office has some hundred at once, and a connection has at most 64. Those that wait are one or two of each phone
/// and browser.
impl Default for RequestsConfig {
    fn default() -> Self {
        Self {
            per_address: 1_000,
            waiting_per_address: 5_000,
        }
    }
}

/// What a request is when it begins.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum RequestKind {
    /// It is expected to be answered soon.
    Plain,
    /// It waits from its beginning: a WebSocket.
    Waits,
}

/// The requests of all addresses.
#[derive(Default)]
pub(super) struct RequestCounts {
    by_address: [Mutex<HashMap<Origin, OfAddress>>; SHARDS],
    next: AtomicU64,
    refused: [AtomicU64; 2],
}

/// The requests of one address.
#[derive(Default)]
struct OfAddress {
    /// Those that have not been under way for long, in the order in which they have begun.
    plain: BTreeMap<u64, Instant>,
    waiting: usize,
}

impl OfAddress {
    /// What has been under way for long waits from now on, as far as there is room.
    fn age(&mut self, most: usize) {
        while let Some(first) = self.plain.first_entry()
            && first.get().elapsed() >= LONG
            && (most == 0 || self.waiting < most)
        {
            first.remove();
            self.waiting += 1;
        }
    }

    fn end(&mut self, id: u64) {
        if self.plain.remove(&id).is_none() {
            self.waiting = self.waiting.saturating_sub(1);
        }
    }
}

/// A request that is counted until this is dropped.
pub(crate) struct RequestPlace {
    limits: Arc<NodeLimits>,
    origin: Origin,
    id: u64,
}

impl NodeLimits {
    /// Counts one more request of a client at this address.
    ///
    /// # Errors
    /// There are as many as there may be.
    pub(crate) fn begin_request(
        self: &Arc<Self>,
        address: IpAddr,
        kind: RequestKind,
    ) -> Result<Option<RequestPlace>, RequestKind> {
        let settings = self.settings.load();
        let RequestsConfig {
            per_address,
            waiting_per_address,
        } = settings.requests;
        let is_exempt = settings.exempt.iter().any(|network| network.contains(&address));
        if is_exempt || (per_address, waiting_per_address) == (0, 0) {
            return Ok(None);
        }
        let (origin, id) = (Origin::of(address), self.requests.next.fetch_add(1, Ordering::Relaxed));
        let mut all = self.requests.by_address[origin.shard()].lock();
        let own = all.entry(origin).or_default();
        own.age(waiting_per_address);
        let (count, limit) = match kind {
            RequestKind::Plain => (own.plain.len(), per_address),
            RequestKind::Waits => (own.waiting, waiting_per_address),
        };
        if limit != 0 && count >= limit {
            self.requests.refused[kind as usize].fetch_add(1, Ordering::Relaxed);
            return Err(kind);
        }
        match kind {
            RequestKind::Plain => drop(own.plain.insert(id, Instant::now())),
            RequestKind::Waits => own.waiting += 1,
        }
        Ok(Some(RequestPlace {
            limits: self.clone(),
            origin,
            id,
        }))
    }

    /// How many requests a limit has refused since the start.
    pub(crate) fn refused_requests(&self, kind: RequestKind) -> u64 {
        self.requests.refused[kind as usize].load(Ordering::Relaxed)
    }
}

impl Drop for RequestPlace {
    fn drop(&mut self) {
        let mut all = self.limits.requests.by_address[self.origin.shard()].lock();
        if let Some(own) = all.get_mut(&self.origin) {
            own.end(self.id);
            if own.plain.is_empty() && own.waiting == 0 {
                all.remove(&self.origin);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::node::limits::LimitsConfig;

    #[tokio::test(start_paused = true)]
    async fn requests_that_wait_are_counted_apart() {
        let limits = NodeLimits::new(LimitsConfig {
            requests: RequestsConfig {
                per_address: 2,
                waiting_per_address: 3,
            },
            ..LimitsConfig::default()
        });
        let begin = |last: u8, kind| limits.begin_request([192, 0, 2, last].into(), kind);
        let (plain, waits) = (RequestKind::Plain, RequestKind::Waits);
        let mut held = vec![begin(1, plain), begin(1, plain)];
        assert!(begin(1, plain).is_err() && begin(2, plain).is_ok() && begin(1, waits).is_ok());
        tokio::time::advance(LONG).await;
        held.extend([begin(1, plain), begin(1, plain), begin(1, waits)]);
        assert!(held.iter().all(Result::is_ok));
        assert!(begin(1, plain).is_err() && begin(1, waits).is_err());
        // There is no room for more that wait, so these go on counting.
        tokio::time::advance(LONG).await;
        assert!(begin(1, plain).is_err());
        drop(held.remove(0));
        held.push(begin(1, plain));
        assert!(held.iter().all(Result::is_ok) && begin(1, plain).is_err());
        assert_eq!((limits.refused_requests(plain), limits.refused_requests(waits)), (4, 1));
        drop(held);
        let empty = limits.requests.by_address.iter().all(|all| all.lock().is_empty());
        assert!(empty && begin(1, plain).is_ok());
        // A balancer on this machine speaks for many.
        let here = limits.begin_request([127, 0, 0, 1].into(), plain);
        assert!(here.is_ok_and(|place| place.is_none()));
    }
}
