//! Servers that speak HTTP/2, and end their connections.

use std::net::{Ipv4Addr, SocketAddrV4};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use anyhow::{Result, ensure};
use portico_tests::Stage;
use portico_tests::certs::Pair;
use portico_tests::config::quote;
use portico_tests::fake::{Fake, Peer};
use portico_tests::h2::{DATA, END_STREAM, GOAWAY, HEADERS, Http2Peer, RST_STREAM, frame};
use portico_tests::portico::Portico;
use portico_tests::town::{Town, people};

use crate::scene::Scene;

/// How the second request on a connection is left without an answer.
#[derive(Debug, Clone, Copy)]
enum Ending {
    /// The stream is refused (RFC 9113 §8.7).
    Refused,
    /// The server goes away, and names the stream before as the last one.
    GoneBefore,
    /// The server goes away, and names this stream as the last one.
    GoneAfter,
    /// The connection ends without a word.
    Closed,
}

/// Answers the first request on a connection, and leaves the second one so.
fn serve(peer: &mut Peer, ending: Ending, asked: &AtomicUsize) -> Result<()> {
    let mut peer = Http2Peer::begin(peer)?;
    let mut first = None;
    loop {
        let (kind, flags, stream, _) = peer.frame()?;
        if !matches!(kind, HEADERS | DATA) || flags & END_STREAM == 0 {
            continue;
        }
        asked.fetch_add(1, Ordering::SeqCst);
        let Some(before) = first else {
            first = Some(stream);
            peer.answer(stream, "200", "fine")?;
            continue;
        };
        let go_away = |last: u32| frame(GOAWAY, 0, 0, &[last.to_be_bytes(), [0; 4]].concat());
        return match ending {
            Ending::Refused => {
                peer.send(frame(RST_STREAM, 0, stream, &7u32.to_be_bytes()))?;
                loop {
                    peer.frame()?;
                }
            }
            Ending::GoneBefore => peer.send(go_away(before)),
            Ending::GoneAfter => peer.send(go_away(stream)),
            Ending::Closed => Ok(()),
        };
    }
}

/// The status of a POST on a connection that has carried a request, and how many requests the server has got.
fn post(ending: Ending) -> Result<(String, usize)> {
    let (mut status, asked) = (String::new(), Arc::new(AtomicUsize::new(0)));
    let counted = asked.clone();
    Stage::run(|stage| {
        let town = Town::build(stage, people())?;
        let at = SocketAddrV4::new(Ipv4Addr::LOCALHOST, stage.port()?);
        let pair: Pair = town.ca.server(&["real.example.test", "127.0.0.1"])?;
        let serve = move |peer: &mut Peer| serve(peer, ending, &counted);
        let _server = Fake::start(at, Some(pair.http2_acceptor()?), serve)?;
        let site = stage.file(
            "site.yaml",
            format!(
                "groups:\n  http2: {{servers: [\"{at}\"], tls: {{name: real.example.test}}}}\n\
                 locations:\n- {{prefix: /x/, group: http2, http2: true}}\n- include: {}\n",
                quote(&town.locations)
            ),
        )?;
        let mut node = town.node();
        node.web = vec![("locations".to_owned(), quote(&site))];
        let portico = Portico::start(stage, &node, &town.directory(), "debug")?;
        let mut scene = Scene { stage, town, portico };
        let first = scene.https("/x/1", &[])?;
        ensure!(first.status() == "200", "{}", first.head);
        // At once: on the same connection.
        let second = scene.https("/x/2", &["--data-binary", "body"])?;
        status = second.status().to_owned();
        scene.end()
    })?;
    Ok((status, asked.load(Ordering::SeqCst)))
}

/// Whatever its method is: the server says that it has not seen it.
#[test]
fn what_a_server_has_not_processed_is_sent_again() -> Result<()> {
    for ending in [Ending::Refused, Ending::GoneBefore] {
        assert_eq!(post(ending)?, ("200".to_owned(), 3), "{ending:?}");
    }
    Ok(())
}

#[test]
fn what_a_server_may_have_processed_is_not() -> Result<()> {
    for ending in [Ending::GoneAfter, Ending::Closed] {
        assert_eq!(post(ending)?, ("502".to_owned(), 2), "{ending:?}");
    }
    Ok(())
}
