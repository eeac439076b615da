//! The IMAP machine that faces the mailbox server until a user is logged in there.
//!
//! It introduces the client, says its credentials, and sorts the answers. It believes nothing that is not bounded,
//! and it writes no value that could end a line or a string.

use std::net::IpAddr;

use super::capabilities::list_of;
use super::quote;
use super::response_code::{code, has_code};
use crate::known_servers::Said;
use crate::line;
use crate::machine::{Accepted, Introduction, UpstreamStep};
use crate::mechanism::{Mechanism, Mechanisms};
use crate::referral::Referral;
use crate::server_refusal::{
    NO_STARTTLS, NOT_UNDERSTOOD, Refusal, TLS_WANTED, says_bad_credentials, says_failures, says_limit,
    says_own_failure, wants_tls,
};
use crate::server_rules::Announcement;
use crate::upstream::{Challenges, UpstreamDialect, UpstreamDriver, broken, printable};

/// Octets of untagged lines that are kept for the client.
const MAX_UNTAGGED: usize = 64 * 1024;

/// Octets of a LITERAL- (RFC 7888 section 5).
const MAX_SMALL_LITERAL: usize = 4096;

/// Octets of what a client says of itself inside X-VIA, each. Together with our own part they stay below the 1024
/// of an ID value (RFC 2971 section 3.3).
const MAX_VIA: usize = 256;

/// Room for nearly every ID command.
const USUAL_ID: usize = 256;

const TLS_TAG: &str = "P0";
const ID_TAG: &str = "P1";
const LOGIN_TAG: &str = "P2";
const CAPABILITY_TAG: &str = "P3";

/// IMAP towards a mailbox server.
pub type ImapUpstream = UpstreamDriver<ImapDialogue>;

/// An IMAP dialogue with a mailbox server.
#[derive(Debug)]
pub struct ImapDialogue {
    intro: Introduction,
    state: State,
    /// `None` until the server has said what it can.
    can: Option<Capabilities>,
    untagged: Vec<u8>,
    /// The OK of the login, where it came before the answer to ID.
    answer: Vec<u8>,
    challenges: Challenges,
    /// Octets to come of a literal in an untagged line, which is for nobody.
    literal: Option<usize>,
    heard: Said,
}

/// Named by what is awaited.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    Banner,
    /// The answer to STARTTLS, and nothing else.
    StartTls,
    /// The answer to ID; the login follows.
    Id,
    /// The answer to ID; the login was sent with it.
    IdThenAnswer,
    /// The answer to ID; the login was sent with it, and has been accepted.
    IdBehindAnswer,
    /// The answer to CAPABILITY; the login follows.
    Capability,
    /// The invitation for the user name.
    Name,
    /// The invitation for the password.
    Password,
    /// The invitation for the message of PLAIN.
    Message,
    Answer,
}

/// What a server says of itself: how it takes a login, and what saves round trips.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
struct Capabilities {
    literal_plus: bool,
    literal_minus: bool,
    sasl_ir: bool,
    mechanisms: Mechanisms,
    login_disabled: bool,
    starttls: bool,
}

impl ImapUpstream {
    /// A machine for a new connection.
    pub fn new(intro: Introduction) -> Self {
        Self::speaking(ImapDialogue {
            intro,
            state: State::Banner,
            can: None,
            untagged: Vec::new(),
            answer: Vec::new(),
            challenges: Challenges::default(),
            literal: None,
            heard: Said::default(),
        })
    }
}

impl UpstreamDialect for ImapDialogue {
    fn take(&mut self, line: &[u8], out: &mut Vec<u8>) -> Option<UpstreamStep> {
        if let Some(left) = self.literal.take() {
            return self.within_literal(line, left);
        }
        match Line::parse(line) {
            Line::Tagged(TLS_TAG, text) if self.state == State::StartTls && Condition::parse(text) == Condition::Ok => {
                Some(UpstreamStep::StartTls)
            }
            _ if self.state == State::StartTls => Some(broken(NO_STARTTLS)),
            Line::Untagged(text) if Condition::parse(text) == Condition::Other => match line::literal_header(line) {
                Some(literal) => self.await_literal(literal.octets),
                None => self.untagged(line, text, out),
            },
            Line::Untagged(text) => self.untagged(line, text, out),
            Line::Invitation(text) => self.invited(text, out),
            Line::Tagged(ID_TAG, text) => {
                self.learn(text);
                self.id_answered(out)
            }
            Line::Tagged(CAPABILITY_TAG, text) => {
                self.learn(text);
                self.capability_answered(out)
            }
            Line::Tagged(TLS_TAG, _) => Some(broken("an answer before the question")),
            Line::Tagged(_, text) => self.answered(text),
            Line::Foreign => Some(broken("a tag that is not ours")),
        }
    }

