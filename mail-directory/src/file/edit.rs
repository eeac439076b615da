//! Changes the file of a YAML directory: one writer at a time, the whole file at once. Every other byte stays.
//!
//! What was written is read again before it replaces the file. It is taken only if it says exactly what was wanted,
//! and has no error that the file did not have before. Many changes can wait for one commit; the file is locked from
//! the first of them on.

use std::fs::{self, File, OpenOptions, TryLockError};
use std::io::{self, Read, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt, PermissionsExt, fchown};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use async_trait::async_trait;
use parking_lot::Mutex;

use super::sheet::{Edit, FileReading, Sheet};
use super::{FileStamp, Point, stamp, stamp_of};
use crate::directory::off_the_runtime;
use crate::edit::{Act, Change, EditError, Editor, EntryKind, Swap};
use crate::entry::Entry;
use crate::secret_file::{self, OTHERS, PRIVATE_KEY};
use crate::yaml::MAX_TEXT;

/// How long to wait for another writer, which needs the time to read the file twice.
const LOCK_WAIT: Duration = Duration::from_secs(30);
/// How often to look whether it is done.
const LOCK_LOOK: Duration = Duration::from_millis(20);

/// The file of a YAML directory, open for changes.
#[derive(Debug, Clone)]
pub struct YamlEditor {
    path: PathBuf,
    state: Arc<Mutex<EditState>>,
}

/// What was read last, and what waits to be written.
#[derive(Debug, Default)]
struct EditState {
    /// How the file looked before it was read, and what it says with all changes.
    sheet: Option<(FileStamp, Sheet)>,
    /// The file that no other process may change while changes wait.
    locked: Option<Locked>,
    /// Changes wait for a commit.
    waits: bool,
    /// Nothing is written: changes are tried.
    rehearsal: Option<Rehearsed>,
}

/// What was tried and proved.
#[derive(Debug, Default)]
struct Rehearsed {
    /// The file with it; `None`: nothing yet.
    text: Option<String>,
}

#[derive(Debug)]
struct Locked {
    /// The path with all links resolved.
    path: PathBuf,
    file: File,
    stamp: FileStamp,
    is_changed: bool,
}

impl YamlEditor {
    /// An editor of this file. Nothing is read yet.
    pub fn new(path: &Path) -> Self {
        Self {
            path: path.to_owned(),
            state: Arc::default(),
        }
    }

    async fn ask<T: Send + 'static>(
        &self,
        with_accounts: bool,
        question: impl FnOnce(&FileReading) -> T + Send + 'static,
    ) -> Result<T, EditError> {
        let (path, state) = (self.path.clone(), self.state.clone());
        off_the_runtime(move || Ok(question(state.lock().reading(&path, with_accounts)?))).await?
    }

    async fn change(
        &self,
        kind: EntryKind,
        name: &str,
        changes: &[Change],
        edit: for<'a> fn(EntryKind, &'a str, &'a [Change]) -> Edit<'a>,
    ) -> Result<(), EditError> {
        let (path, state) = (self.path.clone(), self.state.clone());
        let (name, changes) = (name.to_owned(), changes.to_vec());
        off_the_runtime(move || state.lock().change(&path, edit(kind, &name, &changes))).await?
    }
}

#[async_trait]
impl Editor for YamlEditor {
    async fn entries(&mut self, kind: EntryKind) -> Result<Vec<Entry>, EditError> {
        self.ask(kind == EntryKind::Accounts, move |reading| {
            reading.of_kind(kind).map(|entry| (**entry).clone()).collect()
        })
        .await
    }

    async fn find(&mut self, kind: EntryKind, key: &str) -> Result<Option<Entry>, EditError> {
        let key = key.to_owned();
        self.ask(kind == EntryKind::Accounts, move |reading| {
            reading.find(kind, &key).map(|entry| (**entry).clone())
        })
        .await
    }

    async fn modify(&mut self, kind: EntryKind, name: &str, changes: &[Change]) -> Result<(), EditError> {
        self.change(kind, name, changes, |kind, name, changes| {
            Edit::Modify(kind, name, changes)
        })
        .await
    }

