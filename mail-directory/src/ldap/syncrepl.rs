//! The consumer of a content synchronization (RFC 4533, `refreshAndPersist`): it reads what the server tells, puts it
//! in order, and says why it ended.
//!
//! It asks for changes from now on and leaves what was before to a look at the directory, so the server need not list
//! the accounts. It never waits for those who take the changes over: what they have not taken is put together, and
//! has bounds. docs/adr/0019 has the reasons.

use std::collections::BTreeMap;
use std::time::Duration;

use parking_lot::Mutex;
use tokio::sync::Notify;
use tokio::time::{Instant, timeout, timeout_at};

use super::open::Opener;
use super::search_entry::{ENTRY_CSN, NAMES_AND_VERSION, SearchEntry};
use super::sync_message::{
    EntryState, Incoming, InfoKind, Outcome, SYNC_REQUEST, Said, StateOfEntry, SyncInfo, synchronize,
};
use super::sync_point::{CONTEXT_CSN, SyncPoint};
use super::sync_wire::{SyncEnd, SyncWire};
use super::{Url, dn};
use crate::attributes;
use crate::directory::{Announcer, Touched};
use crate::edit::EntryKind;
use crate::names;

/// How often the server is asked whether it is still there, and how far it has come, in timeouts.
const PROBE: u32 = 3;
/// Entries that the server may list before it tells changes. It has to list them where something changed in the
/// moment between two questions, and it has forgotten what; then the next attempt is cheaper than this one.
const MAX_LISTED: usize = 10_000;
/// The time for that, in timeouts.
const REFRESH: u32 = 2;
/// Accounts that are announced at once.
const AT_ONCE: usize = 1000;
/// Entries of the system that wait to be read. With more of them all are looked at.
const MAX_WAITING: usize = 64;

/// Numbers of our requests.
const ROOT: u32 = 3;
const SYNC: u32 = 4;
const FIRST_PROBE: u32 = 5;

/// `e-syncRefreshRequired` (RFC 4533 §2.7), and what OpenLDAP says to a cookie that is ahead of it.
const REFRESH_REQUIRED: u32 = 4096;
const UNWILLING: u32 = 53;

/// The classes of the entries that count here.
const CLASSES: [(&str, EntryKind); 5] = [
    ("zimbraGlobalConfig", EntryKind::Config),
    ("zimbraServer", EntryKind::Servers),
    ("zimbraDomain", EntryKind::Domains),
    ("zimbraCOS", EntryKind::Cos),
    ("zimbraAccount", EntryKind::Accounts),
];

/// What was told and not yet taken over.
#[derive(Debug, Default)]
pub(super) struct Told {
    /// Changes are told from now on.
    pub(super) began: bool,
    /// Entries of the system that changed, by their place; `None`: too many.
    pub(super) entries: Waiting,
    /// Accounts may be gone that were not named.
    pub(super) may_be_gone: bool,
    /// All changes up to here were told.
    pub(super) point: Option<SyncPoint>,
    /// How far the server says that it has come.
    pub(super) server: Option<SyncPoint>,
}

/// Entries of the system that changed.
#[derive(Debug)]
pub(super) enum Waiting {
    /// These, by their place.
    Some(BTreeMap<String, ToldEntry>),
    /// Too many to name.
    Many,
}

impl Default for Waiting {
    fn default() -> Self {
        Self::Some(BTreeMap::new())
    }
}

/// An entry of the system that changed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct ToldEntry {
    /// What it is; a server does not say that of one that is gone.
    pub(super) kind: Option<EntryKind>,
    /// Its `zimbraId`.
    pub(super) id: Option<String>,
    /// The version that was told; none: it is gone, or tells none.
    pub(super) csn: Option<String>,
}

impl Waiting {
    fn add(&mut self, place: String, entry: ToldEntry) {
        let Self::Some(entries) = self else { return };
        entries.insert(place, entry);
        if entries.len() > MAX_WAITING {
            *self = Self::Many;
        }
    }
}

/// Where the consumer puts what it was told.
#[derive(Default)]
pub(super) struct Inbox {
    told: Mutex<Told>,
    arrived: Notify,
}

impl Inbox {
    /// Waits until there is something, and takes all of it.
    pub(super) async fn take(&self) -> Told {
        self.arrived.notified().await;
        std::mem::take(&mut *self.told.lock())
    }

    fn put(&self, put: impl FnOnce(&mut Told)) {
        put(&mut self.told.lock());
        self.arrived.notify_one();
    }
}

