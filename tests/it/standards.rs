//! Small things that the standard says of answers (RFC 9110): which status, and which headers.

use std::net::{Ipv4Addr, SocketAddrV4};
use std::time::Duration;

use anyhow::{Result, ensure};
use portico_tests::certs::Authority;
use portico_tests::config::{Directory, Node};
use portico_tests::fake::{Fake, Peer};
use portico_tests::wire::Wire;
use portico_tests::{Stage, until};

use crate::admin::mailbox_server;
use crate::scene::{GUEST, Scene, play, play_before};

const HOST: &str = "mail.a.example";

/// Sends a request in clear text, and reads all of its answer.
fn talk(scene: &Scene, request: &str) -> Result<String> {
    let mut wire = Wire::clear(scene.town.endpoints.http)?;
    wire.send(format!(
        "{request} HTTP/1.1\r\nHost: {HOST}\r\nConnection: close\r\n\r\n"
    ))?;
    Ok(String::from_utf8_lossy(&wire.rest()?).into_owned())
}

/// §9.3.7: it asks for us, and neither the mailbox server nor another port knows better.
#[test]
fn options_of_the_server_are_ours() -> Result<()> {
    play(|scene| {
        let answer = talk(scene, "OPTIONS *")?;
        let good = answer.starts_with("HTTP/1.1 200 ") && answer.to_ascii_lowercase().contains("\r\nallow: get, head");
        ensure!(good && !answer.contains("\r\nLocation:"), "{answer}");
        // RFC 9112 §3.2.4: a URL without a path is the server, too; §3.2.2: whatever its name is spelled like.
        for url in ["http://mail.a.example", "http://MAIL.a.example:80"] {
            let answer = talk(scene, &format!("OPTIONS {url}"))?;
            ensure!(answer.starts_with("HTTP/1.1 200 "), "{url}: {answer}");
            let page = talk(scene, &format!("GET {url}/x"))?;
            ensure!(
                page.starts_with("HTTP/1.1 302 ") && page.contains("/x\r\n"),
                "{url}: {page}"
            );
        }
        let other = talk(scene, "GET http://mail.b.example/x")?;
        ensure!(other.starts_with("HTTP/1.1 400 "), "{other}");
        let page = talk(scene, "OPTIONS /x")?;
        ensure!(page.starts_with("HTTP/1.1 302 ") && page.contains("/x\r\n"), "{page}");
        Ok(())
    })
}

/// RFC 9112 §3: what is no request line is not mended.
#[test]
fn a_target_is_one_word_of_visible_characters() -> Result<()> {
    play(|scene| {
        for line in [
            "GET /x y",
            "GET  /x",
            "GET /x ",
            "GET /x\ty",
            "GET /\x01x",
            "GET /x\x7f",
        ] {
            let answer = talk(scene, line)?;
            ensure!(answer.starts_with("HTTP/1.1 400 "), "{line:?}: {answer}");
        }
        Ok(())
    })
}

/// §15.5.6: who refuses a method says which ones there are.
#[test]
fn a_refused_method_comes_with_those_that_are_taken() -> Result<()> {
    play(|scene| {
        let traced = talk(scene, "TRACE /x")?.to_ascii_lowercase();
        ensure!(
            traced.starts_with("http/1.1 405 ") && traced.contains("\r\nallow: get, "),
            "{traced}"
        );
        Ok(())
    })
}

fn answer_all(peer: &mut Peer, answer: &str) -> Result<()> {
    loop {
        peer.line()?;
        while !peer.line()?.is_empty() {}
        peer.send(answer)?;
    }
}

