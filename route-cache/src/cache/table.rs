//! A bounded table in memory that forgets what was not asked for lately. It knows neither time nor accounts.
//!
//! The second-chance clock: an entry that was used since the hand last passed stays for another round. Written here
//! because a route is small: general caches keep some 300 bytes of their own with each of a million accounts, this
//! one keeps 20.

use std::hash::{BuildHasher, Hash, RandomState};

use hashbrown::HashTable;
use parking_lot::Mutex;

/// Fewest places of a shard: with less, chance would fill some long before others.
const MIN_SHARD: u64 = 1024;
/// Most shards: more locks than there are processors to wait for them.
const MAX_SHARDS: u64 = 64;

/// A table of at most `capacity` values and an eighth: each shard forgets on its own.
pub(crate) struct ClockTable<K, V> {
    shards: Box<[Mutex<Shard<K, V>>]>,
    /// Keyed at random, so that no client can choose names that all fall into one place.
    hasher: RandomState,
}

/// How far a walk through the table has come.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Cursor {
    shard: usize,
    /// Slots of the shard that are still to be shown.
    left: usize,
}

struct Shard<K, V> {
    /// Places in `slots`, by hash of the key there.
    index: HashTable<u32>,
    slots: Vec<Slot<K, V>>,
    hand: usize,
    capacity: usize,
}

struct Slot<K, V> {
    key: K,
    value: V,
    used: bool,
}

impl<K: Hash + Eq, V: Clone> ClockTable<K, V> {
    /// An empty table.
    pub(crate) fn new(capacity: u64) -> Self {
        let shards = (capacity / MIN_SHARD).clamp(1, MAX_SHARDS);
        // Chance gives some shards more than their part: four standard deviations at the smallest size.
        let slack = if shards > 1 { capacity / shards / 8 } else { 0 };
        let each = (capacity.div_ceil(shards) + slack).clamp(1, u64::from(u32::MAX)) as usize;
        Self {
            shards: (0..shards).map(|_| Mutex::new(Shard::new(each))).collect(),
            hasher: RandomState::new(),
        }
    }

    /// The value under `key`; it counts as used.
    pub(crate) fn get(&self, key: &K) -> Option<V> {
        let hash = self.hasher.hash_one(key);
        let mut shard = self.shard(hash).lock();
        let place = shard.find(hash, key)?;
        let slot = &mut shard.slots[place];
        slot.used = true;
        Some(slot.value.clone())
    }

    /// The value under `key`, which does not count as used.
    pub(crate) fn peek(&self, key: &K) -> Option<V> {
        let hash = self.hasher.hash_one(key);
        let shard = self.shard(hash).lock();
        Some(shard.slots[shard.find(hash, key)?].value.clone())
    }

    /// Shows everything, one shard after the other.
    pub(crate) fn each(&self, mut show: impl FnMut(&K, &V)) {
        for shard in &self.shards {
            shard.lock().slots.iter().for_each(|slot| show(&slot.key, &slot.value));
        }
    }

    /// Where [`ClockTable::walk`] begins.
    pub(crate) fn begin(&self) -> Cursor {
        Cursor {
            shard: 0,
            left: usize::MAX,
        }
    }

    /// Returns at most `most` of the values that `pick` picks, from `cursor` on, which is moved along; none: this was
    /// all. What stays in the table during a whole walk is shown at least once: it goes from the last slot to the
    /// first, and only what was in the last one changes its place.
    pub(crate) fn walk<T>(&self, cursor: &mut Cursor, most: usize, pick: impl Fn(&K, &V) -> Option<T>) -> Vec<T> {
        let mut picked = Vec::new();
        while picked.len() < most
            && let Some(shard) = self.shards.get(cursor.shard)
        {
            let shard = shard.lock();
            let mut left = cursor.left.min(shard.slots.len());
            while left > 0 && picked.len() < most {
                left -= 1;
                picked.extend(pick(&shard.slots[left].key, &shard.slots[left].value));
            }
            *cursor = match left {
                0 => Cursor {
                    shard: cursor.shard + 1,
                    left: usize::MAX,
                },
                _ => Cursor { left, ..*cursor },
            };
        }
        picked
    }

    /// Puts `value` under `key`, in place of what was there, which is returned.
    pub(crate) fn insert(&self, key: K, value: V) -> Option<V> {
        let hash = self.hasher.hash_one(&key);
        let mut shard = self.shard(hash).lock();
        if let Some(place) = shard.find(hash, &key) {
            return Some(std::mem::replace(&mut shard.slots[place].value, value));
        }
        if shard.slots.len() == shard.capacity {
            shard.evict(&self.hasher);
        }
        shard.push(
            hash,
            Slot {
                key,
                value,
                used: false,
            },
            &self.hasher,
        );
        None
    }

    /// Takes out what is under `key`. False if there is nothing.
    pub(crate) fn remove(&self, key: &K) -> bool {
        let hash = self.hasher.hash_one(key);
        let mut shard = self.shard(hash).lock();
        let place = shard.find(hash, key);
        if let Some(place) = place {
            shard.remove(place, &self.hasher);
        }
        place.is_some()
    }

