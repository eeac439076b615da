//! Routes shared in a real memcached: what is read, what is written, and what its failures cost.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use mail_directory::Touched;
use route_cache::memcached::{Settings, choice};
use route_cache::{RouteCache, Service, SharedCache};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use crate::stage::{Counting, Memcached, ask, book, cache, login, system, until};

const TIMEOUT: Duration = Duration::from_millis(200);
const TTL: Duration = Duration::from_secs(3600);

fn shared(servers: &[String], retry: Duration) -> SharedCache {
    let settings = Settings {
        servers: servers.iter().map(|server| server.parse().unwrap()).collect(),
        timeout: TIMEOUT,
        retry,
    };
    SharedCache::new(&settings, TTL, book())
}

/// Alice's route for IMAP.
const ALICE: &str = "route:proto=imapssl;user=alice@a.test";

/// A memcached, a directory, and a node with both.
fn one_node() -> (Memcached, Arc<Counting>, Arc<RouteCache>) {
    let (memcached, directory) = (Memcached::start(), Counting::new(&system()));
    let node = node(&directory, &[memcached.address()]);
    (memcached, directory, node)
}

/// A node with these memcached servers.
fn node(directory: &Arc<Counting>, servers: &[String]) -> Arc<RouteCache> {
    Arc::new(cache(directory).with_shared(shared(servers, Duration::from_secs(60))))
}

#[tokio::test]
async fn what_nginx_wrote_is_read() {
    let (memcached, directory, node) = one_node();
    memcached.add(ALICE, "127.0.0.3:7993");
    memcached.add("route:proto=pop3ssl;user=alice@a.test", "127.0.0.2:7995");
    memcached.add("route:proto=httpssl;id=id-alice", "127.0.0.2:8443");
    memcached.add("route:proto=httpssl;admin=1;id=id-root", "127.0.0.3:7071");
    let imap = login("Alice@a.test", Service::Imap);
    assert_eq!(ask(&node, &imap).await, "alice@a.test 127.0.0.3:7993 memcached");
    assert_eq!(ask(&node, &imap).await, "alice@a.test 127.0.0.3:7993 memory");
    // Ports of other services are the directory's.
    let web = login("alice@a.test", Service::Web);
    assert_eq!(ask(&node, &web).await, "alice@a.test 127.0.0.3:8443 memory");
    assert_eq!(
        ask(&node, &login("#ID-alice", Service::Web)).await,
        "id-alice 127.0.0.2:8443 memcached"
    );
    assert_eq!(
        ask(&node, &login("#id-root", Service::Admin)).await,
        "id-root 127.0.0.3:7071 memcached"
    );
    assert_eq!(directory.asked(), 0);
    // A forgotten entry goes, with all its protocols, and is asked for at the source.
    node.forget(&imap);
    assert_eq!(ask(&node, &imap).await, "alice@a.test 127.0.0.2:1993 directory");
    memcached.becomes(ALICE, "127.0.0.2:1993").await;
    assert_eq!(memcached.value("route:proto=pop3ssl;user=alice@a.test"), None);
}

#[tokio::test]
async fn what_changed_in_the_directory_is_not_read_any_more() {
    let (memcached, _, node) = one_node();
    let (by_pop3, by_id) = (
        "route:proto=pop3ssl;user=alice@a.test",
        "route:proto=httpssl;id=id-alice",
    );
    memcached.add(ALICE, "127.0.0.3:7993");
    memcached.add(by_pop3, "127.0.0.3:7995");
    memcached.add(by_id, "127.0.0.3:8443");
    let imap = login("alice@a.test", Service::Imap);
    assert_eq!(ask(&node, &imap).await, "alice@a.test 127.0.0.3:7993 memcached");
    // All changes since the node began are waiting to be followed: nothing has to be forgotten.
    node.follow_directory().await;
    assert_eq!(ask(&node, &imap).await, "alice@a.test 127.0.0.3:7993 memory");
    let alice = Touched {
        names: vec!["alice@a.test".to_owned()],
        ids: vec!["id-alice".to_owned()],
    };
    node.forget_accounts(&[alice]);
    assert_eq!(ask(&node, &imap).await, "alice@a.test 127.0.0.2:1993 directory");
    for name in [by_pop3, by_id] {
        until("the old route is gone", async || memcached.value(name), Option::is_none).await;
    }
    // Some account changed, and it is not known which.
    memcached.add("route:proto=imapssl;user=user0@a.test", "127.0.0.3:7993");
    node.expire();
    let other = login("user0@a.test", Service::Imap);
    assert_eq!(ask(&node, &other).await, "user0@a.test 127.0.0.2:1993 directory");
    assert_eq!(ask(&node, &imap).await, "alice@a.test 127.0.0.2:1993 directory");
    // What is written after that is believed, and only that.
    memcached
        .becomes("route:proto=imapssl;user=user0@a.test", "127.0.0.2:1993")
        .await;
    memcached.add("route:proto=pop3ssl;user=user2@a.test", "127.0.0.3:7995");
    // To follow it once more, after some time, is no reason to distrust what other nodes share.
    node.follow_directory().await;
    assert_eq!(ask(&node, &other).await, "user0@a.test 127.0.0.2:1993 memcached");
    let by_pop3 = login("user2@a.test", Service::Pop3);
    assert_eq!(ask(&node, &by_pop3).await, "user2@a.test 127.0.0.2:7995 directory");
}

