//! The text of a YAML directory while it is changed, and what it says.
//!
//! A change is made in the lines of its entry, which are read by themselves before and after it: a file of hundreds
//! of thousands of accounts is not read for each change. All that was changed is proved together, in the whole text,
//! before it may be written. What cannot be understood by its own lines (an anchor, an alias, brackets around many
//! entries, a file with errors) is changed and proved in the whole text.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::rewrite::{self, EntryPlace};
use super::{ACCOUNTS, Accounts, Reader, account_name};
use crate::attributes;
use crate::check;
use crate::edit::{Change, EditError, EntryKind, changed};
use crate::entry::Entry;
use crate::names::{self, fold};
use crate::system::System;
use crate::yaml::layout::BREAKS;
use crate::yaml::{Document, Problems, Severity};

/// All entries by kind and folded name.
pub(super) type Whole = BTreeMap<Key, Arc<Entry>>;
/// Kind and folded name of an entry.
pub(super) type Key = (EntryKind, String);

/// What is to be done.
#[derive(Debug, Clone, Copy)]
pub(super) enum Edit<'a> {
    Modify(EntryKind, &'a str, &'a [Change]),
    Create(EntryKind, &'a str, &'a [Change]),
    Delete(EntryKind, &'a str),
}

impl Edit<'_> {
    pub(super) fn kind(&self) -> EntryKind {
        match self {
            Edit::Modify(kind, ..) | Edit::Create(kind, ..) | Edit::Delete(kind, _) => *kind,
        }
    }

    fn name(&self) -> &str {
        match self {
            Edit::Modify(_, name, _) | Edit::Create(_, name, _) | Edit::Delete(_, name) => name,
        }
    }

    fn key(&self) -> Key {
        (self.kind(), self.kind().key(self.name()))
    }

    /// The entry after the change; `None`: deleted.
    fn after(&self, reading: &FileReading) -> Result<Option<Entry>, EditError> {
        let (kind, name) = (self.kind(), self.name());
        let before = reading.entries.get(&self.key());
        let existing = || before.ok_or_else(|| EditError::NoSuch(kind, name.to_owned()));
        match self {
            Edit::Modify(.., changes) => Ok(Some(changed(existing()?, changes))),
            Edit::Create(..) if kind == EntryKind::Config || before.is_some() => {
                Err(EditError::Exists(kind, name.to_owned()))
            }
            Edit::Create(.., attributes) => Ok(Some(changed(&Entry::new(name), attributes))),
            Edit::Delete(..) => existing().map(|_| None),
        }
    }

    /// The text with the changed entry.
    fn rewrite(&self, text: &str, before: Option<&Entry>, after: Option<&Entry>) -> Result<String, EditError> {
        let name = self.name();
        let place = EntryPlace {
            section: self.kind().name(),
            name: Some(name).filter(|_| self.kind() != EntryKind::Config),
        };
        match (before, after) {
            (Some(before), Some(after)) => {
                let mut text = text.to_owned();
                let names: BTreeSet<&str> = before.iter().chain(after.iter()).map(|(name, _)| name).collect();
                for attribute in names {
                    let (old, new) = (before.values(attribute), after.values(attribute));
                    if old != new {
                        let set = rewrite::set(&text, place, (attribute, new), old);
                        text = set.map_err(|why| refused(&format!("{attribute} of {name}"), &why))?;
                    }
                }
                Ok(text)
            }
            (None, Some(after)) => {
                let attributes: Vec<rewrite::NamedValues<'_>> = after.iter().collect();
                rewrite::create(text, place, &attributes).map_err(|why| refused(name, &why))
            }
            (_, None) => rewrite::delete(text, place).map_err(|why| refused(name, &why)),
        }
    }
}

fn refused(what: &str, why: &str) -> EditError {
    EditError::Failed(format!(
        "{what} cannot be changed where it is written: {why}; change the file by hand"
    ))
}

