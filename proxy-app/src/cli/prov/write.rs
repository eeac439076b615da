//! The verbs that change something.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use mail_directory::edit::{Act, Change, EntryKind};
use mail_directory::{Entry, Secret, System, attributes as a, names};
use openssl::sha::Sha512;
use uuid::Uuid;

use crate::cli::prov::{Flags, Prov, words};
use crate::provision::{CommandOutput, ProvisionError, values};

/// Bytes of salt behind a password's hash.
const SALT: usize = 8;

impl Prov {
    pub(super) async fn modify(
        &mut self,
        kind: EntryKind,
        words: &[String],
        flags: Flags,
    ) -> Result<CommandOutput, ProvisionError> {
        let mut output = CommandOutput::default();
        let (key, pairs) = match (kind, words) {
            (EntryKind::Config, pairs) => ("config", pairs),
            (_, [key, pairs @ ..]) => (key.as_str(), pairs),
            (_, []) => return Err(ProvisionError::Usage(String::new())),
        };
        let changes = words::changes(pairs, flags.replace, &mut output)?;
        self.editor.change(kind, key, &changes, &mut output).await?;
        Ok(output)
    }

    pub(super) async fn create(&mut self, kind: EntryKind, words: &[String]) -> Result<CommandOutput, ProvisionError> {
        let mut output = CommandOutput::default();
        let (name, pairs) = match kind {
            EntryKind::Accounts => (&words[0], &words[2..]),
            _ => (&words[0], &words[1..]),
        };
        let mut changes = words::changes(pairs, true, &mut output)?;
        if kind == EntryKind::Accounts {
            self.account(name, &words[1], &mut changes, &mut output).await?;
        }
        self.make(kind, name, changes, output).await
    }

    pub(super) async fn create_alias_domain(&mut self, words: &[String]) -> Result<CommandOutput, ProvisionError> {
        let mut output = CommandOutput::default();
        let mut changes = words::changes(&words[2..], true, &mut output)?;
        let target = self.editor.existing(EntryKind::Domains, &words[1]).await?;
        let id = match target.first(a::ID.name) {
            Some(id) => id.to_owned(),
            None => {
                let id = new_id();
                self.editor
                    .modify(EntryKind::Domains, target.name(), &[set(a::ID.name, &id)])
                    .await?;
                id
            }
        };
        changes.push(set(a::DOMAIN_TYPE.name, "alias"));
        changes.push(set(a::DOMAIN_ALIAS_TARGET_ID.name, &id));
        self.make(EntryKind::Domains, &words[0], changes, output).await
    }

    pub(super) async fn delete(&mut self, kind: EntryKind, key: &str) -> Result<CommandOutput, ProvisionError> {
        let entry = self.editor.existing(kind, key).await?;
        match kind {
            EntryKind::Servers => self.unused_server(&entry).await?,
            EntryKind::Domains => self.unused_domain(&entry).await?,
            _ => {}
        }
        self.editor.delete(kind, entry.name()).await?;
        Ok(CommandOutput::default())
    }

    /// Creates an entry with an id of its own, and prints the id.
    async fn make(
        &mut self,
        kind: EntryKind,
        name: &str,
        mut changes: Vec<Change>,
        mut output: CommandOutput,
    ) -> Result<CommandOutput, ProvisionError> {
        let kept = match kind {
            EntryKind::Accounts => names::account(name),
            _ => names::host(name),
        };
        let is_good = match kind {
            EntryKind::Accounts => values::is_address(&kept),
            _ => values::is_host_name(&kept),
        };
        if !is_good {
            return Err(ProvisionError::request(format!(
                "{name:?} is not a good name for a {}",
                kind.one()
            )));
        }
        let name = kept;
        if self.editor.find(kind, &name).await?.is_some() {
            return Err(mail_directory::edit::EditError::Exists(kind, name).into());
        }
        let given = changes.iter().find(|change| change.attribute == a::ID.name);
        let id = match given.map(|change| &change.act) {
            Some(Act::Replace(values)) if values.len() == 1 => values[0].clone(),
            _ => {
                let id = new_id();
                changes.insert(0, set(a::ID.name, &id));
                id
            }
        };
        self.editor
            .check(kind, &Entry::new(name.as_str()), &changes, &mut output)
            .await?;
        let open = self.editor.open_file_for(&changes);
        self.editor.create(kind, &name, &changes).await?;
        open.into_iter().for_each(|message| output.warn(message));
        // An id that nothing will have is no answer.
        if !self.editor.rehearses() {
            output.line(id);
        }
        Ok(output)
    }

