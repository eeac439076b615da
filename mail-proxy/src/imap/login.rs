//! The IMAP machine that faces the client until it is logged in.
//!
//! It answers what needs no account, takes credentials, and writes the outcome. It knows no clock, no socket, and
//! not whether a password is right.

use std::sync::Arc;

use super::command::{Extent, Fault, Request, Tag, Verb};
use super::{FAREWELL, Settings, quoted};
use crate::credentials::{Credentials, Rejected};
use crate::failure::{LoginFailure, one_line};
use crate::line::{self, Found, Framed, Framer, Input};
use crate::machine::{Accepted, Channel, Ended, Failures, IdFields, LoginMachine, Step};
use crate::mechanism::Mechanism;
use crate::sasl::{Exchange, Progress};

/// Octets of answers after which a client that never logs in is sent away. A short command can ask for a long
/// answer; this bounds what somebody who never reads can make us hold. Some hundred commands fit.
const MAX_ANSWERS: usize = 64 * 1024;

/// IMAP towards a client that is not logged in.
#[derive(Debug)]
pub struct Login {
    settings: Arc<Settings>,
    channel: Channel,
    input: Input,
    state: State,
    id: IdFields,
    heard: bool,
    errors: u32,
    failures: Failures,
    answered: usize,
}

#[derive(Debug)]
enum State {
    /// A command is awaited, or the rest of one.
    Command(Framer),
    /// A line of a SASL dialogue is awaited.
    Sasl { tag: Tag, exchange: Exchange },
    /// A decision is awaited.
    Decision { tag: Tag, mechanism: Mechanism },
    /// TLS was promised; not one more octet may come in clear text.
    StartTls,
    /// It is over.
    Ended(Ended),
}

/// What a client is told when its command cannot be understood (MAIL §3.2).
const INVALID: &str = "BAD invalid command";

impl Login {
    /// A machine for a new connection, or for one that has just got TLS.
    pub fn new(settings: Arc<Settings>, channel: Channel) -> Login {
        Login {
            settings,
            channel,
            input: Input::default(),
            state: State::Command(Framer::default()),
            id: IdFields::default(),
            heard: false,
            errors: 0,
            failures: Failures::default(),
            answered: 0,
        }
    }

    /// Octets of input that are held.
    pub fn held(&self) -> usize {
        self.input.unread().len()
    }

    /// One act of the machine. `None`: try again.
    fn advance(&mut self, out: &mut Vec<u8>) -> Option<Step> {
        match &mut self.state {
            State::Ended(ended) => Some(Step::Close(*ended)),
            State::Decision { .. } => Some(Step::NeedInput),
            State::StartTls if self.input.unread().is_empty() => Some(Step::NeedInput),
            State::StartTls => self.end(Ended::BytesBehindStartTls),
            State::Sasl { .. } => self.sasl_line(out),
            State::Command(framer) => match framer.next(self.input.unread()) {
                Framed::NeedInput => Some(Step::NeedInput),
                Framed::Command { end } => self.command(end, out),
                Framed::Waits { end } => self.literal(end, out),
                Framed::TooBig { end } => self.too_big(end, out),
                Framed::TooLong => self.too_long(out),
            },
        }
    }

    fn command(&mut self, end: usize, out: &mut Vec<u8>) -> Option<Step> {
        let request = Request::parse(&self.input.unread()[..end], Extent::Whole);
        let Some(tag) = request.tag.clone() else {
            self.next_command(end);
            return self.invalid(None, out);
        };
        match request.verb {
            Verb::Login => return self.login(tag, end, out),
            Verb::Authenticate => return self.authenticate(tag, end, out),
            Verb::Id => return self.identify(tag, end, out),
            _ => {}
        }
        let well_formed = request.nothing().is_ok();
        let verb = request.verb;
        self.next_command(end);
        match verb {
            _ if !well_formed => self.invalid(Some(&tag), out),
            Verb::Capability => {
                out.extend_from_slice(self.capability_line().as_bytes());
                self.tagged(&tag, "OK completed", out)
            }
            Verb::Noop => self.tagged(&tag, "OK completed", out),
            Verb::Logout => {
                out.extend_from_slice(FAREWELL);
                self.tagged(&tag, "OK completed", out);
                self.end(Ended::Logout)
            }
            Verb::StartTls => self.start_tls(&tag, out),
            Verb::Login | Verb::Authenticate | Verb::Id | Verb::Unknown => self.invalid(Some(&tag), out),
        }
    }

