//! The POP3 machine that faces the client until it is logged in.
//!
//! It answers what needs no account, takes credentials, and writes the outcome. It knows no clock, no socket, and
//! not whether a password is right.

use std::sync::Arc;

use super::Settings;
use crate::credentials::Credentials;
use crate::failure::{LoginFailure, one_line};
use crate::line::{self, Found, Input};
use crate::machine::{Accepted, Channel, Ended, Failures, LoginMachine, Step};
use crate::mechanism::Mechanism;
use crate::sasl::{Exchange, Progress};

/// Octets of answers after which a client that never logs in is sent away; see the IMAP machine.
const MAX_ANSWERS: usize = 64 * 1024;

const INVALID: &str = "-ERR invalid command";
const TLS_REQUIRED: &str = "-ERR cleartext logins disabled";

/// POP3 towards a client that is not logged in.
#[derive(Debug)]
pub struct Login {
    settings: Arc<Settings>,
    channel: Channel,
    input: Input,
    state: State,
    heard: bool,
    errors: u32,
    failures: Failures,
    answered: usize,
}

#[derive(Debug)]
enum State {
    /// A command is awaited. The name of the last USER is known, if there was one.
    Command(Option<Vec<u8>>),
    /// A line of a SASL dialogue is awaited.
    Sasl(Exchange),
    /// A decision is awaited.
    Decision,
    /// TLS was promised; not one more octet may come in clear text.
    StartTls,
    /// It is over.
    Ended(Ended),
}

