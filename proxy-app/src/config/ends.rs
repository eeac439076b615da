//! How the process ends: `shutdown_timeout`, `drain_max`, `drain_spread`.

use std::time::Duration;

use mail_directory::yaml::Mapping;

use super::LiveKey;
use super::pingora::PingoraConfig;
use super::read::ConfigReader;

pub(super) const LIVE: [LiveKey; 3] = [
    ("shutdown_timeout", |now, new| {
        now.ends.shutdown_timeout = new.ends.shutdown_timeout
    }),
    ("drain_max", |now, new| now.ends.drain_max = new.ends.drain_max),
    ("drain_spread", |now, new| now.ends.drain_spread = new.ends.drain_spread),
];

/// `shutdown_timeout`, `drain_max`, `drain_spread`
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Ends {
    /// From SIGTERM to the end of the process.
    pub shutdown_timeout: Duration,
    /// How long sessions may go on after a new process has taken over.
    pub drain_max: Duration,
    /// The time after that over which the remaining sessions are ended, each at a moment of its own.
    pub drain_spread: Duration,
}

impl Default for Ends {
    fn default() -> Self {
        Self {
            shutdown_timeout: Duration::from_secs(30),
            drain_max: Duration::from_secs(24 * 3600),
            drain_spread: Duration::from_secs(300),
        }
    }
}

impl ConfigReader {
    /// Pingora's `grace_period_seconds` says the same as `shutdown_timeout`, which counts where both are written.
    pub(super) fn ends(&mut self, root: &mut Mapping<'_>, server: &PingoraConfig) -> Ends {
        let mut ends = Ends::default();
        let grace = server.to_conf().grace_period_seconds.map(Duration::from_secs);
        ends.shutdown_timeout = grace.unwrap_or(ends.shutdown_timeout);
        self.duration(root, "shutdown_timeout", &mut ends.shutdown_timeout);
        self.duration(root, "drain_max", &mut ends.drain_max);
        self.duration(root, "drain_spread", &mut ends.drain_spread);
        ends
    }
}
