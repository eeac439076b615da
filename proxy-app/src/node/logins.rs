//! Login attempts as they happen, for watchers: the latest ones, and all from now on.
//!
//! It stands in front of the audit log and takes a copy of what goes there. A watcher that does not keep up loses
//! lines and learns how many; no login waits for it.

use std::collections::VecDeque;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::{Duration, Instant};

use jiff::Timestamp;
use mail_directory::names;
use mail_proxy::Proto;
use mail_proxy::audit::{Audit, Event, Outcome, Phase, Record};
use parking_lot::Mutex;
use route_cache::Route;
use tokio::sync::broadcast;

use crate::node::logs::AuditForm;
use crate::node::metrics::Metrics;
use crate::node::refusals::Refusals;

/// Attempts that are remembered.
const RECENT: usize = 256;
/// Attempts that a watcher may be behind with.
const BEHIND: usize = 1024;

/// Watchers at one time: fewer than there are admin connections, so that they do not shut out all others.
const WATCHERS: usize = 16;

/// An attempt, and when it ended.
#[derive(Debug)]
pub(crate) struct Attempt {
    /// When.
    pub time: Timestamp,
    /// The record of the audit log.
    pub record: Record,
}

/// Which attempts. Absent fields match all.
#[derive(Debug, Clone, Default)]
pub(crate) struct LoginFilter {
    /// Those that failed.
    pub failed: bool,
    /// Those for this user: the login as typed, or the account's name, in any case.
    pub user: Option<String>,
    /// Those of this client address.
    pub ip: Option<IpAddr>,
}

/// The attempts of this node.
pub(crate) struct RecentLogins {
    recent: Mutex<VecDeque<Arc<Attempt>>>,
    now: broadcast::Sender<Arc<Attempt>>,
}

impl Default for RecentLogins {
    fn default() -> Self {
        Self {
            recent: Mutex::default(),
            now: broadcast::Sender::new(BEHIND),
        }
    }
}

impl RecentLogins {
    /// The latest ones, oldest first.
    pub(crate) fn recent(&self, filter: &LoginFilter) -> Vec<Arc<Attempt>> {
        let recent = self.recent.lock();
        recent
            .iter()
            .filter(|attempt| filter.matches(&attempt.record))
            .cloned()
            .collect()
    }

    /// All from now on; `None` if too many watch already.
    pub(crate) fn follow(&self) -> Option<broadcast::Receiver<Arc<Attempt>>> {
        (self.now.receiver_count() < WATCHERS).then(|| self.now.subscribe())
    }

    fn take(&self, record: Record) {
        if !matches!(record.event, Some(Event::Login | Event::WebLogin)) {
            return;
        }
        let attempt = Arc::new(Attempt {
            time: Timestamp::now(),
            record,
        });
        // It is no failure if there is no watcher.
        let _ = self.now.send(attempt.clone());
        let mut recent = self.recent.lock();
        if recent.len() == RECENT {
            recent.pop_front();
        }
        recent.push_back(attempt);
    }
}

impl LoginFilter {
    /// Whether this record matches.
    pub(crate) fn matches(&self, record: &Record) -> bool {
        let failed = !matches!(record.outcome, Some(Outcome::Ok | Outcome::NotRefused));
        (failed || !self.failed)
            && self
                .ip
                .is_none_or(|ip| address_of(&record.client) == Some(ip.to_canonical()))
            && self.user.as_ref().is_none_or(|user| is_of(record, user))
    }
}

fn address_of(client: &str) -> Option<IpAddr> {
    client.parse().ok().map(|address: SocketAddr| address.ip())
}

fn is_of(record: &Record, user: &str) -> bool {
    let names = [&record.user, &record.account];
    let mut names = names.into_iter().flatten();
    names.any(|name| names::account(name) == names::account(user))
}

/// The audit log, with watchers and metrics in front of it.
pub(crate) struct Watched {
    /// The log.
    pub log: Arc<dyn AuditForm>,
    /// For watchers.
    pub logins: Arc<RecentLogins>,
    /// Counts attempts.
    pub metrics: Arc<Metrics>,
    /// Clients that left without a login.
    pub left: Arc<Refusals>,
}

impl Watched {
    /// For how many ends of sessions a record stands; `None` if it is left out. A client that leaves without a login
    /// costs its sender a few bytes, and may not fill the disk.
    fn share(&self, record: &Record) -> Option<u64> {
        let is_idle = record.event == Some(Event::SessionEnd)
            && record.outcome == Some(Outcome::ClientGone)
            && record.user.is_none();
        match address_of(&record.client) {
            Some(address) if is_idle => self.left.share(address, Instant::now()),
            _ => Some(1),
        }
    }
}

impl Audit for Watched {
    fn record(&self, mut record: Record) {
        self.metrics.record(&record);
        let Some(share) = self.share(&record) else { return };
        if share > 1 {
            record.count = Some(share);
        }
        self.log.write(&record);
        self.logins.take(record);
    }

    fn phase(&self, phase: Phase, proto: Proto, took: Duration) {
        self.metrics.phase(phase, proto, took);
    }

    fn lost(&self) -> u64 {
        self.log.lost()
    }

    fn connected(&self, route: &Route, ok: bool) {
        self.metrics.connected(&route.address().to_string(), ok);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(user: &str, client: &str, outcome: Outcome) -> Record {
        Record {
            event: Some(Event::Login),
            user: Some(user.to_owned()),
            client: client.to_owned(),
            outcome: Some(outcome),
            ..Record::default()
        }
    }

    #[test]
    fn the_last_ones_are_kept_and_found() {
        let logins = RecentLogins::default();
        for i in 0..300 {
            logins.take(record(&format!("u{i}"), "192.0.2.1:5", Outcome::Ok));
        }
        logins.take(record("Eve", "192.0.2.2:5", Outcome::BadCredentials));
        logins.take(Record {
            event: Some(Event::SessionEnd),
            ..record("u1", "192.0.2.1:5", Outcome::Ok)
        });
        let count = |filter: &LoginFilter| logins.recent(filter).len();
        assert_eq!(count(&LoginFilter::default()), RECENT);
        let failed = LoginFilter {
            failed: true,
            ..LoginFilter::default()
        };
        assert_eq!(count(&failed), 1);
        let eve = LoginFilter {
            user: Some("eve".to_owned()),
            ip: Some("192.0.2.2".parse().unwrap()),
            ..LoginFilter::default()
        };
        assert_eq!(count(&eve), 1);
        let elsewhere = LoginFilter {
            ip: Some("192.0.2.3".parse().unwrap()),
            ..eve
        };
        assert_eq!(count(&elsewhere), 0);
    }

    #[tokio::test]
    async fn a_slow_watcher_learns_how_much_it_has_lost() {
        let logins = RecentLogins::default();
        let mut watcher = logins.follow().unwrap();
        for i in 0..BEHIND + 10 {
            logins.take(record(&format!("u{i}"), "192.0.2.1:5", Outcome::Ok));
        }
        let lost = watcher.recv().await.unwrap_err();
        assert!(matches!(lost, broadcast::error::RecvError::Lagged(10)), "{lost:?}");
        let next = watcher.recv().await.unwrap();
        assert_eq!(next.record.user.as_deref(), Some("u10"));
        let others: Vec<_> = std::iter::from_fn(|| logins.follow()).collect();
        assert_eq!(others.len(), WATCHERS - 1);
        drop(watcher);
        assert!(logins.follow().is_some());
    }
}
