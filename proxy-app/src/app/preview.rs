//! What a change of the directory would do on this node, before it is made: the entries in memory are changed in a
//! copy, what would run is built from it as for a real change, and both are compared.
//!
//! Nothing is put in force and nothing is written. A change of an account looks at that account; other changes compare
//! the routes in memory.

use std::collections::{BTreeMap, HashSet};
use std::sync::Arc;

use mail_directory::edit::rehearsal::TriedEntry;
use mail_directory::edit::{Act, Change, EntryKind, changed};
use mail_directory::{AccountBy, Entry, System, View, attributes as a, names};
use mail_proxy::{LoggedIn, Proto};
use route_cache::{Destinations, RouteComparison, Service};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::app::App;
use crate::app::doors::{self, ListenerChange};
use crate::node::connections::Session;
use crate::provision::is_secret;
use crate::tls::certificate_diff::{self, NameChanges};

mod sentences;

/// A change of one entry that is not made yet.
#[derive(Clone, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct EntryProposal {
    /// `config`, `server`, `domain`, `cos`, `account`
    pub kind: ProposedKind,
    /// Its name; `config` for the global config.
    pub name: String,
    /// The entry is deleted.
    #[serde(default)]
    pub delete: bool,
    /// Attributes with all their values after the change; none unsets an attribute. What is not named stays.
    #[serde(default)]
    pub attributes: BTreeMap<String, Vec<String>>,
}

/// Kinds of entries, by the words of `portico prov`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub(crate) enum ProposedKind {
    Config,
    Server,
    Domain,
    Cos,
    Account,
}

/// What a change would do on this node.
#[derive(Debug, Default, Serialize, Deserialize, ToSchema)]
pub(crate) struct Preview {
    /// Name of the node.
    pub node: String,
    /// Number of the configuration in force, with which it was compared.
    pub generation: u64,
    /// Why this node would not take the change over: it would go on with what is in force.
    pub refused: Vec<String>,
    /// Warnings that there are not yet.
    pub warnings: Vec<String>,
    /// Names of which TLS clients get another certificate.
    pub names: NameChanges,
    /// Accounts that would be sent elsewhere.
    pub accounts: AccountChanges,
    /// Sessions of these accounts.
    pub sessions: SessionChanges,
    /// Listeners that would open, close or change.
    pub listeners: Vec<ListenerChange>,
    /// What else is to be known.
    pub notes: Vec<String>,
    /// All of this in sentences.
    pub summary: Vec<String>,
}

/// Accounts that would be sent elsewhere.
#[derive(Debug, Default, Serialize, Deserialize, ToSchema)]
pub(crate) struct AccountChanges {
    /// How many were compared: those in memory, or those that are changed themselves.
    pub compared: u64,
    /// How many would be sent elsewhere.
    pub count: u64,
    /// The first of them.
    pub first: Vec<AccountChange>,
}

/// An account that would be sent elsewhere.
#[derive(Debug, Serialize, Deserialize, ToSchema)]
pub(crate) struct AccountChange {
    /// Its name.
    pub account: String,
    /// `imap`, `pop3`, `web`: the services that would be found elsewhere.
    pub services: Vec<String>,
    /// The server now.
    pub from: String,
    /// The server then, or why there would be none.
    pub to: String,
    /// Whether its route is in memory: it has been used lately.
    pub in_memory: bool,
}

/// Sessions of accounts that would be sent elsewhere.
#[derive(Debug, Default, Serialize, Deserialize, ToSchema)]
pub(crate) struct SessionChanges {
    /// How many would be ended.
    pub ended: u64,
    /// Over how many seconds; absent: this node ends none (`mail.end_moved`).
    pub within_s: Option<u64>,
    /// How many would go on where they are, although their next login goes elsewhere or is refused.
    pub stay: u64,
    /// The first of them.
    pub first: Vec<SessionChange>,
}

