//! Certificates from an ACME authority, with pebble: a real one, which checks signatures, nonces and challenges.

use std::collections::BTreeSet;
use std::net::SocketAddrV4;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use openssl::hash::MessageDigest;
use openssl::ssl::{SslConnector, SslMethod, SslVerifyMode};
use openssl::x509::X509;
use portico_tests::certs::Pair;
use portico_tests::config::{Directory, Value};
use portico_tests::pebble::Pebble;
use portico_tests::portico::Portico;
use portico_tests::slapd::Slapd;
use portico_tests::town::{Town, people};
use portico_tests::wire::Wire;
use portico_tests::{Stage, until};
use serde_json::Value as Json;

use crate::admin::json;
use crate::scene::Scene;

/// How long an order may take, on a machine with other things to do.
pub(crate) const PATIENCE: Duration = Duration::from_secs(60);
/// The domain that has no certificate of the usual town.
pub(crate) const DOMAIN: &str = "d.example";
pub(crate) const MAIL: &str = "mail.d.example";
pub(crate) const IMAP: &str = "imap.d.example";
pub(crate) const BAD: &str = "bad.d.example";

/// Plays a test with a domain of these names, and an authority. `change` gets its entry.
fn play(
    names: &[&str],
    ldap: bool,
    change: impl FnOnce(&Town, &mut Pebble, &mut Directory) -> Result<()>,
    test: impl FnOnce(&mut Scene, &mut Pebble) -> Result<()>,
) -> Result<()> {
    play_with(names, ldap, "", change, test)
}

/// The same of a node that answers these challenges.
pub(crate) fn play_answering(
    challenges: &str,
    names: &[&str],
    change: impl FnOnce(&Town, &mut Pebble, &mut Directory) -> Result<()>,
    test: impl FnOnce(&mut Scene, &mut Pebble) -> Result<()>,
) -> Result<()> {
    play_with(names, false, &format!(", challenges: {challenges}"), change, test)
}

fn play_with(
    names: &[&str],
    ldap: bool,
    more: &str,
    change: impl FnOnce(&Town, &mut Pebble, &mut Directory) -> Result<()>,
    test: impl FnOnce(&mut Scene, &mut Pebble) -> Result<()>,
) -> Result<()> {
    Stage::run(|stage| {
        let town = Town::build(stage, people())?;
        let mut pebble = Pebble::start(stage, &town.ca, town.endpoints.http.port(), town.endpoints.https.port())?;
        let (mut node, mut directory) = (town.node(), town.directory());
        let key_file = stage.path().join("acme.key");
        node.more
            .push(acme_section(&pebble.directory_url(), &town, &key_file, more));
        let entry = directory.domain(DOMAIN);
        let names = names.iter().map(|name| (*name).to_owned()).collect();
        entry.insert("zimbraVirtualHostname".into(), Value::List(names));
        entry.insert("porticoAcme".into(), "on".into());
        change(&town, &mut pebble, &mut directory)?;
        let mut slapd = None;
        if ldap {
            let running = Slapd::start(stage, "slapd", &directory)?;
            node.directory = running.source("200ms");
            slapd = Some(running);
        }
        let portico = Portico::start(stage, &node, &directory, "debug")?;
        let mut scene = Scene { stage, town, portico };
        test(&mut scene, &mut pebble)?;
        ensure!(is_private(&key_file)?, "{} is open", key_file.display());
        scene.end()?;
        drop(slapd);
        Ok(())
    })
}

/// The section of a node file for an authority that is known by the usual one, and more keys of it behind a comma. The
/// names of these tests are known to no resolver.
pub(crate) fn acme_section(url: &str, town: &Town, key_file: &Path, more: &str) -> (String, String) {
    let section = format!(
        "{{directory_url: '{url}', ca_file: {}, account_key_file: {}, contact: [admin@a.example], \
         accept_terms_of_service: true, check_names: false{more}}}",
        town.ca.file().display(),
        key_file.display()
    );
    ("acme".to_owned(), section)
}

fn is_private(path: &Path) -> Result<bool> {
    Ok(std::fs::metadata(path)?.permissions().mode() & 0o007 == 0)
}

/// The certificate for a name at an endpoint, whoever has signed it.
pub(crate) fn shown(endpoint: SocketAddrV4, name: &str) -> Result<X509> {
    let mut tls = SslConnector::builder(SslMethod::tls_client())?;
    tls.set_verify(SslVerifyMode::NONE);
    let wire = Wire::clear(endpoint)?.start_tls_any_name(&tls.build(), name)?;
    Ok(X509::from_der(&wire.certificate()?)?)
}

