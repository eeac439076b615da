//! What the protocol machines of IMAP and POP3 have in common: the shape of their input, output and decisions.
//!
//! A machine is fed bytes and asked for steps. It owns no socket and no clock, so the same bytes give the same
//! answers however they are cut.

use std::net::IpAddr;

use route_cache::Secret;

use crate::failure::LoginFailure;

/// STARTTLS policy of a clear-text listener (`zimbraReverseProxyImapStartTlsMode`, MAIL §3.2).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum StartTls {
    /// Not offered; passwords are taken in clear text.
    Off,
    /// Offered; passwords are taken in clear text too.
    On,
    /// Offered, and no password is taken before it (LOGINDISABLED).
    Only,
}

/// The channel on which the client speaks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Channel {
    /// TLS: implicit, or after STARTTLS.
    Tls,
    /// Clear text, under this policy.
    Clear(StartTls),
}

impl Channel {
    /// May a password be taken on this channel?
    pub fn takes_passwords(self) -> bool {
        self != Channel::Clear(StartTls::Only)
    }

    /// Is STARTTLS / STLS offered?
    pub fn offers_starttls(self) -> bool {
        matches!(self, Channel::Clear(StartTls::On | StartTls::Only))
    }
}

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
            Mechanism::Login => "LOGIN",
            Mechanism::UserPass => "USER",
            Mechanism::SaslPlain => "PLAIN",
            Mechanism::SaslLogin => "SASL-LOGIN",
        }
    }

    /// Whether the login came by SASL (`AUTHENTICATE` / `AUTH`).
    pub fn is_sasl(self) -> bool {
        matches!(self, Mechanism::SaslPlain | Mechanism::SaslLogin)
    }
}

/// What a client offers to prove who it is.
#[derive(Debug, Clone)]
pub struct Credentials {
    /// How it was offered.
    pub mechanism: Mechanism,
    /// Whose mailbox is wanted, as typed and without suffix: the authorization identity if one was given,
    /// otherwise the authentication identity. The route is looked up for this name.
    pub user: String,
    /// Who authenticates, where that is somebody else (SASL PLAIN with a differing authorization identity).
    pub authenticating_as: Option<String>,
    /// `/tb`, `/wm` or `/ni` behind the user, taken off for the lookup and put back towards an IMAP server (MAIL §3.3).
    pub suffix: Option<&'static str>,
    /// The password; any bytes but NUL, CR, LF.
    pub password: Secret<Vec<u8>>,
}

/// Octets of a user name (MAIL §3.1).
const MAX_USER: usize = 256;

/// Octets of a password. Webmails log in with tokens of some thousands; what people type is shorter by far.
const MAX_PASSWORD: usize = 8 * 1024;

/// What may stand behind a user name (MAIL §3.3): mailbox servers switch on quirks for Thunderbird, Windows Mobile,
/// and for clients that must not be offered IDLE.
const SUFFIXES: [&str; 3] = ["/tb", "/wm", "/ni"];

/// Octets of a password for which LOGIN and PASS are not sure to do: Dovecot and others read short lines before a
/// login, but SASL messages of 8 KiB and more.
const LONG_PASSWORD: usize = 512;

impl Credentials {
    /// Whether a mailbox server that knows SASL should be told them by it, whichever way the client took.
    pub(crate) fn prefer_sasl(&self) -> bool {
        self.mechanism.is_sasl() || self.has_long_password()
    }

    /// Whether a mailbox server that breaks off may have done so because of the password's length.
    pub(crate) fn has_long_password(&self) -> bool {
        self.password.expose().len() > LONG_PASSWORD
    }

    /// Takes a name and a password as they were typed.
    pub fn parse(mechanism: Mechanism, user: &[u8], password: &[u8]) -> Result<Credentials, Rejected> {
        let Some((name, suffix)) = parse_user(user) else {
            return Credentials::reject(mechanism, user);
        };
        if password.len() > MAX_PASSWORD {
            return Err(Rejected::new(mechanism, user, LoginFailure::PasswordTooLong));
        }
        if !is_password(password) {
            return Credentials::reject(mechanism, user);
        }
        Ok(Credentials {
            mechanism,
            user: name.to_owned(),
            authenticating_as: None,
            suffix,
            password: Secret::new(password.to_vec()),
        })
    }

    /// Credentials that no server may be asked about.
    pub fn reject(mechanism: Mechanism, user: &[u8]) -> Result<Credentials, Rejected> {
        Err(Rejected::new(mechanism, user, LoginFailure::UnknownUser))
    }