/// A session of such an account.
#[derive(Debug, Serialize, Deserialize, ToSchema)]
pub(crate) struct SessionChange {
    /// Id of the connection.
    pub id: String,
    /// `imap`, `pop3`, `http`
    pub protocol: String,
    /// The account.
    pub account: String,
    /// The server that it is on.
    pub server: String,
    /// Whether it would be ended.
    pub ended: bool,
}

/// What is known of the accounts that are changed themselves.
#[derive(Default)]
struct OwnChanges {
    accounts: AccountChanges,
    /// Where each would be.
    after: BTreeMap<String, Destinations>,
    /// Those whose status forbids logins, or which would be gone.
    closed: HashSet<String>,
    notes: Vec<String>,
}

impl From<EntryKind> for ProposedKind {
    fn from(kind: EntryKind) -> Self {
        match kind {
            EntryKind::Config => Self::Config,
            EntryKind::Servers => Self::Server,
            EntryKind::Domains => Self::Domain,
            EntryKind::Cos => Self::Cos,
            EntryKind::Accounts => Self::Account,
        }
    }
}

impl From<ProposedKind> for EntryKind {
    fn from(kind: ProposedKind) -> Self {
        match kind {
            ProposedKind::Config => Self::Config,
            ProposedKind::Server => Self::Servers,
            ProposedKind::Domain => Self::Domains,
            ProposedKind::Cos => Self::Cos,
            ProposedKind::Account => Self::Accounts,
        }
    }
}

impl EntryProposal {
    /// What was tried. Secrets that no node needs are left out; a private key has to be judged with its certificate.
    pub(crate) fn of(tried: &TriedEntry) -> Self {
        let none = Entry::new(tried.name.as_str());
        let before = tried.before.as_ref().unwrap_or(&none);
        let after = tried.after.as_ref().unwrap_or(&none);
        let all = before.iter().chain(after.iter()).map(|(name, _)| name);
        let differ = all.filter(|name| before.values(name) != after.values(name));
        // What was named may be known to the node as it was before.
        let said = differ.chain(tried.named.iter().map(String::as_str));
        let needed = said.filter(|name| name.eq_ignore_ascii_case(a::SSL_PRIVATE_KEY.name) || !is_secret(name));
        Self {
            kind: tried.kind.into(),
            name: tried.after.as_ref().unwrap_or(before).name().to_owned(),
            delete: tried.after.is_none(),
            attributes: match tried.after {
                None => BTreeMap::new(),
                Some(_) => needed
                    .map(|name| (name.to_owned(), after.values(name).to_vec()))
                    .collect(),
            },
        }
    }

    /// The entry after the change; `None`: it is gone.
    fn after(&self, before: Option<&Entry>) -> Option<Entry> {
        let change = |(name, values): (&String, &Vec<String>)| Change {
            attribute: name.clone(),
            act: Act::Replace(values.clone()),
        };
        let changes: Vec<Change> = self.attributes.iter().map(change).collect();
        let new = Entry::new(self.name.as_str());
        (!self.delete).then(|| changed(before.unwrap_or(&new), &changes))
    }

    fn is_account(&self) -> bool {
        self.kind == ProposedKind::Account
    }
}

/// The entry that a change of everything but the accounts is about.
fn entry_of<'s>(system: &'s System, proposal: &EntryProposal) -> Option<&'s Entry> {
    let name = proposal.name.as_str();
    let of = |view: Option<View<'s>>| view.and_then(|view| view.entry());
    match proposal.kind {
        ProposedKind::Config => of(Some(system.global())),
        ProposedKind::Server => of(system.server(name)),
        ProposedKind::Domain => of(system.domain(name)),
        ProposedKind::Cos => system.class(name),
        ProposedKind::Account => None,
    }
}

