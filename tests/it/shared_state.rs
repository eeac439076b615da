//! Nodes that act together by an engine, a real Redis: what one is told, all do; and what becomes of it when the engine
//! is killed, frozen, emptied, guarded, or lies.

use std::net::{SocketAddr, SocketAddrV4};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use nix::sys::signal::Signal;
use portico_tests::config::{Directory, Listener, Node, Serve, Tls};
use portico_tests::portico::Portico;
use portico_tests::redis::Redis;
use portico_tests::town::{Endpoints, FRONT, Town, people};
use portico_tests::wire::Wire;
use portico_tests::{Stage, until};
use serde_json::Value;

use crate::admin::{done, json, said};
use crate::scene::greeted;

pub(crate) const SOON: Duration = Duration::from_secs(30);
pub(crate) const NAMES: [&str; 3] = ["proxy1.example.test", "proxy2.example.test", "proxy3.example.test"];

/// Some nodes of one system.
pub(crate) struct Together {
    pub(crate) town: Town,
    pub(crate) nodes: Vec<Portico>,
    pub(crate) fronts: Vec<Endpoints>,
}

impl Together {
    /// `section` is `shared_state` of the node files, `change` further changes.
    pub(crate) fn build(stage: &Stage, count: usize, section: &str, change: impl Fn(&mut Node)) -> Result<Self> {
        let town = Town::build(stage, people())?;
        let directory = Self::directory(&town, count);
        Self::start(stage, town, (&directory, count), section, change)
    }

    /// The directory of a town with so many nodes.
    pub(crate) fn directory(town: &Town, count: usize) -> Directory {
        let mut directory = town.directory();
        for name in &NAMES[..count] {
            directory.node(name);
        }
        directory
    }

    /// Starts so many nodes of a town.
    pub(crate) fn start(
        stage: &Stage,
        town: Town,
        (directory, count): (&Directory, usize),
        section: &str,
        change: impl Fn(&mut Node),
    ) -> Result<Self> {
        let (mut nodes, mut fronts) = (Vec::new(), Vec::new());
        for name in &NAMES[..count] {
            let front = Endpoints::new(stage, None)?;
            let mut node = node(&town, name, &front);
            node.more.push(("shared_state".to_owned(), section.to_owned()));
            change(&mut node);
            nodes.push(start(stage, name, &node, directory)?);
            fronts.push(front);
        }
        Ok(Self { town, nodes, fronts })
    }

    /// A login at a node.
    pub(crate) fn login(&self, at: usize, local: &str) -> Result<Wire> {
        let person = self.town.person(local)?;
        let mut wire = self.open(at)?;
        wire.imap_ok(&format!("a LOGIN {} {}", person.name, person.password()))?;
        Ok(wire)
    }

    pub(crate) fn open(&self, at: usize) -> Result<Wire> {
        let tls = self.town.ca.connector(&[])?;
        greeted(Wire::tls(self.fronts[at].imaps, &tls, FRONT)?, "* OK")
    }

    /// What a login hears that must not succeed.
    pub(crate) fn refused(&self, at: usize, local: &str) -> Result<String> {
        let person = self.town.person(local)?;
        let answer = self
            .open(at)?
            .imap(&format!("a LOGIN {} {}", person.name, person.password()))?;
        answer.last().cloned().context("no answer")
    }

    fn shared(&self, at: usize) -> Result<Value> {
        Ok(json(&self.nodes[at], &["status"])?["shared_state"].clone())
    }

    /// Waits until a node sees so many others awake, itself included.
    pub(crate) fn sees(&self, at: usize, awake: usize) -> Result<()> {
        until(&format!("node {at} sees {awake}"), SOON, || {
            let shared = self.shared(at)?;
            let nodes = shared["nodes"].as_array().context("no nodes")?;
            let seen = nodes.iter().filter(|node| node["silent"].is_null()).count();
            Ok((shared["joined"] == true && seen == awake).then_some(()))
        })
    }