/// The server that memcached names refuses the login. The directory is asked past memory and memcached, once for a
/// while, and nothing is lost while it is down.
#[tokio::test]
async fn a_refused_login_has_the_directory_asked_past_every_cache() {
    let (memcached, directory, node) = one_node();
    memcached.add(ALICE, "127.0.0.3:7993");
    let imap = login("al@a.test", Service::Imap);
    let alice = login("alice@a.test", Service::Imap);
    let age = Duration::from_secs(5);
    assert_eq!(ask(&node, &alice).await, "alice@a.test 127.0.0.3:7993 memcached");
    directory.down.store(true, Ordering::SeqCst);
    assert!(matches!(
        node.ask_again(&alice, age).await,
        Some(Err(route_cache::RouteError::DirectoryDown(_)))
    ));
    assert!(node.ask_again(&alice, age).await.is_none(), "it has just failed");
    assert_eq!(ask(&node, &alice).await, "alice@a.test 127.0.0.3:7993 memory");
    directory.down.store(false, Ordering::SeqCst);
    until(
        "the pause is over",
        async || node.ask_again(&alice, age).await,
        |asked| {
            asked
                .as_ref()
                .is_some_and(|route| route.as_ref().is_ok_and(|route| route.port == 1993))
        },
    )
    .await;
    memcached.becomes(ALICE, "127.0.0.2:1993").await;
    assert_eq!(ask(&node, &alice).await, "alice@a.test 127.0.0.2:1993 memory");
    // What has just come from the directory is not asked for again, by whatever name; later it is.
    let asked = directory.asked();
    assert!(node.ask_again(&alice, age).await.is_none());
    assert_eq!(directory.asked(), asked);
    assert!(
        node.ask_again(&alice, Duration::ZERO)
            .await
            .is_some_and(|route| route.is_ok())
    );
    assert_eq!(ask(&node, &imap).await, "alice@a.test 127.0.0.2:1993 directory");
    assert!(node.ask_again(&imap, age).await.is_none());
}

#[tokio::test]
async fn asking_again_distrusts_what_is_shared_only_where_changes_are_not_announced() {
    let (memcached, directory, node) = one_node();
    memcached.add(ALICE, "127.0.0.3:7993");
    let imap = login("alice@a.test", Service::Imap);
    for _ in 0..2 {
        assert_eq!(ask(&node, &imap).await, "alice@a.test 127.0.0.3:7993 memcached");
        assert_eq!(ask(&node, &imap).await, "alice@a.test 127.0.0.3:7993 memory");
        node.ask_anew();
    }
    assert_eq!(directory.asked(), 0);
}

