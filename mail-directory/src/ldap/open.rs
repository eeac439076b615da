//! A way to an LDAP server: TCP, and TLS by the scheme of its address or by StartTLS.

use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;

use super::sync_message::start_tls;
use super::sync_wire::{SyncEnd, SyncWire};
use super::{Settings, Url};
use crate::secret::Secret;
use crate::tls_words::reasons;

/// Number of the request on a new connection that asks for TLS.
const FIRST: u32 = 1;

/// TCP or TLS.
pub(super) trait Stream: AsyncRead + AsyncWrite + Send + Unpin {}

impl<T: AsyncRead + AsyncWrite + Send + Unpin> Stream for T {}

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

    /// Connects and does TLS. The caller sets the time limit.
    ///
    /// # Errors
    ///
    /// No connection, no TLS, or an answer to StartTLS (RFC 4511 §4.14) that is none.
    pub(super) async fn open(&self, url: &Url) -> Result<Box<dyn Stream>, SyncEnd> {
        let (host, port) = url.host_and_port();
        let tcp = TcpStream::connect((host, port)).await?;
        tcp.set_nodelay(true)?;
        match url.is_tls() {
            true => self.secure(host, tcp).await,
            false if self.starttls => {
                let mut clear = SyncWire::of(tcp);
                clear.send(&start_tls(FIRST)).await?;
                clear.agreed(FIRST).await?;
                // What came with the answer was not said in TLS.
                let tcp = clear.into_unread().ok_or(SyncEnd::Nonsense)?;
                self.secure(host, tcp).await
            }
            false => Ok(Box::new(tcp)),
        }
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
