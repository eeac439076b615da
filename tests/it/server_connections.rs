//! Connections to servers that are kept: none carries one client's login to another, and none is used when its server
//! is about to close it.

use std::collections::HashMap;
use std::net::{Ipv4Addr, SocketAddrV4};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use portico_tests::config::quote;
use portico_tests::fake::{Fake, Peer};
use portico_tests::nginx::Nginx;
use portico_tests::portico::Portico;
use portico_tests::town::{Town, people};
use portico_tests::wire::Wire;
use portico_tests::{Stage, until};

use crate::scene::Scene;
use crate::web::HOST;

const NTLM: &str = "ntlm.example.test";
const NTLM_IP: Ipv4Addr = Ipv4Addr::new(127, 0, 0, 6);
const SOON: Duration = Duration::from_secs(20);

/// A request as the server read it.
struct Seen {
    method: String,
    path: String,
    fields: Vec<(String, String)>,
}

impl Seen {
    fn field(&self, name: &str) -> Option<&str> {
        let found = self.fields.iter().find(|(known, _)| known == name);
        found.map(|(_, value)| value.as_str())
    }
}

/// The next request, with one line of a body where one is announced.
fn request(peer: &mut Peer) -> Result<Seen> {
    let first = peer.line()?;
    let mut words = first.split(' ').map(str::to_owned);
    let mut seen = Seen {
        method: words.next().unwrap_or_default(),
        path: words.next().unwrap_or_default(),
        fields: Vec::new(),
    };
    loop {
        let line = peer.line()?;
        match line.split_once(": ") {
            Some((name, value)) => seen.fields.push((name.to_ascii_lowercase(), value.to_owned())),
            None if line.is_empty() => break,
            None => bail!("no field: {line:?}"),
        }
    }
    if seen.field("content-length").is_some_and(|length| length != "0") {
        peer.line()?;
    }
    Ok(seen)
}

fn say(peer: &mut Peer, status: &str, fields: &str, body: &str) -> Result<()> {
    peer.send(format!(
        "HTTP/1.1 {status}\r\n{fields}Content-Length: {}\r\n\r\n{body}",
        body.len()
    ))
}

/// A client that asks for one thing after the other on one connection.
struct Client(Wire);

/// How a client connects.
type Open = fn(&Scene) -> Result<Client>;

impl Client {
    fn clear(scene: &Scene) -> Result<Self> {
        Ok(Self(Wire::clear(scene.town.endpoints.http)?))
    }

    fn tls(scene: &Scene) -> Result<Self> {
        Ok(Self(scene.tls(scene.town.endpoints.https, HOST)?))
    }

    /// Status, fields in lower case, and body.
    fn ask(&mut self, method: &str, path: &str, more: &str) -> Result<(String, HashMap<String, String>, String)> {
        let body = if method == "GET" { "" } else { "Content-Length: 6\r\n" };
        self.0
            .send(format!("{method} {path} HTTP/1.1\r\nHost: {HOST}\r\n{body}{more}\r\n"))?;
        if method != "GET" {
            self.0.send("body\r\n")?;
        }
        let status = self.0.line()?.split(' ').nth(1).unwrap_or_default().to_owned();
        let mut fields = HashMap::new();
        loop {
            let line = self.0.line()?;
            match line.split_once(": ") {
                Some((name, value)) => fields.insert(name.to_ascii_lowercase(), value.to_owned()),
                None => break,
            };
        }
        let length = fields.get("content-length").context("no length")?.parse()?;
        let body = String::from_utf8(self.0.bytes(length)?)?;
        Ok((status, fields, body))
    }

    fn get(&mut self, path: &str, credentials: &str) -> Result<(String, String)> {
        let more = match credentials {
            "" => String::new(),
            _ => format!("Authorization: {credentials}\r\n"),
        };
        let (status, _, body) = self.ask("GET", path, &more)?;
        Ok((status, body))
    }
}

