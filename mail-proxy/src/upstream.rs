//! What the machines that face a mailbox server share: lines within limits, one decision, and what a client's
//! credentials mean for the dialogue.
//!
//! A protocol adds its questions and the meaning of the answers ([`UpstreamDialect`]).

use std::fmt::Debug;

use mail_directory::Secret;

use crate::credentials::Proof;
use crate::known_servers::Said;
use crate::line::{self, Input, LineSearch};
use crate::login_failure::one_line;
use crate::machine::{Accepted, Introduction, UpstreamMachine, UpstreamStep};
use crate::mechanism::{Mechanism, Mechanisms};
use crate::sasl;
use crate::scram::{MAX_MESSAGE, ServerMessage};
use crate::server_refusal::{BINDS, NO_EXCHANGE, NO_PLAIN, NO_TOKEN, Refusal};

/// Octets of one line of a server. The list of capabilities is one in IMAP, and has no limit in any RFC; RFC 2449
/// section 4 has 512 for POP3, but more is not refused.
const MAX_LINE: usize = 64 * 1024;

/// Octets that a server may say until the login is answered. Greeting and answer take about 1 KiB each.
const MAX_TOTAL: usize = 128 * 1024;

/// The part of an upstream machine that knows its protocol.
pub trait UpstreamDialect: Debug + Send {
    /// Takes one line, without its end, and appends what is to be sent. `None`: more lines.
    fn take(&mut self, line: &[u8], out: &mut Vec<u8>) -> Option<UpstreamStep>;

    /// Appends the client's answer to a message of the server.
    fn respond(&mut self, response: &[u8], out: &mut Vec<u8>) {
        out.extend_from_slice(sasl::encode(response).expose());
        out.extend_from_slice(b"\r\n");
    }

    /// TLS has begun: what was learned before counts no more.
    fn secured(&mut self, out: &mut Vec<u8>) -> Option<UpstreamStep>;

    /// As [`UpstreamMachine::heard`].
    fn heard(&self) -> &Said;

    /// As [`UpstreamMachine::is_overlapping`].
    fn is_overlapping(&self) -> bool;

    /// Where the dialogue stands, for audit records (`banner`, `starttls`, `id`, `login`).
    fn phase(&self) -> &'static str;
}

/// The machine that faces the mailbox server until the user is logged in there.
#[derive(Debug)]
pub struct UpstreamDriver<D> {
    dialect: D,
    input: Input,
    read: usize,
    /// Whether a decision has been made. Where that was is still known.
    over: bool,
}

impl<D: UpstreamDialect> UpstreamDriver<D> {
    /// A machine for a new connection.
    pub(crate) fn speaking(dialect: D) -> Self {
        Self {
            dialect,
            input: Input::default(),
            read: 0,
            over: false,
        }
    }

    /// Takes one line, if there is one.
    fn next_line(&mut self) -> Result<Option<Vec<u8>>, UpstreamStep> {
        let (text, end) = match line::find_line(self.input.unread(), MAX_LINE) {
            LineSearch::NeedInput => return Ok(None),
            LineSearch::TooLong => return Err(broken("a line without end")),
            LineSearch::Line { text, end } => (text, end),
        };
        let line = self.input.unread()[..text].to_vec();
        self.input.consume(end);
        self.read += end;
        if self.read > MAX_TOTAL {
            return Err(broken("it talks without end"));
        }
        match line::is_clean(&line) {
            true => Ok(Some(line)),
            false => Err(broken("NUL or CR within a line")),
        }
    }

    /// The decision. What the server has sent behind its answer is the client's. In front of TLS there must be nothing:
    /// whoever sits in between would have said it in the server's name (CVE-2011-0411 and kin).
    fn decided(&mut self, step: UpstreamStep) -> UpstreamStep {
        let step = match step {
            UpstreamStep::StartTls if self.input.unread().is_empty() => return UpstreamStep::StartTls,
            UpstreamStep::StartTls => broken("bytes in clear text behind its answer to STARTTLS"),
            UpstreamStep::Accepted(accepted) => UpstreamStep::Accepted(Accepted {
                rest: self.input.unread().to_vec(),
                ..accepted
            }),
            other => other,
        };
        self.over = true;
        self.input.clear();
        step
    }
}

