//! Readings that have lost too much to be believed: a file that is empty or half written, a disk that is full, a
//! right that was taken away. The user of an account that is gone is told that the password is wrong, so such a
//! reading is not taken over unless an administrator says so.

use crate::edit::EntryKind;
use crate::system::{Entries, System};

/// What may be lost from one reading to the next.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Losses {
    /// Up to half of the entries of each kind, or one account or class of service: this reading was not asked for.
    Few,
    /// More than that, but not all servers or all domains: an administrator wants this reading to count.
    Most,
    /// Everything: the administrator said so expressly.
    All,
}

/// The entries of a kind in two readings.
pub(crate) struct Count {
    /// Which kind.
    pub(crate) kind: EntryKind,
    /// How many there were.
    pub(crate) had: usize,
    /// How many of those are still there.
    pub(crate) left: usize,
    /// How many there are.
    pub(crate) has: usize,
}

impl Losses {
    /// Why a reading with these counts may not go in force.
    pub(crate) fn forbid(self, counts: impl IntoIterator<Item = Count>) -> Option<String> {
        let counts: Vec<Count> = counts.into_iter().collect();
        let gone = counts.iter().map(|count| count.had - count.left).sum();
        counts.iter().find_map(|count| self.forbid_one(count, gone))
    }

    /// `in_all` entries are gone, of all kinds.
    fn forbid_one(self, count: &Count, in_all: usize) -> Option<String> {
        let Count { kind, had, left, has } = *count;
        let name = kind.name();
        let vital = matches!(kind, EntryKind::Servers | EntryKind::Domains);
        if self < Self::All && vital && had > 0 && has == 0 {
            return Some(format!("all {name} are gone; if that is meant, portico reload --force"));
        }
        let gone = had - left;
        // The only account or class of service was deleted or got another name: a file that lost its end, or a
        // directory that hides its entries, has lost more than that.
        let is_one_act = in_all == 1 && !vital;
        (self < Self::Most && gone * 2 > had && !is_one_act)
            .then(|| format!("{gone} of {had} {name} are gone; if that is meant, portico reload"))
    }
}

/// Everything but the accounts.
pub(crate) fn of_systems(before: &System, now: &System) -> [Count; 3] {
    [
        (EntryKind::Servers, &before.servers, &now.servers),
        (EntryKind::Domains, &before.domains, &now.domains),
        (EntryKind::Cos, &before.cos, &now.cos),
    ]
    .map(|(kind, before, now)| Count {
        kind,
        had: before.len(),
        left: still_there(before, now),
        has: now.len(),
    })
}

fn still_there(before: &Entries, now: &Entries) -> usize {
    before.keys().filter(|name| now.contains_key(*name)).count()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn more_than_half_wants_a_word_and_all_an_express_one() {
        let allowed = |kind, had, left, has| {
            let all = [Losses::Few, Losses::Most, Losses::All];
            let count = || Count { kind, had, left, has };
            all.map(|losses| losses.forbid([count()]).is_none())
        };
        for (kind, had, left, has, expected) in [
            (EntryKind::Accounts, 0, 0, 9, [true, true, true]),
            (EntryKind::Accounts, 4, 2, 2, [true, true, true]),
            (EntryKind::Accounts, 4, 1, 1, [false, true, true]),
            // A completely different file.
            (EntryKind::Accounts, 4, 1, 90, [false, true, true]),
            (EntryKind::Accounts, 4, 0, 0, [false, true, true]),
            (EntryKind::Accounts, 2, 0, 0, [false, true, true]),
            // One act of an administrator deletes one.
            (EntryKind::Accounts, 1, 0, 0, [true, true, true]),
            (EntryKind::Accounts, 1, 0, 1, [true, true, true]),
            (EntryKind::Cos, 1, 0, 0, [true, true, true]),
            (EntryKind::Domains, 3, 1, 1, [false, true, true]),
            (EntryKind::Domains, 1, 0, 1, [false, true, true]),
            (EntryKind::Domains, 1, 0, 0, [false, false, true]),
            (EntryKind::Servers, 9, 0, 0, [false, false, true]),
            (EntryKind::Servers, 0, 0, 0, [true, true, true]),
        ] {
            assert_eq!(allowed(kind, had, left, has), expected, "{kind:?} {had} {left} {has}");
        }
    }

    #[test]
    fn what_goes_together_is_not_one_act() {
        let lost = |kind, had, left| Count {
            kind,
            had,
            left,
            has: left,
        };
        let both = || [lost(EntryKind::Cos, 1, 0), lost(EntryKind::Accounts, 1, 0)];
        assert!(Losses::Few.forbid(both()).is_some_and(|why| why.contains("1 of 1 cos")));
        let with_domain = || [lost(EntryKind::Domains, 9, 8), lost(EntryKind::Accounts, 1, 0)];
        assert!(Losses::Few.forbid(with_domain()).is_some());
        assert!(Losses::Most.forbid(both()).is_none());
    }
}
