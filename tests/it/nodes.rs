//! Two nodes behind HAProxy: one may die and another be drained, and no login fails.
//!
//! HAProxy runs with the configuration that is shipped, on other ports.

use std::net::{SocketAddr, SocketAddrV4};
use std::path::Path;
use std::process::Command;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use portico_tests::config::{Listener, Node, Serve, Tls};
use portico_tests::haproxy::HaProxy;
use portico_tests::memcached::Memcached;
use portico_tests::portico::{Portico, binary};
use portico_tests::slapd::Slapd;
use portico_tests::town::{BALANCER, Endpoints, FRONT, Town, people};
use portico_tests::wire::Wire;
use portico_tests::{Stage, until};

use crate::scene::greeted;

const SOON: Duration = Duration::from_secs(40);
const NAMES: [&str; 2] = ["proxy1.example.test", "proxy2.example.test"];

/// Everything of the picture in docs/several-nodes.md.
pub(crate) struct Cluster<'a> {
    pub(crate) stage: &'a Stage,
    pub(crate) town: Town,
    pub(crate) nodes: [Portico; 2],
    pub(crate) memcached: Memcached,
    pub(crate) haproxy: HaProxy,
    // Held: it is killed when dropped.
    _slapd: Slapd,
    front: Endpoints,
    haproxy_config: String,
}

impl<'a> Cluster<'a> {
    pub(crate) fn build(stage: &'a Stage) -> Result<Self> {
        let town = Town::build(stage, people())?;
        let memcached = Memcached::start(stage)?;
        let endpoints = [town.behind, Endpoints::new(stage, None)?];
        let health = [stage.port()?, stage.port()?];
        let mut directory = town.directory();
        for name in NAMES {
            directory.node(name);
        }
        let slapd = Slapd::start(stage, "slapd", &directory)?;
        let start = |at: usize| -> Result<Portico> {
            let mut node = node(&town, NAMES[at], &endpoints[at], health[at], memcached.address());
            node.directory = slapd.source("1s");
            // Each keeps its own last good reading.
            let own = format!(
                "snapshot: \"{}\"",
                stage.path().join(NAMES[at]).join("snapshot").display()
            );
            node.directory.retain(|line| !line.starts_with("snapshot:"));
            node.directory.insert(1, own);
            Portico::start_at(stage, NAMES[at], &node, &directory, &[("RUST_LOG", "info")])
        };
        let nodes = [start(0)?, start(1)?];
        let front = Endpoints::new(stage, None)?;
        let haproxy_config = haproxy_config(&front, &endpoints, health)?;
        let haproxy = HaProxy::start_with(stage, &haproxy_config, &front.each().map(|endpoint| endpoint.0))?;
        Ok(Self {
            stage,
            town,
            nodes,
            memcached,
            haproxy,
            _slapd: slapd,
            front,
            haproxy_config,
        })
    }

    /// A login through HAProxy, from the beginning to its end.
    pub(crate) fn login(&self, local: &str) -> Result<Wire> {
        let tls = self.town.ca.connector(&[])?;
        let mut wire = greeted(Wire::tls(self.front.imaps, &tls, FRONT)?, "* OK")?;
        let person = self.town.person(local)?;
        wire.imap_ok(&format!("a LOGIN {} {}", person.name, person.password()))?;
        Ok(wire)
    }

    /// Starts HAProxy again, after its end.
    pub(crate) fn start_haproxy(&mut self) -> Result<()> {
        self.haproxy = HaProxy::start_with(
            self.stage,
            &self.haproxy_config,
            &self.front.each().map(|endpoint| endpoint.0),
        )?;
        Ok(())
    }

    fn logins(&self, at: usize) -> Result<usize> {
        self.nodes[at].count(&[("event", "login"), ("outcome", "ok")])
    }
}

fn node(town: &Town, name: &str, endpoints: &Endpoints, health: u16, shared: SocketAddrV4) -> Node {
    let mut node = town.node();
    node.name = name.to_owned();
    let listener = |(address, serve, tls): (SocketAddrV4, Serve, Tls)| Listener {
        address: SocketAddr::V4(address),
        serve,
        tls,
        proxies: vec![format!("{BALANCER}/32")],
        more: Vec::new(),
    };
    node.listeners = endpoints.each().map(listener).into();
    node.admin.push(format!("http: 127.0.0.1:{health}"));
    let memcached = format!("{{memcached: {{servers: [\"{shared}\"]}}}}");
    node.more.push(("route_cache".to_owned(), memcached));
    node.more.push(("shutdown_timeout".to_owned(), "10s".to_owned()));
    node
}

