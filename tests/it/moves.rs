//! Accounts that go to another server: what becomes of their sessions, and of those of others.

use std::io::{Read, Write};
use std::net::{SocketAddr, SocketAddrV4, TcpListener, TcpStream};
use std::os::unix::fs::PermissionsExt;
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use portico_tests::config::{Directory, Node};
use portico_tests::portico::{Portico, binary};
use portico_tests::slapd::Slapd;
use portico_tests::town::{FRONT, Person, Store, Town};
use portico_tests::web::auth_token;
use portico_tests::wire::Wire;
use portico_tests::{Stage, until};

use crate::admin::{Said, done, json, said};
use crate::scene::{Scene, Source};

/// Alice and Bob have a mailbox on both stores.
pub(crate) fn movers() -> Vec<Person> {
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
pub(crate) fn prov(portico: &Portico, words: &[&str]) -> Result<()> {
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
    scene
        .town
        .stores
        .iter()
        .position(is_at)
        .with_context(|| route.to_owned())
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

/// The previous process of an upgrade follows the directory for the sessions that it has left, and writes nothing that
/// the new one reads.
#[test]
fn a_session_of_an_old_process_ends_when_its_account_moves() -> Result<()> {
    for source in [Source::Yaml, Source::Ldap] {
        source.play_with(movers(), polling, |scene| {
            let (mut alice, mut bob) = (scene.login("alice")?, scene.login("bob")?);
            let old = scene.portico.upgrade("info")?;
            prov(&scene.portico, &["mcf", "zimbraReverseProxyConnectTimeout", "9s"])?;
            move_by_prov(scene, "alice@a.example", 1)?;
            let bye = alice.line()?;
            ensure!(
                bye == "* BYE your mailbox has moved, please log in again",
                "{source:?}: {bye}"
            );
            bob.imap_ok("b1 NOOP")?;
            // Both have seen the change of the global config, and only the new one has written.
            let generations = json(&scene.portico, &["generations"])?;
            let text = std::fs::read_to_string(scene.portico.dir().join("node.state"))?;
            let state: serde_json::Value = serde_json::from_str(&text)?;
            assert_eq!(
                state["generations"][0]["number"],
                generations["generations"][0]["generation"]
            );
            let changes = |number: &serde_json::Value| {
                let all = state["generations"].as_array().into_iter().flatten();
                all.filter(|one| one["number"] == *number).count()
            };
            assert_eq!(changes(&state["generations"][0]["number"]), 1);
            // In the audit log, too, each number stands once.
            let records = scene.portico.audit()?;
            let configs = records.iter().filter(|record| record["event"] == "config");
            let mut numbers: Vec<_> = configs.filter_map(|record| record["generation"].as_u64()).collect();
            let all = numbers.len();
            numbers.sort_unstable();
            numbers.dedup();
            ensure!(all >= 3 && numbers.len() == all, "{all} configurations, {numbers:?}");
            old.signal(nix::sys::signal::Signal::SIGTERM)?;
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
        ensure!(
            alice.is_silent(Duration::from_secs(1))?,
            "her session is told something"
        );
        alice.imap_ok("a1 NOOP")?;
        Ok(())
    })
}

/// Dovecot's own referrals, which its passdb orders.
#[test]
fn a_referral_of_a_real_server_is_followed_and_learned() -> Result<()> {
    Source::Yaml.play_with(movers(), polling, |scene| {
        let there = scene.town.stores[1].dovecot.ip;
        let fields = format!("nologin host={there}");
        scene.town.stores[0].dovecot.add_to_user("alice@a.example", &fields)?;
        ensure!(store_of_alice(scene)? == 1);
        let learned = [("account", "alice@a.example"), ("outcome", "ok"), ("tier", "referral")];
        let record = scene.portico.record(&learned)?;
        ensure!(record["why"] == "referred by store1.example.test", "{record}");
        let explained = done(&scene.portico, &["route", "explain", "alice@a.example"])?;
        ensure!(explained.contains("referral"), "{explained}");
        // It has been learned: the old server is not asked.
        ensure!(store_of_alice(scene)? == 1);
        until("the second login", Duration::from_secs(10), || {
            Ok((scene.portico.count(&learned)? == 2).then_some(()))
        })?;
        let asked = scene.portico.count(&[("why", "referred by store1.example.test")])?;
        ensure!(asked == 1, "the old server was asked {asked} times");
        // What the directory says anew counts.
        let mut alice = scene.login("alice")?;
        prov(&scene.portico, &["ma", "alice@a.example", "description", "x"])?;
        alice.imap_ok("a1 NOOP")?;
        // A change of the account is no move of it: the directory has never said where this session is.
        ensure!(
            alice.is_silent(Duration::from_secs(1))?,
            "her session is told something"
        );
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
        until("the change", Duration::from_secs(10), || {
            Ok((store_of_alice(scene)? == 1).then_some(()))
        })?;
        alice.imap_ok("a1 NOOP")?;
        Ok(())
    })
}

fn move_to(scene: &Scene, who: &[&str], store: usize, more: &[&str]) -> Result<Said> {
    let to = scene.town.stores[store].name.clone();
    said(
        &scene.portico,
        &[&["users", "move"], who, &["--to", &to], more].concat(),
    )
}

/// Alice's logins, one after the other, until they are told to stop.
pub(crate) fn log_in_until(town: &Town, stop: &AtomicBool, open: impl Fn() -> Result<Wire>) -> Result<usize> {
    let (person, mut count) = (town.person("alice")?, 0);
    while !stop.load(Ordering::Relaxed) {
        let mut wire = open()?;
        let answer = wire.imap(&format!("a1 LOGIN {} {}", person.name, person.password()))?;
        let last = answer.last().map(String::as_str).unwrap_or_default();
        ensure!(last.starts_with("a1 OK"), "{answer:?}");
        // It may hear BYE instead of an answer.
        wire.say("a2 LOGOUT")?;
        let _ended = wire.rest();
        count += 1;
    }
    Ok(count)
}

/// Reads the audit log from its beginning: which server got a login after a move had ended and before the next began.
fn no_login_was_at_the_old_server(scene: &Scene) -> Result<usize> {
    let (mut now, mut moves) = (None, 0);
    for record in scene.portico.audit()? {
        let text = |name: &str| record[name].as_str().unwrap_or_default().to_owned();
        let act = text("act");
        if act.starts_with("move alice@a.example") {
            match act.rsplit_once(": ") {
                Some((front, "moved")) => {
                    moves += 1;
                    now = front.rsplit_once(" to ").map(|(_, to)| to.to_owned());
                    ensure!(now.is_some(), "{act}");
                }
                _ => now = None,
            }
        }
        if record["event"] != "login" || record["account"] != "alice@a.example" {
            continue;
        }
        ensure!(record["outcome"] == "ok", "{record}");
        if let Some(server) = &now {
            let store = &scene.town.stores[store_at(scene, &text("route"))?];
            ensure!(store.name == *server, "{server}: {record}");
        }
    }
    Ok(moves)
}

#[test]
fn no_login_reaches_the_old_server_after_a_move() -> Result<()> {
    const MOVES: usize = 25;
    for source in [Source::Yaml, Source::Ldap] {
        source.play_with(movers(), polling, |scene| {
            let (stop, scene) = (AtomicBool::new(false), &*scene);
            let mut bob = scene.login("bob")?;
            let logins = std::thread::scope(|threads| -> Result<usize> {
                let loops: Vec<_> = (0..3)
                    .map(|_| threads.spawn(|| log_in_until(&scene.town, &stop, || scene.imaps())))
                    .collect();
                let moved = (1..=MOVES).try_for_each(|round| {
                    let answer = move_to(scene, &["al@a.example"], round % 2, &["--reason", "balance"])?;
                    ensure!(answer.code == 0, "{}{}", answer.out, answer.err);
                    ensure!(answer.out.contains(": moved in "), "{}", answer.out);
                    Ok(())
                });
                stop.store(true, Ordering::Relaxed);
                let joined = loops.into_iter().map(|one| one.join().expect("it does not panic"));
                let counts: Vec<usize> = joined.collect::<Result<_>>()?;
                moved.map(|()| counts.iter().sum())
            })?;
            let moves = no_login_was_at_the_old_server(scene)?;
            ensure!(moves == MOVES && logins > MOVES, "{moves} moves, {logins} logins");
            ensure!(done(&scene.portico, &["users", "holds"])?.is_empty());
            bob.imap_ok("b1 NOOP").map(drop)
        })?;
    }
    Ok(())
}

#[test]
fn sessions_hear_of_a_move_and_a_dry_run_changes_nothing() -> Result<()> {
    Source::Yaml.play_with(movers(), polling, |scene| {
        let (mut imap, mut pop) = (scene.login("alice")?, pop_session(scene, "alice")?);
        let mut bob = scene.login("bob")?;
        let both = ["alice@a.example", "bob@a.example"];
        let dry = move_to(scene, &both, 1, &["--dry-run"])?;
        ensure!(
            dry.code == 0
                && dry
                    .out
                    .contains("alice@a.example from store1.example.test: would move, 2 sessions"),
            "{}",
            dry.out
        );
        imap.imap_ok("a1 NOOP")?;
        let answer = move_to(scene, &["alice@a.example"], 1, &["--reason", "case 17"])?;
        ensure!(
            answer.code == 0 && answer.out.contains("2 sessions"),
            "{}{}",
            answer.out,
            answer.err
        );
        let bye = imap.line()?;
        ensure!(bye == "* BYE your mailbox has moved, please log in again", "{bye}");
        ensure!(pop.rest()?.is_empty());
        bob.imap_ok("b1 NOOP")?;
        ensure!(store_of_alice(scene)? == 1);
        for (what, count) in [("held: case 17", 1), ("2 sessions ended", 1), ("moved", 1)] {
            let act = format!("move alice@a.example from store1.example.test to store2.example.test: {what}");
            ensure!(
                scene.portico.count(&[("event", "admin"), ("act", &act)])? == count,
                "{act}"
            );
        }
        let again = move_to(scene, &both[..1], 1, &[])?;
        ensure!(again.code == 0 && again.out.contains("already there"), "{}", again.out);
        for (who, to, expected) in [
            ("nobody@a.example", "store2.example.test", "undone"),
            ("bob@a.example", "nowhere.example.test", "has no server"),
            ("bob@a.example", "proxy1.example.test", "holds no mailboxes"),
        ] {
            let refused = said(&scene.portico, &["users", "move", who, "--to", to])?;
            let all = format!("{}{}", refused.out, refused.err);
            ensure!(refused.code != 0 && all.contains(expected), "{who} {to}: {all}");
        }
        // A hold of somebody else does not end with a move.
        done(
            &scene.portico,
            &["users", "hold", "bob@a.example", "--for", "10m", "--reason", "case 18"],
        )?;
        let refused = move_to(scene, &["bob@a.example"], 0, &[])?;
        let other = move_to(scene, &["bob@a.example"], 1, &[])?;
        let all = format!("{}{}{}", refused.out, other.out, other.err);
        ensure!(all.contains("it is held already"), "{all}");
        ensure!(done(&scene.portico, &["users", "holds"])?.contains("case 18"));
        done(&scene.portico, &["users", "release", "bob@a.example"])?;
        // Those that are still there.
        let evacuated = said(
            &scene.portico,
            &[
                "server",
                "evacuate",
                "store1.example.test",
                "--to",
                "store2.example.test",
                "--pace",
                "50",
            ],
        )?;
        ensure!(evacuated.code == 0, "{}{}", evacuated.out, evacuated.err);
        ensure!(evacuated.out.lines().count() == 2, "{}", evacuated.out);
        ensure!(bob.line()?.starts_with("* BYE your mailbox has moved"));
        scene.login("bob").map(drop)?;
        Ok(())
    })
}

/// A program that is run for a copy.
fn program(scene: &Scene, script: &str) -> Result<String> {
    let path = scene.stage.file("copy/copy.sh", format!("#!/bin/sh\n{script}\n"))?;
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755))?;
    Ok(path.display().to_string())
}

#[test]
fn a_copy_that_fails_or_takes_too_long_leaves_everything_as_it_was() -> Result<()> {
    Source::Yaml.play_with(movers(), polling, |scene| {
        let seen = scene.portico.dir().join("copied");
        for (script, lasts, expected) in [
            ("echo no space >&2; exit 3", "1m", "exit status: 3: no space"),
            ("sleep 60", "1s", "has not ended within 1s"),
        ] {
            let program = program(scene, script)?;
            let mut alice = scene.login("alice")?;
            let answer = move_to(scene, &["alice@a.example"], 1, &["--copy", &program, "--for", lasts])?;
            ensure!(
                answer.code != 0 && answer.out.contains(expected),
                "{}{}",
                answer.out,
                answer.err
            );
            ensure!(alice.line()?.starts_with("* BYE"));
            ensure!(store_of_alice(scene)? == 0);
            ensure!(done(&scene.portico, &["users", "holds"])?.is_empty());
        }
        let good = program(scene, &format!("test $# = 3 && echo \"$@\" > {}", seen.display()))?;
        let copy = format!("{good} {{account}} '{{from}}' {{to}}");
        let answer = move_to(scene, &["alice@a.example"], 1, &["--copy", &copy])?;
        ensure!(answer.code == 0, "{}{}", answer.out, answer.err);
        let told = std::fs::read_to_string(&seen)?;
        ensure!(
            told == "alice@a.example store1.example.test store2.example.test\n",
            "{told}"
        );
        ensure!(store_of_alice(scene)? == 1);
        Ok(())
    })
}

#[test]
fn a_node_that_is_killed_during_a_move_undoes_it() -> Result<()> {
    Source::Yaml.play_with(movers(), polling, |scene| {
        let program = program(scene, "sleep 60")?;
        let conf = scene.portico.dir().join("portico.yaml");
        let mut command = Command::new(binary()?)
            .arg("-c")
            .arg(&conf)
            .args([
                "users",
                "move",
                "alice@a.example",
                "--to",
                "store2.example.test",
                "--copy",
                &program,
            ])
            .spawn()?;
        let copying = "move alice@a.example from store1.example.test to store2.example.test: the mail is copied";
        scene.portico.record(&[("event", "admin"), ("act", copying)])?;
        ensure!(done(&scene.portico, &["users", "holds"])?.contains("moves to store2"));
        scene.portico.kill();
        command.wait()?;
        scene.portico.start_again("info")?;
        let undone = "move alice@a.example from store1.example.test to store2.example.test: undone after a new start";
        scene.portico.record(&[("event", "admin"), ("act", undone)])?;
        ensure!(store_of_alice(scene)? == 0);
        ensure!(done(&scene.portico, &["users", "holds"])?.is_empty());
        Ok(())
    })
}

/// The town with slapd, which the node reaches by the lines that `source` says.
fn scene_with_slapd<'a>(
    stage: &'a Stage,
    source: impl FnOnce(&Slapd) -> Result<Vec<String>>,
) -> Result<(Scene<'a>, Slapd)> {
    let town = Town::build(stage, movers())?;
    let (mut node, directory) = (town.node(), town.directory());
    let slapd = Slapd::start(stage, "slapd", &directory)?;
    node.directory = source(&slapd)?;
    let portico = Portico::start(stage, &node, &directory, "info")?;
    Ok((Scene { stage, town, portico }, slapd))
}

