//! What happens after login: the relay copies, pushes, holds many, and counts.

use std::net::Ipv4Addr;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use portico_tests::town::FRONT;
use portico_tests::wire::Wire;

use crate::scene::{Scene, greeted, play};

const BIG: usize = 20 * 1024 * 1024;
const MANY: usize = 500;

#[test]
fn twenty_megabytes_come_back_as_they_went() -> Result<()> {
    play(|scene| {
        let message = big_message();
        let mut wire = scene.login("bob")?;
        wire.say(&format!("a1 APPEND INBOX {{{}}}", message.len()))?;
        ensure!(wire.line()?.starts_with('+'), "no continuation");
        wire.send(&message)?;
        wire.send("\r\n")?;
        wire.imap_answer("a1")?;
        wire.imap_ok("a2 SELECT INBOX")?;
        wire.say("a3 FETCH 1 BODY.PEEK[]")?;
        let head = wire.line()?;
        ensure!(head.ends_with(&format!("{{{}}}", message.len())), "{head}");
        ensure!(
            wire.bytes(message.len())? == message,
            "the message has changed on its way"
        );
        wire.imap_answer("a3")?;
        wire.imap_ok("a4 LOGOUT")?;
        let ended = scene
            .portico
            .record(&[("event", "session_end"), ("account", "bob@a.example")])?;
        ensure!(ended["bytes_in"].as_u64() > Some(BIG as u64), "{ended}");
        ensure!(ended["bytes_out"].as_u64() > Some(BIG as u64), "{ended}");
        Ok(())
    })
}

/// Lines that are all different, so that a lost or doubled piece shows.
fn big_message() -> Vec<u8> {
    let mut message = b"Subject: big\r\n\r\n".to_vec();
    let mut number: u64 = 1;
    while message.len() < BIG {
        number = number
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        message.extend_from_slice(format!("{number:016x}{:016x}\r\n", number.rotate_left(23)).as_bytes());
    }
    message
}

#[test]
fn idle_hears_of_new_mail() -> Result<()> {
    play(|scene| {
        scene.deliver_marks()?;
        let mut wire = scene.login("alice")?;
        wire.imap_ok("a1 SELECT INBOX")?;
        wire.say("a2 IDLE")?;
        ensure!(wire.line()?.starts_with('+'), "IDLE refused");
        scene.town.stores[0]
            .dovecot
            .deliver("alice@a.example", "Subject: new\r\n\r\nmail\r\n")?;
        while wire.line()? != "* 2 EXISTS" {}
        wire.say("DONE")?;
        wire.imap_answer("a2").map(drop)
    })
}

#[test]
fn five_hundred_sessions_at_once() -> Result<()> {
    play(|scene| {
        let scene: &Scene = scene;
        let open = |names: &[&str]| -> Result<Vec<Wire>> {
            (0..MANY / 10).map(|n| scene.login(names[n % names.len()])).collect()
        };
        let mut sessions = std::thread::scope(|scope| -> Result<Vec<Wire>> {
            let threads: Vec<_> = (0..10)
                .map(|_| scope.spawn(|| open(&["alice", "bob", "carol", "dave"])))
                .collect();
            let mut all = Vec::new();
            for thread in threads {
                all.extend(thread.join().expect("no panic")?);
            }
            Ok(all)
        })?;
        assert_eq!(sessions.len(), MANY);
        for session in &mut sessions {
            session.say("n1 NOOP")?;
        }
        for session in &mut sessions {
            session.imap_answer("n1")?;
        }
        assert_eq!(scene.portico.count(&[("event", "login"), ("outcome", "ok")])?, MANY);
        Ok(())
    })
}

#[test]
fn pipelined_commands_are_answered_in_order() -> Result<()> {
    play(|scene| {
        scene.deliver_marks()?;
        let mut wire = scene.imaps()?;
        wire.send(
            "a1 NOOP\r\na2 CAPABILITY\r\na3 LOGIN carol@b.example carol-c4n4ry-three\r\na4 SELECT INBOX\r\na5 NOOP\r\n",
        )?;
        for tag in ["a1", "a2", "a3", "a4", "a5"] {
            let answer = wire.imap_answer(tag)?;
            ensure!(
                answer.last().is_some_and(|l| l.starts_with(&format!("{tag} OK"))),
                "{answer:?}"
            );
        }
        let mut wire = scene.pop3s()?;
        wire.send("CAPA\r\nUSER dave@b.example\r\nPASS dave-c4n4ry-four\r\nSTAT\r\nNOOP\r\nQUIT\r\n")?;
        while wire.line()? != "." {}
        for _ in ["USER", "PASS"] {
            ensure!(wire.line()?.starts_with("+OK"), "login refused");
        }
        ensure!(wire.line()?.starts_with("+OK 1 "), "no STAT");
        let rest = String::from_utf8(wire.rest()?)?;
        ensure!(rest.matches("+OK").count() == 2, "NOOP and QUIT: {rest:?}");
        Ok(())
    })
}

#[test]
fn the_mailbox_server_hears_the_clients_address_from_us_alone() -> Result<()> {
    play(|scene| {
        let connect = |endpoint| Wire::clear_from(Ipv4Addr::new(127, 0, 0, 77).into(), endpoint);
        let tls = scene.town.ca.connector(&[])?;
        let mut wire = greeted(connect(scene.town.endpoints.imaps)?.start_tls(&tls, FRONT)?, "* OK ")?;
        wire.imap_ok("a1 ID (\"name\" \"Liar\" \"X-ORIGINATING-IP\" \"198.51.100.66\" \"x-originating-port\" \"1\")")?;
        wire.imap_ok("a2 LOGIN alice@a.example alice-c4n4ry-one")?;
        scene.town.stores[0]
            .dovecot
            .wait_log("Login: user=<alice@a.example>, method=")?;
        let log = scene.town.stores[0].dovecot.log();
        ensure!(log.contains("rip=127.0.0.77"), "{log}");
        ensure!(!log.contains("198.51.100.66"), "{log}");
        let login = scene
            .portico
            .record(&[("account", "alice@a.example"), ("outcome", "ok")])?;
        ensure!(
            login["client"].as_str().is_some_and(|c| c.starts_with("127.0.0.77:")),
            "{login}"
        );
        Ok(())
    })
}

#[test]
fn every_session_has_its_end_in_the_audit_log() -> Result<()> {
    play(|scene| {
        let mut wire = scene.login("alice")?;
        wire.imap_ok("a1 LOGOUT")?;
        drop(wire);
        drop(scene.login("bob")?);
        let by_server = scene
            .portico
            .record(&[("event", "session_end"), ("account", "alice@a.example")])?;
        let by_client = scene
            .portico
            .record(&[("event", "session_end"), ("account", "bob@a.example")])?;
        for record in [&by_server, &by_client] {
            let conn = record["conn"].as_str().context("no conn")?;
            scene
                .portico
                .record(&[("event", "login"), ("conn", conn), ("outcome", "ok")])?;
            ensure!(record["duration"].as_f64().is_some_and(|d| d < 60.0), "{record}");
        }
        assert_eq!(by_client["ended_by"], "client");
        Ok(())
    })
}

#[test]
fn a_session_in_silence_stays() -> Result<()> {
    play(|scene| {
        let mut wire = scene.login("alice")?;
        ensure!(wire.is_silent(Duration::from_secs(4))?, "the session did not stay");
        wire.imap_ok("a1 NOOP").map(drop)
    })
}