impl App {
    /// What these changes would do here; at most `most` of each kind are named.
    pub(crate) async fn preview(self: &Arc<Self>, proposals: Vec<EntryProposal>, most: usize) -> Preview {
        let before = self.snapshot.load().system.clone();
        let (accounts, others): (Vec<_>, Vec<_>) = proposals.into_iter().partition(EntryProposal::is_account);
        let changes = others.iter().map(|proposal| {
            let after = proposal.after(entry_of(&before, proposal));
            (proposal.kind.into(), proposal.name.clone(), after)
        });
        let after = match others.is_empty() {
            true => before.clone(),
            false => Arc::new(before.with(changes)),
        };
        let own = self.own_changes(&accounts, &before, &after, most).await;
        let mut notes = self.notes_on(&others);
        notes.extend(own.notes.iter().cloned());
        self.off_the_runtime(move |app| {
            let mut preview = app.compare(&before, &after, own, most);
            preview.notes.extend(notes);
            preview.summary = preview.sentences();
            preview
        })
        .await
    }

    /// The accounts that are changed themselves: each costs one question to the directory.
    async fn own_changes(
        &self,
        proposals: &[EntryProposal],
        before: &System,
        after: &System,
        most: usize,
    ) -> OwnChanges {
        let mut own = OwnChanges::default();
        if !proposals.is_empty() && !self.routes.asks_directory() {
            let note = "lookup services say where accounts are: what the directory says of them changes no route";
            own.notes.push(note.to_owned());
            return own;
        }
        for proposal in proposals {
            let name = AccountBy::Name(names::account(&proposal.name));
            match self.directory.account(&name).await {
                Ok(entry) => self.own_change(&mut own, proposal, entry.as_deref(), (before, after), most),
                Err(error) => own.notes.push(format!("{}: {error}", proposal.name)),
            }
        }
        own
    }

    fn own_change(
        &self,
        own: &mut OwnChanges,
        proposal: &EntryProposal,
        entry: Option<&Entry>,
        (before, after): (&System, &System),
        most: usize,
    ) {
        let then = proposal.after(entry);
        let address = then
            .as_ref()
            .or(entry)
            .and_then(|entry| entry.first(a::MAIL_DELIVERY_ADDRESS.name));
        let account = names::account(address.unwrap_or(&proposal.name));
        let by_entry = |entry: Option<&Entry>, system: &System| match entry {
            Some(entry) => self.routes.destinations_by_entry(entry, system),
            None => Destinations::of_nobody(),
        };
        let kept = self.routes.destinations(&account, before);
        let in_memory = kept.is_some();
        let from = kept.unwrap_or_else(|| by_entry(entry, before));
        let to = by_entry(then.as_ref(), after);
        own.accounts.compared += 1;
        if let Some(moved) = from.move_to(&to, &account) {
            own.accounts.count += 1;
            if own.accounts.first.len() < most {
                own.accounts.first.push(AccountChange::of(moved, in_memory));
            }
        }
        own.note_status(&account, (entry, before), (then.as_ref(), after), most);
        own.after.insert(account, to);
    }

    /// What is known of changes that act on accounts only when these are looked up again.
    fn notes_on(&self, others: &[EntryProposal]) -> Vec<String> {
        let is_cos = others.iter().any(|proposal| proposal.kind == ProposedKind::Cos);
        let ttl = self.config.load().route_cache.ttl;
        let note = || {
            format!(
                "a class of service acts on an account when its route is looked up again, after {} s at most",
                ttl.as_secs()
            )
        };
        is_cos.then(note).into_iter().collect()
    }