impl Login {
    /// A machine for a new connection, or for one that has just got TLS.
    pub fn new(settings: Arc<Settings>, channel: Channel) -> Login {
        Login {
            settings,
            channel,
            input: Input::default(),
            state: State::Command(None),
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
        match &self.state {
            State::Ended(ended) => return Some(Step::Close(*ended)),
            State::Decision => return Some(Step::NeedInput),
            State::StartTls if self.input.unread().is_empty() => return Some(Step::NeedInput),
            State::StartTls => return self.end(Ended::BytesBehindStartTls),
            State::Command(_) | State::Sasl(_) => {}
        }
        let (text, end) = match line::find_line(self.input.unread(), line::MAX_LINE) {
            Found::NeedInput => return Some(Step::NeedInput),
            Found::TooLong => return self.too_long(out),
            Found::Line { text, end } => (text, end),
        };
        match std::mem::replace(&mut self.state, State::Command(None)) {
            State::Sasl(exchange) => self.sasl_line(exchange, text, end, out),
            State::Command(user) => self.command(user, text, end, out),
            other => {
                self.state = other;
                None
            }
        }
    }

    /// ```text
    /// command = keyword [" " params] CRLF      ; RFC 1939 section 3, RFC 2449 section 4
    /// ```
    fn command(&mut self, user: Option<Vec<u8>>, text: usize, end: usize, out: &mut Vec<u8>) -> Option<Step> {
        let line = &self.input.unread()[..text];
        let (keyword, params) = match line.iter().position(|&byte| byte == b' ') {
            Some(blank) => (&line[..blank], Some(&line[blank + 1..])),
            None => (line, None),
        };
        let keyword = match line::is_clean(line) {
            true => keyword.to_ascii_uppercase(),
            false => Vec::new(),
        };
        // Quirk (scripts): trailing blanks behind commands without parameters.
        let words = without_blanks(params.unwrap_or_default());
        let state = State::Command(user);
        match (keyword.as_slice(), words.is_empty()) {
            (b"USER", false) => {
                let name = words.to_vec();
                self.next_command(end, state);
                self.user(name, out)
            }
            (b"PASS", _) => self.pass(state, text, end, out),
            (b"AUTH", true) => {
                self.next_command(end, state);
                self.reply(&self.mechanism_list(), out)
            }
            (b"AUTH", false) => self.auth(state, text, end, out),
            (b"CAPA", true) => {
                self.next_command(end, state);
                self.reply(&self.capability_list(), out)
            }
            (b"NOOP", true) => {
                self.next_command(end, state);
                self.reply("+OK", out)
            }
            (b"QUIT", true) => {
                self.reply("+OK", out);
                self.end(Ended::Logout)
            }
            (b"STLS", true) => {
                self.next_command(end, state);
                self.start_tls(out)
            }
            _ => {
                self.next_command(end, state);
                self.error(INVALID, out)
            }
        }
    }

    /// Any name is taken here, even one that cannot be: an answer that differs would tell something. A second USER
    /// replaces the first.
    fn user(&mut self, name: Vec<u8>, out: &mut Vec<u8>) -> Option<Step> {
        if !self.channel.takes_passwords() {
            return self.tls_required(Mechanism::UserPass, out);
        }
        self.state = State::Command(Some(name));
        self.reply("+OK", out)
    }

    /// The password is the rest of the line, blanks included (RFC 1939 section 7). An empty one is refused here:
    /// some directories take a bind without password for a success.
    fn pass(&mut self, state: State, text: usize, end: usize, out: &mut Vec<u8>) -> Option<Step> {
        if !self.channel.takes_passwords() {
            self.next_command_wiping(end, state);
            return self.tls_required(Mechanism::UserPass, out);
        }
        let State::Command(Some(user)) = state else {
            self.next_command_wiping(end, state);
            return self.error(INVALID, out);
        };
        let password = self.input.unread()[..text].get("PASS ".len()..).unwrap_or_default();
        let parsed = match password {
            b"" => Credentials::reject(Mechanism::UserPass, &user),
            _ => Credentials::parse(Mechanism::UserPass, &user, password),
        };
        self.next_command_wiping(end, State::Decision);
        Some(parsed.into())
    }

    /// ```text
    /// auth = "AUTH" SP mechanism [SP initial-response]       ; RFC 5034 section 4
    /// ```
    fn auth(&mut self, state: State, text: usize, end: usize, out: &mut Vec<u8>) -> Option<Step> {
        let words = &self.input.unread()["AUTH ".len()..text];
        let mut words = words.split(|&byte| byte == b' ').filter(|word| !word.is_empty());
        let (name, initial, surplus) = (words.next().unwrap_or_default(), words.next(), words.next());
        if surplus.is_some() {
            self.next_command_wiping(end, state);
            return self.error(INVALID, out);
        }
        let Some(exchange) = Exchange::begin(name).filter(|exchange| self.offers(exchange)) else {
            self.next_command_wiping(end, state);
            return self.reply("-ERR mechanism not supported", out);
        };
        if !self.channel.takes_passwords() {
            let mechanism = exchange.mechanism();
            self.next_command_wiping(end, state);
            return self.tls_required(mechanism, out);
        }
        let progress = match initial {
            Some(token) => exchange.initial(token),
            None => Progress::Prompt(exchange),
        };
        self.next_command_wiping(end, state);
        self.progress(progress, out)
    }

    fn offers(&self, exchange: &Exchange) -> bool {
        match exchange.mechanism() {
            Mechanism::SaslPlain => self.settings.sasl_plain,
            Mechanism::SaslLogin => self.settings.sasl_login,
            Mechanism::Login | Mechanism::UserPass => false,
        }
    }

    fn sasl_line(&mut self, exchange: Exchange, text: usize, end: usize, out: &mut Vec<u8>) -> Option<Step> {
        let progress = match &self.input.unread()[..text] {
            b"*" => None,
            response => Some(exchange.response(response)),
        };
        self.next_command_wiping(end, State::Command(None));
        match progress {
            Some(progress) => self.progress(progress, out),
            None => self.reply("-ERR authentication aborted", out),
        }
    }

    fn progress(&mut self, progress: Progress, out: &mut Vec<u8>) -> Option<Step> {
        match progress {
            Progress::Prompt(exchange) => {
                self.reply(&format!("+ {}", exchange.prompt()), out);
                self.state = State::Sasl(exchange);
                None
            }
            Progress::Done(parsed) => {
                self.state = State::Decision;
                Some(parsed.into())
            }
            Progress::Malformed => self.error("-ERR invalid SASL response", out),
        }
    }

    /// RFC 2595 section 4; octets behind it: see the IMAP machine.
    fn start_tls(&mut self, out: &mut Vec<u8>) -> Option<Step> {
        if !self.channel.offers_starttls() {
            return self.error(INVALID, out);
        }
        if !self.input.unread().is_empty() {
            return self.end(Ended::BytesBehindStartTls);
        }
        self.reply("+OK", out);
        self.state = State::StartTls;
        Some(Step::StartTls)
    }

    fn too_long(&mut self, out: &mut Vec<u8>) -> Option<Step> {
        self.reply("-ERR line is too long", out);
        self.end(Ended::TooLong)
    }

    /// No password is taken here. It counts as a bad command; what ends the dialogue comes with the next step.
    fn tls_required(&mut self, mechanism: Mechanism, out: &mut Vec<u8>) -> Option<Step> {
        self.error(TLS_REQUIRED, out);
        Some(Step::TlsRequired(mechanism))
    }

    /// A bad command; the last one that is borne ends the dialogue.
    fn error(&mut self, text: &str, out: &mut Vec<u8>) -> Option<Step> {
        self.reply(text, out);
        self.errors += 1;
        if self.errors < self.settings.max_errors {
            None
        } else {
            self.end(Ended::TooManyErrors)
        }
    }

    fn reply(&self, text: &str, out: &mut Vec<u8>) -> Option<Step> {
        out.extend_from_slice(text.as_bytes());
        out.extend_from_slice(b"\r\n");
        None
    }

    /// Done with a line.
    fn next_command(&mut self, end: usize, state: State) {
        self.input.consume(end);
        self.state = state;
    }

    /// Done with a line that may have held a password.
    fn next_command_wiping(&mut self, end: usize, state: State) {
        self.input.consume_secret(end);
        self.state = state;
    }

    fn end(&mut self, ended: Ended) -> Option<Step> {
        self.input.clear();
        self.state = State::Ended(ended);
        None
    }

    fn mechanisms(&self) -> Vec<&'static str> {
        let takes = self.channel.takes_passwords();
        let offered = [(self.settings.sasl_plain, "PLAIN"), (self.settings.sasl_login, "LOGIN")];
        offered
            .iter()
            .filter(|(on, _)| *on && takes)
            .map(|(_, name)| *name)
            .collect()
    }