    fn secured(&mut self, out: &mut Vec<u8>) -> Option<UpstreamStep> {
        self.can = None;
        self.untagged.clear();
        self.introduce(out)
    }

    fn heard(&self) -> &Said {
        &self.heard
    }

    fn is_overlapping(&self) -> bool {
        self.heard.hurried && self.state == State::IdThenAnswer
    }

    fn phase(&self) -> &'static str {
        match self.state {
            State::Banner => "banner",
            State::StartTls => "starttls",
            State::Id | State::Capability => "id",
            State::IdThenAnswer
            | State::IdBehindAnswer
            | State::Name
            | State::Password
            | State::Message
            | State::Answer => "login",
        }
    }
}

impl ImapDialogue {
    fn untagged(&mut self, line: &[u8], text: &[u8], out: &mut Vec<u8>) -> Option<UpstreamStep> {
        let status = Condition::parse(text);
        match (self.state, status) {
            (_, Condition::Bye) => Some(self.farewell(text)),
            (State::Banner, Condition::Ok) => self.greeted(text, out),
            (State::Banner, Condition::Preauth) => Some(broken("PREAUTH: it would be somebody else's session")),
            (State::Banner, _) => Some(broken("no greeting")),
            // Quirk (Exchange and others, Zimbra bug 68678): an untagged BAD as the whole answer to ID.
            (State::Id | State::IdThenAnswer | State::IdBehindAnswer, Condition::Bad) => self.id_answered(out),
            (State::Capability, Condition::Bad) => self.capability_answered(out),
            (State::Id | State::IdThenAnswer | State::Capability, _) => self.chatter(line, text),
            (State::IdBehindAnswer, _) if word(text).eq_ignore_ascii_case(b"ID") => None,
            _ => self.keep(line),
        }
    }

    /// An answer to ID may have its values in literals (RFC 2971 section 3.2). The line with them is left out.
    fn await_literal(&mut self, len: usize) -> Option<UpstreamStep> {
        if len > MAX_UNTAGGED {
            return Some(broken("too many untagged lines"));
        }
        self.literal = Some(len);
        None
    }

    /// Lines of which `left` octets belong to a literal, and the rest to the line that it stands in.
    fn within_literal(&mut self, line: &[u8], left: usize) -> Option<UpstreamStep> {
        match line.get(left..) {
            Some(rest) => line::literal_header(rest).and_then(|next| self.await_literal(next.octets)),
            None => {
                self.literal = Some(left.saturating_sub(line.len() + b"\r\n".len()));
                None
            }
        }
    }

    /// A list in the code of an OK before the login (RFC 9051 section 7.1) counts like any other.
    fn learn(&mut self, text: &[u8]) {
        if let Some(can) = Capabilities::of_code(text) {
            self.can = Some(can);
            self.heard.list = code(text).and_then(|code| Some(code.split_once(' ')?.1.to_owned()));
        }
    }

    /// An alert is for the user (RFC 9051 section 7.1), a list of capabilities for us; other chatter before the login
    /// is for nobody.
    fn chatter(&mut self, line: &[u8], text: &[u8]) -> Option<UpstreamStep> {
        self.learn(text);
        if word(text).eq_ignore_ascii_case(b"CAPABILITY") {
            let list = String::from_utf8_lossy(text);
            self.can = Some(Capabilities::parse(&list));
            self.heard.list = Some(list.into_owned());
        }
        match has_code(text, "ALERT") {
            true => self.keep(line),
            false => None,
        }
    }

    /// A server that says BYE cannot say at the moment, or takes nobody at all and names another; behind a password it
    /// may have had enough of wrong ones.
    fn farewell(&self, text: &[u8]) -> UpstreamStep {
        let shown = printable(text);
        let words = shown.to_ascii_lowercase();
        let is_limit = says_limit(&words) || has_code(text, "LIMIT");
        let is_behind = matches!(self.state, State::Answer | State::IdThenAnswer | State::IdBehindAnswer);
        // Whoever sits in between could have said it.
        let referral = referred(text).filter(|_| !self.intro.starttls || self.state != State::Banner);
        UpstreamStep::Refused(match referral {
            Some(elsewhere) => elsewhere,
            None if is_behind && says_wrong(text, &words) => Refusal::BadCredentials,
            None if is_behind && is_limit => Refusal::Limit(shown),
            None if is_behind || is_limit => Refusal::Ended(shown),
            None => Refusal::Temporary(shown),
        })
    }

