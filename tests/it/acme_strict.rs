//! Certificates from the authority of the tests' own: strict with its client, and bad where a test wants it.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use portico_tests::acme_authority::{AcmeAuthority, ISSUER, Lie, Resource, ValidationPorts};
use portico_tests::config::{Directory, Node, Value};
use portico_tests::portico::Portico;
use portico_tests::town::{Town, people};
use portico_tests::{Stage, until};

use crate::acme::{BAD, DOMAIN, IMAP, MAIL, PATIENCE, acme_section, names_of, orders_of, shown};
use crate::admin::json;
use crate::scene::Scene;

/// Plays a test with a domain of these names, and a strict authority. `change` gets what is configured.
pub(crate) fn play(
    names: &[&str],
    change: impl FnOnce(&Town, &AcmeAuthority, &mut Node, &mut Directory),
    test: impl FnOnce(&mut Scene, &AcmeAuthority) -> Result<()>,
) -> Result<()> {
    Stage::run(|stage| {
        let town = Town::build(stage, people())?;
        let endpoints = town.endpoints;
        let ports = ValidationPorts {
            http: endpoints.http.port(),
            tls: endpoints.https.port(),
        };
        let authority = AcmeAuthority::start(stage, &town.ca, ports)?;
        let (mut node, mut directory) = (town.node(), town.directory());
        let key_file = stage.path().join("acme.key");
        node.more
            .push(acme_section(&authority.directory_url(), &town, &key_file, ""));
        let entry = directory.domain(DOMAIN);
        let names = names.iter().map(|name| (*name).to_owned()).collect();
        entry.insert("zimbraVirtualHostname".into(), Value::List(names));
        entry.insert("porticoAcme".into(), "on".into());
        change(&town, &authority, &mut node, &mut directory);
        let portico = Portico::start(stage, &node, &directory, "debug")?;
        let mut scene = Scene { stage, town, portico };
        test(&mut scene, &authority)?;
        let violations = authority.violations();
        ensure!(violations.is_empty(), "no client may do this: {violations:?}");
        scene.end()
    })
}

/// Adds keys to the section of the authority.
pub(crate) fn add_to_acme(node: &mut Node, keys: &str) {
    for (_, section) in node.more.iter_mut().filter(|(name, _)| name == "acme") {
        section.truncate(section.len() - 1);
        section.push_str(&format!(", {keys}}}"));
    }
}

/// Waits until HTTPS shows a certificate of the authority for exactly these names.
pub(crate) fn served(scene: &Scene, names: &[&str]) -> Result<()> {
    until(&format!("a certificate for {names:?}"), PATIENCE, || {
        let certificate = shown(scene.town.endpoints.https, names[0])?;
        let is_its = format!("{:?}", certificate.issuer_name()).contains(ISSUER);
        let expected = names.iter().map(|name| (*name).to_owned()).collect();
        Ok((is_its && names_of(&certificate) == expected).then_some(()))
    })
}

/// Waits until `portico certificates` says this of the authority, the order or a name.
pub(crate) fn told(scene: &Scene, reason: &str) -> Result<()> {
    let mut last = String::new();
    until(&format!("{reason:?}"), PATIENCE, || {
        let authority = json(&scene.portico, &["certificates"])?["authority"]["why"].take();
        last = format!("{authority} {}", orders_of(scene)?);
        Ok(last.contains(reason).then_some(()))
    })
    .with_context(|| last)
}

#[test]
fn an_order_keeps_to_the_protocol() -> Result<()> {
    let usual = |_: &Town, _: &AcmeAuthority, _: &mut Node, _: &mut Directory| {};
    play(&[MAIL, IMAP], usual, |scene, authority| {
        served(scene, &[MAIL, IMAP])?;
        for (resource, count) in [
            (Resource::NewAccount, 1),
            (Resource::NewOrder, 1),
            (Resource::Challenge, 2),
            (Resource::Finalize, 1),
            (Resource::Certificate, 1),
        ] {
            let asked = authority.asked();
            let done = asked
                .iter()
                .filter(|asked| asked.resource == resource && asked.answer.starts_with('2'));
            assert_eq!(done.count(), count, "{resource:?} of {asked:#?}");
        }
        let refused = authority
            .asked()
            .iter()
            .filter(|asked| asked.answer == "400 badNonce")
            .count();
        ensure!(refused > 0, "no nonce was refused");
        assert_eq!(authority.issued(), [[IMAP, MAIL]]);
        Ok(())
    })
}

