//! Client certificates: what a virtual host requires, what a client has presented, and the headers for upstreams.
//!
//! The handshake itself is in [`crate::tls`]; which virtual host has which rules is in [`crate::tls::vhosts`]. The
//! account of a certificate is not looked up here.

use std::fmt::Write as _;
use std::sync::{Arc, LazyLock};

use http::{HeaderName, HeaderValue};
use mail_directory::tls_words::reasons;
use mail_proxy::CertificateNames;
use openssl::error::ErrorStack;
use openssl::hash::MessageDigest;
use openssl::nid::Nid;
use openssl::sha::Sha256;
use openssl::ssl::{SslContextBuilder, SslRef, SslVerifyMode};
use openssl::x509::store::X509StoreBuilder;
use openssl::x509::verify::X509VerifyFlags;
use openssl::x509::{X509, X509Ref, X509StoreContextRef, X509VerifyResult};
use openssl_sys::X509_V_ERR_UNABLE_TO_GET_CRL;
use percent_encoding::{NON_ALPHANUMERIC, percent_encode};

use super::distinguished_name::name;
use super::revocation::RevocationLists;
use super::set_crl;

/// Most authorities in one list: their names are all sent in the handshake, which has 16 KiB for them.
const AUTHORITIES_MAX: usize = 64;
/// Certificates between an authority of mail listeners and a client's, at most, as Zimbra has it for the web.
const MAIL_DEPTH: u32 = 10;
/// Longest certificate that is passed on, encoded: Jetty takes 8 KiB for all headers of a request together, and some
/// room must be left for the others.
const CERTIFICATE_MAX: usize = 6 * 1024;

/// Whether a virtual host asks for certificates (`zimbraReverseProxyClientCertMode`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum CertMode {
    /// No.
    Off,
    /// It asks; a client may present none, but no invalid one.
    Optional,
    /// Without a valid one the handshake fails.
    On,
}

/// Id of the rules of a virtual host: equal rules have equal ids.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) struct PolicyId([u8; 32]);

impl PolicyId {
    /// Octets that are equal where ids are.
    pub(crate) fn octets(&self) -> &[u8; 32] {
        &self.0
    }
}

/// The rules of a virtual host for certificates of clients.
#[derive(Debug, Clone)]
pub(crate) struct ClientCerts {
    id: PolicyId,
    mode: CertMode,
    authorities: Vec<X509>,
    depth: u32,
    names: Vec<NameSource>,
    revoked: Arc<RevocationLists>,
}

/// Where in a certificate the address of its account is looked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum NameSource {
    /// An address of the subject's alternative names, or the subject's `emailAddress`.
    Email,
    /// The subject's common name.
    CommonName,
}

/// Names that are looked for in one certificate, at most: each is asked for in the directory.
const NAMES: usize = 8;

/// Why rules cannot be used.
#[derive(Debug, thiserror::Error)]
pub(crate) enum RulesError {
    /// A mode without authorities.
    #[error("client certificates are asked for, but no authority is named")]
    NoAuthority,
    /// The list does not parse.
    #[error("the authorities do not parse: {}", reasons(&.0.to_string()))]
    Authorities(ErrorStack),
    /// More than a handshake can carry.
    #[error("{0} authorities are too many: at most {AUTHORITIES_MAX} fit into a handshake")]
    TooMany(usize),
}

impl ClientCerts {
    /// Rules with these authorities (PEM), and at most `depth` certificates between them and the client's.
    ///
    /// # Errors
    /// The mode needs authorities, and there are none that can be used.
    pub(crate) fn new(mode: CertMode, authorities: &str, depth: u32) -> Result<Self, RulesError> {
        if mode == CertMode::Off {
            return Ok(Self::off().as_ref().clone());
        }
        let authorities = X509::stack_from_pem(authorities.as_bytes()).map_err(RulesError::Authorities)?;
        match authorities.len() {
            0 => Err(RulesError::NoAuthority),
            n if n > AUTHORITIES_MAX => Err(RulesError::TooMany(n)),
            _ => Ok(Self::of(mode, authorities, depth)),
        }
    }

    /// No certificates.
    pub(crate) fn off() -> Arc<Self> {
        static OFF: LazyLock<Arc<ClientCerts>> =
            LazyLock::new(|| Arc::new(ClientCerts::of(CertMode::Off, Vec::new(), 0)));
        OFF.clone()
    }

    /// Rules that no certificate fulfils.
    pub(crate) fn refuse_all(mode: CertMode) -> Self {
        Self::of(mode, Vec::new(), 0)
    }

