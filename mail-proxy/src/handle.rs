//! What the process around a connection sees of it while it lives, and its way to end it.
//!
//! Counters are atomics that the connection's own task writes; no task waits for another. It knows no list of
//! connections: that is the process's.

use std::sync::atomic::{AtomicU8, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::{Notify, watch};
use tokio::time::Instant;

/// Accounts that are remembered of one connection. A mail session has one; a web connection can be shared by a few.
const MAX_LOGINS: usize = 8;

/// The number of [`CloseReason::Kick`].
const KICK: u8 = 1;
/// The number of [`CloseReason::Evict`].
const EVICT: u8 = 3;
/// The number of [`CloseReason::Moved`].
const MOVED: u8 = 4;

/// Bytes of many connections, added up while they live.
#[derive(Debug, Default)]
pub struct Totals {
    bytes_in: AtomicU64,
    bytes_out: AtomicU64,
}

impl Totals {
    /// From clients and to clients.
    pub fn bytes(&self) -> (u64, u64) {
        (
            self.bytes_in.load(Ordering::Relaxed),
            self.bytes_out.load(Ordering::Relaxed),
        )
    }
}

/// One connection while it lives.
#[derive(Debug)]
pub struct ConnectionHandle {
    totals: Arc<Totals>,
    born: Instant,
    /// Milliseconds after `born` at which the last byte moved.
    moved: AtomicU64,
    bytes_in: AtomicU64,
    bytes_out: AtomicU64,
    /// Bytes to the client that no relay counts.
    added_out: AtomicU64,
    logins: Mutex<Vec<LoggedIn>>,
    /// Names under which logins are under way.
    under_way: Mutex<Vec<LoginName>>,
    begun: AtomicU64,
    order: AtomicU8,
    ordered: Notify,
    /// Held until login.
    waiting: Mutex<LoginWait>,
}

/// One name of a login under way.
#[derive(Debug)]
struct LoginName {
    /// The number of its login.
    login: u64,
    name: String,
    /// A mailbox server is asked, or will be next.
    asks: bool,
}

/// A place among the connections that are not logged in, given up when it is dropped.
pub trait LoginSlot: Send {
    /// The client has just said something, or been answered.
    fn heard(&self);
    /// The client waits for us from now on, until it is [heard](LoginSlot::heard) the next time.
    fn under_way(&self);
}

#[derive(Default)]
struct LoginWait {
    place: Option<Box<dyn LoginSlot>>,
    /// Logins and requests that are under way, without those whose clients are waited for. They are ended in any order.
    under_way: isize,
}

impl LoginWait {
    fn heard(&self) {
        if self.under_way <= 0 {
            self.place.iter().for_each(|place| place.heard());
        }
    }
}

impl std::fmt::Debug for LoginWait {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "LoginWait({})", self.under_way)
    }
}

/// Who is logged in on a connection.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LoggedIn {
    /// Login name as typed; empty where it was a token.
    pub user: String,
    /// Canonical name of the account.
    pub account: String,
    /// `host:port` of the mailbox server.
    pub route: String,
    /// Name of its entry, as the directory had it; empty where it was not the directory that named it.
    pub server: String,
}

/// Why a connection is to end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CloseReason {
    /// An administrator wants it gone.
    Kick,
    /// The node is being emptied.
    Drain,
    /// Another connection needs its place.
    Evict,
    /// Its account is on another server now.
    Moved,
}

/// How far a node's shutdown has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Drain {
    /// It has not begun.
    Running,
    /// Connections that are not logged in end.
    EndLogins,
    /// Logged-in sessions end too, each at a moment of its own within this time, so that their clients do not
    /// come back all at once.
    SpreadSessions(Duration),
    /// All end.
    EndSessions,
}

impl ConnectionHandle {
    /// A connection that was accepted now.
    pub fn new() -> Self {
        Self::accepted(Instant::now(), Arc::default())
    }

