//! Hostile input: each gets a clear answer or a close by the login deadline, memory stays bounded, and others log
//! in meanwhile.

use std::net::SocketAddrV4;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use portico_tests::town::{FRONT, people};
use portico_tests::wire::Wire;

use crate::scene::{Scene, greeted, play, play_with};

const DEADLINE: Duration = Duration::from_secs(3);
/// The deadline, and what a busy machine adds to it.
const CLOSED_BY: Duration = Duration::from_secs(6);

/// Plays with a login deadline of three seconds.
fn play_fast(test: impl FnOnce(&mut Scene) -> Result<()>) -> Result<()> {
    play_with(
        people(),
        |_, node, _| {
            node.more.push(("mail".into(), "{login_deadline: 3s}".into()));
            Ok(())
        },
        test,
    )
}

#[test]
fn bytes_behind_starttls_close_the_connection() -> Result<()> {
    play(|scene| {
        for injected in [
            "a1 STARTTLS\r\na2 LOGIN mallory x\r\n",
            "a1 STARTTLS\r\n\x16\x03\x01",
            "a1 STARTTLS\r\n ",
        ] {
            let mut wire = greeted(Wire::clear(scene.town.endpoints.imap)?, "* OK ")?;
            wire.send(injected)?;
            let rest = String::from_utf8_lossy(&wire.rest()?).into_owned();
            ensure!(!rest.contains("a1 OK") && !rest.contains("a2"), "{rest:?}");
        }
        for injected in ["STLS\r\nUSER mallory\r\n", "STLS\r\n\x16\x03\x01"] {
            let mut wire = greeted(Wire::clear(scene.town.endpoints.pop3)?, "+OK")?;
            wire.send(injected)?;
            let rest = String::from_utf8_lossy(&wire.rest()?).into_owned();
            ensure!(!rest.contains("+OK"), "{rest:?}");
        }
        scene.login("alice").map(drop)
    })
}

/// What is sent, behind the greeting.
fn imap_attacks() -> Vec<(&'static str, Vec<u8>)> {
    let long = |byte: u8, count| vec![byte; count];
    vec![
        (
            "a line of a megabyte",
            [b"a1 NOOP ", &long(b'x', 1 << 20)[..], b"\r\n"].concat(),
        ),
        ("a megabyte without end", long(b'x', 1 << 20)),
        ("a megabyte of blanks", [b"a1", &long(b' ', 1 << 20)[..]].concat()),
        (
            "a million parentheses",
            [b"a1 ID ", &long(b'(', 1_000_000)[..], b"\r\n"].concat(),
        ),
        (
            "a million parentheses closed",
            [b"a1 ID ", &long(b'(', 1_000_000)[..], &long(b')', 1_000_000), b"\r\n"].concat(),
        ),
        ("a huge literal", b"a1 LOGIN {4294967295}\r\n".to_vec()),
        (
            "a huge literal at once",
            [b"a1 LOGIN {1000000000+}\r\n", &long(b'x', 1 << 20)[..]].concat(),
        ),
        (
            "an overflowing literal",
            b"a1 LOGIN {99999999999999999999999999}\r\n".to_vec(),
        ),
        (
            "an overflowing literal at once",
            b"a1 LOGIN {18446744073709551617+}\r\nx y\r\n".to_vec(),
        ),
        ("a negative literal", b"a1 LOGIN {-1}\r\n".to_vec()),
        ("an empty literal length", b"a1 LOGIN {}\r\n".to_vec()),
        ("NUL", b"a1 NOOP\0\r\na2 \0 NOOP\r\n".to_vec()),
        ("NUL in a literal", b"a1 LOGIN {3+}\r\na\0b {1+}\r\nx\r\n".to_vec()),
        ("bare CR", b"a1 NOOP\ra2 NOOP\r\n".to_vec()),
        ("bare LF", b"a1 NOOP\n".to_vec()),
        ("no tag", b"\r\n \r\n+\r\n".to_vec()),
        ("a long tag", [&long(b't', 4000)[..], b" NOOP\r\n"].concat()),
        ("an unfinished quoted string", b"a1 LOGIN \"abc\r\n".to_vec()),
        ("bytes that are no text", (0u8..=255).chain(*b"\r\n").collect()),
        ("SASL that is no base64", b"a1 AUTHENTICATE PLAIN ****\r\n".to_vec()),
        (
            "endless SASL",
            [b"a1 AUTHENTICATE PLAIN ", &long(b'A', 1 << 20)[..], b"\r\n"].concat(),
        ),
        ("HTTP", b"GET / HTTP/1.1\r\nHost: mail.a.example\r\n\r\n".to_vec()),
        ("a thousand bad commands", b"a1 BOGUS\r\n".repeat(1000)),
    ]
}

