//! A mailbox server says that an account is on another one. The directory has the last word about which servers there
//! are; where the account is, it may learn later than they.
//!
//! A route that was learned so is kept like any other, until the directory says something new of the account or the
//! route expires. Other nodes are not told, nor is a later process.

use super::RouteCache;
use super::question::Fetched;
use crate::key::Key;
use crate::placement::Placement;
use crate::protocol::Protocol;
use crate::route::{Lookup, Route, RouteError, Tier};

/// A route to the server that another one has named.
pub struct ReferredRoute {
    /// Where it leads.
    pub route: Route,
    placement: Placement,
    /// The point in the order of forgets at which it was named.
    since: u64,
}

impl RouteCache {
    /// The route of an account at another server of the directory than that which its route leads to.
    ///
    /// # Errors
    /// The directory has no such server, or it serves no mailboxes by this protocol.
    pub fn refer(&self, lookup: &Lookup, from: &Route, host: &str) -> Result<ReferredRoute, RouteError> {
        let system = self.directory.system();
        let named = |text: &str| RouteError::NoRoute(format!("{} refers to {host}, {text}", from.server));
        let mailboxes = || system.mailbox_servers().map(|server| system.server_key(server.name()));
        let server = system
            .server_key(host)
            .ok_or_else(|| named("which the directory does not know"))?;
        if !mailboxes().any(|key| key == Some(server)) {
            return Err(named("which holds no mailboxes"));
        }
        let login = (from.login != from.account).then(|| from.login.clone());
        let mut placement = Placement::on(server, from.account.clone(), login, &system).by_referral();
        placement.max_sessions = from.max_sessions;
        let protocol = Protocol::of(lookup.service, system.node(&self.settings.node));
        let query = self.query(lookup, protocol, &system)?;
        Ok(ReferredRoute {
            route: query.answer(Some(&placement), Tier::Referral)?,
            placement,
            since: self.flights.now(),
        })
    }

    /// Keeps it, now that the server has taken a login. Not if the account was forgotten meanwhile: the directory knows
    /// better.
    pub fn learn(&self, referred: ReferredRoute) {
        let fetched = Fetched {
            at: self.now(),
            placement: Some(referred.placement),
            tier: Tier::Referral,
            alias: false,
        };
        let account = Key::Name(referred.route.account);
        let mut state = self.flights.0.lock();
        if state.is_wanted(&account, &fetched, referred.since) {
            self.keep_here(&account, &fetched);
        }
    }
}
