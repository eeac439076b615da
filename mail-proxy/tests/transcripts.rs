//! Plays the dialogues of `tests/transcripts/` against the protocol machines. The format is described in the README
//! there.
//!
//! Each dialogue is played turn by turn, in one piece, one octet at a time, cut in two at every position, and with
//! decisions that come as late as they can. What the machine says and does must be the same.

use std::collections::VecDeque;
use std::fs;
use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use mail_proxy::login_failure::LoginFailure;
use mail_proxy::sasl::{Exchange, Progress};
use mail_proxy::{
    Accepted, Announcement, Channel, Credentials, DialogueEnd, IdFields, Introduction, KnownServer, LoginMachine,
    Mechanism, ProofKind, Rejected, StartTls, Step, UpstreamMachine, UpstreamStep, imap, pop3,
};

/// Octets of one read, as a session would do it.
const READ: usize = 16 * 1024;

/// The first message of a client that logs in by an exchange.
const FIRST_MESSAGE: &[u8] = b"n,,n=al,r=fyko";

/// Above this, not every position is cut.
const CUT_EVERYWHERE: usize = 2_000;

#[test]
fn dialogues() {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/transcripts");
    let mut paths: Vec<_> = fs::read_dir(&dir)
        .expect("the directory of transcripts")
        .map(|entry| entry.expect("an entry").path())
        .filter(|path| path.extension().is_some_and(|extension| extension == "txt"))
        .collect();
    paths.sort();
    assert!(paths.len() >= 40, "transcripts are missing in {}", dir.display());
    for path in paths {
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        check(&name, &fs::read_to_string(&path).expect("a readable transcript"));
    }
}

fn check(name: &str, text: &str) {
    let script = Script::parse(name, text);
    let input = script.input();
    let expected = script.expected(script.turns.len());

    if script.ways != Ways::Turns {
        assert_same(name, "in one piece", &script.play(&[&input], Decide::AtOnce), &expected);
    }
    if script.ways != Ways::Whole {
        script.play_turns(name);
    }
    if script.ways != Ways::All {
        return;
    }
    assert_same(name, "decided late", &script.play(&[&input], Decide::Late), &expected);
    let octets: Vec<&[u8]> = input.chunks(1).collect();
    assert_same(name, "octet by octet", &script.play(&octets, Decide::AtOnce), &expected);
    let stride = if input.len() <= CUT_EVERYWHERE {
        1
    } else {
        input.len() / 13
    };
    for cut in (1..input.len()).step_by(stride) {
        let (first, second) = input.split_at(cut);
        assert_same(
            name,
            &format!("cut at {cut}"),
            &script.play(&[first, second], Decide::AtOnce),
            &expected,
        );
    }
}

fn assert_same(name: &str, how: &str, found: &Trace, expected: &Trace) {
    let (found, expected) = (found.show(), expected.show());
    if found != expected {
        let same = found
            .lines()
            .zip(expected.lines())
            .take_while(|(found, expected)| found == expected)
            .count();
        let rest = |text: &str| text.lines().skip(same).take(8).collect::<Vec<_>>().join("\n");
        panic!(
            "{name}, {how}, from line {same}:\n--- found\n{}\n--- expected\n{}",
            rest(&found),
            rest(&expected)
        );
    }
}

/// In which ways a transcript is played. Octets behind STARTTLS are one thing or another depending on when they come.
#[derive(Clone, Copy, PartialEq)]
enum Ways {
    All,
    Whole,
    Turns,
}

/// When a decision is made: as soon as it is asked for, or after all input was given that the machine takes.
#[derive(Clone, Copy, PartialEq)]
enum Decide {
    AtOnce,
    Late,
}

/// What a machine said and did.
#[derive(Default)]
struct Trace(Vec<Item>);

#[derive(Clone)]
enum Item {
    Said(Vec<u8>),
    Did(String),
}

impl Trace {
    fn said(&mut self, out: &mut Vec<u8>) {
        let out = std::mem::take(out);
        match self.0.last_mut() {
            _ if out.is_empty() => {}
            Some(Item::Said(before)) => before.extend_from_slice(&out),
            _ => self.0.push(Item::Said(out)),
        }
    }

    fn did(&mut self, what: impl Into<String>) {
        self.0.push(Item::Did(what.into()));
    }