    fn of(mode: CertMode, authorities: Vec<X509>, depth: u32) -> Self {
        let mut hash = Sha256::new();
        hash.update(&[mode as u8]);
        hash.update(&depth.to_be_bytes());
        for authority in &authorities {
            // A certificate that cannot be digested does not exist; an empty digest would only join what is equal.
            let digest = authority.digest(MessageDigest::sha256());
            hash.update(digest.as_deref().unwrap_or_default());
        }
        Self {
            id: PolicyId(hash.finish()),
            mode,
            authorities,
            depth,
            names: Vec::new(),
            revoked: Arc::default(),
        }
    }

    /// The same rules, but what these lists have is no longer good.
    pub(crate) fn with_lists(self, revoked: &Arc<RevocationLists>) -> Self {
        let own = Self::of(self.mode, self.authorities, self.depth);
        let (names, revoked) = (self.names, revoked.clone());
        if own.mode == CertMode::Off || revoked.lists().is_empty() {
            return Self { names, ..own };
        }
        let mut hash = Sha256::new();
        hash.update(own.id.octets());
        hash.update(&revoked.digest());
        let id = PolicyId(hash.finish());
        Self {
            id,
            names,
            revoked,
            ..own
        }
    }

    /// Authorities of which there is no list, though there are lists.
    pub(crate) fn without_list(&self) -> Vec<String> {
        if self.revoked.lists().is_empty() {
            return Vec::new();
        }
        let without = self
            .authorities
            .iter()
            .filter(|one| !self.revoked.has_one_by(one.subject_name()));
        without.map(|authority| name(authority.subject_name()).0).collect()
    }

    /// The rules of mail listeners: a client may show a certificate, which then names its account.
    ///
    /// # Errors
    /// There are no authorities that can be used.
    pub(crate) fn of_mail(authorities: &str, names: Vec<NameSource>) -> Result<Self, RulesError> {
        let rules = Self::new(CertMode::Optional, authorities, MAIL_DEPTH)?;
        Ok(Self { names, ..rules })
    }

    /// The addresses in a certificate that may be those of accounts. A name without domain is none: the domain would be
    /// that of the host name that the client asks for.
    pub(crate) fn account_names(&self, certificate: &X509Ref) -> Option<CertificateNames> {
        let mut accounts: Vec<String> = Vec::new();
        for source in &self.names {
            accounts.extend(source.names(certificate).into_iter().filter(|name| name.contains('@')));
        }
        accounts.truncate(NAMES);
        let subject = name(certificate.subject_name()).0;
        (!self.names.is_empty()).then_some(CertificateNames { subject, accounts })
    }

    /// Id of these rules.
    pub(crate) fn id(&self) -> PolicyId {
        self.id
    }

    /// Whether certificates are asked for.
    pub(crate) fn mode(&self) -> CertMode {
        self.mode
    }

    /// Makes a context know the authorities. Whether it asks is decided for each handshake.
    ///
    /// # Errors
    /// The TLS library has no memory.
    pub(crate) fn trust(&self, context: &mut SslContextBuilder) -> Result<(), ErrorStack> {
        let mut store = X509StoreBuilder::new()?;
        for authority in &self.authorities {
            store.add_cert(authority.clone())?;
            context.add_client_ca(authority)?;
        }
        for list in self.revoked.lists() {
            set_crl::add(&mut store, list)?;
        }
        if !self.revoked.lists().is_empty() {
            store.set_flags(X509VerifyFlags::CRL_CHECK | X509VerifyFlags::CRL_CHECK_ALL)?;
        }
        context.set_cert_store(store.build());
        Ok(())
    }

    /// Where a session may be resumed that began here: wherever this is the same. A session brings along the certificate
    /// that its client presented, or none (CVE-2025-23419), and the one that was `shown` to it, whatever name the client
    /// asks for later (RFC 6066 §3, RFC 8446 §4.6.1); so it is only resumed under the same rules, and where the same
    /// certificate is shown.
    ///
    /// # Errors
    /// The TLS library has no memory.
    pub(crate) fn session_scope(&self, shown: &X509Ref) -> Result<[u8; 32], ErrorStack> {
        let mut hash = Sha256::new();
        hash.update(&self.id.0);
        hash.update(&shown.digest(MessageDigest::sha256())?);
        Ok(hash.finish())
    }

