//! The directory in LDAP: a real Carbonio or Zimbra tree (MAIL §7). It is only read here; `edit.rs` changes it.
//!
//! Global config, servers, domains and classes of service are read whole and looked at again every `poll`;
//! accounts are searched for one by one. How a server is reached is in `pool.rs`, what a reading consists of in
//! `sync.rs`, how a change is noticed in `sync_point.rs`, how it is told by the server in `syncrepl.rs`; `follow.rs`
//! chooses between the two.

use std::collections::HashSet;
use std::fmt;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use arc_swap::{ArcSwap, ArcSwapOption};
use async_trait::async_trait;
use ldap3::Scope as Reach;
use native_tls::{Certificate, Protocol, TlsConnector};
use tokio::sync::{Mutex, Notify, broadcast, watch};

use self::open::Opener;
use self::pool::{Extent, LdapError, Pool, Search};
use self::search_entry::SearchEntry;
use self::sync::SyncState;
use self::sync_point::SyncPoint;
use crate::attributes::{self, Scope};
use crate::directory::{AccountBy, Announcer, Apply, Directory, DirectoryError, News, WayOfChanges, off_the_runtime};
use crate::edit::EntryKind;
use crate::entry::Entry;
use crate::last_good;
use crate::losses::{self, Losses};
use crate::names::{self, fold};
use crate::secret::Secret;
use crate::system::System;
use crate::tls_words::reasons;
use crate::yaml::{Problem, Problems, Severity};

mod ber;
mod dn;
mod edit;
mod filter;
mod follow;
mod guard;
mod open;
mod pool;
mod search_entry;
mod sync;
mod sync_message;
mod sync_point;
mod sync_wire;
mod syncrepl;

pub use edit::LdapEditor;
pub use guard::good as good_messages;
pub use sync_message::said;

/// Entries of one account search. Two would do to see that a name has more than one owner; the rest is for the
/// warning.
const ACCOUNTS: i32 = 4;

/// Where the directory is, and how to bind.
#[derive(Debug, Clone)]
pub struct Settings {
    /// Servers in the order in which they are tried.
    pub urls: Vec<Url>,
    /// Begin TLS on `ldap://` connections, and go no further without it.
    pub starttls: bool,
    /// Certificate authorities for the servers.
    pub trust: Trust,
    /// Name and password to bind with; `None` binds anonymously.
    pub bind: Option<(String, Secret<String>)>,
    /// Longest wait for an answer from one server.
    pub timeout: Duration,
    /// File that keeps the last good reading.
    pub snapshot: Option<PathBuf>,
    /// Changes are taken from the server as they happen (RFC 4533), where it offers that.
    pub sync: bool,
}

/// `ldap://host[:port]` or `ldaps://host[:port]`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Url(String);

impl Url {
    /// Reads it.
    ///
    /// # Errors
    /// Says what was expected.
    pub fn parse(text: &str) -> Result<Self, String> {
        let wrong = || format!("expected ldap://host:port or ldaps://host:port, found {text:?}");
        let text = text.strip_suffix('/').unwrap_or(text);
        let (scheme, place) = text.split_once("://").ok_or_else(wrong)?;
        let is_host = |c: char| c.is_ascii_alphanumeric() || "-._:[]".contains(c);
        let has_host = !place.is_empty() && !place.starts_with(':') && place.chars().all(is_host);
        let port = match place.rsplit_once(':') {
            Some((host, port)) if !host.contains(':') || host.ends_with(']') => Some(port),
            _ => None,
        };
        let good_port = port.is_none_or(|port| port.parse::<u16>().is_ok_and(|port| port > 0));
        match ["ldap", "ldaps"].contains(&scheme) && has_host && good_port {
            true => Ok(Self(text.to_owned())),
            false => Err(wrong()),
        }
    }

    /// As it was written.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Where the server is; the port is that of the scheme where none is written.
    fn host_and_port(&self) -> (&str, u16) {
        let place = self.0.split_once("://").map_or("", |(_, place)| place);
        let usual = if self.is_tls() { 636 } else { 389 };
        let (host, port) = match place.rsplit_once(':') {
            Some((host, port)) if !host.contains(':') || host.ends_with(']') => (host, port.parse().unwrap_or(usual)),
            _ => (place, usual),
        };
        (host.trim_start_matches('[').trim_end_matches(']'), port)
    }

    /// Whether a connection is in TLS from its first byte.
    pub fn is_tls(&self) -> bool {
        self.0.starts_with("ldaps")
    }
}

