//! What clients that guess passwords learn, by words and by time, and what the audit log learns of them; and what a
//! client hears whose password is right but who may not log in now. The mailbox servers are real.

use std::net::{IpAddr, Ipv4Addr, SocketAddrV4};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use portico_tests::memcached::Memcached;
use portico_tests::town::{FRONT, Person, people};
use portico_tests::wire::Wire;

use crate::scene::{Scene, greeted, play, play_with, sasl_plain, timed};

/// Who guesses.
const GUESSER: IpAddr = IpAddr::V4(Ipv4Addr::new(127, 0, 0, 78));

/// How long a failed login waits here: shorter than the default, to save time, and shorter than Dovecot's penalty.
const WAIT: Duration = Duration::from_secs(6);

/// Attempts for each name.
const TRIES: usize = 3;

/// Dovecot as it is shipped keeps a wrong password for 2 seconds, and an address that goes on guessing for 15 more.
/// An unknown name, which it never hears of, must not be told from that.
#[test]
fn time_does_not_tell_who_exists_with_a_dovecot_at_its_defaults() -> Result<()> {
    let wait = |_: &_, _: &mut _, directory: &mut portico_tests::config::Directory| {
        directory.config("zimbraReverseProxyAuthWaitInterval", "6s");
        Ok(())
    };
    play_with(people(), wait, |scene| {
        scene.town.stores[0].dovecot.delay_guesses()?;
        earn_a_penalty(scene)?;
        let (known, unknown) = fastest_of(scene, ["alice@a.example", "nobody@a.example"])?;
        let wrong = known.0.starts_with("a1 NO [AUTHENTICATIONFAILED]");
        ensure!(known.0 == unknown.0 && wrong, "{known:?} {unknown:?}");
        ensure!(
            known.1.abs_diff(unknown.1) < Duration::from_secs(1),
            "{known:?} {unknown:?}"
        );
        ensure!(known.1 >= WAIT && unknown.1 >= WAIT, "{known:?} {unknown:?}");
        // Dovecot has not even answered yet; when it does, the audit log hears of it.
        let of_alice = [("user", "alice@a.example"), ("outcome", "bad_credentials")];
        ensure!(scene.portico.count(&of_alice)? == 0, "Dovecot was faster than the wait");
        portico_tests::until("Dovecot's answers", Duration::from_secs(60), || {
            Ok((scene.portico.count(&of_alice)? == TRIES).then_some(()))
        })
    })
}

/// Attempts for each name, all at the same time. A busy machine makes some of them wait for longer, and none for less:
/// returns the fastest of each name.
fn fastest_of(scene: &Scene, names: [&str; 2]) -> Result<(Attempt, Attempt)> {
    let [known, unknown] = std::thread::scope(|scope| {
        let tries = names.map(|name| [(); TRIES].map(|()| scope.spawn(move || attempt(scene, name))));
        tries.map(|tries| {
            let ends = tries.map(|one| one.join().expect("no panic"));
            let ends: Vec<Attempt> = ends.into_iter().collect::<Result<_>>()?;
            ends.into_iter().min_by_key(|(_, took)| *took).context("no tries")
        })
    });
    Ok((known?, unknown?))
}

/// Guesses at Dovecot itself until it lets the guesser wait for longer than [`WAIT`].
fn earn_a_penalty(scene: &Scene) -> Result<()> {
    let at = SocketAddrV4::new(scene.town.stores[0].dovecot.ip, scene.town.stores[0].dovecot.imap);
    let guess = |n: usize| {
        let mut wire = greeted(Wire::clear_from(GUESSER, at)?, "* OK")?;
        wire.patience(Duration::from_secs(30))?;
        wire.say(&format!("a1 LOGIN alice@a.example wr0ng-c4n4ry-{n}"))?;
        Ok(wire)
    };
    let guesses: Vec<Wire> = (0..6).map(guess).collect::<Result<_>>()?;
    for mut wire in guesses {
        wire.imap_answer("a1")?;
    }
    Ok(())
}

/// The answer, and how long it took.
type Attempt = (String, Duration);

