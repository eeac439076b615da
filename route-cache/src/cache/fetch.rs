//! The answer of the tiers below: of the cache that nodes share, then of the source; and how it is kept.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use super::known::{Kept, KeptValue, Millis, millis};
use super::life::SHARED_LIFE;
use super::question::{Fetched, Freshness, Query};
use super::single_flight::Flight;
use super::{RouteCache, shared};
use crate::key::Key;
use crate::placement::{Placement, SourceAnswer};
use crate::route::{RouteError, Tier};

/// How long a failed directory is left alone by lookups that have an old answer to serve meanwhile. Short
/// enough to notice its return at once, long enough that not every login waits for the timeout.
pub(super) const DOWN_PAUSE: Duration = Duration::from_secs(2);

/// How often one lookup asks again because the account was forgotten while the directory answered. Once is the rule;
/// if an account changes faster than the directory answers, the last answer is taken.
const MOST_FLIGHTS: usize = 3;

/// Whether a question may change what other lookups see.
#[derive(PartialEq, Eq)]
pub(super) enum Trace {
    Left,
    None,
}

/// How a flight ended.
pub(super) enum FetchOutcome {
    /// Its answer is current.
    Current(Fetched),
    /// The account was forgotten while it was under way.
    Outdated(Fetched),
}

impl FetchOutcome {
    pub(super) fn current(self) -> Option<Fetched> {
        match self {
            Self::Current(fetched) => Some(fetched),
            Self::Outdated(_) => None,
        }
    }

    pub(super) fn fetched(self) -> Fetched {
        match self {
            Self::Current(fetched) | Self::Outdated(fetched) => fetched,
        }
    }
}

impl RouteCache {
    /// Asks, and again if the account was forgotten while the answer was on its way: it may be from before the change
    /// because of which the account was forgotten.
    pub(super) async fn fetch(&self, query: &Query<'_>) -> Result<Fetched, RouteError> {
        for _ in 1..MOST_FLIGHTS {
            if let Some(fetched) = self.fetch_once(query).await?.current() {
                return Ok(fetched);
            }
        }
        self.fetch_once(query).await.map(FetchOutcome::fetched)
    }

    /// Asks once for all lookups of the same key, and keeps the answer. An answer for another lookup that is none for
    /// this one (another protocol, another client) is not shared.
    async fn fetch_once(&self, query: &Query<'_>) -> Result<FetchOutcome, RouteError> {
        let waiter = self.flights.join(&query.key);
        let Some(flight) = &waiter.flight else {
            return self.ask(query).await.map(FetchOutcome::Current);
        };
        let mut own = false;
        let ask = || {
            own = true;
            self.ask(query)
        };
        let result = flight.answer.get_or_init(ask).await;
        let outcome = self.settle(query, flight, result);
        if own || query.is_answered_by(result) {
            return outcome;
        }
        let since = self.flights.now();
        let fetched = self.ask(query).await?;
        let mut state = self.flights.0.lock();
        if !state.is_wanted(&query.key, &fetched, since) {
            return Ok(FetchOutcome::Outdated(fetched));
        }
        self.keep(query, &fetched);
        drop(state);
        Ok(FetchOutcome::Current(fetched))
    }

    /// The answer of the flight, kept if it is current.
    pub(super) fn settle(
        &self,
        query: &Query<'_>,
        flight: &Arc<Flight>,
        result: &Result<Fetched, RouteError>,
    ) -> Result<FetchOutcome, RouteError> {
        let mut state = self.flights.0.lock();
        let first = state.end(&query.key, flight);
        let fetched = result.clone()?;
        if !state.is_wanted(&query.key, &fetched, flight.since) {
            return Ok(FetchOutcome::Outdated(fetched));
        }
        if first {
            self.keep(query, &fetched);
        }
        Ok(FetchOutcome::Current(fetched))
    }