    pub(crate) fn all_see_each_other(&self) -> Result<()> {
        (0..self.nodes.len()).try_for_each(|at| self.sees(at, self.nodes.len()))
    }

    pub(crate) fn is_alone(&self, at: usize) -> Result<()> {
        until(&format!("node {at} is alone"), SOON, || {
            Ok((self.shared(at)?["joined"] == false).then_some(()))
        })
    }
}

pub(crate) fn node(town: &Town, name: &str, front: &Endpoints) -> Node {
    let mut node = town.node();
    node.name = name.to_owned();
    let listener = |(address, serve, tls): (SocketAddrV4, Serve, Tls)| Listener {
        address: SocketAddr::V4(address),
        serve,
        tls,
        proxies: Vec::new(),
        more: Vec::new(),
    };
    node.listeners = front.each().map(listener).into();
    node.more.push(("mail".to_owned(), "{hold_wait: 100ms}".to_owned()));
    node.more.push(("shutdown_timeout".to_owned(), "5s".to_owned()));
    node
}

fn start(stage: &Stage, name: &str, node: &Node, directory: &Directory) -> Result<Portico> {
    // With what other nodes have it do.
    let log = "info,proxy_app::admin::everywhere=debug";
    Portico::start_at(stage, name, node, directory, &[("RUST_LOG", log)])
}

pub(crate) fn at(redis: &Redis) -> String {
    format!("{{url: \"redis://{}\"}}", redis.address())
}

/// The client hears that its session ends.
pub(crate) fn ends(mut wire: Wire) -> Result<()> {
    let line = wire.line()?;
    ensure!(line.starts_with("* BYE"), "{line}");
    Ok(())
}

pub(crate) fn goes_on(wire: &mut Wire) -> Result<()> {
    wire.imap_ok("n NOOP").map(drop)
}

#[test]
fn what_one_node_is_told_all_do() -> Result<()> {
    Stage::run(|stage| {
        let redis = Redis::start(stage)?;
        let together = Together::build(stage, 3, &at(&redis), |_| ())?;
        together.all_see_each_other()?;
        let [one, two, three] = &together.nodes[..] else {
            anyhow::bail!("three nodes")
        };
        let (alice, mut bob) = (together.login(1, "alice")?, together.login(2, "bob")?);
        let mut carol = together.login(0, "carol")?;
        let list = done(one, &["sessions"])?;
        for (account, node) in [
            ("alice@a.example", NAMES[1]),
            ("bob@a.example", NAMES[2]),
            ("carol@", NAMES[0]),
        ] {
            let found = list.lines().find(|line| line.contains(account));
            ensure!(found.is_some_and(|line| line.ends_with(node)), "{account}: {list}");
        }
        ensure!(!done(one, &["sessions", "--local"])?.contains("alice@"));
        let there = done(one, &["sessions", "--node", NAMES[2]])?;
        ensure!(there.contains("bob@a.example") && !there.contains("alice@"), "{there}");
        // A kick, here only and everywhere.
        ensure!(done(one, &["kick", "--user", "alice@a.example", "--local"])?.starts_with("there is no"));
        let kicked = done(one, &["kick", "--user", "alice@a.example"])?;
        ensure!(
            kicked.starts_with("one session ends") && kicked.contains(NAMES[1]),
            "{kicked}"
        );
        ends(alice)?;
        goes_on(&mut bob)?;
        let record = two.record(&[("event", "admin"), ("who", &format!("node {}", NAMES[0]))])?;
        ensure!(record["act"] == "kick user alice@a.example: 1 sessions", "{record}");
        // A hold.
        let held = done(
            one,
            &["users", "hold", "bob@a.example", "--for", "10m", "--reason", "move"],
        )?;
        ensure!(held.contains(&format!("{}: done", NAMES[1])), "{held}");
        for node in 0..3 {
            ensure!(together.refused(node, "bob")?.contains("NO [UNAVAILABLE]"));
        }
        done(three, &["users", "release", "bob@a.example"])?;
        (0..3).try_for_each(|node| together.login(node, "bob").map(drop))?;
        // A purge and a drain.
        let purged = done(two, &["route", "purge", "alice@a.example"])?;
        ensure!(purged.contains(&format!("{}: done", NAMES[2])), "{purged}");
        done(one, &["drain", "--node", NAMES[1]])?;
        until("the drain is seen", SOON, || {
            let shared = together.shared(2)?;
            let drained = |node: &Value| node["node"] == NAMES[1] && node["state"] == "drained";
            Ok(shared["nodes"]
                .as_array()
                .context("no nodes")?
                .iter()
                .any(drained)
                .then_some(()))
        })?;
        ensure!(json(one, &["status"])?["ready"] == true);
        done(three, &["drain", "--undo", "--node", NAMES[1]])?;
        let unknown = said(one, &["drain", "--node", "proxy9.example.test"])?;
        ensure!(
            unknown.code == 1 && unknown.err.contains("no node proxy9.example.test"),
            "{}",
            unknown.err
        );
        // An allowance.
        done(
            one,
            &["throttle", "allow", "192.0.2.0/24", "--for", "1h", "--reason", "school"],
        )?;
        ensure!(done(three, &["throttle", "list"])?.contains("192.0.2.0/24"));
        done(two, &["throttle", "disallow", "192.0.2.0/24"])?;
        ensure!(!done(three, &["throttle", "list"])?.contains("192.0.2.0/24"));
        ensure!(done(one, &["throttle", "clear", "--all"])?.contains(&format!("{}: done", NAMES[2])));
        goes_on(&mut carol)
    })
}