    /// An account needs a domain, a server, and where the directory keeps it a password.
    async fn account(
        &mut self,
        name: &str,
        password: &str,
        changes: &mut Vec<Change>,
        output: &mut CommandOutput,
    ) -> Result<(), ProvisionError> {
        let domain = name.rsplit_once('@').map_or("", |(_, domain)| domain);
        self.editor.existing(EntryKind::Domains, domain).await?;
        if !changes.iter().any(|change| change.attribute == a::MAIL_HOST.name) {
            match only_mailbox_server(&self.editor.system().await?) {
                Some(host) => changes.push(set(a::MAIL_HOST.name, &host)),
                None => output.warn("WARNING: there is no zimbraMailHost: nobody can log in to this account"),
            }
        }
        if password.is_empty() {
            return Ok(());
        }
        match self.editor.keeps_passwords() {
            true => changes.push(set("userPassword", hashed(&Secret::new(password.to_owned())).expose())),
            false => output.warn("WARNING: this directory keeps no passwords: the mailbox server has to be told"),
        }
        Ok(())
    }

    async fn unused_server(&mut self, server: &Entry) -> Result<(), ProvisionError> {
        let system = self.editor.system().await?;
        let accounts = self.editor.entries(EntryKind::Accounts).await?;
        let is_here = |account: &&Entry| {
            let host = account.first(a::MAIL_HOST.name).and_then(|host| system.server(host));
            host.is_some_and(|host| host.name() == server.name())
        };
        match accounts.iter().filter(is_here).count() {
            0 => Ok(()),
            count => Err(ProvisionError::request(format!(
                "{} holds {count} accounts",
                server.name()
            ))),
        }
    }

    async fn unused_domain(&mut self, domain: &Entry) -> Result<(), ProvisionError> {
        let accounts = self.editor.entries(EntryKind::Accounts).await?;
        let is_in = |account: &Entry| {
            let name = account.first(a::MAIL_DELIVERY_ADDRESS.name).unwrap_or(account.name());
            name.rsplit_once('@')
                .is_some_and(|(_, own)| names::host(own) == names::host(domain.name()))
        };
        if accounts.iter().any(is_in) {
            let message = format!("domain not empty: {}", domain.name());
            return Err(ProvisionError::service("account.DOMAIN_NOT_EMPTY", message));
        }
        let id = domain.first(a::ID.name).unwrap_or_default();
        let domains = self.editor.entries(EntryKind::Domains).await?;
        let is_alias = |other: &&Entry| {
            let target = other.first(a::DOMAIN_ALIAS_TARGET_ID.name);
            target.is_some_and(|target| !id.is_empty() && target.eq_ignore_ascii_case(id))
        };
        match domains.iter().find(is_alias) {
            Some(alias) => Err(ProvisionError::request(format!(
                "{} is an alias of {}",
                alias.name(),
                domain.name()
            ))),
            None => Ok(()),
        }
    }
}

fn only_mailbox_server(system: &System) -> Option<String> {
    let mut servers = system.mailbox_servers();
    let (first, more) = (servers.next()?, servers.next());
    let name = first.text(&a::SERVICE_HOSTNAME).unwrap_or(first.name());
    more.is_none().then(|| name.to_owned())
}

fn set(attribute: &str, value: &str) -> Change {
    Change {
        attribute: attribute.to_owned(),
        act: Act::Replace(vec![value.to_owned()]),
    }
}

/// An id as Zimbra makes them.
fn new_id() -> String {
    Uuid::new_v4().to_string()
}

/// `{SSHA512}`, as the mailbox server writes it: the hash of password and salt, and the salt.
fn hashed(password: &Secret<String>) -> Secret<String> {
    let salt: [u8; SALT] = rand::random();
    let mut hash = Sha512::new();
    hash.update(password.expose().as_bytes());
    hash.update(&salt);
    let bytes = [&hash.finish()[..], &salt].concat();
    Secret::new(format!("{{SSHA512}}{}", STANDARD.encode(bytes)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn passwords_are_hashed_with_salt() {
        let password = Secret::new("secret".to_owned());
        let (one, two) = (hashed(&password), hashed(&password));
        assert_ne!(one.expose(), two.expose());
        let bytes = STANDARD
            .decode(one.expose().strip_prefix("{SSHA512}").unwrap())
            .unwrap();
        let (hash, salt) = bytes.split_at(64);
        assert_eq!(openssl::sha::sha512(&[b"secret", salt].concat()), hash);
        assert_eq!(salt.len(), SALT);
    }
}
