//! The certificate by which a name is shown to be controlled in a handshake (TLS-ALPN-01, RFC 8737 §3).
//!
//! It is signed by itself, and thrown away with its challenge. Whether it is shown is decided in `listen/challenge.rs`.

use openssl::asn1::{Asn1Object, Asn1OctetString, Asn1Time};
use openssl::bn::{BigNum, MsbOption};
use openssl::error::ErrorStack;
use openssl::hash::MessageDigest;
use openssl::nid::Nid;
use openssl::pkey::{PKey, Private};
use openssl::sha::sha256;
use openssl::ssl::{
    AlpnError, SslAcceptor, SslContext, SslMethod, SslOptions, SslSessionCacheMode, SslVerifyMode, select_next_proto,
};
use openssl::x509::extension::SubjectAlternativeName;
use openssl::x509::{X509, X509Extension, X509Name};

use crate::acme::account_key::p256;

/// What is spoken in such a handshake (RFC 8737 §6.2).
pub(crate) const ACME_TLS: &[u8] = b"acme-tls/1";
/// The same as a list in wire format.
pub(crate) const ACME_TLS_LIST: &[u8] = b"\x0aacme-tls/1";
/// `id-pe-acmeIdentifier` (RFC 8737 §6.1)
const IDENTIFIER: &str = "1.3.6.1.5.5.7.1.31";
/// Tag and length of its content, an octet string of 32 bytes.
const DIGEST_HEAD: [u8; 2] = [4, 32];
/// Who the certificate says to be: nobody looks.
const SUBJECT: &str = "ACME challenge";
/// How long it is good before and after it is made, in seconds: clocks differ, and an order takes minutes.
const LIFE: i64 = 24 * 60 * 60;

/// The server's side of a handshake for a challenge of this name: no client is asked for a certificate, no session can be
/// resumed, and nothing else is spoken.
///
/// # Errors
/// The TLS library does not take the name, or has no memory.
pub(crate) fn challenge_context(name: &str, key_authorization: &str) -> Result<SslContext, ErrorStack> {
    let key = PKey::from_ec_key(p256()?)?;
    let certificate = certificate(name, key_authorization, &key)?;
    let mut builder = SslAcceptor::mozilla_intermediate_v5(SslMethod::tls_server())?;
    builder.set_certificate(&certificate)?;
    builder.set_private_key(&key)?;
    builder.set_verify(SslVerifyMode::NONE);
    builder.set_session_cache_mode(SslSessionCacheMode::OFF);
    builder.set_options(SslOptions::NO_TICKET | SslOptions::NO_RENEGOTIATION);
    builder
        .set_alpn_select_callback(|_, offered| select_next_proto(ACME_TLS_LIST, offered).ok_or(AlpnError::ALERT_FATAL));
    Ok(builder.build().into_context())
}

/// One name, and the digest of the key authorization in a critical extension.
fn certificate(name: &str, key_authorization: &str, key: &PKey<Private>) -> Result<X509, ErrorStack> {
    let mut subject = X509Name::builder()?;
    subject.append_entry_by_nid(Nid::COMMONNAME, SUBJECT)?;
    let subject = subject.build();
    let mut serial = BigNum::new()?;
    serial.rand(127, MsbOption::MAYBE_ZERO, false)?;
    let now = jiff::Timestamp::now().as_second();
    let mut builder = X509::builder()?;
    builder.set_version(2)?;
    builder.set_serial_number(&*serial.to_asn1_integer()?)?;
    builder.set_subject_name(&subject)?;
    builder.set_issuer_name(&subject)?;
    builder.set_pubkey(key)?;
    builder.set_not_before(&*Asn1Time::from_unix(now - LIFE)?)?;
    builder.set_not_after(&*Asn1Time::from_unix(now + LIFE)?)?;
    let names = SubjectAlternativeName::new()
        .dns(name)
        .build(&builder.x509v3_context(None, None))?;
    builder.append_extension(names)?;
    builder.append_extension(identifier(key_authorization)?)?;
    builder.sign(key, MessageDigest::sha256())?;
    Ok(builder.build())
}

fn identifier(key_authorization: &str) -> Result<X509Extension, ErrorStack> {
    let content = [&DIGEST_HEAD[..], &sha256(key_authorization.as_bytes())].concat();
    let content = Asn1OctetString::new_from_bytes(&content)?;
    let kind = Asn1Object::from_str(IDENTIFIER)?;
    X509Extension::new_from_der(&kind, true, &content)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The example of what the extension is, byte for byte: RFC 8737 §3 and its module in appendix A.
    #[test]
    fn the_certificate_has_one_name_and_the_digest() {
        let key = PKey::from_ec_key(p256().unwrap()).unwrap();
        let certificate = certificate("mail.a.test", "token.print", &key).unwrap();
        let names = certificate.subject_alt_names().unwrap();
        assert_eq!(names.len(), 1);
        assert_eq!(names[0].dnsname(), Some("mail.a.test"));
        assert!(certificate.verify(&key).unwrap());
        let head = b"\x30\x31\x06\x08\x2b\x06\x01\x05\x05\x07\x01\x1f\x01\x01\xff\x04\x22\x04\x20";
        let wanted = [&head[..], &sha256(b"token.print")].concat();
        let der = certificate.to_der().unwrap();
        assert!(der.windows(wanted.len()).any(|part| part == wanted));
    }
}
