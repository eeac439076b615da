//! What servers say wrongly, or only between themselves and us: clients of every version of HTTP get a sound answer or
//! a 502, and never what follows on the connection.

use std::io::{Read, Write};
use std::net::{Ipv4Addr, SocketAddrV4, TcpStream};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use nix::sys::signal::Signal;
use openssl::ssl::ShutdownState;
use portico_tests::certs::Pair;
use portico_tests::config::{Node, quote};
use portico_tests::fake::{Fake, Peer};
use portico_tests::nginx::Nginx;
use portico_tests::portico::Portico;
use portico_tests::town::{Town, people};
use portico_tests::wire::Wire;
use portico_tests::{Stage, until};

use crate::scene::Scene;
use crate::web::HOST;

/// A text of which more may come.
const TEXT_BEGUN: &str =
    "HTTP/1.1 200 OK\r\nContent-Type: text/css\r\nTransfer-Encoding: chunked\r\n\r\na\r\n0123456789\r\n";
const TEXT_WITH_TRAILERS: &str = "HTTP/1.1 200 OK\r\nContent-Type: text/css\r\nTransfer-Encoding: chunked\r\n\r\n\
                                  a\r\n0123456789\r\n0\r\nDigest: x\r\n\r\n";
/// A gap between two segments of a server.
const GAP: Duration = Duration::from_millis(30);

/// What a server says to a request for `/odd/<its place in the table>`.
struct Case {
    /// Segments, as they are sent.
    says: &'static [&'static str],
    /// It closes the connection behind them.
    ends: bool,
    /// The status that clients see, and the body if it is the server's.
    status: &'static str,
    body: Option<&'static str>,
    /// Fields with their values; an empty value: it must not be there.
    fields: &'static [(&'static str, &'static str)],
}

const SOUND: Case = Case {
    says: &["HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nfine"],
    ends: false,
    status: "200",
    body: Some("fine"),
    fields: &[("content-length", "4")],
};

const BAD: Case = Case {
    says: &[],
    ends: false,
    status: "502",
    body: None,
    fields: &[],
};

const CASES: &[Case] = &[
    SOUND,
    Case {
        says: &["HTTP/1.1 204 No Content\r\nContent-Length: 5\r\n\r\n"],
        status: "204",
        body: Some(""),
        fields: &[("content-length", ""), ("transfer-encoding", "")],
        ..SOUND
    },
    Case {
        says: &["HTTP/1.1 204 No Content\r\nContent-Length: 5\r\n\r\n", "hello"],
        status: "204",
        body: Some(""),
        fields: &[("content-length", "")],
        ..SOUND
    },
    Case {
        says: &[
            "HTTP/1.1 204 No Content\r\nTransfer-Encoding: chunked\r\n\r\n",
            "0\r\n\r\n",
        ],
        status: "204",
        body: Some(""),
        fields: &[("content-length", ""), ("transfer-encoding", "")],
        ..SOUND
    },
    Case {
        says: &["HTTP/1.1 200 OK\r\nContent-Length: 5, 5\r\n\r\nhello"],
        body: Some("hello"),
        fields: &[("content-length", "5")],
        ..SOUND
    },
    Case {
        says: &["HTTP/1.1 200 OK\r\nContent-Length: 5\r\ncontent-length: 5\r\n\r\nhello"],
        body: Some("hello"),
        fields: &[("content-length", "5")],
        ..SOUND
    },
    Case {
        says: &["HTTP/1.1 200 OK\r\nContent-Length: 5\r\nContent-Length: 6\r\n\r\nhello!"],
        ..BAD
    },
    Case {
        says: &["HTTP/1.1 200 OK\r\nContent-Length: +5\r\n\r\nhello"],
        ..BAD
    },
    Case {
        says: &["HTTP/1.1 200 OK\r\nTransfer-Encoding: xchunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n"],
        ..BAD
    },
    Case {
        says: &["HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n"],
        ..BAD
    },
    Case {
        says: &["HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n"],
        ..BAD
    },
    Case {
        says: &["HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n"],
        ..BAD
    },
    Case {
        says: &["HTTP/1.1 101 Switching Protocols\r\n\r\n"],
        ..BAD
    },
    // It hangs up with an answer of unknown length.
    Case {
        says: &["HTTP/1.0 200 OK\r\n\r\nhello"],
        ends: true,
        body: Some("hello"),
        fields: &[],
        ..SOUND
    },
    Case {
        says: &["HTTP/1.0 200 OK\r\nContent-Length: 5\r\n\r\nhello"],
        ends: true,
        body: Some("hello"),
        fields: &[("content-length", "5")],
        ..SOUND
    },
    Case {
        says: &["HTTP/1.1 200 OK\r\nX-Folded: a\r\n b\r\nContent-Length: 4\r\n\r\nfine"],
        fields: &[("x-folded", "a b")],
        ..SOUND
    },
    Case {
        says: &[
            "HTTP/1.1 200 OK\r\nConnection: keep-alive, X-Hop, content-length\r\nKeep-Alive: timeout=9\r\nX-Hop: 1\r\n\
             Proxy-Authenticate: Basic\r\nProxy-Connection: keep-alive\r\nUpgrade: h2c\r\nTE: trailers\r\n\
             Trailer: X-Late\r\nServer: Jetty(9.4.57)\r\nX-Stays: 2\r\nContent-Length: 4\r\n\r\nfine",
        ],
        fields: &[
            ("x-hop", ""),
            ("keep-alive", ""),
            ("proxy-authenticate", ""),
            ("proxy-connection", ""),
            ("upgrade", ""),
            ("te", ""),
            ("trailer", ""),
            ("server", ""),
            ("x-stays", "2"),
            ("content-length", "4"),
        ],
        ..SOUND
    },
];

