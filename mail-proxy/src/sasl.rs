//! The messages of SASL as a server sees them, up to the one that names the user, and as a client says them. The same in
//! IMAP and POP3, which only wrap the lines differently.
//!
//! Deliberately not here: any mechanism in which the proxy would have to know a password or hold a key.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use mail_directory::Secret;

use crate::credentials::{Credentials, Proof, Rejected};
use crate::gs2::{Gs2Header, as_sasl_name};
use crate::mechanism::Mechanism;
use crate::scram::ClientFirst;

/// A SASL dialogue, named by what it waits for.
#[derive(Debug)]
pub enum Exchange {
    /// The message of PLAIN.
    Plain,
    /// The user name of LOGIN.
    LoginName,
    /// The password of LOGIN; the name was given.
    LoginPassword(Vec<u8>),
    /// The message of OAUTHBEARER.
    OauthBearer,
    /// The message of XOAUTH2.
    Xoauth2,
    /// The message of X-ZIMBRA.
    XZimbra,
    /// The first message of SCRAM. Those behind it are the mailbox server's and the client's.
    Scram(Mechanism),
    /// The authorization identity of EXTERNAL.
    External,
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
    /// Begins a mechanism, if it is one of SASL.
    pub fn begin(mechanism: Mechanism) -> Option<Self> {
        match mechanism {
            Mechanism::SaslPlain => Some(Self::Plain),
            Mechanism::SaslLogin => Some(Self::LoginName),
            Mechanism::OauthBearer => Some(Self::OauthBearer),
            Mechanism::Xoauth2 => Some(Self::Xoauth2),
            Mechanism::XZimbra => Some(Self::XZimbra),
            Mechanism::ScramSha256 | Mechanism::ScramSha1 => Some(Self::Scram(mechanism)),
            Mechanism::External => Some(Self::External),
            Mechanism::Login | Mechanism::UserPass => None,
        }
    }

    /// The challenge to send, in base64: nothing, `Username:` or `Password:`.
    pub fn prompt(&self) -> &'static str {
        match self {
            Self::LoginName => "VXNlcm5hbWU6",
            Self::LoginPassword(_) => "UGFzc3dvcmQ6",
            _ => "",
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
            Self::OauthBearer => done(oauth_bearer(message)),
            Self::Xoauth2 => done(xoauth2(message)),
            Self::XZimbra => done(x_zimbra(message)),
            Self::Scram(mechanism) => done(scram(mechanism, message)),
            Self::External => Progress::Done(Credentials::by_certificate(Mechanism::External, message)),
        }
    }
}

fn done(parsed: Option<Result<Credentials, Rejected>>) -> Progress {
    parsed.map_or(Progress::Malformed, Progress::Done)
}

/// Reads the message of PLAIN.
///
/// ```text
/// message = [authzid] UTF8NUL authcid UTF8NUL passwd      ; RFC 4616 section 2
/// ```
fn plain(message: &[u8]) -> Progress {
    let Some((authzid, authcid, password)) = identities(message) else {
        return Progress::Malformed;
    };
    Progress::Done(match authzid {
        b"" => Credentials::parse(Mechanism::SaslPlain, authcid, password),
        _ => Credentials::parse_delegated(Mechanism::SaslPlain, authzid, authcid, password),
    })
}

/// The authorization and the authentication identity of a message, and what stands behind them.
fn identities(message: &[u8]) -> Option<(&[u8], &[u8], &[u8])> {
    let mut parts = message.splitn(3, |&byte| byte == 0);
    Some((parts.next()?, parts.next()?, parts.next()?))
}

/// What separates the parts of a message with a token.
const SEPARATOR: u8 = 1;

