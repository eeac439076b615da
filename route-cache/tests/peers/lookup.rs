//! Lookup services as a source of routes: stubs that speak Zimbra's and nginx's protocol, dead, slow and lying ones;
//! and the other side, Portico asked by an old proxy.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use async_trait::async_trait;
use parking_lot::Mutex;
use portico_tests::table::rows;
use route_cache::lookup::{BoxStream, Dial, Dialect, HandlerUrl, Services, Settings};
use route_cache::lookup_server::serve_lookup;
use route_cache::{RouteCache, Service};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::stage::{Counting, Memcached, ask, book, cache, free_port, login, server, system};

/// Plain TCP. TLS is proxy-app's.
struct Tcp {
    dialled: AtomicUsize,
}

#[async_trait]
impl Dial for Tcp {
    async fn connect(&self, url: &HandlerUrl) -> std::io::Result<BoxStream> {
        self.dialled.fetch_add(1, Ordering::SeqCst);
        Ok(Box::new(TcpStream::connect((url.host.as_str(), url.port)).await?))
    }
}

struct Node {
    cache: Arc<RouteCache>,
    tcp: Arc<Tcp>,
    directory: Arc<Counting>,
}

fn node(dialect: Dialect, handlers: &[SocketAddr]) -> Node {
    let tcp = Arc::new(Tcp {
        dialled: AtomicUsize::new(0),
    });
    let url = |address: &SocketAddr| HandlerUrl::parse(&format!("http://{address}/lookup"), dialect).unwrap();
    let settings = Settings {
        dialect,
        handlers: handlers.iter().map(url).collect(),
        timeout: Duration::from_millis(800),
        retry: Duration::from_secs(60),
    };
    let directory = Counting::new(&system());
    let services = Services::new(settings, tcp.clone(), book());
    Node {
        cache: Arc::new(cache(&directory).with_lookup(services)),
        tcp,
        directory,
    }
}

/// What a stub heard.
type Heard = Arc<Mutex<Vec<String>>>;

/// A service that answers every request with what `say` makes of it.
async fn stub(say: impl Fn(&str) -> String + Clone + Send + Sync + 'static) -> (SocketAddr, Heard) {
    let heard = Heard::default();
    let list = heard.clone();
    let address = server(move |mut stream| {
        let (say, list) = (say.clone(), list.clone());
        async move {
            let mut request = String::new();
            let mut buffer = [0; 4096];
            while let Ok(n) = stream.read(&mut buffer).await {
                if n == 0 {
                    return;
                }
                request.push_str(&String::from_utf8_lossy(&buffer[..n]));
                while let Some(end) = request.find("\r\n\r\n") {
                    let head: String = request.drain(..end + 4).collect();
                    list.lock().push(head.clone());
                    if stream.write_all(say(&head).as_bytes()).await.is_err() {
                        return;
                    }
                }
            }
        }
    });
    (address.await, heard)
}

fn field<'a>(head: &'a str, name: &str) -> &'a str {
    let found = head
        .split("\r\n")
        .filter_map(|line| line.split_once(": "))
        .find(|(n, _)| *n == name);
    found.map_or("", |(_, value)| value)
}

fn ok(fields: &str) -> String {
    format!("HTTP/1.1 200 OK\r\n{fields}\r\nContent-Length: 0\r\n\r\n")
}

fn refused(text: &str) -> String {
    ok(&format!("Auth-Status: {text}\r\nAuth-Wait: 10"))
}

fn route(server: &str, port: u16, user: &str) -> String {
    ok(&format!(
        "Auth-Status: OK\r\nAuth-Server: {server}\r\nAuth-Port: {port}\r\nAuth-Cache-Alias: TRUE\r\nAuth-User: {user}"
    ))
}

/// Zimbra's servlet in small: everybody lives on store1, but for `out…`, who live outside, and `nobody…`.
fn zimbra(head: &str) -> String {
    let (user, protocol) = (field(head, "Auth-User"), field(head, "Auth-Protocol"));
    let user = match user.contains('@') || field(head, "Auth-Method") == "zimbraId" {
        true => user.to_owned(),
        false => format!("{user}@a.test"),
    };
    if user.starts_with("nobody") {
        return refused(&format!("user not found:{user}"));
    }
    let outside = user.starts_with("out");
    match protocol {
        "imapssl" if outside => route("192.0.2.50", 993, &user),
        "pop3ssl" if outside => route("192.0.2.51", 995, &user),
        "imapssl" => route("127.0.0.2", 1993, &user),
        "pop3ssl" => route("127.0.0.2", 7995, &user),
        "httpssl" if field(head, "Auth-Zimbra-Admin") == "True" => route("127.0.0.2", 7071, &user),
        "httpssl" if outside => route("192.0.2.52", 443, &user),
        _ => route("127.0.0.2", 8443, &user),
    }
}

