//! The keys of session tickets that are in force: those of a file, those that nodes share, or the node's own.
//!
//! Keys that no administrator distributes follow each other: time is divided into equal periods, and each has a key.
//! That of the period makes tickets; that of the previous one is still taken, and so is that of the next one, which
//! other nodes may use a moment earlier. So a ticket is good for one period at least, and for two at most.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwap;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use jiff::Timestamp;
use mail_directory::Secret;
use openssl::error::ErrorStack;
use parking_lot::Mutex;
use serde::{Deserialize, Serialize};
use tokio::sync::Notify;

use super::ticket_file::TicketFile;
use super::tickets::{KEY, TicketKey, TicketScope};

/// How long a key makes tickets, where the node file does not say so.
pub(crate) const LIFE: Duration = Duration::from_secs(12 * 60 * 60);
/// Longest text with keys for the next process.
pub(crate) const TOLD_MAX: usize = 16 * 1024;

/// Where keys come from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum KeySource {
    /// A file that an administrator distributes.
    File,
    /// The engine of `shared_state`.
    SharedState,
    /// This node has made them.
    Own,
}

impl KeySource {
    /// Its word.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::File => "file",
            Self::SharedState => "shared_state",
            Self::Own => "own",
        }
    }
}

/// Keys as they are at one moment.
pub(crate) struct KeyRing {
    /// Where the one comes from that makes tickets.
    pub source: KeySource,
    /// Since when it makes them; of a file, when that was written.
    pub since: Timestamp,
    /// The first makes tickets, all are taken.
    keys: Vec<Arc<TicketKey>>,
}

impl KeyRing {
    /// How long the first has made tickets.
    pub(crate) fn age(&self) -> Duration {
        Duration::try_from(Timestamp::now().duration_since(self.since)).unwrap_or_default()
    }

    /// How many keys are taken.
    pub(crate) fn taken(&self) -> usize {
        self.keys.len()
    }

    fn is(&self, other: &Self) -> bool {
        let same = |(one, other): (&Arc<TicketKey>, &Arc<TicketKey>)| one.is(other);
        self.source == other.source
            && self.keys.len() == other.keys.len()
            && self.keys.iter().zip(&other.keys).all(same)
    }
}

/// The key of a period, and since when this node has it, in milliseconds since 1970; 0: a previous process had it.
#[derive(Clone)]
struct PeriodKey {
    key: Arc<TicketKey>,
    at: u64,
}

/// Keys by the number of their period.
type PeriodKeys = BTreeMap<u64, PeriodKey>;

/// Keys that no administrator distributes.
struct PeriodicKeys {
    /// Length of a period, in milliseconds.
    life: u64,
    shared: PeriodKeys,
    own: PeriodKeys,
}

/// A key as the engine holds it: the number of its period, and its octets.
pub(crate) type SharedKey = (u64, Secret<[u8; KEY]>);

/// What a process tells the next one.
#[derive(Serialize, Deserialize)]
struct ToldKeys {
    life: u64,
    shared: BTreeMap<u64, String>,
    own: BTreeMap<u64, String>,
}

/// The keys of a node, for all its listeners.
pub(crate) struct TicketKeys {
    ring: ArcSwap<KeyRing>,
    periodic: Mutex<PeriodicKeys>,
    /// Why a file cannot be used.
    fault: Mutex<Option<String>>,
    /// There are others than those in force.
    news: Notify,
}

impl Default for TicketKeys {
    /// Keys of a node's own, until it is known where others are.
    fn default() -> Self {
        let ring = KeyRing {
            source: KeySource::Own,
            since: Timestamp::now(),
            keys: vec![Arc::new(TicketKey::random())],
        };
        Self {
            ring: ArcSwap::from_pointee(ring),
            periodic: Mutex::new(PeriodicKeys {
                life: millis(LIFE),
                shared: PeriodKeys::new(),
                own: PeriodKeys::new(),
            }),
            fault: Mutex::default(),
            news: Notify::new(),
        }
    }
}

impl TicketKeys {
    /// Those that are in force.
    pub(crate) fn in_force(&self) -> Arc<KeyRing> {
        self.ring.load_full()
    }

    /// Resolves when [`TicketKeys::renew`] is to be called early.
    pub(crate) async fn changed(&self) {
        self.news.notified().await;
    }

    /// Keys may come from elsewhere now.
    pub(crate) fn change(&self) {
        self.news.notify_one();
    }

    /// Uses the keys of a file from now on.
    pub(crate) fn use_file(&self, file: TicketFile) {
        *self.fault.lock() = None;
        self.put(KeyRing {
            source: KeySource::File,
            since: file.since,
            keys: file.keys.into_iter().map(Arc::new).collect(),
        });
    }

