//! Standing orders: what an administrator has set for some time on all nodes, holds and networks that are let through.
//!
//! Each node has them all. A change reaches the others at once as a request; what stands here is for those that were not
//! there: they read it when they join, and the later change wins. All times here are those of the engine's clock: those
//! of the machines may differ. Pure.

use std::collections::{BTreeMap, BTreeSet};

use route_cache::{Held, Hold};
use serde::{Deserialize, Serialize};

use super::millis;
use super::wire::{self, Bounded};

/// Most that are known at one time: as many holds and allowances as there may be, and as many that have just ended.
const MOST: usize = 22_000;
/// Two nodes begin the same hold within this many milliseconds.
const SAME: u64 = 5_000;

/// What a standing order is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Kind {
    /// New logins of an account wait.
    Account,
    /// Those of a domain.
    Domain,
    /// Those of a mailbox server.
    Server,
    /// The throttle lets a network through.
    Allow,
}

impl Kind {
    /// Its word.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Account => "account",
            Self::Domain => "domain",
            Self::Server => "server",
            Self::Allow => "allow",
        }
    }
}

/// One of them. Times are in milliseconds since 1970.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct StandingOrder {
    v: u32,
    /// What it is about.
    pub kind: Kind,
    /// Whose logins, or which network.
    pub name: String,
    /// Why.
    pub reason: String,
    /// Since when.
    pub since: u64,
    /// Until when, if nobody ends it before.
    pub until: u64,
    /// Somebody has.
    pub over: bool,
    /// When that was said, by the clock of the engine.
    changed: u64,
}

impl StandingOrder {
    /// One that has just been given.
    pub(crate) fn new(kind: Kind, name: &str, reason: &str, since: u64, until: u64) -> Self {
        Self {
            v: wire::VERSION,
            kind,
            name: name.to_owned(),
            reason: reason.to_owned(),
            since,
            until,
            over: false,
            changed: 0,
        }
    }

    /// A hold.
    pub(crate) fn of_hold(hold: &Hold) -> Self {
        let (kind, name) = match &hold.held {
            Held::Account(name) => (Kind::Account, name),
            Held::Domain(name) => (Kind::Domain, name),
            Held::Server(name) => (Kind::Server, name),
        };
        Self::new(kind, name, &hold.reason, millis(hold.since), millis(hold.until))
    }

    /// The same by a clock that is so many milliseconds ahead.
    pub(super) fn shifted(mut self, ahead: i64) -> Self {
        self.since = self.since.saturating_add_signed(ahead);
        self.until = self.until.saturating_add_signed(ahead);
        self
    }

    fn key(&self) -> Key {
        (self.kind, self.name.clone())
    }

    fn field(&self) -> String {
        format!("{} {}", self.kind.name(), self.name)
    }

    /// Whether it says something else than the other one.
    fn differs(&self, other: &Self) -> bool {
        self.over != other.over || self.reason != other.reason || self.until.abs_diff(other.until) > SAME
    }

    fn beats(&self, other: &Self) -> bool {
        (self.changed, self.over, self.until, &self.reason) > (other.changed, other.over, other.until, &other.reason)
    }
}

impl Bounded for StandingOrder {
    fn names(&self) -> Vec<&str> {
        vec![&self.name, &self.reason]
    }
}

type Key = (Kind, String);

/// Fields with their texts, to be written.
type Texts = Vec<(String, Vec<u8>)>;

/// All that are known, and which of them the engine does not have yet.
#[derive(Debug, Default)]
pub(super) struct StandingOrders {
    known: BTreeMap<Key, StandingOrder>,
    unwritten: BTreeSet<Key>,
}

impl StandingOrders {
    /// Takes one that was given here.
    pub(super) fn note(&mut self, mut order: StandingOrder, now: u64) {
        let key = order.key();
        let before = self.known.get(&key).map_or(0, |known| known.changed.saturating_add(1));
        order.changed = before.max(now);
        self.put(key.clone(), order, now);
        self.unwritten.insert(key);
    }

