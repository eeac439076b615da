//! Holds: whose new logins have to wait, because an administrator moves mailboxes or works on a server, until when and
//! why. Who waits and what is told to the client is not decided here.

use std::collections::HashMap;
use std::fmt;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::{Duration, SystemTime};

use mail_directory::domain_of;
use parking_lot::RwLock;

/// Most holds at one time. More accounts are held by their domain or their server.
pub const MAX_HOLDS: usize = 10_000;
/// The longest hold, so that none is forgotten for ever.
pub const LONGEST_HOLD: Duration = Duration::from_secs(24 * 3600);

/// Whose logins wait; names are folded.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Held {
    /// Those of one account, by its canonical name.
    Account(String),
    /// Those of all accounts of a domain.
    Domain(String),
    /// Those of all accounts on a mailbox server, by the name of its entry.
    Server(String),
}

/// One hold.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Hold {
    /// Whose logins wait.
    pub held: Held,
    /// Why; for administrators, in logs.
    pub reason: String,
    /// Since when.
    pub since: SystemTime,
    /// When it ends by itself.
    pub until: SystemTime,
}

/// There are [`MAX_HOLDS`] already.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("there are {MAX_HOLDS} holds already; hold a domain or a server instead")]
pub struct TooManyHolds;

/// The holds of a node.
#[derive(Default)]
pub struct Holds {
    table: RwLock<HashMap<Held, Hold>>,
    /// How many there are, so that a login asks for no lock where there are none.
    count: AtomicUsize,
    /// How many have begun since this process did.
    begun: AtomicU64,
}

/// A moment in the order of holds and lookups. What is looked up later has heard of every hold that was over then.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct HoldMoment(u64);

impl fmt::Display for Held {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Account(name) => write!(f, "account {name}"),
            Self::Domain(name) => write!(f, "domain {name}"),
            Self::Server(name) => write!(f, "server {name}"),
        }
    }
}

impl Hold {
    fn is_over(&self) -> bool {
        self.until <= SystemTime::now()
    }
}

impl Holds {
    /// Begins a hold, or changes the one that there is.
    ///
    /// # Errors
    /// There are too many.
    pub fn begin(&self, hold: Hold) -> Result<(), TooManyHolds> {
        let mut table = self.table.write();
        table.retain(|_, hold| !hold.is_over());
        if table.len() >= MAX_HOLDS && !table.contains_key(&hold.held) {
            return Err(TooManyHolds);
        }
        table.insert(hold.held.clone(), hold);
        self.changed(&table);
        Ok(())
    }

    /// Puts these in the place of all that there are; what is too much is left out.
    pub fn replace(&self, holds: Vec<Hold>) {
        let holds = holds.into_iter().take(MAX_HOLDS);
        let mut table = self.table.write();
        *table = holds.map(|hold| (hold.held.clone(), hold)).collect();
        self.changed(&table);
    }

    fn changed(&self, table: &HashMap<Held, Hold>) {
        self.count.store(table.len(), Ordering::Relaxed);
        self.begun.fetch_add(1, Ordering::Release);
    }

    /// Taken before a lookup: by it [`Holds::none_since`] tells whether a whole hold has passed since.
    pub fn moment(&self) -> HoldMoment {
        HoldMoment(self.begun.load(Ordering::Acquire))
    }

    /// Whether no hold has begun since then. Otherwise the account may have been held, moved and released between an
    /// answer and the look for a hold, and the answer is an old one.
    pub fn none_since(&self, moment: HoldMoment) -> bool {
        self.moment() == moment
    }

    /// Ends a hold; `None` if there is none.
    pub fn release(&self, held: &Held) -> Option<Hold> {
        let mut table = self.table.write();
        let hold = table.remove(held).filter(|hold| !hold.is_over());
        self.count.store(table.len(), Ordering::Relaxed);
        hold
    }

    /// Those that are not over.
    pub fn all(&self) -> Vec<Hold> {
        let table = self.table.read();
        let mut all: Vec<Hold> = table.values().filter(|hold| !hold.is_over()).cloned().collect();
        all.sort_by(|one, other| one.held.cmp(&other.held));
        all
    }

    /// The hold that an account on a server is under: its own before that of its domain, and that before its server's.
    pub fn of(&self, account: &str, server: &str) -> Option<Hold> {
        if self.count.load(Ordering::Relaxed) == 0 {
            return None;
        }
        let table = self.table.read();
        let domain = domain_of(account).map(|domain| Held::Domain(domain.to_owned()));
        [
            Some(Held::Account(account.to_owned())),
            domain,
            Some(Held::Server(server.to_ascii_lowercase())),
        ]
        .into_iter()
        .flatten()
        .find_map(|held| table.get(&held).filter(|hold| !hold.is_over()).cloned())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hold(held: Held, reason: &str, lasts: Duration) -> Hold {
        let since = SystemTime::now();
        Hold {
            held,
            reason: reason.to_owned(),
            since,
            until: since + lasts,
        }
    }

    const HOUR: Duration = Duration::from_secs(3600);

    #[test]
    fn the_nearest_hold_counts_and_each_has_an_end() {
        let holds = Holds::default();
        let reason = |account: &str, server: &str| holds.of(account, server).map(|hold| hold.reason);
        assert_eq!(reason("a@x", "s1"), None);
        holds.begin(hold(Held::Server("s1".into()), "server", HOUR)).unwrap();
        assert_eq!(reason("a@x", "S1").as_deref(), Some("server"));
        assert_eq!(reason("a@x", "s2"), None);
        holds.begin(hold(Held::Domain("x".into()), "domain", HOUR)).unwrap();
        assert_eq!(reason("a@x", "s1").as_deref(), Some("domain"));
        holds.begin(hold(Held::Account("a@x".into()), "account", HOUR)).unwrap();
        assert_eq!(reason("a@x", "s1").as_deref(), Some("account"));
        assert_eq!(reason("b@x", "s2").as_deref(), Some("domain"));
        holds
            .begin(hold(Held::Account("a@x".into()), "over", Duration::ZERO))
            .unwrap();
        assert_eq!(reason("a@x", "s1").as_deref(), Some("domain"));
        assert_eq!(holds.all().len(), 2);
        assert!(holds.release(&Held::Account("a@x".into())).is_none(), "it is over");
        assert!(holds.release(&Held::Domain("x".into())).is_some());
        assert_eq!(reason("a@x", "s1").as_deref(), Some("server"));
    }

    #[test]
    fn a_hold_that_came_and_went_is_noticed() {
        let holds = Holds::default();
        let account = || Held::Account("a@x".into());
        let before = holds.moment();
        assert!(holds.none_since(before));
        holds.begin(hold(account(), "moves", HOUR)).unwrap();
        holds.release(&account()).unwrap();
        assert!(holds.of("a@x", "s1").is_none() && !holds.none_since(before));
        let behind = holds.moment();
        assert!(holds.release(&account()).is_none());
        assert!(holds.none_since(behind), "an end alone makes no answer old");
        holds.replace(vec![]);
        assert!(!holds.none_since(behind));
    }

    #[test]
    fn there_are_not_too_many() {
        let holds = Holds::default();
        let account = |i: usize| Held::Account(format!("u{i}@x"));
        for i in 0..MAX_HOLDS {
            holds.begin(hold(account(i), "", HOUR)).unwrap();
        }
        assert_eq!(holds.begin(hold(Held::Domain("x".into()), "", HOUR)), Err(TooManyHolds));
        holds.begin(hold(account(1), "changed", Duration::ZERO)).unwrap();
        holds.begin(hold(Held::Domain("x".into()), "", HOUR)).unwrap();
    }
}