    /// A connection that was accepted then, and whose bytes are added up there.
    pub fn accepted(born: Instant, totals: Arc<Totals>) -> Self {
        Self {
            totals,
            born,
            moved: AtomicU64::new(0),
            bytes_in: AtomicU64::new(0),
            bytes_out: AtomicU64::new(0),
            added_out: AtomicU64::new(0),
            logins: Mutex::default(),
            under_way: Mutex::default(),
            begun: AtomicU64::new(0),
            order: AtomicU8::new(0),
            ordered: Notify::new(),
            waiting: Mutex::default(),
        }
    }

    /// Has it end soon. The first reason counts, but for a kick: what has moved may end in its own time, and who is
    /// kicked may not.
    pub fn end(&self, order: CloseReason) {
        let code = match order {
            CloseReason::Kick => KICK,
            CloseReason::Drain => 2,
            CloseReason::Evict => EVICT,
            CloseReason::Moved => MOVED,
        };
        let _ = self
            .order
            .compare_exchange(0, code, Ordering::AcqRel, Ordering::Acquire);
        if code == KICK {
            let _ = self
                .order
                .compare_exchange(MOVED, KICK, Ordering::AcqRel, Ordering::Acquire);
        }
        self.ordered.notify_waiters();
    }

    /// Why it is to end, if it is.
    pub fn close_reason(&self) -> Option<CloseReason> {
        match self.order.load(Ordering::Acquire) {
            0 => None,
            KICK => Some(CloseReason::Kick),
            EVICT => Some(CloseReason::Evict),
            MOVED => Some(CloseReason::Moved),
            _ => Some(CloseReason::Drain),
        }
    }

    /// Resolves when it is to end.
    pub async fn ended(&self) -> CloseReason {
        loop {
            // Made before the look, so that an order between the two is heard.
            let ordered = self.ordered.notified();
            if let Some(order) = self.close_reason() {
                return order;
            }
            ordered.await;
        }
    }

    /// Resolves when an administrator ends it.
    pub async fn kicked(&self) {
        loop {
            let ordered = self.ordered.notified();
            if self.close_reason() == Some(CloseReason::Kick) {
                return;
            }
            ordered.await;
        }
    }

    /// Resolves when it is to end because its account is on another server now.
    pub async fn moved(&self) {
        if self.ended().await != CloseReason::Moved {
            std::future::pending::<()>().await;
        }
    }

    /// Keeps its place until a user logs in, or the connection ends.
    pub fn hold_until_login(&self, held: Box<dyn LoginSlot>) {
        self.waiting().place = Some(held);
    }

    /// Gives it up before that: it is counted no more.
    pub(crate) fn give_up_place(&self) {
        let place = self.waiting().place.take();
        drop(place);
    }

    fn waiting(&self) -> MutexGuard<'_, LoginWait> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Notes that the client has said something.
    pub fn heard(&self) {
        self.waiting().heard();
    }

    /// Notes that the client waits for us, not we for it, until the value is dropped.
    pub fn waits_for_us(self: &Arc<Self>) -> WaitsForUs {
        let mut waiting = self.waiting();
        waiting.under_way += 1;
        waiting.place.iter().for_each(|place| place.under_way());
        WaitsForUs(self.clone())
    }

    /// Notes that we wait for the client again, in the middle of its request, until the value is dropped. It is
    /// [heard](Self::heard) with each part of that.
    pub fn awaits_client(self: &Arc<Self>) -> AwaitsClient {
        let mut waiting = self.waiting();
        waiting.under_way -= 1;
        waiting.heard();
        AwaitsClient(self.clone())
    }

    /// Notes who is logged in, and where; once for each account. From then on its place is not taken from it.
    pub fn log_in(&self, login: impl FnOnce() -> LoggedIn, account: &str, server: &str) {
        let _ = self
            .order
            .compare_exchange(EVICT, 0, Ordering::AcqRel, Ordering::Acquire);
        self.give_up_place();
        let mut logins = self.logins.lock().unwrap_or_else(PoisonError::into_inner);
        match logins.iter().position(|known| known.account == account) {
            Some(at) if logins[at].server == server => {}
            // A connection of the web has followed its account.
            Some(at) => logins[at] = login(),
            None if logins.len() < MAX_LOGINS => {
                // Most connections have one for all their life.
                logins.reserve_exact(1);
                logins.push(login());
            }
            None => {}
        }
    }

