//! One attempt to log a user in: the route is looked up, the mailbox server is connected to and asked.
//!
//! It knows nothing of the client's stream, and not what the client is told.

use std::net::IpAddr;
use std::time::Duration;

use route_cache::{Lookup, Route, RouteError};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::time::{Instant, timeout, timeout_at};

use crate::audit::{Phase, Record};
use crate::failure::LoginFailure;
use crate::login::{Accepted, Credentials, IdFields, Introduction, Refusal, UpstreamMachine, UpstreamStep};
use crate::session::{BoxStream, ConnectError, Facts, House, Protocol, READ};
use crate::{imap, pop3};

/// How long a mailbox server may take from the call to its first word. One that accepts connections and says
/// nothing is frozen, and its users should hear so within 5 seconds.
const GREETING: Duration = Duration::from_millis(4500);

/// One attempt to log a user in at the mailbox server.
pub(crate) struct Attempt<'a> {
    pub(crate) record: Record,
    pub(crate) facts: &'a Facts,
    pub(crate) house: &'a House,
}

/// Why one try at one server failed.
enum TryFailure {
    /// The route may be stale: worth asking again, once.
    Suspect(LoginFailure),
    /// The server kept us waiting, or cannot help now: worth another try only somewhere else.
    Slow(LoginFailure),
    /// The server has answered.
    Final(LoginFailure),
}

impl Attempt<'_> {
    /// Looks up, connects, logs in. A server that refuses the connection or says that the account lives elsewhere
    /// makes us forget the route, ask again and try once more, before the client hears anything.
    pub(crate) async fn run(
        &mut self,
        credentials: &Credentials,
        id: IdFields,
    ) -> Result<(BoxStream, Accepted), LoginFailure> {
        let lookup = self.facts.lookup(credentials);
        let route = self.route(&lookup).await?;
        let failure = match self.try_at(&route, credentials, id.clone()).await {
            Ok(done) => return Ok(done),
            Err(failure) => failure,
        };
        let failure = match failure {
            // A wrong password says nothing about the route, which may be needed while the directory is down.
            TryFailure::Final(failure) => return Err(failure),
            TryFailure::Suspect(_) => None,
            TryFailure::Slow(failure) => Some(failure),
        };
        self.house.routes.forget(&lookup);
        let fresh = self.route(&lookup).await?;
        if let Some(failure) = failure
            && (&fresh.host, fresh.port) == (&route.host, route.port)
        {
            return Err(failure);
        }
        match self.try_at(&fresh, credentials, id).await {
            Ok(done) => Ok(done),
            Err(TryFailure::Suspect(failure) | TryFailure::Slow(failure)) => {
                self.house.routes.forget(&lookup);
                Err(failure)
            }
            Err(TryFailure::Final(failure)) => Err(failure),
        }
    }

    /// Milliseconds since `begun`, told to whoever counts.
    fn took(&self, phase: Phase, begun: Instant) -> u64 {
        let took = begun.elapsed();
        self.house.audit.phase(phase, self.facts.protocol.name(), took);
        millis(took)
    }

    async fn route(&mut self, lookup: &Lookup) -> Result<Route, LoginFailure> {
        let begun = Instant::now();
        let result = self.house.routes.route(lookup).await;
        self.record.ms_lookup = Some(self.took(Phase::Lookup, begun));
        let route = result.map_err(|error| match error {
            RouteError::UnknownUser => LoginFailure::UnknownUser,
            RouteError::NotAllowed { .. } => LoginFailure::NotAllowed(error.to_string()),
            RouteError::NoRoute(why) => LoginFailure::NoRoute(why),
            RouteError::DirectoryDown(why) => LoginFailure::DirectoryDown(why.to_string()),
        })?;
        self.record.account = Some(route.account.to_string());
        self.record.route = Some(address(&route));
        self.record.tier = Some(route.tier.name());
        Ok(route)
    }

    async fn try_at(
        &mut self,
        route: &Route,
        credentials: &Credentials,
        id: IdFields,
    ) -> Result<(BoxStream, Accepted), TryFailure> {
        let called = Instant::now();
        let connected = self.house.transport.connect(route).await;
        self.record.ms_connect = Some(self.took(Phase::Connect, called));
        self.house.audit.connected(route, connected.is_ok());
        let mut server = connected.map_err(|error| {
            let failure = LoginFailure::UpstreamDown(error.to_string());
            match error {
                ConnectError::Refused(_) => TryFailure::Suspect(failure),
                ConnectError::TimedOut(_) => TryFailure::Slow(failure),
            }
        })?;
        let begun = Instant::now();
        let mut machine = self.upstream(route, credentials, id);
        let limit = self.house.settings.upstream_login;
        let greeting = called + GREETING;
        let answer = match timeout(limit, authenticate(&mut server, machine.as_mut(), greeting)).await {
            Ok(answer) => answer,
            Err(_) => Err(Unanswered::Silent),
        };
        self.record.ms_login = Some(self.took(Phase::Login, begun));
        answer.map(|accepted| (server, accepted)).map_err(|unanswered| {
            self.record.phase = Some(machine.phase());
            match unanswered {
                Unanswered::Refused(refusal) => failure(refusal),
                Unanswered::Gone => TryFailure::Suspect(LoginFailure::UpstreamDown(
                    "the mailbox server closed the connection".to_owned(),
                )),
                Unanswered::Silent => TryFailure::Slow(LoginFailure::UpstreamDown(
                    "the mailbox server does not answer".to_owned(),
                )),
            }
        })
    }

    fn upstream(&self, route: &Route, credentials: &Credentials, client_id: IdFields) -> Box<dyn UpstreamMachine> {
        let settings = &self.house.settings;
        let introduction = Introduction {
            credentials: credentials.clone(),
            login: route.login.to_string(),
            client: unmapped(self.facts.client.addr.ip()),
            local: unmapped(self.facts.client.local.ip()),
            client_id,
            product: settings.product.clone(),
            // Where a client is, and what stands in front of it, is no business of somebody else's server.
            announce: !route.external
                && match self.facts.protocol {
                    Protocol::Imap => settings.send_imap_id,
                    Protocol::Pop3 => settings.send_pop3_xoip,
                },
        };
        match self.facts.protocol {
            Protocol::Imap => Box::new(imap::Upstream::new(introduction)),
            Protocol::Pop3 => Box::new(pop3::Upstream::new(introduction)),
        }
    }
}