    /// RFC 5034 section 4, after RFC 1734.
    fn mechanism_list(&self) -> String {
        let lines: String = self.mechanisms().iter().map(|name| format!("{name}\r\n")).collect();
        format!("+OK Mechanism list follows\r\n{lines}.")
    }

    /// MAIL §4. RFC 2595 section 4: no USER where USER is refused. RFC 2449 section 5: what is listed can be used; XOIP
    /// is for proxies in front of a mailbox server, and never taken here.
    fn capability_list(&self) -> String {
        let takes = self.channel.takes_passwords();
        let configured = self
            .settings
            .capabilities
            .iter()
            .filter(|name| takes || !name.eq_ignore_ascii_case("USER"))
            .filter(|name| !name.eq_ignore_ascii_case("XOIP"));
        let mut list = String::from("+OK Capability list follows\r\n");
        list.extend(configured.map(|name| format!("{name}\r\n")));
        let mechanisms = self.mechanisms();
        if !mechanisms.is_empty() {
            list += &format!("SASL {}\r\n", mechanisms.join(" "));
        }
        if self.channel.offers_starttls() {
            list += "STLS\r\n";
        }
        list + "."
    }
}

fn without_blanks(mut text: &[u8]) -> &[u8] {
    while let [b' ', rest @ ..] | [rest @ .., b' '] = text {
        text = rest;
    }
    text
}

impl LoginMachine for Login {
    fn greet(&mut self, out: &mut Vec<u8>) {
        out.extend_from_slice(format!("+OK {}\r\n", self.settings.greeting).as_bytes());
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
        if !matches!(self.state, State::Decision) {
            return;
        }
        self.reply(&failure.pop3(), out);
        self.state = State::Command(None);
        if self.failures.was_last(failure, self.settings.max_logins) {
            self.end(Ended::TooManyLogins);
        }
    }

    fn accept(self: Box<Self>, accepted: &Accepted, out: &mut Vec<u8>) -> Vec<u8> {
        out.extend_from_slice(&accepted.untagged);
        out.extend_from_slice(&accepted.answer);
        out.extend_from_slice(b"\r\n");
        out.extend_from_slice(&accepted.rest);
        self.input.unread().to_vec()
    }

    fn bye(&mut self, text: &str, out: &mut Vec<u8>) {
        out.extend_from_slice(format!("-ERR {}\r\n", one_line(text)).as_bytes());
    }

    fn phase(&self) -> &'static str {
        match self.state {
            State::Command(_) if !self.heard => "greeting",
            State::Command(_) => "command",
            State::Sasl(_) => "sasl",
            State::Decision => "login",
            State::StartTls => "starttls",
            State::Ended(_) => "ended",
        }
    }
}
