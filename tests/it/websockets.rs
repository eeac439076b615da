//! WebSocket handshakes with servers that agree, refuse, send garbage or say nothing: what the client hears, and what the
//! server got.

use std::cell::OnceCell;
use std::net::{Ipv4Addr, SocketAddrV4};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use portico_tests::config::{Directory, Node, quote};
use portico_tests::fake::{Fake, Peer};
use portico_tests::jetty::Jetty;
use portico_tests::memcached::Memcached;
use portico_tests::wire::Wire;
use portico_tests::{Stage, until};

use crate::scene::{GUEST, Scene, play_before, timed};

const HOST: &str = "mail.a.example";
/// Far less than the wait for an answer.
const SOON: Duration = Duration::from_secs(10);
const LOCATIONS: &str = "locations:
- {prefix: /ws/silent, mailbox: web, websocket: true, timeouts: {read: 2s}}
- {prefix: /, mailbox: web, websocket: true, answer_headers: {X-Location: all}}
";
/// With fields that are for the client, and with such as are not.
const SWITCHED: &str = "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade, X-Hop\r\nX-Hop: 1\r\n\
    Server: Jetty(9.4)\r\nKeep-Alive: timeout=5\r\nContent-Length: 0\r\nSec-WebSocket-Protocol: xmpp\r\n\r\nframe";

/// What the server answers, by path. It ends the connection behind it only where the answer is empty.
const ANSWERS: [(&str, &str); 23] = [
    ("/ws/good", SWITCHED),
    ("/home/ghost@a.example/ws", SWITCHED),
    (
        "/ws/hints",
        "HTTP/1.1 103 Early Hints\r\nLink: </x>\r\nServer: Jetty(9.4)\r\n\r\n@HTTP/1.1 101 Go\r\nUpgrade: WebSocket\r\nConnection: upgrade\r\n\r\n",
    ),
    (
        "/ws/refused",
        "HTTP/1.1 403 No\r\nContent-Length: 3\r\nConnection: X-Hop\r\nX-Hop: 1\r\nLocation: http://GUEST/else\r\n\r\nno!",
    ),
    (
        "/ws/moved",
        "HTTP/1.1 302 Found\r\nContent-Length: 0\r\nLocation: http://GUEST/else\r\n\r\n",
    ),
    (
        "/ws/chunked",
        "HTTP/1.1 400 No\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nno!\r\n@4;x\r\n\r\n\r\n\r\n0\r\nSum: 1\r\n\r\n",
    ),
    (
        "/home/ghost@a.example/Calendar",
        "HTTP/1.1 401 No\r\nContent-Length: 0\r\nWWW-Authenticate: Basic\r\n\r\n",
    ),
    ("/ws/empty", "HTTP/1.1 204 No\r\nContent-Length: 9\r\n\r\nEXTRA"),
    (
        "/ws/more",
        "HTTP/1.1 403 No\r\nContent-Length: 3\r\n\r\nno!HTTP/1.1 200 OK\r\n\r\n",
    ),
    (
        "/ws/more-chunks",
        "HTTP/1.1 403 No\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nno!\r\n0\r\n\r\n3\r\nno!\r\n",
    ),
    (
        "/ws/cut/chunks",
        "HTTP/1.1 403 No\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nno!\r\n@zz\r\n",
    ),
    ("/ws/cut/closes", "HTTP/1.1 403 No\r\nContent-Length: 30\r\n\r\nno!"),
    ("/ws/silent/body", "HTTP/1.1 403 No\r\nContent-Length: 30\r\n\r\nno!"),
    ("/ws/until-end", "HTTP/1.1 403 No\r\n\r\nno!"),
    ("/ws/unavailable", "HTTP/1.1 503 No\r\nContent-Length: 3\r\n\r\nno!"),
    ("/ws/closes", ""),
    ("/ws/babbles", "* OK IMAP4 ready\r\n"),
    (
        "/ws/other",
        "HTTP/1.1 101 Go\r\nUpgrade: h2c\r\nConnection: Upgrade\r\n\r\n",
    ),
    ("/ws/bare", "HTTP/1.1 101 Go\r\n\r\n"),
    ("/ws/coding", "HTTP/1.1 200 OK\r\nTransfer-Encoding: xchunked\r\n\r\n"),
    (
        "/ws/lengths",
        "HTTP/1.1 200 OK\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\nab",
    ),
    (
        "/ws/endless",
        "HTTP/1.1 103 a\r\n\r\nHTTP/1.1 103 b\r\n\r\nHTTP/1.1 103 c\r\n\r\nHTTP/1.1 103 d\r\n\r\nHTTP/1.1 103 e\r\n\r\n\
         HTTP/1.1 103 f\r\n\r\nHTTP/1.1 103 g\r\n\r\nHTTP/1.1 103 h\r\n\r\nHTTP/1.1 103 i\r\n\r\nHTTP/1.1 103 j\r\n\r\n",
    ),
    ("/service/health/ready", "HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n"),
];