    fn show(&self) -> String {
        let line = |item: &Item| match item {
            Item::Said(bytes) => format!("{}\n", bytes.escape_ascii()).replace("\\n", "\\n\n"),
            Item::Did(what) => format!("! {what}\n"),
        };
        self.0.iter().map(line).collect()
    }
}

/// A parsed transcript.
struct Script {
    faces: Faces,
    ways: Ways,
    settings: Settings,
    turns: Vec<Turn>,
    decisions: Vec<Decision>,
}

enum Faces {
    Client(Protocol, Channel),
    Server(Protocol, Box<Introduction>),
}

#[derive(Clone, Copy)]
enum Protocol {
    Imap,
    Pop3,
}

#[derive(Default)]
struct Settings {
    imap: imap::Settings,
    pop3: pop3::Settings,
}

enum Turn {
    Input(Vec<u8>),
    Output(Vec<u8>),
    Event(String),
}

#[derive(Clone)]
enum Decision {
    Accept(Accepted),
    Refuse(LoginFailure),
    /// The mailbox server has this for the client to answer.
    Challenge(Vec<u8>),
    /// The client answers this.
    Respond(Vec<u8>),
}

impl Script {
    fn parse(name: &str, text: &str) -> Self {
        let mut script = Self {
            faces: Faces::Client(Protocol::Imap, Channel::Tls),
            ways: Ways::All,
            settings: Settings::default(),
            turns: Vec::new(),
            decisions: Vec::new(),
        };
        script.settings.imap.id = vec![("NAME".into(), "Portico".into())];
        let mut accepted = Accepted::default();
        for line in text.lines() {
            let (key, value) = line.split_once(' ').unwrap_or((line, ""));
            match key {
                "" | "#" => {}
                "@machine" => script.faces = faces(value),
                "@whole" => script.ways = Ways::Whole,
                "@turns" => script.ways = Ways::Turns,
                "@set" => script.set(value),
                "C:" | "S:" if (key == "C:") == matches!(script.faces, Faces::Client(..)) => {
                    script.turns.push(Turn::Input(wire(value)));
                }
                "C:" | "S:" => script.turns.push(Turn::Output(wire(value))),
                "!" => script.turns.push(Turn::Event(repeated(value))),
                ">untagged" => accepted.untagged.extend(wire(value)),
                ">rest" => accepted.rest.extend(wire(value)),
                ">accept" => {
                    accepted.answer = value.into();
                    script.decisions.push(Decision::Accept(std::mem::take(&mut accepted)));
                }
                ">challenge" => script.decisions.push(Decision::Challenge(unescape(value))),
                ">respond" => script.decisions.push(Decision::Respond(unescape(value))),
                ">refuse" => script.decisions.push(Decision::Refuse(failure(value))),
                _ => panic!("{name}: what is {line:?}?"),
            }
        }
        script
    }

    fn set(&mut self, assignment: &str) {
        let (key, value) = assignment.split_once('=').expect("key=value");
        let words = || value.split_whitespace().map(str::to_owned).collect::<Vec<_>>();
        let Settings { imap, pop3 } = &mut self.settings;
        if let Faces::Server(_, intro) = &mut self.faces {
            return introduce(intro, key, value);
        }
        match key {
            "greeting" => (imap.greeting, pop3.greeting) = (value.into(), value.into()),
            "capabilities" => (imap.capabilities, pop3.capabilities) = (words(), words()),
            "mechanisms" => {
                let named = words()
                    .iter()
                    .filter_map(|name| Mechanism::of_sasl(name.as_bytes()))
                    .collect();
                (imap.limits.mechanisms, pop3.limits.mechanisms) = (named, named);
            }
            "id" => {
                imap.id = words()
                    .chunks(2)
                    .map(|pair| (pair[0].clone(), pair[1].clone()))
                    .collect()
            }
            "max_errors" => (imap.limits.max_errors, pop3.limits.max_errors) = (number(value), number(value)),
            "max_logins" => (imap.limits.max_logins, pop3.limits.max_logins) = (number(value), number(value)),
            _ => panic!("no setting {key}"),
        }
    }

    fn input(&self) -> Vec<u8> {
        let inputs = self.turns.iter().filter_map(|turn| match turn {
            Turn::Input(bytes) => Some(bytes.as_slice()),
            _ => None,
        });
        inputs.collect::<Vec<_>>().concat()
    }

