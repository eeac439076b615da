//! What users notice of a directory and of a shared cache that are stopped, are frozen, or send garbage: as little as
//! possible.

use std::net::SocketAddrV4;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use portico_tests::config::{Directory, Node};
use portico_tests::fake::Fake;
use portico_tests::memcached::{Memcached, wire_key};
use portico_tests::portico::Portico;
use portico_tests::slapd::Slapd;
use portico_tests::town::{Person, Town, people};
use portico_tests::{Stage, until};

use crate::admin::done;
use crate::scene::{Scene, timed};

/// Longer than a machine with other things to do takes for a login, and much shorter than anybody waits.
const SOON: Duration = Duration::from_secs(15);

/// The usual town on a slapd, with some more in the node file; `change` may start servers that `test` deals with.
pub(crate) fn play<T>(
    people: Vec<Person>,
    change: impl FnOnce(&Stage, &Town, &mut Node, &mut Directory) -> Result<T>,
    test: impl FnOnce(&mut Scene, &mut Slapd, T) -> Result<()>,
) -> Result<()> {
    Stage::run(|stage| {
        let town = Town::build(stage, people)?;
        let (mut node, mut directory) = (town.node(), town.directory());
        let more = change(stage, &town, &mut node, &mut directory)?;
        let mut slapd = Slapd::start(stage, "slapd", &directory)?;
        node.directory = slapd.source("200ms");
        node.directory.push("  timeout: 1s".to_owned());
        let portico = Portico::start(stage, &node, &directory, "info")?;
        let mut scene = Scene { stage, town, portico };
        test(&mut scene, &mut slapd, more)?;
        scene.end()
    })
}

/// Alice and Carol were here before; Bob and Dave were not.
fn only_known_accounts_get_in(scene: &Scene) -> Result<()> {
    for local in ["alice", "carol"] {
        let (_, took) = timed(|| scene.login(local))?;
        ensure!(took < SOON, "{local}: {took:?}");
    }
    for local in ["bob", "dave"] {
        let person = scene.town.person(local)?;
        let command = format!("a1 LOGIN {} {}", person.name, person.password());
        let (answer, took) = timed(|| scene.imaps()?.imap(&command))?;
        ensure!(
            answer.last().is_some_and(|l| l.starts_with("a1 NO [UNAVAILABLE]")),
            "{local}: {answer:?}"
        );
        ensure!(took < SOON, "{local}: {took:?}");
    }
    Ok(())
}

/// Logs in until the route is past its life, and serves all the same; no login may fail meanwhile.
fn past_its_life(scene: &Scene, local: &str) -> Result<()> {
    let name = scene.town.person(local)?.name.clone();
    let stale = || {
        scene
            .portico
            .count(&[("account", &name), ("tier", "stale"), ("outcome", "ok")])
    };
    let before = stale()?;
    until(&format!("the route of {local} to be past its life"), SOON, || {
        scene.login(local)?;
        Ok((stale()? > before).then_some(()))
    })
}

/// Everybody can log in, as soon as the node notices.
fn everybody_gets_in(scene: &Scene) -> Result<()> {
    for person in &scene.town.people {
        let local = person.name.split('@').next().unwrap_or_default();
        until(&format!("{local} to get in"), SOON, || Ok(scene.login(local).ok()))?;
    }
    Ok(())
}

