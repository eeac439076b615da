//! Routes from memory, and one question to the directory where many ask the same.
//!
//! What is kept is where an account *is* ([`Placement`]), one entry for all services. Servers, ports and modes
//! are looked up in the directory's system at every answer, so a change there acts at once. Errors are never
//! kept. The meaning of the attributes is not here but in `resolve.rs`.

use std::collections::HashMap;
use std::hash::{BuildHasher, RandomState};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use moka::sync::Cache;
use parking_lot::Mutex;
use tokio::sync::OnceCell;
use tokio::time::Instant;

use crate::directory::{Directory, DirectoryError, System};
use crate::resolve::{self, Key, Placement, Reading};
use crate::route::{Lookup, Route, RouteError, Tier};

/// How long a failed directory is left alone by lookups that have an old answer to serve meanwhile. Short
/// enough to notice its return at once, long enough that not every login waits for the timeout.
const DOWN_PAUSE: Duration = Duration::from_secs(2);

/// Of the capacity, the part that "no such account" may take in addition. A flood of invented names pushes out
/// other invented names, but no real account.
const NOBODY_SHARE: u64 = 8;

/// Slots for the times of [`RouteCache::forget`]. Two accounts in one slot cost at most one answer not kept.
const FORGET_SLOTS: usize = 4096;

/// How the cache behaves.
#[derive(Debug, Clone)]
pub struct Settings {
    /// Name of this node's server entry; its modes count for routes.
    pub node: String,
    /// Most accounts to keep.
    pub capacity: u64,
    /// Life of an answer.
    pub ttl: Duration,
    /// How much longer an answer may serve while the directory is down.
    pub stale: Duration,
    /// Life of "no such account".
    pub negative_ttl: Duration,
}

/// Answers [`Lookup`]s. One per process.
pub struct RouteCache {
    settings: Settings,
    directory: Arc<dyn Directory>,
    /// Accounts, and where other names of them point.
    known: Cache<Key, Known>,
    /// Names that nobody has, with the time of that answer.
    nobody: Cache<Key, Millis>,
    flights: Flights,
    born: Instant,
    /// Until when a directory that just failed is left alone.
    down_until: AtomicU64,
}

/// Milliseconds since the cache was made; half the size of an `Instant`, and follows tokio's paused clock.
type Millis = u64;

/// What is kept under a key.
#[derive(Debug, Clone)]
struct Known {
    at: Millis,
    what: What,
}

#[derive(Debug, Clone)]
enum What {
    /// The key is the account's canonical name.
    Here(Arc<Placement>),
    /// The key is an alias or an id; the account has this name.
    See(Arc<str>),
}

/// What a flight brings home.
#[derive(Debug, Clone)]
struct Landed {
    at: Millis,
    placement: Option<Arc<Placement>>,
}

impl RouteCache {
    /// An empty cache in front of `directory`.
    pub fn new(settings: Settings, directory: Arc<dyn Directory>) -> Self {
        let reading = Reading::of(&directory.system());
        RouteCache {
            known: Cache::new(settings.capacity),
            nobody: Cache::new((settings.capacity / NOBODY_SHARE).max(1)),
            flights: Flights::new(reading),
            born: Instant::now(),
            down_until: AtomicU64::new(0),
            settings,
            directory,
        }
    }

    /// On which server does this account live, and how is it reached? Asks the directory only if nothing
    /// fresh is known, and only once for all who ask the same at the same time.
    pub async fn route(&self, lookup: &Lookup) -> Result<Route, RouteError> {
        let system = self.directory.system();
        let key = Key::of(lookup, &system)?;
        self.follow(&system);
        let old = self.find(&key);
        if let Some(route) = self.from_memory(lookup, &key, old.as_ref(), &system) {
            return route;
        }
        match self.fly(&key, &system).await {
            Ok(landed) => self.answer(lookup, &key, landed.placement.as_deref(), &system, Tier::Directory),
            Err(error) => match old.filter(|old| self.serves_stale(old)) {
                Some(old) => self.answer(lookup, &key, Some(&old.placement), &system, Tier::Stale),
                None => Err(RouteError::DirectoryDown(error)),
            },
        }
    }