/// What a file says, and what is wrong with it.
#[derive(Debug)]
pub(super) struct FileReading {
    pub(super) entries: Whole,
    system: System,
    /// By name and id; `None`: they were not read.
    accounts: Option<Accounts>,
    /// How many there are in the text.
    account_count: usize,
    /// The lines of the keys at the root.
    tops: BTreeMap<String, usize>,
    /// Keys beside the sections, which mean nothing here. They must not be lost.
    strangers: BTreeMap<String, serde_yaml::Value>,
    errors: BTreeSet<String>,
}

impl FileReading {
    /// With the accounts, or without them. Fails only where there is no tree.
    pub(super) fn of(text: &str, path: &Path, with_accounts: bool) -> Result<Self, EditError> {
        let (mut reader, mut problems, mut passed) = (Reader::default(), Problems::new(), 0);
        let document = Document::parse_each(text, path, ACCOUNTS, &mut |name, node| match with_accounts {
            true => reader.account(name, node, &mut problems),
            false => passed += 1,
        });
        let document = document.map_err(|problems| EditError::Failed(problems.to_string()))?;
        let system = reader.read(document.root(), &mut problems);
        reader.lines = HashMap::new();
        problems.extend(system.check());
        let account_count = passed + reader.accounts.len();
        let mut entries = of_system(&system);
        let accounts = with_accounts.then(|| {
            for entry in &reader.accounts {
                entries.insert(
                    (EntryKind::Accounts, EntryKind::Accounts.key(entry.name())),
                    entry.clone(),
                );
            }
            Accounts::index(&system, &reader.accounts, &mut problems)
        });
        Ok(Self {
            entries,
            system,
            accounts,
            account_count,
            tops: reader.tops,
            strangers: reader.strangers,
            errors: errors(&problems),
        })
    }

    /// All entries of a kind, by name.
    pub(super) fn of_kind(&self, kind: EntryKind) -> impl Iterator<Item = &Arc<Entry>> {
        let first = self.entries.range((kind, String::new())..);
        first
            .take_while(move |((of, _), _)| *of == kind)
            .map(|(_, entry)| entry)
    }

    pub(super) fn find(&self, kind: EntryKind, key: &str) -> Option<&Arc<Entry>> {
        if kind == EntryKind::Config {
            return self.entries.get(&(kind, "config".to_owned()));
        }
        let (name, key) = (kind.key(key), fold(key));
        let by_name = self.entries.get(&(kind, name.clone()));
        // Without errors every name has one owner.
        if let Some(accounts) = self.accounts.as_ref().filter(|_| self.errors.is_empty())
            && kind == EntryKind::Accounts
        {
            return by_name
                .or_else(|| accounts.by_id.get(&key))
                .or_else(|| accounts.by_name.get(&name));
        }
        let of_kind = || self.of_kind(kind);
        let has_id = |entry: &&Arc<Entry>| entry.values(attributes::ID.name).iter().any(|id| fold(id) == key);
        let aliases = |entry: &&Arc<Entry>| {
            let aliases = entry.values(attributes::MAIL_ALIAS.name).iter();
            aliases.map(|alias| names::account(alias)).any(|alias| alias == name)
        };
        by_name
            .or_else(|| of_kind().find(has_id))
            .or_else(|| of_kind().find(|entry| kind == EntryKind::Accounts && account_name(entry) == name))
            .or_else(|| of_kind().find(|entry| kind == EntryKind::Accounts && aliases(entry)))
    }

    /// The system with another entry in it.
    fn system_with(&self, key: &Key, after: Option<&Entry>) -> System {
        let of = |kind| {
            let others = self.entries.range((kind, String::new())..);
            let others = others.take_while(move |((of, _), _)| *of == kind);
            let others = others
                .filter(|(other, _)| *other != key)
                .map(|(_, entry)| (**entry).clone());
            others.chain(after.filter(|_| key.0 == kind).cloned())
        };
        let config = of(EntryKind::Config).next().unwrap_or_else(|| Entry::new("config"));
        System::new(
            config,
            of(EntryKind::Servers),
            of(EntryKind::Domains),
            of(EntryKind::Cos),
        )
    }