/// Reads the message of OAUTHBEARER. Without an authorization identity nobody knows whose mailbox is wanted: only the
/// token's issuer does. `host` and `port` are those of this proxy and mean nothing to the mailbox server, which is
/// told neither.
///
/// ```text
/// client-resp = gs2-header kvsep *(key "=" value kvsep) kvsep     ; RFC 7628 section 3.1
/// ```
fn oauth_bearer(message: &[u8]) -> Option<Result<Credentials, Rejected>> {
    let (header, rest) = Gs2Header::parse(message)?;
    let token = bearer_token(rest.strip_prefix(&[SEPARATOR])?)?;
    let user = header.authzid.unwrap_or_default();
    Some(Credentials::with_token(Mechanism::OauthBearer, &user, token))
}

/// Reads the message of XOAUTH2.
///
/// ```text
/// message = "user=" user kvsep "auth=Bearer " token kvsep kvsep
/// ```
fn xoauth2(message: &[u8]) -> Option<Result<Credentials, Rejected>> {
    let user = message.split(|&byte| byte == SEPARATOR).next()?;
    let token = bearer_token(message.get(user.len() + 1..)?)?;
    Some(Credentials::with_token(
        Mechanism::Xoauth2,
        user.strip_prefix(b"user=")?,
        token,
    ))
}

/// Reads the message of X-ZIMBRA, which is that of PLAIN with a token.
fn x_zimbra(message: &[u8]) -> Option<Result<Credentials, Rejected>> {
    let (authzid, authcid, token) = identities(message)?;
    if token.is_empty() || !token.iter().all(is_of_token) {
        return None;
    }
    Some(match authzid {
        b"" => Credentials::with_token(Mechanism::XZimbra, authcid, token),
        _ => Credentials::with_delegated_token(Mechanism::XZimbra, authzid, authcid, token),
    })
}

/// RFC 6750 section 2.1.
fn is_of_token(byte: &u8) -> bool {
    byte.is_ascii_alphanumeric() || b"-._~+/=".contains(byte)
}

/// The token among the pairs of a message: `auth=Bearer …` (RFC 6750 section 2.1). The message ends behind them.
fn bearer_token(pairs: &[u8]) -> Option<&[u8]> {
    let pairs = pairs.strip_suffix(&[SEPARATOR, SEPARATOR])?;
    let mut tokens = pairs
        .split(|&byte| byte == SEPARATOR)
        .filter_map(|pair| pair.strip_prefix(b"auth="));
    let (auth, second) = (tokens.next()?, tokens.next());
    let (scheme, token) = auth.split_at_checked("Bearer ".len())?;
    let good = scheme.eq_ignore_ascii_case(b"Bearer ") && !token.is_empty() && token.iter().all(is_of_token);
    (good && second.is_none()).then_some(token)
}

/// Reads the first message of SCRAM.
fn scram(mechanism: Mechanism, message: &[u8]) -> Option<Result<Credentials, Rejected>> {
    let (first, user, authzid) = ClientFirst::parse(message)?;
    let exchange = Proof::Exchange(first);
    Some(match authzid {
        None => Credentials::by(mechanism, &user, exchange),
        Some(authzid) => Credentials::by_delegate(mechanism, &authzid, &user, exchange),
    })
}

/// What a client answers to the challenge that says what is wrong with its token, in base64 (RFC 7628 section 3.2.3).
pub(crate) fn challenge_answer(mechanism: Mechanism) -> &'static str {
    match mechanism {
        Mechanism::OauthBearer => "AQ==",
        _ => "",
    }
}

/// The challenge that says that a token is not good, in base64: `{"status":"invalid_token","schemes":"bearer"}`. It is
/// ours for every account, known or not, so that it does not tell which there are.
pub(crate) const TOKEN_CHALLENGE: &str = "eyJzdGF0dXMiOiJpbnZhbGlkX3Rva2VuIiwic2NoZW1lcyI6ImJlYXJlciJ9";