    /// Makes a handshake that has not answered yet ask for a certificate by these rules. Its context knows the
    /// authorities.
    pub(crate) fn ask(&self, ssl: &mut SslRef) {
        let verify = match self.mode {
            CertMode::Off => return,
            CertMode::Optional => SslVerifyMode::PEER,
            CertMode::On => SslVerifyMode::PEER | SslVerifyMode::FAIL_IF_NO_PEER_CERT,
        };
        ssl.param_mut().set_depth(i32::try_from(self.depth).unwrap_or(i32::MAX));
        match self.revoked.lists().is_empty() {
            true => ssl.set_verify(verify),
            false => {
                let revoked = self.revoked.clone();
                ssl.set_verify_callback(verify, move |is_good, context| may_go_on(&revoked, is_good, context));
            }
        }
    }
}

/// Goes on where an authority has no list at all: lists of one domain's authority must not shut out the clients of
/// all others. One that is over, or not for this certificate, is not good enough.
fn may_go_on(revoked: &RevocationLists, is_good: bool, context: &mut X509StoreContextRef) -> bool {
    if is_good || context.error().as_raw() != X509_V_ERR_UNABLE_TO_GET_CRL {
        return is_good;
    }
    let has_none = context
        .current_cert()
        .is_some_and(|certificate| !revoked.has_one_by(certificate.issuer_name()));
    if has_none {
        context.set_error(X509VerifyResult::OK);
    }
    has_none
}

impl NameSource {
    fn names(self, certificate: &X509Ref) -> Vec<String> {
        let of_subject = |nid| {
            let entries = certificate.subject_name().entries_by_nid(nid);
            let texts = entries.filter_map(|entry| entry.data().to_string().ok());
            texts.collect::<Vec<String>>()
        };
        match self {
            Self::CommonName => of_subject(Nid::COMMONNAME),
            Self::Email => {
                let alternative = certificate.subject_alt_names().into_iter().flatten();
                let mut names: Vec<String> = alternative.filter_map(|name| name.email().map(str::to_owned)).collect();
                names.extend(of_subject(Nid::PKCS9_EMAILADDRESS));
                names
            }
        }
    }
}

/// What a client has presented on a connection.
#[derive(Debug, Clone)]
pub(crate) struct PresentedCert {
    /// The rules by which it was asked.
    pub policy: Arc<ClientCerts>,
    /// Its certificate, which is valid by these rules.
    pub certificate: Option<Arc<ClientCertificate>>,
}

/// A client's certificate, as headers pass it on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct ClientCertificate {
    /// Subject, as in RFC 4514.
    pub subject: String,
    /// Whether the subject is complete: a very long one is cut.
    pub is_named_whole: bool,
    /// Issuer, as in RFC 4514.
    pub issuer: String,
    /// Serial number, in hexadecimal.
    pub serial: String,
    /// SHA-256 of it, in hexadecimal.
    pub fingerprint: String,
    /// All of it: PEM with everything but letters and digits percent-encoded; `None` if that is too long for a header.
    pub pem: Option<String>,
}

impl ClientCertificate {
    /// The facts of a certificate.
    ///
    /// # Errors
    /// The TLS library has no memory.
    pub(crate) fn of(certificate: &X509Ref) -> Result<Self, ErrorStack> {
        let (subject, is_named_whole) = name(certificate.subject_name());
        let pem = percent_encode(&certificate.to_pem()?, NON_ALPHANUMERIC).to_string();
        Ok(Self {
            subject,
            is_named_whole,
            issuer: name(certificate.issuer_name()).0,
            serial: certificate.serial_number().to_bn()?.to_hex_str()?.to_string(),
            fingerprint: hex(&certificate.digest(MessageDigest::sha256())?),
            pem: Some(pem).filter(|pem| pem.len() <= CERTIFICATE_MAX),
        })
    }
}

/// Headers that pass a certificate on to an upstream. A client's own never pass: see [`crate::http::headers`].
const VERIFY: HeaderName = HeaderName::from_static("x-client-verify");
const SUBJECT: HeaderName = HeaderName::from_static("x-client-s-dn");
const ISSUER: HeaderName = HeaderName::from_static("x-client-i-dn");
const SERIAL: HeaderName = HeaderName::from_static("x-client-serial");
const FINGERPRINT: HeaderName = HeaderName::from_static("x-client-fingerprint");
const CERTIFICATE: HeaderName = HeaderName::from_static("x-client-cert");