    /// Builds what would run, and compares it with what does. Blocks.
    fn compare(&self, before: &Arc<System>, after: &Arc<System>, own: OwnChanges, most: usize) -> Preview {
        let (config, snapshot) = (self.config.load_full(), self.snapshot.load_full());
        let mut preview = Preview {
            node: config.node.clone(),
            generation: snapshot.generation,
            ..Preview::default()
        };
        let mut routes = RouteComparison::default();
        if !Arc::ptr_eq(before, after) {
            match self.would_run(&config, after, &snapshot) {
                Err(problems) => preview.refused = few(problems.iter().map(ToString::to_string), most),
                Ok(would) => {
                    let known = self.reported.lock().clone();
                    let warnings = would.warnings.iter().map(ToString::to_string);
                    preview.warnings = few(warnings.filter(|warning| !known.contains(warning)), most);
                    preview.names = certificate_diff::names(&self.certificates.load(), &would.certificates, most);
                    let now = doors::doors(&self.listeners.current().listeners, &snapshot);
                    preview.listeners = doors::changes(&now, &doors::doors(&would.listeners, &would.snapshot));
                }
            }
            routes = self.routes.compare(before, after, most);
        }
        if preview.refused.is_empty() {
            if routes.read_anew {
                let note = "all routes in memory are forgotten: accounts are read by other attributes then";
                preview.notes.push(note.to_owned());
            }
            preview.sessions = self.sessions_of(&own, &routes, (before, after), most);
            preview.accounts = joined(own, routes, most);
        }
        preview
    }

    /// Sessions whose accounts would be sent elsewhere or closed. They are ended only where the directory tells that
    /// the account itself has changed ([`crate::app::moved`]).
    fn sessions_of(
        &self,
        own: &OwnChanges,
        routes: &RouteComparison,
        (before, after): (&System, &System),
        most: usize,
    ) -> SessionChanges {
        let end_moved = self.config.load().mail.end_moved;
        let mut changes = SessionChanges {
            within_s: end_moved.map(|over| over.as_secs()),
            ..SessionChanges::default()
        };
        let names: HashSet<String> = own.after.keys().cloned().collect();
        // Of other accounts only where one of them is sent elsewhere.
        let meant = match routes.moved {
            0 => self.sessions.logged_in(Some(&names)),
            _ => self.sessions.logged_in(None),
        };
        let moves_by_others = |login: &LoggedIn| {
            let now = self.routes.destinations(&login.account, before);
            let then = self.routes.destinations(&login.account, after);
            now.zip(then)
                .is_some_and(|(now, then)| now.move_to(&then, &login.account).is_some())
        };
        for session in meant {
            let Some(service) = service(session.facts.proto) else {
                continue;
            };
            let logins = session.facts.handle.logins();
            let ended =
                end_moved.is_some() && !logins.is_empty() && logins.iter().all(|login| own.ends(login, service));
            let is_meant = |login: &LoggedIn| match own.after.contains_key(&login.account) {
                true => own.ends(login, service) || own.closed.contains(&login.account),
                false => routes.moved > 0 && moves_by_others(login),
            };
            let Some(login) = logins.iter().find(|login| is_meant(login)) else {
                continue;
            };
            changes.add(&session, login, ended, most);
        }
        changes
    }
}

impl OwnChanges {
    /// Whether a session of this login would be ended.
    fn ends(&self, login: &LoggedIn, service: Service) -> bool {
        let server = self.after.get(&login.account).and_then(|after| after.server(service));
        server.is_some_and(|server| !login.server.is_empty() && !server.eq_ignore_ascii_case(&login.server))
    }

    /// Notes an account whose logins would be refused or wait, and are not now.
    fn note_status(
        &mut self,
        account: &str,
        (entry, before): (Option<&Entry>, &System),
        (then, after): (Option<&Entry>, &System),
        most: usize,
    ) {
        let status = |entry: Option<&Entry>, system: &System| {
            let choice = |entry| system.account(entry).choice(&a::ACCOUNT_STATUS).to_owned();
            entry.map_or_else(|| "deleted".to_owned(), choice)
        };
        let (now, then) = (status(entry, before), status(then, after));
        if now == then || then == "active" {
            return;
        }
        let note = match then.as_str() {
            "maintenance" => "in maintenance: its new logins wait, and are refused if that lasts",
            "deleted" => "deleted: its new logins are refused; its sessions stay until its server ends them",
            _ => "closed to logins: its server refuses new ones; its sessions stay until that server ends them",
        };
        if then != "maintenance" {
            self.closed.insert(account.to_owned());
        }
        if self.notes.len() < most {
            self.notes.push([account, note].join(" is "));
        }
    }
}

