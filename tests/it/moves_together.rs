//! Moves of accounts where several nodes act together: on which node the sessions are does not matter, and a node that
//! does not answer is named.

use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::sync::LazyLock;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use nix::sys::signal::Signal;
use portico_tests::portico::Portico;
use portico_tests::redis::Redis;
use portico_tests::slapd::Slapd;
use portico_tests::town::{Person, Town};
use portico_tests::wire::Wire;
use portico_tests::{Stage, amount, percentile, until};
use serde_json::Value;

use crate::admin::{Said, done, json, said};
use crate::moves::{log_in_until, movers};
use crate::shared_state::{NAMES, SOON, Together, at, ends, goes_on};

const STORES: [&str; 2] = ["store1.example.test", "store2.example.test"];

/// Some nodes, the slapd they read, and the engine they share.
struct Cluster<'a> {
    stage: &'a Stage,
    together: Together,
    slapd: Slapd,
    redis: Redis,
}

impl<'a> Cluster<'a> {
    /// `told`: by which way the nodes hear of changes.
    fn build(stage: &'a Stage, count: usize, told: bool) -> Result<Self> {
        Self::of(stage, movers(), count, told)
    }

    fn of(stage: &'a Stage, people: Vec<Person>, count: usize, told: bool) -> Result<Self> {
        let town = Town::build(stage, people)?;
        let directory = Together::directory(&town, count);
        let (slapd, redis) = (Slapd::start(stage, "slapd", &directory)?, Redis::start(stage)?);
        let together = Together::start(stage, town, (&directory, count), &at(&redis), |node| {
            node.directory = slapd.source("200ms");
            let snapshot = format!("snapshot: {}.snapshot", node.name);
            node.directory[1] = snapshot;
            node.directory.insert(3, format!("  sync: {told}"));
            node.more.retain(|(key, _)| key != "mail");
            node.more.push(("mail".to_owned(), "{hold_wait: 30s}".to_owned()));
        })?;
        together.all_see_each_other()?;
        Ok(Self {
            stage,
            together,
            slapd,
            redis,
        })
    }

    fn node(&self, at: usize) -> &Portico {
        &self.together.nodes[at]
    }

    fn move_to(&self, at: usize, store: usize, more: &[&str]) -> Result<Said> {
        let order = ["users", "move", "alice@a.example", "--to", STORES[store]];
        said(self.node(at), &[&order, more].concat())
    }

    /// A file on which a copy program waits, and the program.
    fn gate(&self) -> Result<(PathBuf, String)> {
        use std::os::unix::fs::PermissionsExt as _;
        let go = self.stage.dir("gate")?.join("go");
        let script = format!("#!/bin/sh\nuntil test -e {}; do sleep 0.05; done\n", go.display());
        let path = self.stage.file("gate/copy.sh", script)?;
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755))?;
        Ok((go, path.display().to_string()))
    }

    fn until_step(&self, at: usize, step: &str) -> Result<()> {
        until(step, SOON, || {
            Ok((moves_of(self.node(at))?[0]["state"] == step).then_some(()))
        })
    }

    /// Where a node sends alice, by a login there.
    fn store_of_alice(&self, at: usize) -> Result<usize> {
        self.store_of(at, "alice")
    }

    fn store_of(&self, at: usize, local: &str) -> Result<usize> {
        let _session = self.together.login(at, local)?;
        let name = &self.together.town.person(local)?.name;
        let list = json(self.node(at), &["sessions", "--user", name, "--local"])?;
        let sessions = list["sessions"].as_array().context("no list")?;
        let route = sessions.last().and_then(|last| last["logins"][0]["route"].as_str());
        self.store_at(route.context("no session")?)
    }

    fn store_at(&self, route: &str) -> Result<usize> {
        let is_at = |store: &portico_tests::town::Store| route.starts_with(&format!("{}:", store.dovecot.ip));
        let mut stores = self.together.town.stores.iter();
        stores.position(is_at).with_context(|| route.to_owned())
    }

    fn holds_nobody(&self) -> Result<()> {
        for node in &self.together.nodes {
            until("nobody is held", SOON, || {
                Ok(done(node, &["users", "holds"])?.is_empty().then_some(()))
            })?;
        }
        Ok(())
    }
}