    /// RFC 9051 section 6.2.1. Whoever sends more behind it in clear text, before our OK, is not the client that
    /// wants TLS: commands are being injected (CVE-2011-0411 and kin). Stricter than to discard: it ends here.
    fn start_tls(&mut self, tag: &Tag, out: &mut Vec<u8>) -> Option<Step> {
        if !self.channel.offers_starttls() {
            return self.invalid(Some(tag), out);
        }
        if !self.input.unread().is_empty() {
            return self.end(Ended::BytesBehindStartTls);
        }
        self.tagged(tag, "OK completed", out);
        self.state = State::StartTls;
        Some(Step::StartTls)
    }

    fn identify(&mut self, tag: Tag, end: usize, out: &mut Vec<u8>) -> Option<Step> {
        let parsed = Request::parse(&self.input.unread()[..end], Extent::Whole).id();
        self.next_command(end);
        let Ok(id) = parsed else {
            return self.invalid(Some(&tag), out);
        };
        self.id = id;
        out.extend_from_slice(self.id_line().as_bytes());
        self.tagged(&tag, "OK completed", out)
    }

    fn login(&mut self, tag: Tag, end: usize, out: &mut Vec<u8>) -> Option<Step> {
        if !self.channel.takes_passwords() {
            return self.tls_required(&tag, end, Mechanism::Login, out);
        }
        let parsed = Request::parse(&self.input.unread()[..end], Extent::Whole).login();
        self.next_command_wiping(end);
        match parsed {
            Ok((user, password)) => self.decide(
                tag,
                Mechanism::Login,
                Credentials::parse(Mechanism::Login, &user, password.expose()),
            ),
            Err(_) => self.invalid(Some(&tag), out),
        }
    }

    fn authenticate(&mut self, tag: Tag, end: usize, out: &mut Vec<u8>) -> Option<Step> {
        let parsed = Request::parse(&self.input.unread()[..end], Extent::Whole).authenticate();
        let Ok((name, initial)) = parsed else {
            self.next_command_wiping(end);
            return self.invalid(Some(&tag), out);
        };
        let Some(exchange) = Exchange::begin(name).filter(|exchange| self.offers(exchange)) else {
            self.next_command_wiping(end);
            return self.tagged(&tag, "NO [CANNOT] mechanism not supported", out);
        };
        if !self.channel.takes_passwords() {
            return self.tls_required(&tag, end, exchange.mechanism(), out);
        }
        let progress = match initial {
            Some(token) => exchange.initial(token),
            None => Progress::Prompt(exchange),
        };
        self.next_command_wiping(end);
        self.progress(tag, progress, out)
    }

    fn offers(&self, exchange: &Exchange) -> bool {
        match exchange.mechanism() {
            Mechanism::SaslPlain => self.settings.sasl_plain,
            Mechanism::SaslLogin => self.settings.sasl_login,
            Mechanism::Login | Mechanism::UserPass => false,
        }
    }