/// The server, and how many clients have left while it said nothing.
struct Server {
    fake: Fake,
    left: Arc<AtomicUsize>,
}

impl Server {
    fn start(_: &Stage, at: SocketAddrV4) -> Result<Self> {
        let left = Arc::new(AtomicUsize::new(0));
        let count = left.clone();
        let guest = format!("{GUEST}:{}", at.port());
        let script = move |peer: &mut Peer| loop {
            let line = peer.line()?;
            let path = line.split(' ').nth(1).context("no path")?.to_owned();
            while !peer.line()?.is_empty() {}
            let Some((_, answer)) = ANSWERS.iter().find(|(known, _)| *known == path) else {
                let ended = peer.freeze();
                count.fetch_add(1, Ordering::SeqCst);
                return ended;
            };
            for part in answer.split('@') {
                peer.send(part.replace("GUEST", &guest))?;
                std::thread::sleep(Duration::from_millis(50));
            }
            match path.as_str() {
                "/ws/closes" | "/ws/cut/closes" | "/ws/until-end" => return Ok(()),
                "/service/health/ready" => {}
                _ => return peer.freeze(),
            }
        };
        Ok(Self {
            fake: Fake::start(at, None, script)?,
            left,
        })
    }
}

fn with_locations(stage: &Stage, node: &mut Node, directory: &mut Directory) -> Result<()> {
    let locations = stage.file("locations.yaml", LOCATIONS)?;
    node.web = vec![("locations".to_owned(), quote(&locations))];
    directory.config("zimbraReverseProxyResponseHeaders", ["X-Frame-Options: SAMEORIGIN"]);
    Ok(())
}

/// Sends a handshake with more fields.
fn handshake(scene: &Scene, path: &str, more: &str) -> Result<Wire> {
    let mut wire = Wire::clear(scene.town.endpoints.http)?;
    wire.send(handshake_of(path, more))?;
    Ok(wire)
}

fn handshake_of(path: &str, more: &str) -> String {
    format!(
        "GET {path} HTTP/1.1\r\nHost: {HOST}\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
         Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n{more}\r\n"
    )
}

/// An answer's head: its status, and its fields in lower case.
struct Head {
    status: String,
    fields: Vec<(String, String)>,
}

impl Head {
    fn read(wire: &mut Wire) -> Result<Self> {
        let status = wire.line()?.split(' ').nth(1).context("no status")?.to_owned();
        let mut fields = Vec::new();
        loop {
            let line = wire.line()?;
            match line.split_once(':') {
                Some((name, value)) => fields.push((name.to_ascii_lowercase(), value.trim().to_owned())),
                None => return Ok(Self { status, fields }),
            }
        }
    }

    fn get(&self, name: &str) -> Option<&str> {
        let found = self.fields.iter().find(|(known, _)| known == name);
        found.map(|(_, value)| value.as_str())
    }

