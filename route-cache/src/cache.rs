//! Routes from memory, then from the cache that nodes share, and one question to the source where many ask the same.
//!
//! What is kept is where an account *is* ([`crate::placement::Placement`]), one entry for all services. Servers,
//! ports and modes are looked up in the directory's system at every answer, so a change there acts at once. Errors
//! are never kept. The meaning of the attributes is not here but in `routing.rs`.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::time::Duration;

use arc_swap::ArcSwap;
use mail_directory::{Directory, News, System};
use parking_lot::Mutex;
use tokio::sync::broadcast;
use tokio::time::Instant;

use crate::hold::Holds;
use crate::key::Key;
use crate::lookup::Services;
use crate::max_sessions::MaxSessions;
use crate::placement::PlacementAttributes;
use crate::protocol::Protocol;
use crate::route::{Lookup, Route, RouteError, Subject, Tier};
use crate::source::Source;

mod again;
mod ahead;
mod cert_login;
mod compare;
mod counters;
mod explain;
mod fetch;
mod follow;
mod forget;
mod kept_file;
mod known;
mod life;
mod question;
mod referral;
mod restored;
mod shared;
mod single_flight;
mod sweep;
mod table;

use ahead::Ahead;
pub use compare::{AccountMove, Destinations, RouteComparison};
pub use counters::Counters;
pub use explain::{
    AccountFacts, AccountReport, AnswerKind, Blocker, Explanation, FoundBy, NameDomain, Purged, TierReport,
};
pub use kept_file::{KeptFileError, KeptRoutes};
use known::{BEFORE_BIRTH, FIRST_EPOCH, Kept, KeptPlacement, Millis, millis};
use question::{Fetched, Freshness, Query};
pub use referral::ReferredRoute;
use restored::{Restored, Unwritten};
pub use shared::SharedCache;
use single_flight::Flights;
use table::ClockTable;

/// Of the capacity, the part that "no such account" may take in addition. A flood of invented names pushes out
/// other invented names, but no real account.
const NOBODY_SHARE: u64 = 8;

/// Changes that a slow listener may be behind with; one further behind has to take all accounts for changed.
const FOLLOWED_KEPT: usize = 64;

/// Why an account waits that no administrator holds here.
const MAINTENANCE: &str = "zimbraAccountStatus is maintenance";

/// How the cache behaves.
#[derive(Debug, Clone)]
pub struct Settings {
    /// Name of this node's server entry; its modes count for routes.
    pub node: String,
    /// Most accounts to keep.
    pub capacity: u64,
    /// Life of an answer.
    pub ttl: Duration,
    /// How much longer an answer may serve while the directory is down.
    pub stale: Duration,
    /// Life of "no such account".
    pub negative_ttl: Duration,
}

/// Answers [`Lookup`]s. One per process.
pub struct RouteCache {
    settings: Settings,
    /// Life of an answer, and how much longer it may serve; milliseconds. They may change while the cache lives.
    ttl: AtomicU64,
    stale: AtomicU64,
    pub(crate) directory: Arc<dyn Directory>,
    pub(crate) source: Source,
    shared: Option<SharedCache>,
    /// Accounts, and where other names of them point.
    known: ClockTable<Key, Kept>,
    /// Names that no account has, with the time of that answer. Short-lived and few, so a general cache fits here;
    /// for a million accounts it would take three times the memory of the table.
    nobody: moka::sync::Cache<Key, Millis>,
    flights: Flights,
    counters: Counters,
    ahead: Ahead,
    /// How what is kept was read.
    reading: ArcSwap<PlacementAttributes>,
    born: Instant,
    /// Until when a directory that just failed is left alone.
    down_until: AtomicU64,
    /// The epoch in which answers are kept now.
    epoch: AtomicU32,
    /// What was kept before this epoch is not fresh any more.
    believed: AtomicU32,
    /// What came from a previous process.
    restored: Restored,
    /// What the file that keeps routes does not say yet.
    unwritten: Unwritten,
    /// Whose logins wait.
    holds: Holds,
    /// What changed in the directory since this cache was made, until that is followed.
    news: Mutex<Option<broadcast::Receiver<News>>>,
    /// Tells that a change has been followed.
    followed: broadcast::Sender<News>,
}

