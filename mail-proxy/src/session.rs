//! One mail connection from greeting to end, in the order in which things happen.
//!
//! The types say how far a session is: without `Credentials` there is nothing to look up, without a `Route`
//! nothing to connect to, and a `LoggedIn` exists only when the mailbox server has said OK.

use std::sync::Arc;
use std::time::Duration;

use tokio::io::AsyncWriteExt;
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::{Instant, timeout, timeout_at};

use crate::attempt::{Attempt, Login, Waiting};
use crate::audit::{Audit, EndedBy, Event, Outcome, Phase, Record};
use crate::connection::{BoxStream, ConnectionFacts};
use crate::conversation::Challenge;
use crate::credentials::{Credentials, Rejected};
use crate::environment::{Connection, Facts, SessionEnv, Settings};
use crate::handle::{CloseReason, ConnectionHandle, Drain, logins_end};
use crate::login_failure::LoginFailure;
use crate::machine::{Channel, DialogueEnd, LoginMachine, Step};
use crate::mechanism::Mechanism;
use crate::proto::Protocol;
use crate::relay::{Farewell, Relay, RelayEnd};
use crate::scratch::read_with;
use crate::{imap, pop3};

/// What an IMAP client hears when its session is ended by another side.
static IMAP_FAREWELL: Farewell = Farewell {
    usual: imap::FAREWELL,
    kick: imap::KICKED,
    moved: imap::MOVED,
};

/// How long we try to hand over the last words before a connection is closed.
const FAREWELL: Duration = Duration::from_secs(2);

/// How long a client may take for its answer within an exchange. A mailbox server waits with it, for somebody who has
/// proved nothing yet.
const ANSWER: Duration = Duration::from_secs(15);

/// Takes one connection from greeting to end.
pub fn serve(connection: Connection, env: SessionEnv) -> impl Future<Output = ()> + Send {
    // The dialogue before login is large and short, the relay small and long: the first is boxed, so that the
    // future that lives for hours holds no room for it.
    let login = Box::pin(login(connection, env));
    async move {
        let Some(mut session) = login.await else { return };
        let Established {
            relay,
            drain,
            facts,
            farewell,
            ..
        } = &mut *session;
        let ended = relay.run(drain, &facts.handle, farewell).await;
        Box::pin(session.end(ended)).await;
    }
}

/// A session whose login the mailbox server has accepted. It may live for days: what is known elsewhere is not kept
/// here once more.
struct Established {
    relay: Relay,
    drain: watch::Receiver<Drain>,
    facts: Arc<ConnectionFacts>,
    farewell: &'static Farewell,
    authcid: Option<Box<str>>,
    tier: Option<&'static str>,
    generation: u64,
    audit: Arc<dyn Audit>,
    /// Attempts before that which was good.
    behind: Option<JoinSet<()>>,
    /// Counts it among the sessions.
    _place: Option<Box<dyn Send>>,
}

impl Established {
    async fn end(self: Box<Self>, ended: RelayEnd) {
        let record = self.record(ended);
        let Self {
            relay, audit, behind, ..
        } = *self;
        drop(relay);
        audit.record(record);
        if let Some(behind) = behind {
            behind.join_all().await;
        }
    }

    fn record(&self, ended: RelayEnd) -> Record {
        let login = self.facts.handle.logins().into_iter().next();
        let (user, account, route) = match login {
            Some(login) => (Some(login.user), Some(login.account), Some(login.route)),
            None => (None, None, None),
        };
        Record {
            user,
            authcid: self.authcid.as_deref().map(str::to_owned),
            account,
            route,
            tier: self.tier,
            bytes_in: Some(ended.bytes_in),
            bytes_out: Some(ended.bytes_out),
            duration: Some(seconds(self.facts.accepted.elapsed())),
            ended_by: Some(ended.by),
            why: ended.why.map(str::to_owned),
            ..self.facts.record(Event::SessionEnd, self.generation)
        }
    }
}

/// From greeting to login; `None` when the connection ended before, which has then been recorded.
async fn login(connection: Connection, env: SessionEnv) -> Option<Box<Established>> {
    let mut dialogue = Dialogue::new(connection, env);
    match dialogue.run().await {
        Ok(login) => {
            dialogue.learn(&login);
            Some(dialogue.into_relay(login))
        }
        Err(left) => {
            dialogue.left(left).await;
            None
        }
    }
}

