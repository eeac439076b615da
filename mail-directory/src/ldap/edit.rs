//! Changes an LDAP directory: entries in the places and classes that Carbonio and Zimbra use (MAIL §7).
//!
//! A write goes to the first server of the list that takes it; a replica answers with a referral or refuses, and the
//! next one is tried. A write without an answer is not repeated: it is not known whether it was done. Values are
//! added, removed and replaced one by one, so that changes of other clients survive.

use std::collections::{BTreeSet, HashSet};
use std::sync::Arc;

use async_trait::async_trait;
use ldap3::{LdapResult, Mod, Scope as Reach, dn_escape};
use parking_lot::Mutex;
use tokio::time::timeout;

use super::open::Opener;
use super::pool::{Connection, Extent, LdapError, Pool, Search};
use super::search_entry::SearchEntry;
use super::sync_point::SyncPoint;
use super::{Settings, Url, filter, name_attribute, place};
use crate::attributes;
use crate::edit::{Act, Change, EditError, Editor, EntryKind, Swap, changed};
use crate::entry::Entry;
use crate::names::fold;

/// How often a change is tried again because another client changed the same values between reading and writing.
const ROUNDS: usize = 4;

/// Result codes of RFC 4511 §4.1.9.
mod code {
    pub(super) const SUCCESS: u32 = 0;
    pub(super) const REFERRAL: u32 = 10;
    pub(super) const NO_SUCH_ATTRIBUTE: u32 = 16;
    pub(super) const UNDEFINED_ATTRIBUTE_TYPE: u32 = 17;
    pub(super) const CONSTRAINT_VIOLATION: u32 = 19;
    pub(super) const ATTRIBUTE_OR_VALUE_EXISTS: u32 = 20;
    pub(super) const INVALID_ATTRIBUTE_SYNTAX: u32 = 21;
    pub(super) const NO_SUCH_OBJECT: u32 = 32;
    pub(super) const INSUFFICIENT_ACCESS_RIGHTS: u32 = 50;
    pub(super) const BUSY: u32 = 51;
    pub(super) const UNAVAILABLE: u32 = 52;
    pub(super) const UNWILLING_TO_PERFORM: u32 = 53;
    pub(super) const OBJECT_CLASS_VIOLATION: u32 = 65;
    pub(super) const NOT_ALLOWED_ON_NON_LEAF: u32 = 66;
    pub(super) const ENTRY_ALREADY_EXISTS: u32 = 68;
}

/// An LDAP directory, open for changes.
pub struct LdapEditor {
    pool: Pool,
    opener: Opener,
    settings: Settings,
    /// The server that took the last write.
    wrote: Mutex<Option<Url>>,
}

/// The classes of entries with attributes of Portico's own, each with the beginning of their names
/// (`conf/portico.schema`). The first one that fits counts.
const OWN_CLASSES: [(&str, &str); 2] = [("porticoacme", "porticoCertificates"), ("portico", "porticoLimits")];

/// A write.
#[derive(Clone)]
enum Write {
    Modify(String, Vec<(ValueOp, String, Vec<String>)>),
    Add(String, Vec<(String, Vec<String>)>),
    Delete(String),
}

/// What is done with the values of an attribute.
#[derive(Clone, Copy, PartialEq, Eq)]
enum ValueOp {
    Add,
    Delete,
    Replace,
}

/// An entry to be created.
#[derive(Clone)]
struct Draft {
    dn: String,
    attributes: Vec<(String, Vec<String>)>,
}

impl LdapEditor {
    /// An editor of this directory, with the bind account of the settings. Nothing is connected yet.
    pub fn new(settings: &Settings) -> Self {
        Self {
            pool: Pool::new(settings),
            opener: Opener::new(settings),
            settings: settings.clone(),
            wrote: Mutex::default(),
        }
    }

    async fn search(&self, base: &str, scope: Reach, filter: String) -> Result<Vec<SearchEntry>, EditError> {
        let search = Search {
            base: base.to_owned(),
            scope,
            filter,
            attributes: Arc::new(["*".to_owned()]),
            extent: Extent::All,
        };
        let reply = self.pool.search(search).await.map_err(|error| match error {
            LdapError::Refused(why) => EditError::Denied(why),
            other => EditError::Failed(other.to_string()),
        })?;
        Ok(reply.entries)
    }

