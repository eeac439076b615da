//! Sockets and TLS for mail sessions: the [`Transport`] that `mail_proxy` asks for.

use std::fmt;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use futures_util::StreamExt;
use futures_util::stream::FuturesUnordered;
use mail_proxy::{BoxStream, ConnectError, ConnectionFacts, Protocol, ProxyVersion, TlsFacts, Transport};
use route_cache::{Route, Server, UpstreamTls};
use socket2::{SockRef, TcpKeepalive};
use tokio::io::AsyncWriteExt;
use tokio::net::TcpStream;
use tokio::time::{Instant, timeout, timeout_at};

use crate::node::returns::{NoTurn, ReturnPace, Returns};
use crate::tls::upstream::UpstreamTrust;
use crate::tls::{self, Acceptors};
use crate::upstream::dns::{DnsCache, IpMode};
use crate::upstream::proxy_header;

/// How long a mailbox server may take to accept a connection and finish TLS. Carbonio waits two minutes, and so does
/// its user; a server in the same data centre that needs more than this is down.
pub(crate) const CONNECT: Duration = Duration::from_secs(4);

/// What the client of a login hears that got no turn.
const CROWDED: &str = "too many logins at this moment, please try again";

/// How long an address may take before the next one is tried beside it (RFC 8305 section 8: a quarter of a second).
const HEAD_START: Duration = Duration::from_millis(250);

/// A peer that vanished without closing is noticed after about this time.
const KEEPALIVE: Duration = Duration::from_secs(300);

/// The network and TLS of a snapshot.
pub(crate) struct MailTransport {
    /// TLS towards clients.
    pub acceptors: Arc<Acceptors>,
    /// TLS towards mailbox servers.
    pub trust: Arc<UpstreamTrust>,
    /// Host names.
    pub dns: Arc<DnsCache>,
    /// Address families.
    pub ip_mode: IpMode,
    /// Mailbox servers that were down lately.
    pub returns: Arc<Returns>,
    /// How their clients get in again.
    pub pace: ReturnPace,
}

#[async_trait]
impl Transport for MailTransport {
    async fn start_tls(
        &self,
        stream: BoxStream,
        protocol: Protocol,
        local: IpAddr,
    ) -> io::Result<(BoxStream, TlsFacts)> {
        let stream = self
            .acceptors
            .accept(tls::inner_protocol(protocol), local, stream)
            .await?;
        let facts = tls::facts(stream.ssl());
        Ok((Box::new(stream), facts))
    }

    async fn connect(
        &self,
        route: &Route,
        header: Option<(ProxyVersion, &ConnectionFacts)>,
    ) -> Result<BoxStream, ConnectError> {
        let header = header.map(|(version, facts)| proxy_header::encode(version, facts));
        let dialled = self.dial_after(&Server::of(route), &header.unwrap_or_default()).await;
        self.returns.connected(&route.server, dialled.is_ok());
        dialled
    }

    async fn secure(&self, stream: BoxStream, route: &Route) -> Result<BoxStream, ConnectError> {
        let shaken = self.trust.connect(route.certified_name(), stream);
        let failed = |why: &dyn fmt::Display| format!("TLS with {}: {why}", route.address());
        match timeout(CONNECT, shaken).await {
            Ok(secured) => secured.map_err(|error| ConnectError::Refused(failed(&error))),
            Err(_) => Err(ConnectError::TimedOut(failed(&"no answer in time"))),
        }
    }

    async fn turn(&self, route: &Route) -> Result<(), ConnectError> {
        let server = &route.server;
        self.returns.turn(server, self.pace).await.map_err(|none| match none {
            NoTurn::Down => ConnectError::Refused(format!("{server} is down, and was asked a moment ago")),
            NoTurn::Crowded => {
                log::debug!("{server} has just come back, and too many wait for it");
                ConnectError::Crowded(CROWDED.to_owned())
            }
        })
    }
}

impl MailTransport {
    /// Connects to a server, TLS and its verification included.
    ///
    /// # Errors
    /// It refuses, cannot prove its identity, or does not answer within [`CONNECT`].
    pub(crate) async fn dial(&self, server: &Server) -> Result<BoxStream, ConnectError> {
        self.dial_after(server, b"").await
    }

    /// The same, with some bytes sent in clear text before anything else: a PROXY header.
    ///
    /// # Errors
    /// As [`MailTransport::dial`].
    pub(crate) async fn dial_after(&self, server: &Server, header: &[u8]) -> Result<BoxStream, ConnectError> {
        self.dial_as(server, header, self.trust.verifies()).await
    }

    /// The same for a server with a rule of its own: whether it must prove its identity.
    ///
    /// # Errors
    /// As [`MailTransport::dial`].
    pub(crate) async fn dial_as(
        &self,
        server: &Server,
        header: &[u8],
        verify: bool,
    ) -> Result<BoxStream, ConnectError> {
        let deadline = Instant::now() + CONNECT;
        let failed = |what: &str, error: io::Error| {
            let text = format!("{what} {}: {error}", server.address());
            match error.kind() {
                io::ErrorKind::TimedOut => ConnectError::TimedOut(text),
                _ => ConnectError::Refused(text),
            }
        };
        let late = |what: &str| ConnectError::TimedOut(format!("{what} {}: no answer in time", server.address()));
        let opened = async {
            let mut tcp = self.tcp(server).await?;
            tcp.write_all(header).await.map(|()| tcp)
        };
        let tcp = match timeout_at(deadline, opened).await {
            Ok(connected) => connected.map_err(|error| failed("connect to", error))?,
            Err(_) => return Err(late("connect to")),
        };
        match &server.tls {
            // Where TLS begins later, the dialogue asks for it.
            UpstreamTls::Clear | UpstreamTls::StartTls { .. } => Ok(Box::new(tcp)),
            UpstreamTls::Implicit { name } => {
                let shaken = self.trust.connect_as(name, Box::new(tcp), verify);
                match timeout_at(deadline, shaken).await {
                    Ok(connected) => connected.map_err(|error| failed("TLS with", error)),
                    Err(_) => Err(late("TLS with")),
                }
            }
        }
    }