/// A connection before login.
struct Dialogue {
    stream: BoxStream,
    machine: Box<dyn LoginMachine>,
    out: Vec<u8>,
    deadline: Instant,
    /// When the answer to credentials is due that have had none: until then the connection is counted, whoever hangs
    /// up. Given back at once for a name that nobody has and later for others, its place would tell who exists.
    due: Option<Instant>,
    heard: bool,
    /// How often a password was refused because the channel is clear text, and how it was offered last.
    tls_required: Option<(Mechanism, u64)>,
    facts: Arc<Facts>,
    env: SessionEnv,
    /// Attempts whose client has gone or been answered, if there are any.
    behind: Option<JoinSet<()>>,
}

/// Why a connection ended before login.
enum EarlyEnd {
    ClientGone,
    Deadline,
    Told(CloseReason),
    TlsFailed(String),
    By(DialogueEnd),
}

impl Dialogue {
    fn new(connection: Connection, env: SessionEnv) -> Self {
        let Connection {
            stream,
            facts: connection,
            protocol,
            starttls,
            login_deadline,
        } = connection;
        let accepted = connection.accepted;
        let facts = Arc::new(Facts {
            connection,
            protocol,
            starttls,
        });
        Self {
            stream,
            machine: facts.machine(&env.settings),
            out: Vec::new(),
            deadline: accepted + login_deadline,
            due: None,
            heard: false,
            tls_required: None,
            facts,
            env,
            behind: None,
        }
    }

    async fn run(&mut self) -> Result<Login, EarlyEnd> {
        self.machine.greet(&mut self.out);
        loop {
            let step = self.machine.step(&mut self.out);
            self.flush().await?;
            match step {
                Step::NeedInput => self.read().await?,
                Step::StartTls => self.start_tls().await?,
                Step::Login(credentials) => {
                    if let Some(login) = self.attempt(credentials).await? {
                        return Ok(login);
                    }
                }
                Step::Reject(rejected) => {
                    let _waits = self.facts.connection.handle.waits_for_us();
                    self.reject(rejected).await?;
                }
                Step::TlsRequired(mechanism) => self.note_tls_required(mechanism),
                // Both belong to an attempt, which hears of them itself.
                Step::Respond(_) | Step::Withdrawn => {}
                Step::Close(ended) => return Err(EarlyEnd::By(ended)),
            }
        }
    }

    async fn flush(&mut self) -> Result<(), EarlyEnd> {
        if self.out.is_empty() {
            return Ok(());
        }
        let out = std::mem::take(&mut self.out);
        let write = timeout_at(self.deadline, async {
            self.stream.write_all(&out).await?;
            self.stream.flush().await
        });
        let written = tokio::select! {
            biased;
            written = write => written,
            // A client that does not read is ended like any other.
            order = self.facts.connection.handle.ended() => return Err(EarlyEnd::Told(order)),
        };
        match written {
            Ok(Ok(())) => Ok(()),
            Ok(Err(_)) => Err(EarlyEnd::ClientGone),
            Err(_) => Err(EarlyEnd::Deadline),
        }
    }

    async fn read(&mut self) -> Result<(), EarlyEnd> {
        let machine = &mut self.machine;
        let read = read_with(&mut self.stream, |bytes| {
            machine.input(bytes);
            bytes.len()
        });
        tokio::select! {
            read = timeout_at(self.deadline, read) => match read {
                Ok(Ok(0) | Err(_)) => Err(EarlyEnd::ClientGone),
                Ok(Ok(_)) => {
                    self.heard = true;
                    self.facts.connection.handle.heard();
                    Ok(())
                }
                Err(_) => Err(EarlyEnd::Deadline),
            },
            order = logins_end(&mut self.env.drain, &self.facts.connection.handle) => Err(EarlyEnd::Told(order)),
        }
    }

    /// The machine dies with the clear-text channel, so nothing said before TLS survives it.
    async fn start_tls(&mut self) -> Result<(), EarlyEnd> {
        self.record_tls_required();
        let stream = std::mem::replace(&mut self.stream, Box::new(tokio::io::empty()));
        let local = self.facts.connection.client.local.ip();
        let begun = Instant::now();
        let handshake = self.env.transport.start_tls(stream, self.facts.protocol, local);
        let done = tokio::select! {
            done = timeout_at(self.deadline, handshake) => done,
            order = self.facts.connection.handle.ended() => return Err(EarlyEnd::Told(order)),
        };
        match done {
            Ok(Ok((stream, tls))) => {
                let proto = self.facts.protocol.proto();
                self.env.audit.phase(Phase::Tls, proto, begun.elapsed());
                self.stream = stream;
                let facts: &mut ConnectionFacts = Arc::make_mut(&mut Arc::make_mut(&mut self.facts).connection);
                facts.tls = Some(tls);
                self.machine = self.facts.machine(&self.env.settings);
                Ok(())
            }
            Ok(Err(error)) => Err(EarlyEnd::TlsFailed(error.to_string())),
            Err(_) => Err(EarlyEnd::Deadline),
        }
    }

