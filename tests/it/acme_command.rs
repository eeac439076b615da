//! `portico certificate`: an administrator orders at once, and sees before what would be ordered; and what becomes of
//! clients while certificates change.

use std::net::SocketAddrV4;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread;

use anyhow::{Context, Result, ensure};
use openssl::ssl::{SslConnector, SslMethod, SslVerifyMode};
use portico_tests::acme_authority::{AcmeAuthority, Resource};
use portico_tests::amount;
use portico_tests::config::{Directory, Node};
use portico_tests::town::{Endpoints, FRONT, Town};
use portico_tests::wire::Wire;
use serde_json::json;

use crate::acme::{DOMAIN, IMAP, MAIL, shown};
use crate::acme_strict::{play, served, told};
use crate::admin::{done, json, said};
use crate::moves::prov;
use crate::scene::{Scene, greeted};

/// Orders that the authority has heard of.
fn orders(authority: &AcmeAuthority) -> usize {
    let asked = authority.asked().into_iter();
    let orders = asked.filter(|asked| asked.resource == Resource::NewOrder && asked.answer != "400 badNonce");
    orders.count()
}

#[test]
fn an_administrator_orders_at_once_and_sees_before_what_would_be_ordered() -> Result<()> {
    let limit = |_: &Town, authority: &AcmeAuthority, _: &mut Node, directory: &mut Directory| {
        authority.behave(|behaviour| behaviour.limit = Some((Resource::NewOrder, 100_000)));
        let entry = directory.domain("e.example");
        entry.insert("zimbraVirtualHostname".into(), ["mail.e.example"].into());
    };
    play(&[MAIL, IMAP, "*.d.example"], limit, |scene, authority| {
        told(scene, "rateLimited")?;
        let before = orders(authority);
        let dry = json(&scene.portico, &["certificate", "request", DOMAIN, "--dry-run"])?;
        assert_eq!(
            (&dry["state"], &dry["why"], &dry["domain"]),
            (&json!("dry run"), &json!(null), &json!(DOMAIN))
        );
        let names = dry["names"].as_array().context("no names")?;
        assert_eq!(names.iter().map(|name| &name["name"]).collect::<Vec<_>>(), [IMAP, MAIL]);
        ensure!(
            names.iter().all(|name| name["why"].is_string()),
            "nobody knows them: {dry}"
        );
        assert_eq!(dry["left_out"][0]["name"], "*.d.example");
        let at = scene.town.endpoints.http.to_string();
        let challenge = &dry["challenges"][0];
        ensure!(
            challenge["kind"] == "http-01" && challenge["answered_at"].to_string().contains(&at),
            "{dry}"
        );
        let text = done(&scene.portico, &["certificate", "renew", MAIL, "--dry-run"])?;
        for part in [
            "nothing was ordered",
            "not for *.d.example: ",
            "by http-01, answered at ",
        ] {
            ensure!(text.contains(part), "{part}: {text}");
        }
        // What is refused is said, and costs nothing either.
        for (name, why) in [
            ("e.example", "portico prov modifyDomain e.example porticoAcme on"),
            ("nobody.example", "no domain and no virtual host name is nobody.example"),
        ] {
            let refused = said(&scene.portico, &["certificate", "request", name])?;
            ensure!(refused.code == 1 && refused.err.contains(why), "{}", refused.err);
        }
        assert_eq!(orders(authority), before, "a dry run orders nothing");

        // The pause of the authority has not passed, and it still refuses.
        let failed = said(&scene.portico, &["certificate", "request", DOMAIN])?;
        ensure!(
            failed.code == 1 && failed.err.contains("rateLimited"),
            "{} {}",
            failed.out,
            failed.err
        );
        assert_eq!(orders(authority), before + 1);
        authority.behave(|behaviour| behaviour.limit = None);
        let text = done(&scene.portico, &["certificate", "request", DOMAIN])?;
        ensure!(text.contains("a new certificate is in force"), "{text}");
        served(scene, &[MAIL, IMAP])?;
        let again = said(&scene.portico, &["certificate", "request", DOMAIN])?;
        ensure!(
            again.code == 1 && again.err.contains("is good for all of its names"),
            "{}",
            again.err
        );
        assert_eq!(authority.issued().len(), 1);
        let first = shown(scene.town.endpoints.https, MAIL)?.to_der()?;
        let renewed = json(&scene.portico, &["certificate", "renew", IMAP])?;
        assert_eq!(renewed["state"], "issued", "{renewed}");
        assert_eq!(authority.issued().len(), 2);
        let second = shown(scene.town.endpoints.imaps, MAIL)?.to_der()?;
        ensure!(first != second, "the new one is in force when the command ends");
        scene
            .portico
            .record(&[("event", "admin"), ("act", "domain d.example: certificate renewed")])?;
        // One that fails takes nothing away.
        authority.behave(|behaviour| behaviour.limit = Some((Resource::NewOrder, 100_000)));
        ensure!(said(&scene.portico, &["certificate", "renew", DOMAIN])?.code == 1);
        assert_eq!(shown(scene.town.endpoints.pop3s, MAIL)?.to_der()?, second);
        Ok(())
    })
}

