//! What counts for the throttle at one node counts at all: told in the background, by a stream in the engine, and read
//! again by a node that was not there.

use std::collections::VecDeque;
use std::net::IpAddr;
use std::sync::Weak;
use std::time::Duration;

use mail_proxy::throttle::{CountListener, CountedLogin};
use redis::Value;
use serde::{Deserialize, Serialize};

use super::Nodes;
use super::engine::{Engine, Failure};
use super::wire::{self, Bounded};

/// What waits to be told; while the engine is away the oldest goes first.
const MOST_UNTOLD: usize = 10_000;
/// Outcomes in one entry of the stream.
const AT_ONCE: usize = 200;
/// Longest entry, in bytes.
const ENTRY_MAX: usize = 256 * 1024;
/// Entries that the stream keeps, about, and for how many seconds after the last one.
const KEPT_ENTRIES: usize = 10_000;
const KEPT: u64 = 3600;
/// How long ago something may have counted that a node reads when it joins.
const LOOK_BACK: Duration = Duration::from_secs(30 * 60);
/// How far an entry may be ahead of the clock, in milliseconds.
const SKEW: u64 = 5_000;
/// Entries that are read at a time, and how often at one beat.
const READ: usize = 100;
const READINGS: usize = 20;

/// An outcome and when it counted, by the clock of the engine.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Told {
    account: String,
    client: IpAddr,
    right: bool,
    at: u64,
}

/// An entry of the stream.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Entry {
    v: u32,
    from: String,
    told: Vec<Told>,
}

impl Bounded for Entry {
    fn names(&self) -> Vec<&str> {
        let accounts = self.told.iter().map(|told| told.account.as_str());
        std::iter::once(self.from.as_str()).chain(accounts).collect()
    }
}

/// What is to be told, and how far the stream has been read.
pub(super) struct Guesses {
    untold: VecDeque<Told>,
    /// The last entry that was read; `None`: the stream has not been looked at.
    read: Option<String>,
    /// What counted before this time is known from a file, in milliseconds since 1970.
    remembered: u64,
}

impl Guesses {
    /// For a node that knows what counted before this time.
    pub(super) fn new(remembered: u64) -> Self {
        Self {
            untold: VecDeque::new(),
            read: None,
            remembered,
        }
    }

    /// What others have told since then is not known here.
    pub(super) fn remembers(&mut self, until: u64) {
        self.remembered = until;
    }

    fn put(&mut self, told: Told) {
        if self.untold.len() >= MOST_UNTOLD {
            self.untold.pop_front();
        }
        self.untold.push_back(told);
    }

    fn from(&self, now: u64) -> String {
        let back = now.saturating_sub(u64::try_from(LOOK_BACK.as_millis()).unwrap_or(u64::MAX));
        let first = || format!("{}-0", back.max(self.remembered.min(now)));
        // Another engine may have taken over, whose clock is behind.
        let is_past = |id: &&String| millis_of(id).is_some_and(|at| at <= now.saturating_add(SKEW));
        self.read.as_ref().filter(is_past).cloned().unwrap_or_else(first)
    }
}

/// The time in the id of an entry.
fn millis_of(id: &str) -> Option<u64> {
    id.split('-').next()?.parse().ok()
}

/// Hears what counts here.
pub(super) struct Listening(pub(super) Weak<Nodes>);

impl CountListener for Listening {
    fn counted(&self, outcome: CountedLogin) {
        let Some(nodes) = self.0.upgrade() else { return };
        let at = nodes.state.lock().clock.now();
        let told = Told {
            account: outcome.account,
            client: outcome.client,
            right: outcome.right,
            at,
        };
        nodes.guesses.lock().put(told);
        nodes.news.notify_one();
    }
}

impl Nodes {
    /// Tells what has counted here.
    pub(super) async fn tell_guesses(&self, engine: &Engine) -> Result<(), Failure> {
        loop {
            let told: Vec<Told> = {
                let guesses = self.guesses.lock();
                guesses.untold.iter().take(AT_ONCE).cloned().collect()
            };
            if told.is_empty() {
                return Ok(());
            }
            let count = told.len();
            let entry = Entry {
                v: wire::VERSION,
                from: self.run.clone(),
                told,
            };
            let key = self.names().guesses();
            let mut commands = redis::pipe();
            commands.cmd("XADD").arg(&key).arg("MAXLEN").arg("~").arg(KEPT_ENTRIES);
            commands.arg("*").arg("told").arg(wire::text(&entry));
            commands.cmd("EXPIRE").arg(&key).arg(KEPT);
            engine.run(&commands).await?;
            let mut guesses = self.guesses.lock();
            // What was dropped meanwhile to make room stood first, too.
            let count = count.min(guesses.untold.len());
            guesses.untold.drain(..count);
        }
    }