fn pop3_attacks() -> Vec<(&'static str, Vec<u8>)> {
    let long = |byte: u8, count| vec![byte; count];
    vec![
        (
            "a line of a megabyte",
            [b"NOOP ", &long(b'x', 1 << 20)[..], b"\r\n"].concat(),
        ),
        ("a megabyte without end", long(b'x', 1 << 20)),
        (
            "a long name",
            [b"USER ", &long(b'u', 100_000)[..], b"\r\nPASS x\r\n"].concat(),
        ),
        ("NUL", b"USER a\0b\r\nNOOP\0\r\n".to_vec()),
        ("bare CR", b"NOOP\rNOOP\r\n".to_vec()),
        ("bare LF", b"NOOP\n".to_vec()),
        ("an empty line", b"\r\n\r\n".to_vec()),
        ("SASL that is no base64", b"AUTH PLAIN ****\r\n".to_vec()),
        (
            "endless SASL",
            [b"AUTH PLAIN\r\n", &long(b'A', 1 << 20)[..], b"\r\n"].concat(),
        ),
        ("HTTP", b"GET / HTTP/1.1\r\nHost: mail.a.example\r\n\r\n".to_vec()),
        ("a thousand bad commands", b"BOGUS\r\n".repeat(1000)),
    ]
}

#[test]
fn imap_answers_or_closes_whatever_comes() -> Result<()> {
    play_fast(|scene| survives(scene, scene.town.endpoints.imap, "* OK ", &imap_attacks()))
}

#[test]
fn pop3_answers_or_closes_whatever_comes() -> Result<()> {
    play_fast(|scene| survives(scene, scene.town.endpoints.pop3, "+OK", &pop3_attacks()))
}

fn survives(scene: &Scene, endpoint: SocketAddrV4, greeting: &str, attacks: &[(&str, Vec<u8>)]) -> Result<()> {
    scene.login("alice")?;
    let before = scene.portico.rss_at_rest_kib()?;
    std::thread::scope(|scope| {
        let attackers: Vec<_> = attacks
            .iter()
            .map(|(what, bytes)| (what, scope.spawn(|| attack(endpoint, greeting, bytes))))
            .collect();
        for local in ["alice", "bob", "carol", "dave"] {
            scene.login(local).context("another client, meanwhile")?;
        }
        for (what, attacker) in attackers {
            attacker.join().expect("no panic").with_context(|| what.to_string())?;
        }
        anyhow::Ok(())
    })?;
    let grown = scene.portico.rss_kib()?.saturating_sub(before);
    ensure!(grown < 32 * 1024, "memory has grown by {grown} KiB");
    scene.login("bob").map(drop)
}

/// Sends it all, and must see an answer to it or the end of the connection; the end by the deadline in any case.
fn attack(endpoint: SocketAddrV4, greeting: &str, bytes: &[u8]) -> Result<()> {
    let mut wire = greeted(Wire::clear(endpoint)?, greeting)?;
    let start = Instant::now();
    wire.patience(CLOSED_BY)?;
    let _closed_while_sending = wire.send(bytes);
    while wire.line_or_end()?.is_some() {
        ensure!(
            start.elapsed() < CLOSED_BY,
            "it still talks after {:?}",
            start.elapsed()
        );
    }
    ensure!(start.elapsed() < CLOSED_BY, "closed only after {:?}", start.elapsed());
    Ok(())
}

/// A client that sends a byte now and then does not move the deadline.
#[test]
fn dripping_ends_at_the_deadline() -> Result<()> {
    play_fast(|scene| {
        let endpoints = scene.town.endpoints;
        let scene: &Scene = scene;
        std::thread::scope(|scope| {
            let drips = [endpoints.imap, endpoints.imaps, endpoints.pop3, endpoints.pop3s];
            let drips = drips.map(|endpoint| (endpoint, scope.spawn(move || drip(endpoint))));
            for (endpoint, drip) in drips {
                drip.join().expect("no panic").with_context(|| format!("{endpoint}"))?;
            }
            anyhow::Ok(())
        })?;
        scene.login("alice").map(drop)
    })
}

