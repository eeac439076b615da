//! The key by which an authority knows this account, and requests that are signed with it (RFC 8555 §6.2).

use std::io::{self, Write as _};
use std::path::Path;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use mail_directory::tls_words::reasons;
use mail_directory::{Secret, secret_file};
use openssl::bn::{BigNum, BigNumContext};
use openssl::ec::{EcGroup, EcKey};
use openssl::ecdsa::EcdsaSig;
use openssl::error::ErrorStack;
use openssl::hash::MessageDigest;
use openssl::nid::Nid;
use openssl::pkey::{PKey, Private};
use openssl::sha::sha256;
use openssl::sign::Signer;
use serde::Serialize;

use crate::config::ExternalAccount;

/// Bytes of a coordinate, and of each half of a signature (RFC 7518 §3.4).
const COORDINATE: i32 = 32;

/// An account key: ECDSA with P-256 (`ES256`), which every authority takes (RFC 8555 §6.2).
pub(crate) struct AccountKey {
    key: EcKey<Private>,
    public: PublicJwk,
}

/// The public key. The order of its fields is that of RFC 7638 §3.
#[derive(Clone, Serialize)]
struct PublicJwk {
    crv: &'static str,
    kty: &'static str,
    x: String,
    y: String,
}

/// The header of a binding to another account; by this and the nonce it differs from that of a request.
#[derive(Serialize)]
struct BindingHeader<'a> {
    alg: &'static str,
    kid: &'a str,
    url: &'a str,
}

/// By what the authority knows who has signed.
#[derive(Clone, Copy)]
pub(crate) enum SignedBy<'a> {
    /// The key itself: it knows no account yet.
    Key,
    /// The URL of the account.
    Account(&'a str),
}

#[derive(Serialize)]
struct ProtectedHeader<'a> {
    alg: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    jwk: Option<&'a PublicJwk>,
    #[serde(skip_serializing_if = "Option::is_none")]
    kid: Option<&'a str>,
    nonce: &'a str,
    url: &'a str,
}

/// A flattened JWS (RFC 7515 §7.2.2).
#[derive(Serialize)]
struct SignedRequest {
    protected: String,
    payload: String,
    signature: String,
}

impl AccountKey {
    /// The key in this file, if there is one.
    ///
    /// # Errors
    /// The file cannot be read, or holds no such key.
    pub(crate) fn load(path: &Path) -> Result<Option<Self>, String> {
        match path.exists() {
            true => Self::load_or_make(path).map(Some),
            false => Ok(None),
        }
    }

    /// The key in this file; a new one, for the eyes of this user only, if there is no file.
    ///
    /// # Errors
    /// The file cannot be read or written, or holds no such key.
    pub(crate) fn load_or_make(path: &Path) -> Result<Self, String> {
        let failed = |error: io::Error| format!("{}: {error}", path.display());
        let unusable = |error: ErrorStack| {
            let why = error.to_string();
            format!("{}: the account key cannot be used: {}", path.display(), reasons(&why))
        };
        match std::fs::read(path).map(Secret::new) {
            Ok(pem) => {
                let key = PKey::private_key_from_pem(pem.expose()).and_then(|key| key.ec_key());
                Self::new(key.map_err(unusable)?).map_err(unusable)
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                let key = p256().map_err(unusable)?;
                let pem = PKey::from_ec_key(key.clone()).and_then(|key| key.private_key_to_pem_pkcs8());
                let pem = Secret::new(pem.map_err(unusable)?);
                secret_file::replace(path, |file| file.write_all(pem.expose())).map_err(failed)?;
                Self::new(key).map_err(unusable)
            }
            Err(error) => Err(failed(error)),
        }
    }

    /// Fails for a key of another curve: it has no such coordinates.
    fn new(key: EcKey<Private>) -> Result<Self, ErrorStack> {
        let group = EcGroup::from_curve_name(Nid::X9_62_PRIME256V1)?;
        let (mut x, mut y) = (BigNum::new()?, BigNum::new()?);
        let mut context = BigNumContext::new()?;
        key.public_key()
            .affine_coordinates(&group, &mut x, &mut y, &mut context)?;
        let coordinate = |number: &BigNum| number.to_vec_padded(COORDINATE).map(|bytes| encode(&bytes));
        let public = PublicJwk {
            crv: "P-256",
            kty: "EC",
            x: coordinate(&x)?,
            y: coordinate(&y)?,
        };
        Ok(Self { key, public })
    }

    /// What the holder of this key answers to a challenge (RFC 8555 §8.1).
    ///
    /// # Errors
    /// There is no memory.
    pub(crate) fn key_authorization(&self, token: &str) -> serde_json::Result<String> {
        let thumbprint = sha256(&serde_json::to_vec(&self.public)?);
        Ok(format!("{token}.{}", encode(&thumbprint)))
    }

    /// The word of an account of the authority's own that this key is its, too, as a part of the request to this URL
    /// (RFC 8555 §7.3.4).
    ///
    /// # Errors
    /// The TLS library has no memory.
    pub(crate) fn bound_to(&self, account: &ExternalAccount, url: &str) -> anyhow::Result<serde_json::Value> {
        let header = BindingHeader {
            alg: "HS256",
            kid: &account.kid,
            url,
        };
        let protected = encode(&serde_json::to_vec(&header)?);
        let payload = encode(&serde_json::to_vec(&self.public)?);
        let key = PKey::hmac(account.hmac_key.expose())?;
        let mut signer = Signer::new(MessageDigest::sha256(), &key)?;
        let signature = signer.sign_oneshot_to_vec(format!("{protected}.{payload}").as_bytes())?;
        Ok(serde_json::to_value(SignedRequest {
            protected,
            payload,
            signature: encode(&signature),
        })?)
    }