    /// What must have come of the first `turns` turns.
    fn expected(&self, turns: usize) -> Trace {
        let mut trace = Trace::default();
        for turn in &self.turns[..turns] {
            match turn {
                Turn::Input(_) => {}
                Turn::Output(bytes) => trace.said(&mut bytes.clone()),
                Turn::Event(what) => trace.did(what),
            }
        }
        trace
    }

    /// Gives one line after the other. Before each, everything above it must have happened: so a machine that
    /// asks for a literal, or answers, too late or too early is caught.
    fn play_turns(&self, name: &str) {
        let mut player = Player::new(self, Decide::AtOnce);
        player.begin();
        for (index, turn) in self.turns.iter().enumerate() {
            let Turn::Input(bytes) = turn else { continue };
            if !matches!(self.turns.get(index.wrapping_sub(1)), Some(Turn::Input(_))) {
                assert_same(
                    name,
                    &format!("before line {index}"),
                    &player.trace,
                    &self.expected(index),
                );
            }
            player.feed(bytes);
        }
        player.end();
        assert_same(name, "turn by turn", &player.trace, &self.expected(self.turns.len()));
    }

    fn play(&self, pieces: &[&[u8]], decide: Decide) -> Trace {
        let mut player = Player::new(self, decide);
        player.begin();
        for piece in pieces {
            player.feed(piece);
        }
        player.end();
        player.trace
    }

    fn machine(&self) -> Machine {
        match &self.faces {
            Faces::Client(Protocol::Imap, channel) => Machine::Login(Box::new(imap::ImapLogin::new(
                Arc::new(self.settings.imap.clone()),
                *channel,
            ))),
            Faces::Client(Protocol::Pop3, channel) => Machine::Login(Box::new(pop3::Pop3Login::new(
                Arc::new(self.settings.pop3.clone()),
                *channel,
            ))),
            Faces::Server(Protocol::Imap, intro) => {
                Machine::Upstream(Box::new(imap::ImapUpstream::new(Introduction::clone(intro))))
            }
            Faces::Server(Protocol::Pop3, intro) => {
                Machine::Upstream(Box::new(pop3::Pop3Upstream::new(Introduction::clone(intro))))
            }
        }
    }
}

enum Machine {
    Login(Box<dyn LoginMachine>),
    Upstream(Box<dyn UpstreamMachine>),
    /// What comes from now on belongs to the relay.
    Relay(Vec<u8>),
    Ended,
}

/// Does for a machine what a session would do.
struct Player {
    machine: Machine,
    decide: Decide,
    decisions: VecDeque<Decision>,
    waiting: VecDeque<u8>,
    trace: Trace,
}

impl Player {
    fn new(script: &Script, decide: Decide) -> Self {
        Self {
            machine: script.machine(),
            decide,
            decisions: script.decisions.clone().into(),
            waiting: VecDeque::new(),
            trace: Trace::default(),
        }
    }

    fn begin(&mut self) {
        let mut out = Vec::new();
        if let Machine::Login(machine) = &mut self.machine {
            machine.greet(&mut out);
        }
        self.trace.said(&mut out);
    }

    fn feed(&mut self, bytes: &[u8]) {
        self.waiting.extend(bytes);
        while !self.waiting.is_empty() {
            let read: Vec<u8> = self.waiting.drain(..self.waiting.len().min(READ)).collect();
            match std::mem::replace(&mut self.machine, Machine::Ended) {
                Machine::Login(mut machine) => {
                    assert!(machine.wants_input(), "it neither goes on nor wants input");
                    machine.input(&read);
                    self.steps(machine);
                }
                Machine::Upstream(machine) => self.answer(machine, &read),
                Machine::Relay(mut bytes) => {
                    bytes.extend_from_slice(&read);
                    self.machine = Machine::Relay(bytes);
                }
                Machine::Ended => {}
            }
        }
    }

    fn steps(&mut self, mut machine: Box<dyn LoginMachine>) {
        loop {
            let mut out = Vec::new();
            let step = machine.step(&mut out);
            self.trace.said(&mut out);
            match step {
                Step::NeedInput => break,
                Step::StartTls => self.trace.did("starttls"),
                Step::TlsRequired(mechanism) => self.trace.did(format!("tls-required {}", mechanism.name())),
                Step::Close(ended) => {
                    self.trace.did(format!("close {}", ended_name(ended)));
                    return;
                }
                Step::Login(credentials) => {
                    self.trace.did(show(&credentials));
                    match self.decide(machine) {
                        Some(goes_on) => machine = goes_on,
                        None => return,
                    }
                }
                Step::Respond(response) => {
                    self.trace
                        .did(format!("respond {}", response.expose().escape_ascii()).trim_end());
                    match self.decide(machine) {
                        Some(goes_on) => machine = goes_on,
                        None => return,
                    }
                }
                Step::Withdrawn => self.trace.did("withdrawn"),
                Step::Reject(rejected) => {
                    self.trace.did(show_rejected(&rejected));
                    machine.refuse(&rejected.failure, &mut out);
                    self.trace.said(&mut out);
                }
            }
        }
        self.machine = Machine::Login(machine);
    }

