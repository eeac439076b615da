//! Limits on connections, each of them reached: it must be nothing special. And servers that lead back to us.

use std::net::{IpAddr, Ipv4Addr, SocketAddrV4};
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use portico_tests::config::{Directory, Entry, Node, Serve, Tls};
use portico_tests::h2::{DATA, END_HEADERS, HEADERS, Raw, block, frame, usual};
use portico_tests::town::{BALANCER, FRONT, Town, people};
use portico_tests::until;
use portico_tests::wire::Wire;

use crate::moves::prov;
use crate::scene::{Scene, Source, greeted, play_with};

/// How long a place that has become free may take to be noticed.
const FREE: Duration = Duration::from_secs(20);
const ELSEWHERE: IpAddr = IpAddr::V4(Ipv4Addr::new(127, 0, 0, 77));

fn play_limited(limits: &str, test: impl FnOnce(&mut Scene) -> Result<()>) -> Result<()> {
    play_with(
        people(),
        |_, node, _| {
            node.more.push(("limits".to_owned(), limits.to_owned()));
            Ok(())
        },
        test,
    )
}

/// Whether a connection is greeted; one that is refused ends without a byte.
fn is_greeted(endpoint: SocketAddrV4, from: IpAddr) -> Result<Option<Wire>> {
    let mut wire = Wire::clear_from(from, endpoint)?;
    // The connection may be closed so early that reading is an error.
    let line = wire.line_or_end().unwrap_or(None);
    Ok(line.map(|_| wire))
}

fn until_greeted(endpoint: SocketAddrV4, from: IpAddr) -> Result<Wire> {
    until("a free place", FREE, || is_greeted(endpoint, from))
}

/// It hears so, and its connection ends.
fn is_sent_away(mut wire: Wire) -> Result<()> {
    let rest = String::from_utf8_lossy(&wire.rest()?).into_owned();
    assert_eq!(rest, "* BYE too many connections, please try again\r\n");
    Ok(())
}

/// The story: forty silent connections at a limit of forty kept everybody else out for a minute.
#[test]
fn silent_connections_keep_no_client_out() -> Result<()> {
    const LIMIT: usize = 40;
    let flood = IpAddr::V4(Ipv4Addr::new(127, 0, 0, 66));
    play_limited("{connections: 40, exempt: []}", |scene| {
        let mut early = until_greeted(scene.town.endpoints.imap, ELSEWHERE)?;
        // Slow, and at the address of the flood; but it speaks.
        let mut slow = until_greeted(scene.town.endpoints.pop3, flood)?;
        slow.send("CAPA\r\n")?;
        until("the end of the list", FREE, || Ok((slow.line()? == ".").then_some(())))?;
        let endpoints = scene.town.endpoints;
        // In every state in which one can be silent: greeted, before a handshake, before a request.
        let silent = |at: usize| {
            Wire::clear_from(
                flood,
                [
                    endpoints.imap,
                    endpoints.imaps,
                    endpoints.pop3,
                    endpoints.https,
                    endpoints.http,
                ][at % 5],
            )
        };
        let _flood: Vec<Wire> = (0..2 * LIMIT).map(silent).collect::<Result<_>>()?;
        for person in ["alice", "bob", "carol"] {
            // At once, while the flood stands.
            scene.login(person)?.imap_ok("n1 NOOP")?;
        }
        let wire = Wire::tls(endpoints.https, &scene.town.ca.connector(&[])?, FRONT);
        let mut wire = wire?;
        wire.send(format!(
            "GET /echo HTTP/1.1\r\nHost: {FRONT}\r\nConnection: close\r\n\r\n"
        ))?;
        let status = wire.line()?;
        assert!(status.contains(" 200 "), "{status}");
        // Who came before the flood, from elsewhere, is still there.
        early.imap_ok("e1 NOOP")?;
        slow.send("QUIT\r\n")?;
        assert!(slow.line()?.starts_with("+OK"));
        let ends = scene
            .portico
            .count(&[("event", "session_end"), ("why", "too many connections")])?;
        assert_eq!(ends, 0, "a flood leaves no records");
        Ok(())
    })
}

