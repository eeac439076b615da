//! The deadlines of web requests, set in the node file.

use std::time::Duration;

use anyhow::{Result, ensure};
use portico_tests::config::{Directory, Node};
use portico_tests::h2::{DATA, END_HEADERS, HEADERS, block, frame, usual};
use portico_tests::wire::Wire;
use portico_tests::{Stage, until};

use crate::scene::timed;
use crate::smuggling::{HOST, connect, play_recorded_with};

/// Far below the defaults, and far above the deadlines of this test.
const SOON: Duration = Duration::from_secs(20);

#[test]
fn heads_and_bodies_have_the_time_of_the_node_file() -> Result<()> {
    let change = |_: &Stage, node: &mut Node, _: &mut Directory| {
        node.web = vec![
            ("client_header_timeout".to_owned(), "2s".to_owned()),
            ("client_body_timeout".to_owned(), "1s".to_owned()),
        ];
        Ok(())
    };
    play_recorded_with(change, |scene, _| {
        let mut wire = Wire::clear(scene.town.endpoints.http)?;
        wire.send("GET /service/slow HTTP/1.1\r\nHost: ")?;
        let (line, took) = timed(|| wire.line())?;
        ensure!(line.contains(" 408 ") && took < SOON, "{took:?} {line}");

        let mut raw = connect(scene)?;
        raw.wire
            .send(frame(HEADERS, 1, 1, &block(&usual(HOST, "/service/slow"))))?;
        let ((), took) = timed(|| {
            while raw.frame().is_some() {}
            Ok(())
        })?;
        ensure!(took < SOON, "{took:?}");

        let mut wire = Wire::clear(scene.town.endpoints.http)?;
        wire.send(format!(
            "POST /service/slow HTTP/1.1\r\nHost: {HOST}\r\nContent-Length: 1000000\r\n\r\n"
        ))?;
        wire.patience(Duration::from_millis(300))?;
        let (line, took) = timed(|| {
            // The dripping itself is what is tested.
            for _ in 0..60 {
                wire.send("x")?;
                if let Ok(line) = wire.line() {
                    return Ok(line);
                }
            }
            Ok(String::new())
        })?;
        ensure!(line.contains(" 408 ") && took < SOON, "{took:?} {line}");
        Ok(())
    })
}

/// The story: only bytes that came were looked at, so a body that stopped held its request for as long as its server
/// might be silent: for minutes, over HTTP/2.
#[test]
fn a_body_that_stops_ends_with_its_time() -> Result<()> {
    let change = |_: &Stage, node: &mut Node, _: &mut Directory| {
        node.web = vec![("client_body_timeout".to_owned(), "2s".to_owned())];
        Ok(())
    };
    play_recorded_with(change, |scene, _| {
        for (length, begun) in [("1000000", &b"begun"[..]), ("1000000", b"")] {
            let mut wire = Wire::clear(scene.town.endpoints.http)?;
            wire.send(format!(
                "POST /service/stopped HTTP/1.1\r\nHost: {HOST}\r\nContent-Length: {length}\r\n\r\n"
            ))?;
            wire.send(begun)?;
            let (line, took) = timed(|| wire.line())?;
            ensure!(line.contains(" 408 ") && took < SOON, "{took:?} {line}");

            let mut raw = connect(scene)?;
            let mut fields = usual(HOST, "/service/stopped").to_vec();
            fields[0].1 = "POST";
            fields.push(("content-length", length));
            raw.wire.send(frame(HEADERS, END_HEADERS, 1, &block(&fields)))?;
            raw.wire.send(frame(DATA, 0, 1, begun))?;
            let (answered, took) = timed(|| raw.is_answered(1))?;
            ensure!(answered && took < SOON, "{took:?}, an answer: {answered}");
        }
        until("lines of the access log", SOON, || {
            let log = scene.portico.access_log();
            Ok((log.matches("/service/stopped").count() == 4).then_some(()))
        })?;
        let log = scene.portico.access_log();
        let refused = log
            .lines()
            .filter(|line| line.contains("/service/stopped") && line.contains(" 408 "));
        ensure!(refused.count() == 4, "{log}");
        Ok(())
    })
}