    fn put(&mut self, key: Key, after: Option<Entry>, system: Option<System>) {
        let before = self.entries.remove(&key);
        let after = after.map(Arc::new);
        if let Some(system) = system {
            self.system = system;
        }
        if let Some(accounts) = self.accounts.as_mut().filter(|_| key.0 == EntryKind::Accounts) {
            before.iter().for_each(|entry| accounts.forget(entry));
            // Conflicts were looked for before.
            after
                .iter()
                .for_each(|entry| accounts.add(entry.clone(), &mut Problems::new()));
            self.account_count = self.account_count + usize::from(after.is_some()) - usize::from(before.is_some());
        }
        self.entries.extend(after.map(|after| (key, after)));
    }
}

/// Everything but the accounts.
fn of_system(system: &System) -> Whole {
    let mut entries = Whole::new();
    let mut put_all = |kind: EntryKind, all: &mut dyn Iterator<Item = &Entry>| {
        all.for_each(|entry| drop(entries.insert((kind, kind.key(entry.name())), Arc::new(entry.clone()))));
    };
    put_all(EntryKind::Config, &mut std::iter::once(&system.config));
    put_all(EntryKind::Servers, &mut system.servers.values());
    put_all(EntryKind::Domains, &mut system.domains.values());
    put_all(EntryKind::Cos, &mut system.cos.values());
    entries
}

/// Lines move; what is wrong does not.
fn errors(problems: &Problems) -> BTreeSet<String> {
    let errors = problems.iter().filter(|problem| problem.severity == Severity::Error);
    let without_line = |message: &str| {
        message
            .split("; the first is in line")
            .next()
            .unwrap_or_default()
            .to_owned()
    };
    errors
        .map(|problem| format!("{}: {}", problem.key, without_line(&problem.message)))
        .collect()
}

/// A text under change.
#[derive(Debug)]
pub(super) struct Sheet {
    path: PathBuf,
    /// As it was when it was read whole.
    base: String,
    /// What took the place of parts of it: where they begin and end, and the new text.
    pieces: BTreeMap<usize, (usize, String)>,
    /// Entries that were made since, in their order, and the line whose part they stand in.
    made: HashMap<Key, (usize, usize)>,
    made_count: usize,
    lines: Option<Lines>,
    /// No change in the pieces waits for its proof.
    is_proved: bool,
    pub(super) reading: FileReading,
}

/// The lines of a text.
#[derive(Debug)]
struct Lines {
    /// Where each begins.
    starts: Vec<usize>,
    /// Those where the entries of a kind begin, in order.
    of_kind: BTreeMap<EntryKind, Vec<usize>>,
}

/// What came of a try in the lines of one entry.
enum Tried {
    Done,
    /// They do not say enough.
    Unclear,
}

impl Sheet {
    pub(super) fn read(text: String, path: &Path, with_accounts: bool) -> Result<Self, EditError> {
        let reading = FileReading::of(&text, path, with_accounts)?;
        Ok(Self::new(text, path, reading))
    }

    fn new(text: String, path: &Path, reading: FileReading) -> Self {
        Self {
            path: path.to_owned(),
            base: text,
            pieces: BTreeMap::new(),
            made: HashMap::new(),
            made_count: 0,
            lines: None,
            is_proved: true,
            reading,
        }
    }

    pub(super) fn is_proved(&self) -> bool {
        self.is_proved
    }

    /// Reads the accounts that were not read before.
    pub(super) fn with_accounts(&mut self) -> Result<(), EditError> {
        if self.reading.accounts.is_none() {
            let text = self.proved()?;
            *self = Self::read(text, &self.path, true)?;
        }
        Ok(())
    }

    /// Whether the text is this one.
    pub(super) fn says(&self, text: &str) -> bool {
        let mut rest = text;
        self.parts().all(|part| match rest.strip_prefix(part) {
            Some(behind) => {
                rest = behind;
                true
            }
            None => false,
        }) && rest.is_empty()
    }

    /// Whether the text contains these words.
    pub(super) fn holds(&self, words: &str) -> bool {
        self.parts().any(|part| part.contains(words))
    }