/// The story: requests whose bodies did not come counted as under way, and kept everybody else out at the limit.
#[test]
fn bodies_that_do_not_come_keep_no_client_out() -> Result<()> {
    const LIMIT: usize = 40;
    let flood = IpAddr::V4(Ipv4Addr::new(127, 0, 0, 66));
    play_limited("{connections: 40, exempt: []}", |scene| {
        let endpoint = scene.town.endpoints.https;
        let (tls, tls_http2) = (scene.town.ca.connector(&[])?, scene.town.ca.connector(&["h2"])?);
        // A short body is read before a server is chosen; an upload goes on to one.
        let begun = |path: &str, length: usize| -> Result<Wire> {
            let mut wire = Wire::clear_from(flood, endpoint)?.start_tls(&tls, FRONT)?;
            wire.send(format!(
                "POST {path} HTTP/1.1\r\nHost: {FRONT}\r\nContent-Length: {length}\r\n\r\nbegun"
            ))?;
            Ok(wire)
        };
        let begun_http2 = || -> Result<Raw> {
            let wire = Wire::clear_from(flood, endpoint)?.start_tls(&tls_http2, FRONT)?;
            let mut raw = Raw::over(wire, FRONT, &[])?;
            let mut fields = usual(FRONT, "/service/upload");
            fields[0].1 = "POST";
            raw.wire.send(frame(HEADERS, END_HEADERS, 1, &block(&fields)))?;
            raw.wire.send(frame(DATA, 0, 1, b"begun"))?;
            Ok(raw)
        };
        let (mut flood, mut flood_http2) = (Vec::new(), Vec::new());
        for _ in 0..LIMIT / 2 {
            flood.push(begun("/service/soap", 1000)?);
            flood.push(begun("/service/upload", 1_000_000)?);
            flood_http2.push(begun_http2()?);
        }
        for person in ["alice", "bob", "carol"] {
            scene.login(person)?.imap_ok("n1 NOOP")?;
        }
        Ok(())
    })
}

#[test]
fn a_listener_has_its_own_deadline_and_policy() -> Result<()> {
    play_with(
        people(),
        |_, node, directory| {
            directory.config("zimbraReverseProxyImapStartTlsMode", "only");
            for listener in &mut node.listeners {
                match (listener.serve, listener.tls) {
                    (Serve::Imap, Tls::StartTls) => listener.more.push("starttls: on, login_deadline: 1s".to_owned()),
                    (Serve::Pop3, Tls::Implicit) => listener.more.push("login_deadline: 1s".to_owned()),
                    _ => {}
                }
            }
            Ok(())
        },
        |scene| {
            let mut clear = greeted(Wire::clear(scene.town.endpoints.imap)?, "* OK ")?;
            clear.imap_ok("a1 LOGIN alice@a.example alice-c4n4ry-one")?;
            let mut other = scene.imaps()?;
            for mut silent in [
                greeted(Wire::clear(scene.town.endpoints.imap)?, "* OK ")?,
                scene.pop3s()?,
            ] {
                let rest = String::from_utf8_lossy(&silent.rest()?).into_owned();
                assert!(rest.contains("login takes too long"), "{rest}");
            }
            other.imap_ok("o1 NOOP")?;
            clear.imap_ok("a2 NOOP").map(drop)
        },
    )
}

