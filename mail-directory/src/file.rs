//! The directory in a YAML file: the same entries and attributes as in LDAP, all accounts in memory.
//!
//! A file with errors is not taken: the previous one stays in force. So it is with a file that is still being
//! written, and with one that has lost most of the entries. How it is written is in `edit.rs`.

use std::collections::{BTreeMap, HashMap};
use std::fmt;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwap;
use async_trait::async_trait;
use parking_lot::Mutex;
use tokio::sync::{Notify, broadcast, watch};

use crate::attributes::{self, Attribute};
use crate::check;
use crate::directory::{AccountBy, Announcer, Apply, Directory, DirectoryError, News, Touched, off_the_runtime};
use crate::edit::EntryKind;
use crate::entry::{Entry, Origin};
use crate::losses::{self, Count, Losses};
use crate::names::{self, fold};
use crate::system::System;
use crate::yaml::{Document, Each, Node, Outline, Problems, Severity};

mod edit;
mod rewrite;
mod sheet;

pub use edit::{YamlEditor, created, deleted, entries, modified};

/// A directory read from a file, whole.
#[derive(Debug)]
pub struct YamlDirectory {
    path: PathBuf,
    content: ArcSwap<Content>,
    /// The files as they were at the last reading, good or bad. Its lock also keeps readings apart.
    seen: Mutex<FileStamps>,
    announcer: Announcer,
}

/// The result of one reading of the file.
#[derive(Debug)]
struct Content {
    system: Arc<System>,
    accounts: Accounts,
    files: Vec<PathBuf>,
    /// Whether the last line of the file has an end.
    last_line_ends: bool,
    outline: Outline,
}

#[derive(Debug, Default)]
struct Accounts {
    /// By delivery address and alias, folded.
    by_name: HashMap<String, Arc<Entry>>,
    /// By `zimbraId`, folded.
    by_id: HashMap<String, Arc<Entry>>,
}

/// How a file looks from outside: its device, number, size and time in nanoseconds. `None`: it is not there.
type FileStamp = Option<(u64, u64, u64, i64, i64)>;

/// The files of a directory, and how they look.
type FileStamps = Vec<(PathBuf, FileStamp)>;

/// Time between two looks at files that have changed. A program that writes in place is done by then, or still
/// writes.
const SETTLED: Duration = Duration::from_secs(1);
/// The same where a caller waits, and how often it waits for files that go on changing.
const SETTLED_SOON: Duration = Duration::from_millis(200);
const PATIENCE: usize = 25;

/// A half-written file is often good YAML, and has lost less than would be noticed.
const CUT_OFF: &str = "its last line has no end, which it had before; if that is meant, portico reload";

/// A file that is written in place may end at the end of a line, too.
const SHORTENED: &str = "it is what it was, without its end; if that is meant, portico reload";

impl YamlDirectory {
    /// Reads the file. Returns the directory with the warnings, or all problems if one of them is an error.
    pub fn load(path: &Path) -> Result<(Self, Problems), Problems> {
        let before = stamp(path);
        let (content, warnings) = Content::load(path)?.1?;
        let directory = Self::new(path, content);
        // Changed while it was read: the first look of the watch will read it again.
        directory.seen.lock()[0].1 = before;
        Ok((directory, warnings))
    }

    /// The same from a text, as if it stood in the file `path`.
    pub fn parse(text: &str, path: &Path) -> Result<(Self, Problems), Problems> {
        let (content, warnings) = Content::read(|each| Document::parse_each(text, path, ACCOUNTS, each))?.1?;
        Ok((Self::new(path, content), warnings))
    }

    fn new(path: &Path, content: Content) -> Self {
        let directory = Self {
            path: path.to_owned(),
            content: ArcSwap::from_pointee(content),
            seen: Mutex::default(),
            announcer: Announcer::new(),
        };
        *directory.seen.lock() = stamps(directory.files());
        directory.announcer.was_read();
        directory
    }

    /// Reads the file again and, if it is good, puts the new content in place of the old one, all at once. Returns
    /// the warnings. After an error, or if `apply` refuses it or more is gone than `losses` allows, nothing changes.
    pub fn reload(&self, apply: &Apply, losses: Losses) -> Result<Problems, Problems> {
        let mut seen = self.seen.lock();
        let read = self.read_again(&mut seen, apply, losses);
        match &read {
            Ok(_) => {
                self.announcer.accept();
                self.announcer.was_read();
            }
            Err(problems) => self.announcer.refuse(problems.first_error()),
        }
        read
    }

