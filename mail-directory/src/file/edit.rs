//! Changes the file of a YAML directory: one writer at a time, the whole file at once, every other byte as it was.
//!
//! What was written is read again before it takes the place of the file: only if it says exactly what was wanted,
//! and has no error that the file did not have before, is it taken.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File, OpenOptions, TryLockError};
use std::io::{self, Read, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt, PermissionsExt, fchown};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use async_trait::async_trait;
use parking_lot::Mutex;

use super::rewrite::{self, Place};
use super::{ACCOUNTS, Accounts, Look, Reader, account_name, look};
use crate::attributes;
use crate::edit::{Change, EditError, Editor, Room, changed};
use crate::entry::Entry;
use crate::names::{self, fold};
use crate::secret_file::{self, OTHERS, PRIVATE_KEY};
use crate::yaml::{Document, MAX_TEXT, Severity};

/// How long another writer is waited for. It needs the time to read the file twice.
const LOCK_WAIT: Duration = Duration::from_secs(30);
/// How often it is looked whether it is done.
const LOCK_LOOK: Duration = Duration::from_millis(20);

/// The file of a YAML directory, open for changes.
#[derive(Debug, Clone)]
pub struct YamlEditor {
    path: PathBuf,
    /// What was read last, and how the file looked before that. Only for questions: a change reads anew.
    seen: Arc<Mutex<Seen>>,
}

/// A reading, and how the file looked before it.
type Seen = Option<(Look, Arc<Reading>)>;

impl YamlEditor {
    /// Will change this file. Nothing is read yet.
    pub fn new(path: &Path) -> YamlEditor {
        YamlEditor {
            path: path.to_owned(),
            seen: Arc::default(),
        }
    }

    /// What the file says now. A command asks many questions, and a big file takes its time.
    fn reading(&self) -> Result<Arc<Reading>, EditError> {
        let mut seen = self.seen.lock();
        let before = look(&self.path);
        if let Some((then, reading)) = &*seen
            && *then == before
            && before.is_some()
        {
            return Ok(reading.clone());
        }
        let reading = Arc::new(Reading::of(&read(&self.path)?, &self.path)?);
        *seen = Some((before, reading.clone()));
        Ok(reading)
    }
}

#[async_trait]
impl Editor for YamlEditor {
    async fn entries(&mut self, room: Room) -> Result<Vec<Entry>, EditError> {
        let editor = self.clone();
        off_the_runtime(move || {
            let reading = editor.reading()?;
            Ok(reading.copies(room))
        })
        .await
    }

    async fn find(&mut self, room: Room, key: &str) -> Result<Option<Entry>, EditError> {
        let (editor, key) = (self.clone(), key.to_owned());
        off_the_runtime(move || Ok(editor.reading()?.find(room, &key).map(|entry| (**entry).clone()))).await
    }

    async fn modify(&mut self, room: Room, name: &str, changes: &[Change]) -> Result<(), EditError> {
        let (path, name, changes) = (self.path.clone(), name.to_owned(), changes.to_vec());
        off_the_runtime(move || edit(&path, |text, reading| modify(text, reading, room, &name, &changes))).await
    }

    async fn create(&mut self, room: Room, name: &str, attributes: &[Change]) -> Result<(), EditError> {
        let (path, name, attributes) = (self.path.clone(), name.to_owned(), attributes.to_vec());
        off_the_runtime(move || edit(&path, |text, reading| create(text, reading, room, &name, &attributes))).await
    }

    async fn delete(&mut self, room: Room, name: &str) -> Result<(), EditError> {
        let (path, name) = (self.path.clone(), name.to_owned());
        off_the_runtime(move || edit(&path, |text, reading| delete(text, reading, room, &name))).await
    }

    /// The mailbox servers alone know them.
    fn keeps_passwords(&self) -> bool {
        false
    }

    fn open_file(&self) -> Option<&Path> {
        secret_file::is_open(&self.path).then_some(&self.path)
    }
}

/// Files block, and so does waiting for another writer.
async fn off_the_runtime<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, EditError> + Send + 'static,
) -> Result<T, EditError> {
    let task = tokio::task::spawn_blocking(work).await;
    task.unwrap_or_else(|error| Err(EditError::Failed(error.to_string())))
}

