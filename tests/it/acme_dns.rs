//! Certificates for names that are shown by records in the DNS, with BIND that takes signed changes, and pebble that
//! looks there.

use std::collections::BTreeSet;
use std::net::{SocketAddr, SocketAddrV4, UdpSocket};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use anyhow::{Context, Result, bail, ensure};
use portico_tests::bind::{Bind, KEY, SECRET, Zone};
use portico_tests::config::Value;
use portico_tests::pebble::Pebble;
use portico_tests::portico::Portico;
use portico_tests::town::{Town, people};
use portico_tests::{Stage, until};
use serde_json::json;

use crate::acme::{DOMAIN, PATIENCE, acme_section, names_of, orders_of, shown};
use crate::acme_strict::told;
use crate::admin::done;
use crate::scene::Scene;

const PATTERN: &str = "*.d.example";
/// Not one of that pattern. Its record is to stand at another name, for which there is a CNAME record.
const ELSEWHERE: &str = "mail.x.d.example";
/// In a zone that may not be changed.
const FIXED: &str = "mail.fixed.test";
/// Where records stand.
const PLACE: &str = "_acme-challenge.d.example";
const PLACE_ELSEWHERE: &str = "x.proofs.d.example";

const ZONES: [Zone<'_>; 2] = [
    Zone {
        name: DOMAIN,
        records: "_acme-challenge TXT \"of others\"\n_acme-challenge.mail.x CNAME x.proofs",
        changes: true,
    },
    Zone {
        name: "fixed.test",
        records: "",
        changes: false,
    },
];

/// Plays a test with a domain of these names. `section` makes the rest of `acme` of the name server and a folder.
fn play(
    names: &[&str],
    section: impl FnOnce(&Bind, &Path) -> Result<String>,
    test: impl FnOnce(&Scene, &mut Bind) -> Result<()>,
) -> Result<()> {
    Stage::run(|stage| {
        let town = Town::build(stage, people())?;
        let mut bind = Bind::start(stage, &ZONES)?;
        let ports = [town.endpoints.http.port(), town.endpoints.https.port()];
        let pebble = Pebble::start_with(stage, &town.ca, ports, &json!({}), Some(bind.address()))?;
        let (mut node, mut directory) = (town.node(), town.directory());
        let key_file = stage.path().join("acme.key");
        let more = format!(", resolvers: ['{}'], {}", bind.address(), section(&bind, stage.path())?);
        node.more
            .push(acme_section(&pebble.directory_url(), &town, &key_file, &more));
        let entry = directory.domain(DOMAIN);
        let names = names.iter().map(|name| (*name).to_owned()).collect();
        entry.insert("zimbraVirtualHostname".into(), Value::List(names));
        entry.insert("porticoAcme".into(), "on".into());
        let portico = Portico::start(stage, &node, &directory, "debug")?;
        let mut scene = Scene { stage, town, portico };
        test(&scene, &mut bind)?;
        scene.end()
    })
}

/// The name server is told, with this key.
fn update(bind: &Bind, dir: &Path, key: &str, secret: &str) -> Result<String> {
    let file = dir.join("tsig.key");
    std::fs::write(&file, secret)?;
    let tsig = format!("{{name: {key}, key_file: {}}}", file.display());
    Ok(format!(
        "dns: {{update: {{server: '{}', tsig: {tsig}}}}}",
        bind.address()
    ))
}

/// A secondary of the zone that gets a change only when it has been asked about so many names: as long as anybody waits
/// for one of them alone, there is nothing.
fn slow_secondary(primary: SocketAddrV4, names: usize) -> Result<SocketAddrV4> {
    let socket = UdpSocket::bind("127.0.0.1:0")?;
    let SocketAddr::V4(address) = socket.local_addr()? else {
        bail!("not an address of IPv4");
    };
    let relay = UdpSocket::bind("127.0.0.1:0")?;
    relay.set_read_timeout(Some(PATIENCE))?;
    std::thread::spawn(move || -> Result<()> {
        let mut seen = BTreeSet::new();
        loop {
            let mut message = [0; 1024];
            let (count, from) = socket.recv_from(&mut message)?;
            // What stands behind the id is the same of all questions about a name.
            seen.insert(message[2..count].to_vec());
            let answered = match seen.len() < names {
                // QR and AA: the zone is its own, and has nothing there.
                true => {
                    message[2] |= 0x84;
                    count
                }
                false => {
                    relay.send_to(&message[..count], primary)?;
                    relay.recv(&mut message)?
                }
            };
            socket.send_to(&message[..answered], from)?;
        }
    });
    Ok(address)
}

/// Waits until a name shows a certificate for exactly these.
fn served(scene: &Scene, name: &str, names: &[&str]) -> Result<()> {
    let expected: BTreeSet<String> = names.iter().map(|name| (*name).to_owned()).collect();
    let mut last = BTreeSet::new();
    until(&format!("a certificate for {names:?}"), PATIENCE, || {
        last = names_of(&shown(scene.town.endpoints.https, name)?);
        Ok((last == expected).then_some(()))
    })
    .with_context(|| format!("it is for {last:?}"))
}

/// Waits until there are these texts and no others.
fn left(bind: &Bind, name: &str, texts: &[&str]) -> Result<()> {
    let mut last = Vec::new();
    until(&format!("{texts:?} at {name}"), PATIENCE, || {
        last = bind.texts(name)?;
        Ok((last == texts).then_some(()))
    })
    .with_context(|| format!("there are {last:?}"))
}

