//! Signatures over DNS messages with a key that two share (TSIG, RFC 8945).

use openssl::error::ErrorStack;
use openssl::hash::MessageDigest;
use openssl::memcmp;
use openssl::pkey::PKey;
use openssl::sign::Signer;

use crate::acme::dns::message::{ANY, HEAD, TSIG, signature};
use crate::acme::dns::name::DnsName;
use crate::config::{TsigAlgorithm, TsigKey};

/// How far two clocks may be apart, in seconds (RFC 8945 §10).
const FUDGE: u16 = 300;
/// What a server says of a signature that it does not take (§3).
const BAD_SIGNATURE: u16 = 16;
const BAD_KEY: u16 = 17;
const BAD_TIME: u16 = 18;
const BAD_TRUNCATION: u16 = 22;

/// A key, ready to sign.
pub(crate) struct MessageKey<'k> {
    key: &'k TsigKey,
    name: DnsName,
    algorithm: DnsName,
}

/// What is signed besides the message (§4.3.3).
struct SignedFields<'f> {
    time: u64,
    fudge: u16,
    error: u16,
    other: &'f [u8],
}

impl<'k> MessageKey<'k> {
    /// `None`: its name is none.
    pub(crate) fn new(key: &'k TsigKey) -> Option<Self> {
        let algorithm = match key.algorithm {
            TsigAlgorithm::HmacSha256 => "hmac-sha256",
            TsigAlgorithm::HmacSha512 => "hmac-sha512",
        };
        Some(Self {
            key,
            name: DnsName::parse(&key.name)?,
            algorithm: DnsName::parse(algorithm)?,
        })
    }

    /// The message, signed at this time (seconds since 1970), and the code by which its answer is bound to it.
    ///
    /// # Errors
    /// The TLS library has no memory.
    pub(crate) fn sign(&self, message: &[u8], time: u64) -> Result<(Vec<u8>, Vec<u8>), ErrorStack> {
        let fields = SignedFields {
            time,
            fudge: FUDGE,
            error: 0,
            other: &[],
        };
        let code = self.code(&[message, &self.variables(&fields)])?;
        let mut content = self.algorithm.wire().to_vec();
        content.extend(&time.to_be_bytes()[2..]);
        content.extend(FUDGE.to_be_bytes());
        content.extend((code.len() as u16).to_be_bytes());
        content.extend(&code);
        // The id, once more: on its way a message may get another one. No error, and nothing else.
        content.extend(&message[..2]);
        content.extend([0; 4]);
        let mut signed = message.to_vec();
        set_count(&mut signed, count(message) + 1);
        signed.extend(self.name.wire());
        signed.extend(TSIG.to_be_bytes());
        signed.extend(ANY.to_be_bytes());
        signed.extend([0; 4]);
        signed.extend((content.len() as u16).to_be_bytes());
        signed.extend(content);
        Ok((signed, code))
    }

    /// Checks that the holder of the same key has signed this answer at this time, and to the message that was signed with
    /// this code.
    ///
    /// # Errors
    /// Why not.
    pub(crate) fn check(&self, answer: &[u8], code: &[u8], time: u64) -> Result<(), String> {
        let found = signature(answer).ok_or("the answer of the name server is not signed")?;
        match found.error {
            BAD_KEY => return Err("the name server does not know the key of acme.dns.update.tsig".to_owned()),
            BAD_SIGNATURE | BAD_TRUNCATION => {
                return Err("the name server has another key of the name in acme.dns.update.tsig".to_owned());
            }
            BAD_TIME => return Err("the clocks of the name server and this machine differ".to_owned()),
            _ => {}
        }
        let wrong = "the answer of the name server is not signed well".to_owned();
        let mut message = answer[..found.at].to_vec();
        message[..2].copy_from_slice(&found.original_id.to_be_bytes());
        let more = count(answer).checked_sub(1).ok_or(wrong.clone())?;
        set_count(&mut message, more);
        let fields = SignedFields {
            time: found.time,
            fudge: found.fudge,
            error: found.error,
            other: &found.other,
        };
        let bound = [&(code.len() as u16).to_be_bytes(), code].concat();
        let expected = self.code(&[&bound, &message, &self.variables(&fields)]);
        let expected = expected.map_err(|error| error.to_string())?;
        let is_ours = found.name == self.name && found.algorithm == self.algorithm;
        if !is_ours || found.code.len() != expected.len() || !memcmp::eq(&found.code, &expected) {
            return Err(wrong);
        }
        match found.time.abs_diff(time) <= u64::from(FUDGE) {
            true => Ok(()),
            false => Err("the clocks of the name server and this machine differ".to_owned()),
        }
    }

