//! What a client authenticates with, and what of it no server is asked about.

use mail_directory::{Secret, names};

use crate::login_failure::LoginFailure;
use crate::mechanism::Mechanism;
use crate::scram::ClientFirst;

/// What a client proves itself with, as far as it is known here.
#[derive(Debug, Clone)]
pub enum Proof {
    /// A password, any bytes but NUL, CR, LF.
    Password(Secret<Vec<u8>>),
    /// A token of an authorization server.
    Token(Secret<Vec<u8>>),
    /// The first of the messages that client and mailbox server hold with each other. The password is not known here.
    Exchange(ClientFirst),
    /// The certificate of the client's TLS channel, which has been verified.
    Certificate,
}

impl Proof {
    /// The password or the token.
    pub fn secret(&self) -> Option<&[u8]> {
        match self {
            Self::Password(secret) | Self::Token(secret) => Some(secret.expose()),
            Self::Exchange(_) | Self::Certificate => None,
        }
    }
}

/// A user whom mailbox servers let into every mailbox.
#[derive(Debug)]
pub struct Master {
    /// Its name there.
    pub user: String,
    /// Its password there.
    pub password: Secret<String>,
}

/// What a client authenticates with.
#[derive(Debug, Clone)]
pub struct Credentials {
    /// How it was offered.
    pub mechanism: Mechanism,
    /// Whose mailbox is wanted, as typed and without suffix: the authorization identity if one was given,
    /// otherwise the authentication identity. The route is looked up for this name. Empty where the client leaves it
    /// to its certificate.
    pub user: String,
    /// The authentication identity, where it is another user (SASL PLAIN with a differing authorization identity).
    pub authenticating_as: Option<String>,
    /// `/tb`, `/wm` or `/ni` behind the user, taken off for the lookup and put back towards an IMAP server (MAIL §3.3).
    pub suffix: Option<&'static str>,
    /// What proves it.
    pub proof: Proof,
}

/// Octets of a user name (MAIL §3.1).
const MAX_USER: usize = 256;

/// Octets of a password. Webmails log in with tokens of some thousands; typed passwords are shorter by far.
const MAX_PASSWORD: usize = 8 * 1024;

/// Octets of a token. Some authorization servers put all that they know of a user into it, 10 kB and more.
const MAX_TOKEN: usize = 12 * 1024;

/// What may stand behind a user name (MAIL §3.3): mailbox servers switch on quirks for Thunderbird, Windows Mobile,
/// and for clients that must not be offered IDLE.
const SUFFIXES: [&str; 3] = ["/tb", "/wm", "/ni"];

/// Octets of a password for which LOGIN and PASS are not sure to do: Dovecot and others read short lines before a
/// login, but SASL messages of 8 KiB and more.
const LONG_PASSWORD: usize = 512;

/// The same of a token, which goes by SASL everywhere: 8 KiB in base64.
const LONG_TOKEN: usize = 6 * 1024;

impl Credentials {
    /// Whether a mailbox server that knows SASL should be told them by it, whichever way the client took.
    pub(crate) fn prefer_sasl(&self) -> bool {
        self.mechanism.is_sasl() || self.has_long_password()
    }

    /// Whether a mailbox server that breaks off may have done so because of the password's length.
    pub(crate) fn has_long_password(&self) -> bool {
        match &self.proof {
            Proof::Password(password) => password.expose().len() > LONG_PASSWORD,
            Proof::Token(token) => token.expose().len() > LONG_TOKEN,
            Proof::Exchange(_) | Proof::Certificate => false,
        }
    }

    /// Takes a name and a password as they were typed.
    pub fn parse(mechanism: Mechanism, user: &[u8], password: &[u8]) -> Result<Self, Rejected> {
        match is_password(password) || password.len() > MAX_PASSWORD {
            true => Self::by_secret(MAX_PASSWORD, mechanism, user, password, Proof::Password),
            false => Self::reject(mechanism, user),
        }
    }

    /// Takes a name and a token.
    pub fn with_token(mechanism: Mechanism, user: &[u8], token: &[u8]) -> Result<Self, Rejected> {
        Self::by_secret(MAX_TOKEN, mechanism, user, token, Proof::Token)
    }

    /// The same with a token of the authentication identity.
    pub(crate) fn with_delegated_token(
        mechanism: Mechanism,
        authzid: &[u8],
        authcid: &[u8],
        token: &[u8],
    ) -> Result<Self, Rejected> {
        Self::delegate(Self::with_token(mechanism, authzid, token), authzid, authcid)
    }

    fn by_secret(
        most: usize,
        mechanism: Mechanism,
        user: &[u8],
        password: &[u8],
        proof: fn(Secret<Vec<u8>>) -> Proof,
    ) -> Result<Self, Rejected> {
        // Some directories take a bind without a password for a success (RFC 4513 section 5.1.2); RFC 4616 has none.
        if password.is_empty() {
            return Self::reject(mechanism, user);
        }
        if password.len() > most && parse_user(user).is_some() {
            return Err(Rejected::new(mechanism, user, LoginFailure::PasswordTooLong));
        }
        Self::by(mechanism, user, proof(Secret::new(password.to_vec())))
    }