#[test]
fn an_address_has_so_many_connections_before_login_and_more_behind_it() -> Result<()> {
    let here = IpAddr::V4(Ipv4Addr::LOCALHOST);
    play_limited("{connections_per_address: 2, exempt: []}", |scene| {
        let endpoint = scene.town.endpoints.imap;
        let first = until_greeted(endpoint, here)?;
        let second = until_greeted(endpoint, here)?;
        let elsewhere = until_greeted(endpoint, ELSEWHERE)?;
        let third = until_greeted(endpoint, here)?;
        is_sent_away(first)?;
        let fourth = until_greeted(scene.town.endpoints.pop3, here)?;
        is_sent_away(second)?;
        drop((elsewhere, third, fourth));
        // Who is logged in is counted no more.
        let mut users = Vec::new();
        for _ in 0..5 {
            users.push(until("a login", FREE, || Ok(scene.login("alice").ok()))?);
        }
        for user in &mut users {
            user.imap_ok("n1 NOOP")?;
        }
        drop(until_greeted(endpoint, here)?);
        let log = std::fs::read_to_string(scene.portico.dir().join("output.log"))?;
        assert!(log.contains("limits.connections_per_address"), "{log}");
        Ok(())
    })
}

#[test]
fn an_address_has_fewer_mail_connections_and_one_more_for_each_account() -> Result<()> {
    let here = IpAddr::V4(Ipv4Addr::LOCALHOST);
    play_limited("{mail_connections_per_address: 2, exempt: []}", |scene| {
        let endpoints = scene.town.endpoints;
        let first = until_greeted(endpoints.imap, here)?;
        let second = until_greeted(endpoints.pop3, here)?;
        // Those of the web are others.
        let _web: Vec<Wire> = (0..4).map(|_| Wire::clear(endpoints.https)).collect::<Result<_>>()?;
        let third = until_greeted(endpoints.imap, here)?;
        is_sent_away(first)?;
        let log = std::fs::read_to_string(scene.portico.dir().join("output.log"))?;
        ensure!(log.contains("limits.mail_connections_per_address 1,"), "{log}");
        drop((second, third));
        // Once Alice is known there, there may be three.
        until("a login", FREE, || Ok(scene.login("alice").ok()))?;
        until("three places", FREE, || {
            let held: Vec<Wire> = (0..3)
                .map(|_| until_greeted(endpoints.imap, here))
                .collect::<Result<_>>()?;
            let all_stay = held.into_iter().all(|mut wire| wire.imap_ok("n1 NOOP").is_ok());
            Ok(all_stay.then_some(()))
        })?;
        let mut held: Vec<Wire> = (0..4)
            .map(|_| until_greeted(endpoints.imap, here))
            .collect::<Result<_>>()?;
        is_sent_away(held.remove(0))
    })
}

/// A balancer says whose connections these are; they say nothing after it.
#[test]
fn a_botnet_holds_its_share_and_keeps_nobody_out() -> Result<()> {
    const BOTS: usize = 40;
    const TRIES: usize = 10;
    const EACH: usize = 4;
    let limits = format!("{{connections: 300, mail_connections_per_address: {EACH}}}");
    play_limited(&limits, |scene| {
        let behind = scene.town.behind.imap;
        let connect = |n: usize| -> Result<Wire> {
            let mut wire = Wire::clear_from(IpAddr::V4(BALANCER), behind)?;
            wire.send(format!("PROXY TCP4 198.51.100.{} 192.0.2.1 1024 143\r\n", n % BOTS))?;
            Ok(wire)
        };
        let _botnet: Vec<Wire> = (0..BOTS * TRIES).map(connect).collect::<Result<_>>()?;
        let held = until("all have come", FREE, || {
            let metrics = scene.metrics()?;
            let accepted = format!("portico_connections_total{{listener=\"{behind}\"}} {}\n", BOTS * TRIES);
            let open = metrics
                .lines()
                .find_map(|line| line.strip_prefix("portico_connections_open "));
            let open: Option<usize> = open.and_then(|open| open.parse().ok());
            let most = open.filter(|open| *open <= BOTS * EACH && metrics.contains(&accepted));
            Ok(most)
        })?;
        println!(
            "{BOTS} addresses hold {held} of 300 connections after {} tries",
            BOTS * TRIES
        );
        ensure!(held == BOTS * EACH, "{held}");
        for person in ["alice", "bob", "carol"] {
            scene.login(person)?.imap_ok("n1 NOOP")?;
        }
        Ok(())
    })
}