    /// It says what the client must know, once, and nothing of what is between the server and us.
    fn must_be_an_agreement(&self) -> Result<()> {
        let names: Vec<&str> = self.fields.iter().map(|(name, _)| name.as_str()).collect();
        ensure!(
            names == ["sec-websocket-protocol", "x-request-id", "connection", "upgrade"],
            "{:?}",
            self.fields
        );
        let agreed = self.get("connection") == Some("Upgrade") && self.get("upgrade") == Some("websocket");
        ensure!(
            agreed && self.get("sec-websocket-protocol") == Some("xmpp"),
            "{:?}",
            self.fields
        );
        Ok(())
    }

    /// It is dressed like every other answer, and says that the connection ends.
    fn must_be_ours(&self) -> Result<()> {
        let dressed = self.get("x-request-id").is_some()
            && self.get("x-frame-options") == Some("SAMEORIGIN")
            && self.get("connection") == Some("close");
        ensure!(dressed, "{} {:?}", self.status, self.fields);
        Ok(())
    }
}

#[test]
fn servers_answer_handshakes_in_many_ways() -> Result<()> {
    play_before(
        Ipv4Addr::new(127, 0, 0, 9),
        Server::start,
        with_locations,
        |scene, server| {
            for more in ["", "Content-Length: 0\r\n", "Cookie: a=b\r\nCookie: c=d\r\n"] {
                let mut wire = handshake(scene, "/ws/good", more)?;
                let head = Head::read(&mut wire)?;
                ensure!(head.status == "101", "{more:?}: {}", head.status);
                head.must_be_an_agreement()?;
                ensure!(wire.bytes(5)? == b"frame", "what came behind the head");
                // It is the server's own, and no page.
                ensure!(head.get("x-frame-options").is_none(), "{:?}", head.fields);
            }
            let heard = server.fake.heard().to_ascii_lowercase();
            ensure!(!heard.contains("content-length"), "{heard}");
            ensure!(heard.contains("cookie: a=b; c=d\r\n"), "{heard}");
            hints_pass(scene)?;
            quick_clients_are_heard(scene, server)?;
            guesses_are_recorded(scene)?;
            refusals_are_answers(scene)?;
            refusals_that_are_cut_do_not_look_whole(scene)?;
            for (path, status) in [
                ("/ws/closes", "502"),
                ("/ws/babbles", "502"),
                ("/ws/other", "502"),
                ("/ws/bare", "502"),
                ("/ws/coding", "502"),
                ("/ws/lengths", "502"),
                ("/ws/silent", "504"),
            ] {
                let (head, took) = timed(|| Head::read(&mut handshake(scene, path, "")?))?;
                ensure!(
                    head.status == status && took < SOON,
                    "{path}: {} after {took:?}",
                    head.status
                );
                head.must_be_ours().with_context(|| path.to_owned())?;
                ensure!(
                    head.get("content-type") == Some("application/json"),
                    "{path}: {:?}",
                    head.fields
                );
            }
            let mut endless = handshake(scene, "/ws/endless", "")?;
            let heads = (0..9).map(|_| Head::read(&mut endless)).collect::<Result<Vec<_>>>()?;
            ensure!(heads.last().is_some_and(|head| head.status == "502"), "no end");
            leaving_is_noticed(scene, server)
        },
    )
}

/// What comes before the answer reaches the client before it, and does not look like one.
fn hints_pass(scene: &Scene) -> Result<()> {
    let mut wire = handshake(scene, "/ws/hints", "")?;
    let hints = Head::read(&mut wire)?;
    ensure!(
        hints.status == "103" && hints.get("link") == Some("</x>"),
        "{:?}",
        hints.fields
    );
    ensure!(hints.fields.len() == 1, "{:?}", hints.fields);
    let head = Head::read(&mut wire)?;
    ensure!(head.status == "101", "{}", head.status);
    Ok(())
}

