//! Where a client is, as far as its failures count together; and the keyed hashes under which all is kept.

use std::hash::Hasher;
use std::net::{IpAddr, Ipv6Addr};
use std::sync::{LazyLock, PoisonError, RwLock};

use siphasher::sip::SipHasher13;

/// The networks of a client.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct ClientNetworks {
    /// An IPv4 address, or an IPv6 network of 64 bits: what one household or office has.
    pub(super) address: IpAddr,
    /// An IPv6 network of 48 bits: what a provider gives to one customer at most.
    pub(super) network: Option<IpAddr>,
}

impl ClientNetworks {
    pub(super) fn of(client: IpAddr) -> Self {
        match client.to_canonical() {
            IpAddr::V4(address) => Self {
                address: address.into(),
                network: None,
            },
            IpAddr::V6(address) => Self {
                address: first_bits(address, 64),
                network: Some(first_bits(address, 48)),
            },
        }
    }

    /// As administrators read it.
    pub(super) fn text(self) -> String {
        match self.address {
            IpAddr::V4(address) => address.to_string(),
            IpAddr::V6(address) => format!("{address}/64"),
        }
    }
}

fn first_bits(address: Ipv6Addr, bits: u32) -> IpAddr {
    Ipv6Addr::from_bits(address.to_bits() & (u128::MAX << (128 - bits))).into()
}

/// What a hash is of.
#[derive(Debug, Clone, Copy)]
pub(super) enum Kind {
    Lane,
    Pair,
    Account,
    Address,
    Network,
    Tried,
}

/// The key of the hashes: a client that does not know it cannot choose what shares a set with what.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct HashKey(pub(super) [u8; 16]);

impl HashKey {
    /// A key that nobody knows.
    pub(super) fn random() -> Self {
        use std::hash::{BuildHasher, RandomState};
        let half = || RandomState::new().build_hasher().finish().to_le_bytes();
        let mut key = [0; 16];
        key[..8].copy_from_slice(&half());
        key[8..].copy_from_slice(&half());
        Self(key)
    }

    /// The hash of an account and a network, or of one of them.
    pub(super) fn hash(self, kind: Kind, account: &str, address: Option<IpAddr>) -> u64 {
        let mut hasher = SipHasher13::new_with_key(&self.0);
        hasher.write_u8(kind as u8);
        match address {
            Some(IpAddr::V4(address)) => hasher.write_u32(address.to_bits()),
            Some(IpAddr::V6(address)) => hasher.write_u128(address.to_bits()),
            None => {}
        }
        hasher.write(account.as_bytes());
        hasher.finish()
    }

    /// The hash of a password that was tried at an account.
    pub(super) fn tried(self, account: u64, mark: PasswordMark) -> u64 {
        let mut hasher = SipHasher13::new_with_key(&self.0);
        hasher.write_u8(Kind::Tried as u8);
        hasher.write_u64(account);
        hasher.write_u64(mark.here);
        hasher.finish()
    }
}

/// The key of the marks of passwords. It is made at start and never leaves the process.
static MARKS: LazyLock<HashKey> = LazyLock::new(HashKey::random);

/// The key of a second mark, which is the same on all nodes that have this key; `None`: there is no such mark.
static SHARED_MARKS: RwLock<Option<HashKey>> = RwLock::new(None);

/// Has a second mark made of each password from now on, with a key that other nodes have too, or none any more.
pub fn share_marks(key: Option<[u8; 16]>) {
    *SHARED_MARKS.write().unwrap_or_else(PoisonError::into_inner) = key.map(HashKey);
}

fn shared_key() -> Option<HashKey> {
    *SHARED_MARKS.read().unwrap_or_else(PoisonError::into_inner)
}

/// Tells whether two passwords are the same, and nothing else of them: a keyed hash that means nothing in any other
/// process, and one that means something where there is the same key.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct PasswordMark {
    here: u64,
    shared: Option<u64>,
}