#[tokio::test]
async fn zimbra_is_asked_once_for_all_services_over_one_connection() {
    let (service, heard) = stub(zimbra).await;
    let node = node(Dialect::Zimbra, &[service]);
    for (name, service, expected) in [
        ("Eve@a.test", Service::Imap, "eve@a.test 127.0.0.2:1993 directory"),
        ("eve@a.test", Service::Pop3, "eve@a.test 127.0.0.2:7995 memory"),
        ("eve@a.test", Service::Web, "eve@a.test 127.0.0.2:8443 memory"),
        ("#11-22", Service::Web, "11-22 127.0.0.2:8443 directory"),
        ("#11-33", Service::Admin, "11-33 127.0.0.2:7071 directory"),
        ("fay", Service::Imap, "fay@a.test 127.0.0.2:1993 directory"),
        ("fay", Service::Imap, "fay@a.test 127.0.0.2:1993 memory"),
        ("fay@a.test", Service::Imap, "fay@a.test 127.0.0.2:1993 memory"),
        ("nobody@a.test", Service::Imap, "no such account"),
        ("nobody@a.test", Service::Imap, "no such account"),
    ] {
        assert_eq!(ask(&node.cache, &login(name, service)).await, expected, "{name}");
    }
    let heard = heard.lock();
    let asked: Vec<_> = heard
        .iter()
        .map(|head| format!("{} {}", field(head, "Auth-Method"), field(head, "Auth-User")))
        .collect();
    assert_eq!(
        asked,
        [
            "username eve@a.test",
            "zimbraId 11-22",
            "zimbraId 11-33",
            "username fay",
            "username nobody@a.test"
        ]
    );
    assert!(heard.iter().all(|head| field(head, "Auth-Pass") == "_password_"));
    assert_eq!(node.tcp.dialled.load(Ordering::SeqCst), 1);
    assert_eq!(node.directory.asked(), 0);
}

#[tokio::test]
async fn a_server_outside_counts_for_its_protocol_alone() {
    let (service, heard) = stub(zimbra).await;
    let node = node(Dialect::Zimbra, &[service]);
    for (service, expected) in [
        (Service::Imap, "out@a.test 192.0.2.50:993 directory"),
        (Service::Pop3, "out@a.test 192.0.2.51:995 directory"),
        (Service::Imap, "out@a.test 192.0.2.50:993 memory"),
        (Service::Pop3, "out@a.test 192.0.2.51:995 memory"),
    ] {
        assert_eq!(ask(&node.cache, &login("out@a.test", service)).await, expected);
    }
    let web = ask(&node.cache, &login("out@a.test", Service::Web)).await;
    assert!(web.contains("is no server of the directory"), "{web}");
    assert_eq!(heard.lock().len(), 3);
}

#[tokio::test]
async fn names_without_domain_stay_with_the_address_they_were_typed_at() {
    let (service, _) = stub(|head| {
        let (server, domain) = match field(head, "X-Proxy-IP") {
            "192.0.2.9" => ("127.0.0.3", "v.test"),
            _ => ("127.0.0.2", "a.test"),
        };
        let port = if server == "127.0.0.2" { 1993 } else { 7993 };
        route(server, port, &format!("{}@{domain}", field(head, "Auth-User")))
    })
    .await;
    let node = node(Dialect::Zimbra, &[service]);
    let here = login("john", Service::Imap);
    let there = route_cache::Lookup {
        local: "192.0.2.9".parse().unwrap(),
        ..here.clone()
    };
    for tier in ["directory", "memory"] {
        assert_eq!(
            ask(&node.cache, &here).await,
            format!("john@a.test 127.0.0.2:1993 {tier}")
        );
        assert_eq!(
            ask(&node.cache, &there).await,
            format!("john@v.test 127.0.0.3:7993 {tier}")
        );
    }
}