fn drip(endpoint: SocketAddrV4) -> Result<()> {
    let mut wire = Wire::clear(endpoint)?;
    let start = Instant::now();
    wire.patience(Duration::from_millis(200))?;
    // The beginning of a TLS handshake of 512 bytes, and of a long command.
    for byte in b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03"
        .iter()
        .chain(std::iter::repeat(&b'a'))
    {
        if start.elapsed() > CLOSED_BY {
            break;
        }
        if wire.send([*byte]).is_err() || wire.rest().is_ok() {
            ensure!(
                start.elapsed() > DEADLINE / 2,
                "closed early, after {:?}",
                start.elapsed()
            );
            return Ok(());
        }
    }
    bail!("still open after {CLOSED_BY:?}")
}

/// A client that says nothing, before or in TLS, is sent away.
#[test]
fn silence_ends_at_the_deadline() -> Result<()> {
    play_fast(|scene| {
        let mut silent = vec![scene.imaps()?, scene.pop3s()?, scene.imap_starttls()?];
        for endpoint in [
            scene.town.endpoints.imap,
            scene.town.endpoints.pop3,
            scene.town.endpoints.imaps,
        ] {
            silent.push(Wire::clear(endpoint)?);
        }
        let start = Instant::now();
        for mut wire in silent {
            wire.patience(CLOSED_BY)?;
            wire.rest()?;
        }
        ensure!(start.elapsed() < CLOSED_BY, "closed only after {:?}", start.elapsed());
        scene.login("alice").map(drop)
    })
}

/// A logged-in session is not under the login deadline.
#[test]
fn the_deadline_ends_with_the_login() -> Result<()> {
    play_fast(|scene| {
        let mut wire = scene.login("alice")?;
        ensure!(
            wire.is_silent(DEADLINE + Duration::from_secs(2))?,
            "the session was ended"
        );
        wire.imap_ok("a1 NOOP").map(drop)
    })
}

#[test]
fn an_odd_login_name_changes_nothing_but_its_own_login() -> Result<()> {
    play(|scene| {
        let names: [&[u8]; 8] = [
            b"bob\r\na9 LOGIN bob@a.example b",
            b"bob@a.example\nX",
            b"bob@a.example alice@a.example",
            b"*)(uid=*",
            b"\x1b[31mred@a.example",
            b"{\"event\":\"login\"}@a.example",
            b"../../etc/passwd",
            b"bob@a.example\xff\xfe",
        ];
        for name in names {
            let mut wire = scene.imaps()?;
            wire.send(
                [
                    format!("a1 LOGIN {{{}+}}\r\n", name.len()).as_bytes(),
                    name,
                    b" {6+}\r\nc4n4ry\r\n",
                ]
                .concat(),
            )?;
            let answer = wire
                .imap_answer("a1")
                .with_context(|| format!("{:?}", String::from_utf8_lossy(name)))?;
            let last = answer.last().context("no answer")?;
            ensure!(last.starts_with("a1 NO") || last.starts_with("a1 BAD"), "{last}");
            ensure!(!answer.iter().any(|l| l.starts_with("a9")), "{answer:?}");
        }
        scene.login("bob")?;
        // Every line of the log is one record, and holds no control characters.
        let records = scene.portico.audit()?;
        ensure!(records.len() >= names.len(), "{records:?}");
        for file in ["audit.log", "access.log", "output.log"] {
            let log = std::fs::read(scene.portico.dir().join(file)).unwrap_or_default();
            let control = log.iter().find(|b| b.is_ascii_control() && **b != b'\n');
            ensure!(control.is_none(), "{file} has the byte {control:?}");
        }
        Ok(())
    })
}

/// No name that a client chose can become a header, a path or a second request at the mailbox server's web side.
#[test]
fn odd_requests_are_answered_or_closed() -> Result<()> {
    let attacks: [&[u8]; 6] = [
        b"GET / HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\nGET /smuggled HTTP/1.1\r\nHost: a\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: a\r\nX: \0\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n",
        b"GET /\r\nfoo HTTP/1.1\r\n\r\n",
        b"\x16\x03\x01\x02\x00",
        b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: -1\r\n\r\n",
    ];
    play(|scene| {
        for bytes in attacks {
            let mut wire = scene.tls(scene.town.endpoints.https, FRONT)?;
            wire.send(bytes)?;
            let _closed_already = wire.shut();
            let _ended_or_silent = wire.patience(Duration::from_secs(2)).and_then(|()| wire.rest());
        }
        ensure!(
            !scene.portico.access_log().contains("/smuggled"),
            "{}",
            scene.portico.access_log()
        );
        scene.login("alice").map(drop)
    })
}