    async fn all(&self, kind: EntryKind) -> Result<Vec<SearchEntry>, EditError> {
        let (base, scope) = place(kind);
        let mut found = self.search(base, scope, filter::every(kind)).await?;
        // System accounts of Carbonio and Zimbra have no address.
        found.retain(|found| kind != EntryKind::Accounts || found.first(name_attribute(kind)).is_some());
        Ok(found)
    }

    async fn one(&self, kind: EntryKind, key: &str) -> Result<Option<SearchEntry>, EditError> {
        let (base, scope) = place(kind);
        let mut found = self.search(base, scope, filter::entry(kind, key)).await?;
        // The entry with the name comes before one that has it as an alias.
        found.sort_by_cached_key(|found| (kind.key(&found.name(kind)) != kind.key(key), found.key()));
        Ok(found.into_iter().next())
    }

    async fn existing(&self, kind: EntryKind, name: &str) -> Result<SearchEntry, EditError> {
        let found = self.one(kind, name).await?;
        found.ok_or_else(|| EditError::NoSuch(kind, name.to_owned()))
    }

    async fn children(&self, dn: &str) -> Result<Vec<SearchEntry>, EditError> {
        self.search(dn, Reach::OneLevel, "(objectClass=*)".to_owned()).await
    }

    async fn has(&self, dn: &str) -> Result<bool, EditError> {
        let found = self.search(dn, Reach::Base, "(objectClass=*)".to_owned()).await?;
        Ok(!found.is_empty())
    }

    /// Sends it to one server after the other until one takes it.
    async fn write(&self, write: Write) -> Result<(), Refusal> {
        let mut last = None;
        for url in &self.settings.urls {
            match self.write_to(url, write.clone()).await {
                Err(Refusal::Elsewhere(why)) => last = Some(why),
                done => {
                    *self.wrote.lock() = Some(url.clone());
                    return done;
                }
            }
        }
        let why = last.unwrap_or_else(|| "no server is configured".to_owned());
        Err(Refusal::Elsewhere(why))
    }

    /// In a task of its own: an answer so malformed that the library panics is no answer.
    async fn write_to(&self, url: &Url, write: Write) -> Result<(), Refusal> {
        let connection = match timeout(self.settings.timeout, Connection::open(&self.opener, url)).await {
            Ok(Ok(connection)) => connection,
            Ok(Err(error)) => return Err(Refusal::Elsewhere(format!("{url}: {error}"))),
            Err(_) => return Err(Refusal::Elsewhere(format!("{url} does not take a connection in time"))),
        };
        let unsure = |why: String| {
            let message = format!("{url} was told, but {why}: whether it was done is not known");
            Refusal::Final(EditError::Failed(message))
        };
        let mut task = tokio::spawn(async move { perform(connection.ldap(), write).await });
        match timeout(self.settings.timeout, &mut task).await {
            Ok(Ok(Ok(result))) => check_result(url, &result),
            Ok(Ok(Err(error))) => Err(unsure(error.to_string())),
            Ok(Err(panic)) => Err(unsure(panic.to_string())),
            Err(_) => {
                task.abort();
                Err(unsure(format!("it did not answer within {:?}", self.settings.timeout)))
            }
        }
    }

    async fn add(&self, draft: Draft) -> Result<(), EditError> {
        Ok(self.write(Write::Add(draft.dn, draft.attributes)).await?)
    }

    /// With what newer directories want; without it where the schema does not know it.
    async fn add_with(&self, draft: Draft, extras: &[(&str, &str)]) -> Result<(), EditError> {
        let mut whole = draft.clone();
        extras.iter().for_each(|(name, value)| whole.extend(name, value));
        match self.add(whole).await {
            Err(EditError::Name(_) | EditError::Value(_)) => self.add(draft).await,
            done => done,
        }
    }

