//! One server of a group as requests see it: how busy it is, what its share is, whether requests skip it.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, AtomicUsize, Ordering};
use std::time::Duration;

use parking_lot::Mutex;
use pingora_load_balancing::Backend;
use route_cache::Server;
use tokio::time::Instant;

/// How long a server that comes back gets less than its share, so that its caches can warm up.
const SLOW_START: Duration = Duration::from_secs(10);
/// The part of its share that it gets at first: without any request its caches would stay cold.
const SLOW_START_LEAST: f64 = 0.1;
/// The longest time for which requests skip a server.
const EJECTED_MAX: Duration = Duration::from_secs(300);
/// How far one request advances the turn of a server of weight 1.
const TURN: f64 = 1_000_000.0;

/// What active checks say of a server.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Health {
    /// It takes requests.
    Up,
    /// It answers that it is not ready.
    NotReady,
    /// It does not answer.
    Unreachable,
}

/// When requests skip a server that did not answer: after `zimbraMailProxyMaxFails` failures within
/// `zimbraMailProxyReconnectTimeout`, for that long, and longer each time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct FailureLimits {
    /// Failures before it is skipped; 0: it never is.
    pub(super) max_fails: u64,
    /// For how long it is skipped at first.
    pub(super) patience: Duration,
}

/// What the administrator has set at run time.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Overrides {
    /// It gets no unauthenticated requests.
    pub(super) maintenance: bool,
    /// Another weight than the configured one.
    pub(super) weight: Option<u32>,
}

/// A member as the directory or a file describes it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct ServerDescription {
    pub(super) server: Server,
    pub(super) weight: u32,
    pub(super) limits: FailureLimits,
    /// Whether it must prove its identity.
    pub(super) verify: bool,
}

/// One server of a group. Its description changes; what is known of its health stays.
pub(super) struct GroupServer {
    pub(super) address: SocketAddr,
    /// The form in which Pingora knows it.
    pub(super) backend: Option<Backend>,
    description: Mutex<Arc<ServerDescription>>,
    weight: AtomicU32,
    maintenance: AtomicBool,
    busy: AtomicUsize,
    requests: AtomicU64,
    /// Its place in the order of turns.
    turn: AtomicU64,
    passive: Mutex<PassiveFailures>,
    /// Whether `passive` holds anything; successful requests need not look.
    has_failures: AtomicBool,
    checked: Mutex<Checked>,
}

/// What requests found out.
#[derive(Default)]
struct PassiveFailures {
    fails: u64,
    first: Option<Instant>,
    /// How often it was skipped without a successful request in between.
    streak: u32,
    until: Option<Instant>,
}

/// What checks found out.
struct Checked {
    health: Health,
    why: Option<String>,
    back: Option<Instant>,
}

/// What is known of a server, for the administrator.
#[derive(Debug, Clone)]
pub(crate) struct ServerState {
    /// Name of its entry, or its host in a file.
    pub server: String,
    /// Where it is reached.
    pub address: SocketAddr,
    /// Its share of the requests, as configured or as set at run time.
    pub weight: u32,
    /// What checks say.
    pub health: Health,
    /// What the last check that failed found.
    pub why: Option<String>,
    /// Whether it is taken out of service at run time.
    pub maintenance: bool,
    /// How long requests still skip it.
    pub ejected: Option<Duration>,
    /// Requests that it is answering now.
    pub busy: usize,
    /// Requests that it was chosen for since the process started.
    pub requests: u64,
}

/// A request that a server is answering. It ends when the value is dropped.
pub(crate) struct Busy(Arc<GroupServer>);

impl Busy {
    pub(super) fn server(&self) -> &GroupServer {
        &self.0
    }
}

impl Drop for Busy {
    fn drop(&mut self) {
        self.0.busy.fetch_sub(1, Ordering::Relaxed);
    }
}

impl std::fmt::Debug for Busy {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Busy({})", self.0.address)
    }
}

impl GroupServer {
    pub(super) fn new(address: SocketAddr, description: ServerDescription, overrides: Overrides) -> Self {
        let server = Self {
            address,
            backend: Backend::new(&address.to_string()).ok(),
            weight: AtomicU32::new(description.weight),
            description: Mutex::new(Arc::new(description)),
            maintenance: AtomicBool::new(false),
            busy: AtomicUsize::new(0),
            requests: AtomicU64::new(0),
            turn: AtomicU64::new(0),
            passive: Mutex::default(),
            has_failures: AtomicBool::new(false),
            checked: Mutex::new(Checked {
                health: Health::Up,
                why: None,
                back: None,
            }),
        };
        server.obey(overrides);
        server
    }

