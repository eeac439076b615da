//! One reading of everything but the accounts, and what changed since the previous one.
//!
//! Only entries whose version changed are read again. The meaning of values is not known here, but a value that
//! cannot be read is replaced by the previous one.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;
use std::time::Duration;

use ldap3::Scope as Reach;
use tokio::time::sleep;

use super::pool::{Extent, LdapError, Pool, Search};
use super::search_entry::{ENTRY_CSN, MODIFIED, NAMES_AND_VERSION, SearchEntry};
use super::sync_point::{Since, SyncPoint, stamp};
use super::syncrepl::{ToldEntry, Waiting};
use super::{attribute_names, dn, filter, name_attribute, place, problem};
use crate::attributes::{self, Attribute};
use crate::directory::{News, Touched};
use crate::edit::EntryKind;
use crate::entry::Entry;
use crate::losses::Losses;
use crate::names::fold;
use crate::system::{ENTRY_UUID, System};
use crate::yaml::{Problem, Problems, Severity};

/// With more changed entries than this, everything is read: some pages are quicker than many single searches.
const FEW: usize = 64;

/// How often an entry is read that is older than what was told of it, and how long after each other.
const LOOKS: usize = 10;
const LOOK_AGAIN: Duration = Duration::from_millis(50);

/// What the last look saw.
#[derive(Default)]
pub(super) struct SyncState {
    /// By folded distinguished name.
    records: BTreeMap<String, Record>,
    /// How far the accounts have been looked at.
    point: Option<SyncPoint>,
    /// The `entryUUID` of the global config at that time: the same on all replicas, another one in another directory.
    identity: Option<String>,
    /// Whether something happened there between the last two looks.
    moved: bool,
    /// How far the directory was when the look under way began.
    begun: Option<SyncPoint>,
    /// Versions of the accounts of the last look, where there is nothing better than our clock.
    recent: HashMap<String, String>,
    /// Entries changed, and no system was made of them yet: what was asked for next may have failed.
    changed: bool,
    /// Problems that have been reported.
    reported: BTreeSet<String>,
}

struct Record {
    kind: EntryKind,
    version: Version,
    entry: Entry,
    problems: Vec<Problem>,
}

#[derive(Debug, Clone, Default, PartialEq, Eq)]
struct Version {
    csn: Option<String>,
    modified: Option<String>,
}

/// What is read whole.
const KINDS: [EntryKind; 4] = [
    EntryKind::Config,
    EntryKind::Servers,
    EntryKind::Domains,
    EntryKind::Cos,
];

impl SyncState {
    /// The system as it is now, or `None` if it has not changed. `before` is what is in force.
    pub(super) async fn renew(
        &mut self,
        pool: &Pool,
        before: &System,
        losses: Losses,
        problems: &mut Problems,
    ) -> Result<Option<System>, LdapError> {
        if self.records.is_empty() {
            self.read_all(pool, before, losses).await?;
        }
        // Before the entries, so that a change meanwhile is found in the next look.
        let point = SyncPoint::read(pool, |context| self.stands_in(context)).await?;
        let quiet = self.point.as_ref().is_some_and(|last| point.since(last) == Since::Now);
        self.begun = Some(point);
        if !quiet {
            self.read_changed(pool, before, losses).await?;
        }
        if !std::mem::take(&mut self.changed) {
            return Ok(None);
        }
        let system = self.system();
        self.add_new_problems(&system, problems);
        Ok(Some(system))
    }

    /// The same, where a server told which entries changed.
    pub(super) async fn renew_told(
        &mut self,
        pool: &Pool,
        before: &System,
        losses: Losses,
        told: &Waiting,
        problems: &mut Problems,
    ) -> Result<Option<System>, LdapError> {
        match told {
            Waiting::Some(entries) if !entries.keys().any(|dn| self.is_moved(dn, &entries[dn])) => {
                for (dn, entry) in entries {
                    self.read_told(pool, before, dn, entry).await?;
                }
                check_rights(before, losses, |kind| self.count(kind))?;
            }
            _ => self.read_changed(pool, before, losses).await?,
        }
        if !std::mem::take(&mut self.changed) {
            return Ok(None);
        }
        let system = self.system();
        self.add_new_problems(&system, problems);
        Ok(Some(system))
    }

    /// All accounts that changed up to here were told.
    pub(super) fn advance(&mut self, told: SyncPoint) {
        self.point = Some(match self.point.take() {
            Some(point) => point.and(told),
            None => told,
        });
    }

