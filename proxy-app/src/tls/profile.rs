//! What all TLS contexts towards clients have in common: versions, ciphers, options, and what is spoken inside.
//!
//! Which context a handshake uses is decided in [`crate::tls`].

use std::net::IpAddr;
use std::sync::{Arc, LazyLock};

use openssl::error::ErrorStack;
use openssl::ex_data::Index;
use openssl::ssl::{
    AlpnError, Ssl, SslAcceptor, SslAcceptorBuilder, SslMethod, SslOptions, SslSessionCacheMode, SslVersion,
    select_next_proto,
};

use mail_directory::Secret;

use crate::tls::client_certs::ClientCerts;
use crate::tls::ticket_keys::TicketKeys;
use crate::tls::tickets::TicketScope;

/// How keys are agreed, the best first (RFC 8446 section 4.2.7). The first is hybrid: recorded traffic stays secret even
/// when there are quantum computers (draft-ietf-tls-ecdhe-mlkem). A client that does not know it gets the next one.
const GROUPS: &str = "X25519MLKEM768:X25519:P-256:P-384";

/// What a TLS listener speaks inside; its ALPN names (RFC 7301; IANA registry for `imap` and `pop3`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum InnerProtocol {
    /// `h2`, `http/1.1`, and `http/1.0` for clients that know nothing else.
    Web,
    /// `imap`
    Imap,
    /// `pop3`
    Pop3,
    /// `http/1.1`
    Lookup,
    /// Not known, so nothing is agreed.
    Stream,
}

impl InnerProtocol {
    /// All there are, in their order.
    pub(crate) const ALL: [Self; 5] = [Self::Web, Self::Imap, Self::Pop3, Self::Lookup, Self::Stream];

    /// Its name in metrics.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Web => "http",
            Self::Imap => "imap",
            Self::Pop3 => "pop3",
            Self::Lookup => "lookup",
            Self::Stream => "stream",
        }
    }

    /// In wire format, by preference.
    fn alpn(self) -> &'static [u8] {
        match self {
            Self::Web => b"\x02h2\x08http/1.1\x08http/1.0",
            Self::Imap => b"\x04imap",
            Self::Pop3 => b"\x04pop3",
            Self::Lookup => b"\x08http/1.1",
            Self::Stream => b"",
        }
    }

    /// Whether a session is resumed at the name only that it began with (RFC 6066 section 3). A web request has its
    /// Host; elsewhere the name decides on the domain of a login without one.
    pub(crate) fn keeps_to_name(self) -> bool {
        self != Self::Web
    }

    /// Chooses from an offer. A client that offers only other protocols has been lured to the wrong port (ALPACA); one
    /// without an offer is accepted.
    fn agree(self, offered: &[u8]) -> Result<&[u8], AlpnError> {
        match self {
            // Any protocol may be right here except a browser's.
            Self::Stream => match select_next_proto(Self::Web.alpn(), offered) {
                Some(_) => Err(AlpnError::ALERT_FATAL),
                None => Err(AlpnError::NOACK),
            },
            known => select_next_proto(known.alpn(), offered).ok_or(AlpnError::ALERT_FATAL),
        }
    }
}

/// Protocol versions and ciphers towards clients (`zimbraReverseProxySSLProtocols`, `…SSLCiphers`).
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Profile {
    /// Lowest version.
    pub min: SslVersion,
    /// Highest version.
    pub max: SslVersion,
    /// OpenSSL cipher list for TLS 1.2; `None` for the library's intermediate profile.
    pub ciphers: Option<String>,
}

impl Profile {
    /// A context without a certificate: versions, ciphers, groups. It agrees on what is spoken inside by the [`HandshakeInfo`] of each handshake,
    /// so that all listeners can use it.
    ///
    /// # Errors
    /// The TLS library does not take the ciphers or the versions.
    pub(crate) fn context(&self) -> Result<SslAcceptorBuilder, ErrorStack> {
        let mut builder = SslAcceptor::mozilla_intermediate_v5(SslMethod::tls_server())?;
        // The profile refuses old versions by options of their own.
        builder.clear_options(SslOptions::NO_TLSV1 | SslOptions::NO_TLSV1_1);
        builder.set_min_proto_version(Some(self.min))?;
        builder.set_max_proto_version(Some(self.max))?;
        if let Some(ciphers) = &self.ciphers {
            builder.set_cipher_list(ciphers)?;
        }
        builder.set_groups_list(GROUPS)?;
        builder.set_options(SslOptions::CIPHER_SERVER_PREFERENCE | SslOptions::NO_RENEGOTIATION);
        // With tickets (`ticket_method`), a cache of sessions is only memory.
        builder.set_session_cache_mode(SslSessionCacheMode::OFF);
        builder.set_alpn_select_callback(|ssl, offered| match ssl.ex_data(*HANDSHAKE_INFO) {
            Some(info) => info.inner.agree(offered),
            None => Err(AlpnError::ALERT_FATAL),
        });
        Ok(builder)
    }
}

/// What a handshake knows of its client beside its ClientHello.
pub(crate) struct HandshakeInfo {
    /// What its listener speaks inside.
    pub inner: InnerProtocol,
    /// The local address of its connection.
    pub local: IpAddr,
    /// The rules for its certificate, once its ClientHello has been read.
    pub rules: Option<Arc<ClientCerts>>,
    /// The keys of session tickets. Not those of this moment: a session that lasts for days would keep old ones.
    pub tickets: Arc<TicketKeys>,
    /// Which tickets are good here, once its ClientHello has been read.
    pub scope: Option<TicketScope>,
}

impl HandshakeInfo {
    /// A ticket with the session of this handshake; `None` if it cannot be made.
    pub(super) fn seal(&self, session: &[u8]) -> Option<Vec<u8>> {
        self.tickets.seal(self.scope.as_ref()?, session).ok()
    }

    /// The session in a ticket, if it is good here.
    pub(super) fn open(&self, ticket: &[u8]) -> Option<Secret<Vec<u8>>> {
        self.tickets.open(self.scope.as_ref()?, ticket)
    }
}

/// Where a handshake keeps its [`HandshakeInfo`].
pub(crate) static HANDSHAKE_INFO: LazyLock<Index<Ssl, HandshakeInfo>> =
    LazyLock::new(|| Ssl::new_ex_index().expect("there are thousands of them, and this is the only one"));