    /// Counts what has counted elsewhere.
    pub(super) async fn read_guesses(&self, engine: &Engine) -> Result<(), Failure> {
        for _ in 0..READINGS {
            let now = self.state.lock().clock.now();
            let from = self.guesses.lock().from(now);
            let mut commands = redis::pipe();
            commands.cmd("XREAD").arg("COUNT").arg(READ);
            commands.arg("STREAMS").arg(self.names().guesses()).arg(&from);
            let answer = engine.run(&commands).await?.pop();
            let entries = entries(answer.unwrap_or(Value::Nil));
            let count = entries.len();
            for (id, text) in entries {
                self.count_guesses(&text, now);
                self.guesses.lock().read = Some(id);
            }
            if count < READ {
                break;
            }
        }
        let mut guesses = self.guesses.lock();
        if guesses.read.is_none() {
            let now = self.state.lock().clock.now();
            guesses.read = Some(guesses.from(now));
        }
        Ok(())
    }

    fn count_guesses(&self, text: &[u8], now: u64) {
        let Some(entry) = wire::read::<Entry>(text, ENTRY_MAX) else {
            self.unfit.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
            return;
        };
        if entry.from == self.run {
            return;
        }
        for told in entry.told.into_iter().take(AT_ONCE) {
            let age = Duration::from_millis(now.saturating_sub(told.at));
            let outcome = CountedLogin {
                account: told.account,
                client: told.client,
                right: told.right,
            };
            self.throttle.counted_elsewhere(&outcome, age, self.throttle.now());
        }
    }
}

/// The entries in an answer to `XREAD` of one stream: their ids and texts.
fn entries(answer: Value) -> Vec<(String, Vec<u8>)> {
    let of_stream = match answer {
        Value::Map(streams) => streams.into_iter().next().map(|(_, entries)| entries),
        Value::Array(streams) => streams.into_iter().next().and_then(|stream| match stream {
            Value::Array(parts) => parts.into_iter().nth(1),
            _ => None,
        }),
        _ => None,
    };
    let Some(Value::Array(entries)) = of_stream else {
        return Vec::new();
    };
    let entry = |entry: Value| {
        let Value::Array(parts) = entry else { return None };
        let mut parts = parts.into_iter();
        let id = String::from_utf8(wire::bytes(parts.next()?)?).ok()?;
        let is_id = id.len() <= 64 && id.bytes().all(|byte| byte.is_ascii_digit() || byte == b'-');
        let text = wire::pairs(parts.next()?).into_iter().next().map(|(_, text)| text);
        is_id.then(|| (id, text.unwrap_or_default()))
    };
    entries.into_iter().filter_map(entry).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn told(account: &str) -> Told {
        Told {
            account: account.to_owned(),
            client: "192.0.2.1".parse().unwrap(),
            right: false,
            at: 5,
        }
    }

    #[test]
    fn what_cannot_be_told_is_bounded() {
        let mut guesses = Guesses::new(0);
        (0..MOST_UNTOLD + 5).for_each(|i| guesses.put(told(&format!("{i}@x"))));
        assert_eq!(
            (guesses.untold.len(), guesses.untold[0].account.as_str()),
            (MOST_UNTOLD, "5@x")
        );
    }

    #[test]
    fn a_node_reads_what_it_does_not_know_yet() {
        let back = u64::try_from(LOOK_BACK.as_millis()).unwrap();
        let now = 10 * back;
        assert_eq!(Guesses::new(0).from(now), format!("{}-0", now - back));
        assert_eq!(Guesses::new(now - 5).from(now), format!("{}-0", now - 5));
        assert_eq!(Guesses::new(now + 5).from(now), format!("{now}-0"));
        let mut guesses = Guesses::new(0);
        guesses.read = Some(format!("{now}-3"));
        assert_eq!(guesses.from(now), format!("{now}-3"));
        assert_eq!(guesses.from(now - 2 * SKEW), format!("{}-0", now - 2 * SKEW - back));
    }

    #[test]
    fn answers_of_both_forms_are_read() {
        let string = |text: &str| Value::BulkString(text.as_bytes().to_vec());
        let entry = Value::Array(vec![string("7-1"), Value::Array(vec![string("told"), string("x")])]);
        let odd = Value::Array(vec![string("7-1\r\n"), Value::Array(vec![])]);
        let list = Value::Array(vec![entry, odd, Value::Nil]);
        let expected = [("7-1".to_owned(), b"x".to_vec())];
        assert_eq!(entries(Value::Map(vec![(string("k"), list.clone())])), expected);
        assert_eq!(
            entries(Value::Array(vec![Value::Array(vec![string("k"), list])])),
            expected
        );
        assert!(entries(Value::Nil).is_empty() && entries(Value::Array(vec![Value::Int(1)])).is_empty());
    }

    #[test]
    fn entries_are_read_as_they_are_written() {
        let entry = Entry {
            v: wire::VERSION,
            from: "00000000000000aa".to_owned(),
            told: vec![told("a@x")],
        };
        assert_eq!(wire::read::<Entry>(&wire::text(&entry), ENTRY_MAX), Some(entry.clone()));
        let long = Entry {
            told: vec![told(&"a".repeat(600))],
            ..entry
        };
        assert_eq!(wire::read::<Entry>(&wire::text(&long), ENTRY_MAX), None);
    }
}
