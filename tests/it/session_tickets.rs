//! Keys of TLS session tickets: a session that began on one node is resumed on another, after an upgrade and after a
//! restart, on every door; an old ticket is refused, and what is wrong with a file of keys changes nothing.

use std::net::SocketAddrV4;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};
use openssl::base64::encode_block;
use portico_tests::portico::Portico;
use portico_tests::redis::{ACL, Redis};
use portico_tests::s_client::s_client;
use portico_tests::town::{Endpoints, FRONT, Town, people};
use portico_tests::{Stage, until};

use crate::admin::{json, said};
use crate::scene::{play, play_with};
use crate::shared_state::{NAMES, SOON, Together, at};

/// A door, what `openssl s_client` needs to know of it, and what makes the server close the connection.
type Door = (SocketAddrV4, &'static [&'static str], &'static str);

fn doors(front: &Endpoints) -> [Door; 4] {
    let request = "GET /echo HTTP/1.1\r\nHost: front.example.test\r\nConnection: close\r\n\r\n";
    [
        (front.https, &[], request),
        (front.imaps, &[], "a LOGOUT\r\n"),
        (front.imap, &["-starttls", "imap"], "a LOGOUT\r\n"),
        (front.pop3s, &[], "QUIT\r\n"),
    ]
}

/// How a handshake at a door went, in the words of `openssl s_client`.
#[derive(Debug, PartialEq, Eq)]
enum Kind {
    New,
    Reused,
}

/// Shakes hands at a door.
fn shake(door: Door, version: &str, more: &[&str]) -> Result<Kind> {
    shake_as(FRONT, door, version, more)
}

/// The same with a server of this name.
fn shake_as(name: &str, door: Door, version: &str, more: &[&str]) -> Result<Kind> {
    let (endpoint, how, say) = door;
    let arguments: Vec<&str> = [version].iter().chain(how).chain(more).copied().collect();
    let printed = s_client(endpoint, name, say, &arguments)?;
    match (printed.contains("New, TLS"), printed.contains("Reused, TLS")) {
        (true, false) => Ok(Kind::New),
        (false, true) => Ok(Kind::Reused),
        _ => anyhow::bail!("{door:?} {version} {more:?}: {printed}"),
    }
}

/// Sessions at all doors of a node, in both versions of TLS, in files.
struct Begun<'a> {
    dir: &'a Path,
}

const VERSIONS: [&str; 2] = ["-tls1_3", "-tls1_2"];

impl<'a> Begun<'a> {
    fn at(front: &Endpoints, dir: &'a Path) -> Result<Self> {
        let begun = Self { dir };
        begun.each(front, |door, version, file| {
            ensure!(shake(door, version, &["-sess_out", file])? == Kind::New, "{door:?}");
            Ok(())
        })
    }

    fn each(self, front: &Endpoints, act: impl Fn(Door, &str, &str) -> Result<()>) -> Result<Self> {
        for (n, door) in doors(front).into_iter().enumerate() {
            for version in VERSIONS {
                let file = self.dir.join(format!("session{n}{version}"));
                act(door, version, file.to_str().context("path")?)?;
            }
        }
        Ok(self)
    }

    /// Whether they are resumed at a node: all or none.
    fn are(self, kind: &Kind, front: &Endpoints) -> Result<Self> {
        self.each(front, |door, version, file| {
            let got = shake(door, version, &["-sess_in", file])?;
            ensure!(got == *kind, "{door:?} {version}: {got:?} instead of {kind:?}");
            Ok(())
        })
    }
}

/// A file of keys, which only this user may read.
fn write_keys(path: &Path, octets: &[u8]) -> Result<()> {
    let lines = octets
        .iter()
        .map(|octet| encode_block(&[*octet; 80]).replace('\n', "") + "\n");
    write_file(path, &lines.collect::<String>(), 0o600)
}

fn write_file(path: &Path, text: &str, mode: u32) -> Result<()> {
    let new = path.with_extension("new");
    std::fs::write(&new, text)?;
    std::fs::set_permissions(&new, PermissionsExt::from_mode(mode))?;
    Ok(std::fs::rename(&new, path)?)
}

fn ticket_keys(portico: &Portico) -> Result<serde_json::Value> {
    Ok(json(portico, &["status"])?["ticket_keys"].clone())
}

/// Waits until keys come from there, and so many are taken.
fn has_keys(portico: &Portico, source: &str, taken: u64) -> Result<()> {
    until(&format!("{taken} keys of {source}"), SOON, || {
        let keys = ticket_keys(portico)?;
        Ok((keys["source"] == source && keys["taken"] == taken).then_some(()))
    })
}

