//! Another service's word on logins (`throttle.policy`): what it is asked and told, what its answers do at each door, and
//! what a login costs while it is dead, slow, frozen or lying.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use portico_tests::config::quote;
use portico_tests::town::{FRONT, people};
use portico_tests::until;
use portico_tests::wire::Wire;
use serde_json::{Value, json};

use crate::scene::{Scene, greeted, soap_login};
use crate::throttle::{imap, play};

/// How long a login may wait for the service here.
const TIMEOUT: Duration = Duration::from_millis(500);
/// What a login may cost besides, on a busy machine.
const MORE: Duration = Duration::from_secs(2);
/// How long a report or a record may take.
const SOON: Duration = Duration::from_secs(10);
const STRANGER: Ipv4Addr = Ipv4Addr::new(127, 0, 9, 9);

/// What the stub does with a request.
#[derive(Clone, Copy)]
enum Does {
    /// Says this status.
    Says(i64),
    /// The same, in chunks.
    SaysInChunks(i64),
    /// Sends these bytes.
    Sends(&'static str),
    /// Says yes after so much time.
    Slow(Duration),
    /// Sends nothing.
    Freezes,
    /// Sends a byte at a time, for ever.
    Drips,
    /// Hangs up.
    Leaves,
}

/// A service that answers in the way of weakforced, or in no good way.
struct Stub {
    address: SocketAddr,
    does: Arc<Mutex<Does>>,
    /// Command, head, body.
    heard: Arc<Mutex<Vec<(String, String, Value)>>>,
    connections: Arc<AtomicUsize>,
    ended: Arc<AtomicBool>,
}

impl Stub {
    fn start() -> Result<Self> {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
        let stub = Self {
            address: listener.local_addr()?,
            does: Arc::new(Mutex::new(Does::Says(0))),
            heard: Arc::default(),
            connections: Arc::default(),
            ended: Arc::default(),
        };
        let (does, heard, connections, ended) = (
            stub.does.clone(),
            stub.heard.clone(),
            stub.connections.clone(),
            stub.ended.clone(),
        );
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                if ended.load(Ordering::SeqCst) {
                    return;
                }
                connections.fetch_add(1, Ordering::SeqCst);
                let (does, heard, ended) = (does.clone(), heard.clone(), ended.clone());
                std::thread::spawn(move || {
                    let _the_other_side_left = serve(stream, &does, &heard, &ended);
                });
            }
        });
        Ok(stub)
    }

    fn now(&self, does: Does) {
        *self.does.lock().expect("nobody panics holding it") = does;
        self.heard.lock().expect("nobody panics holding it").clear();
    }

    fn heard(&self, command: &str) -> Vec<(String, Value)> {
        let heard = self.heard.lock().expect("nobody panics holding it");
        let these = heard.iter().filter(|(of, ..)| of == command);
        these.map(|(_, head, body)| (head.clone(), body.clone())).collect()
    }

    /// The only report, when it has come.
    fn report(&self) -> Result<Value> {
        until("a report", SOON, || {
            Ok(self.heard("report").first().map(|(_, body)| body.clone()))
        })
    }
}

impl Drop for Stub {
    fn drop(&mut self) {
        self.ended.store(true, Ordering::SeqCst);
        let _wakes_it = TcpStream::connect(self.address);
    }
}

fn serve(
    stream: TcpStream,
    does: &Mutex<Does>,
    heard: &Mutex<Vec<(String, String, Value)>>,
    ended: &AtomicBool,
) -> Result<()> {
    let mut stream = BufReader::new(stream);
    loop {
        let mut head = String::new();
        while !head.ends_with("\r\n\r\n") {
            ensure!(stream.read_line(&mut head)? > 0, "the end");
        }
        let field = |name: &str| head.lines().find_map(|line| line.strip_prefix(name));
        let length: usize = field("Content-Length: ").context("no length")?.parse()?;
        let mut body = vec![0; length];
        stream.read_exact(&mut body)?;
        let command = head
            .split_whitespace()
            .nth(1)
            .and_then(|path| path.split_once("command="));
        let command = command.context("no command")?.1.to_owned();
        let body = serde_json::from_slice(&body)?;
        heard
            .lock()
            .expect("nobody panics holding it")
            .push((command, head, body));
        let now = *does.lock().expect("nobody panics holding it");
        let out = stream.get_mut();
        match now {
            Does::Says(status) => say(out, status)?,
            Does::SaysInChunks(status) => say_in_chunks(out, status)?,
            Does::Sends(bytes) => out.write_all(bytes.as_bytes())?,
            Does::Slow(time) => {
                std::thread::sleep(time);
                say(out, 0)?;
            }
            Does::Freezes => {}
            Does::Drips => {
                while !ended.load(Ordering::SeqCst) {
                    out.write_all(b"H")?;
                    std::thread::sleep(Duration::from_millis(50));
                }
            }
            Does::Leaves => return Ok(()),
        }
    }
}

