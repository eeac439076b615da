//! How a client logs in, by name: the command or the SASL mechanism.

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
}

impl Mechanism {
    /// The name in audit records.
    pub fn name(self) -> &'static str {
        match self {
            Self::Login => "LOGIN",
            Self::UserPass => "USER",
            Self::SaslPlain => "PLAIN",
            Self::SaslLogin => "SASL-LOGIN",
        }
    }

    /// Whether the login came by SASL (`AUTHENTICATE` / `AUTH`).
    pub fn is_sasl(self) -> bool {
        matches!(self, Self::SaslPlain | Self::SaslLogin)
    }
}