    /// One login attempt, recorded whatever comes of it, when it ends. `None`: it failed, the client has been told,
    /// and the dialogue goes on.
    async fn attempt(&mut self, credentials: Credentials) -> Result<Option<Login>, EarlyEnd> {
        let mut begun = self.credentials_complete();
        let mut attempt = Attempt::begin(self.facts.clone(), self.env.clone(), credentials, self.machine.id());
        let failure = loop {
            let waits = self.facts.connection.handle.waits_for_us();
            let overdue = attempt.overdue(begun + self.env.settings.auth_wait);
            let live = &self.facts.connection.handle;
            let challenge = tokio::select! {
                biased;
                result = &mut attempt.running => match result {
                    Ok(login) => return Ok(Some(login)),
                    // The client has had its answer.
                    Err(LoginFailure::Withdrawn) => return Ok(None),
                    Err(failure) => break failure,
                },
                Some(challenge) = attempt.messages.next() => challenge,
                left = abandoned(&mut self.stream, self.machine.as_mut(), &mut self.env.drain, live) => {
                    self.leave_behind(attempt, left.waiting());
                    return Err(left);
                }
                () = overdue => {
                    let held = attempt.held();
                    self.leave_behind(attempt, Waiting::Answered);
                    return self.refuse(LoginFailure::BadCredentials, begun, held).await.map(|()| None);
                }
            };
            drop(waits);
            if let Err(left) = self.relay(challenge, begun).await {
                self.leave_behind(attempt, left.waiting());
                return Err(left);
            }
            begun = self.credentials_complete();
        };
        let held = attempt.held();
        // With it goes the password.
        drop(attempt);
        self.refuse(failure, begun, held).await.map(|()| None)
    }

    /// Says a message of the mailbox server to the client, and hands its answer back. While the client thinks, the time
    /// is its own; our work before that was not.
    async fn relay(&mut self, challenge: Challenge, begun: Instant) -> Result<(), EarlyEnd> {
        let deadline = self.deadline + begun.elapsed();
        self.deadline = deadline.min(Instant::now() + ANSWER);
        let relayed = self.relay_in_time(challenge).await;
        self.deadline = deadline;
        relayed
    }

    async fn relay_in_time(&mut self, challenge: Challenge) -> Result<(), EarlyEnd> {
        let Challenge { message, answer } = challenge;
        self.machine.challenge(&message, &mut self.out);
        loop {
            self.flush().await?;
            match self.machine.step(&mut self.out) {
                Step::NeedInput => self.read().await?,
                Step::Respond(response) => {
                    // One that does not wait for it any more says so itself.
                    let _heard = answer.send(response);
                    return Ok(());
                }
                Step::Close(ended) => return Err(EarlyEnd::By(ended)),
                // With the sender goes the attempt.
                _ => return self.flush().await,
            }
        }
    }

    /// The audit log still waits for its outcome, so the connection goes for no other.
    fn leave_behind(&mut self, attempt: Attempt, waiting: Waiting) {
        let (drain, live) = (self.env.drain.clone(), self.facts.connection.handle.clone());
        let waits = live.waits_for_us();
        self.behind.get_or_insert_default().spawn(async move {
            attempt.finish(waiting, drain, live).await;
            drop(waits);
        });
    }

    /// The moment from which an attempt's time counts.
    fn credentials_complete(&mut self) -> Instant {
        let now = Instant::now();
        self.due = Some(now + self.env.settings.auth_wait);
        now
    }

    /// Credentials about which no server may be asked.
    async fn reject(&mut self, rejected: Rejected) -> Result<(), EarlyEnd> {
        let begun = self.credentials_complete();
        let Rejected {
            mechanism,
            user,
            authcid,
            failure,
        } = rejected;
        self.env.audit.record(Record {
            mechanism: Some(mechanism.name()),
            user,
            authcid,
            outcome: Some(failure.outcome()),
            why: (failure == LoginFailure::UnknownUser).then(|| "no account can have this name or password".to_owned()),
            ..self.facts.connection.record(Event::Login, self.env.generation)
        });
        self.refuse(failure, begun, Duration::ZERO).await
    }

    /// The machine has said no to a password in clear text already.
    fn note_tls_required(&mut self, mechanism: Mechanism) {
        let before = self.tls_required.map_or(0, |(_, count)| count);
        self.tls_required = Some((mechanism, before + 1));
    }

