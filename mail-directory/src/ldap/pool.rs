//! Connections to the LDAP servers: some to the first server that works, opened when they are needed.
//!
//! Every wait has a deadline. A server that fails is left at once for the next one, and taken back when it answers
//! again. A connection that falls silent is no failed server: a firewall may forget all of them at once, without
//! notice. What is searched for is not known here.

use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use ldap3::controls::{ControlType, PagedResults};
use ldap3::{Ldap, LdapConnAsync, LdapConnSettings, LdapResult, ResultEntry, Scope, SearchOptions, StdStream};
use parking_lot::Mutex;
use tokio::sync::{OnceCell, Semaphore};
use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep_until, timeout_at};

use super::guard::guarded;
use super::open::Opener;
use super::search_entry::SearchEntry;
use super::{Settings, Url, place};
use crate::edit::EntryKind;
use crate::tls_words::reasons;

/// Connections to a server. One carries many questions at once, but the server reads it with one thread.
const CONNECTIONS: usize = 4;
/// Questions under way. slapd closes a connection on which 1000 wait (`conn_max_pending_auth`); the rest waits here.
const QUESTIONS: usize = CONNECTIONS * 100;
/// Entries in a page (RFC 2696): slapd's default `sizelimit` is 500.
const PAGE: i32 = 500;
/// Most entries of one search. A reading takes every domain; no site has half a million of them.
const MAX_FOUND: usize = 500_000;
/// Most pages: each may be half empty, and a server that never says that it was the last one comes to an end.
const MAX_PAGES: usize = 2 * MAX_FOUND / PAGE as usize;
/// Most bytes of one answer: 500 for each of the most entries.
const MAX_BYTES: usize = 256 * 1024 * 1024;
/// How long a failed server is left alone at first, and at most. The first is a restart of slapd, the second what an
/// administrator takes for "at once".
const BACK_OFF: (Duration, Duration) = (Duration::from_millis(250), Duration::from_secs(4));
/// How often to look whether the time of a failed server has come.
const RECOVER: Duration = Duration::from_millis(250);

/// Part of the timeout after which a connection on which nothing came since the question is doubted. The rest is
/// for a new one: connecting, TLS, the bind, and the answer.
const SILENCE: u32 = 3;

/// What the library calls a socket that it is given.
const INSIDE: &str = "ldapi://guard";

/// Result codes of RFC 4511 §4.1.9 that are answers.
const SUCCESS: u32 = 0;
const SIZE_LIMIT_EXCEEDED: u32 = 4;
const NO_SUCH_OBJECT: u32 = 32;

/// A search.
#[derive(Debug, Clone)]
pub(super) struct Search {
    /// Where to begin.
    pub(super) base: String,
    /// How far below.
    pub(super) scope: Scope,
    /// What to find.
    pub(super) filter: String,
    /// What to return.
    pub(super) attributes: Arc<[String]>,
    /// How much of it.
    pub(super) extent: Extent,
}

/// How much of what there is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Extent {
    /// At most so many.
    Few(i32),
    /// Everything, in pages.
    All,
}

impl Search {
    /// Whether it begins where every tree has something. A server that has nothing there says nothing about what is
    /// looked for.
    fn begins_at_a_root(&self) -> bool {
        self.scope != Scope::Base || self.base == place(EntryKind::Config).0
    }

    /// The smallest one that only a server with its tree at hand can answer: a bind or the root entry would be
    /// answered by one whose database hangs.
    fn probe() -> Self {
        Self {
            base: String::new(),
            scope: Scope::Subtree,
            filter: "(objectClass=zimbraGlobalConfig)".to_owned(),
            attributes: Arc::new(["1.1".to_owned()]),
            extent: Extent::Few(2),
        }
    }
}

/// The result of a search.
#[derive(Debug, Default)]
pub(super) struct Reply {
    /// The entries.
    pub(super) entries: Vec<SearchEntry>,
    /// Whether the base of the search exists.
    pub(super) has_base: bool,
}