/// What a file says, and what is wrong with it.
#[derive(Debug, Clone)]
struct Reading {
    entries: Whole,
    /// What stands beside the rooms, which means nothing here. It is not ours to lose.
    strangers: BTreeMap<String, serde_yaml::Value>,
    errors: BTreeSet<String>,
}

/// All entries by kind and folded name.
type Whole = BTreeMap<(Room, String), Arc<Entry>>;

impl Reading {
    /// Fails only where there is no tree.
    fn of(text: &str, path: &Path) -> Result<Reading, EditError> {
        let read = Reader::whole(|each| Document::parse_each(text, path, ACCOUNTS, each));
        let (reader, system, mut problems) = read.map_err(|problems| EditError::Failed(problems.to_string()))?;
        problems.extend(system.check());
        let mut entries = Whole::new();
        let mut put =
            |room: Room, entry: &Arc<Entry>| drop(entries.insert((room, room.key(entry.name())), entry.clone()));
        let mut put_all =
            |room, all: &mut dyn Iterator<Item = &Entry>| all.for_each(|entry| put(room, &Arc::new(entry.clone())));
        put_all(Room::Config, &mut std::iter::once(&system.config));
        put_all(Room::Servers, &mut system.servers.values());
        put_all(Room::Domains, &mut system.domains.values());
        put_all(Room::Cos, &mut system.cos.values());
        reader.accounts.iter().for_each(|entry| put(Room::Accounts, entry));
        Accounts::index(&system, &reader.accounts, &mut problems);
        let errors = problems.iter().filter(|problem| problem.severity == Severity::Error);
        Ok(Reading {
            entries,
            strangers: reader.strangers,
            // Lines move; what is wrong does not.
            errors: errors
                .map(|problem| {
                    let what = problem.message.split("; the first is in line").next();
                    format!("{}: {}", problem.key, what.unwrap_or_default())
                })
                .collect(),
        })
    }

    /// All entries of a kind, by name.
    fn of_room(&self, room: Room) -> impl Iterator<Item = &Arc<Entry>> {
        let first = self.entries.range((room, String::new())..);
        first
            .take_while(move |((of, _), _)| *of == room)
            .map(|(_, entry)| entry)
    }

    fn copies(&self, room: Room) -> Vec<Entry> {
        self.of_room(room).map(|entry| (**entry).clone()).collect()
    }

    fn find(&self, room: Room, key: &str) -> Option<&Arc<Entry>> {
        let (name, key) = (room.key(key), fold(key));
        if room == Room::Config {
            return self.entries.get(&(room, "config".to_owned()));
        }
        let by_name = self.entries.get(&(room, name.clone()));
        let of_room = || self.of_room(room);
        let has_id = |entry: &&Arc<Entry>| entry.values(attributes::ID.name).iter().any(|id| fold(id) == key);
        let aliases = |entry: &&Arc<Entry>| {
            let aliases = entry.values(attributes::MAIL_ALIAS.name).iter();
            aliases.map(|alias| names::account(alias)).any(|alias| alias == name)
        };
        by_name
            .or_else(|| of_room().find(has_id))
            .or_else(|| of_room().find(|entry| room == Room::Accounts && account_name(entry) == name))
            .or_else(|| of_room().find(|entry| room == Room::Accounts && aliases(entry)))
    }

    fn named(&self, room: Room, name: &str) -> Result<&Arc<Entry>, EditError> {
        let entry = self.entries.get(&(room, room.key(name)));
        entry.ok_or_else(|| EditError::NoSuch(room, name.to_owned()))
    }
}

/// The entries of a kind that a text of the file `path` names, by folded name.
///
/// # Errors
/// It is no YAML.
pub fn entries(text: &str, path: &Path, room: Room) -> Result<Vec<Entry>, EditError> {
    Reading::of(text, path).map(|reading| reading.copies(room))
}

/// The text of the file `path` after a change of an entry, proved as a file is before it is written.
///
/// # Errors
/// It cannot be done in this text.
pub fn modified(text: &str, path: &Path, room: Room, name: &str, changes: &[Change]) -> Result<String, EditError> {
    rewritten(text, path, |text, reading| modify(text, reading, room, name, changes))
}

