//! The question ([`Lookup`]) and the answer ([`Route`]).

use std::net::IpAddr;
use std::sync::Arc;

use mail_directory::DirectoryError;

use crate::host_port::HostPort;

/// Which service of the mailbox server is wanted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Service {
    /// IMAP: `zimbraImapBindPort` / `zimbraImapSSLBindPort`.
    Imap,
    /// POP3: `zimbraPop3BindPort` / `zimbraPop3SSLBindPort`.
    Pop3,
    /// Web client, SOAP, REST, DAV, ActiveSync: `zimbraMailPort` / `zimbraMailSSLPort`.
    Web,
    /// Administration: `zimbraAdminPort`, always TLS.
    Admin,
}

/// The subject to find.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Subject {
    /// A login name as typed, without the `/tb` `/wm` `/ni` suffix; qualified (`user@domain`) or not.
    Login(String),
    /// A `zimbraId`, taken from an auth token.
    Id(String),
}

/// The question: which account, for which service, and what is known of the connection.
#[derive(Debug, Clone)]
pub struct Lookup {
    /// The subject to find.
    pub subject: Subject,
    /// For which service.
    pub service: Service,
    /// Address of the client, checked against `zimbraDomainAllowedIPs`.
    pub client: IpAddr,
    /// Address on which the client was accepted; names the domain of unqualified logins through
    /// `zimbraVirtualIPAddress`.
    pub local: IpAddr,
    /// Name the client asked for (SNI, or the Host header without port); names the domain of unqualified
    /// logins through `zimbraVirtualHostname`, before the local address is asked.
    pub host: Option<String>,
}

/// Where an answer came from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Tier {
    /// The cache of this process.
    Memory,
    /// The cache of this process, past its life, because the directory does not answer.
    Stale,
    /// The cache of a previous process, out of the file that keeps it; not asked for again since.
    KeptFile,
    /// The cache of this process, where a mailbox server has named the server, not the directory.
    Referral,
    /// The cache that nodes share.
    Memcached,
    /// The directory, or a lookup service in its place, asked now.
    Directory,
}

impl Tier {
    /// The word in audit records.
    pub fn name(self) -> &'static str {
        match self {
            Self::Memory => "memory",
            Self::Stale => "stale",
            Self::KeptFile => "kept_file",
            Self::Referral => "referral",
            Self::Memcached => "memcached",
            Self::Directory => "directory",
        }
    }
}

/// How to speak to the server.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum UpstreamTls {
    /// Clear text.
    Clear,
    /// TLS from the first byte; the certificate must be good for this name (a host name or an address).
    Implicit {
        /// Name for SNI and verification.
        name: Arc<str>,
    },
    /// TLS after STARTTLS (IMAP) or STLS (POP3), before anything else is said; the certificate must be good for this
    /// name.
    StartTls {
        /// Name for SNI and verification.
        name: Arc<str>,
    },
}

impl UpstreamTls {
    /// The name that the server's certificate must be good for, where TLS is spoken.
    pub fn name(&self) -> Option<&Arc<str>> {
        match self {
            Self::Clear => None,
            Self::Implicit { name } | Self::StartTls { name } => Some(name),
        }
    }
}

/// The answer: the server that holds the account, and how to reach it.
#[derive(Debug, Clone)]
pub struct Route {
    /// Canonical name of the account (its delivery address).
    pub account: Arc<str>,
    /// Name under which to log in at the server: the canonical name, or for an external server the name as
    /// the domain wants it.
    pub login: Arc<str>,
    /// Name of the server entry, or the external host.
    pub server: Arc<str>,
    /// Host name or address to connect to.
    pub host: Arc<str>,
    /// TCP port.
    pub port: u16,
    /// TLS towards the server.
    pub tls: UpstreamTls,
    /// The server is external: it is not in the directory.
    pub external: bool,
    /// Where the answer came from.
    pub tier: Tier,
    /// The directory says that the account is in maintenance (`zimbraAccountStatus`).
    pub maintenance: bool,
    /// How many sessions the account may have at once, where it or its class of service says so
    /// (`porticoAccountMaxSessions`).
    pub max_sessions: Option<u32>,
}

impl Route {
    /// Where to connect to.
    pub fn address(&self) -> HostPort {
        HostPort::new(self.host.clone(), self.port)
    }

    /// The name that the server's certificate must be good for, if TLS is spoken with it.
    pub fn certified_name(&self) -> &str {
        match self.tls.name() {
            Some(name) => name,
            None => certified_name(&self.host, &self.server),
        }
    }
}

/// The name that the server's certificate should have: its host name, or where that is an address the name of
/// its entry, or where that is no host name either the address.
pub(crate) fn certified_name<'a>(host: &'a str, entry: &'a str) -> &'a str {
    let is_address = host.parse::<IpAddr>().is_ok();
    if is_address && is_host_name(entry) { entry } else { host }
}

/// Letters, digits, hyphens and at least one dot; no address.
fn is_host_name(name: &str) -> bool {
    let label = |l: &str| !l.is_empty() && l.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-');
    name.contains('.') && name.split('.').all(label) && name.parse::<IpAddr>().is_err()
}

/// A mailbox server, and how to reach one of its services.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Server {
    /// Name of the server entry, or the external host.
    pub name: Arc<str>,
    /// Host name or address to connect to.
    pub host: Arc<str>,
    /// TCP port.
    pub port: u16,
    /// TLS towards the server.
    pub tls: UpstreamTls,
}

impl Server {
    /// The server of a route.
    pub fn of(route: &Route) -> Self {
        Self {
            name: route.server.clone(),
            host: route.host.clone(),
            port: route.port,
            tls: route.tls.clone(),
        }
    }

    /// Where to connect to.
    pub fn address(&self) -> HostPort {
        HostPort::new(self.host.clone(), self.port)
    }
}

/// A group of mailbox servers of the directory, any of which will do for an unauthenticated web request.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum ServerPool {
    /// Web client, SOAP, REST, DAV: all that take web users who are not known yet.
    Web,
    /// The same servers' administration side.
    Admin,
    /// `zimbraReverseProxyUpstreamEwsServers`
    Ews,
    /// `zimbraReverseProxyUpstreamLoginServers`
    Login,
}

/// Why there is no route. "Unknown account" and "could not ask" are different answers.
#[derive(Debug, Clone, thiserror::Error)]
pub enum RouteError {
    /// No account has this name or id.
    #[error("no such account")]
    UnknownUser,
    /// The account's domain does not admit this client address (`zimbraDomainAllowedIPs`).
    #[error("client address is not allowed on domain {domain}")]
    NotAllowed {
        /// The domain with the list.
        domain: String,
    },
    /// The account exists but the directory does not say how to reach its server.
    #[error("{0}")]
    NoRoute(String),
    /// The directory could not be asked.
    #[error("directory: {0}")]
    DirectoryDown(#[from] DirectoryError),
}