    /// The audit log hears of all of them once, when the clear text ends: no client may fill it without a login.
    fn record_tls_required(&mut self) {
        let Some((mechanism, count)) = self.tls_required.take() else {
            return;
        };
        let mut record = self.facts.connection.record(Event::Login, self.env.generation);
        record.mechanism = Some(mechanism.name());
        record.outcome = Some(Outcome::TlsRequired);
        record.count = (count > 1).then_some(count);
        self.env.audit.record(record);
    }

    /// Tells the client, after the wait where there is one. The wait counts from the moment the credentials were
    /// complete and the throttle has let them through, so that the time a lookup or a mailbox server took tells nothing.
    async fn refuse(&mut self, failure: LoginFailure, begun: Instant, held: Duration) -> Result<(), EarlyEnd> {
        let failure = match self.env.settings.pass_errors {
            true => failure,
            false => failure.in_our_words(),
        };
        if let Some(wait) = failure.wait(self.env.settings.auth_wait) {
            self.wait_until(begun + held + wait).await?;
        }
        self.due = None;
        // Our own work and waiting is not the client's time.
        self.deadline += begun.elapsed();
        self.machine.refuse(&failure, &mut self.out);
        self.flush().await
    }

    /// Waits, but not for a client that has gone. What it says meanwhile is kept for later, up to the machine's limit.
    async fn wait_until(&mut self, until: Instant) -> Result<(), EarlyEnd> {
        tokio::select! {
            () = tokio::time::sleep_until(until) => Ok(()),
            left = abandoned(&mut self.stream, self.machine.as_mut(), &mut self.env.drain, &self.facts.connection.handle) => Err(left),
        }
    }

    /// Notes what the server of a login has said of itself.
    fn learn(&self, login: &Login) {
        let Settings { imap, pop3, .. } = &*self.env.settings;
        let learned = match self.facts.protocol {
            Protocol::Imap => &imap.learned,
            Protocol::Pop3 => &pop3.learned,
        };
        let (name, now) = (self.facts.name(), Instant::now().into_std());
        learned.note(&login.route, name, login.accepted.capabilities.as_deref(), now);
    }

    fn into_relay(self, login: Login) -> Box<Established> {
        let Login {
            server,
            accepted,
            authcid,
            tier,
            place,
            ..
        } = login;
        let Self {
            stream,
            machine,
            mut out,
            facts,
            env,
            behind,
            ..
        } = self;
        let pipelined = machine.accept(&accepted, &mut out);
        let (idle, farewell) = match facts.protocol {
            Protocol::Imap => (env.settings.imap_idle, &IMAP_FAREWELL),
            // A POP3 server says nothing that was not asked for.
            Protocol::Pop3 => (env.settings.pop3_idle, &Farewell::NONE),
        };
        let mut relay = Relay::new(stream, server, idle);
        relay.owe_client(out);
        relay.owe_server(pipelined);
        let SessionEnv {
            drain,
            audit,
            generation,
            ..
        } = env;
        Box::new(Established {
            relay,
            drain,
            facts: facts.connection.clone(),
            farewell,
            authcid: authcid.map(String::into_boxed_str),
            tier,
            generation,
            audit,
            behind,
            _place: place,
        })
    }

    /// Counts no more when the answer would have been due, even if an attempt is still under way.
    async fn give_up_place(&mut self) {
        let live = self.facts.connection.handle.clone();
        if let Some(due) = self.due {
            let _waits = live.waits_for_us();
            tokio::select! {
                () = tokio::time::sleep_until(due) => {}
                _ = logins_end(&mut self.env.drain, &live) => {}
            }
        }
        live.give_up_place();
    }

    /// The end of a connection that never logged in.
    async fn left(mut self, left: EarlyEnd) {
        let phase = self.machine.phase();
        let (by, outcome, why, bye) = left.describe();
        if let Some(text) = bye {
            self.machine.bye(text, &mut self.out);
        }
        let _ = timeout(FAREWELL, async {
            self.stream.write_all(&self.out).await?;
            self.stream.shutdown().await
        })
        .await;
        self.record_tls_required();
        let duration = self.facts.connection.accepted.elapsed();
        self.stream = Box::new(tokio::io::empty());
        self.give_up_place().await;
        if let Some(behind) = self.behind {
            behind.join_all().await;
        }
        // A balancer's health check connects and leaves: not recorded.
        // Nor is a silent connection of a flood, whose place is needed; these are counted.
        if matches!(left, EarlyEnd::ClientGone | EarlyEnd::Told(CloseReason::Evict)) && !self.heard {
            return;
        }
        let mut record = self.facts.connection.record(Event::SessionEnd, self.env.generation);
        record.phase = Some(phase);
        record.outcome = outcome;
        record.why = why;
        record.ended_by = Some(by);
        record.duration = Some(seconds(duration));
        self.env.audit.record(record);
    }
}