/// The configuration that is shipped, with other addresses.
fn haproxy_config(front: &Endpoints, endpoints: &[Endpoints; 2], health: [u16; 2]) -> Result<String> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../conf/haproxy.cfg");
    let mut config = std::fs::read_to_string(path)?.replace("defaults\n", &format!("defaults\n  source {BALANCER}\n"));
    let ports = [80, 443, 143, 993, 110, 995];
    for (at, port) in ports.into_iter().enumerate() {
        let listens = format!("bind :{port}\n");
        ensure!(config.contains(&listens), "no {listens}");
        config = config.replace(&listens, &format!("bind {}\n", front.each()[at].0));
        for (node, name) in ["10.0.0.11", "10.0.0.12"].into_iter().enumerate() {
            let server = format!("{name}:{port}\n");
            ensure!(config.contains(&server), "no {server}");
            let ours = format!("{} check port {}\n", endpoints[node].each()[at].0, health[node]);
            config = config.replace(&server, &ours);
        }
    }
    // The machine of a test may not have the descriptors for a hundred thousand connections.
    let config = config.replace("maxconn 100000", "maxconn 1000");
    Ok(config.replace("send-proxy-v2 check port 7180", "send-proxy-v2"))
}

/// Logins through HAProxy, one after the other.
struct Traffic<'a> {
    cluster: &'a Cluster<'a>,
    stop: AtomicBool,
    /// From here on no login may fail. One that was under way on a node that dies is lost with it.
    strict_from: AtomicUsize,
    begun: AtomicUsize,
    done: AtomicUsize,
    lost: AtomicUsize,
}

impl Traffic<'_> {
    fn flow(&self) -> Result<()> {
        while !self.stop.load(Ordering::SeqCst) {
            let number = self.begun.fetch_add(1, Ordering::SeqCst);
            let local = ["alice", "bob", "carol", "dave"][number % 4];
            let result = self
                .cluster
                .login(local)
                .and_then(|mut wire| wire.imap_ok("z LOGOUT").map(drop));
            match result {
                Ok(()) => drop(self.done.fetch_add(1, Ordering::SeqCst)),
                Err(_) if number < self.strict_from.load(Ordering::SeqCst) => {
                    self.lost.fetch_add(1, Ordering::SeqCst);
                }
                Err(error) => return Err(error.context(format!("login {number}"))),
            }
        }
        Ok(())
    }
}

/// Plays something under traffic; `begun` is called when nothing may fail any more.
fn under_traffic(
    cluster: &Cluster,
    act: impl FnOnce(&dyn Fn()) -> Result<()>,
    then: impl FnOnce() -> Result<()>,
) -> Result<usize> {
    let traffic = Traffic {
        cluster,
        stop: AtomicBool::new(false),
        strict_from: AtomicUsize::new(usize::MAX),
        begun: AtomicUsize::new(0),
        done: AtomicUsize::new(0),
        lost: AtomicUsize::new(0),
    };
    let more = |count: usize| {
        let before = traffic.done.load(Ordering::SeqCst);
        until("logins", SOON, || {
            let stopped = traffic.stop.load(Ordering::SeqCst);
            Ok((stopped || traffic.done.load(Ordering::SeqCst) >= before + count).then_some(()))
        })
    };
    // Whatever is under way now may be lost; what begins later may not.
    let strict = || {
        traffic
            .strict_from
            .store(traffic.begun.load(Ordering::SeqCst), Ordering::SeqCst)
    };
    std::thread::scope(|scope| {
        let flows: Vec<_> = (0..3)
            .map(|_| {
                scope.spawn(|| {
                    let end = traffic.flow();
                    traffic.stop.store(true, Ordering::SeqCst);
                    end
                })
            })
            .collect();
        let result = more(10)
            .and_then(|()| act(&strict))
            .and_then(|()| more(30))
            .and_then(|()| then());
        traffic.stop.store(true, Ordering::SeqCst);
        for flow in flows {
            flow.join().expect("no panic")?;
        }
        result
    })?;
    ensure!(
        traffic.lost.load(Ordering::SeqCst) <= 3,
        "more were lost than were under way"
    );
    Ok(traffic.done.load(Ordering::SeqCst))
}