/// Decodes base64 as RFC 4648 section 4 has it: with padding, and nothing else in between.
pub fn decode(text: &[u8]) -> Option<Secret<Vec<u8>>> {
    let mut decoded = vec![0; base64::decoded_len_estimate(text.len())];
    let result = STANDARD.decode_slice(text, &mut decoded);
    decoded.truncate(*result.as_ref().unwrap_or(&0));
    let decoded = Secret::new(decoded);
    result.is_ok().then_some(decoded)
}

/// A message in base64.
pub(crate) fn encode(message: &[u8]) -> Secret<Vec<u8>> {
    Secret::new(STANDARD.encode(message).into_bytes())
}

/// The message of PLAIN in base64, to be sent to a mailbox server. None of the parts may hold NUL.
pub(crate) fn encode_plain(authzid: &str, authcid: &str, password: &[u8]) -> Secret<Vec<u8>> {
    let mut message = Vec::with_capacity(authzid.len() + authcid.len() + password.len() + 2);
    message.extend_from_slice(authzid.as_bytes());
    message.push(0);
    message.extend_from_slice(authcid.as_bytes());
    message.push(0);
    message.extend_from_slice(password);
    encode(Secret::new(message).expose())
}

/// Whether a token looks like one that Zimbra's servers make: the number of a key, its HMAC, what is signed.
///
/// ```text
/// token = 1*DIGIT "_" 1*HEXDIG "_" 1*HEXDIG
/// ```
pub(crate) fn is_zimbra_token(token: &[u8]) -> bool {
    let mut parts = token.split(|&byte| byte == b'_');
    let mut all = |is_good: fn(&u8) -> bool| {
        let part = parts.next().unwrap_or_default();
        !part.is_empty() && part.iter().all(is_good)
    };
    let good = all(u8::is_ascii_digit) && all(u8::is_ascii_hexdigit) && all(u8::is_ascii_hexdigit);
    good && parts.next().is_none()
}

/// The message of OAUTHBEARER or XOAUTH2 in base64, to be sent to a mailbox server.
pub(crate) fn encode_token(mechanism: Mechanism, user: &str, token: &[u8]) -> Secret<Vec<u8>> {
    let mut message = Vec::with_capacity(user.len() + token.len() + 32);
    match mechanism {
        Mechanism::OauthBearer => {
            message.extend_from_slice(format!("n,a={},", as_sasl_name(user)).as_bytes());
        }
        _ => message.extend_from_slice(format!("user={user}").as_bytes()),
    }
    message.extend_from_slice(b"\x01auth=Bearer ");
    message.extend_from_slice(token);
    message.extend_from_slice(&[SEPARATOR, SEPARATOR]);
    encode(Secret::new(message).expose())
}

#[cfg(test)]
mod tests {
    use mail_directory::names;

    use super::*;