    fn sasl_line(&mut self, out: &mut Vec<u8>) -> Option<Step> {
        let (text, end) = match line::find_line(self.input.unread(), line::MAX_LINE) {
            Found::NeedInput => return Some(Step::NeedInput),
            Found::TooLong => return self.too_long(out),
            Found::Line { text, end } => (text, end),
        };
        let State::Sasl { tag, exchange } = std::mem::replace(&mut self.state, State::Command(Framer::default()))
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
            None => self.tagged(&tag, "BAD AUTHENTICATE aborted", out),
        }
    }

    fn progress(&mut self, tag: Tag, progress: Progress, out: &mut Vec<u8>) -> Option<Step> {
        match progress {
            Progress::Prompt(exchange) => {
                out.extend_from_slice(format!("+ {}\r\n", exchange.prompt()).as_bytes());
                self.state = State::Sasl { tag, exchange };
                None
            }
            Progress::Done(parsed) => {
                let mechanism = match &parsed {
                    Ok(Credentials { mechanism, .. }) | Err(Rejected { mechanism, .. }) => *mechanism,
                };
                self.decide(tag, mechanism, parsed)
            }
            Progress::Malformed => self.error(Some(&tag), "BAD invalid SASL response", out),
        }
    }

    fn decide(&mut self, tag: Tag, mechanism: Mechanism, parsed: Result<Credentials, Rejected>) -> Option<Step> {
        self.state = State::Decision { tag, mechanism };
        Some(parsed.into())
    }

    /// The sender of a literal waits. It is invited if its command is good so far and may be answered; otherwise
    /// it learns why not, and the literal is never sent.
    fn literal(&mut self, end: usize, out: &mut Vec<u8>) -> Option<Step> {
        let request = Request::parse(&self.input.unread()[..end], Extent::UpToLiteral);
        let tag = request.tag.clone();
        let fault = match (&tag, request.verb) {
            (Some(tag), Verb::Login) if !self.channel.takes_passwords() => {
                return self.tls_required(tag, end, Mechanism::Login, out);
            }
            (Some(_), Verb::Login) => request.login().err(),
            (Some(_), Verb::Id) => request.id().err(),
            _ => Some(Fault::Invalid),
        };
        if fault == Some(Fault::NeedLiteral) {
            out.extend_from_slice(b"+ \r\n");
            return None;
        }
        self.next_command_wiping(end);
        self.invalid(tag.as_ref(), out)
    }

    /// Not even one look at the password (RFC 9051 section 6.2.3; the code is RFC 5530's).
    fn tls_required(&mut self, tag: &Tag, end: usize, mechanism: Mechanism, out: &mut Vec<u8>) -> Option<Step> {
        self.next_command_wiping(end);
        // It counts as a bad command; what ends the dialogue comes with the next step.
        self.error(Some(tag), "NO [PRIVACYREQUIRED] cleartext logins disabled", out);
        Some(Step::TlsRequired(mechanism))
    }

    fn too_big(&mut self, end: usize, out: &mut Vec<u8>) -> Option<Step> {
        let tag = Request::parse(&self.input.unread()[..end], Extent::UpToLiteral).tag;
        self.next_command_wiping(end);
        match tag {
            Some(tag) => self.error(Some(&tag), "NO [TOOBIG] literal is too big", out),
            None => self.invalid(None, out),
        }
    }

    fn too_long(&mut self, out: &mut Vec<u8>) -> Option<Step> {
        let tag = match &self.state {
            State::Sasl { tag, .. } => Some(tag.clone()),
            _ => Request::parse(self.input.unread(), Extent::UpToLiteral).tag,
        };
        self.answer(tag.as_ref(), "BAD command is too long", out);
        out.extend_from_slice(FAREWELL);
        self.end(Ended::TooLong)
    }

    fn invalid(&mut self, tag: Option<&Tag>, out: &mut Vec<u8>) -> Option<Step> {
        self.error(tag, INVALID, out)
    }

    /// A bad command; the last one that is borne ends the dialogue.
    fn error(&mut self, tag: Option<&Tag>, text: &str, out: &mut Vec<u8>) -> Option<Step> {
        self.answer(tag, text, out);
        self.errors += 1;
        if self.errors < self.settings.max_errors {
            return None;
        }
        self.bye("too many invalid commands", out);
        self.end(Ended::TooManyErrors)
    }

    fn tagged(&mut self, tag: &Tag, text: &str, out: &mut Vec<u8>) -> Option<Step> {
        self.answer(Some(tag), text, out);
        None
    }

    fn answer(&self, tag: Option<&Tag>, text: &str, out: &mut Vec<u8>) {
        let tag = tag.map_or("*", Tag::as_str);
        out.extend_from_slice(format!("{tag} {text}\r\n").as_bytes());
    }

    /// Done with a command.
    fn next_command(&mut self, end: usize) {
        self.input.consume(end);
        self.state = State::Command(Framer::default());
    }

    /// Done with a command that may have held a password.
    fn next_command_wiping(&mut self, end: usize) {
        self.input.consume_secret(end);
        self.state = State::Command(Framer::default());
    }

    fn end(&mut self, ended: Ended) -> Option<Step> {
        self.input.clear();
        self.state = State::Ended(ended);
        None
    }

    /// MAIL §3.2. LOGINDISABLED: RFC 9051 section 6.2.3.
    fn capability_line(&self) -> String {
        let takes = self.channel.takes_passwords();
        let computed = [
            (takes && self.settings.sasl_plain, " AUTH=PLAIN"),
            (takes && self.settings.sasl_login, " AUTH=LOGIN"),
            (self.channel.offers_starttls(), " STARTTLS"),
            (!takes, " LOGINDISABLED"),
        ];
        let computed: String = computed.iter().filter(|(on, _)| *on).map(|(_, name)| *name).collect();
        format!("* CAPABILITY {}{computed}\r\n", self.settings.capabilities())
    }

    fn id_line(&self) -> String {
        let pairs = self
            .settings
            .id
            .iter()
            .map(|(key, value)| format!("{} {}", quoted(key), quoted(value)));
        match self.settings.id.is_empty() {
            true => "* ID NIL\r\n".to_owned(),
            false => format!("* ID ({})\r\n", pairs.collect::<Vec<_>>().join(" ")),
        }
    }
}

