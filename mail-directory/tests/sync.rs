//! Changes that a real slapd tells as they happen (RFC 4533): what arrives, and every way back where telling fails.
//! Nobody looks for changes in between: that would be in an hour.
// What cannot be done here is the end of the test.
#![allow(clippy::unwrap_used)]

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::{Duration, Instant};

use mail_directory::ldap::{LdapDirectory, Settings, Trust, Url};
use mail_directory::{AccountBy, Apply, Directory, Entry, News, Secret, WayOfChanges};
use portico_tests::forwarder::Forwarder;
use portico_tests::ldap_stage::{ADMIN, Kind, LdapStage, account, account_dn, domain, domain_dn, set};
use portico_tests::{amount, wait_until};
use tokio::sync::broadcast::error::TryRecvError;
use tokio::task::JoinHandle;

#[path = "sync/liar.rs"]
mod liar;

use liar::{Answer, Liar};

const HOUR: Duration = Duration::from_secs(3600);
const TIMEOUT: Duration = Duration::from_millis(700);
const CONFIG: &str = "cn=config,cn=zimbra";

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

async fn load(settings: Settings) -> Arc<LdapDirectory> {
    let loaded = LdapDirectory::load(settings).await;
    let (directory, _) = loaded.unwrap_or_else(|problems| panic!("{problems}"));
    Arc::new(directory)
}

/// Follows the directory until the test ends, and looks for changes only so often.
fn watch(directory: &Arc<LdapDirectory>, poll: Duration) -> JoinHandle<()> {
    let everything: Arc<Apply> = Arc::new(|_| Ok(()));
    let directory: Arc<dyn Directory> = directory.clone();
    tokio::spawn(directory.watch(poll, everything))
}

/// A directory that is told of changes by this server.
async fn told_by(urls: &[String]) -> (Arc<LdapDirectory>, JoinHandle<()>) {
    let directory = load(settings(urls)).await;
    let watching = watch(&directory, HOUR);
    until("changes are told", || is_told(&directory)).await;
    (directory, watching)
}

async fn until(what: &str, mut is_so: impl FnMut() -> bool) {
    wait_until(what, async || is_so()).await;
}

fn way(directory: &LdapDirectory) -> WayOfChanges {
    directory.way().unwrap()
}

fn is_told(directory: &LdapDirectory) -> bool {
    way(directory).told_by.is_some()
}

fn mode(directory: &LdapDirectory) -> String {
    let system = directory.system();
    let config = system.global().entry().cloned().unwrap_or_default();
    config
        .first("zimbraReverseProxyMailMode")
        .unwrap_or_default()
        .to_owned()
}

/// Every name and id that was announced so far.
struct Heard {
    news: tokio::sync::broadcast::Receiver<News>,
    names: BTreeSet<String>,
    unknown: bool,
    may_be_gone: bool,
}

impl Heard {
    fn of(directory: &LdapDirectory) -> Self {
        Self {
            news: directory.news(),
            names: BTreeSet::new(),
            unknown: false,
            may_be_gone: false,
        }
    }

    fn has(&mut self, name: &str) -> bool {
        loop {
            match self.news.try_recv() {
                Ok(News::Touched(touched)) => {
                    let names = touched.iter().flat_map(|one| one.names.iter().chain(&one.ids));
                    self.names.extend(names.cloned());
                }
                Ok(News::Unknown) | Err(TryRecvError::Lagged(_)) => self.unknown = true,
                Ok(News::MayBeGone) => self.may_be_gone = true,
                Ok(News::Reached(_) | News::Mark(_)) => {}
                Err(_) => return self.names.contains(name),
            }
        }
    }
}

