//! Hostile web clients: requests that two parsers would read differently, floods of HTTP/2 frames, and slowness. What
//! counts is what the mailbox server saw.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{Ipv4Addr, SocketAddrV4, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, LazyLock, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use portico_tests::Stage;
use portico_tests::config::{Directory, Node};
use portico_tests::h2::{
    self, CONTINUATION, HEADERS, PING, PRIORITY, RST_STREAM, Raw, SETTINGS, WINDOW_UPDATE, block, frame,
};
use portico_tests::wire::Wire;

use crate::scene::{Scene, play_before, timed};

pub(crate) const HOST: &str = "mail.a.example";
const RECORDER_IP: Ipv4Addr = Ipv4Addr::new(127, 0, 0, 5);
/// What an attack may take to be answered or cut, on a busy machine.
const SOON: Duration = Duration::from_secs(20);

/// The answer to `/service/big`; one for all.
static BIG: LazyLock<Vec<u8>> = LazyLock::new(|| vec![b'x'; 64 << 20]);

/// A request as the server read it.
#[derive(Debug, Clone)]
pub(crate) struct Seen {
    pub(crate) line: String,
    headers: Vec<(String, String)>,
    pub(crate) body: Vec<u8>,
}

impl Seen {
    fn values(&self, name: &str) -> Vec<&str> {
        let named = self.headers.iter().filter(|(n, _)| n.eq_ignore_ascii_case(name));
        named.map(|(_, value)| value.as_str()).collect()
    }
}

/// A web server that reads strictly, answers everything with 200, and remembers. It ends when dropped.
pub(crate) struct Recorder {
    at: SocketAddrV4,
    /// What it is asked below `/service/hold` is answered once this is true.
    released: Arc<(Mutex<bool>, Condvar)>,
    seen: Arc<Mutex<Vec<Seen>>>,
    /// What it could not read.
    garbage: Arc<Mutex<Vec<String>>>,
    ended: Arc<AtomicBool>,
}

impl Recorder {
    fn start(at: SocketAddrV4) -> Result<Self> {
        let listener = TcpListener::bind(at)?;
        let recorder = Self {
            at,
            released: Arc::default(),
            seen: Arc::default(),
            garbage: Arc::default(),
            ended: Arc::default(),
        };
        let (seen, garbage, ended) = (recorder.seen.clone(), recorder.garbage.clone(), recorder.ended.clone());
        let released = recorder.released.clone();
        thread::spawn(move || {
            for tcp in listener.incoming().flatten() {
                if ended.load(Ordering::SeqCst) {
                    return;
                }
                let (seen, garbage, released) = (seen.clone(), garbage.clone(), released.clone());
                thread::spawn(move || {
                    if let Err(error) = record(tcp, &seen, &released) {
                        garbage
                            .lock()
                            .expect("nobody panics holding it")
                            .push(format!("{error:#}"));
                    }
                });
            }
        });
        Ok(recorder)
    }

    /// Requests below `/service/hold` wait from now on, or are answered.
    pub(crate) fn hold(&self, held: bool) {
        *self.released.0.lock().expect("nobody panics holding it") = !held;
        self.released.1.notify_all();
    }

    /// Waits until it has read a request for this path.
    pub(crate) fn wait_for(&self, path: &str) -> Result<()> {
        let asked = format!(" {path} ");
        portico_tests::until("a request at the server", SOON, || {
            Ok(self.take().iter().any(|seen| seen.line.contains(&asked)).then_some(()))
        })
    }

    /// What was asked since the last call.
    pub(crate) fn take(&self) -> Vec<Seen> {
        std::mem::take(&mut self.seen.lock().expect("nobody panics holding it"))
    }

    pub(crate) fn garbage(&self) -> Vec<String> {
        self.garbage.lock().expect("nobody panics holding it").clone()
    }
}

impl Drop for Recorder {
    fn drop(&mut self) {
        self.ended.store(true, Ordering::SeqCst);
        let _wakes_it = TcpStream::connect(self.at);
    }
}

