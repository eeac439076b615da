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
use openssl::asn1::{Asn1Time, Asn1TimeRef};
use openssl::error::ErrorStack;
use openssl::nid::Nid;
use openssl::sha::Sha256;
use openssl::ssl::{NameType, SniError, Ssl, SslAcceptorBuilder, SslAlert, SslContext, SslRef};
use openssl::x509::{X509Ref, X509VerifyResult};
use tokio_openssl::SslStream;

use crate::tls::certificate_store::{CertStore, SharedCertStore};
use crate::tls::client_certs::{CertMode, ClientCertificate, ClientCerts, PolicyId, PresentedCert};
use crate::tls::failure::explain;
use crate::tls::handshake_counts::HandshakeCounts;
use crate::tls::profile::{HANDSHAKE_INFO, HandshakeInfo, InnerProtocol, Profile};
use crate::tls::record_reader::RecordReader;
use crate::tls::ticket_keys::TicketKeys;
use crate::tls::vhosts::VirtualHosts;

pub(crate) mod asn1_time;
pub(crate) mod certificate;
pub(crate) mod certificate_diff;
pub(crate) mod certificate_store;
pub(crate) mod ciphers;
pub(crate) mod client_certs;
mod contexts;
mod distinguished_name;
pub(crate) mod failure;
pub(crate) mod handshake_counts;
pub(crate) mod host_headers;
pub(crate) mod probe_client;
pub(crate) mod profile;
pub(crate) mod record_reader;
pub(crate) mod revocation;
mod server_sessions;
mod set_crl;
mod set_session;
pub(crate) mod ticket_file;
pub(crate) mod ticket_keys;
mod ticket_method;
mod tickets;
pub(crate) mod upstream;
pub(crate) mod vhosts;

/// TLS with a client.
pub(crate) type ClientTls<S> = SslStream<RecordReader<S>>;

/// How the log says that a client's certificate is refused.
pub(crate) const REFUSAL: &str = "its certificate is not good";

/// How clients are served by TLS.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct TlsPolicy {
    /// Protocol versions and ciphers.
    pub profile: Arc<Profile>,
    /// Which names have which client certificate rules: a session from before such a rule must not be resumed.
    pub rules: BTreeMap<String, PolicyId>,
}

impl TlsPolicy {
    /// A digest of all rules: it changes when those of any name do.
    fn digest(&self) -> [u8; 32] {
        let mut sha = Sha256::new();
        for (name, id) in &self.rules {
            sha.update(&(name.len() as u64).to_be_bytes());
            sha.update(name.as_bytes());
            sha.update(id.octets());
        }
        sha.finish()
    }
}

/// What goes on when acceptors are replaced.
#[derive(Clone, Default)]
pub(crate) struct TlsState {
    /// The keys of session tickets.
    pub tickets: Arc<TicketKeys>,
    /// How many handshakes there were.
    pub handshakes: Arc<HandshakeCounts>,
}

/// The server's side of TLS. A handshake begins in this context, in which tickets are opened and made, and goes on in
/// the context of its certificate.
pub(crate) struct Acceptors {
    policy: TlsPolicy,
    state: TlsState,
    context: SslContext,
}

impl Acceptors {
    /// Acceptors that look into `certificates` at each handshake.
    ///
    /// # Errors
    /// The TLS library does not take the policy.
    pub(crate) fn new(certificates: &SharedCertStore, policy: TlsPolicy, state: TlsState) -> Result<Self, ErrorStack> {
        let context = beginning(certificates, &policy)?;
        Ok(Self {
            context: context.build().into_context(),
            policy,
            state,
        })
    }

    /// What goes on in those that replace these.
    pub(crate) fn state(&self) -> &TlsState {
        &self.state
    }

    /// Protocol versions and ciphers.
    pub(crate) fn profile(&self) -> &Profile {
        &self.policy.profile
    }