#[test]
fn a_node_that_is_frozen_is_named_and_takes_up_what_stands() -> Result<()> {
    Stage::run(|stage| {
        let redis = Redis::start(stage)?;
        let mut together = Together::build(stage, 2, &at(&redis), |_| ())?;
        together.all_see_each_other()?;
        let mut alice = together.login(1, "alice")?;
        together.nodes[1].signal(Signal::SIGSTOP)?;
        // At once: it is asked in vain. Later: it is known to be silent.
        let hold = [
            "users",
            "hold",
            "--domain",
            "a.example",
            "--for",
            "10m",
            "--reason",
            "move",
        ];
        let held = said(&together.nodes[0], &hold)?;
        ensure!(held.code == 1 && held.err.contains(NAMES[1]), "{}", held.err);
        ensure!(
            held.out.starts_with("new logins wait: domain a.example"),
            "{}",
            held.out
        );
        let begun = Instant::now();
        let kicked = said(&together.nodes[0], &["kick", "--user", "alice@a.example"])?;
        let expected = format!("{}: it has said nothing for", NAMES[1]);
        ensure!(kicked.code == 1 && kicked.err.contains(&expected), "{}", kicked.err);
        ensure!(begun.elapsed() < Duration::from_secs(30));
        std::thread::sleep(Duration::from_secs(2));
        together.nodes[1].signal(Signal::SIGCONT)?;
        // The hold stands, and counts there now; the old kick is not done any more.
        until("the hold is taken up", SOON, || {
            Ok(done(&together.nodes[1], &["users", "holds"])?
                .contains("domain a.example")
                .then_some(()))
        })?;
        goes_on(&mut alice)?;
        ensure!(together.refused(1, "alice")?.contains("NO [UNAVAILABLE]"));
        // A release while a node is down: its own file says that there is a hold, what stands says that there is none.
        together.sees(0, 2)?;
        together.nodes[1].kill();
        said(&together.nodes[0], &["users", "release", "--domain", "a.example"])?;
        together.nodes[1].start_again("info")?;
        together.sees(1, 2)?;
        until("the release is taken up", SOON, || {
            Ok((!done(&together.nodes[1], &["users", "holds"])?.contains("a.example")).then_some(()))
        })
    })
}

