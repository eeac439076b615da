//! One attempt to log a user in: the route is looked up, the mailbox server is connected to and asked.
//!
//! It knows nothing of the client's stream, and not what the client is told.

mod certificate;
mod one_server;
mod permits;
mod routes;
mod servers;

use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use mail_directory::{Secret, names};
use route_cache::{HoldMoment, Route, Tier};
use tokio::sync::watch;
use tokio::time::{Instant, timeout};

use crate::audit::{Event, Outcome, Phase, Record};
use crate::connection::BoxStream;
use crate::conversation::{CHALLENGE_WAIT, Conversation, Messages};
use crate::credentials::{Credentials, Proof};
use crate::environment::{Facts, SessionEnv};
use crate::handle::{CloseReason, ConnectionHandle, Drain, LoggedIn, UnderWay, logins_end};
use crate::login_failure::LoginFailure;
use crate::machine::{Accepted, IdFields};
use crate::referral::Referral;
use crate::throttle::{Answered, Ticket};

/// How long the mailbox server's answer is waited for when the client no longer waits for it. Dovecot keeps a client that
/// guesses for up to 17 seconds.
const BEHIND: Duration = Duration::from_secs(30);

/// What a mailbox server that has greeted is given in any case before its silence is taken for a refusal.
const FAIR: Duration = Duration::from_secs(5);

/// How long before its client is told a failure counts: the next attempt must find it counted.
const COUNTED_AHEAD: Duration = Duration::from_millis(100);

/// How many proxies a login may pass: Dovecot's number.
const MOST_PROXIES: u32 = 5;

/// Why a login is refused that has passed as many.
const LOOP: &str = "proxies send the login in a circle: x-proxy-ttl is used up";

/// Why a silent mailbox server could not help.
const SILENT: &str = "the mailbox server does not answer";

/// Why a login by an exchange cannot go on elsewhere.
const MOVED: &str = "the account has moved, and the client's proof is good for one server only";

/// A login under way. It ends by itself, within limits, and is recorded whatever comes of it.
pub(crate) struct Attempt {
    /// Gives the answer, and has recorded it.
    pub(crate) running: Pin<Box<dyn Future<Output = Result<Login, LoginFailure>> + Send>>,
    course: watch::Receiver<Course>,
    waiting: watch::Sender<Waiting>,
    /// Messages of the mailbox server that the client is to answer.
    pub(crate) messages: Messages,
}

/// How far an attempt has come.
#[derive(Debug, Default)]
struct Course {
    /// When the mailbox server that is asked has greeted.
    greeted: Option<Instant>,
    /// How long the throttle has held the attempt back.
    held: Duration,
}

/// A mailbox server that has taken a login, and what it said.
pub(crate) struct Login {
    /// The connection to it.
    pub(crate) server: BoxStream,
    /// Its answer.
    pub(crate) accepted: Accepted,
    /// `host:port` of the mailbox server.
    pub(crate) route: String,
    /// Who authenticated, where that is not the user.
    pub(crate) authcid: Option<String>,
    /// Where the route came from.
    pub(crate) tier: Option<&'static str>,
    /// Its place among the sessions that there may be.
    pub(crate) place: Option<Box<dyn Send>>,
}

/// Who waits for the answer.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Waiting {
    /// The client.
    Client,
    /// Only the audit log: the client has been told that it failed.
    Answered,
    /// Only the audit log: the client has gone.
    Gone,
    /// Nobody: the connection is to end.
    Ended(CloseReason),
}

impl Attempt {
    /// Begins one; it goes on while `running` or [`Attempt::finish`] is polled.
    pub(crate) fn begin(facts: Arc<Facts>, env: SessionEnv, credentials: Credentials, id: IdFields) -> Self {
        let (waiting, told) = watch::channel(Waiting::Client);
        let (goes, course) = watch::channel(Course::default());
        let (conversation, messages) = Conversation::about(&credentials.proof);
        let mut tries = Tries::new(facts, env, &credentials, goes, conversation);
        let answers = told.clone();
        let running = Box::pin(async move {
            let result = tokio::select! {
                result = tries.run(&credentials, id, answers) => result,
                failure = given_up(told.clone()) => Err(failure),
            };
            let waiting = *told.borrow();
            tries.record(result, waiting)
        });
        Self {
            running,
            course,
            waiting,
            messages,
        }
    }