    fn parts(&self) -> impl Iterator<Item = &str> {
        let ends = self
            .pieces
            .iter()
            .map(|(start, (end, new))| (*start, *end, new.as_str()));
        let last = (self.base.len(), self.base.len(), "");
        let mut at = 0;
        ends.chain([last]).flat_map(move |(start, end, new)| {
            let kept = &self.base[at..start];
            at = end;
            [kept, new]
        })
    }

    /// The text, once it is proved that the whole says what its parts say.
    pub(super) fn proved(&mut self) -> Result<String, EditError> {
        let text: String = self.parts().collect();
        if !self.is_proved {
            self.prove(&text)?;
            self.is_proved = true;
        }
        Ok(text)
    }

    /// Accounts are compared as they come. Where they were not read, no byte of theirs was changed, and their number
    /// must be the same as before.
    fn prove(&self, text: &str) -> Result<(), EditError> {
        let (mut reader, mut problems) = (Reader::default(), Problems::new());
        let (mut count, mut same) = (0, true);
        let is_wanted = |entry: &Entry| {
            let wanted = self
                .reading
                .entries
                .get(&(EntryKind::Accounts, EntryKind::Accounts.key(entry.name())));
            wanted.is_some_and(|wanted| **wanted == *entry)
        };
        let is_whole = self.reading.accounts.is_some();
        let document = Document::parse_each(text, &self.path, ACCOUNTS, &mut |name, node| {
            count += 1;
            same = same && (!is_whole || is_wanted(&reader.entry(name, node, &mut problems)));
        });
        let document = document.map_err(|problems| EditError::Failed(problems.to_string()))?;
        let system = reader.read(document.root(), &mut problems);
        problems.extend(system.check());
        if let Some(error) = errors(&problems).into_iter().next() {
            return Err(EditError::Value(error));
        }
        let others = self.reading.entries.range(..(EntryKind::Accounts, String::new()));
        let is_same = same
            && count + reader.accounts.len() == self.reading.account_count
            && (!is_whole || reader.accounts.iter().all(|entry| is_wanted(entry)))
            && of_system(&system).iter().eq(others)
            && reader.strangers == self.reading.strangers;
        match is_same {
            true => Ok(()),
            false => Err(touches_more(&self.path)),
        }
    }

    /// Makes a change. Returns whether there was anything to do.
    pub(super) fn apply(&mut self, edit: Edit<'_>) -> Result<bool, EditError> {
        let before = self.reading.entries.get(&edit.key()).cloned();
        let after = edit.after(&self.reading)?;
        if before.as_deref() == after.as_ref() {
            return Ok(false);
        }
        match self.in_its_lines(edit, before.as_ref(), after.as_ref())? {
            Tried::Done => Ok(true),
            Tried::Unclear => self.in_the_whole(edit),
        }
    }

    /// The same in the whole text, which is proved at once.
    pub(super) fn in_the_whole(&mut self, edit: Edit<'_>) -> Result<bool, EditError> {
        if !self.pieces.is_empty() || self.reading.accounts.is_none() {
            let text = self.proved()?;
            *self = Self::read(text, &self.path, true)?;
        }
        let before = self.reading.entries.get(&edit.key()).cloned();
        let after = edit.after(&self.reading)?;
        if before.as_deref() == after.as_ref() {
            return Ok(false);
        }
        let new = edit.rewrite(&self.base, before.as_deref(), after.as_ref())?;
        let mut wanted = self.reading.entries.clone();
        wanted.remove(&edit.key());
        wanted.extend(after.map(|after| (edit.key(), Arc::new(after))));
        let reading = prove(&new, &wanted, &self.reading, &self.path)?;
        *self = Self::new(new, &self.path, reading);
        Ok(true)
    }