#[tokio::test]
async fn what_is_written_has_the_exact_form_and_serves_other_nodes() {
    let memcached = Memcached::start();
    let directory = Counting::new(&system());
    let (first, second) = (
        node(&directory, &[memcached.address()]),
        node(&directory, &[memcached.address()]),
    );
    // `set`, not `add`: an older entry does not stay.
    memcached.add(ALICE, "10.9.9.9:7993");
    assert_eq!(
        ask(&first, &login("al@a.test", Service::Imap)).await,
        "alice@a.test 127.0.0.2:1993 directory"
    );
    memcached.becomes(ALICE, "127.0.0.2:1993").await;
    let key = route_cache::memcached::hashed(ALICE);
    assert_eq!(
        memcached.say(&format!("get {key}\r\n")),
        format!("VALUE {key} 0 14\r\n127.0.0.2:1993\r\nEND\r\n")
    );
    let ttl = memcached.say(&format!("mg {key} t\r\nget x\r\n"));
    let ttl: u64 = ttl
        .split([' ', '\r'])
        .nth(1)
        .unwrap()
        .trim_start_matches('t')
        .parse()
        .unwrap();
    assert!((3590..=3600).contains(&ttl), "{ttl}");
    // Never under an alias: who reads it would log in with it.
    assert_eq!(memcached.value("route:proto=imapssl;user=al@a.test"), None);
    let asked = directory.asked();
    assert_eq!(
        ask(&second, &login("alice", Service::Imap)).await,
        "alice@a.test 127.0.0.2:1993 memcached"
    );
    ask(&first, &login("#id-alice", Service::Web)).await;
    memcached
        .becomes("route:proto=httpssl;id=id-alice", "127.0.0.2:8443")
        .await;
    assert_eq!(
        ask(&second, &login("#id-alice", Service::Web)).await,
        "id-alice 127.0.0.2:8443 memcached"
    );
    assert_eq!(directory.asked(), asked + 1);
}

#[tokio::test]
async fn addresses_that_are_no_mailbox_server_of_the_protocol_are_not_believed() {
    let (memcached, directory, node) = one_node();
    for value in [
        "192.0.2.66:1993",
        "127.0.0.2:7143",
        "127.0.0.2:8443",
        "127.0.0.2:7993",
        "127.0.0.4:7993",
        "169.254.169.254:80",
        "store1.test:1993",
        "garbage",
        "127.0.0.2:1993\r\nEND\r\nVALUE",
    ] {
        memcached.say(&format!("delete {}\r\n", route_cache::memcached::hashed(ALICE)));
        memcached.add(ALICE, value);
        let asked = directory.asked();
        // A new cache knows nothing; explaining leaves no trace.
        let reader = cache(&directory).with_shared(shared(&[memcached.address()], Duration::from_secs(60)));
        let lookup = login("alice@a.test", Service::Imap);
        let explained = reader.explain(&lookup).await.route.unwrap();
        assert_eq!(explained.tier.name(), "directory", "{value}");
        assert!(
            memcached
                .say(&format!("get {}\r\n", route_cache::memcached::hashed(ALICE)))
                .starts_with("VALUE")
        );
        assert_eq!(
            ask(&reader, &lookup).await,
            "alice@a.test 127.0.0.2:1993 directory",
            "{value}"
        );
        assert_eq!(directory.asked(), asked + 2);
        memcached.becomes(ALICE, "127.0.0.2:1993").await;
    }
    // Deleted also where nobody has a better answer.
    memcached.add("route:proto=imapssl;user=nobody@a.test", "192.0.2.66:1993");
    assert_eq!(
        ask(&node, &login("nobody@a.test", Service::Imap)).await,
        "no such account"
    );
    until(
        "it is deleted",
        async || memcached.value("route:proto=imapssl;user=nobody@a.test"),
        Option::is_none,
    )
    .await;
}

#[tokio::test]
async fn rules_that_need_the_account_are_not_left_to_an_address() {
    for (from, to) in [
        ("domains: {", "domains: {g.test: {zimbraDomainAllowedIPs: 10.0.0.0/8}, "),
        ("config: {", "config: {zimbraReverseProxyUserNameAttribute: uid, "),
    ] {
        let memcached = Memcached::start();
        memcached.add(ALICE, "127.0.0.3:7993");
        let directory = Counting::new(&system().replace(from, to));
        let node = node(&directory, &[memcached.address()]);
        let found = ask(&node, &login("alice@a.test", Service::Imap)).await;
        assert_eq!(found, "alice@a.test 127.0.0.2:1993 directory");
    }
}

