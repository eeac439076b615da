//! Groups of servers as the files of locations write them. What runs is made from them in `upstream/groups.rs`.

use std::time::Duration;

/// A group.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GroupSpec {
    /// Its name.
    pub name: String,
    /// Its servers, at least one.
    pub servers: Vec<GroupServerSpec>,
    /// TLS towards them; `None`: clear text.
    pub tls: Option<GroupTls>,
    /// How it is found out whether one is up.
    pub check: Check,
    /// How long connections to them are kept without use; zero: not at all; `None`: as ever.
    pub keepalive: Option<Duration>,
}

/// A server of a group.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GroupServerSpec {
    /// Host name or address.
    pub host: String,
    /// TCP port.
    pub port: u16,
    /// Its share of the requests, beside that of the others.
    pub weight: u32,
}

/// TLS towards the servers of a group.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GroupTls {
    /// Name for SNI and verification; `None`: the server's host.
    pub name: Option<String>,
    /// Whether the server must prove who it is.
    pub verify: bool,
}

/// How it is found out whether a server is up.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Check {
    /// It takes connections.
    Tcp,
    /// It answers this path with a status below 400.
    Http {
        /// Path and query.
        path: String,
    },
}