impl<D: UpstreamDialect> UpstreamMachine for UpstreamDriver<D> {
    fn input(&mut self, bytes: &[u8], out: &mut Vec<u8>) -> UpstreamStep {
        if self.over {
            return broken("the dialogue is over");
        }
        self.input.push(bytes);
        self.go_on(out)
    }

    fn respond(&mut self, response: &[u8], out: &mut Vec<u8>) -> UpstreamStep {
        self.dialect.respond(response, out);
        self.go_on(out)
    }

    fn secured(&mut self, out: &mut Vec<u8>) -> UpstreamStep {
        match self.dialect.secured(out) {
            None => UpstreamStep::NeedInput,
            Some(step) => self.decided(step),
        }
    }

    fn heard(&self) -> &Said {
        self.dialect.heard()
    }

    fn is_overlapping(&self) -> bool {
        self.dialect.is_overlapping()
    }

    fn phase(&self) -> &'static str {
        self.dialect.phase()
    }
}

impl<D: UpstreamDialect> UpstreamDriver<D> {
    /// Takes the lines that are there.
    fn go_on(&mut self, out: &mut Vec<u8>) -> UpstreamStep {
        loop {
            let step = match self.next_line() {
                Ok(None) => return UpstreamStep::NeedInput,
                Ok(Some(line)) => self.dialect.take(&line, out),
                Err(step) => Some(step),
            };
            match step {
                Some(challenge @ UpstreamStep::Challenge(_)) => return challenge,
                Some(step) => return self.decided(step),
                None => {}
            }
        }
    }
}

/// What a server asks while it has the message of a login: a token has one challenge, which says why it is not good;
/// an exchange has two, the salt and the signature.
#[derive(Debug, Default)]
pub(crate) struct Challenges(u8);

impl Challenges {
    /// Takes the next one, in base64.
    pub(crate) fn take(
        &mut self,
        intro: &Introduction,
        has: Mechanisms,
        text: &[u8],
        out: &mut Vec<u8>,
    ) -> Option<UpstreamStep> {
        self.0 += 1;
        match (&intro.credentials.proof, self.0) {
            (Proof::Token(_), 1) => {
                out.extend_from_slice(intro.challenge_answer(has).as_bytes());
                out.extend_from_slice(b"\r\n");
                None
            }
            (Proof::Exchange(_), count @ 1..=2) => Some(relayed(count, text)),
            _ => Some(broken("an invitation that nobody waits for")),
        }
    }
}

/// A server that says in its own message why it does not go on tells no more than one that says no at once.
fn relayed(count: u8, text: &[u8]) -> UpstreamStep {
    let message = sasl::decode(text).filter(|message| message.expose().len() <= MAX_MESSAGE);
    let Some(message) = message.map(|message| message.expose().clone()) else {
        return broken(NO_SCRAM);
    };
    match (ServerMessage::parse(&message), count) {
        (Some(ServerMessage::First), 1) | (Some(ServerMessage::Final), 2) => UpstreamStep::Challenge(message),
        (Some(ServerMessage::Error(why)), _) if why == "no-resources" => UpstreamStep::Refused(Refusal::Temporary(why)),
        (Some(ServerMessage::Error(_)), _) => UpstreamStep::Refused(Refusal::BadCredentials),
        _ => broken(NO_SCRAM),
    }
}

/// What a server says that must not reach a client.
const NO_SCRAM: &str = "its message is none of SCRAM";

impl Introduction {
    /// Whether the account's name can be sent to a server. If not, the server is not to blame: the directory has a name
    /// that must not be sent.
    pub(crate) fn can_be_said(&self) -> Result<(), UpstreamStep> {
        match self.login.chars().any(char::is_control) {
            true => Err(broken("the account's name has control characters")),
            false => Ok(()),
        }
    }

    /// Whether the client logs in to another user's mailbox, which only SASL can express.
    pub(crate) fn is_delegated(&self) -> bool {
        self.credentials.authenticating_as.is_some()
    }

    /// Whether LOGIN, USER and PASS have no words for what the client wants: they carry one name and a password.
    pub(crate) fn needs_sasl(&self) -> bool {
        self.is_delegated() || !matches!(self.credentials.proof, Proof::Password(_))
    }

