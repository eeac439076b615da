//! The POP3 machine that faces the client until it is logged in.
//!
//! It answers what needs no account, takes credentials, and writes the outcome. It knows no clock, no socket, and
//! not whether a password is right.

use super::Settings;
use crate::credentials::Credentials;
use crate::line::{self, LineSearch};
use crate::login::{LoginDialect, LoginDriver, LoginLimits, State, Texts};
use crate::login_failure::{LoginFailure, one_line};
use crate::machine::{DialogueEnd, Step};
use crate::mechanism::Mechanism;

/// POP3 towards a client that is not logged in.
pub type Pop3Login = LoginDriver<Pop3Dialect>;

/// The grammar and the words of POP3 before login.
#[derive(Debug)]
pub struct Pop3Dialect;

/// The name of the last USER, if there was one.
type User = Option<Vec<u8>>;

impl LoginDialect for Pop3Dialect {
    type Settings = Settings;
    type Command = User;
    /// An answer belongs to the command before it.
    type Tag = ();

    const TEXTS: Texts = Texts {
        invalid: "-ERR invalid command",
        start_tls: "+OK",
        tls_required: "-ERR cleartext logins disabled",
        no_mechanism: "-ERR mechanism not supported",
        malformed: "-ERR invalid SASL response",
        aborted: "-ERR authentication aborted",
    };
    const SAYS_BYE: bool = false;

    fn limits(settings: &Settings) -> LoginLimits {
        settings.limits
    }

    fn greet(settings: &Settings, out: &mut Vec<u8>) {
        settings.greet(out);
    }

    fn command(login: &mut Pop3Login, out: &mut Vec<u8>) -> Option<Step> {
        let (text, end) = match line::find_line(login.input.unread(), line::MAX_LINE) {
            LineSearch::NeedInput => return Some(Step::NeedInput),
            LineSearch::TooLong => return Self::too_long(login, out),
            LineSearch::Line { text, end } => (text, end),
        };
        match &mut login.state {
            State::Command(user) => {
                let user = user.take();
                login.command(user, text, end, out)
            }
            _ => None,
        }
    }

    fn too_long(login: &mut Pop3Login, out: &mut Vec<u8>) -> Option<Step> {
        login.reply("-ERR line is too long", out);
        login.end(DialogueEnd::TooLong)
    }

    fn tag(_tag: Option<&()>, _out: &mut Vec<u8>) {}

    fn bye(text: &str, out: &mut Vec<u8>) {
        out.extend_from_slice(format!("-ERR {}\r\n", one_line(text)).as_bytes());
    }

    fn failed(failure: &LoginFailure, _mechanism: Mechanism) -> String {
        failure.pop3()
    }
}

impl Pop3Login {
    /// ```text
    /// command = keyword [" " params] CRLF      ; RFC 1939 section 3, RFC 2449 section 4
    /// ```
    fn command(&mut self, user: User, text: usize, end: usize, out: &mut Vec<u8>) -> Option<Step> {
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
        match (keyword.as_slice(), words.is_empty()) {
            (b"USER", false) => {
                let name = words.to_vec();
                self.next(end, user);
                return self.user(name, out);
            }
            (b"PASS", _) => return self.pass(user, text, end, out),
            (b"AUTH", false) => return self.auth(user, text, end, out),
            (b"XCLIENT", false) => {
                self.id.ttl = ttl_of(words);
                self.next(end, user);
                return self.reply("+OK", out);
            }
            (b"QUIT", true) => {
                self.reply("+OK", out);
                return self.end(DialogueEnd::Logout);
            }
            _ => {}
        }
        let bare = words.is_empty();
        self.next(end, user);
        match (keyword.as_slice(), bare) {
            (b"AUTH", true) => self.reply(&self.mechanism_list(), out),
            (b"CAPA", true) => self.reply(&self.capability_list(), out),
            (b"NOOP", true) => self.reply("+OK", out),
            (b"STLS", true) => self.start_tls(&(), out),
            _ => self.invalid(None, out),
        }
    }

