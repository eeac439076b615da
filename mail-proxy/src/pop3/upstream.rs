//! The POP3 machine that faces the mailbox server until a user is logged in there.
//!
//! One question, one answer of one line, or of a list. Only where the server's list has PIPELINING (RFC 2449 section
//! 6.6) and USER, or had them a while ago, name and password are said without an answer between them.

use crate::machine::{Accepted, Introduction, Pipelines, UpstreamStep};
use crate::mechanism::{Mechanism, Mechanisms};
use crate::referral::Referral;
use crate::server_refusal::{Refusal, TLS_WANTED, says_bad_credentials, says_limit, says_own_failure, wants_tls};
use crate::upstream::{UpstreamDialect, UpstreamDriver, broken, printable};

/// POP3 towards a mailbox server.
pub type Pop3Upstream = UpstreamDriver<Pop3Dialogue>;

/// A POP3 dialogue with a mailbox server.
#[derive(Debug)]
pub struct Pop3Dialogue {
    intro: Introduction,
    state: State,
    list: List,
    /// USER and PASS have been said at once.
    ahead: bool,
    /// The server has said what is wrong with the token.
    challenged: bool,
}

/// What a server's list has said so far.
#[derive(Debug, Default, Clone, Copy)]
struct List {
    mechanisms: Mechanisms,
    user: bool,
    pipelining: bool,
    /// It holds what is no capability, but the answer to something else.
    out_of_step: bool,
    complete: bool,
}

/// Named by what is awaited.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    Banner,
    /// The answer to XOIP.
    Xoip,
    /// The answer to CAPA.
    Capa,
    /// More of the list of capabilities.
    CapaList,
    /// The answer to USER.
    User,
    /// The invitation for the message of SASL.
    Message,
    Answer,
}

impl Pop3Upstream {
    /// A machine for a new connection.
    pub fn new(intro: Introduction) -> Self {
        Self::speaking(Pop3Dialogue {
            intro,
            state: State::Banner,
            list: List::default(),
            ahead: false,
            challenged: false,
        })
    }
}

impl UpstreamDialect for Pop3Dialogue {
    fn take(&mut self, line: &[u8], out: &mut Vec<u8>) -> Option<UpstreamStep> {
        if self.state == State::CapaList {
            return self.listed(line, out);
        }
        match (self.state, Indicator::parse(line)) {
            (_, Indicator::Other) => Some(broken("neither +OK nor -ERR")),
            (State::Banner, Indicator::Ok) => self.greeted(out),
            (State::Banner, Indicator::Err) => Some(UpstreamStep::Refused(Refusal::Temporary(printable(line)))),
            // Any answer will do: it is an offer, and the login decides.
            (State::Xoip, Indicator::Ok | Indicator::Err) if self.ahead => {
                self.state = State::User;
                None
            }
            (State::Xoip, Indicator::Ok | Indicator::Err) => self.begin(out),
            (State::Capa, Indicator::Ok) => {
                self.state = State::CapaList;
                None
            }
            // No list at all: the password is said only where the server invites it.
            (State::Capa, Indicator::Err) if self.intro.needs_sasl() => self.authenticate_unlisted(out),
            (State::Capa, Indicator::Err) => {
                self.list.complete = true;
                self.say_name(out)
            }
            (State::User, Indicator::Ok) if self.ahead => {
                self.state = State::Answer;
                None
            }
            (State::User, Indicator::Ok) => self.say_password(out),
            // It may mean that the server has taken all for one line.
            (State::User, Indicator::Err) if self.ahead && is_about_login(line) => Some(broken(NAME_REFUSED)),
            (State::Message, Indicator::Invitation) => self.say_message(out),
            (State::Answer, Indicator::Ok) => Some(UpstreamStep::Accepted(Accepted {
                untagged: Vec::new(),
                answer: line.to_vec(),
                rest: Vec::new(),
            })),
            (State::User | State::Message | State::Answer, Indicator::Err) => {
                Some(UpstreamStep::Refused(refusal(line)))
            }
            (State::Answer, Indicator::Invitation) if self.intro.has_token() && !self.challenged => {
                self.challenged = true;
                out.extend_from_slice(self.intro.challenge_answer(self.list.mechanisms).as_bytes());
                out.extend_from_slice(b"\r\n");
                None
            }
            (_, Indicator::Invitation) => Some(broken("an invitation that nobody waits for")),
            (State::Message, Indicator::Ok) => Some(broken("+OK before the password was said")),
            (State::CapaList, _) => Some(broken("the dialogue is over")),
        }
    }

    fn is_ahead(&self) -> bool {
        self.ahead
    }

    fn is_prompt(&self) -> bool {
        self.ahead && matches!(self.state, State::Xoip | State::User)
    }