/// Answers of known and unknown length, for clients that do not know chunks.
const CHUNKED: &str = "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n";
const MEASURED: &str = "HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello";
const HINTED: &str = "HTTP/1.1 103 Early Hints\r\nLink: </x>\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello";
const CONTINUED: &str = "HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello";

/// Reads one request's head, with one line of a body where one is announced; its path.
fn request(peer: &mut Peer) -> Result<String> {
    let first = peer.line()?;
    let mut has_body = false;
    loop {
        let line = peer.line()?.to_ascii_lowercase();
        has_body |= line.starts_with("content-length: ") && line != "content-length: 0";
        if line.is_empty() {
            break;
        }
    }
    if has_body {
        peer.line()?;
    }
    Ok(first.split(' ').nth(1).unwrap_or_default().to_owned())
}

fn serve(peer: &mut Peer) -> Result<()> {
    loop {
        let path = request(peer)?;
        let number = path
            .strip_prefix("/odd/")
            .and_then(|number| number.parse::<usize>().ok());
        if let Some(case) = number.and_then(|number| CASES.get(number)) {
            for (at, segment) in case.says.iter().enumerate() {
                if at > 0 {
                    std::thread::sleep(GAP);
                }
                peer.send(segment)?;
            }
            if case.ends {
                return Ok(());
            }
            continue;
        }
        match path.as_str() {
            "/odd/chunked" => peer.send(CHUNKED)?,
            "/odd/measured" => peer.send(MEASURED)?,
            "/odd/hinted" => peer.send(HINTED)?,
            "/odd/continued" => peer.send(CONTINUED)?,
            "/odd/short" => return peer.send("HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n0123456789"),
            "/odd/short-later" => {
                peer.send("HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n01234")?;
                std::thread::sleep(GAP);
                return peer.send("56789");
            }
            "/odd/short-chunk" => {
                return peer.send("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\na\r\n0123456789\r\n5\r\n12");
            }
            "/odd/short-text" => return peer.send(TEXT_BEGUN),
            "/odd/slow-text" => {
                peer.send(TEXT_BEGUN)?;
                return peer.freeze();
            }
            "/odd/text-with-trailers" => peer.send(TEXT_WITH_TRAILERS)?,
            "/odd/hints" => {
                let mut hints = "HTTP/1.1 103 Early Hints\r\nLink: </x>\r\n\r\n".repeat(500);
                hints.push_str(MEASURED);
                peer.send(hints)?;
            }
            "/odd/stalled" => {
                peer.send("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\na\r\n0123456789\r\n")?;
                return peer.freeze();
            }
            _ => peer.send("HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")?,
        }
    }
}