#[test]
fn a_session_of_one_node_is_resumed_at_another_that_has_the_same_file() -> Result<()> {
    Stage::run(|stage| {
        let town = Town::build(stage, people())?;
        let mut directory = town.directory();
        let files: Vec<PathBuf> = NAMES[..2]
            .iter()
            .map(|name| stage.path().join(format!("{name}.tickets")))
            .collect();
        let (mut nodes, mut fronts) = (Vec::new(), Vec::new());
        for (name, file) in NAMES.into_iter().zip(&files) {
            write_keys(file, &[1])?;
            directory.node(name);
        }
        for (name, file) in NAMES.into_iter().zip(&files) {
            let front = Endpoints::new(stage, None)?;
            let mut node = crate::shared_state::node(&town, name, &front);
            node.tls.push(format!("ticket_keys_file: {}", file.display()));
            nodes.push(Portico::start_at(
                stage,
                name,
                &node,
                &directory,
                &[("RUST_LOG", "debug")],
            )?);
            fronts.push(front);
        }
        let dir = stage.dir("sessions")?;
        let mut begun = Begun::at(&fronts[0], &dir)?;
        begun = begun.are(&Kind::Reused, &fronts[0])?.are(&Kind::Reused, &fronts[1])?;
        nodes[0].restart("debug")?;
        begun = begun.are(&Kind::Reused, &fronts[0])?;
        let text = said(&nodes[0], &["status"])?;
        ensure!(
            text.out.contains("ticket keys") && text.out.contains("file, "),
            "{}",
            text.out
        );

        // One rotation after the other: the new key makes tickets, the previous one is taken, the one before is not.
        for file in &files {
            write_keys(file, &[2, 1])?;
        }
        // One is told, the other one looks by itself.
        nodes[0].reload()?;
        nodes.iter().try_for_each(|node| has_keys(node, "file", 2))?;
        begun = begun.are(&Kind::Reused, &fronts[0])?.are(&Kind::Reused, &fronts[1])?;
        write_keys(&files[1], &[3, 2])?;
        nodes[1].reload()?;
        until("the second rotation", SOON, || {
            let again = Begun { dir: &dir }.are(&Kind::New, &fronts[1]);
            Ok(again.is_ok().then_some(()))
        })?;
        begun.are(&Kind::Reused, &fronts[0])?;

        // What is wrong is said, and changes nothing.
        let begun = Begun::at(&fronts[1], &dir)?;
        let (good, short) = (encode_block(&[3; 80]), encode_block(&[3; 47]));
        for (text, mode, expected) in [
            (
                good.as_str(),
                0o644,
                "can be read by everybody: allow no more than mode 0640",
            ),
            (
                short.as_str(),
                0o600,
                "line 1: expected a key of 48 or 80 octets in base64",
            ),
            ("no key", 0o600, "line 1: expected a key of 48 or 80 octets in base64"),
            ("\n", 0o600, "there is no key in it"),
        ] {
            write_file(&files[1], text, mode)?;
            until(expected, SOON, || {
                Ok(nodes[1].output().contains(expected).then_some(()))
            })?;
            let fault = ticket_keys(&nodes[1])?["fault"].clone();
            ensure!(fault.as_str().is_some_and(|fault| fault.contains(expected)), "{fault}");
            let checked = Command::new(portico_tests::portico::binary()?)
                .args(["check", "-c"])
                .arg(nodes[1].dir().join("portico.yaml"))
                .output()?;
            let errors = String::from_utf8_lossy(&checked.stderr).into_owned();
            ensure!(
                !checked.status.success() && errors.contains(expected),
                "{expected}: {errors}"
            );
        }
        begun.are(&Kind::Reused, &fronts[1])?;
        // A node whose file is spoilt does not forget its keys by a reload either.
        nodes[1].reload()?;
        Begun { dir: &dir }.are(&Kind::Reused, &fronts[1])?;
        write_keys(&files[1], &[4])?;
        has_keys(&nodes[1], "file", 1)?;
        ensure!(ticket_keys(&nodes[1])?["fault"].is_null());
        Begun { dir: &dir }.are(&Kind::New, &fronts[1]).map(drop)
    })
}

#[test]
fn a_session_of_one_node_is_resumed_at_another_by_shared_state() -> Result<()> {
    Stage::run(|stage| {
        let mut redis = Redis::start(stage)?;
        let mut together = Together::build(stage, 2, &at(&redis), |_| {})?;
        together.all_see_each_other()?;
        for node in &together.nodes {
            until("shared keys", SOON, || {
                Ok((ticket_keys(node)?["source"] == "shared_state").then_some(()))
            })?;
        }
        let dir = stage.dir("sessions")?;
        let mut begun = Begun::at(&together.fronts[0], &dir)?;
        for front in &together.fronts {
            begun = begun.are(&Kind::Reused, front)?;
        }
        // After an upgrade, and after a restart, which gets the keys from the engine again.
        let _old = together.nodes[1].upgrade("info")?;
        begun = begun.are(&Kind::Reused, &together.fronts[1])?;
        together.nodes[0].restart("info")?;
        together.all_see_each_other()?;
        begun = begun.are(&Kind::Reused, &together.fronts[0])?;
        // Without the engine each goes on with what it has; an empty one is told.
        redis.kill();
        (0..2).try_for_each(|at| together.is_alone(at))?;
        for front in &together.fronts {
            begun = begun.are(&Kind::Reused, front)?;
        }
        redis.start_again()?;
        together.all_see_each_other()?;
        let life = 12 * 60 * 60 * 1000;
        until("the keys in the engine", SOON, || {
            Ok((redis.number(&format!("HLEN {{portico}}:tickets:{life}"))? == 2).then_some(()))
        })?;
        let left = redis.number(&format!("TTL {{portico}}:tickets:{life}"))?;
        ensure!((1..=3 * life / 1000).contains(&left), "{left} s are left");
        for front in &together.fronts {
            begun = begun.are(&Kind::Reused, front)?;
        }
        Ok(())
    })
}

