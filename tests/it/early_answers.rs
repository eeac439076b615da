//! Uploads over HTTP/2 that are answered before they have ended: the client hears that it may stop (RFC 9113 §8.1).

use std::net::{Ipv4Addr, SocketAddrV4};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use portico_tests::Stage;
use portico_tests::certs::Authority;
use portico_tests::config::{Directory, Node};
use portico_tests::h2::{DATA, END_STREAM, GOAWAY, HEADERS, RST_STREAM, Raw, SETTINGS, block, frame};
use portico_tests::nginx::Nginx;

use crate::scene::{Scene, play_before, timed};
use crate::smuggling::{HOST, connect, play_recorded};

/// What an answered upload may take to end.
const SOON: Duration = Duration::from_secs(15);

/// Opens an upload, without any of its body.
fn upload(raw: &mut Raw, path: &str, length: &str) -> Result<u32> {
    let stream = raw.next;
    raw.next += 2;
    let fields = [
        (":method", "POST"),
        (":scheme", "https"),
        (":path", path),
        (":authority", HOST),
        ("content-length", length),
    ];
    raw.wire.send(frame(HEADERS, 4, stream, &block(&fields)))?;
    Ok(stream)
}

/// The end of the answer on this stream, and what its reset says, if one follows soon.
fn ending(raw: &mut Raw, stream: u32) -> Result<Option<u32>> {
    raw.wire.patience(SOON)?;
    let mut ended = false;
    while let Some((kind, flags, on, payload)) = raw.frame() {
        match kind {
            DATA | HEADERS if on == stream && flags & END_STREAM != 0 => {
                ended = true;
                raw.wire.patience(Duration::from_secs(3))?;
            }
            RST_STREAM if on == stream => {
                ensure!(ended, "reset before its answer has ended: {payload:?}");
                return Ok(payload.last_chunk().map(|reason| u32::from_be_bytes(*reason)));
            }
            GOAWAY => bail!("the connection ends: {payload:?}"),
            _ => {}
        }
    }
    ensure!(ended, "no end of the answer");
    Ok(None)
}

#[test]
fn an_upload_that_is_answered_early_ends() -> Result<()> {
    play_recorded(|scene, recorder| {
        let mut raw = connect(scene)?;
        for round in 0..3 {
            let stream = upload(&mut raw, "/service/deaf", "10000000")?;
            // As much as fits into the window.
            for _ in 0..3 {
                raw.wire.send(frame(DATA, 0, stream, &[b'x'; 16_000]))?;
            }
            assert_eq!(ending(&mut raw, stream)?, Some(0), "{round}: not NO_ERROR");
            recorder.wait_for("/service/deaf")?;
            // What was on its way is no error, and others are served on the same connection.
            raw.wire.send(frame(DATA, 0, stream, b"late"))?;
            let honest = raw.ask("/service/fine", &[], true)?;
            assert_eq!(raw.body(honest)?, b"fine");
        }
        // One that ends together with its answer is not reset.
        let stream = upload(&mut raw, "/service/fine", "4")?;
        raw.wire.send(frame(DATA, 0, stream, b"body"))?;
        recorder.wait_for("/service/fine")?;
        raw.wire.send(frame(DATA, END_STREAM, stream, b""))?;
        assert_eq!(ending(&mut raw, stream)?, None);
        raw.wire.send(frame(SETTINGS, 1, 0, &[]))?;

        let heard = uploads(scene, "/service/deaf")?;
        ensure!(
            heard.contains("recv RST_STREAM") && heard.contains("NO_ERROR"),
            "{heard}"
        );
        recorder.hold(false);
        Ok(())
    })
}

/// A real client, which stops when it is told to. (curl 7.88 does not, with nginx neither.)
fn uploads(scene: &Scene, path: &str) -> Result<String> {
    let file = scene.stage.file("upload", "x".repeat(20_000_000))?;
    let file = file.to_str().context("path")?;
    let url = format!("https://{}{path}", scene.town.endpoints.https);
    let authority = format!(":authority: {HOST}");
    let args = ["-v", "-n", "-H", &authority, "-d", file, "-t", "30", &url];
    let (heard, took) = timed(|| scene.run("nghttp", &args))?;
    ensure!(heard.contains(":status: 200") && took < SOON, "{took:?} {heard}");
    Ok(heard)
}

/// nginx answers and reads on, without using what it reads.
#[test]
fn a_real_server_may_answer_early() -> Result<()> {
    let ip = Ipv4Addr::new(127, 0, 0, 6);
    let start = |stage: &Stage, at: SocketAddrV4| {
        let pair = Authority::new(&stage.dir("nginx-ca")?)?.server(&["127.0.0.6"])?;
        let endpoints = [at, SocketAddrV4::new(ip, stage.port()?)];
        Nginx::start(stage, "early", endpoints, &pair, "location / { return 200 early; }")
    };
    let change = |_: &Stage, _: &mut Node, _: &mut Directory| Ok(());
    play_before(ip, start, change, |scene, _| {
        uploads(scene, "/service/x")?;
        let data = scene.stage.file("body", "x".repeat(5_000_000))?;
        let data = format!("@{}", data.display());
        let (heard, took) = timed(|| scene.https("/service/x", &["--http1.1", "--data-binary", &data]))?;
        assert_eq!(std::fs::read_to_string(&heard.body)?, "early");
        ensure!(took < SOON, "{took:?}");
        Ok(())
    })
}
