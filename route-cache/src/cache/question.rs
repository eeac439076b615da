//! One question to the tiers, and an answer to it.

use std::sync::Arc;

use mail_directory::System;

use super::known::Millis;
use crate::key::Key;
use crate::placement::Placement;
use crate::protocol::Protocol;
use crate::route::{Lookup, Route, RouteError, Tier};
use crate::routing;

/// One question, and the facts that its answer depends on.
pub(super) struct Query<'a> {
    pub(super) lookup: &'a Lookup,
    pub(super) key: Key,
    pub(super) protocol: Protocol,
    pub(super) system: &'a Arc<System>,
    pub(super) freshness: Freshness,
}

/// What is good enough of what is kept.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Freshness {
    /// Everything that is in its life.
    Fresh,
    /// What is not near the end of its life.
    Young,
    /// What the source has said since then.
    Since(Millis),
}

impl Freshness {
    /// Whether an answer of this time is good enough, if it is in its life.
    pub(super) fn takes(self, at: Millis) -> bool {
        match self {
            Self::Fresh | Self::Young => true,
            Self::Since(when) => at >= when,
        }
    }
}

impl Query<'_> {
    pub(super) fn answer(&self, placement: Option<&Placement>, tier: Tier) -> Result<Route, RouteError> {
        routing::route(self.lookup, &self.key, placement, self.system, self.protocol, tier)
    }

    /// Whether what another lookup was told is an answer to this question.
    pub(super) fn is_answered_by(&self, result: &Result<Fetched, RouteError>) -> bool {
        match result {
            Ok(fetched) if !self.freshness.takes(fetched.at) => false,
            Ok(fetched) => fetched
                .placement
                .as_ref()
                .is_none_or(|placement| placement.answers(self.protocol)),
            Err(RouteError::DirectoryDown(_) | RouteError::UnknownUser) => true,
            Err(RouteError::NotAllowed { .. } | RouteError::NoRoute(_)) => false,
        }
    }
}

/// An answer of a tier.
#[derive(Debug, Clone)]
pub(super) struct Fetched {
    pub(super) at: Millis,
    pub(super) placement: Option<Placement>,
    pub(super) tier: Tier,
    /// Whether the name that was asked for may be kept as another name of the account.
    pub(super) alias: bool,
}