impl fmt::Display for Url {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Certificate authorities for the servers. Certificates are always verified.
#[derive(Clone, Default)]
pub struct Trust(Option<TlsConnector>);

impl Trust {
    /// The system's authorities.
    pub fn system() -> Self {
        Self(None)
    }

    /// Only the authorities in this PEM text.
    ///
    /// # Errors
    /// There is no certificate in it, or it cannot be read.
    pub fn only(pem: &[u8]) -> Result<Self, String> {
        let authorities = Certificate::stack_from_pem(pem).map_err(|error| reasons(&error.to_string()).into_owned())?;
        if authorities.is_empty() {
            return Err("there is no certificate in it".to_owned());
        }
        let mut builder = TlsConnector::builder();
        builder
            .disable_built_in_roots(true)
            .min_protocol_version(Some(Protocol::Tlsv12));
        for authority in authorities {
            builder.add_root_certificate(authority);
        }
        builder
            .build()
            .map(|connector| Self(Some(connector)))
            .map_err(|error| reasons(&error.to_string()).into_owned())
    }
}

impl fmt::Debug for Trust {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(if self.0.is_some() {
            "Trust(file)"
        } else {
            "Trust(system)"
        })
    }
}

/// A directory in LDAP.
pub struct LdapDirectory {
    pool: Pool,
    /// How changes are asked for as they happen; `None`: they are only looked for.
    sync: Option<Opener>,
    snapshot: Option<PathBuf>,
    /// Another process keeps it.
    kept_by_another: AtomicBool,
    system: ArcSwap<System>,
    /// What the last look saw. The one lock that is held over an await: there is one look at a time, whether the
    /// watch or another caller asked for it.
    reading: Mutex<SyncState>,
    /// What was read but refused.
    refused: ArcSwapOption<System>,
    announcer: Announcer,
}

impl LdapDirectory {
    /// Reads the directory, or if it is down the last good reading. Returns the warnings with it.
    ///
    /// # Errors
    /// The directory cannot be read, and there is no last good reading.
    pub async fn load(settings: Settings) -> Result<(Self, Problems), Problems> {
        let kept = settings.snapshot.as_deref().map_or(Ok(None), last_good::read);
        let (kept, mut problems) = match kept {
            Ok(kept) => (kept, Problems::new()),
            // A broken snapshot is no reason not to start from the directory itself.
            Err(broken) => (None, warnings(broken)),
        };
        let has_kept = kept.is_some();
        let directory = Self {
            pool: Pool::new(&settings),
            sync: settings.sync.then(|| Opener::new(&settings)),
            snapshot: settings.snapshot,
            kept_by_another: AtomicBool::new(false),
            system: ArcSwap::from_pointee(kept.unwrap_or_default()),
            reading: Mutex::default(),
            refused: ArcSwapOption::empty(),
            announcer: Announcer::new(),
        };
        let everything: Arc<Apply> = Arc::new(|_| Ok(()));
        // At the start of a node the directory as it is now counts.
        let taken = directory.take_changes(&everything, Losses::Most).await;
        // The connections are driven by the runtime of the caller, which may not be the one that serves.
        directory.pool.close();
        match taken {
            Ok(warnings) => problems.extend(warnings),
            Err(error) if has_kept => {
                let message = format!("{error}; starting from the last good reading");
                problems.push(problem(String::new(), message, Severity::Warning));
            }
            Err(error) => {
                problems.push(problem(String::new(), error.to_string(), Severity::Error));
                return Err(problems);
            }
        }
        Ok((directory, problems))
    }

    /// Looks for changes and takes them over, if no more than `losses` is gone. Returns what is wrong with the
    /// entries that changed.
    async fn take_changes(&self, apply: &Arc<Apply>, losses: Losses) -> Result<Problems, LdapError> {
        let mut reading = self.reading.lock().await;
        let mut problems = Problems::new();
        let before = self.system.load_full();
        let renewed = reading.renew(&self.pool, &before, losses, &mut problems).await;
        if let Err(LdapError::Refused(reason)) = &renewed {
            self.announcer.refuse(reason.clone());
        }
        match renewed? {
            Some(system) => self.adopt(Arc::new(system), apply, losses, &mut problems).await,
            None if self.refused.load().is_none() => self.announcer.accept(),
            None => {}
        }
        match reading.accounts(&self.pool).await? {
            News::Touched(touched) if touched.is_empty() => {}
            news => self.announcer.announce(news),
        }
        if reading.has_moved() {
            self.announcer.announce(News::MayBeGone);
        }
        if let Some(point) = reading.reached() {
            self.announcer.announce(News::Reached(point.into()));
        }
        self.announcer.was_read();
        Ok(problems)
    }