    /// Sends `responses` (before base64) and tells where that leads.
    fn check(mechanism: &str, responses: &[&[u8]], expected: &str) {
        let mechanism = Mechanism::of_sasl(mechanism.as_bytes()).expect("a known mechanism");
        let mut exchange = Exchange::begin(mechanism).expect("one of SASL");
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
                        proof,
                        ..
                    } = credentials;
                    let password = String::from_utf8_lossy(proof.secret().unwrap_or_default()).into_owned();
                    found = format!("{user} {authenticating_as:?} {suffix:?} {password}");
                    break;
                }
            }
        }
        assert_eq!(found, expected, "{mechanism:?} {responses:?}");
    }

    /// LOGIN, PLAIN, SCRAM and EXTERNAL look for the same account, however the domain and the letters are written.
    #[test]
    fn names_of_any_alphabet_are_one_by_every_mechanism() {
        let canonical = "zo\u{eb}@xn--bcher-kva.test";
        for typed in [
            canonical,
            "zo\u{eb}@b\u{fc}cher.test",
            "ZOE\u{308}@bu\u{308}cher.test",
            "\u{ff5a}o\u{eb}@B\u{dc}CHER\u{3002}test",
        ] {
            let by_command = Credentials::parse(Mechanism::Login, typed.as_bytes(), b"secret");
            let by_sasl = [
                ("PLAIN", format!("\0{typed}\0secret")),
                ("PLAIN", format!("{typed}\0{canonical}\0secret")),
                ("SCRAM-SHA-256", format!("n,,n={typed},r=fyko")),
                ("SCRAM-SHA-256", format!("n,a={canonical},n={typed},r=fyko")),
                ("EXTERNAL", typed.to_owned()),
                ("OAUTHBEARER", format!("n,a={typed},\x01auth=Bearer t\x01\x01")),
            ];
            let by_sasl = by_sasl.map(|(name, message)| {
                let mechanism = Mechanism::of_sasl(name.as_bytes()).expect("a known mechanism");
                match Exchange::begin(mechanism).map(|exchange| exchange.message(message.as_bytes())) {
                    Some(Progress::Done(parsed)) => parsed,
                    other => panic!("{name} {message:?}: {other:?}"),
                }
            });
            for parsed in by_sasl.into_iter().chain([by_command]) {
                let credentials = parsed.expect("a good name");
                assert_eq!(names::account(&credentials.user), canonical, "{credentials:?}");
                assert_eq!(credentials.authenticating_as, None, "{credentials:?}");
            }
        }
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
        check("PLAIN", &[b"\0alice\0"], "Some(\"alice\")");
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
    fn messages_with_a_token() {
        const GOOD: &str = "alice@a.example None None ya29.a-b_c~d+e/f==";
        let both = |named: &str, message: &str, expected: &str| check(named, &[message.as_bytes()], expected);
        let bearer = |message: &str, expected: &str| both("OAUTHBEARER", message, expected);
        let older = |message: &str, expected: &str| both("XOAUTH2", message, expected);
        older("user=alice@a.example\x01auth=Bearer ya29.a-b_c~d+e/f==\x01\x01", GOOD);
        older("user=alice/tb\x01auth=bearer x\x01\x01", "alice None Some(\"/tb\") x");
        older("user=\x01auth=Bearer x\x01\x01", "None");
        older("user=al\nice\x01auth=Bearer x\x01\x01", "Some(\"al?ice\")");
        bearer(
            "n,a=alice@a.example,\x01host=mail.a.example\x01port=993\x01auth=Bearer ya29.a-b_c~d+e/f==\x01\x01",
            GOOD,
        );
        bearer("y,a=a=2Cb=3Dc,\x01auth=Bearer x\x01\x01", "a,b=c None None x");
        bearer("n,,\x01auth=Bearer x\x01\x01", "None");
        for bad in [
            "",
            "\x01",
            "n,a=alice,",
            "n,a=alice,\x01\x01",
            "n,a=alice,\x01auth=Bearer x\x01",
            "n,a=alice,\x01auth=Bearer \x01\x01",
            "n,a=alice,\x01auth=Bearer a b\x01\x01",
            "n,a=alice,\x01auth=Bearer a\r\n\x01\x01",
            "n,a=alice,\x01auth=Basic x\x01\x01",
            "n,a=alice,\x01auth=Bearer x\x01auth=Bearer y\x01\x01",
            "n,a=alice,x\x01auth=Bearer x\x01\x01",
            "n,a=alice\x01auth=Bearer x\x01\x01",
            "n,b=alice,\x01auth=Bearer x\x01\x01",
            "n,a=al=2Fice,\x01auth=Bearer x\x01\x01",
            "n,a=alice=,\x01auth=Bearer x\x01\x01",
            "p=tls-unique,a=alice,\x01auth=Bearer x\x01\x01",
        ] {
            bearer(bad, "malformed");
            older(bad, "malformed");
        }
    }

    #[test]
    fn messages_with_a_token_of_zimbra() {
        let zimbra = |message: &str, expected: &str| check("X-ZIMBRA", &[message.as_bytes()], expected);
        zimbra("\0alice\x000_ab_12", "alice None None 0_ab_12");
        zimbra("alice/tb\0alice\x000_ab_12", "alice None Some(\"/tb\") 0_ab_12");
        zimbra("alice\0admin\x000_ab_12", "alice Some(\"admin\") None 0_ab_12");
        zimbra("al\nice\0admin\x000_ab_12", "Some(\"al?ice\")");
        for bad in [
            "",
            "alice",
            "\0alice\0",
            "\0alice\0a b",
            "\0alice\0a\0b",
            "\0alice\0a\r\nb",
        ] {
            zimbra(bad, "malformed");
        }
        for (token, is_zimbra) in [
            ("0_52ac5de7_69643d33363a", true),
            ("12_AB_0f", true),
            ("ya29.a-b_c", false),
            ("0_ab", false),
            ("0_ab_", false),
            ("0_ab_cd_ef", false),
            ("0_ab_cg", false),
            ("a_ab_cd", false),
            ("", false),
        ] {
            assert_eq!(is_zimbra_token(token.as_bytes()), is_zimbra, "{token}");
        }
    }

    #[test]
    fn first_messages_of_scram() {
        let both = |message: &str, expected: &str| {
            check("SCRAM-SHA-256", &[message.as_bytes()], expected);
            check("scram-sha-1", &[message.as_bytes()], expected);
        };
        both("n,,n=alice,r=abc", "alice None None ");
        both("y,,n=al=2Cice=3D/tb,r=abc,x=1", "al,ice= None Some(\"/tb\") ");
        both(
            "n,a=alice@a.example,n=Alice@A.example,r=abc",
            "alice@a.example None None ",
        );
        both("n,a=alice,n=admin/tb,r=abc", "alice Some(\"admin/tb\") None ");
        both("n,,n=al\x07ice,r=abc", "Some(\"al?ice\")");
        both("n,,n=,r=abc", "None");
        both("n,a=,n=alice,r=abc", "None");
        both("p=tls-exporter,,n=alice,r=abc", "malformed");
        both("n,,m=1,n=alice,r=abc", "malformed");
    }

    #[test]
    fn identities_of_external() {
        check("EXTERNAL", &[b""], " None None ");
        check("external", &[b"alice/tb"], "alice None Some(\"/tb\") ");
        check("EXTERNAL", &[b"al\0ice"], "Some(\"al?ice\")");
        let begun = || Exchange::begin(Mechanism::External).expect("one of SASL");
        for empty in [begun().initial(b"="), begun().response(b"")] {
            assert!(matches!(empty, Progress::Done(Ok(_))), "{empty:?}");
        }
    }

    #[test]
    fn tokens_of_ten_kilobytes() {
        let token = "x".repeat(10 * 1024);
        let message = format!("user=alice\x01auth=Bearer {token}\x01\x01");
        check("XOAUTH2", &[message.as_bytes()], &format!("alice None None {token}"));
        let message = format!("user=alice\x01auth=Bearer {token}{token}\x01\x01");
        check("XOAUTH2", &[message.as_bytes()], "Some(\"alice\")");
    }

    #[test]
    fn tokens_to_the_server() {
        for (mechanism, expected) in [
            (Mechanism::OauthBearer, "n,a=a=2Cb=3Dc,\x01auth=Bearer t\x01\x01"),
            (Mechanism::Xoauth2, "user=a,b=c\x01auth=Bearer t\x01\x01"),
        ] {
            let said = encode_token(mechanism, "a,b=c", b"t");
            assert_eq!(decode(said.expose()).expect("base64").expose(), expected.as_bytes());
            let exchange = Exchange::begin(mechanism).expect("one of SASL");
            assert!(
                matches!(exchange.response(said.expose()), Progress::Done(Ok(_))),
                "{mechanism:?}"
            );
        }
        assert_eq!(
            decode(TOKEN_CHALLENGE.as_bytes()).expect("base64").expose(),
            br#"{"status":"invalid_token","schemes":"bearer"}"#
        );
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
