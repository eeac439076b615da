//! TLS-ALPN-01: the certificate of a challenge is shown to an authority, and to nobody else.

use std::io::{self, Read, Write};
use std::net::{SocketAddrV4, TcpStream};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, ensure};
use openssl::ssl::{SslConnector, SslMethod, SslVerifyMode};
use portico_tests::acme_authority::{ACME_TLS, AcmeAuthority, ChallengeKind, ISSUER, Resource, acme_tls};
use portico_tests::config::{Directory, Node};
use portico_tests::haproxy::{Forward, HaProxy, Header};
use portico_tests::pebble::Pebble;
use portico_tests::town::{BALANCER, Town};
use portico_tests::until;

use crate::acme::{DOMAIN, IMAP, MAIL, PATIENCE, names_of, play_answering, served as served_by_pebble, shown};
use crate::acme_strict::{add_to_acme, play, served, told};
use crate::scene::Scene;

/// What the certificate of a challenge says to be.
const CHALLENGE: &str = "ACME challenge";

#[test]
fn the_first_challenge_that_the_authority_offers_is_answered() -> Result<()> {
    use ChallengeKind::{Dns01, Http01, TlsAlpn01};
    for (answered, offered, chosen) in [
        (
            "[tls-alpn-01, http-01]",
            &[Dns01, Http01, TlsAlpn01][..],
            Some(TlsAlpn01),
        ),
        ("[http-01, tls-alpn-01]", &[Dns01, Http01, TlsAlpn01], Some(Http01)),
        ("[http-01, tls-alpn-01]", &[Dns01, TlsAlpn01], Some(TlsAlpn01)),
        ("[tls-alpn-01, http-01]", &[Dns01, Http01], Some(Http01)),
        ("[tls-alpn-01, http-01]", &[Dns01], None),
    ] {
        let answer = |_: &Town, authority: &AcmeAuthority, node: &mut Node, _: &mut Directory| {
            authority.behave(|behaviour| behaviour.offers = offered.to_vec());
            add_to_acme(node, &format!("challenges: {answered}"));
        };
        play(&[MAIL, IMAP], answer, |scene, authority| {
            let Some(chosen) = chosen else {
                return told(scene, "the authority offers none of acme.challenges for it");
            };
            served(scene, &[MAIL, IMAP])?;
            let asked = authority.asked().into_iter();
            let places: Vec<String> = asked
                .filter(|asked| asked.resource == Resource::Challenge && asked.answer == "200")
                .map(|asked| asked.place)
                .collect();
            assert_eq!(places.len(), 2, "{places:?}");
            ensure!(places.iter().all(|place| place.ends_with(chosen.word())), "{places:?}");
            Ok(())
        })
        .with_context(|| format!("{answered} {offered:?}"))?;
    }
    Ok(())
}

/// What OpenSSL's own client says of a handshake in which it offers these protocols.
fn s_client(to: SocketAddrV4, name: &str, alpn: Option<&str>) -> Result<String> {
    let to = to.to_string();
    let mut args = vec!["s_client", "-connect", &to, "-servername", name];
    args.extend(alpn.iter().flat_map(|alpn| ["-alpn", alpn]));
    let out = Command::new("openssl").args(args).stdin(Stdio::null()).output()?;
    Ok([out.stdout, out.stderr]
        .map(|text| String::from_utf8_lossy(&text).into_owned())
        .concat())
}

/// The usual node, which answers in handshakes only, and an authority that does not look yet.
fn play_waiting(test: impl FnOnce(&mut Scene, &AcmeAuthority) -> Result<()>) -> Result<()> {
    let wait = |_: &Town, authority: &AcmeAuthority, node: &mut Node, _: &mut Directory| {
        authority.behave(|behaviour| behaviour.looks_later = true);
        add_to_acme(node, "challenges: [tls-alpn-01]");
    };
    play(&[MAIL], wait, |scene, authority| {
        until("an open challenge", PATIENCE, || {
            Ok((authority.count(Resource::Challenge) > 0).then_some(()))
        })?;
        test(scene, authority)?;
        authority.behave(|behaviour| behaviour.looks_later = false);
        served(scene, &[MAIL])
    })
}

#[test]
fn only_a_client_that_speaks_nothing_else_sees_the_certificate_of_a_challenge() -> Result<()> {
    play_waiting(|scene, _| {
        let endpoints = scene.town.endpoints;
        let https = endpoints.https;
        for (to, name, alpn, is_shown) in [
            (https, MAIL, Some("acme-tls/1"), true),
            (https, "MAIL.d.example", Some("acme-tls/1"), true),
            (https, MAIL, None, false),
            (https, MAIL, Some("h2"), false),
            (https, MAIL, Some("h2,acme-tls/1"), false),
            (https, MAIL, Some("acme-tls/1,http/1.1"), false),
            (https, "mail.a.example", Some("acme-tls/1"), false),
            (endpoints.imaps, MAIL, Some("acme-tls/1"), false),
            (endpoints.pop3s, MAIL, Some("acme-tls/1"), false),
        ] {
            let said = s_client(to, name, alpn)?;
            assert_eq!(said.contains(CHALLENGE), is_shown, "{to} {name} {alpn:?}: {said}");
            assert_eq!(said.contains("ALPN protocol: acme-tls/1"), is_shown, "{said}");
        }
        // Nothing is spoken in it.
        let mut stream = acme_tls(MAIL, https.port())?;
        let _it_may_have_ended = stream.write(b"GET / HTTP/1.1\r\nHost: mail.d.example\r\n\r\n");
        let mut answer = Vec::new();
        let _how_it_ends = stream.read_to_end(&mut answer);
        ensure!(answer.is_empty(), "{}", String::from_utf8_lossy(&answer));
        Ok(())
    })
}

