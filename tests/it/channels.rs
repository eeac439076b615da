//! The channels of mail at their edges: names and addresses, sessions that were begun elsewhere, old versions of TLS,
//! ends that come early.

use std::net::{Ipv4Addr, SocketAddrV4};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use portico_tests::Stage;
use portico_tests::fake::Fake;
use portico_tests::portico::Portico;
use portico_tests::s_client::s_client;
use portico_tests::town::{FRONT, Town, people};
use portico_tests::wire::Wire;

use crate::scene::{Scene, play, play_with};

/// The story: domain b has an address and a certificate, domain d a name and no certificate; at b's address, d's name
/// was shown b's certificate.
#[test]
fn a_name_is_not_shown_the_certificate_of_the_address() -> Result<()> {
    play_with(
        people(),
        |_, _, directory| {
            let here = directory.domain("b.example");
            here.insert("zimbraVirtualIPAddress".into(), "127.0.0.1".into());
            let bare = directory.domain("d.example");
            bare.insert(
                "zimbraVirtualHostname".into(),
                ["mail.d.example", "*.wild.d.example"].into(),
            );
            Ok(())
        },
        |scene| {
            let endpoints = scene.town.endpoints;
            for (asked, shown) in [
                ("mail.d.example", FRONT),
                ("x.wild.d.example", FRONT),
                ("mail.a.example", "mail.a.example"),
                ("anything.c.example", "*.c.example"),
                ("nobodys.example", "mail.b.example"),
            ] {
                for endpoint in [endpoints.imaps, endpoints.pop3s, endpoints.https] {
                    let wire = scene.tls(endpoint, asked)?;
                    assert_eq!(wire.certificate_name()?, shown, "{asked} at {endpoint}");
                }
            }
            Ok(())
        },
    )
}

/// The story: a TLS 1.2 session that was begun for one name and resumed for another brought the first name along, and
/// a login without a domain went to the first one's domain (RFC 6066 section 3).
#[test]
fn no_session_leads_a_bare_name_to_another_domain() -> Result<()> {
    play(|scene| {
        let carol = scene.town.person("carol")?;
        ensure!(carol.name == "carol@b.example", "{}", carol.name);
        let login = format!("USER carol\r\nPASS {}\r\nQUIT\r\n", carol.password());
        let endpoint = scene.town.endpoints.pop3s;
        for version in ["-tls1_2", "-tls1_3"] {
            let file = scene.stage.path().join(format!("session{version}"));
            let file = file.to_str().context("path")?;
            s_client(endpoint, "mail.a.example", "QUIT\r\n", &[version, "-sess_out", file])?;
            let again = s_client(endpoint, "mail.a.example", "QUIT\r\n", &[version, "-sess_in", file])?;
            assert!(
                again.contains("Reused, TLS"),
                "{version}: it is good where it began: {again}"
            );
            let printed = s_client(endpoint, "mail.b.example", &login, &[version, "-sess_in", file])?;
            assert!(!printed.contains("Reused, TLS"), "{version}: {printed}");
            let answers = printed.lines().filter(|line| line.starts_with("+OK")).count();
            assert!(answers >= 3 && !printed.contains("-ERR"), "{version}: {printed}");
        }
        scene
            .portico
            .record(&[
                ("event", "login"),
                ("user", "carol"),
                ("account", "carol@b.example"),
                ("outcome", "ok"),
            ])
            .map(drop)
    })
}

const OLD: &str = "old.example.test";
const OLD_IP: Ipv4Addr = Ipv4Addr::new(127, 0, 0, 6);

/// RFC 8996: TLS 1.0 and 1.1 must not be used. Nothing is said to such a server, for mail and web alike.
#[test]
fn a_server_with_old_tls_is_refused() -> Result<()> {
    Stage::run(|stage| {
        let town = Town::build(stage, people())?;
        let pair = town.ca.rsa_server(&[OLD, "127.0.0.6"])?;
        let at = |port| SocketAddrV4::new(OLD_IP, port);
        let (mail, web) = (at(stage.port()?), at(stage.port()?));
        let imap = Fake::start(mail, Some(pair.old_acceptor()?), |peer| peer.imap_login("OK welcome"))?;
        let https = Fake::start(web, Some(pair.old_acceptor()?), |peer| {
            peer.line()?;
            peer.send("HTTP/1.1 200 OK\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")
        })?;
        let mut directory = town.directory();
        let entry = directory.store(OLD, OLD_IP);
        entry.insert("zimbraImapSSLBindPort".into(), mail.port().into());
        entry.insert("zimbraMailSSLPort".into(), web.port().into());
        let alice = directory.account("alice@a.example");
        alice.insert("zimbraMailHost".into(), OLD.into());
        let portico = Portico::start(stage, &town.node(), &directory, "debug")?;
        let mut scene = Scene { stage, town, portico };

        let mut wire = scene.imaps()?;
        let answer = wire.imap("a1 LOGIN alice@a.example alice-c4n4ry-one")?;
        ensure!(
            answer
                .last()
                .is_some_and(|line| line.starts_with("a1 NO [UNAVAILABLE]")),
            "{answer:?}"
        );
        let mut wire = Wire::tls(
            scene.town.endpoints.https,
            &scene.town.ca.connector(&["http/1.1"])?,
            FRONT,
        )?;
        wire.send(format!(
            "GET /home/alice@a.example/inbox HTTP/1.1\r\nHost: {FRONT}\r\nConnection: close\r\n\r\n"
        ))?;
        let status = wire.line()?;
        ensure!(status.contains(" 502 ") || status.contains(" 503 "), "{status}");
        for fake in [&imap, &https] {
            ensure!(fake.connections() > 0, "nobody asked it");
            ensure!(fake.heard().is_empty(), "it heard {:?}", fake.heard());
        }
        drop(scene.login("bob")?);
        scene.end()
    })
}

/// The story: scripts send all their commands and their end, and wait for the answers. A TLS server that hears of the
/// end stops in the middle of them: 2 of 60 got all of them.
#[test]
fn a_half_closed_client_gets_all_answers() -> Result<()> {
    const COMMANDS: usize = 300;
    play(|scene| {
        for round in 0..4 {
            let mut wire = scene.login("alice")?;
            let commands: String = (0..COMMANDS).map(|at| format!("c{at} LIST \"\" \"*\"\r\n")).collect();
            wire.send(commands)?;
            wire.shut()?;
            wire.patience(Duration::from_secs(20))?;
            let rest = String::from_utf8(wire.rest()?)?;
            let answered = rest
                .lines()
                .filter(|line| line.starts_with('c') && line.contains(" OK "))
                .count();
            assert_eq!(
                answered,
                COMMANDS,
                "round {round}: {}",
                rest.lines().last().unwrap_or_default()
            );
        }
        Ok(())
    })
}