    fn read_again(&self, seen: &mut FileStamps, apply: &Apply, losses: Losses) -> Result<Problems, Problems> {
        // As they are before the reading: a change meanwhile is found the next time.
        let own = (self.path.clone(), stamp(&self.path));
        let number = |stamp: FileStamp| stamp.map(|(device, number, ..)| (device, number));
        // One that was written elsewhere and renamed was written to its end.
        let in_place = number(own.1) == number(seen[0].1);
        let (files, read) = match Content::load(&self.path) {
            Ok(read) => read,
            Err(problems) => (self.content.load().files.clone(), Err(problems)),
        };
        *seen = std::iter::once(own).chain(stamps(files)).collect();
        let (content, warnings) = read?;
        self.doubt(seen, &content, losses, in_place)?;
        apply(&content.system)?;
        let before = self.content.swap(Arc::new(content));
        let now = self.content.load();
        // Comparing is not worth it: a system is built from its file in any case.
        self.announcer.changed();
        self.announcer.announce_touched(now.accounts.changes(&before.accounts));
        Ok(warnings)
    }

    /// A reading without errors may still be that of a half-written file.
    fn doubt(&self, seen: &FileStamps, content: &Content, losses: Losses, in_place: bool) -> Result<(), Problems> {
        let before = self.content.load();
        let systems = losses::of_systems(&before.system, &content.system);
        let accounts = content.accounts.count(&before.accounts);
        let forbidden = losses.forbid(systems.into_iter().chain([accounts]));
        let cut_off = losses == Losses::Few && before.last_line_ends && !content.last_line_ends;
        let shortened = losses == Losses::Few && in_place && content.outline.is_beginning_of(&before.outline);
        let changed = stamp(&self.path) != seen[0].1;
        let reason = forbidden
            .or_else(|| cut_off.then(|| CUT_OFF.to_owned()))
            .or_else(|| shortened.then(|| SHORTENED.to_owned()))
            .or_else(|| changed.then(|| "it changed while it was read".to_owned()));
        match reason {
            Some(reason) => Err(Problems::of_file(&self.path, None, reason)),
            None => Ok(()),
        }
    }

    /// How the files look now, if that is not as they were at the last reading.
    fn changed(&self) -> Option<FileStamps> {
        let seen = self.seen.lock();
        let now: FileStamps = seen.iter().map(|(path, _)| (path.clone(), stamp(path))).collect();
        (now != *seen).then_some(now)
    }

    /// Waits until files that have changed look the same twice, but not for ever.
    async fn settle(self: &Arc<Self>) -> Result<(), Problems> {
        let mut last = None;
        for _ in 0..PATIENCE {
            let directory = self.clone();
            let now = off_the_runtime(move || directory.changed()).await?;
            if now.is_none() || now == last {
                return Ok(());
            }
            last = now;
            tokio::time::sleep(SETTLED_SOON).await;
        }
        Ok(())
    }

    /// Looks whether the files have changed, and reads them if they looked the same at the last look. Returns how
    /// they look, if they are still to be read.
    fn follow(&self, last: Option<&FileStamps>, apply: &Apply) -> Option<FileStamps> {
        match self.changed() {
            None if self.announcer.refusal().is_none() => self.announcer.was_read(),
            None => {}
            Some(now) if Some(&now) == last => log_problems(&self.path, &self.reload(apply, Losses::Few)),
            Some(now) => return Some(now),
        }
        None
    }

    /// The files whose change is a change of this directory: itself, and those named with `!file`.
    pub fn files(&self) -> Vec<PathBuf> {
        let named = self.content.load().files.clone();
        std::iter::once(self.path.clone()).chain(named).collect()
    }

    /// How many accounts there are.
    pub fn account_count(&self) -> usize {
        self.accounts().len()
    }

    /// All accounts, in no order.
    pub fn accounts(&self) -> Vec<Arc<Entry>> {
        let content = self.content.load();
        let names = content.accounts.by_name.iter();
        names
            .filter(|(name, entry)| **name == account_name(entry))
            .map(|(_, entry)| entry.clone())
            .collect()
    }
}

#[async_trait]
impl Directory for YamlDirectory {
    fn system(&self) -> Arc<System> {
        self.content.load().system.clone()
    }

    async fn account(&self, by: &AccountBy) -> Result<Option<Arc<Entry>>, DirectoryError> {
        let content = self.content.load();
        Ok(match by {
            AccountBy::Name(name) => content.accounts.by_name.get(name),
            AccountBy::Id(id) => content.accounts.by_id.get(id),
        }
        .cloned())
    }

    fn age(&self) -> Option<Duration> {
        self.announcer.age()
    }

