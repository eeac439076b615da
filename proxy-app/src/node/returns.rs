//! Servers that come back: when a mailbox server was down, its clients all come at once. They are let in at a pace, so
//! that it does not fall over again; the others wait for a while, and then hear that they should try again.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::Duration;

use parking_lot::Mutex;
use tokio::time::{Instant, sleep_until};

/// Failures in a row from which a server counts as down. One may have another cause.
const FAILURES: u32 = 3;
/// Most servers that are remembered. There are no more than the directory has.
const MOST: usize = 4096;
/// Longest use of a server that was down, without a success: after that it is forgotten.
const FORGOTTEN: Duration = Duration::from_secs(3600);

/// `mail.return_rate`, `mail.return_time`, `mail.return_wait`
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct ReturnPace {
    /// Logins each second at a server that has come back; zero: all at once.
    pub rate: u32,
    /// For how long.
    pub lasts: Duration,
    /// How long a login waits for its turn.
    pub wait: Duration,
}

impl Default for ReturnPace {
    fn default() -> Self {
        Self {
            rate: 100,
            lasts: Duration::from_secs(60),
            wait: Duration::from_secs(10),
        }
    }
}

/// Why a login gets no turn.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum NoTurn {
    /// The server is down, and has been asked often enough in this second.
    Down,
    /// It has come back, and too many wait for it.
    Crowded,
}

/// The servers that were down lately.
#[derive(Default)]
pub(crate) struct Returns {
    servers: Mutex<HashMap<String, Returning>>,
    /// How many these are, for the logins while there are none: they take no lock and look at no clock.
    count: AtomicUsize,
    waited: AtomicU64,
    refused: AtomicU64,
}

#[derive(Debug)]
struct Returning {
    failures: u32,
    failed: Instant,
    /// When it took a connection again.
    back: Option<Instant>,
    /// When the next login may go.
    next: Instant,
}

impl Returning {
    fn is_down(&self) -> bool {
        self.back.is_none() && self.failures >= FAILURES
    }

    fn is_over(&self, pace: ReturnPace, now: Instant) -> bool {
        match self.back {
            Some(back) => now >= back + pace.lasts,
            None => now >= self.failed + FORGOTTEN,
        }
    }
}

impl Returns {
    /// Waits for the turn of a login at a server.
    ///
    /// # Errors
    /// There is none in time.
    pub(crate) async fn turn(&self, server: &str, pace: ReturnPace) -> Result<(), NoTurn> {
        let Some(at) = self.next(server, pace)? else {
            return Ok(());
        };
        self.waited.fetch_add(1, Ordering::Relaxed);
        sleep_until(at).await;
        Ok(())
    }

    /// When it may go; `None`: now.
    fn next(&self, server: &str, pace: ReturnPace) -> Result<Option<Instant>, NoTurn> {
        if self.are_well() || pace.rate == 0 {
            return Ok(None);
        }
        let mut servers = self.servers.lock();
        let now = Instant::now();
        let Some(one) = servers.get_mut(server) else {
            return Ok(None);
        };
        if one.is_over(pace, now) {
            servers.remove(server);
            self.count.store(servers.len(), Ordering::Release);
            return Ok(None);
        }
        if one.back.is_none() && !one.is_down() {
            return Ok(None);
        }
        let wait = if one.is_down() { Duration::ZERO } else { pace.wait };
        let at = one.next.max(now);
        if at > now + wait {
            self.refused.fetch_add(1, Ordering::Relaxed);
            return Err(if one.is_down() { NoTurn::Down } else { NoTurn::Crowded });
        }
        one.next = at + Duration::from_secs(1) / pace.rate;
        Ok((at > now).then_some(at))
    }

    /// Notes whether it took a connection.
    pub(crate) fn connected(&self, server: &str, taken: bool) {
        // Most servers are well, and stand in no table.
        if taken && self.are_well() {
            return;
        }
        let mut servers = self.servers.lock();
        match taken {
            true => took(&mut servers, server),
            false => failed(&mut servers, server),
        }
        self.count.store(servers.len(), Ordering::Release);
    }

