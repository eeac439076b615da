//! The IMAP machine that faces the client until it is logged in.
//!
//! It answers what needs no account, takes credentials, and writes the outcome. It knows no clock, no socket, and
//! not whether a password is right.

use super::command::{Extent, Fault, Request, Tag, Verb};
use super::{FAREWELL, Settings, quoted};
use crate::credentials::Credentials;
use crate::line::{Framed, Framer};
use crate::login::{LoginDialect, LoginDriver, LoginLimits, State, Texts};
use crate::login_failure::{LoginFailure, one_line};
use crate::machine::{DialogueEnd, Step};
use crate::mechanism::Mechanism;

/// IMAP towards a client that is not logged in.
pub type ImapLogin = LoginDriver<ImapDialect>;

/// The grammar and the words of IMAP before login.
#[derive(Debug)]
pub struct ImapDialect;

impl LoginDialect for ImapDialect {
    type Settings = Settings;
    type Command = Framer;
    type Tag = Tag;

    /// MAIL §3.2. The code for want of TLS is RFC 5530's.
    const TEXTS: Texts = Texts {
        invalid: "BAD invalid command",
        start_tls: "OK completed",
        tls_required: "NO [PRIVACYREQUIRED] cleartext logins disabled",
        no_mechanism: "NO [CANNOT] mechanism not supported",
        malformed: "BAD invalid SASL response",
        aborted: "BAD AUTHENTICATE aborted",
    };
    const SAYS_BYE: bool = true;

    fn limits(settings: &Settings) -> LoginLimits {
        settings.limits
    }

    fn greet(settings: &Settings, out: &mut Vec<u8>) {
        settings.greet(out);
    }

    fn command(login: &mut ImapLogin, out: &mut Vec<u8>) -> Option<Step> {
        let State::Command(framer) = &mut login.state else {
            return None;
        };
        match framer.next(login.input.unread()) {
            Framed::NeedInput => Some(Step::NeedInput),
            Framed::Command { end } => login.command(end, out),
            Framed::Waits { end } => login.literal(end, out),
            Framed::TooBig { end } => login.too_big(end, out),
            Framed::TooLong => Self::too_long(login, out),
        }
    }

    fn too_long(login: &mut ImapLogin, out: &mut Vec<u8>) -> Option<Step> {
        let tag = match &login.state {
            State::Sasl { tag, .. } | State::Challenged { tag, .. } | State::TokenRefused { tag, .. } => {
                Some(tag.clone())
            }
            _ => Request::parse(login.input.unread(), Extent::UpToLiteral).tag,
        };
        login.answer(tag.as_ref(), "BAD command is too long", out);
        out.extend_from_slice(FAREWELL);
        login.end(DialogueEnd::TooLong)
    }

    fn tag(tag: Option<&Tag>, out: &mut Vec<u8>) {
        out.extend_from_slice(tag.map_or("*", Tag::as_str).as_bytes());
        out.push(b' ');
    }

    fn bye(text: &str, out: &mut Vec<u8>) {
        out.extend_from_slice(format!("* BYE {}\r\n", one_line(text)).as_bytes());
    }

    fn failed(failure: &LoginFailure, mechanism: Mechanism) -> String {
        failure.imap(mechanism)
    }

    fn phase(framer: &Framer) -> Option<&'static str> {
        framer.in_literal().then_some("literal")
    }
}

