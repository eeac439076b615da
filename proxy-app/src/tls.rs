//! TLS on both sides: one store of certificates for HTTPS, IMAPS, POP3S and STARTTLS, and the verification of
//! mailbox servers.
//!
//! Certificates are chosen while a handshake runs, from the store of that moment: a changed certificate is used
//! from the next handshake on, and no listener and no session is touched. A handshake goes on in a context of its
//! certificate ([`contexts`]).

use std::collections::BTreeMap;
use std::io;
use std::net::IpAddr;
use std::pin::Pin;
use std::sync::Arc;

use mail_proxy::{Protocol, Stream, TlsFacts};
use openssl::error::ErrorStack;
use openssl::ssl::{NameType, SniError, Ssl, SslAcceptorBuilder, SslAlert, SslContext, SslOptions, SslRef, SslVersion};
use openssl::x509::X509VerifyResult;
use tokio_openssl::SslStream;

use crate::tls::certificate_store::{CertStore, SharedCertStore};
use crate::tls::client_certs::{CertMode, ClientCertificate, ClientCerts, PolicyId, PresentedCert};
use crate::tls::profile::{HANDSHAKE_INFO, HandshakeInfo, InnerProtocol, Profile};
use crate::tls::vhosts::VirtualHosts;

pub(crate) mod certificate;
pub(crate) mod certificate_store;
pub(crate) mod client_certs;
mod contexts;
pub(crate) mod profile;
pub(crate) mod upstream;
pub(crate) mod vhosts;

/// How clients are served by TLS.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct TlsPolicy {
    /// Protocol versions and ciphers.
    pub profile: Arc<Profile>,
    /// Which names have which client certificate rules: a session from before such a rule must not be resumed.
    pub rules: BTreeMap<String, PolicyId>,
}

/// The server's side of TLS. A handshake begins in one of these contexts, which hold the ticket keys, and goes on in
/// the context of its certificate.
pub(crate) struct Acceptors {
    policy: TlsPolicy,
    /// For protocols whose clients may resume a session.
    resuming: SslContext,
    /// For the others.
    fresh: SslContext,
}

