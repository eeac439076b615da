//! Holds: new logins of an account, a domain or a server wait; they go on when the hold ends, or hear the chosen text.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use nix::sys::signal::Signal;
use portico_tests::config::{Directory, Node};
use portico_tests::town::{FRONT, Town, people};

use crate::admin::{done, json, said};
use crate::scene::{Scene, play_with};

const SOON: Duration = Duration::from_secs(30);
const TEXT: &str = "we move your mailbox; come back in an hour";

/// Logins wait for so long.
fn waiting(wait: &str) -> impl FnOnce(&Town, &mut Node, &mut Directory) -> Result<()> {
    let section = format!("{{hold_wait: {wait}, hold_text: \"{TEXT}\"}}");
    move |_, node, _| {
        node.more.push(("mail".to_owned(), section));
        Ok(())
    }
}

fn is_held(scene: &Scene, local: &str) -> Result<()> {
    let person = scene.town.person(local)?;
    let answer = scene
        .imaps()?
        .imap(&format!("a1 LOGIN {} {}", person.name, person.password()))?;
    let expected = format!("a1 NO [UNAVAILABLE] {TEXT}");
    ensure!(answer.last() == Some(&expected), "{local}: {answer:?}");
    let mut pop = scene.pop3s()?;
    pop.pop_ok(&format!("USER {}", person.name))?;
    let answer = pop.pop(&format!("PASS {}", person.password()))?;
    ensure!(answer == format!("-ERR [SYS/TEMP] {TEXT}"), "{local}: {answer}");
    Ok(())
}

/// The answer to a web request for a mailbox.
fn web(scene: &Scene, account: &str) -> Result<String> {
    let mut wire = scene.tls(scene.town.endpoints.https, FRONT)?;
    wire.send(format!(
        "GET /home/{account}/x HTTP/1.1\r\nHost: {FRONT}\r\nConnection: close\r\n\r\n"
    ))?;
    Ok(String::from_utf8_lossy(&wire.rest()?).into_owned())
}

fn hold(scene: &Scene, whose: &[&str]) -> Result<String> {
    let rest = ["--for", "10m", "--reason", "case 17"];
    done(&scene.portico, &[&["users", "hold"], whose, &rest].concat())
}

fn release(scene: &Scene, whose: &[&str]) -> Result<String> {
    done(&scene.portico, &[&["users", "release"], whose].concat())
}

#[test]
fn a_held_account_hears_the_text_and_the_others_notice_nothing() -> Result<()> {
    play_with(people(), waiting("300ms"), |scene| {
        // By an alias.
        let out = hold(scene, &["al@a.example"])?;
        ensure!(out.starts_with("new logins wait: account alice@a.example "), "{out}");
        is_held(scene, "alice")?;
        scene.login("bob")?;
        scene.login("carol")?;
        let answer = web(scene, "alice@a.example")?;
        ensure!(answer.starts_with("HTTP/1.1 503"), "{answer}");
        ensure!(answer.to_ascii_lowercase().contains("\r\nretry-after: "), "{answer}");
        ensure!(web(scene, "bob@b.example")?.starts_with("HTTP/1.1 "));
        let record = scene
            .portico
            .record(&[("account", "alice@a.example"), ("outcome", "held"), ("proto", "imap")])?;
        ensure!(record["why"] == "account alice@a.example is held: case 17", "{record}");
        let explained = done(&scene.portico, &["route", "explain", "alice@a.example"])?;
        ensure!(explained.contains("is held: case 17: new logins wait"), "{explained}");
        let list = json(&scene.portico, &["users", "holds"])?;
        ensure!(list["holds"][0]["name"] == "alice@a.example", "{list}");
        release(scene, &["alice@a.example"])?;
        scene.login("alice")?;
        ensure!(web(scene, "alice@a.example")?.starts_with("HTTP/1.1 200"));
        let again = said(&scene.portico, &["users", "release", "alice@a.example"])?;
        ensure!(again.code != 0 && again.err.contains("is not held"), "{}", again.err);
        let acts = scene
            .portico
            .count(&[("event", "admin"), ("act", "release account alice@a.example")])?;
        ensure!(acts == 1, "{acts} acts");
        Ok(())
    })
}

#[test]
fn a_login_that_waits_goes_on_when_the_hold_is_released() -> Result<()> {
    play_with(people(), waiting("60s"), |scene| {
        hold(scene, &["--server", &scene.town.stores[0].name.clone()])?;
        scene.login("bob")?;
        let alice = scene.town.person("alice")?.clone();
        let mut wire = scene.imaps()?;
        wire.send(format!("a1 LOGIN {} {}\r\n", alice.name, alice.password()))?;
        // While she waits, the others are served, and the node says that she is not in yet.
        scene.login("dave")?;
        let before = scene
            .portico
            .count(&[("account", "alice@a.example"), ("outcome", "ok")])?;
        ensure!(before == 0, "she got in");
        release(scene, &["--server", &scene.town.stores[0].name.clone()])?;
        wire.imap_ok("a2 NOOP")?;
        scene
            .portico
            .record(&[("account", "alice@a.example"), ("outcome", "ok")])
            .map(drop)
    })
}

