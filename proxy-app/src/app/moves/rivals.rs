//! Moves of one account that several nodes begin: which of them goes on. Pure.

use std::collections::HashMap;
use std::time::SystemTime;

/// Most moves of other nodes that are remembered: as many as there may be holds.
const MOST: usize = route_cache::MAX_HOLDS;

/// Which move it is. Of two that begin at once the smaller one goes on: the earlier one, by the clocks of their nodes,
/// else that of the node whose name comes first. Every node that knows both decides alike.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct MoveClaim {
    /// When it began, in milliseconds since 1970.
    pub since: u64,
    /// The node that carries it out.
    pub node: String,
}

/// Moves of other nodes that hold accounts here, each until its hold ends.
#[derive(Default)]
pub(super) struct MovesElsewhere(HashMap<String, (MoveClaim, SystemTime)>);

impl MovesElsewhere {
    /// A move holds the account. Of several the one that goes on is remembered.
    pub(super) fn note(&mut self, account: &str, claim: MoveClaim, until: SystemTime) {
        let now = SystemTime::now();
        self.0.retain(|_, (_, until)| *until > now);
        let known = self.0.get(account);
        if known.is_some_and(|(known, _)| *known < claim) || (known.is_none() && self.0.len() >= MOST) {
            return;
        }
        self.0.insert(account.to_owned(), (claim, until));
    }

    /// The move that holds the account.
    pub(super) fn of(&self, account: &str) -> Option<&MoveClaim> {
        let (claim, until) = self.0.get(account)?;
        (*until > SystemTime::now()).then_some(claim)
    }

    /// This move has ended. False: another one holds the account.
    pub(super) fn ended(&mut self, account: &str, claim: &MoveClaim) -> bool {
        let is_its_own = self.of(account).is_none_or(|known| known == claim);
        if is_its_own {
            self.0.remove(account);
        }
        is_its_own
    }

    /// Whatever held it does not any more.
    pub(super) fn forget(&mut self, account: &str) {
        self.0.remove(account);
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn claim(since: u64, node: &str) -> MoveClaim {
        MoveClaim {
            since,
            node: node.to_owned(),
        }
    }

    #[test]
    fn the_earlier_move_goes_on_and_only_it_ends_its_hold() {
        let mut elsewhere = MovesElsewhere::default();
        let until = SystemTime::now() + Duration::from_secs(60);
        let (first, second) = (claim(1, "b"), claim(2, "a"));
        for (one, other) in [(&first, &second), (&second, &first)] {
            elsewhere.note("a@x", one.clone(), until);
            elsewhere.note("a@x", other.clone(), until);
            assert_eq!(elsewhere.of("a@x"), Some(&first));
            assert!(!elsewhere.ended("a@x", &second));
            assert!(elsewhere.ended("a@x", &first));
            assert_eq!(elsewhere.of("a@x"), None);
        }
        assert!(claim(1, "a") < claim(1, "b"));
    }

    #[test]
    fn a_move_is_forgotten_when_its_hold_is_over() {
        let mut elsewhere = MovesElsewhere::default();
        elsewhere.note("a@x", claim(1, "a"), SystemTime::now());
        assert_eq!(elsewhere.of("a@x"), None);
        let until = SystemTime::now() + Duration::from_secs(60);
        elsewhere.note("a@x", claim(2, "b"), until);
        assert_eq!(elsewhere.of("a@x"), Some(&claim(2, "b")));
        elsewhere.forget("a@x");
        assert_eq!(elsewhere.of("a@x"), None);
    }
}
