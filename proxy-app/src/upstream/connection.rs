//! A connection to a server while it lives: how long it may be kept, and which client owns it.
//!
//! The HTTP engine keeps connections in a pool of its own and uses one again without asking. What is known of a
//! connection is kept in its digest, and is checked before the next request is sent on it. Connections that carry a
//! login are in a pool of their owner's alone ([`Owner`]).

use std::collections::HashMap;
use std::net::{IpAddr, SocketAddr};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, OnceLock, Weak};
use std::time::{Duration, Instant};

use async_trait::async_trait;
use parking_lot::Mutex;
use pingora::connectors::L4Connect;
use pingora::connectors::l4::BindTo;
use pingora::http::ResponseHeader;
use pingora::protocols::l4::ext;
use pingora::protocols::l4::socket::SocketAddr as EngineAddr;
use pingora::protocols::l4::stream::Stream;
use pingora::protocols::raw_connect::ProxyDigest;
use pingora::protocols::{Digest, GetProxyDigest};
use pingora::server::configuration::ServerConf;
use pingora::{Error, ErrorType, OrErr, Result};
use socket2::{SockRef, Socket};
use tokio::net::TcpStream;

/// A request that must not be repeated goes only on a connection that was used this recently: servers count their own
/// limits in whole seconds, so this one is not about to be closed.
const FRESH: Duration = Duration::from_millis(500);
/// We stop using a connection this much earlier than the server says that it closes it, or at half of that time.
const MARGIN: Duration = Duration::from_secs(1);
/// A time that is never reached, in milliseconds.
const NEVER: u64 = u64::MAX;

