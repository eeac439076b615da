//! Passwords that are guessed on the web where a guess does not look like one: beside answers that need no login, by
//! clients that do not wait, and in forms that a server reads and others do not.

use std::net::Ipv4Addr;
use std::thread::sleep;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use portico_tests::fake::{Fake, Peer};
use portico_tests::town::people;
use portico_tests::until;
use portico_tests::wire::Wire;

use crate::scene::{Scene, play_before, play_with, soap_login};

const SOON: Duration = Duration::from_secs(20);
/// Guesses of each kind, and how many of them may reach a server.
const GUESSES: usize = 12;
const MOST: usize = 4;
const STRICT: &str = "{pair: {delay_from: 0, refuse_from: 4}}";
const NONE: &str = "HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n";
const WRONG: &str = "HTTP/1.1 401 Unauthorized\r\nContent-Length: 0\r\n\r\n";

/// Plays before a server that answers each head like this.
fn play_answered(
    throttle: &str,
    answer: fn(&mut Peer, &str) -> Result<()>,
    test: impl FnOnce(&mut Scene, &mut Fake) -> Result<()>,
) -> Result<()> {
    play_before(
        Ipv4Addr::new(127, 0, 0, 10),
        |_, at| {
            Fake::start(at, None, move |peer| {
                loop {
                    let request = peer.line()?;
                    while !peer.line()?.is_empty() {}
                    answer(peer, &request)?;
                }
            })
        },
        |_, node, _| {
            node.more.push(("throttle".to_owned(), throttle.to_owned()));
            Ok(())
        },
        test,
    )
}

fn request(method: &str, path: &str, password: &str) -> String {
    let credentials = openssl::base64::encode_block(format!("ghost@a.example:{password}").as_bytes());
    format!("{method} {path} HTTP/1.1\r\nHost: mail.a.example\r\nAuthorization: Basic {credentials}\r\n\r\n")
}

/// The status of the next answer, which has no body or one that is skipped.
fn status(wire: &mut Wire) -> Result<String> {
    let first = wire.line()?;
    let mut length = 0;
    loop {
        let line = wire.line()?.to_ascii_lowercase();
        if line.is_empty() {
            wire.bytes(length)?;
            return Ok(first.split(' ').nth(1).context("no status")?.to_owned());
        }
        if let Some(value) = line.strip_prefix("content-length:") {
            length = value.trim().parse()?;
        }
    }
}

fn heard(fake: &Fake, method: &str) -> usize {
    let heard = fake.heard();
    heard.lines().filter(|line| line.starts_with(method)).count()
}

/// The story: after a question for options, or a look into a public folder, whatever the password, all guesses on the
/// connection passed, and the failures before it were forgiven.
#[test]
fn an_answer_that_needs_no_login_is_none() -> Result<()> {
    let answer = |peer: &mut Peer, request: &str| match request.starts_with("PROPFIND") {
        true => peer.send(WRONG),
        false => peer.send(NONE),
    };
    for (method, path) in [
        ("OPTIONS", "/dav/ghost@a.example/"),
        ("GET", "/home/ghost@a.example/public.ics"),
    ] {
        play_answered(STRICT, answer, |scene, fake| {
            let mut wire = Wire::clear(scene.town.endpoints.http)?;
            for n in 0..GUESSES {
                wire.send(request(method, path, "x"))?;
                if status(&mut wire)? == "429" {
                    wire = Wire::clear(scene.town.endpoints.http)?;
                }
                wire.send(request("PROPFIND", "/dav/ghost@a.example/", &format!("guess-{n}")))?;
                if status(&mut wire)? == "429" {
                    wire = Wire::clear(scene.town.endpoints.http)?;
                }
            }
            let reached = heard(fake, "PROPFIND");
            ensure!(reached <= MOST, "{method}: {reached} guesses");
            let unproved = [("event", "web_login"), ("outcome", "not_refused")];
            until("one record", SOON, || {
                Ok((scene.portico.count(&unproved)? > 0).then_some(()))
            })?;
            ensure!(
                scene.portico.count(&[("event", "web_login"), ("outcome", "ok")])? == 0,
                "{method}"
            );
            Ok(())
        })?;
    }
    Ok(())
}

/// Right passwords are answered, or do what they are for, without the client; wrong ones were not counted.
#[test]
fn a_guess_whose_client_leaves_counts() -> Result<()> {
    let answer = |peer: &mut Peer, _: &str| peer.freeze();
    play_answered(STRICT, answer, |scene, fake| {
        for n in 0..GUESSES {
            let before = heard(fake, "PROPFIND");
            let mut wire = Wire::clear(scene.town.endpoints.http)?;
            wire.send(request("PROPFIND", "/dav/ghost@a.example/", &format!("guess-{n}")))?;
            let deadline = Instant::now() + Duration::from_millis(300);
            while heard(fake, "PROPFIND") == before && Instant::now() < deadline {
                sleep(Duration::from_millis(5));
            }
            drop(wire);
            sleep(Duration::from_millis(50));
        }
        // Others ask for its health.
        let reached = heard(fake, "PROPFIND");
        ensure!(reached <= MOST, "{reached} guesses");
        let counted = [
            ("event", "web_login"),
            ("outcome", "client_gone"),
            ("why", "counted as a failed login"),
        ];
        until("records", SOON, || {
            Ok((scene.portico.count(&counted)? == MOST).then_some(()))
        })?;
        Ok(())
    })
}

