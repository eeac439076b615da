//! Bytes behind a request: empty lines, requests that were sent ahead, and what must not be taken for one. All are
//! answered in their order, and none harms the one that is under way (RFC 9112 §2.2, §9.3.2, §9.6).

use std::net::{Ipv4Addr, SocketAddrV4};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use portico_tests::nginx::Nginx;
use portico_tests::portico::Portico;
use portico_tests::town::{Town, people};
use portico_tests::wire::Wire;
use portico_tests::{Stage, until};

use crate::scene::Scene;
use crate::smuggling::{HOST, Recorder, play_recorded, talk};

/// Long enough for an answer that should not be there.
const MOMENT: Duration = Duration::from_millis(300);

/// An answer: its head and its body.
type Answer = (String, String);

fn answer(wire: &mut Wire) -> Result<Answer> {
    let mut head = String::new();
    loop {
        let line = wire.line().with_context(|| format!("after {head:?}"))?;
        let line = line.trim_end_matches('\r');
        if line.is_empty() {
            break;
        }
        head += &format!("{}\n", line.to_lowercase());
    }
    let length = head.lines().find_map(|line| line.strip_prefix("content-length: "));
    let body = wire.bytes(length.context("no length")?.parse()?)?;
    Ok((head, String::from_utf8(body)?))
}

fn get(path: &str) -> String {
    format!("GET {path} HTTP/1.1\r\nHost: {HOST}\r\n\r\n")
}

fn post(path: &str, fields: &str, body: &str) -> String {
    format!("POST {path} HTTP/1.1\r\nHost: {HOST}\r\n{fields}\r\n\r\n{body}")
}

fn wires(scene: &Scene) -> Result<[Wire; 2]> {
    let tls = scene.town.ca.connector(&["http/1.1"])?;
    Ok([
        Wire::clear(scene.town.endpoints.http)?,
        Wire::tls(scene.town.endpoints.https, &tls, HOST)?,
    ])
}

/// Sends `behind` while a POST is under way, part by part. Both are answered.
fn check_behind(wire: &mut Wire, recorder: &Recorder, behind: &[&str]) -> Result<()> {
    recorder.hold(true);
    wire.send(post("/service/hold", "Content-Length: 5", "first"))?;
    recorder.wait_for("/service/hold")?;
    for part in behind {
        wire.send(part)?;
        ensure!(wire.is_silent(MOMENT)?, "an answer to {part:?}");
    }
    recorder.hold(false);
    let (head, body) = answer(wire)?;
    ensure!(
        head.starts_with("http/1.1 200 ") && body == "fine",
        "{behind:?}: {head}"
    );
    ensure!(head.contains("connection: keep-alive"), "{behind:?}: {head}");
    Ok(())
}

#[test]
fn a_request_under_way_is_not_harmed_by_what_follows() -> Result<()> {
    play_recorded(|scene, recorder| {
        for mut wire in wires(scene)? {
            // What old clients send behind a body is nothing.
            check_behind(&mut wire, recorder, &["\r\n"])?;
            check_behind(&mut wire, recorder, &["\r", "\n\r\n"])?;
            let next = post("/service/tell/2", "Transfer-Encoding: chunked", "3\r\nabc\r\n0\r\n\r\n");
            for parts in [&[&next[..]][..], &[&next[..9], &next[9..70], &next[70..]]] {
                check_behind(&mut wire, recorder, parts)?;
                ensure!(answer(&mut wire)?.1 == "/service/tell/2");
                let seen = recorder.take();
                ensure!(seen.len() == 1 && seen[0].body == b"abc", "{seen:?}");
            }
            ensure!(recorder.garbage().is_empty(), "{:?}", recorder.garbage());

            // A client that leaves is noticed, as before.
            recorder.hold(true);
            wire.send(get("/service/hold"))?;
            recorder.wait_for("/service/hold")?;
            drop(wire);
            recorder.hold(false);
        }
        Ok(())
    })
}

#[test]
fn requests_sent_ahead_are_answered_in_order() -> Result<()> {
    play_recorded(|scene, recorder| {
        let all = [
            get("/service/tell/1"),
            post("/service/tell/2", "Content-Length: 4", "\r\n\r\n"),
            "\r\n".to_owned(),
            post(
                "/service/tell/3",
                "Transfer-Encoding: chunked",
                "2;x=y\r\nab\r\n0\r\nTrailer: x\r\n\r\n",
            ),
            format!("GET /service/tell/4 HTTP/1.0\r\nHost: {HOST}\r\nConnection: keep-alive\r\n\r\n"),
            get("/service/tell/5").replace("HTTP/1.1", "HTTP/1.2"),
            post("/service/tell/6", "Content-Length: 70000", &"z".repeat(70_000)),
            get("/service/tell/7"),
        ]
        .concat();
        for cut in [all.len(), 1, 1000] {
            for mut wire in wires(scene)? {
                // Its long body is no matter of single bytes.
                let (slow, fast) = all.split_at(if cut == 1 { 700 } else { 0 });
                for part in slow.as_bytes().chunks(cut) {
                    wire.send(part)?;
                }
                wire.send(fast)?;
                for number in 1..=7 {
                    let (head, body) = answer(&mut wire)?;
                    assert_eq!(body, format!("/service/tell/{number}"), "{cut}: {head}");
                }
                ensure!(wire.is_silent(MOMENT)?);
                let seen = recorder.take();
                assert_eq!(seen.len(), 7);
                assert_eq!((&seen[1].body[..], &seen[2].body[..]), (&b"\r\n\r\n"[..], &b"ab"[..]));
                assert_eq!(seen[5].body.len(), 70_000);
            }
        }
        ensure!(recorder.garbage().is_empty(), "{:?}", recorder.garbage());
        Ok(())
    })
}