    fn in_its_lines(
        &mut self,
        edit: Edit<'_>,
        before: Option<&Arc<Entry>>,
        after: Option<&Entry>,
    ) -> Result<Tried, EditError> {
        let Some((line, (start, end))) = self.part_of(edit, before) else {
            return Ok(Tried::Unclear);
        };
        let kind = edit.kind();
        let head = if kind == EntryKind::Config {
            String::new()
        } else {
            format!("{}:\n", kind.name())
        };
        let old = self.pieces.get(&start).map_or(&self.base[start..end], |(_, new)| new);
        let old = format!("{head}{old}");
        let Some(mut wanted) = of_part(&old, &self.path, kind) else {
            return Ok(Tried::Unclear);
        };
        let is_known = wanted
            .iter()
            .all(|(key, entry)| self.reading.entries.get(key) == Some(entry));
        // A new entry is added behind others; in a part without any, only its neighbours show how it is written.
        if !is_known || wanted.is_empty() || wanted.contains_key(&edit.key()) != before.is_some() {
            return Ok(Tried::Unclear);
        }
        let Ok(new) = edit.rewrite(&old, before.map(|before| &**before), after) else {
            return Ok(Tried::Unclear);
        };
        wanted.remove(&edit.key());
        wanted.extend(after.map(|after| (edit.key(), Arc::new(after.clone()))));
        let Some(part) = new.strip_prefix(&head) else {
            return Ok(Tried::Unclear);
        };
        if of_part(&new, &self.path, kind).as_ref() != Some(&wanted) {
            return Ok(Tried::Unclear);
        }
        let (system, errors) = self.problems_after(&edit.key(), before, after);
        if let Some(error) = errors.into_iter().next() {
            return Err(EditError::Value(error));
        }
        self.pieces.insert(start, (end, part.to_owned()));
        self.is_proved = false;
        match after {
            None => drop(self.made.remove(&edit.key())),
            Some(_) if before.is_none() => {
                self.made_count += 1;
                self.made.insert(edit.key(), (self.made_count, line));
            }
            Some(_) => {}
        }
        self.reading.put(edit.key(), after.cloned(), system);
        Ok(Tried::Done)
    }

    /// The part of the text that an entry stands in, or is to stand in: its line, its first byte, and its end.
    fn part_of(&mut self, edit: Edit<'_>, before: Option<&Arc<Entry>>) -> Option<(usize, (usize, usize))> {
        if !self.reading.errors.is_empty() {
            return None;
        }
        let kind = edit.kind();
        let top = *self.reading.tops.get(kind.name())?;
        let next_top = self.reading.tops.values().filter(|line| **line > top).min().copied();
        let lines = self.lines.get_or_insert_with(|| Lines::of(&self.base, &self.reading));
        let of_kind = lines.of_kind.get(&kind).map_or(&[][..], Vec::as_slice);
        let line = match (kind, before) {
            (EntryKind::Config, _) => top,
            (_, None) => *of_kind.last()?,
            (_, Some(before)) => match self.made.get(&edit.key()) {
                Some((_, line)) => *line,
                None => before.origin()?.line,
            },
        };
        let after = match kind {
            EntryKind::Config => None,
            _ => of_kind.get(of_kind.binary_search(&line).ok()? + 1).copied(),
        };
        if kind != EntryKind::Config && (line <= top || next_top.is_some_and(|next| line >= next)) {
            return None;
        }
        let start = |line: usize| lines.starts.get(line - 1).copied();
        let end = after.or(next_top).map_or(Some(self.base.len()), start)?;
        Some((line, (start(line)?, end))).filter(|(_, (start, end))| start < end)
    }

    /// What would be wrong with the entries after a change. There was nothing before.
    fn problems_after(
        &self,
        key: &Key,
        before: Option<&Arc<Entry>>,
        after: Option<&Entry>,
    ) -> (Option<System>, BTreeSet<String>) {
        if key.0 != EntryKind::Accounts {
            let system = self.reading.system_with(key, after);
            let errors = errors(&system.check());
            return (Some(system), errors);
        }
        let mut problems = Problems::new();
        if let (Some(after), Some(accounts)) = (after, &self.reading.accounts) {
            check::account(&self.reading.system, after, &mut problems);
            let place = |entry: &Entry| {
                let key = (EntryKind::Accounts, EntryKind::Accounts.key(entry.name()));
                let made = self.made.get(&key).map(|(order, _)| (usize::MAX, *order));
                made.unwrap_or_else(|| (entry.origin().map_or(usize::MAX, |origin| origin.line), usize::MAX))
            };
            accounts.conflicts(before, after, place, &mut problems);
        }
        (None, errors(&problems))
    }
}

