//! What the machines that face a client share: the order of a dialogue until it is logged in, its limits, and SASL.
//!
//! A protocol adds its grammar and its words ([`LoginDialect`]).

use std::fmt::Debug;
use std::ops::ControlFlow;
use std::sync::Arc;

use crate::credentials::{Credentials, Rejected};
use crate::line::{self, Input, LineSearch};
use crate::login_failure::LoginFailure;
use crate::machine::{Accepted, Channel, DialogueEnd, IdFields, LoginMachine, Step};
use crate::mechanism::{Mechanism, Mechanisms};
use crate::sasl::{Exchange, Progress, TOKEN_CHALLENGE, decode, encode};
use crate::scram::is_response;

/// Octets of answers after which a client that never logs in is sent away. A short command can ask for a long
/// answer; this bounds what a client that never reads can make us hold. Some hundred commands fit.
const MAX_ANSWERS: usize = 64 * 1024;

/// What one protocol says where all say something, behind the tag if it has tags.
#[derive(Debug, Clone, Copy)]
pub struct Texts {
    /// A command that cannot be understood.
    pub invalid: &'static str,
    /// Go on with TLS.
    pub start_tls: &'static str,
    /// A password on a channel that takes none.
    pub tls_required: &'static str,
    /// A SASL mechanism that is not offered.
    pub no_mechanism: &'static str,
    /// A SASL message that is none.
    pub malformed: &'static str,
    /// The client has given up a SASL dialogue.
    pub aborted: &'static str,
}

/// What of its settings a dialogue needs in any protocol.
#[derive(Debug, Clone, Copy)]
pub struct LoginLimits {
    /// The SASL mechanisms that are offered.
    pub mechanisms: Mechanisms,
    /// The dialogue ends with this many bad commands.
    pub max_errors: u32,
    /// The dialogue ends with this many failed logins.
    pub max_logins: u32,
}

impl Default for LoginLimits {
    fn default() -> Self {
        Self {
            mechanisms: [Mechanism::SaslPlain, Mechanism::SaslLogin].into_iter().collect(),
            max_errors: 5,
            max_logins: 3,
        }
    }
}

/// The part of a login machine that knows its protocol.
pub trait LoginDialect: Debug + Sized {
    /// What an operator may choose.
    type Settings: Debug + Send + Sync;
    /// What is known of a command whose rest is awaited, and of commands that it builds upon.
    type Command: Debug + Default + Send;
    /// What joins an answer to its command.
    type Tag: Debug + Clone + Send;

    /// What it says.
    const TEXTS: Texts;
    /// Whether a client that is sent away hears why in a line of its own.
    const SAYS_BYE: bool;

    /// The limits of a dialogue.
    fn limits(settings: &Self::Settings) -> LoginLimits;

    /// Writes the greeting.
    fn greet(settings: &Self::Settings, out: &mut Vec<u8>);

    /// Takes the next command, as far as it is there. `None`: try again.
    fn command(login: &mut LoginDriver<Self>, out: &mut Vec<u8>) -> Option<Step>;

    /// Ends the dialogue: a command or a SASL message has no end within the limits.
    fn too_long(login: &mut LoginDriver<Self>, out: &mut Vec<u8>) -> Option<Step>;

    /// Writes what stands before the answer to a command.
    fn tag(tag: Option<&Self::Tag>, out: &mut Vec<u8>);

    /// Writes goodbye.
    fn bye(text: &str, out: &mut Vec<u8>);

    /// What a failed login is called.
    fn failed(failure: &LoginFailure, mechanism: Mechanism) -> String;

    /// The name of a place within a command, for audit records.
    fn phase(_command: &Self::Command) -> Option<&'static str> {
        None
    }
}