    /// Takes what a process knew before it had an engine: anything newer wins.
    pub(super) fn remember(&mut self, mut order: StandingOrder, now: u64) {
        let key = order.key();
        if !self.known.contains_key(&key) {
            order.changed = if order.kind == Kind::Allow { 1 } else { order.since };
            self.put(key.clone(), order, now);
            self.unwritten.insert(key);
        }
    }

    /// Takes what stands in the engine. Returns what is to be done here that was not.
    pub(super) fn take(&mut self, theirs: Vec<(Vec<u8>, Vec<u8>)>, now: u64) -> Vec<StandingOrder> {
        let read = |(_, text): (_, Vec<u8>)| wire::read::<StandingOrder>(&text, wire::FIELD_MAX);
        let mut missing: BTreeSet<Key> = self.known.keys().cloned().collect();
        let mut adopted = Vec::new();
        for order in theirs.into_iter().filter_map(read).filter(|order| order.until > now) {
            let key = order.key();
            missing.remove(&key);
            let known = self.known.get(&key);
            if known.is_some_and(|known| known.beats(&order)) {
                self.unwritten.insert(key);
                continue;
            }
            self.unwritten.remove(&key);
            let is_news = known.map_or(!order.over, |known| order.differs(known));
            if self.put(key, order.clone(), now) && is_news {
                adopted.push(order);
            }
        }
        self.unwritten.append(&mut missing);
        adopted
    }

    /// What is to be written: the fields with their texts, and for how many seconds they matter.
    pub(super) fn unwritten(&self, now: u64) -> Option<(Texts, u64)> {
        let orders = self.unwritten.iter().filter_map(|key| self.known.get(key));
        let fields: Vec<_> = orders.map(|order| (order.field(), wire::text(order))).collect();
        let last = self.known.values().map(|order| order.until).max()?;
        (!fields.is_empty()).then(|| (fields, last.saturating_sub(now) / 1000 + 1))
    }

    /// The engine has them.
    pub(super) fn written(&mut self, fields: &[(String, Vec<u8>)]) {
        let known = &self.known;
        self.unwritten.retain(|key| {
            let order = known.get(key);
            order.is_some_and(|order| !fields.contains(&(order.field(), wire::text(order))))
        });
    }