/// Who is logged in on how many connections of a server.
type LoggedIn = Arc<Mutex<HashMap<String, usize>>>;

/// A server that logs in connections, in three requests (RFC 4559 has the form, [MS-NLMP] the messages). Its answers
/// say on which connection they came.
fn bound_login(logged_in: LoggedIn) -> impl Fn(&mut Peer) -> Result<()> + Send + Sync + 'static {
    let connections = AtomicUsize::new(0);
    move |peer| {
        let number = connections.fetch_add(1, Ordering::SeqCst);
        let mut user: Option<String> = None;
        let served = converse(peer, number, &mut user, &logged_in);
        if let Some(user) = user {
            let mut all = logged_in.lock().expect("nobody panics holding it");
            *all.entry(user).or_default() -= 1;
        }
        served
    }
}

fn converse(peer: &mut Peer, number: usize, user: &mut Option<String>, logged_in: &LoggedIn) -> Result<()> {
    let mut challenged = false;
    loop {
        let seen = request(peer)?;
        if seen.path == "/service/health/ready" {
            say(peer, "200 OK", "", "{}")?;
            continue;
        }
        let conn = format!("X-Conn: {number}\r\n");
        let credentials = seen.field("authorization").unwrap_or_default();
        let (scheme, message) = credentials.split_once(' ').unwrap_or_default();
        match (message, challenged) {
            ("one", _) => {
                challenged = true;
                say(
                    peer,
                    "401 Unauthorized",
                    &format!("{conn}WWW-Authenticate: {scheme} two\r\n"),
                    "",
                )?;
                continue;
            }
            (name, true) if name.starts_with("three-") && user.is_none() => {
                let name = name.trim_start_matches("three-").to_owned();
                *logged_in
                    .lock()
                    .expect("nobody panics holding it")
                    .entry(name.clone())
                    .or_default() += 1;
                *user = Some(name);
            }
            _ => {}
        }
        match user {
            Some(user) => say(peer, "200 OK", &conn, user)?,
            None => say(
                peer,
                "401 Unauthorized",
                &format!("{conn}WWW-Authenticate: Negotiate\r\nWWW-Authenticate: NTLM\r\n"),
                "",
            )?,
        }
    }
}

/// Servers that log in connections: below `/group` in clear text, below `/tls`, and that of alice's mailbox.
#[test]
fn a_login_of_a_connection_is_its_clients_alone() -> Result<()> {
    Stage::run(|stage| {
        let town = Town::build(stage, people())?;
        let local = || -> Result<SocketAddrV4> { Ok(SocketAddrV4::new(Ipv4Addr::LOCALHOST, stage.port()?)) };
        let (clear, tls, mailbox) = (local()?, local()?, SocketAddrV4::new(NTLM_IP, stage.port()?));
        let pair = town.ca.server(&[NTLM, "127.0.0.1"])?;
        let logged_in: [LoggedIn; 3] = Default::default();
        let _servers = [
            Fake::start(clear, None, bound_login(logged_in[0].clone()))?,
            Fake::start(tls, Some(pair.acceptor()?), bound_login(logged_in[1].clone()))?,
            Fake::start(mailbox, None, bound_login(logged_in[2].clone()))?,
        ];
        let site = stage.file(
            "site.yaml",
            format!(
                "groups:\n  clear: {{servers: [\"{clear}\"]}}\n  tls: {{servers: [\"{tls}\"], tls: {{name: {NTLM}}}}}\n\
                 locations:\n- {{prefix: /group/, group: clear}}\n- {{prefix: /tls/, group: tls}}\n- include: {}\n",
                quote(&town.locations)
            ),
        )?;
        let mut node = town.node();
        node.web = vec![("locations".to_owned(), quote(&site))];
        // With several threads the engine loses a kept connection now and then, and its client has to log in again.
        node.more.push(("threads".to_owned(), "1".to_owned()));
        let mut directory = town.directory();
        directory
            .config("zimbraReverseProxyMailMode", "both")
            .config("zimbraReverseProxySSLToUpstreamEnabled", "FALSE");
        let entry = directory.store(NTLM, NTLM_IP);
        entry.insert("zimbraMailPort".into(), mailbox.port().into());
        directory
            .account("alice@a.example")
            .insert("zimbraMailHost".into(), NTLM.into());
        let portico = Portico::start(stage, &node, &directory, "debug")?;
        let mut scene = Scene { stage, town, portico };
        let paths = ["/group/x", "/tls/x", "/service/home/alice@a.example/x"];
        for (path, logged_in) in paths.into_iter().zip(&logged_in) {
            let ways: [(&str, Open); 2] = [("NTLM", Client::clear), ("Negotiate", Client::tls)];
            for (scheme, open) in ways {
                its_clients_alone(&scene, path, scheme, open, logged_in).with_context(|| format!("{path} {scheme}"))?;
            }
        }
        // nginx in front of the same server tells others nothing either.
        let endpoints = [local()?, local()?];
        let proxy = format!("location / {{ proxy_pass http://{clear}; }}");
        let _nginx = Nginx::start(stage, "ntlm", endpoints, &scene.town.default, &proxy)?;
        let mut other = Client(Wire::clear(endpoints[0])?);
        ensure!(other.get("/group/x", "")?.0 == "401");
        scene.end()
    })
}