/// A node that will not come back is named by every order, until it is forgotten; one that is there cannot be.
#[test]
fn a_node_that_is_gone_for_good_is_forgotten() -> Result<()> {
    Stage::run(|stage| {
        let redis = Redis::start(stage)?;
        let mut together = Together::build(stage, 3, &at(&redis), |_| ())?;
        together.all_see_each_other()?;
        let forget = |together: &Together, name| said(&together.nodes[0], &["nodes", "forget", name]);
        let awake = forget(&together, NAMES[1])?;
        ensure!(awake.code == 1 && awake.err.contains("is there"), "{}", awake.err);
        let unknown = forget(&together, "proxy9.example.test")?;
        ensure!(unknown.code == 1 && unknown.err.contains("no node"), "{}", unknown.err);
        together.nodes[2].kill();
        together.sees(0, 2)?;
        let kicked = said(&together.nodes[0], &["kick", "--user", "alice@a.example"])?;
        ensure!(kicked.code == 1 && kicked.err.contains(NAMES[2]), "{}", kicked.err);
        let left = done(&together.nodes[0], &["nodes", "forget", NAMES[2]])?;
        ensure!(left.contains(NAMES[1]) && !left.contains(NAMES[2]), "{left}");
        done(&together.nodes[0], &["kick", "--user", "alice@a.example"])?;
        until("the other node to forget it, too", SOON, || {
            Ok((said(&together.nodes[1], &["kick", "--user", "alice@a.example"])?.code == 0).then_some(()))
        })?;
        together.nodes[0].record(&[("event", "admin"), ("act", &format!("forget node {}", NAMES[2]))])?;
        // It was not gone for good.
        together.nodes[2].start_again("info")?;
        together.all_see_each_other()
    })
}

/// Orders that only wait for something leave room for those that act.
#[test]
fn a_kick_gets_through_where_many_orders_wait() -> Result<()> {
    const WAITS: usize = 20;
    Stage::run(|stage| {
        let redis = Redis::start(stage)?;
        let together = Together::build(stage, 2, &at(&redis), |_| ())?;
        together.all_see_each_other()?;
        let alice = together.login(1, "alice")?;
        let socket = together.nodes[0].dir().join("admin.sock");
        let wait = || {
            let body = r#"{"point": "a point that never comes", "within_ms": 20000}"#;
            let mut curl = std::process::Command::new("curl");
            curl.args(["-s", "--unix-socket"]).arg(&socket);
            curl.args(["-H", "Content-Type: application/json", "-d", body]);
            curl.arg("http://localhost/v1/directory/wait?node=proxy2.example.test");
            curl.stdout(std::process::Stdio::null()).spawn()
        };
        let mut waiting = (0..WAITS).map(|_| wait()).collect::<std::io::Result<Vec<_>>>()?;
        // This node has given up waiting for an answer; the other one goes on.
        waiting.iter_mut().try_for_each(|one| one.wait().map(drop))?;
        let kicked = done(&together.nodes[0], &["kick", "--user", "alice@a.example"])?;
        ensure!(kicked.starts_with("one session ends"), "{kicked}");
        ends(alice)
    })
}

#[test]
fn without_the_engine_each_node_goes_on_alone_and_joins_again() -> Result<()> {
    Stage::run(|stage| {
        let mut redis = Redis::start(stage)?;
        let together = Together::build(stage, 2, &at(&redis), |_| ())?;
        together.all_see_each_other()?;
        let mut alice = together.login(0, "alice")?;
        redis.kill();
        together.is_alone(0)?;
        together.is_alone(1)?;
        let status = done(&together.nodes[0], &["status"])?;
        ensure!(status.contains("this node is alone"), "{status}");
        ensure!(json(&together.nodes[0], &["status"])?["ready"] == true);
        // All goes on here, and the other node is named.
        together.login(0, "bob")?;
        let hold = ["users", "hold", "bob@a.example", "--for", "10m", "--reason", "move"];
        let held = said(&together.nodes[0], &hold)?;
        ensure!(held.code == 1 && held.err.contains(NAMES[1]), "{}", held.err);
        ensure!(together.refused(0, "bob")?.contains("NO [UNAVAILABLE]"));
        together.login(1, "bob")?;
        // It comes back empty: what was set meanwhile stands everywhere.
        redis.start_again()?;
        together.all_see_each_other()?;
        until("the hold is told", SOON, || {
            Ok(together
                .refused(1, "bob")
                .is_ok_and(|answer| answer.contains("NO [UNAVAILABLE]"))
                .then_some(()))
        })?;
        goes_on(&mut alice)?;
        // Frozen is no better than dead, and no login waits for it.
        redis.freeze()?;
        together.is_alone(0)?;
        let begun = Instant::now();
        together.login(0, "carol")?;
        ensure!(begun.elapsed() < Duration::from_secs(5), "{:?}", begun.elapsed());
        redis.thaw()?;
        together.all_see_each_other()?;
        let log = together.nodes[0].output();
        let away = log.matches("shared_state is away").count();
        ensure!((1..=2).contains(&away), "{away} lines");
        Ok(())
    })
}

