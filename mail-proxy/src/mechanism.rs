//! How a client logs in, by name: the command or the SASL mechanism. A new mechanism is an entry of the table here, and
//! its machine in `sasl.rs`.

/// How the client logged in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mechanism {
    /// IMAP `LOGIN` command.
    Login,
    /// POP3 `USER` and `PASS`.
    UserPass,
    /// SASL PLAIN (RFC 4616).
    SaslPlain,
    /// SASL LOGIN (draft-murchison-sasl-login).
    SaslLogin,
    /// SASL OAUTHBEARER (RFC 7628): a token instead of a password.
    OauthBearer,
    /// SASL XOAUTH2, the older form of the same (Google's).
    Xoauth2,
    /// SASL X-ZIMBRA (MAIL §3.7): a token of the mailbox servers themselves, which take it and do not list it.
    XZimbra,
    /// SASL SCRAM-SHA-256 (RFC 7677).
    ScramSha256,
    /// SASL SCRAM-SHA-1 (RFC 5802).
    ScramSha1,
    /// SASL EXTERNAL (RFC 4422 appendix A): the certificate of the TLS channel.
    External,
}

/// What a client proves itself with. It decides where the user's name is found, and how the login goes on to the
/// mailbox server.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ProofKind {
    /// A password in clear text, which we pass on by the command or the mechanism that the server takes.
    Password,
    /// A token of an authorization server, with the name beside it. It goes on in the form that the server takes.
    Token,
    /// Messages that prove that both sides know the password, and do not show it. The first names the user; all are
    /// passed on unchanged, because each is signed by the last.
    Exchange,
    /// The certificate that the client has shown on its TLS channel. It names the user, and stays here: the login goes
    /// on as that of a master user.
    Certificate,
}

/// One way to log in.
#[derive(Debug)]
struct MechanismEntry {
    mechanism: Mechanism,
    /// The name in audit records.
    name: &'static str,
    /// The name in IANA's registry. `None`: a command.
    sasl: Option<&'static str>,
    proof: ProofKind,
}

/// All of them; those of SASL in the order in which they are offered.
const TABLE: [MechanismEntry; 10] = [
    MechanismEntry {
        mechanism: Mechanism::Login,
        name: "LOGIN",
        sasl: None,
        proof: ProofKind::Password,
    },
    MechanismEntry {
        mechanism: Mechanism::UserPass,
        name: "USER",
        sasl: None,
        proof: ProofKind::Password,
    },
    MechanismEntry {
        mechanism: Mechanism::SaslPlain,
        name: "PLAIN",
        sasl: Some("PLAIN"),
        proof: ProofKind::Password,
    },
    MechanismEntry {
        mechanism: Mechanism::SaslLogin,
        name: "SASL-LOGIN",
        sasl: Some("LOGIN"),
        proof: ProofKind::Password,
    },
    MechanismEntry {
        mechanism: Mechanism::OauthBearer,
        name: "OAUTHBEARER",
        sasl: Some("OAUTHBEARER"),
        proof: ProofKind::Token,
    },
    MechanismEntry {
        mechanism: Mechanism::Xoauth2,
        name: "XOAUTH2",
        sasl: Some("XOAUTH2"),
        proof: ProofKind::Token,
    },
    MechanismEntry {
        mechanism: Mechanism::ScramSha256,
        name: "SCRAM-SHA-256",
        sasl: Some("SCRAM-SHA-256"),
        proof: ProofKind::Exchange,
    },
    MechanismEntry {
        mechanism: Mechanism::ScramSha1,
        name: "SCRAM-SHA-1",
        sasl: Some("SCRAM-SHA-1"),
        proof: ProofKind::Exchange,
    },
    MechanismEntry {
        mechanism: Mechanism::External,
        name: "EXTERNAL",
        sasl: Some("EXTERNAL"),
        proof: ProofKind::Certificate,
    },
    MechanismEntry {
        mechanism: Mechanism::XZimbra,
        name: "X-ZIMBRA",
        sasl: Some("X-ZIMBRA"),
        proof: ProofKind::Token,
    },
];

impl Mechanism {
    /// The mechanisms of SASL, in the order in which they are offered.
    pub fn of_all_sasl() -> impl Iterator<Item = Self> {
        let of_sasl = TABLE.iter().filter(|entry| entry.sasl.is_some());
        of_sasl.map(|entry| entry.mechanism)
    }

    fn entry(self) -> &'static MechanismEntry {
        let of_this = TABLE.iter().find(|entry| entry.mechanism == self);
        of_this.unwrap_or(&TABLE[0])
    }

    /// The name in audit records.
    pub fn name(self) -> &'static str {
        self.entry().name
    }

    /// The name in `AUTHENTICATE` and `AUTH` (IANA's registry of SASL mechanisms). `None` for what is a command.
    pub fn sasl_name(self) -> Option<&'static str> {
        self.entry().sasl
    }

    /// The SASL mechanism of this name, in any case.
    pub fn of_sasl(name: &[u8]) -> Option<Self> {
        let is_named = |own: &str| own.as_bytes().eq_ignore_ascii_case(name);
        let named = TABLE.iter().find(|entry| entry.sasl.is_some_and(is_named));
        named.map(|entry| entry.mechanism)
    }

    /// Whether the login came by SASL (`AUTHENTICATE` / `AUTH`).
    pub fn is_sasl(self) -> bool {
        self.sasl_name().is_some()
    }

    /// What a client proves itself with.
    pub fn proof(self) -> ProofKind {
        self.entry().proof
    }

    /// Whether it proves who somebody is by a token, which only such mechanisms can carry.
    pub fn is_token(self) -> bool {
        self.proof() == ProofKind::Token
    }

    /// Whether a server says why it does not take a token, and its client answers that (RFC 7628 section 3.2.3).
    pub(crate) fn says_why(self) -> bool {
        matches!(self, Self::OauthBearer | Self::Xoauth2)
    }
}

