//! Requests for certificates, which are checked against their order, and certificates (RFC 8555 §7.4).

use std::collections::BTreeSet;
use std::process::Command;
use std::time::{SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result, ensure};
use openssl::asn1::Asn1Time;
use openssl::bn::{BigNum, MsbOption};
use openssl::ec::{EcGroup, EcKey};
use openssl::hash::MessageDigest;
use openssl::nid::Nid;
use openssl::pkey::{PKey, PKeyRef, Private, Public};
use openssl::x509::extension::{
    AuthorityKeyIdentifier, BasicConstraints, ExtendedKeyUsage, KeyUsage, SubjectAlternativeName, SubjectKeyIdentifier,
};
use openssl::x509::{X509, X509Builder, X509Name, X509NameRef, X509Req};

use super::answer::Refusal;
use super::jws::{PublicKey, encoded};

/// How the authority calls itself in its certificates.
pub const ISSUER: &str = "Strict development CA";
/// How long its own certificate is good, in seconds from then until now and from now on.
const OWN_LIFE: [i64; 2] = [1000, 1_000_000_000];

/// Signs certificates.
pub(super) struct Issuer {
    certificate: X509,
    key: PKey<Private>,
}

impl Issuer {
    /// One with a new key.
    pub(super) fn new() -> Result<Self> {
        let (key, name) = (new_key()?, named(ISSUER)?);
        let mut builder = begun(&name, &key, OWN_LIFE)?;
        builder.set_subject_name(&name)?;
        builder.append_extension(BasicConstraints::new().critical().ca().build()?)?;
        builder.append_extension(KeyUsage::new().critical().key_cert_sign().crl_sign().build()?)?;
        let id = SubjectKeyIdentifier::new().build(&builder.x509v3_context(None, None))?;
        builder.append_extension(id)?;
        builder.sign(&key, MessageDigest::sha256())?;
        Ok(Self {
            certificate: builder.build(),
            key,
        })
    }

    /// A certificate for these names.
    pub(super) fn issue(&self, names: &BTreeSet<String>, key: &PKeyRef<Public>, life: [i64; 2]) -> Result<X509> {
        let mut builder = begun(self.certificate.subject_name(), key, life)?;
        let context = builder.x509v3_context(Some(&self.certificate), None);
        let mut alternative = SubjectAlternativeName::new();
        for name in names {
            alternative.dns(name);
        }
        let alternative = alternative.critical().build(&context)?;
        let issuer = AuthorityKeyIdentifier::new().keyid(true).build(&context)?;
        builder.append_extension(alternative)?;
        builder.append_extension(issuer)?;
        builder.append_extension(BasicConstraints::new().critical().build()?)?;
        builder.append_extension(ExtendedKeyUsage::new().server_auth().build()?)?;
        builder.sign(&self.key, MessageDigest::sha256())?;
        Ok(builder.build())
    }

    /// A certificate with its chain, as PEM.
    pub(super) fn chain(&self, certificate: &X509) -> Result<Vec<u8>> {
        Ok([certificate.to_pem()?, self.certificate.to_pem()?].concat())
    }
}

/// Any key that is not the client's.
pub(super) fn other_key() -> Result<PKey<Public>> {
    Ok(PKey::public_key_from_der(&new_key()?.public_key_to_der()?)?)
}

/// The key of a request for a certificate of an order for these names.
pub(super) fn checked(der: &[u8], names: &BTreeSet<String>, account: &PublicKey) -> Result<PKey<Public>, Refusal> {
    let key = key_of(der, names).map_err(|error| Refusal::violation(400, "badCSR", format!("{error:#}")))?;
    match account.is(&key) {
        true => Err(Refusal::violation(400, "badCSR", "it is for the account's key")),
        false => Ok(key),
    }
}

fn key_of(der: &[u8], names: &BTreeSet<String>) -> Result<PKey<Public>> {
    let request = X509Req::from_der(der)?;
    ensure!(request.to_der()? == der, "more than a request");
    let key = request.public_key()?;
    ensure!(request.verify(&key)?, "its signature is not good");
    let found = names_of(&request)?;
    ensure!(found == *names, "it is for {found:?}, the order for {names:?}");
    for entry in request.subject_name().entries() {
        let text = entry.data().to_string()?;
        ensure!(names.contains(&text), "its subject has {text:?}");
    }
    Ok(key)
}

/// The library reads extensions of certificates only.
fn names_of(request: &X509Req) -> Result<BTreeSet<String>> {
    let mut carrier = X509Builder::new()?;
    carrier.set_version(2)?;
    for extension in request.extensions()? {
        carrier.append_extension(extension)?;
    }
    let names = carrier.build().subject_alt_names().context("no names")?;
    let names = names.iter().map(|name| name.dnsname().map(str::to_owned));
    names.collect::<Option<_>>().context("not only DNS names")
}

/// By what clients name a certificate (RFC 9773 §4.1): the key of its issuer, and its number as it stands in DER.
pub(super) fn certificate_id(certificate: &X509) -> Result<String> {
    let issuer = certificate.authority_key_id().context("no issuer's key")?;
    let mut serial = certificate.serial_number().to_bn()?.to_vec();
    if serial.first().is_none_or(|first| *first >= 0x80) {
        serial.insert(0, 0);
    }
    Ok(format!("{}.{}", encoded(issuer.as_slice()), encoded(&serial)))
}

/// The moment so many seconds from now (RFC 3339).
pub fn time_text(seconds: i64) -> Result<String> {
    let now = i64::try_from(SystemTime::now().duration_since(UNIX_EPOCH)?.as_secs())?;
    let out = Command::new("date")
        .args(["-u", "-d", &format!("@{}", now + seconds), "+%FT%TZ"])
        .output()?;
    ensure!(out.status.success(), "date: {}", out.status);
    Ok(String::from_utf8(out.stdout)?.trim_end().to_owned())
}

fn new_key() -> Result<PKey<Private>> {
    let group = EcGroup::from_curve_name(Nid::X9_62_PRIME256V1)?;
    Ok(PKey::from_ec_key(EcKey::generate(&group)?)?)
}

fn named(name: &str) -> Result<X509Name> {
    let mut builder = X509Name::builder()?;
    builder.append_entry_by_nid(Nid::COMMONNAME, name)?;
    Ok(builder.build())
}

fn begun<T: openssl::pkey::HasPublic>(issuer: &X509NameRef, key: &PKeyRef<T>, life: [i64; 2]) -> Result<X509Builder> {
    let now = i64::try_from(SystemTime::now().duration_since(UNIX_EPOCH)?.as_secs())?;
    let mut serial = BigNum::new()?;
    serial.rand(127, MsbOption::MAYBE_ZERO, false)?;
    let mut builder = X509::builder()?;
    builder.set_version(2)?;
    builder.set_serial_number(&*serial.to_asn1_integer()?)?;
    builder.set_issuer_name(issuer)?;
    builder.set_pubkey(key)?;
    builder.set_not_before(&*Asn1Time::from_unix(now - life[0])?)?;
    builder.set_not_after(&*Asn1Time::from_unix(now + life[1])?)?;
    Ok(builder)
}
