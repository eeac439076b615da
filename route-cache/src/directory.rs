//! What the mail system is: entries with attributes, in the names that Zimbra and Carbonio use (MAIL §7).
//!
//! A [`Directory`] holds what changes rarely (global config, servers, domains, classes of service) whole and in
//! memory as a [`System`]; accounts are asked for one by one. Inheritance and the reading of values are here;
//! what follows from them for a login is in `resolve.rs`.

use std::sync::Arc;

use async_trait::async_trait;

mod check;
mod entry;
mod system;
mod view;
pub mod yaml;

pub use entry::{Entry, Origin};
pub use system::System;
pub use view::View;

/// How to find an account.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum AccountBy {
    /// By delivery address or alias; lower case, qualified.
    Name(String),
    /// By `zimbraId`; lower case.
    Id(String),
}

/// The directory could not be asked. Never said for "there is no such entry".
#[derive(Debug, Clone, thiserror::Error)]
#[error("{0}")]
pub struct DirectoryError(pub String);

/// A source of entries: the YAML file, LDAP.
#[async_trait]
pub trait Directory: Send + Sync + 'static {
    /// Global config, servers, domains and classes of service as they are now. Cheap: a clone of an `Arc`.
    fn system(&self) -> Arc<System>;

    /// The entry of one account, or `None` if there is none.
    async fn account(&self, by: &AccountBy) -> Result<Option<Arc<Entry>>, DirectoryError>;
}

/// The form in which names of accounts, domains, hosts and servers are compared and used as keys: lower case,
/// Unicode included. The only place that decides this; internationalised domains are left as they were written.
pub fn fold(name: &str) -> String {
    name.to_lowercase()
}

/// The domain of an address: what follows the last `@`.
pub(crate) fn domain_of(address: &str) -> Option<&str> {
    address.rsplit_once('@').map(|(_, domain)| domain)
}