#[test]
fn a_pattern_and_a_name_whose_record_stands_elsewhere_are_shown_by_records() -> Result<()> {
    let names = [PATTERN, "mail.d.example", DOMAIN, ELSEWHERE];
    let section = |bind: &Bind, dir: &Path| {
        let dns = update(bind, dir, KEY, SECRET)?;
        Ok(format!("challenges: [dns-01], {dns}"))
    };
    play(&names, section, |scene, bind| {
        // The pattern is good for mail.d.example: an authority takes no order for both.
        served(scene, "any.d.example", &[PATTERN, DOMAIN, ELSEWHERE])?;
        let orders = orders_of(scene)?;
        assert_eq!(orders["names"], json!([]), "{orders}");
        left(bind, PLACE, &["of others"])?;
        left(bind, PLACE_ELSEWHERE, &[])
    })
}

#[test]
fn only_a_pattern_is_shown_by_a_record_where_another_way_is_preferred() -> Result<()> {
    let section = |bind: &Bind, dir: &Path| {
        let dns = update(bind, dir, KEY, SECRET)?;
        Ok(format!("challenges: [http-01, dns-01], {dns}"))
    };
    // No record can stand in front of the second one.
    play(&[PATTERN, FIXED], section, |scene, _| {
        served(scene, "any.d.example", &[PATTERN, FIXED])
    })
}

#[test]
fn a_name_whose_record_is_refused_fails_alone_and_leaves_nothing_behind() -> Result<()> {
    let section = |bind: &Bind, dir: &Path| {
        let dns = update(bind, dir, KEY, SECRET)?;
        Ok(format!("challenges: [dns-01], {dns}"))
    };
    play(&[PATTERN, FIXED], section, |scene, bind| {
        served(scene, "any.d.example", &[PATTERN])?;
        told(scene, "does not change the zone fixed.test: it answers REFUSED")?;
        left(bind, PLACE, &["of others"])
    })
}

/// The story: eight names at a time were put and waited for, so forty in a zone with slow servers took longer than an
/// order may.
#[test]
fn all_records_of_an_order_are_waited_for_together() -> Result<()> {
    let names: Vec<String> = (0..12).map(|at| format!("n{at}.d.example")).collect();
    let names: Vec<&str> = names.iter().map(String::as_str).collect();
    let section = |bind: &Bind, dir: &Path| {
        let dns = update(bind, dir, KEY, SECRET)?;
        let secondary = slow_secondary(bind.address(), 12)?;
        let dns = dns.replace("dns: {", &format!("dns: {{servers: ['{secondary}'], "));
        Ok(format!("challenges: [dns-01], {dns}"))
    };
    play(&names, section, |scene, _| served(scene, names[0], &names))
}

#[test]
fn a_wrong_key_is_told() -> Result<()> {
    let other = "b3RoZXI=";
    for (key, secret, why) in [
        (KEY, other, "the name server has another key of the name"),
        ("nobody", SECRET, "the name server does not know the key"),
    ] {
        let section = |bind: &Bind, dir: &Path| {
            let dns = update(bind, dir, key, secret)?;
            Ok(format!("challenges: [dns-01], {dns}"))
        };
        play(&[PATTERN], section, |scene, bind| {
            told(scene, why)?;
            left(bind, PLACE, &["of others"])
        })?;
    }
    Ok(())
}

#[test]
fn a_name_server_that_is_down_is_told_and_asked_again() -> Result<()> {
    let section = |bind: &Bind, dir: &Path| {
        let dns = update(bind, dir, KEY, SECRET)?;
        Ok(format!("challenges: [dns-01], {dns}"))
    };
    play(&[ELSEWHERE], section, |scene, bind| {
        served(scene, ELSEWHERE, &[ELSEWHERE])?;
        bind.kill();
        let change = ["prov", "modifyDomain", DOMAIN, "+zimbraVirtualHostname", PATTERN];
        done(&scene.portico, &change)?;
        told(scene, "does not answer for _acme-challenge.d.example")?;
        bind.start_again()?;
        scene.portico.reload()?;
        served(scene, "any.d.example", &[PATTERN, ELSEWHERE])
    })
}

/// The program of an administrator, which says something and fails, or does what it should.
fn write_program(path: &Path, body: &str) -> Result<()> {
    std::fs::write(path, format!("#!/bin/sh\n{body}\n"))?;
    Ok(std::fs::set_permissions(path, PermissionsExt::from_mode(0o755))?)
}

#[test]
fn a_program_puts_records_and_takes_them_away() -> Result<()> {
    let section = |bind: &Bind, dir: &Path| {
        let program = dir.join("put-record");
        // What it says goes to terminals.
        write_program(&program, "printf '\\033[31mno\\tway: %s\\n' \"$*\" >&2; exit 3")?;
        Ok(format!(
            "challenges: [dns-01], dns: {{command: ['{}', first], servers: ['{}']}}",
            program.display(),
            bind.address()
        ))
    };
    play(&[PATTERN], section, |scene, bind| {
        told(
            scene,
            "put-record: exit status: 3: [31mnoway: first present _acme-challenge.d.example ",
        )?;
        ensure!(!scene.portico.output().contains("\u{1b}[31mno"), "it colours the log");
        let works = format!(
            "[ \"$2 $3 $4\" = \"$PORTICO_ACME_ACTION $PORTICO_ACME_NAME $PORTICO_ACME_VALUE\" ] || exit 4\n\
             case \"$2\" in present) act=add ttl=60 ;; cleanup) act=delete ttl= ;; esac\n\
             printf 'server 127.0.0.1 {}\\nupdate %s %s %s TXT \"%s\"\\nsend\\n' $act \"$3\" \"$ttl\" \"$4\" | \
             nsupdate -y hmac-sha256:{KEY}:{SECRET}",
            bind.address().port()
        );
        write_program(&scene.stage.path().join("put-record"), &works)?;
        scene.portico.reload()?;
        served(scene, "any.d.example", &[PATTERN])?;
        left(bind, PLACE, &["of others"])
    })
}
