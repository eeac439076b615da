//! SASL PLAIN and LOGIN as a server sees them, and PLAIN as a client says it. The same in IMAP and POP3, which
//! only wrap the lines differently.
//!
//! Deliberately not here: any mechanism in which the proxy would have to know a password or hold a key.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use mail_directory::Secret;

use crate::credentials::{Credentials, Rejected};
use crate::mechanism::Mechanism;

/// A SASL dialogue, named by what it waits for.
#[derive(Debug)]
pub enum Exchange {
    /// The message of PLAIN.
    Plain,
    /// The user name of LOGIN.
    LoginName,
    /// The password of LOGIN; the name was given.
    LoginPassword(Vec<u8>),
}

/// Where a response leads.
#[derive(Debug)]
pub enum Progress {
    /// To the next prompt.
    Prompt(Exchange),
    /// To an identity and a password, or to a login that must fail.
    Done(Result<Credentials, Rejected>),
    /// Nowhere: it is not base64, or not what the mechanism says.
    Malformed,
}

impl Exchange {
    /// Begins the mechanism of this name (any case), if there is one.
    pub fn begin(mechanism: &[u8]) -> Option<Self> {
        if mechanism.eq_ignore_ascii_case(b"PLAIN") {
            Some(Self::Plain)
        } else if mechanism.eq_ignore_ascii_case(b"LOGIN") {
            Some(Self::LoginName)
        } else {
            None
        }
    }

    /// How the client logs in with this exchange.
    pub fn mechanism(&self) -> Mechanism {
        match self {
            Self::Plain => Mechanism::SaslPlain,
            Self::LoginName | Self::LoginPassword(_) => Mechanism::SaslLogin,
        }
    }

    /// The challenge to send, in base64: nothing, `Username:` or `Password:`.
    pub fn prompt(&self) -> &'static str {
        match self {
            Self::Plain => "",
            Self::LoginName => "VXNlcm5hbWU6",
            Self::LoginPassword(_) => "UGFzc3dvcmQ6",
        }
    }

    /// Takes an initial response, in which `=` is the empty one (RFC 4959 section 3, RFC 5034 section 4).
    pub fn initial(self, token: &[u8]) -> Progress {
        match token {
            b"=" => self.message(b""),
            _ => self.response(token),
        }
    }

    /// Takes a response line, without line end. The abort line `*` is the caller's.
    pub fn response(self, line: &[u8]) -> Progress {
        match decode(line) {
            Some(message) => self.message(message.expose()),
            None => Progress::Malformed,
        }
    }

    fn message(self, message: &[u8]) -> Progress {
        match self {
            Self::Plain => plain(message),
            Self::LoginName => Progress::Prompt(Self::LoginPassword(message.to_vec())),
            Self::LoginPassword(name) => Progress::Done(Credentials::parse(Mechanism::SaslLogin, &name, message)),
        }
    }
}

/// Reads the message of PLAIN.
///
/// ```text
/// message = [authzid] UTF8NUL authcid UTF8NUL passwd      ; RFC 4616 section 2
/// ```
fn plain(message: &[u8]) -> Progress {
    let mut parts = message.splitn(3, |&byte| byte == 0);
    let (Some(authzid), Some(authcid), Some(password)) = (parts.next(), parts.next(), parts.next()) else {
        return Progress::Malformed;
    };
    Progress::Done(match authzid {
        b"" => Credentials::parse(Mechanism::SaslPlain, authcid, password),
        _ => Credentials::parse_delegated(Mechanism::SaslPlain, authzid, authcid, password),
    })
}

/// Decodes base64 as RFC 4648 section 4 has it: with padding, and nothing else in between.
pub fn decode(text: &[u8]) -> Option<Secret<Vec<u8>>> {
    let mut decoded = vec![0; base64::decoded_len_estimate(text.len())];
    let result = STANDARD.decode_slice(text, &mut decoded);
    decoded.truncate(*result.as_ref().unwrap_or(&0));
    let decoded = Secret::new(decoded);
    result.is_ok().then_some(decoded)
}

/// The message of PLAIN in base64, to be sent to a mailbox server. None of the parts may hold NUL.
pub(crate) fn encode_plain(authzid: &str, authcid: &str, password: &[u8]) -> Secret<Vec<u8>> {
    let mut message = Vec::with_capacity(authzid.len() + authcid.len() + password.len() + 2);
    message.extend_from_slice(authzid.as_bytes());
    message.push(0);
    message.extend_from_slice(authcid.as_bytes());
    message.push(0);
    message.extend_from_slice(password);
    let message = Secret::new(message);
    Secret::new(STANDARD.encode(message.expose()).into_bytes())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Sends `responses` (before base64) and tells where that leads.
    fn check(mechanism: &str, responses: &[&[u8]], expected: &str) {
        let mut exchange = Exchange::begin(mechanism.as_bytes()).expect("a known mechanism");
        let mut found = String::from("prompt");
        for response in responses {
            match exchange.response(STANDARD.encode(response).as_bytes()) {
                Progress::Prompt(next) => exchange = next,
                Progress::Malformed => return assert_eq!("malformed", expected),
                Progress::Done(Err(rejected)) => return assert_eq!(format!("{:?}", rejected.user), expected),
                Progress::Done(Ok(credentials)) => {
                    let Credentials {
                        user,
                        authenticating_as,
                        suffix,
                        password,
                        ..
                    } = credentials;
                    let password = String::from_utf8_lossy(password.expose()).into_owned();
                    found = format!("{user} {authenticating_as:?} {suffix:?} {password}");
                    break;
                }
            }
        }
        assert_eq!(found, expected, "{mechanism} {responses:?}");
    }

    #[test]
    fn plain_messages() {
        check("plain", &[b"\0alice\0secret"], "alice None None secret");
        check("PLAIN", &[b"alice\0alice\0secret"], "alice None None secret");
        check(
            "PLAIN",
            &[b"alice/tb\0alice\0secret"],
            "alice None Some(\"/tb\") secret",
        );
        check("PLAIN", &[b"alice\0admin\0secret"], "alice Some(\"admin\") None secret");
        check(
            "PLAIN",
            &[b"alice/wm\0admin/tb\0s"],
            "alice Some(\"admin/tb\") Some(\"/wm\") s",
        );
        check("PLAIN", &[b"\0alice\0"], "alice None None ");
        check("PLAIN", &[b"\0alice"], "malformed");
        check("PLAIN", &[b""], "malformed");
        check("PLAIN", &[b"\0alice\0sec\0ret"], "Some(\"alice\")");
        check("PLAIN", &[b"\0al\nice\0secret"], "Some(\"al?ice\")");
        check("PLAIN", &[b"bob\0\0secret"], "Some(\"bob\")");
        check("PLAIN", &[b"\0\0secret"], "None");
    }

    #[test]
    fn login_messages() {
        check("LOGIN", &[], "prompt");
        check("LOGIN", &[b"alice"], "prompt");
        check("LOGIN", &[b"alice/ni", b"secret"], "alice None Some(\"/ni\") secret");
        check("LOGIN", &[b"", b"secret"], "None");
    }

    #[test]
    fn base64_is_strict() {
        assert_eq!(decode(b"AGE=").expect("valid").expose(), b"\0a");
        for bad in ["AGE", "AG E=", "AGE==", "=", "*", "AGE=\r", "AGF="] {
            assert!(decode(bad.as_bytes()).is_none(), "{bad:?}");
        }
    }

    #[test]
    fn plain_to_the_server() {
        assert_eq!(encode_plain("", "alice", b"secret").expose(), b"AGFsaWNlAHNlY3JldA==");
    }
}
