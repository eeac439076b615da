//! A certificate with its chain and its key: read, put in order, checked, put into TLS contexts.

use std::sync::Arc;

use mail_directory::tls_words::reasons;
use mail_directory::{Secret, names};
use openssl::asn1::Asn1Time;
use openssl::error::ErrorStack;
use openssl::hash::MessageDigest;
use openssl::pkey::{PKey, Private};
use openssl::sha::Sha256;
use openssl::ssl::SslContext;
use openssl::x509::{X509, X509Ref, X509VerifyResult};

use super::asn1_time::{seconds_between, seconds_until};
use crate::tls::client_certs::ClientCerts;
use crate::tls::contexts::Contexts;
use crate::tls::profile::{InnerProtocol, Profile};
use crate::tls::tickets::TicketScope;

/// Most certificates that are put in order. Chains have two to five.
const MAX_SORTED: usize = 16;

/// `id-pe-tlsfeature` (RFC 7633 section 6) as it stands in a certificate. No other feature is in use.
const TLS_FEATURE: [u8; 10] = [0x06, 8, 0x2b, 6, 1, 5, 5, 7, 1, 24];
/// What is said of such a certificate.
pub(crate) const WANTS_STAPLE: &str =
    "the certificate has must-staple, and is shown without a staple: some clients refuse it";

/// A certificate, its chain and its key, checked to belong together.
pub(crate) struct CertKey {
    pub(crate) leaf: X509,
    pub(crate) chain: Vec<X509>,
    pub(crate) key: PKey<Private>,
    pub(crate) contexts: Contexts,
    source: TextDigest,
    /// What all who have this certificate and its key know, and nobody else: by it tickets are bound to both.
    ticket_secret: Secret<[u8; 32]>,
    /// The names that the certificate is good for, in lower case.
    names: Vec<String>,
}

/// SHA-256 of the texts that a pair was read from: the same texts need not be read again.
#[derive(Clone, Copy, PartialEq, Eq)]
struct TextDigest([u8; 32]);

impl TextDigest {
    fn of(certificate: &[u8], key: &[u8]) -> Self {
        let mut sha = Sha256::new();
        // No end of the one is taken for the begin of the other.
        sha.update(&(certificate.len() as u64).to_be_bytes());
        sha.update(certificate);
        sha.update(key);
        Self(sha.finish())
    }
}

/// Why a certificate and key cannot be used.
#[derive(Debug, thiserror::Error)]
pub(crate) enum CertError {
    /// The certificate text does not parse.
    #[error("the certificate does not parse: {}", reasons(&.0.to_string()))]
    Certificate(ErrorStack),
    /// There is no certificate in it.
    #[error("there is no certificate in it")]
    Empty,
    /// The key text does not parse.
    #[error("the private key does not parse (it must be PEM and not encrypted): {}", reasons(&.0.to_string()))]
    Key(ErrorStack),
    /// The key belongs to another certificate.
    #[error("the private key does not belong to the certificate")]
    Mismatch,
}

impl CertKey {
    /// Reads PEM texts: leaf first, then its chain; and the key.
    ///
    /// # Errors
    /// They do not parse, or do not belong together.
    pub(crate) fn from_pem(certificate: &[u8], key_text: &[u8]) -> Result<Self, CertError> {
        let mut chain = certificates(certificate)?;
        let leaf = chain.remove(0);
        let key = private_key(key_text)?;
        if !leaf.public_key().is_ok_and(|public| public.public_eq(&key)) {
            return Err(CertError::Mismatch);
        }
        Ok(Self {
            ticket_secret: ticket_secret(&leaf, &key).map_err(CertError::Key)?,
            names: names_in(&leaf),
            leaf,
            chain,
            key,
            contexts: Contexts::default(),
            source: TextDigest::of(certificate, key_text),
        })
    }

    /// The same, or the previous pair, with its contexts, if that was read from the same texts: any change of the
    /// directory comes here with all certificates.
    ///
    /// # Errors
    /// As [`CertKey::from_pem`].
    pub(crate) fn read(certificate: &[u8], key: &[u8], before: Option<&Arc<Self>>) -> Result<Arc<Self>, CertError> {
        let source = TextDigest::of(certificate, key);
        match before.filter(|before| before.source == source) {
            Some(kept) => Ok(kept.clone()),
            None => Self::from_pem(certificate, key).map(Arc::new),
        }
    }

