//! The directory, open for changes that are checked before they are made.
//!
//! `portico prov` and the admin API change it through this and through nothing else.

use std::ops::{Deref, DerefMut};
use std::path::{Path, PathBuf};

use mail_directory::edit::rehearsal::{Rehearsal, TriedChanges, TriedEntry};
use mail_directory::edit::{Change, Editor, EntryKind, changed};
use mail_directory::file::YamlEditor;
use mail_directory::ldap::LdapEditor;
use mail_directory::{Entry, Secret, System, attributes as a, names};

use crate::config::{Config, Source};
use crate::provision::rules::ProposedEntry;
use crate::provision::{CommandOutput, ProvisionError, SharedNames, exists};

/// An open directory.
pub(crate) struct CheckedEditor {
    editor: Box<dyn Editor>,
    shared_names: SharedNames,
    /// What is tried, where nothing is written.
    tried: Option<TriedChanges>,
}

impl Deref for CheckedEditor {
    type Target = dyn Editor;

    fn deref(&self) -> &Self::Target {
        &*self.editor
    }
}

impl DerefMut for CheckedEditor {
    fn deref_mut(&mut self) -> &mut Self::Target {
        &mut *self.editor
    }
}

impl CheckedEditor {
    /// Opens the directory of this node file. Where it is LDAP it is changed as `account`, a name and the file with
    /// its password, or else as the user that the node file names for changes.
    ///
    /// # Errors
    /// The file with the password cannot be read.
    pub(crate) fn open(
        config: &Config,
        account: Option<(&String, &PathBuf)>,
        shared_names: SharedNames,
    ) -> anyhow::Result<Self> {
        Ok(Self {
            editor: editor(config, account)?,
            shared_names,
            tried: None,
        })
    }

    /// The same, which checks changes and writes none of them.
    pub(crate) fn rehearsing(self) -> Self {
        let rehearsal = Rehearsal::new(self.editor);
        Self {
            tried: Some(rehearsal.tried()),
            editor: Box::new(rehearsal),
            ..self
        }
    }

    /// Whether nothing is written.
    pub(crate) fn rehearses(&self) -> bool {
        self.tried.is_some()
    }

    /// The entries that would be other ones after what was tried.
    pub(crate) fn tried(&self) -> Vec<TriedEntry> {
        self.tried.as_ref().map(TriedChanges::all).unwrap_or_default()
    }

    /// Everything but the accounts.
    pub(crate) async fn system(&mut self) -> Result<System, ProvisionError> {
        let config = self.editor.entries(EntryKind::Config).await?.pop().unwrap_or_default();
        Ok(System::new(
            config,
            self.editor.entries(EntryKind::Servers).await?,
            self.editor.entries(EntryKind::Domains).await?,
            self.editor.entries(EntryKind::Cos).await?,
        ))
    }

    pub(crate) async fn existing(&mut self, kind: EntryKind, key: &str) -> Result<Entry, ProvisionError> {
        let found = self.editor.find(kind, key).await?;
        found.ok_or_else(|| ProvisionError::no_such(kind, key))
    }

    /// Checks a change of an entry, named by name or id, and makes it. Returns the previous entry.
    ///
    /// # Errors
    /// There is no such entry, the change makes no sense, or the directory does not take it: nothing was changed.
    pub(crate) async fn change(
        &mut self,
        kind: EntryKind,
        key: &str,
        changes: &[Change],
        output: &mut CommandOutput,
    ) -> Result<Entry, ProvisionError> {
        let before = self.existing(kind, key).await?;
        self.check(kind, &before, changes, output).await?;
        let open = self.open_file_for(changes);
        self.editor.modify(kind, before.name(), changes).await?;
        open.into_iter().for_each(|message| output.warn(message));
        Ok(before)
    }

    /// The warning for a private key that goes into a file that all users could read so far.
    pub(crate) fn open_file_for(&self, changes: &[Change]) -> Option<String> {
        let is_key = |change: &Change| change.attribute.eq_ignore_ascii_case(a::SSL_PRIVATE_KEY.name);
        let has_key = changes.iter().any(is_key);
        let path = has_key.then(|| self.editor.open_file()).flatten()?;
        Some(format!(
            "WARNING: everybody could read {}; with a private key in it, only its owner and group can",
            path.display()
        ))
    }

    pub(crate) async fn check(
        &mut self,
        kind: EntryKind,
        before: &Entry,
        changes: &[Change],
        output: &mut CommandOutput,
    ) -> Result<(), ProvisionError> {
        let system = self.system().await?;
        let after = changed(before, changes);
        let proposed = ProposedEntry {
            system: &system,
            kind,
            before,
            after: &after,
            shared_names: self.shared_names,
        };
        proposed.check(output)?;
        let known = before.values(a::MAIL_ALIAS.name);
        for alias in after
            .values(a::MAIL_ALIAS.name)
            .iter()
            .filter(|alias| !known.contains(alias))
        {
            self.free_address(alias, before.name()).await?;
        }
        Ok(())
    }

    async fn free_address(&mut self, address: &str, owner: &str) -> Result<(), ProvisionError> {
        let found = self.editor.find(EntryKind::Accounts, address).await?;
        match found.filter(|entry| names::account(entry.name()) != names::account(owner)) {
            Some(_) => Err(exists("account.ACCOUNT_EXISTS", "email address", address)),
            None => Ok(()),
        }
    }
}

fn editor(config: &Config, account: Option<(&String, &PathBuf)>) -> anyhow::Result<Box<dyn Editor>> {
    let settings = match &config.directory.source {
        Source::Yaml(path) => return Ok(Box::new(YamlEditor::new(path))),
        Source::Ldap(settings) => settings,
    };
    let mut settings = (**settings).clone();
    let admin = || config.directory.admin.as_ref().map(|(dn, file)| (dn, file));
    if let Some((dn, file)) = account.or_else(admin) {
        settings.bind = Some((dn.clone(), password(file)?));
    }
    Ok(Box::new(LdapEditor::new(&settings)))
}

fn password(file: &Path) -> anyhow::Result<Secret<String>> {
    let read = std::fs::read_to_string(file).map(Secret::new);
    let text = read.map_err(|error| anyhow::anyhow!("{}: {error}", file.display()))?;
    let line = text.expose().trim_end_matches(['\r', '\n']);
    // Without a password the bind would be unauthenticated (RFC 4513 §5.1.2).
    anyhow::ensure!(!line.is_empty(), "{} is empty", file.display());
    Ok(Secret::new(line.to_owned()))
}