    /// Searches for accounts.
    async fn accounts(
        &self,
        filter: String,
        attributes: Arc<[String]>,
        extent: Extent,
    ) -> Result<Vec<SearchEntry>, DirectoryError> {
        let (base, scope) = place(EntryKind::Accounts);
        let search = Search {
            base: base.to_owned(),
            scope,
            filter,
            attributes,
            extent,
        };
        match self.pool.search(search).await {
            // Without the root no account could be found, so this says nothing about any account.
            Ok(reply) if !reply.has_base => Err(DirectoryError(
                "the root of the directory cannot be searched".to_owned(),
            )),
            Ok(reply) => Ok(reply.entries),
            Err(error) => Err(DirectoryError(error.to_string())),
        }
    }

    /// Puts a system in force, unless it is refused.
    async fn adopt(&self, system: Arc<System>, apply: &Arc<Apply>, losses: Losses, problems: &mut Problems) {
        let (apply, candidate) = (apply.clone(), system.clone());
        let applied = match losses.forbid(losses::of_systems(&self.system.load(), &system)) {
            Some(reason) => Err(alone(reason)),
            None => {
                let applied = off_the_runtime(move || apply(&candidate)).await;
                applied.map_err(Problems::from).flatten()
            }
        };
        match applied {
            Ok(()) => {
                self.refused.store(None);
                self.system.store(system);
                self.announcer.accept();
                self.announcer.changed();
            }
            Err(reasons) => {
                self.refused.store(Some(system));
                self.announcer.refuse(reasons.first_error());
                problems.extend(reasons);
                let message = "what was read cannot be put in force; what was in force stays".to_owned();
                problems.push(problem(String::new(), message, Severity::Error));
            }
        }
    }

    /// The same with log lines: what is wrong with entries each time that they change, and once that the directory
    /// cannot be read.
    async fn refresh_and_log(&self, apply: &Arc<Apply>, failing: &mut bool) {
        match self.take_changes(apply, Losses::Few).await {
            Ok(problems) => {
                log_problems(&problems);
                if std::mem::take(failing) {
                    log::info!("the directory can be read again");
                }
            }
            Err(error) if !*failing => {
                *failing = true;
                log::error!("the directory cannot be read; what it said before stays in force: {error}");
            }
            Err(error) => log::debug!("directory: {error}"),
        }
    }

    /// Writes the last good reading if it is not in the file yet. `kept` is what is there.
    async fn keep(&self, kept: &mut Option<Arc<System>>, failing: bool) {
        let system = self.system.load_full();
        let (Some(path), false) = (self.snapshot.clone(), failing) else {
            return;
        };
        let is_kept = kept.as_ref().is_some_and(|kept| Arc::ptr_eq(kept, &system));
        if is_kept || self.kept_by_another.load(Ordering::Relaxed) {
            return;
        }
        *kept = Some(system.clone());
        // Writing a file blocks.
        let written = tokio::task::spawn_blocking({
            let path = path.clone();
            move || last_good::write(&path, &system)
        });
        match written.await {
            Ok(Ok(())) => log::debug!("the directory is kept in {}", path.display()),
            Ok(Err(error)) => log::warn!("the directory cannot be kept in {}: {error}", path.display()),
            Err(error) => log::error!("keeping the directory: {error}"),
        }
    }
}

#[async_trait]
impl Directory for LdapDirectory {
    fn leave_keeping(&self, to_another: bool) {
        self.kept_by_another.store(to_another, Ordering::Relaxed);
    }

    fn system(&self) -> Arc<System> {
        self.system.load_full()
    }

    async fn account(&self, by: &AccountBy) -> Result<Option<Arc<Entry>>, DirectoryError> {
        let attributes = account_attributes(&self.system.load());
        let found = self.accounts(filter::account(by), attributes, Extent::Few(ACCOUNTS));
        Ok(owner(found.await?, by).map(|found| Arc::new(found.into_entry(EntryKind::Accounts))))
    }

    fn age(&self) -> Option<Duration> {
        self.announcer.age()
    }

    fn way(&self) -> Option<WayOfChanges> {
        Some(self.announcer.way())
    }

    fn refusal(&self) -> Option<String> {
        self.announcer.refusal()
    }