#[test]
fn the_engine_is_guarded_by_tls_and_its_access_list() -> Result<()> {
    Stage::run(|stage| {
        let ca = portico_tests::certs::Authority::new(&stage.dir("redis-ca")?)?;
        let redis = Redis::start_guarded(stage, &ca, "correct-horse-battery")?;
        let password = stage.file("redis.password", "correct-horse-battery\n")?;
        let own = ca.client("proxy")?;
        let section = |password: &std::path::Path| {
            format!(
                "{{url: \"rediss://{}\", user: portico, password_file: \"{}\", ca_file: \"{}\", \
                 certificate: \"{}\", key: \"{}\"}}",
                redis.address(),
                password.display(),
                ca.file().display(),
                own.certificate_file.display(),
                own.key_file.display()
            )
        };
        let together = Together::build(stage, 2, &section(&password), |_| ())?;
        together.all_see_each_other()?;
        let alice = together.login(1, "alice")?;
        done(&together.nodes[0], &["kick", "--user", "alice@a.example"])?;
        ends(alice)?;
        done(
            &together.nodes[0],
            &["users", "hold", "bob@a.example", "--for", "10m", "--reason", "move"],
        )?;
        ensure!(together.refused(1, "bob")?.contains("NO [UNAVAILABLE]"));
        for node in &together.nodes {
            node.must_not_have_written(&[b"correct-horse-battery".to_vec()])?;
        }
        // A wrong password, and a certificate of somebody else.
        let wrong = stage.file("wrong.password", "wrong\n")?;
        let stranger = portico_tests::certs::Authority::called("Stranger", &stage.dir("stranger-ca")?)?;
        let strange =
            section(&password).replace(&ca.file().display().to_string(), &stranger.file().display().to_string());
        let bare = section(&password).replace("certificate: ", "prefix: portico} # ");
        let all = [(section(&wrong), "WRONGPASS"), (strange, "certificate"), (bare, "")];
        for (at, (section, expected)) in all.into_iter().enumerate() {
            let front = Endpoints::new(stage, None)?;
            let mut node = node(&together.town, NAMES[2], &front);
            node.more.push(("shared_state".to_owned(), section));
            let mut directory = together.town.directory();
            directory.node(NAMES[2]);
            let name = format!("stranger-{at}");
            let portico = start(stage, &name, &node, &directory)?;
            until(expected, SOON, || {
                let status = json(&portico, &["status"])?;
                let why = status["shared_state"]["why"].as_str().unwrap_or_default().to_owned();
                let has_tried = !why.is_empty() && !why.contains("has not answered yet");
                ensure!(status["shared_state"]["joined"] == false, "{status}");
                Ok((has_tried && why.contains(expected)).then_some(()))
            })?;
        }
        Ok(())
    })
}