    /// The password, where it is one; whatever is no password is said by SASL alone.
    pub(crate) fn password(&self) -> &[u8] {
        match &self.credentials.proof {
            Proof::Password(password) => password.expose(),
            Proof::Token(_) | Proof::Exchange(_) | Proof::Certificate => b"",
        }
    }

    /// The mechanism that carries the credentials, whatever a server has.
    pub(crate) fn first_mechanism(&self) -> Mechanism {
        match self.credentials.proof {
            Proof::Password(_) => Mechanism::SaslPlain,
            Proof::Token(_) | Proof::Exchange(_) | Proof::Certificate => self.credentials.mechanism,
        }
    }

    /// The mechanism by which a server with these can be told the credentials. The two for tokens of authorization servers
    /// carry the same. A token that mailbox servers made themselves goes by theirs, which they do not list.
    pub(crate) fn mechanism(&self, has: Mechanisms) -> Option<Mechanism> {
        let own = self.first_mechanism();
        let fitting = match &self.credentials.proof {
            Proof::Token(_) if own == Mechanism::XZimbra => return Some(own),
            Proof::Token(token) => {
                let listed = [own, Mechanism::OauthBearer, Mechanism::Xoauth2];
                let listed = listed.into_iter().find(|mechanism| has.contains(*mechanism));
                let is_theirs = sasl::is_zimbra_token(token.expose());
                return listed.or(is_theirs.then_some(Mechanism::XZimbra));
            }
            Proof::Exchange(first) if first.could_bind() && has.binds() => return None,
            // The server has not seen it.
            Proof::Certificate => return None,
            Proof::Password(_) | Proof::Exchange(_) => [own; 3],
        };
        fitting.into_iter().find(|mechanism| has.contains(*mechanism))
    }

    /// The capabilities that a server with this greeting is known for; `None`: it is not known.
    pub(crate) fn known_for(&self, greeting: &str) -> Option<&str> {
        let known = self.known.as_ref().filter(|known| known.greeting == greeting)?;
        Some(&known.capabilities)
    }

    /// What a server with these lacks that has no such mechanism, if it must have one.
    pub(crate) fn lacks(&self, has: Mechanisms) -> Option<&'static str> {
        match &self.credentials.proof {
            Proof::Token(_) => Some(NO_TOKEN),
            Proof::Exchange(first) if first.could_bind() && has.binds() => Some(BINDS),
            Proof::Exchange(_) => Some(NO_EXCHANGE),
            Proof::Certificate => Some(NO_PLAIN),
            Proof::Password(_) => self.is_delegated().then_some(NO_PLAIN),
        }
    }

    /// The message of that mechanism in base64, for the account under this name.
    pub(crate) fn message(&self, has: Mechanisms, name: &str) -> Secret<Vec<u8>> {
        match (&self.credentials.proof, &self.credentials.authenticating_as) {
            (Proof::Token(token), _) => {
                let mechanism = self.mechanism(has).unwrap_or(self.credentials.mechanism);
                match mechanism {
                    Mechanism::XZimbra => {
                        let owner = self.credentials.authenticating_as.as_deref().unwrap_or(&self.login);
                        sasl::encode_plain(name, owner, token.expose())
                    }
                    _ => sasl::encode_token(mechanism, name, token.expose()),
                }
            }
            (Proof::Exchange(first), _) => sasl::encode(first.message()),
            (Proof::Certificate, _) => sasl::encode(b""),
            (Proof::Password(password), None) => sasl::encode_plain("", name, password.expose()),
            (Proof::Password(password), Some(other)) => sasl::encode_plain(name, other, password.expose()),
        }
    }

    /// What a server hears when it has said why the token is not good.
    pub(crate) fn challenge_answer(&self, has: Mechanisms) -> &'static str {
        self.mechanism(has).map_or("", sasl::challenge_answer)
    }
}

/// A server's words as one printable line.
pub(crate) fn printable(line: &[u8]) -> String {
    one_line(&String::from_utf8_lossy(line))
}

/// A server that does not speak as it must.
pub(crate) fn broken(why: &'static str) -> UpstreamStep {
    UpstreamStep::Refused(Refusal::Broken(why))
}