/// Each head that was sent ahead passes the checks of any other.
#[test]
fn what_is_no_request_is_refused_in_its_turn() -> Result<()> {
    let long = format!("GET /service/evil HTTP/1.1\r\nX: {}", "x".repeat(40_000));
    let two_lengths = "POST /service/evil HTTP/1.1\r\nHost: mail.a.example\r\n\
                       Content-Length: 1\r\nContent-Length: 2\r\n\r\nab";
    play_recorded(|scene, recorder| {
        for (name, behind, status) in [
            ("bare LF", "GET /service/evil HTTP/1.1\nHost: x\n\n", "400"),
            ("NUL", "GET /service/evil HTTP/1.1\r\nX: \0\r\n\r\n", "400"),
            ("a long head", &long, "431"),
            ("two lengths", two_lengths, "400"),
            ("no Host", "GET /service/evil HTTP/1.1\r\n\r\n", "400"),
        ] {
            check_second(scene, recorder, name, &get("/service/tell/1"), behind, Some(status))?;
        }
        Ok(())
    })
}

/// What comes behind a request after which no other may come is not read.
#[test]
fn nothing_is_read_behind_the_last_request() -> Result<()> {
    let with = |fields: &str| get("/service/tell/1").replace("\r\n\r\n", &format!("\r\n{fields}\r\n\r\n"));
    let lengths = "Content-Length: 6\r\nTransfer-Encoding: chunked";
    let unclear = post("/service/tell/1", lengths, "0\r\n\r\n");
    play_recorded(|scene, recorder| {
        for (name, first) in [
            ("behind the last", with("Connection: close")),
            (
                "behind a request for another protocol",
                with("Connection: Upgrade\r\nUpgrade: h2c"),
            ),
            ("behind a body that is unclear", unclear),
        ] {
            check_second(scene, recorder, name, &first, &get("/service/evil"), None)?;
        }
        Ok(())
    })
}

/// Sends one behind the other at once: the first is answered, and the second has this status or no answer; no server
/// sees it.
fn check_second(
    scene: &Scene,
    recorder: &Recorder,
    name: &str,
    first: &str,
    behind: &str,
    status: Option<&str>,
) -> Result<()> {
    for wire in wires(scene)? {
        let heard = talk(wire, [first, behind].concat().as_bytes())?;
        ensure!(
            heard.starts_with("HTTP/1.1 200 ") && heard.contains("/service/tell/1"),
            "{name}: {heard}"
        );
        let second = heard
            .get(9..)
            .and_then(|rest| rest.find("HTTP/1.1 ").map(|at| rest[at + 9..].to_owned()));
        assert_eq!(second.as_deref().map(|rest| &rest[..3]), status, "{name}: {heard}");
        let seen = recorder.take();
        ensure!(seen.iter().all(|seen| !seen.line.contains("evil")), "{name}: {seen:?}");
    }
    ensure!(recorder.garbage().is_empty(), "{name}: {:?}", recorder.garbage());
    Ok(())
}

/// What a real nginx says to requests that were sent ahead is what a client hears who sends them to Portico in front
/// of it.
#[test]
fn a_client_hears_what_nginx_says() -> Result<()> {
    Stage::run(|stage| {
        let town = Town::build(stage, people())?;
        let at = |port| SocketAddrV4::new(Ipv4Addr::new(127, 0, 0, 6), port);
        let endpoints = [at(stage.port()?), at(stage.port()?)];
        let pair = town.ca.server(&["127.0.0.6"])?;
        let say = "location / { add_header X-Body $content_length; return 200 $request_method$request_uri; }";
        let _nginx = Nginx::start(stage, "behind", endpoints, &pair, say)?;
        let groups = format!("groups:\n  behind: {{servers: [\"{}\"]}}\n", endpoints[0]);
        let file = stage.file(
            "locations.yaml",
            format!("{groups}locations:\n  - prefix: /\n    group: behind\n"),
        )?;
        let (mut node, mut directory) = (town.node(), town.directory());
        node.web = vec![("locations".to_owned(), format!("\"{}\"", file.display()))];
        directory.config("zimbraReverseProxyMailMode", "both");
        let portico = Portico::start(stage, &node, &directory, "info")?;
        let mut scene = Scene { stage, town, portico };
        until("nginx to be found", Duration::from_secs(20), || {
            let heard = talk(Wire::clear(scene.town.endpoints.http)?, get("/up").as_bytes())?;
            Ok(heard.contains("GET/up").then_some(()))
        })?;
        let sent = [
            get("/1"),
            post("/2", "Content-Length: 3", "abc\r\n"),
            post("/3", "Transfer-Encoding: chunked", "1\r\na\r\n0\r\n\r\n"),
            get("/4"),
        ]
        .concat();
        let ask = |mut wire: Wire| -> Result<Vec<String>> {
            wire.send(&sent)?;
            (0..4).map(|_| Ok(answer(&mut wire)?.1)).collect()
        };
        let expected = ask(Wire::clear(endpoints[0])?)?;
        assert_eq!(expected, ["GET/1", "POST/2", "POST/3", "GET/4"]);
        for wire in wires(&scene)? {
            assert_eq!(ask(wire)?, expected);
        }
        scene.end()
    })
}
