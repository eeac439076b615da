//! Clients that have not logged in, by address and age: which of them is ended when there is no room for one more.
//!
//! It is the client of the busiest address that has been silent longest; clients that have not sent anything for two
//! seconds go first. So a client that floods the listeners pushes out its own connections, and one that connects once
//! has the time to log in. A client is not in the queue while a login or a request of it is under way.

use std::cmp::Reverse;
use std::collections::{BTreeSet, HashMap};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, OnceLock, Weak};
use std::time::{Duration, Instant};

use mail_proxy::{CloseReason, ConnectionHandle, LoginSlot};
use parking_lot::Mutex;
use tokio::sync::Notify;

use crate::node::limits::{ConnectionKind, Origin, Permit};

/// Added to the keys of clients that have sent something: they are queued behind those that have not.
const SPOKEN: u64 = 1 << 63;
/// How long a client may have sent nothing and is not worth less than one that has: longer than a round trip, so that
/// clients that come one after the other do not push each other out before they could speak.
const NEWCOMER: Duration = Duration::from_secs(2);
/// The key of a client that is not in the queue.
const NOT_WAITING: u64 = 0;

/// A client that has not logged in.
#[derive(Default)]
pub(crate) struct PendingClient {
    gone: AtomicBool,
    wake: Notify,
    /// Not held: what is held until a login holds this.
    live: OnceLock<Weak<ConnectionHandle>>,
    /// Its key in the queue. This and what follows are written while the queue is locked.
    key: AtomicU64,
    /// It has ended or was evicted, and does not wait again.
    over: AtomicBool,
    /// Another one has its place, and it is counted no more.
    replaced: AtomicBool,
}

impl PendingClient {
    /// From now on its session ends it, with a response.
    pub(crate) fn ends_by(&self, live: &Arc<ConnectionHandle>) {
        let _ = self.live.set(Arc::downgrade(live));
        if self.gone.load(Ordering::SeqCst) {
            live.end(CloseReason::Evict);
        }
    }

    /// Whether it is counted no more. Called when it cannot be evicted any more.
    pub(super) fn is_replaced(&self) -> bool {
        self.replaced.load(Ordering::SeqCst)
    }

    fn evict(&self) {
        self.gone.store(true, Ordering::SeqCst);
        match self.live.get() {
            Some(live) => drop(live.upgrade().map(|live| live.end(CloseReason::Evict))),
            None => self.wake.notify_waiters(),
        }
    }

    /// Resolves when it is evicted and only the caller can end it.
    pub(crate) async fn evicted(&self) {
        loop {
            // Made before the check, so that an eviction between the two is noticed.
            let wake = self.wake.notified();
            if self.gone.load(Ordering::SeqCst) && self.live.get().is_none() {
                return;
            }
            wake.await;
        }
    }
}

/// All clients that have not logged in.
#[derive(Default)]
pub(super) struct EvictionQueue(Mutex<QueueOrder>);

#[derive(Default)]
struct QueueOrder {
    next: u64,
    all: HashMap<u64, QueuedClient>,
    by_origin: HashMap<Origin, OriginQueue>,
    /// How many there are of an origin, and its oldest: the last of these is the next to be evicted.
    by_size: BTreeSet<(usize, Reverse<u64>, Origin)>,
}

/// The clients of an origin, by rank, and in that by the time since they were heard: numbers grow.
#[derive(Default)]
struct OriginQueue {
    all: BTreeSet<u64>,
    /// Those of them that are mail connections.
    mail: BTreeSet<u64>,
}

/// Among which clients one is looked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Candidates {
    /// All.
    All,
    /// Those of an origin.
    Of(Origin),
    /// Its mail connections.
    MailOf(Origin),
}

struct QueuedClient {
    origin: Origin,
    kind: ConnectionKind,
    pending: Arc<PendingClient>,
    since: Instant,
}

/// A client's place in the queue, until this is dropped.
pub(crate) struct QueuePlace {
    limits: Arc<crate::node::limits::NodeLimits>,
    origin: Origin,
    kind: ConnectionKind,
    pending: Arc<PendingClient>,
}

impl QueuePlace {
    pub(super) fn new(
        limits: &Arc<crate::node::limits::NodeLimits>,
        origin: Origin,
        kind: ConnectionKind,
        pending: Arc<PendingClient>,
    ) -> Self {
        limits.eviction.enter(origin, kind, &pending);
        Self {
            limits: limits.clone(),
            origin,
            kind,
            pending,
        }
    }

    /// The client has just sent something.
    fn stand_back(&self) {
        let mut order = self.limits.eviction.0.lock();
        order.remove(&self.pending);
        order.add((self.origin, self.kind), &self.pending, SPOKEN);
    }