    /// Any name is taken here, even one that cannot be: an answer that differs would tell something. A second USER
    /// replaces the first.
    fn user(&mut self, name: Vec<u8>, out: &mut Vec<u8>) -> Option<Step> {
        if !self.channel.takes_passwords() {
            return self.tls_required(&(), Mechanism::UserPass, out);
        }
        self.state = State::Command(Some(name));
        self.reply("+OK", out)
    }

    /// The password is the rest of the line, blanks included (RFC 1939 section 7).
    fn pass(&mut self, user: User, text: usize, end: usize, out: &mut Vec<u8>) -> Option<Step> {
        if !self.channel.takes_passwords() {
            self.next_wiping(end, user);
            return self.tls_required(&(), Mechanism::UserPass, out);
        }
        let Some(user) = user else {
            self.next_command_wiping(end);
            return self.invalid(None, out);
        };
        let password = self.input.unread()[..text].get("PASS ".len()..).unwrap_or_default();
        let parsed = Credentials::parse(Mechanism::UserPass, &user, password);
        self.input.consume_secret(end);
        self.decide((), parsed)
    }

    /// ```text
    /// auth = "AUTH" SP mechanism [SP initial-response]       ; RFC 5034 section 4
    /// ```
    fn auth(&mut self, user: User, text: usize, end: usize, out: &mut Vec<u8>) -> Option<Step> {
        let words = &self.input.unread()["AUTH ".len()..text];
        let mut words = words.split(|&byte| byte == b' ').filter(|word| !word.is_empty());
        let (name, initial, surplus) = (words.next().unwrap_or_default(), words.next(), words.next());
        let opening = surplus.is_none().then(|| self.open(name, initial));
        self.next_wiping(end, user);
        match opening {
            Some(opening) => self.opened((), opening, out),
            None => self.invalid(None, out),
        }
    }

    fn reply(&self, text: &str, out: &mut Vec<u8>) -> Option<Step> {
        self.answer(None, text, out)
    }

    /// Done with a line; the name of the last USER is still known.
    fn next(&mut self, end: usize, user: User) {
        self.input.consume(end);
        self.state = State::Command(user);
    }

    /// The same with a line that may have held a password.
    fn next_wiping(&mut self, end: usize, user: User) {
        self.input.consume_secret(end);
        self.state = State::Command(user);
    }

    /// RFC 5034 section 4, after RFC 1734.
    fn mechanism_list(&self) -> String {
        let lines: String = self.offered().names().map(|name| format!("{name}\r\n")).collect();
        format!("+OK Mechanism list follows\r\n{lines}.")
    }

    /// MAIL §4. RFC 2595 section 4: no USER where USER is refused. RFC 2449 section 5: what is listed can be used; XOIP
    /// is for proxies in front of a mailbox server, and never taken here.
    fn capability_list(&self) -> String {
        let takes = self.channel.takes_passwords();
        let mut list = String::from("+OK Capability list follows\r\n");
        let shown = self.settings.capabilities(self.name.as_deref());
        list.extend(shown.split_inclusive('\n').filter(|line| {
            let line = line.trim_end();
            (takes || !line.eq_ignore_ascii_case("USER")) && !line.eq_ignore_ascii_case("XOIP")
        }));
        let mechanisms: Vec<&str> = self.offered().names().collect();
        if !mechanisms.is_empty() {
            list += &format!("SASL {}\r\n", mechanisms.join(" "));
        }
        if self.channel.offers_starttls() {
            list += "STLS\r\n";
        }
        list + "."
    }
}

/// How many proxies may follow, from the XCLIENT of one in front of us. All else that it says is not believed: its rule
/// is the PROXY protocol.
fn ttl_of(words: &[u8]) -> Option<u32> {
    let mut words = words.split(|&byte| byte == b' ');
    let digits = words.find_map(|word| word.to_ascii_uppercase().strip_prefix(b"TTL=").map(<[u8]>::to_vec))?;
    std::str::from_utf8(&digits).ok()?.parse().ok()
}

fn without_blanks(mut text: &[u8]) -> &[u8] {
    while let [b' ', rest @ ..] | [rest @ .., b' '] = text {
        text = rest;
    }
    text
}
