//! TLS on both sides: one store of certificates for HTTPS, IMAPS, POP3S and STARTTLS, and the verification of
//! mailbox servers.
//!
//! Certificates are chosen while a handshake runs, from the store of that moment: a changed certificate is used
//! from the next handshake on, and no listener and no session is touched.

use std::collections::BTreeMap;
use std::io;
use std::net::IpAddr;
use std::pin::Pin;
use std::sync::{Arc, LazyLock};

use mail_proxy::{Protocol, Stream, TlsFacts};
use openssl::error::ErrorStack;
use openssl::ex_data::Index;
use openssl::ssl::{
    AlpnError, NameType, SniError, Ssl, SslAcceptor, SslAlert, SslMethod, SslMode, SslOptions, SslRef,
    SslSessionCacheMode, SslVersion, select_next_proto,
};
use openssl::x509::X509VerifyResult;
use tokio_openssl::SslStream;

use crate::tls::certificate_store::SharedCertStore;
use crate::tls::client_certs::{CertMode, ClientCertificate, ClientCerts, PolicyId, PresentedCert};
use crate::tls::vhosts::VirtualHosts;

pub(crate) mod certificate;
pub(crate) mod certificate_store;
pub(crate) mod client_certs;
pub(crate) mod upstream;
pub(crate) mod vhosts;

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

    /// Whether clients may resume a session. In TLS 1.2 OpenSSL resumes one at any name, which RFC 6066 section 3
    /// forbids, and returns the name that it was begun with instead of the requested one. A web request has its Host;
    /// elsewhere a login without a domain would go to the other name's domain.
    fn resumes(self) -> bool {
        self == Self::Web
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
pub(crate) struct TlsPolicy {
    /// Lowest version.
    pub min: SslVersion,
    /// Highest version.
    pub max: SslVersion,
    /// OpenSSL cipher list for TLS 1.2; `None` for the library's intermediate profile.
    pub ciphers: Option<String>,
    /// Which names have which client certificate rules: a session from before such a rule must not be resumed.
    pub rules: BTreeMap<String, PolicyId>,
}

/// The server's side of TLS, for each kind of content.
pub(crate) struct Acceptors {
    policy: TlsPolicy,
    web: SslAcceptor,
    imap: SslAcceptor,
    pop3: SslAcceptor,
    lookup: SslAcceptor,
    stream: SslAcceptor,
}

impl Acceptors {
    /// Acceptors that look into `certificates` at each handshake.
    ///
    /// # Errors
    /// OpenSSL does not take the policy.
    pub(crate) fn new(certificates: &SharedCertStore, policy: TlsPolicy) -> Result<Self, ErrorStack> {
        Ok(Self {
            web: acceptor(certificates, &policy, InnerProtocol::Web)?,
            imap: acceptor(certificates, &policy, InnerProtocol::Imap)?,
            pop3: acceptor(certificates, &policy, InnerProtocol::Pop3)?,
            lookup: acceptor(certificates, &policy, InnerProtocol::Lookup)?,
            stream: acceptor(certificates, &policy, InnerProtocol::Stream)?,
            policy,
        })
    }

    /// Whether these match this policy. Acceptors that stay let clients resume their sessions.
    pub(crate) fn are_for(&self, policy: &TlsPolicy) -> bool {
        self.policy == *policy
    }

    /// Does the server's side of a handshake with a client that came to this local address. The caller sets the time
    /// limit.
    ///
    /// # Errors
    /// The handshake failed; the text says why.
    pub(crate) async fn accept<S: Stream>(
        &self,
        inner: InnerProtocol,
        local: IpAddr,
        stream: S,
    ) -> io::Result<SslStream<S>> {
        let acceptor = match inner {
            InnerProtocol::Web => &self.web,
            InnerProtocol::Imap => &self.imap,
            InnerProtocol::Pop3 => &self.pop3,
            InnerProtocol::Lookup => &self.lookup,
            InnerProtocol::Stream => &self.stream,
        };
        let mut ssl = Ssl::new(acceptor.context())?;
        let local = local.to_canonical();
        let info = HandshakeInfo { local, rules: None };
        ssl.set_ex_data(*HANDSHAKE_INFO, info);
        let mut stream = SslStream::new(ssl, stream)?;
        match Pin::new(&mut stream).accept().await {
            Ok(()) => certified(stream.ssl()).map(|()| stream),
            Err(error) => Err(explained(stream.ssl(), error)),
        }
    }
}

/// What a handshake knows of its client beside its ClientHello.
struct HandshakeInfo {
    /// The local address of its connection.
    local: IpAddr,
    /// The rules for its certificate, once its ClientHello has been read.
    rules: Option<Arc<ClientCerts>>,
}

static HANDSHAKE_INFO: LazyLock<Index<Ssl, HandshakeInfo>> =
    LazyLock::new(|| Ssl::new_ex_index().expect("OpenSSL has thousands of them, and this is the only one"));

/// What went wrong, with the reason why a client's certificate is not valid.
fn explained(ssl: &SslRef, error: openssl::ssl::Error) -> io::Error {
    match ssl.verify_result() {
        X509VerifyResult::OK => io::Error::other(error),
        verified => io::Error::other(format!("its certificate is not good: {verified}")),
    }
}

/// OpenSSL has checked this already; but a resumed session was checked under other rules, and where a certificate is
/// required there must be one.
fn certified(ssl: &SslRef) -> io::Result<()> {
    let required = rules_of(ssl).mode() == CertMode::On;
    let good = ssl.peer_certificate().is_some() && ssl.verify_result() == X509VerifyResult::OK;
    match required && !good {
        true => Err(io::Error::other("no client certificate")),
        false => Ok(()),
    }
}

fn rules_of(ssl: &SslRef) -> Arc<ClientCerts> {
    let info = ssl.ex_data(*HANDSHAKE_INFO).and_then(|info| info.rules.clone());
    info.unwrap_or_else(ClientCerts::off)
}

/// The certificate that the client of a channel has presented.
///
/// # Errors
/// OpenSSL has no memory.
pub(crate) fn presented(ssl: &SslRef) -> Result<PresentedCert, ErrorStack> {
    let policy = rules_of(ssl);
    let certificate = match policy.mode() {
        CertMode::Off => None,
        CertMode::Optional | CertMode::On => ssl.peer_certificate(),
    };
    let certificate = certificate.map(|certificate| ClientCertificate::of(&certificate).map(Arc::new));
    Ok(PresentedCert {
        policy,
        certificate: certificate.transpose()?,
    })
}

fn acceptor(
    certificates: &SharedCertStore,
    policy: &TlsPolicy,
    inner: InnerProtocol,
) -> Result<SslAcceptor, ErrorStack> {
    let mut builder = SslAcceptor::mozilla_intermediate_v5(SslMethod::tls_server())?;
    builder.set_min_proto_version(Some(policy.min))?;
    builder.set_max_proto_version(Some(policy.max))?;
    if let Some(ciphers) = &policy.ciphers {
        builder.set_cipher_list(ciphers)?;
    }
    builder
        .set_options(SslOptions::CIPHER_SERVER_PREFERENCE | SslOptions::NO_RENEGOTIATION | SslOptions::NO_COMPRESSION);
    if !inner.resumes() {
        builder.set_options(SslOptions::NO_TICKET);
        builder.set_num_tickets(0)?;
    }
    // Buffers of an idle session go back to the allocator; with tickets, a cache of sessions is only memory.
    builder.set_mode(SslMode::RELEASE_BUFFERS);
    builder.set_session_cache_mode(SslSessionCacheMode::OFF);
    builder.set_session_id_context(b"portico")?;
    let store = certificates.clone();
    builder.set_servername_callback(move |ssl, alert| {
        let store = store.load();
        let name = requested(ssl);
        let local = ssl.ex_data(*HANDSHAKE_INFO).map(|info| info.local);
        if let (InnerProtocol::Web, Some(vhosts)) = (inner, &store.vhosts) {
            rule(ssl, alert, vhosts, name.as_deref(), local)?;
        }
        let Some(certificate) = store.find(name.as_deref(), local) else {
            return Err(SniError::ALERT_FATAL);
        };
        certificate.install(ssl).map_err(|error| {
            log::error!("a certificate cannot be used: {error}");
            SniError::ALERT_FATAL
        })
    });
    builder.set_alpn_select_callback(move |_, offered| inner.agree(offered));
    Ok(builder.build())
}

/// The name that a client asks for, in the form in which names are compared.
fn requested(ssl: &SslRef) -> Option<String> {
    let name = ssl.servername(NameType::HOST_NAME)?;
    Some(name.trim_end_matches('.').to_ascii_lowercase())
}

/// Applies the rules of the site that a web client asks for.
fn rule(
    ssl: &mut SslRef,
    alert: &mut SslAlert,
    vhosts: &VirtualHosts,
    name: Option<&str>,
    local: Option<IpAddr>,
) -> Result<(), SniError> {
    if name.is_some_and(|name| !vhosts.admits(name)) {
        *alert = SslAlert::UNRECOGNIZED_NAME;
        return Err(SniError::ALERT_FATAL);
    }
    let named = name.and_then(|name| vhosts.by_name(name));
    let vhost = match (named, local) {
        (Some(vhost), _) => vhost,
        (None, Some(local)) => vhosts.of(None, local),
        (None, None) => return Err(SniError::ALERT_FATAL),
    };
    let rules = vhost.client_certs.clone();
    // A session that was begun for another name, and resumed here, would bring along the certificate presented there,
    // or none (as in CVE-2025-23419). TLS 1.2 binds a session to its name, and returns that name and not the new one; a
    // TLS 1.3 ticket does not contain its name, so with these rules none is issued, and none accepted.
    let bound = ssl.version2() == Some(SslVersion::TLS1_2) && named.is_some();
    if rules.mode() != CertMode::Off && ssl.session_reused() && !bound {
        log::info!("a session from elsewhere is not resumed where client certificates are asked for");
        *alert = SslAlert::HANDSHAKE_FAILURE;
        return Err(SniError::ALERT_FATAL);
    }
    let asking = rules.ask(ssl);
    if let Some(info) = ssl.ex_data_mut(*HANDSHAKE_INFO) {
        info.rules = Some(rules);
    }
    asking.map_err(|error| {
        log::error!("client certificates cannot be asked for: {error}");
        SniError::ALERT_FATAL
    })
}

/// The facts of a channel after its handshake.
pub(crate) fn facts(ssl: &SslRef) -> TlsFacts {
    let cipher = ssl.current_cipher().map_or("", |cipher| cipher.name());
    TlsFacts {
        cipher: format!("{} {cipher}", ssl.version_str()),
        sni: ssl.servername(NameType::HOST_NAME).map(str::to_ascii_lowercase),
    }
}

/// The ALPN names for a mail protocol.
pub(crate) fn inner_protocol(protocol: Protocol) -> InnerProtocol {
    match protocol {
        Protocol::Imap => InnerProtocol::Imap,
        Protocol::Pop3 => InnerProtocol::Pop3,
    }
}

#[cfg(test)]
mod tests {
    use openssl::asn1::Asn1Integer;
    use openssl::asn1::Asn1Time;
    use openssl::bn::BigNum;
    use openssl::hash::MessageDigest;
    use openssl::pkey::PKey;
    use openssl::x509::X509;
    use openssl::x509::{X509Builder, X509Name};

    use super::*;
    use crate::tls::certificate::CertKey;
    use crate::tls::certificate_store::CertStore;

    /// A certificate of `subject` that `issuer` vouches for.
    fn certificate(subject: &str, issuer: &str) -> String {
        let name = |name: &str| {
            let mut builder = X509Name::builder().unwrap();
            builder.append_entry_by_text("CN", name).unwrap();
            builder.build()
        };
        let key = PKey::generate_ed25519().unwrap();
        let mut builder = X509Builder::new().unwrap();
        let serial = Asn1Integer::from_bn(&BigNum::from_u32(1).unwrap()).unwrap();
        builder.set_serial_number(&serial).unwrap();
        builder.set_subject_name(&name(subject)).unwrap();
        builder.set_issuer_name(&name(issuer)).unwrap();
        builder.set_pubkey(&key).unwrap();
        builder.set_not_before(&Asn1Time::days_from_now(0).unwrap()).unwrap();
        builder.set_not_after(&Asn1Time::days_from_now(1).unwrap()).unwrap();
        builder.sign(&key, MessageDigest::null()).unwrap();
        String::from_utf8(builder.build().to_pem().unwrap()).unwrap()
    }

    fn pair(name: &str) -> Arc<CertKey> {
        let key = PKey::generate_ed25519().unwrap();
        let leaf = X509::from_pem(certificate(name, "root").as_bytes()).unwrap();
        Arc::new(CertKey {
            leaf,
            chain: Vec::new(),
            key,
        })
    }

    /// The story: at the address of domain b, the name of domain a, which has no certificate, got b's.
    #[test]
    fn a_name_is_never_shown_another_domains_certificate() {
        let address: IpAddr = "192.0.2.7".parse().unwrap();
        let bare: IpAddr = "192.0.2.8".parse().unwrap();
        let mut store = CertStore::new(Some(pair("default")));
        // Domain a has no certificate, b has one, c comes last.
        store.add("mail.a.test", None);
        store.add("*.wild.a.test", None);
        store.add_address(bare, None);
        store.add("mail.b.test", Some(pair("b")));
        store.add("*.b.test", Some(pair("b")));
        store.add_address(address, Some(pair("b")));
        store.add_address(bare, Some(pair("b")));
        for name in ["*.a.test", "mail.a.test"] {
            store.add(name, Some(pair("c")));
        }
        for (name, local, shown) in [
            (Some("mail.a.test"), Some(address), "default"),
            (Some("mail.a.test"), None, "default"),
            (Some("x.wild.a.test"), Some(address), "default"),
            (Some("x.y.wild.a.test"), Some(address), "default"),
            (Some("other.a.test"), Some(address), "c"),
            (Some("deep.other.a.test"), Some(address), "default"),
            (Some("mail.b.test"), Some(bare), "b"),
            (Some("x.b.test"), None, "b"),
            (Some("x.y.b.test"), Some(address), "default"),
            (Some("nobody.test"), Some(address), "b"),
            (None, Some(address), "b"),
            (Some("nobody.test"), Some(bare), "default"),
            (None, None, "default"),
            (Some("localhost"), Some(address), "b"),
        ] {
            let found = store.find(name, local).unwrap();
            let subject = found.leaf.subject_name().entries().next().unwrap();
            assert_eq!(subject.data().as_slice(), shown.as_bytes(), "{name:?} at {local:?}");
        }
    }

    #[test]
    fn chains_are_put_in_order_where_that_can_be_told() {
        let all = [
            certificate("leaf", "one"),
            certificate("one", "two"),
            certificate("two", "root"),
            certificate("root", "root"),
            certificate("stranger", "elsewhere"),
        ];
        let text = |order: &[usize]| order.iter().map(|at| all[*at].as_str()).collect::<String>();
        for (given, expected) in [
            (&[2, 1, 0][..], Some(&[0, 1, 2][..])),
            (&[3, 0, 2, 1], Some(&[0, 1, 2, 3])),
            (&[1, 0], Some(&[0, 1])),
            (&[0, 1, 2, 3], None),
            (&[0], None),
            // Two leaves, and a chain with a hole.
            (&[1, 0, 4], None),
            (&[2, 0], None),
            (&[], None),
        ] {
            let ordered = CertKey::in_order(&text(given));
            assert_eq!(ordered, expected.map(text), "{given:?}");
        }
        assert_eq!(CertKey::in_order("nonsense"), None);
    }
}
