//! Routes outlive the process: whoever was seen before gets in while the directory is down, after a crash, a restart
//! and an upgrade; what changed meanwhile is seen all the same.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::LazyLock;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use portico_tests::town::{Person, people};
use portico_tests::until;

use crate::admin::{done, json};
use crate::directory::play;
use crate::scene::Scene;

const SOON: Duration = Duration::from_secs(30);

/// Users beside those of the town.
static MANY: LazyLock<usize> = LazyLock::new(|| portico_tests::amount("PORTICO_USERS", 200));
/// How many log in at one time.
const AT_ONCE: usize = 4;

fn many() -> Vec<Person> {
    let user = |i| Person::new(&format!("u{i:03}@a.example"), i % 2, format!("u{i:03}-c4n4ry-many"));
    people().into_iter().chain((0..*MANY).map(user)).collect()
}

/// The file, beside the one with the last good reading.
fn file(scene: &Scene) -> PathBuf {
    scene.stage.path().join("slapd").join("routes.snapshot")
}

/// Names stand in the file as they are.
fn holds(file: &Path, name: &str) -> bool {
    let bytes = fs::read(file).unwrap_or_default();
    bytes.windows(name.len()).any(|window| window == name.as_bytes())
}

fn everybody_logs_in(scene: &Scene) -> Result<()> {
    let some = |first: usize| {
        let mut mine = (first..*MANY).step_by(AT_ONCE);
        mine.try_for_each(|i| scene.login(&format!("u{i:03}")).map(drop))
    };
    std::thread::scope(|threads| {
        let all: Vec<_> = (0..AT_ONCE).map(|first| threads.spawn(move || some(first))).collect();
        all.into_iter()
            .try_for_each(|one| one.join().expect("it does not panic"))
    })
}

/// Whether it has everybody.
fn holds_all(file: &Path) -> bool {
    let bytes = fs::read(file).unwrap_or_default();
    let text = String::from_utf8_lossy(&bytes);
    (0..*MANY).all(|i| text.contains(&format!("u{i:03}@a.example")))
}

/// So many logins were served out of the file.
fn logins_by_file(scene: &Scene, expected: usize) -> Result<()> {
    let fields = [("event", "login"), ("tier", "kept_file"), ("outcome", "ok")];
    until(&format!("{expected} logins by the file"), SOON, || {
        let count = scene.portico.count(&fields)?;
        ensure!(count <= expected, "{count} logins by the file");
        Ok((count == expected).then_some(()))
    })
}

fn is_unavailable(scene: &Scene, local: &str) -> Result<()> {
    let person = scene.town.person(local)?;
    let command = format!("a1 LOGIN {} {}", person.name, person.password());
    let answer = scene.imaps()?.imap(&command)?;
    let last = answer.last().context("no answer")?;
    ensure!(last.starts_with("a1 NO [UNAVAILABLE]"), "{local}: {last}");
    Ok(())
}

#[test]
fn without_a_directory_a_killed_and_an_upgraded_node_know_everybody_seen_before() -> Result<()> {
    play(
        many(),
        |_, _, _, _| Ok(()),
        |scene, slapd, ()| {
            everybody_logs_in(scene)?;
            let last = format!("u{:03}@a.example", *MANY - 1);
            until("the routes to be kept", SOON, || {
                Ok(holds_all(&file(scene)).then_some(()))
            })?;
            slapd.stop()?;
            scene.portico.kill();
            scene.portico.start_again("info")?;
            everybody_logs_in(scene)?;
            logins_by_file(scene, *MANY)?;
            is_unavailable(scene, "alice")?;
            let explained = done(&scene.portico, &["route", "explain", &last])?;
            ensure!(explained.contains("from kept_file"), "{explained}");
            let metrics = json(&scene.portico, &["status"])?;
            ensure!(metrics["generation"].as_u64() >= Some(1), "{metrics}");

            // The new process gets the routes of the old one, which came from the file, too.
            let mut old = scene.portico.upgrade("info")?;
            everybody_logs_in(scene)?;
            logins_by_file(scene, 2 * *MANY)?;
            is_unavailable(scene, "bob")?;
            old.signal(nix::sys::signal::Signal::SIGTERM)?;
            old.wait(SOON)?;

            slapd.start_again()?;
            until("the directory to be asked again", SOON, || {
                Ok(scene.login("alice").ok())
            })?;
            let asked = || scene.portico.count(&[("tier", "memory"), ("account", &last)]);
            until("the routes to be asked for again", SOON, || {
                scene.login(&format!("u{:03}", *MANY - 1))?;
                Ok((asked()? > 0).then_some(()))
            })
        },
    )
}

