//! The servers that a login is tried at: the one of the route, those that it names, and one that has gone or takes nobody at
//! the moment once more.

use std::time::Duration;

use mail_directory::names;
use route_cache::{Lookup, ReferredRoute, Route};
use tokio::time::sleep;

use super::routes::is_elsewhere;
use super::{MOVED, Taken, Tries};
use crate::credentials::{Credentials, Proof};
use crate::known_servers::ServerDoor;
use crate::login_failure::LoginFailure;
use crate::machine::IdFields;
use crate::referral::Referral;

/// How long a server that takes nobody at the moment is left alone before it is tried again.
const PAUSES: [Duration; 3] = [
    Duration::from_millis(200),
    Duration::from_millis(500),
    Duration::from_millis(1000),
];

/// How long after its beginning a login may be tried again so. Its client hears of an outage within seconds.
const PATIENCE: Duration = Duration::from_secs(5);

/// How often a login follows a mailbox server that names another one.
const MOST_REFERRALS: usize = 2;

/// Why one try at one server failed.
pub(super) enum TryFailure {
    /// The route is stale, or the server has gone: forget it, ask again, and try once more wherever that leads.
    Stale(LoginFailure),
    /// The server has gone at what may be its own end: try once more at the same one. The route stays, because a client
    /// that has a server hang up must not make us ask the directory each time.
    Again(LoginFailure),
    /// It was said at once, and the server, known by this name, has answered as if that was the reason.
    Hurried(LoginFailure, ServerDoor),
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
    /// Connects, logs in. A server that refuses the connection, says that the account lives elsewhere or
    /// refuses a login by an old route makes us ask again and try once more, before the client hears anything.
    pub(super) async fn log_in(
        &mut self,
        lookup: &Lookup,
        route: Route,
        credentials: &Credentials,
        id: IdFields,
    ) -> Result<Taken, LoginFailure> {
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
    ) -> Result<Taken, TryFailure> {
        let mut been = vec![route.clone()];
        if matches!(credentials.proof, Proof::Exchange(_)) {
            self.from = Some(route.clone());
        }
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
    fn referral(&mut self, result: &Result<Taken, TryFailure>) -> Option<Referral> {
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

    /// Tries at one server, and again after a pause where it is only for a moment that it takes nobody: its answer says
    /// nothing of the password then, so this is no second guess. Where all was said at once, and the answer may come from
    /// that, it is tried once more with one command after the other, as whenever it is tried again.
    async fn try_patiently(
        &mut self,
        route: &Route,
        credentials: &Credentials,
        id: IdFields,
    ) -> Result<Taken, TryFailure> {
        let mut hurried_at: Option<ServerDoor> = None;
        loop {
            let result = self.try_at(route, credentials, id.clone(), self.again > 0).await;
            let pause = match &result {
                // That it was said at once has been the reason indeed.
                Ok(_) => {
                    if let Some(door) = &hurried_at {
                        self.env.settings.known.distrust(door);
                    }
                    return result;
                }
                Err(_) if self.conversation.begun => return result,
                Err(TryFailure::Hurried(_, door)) => {
                    hurried_at = Some(door.clone());
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
}

/// Why a referral leads nowhere.
fn not_followed(referral: &Referral) -> String {
    format!("a referral to {} is not followed", referral.host)
}