/// Follows this server until that ends. Accounts are announced at once, the rest goes into the inbox.
pub(super) async fn consume(opener: &Opener, url: &Url, announcer: &Announcer, inbox: &Inbox) -> SyncEnd {
    let begun = async {
        let mut wire = opener.connect(url).await?;
        let limit = opener.timeout();
        let asked = timeout(limit, ask(&mut wire)).await;
        let point = asked.unwrap_or(Err(SyncEnd::Late(limit)))?;
        Ok((wire, point))
    };
    let (wire, point) = match begun.await {
        Ok(begun) => begun,
        Err(end) => return end,
    };
    let now = Instant::now();
    let mut consumer = Consumer {
        wire,
        announcer,
        inbox,
        limit: opener.timeout(),
        stage: Stage::Refresh { since: now, listed: 0 },
        touched: Vec::new(),
        told: Told {
            point: Some(point),
            ..Told::default()
        },
        probe: FIRST_PROBE,
    };
    loop {
        if let Err(end) = consumer.step().await {
            return end;
        }
    }
}

/// Asks whether the server can do it and how far it is, and for all that comes after that.
async fn ask(wire: &mut SyncWire) -> Result<SyncPoint, SyncEnd> {
    let root = wire.entry(ROOT, "", &["supportedControl", CONTEXT_CSN]).await?;
    if !root
        .values("supportedControl")
        .iter()
        .any(|control| control == SYNC_REQUEST)
    {
        return Err(SyncEnd::NotOffered);
    }
    let point = SyncPoint::of_context(root.values(CONTEXT_CSN)).ok_or(SyncEnd::NoPoint)?;
    let cookie = point.cookie().ok_or(SyncEnd::NoPoint)?;
    let classes = CLASSES.map(|(class, _)| class);
    // Entries of the system are then read as ever.
    let wanted = [&["objectClass"][..], &NAMES_AND_VERSION].concat();
    wire.send(&synchronize(SYNC, &classes, &wanted, &cookie)).await?;
    Ok(point)
}

struct Consumer<'a> {
    wire: SyncWire,
    announcer: &'a Announcer,
    inbox: &'a Inbox,
    limit: Duration,
    stage: Stage,
    /// Accounts that changed and are not announced yet.
    touched: Vec<Touched>,
    /// The same for the rest.
    told: Told,
    /// Number of the next probe.
    probe: u32,
}

#[derive(Debug, Clone, Copy)]
enum Stage {
    /// The server tells what happened before it knew of us.
    Refresh { since: Instant, listed: usize },
    /// It tells what happens.
    Persist {
        next_probe: Instant,
        awaited: Option<Instant>,
    },
}

