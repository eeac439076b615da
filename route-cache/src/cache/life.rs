//! How long a cached account is believed: fresh, young, or good only while the directory is down.
//!
//! The numbers come from the node file (`route_cache.ttl`, `stale`); entries that other nodes share have a shorter
//! life.

use std::sync::atomic::Ordering;
use std::time::Duration;

use super::RouteCache;
use super::known::{KeptPlacement, Millis, RESTORED, millis};

/// How long an answer of the shared cache is kept here. It may already be as old as the life of an entry there, so it
/// is asked for again soon, which costs next to nothing.
pub(super) const SHARED_LIFE: Duration = Duration::from_secs(60);

/// Of the life of an answer, the part at its end in which it is asked for again.
const LAST_PART: u64 = 10;
/// Of the life of an answer, the part that one of a previous process has left, at least, once the directory has said
/// what changed since: time to be asked for again without haste.
const RESTORED_PART: u64 = 2;

impl RouteCache {
    /// From now on answers live for `ttl`, and serve for `stale` longer while the directory is down. What is kept
    /// already is judged by the new lives, too. The life of entries that other nodes share stays as it was made.
    pub fn set_lives(&self, ttl: Duration, stale: Duration) {
        self.ttl.store(millis(ttl), Ordering::Relaxed);
        self.stale.store(millis(stale), Ordering::Relaxed);
    }

    pub(super) fn is_fresh(&self, old: &KeptPlacement) -> bool {
        old.epoch >= self.believed.load(Ordering::Relaxed)
            && self.now() < self.counts_from(old) + self.ttl.load(Ordering::Relaxed)
    }

    pub(super) fn is_young(&self, old: &KeptPlacement) -> bool {
        !old.is_restored() && self.is_fresh(old) && self.now() < self.age_of(old.at)
    }

    pub(super) fn serves_stale(&self, old: &KeptPlacement) -> bool {
        self.now() < self.counts_from(old) + self.ttl.load(Ordering::Relaxed) + self.stale.load(Ordering::Relaxed)
    }

    /// When the life of an answer begins. To say what changed since is nearly as good as a new answer.
    fn counts_from(&self, old: &KeptPlacement) -> Millis {
        let ttl = self.ttl.load(Ordering::Relaxed);
        match (old.epoch, self.restored.confirmed()) {
            (RESTORED, Some(when)) => old.at.max((when + ttl / RESTORED_PART).saturating_sub(ttl)),
            _ => old.at,
        }
    }

    /// When an answer of this time begins to age. What the shared cache says has a short life, and so has what is
    /// read there again.
    pub(super) fn age_of(&self, at: Millis) -> Millis {
        let ttl = self.ttl.load(Ordering::Relaxed);
        let life = match self.shared {
            Some(_) => ttl.min(millis(SHARED_LIFE)),
            None => ttl,
        };
        at + ttl - life / LAST_PART
    }
}