fn record(tcp: TcpStream, seen: &Mutex<Vec<Seen>>, released: &(Mutex<bool>, Condvar)) -> Result<()> {
    let mut stream = BufReader::new(tcp);
    loop {
        let Some(line) = read_line(&mut stream)? else {
            return Ok(());
        };
        let mut request = Seen {
            line,
            headers: Vec::new(),
            body: Vec::new(),
        };
        loop {
            let line = read_line(&mut stream)?.context("the head has no end")?;
            if line.is_empty() {
                break;
            }
            let (name, value) = line.split_once(": ").with_context(|| format!("no header: {line:?}"))?;
            request.headers.push((name.to_owned(), value.to_owned()));
        }
        if request.line.contains(" /service/deaf") {
            // It answers at once, reads nothing more, and does not close either.
            stream
                .get_mut()
                .write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nearly")?;
            seen.lock().expect("nobody panics holding it").push(request);
            let (deaf, told) = (released.0.lock().expect("nobody panics holding it"), &released.1);
            let _until_it_may = told.wait_timeout_while(deaf, 6 * SOON, |released| !*released);
            return Ok(());
        }
        let whole = read_body(&mut stream, &mut request);
        let is_check = request.line.starts_with("GET /service/health/ready ");
        if !is_check {
            seen.lock().expect("nobody panics holding it").push(request.clone());
        }
        if !whole? {
            return Ok(());
        }
        let body = match request.line.split(' ').nth(1) {
            Some("/service/big") => BIG.as_slice(),
            Some(target) if target.starts_with("/service/tell") => target.as_bytes(),
            _ => b"fine",
        };
        if request.line.contains(" /service/hold") {
            let (released, told) = (released.0.lock().expect("nobody panics holding it"), &released.1);
            let _until_it_may = told.wait_timeout_while(released, SOON, |released| !*released);
        }
        let head = format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n", body.len());
        if stream.get_mut().write_all(head.as_bytes()).is_err() || stream.get_mut().write_all(body).is_err() {
            return Ok(());
        }
    }
}

/// False: the other side left in the middle of it.
fn read_body(stream: &mut BufReader<TcpStream>, request: &mut Seen) -> Result<bool> {
    let lengths: Vec<String> = request.values("content-length").iter().map(|&v| v.to_owned()).collect();
    let codings: Vec<String> = request
        .values("transfer-encoding")
        .iter()
        .map(|&v| v.to_owned())
        .collect();
    match (&lengths[..], &codings[..]) {
        ([], []) => Ok(true),
        ([length], []) => read_exactly(stream, length.parse().context("length")?, &mut request.body),
        ([], [coding]) if coding == "chunked" => loop {
            let Some(line) = read_line(stream)? else {
                return Ok(false);
            };
            let size = u64::from_str_radix(&line, 16).with_context(|| format!("chunk {line:?}"))?;
            if !read_exactly(stream, size, &mut request.body)? {
                return Ok(false);
            }
            match read_line(stream)? {
                Some(line) if line.is_empty() => {}
                None => return Ok(false),
                Some(line) => bail!("behind a chunk: {line:?}"),
            }
            if size == 0 {
                return Ok(true);
            }
        },
        both => bail!("unclear body: {both:?}"),
    }
}

fn read_exactly(stream: &mut BufReader<TcpStream>, count: u64, into: &mut Vec<u8>) -> Result<bool> {
    Ok(stream.take(count).read_to_end(into)? as u64 == count)
}

/// A line that ends with CRLF; none at the end of the connection.
fn read_line(stream: &mut BufReader<TcpStream>) -> Result<Option<String>> {
    let mut line = Vec::new();
    if stream.read_until(b'\n', &mut line)? == 0 {
        return Ok(None);
    }
    let text = String::from_utf8_lossy(&line).into_owned();
    match text.strip_suffix("\r\n") {
        Some(line) if !line.contains(['\r', '\0']) => Ok(Some(line.to_owned())),
        _ => bail!("a bad line: {text:?}"),
    }
}

/// Portico in front of the recorder, which takes all unauthenticated requests; the clear port serves.
pub(crate) fn play_recorded(test: impl FnOnce(&mut Scene, &Recorder) -> Result<()>) -> Result<()> {
    play_recorded_with(|_, _, _| Ok(()), test)
}

/// The same with a changed configuration.
pub(crate) fn play_recorded_with(
    change: impl FnOnce(&Stage, &mut Node, &mut Directory) -> Result<()>,
    test: impl FnOnce(&mut Scene, &Recorder) -> Result<()>,
) -> Result<()> {
    play_before(
        RECORDER_IP,
        |_, at| Recorder::start(at),
        change,
        |scene, recorder| test(scene, recorder),
    )
}