#[test]
fn without_a_directory_known_accounts_get_in_and_the_others_hear_why() -> Result<()> {
    let expire_soon = |_: &_, _: &_, node: &mut Node, _: &mut _| {
        // So that what is known is past its life, and the directory would be asked.
        node.more
            .push(("route_cache".to_owned(), "{ttl: 1s, stale: 1h}".to_owned()));
        Ok(())
    };
    play(people(), expire_soon, |scene, slapd, ()| {
        scene.login("alice")?;
        scene.login("carol")?;
        until("the routes to be past their life", SOON, || {
            let asked = scene
                .portico
                .count(&[("tier", "directory"), ("account", "alice@a.example")])?;
            scene.login("alice")?;
            scene.login("carol")?;
            Ok((asked >= 2).then_some(()))
        })?;
        // `kill -9`
        slapd.kill();
        past_its_life(scene, "alice")?;
        past_its_life(scene, "carol")?;
        only_known_accounts_get_in(scene)?;
        scene
            .portico
            .record(&[("account", "alice@a.example"), ("tier", "stale"), ("outcome", "ok")])?;
        scene
            .portico
            .record(&[("user", "bob@a.example"), ("outcome", "directory_down")])?;
        slapd.start_again()?;
        everybody_gets_in(scene)?;

        // The same again with one that does not even refuse. What is known now is everybody.
        slapd.freeze()?;
        for local in ["alice", "bob", "carol", "dave"] {
            past_its_life(scene, local)?;
            let (_, took) = timed(|| scene.login(local))?;
            ensure!(took < SOON, "{local}: {took:?}");
        }
        let (answer, took) = timed(|| scene.imaps()?.imap("a1 LOGIN nobody@a.example secret"))?;
        ensure!(
            answer.last().is_some_and(|l| l.starts_with("a1 NO [UNAVAILABLE]")),
            "{answer:?}"
        );
        ensure!(took < SOON, "{took:?}");
        slapd.thaw()?;
        until("strangers to be known for strangers", SOON, || {
            let answer = scene.imaps()?.imap("a1 LOGIN nobody@a.example secret")?;
            let known = answer
                .last()
                .is_some_and(|l| l.starts_with("a1 NO [AUTHENTICATIONFAILED]"));
            Ok(known.then_some(()))
        })?;
        everybody_gets_in(scene)
    })
}

#[test]
fn a_node_starts_from_its_last_good_reading() -> Result<()> {
    play(
        people(),
        |_, _, _, _| Ok(()),
        |scene, slapd, ()| {
            scene.login("alice")?;
            slapd.stop()?;
            scene.portico.restart("info")?;
            // Servers and domains are known again, and where Alice is; where others are is not.
            scene.login("alice")?;
            let answer = scene.imaps()?.imap("a1 LOGIN bob@a.example bob-c4n4ry-two")?;
            ensure!(
                answer.last().is_some_and(|l| l.starts_with("a1 NO [UNAVAILABLE]")),
                "{answer:?}"
            );
            slapd.start_again()?;
            everybody_gets_in(scene)
        },
    )
}

/// The `route_cache` section with this memcached.
fn shared(at: SocketAddrV4) -> (String, String) {
    let section = format!("{{memcached: {{servers: [\"{at}\"], timeout: 200ms}}}}");
    ("route_cache".to_owned(), section)
}

#[test]
fn entries_are_shared_with_nginx_in_its_own_form() -> Result<()> {
    // Eve lives on the first store; the directory does not know it yet, but some proxy does.
    let mut people = people();
    people.push(Person::new("eve@a.example", 0, "eve-c4n4ry-five"));
    let change = |stage: &Stage, town: &Town, node: &mut Node, directory: &mut Directory| {
        let memcached = Memcached::start(stage)?;
        node.more.push(shared(memcached.address()));
        directory
            .account("eve@a.example")
            .insert("zimbraMailHost".into(), town.stores[1].name.clone().into());
        Ok(memcached)
    };
    play(people, change, |scene, _slapd, memcached| {
        what_nginx_wrote_is_read(scene, &memcached)?;
        what_nginx_will_read_is_written(scene, &memcached)?;
        other_addresses_are_not_believed(scene, &memcached)
    })
}

fn imap_key(name: &str) -> String {
    wire_key(&format!("route:proto=imapssl;user={name}"))
}

fn address(ip: std::net::Ipv4Addr, port: u16) -> String {
    format!("{ip}:{port}")
}

fn what_nginx_wrote_is_read(scene: &Scene, memcached: &Memcached) -> Result<()> {
    let store = &scene.town.stores[0].dovecot;
    let route = address(store.ip, store.imaps);
    memcached.add(&imap_key("eve@a.example"), &route)?;
    scene.login("eve")?;
    scene.portico.record(&[
        ("account", "eve@a.example"),
        ("tier", "memcached"),
        ("route", &route),
        ("outcome", "ok"),
    ])?;
    Ok(())
}

