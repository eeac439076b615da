//! Changing the directory: what can be asked of a directory that can be changed, and why a change is refused.
//!
//! Whether a change makes sense is for the caller to judge (`portico prov`); here it is only carried out, whole or
//! not at all. Attribute names are compared without regard to case, and so are values that are added or removed:
//! addresses, host names and words are what lists hold.

use std::fmt;
use std::path::Path;

use async_trait::async_trait;
use tokio::task::JoinError;

use crate::attributes::Scope;
use crate::entry::Entry;
use crate::names::{self, fold};
use value_list::ValueList;

pub mod rehearsal;
mod value_list;

/// A kind of entry, and the place of such entries.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum EntryKind {
    /// The global config: one entry, called `config`.
    Config,
    /// Servers.
    Servers,
    /// Domains.
    Domains,
    /// Classes of service.
    Cos,
    /// Accounts.
    Accounts,
}

impl EntryKind {
    /// What one entry of it is called.
    pub fn one(self) -> &'static str {
        match self {
            Self::Config => "config",
            Self::Servers => "server",
            Self::Domains => "domain",
            Self::Cos => "cos",
            Self::Accounts => "account",
        }
    }

    /// Its name: where it stands in a YAML directory, and in messages about its entries.
    pub fn name(self) -> &'static str {
        match self {
            Self::Config => "config",
            Self::Servers => "servers",
            Self::Domains => "domains",
            Self::Cos => "cos",
            Self::Accounts => "accounts",
        }
    }

    /// The form in which the names of its entries are compared.
    pub(crate) fn key(self, name: &str) -> String {
        match self {
            Self::Servers | Self::Domains => names::host(name),
            Self::Accounts => names::account(name),
            Self::Config | Self::Cos => fold(name),
        }
    }

    /// Where its entries stand in the table of attributes.
    pub fn scope(self) -> Scope {
        match self {
            Self::Config => Scope::Global,
            Self::Servers => Scope::Server,
            Self::Domains => Scope::Domain,
            Self::Cos => Scope::Cos,
            Self::Accounts => Scope::Account,
        }
    }
}

/// A change of one attribute.
#[derive(Clone, PartialEq, Eq)]
pub struct Change {
    /// Name of the attribute.
    pub attribute: String,
    /// What to do with its values.
    pub act: Act,
}

/// A value that takes the place of another one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Swap {
    /// Name of the attribute.
    pub attribute: String,
    /// Its one value, as it stands there.
    pub from: String,
    /// The value after.
    pub to: String,
}

/// What to do with the values of an attribute.
#[derive(Clone, PartialEq, Eq)]
pub enum Act {
    /// These take the place of all; none unsets the attribute.
    Replace(Vec<String>),
    /// One more, unless it is there.
    Add(String),
    /// One less, if it is there.
    Remove(String),
}

/// Values are left out: one of them may be a private key.
impl fmt::Debug for Change {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let act = match &self.act {
            Act::Replace(values) => format!("= {} values", values.len()),
            Act::Add(_) => "+".to_owned(),
            Act::Remove(_) => "-".to_owned(),
        };
        write!(f, "Change({} {act})", self.attribute)
    }
}

/// Why nothing was changed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum EditError {
    /// There is no such entry.
    #[error("no such {}: {}", .0.one(), .1)]
    NoSuch(EntryKind, String),
    /// There is one already.
    #[error("{} already exists: {}", .0.one(), .1)]
    Exists(EntryKind, String),
    /// Other entries need it.
    #[error("{0}")]
    InUse(String),
    /// The directory does not know the attribute, or not on such an entry.
    #[error("{0}")]
    Name(String),
    /// The directory does not take the value.
    #[error("{0}")]
    Value(String),
    /// It is not as it was when the change was thought of.
    #[error("{0}")]
    Changed(String),
    /// The account that the node binds as may not do this.
    #[error("{0}")]
    Denied(String),
    /// It could not be done: unreachable, read-only, locked, unreadable.
    #[error("{0}")]
    Failed(String),
}

impl From<JoinError> for EditError {
    fn from(error: JoinError) -> Self {
        Self::Failed(error.to_string())
    }
}

/// A directory that can be changed. Each act stands alone and is done when it returns, unless [`Editor::begin`] says
/// that acts may wait.
#[async_trait]
pub trait Editor: Send {
    /// All entries of a kind, with all their attributes, by name.
    async fn entries(&mut self, kind: EntryKind) -> Result<Vec<Entry>, EditError>;

    /// The entry of this name or `zimbraId`; an account also by its aliases. For [`EntryKind::Config`] the name is
    /// ignored.
    async fn find(&mut self, kind: EntryKind, key: &str) -> Result<Option<Entry>, EditError>;