/// The machine that faces the client until it is logged in.
#[derive(Debug)]
pub struct LoginDriver<D: LoginDialect> {
    pub(crate) settings: Arc<D::Settings>,
    pub(crate) channel: Channel,
    pub(crate) input: Input,
    pub(crate) state: State<D>,
    pub(crate) id: IdFields,
    /// The name that the client has asked for in TLS.
    pub(crate) name: Option<String>,
    heard: bool,
    errors: u32,
    failures: Failures,
    answered: usize,
}

#[derive(Debug)]
pub(crate) enum State<D: LoginDialect> {
    /// A command is awaited, or the rest of one.
    Command(D::Command),
    /// A line of a SASL dialogue is awaited.
    Sasl { tag: D::Tag, exchange: Exchange },
    /// The client has heard what is wrong with its token; its empty answer is awaited, and then it hears that the login
    /// has failed (RFC 7628 section 3.2.3).
    TokenRefused {
        tag: D::Tag,
        failed: String,
        was_last: bool,
    },
    /// A decision is awaited.
    Decision { tag: D::Tag, mechanism: Mechanism },
    /// The client's answer to this message of the mailbox server is awaited.
    Challenged {
        tag: D::Tag,
        mechanism: Mechanism,
        message: Vec<u8>,
    },
    /// TLS was promised; not one more octet may come in clear text.
    StartTls,
    /// It is over.
    Ended(DialogueEnd),
}

/// The first answer to `AUTHENTICATE` and `AUTH`.
pub(crate) enum Opening {
    /// The mechanism is not offered.
    NoMechanism,
    /// The channel takes no password.
    TlsRequired(Mechanism),
    /// The exchange has begun.
    Begun(Progress),
}

impl<D: LoginDialect> LoginDriver<D> {
    /// A machine for a new connection, or for one that has just got TLS.
    pub fn new(settings: Arc<D::Settings>, channel: Channel) -> Self {
        Self {
            settings,
            channel,
            input: Input::default(),
            state: State::Command(D::Command::default()),
            id: IdFields::default(),
            name: None,
            heard: false,
            errors: 0,
            failures: Failures::default(),
            answered: 0,
        }
    }

    /// The same for a client that has asked for this name in TLS.
    #[must_use]
    pub fn named(self, name: Option<String>) -> Self {
        Self { name, ..self }
    }

    /// Octets of input that are held.
    pub fn held(&self) -> usize {
        self.input.unread().len()
    }

    /// One act of the machine. `None`: try again.
    fn advance(&mut self, out: &mut Vec<u8>) -> Option<Step> {
        match &self.state {
            State::Ended(ended) => Some(Step::Close(*ended)),
            State::Decision { .. } => Some(Step::NeedInput),
            State::StartTls if self.input.unread().is_empty() => Some(Step::NeedInput),
            State::StartTls => self.end(DialogueEnd::BytesBehindStartTls),
            State::Sasl { .. } => self.sasl_line(out),
            State::Challenged { .. } => self.challenged_line(out),
            State::TokenRefused { .. } => self.challenge_answered(out),
            State::Command(_) => D::command(self, out),
        }
    }

    /// RFC 9051 section 6.2.1, RFC 2595 section 4. Octets behind it in clear text, before our OK, are not
    /// from a client that wants TLS: commands are being injected (CVE-2011-0411 and kin). Stricter than to discard: it ends
    /// here.
    pub(crate) fn start_tls(&mut self, tag: &D::Tag, out: &mut Vec<u8>) -> Option<Step> {
        if !self.channel.offers_starttls() {
            return self.invalid(Some(tag), out);
        }
        if !self.input.unread().is_empty() {
            return self.end(DialogueEnd::BytesBehindStartTls);
        }
        self.answer(Some(tag), D::TEXTS.start_tls, out);
        self.state = State::StartTls;
        Some(Step::StartTls)
    }

    /// The SASL mechanisms that may be used on this channel now.
    pub(crate) fn offered(&self) -> Mechanisms {
        match self.channel.takes_passwords() {
            true => self.mechanisms(),
            false => Mechanisms::default(),
        }
    }