    fn keep(&mut self, line: &[u8]) -> Option<UpstreamStep> {
        if self.untagged.len() + line.len() > MAX_UNTAGGED {
            return Some(broken("too many untagged lines"));
        }
        self.untagged.extend_from_slice(line);
        self.untagged.extend_from_slice(b"\r\n");
        None
    }

    /// MAIL §3.5 no. 2 and 4: who the client is comes first. Where the server takes literals and initial responses
    /// unasked, the login goes along in the same packet.
    fn greeted(&mut self, text: &[u8], out: &mut Vec<u8>) -> Option<UpstreamStep> {
        if let Err(unsaid) = self.intro.can_be_said() {
            return Some(unsaid);
        }
        self.can = Capabilities::of_code(text);
        self.heard.greeting = printable(text);
        if self.intro.starttls {
            if self.can.is_some_and(|can| !can.starttls) {
                return Some(broken(NO_STARTTLS));
            }
            out.extend_from_slice(format!("{TLS_TAG} STARTTLS\r\n").as_bytes());
            self.state = State::StartTls;
            return None;
        }
        self.introduce(out)
    }

    fn introduce(&mut self, out: &mut Vec<u8>) -> Option<UpstreamStep> {
        if self.can.is_none() && !self.intro.slowly {
            let known = self
                .intro
                .known_for(&self.heard.greeting)
                .filter(|list| !list.is_empty());
            self.can = known.map(Capabilities::parse);
            // A list by which the login cannot be said at once is of no use, and may be another one by now.
            self.heard.hurried = self.can.is_some() && self.forbids().is_none() && self.can_at_once();
            self.can = self.can.filter(|_| self.heard.hurried);
        }
        let Some(id) = self.id_command() else {
            return self.begin(out);
        };
        out.extend_from_slice(id.as_bytes());
        self.state = State::Id;
        // A list that forbids the login may be another one behind ID.
        if self.can.is_some() && self.forbids().is_none() && self.can_at_once() {
            self.log_in(out);
            self.state = State::IdThenAnswer;
        }
        None
    }

    /// The login, or first the question for which the greeting has no answer: without a list nobody knows whether
    /// the server forbids LOGIN, and the answer saves the round trips of literals.
    fn begin(&mut self, out: &mut Vec<u8>) -> Option<UpstreamStep> {
        if self.can.is_some() {
            return self.log_in(out);
        }
        out.extend_from_slice(format!("{CAPABILITY_TAG} CAPABILITY\r\n").as_bytes());
        self.state = State::Capability;
        None
    }

    fn capability_answered(&mut self, out: &mut Vec<u8>) -> Option<UpstreamStep> {
        match self.state {
            State::Capability => {
                self.can.get_or_insert_default();
                self.log_in(out)
            }
            // The tagged answer that comes behind an untagged BAD.
            _ if self.can.is_some() => None,
            _ => Some(broken("an answer before the question")),
        }
    }

    /// AUTHENTICATE may be said to a server only where its list has the mechanism (RFC 9051 section 6.2.2), and LOGIN
    /// only where the list does not forbid it (section 6.2.3), whichever of the two our client used. A long password
    /// goes the way that has room for it. `None`: LOGIN.
    fn mechanism(&self) -> Option<Mechanism> {
        let can = self.can();
        let by = self.intro.mechanism(can.mechanisms);
        let must = self.intro.needs_sasl();
        by.filter(|_| must || can.login_disabled || self.intro.credentials.prefer_sasl())
    }

    /// Whether the server has been asked for a mechanism that it does not list, and nothing more.
    fn is_unlisted(&self) -> bool {
        self.state == State::Message && self.mechanism() == Some(Mechanism::XZimbra)
    }

