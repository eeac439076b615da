//! Every way in which a login can fail, and what each is called: by the client's protocol, by the audit log.
//!
//! What a peer may learn is decided here and nowhere else.

use std::time::Duration;

use crate::audit::Outcome;
use crate::handle::CloseReason;
use crate::mechanism::Mechanism;
use crate::throttle::Throttled;

/// Characters of a mailbox server's own words that are passed on: one line of readable text.
pub const MAX_TEXT: usize = 512;

/// How long a refusal by the throttle waits at least, from the moment the credentials were complete.
pub const THROTTLED_WAIT: Duration = Duration::from_millis(250);

/// Why a login failed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum LoginFailure {
    /// The mailbox server says so. The client cannot tell this from [`LoginFailure::UnknownUser`].
    BadCredentials,
    /// The directory has no account of this name.
    UnknownUser,
    /// The domain does not admit the client's address. Told in the words of bad credentials.
    NotAllowed(String),
    /// The mailbox server's own reason, for the user to read, without tag and line end
    /// (`NO [ALERT] …`, `-ERR …`); passed on where `zimbraReverseProxyPassErrors` allows.
    Refused(String),
    /// The password was right, but the mailbox server takes no more logins of this user now; its own words.
    Limit(String),
    /// The password was right, but there are as many sessions as the node file allows; the limit's name there.
    TooManySessions(&'static str),
    /// The mailbox server is well, and says that it cannot take this login now; its own words.
    Busy(String),
    /// Too many logins have failed before this one. Nobody was asked.
    Throttled(Throttled),
    /// The password is longer than any that is taken. Nobody was asked about it.
    PasswordTooLong,
    /// The mailbox server broke off at a long password. Told in the words of bad credentials: a name without
    /// account never has this effect.
    PasswordNotBorne(String),
    /// The mailbox server broke off an exchange before the client had proved anything. Told in the words of bad
    /// credentials, for the same reason.
    ExchangeNotBorne(String),
    /// The account is held, for a reason of administrators; the client is told something else.
    Held {
        /// What the client is told.
        text: String,
        /// Why it is held.
        why: String,
    },
    /// The directory does not say how to reach the account's server.
    NoRoute(String),
    /// The mailbox server cannot be reached, breaks off, or does not speak as it must.
    UpstreamDown(String),
    /// The directory cannot be asked.
    DirectoryDown(String),
    /// The connection was to end, and the client did not wait for the answer.
    Ended(CloseReason),
    /// The client's certificate is good, and not for this mailbox. Told in the words of bad credentials.
    NotOfCertificate(String),
    /// The client has given up in the middle of its login, and was told so.
    Withdrawn,
}

/// What a failure is called while it lasts, whatever is behind it.
const UNAVAILABLE: &str = "service temporarily unavailable, please try again later";

/// What a client is told whose password was right.
const TOO_MANY_SESSIONS: &str = "too many sessions, please close one or try again later";

impl LoginFailure {
    /// The word in the audit log.
    pub fn outcome(&self) -> Outcome {
        match self {
            Self::BadCredentials | Self::NotOfCertificate(_) => Outcome::BadCredentials,
            Self::Refused(_) => Outcome::Refused,
            Self::Limit(_) | Self::TooManySessions(_) => Outcome::Limit,
            Self::Busy(_) => Outcome::Busy,
            Self::Throttled(_) => Outcome::Throttled,
            Self::PasswordTooLong | Self::PasswordNotBorne(_) => Outcome::PasswordTooLong,
            Self::UnknownUser => Outcome::UnknownUser,
            Self::Held { .. } => Outcome::Held,
            Self::NoRoute(_) | Self::NotAllowed(_) => Outcome::NoRoute,
            Self::UpstreamDown(_) | Self::ExchangeNotBorne(_) => Outcome::UpstreamDown,
            Self::DirectoryDown(_) => Outcome::DirectoryDown,
            Self::Ended(_) => Outcome::Ended,
            Self::Withdrawn => Outcome::ClientGone,
        }
    }

    /// Whether the client hears of it only after the wait that slows down guessing. Failures that wait must look
    /// alike; failures that tell nothing about name or password need not wait.
    pub fn waits(&self) -> bool {
        match self {
            Self::BadCredentials
            | Self::UnknownUser
            | Self::NotAllowed(_)
            | Self::NotOfCertificate(_)
            | Self::PasswordNotBorne(_)
            | Self::ExchangeNotBorne(_)
            | Self::Refused(_) => true,
            Self::Limit(_)
            | Self::TooManySessions(_)
            | Self::Busy(_)
            | Self::Throttled(_)
            | Self::PasswordTooLong
            | Self::Held { .. }
            | Self::NoRoute(_)
            | Self::UpstreamDown(_)
            | Self::DirectoryDown(_)
            | Self::Ended(_)
            | Self::Withdrawn => false,
        }
    }