    /// These certificates with each one's issuer behind it, the leaf first, as clients want them. `None` if they are
    /// in order already, or the order is not clear.
    pub(crate) fn in_order(certificates: &str) -> Option<String> {
        let all = X509::stack_from_pem(certificates.as_bytes()).ok()?;
        if all.len() > MAX_SORTED {
            return None;
        }
        let issued = |one: usize, other: usize| all[one].issued(&all[other]) == X509VerifyResult::OK;
        let indices = || 0..all.len();
        let is_leaf = |&one: &usize| indices().all(|other| other == one || !issued(one, other));
        let mut leaves = indices().filter(is_leaf);
        let (leaf, None) = (leaves.next()?, leaves.next()) else {
            return None;
        };
        let mut order = vec![leaf];
        while let Some(next) = indices().find(|one| !order.contains(one) && issued(*one, order[order.len() - 1])) {
            order.push(next);
        }
        if order.len() < all.len() || order.is_sorted() {
            return None;
        }
        let pem: Vec<Vec<u8>> = order
            .iter()
            .map(|at| all[*at].to_pem())
            .collect::<Result<_, _>>()
            .ok()?;
        String::from_utf8(pem.concat()).ok()
    }

    /// Checks a certificate without its key.
    ///
    /// # Errors
    /// It does not parse.
    pub(crate) fn check_certificate(certificate: &[u8]) -> Result<(), CertError> {
        certificates(certificate).map(drop)
    }

    /// Checks a key without its certificate.
    ///
    /// # Errors
    /// It does not parse.
    pub(crate) fn check_key(key: &[u8]) -> Result<(), CertError> {
        private_key(key).map(drop)
    }

    /// When it expired, if it has.
    pub(crate) fn expired(&self) -> Option<String> {
        let now = Asn1Time::days_from_now(0).ok()?;
        (self.leaf.not_after() < now).then(|| self.leaf.not_after().to_string())
    }

    /// Whether it tells clients to insist on a staple (RFC 7633), which they do not get here.
    pub(crate) fn wants_staple(&self) -> bool {
        let der = self.leaf.to_der().unwrap_or_default();
        der.windows(TLS_FEATURE.len()).any(|part| part == TLS_FEATURE)
    }

    /// When it becomes valid, if it is not yet.
    pub(crate) fn not_yet(&self) -> Option<String> {
        let now = Asn1Time::days_from_now(0).ok()?;
        (self.leaf.not_before() > now).then(|| self.leaf.not_before().to_string())
    }

    /// Those of these names that the certificate does not cover.
    pub(crate) fn uncovered<'n>(&self, names: impl IntoIterator<Item = &'n str>) -> Vec<&'n str> {
        let is_covered = |name: &str| self.names.iter().any(|pattern| covers(pattern, name));
        names.into_iter().filter(|name| !is_covered(name)).collect()
    }

    /// Whether it is good for this name.
    pub(crate) fn is_good_for(&self, name: &str) -> bool {
        self.uncovered([name]).is_empty()
    }

    /// The names that it is good for, in lower case.
    pub(crate) fn names(&self) -> &[String] {
        &self.names
    }

    /// SHA-256 of the certificate: two are the same if this is.
    pub(crate) fn fingerprint(&self) -> Vec<u8> {
        fingerprint(&self.leaf)
    }

    /// The same, in hexadecimal.
    pub(crate) fn fingerprint_text(&self) -> String {
        fingerprint_text(&self.leaf)
    }

    /// Seconds until it expires; negative if it has.
    pub(crate) fn seconds_left(&self) -> i64 {
        seconds_until(self.leaf.not_after()).unwrap_or(0)
    }

    /// Seconds from the begin of its time to its end.
    pub(crate) fn lifetime(&self) -> i64 {
        seconds_between(self.leaf.not_before(), self.leaf.not_after()).unwrap_or(0)
    }

    /// The certificate itself.
    pub(crate) fn leaf(&self) -> &X509 {
        &self.leaf
    }

    /// Which session tickets are good where this certificate is shown, under these rules for clients: those that were
    /// made under the same ones, inside the same protocol, while `all_rules` were the same; for most protocols at the same
    /// name. A ticket brings along the certificate that its client presented, or none (CVE-2025-23419), and a session that
    /// began at one name says so for ever.
    ///
    /// # Errors
    /// The TLS library has no memory.
    pub(crate) fn ticket_scope(
        &self,
        rules: &ClientCerts,
        all_rules: &[u8; 32],
        inner: InnerProtocol,
        name: Option<&str>,
    ) -> Result<TicketScope, ErrorStack> {
        let name = name.filter(|_| inner.keeps_to_name());
        let (id, about) = (rules.id(), [inner as u8, u8::from(name.is_some())]);
        let parts = [id.octets(), &all_rules[..], &about, name.unwrap_or_default().as_bytes()];
        TicketScope::new(&self.ticket_secret, &parts)
    }

    /// The context of this certificate for this profile and these rules for clients.
    ///
    /// # Errors
    /// The TLS library does not take one of them, or has no memory.
    pub(crate) fn context(&self, profile: &Arc<Profile>, rules: &ClientCerts) -> Result<SslContext, ErrorStack> {
        self.contexts.get(profile, rules.id(), || {
            let mut builder = profile.context()?;
            builder.set_certificate(&self.leaf)?;
            builder.set_private_key(&self.key)?;
            for certificate in &self.chain {
                builder.add_extra_chain_cert(certificate.clone())?;
            }
            rules.trust(&mut builder)?;
            builder.set_session_id_context(&rules.session_scope(&self.leaf)?)?;
            Ok(builder.build().into_context())
        })
    }
}