    async fn has_taken(&self, point: &str) -> bool {
        let Some(wanted) = Point::parse(point) else {
            return false;
        };
        // A reading that is under way holds the lock, and has not told its news.
        let now = self.seen.try_lock().and_then(|seen| Point::of(seen[0].1));
        self.announcer.refusal().is_none() && now.is_some_and(|now| now >= wanted)
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

    fn refusal(&self) -> Option<String> {
        self.announcer.refusal()
    }

    async fn watch(self: Arc<Self>, poll: Duration, apply: Arc<Apply>) {
        let mut last = None;
        loop {
            let pause = if last.is_some() { poll.min(SETTLED) } else { poll };
            tokio::time::sleep(pause).await;
            let (directory, apply, looked) = (self.clone(), apply.clone(), last.take());
            let followed = off_the_runtime(move || directory.follow(looked.as_ref(), &*apply)).await;
            match followed.map_err(Problems::from) {
                Ok(now) => last = now,
                Err(problems) => problems
                    .iter()
                    .for_each(|problem| log::error!(target: "mail_directory::list", "{problem}")),
            }
        }
    }

    async fn refresh(self: Arc<Self>, apply: Arc<Apply>, losses: Losses) -> Result<(), Problems> {
        // A change by this process replaces the whole file.
        if losses > Losses::Few {
            self.settle().await?;
        }
        let warnings = off_the_runtime(move || self.reload(&*apply, losses)).await??;
        warnings
            .iter()
            .for_each(|problem| log::warn!(target: "mail_directory::list", "{problem}"));
        Ok(())
    }
}

/// In the log, once for each change of a file.
fn log_problems(path: &Path, read: &Result<Problems, Problems>) {
    let problems = match read {
        Ok(warnings) => warnings,
        Err(problems) => {
            log::error!("{} cannot be used; what it said before stays in force", path.display());
            problems
        }
    };
    problems
        .iter()
        .for_each(|problem| log::warn!(target: "mail_directory::list", "{problem}"));
}

fn stamps(paths: Vec<PathBuf>) -> FileStamps {
    paths.into_iter().map(|path| (path.clone(), stamp(&path))).collect()
}

/// How far a file has come: the time of its last change. Each change makes a new file.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct Point(i64, i64);

impl Point {
    fn of(stamp: FileStamp) -> Option<Self> {
        stamp.map(|(_, _, _, seconds, nanos)| Self(seconds, nanos))
    }

    fn parse(text: &str) -> Option<Self> {
        let (seconds, nanos) = text.strip_prefix("file ")?.split_once('.')?;
        Some(Self(seconds.parse().ok()?, nanos.parse().ok()?))
    }
}

impl fmt::Display for Point {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "file {}.{:09}", self.0, self.1)
    }
}

fn stamp(path: &Path) -> FileStamp {
    std::fs::metadata(path).ok().map(|file| stamp_of(&file))
}

fn stamp_of(file: &std::fs::Metadata) -> (u64, u64, u64, i64, i64) {
    (file.dev(), file.ino(), file.size(), file.mtime(), file.mtime_nsec())
}

/// What a file of this form says, without the accounts. Values that cannot be read are no problem here.
///
/// # Errors
/// The file does not have this form.
pub(crate) fn system_of(path: &Path) -> Result<System, Problems> {
    let (_, system, problems) = Reader::whole(|each| Document::load_each(path, ACCOUNTS, each))?;
    problems.or(system).map(|(system, _)| system)
}

/// The files that were named with `!file`, and the content if it is good.
type Read = (Vec<PathBuf>, Result<(Content, Problems), Problems>);

/// Where the accounts stand in the file.
const ACCOUNTS: &str = "accounts";

impl Content {
    fn load(path: &Path) -> Result<Read, Problems> {
        Self::read(|each| Document::load_each(path, ACCOUNTS, each))
    }

    fn read(open: impl FnOnce(Each<'_>) -> Result<Document, Problems>) -> Result<Read, Problems> {
        let (reader, system, mut problems) = Reader::whole(open)?;
        problems.extend(system.check());
        let accounts = Accounts::index(&system, &reader.accounts, &mut problems);
        let content = Self {
            system: Arc::new(system),
            accounts,
            files: reader.files.clone(),
            last_line_ends: reader.last_line_ends,
            outline: reader.outline,
        };
        problems.sort();
        Ok((reader.files, problems.or(content)))
    }
}

impl Accounts {
    fn index(system: &System, entries: &[Arc<Entry>], problems: &mut Problems) -> Self {
        let mut accounts = Self::default();
        for entry in entries {
            check::account(system, entry, problems);
            accounts.add(entry.clone(), problems);
        }
        accounts
    }

    /// How many of the accounts in `before` are still here.
    fn count(&self, before: &Self) -> Count {
        let own = |accounts: &Self| accounts.names().count();
        Count {
            kind: EntryKind::Accounts,
            had: own(before),
            left: before.names().filter(|name| self.by_name.contains_key(*name)).count(),
            has: own(self),
        }
    }