impl RouteCache {
    /// An empty cache in front of `directory`.
    pub fn new(settings: Settings, directory: Arc<dyn Directory>) -> Self {
        Self {
            reading: ArcSwap::from_pointee(PlacementAttributes::of(&directory.system())),
            known: ClockTable::new(settings.capacity),
            nobody: moka::sync::Cache::builder()
                .max_capacity((settings.capacity / NOBODY_SHARE).max(1))
                .time_to_live(settings.negative_ttl)
                .build(),
            flights: Flights::default(),
            counters: Counters::default(),
            ahead: Ahead::default(),
            born: Instant::now(),
            down_until: AtomicU64::new(0),
            epoch: AtomicU32::new(FIRST_EPOCH),
            believed: AtomicU32::new(FIRST_EPOCH),
            restored: Restored::default(),
            unwritten: Unwritten::default(),
            holds: Holds::default(),
            news: Mutex::new(Some(directory.news())),
            followed: broadcast::Sender::new(FOLLOWED_KEPT),
            ttl: AtomicU64::new(millis(settings.ttl)),
            stale: AtomicU64::new(millis(settings.stale)),
            settings,
            source: Source::Directory(directory.clone()),
            shared: None,
            directory,
        }
    }

    /// With a second tier that other nodes share.
    pub fn with_shared(mut self, shared: SharedCache) -> Self {
        self.shared = Some(shared);
        self
    }

    /// With lookup services to ask for accounts, instead of the directory.
    pub fn with_lookup(mut self, services: Services) -> Self {
        self.source = Source::Services(Box::new(services));
        self
    }

    /// On which server this account is, and how it is reached. Asks the directory only if nothing fresh is known, and
    /// only once for all lookups that ask the same at the same time.
    pub async fn route(&self, lookup: &Lookup) -> Result<Route, RouteError> {
        let system = self.directory.system();
        let protocol = Protocol::of(lookup.service, system.node(&self.settings.node));
        let answer = self.route_by(lookup, protocol, &system).await;
        self.counters.answered(&answer);
        answer
    }

    /// How often each answer was returned.
    pub fn counters(&self) -> &Counters {
        &self.counters
    }

    /// Whose logins wait.
    pub fn holds(&self) -> &Holds {
        &self.holds
    }

    /// Why a login by this route has to wait, if it has to: an administrator holds it, or the directory says that
    /// its account is in maintenance.
    pub fn hold_of(&self, route: &Route) -> Option<String> {
        match self.holds.of(&route.account, &route.server) {
            Some(hold) => Some(format!("{} is held: {}", hold.held, hold.reason)),
            None => route.maintenance.then(|| MAINTENANCE.to_owned()),
        }
    }

    /// How many sessions there may be at once, as the directory says, for an account with its route.
    pub fn max_sessions(&self, account: &str, own: Option<u32>, server: &str) -> MaxSessions {
        MaxSessions::find(&self.directory.system(), account, own, server)
    }

    /// The servers of the shared cache, and whether they answered when they were last needed.
    pub fn memcached(&self) -> Vec<(String, bool)> {
        self.shared.as_ref().map(SharedCache::servers).unwrap_or_default()
    }

    /// The same for a protocol that this node may not speak itself.
    pub(crate) async fn route_by(
        &self,
        lookup: &Lookup,
        protocol: Protocol,
        system: &Arc<System>,
    ) -> Result<Route, RouteError> {
        let query = self.query(lookup, protocol, system)?;
        self.follow(system);
        let old = self.find(&query);
        if let Some(route) = self.remembered(&query, old.as_ref()) {
            if let Some(served) = &old {
                self.order_ahead(&query, served);
            }
            return route;
        }
        let asked = self.fetch(&query).await;
        // What was known before may have been forgotten meanwhile.
        let old = old.and_then(|_| self.find(&query));
        self.conclude(&query, asked, old)
    }

    /// The entries of the directory as they are now.
    pub(crate) fn system(&self) -> Arc<System> {
        self.directory.system()
    }

    /// Name of this node's server entry.
    pub(crate) fn node(&self) -> &str {
        &self.settings.node
    }

    /// The name under which this is looked up: qualified and in its one form. An alias is not followed.
    pub fn key_name(&self, lookup: &Lookup) -> String {
        let key = self.source.key(lookup, &self.directory.system());
        let (Subject::Login(typed) | Subject::Id(typed)) = &lookup.subject;
        key.map_or_else(|_| mail_directory::names::account(typed), |key| key.text().to_string())
    }

    /// How many answers are kept: names, ids, and names that no account has.
    pub fn len(&self) -> usize {
        self.nobody.run_pending_tasks();
        self.known.len() + usize::try_from(self.nobody.entry_count()).unwrap_or(usize::MAX)
    }