impl ImapLogin {
    fn command(&mut self, end: usize, out: &mut Vec<u8>) -> Option<Step> {
        let request = Request::parse(&self.input.unread()[..end], Extent::Whole);
        let Some(tag) = request.tag.clone() else {
            self.next_command(end);
            return self.invalid(None, out);
        };
        match request.verb {
            Verb::Login => return self.login(tag, end, out),
            Verb::Authenticate => return self.authenticate(tag, end, out),
            Verb::Id => return self.identify(&tag, end, out),
            _ => {}
        }
        let well_formed = request.nothing().is_ok();
        let verb = request.verb;
        self.next_command(end);
        match verb {
            _ if !well_formed => self.invalid(Some(&tag), out),
            Verb::Capability => {
                out.extend_from_slice(self.capability_line().as_bytes());
                self.answer(Some(&tag), "OK completed", out)
            }
            Verb::Noop => self.answer(Some(&tag), "OK completed", out),
            Verb::Logout => {
                out.extend_from_slice(FAREWELL);
                self.answer(Some(&tag), "OK completed", out);
                self.end(DialogueEnd::Logout)
            }
            Verb::StartTls => self.start_tls(&tag, out),
            Verb::Login | Verb::Authenticate | Verb::Id | Verb::Unknown => self.invalid(Some(&tag), out),
        }
    }

    fn identify(&mut self, tag: &Tag, end: usize, out: &mut Vec<u8>) -> Option<Step> {
        let parsed = Request::parse(&self.input.unread()[..end], Extent::Whole).id();
        self.next_command(end);
        let Ok(id) = parsed else {
            return self.invalid(Some(tag), out);
        };
        self.id = id;
        out.extend_from_slice(self.id_line().as_bytes());
        self.answer(Some(tag), "OK completed", out)
    }

    fn login(&mut self, tag: Tag, end: usize, out: &mut Vec<u8>) -> Option<Step> {
        if !self.channel.takes_passwords() {
            self.next_command_wiping(end);
            return self.tls_required(&tag, Mechanism::Login, out);
        }
        let parsed = Request::parse(&self.input.unread()[..end], Extent::Whole).login();
        self.next_command_wiping(end);
        match parsed {
            Ok((user, password)) => {
                let parsed = Credentials::parse(Mechanism::Login, &user, password.expose());
                self.decide(tag, parsed)
            }
            Err(_) => self.invalid(Some(&tag), out),
        }
    }

    fn authenticate(&mut self, tag: Tag, end: usize, out: &mut Vec<u8>) -> Option<Step> {
        let parsed = Request::parse(&self.input.unread()[..end], Extent::Whole).authenticate();
        let opening = parsed.map(|(name, initial)| self.open(name, initial));
        self.next_command_wiping(end);
        match opening {
            Ok(opening) => self.opened(tag, opening, out),
            Err(_) => self.invalid(Some(&tag), out),
        }
    }

    /// The sender of a literal waits. It is invited if its command is good so far and may be answered; otherwise
    /// it learns why not, and the literal is never sent.
    fn literal(&mut self, end: usize, out: &mut Vec<u8>) -> Option<Step> {
        let request = Request::parse(&self.input.unread()[..end], Extent::UpToLiteral);
        let tag = request.tag.clone();
        let fault = match (&tag, request.verb) {
            (Some(tag), Verb::Login) if !self.channel.takes_passwords() => {
                self.next_command_wiping(end);
                return self.tls_required(tag, Mechanism::Login, out);
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

    fn too_big(&mut self, end: usize, out: &mut Vec<u8>) -> Option<Step> {
        let tag = Request::parse(&self.input.unread()[..end], Extent::UpToLiteral).tag;
        self.next_command_wiping(end);
        match tag {
            Some(tag) => self.error(Some(&tag), "NO [TOOBIG] literal is too big", out),
            None => self.invalid(None, out),
        }
    }

    /// MAIL §3.2. LOGINDISABLED: RFC 9051 section 6.2.3.
    fn capability_line(&self) -> String {
        let mut computed: String = self.offered().names().map(|name| format!(" AUTH={name}")).collect();
        for (on, name) in [
            (self.channel.offers_starttls(), " STARTTLS"),
            (!self.channel.takes_passwords(), " LOGINDISABLED"),
        ] {
            computed += if on { name } else { "" };
        }
        format!(
            "* CAPABILITY {}{computed}\r\n",
            self.settings.capabilities(self.name.as_deref())
        )
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