fn say(out: &mut TcpStream, status: i64) -> Result<()> {
    let body = json!({"status": status, "msg": "", "r_attrs": {}}).to_string();
    let length = body.len();
    write!(
        out,
        "HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: {length}\r\n\r\n{body}"
    )?;
    Ok(out.flush()?)
}

/// Each octet comes alone, as a chunk and on the wire.
fn say_in_chunks(out: &mut TcpStream, status: i64) -> Result<()> {
    let body = json!({"status": status, "msg": "", "r_attrs": {}}).to_string();
    write!(
        out,
        "HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nTransfer-Encoding: chunked\r\n\r\n"
    )?;
    out.set_nodelay(true)?;
    for octet in body.chars() {
        write!(out, "1;an=extension\r\n{octet}\r\n")?;
        out.flush()?;
    }
    Ok(write!(out, "0\r\nand: a field\r\n\r\n")?)
}

/// Plays with such a service, or with its place where there is none.
fn play_with_policy(stub: &Stub, more: &str, test: impl FnOnce(&mut Scene) -> Result<()>) -> Result<()> {
    let dir = tempfile::tempdir()?;
    let secret = |name: &str| -> Result<String> {
        use std::os::unix::fs::OpenOptionsExt as _;
        let path = dir.path().join(name);
        let mut file = std::fs::OpenOptions::new()
            .write(true)
            .create_new(true)
            .mode(0o600)
            .open(&path)?;
        writeln!(file, "{name}-of-the-service")?;
        Ok(quote(path))
    };
    let (password, key, address) = (secret("password")?, secret("key")?, stub.address);
    let policy = format!(
        "{{max_delay: 1s, policy: {{url: 'http://{address}/', password_file: {password}, hash_key_file: {key}, timeout: \
         500ms, retry: 2s{more}}}}}"
    );
    play(people(), &policy, test)
}

fn pop3(scene: &Scene, local: &str) -> Result<String> {
    let person = scene.town.person(local)?;
    let mut wire = greeted(Wire::clear_from(STRANGER.into(), scene.town.endpoints.pop3)?, "+OK")?;
    wire.pop_ok(&format!("USER {}", person.name))?;
    wire.pop(&format!("PASS {}", person.password()))
}

/// The status of a web login.
fn web(scene: &Scene, local: &str) -> Result<String> {
    let person = scene.town.person(local)?;
    let body = soap_login(&person.name, &person.password());
    let from = STRANGER.to_string();
    let answer = scene.https("/service/soap/AuthRequest", &["--interface", &from, "-d", &body])?;
    Ok(answer.status().to_owned())
}

/// The answer to a login over IMAP, and what it took.
fn login(scene: &Scene, name: &str, password: &str) -> Result<(String, Duration)> {
    let begun = Instant::now();
    let answer = imap(scene, STRANGER.into(), name, password)?;
    Ok((answer, begun.elapsed()))
}

#[test]
fn it_is_asked_before_each_login_and_told_of_its_end() -> Result<()> {
    let stub = Stub::start()?;
    play_with_policy(&stub, "", |scene| {
        let good = scene.town.person("alice")?.password();
        let mut hashes = Vec::new();
        for (protocol, tls) in [("imap", false), ("pop3", false), ("http", true)] {
            stub.now(Does::Says(0));
            match protocol {
                "imap" => ensure!(login(scene, "al@a.example", &good)?.0.starts_with("a1 OK")),
                "pop3" => ensure!(pop3(scene, "alice")?.starts_with("+OK")),
                _ => ensure!(web(scene, "alice")? == "200"),
            }
            let asked = stub.heard("allow");
            ensure!(asked.len() == 1, "{protocol}: {asked:?}");
            let (head, mut body) = asked[0].clone();
            let basic = "Authorization: Basic d2ZvcmNlOnBhc3N3b3JkLW9mLXRoZS1zZXJ2aWNl\r\n";
            ensure!(
                head.starts_with("POST /?command=allow HTTP/1.1\r\n") && head.contains(basic),
                "{head}"
            );
            hashes.push(body["pwhash"].take());
            let device = body["device_id"].take();
            ensure!((protocol == "http") == device.as_str().is_some_and(|agent| agent.starts_with("curl/")));
            let expected = json!({
                "login": "alice@a.example", "remote": "127.0.9.9", "pwhash": null, "protocol": protocol, "tls": tls,
                "device_id": null, "attrs": {"node": "proxy1.example.test"}
            });
            ensure!(body == expected, "{body}");
            let report = stub.report()?;
            ensure!(
                report["success"] == true && report["policy_reject"] == false,
                "{report}"
            );
        }
        let is_hash = |hash: &Value| {
            hash.as_str()
                .is_some_and(|hash| hash.len() == 4 && hash.starts_with('0'))
        };
        ensure!(
            hashes.iter().all(|hash| is_hash(hash) && *hash == hashes[0]),
            "{hashes:?}"
        );
        for name in ["alice@a.example", "nobody@a.example"] {
            stub.now(Does::Says(0));
            let answer = login(scene, name, "wr0ng")?.0;
            ensure!(answer.contains("[AUTHENTICATIONFAILED]"), "{answer}");
            let report = stub.report()?;
            ensure!(report["login"] == name && report["success"] == false, "{report}");
        }
        let connections = stub.connections.load(Ordering::SeqCst);
        ensure!(connections <= 4, "ten requests over {connections} connections");
        Ok(())
    })
}

