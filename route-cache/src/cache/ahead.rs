//! Routes that are in use are asked for again before they expire, so that no client waits for them.
//!
//! A lookup that is served an answer near the end of its life orders a new one and does not wait.
//! [`RouteCache::keep_fresh`] works the orders off; where it does not run they are lost, and answers simply expire.

use std::collections::HashSet;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use parking_lot::Mutex;
use tokio::sync::mpsc;
use tokio::task::JoinSet;

use super::RouteCache;
use super::known::KeptPlacement;
use super::question::{Freshness, Query};
use crate::key::Key;
use crate::protocol::Protocol;
use crate::route::Lookup;

/// Orders that wait. With more, answers expire as if there were no orders.
const MAX_WAITING: usize = 1024;
/// Orders that are worked off at one time: a small part of what the directory takes, since no client waits for them.
const MAX_UNDER_WAY: usize = 16;

/// The orders.
pub(super) struct Ahead {
    /// What is ordered and not done yet.
    pub(super) ordered: Mutex<HashSet<Key>>,
    orders: mpsc::Sender<Refresh>,
    taken: tokio::sync::Mutex<mpsc::Receiver<Refresh>>,
}

struct Refresh {
    key: Key,
    lookup: Lookup,
    protocol: Protocol,
}

impl Default for Ahead {
    fn default() -> Self {
        let (orders, taken) = mpsc::channel(MAX_WAITING);
        Self {
            ordered: Mutex::default(),
            orders,
            taken: tokio::sync::Mutex::new(taken),
        }
    }
}

impl RouteCache {
    /// Asks again for routes that are in use and about to expire, until it is dropped.
    pub async fn keep_fresh(self: Arc<Self>) {
        let mut orders = self.ahead.taken.lock().await;
        // Orders of a previous run that was dropped.
        self.ahead.ordered.lock().clear();
        let mut under_way = JoinSet::new();
        while let Some(order) = orders.recv().await {
            while under_way.len() >= MAX_UNDER_WAY {
                under_way.join_next().await;
            }
            while under_way.try_join_next().is_some() {}
            let cache = self.clone();
            under_way.spawn(async move { cache.carry_out(order).await });
        }
    }

    /// Orders a new answer if the one that is served ends soon and the directory is not known to be down.
    pub(super) fn order_ahead(&self, query: &Query<'_>, served: &KeptPlacement) {
        if self.is_young(served) || self.now() < self.down_until.load(Ordering::Relaxed) {
            return;
        }
        let mut ordered = self.ahead.ordered.lock();
        if !ordered.insert(query.key.clone()) {
            return;
        }
        let order = Refresh {
            key: query.key.clone(),
            lookup: query.lookup.clone(),
            protocol: query.protocol,
        };
        if self.ahead.orders.try_send(order).is_err() {
            ordered.remove(&query.key);
        }
    }

    async fn carry_out(&self, order: Refresh) {
        let system = self.directory.system();
        if let Ok(query) = self.query(&order.lookup, order.protocol, &system) {
            let query = Query {
                freshness: Freshness::Young,
                ..query
            };
            if let Err(error) = self.fetch(&query).await {
                log::debug!("a route is not renewed before it expires: {error}");
            }
        }
        self.ahead.ordered.lock().remove(&order.key);
    }
}
