//! What is forgotten, or taken for old: on request, or after a change in the directory.

use std::collections::HashSet;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use mail_directory::{System, Touched};

use super::RouteCache;
use super::known::{KeptPlacement, KeptValue, millis};
use super::single_flight::InFlight;
use crate::key::Key;
use crate::placement::PlacementAttributes;
use crate::route::Lookup;
use crate::source::Source;

/// Accounts that are forgotten while the lock is held once.
const FORGET_AT_ONCE: usize = 1000;

impl RouteCache {
    /// Forgets the account of this lookup, whatever name it is asked by: the next lookup asks the directory. So do
    /// lookups that wait for an answer that is under way now.
    pub fn forget(&self, lookup: &Lookup) {
        if let Ok(key) = self.source.key(lookup, &self.directory.system()) {
            self.forget_on_demand(lookup, vec![key]);
        }
    }

    /// The same, unless what is kept is younger than `age`: it was asked for just now, and asking again would not
    /// help.
    pub fn forget_older_than(&self, lookup: &Lookup, age: Duration) {
        let Ok(key) = self.source.key(lookup, &self.directory.system()) else {
            return;
        };
        let young = |old: &KeptPlacement| self.now() < old.at + millis(age);
        if !self.find_key(&key).as_ref().is_some_and(young) {
            self.forget_on_demand(lookup, vec![key]);
        }
    }

    /// Forgets what these keys stand for, and what was typed.
    pub(super) fn forget_on_demand(&self, lookup: &Lookup, keys: Vec<Key>) {
        self.forget_keys(keys);
        if let Some(shared) = &self.shared {
            shared.forget_alias(lookup);
        }
    }

    /// Forgets all names and ids of accounts that changed. An alias that one of them had and has no more goes too:
    /// whatever stands for one of their names.
    pub fn forget_accounts(&self, accounts: &[Touched]) {
        let mut forgotten: HashSet<Key> = HashSet::new();
        for some in accounts.chunks(FORGET_AT_ONCE) {
            let names = some.iter().flat_map(|account| &account.names);
            let ids = some.iter().flat_map(|account| &account.ids);
            let keys = names
                .map(|name| Key::Name(name.as_str().into()))
                .chain(ids.map(|id| Key::Id(id.as_str().into())));
            forgotten.extend(self.forget_keys(keys.collect()));
        }
        self.known.retain(|known| match &known.what {
            KeptValue::See(account) => !forgotten.contains(&Key::Name(account.clone())),
            KeptValue::Here(_) => true,
        });
    }

    /// Forgets what these keys stand for, here and in the shared cache, and returns what that was: a key may know a
    /// name that no entry has any more.
    fn forget_keys(&self, mut keys: Vec<Key>) -> Vec<Key> {
        let mut state = self.flights.0.lock();
        for at in 0..keys.len() {
            if let Some(KeptValue::See(account)) = self.known.get(&keys[at]).map(|known| known.what) {
                keys.push(Key::Name(account));
            }
        }
        for key in &keys {
            state.forget(key);
            if self.known.remove(key) {
                self.unwritten.change();
            }
            self.nobody.invalidate(key);
        }
        // Under the lock, so that no write of an older answer follows the delete.
        if let Some(shared) = &self.shared {
            shared.forget(&keys);
        }
        drop(state);
        keys
    }

    /// Takes what this node keeps for old: the next lookup of each account asks again. The directory decides whether
    /// what other nodes share can be believed, since it tells what changed; lookup services tell nothing, so with
    /// them this is [`RouteCache::expire`].
    pub fn ask_anew(&self) {
        match self.source {
            Source::Directory(_) => self.expire_here(&mut self.flights.0.lock()),
            Source::Services(_) => self.expire(),
        }
    }

    /// Takes everything for old: the next lookup of each account asks the directory. Unlike after
    /// [`RouteCache::clear`], what is kept may still serve while the directory is down. What other nodes share is
    /// left to them; what stands there now is not believed until it has expired.
    pub fn expire(&self) {
        let mut state = self.flights.0.lock();
        self.expire_here(&mut state);
        // Under the lock, so that no older answer that arrives meanwhile is taken for a new one there.
        if let Some(shared) = &self.shared {
            shared.forget_all();
        }
    }

    fn expire_here(&self, state: &mut InFlight) {
        state.forget_all();
        let now = self.epoch.fetch_add(1, Ordering::Relaxed) + 1;
        self.believed.store(now, Ordering::Relaxed);
        self.nobody.invalidate_all();
        self.unwritten.change();
    }

    /// Forgets everything. What other nodes share is left to them, but not believed until it has expired.
    pub fn clear(&self) {
        let mut state = self.flights.0.lock();
        self.forget_here(&mut state);
        if let Some(shared) = &self.shared {
            shared.forget_all();
        }
    }

    /// Forgets everything that this node keeps.
    pub(crate) fn clear_here(&self) {
        self.forget_here(&mut self.flights.0.lock());
    }

    fn forget_here(&self, state: &mut InFlight) {
        state.forget_all();
        self.known.clear();
        self.nobody.invalidate_all();
        self.unwritten.change();
    }

    /// Forgets everything when the global config names other attributes to read accounts by.
    pub(super) fn follow(&self, system: &System) {
        if !self.reading.load().is_of(system) {
            self.reading.store(Arc::new(PlacementAttributes::of(system)));
            self.clear();
        }
    }
}
