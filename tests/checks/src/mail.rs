//! The machines of IMAP and POP3, played as a session would play them.
//!
//! The invariants of every machine: no panic, bounded memory, bounded output, and the same words and deeds however
//! the input was cut.

use std::net::SocketAddr;
use std::sync::Arc;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use mail_proxy::line::MAX_HELD;
use mail_proxy::login_failure::LoginFailure;
use mail_proxy::sasl::{Exchange, Progress};
use mail_proxy::{
    Accepted, Announcement, Channel, Credentials, DialogueEnd, IdFields, Introduction, LoginLimits, LoginMachine,
    Mechanism, Proof, StartTls, Step, UpstreamMachine, UpstreamStep, imap, pop3,
};

/// Octets of one read.
const READ: usize = 4096;

/// Octets of a message of SCRAM.
const MAX_MESSAGE: usize = 2048;

/// What a mailbox server says in an exchange.
const SALT: &[u8] = b"r=ab,s=QQ==,i=1";
const SIGNATURE: &[u8] = b"v=QQ==";

/// Octets of one line of a mailbox server.
const SERVER_LINE: usize = 64 * 1024;

/// Octets that a login machine may say in all: its own limit on answers, one long answer more, refusals, a goodbye.
const MAX_SAID: usize = 80 * 1024;

/// Both IMAP machines.
pub(crate) fn imap(bytes: &[u8]) {
    let Some(plan) = Plan::parse(bytes) else { return };
    let settings = Arc::new(imap::Settings {
        limits: limits(),
        ..imap::Settings::default()
    });
    check_login(
        &plan,
        |channel| imap::ImapLogin::new(settings.clone(), channel),
        imap::ImapLogin::held,
    );
    check_upstream(&plan, imap::ImapUpstream::new);
}

/// Both POP3 machines.
pub(crate) fn pop3(bytes: &[u8]) {
    let Some(plan) = Plan::parse(bytes) else { return };
    let settings = Arc::new(pop3::Settings {
        limits: limits(),
        ..pop3::Settings::default()
    });
    check_login(
        &plan,
        |channel| pop3::Pop3Login::new(settings.clone(), channel),
        pop3::Pop3Login::held,
    );
    check_upstream(&plan, pop3::Pop3Upstream::new);
}

fn limits() -> LoginLimits {
    LoginLimits {
        mechanisms: Mechanism::of_all_sasl().collect(),
        ..LoginLimits::default()
    }
}

/// The first octets of an input choose the channel and the cut, the rest is what is read.
struct Plan<'a> {
    /// The channel of the client.
    channel: Channel,
    /// Whether an upstream machine is to use SASL.
    sasl: bool,
    /// Whether it is to relay the client's messages.
    relays: bool,
    /// What is read.
    bytes: &'a [u8],
    cut: usize,
}

impl<'a> Plan<'a> {
    /// `None`: too short to say anything.
    fn parse(data: &'a [u8]) -> Option<Self> {
        let (&[choice, high, low], bytes) = data.split_first_chunk::<3>()?;
        let channel = match choice & 3 {
            0 => Channel::Tls,
            1 => Channel::Clear(StartTls::Off),
            2 => Channel::Clear(StartTls::On),
            _ => Channel::Clear(StartTls::Only),
        };
        let cut = usize::from(u16::from_be_bytes([high, low])) % (bytes.len() + 1);
        Some(Plan {
            channel,
            sasl: choice & 4 != 0,
            relays: choice & 8 != 0,
            bytes,
            cut,
        })
    }

    /// The same input, whole, cut in two, and octet by octet.
    fn ways(&self) -> [Vec<&'a [u8]>; 3] {
        let (first, second) = self.bytes.split_at(self.cut);
        [vec![self.bytes], vec![first, second], self.bytes.chunks(1).collect()]
    }
}

/// Plays a login machine in every way. `held` tells how many octets the machine keeps.
fn check_login<M: LoginMachine>(plan: &Plan<'_>, new: impl Fn(Channel) -> M, held: impl Fn(&M) -> usize) {
    let [whole, others @ ..] = plan.ways().map(|pieces| login(new(plan.channel), &pieces, &held));
    for other in others {
        // Octets behind STARTTLS are an attack if they are there when it is read, and TLS records otherwise.
        if !whole.contains("StartTls") && !whole.contains("BytesBehindStartTls") {
            assert_eq!(whole, other);
        }
    }
}

/// Plays a machine that faces a server in every way.
fn check_upstream<M: UpstreamMachine>(plan: &Plan<'_>, new: impl Fn(Introduction) -> M) {
    let [whole, others @ ..] = plan.ways().map(|pieces| upstream(new(introduction(plan)), &pieces));
    for other in others {
        assert_eq!(whole, other);
    }
}