/// The same with one entry more.
///
/// # Errors
/// It cannot be done in this text.
pub fn created(text: &str, path: &Path, room: Room, name: &str, attributes: &[Change]) -> Result<String, EditError> {
    rewritten(text, path, |text, reading| {
        create(text, reading, room, name, attributes)
    })
}

/// The same with one entry less.
///
/// # Errors
/// It cannot be done in this text.
pub fn deleted(text: &str, path: &Path, room: Room, name: &str) -> Result<String, EditError> {
    rewritten(text, path, |text, reading| delete(text, reading, room, name))
}

/// The new text, and what it must say.
type Edited = Result<(String, Whole), EditError>;

fn modify(text: &str, reading: &Reading, room: Room, name: &str, changes: &[Change]) -> Edited {
    let before = reading.named(room, name)?;
    let after = changed(before, changes);
    let place = place(room, name);
    let mut text = text.to_owned();
    let names: BTreeSet<&str> = before.iter().chain(after.iter()).map(|(name, _)| name).collect();
    for attribute in names {
        let (old, new) = (before.values(attribute), after.values(attribute));
        if old != new {
            let set = rewrite::set(&text, place, (attribute, new), old);
            text = set.map_err(|why| refused(&format!("{attribute} of {name}"), &why))?;
        }
    }
    let mut wanted = reading.entries.clone();
    wanted.insert((room, room.key(name)), Arc::new(after));
    Ok((text, wanted))
}

fn create(text: &str, reading: &Reading, room: Room, name: &str, attributes: &[Change]) -> Edited {
    let key = (room, room.key(name));
    if room == Room::Config || reading.entries.contains_key(&key) {
        return Err(EditError::Exists(room, name.to_owned()));
    }
    let entry = changed(&Entry::new(name), attributes);
    let attributes: Vec<rewrite::Attribute<'_>> = entry.iter().collect();
    let text = rewrite::create(text, place(room, name), &attributes).map_err(|why| refused(name, &why))?;
    let mut wanted = reading.entries.clone();
    wanted.insert(key, Arc::new(entry));
    Ok((text, wanted))
}

fn delete(text: &str, reading: &Reading, room: Room, name: &str) -> Edited {
    reading.named(room, name)?;
    let text = rewrite::delete(text, place(room, name)).map_err(|why| refused(name, &why))?;
    let mut wanted = reading.entries.clone();
    wanted.remove(&(room, room.key(name)));
    Ok((text, wanted))
}

fn place(room: Room, name: &str) -> Place<'_> {
    Place {
        room: room.name(),
        name: Some(name).filter(|_| room != Room::Config),
    }
}

fn refused(what: &str, why: &str) -> EditError {
    EditError::Failed(format!(
        "{what} cannot be changed where it is written: {why}; change the file by hand"
    ))
}

fn failed(path: &Path, error: impl std::fmt::Display) -> EditError {
    EditError::Failed(format!("{}: {error}", path.display()))
}

/// Reads, changes, proves and writes, while nobody else does.
fn edit(path: &Path, act: impl FnOnce(&str, &Reading) -> Edited) -> Result<(), EditError> {
    // A link stays a link.
    let path = &fs::canonicalize(path).map_err(|error| failed(path, error))?;
    let locked = lock(path)?;
    let seen = look(path);
    let text = read(path)?;
    let new = rewritten(&text, path, act)?;
    if new == text {
        return Ok(());
    }
    if look(path) != seen {
        return Err(failed(path, "somebody else changed it at the same time; try again"));
    }
    write(path, &locked, &new).map_err(|error| failed(path, error))
}

/// The text after a change, proved unless nothing was to be done.
fn rewritten(text: &str, path: &Path, act: impl FnOnce(&str, &Reading) -> Edited) -> Result<String, EditError> {
    let reading = Reading::of(text, path)?;
    let (new, wanted) = act(text, &reading)?;
    if new != text || wanted != reading.entries {
        prove(&new, &wanted, &reading, path)?;
    }
    Ok(new)
}

