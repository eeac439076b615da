//! What a route costs: a hit in memory, the memory of a million routes, the file that keeps them, a miss that a real
//! slapd answers, and a change that it tells. Prints numbers, judges nothing.
// What cannot be done here is the end of the bench.
#![allow(clippy::unwrap_used)]

use std::fs;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use async_trait::async_trait;
use mail_directory::ldap::{self, LdapDirectory, Trust, Url};
use mail_directory::{AccountBy, Apply, Directory, DirectoryError, Entry, Secret, System};
use portico_tests::ldap_stage::{self, ADMIN, LdapStage};
use portico_tests::wait_until;
use route_cache::{KeptRoutes, Lookup, RouteCache, Service, Settings, Subject, Tier};

/// Accounts in memory.
const MANY: usize = 1_000_000;
/// Routes that are known, for the time of a hit among them.
const KNOWN: [usize; 3] = [100, 10_000, MANY];
/// Hits that are timed.
const HITS: usize = 2_000_000;
/// Names that all of the hits are for, where they are few.
const FEW: usize = 1000;
/// Accounts in slapd; each is asked for once.
const MISSES: usize = 5000;
/// Of them, those that are not counted: connections are made and files read.
const WARM_UP: usize = 500;
/// Changes that slapd tells.
const CHANGES: usize = 500;

fn main() {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    runtime.unwrap().block_on(async {
        // `cargo bench -p route-cache --bench routes -- told` does the last part alone.
        if !std::env::args().any(|word| word == "told") {
            in_memory().await;
            from_slapd().await;
        }
        told().await;
    });
}

async fn in_memory() {
    let before = resident_mib();
    let cache = cache(Arc::new(Everybody::new()));
    for known in KNOWN {
        for i in cache.len()..known {
            cache.route(&login(&name(i))).await.unwrap();
        }
        assert_eq!(cache.len(), known);
        println!(
            "a hit, of {known:7} known           {:8.0} ns",
            spread_hits(&cache).await
        );
    }
    println!(
        "memory of {MANY} routes       {:8.1} MiB resident",
        resident_mib() - before
    );
    let lookups: Vec<Lookup> = (0..FEW).map(|i| login(&name(i))).collect();
    let begin = Instant::now();
    for i in 0..HITS {
        let route = cache.route(&lookups[i % FEW]).await.unwrap();
        assert_eq!(route.tier, Tier::Memory);
    }
    println!(
        "a hit, of {FEW} names           {:8.0} ns",
        nanos(begin.elapsed()) / HITS as f64
    );
    in_a_file(cache).await;
}

/// The routes of this process for the next one. That one begins when this one's memory is free, so that its own can be
/// told.
async fn in_a_file(cache: RouteCache) {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("routes.snapshot");
    let kept = KeptRoutes::new(Arc::new(cache), path.clone());
    let begin = Instant::now();
    kept.write_last().await;
    println!(
        "{MANY} routes to a file       {:8.2} s, {:.1} MiB, {:.1} MiB resident",
        begin.elapsed().as_secs_f64(),
        fs::metadata(&path).unwrap().len() as f64 / 1024.0 / 1024.0,
        resident_mib()
    );
    drop(kept);
    let before = resident_mib();
    let cache = Arc::new(self::cache(Arc::new(Everybody::new())));
    let begin = Instant::now();
    KeptRoutes::new(cache.clone(), path).load().await;
    println!(
        "{MANY} routes from a file     {:8.2} s, {:.1} MiB resident more than {before:.1}",
        begin.elapsed().as_secs_f64(),
        resident_mib() - before
    );
    assert_eq!(cache.len(), MANY);
}

/// Hits of all names by turns; where they are many, none is in the processor's cache. Without the time that it takes to
/// write its name.
async fn spread_hits(cache: &RouteCache) -> f64 {
    let (mut spent, known) = (Duration::ZERO, cache.len());
    for chunk in 0..MANY / FEW {
        let place = |i: usize| (chunk * FEW + i) * 7919 % known;
        let lookups: Vec<Lookup> = (0..FEW).map(|i| login(&name(place(i)))).collect();
        let begin = Instant::now();
        for lookup in &lookups {
            cache.route(lookup).await.unwrap();
        }
        spent += begin.elapsed();
    }
    nanos(spent) / MANY as f64
}

