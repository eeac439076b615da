//! A connection to a server while it lives: how long it may be kept, and which client owns it.
//!
//! What is known of a connection is checked before it gets another request. Connections that carry a login are for their
//! owner alone ([`Owner`]).

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, OnceLock, Weak};
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use pingora::{ErrorType, OrErr, Result};
use socket2::{SockRef, Socket};
use tokio::net::TcpStream;

/// A request that must not be repeated goes only on a connection that was used this recently: servers count their own
/// limits in whole seconds, so this one is not about to be closed.
const FRESH: Duration = Duration::from_millis(500);
/// We stop using a connection this much earlier than the server says that it closes it, or at half of that time.
const MARGIN: Duration = Duration::from_secs(1);
/// A time that is never reached, in milliseconds.
const NEVER: u64 = u64::MAX;

/// What is known of a connection.
#[derive(Debug)]
pub(crate) struct ServerConnection {
    born: Instant,
    /// When it was used last, in milliseconds from its birth.
    used: AtomicU64,
    /// How long the server keeps it, in milliseconds, as it says itself.
    server_keeps: AtomicU64,
    /// It must not be used again.
    spent: AtomicBool,
    /// The socket of a connection that is closed with its owner's.
    socket: Option<Socket>,
    is_http2: bool,
}

/// What a request demands of a kept connection.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Demand {
    /// How long it may have been without use.
    pub keepalive: Duration,
    /// Whether the request can be sent again if the server closes just then.
    pub repeatable: Repeatable,
}

/// Whether a request may be sent a second time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Repeatable {
    /// Yes: sending it twice has the same effect.
    Yes,
    /// No: it gets no connection that may be closed just then.
    No,
    /// No, but its connection is not given up for that: the client is logged in by it.
    Bound,
}

impl ServerConnection {
    /// A new one. `socket` is a second handle on it, to close it with its owner's.
    pub(crate) fn new(socket: Option<Socket>, is_http2: bool) -> Self {
        Self {
            born: Instant::now(),
            used: AtomicU64::new(0),
            server_keeps: AtomicU64::new(NEVER),
            spent: AtomicBool::new(false),
            socket,
            is_http2,
        }
    }

    /// Whether the server speaks HTTP/2 on it.
    pub(crate) fn is_http2(&self) -> bool {
        self.is_http2
    }

    /// Bytes of an answer came.
    pub(crate) fn touch(&self) {
        self.used.store(millis(self.born.elapsed()), Ordering::Relaxed);
    }

    /// The server says how long it keeps it: `Keep-Alive: timeout=5`.
    pub(crate) fn heed(&self, keep_alive: &str) {
        let seconds = keep_alive.split(',').find_map(|parameter| {
            let (name, value) = parameter.split_once('=')?;
            let value = value.trim().trim_matches('"');
            name.trim()
                .eq_ignore_ascii_case("timeout")
                .then(|| value.parse().ok())?
        });
        if let Some(seconds) = seconds {
            self.server_keeps
                .store(millis(Duration::from_secs(seconds)), Ordering::Relaxed);
        }
    }

    /// It must not be used again.
    pub(crate) fn spend(&self) {
        self.spent.store(true, Ordering::Relaxed);
    }

    /// Whether it must not be used again.
    pub(crate) fn is_spent(&self) -> bool {
        self.spent.load(Ordering::Relaxed)
    }

    /// Whether a request with this demand may go on it, after it was kept.
    pub(crate) fn suits(&self, demand: Demand) -> bool {
        let idle = millis(self.born.elapsed()).saturating_sub(self.used.load(Ordering::Relaxed));
        self.suits_after(Duration::from_millis(idle), demand)
    }

    fn suits_after(&self, idle: Duration, demand: Demand) -> bool {
        let server = Duration::from_millis(self.server_keeps.load(Ordering::Relaxed));
        let server = server.saturating_sub(MARGIN.min(server / 2));
        let fresh = demand.repeatable != Repeatable::No || idle < FRESH;
        !self.is_spent() && idle < demand.keepalive.min(server) && fresh
    }

    fn close(&self) {
        if let Some(socket) = &self.socket {
            let _it_may_be_closed_already = socket.shutdown(std::net::Shutdown::Both);
        }
    }
}