    /// Tells a machine what comes of a login. `None`: from now on it is a relay.
    fn decide(&mut self, mut machine: Box<dyn LoginMachine>) -> Option<Box<dyn LoginMachine>> {
        let mut out = Vec::new();
        match self.decision(machine.as_mut()) {
            Decision::Refuse(failure) => machine.refuse(&failure, &mut out),
            Decision::Challenge(message) => machine.challenge(&message, &mut out),
            Decision::Respond(_) => panic!("only a mailbox server is answered"),
            Decision::Accept(accepted) => {
                let unread = machine.accept(&accepted, &mut out);
                self.trace.said(&mut out);
                self.machine = Machine::Relay(unread);
                return None;
            }
        }
        self.trace.said(&mut out);
        Some(machine)
    }

    fn decision(&mut self, machine: &mut dyn LoginMachine) -> Decision {
        while self.decide == Decide::Late && machine.wants_input() && !self.waiting.is_empty() {
            let read: Vec<u8> = self.waiting.drain(..self.waiting.len().min(READ)).collect();
            machine.input(&read);
            let mut out = Vec::new();
            assert!(
                matches!(machine.step(&mut out), Step::NeedInput) && out.is_empty(),
                "a step before the decision"
            );
        }
        self.decisions.pop_front().expect("a decision for each login")
    }

    fn answer(&mut self, mut machine: Box<dyn UpstreamMachine>, read: &[u8]) {
        let mut out = Vec::new();
        let mut step = machine.input(read, &mut out);
        self.trace.said(&mut out);
        while let UpstreamStep::Challenge(message) = &step {
            self.trace.did(format!("challenge {}", message.escape_ascii()));
            let Some(Decision::Respond(response)) = self.decisions.pop_front() else {
                panic!("no answer to a challenge");
            };
            step = machine.respond(&response, &mut out);
            self.trace.said(&mut out);
        }
        while matches!(step, UpstreamStep::StartTls) {
            self.trace.did("starttls");
            step = machine.secured(&mut out);
            self.trace.said(&mut out);
        }
        self.machine = match step {
            UpstreamStep::StartTls => unreachable!("it was followed"),
            UpstreamStep::NeedInput | UpstreamStep::Challenge(_) => Machine::Upstream(machine),
            UpstreamStep::Refused(refusal) => {
                self.trace.did(format!("refused {refusal:?}"));
                Machine::Ended
            }
            UpstreamStep::Accepted(Accepted {
                untagged, answer, rest, ..
            }) => {
                if !untagged.is_empty() {
                    self.trace.did(format!("untagged {}", untagged.escape_ascii()));
                }
                self.trace.did(format!("accepted {}", answer.escape_ascii()));
                Machine::Relay(rest)
            }
        };
    }

    fn end(&mut self) {
        match &self.machine {
            Machine::Login(machine) => {
                let IdFields { name, version, ttl } = machine.id();
                if name.is_some() || version.is_some() {
                    self.trace.did(format!("id {name:?} {version:?}"));
                }
                if let Some(ttl) = ttl {
                    self.trace.did(format!("ttl {ttl}"));
                }
                let phase = machine.phase();
                self.trace.did(format!("waits {phase}"));
            }
            Machine::Upstream(machine) => {
                let phase = machine.phase();
                self.trace.did(format!("waits {phase}"));
            }
            Machine::Relay(bytes) => {
                let bytes = bytes.escape_ascii().to_string();
                self.trace.did(format!("relay {bytes}").trim_end().to_owned());
            }
            Machine::Ended => {}
        }
        assert!(self.decisions.is_empty(), "decisions that nobody asked for");
    }
}

