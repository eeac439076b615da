//! A way to an LDAP server: TCP, and TLS by the scheme of its address or by StartTLS.

use std::io;
use std::net::SocketAddr;
use std::time::Duration;

use tokio::net::{TcpStream, lookup_host};
use tokio::time::timeout;

use super::sync_message::{bind, start_tls};
use super::sync_wire::{Stream, SyncEnd, SyncWire};
use super::{Settings, Url};
use crate::secret::Secret;
use crate::tls_words::reasons;

/// Numbers of the requests on a new connection: for TLS, and the bind. Others come after them.
const START_TLS: u32 = 1;
const BIND: u32 = 2;

/// Part of the timeout for one of several addresses.
const ADDRESS_SHARE: u32 = 4;

/// How connections are opened.
pub(super) struct Opener {
    starttls: bool,
    tls: Option<native_tls::TlsConnector>,
    bind: Option<(String, Secret<String>)>,
    timeout: Duration,
}

impl Opener {
    pub(super) fn new(settings: &Settings) -> Self {
        Self {
            starttls: settings.starttls,
            tls: settings.trust.0.clone(),
            bind: settings.bind.clone(),
            timeout: settings.timeout,
        }
    }

    /// Longest wait for one answer.
    pub(super) fn timeout(&self) -> Duration {
        self.timeout
    }

    /// Name and password to bind with. Without a name this is the anonymous bind; it also proves that a server answers.
    pub(super) fn login(&self) -> (&str, &str) {
        let login = self.bind.as_ref();
        login.map_or(("", ""), |(dn, password)| (dn, password.expose()))
    }

    /// A connection of our own, bound, within the timeout.
    ///
    /// # Errors
    ///
    /// Those of [`open`](Self::open), a refused bind, and the end of the time.
    pub(super) async fn connect(&self, url: &Url) -> Result<SyncWire, SyncEnd> {
        let entered = timeout(self.timeout, self.enter(url)).await;
        entered.unwrap_or(Err(SyncEnd::Late(self.timeout)))
    }

    async fn enter(&self, url: &Url) -> Result<SyncWire, SyncEnd> {
        let mut wire = SyncWire::of(self.open(url).await?);
        let (dn, password) = self.login();
        wire.send(&bind(BIND, dn, password)).await?;
        wire.agreed(BIND).await?;
        Ok(wire)
    }

    /// Connects and does TLS. The caller sets the time limit.
    ///
    /// # Errors
    ///
    /// No connection, no TLS, or an answer to StartTLS (RFC 4511 §4.14) that is none.
    pub(super) async fn open(&self, url: &Url) -> Result<Box<dyn Stream>, SyncEnd> {
        let (host, port) = url.host_and_port();
        let tcp = self.dial(host, port).await?;
        tcp.set_nodelay(true)?;
        match url.is_tls() {
            true => self.secure(host, tcp).await,
            false if self.starttls => {
                let mut clear = SyncWire::of(tcp);
                clear.send(&start_tls(START_TLS)).await?;
                clear.agreed(START_TLS).await?;
                // What came with the answer was not said in TLS.
                let tcp = clear.into_unread().ok_or(SyncEnd::Nonsense)?;
                self.secure(host, tcp).await
            }
            false => Ok(Box::new(tcp)),
        }
    }

    /// The first address of the host that answers. All but the last one have only a part of the time: one that swallows
    /// everything must not make the server a dead one.
    async fn dial(&self, host: &str, port: u16) -> io::Result<TcpStream> {
        let mut addresses: Vec<SocketAddr> = lookup_host((host, port)).await?.collect();
        let last = addresses.pop().ok_or(io::ErrorKind::NotFound)?;
        let some = self.timeout / ADDRESS_SHARE;
        for address in addresses {
            if let Ok(Ok(tcp)) = timeout(some, TcpStream::connect(address)).await {
                return Ok(tcp);
            }
        }
        TcpStream::connect(last).await
    }

    async fn secure(&self, host: &str, tcp: TcpStream) -> Result<Box<dyn Stream>, SyncEnd> {
        let connector = match &self.tls {
            Some(connector) => connector.clone(),
            None => native_tls::TlsConnector::new().map_err(|error| broken(&error))?,
        };
        let connector = tokio_native_tls::TlsConnector::from(connector);
        let secured = connector.connect(host, tcp).await.map_err(|error| broken(&error))?;
        Ok(Box::new(secured))
    }
}

fn broken(error: &native_tls::Error) -> SyncEnd {
    SyncEnd::Broken(reasons(&error.to_string()).into_owned())
}
