//! TLS towards servers: which certificates are trusted.

use std::io;
use std::path::Path;
use std::pin::Pin;

use mail_proxy::BoxStream;
use openssl::error::ErrorStack;
use openssl::ssl::{SslConnector, SslConnectorBuilder, SslFiletype, SslMethod, SslVerifyMode, SslVersion};
use openssl::x509::X509;
use openssl::x509::store::X509StoreBuilder;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio_openssl::SslStream;

use crate::tls::failure::explain;
use crate::tls::server_sessions::{ServerSessions, SessionName};

/// TLS 1.0 and 1.1 must not be used (RFC 8996).
pub(crate) const OLDEST_UPSTREAM: SslVersion = SslVersion::TLS1_2;

/// Trusts the authorities of the system.
///
/// # Errors
/// They cannot be read.
pub(crate) fn trust_system(builder: &mut SslConnectorBuilder) -> Result<(), ErrorStack> {
    // The library looks where Debian has them. Each distribution has a place of its own for all in one file.
    match openssl_probe::probe().cert_file {
        Some(bundle) => builder.set_ca_file(bundle),
        None => Ok(()),
    }
}

/// The client's side of TLS, towards mailbox servers.
pub(crate) struct UpstreamTrust {
    pub(crate) connector: SslConnector,
    pub(crate) verify: bool,
    sessions: ServerSessions,
}

impl std::fmt::Debug for UpstreamTrust {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("UpstreamTrust").finish_non_exhaustive()
    }
}

impl UpstreamTrust {
    /// Trusts the authorities in `ca_file`, or the system's.
    ///
    /// # Errors
    /// The file cannot be read.
    pub(crate) fn new(ca_file: Option<&Path>, verify: bool) -> Result<Self, ErrorStack> {
        Self::with_certificate(ca_file, verify, None)
    }

    /// The same with a certificate of our own: a file with it, and behind it its chain, and a file with its key.
    ///
    /// # Errors
    /// As [`UpstreamTrust::new`], or the two do not go together.
    pub(crate) fn with_certificate(
        ca_file: Option<&Path>,
        verify: bool,
        own: Option<(&Path, &Path)>,
    ) -> Result<Self, ErrorStack> {
        Self::with_version(ca_file, verify, own, OLDEST_UPSTREAM)
    }

    /// The same with the oldest version of TLS that is spoken.
    ///
    /// # Errors
    /// As [`UpstreamTrust::with_certificate`].
    pub(crate) fn with_version(
        ca_file: Option<&Path>,
        verify: bool,
        own: Option<(&Path, &Path)>,
        oldest: SslVersion,
    ) -> Result<Self, ErrorStack> {
        let mut builder = SslConnector::builder(SslMethod::tls_client())?;
        builder.set_min_proto_version(Some(oldest))?;
        if let Some(path) = ca_file {
            // These authorities and no others: the builder may know some of the system's already.
            let mut store = X509StoreBuilder::new()?;
            let pem = std::fs::read(path).unwrap_or_default();
            for authority in X509::stack_from_pem(&pem)? {
                store.add_cert(authority)?;
            }
            builder.set_cert_store(store.build());
        } else {
            trust_system(&mut builder)?;
        }
        if let Some((certificate, key)) = own {
            builder.set_certificate_chain_file(certificate)?;
            builder.set_private_key_file(key, SslFiletype::PEM)?;
            builder.check_private_key()?;
        }
        builder.set_verify(if verify {
            SslVerifyMode::PEER
        } else {
            SslVerifyMode::NONE
        });
        let sessions = ServerSessions::of(&mut builder);
        Ok(Self {
            connector: builder.build(),
            verify,
            sessions,
        })
    }

    /// Whether the certificates of servers without a rule of their own are verified.
    pub(crate) fn verifies(&self) -> bool {
        self.verify
    }

    /// Does the client's side of a handshake with a server whose certificate must be valid for `name`.
    ///
    /// # Errors
    /// The handshake failed; the text says why, and what the verification found.
    pub(crate) async fn connect(&self, name: &str, stream: BoxStream) -> io::Result<BoxStream> {
        self.connect_as(name, stream, self.verify).await
    }

    /// The same where the server has a rule of its own: whether its certificate is verified.
    ///
    /// # Errors
    /// As [`UpstreamTrust::connect`].
    pub(crate) async fn connect_as(&self, name: &str, stream: BoxStream, verify: bool) -> io::Result<BoxStream> {
        let stream = self.shake_hands(name, stream, verify, None).await?;
        Ok(Box::new(stream))
    }

    /// The same for any stream, with the protocols that are offered (RFC 7301 §3.1), the best first.
    ///
    /// # Errors
    /// As [`UpstreamTrust::connect`].
    pub(crate) async fn shake_hands<S>(
        &self,
        name: &str,
        stream: S,
        verify: bool,
        alpn: Option<&[u8]>,
    ) -> io::Result<SslStream<S>>
    where
        S: AsyncRead + AsyncWrite + Unpin,
    {
        let mut rules = self.connector.configure()?;
        rules.set_verify(match verify {
            true => SslVerifyMode::PEER,
            false => SslVerifyMode::NONE,
        });
        if let Some(alpn) = alpn {
            rules.set_alpn_protos(alpn)?;
        }
        let mut ssl = rules.verify_hostname(verify).into_ssl(name)?;
        let session = SessionName {
            name: name.into(),
            verified: verify,
        };
        let offered = self.sessions.offer(&mut ssl, session)?;
        let mut stream = SslStream::new(ssl, stream)?;
        match Pin::new(&mut stream).connect().await {
            Ok(()) => {
                offered.succeeded();
                Ok(stream)
            }
            Err(error) => {
                let refusal = format!("its certificate is not good for {name}");
                Err(explain(stream.ssl(), error, &refusal))
            }
        }
    }
}
