//! Routes from a directory in a real slapd with a Carbonio-like tree: names, changes that are followed, what is kept
//! while the directory is down. The directory by itself is tested in mail-directory.
// What cannot be done here is the end of the test.
#![allow(clippy::unwrap_used)]

use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use ldap3::{Ldap, Mod};
use mail_directory::ldap::{LdapDirectory, Settings, Trust, Url};
use mail_directory::{Apply, Directory, Losses, Secret};
use portico_tests::ldap_stage::{ADMIN, Kind, LdapStage, account, account_dn, domain, domain_dn, set};
use portico_tests::memcached::Memcached;
use portico_tests::{Stage, wait_until};
use route_cache::addresses::Literal;
use route_cache::memcached;
use route_cache::{
    AddressBook, KeptRoutes, Lookup, RouteCache, RouteError, Service, Settings as CacheSettings, SharedCache, Subject,
    Tier,
};
use tokio::task::JoinHandle;

const TIMEOUT: Duration = Duration::from_secs(2);
const POLL: Duration = Duration::from_millis(200);

fn settings(urls: &[String]) -> Settings {
    Settings {
        urls: urls.iter().map(|url| Url::parse(url).unwrap()).collect(),
        starttls: false,
        trust: Trust::system(),
        bind: Some((ADMIN.0.to_owned(), Secret::new(ADMIN.1.to_owned()))),
        timeout: TIMEOUT,
        snapshot: None,
        sync: true,
    }
}

/// A directory, the cache in front of it, and the tasks that keep them up to date.
struct Node {
    directory: Arc<LdapDirectory>,
    cache: Arc<RouteCache>,
    tasks: Vec<JoinHandle<()>>,
}

impl Node {
    async fn open(settings: Settings) -> Self {
        let (directory, _) = LdapDirectory::load(settings)
            .await
            .unwrap_or_else(|problems| panic!("{problems}"));
        Self::around(directory, Duration::from_secs(3600))
    }

    fn around(directory: LdapDirectory, ttl: Duration) -> Self {
        Self::with(directory, ttl, |cache| cache)
    }

    /// One that shares its routes.
    fn sharing(directory: LdapDirectory, memcached: &Memcached) -> Self {
        let settings = memcached::Settings {
            servers: vec![memcached.address().to_string().parse().unwrap()],
            timeout: Duration::from_secs(1),
            retry: Duration::from_secs(60),
        };
        let ttl = Duration::from_secs(3600);
        let shared = SharedCache::new(&settings, ttl, AddressBook::new(Arc::new(Literal)));
        Self::with(directory, ttl, |cache| cache.with_shared(shared))
    }

    fn with(directory: LdapDirectory, ttl: Duration, change: impl FnOnce(RouteCache) -> RouteCache) -> Self {
        let directory = Arc::new(directory);
        let settings = CacheSettings {
            node: "proxy.test".to_owned(),
            capacity: 10_000,
            ttl,
            stale: Duration::from_secs(3600),
            negative_ttl: Duration::from_millis(50),
        };
        let cache = Arc::new(change(RouteCache::new(settings, directory.clone())));
        let follower = cache.clone();
        let tasks = vec![
            tokio::spawn((directory.clone() as Arc<dyn Directory>).watch(POLL, everything())),
            tokio::spawn(async move { follower.follow_directory().await }),
        ];
        Self {
            directory,
            cache,
            tasks,
        }
    }

    /// Server and port, or the error.
    async fn ask(&self, name: &str) -> String {
        shown(self.cache.route(&login(name)).await)
    }

    async fn until(&self, name: &str, expected: &str) {
        wait_until(&format!("{name} to be {expected}"), async || {
            self.ask(name).await == expected
        })
        .await;
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        self.tasks.iter().for_each(JoinHandle::abort);
    }
}

/// Takes every system.
fn everything() -> Arc<Apply> {
    Arc::new(|_| Ok(()))
}

fn shown(route: Result<route_cache::Route, RouteError>) -> String {
    match route {
        Ok(route) => format!("{} {}:{}", route.account, route.server, route.port),
        Err(RouteError::UnknownUser) => "unknown".to_owned(),
        Err(RouteError::DirectoryDown(_)) => "down".to_owned(),
        Err(error) => error.to_string(),
    }
}