impl std::fmt::Debug for PasswordMark {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("PasswordMark")
    }
}

impl PasswordMark {
    /// The mark of a password.
    pub fn of(password: &[u8]) -> Self {
        let mut marker = PasswordMarker::default();
        marker.push(password);
        marker.mark()
    }

    /// What may be told of the password of an account: 12 bits, so that one of 4,096 passwords has the same.
    pub(super) fn shared_hash(self, account: &str) -> Option<u16> {
        let mut hasher = SipHasher13::new_with_key(&shared_key()?.0);
        hasher.write(account.as_bytes());
        hasher.write_u8(0);
        hasher.write_u64(self.shared?);
        Some((hasher.finish() & 0xfff) as u16)
    }
}

/// Makes the mark of a password that comes in pieces.
#[derive(Clone)]
pub struct PasswordMarker {
    here: SipHasher13,
    shared: Option<SipHasher13>,
}

impl Default for PasswordMarker {
    fn default() -> Self {
        Self {
            here: SipHasher13::new_with_key(&MARKS.0),
            shared: shared_key().map(|key| SipHasher13::new_with_key(&key.0)),
        }
    }
}

impl PasswordMarker {
    /// Takes the next piece.
    pub fn push(&mut self, piece: &[u8]) {
        self.here.write(piece);
        self.shared.iter_mut().for_each(|shared| shared.write(piece));
    }

    /// The mark of all pieces.
    pub fn mark(&self) -> PasswordMark {
        PasswordMark {
            here: self.here.finish(),
            shared: self.shared.as_ref().map(Hasher::finish),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_client_has_the_networks_of_its_address() {
        for (client, address, network) in [
            ("192.0.2.1", "192.0.2.1", None),
            ("::ffff:192.0.2.1", "192.0.2.1", None),
            ("2001:db8:1:2:3::4", "2001:db8:1:2::", Some("2001:db8:1::")),
        ] {
            let networks = ClientNetworks::of(client.parse().unwrap());
            assert_eq!(networks.address, address.parse::<IpAddr>().unwrap());
            assert_eq!(networks.network, network.map(|network| network.parse().unwrap()));
        }
    }

    #[test]
    fn marks_tell_only_whether_passwords_are_the_same() {
        let mut pieces = PasswordMarker::default();
        pieces.push(b"sec");
        pieces.push(b"ret");
        assert_eq!(pieces.mark(), PasswordMark::of(b"secret"));
        assert_ne!(PasswordMark::of(b"secret"), PasswordMark::of(b"Secret"));
        assert_eq!(format!("{:?}", PasswordMark::of(b"secret")), "PasswordMark");
    }

    #[test]
    fn hashes_depend_on_kind_and_key() {
        let (one, other) = (HashKey::random(), HashKey::random());
        assert_ne!(one, other);
        let of = |key: HashKey, kind| key.hash(kind, "a@a.test", None);
        assert_ne!(of(one, Kind::Account), of(one, Kind::Pair));
        assert_ne!(of(one, Kind::Account), of(other, Kind::Account));
    }

    #[test]
    fn what_is_told_of_a_password_is_the_same_for_the_same_key() {
        assert_eq!(PasswordMark::of(b"pw").shared_hash("a@x.test"), None);
        share_marks(Some([7; 16]));
        let (first, again) = (PasswordMark::of(b"pw"), PasswordMark::of(b"pw"));
        let hash = first.shared_hash("a@x.test").unwrap();
        assert!(hash < 1 << 12);
        assert_eq!(again.shared_hash("a@x.test"), Some(hash));
        let others = (0..64).filter(|n| PasswordMark::of(&[*n]).shared_hash("a@x.test") == Some(hash));
        assert!(others.count() < 4);
        share_marks(Some([8; 16]));
        assert!(first.shared_hash("a@x.test") != Some(hash) || again.shared_hash("b@x.test") != Some(hash));
        share_marks(None);
        assert_eq!(first.shared_hash("a@x.test"), None);
    }
}
