//! Upgrades, stops and reloads, as connected clients see them.

use std::collections::BTreeMap;
use std::net::{Ipv4Addr, SocketAddr, SocketAddrV4, TcpStream};
use std::os::unix::net::UnixDatagram;
use std::path::Path;
use std::process::Command;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use nix::sys::signal::Signal;
use portico_tests::child::Child;
use portico_tests::config::{Directory, Listener, Node, Serve, Tls};
use portico_tests::portico::{Portico, binary};
use portico_tests::town::{FRONT, NODE, Town, people};
use portico_tests::wire::Wire;
use portico_tests::{Stage, until};

use crate::scene::{Scene, greeted, play, play_with, timed};

const SOON: Duration = Duration::from_secs(30);

/// Logins and requests, one after the other, until told to stop. Gives how many, and fails if one did.
struct Traffic<'a> {
    scene: &'a Scene<'a>,
    stop: AtomicBool,
    done: AtomicUsize,
}

impl Traffic<'_> {
    fn flow(&self) -> Result<()> {
        while !self.stop.load(Ordering::SeqCst) {
            let mut wire = self.scene.login("carol").context("a login")?;
            wire.imap_ok("z LOGOUT").context("a logout")?;
            let mut web = self.scene.tls(self.scene.town.endpoints.https, FRONT)?;
            web.send(format!(
                "GET /home/alice@a.example/x HTTP/1.1\r\nHost: {FRONT}\r\nConnection: close\r\n\r\n"
            ))?;
            let answer = String::from_utf8_lossy(&web.rest()?).into_owned();
            ensure!(answer.starts_with("HTTP/1.1 200"), "a request: {answer}");
            self.done.fetch_add(1, Ordering::SeqCst);
        }
        Ok(())
    }
}

/// Plays something under traffic, before and after which some of it has passed.
fn under_traffic<T>(scene: &Scene, act: impl FnOnce() -> Result<T>) -> Result<T> {
    let traffic = Traffic {
        scene,
        stop: AtomicBool::new(false),
        done: AtomicUsize::new(0),
    };
    let some_more = || {
        let before = traffic.done.load(Ordering::SeqCst);
        until("traffic", SOON, || {
            Ok(
                (traffic.done.load(Ordering::SeqCst) >= before + 3 || traffic.stop.load(Ordering::SeqCst))
                    .then_some(()),
            )
        })
    };
    std::thread::scope(|scope| {
        let flow = scope.spawn(|| {
            let end = traffic.flow();
            traffic.stop.store(true, Ordering::SeqCst);
            end
        });
        let result = some_more().and_then(|()| act()).and_then(|result| {
            some_more()?;
            Ok(result)
        });
        traffic.stop.store(true, Ordering::SeqCst);
        flow.join().expect("no panic")?;
        result
    })
}

/// Waits until the first process has given way to a new one.
fn given_way(portico: &Portico) -> Result<()> {
    until("the old process to give way", SOON, || {
        Ok((portico.successions() > 0).then_some(()))
    })
}

#[test]
fn an_upgrade_cuts_no_session() -> Result<()> {
    play(|scene| {
        let (mut alice, bob) = (scene.login("alice")?, scene.login("bob")?);
        // One client is about to log in, another has sent half a request.
        let mut carol = scene.imaps()?;
        let mut web = scene.tls(scene.town.endpoints.https, FRONT)?;
        web.send(format!(
            "POST /home/bob@a.example/x HTTP/1.1\r\nHost: {FRONT}\r\nContent-Length: 4\r\nConnection: close\r\n\r\nab"
        ))?;
        let first = scene.portico.pid();
        let successor = scene.portico.successor("info")?;
        let pid = successor.pid();
        under_traffic(scene, || given_way(&scene.portico))?;
        ensure!(pid != first);
        alice.imap_ok("a1 NOOP")?;
        carol.imap_ok("c1 LOGIN carol@b.example carol-c4n4ry-three")?;
        web.send("cd")?;
        let answer = String::from_utf8_lossy(&web.rest()?).into_owned();
        ensure!(answer.starts_with("HTTP/1.1 200"), "{answer}");
        ensure!(scene.portico.is_running(), "the old process left its sessions alone");
        // It ends as soon as no session is left, and the new one has been there all the time.
        alice.imap_ok("a2 LOGOUT")?;
        drop((alice, bob, carol, web));
        let status = scene.portico.wait(SOON)?;
        ensure!(status.success(), "{status}");
        let mut dave = scene.login("dave")?;
        dave.imap_ok("d1 NOOP")?;
        scene.portico = scene.portico.adopt(successor);
        Ok(())
    })
}

