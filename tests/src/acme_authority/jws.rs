//! Signed requests (RFC 8555 §6.2, RFC 7515): taken apart and checked, `ES256` only.

use std::collections::BTreeMap;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use openssl::bn::BigNum;
use openssl::ec::{EcGroup, EcKey};
use openssl::ecdsa::EcdsaSig;
use openssl::error::ErrorStack;
use openssl::hash::MessageDigest;
use openssl::nid::Nid;
use openssl::pkey::{PKey, Public};
use openssl::sha::sha256;
use openssl::sign;
use serde_json::{Map, Value};

use super::answer::Refusal;

/// Bytes of a coordinate, and of each half of a signature (RFC 7518 §3.4).
const COORDINATE: usize = 32;

/// A request whose signature is still to be checked.
pub(super) struct SignedRequest {
    pub(super) nonce: String,
    pub(super) url: String,
    pub(super) by: Signer,
    /// None: it only reads (§6.3).
    pub(super) payload: Option<Value>,
    signed: String,
    signature: Vec<u8>,
}

/// Who says to have signed.
pub(super) enum Signer {
    /// The holder of this key.
    Key(PublicKey),
    /// The account with this URL.
    Account(String),
}

/// The public key of an account.
#[derive(Clone, PartialEq, Eq)]
pub(super) struct PublicKey {
    x: Vec<u8>,
    y: Vec<u8>,
}

impl SignedRequest {
    /// Takes a body apart.
    pub(super) fn parse(body: &[u8]) -> Result<Self, Refusal> {
        let whole = object(body, "the body")?;
        let part = |name: &str| text(&whole, name);
        if whole.len() != 3 {
            return Err(Refusal::malformed("a flattened JWS has three members"));
        }
        let (protected, payload) = (part("protected")?, part("payload")?);
        let header = object(&decoded(protected)?, "the protected header")?;
        if text(&header, "alg")? != "ES256" {
            return Err(Refusal::violation(400, "badSignatureAlgorithm", "not ES256"));
        }
        let known = ["alg", "nonce", "url", "jwk", "kid"];
        if let Some(other) = header.keys().find(|name| !known.contains(&name.as_str())) {
            return Err(Refusal::malformed(format!("what is {other} in the header")));
        }
        let by = match (header.get("jwk"), header.get("kid")) {
            (Some(key), None) => Signer::Key(PublicKey::read(key)?),
            (None, Some(_)) => Signer::Account(text(&header, "kid")?.to_owned()),
            _ => return Err(Refusal::malformed("not one of jwk and kid")),
        };
        Ok(Self {
            nonce: text(&header, "nonce")?.to_owned(),
            url: text(&header, "url")?.to_owned(),
            by,
            payload: match payload {
                "" => None,
                payload => Some(Value::Object(object(&decoded(payload)?, "the payload")?)),
            },
            signed: format!("{protected}.{payload}"),
            signature: decoded(part("signature")?)?,
        })
    }

    /// Checks that the holder of this key has signed it.
    pub(super) fn check(&self, key: &PublicKey) -> Result<(), Refusal> {
        let is_good = || -> Result<bool, ErrorStack> {
            let half = |at: usize| BigNum::from_slice(&self.signature[at..at + COORDINATE]);
            let signature = EcdsaSig::from_private_components(half(0)?, half(COORDINATE)?)?;
            let key = key.key()?;
            signature.verify(&sha256(self.signed.as_bytes()), &key)
        };
        match self.signature.len() == 2 * COORDINATE && is_good().unwrap_or(false) {
            true => Ok(()),
            false => Err(Refusal::malformed("the signature is not good")),
        }
    }
}

impl PublicKey {
    fn read(jwk: &Value) -> Result<Self, Refusal> {
        let jwk = jwk.as_object().ok_or_else(|| Refusal::malformed("jwk is no object"))?;
        let is = |name: &str, value: &str| jwk.get(name).is_some_and(|found| found == value);
        let key = Self {
            x: decoded(text(jwk, "x")?)?,
            y: decoded(text(jwk, "y")?)?,
        };
        let is_whole = [&key.x, &key.y].iter().all(|number| number.len() == COORDINATE);
        match is("kty", "EC") && is("crv", "P-256") && jwk.len() == 4 && is_whole && key.key().is_ok() {
            true => Ok(key),
            false => Err(Refusal::violation(400, "badPublicKey", "not a public key with P-256")),
        }
    }