    fn variables(&self, fields: &SignedFields<'_>) -> Vec<u8> {
        let mut signed = self.name.wire().to_vec();
        signed.extend(ANY.to_be_bytes());
        signed.extend([0; 4]);
        signed.extend(self.algorithm.wire());
        signed.extend(&fields.time.to_be_bytes()[2..]);
        signed.extend(fields.fudge.to_be_bytes());
        signed.extend(fields.error.to_be_bytes());
        signed.extend((fields.other.len() as u16).to_be_bytes());
        signed.extend(fields.other);
        signed
    }

    fn code(&self, parts: &[&[u8]]) -> Result<Vec<u8>, ErrorStack> {
        let digest = match self.key.algorithm {
            TsigAlgorithm::HmacSha256 => MessageDigest::sha256(),
            TsigAlgorithm::HmacSha512 => MessageDigest::sha512(),
        };
        let key = PKey::hmac(self.key.secret.expose())?;
        Signer::new(digest, &key)?.sign_oneshot_to_vec(&parts.concat())
    }
}

/// How many records there are behind the others.
fn count(message: &[u8]) -> u16 {
    u16::from_be_bytes([message[HEAD - 2], message[HEAD - 1]])
}

fn set_count(message: &mut [u8], count: u16) {
    message[HEAD - 2..HEAD].copy_from_slice(&count.to_be_bytes());
}

#[cfg(test)]
mod tests {
    use mail_directory::Secret;

    use super::*;
    use crate::acme::dns::message::{RecordType, question};

    const NOW: u64 = 1_000_000_000;

    fn key(name: &str, secret: &[u8], algorithm: TsigAlgorithm) -> TsigKey {
        TsigKey {
            name: name.to_owned(),
            algorithm,
            secret: Secret::new(secret.to_vec()),
        }
    }

    /// The answer that the holder of this key gives.
    fn answered(key: &MessageKey<'_>, code: &[u8], time: u64) -> Vec<u8> {
        let mut answer = question(7, &DnsName::parse("a.example").unwrap(), RecordType::Soa, false);
        answer[2] |= 0x80;
        let fields = SignedFields {
            time,
            fudge: FUDGE,
            error: 0,
            other: &[],
        };
        let bound = [&(code.len() as u16).to_be_bytes(), code].concat();
        let signed = key.code(&[&bound, &answer, &key.variables(&fields)]).unwrap();
        // As a message of its own, with the code of an answer.
        let (mut whole, own) = key.sign(&answer, time).unwrap();
        let at = whole.len() - 6 - own.len();
        whole[at..at + own.len()].copy_from_slice(&signed);
        whole
    }

    #[test]
    fn an_answer_is_bound_to_its_message_and_to_the_key() {
        for algorithm in [TsigAlgorithm::HmacSha256, TsigAlgorithm::HmacSha512] {
            let ours = key("portico", b"secret", algorithm);
            let ours = MessageKey::new(&ours).unwrap();
            let asked = question(7, &DnsName::parse("a.example").unwrap(), RecordType::Soa, false);
            let (signed, code) = ours.sign(&asked, NOW).unwrap();
            let found = signature(&signed).unwrap();
            assert_eq!((found.at, found.time, &found.code), (asked.len(), NOW, &code));
            let answer = answered(&ours, &code, NOW);
            ours.check(&answer, &code, NOW + 300).unwrap();
            assert!(ours.check(&answer, &code, NOW + 301).unwrap_err().contains("clocks"));
            assert!(ours.check(&answer, &code[1..], NOW).is_err(), "of another message");
            let (name, secret) = (key("other", b"secret", algorithm), key("portico", b"other", algorithm));
            for other in [&name, &secret] {
                let other = MessageKey::new(other).unwrap();
                assert!(ours.check(&answered(&other, &code, NOW), &code, NOW).is_err());
            }
            assert!(ours.check(&asked, &code, NOW).unwrap_err().contains("not signed"));
            for at in 0..answer.len() {
                let mut changed = answer.clone();
                changed[at] ^= 1;
                // The id on the way is no part of what is signed.
                assert_eq!(ours.check(&changed, &code, NOW).is_err(), at >= 2, "{at}");
            }
            for end in 0..answer.len() {
                assert!(ours.check(&answer[..end], &code, NOW).is_err(), "{end}");
            }
        }
    }

    #[test]
    fn what_a_server_says_of_a_key_is_told() {
        let ours = key("portico", b"secret", TsigAlgorithm::HmacSha256);
        let ours = MessageKey::new(&ours).unwrap();
        let asked = question(7, &DnsName::parse("a.example").unwrap(), RecordType::Soa, false);
        let (signed, code) = ours.sign(&asked, NOW).unwrap();
        for (error, told) in [(16, "has another key"), (17, "does not know the key"), (18, "clocks")] {
            let mut refused = signed.clone();
            let at = refused.len() - 3;
            refused[at] = error;
            let why = ours.check(&refused, &code, NOW).unwrap_err();
            assert!(why.contains(told), "{error}: {why}");
        }
    }
}
