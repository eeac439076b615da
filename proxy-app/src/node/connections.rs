//! Every connection of this node while it lives: mail sessions and web connections, to be listed and ended.
//!
//! A connection is counted from its acceptance ([`OpenConnections`]) and listed once its protocol is known
//! ([`Sessions`]), which may be a handshake later. Both end by themselves; in between its own task writes its counters
//! ([`mail_proxy::ConnectionHandle`]), and nobody else is waited for.

use std::collections::{HashMap, HashSet};
use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::Duration;

use jiff::Timestamp;
use mail_directory::names;
use mail_proxy::{CloseReason, ConnectionFacts, LoggedIn, Proto};
use parking_lot::Mutex;

/// Locks that share the connections among them: accepting does not wait for listing.
const SHARDS: usize = 16;

/// One connection.
pub(crate) struct Session {
    /// What is known of it; TLS, if the client spoke it from the first byte.
    pub facts: Arc<ConnectionFacts>,
    /// When it was accepted.
    pub since: Timestamp,
}

/// Which connections. Absent fields match all.
#[derive(Debug, Clone, Default)]
pub(crate) struct ConnectionFilter {
    /// Those of this user: the login as typed, or the account's name, in any case.
    pub user: Option<String>,
    /// Beside `user`: those of the account that it is a name of, too.
    pub account: Option<String>,
    /// Those of this client address.
    pub ip: Option<IpAddr>,
    /// The one with this id.
    pub id: Option<String>,
    /// Those with this in their id, protocol, client address, user, account or server, in any case.
    pub text: Option<String>,
}

/// All connections.
#[derive(Default)]
pub(crate) struct Sessions {
    shards: [Mutex<HashMap<u64, Arc<Session>>>; SHARDS],
    next: AtomicU64,
}

impl Sessions {
    /// Lists a connection until the guard is dropped.
    pub(crate) fn enter(self: &Arc<Self>, session: Session) -> ConnectionGuard {
        let key = self.next.fetch_add(1, Ordering::Relaxed);
        self.shard(key).lock().insert(key, Arc::new(session));
        ConnectionGuard {
            sessions: self.clone(),
            key,
        }
    }

    /// The connections that match, oldest first.
    pub(crate) fn list(&self, filter: &ConnectionFilter) -> Vec<Arc<Session>> {
        let mut found = Vec::new();
        for shard in &self.shards {
            let shard = shard.lock();
            found.extend(shard.iter().map(|(key, session)| (*key, session.clone())));
        }
        let filter = filter.folded();
        found.retain(|(_, session)| filter.matches(session));
        found.sort_by_key(|(key, _)| *key);
        found.into_iter().map(|(_, session)| session).collect()
    }

    /// How many there are, by protocol and whether a user is logged in.
    pub(crate) fn counts(&self) -> HashMap<(Proto, bool), u64> {
        let mut counts = HashMap::new();
        for shard in &self.shards {
            for session in shard.lock().values() {
                *counts
                    .entry((session.facts.proto, session.facts.handle.is_logged_in()))
                    .or_insert(0) += 1;
            }
        }
        counts
    }

    /// Ends those that match; returns them.
    pub(crate) fn kick(&self, filter: &ConnectionFilter) -> Vec<Arc<Session>> {
        let meant = self.list(filter);
        meant
            .iter()
            .for_each(|session| session.facts.handle.end(CloseReason::Kick));
        meant
    }

    /// Ends all that live now, one after the other over this time, so that their clients do not come back at once.
    /// Returns when all are asked to end, or `undone` resolves.
    pub(crate) async fn empty(&self, over: Duration, undone: impl Future<Output = ()>) {
        let all = self.list(&ConnectionFilter::default());
        // In at most one step each millisecond, which is as fine as timers are.
        let steps = usize::try_from(over.as_millis())
            .unwrap_or(usize::MAX)
            .clamp(1, all.len().max(1));
        let pause = over / u32::try_from(steps).unwrap_or(u32::MAX);
        let tell = async {
            for some in all.chunks(all.len().div_ceil(steps).max(1)) {
                tokio::time::sleep(pause).await;
                some.iter()
                    .for_each(|session| session.facts.handle.end(CloseReason::Drain));
            }
        };
        tokio::select! {
            () = tell => {}
            () = undone => {}
        }
    }

    /// Those on which an account is logged in, and those on which a server is asked whether it may.
    pub(crate) fn of_account(&self, account: &str) -> [Vec<Arc<Session>>; 2] {
        let account = names::account(account);
        let same = |name: &str| !name.is_empty() && names::account(name) == account;
        let mut found = [Vec::new(), Vec::new()];
        for shard in &self.shards {
            for session in shard.lock().values() {
                let handle = &session.facts.handle;
                if handle.has_login(|login| login.account == account) {
                    found[0].push(session.clone());
                } else if handle.is_asking(same) {
                    found[1].push(session.clone());
                }
            }
        }
        found
    }

