//! Who has been delayed or refused lately, for administrators: a short list of names, unlike the tables, which know none.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::{Mutex, MutexGuard, PoisonError};

use super::origin::ClientNetworks;
use super::settings::{Mode, Rule};
use super::{Action, Finding, Moment};

/// Entries of the list. A flood pushes out those that were held off longest ago.
const MOST: usize = 1_000;

/// Whom a finding is about.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) struct Subject {
    pub(super) rule: Rule,
    /// The account that was asked for; `None` where the rule is about an address, whatever it asks for.
    pub(super) account: Option<String>,
    /// The network of 64 bits, or the address.
    pub(super) client: IpAddr,
}

/// A client that has been delayed or refused.
#[derive(Debug, Clone)]
pub struct HeldOff {
    /// The rule.
    pub rule: Rule,
    /// Whether that was done, or only recorded.
    pub mode: Mode,
    /// The account that it last asked for.
    pub account: String,
    /// Its address or network.
    pub client: String,
    /// Failures that counted then.
    pub count: u32,
    /// When it ends, without further failures.
    pub until: Moment,
    /// When it was delayed or refused last.
    pub last: Moment,
    /// How often it was delayed.
    pub delayed: u64,
    /// How often it was refused.
    pub refused: u64,
}

/// The list.
#[derive(Default)]
pub(super) struct HeldList(Mutex<HashMap<Subject, HeldOff>>);

impl HeldList {
    fn lock(&self) -> MutexGuard<'_, HashMap<Subject, HeldOff>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Notes that a rule has found something.
    pub(super) fn note(&self, subject: Subject, finding: Finding, mode: Mode, now: Moment) {
        let account = subject.account.clone().unwrap_or_default();
        let client = ClientNetworks::of(subject.client).text();
        let subject = Subject {
            account: subject.account.filter(|_| subject.rule.is_of_account()),
            ..subject
        };
        let mut list = self.lock();
        if list.len() >= MOST && !list.contains_key(&subject) {
            let oldest = list.iter().min_by_key(|(_, held)| held.last);
            if let Some(oldest) = oldest.map(|(subject, _)| subject.clone()) {
                list.remove(&oldest);
            }
        }
        let held = list.entry(subject).or_insert_with_key(|subject| HeldOff {
            rule: subject.rule,
            mode,
            account: String::new(),
            client,
            count: 0,
            until: now,
            last: now,
            delayed: 0,
            refused: 0,
        });
        held.account = account;
        (held.mode, held.count, held.last) = (mode, finding.count, now);
        held.until = now.after(finding.lasts);
        let refused = u64::from(finding.action == Action::Refuse);
        held.refused += refused;
        held.delayed += 1 - refused;
    }

    /// All, the latest first.
    pub(super) fn list(&self) -> Vec<HeldOff> {
        let mut all: Vec<HeldOff> = self.lock().values().cloned().collect();
        all.sort_by(|a, b| b.last.cmp(&a.last).then_with(|| a.account.cmp(&b.account)));
        all
    }

    /// Removes those of an account and of a client; absent ones match all. Returns whom they were about.
    pub(super) fn remove(&self, account: Option<&str>, client: Option<&str>) -> Vec<Subject> {
        let mut list = self.lock();
        let is_meant = |held: &HeldOff| {
            account.is_none_or(|account| held.account == account) && client.is_none_or(|client| held.client == client)
        };
        let meant = list.iter().filter(|(_, held)| is_meant(held));
        let meant: Vec<Subject> = meant.map(|(subject, _)| subject.clone()).collect();
        meant.iter().for_each(|subject| drop(list.remove(subject)));
        meant
    }

    /// Removes all.
    pub(super) fn clear(&self) {
        self.lock().clear();
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn the_list_is_short_and_keeps_the_latest() {
        let list = HeldList::default();
        for n in 0..2_000_u32 {
            let subject = Subject {
                rule: Rule::Pair,
                account: Some(format!("{n}@a.test")),
                client: IpAddr::from([192, 0, 2, 1]),
            };
            let finding = Finding {
                rule: Rule::Pair,
                action: Action::Refuse,
                count: 12,
                lasts: Duration::from_secs(60),
            };
            list.note(subject, finding, Mode::On, Moment(Duration::from_secs(u64::from(n))));
        }
        let all = list.list();
        assert_eq!((all.len(), all[0].account.as_str()), (MOST, "1999@a.test"));
        assert_eq!(list.remove(Some("1999@a.test"), None).len(), 1);
        assert_eq!(list.remove(None, Some("192.0.2.1")).len(), MOST - 1);
    }
}