    async fn swap(&mut self, kind: EntryKind, name: &str, swaps: &[Swap]) -> Result<(), EditError> {
        let (path, state) = (self.path.clone(), self.state.clone());
        let (name, swaps) = (name.to_owned(), swaps.to_vec());
        off_the_runtime(move || state.lock().swap(&path, kind, &name, &swaps)).await?
    }

    async fn create(&mut self, kind: EntryKind, name: &str, attributes: &[Change]) -> Result<(), EditError> {
        self.change(kind, name, attributes, |kind, name, attributes| {
            Edit::Create(kind, name, attributes)
        })
        .await
    }

    async fn delete(&mut self, kind: EntryKind, name: &str) -> Result<(), EditError> {
        self.change(kind, name, &[], |kind, name, _| Edit::Delete(kind, name))
            .await
    }

    fn begin(&mut self) -> bool {
        self.state.lock().waits = true;
        true
    }

    async fn commit(&mut self) -> Result<(), EditError> {
        let state = self.state.clone();
        off_the_runtime(move || {
            let mut state = state.lock();
            state.waits = false;
            state.commit()
        })
        .await?
    }

    fn rehearse(&mut self) -> bool {
        self.state.lock().rehearsal = Some(Rehearsed::default());
        true
    }

    async fn point(&mut self) -> Option<String> {
        let path = self.path.clone();
        let point = off_the_runtime(move || Point::of(stamp(&path))).await.ok()??;
        Some(point.to_string())
    }

    /// Only the mailbox servers know them.
    fn keeps_passwords(&self) -> bool {
        false
    }

    fn open_file(&self) -> Option<&Path> {
        let is_open = secret_file::is_open(&self.path) && !self.state.lock().is_closed_by_commit();
        is_open.then_some(&self.path)
    }
}

impl EditState {
    /// What the file says now, with what waits to be written. A big file takes its time: it is read when it looks
    /// different, and its accounts when they are asked for.
    fn reading(&mut self, path: &Path, with_accounts: bool) -> Result<&FileReading, EditError> {
        self.sheet(path, with_accounts).map(|sheet| &sheet.reading)
    }

    fn sheet(&mut self, path: &Path, with_accounts: bool) -> Result<&mut Sheet, EditError> {
        let now = stamp(path);
        let stays = self.locked.is_some() || self.rehearsal.is_some();
        let known = self.sheet.take();
        let known = known.filter(|(then, _)| stays || (*then == now && now.is_some()));
        let (_, sheet) = match known {
            Some(known) => self.sheet.insert(known),
            None => {
                let tried = self.rehearsal.as_ref().and_then(|rehearsed| rehearsed.text.clone());
                let text = tried.map_or_else(|| read(path), Ok)?;
                self.sheet.insert((now, Sheet::read(text, path, with_accounts)?))
            }
        };
        if with_accounts {
            sheet.with_accounts()?;
        }
        Ok(sheet)
    }

    /// Changes wait for the commit, or are written at once.
    fn change(&mut self, path: &Path, edit: Edit<'_>) -> Result<(), EditError> {
        let done = self.change_now(path, edit);
        if done.is_err() && !self.waits {
            self.locked = None;
            self.back_to_proved();
        }
        done
    }

    fn change_now(&mut self, path: &Path, edit: Edit<'_>) -> Result<(), EditError> {
        let with_accounts = edit.kind() == EntryKind::Accounts;
        self.open(path, with_accounts)?;
        let done = self.apply(path, edit, Sheet::apply);
        if self.waits {
            return done;
        }
        let proved = done.and_then(|()| self.prove());
        // What the lines of an entry do not show is seen in the whole text.
        let done = proved.or_else(|error| match self.is_unproved() {
            true => {
                self.locked = None;
                self.sheet = None;
                self.open(path, true)?;
                self.apply(path, edit, Sheet::in_the_whole)
            }
            false => Err(error),
        });
        done.and_then(|()| self.commit())
    }

    /// What was tried and cannot be proved is forgotten.
    fn back_to_proved(&mut self) {
        if self.rehearsal.is_some() {
            self.sheet = None;
        }
    }

