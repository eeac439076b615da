//! The POP3 machine that faces the mailbox server until a user is logged in there.
//!
//! One question, one answer of one line, or of a list; nothing is pipelined, because a server may answer XOIP as it
//! likes.

use crate::failure::one_line;
use crate::line::{self, Found, Input};
use crate::machine::{Accepted, Introduction, UpstreamMachine, UpstreamStep};
use crate::refusal::{NO_PLAIN, Refusal, TLS_WANTED, says_bad_credentials, says_limit, says_own_trouble, wants_tls};
use crate::sasl;

/// Octets of one line of a server. RFC 2449 section 4 has 512; nobody is refused for more.
const MAX_LINE: usize = 64 * 1024;

/// Octets that a server may say until the login is answered.
const MAX_TOTAL: usize = 128 * 1024;

/// POP3 towards a mailbox server.
#[derive(Debug)]
pub struct Upstream {
    intro: Introduction,
    input: Input,
    state: State,
    read: usize,
    /// Whether a decision has been made. Where that was is still known.
    over: bool,
}

/// Named by what is awaited.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    Banner,
    /// The answer to XOIP.
    Xoip,
    /// The answer to CAPA.
    Capa,
    /// More of the list of capabilities, and whether PLAIN was in it so far.
    CapaList(bool),
    /// The answer to USER.
    User,
    /// The invitation for the message of PLAIN.
    Message,
    Answer,
}

impl Upstream {
    /// A machine for a new connection.
    pub fn new(intro: Introduction) -> Upstream {
        Upstream {
            intro,
            input: Input::default(),
            state: State::Banner,
            read: 0,
            over: false,
        }
    }

    fn next_line(&mut self) -> Result<Option<Vec<u8>>, UpstreamStep> {
        let (text, end) = match line::find_line(self.input.unread(), MAX_LINE) {
            Found::NeedInput => return Ok(None),
            Found::TooLong => return Err(broken("a line without end")),
            Found::Line { text, end } => (text, end),
        };
        let line = self.input.unread()[..text].to_vec();
        self.input.consume(end);
        self.read += end;
        if self.read > MAX_TOTAL {
            return Err(broken("it talks without end"));
        }
        if !line::is_clean(&line) {
            return Err(broken("NUL or CR within a line"));
        }
        Ok(Some(line))
    }

    fn take(&mut self, line: &[u8], out: &mut Vec<u8>) -> Option<UpstreamStep> {
        if let State::CapaList(plain) = self.state {
            return self.listed(line, plain, out);
        }
        match (self.state, Status::parse(line)) {
            (_, Status::Other) => Some(broken("neither +OK nor -ERR")),
            (State::Banner, Status::Ok) => self.greeted(out),
            (State::Banner, Status::Err) => Some(UpstreamStep::Refused(Refusal::Temporary(shown(line)))),
            // Any answer will do: it is an offer, and the login decides.
            (State::Xoip, Status::Ok | Status::Err) => self.begin(out),
            (State::Capa, Status::Ok) => {
                self.state = State::CapaList(false);
                None
            }
            // No list at all: the password is said only where the server invites it.
            (State::Capa, Status::Err) if self.delegated() => self.authenticate(out),
            (State::Capa, Status::Err) => self.say_name(out),
            (State::User, Status::Ok) => self.say_password(out),
            (State::Message, Status::Invitation) => self.say_message(out),
            (State::Answer, Status::Ok) => Some(UpstreamStep::Accepted(Accepted {
                untagged: Vec::new(),
                answer: line.to_vec(),
                rest: self.input.unread().to_vec(),
            })),
            (State::User | State::Message | State::Answer, Status::Err) => Some(UpstreamStep::Refused(refusal(line))),
            (_, Status::Invitation) => Some(broken("an invitation that nobody waits for")),
            (State::Message, Status::Ok) => Some(broken("+OK before the password was said")),
            (State::CapaList(_), _) => Some(broken("the dialogue is over")),
        }
    }

    fn greeted(&mut self, out: &mut Vec<u8>) -> Option<UpstreamStep> {
        if self.intro.login.chars().any(char::is_control) {
            // Nothing to hold against the server, but a name from the directory that nobody should be sent.
            return Some(broken("the account's name has control characters"));
        }
        if !self.intro.announce {
            return self.begin(out);
        }
        // IPv4 addresses look like IPv4 addresses (MAIL §11 no. 2), whatever kind of socket they came through.
        out.extend_from_slice(format!("XOIP {}\r\n", self.intro.client.to_canonical()).as_bytes());
        self.state = State::Xoip;
        None
    }

