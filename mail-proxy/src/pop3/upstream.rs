//! The POP3 machine that faces the mailbox server until a user is logged in there.
//!
//! One question, one answer of one line, or of a list. A server that is known to list PIPELINING is told who the client
//! is, its name and its password at once (RFC 2449 section 6.6); all others hear the password only where they have taken
//! the name.

use std::net::SocketAddr;

use crate::known_servers::Said;
use crate::machine::{Accepted, Introduction, UpstreamStep};
use crate::mechanism::{Mechanism, Mechanisms};
use crate::referral::Referral;
use crate::server_refusal::{
    NO_STARTTLS, Refusal, TLS_WANTED, says_bad_credentials, says_limit, says_own_failure, wants_tls,
};
use crate::server_rules::Announcement;
use crate::upstream::{Challenges, UpstreamDialect, UpstreamDriver, broken, printable};

/// Octets of a list that are remembered.
const MAX_LIST: usize = 2048;

/// POP3 towards a mailbox server.
pub type Pop3Upstream = UpstreamDriver<Pop3Dialogue>;

/// A POP3 dialogue with a mailbox server.
#[derive(Debug)]
pub struct Pop3Dialogue {
    intro: Introduction,
    state: State,
    /// The SASL mechanisms of the server's list.
    mechanisms: Mechanisms,
    challenges: Challenges,
    heard: Said,
    /// Why the name was refused to which the password belongs that was said with it.
    refused: Option<Vec<u8>>,
}

/// Named by what is awaited.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    Banner,
    /// The answer to STLS, and nothing else.
    Stls,
    /// The answer to XOIP or XCLIENT.
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
            mechanisms: Mechanisms::default(),
            challenges: Challenges::default(),
            heard: Said::default(),
            refused: None,
        })
    }
}

impl UpstreamDialect for Pop3Dialogue {
    fn take(&mut self, line: &[u8], out: &mut Vec<u8>) -> Option<UpstreamStep> {
        if self.state == State::CapaList {
            return self.listed(line, out);
        }
        match (self.state, Indicator::parse(line)) {
            (State::Stls, Indicator::Ok) => Some(UpstreamStep::StartTls),
            (State::Stls, _) => Some(broken(NO_STARTTLS)),
            (_, Indicator::Other) => Some(broken("neither +OK nor -ERR")),
            (State::Banner, Indicator::Ok) => self.greeted(line, out),
            (State::Banner, Indicator::Err) => Some(UpstreamStep::Refused(turned_away(line))),
            // Any answer will do: it is an offer, and the login decides.
            (State::Xoip, Indicator::Ok | Indicator::Err) if self.heard.hurried => {
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
                self.heard.list = Some(String::new());
                self.say_name(out)
            }
            (State::User, Indicator::Ok) if self.heard.hurried => {
                self.state = State::Answer;
                None
            }
            // The password was said with the name, and has an answer, too.
            (State::User, Indicator::Err) if self.heard.hurried => {
                self.refused = Some(line.to_vec());
                self.state = State::Answer;
                None
            }
            (State::Answer, Indicator::Ok) if self.refused.is_some() => {
                Some(broken("it takes a password without a name"))
            }
            (State::User, Indicator::Ok) => self.say_password(out),
            (State::Message, Indicator::Invitation) => self.say_message(out),
            (State::Answer, Indicator::Ok) => Some(self.accepted(line)),
            (State::Message, Indicator::Err) if self.intro.mechanism(self.mechanisms) == Some(Mechanism::XZimbra) => {
                Some(UpstreamStep::Refused(refusal(line).of_unlisted()))
            }
            (State::User | State::Message | State::Answer, Indicator::Err) => {
                Some(UpstreamStep::Refused(refusal(self.refused.as_deref().unwrap_or(line))))
            }
            (State::Answer, Indicator::Invitation) => {
                let text = line.get("+ ".len()..).unwrap_or_default();
                self.challenges.take(&self.intro, self.mechanisms, text, out)
            }
            (_, Indicator::Invitation) => Some(broken("an invitation that nobody waits for")),
            (State::Message, Indicator::Ok) => Some(broken("+OK before the password was said")),
            (State::CapaList, _) => Some(broken("the dialogue is over")),
        }
    }