    /// Whether everything up to there has been seen.
    pub(super) fn covers(&self, point: &SyncPoint) -> bool {
        self.point.as_ref().is_some_and(|own| own.covers(point))
    }

    /// Which accounts changed since the last time.
    pub(super) async fn accounts(&mut self, pool: &Pool) -> Result<News, LdapError> {
        let Some(begun) = self.begun.clone() else {
            return Ok(News::Unknown);
        };
        let since = match &self.point {
            Some(last) => begun.since(last),
            None => {
                self.begin_accounts(pool, &begun).await?;
                self.point = Some(begun);
                return Ok(News::Touched(Arc::new([])));
            }
        };
        let identity = self
            .config()
            .and_then(|config| config.first(ENTRY_UUID))
            .map(str::to_owned);
        let is_another = self.identity.is_some() && self.identity != identity;
        self.identity = identity;
        let since = if is_another { Since::Unknown } else { since };
        self.moved = since != Since::Now;
        let news = match &since {
            Since::Now => News::Touched(Arc::new([])),
            Since::Unknown => News::Unknown,
            Since::Csn(since) => self.accounts_since(pool, since).await?,
        };
        self.point = Some(begun);
        Ok(news)
    }

    /// Which accounts changed after `point`, and whether anything did. `None` for the accounts: it cannot be told.
    /// Only after a first look: what changes later is told by [`SyncState::accounts`].
    pub(super) async fn accounts_after(&self, pool: &Pool, point: &str) -> Result<Option<Vec<Touched>>, LdapError> {
        if self.point.is_none() {
            return Err(LdapError::Refused("the directory has not been read yet".to_owned()));
        }
        let Some(before) = SyncPoint::parse(point) else {
            return Ok(None);
        };
        let now = SyncPoint::read(pool, |context| self.stands_in(context)).await?;
        let found = match now.since(&before) {
            Since::Now => Some(Vec::new()),
            Since::Unknown => None,
            Since::Csn(since) => self.changed_accounts(pool, &since).await?,
        };
        let touched = |found: Vec<SearchEntry>| found.into_iter().map(touched).collect();
        Ok(found.map(touched))
    }

    /// The point up to which the accounts have been looked at.
    pub(super) fn reached(&self) -> Option<String> {
        self.point.as_ref().map(ToString::to_string)
    }

    /// Whether something changed between the last two looks, so that accounts may be gone.
    pub(super) fn has_moved(&self) -> bool {
        self.moved
    }

    /// The first look. A node that has kept nothing yet needs no news; other nodes were listening. Where our clock
    /// must do, what changed a moment ago would be found again in the second look: it is noted.
    async fn begin_accounts(&mut self, pool: &Pool, begun: &SyncPoint) -> Result<(), LdapError> {
        if let Since::Csn(since) = begun.since(begun) {
            self.accounts_since(pool, &since).await?;
        }
        Ok(())
    }

    async fn accounts_since(&mut self, pool: &Pool, since: &str) -> Result<News, LdapError> {
        let Some(found) = self.changed_accounts(pool, since).await? else {
            return Ok(News::Unknown);
        };
        let (name, _) = stamp(since, self.has_csn());
        let versions = found
            .iter()
            .filter_map(|found| Some((found.key(), found.first(name)?.to_owned())));
        let recent: HashMap<String, String> = versions.collect();
        let is_new = |found: &SearchEntry| match (found.first(ENTRY_CSN), &self.point) {
            (Some(csn), Some(last @ SyncPoint::Csn(_))) => !last.has_seen(csn),
            _ => recent.get(&found.key()) != self.recent.get(&found.key()),
        };
        let touched = found.into_iter().filter(is_new).map(touched).collect();
        self.recent = recent;
        Ok(News::Touched(touched))
    }

    /// Whether the entries of this directory tell their versions.
    fn has_csn(&self) -> bool {
        self.records.values().any(|record| record.version.csn.is_some())
    }

    /// The accounts that changed since then, with their names; `None` if there are too many.
    async fn changed_accounts(&self, pool: &Pool, since: &str) -> Result<Option<Vec<SearchEntry>>, LdapError> {
        let (name, since) = stamp(since, self.has_csn());
        let search = Search {
            base: String::new(),
            scope: Reach::Subtree,
            filter: filter::accounts_since(name, &since),
            attributes: NAMES_AND_VERSION.map(str::to_owned).into(),
            extent: Extent::All,
        };
        match pool.search(search).await {
            Ok(reply) => Ok(Some(reply.entries)),
            Err(LdapError::TooMuch) => Ok(None),
            Err(error) => Err(error),
        }
    }