    /// Whether these match this policy.
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
    ) -> io::Result<ClientTls<S>> {
        let mut ssl = Ssl::new(&self.context)?;
        let info = HandshakeInfo {
            inner,
            local: local.to_canonical(),
            rules: None,
            tickets: self.state.tickets.clone(),
            scope: None,
        };
        ssl.set_ex_data(*HANDSHAKE_INFO, info);
        let mut stream = SslStream::new(ssl, RecordReader::new(stream))?;
        match Pin::new(&mut stream).accept().await {
            Ok(()) => {
                self.state.handshakes.count(inner, stream.ssl().session_reused());
                certified(stream.ssl()).map(|()| stream)
            }
            Err(error) => Err(explain(stream.ssl(), error, REFUSAL)),
        }
    }
}

/// A resumed session brings along a certificate that was good when it began; where one is required there must be one,
/// and it must not have expired since.
fn certified(ssl: &SslRef) -> io::Result<()> {
    let mode = rules_of(ssl).mode();
    if mode == CertMode::Off {
        return Ok(());
    }
    match ssl.peer_certificate() {
        None if mode == CertMode::On => Err(io::Error::other("no client certificate")),
        None => Ok(()),
        Some(_) if ssl.verify_result() != X509VerifyResult::OK => Err(io::Error::other(REFUSAL)),
        Some(certificate) if is_past(certificate.not_after())? => {
            Err(io::Error::other("its certificate has expired since its session began"))
        }
        Some(_) => Ok(()),
    }
}

fn is_past(time: &Asn1TimeRef) -> Result<bool, ErrorStack> {
    Ok(*time < *Asn1Time::days_from_now(0)?)
}

fn rules_of(ssl: &SslRef) -> Arc<ClientCerts> {
    let info = ssl.ex_data(*HANDSHAKE_INFO).and_then(|info| info.rules.clone());
    info.unwrap_or_else(ClientCerts::off)
}

/// The certificate that the client of a channel has presented.
///
/// # Errors
/// The TLS library has no memory.
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
fn beginning(certificates: &SharedCertStore, policy: &TlsPolicy) -> Result<SslAcceptorBuilder, ErrorStack> {
    let mut builder = policy.profile.context()?;
    ticket_method::install(&mut builder);
    let (certificates, profile, rules) = (certificates.clone(), policy.profile.clone(), policy.digest());
    builder.set_servername_callback(move |ssl, alert| go_on(ssl, alert, &certificates.load(), &profile, &rules));
    Ok(builder)
}

