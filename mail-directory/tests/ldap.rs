//! The directory in LDAP against a real slapd with a Carbonio-like tree: reading, fail-over, TLS, and what is not put
//! in force.
// What cannot be done here is the end of the test.
#![allow(clippy::unwrap_used)]

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use mail_directory::ldap::{LdapDirectory, Settings, Trust, Url};
use mail_directory::yaml::Problems;
use mail_directory::{AccountBy, Apply, Directory, Losses, Secret};
use portico_tests::forwarder::Forwarder;
use portico_tests::ldap_stage::{ADMIN, LdapStage, account, domain, domain_dn, set};
use portico_tests::wait_until;
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

async fn load(settings: Settings) -> Arc<LdapDirectory> {
    let (directory, _) = LdapDirectory::load(settings)
        .await
        .unwrap_or_else(|problems| panic!("{problems}"));
    Arc::new(directory)
}

/// The name of the account that has this name or alias, or why there is none.
async fn find(directory: &LdapDirectory, name: &str) -> String {
    match directory.account(&AccountBy::Name(name.to_owned())).await {
        Ok(Some(account)) => account.name().to_owned(),
        Ok(None) => "unknown".to_owned(),
        Err(_) => "down".to_owned(),
    }
}

/// Follows the directory until the test ends or the task is aborted.
fn watch(directory: &Arc<LdapDirectory>) -> JoinHandle<()> {
    let directory: Arc<dyn Directory> = directory.clone();
    tokio::spawn(directory.watch(POLL, everything()))
}

/// Takes every system.
fn everything() -> Arc<Apply> {
    Arc::new(|_| Ok(()))
}

#[tokio::test]
async fn classes_of_service_servers_and_virtual_hosts_are_read() {
    let slapd = LdapStage::start(&account(
        "dora@a.test",
        "zimbraMailHost: store1.test\nzimbraCOSId: cos-away\n",
    ));
    let directory = load(settings(&[slapd.url()])).await;
    let system = directory.system();
    for (name, class) in [("dora@a.test", "away"), ("alice@a.test", "default")] {
        let account = directory.account(&AccountBy::Name(name.to_owned())).await.unwrap();
        assert_eq!(system.account(&account.unwrap()).parent_name(), class, "{name}");
    }
    assert_eq!(system.domain_by_host("mail.a.test").unwrap().name(), "a.test");
    assert_eq!(system.servers().count(), 2);
}

#[tokio::test]
async fn more_domains_than_a_page_has_are_all_read() {
    let more: String = (0..1200)
        .map(|i| domain(&format!("d{i}.test"), &format!("zimbraVirtualHostname: m{i}.test\n")))
        .collect();
    let slapd = LdapStage::start(&more);
    let system = load(settings(&[slapd.url()])).await.system();
    assert_eq!(system.domains().count(), 1202);
    assert_eq!(system.domain_by_host("m1199.test").unwrap().name(), "d1199.test");
}

#[tokio::test]
async fn a_directory_without_a_tree_or_without_the_right_to_read_it_is_refused() {
    let slapd = LdapStage::start("");
    let wrong = Some((ADMIN.0.to_owned(), Secret::new("wrong".to_owned())));
    for bind in [None, wrong] {
        let refused = LdapDirectory::load(Settings {
            bind,
            ..settings(&[slapd.url()])
        })
        .await;
        let said = refused.err().unwrap().to_string();
        assert!(
            said.contains("insufficientAccessRights") || said.contains("invalidCredentials"),
            "{said}"
        );
        assert!(!said.contains("wrong"), "{said}");
    }
}

#[tokio::test]
async fn the_first_server_is_left_when_it_fails_and_taken_again_when_it_is_back() {
    let mut first = LdapStage::start("");
    let second = LdapStage::start(&account("second@a.test", "zimbraMailHost: store2.test\n"));
    let directory = load(settings(&[first.url(), second.url()])).await;
    let _watch = watch(&directory);
    let name = "second@a.test";
    assert_eq!(find(&directory, name).await, "unknown");
    first.stop();
    let before = Instant::now();
    assert_eq!(find(&directory, name).await, name);
    assert!(before.elapsed() < TIMEOUT, "the next server is asked at once");
    first.resume();
    wait_until("the first server to be asked again", async || {
        find(&directory, name).await == "unknown"
    })
    .await;
    // A server that hangs costs one timeout, and then nothing.
    first.freeze();
    let before = Instant::now();
    assert_eq!(find(&directory, name).await, name);
    assert!(before.elapsed() < TIMEOUT * 2, "{:?}", before.elapsed());
    let before = Instant::now();
    assert_eq!(find(&directory, name).await, name);
    assert!(before.elapsed() < TIMEOUT / 2, "{:?}", before.elapsed());
    first.thaw();
}

