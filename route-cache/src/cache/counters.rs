//! How often each answer was returned. It is only counted here; the reader decides what it means.

use std::sync::atomic::{AtomicU64, Ordering};

use crate::route::{Route, RouteError, Tier};

/// Answers since the process started.
#[derive(Debug, Default)]
pub struct Counters {
    memory: AtomicU64,
    stale: AtomicU64,
    kept_file: AtomicU64,
    referral: AtomicU64,
    memcached: AtomicU64,
    directory: AtomicU64,
    nobody: AtomicU64,
    failed: AtomicU64,
    questions: AtomicU64,
}

impl Counters {
    /// Answers by the tier that returned the route; `nobody` where the account does not exist, `failed` where there
    /// is no route for another reason.
    pub fn answers(&self) -> [(&'static str, u64); 8] {
        [
            ("memory", &self.memory),
            ("stale", &self.stale),
            ("kept_file", &self.kept_file),
            ("referral", &self.referral),
            ("memcached", &self.memcached),
            ("directory", &self.directory),
            ("nobody", &self.nobody),
            ("failed", &self.failed),
        ]
        .map(|(name, count)| (name, count.load(Ordering::Relaxed)))
    }

    /// Questions for accounts to the directory or the services in its place. Explanations are not counted.
    pub fn questions(&self) -> u64 {
        self.questions.load(Ordering::Relaxed)
    }

    pub(crate) fn answered(&self, answer: &Result<Route, RouteError>) {
        let count = match answer {
            Ok(route) => match route.tier {
                Tier::Memory => &self.memory,
                Tier::Stale => &self.stale,
                Tier::KeptFile => &self.kept_file,
                Tier::Referral => &self.referral,
                Tier::Memcached => &self.memcached,
                Tier::Directory => &self.directory,
            },
            Err(RouteError::UnknownUser) => &self.nobody,
            Err(_) => &self.failed,
        };
        count.fetch_add(1, Ordering::Relaxed);
    }

    pub(crate) fn count_question(&self) {
        self.questions.fetch_add(1, Ordering::Relaxed);
    }
}
