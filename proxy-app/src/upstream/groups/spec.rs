//! Groups of servers as the files of locations write them. `upstream/groups.rs` makes the running groups from them.

use std::time::Duration;

/// A group.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct GroupSpec {
    /// Its name.
    pub name: String,
    /// Its servers, at least one.
    pub servers: Vec<GroupServerSpec>,
    /// TLS towards them; `None`: clear text.
    pub tls: Option<GroupTls>,
    /// How it is checked whether one is up.
    pub check: Check,
    /// How long idle connections to them are kept; zero: not at all; `None`: the default.
    pub keepalive: Option<Duration>,
}

/// A server of a group.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct GroupServerSpec {
    /// Host name or address.
    pub host: String,
    /// TCP port.
    pub port: u16,
    /// Its share of the requests, relative to the other servers.
    pub weight: u32,
}

/// TLS towards the servers of a group.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct GroupTls {
    /// Name for SNI and verification; `None`: the server's host.
    pub name: Option<String>,
    /// Whether the server must prove its identity.
    pub verify: bool,
}

/// How it is checked whether a server is up.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Check {
    /// It takes connections.
    Tcp,
    /// It answers this path with a status below 400.
    Http {
        /// Path and query.
        path: String,
    },
}