    /// Its description.
    pub(super) fn description(&self) -> Arc<ServerDescription> {
        self.description.lock().clone()
    }

    /// Sets a new description.
    pub(super) fn describe(&self, description: ServerDescription, overrides: Overrides) {
        if **self.description.lock() != description {
            *self.description.lock() = Arc::new(description);
        }
        self.obey(overrides);
    }

    pub(super) fn obey(&self, overrides: Overrides) {
        let weight = overrides.weight.unwrap_or(self.description.lock().weight);
        self.weight.store(weight, Ordering::Relaxed);
        if self.maintenance.swap(overrides.maintenance, Ordering::Relaxed) && !overrides.maintenance {
            self.checked.lock().back = Some(Instant::now());
        }
    }

    /// The share of requests that it may get now, compared with others; 0: none.
    pub(super) fn share(&self, now: impl FnOnce() -> Instant) -> f64 {
        if self.maintenance.load(Ordering::Relaxed) {
            return 0.0;
        }
        let since = self.checked.lock().back;
        let since = match self.has_failures.load(Ordering::Relaxed) {
            true => since.max(self.passive.lock().until),
            false => since,
        };
        let warm = since.map_or(1.0, |since| {
            let warm = now().saturating_duration_since(since).as_secs_f64() / SLOW_START.as_secs_f64();
            warm.clamp(SLOW_START_LEAST, 1.0)
        });
        f64::from(self.weight.load(Ordering::Relaxed)) * warm
    }

    /// How busy it is for its share.
    pub(super) fn load(&self, share: f64) -> f64 {
        self.busy.load(Ordering::Relaxed) as f64 / share
    }

    pub(super) fn turn(&self) -> u64 {
        self.turn.load(Ordering::Relaxed)
    }

    /// It gets a request; the smaller its share, the later its next turn.
    pub(super) fn take(self: &Arc<Self>, turn: u64, share: f64) -> Busy {
        self.turn.store(turn + (TURN / share) as u64, Ordering::Relaxed);
        self.requests.fetch_add(1, Ordering::Relaxed);
        self.enter()
    }

    pub(super) fn enter(self: &Arc<Self>) -> Busy {
        self.busy.fetch_add(1, Ordering::Relaxed);
        Busy(self.clone())
    }

    /// A request got no answer from it. Returns true if it is skipped from now on.
    pub(super) fn failed(&self, now: Instant) -> bool {
        let limits = self.description.lock().limits;
        let mut passive = self.passive.lock();
        let left_alone = passive.until.is_some_and(|until| until > now);
        if limits.max_fails == 0 || left_alone {
            return false;
        }
        if passive.first.is_none_or(|first| now - first > limits.patience) {
            passive.first = Some(now);
            passive.fails = 0;
        }
        passive.fails += 1;
        self.has_failures.store(true, Ordering::Relaxed);
        if passive.fails < limits.max_fails {
            return false;
        }
        let wait = limits.patience.saturating_mul(1 << passive.streak.min(16));
        let longest = EJECTED_MAX.max(limits.patience);
        *passive = PassiveFailures {
            streak: passive.streak.saturating_add(1),
            until: Some(now + wait.min(longest)),
            ..PassiveFailures::default()
        };
        true
    }

    /// It has answered a request.
    pub(super) fn answered(&self, now: impl FnOnce() -> Instant) {
        if !self.has_failures.load(Ordering::Relaxed) {
            return;
        }
        let now = now();
        let mut passive = self.passive.lock();
        if passive.until.is_some_and(|until| until > now) {
            // An answer to an earlier request, or to one of an account that lives there.
            return;
        }
        passive.fails = 0;
        passive.first = None;
        passive.streak = 0;
        let warm = passive.until.is_none_or(|until| now - until > SLOW_START);
        if warm {
            passive.until = None;
            self.has_failures.store(false, Ordering::Relaxed);
        }
    }

    pub(super) fn is_ejected(&self, now: impl FnOnce() -> Instant) -> bool {
        self.has_failures.load(Ordering::Relaxed) && self.passive.lock().until.is_some_and(|until| until > now())
    }

    pub(super) fn health(&self) -> Health {
        self.checked.lock().health
    }

