//! Where a login goes: the route, what holds it back, and whether it is still the right one.

use std::time::Duration;

use route_cache::{HoldMoment, Lookup, Route, RouteError};
use tokio::time::{Instant, sleep};

use super::{MOVED, Tries};
use crate::audit::Phase;
use crate::credentials::Credentials;
use crate::login_failure::LoginFailure;

/// How often a login that is held looks whether that is over.
const HOLD_LOOK: Duration = Duration::from_millis(250);

/// The age from which a route is asked for again before a refusal is believed. Younger ones bring nothing new, and
/// a client that guesses passwords must not make us ask the directory each time.
const OLD_ROUTE: Duration = Duration::from_secs(5);

impl Tries {
    /// Where the login goes, once nothing holds it back.
    pub(super) async fn route(&mut self, lookup: &Lookup) -> Result<Route, LoginFailure> {
        let begun = Instant::now();
        self.under_way.asks(false);
        let moment = self.env.routes.holds().moment();
        let result = self.env.routes.route(lookup).await;
        self.record.ms_lookup = Some(self.took(Phase::Lookup, begun));
        let route = self.unheld(lookup, result.map_err(no_route)?, moment).await?;
        self.note(&route);
        Ok(route)
    }

    /// Whether the login may go on at the server where its client has proved itself: while the client was thinking, no
    /// move waited for it.
    pub(super) async fn may_go_on(&mut self, credentials: &Credentials) -> Result<(), LoginFailure> {
        let Some(from) = self.from.clone() else {
            return Ok(());
        };
        // It waits for the end of a hold now, and not for a server that is silent.
        self.course.send_modify(|course| course.greeted = None);
        let lookup = self.facts.lookup(credentials);
        let fresh = self.unheld(&lookup, from.clone(), self.routed).await?;
        self.note_greeting();
        match is_elsewhere(&fresh, &from) {
            true => Err(LoginFailure::UpstreamDown(MOVED.to_owned())),
            false => Ok(()),
        }
    }

    /// Waits until nothing holds the account back, and returns where it is then: where it was at this moment, if no hold
    /// has begun since.
    async fn unheld(
        &mut self,
        lookup: &Lookup,
        mut route: Route,
        mut moment: HoldMoment,
    ) -> Result<Route, LoginFailure> {
        loop {
            // First noted, then looked for a hold: who begins one and looks then for logins under way misses none.
            self.under_way.is_of(&route.account);
            self.under_way.asks(true);
            match self.env.routes.hold_of(&route) {
                Some(why) => {
                    self.under_way.asks(false);
                    (route, moment) = self.released(lookup, route, why).await?;
                }
                None if self.env.routes.holds().none_since(moment) => {
                    self.routed = moment;
                    return Ok(route);
                }
                // A whole move may have passed since the answer.
                None => {
                    moment = self.env.routes.holds().moment();
                    route = self.env.routes.route(lookup).await.map_err(no_route)?;
                }
            }
        }
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

    /// Where the account is by now, if an old route leads elsewhere: it has moved, its alias belongs to another one, or
    /// memcached is wrong.
    pub(super) async fn elsewhere(&mut self, lookup: &Lookup, old: &Route) -> Result<Option<Route>, LoginFailure> {
        match self.env.routes.ask_again(lookup, OLD_ROUTE).await {
            Some(Ok(fresh)) if is_elsewhere(&fresh, old) => {
                self.note(&fresh);
                Ok(Some(fresh))
            }
            Some(Err(error @ (RouteError::UnknownUser | RouteError::NotAllowed { .. }))) => Err(no_route(error)),
            _ => Ok(None),
        }
    }
}

/// Whether a login by the one route says nothing of one by the other.
pub(super) fn is_elsewhere(fresh: &Route, old: &Route) -> bool {
    let same = fresh.host == old.host && fresh.port == old.port;
    !(same && fresh.account == old.account && fresh.login == old.login)
}

/// Why there is no route, for the login.
pub(super) fn no_route(error: RouteError) -> LoginFailure {
    match error {
        RouteError::UnknownUser => LoginFailure::UnknownUser,
        RouteError::NotAllowed { .. } => LoginFailure::NotAllowed(error.to_string()),
        RouteError::NoRoute(why) => LoginFailure::NoRoute(why),
        RouteError::DirectoryDown(why) => LoginFailure::DirectoryDown(why.to_string()),
    }
}
