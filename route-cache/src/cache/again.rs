//! The source is asked again, past every cache, when a mailbox server has refused a login: the account may have moved,
//! or what the nodes share may be wrong.
//!
//! Nothing is forgotten because of this: while the source cannot be asked, what is kept may still serve.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use mail_directory::System;

use super::RouteCache;
use super::known::millis;
use super::question::{Freshness, Query};
use crate::protocol::Protocol;
use crate::route::{Lookup, Route, RouteError};

impl RouteCache {
    /// Asks the source where the account is now, together with all lookups that do the same, and keeps the answer,
    /// here and in the cache that nodes share. `None` if what is kept came from the source within `age`, or if the
    /// source has just failed: there is nothing new to learn.
    pub async fn ask_again(&self, lookup: &Lookup, age: Duration) -> Option<Result<Route, RouteError>> {
        let system = self.directory.system();
        let protocol = Protocol::of(lookup.service, system.node(&self.settings.node));
        self.ask_again_by(lookup, protocol, &system, age).await
    }

    async fn ask_again_by(
        &self,
        lookup: &Lookup,
        protocol: Protocol,
        system: &Arc<System>,
        age: Duration,
    ) -> Option<Result<Route, RouteError>> {
        let query = Query {
            freshness: Freshness::Since(self.now().saturating_sub(millis(age))),
            ..self.query(lookup, protocol, system).ok()?
        };
        let pausing = self.now() < self.down_until.load(Ordering::Relaxed);
        if pausing || self.fresh(&query, self.find(&query).as_ref()).is_some() {
            return None;
        }
        let fetched = self.fetch(&query).await;
        Some(fetched.and_then(|fetched| query.answer(fetched.placement.as_ref(), fetched.tier)))
    }
}