    /// Changes wait for the commit, or are written at once, if what is to be replaced still stands there.
    fn swap(&mut self, path: &Path, kind: EntryKind, name: &str, swaps: &[Swap]) -> Result<(), EditError> {
        self.open(path, kind == EntryKind::Accounts)?;
        let as_expected = self.is_so(path, kind, name, swaps);
        if as_expected.is_err() && !self.waits {
            self.locked = None;
        }
        as_expected?;
        let change = |swap: &Swap| Change {
            attribute: swap.attribute.clone(),
            act: Act::Replace(vec![swap.to.clone()]),
        };
        let changes: Vec<Change> = swaps.iter().map(change).collect();
        self.change(path, Edit::Modify(kind, name, &changes))
    }

    fn is_so(&mut self, path: &Path, kind: EntryKind, name: &str, swaps: &[Swap]) -> Result<(), EditError> {
        let reading = self.reading(path, kind == EntryKind::Accounts)?;
        let missing = || EditError::NoSuch(kind, name.to_owned());
        let entry = reading.find(kind, name).ok_or_else(missing)?;
        match swaps
            .iter()
            .find(|swap| entry.values(&swap.attribute) != [swap.from.as_str()])
        {
            None => Ok(()),
            Some(swap) => {
                let Swap { attribute, from, .. } = swap;
                Err(EditError::Changed(format!(
                    "{attribute} of {name} is not {from} any more"
                )))
            }
        }
    }

    /// Locks the file and reads what it says; a change does not trust in how the file looks.
    fn open(&mut self, path: &Path, with_accounts: bool) -> Result<(), EditError> {
        if self.locked.is_none() && self.rehearsal.is_none() {
            // A link stays a link.
            let path = fs::canonicalize(path).map_err(|error| failed(path, error))?;
            let file = lock(&path)?;
            let stamped = stamp(&path);
            let text = read(&path)?;
            match &mut self.sheet {
                Some((then, sheet)) if sheet.says(&text) => *then = stamped,
                _ => {
                    self.sheet = None;
                    self.sheet = Some((stamped, Sheet::read(text, &path, with_accounts)?));
                }
            }
            self.locked = Some(Locked {
                path,
                file,
                stamp: stamped,
                is_changed: false,
            });
        }
        self.reading(path, with_accounts).map(drop)
    }

