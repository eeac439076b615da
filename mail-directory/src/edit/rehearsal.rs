//! Changes that are tried and not made: an editor whose writes end in memory, and what they would make of the entries.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::sync::Arc;

use async_trait::async_trait;
use parking_lot::Mutex;

use super::{Act, Change, EditError, Editor, EntryKind, Swap, changed};
use crate::attributes;
use crate::entry::Entry;
use crate::names::{self, fold};

/// An editor that writes nothing. What it was told is seen by what it is asked later.
pub struct Rehearsal {
    editor: Box<dyn Editor>,
    /// The editor itself keeps what is tried, and judges it as it judges a real change.
    keeps: bool,
    tried: TriedChanges,
    /// What was tried before the changes that wait for a commit.
    before_these: Option<TriedEntries>,
}

/// What became of the entries in a rehearsal, as far as it has come.
#[derive(Debug, Clone, Default)]
pub struct TriedChanges(Arc<Mutex<TriedEntries>>);

type TriedEntries = BTreeMap<(EntryKind, String), TriedEntry>;

/// An entry before and after what was tried. At least one of them is there.
#[derive(Debug, Clone)]
pub struct TriedEntry {
    /// Its kind.
    pub kind: EntryKind,
    /// Its name.
    pub name: String,
    /// As it is in the directory; `None`: it would be new.
    pub before: Option<Entry>,
    /// As it would be; `None`: it would be deleted.
    pub after: Option<Entry>,
    /// The attributes that the changes named, whether or not they would be other ones.
    pub named: BTreeSet<String>,
}

impl TriedChanges {
    /// The entries that would be other ones, by kind and name.
    pub fn all(&self) -> Vec<TriedEntry> {
        let tried = self.0.lock();
        tried
            .values()
            .filter(|entry| entry.before != entry.after)
            .cloned()
            .collect()
    }

    fn after(&self, kind: EntryKind, name: &str) -> Option<Option<Entry>> {
        let tried = self.0.lock();
        tried.get(&key(kind, name)).map(|entry| entry.after.clone())
    }

    /// The entry that has this id or other name only since it was tried.
    fn known_as(&self, kind: EntryKind, name: &str) -> Option<Entry> {
        let tried = self.0.lock();
        let of_kind = tried.values().filter(|entry| entry.kind == kind);
        let mut entries = of_kind.filter_map(|entry| entry.after.as_ref());
        entries.find(|entry| is_known_as(kind, entry, name)).cloned()
    }

    fn put(&self, kind: EntryKind, (name, named): (&str, &[Change]), before: Option<Entry>, after: Option<Entry>) {
        let mut tried = self.0.lock();
        let first = TriedEntry {
            kind,
            name: name.to_owned(),
            before,
            after: None,
            named: BTreeSet::new(),
        };
        let entry = tried.entry(key(kind, name)).or_insert(first);
        entry.after = after;
        entry.named.extend(named.iter().map(|change| change.attribute.clone()));
    }
}

impl Rehearsal {
    /// Of changes in the directory of this editor, which writes nothing from here on.
    pub fn new(mut editor: Box<dyn Editor>) -> Self {
        Self {
            keeps: editor.rehearse(),
            editor,
            tried: TriedChanges::default(),
            before_these: None,
        }
    }

    /// What was tried so far, and later.
    pub fn tried(&self) -> TriedChanges {
        self.tried.clone()
    }

    async fn existing(&mut self, kind: EntryKind, name: &str) -> Result<Entry, EditError> {
        let found = self.find(kind, name).await?;
        found.ok_or_else(|| EditError::NoSuch(kind, name.to_owned()))
    }
}

#[async_trait]
impl Editor for Rehearsal {
    async fn entries(&mut self, kind: EntryKind) -> Result<Vec<Entry>, EditError> {
        let entries = self.editor.entries(kind).await?;
        if self.keeps {
            return Ok(entries);
        }
        let mut by_name: BTreeMap<String, Entry> = entries
            .into_iter()
            .map(|entry| (kind.key(entry.name()), entry))
            .collect();
        for entry in self.tried.0.lock().values().filter(|entry| entry.kind == kind) {
            let name = kind.key(&entry.name);
            match entry.after.clone() {
                Some(after) => drop(by_name.insert(name, after)),
                None => drop(by_name.remove(&name)),
            }
        }
        Ok(by_name.into_values().collect())
    }