fn login(name: &str) -> Lookup {
    let address = IpAddr::from([192, 0, 2, 1]);
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

#[tokio::test]
async fn accounts_are_found_by_name_alias_and_id() {
    let more = account(
        "carl@a.test",
        "zimbraMailHost: store1.test\nzimbraMailAlias: bob@a.test\n",
    );
    let slapd = LdapStage::start(&more);
    let node = Node::open(settings(&[slapd.url()])).await;
    let alice = "alice@a.test store1.test:7990";
    for (name, expected) in [
        ("alice@a.test", alice),
        ("ALICE@A.Test", alice),
        ("alice", alice),
        ("al@a.test", alice),
        ("O'Hara+x@a.test", alice),
        ("#ID-alice@a.test", alice),
        ("#id-ALICE@a.test", alice),
        ("alice@alias.test", alice),
        ("al@alias.test", alice),
        // An address goes before the alias of another account.
        ("bob@a.test", "bob@a.test store2.test:7991"),
        ("list@a.test", "unknown"),
        ("nobody@a.test", "unknown"),
        ("#nobody", "unknown"),
        ("*", "unknown"),
        ("*@a.test", "unknown"),
        ("*)(uid=*", "unknown"),
        ("alice@a.test)(objectClass=*", "unknown"),
        ("al\\69ce@a.test", "unknown"),
        ("(|(uid=alice)", "unknown"),
        ("älice@a.test", "unknown"),
        ("#*", "unknown"),
    ] {
        assert_eq!(node.ask(name).await, expected, "{name}");
    }
}

/// LDAP does not see blanks around a value, nor how many there are in it (RFC 4518 §2.6.1). If each such spelling were
/// kept, one stranger could push all routes out.
#[tokio::test]
async fn no_spelling_but_an_accounts_names_is_kept() {
    let mary = account(
        "mary@a.test",
        "zimbraMailHost: store2.test\nzimbraMailAlias: mary ann@a.test\n",
    );
    let slapd = LdapStage::start(&mary);
    let node = Node::open(settings(&[slapd.url()])).await;
    let alice = "alice@a.test store1.test:7990";
    assert_eq!(node.ask("alice@a.test").await, alice);
    assert_eq!(node.ask("mary ann@a.test").await, "mary@a.test store2.test:7991");
    let kept = node.cache.len();
    for n in 1..40 {
        let blanks = " ".repeat(n);
        assert_eq!(node.ask(&format!("{blanks}Alice@a.test{blanks}")).await, alice);
        assert_eq!(node.ask(&format!("{blanks}ALICE")).await, alice);
        assert_eq!(node.ask(&format!("mary {blanks}ann@a.test")).await, "unknown");
        assert_eq!(node.ask(&format!("alice{blanks}@a.test")).await, "unknown");
    }
    wait_until("nobodies to be forgotten", async || node.cache.len() == kept).await;
}

const PEOPLE: usize = 100;

/// Some people on the first server, whose name is an address; and a shared cache.
struct SharedStage {
    slapd: LdapStage,
    memcached: Memcached,
    // The last to go: it is the folder of memcached.
    _stage: Stage,
}

impl SharedStage {
    async fn start(kind: Kind<'_>) -> Self {
        let many: String = (0..PEOPLE)
            .map(|i| account(&format!("u{i}@a.test"), "zimbraMailHost: store1.test\n"))
            .collect();
        let slapd = LdapStage::start_as(kind, &many);
        let mut admin = slapd.admin().await;
        for (server, address) in [("store1.test", "127.0.0.2"), ("store2.test", "127.0.0.3")] {
            let dn = format!("cn={server},cn=servers,cn=zimbra");
            set(&mut admin, &dn, "zimbraServiceHostname", &[address]).await;
        }
        let stage = Stage::new().unwrap();
        Self {
            slapd,
            memcached: Memcached::start(&stage).unwrap(),
            _stage: stage,
        }
    }

    async fn node(&self) -> Node {
        let (directory, _) = LdapDirectory::load(settings(&[self.slapd.url()])).await.unwrap();
        Node::sharing(directory, &self.memcached)
    }

    /// How often an entry was deleted, or would have been.
    fn deletes(&self) -> u64 {
        let stats = self.memcached.say("stats\r\n").unwrap();
        let counts = ["STAT delete_hits ", "STAT delete_misses "];
        let count = |name: &str| {
            stats
                .lines()
                .find_map(|line| line.strip_prefix(name)?.trim().parse::<u64>().ok())
        };
        counts.iter().filter_map(|name| count(name)).sum()
    }
}

/// Everybody's route comes from there.
async fn everybody_is_known_by(node: &Node, tier: Tier) {
    for i in 0..PEOPLE {
        let route = node.cache.route(&login(&format!("u{i}@a.test"))).await.unwrap();
        assert_eq!(route.tier, tier, "u{i}");
    }
}

/// Nodes that start where the server does not say how far it is: what changed just before is no news to them. They
/// delete nothing in memcached, and believe what they find there.
async fn nodes_start_quietly(kind: Kind<'_>) {
    let stage = SharedStage::start(kind).await;
    everybody_is_known_by(&stage.node().await, Tier::Directory).await;
    let before = stage.deletes();
    let mut nodes = Vec::new();
    for _ in 0..5 {
        nodes.push(stage.node().await);
    }
    // Each has looked when it has seen this.
    let before_the_move = Instant::now();
    let alice = account_dn("alice@a.test");
    set(
        &mut stage.slapd.admin().await,
        &alice,
        "zimbraMailHost",
        &["store2.test"],
    )
    .await;
    for node in &nodes {
        wait_until("a look", async || {
            node.directory.age().is_some_and(|age| age < before_the_move.elapsed())
        })
        .await;
        node.until("alice@a.test", "alice@a.test store2.test:7991").await;
        everybody_is_known_by(node, Tier::Memcached).await;
    }
    let deleted = stage.deletes() - before;
    assert!(deleted < 200, "{deleted} deletes");
}

#[tokio::test]
async fn nodes_start_quietly_where_the_server_says_how_far_it_is() {
    nodes_start_quietly(Kind::default()).await;
}

#[tokio::test]
async fn nodes_start_quietly_where_the_server_does_not_say_how_far_it_is() {
    nodes_start_quietly(Kind {
        without_context_csn: true,
        ..Kind::default()
    })
    .await;
}

#[tokio::test]
async fn while_the_directory_is_down_known_accounts_get_in() {
    let mut slapd = LdapStage::start("");
    let (directory, _) = LdapDirectory::load(settings(&[slapd.url()])).await.unwrap();
    let node = Node::around(directory, Duration::from_millis(500));
    let alice = "alice@a.test store1.test:7990";
    node.until("alice", alice).await;
    slapd.freeze();
    let before = Instant::now();
    assert_eq!(node.ask("bob").await, "down");
    assert!(
        before.elapsed() < TIMEOUT + Duration::from_secs(1),
        "{:?}",
        before.elapsed()
    );
    let stale = node.cache.route(&login("alice")).await.unwrap();
    assert_eq!(stale.tier, Tier::Stale);
    slapd.thaw();
    node.until("bob", "bob@a.test store2.test:7991").await;
    slapd.stop();
    assert_eq!(node.ask("carl@a.test").await, "down");
    tokio::time::sleep(Duration::from_millis(600)).await;
    assert_eq!(node.ask("al").await, "down", "this name was not seen before");
    assert_eq!(node.cache.route(&login("alice")).await.unwrap().tier, Tier::Stale);
    assert_eq!(node.directory.system().domains().count(), 2);
    slapd.resume();
    node.until("al", alice).await;
    wait_until("fresh answers", async || {
        node.cache.route(&login("alice")).await.unwrap().tier != Tier::Stale
    })
    .await;
}

const CONFIG: &str = "cn=config,cn=zimbra";

/// The story of a directory in which one thing after the other changes.
async fn changes_are_seen(kind: Kind<'_>) {
    let slapd = LdapStage::start_as(kind, "");
    let node = Node::open(settings(&[slapd.url()])).await;
    let mut admin = slapd.admin().await;
    let alice = "alice@a.test store1.test:7990";
    assert_eq!(node.ask("alice").await, alice);
    assert_eq!(node.ask("al").await, alice);

    a_servers_port_changes(&node, &mut admin).await;
    domains_change(&node, &mut admin).await;
    a_bad_value_is_set(&node, &mut admin).await;
    an_account_changes(&node, &mut admin).await;
    nothing_changes(&node).await;
}

async fn a_servers_port_changes(node: &Node, admin: &mut Ldap) {
    let generations = node.directory.changes();
    let server = "cn=store1.test,cn=servers,cn=zimbra";
    set(admin, server, "zimbraImapSSLBindPort", &["1993"]).await;
    node.until("alice", "alice@a.test store1.test:1993").await;
    assert!(generations.has_changed().unwrap());
}

/// One gets another host name, one goes.
async fn domains_change(node: &Node, admin: &mut Ldap) {
    set(admin, &domain_dn("a.test"), "zimbraVirtualHostname", &["new.a.test"]).await;
    wait_until("the host name", async || {
        node.directory.system().domain_by_host("new.a.test").is_some()
    })
    .await;
    assert!(node.directory.system().domain_by_host("mail.a.test").is_none());
    let gone = domain_dn("alias.test");
    for dn in [format!("ou=people,{gone}"), gone] {
        admin.delete(&dn).await.unwrap().success().unwrap();
    }
    wait_until("the domain to go", async || {
        node.directory.system().domain("alias.test").is_none()
    })
    .await;
}

/// Its predecessor stays, and the rest is taken over.
async fn a_bad_value_is_set(node: &Node, admin: &mut Ldap) {
    set(admin, CONFIG, "zimbraReverseProxyMailMode", &["nonsense"]).await;
    set(admin, CONFIG, "zimbraReverseProxyConnectTimeout", &["7s"]).await;
    let timeout = &mail_directory::attributes::REVERSE_PROXY_CONNECT_TIMEOUT;
    wait_until("the timeout", async || {
        node.directory.system().global().duration(timeout) == Duration::from_secs(7)
    })
    .await;
    let mode = &mail_directory::attributes::REVERSE_PROXY_MAIL_MODE;
    assert_eq!(node.directory.system().global().choice(mode), "https");
}

/// It loses an alias and gets another, it moves, and another attribute names its server.
async fn an_account_changes(node: &Node, admin: &mut Ldap) {
    let alice = account_dn("alice@a.test");
    set(admin, &alice, "zimbraMailAlias", &["new@a.test"]).await;
    node.until("al", "unknown").await;
    set(admin, &alice, "zimbraMailHost", &["store2.test"]).await;
    node.until("new", "alice@a.test store2.test:7991").await;
    assert_eq!(node.ask("alice").await, "alice@a.test store2.test:7991");
    set(admin, &alice, "carLicense", &["store1.test"]).await;
    let attribute = "zimbraReverseProxyMailHostAttribute";
    set(admin, CONFIG, attribute, &["carLicense"]).await;
    node.until("alice", "alice@a.test store1.test:1993").await;
}

/// No look announces a change, and routes stay.
async fn nothing_changes(node: &Node) {
    tokio::time::sleep(POLL * 3).await;
    let generations = node.directory.changes();
    let before = node.cache.route(&login("alice")).await.unwrap();
    tokio::time::sleep(POLL * 4).await;
    assert!(!generations.has_changed().unwrap());
    let after = node.cache.route(&login("alice")).await.unwrap();
    assert_eq!((before.tier, after.tier), (Tier::Memory, Tier::Memory));
}

#[tokio::test]
async fn changes_are_seen_where_the_server_says_how_far_it_is() {
    changes_are_seen(Kind::default()).await;
}

#[tokio::test]
async fn changes_are_seen_where_the_server_does_not_say_how_far_it_is() {
    changes_are_seen(Kind {
        without_context_csn: true,
        ..Kind::default()
    })
    .await;
}

/// Of an account that is deleted LDAP tells nothing: it is looked for, of what is kept, once something has moved.
async fn deleted_accounts_are_noticed(kind: Kind<'_>) {
    let many: String = (0..450)
        .map(|i| account(&format!("u{i}@a.test"), "zimbraMailHost: store1.test\n"))
        .collect();
    let slapd = LdapStage::start_as(kind, &many);
    let node = Node::open(settings(&[slapd.url()])).await;
    let mut admin = slapd.admin().await;
    let (alice, bob) = ("alice@a.test store1.test:7990", "bob@a.test store2.test:7991");
    // The first look of the watch makes the cache forget.
    wait_until("routes to stay in memory", async || {
        node.cache.route(&login("alice")).await.unwrap().tier == Tier::Memory
    })
    .await;
    for i in 0..450 {
        node.ask(&format!("u{i}@a.test")).await;
    }
    assert_eq!(
        (node.ask("al").await, node.ask("bob").await),
        (alice.to_owned(), bob.to_owned())
    );
    for gone in ["bob@a.test", "u7@a.test"] {
        admin.delete(&account_dn(gone)).await.unwrap().success().unwrap();
    }
    node.until("bob", "unknown").await;
    node.until("u7@a.test", "unknown").await;
    // No other route was forgotten over it.
    for name in ["alice@a.test", "u8@a.test", "u449@a.test"] {
        assert_eq!(
            node.cache.route(&login(name)).await.unwrap().tier,
            Tier::Memory,
            "{name}"
        );
    }
}

#[tokio::test]
async fn deleted_accounts_are_noticed_where_the_server_says_how_far_it_is() {
    deleted_accounts_are_noticed(Kind::default()).await;
}

#[tokio::test]
async fn deleted_accounts_are_noticed_where_the_server_does_not_say_how_far_it_is() {
    deleted_accounts_are_noticed(Kind {
        without_context_csn: true,
        ..Kind::default()
    })
    .await;
}

/// What a node has left in a file serves in the next one, but for what changed between them.
async fn kept_routes_have_missed_nothing(kind: Kind<'_>, tier: Tier) {
    let mut slapd = LdapStage::start_as(kind, "");
    let path = slapd.path("routes.snapshot");
    let first = Node::open(settings(&[slapd.url()])).await;
    let kept = KeptRoutes::new(first.cache.clone(), path.clone());
    kept.load().await;
    for name in ["alice@a.test", "al@a.test", "#id-alice@a.test", "bob@a.test"] {
        first.ask(name).await;
    }
    // Until a look has told how far the directory is, a file could not be believed.
    wait_until("a file that says how far the directory was", async || {
        first.cache.expire();
        first.ask("alice@a.test").await;
        first.ask("bob@a.test").await;
        kept.write_last().await;
        kept.write_on();
        let bytes = std::fs::read(&path).unwrap_or_default();
        ["csn ", "clock "]
            .iter()
            .any(|point| bytes.windows(point.len()).any(|window| window == point.as_bytes()))
    })
    .await;
    drop(first);
    let mut admin = slapd.admin().await;
    set(
        &mut admin,
        &account_dn("bob@a.test"),
        "zimbraMailHost",
        &["store1.test"],
    )
    .await;

    let open = async || {
        let (directory, _) = LdapDirectory::load(settings(&[slapd.url()])).await.unwrap();
        let node = Node::around(directory, Duration::from_secs(3600));
        KeptRoutes::new(node.cache.clone(), path.clone()).load().await;
        node
    };
    let second = open().await;
    assert_eq!(second.cache.route(&login("alice@a.test")).await.unwrap().tier, tier);
    assert_eq!(second.ask("bob@a.test").await, "bob@a.test store1.test:7990");
    drop(second);

    // Another directory at the same place: the global config was made anew.
    slapd.stop();
    let other = LdapStage::start("");
    let (directory, _) = LdapDirectory::load(settings(&[other.url()])).await.unwrap();
    let stranger = Node::around(directory, Duration::from_secs(3600));
    KeptRoutes::new(stranger.cache.clone(), path.clone()).load().await;
    assert!(stranger.cache.is_empty());
}

#[tokio::test]
async fn kept_routes_have_missed_nothing_where_the_server_says_how_far_it_is() {
    kept_routes_have_missed_nothing(Kind::default(), Tier::KeptFile).await;
}

#[tokio::test]
async fn kept_routes_have_missed_nothing_where_the_server_does_not_say_how_far_it_is() {
    let kind = Kind {
        without_context_csn: true,
        ..Kind::default()
    };
    // Clocks are not trusted to the second: what was made just before may have changed after.
    kept_routes_have_missed_nothing(kind, Tier::Directory).await;
}

/// A reading that lost most domains is held back; accounts are followed all the same. They are gone before the node
/// begins to follow: it sees the loss as one, however slow it is.
#[tokio::test]
async fn a_directory_that_lost_most_domains_waits_for_confirmation() {
    let names = ["d1.test", "d2.test", "d3.test"];
    let slapd = LdapStage::start(&names.map(|name| domain(name, "")).concat());
    let (read_before, _) = LdapDirectory::load(settings(&[slapd.url()])).await.unwrap();
    let mut admin = slapd.admin().await;
    for dn in names
        .iter()
        .flat_map(|name| [format!("ou=people,{}", domain_dn(name)), domain_dn(name)])
    {
        admin.delete(&dn).await.unwrap().success().unwrap();
    }
    let node = Node::around(read_before, Duration::from_secs(3600));
    let directory: Arc<dyn Directory> = node.directory.clone();
    wait_until("the reading to be held back", async || directory.refusal().is_some()).await;
    let reason = directory.refusal().unwrap();
    assert!(reason.contains("3 of 5 domains are gone"), "{reason}");
    assert_eq!(node.ask("alice@a.test").await, "alice@a.test store1.test:7990");
    set(
        &mut admin,
        &account_dn("alice@a.test"),
        "zimbraMailHost",
        &["store2.test"],
    )
    .await;
    node.until("alice@a.test", "alice@a.test store2.test:7991").await;
    assert!(directory.clone().refresh(everything(), Losses::Few).await.is_err());
    assert_eq!(directory.system().domains().count(), 5);
    directory.clone().refresh(everything(), Losses::Most).await.unwrap();
    assert_eq!((directory.system().domains().count(), directory.refusal()), (2, None));
}

/// The account moves to and fro while many log in all the time. Each answer carries the number of the move that it
/// knows of; none may be older than the last one that had been seen when it was asked for.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn after_a_move_is_seen_no_lookup_returns_the_old_server() {
    const MOVES: usize = 200;
    const NAMES: [&str; 4] = ["alice@a.test", "al@a.test", "#id-alice@a.test", "ALICE"];
    let slapd = LdapStage::start("");
    let mut admin = slapd.admin().await;
    set(
        &mut admin,
        "cn=config,cn=zimbra",
        "zimbraReverseProxyUserNameAttribute",
        &["carLicense"],
    )
    .await;
    move_alice(&mut admin, 0).await;
    let node = Node::open(settings(&[slapd.url()])).await;
    let seen = Arc::new(AtomicUsize::new(0));
    let done = Arc::new(AtomicBool::new(false));
    let look_up = |i: usize| {
        let (cache, seen, done) = (node.cache.clone(), seen.clone(), done.clone());
        tokio::spawn(async move {
            let mut count = 0;
            while !done.load(Ordering::SeqCst) {
                let before = seen.load(Ordering::SeqCst);
                assert!(known_move(&cache, NAMES[i % 4]).await >= before);
                count += 1;
                tokio::task::yield_now().await;
            }
            count
        })
    };
    let lookups: Vec<JoinHandle<usize>> = (0..8).map(look_up).collect();
    for i in 1..=MOVES {
        move_alice(&mut admin, i).await;
        // Looking at once is what a poll does; waiting for 200 of them would take too long.
        (node.directory.clone() as Arc<dyn Directory>)
            .refresh(everything(), Losses::Most)
            .await
            .unwrap();
        wait_until("the move to be seen", async || {
            known_move(&node.cache, "alice").await == i
        })
        .await;
        seen.store(i, Ordering::SeqCst);
        for name in NAMES {
            assert_eq!(known_move(&node.cache, name).await, i, "{name}");
        }
    }
    done.store(true, Ordering::SeqCst);
    for task in lookups {
        assert!(task.await.unwrap() > MOVES);
    }
}

/// The name to log in with is the number of the move.
async fn move_alice(admin: &mut Ldap, number: usize) {
    let one = |value: String| [value].into_iter().collect();
    let host = ["store1.test", "store2.test"][number % 2].to_owned();
    let changes = vec![
        Mod::Replace("zimbraMailHost".to_owned(), one(host)),
        Mod::Replace("carLicense".to_owned(), one(number.to_string())),
    ];
    admin
        .modify(&account_dn("alice@a.test"), changes)
        .await
        .unwrap()
        .success()
        .unwrap();
}

async fn known_move(cache: &RouteCache, name: &str) -> usize {
    let route = cache.route(&login(name)).await.unwrap();
    let number: usize = route.login.parse().unwrap();
    assert_eq!(&*route.server, ["store1.test", "store2.test"][number % 2]);
    number
}