    pub(super) async fn ask(&self, query: &Query<'_>) -> Result<Fetched, RouteError> {
        // Another lookup may have kept it after this one looked and before it joined.
        if let Some(fetched) = self.fresh(query, self.find(query).as_ref()) {
            return Ok(fetched);
        }
        if !matches!(query.freshness, Freshness::Since(_))
            && let Some(fetched) = self.ask_shared(query, Trace::Left).await
        {
            return Ok(fetched);
        }
        self.counters.count_question();
        let result = self.ask_source(query).await;
        let pause_end = match &result {
            Err(RouteError::DirectoryDown(_)) => self.now() + millis(DOWN_PAUSE),
            _ => 0,
        };
        self.down_until.store(pause_end, Ordering::Relaxed);
        result
    }

    /// What the nodes share. It starts old, so that it is soon asked for again.
    pub(super) async fn ask_shared(&self, query: &Query<'_>, trace: Trace) -> Option<Fetched> {
        let shared = self.shared.as_ref()?;
        let placement = match shared.find(&query.key, query.protocol, query.system).await {
            shared::SharedAnswer::Here(placement) => placement,
            shared::SharedAnswer::Unbelievable if trace == Trace::Left => {
                shared.discard(&query.key, query.protocol);
                return None;
            }
            shared::SharedAnswer::Unbelievable | shared::SharedAnswer::Nothing => return None,
        };
        let age = self.ttl.load(Ordering::Relaxed).saturating_sub(millis(SHARED_LIFE));
        Some(Fetched {
            at: self.now().saturating_sub(age),
            placement: Some(placement),
            tier: Tier::Memcached,
            alias: true,
        })
    }

    pub(super) async fn ask_source(&self, query: &Query<'_>) -> Result<Fetched, RouteError> {
        let SourceAnswer { placement, alias } = self
            .source
            .ask(query.lookup, &query.key, query.protocol, query.system)
            .await?;
        if let (Some(shared), Some(_)) = (&self.shared, &placement) {
            shared.prepare(query.system).await;
        }
        Ok(Fetched {
            at: self.now(),
            placement,
            tier: Tier::Directory,
            alias,
        })
    }

    /// Called with the lock of the flights held.
    pub(super) fn keep(&self, query: &Query<'_>, fetched: &Fetched) {
        let Query {
            key, protocol, system, ..
        } = query;
        let Some(placement) = &fetched.placement else {
            if self.known.remove(key) {
                self.unwritten.change();
            }
            self.nobody.insert(key.clone(), fetched.at);
            return;
        };
        if fetched.tier == Tier::Directory
            && let Some(shared) = &self.shared
        {
            shared.keep(key, placement, *protocol, system);
        }
        self.keep_here(key, fetched);
    }

    /// Keeps an account where there is one. Called with the lock of the flights held.
    pub(super) fn keep_here(&self, key: &Key, fetched: &Fetched) {
        let Some(placement) = &fetched.placement else {
            return;
        };
        // An account without a full name is known by the name that was asked for.
        let account = match key {
            Key::Id(text) | Key::Bare(text) if *text == placement.account => key.clone(),
            _ => Key::Name(placement.account.clone()),
        };
        if account != *key && fetched.alias {
            let see = self.known_now(fetched.at, KeptValue::See(placement.account.clone()));
            self.put(key.clone(), see);
        }
        for key in [key, &account] {
            self.nobody.invalidate(key);
        }
        let known = self.joined(&account, fetched.at, placement.clone());
        self.put(account, known);
    }

    fn put(&self, key: Key, known: Kept) {
        let now = known.what.clone();
        match self.known.insert(key, known) {
            Some(before) if before.what == now => self.unwritten.renew(),
            _ => self.unwritten.change(),
        }
    }

    /// An answer together with what is kept of other protocols of the account; as old as its oldest part. A part
    /// near its end is left out, or it would make the new one old, too.
    pub(super) fn joined(&self, account: &Key, mut at: Millis, mut placement: Placement) -> Kept {
        if let Some(old) = self.find_key(account).filter(|old| self.is_young(old))
            && placement.join(&old.placement)
        {
            at = at.min(old.at);
        }
        self.known_now(at, KeptValue::Here(placement))
    }

    fn known_now(&self, at: Millis, what: KeptValue) -> Kept {
        let epoch = self.epoch.load(Ordering::Relaxed);
        Kept { at, epoch, what }
    }
}
