//! TLS on both sides: one store of certificates for HTTPS, IMAPS, POP3S and STARTTLS, and the verification of
//! mailbox servers.
//!
//! Certificates are chosen while a handshake runs, from the store of that moment: a changed certificate is served
//! with the next handshake, and no listener and no session is touched.

use std::collections::HashMap;
use std::io;
use std::path::Path;
use std::pin::Pin;
use std::sync::Arc;

use arc_swap::ArcSwap;
use mail_proxy::{BoxStream, Protocol, Stream, TlsFacts};
use openssl::asn1::Asn1Time;
use openssl::error::ErrorStack;
use openssl::pkey::{PKey, Private};
use openssl::ssl::{
    AlpnError, NameType, SniError, Ssl, SslAcceptor, SslConnector, SslMethod, SslMode, SslOptions, SslRef,
    SslSessionCacheMode, SslVerifyMode, SslVersion, select_next_proto,
};
use openssl::x509::X509;
use openssl::x509::store::X509StoreBuilder;
use tokio_openssl::SslStream;

/// A certificate, its chain and its key, checked to belong together.
pub struct CertKey {
    leaf: X509,
    chain: Vec<X509>,
    key: PKey<Private>,
}

/// Why a certificate and key cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum CertError {
    /// The certificate text does not parse.
    #[error("the certificate does not parse: {0}")]
    Certificate(ErrorStack),
    /// There is no certificate in it.
    #[error("there is no certificate in it")]
    Empty,
    /// The key text does not parse.
    #[error("the private key does not parse (it must be PEM and not encrypted): {0}")]
    Key(ErrorStack),
    /// The key is another certificate's.
    #[error("the private key does not belong to the certificate")]
    Mismatch,
}

impl CertKey {
    /// Reads PEM texts: leaf first, then its chain; and the key.
    ///
    /// # Errors
    /// They do not parse, or do not belong together.
    pub fn from_pem(certificate: &[u8], key: &[u8]) -> Result<CertKey, CertError> {
        let mut chain = X509::stack_from_pem(certificate).map_err(CertError::Certificate)?;
        if chain.is_empty() {
            return Err(CertError::Empty);
        }
        let leaf = chain.remove(0);
        let key = PKey::private_key_from_pem_callback(key, |_| Ok(0)).map_err(CertError::Key)?;
        if !leaf.public_key().is_ok_and(|public| public.public_eq(&key)) {
            return Err(CertError::Mismatch);
        }
        Ok(CertKey { leaf, chain, key })
    }

    /// When its time was over, if it is.
    pub fn expired(&self) -> Option<String> {
        let now = Asn1Time::days_from_now(0).ok()?;
        (self.leaf.not_after() < now).then(|| self.leaf.not_after().to_string())
    }

    /// Names that the certificate is good for and that none of its own covers.
    pub fn uncovered<'n>(&self, names: impl IntoIterator<Item = &'n str>) -> Vec<&'n str> {
        let own: Vec<String> = self
            .leaf
            .subject_alt_names()
            .into_iter()
            .flatten()
            .filter_map(|name| name.dnsname().map(str::to_ascii_lowercase))
            .collect();
        names
            .into_iter()
            .filter(|name| !own.iter().any(|pattern| covers(pattern, name)))
            .collect()
    }

    /// SHA-256 of the certificate: two are the same if this is.
    pub fn fingerprint(&self) -> Vec<u8> {
        let digest = self.leaf.digest(openssl::hash::MessageDigest::sha256());
        digest.map(|digest| digest.to_vec()).unwrap_or_default()
    }

    /// The certificate itself.
    pub fn leaf(&self) -> &X509 {
        &self.leaf
    }

    fn install(&self, ssl: &mut SslRef) -> Result<(), ErrorStack> {
        ssl.set_certificate(&self.leaf)?;
        ssl.set_private_key(&self.key)?;
        for certificate in &self.chain {
            ssl.add_chain_cert(certificate.clone())?;
        }
        Ok(())
    }
}

/// RFC 6125 §6.4.3: `*` stands for the whole left-most label and nothing else.
fn covers(pattern: &str, name: &str) -> bool {
    let name = name.to_ascii_lowercase();
    match pattern.strip_prefix("*.") {
        Some(parent) => name.split_once('.').is_some_and(|(_, rest)| rest == parent),
        None => pattern == name,
    }
}