fn its_clients_alone(scene: &Scene, path: &str, scheme: &str, open: Open, logged_in: &LoggedIn) -> Result<()> {
    let count = |name: &str| {
        let all = logged_in.lock().expect("nobody panics holding it");
        all.get(name).copied().unwrap_or_default()
    };
    let log_in = |client: &mut Client, name: &str| -> Result<()> {
        ensure!(client.get(path, "")?.0 == "401");
        ensure!(client.get(path, &format!("{scheme} one"))?.0 == "401");
        let answer = client.get(path, &format!("{scheme} three-{name}"))?;
        ensure!(answer == ("200".to_owned(), name.to_owned()), "{answer:?}");
        Ok(())
    };
    let mut alice = open(scene)?;
    log_in(&mut alice, "alice")?;
    for _ in 0..3 {
        let mut other = open(scene)?;
        let answer = other.get(path, "")?;
        ensure!(answer.0 == "401", "another client got {answer:?}");
        ensure!(other.get(path, "Basic Ym9iOmJvYg==")?.0 == "401");
    }
    // It is still hers, without a word about it; also for what must not be repeated, and after a while.
    ensure!(alice.get(path, "")? == ("200".to_owned(), "alice".to_owned()));
    let_them_age();
    let (status, _, body) = alice.ask("POST", path, "")?;
    ensure!(
        (status.as_str(), body.as_str()) == ("200", "alice"),
        "{status} {body:?}"
    );
    let mut bob = open(scene)?;
    log_in(&mut bob, "bob")?;
    ensure!(alice.get(path, "")?.1 == "alice" && bob.get(path, "")?.1 == "bob");
    // A connection that was asked for a login is for no other client either.
    let mut asked = open(scene)?;
    let (_, fields, _) = asked.ask("GET", path, "")?;
    let (_, others, _) = open(scene)?.ask("GET", path, "")?;
    ensure!(
        fields["x-conn"] != others["x-conn"],
        "a challenged connection was shared"
    );
    forwarders_mix_clients(open(scene)?, path, scheme)?;
    ensure!(count("alice") == 1 && count("bob") == 1);
    drop((alice, bob));
    until("the end of their connections", SOON, || {
        Ok((count("alice") == 0 && count("bob") == 0).then_some(()))
    })
}