fn millis(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(NEVER)
}

/// A client's connection as the owner of server connections. Servers with NTLM or Negotiate log in a connection, not a
/// request: every later request on it counts as that user's (RFC 4559 §6). So from the first sign of it the client's
/// requests go on server connections that no other client ever gets, and that end with the client's (RFC 9110 §3.3).
#[derive(Debug, Default)]
pub(crate) struct Owner {
    /// Set once it owns any; keeps them apart from all others in the pool.
    key: OnceLock<u64>,
    connections: Mutex<Vec<Weak<ServerConnection>>>,
    /// The server of each group that knows this client: a login of three messages goes to one server.
    servers: Mutex<HashMap<String, SocketAddr>>,
}

impl Owner {
    /// From now on it has server connections of its own.
    pub(crate) fn bind(&self) {
        static KEYS: AtomicU64 = AtomicU64::new(0);
        self.key.get_or_init(|| KEYS.fetch_add(1, Ordering::Relaxed));
    }

    /// The key of its connections in the pool, if it has any of its own.
    pub(crate) fn key(&self) -> Option<u64> {
        self.key.get().copied()
    }

    /// The server of this group that it has talked to.
    pub(crate) fn server(&self, group: &str) -> Option<SocketAddr> {
        self.servers.lock().get(group).copied()
    }

    /// Goes on with this server of the group.
    pub(crate) fn settle(&self, group: &str, server: SocketAddr) {
        self.servers.lock().insert(group.to_owned(), server);
    }

    /// A second handle on a connection that it will own.
    ///
    /// # Errors
    /// There are no more descriptors.
    pub(crate) fn handle(tcp: &TcpStream) -> Result<Socket> {
        SockRef::from(tcp)
            .try_clone()
            .or_err(ErrorType::InternalError, "a second handle on a connection")
    }

    /// Owns this connection from now on.
    pub(crate) fn remember(&self, connection: &Arc<ServerConnection>) {
        let mut connections = self.connections.lock();
        connections.retain(|known| known.strong_count() > 0);
        connections.push(Arc::downgrade(connection));
    }
}

impl Drop for Owner {
    fn drop(&mut self) {
        let connections = self.connections.get_mut().iter();
        connections.filter_map(Weak::upgrade).for_each(|open| open.close());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(said: &str, idle_ms: u64, repeatable: Repeatable, suits: bool) {
        let connection = ServerConnection::new(None, false);
        connection.heed(said);
        let demand = Demand {
            keepalive: Duration::from_secs(50),
            repeatable,
        };
        let got = connection.suits_after(Duration::from_millis(idle_ms), demand);
        assert_eq!(got, suits, "{said:?} {idle_ms} {repeatable:?}");
    }

    #[test]
    fn servers_say_how_long_they_keep_connections() {
        check("", 49_999, Repeatable::Yes, true);
        check("", 50_000, Repeatable::Yes, false);
        check("timeout=5", 3_999, Repeatable::Yes, true);
        check("timeout=5", 4_000, Repeatable::Yes, false);
        check("max=100, Timeout = \"5\"", 4_000, Repeatable::Yes, false);
        check("timeout=1", 499, Repeatable::Yes, true);
        check("timeout=1", 500, Repeatable::Yes, false);
        check("timeout=0", 0, Repeatable::Yes, false);
        check("timeout=600", 50_000, Repeatable::Yes, false);
        check("timeout=soon", 49_999, Repeatable::Yes, true);
        check("timeout=18446744073709551615", 49_999, Repeatable::Yes, true);
    }

    #[test]
    fn what_must_not_be_repeated_waits_for_no_old_connection() {
        check("", 499, Repeatable::No, true);
        check("", 500, Repeatable::No, false);
        check("", 49_999, Repeatable::Bound, true);
    }

    #[test]
    fn one_that_is_spent_is_for_nobody() {
        let connection = ServerConnection::new(None, false);
        connection.spend();
        let demand = Demand {
            keepalive: Duration::MAX,
            repeatable: Repeatable::Yes,
        };
        assert!(!connection.suits_after(Duration::ZERO, demand));
    }
}