    /// Resolves when the client is to hear that the login failed, although the mailbox server has not said so: what
    /// an unknown name hears at the end of the wait ([ADR 0006](../../docs/adr/0006-same-answer-same-wait.md)).
    /// A server that has not even greeted is another matter: that is told as it is.
    pub(crate) fn overdue(&self, wait_ends: Instant) -> impl Future<Output = ()> + Send + use<> {
        let mut course = self.course.clone();
        async move {
            loop {
                let greeted = course.wait_for(|course| course.greeted.is_some()).await;
                let greeted = greeted.map(|course| (course.greeted, course.held));
                let Ok((Some(at), held)) = greeted else {
                    return std::future::pending().await;
                };
                tokio::select! {
                    () = tokio::time::sleep_until((wait_ends + held).max(at + FAIR)) => return,
                    // Another server is tried.
                    Ok(_) = course.wait_for(|course| course.greeted != Some(at)) => {}
                }
            }
        }
    }

    /// How long the throttle has delayed it: names without account are delayed alike, before anything is asked.
    pub(crate) fn held(&self) -> Duration {
        self.course.borrow().held
    }

    /// Lets it end although its client does not wait any more: for the audit log.
    pub(crate) async fn finish(
        mut self,
        waiting: Waiting,
        mut drain: watch::Receiver<Drain>,
        live: Arc<ConnectionHandle>,
    ) {
        self.waiting.send_replace(waiting);
        self.messages.close();
        let order = tokio::select! {
            biased;
            _ = &mut self.running => return,
            order = logins_end(&mut drain, &live) => order,
        };
        self.waiting.send_replace(Waiting::Ended(order));
        let _nobody_waits = self.running.await;
    }
}

/// Resolves when the client has been told that its login failed: from then on it counts as such, like that of a name
/// that nobody has.
async fn told_failed(mut waiting: watch::Receiver<Waiting>) {
    if waiting.wait_for(|waiting| *waiting == Waiting::Answered).await.is_err() {
        std::future::pending::<()>().await;
    }
}

/// Resolves when the client no longer waits for an attempt, and the audit log has waited long enough.
async fn given_up(mut waiting: watch::Receiver<Waiting>) -> LoginFailure {
    if waiting.wait_for(|waiting| *waiting != Waiting::Client).await.is_err() {
        return std::future::pending().await;
    }
    let ended = waiting.wait_for(|waiting| matches!(waiting, Waiting::Ended(_)));
    match timeout(BEHIND, ended).await.map(|ended| ended.map(|waiting| *waiting)) {
        Ok(Ok(Waiting::Ended(order))) => LoginFailure::Ended(order),
        _ => LoginFailure::UpstreamDown(SILENT.to_owned()),
    }
}

/// The connection to a mailbox server that has taken a login, and its answer.
type Taken = (BoxStream, Accepted);

/// The tries of one attempt, at one mailbox server or two.
struct Tries {
    record: Record,
    facts: Arc<Facts>,
    env: SessionEnv,
    course: watch::Sender<Course>,
    conversation: Conversation,
    under_way: UnderWay,
    /// When its credentials were complete.
    begun: Instant,
    /// From when on no hold has begun that the route does not know of.
    routed: HoldMoment,
    /// The route from which an exchange has come to its server: by itself, or by referrals.
    from: Option<Route>,
    /// How long a server has waited for its client within one try.
    thought: Duration,
    /// Name of the server's entry.
    server: Arc<str>,
    /// How many sessions the account may have, where it or its class of service says so.
    max_sessions: Option<u32>,
    /// Where the server that has taken the login would rather have it.
    sent_on: Option<Referral>,
    /// The server that has named the one where the login was taken.
    referred_by: Option<Arc<str>>,
    place: Option<Box<dyn Send>>,
    /// How often one server was tried again. It is counted for the whole login: a password must not be said more often
    /// because there is more than one server to say it to.
    again: usize,
    /// The account that the client's certificate is good for.
    certified: Option<Arc<str>>,
}