/// A virtual host or address of the directory says more than the service would hear.
#[tokio::test]
async fn names_without_domain_at_a_virtual_host_have_its_domain() {
    let (service, heard) = stub(|head| route("127.0.0.3", 7993, field(head, "Auth-User"))).await;
    let node = node(Dialect::Nginx, &[service]);
    let at = |local: &str, host: Option<&str>| route_cache::Lookup {
        local: local.parse().unwrap(),
        host: host.map(str::to_owned),
        ..login("john", Service::Imap)
    };
    for lookup in [at("192.0.2.7", None), at("192.0.2.1", Some("mail.v.test"))] {
        let answer = ask(&node.cache, &lookup).await;
        assert!(answer.starts_with("john@v.test 127.0.0.3:7993 "), "{answer}");
    }
    assert_eq!(heard.lock().len(), 1);
}

#[tokio::test]
async fn nginx_auth_http_names_a_server_of_the_directory_by_any_of_its_ports() {
    let (service, heard) = stub(|head| match field(head, "Auth-User") {
        "bare" => ok("Auth-Status: OK\r\nAuth-Server: 127.0.0.3\r\nAuth-Port: 7143"),
        "temp@a.test" => refused("Temporary server problem, try again later"),
        "other@a.test" => ok("Auth-Status: OK\r\nAuth-Server: 192.0.2.9\r\nAuth-Port: 143\r\nAuth-User: inner"),
        user if user.starts_with("nobody") => refused("Invalid login or password"),
        _ => ok("Auth-Status: OK\r\nAuth-Server: 127.0.0.3\r\nAuth-Port: 7143"),
    })
    .await;
    let node = node(Dialect::Nginx, &[service]);
    for (name, service, expected) in [
        ("eve@a.test", Service::Web, "eve@a.test 127.0.0.3:8443 directory"),
        ("eve@a.test", Service::Imap, "eve@a.test 127.0.0.3:7993 memory"),
        (
            "bare",
            Service::Imap,
            "bare@[192.0.2.1;] (bare) 127.0.0.3:7993 directory",
        ),
        (
            "other@a.test",
            Service::Imap,
            "other@a.test (inner) 192.0.2.9:143 directory",
        ),
        ("nobody@a.test", Service::Imap, "no such account"),
        (
            "#11-22",
            Service::Web,
            "lookup services of nginx's protocol know no ids",
        ),
    ] {
        assert_eq!(ask(&node.cache, &login(name, service)).await, expected, "{name}");
    }
    let temporary = ask(&node.cache, &login("temp@a.test", Service::Imap)).await;
    assert!(
        temporary.starts_with("directory: ") && temporary.contains("Temporary"),
        "{temporary}"
    );
    assert!(heard.lock().iter().all(|head| field(head, "Auth-Pass") == "_password_"));
}

#[tokio::test]
async fn the_next_service_is_asked_when_one_fails() {
    let good = stub(zimbra).await.0;
    let dead: SocketAddr = format!("127.0.0.1:{}", free_port()).parse().unwrap();
    let silent = server(|stream| async move {
        tokio::time::sleep(Duration::from_secs(60)).await;
        drop(stream);
    });
    let hangs_up = server(|mut stream| async move {
        let _ = stream.read(&mut [0; 100]).await;
    });
    let half = stub(|_| "HTTP/1.1 200 OK\r\nAuth-Sta".to_owned()).await.0;
    let broken = stub(|_| "HTTP/1.1 500 Oops\r\nContent-Length: 0\r\n\r\n".to_owned())
        .await
        .0;
    let babbles = stub(|_| "\0\u{1}garbage\r\n\r\n".to_owned()).await.0;
    let endless = stub(|_| format!("HTTP/1.1 200 OK\r\nX: {}", "x".repeat(100_000)))
        .await
        .0;
    let no_ldap = stub(|_| refused("unable to search LDAP")).await.0;
    for bad in [
        dead,
        silent.await,
        hangs_up.await,
        half,
        broken,
        babbles,
        endless,
        no_ldap,
    ] {
        let node = node(Dialect::Zimbra, &[bad, good]);
        let begun = Instant::now();
        for i in 0..10 {
            let found = ask(&node.cache, &login(&format!("eve{i}@a.test"), Service::Imap)).await;
            assert_eq!(found, format!("eve{i}@a.test 127.0.0.2:1993 directory"));
        }
        // One that keeps us waiting does so once.
        assert!(begun.elapsed() < Duration::from_millis(800), "{:?}", begun.elapsed());
        let alone = node_of(bad);
        let found = ask(&alone.cache, &login("eve@a.test", Service::Imap)).await;
        assert!(found.starts_with("directory: "), "{found}");
    }
}