#[test]
fn holds_and_generations_go_on_over_restarts_and_upgrades() -> Result<()> {
    play_with(people(), waiting("100ms"), |scene| {
        hold(scene, &["--domain", "a.example"])?;
        is_held(scene, "alice")?;
        scene.login("carol")?;
        let generation = |scene: &Scene| -> Result<u64> {
            let status = json(&scene.portico, &["status"])?;
            status["generation"].as_u64().context("no generation")
        };
        ensure!(generation(scene)? == 1);
        scene.portico.restart("info")?;
        scene.login("carol")?;
        is_held(scene, "alice")?;
        ensure!(generation(scene)? == 2);
        let mut old = scene.portico.upgrade("info")?;
        is_held(scene, "bob")?;
        ensure!(generation(scene)? == 3);
        let history = json(&scene.portico, &["generations"])?;
        let numbers: Vec<_> = history["generations"].as_array().context("no list")?.iter().collect();
        ensure!(numbers.len() == 3 && numbers[2]["generation"] == 1, "{history}");
        old.signal(Signal::SIGTERM)?;
        old.wait(SOON)?;
        scene.portico.kill();
        scene.portico.start_again("info")?;
        scene.login("carol")?;
        is_held(scene, "alice")?;
        release(scene, &["--domain", "a.example"])?;
        scene.login("alice").map(drop)
    })
}

#[test]
fn an_account_in_maintenance_waits_as_if_it_were_held() -> Result<()> {
    let change = |town: &Town, node: &mut Node, directory: &mut Directory| {
        waiting("300ms")(town, node, directory)?;
        let entry = directory.account("alice@a.example");
        entry.insert("zimbraAccountStatus".into(), "maintenance".into());
        Ok(())
    };
    play_with(people(), change, |scene| {
        is_held(scene, "alice")?;
        ensure!(web(scene, "alice@a.example")?.starts_with("HTTP/1.1 503"));
        scene.login("bob")?;
        let record = scene
            .portico
            .record(&[("account", "alice@a.example"), ("outcome", "held")])?;
        ensure!(record["why"] == "zimbraAccountStatus is maintenance", "{record}");
        scene.portico.replace_directory(&scene.town.directory())?;
        scene.portico.reload()?;
        scene.login("alice").map(drop)
    })
}

/// A hold of an alias domain is one of the domain whose accounts have addresses in it.
#[test]
fn an_alias_domain_is_held_by_its_target() -> Result<()> {
    let change = |town: &Town, node: &mut Node, directory: &mut Directory| {
        waiting("300ms")(town, node, directory)?;
        directory.domain("a.example").insert("zimbraId".into(), "a".into());
        let alias = directory.domain("alias.example");
        alias.insert("zimbraDomainType".into(), "alias".into());
        alias.insert("zimbraDomainAliasTargetId".into(), "a".into());
        Ok(())
    };
    play_with(people(), change, |scene| {
        let out = hold(scene, &["--domain", "Alias.example."])?;
        ensure!(out.starts_with("new logins wait: domain a.example "), "{out}");
        is_held(scene, "alice")?;
        scene.login("dave")?;
        release(scene, &["--domain", "alias.example"])?;
        scene.login("alice").map(drop)
    })
}

#[test]
fn what_cannot_be_held_is_refused() -> Result<()> {
    play_with(people(), waiting("300ms"), |scene| {
        for (args, expected) in [
            (
                &["nobody@a.example", "--for", "10m", "--reason", "x"][..],
                "has no account",
            ),
            (
                &["--domain", "nowhere.example", "--for", "10m", "--reason", "x"],
                "has no domain",
            ),
            (
                &["--server", "nowhere.example", "--for", "10m", "--reason", "x"],
                "has no server",
            ),
            (&["alice@a.example", "--for", "25h", "--reason", "x"], "a hold lasts"),
            (
                &["alice@a.example", "--for", "10m", "--reason", " "],
                "expected a reason",
            ),
            (
                &["alice@a.example", "--for", "soon", "--reason", "x"],
                "expected a time",
            ),
            (&["--for", "10m", "--reason", "x"], "required"),
        ] {
            let answer = said(&scene.portico, &[&["users", "hold"], args].concat())?;
            ensure!(
                answer.code != 0 && answer.err.contains(expected),
                "{args:?}: {}",
                answer.err
            );
        }
        ensure!(done(&scene.portico, &["users", "holds"])?.is_empty());
        Ok(())
    })
}