/// A firewall forgets all connections at once. No lookup fails over it, each waits a part of the timeout at most once,
/// and some new connections do for all.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn connections_that_fall_silent_are_no_dead_directory() {
    // Longer than a busy machine may let an answer wait.
    const TIMEOUT: Duration = Duration::from_secs(8);
    let many: String = (0..400)
        .map(|i| account(&format!("u{i}@a.test"), "zimbraMailHost: store1.test\n"))
        .collect();
    let slapd = LdapStage::start(&many);
    let forwarder = Forwarder::start(slapd.address()).await.unwrap();
    let directory = load(Settings {
        timeout: TIMEOUT,
        ..settings(&[forwarder.url()])
    })
    .await;
    let ask = |i: usize| {
        let directory = directory.clone();
        tokio::spawn(async move {
            let start = Instant::now();
            let found = directory.account(&AccountBy::Name(format!("u{i}@a.test"))).await;
            assert!(found.unwrap().is_some(), "u{i}");
            start.elapsed()
        })
    };
    for round in 0..3 {
        // All connections are open and work.
        for i in 0..8 {
            ask(i).await.unwrap();
        }
        forwarder.forget();
        let before = forwarder.opened();
        let waited: Vec<_> = (0..400).map(ask).collect();
        for one in waited {
            let took = one.await.unwrap();
            assert!(took < TIMEOUT, "round {round}: {took:?}");
        }
        assert!(
            forwarder.opened() - before <= 8,
            "{} connections",
            forwarder.opened() - before
        );
        for i in 0..8 {
            let took = ask(i).await.unwrap();
            assert!(took < TIMEOUT / 4, "an old connection is still in use: {took:?}");
        }
    }
    // A directory that is dead is said to be dead, within its time.
    slapd.freeze();
    let start = Instant::now();
    assert_eq!(find(&directory, "u1@a.test").await, "down");
    assert!(start.elapsed() < TIMEOUT * 2, "{:?}", start.elapsed());
    slapd.thaw();
}

#[tokio::test]
async fn tls_is_verified() {
    let slapd = LdapStage::start("");
    let other = LdapStage::start("");
    let right = || Trust::only(&slapd.ca()).unwrap();
    let wrong = || Trust::only(&other.ca()).unwrap();
    for (url, starttls) in [(slapd.url(), true), (slapd.tls_url(), false), (slapd.tls_url(), true)] {
        let with = |trust| Settings {
            starttls,
            trust,
            ..settings(std::slice::from_ref(&url))
        };
        let directory = load(with(right())).await;
        assert_eq!(find(&directory, "al@a.test").await, "alice@a.test", "{url}");
        for (trust, url) in [
            (wrong(), url.clone()),
            (Trust::system(), url.clone()),
            (right(), url.replace("localhost", "127.0.0.1")),
        ] {
            let refused = LdapDirectory::load(Settings {
                urls: vec![Url::parse(&url).unwrap()],
                ..with(trust)
            })
            .await;
            let said = refused.err().unwrap().to_string();
            assert!(said.contains("TLS") || said.contains("certificate"), "{said}");
        }
    }
}

#[tokio::test]
async fn a_directory_that_may_no_longer_be_read_changes_nothing() {
    let slapd = LdapStage::start("");
    let directory: Arc<dyn Directory> = load(settings(&[slapd.url()])).await;
    let mut admin = slapd.admin().await;
    for server in ["store1.test", "store2.test"] {
        admin
            .delete(&format!("cn={server},cn=servers,cn=zimbra"))
            .await
            .unwrap()
            .success()
            .unwrap();
    }
    let refused = directory.clone().refresh(everything(), Losses::Most).await.unwrap_err();
    assert!(refused.to_string().contains("all servers are gone"), "{refused}");
    assert_eq!(directory.system().servers().count(), 2);
}

#[tokio::test]
async fn the_last_good_reading_serves_where_the_directory_is_down_at_the_start() {
    let mut slapd = LdapStage::start("");
    let snapshot: PathBuf = slapd.path("snapshot");
    let with_snapshot = || Settings {
        snapshot: Some(snapshot.clone()),
        ..settings(&[slapd.url()])
    };
    let (with, again) = (with_snapshot(), with_snapshot());
    let watch_task = watch(&load(with).await);
    wait_until("the snapshot", async || snapshot.exists()).await;
    watch_task.abort();
    slapd.stop();
    let (directory, warnings) = LdapDirectory::load(again).await.unwrap();
    let directory = Arc::new(directory);
    let _watch = watch(&directory);
    assert!(warnings.to_string().contains("last good reading"), "{warnings}");
    assert_eq!(
        directory.system().domain_by_host("mail.a.test").unwrap().name(),
        "a.test"
    );
    assert_eq!(find(&directory, "alice@a.test").await, "down");
    slapd.resume();
    wait_until("alice to be found", async || {
        find(&directory, "alice@a.test").await == "alice@a.test"
    })
    .await;
    let refused = LdapDirectory::load(settings(&["ldap://localhost:1".to_owned()])).await;
    assert!(refused.is_err());
}

#[tokio::test]
async fn what_cannot_be_applied_is_not_put_in_force() {
    let mut slapd = LdapStage::start("");
    let directory: Arc<dyn Directory> = load(settings(&[slapd.url()])).await;
    let applied = Arc::new(AtomicUsize::new(0));
    let count = applied.clone();
    let nothing: Arc<Apply> = Arc::new(move |_| {
        count.fetch_add(1, Ordering::SeqCst);
        Err(Problems::of_file("x".as_ref(), None, "not now"))
    });
    let mut admin = slapd.admin().await;
    set(
        &mut admin,
        &domain_dn("a.test"),
        "zimbraVirtualHostname",
        &["new.a.test"],
    )
    .await;
    for times in 1..3 {
        let refused = directory
            .clone()
            .refresh(nothing.clone(), Losses::Most)
            .await
            .unwrap_err();
        assert!(refused.to_string().contains("x: not now"), "{refused}");
        assert!(directory.system().domain_by_host("new.a.test").is_none());
        assert_eq!(applied.load(Ordering::SeqCst), times);
    }
    // It may be called for another reason than the directory, so also while that is down.
    slapd.stop();
    assert!(directory.clone().refresh(everything(), Losses::Most).await.is_err());
    assert!(directory.system().domain_by_host("new.a.test").is_some());
}