    /// Who is logged in.
    pub fn logins(&self) -> Vec<LoggedIn> {
        self.logins.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Whether a user is logged in.
    pub fn is_logged_in(&self) -> bool {
        !self.logins.lock().unwrap_or_else(PoisonError::into_inner).is_empty()
    }

    /// Whether this is true of one who is logged in.
    pub fn has_login(&self, is: impl FnMut(&LoggedIn) -> bool) -> bool {
        self.logins
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .iter()
            .any(is)
    }

    /// Notes that a login with this name has begun, until the value is dropped.
    pub(crate) fn begin_login(self: &Arc<Self>, user: &str) -> UnderWay {
        let under_way = UnderWay {
            live: self.clone(),
            number: self.begun.fetch_add(1, Ordering::Relaxed),
        };
        under_way.is_of(user);
        under_way
    }

    /// Whether a login is under way of which this is true: asked of the name as typed, and of the account's.
    pub fn is_logging_in(&self, is: impl Fn(&str) -> bool) -> bool {
        let under_way = self.under_way.lock().unwrap_or_else(PoisonError::into_inner);
        under_way.iter().any(|login| is(&login.name))
    }

    /// The same for those about which a mailbox server is asked: no hold keeps them from getting in any more.
    pub fn is_asking(&self, is: impl Fn(&str) -> bool) -> bool {
        let under_way = self.under_way.lock().unwrap_or_else(PoisonError::into_inner);
        under_way.iter().any(|login| login.asks && is(&login.name))
    }

    /// Whether the client waits for an answer.
    pub fn is_waited_for(&self) -> bool {
        self.waiting().under_way > 0
    }

    /// Notes how far the bytes of a relay have come by now.
    pub fn count(&self, bytes_in: u64, bytes_out: u64, now: Instant) {
        // Only the connection's own task writes.
        let before_in = self.bytes_in.swap(bytes_in, Ordering::Relaxed);
        let before_out = self.bytes_out.swap(bytes_out, Ordering::Relaxed);
        let more = (bytes_in.saturating_sub(before_in), bytes_out.saturating_sub(before_out));
        self.totals.bytes_in.fetch_add(more.0, Ordering::Relaxed);
        self.totals.bytes_out.fetch_add(more.1, Ordering::Relaxed);
        self.touch(now);
    }

    /// Notes bytes that went to the client besides.
    pub fn add_out(&self, bytes: u64) {
        self.added_out.fetch_add(bytes, Ordering::Relaxed);
        self.touch(Instant::now());
    }

    fn touch(&self, now: Instant) {
        let age = now.saturating_duration_since(self.born);
        let age = u64::try_from(age.as_millis()).unwrap_or(u64::MAX);
        self.moved.store(age, Ordering::Relaxed);
    }

    /// Bytes from and to the client so far.
    pub fn bytes(&self) -> (u64, u64) {
        let relayed = self.bytes_out.load(Ordering::Relaxed);
        let added = self.added_out.load(Ordering::Relaxed);
        (self.bytes_in.load(Ordering::Relaxed), relayed + added)
    }

    /// How old it is.
    pub fn age(&self) -> Duration {
        self.born.elapsed()
    }

    /// How long no byte has moved.
    pub fn idle(&self) -> Duration {
        let moved = Duration::from_millis(self.moved.load(Ordering::Relaxed));
        self.born.elapsed().saturating_sub(moved)
    }
}

/// A client that waits for us.
#[derive(Debug)]
pub struct WaitsForUs(Arc<ConnectionHandle>);

impl Drop for WaitsForUs {
    fn drop(&mut self) {
        let mut waiting = self.0.waiting();
        waiting.under_way -= 1;
        waiting.heard();
    }
}

/// A client that is in the middle of its request.
#[derive(Debug)]
pub struct AwaitsClient(Arc<ConnectionHandle>);

impl Drop for AwaitsClient {
    fn drop(&mut self) {
        let mut waiting = self.0.waiting();
        waiting.under_way += 1;
        if waiting.under_way > 0 {
            waiting.place.iter().for_each(|place| place.under_way());
        }
    }
}

/// A login under way.
#[derive(Debug)]
pub(crate) struct UnderWay {
    live: Arc<ConnectionHandle>,
    number: u64,
}

impl UnderWay {
    /// Notes one more name of the account that it is for.
    pub(crate) fn is_of(&self, name: &str) {
        let mut names = self.live.under_way.lock().unwrap_or_else(PoisonError::into_inner);
        let asks = names.iter().any(|login| login.login == self.number && login.asks);
        names.push(LoginName {
            login: self.number,
            name: name.to_owned(),
            asks,
        });
    }