#[test]
fn an_account_that_moved_while_no_node_ran_is_sent_to_its_new_server() -> Result<()> {
    play(
        people(),
        |_, _, _, _| Ok(()),
        |scene, slapd, ()| {
            for local in ["alice", "bob", "carol"] {
                scene.login(local)?;
            }
            scene.portico.stop()?;
            ensure!(holds(&file(scene), "alice@a.example"), "not written at the end");
            slapd.set_account("alice@a.example", "zimbraMailHost", &scene.town.stores[1].name)?;
            slapd.delete_account("carol@b.example")?;
            let before = slapd.questions()?.len();
            scene.portico.start_again("info")?;
            scene.login("bob")?;
            // The routes are asked for again meanwhile, in no order: bob's may have come already.
            let tiers = ["kept_file", "memory"];
            let from = |tier: &&str| scene.portico.count(&[("account", "bob@a.example"), ("tier", tier)]);
            until("a login without a question", SOON, || {
                let counts: Vec<usize> = tiers.iter().map(from).collect::<Result<_>>()?;
                Ok((counts.iter().sum::<usize>() > 0).then_some(()))
            })?;
            // Alice has no mailbox on the other store: it refuses her.
            let alice = scene.town.person("alice")?;
            scene
                .imaps()?
                .imap(&format!("a1 LOGIN {} {}", alice.name, alice.password()))?;
            let other = &scene.town.stores[1].dovecot;
            let route = format!("{}:{}", other.ip, other.imaps);
            // Out of the directory, now or a moment ago.
            scene
                .portico
                .record(&[("account", "alice@a.example"), ("route", &route)])?;
            ensure!(slapd.questions()?.len() > before);
            until("the deleted account to be forgotten", SOON, || {
                let answer = scene.imaps()?.imap("a1 LOGIN carol@b.example carol-c4n4ry-three")?;
                let unknown = scene
                    .portico
                    .count(&[("user", "carol@b.example"), ("outcome", "unknown_user")])?;
                Ok((unknown > 0).then_some(answer))
            })?;
            Ok(())
        },
    )
}

#[test]
fn a_damaged_file_is_set_aside_with_a_warning() -> Result<()> {
    play(
        people(),
        |_, _, _, _| Ok(()),
        |scene, _slapd, ()| {
            scene.login("alice")?;
            scene.portico.stop()?;
            let file = file(scene);
            let mut bytes = fs::read(&file)?;
            let middle = bytes.len() / 2;
            bytes[middle] ^= 1;
            fs::write(&file, &bytes)?;
            scene.portico.start_again("info")?;
            let warning = "routes.snapshot are not used; the file will be set aside: it is damaged";
            until("the warning", SOON, || {
                Ok(scene.portico.output().contains(warning).then_some(()))
            })?;
            scene.login("bob")?;
            let aside = file.with_extension("snapshot.unusable");
            until("a new file", SOON, || Ok(holds(&file, "bob@a.example").then_some(())))?;
            ensure!(fs::read(&aside)? == bytes, "not as it was");
            ensure!(!holds(&file, "alice@a.example"), "out of the damaged file");
            Ok(())
        },
    )
}
