//! What servers of HTTP/1.1 see of HTTP/2 requests: with a raw client and with a browser, before Python's WSGI server.

use std::net::{Ipv4Addr, SocketAddrV4};
use std::path::Path;
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use portico_tests::Stage;
use portico_tests::browser::Browser;
use portico_tests::child::Child;
use portico_tests::h2::{DATA, END_HEADERS, END_STREAM, HEADERS, block, frame, usual};
use portico_tests::web::auth_token;
use serde_json::Value;

use crate::scene::{GUEST, Scene, play_before};
use crate::smuggling::{connect, play_recorded};

const HOST: &str = "mail.a.example";

/// It says in JSON what WSGI programs see of a request. One that has chunks it reads itself, as such programs do.
const WSGI: &str = r#"
import json, socketserver, sys
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer, make_server

class Server(WSGIServer):
    def server_bind(self):
        # Without a look for our name, which may take long.
        socketserver.TCPServer.server_bind(self)
        self.server_name, self.server_port = self.server_address[:2]
        self.setup_environ()

class Quiet(WSGIRequestHandler):
    def log_message(self, *_): pass

def body(environ):
    stream = environ["wsgi.input"]
    if environ.get("HTTP_TRANSFER_ENCODING") != "chunked":
        return stream.read(int(environ.get("CONTENT_LENGTH") or 0))
    parts = []
    while size := int(stream.readline(), 16):
        parts.append(stream.read(size))
        stream.readline()
    return b"".join(parts)

def app(environ, start_response):
    seen = {name: value for name, value in environ.items() if isinstance(value, str)}
    seen["body"] = body(environ).decode()
    page = "text/html" in environ.get("HTTP_ACCEPT", "")
    start_response("200 OK", [("Content-Type", "text/html" if page else "application/json")])
    return [json.dumps(seen).encode()]

make_server(sys.argv[1], int(sys.argv[2]), app, Server, Quiet).serve_forever()
"#;

fn wsgi(stage: &Stage, at: SocketAddrV4) -> Result<Child> {
    let program = stage.file("wsgi.py", WSGI)?;
    let (ip, port) = (at.ip().to_string(), at.port().to_string());
    let args = [program.to_str().context("path")?, &ip, &port];
    let log = Path::new(args[0]).with_extension("log");
    let mut child = Child::spawn("wsgiref", "python3", &args, &[], &log)?;
    child.wait_listening(&[at])?;
    Ok(child)
}

/// The usual fields with another method, and more.
fn fields<'a>(method: &'a str, more: &[(&'a str, &'a str)]) -> Vec<(&'a str, &'a str)> {
    let mut fields = usual(HOST, "/service/x").to_vec();
    fields[0].1 = method;
    [&fields[..], more].concat()
}

fn ask(scene: &Scene, fields: &[(&str, &str)], body: &[&[u8]]) -> Result<Value> {
    let answer = connect(scene)?.exchange(fields, body)?;
    serde_json::from_slice(&answer).with_context(|| format!("{fields:?}: {}", String::from_utf8_lossy(&answer)))
}

/// Plays a test with a server of Python's own, which shows each request as CGI does.
fn play_wsgi(test: impl FnOnce(&Scene) -> Result<()>) -> Result<()> {
    let unchanged = |_: &_, _: &mut _, _: &mut _| Ok(());
    play_before(Ipv4Addr::new(127, 0, 0, 7), wsgi, unchanged, |scene, _| test(scene))
}

/// Sends the usual fields with this method, more fields and the parts of a body, and checks what the server sees.
fn check(scene: &Scene, method: &str, more: &[(&str, &str)], body: &[&[u8]], expected: &[(&str, &str)]) -> Result<()> {
    let seen = ask(scene, &fields(method, more), body)?;
    for (name, value) in expected {
        let got = seen[*name].as_str().unwrap_or_default();
        ensure!(got == *value, "{method} {more:?}: {name} is {got:?}: {seen}");
    }
    Ok(())
}