/// Names and the certificates to show for them.
#[derive(Default)]
pub struct CertStore {
    /// Shown where no name matches, and to clients that ask for none.
    pub default: Option<Arc<CertKey>>,
    exact: HashMap<String, Arc<CertKey>>,
    wildcard: HashMap<String, Arc<CertKey>>,
    domains: HashMap<String, Arc<CertKey>>,
}

impl CertStore {
    /// A store with a default and nothing else.
    pub fn new(default: Option<Arc<CertKey>>) -> CertStore {
        CertStore {
            default,
            ..CertStore::default()
        }
    }

    /// Shows `certificate` to clients that ask for `name`, which may be `*.something`.
    pub fn add(&mut self, name: &str, certificate: Arc<CertKey>) {
        let name = name.to_ascii_lowercase();
        match name.strip_prefix("*.") {
            Some(parent) => self.wildcard.insert(parent.to_owned(), certificate),
            None => self.exact.insert(name, certificate),
        };
    }

    /// Every certificate, with whose it is: `default`, or a domain.
    pub fn all(&self) -> Vec<(String, &Arc<CertKey>)> {
        let default = self.default.iter().map(|pair| ("default".to_owned(), pair));
        let domains = self.domains.iter().map(|(name, pair)| (format!("domain {name}"), pair));
        default.chain(domains).collect()
    }

    /// Notes which certificate a domain has.
    pub fn keep(&mut self, domain: &str, certificate: Arc<CertKey>) {
        self.domains.insert(domain.to_owned(), certificate);
    }

    /// The certificate that was noted for a domain.
    pub fn of_domain(&self, domain: &str) -> Option<Arc<CertKey>> {
        self.domains.get(domain).cloned()
    }

    /// The certificate for a requested name: exact, then wildcard, then the default.
    fn find(&self, name: Option<&str>) -> Option<&Arc<CertKey>> {
        let named = name.and_then(|name| {
            let name = name.trim_end_matches('.').to_ascii_lowercase();
            self.exact
                .get(&name)
                .or_else(|| self.wildcard.get(name.split_once('.')?.1))
        });
        named.or(self.default.as_ref())
    }
}

/// The store that all listeners share.
pub type Certificates = Arc<ArcSwap<CertStore>>;

/// What a TLS listener speaks inside; its ALPN names (RFC 7301; IANA registry for `imap` and `pop3`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Inside {
    /// `h2` and `http/1.1`.
    Web,
    /// `imap`
    Imap,
    /// `pop3`
    Pop3,
    /// `http/1.1`
    Lookup,
}

impl Inside {
    /// In wire format, by preference.
    fn alpn(self) -> &'static [u8] {
        match self {
            Inside::Web => b"\x02h2\x08http/1.1",
            Inside::Imap => b"\x04imap",
            Inside::Pop3 => b"\x04pop3",
            Inside::Lookup => b"\x08http/1.1",
        }
    }
}

/// Protocol versions and ciphers towards clients (`zimbraReverseProxySSLProtocols`, `…SSLCiphers`).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TlsPolicy {
    /// Lowest version.
    pub min: SslVersion,
    /// Highest version.
    pub max: SslVersion,
    /// OpenSSL cipher list for TLS 1.2; `None` for the library's intermediate profile.
    pub ciphers: Option<String>,
}

/// The server's side of TLS, for each kind of content.
pub struct Acceptors {
    web: SslAcceptor,
    imap: SslAcceptor,
    pop3: SslAcceptor,
    lookup: SslAcceptor,
}

impl Acceptors {
    /// Acceptors that look into `certificates` at each handshake.
    ///
    /// # Errors
    /// OpenSSL does not take the policy.
    pub fn new(certificates: &Certificates, policy: &TlsPolicy) -> Result<Acceptors, ErrorStack> {
        Ok(Acceptors {
            web: acceptor(certificates, policy, Inside::Web)?,
            imap: acceptor(certificates, policy, Inside::Imap)?,
            pop3: acceptor(certificates, policy, Inside::Pop3)?,
            lookup: acceptor(certificates, policy, Inside::Lookup)?,
        })
    }

    /// Does the server's side of a handshake. The caller sets the time limit.
    ///
    /// # Errors
    /// The handshake failed; the text says why.
    pub async fn accept<S: Stream>(&self, inside: Inside, stream: S) -> io::Result<SslStream<S>> {
        let acceptor = match inside {
            Inside::Web => &self.web,
            Inside::Imap => &self.imap,
            Inside::Pop3 => &self.pop3,
            Inside::Lookup => &self.lookup,
        };
        let ssl = Ssl::new(acceptor.context())?;
        let mut stream = SslStream::new(ssl, stream)?;
        Pin::new(&mut stream).accept().await.map_err(io::Error::other)?;
        Ok(stream)
    }
}