    async fn gone(&self, names: &[Arc<str>]) -> Result<Vec<Arc<str>>, DirectoryError> {
        let address = attributes::MAIL_DELIVERY_ADDRESS.name;
        let wanted = Arc::new([address.to_owned()]);
        let found = self.accounts(filter::addresses(names), wanted, Extent::All).await?;
        let addresses = found.iter().flat_map(|found| found.values(address));
        let there: HashSet<String> = addresses.map(|name| names::account(name)).collect();
        Ok(names.iter().filter(|name| !there.contains(&***name)).cloned().collect())
    }

    /// Deletions are not told by LDAP: the listeners are told to look for them.
    async fn changed_since(&self, point: &str) -> Result<News, DirectoryError> {
        let reading = self.reading.lock().await;
        let changed = reading.accounts_after(&self.pool, point).await;
        match changed.map_err(|error| DirectoryError(error.to_string()))? {
            Some(touched) => {
                self.announcer.announce(News::MayBeGone);
                Ok(News::Touched(touched.into()))
            }
            None => Ok(News::Unknown),
        }
    }

    async fn has_taken(&self, point: &str) -> bool {
        match SyncPoint::parse(point) {
            Some(point) => self.reading.lock().await.covers(&point),
            None => false,
        }
    }

    fn mark(&self) -> Arc<Notify> {
        self.announcer.mark()
    }

    fn changes(&self) -> watch::Receiver<u64> {
        self.announcer.changes()
    }

    fn news(&self) -> broadcast::Receiver<News> {
        self.announcer.news()
    }

    async fn watch(self: Arc<Self>, poll: Duration, apply: Arc<Apply>) {
        tokio::join!(self.watch_changes(poll, apply), self.pool.recover());
    }

    /// Also while the directory is down: `apply` may have something else to put in force.
    async fn refresh(self: Arc<Self>, apply: Arc<Apply>, losses: Losses) -> Result<(), Problems> {
        let before = self.system.load_full();
        let (mut problems, error) = match self.take_changes(&apply, losses).await {
            Ok(problems) => (problems, None),
            Err(error) => (Problems::new(), Some(error)),
        };
        {
            // The watch may look in between, and what it has put in force must not be undone.
            let _one = self.reading.lock().await;
            if Arc::ptr_eq(&before, &self.system.load()) && !problems.has_errors() {
                let candidate = self.refused.load_full().unwrap_or(before);
                self.adopt(candidate, &apply, losses, &mut problems).await;
            }
        }
        if let Some(error) = error {
            problems.push(problem(String::new(), error.to_string(), Severity::Error));
        }
        let ((), warnings) = problems.or(())?;
        log_problems(&warnings);
        Ok(())
    }
}

fn log_problems(problems: &Problems) {
    problems
        .iter()
        .for_each(|problem| log::warn!(target: "mail_directory::list", "directory: {problem}"));
}

/// Which of the found entries has the name: an address goes before an alias. Where several claim it in the same way
/// the first in the alphabet has it, each time. A directory finds accounts by more than their names (RFC 4518 §2.6);
/// as each such spelling would be kept, these do not count.
fn owner(mut found: Vec<SearchEntry>, by: &AccountBy) -> Option<SearchEntry> {
    found.retain(|found| bears(found, by));
    found.sort_by_cached_key(|found| (!has_address(found, by), found.key()));
    if found.len() > 1 && has_address(&found[0], by) == has_address(&found[1], by) {
        log::warn!("{by:?} belongs to {} and to {}", found[0].dn, found[1].dn);
    }
    found.into_iter().next()
}

fn has_address(found: &SearchEntry, by: &AccountBy) -> bool {
    let own = found.first(attributes::MAIL_DELIVERY_ADDRESS.name);
    matches!((by, own), (AccountBy::Name(name), Some(own)) if names::account(own) == *name)
}

fn bears(found: &SearchEntry, by: &AccountBy) -> bool {
    let addresses = [attributes::MAIL_DELIVERY_ADDRESS.name, attributes::MAIL_ALIAS.name];
    let mut addresses = addresses.iter().flat_map(|attribute| found.values(attribute));
    match by {
        AccountBy::Name(name) => addresses.any(|address| names::account(address) == *name),
        AccountBy::Id(id) => found.values(attributes::ID.name).iter().any(|own| fold(own) == *id),
    }
}

