//! SCRAM (RFC 5802, RFC 7677) as a relay reads it: who logs in, whether a message has the form that it must have, and
//! what a client hears for a name that no mailbox server is asked about.
//!
//! Deliberately not here: passwords, salted passwords and signatures. Client and mailbox server check each other.

use std::collections::VecDeque;
use std::hash::{BuildHasher, Hasher, RandomState};
use std::sync::atomic::{AtomicU64, Ordering};

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use parking_lot::Mutex;
use siphasher::sip::SipHasher24;

use crate::gs2::{Gs2Header, sasl_name};

/// Octets of a message. With names and nonces of any sane length they have some hundred.
pub(crate) const MAX_MESSAGE: usize = 2048;

/// Octets of a client's nonce. Clients draw some dozens; a server's message holds it once more, and must stay a message.
const MAX_NONCE: usize = 256;

/// The first message of a client.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ClientFirst {
    message: Vec<u8>,
    /// The name as it was typed, in lower case as far as it is ASCII.
    name: Vec<u8>,
    nonce: Vec<u8>,
    could_bind: bool,
}

/// Of the first message: the name of the user, and whose mailbox is wanted, where it says so.
type Names = (Vec<u8>, Option<Vec<u8>>);

impl ClientFirst {
    /// Parses it.
    ///
    /// ```text
    /// client-first-message      = gs2-header client-first-message-bare              ; RFC 5802 section 7
    /// client-first-message-bare = "n=" saslname "," "r=" 1*printable ["," extensions]
    /// ```
    pub(crate) fn parse(message: &[u8]) -> Option<(Self, Vec<u8>, Option<Vec<u8>>)> {
        let (header, bare) = Gs2Header::parse(message).filter(|_| message.len() <= MAX_MESSAGE)?;
        let (nonce, (user, authzid)) = Self::parse_bare(bare, header.authzid)?;
        let first = Self {
            message: message.to_vec(),
            name: user.to_ascii_lowercase(),
            nonce,
            could_bind: header.could_bind,
        };
        Some((first, user, authzid))
    }

    fn parse_bare(bare: &[u8], authzid: Option<Vec<u8>>) -> Option<(Vec<u8>, Names)> {
        let mut parts = bare.split(|&byte| byte == b',');
        let user = sasl_name(parts.next()?.strip_prefix(b"n=")?)?;
        let nonce = parts.next()?.strip_prefix(b"r=")?;
        (is_nonce(nonce) && nonce.len() <= MAX_NONCE && is_one_line(bare)).then(|| (nonce.to_vec(), (user, authzid)))
    }

    /// The message as the client sent it. It is signed by the proof, and goes on unchanged.
    pub(crate) fn message(&self) -> &[u8] {
        &self.message
    }

    /// Whether the client could bind the login to its TLS channel and believes that the server cannot. A server that can
    /// must then refuse (RFC 5802 section 6).
    pub(crate) fn could_bind(&self) -> bool {
        self.could_bind
    }
}

/// What a mailbox server has said.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum ServerMessage {
    /// Salt and iteration count.
    First,
    /// Its signature: the proof was right.
    Final,
    /// Why it does not go on, in the words of RFC 5802 section 7 (`unknown-user`, `invalid-proof`, …).
    Error(String),
}

impl ServerMessage {
    /// Parses it.
    pub(crate) fn parse(message: &[u8]) -> Option<Self> {
        if let Some(error) = message.strip_prefix(b"e=") {
            let word = error.split(|&byte| byte == b',').next()?;
            return Some(Self::Error(String::from_utf8_lossy(word).into_owned()));
        }
        if message.strip_prefix(b"v=").is_some_and(|rest| !rest.is_empty()) {
            return Some(Self::Final);
        }
        ServerFirst::parse(message).map(|_| Self::First)
    }
}

/// Whether a client's response to this message of a server has the form that it must have: the proof behind the first
/// one, nothing behind the signature. What has it not is never sent on, so that no client can have a server break off.
///
/// ```text
/// client-final-message = "c=" base64 "," "r=" 1*printable ["," extensions] "," "p=" base64     ; RFC 5802 section 7
/// ```
pub(crate) fn is_response(message: &[u8], response: &[u8]) -> bool {
    if message.starts_with(b"v=") {
        return response.is_empty();
    }
    let parts: Vec<&[u8]> = response.split(|&byte| byte == b',').collect();
    let [binding, nonce, .., proof] = parts.as_slice() else {
        return false;
    };
    let is_base64 = |part: &[u8], name: &[u8]| {
        part.strip_prefix(name)
            .is_some_and(|text| STANDARD.decode(text).is_ok())
    };
    response.len() <= MAX_MESSAGE
        && is_one_line(response)
        && is_base64(binding, b"c=")
        && nonce.strip_prefix(b"r=").is_some_and(is_nonce)
        && is_base64(proof, b"p=")
}