/// The accounts of a node's newest order, as far as they have come.
fn moves_of(node: &Portico) -> Result<Value> {
    let out = std::process::Command::new("curl")
        .args(["-s", "--unix-socket"])
        .arg(node.dir().join("admin.sock"))
        .arg("http://localhost/v1/moves")
        .output()?;
    let moves: Value = serde_json::from_slice(&out.stdout)?;
    let newest = moves["moves"].as_array().and_then(|all| all.last());
    Ok(newest.map(|newest| newest["accounts"].clone()).unwrap_or_default())
}

/// How long the moves of a report took, for whoever reads along.
fn print_times(what: &str, mut times: Vec<u64>, begun: Instant) {
    times.sort_unstable();
    let at = |percent| percentile(&times, percent);
    let (count, all) = (times.len(), begun.elapsed().as_secs_f64());
    println!(
        "{what}: {count} moves in {all:.1} s, each {} ms p50, {} ms p99, {} ms at most",
        at(50),
        at(99),
        at(100)
    );
}

/// When something was recorded, to the millisecond.
fn time(record: &Value) -> String {
    record["time"].as_str().unwrap_or_default().to_owned()
}

/// From when to when the account was on a server for certain: from the end of a move to the beginning of the next one.
/// The times of a log record are those of its end.
fn stays(records: &[Value]) -> Vec<(String, String, String)> {
    let (mut stays, mut now) = (Vec::new(), None);
    for record in records {
        let act = record["act"].as_str().unwrap_or_default();
        let Some(act) = act.strip_prefix("move alice@a.example from ") else {
            continue;
        };
        match act.rsplit_once(": ") {
            Some((front, "moved")) => now = front.rsplit_once(" to ").map(|(_, to)| (to.to_owned(), time(record))),
            _ => stays.extend(now.take().map(|(to, since)| (to, since, time(record)))),
        }
    }
    stays.extend(now.map(|(to, since)| (to, since, "9999".to_owned())));
    stays
}

/// What a node did in the second of this time, with the time of each act.
fn acts_near(node: &Portico, time: &str) -> Result<Vec<String>> {
    let second = time.split('.').next().unwrap_or_default();
    let near = node.audit()?.into_iter().filter(|record| {
        let at = record["time"].as_str().unwrap_or_default();
        record["act"].is_string() && at.starts_with(second)
    });
    Ok(near.map(|act| format!("{} {}", act["time"], act["act"])).collect())
}

/// Reads the audit logs of all nodes: no login that began after a move had returned is at another server.
fn no_login_was_at_the_old_server(cluster: &Cluster) -> Result<usize> {
    let stays = stays(&cluster.node(0).audit()?);
    for node in &cluster.together.nodes {
        for record in node.audit()? {
            if record["event"] != "login" || record["account"] != "alice@a.example" {
                continue;
            }
            ensure!(record["outcome"] == "ok", "{record}");
            let at = time(&record);
            // Of the same millisecond nobody knows which was first.
            let Some((server, since, until)) = stays.iter().find(|(_, since, until)| *since < at && at < *until) else {
                continue;
            };
            let store = cluster.store_at(record["route"].as_str().unwrap_or_default())?;
            ensure!(
                STORES[store] == server,
                "on {server} from {since} to {until}, but at {}: {record}; acts there meanwhile: {}",
                node.dir().display(),
                acts_near(node, since)?.join("; ")
            );
        }
    }
    Ok(stays.len())
}

#[test]
fn no_login_at_any_node_reaches_the_old_server_after_a_move() -> Result<()> {
    const LOOPS: usize = 20;
    let count = amount("PORTICO_MOVES", 25);
    for told in [true, false] {
        Stage::run(|stage| {
            let cluster = Cluster::build(stage, 2, told)?;
            let (stop, cluster) = (AtomicBool::new(false), &cluster);
            let (begun, mut times) = (Instant::now(), Vec::new());
            let logins = std::thread::scope(|threads| -> Result<usize> {
                let stop = &stop;
                let login = |at: usize| {
                    threads.spawn(move || log_in_until(&cluster.together.town, stop, || cluster.together.open(at % 2)))
                };
                let loops: Vec<_> = (0..LOOPS).map(login).collect();
                let moved = (1..=count).try_for_each(|round| {
                    let answer = cluster.move_to(0, round % 2, &["--json"])?;
                    ensure!(answer.code == 0, "{}{}", answer.out, answer.err);
                    let report: Value = serde_json::from_str(&answer.out)?;
                    ensure!(report["accounts"][0]["state"] == "moved", "{report}");
                    times.push(report["accounts"][0]["ms"].as_u64().context("no time")?);
                    Ok(())
                });
                stop.store(true, Ordering::Relaxed);
                let joined = loops.into_iter().map(|one| one.join().expect("it does not panic"));
                let counts: Vec<usize> = joined.collect::<Result<_>>()?;
                moved.map(|()| counts.iter().sum())
            })?;
            print_times(if told { "told" } else { "polling" }, times, begun);
            println!("{logins} logins meanwhile");
            let moves = no_login_was_at_the_old_server(cluster)?;
            ensure!(moves == count && logins > count, "{moves} moves, {logins} logins");
            cluster.holds_nobody()
        })?;
    }
    Ok(())
}