    /// Notes why a file cannot be used; the keys stay. Returns whether that is news.
    pub(crate) fn note_fault(&self, why: &str) -> bool {
        let noted = self.fault.lock().replace(why.to_owned());
        noted.is_none_or(|noted| noted != why)
    }

    /// Why the file cannot be used; `None` if nothing is wrong.
    pub(crate) fn fault(&self) -> Option<String> {
        self.fault.lock().clone()
    }

    /// Makes the key of the period of `now`, if there is none, and forgets old ones. They are put in force where no file
    /// has others. Periods are `life` long, times in milliseconds since 1970. Returns how long it is to the next period.
    pub(crate) fn renew(&self, now: u64, life: Duration, from_file: FromFile) -> Duration {
        let mut periodic = self.periodic.lock();
        let (ring, next) = periodic.renew(now, millis(life).max(1));
        if from_file == FromFile::No {
            *self.fault.lock() = None;
        }
        let stays = from_file == FromFile::Wanted && self.ring.load().source == KeySource::File;
        if !stays && from_file != FromFile::Used {
            self.put(ring);
        }
        next
    }

    fn put(&self, ring: KeyRing) {
        if !self.ring.load().is(&ring) {
            log::debug!(
                "{} keys of session tickets are in force ({})",
                ring.taken(),
                ring.source.name()
            );
            self.ring.store(Arc::new(ring));
        }
    }

    /// The keys of this period and the next one that all nodes are to have, if no others do yet, and the length of a
    /// period in milliseconds. `None`: a file has been distributed.
    pub(crate) fn proposed(&self, now: u64) -> Option<(u64, Vec<SharedKey>)> {
        if self.ring.load().source == KeySource::File {
            return None;
        }
        let mut periodic = self.periodic.lock();
        let number = now / periodic.life;
        periodic.forget_all_but(number);
        let keys = [number, number + 1].map(|number| {
            let known = periodic.shared.get(&number).or_else(|| periodic.own.get(&number));
            let known = known.map(|found| found.key.clone());
            let key = known.unwrap_or_else(|| periodic.make(number, now));
            (number, key.octets().clone())
        });
        Some((periodic.life, keys.into()))
    }

    /// Whether it is not known which keys all nodes have for this period and the next one.
    pub(crate) fn lack_shared(&self, now: u64) -> bool {
        let periodic = self.periodic.lock();
        let number = now / periodic.life;
        let lacks = |number| !periodic.shared.contains_key(&number);
        self.ring.load().source != KeySource::File && (lacks(number) || lacks(number + 1))
    }

    /// All nodes have these keys. What others had instead is still taken here.
    pub(crate) fn take_shared(&self, now: u64, keys: Vec<SharedKey>) {
        let mut periodic = self.periodic.lock();
        let is_news = periodic.take_shared(now, keys);
        drop(periodic);
        if is_news {
            self.change();
        }
    }

    /// What the next process is told.
    pub(crate) fn told(&self) -> Secret<String> {
        let periodic = self.periodic.lock();
        let texts = |keys: &PeriodKeys| {
            let text = |found: &PeriodKey| STANDARD.encode(found.key.octets().expose());
            keys.iter().map(|(number, found)| (*number, text(found))).collect()
        };
        let told = ToldKeys {
            life: periodic.life,
            shared: texts(&periodic.shared),
            own: texts(&periodic.own),
        };
        Secret::new(serde_json::to_string(&told).unwrap_or_default())
    }

    /// Takes what the previous process has told: its tickets are taken, and its keys make further ones.
    pub(crate) fn take_over(&self, told: &Secret<String>) {
        let told: Option<ToldKeys> = serde_json::from_str(told.expose()).ok();
        let Some(told) = told else {
            return;
        };
        let keys = |texts: BTreeMap<u64, String>| -> PeriodKeys {
            let found = |text: String| {
                let octets = octets(&Secret::new(text))?;
                Some(PeriodKey {
                    key: Arc::new(TicketKey::new(octets)),
                    at: 0,
                })
            };
            let keys = texts
                .into_iter()
                .filter_map(|(number, text)| Some((number, found(text)?)));
            keys.collect()
        };
        let mut periodic = self.periodic.lock();
        *periodic = PeriodicKeys {
            life: told.life.max(1),
            shared: keys(told.shared),
            own: keys(told.own),
        };
        drop(periodic);
        self.change();
    }