    fn apply(
        &mut self,
        path: &Path,
        edit: Edit<'_>,
        act: fn(&mut Sheet, Edit<'_>) -> Result<bool, EditError>,
    ) -> Result<(), EditError> {
        let is_changed = act(self.sheet(path, edit.kind() == EntryKind::Accounts)?, edit)?;
        if let Some(locked) = &mut self.locked {
            locked.is_changed |= is_changed;
        }
        Ok(())
    }

    fn prove(&mut self) -> Result<(), EditError> {
        match &mut self.sheet {
            Some((_, sheet)) => sheet.proved().map(drop),
            None => Ok(()),
        }
    }

    /// Whether the commit of what waits takes the file away from other users of this machine.
    fn is_closed_by_commit(&self) -> bool {
        let waits = self.locked.as_ref().is_some_and(|locked| locked.is_changed);
        waits && self.sheet.as_ref().is_some_and(|(_, sheet)| sheet.holds(PRIVATE_KEY))
    }

    fn is_unproved(&self) -> bool {
        self.sheet.as_ref().is_some_and(|(_, sheet)| !sheet.is_proved())
    }

    /// Writes what waits, all of it or nothing, and unlocks the file.
    fn commit(&mut self) -> Result<(), EditError> {
        if let Some(rehearsed) = &mut self.rehearsal {
            let proved = self.sheet.as_mut().map(|(_, sheet)| sheet.proved()).transpose();
            match proved {
                Ok(text) => rehearsed.text = text.or_else(|| rehearsed.text.take()),
                Err(error) => {
                    self.sheet = None;
                    return Err(error);
                }
            }
            return Ok(());
        }
        let Some(locked) = self.locked.take().filter(|locked| locked.is_changed) else {
            return Ok(());
        };
        let Some((_, mut sheet)) = self.sheet.take() else {
            return Ok(());
        };
        let text = sheet.proved()?;
        if stamp(&locked.path) != locked.stamp {
            return Err(failed(
                &locked.path,
                "somebody else changed it at the same time; try again",
            ));
        }
        let written = write(&locked.path, &locked.file, &text).map_err(|error| failed(&locked.path, error))?;
        self.sheet = Some((written, sheet));
        Ok(())
    }
}

/// The entries of a kind that a text of the file `path` names, by folded name.
///
/// # Errors
/// It is no YAML.
pub fn entries(text: &str, path: &Path, kind: EntryKind) -> Result<Vec<Entry>, EditError> {
    let reading = FileReading::of(text, path, true)?;
    Ok(reading.of_kind(kind).map(|entry| (**entry).clone()).collect())
}

/// The text of the file `path` after a change of an entry, proved as a file is before it is written.
///
/// # Errors
/// It cannot be done in this text.
pub fn modified(text: &str, path: &Path, kind: EntryKind, name: &str, changes: &[Change]) -> Result<String, EditError> {
    rewritten(text, path, Edit::Modify(kind, name, changes))
}

/// The same with one entry more.
///
/// # Errors
/// It cannot be done in this text.
pub fn created(
    text: &str,
    path: &Path,
    kind: EntryKind,
    name: &str,
    attributes: &[Change],
) -> Result<String, EditError> {
    rewritten(text, path, Edit::Create(kind, name, attributes))
}

/// The same with one entry less.
///
/// # Errors
/// It cannot be done in this text.
pub fn deleted(text: &str, path: &Path, kind: EntryKind, name: &str) -> Result<String, EditError> {
    rewritten(text, path, Edit::Delete(kind, name))
}

fn rewritten(text: &str, path: &Path, edit: Edit<'_>) -> Result<String, EditError> {
    let read = || Sheet::read(text.to_owned(), path, true);
    let mut sheet = read()?;
    sheet.apply(edit)?;
    match sheet.proved() {
        Ok(text) => Ok(text),
        Err(_) => {
            sheet = read()?;
            sheet.in_the_whole(edit)?;
            sheet.proved()
        }
    }
}

fn failed(path: &Path, error: impl std::fmt::Display) -> EditError {
    EditError::Failed(format!("{}: {error}", path.display()))
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

/// The lock is on the file itself. The previous owner of the lock may have put another one in its place.
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

/// Puts the text in the place of the file, with its owner and mode, in one step that survives a crash. Returns how
/// the file looks then.
fn write(path: &Path, old: &File, text: &str) -> io::Result<FileStamp> {
    let mut draft = path.as_os_str().to_owned();
    draft.push(".new");
    let draft = Path::new(&draft);
    let written = write_like(draft, old, text.as_bytes()).and_then(|stamp| fs::rename(draft, path).map(|()| stamp));
    if written.is_err() {
        let _ = fs::remove_file(draft);
        return written;
    }
    let folder = path.parent().unwrap_or(Path::new("/"));
    File::open(folder)?.sync_all()?;
    written
}

/// The mode of the old file; but a file with a private key is not readable by every user of this machine.
fn mode_for(bytes: &[u8], old: u32) -> u32 {
    let key = PRIVATE_KEY.as_bytes();
    match bytes.windows(key.len()).any(|part| part == key) {
        true => old & !OTHERS,
        false => old,
    }
}

/// What is in it may be private: no other user can read it before it has the owner and mode of the old file.
fn write_like(path: &Path, old: &File, bytes: &[u8]) -> io::Result<FileStamp> {
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
    file.sync_all()?;
    Ok(Some(stamp_of(&file.metadata()?)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::edit::{Act, changed};

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
        fn new(text: &str) -> Self {
            let dir = tempfile::tempdir().unwrap();
            let path = dir.path().join("d.yaml");
            fs::write(&path, text).unwrap();
            fs::write(dir.path().join("k.pem"), KEY).unwrap();
            Self {
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
            folder
                .editor
                .modify(EntryKind::Domains, "a.test", &changes)
                .await
                .unwrap();
            mode(&folder)
        };
        assert_eq!(change("zimbraVirtualHostname", "o.a.test").await, 0o644);
        let other = KEY.replace("AAAA", "BBBB");
        assert_eq!(change("zimbraSSLPrivateKey", other.as_str()).await, 0o640);
        assert!(folder.editor.open_file().is_none());
    }

    #[tokio::test]
    async fn a_change_touches_its_own_lines() {
        let table: [(EntryKind, &str, Vec<Change>, &[&str]); 7] = [
            (
                EntryKind::Config,
                "",
                vec![replace("zimbrareverseproxymailmode", &["https"])],
                &[
                    "-  zimbraReverseProxyMailMode: redirect   # or https",
                    "+  zimbraReverseProxyMailMode: https   # or https",
                ],
            ),
            (
                EntryKind::Domains,
                "A.test",
                vec![
                    change("zimbraVirtualHostname", Act::Add("*.a.test".to_owned())),
                    change("zimbraVirtualHostname", Act::Remove("N.a.test".to_owned())),
                ],
                &["-      - n.a.test", "+      - \"*.a.test\""],
            ),
            (
                EntryKind::Domains,
                "a.test",
                vec![replace("zimbraSSLPrivateKey", &[KEY])],
                &[],
            ),
            (
                EntryKind::Servers,
                "s1.test",
                vec![replace("zimbraImapBindPort", &["143"])],
                &["+    zimbraImapBindPort: 143"],
            ),
            (
                EntryKind::Accounts,
                "alice@a.test",
                vec![replace("zimbraMailHost", &[])],
                &[
                    "-  alice@a.test: {zimbraMailAlias: [al@a.test], zimbraMailHost: s1.test, zimbraId: id-a}",
                    "+  alice@a.test: {zimbraMailAlias: [al@a.test], zimbraId: id-a}",
                ],
            ),
            (
                EntryKind::Cos,
                "default",
                vec![replace("description", &["a: b"])],
                &["-cos: {default: {}}", "+cos: {default: {description: \"a: b\"}}"],
            ),
            (
                EntryKind::Domains,
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
        for (kind, name, changes, expected) in table {
            let mut folder = Folder::new(TEXT);
            let name = if kind == EntryKind::Config { "config" } else { name };
            folder.editor.modify(kind, name, &changes).await.unwrap();
            assert_eq!(difference(TEXT, &folder.text()), expected, "{name} {changes:?}");
        }
    }

    #[tokio::test]
    async fn entries_are_found_made_and_taken_away() {
        let mut folder = Folder::new(TEXT);
        for (kind, key, name) in [
            (EntryKind::Servers, "S1.TEST", Some("s1.test")),
            (EntryKind::Servers, "SERVER-1", Some("s1.test")),
            (EntryKind::Accounts, "al@a.test", Some("alice@a.test")),
            (EntryKind::Accounts, "id-a", Some("alice@a.test")),
            (EntryKind::Domains, "al@a.test", None),
            (EntryKind::Config, "", Some("config")),
        ] {
            let found = folder.editor.find(kind, key).await.unwrap();
            assert_eq!(found.as_ref().map(Entry::name), name, "{key}");
        }
        let id = [replace("zimbraId", &["id-b"])];
        folder
            .editor
            .create(EntryKind::Accounts, "bob@a.test", &id)
            .await
            .unwrap();
        let twice = folder
            .editor
            .create(EntryKind::Accounts, "Bob@a.test", &id)
            .await
            .unwrap_err();
        assert_eq!(twice.to_string(), "account already exists: Bob@a.test");
        assert_eq!(
            difference(TEXT, &folder.text()),
            ["+  bob@a.test:", "+    zimbraId: id-b"]
        );
        folder.editor.delete(EntryKind::Accounts, "BOB@a.test").await.unwrap();
        assert_eq!(folder.text(), TEXT);
        let gone = folder
            .editor
            .delete(EntryKind::Accounts, "bob@a.test")
            .await
            .unwrap_err();
        assert_eq!(gone, EditError::NoSuch(EntryKind::Accounts, "bob@a.test".to_owned()));
        assert_eq!(folder.editor.entries(EntryKind::Accounts).await.unwrap().len(), 1);
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
                let before = folder.editor.find(EntryKind::Domains, "a.test").await.unwrap().unwrap();
                let done = folder.editor.modify(EntryKind::Domains, "a.test", changes).await;
                done.unwrap_or_else(|error| panic!("{error}: {changes:?} of {text}"));
                let after = folder.editor.find(EntryKind::Domains, "a.test").await.unwrap().unwrap();
                assert_eq!(after, changed(&before, changes), "{changes:?} of {text}");
                // A comment beside a line that is removed, or in a list that is written again, is removed with it.
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
            folder.editor.create(EntryKind::Domains, "new.test", &id).await.unwrap();
            folder.editor.create(EntryKind::Servers, "s.test", &[]).await.unwrap();
            folder.editor.delete(EntryKind::Domains, "a.test").await.unwrap();
            folder.editor.delete(EntryKind::Domains, "new.test").await.unwrap();
            assert!(
                folder
                    .editor
                    .find(EntryKind::Domains, "a.test")
                    .await
                    .unwrap()
                    .is_none()
            );
        }
    }

    #[tokio::test]
    async fn what_would_break_the_file_changes_nothing() {
        let mut folder = Folder::new(TEXT);
        let bad = [replace("zimbraReverseProxyMailMode", &["mixed"])];
        let error = folder
            .editor
            .modify(EntryKind::Config, "config", &bad)
            .await
            .unwrap_err();
        assert!(
            matches!(&error, EditError::Value(text) if text.contains("expected one of")),
            "{error}"
        );
        let same_id = [replace("zimbraId", &["id-a"])];
        assert!(
            folder
                .editor
                .create(EntryKind::Accounts, "bob@a.test", &same_id)
                .await
                .is_err()
        );
        assert_eq!(folder.text(), TEXT);
        // What was wrong before may be mended, and does not stand in the way.
        let text = "config:\n  zimbraReverseProxyMailMode: mixed\n  zimbraImapProxyBindPort: x\n";
        let mut folder = Folder::new(text);
        let good = [replace("zimbraReverseProxyMailMode", &["https"])];
        folder.editor.modify(EntryKind::Config, "config", &good).await.unwrap();
        assert_eq!(folder.text(), text.replace("mixed", "https"));
        // A value that others share cannot be changed for one.
        let text = "domains:\n  a: &a\n    zimbraId: x\n  b:\n    <<: *a\n    zimbraId: y\n    description: z\n";
        let mut folder = Folder::new(text);
        let new = [replace("zimbraDomainType", &["local"])];
        assert!(folder.editor.modify(EntryKind::Domains, "a", &new).await.is_err());
        assert_eq!(folder.text(), text);
        folder.editor.modify(EntryKind::Domains, "b", &new).await.unwrap();
        assert_eq!(difference(text, &folder.text()), ["+    zimbraDomainType: local"]);
    }

    #[test]
    fn a_change_that_changes_nothing_is_not_done() {
        let same = [replace("zimbraId", &["id-a"])];
        let done = modified(TEXT, Path::new("d.yaml"), EntryKind::Accounts, "alice@a.test", &same);
        assert_eq!(done.as_deref(), Ok(TEXT));
    }

    #[tokio::test]
    async fn many_changes_are_one_writing() {
        let mut folder = Folder::new(TEXT);
        let inode = |folder: &Folder| fs::metadata(&folder.editor.path).unwrap().ino();
        let before = inode(&folder);
        assert!(folder.editor.begin());
        let host = [replace("zimbraMailHost", &["s1.test"])];
        for name in ["b@a.test", "c@a.test"] {
            folder.editor.create(EntryKind::Accounts, name, &host).await.unwrap();
        }
        let alias = [replace("zimbraMailAlias", &["c@a.test"])];
        let taken = folder
            .editor
            .modify(EntryKind::Accounts, "b@a.test", &alias)
            .await
            .unwrap_err();
        assert_eq!(
            taken,
            EditError::Value("accounts.c@a.test.zimbraMailDeliveryAddress: already belongs to b@a.test".to_owned())
        );
        let twice = folder
            .editor
            .create(EntryKind::Accounts, "B@a.test", &host)
            .await
            .unwrap_err();
        assert_eq!(twice.to_string(), "account already exists: B@a.test");
        folder.editor.delete(EntryKind::Accounts, "c@a.test").await.unwrap();
        folder
            .editor
            .modify(EntryKind::Accounts, "b@a.test", &alias)
            .await
            .unwrap();
        let mode = [replace("zimbraReverseProxyMailMode", &["https"])];
        folder.editor.modify(EntryKind::Config, "config", &mode).await.unwrap();
        let bad = [replace("zimbraReverseProxyMailMode", &["mixed"])];
        assert!(folder.editor.modify(EntryKind::Config, "config", &bad).await.is_err());
        let found = folder.editor.find(EntryKind::Accounts, "C@a.test").await.unwrap();
        assert_eq!(found.as_ref().map(Entry::name), Some("b@a.test"));
        // No other process sees any of it, or writes in between.
        assert_eq!((folder.text().as_str(), inode(&folder)), (TEXT, before));
        assert!(File::open(&folder.editor.path).unwrap().try_lock().is_err());
        folder.editor.commit().await.unwrap();
        assert_eq!(
            difference(TEXT, &folder.text()),
            [
                "-  zimbraReverseProxyMailMode: redirect   # or https",
                "+  zimbraReverseProxyMailMode: https   # or https",
                "+  b@a.test:",
                "+    zimbraMailHost: s1.test",
                "+    zimbraMailAlias: c@a.test",
            ]
        );
        // From here on each change is written at once.
        folder.editor.delete(EntryKind::Accounts, "b@a.test").await.unwrap();
        assert!(!folder.text().contains("b@a.test"));
    }

    #[tokio::test]
    async fn what_somebody_else_changed_meanwhile_is_not_overwritten() {
        let mut folder = Folder::new(TEXT);
        assert!(folder.editor.begin());
        let id = [replace("zimbraId", &["x"])];
        folder.editor.create(EntryKind::Servers, "s9.test", &id).await.unwrap();
        let theirs = TEXT.replace("s1.test", "s2.test");
        fs::write(&folder.editor.path, &theirs).unwrap();
        let error = folder.editor.commit().await.unwrap_err();
        assert!(error.to_string().contains("somebody else changed it"), "{error}");
        assert_eq!(folder.text(), theirs);
        folder.editor.create(EntryKind::Servers, "s9.test", &id).await.unwrap();
        assert!(folder.text().contains("s9.test") && folder.text().contains("s2.test"));
    }

    #[tokio::test]
    async fn what_others_write_is_seen() {
        let mut folder = Folder::new(TEXT);
        assert!(
            folder
                .editor
                .find(EntryKind::Servers, "s2.test")
                .await
                .unwrap()
                .is_none()
        );
        fs::write(&folder.editor.path, TEXT.replace("s1.test:", "s2.test:")).unwrap();
        assert!(
            folder
                .editor
                .find(EntryKind::Servers, "s2.test")
                .await
                .unwrap()
                .is_some()
        );
        let mut other = YamlEditor::new(&folder.editor.path);
        other.create(EntryKind::Servers, "s3.test", &[]).await.unwrap();
        assert_eq!(folder.editor.entries(EntryKind::Servers).await.unwrap().len(), 2);
        fs::remove_file(&folder.editor.path).unwrap();
        assert!(folder.editor.entries(EntryKind::Servers).await.is_err());
    }

    #[tokio::test]
    async fn owner_mode_and_links_are_kept() {
        let mut folder = Folder::new(TEXT);
        fs::set_permissions(&folder.editor.path, fs::Permissions::from_mode(0o640)).unwrap();
        let link = folder.dir.path().join("link.yaml");
        std::os::unix::fs::symlink("d.yaml", &link).unwrap();
        folder.editor.path = link.clone();
        let new = [replace("zimbraDefaultDomainName", &["a.test"])];
        folder.editor.modify(EntryKind::Config, "config", &new).await.unwrap();
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
                    editor.modify(EntryKind::Domains, "a.test", &add).await.unwrap();
                }
            })
        });
        for writer in writers.collect::<Vec<_>>() {
            writer.await.unwrap();
        }
        let mut editor = folder.editor.clone();
        let domain = editor.find(EntryKind::Domains, "a.test").await.unwrap().unwrap();
        assert_eq!(domain.values("zimbraVirtualHostname").len(), 2 + 8 * 5);
    }
}