/// A server with TLS whose answers end with the connection; those below `/tls/cut` without the closing message.
fn serve_until_end(peer: &mut Peer) -> Result<()> {
    let path = request(peer)?;
    peer.send("HTTP/1.1 200 OK\r\n\r\nhello")?;
    match path.as_str() {
        "/tls/cut" => Ok(()),
        _ => peer.end(),
    }
}

/// Portico in front of a server that says odd things below `/odd/`, and a real one with HTTP/2 below `/h2`.
fn play(test: impl FnOnce(&mut Scene, &Node, &Fake) -> Result<()>) -> Result<()> {
    Stage::run(|stage| {
        let town = Town::build(stage, people())?;
        let at = || -> Result<SocketAddrV4> { Ok(SocketAddrV4::new(Ipv4Addr::LOCALHOST, stage.port()?)) };
        let (odd, tls, real) = (at()?, at()?, [at()?, at()?]);
        let fake = Fake::start(odd, None, serve)?;
        let pair: Pair = town.ca.server(&["real.example.test", "127.0.0.1"])?;
        let _until_end = Fake::start(tls, Some(pair.acceptor()?), serve_until_end)?;
        let _nginx = Nginx::start(
            stage,
            "h2",
            real,
            &pair,
            "location /h2 { sub_filter_types *; sub_filter a b; sub_filter_once off; return 200 banana; }",
        )?;
        let site = stage.file(
            "site.yaml",
            format!(
                "groups:\n  odd: {{servers: [\"{odd}\"]}}\n  \
                 tls: {{servers: [\"{tls}\"], tls: {{name: real.example.test}}}}\n  \
                 real: {{servers: [\"{}\"], tls: {{name: real.example.test}}}}\n\
                 locations:\n- {{prefix: /odd/, group: odd}}\n- {{prefix: /tls/, group: tls}}\n- {{prefix: /h2, group: real, http2: true}}\n\
                 - include: {}\n",
                real[1],
                quote(&town.locations)
            ),
        )?;
        let mut node = town.node();
        node.web = vec![("locations".to_owned(), quote(&site))];
        let mut directory = town.directory();
        directory.config("zimbraReverseProxyMailMode", "both");
        let portico = Portico::start(stage, &node, &directory, "debug")?;
        let mut scene = Scene { stage, town, portico };
        test(&mut scene, &node, &fake)?;
        scene.end()
    })
}

/// Every client gets a sound answer of every odd server, and the next one on the server's connection is whole.
#[test]
fn odd_answers_are_mended_or_refused() -> Result<()> {
    play(|scene, node, _| {
        for version in ["--http1.1", "--http2"] {
            for (number, case) in CASES.iter().enumerate() {
                check(scene, version, number, case).with_context(|| format!("{version} {number}: {:?}", case.says))?;
                check(scene, version, 0, &CASES[0]).with_context(|| format!("{version} after {number}"))?;
            }
        }
        for version in ["--http1.1", "--http2"] {
            let answer = scene.https("/odd/hints", &[version, "--max-time", "10"])?;
            ensure!(answer.status() == "502", "{}", answer.head);
        }
        // One switch shows which program the servers are.
        let mut node = node.clone();
        node.web.push(("show_server".to_owned(), "true".to_owned()));
        scene.portico.replace_node(&node)?;
        scene.portico.signal(Signal::SIGHUP)?;
        until("the server's name", Duration::from_secs(20), || {
            let path = format!("/odd/{}", CASES.len() - 1);
            let answer = scene.https(&path, &[])?;
            Ok((answer.header("server") == Some("Jetty(9.4.57)")).then_some(()))
        })
    })
}