#[test]
fn behind_an_order_no_challenge_is_left() -> Result<()> {
    let answer = |_: &Town, _: &AcmeAuthority, node: &mut Node, _: &mut Directory| {
        add_to_acme(node, "challenges: [tls-alpn-01]");
    };
    play(&[MAIL], answer, |scene, _| {
        served(scene, &[MAIL])?;
        let said = s_client(scene.town.endpoints.https, MAIL, Some("acme-tls/1"))?;
        ensure!(
            !said.contains(CHALLENGE) && said.contains("alert no application protocol"),
            "{said}"
        );
        Ok(())
    })
}

/// A client whose bytes arrive one by one.
#[derive(Debug)]
struct Trickle(TcpStream);

impl Read for Trickle {
    fn read(&mut self, bytes: &mut [u8]) -> io::Result<usize> {
        self.0.read(bytes)
    }
}

impl Write for Trickle {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.write(&bytes[..bytes.len().min(1)])
    }

    fn flush(&mut self) -> io::Result<()> {
        self.0.flush()
    }
}

#[test]
fn a_first_message_in_many_pieces_is_waited_for() -> Result<()> {
    play_waiting(|scene, _| {
        let https = scene.town.endpoints.https;
        for (alpn, is_shown) in [(ACME_TLS, true), (b"h2", false)] {
            let mut tls = SslConnector::builder(SslMethod::tls_client())?;
            tls.set_verify(SslVerifyMode::NONE);
            tls.set_alpn_protos(&[&[alpn.len() as u8], alpn].concat())?;
            let tcp = TcpStream::connect(https)?;
            tcp.set_nodelay(true)?;
            tcp.set_read_timeout(Some(PATIENCE))?;
            let tls = tls.build().configure()?.verify_hostname(false);
            let stream = tls
                .connect(MAIL, Trickle(tcp))
                .map_err(|error| anyhow::anyhow!("{error}"))?;
            let certificate = stream.ssl().peer_certificate().context("no certificate")?;
            let issuer = format!("{:?}", certificate.issuer_name());
            assert_eq!(issuer.contains(CHALLENGE), is_shown, "{issuer}");
        }
        // One that ends in the middle is not waited for.
        let mut tcp = TcpStream::connect(https)?;
        tcp.write_all(b"\x16\x03\x01\x02")?;
        tcp.shutdown(std::net::Shutdown::Write)?;
        tcp.set_read_timeout(Some(PATIENCE))?;
        let begun = std::time::Instant::now();
        let _how_it_ends = tcp.read(&mut [0]);
        ensure!(
            begun.elapsed() < std::time::Duration::from_secs(5),
            "{:?}",
            begun.elapsed()
        );
        Ok(())
    })
}

/// The authority comes through HAProxy, which sends PROXY headers, to a domain that wants certificates of clients.
#[test]
fn an_authority_comes_through_a_balancer_and_needs_no_certificate_of_its_own() -> Result<()> {
    let wait = |town: &Town, authority: &AcmeAuthority, node: &mut Node, directory: &mut Directory| {
        authority.behave(|behaviour| behaviour.looks_later = true);
        add_to_acme(node, "challenges: [tls-alpn-01]");
        let entry = directory.domain(DOMAIN);
        entry.insert("zimbraReverseProxyClientCertMode".into(), "on".into());
        entry.insert("zimbraReverseProxyClientCertCA".into(), town.ca.file().as_path().into());
    };
    play(&[MAIL], wait, |scene, authority| {
        let from = SocketAddrV4::new(*scene.town.endpoints.https.ip(), scene.stage.port()?);
        let forward = Forward {
            from,
            to: scene.town.behind.https,
            header: Header::V2,
        };
        let _haproxy = HaProxy::start(scene.stage, BALANCER, &[forward])?;
        authority.behave(|behaviour| {
            behaviour.ports.tls = from.port();
            behaviour.looks_later = false;
        });
        until("its certificate", PATIENCE, || {
            let certificate = shown(scene.town.endpoints.imaps, MAIL)?;
            let is_its = format!("{:?}", certificate.issuer_name()).contains(ISSUER);
            Ok((is_its && names_of(&certificate).contains(MAIL)).then_some(()))
        })?;
        let said = s_client(scene.town.endpoints.https, MAIL, None)?;
        ensure!(said.contains("Acceptable client certificate CA names"), "{said}");
        Ok(())
    })
}

#[test]
fn a_real_authority_finds_the_certificate_of_a_challenge() -> Result<()> {
    let usual = |_: &Town, _: &mut Pebble, _: &mut Directory| Ok(());
    play_answering("[tls-alpn-01]", &[MAIL, IMAP], usual, |scene, _| {
        served_by_pebble(scene, &[MAIL, IMAP]).map(drop)
    })
}