    /// Why no password may be said to this server, by its own list.
    fn forbids(&self) -> Option<&'static str> {
        let can = self.can();
        match self.intro.mechanism(can.mechanisms) {
            Some(_) => None,
            None => self
                .intro
                .lacks(can.mechanisms)
                .or(can.login_disabled.then_some(TLS_WANTED)),
        }
    }

    fn can(&self) -> Capabilities {
        self.can.unwrap_or_default()
    }

    /// Any answer to ID will do: it is an offer, and the login decides.
    fn id_answered(&mut self, out: &mut Vec<u8>) -> Option<UpstreamStep> {
        match self.state {
            State::Id => self.begin(out),
            State::IdThenAnswer => {
                self.state = State::Answer;
                None
            }
            State::IdBehindAnswer => Some(self.accepted()),
            State::Banner => Some(broken("no greeting")),
            // The tagged answer that comes behind an untagged BAD.
            _ => None,
        }
    }

    fn can_at_once(&self) -> bool {
        let can = self.can();
        match self.mechanism() {
            // It is not listed: who does not know it must not hear the token.
            Some(Mechanism::XZimbra) => false,
            Some(_) => can.sasl_ir,
            None => [self.name().as_bytes(), self.intro.password()]
                .iter()
                .all(|value| can.literal_plus || (can.literal_minus && value.len() <= MAX_SMALL_LITERAL)),
        }
    }

    fn log_in(&mut self, out: &mut Vec<u8>) -> Option<UpstreamStep> {
        if let Some(why) = self.forbids() {
            return Some(broken(why));
        }
        let mechanism = self.mechanism().and_then(Mechanism::sasl_name);
        match (mechanism, self.can_at_once()) {
            (Some(name), true) => {
                out.extend_from_slice(format!("{LOGIN_TAG} AUTHENTICATE {name} ").as_bytes());
                self.say_message(out);
            }
            (Some(name), false) => {
                out.extend_from_slice(format!("{LOGIN_TAG} AUTHENTICATE {name}\r\n").as_bytes());
                self.state = State::Message;
            }
            (None, true) => {
                let name = self.name();
                out.extend_from_slice(format!("{LOGIN_TAG} LOGIN {{{}+}}\r\n{name}", name.len()).as_bytes());
                out.extend_from_slice(format!(" {{{}+}}\r\n", self.intro.password().len()).as_bytes());
                self.say_password(out);
            }
            (None, false) => {
                out.extend_from_slice(format!("{LOGIN_TAG} LOGIN {{{}}}\r\n", self.name().len()).as_bytes());
                self.state = State::Name;
            }
        }
        None
    }

    fn invited(&mut self, text: &[u8], out: &mut Vec<u8>) -> Option<UpstreamStep> {
        match self.state {
            State::Name => {
                let password = self.intro.password().len();
                out.extend_from_slice(format!("{} {{{password}}}\r\n", self.name()).as_bytes());
                self.state = State::Password;
            }
            State::Password => self.say_password(out),
            State::Message => self.say_message(out),
            State::Answer | State::IdThenAnswer => {
                let has = self.can().mechanisms;
                return self.challenges.take(&self.intro, has, text, out);
            }
            _ => return Some(broken("an invitation that nobody waits for")),
        }
        None
    }

    fn say_password(&mut self, out: &mut Vec<u8>) {
        out.extend_from_slice(self.intro.password());
        out.extend_from_slice(b"\r\n");
        self.state = State::Answer;
    }

    /// MAIL §3.5 no. 5.
    fn say_message(&mut self, out: &mut Vec<u8>) {
        let message = self.intro.message(self.can().mechanisms, &self.name());
        out.extend_from_slice(message.expose());
        out.extend_from_slice(b"\r\n");
        self.state = State::Answer;
    }

    /// The account's name with the suffix that the client typed behind it.
    fn name(&self) -> String {
        format!(
            "{}{}",
            self.intro.login,
            self.intro.credentials.suffix.unwrap_or_default()
        )
    }

    fn answered(&mut self, text: &[u8]) -> Option<UpstreamStep> {
        let sent = !matches!(
            self.state,
            State::Banner | State::StartTls | State::Id | State::Capability | State::IdBehindAnswer
        );
        Some(match Condition::parse(text) {
            _ if !sent => broken("an answer before the question"),
            Condition::Ok if self.state == State::Answer => {
                self.answer = text.to_vec();
                self.accepted()
            }
            // The answer to ID is still to come (RFC 9051 section 5.5), and is none of the client's.
            Condition::Ok if self.state == State::IdThenAnswer => {
                self.answer = text.to_vec();
                self.state = State::IdBehindAnswer;
                return None;
            }
            Condition::Ok => broken("OK before the password was said"),
            Condition::No if self.is_unlisted() => UpstreamStep::Refused(refusal(text).of_unlisted()),
            Condition::No => UpstreamStep::Refused(refusal(text)),
            _ if self.is_unlisted() => UpstreamStep::Refused(Refusal::BadCredentials),
            _ => broken(NOT_UNDERSTOOD),
        })
    }

    fn accepted(&mut self) -> UpstreamStep {
        UpstreamStep::Accepted(Accepted {
            capabilities: list_of(&self.answer, &self.untagged).map(str::to_owned),
            untagged: passable(&std::mem::take(&mut self.untagged)),
            answer: passable(&std::mem::take(&mut self.answer)),
            rest: Vec::new(),
        })
    }

    /// Who the client is, in the words that the server knows; `None`: it is not told.
    ///
    /// ```text
    /// ID ("X-ORIGINATING-IP" "<client>" "name" "<name>" "version" "<version>" "X-VIA" "[<client id>,]<us>")  ; MAIL §3.5
    /// ID ("x-session-id" "<id>" "x-originating-ip" "<client>" …)  ; Dovecot, "Forwarding parameters in IMAP/POP3 proxying"
    /// ```
    fn id_command(&self) -> Option<String> {
        let Introduction {
            client, local, session, ..
        } = &self.intro;
        let (name, version) = &self.intro.product;
        let fields = match self.intro.announcement {
            Announcement::None => return None,
            Announcement::Zimbra => vec![
                ("X-ORIGINATING-IP", plain(client.ip())),
                ("name", name.clone()),
                ("version", version.clone()),
                ("X-VIA", self.via()),
            ],
            Announcement::Dovecot => vec![
                ("x-session-id", session.clone()),
                ("x-session-ext-id", session.clone()),
                ("x-originating-ip", plain(client.ip())),
                ("x-originating-port", client.port().to_string()),
                ("x-connected-ip", plain(local.ip())),
                ("x-connected-port", local.port().to_string()),
                ("x-proxy-ttl", self.intro.ttl.to_string()),
            ],
        };
        let mut command = String::with_capacity(USUAL_ID);
        command.extend([ID_TAG, " ID"]);
        let mut before = " (";
        for (key, value) in fields {
            command.extend([before, "\"", key, "\" "]);
            quote(&value, &mut command);
            before = " ";
        }
        command.push_str(")\r\n");
        Some(command)
    }

    fn via(&self) -> String {
        let us = format!("{}(portico/{})", plain(self.intro.local.ip()), self.intro.product.1);
        let id = &self.intro.client_id;
        match (&id.name, &id.version) {
            (None, _) => us,
            (Some(name), None) => format!("{},{us}", via_part(name)),
            (Some(name), Some(version)) => format!("{}/{},{us}", via_part(name), via_part(version)),
        }
    }
}

