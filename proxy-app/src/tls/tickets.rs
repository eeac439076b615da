//! TLS session tickets (RFC 5077, RFC 8446 section 4.6.1): how a key seals a session, and in which handshakes what it
//! has sealed can be opened.
//!
//! Which keys are in force is known by [`super::ticket_keys`].

use mail_directory::Secret;
use openssl::error::ErrorStack;
use openssl::hash::MessageDigest;
use openssl::pkey::PKey;
use openssl::sha::{Sha256, sha256};
use openssl::sign::Signer;
use openssl::symm::{Cipher, decrypt_aead, encrypt_aead};

/// Octets of the name of a key, with which its tickets begin.
const NAME: usize = 16;
/// Octets of the salt behind it.
const SALT: usize = 32;
/// Octets of the tag at the end (AES-GCM).
const TAG: usize = 16;
/// How much longer a ticket is than the session in it.
pub(super) const OVERHEAD: usize = NAME + SALT + TAG;
/// Octets of a key.
pub(crate) const KEY: usize = 32;
/// Each ticket has an AES key of its own, which is used once.
const ONE_NONCE: [u8; 12] = [0; 12];

/// A key that makes tickets and takes them.
pub(crate) struct TicketKey {
    /// It is seen by everybody, and says nothing of the key.
    name: [u8; NAME],
    octets: Secret<[u8; KEY]>,
}

/// In which handshakes a ticket can be opened: in those with an equal one. It is made from the private key of the
/// certificate that is shown, so who knows no more than the key of a ticket cannot open it.
pub(crate) struct TicketScope(Secret<[u8; 32]>);

impl TicketKey {
    /// A key that nobody else knows.
    pub(crate) fn random() -> Self {
        Self::new(Secret::new(rand::random()))
    }

    /// The key of these octets.
    pub(crate) fn new(octets: Secret<[u8; KEY]>) -> Self {
        let mut sha = Sha256::new();
        sha.update(b"portico ticket key name");
        sha.update(octets.expose());
        let mut name = [0; NAME];
        name.copy_from_slice(&sha.finish()[..NAME]);
        Self { name, octets }
    }

    /// The key that stands in a file with so many octets as other programs want.
    pub(crate) fn digested(octets: &[u8]) -> Self {
        Self::new(Secret::new(sha256(octets)))
    }

    /// What the key is made of, for others that are to know it.
    pub(crate) fn octets(&self) -> &Secret<[u8; KEY]> {
        &self.octets
    }

    /// Whether both are the same key.
    pub(crate) fn is(&self, other: &Self) -> bool {
        self.name == other.name
    }

    /// The ticket with this session in it.
    ///
    /// # Errors
    /// The TLS library has no memory.
    pub(super) fn seal(&self, scope: &TicketScope, session: &[u8]) -> Result<Vec<u8>, ErrorStack> {
        let salt: [u8; SALT] = rand::random();
        let key = self.of_ticket(scope, &salt)?;
        let mut tag = [0; TAG];
        let sealed = encrypt_aead(
            Cipher::aes_256_gcm(),
            key.expose(),
            Some(&ONE_NONCE),
            &self.name,
            session,
            &mut tag,
        )?;
        Ok([&self.name, &salt[..], &sealed, &tag].concat())
    }

    /// Whether it has made this ticket, as far as the ticket says so.
    pub(super) fn has_made(&self, ticket: &[u8]) -> bool {
        ticket.starts_with(&self.name)
    }

    /// The session in a ticket; `None` if it is not for this scope, or not what was sealed.
    pub(super) fn open(&self, scope: &TicketScope, ticket: &[u8]) -> Option<Secret<Vec<u8>>> {
        let (salt, sealed) = ticket.strip_prefix(&self.name)?.split_at_checked(SALT)?;
        let (sealed, tag) = sealed.split_at_checked(sealed.len().checked_sub(TAG)?)?;
        let key = self.of_ticket(scope, salt).ok()?;
        let opened = decrypt_aead(
            Cipher::aes_256_gcm(),
            key.expose(),
            Some(&ONE_NONCE),
            &self.name,
            sealed,
            tag,
        );
        opened.ok().map(Secret::new)
    }

    /// The AES key of one ticket.
    fn of_ticket(&self, scope: &TicketScope, salt: &[u8]) -> Result<Secret<[u8; 32]>, ErrorStack> {
        hmac(self.octets.expose(), &[scope.0.expose(), salt])
    }
}

impl TicketScope {
    /// The scope of what `parts` say under the secret of a certificate. All parts but the last have a fixed length.
    ///
    /// # Errors
    /// The TLS library has no memory.
    pub(super) fn new(certificate: &Secret<[u8; 32]>, parts: &[&[u8]]) -> Result<Self, ErrorStack> {
        hmac(certificate.expose(), parts).map(Self)
    }
}

/// HMAC-SHA256 (RFC 2104).
fn hmac(key: &[u8], parts: &[&[u8]]) -> Result<Secret<[u8; 32]>, ErrorStack> {
    let key = PKey::hmac(key)?;
    let mut signer = Signer::new(MessageDigest::sha256(), &key)?;
    for part in parts {
        signer.update(part)?;
    }
    let mut code = [0; 32];
    signer.sign(&mut code)?;
    Ok(Secret::new(code))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn scope(parts: &[&[u8]]) -> TicketScope {
        TicketScope::new(&Secret::new([7; 32]), parts).unwrap()
    }

    #[test]
    fn a_ticket_is_opened_by_its_key_in_its_scope_and_not_otherwise() {
        let (key, here) = (TicketKey::random(), scope(&[b"here"]));
        let ticket = key.seal(&here, b"session").unwrap();
        assert_eq!(ticket.len(), b"session".len() + OVERHEAD);
        assert!(key.has_made(&ticket));
        let again = TicketKey::new(key.octets().clone());
        assert_eq!(again.open(&here, &ticket).unwrap().expose(), b"session");
        assert!(again.is(&key) && !TicketKey::random().is(&key));
        assert!(key.open(&scope(&[b"elsewhere"]), &ticket).is_none());
        let of_another = TicketScope::new(&Secret::new([8; 32]), &[b"here"]).unwrap();
        assert!(key.open(&of_another, &ticket).is_none(), "another certificate is shown");
        let other = TicketKey::random();
        let mut renamed = ticket.clone();
        renamed[..NAME].copy_from_slice(&other.name);
        assert!(other.open(&here, &renamed).is_none() && other.open(&here, &ticket).is_none());
        for end in 0..ticket.len() {
            assert!(key.open(&here, &ticket[..end]).is_none(), "{end}");
            let mut changed = ticket.clone();
            changed[end] ^= 1;
            assert!(key.open(&here, &changed).is_none(), "{end}");
        }
        assert_ne!(ticket, key.seal(&here, b"session").unwrap(), "no two are alike");
    }
}