/// Where the entries of a kind stand (MAIL §7.1).
fn place(kind: EntryKind) -> (&'static str, Reach) {
    match kind {
        EntryKind::Config => ("cn=config,cn=zimbra", Reach::Base),
        EntryKind::Servers => ("cn=servers,cn=zimbra", Reach::OneLevel),
        EntryKind::Cos => ("cn=cos,cn=zimbra", Reach::OneLevel),
        EntryKind::Domains | EntryKind::Accounts => ("", Reach::Subtree),
    }
}

/// The attribute with the name of such entries.
fn name_attribute(kind: EntryKind) -> &'static str {
    match kind {
        EntryKind::Config | EntryKind::Servers | EntryKind::Cos => "cn",
        EntryKind::Domains => attributes::DOMAIN_NAME.name,
        EntryKind::Accounts => attributes::MAIL_DELIVERY_ADDRESS.name,
    }
}

/// What is asked of an account: what has a meaning there, and what the global config names.
fn account_attributes(system: &System) -> Arc<[String]> {
    let global = system.global();
    let named = [
        &attributes::REVERSE_PROXY_MAIL_HOST_ATTRIBUTE,
        &attributes::REVERSE_PROXY_USER_NAME_ATTRIBUTE,
    ];
    let named = named.iter().filter_map(|attribute| global.text(attribute));
    attribute_names(Scope::Account, named)
}

/// The attributes of the table for one kind of entry, and some more.
fn attribute_names<'a>(scope: Scope, more: impl Iterator<Item = &'a str>) -> Arc<[String]> {
    let known = attributes::ALL.iter().filter(|attribute| attribute.is_for(scope));
    let known = known.map(|attribute| attribute.name);
    known
        .chain(more.filter(|name| is_attribute(name)))
        .map(str::to_owned)
        .collect()
}

/// RFC 4512 §1.4, `keystring`. Anything else could be a request for everything (`*`).
fn is_attribute(name: &str) -> bool {
    name.starts_with(|c: char| c.is_ascii_alphabetic()) && name.chars().all(|c| c.is_ascii_alphanumeric() || c == '-')
}

fn problem(key: String, message: String, severity: Severity) -> Problem {
    Problem {
        file: None,
        line: None,
        key,
        message,
        severity,
    }
}

/// This error as the only problem.
fn alone(message: String) -> Problems {
    let mut problems = Problems::new();
    problems.push(problem(String::new(), message, Severity::Error));
    problems
}

/// The same as warnings.
fn warnings(problems: Problems) -> Problems {
    let mut warnings = Problems::new();
    for problem in problems {
        warnings.push(Problem {
            severity: Severity::Warning,
            ..problem
        });
    }
    warnings
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn urls_name_a_scheme_and_a_host() {
        for good in [
            "ldap://a",
            "ldap://a:389",
            "ldaps://a.b-c:636/",
            "ldap://[::1]:389",
            "ldap://127.0.0.1:1",
        ] {
            assert!(Url::parse(good).is_ok(), "{good}");
        }
        for bad in [
            "",
            "a",
            "ldapi://a",
            "http://a",
            "ldap://",
            "ldap://:389",
            "ldap://a:0",
            "ldap://a:x",
            "ldap://a/b",
            "ldap://u@a",
        ] {
            assert!(Url::parse(bad).is_err(), "{bad}");
        }
        assert!(Url::parse("ldaps://a").unwrap().is_tls() && !Url::parse("ldap://a").unwrap().is_tls());
        for (url, expected) in [
            ("ldap://a", ("a", 389)),
            ("ldaps://a.b", ("a.b", 636)),
            ("ldap://a:1389/", ("a", 1389)),
            ("ldaps://[::1]", ("::1", 636)),
            ("ldap://[::1]:390", ("::1", 390)),
        ] {
            assert_eq!(Url::parse(url).unwrap().host_and_port(), expected, "{url}");
        }
    }

    #[test]
    fn only_names_of_attributes_are_asked_for() {
        let mut config = Entry::new("config");
        config.set("zimbraReverseProxyMailHostAttribute", ["*"]);
        config.set("zimbraReverseProxyUserNameAttribute", ["carLicense"]);
        let names = account_attributes(&System::new(config, [], [], []));
        assert!(names.iter().any(|name| name == "carLicense"));
        assert!(names.iter().any(|name| name == "zimbraMailHost"));
        assert!(!names.iter().any(|name| name == "*"));
    }

    #[test]
    fn trust_needs_a_certificate() {
        assert!(Trust::only(b"").is_err());
        assert!(Trust::only(b"-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n").is_err());
    }
}