fn show(credentials: &Credentials) -> String {
    let Credentials {
        mechanism,
        user,
        authenticating_as,
        suffix,
        proof,
    } = credentials;
    let mut text = format!("login {} user={user:?}", mechanism.name());
    if let Some(secret) = proof.secret() {
        text += &format!(" password=\"{}\"", secret.escape_ascii());
    }
    if let Some(other) = authenticating_as {
        text += &format!(" as={other:?}");
    }
    if let Some(suffix) = suffix {
        text += &format!(" suffix={suffix}");
    }
    text
}

fn show_rejected(rejected: &Rejected) -> String {
    let Rejected {
        mechanism,
        user,
        authcid,
        failure,
    } = rejected;
    let mut text = format!("reject {} user={user:?}", mechanism.name());
    if let Some(other) = authcid {
        text += &format!(" as={other:?}");
    }
    match failure {
        LoginFailure::UnknownUser => text,
        other => format!("{text} {}", other.outcome().name()),
    }
}

fn ended_name(ended: DialogueEnd) -> &'static str {
    match ended {
        DialogueEnd::Logout => "logout",
        DialogueEnd::TooManyErrors => "too_many_errors",
        DialogueEnd::TooManyLogins => "too_many_logins",
        DialogueEnd::TooLong => "too_long",
        DialogueEnd::BytesBehindStartTls => "bytes_behind_starttls",
    }
}

fn faces(words: &str) -> Faces {
    match words {
        "imap upstream" => Faces::Server(Protocol::Imap, Box::new(introduction(Mechanism::Login))),
        "pop3 upstream" => Faces::Server(Protocol::Pop3, Box::new(introduction(Mechanism::UserPass))),
        _ => {
            let (protocol, channel) = words.split_once(' ').expect("protocol and channel");
            let protocol = if protocol == "imap" {
                Protocol::Imap
            } else {
                Protocol::Pop3
            };
            Faces::Client(
                protocol,
                match channel {
                    "tls" => Channel::Tls,
                    "certificate" => Channel::TlsWithCertificate,
                    "off" => Channel::Clear(StartTls::Off),
                    "on" => Channel::Clear(StartTls::On),
                    "only" => Channel::Clear(StartTls::Only),
                    _ => panic!("no channel {channel}"),
                },
            )
        }
    }
}

fn introduction(mechanism: Mechanism) -> Introduction {
    Introduction {
        credentials: Credentials::parse(mechanism, b"al", b"secret").expect("a good name"),
        login: "alice@a.example".to_owned(),
        client: SocketAddr::from(([203, 0, 113, 7], 50123)),
        local: SocketAddr::from(([192, 0, 2, 10], 993)),
        session: "p1-42".to_owned(),
        ttl: 4,
        client_id: IdFields::default(),
        product: ("Portico".to_owned(), "1.0".to_owned()),
        announcement: Announcement::Zimbra,
        starttls: false,
        known: None,
        // Dialogues are as they are without a memory, if they do not say otherwise.
        slowly: true,
    }
}

fn introduce(intro: &mut Introduction, key: &str, value: &str) {
    let bytes = || unescape(value);
    let text = || String::from_utf8_lossy(&unescape(value)).into_owned();
    let password = intro.credentials.proof.secret().unwrap_or_default().to_vec();
    let user = intro.credentials.user.clone();
    match key {
        "sasl" => {
            let mechanism = Mechanism::of_sasl(value.as_bytes()).unwrap_or(Mechanism::SaslPlain);
            intro.credentials = credentials(mechanism, user.as_bytes(), &password);
        }
        "as" => intro.credentials.authenticating_as = Some(text()),
        "typed" | "password" => {
            let (user, password) = if key == "typed" {
                (bytes(), password)
            } else {
                (user.into_bytes(), bytes())
            };
            intro.credentials = credentials(intro.credentials.mechanism, &user, &password);
        }
        "login" => intro.login = text(),
        "client" => intro.client.set_ip(value.parse().expect("an address")),
        "known" => {
            intro.slowly = false;
            let (greeting, capabilities) = value.split_once(" | ").expect("greeting | capabilities");
            intro.known = Some(Arc::new(KnownServer {
                greeting: greeting.to_owned(),
                capabilities: capabilities.to_owned(),
                keeps_up: false,
            }));
        }
        "slowly" => intro.slowly = value == "on",
        "starttls" => intro.starttls = value == "on",
        "session" => intro.session = text(),
        "id_name" => intro.client_id.name = Some(text()),
        "id_version" => intro.client_id.version = Some(text()),
        "announce" => {
            intro.announcement = match value {
                "off" => Announcement::None,
                "zimbra" => Announcement::Zimbra,
                "dovecot" => Announcement::Dovecot,
                _ => panic!("nobody announces as {value}"),
            }
        }
        _ => panic!("no setting {key}"),
    }
}