#[test]
fn sessions_on_another_node_end_before_the_move_goes_on() -> Result<()> {
    Stage::run(|stage| {
        let cluster = Cluster::build(stage, 2, true)?;
        let alice = cluster.together.login(1, "alice")?;
        let mut bob = cluster.together.login(1, "bob")?;
        let answer = cluster.move_to(0, 1, &["--dry-run"])?;
        let planned = "alice@a.example from store1.example.test: would move, 1 sessions";
        ensure!(
            answer.code == 0 && answer.out.contains(planned),
            "{}{}",
            answer.out,
            answer.err
        );
        let answer = cluster.move_to(0, 1, &[])?;
        ensure!(
            answer.code == 0 && answer.out.contains(", 1 sessions"),
            "{}{}",
            answer.out,
            answer.err
        );
        ends(alice)?;
        goes_on(&mut bob)?;
        ensure!((cluster.store_of_alice(0)?, cluster.store_of_alice(1)?) == (1, 1));
        cluster.holds_nobody()?;
        // Only here: a session on the other node is its own affair, and ends when that one sees the change.
        let mut there = cluster.together.login(1, "alice")?;
        let answer = cluster.move_to(0, 0, &["--local"])?;
        ensure!(answer.code == 0, "{}{}", answer.out, answer.err);
        ensure!(there.line()?.starts_with("* BYE your mailbox has moved"));
        // Each step of the first move is on record there, with who ordered it, and nothing of the second.
        let who = format!("node {} for uid {}", NAMES[0], nix::unistd::getuid());
        let records = cluster
            .node(1)
            .audit()?
            .into_iter()
            .filter(|record| record["who"] == *who);
        let acts: Vec<String> = records
            .filter_map(|record| record["act"].as_str().map(str::to_owned))
            .collect();
        let expected = [
            "hold account alice@a.example for 600 s: moves to store2.example.test: moved by an administrator",
            "end sessions of alice@a.example: 1 sessions",
            "end sessions of alice@a.example: 0 sessions",
            "confirm alice@a.example on store2.example.test: it goes there",
            "release account alice@a.example",
        ];
        assert_eq!(acts, expected);
        Ok(())
    })
}

/// Two administrators at two nodes: one move goes on, the other one hears why it does not.
#[test]
fn of_two_moves_of_one_account_at_once_one_goes_on() -> Result<()> {
    Stage::run(|stage| {
        let cluster = Cluster::build(stage, 3, true)?;
        let mut store = 0;
        for _ in 0..amount("PORTICO_RIVALS", 10) {
            let to = 1 - store;
            let (one, other) = std::thread::scope(|scope| {
                let one = scope.spawn(|| cluster.move_to(0, to, &[]));
                let other = cluster.move_to(1, to, &[]);
                (one.join(), other)
            });
            let answers = [one.ok().context("it panicked")??, other?];
            let moved = answers
                .iter()
                .filter(|answer| answer.out.contains(": moved in "))
                .count();
            let is_told = |answer: &Said| {
                let reasons = [" moves it already", "it is held already", "already there"];
                reasons.iter().any(|why| answer.out.contains(why))
            };
            let told = answers.iter().filter(|answer| is_told(answer)).count();
            let said: Vec<&str> = answers.iter().map(|answer| answer.out.as_str()).collect();
            ensure!((moved, told) == (1, 1), "{said:?}");
            ensure!(
                (0..3).all(|at| cluster.store_of_alice(at).is_ok_and(|found| found == to)),
                "{said:?}"
            );
            cluster.holds_nobody()?;
            store = to;
        }
        Ok(())
    })
}