/// Why there is no answer.
#[derive(Debug, Clone, thiserror::Error)]
pub(super) enum LdapError {
    /// The server cannot be reached, or refuses the bind.
    #[error("{0}")]
    Unreachable(String),
    /// The connection ended before the answer.
    #[error("the connection ended: {0}")]
    Broken(String),
    /// No answer in time.
    #[error("no answer within {0:?}")]
    Late(Duration),
    /// The server refuses the search.
    #[error("{0}")]
    Refused(String),
    /// There is more than is taken, or was asked for.
    #[error("more than was asked for, or than {MAX_FOUND} entries, {MAX_PAGES} pages or {MAX_BYTES} bytes")]
    TooMuch,
    /// A part of the tree is at another server (RFC 4511 §4.5.3), and what was looked for may be there.
    #[error("the answer leads to another server")]
    Elsewhere,
    /// No server may be tried now.
    #[error("no server answers; the last one said: {0}")]
    AllDown(String),
}

/// The servers in the order in which they are tried.
pub(super) struct Pool {
    servers: Vec<Server>,
    questions: Semaphore,
    timeout: Duration,
}

impl Pool {
    pub(super) fn new(settings: &Settings) -> Self {
        let opener = Arc::new(Opener::new(settings));
        let server = |url: &Url| Server::new(url.clone(), opener.clone());
        Self {
            servers: settings.urls.iter().map(server).collect(),
            questions: Semaphore::new(QUESTIONS),
            timeout: settings.timeout,
        }
    }

    /// Asks the first server that answers. Takes at most the timeout with each server that has to be tried, and with
    /// each page.
    pub(super) async fn search(&self, search: Search) -> Result<Reply, LdapError> {
        let waited = timeout_at(Instant::now() + self.timeout, self.questions.acquire()).await;
        let Ok(Ok(_permit)) = waited else {
            return Err(LdapError::Late(self.timeout));
        };
        let search = Arc::new(search);
        let (mut bare, mut last) = (None, None);
        for server in self.candidates() {
            match server.ask(&search, self.timeout).await {
                Ok(reply) if search.begins_at_a_root() && !reply.has_base => bare = Some(reply),
                Ok(reply) => {
                    self.close_others(server);
                    return Ok(reply);
                }
                Err(error) => last = Some(error),
            }
        }
        bare.ok_or_else(|| last.unwrap_or_else(|| LdapError::AllDown(self.last_words())))
    }

    /// Tries failed servers again when their time has come, until it is dropped.
    pub(super) async fn recover(&self) {
        loop {
            tokio::time::sleep(RECOVER).await;
            for server in self.servers.iter().filter(|server| server.is_due()) {
                server.probe(self.timeout).await;
            }
        }
    }

    /// The server that is asked next.
    pub(super) fn preferred(&self) -> Option<&Url> {
        self.candidates().next().map(|server| &server.url)
    }

    /// Closes all connections.
    pub(super) fn close(&self) {
        self.servers.iter().for_each(Server::close);
    }

    /// Servers that work in their order, then those that failed but may be tried again.
    fn candidates(&self) -> impl Iterator<Item = &Server> {
        let up = self.servers.iter().filter(|server| server.is_up());
        let due = self.servers.iter().filter(|server| server.is_due());
        let order: Vec<&Server> = up.chain(due).collect();
        order.into_iter()
    }

    /// Servers after the one that answers are not needed; their connections end with their last question.
    fn close_others(&self, used: &Server) {
        let behind = self.servers.iter().skip_while(|server| !std::ptr::eq(*server, used));
        behind.skip(1).for_each(Server::close);
    }

    fn last_words(&self) -> String {
        let words = self.servers.iter().filter_map(|server| server.last_words());
        words
            .last()
            .unwrap_or_else(|| "they are left alone for a moment".to_owned())
    }
}

/// An open connection, and the tasks that read and write it.
pub(super) struct Connection {
    ldap: Ldap,
    driver: JoinHandle<()>,
    guard: JoinHandle<()>,
    /// When the server said something last.
    heard: Mutex<Instant>,
}