    fn are_well(&self) -> bool {
        self.count.load(Ordering::Acquire) == 0
    }

    /// Servers that are let come back at a pace now, and whether they are still down.
    pub(crate) fn now(&self, pace: ReturnPace) -> Vec<(String, bool)> {
        let (servers, now) = (self.servers.lock(), Instant::now());
        let paced = servers
            .iter()
            .filter(|(_, one)| !one.is_over(pace, now) && (one.back.is_some() || one.is_down()));
        paced.map(|(name, one)| (name.clone(), one.is_down())).collect()
    }

    /// Logins that have waited for their turn, and that got none.
    pub(crate) fn counts(&self) -> (u64, u64) {
        (
            self.waited.load(Ordering::Relaxed),
            self.refused.load(Ordering::Relaxed),
        )
    }
}

/// Notes that a server has taken a connection.
fn took(servers: &mut HashMap<String, Returning>, server: &str) {
    let is_down = servers.get(server).is_some_and(Returning::is_down);
    match servers.get_mut(server) {
        Some(one) if is_down => one.back = Some(Instant::now()),
        Some(one) if one.back.is_some() => one.failures = 0,
        _ => drop(servers.remove(server)),
    }
}

/// Notes that it has not.
fn failed(servers: &mut HashMap<String, Returning>, server: &str) {
    if servers.len() >= MOST && !servers.contains_key(server) {
        return;
    }
    let now = Instant::now();
    let one = servers.entry(server.to_owned()).or_insert(Returning {
        failures: 0,
        failed: now,
        back: None,
        next: now,
    });
    one.failures = one.failures.saturating_add(1);
    one.failed = now;
    if one.failures >= FAILURES {
        one.back = None;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PACE: ReturnPace = ReturnPace {
        rate: 10,
        lasts: Duration::from_secs(60),
        wait: Duration::from_secs(2),
    };

    async fn turns(returns: &Returns, count: usize) -> (usize, Duration) {
        let begun = Instant::now();
        let all = (0..count).map(|_| returns.turn("s1", PACE));
        let ended = futures_util::future::join_all(all).await;
        (ended.iter().filter(|one| one.is_ok()).count(), begun.elapsed())
    }

    #[tokio::test(start_paused = true)]
    async fn a_server_that_comes_back_gets_its_clients_at_a_pace() {
        let returns = Returns::default();
        assert_eq!(turns(&returns, 100).await, (100, Duration::ZERO));
        for _ in 0..FAILURES {
            returns.connected("s1", false);
        }
        returns.connected("s2", false);
        // While it is down one may look, and the others hear at once that it is.
        assert_eq!(turns(&returns, 100).await, (1, Duration::ZERO));
        assert_eq!(returns.next("s1", PACE), Err(NoTurn::Down));
        assert!(returns.turn("s2", PACE).await.is_ok(), "one failure is none");
        returns.connected("s1", true);
        tokio::time::advance(Duration::from_secs(1)).await;
        let (taken, took) = turns(&returns, 100).await;
        assert_eq!((taken, took.as_secs()), (21, 2));
        assert_eq!(returns.now(PACE), [("s1".to_owned(), false)]);
        tokio::time::advance(PACE.lasts).await;
        assert_eq!(turns(&returns, 100).await, (100, Duration::ZERO));
        assert!(returns.now(PACE).is_empty());
    }

    #[tokio::test(start_paused = true)]
    async fn one_that_falls_over_again_is_down_again() {
        let returns = Returns::default();
        for _ in 0..FAILURES {
            returns.connected("s1", false);
        }
        returns.connected("s1", true);
        for _ in 0..FAILURES {
            returns.connected("s1", false);
        }
        assert_eq!(returns.now(PACE), [("s1".to_owned(), true)]);
        let off = ReturnPace { rate: 0, ..PACE };
        for _ in 0..100 {
            assert!(returns.turn("s1", off).await.is_ok());
        }
    }
}
