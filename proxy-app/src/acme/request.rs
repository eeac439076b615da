//! A new private key, and the request for its certificate (RFC 2986; RFC 8555 §7.4).

use mail_directory::Secret;
use openssl::error::ErrorStack;
use openssl::hash::MessageDigest;
use openssl::pkey::{PKey, Private};
use openssl::rsa::Rsa;
use openssl::stack::Stack;
use openssl::x509::X509Req;
use openssl::x509::extension::SubjectAlternativeName;

use crate::acme::account_key::p256;
use crate::config::CertificateKeyKind;

/// Size of RSA keys, in bits.
const RSA_BITS: u32 = 2048;

/// A request for a certificate.
pub(crate) struct CertificateRequest {
    /// In DER.
    pub der: Vec<u8>,
    /// The private key, as PEM.
    pub key: Secret<String>,
}

impl CertificateRequest {
    /// A request for these names, with a key of its own.
    ///
    /// # Errors
    /// The TLS library has no memory.
    pub(crate) fn new(names: &[String], kind: CertificateKeyKind) -> anyhow::Result<Self> {
        let key = match kind {
            CertificateKeyKind::EcdsaP256 => PKey::from_ec_key(p256()?)?,
            CertificateKeyKind::Rsa2048 => PKey::from_rsa(Rsa::generate(RSA_BITS)?)?,
        };
        let pem = Secret::new(key.private_key_to_pem_pkcs8()?);
        Ok(Self {
            der: signed(names, &key)?.to_der()?,
            key: Secret::new(str::from_utf8(pem.expose())?.to_owned()),
        })
    }
}

/// The names stand in an extension only: a subject has room for 64 letters, and authorities do not need it.
fn signed(names: &[String], key: &PKey<Private>) -> Result<X509Req, ErrorStack> {
    let mut request = X509Req::builder()?;
    let mut alternative = SubjectAlternativeName::new();
    for name in names {
        alternative.dns(name);
    }
    let alternative = alternative.build(&request.x509v3_context(None))?;
    let mut extensions = Stack::new()?;
    extensions.push(alternative)?;
    request.add_extensions(&extensions)?;
    request.set_pubkey(key)?;
    request.sign(key, MessageDigest::sha256())?;
    Ok(request.build())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_request_has_all_names_and_its_own_key() {
        let names = ["mail.a.example".to_owned(), "imap.a.example".to_owned()];
        for (kind, id) in [
            (CertificateKeyKind::EcdsaP256, openssl::pkey::Id::EC),
            (CertificateKeyKind::Rsa2048, openssl::pkey::Id::RSA),
        ] {
            let request = CertificateRequest::new(&names, kind).unwrap();
            let parsed = X509Req::from_der(&request.der).unwrap();
            let key = PKey::private_key_from_pem(request.key.expose().as_bytes()).unwrap();
            assert_eq!(key.id(), id);
            assert!(parsed.public_key().unwrap().public_eq(&key));
            assert!(parsed.verify(&key).unwrap());
            for name in &names {
                assert!(
                    request.der.windows(name.len()).any(|part| part == name.as_bytes()),
                    "{name}"
                );
            }
        }
    }
}