    async fn read_all(&mut self, pool: &Pool, before: &System, losses: Losses) -> Result<(), LdapError> {
        let mut records = BTreeMap::new();
        // The global config comes first: it names attributes of servers.
        let mut ports = Vec::new();
        for kind in KINDS {
            let found = all(kind, pool, kind_attributes(kind, &ports)).await?;
            if kind == EntryKind::Config {
                ports = found.first().map(named_ports).unwrap_or_default();
            }
            records.extend(
                found
                    .into_iter()
                    .map(|found| (found.key(), Record::of(kind, found, before))),
            );
        }
        check_rights(before, losses, |kind| {
            records.values().filter(|record: &&Record| record.kind == kind).count()
        })?;
        self.changed |= !same(&self.records, &records);
        self.records = records;
        Ok(())
    }

    async fn read_changed(&mut self, pool: &Pool, before: &System, losses: Losses) -> Result<(), LdapError> {
        let mut listed = BTreeMap::new();
        for kind in KINDS {
            let found = all(kind, pool, [ENTRY_CSN, MODIFIED].map(str::to_owned).into()).await?;
            listed.extend(
                found
                    .into_iter()
                    .map(|found| (found.key(), (kind, Version::of(&found), found.dn))),
            );
        }
        check_rights(before, losses, |kind| {
            listed.values().filter(|(other, ..)| *other == kind).count()
        })?;
        let known = |dn: &String| self.records.get(dn).map(|record| &record.version);
        // A server that tells no versions has every entry read each time.
        let is_new = |dn, version: &Version| known(dn) != Some(version) || *version == Version::default();
        let new = listed.iter().filter(|(dn, (_, version, _))| is_new(dn, version));
        let new: Vec<(EntryKind, String)> = new.map(|(_, (kind, _, dn))| (*kind, dn.clone())).collect();
        if new.len() > FEW || new.iter().any(|(kind, _)| *kind == EntryKind::Config) {
            return self.read_all(pool, before, losses).await;
        }
        let count = self.records.len();
        self.records.retain(|dn, _| listed.contains_key(dn));
        self.changed |= self.records.len() != count;
        for (kind, dn) in new {
            self.read_one(pool, before, kind, dn).await?;
        }
        Ok(())
    }

    async fn read_one(&mut self, pool: &Pool, before: &System, kind: EntryKind, dn: String) -> Result<(), LdapError> {
        // Deleted since it was listed: the next look will know.
        let Some(found) = self.search_one(pool, kind, &dn).await? else {
            return Ok(());
        };
        let (key, record) = (found.key(), Record::of(kind, found, before));
        self.changed |= self.records.get(&key).is_none_or(|old| old.entry != record.entry);
        self.records.insert(key, record);
        Ok(())
    }

    async fn search_one(&self, pool: &Pool, kind: EntryKind, dn: &str) -> Result<Option<SearchEntry>, LdapError> {
        let search = Search {
            base: dn.to_owned(),
            scope: Reach::Base,
            filter: filter::every(kind),
            attributes: kind_attributes(kind, &self.config().map(ports_of).unwrap_or_default()),
            extent: Extent::Few(1),
        };
        Ok(pool.search(search).await?.entries.into_iter().next())
    }

    /// Whether an entry has another place than before: both are to be looked at.
    fn is_moved(&self, dn: &str, told: &ToldEntry) -> bool {
        let same_id = |record: &Record| record.entry.first(attributes::ID.name) == told.id.as_deref();
        let is_new = !self.records.contains_key(&fold(dn));
        is_new && told.id.is_some() && self.records.values().any(same_id)
    }

    /// Reads an entry of which a server said that it changed. Another server of the same name may not have it yet.
    async fn read_told(&mut self, pool: &Pool, before: &System, dn: &str, told: &ToldEntry) -> Result<(), LdapError> {
        let key = fold(dn);
        let known = self.records.get(&key).map(|record| record.kind);
        let Some(kind) = told.kind.or(known).filter(|kind| is_place(*kind, dn)) else {
            return Ok(());
        };
        for _ in 0..LOOKS {
            let found = self.search_one(pool, kind, dn).await?;
            let csn = found.as_ref().and_then(|found| found.first(ENTRY_CSN));
            if told.csn.as_deref() <= csn {
                return self.put(pool, before, kind, key, found).await;
            }
            sleep(LOOK_AGAIN).await;
        }
        Err(LdapError::Refused(format!(
            "{dn} is older where it is read than where its change was told"
        )))
    }