    async fn create_domain(&self, name: &str, given: &Entry) -> Result<(), EditError> {
        let labels: Vec<&str> = name.split('.').collect();
        for at in (1..labels.len()).rev() {
            self.make_folder(&labels[at..]).await?;
        }
        let mut draft = Draft::new(domain_dn(&labels), &["dcObject", "organization", "zimbraDomain"], given);
        draft.set_default("dc", labels[0]);
        draft.set_default("o", &format!("{name} domain"));
        draft.set_default(attributes::DOMAIN_NAME.name, name);
        draft.set_default(attributes::DOMAIN_TYPE.name, "local");
        draft.set_default("zimbraDomainStatus", "active");
        let dn = draft.dn.clone();
        if self.has(&dn).await? {
            self.promote(draft).await?;
        } else {
            let extras = [("objectClass", "amavisAccount"), ("zimbraMailStatus", "enabled")];
            self.add_with(draft, &extras).await?;
        }
        for (rdn, names) in [
            ("ou=people", &[("ou", "people"), ("cn", "people")][..]),
            ("cn=groups", &[("cn", "groups")]),
        ] {
            let mut folder = Draft::new(format!("{rdn},{dn}"), &["organizationalRole"], &Entry::default());
            names.iter().for_each(|(name, value)| folder.set_default(name, value));
            match self.add(folder).await {
                Err(EditError::Exists(..)) | Ok(()) => {}
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    /// A part of the tree above a domain that is no domain itself.
    async fn make_folder(&self, labels: &[&str]) -> Result<(), EditError> {
        let dn = domain_dn(labels);
        if self.has(&dn).await? {
            return Ok(());
        }
        let mut draft = Draft::new(dn, &["dcObject", "organization"], &Entry::default());
        draft.set_default("dc", labels[0]);
        draft.set_default("o", &format!("{} domain", labels.join(".")));
        self.add(draft).await
    }

    /// Turns an entry that was only above another domain into a domain.
    async fn promote(&self, draft: Draft) -> Result<(), EditError> {
        let own = ["objectClass", "dc", "o"];
        let mut mods = vec![(ValueOp::Add, "objectClass".to_owned(), vec!["zimbraDomain".to_owned()])];
        let rest = draft
            .attributes
            .into_iter()
            .filter(|(name, _)| !own.contains(&name.as_str()));
        mods.extend(rest.map(|(name, values)| (ValueOp::Replace, name, values)));
        Ok(self.write(Write::Modify(draft.dn, mods)).await?)
    }

    async fn create_account(&self, name: &str, given: &Entry) -> Result<(), EditError> {
        let wrong = || EditError::Value(format!("{name} is not an address"));
        let (user, domain) = name.rsplit_once('@').ok_or_else(wrong)?;
        let domain = self.existing(EntryKind::Domains, domain).await?;
        let dn = format!("uid={},ou=people,{}", dn_escape(user), domain.dn);
        let mut draft = Draft::new(dn, &["inetOrgPerson", "zimbraAccount"], given);
        for (attribute, value) in [
            ("uid", user),
            ("cn", user),
            ("sn", user),
            ("mail", name),
            (attributes::MAIL_DELIVERY_ADDRESS.name, name),
            ("zimbraAccountStatus", "active"),
        ] {
            draft.set_default(attribute, value);
        }
        if let Some(host) = given.first(attributes::MAIL_HOST.name) {
            draft.set_default("zimbraMailTransport", &format!("lmtp:{host}:7025"));
        }
        let extras = [("objectClass", "amavisAccount"), ("zimbraMailStatus", "enabled")];
        self.add_with(draft, &extras).await
    }

    async fn create_below(&self, base: &str, class: &str, name: &str, given: &Entry) -> Result<(), EditError> {
        let mut draft = Draft::new(format!("cn={},{base}", dn_escape(name)), &[class], given);
        draft.set_default("cn", name);
        if class == "zimbraServer" {
            draft.set_default(attributes::SERVICE_HOSTNAME.name, name);
        }
        self.add(draft).await
    }

    async fn remove(&self, dn: String) -> Result<(), EditError> {
        Ok(self.write(Write::Delete(dn)).await?)
    }

    /// With the folders that every domain has, if they are empty.
    async fn delete_domain(&self, name: &str, domain: SearchEntry) -> Result<(), EditError> {
        let folders = self.children(&domain.dn).await?;
        for folder in &folders {
            let first = fold(folder.dn.split(',').next().unwrap_or_default());
            let is_own = ["ou=people", "cn=groups"].contains(&first.as_str());
            if !is_own || !self.children(&folder.dn).await?.is_empty() {
                return Err(EditError::InUse(format!("domain not empty: {name}")));
            }
        }
        for folder in folders {
            self.remove(folder.dn).await?;
        }
        self.remove(domain.dn).await
    }

    /// With the entries of its aliases.
    async fn delete_account(&self, account: SearchEntry) -> Result<(), EditError> {
        if let Some(id) = account.first(attributes::ID.name) {
            for alias in self.search("", Reach::Subtree, filter::aliases_of(id)).await? {
                self.remove(alias.dn).await?;
            }
        }
        self.remove(account.dn).await
    }
}

#[async_trait]
impl Editor for LdapEditor {
    async fn entries(&mut self, kind: EntryKind) -> Result<Vec<Entry>, EditError> {
        let mut entries: Vec<Entry> = self
            .all(kind)
            .await?
            .into_iter()
            .map(|found| found.into_entry(kind))
            .collect();
        entries.sort_by_cached_key(|entry| fold(entry.name()));
        Ok(entries)
    }

    async fn find(&mut self, kind: EntryKind, key: &str) -> Result<Option<Entry>, EditError> {
        Ok(self.one(kind, key).await?.map(|found| found.into_entry(kind)))
    }

    async fn modify(&mut self, kind: EntryKind, name: &str, changes: &[Change]) -> Result<(), EditError> {
        for round in 1.. {
            let found = self.existing(kind, name).await?;
            let dn = found.dn.clone();
            let entry = found.into_entry(kind);
            let mut mods = mods(&entry, changes);
            mods.extend(lacking_classes(&entry, &mods));
            if mods.is_empty() {
                return Ok(());
            }
            match self.write(Write::Modify(dn, mods)).await {
                // Another client was faster.
                Err(Refusal::Raced(_)) if round < ROUNDS => {}
                done => return Ok(done?),
            }
        }
        Ok(())
    }

    /// The old value is taken away by name, so that the server refuses the change where another one stands.
    async fn swap(&mut self, kind: EntryKind, name: &str, swaps: &[Swap]) -> Result<(), EditError> {
        let dn = self.existing(kind, name).await?.dn;
        let mods = swaps.iter().flat_map(|swap| {
            let of = |way, value: &String| (way, spelled(&swap.attribute), vec![value.clone()]);
            [of(ValueOp::Delete, &swap.from), of(ValueOp::Add, &swap.to)]
        });
        match self.write(Write::Modify(dn, mods.collect())).await {
            Err(Refusal::Raced(error)) => Err(EditError::Changed(format!("{name} was changed meanwhile: {error}"))),
            done => Ok(done?),
        }
    }

    async fn create(&mut self, kind: EntryKind, name: &str, attributes: &[Change]) -> Result<(), EditError> {
        let given = changed(&Entry::new(name), attributes);
        let created = match kind {
            EntryKind::Config => Err(EditError::Exists(kind, name.to_owned())),
            EntryKind::Servers => self.create_below(place(kind).0, "zimbraServer", name, &given).await,
            EntryKind::Cos => self.create_below(place(kind).0, "zimbraCOS", name, &given).await,
            EntryKind::Domains => self.create_domain(name, &given).await,
            EntryKind::Accounts => self.create_account(name, &given).await,
        };
        created.map_err(|error| match error {
            EditError::Exists(..) => EditError::Exists(kind, name.to_owned()),
            other => other,
        })
    }

    async fn delete(&mut self, kind: EntryKind, name: &str) -> Result<(), EditError> {
        let found = self.existing(kind, name).await?;
        match kind {
            EntryKind::Domains => self.delete_domain(name, found).await,
            EntryKind::Accounts => self.delete_account(found).await,
            _ => self.remove(found.dn).await,
        }
    }

    /// Asked where it was written: a replica may not know yet.
    async fn point(&mut self) -> Option<String> {
        let url = self.wrote.lock().clone()?;
        let there = Pool::new(&Settings {
            urls: vec![url],
            ..self.settings.clone()
        });
        let holds = |context: &str| context.is_empty() || place(EntryKind::Config).0.ends_with(&fold(context));
        match SyncPoint::read(&there, holds).await.ok()? {
            SyncPoint::Clock(_) => None,
            point => Some(point.to_string()),
        }
    }

    fn keeps_passwords(&self) -> bool {
        true
    }
}

impl Draft {
    fn new(dn: String, classes: &[&str], given: &Entry) -> Self {
        let own = own_classes(given.iter().map(|(name, _)| name));
        let classes = classes.iter().copied().chain(own).map(str::to_owned).collect();
        let given = given.iter().map(|(name, values)| (name.to_owned(), values.to_vec()));
        Self {
            dn,
            attributes: std::iter::once(("objectClass".to_owned(), classes))
                .chain(given)
                .collect(),
        }
    }

    fn position(&self, name: &str) -> Option<usize> {
        self.attributes
            .iter()
            .position(|(other, _)| other.eq_ignore_ascii_case(name))
    }

    /// Unless the caller set it.
    fn set_default(&mut self, name: &str, value: &str) {
        if self.position(name).is_none() {
            self.attributes.push((name.to_owned(), vec![value.to_owned()]));
        }
    }

    fn extend(&mut self, name: &str, value: &str) {
        match self.position(name) {
            Some(at) => self.attributes[at].1.push(value.to_owned()),
            None => self.set_default(name, value),
        }
    }
}

/// The classes that an entry needs before it can hold these attributes.
fn own_classes<'n>(attributes: impl IntoIterator<Item = &'n str>) -> BTreeSet<&'static str> {
    let class = |attribute: &str| {
        let name = attribute.to_ascii_lowercase();
        let found = OWN_CLASSES.iter().find(|(start, _)| name.starts_with(start));
        found.map(|(_, class)| *class)
    };
    attributes.into_iter().filter_map(class).collect()
}

/// The classes that an entry lacks, and needs for what these changes set.
fn lacking_classes(entry: &Entry, mods: &[(ValueOp, String, Vec<String>)]) -> Option<(ValueOp, String, Vec<String>)> {
    let sets = mods
        .iter()
        .filter(|(way, _, values)| *way != ValueOp::Delete && !values.is_empty());
    let classes = entry.values("objectClass");
    let has = |class: &&str| classes.iter().any(|known| known.eq_ignore_ascii_case(class));
    let needed = own_classes(sets.map(|(_, name, _)| name.as_str()));
    let lacks: Vec<String> = needed
        .into_iter()
        .filter(|class| !has(class))
        .map(str::to_owned)
        .collect();
    (!lacks.is_empty()).then(|| (ValueOp::Add, "objectClass".to_owned(), lacks))
}

/// Why a write was not taken.
enum Refusal {
    /// Another server may take it.
    Elsewhere(String),
    /// The values have changed since they were read.
    Raced(EditError),
    /// No server will take it.
    Final(EditError),
}

impl From<Refusal> for EditError {
    fn from(refusal: Refusal) -> Self {
        match refusal {
            Refusal::Elsewhere(why) => Self::Failed(format!("no server takes the change; the last one said: {why}")),
            Refusal::Raced(error) | Refusal::Final(error) => error,
        }
    }
}

async fn perform(mut ldap: ldap3::Ldap, write: Write) -> Result<LdapResult, ldap3::LdapError> {
    let set = |values: Vec<String>| values.into_iter().collect::<HashSet<String>>();
    match write {
        Write::Modify(dn, mods) => {
            let mods = mods.into_iter().map(|(way, name, values)| match way {
                ValueOp::Add => Mod::Add(name, set(values)),
                ValueOp::Delete => Mod::Delete(name, set(values)),
                ValueOp::Replace => Mod::Replace(name, set(values)),
            });
            ldap.modify(&dn, mods.collect()).await
        }
        Write::Add(dn, attributes) => {
            let attributes = attributes.into_iter().map(|(name, values)| (name, set(values)));
            ldap.add(&dn, attributes.collect()).await
        }
        Write::Delete(dn) => ldap.delete(&dn).await,
    }
}

fn check_result(url: &Url, result: &LdapResult) -> Result<(), Refusal> {
    let words = match result.text.is_empty() {
        true => result.to_string(),
        false => result.text.clone(),
    };
    let error = match result.rc {
        code::SUCCESS => return Ok(()),
        code::REFERRAL => {
            let master = result.refs.first().map_or("another server", String::as_str);
            return Err(Refusal::Elsewhere(format!(
                "{url} is a replica and sends us to {master}; name that one in urls"
            )));
        }
        code::BUSY | code::UNAVAILABLE | code::UNWILLING_TO_PERFORM => {
            return Err(Refusal::Elsewhere(format!("{url}: {words}")));
        }
        code::NO_SUCH_ATTRIBUTE | code::ATTRIBUTE_OR_VALUE_EXISTS => {
            return Err(Refusal::Raced(EditError::Value(words)));
        }
        code::UNDEFINED_ATTRIBUTE_TYPE | code::OBJECT_CLASS_VIOLATION => EditError::Name(words),
        code::CONSTRAINT_VIOLATION | code::INVALID_ATTRIBUTE_SYNTAX => EditError::Value(words),
        code::NO_SUCH_OBJECT => EditError::Failed(format!("{url}: the place of the entry is gone")),
        code::NOT_ALLOWED_ON_NON_LEAF => EditError::InUse(words),
        code::ENTRY_ALREADY_EXISTS => EditError::Exists(EntryKind::Config, String::new()),
        code::INSUFFICIENT_ACCESS_RIGHTS => EditError::Denied(format!("{url}: {words}")),
        _ => EditError::Failed(format!("{url}: {words}")),
    };
    Err(Refusal::Final(error))
}

/// The modifications to send to the server; values that are already there or already gone are left out.
fn mods(before: &Entry, changes: &[Change]) -> Vec<(ValueOp, String, Vec<String>)> {
    let mut mods: Vec<(ValueOp, String, Vec<String>)> = Vec::new();
    let mut now = before.clone();
    for change in changes {
        let next = changed(&now, std::slice::from_ref(change));
        let (old, new) = (now.values(&change.attribute), next.values(&change.attribute));
        let less =
            |a: &[String], b: &[String]| -> Vec<String> { a.iter().filter(|v| !b.contains(v)).cloned().collect() };
        let (way, values) = match &change.act {
            _ if old == new => continue,
            Act::Replace(_) => (ValueOp::Replace, new.to_vec()),
            Act::Add(_) => (ValueOp::Add, less(new, old)),
            Act::Remove(_) => (ValueOp::Delete, less(old, new)),
        };
        mods.push((way, spelled(&change.attribute), values));
        now = next;
    }
    mods
}

fn spelled(name: &str) -> String {
    attributes::find(name).map_or(name, |known| known.name).to_owned()
}

fn domain_dn(labels: &[&str]) -> String {
    let parts: Vec<String> = labels.iter().map(|label| format!("dc={}", dn_escape(*label))).collect();
    parts.join(",")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_differs_is_told() {
        let mut entry = Entry::new("a.test");
        entry.set("zimbraVirtualHostname", ["m.a.test", "n.a.test"]);
        let change = |act| Change {
            attribute: "zimbravirtualhostname".to_owned(),
            act,
        };
        let told = |acts: Vec<Act>| -> Vec<(&'static str, Vec<String>)> {
            let changes: Vec<Change> = acts.into_iter().map(change).collect();
            let mods = mods(&entry, &changes).into_iter();
            let sign = |way| match way {
                ValueOp::Add => "+",
                ValueOp::Delete => "-",
                ValueOp::Replace => "=",
            };
            mods.map(|(way, name, values)| {
                assert_eq!(name, "zimbraVirtualHostname");
                (sign(way), values)
            })
            .collect()
        };
        let text = |value: &str| value.to_owned();
        assert_eq!(told(vec![Act::Add(text("M.a.test")), Act::Remove(text("x"))]), []);
        assert_eq!(
            told(vec![Act::Add(text("o")), Act::Remove(text("N.A.test"))]),
            [("+", vec![text("o")]), ("-", vec![text("n.a.test")])]
        );
        assert_eq!(told(vec![Act::Replace(vec![])]), [("=", vec![])]);
        assert_eq!(
            told(vec![Act::Replace(entry.values("zimbraVirtualHostname").to_vec())]),
            []
        );
    }

    #[test]
    fn nobody_can_leave_his_place_in_the_tree() {
        assert_eq!(domain_dn(&["a,dc=b", "test"]), "dc=a\\2cdc\\3db,dc=test");
    }
}