    fn secured(&mut self, out: &mut Vec<u8>) -> Option<UpstreamStep> {
        self.introduce(out)
    }

    fn heard(&self) -> &Said {
        &self.heard
    }

    fn is_overlapping(&self) -> bool {
        self.heard.hurried && matches!(self.state, State::Xoip | State::User)
    }

    fn phase(&self) -> &'static str {
        match self.state {
            State::Banner => "banner",
            State::Stls => "starttls",
            State::Xoip | State::Capa | State::CapaList => "id",
            State::User | State::Message | State::Answer => "login",
        }
    }
}

impl Pop3Dialogue {
    fn greeted(&mut self, line: &[u8], out: &mut Vec<u8>) -> Option<UpstreamStep> {
        if let Err(unsaid) = self.intro.can_be_said() {
            return Some(unsaid);
        }
        self.heard.greeting = without_timestamp(&printable(line));
        if self.intro.starttls {
            out.extend_from_slice(b"STLS\r\n");
            self.state = State::Stls;
            return None;
        }
        self.introduce(out)
    }

    fn introduce(&mut self, out: &mut Vec<u8>) -> Option<UpstreamStep> {
        let known = self.intro.known_for(&self.heard.greeting).unwrap_or_default();
        let mut known = known.split_ascii_whitespace();
        let overlaps = known.any(|name| name.eq_ignore_ascii_case("PIPELINING"));
        self.heard.hurried = overlaps && !self.intro.slowly && !self.asks_for_list();
        let Some(announcement) = self.announcement() else {
            return self.begin(out);
        };
        out.extend_from_slice(announcement.as_bytes());
        if self.heard.hurried {
            self.say_all(out);
        }
        self.state = State::Xoip;
        None
    }

    /// Whether the login needs the server's list of mechanisms.
    fn asks_for_list(&self) -> bool {
        self.intro.needs_sasl() || self.intro.credentials.prefer_sasl()
    }

    fn say_all(&mut self, out: &mut Vec<u8>) {
        self.say_name(out);
        self.say_password(out);
        self.state = State::User;
    }

    /// Who the client is, in the words that the server knows; `None`: it is not told. IPv4 addresses look like IPv4
    /// addresses (MAIL §11 no. 2), whatever kind of socket they came through.
    ///
    /// ```text
    /// XCLIENT *(SP key "=" xtext)                     ; as SMTP's of Postfix, with the keys of Dovecot's proxy
    /// ```
    fn announcement(&self) -> Option<String> {
        let Introduction { client, local, .. } = &self.intro;
        let ip = |address: &SocketAddr| address.ip().to_canonical();
        match self.intro.announcement {
            Announcement::None => None,
            Announcement::Zimbra => Some(format!("XOIP {}\r\n", ip(client))),
            Announcement::Dovecot => Some(format!(
                "XCLIENT ADDR={} PORT={} SESSION={} TTL={} DESTADDR={} DESTPORT={}\r\n",
                ip(client),
                client.port(),
                xtext(&self.intro.session),
                self.intro.ttl,
                ip(local),
                local.port(),
            )),
        }
    }

    /// USER and PASS for a client that used them. AUTH for one that did, and for a long password, where the server's
    /// own list has PLAIN (RFC 5034 section 3). Only AUTH can carry a token, or log in to another user's mailbox: USER
    /// has no words for that.
    fn begin(&mut self, out: &mut Vec<u8>) -> Option<UpstreamStep> {
        let is_known = self.intro.slowly || self.intro.known_for(&self.heard.greeting).is_some();
        if self.heard.hurried {
            self.say_all(out);
            return None;
        }
        if self.asks_for_list() || !is_known {
            out.extend_from_slice(b"CAPA\r\n");
            self.state = State::Capa;
            return None;
        }
        self.say_name(out)
    }