fn is_nonce(text: &[u8]) -> bool {
    !text.is_empty() && text.iter().all(|byte| matches!(byte, 0x21..=0x2b | 0x2d..=0x7e))
}

/// Extensions may hold any text but these.
fn is_one_line(text: &[u8]) -> bool {
    !text.iter().any(|byte| matches!(byte, 0 | b'\r' | b'\n'))
}

/// The first message of a server.
#[derive(Debug)]
struct ServerFirst<'a> {
    nonce: &'a [u8],
    salt: Vec<u8>,
    iterations: u32,
}

impl<'a> ServerFirst<'a> {
    /// ```text
    /// server-first-message = "r=" 1*printable "," "s=" base64 "," "i=" posit-number ["," extensions]  ; RFC 5802 section 7
    /// ```
    fn parse(message: &'a [u8]) -> Option<Self> {
        let mut parts = message.split(|&byte| byte == b',');
        let nonce = parts.next()?.strip_prefix(b"r=").filter(|nonce| is_nonce(nonce))?;
        let salt = STANDARD.decode(parts.next()?.strip_prefix(b"s=")?).ok()?;
        let iterations = std::str::from_utf8(parts.next()?.strip_prefix(b"i=")?).ok()?;
        Some(Self {
            nonce,
            salt,
            iterations: iterations.parse().ok().filter(|count| *count > 0)?,
        })
    }
}

/// How a mailbox server's first message looks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Look {
    iterations: u32,
    /// Octets of the salt.
    salt: usize,
    /// Octets that the server adds to the nonce.
    nonce: usize,
    /// The server's part of the nonce is base64.
    is_base64: bool,
    /// The same name gets another salt each time, as where a server keeps passwords and no salted ones.
    salts_change: bool,
}

/// Dovecot's.
impl Default for Look {
    fn default() -> Self {
        Self {
            iterations: 4096,
            salt: 16,
            nonce: 64,
            is_base64: false,
            salts_change: false,
        }
    }
}

/// Names whose last salt is remembered, to learn whether salts change.
const REMEMBERED: usize = 32;

/// What a client hears for a name that no mailbox server is asked about, or that one refuses before it has seen a proof:
/// the message that a server would have sent, with a salt that no password belongs to.
///
/// It looks as those of the servers do that have answered last.
#[derive(Debug)]
pub struct Decoys {
    key: (u64, u64),
    count: AtomicU64,
    seen: Mutex<Seen>,
}

#[derive(Debug, Default)]
struct Seen {
    look: Look,
    /// Hashes of names and of their last salts.
    salts: VecDeque<(u64, u64)>,
}

impl Default for Decoys {
    fn default() -> Self {
        let word = || RandomState::new().build_hasher().finish();
        Self {
            key: (word(), word()),
            count: AtomicU64::new(word()),
            seen: Mutex::default(),
        }
    }
}

impl Decoys {
    /// Notes how a server's first message to this user looks, so that others look alike.
    pub(crate) fn note(&self, user: &str, first: &ClientFirst, message: &[u8]) {
        let Some(said) = ServerFirst::parse(message) else {
            return;
        };
        let Some(added) = said.nonce.strip_prefix(first.nonce.as_slice()) else {
            return;
        };
        let (user, salt) = (self.hash(&[user.as_bytes(), &first.name]), self.hash(&[&said.salt]));
        let mut seen = self.seen.lock();
        let before = seen.salts.iter().position(|(other, _)| *other == user);
        let before = before.and_then(|place| seen.salts.remove(place));
        if seen.salts.len() >= REMEMBERED {
            seen.salts.pop_front();
        }
        seen.salts.push_back((user, salt));
        seen.look = Look {
            iterations: said.iterations,
            salt: said.salt.len(),
            nonce: added.len(),
            is_base64: added
                .iter()
                .all(|byte| byte.is_ascii_alphanumeric() || b"+/=".contains(byte)),
            salts_change: before.map_or(seen.look.salts_change, |(_, last)| last != salt),
        };
    }