    /// The address of each account.
    fn names(&self) -> impl Iterator<Item = &String> {
        let names = self.by_name.iter();
        names
            .filter(|(name, entry)| **name == account_name(entry))
            .map(|(name, _)| name)
    }

    /// Accounts that are not the same as in `before`, with their names in both.
    fn changes(&self, before: &Self) -> Vec<Touched> {
        let differs = |mine: &Self, other: &Self| {
            let changed = mine.by_name.values().filter(|entry| {
                let same = other.by_name.get(&account_name(entry));
                !same.is_some_and(|same| same == *entry)
            });
            // Once for each of its names.
            let each: HashMap<&str, &Arc<Entry>> = changed.map(|entry| (entry.name(), entry)).collect();
            each.into_values().map(|entry| Touched::of(entry)).collect::<Vec<_>>()
        };
        let mut touched = differs(before, self);
        touched.extend(differs(self, before));
        touched
    }

    fn add(&mut self, entry: Arc<Entry>, problems: &mut Problems) {
        let mut claim = |map: &mut HashMap<String, Arc<Entry>>, key: String, attribute: &Attribute| {
            let owner = map.entry(key).or_insert_with(|| entry.clone());
            if !Arc::ptr_eq(owner, &entry) {
                let path = format!("accounts.{}", entry.name());
                let message = format!("already belongs to {}", owner.name());
                check::report(&entry, &path, attribute.name, message, Severity::Error, problems);
            }
        };
        claim(
            &mut self.by_name,
            account_name(&entry),
            &attributes::MAIL_DELIVERY_ADDRESS,
        );
        for alias in entry.values(attributes::MAIL_ALIAS.name) {
            claim(&mut self.by_name, names::account(alias), &attributes::MAIL_ALIAS);
        }
        for id in entry.values(attributes::ID.name) {
            claim(&mut self.by_id, fold(id), &attributes::ID);
        }
    }

    /// Takes out what [`Accounts::add`] put in.
    fn forget(&mut self, entry: &Entry) {
        let names = entry.values(attributes::MAIL_ALIAS.name).iter();
        for name in names.map(|alias| names::account(alias)).chain([account_name(entry)]) {
            self.by_name.remove(&name);
        }
        for id in entry.values(attributes::ID.name) {
            self.by_id.remove(&fold(id));
        }
    }

    /// Names and ids that would belong to two accounts if `after` replaced `before`. As where a file is read, the
    /// account that comes later does not get it; `place` returns where each stands.
    fn conflicts<P: Ord>(
        &self,
        before: Option<&Arc<Entry>>,
        after: &Entry,
        place: impl Fn(&Entry) -> P,
        problems: &mut Problems,
    ) {
        let owns = |map: &HashMap<String, Arc<Entry>>, key: &str, attribute: &'static Attribute| {
            let owner = map
                .get(key)
                .filter(|owner| before.is_none_or(|before| owner.name() != before.name()));
            owner.map(|owner| (owner.clone(), key.to_owned(), attribute))
        };
        let aliases = after.values(attributes::MAIL_ALIAS.name).iter();
        let aliases = aliases.map(|alias| (names::account(alias), &attributes::MAIL_ALIAS));
        let own = (account_name(after), &attributes::MAIL_DELIVERY_ADDRESS);
        let by_name = std::iter::once(own).chain(aliases);
        let by_name = by_name.filter_map(|(key, attribute)| owns(&self.by_name, &key, attribute));
        let ids = after.values(attributes::ID.name).iter();
        let by_id = ids.filter_map(|id| owns(&self.by_id, &fold(id), &attributes::ID));
        for (owner, key, attribute) in by_name.chain(by_id) {
            let is_first = before.is_some_and(|before| place(before) < place(&owner));
            let (first, second, attribute) = match is_first {
                false => (&*owner, after, attribute),
                true if std::ptr::eq(attribute, &attributes::ID) => (after, &*owner, attribute),
                true if account_name(&owner) == key => (after, &*owner, &attributes::MAIL_DELIVERY_ADDRESS),
                true => (after, &*owner, &attributes::MAIL_ALIAS),
            };
            let path = format!("accounts.{}", second.name());
            let message = format!("already belongs to {}", first.name());
            check::report(second, &path, attribute.name, message, Severity::Error, problems);
        }
    }
}

/// The folded delivery address; the key of the account where it has none.
fn account_name(entry: &Entry) -> String {
    names::account(
        entry
            .first(attributes::MAIL_DELIVERY_ADDRESS.name)
            .unwrap_or(entry.name()),
    )
}