    /// A ticket with this session.
    ///
    /// # Errors
    /// The TLS library has no memory.
    pub(super) fn seal(&self, scope: &TicketScope, session: &[u8]) -> Result<Vec<u8>, ErrorStack> {
        // A ring is never empty.
        self.ring.load().keys[0].seal(scope, session)
    }

    /// The session in a ticket; `None` if there is none that is good here.
    pub(super) fn open(&self, scope: &TicketScope, ticket: &[u8]) -> Option<Secret<Vec<u8>>> {
        let ring = self.ring.load();
        let key = ring.keys.iter().find(|key| key.has_made(ticket))?;
        key.open(scope, ticket)
    }
}

/// Whether keys come from a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum FromFile {
    /// There is none.
    No,
    /// They do.
    Used,
    /// There is one that cannot be used: the keys of its last good reading stay, if there are some.
    Wanted,
}

impl PeriodicKeys {
    fn renew(&mut self, now: u64, life: u64) -> (KeyRing, Duration) {
        if self.life != life {
            // Periods of another length have other numbers.
            (self.shared, self.own) = (PeriodKeys::new(), PeriodKeys::new());
            self.life = life;
        }
        let number = now / life;
        self.forget_all_but(number);
        if !self.shared.contains_key(&number) && !self.own.contains_key(&number) {
            self.make(number, now);
        }
        (self.ring(number), Duration::from_millis(life - now % life))
    }

    /// Forgets keys that are not near this period.
    fn forget_all_but(&mut self, number: u64) {
        let is_near = |at: &u64| at.abs_diff(number) <= 1;
        self.shared.retain(|at, _| is_near(at));
        self.own.retain(|at, _| is_near(at));
    }

    /// The ring of a period that has a key.
    fn ring(&self, number: u64) -> KeyRing {
        let (source, found) = match self.shared.get(&number) {
            Some(found) => (KeySource::SharedState, Some(found)),
            None => (KeySource::Own, self.own.get(&number)),
        };
        let mut keys: Vec<Arc<TicketKey>> = Vec::new();
        let all = self.shared.values().chain(self.own.values());
        for found in found.into_iter().chain(all) {
            if !keys.iter().any(|key| key.is(&found.key)) {
                keys.push(found.key.clone());
            }
        }
        let begun = number.saturating_mul(self.life);
        let since = begun.max(found.map_or(0, |found| found.at));
        let since = i64::try_from(since)
            .ok()
            .and_then(|at| Timestamp::from_millisecond(at).ok());
        KeyRing {
            source,
            since: since.unwrap_or(Timestamp::UNIX_EPOCH),
            keys,
        }
    }

    /// A new key of this node for a period.
    fn make(&mut self, number: u64, now: u64) -> Arc<TicketKey> {
        let key = Arc::new(TicketKey::random());
        let found = PeriodKey {
            key: key.clone(),
            at: now,
        };
        self.own.insert(number, found);
        key
    }

    /// Returns whether one of them is news.
    fn take_shared(&mut self, now: u64, keys: Vec<SharedKey>) -> bool {
        let number = now / self.life;
        let mut is_news = false;
        for (at, octets) in keys.into_iter().filter(|(at, _)| at.abs_diff(number) <= 1) {
            let key = Arc::new(TicketKey::new(octets));
            if self.shared.get(&at).is_some_and(|found| found.key.is(&key)) {
                continue;
            }
            is_news = true;
            let replaced = self.shared.insert(at, PeriodKey { key, at: now });
            if let Some(replaced) = replaced {
                self.own.insert(at, replaced);
            }
        }
        is_news
    }
}