#[test]
fn names_that_the_authority_refuses_fail_alone_though_it_is_slow() -> Result<()> {
    let refuse = |_: &Town, authority: &AcmeAuthority, _: &mut Node, _: &mut Directory| {
        authority.behave(|behaviour| {
            behaviour.refused.insert(BAD.to_owned());
            behaviour.unknown.insert(IMAP.to_owned());
            behaviour.delay = Duration::from_millis(200);
        });
    };
    play(&[MAIL, BAD, IMAP], refuse, |scene, authority| {
        served(scene, &[MAIL])?;
        let orders = orders_of(scene)?;
        let names = orders["names"].as_array().context("no names")?;
        let why = |name: &str| {
            let found = names.iter().find(|one| one["name"] == name);
            found.and_then(|one| one["why"].as_str()).unwrap_or_default().to_owned()
        };
        ensure!(why(BAD).contains("rejectedIdentifier: not bad.d.example"), "{orders}");
        ensure!(why(IMAP).contains("dns: no address of imap.d.example"), "{orders}");
        // Those that came back because of their nonce are none.
        let asked = authority.asked();
        let orders = asked
            .iter()
            .filter(|asked| asked.resource == Resource::NewOrder && asked.answer != "400 badNonce");
        assert_eq!(orders.count(), 3, "each refusal costs an order");
        Ok(())
    })
}

/// What a bad authority does, and what is said of it.
const LIES: [(Lie, &str); 15] = [
    (
        Lie::Garbage(Resource::Directory),
        "the authority's answer is not what it should be",
    ),
    (
        Lie::Garbage(Resource::NewOrder),
        "the authority's answer is not what it should be",
    ),
    (
        Lie::Garbage(Resource::Authorization),
        "the authority's answer is not what it should be",
    ),
    (
        Lie::Garbage(Resource::Certificate),
        "the authority has issued something else: there is no certificate in it",
    ),
    (Lie::Oversized(Resource::Directory), "length limit exceeded"),
    (Lie::Oversized(Resource::Certificate), "length limit exceeded"),
    (
        Lie::Down(Resource::NewOrder, 503, 0),
        "the authority answered 503 serverInternal: not now",
    ),
    (Lie::Down(Resource::NewNonce, 404, 0), "the authority answered 404"),
    (
        Lie::OtherNames,
        "the authority has issued something else: it is not good for mail.d.example",
    ),
    (Lie::OtherKey, "the private key does not belong to the certificate"),
    (Lie::Undecided, "the authority has not decided in time"),
    (
        Lie::OtherAuthorization,
        "the authority wants a proof for a name that was not asked for",
    ),
    (Lie::Location(None), "the authority's answer has no Location"),
    (Lie::Location(Some("http://127.0.0.1:1/order/0")), "is not an https URL"),
    (Lie::Location(Some("//\u{1}")), "invalid HTTP header"),
];

/// Whatever the authority does, the domain has the certificate that it had.
#[test]
fn a_lie_stores_no_certificate_and_is_told() -> Result<()> {
    let lie = |_: &Town, authority: &AcmeAuthority, _: &mut Node, _: &mut Directory| {
        authority.behave(|behaviour| behaviour.lie = Some(LIES[0].0));
    };
    play(&[MAIL], lie, |scene, authority| {
        for (lie, reason) in LIES {
            authority.behave(|behaviour| behaviour.lie = Some(lie));
            scene.portico.reload()?;
            told(scene, reason).with_context(|| format!("{lie:?}"))?;
        }
        assert_eq!(scene.portico.count(&[("who", "acme")])?, 0, "something was stored");
        let in_use = shown(scene.town.endpoints.https, MAIL)?;
        ensure!(!names_of(&in_use).contains(MAIL), "it shows {:?}", names_of(&in_use));
        authority.behave(|behaviour| behaviour.lie = None);
        scene.portico.reload()?;
        served(scene, &[MAIL])
    })
}

#[test]
fn an_account_that_the_authority_has_closed_is_told() -> Result<()> {
    let close = |_: &Town, authority: &AcmeAuthority, _: &mut Node, _: &mut Directory| {
        authority.behave(|behaviour| behaviour.closes_accounts = true);
    };
    play(&[MAIL], close, |scene, _| {
        told(scene, "unauthorized: the account is deactivated")
    })
}

/// The first pause of an authority that does not work is 5 seconds, give or take a quarter.
#[test]
fn an_authority_that_limits_is_not_asked_before_it_allows() -> Result<()> {
    const SECONDS: u64 = 8;
    let limit = |_: &Town, authority: &AcmeAuthority, _: &mut Node, _: &mut Directory| {
        authority.behave(|behaviour| behaviour.limit = Some((Resource::NewAccount, SECONDS)));
    };
    play(&[MAIL], limit, |scene, authority| {
        told(scene, "rateLimited: not now")?;
        authority.behave(|behaviour| behaviour.limit = None);
        served(scene, &[MAIL])?;
        let asked = authority.asked();
        let refused = asked.iter().position(|asked| asked.answer == "429 rateLimited");
        let refused = refused.context("no request was refused")?;
        let pause = asked.get(refused + 1).context("no request after it")?.at - asked[refused].at;
        ensure!(pause >= Duration::from_secs(SECONDS), "asked after {pause:?}");
        Ok(())
    })
}