/// An old process that is left with its sessions opens its logs again when it is told, as the new one does.
#[test]
fn an_old_process_opens_its_logs_again() -> Result<()> {
    play(|scene| {
        let mut alice = scene.login("alice")?;
        let old = scene.portico.upgrade("info")?;
        alice.imap_ok("a1 NOOP")?;
        let log = scene.portico.dir().join("audit.log");
        std::fs::rename(&log, log.with_extension("old"))?;
        // Nobody writes a line: a file is there because it was opened.
        old.signal(Signal::SIGUSR1)?;
        until("a new audit log", SOON, || Ok(log.exists().then_some(())))?;
        alice.imap_ok("a2 LOGOUT").map(drop)
    })
}

/// Every counter, and every count of times, by its name and labels.
fn counters(metrics: &str) -> BTreeMap<String, f64> {
    let lines = metrics.lines().filter_map(|line| line.rsplit_once(' '));
    let counts = lines.filter(|(series, _)| {
        let name = series.split('{').next().unwrap_or_default();
        ["_total", "_count", "_bucket", "_sum"]
            .iter()
            .any(|end| name.ends_with(end))
    });
    counts
        .filter_map(|(series, value)| Some((series.to_owned(), value.parse().ok()?)))
        .collect()
}

const LOGINS: &str = r#"portico_logins_total{outcome="ok",protocol="imap"}"#;
const LOGIN_TIMES: &str = r#"portico_phase_seconds_count{phase="login",protocol="imap"}"#;
const FAST: &str = r#"portico_phase_seconds_bucket{phase="login",protocol="imap",le="+Inf"}"#;
const BYTES: &str = r#"portico_relay_bytes_total{direction="in",protocol="imap"}"#;

/// A scrape at any time finds no counter that has gone back, over two upgrades; sessions of the first process count
/// on, through the second one to the third.
#[test]
fn counters_go_on_over_upgrades() -> Result<()> {
    play(|scene| {
        let mut alice = scene.login("alice")?;
        // The others stay, too: the process of each goes on.
        let (mut others, mut processes) = (Vec::new(), Vec::new());
        for (round, local) in [(1.0, "bob"), (2.0, "carol")] {
            let before = counters(&scene.metrics()?);
            ensure!(
                (before[LOGINS], before[LOGIN_TIMES], before[FAST]) == (round, round, round),
                "{before:?}"
            );
            let new = upgraded_without_going_back(scene, before)?;
            processes.push(std::mem::replace(&mut scene.portico, new));
            let now = counters(&scene.metrics()?);
            ensure!(
                (now[LOGINS], now[LOGIN_TIMES], now[FAST]) == (round, round, round),
                "{now:?}"
            );
            let bytes = now[BYTES];
            alice.imap_ok("a1 NOOP")?;
            until("the bytes of the first process", SOON, || {
                Ok((counters(&scene.metrics()?)[BYTES] > bytes).then_some(()))
            })?;
            others.push(scene.login(local)?);
        }
        alice.imap_ok("a2 LOGOUT")?;
        drop((alice, others));
        processes
            .iter_mut()
            .try_for_each(|process| process.wait(SOON).map(drop))?;
        // Without a process that tells, they begin anew.
        scene.portico.restart("info")?;
        ensure!(!counters(&scene.metrics()?).contains_key(LOGINS));
        Ok(())
    })
}