    /// Takes out the values for which `stays` returns false. Looks at everything, one shard after the other.
    pub(crate) fn retain(&self, stays: impl Fn(&V) -> bool) {
        for shard in &self.shards {
            let mut shard = shard.lock();
            let mut place = 0;
            while place < shard.slots.len() {
                match stays(&shard.slots[place].value) {
                    true => place += 1,
                    // The last one moves into this place.
                    false => shard.remove(place, &self.hasher),
                }
            }
        }
    }

    /// Takes out everything.
    pub(crate) fn clear(&self) {
        for shard in &self.shards {
            let mut shard = shard.lock();
            *shard = Shard::new(shard.capacity);
        }
    }

    /// How many values there are.
    pub(crate) fn len(&self) -> usize {
        self.shards.iter().map(|shard| shard.lock().slots.len()).sum()
    }

    /// By the middle bits: the table of the shard takes the lowest and the highest.
    fn shard(&self, hash: u64) -> &Mutex<Shard<K, V>> {
        &self.shards[(hash >> 24) as usize % self.shards.len()]
    }
}

impl<K: Hash + Eq, V> Shard<K, V> {
    fn new(capacity: usize) -> Self {
        Self {
            index: HashTable::new(),
            slots: Vec::new(),
            hand: 0,
            capacity,
        }
    }

    fn find(&self, hash: u64, key: &K) -> Option<usize> {
        let place = self.index.find(hash, |place| self.slots[*place as usize].key == *key)?;
        Some(*place as usize)
    }

    fn push(&mut self, hash: u64, slot: Slot<K, V>, hasher: &RandomState) {
        self.slots.push(slot);
        let (slots, place) = (&self.slots, self.slots.len() as u32 - 1);
        self.index
            .insert_unique(hash, place, |place| hasher.hash_one(&slots[*place as usize].key));
    }

    /// Makes one place free: that of the first entry that was not used since the last round.
    fn evict(&mut self, hasher: &RandomState) {
        loop {
            self.hand = (self.hand + 1) % self.slots.len();
            if !std::mem::take(&mut self.slots[self.hand].used) {
                return self.remove(self.hand, hasher);
            }
        }
    }

    /// The last slot moves into the gap.
    fn remove(&mut self, place: usize, hasher: &RandomState) {
        let last = self.slots.len() - 1;
        let hash = hasher.hash_one(&self.slots[place].key);
        if let Ok(entry) = self.index.find_entry(hash, |p| *p as usize == place) {
            entry.remove();
        }
        if place != last {
            let moved = hasher.hash_one(&self.slots[last].key);
            if let Some(entry) = self.index.find_mut(moved, |p| *p as usize == last) {
                *entry = place as u32;
            }
        }
        self.slots.swap_remove(place);
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use super::*;

    #[test]
    fn it_behaves_like_a_map_while_there_is_room() {
        let table = ClockTable::new(100_000);
        let mut model = HashMap::new();
        // A fixed sequence that hits every key many times, in no order.
        let mut step: u64 = 1;
        for i in 0..100_000_u64 {
            step = step
                .wrapping_mul(6_364_136_223_846_793_005)
                .wrapping_add(1_442_695_040_888_963_407);
            let key = (step >> 33) % 5000;
            match step >> 62 {
                0 => {
                    table.remove(&key);
                    model.remove(&key);
                }
                _ => {
                    table.insert(key, i);
                    model.insert(key, i);
                }
            }
            assert_eq!(table.get(&key), model.get(&key).copied());
        }
        assert_eq!(table.len(), model.len());
        assert!(model.iter().all(|(key, value)| table.get(key) == Some(*value)));
        table.clear();
        assert_eq!((table.len(), table.get(&1)), (0, None));
    }

    #[test]
    fn a_walk_shows_everything_that_stays() {
        for capacity in [1, 100, 100_000] {
            let table = ClockTable::new(capacity);
            for i in 0..5000_u64 {
                table.insert(i, i);
            }
            let mut stay: std::collections::HashSet<u64> = (0..5000).filter(|i| table.peek(i).is_some()).collect();
            let (mut place, mut seen, mut next) = (table.begin(), std::collections::HashSet::new(), 0);
            loop {
                let some = table.walk(&mut place, 7, |key, _| (key % 2 == 0).then_some(*key));
                if some.is_empty() {
                    break;
                }
                assert!(some.len() <= 7);
                seen.extend(some);
                // Some go and others come while it lasts.
                for _ in 0..3 {
                    next = (next + 1237) % 5000;
                    table.remove(&next);
                    stay.remove(&next);
                    table.insert(10_001 + 2 * next, 0);
                }
            }
            stay.retain(|key| key % 2 == 0 && table.peek(key).is_some());
            assert!(stay.is_subset(&seen), "{capacity}");
        }
    }

    #[test]
    fn it_never_holds_more_than_its_capacity_and_keeps_what_is_used() {
        for capacity in [0, 1, 2, 100, 5000] {
            let table = ClockTable::new(capacity);
            for i in 0..20_000_u64 {
                table.insert(i, i);
                assert_eq!(table.get(&i), Some(i));
            }
            assert!(
                table.len() as u64 <= capacity.max(1) + capacity / 8 + MAX_SHARDS,
                "{capacity}: {}",
                table.len()
            );
        }
        let table = ClockTable::new(100);
        table.insert(0, 0);
        for i in 1..10_000 {
            assert_eq!(table.get(&0), Some(0));
            table.insert(i, i);
        }
    }
}
