//! One name, however it is spelled: international domains in letters and as A-labels, letters with accents in one
//! piece and in two, blanks around.

use anyhow::{Result, ensure};
use portico_tests::town::{Person, people};

use crate::admin::done;
use crate::scene::{Scene, Source, greeted, sasl_plain};

const EVE: &str = "eve@xn--bcher-kva.example";
const SPELLINGS: [&str; 6] = [
    EVE,
    "eve@bücher.example",
    "Eve@BÜCHER.example",
    "eve@bu\u{308}cher.example",
    " eve@XN--BCHER-kva.example ",
    "\u{ff45}ve@bücher.example",
];

/// Eve's domain is international; Zoë's name is. The directory has the one in A-labels, or in letters.
fn spelled(source: Source, domain: &'static str) -> Result<()> {
    let mut all = people();
    // Values of these attributes are ASCII in Zimbra's schema.
    let alias = match source {
        Source::Ldap => "lady@xn--bcher-kva.example",
        _ => "lady@bücher.example",
    };
    all.push(Person::new(EVE, 1, "eve-c4n4ry-five").alias(alias));
    all.push(Person::new("zoë@a.example", 0, "zoe-c4n4ry-six"));
    let of_letters = |_: &_, _: &mut _, directory: &mut portico_tests::config::Directory| {
        let entry = directory.domain(domain);
        entry.insert("zimbraVirtualHostname".into(), "mail.bücher.example".into());
        if domain != "xn--bcher-kva.example" {
            directory
                .account(EVE)
                .insert("zimbraMailDeliveryAddress".into(), "Eve@bücher.example".into());
        }
        Ok(())
    };
    source.play_with(all, of_letters, |scene| {
        for name in SPELLINGS
            .into_iter()
            .chain(["LADY@bücher.example", "lady@xn--bcher-kva.example"])
        {
            eve_is_found(scene, name)?;
        }
        // Dovecot takes no such names, but a mailbox server may.
        let zoe = ["zoë@a.example", "zoe\u{308}@a.example", "ZOE\u{308}"];
        for name in zoe.into_iter().filter(|_| source == Source::Yaml) {
            let explained = done(&scene.portico, &["route", "explain", name])?;
            ensure!(
                explained.contains("zoë@a.example is on store1.example.test"),
                "{explained}"
            );
        }
        // The virtual host of the domain, as a browser and a mail program ask for it.
        let mut imap = greeted(
            scene.tls(scene.town.endpoints.imaps, "mail.xn--bcher-kva.example")?,
            "* OK ",
        )?;
        let eve = scene.town.person("eve")?;
        imap.imap_ok(&format!("a1 LOGIN eve {}", eve.password()))?;
        let known = done(&scene.portico, &["sessions", "--user", "eve@bücher.example"])?;
        ensure!(known.contains(EVE), "{known}");
        Ok(())
    })
}

/// By IMAP, POP3, the web and `portico route explain`.
fn eve_is_found(scene: &Scene, name: &str) -> Result<()> {
    let eve = scene.town.person("eve")?;
    let mut imap = scene.imaps()?;
    imap.imap_ok(&format!("a1 AUTHENTICATE PLAIN {}", sasl_plain(name, &eve.password)))?;
    let mut pop = scene.pop3s()?;
    pop.pop_ok(&format!("AUTH PLAIN {}", sasl_plain(name, &eve.password)))?;
    let path: String = name.trim().bytes().map(|byte| format!("%{byte:02X}")).collect();
    let asked = scene.town.stores[1].web.request_count();
    let answer = scene.https(&format!("/home/{path}/inbox"), &[])?.echo()?;
    ensure!(answer["server"] == "store2", "{path}: {answer}");
    scene.https(&format!("/Microsoft-Server-ActiveSync?User={path}&DeviceId=1"), &[])?;
    ensure!(
        scene.town.stores[1].web.request_count() == asked + 2,
        "{name}: another server was asked"
    );
    let explained = done(&scene.portico, &["route", "explain", name])?;
    ensure!(
        explained.contains(&format!("{EVE} is on store2.example.test")),
        "{explained}"
    );
    Ok(())
}

#[test]
fn international_names_are_one_however_they_are_spelled() -> Result<()> {
    spelled(Source::Yaml, "xn--bcher-kva.example")
}

#[test]
fn international_names_in_letters_are_the_same() -> Result<()> {
    spelled(Source::Yaml, "bücher.example")
}

#[test]
fn international_names_are_found_in_ldap() -> Result<()> {
    spelled(Source::Ldap, "xn--bcher-kva.example")
}