/// Clients that come while certificates change.
struct Busy {
    front: Endpoints,
    login: String,
    stop: AtomicBool,
    logins: AtomicUsize,
    requests: AtomicUsize,
}

/// A connection whose server may be anybody: its certificate changes.
fn connect(to: SocketAddrV4, name: &str) -> Result<Wire> {
    let mut tls = SslConnector::builder(SslMethod::tls_client())?;
    tls.set_verify(SslVerifyMode::NONE);
    Wire::clear(to)?.start_tls_any_name(&tls.build(), name)
}

impl Busy {
    fn log_in(&self, name: &str) -> Result<Wire> {
        let mut wire = greeted(connect(self.front.imaps, name)?, "* OK")?;
        wire.imap_ok(&self.login)?;
        Ok(wire)
    }

    fn log_in_again_and_again(&self) -> Result<()> {
        while !self.stop.load(Ordering::SeqCst) {
            for name in [MAIL, FRONT] {
                self.log_in(name)?.imap_ok("z LOGOUT")?;
                self.logins.fetch_add(1, Ordering::SeqCst);
            }
        }
        Ok(())
    }

    fn request_again_and_again(&self) -> Result<()> {
        while !self.stop.load(Ordering::SeqCst) {
            for name in [MAIL, FRONT] {
                let mut wire = connect(self.front.https, name)?;
                wire.send(format!(
                    "GET /echo HTTP/1.1\r\nHost: {name}\r\nConnection: close\r\n\r\n"
                ))?;
                let status = wire.line()?;
                ensure!(status.starts_with("HTTP/1.1 200"), "{status}");
                wire.rest()?;
                self.requests.fetch_add(1, Ordering::SeqCst);
            }
        }
        Ok(())
    }
}

/// Certificates of one domain come from the authority, those of another one from `portico prov`, again and again.
#[test]
fn certificates_change_and_no_client_notices() -> Result<()> {
    let (count, rounds) = (amount("PORTICO_SESSIONS", 100), amount("PORTICO_CERTIFICATES", 5));
    let usual = |_: &Town, _: &AcmeAuthority, _: &mut Node, _: &mut Directory| {};
    play(&[MAIL], usual, |scene, authority| {
        served(scene, &[MAIL])?;
        let person = scene.town.person("alice")?;
        let busy = Busy {
            front: scene.town.endpoints,
            login: format!("a LOGIN {} {}", person.name, person.password()),
            stop: AtomicBool::new(false),
            logins: AtomicUsize::new(0),
            requests: AtomicUsize::new(0),
        };
        let names = [MAIL, FRONT].into_iter().cycle().take(count);
        let mut sessions = names.map(|name| busy.log_in(name)).collect::<Result<Vec<_>>>()?;
        let mut changed = thread::scope(|threads| {
            let clients = [
                threads.spawn(|| busy.log_in_again_and_again()),
                threads.spawn(|| busy.request_again_and_again()),
            ];
            let changed = change(scene, rounds, &mut sessions);
            busy.stop.store(true, Ordering::SeqCst);
            for client in clients {
                client.join().expect("a client does not panic")?;
            }
            changed
        })?;
        changed.dedup();
        assert_eq!((changed.len(), authority.issued().len()), (rounds, rounds + 1));
        for wire in &mut sessions {
            wire.imap_ok("z NOOP")?;
        }
        let counts = [&busy.logins, &busy.requests].map(|count| count.load(Ordering::SeqCst));
        println!("{count} sessions, {rounds} certificates of each kind, {counts:?} logins and requests, none failed");
        ensure!(counts.iter().all(|count| *count > rounds), "{counts:?}");
        Ok(())
    })
}

/// Gives two domains new certificates, so often. Returns what the first one showed.
fn change(scene: &Scene, rounds: usize, sessions: &mut [Wire]) -> Result<Vec<Vec<u8>>> {
    let mut shown_since = Vec::new();
    for _ in 0..rounds {
        done(&scene.portico, &["certificate", "renew", DOMAIN])?;
        shown_since.push(shown(scene.town.endpoints.imaps, MAIL)?.to_der()?);
        let pair = scene.town.ca.server(&["mail.a.example"])?;
        let words = pair.words_of_domain("a.example");
        prov(&scene.portico, &words.each_ref().map(String::as_str))?;
        for wire in &mut *sessions {
            wire.imap_ok("n NOOP")?;
        }
    }
    Ok(shown_since)
}