fn check(scene: &Scene, version: &str, number: usize, case: &Case) -> Result<()> {
    let answer = scene.https(&format!("/odd/{number}"), &[version, "--max-time", "10"])?;
    ensure!(answer.status() == case.status, "{}", answer.head);
    let ours = if version == "--http2" { "HTTP/2 " } else { "HTTP/1.1 " };
    ensure!(answer.head.starts_with(ours), "{}", answer.head);
    if let Some(body) = case.body {
        ensure!(answer.text()? == body, "{:?}", answer.text()?);
    }
    for (name, value) in case.fields {
        let got = answer.head.lines().filter_map(|line| line.split_once(": "));
        let got: Vec<&str> = got
            .filter(|(n, _)| n.eq_ignore_ascii_case(name))
            .map(|(_, v)| v)
            .collect();
        let expected: &[&str] = if value.is_empty() { &[] } else { &[value] };
        ensure!(got == expected, "{name}: {got:?}");
    }
    Ok(())
}

/// Clients of HTTP/1.0 get no chunks and one head, whatever the server does; the others get our version.
#[test]
fn old_clients_get_what_they_know() -> Result<()> {
    play(|scene, _, _| {
        let endpoint = scene.town.endpoints.http;
        for (path, more, body, kept) in [
            ("/odd/chunked", "", "hello", false),
            ("/odd/chunked", "Connection: keep-alive\r\n", "hello", false),
            ("/odd/measured", "", "hello", false),
            ("/odd/measured", "Connection: keep-alive\r\n", "hello", true),
            ("/odd/hinted", "", "hello", false),
            ("/odd/continued", "Expect: 100-continue\r\n", "hello", false),
            ("/odd/13", "", "hello", false),
            ("/h2", "", "bbnbnb", false),
            ("/h2", "Accept-Encoding: gzip\r\n", "bbnbnb", false),
        ] {
            let mut wire = Wire::clear(endpoint)?;
            wire.send(format!("GET {path} HTTP/1.0\r\nHost: {HOST}\r\n{more}\r\n"))?;
            if kept {
                let request = format!("GET {path} HTTP/1.0\r\nHost: {HOST}\r\nConnection: close\r\n\r\n");
                let first = answer(&mut wire, Some(body.len()))?;
                ensure!(first.0.contains("connection: keep-alive"), "{first:?}");
                ensure!(first.1 == body, "{first:?}");
                wire.send(request)?;
            }
            let (head, got) = answer(&mut wire, None)?;
            ensure!(head.starts_with("http/1.1 200 "), "{path} {more:?}: {head}");
            ensure!(!head.contains("transfer-encoding"), "{path} {more:?}: {head}");
            ensure!(head.contains("connection: close"), "{path} {more:?}: {head}");
            ensure!(got == body, "{path} {more:?}: {got:?}");
        }
        Ok(())
    })
}

/// An answer's head in lower case, and its body: so long, or to the end of the connection.
fn answer(wire: &mut Wire, length: Option<usize>) -> Result<(String, String)> {
    let mut head = String::new();
    loop {
        let line = wire.line()?;
        if line.is_empty() {
            break;
        }
        head.push_str(&line.to_ascii_lowercase());
        head.push('\n');
    }
    let body = match length {
        Some(length) => wire.bytes(length)?,
        None => wire.rest()?,
    };
    Ok((head, String::from_utf8(body)?))
}

