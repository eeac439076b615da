//! What the machines that face a mailbox server share: lines within limits, one decision, and what a client's
//! credentials mean for the dialogue.
//!
//! A protocol adds its questions and the meaning of the answers ([`UpstreamDialect`]).

use std::fmt::Debug;

use mail_directory::Secret;

use crate::line::{self, Input, LineSearch};
use crate::login_failure::one_line;
use crate::machine::{Accepted, Introduction, UpstreamMachine, UpstreamStep};
use crate::mechanism::{Mechanism, Mechanisms};
use crate::sasl;
use crate::server_refusal::{NO_PLAIN, NO_TOKEN, Refusal};

/// Octets of one line of a server. The list of capabilities is one in IMAP, and has no limit in any RFC; RFC 2449
/// section 4 has 512 for POP3, but more is not refused.
const MAX_LINE: usize = 64 * 1024;

/// Octets that a server may say until the login is answered. Greeting and answer take about 1 KiB each.
const MAX_TOTAL: usize = 128 * 1024;

/// The part of an upstream machine that knows its protocol.
pub trait UpstreamDialect: Debug + Send {
    /// Takes one line, without its end, and appends what is to be sent. `None`: more lines.
    fn take(&mut self, line: &[u8], out: &mut Vec<u8>) -> Option<UpstreamStep>;

    /// Where the dialogue stands, for audit records (`banner`, `id`, `login`).
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

    /// The decision. What the server has sent behind its answer is the client's.
    fn decided(&mut self, step: UpstreamStep) -> UpstreamStep {
        let step = match step {
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
        loop {
            let step = match self.next_line() {
                Ok(None) => return UpstreamStep::NeedInput,
                Ok(Some(line)) => self.dialect.take(&line, out),
                Err(step) => Some(step),
            };
            if let Some(step) = step {
                return self.decided(step);
            }
        }
    }

    fn phase(&self) -> &'static str {
        self.dialect.phase()
    }
}

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

    /// Whether the client came with a token, which only SASL can carry.
    pub(crate) fn has_token(&self) -> bool {
        self.credentials.mechanism.is_token()
    }

    /// Whether LOGIN, USER and PASS have no words for what the client wants.
    pub(crate) fn needs_sasl(&self) -> bool {
        self.is_delegated() || self.has_token()
    }

    /// The mechanism by which a server with these can be told the credentials. The two for tokens carry the same.
    pub(crate) fn mechanism(&self, has: Mechanisms) -> Option<Mechanism> {
        let fitting = match self.has_token() {
            true => [self.credentials.mechanism, Mechanism::OauthBearer, Mechanism::Xoauth2],
            false => [Mechanism::SaslPlain; 3],
        };
        fitting.into_iter().find(|mechanism| has.contains(*mechanism))
    }

    /// What a server lacks that has no such mechanism, if it must have one.
    pub(crate) fn lacks(&self) -> Option<&'static str> {
        match (self.has_token(), self.is_delegated()) {
            (true, _) => Some(NO_TOKEN),
            (false, true) => Some(NO_PLAIN),
            (false, false) => None,
        }
    }

    /// The message of that mechanism in base64, for the account under this name.
    pub(crate) fn message(&self, has: Mechanisms, name: &str) -> Secret<Vec<u8>> {
        let secret = self.credentials.password.expose();
        match (self.mechanism(has), &self.credentials.authenticating_as) {
            (Some(mechanism), _) if mechanism.is_token() => sasl::encode_token(mechanism, name, secret),
            (_, None) => sasl::encode_plain("", name, secret),
            (_, Some(other)) => sasl::encode_plain(name, other, secret),
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
