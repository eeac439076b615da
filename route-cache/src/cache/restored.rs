//! What a previous process has kept: how it comes to be believed, and how it is asked for again.
//!
//! The directory says what changed since the file was written, and that is dropped first. The rest is as good as what
//! this process has kept itself, but each route is asked for again all the same: the one asked for last before the
//! others, one at a time.

use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use mail_directory::{DirectoryError, News};
use parking_lot::Mutex;
use tokio::time::sleep;

use super::RouteCache;
use super::fetch::DOWN_PAUSE;
use super::known::{FIRST_EPOCH, Kept, Millis, RESTORED};
use super::question::{Freshness, Query};
use crate::key::Key;
use crate::protocol::Protocol;
use crate::route::{Lookup, RouteError, Service, Subject};
use crate::source::Source;

/// Time between questions: a hundred in a second, some percent of what one directory server answers.
const PACE: Duration = Duration::from_millis(10);

/// How far what is kept is known to be true.
#[derive(Default)]
pub(super) struct Restored {
    state: Mutex<Progress>,
    /// When the directory said what changed; zero before that.
    confirmed: AtomicU64,
}

#[derive(Default)]
struct Progress {
    /// All changes up to this point of the directory have been followed.
    point: Option<Arc<str>>,
    /// What came from a file waits for the changes since then.
    waits: bool,
}

/// What happened to the table since it was written last.
#[derive(Default)]
pub(super) struct Unwritten {
    changes: AtomicU64,
    renewals: AtomicU64,
}

impl Unwritten {
    /// A route is new or another one, or is gone.
    pub(super) fn change(&self) {
        self.changes.fetch_add(1, Ordering::Relaxed);
    }

    /// A route is known to be the same.
    pub(super) fn renew(&self) {
        self.renewals.fetch_add(1, Ordering::Relaxed);
    }

    /// How often there was a change, and how often none.
    pub(super) fn counts(&self) -> (u64, u64) {
        (
            self.changes.load(Ordering::Relaxed),
            self.renewals.load(Ordering::Relaxed),
        )
    }
}

impl Restored {
    /// When the directory said what changed since the file was written.
    pub(super) fn confirmed(&self) -> Option<Millis> {
        Some(self.confirmed.load(Ordering::Relaxed)).filter(|when| *when > 0)
    }

    /// What was loaded is true up to this point of the directory, as far as is known.
    pub(super) fn loaded(&self, point: Option<Arc<str>>) {
        let waits = point.is_some();
        *self.state.lock() = Progress { point, waits };
    }

    /// The point of the directory up to which what is kept has followed it.
    pub(super) fn point(&self) -> Option<Arc<str>> {
        self.state.lock().point.clone()
    }

    fn awaited(&self) -> Option<Arc<str>> {
        let state = self.state.lock();
        state.point.clone().filter(|_| state.waits)
    }
}

impl RouteCache {
    /// All changes up to this point of the directory have been followed, unless those since the file was written are
    /// still to come.
    pub(super) fn reached(&self, point: Arc<str>) {
        let mut state = self.restored.state.lock();
        if !state.waits && state.point.as_ref() != Some(&point) {
            state.point = Some(point);
            self.unwritten.renew();
        }
    }

    /// Whether a later process may believe this, once it knows what changed since.
    pub(super) fn is_sure(&self, kept: &Kept) -> bool {
        let believed = self.believed.load(Ordering::Relaxed);
        let waits = || believed == FIRST_EPOCH && self.restored.awaited().is_some();
        kept.epoch >= believed || (kept.epoch == RESTORED && waits())
    }

    /// Drops what changed since the file was written, and believes the rest. Does nothing a second time.
    ///
    /// # Errors
    /// The directory could not be asked.
    pub(super) async fn confirm(&self) -> Result<(), DirectoryError> {
        let Some(point) = self.restored.awaited() else {
            return Ok(());
        };
        match self.directory.changed_since(&point).await? {
            News::Touched(accounts) => {
                self.forget_accounts(&accounts);
                self.believe_restored();
                log::info!(
                    "the directory has changed {} accounts since the routes were kept",
                    accounts.len()
                );
            }
            News::MayBeGone | News::Unknown | News::Reached(_) | News::Mark(_) => {
                log::info!(
                    "the directory cannot tell what changed since the routes were kept: all are asked for again"
                );
            }
        }
        self.restored.state.lock().waits = false;
        self.unwritten.change();
        Ok(())
    }

    /// Nothing, if everything was taken for old meanwhile.
    fn believe_restored(&self) {
        self.restored.confirmed.store(self.now(), Ordering::Relaxed);
        let _ = self
            .believed
            .compare_exchange(FIRST_EPOCH, RESTORED, Ordering::Relaxed, Ordering::Relaxed);
    }

    /// Asks the directory again for routes of a previous process. Lookup services are not asked: they could tell
    /// nothing about a client that is not there.
    pub(super) async fn renew_restored(&self, keys: Vec<Key>) {
        if matches!(self.source, Source::Services(_)) {
            return;
        }
        for key in keys {
            while let Err(error) = self.renew(&key).await {
                log::debug!("a route of the previous process is not asked for yet: {error}");
                sleep(DOWN_PAUSE).await;
            }
        }
    }

    /// Asks for one, unless a login has.
    async fn renew(&self, key: &Key) -> Result<(), RouteError> {
        if !self.peek(key).is_some_and(|old| old.is_restored()) {
            tokio::task::yield_now().await;
            return Ok(());
        }
        let system = self.directory.system();
        let lookup = lookup_of(key);
        let query = Query {
            lookup: &lookup,
            key: key.clone(),
            protocol: Protocol::of(lookup.service, system.node(&self.settings.node)),
            system: &system,
            freshness: Freshness::Young,
        };
        let asked = self.fetch(&query).await;
        sleep(PACE).await;
        match asked {
            Err(error @ RouteError::DirectoryDown(_)) => Err(error),
            _ => Ok(()),
        }
    }
}

/// Only its key counts for a directory.
fn lookup_of(key: &Key) -> Lookup {
    let nobody = IpAddr::V4(Ipv4Addr::UNSPECIFIED);
    let text = key.text().to_string();
    Lookup {
        subject: match key {
            Key::Id(_) => Subject::Id(text),
            Key::Name(_) | Key::Bare(_) => Subject::Login(text),
        },
        service: Service::Imap,
        client: nobody,
        local: nobody,
        host: None,
    }
}