    /// True if nothing is kept.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    fn query<'a>(
        &self,
        lookup: &'a Lookup,
        protocol: Protocol,
        system: &'a Arc<System>,
    ) -> Result<Query<'a>, RouteError> {
        let key = self.source.key(lookup, system)?;
        Ok(Query {
            lookup,
            key,
            protocol,
            system,
            freshness: Freshness::Fresh,
        })
    }

    /// An answer that needs no directory: a fresh one, or an old one while the directory is known to be down.
    fn remembered(&self, query: &Query<'_>, old: Option<&KeptPlacement>) -> Option<Result<Route, RouteError>> {
        if let Some(fetched) = self.fresh(query, old) {
            return Some(query.answer(fetched.placement.as_ref(), fetched.tier));
        }
        let pausing = self.now() < self.down_until.load(Ordering::Relaxed);
        let old = old.filter(|old| pausing && self.serves_stale(old))?;
        Some(query.answer(Some(&old.placement), old.tier(Tier::Stale)))
    }

    /// What is kept and still in its life; `old` is what [`RouteCache::find`] found.
    fn fresh(&self, query: &Query<'_>, old: Option<&KeptPlacement>) -> Option<Fetched> {
        let fetched = |at, placement, tier| Fetched {
            at,
            placement,
            tier,
            alias: true,
        };
        if let Some(old) = old {
            let good = match query.freshness {
                Freshness::Fresh => self.is_fresh(old),
                Freshness::Young => self.is_young(old),
                Freshness::Since(_) => self.is_fresh(old) && query.freshness.takes(old.at),
            };
            return good.then(|| fetched(old.at, Some(old.placement.clone()), old.tier(Tier::Memory)));
        }
        let at = self.nobody.get(&query.key).filter(|at| query.freshness.takes(*at))?;
        (self.now() < at + millis(self.settings.negative_ttl)).then(|| fetched(at, None, Tier::Memory))
    }

    /// The answer after others were asked: theirs, or if they are down an old one.
    fn conclude(
        &self,
        query: &Query<'_>,
        asked: Result<Fetched, RouteError>,
        old: Option<KeptPlacement>,
    ) -> Result<Route, RouteError> {
        match (asked, old.filter(|old| self.serves_stale(old))) {
            (Ok(fetched), _) => query.answer(fetched.placement.as_ref(), fetched.tier),
            (Err(RouteError::DirectoryDown(_)), Some(old)) => query.answer(Some(&old.placement), old.tier(Tier::Stale)),
            (Err(error), _) => Err(error),
        }
    }

    /// What is kept of an account, however old, if it says where to go for the protocol.
    fn find(&self, query: &Query<'_>) -> Option<KeptPlacement> {
        self.find_key(&query.key)
            .filter(|old| old.placement.answers(query.protocol))
    }

    /// What is kept of an account, however old. An alias is as old as the older of its two parts.
    fn find_key(&self, key: &Key) -> Option<KeptPlacement> {
        KeptPlacement::find(key, |key| self.known.get(key))
    }

    fn now(&self) -> Millis {
        BEFORE_BIRTH + millis(self.born.elapsed())
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicBool, AtomicUsize};

    use async_trait::async_trait;
    use mail_directory::{AccountBy, DirectoryError, Entry, Touched};
    use tokio::sync::Semaphore;

    use super::fetch::DOWN_PAUSE;
    use super::*;
    use crate::route::Service;

    const SECOND: Duration = Duration::from_secs(1);

    /// A directory that counts, fails and waits as it is told. Every account exists here, but for `nobody…`;
    /// `alias…@x` is an alias of `user…@x`, and so is the id `id…`.
    struct Fake {
        asked: AtomicUsize,
        down: AtomicBool,
        host: Mutex<String>,
        system: ArcSwap<System>,
        /// One permit per answer.
        gate: Semaphore,
    }

    impl Fake {
        fn new() -> Arc<Self> {
            Arc::new(Self {
                asked: AtomicUsize::new(0),
                down: AtomicBool::new(false),
                host: Mutex::new("s1".to_owned()),
                system: ArcSwap::from_pointee(system(7993)),
                gate: Semaphore::new(Semaphore::MAX_PERMITS),
            })
        }

        fn shut(self: Arc<Self>) -> Arc<Self> {
            self.gate.forget_permits(Semaphore::MAX_PERMITS);
            self
        }

        fn questions(&self) -> usize {
            self.asked.load(Ordering::SeqCst)
        }
    }

    fn system(port: u16) -> System {
        let servers = ["s1", "s2"].map(|name| {
            let mut server = Entry::new(name);
            server.set("zimbraImapSSLBindPort", [port.to_string()]);
            server
        });
        System::new(Entry::new("config"), servers, [], [])
    }

    #[async_trait]
    impl Directory for Fake {
        fn system(&self) -> Arc<System> {
            self.system.load_full()
        }

        async fn account(&self, by: &AccountBy) -> Result<Option<Arc<Entry>>, DirectoryError> {
            self.asked.fetch_add(1, Ordering::SeqCst);
            let host = self.host.lock().clone();
            let _permit = self.gate.acquire().await.unwrap();
            if self.down.load(Ordering::SeqCst) {
                return Err(DirectoryError("down".to_owned()));
            }
            let name = match by {
                AccountBy::Name(name) => name.replace("alias", "user"),
                AccountBy::Id(id) => format!("{}@x", id.replace("id", "user")),
            };
            if name.starts_with("nobody") {
                return Ok(None);
            }
            let mut entry = Entry::new(name);
            entry.set("zimbraMailHost", [host]);
            entry.set("other", ["s2"]);
            Ok(Some(Arc::new(entry)))
        }
    }

    fn cache(fake: &Arc<Fake>) -> Arc<RouteCache> {
        let settings = Settings {
            node: "proxy".to_owned(),
            capacity: 100_000,
            ttl: 60 * SECOND,
            stale: 600 * SECOND,
            negative_ttl: 5 * SECOND,
        };
        Arc::new(RouteCache::new(settings, fake.clone()))
    }

    fn login(name: &str) -> Lookup {
        let address = "192.0.2.1".parse().unwrap();
        let subject = match name.strip_prefix('#') {
            Some(id) => Subject::Id(id.to_owned()),
            None => Subject::Login(name.to_owned()),
        };
        Lookup {
            subject,
            service: Service::Imap,
            client: address,
            local: address,
            host: None,
        }
    }

    /// Server, port and tier of the answer, or the error.
    async fn ask(cache: &RouteCache, name: &str) -> String {
        match cache.route(&login(name)).await {
            Ok(route) => format!("{}:{} {:?}", route.server, route.port, route.tier),
            Err(error) => error.to_string(),
        }
    }

    #[tokio::test(start_paused = true)]
    async fn answers_live_for_their_time() {
        let fake = Fake::new();
        let cache = cache(&fake);
        assert_eq!(ask(&cache, "user@x").await, "s1:7993 Directory");
        tokio::time::advance(59 * SECOND).await;
        assert_eq!(ask(&cache, "USER@x").await, "s1:7993 Memory");
        *fake.host.lock() = "s2".to_owned();
        tokio::time::advance(SECOND).await;
        assert_eq!(ask(&cache, "user@x").await, "s2:7993 Directory");
        assert_eq!(
            (ask(&cache, "user@x").await.as_str(), fake.questions()),
            ("s2:7993 Memory", 2)
        );
    }

    #[tokio::test(start_paused = true)]
    async fn what_is_young_is_not_forgotten() {
        let fake = Fake::new();
        let cache = cache(&fake);
        ask(&cache, "user@x").await;
        tokio::time::advance(4 * SECOND).await;
        cache.forget_older_than(&login("user@x"), 5 * SECOND);
        assert_eq!(ask(&cache, "user@x").await, "s1:7993 Memory");
        tokio::time::advance(SECOND).await;
        *fake.host.lock() = "s2".to_owned();
        cache.forget_older_than(&login("user@x"), 5 * SECOND);
        assert_eq!(ask(&cache, "user@x").await, "s2:7993 Directory");
    }

    /// A cache whose routes are kept fresh, and the task that does it.
    fn fresh_cache(fake: &Arc<Fake>) -> (Arc<RouteCache>, tokio::task::JoinHandle<()>) {
        let cache = cache(fake);
        (cache.clone(), tokio::spawn(cache.keep_fresh()))
    }

    /// Lets everything run that can.
    async fn settle() {
        for _ in 0..100 {
            tokio::task::yield_now().await;
        }
    }

    #[tokio::test(start_paused = true)]
    async fn routes_in_use_are_renewed_before_they_expire() {
        let fake = Fake::new();
        let (cache, task) = fresh_cache(&fake);
        for name in ["user@x", "alias@x", "#id", "nobody@x"] {
            ask(&cache, name).await;
        }
        let asked = fake.questions();
        *fake.host.lock() = "s2".to_owned();
        tokio::time::advance(53 * SECOND).await;
        assert_eq!(ask(&cache, "user@x").await, "s1:7993 Memory");
        settle().await;
        assert_eq!(fake.questions(), asked, "not old yet");
        tokio::time::advance(SECOND).await;
        for name in ["alias@x", "#id"] {
            // Each lookup gets the old answer, without waiting; one question is asked for all of them.
            for _ in 0..3 {
                assert_eq!(ask(&cache, name).await, "s1:7993 Memory");
            }
        }
        settle().await;
        assert_eq!(fake.questions(), asked + 2);
        tokio::time::advance(30 * SECOND).await;
        for name in ["user@x", "alias@x", "#id"] {
            assert_eq!(ask(&cache, name).await, "s2:7993 Memory");
        }
        settle().await;
        assert_eq!(fake.questions(), asked + 2);
        task.abort();
    }

    #[tokio::test(start_paused = true)]
    async fn renewing_is_bounded_and_gives_way_to_forgetting() {
        let fake = Fake::new().shut();
        let (cache, task) = fresh_cache(&fake);
        fake.gate.add_permits(2000);
        for i in 0..2000 {
            ask(&cache, &format!("user{i}@x")).await;
        }
        fake.gate.forget_permits(2000);
        *fake.host.lock() = "s2".to_owned();
        tokio::time::advance(55 * SECOND).await;
        for i in 0..2000 {
            ask(&cache, &format!("user{i}@x")).await;
        }
        settle().await;
        assert_eq!(fake.questions(), 2000 + 16, "at one time");
        assert!(cache.ahead.ordered.lock().len() <= 1024 + 16 + 1);
        // The account is forgotten while it is asked for.
        cache.forget(&login("user0@x"));
        *fake.host.lock() = "s1".to_owned();
        fake.gate.add_permits(10_000);
        until_settled(&cache).await;
        assert!(ask(&cache, "user0@x").await.starts_with("s1"));
        assert_eq!(ask(&cache, "user1@x").await, "s2:7993 Memory");
        assert_eq!(
            ask(&cache, "user1999@x").await,
            "s1:7993 Memory",
            "there was no place for it"
        );
        task.abort();
    }

    async fn until_settled(cache: &RouteCache) {
        while !cache.ahead.ordered.lock().is_empty() {
            tokio::task::yield_now().await;
        }
    }

    #[tokio::test(start_paused = true)]
    async fn renewing_fails_without_harm_and_rests_while_the_directory_is_down() {
        let fake = Fake::new();
        let (cache, task) = fresh_cache(&fake);
        ask(&cache, "user@x").await;
        fake.down.store(true, Ordering::SeqCst);
        tokio::time::advance(55 * SECOND).await;
        for _ in 0..10 {
            assert_eq!(ask(&cache, "user@x").await, "s1:7993 Memory");
            settle().await;
        }
        assert_eq!(fake.questions(), 2);
        tokio::time::advance(DOWN_PAUSE).await;
        fake.down.store(false, Ordering::SeqCst);
        *fake.host.lock() = "s2".to_owned();
        assert_eq!(ask(&cache, "user@x").await, "s1:7993 Memory");
        settle().await;
        assert_eq!(ask(&cache, "user@x").await, "s2:7993 Memory");
        // An account that is deleted meanwhile stays deleted.
        task.abort();
        let _ = task.await;
        let again = tokio::spawn(cache.clone().keep_fresh());
        tokio::time::advance(55 * SECOND).await;
        ask(&cache, "user@x").await;
        settle().await;
        tokio::time::advance(10 * SECOND).await;
        assert_eq!(ask(&cache, "user@x").await, "s2:7993 Memory");
        again.abort();
    }

    #[tokio::test(start_paused = true)]
    async fn unknown_accounts_are_asked_for_again_sooner() {
        let fake = Fake::new();
        let cache = cache(&fake);
        for (after, asked) in [(0, 1), (4, 1), (1, 2), (0, 2)] {
            tokio::time::advance(after * SECOND).await;
            assert_eq!(ask(&cache, "nobody@x").await, "no such account");
            assert_eq!(fake.questions(), asked);
        }
    }

    #[tokio::test(start_paused = true)]
    async fn one_entry_serves_all_services_and_a_changed_port_acts_at_once() {
        let fake = Fake::new();
        let cache = cache(&fake);
        ask(&cache, "user@x").await;
        for service in [Service::Imap, Service::Pop3, Service::Web, Service::Admin] {
            cache
                .route(&Lookup {
                    service,
                    ..login("user@x")
                })
                .await
                .unwrap();
        }
        fake.system.store(Arc::new(system(1)));
        assert_eq!(ask(&cache, "user@x").await, "s1:1 Memory");
        assert_eq!((fake.questions(), cache.len()), (1, 1));
    }

    #[tokio::test(start_paused = true)]
    async fn a_changed_mail_host_attribute_empties_the_cache() {
        let fake = Fake::new();
        let cache = cache(&fake);
        ask(&cache, "user@x").await;
        let mut config = Entry::new("config");
        config.set("zimbraReverseProxyMailHostAttribute", ["other"]);
        fake.system
            .store(Arc::new(System::new(config, [Entry::new("s2")], [], [])));
        assert_eq!(ask(&cache, "user@x").await, "s2:7993 Directory");
        assert_eq!(ask(&cache, "user@x").await, "s2:7993 Memory");
    }

    #[tokio::test(start_paused = true)]
    async fn old_answers_serve_while_the_directory_is_down() {
        let fake = Fake::new();
        let cache = cache(&fake);
        ask(&cache, "user@x").await;
        ask(&cache, "nobody@x").await;
        fake.down.store(true, Ordering::SeqCst);
        assert_eq!(ask(&cache, "other@x").await, "directory: down");
        assert_eq!(ask(&cache, "other@x").await, "directory: down");
        assert_eq!(fake.questions(), 4, "errors are not kept");
        tokio::time::advance(60 * SECOND).await;
        assert_eq!(ask(&cache, "nobody@x").await, "directory: down");
        assert_eq!(ask(&cache, "user@x").await, "s1:7993 Stale");
        assert_eq!(fake.questions(), 5, "just failed, so not asked again");
        tokio::time::advance(DOWN_PAUSE).await;
        assert_eq!(ask(&cache, "user@x").await, "s1:7993 Stale");
        assert_eq!(fake.questions(), 6);
        tokio::time::advance(599 * SECOND).await;
        assert_eq!(ask(&cache, "user@x").await, "directory: down");
        fake.down.store(false, Ordering::SeqCst);
        assert_eq!(ask(&cache, "user@x").await, "s1:7993 Directory");
    }

    #[tokio::test(start_paused = true)]
    async fn aliases_and_ids_share_the_account() {
        let fake = Fake::new();
        let cache = cache(&fake);
        assert_eq!(ask(&cache, "alias@x").await, "s1:7993 Directory");
        assert_eq!(ask(&cache, "user@x").await, "s1:7993 Memory");
        assert_eq!(ask(&cache, "#id").await, "s1:7993 Directory");
        assert_eq!(ask(&cache, "#ID").await, "s1:7993 Memory");
        *fake.host.lock() = "s2".to_owned();
        // Whatever name it is forgotten by, it is forgotten under all of them.
        cache.forget(&login("#id"));
        assert_eq!(ask(&cache, "alias@x").await, "s2:7993 Directory");
        assert_eq!(ask(&cache, "user@x").await, "s2:7993 Memory");
        cache.clear();
        assert!(cache.is_empty());
        assert_eq!(ask(&cache, "user@x").await, "s2:7993 Directory");
    }

    #[tokio::test(start_paused = true)]
    async fn explaining_leaves_no_trace() {
        let fake = Fake::new();
        let cache = cache(&fake);
        for _ in 0..2 {
            assert_eq!(
                cache.explain(&login("user@x")).await.route.unwrap().tier,
                Tier::Directory
            );
        }
        assert!(cache.is_empty());
        ask(&cache, "user@x").await;
        assert_eq!(cache.explain(&login("user@x")).await.route.unwrap().tier, Tier::Memory);
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 4)]
    async fn many_who_ask_the_same_ask_once() {
        let fake = Fake::new().shut();
        let cache = cache(&fake);
        let tasks: Vec<_> = (0..10_000)
            .map(|i| {
                let cache = cache.clone();
                tokio::spawn(async move { ask(&cache, &format!("user{}@x", i % 100)).await })
            })
            .collect();
        fake.gate.add_permits(100);
        for task in tasks {
            assert!(task.await.unwrap().starts_with("s1:7993"));
        }
        assert_eq!((fake.questions(), cache.len()), (100, 100));
        assert!(cache.flights.0.lock().flights.is_empty());
    }

    #[tokio::test(start_paused = true)]
    async fn a_failure_is_shared_by_all_who_wait_and_then_gone() {
        let fake = Fake::new().shut();
        fake.down.store(true, Ordering::SeqCst);
        let cache = cache(&fake);
        let tasks: Vec<_> = (0..100).map(|_| spawn(&cache, "user@x")).collect();
        tokio::task::yield_now().await;
        fake.gate.add_permits(1);
        for task in tasks {
            assert_eq!(task.await.unwrap(), "directory: down");
        }
        assert_eq!((fake.questions(), cache.len()), (1, 0));
        assert!(cache.flights.0.lock().flights.is_empty());
    }

    #[tokio::test(start_paused = true)]
    async fn who_goes_away_does_not_take_the_others_along() {
        let fake = Fake::new().shut();
        let cache = cache(&fake);
        let first = spawn(&cache, "user@x");
        tokio::task::yield_now().await;
        let second = spawn(&cache, "user@x");
        tokio::task::yield_now().await;
        first.abort();
        assert!(first.await.unwrap_err().is_cancelled());
        fake.gate.add_permits(1);
        assert_eq!(second.await.unwrap(), "s1:7993 Directory");
        fake.gate.forget_permits(1);
        let alone = spawn(&cache, "other@x");
        tokio::task::yield_now().await;
        alone.abort();
        assert!(alone.await.unwrap_err().is_cancelled());
        assert!(cache.flights.0.lock().flights.is_empty());
    }

    #[tokio::test(start_paused = true)]
    async fn what_was_fetched_before_forget_is_not_kept() {
        for (asked_as, forgotten_as) in [("user@x", "user@x"), ("alias@x", "user@x"), ("#id", "user@x")] {
            let fake = Fake::new().shut();
            let cache = cache(&fake);
            let early = spawn(&cache, asked_as);
            tokio::task::yield_now().await;
            *fake.host.lock() = "s2".to_owned();
            cache.forget(&login(forgotten_as));
            let joins = spawn(&cache, asked_as);
            tokio::task::yield_now().await;
            fake.gate.add_permits(10);
            assert_eq!(early.await.unwrap(), "s2:7993 Directory");
            joins.await.unwrap();
            assert!(ask(&cache, asked_as).await.starts_with("s2:7993"), "{asked_as}");
            assert!(cache.flights.0.lock().flights.is_empty());
        }
    }

    #[tokio::test(start_paused = true)]
    async fn changed_accounts_are_forgotten_under_all_names() {
        let fake = Fake::new();
        let cache = cache(&fake);
        for name in ["user@x", "alias@x", "#id", "user2@x", "nobody@x"] {
            ask(&cache, name).await;
        }
        *fake.host.lock() = "s2".to_owned();
        let touched = |names: &[&str], ids: &[&str]| Touched {
            names: names.iter().map(|name| name.to_string()).collect(),
            ids: ids.iter().map(|id| id.to_string()).collect(),
        };
        // Only the id is known of it: the directory does not tell the old name any more.
        cache.forget_accounts(&[touched(&["new@x"], &["id"]), touched(&["nobody@x"], &[])]);
        assert_eq!(cache.len(), 1, "the alias is gone, too");
        for name in ["user@x", "alias@x", "#id"] {
            assert!(ask(&cache, name).await.starts_with("s2"), "{name}");
        }
        assert_eq!(ask(&cache, "user2@x").await, "s1:7993 Memory");
    }

    #[tokio::test(start_paused = true)]
    async fn what_expired_serves_only_while_the_directory_is_down() {
        let fake = Fake::new().shut();
        let cache = cache(&fake);
        fake.gate.add_permits(1);
        ask(&cache, "user@x").await;
        fake.gate.forget_permits(1);
        let early = spawn(&cache, "user2@x");
        tokio::task::yield_now().await;
        cache.expire();
        *fake.host.lock() = "s2".to_owned();
        fake.gate.add_permits(10);
        assert_eq!(early.await.unwrap(), "s2:7993 Directory");
        fake.down.store(true, Ordering::SeqCst);
        assert_eq!(ask(&cache, "user@x").await, "s1:7993 Stale");
        fake.down.store(false, Ordering::SeqCst);
        tokio::time::advance(DOWN_PAUSE).await;
        assert_eq!(ask(&cache, "user@x").await, "s2:7993 Directory");
        assert_eq!(ask(&cache, "user@x").await, "s2:7993 Memory");
    }

    #[tokio::test]
    async fn invented_names_push_out_no_accounts() {
        let fake = Fake::new();
        let settings = Settings {
            capacity: 80,
            ..cache(&fake).settings.clone()
        };
        let cache = RouteCache::new(settings, fake.clone());
        for i in 0..50 {
            ask(&cache, &format!("user{i}@x")).await;
        }
        for i in 0..2000 {
            ask(&cache, &format!("nobody{i}@x")).await;
        }
        assert!(cache.len() <= 90, "{}", cache.len());
        for i in 0..50 {
            assert_eq!(ask(&cache, &format!("user{i}@x")).await, "s1:7993 Memory");
        }
        for i in 0..2000 {
            ask(&cache, &format!("user{i}@x")).await;
        }
        assert!(cache.len() <= 90, "{}", cache.len());
    }

    fn spawn(cache: &Arc<RouteCache>, name: &str) -> tokio::task::JoinHandle<String> {
        let (cache, name) = (cache.clone(), name.to_owned());
        tokio::spawn(async move { ask(&cache, &name).await })
    }

    #[tokio::test(start_paused = true)]
    async fn an_explanation_leaves_no_trace() {
        let fake = Fake::new();
        let cache = cache(&fake);
        let unknown = cache.explain(&login("alias1@x")).await;
        assert!(cache.is_empty());
        assert_eq!(unknown.tiers[0].answer, AnswerKind::Nothing);
        assert_eq!(unknown.route.as_ref().unwrap().tier, Tier::Directory);
        let AccountReport::Found(facts) = &unknown.account else {
            panic!("{:?}", unknown.account)
        };
        assert_eq!((facts.name.as_str(), facts.alias), ("user1@x", true));
        assert_eq!(facts.status, "active");

        assert_eq!(ask(&cache, "alias1@x").await, "s1:7993 Directory");
        let kept = cache.len();
        "s2".clone_into(&mut fake.host.lock());
        tokio::time::sleep(7 * SECOND).await;
        let known = cache.explain(&login("alias1@x")).await;
        assert_eq!(known.tiers[0].age, Some(7 * SECOND));
        assert_eq!(known.route.as_ref().unwrap().tier, Tier::Memory);
        assert!(
            known
                .blockers
                .iter()
                .any(|what| matches!(what, Blocker::Moved { kept, now } if kept == "s1" && now == "s2")),
            "{:?}",
            known.blockers
        );
        assert_eq!(cache.len(), kept);
        assert_eq!(ask(&cache, "alias1@x").await, "s1:7993 Memory");

        fake.down.store(true, Ordering::SeqCst);
        let down = cache.explain(&login("alias2@x")).await;
        assert!(matches!(down.account, AccountReport::Failed(_)));
        assert!(matches!(down.route, Err(RouteError::DirectoryDown(_))));
        // No login is kept waiting because of an explanation.
        fake.down.store(false, Ordering::SeqCst);
        assert_eq!(ask(&cache, "alias2@x").await, "s2:7993 Directory");
        let nobody = cache.explain(&login("nobody@x")).await;
        assert_eq!(nobody.account, AccountReport::Nobody);
        assert!(matches!(nobody.route, Err(RouteError::UnknownUser)));
    }

    #[tokio::test(start_paused = true)]
    async fn an_explanation_renews_nothing() {
        let fake = Fake::new();
        let cache = cache(&fake);
        ask(&cache, "user@x").await;
        tokio::time::advance(55 * SECOND).await;
        let explained = cache.explain(&login("user@x")).await;
        assert_eq!(explained.route.unwrap().tier, Tier::Memory);
        assert_eq!(cache.ahead.ordered.lock().len(), 0);
        ask(&cache, "user@x").await;
        assert_eq!(cache.ahead.ordered.lock().len(), 1, "a login does");
    }

    #[tokio::test(start_paused = true)]
    async fn a_purge_says_what_it_forgot() {
        let fake = Fake::new();
        let cache = cache(&fake);
        ask(&cache, "alias1@x").await;
        ask(&cache, "#id1").await;
        ask(&cache, "user2@x").await;
        let mut purged = cache.purge(&login("user1@x")).await.unwrap();
        purged.sort_by(|one, other| one.key.cmp(&other.key));
        let said: Vec<(&str, bool)> = purged.iter().map(|p| (p.key.as_str(), p.in_memory)).collect();
        assert_eq!(said, [("alias1@x", true), ("id1", true), ("user1@x", true)]);
        assert_eq!(cache.len(), 1);
        "s2".clone_into(&mut fake.host.lock());
        assert_eq!(ask(&cache, "alias1@x").await, "s2:7993 Directory");
        let nothing = cache.purge(&login("user3@x")).await.unwrap();
        assert_eq!(nothing.len(), 1);
        assert!(!nothing[0].in_memory);
    }
}
