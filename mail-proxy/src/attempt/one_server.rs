//! One try at one mailbox server: connect, speak until it has answered, and say what its answer means.

use std::pin::Pin;
use std::time::Duration;

use mail_directory::names;
use route_cache::{Route, UpstreamTls};
use tokio::io::AsyncWriteExt;
use tokio::time::{Instant, Sleep, sleep_until, timeout, timeout_at};

use super::certificate::not_of;
use super::servers::TryFailure;
use super::{SILENT, Taken, Tries, proxies_left};
use crate::audit::Phase;
use crate::connection::{BoxStream, ConnectionFacts};
use crate::credentials::{Credentials, Proof};
use crate::environment::ConnectError;
use crate::known_servers::ServerDoor;
use crate::login_failure::LoginFailure;
use crate::machine::{Accepted, IdFields, Introduction, UpstreamMachine, UpstreamStep};
use crate::proto::Protocol;
use crate::referral::Referral;
use crate::scratch::read_with;
use crate::server_refusal::{BINDS, NO_EXCHANGE, NOT_UNDERSTOOD, Refusal, says_too_long};
use crate::server_rules::{Announcement, Tell};
use crate::{imap, pop3};

/// How long a mailbox server may take from the call to its first word. One that accepts connections and says
/// nothing is frozen, and its users should hear so within 5 seconds.
const GREETING: Duration = Duration::from_millis(4500);

/// Octets of what a mailbox server is told at once, at most: a password of 8 KiB in base64, and ID before it.
const MAX_SAID: usize = 16 * 1024;

/// How long a server may take for answers that need no thought, where more was said behind the question.
const OVERLAP: Duration = Duration::from_secs(2);

/// Why a client with a certificate is not logged in.
const NO_MASTER: &str = "it does not take the login of mail.master";

/// What a mailbox server did that hung up.
const CLOSED: &str = "the mailbox server closed the connection";

impl Tries {
    /// Connects to the server of a route, and logs in there.
    pub(super) async fn try_at(
        &mut self,
        route: &Route,
        credentials: &Credentials,
        id: IdFields,
        slowly: bool,
    ) -> Result<Taken, TryFailure> {
        self.record.phase = None;
        self.thought = Duration::ZERO;
        self.course.send_modify(|course| course.greeted = None);
        // Names change their owners while a login is under way.
        if let Some(account) = self.certified.as_ref().filter(|account| **account != route.account) {
            return Err(TryFailure::Final(not_of(account)));
        }
        if matches!(credentials.proof, Proof::Exchange(_)) && !says_own_name(credentials, route) {
            return Err(TryFailure::Final(LoginFailure::UnknownUser));
        }
        let by_master = match &credentials.proof {
            Proof::Certificate => Some(self.by_master(route, credentials).map_err(TryFailure::Final)?),
            _ => None,
        };
        self.env.transport.turn(route).await.map_err(unreachable)?;
        let called = Instant::now();
        let tell = self.tell(route);
        let header = tell.header.map(|version| (version, &*self.facts.connection));
        let connected = self.env.transport.connect(route, header).await;
        self.record.ms_connect = Some(self.took(Phase::Connect, called));
        self.env.audit.connected(route, connected.is_ok());
        let mut server = connected.map_err(unreachable)?;
        let begun = Instant::now();
        let told = by_master.as_ref().unwrap_or(credentials);
        let mut introduction = self.introduction(route, told, id, tell.announcement);
        let door = ServerDoor {
            protocol: self.facts.protocol,
            address: route.address(),
            starttls: introduction.starttls,
        };
        let settings = self.env.settings.clone();
        let known = settings.known.of(&door);
        introduction.known = known.clone();
        introduction.slowly = slowly;
        let mut machine = self.machine(introduction);
        let waits = Waits {
            greeting: called + GREETING,
            answer: begun + settings.upstream_login,
            // A password that was said twice because the server thinks would count twice there.
            overlap: (!known.as_ref().is_some_and(|known| known.keeps_up)).then_some(OVERLAP),
        };
        let talk = self.talk(&mut server, machine.as_mut(), waits, credentials, route);
        let answer = talk.await;
        self.record.ms_login = Some(self.took(Phase::Login, begun + self.thought));
        settings
            .known
            .note(&door, known.as_deref(), machine.heard(), answer.is_ok());
        self.sent_on = None;
        let taken = answer.map(|mut accepted| {
            self.sent_on = Referral::take(&mut accepted.answer);
            (server, accepted)
        });
        taken.map_err(|unanswered| {
            self.record.phase = Some(machine.phase());
            // A message of an exchange is an answer to what was said at once.
            if machine.heard().hurried && !self.conversation.begun && unanswered.is_odd(self.facts.protocol) {
                return TryFailure::Hurried(LoginFailure::UpstreamDown(SILENT.to_owned()), door);
            }
            let long = credentials.has_long_password() && machine.phase() == "login";
            // A client that has proved nothing may have caused it, and could do so for every name.
            let unproved = matches!(credentials.proof, Proof::Exchange(_)) && !self.conversation.begun;
            match unanswered {
                Unanswered::Refused(Refusal::Broken(why)) if unproved && is_of_exchange(machine.phase(), why) => {
                    TryFailure::Doubtful(LoginFailure::ExchangeNotBorne(why.to_owned()))
                }
                Unanswered::Gone if unproved && machine.phase() == "login" => {
                    TryFailure::Again(LoginFailure::ExchangeNotBorne(CLOSED.to_owned()))
                }
                Unanswered::Gone if long => TryFailure::Again(LoginFailure::PasswordNotBorne(CLOSED.to_owned())),
                Unanswered::Refused(refusal) if long => not_borne(refusal),
                // It is not the client that it does not know.
                Unanswered::Refused(Refusal::BadCredentials) if by_master.is_some() => {
                    TryFailure::Doubtful(LoginFailure::UpstreamDown(NO_MASTER.to_owned()))
                }
                Unanswered::Refused(refusal) => failure(refusal),
                Unanswered::Unsafe(error) => unreachable(error),
                Unanswered::Gone if machine.phase() == "banner" => {
                    TryFailure::Restarts(LoginFailure::UpstreamDown(CLOSED.to_owned()))
                }
                Unanswered::Gone => TryFailure::Stale(LoginFailure::UpstreamDown(CLOSED.to_owned())),
                Unanswered::Withdrawn => TryFailure::Final(LoginFailure::Withdrawn),
                Unanswered::Stopped(failure) => TryFailure::Final(failure),
                Unanswered::Silent | Unanswered::Dropped => {
                    TryFailure::Doubtful(LoginFailure::UpstreamDown(SILENT.to_owned()))
                }
            }
        })
    }

