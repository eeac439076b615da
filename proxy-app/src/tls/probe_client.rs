//! A client that only wants to see which certificate it is shown: it trusts whatever comes, sends nothing inside, and
//! resumes no session, in which no certificate is shown.

use std::io;
use std::pin::Pin;
use std::time::Duration;

use openssl::error::ErrorStack;
use openssl::ssl::{SslConnector, SslConnectorBuilder, SslMethod, SslRef, SslVerifyMode};
use openssl::x509::{X509, X509VerifyResult};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::time::timeout;
use tokio_openssl::SslStream;

use crate::tls::failure::{explain, is_alert};
use crate::tls::upstream::trust_system;

/// How long the other side may take to end a connection after us. Ended before it has read all, it would take us for a
/// client that fails.
const GOODBYE: Duration = Duration::from_millis(500);

/// What the other side may still say then: a greeting, the tickets of the session.
const LAST_WORDS: usize = 16 * 1024;

/// What servers say that insist on a certificate of their client, as AWS-LC calls it.
const WANTS_OURS: [&str; 3] = [
    "SSLV3_ALERT_HANDSHAKE_FAILURE",
    "SSLV3_ALERT_BAD_CERTIFICATE",
    "TLSV1_ALERT_CERTIFICATE_REQUIRED",
];

/// Where a handshake of TLS 1.2 stands, in the words of AWS-LC, when the server has proved that it has the key of its
/// certificate, and has heard that we have none. In one of TLS 1.3 that is its end.
const PROVED: &str = "TLS client read_session_ticket";

/// The client.
pub(crate) struct ProbeClient {
    connector: SslConnector,
    /// Why the authorities of the system are not known, if they are not.
    no_authorities: Option<String>,
}

/// A certificate as it was shown.
pub(crate) struct PeerCertificate {
    /// The certificate.
    pub leaf: X509,
    /// As the TLS library calls it: `TLSv1.3`.
    pub version: &'static str,
    /// Why the authorities of the system do not vouch for it; `None`: they do.
    pub distrust: Option<String>,
    /// Why the handshake failed behind it: whoever shows it may not have its key. `None`: it is the server's own.
    pub failure: Option<String>,
}

/// A connection that has shown its certificate, and is still to be left.
pub(crate) struct Parting<S>(SslStream<S>);

impl ProbeClient {
    /// One for any number of handshakes.
    ///
    /// # Errors
    /// The TLS library does not work.
    pub(crate) fn new() -> Result<Self, ErrorStack> {
        Self::trusting(trust_system)
    }

    fn trusting(trust: impl FnOnce(&mut SslConnectorBuilder) -> Result<(), ErrorStack>) -> Result<Self, ErrorStack> {
        let mut builder = SslConnector::builder(SslMethod::tls_client())?;
        builder.set_verify(SslVerifyMode::NONE);
        // Without them everything else can still be seen.
        let no_authorities = trust(&mut builder).err();
        let why = |error: ErrorStack| format!("the authorities of the system cannot be read: {error}");
        Ok(Self {
            connector: builder.build(),
            no_authorities: no_authorities.map(why),
        })
    }

    /// The certificate that is shown to a client that asks for this name, and the connection if it is to be left. The
    /// caller sets the time limit.
    ///
    /// # Errors
    /// The handshake failed before there was one; the text says why.
    pub(crate) async fn look<S>(&self, name: &str, stream: S) -> io::Result<(PeerCertificate, Option<Parting<S>>)>
    where
        S: AsyncRead + AsyncWrite + Unpin,
    {
        let rules = self.connector.configure()?.verify_hostname(false);
        let mut stream = SslStream::new(rules.into_ssl(name)?, stream)?;
        let done = Pin::new(&mut stream).connect().await;
        let shown = self.shown(stream.ssl());
        match (done, shown) {
            (Ok(()), Some(shown)) => Ok((shown, Some(Parting(stream)))),
            (Ok(()), None) => Err(io::Error::other("no certificate was shown")),
            (Err(error), shown) => {
                let is_proved = stream.ssl().state_string_long() == PROVED;
                let is_about_ours = is_proved && is_alert(&error, &WANTS_OURS);
                let error = explain(stream.ssl(), error, "its certificate is not good");
                let shown = shown.map(|shown| PeerCertificate {
                    failure: (!is_about_ours).then(|| error.to_string()),
                    ..shown
                });
                shown.map(|shown| (shown, None)).ok_or(error)
            }
        }
    }