/// §15.2: what is said before the answer is not dressed as one.
#[test]
fn interim_answers_pass_as_they_are() -> Result<()> {
    let hints = |peer: &mut Peer| {
        answer_all(
            peer,
            "HTTP/1.1 103 Early Hints\r\nLink: </x>\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nfine",
        )
    };
    play_before(
        Ipv4Addr::new(127, 0, 0, 11),
        |_, at| Fake::start(at, None, hints),
        |_, _, directory| {
            directory.config("zimbraReverseProxyResponseHeaders", ["X-Frame-Options: SAMEORIGIN"]);
            Ok(())
        },
        |scene, _| {
            let answer = talk(scene, "GET /service/x")?.to_ascii_lowercase();
            let (interim, last) = answer.split_once("\r\n\r\n").unwrap_or_default();
            ensure!(
                interim.starts_with("http/1.1 103 ") && interim.contains("link: </x>"),
                "{answer}"
            );
            for ours in ["x-frame-options", "x-request-id"] {
                ensure!(!interim.contains(ours) && last.contains(ours), "{ours}: {answer}");
            }
            ensure!(last.ends_with("\r\n\r\nfine"), "{answer}");
            Ok(())
        },
    )
}

/// The same for checks of servers.
#[test]
fn interim_answers_are_none_to_a_check() -> Result<()> {
    let ip = Ipv4Addr::new(127, 0, 0, 14);
    let fine = "HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nfine";
    let hint = "HTTP/1.1 103 Early Hints\r\nLink: </x>\r\n\r\n";
    for (answer, expected) in [
        (format!("{hint}{hint}{fine}"), "up"),
        (hint.repeat(20), "unreachable"),
        (
            format!("HTTP/1.1 101 Switching Protocols\r\nUpgrade: x\r\nConnection: upgrade\r\n\r\n{fine}"),
            "unreachable",
        ),
    ] {
        let script = move |peer: &mut Peer| answer_all(peer, &answer);
        play_before(
            ip,
            |_, at| Fake::start(at, None, script),
            |_, _, _| Ok(()),
            |scene, fake| {
                until("checks", Duration::from_secs(30), || {
                    // The first one is over when the second is asked.
                    let asked = fake.heard().matches("GET ").count() > 1;
                    let shown = mailbox_server(&scene.portico, GUEST)?;
                    Ok((asked && shown["health"] == expected).then_some(()))
                })
            },
        )?;
    }
    Ok(())
}

/// §15.6.3: a server that cannot be reached, or that cannot prove who it is, is a bad gateway; 503 would be us.
#[test]
fn a_server_that_is_not_there_is_a_bad_gateway() -> Result<()> {
    let nobody = |_: &Stage, _: &mut Node, _: &mut Directory| Ok(());
    play_before(
        Ipv4Addr::new(127, 0, 0, 12),
        |_, _| Ok(()),
        nobody,
        |scene, ()| is_bad_gateway(scene),
    )?;
    let ip = Ipv4Addr::new(127, 0, 0, 13);
    play_before(
        ip,
        |stage, at: SocketAddrV4| {
            let stranger = Authority::new(&stage.dir("stranger")?)?.server(&[&ip.to_string()])?;
            let answer = "HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n";
            let fake = Fake::start(at, Some(stranger.acceptor()?), move |peer| answer_all(peer, answer))?;
            Ok((fake, at))
        },
        |_, _, directory| {
            directory.config("zimbraReverseProxySSLToUpstreamEnabled", "TRUE");
            let entry = directory.server(GUEST);
            let port = entry["zimbraMailPort"].clone();
            entry.insert("zimbraMailSSLPort".into(), port);
            Ok(())
        },
        |scene, (fake, _)| {
            is_bad_gateway(scene)?;
            ensure!(fake.connections() > 0 && fake.heard().is_empty(), "{:?}", fake.heard());
            Ok(())
        },
    )
}

/// The first time, and when it is known.
fn is_bad_gateway(scene: &Scene) -> Result<()> {
    for round in 0..4 {
        let answer = talk(scene, "GET /service/x")?;
        ensure!(answer.starts_with("HTTP/1.1 502 "), "{round}: {answer}");
    }
    Ok(())
}