impl Lines {
    fn of(text: &str, reading: &FileReading) -> Self {
        let mut starts = vec![0];
        let mut at = 0;
        while let Some(end) = text[at..].find(BREAKS) {
            at += end + if text[at + end..].starts_with("\r\n") { 2 } else { 1 };
            starts.push(at);
        }
        let mut of_kind: BTreeMap<EntryKind, Vec<usize>> = BTreeMap::new();
        for ((kind, _), entry) in &reading.entries {
            of_kind
                .entry(*kind)
                .or_default()
                .extend(entry.origin().map(|origin| origin.line));
        }
        for lines in of_kind.values_mut() {
            lines.sort_unstable();
            lines.dedup();
        }
        Self { starts, of_kind }
    }
}

/// The entries of a text that holds some of one kind and nothing else; `None`: there is more to it.
fn of_part(text: &str, path: &Path, kind: EntryKind) -> Option<Whole> {
    let (mut reader, mut problems) = (Reader::default(), Problems::new());
    let document = Document::parse(text, path)
        .ok()
        .filter(|document| !document.has_anchors())?;
    let system = reader.read(document.root(), &mut problems);
    let is_alone = reader.tops.keys().all(|key| key == kind.name());
    if problems.has_errors() || !is_alone {
        return None;
    }
    let mut entries = of_system(&system);
    if kind != EntryKind::Config {
        entries.remove(&(EntryKind::Config, "config".to_owned()));
    }
    for entry in reader.accounts {
        entries.insert((EntryKind::Accounts, EntryKind::Accounts.key(entry.name())), entry);
    }
    Some(entries)
}

/// The text must say what was wanted, and nothing that was good may have become bad. Returns what it says.
fn prove(text: &str, wanted: &Whole, before: &FileReading, path: &Path) -> Result<FileReading, EditError> {
    let after = FileReading::of(text, path, true)?;
    if let Some(error) = after.errors.difference(&before.errors).next() {
        return Err(EditError::Value(error.clone()));
    }
    match after.entries == *wanted && after.strangers == before.strangers {
        true => Ok(after),
        false => Err(touches_more(path)),
    }
}