/// Lets a new process take over, under scrapes.
fn upgraded_without_going_back(scene: &Scene, mut last: BTreeMap<String, f64>) -> Result<Portico> {
    let before = scene.portico.successions();
    let mut successor = scene.portico.successor("info")?;
    let mut look = || -> Result<()> {
        let now = counters(&scene.metrics()?);
        for (series, was) in &last {
            let is = now.get(series).copied();
            ensure!(is >= Some(*was), "{series} was {was} and is {is:?}");
        }
        last = now;
        Ok(())
    };
    until("the new process to take over", SOON, || {
        ensure!(successor.is_running(), "it ended");
        look()?;
        Ok((scene.portico.successions() > before).then_some(()))
    })?;
    look()?;
    Ok(scene.portico.adopt(successor))
}

#[test]
fn sigusr2_starts_the_new_binary() -> Result<()> {
    play(|scene| {
        let mut alice = scene.login("alice")?;
        under_traffic(scene, || {
            scene.portico.signal(Signal::SIGUSR2)?;
            given_way(&scene.portico)
        })?;
        alice.imap_ok("a1 LOGOUT")?;
        let new = child_of(scene.portico.pid())?;
        drop(alice);
        scene.portico.wait(SOON)?;
        let mut bob = scene.login("bob")?;
        bob.imap_ok("b1 NOOP")?;
        // The new process has nobody's process group but the old one's; it ends as it is told.
        nix::sys::signal::kill(new, Signal::SIGTERM)?;
        bob.rest()?;
        until("the new process to end", SOON, || Ok(is_gone(new).then_some(())))
            .with_context(|| scene.portico.output())?;
        let (mut node, directory) = (scene.town.node(), scene.town.directory());
        node.more.clear();
        scene.portico = Portico::start(scene.stage, &node, &directory, "info")?;
        Ok(())
    })
}

/// Ends what the test has put in the background, however it goes.
struct Background(Vec<nix::unistd::Pid>);

impl Drop for Background {
    fn drop(&mut self) {
        for pid in self.0.iter().filter(|pid| !is_gone(**pid)) {
            let _ = nix::sys::signal::kill(*pid, Signal::SIGKILL);
        }
    }
}

#[test]
fn a_node_in_the_background_serves_when_the_command_ends() -> Result<()> {
    play(|scene| {
        let mut node = scene.town.node();
        let more = [
            ("daemon_wait_for_ready", "true"),
            ("daemon_ready_timeout_seconds", "20"),
        ];
        node.more
            .extend(more.map(|(key, value)| (key.to_owned(), value.to_owned())));
        scene.portico.stop()?;
        scene.portico.replace_node(&node)?;
        let mut made = Background(Vec::new());
        let status = scene.portico.in_background(&[])?;
        ensure!(status.success(), "{status}");
        let first = scene.portico.background_pid()?;
        made.0.push(first);
        // No wait for the listeners here: they are open.
        let mut alice = scene.login("alice")?;
        let status = scene.portico.in_background(&["-u"])?;
        ensure!(status.success(), "{status}");
        let second = scene.portico.background_pid()?;
        made.0.push(second);
        ensure!(second != first);
        alice.imap_ok("a1 NOOP")?;
        let mut bob = scene.login("bob")?;
        // SIGUSR2 does the same, and the new process stands in the file.
        nix::sys::signal::kill(second, Signal::SIGUSR2)?;
        let third = until("the third process", SOON, || {
            Ok(Some(scene.portico.background_pid()?).filter(|pid| *pid != second))
        })?;
        made.0.push(third);
        bob.imap_ok("b1 NOOP")?;
        scene.login("carol")?.imap_ok("c1 LOGOUT")?;
        alice.imap_ok("a2 LOGOUT")?;
        bob.imap_ok("b2 LOGOUT")?;
        drop((alice, bob));
        nix::sys::signal::kill(third, Signal::SIGTERM)?;
        until("all to end", SOON, || {
            Ok([first, second, third].into_iter().all(is_gone).then_some(()))
        })?;
        // The command that waits is told what cannot serve.
        let endpoint = scene.town.endpoints.imaps;
        let _taken = std::net::TcpListener::bind(endpoint)?;
        let status = scene.portico.in_background(&[])?;
        ensure!(status.code() == Some(1), "{status}");
        drop(_taken);
        scene.portico = Portico::start(scene.stage, &scene.town.node(), &scene.town.directory(), "info")?;
        Ok(())
    })
}