/// Turns the tree of the document into entries.
#[derive(Default)]
struct Reader {
    files: Vec<PathBuf>,
    accounts: Vec<Arc<Entry>>,
    /// In which line each name of the accounts stands.
    lines: HashMap<String, usize>,
    /// The lines of the keys at the root.
    tops: BTreeMap<String, usize>,
    /// Keys beside the sections, and what they hold.
    strangers: BTreeMap<String, serde_yaml::Value>,
    /// Whether the last line of the text has an end.
    last_line_ends: bool,
    outline: Outline,
}

impl Reader {
    /// Reads a document that shows its accounts one by one: together their trees would take several times what the
    /// entries take. Returns itself, everything but the accounts, and what is wrong.
    fn whole(open: impl FnOnce(Each<'_>) -> Result<Document, Problems>) -> Result<(Self, System, Problems), Problems> {
        let (mut reader, mut problems) = (Self::default(), Problems::new());
        let document = open(&mut |name, node| reader.account(name, node, &mut problems))?;
        let system = reader.read(document.root(), &mut problems);
        reader.lines = HashMap::new();
        reader.last_line_ends = document.last_line_ends();
        reader.outline = document.outline().clone();
        Ok((reader, system, problems))
    }

    fn read(&mut self, root: Node<'_>, problems: &mut Problems) -> System {
        let Some(mut sections) = root.mapping(problems) else {
            return System::default();
        };
        let lines = sections.entries().map(|(key, node)| (key.to_owned(), node.line()));
        self.tops = lines.collect();
        let config = match sections.take("config") {
            Some(node) => self.entry("config", node, problems),
            None => Entry::new("config"),
        };
        let mut entries =
            |kind: EntryKind, problems: &mut Problems| self.entries(kind, sections.take(kind.name()), problems);
        let servers = entries(EntryKind::Servers, problems);
        let domains = entries(EntryKind::Domains, problems);
        let cos = entries(EntryKind::Cos, problems);
        // Accounts that could not be shown during parsing.
        let accounts = sections.take(ACCOUNTS).and_then(|node| node.mapping(problems));
        for (name, node) in accounts.iter().flat_map(|accounts| accounts.entries()) {
            self.account(name, node, problems);
        }
        let strangers = sections
            .strangers()
            .map(|(key, node)| (key.to_owned(), node.to_value()));
        self.strangers = strangers.collect();
        sections.finish(problems);
        System::new(config, servers, domains, cos)
    }

    fn account(&mut self, name: &str, node: Node<'_>, problems: &mut Problems) {
        said_twice(
            self.lines.insert(EntryKind::Accounts.key(name), node.line()),
            node,
            problems,
        );
        let entry = self.entry(name, node, problems);
        self.accounts.push(Arc::new(entry));
    }

    fn entries(&mut self, kind: EntryKind, node: Option<Node<'_>>, problems: &mut Problems) -> Vec<Entry> {
        let Some(entries) = node.and_then(|node| node.mapping(problems)) else {
            return Vec::new();
        };
        let mut seen = HashMap::new();
        for (name, node) in entries.entries() {
            said_twice(seen.insert(kind.key(name), node.line()), node, problems);
        }
        entries
            .entries()
            .map(|(name, node)| self.entry(name, node, problems))
            .collect()
    }

    fn entry(&mut self, name: &str, node: Node<'_>, problems: &mut Problems) -> Entry {
        let origin = Origin {
            file: node.origin().clone(),
            line: node.line(),
        };
        let mut entry = Entry::written_at(name, origin);
        let Some(attributes) = node.mapping(problems) else {
            return entry;
        };
        for (attribute, value) in attributes.entries() {
            if !entry.values(attribute).is_empty() {
                value.error("stands here twice in another spelling", problems);
            }
            let values = self.values(value, problems);
            entry.put(attribute, values, Some(value.line()));
        }
        entry
    }

    /// A scalar or a list of scalars; each may come from a file.
    fn values(&mut self, node: Node<'_>, problems: &mut Problems) -> Vec<String> {
        let items = node.one_or_many(problems).unwrap_or_default();
        let mut values = Vec::with_capacity(items.len());
        for item in items {
            self.files.extend(item.file(&mut Problems::new()).flatten());
            values.extend(item.text(problems).map(std::borrow::Cow::into_owned));
        }
        values
    }
}

/// A name whose other spelling stands in the line `first` is an error.
fn said_twice(first: Option<usize>, node: Node<'_>, problems: &mut Problems) {
    if let Some(first) = first {
        node.error(
            format!("stands here twice in another spelling; the first is in line {first}"),
            problems,
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::yaml::Problem;

    const GOOD: &str = "
config:
  zimbraReverseProxyMailMode: redirect
  zimbraDefaultDomainName: a.example
servers:
  store1.example.test:
    zimbraServiceEnabled: [mailbox]
    zimbraServiceHostname: 127.0.0.2
    zimbraImapBindPort: 7143
domains:
  a.example:
    zimbraVirtualHostname: [mail.a.example]
cos: {default: {}}
accounts:
  alice@a.example:
    zimbraId: 11111111-2222-3333-4444-55555555555A
    zimbraMailAlias: [Al@a.example]
    zimbraMailHost: store1.example.test
  bob:
    zimbraMailDeliveryAddress: Bob@a.example
    ZIMBRAMAILHOST: 127.0.0.2
";

    fn parse(text: &str) -> Result<(YamlDirectory, Problems), Problems> {
        YamlDirectory::parse(text, Path::new("d.yaml"))
    }

    #[track_caller]
    fn check(text: &str, expected: &[&str]) {
        let problems = match parse(text) {
            Ok((_, warnings)) => warnings,
            Err(problems) => problems,
        };
        let shown: Vec<_> = problems.iter().map(Problem::to_string).collect();
        assert_eq!(shown, expected, "{text}");
    }

    #[tokio::test]
    async fn accounts_are_found_by_address_alias_and_id() {
        let (directory, warnings) = parse(GOOD).unwrap();
        assert!(warnings.is_empty(), "{warnings}");
        let find = async |by: AccountBy| directory.account(&by).await.unwrap().map(|e| e.name().to_owned());
        let name = |name: &str| AccountBy::Name(name.to_owned());
        let id = AccountBy::Id("11111111-2222-3333-4444-55555555555a".to_owned());
        assert_eq!(find(name("alice@a.example")).await.as_deref(), Some("alice@a.example"));
        assert_eq!(find(name("al@a.example")).await.as_deref(), Some("alice@a.example"));
        assert_eq!(find(id).await.as_deref(), Some("alice@a.example"));
        assert_eq!(find(name("bob@a.example")).await.as_deref(), Some("bob"));
        assert_eq!(find(name("bob")).await, None);
        assert_eq!(directory.account_count(), 2);
    }

    #[test]
    fn problems_are_reported_together() {
        check(
            "servres: {}\nacounts: {}\n",
            &[
                "d.yaml:1: servres: unknown key; did you mean servers?",
                "d.yaml:2: acounts: unknown key; did you mean accounts?",
            ],
        );
        check(
            "config:\n  zimbraReverseProxyMailMode: mixed\n  zimbraImapProxyBindPort: [143, 70000]\n",
            &[
                "d.yaml:2: config.zimbraReverseProxyMailMode: expected one of https, redirect, both, found \"mixed\"",
                "d.yaml:3: config.zimbraImapProxyBindPort: expected a port from 1 to 65535, found \"70000\"",
                "d.yaml:3: config.zimbraImapProxyBindPort: has 2 values, but only the first counts",
            ],
        );
        check(
            "domains:\n  a: {zimbraVirtualHostname: M.x}\n  b: {zimbraVirtualHostname: [n.x, m.x]}\n",
            &["d.yaml:3: domains.b.zimbraVirtualHostname: warning: m.x already belongs to a"],
        );
        check(
            "domains:\n  a: {zimbraDomainType: alias}\n  b: {zimbraDomainType: alias, zimbraDomainAliasTargetId: x}\n",
            &[
                "d.yaml:2: domains.a.zimbraDomainAliasTargetId: is an alias domain, but names no target",
                "d.yaml:3: domains.b.zimbraDomainAliasTargetId: no domain has the zimbraId x",
            ],
        );
        check(
            "accounts:\n  a@x: {zimbraMailAlias: C@x, zimbraId: 1}\n  b@x: {zimbraMailAlias: c@x, zimbraId: 1}\n",
            &[
                "d.yaml:3: accounts.b@x.zimbraMailAlias: already belongs to a@x",
                "d.yaml:3: accounts.b@x.zimbraId: already belongs to a@x",
            ],
        );
        check(
            "accounts:\n  a@x:\n    zimbraMailHots: s\n    zimbraMailHost: s\n    displayName: A\n",
            &[
                "d.yaml:3: accounts.a@x.zimbraMailHots: warning: is not a known attribute; did you mean zimbraMailHost?",
                "d.yaml:4: accounts.a@x.zimbraMailHost: warning: server s is not in the directory",
            ],
        );
        check(
            "servers:\n  s:\n    zimbraMailPort: 1\n    zimbramailport: 2\n  S: {}\n",
            &[
                "d.yaml:4: servers.s.zimbramailport: stands here twice in another spelling",
                "d.yaml:5: servers.S: stands here twice in another spelling; the first is in line 2",
            ],
        );
        check(
            "domains: {a: {zimbraSSLCertificate: !file none.crt}}",
            &["d.yaml:1: domains.a.zimbraSSLCertificate: cannot read none.crt: No such file or directory (os error 2)"],
        );
        check(
            "servers: [a]",
            &["d.yaml:1: servers: expected a mapping (key: value), found a list"],
        );
        check("", &[]);
    }

    #[test]
    fn a_bad_file_leaves_the_old_content_in_force() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("d.yaml");
        std::fs::write(&path, GOOD).unwrap();
        let (directory, _) = YamlDirectory::load(&path).unwrap();
        let (yes, no): (&Apply, &Apply) = (&|_| Ok(()), &|_| Err(Problems::of_file(Path::new("x"), None, "no")));
        let reload = |apply| directory.reload(apply, Losses::All);
        std::fs::write(&path, "accounts: {x@y: {}}\nservers: 1\n").unwrap();
        assert!(reload(yes).unwrap_err().has_errors());
        assert_eq!(directory.account_count(), 2);
        std::fs::write(&path, "accounts: {x@y: {}}\n").unwrap();
        assert_eq!(reload(no).unwrap_err().to_string(), "x: no");
        assert_eq!(
            (directory.account_count(), directory.refusal()),
            (2, Some("x: no".to_owned()))
        );
        assert!(reload(yes).unwrap().is_empty());
        assert_eq!((directory.account_count(), directory.refusal()), (1, None));
        assert_eq!(directory.accounts()[0].name(), "x@y");
        assert_eq!(directory.files(), [path]);
    }

    /// Accounts are read as they come; what refers to another place in the file is read like anything else.
    #[tokio::test]
    async fn accounts_may_share_what_is_written_once() {
        let texts = [
            "cos: {c: &c {zimbraMailHost: s}}\nservers: {s: {}}\naccounts:\n  a@x: {<<: *c}\n  b@x: *c\n  d@x: {zimbraMailHost: s}\n",
            "servers: {s: {}}\naccounts:\n  a@x: &a {zimbraMailHost: s}\n  b@x: *a\n  d@x: {<<: *a}\n",
            "servers: {s: {}}\naccounts:\n  a@x: {zimbraMailHost: &h s}\n  b@x: {zimbraMailHost: *h}\n  d@x: {zimbraMailHost: s}\n",
            "servers: {s: {}}\naccounts:\n  a@x: {zimbraMailHost: s}\n  <<: {b@x: {zimbraMailHost: s}, d@x: {zimbraMailHost: s}}\n",
            "accounts: &all {a@x: &a {zimbraMailHost: s}, b@x: *a, d@x: *a}\nservers: {s: {}}\n",
        ];
        for text in texts {
            let (directory, _) = parse(text).unwrap_or_else(|problems| panic!("{problems}: {text}"));
            assert_eq!(directory.account_count(), 3, "{text}");
            for name in ["a@x", "b@x", "d@x"] {
                let found = directory.account(&AccountBy::Name(name.to_owned())).await.unwrap();
                assert_eq!(found.unwrap().first("zimbraMailHost"), Some("s"), "{name}: {text}");
            }
        }
        check(
            "accounts:\n  a@x:\n    zimbraMailHost: [[1]]\n  b@x: 1\n  a@x: {}\n  A@x: {}\n",
            &[
                "d.yaml:3: accounts.a@x.zimbraMailHost[0]: expected a text, found a list",
                "d.yaml:4: accounts.b@x: expected a mapping (key: value), found \"1\"",
                "d.yaml:5: accounts.a@x: stands here twice; the first is in line 2",
                "d.yaml:6: accounts.A@x: stands here twice in another spelling; the first is in line 2",
                "d.yaml:6: accounts.A@x.zimbraMailDeliveryAddress: already belongs to a@x",
            ],
        );
    }

    /// Puts another file in the place of one, as most programs do.
    fn replace(path: &Path, text: &str) {
        let new = path.with_extension("new");
        std::fs::write(&new, text).unwrap();
        std::fs::rename(new, path).unwrap();
    }

    /// A file that is being written in place, and ends with a line, has not lost what is still to come.
    #[test]
    fn a_beginning_that_is_written_in_place_is_not_believed() {
        let whole: String = std::iter::once(GOOD.to_owned())
            .chain((0..6).map(|i| format!("  user{i}@a.example: {{zimbraMailHost: store1.example.test}}\n")))
            .collect();
        let cut = whole[..whole.find("  user4").unwrap()].to_owned();
        let changed = cut.replace("user1@", "other@");
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("d.yaml");
        let yes: &Apply = &|_| Ok(());
        for (text, renamed, losses, taken) in [
            (&cut, false, Losses::Few, false),
            (&cut, false, Losses::Most, true),
            (&cut, true, Losses::Few, true),
            (&changed, false, Losses::Few, true),
            (&whole, false, Losses::Few, true),
        ] {
            std::fs::write(&path, &whole).unwrap();
            let (directory, _) = YamlDirectory::load(&path).unwrap();
            match renamed {
                true => replace(&path, text),
                false => std::fs::write(&path, text).unwrap(),
            }
            assert_eq!(
                directory.reload(yes, losses).is_ok(),
                taken,
                "{renamed} {losses:?}: {text}"
            );
            // Half of it is there when it is looked at again.
            assert_eq!(
                directory.reload(yes, losses).is_ok(),
                taken,
                "{renamed} {losses:?}: {text}"
            );
        }
    }

    /// A file that is cut off at the end of an entry is good YAML and says that the rest is gone.
    #[test]
    fn a_file_that_lost_most_is_taken_on_somebodys_word_only() {
        let whole: String = std::iter::once(GOOD.to_owned())
            .chain((0..6).map(|i| format!("  user{i}@a.example: {{zimbraMailHost: store1.example.test}}\n")))
            .collect();
        let upto = |end: &str| whole[..whole.find(end).unwrap()].to_owned();
        let yes: &Apply = &|_| Ok(());
        for (text, least) in [
            (whole.clone(), Losses::Few),
            (upto("  user3"), Losses::Few),
            (upto("  user0"), Losses::Most),
            (upto("accounts:"), Losses::Most),
            (upto("domains:"), Losses::All),
            (upto("servers:"), Losses::All),
            ("# only\n# comments\n".to_owned(), Losses::All),
            (String::new(), Losses::All),
        ] {
            for losses in [Losses::Few, Losses::Most, Losses::All] {
                let folder = tempfile::tempdir().unwrap();
                let path = folder.path().join("d.yaml");
                std::fs::write(&path, &whole).unwrap();
                let (directory, _) = YamlDirectory::load(&path).unwrap();
                replace(&path, &text);
                let taken = directory.reload(yes, losses).is_ok();
                assert_eq!(taken, losses >= least, "{losses:?}: {text}");
                assert_eq!(directory.refusal().is_none(), taken);
                assert!(taken || directory.account_count() == 8);
            }
        }
    }

    /// A small directory may lose its only account without a warning, and is still guarded when it is emptied.
    #[test]
    fn the_only_account_or_class_may_be_taken_away() {
        let small = "servers: {s.test: {}}\ndomains: {a.test: {}}\ncos:\n  default: {}\naccounts:\n  x@a.test: {}\n";
        let without = |part: &str| small.replace(part, "");
        for (text, taken) in [
            (without("  x@a.test: {}\n"), true),
            (without("accounts:\n  x@a.test: {}\n"), true),
            (without("  default: {}\n"), true),
            (without("cos:\n  default: {}\naccounts:\n  x@a.test: {}\n"), false),
            (without("domains: {a.test: {}}\n"), false),
            (without("servers: {s.test: {}}\n"), false),
            (String::new(), false),
        ] {
            let folder = tempfile::tempdir().unwrap();
            let path = folder.path().join("d.yaml");
            std::fs::write(&path, small).unwrap();
            let (directory, _) = YamlDirectory::load(&path).unwrap();
            replace(&path, &text);
            assert_eq!(directory.reload(&|_| Ok(()), Losses::Few).is_ok(), taken, "{text}");
        }
    }

    /// A file that is written in place is seen half-written.
    #[test]
    fn a_file_is_read_when_it_looks_the_same_twice() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("d.yaml");
        std::fs::write(&path, GOOD).unwrap();
        let (directory, _) = YamlDirectory::load(&path).unwrap();
        let yes: &Apply = &|_| Ok(());
        assert_eq!(directory.follow(None, yes), None);
        let mut last = None;
        for part in ["  carol@a.example: {}\n", "  dave@a.example: {}\n"] {
            let text = std::fs::read_to_string(&path).unwrap() + part;
            std::fs::write(&path, text).unwrap();
            let now = directory.follow(last.as_ref(), yes);
            assert!(now.is_some() && now != last);
            assert_eq!(directory.account_count(), 2);
            last = now;
        }
        assert_eq!(directory.follow(last.as_ref(), yes), None);
        assert_eq!(directory.account_count(), 4);
    }

    /// Not a benchmark: it only shows that nothing is quadratic.
    #[test]
    fn twenty_thousand_accounts_are_no_burden() {
        let mut text = String::from(GOOD);
        for i in 0..20_000 {
            text.push_str(&format!(
                "  user{i}@a.example:\n    zimbraId: id-{i}\n    zimbraMailAlias: [u{i}@a.example]\n    zimbraMailHost: store1.example.test\n"
            ));
        }
        let start = std::time::Instant::now();
        let (directory, _) = parse(&text).unwrap();
        assert_eq!(directory.account_count(), 20_002);
        assert!(start.elapsed() < Duration::from_secs(60), "{:?}", start.elapsed());
    }
}