fn node_of(handler: SocketAddr) -> Node {
    node(Dialect::Zimbra, &[handler])
}

#[tokio::test]
async fn no_such_user_is_not_a_failure_and_no_other_service_is_asked() {
    let (first, heard) = stub(|_| refused("user not found:x@a.test")).await;
    let (second, also) = stub(|_| refused("user not found:x@a.test")).await;
    let node = node(Dialect::Zimbra, &[first, second]);
    assert_eq!(
        ask(&node.cache, &login("x@a.test", Service::Imap)).await,
        "no such account"
    );
    assert_eq!(heard.lock().len() + also.lock().len(), 1);
}

#[tokio::test]
async fn refusals_of_one_client_are_not_those_of_another() {
    let (service, _) = stub(|head| match field(head, "Client-IP") {
        "10.0.0.1" => zimbra(head),
        ip => refused(&format!("Client-IP {ip} is not allowed on this domain")),
    })
    .await;
    let node = node(Dialect::Zimbra, &[service]);
    let outside = login("eve@a.test", Service::Imap);
    let inside = route_cache::Lookup {
        client: "10.0.0.1".parse().unwrap(),
        ..outside.clone()
    };
    let (a, b) = tokio::join!(ask(&node.cache, &outside), ask(&node.cache, &inside));
    assert_eq!(a, "client address is not allowed on domain a.test");
    assert_eq!(b, "eve@a.test 127.0.0.2:1993 directory");
}

#[tokio::test]
async fn lies_lead_nowhere() {
    for answer in [
        route("127.0.0.1", 1993, "eve@a.test"),
        route("169.254.169.254", 80, "eve@a.test"),
        route("evil.test", 993, "eve@a.test"),
        route("0.0.0.0", 993, "eve@a.test"),
    ] {
        let (service, _) = stub(move |_| answer.clone()).await;
        let found = ask(&node_of(service).cache, &login("eve@a.test", Service::Imap)).await;
        assert!(found.contains("which is no server of the directory"), "{found}");
    }
    // More bytes than the answer has: what follows is not the answer to the next question.
    let (service, _) = stub(|head| format!("{}{}", zimbra(head), route("127.0.0.3", 7993, "mallory@a.test"))).await;
    let node = node_of(service);
    for i in 0..5 {
        let found = ask(&node.cache, &login(&format!("eve{i}@a.test"), Service::Imap)).await;
        assert_eq!(found, format!("eve{i}@a.test 127.0.0.2:1993 directory"));
    }
    assert_eq!(node.tcp.dialled.load(Ordering::SeqCst), 5);
}