#[test]
fn a_server_of_http1_sees_all_fields() -> Result<()> {
    type Fields<'a> = &'a [(&'a str, &'a str)];
    // Fields of the request; what the server sees.
    let cases: [(Fields, Fields); 7] = [
        (
            &[
                ("cookie", "a=b"),
                ("x", "1"),
                ("cookie", "ZM_AUTH_TOKEN=0_1_2"),
                ("cookie", "c=d; e=f"),
            ],
            &[("HTTP_COOKIE", "a=b; ZM_AUTH_TOKEN=0_1_2; c=d; e=f"), ("HTTP_X", "1")],
        ),
        (&[("cookie", "a=b"), ("cookie", "")], &[("HTTP_COOKIE", "a=b")]),
        (&[("cookie", "a=\"b, c\"")], &[("HTTP_COOKIE", "a=\"b, c\"")]),
        (&[], &[("HTTP_HOST", HOST), ("HTTP_COOKIE", ""), ("CONTENT_LENGTH", "")]),
        (&[("host", HOST)], &[("HTTP_HOST", HOST)]),
        (&[("te", "trailers")], &[("HTTP_TE", ""), ("HTTP_CONNECTION", "")]),
        (
            &[("accept-language", "de"), ("accept-language", "fr")],
            &[("HTTP_ACCEPT_LANGUAGE", "de,fr")],
        ),
    ];
    play_wsgi(|scene| {
        for (sent, expected) in cases {
            check(scene, "GET", sent, &[], expected)?;
        }
        // Without an authority, Host says it (RFC 9113 §8.3.1).
        let bare = [
            (":method", "GET"),
            (":scheme", "https"),
            (":path", "/service/x"),
            ("host", HOST),
        ];
        ensure!(ask(scene, &bare, &[])?["HTTP_HOST"] == HOST);
        Ok(())
    })
}

#[test]
fn a_server_of_http1_sees_the_whole_body() -> Result<()> {
    const LENGTH: &str = "CONTENT_LENGTH";
    const CODING: &str = "HTTP_TRANSFER_ENCODING";
    play_wsgi(|scene| {
        let none: &[&[u8]] = &[];
        check(scene, "GET", &[], &[b""], &[("body", "")])?;
        check(scene, "POST", &[], none, &[(LENGTH, "0"), (CODING, "")])?;
        check(scene, "PUT", &[], none, &[(LENGTH, "0")])?;
        check(scene, "DELETE", &[], none, &[(LENGTH, ""), (CODING, "")])?;
        let six = [("content-length", "6")];
        check(
            scene,
            "POST",
            &six,
            &[b"abc", b"def"],
            &[("body", "abcdef"), (LENGTH, "6")],
        )?;
        let chunked = [("body", "abcdef"), (CODING, "chunked")];
        check(scene, "POST", &[], &[b"abc", b"", b"def"], &chunked)?;
        let asked_for = [("expect", "100-continue"), ("content-length", "3")];
        check(scene, "POST", &asked_for, &[b"abc"], &[("body", "abc")])?;
        let found = [("body", "<x/>"), ("REQUEST_METHOD", "PROPFIND")];
        check(scene, "PROPFIND", &[("depth", "1")], &[b"<x/>"], &found)?;
        trailers_end_a_body(scene)
    })
}

/// The story: a body that ended with an empty frame was ended twice, the second end was the beginning of another request
/// to the server, and the next clients on that connection got each other's answers.
#[test]
fn a_body_ends_once_however_it_is_cut() -> Result<()> {
    const GAP: Duration = Duration::from_millis(50);
    let bodies: [&[&[u8]]; 8] = [
        &[b""],
        &[b"", b""],
        &[b"abc"],
        &[b"abc", b""],
        &[b"", b"abc"],
        &[b"abc", b"", b"def"],
        &[b"abc", b"", b""],
        &[b"", b"abc", b"", b"def", b""],
    ];
    play_recorded(|scene, recorder| {
        for sends_trailers in [false, true] {
            for body in bodies {
                let mut raw = connect(scene)?;
                let stream = raw.next;
                let post = [("content-type", "text/plain")];
                let fields = [
                    (":method", "POST"),
                    (":scheme", "https"),
                    (":path", "/service/tell-post"),
                    (":authority", HOST),
                ];
                let head = block(&[&fields[..], &post].concat());
                raw.wire.send(frame(HEADERS, END_HEADERS, stream, &head))?;
                for (at, part) in body.iter().enumerate() {
                    thread::sleep(GAP);
                    let last = at + 1 == body.len() && !sends_trailers;
                    raw.wire
                        .send(frame(DATA, if last { END_STREAM } else { 0 }, stream, part))?;
                }
                if sends_trailers {
                    thread::sleep(GAP);
                    let trailers = block(&[("x-sum", "6")]);
                    raw.wire
                        .send(frame(HEADERS, END_HEADERS | END_STREAM, stream, &trailers))?;
                }
                ensure!(raw.body(stream)? == b"/service/tell-post", "{body:?}");
                for path in ["/service/tell-1", "/service/tell-2", "/service/tell-3"] {
                    let told = scene.https(path, &[])?.text()?;
                    ensure!(told == path, "{body:?}: {path} got {told:?}");
                }
                let seen = recorder.take();
                let lines: Vec<&str> = seen.iter().map(|seen| seen.line.as_str()).collect();
                ensure!(
                    lines.len() == 4 && lines.iter().all(|line| line.contains(" /service/tell-")),
                    "{body:?}: {lines:?}"
                );
                ensure!(seen[0].body == body.concat(), "{body:?}: {:?}", seen[0].body);
            }
        }
        ensure!(recorder.garbage().is_empty(), "{:?}", recorder.garbage());
        Ok(())
    })
}