#[tokio::test]
async fn every_kind_of_change_is_told() {
    let slapd = LdapStage::start("");
    let (directory, _watching) = told_by(&[slapd.url()]).await;
    assert_eq!(way(&directory).told_by, Some(slapd.url()));
    let mut heard = Heard::of(&directory);
    let mut admin = slapd.admin().await;

    set(&mut admin, CONFIG, "zimbraReverseProxyMailMode", &["both"]).await;
    until("the global config is taken over", || mode(&directory) == "both").await;

    let server = "cn=store1.test,cn=servers,cn=zimbra";
    set(&mut admin, server, "zimbraImapSSLBindPort", &["1993"]).await;
    let port = |directory: &LdapDirectory| {
        let system = directory.system();
        let server = system.server("store1.test").and_then(|server| server.entry().cloned());
        server.and_then(|server| server.first("zimbraImapSSLBindPort").map(str::to_owned))
    };
    until("the server is taken over", || {
        port(&directory).as_deref() == Some("1993")
    })
    .await;

    let class = "cn=away,cn=cos,cn=zimbra";
    set(&mut admin, class, "zimbraImapEnabled", &["FALSE"]).await;
    let is_away = |directory: &LdapDirectory| {
        let system = directory.system();
        let away = system.classes().find(|class| class.name() == "away").cloned();
        away.and_then(|away| away.first("zimbraImapEnabled").map(str::to_owned))
    };
    until("the class of service is taken over", || {
        is_away(&directory).as_deref() == Some("FALSE")
    })
    .await;

    add(&mut admin, &domain("new.test", "zimbraVirtualHostname: www.new.test\n")).await;
    let has_host = || directory.system().domain_by_host("www.new.test").is_some();
    until("a new domain is taken over", has_host).await;
    admin
        .delete(&format!("ou=people,{}", domain_dn("new.test")))
        .await
        .unwrap()
        .success()
        .unwrap();
    admin.delete(&domain_dn("new.test")).await.unwrap().success().unwrap();
    until("a deleted domain is gone", || !has_host()).await;

    set(
        &mut admin,
        &account_dn("alice@a.test"),
        "zimbraMailHost",
        &["store2.test"],
    )
    .await;
    until("a changed account is announced with its names", || {
        heard.has("al@a.test") && heard.has("id-alice@a.test")
    })
    .await;
    admin
        .delete(&account_dn("bob@a.test"))
        .await
        .unwrap()
        .success()
        .unwrap();
    until("a deleted account is announced", || heard.has("bob@a.test")).await;
    add(&mut admin, &account("carol@a.test", "zimbraMailHost: store1.test\n")).await;
    until("a new account is announced", || heard.has("carol@a.test")).await;
    assert!(!heard.unknown);
    assert!(way(&directory).told >= 8, "{:?}", way(&directory));
}

/// What `tls_is_verified` is to searches: a telling goes through TLS, and only to a server that proves its name.
#[tokio::test]
async fn changes_are_told_in_tls() {
    let slapd = LdapStage::start("");
    for (url, starttls) in [(slapd.url(), true), (slapd.tls_url(), false)] {
        let directory = load(Settings {
            starttls,
            trust: Trust::only(&slapd.ca()).unwrap(),
            ..settings(&[url])
        })
        .await;
        let watching = watch(&directory, HOUR);
        until("changes are told", || is_told(&directory)).await;
        watching.abort();
    }
}

#[tokio::test]
async fn a_server_without_it_is_looked_at() {
    let slapd = LdapStage::start_as(
        Kind {
            without_context_csn: true,
            ..Default::default()
        },
        "",
    );
    let directory = load(settings(&[slapd.url()])).await;
    let _watching = watch(&directory, Duration::from_millis(200));
    let mut admin = slapd.admin().await;
    set(&mut admin, CONFIG, "zimbraReverseProxyMailMode", &["both"]).await;
    until("the change is found", || mode(&directory) == "both").await;
    let says_why = || way(&directory).why.is_some_and(|why| why.contains("has no contextCSN"));
    until("it is said why", says_why).await;
    assert!(!is_told(&directory));
}

#[tokio::test]
async fn it_can_be_switched_off() {
    let slapd = LdapStage::start("");
    let directory = load(Settings {
        sync: false,
        ..settings(&[slapd.url()])
    })
    .await;
    let _watching = watch(&directory, Duration::from_millis(200));
    let mut admin = slapd.admin().await;
    set(&mut admin, CONFIG, "zimbraReverseProxyMailMode", &["both"]).await;
    until("the change is found", || mode(&directory) == "both").await;
    assert_eq!(way(&directory).why.as_deref(), Some("directory.ldap.sync is off"));
}

/// A firewall forgets the connection without notice: the silence is noticed, and what changed meanwhile is found.
#[tokio::test]
async fn a_dead_connection_is_noticed() {
    let slapd = LdapStage::start("");
    let firewall = Forwarder::start(slapd.address()).await.unwrap();
    let (directory, _watching) = told_by(&[firewall.url()]).await;
    let mut heard = Heard::of(&directory);
    firewall.forget();
    let mut admin = slapd.admin().await;
    set(
        &mut admin,
        &account_dn("alice@a.test"),
        "zimbraMailHost",
        &["store2.test"],
    )
    .await;
    set(&mut admin, CONFIG, "zimbraReverseProxyMailMode", &["both"]).await;
    until("the changes are found", || {
        heard.has("alice@a.test") && mode(&directory) == "both"
    })
    .await;
    until("changes are told again", || is_told(&directory)).await;
    assert!(firewall.opened() > 2, "new connections, for searches and for changes");
}