fn attempt(scene: &Scene, name: &str) -> Result<Attempt> {
    let tls = scene.town.ca.connector(&[])?;
    let wire = Wire::clear_from(GUESSER, scene.town.endpoints.imaps)?.start_tls(&tls, FRONT)?;
    let mut wire = greeted(wire, "* OK")?;
    wire.patience(Duration::from_secs(30))?;
    let (answer, took) = timed(|| wire.imap(&format!("a1 LOGIN {name} wr0ng-c4n4ry")))?;
    Ok((answer.last().context("no answer")?.clone(), took))
}

/// Dovecot says so when the password was right: behind `[LIMIT]`, and in POP3 behind `[IN-USE]`.
#[test]
fn a_limit_is_reported_in_the_servers_words_and_is_no_failed_login() -> Result<()> {
    play(|scene| {
        scene.town.stores[0]
            .dovecot
            .set(&[("mail_max_userip_connections = 10000", "mail_max_userip_connections = 1")])?;
        let _first = scene.login("alice")?;
        let password = scene.town.person("alice")?.password();
        let mut second = scene.imaps()?;
        let begun = Instant::now();
        for tag in ["a1", "a2", "a3", "a4"] {
            let answer = second.imap(&format!("{tag} LOGIN alice@a.example {password}"))?;
            let last = answer.last().context("no answer")?;
            // Older ones say UNAVAILABLE.
            let words = "Maximum number of connections from user+IP exceeded";
            let codes = ["[LIMIT]", "[UNAVAILABLE]"];
            let is_told = codes.map(|code| last.starts_with(&format!("{tag} NO {code} {words}")));
            ensure!(is_told.contains(&true), "{last}");
        }
        // Each of them would have waited for a second.
        ensure!(begun.elapsed() < Duration::from_secs(3), "{:?}", begun.elapsed());
        let _pop3 = {
            let mut wire = scene.pop3s()?;
            wire.pop_ok("USER alice@a.example")?;
            wire.pop_ok(&format!("PASS {password}"))?;
            // Dovecot counts it when its mailbox is open, which is later than its OK.
            wire.pop_ok("STAT")?;
            wire
        };
        let mut pop3 = scene.pop3s()?;
        pop3.pop_ok("USER alice@a.example")?;
        let answer = pop3.pop(&format!("PASS {password}"))?;
        ensure!(answer.contains("Maximum number of connections"), "{answer}");
        for proto in ["imap", "pop3"] {
            let record = scene.portico.record(&[("proto", proto), ("outcome", "limit")])?;
            ensure!(
                record["why"].as_str().is_some_and(|why| why.contains("Maximum")),
                "{record}"
            );
            ensure!(record["phase"] == "login", "{record}");
        }
        ensure!(scene.portico.count(&[("outcome", "limit")])? == 5, "one for each");
        ensure!(
            scene.portico.count(&[("outcome", "limit"), ("tier", "directory")])? <= 1,
            "the route is kept"
        );
        Ok(())
    })
}

/// Dovecot hangs up at more than 8 KiB of SASL. That must not look like an outage to some and like a wrong password to
/// others, nor cost its account the route.
#[test]
fn a_password_that_is_too_long_for_the_server_does_not_tell_who_exists() -> Result<()> {
    play(|scene| {
        let password = format!("wr0ng-c4n4ry-{}", "x".repeat(7_000));
        let names = ["alice@a.example", "nobody@a.example"];
        for sends in [long_login, long_sasl, long_pass] {
            let [known, unknown] = names.map(|name| timed(|| sends(scene, name, &password)));
            let (known, unknown) = (known?, unknown?);
            ensure!(known.0 == unknown.0, "{known:?} {unknown:?}");
            let wait = Duration::from_secs(1);
            ensure!(known.1 >= wait && unknown.1 >= wait, "{known:?} {unknown:?}");
        }
        let of_alice = [("user", names[0]), ("outcome", "password_too_long"), ("phase", "login")];
        ensure!(scene.portico.count(&of_alice)? == 3, "one for each way");
        ensure!(scene.portico.count(&[("outcome", "upstream_down")])? == 0, "no outage");
        let asked = scene.portico.count(&[("user", names[0]), ("tier", "directory")])?;
        ensure!(asked <= 1, "the route is kept");
        Ok(())
    })
}