impl LoginMachine for Login {
    fn greet(&mut self, out: &mut Vec<u8>) {
        out.extend_from_slice(format!("* OK {}\r\n", self.settings.greeting).as_bytes());
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
                self.bye("too many commands", out);
                self.end(Ended::TooManyErrors);
            }
            let before = out.len();
            let step = self.advance(out);
            self.answered += out.len() - before;
            if let Some(step) = step {
                return step;
            }
        }
    }

    fn refuse(&mut self, failure: &LoginFailure, out: &mut Vec<u8>) {
        let State::Decision { tag, mechanism } = &self.state else {
            return;
        };
        self.answer(Some(tag), &failure.imap(*mechanism), out);
        self.state = State::Command(Framer::default());
        if self.failures.was_last(failure, self.settings.max_logins) {
            self.bye("too many failed logins", out);
            self.end(Ended::TooManyLogins);
        }
    }

    fn accept(self: Box<Self>, accepted: &Accepted, out: &mut Vec<u8>) -> Vec<u8> {
        if let State::Decision { tag, .. } = &self.state {
            out.extend_from_slice(&accepted.untagged);
            out.extend_from_slice(tag.as_str().as_bytes());
            out.push(b' ');
            out.extend_from_slice(&accepted.answer);
            out.extend_from_slice(b"\r\n");
            out.extend_from_slice(&accepted.rest);
        }
        self.input.unread().to_vec()
    }

    fn bye(&mut self, text: &str, out: &mut Vec<u8>) {
        out.extend_from_slice(format!("* BYE {}\r\n", one_line(text)).as_bytes());
    }

    fn id(&self) -> IdFields {
        self.id.clone()
    }

    fn phase(&self) -> &'static str {
        match &self.state {
            State::Command(framer) if framer.in_literal() => "literal",
            State::Command(_) if !self.heard => "greeting",
            State::Command(_) => "command",
            State::Sasl { .. } => "sasl",
            State::Decision { .. } => "login",
            State::StartTls => "starttls",
            State::Ended(_) => "ended",
        }
    }
}
