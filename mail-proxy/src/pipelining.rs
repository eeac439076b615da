//! Which mailbox servers take a login in one flight, as far as they have said so before.
//!
//! It saves round trips and decides nothing: what was learned is dropped when a server cannot be reached or does not
//! speak as it must, and the login is tried once more, one question at a time.

use std::collections::HashMap;
use std::time::Duration;

use parking_lot::Mutex;
use route_cache::HostPort;
use tokio::time::Instant;

use crate::machine::Pipelines;

/// How long it counts what a server has said: it may be another version after that, with other rules.
const KEPT: Duration = Duration::from_secs(3600);
/// Servers that are remembered.
const SERVERS: usize = 1024;

/// The servers that have said it.
#[derive(Debug, Default)]
pub struct PipeliningServers(Mutex<HashMap<HostPort, (Pipelines, Instant)>>);

impl PipeliningServers {
    /// What is known of a server.
    pub(crate) fn of(&self, server: &HostPort) -> Pipelines {
        match self.0.lock().get(server) {
            Some((said, at)) if at.elapsed() < KEPT => *said,
            _ => Pipelines::Unknown,
        }
    }

    /// Notes what a server has said now, or what has come of it.
    pub(crate) fn note(&self, server: HostPort, said: Pipelines) {
        let (mut servers, now) = (self.0.lock(), Instant::now());
        if servers.len() >= SERVERS && !servers.contains_key(&server) {
            servers.retain(|_, (_, at)| now.saturating_duration_since(*at) < KEPT);
        }
        if servers.len() < SERVERS || servers.contains_key(&server) {
            servers.insert(server, (said, now));
        }
    }

    /// Forgets a server that could not be reached: what comes back may be another one.
    pub(crate) fn forget(&self, server: &HostPort) {
        self.0.lock().remove(server);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn what_a_server_has_said_counts_for_an_hour() {
        let (servers, one) = (PipeliningServers::default(), HostPort::new("one", 110));
        assert_eq!(servers.of(&one), Pipelines::Unknown);
        servers.note(one.clone(), Pipelines::Yes);
        assert_eq!(servers.of(&one), Pipelines::Yes);
        assert_eq!(servers.of(&HostPort::new("one", 143)), Pipelines::Unknown);
        servers.note(one.clone(), Pipelines::No);
        assert_eq!(servers.of(&one), Pipelines::No);
        tokio::time::advance(KEPT).await;
        assert_eq!(servers.of(&one), Pipelines::Unknown);
        servers.note(one.clone(), Pipelines::Yes);
        servers.forget(&one);
        assert_eq!(servers.of(&one), Pipelines::Unknown);
    }

    #[tokio::test(start_paused = true)]
    async fn the_servers_are_bounded_and_old_ones_make_room() {
        let servers = PipeliningServers::default();
        let note = |from: usize| {
            (from..from + 2 * SERVERS).for_each(|n| servers.note(HostPort::new(format!("s{n}"), 110), Pipelines::Yes));
        };
        note(0);
        assert_eq!(servers.0.lock().len(), SERVERS);
        assert_eq!(servers.of(&HostPort::new("s0", 110)), Pipelines::Yes);
        tokio::time::advance(KEPT).await;
        note(2 * SERVERS);
        assert_eq!(servers.0.lock().len(), SERVERS);
        assert_eq!(
            servers.of(&HostPort::new(format!("s{}", 2 * SERVERS), 110)),
            Pipelines::Yes
        );
    }
}