    fn shown(&self, ssl: &SslRef) -> Option<PeerCertificate> {
        let verified = ssl.verify_result();
        let distrust = (verified != X509VerifyResult::OK).then(|| verified.to_string());
        Some(PeerCertificate {
            leaf: ssl.peer_certificate()?,
            version: ssl.version_str(),
            distrust: self.no_authorities.clone().or(distrust),
            failure: None,
        })
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> Parting<S> {
    /// Ends the connection in order.
    pub(crate) async fn leave(mut self) {
        let _whatever_it_says = timeout(GOODBYE, leave(&mut self.0)).await;
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
    use openssl::ec::EcKey;
    use openssl::pkey::{PKey, Private};
    use openssl::ssl::{Ssl, SslContext, SslVersion};

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
            let look = async {
                let (seen, parting) = client.look("mail.a.test", ours).await?;
                parting.unwrap().leave().await;
                Ok::<_, io::Error>(seen)
            };
            let (seen, served) = tokio::join!(look, serve);
            let seen = seen.unwrap();
            assert_eq!(seen.failure, None);
            assert_eq!(fingerprint_text(&seen.leaf), expected.fingerprint_text());
            assert_eq!(names_in(&seen.leaf), expected.names());
            assert!(seen.distrust.is_some() && seen.version.starts_with("TLSv1."));
            // The server saw a client that leaves in order.
            assert_eq!(served.unwrap(), 0);
        }
    }

    /// A server with this certificate and key, of this version, that may want certificates of its clients.
    fn server(certificate: &str, key: &PKey<Private>, version: SslVersion, wants: SslVerifyMode) -> Ssl {
        let mut builder = SslContext::builder(SslMethod::tls_server()).unwrap();
        let leaf = X509::from_pem(certificate.as_bytes()).unwrap();
        builder.set_certificate(&leaf).unwrap();
        builder.set_private_key(key).unwrap();
        builder.set_max_proto_version(Some(version)).unwrap();
        builder.set_verify(wants);
        Ssl::new(&builder.build()).unwrap()
    }

    /// What a client sees of it.
    async fn look_at(server: Ssl) -> io::Result<PeerCertificate> {
        let (ours, theirs) = tokio::io::duplex(64 * 1024);
        let mut stream = SslStream::new(server, theirs).unwrap();
        let client = ProbeClient::new().unwrap();
        let serve = async {
            let _failed = Pin::new(&mut stream).accept().await;
            let _gone = stream.read(&mut [0; 16]).await;
        };
        let look = async { client.look("a.test", ours).await.map(|(shown, _)| shown) };
        tokio::join!(look, serve).0
    }

    /// The key of a certificate with this one's public half, and the private half of another one.
    fn forged(certificate: &str) -> PKey<Private> {
        let leaf = X509::from_pem(certificate.as_bytes()).unwrap();
        let public = leaf.public_key().unwrap().ec_key().unwrap();
        let other = EcKey::generate(public.group()).unwrap();
        let mixed = EcKey::from_private_components(public.group(), other.private_key(), public.public_key());
        PKey::from_ec_key(mixed.unwrap()).unwrap()
    }

    #[tokio::test]
    async fn a_certificate_counts_only_with_its_key() {
        let [certificate, key] = pair(5_000, "a.test");
        let key = PKey::private_key_from_pem(key.as_bytes()).unwrap();
        let insists = SslVerifyMode::PEER | SslVerifyMode::FAIL_IF_NO_PEER_CERT;
        for version in [SslVersion::TLS1_2, SslVersion::TLS1_3] {
            let seen = look_at(server(&certificate, &key, version, SslVerifyMode::NONE)).await;
            assert_eq!(seen.unwrap().failure, None);
            // Where a certificate of the client is asked for, we have none, and are told so behind the server's own.
            let seen = look_at(server(&certificate, &key, version, insists)).await;
            assert_eq!(seen.unwrap().failure, None);
            let seen = look_at(server(
                &certificate,
                &forged(&certificate),
                version,
                SslVerifyMode::NONE,
            ))
            .await;
            let failure = seen.unwrap().failure.unwrap();
            assert!(failure.to_lowercase().contains("signature"), "{failure}");
        }
    }

    /// The story: a server that shows a certificate and then goes, with or without a word, has not proved anything.
    #[tokio::test]
    async fn a_server_that_goes_behind_its_certificate_is_not_good() {
        let [certificate, key] = pair(5_000, "a.test");
        let key = PKey::private_key_from_pem(key.as_bytes()).unwrap();
        // A whole message of TLS 1.2 is put into records of its own, so that only the first ones are passed on.
        for (passed, last_word, expected) in [
            (u8::MAX, &[][..], "unexpected end of file"),
            (CERTIFICATE, &[][..], "unexpected end of file"),
            (CERTIFICATE, &HANDSHAKE_FAILURE[..], "alert handshake failure"),
            (CERTIFICATE, &[21, 3, 3, 0, 2, 2, 80][..], "alert internal error"),
        ] {
            let (mut to_server, theirs) = tokio::io::duplex(64 * 1024);
            let (ours, mut to_client) = tokio::io::duplex(64 * 1024);
            let mut stream = SslStream::new(
                server(&certificate, &key, SslVersion::TLS1_2, SslVerifyMode::NONE),
                theirs,
            )
            .unwrap();
            let relay = async move {
                let mut hello = vec![0; 16 * 1024];
                let count = to_client.read(&mut hello).await?;
                to_server.write_all(&hello[..count]).await?;
                let mut flight = vec![0; 16 * 1024];
                let count = to_server.read(&mut flight).await?;
                let first = up_to(&flight[..count], passed);
                to_client.write_all(&first).await?;
                to_client.write_all(last_word).await?;
                to_client.shutdown().await?;
                Ok::<_, io::Error>(to_client)
            };
            let client = ProbeClient::new().unwrap();
            let serve = async { Pin::new(&mut stream).accept().await };
            let look = async { client.look("a.test", ours).await };
            let (seen, _, relayed) = tokio::join!(look, serve, relay);
            let _until_here = relayed.unwrap();
            let failure = seen.unwrap().0.failure.unwrap();
            assert!(failure.contains(expected), "{failure}");
        }
    }

    /// An alert of TLS 1.2 (RFC 5246 §7.2).
    const HANDSHAKE_FAILURE: [u8; 7] = [21, 3, 3, 0, 2, 2, 40];
    /// The message with the certificate (RFC 5246 §7.4).
    const CERTIFICATE: u8 = 11;

    /// The messages of a flight up to the one of this kind, each in a record of its own; all if there is none.
    fn up_to(flight: &[u8], last: u8) -> Vec<u8> {
        let (mut rest, mut messages) = (flight, Vec::new());
        while let [_, _, _, high, low, behind @ ..] = rest {
            let (record, next) = behind.split_at(usize::from(u16::from_be_bytes([*high, *low])));
            messages.extend_from_slice(record);
            rest = next;
        }
        let (mut rest, mut out) = (&messages[..], Vec::new());
        while let [kind, high, middle, low, ..] = rest {
            let length = usize::try_from(u32::from_be_bytes([0, *high, *middle, *low])).unwrap() + 4;
            out.extend_from_slice(&[22, 3, 3]);
            out.extend_from_slice(&u16::try_from(length).unwrap().to_be_bytes());
            out.extend_from_slice(&rest[..length]);
            if *kind == last {
                break;
            }
            rest = &rest[length..];
        }
        out
    }

    #[tokio::test]
    async fn without_authorities_the_certificate_is_still_seen() {
        let broken = ProbeClient::trusting(|builder| builder.set_ca_file("/dev/null")).unwrap();
        let [certificate, key] = pair(5_000, "a.test");
        let key = PKey::private_key_from_pem(key.as_bytes()).unwrap();
        let (ours, theirs) = tokio::io::duplex(64 * 1024);
        let server = server(&certificate, &key, SslVersion::TLS1_3, SslVerifyMode::NONE);
        let mut stream = SslStream::new(server, theirs).unwrap();
        let (seen, _) = tokio::join!(broken.look("a.test", ours), Pin::new(&mut stream).accept());
        let distrust = seen.unwrap().0.distrust.unwrap();
        assert!(
            distrust.starts_with("the authorities of the system cannot be read: "),
            "{distrust}"
        );
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