    /// What [`RouteCache::route`] would answer now, without leaving a trace in the cache.
    pub async fn explain(&self, lookup: &Lookup) -> Result<Route, RouteError> {
        let system = self.directory.system();
        let key = Key::of(lookup, &system)?;
        let old = self.find(&key).filter(|_| self.flights.reads_as(&Reading::of(&system)));
        if let Some(route) = self.from_memory(lookup, &key, old.as_ref(), &system) {
            return route;
        }
        match resolve::place(&*self.directory, &system, &key).await {
            Ok(placement) => self.answer(lookup, &key, placement.as_ref(), &system, Tier::Directory),
            Err(error) => match old.filter(|old| self.serves_stale(old)) {
                Some(old) => self.answer(lookup, &key, Some(&old.placement), &system, Tier::Stale),
                None => Err(RouteError::DirectoryDown(error)),
            },
        }
    }

    /// Forgets the account of this lookup, whatever name it is asked by: the next one asks the directory. An
    /// answer that is under way now will be given to those who wait for it, but not kept.
    pub fn forget(&self, lookup: &Lookup) {
        let Ok(key) = Key::of(lookup, &self.directory.system()) else {
            return;
        };
        self.flights.exclusively(|state| {
            let account = match self.known.get(&key).map(|known| known.what) {
                Some(What::See(account)) => Some(Key::Name(account)),
                Some(What::Here(_)) | None => None,
            };
            for key in std::iter::once(key).chain(account) {
                state.forget(&key);
                self.known.invalidate(&key);
                self.nobody.invalidate(&key);
            }
        });
    }

    /// Forgets everything.
    pub fn clear(&self) {
        self.flights.exclusively(|state| self.clear_within(state));
    }

    /// How many answers are kept, about: names, ids, and names that nobody has.
    pub fn len(&self) -> usize {
        self.known.run_pending_tasks();
        self.nobody.run_pending_tasks();
        usize::try_from(self.known.entry_count() + self.nobody.entry_count()).unwrap_or(usize::MAX)
    }

    /// True if nothing is kept.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// An answer that needs no directory: a fresh one, or an old one while the directory is known to be down.
    fn from_memory(
        &self,
        lookup: &Lookup,
        key: &Key,
        old: Option<&Old>,
        system: &System,
    ) -> Option<Result<Route, RouteError>> {
        let now = self.now();
        if let Some(old) = old {
            let placement = Some(&*old.placement);
            if now < old.at + millis(self.settings.ttl) {
                return Some(self.answer(lookup, key, placement, system, Tier::Memory));
            }
            let pausing = now < self.down_until.load(Ordering::Relaxed);
            return (pausing && self.serves_stale(old))
                .then(|| self.answer(lookup, key, placement, system, Tier::Stale));
        }
        let at = self.nobody.get(key)?;
        (now < at + millis(self.settings.negative_ttl))
            .then(|| self.answer(lookup, key, None, system, Tier::Memory))
    }

    /// What is kept of an account, however old. An alias is as old as the older of its two parts.
    fn find(&self, key: &Key) -> Option<Old> {
        let known = self.known.get(key)?;
        let account = match known.what {
            What::Here(placement) => return Some(Old { at: known.at, placement }),
            What::See(account) => self.known.get(&Key::Name(account))?,
        };
        match account.what {
            What::Here(placement) => Some(Old { at: known.at.min(account.at), placement }),
            What::See(_) => None,
        }
    }

    fn serves_stale(&self, old: &Old) -> bool {
        self.now() < old.at + millis(self.settings.ttl) + millis(self.settings.stale)
    }