/// The one that began later is undone at once, and does not release the account.
#[test]
fn a_move_that_another_node_carries_out_is_not_begun_again() -> Result<()> {
    Stage::run(|stage| {
        let cluster = Cluster::build(stage, 2, true)?;
        let (go, program) = cluster.gate()?;
        std::thread::scope(|scope| {
            let first = scope.spawn(|| cluster.move_to(0, 1, &["--copy", &program]));
            cluster.until_step(0, "copying")?;
            let second = cluster.move_to(1, 1, &[])?;
            let why = format!(": {} moves it already", NAMES[0]);
            ensure!(second.code == 1 && second.out.contains(&why), "{}", second.out);
            ensure!(!done(cluster.node(1), &["users", "holds"])?.is_empty(), "released");
            std::fs::write(&go, "")?;
            let first = first.join().ok().context("it panicked")??;
            ensure!(first.out.contains(": moved in "), "{}{}", first.out, first.err);
            cluster.holds_nobody()
        })
    })
}

#[test]
fn a_node_that_is_frozen_before_the_change_has_the_move_undone() -> Result<()> {
    Stage::run(|stage| {
        let cluster = Cluster::build(stage, 2, true)?;
        let mut there = cluster.together.login(1, "alice")?;
        cluster.node(1).signal(Signal::SIGSTOP)?;
        let answer = cluster.move_to(0, 1, &[])?;
        ensure!(
            answer.code == 1 && answer.out.contains(": undone in ") && answer.out.contains(NAMES[1]),
            "{}{}",
            answer.out,
            answer.err
        );
        ensure!(cluster.store_of_alice(0)? == 0);
        let answer = cluster.move_to(0, 1, &["--dry-run"])?;
        let missing = format!("not counted: the sessions of {}: ", NAMES[1]);
        ensure!(
            answer.code == 1 && answer.err.contains(&missing),
            "{}{}",
            answer.out,
            answer.err
        );
        // A name that no node has is no node that is not there.
        for (name, why) in [
            ("proxy9.example.test", "no other node proxy9"),
            (NAMES[0], "is this node"),
        ] {
            let answer = cluster.move_to(0, 1, &["--without", NAMES[1], "--without", name])?;
            ensure!(
                answer.code == 1 && answer.err.contains(why),
                "{}{}",
                answer.out,
                answer.err
            );
        }
        // An administrator who knows that it is not there goes on without it.
        let answer = cluster.move_to(0, 1, &["--without", NAMES[1]])?;
        ensure!(answer.code == 0 && answer.out.contains(": moved in "), "{}", answer.out);
        ensure!(cluster.store_of_alice(0)? == 1);
        cluster.node(1).signal(Signal::SIGCONT)?;
        // Its session ends when it hears of the change.
        ensure!(there.line()?.starts_with("* BYE your mailbox has moved"));
        ensure!(cluster.store_of_alice(1)? == 1);
        cluster.holds_nobody()
    })
}

#[test]
fn a_node_that_is_frozen_behind_the_change_is_named_and_follows() -> Result<()> {
    Stage::run(|stage| {
        let cluster = Cluster::build(stage, 2, true)?;
        // It has the old route in memory.
        ensure!(cluster.store_of_alice(1)? == 0);
        let (go, program) = cluster.gate()?;
        let answer = std::thread::scope(|threads| -> Result<Said> {
            let cluster = &cluster;
            let moving = threads.spawn(move || cluster.move_to(0, 1, &["--copy", &program]));
            cluster.until_step(0, "copying")?;
            cluster.slapd.freeze()?;
            std::fs::write(&go, "")?;
            cluster.until_step(0, "changing")?;
            cluster.node(1).signal(Signal::SIGSTOP)?;
            cluster.slapd.thaw()?;
            moving.join().expect("it does not panic")
        })?;
        let named = format!("not confirmed by {}", NAMES[1]);
        ensure!(
            answer.code == 1 && answer.out.contains(": moved in ") && answer.out.contains(&named),
            "{}{}",
            answer.out,
            answer.err
        );
        ensure!(
            answer.err.contains("were not confirmed by every node"),
            "{}",
            answer.err
        );
        ensure!(cluster.store_of_alice(0)? == 1);
        cluster.node(1).signal(Signal::SIGCONT)?;
        ensure!(
            cluster.store_of_alice(1)? == 1,
            "the frozen node goes to the old server"
        );
        cluster.holds_nobody()
    })
}

