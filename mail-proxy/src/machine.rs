//! What the protocol machines of IMAP and POP3 have in common: the shape of their input, output and decisions.
//!
//! A machine is fed bytes and asked for steps. It owns no socket and no clock, so the same bytes give the same
//! answers however they are cut.

use std::net::SocketAddr;
use std::sync::Arc;

use mail_directory::Secret;

use crate::credentials::{Credentials, Rejected};
use crate::known_servers::{KnownServer, Said};
use crate::login_failure::LoginFailure;
use crate::mechanism::Mechanism;
use crate::server_refusal::Refusal;
use crate::server_rules::Announcement;

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
    /// TLS, and the client has shown a certificate that may stand for a login.
    TlsWithCertificate,
    /// Clear text, under this policy.
    Clear(StartTls),
}

impl Channel {
    /// May a password be taken on this channel?
    pub fn takes_passwords(self) -> bool {
        self != Self::Clear(StartTls::Only)
    }

    /// Is STARTTLS / STLS offered?
    pub fn offers_starttls(self) -> bool {
        matches!(self, Self::Clear(StartTls::On | StartTls::Only))
    }
}

/// What the client said about itself with IMAP `ID` before login: passed on inside X-VIA only, but for the last.
#[derive(Debug, Clone, Default)]
pub struct IdFields {
    /// `name` of the client program.
    pub name: Option<String>,
    /// `version` of the client program.
    pub version: Option<String>,
    /// How many proxies may still follow, from a client that is itself one: `x-proxy-ttl`, or `TTL` of POP3 `XCLIENT`.
    pub ttl: Option<u32>,
}

/// Why a login dialogue was ended by its machine.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DialogueEnd {
    /// The client said LOGOUT or QUIT.
    Logout,
    /// Too many bad commands.
    TooManyErrors,
    /// Too many failed logins.
    TooManyLogins,
    /// A limit of line.rs was exceeded in a way from which the dialogue cannot recover.
    TooLong,
    /// Bytes arrived behind STARTTLS in clear text: commands are being injected (CVE-2011-0411 and kin).
    BytesBehindStartTls,
}

/// What a machine that faces the client wants next.
#[derive(Debug)]
pub enum Step {
    /// More bytes.
    NeedInput,
    /// Send the output, then start TLS and make a new machine. This machine is spent; it holds no unread byte
    /// (otherwise it says [`DialogueEnd::BytesBehindStartTls`]).
    StartTls,
    /// A decision about these credentials: [`LoginMachine::accept`] or [`LoginMachine::refuse`], or first
    /// [`LoginMachine::challenge`]. Until then the machine takes input but makes no step.
    Login(Credentials),
    /// The client's answer to [`LoginMachine::challenge`]; the decision is still awaited.
    Respond(Secret<Vec<u8>>),
    /// The client gives no answer to it, or none that may be sent on. It has been told so: there is nothing left to
    /// decide.
    Withdrawn,
    /// The machine has refused a password on a clear-text channel that takes none (the answer is in the output);
    /// said so that the audit log hears of it. The next step follows at once.
    TlsRequired(Mechanism),
    /// Name or password are such that no server may be asked: [`LoginMachine::refuse`] with its failure, after the
    /// wait if that waits.
    Reject(Rejected),
    /// Send the output and close.
    Close(DialogueEnd),
}

impl From<Result<Credentials, Rejected>> for Step {
    fn from(parsed: Result<Credentials, Rejected>) -> Self {
        match parsed {
            Ok(credentials) => Self::Login(credentials),
            Err(rejected) => Self::Reject(rejected),
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

    /// Answers [`Step::Login`] or [`Step::Respond`] with a message of the mailbox server, for the client to answer.
    fn challenge(&mut self, message: &[u8], out: &mut Vec<u8>);

    /// Answers [`Step::Login`] with a failure. The dialogue goes on unless the next step says otherwise.
    fn refuse(&mut self, failure: &LoginFailure, out: &mut Vec<u8>);

    /// Answers [`Step::Login`] with the mailbox server's own words; returns the bytes that the client pipelined
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
    pub client: SocketAddr,
    /// Our address on the client's connection.
    pub local: SocketAddr,
    /// Id of the client's connection.
    pub session: String,
    /// How many proxies may follow behind us.
    pub ttl: u32,
    /// What the client said with `ID`.
    pub client_id: IdFields,
    /// Name and version of this proxy.
    pub product: (String, String),
    /// In whose words the server is told who the client is. Servers believe it from anyone, so those that are not ours
    /// are told nothing.
    pub announcement: Announcement,
    /// Whether TLS must begin before anything is said, with STARTTLS or STLS.
    pub starttls: bool,
    /// What the server has said of itself at earlier logins.
    pub known: Option<Arc<KnownServer>>,
    /// Whether one command is said after the other, whatever is known: the server has answered oddly.
    pub slowly: bool,
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
    /// What the server has said that it can, as its protocol lists it.
    pub capabilities: Option<String>,
}

/// What a machine that faces the mailbox server wants next.
#[derive(Debug)]
pub enum UpstreamStep {
    /// More bytes.
    NeedInput,
    /// The client's answer to this message of the server: [`UpstreamMachine::respond`].
    Challenge(Vec<u8>),
    /// The login is done.
    Accepted(Accepted),
    /// Send the output, then begin TLS: nothing that came in clear text is left, and nothing of it counts.
    StartTls,
    /// The login failed; close the connection.
    Refused(Refusal),
}

/// A machine that faces the mailbox server until the user is logged in there.
pub trait UpstreamMachine: Send {
    /// Takes bytes from the server and goes on, appending what is to be sent to `out`.
    fn input(&mut self, bytes: &[u8], out: &mut Vec<u8>) -> UpstreamStep;

    /// Takes the client's answer to [`UpstreamStep::Challenge`] and goes on.
    fn respond(&mut self, response: &[u8], out: &mut Vec<u8>) -> UpstreamStep;

    /// TLS has begun, as [`UpstreamStep::StartTls`] wanted: goes on, appending what is to be sent to `out`.
    fn secured(&mut self, out: &mut Vec<u8>) -> UpstreamStep;

    /// What the server has said of itself so far.
    fn heard(&self) -> &Said;

    /// Whether an answer is awaited that needs no thought, and behind which more has been said already: a server that is
    /// silent here has dropped the rest.
    fn is_overlapping(&self) -> bool;

    /// Where the dialogue stands, for audit records (`banner`, `starttls`, `id`, `login`).
    fn phase(&self) -> &'static str;
}
