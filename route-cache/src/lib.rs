//! Which server holds an account?
//!
//! This library answers that one question for mail and web. [`RouteCache::route`] takes a [`Lookup`] (the login, the
//! service, the addresses of the connection) and returns a [`Route`] (the server's address, and how to speak to it).
//! Behind it are a cache in memory, where configured one that several nodes share ([`SharedCache`]), and a
//! [`Directory`](mail_directory::Directory): the entries and attributes that describe the mail system. Lookup services
//! ([`lookup`]) may be asked for accounts in its place.
//!
//! What is deliberately not here: users' passwords (no type of this crate can hold one for a lookup), sockets to
//! mailbox servers, and any knowledge of IMAP, POP3 or HTTP beyond their names.
#![forbid(unsafe_code)]

pub mod addresses;
mod cache;
mod hold;
mod host_port;
mod key;
pub mod lookup;
pub mod lookup_server;
mod max_sessions;
pub mod memcached;
mod percent;
mod placement;
mod protocol;
mod route;
mod routing;
mod source;

pub use addresses::AddressBook;
pub use cache::{
    AccountFacts, AccountMove, AccountReport, AnswerKind, Blocker, Counters, Destinations, Explanation, FoundBy,
    KeptFileError, KeptRoutes, NameDomain, Purged, ReferredRoute, RouteCache, RouteComparison, Settings, SharedCache,
    TierReport,
};
pub use hold::{Held, Hold, HoldMoment, Holds, LONGEST_HOLD, MAX_HOLDS, TooManyHolds};
pub use host_port::{HostPort, NoHostPort, bracketed, without_zone};
pub use max_sessions::MaxSessions;
pub use route::{Lookup, Route, RouteError, Server, ServerPool, Service, Subject, Tier, UpstreamTls};