    /// Those that the administrator has chosen, and EXTERNAL for a client with a certificate.
    fn mechanisms(&self) -> Mechanisms {
        let mut chosen = D::limits(&self.settings).mechanisms;
        match self.channel {
            Channel::TlsWithCertificate => chosen.insert(Mechanism::External),
            Channel::Tls | Channel::Clear(_) => chosen.remove(Mechanism::External),
        }
        chosen
    }

    /// Begins a SASL exchange by the name of its mechanism, if it may begin.
    pub(crate) fn open(&self, name: &[u8], initial: Option<&[u8]>) -> Opening {
        let offered = self.mechanisms();
        let named = Mechanism::of_sasl(name).filter(|mechanism| offered.contains(*mechanism));
        let Some((mechanism, exchange)) = named.and_then(|named| Some((named, Exchange::begin(named)?))) else {
            return Opening::NoMechanism;
        };
        if !self.channel.takes_passwords() {
            return Opening::TlsRequired(mechanism);
        }
        Opening::Begun(match initial {
            Some(token) => exchange.initial(token),
            None => Progress::Prompt(exchange),
        })
    }

    /// Answers `AUTHENTICATE` and `AUTH`.
    pub(crate) fn opened(&mut self, tag: D::Tag, opening: Opening, out: &mut Vec<u8>) -> Option<Step> {
        match opening {
            Opening::NoMechanism => self.answer(Some(&tag), D::TEXTS.no_mechanism, out),
            Opening::TlsRequired(mechanism) => self.tls_required(&tag, mechanism, out),
            Opening::Begun(progress) => self.progress(tag, progress, out),
        }
    }

    /// The answer to the challenge of a token; whatever it says, the login has failed.
    fn challenge_answered(&mut self, out: &mut Vec<u8>) -> Option<Step> {
        let end = match self.line(out) {
            ControlFlow::Continue((_, end)) => end,
            ControlFlow::Break(step) => return step,
        };
        self.input.consume_secret(end);
        match std::mem::replace(&mut self.state, State::Command(D::Command::default())) {
            State::TokenRefused { tag, failed, was_last } => self.failed(&tag, &failed, was_last, out),
            _ => None,
        }
    }

    /// Tells that a login has failed; after the last one that is allowed the dialogue ends.
    fn failed(&mut self, tag: &D::Tag, failed: &str, was_last: bool, out: &mut Vec<u8>) -> Option<Step> {
        self.answer(Some(tag), failed, out);
        self.state = State::Command(D::Command::default());
        match was_last {
            true => self.send_away("too many failed logins", DialogueEnd::TooManyLogins, out),
            false => None,
        }
    }

    /// The next line of a SASL dialogue, where it is there: the length of its text, and its own.
    fn line(&mut self, out: &mut Vec<u8>) -> ControlFlow<Option<Step>, (usize, usize)> {
        match line::find_line(self.input.unread(), line::MAX_LINE) {
            LineSearch::NeedInput => ControlFlow::Break(Some(Step::NeedInput)),
            LineSearch::TooLong => ControlFlow::Break(D::too_long(self, out)),
            LineSearch::Line { text, end } => ControlFlow::Continue((text, end)),
        }
    }

    /// The client's answer to a message of the mailbox server. One that gives up here has had a server asked: that is
    /// a bad command, so that it cannot go on for ever.
    fn challenged_line(&mut self, out: &mut Vec<u8>) -> Option<Step> {
        let (text, end) = match self.line(out) {
            ControlFlow::Continue(line) => line,
            ControlFlow::Break(step) => return step,
        };
        let state = std::mem::replace(&mut self.state, State::Command(D::Command::default()));
        let State::Challenged {
            tag,
            mechanism,
            message,
        } = state
        else {
            return None;
        };
        let line = &self.input.unread()[..text];
        let refused = if line == b"*" {
            D::TEXTS.aborted
        } else {
            D::TEXTS.malformed
        };
        let response = decode(line).filter(|response| is_response(&message, response.expose()));
        self.input.consume_secret(end);
        let Some(response) = response else {
            self.error(Some(&tag), refused, out);
            return Some(Step::Withdrawn);
        };
        self.state = State::Decision { tag, mechanism };
        Some(Step::Respond(response))
    }