    /// A server's first message for this user, as the mailbox servers would say it. A name that is typed in another form
    /// gets another salt, whether it is that of an account or not: a server reads names as they are typed, but for their
    /// case, and has no salt for what it does not know.
    pub(crate) fn first(&self, user: &str, first: &ClientFirst) -> Vec<u8> {
        let look = self.seen.lock().look;
        let turn = self.count.fetch_add(1, Ordering::Relaxed).to_le_bytes();
        let salt = match look.salts_change {
            true => self.octets(&[b"salt", user.as_bytes(), &first.name, &turn], look.salt),
            false => self.octets(&[b"salt", user.as_bytes(), &first.name], look.salt),
        };
        let alphabet: Vec<u8> = match look.is_base64 {
            true => (b'A'..=b'Z')
                .chain(b'a'..=b'z')
                .chain(b'0'..=b'9')
                .chain(*b"+/")
                .collect(),
            false => (0x21..=0x7e).filter(|byte| *byte != b',').collect(),
        };
        let drawn = self.octets(&[b"nonce", &turn], look.nonce);
        let letter = |octet: &u8| alphabet[usize::from(*octet) % alphabet.len()];
        let mut message = b"r=".to_vec();
        message.extend_from_slice(&first.nonce);
        message.extend(drawn.iter().map(letter));
        message.extend_from_slice(format!(",s={},i={}", STANDARD.encode(salt), look.iterations).as_bytes());
        message
    }

    /// So many octets that nobody can foretell who has not the key.
    fn octets(&self, of: &[&[u8]], count: usize) -> Vec<u8> {
        let blocks = 0..count.div_ceil(8) as u64;
        let mut octets: Vec<u8> = blocks
            .flat_map(|block| self.hash(&[of, &[&block.to_le_bytes()]].concat()).to_le_bytes())
            .collect();
        octets.truncate(count);
        octets
    }