#[tokio::test]
async fn two_servers_share_the_keys_and_stand_in_for_each_other() {
    let (mut one, two) = (Memcached::start(), Memcached::start());
    let servers = [one.address(), two.address()];
    let directory = Counting::new(&system());
    let node_a = node(&directory, &servers);
    for i in 0..100 {
        ask(&node_a, &login(&format!("user{i}@a.test"), Service::Imap)).await;
    }
    let mut homes = [0, 0];
    for i in 0..100 {
        let name = format!("route:proto=imapssl;user=user{i}@a.test");
        let home = choice(&name, 2);
        homes[home] += 1;
        let (home, other) = if home == 0 { (&one, &two) } else { (&two, &one) };
        until("it is written", async || home.value(&name), Option::is_some).await;
        assert_eq!(other.value(&name), None);
    }
    assert!(homes[0] > 20 && homes[1] > 20, "{homes:?}");
    // One dies: its keys go to the other.
    one.kill();
    let name = (0..100)
        .map(|i| format!("user{i}@a.test"))
        .find(|user| choice(&format!("route:proto=imapssl;user={user}"), 2) == 0);
    let user = name.unwrap();
    let begun = Instant::now();
    let node_b = node(&directory, &servers);
    ask(&node_b, &login(&user, Service::Imap)).await;
    assert!(begun.elapsed() < TIMEOUT * 3);
    let node_c = node(&directory, &servers);
    ask(&node_c, &login("user99@a.test", Service::Pop3)).await;
    node_b.forget(&login(&user, Service::Imap));
    ask(&node_b, &login(&user, Service::Imap)).await;
    let name = format!("route:proto=imapssl;user={user}");
    until("the other has it", async || two.value(&name), Option::is_some).await;
}

/// Logs in users until the tier has failed, and then one more, which must not wait.
async fn costs_one_timeout(node: &RouteCache, first: usize) {
    let begun = Instant::now();
    for i in first..first + 20 {
        let found = ask(node, &login(&format!("user{i}@a.test"), Service::Imap)).await;
        assert!(found.ends_with("directory"), "{found}");
    }
    assert!(begun.elapsed() < TIMEOUT * 2, "{:?}", begun.elapsed());
}

#[tokio::test]
async fn a_dead_server_costs_nothing() {
    let directory = Counting::new(&system());
    let node = node(&directory, &[format!("127.0.0.1:{}", crate::stage::free_port())]);
    costs_one_timeout(&node, 0).await;
}

#[tokio::test]
async fn a_frozen_server_costs_one_timeout_and_is_used_when_it_is_back() {
    let memcached = Memcached::start();
    let directory = Counting::new(&system());
    let servers = [memcached.address()];
    let node = cache(&directory).with_shared(shared(&servers, Duration::from_millis(300)));
    ask(&node, &login("alice@a.test", Service::Imap)).await;
    memcached.freeze();
    let begun = Instant::now();
    for i in 0..20 {
        let found = ask(&node, &login(&format!("user{i}@a.test"), Service::Imap)).await;
        assert!(found.ends_with("directory"), "{found}");
    }
    assert!(begun.elapsed() < TIMEOUT * 2, "{:?}", begun.elapsed());
    memcached.thaw();
    let mut i = 20;
    let found = until(
        "it is used again",
        || {
            // An unknown name is in memory now; another one is looked up next.
            i += 1;
            let name = format!("user{}@a.test", i % 100);
            let node = &node;
            let memcached = &memcached;
            async move {
                memcached.add(&format!("route:proto=pop3ssl;user={name}"), "127.0.0.3:7995");
                tokio::time::sleep(Duration::from_millis(20)).await;
                ask(node, &login(&name, Service::Pop3)).await
            }
        },
        |found: &String| found.ends_with("memcached"),
    )
    .await;
    assert!(found.contains("127.0.0.3:7995"), "{found}");
}

#[tokio::test]
async fn a_killed_server_is_used_again_when_it_is_back() {
    let mut memcached = Memcached::start();
    let directory = Counting::new(&system());
    let servers = [memcached.address()];
    let node = cache(&directory).with_shared(shared(&servers, Duration::from_millis(100)));
    ask(&node, &login("alice@a.test", Service::Imap)).await;
    memcached.kill();
    costs_one_timeout(&node, 0).await;
    memcached.start_again();
    let mut i = 20;
    until(
        "a route is written again",
        || {
            i += 1;
            let (node, memcached, name) = (&node, &memcached, format!("user{}@a.test", i % 100));
            async move {
                ask(node, &login(&name, Service::Imap)).await;
                memcached.value(&format!("route:proto=imapssl;user={name}"))
            }
        },
        Option::is_some,
    )
    .await;
}