impl PresentedCert {
    /// The headers for an upstream; none where no certificates are asked for.
    pub(crate) fn headers(&self) -> Vec<(HeaderName, HeaderValue)> {
        if self.policy.mode() == CertMode::Off {
            return Vec::new();
        }
        let Some(certificate) = &self.certificate else {
            return vec![(VERIFY, HeaderValue::from_static("NONE"))];
        };
        let facts = [
            (SUBJECT, Some(&certificate.subject)),
            (ISSUER, Some(&certificate.issuer)),
            (SERIAL, Some(&certificate.serial)),
            (FINGERPRINT, Some(&certificate.fingerprint)),
            (CERTIFICATE, certificate.pem.as_ref()),
        ];
        let facts = facts
            .into_iter()
            .filter_map(|(name, fact)| Some((name, HeaderValue::from_str(fact?).ok()?)));
        let verified = (VERIFY, HeaderValue::from_static("SUCCESS"));
        std::iter::once(verified).chain(facts).collect()
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::new(), |mut text, byte| {
        let _ = write!(text, "{byte:02x}");
        text
    })
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use openssl::asn1::Asn1Time;
    use openssl::ec::{EcGroup, EcKey};
    use openssl::pkey::PKey;
    use openssl::x509::X509Name;
    use openssl::x509::extension::SubjectAlternativeName;

    /// A certificate with this common name and these addresses, signed by itself.
    pub(crate) fn certificate(name: &str, addresses: &[&str]) -> X509 {
        let group = EcGroup::from_curve_name(Nid::X9_62_PRIME256V1).unwrap();
        let key = PKey::from_ec_key(EcKey::generate(&group).unwrap()).unwrap();
        let mut subject = X509Name::builder().unwrap();
        subject.append_entry_by_nid(Nid::COMMONNAME, name).unwrap();
        subject
            .append_entry_by_nid(Nid::PKCS9_EMAILADDRESS, "old@a.test")
            .unwrap();
        let subject = subject.build();
        let mut builder = X509::builder().unwrap();
        builder.set_version(2).unwrap();
        builder.set_subject_name(&subject).unwrap();
        builder.set_issuer_name(&subject).unwrap();
        builder.set_pubkey(&key).unwrap();
        builder.set_not_before(&Asn1Time::days_from_now(0).unwrap()).unwrap();
        builder.set_not_after(&Asn1Time::days_from_now(1).unwrap()).unwrap();
        let mut alternative = SubjectAlternativeName::new();
        alternative.dns("a.test");
        addresses.iter().for_each(|address| {
            alternative.email(address);
        });
        let alternative = alternative.build(&builder.x509v3_context(None, None)).unwrap();
        builder.append_extension(alternative).unwrap();
        builder.sign(&key, MessageDigest::sha256()).unwrap();
        builder.build()
    }

    #[test]
    fn accounts_of_a_certificate() {
        let authority = String::from_utf8(certificate("root", &[]).to_pem().unwrap()).unwrap();
        let names = |sources: &[NameSource], certificate: &X509| {
            let rules = ClientCerts::of_mail(&authority, sources.to_vec()).unwrap();
            let names = rules.account_names(certificate);
            names.map(|names| names.accounts.join(" "))
        };
        let (email, cn) = (NameSource::Email, NameSource::CommonName);
        let rossi = certificate("rossi@a.test", &["r@a.test", "no-domain", "s@b.test"]);
        assert_eq!(names(&[], &rossi), None, "as on the web");
        assert_eq!(names(&[email], &rossi).unwrap(), "r@a.test s@b.test old@a.test");
        assert_eq!(
            names(&[cn, email], &rossi).unwrap(),
            "rossi@a.test r@a.test s@b.test old@a.test"
        );
        assert_eq!(names(&[cn], &certificate("rossi", &["r@a.test"])).unwrap(), "");
        let many = certificate("x", &["a@a.test"; 100]);
        assert_eq!(names(&[email], &many).unwrap().split(' ').count(), NAMES);
        assert!(matches!(
            ClientCerts::of_mail("", vec![email]),
            Err(RulesError::NoAuthority)
        ));
    }

    #[test]
    fn rules_need_authorities() {
        assert!(matches!(
            ClientCerts::new(CertMode::On, "", 1),
            Err(RulesError::NoAuthority)
        ));
        let broken = "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n";
        assert!(matches!(
            ClientCerts::new(CertMode::On, broken, 1),
            Err(RulesError::Authorities(_))
        ));
        assert!(ClientCerts::new(CertMode::Off, broken, 1).is_ok());
        assert_ne!(
            ClientCerts::refuse_all(CertMode::On).id(),
            ClientCerts::refuse_all(CertMode::Optional).id()
        );
    }
}