pub(crate) fn names_of(certificate: &X509) -> BTreeSet<String> {
    let names = certificate.subject_alt_names().into_iter().flatten();
    names.filter_map(|name| name.dnsname().map(str::to_owned)).collect()
}

fn is_of_pebble(certificate: &X509) -> bool {
    format!("{:?}", certificate.issuer_name()).contains("Pebble")
}

/// Waits until HTTPS shows a certificate of the authority for exactly these names, and returns it.
pub(crate) fn served(scene: &Scene, names: &[&str]) -> Result<X509> {
    let expected: BTreeSet<String> = names.iter().map(|name| (*name).to_owned()).collect();
    until(&format!("a certificate for {names:?}"), PATIENCE, || {
        let certificate = shown(scene.town.endpoints.https, names[0])?;
        Ok((is_of_pebble(&certificate) && names_of(&certificate) == expected).then_some(certificate))
    })
}

/// What `portico certificates` says of the domain: its certificate, and its orders.
fn told(scene: &Scene) -> Result<(Json, Json)> {
    let answer = json(&scene.portico, &["certificates"])?;
    let certificate = one_of(&answer["certificates"], "used_for", &format!("domain {DOMAIN}"));
    Ok((certificate, one_of(&answer["orders"], "domain", DOMAIN)))
}

/// What it says of the orders of the domain.
pub(crate) fn orders_of(scene: &Scene) -> Result<Json> {
    Ok(told(scene)?.1)
}

fn one_of(list: &Json, key: &str, name: &str) -> Json {
    let mut all = list.as_array().into_iter().flatten();
    all.find(|one| one[key] == name).cloned().unwrap_or_default()
}

/// A certificate that the client has got before, as it stands in the directory.
fn put(directory: &mut Directory, pair: &Pair) -> Result<X509> {
    let certificate = X509::from_pem(pair.certificate.as_bytes())?;
    let digest = certificate.digest(MessageDigest::sha256())?;
    let fingerprint: String = digest.iter().map(|byte| format!("{byte:02X}")).collect();
    let entry = directory.domain(DOMAIN);
    entry.insert("zimbraSSLCertificate".into(), pair.certificate.clone().into());
    entry.insert("zimbraSSLPrivateKey".into(), pair.key.clone().into());
    entry.insert("porticoAcmeFingerprint".into(), fingerprint.into());
    Ok(certificate)
}

/// The story: one bad name must not keep the others from their certificate.
fn names_fail_alone(ldap: bool) -> Result<()> {
    let without_bad = |_: &Town, pebble: &mut Pebble, _: &mut Directory| pebble.find(BAD, false);
    play(&[MAIL, BAD, IMAP, "*.d.example"], ldap, without_bad, |scene, pebble| {
        let certificate = served(scene, &[MAIL, IMAP])?;
        let endpoints = scene.town.endpoints;
        for endpoint in [endpoints.imaps, endpoints.pop3s] {
            assert_eq!(shown(endpoint, IMAP)?.to_der()?, certificate.to_der()?, "{endpoint}");
        }
        // Others keep what they have.
        ensure!(
            !is_of_pebble(&shown(endpoints.https, "mail.a.example")?),
            "a.example is not marked"
        );
        let (told_certificate, orders) = told(scene)?;
        assert_eq!(told_certificate["source"], "acme");
        ensure!(orders["renews"].is_string() && orders["failed"].is_null(), "{orders}");
        let names = orders["names"].as_array().context("no names")?;
        let why = |name: &str| {
            let found = names.iter().find(|one| one["name"] == name);
            found.and_then(|one| one["why"].as_str()).unwrap_or_default()
        };
        ensure!(
            why(BAD).contains("could not resolve") && why("*.d.example").contains("DNS-01"),
            "{orders}"
        );
        assert_eq!(names.len(), 2);
        let log = scene.portico.output();
        ensure!(
            log.contains(&format!("{BAD} gets no certificate: ")),
            "it is in the log"
        );
        scene.portico.record(&[
            ("who", "acme"),
            ("act", "domain d.example: certificate stored, private key stored"),
        ])?;
        // It is tried again, and is still bad.
        scene.portico.reload()?;
        let refused = format!("{BAD} gets no certificate: ");
        until("a second refusal", PATIENCE, || {
            Ok((scene.portico.output().matches(&refused).count() >= 2).then_some(()))
        })?;
        // Mended, and said so.
        pebble.find(BAD, true)?;
        scene.portico.reload()?;
        served(scene, &[MAIL, BAD, IMAP])?;
        let issued = scene
            .portico
            .output()
            .matches("acme: domain d.example: certificate stored")
            .count();
        assert_eq!(
            issued, 2,
            "the second try of the bad name has cost a certificate of the good ones"
        );
        let (_, orders) = told(scene)?;
        assert_eq!(orders["names"].as_array().map(Vec::len), Some(1), "{orders}");
        if !ldap {
            let file = scene.portico.dir().join("directory.yaml");
            ensure!(is_private(&file)?, "a file with a private key is open");
        }
        Ok(())
    })
}