    fn hash(&self, parts: &[&[u8]]) -> u64 {
        let mut hasher = SipHasher24::new_with_keys(self.key.0, self.key.1);
        for part in parts {
            hasher.write_usize(part.len());
            hasher.write(part);
        }
        hasher.finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn client(message: &str) -> ClientFirst {
        ClientFirst::parse(message.as_bytes()).expect("a good message").0
    }

    #[test]
    fn first_messages() {
        let (first, user, authzid) = ClientFirst::parse(b"y,a=bob,n=al=2Cice,r=ab!=c,x=1").expect("good");
        assert!(first.could_bind());
        assert_eq!(first.nonce, b"ab!=c");
        assert_eq!((user, authzid), (b"al,ice".to_vec(), Some(b"bob".to_vec())));
        client(&format!("n,,n=al,r={}", "a".repeat(MAX_NONCE)));
        for bad in [
            "n,,",
            "n,,n=al",
            "n,,n=al,r=",
            "n,,n=al,r=a b",
            "n,,m=x,n=al,r=a",
            "n,,r=a,n=al",
            "n,,n=al,r=a,x=\r\ny",
            "p=tls-exporter,,n=al,r=a",
            &format!("n,,n=al,r={}", "a".repeat(MAX_NONCE + 1)),
            &format!("n,,n=al,r=a,x={}", "a".repeat(MAX_MESSAGE)),
        ] {
            assert_eq!(ClientFirst::parse(bad.as_bytes()), None, "{bad:?}");
        }
    }

    #[test]
    fn what_servers_say() {
        let parse = |message: &str| ServerMessage::parse(message.as_bytes());
        assert_eq!(parse("r=ab,s=QSXCR+Q6sek8bf92,i=4096"), Some(ServerMessage::First));
        assert_eq!(parse("v=rmF9pqV8S7suAoZWja4dJRkFsKQ="), Some(ServerMessage::Final));
        assert_eq!(
            parse("e=invalid-proof,x=1"),
            Some(ServerMessage::Error("invalid-proof".to_owned()))
        );
        for bad in [
            "",
            "v=",
            "r=ab,s=QQ==,i=0",
            "r=ab,s=QQ,i=1",
            "r=a b,s=QQ==,i=1",
            "r=ab,i=1,s=QQ==",
        ] {
            assert_eq!(parse(bad), None, "{bad:?}");
        }
    }

    #[test]
    fn what_clients_answer() {
        let to_first = |response: &str| is_response(b"r=ab,s=QQ==,i=1", response.as_bytes());
        assert!(to_first("c=biws,r=abcd,p=v0X8v3Bz2T0CJGbJQyF0X+HI4Ts="));
        assert!(to_first("c=biws,r=abcd,x=y,p=QQ=="));
        for bad in [
            "",
            "c=biws,r=abcd",
            "c=biws,r=,p=QQ==",
            "c=biw,r=ab,p=QQ==",
            "r=ab,c=biws,p=QQ==",
            "c=biws,r=ab,p=QQ",
            "c=biws,r=ab,x=\n,p=QQ==",
            &format!("c=biws,r={},p=QQ==", "a".repeat(MAX_MESSAGE)),
        ] {
            assert!(!to_first(bad), "{bad:?}");
        }
        assert!(is_response(b"v=QQ==", b"") && !is_response(b"v=QQ==", b"c=biws,r=ab,p=QQ=="));
    }

    #[test]
    fn a_decoy_is_a_servers_message_with_a_salt_of_the_name() {
        let (decoys, first) = (Decoys::default(), client("n,,n=nobody,r=fyko"));
        let say = |user: &str| String::from_utf8(decoys.first(user, &first)).expect("ASCII");
        let parts = |message: &str| message.split(',').map(str::to_owned).collect::<Vec<_>>();
        let (one, again, other) = (
            parts(&say("a@x.test")),
            parts(&say("a@x.test")),
            parts(&say("b@x.test")),
        );
        assert_eq!(
            ServerMessage::parse(one.join(",").as_bytes()),
            Some(ServerMessage::First)
        );
        assert!(one[0].starts_with("r=fyko") && one[0].len() == "r=fyko".len() + 64);
        assert!(one[0] != again[0] && one[1] == again[1] && one[1] != other[1]);
        assert_eq!((one[1].len(), one[2].as_str()), ("s=".len() + 24, "i=4096"));
        assert_ne!(
            Decoys::default().first("a@x.test", &first)[70..],
            say("a@x.test").as_bytes()[70..]
        );
    }

    /// A server knows an account by one form of its name, and a salt is made up for the others: from that it follows that
    /// there is one, if a name without account had the same salt in all forms.
    #[test]
    fn each_form_of_a_name_has_a_salt_of_its_own() {
        let decoys = Decoys::default();
        let salt = |typed: &str| {
            let message = decoys.first("bob@xn--bcher-kva.test", &client(&format!("n,,n={typed},r=fyko")));
            let message = String::from_utf8(message).expect("ASCII");
            message.split(',').nth(1).map(str::to_owned)
        };
        let plain = salt("bob@xn--bcher-kva.test");
        assert_eq!(salt("Bob@XN--Bcher-kva.TEST"), plain);
        for other in [
            "bob",
            "bob@b\u{fc}cher.test",
            "bob@xn--bcher-kva.test/tb",
            " bob@xn--bcher-kva.test",
        ] {
            assert_ne!(salt(other), plain, "{other}");
        }
    }

    #[test]
    fn decoys_look_like_what_servers_have_said() {
        let (decoys, first) = (Decoys::default(), client("n,,n=al,r=fyko"));
        let say = || String::from_utf8(decoys.first("a@x.test", &first)).expect("ASCII");
        let note = |user: &str, message: &str| decoys.note(user, &first, message.as_bytes());
        note("al@x.test", "r=fykoAb+/cdEF,s=QSXCR+Q6sek8bf92,i=15000");
        let said = say();
        let nonce = said.strip_prefix("r=fyko").expect("the client's nonce");
        assert!(nonce.ends_with(",i=15000") && nonce.find(",s=") == Some(8), "{said}");
        assert!(
            nonce[..8]
                .bytes()
                .all(|byte| byte.is_ascii_alphanumeric() || b"+/".contains(&byte))
        );
        let salt = || say().split(',').nth(1).map(str::to_owned);
        assert_eq!(salt(), salt());
        note("al@x.test", "r=fykoAb+/cdEF,s=QSXCR+Q6sek8bf93,i=15000");
        assert_ne!(salt(), salt());
        note("al@x.test", "r=fykoAb+/cdEF,s=QSXCR+Q6sek8bf93,i=15000");
        assert_eq!(salt(), salt());
        note("al@x.test", "r=other,s=QQ==,i=7");
        assert!(say().ends_with(",i=15000"), "not an answer to this client");
        for n in 0..100 {
            note(&format!("{n}@x.test"), "r=fykoA,s=QQ==,i=7");
        }
        assert_eq!(decoys.seen.lock().salts.len(), REMEMBERED);
    }
}
