//! Web logins that do not go as they should: the client hangs up, the server is dead, the route is wrong.

use std::cell::OnceCell;
use std::net::Ipv4Addr;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use portico_tests::fake::{Fake, Peer};
use portico_tests::memcached::Memcached;
use portico_tests::until;

use crate::scene::{Scene, play_before, soap_login};

const SOON: Duration = Duration::from_secs(20);
const SOAP: &str = "/service/soap/AuthRequest";
const DAV: &str = "/dav/alice@a.example/Calendar/";

/// Reads a request's head, and returns whether its client waits for a 100 (RFC 9110 §10.1.1).
fn head(peer: &mut Peer) -> Result<bool> {
    let mut expects = false;
    loop {
        match peer.line()? {
            line if line.is_empty() => return Ok(expects),
            line => expects |= line.to_ascii_lowercase().starts_with("expect: 100-continue"),
        }
    }
}

/// Right passwords are answered at once, so who guesses need not wait for the others: such guesses left no trace.
#[test]
fn a_guess_whose_client_hangs_up_is_recorded() -> Result<()> {
    play_before(
        Ipv4Addr::new(127, 0, 0, 10),
        |_, at| {
            Fake::start(at, None, |peer| {
                if head(peer)? {
                    peer.send("HTTP/1.1 100 Continue\r\n\r\n")?;
                }
                peer.freeze()
            })
        },
        |_, _, _| Ok(()),
        |scene, fake| {
            let ghost = soap_login("ghost@a.example", "wr0ng-c4n4ry");
            let hangs_up = |path: &str, args: &[&str]| {
                let before = fake.connections();
                let left = scene.https(path, &[args, &["--max-time", "2"]].concat());
                ensure!(left.is_err() && fake.connections() > before, "the server was not asked");
                Ok(())
            };
            for version in ["--http1.1", "--http2"] {
                hangs_up(SOAP, &[version, "-d", &ghost])?;
                hangs_up(
                    "/dav/ghost@a.example/",
                    &[version, "-u", "ghost@a.example:wr0ng-c4n4ry"],
                )?;
            }
            // The server has answered, but not finally.
            hangs_up(SOAP, &["--http1.1", "-H", "Expect: 100-continue", "-d", &ghost])?;
            has_records(scene, "SOAP", "client_gone", 3)?;
            has_records(scene, "BASIC", "client_gone", 2)?;
            let log = scene.portico.dir().join("audit.log");
            let filter = Path::new(env!("CARGO_MANIFEST_DIR")).join("../conf/fail2ban/filter.d/portico.conf");
            // A phone leaves requests with good Basic credentials behind all day long.
            let paths = [log.to_str().context("path")?, filter.to_str().context("path")?];
            let found = scene.run("fail2ban-regex", &paths)?;
            ensure!(found.contains(" 3 matched"), "{found}");
            Ok(())
        },
    )
}

/// A server that cannot be reached has answered nothing, but the attempt was made.
#[test]
fn a_login_at_a_dead_server_is_recorded() -> Result<()> {
    play_before(
        Ipv4Addr::new(127, 0, 0, 10),
        |_, _| Ok(()),
        |_, _, _| Ok(()),
        |scene, ()| {
            let answer = scene.https("/dav/ghost@a.example/", &["-u", "ghost@a.example:wr0ng-c4n4ry"])?;
            ensure!(answer.status() == "502", "{}", answer.head);
            has_records(scene, "BASIC", "upstream_down", 1)
        },
    )
}

fn has_records(scene: &Scene, mechanism: &str, outcome: &str, count: usize) -> Result<()> {
    let fields = [
        ("event", "web_login"),
        ("user", "ghost@a.example"),
        ("mechanism", mechanism),
        ("outcome", outcome),
    ];
    until(&format!("{count} of {mechanism} {outcome}"), SOON, || {
        Ok((scene.portico.count(&fields)? == count).then_some(()))
    })
}

/// Another proxy has written into memcached that Alice lives on a server that has never heard of her. Its 401 is the
/// answer, but the next login finds her own.
#[test]
fn a_wrong_route_is_cured_by_a_refused_login() -> Result<()> {
    let started = OnceCell::new();
    play_before(
        Ipv4Addr::new(127, 0, 0, 10),
        |_, at| {
            let fake = Fake::start(at, None, |peer| {
                head(peer)?;
                peer.send("HTTP/1.1 401 Unauthorized\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")
            })?;
            Ok((fake, at))
        },
        |stage, node, _| {
            let server = Memcached::start(stage)?;
            let servers = format!("{{memcached: {{servers: [\"{}\"]}}}}", server.address());
            node.more.push(("route_cache".to_owned(), servers));
            started.set(server).ok().context("one memcached")
        },
        |scene, (fake, at)| {
            let memcached = started.get().context("no memcached")?;
            let key = openssl::sha::sha256(b"route:proto=http;user=alice@a.example");
            let key: String = key.iter().map(|byte| format!("{byte:02x}")).collect();
            memcached.add(&key, &at.to_string())?;
            let credentials = format!("alice@a.example:{}", scene.town.person("alice")?.password());
            let login = || scene.https(DAV, &["-u", &credentials]);
            ensure!(login()?.status() == "401" && fake.connections() > 0, "not poisoned");
            until(
                "her own server",
                SOON,
                || Ok((login()?.status() == "200").then_some(())),
            )?;
            let own = scene.town.stores[0].web.http.to_string();
            until("the right route in memcached", SOON, || {
                Ok(memcached.get(&key)?.filter(|value| *value == own))
            })?;
            Ok(())
        },
    )
}