/// What a mailbox server's refusal means for the login.
fn failure(refusal: Refusal) -> TryFailure {
    match refusal {
        Refusal::BadCredentials => TryFailure::Final(LoginFailure::BadCredentials),
        Refusal::Text(text) => TryFailure::Final(LoginFailure::Refused(text)),
        Refusal::Temporary(why) => TryFailure::Slow(LoginFailure::UpstreamDown(why)),
        Refusal::WrongHost => TryFailure::Suspect(LoginFailure::UpstreamDown("the account lives elsewhere".to_owned())),
        Refusal::Broken(why) => TryFailure::Final(LoginFailure::UpstreamDown(why.to_owned())),
    }
}

/// Why a mailbox server did not take a login.
enum Unanswered {
    Refused(Refusal),
    Gone,
    Silent,
}

/// Speaks to the mailbox server until it has answered the login.
async fn authenticate(
    server: &mut BoxStream,
    machine: &mut dyn UpstreamMachine,
    greeting: Instant,
) -> Result<Accepted, Unanswered> {
    let mut buffer = [0; READ];
    // It holds the password: room for the longest dialogue, so that no copy is left behind by growing, and wiped.
    let mut out = Vec::with_capacity(READ);
    let mut n = timeout_at(greeting, server.read(&mut buffer))
        .await
        .map_err(|_| Unanswered::Silent)?
        .unwrap_or(0);
    loop {
        if n == 0 {
            return Err(Unanswered::Gone);
        }
        let step = machine.input(&buffer[..n], &mut out);
        if !out.is_empty() {
            server.write_all(&out).await.map_err(|_| Unanswered::Gone)?;
            server.flush().await.map_err(|_| Unanswered::Gone)?;
            out.fill(0);
            out.clear();
        }
        match step {
            UpstreamStep::NeedInput => {}
            UpstreamStep::Accepted(accepted) => return Ok(accepted),
            UpstreamStep::Refused(refusal) => return Err(Unanswered::Refused(refusal)),
        }
        n = server.read(&mut buffer).await.unwrap_or(0);
    }
}

fn address(route: &Route) -> String {
    match route.host.contains(':') {
        true => format!("[{}]:{}", route.host, route.port),
        false => format!("{}:{}", route.host, route.port),
    }
}

/// An IPv4 client on a dual-stack listener is an IPv4 client.
fn unmapped(ip: IpAddr) -> IpAddr {
    ip.to_canonical()
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}