impl Consumer<'_> {
    /// One message, or a probe where there is none for long.
    async fn step(&mut self) -> Result<(), SyncEnd> {
        let due = self.due();
        match timeout_at(due, self.wire.next()).await {
            // Messages do not extend the time of the refresh.
            Ok(_) if self.is_refreshing() && Instant::now() >= due => return Err(SyncEnd::Late(self.limit)),
            Ok(message) => self.hear(message?)?,
            Err(_) => self.be_late().await?,
        }
        if !self.wire.has_next() || self.touched.len() >= AT_ONCE {
            self.hand_over();
        }
        Ok(())
    }

    fn is_refreshing(&self) -> bool {
        matches!(self.stage, Stage::Refresh { .. })
    }

    /// When something has to be done if no message comes.
    fn due(&self) -> Instant {
        match self.stage {
            Stage::Refresh { since, .. } => since + self.limit * REFRESH,
            Stage::Persist { next_probe, awaited } => awaited.map_or(next_probe, |sent| sent + self.limit),
        }
    }

    async fn be_late(&mut self) -> Result<(), SyncEnd> {
        let Stage::Persist { awaited: None, .. } = self.stage else {
            return Err(SyncEnd::Late(self.limit));
        };
        let probe = super::sync_message::look(self.probe, "", &[CONTEXT_CSN]);
        let sent = timeout(self.limit, self.wire.send(&probe)).await;
        sent.unwrap_or(Err(SyncEnd::Late(self.limit)))?;
        let now = Instant::now();
        self.stage = Stage::Persist {
            next_probe: now + self.limit * PROBE,
            awaited: Some(now),
        };
        Ok(())
    }

    fn hear(&mut self, message: Incoming) -> Result<(), SyncEnd> {
        let Incoming { id, what } = message;
        match (id, what) {
            (SYNC, Said::Entry(entry, Some(state))) => self.entry(&entry, state),
            (SYNC, Said::Info(info)) => self.info(info),
            (SYNC, Said::Done(outcome)) => Err(refusal(&outcome)),
            (0, Said::Done(outcome)) => Err(SyncEnd::Broken(outcome.to_string())),
            (id, Said::Entry(entry, None)) if id == self.probe => {
                self.told.server = SyncPoint::of_context(entry.values(CONTEXT_CSN));
                Ok(())
            }
            (id, Said::Done(outcome)) if id == self.probe => self.probed(&outcome),
            (_, Said::Nothing) => Ok(()),
            _ => Err(SyncEnd::Nonsense),
        }
    }

    fn probed(&mut self, outcome: &Outcome) -> Result<(), SyncEnd> {
        if outcome.code != 0 {
            return Err(SyncEnd::Refused(outcome.to_string()));
        }
        if let Stage::Persist { awaited, .. } = &mut self.stage {
            *awaited = None;
        }
        // Numbers are positive (RFC 4511 §4.1.1.1); in an eternity they begin again.
        self.probe = self
            .probe
            .checked_add(1)
            .filter(|next| *next < 1 << 31)
            .unwrap_or(FIRST_PROBE);
        self.announcer.was_read();
        Ok(())
    }

    fn entry(&mut self, entry: &SearchEntry, state: StateOfEntry) -> Result<(), SyncEnd> {
        if state.state == EntryState::Present || self.is_refreshing() {
            self.list(1)?;
        }
        if state.state != EntryState::Present {
            self.changed(entry, state.state);
        }
        self.reach(state.cookie.as_deref())
    }

    /// One that is gone is known by its place alone. The place of an account says its name, as Carbonio makes them;
    /// where that is not so, it is looked for.
    fn changed(&mut self, entry: &SearchEntry, state: EntryState) {
        self.announcer.count_told();
        let is_gone = state == EntryState::Delete;
        let kind = kind_of(entry);
        if kind == Some(EntryKind::Accounts) || is_gone {
            self.told.may_be_gone = true;
            self.touched.extend(touched(entry));
        }
        if kind != Some(EntryKind::Accounts) {
            let told = ToldEntry {
                kind,
                id: entry.first(attributes::ID.name).map(str::to_owned),
                csn: entry.first(ENTRY_CSN).filter(|_| !is_gone).map(str::to_owned),
            };
            self.told.entries.add(entry.dn.clone(), told);
        }
    }

    fn info(&mut self, info: SyncInfo) -> Result<(), SyncEnd> {
        match info.kind {
            InfoKind::Cookie => {}
            InfoKind::Entries { count, .. } => self.list(count)?,
            InfoKind::Phase { is_last, .. } => {
                if is_last {
                    self.persist();
                }
            }
        }
        self.reach(info.cookie.as_deref())
    }

    /// The server names entries only to say which are still there: what it does not name is gone.
    fn list(&mut self, count: usize) -> Result<(), SyncEnd> {
        self.told.may_be_gone = true;
        if let Stage::Refresh { listed, .. } = &mut self.stage {
            *listed += count;
            if *listed > MAX_LISTED {
                return Err(SyncEnd::Long(MAX_LISTED));
            }
        }
        Ok(())
    }

    fn persist(&mut self) {
        if self.is_refreshing() {
            self.told.began = true;
            self.stage = Stage::Persist {
                next_probe: Instant::now() + self.limit * PROBE,
                awaited: None,
            };
        }
    }

    fn reach(&mut self, cookie: Option<&[u8]>) -> Result<(), SyncEnd> {
        let Some(cookie) = cookie else { return Ok(()) };
        let cookie = std::str::from_utf8(cookie).map_err(|_| SyncEnd::Nonsense)?;
        // One without a point says nothing.
        let Some(reached) = SyncPoint::of_cookie(cookie) else {
            return Ok(());
        };
        let point = self.told.point.take();
        self.told.point = Some(point.map_or(reached.clone(), |point| point.and(reached)));
        Ok(())
    }

    /// Announces accounts, then puts the rest in the inbox: the point is never ahead of what was announced. Before
    /// the server tells changes, everything waits for the look that comes then.
    fn hand_over(&mut self) {
        self.announcer.announce_touched(std::mem::take(&mut self.touched));
        if self.is_refreshing() {
            return;
        }
        let told = std::mem::take(&mut self.told);
        if told.is_nothing() {
            return;
        }
        self.inbox.put(|waiting| waiting.add(told));
    }
}