fn login<M: LoginMachine>(mut machine: M, pieces: &[&[u8]], held: impl Fn(&M) -> usize) -> String {
    let mut out = Vec::new();
    let mut did = String::new();
    let mut logins = 0;
    for read in pieces.iter().flat_map(|piece| piece.chunks(READ)) {
        assert!(machine.wants_input(), "it neither goes on nor wants input");
        machine.input(read);
        assert!(held(&machine) <= MAX_HELD + READ);
        loop {
            let step = machine.step(&mut out);
            assert!(out.len() <= MAX_SAID);
            match step {
                Step::NeedInput => break,
                Step::Login(credentials) => {
                    check_credentials(&credentials);
                    did += &format!("{credentials:?} {:?}\n", credentials.proof.secret());
                    if matches!(credentials.proof, Proof::Exchange(_)) {
                        machine.challenge(SALT, &mut out);
                        continue;
                    }
                    logins += 1;
                    if logins == 2 {
                        let rest = accept(machine, &mut out);
                        let seen: usize = pieces.iter().map(|piece| piece.len()).sum();
                        assert!(rest <= seen);
                        return did + &String::from_utf8_lossy(&out);
                    }
                    machine.refuse(&LoginFailure::Refused("NO \r\nx".to_owned()), &mut out);
                }
                Step::Respond(response) => {
                    let response = response.expose();
                    assert!(response.len() <= MAX_MESSAGE && !response.contains(&b'\n'));
                    did += &format!("{response:?}\n");
                    match response.is_empty() {
                        true => machine.refuse(&LoginFailure::BadCredentials, &mut out),
                        false => machine.challenge(SIGNATURE, &mut out),
                    }
                }
                Step::Close(ended) => {
                    did += &format!("{ended:?}\n");
                    assert_eq!(held(&machine), 0);
                    assert!(ended != DialogueEnd::BytesBehindStartTls || out.windows(5).all(|five| five != b"* OK "));
                    return did + &String::from_utf8_lossy(&out);
                }
                Step::Reject(rejected) => {
                    did += "Reject\n";
                    machine.refuse(&rejected.failure, &mut out);
                }
                step => did += &format!("{step:?}\n"),
            }
        }
    }
    did + machine.phase() + &String::from_utf8_lossy(&out)
}

fn accept<M: LoginMachine>(machine: M, out: &mut Vec<u8>) -> usize {
    let accepted = Accepted {
        untagged: b"* X\r\n".to_vec(),
        answer: b"OK".to_vec(),
        rest: b"* Y\r\n".to_vec(),
        capabilities: None,
    };
    Box::new(machine).accept(&accepted, out).len()
}

/// What the rest of the house relies on.
pub(crate) fn check_credentials(credentials: &Credentials) {
    for name in [Some(&credentials.user), credentials.authenticating_as.as_ref()]
        .into_iter()
        .flatten()
    {
        let left_to_certificate = matches!(credentials.proof, Proof::Certificate);
        assert!(left_to_certificate || !name.is_empty());
        assert!(name.len() <= 256 && !name.chars().any(char::is_control));
    }
    let password = credentials.proof.secret().unwrap_or_default();
    assert!(password.len() <= 12 * 1024 && !password.iter().any(|byte| b"\0\r\n".contains(byte)));
}

fn upstream<M: UpstreamMachine>(mut machine: M, pieces: &[&[u8]]) -> String {
    let mut out = Vec::new();
    let mut reads = pieces.iter().flat_map(|piece| piece.chunks(READ));
    let mut did = String::new();
    let mut challenges = 0;
    while let Some(read) = reads.next() {
        let mut step = machine.input(read, &mut out);
        while let UpstreamStep::Challenge(message) = &step {
            challenges += 1;
            assert!(challenges <= 2 && message.len() <= MAX_MESSAGE);
            step = machine.respond(b"c=biws,r=ab,p=QQ==", &mut out);
        }
        match step {
            UpstreamStep::NeedInput | UpstreamStep::Challenge(_) => {}
            UpstreamStep::Accepted(Accepted {
                untagged, answer, rest, ..
            }) => {
                assert!(untagged.len() <= SERVER_LINE && answer.len() <= SERVER_LINE && rest.len() <= read.len());
                let rest = [rest, reads.flatten().copied().collect()].concat();
                did = format!("{untagged:?} {answer:?} {rest:?}");
                break;
            }
            UpstreamStep::StartTls => unreachable!("nobody has asked for it"),
            UpstreamStep::Refused(refusal) => {
                did = format!("{refusal:?}");
                break;
            }
        }
    }
    // At most: ID or XOIP, CAPABILITY or CAPA, a login, a name, a password, or a message and two more, each on its line.
    assert!(out.len() <= 4096 && out.iter().filter(|&&byte| byte == b'\n').count() <= 6);
    did + machine.phase() + &String::from_utf8_lossy(&out)
}

fn introduction(plan: &Plan<'_>) -> Introduction {
    let sasl = plan.sasl;
    let mechanism = if sasl { Mechanism::SaslPlain } else { Mechanism::Login };
    let credentials = match plan.relays {
        false => Credentials::parse(mechanism, b"al/tb", b"secret"),
        true => {
            let exchange = Exchange::begin(Mechanism::ScramSha1).expect("one of SASL");
            match exchange.response(STANDARD.encode("n,,n=al,r=ab").as_bytes()) {
                Progress::Done(parsed) => parsed,
                other => panic!("{other:?}"),
            }
        }
    };
    Introduction {
        credentials: credentials.expect("good credentials"),
        login: "alice@a.example".to_owned(),
        client: SocketAddr::from(([203, 0, 113, 7], 50123)),
        local: SocketAddr::from(([192, 0, 2, 10], 993)),
        session: "p1\r\n 42".to_owned(),
        ttl: 4,
        client_id: IdFields {
            name: Some("x\"\r\n".to_owned()),
            version: Some("1,2".to_owned()),
            ttl: None,
        },
        product: ("Portico".to_owned(), "1.0".to_owned()),
        starttls: false,
        known: None,
        slowly: false,
        announcement: if sasl {
            Announcement::Dovecot
        } else {
            Announcement::Zimbra
        },
    }
}