#[test]
fn without_the_engine_a_move_is_undone_and_a_local_one_goes_on() -> Result<()> {
    Stage::run(|stage| {
        let mut cluster = Cluster::build(stage, 2, true)?;
        cluster.redis.kill();
        cluster.together.is_alone(0)?;
        let answer = cluster.move_to(0, 1, &[])?;
        ensure!(
            answer.code == 1 && answer.out.contains("the other nodes: shared_state is away"),
            "{}{}",
            answer.out,
            answer.err
        );
        ensure!(cluster.store_of_alice(0)? == 0);
        let answer = cluster.move_to(0, 1, &["--local"])?;
        ensure!(answer.code == 0, "{}{}", answer.out, answer.err);
        cluster.redis.start_again()?;
        cluster.together.all_see_each_other()?;
        let answer = cluster.move_to(1, 0, &[])?;
        ensure!(answer.code == 0, "{}{}", answer.out, answer.err);
        ensure!((cluster.store_of_alice(0)?, cluster.store_of_alice(1)?) == (0, 0));
        cluster.holds_nobody()
    })
}

#[test]
fn prov_waits_for_every_node_and_names_the_one_that_is_late() -> Result<()> {
    Stage::run(|stage| {
        let cluster = Cluster::build(stage, 2, true)?;
        let change = |wait: &str, value: &str| {
            let words = ["ma", "alice@a.example", "description", value];
            said(cluster.node(0), &[&["prov", "--wait", wait], &words[..]].concat())
        };
        let all = change("all", "one")?;
        for name in &NAMES[..2] {
            ensure!(
                all.err.contains(&format!("in force on {name} (configuration ")),
                "{}",
                all.err
            );
        }
        ensure!(all.code == 0, "{}", all.err);
        cluster.node(1).signal(Signal::SIGSTOP)?;
        let late = change("all", "two")?;
        ensure!(late.code == 3, "{}: {}", late.code, late.err);
        ensure!(
            late.err.contains(&format!("in force on {} (configuration ", NAMES[0])),
            "{}",
            late.err
        );
        ensure!(
            late.err.contains(&format!("not in force on {} after ", NAMES[1])),
            "{}",
            late.err
        );
        // The others are asked by nobody.
        let here = change("node", "three")?;
        ensure!(here.code == 0 && !here.err.contains(NAMES[1]), "{}", here.err);
        cluster.node(1).signal(Signal::SIGCONT)?;
        until("the node has thawed", SOON, || {
            Ok((change("all", "four")?.code == 0).then_some(()))
        })
    })
}

/// How many accounts are on the server that is evacuated.
static EVACUATED: LazyLock<usize> = LazyLock::new(|| amount("PORTICO_EVACUATED", 24));

/// What happens while a server is evacuated.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Trouble {
    None,
    SlapdStops,
    EngineDies,
    NodeFreezes,
}

impl Trouble {
    /// Makes it, and ends it.
    fn happens(self, together: &Together, slapd: &mut Slapd, redis: &mut Redis) -> Result<()> {
        let node = &together.nodes[0];
        match self {
            Self::None => Ok(()),
            Self::SlapdStops => {
                slapd.stop()?;
                slapd.start_again()
            }
            Self::EngineDies => {
                redis.kill();
                together.is_alone(0)?;
                redis.start_again()
            }
            Self::NodeFreezes => {
                together.nodes[1].signal(Signal::SIGSTOP)?;
                until("the first move to be undone", SOON, || {
                    let moves = moves_of(node)?;
                    let is_undone = |one: &Value| one["state"] == "undone";
                    Ok(moves
                        .as_array()
                        .is_some_and(|all| all.iter().any(is_undone))
                        .then_some(()))
                })?;
                together.nodes[1].signal(Signal::SIGCONT)
            }
        }
    }
}

/// Two or three for each account, on both nodes.
fn sessions(together: &Together) -> Result<Vec<Wire>> {
    let wanted = *EVACUATED * 5 / 2;
    let login = |i: usize| together.login(i / *EVACUATED % 2, &format!("m{:03}", i % *EVACUATED));
    (0..wanted).map(login).collect()
}

