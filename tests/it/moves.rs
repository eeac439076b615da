//! Accounts that go to another server: what becomes of their sessions, and of those of others.

use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use portico_tests::config::{Directory, Node};
use portico_tests::portico::{Portico, binary};
use portico_tests::town::{FRONT, Person, Store, Town};
use portico_tests::web::auth_token;
use portico_tests::wire::Wire;

use crate::admin::json;
use crate::scene::{Scene, Source};

/// Alice and Bob have a mailbox on both stores.
fn movers() -> Vec<Person> {
    vec![
        Person::new("alice@a.example", 0, "alice-c4n4ry-one")
            .alias("al@a.example")
            .everywhere(),
        Person::new("bob@a.example", 0, "bob-c4n4ry-two").everywhere(),
        Person::new("carol@b.example", 0, "carol-c4n4ry-three").everywhere(),
    ]
}

fn polling(_: &Town, node: &mut Node, _: &mut Directory) -> Result<()> {
    if node.directory.iter().any(|line| line.starts_with("yaml")) {
        node.directory = portico_tests::config::yaml_source("200ms");
    }
    Ok(())
}

fn pop_session(scene: &Scene, local: &str) -> Result<Wire> {
    let (mut pop, person) = (scene.pop3s()?, scene.town.person(local)?);
    pop.pop_ok(&format!("USER {}", person.name))?;
    pop.pop_ok(&format!("PASS {}", person.password()))?;
    Ok(pop)
}

/// A web socket of an account.
fn web_socket(scene: &Scene, local: &str) -> Result<Wire> {
    let token = auth_token(&scene.town.person(local)?.id);
    let mut wire = scene.tls(scene.town.endpoints.https, FRONT)?;
    wire.send(format!(
        "GET /ws/chat HTTP/1.1\r\nHost: {FRONT}\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
         Cookie: ZM_AUTH_TOKEN={token}\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
    ))?;
    let status = wire.line()?;
    ensure!(status.starts_with("HTTP/1.1 101"), "{status}");
    while !wire.line()?.is_empty() {}
    Ok(wire)
}

/// `portico prov` with the node file of the scene.
fn prov(portico: &Portico, words: &[&str]) -> Result<()> {
    let conf = portico.dir().join("portico.yaml");
    let out = Command::new(binary()?)
        .args(["prov", "-c"])
        .arg(conf)
        .args(words)
        .env("RUST_LOG", "off")
        .output()?;
    ensure!(out.status.success(), "{words:?}: {out:?}");
    Ok(())
}

fn move_by_prov(scene: &Scene, account: &str, store: usize) -> Result<()> {
    let to = scene.town.stores[store].name.clone();
    prov(&scene.portico, &["ma", account, "zimbraMailHost", &to])
}

/// Logs her in; on which store that was.
fn store_of_alice(scene: &Scene) -> Result<usize> {
    let _session = scene.login("alice")?;
    let list = json(&scene.portico, &["sessions", "--user", "alice@a.example"])?;
    let sessions = list["sessions"].as_array().context("no list")?;
    let route = sessions.last().and_then(|last| last["logins"][0]["route"].as_str());
    store_at(scene, route.context("no session")?)
}

/// The store at this address.
fn store_at(scene: &Scene, route: &str) -> Result<usize> {
    let is_at = |store: &Store| route.starts_with(&format!("{}:", store.dovecot.ip));
    scene.town.stores.iter().position(is_at).with_context(|| route.to_owned())
}