    /// Notes whether a mailbox server is asked from now on.
    pub(crate) fn asks(&self, asks: bool) {
        let mut names = self.live.under_way.lock().unwrap_or_else(PoisonError::into_inner);
        let own = names.iter_mut().filter(|login| login.login == self.number);
        own.for_each(|login| login.asks = asks);
    }
}

impl Drop for UnderWay {
    fn drop(&mut self) {
        let mut names = self.live.under_way.lock().unwrap_or_else(PoisonError::into_inner);
        names.retain(|login| login.login != self.number);
        if names.is_empty() {
            // A session keeps no room for logins.
            *names = Vec::new();
        }
    }
}

/// Resolves when the node ends connections that are not logged in, or an administrator ends this one.
pub(crate) async fn logins_end(drain: &mut watch::Receiver<Drain>, live: &ConnectionHandle) -> CloseReason {
    tokio::select! {
        // The sender lives as long as the process; if it is gone, so are we.
        _ = drain.wait_for(|drain| *drain >= Drain::EndLogins) => CloseReason::Drain,
        order = live.ended() => order,
    }
}

impl Default for ConnectionHandle {
    fn default() -> Self {
        Self::new()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_reason_is_heard_before_and_after_it_is_waited_for() {
        let live = Arc::new(ConnectionHandle::new());
        let wait = || {
            let live = live.clone();
            tokio::spawn(async move { live.ended().await })
        };
        let waits = [wait(), wait()];
        tokio::task::yield_now().await;
        live.end(CloseReason::Kick);
        live.end(CloseReason::Drain);
        for wait in waits {
            assert_eq!(wait.await.unwrap(), CloseReason::Kick);
        }
        live.kicked().await;
        assert_eq!(live.ended().await, CloseReason::Kick);
    }

    #[tokio::test]
    async fn a_kick_does_not_wait_for_a_move() {
        let live = ConnectionHandle::new();
        live.end(CloseReason::Moved);
        live.end(CloseReason::Drain);
        live.moved().await;
        live.end(CloseReason::Kick);
        live.kicked().await;
        live.end(CloseReason::Moved);
        assert_eq!(live.close_reason(), Some(CloseReason::Kick));
    }

    #[test]
    fn a_connection_follows_its_account_to_another_server() {
        let live = ConnectionHandle::new();
        for server in ["s1", "s1", "s2"] {
            let login = || LoggedIn {
                user: String::new(),
                account: "a@x".to_owned(),
                route: format!("{server}:1"),
                server: server.to_owned(),
            };
            live.log_in(login, "a@x", server);
        }
        let logins = live.logins();
        assert_eq!((logins.len(), logins[0].route.as_str()), (1, "s2:1"));
    }

    #[test]
    fn bytes_of_a_relay_and_others_are_added_up() {
        let totals = Arc::new(Totals::default());
        let live = ConnectionHandle::accepted(Instant::now(), totals.clone());
        live.add_out(1000);
        live.count(5, 7, Instant::now());
        live.add_out(100);
        live.count(6, 9, Instant::now());
        assert_eq!(live.bytes(), (6, 1109));
        assert_eq!(totals.bytes(), (6, 9));
    }

    #[test]
    fn accounts_are_noted_once_and_not_without_end() {
        let live = ConnectionHandle::new();
        for i in 0..20 {
            for _ in 0..2 {
                let account = format!("u{i}@a.test");
                let login = || LoggedIn {
                    user: String::new(),
                    account: account.clone(),
                    route: String::new(),
                    server: String::new(),
                };
                live.log_in(login, &account, "");
            }
        }
        assert_eq!(live.logins().len(), MAX_LOGINS);
    }
}