    /// Speaks to a mailbox server until it has answered the login. The time in which its client thinks is not the server's.
    async fn talk(
        &mut self,
        server: &mut BoxStream,
        machine: &mut dyn UpstreamMachine,
        waits: Waits,
        credentials: &Credentials,
        route: &Route,
    ) -> Result<Accepted, Unanswered> {
        // It holds the password: room for the longest dialogue, so that no copy is left behind by growing, and wiped.
        let mut out = Vec::with_capacity(MAX_SAID);
        let deadline = sleep_until(waits.answer);
        tokio::pin!(deadline);
        let greeting = first_words(server, machine, &mut out, waits.greeting);
        let mut step = within(deadline.as_mut(), greeting).await?;
        // Nothing was said of a login before TLS: who is silent there is down, and does not think.
        if machine.phase() != "starttls" {
            self.note_greeting();
        }
        loop {
            within(deadline.as_mut(), say(server, &mut out)).await?;
            step = match step {
                UpstreamStep::Challenge(message) => {
                    self.note_challenge(credentials, route, &message);
                    let asked = Instant::now();
                    let response = self.ask(message).await.map_err(|_| Unanswered::Withdrawn)?;
                    let may_go_on = self.may_go_on(credentials).await;
                    self.thought += asked.elapsed();
                    may_go_on.map_err(Unanswered::Stopped)?;
                    deadline.as_mut().reset(waits.answer + self.thought);
                    machine.respond(response.expose(), &mut out)
                }
                UpstreamStep::Accepted(accepted) => return Ok(accepted),
                UpstreamStep::Refused(refusal) => return Err(Unanswered::Refused(refusal)),
                UpstreamStep::NeedInput => {
                    let heard = answer(server, machine, &mut out, &waits);
                    within(deadline.as_mut(), heard).await?
                }
                UpstreamStep::StartTls => {
                    within(deadline.as_mut(), self.secure(server, route)).await?;
                    self.note_greeting();
                    machine.secured(&mut out)
                }
            };
        }
    }

