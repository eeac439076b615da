//! Which certificate a client sees, by the name it asks for; and what is agreed by ALPN.

use std::net::SocketAddrV4;

use anyhow::{Context, Result};
use portico_tests::wire::Wire;

use crate::scene::{Scene, greeted, play};

const NAMES: [(&str, &str); 7] = [
    ("mail.a.example", "mail.a.example"),
    ("imap.a.example", "mail.a.example"),
    ("MAIL.B.example", "mail.b.example"),
    ("anything.c.example", "*.c.example"),
    ("mail.example.test", "mail.example.test"),
    ("unknown.example", "mail.example.test"),
    ("127.0.0.1", "mail.example.test"),
];

type Connect = fn(&Scene, &str) -> Result<Wire>;

#[test]
fn each_name_has_its_certificate_on_every_listener() -> Result<()> {
    let endpoints: [(&str, Connect); 5] = [
        ("HTTPS", |s, name| s.tls(s.town.endpoints.https, name)),
        ("IMAPS", |s, name| s.tls(s.town.endpoints.imaps, name)),
        ("POP3S", |s, name| s.tls(s.town.endpoints.pop3s, name)),
        ("STARTTLS", |s, name| {
            starttls(s, s.town.endpoints.imap, "* OK ", "s1 STARTTLS", "s1 OK", name)
        }),
        ("STLS", |s, name| {
            starttls(s, s.town.endpoints.pop3, "+OK", "STLS", "+OK", name)
        }),
    ];
    play(|scene| {
        for (endpoint, connect) in endpoints {
            for (asked, shown) in NAMES {
                let wire = connect(scene, asked).with_context(|| format!("{endpoint}, {asked}"))?;
                assert_eq!(wire.certificate_name()?, shown, "{endpoint}, {asked}");
            }
        }
        Ok(())
    })
}

fn starttls(
    scene: &Scene,
    endpoint: SocketAddrV4,
    greeting: &str,
    command: &str,
    ok: &str,
    name: &str,
) -> Result<Wire> {
    let mut wire = greeted(Wire::clear(endpoint)?, greeting)?;
    wire.say(command)?;
    let wire = greeted(wire, ok)?;
    wire.start_tls_any_name(&scene.town.ca.connector(&[])?, name)
}

#[test]
fn the_chain_verifies() -> Result<()> {
    play(|scene| {
        let tls = scene.town.ca.connector(&[])?;
        for (endpoint, name) in [
            (scene.town.endpoints.https, "mail.a.example"),
            (scene.town.endpoints.imaps, "x.c.example"),
        ] {
            Wire::tls(endpoint, &tls, name)?;
        }
        Wire::tls(scene.town.endpoints.pop3s, &tls, "127.0.0.1").map(drop)
    })
}

#[test]
fn alpn_is_agreed_or_refused() -> Result<()> {
    play(|scene| {
        let endpoints = scene.town.endpoints;
        let agreed = |endpoint, offered: &[&str]| -> Result<Option<String>> {
            Ok(Wire::clear(endpoint)?
                .start_tls_any_name(&scene.town.ca.connector(offered)?, "mail.a.example")?
                .alpn())
        };
        assert_eq!(agreed(endpoints.https, &["h2", "http/1.1"])?.as_deref(), Some("h2"));
        assert_eq!(agreed(endpoints.https, &["http/1.1"])?.as_deref(), Some("http/1.1"));
        assert_eq!(agreed(endpoints.imaps, &["imap"])?.as_deref(), Some("imap"));
        assert_eq!(agreed(endpoints.pop3s, &["pop3"])?.as_deref(), Some("pop3"));
        assert_eq!(agreed(endpoints.imaps, &[])?, None);
        // A browser that was lured to a mail port (ALPACA) is turned away in the handshake.
        assert!(agreed(endpoints.imaps, &["http/1.1"]).is_err());
        assert!(agreed(endpoints.pop3s, &["h2", "http/1.1"]).is_err());
        Ok(())
    })
}