fn child_of(parent: u32) -> Result<nix::unistd::Pid> {
    let children = std::fs::read_to_string(format!("/proc/{parent}/task/{parent}/children"))?;
    let all = std::fs::read_dir(format!("/proc/{parent}/task"))?
        .flatten()
        .map(|task| std::fs::read_to_string(task.path().join("children")).unwrap_or_default());
    let all: String = std::iter::once(children).chain(all).collect();
    let first = all.split_whitespace().next().context("no child")?;
    Ok(nix::unistd::Pid::from_raw(first.parse()?))
}

/// Whether the process has ended; who it was the child of may not have asked for it yet.
fn is_gone(pid: nix::unistd::Pid) -> bool {
    match std::fs::read_to_string(format!("/proc/{pid}/stat")) {
        Ok(stat) => stat
            .rsplit(')')
            .next()
            .is_some_and(|rest| rest.trim_start().starts_with('Z')),
        Err(_) => true,
    }
}

#[test]
fn an_upgrade_that_fails_leaves_the_old_process() -> Result<()> {
    play(|scene| {
        let mut alice = scene.login("alice")?;
        let good = scene.town.node();
        let mut bad = good.clone();
        // A configuration that is no good is found out before anybody is asked.
        bad.more.push(("no_such_key".to_owned(), "1".to_owned()));
        scene.portico.replace_node(&bad)?;
        let mut successor = scene.portico.successor("info")?;
        ensure!(!successor.wait(SOON)?.success());
        ensure!(!scene.portico.output().contains("a new process asks"), "it was asked");
        // A log that cannot be opened is found out only with the sockets in hand.
        let yaml = good.yaml(scene.portico.dir());
        let log = scene.portico.dir().join("access.log");
        let yaml = yaml.replace(log.to_str().context("path")?, "/proc/none/access.log");
        std::fs::write(scene.portico.dir().join("portico.yaml"), yaml)?;
        let mut successor = scene.portico.successor("info")?;
        ensure!(!successor.wait(SOON)?.success());
        until("the old process to notice", SOON, || {
            Ok(scene
                .portico
                .output()
                .contains("the upgrade failed, this process serves on")
                .then_some(()))
        })?;
        alice.imap_ok("a1 NOOP")?;
        let mut bob = scene.login("bob")?;
        bob.imap_ok("b1 NOOP")?;
        // And then one that succeeds.
        scene.portico.replace_node(&good)?;
        let mut old = scene.portico.upgrade("info")?;
        alice.imap_ok("a2 NOOP")?;
        drop((alice, bob));
        old.wait(SOON)?;
        scene.login("carol")?.imap_ok("c1 NOOP").map(drop)
    })
}

#[test]
fn an_upgrade_without_an_old_process_fails_at_once() -> Result<()> {
    play(|scene| {
        scene.portico.stop()?;
        let mut successor = scene.portico.successor("info")?;
        ensure!(!successor.wait(Duration::from_secs(5))?.success());
        let output = scene.portico.output();
        ensure!(output.contains("no running process can be asked"), "{output}");
        scene.portico.start_again("info")
    })
}