impl Told {
    fn is_nothing(&self) -> bool {
        let no_entries = matches!(&self.entries, Waiting::Some(entries) if entries.is_empty());
        no_entries && !self.began && !self.may_be_gone && self.point.is_none() && self.server.is_none()
    }

    fn add(&mut self, more: Self) {
        self.began |= more.began;
        self.may_be_gone |= more.may_be_gone;
        self.server = more.server.or(self.server.take());
        self.point = match (self.point.take(), more.point) {
            (Some(one), Some(other)) => Some(one.and(other)),
            (one, other) => one.or(other),
        };
        match more.entries {
            Waiting::Many => self.entries = Waiting::Many,
            Waiting::Some(entries) => entries
                .into_iter()
                .for_each(|(place, entry)| self.entries.add(place, entry)),
        }
    }
}

fn refusal(outcome: &Outcome) -> SyncEnd {
    match outcome.code {
        REFRESH_REQUIRED | UNWILLING => SyncEnd::Cookie(outcome.to_string()),
        _ => SyncEnd::Refused(outcome.to_string()),
    }
}

fn kind_of(entry: &SearchEntry) -> Option<EntryKind> {
    let classes = entry.values("objectClass");
    let is = |class: &str| classes.iter().any(|own| own.eq_ignore_ascii_case(class));
    CLASSES.iter().find(|(class, _)| is(class)).map(|(_, kind)| *kind)
}

/// All names of an account, and the one that its place says; nothing for what is no place of an account.
fn touched(entry: &SearchEntry) -> Option<Touched> {
    let mut touched = match entry.first(attributes::MAIL_DELIVERY_ADDRESS.name) {
        Some(_) => Touched::of(&entry.clone().into_entry(EntryKind::Accounts)),
        None => Touched::default(),
    };
    if let Some(address) = dn::address(&entry.dn) {
        let name = names::account(&address);
        if !touched.names.contains(&name) {
            touched.names.push(name);
        }
    }
    (touched != Touched::default()).then_some(touched)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(dn: &str, attributes: &[(&str, &str)]) -> SearchEntry {
        let one = |(name, value): &(&str, &str)| ((*name).to_owned(), vec![(*value).to_owned()]);
        SearchEntry::new(dn.to_owned(), attributes.iter().map(one).collect())
    }

    #[test]
    fn an_account_is_known_by_its_names_and_by_its_place() {
        let alice = entry(
            "uid=alice,ou=people,dc=a,dc=test",
            &[
                ("objectClass", "zimbraAccount"),
                ("zimbraMailDeliveryAddress", "Al@a.test"),
                ("zimbraId", "ID-1"),
            ],
        );
        assert_eq!(kind_of(&alice), Some(EntryKind::Accounts));
        let names = touched(&alice).unwrap();
        assert!(
            ["al@a.test", "alice@a.test"]
                .iter()
                .all(|name| names.names.contains(&(*name).to_owned()))
        );
        assert_eq!(names.ids, ["id-1"]);
        let gone = entry("uid=alice,ou=people,dc=a,dc=test", &[]);
        assert_eq!(touched(&gone).unwrap().names, ["alice@a.test"]);
        assert_eq!(kind_of(&gone), None);
        assert_eq!(touched(&entry("cn=store1,cn=servers,cn=zimbra", &[])), None);
    }

    #[test]
    fn too_many_entries_are_all() {
        let one = ToldEntry {
            kind: Some(EntryKind::Domains),
            id: None,
            csn: None,
        };
        let mut waiting = Waiting::default();
        for i in 0..MAX_WAITING {
            waiting.add(format!("dc={i}"), one.clone());
            waiting.add(format!("dc={i}"), one.clone());
        }
        assert!(matches!(&waiting, Waiting::Some(entries) if entries.len() == MAX_WAITING));
        waiting.add("dc=more".to_owned(), one);
        assert!(matches!(waiting, Waiting::Many));
    }

    #[test]
    fn refusals_of_a_cookie_are_told_from_others() {
        let outcome = |code| Outcome {
            code,
            text: "why".to_owned(),
        };
        assert_eq!(refusal(&outcome(4096)), SyncEnd::Cookie("result 4096, why".to_owned()));
        assert_eq!(refusal(&outcome(50)), SyncEnd::Refused("result 50, why".to_owned()));
    }
}
