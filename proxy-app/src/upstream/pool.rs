//! Connections to web servers that rest between two requests.
//!
//! The HTTP engine has a pool of its own, but only for sockets that it opens itself. Here a connection is chosen for
//! what the request demands of it, and the one that was used last is used first: the others may end.

use std::collections::HashMap;
use std::fmt;
use std::net::SocketAddr;
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

use parking_lot::Mutex;

use crate::upstream::connection::{Demand, ServerConnection};
use crate::upstream::http2::Http2Link;
use crate::upstream::link::Link;

/// How often resting connections are looked at: closed ones hold a descriptor.
const LOOK: Duration = Duration::from_secs(1);

/// The server that a connection leads to, and the rules that it was made under. Requests share connections only where
/// all of it is the same.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) struct ServerKey {
    /// Where it is.
    pub address: SocketAddr,
    /// With TLS: the name that its certificate must be good for.
    pub tls: Option<Arc<str>>,
    /// Whether the certificate is verified.
    pub verify: bool,
    /// Whether HTTP/2 is offered.
    pub http2: bool,
    /// The client's connection that it belongs to, if to one alone.
    pub owner: Option<u64>,
}

/// A connection between two requests.
pub(crate) enum RestingLink {
    /// HTTP/1.
    Http1(Link),
    /// HTTP/2.
    Http2(Http2Link),
}

impl RestingLink {
    fn is_good(&mut self) -> bool {
        match self {
            Self::Http1(link) => link.is_silent(),
            Self::Http2(link) => link.is_open(),
        }
    }
}

/// One that rests in the pool.
struct Resting {
    link: RestingLink,
    connection: Arc<ServerConnection>,
    since: Instant,
    until: Instant,
}

/// Connections that rest.
pub(crate) struct ConnectionPool {
    most: usize,
    rest: Mutex<RestingConnections>,
}

#[derive(Default)]
struct RestingConnections {
    /// For each server, the one that was used last at the end.
    by_server: HashMap<ServerKey, Vec<Resting>>,
    count: usize,
    /// A task looks at them.
    watched: bool,
}

impl ConnectionPool {
    /// For so many connections at most.
    pub(crate) fn new(most: usize) -> Arc<Self> {
        Arc::new(Self {
            most,
            rest: Mutex::default(),
        })
    }

    /// The connection to this server that was used last of those that suit the demand.
    pub(crate) fn take(&self, server: &ServerKey, demand: Demand) -> Option<(RestingLink, Arc<ServerConnection>)> {
        loop {
            let mut taken = self.rest.lock().take(server, demand)?;
            if taken.link.is_good() {
                return Some((taken.link, taken.connection));
            }
        }
    }

    /// Keeps a connection for the next request, for so long. The one that has rested longest makes room for it.
    pub(crate) fn put(
        self: &Arc<Self>,
        server: ServerKey,
        link: RestingLink,
        connection: Arc<ServerConnection>,
        keepalive: Duration,
    ) {
        let since = Instant::now();
        let Some(until) = since.checked_add(keepalive) else {
            return;
        };
        let resting = Resting {
            link,
            connection,
            since,
            until,
        };
        let _out_of_the_lock = {
            let mut rest = self.rest.lock();
            rest.put(server, resting);
            if !rest.watched && self.most > 0 {
                rest.watched = self.watch();
            }
            (rest.count > self.most).then(|| rest.take_oldest())
        };
    }

    /// Looks at the connections until there are none. Returns whether there is a runtime for it.
    fn watch(self: &Arc<Self>) -> bool {
        let Ok(runtime) = tokio::runtime::Handle::try_current() else {
            return false;
        };
        let pool = Arc::downgrade(self);
        runtime.spawn(async move {
            loop {
                tokio::time::sleep(LOOK).await;
                if !Self::look(&pool) {
                    return;
                }
            }
        });
        true
    }

    /// Lets those go that are closed or whose time is over. Returns whether any are left to be looked at.
    fn look(pool: &Weak<Self>) -> bool {
        let Some(pool) = pool.upgrade() else { return false };
        let (_out_of_the_lock, left) = {
            let mut rest = pool.rest.lock();
            let gone = rest.take_ended(Instant::now());
            rest.watched = rest.count > 0;
            (gone, rest.watched)
        };
        left
    }
}

impl RestingConnections {
    fn take(&mut self, server: &ServerKey, demand: Demand) -> Option<Resting> {
        let resting = self.by_server.get_mut(server)?;
        let last = resting.iter().rposition(|one| one.connection.suits(demand))?;
        self.count -= 1;
        Some(resting.remove(last))
    }

    fn put(&mut self, server: ServerKey, resting: Resting) {
        self.by_server.entry(server).or_default().push(resting);
        self.count += 1;
    }

    fn take_oldest(&mut self) -> Option<Resting> {
        let fronts = self.by_server.values_mut().filter(|resting| !resting.is_empty());
        let oldest = fronts.min_by_key(|resting| resting[0].since)?;
        self.count -= 1;
        Some(oldest.remove(0))
    }