/// What a client says of itself. A comma would be one more stop on the way that it claims to have come.
fn via_part(value: &str) -> String {
    value
        .chars()
        .filter(|char| matches!(char, ' '..='~') && *char != ',')
        .take(MAX_VIA)
        .collect()
}

/// IPv4 addresses look like IPv4 addresses (MAIL §11 no. 2), whatever kind of socket they came through.
fn plain(address: IpAddr) -> String {
    address.to_canonical().to_string()
}

/// A line from a server.
enum Line<'a> {
    Untagged(&'a [u8]),
    Invitation(&'a [u8]),
    Tagged(&'static str, &'a [u8]),
    Foreign,
}

impl Line<'_> {
    fn parse(line: &[u8]) -> Line<'_> {
        match line {
            [b'*', b' ', text @ ..] => Line::Untagged(text),
            [b'+'] => Line::Invitation(b""),
            [b'+', b' ', text @ ..] => Line::Invitation(text),
            [b'P', b'0', b' ', text @ ..] => Line::Tagged(TLS_TAG, text),
            [b'P', b'1', b' ', text @ ..] => Line::Tagged(ID_TAG, text),
            [b'P', b'2', b' ', text @ ..] => Line::Tagged(LOGIN_TAG, text),
            [b'P', b'3', b' ', text @ ..] => Line::Tagged(CAPABILITY_TAG, text),
            _ => Line::Foreign,
        }
    }
}

/// The word that says how something went.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Condition {
    Ok,
    No,
    Bad,
    Bye,
    Preauth,
    Other,
}

