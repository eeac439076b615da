//! Connections to web servers: one that rests, or a new one, with TLS.

use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use async_trait::async_trait;
use pingora::connectors::L4Connect;
use pingora::connectors::l4::BindTo;
use pingora::protocols::l4::ext;
use pingora::protocols::l4::socket::SocketAddr as EngineAddr;
use pingora::protocols::l4::stream::Stream;
use pingora::protocols::l4::virt::VirtualSocketStream;
use pingora::server::configuration::ServerConf;
use pingora::{Error, ErrorType, OrErr, Result};
use tokio::net::TcpStream;
use tokio::time::timeout;

use crate::tls::upstream::UpstreamTrust;
use crate::upstream::connection::{Demand, Owner, ServerConnection};
use crate::upstream::http2::Http2Link;
use crate::upstream::link::Link;
use crate::upstream::pool::{ConnectionPool, RestingLink, ServerKey};
use crate::upstream::socket::{AnswerReading, Home, ServerSocket};

/// What is offered to servers of HTTP/2, the best first (RFC 7301 §3.1).
const H2_OR_H1: &[u8] = b"\x02h2\x08http/1.1";

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

/// What all requests share that connect to web servers.
#[derive(Clone)]
pub(crate) struct Dialer {
    pub(crate) sources: Sources,
    pub(crate) pool: Arc<ConnectionPool>,
}

/// One request for a connection. It leaves the engine as a socket, and here what is known of it.
pub(crate) struct Dial {
    pub(crate) dialer: Dialer,
    pub(crate) server: ServerKey,
    /// Which certificates are trusted.
    pub(crate) trust: Arc<UpstreamTrust>,
    /// How long it may take, the TLS handshake included.
    pub(crate) patience: Duration,
    /// What is demanded of one that rests.
    pub(crate) demand: Demand,
    /// With it the connection ends.
    pub(crate) owner: Option<Arc<Owner>>,
    /// It is made for this request and ends with it.
    pub(crate) alone: bool,
    /// How its answer is read; `None`: as the engine does.
    pub(crate) answer: Option<AnswerReading>,
    found: OnceLock<DialedConnection>,
}

/// What came of it.
pub(crate) struct DialedConnection {
    pub(crate) connection: Arc<ServerConnection>,
    /// It has carried other requests.
    pub(crate) reused: bool,
}

impl Dial {
    /// Of a connection that all may share.
    pub(crate) fn new(
        dialer: Dialer,
        server: ServerKey,
        trust: Arc<UpstreamTrust>,
        patience: Duration,
        demand: Demand,
    ) -> Self {
        Self {
            dialer,
            server,
            trust,
            patience,
            demand,
            owner: None,
            alone: false,
            answer: None,
            found: OnceLock::new(),
        }
    }

    /// The connection that it has found or made.
    pub(crate) fn found(&self) -> Option<&DialedConnection> {
        self.found.get()
    }

    /// A new connection.
    ///
    /// # Errors
    /// The server refuses it, cannot prove its identity, or takes too long.
    pub(crate) async fn open(&self) -> Result<(RestingLink, Arc<ServerConnection>)> {
        timeout(self.patience, self.open_at_leisure())
            .await
            .unwrap_or_else(|_| {
                let why = format!("no connection to {} in {:?}", self.server.address, self.patience);
                Error::e_explain(ErrorType::ConnectTimedout, why)
            })
    }

    async fn open_at_leisure(&self) -> Result<(RestingLink, Arc<ServerConnection>)> {
        let address = self.server.address;
        let from = self.dialer.sources.towards(address.ip());
        let tcp = ext::connect(&address, Some(&from)).await?;
        tcp.set_nodelay(true)
            .or_err(ErrorType::ConnectError, "a connection that has ended")?;
        let socket = match &self.owner {
            Some(_) => Some(Owner::handle(&tcp)?),
            None => None,
        };
        let link = match &self.server.tls {
            None => RestingLink::Http1(Link::Clear(tcp)),
            Some(name) => self.shake_hands(name, tcp).await?,
        };
        let is_http2 = matches!(link, RestingLink::Http2(_));
        let connection = Arc::new(ServerConnection::new(socket, is_http2));
        if let Some(owner) = &self.owner {
            owner.remember(&connection);
        }
        Ok((link, connection))
    }

    async fn shake_hands(&self, name: &str, tcp: TcpStream) -> Result<RestingLink> {
        let alpn = self.server.http2.then_some(H2_OR_H1);
        let failed = |error: &dyn fmt::Display| {
            let why = format!("TLS with {}: {error}", self.server.address);
            Error::explain(ErrorType::TLSHandshakeFailure, why)
        };
        let shaken = self.trust.shake_hands(name, tcp, self.server.verify, alpn).await;
        let tls = shaken.map_err(|error| failed(&error))?;
        if tls.ssl().selected_alpn_protocol() != Some(b"h2") {
            return Ok(RestingLink::Http1(Link::Tls(Box::new(tls))));
        }
        let http2 = Http2Link::begin(tls).await.map_err(|error| failed(&error))?;
        Ok(RestingLink::Http2(http2))
    }

    async fn find(&self) -> Result<ServerSocket> {
        let pool = &self.dialer.pool;
        let resting = match self.alone {
            true => None,
            false => pool.take(&self.server, self.demand),
        };
        let reused = resting.is_some();
        let (link, connection) = match resting {
            Some(resting) => resting,
            None => self.open().await?,
        };
        let home = (!self.alone).then(|| Home {
            pool: pool.clone(),
            server: self.server.clone(),
            keepalive: self.demand.keepalive,
        });
        let _once = self.found.set(DialedConnection {
            connection: connection.clone(),
            reused,
        });
        Ok(ServerSocket::new(link, connection, home, self.answer.clone()))
    }
}

#[async_trait]
impl L4Connect for Dial {
    async fn connect(&self, _: &EngineAddr) -> Result<Stream> {
        let socket = self.find().await?;
        Ok(VirtualSocketStream::new(Box::new(socket)).into())
    }
}

impl fmt::Debug for Dial {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Dial({:?})", self.server)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::upstream::connection::Repeatable;

    fn dial(sources: Sources, address: SocketAddr) -> Dial {
        let dialer = Dialer {
            sources,
            pool: ConnectionPool::new(8),
        };
        let server = ServerKey {
            address,
            tls: None,
            verify: true,
            http2: false,
            owner: None,
        };
        let demand = Demand {
            keepalive: Duration::from_secs(50),
            repeatable: Repeatable::Yes,
        };
        let trust = Arc::new(UpstreamTrust::new(None, true).unwrap());
        Dial::new(dialer, server, trust, Duration::from_secs(5), demand)
    }

    #[tokio::test]
    async fn connections_come_from_where_the_node_file_says() {
        let conf = ServerConf {
            client_bind_to_ipv4: vec!["127.0.0.77".to_owned()],
            client_bind_to_ipv6: vec!["::1".to_owned()],
            ..ServerConf::default()
        };
        let server = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let dial = dial(Sources::of(&conf), server.local_addr().unwrap());
        let (opened, accepted) = tokio::join!(dial.open(), server.accept());
        assert_eq!(accepted.unwrap().1.ip(), "127.0.0.77".parse::<IpAddr>().unwrap());
        drop(opened.unwrap());
        drop(server);
        let refused = dial.open().await.err().unwrap();
        assert_eq!(*refused.etype(), ErrorType::ConnectRefused);
    }
}