impl SessionChanges {
    fn add(&mut self, session: &Session, login: &LoggedIn, ended: bool, most: usize) {
        match ended {
            true => self.ended += 1,
            false => self.stay += 1,
        }
        if self.first.len() < most {
            self.first.push(SessionChange {
                id: session.facts.id.clone(),
                protocol: session.facts.proto.name().to_owned(),
                account: login.account.clone(),
                server: login.server.clone(),
                ended,
            });
        }
    }
}

impl AccountChange {
    fn of(moved: route_cache::AccountMove, in_memory: bool) -> Self {
        let word = |service: &Service| match service {
            Service::Imap => "imap",
            Service::Pop3 => "pop3",
            Service::Web | Service::Admin => "web",
        };
        Self {
            account: moved.account.to_string(),
            services: moved.services.iter().map(|service| word(service).to_owned()).collect(),
            from: moved.from,
            to: moved.to,
            in_memory,
        }
    }
}

/// Accounts that are changed themselves come first; the others are those in memory.
fn joined(own: OwnChanges, routes: RouteComparison, most: usize) -> AccountChanges {
    let OwnChanges {
        mut accounts, after, ..
    } = own;
    accounts.compared += routes.compared;
    accounts.count += routes.moved;
    let others = routes.first.into_iter();
    let others = others.filter(|moved| !after.contains_key(&*moved.account));
    accounts
        .first
        .extend(others.map(|moved| AccountChange::of(moved, true)));
    accounts.first.truncate(most);
    accounts
}

fn service(proto: Proto) -> Option<Service> {
    match proto {
        Proto::Imap => Some(Service::Imap),
        Proto::Pop3 => Some(Service::Pop3),
        Proto::Http => Some(Service::Web),
        Proto::Stream => None,
    }
}

/// The first of many texts, and how many more there are.
fn few(texts: impl Iterator<Item = String>, most: usize) -> Vec<String> {
    let mut few: Vec<String> = texts.collect();
    let more = few.len().saturating_sub(most);
    few.truncate(most);
    few.extend((more > 0).then(|| format!("and {more} more")));
    few
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(attributes: &[(&str, &str)]) -> Entry {
        let mut entry = Entry::new("a.test");
        attributes.iter().for_each(|(name, value)| entry.set(name, [*value]));
        entry
    }

    #[test]
    fn a_proposal_is_what_differs_without_needless_secrets() {
        let before = entry(&[("zimbraId", "1"), ("zimbraVirtualHostname", "a"), ("description", "x")]);
        let after = entry(&[
            ("zimbraId", "1"),
            ("zimbraVirtualHostname", "b"),
            ("zimbraSSLPrivateKey", "key"),
            ("userPassword", "hash"),
        ]);
        let tried = TriedEntry {
            kind: EntryKind::Domains,
            name: "a.test".to_owned(),
            before: Some(before.clone()),
            after: Some(after),
            named: ["zimbraId".to_owned()].into(),
        };
        let proposal = EntryProposal::of(&tried);
        let names: Vec<&str> = proposal.attributes.keys().map(String::as_str).collect();
        let expected = [
            "description",
            "zimbraId",
            "zimbraSSLPrivateKey",
            "zimbraVirtualHostname",
        ];
        assert_eq!(names, expected);
        let made = proposal.after(Some(&before)).unwrap();
        assert_eq!(made.values("zimbraVirtualHostname"), ["b"]);
        assert_eq!((made.first("description"), made.first("zimbraId")), (None, Some("1")));
        let gone = EntryProposal::of(&TriedEntry { after: None, ..tried });
        assert!(gone.delete && gone.attributes.is_empty() && gone.after(Some(&before)).is_none());
    }
}