/// What came of an answer that a server breaks off is delivered, and the access log says who ended it.
#[test]
fn a_short_answer_is_delivered_as_far_as_it_came() -> Result<()> {
    const TIMES: usize = 8;
    play(|scene, _, _| {
        let lines = |who: &str| -> usize {
            let log = scene.portico.access_log();
            log.lines()
                .filter(|line| line.ends_with(&format!(" incomplete={who}")))
                .count()
        };
        for path in ["/odd/short", "/odd/short-later"] {
            for _ in 0..TIMES {
                let mut wire = Wire::clear(scene.town.endpoints.http)?;
                wire.send(format!("GET {path} HTTP/1.1\r\nHost: {HOST}\r\n\r\n"))?;
                let (head, body) = answer(&mut wire, None)?;
                ensure!(head.contains("content-length: 1000"), "{head}");
                ensure!(body == "0123456789", "{path}: {body:?}");
            }
        }
        let mut wire = Wire::clear(scene.town.endpoints.http)?;
        wire.send(format!("GET /odd/short-chunk HTTP/1.1\r\nHost: {HOST}\r\n\r\n"))?;
        let (_, body) = answer(&mut wire, None)?;
        ensure!(body.contains("0123456789") && !body.contains("\r\n0\r\n"), "{body:?}");
        // Without a length only the missing farewell tells that something is missing.
        ensure!(
            farewell(scene, "/odd/chunked")?,
            "a whole answer ends without a farewell"
        );
        ensure!(farewell(scene, "/tls/whole")?, "a whole answer in TLS");
        ensure!(!farewell(scene, "/tls/cut")?, "an answer in TLS that was cut off");
        ensure!(
            !farewell(scene, "/odd/short-chunk")?,
            "the end of half an answer looks like a good one"
        );
        let whole = scene.https("/odd/short", &["--http2"]);
        ensure!(whole.is_err(), "half an answer is taken for a whole one");
        until("the access log", Duration::from_secs(10), || {
            Ok((lines("server") == 2 * TIMES + 4).then_some(()))
        })?;
        ensure!(lines("client") == 0, "{}", scene.portico.access_log());
        let mut wire = Wire::clear(scene.town.endpoints.http)?;
        wire.send(format!("GET /odd/stalled HTTP/1.1\r\nHost: {HOST}\r\n\r\n"))?;
        wire.line()?;
        drop(wire);
        until("the access log", Duration::from_secs(10), || {
            Ok((lines("client") == 1).then_some(()))
        })
    })
}

/// A compressed answer is not kept back while its server is silent, and it has an end only if the server's has.
#[test]
fn compressed_answers_come_as_their_servers_do() -> Result<()> {
    play(|scene, _, _| {
        for coding in ["gzip", "zstd", "br"] {
            let ask = |path: &str| -> Result<Wire> {
                let mut wire = Wire::clear(scene.town.endpoints.http)?;
                wire.send(format!(
                    "GET {path} HTTP/1.1\r\nHost: {HOST}\r\nAccept-Encoding: {coding}\r\n\r\n"
                ))?;
                Ok(wire)
            };
            // What the encoder says at its end is longer than what it says in between.
            let mut wire = ask("/odd/slow-text")?;
            wire.patience(Duration::from_secs(20))?;
            while !wire.line()?.is_empty() {}
            let length = usize::from_str_radix(&wire.line()?, 16)?;
            let begun = wire.bytes(length)?;
            ensure!(length >= 12, "{coding}: {begun:?}");
            let (head, body) = {
                let mut wire = ask("/odd/short-text")?;
                let mut head = String::new();
                loop {
                    let line = wire.line()?.to_ascii_lowercase();
                    if line.is_empty() {
                        break;
                    }
                    head.push_str(&line);
                }
                (head, wire.rest()?)
            };
            ensure!(head.contains(&format!("content-encoding: {coding}")), "{head}");
            ensure!(
                !body.ends_with(b"0\r\n\r\n"),
                "half an answer ends as a whole one: {body:?}"
            );
            for version in ["--http1.1", "--http2"] {
                let accepts = format!("Accept-Encoding: {coding}");
                let told = [version, "--compressed", "-H", &accepts];
                ensure!(scene.https("/odd/short-text", &told).is_err(), "{version} {coding}");
                let whole = scene.https("/odd/text-with-trailers", &told)?;
                ensure!(whole.text()? == "0123456789", "{version} {coding}: {}", whole.head);
                ensure!(whole.header("content-encoding") == Some(coding), "{}", whole.head);
            }
        }
        Ok(())
    })
}