    /// The result of a check. It counts at once, also before the group takes the server out or back.
    pub(super) fn check_found(&self, health: Health, why: Option<String>) {
        let mut checked = self.checked.lock();
        checked.health = health;
        checked.why = why;
    }

    /// The group takes it back.
    pub(super) fn is_back(&self) {
        *self.passive.lock() = PassiveFailures::default();
        self.has_failures.store(false, Ordering::Relaxed);
        self.checked.lock().back = Some(Instant::now());
    }

    pub(super) fn state(&self, ready: bool) -> ServerState {
        let now = Instant::now();
        let until = self.passive.lock().until;
        let checked = self.checked.lock();
        let health = match (ready, checked.health) {
            (true, _) => Health::Up,
            (false, Health::Up) => Health::NotReady,
            (false, health) => health,
        };
        ServerState {
            server: self.description.lock().server.name.to_string(),
            address: self.address,
            weight: self.weight.load(Ordering::Relaxed),
            health,
            why: checked.why.clone().filter(|_| !ready),
            maintenance: self.maintenance.load(Ordering::Relaxed),
            ejected: until
                .map(|until| until.saturating_duration_since(now))
                .filter(|left| !left.is_zero()),
            busy: self.busy.load(Ordering::Relaxed),
            requests: self.requests.load(Ordering::Relaxed),
        }
    }
}

#[cfg(test)]
mod tests {
    use route_cache::UpstreamTls;

    use super::*;

    fn server(max_fails: u64, weight: u32) -> GroupServer {
        let description = ServerDescription {
            server: Server {
                name: "store".into(),
                host: "127.0.0.1".into(),
                port: 1,
                tls: UpstreamTls::Clear,
            },
            weight,
            limits: FailureLimits {
                max_fails,
                patience: Duration::from_secs(10),
            },
            verify: false,
        };
        GroupServer::new(SocketAddr::from(([127, 0, 0, 1], 1)), description, Overrides::default())
    }

    #[tokio::test(start_paused = true)]
    async fn is_left_alone_longer_each_time() {
        let server = server(1, 1);
        for expected in [10, 20, 40, 80, 160, 300, 300] {
            assert!(server.failed(Instant::now()));
            assert!(
                !server.failed(Instant::now()),
                "failures of requests under way count once"
            );
            tokio::time::advance(Duration::from_secs(expected - 1)).await;
            assert!(server.is_ejected(Instant::now), "{expected}");
            tokio::time::advance(Duration::from_secs(1)).await;
            assert!(!server.is_ejected(Instant::now), "{expected}");
        }
        server.answered(Instant::now);
        assert!(server.failed(Instant::now()));
        tokio::time::advance(Duration::from_secs(10)).await;
        assert!(!server.is_ejected(Instant::now), "an answer makes it short again");
    }

    #[tokio::test(start_paused = true)]
    async fn some_failures_may_be_allowed() {
        let server = server(2, 1);
        assert!(!server.failed(Instant::now()));
        tokio::time::advance(Duration::from_secs(11)).await;
        assert!(!server.failed(Instant::now()), "the first is long ago");
        assert!(server.failed(Instant::now()));
        let never = self::server(0, 1);
        assert!((0..100).all(|_| !never.failed(Instant::now())));
    }

    #[tokio::test(start_paused = true)]
    async fn who_comes_back_gets_less_at_first() {
        let server = server(1, 8);
        assert_eq!(server.share(Instant::now), 8.0);
        server.is_back();
        assert_eq!(server.share(Instant::now), 0.8);
        tokio::time::advance(SLOW_START / 2).await;
        assert_eq!(server.share(Instant::now), 4.0);
        tokio::time::advance(SLOW_START).await;
        assert_eq!(server.share(Instant::now), 8.0);
        assert!(server.failed(Instant::now()));
        tokio::time::advance(Duration::from_secs(15)).await;
        assert_eq!(server.share(Instant::now), 4.0, "after it was left alone, too");
    }

    #[tokio::test(start_paused = true)]
    async fn the_operator_keeps_one_out_and_takes_it_back() {
        let server = server(1, 8);
        let mut overrides = Overrides {
            maintenance: true,
            weight: Some(2),
        };
        server.obey(overrides);
        assert_eq!(server.share(Instant::now), 0.0);
        overrides.maintenance = false;
        server.obey(overrides);
        assert_eq!(server.share(Instant::now), 0.2);
        tokio::time::advance(SLOW_START).await;
        assert_eq!(server.share(Instant::now), 2.0);
    }
}