    /// How long after the credentials were complete the client may hear of it. What is refused by the throttle waits
    /// for a moment only, which is longer than a lookup takes: what is known of an account, and what must be asked
    /// for, are refused after the same time.
    pub fn wait(&self, auth_wait: Duration) -> Option<Duration> {
        match self {
            Self::Throttled(_) => Some(THROTTLED_WAIT.min(auth_wait)),
            _ => self.waits().then_some(auth_wait),
        }
    }

    /// Whether it is one of the few failed logins that a connection may have. What is not the client's fault is
    /// none.
    pub fn counts(&self) -> bool {
        self.waits() || matches!(self, Self::PasswordTooLong | Self::Throttled(_))
    }

    /// The same where the mailbox server's words are not passed on (`zimbraReverseProxyPassErrors`). One whose
    /// password was right is not told that it was wrong.
    pub fn in_our_words(self) -> Self {
        match self {
            Self::Refused(_) => Self::BadCredentials,
            Self::Limit(why) | Self::Busy(why) => Self::UpstreamDown(why),
            other => other,
        }
    }

    /// The reason for operators, if there is more than the outcome. It may name hosts and never goes to a client.
    pub fn why(&self) -> Option<String> {
        match self {
            Self::BadCredentials | Self::UnknownUser | Self::PasswordTooLong | Self::Throttled(_) => None,
            Self::TooManySessions(limit) => Some((*limit).to_owned()),
            Self::Withdrawn => Some("it has given up the exchange".to_owned()),
            Self::Ended(CloseReason::Kick) => Some("kick".to_owned()),
            Self::Ended(CloseReason::Drain) => Some("drain".to_owned()),
            Self::Ended(CloseReason::Moved) => Some("moved".to_owned()),
            Self::Ended(CloseReason::Evict) => Some("too many connections".to_owned()),
            Self::Held { why, .. }
            | Self::NotAllowed(why)
            | Self::NotOfCertificate(why)
            | Self::PasswordNotBorne(why)
            | Self::ExchangeNotBorne(why)
            | Self::Refused(why)
            | Self::Limit(why)
            | Self::Busy(why)
            | Self::NoRoute(why)
            | Self::UpstreamDown(why)
            | Self::DirectoryDown(why) => Some(why.clone()),
        }
    }

    /// What an IMAP client is told behind its tag (response codes: RFC 5530, RFC 4469 for `TOOBIG`).
    pub fn imap(&self, mechanism: Mechanism) -> String {
        let command = if mechanism.is_sasl() { "AUTHENTICATE" } else { "LOGIN" };
        match self {
            Self::BadCredentials
            | Self::UnknownUser
            | Self::NotAllowed(_)
            | Self::NotOfCertificate(_)
            | Self::PasswordNotBorne(_)
            | Self::ExchangeNotBorne(_) => format!("NO [AUTHENTICATIONFAILED] {command} failed"),
            Self::Refused(text) => format!("NO {}", one_line(without_status(text))),
            Self::Limit(text) => format!("NO {}", with_code("LIMIT", text)),
            Self::TooManySessions(_) => format!("NO [LIMIT] {TOO_MANY_SESSIONS}"),
            Self::Busy(text) => format!("NO {}", with_code("UNAVAILABLE", text)),
            Self::Throttled(throttled) => format!("NO [LIMIT] {}", one_line(&throttled.message)),
            Self::PasswordTooLong => "NO [TOOBIG] password is too long".to_owned(),
            Self::Held { text, .. } => format!("NO [UNAVAILABLE] {}", one_line(text)),
            Self::NoRoute(_) | Self::UpstreamDown(_) | Self::DirectoryDown(_) | Self::Ended(_) | Self::Withdrawn => {
                format!("NO [UNAVAILABLE] {UNAVAILABLE}")
            }
        }
    }

    /// What a POP3 client is told (response codes: RFC 2449, RFC 3206).
    pub fn pop3(&self) -> String {
        match self {
            Self::BadCredentials
            | Self::UnknownUser
            | Self::NotAllowed(_)
            | Self::NotOfCertificate(_)
            | Self::PasswordNotBorne(_)
            | Self::ExchangeNotBorne(_) => "-ERR [AUTH] LOGIN failed".to_owned(),
            Self::Refused(text) => format!("-ERR {}", one_line(without_status(text))),
            Self::Limit(text) | Self::Busy(text) => format!("-ERR {}", with_code("SYS/TEMP", text)),
            Self::TooManySessions(_) => format!("-ERR [IN-USE] {TOO_MANY_SESSIONS}"),
            Self::Throttled(throttled) => {
                let of_account = throttled.finding.rule.is_of_account();
                let code = if of_account { "LOGIN-DELAY" } else { "SYS/TEMP" };
                format!("-ERR [{code}] {}", one_line(&throttled.message))
            }
            Self::PasswordTooLong => "-ERR [SYS/PERM] password is too long".to_owned(),
            Self::Held { text, .. } => format!("-ERR [SYS/TEMP] {}", one_line(text)),
            Self::NoRoute(_) | Self::UpstreamDown(_) | Self::DirectoryDown(_) | Self::Ended(_) | Self::Withdrawn => {
                format!("-ERR [SYS/TEMP] {UNAVAILABLE}")
            }
        }
    }
}

