//! What differs between two configurations, one sentence each, for the client that made the change, and for later
//! questions.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use jiff::Timestamp;
use mail_directory::{Entry, System};
use parking_lot::Mutex;

use crate::tls::certificate_store::CertStore;

/// Configurations that are remembered.
const REMEMBERED: usize = 64;
/// Sentences of one configuration that are remembered. A directory that was filled again may have tens of thousands.
const SENTENCES: usize = 100;

/// A configuration that is, or was, in force.
#[derive(Debug, Clone)]
pub(crate) struct Generation {
    /// Its number.
    pub number: u64,
    /// When it came into force.
    pub since: Timestamp,
    /// The cause of it.
    pub why: String,
    /// The differences to the previous one.
    pub changes: Vec<String>,
}

/// The last configurations of this node, previous processes included.
#[derive(Debug, Default)]
pub(crate) struct History(Mutex<VecDeque<Generation>>);

impl History {
    /// Puts this one on record as the one in force.
    pub(crate) fn begin(&self, number: u64, why: &str, mut changes: Vec<String>) -> Generation {
        let more = changes.len().saturating_sub(SENTENCES);
        changes.truncate(SENTENCES);
        changes.extend((more > 0).then(|| format!("and {more} more")));
        let generation = Generation {
            number,
            since: Timestamp::now(),
            why: why.to_owned(),
            changes,
        };
        let mut all = self.0.lock();
        all.truncate(REMEMBERED - 1);
        all.push_front(generation.clone());
        generation
    }

    /// Puts the configurations of previous processes on record, the newest first.
    pub(crate) fn go_on(&self, mut before: Vec<Generation>) {
        before.truncate(REMEMBERED - 1);
        self.0.lock().extend(before);
    }

    /// Those that are remembered, the newest first.
    pub(crate) fn all(&self) -> Vec<Generation> {
        self.0.lock().iter().cloned().collect()
    }

    /// The number of the newest one; 0: there is none.
    pub(crate) fn last(&self) -> u64 {
        self.0.lock().front().map_or(0, |newest| newest.number)
    }

    /// The changes since this one, as far as they are remembered, the oldest first.
    pub(crate) fn since(&self, number: u64) -> Vec<String> {
        let all = self.0.lock();
        let later = all.iter().rev().filter(|generation| generation.number > number);
        later.flat_map(|generation| generation.changes.clone()).collect()
    }
}

/// Entries and attributes that have changed. Values are not shown: some of them are keys.
pub(crate) fn of_systems(before: &System, now: &System) -> Vec<String> {
    let mut changes = attributes(before.global().entry(), now.global().entry())
        .map(|what| format!("global config: {what}"))
        .into_iter()
        .collect();
    let servers = |system| System::servers(system).filter_map(|view| view.entry());
    let domains = |system| System::domains(system).filter_map(|view| view.entry());
    entries("server", servers(before), servers(now), &mut changes);
    entries("domain", domains(before), domains(now), &mut changes);
    entries("class of service", before.classes(), now.classes(), &mut changes);
    changes
}

/// Certificates that have changed.
pub(crate) fn of_certificates(before: &CertStore, now: &CertStore) -> Vec<String> {
    let prints = |store: &CertStore| -> BTreeMap<String, Vec<u8>> {
        let all = store.all().into_iter();
        all.map(|(owner, pair)| (owner, pair.fingerprint())).collect()
    };
    let (before, now) = (prints(before), prints(now));
    let changed = now.iter().filter(|(owner, print)| before.get(*owner) != Some(*print));
    let gone = before.keys().filter(|owner| !now.contains_key(*owner));
    changed
        .map(|(owner, _)| format!("{owner}: another certificate is shown"))
        .chain(gone.map(|owner| format!("{owner}: its certificate is shown no more")))
        .collect()
}

fn entries<'a>(
    kind: &str,
    before: impl Iterator<Item = &'a Entry>,
    now: impl Iterator<Item = &'a Entry>,
    changes: &mut Vec<String>,
) {
    let before: BTreeMap<&str, &Entry> = before.map(|entry| (entry.name(), entry)).collect();
    let now: BTreeMap<&str, &Entry> = now.map(|entry| (entry.name(), entry)).collect();
    let names: BTreeSet<&str> = before.keys().chain(now.keys()).copied().collect();
    for name in names {
        let what = match (before.get(name), now.get(name)) {
            (None, _) => Some("added".to_owned()),
            (_, None) => Some("removed".to_owned()),
            (Some(before), Some(now)) => attributes(Some(before), Some(now)),
        };
        changes.extend(what.map(|what| format!("{kind} {name}: {what}")));
    }
}

/// The attributes that differ; `None` if there are none.
fn attributes(before: Option<&Entry>, now: Option<&Entry>) -> Option<String> {
    let values = |entry: Option<&Entry>| -> BTreeMap<String, Vec<String>> {
        let all = entry.into_iter().flat_map(Entry::iter);
        all.map(|(name, values)| (name.to_owned(), values.to_vec())).collect()
    };
    let (before, now) = (values(before), values(now));
    let names: BTreeSet<&String> = before.keys().chain(now.keys()).collect();
    let differ: Vec<&str> = names
        .into_iter()
        .filter(|name| before.get(*name) != now.get(*name))
        .map(String::as_str)
        .collect();
    (!differ.is_empty()).then(|| format!("{} changed", differ.join(", ")))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(name: &str, attribute: &str, value: &str) -> Entry {
        let mut entry = Entry::new(name);
        entry.set(attribute, [value]);
        entry
    }

    #[test]
    fn the_last_configurations_are_remembered() {
        let history = History::default();
        for number in 1..=100 {
            history.begin(number, "the directory changed", vec![format!("change {number}")]);
        }
        let all = history.all();
        assert_eq!(all.len(), REMEMBERED);
        assert_eq!((all[0].number, all[REMEMBERED - 1].number), (100, 37));
        assert_eq!(history.since(98), ["change 99", "change 100"]);
        let many = history.begin(101, "reloaded", vec!["one".to_owned(); 103]);
        assert_eq!(many.changes.len(), SENTENCES + 1);
        assert_eq!(many.changes[SENTENCES], "and 3 more");
    }

    #[test]
    fn changes_name_entries_and_attributes() {
        let before = System::new(
            entry("config", "zimbraReverseProxyMailMode", "https"),
            [entry("s1", "zimbraMailPort", "1"), entry("s2", "zimbraMailPort", "1")],
            [entry("a.test", "zimbraSSLPrivateKey", "secret one")],
            [],
        );
        let now = System::new(
            entry("config", "zimbraReverseProxyMailMode", "both"),
            [entry("s1", "zimbraMailPort", "1"), entry("s3", "zimbraMailPort", "1")],
            [entry("a.test", "zimbraSSLPrivateKey", "secret two")],
            [],
        );
        assert_eq!(
            of_systems(&before, &now),
            [
                "global config: zimbraReverseProxyMailMode changed",
                "server s2: removed",
                "server s3: added",
                "domain a.test: zimbraSSLPrivateKey changed",
            ]
        );
        assert!(of_systems(&now, &now).is_empty());
    }
}