impl Tries {
    fn new(
        facts: Arc<Facts>,
        env: SessionEnv,
        credentials: &Credentials,
        course: watch::Sender<Course>,
        conversation: Conversation,
    ) -> Self {
        let record = Record {
            mechanism: Some(credentials.mechanism.name()),
            user: Some(credentials.user.clone()),
            authcid: credentials.authenticating_as.clone(),
            ..facts.connection.record(Event::Login, env.generation)
        };
        Self {
            under_way: facts.connection.handle.begin_login(&credentials.user),
            routed: env.routes.holds().moment(),
            from: None,
            thought: Duration::ZERO,
            record,
            facts,
            env,
            course,
            conversation,
            begun: Instant::now(),
            server: Arc::from(""),
            max_sessions: None,
            sent_on: None,
            referred_by: None,
            place: None,
            again: 0,
            certified: None,
        }
    }

    /// Looks up, asks the throttle, and logs in at the server where there is one.
    async fn run(
        &mut self,
        credentials: &Credentials,
        id: IdFields,
        waiting: watch::Receiver<Waiting>,
    ) -> Result<Taken, LoginFailure> {
        if proxies_left(&id) == 0 {
            return Err(LoginFailure::NoRoute(LOOP.to_owned()));
        }
        let named;
        let credentials = match credentials.proof {
            Proof::Certificate => {
                named = self.named(credentials).await?;
                &named
            }
            _ => credentials,
        };
        let lookup = self.facts.lookup(credentials);
        let routed = self.route(&lookup).await;
        let mut ticket = match &routed {
            // Nothing of the account is known, nor what is wrong.
            Err(LoginFailure::DirectoryDown(_) | LoginFailure::NoRoute(_)) => None,
            _ => Some(self.admitted(credentials, &lookup, &id).await?),
        };
        let throttle = self.env.throttle.clone();
        let told = waiting.clone();
        let result = match routed {
            Ok(route) => {
                let login = self.log_in(&lookup, route, credentials, id);
                tokio::pin!(login);
                tokio::select! {
                    result = &mut login => result,
                    () = told_failed(waiting) => {
                        if let Some(ticket) = &mut ticket {
                            throttle.overdue(ticket, throttle.now());
                        }
                        login.await
                    }
                }
            }
            Err(failure) => Err(failure),
        };
        let result = match result {
            Err(LoginFailure::Withdrawn) if *told.borrow() == Waiting::Answered => {
                Err(LoginFailure::UpstreamDown(SILENT.to_owned()))
            }
            Err(failure) if *told.borrow() == Waiting::Client => Err(self.told_late(failure, credentials).await),
            done => done,
        };
        if let Some(ticket) = ticket {
            let answer = match (&credentials.proof, answered(&result)) {
                // There is nothing to guess.
                (Proof::Certificate, Answered::Wrong) => Answered::Unknown,
                (_, answer) => answer,
            };
            self.count(ticket, answer);
        }
        result.and_then(|login| self.enter(login))
    }

    /// A login by an exchange that fails before the client has proved anything goes on as if it had not failed: which
    /// names a mailbox server knows is not told by when it says no.
    async fn told_late(&mut self, failure: LoginFailure, credentials: &Credentials) -> LoginFailure {
        let Proof::Exchange(first) = &credentials.proof else {
            return failure;
        };
        if self.conversation.begun || !failure.waits() {
            return failure;
        }
        let decoy = self
            .env
            .settings
            .decoys
            .first(&names::account(&credentials.user), first);
        match self.ask(decoy).await {
            Ok(_proof) => failure,
            Err(withdrawn) => withdrawn,
        }
    }

    /// Has the client answer a message. From its answer on the time of the attempt counts, and of that which comes of it.
    /// Meanwhile no mailbox server is asked anything, so that no move needs to wait.
    async fn ask(&mut self, message: Vec<u8>) -> Result<Secret<Vec<u8>>, LoginFailure> {
        let from = self.begun + self.course.borrow().held + CHALLENGE_WAIT;
        self.under_way.asks(false);
        let response = self.conversation.ask(message, from).await?;
        self.begun = Instant::now();
        self.course.send_modify(|course| course.held = Duration::ZERO);
        Ok(response)
    }