/// Some of the SASL mechanisms: those that are offered, or those that a server has.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Mechanisms(u16);

/// How the names of mechanisms with channel binding end (RFC 5802 section 4).
const WITH_BINDING: &[u8] = b"-PLUS";

impl Mechanisms {
    /// Stands for all mechanisms with channel binding.
    const BINDS: u16 = 1 << 15;

    /// Adds one.
    pub fn insert(&mut self, mechanism: Mechanism) {
        self.0 |= Self::bit(mechanism);
    }

    /// Adds what a server lists by this name, if it means something to us.
    pub(crate) fn insert_named(&mut self, name: &[u8]) {
        match Mechanism::of_sasl(name) {
            Some(known) => self.insert(known),
            None if Self::is_with_binding(name) => self.0 |= Self::BINDS,
            None => {}
        }
    }

    fn is_with_binding(name: &[u8]) -> bool {
        let base = name.len().checked_sub(WITH_BINDING.len());
        base.is_some_and(|base| name[base..].eq_ignore_ascii_case(WITH_BINDING))
    }

    /// Whether a server has any that is bound to its TLS channel.
    pub(crate) fn binds(self) -> bool {
        self.0 & Self::BINDS != 0
    }

    /// Takes one away.
    pub fn remove(&mut self, mechanism: Mechanism) {
        self.0 &= !Self::bit(mechanism);
    }

    /// Whether it is one of them.
    pub fn contains(self, mechanism: Mechanism) -> bool {
        self.0 & Self::bit(mechanism) != 0
    }

    /// The names of those that are there, in the order in which they are offered.
    pub fn names(self) -> impl Iterator<Item = &'static str> {
        Mechanism::of_all_sasl()
            .filter(move |one| self.contains(*one))
            .filter_map(Mechanism::sasl_name)
    }

    fn bit(mechanism: Mechanism) -> u16 {
        let place = Mechanism::of_all_sasl().position(|one| one == mechanism);
        place.map_or(0, |place| 1 << place)
    }
}

impl FromIterator<Mechanism> for Mechanisms {
    fn from_iter<I: IntoIterator<Item = Mechanism>>(some: I) -> Self {
        let mut all = Self::default();
        some.into_iter().for_each(|one| all.insert(one));
        all
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names() {
        for (name, expected) in [
            ("plain", Some(Mechanism::SaslPlain)),
            ("Login", Some(Mechanism::SaslLogin)),
            ("XOAUTH2", Some(Mechanism::Xoauth2)),
            ("oauthbearer", Some(Mechanism::OauthBearer)),
            ("scram-sha-256", Some(Mechanism::ScramSha256)),
            ("x-zimbra", Some(Mechanism::XZimbra)),
            ("SCRAM-SHA-256-PLUS", None),
            ("USER", None),
            ("SASL-LOGIN", None),
            ("", None),
        ] {
            assert_eq!(Mechanism::of_sasl(name.as_bytes()), expected, "{name}");
        }
    }

    #[test]
    fn each_has_an_entry() {
        for entry in &TABLE {
            assert_eq!(entry.mechanism.name(), entry.name);
            assert!(entry.sasl.is_none() || Mechanisms::bit(entry.mechanism) & Mechanisms::BINDS == 0);
        }
        assert_eq!(Mechanism::UserPass.proof(), ProofKind::Password);
        assert!(Mechanism::Xoauth2.is_token() && !Mechanism::ScramSha1.is_token());
    }

    #[test]
    fn some_of_them() {
        let mut some = Mechanisms::from_iter([Mechanism::Xoauth2, Mechanism::SaslPlain]);
        assert_eq!(some.names().collect::<Vec<_>>(), ["PLAIN", "XOAUTH2"]);
        some.remove(Mechanism::SaslPlain);
        some.insert(Mechanism::Login);
        assert!(!some.contains(Mechanism::SaslPlain) && !some.contains(Mechanism::Login));
        assert_eq!(some.names().collect::<Vec<_>>(), ["XOAUTH2"]);
    }

    #[test]
    fn what_a_server_lists() {
        let mut has = Mechanisms::default();
        for name in ["scram-sha-1", "GSSAPI", "PLUS", "", "PLAIN"] {
            has.insert_named(name.as_bytes());
        }
        assert_eq!(has.names().collect::<Vec<_>>(), ["PLAIN", "SCRAM-SHA-1"]);
        assert!(!has.binds());
        has.insert_named(b"scram-sha-1-plus");
        assert!(has.binds());
        assert_eq!(has.names().count(), 2);
    }
}