/// What a client has come with. The password of an exchange is its first message: [`FIRST_MESSAGE`], if no other.
fn credentials(mechanism: Mechanism, user: &[u8], password: &[u8]) -> Credentials {
    let parsed = match mechanism.proof() {
        ProofKind::Password => Credentials::parse(mechanism, user, password),
        ProofKind::Token => Credentials::with_token(mechanism, user, password),
        ProofKind::Exchange | ProofKind::Certificate => {
            let exchange = Exchange::begin(mechanism).expect("one of SASL");
            let first = if password == b"secret" { FIRST_MESSAGE } else { password };
            match exchange.response(STANDARD.encode(first).as_bytes()) {
                Progress::Done(parsed) => parsed,
                other => panic!("{other:?}"),
            }
        }
    };
    parsed.expect("good credentials")
}

fn failure(words: &str) -> LoginFailure {
    let (name, text) = words.split_once(' ').unwrap_or((words, ""));
    let text = String::from_utf8_lossy(&unescape(text)).into_owned();
    match name {
        "bad_credentials" => LoginFailure::BadCredentials,
        "unknown_user" => LoginFailure::UnknownUser,
        "not_allowed" => LoginFailure::NotAllowed(text),
        "refused" => LoginFailure::Refused(text),
        "limit" => LoginFailure::Limit(text),
        "busy" => LoginFailure::Busy(text),
        "no_route" => LoginFailure::NoRoute(text),
        "upstream_down" => LoginFailure::UpstreamDown(text),
        "directory_down" => LoginFailure::DirectoryDown(text),
        _ => panic!("no failure {name}"),
    }
}

fn number(text: &str) -> u32 {
    text.parse().expect("a number")
}

/// A line as it goes over the wire: with CRLF, unless it ends in `\c`.
fn wire(text: &str) -> Vec<u8> {
    match text.strip_suffix("\\c") {
        Some(text) => unescape(text),
        None => [&unescape(text)[..], b"\r\n"].concat(),
    }
}

/// What a machine decides stands here as it is shown, but for repeats.
fn repeated(shown: &str) -> String {
    let mut parts = shown.split("\\R{");
    let mut whole = parts.next().unwrap_or_default().to_owned();
    for part in parts {
        let (inner, behind) = part.split_once('}').expect("braces");
        let (count, text) = inner.split_once(',').expect("count and text");
        whole += &text.repeat(count.parse().expect("a count"));
        whole += behind;
    }
    whole
}

/// What stands between the first brace and the one that closes it, and what is behind.
fn braces(text: &str) -> Option<(&str, &str)> {
    let inner = text.strip_prefix('{')?;
    let mut depth = 1;
    for (at, char) in inner.char_indices() {
        depth += match char {
            '{' => 1,
            '}' => -1,
            _ => 0,
        };
        if depth == 0 {
            return Some((&inner[..at], &inner[at + 1..]));
        }
    }
    None
}

fn unescape(text: &str) -> Vec<u8> {
    let mut bytes = Vec::new();
    let mut rest = text;
    while let Some((plain, escape)) = rest.split_once('\\') {
        bytes.extend_from_slice(plain.as_bytes());
        let mut chars = escape.chars();
        let kind = chars.next().expect("something behind the backslash");
        rest = chars.as_str();
        match kind {
            'r' => bytes.push(b'\r'),
            'n' => bytes.push(b'\n'),
            't' => bytes.push(b'\t'),
            '0' => bytes.push(0),
            '\\' => bytes.push(b'\\'),
            'x' => {
                bytes.push(u8::from_str_radix(&rest[..2], 16).expect("two hex digits"));
                rest = &rest[2..];
            }
            'B' | 'R' => {
                let (inner, behind) = braces(rest).expect("braces");
                rest = behind;
                match kind {
                    'B' => bytes.extend(STANDARD.encode(unescape(inner)).into_bytes()),
                    _ => {
                        let (count, text) = inner.split_once(',').expect("count and text");
                        bytes.extend(unescape(text).repeat(count.parse().expect("a count")));
                    }
                }
            }
            _ => panic!("no escape \\{kind}"),
        }
    }
    bytes.extend_from_slice(rest.as_bytes());
    bytes
}