#[test]
fn sessions_of_an_account_that_has_moved_end_and_no_others() -> Result<()> {
    for source in [Source::Yaml, Source::Ldap] {
        source.play_with(movers(), polling, |scene| {
            let (mut imap, mut pop) = (scene.login("alice")?, pop_session(scene, "alice")?);
            let (mut bob, mut carol) = (scene.login("bob")?, pop_session(scene, "carol")?);
            imap.imap_ok("a1 SELECT INBOX")?;
            imap.say("a2 IDLE")?;
            ensure!(imap.line()?.starts_with("+ "), "no idle");
            // Another change of the same account ends nothing.
            prov(&scene.portico, &["ma", "alice@a.example", "description", "x"])?;
            move_by_prov(scene, "alice@a.example", 1)?;
            let bye = imap.line()?;
            ensure!(bye == "* BYE your mailbox has moved, please log in again", "{bye}");
            ensure!(imap.line_or_end()?.is_none(), "it goes on");
            ensure!(pop.rest()?.is_empty(), "POP3 hears something that it has not asked for");
            bob.imap_ok("b1 NOOP")?;
            carol.pop_ok("NOOP")?;
            scene.login("alice")?.imap_ok("a1 NOOP")?;
            for proto in ["imap", "pop3"] {
                let fields = [("event", "session_end"), ("proto", proto), ("why", "moved")];
                let record = scene.portico.record(&fields)?;
                ensure!(record["account"] == "alice@a.example", "{record}");
                ensure!(record["ended_by"] == "portico", "{record}");
            }
            // Those of the others would have ended by now.
            bob.imap_ok("b2 NOOP")?;
            carol.pop_ok("NOOP")?;
            let moved = scene.portico.count(&[("event", "session_end"), ("why", "moved")])?;
            ensure!(moved == 2, "{moved} sessions have ended");
            Ok(())
        })?;
    }
    Ok(())
}

#[test]
fn a_session_that_has_followed_its_account_goes_on() -> Result<()> {
    Source::Yaml.play_with(movers(), polling, |scene| {
        let mut socket = web_socket(scene, "alice")?;
        socket.patience(Duration::from_secs(15))?;
        move_by_prov(scene, "alice@a.example", 1)?;
        ensure!(socket.rest()?.is_empty(), "the web socket says something");
        let mut alice = scene.login("alice")?;
        ensure!(store_of_alice(scene)? == 1, "she is on the old store");
        // A change of an account that has not moved since.
        prov(&scene.portico, &["ma", "alice@a.example", "description", "y"])?;
        ensure!(alice.is_silent(Duration::from_secs(1))?, "her session is told something");
        alice.imap_ok("a1 NOOP")?;
        Ok(())
    })
}

/// Dovecot's own referrals, which its passdb orders.
#[test]
fn a_referral_of_a_real_server_is_followed_and_learned() -> Result<()> {
    Source::Yaml.play_with(movers(), polling, |scene| {
        let there = scene.town.stores[1].dovecot.ip;
        for extra in ["nologin", ""] {
            let field = format!("{extra} host={there}");
            scene.town.stores[0].dovecot.add_to_user("alice@a.example", field.trim())?;
            done(&scene.portico, &["route", "purge", "--all"])?;
            ensure!(store_of_alice(scene)? == 1, "{extra}");
            let first = [("account", "alice@a.example"), ("outcome", "ok"), ("tier", "referral")];
            let record = scene.portico.record(&first)?;
            ensure!(record["why"] == "referred by store1.example.test", "{record}");
            let explained = done(&scene.portico, &["route", "explain", "alice@a.example"])?;
            ensure!(explained.contains("referral"), "{explained}");
            // It has been learned: the old server is not asked.
            let before = scene.portico.count(&first)?;
            ensure!(store_of_alice(scene)? == 1);
            ensure!(scene.portico.count(&first)? == before + 1);
        }
        // What the directory says anew counts.
        let mut alice = scene.login("alice")?;
        prov(&scene.portico, &["ma", "alice@a.example", "description", "x"])?;
        alice.imap_ok("a1 NOOP")?;
        // A change of the account is no move of it: the directory has never said where this session is.
        ensure!(alice.is_silent(Duration::from_secs(1))?, "her session is told something");
        Ok(())
    })
}

#[test]
fn sessions_go_on_where_that_is_wanted() -> Result<()> {
    let change = |town: &Town, node: &mut Node, directory: &mut Directory| {
        node.more.push(("mail".to_owned(), "{end_moved: off}".to_owned()));
        polling(town, node, directory)
    };
    Source::Yaml.play_with(movers(), change, |scene| {
        let mut alice = scene.login("alice")?;
        move_by_prov(scene, "alice@a.example", 1)?;
        portico_tests::until("the change", Duration::from_secs(10), || {
            Ok((store_of_alice(scene)? == 1).then_some(()))
        })?;
        alice.imap_ok("a1 NOOP")?;
        Ok(())
    })
}