fn touches_more(path: &Path) -> EditError {
    EditError::Failed(format!(
        "{}: the change would touch more than it should (an alias, a merge?); change it by hand",
        path.display()
    ))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::edit::Act;

    const KINDS: &str = "config:
  zimbraDefaultDomainName: a.test # c0
servers:
  s.test: {zimbraId: s}

# c1
domains:
    # c2
    a.test:
        zimbraId: 1   # c3
        list:
        - x
        - y
    # c4
    b.test: {zimbraId: 2}   # c5
    # c6
cos:
  default:
accounts:
  x@a.test: {zimbraMailHost: s.test}
  # c7

  y@a.test:
    zimbraMailAlias: [z@a.test]
    text: |
      # no comment

        accounts:
    zimbraId: 7
";

    fn replace(attribute: &str, values: &[&str]) -> Change {
        Change {
            attribute: attribute.to_owned(),
            act: Act::Replace(values.iter().map(|value| (*value).to_owned()).collect()),
        }
    }

    fn sheet(text: &str) -> Sheet {
        Sheet::read(text.to_owned(), Path::new("d.yaml"), true).unwrap_or_else(|error| panic!("{error}: {text}"))
    }

    /// In the lines of an entry or in the whole: both return the same text, or the same refusal.
    #[test]
    fn the_lines_of_an_entry_give_the_same_as_the_whole() {
        let texts = [
            KINDS.to_owned(),
            KINDS.trim_end().to_owned(),
            KINDS.replace('\n', "\r\n"),
            KINDS.replace(
                "  x@a.test: {zimbraMailHost: s.test}",
                "  x@a.test: {zimbraMailHost: s.test}\n  v@a.test: &v {}\n  w@a.test: *v",
            ),
            KINDS.replace("\naccounts:\n", "\naccounts: # all\n  <<: {v@a.test: {}}\n"),
            KINDS.replace(
                "servers:\n  s.test: {zimbraId: s}",
                "servers: {s.test: {zimbraId: s}, t.test: {}}",
            ),
            format!("--- # begin\n{KINDS}...\n# end\n"),
            KINDS.replace("# c6", "# ü\n").replace("# c1", "notes: [1]\n"),
        ];
        let many = [
            replace("zimbraMailHost", &[]),
            replace("new", &["a\nb\n"]),
            replace("list", &["y", "z: 1"]),
        ];
        let taken = [replace("zimbraMailAlias", &["Z@a.test"])];
        let taken_too = [replace("zimbraMailAlias", &["x@a.test", "n@a.test"])];
        let id = [replace("zimbraId", &["1"])];
        let bad = [replace("zimbraReverseProxyMailMode", &["mixed"])];
        let edits = [
            Edit::Modify(EntryKind::Accounts, "X@a.test", &many),
            Edit::Modify(EntryKind::Accounts, "y@a.test", &many),
            Edit::Modify(EntryKind::Accounts, "x@a.test", &taken),
            Edit::Modify(EntryKind::Accounts, "y@a.test", &taken_too),
            Edit::Modify(EntryKind::Domains, "a.test", &many),
            Edit::Modify(EntryKind::Domains, "b.test", &many),
            Edit::Modify(EntryKind::Domains, "b.test", &id),
            Edit::Modify(EntryKind::Servers, "s.test", &bad),
            Edit::Modify(EntryKind::Servers, "s.test", &many),
            Edit::Modify(EntryKind::Config, "config", &many),
            Edit::Modify(EntryKind::Cos, "default", &id),
            Edit::Create(EntryKind::Accounts, "n@a.test", &many),
            Edit::Create(EntryKind::Accounts, "z@a.test", &many),
            Edit::Create(EntryKind::Domains, "n.test", &id),
            Edit::Create(EntryKind::Servers, "n.test", &many),
            Edit::Create(EntryKind::Cos, "n", &many),
            Edit::Delete(EntryKind::Accounts, "x@a.test"),
            Edit::Delete(EntryKind::Accounts, "y@a.test"),
            Edit::Delete(EntryKind::Domains, "a.test"),
            Edit::Delete(EntryKind::Domains, "b.test"),
            Edit::Delete(EntryKind::Servers, "s.test"),
            Edit::Delete(EntryKind::Cos, "default"),
        ];
        for text in &texts {
            for edit in edits {
                let whole = |mut sheet: Sheet| sheet.in_the_whole(edit).and_then(|_| sheet.proved());
                let lines = |mut sheet: Sheet| sheet.apply(edit).and_then(|_| sheet.proved());
                assert_eq!(lines(sheet(text)), whole(sheet(text)), "{edit:?} of {text}");
            }
            // One after the other, proved at the end.
            let (mut once, mut each) = (sheet(text), text.clone());
            for edit in edits {
                let done = once.apply(edit).map(drop);
                let mut alone = sheet(&each);
                assert_eq!(alone.in_the_whole(edit).map(drop), done, "{edit:?} of {each}");
                each = alone.proved().unwrap();
                assert!(once.says(&each), "{edit:?}");
            }
            assert_eq!(once.proved().unwrap(), each);
        }
    }

    #[test]
    fn most_changes_need_the_lines_of_their_entry_only() {
        let mut sheet = sheet(KINDS);
        let host = [replace("zimbraMailHost", &["s.test"])];
        for edit in [
            Edit::Create(EntryKind::Accounts, "n@a.test", &host),
            Edit::Modify(EntryKind::Accounts, "y@a.test", &host),
            Edit::Delete(EntryKind::Accounts, "x@a.test"),
            Edit::Modify(EntryKind::Config, "config", &host),
            Edit::Delete(EntryKind::Domains, "a.test"),
        ] {
            assert_eq!(sheet.apply(edit), Ok(true));
        }
        assert!(!sheet.is_proved() && sheet.pieces.len() == 4 && sheet.base == KINDS);
        assert!(sheet.proved().is_ok() && sheet.is_proved());
    }

    /// Accounts that were not read are neither kept nor lost.
    #[test]
    fn accounts_are_passed_over_where_they_do_not_count() {
        let mut sheet = Sheet::read(KINDS.to_owned(), Path::new("d.yaml"), false).unwrap();
        let id = [replace("description", &["9"])];
        assert_eq!(sheet.apply(Edit::Modify(EntryKind::Domains, "a.test", &id)), Ok(true));
        assert_eq!(sheet.reading.of_kind(EntryKind::Accounts).count(), 0);
        let text = sheet.proved().unwrap();
        assert!(text.ends_with(&KINDS[KINDS.find("accounts:\n  x").unwrap()..]));
        sheet.with_accounts().unwrap();
        assert_eq!(sheet.reading.of_kind(EntryKind::Accounts).count(), 2);
        let shared = KINDS
            .replace("b.test: {zimbraId: 2}", "b.test: &b {text: 2}")
            .replace("x@a.test: {zimbraMailHost: s.test}", "x@a.test: *b");
        let mut sheet = Sheet::read(shared, Path::new("d.yaml"), false).unwrap();
        let error = sheet
            .apply(Edit::Modify(EntryKind::Domains, "b.test", &id))
            .unwrap_err();
        assert!(error.to_string().contains("touch more than it should"), "{error}");
    }

    /// A piece that says something else than was meant is refused.
    #[test]
    fn what_the_whole_says_otherwise_is_not_proved() {
        let domains = KINDS.find("    b.test").unwrap();
        let accounts = KINDS.find("  y@a.test").unwrap();
        for (start, end, new) in [
            (domains, domains + 4, "    # "),
            (domains, domains, "    n.test: {}\n"),
            (accounts, KINDS.len(), ""),
            (accounts, accounts, "  n@a.test: {}\n"),
            (accounts, accounts, "  X@a.test: {zimbraMailHost: s.test}\n"),
            (KINDS.len() - 2, KINDS.len() - 1, "8"),
            (KINDS.len(), KINDS.len(), "notes: 1\n"),
        ] {
            for with_accounts in [true, false] {
                let mut sheet = Sheet::read(KINDS.to_owned(), Path::new("d.yaml"), with_accounts).unwrap();
                sheet.pieces.insert(start, (end, new.to_owned()));
                sheet.is_proved = false;
                let passed_over = !with_accounts && end - start == 1;
                assert_eq!(sheet.proved().is_ok(), passed_over, "{new:?}");
            }
        }
    }

    /// Keys without a meaning here must not be lost; a place that could not be found does not count as correct; and a
    /// line that moved is no new error.
    #[test]
    fn the_whole_is_proved_in_every_respect() {
        let text = "cos: {c: {}}\nnotes: [{a: 1}]\ndomains:\n  a.test: {}\nnotes: 2\n";
        let path = Path::new("d.yaml");
        let before = FileReading::of(text, path, true).unwrap();
        let mut wanted = before.entries.clone();
        assert!(prove(text, &wanted, &before, path).is_ok());
        wanted.remove(&(EntryKind::Cos, "c".to_owned()));
        let new = text.replace("c: {}", "");
        assert!(prove(&new, &wanted, &before, path).is_ok());
        for wrong in [
            text.to_owned(),
            new.replace("notes: [{a: 1}]\n", ""),
            new.replace("a: 1", "a: 2"),
        ] {
            let error = prove(&wrong, &wanted, &before, path).unwrap_err();
            assert!(error.to_string().contains("touch more than it should"), "{error}");
        }
        let lines = [replace("description", &["a\nb\n"])];
        let mut sheet = sheet(text);
        assert_eq!(
            sheet.apply(Edit::Modify(EntryKind::Domains, "a.test", &lines)),
            Ok(true)
        );
    }
}