/// A phone that asks again and again with the same password, and leaves, counts once.
#[test]
fn a_phone_that_leaves_counts_once() -> Result<()> {
    let answer = |peer: &mut Peer, _: &str| peer.freeze();
    play_answered(STRICT, answer, |scene, fake| {
        for n in 0..GUESSES {
            let mut wire = Wire::clear(scene.town.endpoints.http)?;
            wire.send(request("PROPFIND", "/dav/ghost@a.example/", "right"))?;
            until("the server", SOON, || Ok((heard(fake, "PROPFIND") > n).then_some(())))?;
            drop(wire);
            sleep(Duration::from_millis(50));
        }
        Ok(())
    })
}

#[test]
fn a_delayed_guess_whose_client_leaves_reaches_no_server() -> Result<()> {
    let answer = |peer: &mut Peer, _: &str| peer.send(WRONG);
    play_answered("{pair: {delay_from: 1, refuse_from: 0}}", answer, |scene, fake| {
        let mut wire = Wire::clear(scene.town.endpoints.http)?;
        wire.send(request("PROPFIND", "/dav/ghost@a.example/", "guess-1"))?;
        ensure!(status(&mut wire)? == "401", "the first one");
        wire.send(request("PROPFIND", "/dav/ghost@a.example/", "guess-2"))?;
        sleep(Duration::from_millis(200));
        drop(wire);
        sleep(Duration::from_secs(2));
        ensure!(heard(fake, "PROPFIND") == 1, "{}", fake.heard());
        let throttled = [("event", "web_login"), ("outcome", "throttled")];
        until("a record", SOON, || {
            Ok((scene.portico.count(&throttled)? == 1).then_some(()))
        })?;
        // One whose client waits is delayed, and reaches it.
        let mut wire = Wire::clear(scene.town.endpoints.http)?;
        wire.send(request("PROPFIND", "/dav/ghost@a.example/", "guess-3"))?;
        ensure!(
            status(&mut wire)? == "401" && heard(fake, "PROPFIND") == 2,
            "{}",
            fake.heard()
        );
        Ok(())
    })
}

/// The server reads them all.
#[test]
fn a_login_that_cannot_be_read_reaches_no_server() -> Result<()> {
    play_with(
        people(),
        |_, _, _| Ok(()),
        |scene| {
            let folder = scene.portico.dir().to_owned();
            let login = soap_login("alice@a.example", "guess");
            let twice = r#"{"Body":{"AuthRequest":{"account":"x","account":"alice@a.example","password":"guess"}}}"#;
            let utf_16: Vec<u8> = login.encode_utf16().flat_map(u16::to_le_bytes).collect();
            let asked =
                |scene: &Scene| -> usize { scene.town.stores.iter().map(|store| store.web.request_count()).sum() };
            let post = |name: &str, body: &[u8], args: &[&str]| {
                let file = folder.join(name);
                std::fs::write(&file, body)?;
                let data = format!("@{}", file.display());
                let answer = scene.https(
                    "/service/soap/AuthRequest",
                    &[&["--data-binary", &data][..], args].concat(),
                )?;
                Ok::<_, anyhow::Error>(answer.status().to_owned())
            };
            let before = asked(scene);
            for (name, body, args, expected) in [
                ("twice", twice.as_bytes().to_vec(), &[][..], "400"),
                (
                    "padded",
                    format!("{login}{}", " ".repeat(70_000)).into_bytes(),
                    &[],
                    "413",
                ),
                ("wide", utf_16, &[], "415"),
                (
                    "packed",
                    login.clone().into_bytes(),
                    &["-H", "Content-Encoding: gzip"],
                    "415",
                ),
            ] {
                for version in ["--http1.1", "--http2"] {
                    let status = post(name, &body, &[args, &[version]].concat())?;
                    ensure!(status == expected, "{name} {version}: {status}");
                }
            }
            let latin_1 = [b"<!-- \xe4 -->", login.as_bytes()].concat();
            ensure!(post("latin", &latin_1, &[])? == "415", "Latin-1");
            let good = [("event", "web_login"), ("outcome", "ok")];
            ensure!(scene.portico.count(&good)? == 0, "one has logged in");
            let refused = [
                ("event", "web_login"),
                ("outcome", "protocol_error"),
                ("mechanism", "SOAP"),
            ];
            until("nine records", SOON, || {
                Ok((scene.portico.count(&refused)? == 9).then_some(()))
            })?;
            // A mail that is longer than any login goes on, and so does a whole login.
            let mail = format!(
                "<Envelope><Body><SendMsgRequest>{}</SendMsgRequest></Body></Envelope>",
                "x".repeat(200_000)
            );
            let passed = asked(scene);
            post("mail", mail.as_bytes(), &[])?;
            post("login", login.as_bytes(), &[])?;
            ensure!(asked(scene) == passed + 2 && passed <= before + 2, "what is no guess");
            Ok(())
        },
    )
}