    /// How many sessions each of these accounts has; one without any is left out.
    pub(crate) fn counts_of(&self, accounts: &HashSet<String>) -> HashMap<String, usize> {
        let mut counts = HashMap::new();
        for session in self.logged_in(Some(accounts)) {
            let logins = session.facts.handle.logins().into_iter();
            let of_session: HashSet<String> = logins.map(|login| login.account).collect();
            for account in of_session.into_iter().filter(|account| accounts.contains(account)) {
                *counts.entry(account).or_default() += 1;
            }
        }
        counts
    }

    /// Those on which one of these accounts is logged in, or someone at all.
    pub(crate) fn logged_in(&self, accounts: Option<&HashSet<String>>) -> Vec<Arc<Session>> {
        let meant = |session: &Session| match accounts {
            None => session.facts.handle.is_logged_in(),
            Some(accounts) => session
                .facts
                .handle
                .has_login(|login| accounts.contains(&login.account)),
        };
        let mut found = Vec::new();
        for shard in &self.shards {
            found.extend(shard.lock().values().filter(|session| meant(session)).cloned());
        }
        found
    }

    fn shard(&self, key: u64) -> &Mutex<HashMap<u64, Arc<Session>>> {
        &self.shards[key as usize % SHARDS]
    }
}

impl Session {
    /// A connection that was accepted just now.
    pub(crate) fn new(facts: Arc<ConnectionFacts>) -> Self {
        Self {
            facts,
            since: Timestamp::now(),
        }
    }
}

impl ConnectionFilter {
    /// The same in lower case, once for many sessions.
    fn folded(&self) -> Self {
        let lower = |text: &Option<String>| text.as_deref().map(str::to_lowercase);
        Self {
            user: self.user.as_deref().map(names::account),
            account: self.account.as_deref().map(names::account),
            text: lower(&self.text),
            ..self.clone()
        }
    }

    /// Whether this session matches; the filter must be [`ConnectionFilter::folded`].
    fn matches(&self, session: &Session) -> bool {
        self.id.as_ref().is_none_or(|id| *id == session.facts.id)
            && self
                .ip
                .is_none_or(|ip| ip.to_canonical() == session.facts.client.addr.ip())
            && self.user.as_ref().is_none_or(|user| {
                let mut names = std::iter::once(user).chain(&self.account);
                names.any(|name| is_of(session, name))
            })
            && self.text.as_ref().is_none_or(|text| is_in(session, text))
    }
}

/// Whether this text, in lower case, occurs in the listed fields of the session.
fn is_in(session: &Session, text: &str) -> bool {
    let holds = |shown: &str| shown.to_lowercase().contains(text);
    let of_login = |login: &LoggedIn| holds(&login.user) || holds(&login.account) || holds(&login.route);
    holds(&session.facts.id)
        || holds(session.facts.proto.name())
        || holds(&session.facts.client.addr.to_string())
        || session.facts.handle.logins().iter().any(of_login)
}

/// Whether this user, in the one form of names, is logged in there or about to be.
fn is_of(session: &Session, user: &str) -> bool {
    let same = |name: &str| !name.is_empty() && names::account(name) == user;
    let logins = session.facts.handle.logins();
    logins.iter().any(|login| same(&login.user) || same(&login.account)) || session.facts.handle.is_logging_in(same)
}

/// A connection's place in the list.
pub(crate) struct ConnectionGuard {
    sessions: Arc<Sessions>,
    key: u64,
}

impl Drop for ConnectionGuard {
    fn drop(&mut self) {
        self.sessions.shard(self.key).lock().remove(&self.key);
    }
}

/// How many connections are open, of all kinds, those in a handshake included.
#[derive(Clone, Default)]
pub(crate) struct OpenConnections(Arc<AtomicUsize>);

impl OpenConnections {
    /// Counts one connection until the value is dropped.
    pub(crate) fn enter(&self) -> OpenConnection {
        self.0.fetch_add(1, Ordering::Relaxed);
        OpenConnection(self.0.clone())
    }

    /// How many there are.
    pub(crate) fn count(&self) -> usize {
        self.0.load(Ordering::Relaxed)
    }
}

/// One open connection.
pub(crate) struct OpenConnection(Arc<AtomicUsize>);

impl Drop for OpenConnection {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

/// Ids for new connections.
pub(crate) struct ConnectionIds {
    /// Of this process.
    born: u32,
    given: AtomicU64,
}

impl Default for ConnectionIds {
    fn default() -> Self {
        Self {
            born: rand::random(),
            given: AtomicU64::new(0),
        }
    }
}

impl ConnectionIds {
    /// The next id: unique on this node, also across restarts.
    pub(crate) fn next(&self) -> String {
        format!("{:08x}-{:x}", self.born, self.given.fetch_add(1, Ordering::Relaxed))
    }