impl Connection {
    /// Connects, does TLS, binds. The caller sets the time limit.
    ///
    /// # Errors
    ///
    /// Why there is no connection, in words without the server's name.
    pub(super) async fn open(opener: &Opener, url: &Url) -> Result<Self, String> {
        let stream = opener.open(url).await.map_err(|end| end.to_string())?;
        let (library, guard) = guarded(stream, url.to_string()).map_err(|error| error.to_string())?;
        let settings = LdapConnSettings::new().set_std_stream(StdStream::Unix(library));
        let words = |error: ldap3::LdapError| error.to_string();
        let (driver, ldap) = LdapConnAsync::with_settings(settings, INSIDE).await.map_err(words)?;
        let driver = tokio::spawn(async move {
            let _ = driver.drive().await;
        });
        let connection = Self {
            ldap,
            driver,
            guard,
            heard: Mutex::new(Instant::now()),
        };
        let (dn, password) = opener.login();
        let bound = connection.ldap().simple_bind(dn, password).await.map_err(words)?;
        bound.success().map_err(words)?;
        connection.hear();
        Ok(connection)
    }

    /// For one question of another kind.
    pub(super) fn ldap(&self) -> Ldap {
        self.ldap.clone()
    }

    /// True once the server has closed it.
    fn is_over(&self) -> bool {
        self.driver.is_finished()
    }

    fn hear(&self) {
        *self.heard.lock() = Instant::now();
    }

    fn was_heard(&self, since: Instant) -> bool {
        *self.heard.lock() >= since
    }

    /// Resolves when the server has said nothing for so long, counted from `since` on.
    async fn silent(&self, since: Instant, patience: Duration) {
        loop {
            let last = *self.heard.lock();
            let end = last.max(since) + patience;
            if end <= Instant::now() {
                return;
            }
            sleep_until(end).await;
        }
    }
}

/// The tasks may hang in a write to a server that reads no more.
impl Drop for Connection {
    fn drop(&mut self) {
        self.driver.abort();
        self.guard.abort();
    }
}

/// One server of the list.
struct Server {
    url: Url,
    opener: Arc<Opener>,
    slots: [Mutex<Arc<Slot>>; CONNECTIONS],
    /// For questions whose own connection is in doubt.
    spare: Mutex<Arc<Slot>>,
    next: AtomicUsize,
    health: Mutex<ServerHealth>,
}

/// A connection, or the place where the first question that needs it opens it for all that wait.
type Slot = OnceCell<Arc<Connection>>;

#[derive(Default)]
struct ServerHealth {
    /// Until when it is left alone, if it failed.
    down_until: Option<Instant>,
    failures: u32,
    said: Option<String>,
}

impl Server {
    fn new(url: Url, opener: Arc<Opener>) -> Self {
        Self {
            url,
            opener,
            slots: std::array::from_fn(|_| Mutex::default()),
            spare: Mutex::default(),
            next: AtomicUsize::new(0),
            health: Mutex::default(),
        }
    }

    /// Sends the question on one of the connections. The server may have closed that one long ago, or a firewall may
    /// have forgotten it; so an end or a silence counts only on a second connection.
    async fn ask(&self, search: &Arc<Search>, timeout: Duration) -> Result<Reply, LdapError> {
        let reply = self.ask_twice(search, timeout).await;
        match &reply {
            Err(error @ (LdapError::Broken(_) | LdapError::Late(_))) => self.failed(error),
            reply if is_answer(reply) => self.works(),
            _ => {}
        }
        reply
    }

    /// Asks a server that failed whether it answers again.
    async fn probe(&self, timeout: Duration) {
        match self.ask_twice(&Arc::new(Search::probe()), timeout).await {
            Ok(_) => self.returns(),
            // Counted where the connection was not opened.
            Err(LdapError::Unreachable(_) | LdapError::AllDown(_)) => {}
            Err(error) => self.failed(&error),
        }
    }