/// Waits until the change of a move is noted as under way in the state file.
fn until_changing(portico: &Portico) -> Result<()> {
    let state = portico.dir().join("node.state");
    until("the change to be under way", Duration::from_secs(10), || {
        let text = std::fs::read_to_string(&state).unwrap_or_default();
        let text: String = text.split_whitespace().collect();
        Ok(text.contains("\"changing\":true").then_some(()))
    })
}

#[test]
fn a_move_ends_as_the_directory_says_when_slapd_stops_half_way() -> Result<()> {
    for frozen in [false, true] {
        Stage::run(|stage| {
            let (mut scene, mut slapd) = scene_with_slapd(stage, |slapd| Ok(slapd.source("200ms")))?;
            scene.login("alice")?;
            let go = scene.portico.dir().join("go");
            let program = program(&scene, &format!("until test -e {}; do sleep 0.05; done", go.display()))?;
            let moved = std::thread::scope(|threads| -> Result<Said> {
                let scene = &scene;
                let moving = threads.spawn(move || move_to(scene, &["alice@a.example"], 1, &["--copy", &program]));
                let act = "move alice@a.example from store1.example.test to store2.example.test: the mail is copied";
                scene.portico.record(&[("event", "admin"), ("act", act)])?;
                if frozen {
                    slapd.freeze()?
                } else {
                    slapd.stop()?
                }
                std::fs::write(&go, "")?;
                // It does not know, so nobody gets in.
                if frozen {
                    until_changing(&scene.portico)?;
                } else {
                    let asked = "alice@a.example: whether it has moved is not known yet";
                    until("it asks", Duration::from_secs(30), || {
                        Ok(scene.portico.output().contains(asked).then_some(()))
                    })?;
                }
                ensure!(done(&scene.portico, &["users", "holds"])?.contains("alice@a.example"));
                if frozen {
                    slapd.thaw()?
                } else {
                    slapd.start_again()?
                }
                moving.join().expect("it does not panic")
            })?;
            let all = format!("{}{}", moved.out, moved.err);
            // Frozen, it has the change in its socket, and makes it when it goes on. Stopped, it never got it.
            let (expected, store) = if frozen { (": moved in", 1) } else { (": undone in", 0) };
            ensure!(all.contains(expected), "{all}");
            ensure!(store_of_alice(&scene)? == store);
            ensure!(done(&scene.portico, &["users", "holds"])?.is_empty());
            scene.end()
        })?;
    }
    Ok(())
}