    async fn find(&mut self, kind: EntryKind, key: &str) -> Result<Option<Entry>, EditError> {
        if self.keeps {
            return self.editor.find(kind, key).await;
        }
        if let Some(after) = self.tried.after(kind, key) {
            return Ok(after);
        }
        let Some(found) = self.editor.find(kind, key).await? else {
            return Ok(self.tried.known_as(kind, key));
        };
        Ok(match self.tried.after(kind, found.name()) {
            Some(after) => after.filter(|after| is_known_as(kind, after, key)),
            None => Some(found),
        })
    }

    async fn modify(&mut self, kind: EntryKind, name: &str, changes: &[Change]) -> Result<(), EditError> {
        let before = self.existing(kind, name).await?;
        if self.keeps {
            self.editor.modify(kind, name, changes).await?;
        }
        let after = changed(&before, changes);
        self.tried.put(kind, (name, changes), Some(before), Some(after));
        Ok(())
    }

    async fn swap(&mut self, kind: EntryKind, name: &str, swaps: &[Swap]) -> Result<(), EditError> {
        let before = self.existing(kind, name).await?;
        let other = |swap: &&Swap| before.values(&swap.attribute) != [swap.from.as_str()];
        if let Some(Swap { attribute, from, .. }) = swaps.iter().find(other) {
            let message = format!("{attribute} of {name} is not {from} any more");
            return Err(EditError::Changed(message));
        }
        let change = |swap: &Swap| Change {
            attribute: swap.attribute.clone(),
            act: Act::Replace(vec![swap.to.clone()]),
        };
        let changes: Vec<Change> = swaps.iter().map(change).collect();
        self.modify(kind, name, &changes).await
    }

    async fn create(&mut self, kind: EntryKind, name: &str, attributes: &[Change]) -> Result<(), EditError> {
        if kind == EntryKind::Config || self.find(kind, name).await?.is_some() {
            return Err(EditError::Exists(kind, name.to_owned()));
        }
        if self.keeps {
            self.editor.create(kind, name, attributes).await?;
        }
        let after = changed(&Entry::new(name), attributes);
        self.tried.put(kind, (name, attributes), None, Some(after));
        Ok(())
    }

    async fn delete(&mut self, kind: EntryKind, name: &str) -> Result<(), EditError> {
        let before = self.existing(kind, name).await?;
        if self.keeps {
            self.editor.delete(kind, name).await?;
        }
        self.tried.put(kind, (name, &[]), Some(before), None);
        Ok(())
    }

    fn begin(&mut self) -> bool {
        let waits = self.keeps && self.editor.begin();
        self.before_these = waits.then(|| self.tried.0.lock().clone());
        waits
    }

    async fn commit(&mut self) -> Result<(), EditError> {
        let before = self.before_these.take();
        let done = self.editor.commit().await;
        if let (Err(_), Some(before)) = (&done, before) {
            *self.tried.0.lock() = before;
        }
        done
    }

    fn keeps_passwords(&self) -> bool {
        self.editor.keeps_passwords()
    }

    fn open_file(&self) -> Option<&Path> {
        self.editor.open_file()
    }
}

fn key(kind: EntryKind, name: &str) -> (EntryKind, String) {
    let name = match kind {
        EntryKind::Config => "config".to_owned(),
        _ => kind.key(name),
    };
    (kind, name)
}