    async fn ask_twice(&self, search: &Arc<Search>, timeout: Duration) -> Result<Reply, LdapError> {
        let asked = Instant::now();
        let connection = self.connection(asked + timeout).await?;
        let mut first = pin!(converse(&connection, search, asked + timeout, timeout));
        let answered = tokio::select! {
            reply = &mut first => Some(reply),
            () = connection.silent(asked, timeout / SILENCE) => None,
        };
        let again = || self.ask_afresh(search, asked, timeout);
        match answered {
            Some(Err(LdapError::Broken(_))) => {
                self.discard(&connection);
                again().await
            }
            Some(reply) => reply,
            None => first_answer(first, again()).await,
        }
    }

    /// Asks on a connection on which the server was heard since then. When the answer comes, all connections that
    /// were silent meanwhile are dropped: they are most likely dead too.
    async fn ask_afresh(&self, search: &Arc<Search>, asked: Instant, timeout: Duration) -> Result<Reply, LdapError> {
        let rest = timeout - timeout / SILENCE;
        let deadline = (asked + timeout).max(Instant::now() + rest);
        let connection = self.heard_since(asked, deadline).await?;
        let reply = converse(&connection, search, deadline, timeout).await;
        if is_answer(&reply) {
            self.drop_silent(asked);
        }
        reply
    }

    /// A connection on which the server was heard since then; where there is none, the spare one, opened for all
    /// questions that need it now.
    async fn heard_since(&self, asked: Instant, deadline: Instant) -> Result<Arc<Connection>, LdapError> {
        let places = self.slots.iter().chain([&self.spare]);
        let mut open = places.filter_map(|place| place.lock().get().cloned());
        if let Some(heard) = open.find(|connection| connection.was_heard(asked) && !connection.is_over()) {
            return Ok(heard);
        }
        let spare = self.empty_spare(asked);
        // That it cannot be opened is no failure of the server yet: the first question may still be answered.
        let opened = timeout_at(deadline, spare.get_or_try_init(|| self.enter())).await;
        opened.unwrap_or_else(|_| Err(self.not_in_time())).cloned()
    }

    /// The place of the spare connection, emptied of an old one.
    fn empty_spare(&self, asked: Instant) -> Arc<Slot> {
        let mut spare = self.spare.lock();
        if spare.get().is_some_and(|old| !old.was_heard(asked) || old.is_over()) {
            *spare = Arc::default();
        }
        spare.clone()
    }

    /// Puts the spare connection in the place of one that was silent since then; the other silent ones are dropped.
    fn drop_silent(&self, asked: Instant) {
        let mut spare = self.spare.lock();
        let mut dropped = 0;
        for slot in &self.slots {
            let mut slot = slot.lock();
            if slot.get().is_some_and(|connection| !connection.was_heard(asked)) {
                // The task that opens the spare one may not be done.
                *slot = match spare.get() {
                    Some(_) => std::mem::take(&mut *spare),
                    None => Arc::default(),
                };
                dropped += 1;
            }
        }
        if dropped > 0 {
            log::info!(
                "{dropped} silent connections to directory server {} are dropped",
                self.url
            );
        }
    }

    async fn enter(&self) -> Result<Arc<Connection>, LdapError> {
        let entered = Connection::open(&self.opener, &self.url).await;
        entered
            .map(Arc::new)
            .map_err(|why| LdapError::Unreachable(format!("{}: {}", self.url, reasons(&why))))
    }

    fn not_in_time(&self) -> LdapError {
        LdapError::Unreachable(format!("{} does not take a connection in time", self.url))
    }

    /// A connection that is open as far as we know, else a new one.
    async fn connection(&self, deadline: Instant) -> Result<Arc<Connection>, LdapError> {
        let slot = self.slot();
        match timeout_at(deadline, slot.get_or_try_init(|| self.open())).await {
            Ok(opened) => opened.cloned(),
            Err(_) => {
                let error = self.not_in_time();
                self.failed(&error);
                Err(error)
            }
        }
    }

