//! A source of entries, and how it says that they changed.
//!
//! How it reads them is in [`crate::file`] and [`crate::ldap`].

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use parking_lot::Mutex;
use tokio::sync::{Notify, broadcast, watch};
use tokio::task::JoinError;
use tokio::time::Instant;

use crate::attributes;
use crate::entry::Entry;
use crate::losses::Losses;
use crate::names::{self, fold};
use crate::system::System;
use crate::yaml::Problems;

/// How to find an account.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum AccountBy {
    /// By delivery address or alias; lower case, qualified.
    Name(String),
    /// By `zimbraId`; lower case.
    Id(String),
}

/// The directory could not be asked. Never returned for "there is no such entry".
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

    /// How long ago it was last read with success; `None` if it does not say.
    fn age(&self) -> Option<Duration> {
        None
    }

    /// By which way changes come; `None` if it does not say.
    fn way(&self) -> Option<WayOfChanges> {
        None
    }

    /// Why what was read last is not in force; `None` if it is.
    fn refusal(&self) -> Option<String> {
        None
    }

    /// Which of these folded addresses are not the delivery address of any account. Only for a directory whose news
    /// are [`News::MayBeGone`]; others tell which accounts are gone.
    async fn gone(&self, _names: &[Arc<str>]) -> Result<Vec<Arc<str>>, DirectoryError> {
        Ok(Vec::new())
    }

    /// Which accounts changed after `point`, which a [`News::Reached`] told, perhaps to another process.
    ///
    /// # Errors
    /// The directory could not be asked, or was not read yet.
    async fn changed_since(&self, _point: &str) -> Result<News, DirectoryError> {
        Ok(News::Unknown)
    }

    /// Whether everything up to `point`, which [`crate::edit::Editor::point`] told, was read here and is told by
    /// [`Directory::news`].
    async fn has_taken(&self, _point: &str) -> bool {
        false
    }

    /// Puts a mark behind the news of now. It is notified when a listener has come to it.
    fn mark(&self) -> Arc<Notify> {
        let reached = Arc::new(Notify::new());
        reached.notify_one();
        reached
    }

    /// A number that goes up with each change of [`Directory::system`].
    fn changes(&self) -> watch::Receiver<u64> {
        watch::channel(0).1
    }

    /// Which accounts changed, from now on.
    fn news(&self) -> broadcast::Receiver<News> {
        broadcast::channel(1).1
    }

    /// Whether another process keeps the last good reading for the next start; then this one goes on to follow the
    /// directory, and does not write.
    fn leave_keeping(&self, _to_another: bool) {}

    /// Looks for changes every `poll`, until it is dropped; what `apply` refuses is not put in force, and neither is
    /// what has lost most of a kind of entry. Without it a directory stays as it was read, but for the accounts that
    /// are asked for.
    async fn watch(self: Arc<Self>, _poll: Duration, _apply: Arc<Apply>) {
        std::future::pending::<()>().await;
    }

    /// Looks for changes now, and calls `apply` also if there are none. `losses` says what may be gone.
    ///
    /// # Errors
    /// It could not, or what it found cannot be used; then everything stays as it was.
    async fn refresh(self: Arc<Self>, _apply: Arc<Apply>, _losses: Losses) -> Result<(), Problems> {
        Ok(())
    }
}

/// Puts a system in force with whatever else depends on it, or refuses it and changes nothing. It may take
/// its time: it is not called on a thread that serves.
pub type Apply = dyn Fn(&Arc<System>) -> Result<(), Problems> + Send + Sync;

/// Reading files, waiting for their other writers and checking systems block. An error is a panic in there.
pub(crate) async fn off_the_runtime<T: Send + 'static>(
    work: impl FnOnce() -> T + Send + 'static,
) -> Result<T, JoinError> {
    tokio::task::spawn_blocking(work).await
}

impl From<JoinError> for Problems {
    fn from(error: JoinError) -> Self {
        Self::of_file(Path::new(""), None, error.to_string())
    }
}

/// By which way changes come.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WayOfChanges {
    /// The server that tells them as they happen; `None`: they are looked for.
    pub told_by: Option<String>,
    /// Why they are not told, in words.
    pub why: Option<String>,
    /// Since when.
    pub since: Duration,
    /// Changes of entries that were told by this process's servers.
    pub told: u64,
}

/// What happened to accounts.
#[derive(Debug, Clone)]
pub enum News {
    /// These changed, or are gone.
    Touched(Arc<[Touched]>),
    /// Some may be gone; [`Directory::gone`] tells which.
    MayBeGone,
    /// Some may have changed, and it cannot be told which.
    Unknown,
    /// All changes up to this point have been told. [`Directory::changed_since`] goes on from it.
    Reached(Arc<str>),
    /// Somebody waits until everything before this has been followed.
    Mark(Arc<Notify>),
}

