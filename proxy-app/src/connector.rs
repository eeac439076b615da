//! Sockets and TLS for mail sessions: the [`Transport`] that `mail_proxy` asks for.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use mail_proxy::{BoxStream, ConnectError, Protocol, TlsFacts, Transport};
use route_cache::{Route, Server, UpstreamTls};
use socket2::{SockRef, TcpKeepalive};
use tokio::io::AsyncWriteExt;
use tokio::net::TcpStream;
use tokio::time::{Instant, timeout, timeout_at};

use crate::names::{IpMode, Names};
use crate::tls::{self, Acceptors, UpstreamTrust};

/// How long a mailbox server may take to accept a connection and finish TLS. Carbonio waits two minutes, and the
/// user with it; a server in the same data centre that needs more than this is down.
pub const CONNECT: Duration = Duration::from_secs(4);

/// A peer that vanished without a word is noticed after about this time.
const KEEPALIVE: Duration = Duration::from_secs(300);

/// The network and TLS of a snapshot.
pub struct MailTransport {
    /// TLS towards clients.
    pub acceptors: Arc<Acceptors>,
    /// TLS towards mailbox servers.
    pub trust: Arc<UpstreamTrust>,
    /// Host names.
    pub names: Arc<Names>,
    /// Address families.
    pub ip_mode: IpMode,
}

#[async_trait]
impl Transport for MailTransport {
    async fn start_tls(
        &self,
        stream: BoxStream,
        protocol: Protocol,
        local: IpAddr,
    ) -> io::Result<(BoxStream, TlsFacts)> {
        let stream = self.acceptors.accept(tls::inside(protocol), local, stream).await?;
        let facts = tls::facts(stream.ssl());
        Ok((Box::new(stream), facts))
    }

    async fn connect(&self, route: &Route) -> Result<BoxStream, ConnectError> {
        self.dial(&Server::of(route)).await
    }
}

impl MailTransport {
    /// Connects to a server, TLS and its verification included.
    ///
    /// # Errors
    /// It refuses, cannot prove who it is, or does not answer within [`CONNECT`].
    pub async fn dial(&self, server: &Server) -> Result<BoxStream, ConnectError> {
        self.dial_after(server, b"").await
    }

    /// The same, with some bytes sent in clear text before all else: a PROXY header.
    ///
    /// # Errors
    /// As [`MailTransport::dial`].
    pub async fn dial_after(&self, server: &Server, header: &[u8]) -> Result<BoxStream, ConnectError> {
        self.dial_as(server, header, self.trust.verifies()).await
    }

    /// The same for a server with a rule of its own: whether it must prove who it is.
    ///
    /// # Errors
    /// As [`MailTransport::dial`].
    pub async fn dial_as(&self, server: &Server, header: &[u8], verify: bool) -> Result<BoxStream, ConnectError> {
        let deadline = Instant::now() + CONNECT;
        let failed = |what: &str, error: io::Error| {
            let text = format!("{what} {}:{}: {error}", server.host, server.port);
            match error.kind() {
                io::ErrorKind::TimedOut => ConnectError::TimedOut(text),
                _ => ConnectError::Refused(text),
            }
        };
        let late =
            |what: &str| ConnectError::TimedOut(format!("{what} {}:{}: no answer in time", server.host, server.port));
        let opened = async {
            let mut tcp = self.tcp(server).await?;
            tcp.write_all(header).await.map(|()| tcp)
        };
        let tcp = match timeout_at(deadline, opened).await {
            Ok(connected) => connected.map_err(|error| failed("connect to", error))?,
            Err(_) => return Err(late("connect to")),
        };
        match &server.tls {
            UpstreamTls::Clear => Ok(Box::new(tcp)),
            UpstreamTls::Implicit { name } => {
                let shaken = self.trust.connect_as(name, Box::new(tcp), verify);
                match timeout_at(deadline, shaken).await {
                    Ok(connected) => connected.map_err(|error| failed("TLS with", error)),
                    Err(_) => Err(late("TLS with")),
                }
            }
        }
    }

    /// The first address that accepts.
    async fn tcp(&self, server: &Server) -> io::Result<TcpStream> {
        let mut last = io::Error::from(io::ErrorKind::NotFound);
        let addresses = self.names.resolve(&server.host, server.port, self.ip_mode).await?;
        // One that swallows packets must leave time for the others.
        let share = CONNECT / u32::try_from(addresses.len()).unwrap_or(u32::MAX).max(1);
        for address in addresses {
            match timeout(share, tcp_to(address)).await {
                Ok(Ok(tcp)) => return Ok(tcp),
                Ok(Err(error)) => last = error,
                Err(late) => last = late.into(),
            }
        }
        Err(last)
    }
}

async fn tcp_to(address: SocketAddr) -> io::Result<TcpStream> {
    let tcp = TcpStream::connect(address).await?;
    tune(&tcp)?;
    Ok(tcp)
}

/// Small answers leave at once, and a peer that vanished is noticed.
///
/// # Errors
/// The socket is already gone.
pub fn tune(tcp: &TcpStream) -> io::Result<()> {
    tcp.set_nodelay(true)?;
    SockRef::from(tcp).set_tcp_keepalive(&TcpKeepalive::new().with_time(KEEPALIVE).with_interval(KEEPALIVE / 5))
}
