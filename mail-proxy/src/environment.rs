//! What the process hands in with a mail connection: how sessions are run, and the way to TLS, routes, mailbox servers
//! and logs.

use std::io;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use route_cache::{Lookup, MaxSessions, Route, RouteCache, Subject};
use tokio::sync::watch;

use crate::audit::Audit;
use crate::connection::{BoxStream, ConnectionFacts, TlsFacts};
use crate::credentials::{Credentials, Master};
use crate::handle::Drain;
use crate::known_servers::KnownServers;
use crate::machine::StartTls;
use crate::proto::Protocol;
use crate::scram::Decoys;
use crate::server_rules::{ProxyVersion, ServerRules};
use crate::throttle::Throttle;
use crate::{imap, pop3};

/// One accepted connection.
pub struct Connection {
    /// The bytes; TLS is already done where it is implicit.
    pub stream: BoxStream,
    /// What is known of it. The login deadline counts from its acceptance.
    pub facts: Arc<ConnectionFacts>,
    /// What is spoken.
    pub protocol: Protocol,
    /// Policy while there is no TLS channel.
    pub starttls: StartTls,
    /// How long the client may take to its credentials. Bytes do not extend it; our own work and waiting do not count.
    pub login_deadline: Duration,
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
    /// How long a login waits for the end of a hold.
    pub hold_wait: Duration,
    /// What its client is told when that took too long.
    pub hold_text: String,
    /// How long the mailbox server may take for the whole login: `zimbraReverseProxyConnectTimeout`, and no longer than
    /// `mail.server_login_timeout`.
    pub upstream_login: Duration,
    /// Whether the mailbox server's own reasons reach the client (`zimbraReverseProxyPassErrors`).
    pub pass_errors: bool,
    /// Whether an IMAP server is told the client's address (`zimbraReverseProxySendImapId`).
    pub send_imap_id: bool,
    /// Whether a POP3 server is told the client's address (`zimbraReverseProxySendPop3Xoip`).
    pub send_pop3_xoip: bool,
    /// What each mailbox server is told of a client; where they are silent, the two above count.
    pub servers: Arc<ServerRules>,
    /// As whom clients with a certificate are logged in at the mailbox servers. `None`: no certificate stands for a login.
    pub master: Option<Arc<Master>>,
    /// What stands in for the messages of a mailbox server where none is asked.
    pub decoys: Arc<Decoys>,
    /// What mailbox servers have said of themselves before logins.
    pub known: Arc<KnownServers>,
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
    /// It has just come back, and too many wait for it.
    #[error("{0}")]
    Crowded(String),
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

    /// Waits for the turn of a login at the mailbox server of a route, where so many want to get in that it would not
    /// bear them all at once.
    async fn turn(&self, _route: &Route) -> Result<(), ConnectError> {
        Ok(())
    }

    /// Connects to the mailbox server of a route, TLS and its verification included, within the transport's own
    /// time limit. Before anything else it sends a PROXY header of this version for this client.
    async fn connect(
        &self,
        route: &Route,
        header: Option<(ProxyVersion, &ConnectionFacts)>,
    ) -> Result<BoxStream, ConnectError>;

    /// Does the client's side of a TLS handshake on a clear-text stream to the mailbox server of a route (STARTTLS), its
    /// verification included, within the transport's own time limit.
    async fn secure(&self, stream: BoxStream, route: &Route) -> Result<BoxStream, ConnectError>;
}

/// A session that is about to begin: its login was right.
#[derive(Debug, Clone, Copy)]
pub struct NewSession<'a> {
    /// Canonical name of the account.
    pub account: &'a str,
    /// Address of the client.
    pub client: IpAddr,
    /// Host of the mailbox server.
    pub server: &'a str,
    /// What it speaks.
    pub protocol: Protocol,
    /// How many sessions there may be, as the directory says.
    pub max: MaxSessions,
}

/// How many sessions there may be at once.
pub trait SessionLimits: Send + Sync {
    /// Counts one more session, until the value is dropped.
    ///
    /// # Errors
    /// There are as many as there may be; the limit, by its name in the node file or the directory.
    fn enter(&self, session: &NewSession<'_>) -> Result<Box<dyn Send>, &'static str>;
}

/// No limits.
impl SessionLimits for () {
    fn enter(&self, _session: &NewSession<'_>) -> Result<Box<dyn Send>, &'static str> {
        Ok(Box::new(()))
    }
}

/// The process around a session.
#[derive(Clone)]
pub struct SessionEnv {
    /// Where accounts live.
    pub routes: Arc<RouteCache>,
    /// Sockets and TLS.
    pub transport: Arc<dyn Transport>,
    /// Where records go.
    pub audit: Arc<dyn Audit>,
    /// What is remembered of failed logins.
    pub throttle: Arc<Throttle>,
    /// How many sessions there may be.
    pub limits: Arc<dyn SessionLimits>,
    /// How sessions are run.
    pub settings: Arc<Settings>,
    /// Number of the running configuration.
    pub generation: u64,
    /// The shutdown of the node.
    pub drain: watch::Receiver<Drain>,
}

/// What a login needs to know of its connection.
#[derive(Clone)]
pub(crate) struct Facts {
    pub(crate) connection: Arc<ConnectionFacts>,
    pub(crate) protocol: Protocol,
    pub(crate) starttls: StartTls,
}

impl Facts {
    /// The question for the server of an account.
    pub(crate) fn lookup(&self, credentials: &Credentials) -> Lookup {
        let ConnectionFacts { client, tls, .. } = &*self.connection;
        Lookup {
            subject: Subject::Login(credentials.user.clone()),
            service: self.protocol.service(),
            client: client.addr.ip(),
            local: client.local.ip(),
            host: tls.as_ref().and_then(|tls| tls.sni.clone()),
        }
    }
}