    /// Puts what was found in the place of what was known.
    async fn put(
        &mut self,
        pool: &Pool,
        before: &System,
        kind: EntryKind,
        key: String,
        found: Option<SearchEntry>,
    ) -> Result<(), LdapError> {
        let Some(found) = found else {
            self.changed |= self.records.remove(&key).is_some();
            return Ok(());
        };
        let record = Record::of(kind, found, before);
        let old = self.records.insert(key, record);
        let now = self.config();
        if kind == EntryKind::Config && old.as_ref().map(|old| ports_of(&old.entry)) != now.map(ports_of) {
            // Servers have other attributes that count.
            return self.read_all(pool, before, Losses::Few).await;
        }
        self.changed = true;
        Ok(())
    }

    fn config(&self) -> Option<&Entry> {
        let config = self.records.values().find(|record| record.kind == EntryKind::Config);
        config.map(|record| &record.entry)
    }

    fn count(&self, kind: EntryKind) -> usize {
        self.records.values().filter(|record| record.kind == kind).count()
    }

    fn stands_in(&self, context: &str) -> bool {
        let context = fold(context);
        let is_below = |dn: &String| {
            dn.strip_suffix(&context)
                .is_some_and(|rest| rest.is_empty() || rest.ends_with(','))
        };
        context.is_empty() || self.records.keys().any(is_below)
    }

    fn system(&self) -> System {
        let of = |kind| {
            self.records
                .values()
                .filter(move |record| record.kind == kind)
                .map(|record| record.entry.clone())
        };
        let config = of(EntryKind::Config).next().unwrap_or_default();
        System::new(
            config,
            of(EntryKind::Servers),
            of(EntryKind::Domains),
            of(EntryKind::Cos),
        )
    }

    /// Adds the problems that were not there before.
    fn add_new_problems(&mut self, system: &System, problems: &mut Problems) {
        let own = self.records.values().flat_map(|record| record.problems.iter().cloned());
        let all: Vec<Problem> = own.chain(system.check()).collect();
        let texts = all.iter().map(Problem::to_string).collect();
        let reported = std::mem::replace(&mut self.reported, texts);
        for problem in all
            .into_iter()
            .filter(|problem| !reported.contains(&problem.to_string()))
        {
            problems.push(Problem {
                severity: Severity::Warning,
                ..problem
            });
        }
    }
}

fn touched(found: SearchEntry) -> Touched {
    Touched::of(&found.into_entry(EntryKind::Accounts))
}

/// If a directory suddenly has no config, no server or no domain, the node has most likely lost the right to read
/// them.
fn check_rights(before: &System, losses: Losses, count: impl Fn(EntryKind) -> usize) -> Result<(), LdapError> {
    if count(EntryKind::Config) == 0 {
        return Err(LdapError::Refused(
            "there is no cn=config,cn=zimbra, or no right to read it".to_owned(),
        ));
    }
    for (kind, entries) in [
        (EntryKind::Servers, &before.servers),
        (EntryKind::Domains, &before.domains),
    ] {
        if count(kind) == 0 && !entries.is_empty() && losses < Losses::All {
            return Err(LdapError::Refused(format!(
                "all {} are gone; were access rights lost?",
                kind.name()
            )));
        }
    }
    Ok(())
}

fn same(old: &BTreeMap<String, Record>, new: &BTreeMap<String, Record>) -> bool {
    old.len() == new.len() && old.iter().zip(new).all(|(a, b)| a.0 == b.0 && a.1.entry == b.1.entry)
}

/// The attributes that hold ports, as the global config names them.
fn named_ports(config: &SearchEntry) -> Vec<String> {
    ports_of(&config.clone().into_entry(EntryKind::Config))
}

fn ports_of(config: &Entry) -> Vec<String> {
    let names = PORT_ATTRIBUTES
        .iter()
        .filter_map(|attribute| config.first(attribute.name));
    names.map(str::to_owned).collect()
}

const PORT_ATTRIBUTES: [&Attribute; 7] = [
    &attributes::REVERSE_PROXY_IMAP_PORT_ATTRIBUTE,
    &attributes::REVERSE_PROXY_IMAP_SSL_PORT_ATTRIBUTE,
    &attributes::REVERSE_PROXY_POP3_PORT_ATTRIBUTE,
    &attributes::REVERSE_PROXY_POP3_SSL_PORT_ATTRIBUTE,
    &attributes::REVERSE_PROXY_HTTP_PORT_ATTRIBUTE,
    &attributes::REVERSE_PROXY_HTTP_SSL_PORT_ATTRIBUTE,
    &attributes::REVERSE_PROXY_ADMIN_PORT_ATTRIBUTE,
];