    fn sasl_line(&mut self, out: &mut Vec<u8>) -> Option<Step> {
        let (text, end) = match self.line(out) {
            ControlFlow::Continue(line) => line,
            ControlFlow::Break(step) => return step,
        };
        let State::Sasl { tag, exchange } = std::mem::replace(&mut self.state, State::Command(D::Command::default()))
        else {
            return None;
        };
        let progress = match &self.input.unread()[..text] {
            b"*" => None,
            response => Some(exchange.response(response)),
        };
        self.input.consume_secret(end);
        match progress {
            Some(progress) => self.progress(tag, progress, out),
            None => self.answer(Some(&tag), D::TEXTS.aborted, out),
        }
    }

    fn progress(&mut self, tag: D::Tag, progress: Progress, out: &mut Vec<u8>) -> Option<Step> {
        match progress {
            Progress::Prompt(exchange) => {
                out.extend_from_slice(format!("+ {}\r\n", exchange.prompt()).as_bytes());
                self.state = State::Sasl { tag, exchange };
                None
            }
            Progress::Done(parsed) => self.decide(tag, parsed),
            Progress::Malformed => self.error(Some(&tag), D::TEXTS.malformed, out),
        }
    }

    /// Asks for a decision about these credentials.
    pub(crate) fn decide(&mut self, tag: D::Tag, parsed: Result<Credentials, Rejected>) -> Option<Step> {
        let mechanism = match &parsed {
            Ok(Credentials { mechanism, .. }) | Err(Rejected { mechanism, .. }) => *mechanism,
        };
        self.state = State::Decision { tag, mechanism };
        Some(parsed.into())
    }

    /// No password is taken here (RFC 9051 section 6.2.3). It counts as a bad command; what ends the dialogue comes with
    /// the next step.
    pub(crate) fn tls_required(&mut self, tag: &D::Tag, mechanism: Mechanism, out: &mut Vec<u8>) -> Option<Step> {
        self.error(Some(tag), D::TEXTS.tls_required, out);
        Some(Step::TlsRequired(mechanism))
    }

    /// A command that cannot be understood.
    pub(crate) fn invalid(&mut self, tag: Option<&D::Tag>, out: &mut Vec<u8>) -> Option<Step> {
        self.error(tag, D::TEXTS.invalid, out)
    }

    /// A bad command; the last one that is allowed ends the dialogue.
    pub(crate) fn error(&mut self, tag: Option<&D::Tag>, text: &str, out: &mut Vec<u8>) -> Option<Step> {
        self.answer(tag, text, out);
        self.errors += 1;
        if self.errors < D::limits(&self.settings).max_errors {
            return None;
        }
        self.send_away("too many invalid commands", DialogueEnd::TooManyErrors, out)
    }

    /// Writes the answer to a command.
    pub(crate) fn answer(&self, tag: Option<&D::Tag>, text: &str, out: &mut Vec<u8>) -> Option<Step> {
        D::tag(tag, out);
        out.extend_from_slice(text.as_bytes());
        out.extend_from_slice(b"\r\n");
        None
    }

    /// Done with a command.
    pub(crate) fn next_command(&mut self, end: usize) {
        self.input.consume(end);
        self.state = State::Command(D::Command::default());
    }

    /// Done with a command that may have held a password.
    pub(crate) fn next_command_wiping(&mut self, end: usize) {
        self.input.consume_secret(end);
        self.state = State::Command(D::Command::default());
    }

    /// Nothing is read or answered any more.
    pub(crate) fn end(&mut self, ended: DialogueEnd) -> Option<Step> {
        self.input.clear();
        self.state = State::Ended(ended);
        None
    }

