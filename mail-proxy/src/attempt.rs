//! One attempt to log a user in: the route is looked up, the mailbox server is connected to and asked.
//!
//! It knows nothing of the client's stream, and not what the client is told.

use std::net::IpAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use mail_directory::{Secret, names};
use route_cache::{Blocker, HoldMoment, Lookup, ReferredRoute, Route, RouteError, Subject, Tier, UpstreamTls};
use tokio::io::AsyncWriteExt;
use tokio::sync::{mpsc, watch};
use tokio::time::{Instant, sleep, timeout, timeout_at};

use crate::audit::{Event, Outcome, Phase, Record};
use crate::connection::{BoxStream, ConnectionFacts};
use crate::conversation::{CHALLENGE_WAIT, Challenge, Conversation};
use crate::credentials::{Credentials, Proof, without_suffix};
use crate::environment::{ConnectError, Facts, NewSession, SessionEnv};
use crate::handle::{CloseReason, ConnectionHandle, Drain, LoggedIn, UnderWay, logins_end};
use crate::login_failure::LoginFailure;
use crate::machine::{Accepted, IdFields, Introduction, UpstreamMachine, UpstreamStep};
use crate::proto::Protocol;
use crate::referral::Referral;
use crate::scratch::read_with;
use crate::server_refusal::{BINDS, NO_EXCHANGE, NOT_UNDERSTOOD, Refusal, says_too_long};
use crate::server_rules::{Announcement, Tell};
use crate::throttle::{Answered, Claim, LoginChannel, PasswordMark, Ticket};
use crate::{imap, pop3};

/// How long a mailbox server may take from the call to its first word. One that accepts connections and says
/// nothing is frozen, and its users should hear so within 5 seconds.
const GREETING: Duration = Duration::from_millis(4500);

/// How long the mailbox server's answer is waited for when the client no longer waits for it. Dovecot keeps a client that
/// guesses for up to 17 seconds.
const BEHIND: Duration = Duration::from_secs(30);

/// Octets of what a mailbox server is told at once, at most: a password of 8 KiB in base64, and ID before it.
const MAX_SAID: usize = 16 * 1024;

/// How often a login that is held looks whether that is over.
const HOLD_LOOK: Duration = Duration::from_millis(250);

/// What a mailbox server that has greeted is given in any case before its silence is taken for a refusal.
const FAIR: Duration = Duration::from_secs(5);

/// How long a server may take for answers that need no thought, where more was said behind the question.
const OVERLAP: Duration = Duration::from_secs(2);

/// How long a server that takes nobody at the moment is left alone before it is tried again.
const PAUSES: [Duration; 3] = [
    Duration::from_millis(200),
    Duration::from_millis(500),
    Duration::from_millis(1000),
];

/// How long after its beginning a login may be tried again so. Its client hears of an outage within seconds.
const PATIENCE: Duration = Duration::from_secs(5);

/// The age from which a route is asked for again before a refusal is believed. Younger ones bring nothing new, and
/// a client that guesses passwords must not make us ask the directory each time.
const OLD_ROUTE: Duration = Duration::from_secs(5);

/// How long before its client is told a failure counts: the next attempt must find it counted.
const COUNTED_AHEAD: Duration = Duration::from_millis(100);

/// How long the account of the name that authenticates may be looked for. While the directory is down, spellings count
/// apart.
const NAME: Duration = Duration::from_millis(500);