/// A server that says `words` to whatever it hears.
async fn babbler(words: &'static [u8]) -> String {
    let address = crate::stage::server(move |mut stream| async move {
        let mut buffer = [0; 1024];
        while matches!(stream.read(&mut buffer).await, Ok(n) if n > 0) {
            if stream.write_all(words).await.is_err() {
                return;
            }
        }
    });
    address.await.to_string()
}

#[tokio::test]
async fn garbage_costs_nothing_and_is_never_an_answer() {
    for words in [
        b"\0\xff\x80garbage\r\n".as_slice(),
        b"VALUE k 0 14\r\n127.0.0.3:7993\r\nEND\r\n",
        b"END\r\nVALUE k 0 14\r\n127.0.0.3:7993\r\nEND\r\n",
        b"SERVER_ERROR out of order\r\n",
        b"x",
        &[b'x'; 70_000],
    ] {
        let directory = Counting::new(&system());
        let node = node(&directory, &[babbler(words).await]);
        costs_one_timeout(&node, 0).await;
    }
    // It talks before it is asked.
    let eager = crate::stage::server(|mut stream| async move {
        let _ = stream.write_all(b"END\r\n").await;
        let mut buffer = [0; 1024];
        while matches!(stream.read(&mut buffer).await, Ok(n) if n > 0) {}
    });
    let directory = Counting::new(&system());
    let node = node(&directory, &[eager.await.to_string()]);
    costs_one_timeout(&node, 0).await;
}

/// It answers each question with the answer to the one before: a client that goes on reading mixes up users.
#[tokio::test]
async fn an_answer_to_another_question_is_never_taken() {
    let address = crate::stage::server(|mut stream| async move {
        let mut buffer = [0; 65536];
        let mut late = String::from("END\r\n");
        while let Ok(n) = stream.read(&mut buffer).await {
            if n == 0 {
                return;
            }
            for line in String::from_utf8_lossy(&buffer[..n]).split("\r\n") {
                if let Some(key) = line.strip_prefix("get ") {
                    let _ = stream.write_all(late.as_bytes()).await;
                    late = format!("VALUE {key} 0 14\r\n127.0.0.3:7993\r\nEND\r\n");
                }
            }
        }
    });
    let directory = Counting::new(&system());
    let node = node(&directory, &[address.await.to_string()]);
    let tasks = (0..50).map(|i| {
        let node = node.clone();
        tokio::spawn(async move { ask(&node, &login(&format!("user{}@a.test", i * 2), Service::Imap)).await })
    });
    let tasks: Vec<_> = tasks.collect();
    for task in tasks {
        let found = task.await.unwrap();
        assert!(found.ends_with("127.0.0.2:1993 directory"), "{found}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn ten_thousand_logins_of_a_hundred_users_ask_a_hundred_times() {
    let memcached = Memcached::start();
    let silent = crate::stage::server(|stream| async move {
        tokio::time::sleep(Duration::from_secs(60)).await;
        drop(stream);
    });
    for servers in [vec![memcached.address()], vec![silent.await.to_string()]] {
        let directory = Counting::new(&system());
        let node = node(&directory, &servers);
        let tasks: Vec<_> = (0..10_000)
            .map(|i| {
                let node = node.clone();
                let service = [Service::Imap, Service::Pop3, Service::Web][i % 3];
                tokio::spawn(async move { ask(&node, &login(&format!("user{}@a.test", i % 100), service)).await })
            })
            .collect();
        for task in tasks {
            let found = task.await.unwrap();
            assert!(found.contains(" 127.0.0."), "{found}");
        }
        assert!(directory.asked() <= 100, "{}", directory.asked());
    }
}

#[tokio::test]
async fn the_shared_cache_serves_while_the_directory_is_down() {
    let (memcached, directory, node) = one_node();
    memcached.add(ALICE, "127.0.0.2:1993");
    directory.down.store(true, Ordering::SeqCst);
    assert_eq!(
        ask(&node, &login("alice@a.test", Service::Imap)).await,
        "alice@a.test 127.0.0.2:1993 memcached"
    );
    assert_eq!(
        ask(&node, &login("user1@a.test", Service::Imap)).await,
        "directory: down"
    );
}