/// A change lies in the queue of a slow server, which answers all else at once: that the account is at its old server is
/// no answer yet.
#[test]
fn a_change_that_lies_in_a_queue_is_waited_for() -> Result<()> {
    Stage::run(|stage| {
        let delayed = Arc::new(AtomicUsize::new(0));
        let (mut scene, _slapd) = scene_with_slapd(stage, |slapd| {
            let slow = pass_changes_late(slapd.address(), delayed.clone())?;
            let mut source = slapd.source_of(&[&format!("ldap://{slow}")], "200ms");
            source.push("  timeout: 1s".to_owned());
            Ok(source)
        })?;
        let moved = move_to(&scene, &["alice@a.example"], 1, &[])?;
        ensure!(delayed.load(Ordering::Relaxed) > 0, "no change was delayed");
        ensure!(moved.out.contains(": moved in"), "{}{}", moved.out, moved.err);
        ensure!(store_of_alice(&scene)? == 1);
        scene.end()
    })
}

/// Longer than the node waits for an answer, and than it takes to look at the directory again.
const LATE: Duration = Duration::from_millis(2_500);

/// Passes on to slapd, changes after the client has given up, and counts these. Returns where.
fn pass_changes_late(slapd: SocketAddrV4, delayed: Arc<AtomicUsize>) -> Result<SocketAddr> {
    let listener = TcpListener::bind("127.0.0.1:0")?;
    let address = listener.local_addr()?;
    std::thread::spawn(move || {
        for client in listener.incoming().map_while(Result::ok) {
            let delayed = delayed.clone();
            std::thread::spawn(move || pass(client, slapd, &delayed));
        }
    });
    Ok(address)
}

