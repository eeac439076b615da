//! What is known of a client's connection, whatever is spoken on it: mail, HTTP or bytes.

use std::net::SocketAddr;
use std::sync::Arc;

pub use route_cache::lookup::{BoxStream, Stream};
use tokio::time::Instant;

use crate::audit::{Event, Record};
use crate::handle::ConnectionHandle;
use crate::proto::Proto;

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
    /// Protocol inside that was agreed on (ALPN, RFC 7301).
    pub alpn: Option<String>,
    /// Common name of the subject of the client's certificate, if it has shown one that is good.
    pub client_name: Option<String>,
    /// Whose login that certificate may stand for, where certificates stand for logins.
    pub certificate: Option<Arc<CertificateNames>>,
}

/// Whom a client's certificate names.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct CertificateNames {
    /// The subject, as in RFC 4514.
    pub subject: String,
    /// The names that may be those of an account, the one that counts first in front.
    pub accounts: Vec<String>,
}

/// What logs, lists and limits know of a connection. It does not change while the connection lives, except by STARTTLS.
#[derive(Debug, Clone)]
pub struct ConnectionFacts {
    /// Unique on this node, also across restarts.
    pub id: String,
    /// Address of the listener.
    pub listener: Arc<str>,
    /// What is spoken.
    pub proto: Proto,
    /// Who connected.
    pub client: Client,
    /// The TLS channel, if there is one.
    pub tls: Option<TlsFacts>,
    /// When the connection was accepted.
    pub accepted: Instant,
    /// What the process sees of it, and its way to end it.
    pub handle: Arc<ConnectionHandle>,
}

impl ConnectionFacts {
    /// A record of this connection, to be filled in.
    pub fn record(&self, event: Event, generation: u64) -> Record {
        Record {
            conn: self.id.clone(),
            tls: self.tls.as_ref().map(|tls| tls.cipher.clone()),
            sni: self.tls.as_ref().and_then(|tls| tls.sni.clone()),
            generation,
            ..Record::of_client(event, self.proto, &self.listener, self.client.addr, self.client.via)
        }
    }
}