impl EarlyEnd {
    /// Who waits for an attempt that was under way.
    fn waiting(&self) -> Waiting {
        match self {
            Self::Told(order) => Waiting::Ended(*order),
            Self::ClientGone | Self::Deadline | Self::TlsFailed(_) | Self::By(_) => Waiting::Gone,
        }
    }

    /// Who ended it, the outcome and the reason for the audit log, and what the client hears.
    fn describe(&self) -> (EndedBy, Option<Outcome>, Option<String>, Option<&'static str>) {
        match self {
            Self::ClientGone => (EndedBy::Client, Some(Outcome::ClientGone), None, None),
            Self::Deadline => (
                EndedBy::Portico,
                None,
                Some("login deadline".to_owned()),
                Some("login takes too long"),
            ),
            Self::Told(CloseReason::Drain) => (
                EndedBy::Portico,
                None,
                Some("drain".to_owned()),
                Some("server is going down, please try again"),
            ),
            Self::Told(CloseReason::Evict) => (
                EndedBy::Portico,
                None,
                Some("too many connections".to_owned()),
                Some("too many connections, please try again"),
            ),
            Self::Told(CloseReason::Moved) => (
                EndedBy::Portico,
                None,
                Some("moved".to_owned()),
                Some("your mailbox has moved, please log in again"),
            ),
            Self::Told(CloseReason::Kick) => (EndedBy::Kick, None, None, Some("session ended by the administrator")),
            Self::TlsFailed(why) => (
                EndedBy::Client,
                Some(Outcome::ProtocolError),
                Some(format!("STARTTLS: {why}")),
                None,
            ),
            Self::By(DialogueEnd::Logout) => (EndedBy::Client, None, Some("logout".to_owned()), None),
            Self::By(DialogueEnd::TooManyErrors) => (
                EndedBy::Portico,
                Some(Outcome::ProtocolError),
                Some("too many bad commands".to_owned()),
                None,
            ),
            Self::By(DialogueEnd::TooManyLogins) => {
                (EndedBy::Portico, None, Some("too many failed logins".to_owned()), None)
            }
            Self::By(DialogueEnd::TooLong) => (
                EndedBy::Portico,
                Some(Outcome::ProtocolError),
                Some("line or literal too long".to_owned()),
                None,
            ),
            Self::By(DialogueEnd::BytesBehindStartTls) => (
                EndedBy::Portico,
                Some(Outcome::ProtocolError),
                Some("bytes behind STARTTLS".to_owned()),
                None,
            ),
        }
    }
}

impl Facts {
    fn machine(&self, settings: &Settings) -> Box<dyn LoginMachine> {
        let channel = match &self.connection.tls {
            Some(tls) if settings.master.is_some() && tls.certificate.is_some() => Channel::TlsWithCertificate,
            Some(_) => Channel::Tls,
            None => Channel::Clear(self.starttls),
        };
        let name = self.name().map(str::to_owned);
        match self.protocol {
            Protocol::Imap => Box::new(imap::ImapLogin::new(settings.imap.clone(), channel).named(name)),
            Protocol::Pop3 => Box::new(pop3::Pop3Login::new(settings.pop3.clone(), channel).named(name)),
        }
    }

    /// The name that the client has asked for in TLS.
    fn name(&self) -> Option<&str> {
        self.connection.tls.as_ref()?.sni.as_deref()
    }
}

/// Resolves when the client disconnects or the node drains logins. What the client says meanwhile is kept for later, up
/// to the machine's limit. One that has sent its end may still read its answers.
async fn abandoned(
    stream: &mut BoxStream,
    machine: &mut dyn LoginMachine,
    drain: &mut watch::Receiver<Drain>,
    live: &ConnectionHandle,
) -> EarlyEnd {
    let mut speaks = true;
    loop {
        let takes = speaks && machine.wants_input();
        let read = read_with(stream, |bytes| {
            machine.input(bytes);
            !bytes.is_empty()
        });
        tokio::select! {
            read = read, if takes => match read {
                Ok(more) => speaks = more,
                Err(_) => return EarlyEnd::ClientGone,
            },
            order = logins_end(drain, live) => return EarlyEnd::Told(order),
        }
    }
}

fn seconds(duration: Duration) -> f64 {
    (duration.as_secs_f64() * 1000.0).round() / 1000.0
}