    /// Tells the throttle. A failure counts from just before its client hears of it: what counted sooner would show which
    /// names a mailbox server was asked about, and which have no account.
    fn count(&self, ticket: Ticket, answer: Answered) {
        let throttle = self.env.throttle.clone();
        let wait = self.env.settings.auth_wait.saturating_sub(COUNTED_AHEAD);
        let counts = self.begun + self.course.borrow().held + wait;
        // Where the client waits for nothing else, it must not be told before this has counted.
        if answer != Answered::Wrong || counts <= Instant::now() {
            throttle.answered(ticket, answer, throttle.now());
            return;
        }
        throttle.fails_at(ticket, counts);
    }

    /// Writes the record, and returns the login for its client.
    fn record(mut self, result: Result<Taken, LoginFailure>, waiting: Waiting) -> Result<Login, LoginFailure> {
        let (outcome, why) = match &result {
            Ok(_) => (
                Outcome::Ok,
                waiting.too_late().map(str::to_owned).or_else(|| self.referral_told()),
            ),
            Err(failure) => (failure.outcome(), failure.why()),
        };
        (self.record.outcome, self.record.why) = (Some(outcome), why);
        let login = result.map(|(server, accepted)| Login {
            server,
            accepted,
            route: self.record.route.clone().unwrap_or_default(),
            authcid: self.record.authcid.clone(),
            tier: self.record.tier,
            place: self.place.take(),
        });
        if login.is_ok() && waiting == Waiting::Client {
            self.note_login();
        }
        self.env.audit.record(self.record);
        login
    }

    /// What the audit log has of a referral that was followed.
    fn referral_told(&self) -> Option<String> {
        let from = self.referred_by.as_ref()?;
        Some(format!("referred by {from}"))
    }

    /// Notes whose session it is, so that administrators can list and end it.
    fn note_login(&self) {
        let text = |value: &Option<String>| value.clone().unwrap_or_default();
        let account = self.record.account.as_deref().unwrap_or_default();
        let by_referral = self.record.tier == Some(Tier::Referral.name());
        // The directory need not know where it is.
        let server = if by_referral { "" } else { &*self.server };
        let login = || LoggedIn {
            user: text(&self.record.user),
            account: account.to_owned(),
            route: text(&self.record.route),
            server: server.to_owned(),
        };
        self.facts.connection.handle.log_in(login, account, server);
    }

    /// Notes that the mailbox server has greeted: from now on its silence may be thought.
    fn note_greeting(&self) {
        self.course.send_modify(|course| course.greeted = Some(Instant::now()));
    }

    fn note(&mut self, route: &Route) {
        self.record.account = Some(route.account.to_string());
        self.record.route = Some(route.address().to_string());
        self.record.tier = Some(route.tier.name());
        self.server = route.server.clone();
        self.max_sessions = route.max_sessions;
        self.under_way.is_of(&route.account);
    }

    /// Returns the milliseconds since `begun`, and has them counted.
    fn took(&self, phase: Phase, begun: Instant) -> u64 {
        let took = begun.elapsed();
        self.env.audit.phase(phase, self.facts.protocol.proto(), took);
        millis(took)
    }
}

impl Waiting {
    /// What a login was too late for.
    fn too_late(self) -> Option<&'static str> {
        match self {
            Self::Client => None,
            Self::Answered => Some("too late: the client had been told that it failed"),
            Self::Gone | Self::Ended(_) => Some("too late: the client had gone"),
        }
    }
}

/// What the end of an attempt says of its password. What a client hears alike counts alike.
fn answered(result: &Result<Taken, LoginFailure>) -> Answered {
    match result {
        Ok(_) => Answered::Right,
        Err(
            LoginFailure::BadCredentials
            | LoginFailure::UnknownUser
            | LoginFailure::NotAllowed(_)
            | LoginFailure::PasswordNotBorne(_)
            | LoginFailure::ExchangeNotBorne(_),
        ) => Answered::Wrong,
        Err(_) => Answered::Unknown,
    }
}

/// How many proxies may follow behind us: one less than a proxy in front of us says. Any client may say that there are
/// fewer, and none that there are more.
fn proxies_left(id: &IdFields) -> u32 {
    id.ttl
        .map_or(MOST_PROXIES, |said| said.min(MOST_PROXIES))
        .saturating_sub(1)
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}
