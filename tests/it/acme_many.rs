//! Certificates of many domains, of which some are broken: the others are served, and the authority is not pressed.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use portico_tests::acme_authority::{AcmeAuthority, ISSUER, Resource};
use portico_tests::config::{Directory, Node};
use portico_tests::town::Town;
use portico_tests::{amount, until};

use crate::acme::{MAIL, names_of, shown};
use crate::acme_strict::play;
use crate::admin::json;

/// How many domains have a name for which there is no certificate.
const BROKEN: usize = 5;
/// How long a domain may take among others.
const EACH: Duration = Duration::from_secs(2);

/// The virtual host name of a domain.
fn host(at: usize) -> String {
    format!("mail.d{at:04}.example")
}

#[test]
fn of_many_domains_the_broken_ones_are_named_and_the_others_served() -> Result<()> {
    let count = amount("PORTICO_ACME_DOMAINS", 60);
    let many = |_: &Town, authority: &AcmeAuthority, _: &mut Node, directory: &mut Directory| {
        for at in 0..count {
            let entry = directory.domain(&format!("d{at:04}.example"));
            entry.insert("zimbraVirtualHostname".into(), host(at).into());
            entry.insert("porticoAcme".into(), "on".into());
        }
        authority.behave(|behaviour| {
            behaviour.refused = (0..BROKEN / 2).map(host).collect();
            behaviour.unknown = (BROKEN / 2..BROKEN).map(host).collect();
        });
    };
    play(&[MAIL], many, |scene, authority| {
        let patience = EACH * u32::try_from(count)? + Duration::from_secs(30);
        let endpoints = scene.town.endpoints;
        for at in BROKEN..count {
            until(&host(at), patience, || {
                let certificate = shown(endpoints.https, &host(at))?;
                Ok((names_of(&certificate) == [host(at)].into()).then_some(()))
            })?;
            for endpoint in [endpoints.imaps, endpoints.pop3s] {
                let certificate = shown(endpoint, &host(at))?;
                ensure!(
                    format!("{:?}", certificate.issuer_name()).contains(ISSUER),
                    "{endpoint} {at}"
                );
            }
        }
        let answer = json(&scene.portico, &["certificates"])?;
        let orders = answer["orders"].as_array().context("no orders")?;
        let broken: Vec<_> = orders
            .iter()
            .filter(|order| order["names"] != serde_json::json!([]))
            .collect();
        assert_eq!(broken.len(), BROKEN, "{broken:#?}");
        for (at, order) in broken.into_iter().enumerate() {
            let why = if at < BROKEN / 2 {
                "rejectedIdentifier: "
            } else {
                "dns: no address of "
            };
            assert_eq!(order["names"][0]["name"], host(at));
            ensure!(
                order["names"][0]["why"]
                    .as_str()
                    .is_some_and(|said| said.starts_with(why)),
                "{order}"
            );
        }
        // One order for each domain, and no name is tried twice.
        let orders = authority.asked().into_iter();
        let orders = orders.filter(|asked| asked.resource == Resource::NewOrder && asked.answer != "400 badNonce");
        assert_eq!(orders.count(), count + 1);
        Ok(())
    })
}
