//! The deadlines of web requests, set in the node file.

use std::time::Duration;

use anyhow::{Result, ensure};
use portico_tests::Stage;
use portico_tests::config::{Directory, Node};
use portico_tests::h2::{HEADERS, block, frame, usual};
use portico_tests::wire::Wire;

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