/// No answer says which program it comes from, whatever is refused.
#[test]
fn no_answer_names_the_engine() -> Result<()> {
    play(|scene, _, _| {
        let host = format!("Host: {HOST}\r\n");
        for request in [
            format!("GET /odd/0 HTTP/1.1\r\n{host}Connection: close\r\n\r\n"),
            format!("GET /odd/16 HTTP/1.1\r\n{host}Connection: close\r\n\r\n"),
            format!("GET /odd/6 HTTP/1.1\r\n{host}\r\n"),
            format!("G@T / HTTP/1.1\r\n{host}\r\n"),
            format!("GET / HTTP/1.1\r\n{host}X y: z\r\n\r\n"),
            format!("GET / HTTP/1.1\nHost: {HOST}\n\n"),
            "GET / HTTP/1.1\r\nHost: a b\r\n\r\n".to_owned(),
            "GET / HTTP/1.1\r\n\r\n".to_owned(),
            format!("POST / HTTP/1.1\r\n{host}Transfer-Encoding: xchunked\r\n\r\n"),
            "CONNECT a.example:443 HTTP/1.1\r\nHost: a.example:443\r\n\r\n".to_owned(),
            format!("TRACE / HTTP/1.1\r\n{host}\r\n"),
        ] {
            let mut wire = Wire::clear(scene.town.endpoints.http)?;
            wire.send(&request)?;
            let got = String::from_utf8(wire.rest()?)?.to_ascii_lowercase();
            ensure!(got.starts_with("http/1.1 "), "{request:?}: {got}");
            ensure!(
                !got.contains("server:") && !got.contains("pingora"),
                "{request:?}: {got}"
            );
        }
        Ok(())
    })
}

/// Whether the TLS of an answer to a client of HTTP/1.0 ends with a farewell.
fn farewell(scene: &Scene, path: &str) -> Result<bool> {
    let tcp = TcpStream::connect(scene.town.endpoints.https)?;
    tcp.set_read_timeout(Some(Duration::from_secs(20)))?;
    let mut tls = scene.town.ca.connector(&["http/1.0"])?.connect(HOST, tcp)?;
    ensure!(tls.ssl().selected_alpn_protocol() == Some(&b"http/1.0"[..]));
    tls.write_all(format!("GET {path} HTTP/1.0\r\nHost: {HOST}\r\n\r\n").as_bytes())?;
    let mut all = Vec::new();
    let end = tls.read_to_end(&mut all);
    ensure!(String::from_utf8_lossy(&all).contains("\r\n\r\n"), "{end:?} {all:?}");
    Ok(tls.get_shutdown().contains(ShutdownState::RECEIVED))
}

/// A body in a coding that is not taken apart must not go on as if it was.
#[test]
fn unknown_codings_of_requests_are_refused() -> Result<()> {
    play(|scene, _, fake| {
        for (coding, status) in [
            ("gzip, chunked", "501"),
            ("identity, chunked", "501"),
            ("gzip\r\nTransfer-Encoding: chunked", "501"),
            ("xchunked", "400"),
        ] {
            let mut wire = Wire::clear(scene.town.endpoints.http)?;
            wire.send(format!(
                "POST /odd/canary HTTP/1.1\r\nHost: {HOST}\r\nTransfer-Encoding: {coding}\r\n\r\n0\r\n\r\n"
            ))?;
            let line = wire.line()?;
            ensure!(line.starts_with(&format!("HTTP/1.1 {status} ")), "{coding:?}: {line}");
        }
        ensure!(!fake.heard().contains("canary"), "{}", fake.heard());
        Ok(())
    })
}