    async fn tcp(&self, server: &Server) -> io::Result<TcpStream> {
        connect(&self.dns, &server.host, server.port, self.ip_mode).await
    }
}

/// Connects to the first address of a host that accepts; the caller sets the time limit. An address that swallows
/// packets costs the head start, and only once: it is tried last for a while.
///
/// # Errors
/// The host has no address, or none of them accepts.
pub(crate) async fn connect(dns: &DnsCache, host: &str, port: u16, ip_mode: IpMode) -> io::Result<TcpStream> {
    let mut waiting = dns.resolve(host, port, ip_mode).await?.into_iter();
    let mut tried = Vec::new();
    let mut running = FuturesUnordered::new();
    let mut last = io::Error::from(io::ErrorKind::NotFound);
    loop {
        match waiting.next() {
            Some(address) => {
                tried.push(address);
                running.push(async move { (address, tcp_to(address).await) });
            }
            None if running.is_empty() => return Err(last),
            None => {}
        }
        tokio::select! {
            Some((address, connected)) = running.next() => match connected {
                Ok(tcp) => {
                    dns.note_alive(address);
                    // The previous ones had their time, or have failed.
                    tried.iter().take_while(|one| **one != address).for_each(|dead| dns.note_dead(*dead));
                    return Ok(tcp);
                }
                Err(error) => last = error,
            },
            () = tokio::time::sleep(HEAD_START), if waiting.len() > 0 => {}
        }
    }
}

/// Connects to a service, by TLS where its certificate must be known; the caller sets the time limit.
///
/// # Errors
/// As [`connect`], or its certificate is not known by `trust`, or not good for its name.
pub(crate) async fn connect_to_service(
    dns: &DnsCache,
    host: &str,
    port: u16,
    trust: Option<&UpstreamTrust>,
) -> io::Result<BoxStream> {
    let tcp = Box::new(connect(dns, host, port, IpMode::Both).await?);
    match trust {
        Some(trust) => trust.connect(host, tcp).await,
        None => Ok(tcp),
    }
}

async fn tcp_to(address: SocketAddr) -> io::Result<TcpStream> {
    let tcp = TcpStream::connect(address).await?;
    tune(&tcp)?;
    Ok(tcp)
}

/// Sends small answers at once, and notices a peer that vanished. Connections inherit it from the listening socket that
/// accepts them (Linux), so that it costs no call for each.
///
/// # Errors
/// The socket is already gone.
pub(crate) fn tune<'a>(socket: impl Into<SockRef<'a>>) -> io::Result<()> {
    let socket = socket.into();
    socket.set_tcp_nodelay(true)?;
    socket.set_tcp_keepalive(&TcpKeepalive::new().with_time(KEEPALIVE).with_interval(KEEPALIVE / 5))
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use socket2::{Domain, Socket, Type};
    use tokio::net::TcpListener;

    use super::*;

    /// A listener that takes no more connections: its queue is full, and the system drops further packets.
    async fn swallows(address: SocketAddr) -> (Socket, Vec<TcpStream>) {
        let socket = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
        socket.bind(&address.into()).unwrap();
        socket.listen(0).unwrap();
        let mut queued = Vec::new();
        while let Ok(Ok(one)) = timeout(Duration::from_millis(100), TcpStream::connect(address)).await {
            queued.push(one);
            assert!(queued.len() < 100, "a queue without end");
        }
        (socket, queued)
    }

    /// The bug: a server's first address is dead, and each login waited two seconds for it.
    #[tokio::test]
    async fn a_dead_first_address_costs_little_and_only_once() {
        let [first, second, third] = [2, 3, 4].map(|last| Ipv4Addr::new(127, 0, 0, last));
        let alive = TcpListener::bind((second, 0)).await.unwrap();
        let port = alive.local_addr().unwrap().port();
        let _held = swallows((first, port).into()).await;
        let dns = DnsCache::default();
        // Nothing listens at the third one: that is known at once.
        dns.pretend("store.test", &[third.into(), first.into(), second.into()]);
        let mut took = Vec::new();
        for _ in 0..3 {
            let begun = Instant::now();
            let tcp = connect(&dns, "store.test", port, IpMode::V4).await.unwrap();
            assert_eq!(tcp.peer_addr().unwrap().ip(), second);
            took.push(begun.elapsed());
        }
        assert!(took[0] >= HEAD_START && took[0] < 4 * HEAD_START, "{took:?}");
        assert!(took[1..].iter().all(|took| *took < HEAD_START), "{took:?}");
        drop(alive);
        // It is only tried last: where no other address accepts, it is tried.
        dns.pretend("dead.test", &[first.into(), third.into()]);
        let tried = connect(&dns, "dead.test", port, IpMode::V4);
        assert!(timeout(HEAD_START, tried).await.is_err(), "it waits for the first");
    }
}