impl Acceptors {
    /// Acceptors that look into `certificates` at each handshake.
    ///
    /// # Errors
    /// OpenSSL does not take the policy.
    pub(crate) fn new(certificates: &SharedCertStore, policy: TlsPolicy) -> Result<Self, ErrorStack> {
        let resuming = beginning(certificates, &policy.profile)?;
        let mut fresh = beginning(certificates, &policy.profile)?;
        fresh.set_options(SslOptions::NO_TICKET);
        fresh.set_num_tickets(0)?;
        Ok(Self {
            policy,
            resuming: resuming.build().into_context(),
            fresh: fresh.build().into_context(),
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
        let mut ssl = Ssl::new(match inner.resumes() {
            true => &self.resuming,
            false => &self.fresh,
        })?;
        let local = local.to_canonical();
        let rules = None;
        ssl.set_ex_data(*HANDSHAKE_INFO, HandshakeInfo { inner, local, rules });
        let mut stream = SslStream::new(ssl, stream)?;
        match Pin::new(&mut stream).accept().await {
            Ok(()) => certified(stream.ssl()).map(|()| stream),
            Err(error) => Err(explained(stream.ssl(), error)),
        }
    }
}

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

/// A context for the begin of handshakes, until the name is known that a client asks for.
fn beginning(certificates: &SharedCertStore, profile: &Arc<Profile>) -> Result<SslAcceptorBuilder, ErrorStack> {
    let mut builder = profile.context()?;
    let (certificates, profile) = (certificates.clone(), profile.clone());
    builder.set_servername_callback(move |ssl, alert| go_on(ssl, alert, &certificates.load(), &profile));
    Ok(builder)
}

/// Lets a handshake go on in the context of the certificate and the rules for the name that its client asks for.
fn go_on(ssl: &mut SslRef, alert: &mut SslAlert, store: &CertStore, profile: &Arc<Profile>) -> Result<(), SniError> {
    let name = requested(ssl);
    let info = ssl.ex_data(*HANDSHAKE_INFO).ok_or(SniError::ALERT_FATAL)?;
    let (inner, local) = (info.inner, info.local);
    let rules = match (inner, &store.vhosts) {
        (InnerProtocol::Web, Some(vhosts)) => rules_for(ssl, alert, vhosts, name.as_deref(), local)?,
        _ => ClientCerts::off(),
    };
    let certificate = store.find(name.as_deref(), Some(local));
    let certificate = certificate.ok_or(SniError::ALERT_FATAL)?;
    let context = certificate.context(profile, &rules);
    let chosen = context.and_then(|context| ssl.set_ssl_context(&context));
    chosen.and_then(|()| rules.ask(ssl)).map_err(|error| {
        log::error!("a certificate cannot be used: {error}");
        SniError::ALERT_FATAL
    })?;
    if let Some(info) = ssl.ex_data_mut(*HANDSHAKE_INFO) {
        info.rules = Some(rules);
    }
    Ok(())
}

/// The name that a client asks for, in the form in which names are compared.
fn requested(ssl: &SslRef) -> Option<String> {
    let name = ssl.servername(NameType::HOST_NAME)?;
    Some(name.trim_end_matches('.').to_ascii_lowercase())
}

/// The rules of the virtual host that a web client asks for.
fn rules_for(
    ssl: &SslRef,
    alert: &mut SslAlert,
    vhosts: &VirtualHosts,
    name: Option<&str>,
    local: IpAddr,
) -> Result<Arc<ClientCerts>, SniError> {
    if name.is_some_and(|name| !vhosts.admits(name)) {
        *alert = SslAlert::UNRECOGNIZED_NAME;
        return Err(SniError::ALERT_FATAL);
    }
    let named = name.and_then(|name| vhosts.by_name(name));
    let vhost = named.unwrap_or_else(|| vhosts.of(None, local));
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
    Ok(rules)
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
    use openssl::pkey::{PKey, Private};
    use openssl::x509::X509;
    use openssl::x509::{X509Builder, X509Name};

    use super::*;
    use crate::tls::certificate::CertKey;
    use crate::tls::contexts::Contexts;

    /// A certificate of `subject` that `issuer` vouches for.
    fn certificate(subject: &str, issuer: &str) -> String {
        certificate_of(&PKey::generate_ed25519().unwrap(), subject, issuer)
    }

    fn certificate_of(key: &PKey<Private>, subject: &str, issuer: &str) -> String {
        let name = |name: &str| {
            let mut builder = X509Name::builder().unwrap();
            builder.append_entry_by_text("CN", name).unwrap();
            builder.build()
        };
        let mut builder = X509Builder::new().unwrap();
        let serial = Asn1Integer::from_bn(&BigNum::from_u32(1).unwrap()).unwrap();
        builder.set_serial_number(&serial).unwrap();
        builder.set_subject_name(&name(subject)).unwrap();
        builder.set_issuer_name(&name(issuer)).unwrap();
        builder.set_pubkey(key).unwrap();
        builder.set_not_before(&Asn1Time::days_from_now(0).unwrap()).unwrap();
        builder.set_not_after(&Asn1Time::days_from_now(1).unwrap()).unwrap();
        builder.sign(key, MessageDigest::null()).unwrap();
        String::from_utf8(builder.build().to_pem().unwrap()).unwrap()
    }

    fn pair(name: &str) -> Arc<CertKey> {
        let key = PKey::generate_ed25519().unwrap();
        let leaf = X509::from_pem(certificate_of(&key, name, "root").as_bytes()).unwrap();
        Arc::new(CertKey {
            leaf,
            chain: Vec::new(),
            key,
            contexts: Contexts::default(),
        })
    }

    /// The story: the default certificate of a node is shown for all domains without one, and each of these may have
    /// rules of its own.
    #[test]
    fn a_certificate_has_a_context_for_each_set_of_rules_within_a_limit() {
        let profile = |ciphers: Option<&str>| {
            Arc::new(Profile {
                min: SslVersion::TLS1_2,
                max: SslVersion::TLS1_3,
                ciphers: ciphers.map(str::to_owned),
            })
        };
        let (usual, other) = (profile(None), profile(Some("ECDHE-RSA-AES256-GCM-SHA384")));
        let authority = certificate("root", "root");
        let default = pair("default");
        let contexts_after = |profile: &Arc<Profile>, rules: &ClientCerts| {
            default.context(profile, rules).unwrap();
            default.contexts.count()
        };
        assert_eq!(default.contexts.count(), 0, "none before the first handshake");
        let off = ClientCerts::off();
        for _listener in ["web", "imap", "pop3"] {
            assert_eq!(contexts_after(&usual, &off), 1, "all share it");
        }
        assert_eq!(contexts_after(&profile(None), &off), 1, "an equal profile");
        assert_eq!(contexts_after(&other, &off), 2);
        for depth in 0..100 {
            let rules = ClientCerts::new(CertMode::On, &authority, depth).unwrap();
            let count = usize::try_from(depth).unwrap() + 3;
            assert_eq!(contexts_after(&usual, &rules), count.min(64), "{depth}");
        }
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