    /// At the moment the client waits for us.
    pub(crate) fn leave(&self) {
        self.limits.eviction.0.lock().remove(&self.pending);
    }
}

impl Drop for QueuePlace {
    fn drop(&mut self) {
        self.leave();
    }
}

/// What a connection gives up when its client logs in.
pub(crate) struct HeldUntilLogin {
    /// Its place among the connections that can be evicted.
    pub queued: Option<QueuePlace>,
    /// Its count, where a login ends that.
    pub _permit: Option<Permit>,
}

impl LoginSlot for HeldUntilLogin {
    fn heard(&self) {
        self.queued.iter().for_each(QueuePlace::stand_back);
    }

    fn under_way(&self) {
        self.queued.iter().for_each(QueuePlace::leave);
    }
}

impl EvictionQueue {
    /// Evicts the next of these clients, and returns as what it was counted; `None` if none is in the queue.
    pub(super) fn make_room(&self, of: Candidates) -> Option<(Origin, ConnectionKind)> {
        let mut order = self.0.lock();
        let key = match of {
            Candidates::All => order.last()?,
            Candidates::Of(origin) => *order.by_origin.get(&origin)?.all.first()?,
            Candidates::MailOf(origin) => *order.by_origin.get(&origin)?.mail.first()?,
        };
        let queued = order.all.get(&key)?;
        let (origin, kind, pending) = (queued.origin, queued.kind, queued.pending.clone());
        order.end(&pending);
        // Before the lock is released: a client that ends by itself at this moment must be counted once.
        pending.replaced.store(true, Ordering::SeqCst);
        drop(order);
        pending.evict();
        Some((origin, kind))
    }

    /// A client that has not sent anything yet.
    pub(super) fn enter(&self, origin: Origin, kind: ConnectionKind, pending: &Arc<PendingClient>) {
        self.0.lock().add((origin, kind), pending, 0);
    }

    /// Forgets a client that has ended, even if its [`QueuePlace`] is still held.
    pub(super) fn forget(&self, pending: &PendingClient) {
        self.0.lock().end(pending);
    }

    #[cfg(test)]
    pub(super) fn is_empty(&self) -> bool {
        let order = self.0.lock();
        order.all.is_empty() && order.by_origin.is_empty() && order.by_size.is_empty()
    }
}

impl QueueOrder {
    /// The key of the next client to be evicted.
    fn last(&self) -> Option<u64> {
        let &(size, Reverse(first), origin) = self.by_size.last()?;
        if size > 1 || !self.is_newcomer(first) {
            return Some(first);
        }
        // Every address has one client, and those that have not spoken are newcomers all.
        let spoken = self.by_size.range(..(size, Reverse(SPOKEN), origin)).next_back();
        Some(spoken.map_or(first, |&(_, Reverse(key), _)| key))
    }

    fn is_newcomer(&self, key: u64) -> bool {
        key < SPOKEN
            && self
                .all
                .get(&key)
                .is_some_and(|queued| queued.since.elapsed() < NEWCOMER)
    }

    fn add(&mut self, (origin, kind): (Origin, ConnectionKind), pending: &Arc<PendingClient>, rank: u64) {
        if pending.over.load(Ordering::Relaxed) {
            return;
        }
        self.next += 1;
        let key = self.next | rank;
        pending.key.store(key, Ordering::Relaxed);
        let queued = QueuedClient {
            origin,
            kind,
            pending: pending.clone(),
            since: Instant::now(),
        };
        self.all.insert(key, queued);
        self.change(origin, |ages| {
            ages.all.insert(key);
            if kind.is_mail() {
                ages.mail.insert(key);
            }
        });
    }

    fn remove(&mut self, pending: &PendingClient) {
        let key = pending.key.swap(NOT_WAITING, Ordering::Relaxed);
        if let Some(QueuedClient { origin, .. }) = self.all.remove(&key) {
            self.change(origin, |ages| {
                ages.all.remove(&key);
                ages.mail.remove(&key);
            });
        }
    }

    fn end(&mut self, pending: &PendingClient) {
        pending.over.store(true, Ordering::Relaxed);
        self.remove(pending);
    }

    fn change(&mut self, origin: Origin, change: impl FnOnce(&mut OriginQueue)) {
        let ages = self.by_origin.entry(origin).or_default();
        let rank = |ages: &OriginQueue| Some((ages.all.len(), Reverse(*ages.all.first()?), origin));
        if let Some(before) = rank(ages) {
            self.by_size.remove(&before);
        }
        change(ages);
        match rank(ages) {
            Some(now) => drop(self.by_size.insert(now)),
            None => drop(self.by_origin.remove(&origin)),
        }
    }
}