/// What a client sends behind its attack, on the same connection.
fn last() -> String {
    format!("GET /service/last HTTP/1.1\r\nHost: {HOST}\r\nConnection: close\r\n\r\n")
}

/// A request that must not be seen as one.
fn smuggled() -> String {
    format!("GET /smuggled HTTP/1.1\r\nHost: {HOST}\r\nX: y\r\n\r\n")
}

/// An attack: its name, and what is sent.
type Attack = (&'static str, String);

fn attacks() -> Vec<Attack> {
    [
        attacks_by_coding(),
        attacks_by_length(),
        attacks_by_chunk(),
        attacks_by_upgrade(),
        attacks_by_head(),
    ]
    .concat()
}

/// The request that an attack begins with.
fn first(method: &str, headers: &str, body: &str) -> String {
    format!("{method} /service/first HTTP/1.1\r\nHost: {HOST}\r\n{headers}\r\n\r\n{body}")
}

/// Where the body ends is said twice, or by a coding that a server may not know.
fn attacks_by_coding() -> Vec<Attack> {
    let smuggled = smuggled();
    let inner = smuggled.len();
    let chunked = format!("0\r\n\r\n{smuggled}");
    let with_coding = |coding: &str| first("POST", coding, &chunked);
    let with_both = |coding: &str| with_coding(&format!("Content-Length: {}\r\n{coding}", chunked.len()));
    vec![
        (
            "CL.TE",
            first("POST", "Content-Length: 6\r\nTransfer-Encoding: chunked", &chunked),
        ),
        (
            "TE.CL",
            first(
                "POST",
                "Content-Length: 4\r\nTransfer-Encoding: chunked",
                &format!("{inner:x}\r\n{smuggled}\r\n0\r\n\r\n"),
            ),
        ),
        ("both, whole", with_both("Transfer-Encoding: chunked")),
        ("an unknown coding", with_both("Transfer-Encoding: xchunked")),
        ("a blank before the colon", with_both("Transfer-Encoding : chunked")),
        ("a tab before the colon", with_both("Transfer-Encoding\t: chunked")),
        (
            "chunked twice",
            with_both("Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked"),
        ),
        (
            "chunked and another",
            with_both("Transfer-Encoding: chunked\r\nTransfer-Encoding: x"),
        ),
        (
            "another and chunked",
            with_both("Transfer-Encoding: x\r\nTransfer-Encoding: chunked"),
        ),
        ("chunked not last", with_both("Transfer-Encoding: chunked, identity")),
        ("identity", with_both("Transfer-Encoding: identity")),
        ("a vertical tab", with_both("Transfer-Encoding: \x0bchunked")),
        ("quoted", with_both("Transfer-Encoding: \"chunked\"")),
        ("an empty coding", with_both("Transfer-Encoding: ")),
        ("a bare LF before it", with_both("X: y\nTransfer-Encoding: chunked")),
        ("a bare CR before it", with_both("X: y\rTransfer-Encoding: chunked")),
        ("NUL before it", with_both("X: y\0\r\nTransfer-Encoding: chunked")),
        ("folded", with_both("Transfer-Encoding:\r\n chunked")),
        ("a folded name", with_both("Transfer-Encoding\r\n : chunked")),
        ("an underscore", with_both("Transfer_Encoding: chunked")),
        (
            "a coding that nobody knows, alone",
            with_coding("Transfer-Encoding: cow"),
        ),
        (
            "chunked in HTTP/1.0",
            with_coding("Transfer-Encoding: chunked").replace("HTTP/1.1", "HTTP/1.0"),
        ),
    ]
}

/// Lengths that are none, or that are read in two ways.
fn attacks_by_length() -> Vec<Attack> {
    let smuggled = smuggled();
    let inner = smuggled.len();
    let with_length = |length: &str| first("POST", length, &smuggled);
    vec![
        (
            "two lengths",
            with_length(&format!("Content-Length: 0\r\nContent-Length: {inner}")),
        ),
        (
            "two lengths the other way",
            with_length(&format!("Content-Length: {inner}\r\nContent-Length: 0")),
        ),
        (
            "a list of lengths",
            with_length(&format!("Content-Length: {inner}, {inner}")),
        ),
        ("a signed length", with_length("Content-Length: +0")),
        ("a negative length", with_length("Content-Length: -1")),
        ("a hexadecimal length", with_length("Content-Length: 0x0")),
        ("an octal length", with_length(&format!("Content-Length: 0{inner}"))),
        ("a fraction", with_length("Content-Length: 0.0")),
        ("two numbers", with_length("Content-Length: 0 0")),
        ("an empty length", with_length("Content-Length: ")),
        ("a huge length", with_length("Content-Length: 18446744073709551616")),
        ("a length with a blank name", with_length("Content-Length : 0")),
        ("0.CL", first("GET", &format!("Content-Length: {inner}"), &smuggled)),
        ("CL.0", first("POST", &format!("Content-Length: {inner}"), &smuggled)),
    ]
}

/// Chunks whose size is none, or that have no end.
fn attacks_by_chunk() -> Vec<Attack> {
    let smuggled = smuggled();
    let with_chunk = |chunk: &str| first("POST", "Transfer-Encoding: chunked", &format!("{chunk}{smuggled}"));
    vec![
        ("a chunk that is too long", with_chunk("FFFFFFFFFFFFFFFFF\r\n")),
        ("a chunk of 2^64", with_chunk("10000000000000000\r\n")),
        ("a chunk with 0x", with_chunk("0x0\r\n\r\n")),
        ("a signed chunk", with_chunk("+0\r\n\r\n")),
        ("a negative chunk", with_chunk("-1\r\n")),
        ("a chunk with a bare LF", with_chunk("0\n\n")),
        ("a chunk extension with a bare LF", with_chunk("0;a\nb\r\n\r\n")),
        ("a chunk extension with a bare CR", with_chunk("0;a\rb\r\n\r\n")),
        ("a chunk without its end", with_chunk("3\r\nabcX0\r\n\r\n")),
        ("no chunk size", with_chunk("\r\n\r\n")),
    ]
}

/// Requests after which another protocol might begin, or no body might come.
fn attacks_by_upgrade() -> Vec<Attack> {
    let smuggled = smuggled();
    let inner = smuggled.len();
    let upgrade = "Connection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==";
    vec![
        ("an upgrade that is not answered", first("GET", upgrade, &smuggled)),
        (
            "an upgrade with a body",
            first("GET", &format!("{upgrade}\r\nContent-Length: {inner}"), &smuggled),
        ),
        (
            "an upgrade to h2c",
            first(
                "GET",
                "Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABkAAQAAP__",
                &smuggled,
            ),
        ),
        (
            "expect",
            first(
                "POST",
                &format!("Expect: 100-continue\r\nContent-Length: {inner}"),
                &smuggled,
            ),
        ),
        (
            "an odd expectation",
            first(
                "POST",
                &format!("Expect: nothing\r\nContent-Length: {inner}"),
                &smuggled,
            ),
        ),
    ]
}

/// Heads that are none, or that name another host.
fn attacks_by_head() -> Vec<Attack> {
    let smuggled = smuggled();
    vec![
        ("two hosts", first("GET", "Host: evil.example", "")),
        ("a header without colon", first("GET", "GET /smuggled HTTP/1.1", "")),
        (
            "a blank in front of the first header",
            first("GET", "", "").replace("\r\nHost", "\r\n Host"),
        ),
        (
            "a host with a path",
            format!("GET /service/first HTTP/1.1\r\nHost: {HOST}/smuggled\r\n\r\n"),
        ),
        (
            "another authority",
            format!("GET http://evil.example/service/first HTTP/1.1\r\nHost: {HOST}\r\n\r\n"),
        ),
        (
            "CONNECT",
            format!("CONNECT {HOST}:443 HTTP/1.1\r\nHost: {HOST}\r\n\r\n{smuggled}"),
        ),
        (
            "two blanks in the request line",
            format!("GET  /service/first HTTP/1.1\r\nHost: {HOST}\r\n\r\n"),
        ),
        (
            "a tab in the request line",
            format!("GET\t/service/first\tHTTP/1.1\r\nHost: {HOST}\r\n\r\n"),
        ),
        (
            "a blank in the target",
            format!("GET /service/a HTTP/1.1 /smuggled HTTP/1.1\r\nHost: {HOST}\r\n\r\n"),
        ),
        (
            "a version that is none",
            format!("GET /service/first HTTP/1.9\r\nHost: {HOST}\r\n\r\n"),
        ),
        ("HTTP/0.9", "GET /service/first\r\n".to_owned()),
        (
            "CR LF in the target",
            format!("GET /service/a%0d%0aX:%20y HTTP/1.1\r\nHost: {HOST}\r\n\r\n"),
        ),
        (
            "a method with a colon",
            format!("GET: /service/first HTTP/1.1\r\nHost: {HOST}\r\n\r\n"),
        ),
        (
            "lines that end with CR",
            format!("GET /service/first HTTP/1.1\rHost: {HOST}\r\r{smuggled}"),
        ),
        ("no method", format!(" /service/first HTTP/1.1\r\nHost: {HOST}\r\n\r\n")),
        (
            "a preface of HTTP/2",
            format!("PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n{smuggled}"),
        ),
    ]
}

/// Sends everything and reads what comes until the connection ends or nothing comes any more.
pub(crate) fn talk(wire: Wire, bytes: &[u8]) -> Result<String> {
    talk_within(wire, bytes, Duration::from_millis(700))
}

/// The same with another patience for each silence.
fn talk_within(mut wire: Wire, bytes: &[u8], patience: Duration) -> Result<String> {
    let _may_be_cut_in_the_middle = wire.send(bytes);
    wire.patience(patience)?;
    let mut heard = Vec::new();
    loop {
        match wire.bytes(1) {
            Ok(byte) => heard.extend(byte),
            Err(_) => return Ok(String::from_utf8_lossy(&heard).into_owned()),
        }
    }
}

#[test]
fn no_server_sees_a_request_that_was_not_sent() -> Result<()> {
    play_recorded(|scene, recorder| {
        let tls = scene.town.ca.connector(&["http/1.1"])?;
        let (http, https) = (scene.town.endpoints.http, scene.town.endpoints.https);
        let mut seen: Vec<Seen> = Vec::new();
        let mut number = 0;
        for (name, text) in attacks() {
            for secure in [false, true] {
                number += 1;
                let wire = match secure {
                    false => Wire::clear(http)?,
                    true => Wire::tls(https, &tls, HOST)?,
                };
                let sent = (text.clone() + &last()).replace("/service/first", &format!("/service/first-{number}-"));
                let sent = sent.replace("/service/last", &format!("/service/last-{number}-"));
                let heard = talk(wire, sent.as_bytes())?;
                seen.extend(recorder.take());
                let twice = |kind: &str| {
                    let target = format!(" /service/{kind}-{number}-");
                    seen.iter().filter(|request| request.line.contains(&target)).count() > 1
                };
                let story = || format!("{name}, TLS {secure}: heard {heard:?}, the server saw {seen:#?}");
                ensure!(!twice("first") && !twice("last"), "{}", story());
                for request in &seen {
                    let target = request.line.split(' ').nth(1).unwrap_or_default();
                    ensure!(!target.contains("smuggled"), "{}", story());
                    ensure!(request.values("host").len() == 1, "{}", story());
                    ensure!(
                        !request.values("host").iter().any(|h| h.contains("evil")),
                        "{}",
                        story()
                    );
                    ensure!(request.values("transfer_encoding").is_empty(), "{}", story());
                }
                ensure!(recorder.garbage().is_empty(), "{}: {:?}", story(), recorder.garbage());
            }
        }
        ensure!(seen.len() >= 10, "hardly anything has arrived: {seen:#?}");
        // After all that, an honest one is served.
        let heard = talk(Wire::tls(https, &tls, HOST)?, last().as_bytes())?;
        ensure!(heard.starts_with("HTTP/1.1 200 "), "{heard}");
        Ok(())
    })
}

#[test]
fn a_client_cannot_have_headers_of_the_proxy_dropped() -> Result<()> {
    play_recorded(|scene, recorder| {
        for nominated in [
            "x-forwarded-for",
            "X-Forwarded-Proto, close",
            "cookie",
            "host",
            "authorization",
        ] {
            let request = format!(
                "GET /service/first HTTP/1.1\r\nHost: {HOST}\r\nCookie: a=b\r\nX-Forwarded-For: 198.51.100.66\r\nConnection: {nominated}\r\n\r\n"
            );
            let heard = talk(Wire::clear(scene.town.endpoints.http)?, request.as_bytes())?;
            for seen in recorder.take() {
                assert_eq!(seen.values("x-forwarded-for"), ["127.0.0.1"], "{nominated} {heard}");
                assert_eq!(seen.values("x-forwarded-proto"), ["http"], "{nominated}");
                assert_eq!(seen.values("host").len(), 1, "{nominated}");
                assert!(seen.values("connection").iter().all(|v| !v.contains('x')), "{seen:?}");
            }
        }
        Ok(())
    })
}

#[test]
fn a_slow_head_is_cut_and_others_are_served() -> Result<()> {
    play_recorded(|scene, recorder| {
        let mut slow: Vec<Wire> = Vec::new();
        for _ in 0..200 {
            let mut wire = Wire::clear(scene.town.endpoints.http)?;
            wire.send("GET /service/slow HTTP/1.1\r\nHost: ")?;
            slow.push(wire);
        }
        let mut bodies: Vec<Wire> = Vec::new();
        for _ in 0..50 {
            let mut wire = Wire::clear(scene.town.endpoints.http)?;
            wire.send(format!(
                "POST /service/slow HTTP/1.1\r\nHost: {HOST}\r\nContent-Length: 1000000\r\n\r\nx"
            ))?;
            bodies.push(wire);
        }
        let (heard, took) = timed(|| talk_within(Wire::clear(scene.town.endpoints.http)?, last().as_bytes(), SOON))?;
        ensure!(heard.starts_with("HTTP/1.1 200 ") && took < SOON, "{took:?} {heard}");
        // Bytes do not extend the deadline of a head.
        let begun = Instant::now();
        while !slow.is_empty() {
            ensure!(begun.elapsed() < 3 * SOON, "{} slow heads are still taken", slow.len());
            thread::sleep(Duration::from_millis(500));
            slow.retain_mut(|wire| wire.send("x").is_ok());
        }
        ensure!(
            recorder
                .take()
                .iter()
                .all(|seen| !seen.line.contains("GET /service/slow"))
        );
        Ok(())
    })
}

/// A client of HTTP/2 at the TLS port.
pub(crate) fn connect(scene: &Scene) -> Result<Raw> {
    connect_with(scene, &[])
}

/// The same with settings of its own.
pub(crate) fn connect_with(scene: &Scene, settings: &[u8]) -> Result<Raw> {
    let tls = scene.town.ca.connector(&["h2"])?;
    Raw::over(Wire::tls(scene.town.endpoints.https, &tls, HOST)?, HOST, settings)
}

/// The fields that every request has.
fn usual(path: &str) -> [(&str, &str); 4] {
    h2::usual(HOST, path)
}

/// `*` is the target of OPTIONS alone (RFC 9112 §3.2.4, RFC 9113 §8.3.1).
#[test]
fn an_asterisk_is_asked_for_its_options_only() -> Result<()> {
    play_recorded(|scene, recorder| {
        for method in ["GET", "HEAD", "POST", "PROPFIND"] {
            let tls = scene.town.ca.connector(&["http/1.1"])?;
            let mut wire = Wire::tls(scene.town.endpoints.https, &tls, HOST)?;
            wire.send(format!("{method} * HTTP/1.1\r\nHost: {HOST}\r\n\r\n"))?;
            let line = wire.line()?;
            ensure!(line.starts_with("HTTP/1.1 400"), "{method}: {line}");
            let mut fields = usual("*");
            fields[0].1 = method;
            let mut raw = connect(scene)?;
            raw.wire.send(frame(HEADERS, 5, 1, &block(&fields)))?;
            raw.wire.patience(SOON)?;
            let head = std::iter::from_fn(|| raw.frame()).find(|(kind, _, on, _)| *kind == HEADERS && *on == 1);
            // `:status: 400` has a place of its own in the table of HPACK (RFC 7541 Appendix A).
            let status = head.and_then(|(.., block)| block.first().copied());
            ensure!(status == Some(0x80 | 12), "{method}: {status:?}");
        }
        ensure!(recorder.take().is_empty(), "the server was asked");
        Ok(())
    })
}

/// On the way from HTTP/2 to HTTP/1.1 nothing becomes a second request.
#[test]
fn nothing_is_smuggled_from_http2() -> Result<()> {
    play_recorded(|scene, recorder| {
        let evil = format!("x\r\n\r\n{}", smuggled());
        let split = format!("GET /smuggled HTTP/1.1\r\nHost: {HOST}\r\n\r\nGET");
        let path = format!("/service/a HTTP/1.1\r\nHost: {HOST}\r\n\r\nGET /smuggled");
        let cases: Vec<Vec<(&str, &str)>> = vec![
            [&usual("/service/a")[..], &[("transfer-encoding", "chunked")]].concat(),
            [&usual("/service/a")[..], &[("connection", "keep-alive")]].concat(),
            [&usual("/service/a")[..], &[("x", &evil)]].concat(),
            [&usual("/service/a")[..], &[("x: y\r\nz", "1")]].concat(),
            [&usual("/service/a")[..], &[("Upper", "case")]].concat(),
            [&usual("/service/a")[..], &[("host", "evil.example")]].concat(),
            [&usual("/service/a")[..], &[("content-length", "5")]].concat(),
            [
                &usual("/service/a")[..],
                &[("content-length", "0"), ("content-length", "9")],
            ]
            .concat(),
            [&usual("/service/a")[..], &[(":path", "/smuggled")]].concat(),
            [&usual("/service/a")[..], &[("x", "y"), (":path", "/smuggled")]].concat(),
            usual(&path).to_vec(),
            usual("/service/a b").to_vec(),
            usual("").to_vec(),
            usual("*").to_vec(),
            vec![
                (":method", &split),
                (":scheme", "https"),
                (":path", "/service/a"),
                (":authority", HOST),
            ],
            vec![(":method", "GET"), (":scheme", "https"), (":path", "/service/a")],
            vec![(":method", "GET"), (":scheme", "https"), (":authority", HOST)],
            vec![(":method", "CONNECT"), (":authority", HOST)],
            vec![
                (":method", "GET"),
                (":scheme", "https"),
                (":path", "/service/a"),
                (":authority", "a\r\nb"),
            ],
        ];
        for fields in cases {
            let mut raw = connect(scene)?;
            raw.wire.send(frame(HEADERS, 5, 1, &block(&fields)))?;
            let answered = raw.is_answered(1)?;
            for seen in recorder.take() {
                ensure!(!seen.line.contains("smuggled"), "{fields:?}: {seen:?}");
                assert_eq!(seen.values("host"), [HOST], "{fields:?}");
                ensure!(answered, "{fields:?}: {seen:?}");
            }
            ensure!(recorder.garbage().is_empty(), "{fields:?}: {:?}", recorder.garbage());
        }
        let mut honest = connect(scene)?;
        let stream = honest.ask("/service/fine", &[], true)?;
        ensure!(honest.is_answered(stream)?, "an honest request is not answered");
        assert_eq!(recorder.take().len(), 1);
        Ok(())
    })
}

/// Each flood ends its connection soon, and costs neither memory nor the others.
#[test]
fn floods_of_frames_end_their_connection() -> Result<()> {
    type Flood = fn(&mut Raw) -> Vec<u8>;
    let floods: [(&str, Flood); 9] = [
        ("rapid reset", |raw| {
            let stream = raw.next;
            raw.next += 2;
            let head = frame(HEADERS, 5, stream, &block(&usual("/service/reset")));
            [head, frame(RST_STREAM, 0, stream, &[0, 0, 0, 8])].concat()
        }),
        ("ping", |_| frame(PING, 0, 0, &[7; 8])),
        ("settings", |_| frame(SETTINGS, 0, 0, &[0, 3, 0, 0, 0, 100])),
        ("empty settings", |_| frame(SETTINGS, 0, 0, &[])),
        ("priority", |_| frame(PRIORITY, 0, 1, &[0, 0, 0, 0, 1])),
        ("window updates of one byte", |_| {
            frame(WINDOW_UPDATE, 0, 0, &[0, 0, 0, 1])
        }),
        ("frames that nobody knows", |_| frame(0xEE, 0, 0, &[1; 64])),
        ("empty continuations", |raw| {
            let first = raw.next == 1;
            raw.next = 3;
            match first {
                true => frame(HEADERS, 1, 1, &block(&usual("/service/endless"))),
                false => frame(CONTINUATION, 0, 1, &[]),
            }
        }),
        ("resets that we make", |raw| {
            // A window that overflows is an error of the stream, which we have to reset.
            let stream = raw.next;
            raw.next += 2;
            let head = frame(HEADERS, 5, stream, &block(&usual("/service/reset")));
            [head, frame(WINDOW_UPDATE, 0, stream, &[0x7F, 0xFF, 0xFF, 0xFF])].concat()
        }),
    ];
    play_recorded(|scene, recorder| {
        let warm = scene.portico.rss_at_rest_kib()?;
        for (name, flood) in floods {
            let ticks = scene.portico.cpu_ticks()?;
            let mut raw = connect(scene)?;
            let client = raw.wire.local()?.to_string();
            let (_sent, took) = timed(|| raw.flood(20_000, flood)).with_context(|| name.to_owned())?;
            ensure!(took < SOON, "{name}: {took:?}");
            let ticks = scene.portico.cpu_ticks()? - ticks;
            ensure!(ticks < 500, "{name} cost {ticks} ticks of 10 ms");
            // Where the engine sees it first, it is a head that cannot be read.
            let record = scene.portico.record(&[("event", "refused"), ("client", &client)])?;
            let known = ["HTTP/2 frames without number", "a request head that cannot be read"];
            ensure!(known.iter().any(|why| record["why"] == *why), "{name}: {record}");
            let resets = recorder.take().len();
            ensure!(resets <= 5000, "{name}: the server saw {resets} requests");
            let mut honest = connect(scene)?;
            let stream = honest.ask("/service/fine", &[], true)?;
            ensure!(honest.is_answered(stream)?, "{name}: an honest request is not answered");
        }
        let grown = scene.portico.rss_kib()?.saturating_sub(warm);
        ensure!(grown < 64 * 1024, "memory has grown by {grown} KiB");
        Ok(())
    })
}

/// Heads that are too large are refused, in bytes and in number, and cost no memory.
#[test]
fn large_heads_of_http2_are_refused() -> Result<()> {
    play_recorded(|scene, recorder| {
        let warm = scene.portico.rss_at_rest_kib()?;
        let long = "v".repeat(1000);
        let many: Vec<(&str, &str)> = std::iter::repeat_n(("a", ""), 50_000).collect();
        let big: Vec<(&str, &str)> = std::iter::repeat_n(("x", long.as_str()), 1000).collect();
        // One of HTTP/1 may not be as long either.
        let above: Vec<(&str, &str)> = std::iter::repeat_n(("x", long.as_str()), 34).collect();
        for fields in [&many, &big, &above] {
            let mut raw = connect(scene)?;
            let all = block(&[&usual("/service/large")[..], fields].concat());
            let mut parts = all.chunks(16_384).peekable();
            let mut kind = HEADERS;
            while let Some(part) = parts.next() {
                let end = if parts.peek().is_none() { 4 } else { 0 };
                let begin = u8::from(kind == HEADERS);
                if raw.wire.send(frame(kind, end | begin, 1, part)).is_err() {
                    break;
                }
                kind = CONTINUATION;
            }
            raw.is_answered(1)?;
            assert_eq!(recorder.take().len(), 0, "a head of {} bytes", all.len());
        }
        // One byte in a table of ours becomes a field of thousands: the sum of what they stand for counts.
        let mut raw = connect(scene)?;
        let value = "v".repeat(4000);
        let mut bomb = block(&usual("/service/bomb"));
        bomb.push(0x40);
        bomb.extend_from_slice(&block(&[("x", &value)])[1..]);
        bomb.extend(std::iter::repeat_n(0x80 | 62, 12_000));
        raw.wire.send(frame(HEADERS, 5, 1, &bomb[..16_000]))?;
        raw.is_answered(1)?;
        assert_eq!(recorder.take().len(), 0, "a bomb");
        let grown = scene.portico.rss_kib()?.saturating_sub(warm);
        ensure!(grown < 64 * 1024, "memory has grown by {grown} KiB");
        Ok(())
    })
}

/// A head of HTTP/2 that does not end has the deadline of one of HTTP/1.
#[test]
fn a_slow_head_of_http2_is_cut() -> Result<()> {
    play_recorded(|scene, _| {
        let mut raw = connect(scene)?;
        raw.wire.send(frame(HEADERS, 1, 1, &block(&usual("/service/slow"))))?;
        raw.wire.patience(Duration::from_secs(60))?;
        let ((), took) = timed(|| {
            while raw.frame().is_some() {}
            Ok(())
        })?;
        ensure!(took < Duration::from_secs(50), "{took:?}");
        ensure!(raw.wire.rest().is_ok(), "the connection is still open after {took:?}");
        Ok(())
    })
}