#[test]
fn it_refuses_and_delays() -> Result<()> {
    let stub = Stub::start()?;
    play_with_policy(&stub, "", |scene| {
        let good = scene.town.person("alice")?.password();
        stub.now(Does::Says(-1));
        for name in ["alice@a.example", "nobody@a.example"] {
            let answer = login(scene, name, &good)?.0;
            ensure!(
                answer == "a1 NO [LIMIT] Too many failed logins, please try again later",
                "{answer}"
            );
        }
        let report = stub.report()?;
        ensure!(
            report["success"] == false && report["policy_reject"] == true,
            "{report}"
        );
        let answer = pop3(scene, "alice")?;
        ensure!(answer.starts_with("-ERR [SYS/TEMP] "), "{answer}");
        ensure!(web(scene, "alice")? == "429");
        for (event, proto) in [("login", "imap"), ("login", "pop3"), ("web_login", "http")] {
            let fields = [
                ("event", event),
                ("outcome", "throttled"),
                ("rule", "policy"),
                ("throttle", "refused"),
            ];
            let record = scene.portico.record(&[&fields[..], &[("proto", proto)]].concat())?;
            ensure!(record["retry_after"] == 60, "{record}");
        }
        // More than `max_delay`.
        stub.now(Does::Says(i64::MAX));
        let (answer, took) = login(scene, "alice@a.example", &good)?;
        ensure!(answer.starts_with("a1 OK"), "{answer}");
        ensure!(
            (Duration::from_secs(1)..Duration::from_secs(1) + MORE).contains(&took),
            "{took:?}"
        );
        scene
            .portico
            .record(&[("outcome", "ok"), ("rule", "policy"), ("throttle", "delayed")])?;
        Ok(())
    })?;
    play_with_policy(&stub, ", mode: dry_run", |scene| {
        stub.now(Does::Says(-1));
        let good = scene.town.person("alice")?.password();
        ensure!(login(scene, "alice@a.example", &good)?.0.starts_with("a1 OK"));
        scene
            .portico
            .record(&[("outcome", "ok"), ("rule", "policy"), ("throttle", "would_refuse")])?;
        Ok(())
    })
}

/// The story: an answer in chunks was a failure, and let everybody in.
#[test]
fn its_answers_may_come_in_chunks() -> Result<()> {
    let stub = Stub::start()?;
    play_with_policy(&stub, "", |scene| {
        let good = scene.town.person("alice")?.password();
        for (status, start) in [
            (0, "a1 OK"),
            (-1, "a1 NO [LIMIT] "),
            (0, "a1 OK"),
            (-1, "a1 NO [LIMIT] "),
        ] {
            stub.now(Does::SaysInChunks(status));
            let answer = login(scene, "alice@a.example", &good)?.0;
            ensure!(answer.starts_with(start), "{status}: {answer}");
            stub.report()?;
        }
        let connections = stub.connections.load(Ordering::SeqCst);
        ensure!(connections <= 4, "eight requests over {connections} connections");
        Ok(())
    })
}