    /// The next place in turn; emptied if its connection is over.
    fn slot(&self) -> Arc<Slot> {
        let turn = self.next.fetch_add(1, Ordering::Relaxed) % CONNECTIONS;
        let mut slot = self.slots[turn].lock();
        if slot.get().is_some_and(|connection| connection.is_over()) {
            *slot = Arc::default();
        }
        slot.clone()
    }

    /// Callers that waited while another one failed do not try again on their own.
    async fn open(&self) -> Result<Arc<Connection>, LdapError> {
        if !self.is_up() && !self.is_due() {
            return Err(LdapError::AllDown(self.last_words().unwrap_or_default()));
        }
        let entered = self.enter().await;
        if let Err(error) = &entered {
            self.failed(error);
        }
        entered
    }

    fn last_words(&self) -> Option<String> {
        self.health.lock().said.clone()
    }

    fn is_up(&self) -> bool {
        self.health.lock().down_until.is_none()
    }

    fn is_due(&self) -> bool {
        self.health
            .lock()
            .down_until
            .is_some_and(|until| until <= Instant::now())
    }

    /// It has answered a question.
    fn works(&self) {
        self.returns();
        self.health.lock().failures = 0;
    }

    /// It is asked again. The next failure has it left alone for longer than the last one, until it answers a question:
    /// some servers take connections, or answer a probe, and no more.
    fn returns(&self) {
        let mut health = self.health.lock();
        if health.down_until.take().is_some() {
            log::info!("directory server {} is back", self.url);
        }
        health.said = None;
    }

    fn failed(&self, error: &LdapError) {
        self.close();
        let mut health = self.health.lock();
        if health.down_until.is_none() {
            log::error!("directory server {} failed: {error}", self.url);
        }
        let (first, most) = BACK_OFF;
        // Doubled so often it is beyond the longest in any case.
        let pause = first * 2_u32.pow(health.failures.min(16));
        health.failures += 1;
        health.down_until = Some(Instant::now() + pause.min(most));
        health.said = Some(error.to_string());
    }

    /// Questions under way keep their connection until they are answered.
    fn close(&self) {
        for slot in self.slots.iter().chain([&self.spare]) {
            *slot.lock() = Arc::default();
        }
    }

    fn discard(&self, connection: &Arc<Connection>) {
        for slot in &self.slots {
            let mut slot = slot.lock();
            if slot.get().is_some_and(|other| Arc::ptr_eq(other, connection)) {
                *slot = Arc::default();
            }
        }
    }
}

/// The first answer of the two; where neither has one, the error of the second to end.
async fn first_answer(
    one: impl Future<Output = Result<Reply, LdapError>>,
    other: impl Future<Output = Result<Reply, LdapError>>,
) -> Result<Reply, LdapError> {
    let (mut one, mut other) = (pin!(one), pin!(other));
    tokio::select! {
        reply = &mut one => if is_answer(&reply) { reply } else { other.await },
        reply = &mut other => if is_answer(&reply) { reply } else { one.await },
    }
}

/// Whether the server said something to the question.
fn is_answer(reply: &Result<Reply, LdapError>) -> bool {
    matches!(
        reply,
        Ok(_) | Err(LdapError::Refused(_) | LdapError::TooMuch | LdapError::Elsewhere)
    )
}

/// One question in a task of its own: a caller that goes away leaves no half answer on the connection, and an answer
/// so malformed that the library panics only ends this connection.
async fn converse(
    connection: &Arc<Connection>,
    search: &Arc<Search>,
    deadline: Instant,
    timeout: Duration,
) -> Result<Reply, LdapError> {
    let (connection, search) = (connection.clone(), search.clone());
    let task = tokio::spawn(async move { read(&connection, &search, deadline, timeout).await });
    match task.await {
        Ok(reply) => reply,
        Err(panic) => Err(LdapError::Broken(panic.to_string())),
    }
}