/// A login under way. It ends by itself, within limits, and is recorded whatever comes of it.
pub(crate) struct Attempt {
    /// Gives the answer, and has recorded it.
    pub(crate) running: Pin<Box<dyn Future<Output = Result<Login, LoginFailure>> + Send>>,
    greeted: watch::Receiver<Option<Instant>>,
    held: watch::Receiver<Duration>,
    waiting: watch::Sender<Waiting>,
    /// Messages of the mailbox server that the client is to answer.
    pub(crate) challenges: mpsc::Receiver<Challenge>,
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
        let (greets, greeted) = watch::channel(None);
        let (holds, held) = watch::channel(Duration::ZERO);
        let (conversation, challenges) = Conversation::new();
        let mut tries = Tries::new(facts, env, &credentials, greets, holds, conversation);
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
            greeted,
            held,
            waiting,
            challenges,
        }
    }

    /// Resolves when the client is to hear that the login failed, although the mailbox server has not said so: what
    /// an unknown name hears at the end of the wait ([ADR 0006](../../docs/adr/0006-same-answer-same-wait.md)).
    /// A server that has not even greeted is another matter: that is told as it is.
    pub(crate) fn overdue(&self, wait_ends: Instant) -> impl Future<Output = ()> + Send + use<> {
        let (mut greeted, held) = (self.greeted.clone(), self.held.clone());
        async move {
            loop {
                let at = greeted.wait_for(Option::is_some).await.ok().and_then(|at| *at);
                let Some(at) = at else {
                    return std::future::pending().await;
                };
                let wait_ends = wait_ends + *held.borrow();
                tokio::select! {
                    () = tokio::time::sleep_until(wait_ends.max(at + FAIR)) => return,
                    // Another server is tried.
                    Ok(_) = greeted.wait_for(|other| *other != Some(at)) => {}
                }
            }
        }
    }

    /// How long the throttle has delayed it: names without account are delayed alike, before anything is asked.
    pub(crate) fn held(&self) -> Duration {
        *self.held.borrow()
    }

    /// Lets it end although its client does not wait any more: for the audit log.
    pub(crate) async fn finish(
        mut self,
        waiting: Waiting,
        mut drain: watch::Receiver<Drain>,
        live: Arc<ConnectionHandle>,
    ) {
        self.waiting.send_replace(waiting);
        self.challenges.close();
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

/// How many proxies a login may pass: Dovecot's number.
const MOST_PROXIES: u32 = 5;

/// Why a login is refused that has passed as many.
const LOOP: &str = "proxies send the login in a circle: x-proxy-ttl is used up";

/// How often a login follows a mailbox server that names another one.
const MOST_REFERRALS: usize = 2;

/// Why a silent mailbox server could not help.
const SILENT: &str = "the mailbox server does not answer";

/// Why a login by an exchange cannot go on elsewhere.
const MOVED: &str = "the account has moved, and the client's proof is good for one server only";

/// Why a good certificate is no login.
const NO_ACCOUNT: &str = "no name in the certificate is that of an account";

/// Why a client with a certificate is not logged in at an external server.
const FOREIGN: &str = "an external server has no master user of ours";

/// Why a client with a certificate is not logged in.
const NO_MASTER: &str = "it does not take the login of mail.master";

/// What a mailbox server did that hung up.
const CLOSED: &str = "the mailbox server closed the connection";

/// The tries of one attempt, at one mailbox server or two.
struct Tries {
    record: Record,
    facts: Arc<Facts>,
    env: SessionEnv,
    greets: watch::Sender<Option<Instant>>,
    holds: watch::Sender<Duration>,
    conversation: Conversation,
    under_way: UnderWay,
    /// When its credentials were complete.
    begun: Instant,
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

/// Why one try at one server failed.
enum TryFailure {
    /// The route is stale, or the server has gone: forget it, ask again, and try once more wherever that leads.
    Stale(LoginFailure),
    /// The server has gone at what may be its own end: try once more at the same one. The route stays, because a client
    /// that has a server hang up must not make us ask the directory each time.
    Again(LoginFailure),
    /// It was said at once, and the server, known by this name, has answered as if that was the reason.
    Hurried(LoginFailure, String),
    /// The server has gone before its greeting, as one that is being started again.
    Restarts(LoginFailure),
    /// The server takes nobody at the moment. If it says so for longer, as [`TryFailure::Doubtful`].
    Busy(LoginFailure),
    /// Worth another try only if the account is somewhere else by now. The route stays: it may be needed while the
    /// directory is down.
    Doubtful(LoginFailure),
    /// The server names another one.
    Referred(Referral),
    /// Nothing would change it.
    Final(LoginFailure),
}

impl Tries {
    fn new(
        facts: Arc<Facts>,
        env: SessionEnv,
        credentials: &Credentials,
        greets: watch::Sender<Option<Instant>>,
        holds: watch::Sender<Duration>,
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
            record,
            facts,
            env,
            greets,
            holds,
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
    ) -> Result<(BoxStream, Accepted), LoginFailure> {
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
    async fn ask(&mut self, message: Vec<u8>) -> Result<Secret<Vec<u8>>, LoginFailure> {
        let from = self.begun + *self.holds.borrow() + CHALLENGE_WAIT;
        let response = self.conversation.ask(message, from).await?;
        self.begun = Instant::now();
        self.holds.send_replace(Duration::ZERO);
        Ok(response)
    }

    /// The credentials of a client with a certificate, under the name of the account: the first of the certificate's names
    /// that the directory knows. A name that the client gives must be that of the same account.
    async fn named(&mut self, credentials: &Credentials) -> Result<Credentials, LoginFailure> {
        let certificate = self
            .facts
            .connection
            .tls
            .as_ref()
            .and_then(|tls| tls.certificate.clone());
        let certificate = certificate.ok_or(LoginFailure::BadCredentials)?;
        self.record.authcid = Some(certificate.subject.clone());
        let mut own = None;
        for name in &certificate.accounts {
            let named = Credentials::by(credentials.mechanism, name.as_bytes(), Proof::Certificate);
            let Ok(named) = named else { continue };
            match self.env.routes.route(&self.facts.lookup(&named)).await {
                Ok(route) => {
                    own = Some((named, route.account));
                    break;
                }
                Err(RouteError::UnknownUser) => {}
                Err(error) => {
                    self.record.user = Some(named.user);
                    return Err(no_route(error));
                }
            }
        }
        let Some((own, account)) = own else {
            return Err(LoginFailure::NotOfCertificate(NO_ACCOUNT.to_owned()));
        };
        let named = match credentials.user.is_empty() {
            true => own,
            false => match self.env.routes.route(&self.facts.lookup(credentials)).await {
                Ok(route) if route.account == account => credentials.clone(),
                Ok(_) | Err(RouteError::UnknownUser) => return Err(not_of(&account)),
                Err(error) => return Err(no_route(error)),
            },
        };
        self.record.user = Some(named.user.clone());
        self.may_log_in(&account).await?;
        self.certified = Some(account);
        Ok(named)
    }

    /// Whether the directory lets the account log in. A mailbox server need not ask that for a master user; whoever has a
    /// password is asked about by it.
    async fn may_log_in(&mut self, account: &str) -> Result<(), LoginFailure> {
        let blockers = self.env.routes.account_blockers(account, self.facts.protocol.service());
        let text = self.env.settings.hold_text.clone();
        match blockers.await.map_err(no_route)?.into_iter().next() {
            None => Ok(()),
            Some(Blocker::Status(status)) => {
                let why = format!("zimbraAccountStatus is {status}");
                Err(match status == "maintenance" {
                    true => LoginFailure::Held { text, why },
                    false => LoginFailure::NotOfCertificate(why),
                })
            }
            Some(Blocker::ServiceDisabled(flag)) => Err(LoginFailure::NotOfCertificate(format!("{flag} is FALSE"))),
            Some(other) => Err(LoginFailure::NotOfCertificate(other.to_string())),
        }
    }

    /// Tells the throttle. A failure counts from just before its client hears of it: what counted sooner would show which
    /// names a mailbox server was asked about, and which have no account.
    fn count(&self, ticket: Ticket, answer: Answered) {
        let throttle = self.env.throttle.clone();
        let wait = self.env.settings.auth_wait.saturating_sub(COUNTED_AHEAD);
        let counts = self.begun + *self.holds.borrow() + wait;
        // Where the client waits for nothing else, it must not be told before this has counted.
        if answer != Answered::Wrong || counts <= Instant::now() {
            throttle.answered(ticket, answer, throttle.now());
            return;
        }
        throttle.fails_at(ticket, counts);
    }

    /// The account of a name, or the name that no account has.
    async fn account_of(&mut self, lookup: &Lookup) -> String {
        match timeout(NAME, self.env.routes.route(lookup)).await {
            Ok(Ok(route)) => route.account.to_string(),
            Ok(Err(_)) | Err(_) => self.env.routes.key_name(lookup),
        }
    }

    /// Takes a place among the sessions that there may be. Only a client with the right password learns that there is
    /// none.
    fn enter(&mut self, login: (BoxStream, Accepted)) -> Result<(BoxStream, Accepted), LoginFailure> {
        let (account, route) = (self.record.account.as_deref(), self.record.route.as_deref());
        let session = NewSession {
            account: account.unwrap_or_default(),
            client: unmapped(self.facts.connection.client.addr.ip()),
            server: route
                .and_then(|route| Some(route.rsplit_once(':')?.0))
                .unwrap_or_default(),
            protocol: self.facts.protocol,
            max: self
                .env
                .routes
                .max_sessions(account.unwrap_or_default(), self.max_sessions, &self.server),
        };
        let place = self.env.limits.enter(&session);
        self.place = Some(place.map_err(LoginFailure::TooManySessions)?);
        Ok(login)
    }

    /// Waits until the throttle lets the attempt through. A name without account is treated like any other.
    async fn admitted(
        &mut self,
        credentials: &Credentials,
        lookup: &Lookup,
        id: &IdFields,
    ) -> Result<Ticket, LoginFailure> {
        let throttle = self.env.throttle.clone();
        let guessed = match (&credentials.authenticating_as, &self.record.account) {
            // It is this one's password, however the name is written.
            (Some(authcid), _) => {
                let subject = Subject::Login(without_suffix(authcid).to_owned());
                let lookup = Lookup {
                    subject,
                    ..lookup.clone()
                };
                self.account_of(&lookup).await
            }
            (None, Some(account)) => account.clone(),
            (None, None) => self.env.routes.key_name(lookup),
        };
        let claim = Claim {
            account: &guessed,
            client: self.facts.connection.client.addr.ip(),
            password: credentials.proof.secret().map(PasswordMark::of),
            channel: LoginChannel {
                protocol: self.facts.protocol.proto().name(),
                tls: self.facts.connection.tls.is_some(),
                device: &device(id),
                token: credentials.mechanism.is_token(),
            },
        };
        match throttle.admit(&claim).await {
            Ok(admitted) => {
                self.holds.send_replace(admitted.held);
                self.record.note_admitted(&admitted);
                Ok(admitted.ticket)
            }
            Err(throttled) => {
                self.record.note(&throttled.finding, Duration::ZERO);
                Err(LoginFailure::Throttled(throttled))
            }
        }
    }

    /// Connects, logs in. A server that refuses the connection, says that the account lives elsewhere or
    /// refuses a login by an old route makes us ask again and try once more, before the client hears anything.
    async fn log_in(
        &mut self,
        lookup: &Lookup,
        route: Route,
        credentials: &Credentials,
        id: IdFields,
    ) -> Result<(BoxStream, Accepted), LoginFailure> {
        let fresh = match self.try_from(lookup, &route, credentials, id.clone()).await {
            Ok(done) => return Ok(done),
            Err(failure) if self.conversation.begun => return Err(self.cannot_repeat(lookup, &route, failure).await),
            Err(TryFailure::Final(failure)) => return Err(failure),
            Err(TryFailure::Again(_) | TryFailure::Hurried(..)) => route,
            Err(TryFailure::Stale(_) | TryFailure::Referred(_)) => {
                self.env.routes.forget(lookup);
                self.route(lookup).await?
            }
            // The same one has been tried often enough.
            Err(TryFailure::Restarts(failure)) => {
                self.env.routes.forget(lookup);
                let fresh = self.route(lookup).await?;
                Some(fresh).filter(|fresh| is_elsewhere(fresh, &route)).ok_or(failure)?
            }
            Err(TryFailure::Busy(failure) | TryFailure::Doubtful(failure)) => {
                self.elsewhere(lookup, &route).await?.ok_or(failure)?
            }
        };
        let again = self.try_from(lookup, &fresh, credentials, id).await;
        again.map_err(|again| match again {
            TryFailure::Stale(failure) | TryFailure::Restarts(failure) => {
                self.env.routes.forget(lookup);
                failure
            }
            TryFailure::Referred(referral) => LoginFailure::UpstreamDown(not_followed(&referral)),
            TryFailure::Again(failure)
            | TryFailure::Hurried(failure, _)
            | TryFailure::Busy(failure)
            | TryFailure::Doubtful(failure)
            | TryFailure::Final(failure) => failure,
        })
    }

    /// What becomes of a login by an exchange that has begun: the client's proof is good for one server. The next login
    /// goes where this one should have gone.
    async fn cannot_repeat(&mut self, lookup: &Lookup, route: &Route, failure: TryFailure) -> LoginFailure {
        match failure {
            TryFailure::Stale(failure) | TryFailure::Restarts(failure) => {
                self.env.routes.forget(lookup);
                failure
            }
            TryFailure::Referred(referral) => {
                self.env.routes.forget(lookup);
                LoginFailure::UpstreamDown(not_followed(&referral))
            }
            TryFailure::Busy(failure) | TryFailure::Doubtful(failure) => match self.elsewhere(lookup, route).await {
                Ok(Some(_)) => LoginFailure::UpstreamDown(MOVED.to_owned()),
                Ok(None) => failure,
                Err(unknown) => unknown,
            },
            TryFailure::Again(failure) | TryFailure::Hurried(failure, _) | TryFailure::Final(failure) => failure,
        }
    }

    /// Tries at the server of a route, and at those that it and the next one name.
    async fn try_from(
        &mut self,
        lookup: &Lookup,
        route: &Route,
        credentials: &Credentials,
        id: IdFields,
    ) -> Result<(BoxStream, Accepted), TryFailure> {
        let mut been = vec![route.clone()];
        let mut result = self.try_patiently(route, credentials, id.clone()).await;
        while let Some(referral) = self.referral(&result) {
            let next = match self.referred(lookup, &been, &referral) {
                Ok(next) => next,
                // Where it was taken, it stays.
                Err(_) if result.is_ok() => break,
                Err(why) => return Err(TryFailure::Stale(LoginFailure::UpstreamDown(why))),
            };
            let from = been[been.len() - 1].clone();
            been.push(next.route.clone());
            self.note(&next.route);
            let there = self.try_patiently(&next.route, credentials, id.clone()).await;
            if there.is_err() && result.is_ok() {
                self.note(&from);
                break;
            }
            if there.is_ok() {
                self.referred_by = Some(from.server);
                self.env.routes.learn(next);
            }
            result = there;
        }
        result
    }

    /// Where a server sends the login.
    fn referral(&mut self, result: &Result<(BoxStream, Accepted), TryFailure>) -> Option<Referral> {
        match result {
            // Where it was proved, it stays.
            _ if self.conversation.begun => None,
            Ok(_) => self.sent_on.take(),
            Err(TryFailure::Referred(referral)) => Some(referral.clone()),
            Err(_) => None,
        }
    }

    /// The route that a server names, if it may be followed: to a server of the directory that has not been asked, and
    /// for the same account.
    fn referred(&self, lookup: &Lookup, been: &[Route], referral: &Referral) -> Result<ReferredRoute, String> {
        let from = &been[been.len() - 1];
        if been.len() > MOST_REFERRALS {
            return Err(format!("more than {MOST_REFERRALS} servers refer to each other"));
        }
        let account = |name: &str| names::account(name) == *from.account || name == &*from.login;
        if from.external || referral.user.as_deref().is_some_and(|user| !account(user)) {
            return Err(not_followed(referral));
        }
        let next = self.env.routes.refer(lookup, from, &referral.host);
        let next = next.map_err(|error| error.to_string())?;
        match been.iter().any(|route| route.server == next.route.server) {
            true => Err(format!("the mailbox servers refer to each other: {}", referral.host)),
            false => Ok(next),
        }
    }

    /// Where the account is by now, if an old route leads elsewhere: it has moved, its alias belongs to another one, or
    /// memcached is wrong.
    async fn elsewhere(&mut self, lookup: &Lookup, old: &Route) -> Result<Option<Route>, LoginFailure> {
        match self.env.routes.ask_again(lookup, OLD_ROUTE).await {
            Some(Ok(fresh)) if is_elsewhere(&fresh, old) => {
                self.note(&fresh);
                Ok(Some(fresh))
            }
            Some(Err(error @ (RouteError::UnknownUser | RouteError::NotAllowed { .. }))) => Err(no_route(error)),
            _ => Ok(None),
        }
    }

    /// Writes the record, and returns the login for its client.
    fn record(
        mut self,
        result: Result<(BoxStream, Accepted), LoginFailure>,
        waiting: Waiting,
    ) -> Result<Login, LoginFailure> {
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

    async fn route(&mut self, lookup: &Lookup) -> Result<Route, LoginFailure> {
        let begun = Instant::now();
        self.under_way.asks(false);
        let mut moment = self.env.routes.holds().moment();
        let result = self.env.routes.route(lookup).await;
        self.record.ms_lookup = Some(self.took(Phase::Lookup, begun));
        let mut route = result.map_err(no_route)?;
        loop {
            // First noted, then looked for a hold: who begins one and looks then for logins under way misses none.
            self.under_way.is_of(&route.account);
            self.under_way.asks(true);
            match self.env.routes.hold_of(&route) {
                Some(why) => {
                    self.under_way.asks(false);
                    (route, moment) = self.released(lookup, route, why).await?;
                }
                None if self.env.routes.holds().none_since(moment) => break,
                // A whole move may have passed since the answer.
                None => {
                    moment = self.env.routes.holds().moment();
                    route = self.env.routes.route(lookup).await.map_err(no_route)?;
                }
            }
        }
        self.note(&route);
        Ok(route)
    }

    /// Waits for the end of a hold, and asks for the route again: the account may have moved meanwhile. Returns it with
    /// the moment before that.
    async fn released(
        &mut self,
        lookup: &Lookup,
        mut route: Route,
        mut why: String,
    ) -> Result<(Route, HoldMoment), LoginFailure> {
        let end = Instant::now() + self.env.settings.hold_wait;
        (self.record.account, self.record.tier) = (Some(route.account.to_string()), Some(route.tier.name()));
        while Instant::now() < end {
            sleep(HOLD_LOOK.min(end - Instant::now())).await;
            let moment = self.env.routes.holds().moment();
            if self.env.routes.holds().of(&route.account, &route.server).is_none() {
                route = self.env.routes.route(lookup).await.map_err(no_route)?;
            }
            match self.env.routes.hold_of(&route) {
                Some(still) => why = still,
                None => return Ok((route, moment)),
            }
        }
        let text = self.env.settings.hold_text.clone();
        Err(LoginFailure::Held { text, why })
    }

    /// Tries at one server, and again after a pause where it is only for a moment that it takes nobody: its answer says
    /// nothing of the password then, so this is no second guess. Where all was said at once, and the answer may come from
    /// that, it is tried once more with one command after the other, as whenever it is tried again.
    async fn try_patiently(
        &mut self,
        route: &Route,
        credentials: &Credentials,
        id: IdFields,
    ) -> Result<(BoxStream, Accepted), TryFailure> {
        let mut hurried_at: Option<String> = None;
        loop {
            let result = self.try_at(route, credentials, id.clone(), self.again > 0).await;
            let pause = match &result {
                // That it was said at once has been the reason indeed.
                Ok(_) => {
                    if let Some(at) = &hurried_at {
                        self.env.settings.known.distrust(at);
                    }
                    return result;
                }
                Err(_) if self.conversation.begun => return result,
                Err(TryFailure::Hurried(_, at)) => {
                    hurried_at = Some(at.clone());
                    Duration::ZERO
                }
                Err(TryFailure::Restarts(_) | TryFailure::Busy(_)) => match PAUSES.get(self.again) {
                    Some(pause) if self.begun.elapsed() + *pause < PATIENCE => *pause,
                    _ => return result,
                },
                Err(_) => return result,
            };
            self.again += 1;
            sleep(pause).await;
        }
    }

    async fn try_at(
        &mut self,
        route: &Route,
        credentials: &Credentials,
        id: IdFields,
        slowly: bool,
    ) -> Result<(BoxStream, Accepted), TryFailure> {
        self.record.phase = None;
        self.greets.send_replace(None);
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
        // What a server says may depend on how it is spoken to.
        let at = format!(
            "{} {} {}",
            self.facts.protocol.proto().name(),
            route.address(),
            introduction.starttls
        );
        introduction.known = self.env.settings.known.of(&at);
        introduction.slowly = slowly;
        let mut machine = self.machine(introduction);
        let limit = self.env.settings.upstream_login;
        let waits = Waits {
            greeting: called + GREETING,
            // A password that was said twice because the server thinks would count twice there.
            overlap: (!self.env.settings.known.keeps_up(&at)).then_some(OVERLAP),
        };
        let talk = self.talk(&mut server, machine.as_mut(), waits, credentials, route);
        let answer = timeout(limit, talk).await.unwrap_or(Err(Unanswered::Silent));
        self.record.ms_login = Some(self.took(Phase::Login, begun));
        if let Some(heard) = machine.heard() {
            self.env.settings.known.note(&at, heard);
        }
        if answer.is_ok() && machine.hurried() {
            self.env.settings.known.kept_up(&at);
        }
        self.sent_on = None;
        let taken = answer.map(|mut accepted| {
            self.sent_on = Referral::take(&mut accepted.answer);
            (server, accepted)
        });
        taken.map_err(|unanswered| {
            self.record.phase = Some(machine.phase());
            // A message of an exchange is an answer to what was said at once.
            if machine.hurried() && !self.conversation.begun && unanswered.is_odd(self.facts.protocol) {
                return TryFailure::Hurried(LoginFailure::UpstreamDown(SILENT.to_owned()), at);
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
                Unanswered::Silent | Unanswered::Dropped => {
                    TryFailure::Doubtful(LoginFailure::UpstreamDown(SILENT.to_owned()))
                }
            }
        })
    }

    /// What a mailbox server is told of a client that has shown a certificate. No server of others learns the master's
    /// password.
    fn by_master(&self, route: &Route, credentials: &Credentials) -> Result<Credentials, LoginFailure> {
        let master = self.env.settings.master.as_ref().filter(|_| !route.external);
        let master = master.ok_or_else(|| LoginFailure::NoRoute(FOREIGN.to_owned()))?;
        Ok(credentials.by_master(master))
    }

    /// Speaks to a mailbox server until it has answered the login.
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
        let mut step = first_words(server, machine, &mut out, waits.greeting).await?;
        // Nothing was said of a login before TLS: who is silent there is down, and does not think.
        if machine.phase() != "starttls" {
            self.greets.send_replace(Some(Instant::now()));
        }
        loop {
            if !out.is_empty() {
                server.write_all(&out).await.map_err(|_| Unanswered::Gone)?;
                server.flush().await.map_err(|_| Unanswered::Gone)?;
                out.fill(0);
                out.clear();
            }
            step = match step {
                UpstreamStep::NeedInput if machine.phase() == "starttls" => {
                    first_words(server, machine, &mut out, waits.greeting).await?
                }
                UpstreamStep::NeedInput => match waits.overlap.filter(|_| machine.is_overlapping()) {
                    Some(overlap) => {
                        let heard = timeout(overlap, hear(server, machine, &mut out)).await;
                        heard.unwrap_or(Err(Unanswered::Dropped))?
                    }
                    None => hear(server, machine, &mut out).await?,
                },
                UpstreamStep::StartTls => {
                    let clear = std::mem::replace(server, Box::new(tokio::io::empty()));
                    let secured = self.env.transport.secure(clear, route).await;
                    *server = secured.map_err(Unanswered::Unsafe)?;
                    self.greets.send_replace(Some(Instant::now()));
                    machine.secured(&mut out)
                }
                UpstreamStep::Challenge(message) => {
                    self.note_challenge(credentials, route, &message);
                    let response = self.ask(message).await.map_err(|_| Unanswered::Withdrawn)?;
                    machine.respond(response.expose(), &mut out)
                }
                UpstreamStep::Accepted(accepted) => return Ok(accepted),
                UpstreamStep::Refused(refusal) => return Err(Unanswered::Refused(refusal)),
            };
        }
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

/// Whether a login by the one route says nothing of one by the other.
fn is_elsewhere(fresh: &Route, old: &Route) -> bool {
    let same = fresh.host == old.host && fresh.port == old.port;
    !(same && fresh.account == old.account && fresh.login == old.login)
}

/// What the end of an attempt says of its password. What a client hears alike counts alike.
fn answered(result: &Result<(BoxStream, Accepted), LoginFailure>) -> Answered {
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

/// Why a client with a certificate is not let into another mailbox.
fn not_of(account: &str) -> LoginFailure {
    LoginFailure::NotOfCertificate(format!("the certificate is that of {account}"))
}

/// Why there is no route, for the login.
fn no_route(error: RouteError) -> LoginFailure {
    match error {
        RouteError::UnknownUser => LoginFailure::UnknownUser,
        RouteError::NotAllowed { .. } => LoginFailure::NotAllowed(error.to_string()),
        RouteError::NoRoute(why) => LoginFailure::NoRoute(why),
        RouteError::DirectoryDown(why) => LoginFailure::DirectoryDown(why.to_string()),
    }
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

/// Why a referral leads nowhere.
fn not_followed(referral: &Referral) -> String {
    format!("a referral to {} is not followed", referral.host)
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
    /// How long it may take for an answer that needs no thought; `None`: as long as for a login.
    overlap: Option<Duration>,
}

/// Why a mailbox server did not take a login.
enum Unanswered {
    Refused(Refusal),
    /// The client has given up.
    Withdrawn,
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
            Self::Refused(_) | Self::Unsafe(_) | Self::Withdrawn | Self::Silent => false,
        }
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

/// An IPv4 client on a dual-stack listener is an IPv4 client.
fn unmapped(ip: IpAddr) -> IpAddr {
    ip.to_canonical()
}

/// How many proxies may follow behind us: one less than a proxy in front of us says. Any client may say that there are
/// fewer, and none that there are more.
fn proxies_left(id: &IdFields) -> u32 {
    id.ttl
        .map_or(MOST_PROXIES, |said| said.min(MOST_PROXIES))
        .saturating_sub(1)
}

/// What the client has said that it is.
fn device(id: &IdFields) -> String {
    let said = [&id.name, &id.version].into_iter().flatten();
    said.map(String::as_str).collect::<Vec<_>>().join("/")
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}