/// An engine that was set up for an earlier version holds no keys, and everything else.
#[test]
fn an_engine_that_may_not_hold_keys_is_of_use_all_the_same() -> Result<()> {
    Stage::run(|stage| {
        let earlier = ACL.replace(" +hsetnx", "");
        let redis = Redis::start_as(stage, "redis", &format!("user default on nopass {earlier}"))?;
        nobody_shares(stage, &redis)
    })
}

/// So does one in which something else stands at their place.
#[test]
fn an_engine_with_something_else_in_the_way_is_of_use_all_the_same() -> Result<()> {
    Stage::run(|stage| {
        let redis = Redis::start(stage)?;
        let life = 12 * 60 * 60 * 1000;
        redis.say(&format!("SET {{portico}}:tickets:{life} other"))?;
        nobody_shares(stage, &redis)
    })
}

/// Nodes act together, and each resumes its own sessions only.
fn nobody_shares(stage: &Stage, redis: &Redis) -> Result<()> {
    let together = Together::build(stage, 2, &at(redis), |_| {})?;
    together.all_see_each_other()?;
    until("the warning", SOON, || {
        let output = together.nodes[0].output();
        Ok(output
            .contains("keys of TLS session tickets are not shared")
            .then_some(()))
    })?;
    ensure!(ticket_keys(&together.nodes[0])?["source"] == "own");
    let dir = stage.dir("sessions")?;
    let begun = Begun::at(&together.fronts[0], &dir)?;
    begun
        .are(&Kind::Reused, &together.fronts[0])?
        .are(&Kind::New, &together.fronts[1])?;
    together.all_see_each_other()
}

#[test]
fn keys_of_a_node_outlive_an_upgrade_and_no_restart() -> Result<()> {
    play(|scene| {
        let (front, dir) = (&scene.town.endpoints, scene.stage.dir("sessions")?);
        let mut begun = Begun::at(front, &dir)?.are(&Kind::Reused, front)?;
        for _ in 0..2 {
            let _old = scene.portico.upgrade("debug")?;
            begun = begun.are(&Kind::Reused, front)?;
        }
        scene.portico.restart("debug")?;
        begun.are(&Kind::New, front)?;
        let metrics = scene.metrics()?;
        for expected in [
            "portico_tls_handshakes_total{kind=\"full\",protocol=\"imap\"} 4",
            "portico_tls_ticket_key_age_seconds{source=\"own\"}",
        ] {
            ensure!(metrics.contains(expected), "{expected}: {metrics}");
        }
        Ok(())
    })
}

/// RFC 6066 section 3: where the name decides on the domain of a login without one, a session stays at its name, also
/// under the same certificate.
#[test]
fn a_mail_session_is_resumed_at_its_name_only() -> Result<()> {
    play(|scene| {
        let (front, dir) = (&scene.town.endpoints, scene.stage.dir("sessions")?);
        let begun = Begun::at(front, &dir)?.are(&Kind::Reused, front)?;
        begun.each(front, |door, version, file| {
            // Nobody's name: it gets the default certificate, too.
            let got = shake_as("nobody.example.test", door, version, &["-sess_in", file])?;
            let expected = if door.0 == front.https { Kind::Reused } else { Kind::New };
            ensure!(got == expected, "{door:?} {version}: {got:?}");
            Ok(())
        })?;
        Ok(())
    })
}

#[test]
fn a_ticket_is_refused_when_its_key_has_been_followed_by_two() -> Result<()> {
    let change = |_: &_, node: &mut portico_tests::config::Node, _: &mut _| {
        node.tls.push("ticket_key_life: 3s".to_owned());
        Ok(())
    };
    play_with(people(), change, |scene| {
        let (front, dir) = (&scene.town.endpoints, scene.stage.dir("sessions")?);
        let begun = Begun { dir: &dir }.each(front, |door, version, file| {
            shake(door, version, &["-sess_out", file])?;
            let again = shake(door, version, &["-sess_in", file])?;
            ensure!(
                again == Kind::Reused,
                "{door:?} {version}: a key lasts longer than that"
            );
            Ok(())
        })?;
        begun.each(front, |door, version, file| {
            until("the ticket to be refused", SOON, || {
                let again = shake(door, version, &["-sess_in", file])?;
                Ok((again == Kind::New).then_some(()))
            })
        })?;
        Ok(())
    })
}