/// An account that changed or is gone: every name and id it has or had, as far as the directory knows them.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Touched {
    /// Addresses, folded.
    pub names: Vec<String>,
    /// `zimbraId`s, folded.
    pub ids: Vec<String>,
}

impl Touched {
    /// All names and ids of this account.
    pub fn of(entry: &Entry) -> Self {
        let attributes = [
            attributes::MAIL_DELIVERY_ADDRESS.name,
            attributes::MAIL_ALIAS.name,
            OLD_ADDRESS,
        ];
        let known = attributes.iter().flat_map(|name| entry.values(name));
        Self {
            names: known
                .map(String::as_str)
                .chain([entry.name()])
                .map(names::account)
                .collect(),
            ids: entry.values(attributes::ID.name).iter().map(|id| fold(id)).collect(),
        }
    }
}

/// Where a renamed account keeps its old addresses. They are no names to log in with (MAIL §1.7), but a route may
/// still be kept under them.
pub(crate) const OLD_ADDRESS: &str = "zimbraOldMailAddress";

/// News that a slow listener may be behind with; one further behind gets [`broadcast::error::RecvError::Lagged`] and
/// has to take all accounts for changed. Two or three come with each look at the directory.
const NEWS_KEPT: usize = 64;

/// Tells the listeners.
#[derive(Debug)]
pub(crate) struct Announcer {
    changes: watch::Sender<u64>,
    news: broadcast::Sender<News>,
    read: Mutex<Option<Instant>>,
    refusal: Mutex<Option<String>>,
    way: Mutex<Way>,
    told: AtomicU64,
}

/// The same, with its time.
#[derive(Debug)]
struct Way {
    told_by: Option<String>,
    why: Option<String>,
    since: Instant,
}

impl Announcer {
    pub(crate) fn new() -> Self {
        Self {
            changes: watch::Sender::new(0),
            news: broadcast::Sender::new(NEWS_KEPT),
            read: Mutex::new(None),
            refusal: Mutex::new(None),
            way: Mutex::new(Way {
                told_by: None,
                why: None,
                since: Instant::now(),
            }),
            told: AtomicU64::new(0),
        }
    }

    /// Changes are told by this server from now on.
    pub(crate) fn told_by(&self, server: String) {
        *self.way.lock() = Way {
            told_by: Some(server),
            why: None,
            since: Instant::now(),
        };
    }

    /// They are not told, for this reason.
    pub(crate) fn not_told(&self, why: String) {
        let mut way = self.way.lock();
        if way.told_by.take().is_some() {
            way.since = Instant::now();
        }
        way.why = Some(why);
    }

    /// A change was told.
    pub(crate) fn count_told(&self) {
        self.told.fetch_add(1, Ordering::Relaxed);
    }

    /// By which way changes come.
    pub(crate) fn way(&self) -> WayOfChanges {
        let way = self.way.lock();
        WayOfChanges {
            told_by: way.told_by.clone(),
            why: way.why.clone(),
            since: way.since.elapsed(),
            told: self.told.load(Ordering::Relaxed),
        }
    }

    /// What was read is not in force for this reason.
    pub(crate) fn refuse(&self, reason: String) {
        *self.refusal.lock() = Some(reason);
    }

    /// What was read is in force.
    pub(crate) fn accept(&self) {
        *self.refusal.lock() = None;
    }

    /// Why it is not in force.
    pub(crate) fn refusal(&self) -> Option<String> {
        self.refusal.lock().clone()
    }

    /// The directory was read with success.
    pub(crate) fn was_read(&self) {
        *self.read.lock() = Some(Instant::now());
    }

    /// How long ago that was.
    pub(crate) fn age(&self) -> Option<Duration> {
        Some(self.read.lock().as_ref()?.elapsed())
    }

    pub(crate) fn changed(&self) {
        self.changes.send_modify(|generation| *generation += 1);
    }

    /// It is no failure if there is no listener.
    pub(crate) fn announce(&self, news: News) {
        let _ = self.news.send(news);
    }

    /// The mark of [`Directory::mark`].
    pub(crate) fn mark(&self) -> Arc<Notify> {
        let reached = Arc::new(Notify::new());
        if self.news.send(News::Mark(reached.clone())).is_err() {
            // Nobody listens.
            reached.notify_one();
        }
        reached
    }

    pub(crate) fn announce_touched(&self, touched: Vec<Touched>) {
        if !touched.is_empty() {
            self.announce(News::Touched(touched.into()));
        }
    }

    pub(crate) fn changes(&self) -> watch::Receiver<u64> {
        self.changes.subscribe()
    }

    pub(crate) fn news(&self) -> broadcast::Receiver<News> {
        self.news.subscribe()
    }
}