    fn key(&self) -> Result<EcKey<Public>, ErrorStack> {
        let group = EcGroup::from_curve_name(Nid::X9_62_PRIME256V1)?;
        let (x, y) = (BigNum::from_slice(&self.x)?, BigNum::from_slice(&self.y)?);
        EcKey::from_public_key_affine_coordinates(&group, &x, &y)
    }

    /// Whether a certificate would be for this key, which it must not (RFC 8555 §11.1).
    pub(super) fn is(&self, other: &PKey<Public>) -> bool {
        let own = self.key().and_then(PKey::from_ec_key);
        own.is_ok_and(|own| own.public_eq(other))
    }

    /// What its holder answers to a challenge (§8.1).
    pub(super) fn key_authorization(&self, token: &str) -> String {
        let (x, y) = (encoded(&self.x), encoded(&self.y));
        // The order is that of RFC 7638 §3.
        let jwk = format!("{{\"crv\":\"P-256\",\"kty\":\"EC\",\"x\":\"{x}\",\"y\":\"{y}\"}}");
        format!("{token}.{}", encoded(&sha256(jwk.as_bytes())))
    }
}

/// Checks the word of one of these accounts that a new one with this key, opened at this URL, is its, too (§7.3.4).
pub(super) fn check_binding(
    binding: &Value,
    key: &PublicKey,
    url: &str,
    accounts: &BTreeMap<String, Vec<u8>>,
) -> Result<(), Refusal> {
    let binding = binding
        .as_object()
        .ok_or_else(|| Refusal::malformed("a binding of nothing"))?;
    let (protected, payload) = (text(binding, "protected")?, text(binding, "payload")?);
    let header = object(&decoded(protected)?, "the header of the binding")?;
    // No nonce, and nothing else.
    if binding.len() != 3 || header.len() != 3 || text(&header, "alg")? != "HS256" || text(&header, "url")? != url {
        return Err(Refusal::malformed("not a binding at this URL by HS256"));
    }
    let bound = object(&decoded(payload)?, "the key that is bound")?;
    if PublicKey::read(&Value::Object(bound))? != *key {
        return Err(Refusal::malformed("another key is bound"));
    }
    let kid = text(&header, "kid")?;
    let refused = |why: &str| Refusal::new(403, "unauthorized", why);
    let secret = accounts.get(kid).ok_or_else(|| refused("there is no such account"))?;
    let code = || -> Result<Vec<u8>, ErrorStack> {
        let mut signer = sign::Signer::new(MessageDigest::sha256(), &*PKey::hmac(secret)?)?;
        signer.sign_oneshot_to_vec(format!("{protected}.{payload}").as_bytes())
    };
    match code().is_ok_and(|code| decoded(text(binding, "signature").unwrap_or_default()).is_ok_and(|it| it == code)) {
        true => Ok(()),
        false => Err(refused("that account has not signed it")),
    }
}

/// Base64url without padding.
pub(super) fn encoded(bytes: &[u8]) -> String {
    URL_SAFE_NO_PAD.encode(bytes)
}

/// The same back; padding and other letters are refused (§6.1).
pub(super) fn decoded(text: &str) -> Result<Vec<u8>, Refusal> {
    let decoded = URL_SAFE_NO_PAD.decode(text);
    decoded.map_err(|error| Refusal::malformed(format!("not base64url: {error}")))
}

fn object(bytes: &[u8], what: &str) -> Result<Map<String, Value>, Refusal> {
    let object = serde_json::from_slice(bytes);
    object.map_err(|error| Refusal::malformed(format!("{what} is no object: {error}")))
}

fn text<'o>(object: &'o Map<String, Value>, name: &str) -> Result<&'o str, Refusal> {
    let text = object.get(name).and_then(Value::as_str);
    text.ok_or_else(|| Refusal::malformed(format!("there is no {name}")))
}