/// Whose the next request on a forwarder's connection is nobody knows, not even by its address: none finds the login of
/// the one before.
fn forwarders_mix_clients(mut forwarder: Client, path: &str, scheme: &str) -> Result<()> {
    for said in [
        "X-Forwarded-For: 192.0.2.1",
        "Forwarded: for=192.0.2.1",
        "Via: 1.1 squid",
    ] {
        let mut ask = |credentials: &str| forwarder.ask("GET", path, &format!("{said}\r\n{credentials}"));
        for message in ["", "one", "three-carol"] {
            let credentials = match message {
                "" => String::new(),
                _ => format!("Authorization: {scheme} {message}\r\n"),
            };
            ask(&credentials)?;
        }
        let (status, _, body) = ask("")?;
        ensure!(status == "401", "{said}: another client got {status} {body:?}");
    }
    Ok(())
}

/// Long enough for a connection to count as old, in a server that closes such ones.
const OLD: Duration = Duration::from_millis(550);

/// Leaves kept connections alone until all of them are old.
fn let_them_age() {
    thread::sleep(OLD + Duration::from_millis(50));
}

/// A server that closes a kept connection when the next request comes: at once below `/gone`, below `/old` if it has
/// been idle for a while; it hears of how much came, and answers nothing.
fn hasty(peer: &mut Peer) -> Result<()> {
    let mut last: Option<Instant> = None;
    loop {
        let seen = request(peer)?;
        let idle = last.map(|last| last.elapsed());
        let closes = match seen.path.split('/').nth(1).unwrap_or_default() {
            "gone" => idle.is_some(),
            "ends" => idle.is_some(),
            "old" => idle.is_some_and(|idle| idle >= OLD),
            _ => false,
        };
        if closes {
            return Ok(());
        }
        let says = match seen.path.as_str() {
            "/says/two" => "Keep-Alive: timeout=2\r\n",
            "/ends/second" => "Connection: Foo\r\nConnection: close\r\n",
            "/ends/beside" => "Connection: keep-alive, Close\r\n",
            _ => "",
        };
        let close = seen.field("connection").unwrap_or("none");
        say(peer, "200 OK", says, &format!("{} {close}", seen.method))?;
        last = Some(Instant::now());
    }
}

/// A kept connection counts as young for half a second at the least.
const YOUNG: Duration = Duration::from_millis(450);
/// A connection of the group `short`, or of a server that says two seconds, is used again for one second.
const KEPT: Duration = Duration::from_millis(900);
const PAST_KEPT: Duration = Duration::from_millis(1100);

/// Repeats what must be done within a time, until the machine was fast enough: only then does it show anything.
fn within<T>(time: Duration, mut act: impl FnMut() -> Result<T>) -> Result<T> {
    until("a moment in which the machine is fast enough", SOON, || {
        let start = Instant::now();
        let found = act()?;
        Ok((start.elapsed() < time).then_some(found))
    })
}

/// Servers that close kept connections, each a group of its own: below `/gone` and `/old`, below `/tls/` in TLS, below
/// `/short` and `/none` where one second and nothing is configured, below `/says` where the server says how long.
struct Hasty<'a> {
    scene: Scene<'a>,
    clear: Fake,
    tls: Fake,
    short: Fake,
    frank: Fake,
}