async fn from_slapd() {
    let accounts: String = (0..MISSES)
        .map(|i| ldap_stage::account(&format!("user{i}@a.test"), "zimbraMailHost: store1.test\n"))
        .collect();
    let slapd = LdapStage::start(&accounts);
    let directory = directory(&slapd).await;
    let cache = cache(Arc::new(directory));
    let mut times = Vec::new();
    for i in 0..MISSES {
        let lookup = login(&format!("user{i}@a.test"));
        let begin = Instant::now();
        let route = cache.route(&lookup).await.unwrap();
        times.push(begin.elapsed());
        assert_eq!(route.tier, Tier::Directory);
    }
    let mut times = times.split_off(WARM_UP);
    times.sort();
    let at = |part: usize| nanos(times[times.len() * part / 100]) / 1000.0;
    println!(
        "a miss, answered by slapd       {:8.0} µs p50 {:8.0} µs p99, of {}",
        at(50),
        at(99),
        times.len()
    );
}

/// Moves of an account, each until a lookup at both of two nodes gives the new server. Nobody looks for changes: slapd
/// tells them.
async fn told() {
    let slapd = LdapStage::start("");
    let nodes = [told_node(&slapd).await, told_node(&slapd).await];
    let (mut admin, alice) = (slapd.admin().await, login("alice@a.test"));
    let mut times = Vec::new();
    for i in 0..CHANGES {
        let host = format!("store{}.test", i % 2 + 1);
        ldap_stage::set(
            &mut admin,
            &ldap_stage::account_dn("alice@a.test"),
            "zimbraMailHost",
            &[&host],
        )
        .await;
        let begin = Instant::now();
        for cache in &nodes {
            while cache.route(&alice).await.unwrap().host.as_ref() != host {
                tokio::time::sleep(Duration::from_micros(200)).await;
            }
        }
        times.push(begin.elapsed());
    }
    times.sort();
    let at = |part: usize| nanos(times[times.len() * part / 100]) / 1000.0;
    println!(
        "a move, told by slapd to two    {:8.0} µs p50 {:8.0} µs p99 {:8.0} µs most, of {CHANGES}",
        at(50),
        at(99),
        nanos(times[times.len() - 1]) / 1000.0
    );
}

/// A node that is told changes.
async fn told_node(slapd: &LdapStage) -> Arc<RouteCache> {
    let directory = Arc::new(directory(slapd).await);
    let cache = Arc::new(cache(directory.clone()));
    let everything: Arc<Apply> = Arc::new(|_| Ok(()));
    tokio::spawn(directory.clone().watch(Duration::from_secs(3600), everything));
    let following = cache.clone();
    tokio::spawn(async move { following.follow_directory().await });
    wait_until("slapd tells changes", async || {
        directory.way().is_some_and(|way| way.told_by.is_some())
    })
    .await;
    cache
}

async fn directory(slapd: &LdapStage) -> LdapDirectory {
    let settings = ldap::Settings {
        urls: vec![Url::parse(&slapd.url()).unwrap()],
        starttls: false,
        trust: Trust::system(),
        bind: Some((ADMIN.0.to_owned(), Secret::new(ADMIN.1.to_owned()))),
        timeout: Duration::from_secs(10),
        snapshot: None,
        sync: true,
    };
    let loaded = LdapDirectory::load(settings).await;
    let (directory, _) = loaded.unwrap_or_else(|problems| panic!("{problems}"));
    directory
}

fn cache(directory: Arc<dyn Directory>) -> RouteCache {
    let settings = Settings {
        node: "proxy.test".to_owned(),
        capacity: MANY as u64,
        ttl: Duration::from_secs(86_400),
        stale: Duration::from_secs(86_400),
        negative_ttl: Duration::from_secs(5),
    };
    RouteCache::new(settings, directory)
}

fn name(i: usize) -> String {
    format!("some.user.{i:07}@example.test")
}

fn login(name: &str) -> Lookup {
    let address = IpAddr::from([192, 0, 2, 1]);
    Lookup {
        subject: Subject::Login(name.to_owned()),
        service: Service::Imap,
        client: address,
        local: address,
        host: None,
    }
}

fn nanos(time: Duration) -> f64 {
    time.as_nanos() as f64
}

fn resident_mib() -> f64 {
    let status = fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
    line.trim().trim_end_matches(" kB").trim().parse::<f64>().unwrap() / 1024.0
}

/// A directory in which everybody lives on the one server that there is.
struct Everybody(Arc<System>);

impl Everybody {
    fn new() -> Self {
        let config = Entry::new("config");
        Self(Arc::new(System::new(config, [Entry::new("store1.test")], [], [])))
    }
}

#[async_trait]
impl Directory for Everybody {
    fn system(&self) -> Arc<System> {
        self.0.clone()
    }

    async fn account(&self, by: &AccountBy) -> Result<Option<Arc<Entry>>, DirectoryError> {
        let AccountBy::Name(name) = by else { return Ok(None) };
        let mut entry = Entry::new(name.clone());
        entry.set("zimbraMailHost", ["store1.test"]);
        Ok(Some(Arc::new(entry)))
    }
}