    fn take_ended(&mut self, now: Instant) -> Vec<Resting> {
        let mut ended = Vec::new();
        for resting in self.by_server.values_mut() {
            ended.extend(resting.extract_if(.., |one| one.until <= now || !one.link.is_good()));
        }
        self.by_server.retain(|_, resting| !resting.is_empty());
        self.count -= ended.len();
        ended
    }
}

impl fmt::Debug for ConnectionPool {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "ConnectionPool({} of {})", self.rest.lock().count, self.most)
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::AsyncWriteExt;
    use tokio::net::{TcpListener, TcpStream};

    use super::*;
    use crate::upstream::connection::Repeatable;

    const DEMAND: Demand = Demand {
        keepalive: Duration::from_secs(50),
        repeatable: Repeatable::Yes,
    };

    struct Scene {
        pool: Arc<ConnectionPool>,
        listener: TcpListener,
        server: ServerKey,
    }

    impl Scene {
        async fn new(most: usize) -> Self {
            let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
            let address = listener.local_addr().unwrap();
            Self {
                pool: ConnectionPool::new(most),
                listener,
                server: ServerKey {
                    address,
                    tls: None,
                    verify: true,
                    http2: false,
                    owner: None,
                },
            }
        }

        /// A connection that now rests, with the server's end.
        async fn rest(&self, keepalive: Duration) -> (Arc<ServerConnection>, TcpStream) {
            let (ours, theirs) = tokio::join!(TcpStream::connect(self.server.address), self.listener.accept());
            let connection = Arc::new(ServerConnection::new(None, false));
            connection.touch();
            let link = RestingLink::Http1(Link::Clear(ours.unwrap()));
            self.pool.put(self.server.clone(), link, connection.clone(), keepalive);
            (connection, theirs.unwrap().0)
        }

        fn takes(&self, expected: Option<&Arc<ServerConnection>>) {
            let taken = self.pool.take(&self.server, DEMAND);
            let same = match (&taken, expected) {
                (Some((_, taken)), Some(expected)) => Arc::ptr_eq(taken, expected),
                (None, None) => true,
                _ => false,
            };
            assert!(same, "{} is taken", taken.is_some());
        }

        fn count(&self) -> usize {
            self.pool.rest.lock().count
        }
    }

    /// Whether the kernel knows that the last one is not good any more.
    fn is_known(pool: &ConnectionPool, server: &ServerKey) -> bool {
        let mut rest = pool.rest.lock();
        let last = rest.by_server.get_mut(server).and_then(|resting| resting.last_mut());
        last.is_none_or(|last| !last.link.is_good())
    }

    /// It knows a moment after the server has said or closed something.
    async fn arrived(scene: &Scene) {
        for _ in 0..1000 {
            if is_known(&scene.pool, &scene.server) {
                return;
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        panic!("nothing has arrived");
    }

    #[tokio::test]
    async fn the_last_one_that_is_open_and_silent_is_taken() {
        let scene = Scene::new(10).await;
        let (first, _a) = scene.rest(DEMAND.keepalive).await;
        let (_closed, b) = scene.rest(DEMAND.keepalive).await;
        drop(b);
        arrived(&scene).await;
        scene.takes(Some(&first));
        scene.takes(None);
        let (_talks, mut c) = scene.rest(DEMAND.keepalive).await;
        c.write_all(b"x").await.unwrap();
        arrived(&scene).await;
        scene.takes(None);
        let (spent, _d) = scene.rest(DEMAND.keepalive).await;
        spent.spend();
        scene.takes(None);
        assert_eq!(scene.count(), 1, "only time ends one that does not suit");
    }

    #[tokio::test]
    async fn the_one_that_has_rested_longest_makes_room() {
        let scene = Scene::new(2).await;
        let (_first, _a) = scene.rest(DEMAND.keepalive).await;
        let (second, _b) = scene.rest(DEMAND.keepalive).await;
        let (third, _c) = scene.rest(DEMAND.keepalive).await;
        scene.takes(Some(&third));
        scene.takes(Some(&second));
        scene.takes(None);
    }

    #[tokio::test]
    async fn other_rules_are_another_server() {
        let scene = Scene::new(10).await;
        let (_first, _a) = scene.rest(DEMAND.keepalive).await;
        for change in [
            |server: &mut ServerKey| server.tls = Some("a".into()),
            |server: &mut ServerKey| server.verify = false,
            |server: &mut ServerKey| server.http2 = true,
            |server: &mut ServerKey| server.owner = Some(1),
        ] {
            let mut other = scene.server.clone();
            change(&mut other);
            assert!(scene.pool.take(&other, DEMAND).is_none());
        }
    }

    #[tokio::test(start_paused = true)]
    async fn what_has_ended_is_let_go() {
        let scene = Scene::new(10).await;
        let (_kept, _a) = scene.rest(DEMAND.keepalive).await;
        let (_short, _b) = scene.rest(Duration::ZERO).await;
        let (_closed, c) = scene.rest(DEMAND.keepalive).await;
        drop(c);
        arrived(&scene).await;
        tokio::time::sleep(2 * LOOK).await;
        assert_eq!(scene.count(), 1);
        assert!(scene.pool.rest.lock().watched);
    }
}