fn evacuate(trouble: Trouble) -> Result<()> {
    let mover = |i| Person::new(&format!("m{i:03}@a.example"), 0, format!("m{i:03}-c4n4ry")).everywhere();
    Stage::run(|stage| {
        let mut cluster = Cluster::of(stage, (0..*EVACUATED).map(mover).collect(), 2, true)?;
        let (sessions, begun) = (sessions(&cluster.together)?, Instant::now());
        let Cluster {
            together, slapd, redis, ..
        } = &mut cluster;
        let said = std::thread::scope(|threads| -> Result<Said> {
            let node = &together.nodes[0];
            let order = [
                "server", "evacuate", STORES[0], "--to", STORES[1], "--pace", "50", "--json",
            ];
            let moving = threads.spawn(move || said(node, &order));
            until("a quarter to be moved", SOON, || {
                let moves = moves_of(node)?;
                let all = moves.as_array().into_iter().flatten();
                let moved = all.filter(|one| one["state"] == "moved").count();
                Ok((moved >= *EVACUATED / 4).then_some(()))
            })?;
            trouble.happens(together, slapd, redis)?;
            moving.join().expect("it does not panic")
        })?;
        let report: Value = serde_json::from_str(&said.out).with_context(|| said.err.clone())?;
        let accounts = report["accounts"].as_array().context("no accounts")?;
        ensure!(accounts.len() == *EVACUATED, "{report}");
        let times = accounts.iter().filter_map(|one| one["ms"].as_u64()).collect();
        print_times(&format!("{trouble:?}, {} sessions", sessions.len()), times, begun);
        cluster.together.all_see_each_other()?;
        cluster.holds_nobody()?;
        cluster.is_as_reported(accounts)?;
        let moved = accounts.iter().filter(|one| one["state"] == "moved").count();
        println!("{moved} of {} moved", accounts.len());
        match trouble {
            Trouble::None => {
                ensure!(said.code == 0 && moved == *EVACUATED, "{report}");
                sessions.into_iter().try_for_each(ends)
            }
            _ => Ok(()),
        }
    })
}

impl Cluster<'_> {
    /// What a report says of each account is what the directory says, and where both nodes send it.
    fn is_as_reported(&self, accounts: &[Value]) -> Result<()> {
        for one in accounts {
            let name = one["account"].as_str().context("no name")?;
            let store = match one["state"].as_str() {
                Some("moved") => 1,
                Some("undone") => 0,
                other => anyhow::bail!("{name} is {other:?}"),
            };
            let there = self
                .slapd
                .search(&format!("(zimbraMailDeliveryAddress={name})"), &["zimbraMailHost"])?;
            ensure!(there.contains(STORES[store]), "{one}: {there}");
            let local = name.split('@').next().unwrap_or_default();
            for at in 0..2 {
                let found = self.store_of(at, local)?;
                ensure!(found == store, "{one}: node {at} sends it to {}", STORES[found]);
            }
        }
        Ok(())
    }
}

#[test]
fn a_server_is_evacuated_and_every_session_is_told() -> Result<()> {
    evacuate(Trouble::None)
}

#[test]
fn an_evacuation_while_slapd_stops_is_as_it_says() -> Result<()> {
    evacuate(Trouble::SlapdStops)
}

#[test]
fn an_evacuation_while_the_engine_dies_is_as_it_says() -> Result<()> {
    evacuate(Trouble::EngineDies)
}

#[test]
fn an_evacuation_while_a_node_is_frozen_is_as_it_says() -> Result<()> {
    evacuate(Trouble::NodeFreezes)
}

/// An admin socket that is asked again and again, without a new connection.
struct Asking(BufReader<UnixStream>);

impl Asking {
    fn open(node: &Portico) -> Result<Self> {
        let stream = UnixStream::connect(node.dir().join("admin.sock"))?;
        stream.set_read_timeout(Some(SOON))?;
        Ok(Self(BufReader::new(stream)))
    }