#[test]
fn a_node_dies_and_another_is_drained_and_no_new_login_fails() -> Result<()> {
    Stage::run(|stage| {
        let mut cluster = Cluster::build(stage)?;
        let mut kept = cluster.login("alice")?;
        both_nodes_take_logins(&cluster)?;
        the_second_node_dies(&mut cluster)?;
        // A session on the first node stays.
        if kept.imap_ok("a1 NOOP").is_err() {
            kept = cluster.login("alice")?;
        }
        the_first_node_is_drained_and_stopped(&cluster)?;
        drop(kept);
        Ok(())
    })
}

fn both_nodes_take_logins(cluster: &Cluster) -> Result<()> {
    under_traffic(
        cluster,
        |strict| {
            strict();
            Ok(())
        },
        || Ok(()),
    )?;
    ensure!(
        cluster.logins(0)? > 0 && cluster.logins(1)? > 0,
        "one node had all of them"
    );
    let record = cluster.nodes[1].record(&[("event", "login"), ("outcome", "ok")])?;
    let via = record["via"].as_str();
    ensure!(
        via.is_some_and(|via| via.starts_with(&BALANCER.to_string())),
        "{record}"
    );
    Ok(())
}

/// It is killed under traffic, and starts again.
fn the_second_node_dies(cluster: &mut Cluster) -> Result<()> {
    let victim = nix::unistd::Pid::from_raw(cluster.nodes[1].pid() as i32);
    under_traffic(
        cluster,
        |strict| {
            nix::sys::signal::kill(victim, nix::sys::signal::Signal::SIGKILL)?;
            strict();
            Ok(())
        },
        || Ok(()),
    )?;
    cluster.nodes[1].kill();
    cluster.nodes[1].start_again("info")?;
    Ok(())
}

/// HAProxy sees the second node again; then the first is drained, and stopped.
fn the_first_node_is_drained_and_stopped(cluster: &Cluster) -> Result<()> {
    let before = cluster.logins(1)?;
    let first = &cluster.nodes[0];
    under_traffic(
        cluster,
        |strict| {
            strict();
            until("the node to be back", SOON, || {
                Ok((cluster.logins(1)? > before).then_some(()))
            })?;
            verb(first, &["drain"])?;
            // HAProxy has heard three noes when no login came for a while.
            let mut last = cluster.logins(0)?;
            let mut quiet = std::time::Instant::now();
            until("nobody to come any more", SOON, || {
                let now = cluster.logins(0)?;
                if now != last {
                    (last, quiet) = (now, std::time::Instant::now());
                }
                Ok((quiet.elapsed() > Duration::from_secs(2)).then_some(()))
            })?;
            first.signal(nix::sys::signal::Signal::SIGTERM)
        },
        || {
            until("the drained node to end", SOON, || {
                Ok(first.output().contains("ended;").then_some(()))
            })
        },
    )?;
    Ok(())
}

/// A verb of the command line, for this node.
fn verb(portico: &Portico, args: &[&str]) -> Result<()> {
    let out = Command::new(binary()?)
        .args(args)
        .arg("-c")
        .arg(portico.dir().join("portico.yaml"))
        .output()
        .context("portico")?;
    ensure!(
        out.status.success(),
        "{args:?}: {}",
        String::from_utf8_lossy(&out.stderr)
    );
    Ok(())
}

#[test]
fn a_route_that_one_node_found_is_known_to_the_other() -> Result<()> {
    Stage::run(|stage| {
        let cluster = Cluster::build(stage)?;
        let logins = |at: usize, tier: &str| cluster.nodes[at].count(&[("event", "login"), ("tier", tier)]);
        // HAProxy gives new connections in turn as long as all are busy alike.
        let mut sessions = Vec::new();
        until("a route from memcached", SOON, || {
            sessions.push(cluster.login("dave")?);
            Ok((logins(0, "memcached")? + logins(1, "memcached")? > 0).then_some(()))
        })
    })
}