    /// Changes the entry of this name. Values that the changes do not name are as they are at that moment.
    async fn modify(&mut self, kind: EntryKind, name: &str, changes: &[Change]) -> Result<(), EditError>;

    /// Puts values in the place of others, all or none, if each of these is the one value of its attribute at that
    /// moment.
    ///
    /// # Errors
    /// Also if one is not ([`EditError::Changed`]).
    async fn swap(&mut self, kind: EntryKind, name: &str, swaps: &[Swap]) -> Result<(), EditError>;

    /// Makes an entry. The directory adds what its own form needs.
    async fn create(&mut self, kind: EntryKind, name: &str, attributes: &[Change]) -> Result<(), EditError>;

    /// Deletes an entry.
    async fn delete(&mut self, kind: EntryKind, name: &str) -> Result<(), EditError>;

    /// From here on acts may wait for [`Editor::commit`], where many of them cost as much as one. They return as if
    /// they were done, and later ones see them so. False: this directory does each at once.
    fn begin(&mut self) -> bool {
        false
    }

    /// Does what waits. From here on nothing waits.
    ///
    /// # Errors
    /// Nothing of what waited was done.
    async fn commit(&mut self) -> Result<(), EditError> {
        Ok(())
    }

    /// From here on nothing is written: each act is tried, judged as it would be, and kept in memory, where later ones
    /// see it. False: this directory cannot judge without writing, and keeps nothing.
    fn rehearse(&mut self) -> bool {
        false
    }

    /// How far the directory has come with what was done here, for [`crate::Directory::has_taken`]; `None` if it
    /// cannot tell.
    async fn point(&mut self) -> Option<String> {
        None
    }

    /// Whether accounts have passwords in this directory.
    fn keeps_passwords(&self) -> bool;

    /// The file that holds the directory, if every user of this machine may read it.
    fn open_file(&self) -> Option<&Path> {
        None
    }
}

/// The entry as it is after the changes, one after the other.
pub fn changed(entry: &Entry, changes: &[Change]) -> Entry {
    let mut entry = entry.clone();
    // Consecutive changes of one attribute are put in place once.
    for of_one in changes.chunk_by(|a, b| a.attribute == b.attribute) {
        let attribute = &of_one[0].attribute;
        let mut values = ValueList::of(entry.values(attribute));
        for change in of_one {
            match &change.act {
                Act::Replace(new) => {
                    values = ValueList::of(&[]);
                    new.iter().for_each(|value| values.add(value));
                }
                Act::Add(value) => values.add(value),
                Act::Remove(value) => values.remove(value),
            }
        }
        // Known names are spelled as in the table; others keep the spelling that they have.
        let written = entry.iter().find(|(name, _)| name.eq_ignore_ascii_case(attribute));
        let name = written.map_or(attribute.clone(), |(name, _)| name.to_owned());
        entry.set(&name, values.into_vec());
    }
    entry
}

#[cfg(test)]
mod tests {
    use super::*;

    fn change(attribute: &str, act: Act) -> Change {
        Change {
            attribute: attribute.to_owned(),
            act,
        }
    }

    #[test]
    fn changes_follow_each_other_and_compare_without_case() {
        let mut entry = Entry::new("a.test");
        entry.set("zimbraVirtualHostname", ["m.a.test", "n.a.test"]);
        let name = "ZIMBRAvirtualHOSTname";
        let text = |t: &str| t.to_owned();
        for (acts, expected) in [
            (vec![Act::Add(text("M.A.test"))], vec!["m.a.test", "n.a.test"]),
            (vec![Act::Add(text("o"))], vec!["m.a.test", "n.a.test", "o"]),
            (vec![Act::Remove(text("N.a.test"))], vec!["m.a.test"]),
            (vec![Act::Remove(text("x"))], vec!["m.a.test", "n.a.test"]),
            (
                vec![Act::Replace(vec![text("x"), text("X"), text("y")])],
                vec!["x", "y"],
            ),
            (vec![Act::Replace(vec![])], vec![]),
            (vec![Act::Replace(vec![text("x")]), Act::Add(text("y"))], vec!["x", "y"]),
        ] {
            let changes: Vec<Change> = acts.into_iter().map(|act| change(name, act)).collect();
            assert_eq!(changed(&entry, &changes).values("zimbraVirtualHostname"), expected);
        }
    }

    #[test]
    fn debug_shows_no_values() {
        let key = change("zimbraSSLPrivateKey", Act::Replace(vec!["secret".to_owned()]));
        assert_eq!(format!("{key:?}"), "Change(zimbraSSLPrivateKey = 1 values)");
    }
}
