//! On which server does this account live?
//!
//! This library answers that one question for the whole house. [`RouteCache::route`] takes a [`Lookup`] (who
//! logs in, to which service, from where) and gives a [`Route`] (which address, how to speak to it). Behind it
//! stand a cache in memory, where configured one that several nodes share ([`SharedCache`]), and a [`Directory`]:
//! the entries and attributes that describe the mail system. Lookup services ([`lookup`]) may be asked for accounts
//! in its place.
//!
//! What is deliberately not here: users' passwords (no type of this crate can hold one for a lookup), sockets to
//! mailbox servers, and any knowledge of IMAP, POP3 or HTTP beyond their names.
#![forbid(unsafe_code)]

pub mod addresses;
pub mod attributes;
mod cache;
pub mod directory;
mod follow;
pub mod lookup;
pub mod memcached;
mod resolve;
mod route;
mod secret;
pub mod secret_file;
mod shared;
mod shelf;
mod source;
mod tallies;
pub mod yaml;

pub use addresses::AddressBook;
pub use cache::{
    AccountFacts, AccountSaid, Answer, Explanation, FoundBy, Hindrance, NameDomain, Purged, RouteCache, Settings,
    TierSaid,
};
pub use directory::{AccountBy, Directory, DirectoryError, Entry, News, System, Touched};
pub use route::{Lookup, Offer, Route, RouteError, Server, Service, Subject, Tier, UpstreamTls};
pub use secret::Secret;
pub use shared::SharedCache;
pub use tallies::Tallies;