#[test]
fn a_socket_a_sentinel_and_a_cluster_lead_to_the_engine() -> Result<()> {
    Stage::run(|stage| {
        let town = Town::build(stage, people())?;
        let socket = stage.dir("sockets")?.join("redis.sock");
        let redis = Redis::start_as(stage, "redis", &format!("unixsocket {}\n", socket.display()))?;
        let sentinel = Redis::start_sentinel(stage, redis.address())?;
        let buses = [stage.port()?, stage.port()?];
        let cluster = |name: &str, bus: u16| {
            let more = format!("cluster-enabled yes\ncluster-port {bus}\n");
            Redis::start_as(stage, name, &more)
        };
        let (empty, full) = (cluster("cluster-empty", buses[0])?, cluster("cluster-full", buses[1])?);
        ensure!(full.say("CLUSTER ADDSLOTSRANGE 0 16383")? == "+OK");
        let port = full.address().port();
        ensure!(empty.say(&format!("CLUSTER MEET 127.0.0.1 {port} {}", buses[1]))? == "+OK");
        until("the cluster is complete", SOON, || {
            Ok(empty.say("GET {portico}:x")?.starts_with("-MOVED").then_some(()))
        })?;
        for (at, (section, place)) in [
            (
                format!("{{url: \"unix:{}\"}}", socket.display()),
                format!("unix:{}", socket.display()),
            ),
            (
                format!("{{url: \"redis://{}\", sentinel: {{name: main}}}}", sentinel.address()),
                format!("redis://{}", redis.address()),
            ),
            (
                format!("{{url: \"redis://{}\"}}", empty.address()),
                format!("redis://{}", full.address()),
            ),
        ]
        .into_iter()
        .enumerate()
        {
            let front = Endpoints::new(stage, None)?;
            let mut node = node(&town, NAMES[0], &front);
            node.more.push(("shared_state".to_owned(), section));
            let mut directory = town.directory();
            directory.node(NAMES[0]);
            let portico = start(stage, &format!("way-{at}"), &node, &directory)?;
            until(&place, SOON, || {
                let status = json(&portico, &["status"])?;
                Ok((status["shared_state"]["engine"] == place.as_str()).then_some(()))
            })?;
        }
        Ok(())
    })
}

#[test]
fn limits_on_sessions_count_over_all_nodes() -> Result<()> {
    Stage::run(|stage| {
        let mut redis = Redis::start(stage)?;
        let limit = |node: &mut Node| {
            let limits = "{sessions_per_account: 2}".to_owned();
            node.more.push(("limits".to_owned(), limits));
        };
        let mut together = Together::build(stage, 2, &at(&redis), limit)?;
        together.all_see_each_other()?;
        let first = together.login(0, "alice")?;
        let _second = together.login(1, "alice")?;
        let is_full = |together: &Together, at: usize, local: &str| {
            until("the limit counts both nodes", SOON, || {
                // A login that gets in ends at once.
                Ok(together.refused(at, local)?.contains("NO [LIMIT]").then_some(()))
            })
        };
        let is_free = |together: &Together, at: usize, local: &str| {
            until("there is room again", SOON, || {
                Ok((!together.refused(at, local)?.contains("NO [LIMIT]")).then_some(()))
            })
        };
        is_full(&together, 0, "alice")?;
        is_full(&together, 1, "alice")?;
        together.login(1, "bob")?;
        drop(first);
        is_free(&together, 0, "alice")?;
        is_free(&together, 1, "alice")?;
        // An engine that comes back empty is told again.
        let _third = until("alice is in again", SOON, || Ok(together.login(0, "alice").ok()))?;
        redis.kill();
        together.is_alone(0)?;
        together.is_alone(1)?;
        is_free(&together, 0, "alice")?;
        redis.start_again()?;
        together.all_see_each_other()?;
        is_full(&together, 0, "alice")?;
        redis.say("FLUSHALL")?;
        is_full(&together, 0, "alice")?;
        // The sessions of a node that is gone do not count.
        together.nodes[1].kill();
        is_free(&together, 0, "alice")?;
        for key in ["nodes", "standing", "sessions:*", "guesses"] {
            let lua = "local n = 0 for _, k in ipairs(redis.call('KEYS', ARGV[1])) do \
                       if redis.call('TTL', k) < 0 then n = n + 1 end end return n";
            let lasting = redis.number(&format!("EVAL \"{lua}\" 0 {{portico}}:{key}"))?;
            ensure!(lasting == 0, "{key}: {lasting} without an end");
        }
        Ok(())
    })
}