#[test]
fn every_limit_is_one() -> Result<()> {
    let here = IpAddr::V4(Ipv4Addr::LOCALHOST);
    let limits = "{connections: 1, connections_per_address: 1, mail_connections_per_address: 1, handshakes: 1, \
                  exempt: []}";
    play_limited(limits, |scene| {
        let endpoint = scene.town.endpoints.imap;
        for _ in 0..3 {
            let held = until_greeted(endpoint, here)?;
            let next = until_greeted(endpoint, ELSEWHERE)?;
            is_sent_away(held)?;
            let last = until_greeted(endpoint, here)?;
            is_sent_away(next)?;
            drop(last);
            until("a login", FREE, || Ok(scene.login("bob").ok()))?;
            until("a web request", FREE, || {
                let wire = Wire::tls(scene.town.endpoints.https, &scene.town.ca.connector(&[])?, FRONT);
                let Ok(mut wire) = wire else { return Ok(None) };
                wire.send(format!(
                    "GET /echo HTTP/1.1\r\nHost: {FRONT}\r\nConnection: close\r\n\r\n"
                ))?;
                Ok(wire.line()?.contains(" 200 ").then_some(()))
            })?;
        }
        Ok(())
    })
}

#[test]
fn handshakes_are_limited_and_the_oldest_gives_up_its_place() -> Result<()> {
    play_limited("{handshakes: 4}", |scene| {
        // They say nothing, and so their handshakes do not end.
        let mut silent: Vec<Wire> = (0..8)
            .map(|_| Wire::clear(scene.town.endpoints.imaps))
            .collect::<Result<_>>()?;
        until("a place", FREE, || Ok(scene.imaps().ok()))?;
        for _ in 0..8 {
            drop(scene.imaps()?);
        }
        ensure!(silent[0].line_or_end()?.is_none(), "the oldest one is still there");
        greeted(Wire::clear(scene.town.endpoints.imap)?, "* OK ").map(drop)
    })
}

#[test]
fn a_server_that_leads_back_to_us_is_refused_with_a_clear_word() -> Result<()> {
    play_with(
        people(),
        |town, _, directory| {
            let name = town.stores[town.person("alice")?.store].name.clone();
            let entry = directory.server(&name);
            entry.insert("zimbraServiceHostname".into(), "127.0.0.1".into());
            entry.insert("zimbraImapSSLBindPort".into(), town.endpoints.imaps.port().into());
            entry.insert("zimbraMailSSLPort".into(), town.endpoints.https.port().into());
            directory
                .account("alice@a.example")
                .insert("zimbraMailHost".into(), name.into());
            Ok(())
        },
        |scene| {
            assert!(scene.login("alice").is_err());
            let record = scene
                .portico
                .record(&[("event", "login"), ("outcome", "upstream_down")])?;
            assert!(
                record["why"].as_str().is_some_and(|why| why.contains("a loop")),
                "{record}"
            );
            let tls = scene.town.ca.connector(&["http/1.1"])?;
            let mut wire = Wire::tls(scene.town.endpoints.https, &tls, FRONT)?;
            let request =
                format!("GET /home/alice@a.example/inbox HTTP/1.1\r\nHost: {FRONT}\r\nConnection: close\r\n\r\n");
            wire.send(request)?;
            let status = wire.line()?;
            assert!(status.contains(" 502 ") || status.contains(" 503 "), "{status}");
            let log = std::fs::read_to_string(scene.portico.dir().join("output.log"))?;
            assert!(log.contains("a listener of this node: a loop"), "{log}");
            // The others are not concerned.
            drop(scene.login("bob")?);
            Ok(())
        },
    )
}

