//! Servers that answer an upload and take no more of it: the client gets the answer at once.

use std::net::{Ipv4Addr, SocketAddrV4};
use std::thread::sleep;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use portico_tests::Stage;
use portico_tests::certs::Pair;
use portico_tests::config::quote;
use portico_tests::fake::{Fake, Peer};
use portico_tests::h2::{HEADERS, Http2Peer};
use portico_tests::portico::Portico;
use portico_tests::town::{Town, people};

use crate::scene::{Scene, timed};

/// A server that reads no more has its answer delivered long before this; the wait for one to read on is longer.
const SOON: Duration = Duration::from_secs(15);
/// Long enough for a proxy to fill every buffer in between.
const LATE: Duration = Duration::from_secs(1);
const REFUSAL: &str = "HTTP/1.1 413 Too large\r\nContent-Length: 3\r\n\r\nbig";
const LENGTH: usize = 8_000_000;

/// Answers by the path of the request, and reads of its body what that says.
fn serve(peer: &mut Peer) -> Result<()> {
    let path = loop {
        let first = peer.line()?;
        while !peer.line()?.is_empty() {}
        let path = first.split(' ').nth(1).and_then(|path| path.rsplit('/').next());
        match path.unwrap_or_default() {
            "ready" => peer.send("HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")?,
            path => break path.to_owned(),
        }
    };
    match path.as_str() {
        "at-once" => peer.send(REFUSAL)?,
        "late" => {
            sleep(LATE);
            peer.send(REFUSAL)?;
        }
        "hinted" => {
            sleep(LATE);
            peer.send("HTTP/1.1 103 Early Hints\r\nLink: </413>\r\n\r\n")?;
            sleep(LATE);
            peer.send(REFUSAL)?;
        }
        "agreed" => {
            sleep(LATE);
            peer.send("HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nfine")?;
        }
        "dripping" => {
            sleep(LATE);
            peer.send(REFUSAL)?;
            while peer.bytes(16_000).is_ok() {
                sleep(Duration::from_millis(300));
            }
        }
        "reading" => {
            peer.send("HTTP/1.1 200 OK\r\nContent-Length: 7\r\n\r\n")?;
            let mut read = 0;
            while read < LENGTH {
                sleep(Duration::from_millis(100));
                read += peer.bytes(160_000)?.len();
            }
            peer.send(read.to_string())?;
        }
        _ => {}
    }
    peer.hang();
    Ok(())
}

/// Answers every upload while it is sent, and gives no window for the rest.
fn serve_http2(peer: &mut Peer) -> Result<()> {
    let mut peer = Http2Peer::begin(peer)?;
    loop {
        if let (HEADERS, _, stream, _) = peer.frame()? {
            sleep(LATE);
            peer.answer(stream, "413", "big")?;
        }
    }
}

fn play(test: impl FnOnce(&Scene) -> Result<()>) -> Result<()> {
    Stage::run(|stage| {
        let town = Town::build(stage, people())?;
        let at = || -> Result<SocketAddrV4> { Ok(SocketAddrV4::new(Ipv4Addr::LOCALHOST, stage.port()?)) };
        let (clear, tls, http2) = (at()?, at()?, at()?);
        let pair: Pair = town.ca.server(&["real.example.test", "127.0.0.1"])?;
        let _servers = [
            Fake::start(clear, None, serve)?,
            Fake::start(tls, Some(pair.acceptor()?), serve)?,
            Fake::start(http2, Some(pair.http2_acceptor()?), serve_http2)?,
        ];
        let group = |at: SocketAddrV4| format!("{{servers: [\"{at}\"], tls: {{name: real.example.test}}}}");
        let site = stage.file(
            "site.yaml",
            format!(
                "groups:\n  clear: {{servers: [\"{clear}\"]}}\n  tls: {}\n  http2: {}\n\
                 locations:\n- {{prefix: /clear/, group: clear}}\n- {{prefix: /tls/, group: tls}}\n\
                 - {{prefix: /http2/, group: http2, http2: true}}\n- include: {}\n",
                group(tls),
                group(http2),
                quote(&town.locations)
            ),
        )?;
        let mut node = town.node();
        node.web = vec![("locations".to_owned(), quote(&site))];
        let portico = Portico::start(stage, &node, &town.directory(), "debug")?;
        let mut scene = Scene { stage, town, portico };
        test(&scene)?;
        scene.end()
    })
}

#[test]
fn an_answer_is_read_while_its_upload_is_blocked() -> Result<()> {
    play(|scene| {
        let file = scene.stage.file("upload", "x".repeat(LENGTH))?;
        let data = format!("@{}", file.display());
        let check = |version: &str, path: &str, status: &str, body: &str| -> Result<()> {
            let args = [version, "-H", "Expect:", "--max-time", "40", "--data-binary", &data];
            let (answer, took) = timed(|| scene.https(path, &args))?;
            ensure!(answer.status() == status && answer.text()? == body, "{}", answer.head);
            ensure!(took < SOON, "{took:?}");
            Ok(())
        };
        for version in ["--http1.1", "--http2"] {
            for server in ["clear", "tls"] {
                for (path, status, body) in [
                    ("at-once", "413", "big"),
                    ("late", "413", "big"),
                    ("hinted", "413", "big"),
                    ("agreed", "200", "fine"),
                    ("dripping", "413", "big"),
                    // It agrees, and may read on as slowly as it likes.
                    ("reading", "200", "8000000"),
                ] {
                    if (version, path) == ("--http2", "agreed") {
                        // curl goes on sending.
                        continue;
                    }
                    let path = format!("/{server}/{path}");
                    check(version, &path, status, body).with_context(|| format!("{version} {path}"))?;
                }
            }
            for _ in 0..2 {
                check(version, "/http2/late", "413", "big").with_context(|| format!("{version} HTTP/2"))?;
            }
        }
        Ok(())
    })
}