fn play_hasty(test: impl FnOnce(&Hasty) -> Result<()>) -> Result<()> {
    Stage::run(|stage| {
        let town = Town::build(stage, people())?;
        let local = || -> Result<SocketAddrV4> { Ok(SocketAddrV4::new(Ipv4Addr::LOCALHOST, stage.port()?)) };
        let at = [local()?, local()?, local()?, local()?];
        let pair = town.ca.server(&[NTLM, "127.0.0.1"])?;
        let clear = Fake::start(at[0], None, hasty)?;
        let tls = Fake::start(at[1], Some(pair.acceptor()?), hasty)?;
        let short = Fake::start(at[2], None, hasty)?;
        let frank = Fake::start(at[3], None, hasty)?;
        let site = stage.file(
            "site.yaml",
            format!(
                "groups:\n  clear: {{servers: [\"{}\"]}}\n  tls: {{servers: [\"{}\"], tls: {{name: {NTLM}}}}}\n  \
                 short: {{servers: [\"{}\"], keepalive: 1s}}\n  \
                 frank: {{servers: [\"{}\"]}}\n\
                 locations:\n- {{prefix: /tls/, group: tls, path: /}}\n- {{prefix: /short/, group: short}}\n\
                 - {{prefix: /none/, group: short, keepalive: 0}}\n- {{prefix: /gone/, group: clear}}\n\
                 - {{prefix: /old/, group: clear}}\n- {{prefix: /ends/, group: clear}}\n- {{prefix: /says/, group: frank}}\n- include: {}\n",
                at[0],
                at[1],
                at[2],
                at[3],
                quote(&town.locations)
            ),
        )?;
        let mut node = town.node();
        node.web = vec![("locations".to_owned(), quote(&site))];
        let mut directory = town.directory();
        directory.config("zimbraReverseProxyMailMode", "both");
        let portico = Portico::start(stage, &node, &directory, "debug")?;
        let mut hasty = Hasty {
            scene: Scene { stage, town, portico },
            clear,
            tls,
            short,
            frank,
        };
        test(&hasty)?;
        hasty.scene.end()
    })
}

/// The server closes when the second request comes: what may be done twice is.
#[test]
fn what_may_be_repeated_is_sent_again() -> Result<()> {
    play_hasty(|hasty| {
        let mut client = Client::clear(&hasty.scene)?;
        for prefix in ["", "/tls"] {
            for method in ["GET", "PUT", "PROPFIND", "REPORT", "MKCALENDAR", "SEARCH"] {
                ensure!(client.ask("GET", &format!("{prefix}/gone/x"), "")?.0 == "200");
                let (status, _, body) = client.ask(method, &format!("{prefix}/gone/x"), "")?;
                ensure!(
                    status == "200" && body.starts_with(method),
                    "{prefix} {method}: {status} {body:?}"
                );
            }
        }
        ensure!(hasty.tls.connections() > 0);
        Ok(())
    })
}

/// The server closes when the second request comes: a POST is sent once. Only its client knows whether it may be
/// sent again.
#[test]
fn what_may_not_be_repeated_is_sent_once() -> Result<()> {
    play_hasty(|hasty| {
        let posts = || hasty.clear.heard().matches("POST /gone/once").count();
        let (status, sent) = within(YOUNG, || {
            let mut client = Client::clear(&hasty.scene)?;
            let before = posts();
            ensure!(client.ask("GET", "/gone/x", "")?.0 == "200");
            let (status, _, _) = client.ask("POST", "/gone/once", "")?;
            Ok((status, posts() - before))
        })?;
        ensure!((status.as_str(), sent) == ("502", 1), "{status}, sent {sent} times");
        Ok(())
    })
}

/// `Connection: close` counts wherever it stands (RFC 9110 §5.3, RFC 9112 §9.3): of a server, whose connection gets no
/// other request, and of a client, whose connection ends.
#[test]
fn a_connection_ends_where_either_side_says_so() -> Result<()> {
    play_hasty(|hasty| {
        for prefix in ["", "/tls"] {
            for path in ["second", "beside"] {
                let mut client = Client::clear(&hasty.scene)?;
                ensure!(client.ask("GET", &format!("{prefix}/ends/{path}"), "")?.0 == "200");
                let (status, _, _) = client.ask("POST", &format!("{prefix}/ends/{path}"), "")?;
                ensure!(status == "200", "{prefix}{path}: {status}");
            }
        }
        for says in [
            "Connection: Foo\r\nConnection: close\r\n",
            "Connection: keep-alive, close\r\n",
        ] {
            let mut client = Client::clear(&hasty.scene)?;
            let (_, fields, _) = client.ask("GET", "/gone/x", says)?;
            ensure!(
                fields.get("connection").is_some_and(|said| said == "close"),
                "{fields:?}"
            );
            ensure!(client.0.rest()?.is_empty());
        }
        Ok(())
    })
}

