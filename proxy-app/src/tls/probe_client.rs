//! A client that only wants to see which certificate it is shown: it trusts whatever comes, sends nothing inside, and
//! resumes no session, in which no certificate is shown.

use std::io;
use std::pin::Pin;
use std::time::Duration;

use openssl::error::ErrorStack;
use openssl::ssl::{SslConnector, SslMethod, SslRef, SslVerifyMode};
use openssl::x509::{X509, X509VerifyResult};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::time::timeout;
use tokio_openssl::SslStream;

use crate::tls::failure::explain;
use crate::tls::upstream::trust_system;

/// How long the other side may take to end a connection after us. Ended before it has read all, it would take us for a
/// client that fails.
const GOODBYE: Duration = Duration::from_millis(500);

/// What the other side may still say then: a greeting, the tickets of the session.
const LAST_WORDS: usize = 16 * 1024;

/// The client.
pub(crate) struct ProbeClient {
    connector: SslConnector,
}

/// A certificate as it was shown.
pub(crate) struct PeerCertificate {
    /// The certificate.
    pub leaf: X509,
    /// As the TLS library calls it: `TLSv1.3`.
    pub version: &'static str,
    /// Why the authorities of the system do not vouch for it; `None`: they do.
    pub distrust: Option<String>,
}

impl ProbeClient {
    /// One for any number of handshakes.
    ///
    /// # Errors
    /// The TLS library cannot read the authorities of the system.
    pub(crate) fn new() -> Result<Self, ErrorStack> {
        let mut builder = SslConnector::builder(SslMethod::tls_client())?;
        builder.set_verify(SslVerifyMode::NONE);
        trust_system(&mut builder)?;
        Ok(Self {
            connector: builder.build(),
        })
    }

    /// The certificate that is shown to a client that asks for this name. The caller sets the time limit.
    ///
    /// # Errors
    /// The handshake failed before there was one; the text says why.
    pub(crate) async fn look<S>(&self, name: &str, stream: S) -> io::Result<PeerCertificate>
    where
        S: AsyncRead + AsyncWrite + Unpin,
    {
        let rules = self.connector.configure()?.verify_hostname(false);
        let mut stream = SslStream::new(rules.into_ssl(name)?, stream)?;
        let done = Pin::new(&mut stream).connect().await;
        // Where a certificate of the client is asked for, we have none, and are told so behind the server's own.
        let shown = PeerCertificate::of(stream.ssl());
        match (done, shown) {
            (Ok(()), Some(shown)) => {
                let _whatever_it_says = timeout(GOODBYE, leave(&mut stream)).await;
                Ok(shown)
            }
            (Err(_), Some(shown)) => Ok(shown),
            (Ok(()), None) => Err(io::Error::other("no certificate was shown")),
            (Err(error), None) => Err(explain(stream.ssl(), error, "its certificate is not good")),
        }
    }
}

impl PeerCertificate {
    fn of(ssl: &SslRef) -> Option<Self> {
        let verified = ssl.verify_result();
        Some(Self {
            leaf: ssl.peer_certificate()?,
            version: ssl.version_str(),
            distrust: (verified != X509VerifyResult::OK).then(|| verified.to_string()),
        })
    }
}

async fn leave<S>(stream: &mut SslStream<S>) -> io::Result<()>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    stream.shutdown().await?;
    let (mut buffer, mut heard) = ([0; 512], 0);
    while heard < LAST_WORDS {
        match stream.read(&mut buffer).await? {
            0 => break,
            count => heard += count,
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::net::{IpAddr, Ipv4Addr};
    use std::sync::Arc;

    use arc_swap::ArcSwap;
    use openssl::ssl::SslVersion;

    use super::*;
    use crate::tls::certificate::samples::pair;
    use crate::tls::certificate::{CertKey, fingerprint_text, names_in};
    use crate::tls::certificate_store::CertStore;
    use crate::tls::profile::{InnerProtocol, Profile};
    use crate::tls::{Acceptors, TlsPolicy, TlsState};

    /// The story: a second look at the same name must see a certificate, too, and the one that is shown now.
    #[tokio::test]
    async fn each_look_sees_the_certificate_of_the_moment() {
        let [one, other] = ["a.test", "b.test"].map(|name| {
            let [certificate, key] = pair(5_000, name);
            Arc::new(CertKey::from_pem(certificate.as_bytes(), key.as_bytes()).unwrap())
        });
        let store = Arc::new(ArcSwap::from_pointee(CertStore::new(Some(one.clone()))));
        let policy = TlsPolicy {
            profile: Arc::new(Profile {
                min: SslVersion::TLS1_2,
                max: SslVersion::TLS1_3,
                ciphers: None,
            }),
            rules: std::collections::BTreeMap::new(),
        };
        let acceptors = Acceptors::new(&store, policy, TlsState::default()).unwrap();
        let client = ProbeClient::new().unwrap();
        for expected in [&one, &one, &other] {
            store.store(Arc::new(CertStore::new(Some(expected.clone()))));
            let (ours, theirs) = tokio::io::duplex(64 * 1024);
            let local = IpAddr::V4(Ipv4Addr::LOCALHOST);
            let serve = async {
                let mut stream = acceptors.accept(InnerProtocol::Imap, local, theirs).await?;
                stream.write_all(b"* OK\r\n").await?;
                stream.read(&mut [0; 16]).await
            };
            let (seen, served) = tokio::join!(client.look("mail.a.test", ours), serve);
            let seen = seen.unwrap();
            assert_eq!(fingerprint_text(&seen.leaf), expected.fingerprint_text());
            assert_eq!(names_in(&seen.leaf), expected.names());
            assert!(seen.distrust.is_some() && seen.version.starts_with("TLSv1."));
            // The server saw a client that leaves in order.
            assert_eq!(served.unwrap(), 0);
        }
    }

    #[tokio::test]
    async fn what_is_no_tls_is_said() {
        let client = ProbeClient::new().unwrap();
        let (ours, mut theirs) = tokio::io::duplex(64 * 1024);
        theirs.write_all(b"* OK this is no TLS\r\n").await.unwrap();
        assert!(client.look("a.test", ours).await.is_err());
        let (ours, theirs) = tokio::io::duplex(64 * 1024);
        drop(theirs);
        assert!(client.look("a.test", ours).await.is_err());
    }
}