    /// The body of a signed request to this URL; without a payload it only reads (RFC 8555 §6.3).
    ///
    /// # Errors
    /// The TLS library has no memory.
    pub(crate) fn sign(
        &self,
        by: SignedBy<'_>,
        nonce: &str,
        url: &str,
        payload: Option<&serde_json::Value>,
    ) -> anyhow::Result<Vec<u8>> {
        let (jwk, kid) = match by {
            SignedBy::Key => (Some(&self.public), None),
            SignedBy::Account(account) => (None, Some(account)),
        };
        let header = ProtectedHeader {
            alg: "ES256",
            jwk,
            kid,
            nonce,
            url,
        };
        let protected = encode(&serde_json::to_vec(&header)?);
        let payload = match payload {
            Some(payload) => encode(&serde_json::to_vec(payload)?),
            None => String::new(),
        };
        let digest = sha256(format!("{protected}.{payload}").as_bytes());
        let signature = EcdsaSig::sign(&digest, &self.key)?;
        let halves = [
            signature.r().to_vec_padded(COORDINATE)?,
            signature.s().to_vec_padded(COORDINATE)?,
        ];
        Ok(serde_json::to_vec(&SignedRequest {
            protected,
            payload,
            signature: encode(&halves.concat()),
        })?)
    }
}

/// As everything binary is written in this protocol (RFC 8555 §6.1).
pub(crate) fn encode(bytes: &[u8]) -> String {
    URL_SAFE_NO_PAD.encode(bytes)
}

/// A new key with the curve P-256.
///
/// # Errors
/// The TLS library has no memory.
pub(crate) fn p256() -> Result<EcKey<Private>, ErrorStack> {
    let group = EcGroup::from_curve_name(Nid::X9_62_PRIME256V1)?;
    EcKey::generate(&group)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_key_is_kept_for_one_user() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("acme.key");
        let made = AccountKey::load_or_make(&path).unwrap();
        assert!(!secret_file::is_open(&path));
        let read = AccountKey::load_or_make(&path).unwrap();
        let (one, other) = (
            read.key_authorization("t").unwrap(),
            made.key_authorization("t").unwrap(),
        );
        assert_eq!(one, other);
        // 32 bytes in base64.
        assert_eq!(one.len(), "t.".len() + 43);
        let rsa = openssl::rsa::Rsa::generate(2048).unwrap().private_key_to_pem().unwrap();
        let other_curve = EcGroup::from_curve_name(Nid::SECP384R1).unwrap();
        let other_curve = EcKey::generate(&other_curve).unwrap().private_key_to_pem().unwrap();
        for wrong in [rsa, other_curve, b"no key".to_vec()] {
            std::fs::write(&path, &wrong).unwrap();
            let refused = AccountKey::load_or_make(&path).err().unwrap();
            assert!(refused.contains("the account key cannot be used"), "{refused}");
            assert_eq!(std::fs::read(&path).unwrap(), wrong, "it is not overwritten");
        }
    }

    /// What an authority does: takes the public key out of the header and checks the signature over both parts.
    #[test]
    fn a_signed_request_can_be_checked() {
        let dir = tempfile::tempdir().unwrap();
        let key = AccountKey::load_or_make(&dir.path().join("acme.key")).unwrap();
        let payload = serde_json::json!({"a": 1});
        let url = "https://authority.test/new";
        let body = key.sign(SignedBy::Key, "n-1", url, Some(&payload)).unwrap();
        let body: serde_json::Value = serde_json::from_slice(&body).unwrap();
        let part = |name: &str| body[name].as_str().unwrap().to_owned();
        let decoded = |text: &str| URL_SAFE_NO_PAD.decode(text).unwrap();
        let header: serde_json::Value = serde_json::from_slice(&decoded(&part("protected"))).unwrap();
        assert_eq!(
            (&header["alg"], &header["nonce"], &header["url"]),
            (&"ES256".into(), &"n-1".into(), &url.into())
        );
        let number = |name: &str| BigNum::from_slice(&decoded(header["jwk"][name].as_str().unwrap())).unwrap();
        let group = EcGroup::from_curve_name(Nid::X9_62_PRIME256V1).unwrap();
        let public = EcKey::from_public_key_affine_coordinates(&group, &number("x"), &number("y")).unwrap();
        let signature = decoded(&part("signature"));
        let half = |at: usize| BigNum::from_slice(&signature[at..at + 32]).unwrap();
        let signature = EcdsaSig::from_private_components(half(0), half(32)).unwrap();
        let digest = sha256(format!("{}.{}", part("protected"), part("payload")).as_bytes());
        assert!(signature.verify(&digest, &public).unwrap());
        // Once there is an account, its URL stands for the key; reading has no payload.
        let body = key
            .sign(SignedBy::Account("https://authority.test/1"), "n-2", url, None)
            .unwrap();
        let body: serde_json::Value = serde_json::from_slice(&body).unwrap();
        let header: serde_json::Value = serde_json::from_slice(&decoded(body["protected"].as_str().unwrap())).unwrap();
        assert_eq!((header["jwk"].is_null(), &body["payload"]), (true, &"".into()));
        assert_eq!(header["kid"], "https://authority.test/1");
    }
}
