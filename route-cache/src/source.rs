//! The source of placements where no cache has one: the directory, or lookup services in its place.

use std::sync::Arc;

use mail_directory::{Directory, System};

use crate::key::Key;
use crate::lookup::Services;
use crate::placement::{self, SourceAnswer};
use crate::protocol::Protocol;
use crate::route::{Lookup, RouteError};

/// The source.
pub(crate) enum Source {
    /// The account's entry.
    Directory(Arc<dyn Directory>),
    /// Services that know the answer. Servers and domains are the directory's all the same.
    Services(Box<Services>),
}

impl Source {
    /// Normalises the subject of a lookup to the form in which this source is asked.
    pub(crate) fn key(&self, lookup: &Lookup, system: &System) -> Result<Key, RouteError> {
        match self {
            Self::Directory(_) => Key::of(lookup, system),
            Self::Services(_) => Key::for_service(lookup, system),
        }
    }

    /// Where the account is. Only the connection facts of the lookup count.
    pub(crate) async fn ask(
        &self,
        lookup: &Lookup,
        key: &Key,
        protocol: Protocol,
        system: &Arc<System>,
    ) -> Result<SourceAnswer, RouteError> {
        match self {
            Self::Directory(directory) => {
                let placement = placement::place(&**directory, system, key).await?;
                Ok(SourceAnswer { placement, alias: true })
            }
            Self::Services(services) => services.place(lookup, key, protocol, system).await,
        }
    }
}