#[test]
fn sigterm_ends_within_the_stated_time() -> Result<()> {
    let change = |_: &Town, node: &mut Node, _: &mut Directory| {
        node.more.push(("shutdown_timeout".to_owned(), "8s".to_owned()));
        Ok(())
    };
    play_with(people(), change, |scene| {
        let (mut alice, mut early) = (scene.login("alice")?, scene.imaps()?);
        let (status, wait) = timed(|| {
            scene.portico.signal(Signal::SIGTERM)?;
            // Who is not logged in has two seconds, who is has almost all of it.
            let (said, wait) = timed(|| early.rest())?;
            ensure!(said.starts_with(b"* BYE"), "{said:?}");
            ensure!(wait < Duration::from_secs(6), "{wait:?}");
            alice.imap_ok("a1 NOOP")?;
            let said = alice.rest()?;
            ensure!(said.starts_with(b"* BYE"), "{said:?}");
            scene.portico.wait(SOON)
        })?;
        ensure!(status.success(), "{status}");
        // A second for a busy machine.
        ensure!(
            wait > Duration::from_secs(5) && wait < Duration::from_secs(9),
            "{wait:?}"
        );
        // Without sessions it ends at once; and a second signal does not wait for any.
        scene.portico.start_again("info")?;
        let ((), wait) = timed(|| scene.portico.stop())?;
        ensure!(wait < Duration::from_secs(4), "{wait:?}");
        scene.portico.start_again("info")?;
        let _alice = scene.login("alice")?;
        scene.portico.signal(Signal::SIGTERM)?;
        until("the drain to begin", SOON, || {
            Ok(scene
                .portico
                .output()
                .matches("ending; 1 connections")
                .count()
                .checked_sub(1))
        })?;
        scene.portico.signal(Signal::SIGTERM)?;
        let (_, wait) = timed(|| scene.portico.wait(SOON))?;
        ensure!(wait < Duration::from_secs(3), "{wait:?}");
        scene.portico.start_again("info")
    })
}

#[test]
fn the_last_sessions_of_an_old_process_end_one_by_one() -> Result<()> {
    let change = |_: &Town, node: &mut Node, _: &mut Directory| {
        node.more.push(("drain_max".to_owned(), "2s".to_owned()));
        node.more.push(("drain_spread".to_owned(), "6s".to_owned()));
        Ok(())
    };
    play_with(people(), change, |scene| {
        let mut sessions = (0..24).map(|_| scene.login("alice")).collect::<Result<Vec<_>>>()?;
        let mut old = scene.portico.upgrade("info")?;
        let begun = Instant::now();
        let ends = std::thread::scope(|scope| {
            let threads: Vec<_> = sessions
                .iter_mut()
                .map(|session| {
                    scope.spawn(move || -> Result<Duration> {
                        let said = session.rest()?;
                        ensure!(said.starts_with(b"* BYE"), "{said:?}");
                        Ok(begun.elapsed())
                    })
                })
                .collect();
            threads
                .into_iter()
                .map(|thread| thread.join().expect("no panic"))
                .collect::<Result<Vec<_>>>()
        })?;
        let (first, last) = (ends.iter().min().context("none")?, ends.iter().max().context("none")?);
        ensure!(*first > Duration::from_secs(1), "before drain_max: {ends:?}");
        ensure!(*last - *first > Duration::from_secs(2), "not spread: {ends:?}");
        ensure!(*last < Duration::from_secs(12), "too late: {ends:?}");
        ensure!(old.wait(SOON)?.success());
        scene.login("bob")?.imap_ok("b1 NOOP").map(drop)
    })
}