/// How many failures of alice's from this machine a node knows, and whether she is known here.
fn failures(portico: &Portico) -> Result<(u64, bool)> {
    let explained = json(
        portico,
        &["throttle", "explain", "alice@a.example", "--ip", "127.0.0.1"],
    )?;
    let rules = explained["rules"].as_array().context("no rules")?;
    let pair = rules
        .iter()
        .find(|rule| rule["rule"] == "pair")
        .context("no rule pair")?;
    let failures = pair["failures"].as_u64().context("no count")?;
    Ok((failures, !explained["known"].is_null()))
}

#[test]
fn guesses_at_one_node_count_at_all() -> Result<()> {
    Stage::run(|stage| {
        let redis = Redis::start(stage)?;
        let strict = |node: &mut Node| {
            let throttle = "{pair: {delay_from: 0, refuse_from: 3}}".to_owned();
            node.more.push(("throttle".to_owned(), throttle));
        };
        let mut together = Together::build(stage, 2, &at(&redis), strict)?;
        together.all_see_each_other()?;
        let guess = |together: &Together, at: usize, password: &str| -> Result<String> {
            let answer = together
                .open(at)?
                .imap(&format!("a LOGIN alice@a.example {password}"))?;
            answer.last().cloned().context("no answer")
        };
        let reaches = |portico: &Portico, expected: (u64, bool)| {
            until(&format!("{expected:?}"), SOON, || {
                Ok((failures(portico)? == expected).then_some(()))
            })
        };
        for password in ["one", "two", "three"] {
            ensure!(guess(&together, 0, password)?.contains("NO [AUTHENTICATIONFAILED]"));
        }
        reaches(&together.nodes[1], (3, false))?;
        let answer = guess(&together, 1, "four")?;
        ensure!(answer.contains("NO [LIMIT]"), "{answer}");
        // A node that was down reads what it has missed; what is cleared is cleared everywhere.
        together.nodes[1].kill();
        together.nodes[1].start_again("info")?;
        together.sees(1, 2)?;
        reaches(&together.nodes[1], (3, false))?;
        done(
            &together.nodes[0],
            &["throttle", "clear", "alice@a.example", "--ip", "127.0.0.1"],
        )?;
        reaches(&together.nodes[1], (0, false))?;
        // Who logs in at one node is known at the other.
        together.login(0, "alice")?;
        reaches(&together.nodes[1], (0, true))?;
        // An engine that is frozen is in nobody's way; what was counted meanwhile is told when it thaws.
        redis.freeze()?;
        together.is_alone(0)?;
        ensure!(guess(&together, 0, "five")?.contains("NO [AUTHENTICATIONFAILED]"));
        together.login(1, "alice")?;
        redis.thaw()?;
        together.all_see_each_other()?;
        reaches(&together.nodes[1], (1, true))
    })
}