/// All pages of the answer; each gets the timeout.
async fn read(
    connection: &Connection,
    search: &Search,
    mut deadline: Instant,
    timeout: Duration,
) -> Result<Reply, LdapError> {
    let (mut found, mut cookie) = (Findings::default(), Vec::new());
    for _page in 0..MAX_PAGES {
        let page = page(connection, search, cookie, &mut found);
        let result = timeout_at(deadline, page)
            .await
            .map_err(|_| LdapError::Late(timeout))??;
        let has_base = match result.rc {
            SUCCESS => true,
            SIZE_LIMIT_EXCEEDED if is_our_limit(search.extent, found.entries.len()) => true,
            NO_SUCH_OBJECT => false,
            _ => return Err(LdapError::Refused(result.to_string())),
        };
        cookie = match search.extent {
            Extent::Few(_) => Vec::new(),
            Extent::All => next_page(&result),
        };
        if cookie.is_empty() {
            return found.into_reply(has_base);
        }
        deadline = Instant::now() + timeout;
    }
    Err(LdapError::TooMuch)
}

/// What a search has found so far.
#[derive(Default)]
struct Findings {
    entries: Vec<SearchEntry>,
    bytes: usize,
    /// The server has named another one for a part of the tree.
    leads_on: bool,
}

impl Findings {
    fn add(&mut self, item: ResultEntry, extent: Extent) -> Result<(), LdapError> {
        self.leads_on |= item.is_ref();
        if let Some(entry) = SearchEntry::of(item) {
            self.bytes += entry.size();
            self.entries.push(entry);
        }
        let most = match extent {
            Extent::Few(most) => usize::try_from(most).unwrap_or_default(),
            Extent::All => MAX_FOUND,
        };
        let fits = self.entries.len() <= most && self.bytes <= MAX_BYTES;
        fits.then_some(()).ok_or(LdapError::TooMuch)
    }

    fn into_reply(self, has_base: bool) -> Result<Reply, LdapError> {
        if self.entries.is_empty() && self.leads_on {
            return Err(LdapError::Elsewhere);
        }
        let entries = self.entries;
        Ok(Reply { entries, has_base })
    }
}

/// Whether this search asked for no more than it found. With fewer it is a limit of the server's own that cut the
/// answer (RFC 4511 section 4.5.1.4), and an entry that is missing may well be there.
fn is_our_limit(extent: Extent, found: usize) -> bool {
    matches!(extent, Extent::Few(most) if usize::try_from(most).is_ok_and(|most| found >= most))
}

async fn page(
    connection: &Connection,
    search: &Search,
    cookie: Vec<u8>,
    found: &mut Findings,
) -> Result<LdapResult, LdapError> {
    let mut ldap = connection.ldap();
    match search.extent {
        Extent::Few(most) => drop(ldap.with_search_options(SearchOptions::new().sizelimit(most))),
        Extent::All => drop(ldap.with_controls(PagedResults { size: PAGE, cookie })),
    }
    let attributes = search.attributes.to_vec();
    let mut stream = ldap
        .streaming_search(&search.base, search.scope, &search.filter, attributes)
        .await?;
    while let Some(item) = stream.next().await? {
        connection.hear();
        found.add(item, search.extent)?;
    }
    connection.hear();
    Ok(stream.finish().await)
}

fn next_page(result: &LdapResult) -> Vec<u8> {
    let paged = result
        .ctrls
        .iter()
        .find(|control| matches!(control.0, Some(ControlType::PagedResults)));
    paged.map_or_else(Vec::new, |control| control.1.parse::<PagedResults>().cookie)
}

impl From<ldap3::LdapError> for LdapError {
    fn from(error: ldap3::LdapError) -> Self {
        match error {
            ldap3::LdapError::FilterParsing | ldap3::LdapError::LdapResult { .. } => Self::Refused(error.to_string()),
            _ => Self::Broken(error.to_string()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_that_the_server_cut_is_none() {
        for (extent, found, ours) in [
            (Extent::Few(1), 1, true),
            (Extent::Few(4), 4, true),
            (Extent::Few(4), 0, false),
            (Extent::Few(4), 3, false),
            (Extent::All, 4, false),
        ] {
            assert_eq!(is_our_limit(extent, found), ours, "{extent:?}, {found} found");
        }
    }
}