    fn put(&mut self, key: Key, order: StandingOrder, now: u64) -> bool {
        self.known.retain(|_, known| known.until > now);
        let fits = self.known.len() < MOST || self.known.contains_key(&key);
        if fits {
            self.known.insert(key, order);
        }
        fits
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: u64 = 1_000_000;

    fn hold(name: &str, until: u64) -> StandingOrder {
        StandingOrder::new(Kind::Account, name, "why", NOW, until)
    }

    fn over(order: &StandingOrder) -> StandingOrder {
        StandingOrder {
            over: true,
            ..order.clone()
        }
    }

    /// Writes what one has not written yet into the engine.
    fn write(engine: &mut BTreeMap<Vec<u8>, Vec<u8>>, orders: &mut StandingOrders, now: u64) {
        if let Some((fields, seconds)) = orders.unwritten(now) {
            assert!(seconds > 0);
            engine.extend(
                fields
                    .iter()
                    .map(|(field, text)| (field.as_bytes().to_vec(), text.clone())),
            );
            orders.written(&fields);
        }
        assert!(orders.unwritten(now).is_none());
    }

    fn read(engine: &BTreeMap<Vec<u8>, Vec<u8>>, orders: &mut StandingOrders, now: u64) -> Vec<(String, bool)> {
        let all = engine
            .iter()
            .map(|(field, text)| (field.clone(), text.clone()))
            .collect();
        let adopted = orders.take(all, now);
        adopted.into_iter().map(|order| (order.name, order.over)).collect()
    }

    #[test]
    fn who_was_not_there_takes_what_stands_and_the_later_change_wins() {
        let (mut one, mut other) = (StandingOrders::default(), StandingOrders::default());
        let mut engine = BTreeMap::new();
        let order = hold("a@x", NOW + 60_000);
        one.note(order.clone(), NOW);
        write(&mut engine, &mut one, NOW);
        assert_eq!(read(&engine, &mut other, NOW), [("a@x".to_owned(), false)]);
        assert!(read(&engine, &mut other, NOW).is_empty(), "it is known already");
        // Each of them changes it while the engine is away; the later one wins on both.
        one.note(over(&order), NOW + 10);
        other.note(hold("a@x", NOW + 90_000), NOW + 5);
        write(&mut engine, &mut other, NOW + 20);
        assert!(read(&engine, &mut one, NOW + 20).is_empty());
        write(&mut engine, &mut one, NOW + 20);
        assert_eq!(read(&engine, &mut other, NOW + 20), [("a@x".to_owned(), true)]);
        // A release of something that was never known changes nothing.
        assert!(read(&engine, &mut StandingOrders::default(), NOW + 20).is_empty());
    }

    #[test]
    fn an_engine_that_has_lost_everything_is_told_again() {
        let mut one = StandingOrders::default();
        let mut engine = BTreeMap::new();
        one.note(hold("a@x", NOW + 60_000), NOW);
        write(&mut engine, &mut one, NOW);
        engine.clear();
        assert!(read(&engine, &mut one, NOW).is_empty());
        write(&mut engine, &mut one, NOW);
        assert_eq!(engine.len(), 1);
        // What has ended by itself is not told any more.
        assert!(read(&engine, &mut one, NOW + 60_000).is_empty());
        assert!(read(&engine, &mut StandingOrders::default(), NOW + 60_000).is_empty());
    }

    #[test]
    fn what_a_file_says_loses_to_what_was_said_since() {
        let (mut one, mut other) = (StandingOrders::default(), StandingOrders::default());
        let mut engine = BTreeMap::new();
        let allowed = StandingOrder::new(Kind::Allow, "192.0.2.0/24", "office", NOW, NOW + 60_000);
        one.note(over(&allowed), NOW - 10);
        write(&mut engine, &mut one, NOW);
        other.remember(allowed, NOW);
        other.remember(hold("a@x", NOW + 60_000), NOW);
        assert_eq!(read(&engine, &mut other, NOW), [("192.0.2.0/24".to_owned(), true)]);
        write(&mut engine, &mut other, NOW);
        assert_eq!(read(&engine, &mut one, NOW), [("a@x".to_owned(), false)]);
    }

    /// The clock of one machine is an hour ahead, that of the other one ten minutes behind: both end it at one moment.
    #[test]
    fn clocks_that_differ_do_not_make_a_hold_longer() {
        const AHEAD: i64 = 3_600_000;
        const BEHIND: i64 = -600_000;
        let by_one = StandingOrder::new(Kind::Account, "a@x", "why", NOW, NOW + 60_000).shifted(AHEAD);
        let (mut one, mut other) = (StandingOrders::default(), StandingOrders::default());
        let mut engine = BTreeMap::new();
        one.note(by_one.shifted(-AHEAD), NOW);
        write(&mut engine, &mut one, NOW);
        let all = engine.into_iter().collect();
        let adopted: Vec<_> = other
            .take(all, NOW)
            .into_iter()
            .map(|order| order.shifted(BEHIND))
            .collect();
        assert_eq!((adopted[0].since, adopted[0].until), (NOW - 600_000, NOW - 540_000));
        assert!(other.unwritten(NOW + 59_999).is_none());
    }

    #[test]
    fn lies_are_bounded() {
        let mut one = StandingOrders::default();
        let field = |order: &StandingOrder| (order.field().into_bytes(), wire::text(order));
        let many = (0..MOST as u64 + 100)
            .map(|i| field(&hold(&format!("{i}@x"), NOW + 60_000)))
            .collect();
        assert_eq!(one.take(many, NOW).len(), MOST);
        let odd = vec![
            (Vec::new(), b"{}".to_vec()),
            field(&hold("a\r\nb", NOW + 60_000)),
            field(&hold(&"a".repeat(600), NOW + 60_000)),
        ];
        assert!(StandingOrders::default().take(odd, NOW).is_empty());
    }
}