#[test]
fn lies_of_a_peer_and_of_an_engine_harm_nobody() -> Result<()> {
    Stage::run(|stage| {
        let redis = Redis::start(stage)?;
        let together = Together::build(stage, 2, &at(&redis), |_| ())?;
        together.all_see_each_other()?;
        let mut alice = together.login(0, "alice")?;
        let long = "x".repeat(60_000);
        for text in [
            "[",
            "{}",
            "{\"v\":2}",
            &"[".repeat(50_000),
            &format!("{{\"v\":1,\"id\":\"{long}\"}}"),
        ] {
            redis.say(&format!("PUBLISH {{portico}}:orders '{text}'"))?;
        }
        let order = |verb: &str, body: &str| {
            format!(
                "PUBLISH {{portico}}:orders '{{\"v\":1,\"id\":\"1\",\"from\":\"00000000000000aa\",\"node\":\"liar\",\
                 \"to\":null,\"verb\":\"{verb}\",\"body\":{body}}}'"
            )
        };
        // What no node may order another to do, and what it may, with nonsense.
        redis.say(&order("POST /v1/reload?", "null"))?;
        redis.say(&order("PUT /v1/domains/a.example/certificate?", "{}"))?;
        redis.say(&order("POST /v1/sessions/kick?", "{\"nobody\":1}"))?;
        redis.say(&order("POST /v1/sessions/kick?", "{}"))?;
        for (key, field) in [("nodes", "x"), ("nodes", "00000000000000aa"), ("standing", "y")] {
            redis.say(&format!("HSET {{portico}}:{key} {field} '{long}'"))?;
        }
        redis.say("HSET {portico}:nodes 00000000000000bb '{\"v\":1,\"node\":\"\\u001b[2J\"}'")?;
        together.all_see_each_other()?;
        goes_on(&mut alice)?;
        ensure!(
            together.shared(0)?["unfit"].as_u64() > Some(3),
            "{}",
            together.shared(0)?
        );
        // Keys of another kind: the engine says so, and the node goes on alone until they are gone.
        redis.say("DEL {portico}:standing")?;
        redis.say("SET {portico}:standing x")?;
        together.is_alone(0)?;
        together.login(0, "bob")?;
        redis.say("DEL {portico}:standing")?;
        together.all_see_each_other()?;
        goes_on(&mut alice)
    })
}

#[test]
fn an_engine_that_only_pretends_is_left_alone() -> Result<()> {
    use std::io::{Read as _, Write as _};
    let endless = |start: &'static str, then: &'static [u8]| -> Result<SocketAddr> {
        let listener = std::net::TcpListener::bind((std::net::Ipv4Addr::LOCALHOST, 0))?;
        let address = listener.local_addr()?;
        std::thread::spawn(move || {
            for tcp in listener.incoming() {
                let Ok(mut tcp) = tcp else { return };
                std::thread::spawn(move || {
                    let mut heard = [0; 1024];
                    let _what_it_wants = tcp.read(&mut heard);
                    let _it_may_hang_up = tcp.write_all(start.as_bytes());
                    while tcp.write_all(then).is_ok() {}
                });
            }
        });
        Ok(address)
    };
    let engines = [
        endless("$2147483647\r\n", &[b'x'; 65_536])?,
        endless("*1000000000\r\n", b"*1000000000\r\n")?,
        endless("%9223372036854775807\r\n", b"|9223372036854775807\r\n")?,
        endless("|-1\r\n", b"+\r\n")?,
        endless("", b":1\r\n")?,
        endless(">3\r\n+message\r\n+a\r\n+b\r\n", b">3\r\n+message\r\n+a\r\n+b\r\n")?,
        endless("\0\r\n", b"\xff\r\n")?,
    ];
    Stage::run(|stage| {
        let town = Town::build(stage, people())?;
        let front = Endpoints::new(stage, None)?;
        let mut node = node(&town, NAMES[0], &front);
        let urls: Vec<String> = engines.iter().map(|engine| format!("\"redis://{engine}\"")).collect();
        let section = format!("{{url: [{}]}}", urls.join(", "));
        node.more.push(("shared_state".to_owned(), section));
        let mut directory = town.directory();
        directory.node(NAMES[0]);
        let mut portico = start(stage, NAMES[0], &node, &directory)?;
        until("each has been tried", SOON, || {
            let status = json(&portico, &["status"])?;
            Ok((status["shared_state"]["failures"].as_u64() > Some(1)).then_some(()))
        })?;
        ensure!(
            portico.is_running() && portico.rss_kib()? < 600_000,
            "{} KiB",
            portico.rss_kib()?
        );
        ensure!(!portico.output().contains("panicked"), "{}", portico.output());
        let tls = town.ca.connector(&[])?;
        let alice = town.person("alice")?;
        let mut wire = greeted(Wire::tls(front.imaps, &tls, FRONT)?, "* OK")?;
        wire.imap_ok(&format!("a LOGIN {} {}", alice.name, alice.password()))
            .map(drop)
    })
}