impl Version {
    fn of(found: &SearchEntry) -> Self {
        Self {
            csn: found.first(ENTRY_CSN).map(str::to_owned),
            modified: found.first(MODIFIED).map(str::to_owned),
        }
    }
}

impl Record {
    fn of(kind: EntryKind, found: SearchEntry, before: &System) -> Self {
        let version = Version::of(&found);
        let mut entry = found.into_entry(kind);
        let problems = mend(&mut entry, kind, before);
        Self {
            kind,
            version,
            entry,
            problems,
        }
    }
}

/// Puts the previous value in place of one that cannot be read. Where there is none, it stays: readers treat it as
/// absent.
fn mend(entry: &mut Entry, kind: EntryKind, before: &System) -> Vec<Problem> {
    let mut problems = Vec::new();
    let Some(old) = entry_of(kind, before, entry.name()) else {
        return problems;
    };
    let bad = |values: &[String], attribute: &Attribute| values.iter().find_map(|value| attribute.check(value).err());
    let broken = entry.iter().filter_map(|(name, values)| {
        let attribute = attributes::find(name)?;
        Some((attribute, bad(values, attribute)?))
    });
    let broken: Vec<(&Attribute, String)> = broken.collect();
    for (attribute, message) in broken {
        let values = old.values(attribute.name);
        if values.is_empty() || bad(values, attribute).is_some() {
            continue;
        }
        entry.set(attribute.name, values.to_vec());
        let key = format!("{}.{}.{}", kind.name(), entry.name(), attribute.name);
        let message = format!("{message}; the previous value stays in force");
        problems.push(problem(key, message, Severity::Warning));
    }
    problems
}

/// Whether entries of this kind stand there.
fn is_place(kind: EntryKind, dn: &str) -> bool {
    match place(kind) {
        (base, Reach::Base) => dn::is_same(dn, base),
        (base, Reach::OneLevel) => dn::is_child(dn, base),
        _ => kind != EntryKind::Accounts,
    }
}

/// Every entry of a kind.
async fn all(kind: EntryKind, pool: &Pool, attributes: Arc<[String]>) -> Result<Vec<SearchEntry>, LdapError> {
    let (base, scope) = place(kind);
    let search = Search {
        base: base.to_owned(),
        scope,
        filter: filter::every(kind),
        attributes,
        extent: Extent::All,
    };
    Ok(pool.search(search).await?.entries)
}

/// What has a meaning on such an entry. Ports may stand in attributes of any name.
fn kind_attributes(kind: EntryKind, ports: &[String]) -> Arc<[String]> {
    let name = [name_attribute(kind), ENTRY_CSN, MODIFIED].into_iter();
    let ports = ports.iter().map(String::as_str).filter(|_| kind == EntryKind::Servers);
    let vain: Vec<&str> = attributes::protecting().collect();
    let identity = Some(ENTRY_UUID).filter(|_| kind == EntryKind::Config);
    attribute_names(kind.scope(), name.chain(ports).chain(vain).chain(identity))
}

fn entry_of<'a>(kind: EntryKind, system: &'a System, name: &str) -> Option<&'a Entry> {
    match kind {
        EntryKind::Config => Some(&system.config),
        EntryKind::Servers => system.servers.get(kind.key(name).as_str()),
        EntryKind::Domains => system.domains.get(kind.key(name).as_str()),
        EntryKind::Cos => system.cos.get(kind.key(name).as_str()),
        EntryKind::Accounts => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_value_that_cannot_be_read_gives_way_to_the_one_before() {
        let entry = |mode: &str, timeout: &str| {
            let mut config = Entry::new("config");
            config.set("zimbraReverseProxyMailMode", [mode]);
            config.set("zimbraReverseProxyConnectTimeout", [timeout]);
            config
        };
        let before = System::new(entry("https", "soon"), [], [], []);
        let mut now = entry("nonsense", "later");
        let problems = mend(&mut now, EntryKind::Config, &before);
        assert_eq!(now.first("zimbraReverseProxyMailMode"), Some("https"));
        // No good previous value: it stays, and counts as absent.
        assert_eq!(now.first("zimbraReverseProxyConnectTimeout"), Some("later"));
        let shown: Vec<String> = problems.iter().map(Problem::to_string).collect();
        let expected = "config.config.zimbraReverseProxyMailMode: warning: expected one of https, redirect, both, found \"nonsense\"; the previous value stays in force";
        assert_eq!(shown, [expected]);
    }
}