#[tokio::test]
async fn a_connection_that_was_closed_while_it_waited_is_no_failure() {
    let served = server(|mut stream| async move {
        let mut buffer = [0; 4096];
        let n = stream.read(&mut buffer).await.unwrap_or(0);
        let _ = stream
            .write_all(zimbra(&String::from_utf8_lossy(&buffer[..n])).as_bytes())
            .await;
    });
    let node = node_of(served.await);
    for i in 0..5 {
        let found = ask(&node.cache, &login(&format!("eve{i}@a.test"), Service::Imap)).await;
        assert_eq!(found, format!("eve{i}@a.test 127.0.0.2:1993 directory"));
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn ten_thousand_logins_of_a_hundred_users_ask_a_hundred_times() {
    let (service, heard) = stub(zimbra).await;
    let mut node = node(Dialect::Zimbra, &[service]);
    let memcached = Memcached::start();
    let settings = route_cache::memcached::Settings {
        servers: vec![memcached.address().parse().unwrap()],
        timeout: Duration::from_secs(2),
        retry: Duration::from_secs(60),
    };
    let shared = route_cache::SharedCache::new(&settings, Duration::from_secs(60), book());
    node.cache = Arc::new(Arc::into_inner(node.cache).unwrap().with_shared(shared));
    let tasks: Vec<_> = (0..10_000)
        .map(|i| {
            let cache = node.cache.clone();
            tokio::spawn(async move { ask(&cache, &login(&format!("user{}@a.test", i % 100), Service::Imap)).await })
        })
        .collect();
    for task in tasks {
        let found = task.await.unwrap();
        assert!(found.contains(" 127.0.0.2:1993 "), "{found}");
    }
    assert!(heard.lock().len() <= 100, "{}", heard.lock().len());
    // Fewer connections are kept for the next question than there are questions at once.
    let dialled = node.tcp.dialled.load(Ordering::SeqCst);
    assert!(dialled <= 100, "{dialled}");
}

/// Portico as a lookup service in front of its own directory.
async fn portico() -> (SocketAddr, Arc<Counting>) {
    let yaml = system().replace("domains: {", "domains: {g.test: {zimbraDomainAllowedIPs: 10.0.0.0/8}, ");
    let yaml = format!("{yaml}  gus@g.test: {{zimbraMailHost: store1.test}}\n  lost@a.test: {{}}\n");
    let directory = Counting::new(&yaml);
    let (cache, book) = (Arc::new(cache(&directory)), book());
    let address = server(move |stream| {
        let (cache, book) = (cache.clone(), book.clone());
        async move { serve_lookup(Box::new(stream), &cache, &book).await }
    });
    (address.await, directory)
}

async fn tell(address: SocketAddr, request: &str) -> String {
    let mut stream = TcpStream::connect(address).await.unwrap();
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.unwrap();
    answer
}

async fn asked_by_nginx(address: SocketAddr, fields: &str) -> String {
    let request = format!(
        "GET /service/extension/nginx-lookup HTTP/1.0\r\nHost: 10.0.0.11\r\n{fields}\r\nAuth-Pass: _password_\r\n\
         Auth-Login-Attempt: 1\r\nClient-IP: 203.0.113.7\r\n\r\n"
    );
    tell(address, &request).await
}

const HEARD: [&str; 6] = [
    "Auth-Status",
    "Auth-Server",
    "Auth-Port",
    "Auth-User",
    "Auth-Cache-Alias",
    "Auth-Wait",
];

/// What nginx asks: method, user, protocol and one more field. What it hears: the fields [`HEARD`].
const LOOKUPS: &str = "
    username | al@a.test     | imap    | X-Proxy-IP: 192.0.2.7         | OK                                                  | 127.0.0.2 | 7143 | al@a.test    | TRUE  |
    username | alice         | pop3    | X-Proxy-IP: 192.0.2.1         | OK                                                  | 127.0.0.2 | 7110 | alice@a.test | TRUE  |
    username | rossi         | pop3ssl | X-Proxy-IP: 192.0.2.7         | OK                                                  | 127.0.0.3 | 7995 | rossi@v.test | FALSE |
    username | rossi         | httpssl | X-Proxy-Host: mail.v.test:443 | OK                                                  | 127.0.0.3 | 8443 | rossi@v.test | FALSE |
    username | rossi@v.test  | http    | X-Proxy-IP: 192.0.2.7         | OK                                                  | 127.0.0.3 | 8080 | rossi@v.test | FALSE |
    zimbraId | id-alice      | httpssl | X-Proxy-IP: 192.0.2.7         | OK                                                  | 127.0.0.2 | 8443 | id-alice     | FALSE |
    zimbraId | id-alice      | httpssl | Auth-Zimbra-Admin: True       | OK                                                  | 127.0.0.2 | 7071 | id-alice     | FALSE |
    zimbraId | id-alice      | httpssl | Auth-Zimbra-Zx: True          | OK                                                  | 127.0.0.2 | 8743 | id-alice     | FALSE |
    username | nobody@a.test | imap    | X-Proxy-IP: 192.0.2.7         | user not found:nobody@a.test                        |           |      |              |       | 10
    username | gus@g.test    | imap    | X-Proxy-IP: 192.0.2.7         | Client-IP 203.0.113.7 is not allowed on this domain |           |      |              |       | 10
    username | lost@a.test   | imap    | X-Proxy-IP: 192.0.2.7         | mailhost not found for user: lost@a.test            |           |      |              |       | 10
    username | a%0Ab@a.test  | imap    | X-Proxy-IP: 192.0.2.7         | user not found:a%0Ab@a.test                         |           |      |              |       | 10
    username |               | imap    | X-Proxy-IP: 192.0.2.7         | missing header field Auth-User                      |           |      |              |       | 10
             | alice         | imap    | X-Proxy-IP: 192.0.2.7         | missing header field Auth-Method                    |           |      |              |       | 10
    username | alice         |         | X-Proxy-IP: 192.0.2.7         | missing header field Auth-Protocol                  |           |      |              |       | 10
    username | alice         | smtp    | X-Proxy-IP: 192.0.2.7         | missing port for protocol smtp                      |           |      |              |       | 10
    gssapi   | alice         | imap    | X-Proxy-IP: 192.0.2.7         | unsupported Auth-Method gssapi                      |           |      |              |       | 10
";

#[tokio::test]
async fn an_old_proxy_may_ask_portico() {
    let (address, _directory) = portico().await;
    for [method, user, protocol, more, expected @ ..] in rows::<10>(LOOKUPS) {
        let fields = format!("Auth-Method: {method}\r\nAuth-User: {user}\r\nAuth-Protocol: {protocol}\r\n{more}");
        let answer = asked_by_nginx(address, &fields).await;
        assert!(answer.starts_with("HTTP/1.1 200 OK\r\n"), "{answer}");
        assert_eq!(HEARD.map(|name| field(&answer, name)), expected, "{method} {user}");
    }
}

#[tokio::test]
async fn an_old_proxy_gets_the_whole_answer_of_its_own_service() {
    let (address, _directory) = portico().await;
    let expected = "HTTP/1.1 200 OK\r\nAuth-Status: OK\r\nAuth-Server: 127.0.0.2\r\nAuth-Port: 1993\r\n\
        Auth-Cache-Alias: TRUE\r\nAuth-User: Alice@a.test\r\nContent-Length: 0\r\nConnection: close\r\n\r\n";
    let fields = "Auth-Method: username\r\nAuth-User: Alice@a.test\r\nAuth-Protocol: imapssl\r\nX-Proxy-IP: 192.0.2.1";
    assert_eq!(asked_by_nginx(address, fields).await, expected);
}

#[tokio::test]
async fn an_old_proxy_hears_that_the_directory_is_down() {
    let (address, directory) = portico().await;
    directory.down.store(true, Ordering::SeqCst);
    let fields = "Auth-Method: username\r\nAuth-User: user1@a.test\r\nAuth-Protocol: imap";
    let answer = asked_by_nginx(address, fields).await;
    assert!(answer.starts_with("HTTP/1.1 503 "), "{answer}");
    assert_eq!(field(&answer, "Auth-Status"), "unable to search LDAP");
}

#[tokio::test]
async fn what_is_no_lookup_is_refused() {
    let (address, _) = portico().await;
    let long = format!("GET /{} HTTP/1.0\r\n", "x".repeat(20_000));
    for (request, status) in [
        ("GET / HTTP/1.0\r\n\r\n", "404"),
        ("POST /service/extension/nginx-lookup HTTP/1.0\r\n\r\n", "405"),
        (
            "GET /service/extension/nginx-lookup HTTP/1.0\r\nContent-Length: 5\r\n\r\nhello",
            "400",
        ),
        ("GET  / HTTP/1.0\r\n\r\n", "400"),
        ("GET / HTTP/2.0\r\n\r\n", "400"),
        ("GET / HTTP/1.0\r\nbad line\r\n\r\n", "400"),
        ("\r\n\r\n", "400"),
        (&long, "431"),
    ] {
        let answer = tell(address, request).await;
        assert!(answer.starts_with(&format!("HTTP/1.1 {status} ")), "{answer}");
    }
}

#[tokio::test]
async fn portico_asks_portico_over_one_connection() {
    let (address, directory) = portico().await;
    let tcp = Arc::new(Tcp {
        dialled: AtomicUsize::new(0),
    });
    let url = format!("http://{address}/service/extension/nginx-lookup");
    let settings = Settings {
        dialect: Dialect::Zimbra,
        handlers: vec![HandlerUrl::parse(&url, Dialect::Zimbra).unwrap()],
        timeout: Duration::from_secs(2),
        retry: Duration::from_secs(60),
    };
    let asking = cache(&Counting::new(&system())).with_lookup(Services::new(settings, tcp.clone(), book()));
    for (name, expected) in [
        ("alice@a.test", "alice@a.test 127.0.0.2:1993 directory"),
        ("rossi@v.test", "rossi@v.test 127.0.0.3:7993 directory"),
        ("alice", "alice@a.test 127.0.0.2:1993 directory"),
        ("nobody@a.test", "no such account"),
        ("lost@a.test", "mailhost not found for user: lost@a.test"),
        ("gus@g.test", "client address is not allowed on domain g.test"),
    ] {
        assert_eq!(ask(&asking, &login(name, Service::Imap)).await, expected);
    }
    assert_eq!(tcp.dialled.load(Ordering::SeqCst), 1);
    directory.down.store(true, Ordering::SeqCst);
    let found = ask(&asking, &login("user7@a.test", Service::Imap)).await;
    assert!(found.starts_with("directory: "), "{found}");
}
