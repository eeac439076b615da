//! What counts here is told to other nodes, and what counted there counts here, too.
//!
//! Only what has counted is told: no password, no mark of one, no attempt that is under way. Nothing waits for it.

use std::net::IpAddr;
use std::time::Duration;

use super::{Claim, LoginChannel, Moment, Rule, Throttle, Ticket};

/// A pair that goes on logging in is told of again after this time.
const TOLD_AGAIN: Duration = Duration::from_secs(3600);

/// What has become of an attempt, as far as it counts.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CountedLogin {
    /// Canonical name of the account, or the name that no account has.
    pub account: String,
    /// Address of the client.
    pub client: IpAddr,
    /// It has logged in; else name or password was wrong.
    pub right: bool,
}

/// Hears what counts, and must not wait.
pub trait CountListener: Send + Sync {
    /// Something has counted.
    fn counted(&self, outcome: CountedLogin);
}

impl Throttle {
    /// Has this one hear what counts from now on; only the first does.
    pub fn listen(&self, listener: std::sync::Arc<dyn CountListener>) {
        let _there_is_one_already = self.listener.set(listener);
    }

    /// Counts what has counted at another node, so long ago.
    pub fn counted_elsewhere(&self, outcome: &CountedLogin, age: Duration, now: Moment) {
        let settings = self.settings();
        let claim = Claim {
            account: &outcome.account,
            client: outcome.client,
            password: None,
            channel: LoginChannel::default(),
        };
        let mut ticket = self.ticket(&claim, now.tick());
        if outcome.right {
            return self.succeeded(&settings, &ticket, now.tick());
        }
        if age > settings.rule(Rule::Pair).window || self.allowed(&settings, outcome.client, now).is_some() {
            return;
        }
        ticket.known = self.view(&settings, &ticket, now.tick()).known;
        let half = settings.rule(Rule::Pair).window.as_secs_f32().max(1.0);
        let by = (-age.as_secs_f32() / half).exp2();
        self.failed(&settings, &ticket, (by, 0.0), now.tick());
    }

    /// Who an attempt is, if somebody is to hear of it.
    pub(super) fn whose(&self, claim: &Claim<'_>) -> Option<Box<(String, IpAddr)>> {
        self.listener.get()?;
        Some(Box::new((claim.account.to_owned(), claim.client)))
    }

    pub(super) fn tell(&self, ticket: &Ticket, right: bool) {
        if let (Some(listener), Some(whose)) = (self.listener.get(), &ticket.whose) {
            let (account, client) = (**whose).clone();
            // Others could not tell a token from a password.
            if right || !ticket.token {
                listener.counted(CountedLogin { account, client, right });
            }
        }
    }

    /// Whether other nodes learn something from this login.
    pub(super) fn is_news(&self, ticket: &Ticket, now: u32) -> bool {
        if ticket.whose.is_none() {
            return false;
        }
        let last = self.lanes.peek(ticket.lane).map(|words| words[1]);
        let is_due = last.is_none_or(|last| now.saturating_sub(last) > super::ticks(TOLD_AGAIN));
        let failures = self.tallies.peek(ticket.pair).map(|words| f32::from_bits(words[2]));
        is_due || failures.is_some_and(|failures| failures > 0.5)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::{Arc, Mutex};

    use super::*;
    use crate::throttle::{Answered, Judgement, PasswordMark, ThrottleSettings};

    #[derive(Default)]
    struct Heard(Mutex<Vec<CountedLogin>>);

    impl CountListener for Heard {
        fn counted(&self, outcome: CountedLogin) {
            self.0.lock().unwrap().push(outcome);
        }
    }

    fn attempt(throttle: &Throttle, password: &str, answer: Answered) -> bool {
        let claim = Claim {
            account: "alice@a.test",
            client: "192.0.2.1".parse().unwrap(),
            password: Some(PasswordMark::of(password.as_bytes())),
            channel: LoginChannel::default(),
        };
        match throttle.ask(&claim, Duration::from_secs(3600), throttle.now()) {
            Judgement::Pass(ticket, _) => {
                throttle.answered(ticket, answer, throttle.now());
                true
            }
            _ => false,
        }
    }

    fn pair(throttle: &Throttle) -> f32 {
        let report = throttle.explain("alice@a.test", "192.0.2.1".parse().unwrap(), throttle.now());
        let level = report.levels.iter().find(|level| level.rule == Rule::Pair);
        level.map_or(0.0, |level| level.failures)
    }

    #[test]
    fn failures_and_logins_count_at_both_nodes() {
        let (here, there) = (
            Throttle::new(ThrottleSettings::default()),
            Throttle::new(ThrottleSettings::default()),
        );
        let heard = Arc::new(Heard::default());
        here.listen(heard.clone());
        let pass_on = || {
            let all = std::mem::take(&mut *heard.0.lock().unwrap());
            for outcome in &all {
                there.counted_elsewhere(outcome, Duration::ZERO, there.now());
            }
            all.len()
        };
        assert!(attempt(&here, "one", Answered::Wrong) && attempt(&here, "two", Answered::Wrong));
        // What does not count here does not count there.
        assert!(attempt(&here, "two", Answered::Wrong) && attempt(&here, "three", Answered::Unknown));
        assert_eq!(pass_on(), 2);
        assert!((pair(&there) - 2.0).abs() < 0.1, "{}", pair(&there));
        assert!(attempt(&here, "right", Answered::Right));
        assert_eq!(pass_on(), 1);
        assert!(pair(&there) < 0.1);
        let known = there.explain("alice@a.test", "192.0.2.1".parse().unwrap(), there.now());
        assert!(known.known.is_some() && known.accounts == 1);
        // The next one teaches nobody anything.
        assert!(attempt(&here, "right", Answered::Right));
        assert_eq!(pass_on(), 0);
    }

    #[test]
    fn what_failed_long_ago_has_faded() {
        let there = Throttle::new(ThrottleSettings::default());
        let outcome = CountedLogin {
            account: "alice@a.test".to_owned(),
            client: "192.0.2.1".parse().unwrap(),
            right: false,
        };
        let window = ThrottleSettings::default().rule(Rule::Pair).window;
        there.counted_elsewhere(&outcome, window, there.now());
        assert!((pair(&there) - 0.5).abs() < 0.05, "{}", pair(&there));
        there.counted_elsewhere(&outcome, window * 2, there.now());
        assert!((pair(&there) - 0.5).abs() < 0.05, "{}", pair(&there));
    }
}