    fn send_away(&mut self, text: &str, ended: DialogueEnd, out: &mut Vec<u8>) -> Option<Step> {
        if D::SAYS_BYE {
            D::bye(text, out);
        }
        self.end(ended)
    }
}

impl<D: LoginDialect> LoginMachine for LoginDriver<D> {
    fn greet(&mut self, out: &mut Vec<u8>) {
        D::greet(&self.settings, out);
    }

    fn input(&mut self, bytes: &[u8]) {
        if !matches!(self.state, State::Ended(_)) {
            self.heard |= !bytes.is_empty();
            self.input.push(bytes);
        }
    }

    fn wants_input(&self) -> bool {
        self.input.has_room()
    }

    fn step(&mut self, out: &mut Vec<u8>) -> Step {
        loop {
            if self.answered > MAX_ANSWERS && matches!(self.state, State::Command(_)) {
                D::bye("too many commands", out);
                self.end(DialogueEnd::TooManyErrors);
            }
            let before = out.len();
            let step = self.advance(out);
            self.answered += out.len() - before;
            if let Some(step) = step {
                return step;
            }
        }
    }

    fn challenge(&mut self, message: &[u8], out: &mut Vec<u8>) {
        let State::Decision { tag, mechanism } = &self.state else {
            return;
        };
        let (tag, mechanism) = (tag.clone(), *mechanism);
        out.extend_from_slice(b"+ ");
        out.extend_from_slice(encode(message).expose());
        out.extend_from_slice(b"\r\n");
        let message = message.to_vec();
        self.state = State::Challenged {
            tag,
            mechanism,
            message,
        };
    }

    fn refuse(&mut self, failure: &LoginFailure, out: &mut Vec<u8>) {
        let State::Decision { tag, mechanism } = &self.state else {
            return;
        };
        let (tag, failed) = (tag.clone(), D::failed(failure, *mechanism));
        let was_last = self.failures.was_last(failure, D::limits(&self.settings).max_logins);
        if mechanism.says_why() && failure.waits() {
            out.extend_from_slice(format!("+ {TOKEN_CHALLENGE}\r\n").as_bytes());
            self.state = State::TokenRefused { tag, failed, was_last };
        } else {
            self.failed(&tag, &failed, was_last, out);
        }
    }

    fn accept(self: Box<Self>, accepted: &Accepted, out: &mut Vec<u8>) -> Vec<u8> {
        if let State::Decision { tag, .. } = &self.state {
            out.extend_from_slice(&accepted.untagged);
            D::tag(Some(tag), out);
            out.extend_from_slice(&accepted.answer);
            out.extend_from_slice(b"\r\n");
            out.extend_from_slice(&accepted.rest);
        }
        self.input.unread().to_vec()
    }

    fn bye(&mut self, text: &str, out: &mut Vec<u8>) {
        D::bye(text, out);
    }

    fn id(&self) -> IdFields {
        self.id.clone()
    }

    fn phase(&self) -> &'static str {
        match &self.state {
            State::Command(command) => D::phase(command).unwrap_or(if self.heard { "command" } else { "greeting" }),
            State::Sasl { .. } | State::Challenged { .. } | State::TokenRefused { .. } => "sasl",
            State::Decision { .. } => "login",
            State::StartTls => "starttls",
            State::Ended(_) => "ended",
        }
    }
}

/// How many failed logins a connection has had.
#[derive(Debug, Default)]
struct Failures {
    counted: u32,
    others: u32,
}

/// How often a client may try again on one connection where it is not to blame. It need not wait, and each try is a
/// record and a question.
const MAX_BLAMELESS: u32 = 20;

impl Failures {
    /// Notes one, and returns whether it was the last that is allowed.
    fn was_last(&mut self, failure: &LoginFailure, max_logins: u32) -> bool {
        match failure.counts() {
            true => self.counted += 1,
            false => self.others += 1,
        }
        self.counted >= max_logins || self.others >= MAX_BLAMELESS
    }
}