#[test]
fn a_domain_of_a_file_gets_its_certificate_and_a_bad_name_is_left_out() -> Result<()> {
    names_fail_alone(false)
}

#[test]
fn a_domain_in_ldap_gets_its_certificate_and_a_bad_name_is_left_out() -> Result<()> {
    names_fail_alone(true)
}

#[test]
fn while_the_authority_is_down_the_certificate_in_use_stays() -> Result<()> {
    let mut before = None;
    let ending = |town: &Town, pebble: &mut Pebble, directory: &mut Directory| {
        pebble.kill();
        before = Some(put(directory, &town.ca.ending(&[MAIL, IMAP])?)?);
        Ok(())
    };
    play(&[MAIL, IMAP], false, ending, |scene, pebble| {
        until("a failure that is told", PATIENCE, || {
            let answer = json(&scene.portico, &["certificates"])?;
            Ok(answer["authority"]["why"]
                .as_str()
                .is_some_and(|why| why.contains("refused"))
                .then_some(()))
        })?;
        ensure!(
            scene.portico.output().contains("the ACME authority cannot be used: "),
            "it is in the log"
        );
        let in_use = shown(scene.town.endpoints.https, MAIL)?;
        ensure!(
            names_of(&in_use).contains(MAIL) && !is_of_pebble(&in_use),
            "the previous one stays"
        );
        pebble.start_again()?;
        served(scene, &[MAIL, IMAP])?;
        assert_eq!(json(&scene.portico, &["certificates"])?["authority"], Json::Null);
        Ok(())
    })?;
    before.map(drop).context("the certificate was not made")
}

#[test]
fn a_renewal_does_not_take_away_a_name_that_the_certificate_in_use_has() -> Result<()> {
    let ending = |town: &Town, pebble: &mut Pebble, directory: &mut Directory| {
        pebble.find(BAD, false)?;
        put(directory, &town.ca.ending(&[MAIL, BAD])?).map(drop)
    };
    play(&[MAIL, BAD], false, ending, |scene, pebble| {
        until("the name to be refused", PATIENCE, || {
            Ok(told(scene)?.1["names"][0]["name"]
                .as_str()
                .filter(|name| *name == BAD)
                .map(drop))
        })?;
        let in_use = shown(scene.town.endpoints.imaps, BAD)?;
        ensure!(
            !is_of_pebble(&in_use) && names_of(&in_use).contains(BAD),
            "the previous one stays"
        );
        pebble.find(BAD, true)?;
        scene.portico.reload()?;
        served(scene, &[MAIL, BAD]).map(drop)
    })
}

#[test]
fn a_certificate_that_was_uploaded_is_left_alone() -> Result<()> {
    let uploaded = |town: &Town, _: &mut Pebble, directory: &mut Directory| {
        put(directory, &town.ca.server(&[MAIL])?)?;
        directory.domain(DOMAIN).remove("porticoAcmeFingerprint");
        // Another one that is ordered, so that it is known when all have been looked at.
        let entry = directory.domain("e.example");
        entry.insert("zimbraVirtualHostname".into(), ["mail.e.example"].into());
        entry.insert("porticoAcme".into(), "on".into());
        Ok(())
    };
    play(&[MAIL, IMAP], false, uploaded, |scene, _| {
        served(scene, &["mail.e.example"])?;
        ensure!(
            !is_of_pebble(&shown(scene.town.endpoints.https, MAIL)?),
            "it is the uploaded one"
        );
        assert_eq!(told(scene)?.0["source"], "directory");
        Ok(())
    })
}

/// A challenge is nobody's secret, and only open ones are answered.
#[test]
fn a_token_that_nobody_has_asked_for_is_not_answered() -> Result<()> {
    play(
        &[MAIL],
        false,
        |_, _, _| Ok(()),
        |scene, _| {
            served(scene, &[MAIL])?;
            let mut wire = Wire::clear(scene.town.endpoints.http)?;
            wire.send("GET /.well-known/acme-challenge/token HTTP/1.1\r\nHost: mail.d.example\r\n\r\n")?;
            let answer = wire.line()?;
            ensure!(answer.contains(" 302 "), "{answer}");
            Ok(())
        },
    )
}