    /// ```text
    /// capa-resp = single-line [ *capability "." CRLF ]; capability = "SASL" *(SP mechanism) / …  ; RFC 2449 section 8
    /// ```
    fn listed(&mut self, line: &[u8], out: &mut Vec<u8>) -> Option<UpstreamStep> {
        if line == b"." {
            self.heard.list.get_or_insert_default();
            if !self.asks_for_list() {
                return self.say_name(out);
            }
            return match self.intro.mechanism(self.mechanisms) {
                Some(mechanism) => self.authenticate(mechanism, out),
                None => match self.intro.lacks(self.mechanisms) {
                    Some(lacks) => Some(broken(lacks)),
                    None => self.say_name(out),
                },
            };
        }
        let list = self.heard.list.get_or_insert_default();
        if list.len() + line.len() < MAX_LIST {
            list.push_str(&printable(line));
            list.push('\n');
        }
        let mut words = line.split(|&byte| byte == b' ');
        if words.next().is_some_and(|word| word.eq_ignore_ascii_case(b"SASL")) {
            words.for_each(|name| self.mechanisms.insert_named(name));
        }
        None
    }

    /// What the server lists was heard now, or at an earlier login. One that is known for nothing has an unknown list.
    fn accepted(&self, line: &[u8]) -> UpstreamStep {
        let known = self
            .intro
            .known_for(&self.heard.greeting)
            .filter(|list| !list.is_empty());
        UpstreamStep::Accepted(Accepted {
            answer: line.to_vec(),
            capabilities: self.heard.list.clone().or_else(|| known.map(str::to_owned)),
            ..Accepted::default()
        })
    }

    /// Without a list it is tried: the message is said only where the server invites it.
    fn authenticate_unlisted(&mut self, out: &mut Vec<u8>) -> Option<UpstreamStep> {
        let mechanism = self.intro.first_mechanism();
        self.mechanisms.insert(mechanism);
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
        out.extend_from_slice(self.intro.password());
        out.extend_from_slice(b"\r\n");
        self.state = State::Answer;
        None
    }

    fn say_message(&mut self, out: &mut Vec<u8>) -> Option<UpstreamStep> {
        out.extend_from_slice(self.intro.message(self.mechanisms, &self.intro.login).expose());
        out.extend_from_slice(b"\r\n");
        self.state = State::Answer;
        None
    }
}

/// A greeting without the timestamp of APOP (RFC 1939 section 7), which is another one each time.
fn without_timestamp(greeting: &str) -> String {
    match greeting
        .split_once('<')
        .and_then(|(before, rest)| Some((before, rest.split_once('>')?.1)))
    {
        Some((before, behind)) => format!("{before}{behind}"),
        None => greeting.to_owned(),
    }
}

/// ```text
/// xtext = *( xchar / "+" 2HEXDIG ); xchar: "!" to "~" but "+" and "="      ; RFC 3461 section 4
/// ```
fn xtext(value: &str) -> String {
    let encode = |byte: u8| match byte {
        b'!'..=b'~' if !matches!(byte, b'+' | b'=') => char::from(byte).to_string(),
        _ => format!("+{byte:02X}"),
    };
    value.bytes().map(encode).collect()
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

/// What a server means by -ERR instead of a greeting.
fn turned_away(line: &[u8]) -> Refusal {
    match refusal(line) {
        Refusal::Limit(shown) => Refusal::Ended(shown),
        _ => Refusal::Temporary(printable(line)),
    }
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
    fn greetings_without_timestamps() {
        for (greeting, without) in [
            ("+OK ready <1.2@a.test>", "+OK ready "),
            ("+OK <1@a> go", "+OK  go"),
            ("+OK <", "+OK <"),
        ] {
            assert_eq!(without_timestamp(greeting), without);
        }
    }

    #[test]
    fn values_of_xclient_end_nothing() {
        assert_eq!(xtext("p1-42.a"), "p1-42.a");
        assert_eq!(xtext("a b\r\n=+\u{e9}"), "a+20b+0D+0A+3D+2B+C3+A9");
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