/// The story: an upgrade that was refused, delayed or whose server was down was asked about twice.
#[test]
fn an_upgrade_is_asked_about_once() -> Result<()> {
    let stub = Stub::start()?;
    play_with_policy(&stub, "", |scene| {
        let person = scene.town.person("alice")?;
        let basic = openssl::base64::encode_block(format!("{}:{}", person.name, person.password()).as_bytes());
        let upgrade = |scene: &Scene| -> Result<String> {
            let mut wire = scene.tls(scene.town.endpoints.https, FRONT)?;
            wire.send(format!(
                "GET /home/alice@a.example/Calendar HTTP/1.1\r\nHost: {FRONT}\r\nAuthorization: Basic {basic}\r\nUpgrade: websocket\r\n\
                 Connection: Upgrade\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
            ))?;
            wire.line()
        };
        for (status, start) in [(0, "HTTP/1.1 200 "), (1, "HTTP/1.1 200 "), (-1, "HTTP/1.1 429 ")] {
            stub.now(Does::Says(status));
            let answer = upgrade(scene)?;
            ensure!(answer.starts_with(start), "{status}: {answer}");
            let asked = stub.heard("allow").len();
            ensure!(asked == 1, "{status}: {asked} questions");
        }
        until("a report", SOON, || {
            let is_refused = |(_, report): &(String, Value)| report["policy_reject"] == true;
            Ok(stub.heard("report").iter().any(is_refused).then_some(()))
        })?;
        scene.town.stores.iter_mut().for_each(|store| store.web.stop());
        stub.now(Does::Says(0));
        let answer = upgrade(scene)?;
        ensure!(answer.starts_with("HTTP/1.1 50"), "{answer}");
        let asked = stub.heard("allow").len();
        ensure!(asked == 1, "without a server: {asked} questions");
        Ok(())
    })
}

/// What can go wrong with it.
const FAILURES: [Does; 10] = [
    Does::Freezes,
    Does::Slow(Duration::from_secs(3)),
    Does::Drips,
    Does::Leaves,
    Does::Sends("HTTP/1.1 500 Oops\r\nContent-Length: 0\r\n\r\n"),
    Does::Sends("HTTP/1.1 200 OK\r\nContent-Length: 7\r\n\r\n<html>\n"),
    Does::Sends("HTTP/1.1 200 OK\r\nContent-Length: 16\r\n\r\n{\"status\": \"-1\"}"),
    Does::Sends("HTTP/1.1 200 OK\r\nContent-Length: 99999999\r\n\r\n{\"status\": -1}"),
    Does::Sends("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n000e\r\n{\"status\": -1}?!0\r\n\r\n"),
    Does::Sends("HTTP/1.1 302 Found\r\nLocation: http://127.0.0.1:9/\r\nContent-Length: 0\r\n\r\n"),
];

#[test]
fn a_login_waits_no_longer_for_it_than_it_may() -> Result<()> {
    let stub = Stub::start()?;
    play_with_policy(&stub, "", |scene| {
        let good = scene.town.person("alice")?.password();
        let gets_in = || -> Result<()> {
            let (answer, took) = login(scene, "alice@a.example", &good)?;
            ensure!(
                answer.starts_with("a1 OK") && took < TIMEOUT + MORE,
                "{answer}: {took:?}"
            );
            Ok(())
        };
        for (at, failure) in FAILURES.into_iter().enumerate() {
            stub.now(failure);
            (0..3).try_for_each(|_| gets_in())?;
            // Now it is left alone.
            stub.now(failure);
            (0..3).try_for_each(|_| gets_in())?;
            let asked = stub.heard("allow").len();
            // One may have been asked twice: a connection that waited may have ended long ago.
            ensure!(asked <= 2, "failure {at}: {asked} questions");
            stub.now(Does::Says(0));
            until("it is asked again", SOON, || {
                gets_in()?;
                Ok((!stub.heard("allow").is_empty()).then_some(()))
            })?;
            stub.now(Does::Says(-1));
            until("it is believed again", SOON, || {
                Ok((!login(scene, "alice@a.example", &good)?.0.starts_with("a1 OK")).then_some(()))
            })?;
        }
        let log = std::fs::read_to_string(scene.portico.dir().join("output.log"))?;
        ensure!(log.contains("no answer in time; until it answers again, logins are let through"));
        ensure!(log.contains("answers again"));
        Ok(())
    })
}

#[test]
fn a_service_that_is_dead_lets_logins_through_or_keeps_them_out() -> Result<()> {
    let dead = Stub::start()?;
    let address = dead.address;
    drop(dead);
    let nobody = Stub {
        address,
        does: Arc::new(Mutex::new(Does::Leaves)),
        heard: Arc::default(),
        connections: Arc::default(),
        ended: Arc::default(),
    };
    for (more, start) in [("", "a1 OK"), (", on_failure: refuse", "a1 NO [LIMIT] ")] {
        play_with_policy(&nobody, more, |scene| {
            let good = scene.town.person("alice")?.password();
            for _ in 0..5 {
                let (answer, took) = login(scene, "alice@a.example", &good)?;
                ensure!(answer.starts_with(start) && took < TIMEOUT + MORE, "{answer}: {took:?}");
            }
            Ok(())
        })?;
    }
    Ok(())
}