fn ticket_secret(leaf: &X509, key: &PKey<Private>) -> Result<Secret<[u8; 32]>, ErrorStack> {
    let key = Secret::new(key.private_key_to_pkcs8()?);
    let mut sha = Sha256::new();
    sha.update(b"portico ticket secret");
    sha.update(&leaf.digest(MessageDigest::sha256())?);
    sha.update(key.expose());
    Ok(Secret::new(sha.finish()))
}

fn fingerprint(leaf: &X509Ref) -> Vec<u8> {
    let digest = leaf.digest(MessageDigest::sha256());
    digest.map(|digest| digest.to_vec()).unwrap_or_default()
}

/// SHA-256 of a certificate, in hexadecimal.
pub(crate) fn fingerprint_text(leaf: &X509Ref) -> String {
    fingerprint(leaf).iter().map(|byte| format!("{byte:02x}")).collect()
}

/// The names that a certificate is good for, in lower case.
pub(crate) fn names_in(leaf: &X509Ref) -> Vec<String> {
    let names = leaf.subject_alt_names().into_iter().flatten();
    names
        .filter_map(|name| name.dnsname().map(str::to_ascii_lowercase))
        .collect()
}

/// At least one.
pub(crate) fn certificates(pem: &[u8]) -> Result<Vec<X509>, CertError> {
    let chain = X509::stack_from_pem(pem).map_err(CertError::Certificate)?;
    match chain.is_empty() {
        true => Err(CertError::Empty),
        false => Ok(chain),
    }
}

fn private_key(pem: &[u8]) -> Result<PKey<Private>, CertError> {
    PKey::private_key_from_pem_callback(pem, |_| Ok(0)).map_err(CertError::Key)
}

/// Whether a certificate for `pattern` is good for this name. RFC 6125 §6.4.3: `*` stands for the whole left-most label
/// and nothing else.
pub(crate) fn covers(pattern: &str, name: &str) -> bool {
    let name = names::host(name);
    match pattern.strip_prefix("*.") {
        Some(parent) => name.split_once('.').is_some_and(|(_, rest)| rest == parent),
        None => pattern == name,
    }
}

#[cfg(test)]
pub(crate) mod samples {
    use openssl::asn1::Asn1Time;
    use openssl::ec::{EcGroup, EcKey};
    use openssl::hash::MessageDigest;
    use openssl::nid::Nid;
    use openssl::pkey::PKey;
    use openssl::x509::extension::SubjectAlternativeName;
    use openssl::x509::{X509Builder, X509Extension};

    /// A certificate for this name that ends so many seconds from now, and its key, as PEM.
    pub(crate) fn pair(left: i64, name: &str) -> [String; 2] {
        pair_with(left, name, None)
    }

    /// The same with a further extension.
    pub(crate) fn pair_with(left: i64, name: &str, more: Option<X509Extension>) -> [String; 2] {
        let group = EcGroup::from_curve_name(Nid::X9_62_PRIME256V1).unwrap();
        let key = PKey::from_ec_key(EcKey::generate(&group).unwrap()).unwrap();
        let time = |seconds: i64| Asn1Time::from_unix(jiff::Timestamp::now().as_second() + seconds).unwrap();
        let mut builder = X509Builder::new().unwrap();
        builder.set_version(2).unwrap();
        builder.set_pubkey(&key).unwrap();
        builder.set_not_before(&time(-10_000)).unwrap();
        builder.set_not_after(&time(left)).unwrap();
        let context = builder.x509v3_context(None, None);
        let names = SubjectAlternativeName::new().dns(name).build(&context).unwrap();
        builder.append_extension(names).unwrap();
        more.into_iter()
            .for_each(|more| builder.append_extension(more).unwrap());
        builder.sign(&key, MessageDigest::sha256()).unwrap();
        let texts = [builder.build().to_pem(), key.private_key_to_pem_pkcs8()];
        texts.map(|pem| String::from_utf8(pem.unwrap()).unwrap())
    }
}