fn acceptor(certificates: &Certificates, policy: &TlsPolicy, inside: Inside) -> Result<SslAcceptor, ErrorStack> {
    let mut builder = SslAcceptor::mozilla_intermediate_v5(SslMethod::tls_server())?;
    builder.set_min_proto_version(Some(policy.min))?;
    builder.set_max_proto_version(Some(policy.max))?;
    if let Some(ciphers) = &policy.ciphers {
        builder.set_cipher_list(ciphers)?;
    }
    builder
        .set_options(SslOptions::CIPHER_SERVER_PREFERENCE | SslOptions::NO_RENEGOTIATION | SslOptions::NO_COMPRESSION);
    // Buffers of an idle session go back to the allocator; with tickets, a cache of sessions is only memory.
    builder.set_mode(SslMode::RELEASE_BUFFERS);
    builder.set_session_cache_mode(SslSessionCacheMode::OFF);
    builder.set_session_id_context(b"portico")?;
    let store = certificates.clone();
    builder.set_servername_callback(move |ssl, _| {
        let store = store.load();
        let name = ssl.servername(NameType::HOST_NAME).map(str::to_owned);
        let Some(certificate) = store.find(name.as_deref()) else {
            return Err(SniError::ALERT_FATAL);
        };
        certificate.install(ssl).map_err(|error| {
            log::error!("a certificate cannot be used: {error}");
            SniError::ALERT_FATAL
        })
    });
    // A client that asks for another protocol has been lured to the wrong port (ALPACA); one that asks for
    // nothing is welcome.
    builder.set_alpn_select_callback(move |_, offered| {
        select_next_proto(inside.alpn(), offered).ok_or(AlpnError::ALERT_FATAL)
    });
    Ok(builder.build())
}

/// What is known of a channel after its handshake.
pub fn facts(ssl: &SslRef) -> TlsFacts {
    let cipher = ssl.current_cipher().map_or("", |cipher| cipher.name());
    TlsFacts {
        cipher: format!("{} {cipher}", ssl.version_str()),
        sni: ssl.servername(NameType::HOST_NAME).map(str::to_ascii_lowercase),
    }
}

/// The ALPN names for a mail protocol.
pub fn inside(protocol: Protocol) -> Inside {
    match protocol {
        Protocol::Imap => Inside::Imap,
        Protocol::Pop3 => Inside::Pop3,
    }
}

/// The client's side of TLS, towards mailbox servers.
pub struct UpstreamTrust {
    connector: SslConnector,
    verify: bool,
}

impl UpstreamTrust {
    /// Trusts the authorities in `ca_file`, or the system's.
    ///
    /// # Errors
    /// The file cannot be read.
    pub fn new(ca_file: Option<&Path>, verify: bool) -> Result<UpstreamTrust, ErrorStack> {
        let mut builder = SslConnector::builder(SslMethod::tls_client())?;
        if let Some(path) = ca_file {
            // These authorities and no others: the builder has loaded the system's already.
            let mut store = X509StoreBuilder::new()?;
            let pem = std::fs::read(path).unwrap_or_default();
            for authority in X509::stack_from_pem(&pem)? {
                store.add_cert(authority)?;
            }
            builder.set_cert_store(store.build());
        }
        builder.set_verify(if verify {
            SslVerifyMode::PEER
        } else {
            SslVerifyMode::NONE
        });
        builder.set_mode(SslMode::RELEASE_BUFFERS);
        Ok(UpstreamTrust {
            connector: builder.build(),
            verify,
        })
    }

    /// Does the client's side of a handshake with a server that must prove to be `name`.
    ///
    /// # Errors
    /// The handshake failed; the text says why, and what the verification found.
    pub async fn connect(&self, name: &str, stream: BoxStream) -> io::Result<BoxStream> {
        let ssl = self
            .connector
            .configure()?
            .verify_hostname(self.verify)
            .into_ssl(name)?;
        let mut stream = SslStream::new(ssl, stream)?;
        match Pin::new(&mut stream).connect().await {
            Ok(()) => Ok(Box::new(stream)),
            Err(error) => {
                let verified = stream.ssl().verify_result();
                Err(match verified == openssl::x509::X509VerifyResult::OK {
                    true => io::Error::other(error),
                    false => io::Error::other(format!("its certificate is not good for {name}: {verified}")),
                })
            }
        }
    }
}
