//! No log shows a secret, whatever fails: servers that break off, heads that do not parse, clients of the wrong
//! protocol. The stage looks into the logs of every Portico at its end; here secrets stand where failures quote them.

use std::net::{Ipv4Addr, SocketAddrV4};
use std::time::Duration;

use anyhow::{Result, ensure};
use portico_tests::fake::{Fake, Peer};
use portico_tests::portico::Portico;
use portico_tests::town::{Town, people};
use portico_tests::wire::Wire;
use portico_tests::{Stage, secrets, until};

use crate::scene::Scene;

/// Stands in every request and in every answer.
const TOKEN: &str = "pl4nted-t0ken-1234567890";
/// Where the server that fails is.
const SERVER_IP: Ipv4Addr = Ipv4Addr::new(127, 0, 0, 6);

/// What the server does, by the last part of the path.
const FAILURES: [(&str, &str); 9] = [
    (
        "short",
        "HTTP/1.1 200 OK\r\nContent-Length: 1000\r\nSet-Cookie: T=TOKEN\r\n\r\nten bytes",
    ),
    (
        "cut-chunk",
        "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nSet-Cookie: T=TOKEN\r\n\r\n99\r\nTOKEN",
    ),
    (
        "no-chunk",
        "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nTOKEN\r\nTOKEN\r\n",
    ),
    ("no-head", "HTTP/1.1 200 OK\r\nSet-Cookie: T=TOKEN\r\n"),
    ("no-http", "220 TOKEN ready\r\n\r\n"),
    (
        "bad-field",
        "HTTP/1.1 200 OK\r\nSet-Cookie : T=TOKEN\r\nContent-Length: 0\r\n\r\n",
    ),
    (
        "bad-bytes",
        "HTTP/1.1 200 OK\r\nSet-Cookie: T=TOKEN\r\nX\x01: TOKEN\r\nContent-Length: 0\r\n\r\n",
    ),
    (
        "bad-length",
        "HTTP/1.1 200 OK\r\nSet-Cookie: T=TOKEN\r\nContent-Length: x\r\n\r\n",
    ),
    ("nothing", ""),
];

/// Heads that no server gets. `HOST` is one of ours.
const HEADS: [&str; 10] = [
    "GET /failing/a?password=TOKEN HTTP/1.1\nHost: HOST\nCookie: T=TOKEN\n\n",
    "GET /failing/a?zauthtoken=TOKEN HTTP/1.1\r\nHost: HOST\r\nCookie : T=TOKEN\r\n\r\n",
    "GET /failing/a HTTP/1.1\r\nHost: HOST\r\nCoo\x01kie: T=TOKEN\r\n\r\n",
    "GET /failing/a?x=%zz&token=TOKEN HTTP/1.1\r\nHost: HOST\r\nX: \x01\r\nAuthorization: Bearer TOKEN\r\n\r\n",
    "GET http://a:TOKEN@HOST/failing/a?token=TOKEN HTTP/1.1\r\nHost: HOST\r\n\r\n",
    "GET /failing/a?token=TOKEN HTTP/7.3\r\nHost: HOST\r\nCookie: T=TOKEN\r\n\r\n",
    "GET /failing/a?token=TOKEN HTTP/1.1\r\nHost: HOST\r\nContent-Length: TOKEN\r\n\r\n",
    "GET /failing/a?token=TOKEN HTTP/1.1\r\nHost: HOST\r\nTransfer-Encoding: TOKEN\r\n\r\n",
    "CONNECT HOST:443 HTTP/1.1\r\nHost: HOST\r\nProxy-Authorization: Basic TOKEN\r\n\r\n",
    "AUTH LOGIN TOKEN\r\nPASS TOKEN\r\n\r\n",
];

#[test]
fn no_failure_shows_a_secret() -> Result<()> {
    Stage::run(|stage| {
        let (town, at) = (
            Town::build(stage, people())?,
            SocketAddrV4::new(SERVER_IP, stage.port()?),
        );
        let _server = Fake::start(at, None, fail)?;
        let locations = format!(
            "groups:\n  failing: {{servers: [\"{at}\"]}}\nlocations:\n- {{prefix: /failing/, group: failing}}\n"
        );
        let file = stage.file("failing.yaml", locations)?;
        let (mut node, mut directory) = (town.node(), town.directory());
        node.web = vec![("locations".to_owned(), portico_tests::config::quote(&file))];
        directory.config("zimbraReverseProxyMailMode", "both");
        secrets::plant([TOKEN.as_bytes().to_vec()]);
        // Everything that anybody would say.
        let env = [("RUST_LOG", "trace,pingora_core=trace,pingora_proxy=trace")];
        let portico = Portico::start_in(stage, &node, &directory, &env)?;
        let mut scene = Scene { stage, town, portico };
        servers_that_fail(&scene)?;
        heads_that_do_not_parse(&scene)?;
        let output = scene.portico.output();
        ensure!(
            output.contains("the answer was broken off"),
            "no failure is told of:\n{output}"
        );
        ensure!(output.contains("buf: ***"), "no head is told of:\n{output}");
        scene.end()
    })
}

/// Reads a head and does what its path says.
fn fail(peer: &mut Peer) -> Result<()> {
    let line = peer.line()?;
    while !peer.line()?.is_empty() {}
    let kind = FAILURES.iter().find(|(kind, _)| line.contains(kind));
    kind.map_or(Ok(()), |(_, answer)| peer.send(answer.replace("TOKEN", TOKEN)))
}

fn servers_that_fail(scene: &Scene) -> Result<()> {
    for (kind, _) in FAILURES {
        let (before, head) = (scene.portico.access_log().lines().count(), head_for(kind));
        let mut clear = Wire::clear(scene.town.endpoints.http)?;
        clear.send(&head)?;
        let _ends_somehow = clear.rest();
        let mut tls = scene.tls(scene.town.endpoints.https, "mail.a.example")?;
        tls.send(&head)?;
        let _ends_somehow = tls.rest();
        until("both requests in the access log", Duration::from_secs(10), || {
            Ok((scene.portico.access_log().lines().count() >= before + 2).then_some(()))
        })?;
    }
    Ok(())
}

fn head_for(kind: &str) -> String {
    format!(
        "GET /failing/{kind};jsessionid={TOKEN}?zauthtoken={TOKEN}&password={TOKEN} HTTP/1.1\r\nHost: mail.a.example\r\n\
         Cookie: ZM_AUTH_TOKEN={TOKEN}\r\nAuthorization: Bearer {TOKEN}\r\nReferer: https://x/?token={TOKEN}\r\n\
         Connection: close\r\n\r\n"
    )
}

/// On every listener: where they belong, and where they are another protocol.
fn heads_that_do_not_parse(scene: &Scene) -> Result<()> {
    for head in HEADS {
        let head = head.replace("TOKEN", TOKEN).replace("HOST", "mail.a.example");
        for (address, ..) in scene.town.endpoints.each() {
            let mut wire = Wire::clear(address)?;
            // Some close before they have heard it all.
            let _sent = wire.send(&head);
            let _shut = wire.shut();
            let _ends_somehow = wire.rest();
        }
        let mut wire = scene.tls(scene.town.endpoints.https, "mail.a.example")?;
        let _sent = wire.send(&head);
        let _shut = wire.shut();
        let _ends_somehow = wire.rest();
    }
    Ok(())
}
