//! What the process hands in with a mail connection: the stream and what is known of it, how sessions are run, and the
//! way to TLS and to mailbox servers.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use route_cache::{Lookup, Route, RouteCache, Service, Subject};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::watch;
use tokio::time::Instant;

use crate::audit::{Audit, Record};
use crate::credentials::Credentials;
use crate::live::{Drain, Live};
use crate::machine::StartTls;
use crate::{imap, pop3};

/// What one read before login may bring.
pub(crate) const READ: usize = 4096;

/// A stream of bytes both ways: TCP, TLS, or one end of a test.
pub trait Stream: AsyncRead + AsyncWrite + Unpin + Send {}
impl<T: AsyncRead + AsyncWrite + Unpin + Send> Stream for T {}

/// Any stream.
pub type BoxStream = Box<dyn Stream>;

/// Who connected.
#[derive(Debug, Clone, Copy)]
pub struct Client {
    /// The client itself, after the PROXY header.
    pub addr: SocketAddr,
    /// The balancer that spoke for it, if one did.
    pub via: Option<SocketAddr>,
    /// The address on which it was accepted (by the balancer, if there is one).
    pub local: SocketAddr,
}

/// What is known of a TLS channel.
#[derive(Debug, Clone)]
pub struct TlsFacts {
    /// Protocol version and cipher, as in `TLSv1.3 TLS_AES_256_GCM_SHA384`.
    pub cipher: String,
    /// Name that the client asked for.
    pub sni: Option<String>,
}

/// Which protocol a connection speaks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Protocol {
    /// IMAP (RFC 9051, RFC 3501).
    Imap,
    /// POP3 (RFC 1939).
    Pop3,
}

impl Protocol {
    /// The name in audit records.
    pub fn name(self) -> &'static str {
        match self {
            Protocol::Imap => "imap",
            Protocol::Pop3 => "pop3",
        }
    }

    fn service(self) -> Service {
        match self {
            Protocol::Imap => Service::Imap,
            Protocol::Pop3 => Service::Pop3,
        }
    }
}

/// One accepted connection.
pub struct Connection {
    /// The bytes; TLS is already done where it is implicit.
    pub stream: BoxStream,
    /// Number of the connection, unique on this node.
    pub number: String,
    /// Address of the listener, for audit records.
    pub listener: Arc<str>,
    /// What is spoken.
    pub protocol: Protocol,
    /// Who connected.
    pub client: Client,
    /// The TLS channel, if there is one already.
    pub tls: Option<TlsFacts>,
    /// Policy while there is none.
    pub starttls: StartTls,
    /// When the connection was accepted: the login deadline counts from here.
    pub accepted: Instant,
    /// How long the client may take to its credentials. Bytes do not extend it; our own work and waiting do not count.
    pub login_deadline: Duration,
    /// What the process sees of it, and its way to end it.
    pub live: Arc<Live>,
}

/// How sessions are run; immutable, a connection keeps the one it was born with.
#[derive(Debug, Clone)]
pub struct Settings {
    /// The IMAP dialogue before login.
    pub imap: Arc<imap::Settings>,
    /// The POP3 dialogue before login.
    pub pop3: Arc<pop3::Settings>,
    /// How long a logged-in IMAP session may be silent on both sides.
    pub imap_idle: Duration,
    /// The same for POP3.
    pub pop3_idle: Duration,
    /// How long a failed login waits for its answer (`zimbraReverseProxyAuthWaitInterval`).
    pub auth_wait: Duration,
    /// How long the mailbox server may take for the whole login (`zimbraReverseProxyConnectTimeout`).
    pub upstream_login: Duration,
    /// Whether the mailbox server's own reasons reach the client (`zimbraReverseProxyPassErrors`).
    pub pass_errors: bool,
    /// Whether an IMAP server is told who the client is (`zimbraReverseProxySendImapId`).
    pub send_imap_id: bool,
    /// Whether a POP3 server is told who the client is (`zimbraReverseProxySendPop3Xoip`).
    pub send_pop3_xoip: bool,
    /// Name and version of this program, for `ID`.
    pub product: (String, String),
}

/// Why a mailbox server could not be reached.
#[derive(Debug, thiserror::Error)]
pub enum ConnectError {
    /// It refused, or the network did, or TLS failed: said at once.
    #[error("{0}")]
    Refused(String),
    /// It did not answer in time.
    #[error("{0}")]
    TimedOut(String),
}

/// What a session needs from the process around it.
#[async_trait]
pub trait Transport: Send + Sync {
    /// Does the server's side of a TLS handshake on a clear-text stream (STARTTLS) whose client came to this local
    /// address.
    async fn start_tls(
        &self,
        stream: BoxStream,
        protocol: Protocol,
        local: IpAddr,
    ) -> io::Result<(BoxStream, TlsFacts)>;

    /// Connects to the mailbox server of a route, TLS and its verification included, within the transport's own
    /// time limit.
    async fn connect(&self, route: &Route) -> Result<BoxStream, ConnectError>;
}

/// The process around a session.
#[derive(Clone)]
pub struct House {
    /// Where accounts live.
    pub routes: Arc<RouteCache>,
    /// Sockets and TLS.
    pub transport: Arc<dyn Transport>,
    /// Where records go.
    pub audit: Arc<dyn Audit>,
    /// How sessions are run.
    pub settings: Arc<Settings>,
    /// Number of the running configuration.
    pub generation: u64,
    /// The shutdown of the node.
    pub drain: watch::Receiver<Drain>,
}

/// What does not change while a connection lives, except by STARTTLS.
#[derive(Clone)]
pub(crate) struct Facts {
    pub(crate) number: String,
    pub(crate) listener: Arc<str>,
    pub(crate) protocol: Protocol,
    pub(crate) client: Client,
    pub(crate) tls: Option<TlsFacts>,
    pub(crate) starttls: StartTls,
    pub(crate) accepted: Instant,
    pub(crate) live: Arc<Live>,
}

impl Facts {
    /// A record of this connection, to be filled in.
    pub(crate) fn record(&self, generation: u64) -> Record {
        Record {
            conn: self.number.clone(),
            listener: self.listener.to_string(),
            proto: self.protocol.name(),
            tls: self.tls.as_ref().map(|tls| tls.cipher.clone()),
            sni: self.tls.as_ref().and_then(|tls| tls.sni.clone()),
            client: self.client.addr.to_string(),
            via: self.client.via.map(|via| via.to_string()),
            generation,
            ..Record::default()
        }
    }

    pub(crate) fn lookup(&self, credentials: &Credentials) -> Lookup {
        Lookup {
            subject: Subject::Login(credentials.user.clone()),
            service: self.protocol.service(),
            client: self.client.addr.ip(),
            local: self.client.local.ip(),
            host: self.tls.as_ref().and_then(|tls| tls.sni.clone()),
        }
    }
}
