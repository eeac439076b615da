//! Names that are looked at in the DNS before an authority is asked for them.

use anyhow::{Result, ensure};
use portico_tests::Stage;
use portico_tests::acme_authority::{AcmeAuthority, Resource};
use portico_tests::bind::{Bind, Zone};
use portico_tests::config::{Directory, Node};
use portico_tests::town::Town;

use crate::acme::{DOMAIN, MAIL, orders_of};
use crate::acme_strict::{play, served, told};

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

#[test]
fn a_name_that_cannot_be_had_costs_no_order_and_one_of_which_nothing_is_known_is_asked_for() -> Result<()> {
    Stage::run(|stage| {
        let bind = Bind::start(stage, &[ZONE])?;
        let look = |_: &Town, authority: &AcmeAuthority, node: &mut Node, _: &mut Directory| {
            authority.behave(|behaviour| behaviour.caa_identities = vec!["CA.example".to_owned()]);
            for (_, section) in node.more.iter_mut().filter(|(name, _)| name == "acme") {
                let with = format!("resolvers: ['{}']", bind.address());
                *section = section.replace("check_names: false", &with);
            }
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