/// Whether an entry is found by this name, id, or other name of an account.
fn is_known_as(kind: EntryKind, entry: &Entry, name: &str) -> bool {
    let is_id = || {
        entry
            .values(attributes::ID.name)
            .iter()
            .any(|id| fold(id) == fold(name))
    };
    let is_address = || {
        let addresses = [attributes::MAIL_DELIVERY_ADDRESS.name, attributes::MAIL_ALIAS.name];
        let mut addresses = addresses.iter().flat_map(|attribute| entry.values(attribute));
        addresses.any(|address| names::account(address) == names::account(name))
    };
    kind.key(entry.name()) == kind.key(name) || is_id() || (kind == EntryKind::Accounts && is_address())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A directory whose writes are counted as failures.
    struct ReadOnly(Vec<Entry>);

    #[async_trait]
    impl Editor for ReadOnly {
        async fn entries(&mut self, _: EntryKind) -> Result<Vec<Entry>, EditError> {
            Ok(self.0.clone())
        }
        async fn find(&mut self, kind: EntryKind, key: &str) -> Result<Option<Entry>, EditError> {
            Ok(self.0.iter().find(|entry| is_known_as(kind, entry, key)).cloned())
        }
        async fn modify(&mut self, _: EntryKind, _: &str, _: &[Change]) -> Result<(), EditError> {
            panic!("written")
        }
        async fn swap(&mut self, _: EntryKind, _: &str, _: &[Swap]) -> Result<(), EditError> {
            panic!("written")
        }
        async fn create(&mut self, _: EntryKind, _: &str, _: &[Change]) -> Result<(), EditError> {
            panic!("written")
        }
        async fn delete(&mut self, _: EntryKind, _: &str) -> Result<(), EditError> {
            panic!("written")
        }
        fn keeps_passwords(&self) -> bool {
            true
        }
    }

    fn set(attribute: &str, value: &str) -> Change {
        Change {
            attribute: attribute.to_owned(),
            act: Act::Replace(vec![value.to_owned()]),
        }
    }

    fn rehearsal() -> Rehearsal {
        let mut account = Entry::new("a@a.test");
        account.set("zimbraId", ["id-a"]);
        account.set("zimbraMailAlias", ["al@a.test"]);
        account.set("zimbraMailHost", ["s1"]);
        Rehearsal::new(Box::new(ReadOnly(vec![account, Entry::new("b@a.test")])))
    }

    #[tokio::test]
    async fn what_was_tried_is_seen_and_nothing_is_written() {
        const KIND: EntryKind = EntryKind::Accounts;
        let mut editor = rehearsal();
        editor
            .modify(KIND, "A@a.test", &[set("zimbraMailHost", "s2")])
            .await
            .unwrap();
        for name in ["a@a.test", "ID-A", "AL@a.test"] {
            let found = editor.find(KIND, name).await.unwrap().unwrap();
            assert_eq!(found.first("zimbraMailHost"), Some("s2"), "{name}");
        }
        editor.delete(KIND, "b@a.test").await.unwrap();
        assert_eq!(editor.find(KIND, "b@a.test").await, Ok(None));
        let again = editor.delete(KIND, "b@a.test").await;
        assert_eq!(again, Err(EditError::NoSuch(KIND, "b@a.test".to_owned())));
        editor
            .create(KIND, "c@a.test", &[set("zimbraId", "id-c")])
            .await
            .unwrap();
        assert!(editor.find(KIND, "id-c").await.unwrap().is_some());
        assert!(editor.create(KIND, "C@a.test", &[]).await.is_err());
        let names: Vec<String> = editor
            .entries(KIND)
            .await
            .unwrap()
            .iter()
            .map(|e| e.name().to_owned())
            .collect();
        assert_eq!(names, ["a@a.test", "c@a.test"]);
        let tried = editor.tried().all();
        let shown: Vec<_> = tried
            .iter()
            .map(|entry| (entry.name.as_str(), entry.before.is_some(), entry.after.is_some()))
            .collect();
        assert_eq!(
            shown,
            [
                ("A@a.test", true, true),
                ("b@a.test", true, false),
                ("c@a.test", false, true)
            ]
        );
    }

    #[tokio::test]
    async fn what_comes_to_nothing_is_no_change() {
        const KIND: EntryKind = EntryKind::Accounts;
        let mut editor = rehearsal();
        for host in ["s2", "s1"] {
            editor
                .modify(KIND, "a@a.test", &[set("zimbraMailHost", host)])
                .await
                .unwrap();
        }
        editor.create(KIND, "c@a.test", &[]).await.unwrap();
        editor.delete(KIND, "c@a.test").await.unwrap();
        assert!(editor.tried().all().is_empty());
    }
}