/// The text must say what was wanted, and nothing that was good may have become bad.
fn prove(text: &str, wanted: &Whole, before: &Reading, path: &Path) -> Result<(), EditError> {
    let after = Reading::of(text, path)?;
    if let Some(error) = after.errors.difference(&before.errors).next() {
        return Err(EditError::Value(error.clone()));
    }
    match after.entries == *wanted && after.strangers == before.strangers {
        true => Ok(()),
        false => Err(failed(
            path,
            "the change would touch more than it should (an alias, a merge?); change it by hand",
        )),
    }
}

fn read(path: &Path) -> Result<String, EditError> {
    let mut text = String::new();
    let file = File::open(path).map_err(|error| failed(path, error))?;
    let limit = MAX_TEXT as u64 + 1;
    file.take(limit)
        .read_to_string(&mut text)
        .map_err(|error| failed(path, error))?;
    Ok(text)
}

/// The lock is on the file itself. Whoever had it before may have put another one in its place.
fn lock(path: &Path) -> Result<File, EditError> {
    let end = Instant::now() + LOCK_WAIT;
    loop {
        let file = File::open(path).map_err(|error| failed(path, error))?;
        match file.try_lock() {
            Ok(()) if is_in_place(&file, path) => return Ok(file),
            Ok(()) => continue,
            Err(TryLockError::Error(error)) => return Err(failed(path, error)),
            Err(TryLockError::WouldBlock) if Instant::now() > end => {
                return Err(failed(path, "somebody else is changing it and does not come to an end"));
            }
            Err(TryLockError::WouldBlock) => thread::sleep(LOCK_LOOK),
        }
    }
}

fn is_in_place(file: &File, path: &Path) -> bool {
    let number = |file: fs::Metadata| (file.dev(), file.ino());
    let there = fs::metadata(path).map(number);
    there.is_ok_and(|there| file.metadata().map(number).is_ok_and(|open| open == there))
}

/// Puts the text in the place of the file, with its owner and mode, in one step that survives a crash.
fn write(path: &Path, old: &File, text: &str) -> io::Result<()> {
    let mut draft = path.as_os_str().to_owned();
    draft.push(".new");
    let draft = Path::new(&draft);
    let written = write_like(draft, old, text.as_bytes()).and_then(|()| fs::rename(draft, path));
    if written.is_err() {
        let _ = fs::remove_file(draft);
        return written;
    }
    let folder = path.parent().unwrap_or(Path::new("/"));
    File::open(folder)?.sync_all()
}

/// The mode of the old file; but no private key lands where everybody may read it.
fn mode_for(bytes: &[u8], old: u32) -> u32 {
    let key = PRIVATE_KEY.as_bytes();
    match bytes.windows(key.len()).any(|part| part == key) {
        true => old & !OTHERS,
        false => old,
    }
}

/// What is in it may be private: nobody else reads it before it is as the old one is.
fn write_like(path: &Path, old: &File, bytes: &[u8]) -> io::Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(path)?;
    file.write_all(bytes)?;
    let (like, mine) = (old.metadata()?, file.metadata()?);
    if (like.uid(), like.gid()) != (mine.uid(), mine.gid()) {
        fchown(&file, Some(like.uid()), Some(like.gid())).map_err(|error| {
            io::Error::other(format!(
                "its owner cannot be kept ({error}); run this as the owner of the file"
            ))
        })?;
    }
    file.set_permissions(fs::Permissions::from_mode(mode_for(bytes, like.mode() & 0o7777)))?;
    file.sync_all()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::edit::Act;

    const TEXT: &str = "# The mail system
config:
  zimbraReverseProxyMailMode: redirect   # or https

servers:
  s1.test:
    zimbraServiceEnabled: [mailbox]      # holds mail
    zimbraId: server-1

domains:
  # the first
  a.test:
    zimbraVirtualHostname:
      - m.a.test    # one
      - n.a.test
    zimbraSSLPrivateKey: !file k.pem
cos: {default: {}}
accounts:
  alice@a.test: {zimbraMailAlias: [al@a.test], zimbraMailHost: s1.test, zimbraId: id-a}