    /// How many connections there were since the start.
    pub(crate) fn count(&self) -> u64 {
        self.given.load(Ordering::Relaxed)
    }
}

#[cfg(test)]
mod tests {
    use std::net::SocketAddr;

    use mail_proxy::{Client, ConnectionHandle};
    use tokio::time::Instant;

    use super::*;

    fn enter(sessions: &Arc<Sessions>, id: &str, ip: &str, account: &str) -> (ConnectionGuard, Arc<ConnectionHandle>) {
        let live = Arc::new(ConnectionHandle::new());
        if !account.is_empty() {
            let login = || LoggedIn {
                user: "typed".to_owned(),
                account: account.to_owned(),
                route: String::new(),
                server: "s1".to_owned(),
            };
            live.log_in(login, account, "s1");
        }
        let client = Client {
            addr: SocketAddr::new(ip.parse().unwrap(), 1),
            via: None,
            local: "127.0.0.1:143".parse().unwrap(),
        };
        let facts = ConnectionFacts {
            id: id.to_owned(),
            listener: "l".into(),
            proto: Proto::Imap,
            client,
            tls: None,
            accepted: Instant::now(),
            handle: live.clone(),
        };
        (sessions.enter(Session::new(Arc::new(facts))), live)
    }

    fn ids(sessions: &Sessions, user: Option<&str>, ip: Option<&str>, id: Option<&str>) -> String {
        let filter = ConnectionFilter {
            user: user.map(str::to_owned),
            account: None,
            ip: ip.map(|ip| ip.parse().unwrap()),
            id: id.map(str::to_owned),
            text: None,
        };
        let found = sessions.list(&filter);
        found.iter().map(|session| session.facts.id.as_str()).collect()
    }

    #[tokio::test(start_paused = true)]
    async fn connections_are_listed_and_ended_by_what_is_named() {
        let sessions = Arc::new(Sessions::default());
        let (a, live_a) = enter(&sessions, "a", "192.0.2.1", "alice@a.test");
        let (_b, live_b) = enter(&sessions, "b", "192.0.2.1", "bob@a.test");
        let (_c, live_c) = enter(&sessions, "c", "192.0.2.2", "");
        assert_eq!(ids(&sessions, None, None, None), "abc");
        let alias = ConnectionFilter {
            user: Some("al@a.test".to_owned()),
            account: Some("Alice@a.test".to_owned()),
            ..ConnectionFilter::default()
        };
        assert_eq!(sessions.list(&alias).len(), 1);
        assert_eq!(ids(&sessions, Some("Alice@a.test"), None, None), "a");
        assert_eq!(ids(&sessions, Some("typed"), None, None), "ab");
        assert_eq!(ids(&sessions, None, Some("::ffff:192.0.2.1"), None), "ab");
        assert_eq!(ids(&sessions, Some("bob@a.test"), Some("192.0.2.2"), None), "");
        assert_eq!(ids(&sessions, None, None, Some("c")), "c");
        for (text, expected) in [("BOB@", "b"), ("192.0.2.2:", "c"), ("imap", "abc"), ("nobody", "")] {
            let filter = ConnectionFilter {
                text: Some(text.to_owned()),
                ..ConnectionFilter::default()
            };
            let found = sessions.list(&filter);
            let found: String = found.iter().map(|session| session.facts.id.as_str()).collect();
            assert_eq!(found, expected, "{text}");
        }
        assert_eq!(sessions.counts()[&(Proto::Imap, true)], 2);
        let filter = ConnectionFilter {
            user: Some("bob@a.test".to_owned()),
            ..ConnectionFilter::default()
        };
        assert_eq!(sessions.kick(&filter).len(), 1);
        assert_eq!(live_b.close_reason(), Some(CloseReason::Kick));
        assert_eq!(live_a.close_reason(), None);
        drop(a);
        assert_eq!(ids(&sessions, None, None, None), "bc");
        let begun = Instant::now();
        sessions.empty(Duration::from_secs(10), std::future::pending()).await;
        assert_eq!(live_c.close_reason(), Some(CloseReason::Drain));
        assert!(begun.elapsed() >= Duration::from_secs(5), "{:?}", begun.elapsed());
    }

    #[tokio::test(start_paused = true)]
    async fn many_are_ended_in_the_time_given() {
        let sessions = Arc::new(Sessions::default());
        let all: Vec<_> = (0..5000)
            .map(|i| enter(&sessions, &i.to_string(), "192.0.2.1", ""))
            .collect();
        let begun = Instant::now();
        sessions.empty(Duration::from_secs(1), std::future::pending()).await;
        assert!(begun.elapsed() <= Duration::from_millis(1100), "{:?}", begun.elapsed());
        assert!(
            all.iter()
                .all(|(_, live)| live.close_reason() == Some(CloseReason::Drain))
        );
        sessions.empty(Duration::from_secs(1000), std::future::ready(())).await;
    }
}