/// Only a right password learns of it, at once; and the place of a session is free when it ends.
#[test]
fn sessions_of_an_account_are_limited() -> Result<()> {
    play_limited("{sessions_per_account: 2}", |scene| {
        let password = scene.town.person("alice")?.password();
        let (first, _second) = (scene.login("alice")?, scene.login("alice")?);
        let begun = Instant::now();
        let mut third = scene.imaps()?;
        // An alias is the same account, and none of these counts as failed.
        for tag in ["a1", "a2", "a3", "a4"] {
            let answer = third.imap(&format!("{tag} LOGIN al@a.example {password}"))?;
            let last = answer.last().cloned().unwrap_or_default();
            ensure!(
                last.starts_with(&format!("{tag} NO [LIMIT] too many sessions")),
                "{last}"
            );
        }
        let mut pop3 = scene.pop3s()?;
        pop3.pop_ok("USER alice@a.example")?;
        let answer = pop3.pop(&format!("PASS {password}"))?;
        ensure!(answer.starts_with("-ERR [IN-USE] too many sessions"), "{answer}");
        ensure!(begun.elapsed() < Duration::from_secs(5), "{:?}", begun.elapsed());
        let limit = [("outcome", "limit"), ("why", "limits.sessions_per_account")];
        until("a record for each", FREE, || {
            Ok((scene.portico.count(&limit)? == 5).then_some(()))
        })?;
        let wrong = scene.imaps()?.imap("a1 LOGIN alice@a.example wr0ng-c4n4ry")?;
        let last = wrong.last().cloned().unwrap_or_default();
        ensure!(last.contains("[AUTHENTICATIONFAILED]"), "{last}");
        scene.login("bob")?;
        drop(first);
        until("her place", Duration::from_secs(10), || {
            let answer = scene.imaps()?.imap(&format!("a1 LOGIN alice@a.example {password}"))?;
            Ok(answer
                .last()
                .is_some_and(|last| last.starts_with("a1 OK"))
                .then_some(()))
        })
    })
}

/// The nearest number counts, of the account, its domain, or the node file; and a change is in force at once.
#[test]
fn the_directory_says_how_many_sessions_there_may_be() -> Result<()> {
    for source in [Source::Yaml, Source::Ldap] {
        let change = |town: &Town, node: &mut Node, directory: &mut Directory| {
            let limits = "{sessions_per_account: 1, sessions_per_server: 1}".to_owned();
            node.more.push(("limits".to_owned(), limits));
            let set = |entry: &mut Entry, name: &str, number: u16| entry.insert(name.into(), number.into());
            set(directory.account("alice@a.example"), "porticoAccountMaxSessions", 2);
            set(directory.domain("a.example"), "porticoAccountMaxSessions", 3);
            directory.config("porticoServerMaxSessions", "5");
            set(directory.server(&town.stores[0].name), "porticoServerMaxSessions", 0);
            Ok(())
        };
        source.play_with(people(), change, |scene| {
            let full = |scene: &Scene, local: &str, why: &str| -> Result<()> {
                let person = scene.town.person(local)?;
                let login = format!("a1 LOGIN {} {}", person.name, person.password());
                let answer = scene.imaps()?.imap(&login)?;
                let last = answer.last().cloned().unwrap_or_default();
                ensure!(last.starts_with("a1 NO [LIMIT] too many sessions"), "{local}: {last}");
                until("a record", FREE, || {
                    let fields = [("outcome", "limit"), ("account", &*person.name), ("why", why)];
                    Ok((scene.portico.count(&fields)? > 0).then_some(()))
                })
            };
            let mut alice = vec![scene.login("alice")?, scene.login("alice")?];
            full(scene, "alice", "porticoAccountMaxSessions")?;
            prov(
                &scene.portico,
                &["ma", "alice@a.example", "porticoAccountMaxSessions", "3"],
            )?;
            alice.push(scene.login("alice")?);
            full(scene, "alice", "porticoAccountMaxSessions")?;
            prov(
                &scene.portico,
                &["ma", "alice@a.example", "porticoAccountMaxSessions", ""],
            )?;
            prov(&scene.portico, &["md", "a.example", "porticoAccountMaxSessions", "0"])?;
            alice.push(scene.login("alice")?);
            prov(&scene.portico, &["md", "a.example", "porticoAccountMaxSessions", ""])?;
            full(scene, "alice", "limits.sessions_per_account")?;
            prov(&scene.portico, &["mcf", "porticoAccountMaxSessions", "5"])?;
            alice.push(scene.login("alice")?);
            prov(&scene.portico, &["mcf", "porticoServerMaxSessions", "1"])?;
            let _bob = scene.login("bob")?;
            full(scene, "dave", "porticoServerMaxSessions")?;
            prov(&scene.portico, &["md", "b.example", "porticoDomainMaxSessions", "1"])?;
            let _carol = scene.login("carol")?;
            full(scene, "carol", "porticoDomainMaxSessions")?;
            Ok(())
        })?;
    }
    Ok(())
}

