//! What a session costs: memory of an idle logged-in one, CPU of a login, also beside many open sessions. Prints numbers,
//! judges nothing.
//!
//! A mailbox simulator that admits everybody stands behind the release binary, in clear text, in this process.
//! CPU and memory are read from `/proc` of Portico alone.

use std::net::{Ipv4Addr, SocketAddr, SocketAddrV4};

use anyhow::{Result, ensure};
use openssl::ssl::SslConnector;
use portico_tests::Stage;
use portico_tests::certs::Authority;
use portico_tests::config::{Directory, Listener, Node, Serve, Tls};
use portico_tests::load::Mail;
use portico_tests::portico::Portico;
use portico_tests::simulator;
use portico_tests::wire::Wire;
use tokio::net::TcpListener;

const THREADS: usize = 4;
const SESSIONS: usize = 2000;
/// Few, so that what they leave behind is small beside what is measured.
const WARM_UP: usize = 40;
const LOGINS: usize = 4000;
const ACCOUNTS: usize = 100;
/// Sessions that are open while others log in. Each takes two files of this process and two of Portico.
const OPEN: [usize; 3] = [100, 1000, 8000];
/// Files that this takes.
const FILES: u64 = 19_000;
/// Logins at each of them, in turns.
const ROUNDS: usize = 7;
const STORE: Ipv4Addr = Ipv4Addr::new(127, 0, 0, 2);
const FRONT: &str = "mail.example.test";

fn main() -> Result<()> {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(1)
        .enable_all()
        .build()?;
    for (what, endpoint) in [("IMAP", Endpoint::Imap), ("IMAPS", Endpoint::Imaps)] {
        let kib = in_new_house(&runtime, |house| house.idle_session(endpoint))?;
        println!("{what:5}  an idle logged-in session       {kib:8.2} KiB resident, of {SESSIONS}");
        let ms = in_new_house(&runtime, |house| house.login(endpoint))?;
        println!("{what:5}  connect, log in, log out         {ms:8.3} ms of CPU, of {LOGINS}");
    }
    beside_open_sessions(&runtime)
}

/// CPU of a login at processes with few and with many open sessions, in turns.
fn beside_open_sessions(runtime: &tokio::runtime::Runtime) -> Result<()> {
    let (_, most) = nix::sys::resource::getrlimit(nix::sys::resource::Resource::RLIMIT_NOFILE)?;
    if most < FILES {
        println!("IMAP   the same beside open sessions   not run: {FILES} open files are not allowed");
        return Ok(());
    }
    let mut houses = Vec::new();
    for open in OPEN {
        let stage = Stage::new()?;
        let house = House::open(&stage, runtime)?;
        houses.push((house.sessions(Endpoint::Imap, open)?, house, stage));
    }
    let mut rounds = Vec::new();
    for _ in 0..ROUNDS {
        let times: Result<Vec<f64>> = houses.iter().map(|(_, house, _)| house.login(Endpoint::Imap)).collect();
        rounds.push(times?);
    }
    for (number, open) in OPEN.into_iter().enumerate() {
        let mut ratios: Vec<f64> = rounds.iter().map(|times| times[number] / times[0]).collect();
        let mut times: Vec<f64> = rounds.iter().map(|times| times[number]).collect();
        ratios.sort_by(f64::total_cmp);
        times.sort_by(f64::total_cmp);
        println!(
            "IMAP   the same beside {open:5} sessions   {:8.3} ms of CPU; {:.2} ({:.2} to {:.2}) of that beside {}",
            times[ROUNDS / 2],
            ratios[ROUNDS / 2],
            ratios[0],
            ratios[ROUNDS - 1],
            OPEN[0],
        );
    }
    Ok(())
}

/// Each number is of a fresh process: one that had sessions before keeps memory for the next ones.
fn in_new_house(runtime: &tokio::runtime::Runtime, measure: impl FnOnce(&House) -> Result<f64>) -> Result<f64> {
    let mut number = 0.0;
    Stage::run(|stage| {
        number = measure(&House::open(stage, runtime)?)?;
        Ok(())
    })?;
    Ok(number)
}

/// Portico between this process's clients and this process's simulator.
struct House {
    portico: Portico,
    imap: SocketAddrV4,
    imaps: SocketAddrV4,
    tls: SslConnector,
}

#[derive(Clone, Copy)]
enum Endpoint {
    Imap,
    Imaps,
}

