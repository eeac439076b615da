//! The directory in a YAML file: the same entries and attributes as in LDAP, all accounts in memory.
//!
//! A file that is not good is not taken: the one before stays in force. Writing the file is not done here.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use arc_swap::ArcSwap;
use async_trait::async_trait;

use super::entry::{Entry, Origin};
use super::system::System;
use super::{AccountBy, Directory, DirectoryError, check, fold};
use crate::attributes::{self, Attribute};
use crate::yaml::{Document, Node, Problems, Severity};

/// A directory read from a file, whole.
#[derive(Debug)]
pub struct YamlDirectory {
    path: PathBuf,
    content: ArcSwap<Content>,
}

/// What one reading of the file gave.
#[derive(Debug)]
struct Content {
    system: Arc<System>,
    accounts: Accounts,
    files: Vec<PathBuf>,
}

#[derive(Debug, Default)]
struct Accounts {
    /// By delivery address and alias, folded.
    by_name: HashMap<String, Arc<Entry>>,
    /// By `zimbraId`, folded.
    by_id: HashMap<String, Arc<Entry>>,
}

impl YamlDirectory {
    /// Reads the file. Gives the directory with the warnings, or all problems if one of them is an error.
    pub fn load(path: &Path) -> Result<(YamlDirectory, Problems), Problems> {
        let (content, warnings) = Content::read(&Document::load(path)?)?;
        let directory = YamlDirectory { path: path.to_owned(), content: ArcSwap::from_pointee(content) };
        Ok((directory, warnings))
    }

    /// The same from a text, as if it stood in the file `path`.
    pub fn parse(text: &str, path: &Path) -> Result<(YamlDirectory, Problems), Problems> {
        let (content, warnings) = Content::read(&Document::parse(text, path)?)?;
        let directory = YamlDirectory { path: path.to_owned(), content: ArcSwap::from_pointee(content) };
        Ok((directory, warnings))
    }

    /// Reads the file again and, if it is good, puts the new content in place of the old one, all at once.
    /// Gives the warnings. After an error everything is as before.
    pub fn reload(&self) -> Result<Problems, Problems> {
        let (content, warnings) = Content::read(&Document::load(&self.path)?)?;
        self.content.store(Arc::new(content));
        Ok(warnings)
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
        names.filter(|(name, entry)| **name == account_name(entry)).map(|(_, entry)| entry.clone()).collect()
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
}

impl Content {
    fn read(document: &Document) -> Result<(Content, Problems), Problems> {
        let mut reader = Reader::default();
        let problems = &mut Problems::new();
        let (system, accounts) = reader.read(document.root(), problems);
        problems.extend(system.check());
        let accounts = Accounts::index(&system, accounts, problems);
        let content = Content { system: Arc::new(system), accounts, files: reader.files };
        std::mem::take(problems).or(content)
    }
}

impl Accounts {
    fn index(system: &System, entries: Vec<Entry>, problems: &mut Problems) -> Accounts {
        let mut accounts = Accounts::default();
        for entry in entries {
            check::account(system, &entry, problems);
            accounts.add(Arc::new(entry), problems);
        }
        accounts
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
        claim(&mut self.by_name, account_name(&entry), &attributes::MAIL_DELIVERY_ADDRESS);
        for alias in entry.values(attributes::MAIL_ALIAS.name) {
            claim(&mut self.by_name, fold(alias), &attributes::MAIL_ALIAS);
        }
        for id in entry.values(attributes::ID.name) {
            claim(&mut self.by_id, fold(id), &attributes::ID);
        }
    }
}

/// The folded delivery address; the key of the account where it has none.
fn account_name(entry: &Entry) -> String {
    fold(entry.first(attributes::MAIL_DELIVERY_ADDRESS.name).unwrap_or(entry.name()))
}

/// Turns the tree of the document into entries.
#[derive(Default)]
struct Reader {
    files: Vec<PathBuf>,
}

impl Reader {
    fn read(&mut self, root: Node<'_>, problems: &mut Problems) -> (System, Vec<Entry>) {
        let Some(mut rooms) = root.mapping(problems) else {
            return (System::default(), Vec::new());
        };
        let config = match rooms.take("config") {
            Some(node) => self.entry("config", node, problems),
            None => Entry::new("config"),
        };
        let servers = self.entries(rooms.take("servers"), problems);
        let domains = self.entries(rooms.take("domains"), problems);
        let cos = self.entries(rooms.take("cos"), problems);
        let accounts = self.entries(rooms.take("accounts"), problems);
        rooms.finish(problems);
        (System::new(config, servers, domains, cos), accounts)
    }

    fn entries(&mut self, room: Option<Node<'_>>, problems: &mut Problems) -> Vec<Entry> {
        let Some(entries) = room.and_then(|node| node.mapping(problems)) else {
            return Vec::new();
        };
        let mut seen = HashMap::new();
        for (name, node) in entries.entries() {
            if let Some(first) = seen.insert(fold(name), node.line()) {
                node.error(format!("stands here twice in another spelling; the first is in line {first}"), problems);
            }
        }
        entries.entries().map(|(name, node)| self.entry(name, node, problems)).collect()
    }

    fn entry(&mut self, name: &str, node: Node<'_>, problems: &mut Problems) -> Entry {
        let origin = Origin { file: node.origin().clone(), line: node.line() };
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
