//! What breaks, and what that costs. Each test is a line of docs/failures.md.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use portico_tests::config::{Directory, Node};
use portico_tests::portico::Portico;
use portico_tests::town::{Town, people};
use portico_tests::{Stage, until};

use crate::nodes::Cluster;
use crate::scene::{play, timed};

const SOON: Duration = Duration::from_secs(40);

/// Portico: its sessions are gone, and it can be started again at once, with the same listeners and the same logs.
#[test]
fn portico_is_killed() -> Result<()> {
    play(|scene| {
        let mut alice = scene.login("alice")?;
        let lines = scene.portico.audit()?.len();
        scene.portico.kill();
        ensure!(alice.imap_ok("a1 NOOP").is_err(), "who answers there?");
        let ((), wait) = timed(|| scene.portico.start_again("info"))?;
        ensure!(wait < Duration::from_secs(10), "{wait:?}");
        scene.login("alice")?.imap_ok("a1 NOOP")?;
        scene.login("bob")?.imap_ok("b1 NOOP")?;
        scene
            .portico
            .record(&[("event", "login"), ("account", "bob@a.example")])?;
        ensure!(scene.portico.audit()?.len() > lines, "the log before is gone");
        Ok(())
    })
}

/// A mailbox server: its people hear UNAVAILABLE at once, the others notice nothing, and with its return all is as
/// before.
#[test]
fn a_mailbox_server_is_killed() -> Result<()> {
    play(|scene| {
        let (mut alice, mut bob) = (scene.login("alice")?, scene.login("bob")?);
        scene.town.stores[0].dovecot.kill();
        // The client's connection ends with the server's: nothing hangs.
        let (_, wait) = timed(|| alice.rest())?;
        ensure!(wait < Duration::from_secs(10), "{wait:?}");
        let (answer, wait) = timed(|| scene.imaps()?.imap("a1 LOGIN alice@a.example alice-c4n4ry-one"))?;
        ensure!(
            answer.last().is_some_and(|l| l.starts_with("a1 NO [UNAVAILABLE]")),
            "{answer:?}"
        );
        ensure!(wait < Duration::from_secs(10), "{wait:?}");
        bob.imap_ok("b1 NOOP")?;
        scene.login("dave")?.imap_ok("d1 NOOP")?;
        scene.town.stores[0].dovecot.start_again()?;
        scene.login("alice")?.imap_ok("a2 NOOP").map(drop)
    })
}

/// memcached: no login fails, and none is slow.
#[test]
fn memcached_is_killed() -> Result<()> {
    Stage::run(|stage| {
        let mut cluster = Cluster::build(stage)?;
        let mut alice = cluster.login("alice")?;
        cluster.memcached.kill();
        alice.imap_ok("a1 NOOP")?;
        for local in ["alice", "bob", "carol", "dave", "alice", "bob"] {
            let (mut wire, wait) = timed(|| cluster.login(local))?;
            ensure!(wait < Duration::from_secs(5), "{local}: {wait:?}");
            wire.imap_ok("z LOGOUT")?;
        }
        Ok(())
    })
}

/// HAProxy: the connections through it are gone, and Portico forgets them; with its return all is as before.
#[test]
fn haproxy_is_killed() -> Result<()> {
    Stage::run(|stage| {
        let mut cluster = Cluster::build(stage)?;
        let mut alice = cluster.login("alice")?;
        cluster.haproxy.kill();
        ensure!(alice.imap_ok("a1 NOOP").is_err(), "who answers there?");
        let ends = |node: &Portico| node.count(&[("event", "session_end"), ("account", "alice@a.example")]);
        until("the session's end", SOON, || {
            Ok((ends(&cluster.nodes[0])? + ends(&cluster.nodes[1])? > 0).then_some(()))
        })?;
        cluster.start_haproxy()?;
        // Until the first health checks have been answered, HAProxy takes every node for well.
        cluster.login("alice")?.imap_ok("a1 NOOP")?;
        cluster.login("bob")?.imap_ok("b1 NOOP").map(drop)
    })
}

/// A full disk under the logs: no login waits for it, and the diagnostic log says so.
#[test]
fn the_disk_under_the_logs_is_full() -> Result<()> {
    Stage::run(|stage| {
        let town = Town::build(stage, people())?;
        let dir = stage.dir("portico")?;
        let full = |node: &Node, directory: &Directory| -> Result<Portico> {
            // Every write to /dev/full fails with ENOSPC.
            std::os::unix::fs::symlink("/dev/full", dir.join("audit.log"))?;
            std::os::unix::fs::symlink("/dev/full", dir.join("access.log"))?;
            Portico::start(stage, node, directory, "info")
        };
        let portico = full(&town.node(), &town.directory())?;
        let mut scene = crate::scene::Scene { stage, town, portico };
        let mut alice = scene.login("alice")?;
        until("the complaint", SOON, || {
            Ok(scene
                .portico
                .output()
                .contains("audit log: No space left on device")
                .then_some(()))
        })?;
        let begun = Instant::now();
        for _ in 0..20 {
            scene.login("bob")?.imap_ok("z LOGOUT")?;
        }
        ensure!(begun.elapsed() < Duration::from_secs(20), "{:?}", begun.elapsed());
        alice.imap_ok("a1 NOOP")?;
        // With room again, lines are written again.
        let log = scene.portico.dir().join("audit.log");
        std::fs::remove_file(&log)?;
        until("a line", SOON, || {
            scene.login("carol")?.imap_ok("z LOGOUT")?;
            let text = std::fs::read_to_string(&log).unwrap_or_default();
            Ok(text.contains("carol@b.example").then_some(()))
        })
        .context("after there was room again")?;
        scene.end()
    })
}