/// What a client says before the server has agreed reaches it then, and not before.
fn quick_clients_are_heard(scene: &Scene, server: &Server) -> Result<()> {
    let mut wire = handshake(scene, "/ws/hints", "")?;
    Head::read(&mut wire)?;
    wire.send("quick\r\n")?;
    Head::read(&mut wire)?;
    until("the early words", SOON, || {
        Ok(server.fake.heard().contains("quick").then_some(()))
    })?;
    let mut wire = handshake(scene, "/ws/silent", "")?;
    wire.send("smuggled\r\n")?;
    ensure!(Head::read(&mut wire)?.status == "504", "an answer");
    ensure!(
        !server.fake.heard().contains("smuggled"),
        "it was heard before the server agreed"
    );
    Ok(())
}

/// A guess at a password is one, also in a handshake.
fn guesses_are_recorded(scene: &Scene) -> Result<()> {
    // ghost@a.example:guess
    let guess = "Authorization: Basic Z2hvc3RAYS5leGFtcGxlOmd1ZXNz\r\n";
    let mut wire = handshake(scene, "/home/ghost@a.example/Calendar", guess)?;
    ensure!(Head::read(&mut wire)?.status == "401", "an answer");
    let record = scene
        .portico
        .record(&[("event", "web_login"), ("user", "ghost@a.example")])?;
    ensure!(record["outcome"] == "bad_credentials", "{record}");
    Ok(())
}

/// What is no web socket is an answer like any other, whole and soon.
fn refusals_are_answers(scene: &Scene) -> Result<()> {
    let location = format!("http://{HOST}/else");
    for (path, status, body, moved) in [
        ("/ws/refused", "403", "no!", Some(location.as_str())),
        ("/ws/moved", "302", "", Some(location.as_str())),
        (
            "/ws/chunked",
            "400",
            "3\r\nno!\r\n4;x\r\n\r\n\r\n\r\n0\r\nSum: 1\r\n\r\n",
            None,
        ),
        ("/ws/empty", "204", "", None),
        ("/ws/unavailable", "503", "no!", None),
        ("/ws/more", "403", "no!", None),
        ("/ws/more-chunks", "403", "3\r\nno!\r\n0\r\n\r\n", None),
        ("/ws/until-end", "403", "no!", None),
    ] {
        let ((head, rest), took) = timed(|| {
            let mut wire = handshake(scene, path, "")?;
            Ok((Head::read(&mut wire)?, wire.rest()?))
        })?;
        let rest = String::from_utf8_lossy(&rest).into_owned();
        ensure!(
            head.status == status && rest == body,
            "{path}: {} {rest:?}",
            head.status
        );
        ensure!(took < SOON, "{path}: {took:?}");
        ensure!(head.get("location") == moved, "{path}: {:?}", head.fields);
        ensure!(head.get("x-location") == Some("all"), "{path}: {:?}", head.fields);
        ensure!(head.get("x-hop").is_none(), "{path}: {:?}", head.fields);
        head.must_be_ours().with_context(|| path.to_owned())?;
    }
    // A person who goes there sees our page.
    let mut page = handshake(
        scene,
        "/ws/unavailable",
        "Accept: text/html\r\nSec-Fetch-Mode: navigate\r\n",
    )?;
    let head = Head::read(&mut page)?;
    ensure!(head.status == "503" && head.get("content-type") == Some("text/html; charset=utf-8"));
    let id = head.get("x-request-id").context("no id")?.to_owned();
    ensure!(
        String::from_utf8_lossy(&page.rest()?).contains(&id),
        "the page does not say {id}"
    );
    until("its access line", SOON, || {
        Ok(scene
            .portico
            .access_log()
            .contains("/ws/unavailable HTTP/1.1\" 503")
            .then_some(()))
    })
}