/// The octets of a key in base64.
pub(crate) fn octets(text: &Secret<String>) -> Option<Secret<[u8; KEY]>> {
    let octets = Secret::new(STANDARD.decode(text.expose()).ok()?);
    let octets: [u8; KEY] = octets.expose().as_slice().try_into().ok()?;
    Some(Secret::new(octets))
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    const LENGTH: Duration = Duration::from_secs(10);
    /// In the middle of a period.
    const NOW: u64 = 1_000_005_000;

    fn scope() -> TicketScope {
        TicketScope::new(&Secret::new([7; 32]), &[b"here"]).unwrap()
    }

    fn node() -> TicketKeys {
        let keys = TicketKeys::default();
        keys.renew(NOW, LENGTH, FromFile::No);
        keys
    }

    fn ticket_of(keys: &TicketKeys) -> Vec<u8> {
        keys.seal(&scope(), b"session").unwrap()
    }

    fn is_taken(keys: &TicketKeys, ticket: &[u8]) -> bool {
        keys.open(&scope(), ticket).is_some()
    }

    #[test]
    fn a_ticket_is_taken_for_one_more_period() {
        let keys = node();
        let ticket = ticket_of(&keys);
        for (after, taken) in [(0, true), (4_999, true), (5_000, true), (14_999, true), (15_000, false)] {
            keys.renew(NOW + after, LENGTH, FromFile::No);
            assert_eq!(is_taken(&keys, &ticket), taken, "{after}");
        }
        assert_eq!(keys.renew(NOW, LENGTH, FromFile::No), Duration::from_secs(5));
        assert_eq!(keys.in_force().source, KeySource::Own);
    }

    #[test]
    fn two_nodes_agree_on_the_keys_that_came_first() {
        let (one, other) = (node(), node());
        let (early, late) = (ticket_of(&one), ticket_of(&other));
        let (life, keys) = one.proposed(NOW).unwrap();
        assert_eq!(life, 10_000);
        assert!(one.lack_shared(NOW) && other.proposed(NOW).is_some());
        for node in [&one, &other] {
            node.take_shared(NOW, keys.clone());
            node.renew(NOW, LENGTH, FromFile::No);
            assert!(!node.lack_shared(NOW));
            assert_eq!(node.in_force().source, KeySource::SharedState);
        }
        assert!(is_taken(&other, &early), "the key that won");
        assert!(
            is_taken(&other, &late),
            "the one that did not makes no more, and is still taken"
        );
        assert!(is_taken(&one, &ticket_of(&other)) && is_taken(&other, &ticket_of(&one)));
        // The engine is away: the next key is known already, the one after it is each node's own.
        for node in [&one, &other] {
            node.renew(NOW + 10_000, LENGTH, FromFile::No);
        }
        assert!(is_taken(&one, &ticket_of(&other)));
        for node in [&one, &other] {
            node.renew(NOW + 20_000, LENGTH, FromFile::No);
            assert_eq!(node.in_force().source, KeySource::Own);
        }
        assert!(!is_taken(&one, &ticket_of(&other)));
        assert!(!is_taken(&one, &early));
    }

    #[test]
    fn the_next_process_goes_on_with_the_same_keys() {
        let (old, new) = (node(), TicketKeys::default());
        old.take_shared(NOW, vec![(NOW / 10_000, Secret::new([5; KEY]))]);
        let own = ticket_of(&old);
        old.renew(NOW, LENGTH, FromFile::No);
        let shared = ticket_of(&old);
        let told = old.told();
        assert!(told.expose().len() < TOLD_MAX);
        new.take_over(&told);
        new.renew(NOW, LENGTH, FromFile::No);
        assert!(is_taken(&new, &own) && is_taken(&new, &shared) && is_taken(&old, &ticket_of(&new)));
        for bad in ["", "{}", "{\"life\":0,\"shared\":{\"1\":\"AAAA\"},\"own\":{}}"] {
            let strict = node();
            strict.take_over(&Secret::new(bad.to_owned()));
            strict.renew(NOW, LENGTH, FromFile::No);
            ticket_of(&strict);
        }
    }

    #[test]
    fn a_file_comes_before_all_others_and_outlives_its_faults() {
        let keys = node();
        let own = ticket_of(&keys);
        let file = |octets: &[u8]| TicketFile {
            keys: octets.iter().map(|octet| TicketKey::digested(&[*octet; 48])).collect(),
            since: Timestamp::UNIX_EPOCH,
        };
        keys.use_file(file(&[1]));
        let ticket = ticket_of(&keys);
        assert!(!is_taken(&keys, &own));
        assert!(keys.proposed(NOW).is_none() && !keys.lack_shared(NOW));
        keys.use_file(file(&[2, 1]));
        keys.renew(NOW, LENGTH, FromFile::Used);
        assert!(is_taken(&keys, &ticket));
        assert!(keys.note_fault("gone") && !keys.note_fault("gone"));
        keys.renew(NOW, LENGTH, FromFile::Wanted);
        assert!(is_taken(&keys, &ticket), "the last good reading");
        keys.use_file(file(&[3, 2]));
        assert!(
            !is_taken(&keys, &ticket) && keys.fault().is_none(),
            "after two rotations"
        );
        keys.renew(NOW, LENGTH, FromFile::No);
        assert_eq!(keys.in_force().source, KeySource::Own);
        assert!(is_taken(&keys, &own));
        let strange = node();
        strange.note_fault("gone");
        strange.renew(NOW + 20_000, LENGTH, FromFile::Wanted);
        assert_eq!(
            strange.in_force().since.as_millisecond(),
            1_000_020_000 + 5_000,
            "they go on to be renewed"
        );
    }
}