# the end
";
    const KEY: &str = "-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n";

    struct Folder {
        dir: tempfile::TempDir,
        editor: YamlEditor,
    }

    impl Folder {
        fn new(text: &str) -> Folder {
            let dir = tempfile::tempdir().unwrap();
            let path = dir.path().join("d.yaml");
            fs::write(&path, text).unwrap();
            fs::write(dir.path().join("k.pem"), KEY).unwrap();
            Folder {
                editor: YamlEditor::new(&path),
                dir,
            }
        }

        fn text(&self) -> String {
            fs::read_to_string(&self.editor.path).unwrap()
        }
    }

    fn change(attribute: &str, act: Act) -> Change {
        Change {
            attribute: attribute.to_owned(),
            act,
        }
    }

    fn replace(attribute: &str, values: &[&str]) -> Change {
        change(
            attribute,
            Act::Replace(values.iter().map(|v| (*v).to_owned()).collect()),
        )
    }

    /// Lines that went (`-`) and came (`+`).
    fn difference(old: &str, new: &str) -> Vec<String> {
        let gone = old.lines().filter(|line| !new.lines().any(|other| other == *line));
        let come = new.lines().filter(|line| !old.lines().any(|other| other == *line));
        gone.map(|l| format!("-{l}"))
            .chain(come.map(|l| format!("+{l}")))
            .collect()
    }

    #[tokio::test]
    async fn no_private_key_lands_where_everybody_may_read_it() {
        let mut folder = Folder::new(TEXT);
        let mode = |folder: &Folder| fs::metadata(&folder.editor.path).unwrap().mode() & 0o777;
        fs::set_permissions(&folder.editor.path, fs::Permissions::from_mode(0o644)).unwrap();
        let mut change = async |name, value: &str| {
            let changes = [replace(name, &[value])];
            folder.editor.modify(Room::Domains, "a.test", &changes).await.unwrap();
            mode(&folder)
        };
        assert_eq!(change("zimbraVirtualHostname", "o.a.test").await, 0o644);
        let other = KEY.replace("AAAA", "BBBB");
        assert_eq!(change("zimbraSSLPrivateKey", other.as_str()).await, 0o640);
        assert!(folder.editor.open_file().is_none());
    }

    #[tokio::test]
    async fn a_change_touches_its_own_lines() {
        let table: [(Room, &str, Vec<Change>, &[&str]); 7] = [
            (
                Room::Config,
                "",
                vec![replace("zimbrareverseproxymailmode", &["https"])],
                &[
                    "-  zimbraReverseProxyMailMode: redirect   # or https",
                    "+  zimbraReverseProxyMailMode: https   # or https",
                ],
            ),
            (
                Room::Domains,
                "A.test",
                vec![
                    change("zimbraVirtualHostname", Act::Add("*.a.test".to_owned())),
                    change("zimbraVirtualHostname", Act::Remove("N.a.test".to_owned())),
                ],
                &["-      - n.a.test", "+      - \"*.a.test\""],
            ),
            (
                Room::Domains,
                "a.test",
                vec![replace("zimbraSSLPrivateKey", &[KEY])],
                &[],
            ),
            (
                Room::Servers,
                "s1.test",
                vec![replace("zimbraImapBindPort", &["143"])],
                &["+    zimbraImapBindPort: 143"],
            ),
            (
                Room::Accounts,
                "alice@a.test",
                vec![replace("zimbraMailHost", &[])],
                &[
                    "-  alice@a.test: {zimbraMailAlias: [al@a.test], zimbraMailHost: s1.test, zimbraId: id-a}",
                    "+  alice@a.test: {zimbraMailAlias: [al@a.test], zimbraId: id-a}",
                ],
            ),
            (
                Room::Cos,
                "default",
                vec![replace("description", &["a: b"])],
                &["-cos: {default: {}}", "+cos: {default: {description: \"a: b\"}}"],
            ),
            (
                Room::Domains,
                "a.test",
                vec![replace(
                    "zimbraSSLCertificate",
                    &["-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n"],
                )],
                &[
                    "+    zimbraSSLCertificate: |",
                    "+      -----BEGIN CERTIFICATE-----",
                    "+      AAAA",
                    "+      -----END CERTIFICATE-----",
                ],
            ),
        ];
        for (room, name, changes, expected) in table {
            let mut folder = Folder::new(TEXT);
            let name = if room == Room::Config { "config" } else { name };
            folder.editor.modify(room, name, &changes).await.unwrap();
            assert_eq!(difference(TEXT, &folder.text()), expected, "{name} {changes:?}");
        }
    }

    #[tokio::test]
    async fn entries_are_found_made_and_taken_away() {
        let mut folder = Folder::new(TEXT);
        for (room, key, name) in [
            (Room::Servers, "S1.TEST", Some("s1.test")),
            (Room::Servers, "SERVER-1", Some("s1.test")),
            (Room::Accounts, "al@a.test", Some("alice@a.test")),
            (Room::Accounts, "id-a", Some("alice@a.test")),
            (Room::Domains, "al@a.test", None),
            (Room::Config, "", Some("config")),
        ] {
            let found = folder.editor.find(room, key).await.unwrap();
            assert_eq!(found.as_ref().map(Entry::name), name, "{key}");
        }
        let id = [replace("zimbraId", &["id-b"])];
        folder.editor.create(Room::Accounts, "bob@a.test", &id).await.unwrap();
        let twice = folder
            .editor
            .create(Room::Accounts, "Bob@a.test", &id)
            .await
            .unwrap_err();
        assert_eq!(twice.to_string(), "account already exists: Bob@a.test");
        assert_eq!(
            difference(TEXT, &folder.text()),
            ["+  bob@a.test:", "+    zimbraId: id-b"]
        );
        folder.editor.delete(Room::Accounts, "BOB@a.test").await.unwrap();
        assert_eq!(folder.text(), TEXT);
        let gone = folder.editor.delete(Room::Accounts, "bob@a.test").await.unwrap_err();
        assert_eq!(gone, EditError::NoSuch(Room::Accounts, "bob@a.test".to_owned()));
        assert_eq!(folder.editor.entries(Room::Accounts).await.unwrap().len(), 1);
    }

    /// Every change in every form of writing: it is made, says what was wanted, and no comment is lost.
    #[tokio::test]
    async fn every_form_of_writing_can_be_changed() {
        let layouts = [
            "domains:\n  a.test:\n    zimbraId: 1 # c1\n    list: [x, y] # c2\n# c3\n",
            "domains:\n  a.test:\n    list:\n      # c1\n      - x # c2\n      - y\n    zimbraId: 1",
            "domains:\n  a.test:\n    list:\n    - 'x'\n    - \"y\" # c1\n\n\n    zimbraId: '1'\n\n# c2",
            "domains: {a.test: {list: [x, 'y'], zimbraId: 1}, b.test: {}} # c1\n",
            "{domains: {a.test: {zimbraId: 1, list: [\n  x, # c1\n  y,\n]}}}\n",
            "domains:\n    \"A.test\":   # c1\n          zimbraId:   \"1\"\n          LIST: [ x ,y ]\n    ü.test: {zimbraId: ü}\n",
            "---\n# c1\ndomains: # c2\n  a.test: {list: [x, y], zimbraId: '1'} # c3\n...\n",
            "cos:\n  g: &g {extra: q}\ndomains:\n  b.test: {<<: *g} # c1\n  a.test:\n    <<: *g\n    list: [x, y]\n    zimbraId: 1\n",
            "domains:\r\n  a.test:\r\n    list: [x, y] # c1\r\n    zimbraId: 1\r\n",
            "domains:\n  a.test:\n    zimbraId: |-\n      1\n    # c1\n    list: [!file k.pem, x, y] # c2\n",
        ];
        let multi = "line: 1\n  line #2\n\nline 3\n";
        let changes = [
            vec![replace("zimbraId", &["2"])],
            vec![replace("zimbraid", &[])],
            vec![replace("list", &["z"])],
            vec![replace("list", &["z", "x", "!", "- a: b # c", ""])],
            vec![change("list", Act::Add("*.z".to_owned()))],
            vec![change("list", Act::Remove("X".to_owned()))],
            vec![
                change("list", Act::Remove("y".to_owned())),
                change("List", Act::Add("z".to_owned())),
            ],
            vec![
                change("list", Act::Remove("x".to_owned())),
                change("list", Act::Remove("y".to_owned())),
            ],
            vec![replace("new", &[multi]), replace("newer", &["1", "2"])],
            vec![replace("zimbraId", &[multi]), replace("other", &["null"])],
            vec![
                replace("new", &["ends in blank \n"]),
                replace("a", &["\n\n"]),
                replace("b", &["\ttab\u{1}"]),
            ],
        ];
        for text in layouts {
            for changes in &changes {
                let mut folder = Folder::new(text);
                let before = folder.editor.find(Room::Domains, "a.test").await.unwrap().unwrap();
                let done = folder.editor.modify(Room::Domains, "a.test", changes).await;
                done.unwrap_or_else(|error| panic!("{error}: {changes:?} of {text}"));
                let after = folder.editor.find(Room::Domains, "a.test").await.unwrap().unwrap();
                assert_eq!(after, changed(&before, changes), "{changes:?} of {text}");
                // What stands beside a line that goes, or in a list that is written anew, goes with it.
                let takes_away = |change: &Change| match &change.act {
                    Act::Replace(values) => values.is_empty() || change.attribute == "list",
                    Act::Remove(_) => true,
                    Act::Add(_) => false,
                };
                let comments = (1..=3).map(|n| format!("# c{n}")).filter(|c| text.contains(c));
                let lost: Vec<String> = comments.filter(|c| !folder.text().contains(c)).collect();
                assert!(
                    lost.is_empty() || changes.iter().any(takes_away),
                    "{lost:?}: {changes:?} of {text}"
                );
            }
            let mut folder = Folder::new(text);
            let id = [replace("zimbraId", &["new"]), replace("text", &[multi])];
            folder.editor.create(Room::Domains, "new.test", &id).await.unwrap();
            folder.editor.create(Room::Servers, "s.test", &[]).await.unwrap();
            folder.editor.delete(Room::Domains, "a.test").await.unwrap();
            folder.editor.delete(Room::Domains, "new.test").await.unwrap();
            assert!(folder.editor.find(Room::Domains, "a.test").await.unwrap().is_none());
        }
    }

    #[tokio::test]
    async fn what_would_break_the_file_changes_nothing() {
        let mut folder = Folder::new(TEXT);
        let bad = [replace("zimbraReverseProxyMailMode", &["mixed"])];
        let error = folder.editor.modify(Room::Config, "config", &bad).await.unwrap_err();
        assert!(
            matches!(&error, EditError::Value(text) if text.contains("expected one of")),
            "{error}"
        );
        let same_id = [replace("zimbraId", &["id-a"])];
        assert!(
            folder
                .editor
                .create(Room::Accounts, "bob@a.test", &same_id)
                .await
                .is_err()
        );
        assert_eq!(folder.text(), TEXT);
        // What was wrong before may be mended, and does not stand in the way.
        let text = "config:\n  zimbraReverseProxyMailMode: mixed\n  zimbraImapProxyBindPort: x\n";
        let mut folder = Folder::new(text);
        let good = [replace("zimbraReverseProxyMailMode", &["https"])];
        folder.editor.modify(Room::Config, "config", &good).await.unwrap();
        assert_eq!(folder.text(), text.replace("mixed", "https"));
        // A value that others share cannot be changed for one.
        let text = "domains:\n  a: &a\n    zimbraId: x\n  b:\n    <<: *a\n    zimbraId: y\n    description: z\n";
        let mut folder = Folder::new(text);
        let new = [replace("zimbraDomainType", &["local"])];
        assert!(folder.editor.modify(Room::Domains, "a", &new).await.is_err());
        assert_eq!(folder.text(), text);
        folder.editor.modify(Room::Domains, "b", &new).await.unwrap();
        assert_eq!(difference(text, &folder.text()), ["+    zimbraDomainType: local"]);
    }

    /// A place that could not be found in the text was taken for one that is as it should be.
    #[test]
    fn a_change_that_changes_nothing_is_not_done() {
        let path = Path::new("d.yaml");
        let act = |text: &str, reading: &Reading| {
            let (_, wanted) = delete(text, reading, Room::Domains, "a.test")?;
            Ok((text.to_owned(), wanted))
        };
        let error = rewritten(TEXT, path, act).unwrap_err();
        assert!(error.to_string().contains("change it by hand"), "{error}");
        let same = [replace("zimbraId", &["id-a"])];
        let done = modified(TEXT, path, Room::Accounts, "alice@a.test", &same);
        assert_eq!(done.as_deref(), Ok(TEXT));
    }

    /// What means nothing is not ours to lose; and a line that moved is no new error.
    #[test]
    fn keys_beside_the_rooms_are_not_lost() {
        let text = "cos: {c: {}}\nnotes: [{a: 1}]\ndomains:\n  a.test: {}\nnotes: 2\n";
        let path = Path::new("d.yaml");
        for new in [text.replace("notes: [{a: 1}]\n", ""), text.replace("a: 1", "a: 2")] {
            let act = |_: &str, reading: &Reading| {
                let mut wanted = reading.entries.clone();
                wanted.remove(&(Room::Cos, "c".to_owned()));
                Ok((new.replace("c: {}", ""), wanted))
            };
            let error = rewritten(text, path, act).unwrap_err();
            assert!(error.to_string().contains("touch more than it should"), "{error}");
        }
        let id = [replace("zimbraId", &["1"])];
        let done = created(text, path, Room::Servers, "s.test", &id).unwrap();
        assert!(done.starts_with(text));
        let done = modified(text, path, Room::Cos, "c", &[replace("description", &["a\nb\n"])]).unwrap();
        assert!(done.ends_with(&text[text.find('\n').unwrap()..]), "{done}");
    }

    #[tokio::test]
    async fn what_others_write_is_seen() {
        let mut folder = Folder::new(TEXT);
        assert!(folder.editor.find(Room::Servers, "s2.test").await.unwrap().is_none());
        fs::write(&folder.editor.path, TEXT.replace("s1.test:", "s2.test:")).unwrap();
        assert!(folder.editor.find(Room::Servers, "s2.test").await.unwrap().is_some());
        let mut other = YamlEditor::new(&folder.editor.path);
        other.create(Room::Servers, "s3.test", &[]).await.unwrap();
        assert_eq!(folder.editor.entries(Room::Servers).await.unwrap().len(), 2);
        fs::remove_file(&folder.editor.path).unwrap();
        assert!(folder.editor.entries(Room::Servers).await.is_err());
    }

    #[tokio::test]
    async fn owner_mode_and_links_are_kept() {
        let mut folder = Folder::new(TEXT);
        fs::set_permissions(&folder.editor.path, fs::Permissions::from_mode(0o640)).unwrap();
        let link = folder.dir.path().join("link.yaml");
        std::os::unix::fs::symlink("d.yaml", &link).unwrap();
        folder.editor.path = link.clone();
        let new = [replace("zimbraDefaultDomainName", &["a.test"])];
        folder.editor.modify(Room::Config, "config", &new).await.unwrap();
        assert!(fs::symlink_metadata(&link).unwrap().is_symlink());
        assert_eq!(fs::metadata(&link).unwrap().mode() & 0o777, 0o640);
        assert_eq!(fs::read_dir(folder.dir.path()).unwrap().count(), 3);
        assert!(folder.text().contains("zimbraDefaultDomainName: a.test"));
    }

    #[tokio::test]
    async fn many_writers_lose_nothing() {
        let folder = Folder::new(TEXT);
        let writers = (0..8).map(|n| {
            let mut editor = folder.editor.clone();
            tokio::spawn(async move {
                for round in 0..5 {
                    let name = format!("h{n}-{round}.a.test");
                    let add = [change("zimbraVirtualHostname", Act::Add(name))];
                    editor.modify(Room::Domains, "a.test", &add).await.unwrap();
                }
            })
        });
        for writer in writers.collect::<Vec<_>>() {
            writer.await.unwrap();
        }
        let mut editor = folder.editor.clone();
        let domain = editor.find(Room::Domains, "a.test").await.unwrap().unwrap();
        assert_eq!(domain.values("zimbraVirtualHostname").len(), 2 + 8 * 5);
    }
}