    /// Takes a name as it was typed, and what proves it.
    pub(crate) fn by(mechanism: Mechanism, user: &[u8], proof: Proof) -> Result<Self, Rejected> {
        let Some((name, suffix)) = parse_user(user) else {
            return Self::reject(mechanism, user);
        };
        Ok(Self {
            mechanism,
            user: name.to_owned(),
            authenticating_as: None,
            suffix,
            proof,
        })
    }

    /// Takes the authorization identity of a client that has shown a certificate. Empty: the certificate says it.
    pub(crate) fn by_certificate(mechanism: Mechanism, authzid: &[u8]) -> Result<Self, Rejected> {
        match authzid {
            b"" => Ok(Self {
                mechanism,
                user: String::new(),
                authenticating_as: None,
                suffix: None,
                proof: Proof::Certificate,
            }),
            _ => Self::by(mechanism, authzid, Proof::Certificate),
        }
    }

    /// The login of a user by a master user, as it goes on to a mailbox server.
    pub(crate) fn by_master(&self, master: &Master) -> Self {
        Self {
            mechanism: Mechanism::SaslPlain,
            authenticating_as: Some(master.user.clone()),
            proof: Proof::Password(Secret::new(master.password.expose().as_bytes().to_vec())),
            ..self.clone()
        }
    }

    /// Credentials that no server may be asked about.
    pub fn reject(mechanism: Mechanism, user: &[u8]) -> Result<Self, Rejected> {
        Err(Rejected::new(mechanism, user, LoginFailure::UnknownUser))
    }

    /// Takes the two identities of a SASL message, and a password as it was typed.
    pub fn parse_delegated(
        mechanism: Mechanism,
        authzid: &[u8],
        authcid: &[u8],
        password: &[u8],
    ) -> Result<Self, Rejected> {
        Self::delegate(Self::parse(mechanism, authzid, password), authzid, authcid)
    }

    /// The same with what proves the authentication identity.
    pub(crate) fn by_delegate(
        mechanism: Mechanism,
        authzid: &[u8],
        authcid: &[u8],
        proof: Proof,
    ) -> Result<Self, Rejected> {
        Self::delegate(Self::by(mechanism, authzid, proof), authzid, authcid)
    }

    /// Both identities naming the same account is a plain login; otherwise the authentication identity goes to the
    /// server as it was typed, because nothing is looked up for it.
    fn delegate(parsed: Result<Self, Rejected>, authzid: &[u8], authcid: &[u8]) -> Result<Self, Rejected> {
        let by = |rejected| Rejected {
            authcid: displayable(authcid),
            ..rejected
        };
        let mut credentials = parsed.map_err(by)?;
        let Some((name, suffix)) = parse_user(authcid) else {
            return Self::reject(credentials.mechanism, authzid).map_err(by);
        };
        if names::account(name) == names::account(&credentials.user) {
            credentials.suffix = credentials.suffix.or(suffix);
        } else {
            credentials.authenticating_as = Some(format!("{name}{}", suffix.unwrap_or_default()));
        }
        Ok(credentials)
    }
}

/// A login name as a mail program sends it: the name to look up, and the suffix behind it. `None`: no account can have
/// it.
pub fn login_name(typed: &str) -> Option<(&str, Option<&'static str>)> {
    parse_user(typed.as_bytes())
}

/// The name in front of a suffix.
pub(crate) fn without_suffix(name: &str) -> &str {
    parse_user(name.as_bytes()).map_or(name, |(name, _)| name)
}

/// A name, and the suffix that stood behind it. Control characters are refused before any lookup: they are meant
/// for a cache, a log or the next server (CVE-2022-27924 was a line end in a user name).
fn parse_user(typed: &[u8]) -> Option<(&str, Option<&'static str>)> {
    let typed = std::str::from_utf8(typed).ok()?;
    let (name, suffix) = SUFFIXES
        .iter()
        .find_map(|&suffix| Some((typed.strip_suffix(suffix)?, Some(suffix))))
        .unwrap_or((typed, None));
    let good = !name.is_empty() && typed.len() <= MAX_USER && !typed.chars().any(char::is_control);
    good.then_some((name, suffix))
}

fn is_password(typed: &[u8]) -> bool {
    !typed.iter().any(|byte| matches!(byte, 0 | b'\r' | b'\n'))
}

/// A name for the audit log, however bad it is.
fn displayable(typed: &[u8]) -> Option<String> {
    let shown = String::from_utf8_lossy(&typed[..typed.len().min(MAX_USER)]);
    let shown = shown.replace(
        |char: char| char.is_control() || char == char::REPLACEMENT_CHARACTER,
        "?",
    );
    (!shown.is_empty()).then_some(shown)
}

/// A login that must fail because no mailbox server may be asked about such a name or password.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rejected {
    /// How it was offered.
    pub mechanism: Mechanism,
    /// The name as typed, cut, with everything unprintable replaced.
    pub user: Option<String>,
    /// The same of the authentication identity, where it is another user.
    pub authcid: Option<String>,
    /// What it is to be called.
    pub failure: LoginFailure,
}

impl Rejected {
    fn new(mechanism: Mechanism, user: &[u8], failure: LoginFailure) -> Self {
        Self {
            mechanism,
            user: displayable(user),
            authcid: None,
            failure,
        }
    }
}