    /// USER and PASS for a client that used them. AUTH for one that did, and for a long password, where the server's
    /// own list has PLAIN (RFC 5034 section 3). Where somebody logs in to another one's mailbox, which USER has no words
    /// for, nothing else will do.
    fn begin(&mut self, out: &mut Vec<u8>) -> Option<UpstreamStep> {
        match self.delegated() || self.intro.credentials.prefer_sasl() {
            true => {
                out.extend_from_slice(b"CAPA\r\n");
                self.state = State::Capa;
                None
            }
            false => self.say_name(out),
        }
    }

    fn delegated(&self) -> bool {
        self.intro.credentials.authenticating_as.is_some()
    }

    /// ```text
    /// capa-resp = single-line [ *capability "." CRLF ]; capability = "SASL" *(SP mechanism) / …  ; RFC 2449 section 8
    /// ```
    fn listed(&mut self, line: &[u8], plain: bool, out: &mut Vec<u8>) -> Option<UpstreamStep> {
        if line == b"." {
            return match plain {
                true => self.authenticate(out),
                false if self.delegated() => Some(broken(NO_PLAIN)),
                false => self.say_name(out),
            };
        }
        let mut words = line.split(|&byte| byte == b' ');
        let is_sasl = words.next().is_some_and(|word| word.eq_ignore_ascii_case(b"SASL"));
        let has_plain = is_sasl && words.any(|word| word.eq_ignore_ascii_case(b"PLAIN"));
        self.state = State::CapaList(plain || has_plain);
        None
    }

    fn authenticate(&mut self, out: &mut Vec<u8>) -> Option<UpstreamStep> {
        out.extend_from_slice(b"AUTH PLAIN\r\n");
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
        let password = self.intro.credentials.password.expose();
        let message = match &self.intro.credentials.authenticating_as {
            None => sasl::encode_plain("", &self.intro.login, password),
            Some(other) => sasl::encode_plain(&self.intro.login, other, password),
        };
        out.extend_from_slice(message.expose());
        out.extend_from_slice(b"\r\n");
        self.state = State::Answer;
        None
    }
}

impl UpstreamMachine for Upstream {
    fn input(&mut self, bytes: &[u8], out: &mut Vec<u8>) -> UpstreamStep {
        if self.over {
            return broken("the dialogue is over");
        }
        self.input.push(bytes);
        loop {
            let step = match self.next_line() {
                Ok(None) => return UpstreamStep::NeedInput,
                Ok(Some(line)) => self.take(&line, out),
                Err(step) => Some(step),
            };
            if let Some(step) = step {
                self.over = true;
                self.input.clear();
                return step;
            }
        }
    }

    fn phase(&self) -> &'static str {
        match self.state {
            State::Banner => "banner",
            State::Xoip | State::Capa | State::CapaList(_) => "id",
            State::User | State::Message | State::Answer => "login",
        }
    }
}

/// How a line begins.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Status {
    Ok,
    Err,
    Invitation,
    Other,
}

impl Status {
    fn parse(line: &[u8]) -> Status {
        match line.split(|&byte| byte == b' ').next().unwrap_or_default() {
            b"+OK" => Status::Ok,
            b"-ERR" => Status::Err,
            b"+" => Status::Invitation,
            _ => Status::Other,
        }
    }
}

/// What a server means by -ERR. Codes: RFC 2449 section 8, RFC 3206; texts: MAIL §4.
fn refusal(line: &[u8]) -> Refusal {
    let shown = shown(line);
    let words = shown.to_ascii_lowercase();
    if words.contains("wrong host (you want") {
        return Refusal::WrongHost;
    }
    let text = words.strip_prefix("-err ").unwrap_or_default();
    let code = text
        .strip_prefix('[')
        .and_then(|text| text.split_once(']'))
        .map(|(code, _)| code);
    match code {
        // Dovecot says it behind [AUTH].
        _ if wants_tls(&words) => Refusal::Broken(TLS_WANTED),
        Some("auth") => Refusal::BadCredentials,
        Some("login-delay") => Refusal::Limit(shown),
        _ if says_limit(&words) => Refusal::Limit(shown),
        Some("sys/temp" | "in-use") => Refusal::Temporary(shown),
        None if says_own_trouble(&words) => Refusal::Temporary(shown),
        None if says_bad_credentials(&words) => Refusal::BadCredentials,
        _ => Refusal::Text(shown),
    }
}

fn shown(line: &[u8]) -> String {
    one_line(&String::from_utf8_lossy(line))
}

fn broken(why: &'static str) -> UpstreamStep {
    UpstreamStep::Refused(Refusal::Broken(why))
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
        check(
            "-ERR operation sent to wrong host (you want 'store2')",
            Refusal::WrongHost,
        );
    }
}
