//! One question to the source where many ask the same at the same time, and the order of answers and forgets.

use std::collections::HashMap;
use std::hash::{BuildHasher, RandomState};
use std::sync::Arc;

use parking_lot::Mutex;
use tokio::sync::OnceCell;

use super::question::Fetched;
use crate::key::Key;
use crate::route::RouteError;

/// Slots for the times of [`RouteCache::forget`](super::RouteCache::forget). Two accounts in one slot cost at most one question more.
const FORGET_SLOTS: usize = 4096;

/// The questions under way. Its lock also orders keeping against forgetting; it is held for some hash table
/// work and never over an await.
#[derive(Default)]
pub(super) struct Flights(pub(super) Mutex<InFlight>);

#[derive(Default)]
pub(super) struct InFlight {
    pub(super) flights: HashMap<Key, Arc<Flight>>,
    /// Counts flights and forgets, to tell their order.
    pub(super) clock: u64,
    pub(super) forgotten: Forgotten,
}

/// One question, and the place where the first that asks leaves the answer for the others. If the first one is
/// dropped before that, the next one asks.
pub(super) struct Flight {
    pub(super) since: u64,
    pub(super) answer: OnceCell<Result<Fetched, RouteError>>,
}

/// When what was forgotten last.
pub(super) struct Forgotten {
    /// By hash of the key.
    pub(super) slots: Box<[u64]>,
    pub(super) all: u64,
    pub(super) hasher: RandomState,
}

/// A waiter of a flight. When the last one is dropped, the flight is over.
pub(super) struct Waiter<'a> {
    pub(super) flights: &'a Flights,
    pub(super) key: &'a Key,
    /// Dropped under the lock, so that the count of waiters is right there.
    pub(super) flight: Option<Arc<Flight>>,
}

impl Flights {
    /// A point in the order of flights and forgets.
    pub(super) fn now(&self) -> u64 {
        let mut state = self.0.lock();
        state.clock += 1;
        state.clock
    }

    /// Joins the flight for `key`, which begins now if there is none.
    pub(super) fn join<'a>(&'a self, key: &'a Key) -> Waiter<'a> {
        let mut state = self.0.lock();
        state.clock += 1;
        let since = state.clock;
        let begin = || {
            Arc::new(Flight {
                since,
                answer: OnceCell::new(),
            })
        };
        let flight = state.flights.entry(key.clone()).or_insert_with(begin).clone();
        Waiter {
            flights: self,
            key,
            flight: Some(flight),
        }
    }
}

impl InFlight {
    pub(super) fn forget(&mut self, key: &Key) {
        self.clock += 1;
        self.flights.remove(key);
        *self.forgotten.slot(key) = self.clock;
    }

    pub(super) fn forget_all(&mut self) {
        self.clock += 1;
        self.flights.clear();
        self.forgotten.all = self.clock;
    }

    /// Ends the flight. False if another waiter did, or if its key was forgotten meanwhile.
    pub(super) fn end(&mut self, key: &Key, flight: &Arc<Flight>) -> bool {
        let current = self
            .flights
            .get(key)
            .is_some_and(|current| Arc::ptr_eq(current, flight));
        if current {
            self.flights.remove(key);
        }
        current
    }

    /// Whether nothing was forgotten after `since`, neither the key nor the account that was found.
    pub(super) fn is_wanted(&mut self, key: &Key, fetched: &Fetched, since: u64) -> bool {
        let account = fetched.placement.as_ref().map(|p| Key::Name(p.account.clone()));
        self.forgotten.all <= since
            && *self.forgotten.slot(key) <= since
            && account.is_none_or(|account| *self.forgotten.slot(&account) <= since)
    }
}

impl Forgotten {
    pub(super) fn slot(&mut self, key: &Key) -> &mut u64 {
        let hash = self.hasher.hash_one(key) % FORGET_SLOTS as u64;
        &mut self.slots[hash as usize]
    }
}

impl Default for Forgotten {
    fn default() -> Self {
        Self {
            slots: vec![0; FORGET_SLOTS].into_boxed_slice(),
            all: 0,
            hasher: RandomState::new(),
        }
    }
}

impl Drop for Waiter<'_> {
    fn drop(&mut self) {
        let mut state = self.flights.0.lock();
        let Some(flight) = self.flight.take() else {
            return;
        };
        // This one and the one in the table: there is no other waiter.
        let last = Arc::strong_count(&flight) == 2;
        if last
            && state
                .flights
                .get(self.key)
                .is_some_and(|current| Arc::ptr_eq(current, &flight))
        {
            state.flights.remove(self.key);
        }
    }
}