#[test]
fn a_reload_takes_the_node_file_and_names_what_it_cannot() -> Result<()> {
    play(|scene| {
        let mut alice = scene.login("alice")?;
        let mut node = scene.town.node();
        let gone = node.listeners.pop().context("no listener")?.address;
        let new = SocketAddrV4::new(Ipv4Addr::LOCALHOST, scene.stage.port()?);
        let taken = std::net::TcpListener::bind("127.0.0.1:0")?;
        let taken = SocketAddrV4::new(Ipv4Addr::LOCALHOST, taken.local_addr()?.port());
        let _holds = std::net::TcpListener::bind(taken);
        for address in [new, taken] {
            node.listeners.push(Listener {
                address: SocketAddr::V4(address),
                serve: Serve::Imap,
                tls: Tls::Implicit,
                proxies: Vec::new(),
                more: Vec::new(),
            });
        }
        node.more
            .push(("route_cache".to_owned(), "{ttl: 2h, capacity: 17}".to_owned()));
        let yaml = node.yaml(scene.portico.dir()).replace("audit.log", "moved.log");
        let yaml = yaml.replace("work_stealing: false", "work_stealing: true");
        std::fs::write(scene.portico.dir().join("portico.yaml"), yaml)?;
        scene.portico.signal(Signal::SIGHUP)?;
        until("the reload", SOON, || {
            Ok(scene.portico.output().contains("needs an upgrade:").then_some(()))
        })?;
        let output = scene.portico.output();
        for key in ["listeners", "log.audit", "route_cache.ttl"] {
            ensure!(output.contains(&format!("node file: {key} is in force")), "{output}");
        }
        ensure!(
            output.contains("needs an upgrade: route_cache.capacity, work_stealing"),
            "{output}"
        );
        // The new listener is open, the old one closed, the others as they were.
        let tls = scene.town.ca.connector(&[])?;
        greeted(Wire::tls(new, &tls, FRONT)?, "* OK")?;
        ensure!(TcpStream::connect(gone).is_err(), "{gone} still listens");
        alice.imap_ok("a1 NOOP")?;
        scene.login("bob")?.imap_ok("b1 LOGOUT")?;
        let moved = scene.portico.dir().join("moved.log");
        until("a line in the new log", SOON, || {
            let text = std::fs::read_to_string(&moved).unwrap_or_default();
            Ok(text.contains("bob@a.example").then_some(()))
        })?;
        // What is no good changes nothing.
        std::fs::write(scene.portico.dir().join("portico.yaml"), "listeners: nonsense\n")?;
        scene.portico.signal(Signal::SIGHUP)?;
        until("the complaint", SOON, || {
            Ok(scene
                .portico
                .output()
                .contains("what cannot be used changes nothing")
                .then_some(()))
        })?;
        greeted(Wire::tls(new, &tls, FRONT)?, "* OK")?;
        alice.imap_ok("a2 NOOP").map(drop)
    })
}

#[test]
fn a_listener_that_cannot_be_opened_is_an_alarm() -> Result<()> {
    play(|scene| {
        let held = std::net::TcpListener::bind("127.0.0.1:0")?;
        let address = SocketAddrV4::new(Ipv4Addr::LOCALHOST, held.local_addr()?.port());
        let mut node = scene.town.node();
        node.listeners.push(Listener {
            address: SocketAddr::V4(address),
            serve: Serve::Imap,
            tls: Tls::StartTls,
            proxies: Vec::new(),
            more: Vec::new(),
        });
        scene.portico.replace_node(&node)?;
        scene.portico.reload()?;
        until("the alarm", SOON, || {
            let alarm = format!("cannot listen on {address}");
            Ok(scene.portico.output().contains(&alarm).then_some(()))
        })?;
        scene.login("alice")?.imap_ok("a1 NOOP")?;
        // As soon as the address is free, the listener opens.
        drop(held);
        until("the listener to open", SOON, || {
            Ok(TcpStream::connect(address).ok().map(drop))
        })?;
        greeted(Wire::clear(address)?, "* OK").map(drop)
    })
}

