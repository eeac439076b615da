//! Names that are looked at in the DNS before an authority is asked for them.

use std::io::{Read, Write};
use std::net::{Ipv4Addr, SocketAddrV4, TcpListener};

use anyhow::{Result, ensure};
use portico_tests::Stage;
use portico_tests::acme_authority::{AcmeAuthority, Resource};
use portico_tests::bind::{Bind, Zone};
use portico_tests::config::{Directory, Node};
use portico_tests::town::Town;

use crate::acme::{DOMAIN, MAIL, orders_of};
use crate::acme_strict::{play, served, told};
use crate::admin::json;

/// It stands in the DNS, without an address.
const BARE: &str = "bare.d.example";
/// Other authorities may issue for it.
const OTHERS: &str = "others.d.example";
/// Its own authorities are those of the zone, among them this one.
const OURS: &str = "ours.below.d.example";
/// The name server does not want to say anything about it.
const UNSAID: &str = "mail.unserved.test";

const ZONE: Zone<'_> = Zone {
    name: DOMAIN,
    records: "@ CAA 0 issue \"ca.example\"\nbare TXT x\nothers A 127.0.0.1\nothers CAA 0 issue \"other.example\"",
    changes: false,
};

/// Has names looked at by this name server, with more keys of `acme` behind a comma.
fn look_at_names(node: &mut Node, bind: &Bind, more: &str) {
    for (_, section) in node.more.iter_mut().filter(|(name, _)| name == "acme") {
        let with = format!("resolvers: ['{}']{more}", bind.address());
        *section = section.replace("check_names: false", &with);
    }
}

#[test]
fn a_name_that_cannot_be_had_costs_no_order_and_one_of_which_nothing_is_known_is_asked_for() -> Result<()> {
    Stage::run(|stage| {
        let bind = Bind::start(stage, &[ZONE])?;
        let look = |_: &Town, authority: &AcmeAuthority, node: &mut Node, _: &mut Directory| {
            authority.behave(|behaviour| behaviour.caa_identities = vec!["CA.example".to_owned()]);
            look_at_names(node, &bind, "");
        };
        play(&[MAIL, BARE, OTHERS, OURS, UNSAID], look, |scene, authority| {
            served(scene, &[MAIL, OURS, UNSAID])?;
            told(scene, "it has no address in the DNS")?;
            told(
                scene,
                "the CAA record of others.d.example allows other.example and not this authority",
            )?;
            let orders = orders_of(scene)?;
            assert_eq!(orders["names"].as_array().map(Vec::len), Some(2), "{orders}");
            let asked = authority.asked().into_iter();
            let asked = asked.filter(|asked| asked.resource == Resource::NewOrder && asked.answer != "400 badNonce");
            ensure!(asked.count() == 1, "a name that is left out costs an order");
            Ok(())
        })
    })
}

/// Somebody else has it.
const STRANGERS: &str = "strangers.d.example";
/// Nobody is there.
const DESERTED: &str = "deserted.d.example";
const AROUND: Zone<'_> = Zone {
    name: DOMAIN,
    records: "strangers A 127.0.0.77\ndeserted A 127.0.0.78",
    changes: false,
};

/// Answers 404 to everybody, at this address, as long as the test lasts.
fn stranger(at: SocketAddrV4) -> Result<()> {
    let listener = TcpListener::bind(at)?;
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let Ok(mut stream) = stream else { return };
            let _head = stream.read(&mut [0; 1024]);
            let _gone = stream.write_all(b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n");
        }
    });
    Ok(())
}

#[test]
fn a_name_that_leads_elsewhere_costs_no_order() -> Result<()> {
    for kind in ["http-01", "tls-alpn-01"] {
        Stage::run(|stage| {
            let bind = Bind::start(stage, &[AROUND])?;
            let look = |town: &Town, _: &AcmeAuthority, node: &mut Node, _: &mut Directory| {
                let (http, tls) = (town.endpoints.http.port(), town.endpoints.https.port());
                let more = format!(", challenges: [{kind}], self_request: {{http_port: {http}, tls_port: {tls}}}");
                look_at_names(node, &bind, &more);
            };
            play(&[MAIL, STRANGERS, DESERTED, UNSAID], look, |scene, authority| {
                let endpoints = scene.town.endpoints;
                let port = if kind == "http-01" {
                    endpoints.http
                } else {
                    endpoints.https
                }
                .port();
                let elsewhere = Ipv4Addr::new(127, 0, 0, 77);
                stranger(SocketAddrV4::new(elsewhere, port))?;
                // It may have been asked before somebody was there.
                scene.portico.reload()?;
                served(scene, &[MAIL, UNSAID])?;
                let answer = if kind == "http-01" {
                    "it answers 404"
                } else {
                    "its handshake fails"
                };
                told(scene, &format!("127.0.0.77:{port} is not this Portico: {answer}"))?;
                told(scene, &format!("127.0.0.78:{port} cannot be reached from here"))?;
                let asked = authority.asked().into_iter();
                let asked =
                    asked.filter(|asked| asked.resource == Resource::NewOrder && asked.answer != "400 badNonce");
                ensure!(asked.count() == 1, "a name that leads elsewhere costs an order");

                let dry = json(&scene.portico, &["certificate", "renew", DOMAIN, "--dry-run"])?;
                let names = dry["names"].as_array().cloned().unwrap_or_default();
                let leads = |name: &str| {
                    names
                        .iter()
                        .find(|one| one["name"] == name)
                        .map(|one| one["leads_here"].clone())
                };
                assert_eq!(leads(MAIL), Some(true.into()), "{dry}");
                assert_eq!(leads(STRANGERS), Some(false.into()), "{dry}");
                Ok(())
            })
        })?;
    }
    Ok(())
}