/// The provider is restarted, and changed before anybody has come back to it; then another one is put in its place.
#[tokio::test]
async fn a_restarted_and_a_replaced_server_are_caught_up_with() {
    let mut slapd = LdapStage::start("");
    let (directory, _watching) = told_by(&[slapd.url()]).await;
    let mut heard = Heard::of(&directory);
    slapd.stop();
    until("the end is noticed", || !is_told(&directory)).await;
    slapd.resume();
    let mut admin = slapd.admin().await;
    set(
        &mut admin,
        &account_dn("alice@a.test"),
        "zimbraMailHost",
        &["store2.test"],
    )
    .await;
    set(&mut admin, CONFIG, "zimbraReverseProxyMailMode", &["both"]).await;
    until("the changes are found", || {
        heard.has("alice@a.test") && mode(&directory) == "both"
    })
    .await;
    until("changes are told again", || is_told(&directory)).await;

    slapd.stop();
    slapd.replace(&domain("other.test", "zimbraVirtualHostname: www.other.test\n"));
    let is_other = || directory.system().domain_by_host("www.other.test").is_some() && mode(&directory) == "https";
    until("the other server's tree is in force", is_other).await;
    until("nothing is believed that the other server said", || {
        heard.has("");
        heard.unknown
    })
    .await;
    until("changes are told again", || is_told(&directory)).await;
    let mut admin = slapd.admin().await;
    set(&mut admin, CONFIG, "zimbraReverseProxyMailMode", &["redirect"]).await;
    until("it tells its changes", || mode(&directory) == "redirect").await;
}

/// The second server lags behind: nothing is taken for true that it does not know yet. When the first is back, it is
/// the one that tells.
#[tokio::test]
async fn a_lagging_replica_tells_until_the_provider_is_back() {
    let mut slapd = LdapStage::start("");
    let replica = slapd.late_replica();
    let mut admin = slapd.admin().await;
    let knows_config = || !replica.search("(cn=config)", &["cn"]).unwrap_or_default().is_empty();
    until("the replica is filled", knows_config).await;
    set(&mut admin, CONFIG, "zimbraReverseProxyMailMode", &["both"]).await;
    let (directory, _watching) = told_by(&[slapd.url(), replica.url()]).await;
    let mut heard = Heard::of(&directory);
    slapd.stop();
    until("the replica tells", || way(&directory).told_by == Some(replica.url())).await;
    heard.has("");
    assert!(heard.unknown, "what the replica does not know must not be believed");
    slapd.resume();
    until("the provider tells", || way(&directory).told_by == Some(slapd.url())).await;
    assert_eq!(mode(&directory), "both");
}

/// What the liar says to the request for changes, and what is said of that. Searches go through: polling goes on.
#[tokio::test]
async fn servers_that_lie_only_cost_the_telling() {
    let slapd = LdapStage::start("");
    let mut admin = slapd.admin().await;
    let mut modes = ["both", "redirect", "https"].into_iter().cycle();
    for (answer, words) in [
        (Answer::REFRESH_REQUIRED, "cannot go on from here"),
        (Answer::UNWILLING, "cannot go on from here"),
        (Answer::NO_RIGHT, "refuses it: result 50"),
        (Answer::Bytes(&[0x30, 0x84, 0xff, 0xff, 0xff, 0xff]), "nonsense"),
        (Answer::Bytes(b"HTTP/1.1 400 Bad Request\r\n\r\n"), "nonsense"),
        (
            Answer::Bytes(&[0x30, 0x05, 0x02, 0x01, 0x04, 0x79, 0x00]),
            "the server does not answer within",
        ),
        (Answer::Bytes(&[0x30, 0x05, 0x02, 0x01, 0x04, 0x64, 0x00]), "nonsense"),
        (Answer::Nested, "nonsense"),
        (Answer::Present, "would list more than 10000"),
        (Answer::Silence, "does not answer within"),
        (Answer::End, "the connection failed"),
    ] {
        let liar = Liar::start(slapd.address(), answer).await;
        let directory = load(settings(&[liar.url()])).await;
        let _watching = watch(&directory, Duration::from_millis(100));
        let says_why = || way(&directory).why.is_some_and(|why| why.contains(words));
        until(&format!("{words} is said of {answer:?}"), says_why).await;
        let next = modes.next().unwrap();
        set(&mut admin, CONFIG, "zimbraReverseProxyMailMode", &[next]).await;
        until("the change is found", || mode(&directory) == next).await;
    }
}

