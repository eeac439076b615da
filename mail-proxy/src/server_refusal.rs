//! How a mailbox server refuses a login, and what its words mean where it has no codes for it.

use crate::referral::Referral;

/// A mailbox server did not take the login.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Refusal {
    /// Name or password are wrong (or the server says nothing that tells otherwise).
    BadCredentials,
    /// Some other reason that the user should read, without tag and line end:
    /// `NO [ALERT] password must be changed before IMAP login permitted`.
    Text(String),
    /// The password was right, but there is a limit: `NO [LIMIT] …`, `-ERR [LOGIN-DELAY] …`.
    Limit(String),
    /// The server cannot say at the moment (`[UNAVAILABLE]`, `[SYS/TEMP]`, `[INUSE]`, BYE, …). It may be asked again.
    Temporary(String),
    /// The server has ended the dialogue, and is not asked again at once: behind a password BYE may be its answer to a wrong
    /// one, and a limit is no matter of a moment.
    Ended(String),
    /// The account lives elsewhere: the route is stale (MAIL §11.10).
    WrongHost,
    /// The same, and the server says where.
    Referred(Referral),
    /// The server does not speak the protocol as it must.
    Broken(&'static str),
}

impl Refusal {
    /// The same of a server that was asked for a mechanism that it does not list: it has not seen the token, and what it
    /// says of the mechanism must not tell that the account exists.
    pub(crate) fn of_unlisted(self) -> Self {
        match self {
            Self::Text(_) => Self::BadCredentials,
            other => other,
        }
    }
}

/// Servers older than RFC 5530 only have words. The text is in lower case.
pub(crate) fn says_bad_credentials(text: &str) -> bool {
    const WORDS: [&str; 17] = [
        "login failed",
        "login incorrect",
        "login rejected",
        "logon failure",
        "authenticate failed",
        "authentication failed",
        "authentication failure",
        "authorization failed",
        "bad password",
        "invalid credentials",
        "invalid login",
        "invalid password",
        "invalid user",
        "password incorrect",
        "password is incorrect",
        "incorrect password",
        "wrong password",
    ];
    matches!(text, "no" | "-err") || WORDS.iter().any(|words| text.contains(words))
}

/// Whether a server speaks of a limit that a user with a good password has reached. Dovecot says it behind
/// `[UNAVAILABLE]`, Gmail behind `[ALERT]`. Too many failures are not that: no password was right. The text is
/// in lower case.
pub(crate) fn says_limit(text: &str) -> bool {
    let many = text.contains("maximum number of") || text.contains("too many");
    let of = ["connection", "session", "login"]
        .iter()
        .any(|word| text.contains(word));
    many && of && !says_failures(text)
}

/// Why a server's list or answer forbids to say a password to it. Its user cannot mend that, only the administrator of the link.
pub(crate) const TLS_WANTED: &str = "it takes no password without TLS";

/// A server was to begin TLS, and did not agree.
pub(crate) const NO_STARTTLS: &str = "it does not begin TLS, which its rule demands";

/// A server has no answer to a login but that it is none. Some say so of one that is too long for them.
pub(crate) const NOT_UNDERSTOOD: &str = "it does not understand the login";

/// Whether a server speaks of how long something is.
pub(crate) fn says_too_long(text: &str) -> bool {
    let text = text.to_ascii_lowercase();
    ["too long", "too big", "too large", "buffer", "length"]
        .iter()
        .any(|word| text.contains(word))
}

/// Why a server allows no login to another user's mailbox.
pub(crate) const NO_PLAIN: &str = "it does not offer PLAIN, which a login to another account needs";

/// Why a server can be told no token.
pub(crate) const NO_TOKEN: &str = "it offers neither OAUTHBEARER nor XOAUTH2, which a login with a token needs";

/// Why a server cannot be told what a client says in a dialogue with it.
pub(crate) const NO_EXCHANGE: &str = "it does not offer the SCRAM mechanism that the client has chosen";

/// Why a server must not be told it: it would take it for an attack.
pub(crate) const BINDS: &str = "it offers SCRAM with channel binding, and the client says that it could do that too";

/// Whether a server refuses passwords for want of TLS, whatever code stands before it: Dovecot, Zimbra and we
/// ourselves have these words. The text is in lower case.
pub(crate) fn wants_tls(text: &str) -> bool {
    const WORDS: [&str; 4] = [
        "plaintext authentication dis",
        "cleartext logins disabled",
        "cleartext login is disabled",
        "only valid after entering tls",
    ];
    WORDS.iter().any(|words| text.contains(words))
}

/// Whether a server without codes speaks of itself, not of name or password. A locked account is another matter. The
/// text is in lower case.
pub(crate) fn says_own_failure(text: &str) -> bool {
    const WORDS: [&str; 6] = [
        "temporary authentication failure",
        "temporary error",
        "temporary failure",
        "temporary problem",
        "internal error",
        "internal server error",
    ];
    WORDS.iter().any(|words| text.contains(words)) && !text.contains("lock")
}

/// Whether a server speaks of failed attempts.
pub(crate) fn says_failures(text: &str) -> bool {
    ["failed", "failures", "attempt", "invalid", "incorrect"]
        .iter()
        .any(|word| text.contains(word))
}