/// For each protocol its own entry.
fn what_nginx_will_read_is_written(scene: &Scene, memcached: &Memcached) -> Result<()> {
    let store = &scene.town.stores[1];
    let is_written = |key: String, expected: String| {
        until("an entry to be written", SOON, || {
            let value = memcached.get(&key)?;
            ensure!(
                value.is_none() || value == Some(expected.clone()),
                "{value:?}, not {expected}"
            );
            Ok(value)
        })
    };
    scene.login("bob")?;
    is_written(
        imap_key("bob@a.example"),
        address(store.dovecot.ip, store.dovecot.imaps),
    )?;
    let mut wire = scene.pop3s()?;
    wire.pop_ok("USER dave@b.example")?;
    wire.pop_ok("PASS dave-c4n4ry-four")?;
    let pop3 = wire_key("route:proto=pop3ssl;user=dave@b.example");
    is_written(pop3, address(store.dovecot.ip, store.dovecot.pop3s))?;
    let web = web_route_is_written(scene, memcached, &scene.town.person("bob")?.id)?;
    ensure!(web == address(store.dovecot.ip, store.web.https.port()), "{web}");
    Ok(())
}

/// An address that is no mailbox server's is overwritten.
fn other_addresses_are_not_believed(scene: &Scene, memcached: &Memcached) -> Result<()> {
    const FALSE: &str = "127.0.0.66:25";
    memcached.add(&imap_key("carol@b.example"), FALSE)?;
    scene.login("carol")?;
    scene
        .portico
        .record(&[("account", "carol@b.example"), ("tier", "directory"), ("outcome", "ok")])?;
    until("the false entry to be gone", SOON, || {
        let value = memcached.get(&imap_key("carol@b.example"))?;
        Ok((value.as_deref() != Some(FALSE)).then_some(()))
    })
}

/// Asks for something by id on the web, and looks for the entry.
fn web_route_is_written(scene: &Scene, memcached: &Memcached, id: &str) -> Result<String> {
    let endpoint = scene.town.endpoints.https;
    let mut wire = scene.tls(endpoint, "mail.a.example")?;
    let token = portico_tests::web::auth_token(id);
    wire.send(format!(
        "GET /home/~/echo HTTP/1.1\r\nHost: mail.a.example\r\nCookie: ZM_AUTH_TOKEN={token}\r\n\r\n"
    ))?;
    ensure!(wire.line()?.starts_with("HTTP/1.1 200"), "the web answers");
    let key = wire_key(&format!("route:proto=httpssl;id={id}"));
    until("the entry of the web", SOON, || memcached.get(&key))
}

#[test]
fn logins_do_not_depend_on_a_shared_cache_that_is_dead_or_frozen() -> Result<()> {
    let change = |stage: &Stage, _: &Town, node: &mut Node, _: &mut Directory| {
        let memcached = Memcached::start(stage)?;
        node.more.push(shared(memcached.address()));
        Ok(memcached)
    };
    play(people(), change, |scene, _slapd, mut memcached| {
        let everybody = |what: &str| -> Result<()> {
            let names = scene.town.people.iter().map(|person| person.name.as_str());
            let words: Vec<&str> = ["route", "purge"].into_iter().chain(names).collect();
            done(&scene.portico, &words)?;
            for local in ["alice", "bob", "carol", "dave"] {
                let (_, took) = timed(|| scene.login(local)).with_context(|| what.to_owned())?;
                ensure!(took < SOON, "{what}, {local}: {took:?}");
            }
            Ok(())
        };
        everybody("well")?;
        memcached.freeze()?;
        everybody("frozen")?;
        memcached.thaw()?;
        everybody("well again")?;
        memcached.kill();
        everybody("dead")?;
        memcached.start_again()?;
        everybody("back")
    })
}

#[test]
fn logins_do_not_depend_on_a_shared_cache_that_sends_garbage() -> Result<()> {
    let change = |stage: &Stage, _: &Town, node: &mut Node, _: &mut Directory| {
        let address = SocketAddrV4::new(std::net::Ipv4Addr::LOCALHOST, stage.port()?);
        let babbler = Fake::start(address, None, |peer| {
            loop {
                peer.line()?;
                peer.send(b"VALUE nobody 0 999999999\r\n\x00\xff\x00 STORED END\r\nVALUE\r\n")?;
            }
        })?;
        node.more.push(shared(address));
        Ok(babbler)
    };
    play(people(), change, |scene, _slapd, babbler| {
        for local in ["alice", "bob", "carol", "dave"] {
            let (_, took) = timed(|| scene.login(local))?;
            ensure!(took < SOON, "{local}: {took:?}");
        }
        ensure!(babbler.connections() > 0, "it was not even asked");
        Ok(())
    })
}