/// What the liar says to the search for one account. That search fails, the process lives on, and the server is asked
/// again after a while.
#[tokio::test]
async fn lies_about_an_account_only_cost_their_connection() {
    let accounts = ["liar", "honest"].map(|name| account(&format!("{name}@a.test"), "zimbraMailHost: store1.test\n"));
    let slapd = LdapStage::start(&accounts.concat());
    for answer in [
        Answer::Nested,
        Answer::Bytes(b"HTTP/1.1 400 Bad Request\r\n\r\n"),
        Answer::Bytes(&[0x30, 0x84, 0xff, 0xff, 0xff, 0xff]),
        Answer::Bytes(&[0x30, 0x00]),
        Answer::Bytes(&[0x30, 0x05, 0x02, 0x01, 0x03, 0x65, 0x00]),
        Answer::NoTree,
        Answer::Reference,
        Answer::TooMany,
        Answer::End,
    ] {
        let liar = Liar::about(b"liar@a.test", slapd.address(), answer).await;
        let directory = load(settings(&[liar.url()])).await;
        let find = async |name: &str| directory.account(&AccountBy::Name(format!("{name}@a.test"))).await;
        assert!(find("liar").await.is_err(), "{answer:?}");
        let deadline = Instant::now() + Duration::from_secs(10);
        while !matches!(find("honest").await, Ok(Some(_))) {
            assert!(
                Instant::now() < deadline,
                "the server is not asked again after {answer:?}"
            );
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }
}

/// An account is not looked for in pages, and an answer that leads from page to page for ever is none.
#[tokio::test]
async fn an_answer_without_end_comes_to_one() {
    let slapd = LdapStage::start("");
    let liar = Liar::about(b"liar@a.test", slapd.address(), Answer::Pages).await;
    let directory = load(settings(&[liar.url()])).await;
    let found = directory.account(&AccountBy::Name("liar@a.test".to_owned())).await;
    assert!(matches!(found, Ok(None)));
    let liar = Liar::about(b"zimbraDomain", slapd.address(), Answer::Pages).await;
    let problems = LdapDirectory::load(settings(&[liar.url()])).await.err();
    let problems = problems.map(|problems| problems.to_string()).unwrap_or_default();
    assert!(problems.contains("more than was asked for"), "{problems}");
}

/// A server that takes connections and answers no search, and one without a tree, cost time once, not at every login.
#[tokio::test]
async fn a_server_that_is_half_dead_or_empty_is_no_server() {
    let slapd = LdapStage::start(&account("a@a.test", "zimbraMailHost: store1.test\n"));
    for answer in [Answer::Silence, Answer::NoTree] {
        let liar = Liar::about(b"objectClass", slapd.address(), answer).await;
        let directory = load(settings(&[slapd.url(), liar.url()])).await;
        let turned = load(settings(&[liar.url(), slapd.url()])).await;
        let _recovering = [watch(&directory, HOUR), watch(&turned, HOUR)];
        let mut late = 0;
        for _ in 0..25 {
            for directory in [&directory, &turned] {
                let begun = Instant::now();
                let found = directory.account(&AccountBy::Name("a@a.test".to_owned())).await;
                assert!(matches!(found, Ok(Some(_))), "{answer:?}");
                late += usize::from(begun.elapsed() >= TIMEOUT / 3);
            }
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
        assert!(late <= 2, "{late} of 50 questions waited for {answer:?}");
    }
}

/// A server that once told changes, and then speaks nonsense, is looked at at once: what it told last may be lost.
#[tokio::test]
async fn nonsense_in_the_middle_has_the_directory_looked_at() {
    let slapd = LdapStage::start("");
    let liar = Liar::start(slapd.address(), Answer::LATER).await;
    let (directory, _watching) = told_by(&[liar.url()]).await;
    let mut admin = slapd.admin().await;
    liar.spoil();
    set(&mut admin, CONFIG, "zimbraReverseProxyMailMode", &["both"]).await;
    until("the change is found", || mode(&directory) == "both").await;
    until("changes are told again", || is_told(&directory)).await;
}

/// The listener does not listen while thousands of accounts change: nothing waits for it, and it hears that it has
/// missed something. Then the view is compared with the tree.
#[tokio::test]
async fn who_falls_behind_is_told_so() {
    let slapd = LdapStage::start("");
    let (directory, _watching) = told_by(&[slapd.url()]).await;
    let mut heard = Heard::of(&directory);
    let mut admin = slapd.admin().await;
    for i in 0..1500 {
        let host = format!("store{}.test", i % 2 + 1);
        set(&mut admin, &account_dn("alice@a.test"), "zimbraMailHost", &[&host]).await;
    }
    set(&mut admin, CONFIG, "zimbraReverseProxyMailMode", &["both"]).await;
    until("the last change is in force", || mode(&directory) == "both").await;
    assert!(heard.has("alice@a.test") || heard.unknown);
    assert!(way(&directory).told >= 1500, "{:?}", way(&directory));
    assert!(is_told(&directory));
}

/// Some hundred random changes (`PORTICO_CHANGES`: more), and a server that is restarted between them, loses its log of
/// changes, or is replaced by another one: a view that follows what is announced has what the tree has.
#[tokio::test]
async fn the_view_is_that_of_the_tree_after_random_changes() {
    let rounds = amount("PORTICO_CHANGES", 300).div_ceil(100);
    // Domains that stay: where most are gone at once, that would have to be confirmed.
    let staying: String = (0..8)
        .map(|i| domain(&format!("staying{i}.test"), "zimbraDomainStatus: active\n") + "\n")
        .collect();
    let mut slapd = LdapStage::start_as(
        Kind {
            accesslog: true,
            ..Kind::default()
        },
        &staying,
    );
    let directory = load(settings(&[slapd.url()])).await;
    let is_long = rounds > 3;
    // A server that is restarted every few seconds is left alone for half a minute: then changes are looked for.
    let _watching = watch(&directory, if is_long { Duration::from_secs(1) } else { HOUR });
    until("changes are told", || is_told(&directory)).await;
    let mut model = Model::of(&directory);
    let mut random = Random(4533);
    for round in 0..rounds {
        let mut admin = slapd.admin().await;
        random.changes(100, &mut admin, &mut model.names).await;
        set(
            &mut admin,
            CONFIG,
            "zimbraReverseProxyConnectTimeout",
            &[&format!("{}s", 40 + round % 100)],
        )
        .await;
        match round % 6 {
            1 => {
                slapd.stop();
                slapd.resume();
            }
            2 if is_long => {
                slapd.stop();
                slapd.replace(&staying);
            }
            4 => {
                slapd.stop();
                slapd.lose_accesslog();
                slapd.resume();
            }
            _ => {}
        }
        // What happens before the directory has come back.
        random.changes(10, &mut slapd.admin().await, &mut model.names).await;
        let truth = load(settings(&[slapd.url()])).await;
        model.wait_for(&truth).await;
    }
}

/// What a node would keep: the account of each name, as it was when it was asked for last.
struct Model {
    directory: Arc<LdapDirectory>,
    heard: Heard,
    kept: BTreeMap<String, Option<Arc<Entry>>>,
    names: BTreeSet<String>,
}

impl Model {
    fn of(directory: &Arc<LdapDirectory>) -> Self {
        Self {
            directory: directory.clone(),
            heard: Heard::of(directory),
            kept: BTreeMap::new(),
            names: BTreeSet::from(["alice@a.test".to_owned(), "bob@a.test".to_owned()]),
        }
    }

    /// Forgets what was announced, and asks for what is not kept.
    async fn step(&mut self) {
        self.heard.has("");
        if std::mem::take(&mut self.heard.unknown) {
            self.kept.clear();
        }
        let mut names = std::mem::take(&mut self.heard.names);
        if std::mem::take(&mut self.heard.may_be_gone) {
            let kept: Vec<Arc<str>> = self.kept.values().flatten().map(|entry| entry.name().into()).collect();
            match self.directory.gone(&kept).await {
                Ok(gone) => names.extend(gone.iter().map(ToString::to_string)),
                Err(_) => self.heard.may_be_gone = true,
            }
        }
        // Under whatever name it is kept.
        let is_named = |entry: &Entry| names.contains(entry.name());
        self.kept
            .retain(|name, found| !names.contains(name) && !found.as_ref().is_some_and(|entry| is_named(entry)));
        for name in &self.names {
            if !self.kept.contains_key(name) {
                let found = self.directory.account(&AccountBy::Name(name.clone())).await;
                self.kept.extend(found.ok().map(|found| (name.clone(), found)));
            }
        }
    }

    async fn wait_for(&mut self, truth: &LdapDirectory) {
        let mut wanted = BTreeMap::new();
        for name in &self.names {
            let found = truth.account(&AccountBy::Name(name.clone())).await.unwrap();
            wanted.insert(name.clone(), found);
        }
        let end = Instant::now() + Duration::from_secs(20);
        loop {
            self.step().await;
            let same_system = shown(&self.directory) == shown(truth);
            if same_system && self.kept == wanted {
                return;
            }
            let differs = wanted
                .iter()
                .filter(|(name, found)| self.kept.get(*name) != Some(found));
            assert!(Instant::now() < end, "{same_system}, {:?}", differs.collect::<Vec<_>>());
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }
}

/// Everything but the accounts, as text.
fn shown(directory: &LdapDirectory) -> String {
    let system = directory.system();
    let servers: Vec<_> = system.servers().map(|view| view.entry().cloned()).collect();
    let domains: Vec<_> = system.domains().map(|view| view.entry().cloned()).collect();
    let mut all: Vec<String> = servers
        .iter()
        .chain(&domains)
        .map(|entry| format!("{entry:?}"))
        .collect();
    all.extend(system.classes().map(|entry| format!("{entry:?}")));
    all.push(format!("{:?}", system.global().entry()));
    all.sort();
    all.join("\n")
}

/// The same changes in each run.
#[derive(Debug)]
struct Random(u64);

impl Random {
    fn below(&mut self, limit: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 % limit as u64) as usize
    }

    /// So many changes of the tree.
    async fn changes(&mut self, count: usize, admin: &mut ldap3::Ldap, names: &mut BTreeSet<String>) {
        for _ in 0..count {
            self.change(admin, names).await;
        }
    }

    /// One change of the tree; `names` are all that were ever in it.
    async fn change(&mut self, admin: &mut ldap3::Ldap, names: &mut BTreeSet<String>) {
        let user = format!("user{}@a.test", self.below(30));
        let alias = format!("alias{}@a.test", self.below(30));
        names.extend([user.clone(), alias.clone()]);
        let (host, dn) = (format!("store{}.test", self.below(2) + 1), account_dn(&user));
        match self.below(8) {
            0 | 1 => drop(try_add(admin, &account(&user, &format!("zimbraMailHost: {host}\n"))).await),
            2 => drop(admin.delete(&dn).await.unwrap()),
            3 | 4 => drop(replace(admin, &dn, "zimbraMailHost", &host).await),
            5 => drop(replace(admin, &dn, "zimbraMailAlias", &alias).await),
            6 => {
                let port = (1000 + self.below(9000)).to_string();
                let dn = format!("cn={host},cn=servers,cn=zimbra");
                drop(replace(admin, &dn, "zimbraImapSSLBindPort", &port).await);
            }
            _ => {
                let name = format!("domain{}.test", self.below(5));
                match self.below(2) {
                    0 => drop(try_add(admin, &domain(&name, "zimbraDomainStatus: active\n")).await),
                    _ => {
                        drop(admin.delete(&format!("ou=people,{}", domain_dn(&name))).await.unwrap());
                        drop(admin.delete(&domain_dn(&name)).await.unwrap());
                    }
                }
            }
        }
    }
}

async fn replace(admin: &mut ldap3::Ldap, dn: &str, attribute: &str, value: &str) -> ldap3::LdapResult {
    let change = ldap3::Mod::Replace(attribute, [value].into());
    admin.modify(dn, vec![change]).await.unwrap()
}

/// Adds the entries of an LDIF text.
async fn add(admin: &mut ldap3::Ldap, ldif: &str) {
    try_add(admin, ldif).await.success().unwrap();
}

/// The result of the first that fails, or of the last.
async fn try_add(admin: &mut ldap3::Ldap, ldif: &str) -> ldap3::LdapResult {
    let mut last = None;
    for text in ldif.split("\n\n").filter(|text| !text.trim().is_empty()) {
        let mut lines = text.lines().filter_map(|line| line.split_once(": "));
        let (_, dn) = lines.next().unwrap();
        let mut attributes: BTreeMap<&str, std::collections::HashSet<&str>> = BTreeMap::new();
        for (name, value) in lines {
            attributes.entry(name).or_default().insert(value);
        }
        let added = admin.add(dn, attributes.into_iter().collect()).await.unwrap();
        let failed = added.rc != 0;
        last = Some(added);
        if failed {
            break;
        }
    }
    last.unwrap()
}