    fn learned(&self) -> Option<Pipelines> {
        let asked = self.intro.pipelines == Pipelines::Unknown;
        (asked && self.list.complete).then(|| match self.list.pipelines() {
            true => Pipelines::Yes,
            false => Pipelines::No,
        })
    }

    fn phase(&self) -> &'static str {
        match self.state {
            State::Banner => "banner",
            State::Xoip | State::Capa | State::CapaList => "id",
            State::User | State::Message | State::Answer => "login",
        }
    }
}

impl Pop3Dialogue {
    fn greeted(&mut self, out: &mut Vec<u8>) -> Option<UpstreamStep> {
        if let Err(unsaid) = self.intro.can_be_said() {
            return Some(unsaid);
        }
        if self.intro.announce {
            self.say_address(out);
        }
        match (self.knows(), self.intro.announce) {
            (Pipelines::Yes, _) => self.say_name_and_password(out),
            (_, true) => None,
            (_, false) => self.begin(out),
        }
    }

    /// What counts of that for this login.
    fn knows(&self) -> Pipelines {
        match self.intro.fits_one_flight(&self.intro.login) {
            true => self.intro.pipelines,
            false => Pipelines::No,
        }
    }

    fn say_address(&mut self, out: &mut Vec<u8>) {
        // IPv4 addresses look like IPv4 addresses (MAIL §11 no. 2), whatever kind of socket they came through.
        out.extend_from_slice(format!("XOIP {}\r\n", self.intro.client.to_canonical()).as_bytes());
        self.state = State::Xoip;
    }

    /// USER and PASS for a client that used them. AUTH for one that did, and for a long password, where the server's
    /// own list has PLAIN (RFC 5034 section 3). Only AUTH can carry a token, or log in to another user's mailbox: USER
    /// has no words for that. A server that nothing is known of is asked: if it takes both at once, that costs nothing.
    fn begin(&mut self, out: &mut Vec<u8>) -> Option<UpstreamStep> {
        let asks = self.wants_sasl() || self.knows() == Pipelines::Unknown;
        match asks {
            true => {
                out.extend_from_slice(b"CAPA\r\n");
                self.state = State::Capa;
                None
            }
            false => self.say_name(out),
        }
    }

    /// ```text
    /// capa-resp = single-line [ *capability "." CRLF ]; capability = "SASL" *(SP mechanism) / …  ; RFC 2449 section 8
    /// ```
    fn listed(&mut self, line: &[u8], out: &mut Vec<u8>) -> Option<UpstreamStep> {
        if line == b"." {
            self.list.complete = true;
            return self.choose(out);
        }
        self.list.take(line);
        None
    }

    /// How the login goes on behind the list.
    fn choose(&mut self, out: &mut Vec<u8>) -> Option<UpstreamStep> {
        if self.knows() == Pipelines::Unknown && self.list.pipelines() {
            return self.say_name_and_password(out);
        }
        let by = self.intro.mechanism(self.list.mechanisms);
        match (by.filter(|_| self.wants_sasl()), self.intro.lacks()) {
            (Some(mechanism), _) => self.authenticate(mechanism, out),
            (None, Some(lacks)) => Some(broken(lacks)),
            (None, None) => self.say_name(out),
        }
    }

    fn wants_sasl(&self) -> bool {
        self.intro.needs_sasl() || self.intro.credentials.prefer_sasl()
    }

    /// Behind XOIP, if that has no answer yet.
    fn say_name_and_password(&mut self, out: &mut Vec<u8>) -> Option<UpstreamStep> {
        let waits_for = match self.state {
            State::Xoip => State::Xoip,
            _ => State::User,
        };
        self.say_name(out);
        self.say_password(out);
        (self.ahead, self.state) = (true, waits_for);
        None
    }

    /// Without a list it is tried: the message is said only where the server invites it.
    fn authenticate_unlisted(&mut self, out: &mut Vec<u8>) -> Option<UpstreamStep> {
        let mechanism = match self.intro.has_token() {
            true => self.intro.credentials.mechanism,
            false => Mechanism::SaslPlain,
        };
        self.list.mechanisms.insert(mechanism);
        self.authenticate(mechanism, out)
    }

    fn authenticate(&mut self, mechanism: Mechanism, out: &mut Vec<u8>) -> Option<UpstreamStep> {
        let name = mechanism.sasl_name().unwrap_or_default();
        out.extend_from_slice(format!("AUTH {name}\r\n").as_bytes());
        self.state = State::Message;
        None
    }

    /// MAIL §4: the suffix is not put back here.
    fn say_name(&mut self, out: &mut Vec<u8>) -> Option<UpstreamStep> {
        out.extend_from_slice(format!("USER {}\r\n", self.intro.login).as_bytes());
        self.state = State::User;
        None
    }