fn pass(mut client: TcpStream, slapd: SocketAddrV4, delayed: &AtomicUsize) -> std::io::Result<()> {
    let mut server = TcpStream::connect(slapd)?;
    let (mut back, mut to) = (server.try_clone()?, client.try_clone()?);
    std::thread::spawn(move || std::io::copy(&mut back, &mut to));
    let mut bytes = [0; 16 * 1024];
    loop {
        let count = client.read(&mut bytes)?;
        if count == 0 {
            return server.shutdown(std::net::Shutdown::Write);
        }
        if is_modify(&bytes[..count]) {
            delayed.fetch_add(1, Ordering::Relaxed);
            std::thread::sleep(LATE);
        }
        server.write_all(&bytes[..count])?;
    }
}

/// Whether these bytes begin with an LDAP message that is a ModifyRequest (RFC 4511, section 4.6).
fn is_modify(bytes: &[u8]) -> bool {
    let length = |at: usize| bytes.get(at).copied().unwrap_or_default();
    let message = if length(1) < 0x80 {
        2
    } else {
        2 + usize::from(length(1) & 0x7f)
    };
    let operation = message + 2 + usize::from(length(message + 1));
    bytes.get(operation) == Some(&0x66)
}

/// What is under way when a new process takes over is undone by it, or completed where the directory may have been
/// changed.
#[test]
fn an_upgrade_during_a_move_ends_it_as_the_directory_says() -> Result<()> {
    for changing in [false, true] {
        Stage::run(|stage| {
            let (mut scene, slapd) = scene_with_slapd(stage, |slapd| Ok(slapd.source("200ms")))?;
            scene.login("alice")?;
            let go = scene.portico.dir().join("go");
            let program = program(&scene, &format!("until test -e {}; do sleep 0.05; done", go.display()))?;
            let conf = scene.portico.dir().join("portico.yaml");
            let order = [
                "users",
                "move",
                "alice@a.example",
                "--to",
                "store2.example.test",
                "--copy",
            ];
            let mut command = Command::new(binary()?)
                .arg("-c")
                .arg(&conf)
                .args(order)
                .arg(&program)
                .spawn()?;
            let act = "move alice@a.example from store1.example.test to store2.example.test: ";
            scene
                .portico
                .record(&[("event", "admin"), ("act", &format!("{act}the mail is copied"))])?;
            let mut old = match changing {
                false => scene.portico.upgrade("info")?,
                true => {
                    // The change may wait in the socket of a slapd that is stopped, or not have got that far.
                    slapd.freeze()?;
                    std::fs::write(&go, "")?;
                    until_changing(&scene.portico)?;
                    let old = scene.portico.upgrade("info")?;
                    slapd.thaw()?;
                    old
                }
            };
            let store = until("the move to be settled", Duration::from_secs(60), || {
                let ended = |word: &str| {
                    let act = format!("{act}{word} after a new start");
                    scene.portico.count(&[("event", "admin"), ("act", &act)])
                };
                let (undone, moved) = (ended("undone")?, ended("moved")?);
                Ok((undone + moved == 1).then_some(moved))
            })?;
            ensure!(changing || store == 0, "it was moved before its mail was copied");
            let there = slapd.search("(zimbraMailDeliveryAddress=alice@a.example)", &["zimbraMailHost"])?;
            ensure!(there.contains(&scene.town.stores[store].name), "{there}");
            // Nobody watches it any more.
            ensure!(!command.wait()?.success());
            ensure!(store_of_alice(&scene)? == store);
            ensure!(done(&scene.portico, &["users", "holds"])?.is_empty());
            old.signal(nix::sys::signal::Signal::SIGTERM)?;
            old.wait(Duration::from_secs(30))?;
            scene.end()
        })?;
    }
    Ok(())
}