/// The server closes what was idle for a while: a POST does not go there at all, nor does a body that is too long to be
/// kept and sent again.
#[test]
fn what_may_not_be_repeated_is_not_sent_on_an_old_connection() -> Result<()> {
    play_hasty(|hasty| {
        for prefix in ["", "/tls"] {
            // Several that are old, so that one does not do.
            let mut others: Vec<Client> = (0..7).map(|_| Client::clear(&hasty.scene)).collect::<Result<_>>()?;
            for method in ["POST", "LOCK", "PATCH"] {
                for other in &mut others {
                    other
                        .0
                        .send(format!("GET {prefix}/old/x HTTP/1.1\r\nHost: {HOST}\r\n\r\n"))?;
                }
                for other in &mut others {
                    while !other.0.line()?.is_empty() {}
                    other.0.bytes("GET none".len())?;
                }
                let_them_age();
                let mut client = Client::clear(&hasty.scene)?;
                let (status, _, body) = client.ask(method, &format!("{prefix}/old/x"), "")?;
                ensure!(
                    status == "200" && body.starts_with(method),
                    "{prefix} {method}: {status}"
                );
            }
        }
        ensure!(hasty.tls.connections() > 0);
        a_long_body_is_sent(&hasty.scene)
    })
}

fn a_long_body_is_sent(scene: &Scene) -> Result<()> {
    let mut client = Client::clear(scene)?;
    ensure!(client.ask("GET", "/old/x", "")?.0 == "200");
    let_them_age();
    let body = format!("{}\r\n", "x".repeat(200 * 1024));
    let head = format!(
        "PUT /old/x HTTP/1.1\r\nHost: {HOST}\r\nContent-Length: {}\r\n\r\n",
        body.len()
    );
    client.0.send(head + &body)?;
    let line = client.0.line()?;
    ensure!(line.starts_with("HTTP/1.1 200 "), "{line}");
    Ok(())
}

/// A server that says two seconds: after one its connection is not used any more.
#[test]
fn servers_say_how_long_connections_are_kept() -> Result<()> {
    play_hasty(|hasty| {
        let mut client = Client::clear(&hasty.scene)?;
        check_kept_for_a_second(&mut client, &hasty.frank, "/says/two")
    })
}

#[test]
fn groups_and_locations_say_how_long_connections_are_kept() -> Result<()> {
    play_hasty(|hasty| {
        let mut client = Client::clear(&hasty.scene)?;
        ensure!(client.ask("GET", "/short/x", "")?.2 == "GET none");
        check_kept_for_a_second(&mut client, &hasty.short, "/short/x")?;
        // The location says none.
        let before = hasty.short.connections();
        for _ in 0..3 {
            ensure!(client.ask("GET", "/none/x", "")?.2 == "GET close");
        }
        ensure!(hasty.short.connections() == before + 3);
        Ok(())
    })
}

/// A connection is used again at once, and not after a second.
fn check_kept_for_a_second(client: &mut Client, server: &Fake, path: &str) -> Result<()> {
    let mut opened_by_second = || {
        ensure!(client.ask("GET", path, "")?.0 == "200");
        let before = server.connections();
        ensure!(client.ask("GET", path, "")?.0 == "200");
        Ok(server.connections() - before)
    };
    let opened = within(KEPT, &mut opened_by_second)?;
    ensure!(opened == 0, "{path}: a young connection was not used again");

    thread::sleep(PAST_KEPT);
    let before = server.connections();
    ensure!(client.ask("GET", path, "")?.0 == "200");
    let opened = server.connections() - before;
    ensure!(opened == 1, "{path}: {opened} connections after a second");
    Ok(())
}
