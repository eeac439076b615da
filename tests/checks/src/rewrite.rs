//! The rewriting of a YAML directory: what it gives says what was wanted, can be changed again, and differs from what
//! was there only in the lines of the entry. The first four bytes choose the change, the rest is the file.

use std::path::Path;

use mail_directory::Entry;
use mail_directory::edit::{Act, Change, EditError, EntryKind, changed};
use mail_directory::file::{created, deleted, entries, modified};
use mail_directory::yaml::{Document, Problems};

use crate::yaml::{is_near, lines};

const KINDS: [EntryKind; 5] = [
    EntryKind::Config,
    EntryKind::Servers,
    EntryKind::Domains,
    EntryKind::Cos,
    EntryKind::Accounts,
];
const ATTRIBUTES: [&str; 4] = ["zimbraId", "ZIMBRAVIRTUALHOSTNAME", "a", "description"];
const VALUES: [&str; 8] = ["x", "y", "", "*.z", "a: b # c", "l1\nl2\n", "\u{e9}\t\"\\", "null"];

/// What is done to which entry.
struct Plan<'a> {
    kind: EntryKind,
    choice: u8,
    change: Change,
    text: &'a str,
}

impl<'a> Plan<'a> {
    fn parse(bytes: &'a [u8]) -> Option<Self> {
        let (&[entry, attribute, act, value], text) = bytes.split_first_chunk::<4>()?;
        let value = |offset: usize| VALUES[(usize::from(value) + offset) % VALUES.len()].to_owned();
        let act = match act % 5 {
            0 => Act::Add(value(0)),
            1 => Act::Remove(value(0)),
            count => Act::Replace((0..usize::from(count) - 2).map(value).collect()),
        };
        Some(Plan {
            kind: KINDS[usize::from(entry) % KINDS.len()],
            choice: entry / KINDS.len() as u8,
            change: Change {
                attribute: ATTRIBUTES[usize::from(attribute) % ATTRIBUTES.len()].to_owned(),
                act,
            },
            text: str::from_utf8(text).ok()?,
        })
    }
}

pub(crate) fn check(bytes: &[u8]) {
    let Some(plan) = Plan::parse(bytes) else { return };
    let (path, text) = (Path::new("d.yaml"), plan.text);
    // Files are read from where the text says: only from beside this one.
    if !Document::parse(text, path).is_ok_and(|document| is_near(document.root())) {
        return;
    }
    let Ok(before) = entries(text, path, plan.kind) else {
        return;
    };
    let changes = [plan.change.clone()];
    if let Some(entry) = before.get(usize::from(plan.choice) % before.len().max(1)) {
        check_modified(text, path, plan.kind, entry, &changes);
        check_deleted(text, path, plan.kind, entry);
    }
    check_created(text, path, plan.kind, &changes);
}

fn check_modified(text: &str, path: &Path, kind: EntryKind, entry: &Entry, changes: &[Change]) {
    let Ok(new) = modified(text, path, kind, entry.name(), changes) else {
        return;
    };
    let wanted = changed(entry, changes);
    assert_eq!(find(&new, path, kind, entry.name()), Some(wanted));
    check_place(text, &new, span(text, path, kind, Some(entry.name())));
    // Once done, there is nothing to do.
    assert_eq!(modified(&new, path, kind, entry.name(), changes).as_ref(), Ok(&new));
}

fn check_deleted(text: &str, path: &Path, kind: EntryKind, entry: &Entry) {
    let Ok(new) = deleted(text, path, kind, entry.name()) else {
        return;
    };
    assert_eq!(find(&new, path, kind, entry.name()), None);
    check_place(text, &new, span(text, path, kind, Some(entry.name())));
    // Only taken away, in one place.
    let (start, end) = difference(text, &new);
    assert_eq!(new, [&text[..start], &text[end..]].concat());
}

fn check_created(text: &str, path: &Path, kind: EntryKind, changes: &[Change]) {
    const NAME: &str = "new.test";
    let Ok(new) = created(text, path, kind, NAME, changes) else {
        return;
    };
    assert_eq!(find(&new, path, kind, NAME), Some(changed(&Entry::new(NAME), changes)));
    check_place(text, &new, span(text, path, kind, None));
    let exists = created(&new, path, kind, NAME, changes);
    assert_eq!(exists, Err(EditError::Exists(kind, NAME.to_owned())));
    let gone = deleted(&new, path, kind, NAME).expect("what we wrote can be taken away");
    assert_eq!(find(&gone, path, kind, NAME), None);
}

fn find(text: &str, path: &Path, kind: EntryKind, name: &str) -> Option<Entry> {
    let entries = entries(text, path, kind).unwrap_or_else(|error| panic!("{error}: {text}"));
    entries.into_iter().find(|entry| entry.name() == name)
}

/// The first byte that is different, and the end of what is different in `old`.
fn difference(old: &str, new: &str) -> (usize, usize) {
    let same = |(a, b): &(u8, u8)| a == b;
    let start = old.bytes().zip(new.bytes()).take_while(same).count();
    let most = old.len().min(new.len()) - start;
    let behind = old
        .bytes()
        .rev()
        .zip(new.bytes().rev())
        .take(most)
        .take_while(same)
        .count();
    (start, old.len() - behind)
}

/// Nothing changes in front of the first line, nor from the last one on. What stands in an alias or a merge has its
/// line elsewhere.
fn check_place(old: &str, new: &str, (first, last): (usize, usize)) {
    if old.contains('*') {
        return;
    }
    let (was, is) = (lines(old), lines(new));
    let head = first.saturating_sub(1).min(was.len());
    assert_eq!(is.get(..head), Some(&was[..head]), "in front of line {first}");
    let tail = was.len().saturating_sub(last.saturating_sub(1));
    let is_tail = is.len().checked_sub(tail).map(|from| &is[from..]);
    assert_eq!(is_tail, Some(&was[was.len() - tail..]), "from line {last} on");
}

/// The line where an entry begins (or its kind, or the document), and that of what follows it; behind the end where
/// nothing does. Between brackets a comma goes too, which may stand in the lines of its neighbours.
fn span(text: &str, path: &Path, kind: EntryKind, name: Option<&str>) -> (usize, usize) {
    let document = Document::parse(text, path).expect("it was read before");
    let problems = &mut Problems::new();
    let mut siblings: Vec<_> = document
        .root()
        .mapping(problems)
        .into_iter()
        .flat_map(|root| root.entries())
        .collect();
    let mut around = (1, usize::MAX);
    for key in [kind.name()]
        .into_iter()
        .chain(name.filter(|_| kind != EntryKind::Config))
    {
        let Some(at) = siblings.iter().position(|(name, _)| *name == key) else {
            break;
        };
        let line = |at: usize| siblings.get(at).map(|(_, node)| node.line());
        let in_flow = text.contains('{');
        let first = if in_flow {
            at.checked_sub(1).and_then(line).unwrap_or(around.0)
        } else {
            siblings[at].1.line()
        };
        let last = line(at + 1).map(|next| next + usize::from(in_flow));
        around = (first, last.unwrap_or(around.1));
        siblings = siblings[at]
            .1
            .mapping(problems)
            .into_iter()
            .flat_map(|kind| kind.entries())
            .collect();
    }
    around
}