impl Condition {
    fn parse(text: &[u8]) -> Self {
        match word(text).to_ascii_uppercase().as_slice() {
            b"OK" => Self::Ok,
            b"NO" => Self::No,
            b"BAD" => Self::Bad,
            b"BYE" => Self::Bye,
            b"PREAUTH" => Self::Preauth,
            _ => Self::Other,
        }
    }
}

impl Capabilities {
    /// ```text
    /// resp-text = ["[" resp-text-code "]" SP] text; resp-text-code =/ "CAPABILITY" *(SP capability)  ; RFC 9051 section 9
    /// ```
    fn of_code(status: &[u8]) -> Option<Self> {
        has_code(status, "CAPABILITY").then(|| Self::parse(code(status).unwrap_or_default()))
    }

    fn parse(list: &str) -> Self {
        let mut can = Self::default();
        for word in list.split_ascii_whitespace() {
            match word.to_ascii_uppercase().as_str() {
                name if name.starts_with("AUTH=") => {
                    can.mechanisms.insert_named(&name.as_bytes()["AUTH=".len()..]);
                }
                "LITERAL+" => can.literal_plus = true,
                "LITERAL-" => can.literal_minus = true,
                "SASL-IR" => can.sasl_ir = true,
                "LOGINDISABLED" => can.login_disabled = true,
                "STARTTLS" => can.starttls = true,
                _ => {}
            }
        }
        can
    }
}

/// What a server says it can and nobody can do through us: a client that begins anew there would be somebody else's
/// (RFC 8437).
const NOT_PASSED: &str = "UNAUTHENTICATE";

/// The lines with lists of capabilities without what cannot be done through us; all others as they are.
fn passable(lines: &[u8]) -> Vec<u8> {
    let line = |line: &[u8]| match std::str::from_utf8(line) {
        Ok(text) if lists_capabilities(text) => text
            .replace(&format!(" {NOT_PASSED} "), " ")
            .replace(&format!(" {NOT_PASSED}]"), "]")
            .replace(&format!(" {NOT_PASSED}\r\n"), "\r\n")
            .into_bytes(),
        _ => line.to_vec(),
    };
    lines.split_inclusive(|&byte| byte == b'\n').flat_map(line).collect()
}

fn lists_capabilities(line: &str) -> bool {
    line.starts_with("* CAPABILITY ") || has_code(line.strip_prefix("* ").unwrap_or(line).as_bytes(), "CAPABILITY")
}

/// What a line begins with.
fn word(text: &[u8]) -> &[u8] {
    text.split(|&byte| byte == b' ').next().unwrap_or_default()
}

/// Whether a BYE behind a password says that it was wrong. The words are in lower case.
fn says_wrong(text: &[u8], words: &str) -> bool {
    let codes = ["AUTHENTICATIONFAILED", "AUTHORIZATIONFAILED"];
    let has_enough = words.contains("too many") && says_failures(words);
    has_enough || says_bad_credentials(words) || codes.iter().any(|code| has_code(text, code))
}

/// What a server means by NO. Codes: RFC 5530; texts and REFERRAL: MAIL §3.6.
fn refusal(text: &[u8]) -> Refusal {
    let shown = printable(text);
    let words = shown.to_ascii_lowercase();
    if words.contains("(wrong host)") || has_code(text, "REFERRAL") {
        return referred(text).unwrap_or(Refusal::WrongHost);
    }
    let code = code(text)
        .and_then(|code| code.split(' ').next())
        .unwrap_or_default()
        .to_ascii_uppercase();
    match code.as_str() {
        "PRIVACYREQUIRED" => Refusal::Broken(TLS_WANTED),
        _ if wants_tls(&words) => Refusal::Broken(TLS_WANTED),
        "AUTHENTICATIONFAILED" | "AUTHORIZATIONFAILED" => Refusal::BadCredentials,
        "LIMIT" if !says_failures(&words) => Refusal::Limit(shown),
        _ if says_limit(&words) => Refusal::Limit(shown),
        "UNAVAILABLE" | "INUSE" | "SERVERBUG" => Refusal::Temporary(shown),
        "" if says_own_failure(&words) => Refusal::Temporary(shown),
        "" | "CAPABILITY" if says_bad_credentials(&words) => Refusal::BadCredentials,
        // Gmail. What others say behind this code is for the user.
        "ALERT" if words.contains("invalid credentials") => Refusal::BadCredentials,
        _ => Refusal::Text(shown),
    }
}