/// Why a kept connection was not used. Nothing of the request has been sent on it.
pub(crate) const STALE: ErrorType = ErrorType::Custom("KeptTooLong");

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
    fn new(socket: Option<Socket>) -> Self {
        Self {
            born: Instant::now(),
            used: AtomicU64::new(0),
            server_keeps: AtomicU64::new(NEVER),
            spent: AtomicBool::new(false),
            socket,
        }
    }

    /// The one in this digest.
    pub(crate) fn of(digest: &Digest) -> Option<Arc<Self>> {
        let data = digest.proxy_digest.as_ref()?.user_data.as_ref()?;
        data.downcast_ref::<Arc<Self>>().cloned()
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

    /// Whether a request with this demand may go on it, after it was kept.
    pub(crate) fn suits(&self, demand: Demand) -> bool {
        let idle = millis(self.born.elapsed()).saturating_sub(self.used.load(Ordering::Relaxed));
        self.suits_after(Duration::from_millis(idle), demand)
    }

    fn suits_after(&self, idle: Duration, demand: Demand) -> bool {
        let server = Duration::from_millis(self.server_keeps.load(Ordering::Relaxed));
        let server = server.saturating_sub(MARGIN.min(server / 2));
        let fresh = demand.repeatable != Repeatable::No || idle < FRESH;
        !self.spent.load(Ordering::Relaxed) && idle < demand.keepalive.min(server) && fresh
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

/// The addresses that connections come from (`client_bind_to_ipv4`, `client_bind_to_ipv6`); none: any.
#[derive(Debug, Clone, Default)]
pub(crate) struct Sources(Arc<[IpAddr]>);

impl Sources {
    /// Those of the node file.
    pub(crate) fn of(conf: &ServerConf) -> Self {
        let written = conf.client_bind_to_ipv4.iter().chain(&conf.client_bind_to_ipv6);
        // The engine refuses to start with an invalid address.
        Self(written.filter_map(|address| address.parse().ok()).collect())
    }

    /// Any of those that can reach this address.
    fn towards(&self, server: IpAddr) -> BindTo {
        let fitting: Vec<IpAddr> = self
            .0
            .iter()
            .copied()
            .filter(|from| from.is_ipv4() == server.is_ipv4())
            .collect();
        let mut bind_to = BindTo::default();
        if !fitting.is_empty() {
            let from = fitting[rand::random_range(0..fitting.len())];
            bind_to.addr = Some(SocketAddr::new(from, 0));
        }
        bind_to
    }
}

/// Makes connections that keep what is known of them.
#[derive(Debug, Default)]
pub(crate) struct Connect {
    sources: Sources,
    /// The owner of the connection.
    owner: Option<Arc<Owner>>,
}

impl Connect {
    /// From one of these addresses. With an owner a connection ends with the owner's.
    pub(crate) fn new(sources: Sources, owner: Option<Arc<Owner>>) -> Self {
        Self { sources, owner }
    }
}

#[async_trait]
impl L4Connect for Connect {
    async fn connect(&self, address: &EngineAddr) -> Result<Stream> {
        let Some(address) = address.as_inet() else {
            return Error::e_explain(ErrorType::InternalError, "a server without an Internet address");
        };
        // The engine's deadline is around it.
        let tcp = ext::connect(address, Some(&self.sources.towards(address.ip()))).await?;
        let connection = Arc::new(match &self.owner {
            None => ServerConnection::new(None),
            Some(owner) => owner.adopt(&tcp)?,
        });
        if let Some(owner) = &self.owner {
            owner.remember(&connection);
        }
        let mut stream = Stream::from(tcp);
        let nothing = Box::new(ResponseHeader::build(200, Some(0))?);
        stream.set_proxy_digest(ProxyDigest::new(nothing, Some(Box::new(connection))));
        Ok(stream)
    }
}

/// A client's connection as the owner of server connections. Servers with NTLM or Negotiate log in a connection, not a
/// request: every later request on it counts as that user's (RFC 4559 §6). So from the first sign of it the client's
/// requests go on server connections that no other client ever gets, and that end with the client's (RFC 9110 §3.3).
#[derive(Debug, Default)]
pub(crate) struct Owner {
    /// Set once it owns any; keeps them apart from all others in the engine's pool.
    key: OnceLock<u64>,
    connections: Mutex<Vec<Weak<ServerConnection>>>,
    /// The server of each group that knows this client: a login of three messages goes to one server.
    servers: Mutex<HashMap<String, SocketAddr>>,
}

impl Owner {
    /// From now on it has server connections of its own.
    pub(crate) fn bind(&self) {
        self.key.get_or_init(new_key);
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

    fn adopt(&self, tcp: &TcpStream) -> Result<ServerConnection> {
        let socket = SockRef::from(tcp)
            .try_clone()
            .or_err(ErrorType::InternalError, "a second handle on a connection")?;
        Ok(ServerConnection::new(Some(socket)))
    }

    fn remember(&self, connection: &Arc<ServerConnection>) {
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

/// A key that no other connection has had. 0 is that of shared connections.
pub(crate) fn new_key() -> u64 {
    static KEYS: AtomicU64 = AtomicU64::new(1);
    KEYS.fetch_add(1, Ordering::Relaxed)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(said: &str, idle_ms: u64, repeatable: Repeatable, suits: bool) {
        let connection = ServerConnection::new(None);
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

    #[tokio::test]
    async fn connections_come_from_where_the_node_file_says() {
        let conf = ServerConf {
            client_bind_to_ipv4: vec!["127.0.0.77".to_owned()],
            client_bind_to_ipv6: vec!["::1".to_owned()],
            ..ServerConf::default()
        };
        let server = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let to = EngineAddr::Inet(server.local_addr().unwrap());
        let connect = Connect::new(Sources::of(&conf), None);
        let (stream, accepted) = tokio::join!(connect.connect(&to), server.accept());
        assert_eq!(accepted.unwrap().1.ip(), "127.0.0.77".parse::<IpAddr>().unwrap());
        drop(stream.unwrap());
        drop(server);
        let refused = connect.connect(&to).await.unwrap_err();
        assert_eq!(*refused.etype(), ErrorType::ConnectRefused);
    }

    #[test]
    fn one_that_is_spent_is_for_nobody() {
        let connection = ServerConnection::new(None);
        connection.spend();
        let demand = Demand {
            keepalive: Duration::MAX,
            repeatable: Repeatable::Yes,
        };
        assert!(!connection.suits_after(Duration::ZERO, demand));
    }
}
