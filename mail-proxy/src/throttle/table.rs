//! A table of fixed size in memory: what it holds stands in sets of eight, and what matters least in a set goes first.
//!
//! It knows only words: the first of a slot is its tag, 0 where it is free. The rest is the caller's. A set takes memory
//! from its first use on, so a quiet node does not pay for the size.

use std::sync::{Mutex, MutexGuard, PoisonError};

/// Slots of a set. A flood must win eight places, and evicts what weighs least of them.
const WAYS: usize = 8;
/// Locks that share the sets among them.
const SHARDS: usize = 16;

/// One slot: its tag, and what the caller keeps.
pub(super) type Words<const N: usize> = [u32; N];

/// A set, if it was ever used.
type Set<const N: usize> = Option<Box<[Words<N>; WAYS]>>;

/// Slots of `N` words.
pub(super) struct Table<const N: usize> {
    shards: [Mutex<Box<[Set<N>]>>; SHARDS],
    sets: usize,
}

impl<const N: usize> Table<N> {
    /// A table of this many slots, a power of two of at least 128.
    pub(super) fn new(slots: usize) -> Self {
        let sets = slots / SHARDS / WAYS;
        Self {
            // Made of zeros, which the system gives when they are first touched.
            shards: std::array::from_fn(|_| Mutex::new(vec![None; sets].into_boxed_slice())),
            sets,
        }
    }

    /// Bytes of all its slots, when all are used.
    #[cfg(test)]
    pub(super) fn bytes(&self) -> usize {
        SHARDS * self.sets * (WAYS * size_of::<Words<N>>() + size_of::<Set<N>>())
    }

    /// What is kept under a hash.
    pub(super) fn peek(&self, hash: u64) -> Option<Words<N>> {
        let (sets, at, tag) = self.place(hash);
        sets[at].as_ref()?.iter().find(|slot| slot[0] == tag).copied()
    }

    /// Changes what is kept under a hash; where nothing is, it begins with zeros, in the place of what weighs least.
    pub(super) fn change(&self, hash: u64, weight: impl Fn(&Words<N>) -> f32, change: impl FnOnce(&mut Words<N>)) {
        let (mut sets, at, tag) = self.place(hash);
        let set = sets[at].get_or_insert_with(|| Box::new([[0; N]; WAYS]));
        let at = set.iter().position(|slot| slot[0] == tag).unwrap_or_else(|| {
            let at = lightest(&set[..], weight);
            set[at] = [0; N];
            set[at][0] = tag;
            at
        });
        change(&mut set[at]);
    }

    /// Changes what is kept under a hash, if something is.
    pub(super) fn change_known(&self, hash: u64, change: impl FnOnce(&mut Words<N>)) -> bool {
        let (mut sets, at, tag) = self.place(hash);
        let slot = sets[at]
            .as_mut()
            .and_then(|set| set.iter_mut().find(|slot| slot[0] == tag));
        slot.map(change).is_some()
    }

    /// Forgets what is kept under a hash. Returns whether something was.
    pub(super) fn remove(&self, hash: u64) -> bool {
        self.change_known(hash, |slot| *slot = [0; N])
    }

    /// Forgets everything.
    pub(super) fn clear(&self) {
        for shard in &self.shards {
            lock(shard).fill_with(|| None);
        }
    }

    /// Every slot in use, with its place.
    pub(super) fn each(&self, mut take: impl FnMut(u32, &Words<N>)) {
        for (shard, sets) in self.shards.iter().enumerate() {
            let sets = lock(sets);
            let used = sets
                .iter()
                .enumerate()
                .filter_map(|(at, set)| Some((at, set.as_ref()?)));
            for (at, set) in used {
                let first = (shard * self.sets + at) * WAYS;
                let slots = set.iter().enumerate().filter(|(_, slot)| slot[0] != 0);
                slots.for_each(|(at, slot)| take((first + at) as u32, slot));
            }
        }
    }

    /// Puts a slot back that [`Table::each`] gave. Returns whether there is such a place.
    pub(super) fn restore(&self, place: u32, words: Words<N>) -> bool {
        let (set, way) = (place as usize / WAYS, place as usize % WAYS);
        let Some(sets) = self.shards.get(set / self.sets) else {
            return false;
        };
        let mut sets = lock(sets);
        let slots = sets[set % self.sets].get_or_insert_with(|| Box::new([[0; N]; WAYS]));
        slots[way] = words;
        true
    }

    /// The sets of a hash's shard, that of the hash, and the tag by which it is told from others there.
    fn place(&self, hash: u64) -> (MutexGuard<'_, Box<[Set<N>]>>, usize, u32) {
        let tag = ((hash >> 32) as u32).max(1);
        let low = hash as u32 as usize;
        let sets = lock(&self.shards[low % SHARDS]);
        (sets, low / SHARDS % self.sets, tag)
    }
}

fn lock<T>(shard: &Mutex<T>) -> MutexGuard<'_, T> {
    shard.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A free slot, or the one that weighs least.
fn lightest<const N: usize>(set: &[Words<N>], weight: impl Fn(&Words<N>) -> f32) -> usize {
    let weigh = |slot: &Words<N>| match slot[0] {
        0 => f32::NEG_INFINITY,
        _ => weight(slot),
    };
    let by_weight = |a: &(usize, f32), b: &(usize, f32)| a.1.total_cmp(&b.1);
    let weighed = set.iter().map(weigh).enumerate();
    weighed.min_by(by_weight).map_or(0, |(at, _)| at)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn weight(slot: &Words<2>) -> f32 {
        slot[1] as f32
    }

    #[test]
    fn what_weighs_least_goes_first() {
        // One set in each shard, and all of these hashes are of the first.
        let table = Table::<2>::new(SHARDS * WAYS);
        let hash = |n: u64| n << 32;
        for n in 1..=8 {
            table.change(hash(n), weight, |slot| slot[1] = 10 * n as u32);
        }
        table.change(hash(9), weight, |slot| slot[1] = 5);
        assert_eq!(table.peek(hash(1)), None);
        assert_eq!(table.peek(hash(9)), Some([9, 5]));
        // A flood of light ones only takes the place of light ones.
        for n in 10..10_000 {
            table.change(hash(n), weight, |slot| slot[1] = 1);
        }
        for n in 2..=8 {
            assert_eq!(table.peek(hash(n)), Some([n as u32, 10 * n as u32]));
        }
        assert!(table.remove(hash(2)) && !table.remove(hash(2)));
    }

    #[test]
    fn what_is_taken_out_can_be_put_back() {
        let (table, other) = (Table::<2>::new(1024), Table::<2>::new(1024));
        let hashes: Vec<u64> = (1..100_u64).map(|n| n.wrapping_mul(0x9e37_79b9_7f4a_7c15)).collect();
        for (n, hash) in hashes.iter().enumerate() {
            table.change(*hash, weight, |slot| slot[1] = n as u32);
        }
        table.each(|place, words| assert!(other.restore(place, *words)));
        for hash in hashes {
            assert_eq!(table.peek(hash), other.peek(hash));
        }
        assert!(!other.restore(1024, [1, 1]));
    }
}