impl House {
    fn open(stage: &Stage, runtime: &tokio::runtime::Runtime) -> Result<Self> {
        let ca = Authority::new(&stage.dir("ca")?)?;
        let pair = ca.server(&[FRONT])?;
        let store = SocketAddrV4::new(STORE, stage.port()?);
        let listener = runtime.block_on(TcpListener::bind(store))?;
        runtime.spawn(simulator::serve(listener, Mail::Imap, None));
        let imap = SocketAddrV4::new(Ipv4Addr::LOCALHOST, stage.port()?);
        let imaps = SocketAddrV4::new(Ipv4Addr::LOCALHOST, stage.port()?);
        let node = Node {
            name: "proxy1.example.test".into(),
            directory: portico_tests::config::yaml_source("5s"),
            listeners: vec![listen(imap, Tls::StartTls), listen(imaps, Tls::Implicit)],
            certificate: (pair.certificate_file, pair.key_file),
            upstream_ca: ca.file(),
            tls: Vec::new(),
            admin: Vec::new(),
            web: Vec::new(),
            more: Vec::new(),
        };
        let portico = Portico::start(stage, &node, &directory(store), "warn")?;
        Ok(Self {
            portico,
            imap,
            imaps,
            tls: ca.connector(&[])?,
        })
    }

    /// KiB by which memory grows for each session that is logged in and silent.
    fn idle_session(&self, endpoint: Endpoint) -> Result<f64> {
        drop(self.sessions(endpoint, WARM_UP)?);
        let before = self.portico.rss_at_rest_kib()?;
        let sessions = self.sessions(endpoint, SESSIONS)?;
        let grown = self.portico.rss_at_rest_kib()?.saturating_sub(before);
        drop(sessions);
        Ok(grown as f64 / SESSIONS as f64)
    }

    /// Milliseconds of CPU, user and system, for each login.
    fn login(&self, endpoint: Endpoint) -> Result<f64> {
        self.logins(endpoint, ACCOUNTS)?;
        let before = self.portico.cpu_ticks()?;
        self.logins(endpoint, LOGINS)?;
        let ticks = self.portico.cpu_ticks()? - before;
        Ok(ticks as f64 * 10.0 / LOGINS as f64)
    }

    fn sessions(&self, endpoint: Endpoint, count: usize) -> Result<Vec<Wire>> {
        let open = |thread| {
            (0..count / THREADS)
                .map(|n| self.session(endpoint, thread * count + n))
                .collect()
        };
        let parts: Vec<Result<Vec<Wire>>> = in_threads(open);
        Ok(parts
            .into_iter()
            .collect::<Result<Vec<_>>>()?
            .into_iter()
            .flatten()
            .collect())
    }

    fn logins(&self, endpoint: Endpoint, count: usize) -> Result<()> {
        let act = |thread| {
            (0..count / THREADS).try_for_each(|n| {
                let mut session = self.session(endpoint, thread * count + n)?;
                session.imap_ok("b LOGOUT").map(drop)
            })
        };
        in_threads(act).into_iter().collect()
    }

    fn session(&self, endpoint: Endpoint, number: usize) -> Result<Wire> {
        let mut wire = match endpoint {
            Endpoint::Imap => Wire::clear(self.imap)?,
            Endpoint::Imaps => Wire::tls(self.imaps, &self.tls, FRONT)?,
        };
        ensure!(wire.line()?.starts_with("* OK"), "no greeting");
        wire.imap_ok(&format!("a LOGIN {} secret", account(number % ACCOUNTS)))?;
        Ok(wire)
    }
}

fn in_threads<T: Send>(act: impl Fn(usize) -> T + Sync) -> Vec<T> {
    std::thread::scope(|scope| {
        let act = &act;
        let threads: Vec<_> = (0..THREADS).map(|thread| scope.spawn(move || act(thread))).collect();
        threads.into_iter().map(|t| t.join().expect("no panic")).collect()
    })
}

fn listen(address: SocketAddrV4, tls: Tls) -> Listener {
    Listener {
        address: SocketAddr::V4(address),
        serve: Serve::Imap,
        tls,
        proxies: Vec::new(),
        more: Vec::new(),
    }
}

fn account(number: usize) -> String {
    format!("user{number}@a.example")
}

fn directory(store: SocketAddrV4) -> Directory {
    let mut directory = Directory::default();
    directory.config("zimbraReverseProxySSLToUpstreamEnabled", "FALSE");
    directory.config("zimbraReverseProxyImapStartTlsMode", "on");
    directory.node("proxy1.example.test");
    let server = directory.store("store1.example.test", store.ip());
    server.insert("zimbraImapBindPort".into(), store.port().into());
    directory.users(ACCOUNTS, &["store1.example.test"]);
    directory
}