/// A server's answer without the word that says how it ended: each protocol has its own.
fn without_status(text: &str) -> &str {
    match text.split_once(' ') {
        Some((status, rest))
            if ["NO", "BAD", "BYE", "-ERR"]
                .iter()
                .any(|word| status.eq_ignore_ascii_case(word)) =>
        {
            rest
        }
        _ => text,
    }
}

/// A server's words, with a code if they bring none: programs that find none ask their user for another password.
fn with_code(code: &str, text: &str) -> String {
    let words = one_line(without_status(text));
    match words.starts_with('[') {
        true => words,
        false => format!("[{code}] {words}"),
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
        check(LoginFailure::PasswordNotBorne("it closed".into()), imap, pop3);
        check(LoginFailure::ExchangeNotBorne("it closed".into()), imap, pop3);
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
    fn who_may_come_in_later_is_not_told_that_a_password_is_wrong() {
        let limit = |text: &str| LoginFailure::Limit(text.to_owned());
        let busy = |text: &str| LoginFailure::Busy(text.to_owned());
        check(
            limit("NO [LIMIT] 10 connections"),
            "NO [LIMIT] 10 connections",
            "-ERR [LIMIT] 10 connections",
        );
        check(limit("no more"), "NO [LIMIT] more", "-ERR [SYS/TEMP] more");
        check(busy("BYE full"), "NO [UNAVAILABLE] full", "-ERR [SYS/TEMP] full");
        check(busy("-ERR [IN-USE] x"), "NO [IN-USE] x", "-ERR [IN-USE] x");
        let own = "service temporarily unavailable, please try again later";
        check(
            busy("NO [INUSE] x").in_our_words(),
            &format!("NO [UNAVAILABLE] {own}"),
            &format!("-ERR [SYS/TEMP] {own}"),
        );
        let sessions = LoginFailure::TooManySessions("limits.sessions_per_account");
        let told = "too many sessions, please close one or try again later";
        check(
            sessions.clone(),
            &format!("NO [LIMIT] {told}"),
            &format!("-ERR [IN-USE] {told}"),
        );
        assert_eq!(
            (sessions.outcome(), sessions.clone().in_our_words()),
            (Outcome::Limit, sessions.clone())
        );
        for failure in [
            limit("NO x"),
            busy("NO x"),
            sessions,
            LoginFailure::Ended(CloseReason::Kick),
        ] {
            assert!(!failure.waits() && !failure.counts(), "{failure:?}");
        }
        assert!(LoginFailure::PasswordTooLong.counts() && !LoginFailure::PasswordTooLong.waits());
    }

    /// Neither may ask for another password: a client that waits gets in.
    #[test]
    fn who_is_throttled_is_told_to_wait() {
        use crate::throttle::{Action, Finding, Rule};
        let throttled = |rule| {
            LoginFailure::Throttled(Throttled {
                finding: Finding {
                    rule,
                    action: Action::Refuse,
                    count: 12,
                    lasts: Duration::from_secs(90),
                },
                message: "wait\r\na1 OK".to_owned(),
            })
        };
        check(
            throttled(Rule::Pair),
            "NO [LIMIT] wait??a1 OK",
            "-ERR [LOGIN-DELAY] wait??a1 OK",
        );
        check(
            throttled(Rule::Spray),
            "NO [LIMIT] wait??a1 OK",
            "-ERR [SYS/TEMP] wait??a1 OK",
        );
        let failure = throttled(Rule::Many).in_our_words();
        assert_eq!(failure.outcome(), Outcome::Throttled);
        assert!(failure.counts() && !failure.waits());
        let wait = |auth_wait| failure.wait(Duration::from_millis(auth_wait));
        assert_eq!(
            (wait(10_000), wait(10)),
            (Some(THROTTLED_WAIT), Some(Duration::from_millis(10)))
        );
    }

    #[test]
    fn who_is_held_hears_the_chosen_text_only() {
        let held = LoginFailure::Held {
            text: "we move your\r\nmailbox".to_owned(),
            why: "account a@x is held: case 17".to_owned(),
        };
        assert!(!held.waits() && !held.counts());
        check(
            held,
            "NO [UNAVAILABLE] we move your??mailbox",
            "-ERR [SYS/TEMP] we move your??mailbox",
        );
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