/// What one protocol has used up does not keep the other out.
#[test]
fn sessions_are_limited_over_each_protocol() -> Result<()> {
    play_limited("{sessions_per_account: {all: 3, imap: 1}}", |scene| {
        let password = scene.town.person("alice")?.password();
        let _first = scene.login("alice")?;
        let answer = scene.imaps()?.imap(&format!("a1 LOGIN alice@a.example {password}"))?;
        let last = answer.last().cloned().unwrap_or_default();
        ensure!(last.starts_with("a1 NO [LIMIT] too many sessions"), "{last}");
        let record = [
            ("proto", "imap"),
            ("outcome", "limit"),
            ("why", "limits.sessions_per_account.imap"),
        ];
        until("a record", FREE, || {
            Ok((scene.portico.count(&record)? == 1).then_some(()))
        })?;
        let mut pop3 = scene.pop3s()?;
        pop3.pop_ok("USER alice@a.example")?;
        pop3.pop_ok(&format!("PASS {password}"))?;
        scene.login("bob")?;
        Ok(())
    })
}

/// Requests of one address beyond the limit are told to come later; those of others are not concerned, and a place is
/// free when a request has ended.
#[test]
fn an_address_has_so_many_requests_under_way() -> Result<()> {
    play_limited("{exempt: [], requests_per_address: 2}", |scene| {
        let tls = scene.town.ca.connector(&["http/1.1"])?;
        let ask = |from: IpAddr, head: &str| -> Result<Wire> {
            let mut wire = Wire::clear_from(from, scene.town.endpoints.https)?.start_tls(&tls, FRONT)?;
            wire.send(format!("{head} HTTP/1.1\r\nHost: {FRONT}\r\n"))?;
            Ok(wire)
        };
        // Their bodies do not come.
        let slow = |_| {
            let mut wire = ask(ELSEWHERE, "POST /service/soap/AuthRequest")?;
            wire.send("Content-Length: 10\r\n\r\n")?;
            Ok(wire)
        };
        let held: Vec<Wire> = (0..2).map(slow).collect::<Result<_>>()?;
        let status = |from: IpAddr| -> Result<String> {
            let mut wire = ask(from, "GET /echo")?;
            wire.send("Connection: close\r\n\r\n")?;
            Ok(String::from_utf8_lossy(&wire.rest()?).into_owned())
        };
        let refused = until("a refusal", FREE, || {
            Ok(Some(status(ELSEWHERE)?).filter(|answer| answer.starts_with("HTTP/1.1 503 ")))
        })?;
        ensure!(
            refused.to_ascii_lowercase().contains("retry-after: 30\r\n"),
            "{refused}"
        );
        ensure!(status(IpAddr::V4(Ipv4Addr::LOCALHOST))?.starts_with("HTTP/1.1 200 "));
        let metrics = scene.metrics()?;
        let counted = metrics
            .lines()
            .find(|line| line.contains("limit=\"requests_per_address\""));
        ensure!(counted.is_some_and(|line| !line.ends_with(" 0")), "{counted:?}");
        drop(held);
        until("free places", FREE, || {
            Ok(status(ELSEWHERE)?.starts_with("HTTP/1.1 200 ").then_some(()))
        })
    })
}