    fn get(&mut self, path: &str) -> Result<Value> {
        let request = format!("GET {path} HTTP/1.1\r\nHost: localhost\r\n\r\n");
        self.0.get_mut().write_all(request.as_bytes())?;
        let (mut line, mut length) = (String::new(), 0);
        while line != "\r\n" {
            line.clear();
            ensure!(self.0.read_line(&mut line)? > 0, "the node has hung up");
            if let Some(value) = line.to_ascii_lowercase().strip_prefix("content-length:") {
                length = value.trim().parse()?;
            }
        }
        let mut body = vec![0; length];
        self.0.read_exact(&mut body)?;
        Ok(serde_json::from_slice(&body)?)
    }

    /// The configuration that is in force.
    fn generation(&mut self) -> Result<u64> {
        self.get("/v1/status")?["generation"].as_u64().context("no generation")
    }

    /// Where memory says that alice is; `None`: it does not know, and the directory is asked.
    fn remembers_alice(&mut self) -> Result<Option<String>> {
        let explained = self.get("/v1/routes/explain?login=alice@a.example")?;
        let tiers = explained["tiers"].as_array().into_iter().flatten();
        let mut memory = tiers.filter(|tier| tier["tier"] == "memory");
        let server = memory.next().and_then(|tier| tier["server"].as_str());
        Ok(server.map(str::to_owned))
    }
}

/// The time from a change in slapd, the change itself included, until it is in force on both nodes, which are processes
/// of their own: of the global config, of a server, and of an account that both have in memory. The times are printed for
/// whoever reads along (`PORTICO_CHANGES`).
#[test]
fn every_change_is_in_force_on_both_nodes() -> Result<()> {
    let count = amount("PORTICO_CHANGES", 12);
    Stage::run(|stage| {
        let cluster = Cluster::build(stage, 2, true)?;
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .enable_all()
            .build()?;
        let mut slapd = runtime.block_on(cluster.slapd.administrator())?;
        let mut nodes = [Asking::open(cluster.node(0))?, Asking::open(cluster.node(1))?];
        let mut times = [const { Vec::new() }; 3];
        for change in 0..count {
            let is_move = change % 3 == 2;
            let store = STORES[usize::from(change % 6 == 2)];
            if is_move {
                // Both have her in memory before she moves.
                (0..2).try_for_each(|at| cluster.together.login(at, "alice").map(drop))?;
            }
            let (dn, attribute, value) = match change % 3 {
                0 => (
                    "cn=config,cn=zimbra".to_owned(),
                    "zimbraReverseProxyConnectTimeout",
                    format!("{}s", 40 + change),
                ),
                1 => (
                    format!("cn={},cn=servers,cn=zimbra", STORES[0]),
                    "zimbraImapProxyBindPort",
                    format!("{}", 2000 + change),
                ),
                _ => (
                    "uid=alice,ou=people,dc=a,dc=example".to_owned(),
                    "zimbraMailHost",
                    store.to_owned(),
                ),
            };
            let mut before = Vec::new();
            for node in &mut nodes {
                before.push((node.generation()?, node.remembers_alice()?));
            }
            if is_move {
                ensure!(
                    before
                        .iter()
                        .all(|(_, server)| server.as_deref().is_some_and(|old| old != store)),
                    "{before:?}"
                );
            }
            let begun = Instant::now();
            let modify = vec![ldap3::Mod::Replace(attribute, [value.as_str()].into())];
            runtime.block_on(slapd.modify(&dn, modify))?.success()?;
            for (node, (generation, server)) in nodes.iter_mut().zip(&before) {
                while match is_move {
                    true => node.remembers_alice()? == *server,
                    false => node.generation()? == *generation,
                } {
                    ensure!(begun.elapsed() < SOON, "change {change} does not come into force");
                    // To ask without a pause would take the nodes' time.
                    std::thread::sleep(Duration::from_millis(5));
                }
            }
            times[change % 3].push(u64::try_from(begun.elapsed().as_micros())?);
        }
        print_in_force("config", times[0].clone());
        print_in_force("server", times[1].clone());
        print_in_force("account", times[2].clone());
        print_in_force("all", times.concat());
        Ok(())
    })
}

fn print_in_force(what: &str, mut times: Vec<u64>) {
    times.sort_unstable();
    let at = |percent| percentile(&times, percent) as f64 / 1000.0;
    println!(
        "{what}: {} changes in force on both nodes after {:.1} ms p50, {:.1} ms p99, {:.1} ms at most",
        times.len(),
        at(50),
        at(99),
        at(100)
    );
}
