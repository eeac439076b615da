//! Every way in which a login can fail, and what each is called: by the client's protocol, by the audit log.
//!
//! What a peer may learn is decided here and nowhere else.

use crate::audit::Outcome;
use crate::login::Mechanism;

/// Characters of a mailbox server's own words that are passed on: one line of text for people.
pub const MAX_TEXT: usize = 512;

/// Why a login failed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum LoginFailure {
    /// The mailbox server says so. The client cannot tell this from [`LoginFailure::UnknownUser`].
    BadCredentials,
    /// The directory knows nobody of this name.
    UnknownUser,
    /// The domain does not admit the client's address. Told in the words of bad credentials.
    NotAllowed(String),
    /// The mailbox server's own reason, for the user to read, without tag and line end
    /// (`NO [ALERT] …`, `-ERR …`); passed on where `zimbraReverseProxyPassErrors` allows.
    Refused(String),
    /// The directory does not say how to reach the account's server.
    NoRoute(String),
    /// The mailbox server cannot be reached, breaks off, or says that it cannot help now.
    UpstreamDown(String),
    /// The directory cannot be asked.
    DirectoryDown(String),
}

impl LoginFailure {
    /// The word in the audit log.
    pub fn outcome(&self) -> Outcome {
        match self {
            LoginFailure::BadCredentials => Outcome::BadCredentials,
            LoginFailure::Refused(_) => Outcome::Refused,
            LoginFailure::UnknownUser => Outcome::UnknownUser,
            LoginFailure::NoRoute(_) | LoginFailure::NotAllowed(_) => Outcome::NoRoute,
            LoginFailure::UpstreamDown(_) => Outcome::UpstreamDown,
            LoginFailure::DirectoryDown(_) => Outcome::DirectoryDown,
        }
    }

    /// Whether the client hears of it only after the wait that slows down guessing. Failures that wait must look
    /// alike; failures that tell nothing about name or password need not wait.
    pub fn waits(&self) -> bool {
        match self {
            LoginFailure::BadCredentials
            | LoginFailure::UnknownUser
            | LoginFailure::NotAllowed(_)
            | LoginFailure::Refused(_) => true,
            LoginFailure::NoRoute(_) | LoginFailure::UpstreamDown(_) | LoginFailure::DirectoryDown(_) => false,
        }
    }

    /// The reason for operators, if there is more than the outcome. It may name hosts and never goes to a client.
    pub fn why(&self) -> Option<String> {
        match self {
            LoginFailure::BadCredentials | LoginFailure::UnknownUser => None,
            LoginFailure::NotAllowed(why)
            | LoginFailure::Refused(why)
            | LoginFailure::NoRoute(why)
            | LoginFailure::UpstreamDown(why)
            | LoginFailure::DirectoryDown(why) => Some(why.clone()),
        }
    }

    /// What an IMAP client is told behind its tag (response codes: RFC 5530).
    pub fn imap(&self, mechanism: Mechanism) -> String {
        let command = if mechanism.is_sasl() { "AUTHENTICATE" } else { "LOGIN" };
        match self {
            LoginFailure::BadCredentials | LoginFailure::UnknownUser | LoginFailure::NotAllowed(_) => {
                format!("NO [AUTHENTICATIONFAILED] {command} failed")
            }
            LoginFailure::Refused(text) => format!("NO {}", one_line(without_status(text))),
            LoginFailure::NoRoute(_) | LoginFailure::UpstreamDown(_) | LoginFailure::DirectoryDown(_) => {
                "NO [UNAVAILABLE] service temporarily unavailable, please try again later".to_owned()
            }
        }
    }

    /// What a POP3 client is told (response codes: RFC 3206).
    pub fn pop3(&self) -> String {
        match self {
            LoginFailure::BadCredentials | LoginFailure::UnknownUser | LoginFailure::NotAllowed(_) => {
                "-ERR [AUTH] LOGIN failed".to_owned()
            }
            LoginFailure::Refused(text) => format!("-ERR {}", one_line(without_status(text))),
            LoginFailure::NoRoute(_) | LoginFailure::UpstreamDown(_) | LoginFailure::DirectoryDown(_) => {
                "-ERR [SYS/TEMP] service temporarily unavailable, please try again later".to_owned()
            }
        }
    }
}

/// A server's answer without the word that says how it ended: each protocol has its own.
fn without_status(text: &str) -> &str {
    match text.split_once(' ') {
        Some((status, rest))
            if ["NO", "BAD", "-ERR"]
                .iter()
                .any(|word| status.eq_ignore_ascii_case(word)) =>
        {
            rest
        }
        _ => text,
    }
}

/// Text from elsewhere as one printable line of ASCII: it can neither end the line nor begin another one.
pub(crate) fn one_line(text: &str) -> String {
    let printable = |char: char| if matches!(char, ' '..='~') { char } else { '?' };
    text.trim().chars().take(MAX_TEXT).map(printable).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(failure: LoginFailure, imap: &str, pop3: &str) {
        assert_eq!(failure.imap(Mechanism::Login), imap);
        assert_eq!(
            failure.imap(Mechanism::SaslPlain),
            imap.replace("LOGIN", "AUTHENTICATE")
        );
        assert_eq!(failure.pop3(), pop3);
    }

    #[test]
    fn nobody_learns_which_users_exist() {
        let (imap, pop3) = ("NO [AUTHENTICATIONFAILED] LOGIN failed", "-ERR [AUTH] LOGIN failed");
        check(LoginFailure::BadCredentials, imap, pop3);
        check(LoginFailure::UnknownUser, imap, pop3);
        check(
            LoginFailure::NotAllowed("10.0.0.1 is not in 192.0.2.0/24".into()),
            imap,
            pop3,
        );
    }

    #[test]
    fn nobody_learns_what_is_inside() {
        let imap = "NO [UNAVAILABLE] service temporarily unavailable, please try again later";
        let pop3 = "-ERR [SYS/TEMP] service temporarily unavailable, please try again later";
        check(LoginFailure::NoRoute("no such server: store9".into()), imap, pop3);
        check(
            LoginFailure::UpstreamDown("store1: connection refused".into()),
            imap,
            pop3,
        );
        check(LoginFailure::DirectoryDown("ldap://10.0.0.1: busy".into()), imap, pop3);
    }

    #[test]
    fn a_servers_words_stay_one_line() {
        let refused = |text: &str| LoginFailure::Refused(text.to_owned());
        check(
            refused("NO [ALERT] change it"),
            "NO [ALERT] change it",
            "-ERR [ALERT] change it",
        );
        check(refused("-ERR expired"), "NO expired", "-ERR expired");
        check(refused("no\r\na1 OK"), "NO no??a1 OK", "-ERR no??a1 OK");
        check(refused("NO gr\u{fc}n\0"), "NO gr?n?", "-ERR gr?n?");
        assert_eq!(refused(&"x".repeat(9_999)).pop3().len(), "-ERR ".len() + MAX_TEXT);
    }
}