/// What the library of HTTP/2 does not look at (RFC 9113 §8.2.1, §8.3.1).
#[test]
fn malformed_requests_are_refused() -> Result<()> {
    play_recorded(|scene, recorder| {
        for (path, scheme, value) in [
            ("?q=1", "https", "a"),
            ("/service/x", "ftp", "a"),
            ("/service/x", "https", " a"),
            ("/service/x", "https", "a\t"),
        ] {
            let mut raw = connect(scene)?;
            let fields = [
                (":method", "GET"),
                (":scheme", scheme),
                (":path", path),
                (":authority", HOST),
                ("x-value", value),
            ];
            // An answer of our own, or a reset.
            let _refused = raw.exchange(&fields, &[]);
            ensure!(recorder.take().is_empty(), "{path} {scheme} {value:?}");
        }
        Ok(())
    })
}

/// Trailers are dropped (RFC 9110 §6.5.1), and the body is whole.
fn trailers_end_a_body(scene: &Scene) -> Result<()> {
    let mut raw = connect(scene)?;
    let head = block(&fields("POST", &[("trailer", "x-sum")]));
    raw.wire.send(frame(HEADERS, END_HEADERS, 1, &head))?;
    raw.wire.send(frame(DATA, 0, 1, b"abc"))?;
    let trailers = block(&[("x-sum", "6"), ("cookie", "ZM_AUTH_TOKEN=late")]);
    raw.wire.send(frame(HEADERS, END_HEADERS | END_STREAM, 1, &trailers))?;
    let seen: Value = serde_json::from_slice(&raw.body(1)?)?;
    ensure!(seen["body"] == "abc" && seen["HTTP_COOKIE"].is_null(), "{seen}");
    ensure!(seen["HTTP_TRAILER"].is_null() && seen["HTTP_X_SUM"].is_null(), "{seen}");
    Ok(())
}

/// Chromium sends each cookie in a field of its own.
#[test]
fn a_browsers_cookies_reach_a_server_of_http1_in_one_field() -> Result<()> {
    play_before(
        Ipv4Addr::new(127, 0, 0, 8),
        wsgi,
        |_, _, directory| {
            let alice = directory.account("alice@a.example");
            alice.insert("zimbraMailHost".into(), GUEST.into());
            Ok(())
        },
        |scene, _| {
            let browser = Browser::start(scene.stage, &[(HOST, scene.town.endpoints.https)])?;
            let url = format!("https://{HOST}/service/x");
            browser.open(&url)?;
            let token = auth_token(&scene.town.person("alice")?.id);
            let cookies = format!("a=b; ZM_AUTH_TOKEN={token}; c=d");
            for cookie in cookies.split("; ") {
                browser.run(&format!("document.cookie = '{cookie}; path=/; secure'"))?;
            }
            browser.open(&url)?;
            let seen: Value = serde_json::from_str(&browser.text()?)?;
            ensure!(seen["HTTP_COOKIE"] == *cookies, "{seen}");
            let version = browser.run("return performance.getEntriesByType('navigation')[0].nextHopProtocol")?;
            ensure!(version == "h2", "{version}");
            Ok(())
        },
    )
}