    /// Takes the two identities of a SASL message. Both naming the same account is a plain login; otherwise the
    /// authentication identity goes to the server as it was typed, because nothing is looked up for it.
    pub fn parse_delegated(
        mechanism: Mechanism,
        authzid: &[u8],
        authcid: &[u8],
        password: &[u8],
    ) -> Result<Credentials, Rejected> {
        let by = |rejected| Rejected {
            authcid: displayable(authcid),
            ..rejected
        };
        let mut credentials = Credentials::parse(mechanism, authzid, password).map_err(by)?;
        let Some((name, suffix)) = parse_user(authcid) else {
            return Credentials::reject(mechanism, authzid).map_err(by);
        };
        if name == credentials.user {
            credentials.suffix = credentials.suffix.or(suffix);
        } else {
            credentials.authenticating_as = Some(format!("{name}{}", suffix.unwrap_or_default()));
        }
        Ok(credentials)
    }
}

/// A name, and the suffix that stood behind it. Control characters are refused before any lookup: whoever sends
/// them wants to reach a cache, a log or the next server (CVE-2022-27924 was a line end in a user name).
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
    /// The same of who authenticates, where that is somebody else.
    pub authcid: Option<String>,
    /// What it is to be called.
    pub failure: LoginFailure,
}

impl Rejected {
    fn new(mechanism: Mechanism, user: &[u8], failure: LoginFailure) -> Rejected {
        Rejected {
            mechanism,
            user: displayable(user),
            authcid: None,
            failure,
        }
    }
}

/// What the client said about itself with IMAP `ID` before login; passed on inside X-VIA only.
#[derive(Debug, Clone, Default)]
pub struct IdFields {
    /// `name` of the client program.
    pub name: Option<String>,
    /// `version` of the client program.
    pub version: Option<String>,
}

/// Why a login dialogue was ended by its machine.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ended {
    /// The client said LOGOUT or QUIT.
    Logout,
    /// Too many bad commands.
    TooManyErrors,
    /// Too many failed logins.
    TooManyLogins,
    /// A limit of line.rs was exceeded in a way from which the dialogue cannot recover.
    TooLong,
    /// Bytes arrived behind STARTTLS in clear text: somebody tries to inject commands (CVE-2011-0411 and kin).
    BytesBehindStartTls,
}

/// How many failed logins a connection has had.
#[derive(Debug, Default)]
pub(crate) struct Failures {
    counted: u32,
    others: u32,
}

/// How often a client may try again on one connection where it is not to blame. It need not wait, and each try is a
/// record and a question.
const MAX_BLAMELESS: u32 = 20;

impl Failures {
    /// Notes one, and says whether it was the last that is borne.
    pub(crate) fn was_last(&mut self, failure: &LoginFailure, max_logins: u32) -> bool {
        match failure.counts() {
            true => self.counted += 1,
            false => self.others += 1,
        }
        self.counted >= max_logins || self.others >= MAX_BLAMELESS
    }
}

/// What a machine that faces the client wants next.
#[derive(Debug)]
pub enum Step {
    /// More bytes.
    NeedInput,
    /// Send the output, then start TLS and make a new machine. This machine is spent; it holds no unread byte
    /// (otherwise it says [`Ended::BytesBehindStartTls`]).
    StartTls,
    /// A decision about these credentials: [`LoginMachine::accept`] or [`LoginMachine::refuse`]. Until then the
    /// machine takes input but makes no step.
    Login(Credentials),
    /// The machine has refused a password on a clear-text channel that takes none (the answer is in the output);
    /// said so that the audit log hears of it. The next step follows at once.
    TlsRequired(Mechanism),
    /// Name or password are such that no server may be asked: [`LoginMachine::refuse`] with its failure, after the
    /// wait if that waits.
    Reject(Rejected),
    /// Send the output and close.
    Close(Ended),
}

impl From<Result<Credentials, Rejected>> for Step {
    fn from(parsed: Result<Credentials, Rejected>) -> Step {
        match parsed {
            Ok(credentials) => Step::Login(credentials),
            Err(rejected) => Step::Reject(rejected),
        }
    }
}

/// A machine that faces the client until it is logged in.
///
/// It must give the same output and steps for the same bytes, however they are cut.
pub trait LoginMachine: Send {
    /// Writes the greeting. Called once, on a new connection; not called after STARTTLS.
    fn greet(&mut self, out: &mut Vec<u8>);

    /// Takes bytes from the client. What is held is bounded; once it is full, [`LoginMachine::wants_input`] is false.
    fn input(&mut self, bytes: &[u8]);