    fn say_password(&mut self, out: &mut Vec<u8>) -> Option<UpstreamStep> {
        out.extend_from_slice(b"PASS ");
        out.extend_from_slice(self.intro.credentials.password.expose());
        out.extend_from_slice(b"\r\n");
        self.state = State::Answer;
        None
    }

    fn say_message(&mut self, out: &mut Vec<u8>) -> Option<UpstreamStep> {
        out.extend_from_slice(self.intro.message(self.list.mechanisms, &self.intro.login).expose());
        out.extend_from_slice(b"\r\n");
        self.state = State::Answer;
        None
    }
}

/// Why a login that was said in one flight is tried again in several.
const NAME_REFUSED: &str = "it refuses the name before it has seen the password";

impl List {
    /// Whether name and password can be said at once: both are listed, and each answer so far was to its question.
    fn pipelines(self) -> bool {
        self.pipelining && self.user && !self.out_of_step
    }

    fn take(&mut self, line: &[u8]) {
        let mut words = line.split(|&byte| byte == b' ');
        match words.next().unwrap_or_default().to_ascii_uppercase().as_slice() {
            b"SASL" => words
                .filter_map(Mechanism::of_sasl)
                .for_each(|known| self.mechanisms.insert(known)),
            b"USER" => self.user = true,
            b"PIPELINING" => self.pipelining = true,
            b"+OK" | b"-ERR" => self.out_of_step = true,
            _ => {}
        }
    }
}

/// How a line begins.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Indicator {
    Ok,
    Err,
    Invitation,
    Other,
}

impl Indicator {
    fn parse(line: &[u8]) -> Self {
        match line.split(|&byte| byte == b' ').next().unwrap_or_default() {
            b"+OK" => Self::Ok,
            b"-ERR" => Self::Err,
            b"+" => Self::Invitation,
            _ => Self::Other,
        }
    }
}

/// Whether -ERR says something of name or password, and not of the server.
fn is_about_login(line: &[u8]) -> bool {
    matches!(refusal(line), Refusal::BadCredentials | Refusal::Text(_))
}

/// What a server means by -ERR. Codes: RFC 2449 section 8, RFC 3206; texts: MAIL §4.
fn refusal(line: &[u8]) -> Refusal {
    let shown = printable(line);
    let words = shown.to_ascii_lowercase();
    if words.contains("wrong host (you want") {
        return Referral::of_words(&shown).map_or(Refusal::WrongHost, Refusal::Referred);
    }
    let text = words.strip_prefix("-err ").unwrap_or_default();
    let code = text
        .strip_prefix('[')
        .and_then(|text| text.split_once(']'))
        .map(|(code, _)| code);
    if let Some(code) = code.filter(|code| code.starts_with("referral")) {
        return Referral::of_code(code).map_or(Refusal::WrongHost, Refusal::Referred);
    }
    match code {
        // Dovecot says it behind [AUTH].
        _ if wants_tls(&words) => Refusal::Broken(TLS_WANTED),
        Some("auth") => Refusal::BadCredentials,
        Some("login-delay") => Refusal::Limit(shown),
        _ if says_limit(&words) => Refusal::Limit(shown),
        Some("sys/temp" | "in-use") => Refusal::Temporary(shown),
        None if says_own_failure(&words) => Refusal::Temporary(shown),
        None if says_bad_credentials(&words) => Refusal::BadCredentials,
        _ => Refusal::Text(shown),
    }
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
            "-ERR",
            "-ERR LOGIN failed",
            "-ERR [AUTH] no",
            "-ERR Authentication failed.",
        ] {
            check(text, Refusal::BadCredentials);
        }
        for text in [
            "-ERR [LOGIN-DELAY] x",
            "-ERR [IN-USE] Too many connections",
            "-ERR [SYS/TEMP] Maximum number of connections from user+IP exceeded",
        ] {
            check(text, Refusal::Limit(shown(text)));
        }
        for text in [
            "-ERR [AUTH] Plaintext authentication disallowed on non-secure (SSL/TLS) connections.",
            "-ERR [AUTH] Plaintext authentication disabled.",
            "-ERR only valid after entering TLS mode",
        ] {
            check(text, Refusal::Broken(TLS_WANTED));
        }
        for text in [
            "-ERR [SYS/TEMP] x",
            "-ERR [IN-USE] x",
            "-ERR Temporary authentication failure.",
        ] {
            check(text, Refusal::Temporary(shown(text)));
        }
        for text in ["-ERR your password has expired", "-ERR [SYS/PERM] login failed"] {
            check(text, Refusal::Text(shown(text)));
        }
        let referral = Referral {
            user: None,
            host: "store2".to_owned(),
        };
        for text in [
            "-ERR operation sent to wrong host (you want 'store2')",
            "-ERR [REFERRAL pop://store2/] try there",
        ] {
            check(text, Refusal::Referred(referral.clone()));
        }
        check("-ERR [REFERRAL rubbish] x", Refusal::WrongHost);
    }
}
