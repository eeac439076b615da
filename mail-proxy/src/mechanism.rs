//! How a client logs in, by name: the command or the SASL mechanism. A new mechanism is an entry of these tables, and
//! its messages in `sasl.rs`.

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
}

impl Mechanism {
    /// The mechanisms of SASL, in the order in which they are offered.
    pub const SASL: [Self; 4] = [Self::SaslPlain, Self::SaslLogin, Self::OauthBearer, Self::Xoauth2];

    /// The name in audit records.
    pub fn name(self) -> &'static str {
        match self {
            Self::Login => "LOGIN",
            Self::UserPass => "USER",
            Self::SaslPlain => "PLAIN",
            Self::SaslLogin => "SASL-LOGIN",
            Self::OauthBearer => "OAUTHBEARER",
            Self::Xoauth2 => "XOAUTH2",
        }
    }

    /// The name in `AUTHENTICATE` and `AUTH` (IANA's registry of SASL mechanisms). `None` for what is a command.
    pub fn sasl_name(self) -> Option<&'static str> {
        match self {
            Self::Login | Self::UserPass => None,
            Self::SaslLogin => Some("LOGIN"),
            _ => Some(self.name()),
        }
    }

    /// The SASL mechanism of this name, in any case.
    pub fn of_sasl(name: &[u8]) -> Option<Self> {
        let is_named = |one: &Self| {
            one.sasl_name()
                .is_some_and(|own| own.as_bytes().eq_ignore_ascii_case(name))
        };
        Self::SASL.into_iter().find(is_named)
    }

    /// Whether the login came by SASL (`AUTHENTICATE` / `AUTH`).
    pub fn is_sasl(self) -> bool {
        self.sasl_name().is_some()
    }

    /// Whether it proves who somebody is by a token of an authorization server, which only such mechanisms can carry.
    pub fn is_token(self) -> bool {
        matches!(self, Self::OauthBearer | Self::Xoauth2)
    }
}

/// Some of the SASL mechanisms: those that are offered, or those that a server has.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Mechanisms(u8);

impl Mechanisms {
    /// Adds one.
    pub fn insert(&mut self, mechanism: Mechanism) {
        self.0 |= Self::bit(mechanism);
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
        Mechanism::SASL
            .into_iter()
            .filter(move |one| self.contains(*one))
            .filter_map(Mechanism::sasl_name)
    }

    fn bit(mechanism: Mechanism) -> u8 {
        let place = Mechanism::SASL.iter().position(|one| *one == mechanism);
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
            ("USER", None),
            ("SASL-LOGIN", None),
            ("", None),
        ] {
            assert_eq!(Mechanism::of_sasl(name.as_bytes()), expected, "{name}");
        }
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
}