/// The server breaks off, sends what is no chunk, or is silent for as long as the location allows.
fn refusals_that_are_cut_do_not_look_whole(scene: &Scene) -> Result<()> {
    for (path, body) in [
        ("/ws/cut/chunks", "3\r\nno!\r\n"),
        ("/ws/cut/closes", "no!"),
        ("/ws/silent/body", "no!"),
    ] {
        let ((mut wire, rest), took) = timed(|| {
            let mut wire = scene.tls(scene.town.endpoints.https, HOST)?;
            wire.send(handshake_of(path, ""))?;
            ensure!(Head::read(&mut wire)?.status == "403", "{path}");
            let mut rest = wire.bytes(body.len())?;
            rest.extend(wire.rest().unwrap_or_default());
            Ok((wire, rest))
        })?;
        let rest = String::from_utf8_lossy(&rest).into_owned();
        ensure!(rest == body && took < SOON, "{path}: {rest:?} after {took:?}");
        ensure!(!wire.is_closed_properly(), "{path}: it looks whole");
    }
    Ok(())
}

/// The server's connection ends with the client's.
fn leaving_is_noticed(scene: &Scene, server: &Server) -> Result<()> {
    let before = server.left.load(Ordering::SeqCst);
    let wire = handshake(scene, "/ws/waits-for-ever", "")?;
    until("the handshake to arrive", SOON, || {
        Ok(server.fake.heard().contains("/ws/waits-for-ever").then_some(()))
    })?;
    drop(wire);
    until("the server to be left, too", SOON, || {
        Ok((server.left.load(Ordering::SeqCst) > before).then_some(()))
    })
}

/// A real server that opens no web sockets.
#[test]
fn jetty_refuses_a_handshake() -> Result<()> {
    play_before(
        Ipv4Addr::new(127, 0, 0, 10),
        Jetty::start,
        with_locations,
        |scene, _| {
            for more in ["", "Content-Length: 0\r\n"] {
                let mut wire = handshake(scene, "/home/x", more)?;
                let head = Head::read(&mut wire)?;
                ensure!(
                    head.status == "200" && head.get("x-servlet") == Some("home"),
                    "{:?}",
                    head.fields
                );
                head.must_be_ours()?;
                let body = String::from_utf8(wire.rest()?)?;
                ensure!(body == "/home /x\r\n", "{body:?}");
            }
            Ok(())
        },
    )
}

/// Memcached says that an account is at a server that is gone. The upgrade forgets that and finds the account's server; no
/// request without its `Upgrade` goes there instead.
#[test]
fn an_upgrade_gets_past_a_stale_route() -> Result<()> {
    let started = OnceCell::new();
    play_before(
        Ipv4Addr::new(127, 0, 0, 11),
        Server::start,
        |stage, node, directory| {
            with_locations(stage, node, directory)?;
            let server = Memcached::start(stage)?;
            let servers = format!("{{memcached: {{servers: [\"{}\"]}}}}", server.address());
            node.more.push(("route_cache".to_owned(), servers));
            started.set(server).ok().context("one memcached")
        },
        |scene, server| {
            let memcached = started.get().context("no memcached")?;
            let key = openssl::sha::sha256(b"route:proto=http;user=ghost@a.example");
            let key: String = key.iter().map(|byte| format!("{byte:02x}")).collect();
            let dead = scene.town.stores[0].web.http.to_string();
            scene.town.stores[0].web.stop();
            memcached.add(&key, &dead)?;
            let credentials = openssl::base64::encode_block(b"ghost@a.example:secret");
            let more = format!("Authorization: Basic {credentials}\r\n");
            let mut wire = handshake(scene, "/home/ghost@a.example/ws", &more)?;
            let head = Head::read(&mut wire)?;
            ensure!(head.status == "101", "{} {:?}", head.status, head.fields);
            head.must_be_an_agreement()?;
            let heard = server.fake.heard();
            let requests = heard.matches("GET /home/ghost@a.example/ws ").count();
            ensure!(requests == 1, "{heard}");
            let stored = memcached.get(&key)?;
            ensure!(stored.as_deref() != Some(&*dead), "the stale route is still there");
            Ok(())
        },
    )
}