fn long_login(scene: &Scene, name: &str, password: &str) -> Result<String> {
    let answer = scene.imaps()?.imap(&format!("a1 LOGIN {name} \"{password}\""))?;
    answer.last().cloned().context("no answer")
}

/// Their names and passwords together are too long; neither is by itself.
fn long_sasl(scene: &Scene, name: &str, password: &str) -> Result<String> {
    let message = format!("{name}\0{}\0{}", "y".repeat(200), &password[..6_000]);
    let message = openssl::base64::encode_block(message.as_bytes());
    let mut wire = scene.imaps()?;
    wire.send("a1 AUTHENTICATE PLAIN\r\n")?;
    wire.line()?;
    wire.send(format!("{message}\r\n"))?;
    wire.line()
}

fn long_pass(scene: &Scene, name: &str, password: &str) -> Result<String> {
    let mut wire = scene.pop3s()?;
    wire.pop_ok(&format!("USER {name}"))?;
    wire.pop(&format!("PASS {password}"))
}

/// Another proxy has written into memcached that Alice lives on the other server, whose Dovecot has never heard of her.
#[test]
fn a_poisoned_route_is_cured_within_the_login() -> Result<()> {
    portico_tests::Stage::run(|stage| {
        let memcached = Memcached::start(stage)?;
        let town = portico_tests::town::Town::build(stage, people())?;
        let mut node = town.node();
        let servers = format!("{{memcached: {{servers: [\"{}\"]}}}}", memcached.address());
        node.more.push(("route_cache".to_owned(), servers));
        let portico = portico_tests::portico::Portico::start(stage, &node, &town.directory(), "info")?;
        let mut scene = Scene { stage, town, portico };
        let key = hashed("route:proto=imapssl;user=alice@a.example");
        let address = |at: usize| {
            let dovecot = &scene.town.stores[at].dovecot;
            format!("{}:{}", dovecot.ip, dovecot.imaps)
        };
        let (right, wrong) = (address(0), address(1));
        memcached.add(&key, &wrong)?;
        scene.deliver_marks()?;
        let mut alice = scene.login("alice")?;
        scene.is_inbox_of(&mut alice, "alice")?;
        scene
            .portico
            .record(&[("route", &right), ("outcome", "ok"), ("tier", "directory")])?;
        portico_tests::until("the right route in memcached", Duration::from_secs(5), || {
            Ok(memcached.get(&key)?.filter(|value| *value == right))
        })?;
        scene.end()
    })
}

/// A key as it is on the wire.
fn hashed(name: &str) -> String {
    let hash = openssl::sha::sha256(name.as_bytes());
    hash.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Webmails log in with tokens. Dovecot reads short lines before a login; what is longer goes by SASL.
#[test]
fn long_passwords_reach_the_server_by_every_way() -> Result<()> {
    let long: Vec<_> = [500, 1700, 5900]
        .map(|len| format!("{len}-c4n4ry-{}", "x".repeat(len)))
        .into();
    let town = long
        .iter()
        .map(|password| Person::new(&named(password), 0, password))
        .collect();
    play_with(
        town,
        |_, _, _| Ok(()),
        |scene| {
            for password in &long {
                let name = named(password);
                scene.imaps()?.imap_ok(&format!("a1 LOGIN {name} \"{password}\""))?;
                let plain = sasl_plain(&name, password.as_bytes());
                scene.imaps()?.imap_ok(&format!("a1 AUTHENTICATE PLAIN {plain}"))?;
                let mut pop3 = scene.pop3s()?;
                pop3.pop_ok(&format!("USER {name}"))?;
                pop3.pop_ok(&format!("PASS {password}"))?;
                scene.pop3s()?.pop_ok(&format!("AUTH PLAIN {plain}"))?;
            }
            Ok(())
        },
    )
}

fn named(password: &str) -> String {
    format!("long{}@a.example", password.len())
}