    /// Begins TLS on a connection in clear text.
    async fn secure(&mut self, server: &mut BoxStream, route: &Route) -> Result<(), Unanswered> {
        let clear = std::mem::replace(server, Box::new(tokio::io::empty()));
        *server = self
            .env
            .transport
            .secure(clear, route)
            .await
            .map_err(Unanswered::Unsafe)?;
        Ok(())
    }

    /// Learns how the messages of mailbox servers look. Those that are not ours could give the others away.
    fn note_challenge(&self, credentials: &Credentials, route: &Route, message: &[u8]) {
        if let (Proof::Exchange(first), false) = (&credentials.proof, route.external) {
            let user = names::account(&credentials.user);
            self.env.settings.decoys.note(&user, first, message);
        }
    }

    /// What a server is told of the client: as the rules say, else as Zimbra's proxy does it.
    fn tell(&self, route: &Route) -> Tell {
        let settings = &self.env.settings;
        settings.servers.tell(route).unwrap_or_else(|| {
            let announces = match self.facts.protocol {
                Protocol::Imap => settings.send_imap_id,
                Protocol::Pop3 => settings.send_pop3_xoip,
            };
            if announces { Tell::default() } else { Tell::NOTHING }
        })
    }

    fn machine(&self, introduction: Introduction) -> Box<dyn UpstreamMachine> {
        match self.facts.protocol {
            Protocol::Imap => Box::new(imap::ImapUpstream::new(introduction)),
            Protocol::Pop3 => Box::new(pop3::Pop3Upstream::new(introduction)),
        }
    }

    fn introduction(
        &self,
        route: &Route,
        credentials: &Credentials,
        client_id: IdFields,
        announcement: Announcement,
    ) -> Introduction {
        let settings = &self.env.settings;
        let ConnectionFacts { client, id, .. } = &*self.facts.connection;
        Introduction {
            credentials: credentials.clone(),
            login: route.login.to_string(),
            client: client.addr,
            local: client.local,
            session: id.clone(),
            ttl: proxies_left(&client_id),
            client_id,
            product: settings.product.clone(),
            announcement,
            starttls: match route.tls {
                UpstreamTls::StartTls { .. } => true,
                UpstreamTls::Clear => settings.servers.starttls(route),
                UpstreamTls::Implicit { .. } => false,
            },
            known: None,
            slowly: false,
        }
    }
}

/// Whether a server to which the name goes as it was typed finds the same account under it as we do.
fn says_own_name(credentials: &Credentials, route: &Route) -> bool {
    let Credentials {
        user,
        authenticating_as,
        ..
    } = credentials;
    let is_own = names::account(user) == *route.account || *user == *route.login;
    is_own && authenticating_as.as_ref().is_none_or(|name| name.contains('@'))
}

/// What a mailbox server's refusal means for the login, and for its route.
fn failure(refusal: Refusal) -> TryFailure {
    match refusal {
        Refusal::BadCredentials => TryFailure::Doubtful(LoginFailure::BadCredentials),
        Refusal::Text(text) => TryFailure::Doubtful(LoginFailure::Refused(text)),
        Refusal::Limit(text) => TryFailure::Final(LoginFailure::Limit(text)),
        Refusal::Temporary(text) => TryFailure::Busy(LoginFailure::Busy(text)),
        Refusal::Ended(text) => TryFailure::Doubtful(LoginFailure::Busy(text)),
        Refusal::Referred(referral) => TryFailure::Referred(referral),
        Refusal::WrongHost => TryFailure::Stale(LoginFailure::UpstreamDown("the account lives elsewhere".to_owned())),
        Refusal::Broken(why) => TryFailure::Final(LoginFailure::UpstreamDown(why.to_owned())),
    }
}

/// What it means that a server was not reached.
fn unreachable(error: ConnectError) -> TryFailure {
    let failure = LoginFailure::UpstreamDown(error.to_string());
    match error {
        ConnectError::Refused(_) => TryFailure::Stale(failure),
        ConnectError::TimedOut(_) => TryFailure::Doubtful(failure),
        ConnectError::Crowded(why) => TryFailure::Final(LoginFailure::Busy(why)),
    }
}