/// Where a server says that the account is (RFC 2221 section 4).
fn referred(text: &[u8]) -> Option<Refusal> {
    Referral::of_code(code(text)?).map(Refusal::Referred)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(text: &str, expected: Refusal) {
        assert_eq!(refusal(text.as_bytes()), expected, "{text:?}");
    }

    #[test]
    fn refusals() {
        let shown = |text: &str| text.to_owned();
        for text in [
            "NO LOGIN failed",
            "no",
            "NO [AUTHENTICATIONFAILED] x",
            "NO [authorizationfailed] x",
            "NO [ALERT] Invalid credentials (Failure)",
            "NO [CAPABILITY IMAP4rev1 AUTH=PLAIN] Login failed.",
        ] {
            check(text, Refusal::BadCredentials);
        }
        for text in ["NO LOGIN failed (wrong host)", "NO [REFERRAL rubbish] LOGIN failed"] {
            check(text, Refusal::WrongHost);
        }
        let referral = Referral {
            user: Some("u".to_owned()),
            host: "h".to_owned(),
        };
        check("NO [REFERRAL imap://u@h/] LOGIN failed", Refusal::Referred(referral));
        for text in [
            "NO [LIMIT] x",
            "NO [UNAVAILABLE] Maximum number of connections from user+IP exceeded (mail_max_userip_connections=10)",
            "NO [ALERT] Too many simultaneous connections. (Failure)",
            "NO too many sessions",
        ] {
            check(text, Refusal::Limit(shown(text)));
        }
        for text in [
            "NO [PRIVACYREQUIRED] x",
            "NO cleartext logins disabled",
            "NO Plaintext authentication disabled.",
        ] {
            check(text, Refusal::Broken(TLS_WANTED));
        }
        for text in [
            "NO [UNAVAILABLE] x",
            "NO [INUSE] x",
            "NO [SERVERBUG] LOGIN failed",
            "NO Temporary authentication failure.",
            "NO Internal error occurred. Refer to server log for more information.",
        ] {
            check(text, Refusal::Temporary(shown(text)));
        }
        for text in [
            "NO [CONTACTADMIN] x",
            "NO [EXPIRED] x",
            "NO [ALERT] LOGIN failed",
            "NO account is closed",
            "NO [LIMIT] too many failed logins",
            "NO account temporarily locked",
            "NO [ALERT] Too many login attempts",
        ] {
            check(text, Refusal::Text(shown(text)));
        }
        check("NO \u{1b}[2J", Refusal::Text(shown("NO ?[2J")));
    }

    #[test]
    fn what_cannot_be_passed_is_not_shown() {
        for (said, shown) in [
            (
                "OK [CAPABILITY IMAP4rev1 UNAUTHENTICATE MOVE] in",
                "OK [CAPABILITY IMAP4rev1 MOVE] in",
            ),
            (
                "OK [CAPABILITY IMAP4rev1 UNAUTHENTICATE] in",
                "OK [CAPABILITY IMAP4rev1] in",
            ),
            ("OK in UNAUTHENTICATE please", "OK in UNAUTHENTICATE please"),
            (
                "* CAPABILITY A UNAUTHENTICATE\r\n* 3 EXISTS\r\n* OK [CAPABILITY UNAUTHENTICATE B] x\r\n",
                "* CAPABILITY A\r\n* 3 EXISTS\r\n* OK [CAPABILITY B] x\r\n",
            ),
        ] {
            assert_eq!(passable(said.as_bytes()), shown.as_bytes(), "{said}");
        }
        assert_eq!(passable(b"\xff\r\n"), b"\xff\r\n");
    }

    #[test]
    fn greetings() {
        let can = |text: &str| {
            let can = Capabilities::of_code(text.as_bytes())?;
            Some((can.literal_plus, can.literal_minus, can.sasl_ir))
        };
        assert_eq!(
            can("OK [CAPABILITY IMAP4rev1 literal+ SASL-IR] ready"),
            Some((true, false, true))
        );
        assert_eq!(can("OK [CAPABILITY LITERAL-] ready"), Some((false, true, false)));
        for unsaid in [
            "OK ready [CAPABILITY LITERAL+]",
            "OK [CAPABILITY LITERAL+",
            "OK [ALERT] LITERAL+",
        ] {
            assert_eq!(can(unsaid), None, "{unsaid}");
        }
    }
}