/// Listeners made from the directory, on ports of our own.
#[test]
fn listeners_follow_the_directory() -> Result<()> {
    Stage::run(|stage| {
        let town = Town::build(stage, people())?;
        let mut node = town.node();
        node.listeners.clear();
        let port = || stage.port();
        let ports = [port()?, port()?, port()?, port()?, port()?, port()?, port()?];
        let names = [
            "zimbraMailProxyPort",
            "zimbraMailSSLProxyPort",
            "zimbraImapProxyBindPort",
            "zimbraImapSSLProxyBindPort",
            "zimbraPop3ProxyBindPort",
            "zimbraPop3SSLProxyBindPort",
            "carbonioAdminProxyPort",
        ];
        let at = |port: u16| SocketAddrV4::new(Ipv4Addr::LOCALHOST, port);
        let mut directory = town.directory();
        for (name, port) in names.iter().zip(ports) {
            directory.server(NODE).insert((*name).to_owned(), port.into());
        }
        directory.config("zimbraReverseProxyMailMode", "https");
        let mut portico = Portico::start(stage, &node, &directory, "info")?;
        let [http, https, imap, imaps, ..] = ports;
        let opens = |port: u16| until("a listener", SOON, || Ok(TcpStream::connect(at(port)).ok().map(drop)));
        opens(https)?;
        opens(imap)?;
        ensure!(
            TcpStream::connect(at(http)).is_err(),
            "port {http} is open in mode https"
        );
        let tls = town.ca.connector(&[])?;
        let mut alice = greeted(Wire::tls(at(imaps), &tls, FRONT)?, "* OK")?;
        alice.imap_ok("a1 LOGIN alice@a.example alice-c4n4ry-one")?;

        directory.config("zimbraReverseProxyMailMode", "redirect");
        portico.replace_directory(&directory)?;
        opens(http)?;
        let mut web = Wire::clear(at(http))?;
        web.send("GET / HTTP/1.1\r\nHost: mail.example.test\r\n\r\n")?;
        ensure!(web.line()?.contains(" 302 "));

        let moved = stage.port()?;
        directory
            .server(NODE)
            .insert("zimbraImapProxyBindPort".to_owned(), moved.into());
        portico.replace_directory(&directory)?;
        opens(moved)?;
        until("the old listener to close", SOON, || {
            Ok(TcpStream::connect(at(imap)).is_err().then_some(()))
        })?;
        alice.imap_ok("a2 NOOP")?;
        greeted(Wire::tls(at(imaps), &tls, FRONT)?, "* OK")?;
        ensure!(portico.is_running());
        Ok(())
    })
}

/// What a service manager is told, and in which order.
#[test]
fn systemd_is_notified() -> Result<()> {
    Stage::run(|stage| {
        let town = Town::build(stage, people())?;
        let path = stage.path().join("notify");
        let manager = Manager(UnixDatagram::bind(&path)?);
        manager.0.set_read_timeout(Some(SOON))?;
        let env = [
            ("NOTIFY_SOCKET", path.to_str().context("path")?),
            ("WATCHDOG_USEC", "300000"),
        ];
        let mut portico = Portico::start_in(stage, &town.node(), &town.directory(), &env)?;
        let hears = |words: &[&str]| manager.hears(words);
        hears(&["READY=1", &format!("MAINPID={}", portico.pid())])?;
        hears(&["WATCHDOG=1"])?;
        portico.signal(Signal::SIGHUP)?;
        hears(&["RELOADING=1", "MONOTONIC_USEC="])?;
        // A reload does not make a process the one that counts.
        let told = hears(&["READY=1"])?;
        ensure!(!told.contains("MAINPID="), "{told}");
        portico.signal(Signal::SIGUSR2)?;
        let told = hears(&["READY=1", "MAINPID="])?;
        ensure!(!told.contains(&format!("MAINPID={}\n", portico.pid())), "{told}");
        portico.wait(SOON)?;
        let pid = told
            .lines()
            .find_map(|line| line.strip_prefix("MAINPID="))
            .context("no MAINPID")?;
        let pid = nix::unistd::Pid::from_raw(pid.parse()?);
        nix::sys::signal::kill(pid, Signal::SIGTERM)?;
        hears(&["STOPPING=1"])?;
        until("the new process to end", SOON, || Ok(is_gone(pid).then_some(())))
    })
}

/// The unit that is shipped, with another file in the place of the program.
fn unit(program: &Path) -> Result<String> {
    let unit = Path::new(env!("CARGO_MANIFEST_DIR")).join("../conf/portico.service");
    let program = program.to_str().context("path")?;
    Ok(std::fs::read_to_string(unit)?.replace("/usr/local/bin/portico", program))
}

#[test]
fn the_unit_is_one_that_systemd_takes() -> Result<()> {
    Stage::run(|stage| {
        let path = stage.path().join("portico.service");
        std::fs::write(&path, unit(&binary()?)?)?;
        let out = Command::new("systemd-analyze")
            .args(["verify", "--man=no"])
            .arg(&path)
            .output()?;
        let said = String::from_utf8_lossy(&out.stderr);
        // It also speaks of units of this machine.
        ensure!(!said.contains("portico.service"), "{said}");
        Ok(())
    })
}