/// A mailbox server may be at its end with a password that is too long for it, and says so in many ways: Dovecot takes
/// 8 KiB of SASL. Told at once and as an outage, that would reveal which accounts exist. A server that says anything
/// else has understood it.
fn not_borne(refusal: Refusal) -> TryFailure {
    let why = match refusal {
        Refusal::Broken(why @ NOT_UNDERSTOOD) => why.to_owned(),
        Refusal::Temporary(text) | Refusal::Ended(text) if says_too_long(&text) => text,
        other => return failure(other),
    };
    TryFailure::Doubtful(LoginFailure::PasswordNotBorne(why))
}

/// Whether a server that has broken off with an exchange has done so because of the client's message or mechanism.
fn is_of_exchange(phase: &str, why: &str) -> bool {
    phase == "login" || [BINDS, NO_EXCHANGE].contains(&why)
}

/// What a mailbox server is given before its silence is taken for something else.
struct Waits {
    /// When it must have greeted, and agreed to TLS.
    greeting: Instant,
    /// When it must have answered the login, but for the time in which the client thinks.
    answer: Instant,
    /// How long it may take for an answer that needs no thought; `None`: as long as for a login.
    overlap: Option<Duration>,
}

/// Why a mailbox server did not take a login.
enum Unanswered {
    Refused(Refusal),
    /// The client has given up.
    Withdrawn,
    /// While the client was thinking, something has come in between.
    Stopped(LoginFailure),
    /// TLS was to begin, and has not.
    Unsafe(ConnectError),
    Gone,
    /// It has not said what needs no thought.
    Dropped,
    Silent,
}

impl Unanswered {
    /// Whether it may come from a login that was said at once with what stands before it. What speaks of the password, of
    /// a limit, of another server or of this moment is an answer, and is not asked for twice.
    fn is_odd(&self, protocol: Protocol) -> bool {
        match self {
            Self::Refused(Refusal::Broken(_)) | Self::Gone | Self::Dropped => true,
            // POP3 has no other word for what it does not understand.
            Self::Refused(Refusal::Text(_)) => protocol == Protocol::Pop3,
            Self::Refused(_) | Self::Unsafe(_) | Self::Withdrawn | Self::Stopped(_) | Self::Silent => false,
        }
    }
}

/// Does something with a mailbox server, but not for longer than its login may take.
async fn within<T>(
    deadline: Pin<&mut Sleep>,
    work: impl Future<Output = Result<T, Unanswered>>,
) -> Result<T, Unanswered> {
    tokio::select! {
        biased;
        done = work => done,
        () = deadline => Err(Unanswered::Silent),
    }
}

/// Says what is to be said, and wipes it.
async fn say(server: &mut BoxStream, out: &mut Vec<u8>) -> Result<(), Unanswered> {
    if out.is_empty() {
        return Ok(());
    }
    server.write_all(out).await.map_err(|_| Unanswered::Gone)?;
    server.flush().await.map_err(|_| Unanswered::Gone)?;
    out.fill(0);
    out.clear();
    Ok(())
}

/// Hears the next answer, which must come soon where it needs no thought.
async fn answer(
    server: &mut BoxStream,
    machine: &mut dyn UpstreamMachine,
    out: &mut Vec<u8>,
    waits: &Waits,
) -> Result<UpstreamStep, Unanswered> {
    if machine.phase() == "starttls" {
        return first_words(server, machine, out, waits.greeting).await;
    }
    match waits.overlap.filter(|_| machine.is_overlapping()) {
        Some(overlap) => {
            let heard = timeout(overlap, hear(server, machine, out)).await;
            heard.unwrap_or(Err(Unanswered::Dropped))
        }
        None => hear(server, machine, out).await,
    }
}

/// Hears what a mailbox server says unasked, and what is to be said then.
async fn first_words(
    server: &mut BoxStream,
    machine: &mut dyn UpstreamMachine,
    out: &mut Vec<u8>,
    deadline: Instant,
) -> Result<UpstreamStep, Unanswered> {
    match timeout_at(deadline, hear(server, machine, out)).await {
        Ok(heard) => heard,
        Err(_) => Err(Unanswered::Silent),
    }
}

/// One read, and what the machine makes of it.
async fn hear(
    server: &mut BoxStream,
    machine: &mut dyn UpstreamMachine,
    out: &mut Vec<u8>,
) -> Result<UpstreamStep, Unanswered> {
    let heard = read_with(server, |bytes| match bytes {
        [] => None,
        _ => Some(machine.input(bytes, out)),
    });
    heard.await.ok().flatten().ok_or(Unanswered::Gone)
}