    /// Whether the machine can take at least one more read of input (pipelined commands are kept, up to a limit).
    fn wants_input(&self) -> bool;

    /// Goes on as far as the input reaches, appending what is to be sent to `out`.
    fn step(&mut self, out: &mut Vec<u8>) -> Step;

    /// Answers [`Step::Login`] with a failure. The dialogue goes on unless the next step says otherwise.
    fn refuse(&mut self, failure: &LoginFailure, out: &mut Vec<u8>);

    /// Answers [`Step::Login`] with the mailbox server's own words; gives the bytes that the client pipelined
    /// behind its login. The machine is spent.
    fn accept(self: Box<Self>, accepted: &Accepted, out: &mut Vec<u8>) -> Vec<u8>;

    /// Says goodbye because of our side (deadline, shutdown): IMAP `* BYE …`, POP3 `-ERR …`.
    fn bye(&mut self, text: &str, out: &mut Vec<u8>);

    /// What the client said with `ID` so far.
    fn id(&self) -> IdFields {
        IdFields::default()
    }

    /// A short name of where the dialogue stands, for audit records (`greeting`, `command`, `literal`, `sasl`).
    fn phase(&self) -> &'static str;
}

/// What a mailbox server is told about a client.
#[derive(Debug, Clone)]
pub struct Introduction {
    /// What the client offered.
    pub credentials: Credentials,
    /// The name of the account at the server, without suffix.
    pub login: String,
    /// Address of the client.
    pub client: IpAddr,
    /// Our address on the client's connection.
    pub local: IpAddr,
    /// What the client said with `ID`.
    pub client_id: IdFields,
    /// Name and version of this proxy.
    pub product: (String, String),
    /// Whether to tell the client's address (IMAP `ID`, POP3 `XOIP`). Servers believe it from anyone, so it is
    /// switched off for servers that are not ours.
    pub announce: bool,
}

/// A mailbox server took the login.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Accepted {
    /// Complete untagged lines that came before the final answer of the login, with their line ends.
    pub untagged: Vec<u8>,
    /// The final answer without tag and line end: `OK [CAPABILITY …] Logged in`, `+OK Logged in.`
    pub answer: Vec<u8>,
    /// Bytes that the server sent behind the final answer.
    pub rest: Vec<u8>,
}

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
    /// The server cannot say at the moment (`[UNAVAILABLE]`, `[SYS/TEMP]`, `[INUSE]`, BYE, …).
    Temporary(String),
    /// The account lives elsewhere: the route is stale (MAIL §11.10).
    WrongHost,
    /// The server does not speak the protocol as it must.
    Broken(&'static str),
}

/// Servers older than RFC 5530 only have words. The text is in lower case.
pub(crate) fn says_bad_credentials(text: &str) -> bool {
    const WORDS: [&str; 16] = [
        "login failed",
        "login incorrect",
        "login rejected",
        "logon failure",
        "authenticate failed",
        "authentication failed",
        "authentication failure",
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
/// `[UNAVAILABLE]`, Gmail behind `[ALERT]`. Too many failures are not that: nobody's password was right. The text is
/// in lower case.
pub(crate) fn says_limit(text: &str) -> bool {
    let many = text.contains("maximum number of") || text.contains("too many");
    let of = ["connection", "session", "login"]
        .iter()
        .any(|word| text.contains(word));
    many && of && !says_failures(text)
}

/// Why a server's list or answer forbids to say a password to it. Its user cannot help that: whoever set up the link
/// can.
pub(crate) const TLS_WANTED: &str = "it takes no password without TLS";

/// Why nobody can log in to another one's mailbox at a server.
pub(crate) const NO_PLAIN: &str = "it does not offer PLAIN, without which nobody logs in for another one";

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
pub(crate) fn says_own_trouble(text: &str) -> bool {
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

/// What a machine that faces the mailbox server wants next.
#[derive(Debug)]
pub enum UpstreamStep {
    /// More bytes.
    NeedInput,
    /// The login is done.
    Accepted(Accepted),
    /// The login failed; close the connection.
    Refused(Refusal),
}

/// A machine that faces the mailbox server until the user is logged in there.
pub trait UpstreamMachine: Send {
    /// Takes bytes from the server and goes on, appending what is to be sent to `out`.
    fn input(&mut self, bytes: &[u8], out: &mut Vec<u8>) -> UpstreamStep;

    /// Where the dialogue stands, for audit records (`banner`, `id`, `login`).
    fn phase(&self) -> &'static str;
}