    fn answer(
        &self,
        lookup: &Lookup,
        key: &Key,
        placement: Option<&Placement>,
        system: &System,
        tier: Tier,
    ) -> Result<Route, RouteError> {
        resolve::route(lookup, key, placement, system, &self.settings.node, tier)
    }

    /// Asks the directory together with all who want the same key, and keeps the answer.
    async fn fly(&self, key: &Key, system: &System) -> Result<Landed, DirectoryError> {
        let flight = self.flights.board(key);
        let result = flight.cell.get_or_init(|| self.ask(key, system)).await;
        if let Ok(landed) = result {
            self.flights.exclusively(|state| {
                if state.may_keep(&flight, landed) {
                    self.keep(key, landed);
                }
            });
        }
        result.clone()
    }

    async fn ask(&self, key: &Key, system: &System) -> Result<Landed, DirectoryError> {
        let result = resolve::place(&*self.directory, system, key).await;
        let pause_end = if result.is_err() { self.now() + millis(DOWN_PAUSE) } else { 0 };
        self.down_until.store(pause_end, Ordering::Relaxed);
        Ok(Landed { at: self.now(), placement: result?.map(Arc::new) })
    }

    fn keep(&self, key: &Key, landed: &Landed) {
        let Some(placement) = &landed.placement else {
            self.known.invalidate(key);
            self.nobody.insert(key.clone(), landed.at);
            return;
        };
        let account = Key::Name(placement.account.clone());
        if account != *key {
            let what = What::See(placement.account.clone());
            self.known.insert(key.clone(), Known { at: landed.at, what });
        }
        for key in [key, &account] {
            self.nobody.invalidate(key);
        }
        self.known.insert(account, Known { at: landed.at, what: What::Here(placement.clone()) });
    }

    /// Forgets everything when the global config names other attributes to read accounts by.
    fn follow(&self, system: &System) {
        let reading = Reading::of(system);
        if self.flights.reads_as(&reading) {
            return;
        }
        self.flights.exclusively(|state| {
            self.clear_within(state);
            state.reading = Arc::new(reading);
        });
    }

    fn clear_within(&self, state: &mut InFlight) {
        state.forget_all();
        self.known.invalidate_all();
        self.nobody.invalidate_all();
    }

    fn now(&self) -> Millis {
        millis(self.born.elapsed())
    }
}

/// What was kept of an account, and since when.
struct Old {
    at: Millis,
    placement: Arc<Placement>,
}

fn millis(duration: Duration) -> Millis {
    // Half of the range, so that sums of three cannot overflow.
    Millis::try_from(duration.as_millis()).unwrap_or(Millis::MAX).min(Millis::MAX / 4)
}

/// The questions under way. Its lock also orders keeping against forgetting; it is held for some hash table
/// work and never over an await.
struct Flights {
    state: Mutex<InFlight>,
}

struct InFlight {
    cells: HashMap<Key, Arc<Cell>>,
    /// Counts flights and forgets, to tell what was before what.
    clock: u64,
    /// By hash of the key, when it was last forgotten.
    forgotten: Box<[u64]>,
    all_forgotten: u64,
    hasher: RandomState,
    reading: Arc<Reading>,
}

/// The place where the first who asks leaves the answer for the others. If he goes away before, the next one
/// asks in his place.
type Cell = OnceCell<Result<Landed, DirectoryError>>;

/// A seat in a flight. When the last one leaves, the flight is over.
struct Seat<'a> {
    flights: &'a Flights,
    key: Key,
    cell: Arc<Cell>,
    /// The clock when this seat was taken: the flight may have begun before, but see [`InFlight::forget`].
    since: u64,
}

impl Flights {
    fn new(reading: Reading) -> Self {
        Flights {
            state: Mutex::new(InFlight {
                cells: HashMap::new(),
                clock: 0,
                forgotten: vec![0; FORGET_SLOTS].into_boxed_slice(),
                all_forgotten: 0,
                hasher: RandomState::new(),
                reading: Arc::new(reading),
            }),
        }
    }
}