/// Lets a handshake go on in the context of the certificate and the rules for the name that its client asks for.
/// `all_rules` is the digest of those of all names.
fn go_on(
    ssl: &mut SslRef,
    alert: &mut SslAlert,
    store: &CertStore,
    profile: &Arc<Profile>,
    all_rules: &[u8; 32],
) -> Result<(), SniError> {
    let name = requested(ssl);
    let info = ssl.ex_data(*HANDSHAKE_INFO).ok_or(SniError::ALERT_FATAL)?;
    let (inner, local) = (info.inner, info.local);
    let rules = match (inner, &store.vhosts) {
        (InnerProtocol::Web, Some(vhosts)) => rules_for(alert, vhosts, name.as_deref(), local)?,
        (InnerProtocol::Imap | InnerProtocol::Pop3, _) => store.mail_certs.clone().unwrap_or_else(ClientCerts::off),
        _ => ClientCerts::off(),
    };
    let certificate = store.find(name.as_deref(), Some(local));
    let certificate = certificate.ok_or(SniError::ALERT_FATAL)?;
    let context = certificate.context(profile, &rules);
    let chosen = context.and_then(|context| ssl.set_ssl_context(&context));
    let scope = chosen.and_then(|()| certificate.ticket_scope(&rules, all_rules, inner, name.as_deref()));
    let scope = scope.map_err(|error| {
        log::error!("a certificate cannot be used: {error}");
        SniError::ALERT_FATAL
    })?;
    rules.ask(ssl);
    if let Some(info) = ssl.ex_data_mut(*HANDSHAKE_INFO) {
        (info.rules, info.scope) = (Some(rules), Some(scope));
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
    Ok(vhost.client_certs.clone())
}

/// The facts of a channel after its handshake.
pub(crate) fn facts(ssl: &SslRef) -> TlsFacts {
    let cipher = ssl.current_cipher().map_or("", |cipher| cipher.name());
    let shown = ssl
        .peer_certificate()
        .filter(|_| ssl.verify_result() == X509VerifyResult::OK);
    TlsFacts {
        cipher: format!("{} {cipher}", ssl.version_str()),
        sni: ssl.servername(NameType::HOST_NAME).map(str::to_ascii_lowercase),
        alpn: ssl
            .selected_alpn_protocol()
            .map(|name| String::from_utf8_lossy(name).into_owned()),
        client_name: shown.as_deref().and_then(common_name),
        certificate: shown
            .and_then(|certificate| rules_of(ssl).account_names(&certificate))
            .map(Arc::new),
    }
}

/// Whom a certificate names.
fn common_name(certificate: &X509Ref) -> Option<String> {
    let mut names = certificate.subject_name().entries_by_nid(Nid::COMMONNAME);
    names.next()?.data().to_string().ok()
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
    use openssl::ec::{EcGroup, EcKey};
    use openssl::hash::MessageDigest;
    use openssl::nid::Nid;
    use openssl::pkey::{PKey, Private};
    use openssl::ssl::SslVersion;
    use openssl::x509::{X509Builder, X509Name};

    use super::*;
    use crate::tls::certificate::CertKey;

    fn p256() -> PKey<Private> {
        let group = EcGroup::from_curve_name(Nid::X9_62_PRIME256V1).unwrap();
        PKey::from_ec_key(EcKey::generate(&group).unwrap()).unwrap()
    }

    /// A certificate of `subject` that `issuer` vouches for.
    fn certificate(subject: &str, issuer: &str) -> String {
        certificate_of(&p256(), subject, issuer)
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
        builder.sign(key, MessageDigest::sha256()).unwrap();
        String::from_utf8(builder.build().to_pem().unwrap()).unwrap()
    }

    fn pair(name: &str) -> Arc<CertKey> {
        let key = p256();
        let pem = certificate_of(&key, name, "root");
        let key = key.private_key_to_pem_pkcs8().unwrap();
        Arc::new(CertKey::from_pem(pem.as_bytes(), &key).unwrap())
    }

    /// A change of anything else in the directory neither reads certificates again nor throws their contexts away.
    #[test]
    fn a_pair_is_read_again_only_when_its_texts_have_changed() {
        let key = p256();
        let key_pem = key.private_key_to_pem_pkcs8().unwrap();
        let texts = ["one", "two"].map(|name| certificate_of(&key, name, "root"));
        let read = |text: usize, before| CertKey::read(texts[text].as_bytes(), &key_pem, before);
        let first = read(0, None).unwrap();
        assert!(Arc::ptr_eq(&first, &read(0, Some(&first)).unwrap()));
        assert!(!Arc::ptr_eq(&first, &read(1, Some(&first)).unwrap()));
        let other = p256().private_key_to_pem_pkcs8().unwrap();
        assert!(
            CertKey::read(texts[0].as_bytes(), &other, Some(&first)).is_err(),
            "the key has changed, and is not its own"
        );
        assert!(CertKey::read(b"", &key_pem, Some(&first)).is_err());
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
        // Rules that nobody has any more are not kept: each may hold megabytes of lists.
        let mail = ClientCerts::new(CertMode::Optional, &authority, 1).unwrap();
        contexts_after(&usual, &mail);
        let mut store = CertStore::new(Some(default.clone()));
        store.mail_certs = Some(Arc::new(mail));
        store.forget_old_rules();
        assert_eq!(default.contexts.count(), 1, "those of mail");
    }

    /// The story: a session brings along the certificate that its client presented, or none (CVE-2025-23419), and the
    /// name that it began at.
    #[test]
    fn a_ticket_is_good_only_where_everything_is_the_same() {
        let authority = certificate("root", "root");
        let rules = |mode, depth| ClientCerts::new(mode, &authority, depth).unwrap();
        let digest = |names: &[&str]| {
            let profile = Profile {
                min: SslVersion::TLS1_2,
                max: SslVersion::TLS1_3,
                ciphers: None,
            };
            let ids = names
                .iter()
                .map(|name| ((*name).to_owned(), rules(CertMode::On, 1).id()));
            let (profile, rules) = (Arc::new(profile), ids.collect());
            TlsPolicy { profile, rules }.digest()
        };
        let (ours, other) = (pair("ours"), pair("other"));
        let (on, deeper, optional) = (
            rules(CertMode::On, 1),
            rules(CertMode::On, 2),
            rules(CertMode::Optional, 1),
        );
        let (all, more) = (digest(&["a.test"]), digest(&["a.test", "b.test"]));
        let (web, imap) = (InnerProtocol::Web, InnerProtocol::Imap);
        let name = Some("a.test");
        let keys = TicketKeys::default();
        let scope =
            |(pair, rules, all, inner, name): (&CertKey, &ClientCerts, &[u8; 32], InnerProtocol, Option<&str>)| {
                pair.ticket_scope(rules, all, inner, name).unwrap()
            };
        let made_at_web = keys.seal(&scope((&ours, &on, &all, web, name)), b"session").unwrap();
        let made_at_imap = keys.seal(&scope((&ours, &on, &all, imap, name)), b"session").unwrap();
        for (place, of_web, of_imap) in [
            ((&*ours, &on, &all, web, name), true, false),
            ((&ours, &on, &all, web, Some("b.test")), true, false),
            ((&ours, &on, &all, web, None), true, false),
            ((&other, &on, &all, web, name), false, false),
            ((&ours, &deeper, &all, web, name), false, false),
            ((&ours, &optional, &all, web, name), false, false),
            ((&ours, &on, &more, web, name), false, false),
            ((&ours, &on, &all, imap, name), false, true),
            ((&ours, &on, &all, imap, Some("b.test")), false, false),
            ((&ours, &on, &all, imap, None), false, false),
            ((&ours, &on, &all, InnerProtocol::Pop3, name), false, false),
        ] {
            let opens = |ticket| keys.open(&scope(place), ticket).is_some();
            let about = (place.3, place.4);
            assert_eq!(
                (opens(&made_at_web), opens(&made_at_imap)),
                (of_web, of_imap),
                "{about:?}"
            );
        }
        let read_again = CertKey::from_pem(
            &ours.leaf.to_pem().unwrap(),
            &ours.key.private_key_to_pem_pkcs8().unwrap(),
        );
        let elsewhere = scope((&read_again.unwrap(), &on, &all, web, name));
        assert!(
            keys.open(&elsewhere, &made_at_web).is_some(),
            "another node with the same certificate"
        );
    }

    /// Resident memory of this process, in KiB.
    fn resident_kib() -> usize {
        let statm = std::fs::read_to_string("/proc/self/statm").unwrap();
        let pages: usize = statm.split(' ').nth(1).unwrap().parse().unwrap();
        pages * 4
    }

    /// 10,000 domains with a certificate each, and the issuer's behind it, as they come from a directory: at first only
    /// what was read is in memory; each name that is asked for costs one context more, whichever protocols ask.
    #[test]
    fn ten_thousand_certificates_take_memory_within_bounds() {
        const COUNT: usize = 10_000;
        let key = p256();
        let key_pem = key.private_key_to_pem_pkcs8().unwrap();
        let issuer = certificate("issuer", "root");
        let profile = Arc::new(Profile {
            min: SslVersion::TLS1_2,
            max: SslVersion::TLS1_3,
            ciphers: None,
        });
        let at_first = resident_kib();
        let pairs: Vec<CertKey> = (0..COUNT)
            .map(|n| certificate_of(&key, &format!("mail{n}.test"), "issuer") + &issuer)
            .map(|pem| CertKey::from_pem(pem.as_bytes(), &key_pem).unwrap())
            .collect();
        let read = resident_kib();
        assert_eq!(pairs.iter().map(|pair| pair.contexts.count()).sum::<usize>(), 0);
        let off = ClientCerts::off();
        for pair in pairs.iter().chain(&pairs) {
            pair.context(&profile, &off).unwrap();
        }
        let contexts = resident_kib();
        assert_eq!(pairs.iter().map(|pair| pair.contexts.count()).sum::<usize>(), COUNT);
        let each = |from: usize, to: usize| to.saturating_sub(from) as f64 / COUNT as f64;
        println!(
            "KiB for each certificate: read {:.1}, its context {:.1}",
            each(at_first, read),
            each(read, contexts)
        );
        assert!(each(at_first, read) < 16.0, "{at_first} to {read} KiB");
        assert!(each(read, contexts) < 8.0, "{read} to {contexts} KiB");
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