/// `systemctl reload`, as the unit has it.
fn reload_of_the_unit(scene: &Scene, program: &Path) -> Result<()> {
    let unit = unit(program)?;
    let line = unit
        .lines()
        .find_map(|line| line.strip_prefix("ExecReload=/bin/sh -c '"));
    let script = line.and_then(|line| line.strip_suffix('\'')).context("no ExecReload")?;
    let status = Command::new("/bin/sh")
        .args(["-c", script])
        .env("MAINPID", scene.portico.pid().to_string())
        .status()?;
    ensure!(status.success(), "{script}: {status}");
    Ok(())
}

#[test]
fn the_unit_reloads_or_lets_a_new_binary_take_over() -> Result<()> {
    play(|scene| {
        let mut alice = scene.login("alice")?;
        reload_of_the_unit(scene, &binary()?)?;
        scene.portico.record(&[("event", "config"), ("why", "reloaded")])?;
        ensure!(scene.portico.successions() == 0, "the same binary took over");
        // Another file stands there now. What is started is the program of this test all the same.
        let other = scene.stage.path().join("other");
        std::fs::write(&other, "another binary")?;
        reload_of_the_unit(scene, &other)?;
        given_way(&scene.portico)?;
        alice.imap_ok("a1 LOGOUT")?;
        let new = child_of(scene.portico.pid())?;
        drop(alice);
        scene.portico.wait(SOON)?;
        scene.login("bob")?.imap_ok("b1 LOGOUT")?;
        nix::sys::signal::kill(new, Signal::SIGTERM)?;
        until("the new process to end", SOON, || Ok(is_gone(new).then_some(())))?;
        scene.portico = Portico::start(scene.stage, &scene.town.node(), &scene.town.directory(), "info")?;
        Ok(())
    })
}

struct Manager(UnixDatagram);

impl Manager {
    /// The next message with all these words.
    fn hears(&self, words: &[&str]) -> Result<String> {
        let end = Instant::now() + SOON;
        let mut buffer = [0; 4096];
        while Instant::now() < end {
            let n = self
                .0
                .recv(&mut buffer)
                .with_context(|| format!("waiting for {words:?}"))?;
            let text = String::from_utf8_lossy(&buffer[..n]).into_owned();
            if words.iter().all(|word| text.contains(word)) {
                return Ok(text);
            }
        }
        bail!("systemd was not told {words:?}")
    }
}

#[test]
fn sockets_of_systemd_are_taken() -> Result<()> {
    Stage::run(|stage| {
        let town = Town::build(stage, people())?;
        let dir = stage.dir("activated")?;
        std::fs::write(dir.join("portico.yaml"), town.node().yaml(&dir))?;
        std::fs::write(dir.join("directory.yaml"), town.directory().yaml())?;
        let (config, binary) = (dir.join("portico.yaml"), binary()?);
        let imaps = town.endpoints.imaps.to_string();
        let nobodys = SocketAddrV4::new(Ipv4Addr::LOCALHOST, stage.port()?);
        let args = [
            "-E",
            "RUST_LOG=info",
            "-l",
            &imaps,
            "-l",
            &nobodys.to_string(),
            "--",
            binary.to_str().context("path")?,
            "-c",
            config.to_str().context("path")?,
        ];
        let mut child = Child::spawn(
            "systemd",
            "systemd-socket-activate",
            &args,
            &[],
            &dir.join("output.log"),
        )?;
        child.wait_listening(&[town.endpoints.imaps])?;
        // The first connection starts it, and is served.
        let tls = town.ca.connector(&[])?;
        let mut wire = greeted(Wire::tls(town.endpoints.imaps, &tls, FRONT)?, "* OK")?;
        wire.imap_ok("a1 LOGIN alice@a.example alice-c4n4ry-one")?;
        child.wait_listening(&[town.endpoints.imap])?;
        ensure!(
            TcpStream::connect(nobodys).is_err(),
            "nobody serves {nobodys}, but it listens"
        );
        wire.imap_ok("a2 LOGOUT").map(drop)
    })
}
