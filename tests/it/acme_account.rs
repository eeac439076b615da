//! The account at an authority: bound to one of the authority's own, and the kinds of certificates that it may order.

use std::path::Path;

use anyhow::Result;
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use portico_tests::Stage;
use portico_tests::acme_authority::AcmeAuthority;
use portico_tests::config::{Directory, Node};
use portico_tests::pebble::Pebble;
use portico_tests::portico::Portico;
use portico_tests::town::{Town, people};
use serde_json::json;

use crate::acme::{DOMAIN, MAIL, acme_section, served as served_by_pebble};
use crate::acme_strict::{add_to_acme, play, served, told};
use crate::scene::Scene;

/// The account that an administrator has there, and its key.
const OWN: &str = "account of ours";
const KEY: &[u8] = b"32 octets that only the two know";

/// The file with the key of that account beside this one, and the section that names it.
fn eab(beside: &Path, kid: &str, key: &[u8]) -> Result<String> {
    let file = beside.with_file_name("eab.key");
    std::fs::write(&file, URL_SAFE_NO_PAD.encode(key))?;
    Ok(format!("eab: {{kid: {kid:?}, hmac_key_file: {}}}", file.display()))
}

#[test]
fn an_account_is_bound_to_one_of_the_authority() -> Result<()> {
    for (kid, key, why) in [
        (OWN, Some(KEY), ""),
        (
            OWN,
            Some(b"another key".as_slice()),
            "unauthorized: that account has not signed it",
        ),
        ("nobody's", Some(KEY), "unauthorized: there is no such account"),
        (OWN, None, "bound to one of its own: set acme.eab"),
    ] {
        let bind = |town: &Town, authority: &AcmeAuthority, node: &mut Node, _: &mut Directory| {
            authority.behave(|behaviour| {
                behaviour.own_accounts = [(OWN.to_owned(), KEY.to_vec())].into();
            });
            if let Some(key) = key {
                add_to_acme(node, &eab(&town.ca.file(), kid, key).expect("the folder is there"));
            }
        };
        play(&[MAIL], bind, |scene, _| match why {
            "" => served(scene, &[MAIL]),
            why => told(scene, why),
        })?;
    }
    Ok(())
}

#[test]
fn a_profile_is_ordered_where_the_authority_has_it() -> Result<()> {
    let short = |_: &Town, authority: &AcmeAuthority, node: &mut Node, _: &mut Directory| {
        authority.behave(|behaviour| behaviour.profiles = ["classic".to_owned()].into());
        add_to_acme(node, "profile: shortlived");
    };
    play(&[MAIL], short, |scene, authority| {
        told(
            scene,
            "the authority has no acme.profile \\\"shortlived\\\", but these: classic",
        )?;
        authority.behave(|behaviour| {
            behaviour.profiles.insert("shortlived".to_owned());
        });
        scene.portico.reload()?;
        served(scene, &[MAIL])?;
        assert_eq!(authority.profiles(), [Some("shortlived".to_owned())]);
        Ok(())
    })
}

#[test]
fn pebble_takes_an_account_that_is_bound() -> Result<()> {
    Stage::run(|stage| {
        let town = Town::build(stage, people())?;
        let ports = [town.endpoints.http.port(), town.endpoints.https.port()];
        let bound = json!({"externalAccountBindingRequired": true,
                           "externalAccountMACKeys": {OWN: URL_SAFE_NO_PAD.encode(KEY)}});
        let pebble = Pebble::start_with(stage, &town.ca, ports, &bound, None)?;
        let (mut node, mut directory) = (town.node(), town.directory());
        let key_file = stage.path().join("acme.key");
        let more = format!(", {}", eab(&key_file, OWN, KEY)?);
        node.more
            .push(acme_section(&pebble.directory_url(), &town, &key_file, &more));
        let entry = directory.domain(DOMAIN);
        entry.insert("zimbraVirtualHostname".into(), MAIL.into());
        entry.insert("porticoAcme".into(), "on".into());
        let portico = Portico::start(stage, &node, &directory, "debug")?;
        let mut scene = Scene { stage, town, portico };
        served_by_pebble(&scene, &[MAIL])?;
        // The account is there now, and is found by its key.
        scene.portico.reload()?;
        scene.end()
    })
}
