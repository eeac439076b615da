//! Load on every listener: throughput, latency, CPU and memory of Portico, beside the same load straight on the servers.
//!
//! The web side is loaded by wrk and h2load and answered by nginx, the mail side by this project's own generator
//! ([`portico_tests::load`]) and simulator. It prints a table and judges nothing: machines differ, and what else
//! they do. Compare ratios within one run. docs/load-testing.md says more.
//!
//! `cargo bench -p portico-tests --bench load -- --scale 0.1 --only imap` runs a tenth of it, of what has `imap` in
//! its name.

use std::fmt::Write as _;
use std::net::{Ipv4Addr, SocketAddr, SocketAddrV4};
use std::process::Command;

use anyhow::{Context, Result, bail};
use portico_tests::Stage;
use portico_tests::bare::Bare;
use portico_tests::certs::{Authority, Pair};
use portico_tests::config::{Directory, Listener, Node, Serve, Tls};
use portico_tests::load::{Act, Load, Mail};
use portico_tests::nginx::Nginx;
use portico_tests::portico::Portico;
use portico_tests::simulator;
use portico_tests::town::{Person, Town};
use tokio::net::TcpListener;
use tokio::runtime::Runtime;

const ACCOUNTS: usize = 200;
const STORE: Ipv4Addr = Ipv4Addr::new(127, 0, 0, 2);
const FRONT: &str = "mail.example.test";
const SMALL: usize = 512;
const LARGE: usize = 1024 * 1024;

fn main() -> Result<()> {
    let wanted = Wanted::read()?;
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(1)
        .enable_all()
        .build()?;
    println!(
        "{:22} {:8} {:>12} {:>10} {:>10} {:>14} {:>10}",
        "load", "through", "units/s", "p50 ms", "p99 ms", "CPU ms/unit", "RSS MiB"
    );
    for case in cases(wanted.scale) {
        if case.name.contains(&wanted.only) {
            // Each with a process of its own: one that had work before keeps memory for more.
            Stage::run(|stage| House::open(stage, &runtime, &[])?.measure(&case))?;
        }
    }
    imaptest(&wanted)?;
    ratios(&wanted, &runtime)
}

/// imaptest straight at a Dovecot, and at Portico in front of it, in clear text.
fn imaptest(wanted: &Wanted) -> Result<()> {
    const NAME: &str = "imaptest_login";
    const PASSWORD: &str = "imaptest-c4n4ry";
    if !NAME.contains(&wanted.only) {
        return Ok(());
    }
    let Some(program) = portico_tests::imaptest::find() else {
        println!("{NAME:22} not run: there is no imaptest on PATH, and IMAPTEST names none");
        return Ok(());
    };
    // It prints mean times every ten seconds; in a shorter run they are of all of it.
    let seconds = ((9.0 * wanted.scale) as u64).clamp(2, 9);
    Stage::run(|stage| {
        let people: Vec<Person> = (1..=20)
            .map(|number| Person::new(&format!("user{number}@a.example"), 0, PASSWORD))
            .collect();
        let names: Vec<&str> = people.iter().map(|person| person.name.as_str()).collect();
        let users = stage.file("imaptest.users", names.join("\n") + "\n")?;
        let town = Town::build(stage, people)?;
        let node = town.node();
        let mut directory = town.directory();
        directory.config("zimbraReverseProxyImapStartTlsMode", "on");
        directory.config("zimbraReverseProxySSLToUpstreamEnabled", "FALSE");
        let portico = Portico::start(stage, &node, &directory, "warn")?;
        let store = &town.stores[0].dovecot;
        let put = |at| -> Result<Figures> {
            let outcome = portico_tests::imaptest::run(&program, at, &users, PASSWORD, seconds)?;
            Ok(Figures {
                rate: outcome.logins as f64 / outcome.took.as_secs_f64(),
                p50: outcome.login_ms,
                p99: None,
                units: outcome.logins as f64,
            })
        };
        row(NAME, "direct", &put(SocketAddrV4::new(store.ip, store.imap))?, None);
        let before = portico.cpu_ticks()?;
        let through = put(town.endpoints.imap)?;
        let ticks = portico.cpu_ticks()? - before;
        let cpu = ticks as f64 * 10.0 / through.units;
        row(NAME, "portico", &through, Some((cpu, portico.rss_kib()?)));
        Ok(())
    })
}

/// CPU time of a small request through Portico, beside the same through a bare proxy on Pingora and through nginx: in
/// turns, one thread each, without access log.
fn ratios(wanted: &Wanted, runtime: &Runtime) -> Result<()> {
    const ROUNDS: usize = 5;
    const ALONE: [(&str, &str); 2] = [("threads", "1"), ("log", "{access: off, audit: off}")];
    let loads = cases(0.3 * wanted.scale).into_iter().filter(|case| {
        let is_small = ["http_small", "https_small", "h2_small"].contains(&case.name);
        is_small && format!("{}_ratio", case.name).contains(&wanted.only)
    });
    for (number, case) in loads.enumerate() {
        if number == 0 {
            println!(
                "\n{:22} {:>12} {:>12} {:>12} {:>14} {:>14}",
                "CPU of a small request", "Portico µs", "bare µs", "nginx µs", "Portico/bare", "Portico/nginx"
            );
        }
        Stage::run(|stage| {
            let house = House::open(stage, runtime, &ALONE)?;
            let rivals = Rivals::open(stage, &house)?;
            let mut rounds = Vec::new();
            // The first is not counted: buffers grow, connections to the server are opened.
            for round in 0..=ROUNDS {
                let times = rivals.round(&house, &case)?;
                if round > 0 {
                    rounds.push(times);
                }
            }
            let of = |pick: &dyn Fn(&[f64; 3]) -> f64| median(rounds.iter().map(pick).collect());
            println!(
                "{:22} {:12.1} {:12.1} {:12.1} {:14.2} {:14.2}",
                case.name,
                of(&|times| times[0]),
                of(&|times| times[1]),
                of(&|times| times[2]),
                of(&|times| times[0] / times[1]),
                of(&|times| times[0] / times[2]),
            );
            Ok(())
        })?;
    }
    Ok(())
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied().unwrap_or(f64::NAN)
}

/// Other proxies in front of the same web server.
struct Rivals {
    bare: Bare,
    nginx: Nginx,
    at: [Addresses; 2],
}

impl Rivals {
    fn open(stage: &Stage, house: &House) -> Result<Self> {
        let at = [
            Addresses::new(stage, Ipv4Addr::LOCALHOST)?,
            Addresses::new(stage, Ipv4Addr::LOCALHOST)?,
        ];
        let server = house.back.http;
        Ok(Self {
            bare: Bare::start(stage, [at[0].http, at[0].https], &house.pair, server)?,
            nginx: Nginx::proxy(stage, "front", [at[1].http, at[1].https], &house.pair, server)?,
            at,
        })
    }

    /// Microseconds of CPU for each request: of Portico, of the bare proxy, of nginx.
    fn round(&self, house: &House, case: &Case) -> Result<[f64; 3]> {
        let time = |at: &Addresses, ticks: &dyn Fn() -> Result<u64>| {
            let before = ticks()?;
            let figures = house.put(case, at)?;
            Ok((ticks()? - before) as f64 * 10_000.0 / figures.units)
        };
        let times: Result<Vec<f64>> = [
            time(&house.front, &|| house.portico.cpu_ticks()),
            time(&self.at[0], &|| self.bare.cpu_ticks()),
            time(&self.at[1], &|| self.nginx.cpu_ticks()),
        ]
        .into_iter()
        .collect();
        times?.try_into().ok().context("three times")
    }
}

/// What the command line asks for.
struct Wanted {
    scale: f64,
    only: String,
}

impl Wanted {
    fn read() -> Result<Self> {
        let mut wanted = Self {
            scale: 1.0,
            only: String::new(),
        };
        let mut words = std::env::args().skip(1);
        while let Some(word) = words.next() {
            match word.as_str() {
                "--scale" => wanted.scale = words.next().context("--scale N")?.parse()?,
                "--only" => wanted.only = words.next().context("--only PART")?,
                // Cargo says it to every benchmark.
                "--bench" => {}
                other => bail!("{other}? There are --scale N and --only PART"),
            }
        }
        Ok(wanted)
    }
}

/// One load, and the two places that it is put on.
struct Case {
    name: &'static str,
    load: Kind,
}

enum Kind {
    /// wrk with this many connections, for so many seconds; each request on a new one if so.
    Wrk {
        endpoint: Endpoint,
        large: bool,
        clients: u32,
        seconds: u64,
        new: bool,
    },
    /// h2load with so many requests.
    H2 { requests: usize },
    /// Our own generator.
    Mail {
        endpoint: Endpoint,
        mail: Mail,
        act: Act,
        clients: usize,
        units: usize,
    },
}

#[derive(Clone, Copy)]
enum Endpoint {
    Plain,
    Tls,
}

fn cases(scale: f64) -> Vec<Case> {
    let times = |count: usize| ((count as f64 * scale) as usize).max(64);
    let seconds = ((10.0 * scale) as u64).max(2);
    let wrk = |endpoint, large, clients, new| Kind::Wrk {
        endpoint,
        large,
        clients,
        seconds,
        new,
    };
    let mail = |endpoint, mail, act, clients, units| Kind::Mail {
        endpoint,
        mail,
        act,
        clients,
        units: times(units),
    };
    let case = |name, load| Case { name, load };
    vec![
        case("http_small", wrk(Endpoint::Plain, false, 32, false)),
        case("https_small", wrk(Endpoint::Tls, false, 32, false)),
        case("https_new_connections", wrk(Endpoint::Tls, false, 32, true)),
        case("https_1MiB", wrk(Endpoint::Tls, true, 8, false)),
        case(
            "h2_small",
            Kind::H2 {
                requests: times(200_000),
            },
        ),
        case("imap_login", mail(Endpoint::Plain, Mail::Imap, Act::Login, 64, 20_000)),
        case("imaps_login", mail(Endpoint::Tls, Mail::Imap, Act::Login, 64, 10_000)),
        case("pop3s_login", mail(Endpoint::Tls, Mail::Pop3, Act::Login, 64, 10_000)),
        case(
            "imaps_fetch_1MiB",
            mail(Endpoint::Tls, Mail::Imap, Act::Fetch(LARGE), 8, 2_000),
        ),
    ]
}

/// What a run gives.
struct Figures {
    rate: f64,
    p50: f64,
    /// imaptest gives none.
    p99: Option<f64>,
    units: f64,
}

/// Portico in front of nginx and the simulator.
struct House<'a> {
    runtime: &'a Runtime,
    portico: Portico,
    front: Addresses,
    back: Addresses,
    pair: Pair,
    // Held: it ends when dropped.
    _nginx: Nginx,
}

/// Where everything is, at Portico or at the servers.
struct Addresses {
    http: SocketAddrV4,
    https: SocketAddrV4,
    mail: [[SocketAddrV4; 2]; 2],
}

impl Addresses {
    fn new(stage: &Stage, ip: Ipv4Addr) -> Result<Self> {
        let any = || anyhow::Ok(SocketAddrV4::new(ip, stage.port()?));
        Ok(Self {
            http: any()?,
            https: any()?,
            mail: [[any()?, any()?], [any()?, any()?]],
        })
    }

    fn mail(&self, mail: Mail, endpoint: Endpoint) -> SocketAddrV4 {
        self.mail[mail as usize][endpoint as usize]
    }

    fn url(&self, endpoint: Endpoint, large: bool) -> String {
        let file = if large { "large" } else { "small" };
        match endpoint {
            Endpoint::Plain => format!("http://{}/service/{file}", self.http),
            Endpoint::Tls => format!("https://{}/service/{file}", self.https),
        }
    }
}

impl House<'_> {
    fn open<'a>(stage: &Stage, runtime: &'a Runtime, more: &[(&str, &str)]) -> Result<House<'a>> {
        let ca = Authority::new(&stage.dir("ca")?)?;
        let pair = ca.server(&[FRONT])?;
        let (front, back) = (
            Addresses::new(stage, Ipv4Addr::LOCALHOST)?,
            Addresses::new(stage, STORE)?,
        );
        for mail in [Mail::Imap, Mail::Pop3] {
            for endpoint in [Endpoint::Plain, Endpoint::Tls] {
                let listener = runtime.block_on(TcpListener::bind(SocketAddr::from(back.mail(mail, endpoint))))?;
                let tls = match endpoint {
                    Endpoint::Plain => None,
                    Endpoint::Tls => Some(pair.acceptor()?),
                };
                runtime.spawn(simulator::serve(listener, mail, tls));
            }
        }
        let nginx = nginx(stage, &back, &pair)?;
        let listen = |address, serve, tls| Listener {
            address: SocketAddr::V4(address),
            serve,
            tls,
            proxies: Vec::new(),
            more: Vec::new(),
        };
        let node = Node {
            name: "proxy1.example.test".into(),
            directory: portico_tests::config::yaml_source("5s"),
            listeners: vec![
                listen(front.http, Serve::Web, Tls::No),
                listen(front.https, Serve::Web, Tls::Implicit),
                listen(front.mail(Mail::Imap, Endpoint::Plain), Serve::Imap, Tls::StartTls),
                listen(front.mail(Mail::Imap, Endpoint::Tls), Serve::Imap, Tls::Implicit),
                listen(front.mail(Mail::Pop3, Endpoint::Plain), Serve::Pop3, Tls::StartTls),
                listen(front.mail(Mail::Pop3, Endpoint::Tls), Serve::Pop3, Tls::Implicit),
            ],
            certificate: (pair.certificate_file.clone(), pair.key_file.clone()),
            upstream_ca: ca.file(),
            admin: Vec::new(),
            web: Vec::new(),
            more: more
                .iter()
                .map(|(key, value)| (key.to_string(), value.to_string()))
                .collect(),
        };
        let portico = Portico::start(stage, &node, &directory(&back), "warn")?;
        Ok(House {
            runtime,
            portico,
            front,
            back,
            pair,
            _nginx: nginx,
        })
    }

    fn measure(&self, case: &Case) -> Result<()> {
        let direct = self.put(case, &self.back)?;
        row(case.name, "direct", &direct, None);
        let before = self.portico.cpu_ticks()?;
        let through = self.put(case, &self.front)?;
        let ticks = self.portico.cpu_ticks()? - before;
        let cpu = ticks as f64 * 10.0 / through.units;
        row(case.name, "portico", &through, Some((cpu, self.portico.rss_kib()?)));
        Ok(())
    }

    fn put(&self, case: &Case, at: &Addresses) -> Result<Figures> {
        match case.load {
            Kind::Wrk {
                endpoint,
                large,
                clients,
                seconds,
                new,
            } => wrk(&at.url(endpoint, large), clients, seconds, new),
            Kind::H2 { requests } => h2load(&at.url(Endpoint::Tls, false), requests),
            Kind::Mail {
                endpoint,
                mail,
                act,
                clients,
                units,
            } => self.mail(Load {
                address: at.mail(mail, endpoint),
                mail,
                tls: matches!(endpoint, Endpoint::Tls),
                act,
                clients,
                units,
                accounts: ACCOUNTS,
            }),
        }
    }

    fn mail(&self, load: Load) -> Result<Figures> {
        let outcome = self.runtime.block_on(load.run())?;
        Ok(Figures {
            rate: outcome.rate(),
            p50: outcome.percentile(0.5),
            p99: Some(outcome.percentile(0.99)),
            units: outcome.each.len() as f64,
        })
    }
}

fn row(name: &str, through: &str, figures: &Figures, own: Option<(f64, u64)>) {
    let p99 = figures.p99.map_or_else(|| "-".to_owned(), |p99| format!("{p99:.2}"));
    let mut line = format!(
        "{name:22} {through:8} {:12.0} {:10.2} {p99:>10}",
        figures.rate, figures.p50
    );
    if let Some((cpu, rss)) = own {
        let _fits = write!(line, " {cpu:14.4} {:10.1}", rss as f64 / 1024.0);
    }
    println!("{line}");
}

/// nginx as web server: a small and a large answer, on both ports.
fn nginx(stage: &Stage, at: &Addresses, pair: &Pair) -> Result<Nginx> {
    let service = stage.dir("nginx-store1/html/service")?;
    std::fs::write(service.join("small"), vec![b'x'; SMALL])?;
    std::fs::write(service.join("large"), vec![b'x'; LARGE])?;
    let locations = "location / { root html; access_log off; }";
    Nginx::start(stage, "store1", [at.http, at.https], pair, locations)
}

fn directory(store: &Addresses) -> Directory {
    let mut directory = Directory::default();
    directory.config("zimbraReverseProxySSLToUpstreamEnabled", "FALSE");
    directory.config("zimbraReverseProxyMailMode", "both");
    directory.config("zimbraReverseProxyImapStartTlsMode", "on");
    directory.config("zimbraReverseProxyPop3StartTlsMode", "on");
    directory.node("proxy1.example.test");
    let server = directory.store("store1.example.test", STORE);
    server.insert("zimbraMailPort".into(), store.http.port().into());
    server.insert(
        "zimbraImapBindPort".into(),
        store.mail(Mail::Imap, Endpoint::Plain).port().into(),
    );
    server.insert(
        "zimbraPop3BindPort".into(),
        store.mail(Mail::Pop3, Endpoint::Plain).port().into(),
    );
    directory.users(ACCOUNTS, &["store1.example.test"]);
    directory
}

fn wrk(url: &str, clients: u32, seconds: u64, new: bool) -> Result<Figures> {
    let (clients, time) = (format!("-c{clients}"), format!("-d{seconds}s"));
    let mut args = vec!["-t1", &clients, &time, "--latency", "--timeout", "10s"];
    if new {
        args.extend(["-H", "Connection: close"]);
    }
    args.push(url);
    let printed = run("wrk", &args)?;
    if let Some(line) = printed
        .lines()
        .find(|l| l.contains("Socket errors") || l.contains("Non-2xx"))
    {
        bail!("wrk {url}: {}", line.trim());
    }
    let after = |word: &str| find(&printed, word).with_context(|| format!("wrk: no {word} in {printed}"));
    let requests = printed
        .lines()
        .find(|line| line.contains("requests in"))
        .and_then(|line| line.split_whitespace().next())
        .context("wrk: no requests")?;
    Ok(Figures {
        rate: after("Requests/sec:")?.parse()?,
        p50: milliseconds(after("50%")?)?,
        p99: Some(milliseconds(after("99%")?)?),
        units: requests.parse()?,
    })
}

fn h2load(url: &str, requests: usize) -> Result<Figures> {
    let count = requests.to_string();
    let printed = run("h2load", &["-n", &count, "-c8", "-m16", "-t1", url])?;
    let good = printed
        .lines()
        .find(|line| line.starts_with("requests:"))
        .context("h2load: no requests")?;
    if !good.contains(&format!("{requests} succeeded")) || !printed.contains(&format!("{requests} 2xx")) {
        bail!("h2load {url}: {good}\n{printed}");
    }
    let rate = printed
        .lines()
        .find_map(|line| {
            line.strip_prefix("finished in ")?
                .split(", ")
                .nth(1)?
                .strip_suffix(" req/s")
        })
        .context("h2load: no rate")?;
    // It prints no percentiles, but smallest, largest, mean and deviation.
    let times: Vec<&str> = printed
        .lines()
        .find_map(|line| line.strip_prefix("time for request:"))
        .context("h2load: no times")?
        .split_whitespace()
        .collect();
    let mean = milliseconds(times.get(2).context("h2load: no mean")?)?;
    let deviation = milliseconds(times.get(3).context("h2load: no deviation")?)?;
    Ok(Figures {
        rate: rate.parse()?,
        p50: mean,
        p99: Some(mean + 2.33 * deviation),
        units: requests as f64,
    })
}

fn run(program: &str, args: &[&str]) -> Result<String> {
    let out = Command::new(program)
        .args(args)
        .output()
        .with_context(|| format!("{program}: try scripts/install bench"))?;
    let printed = String::from_utf8_lossy(&out.stdout).into_owned();
    if !out.status.success() {
        bail!(
            "{program} {args:?}: {}\n{printed}{}",
            out.status,
            String::from_utf8_lossy(&out.stderr)
        );
    }
    Ok(printed)
}

/// The word behind `word` on the line that begins with it.
fn find<'a>(text: &'a str, word: &str) -> Option<&'a str> {
    text.lines()
        .find_map(|line| line.trim().strip_prefix(word)?.split_whitespace().next())
}

/// `1.20ms`, `340us`, `2.1s`.
fn milliseconds(text: &str) -> Result<f64> {
    for (unit, factor) in [("us", 0.001), ("ms", 1.0), ("s", 1000.0), ("m", 60_000.0)] {
        if let Some(number) = text.strip_suffix(unit)
            && let Ok(number) = number.parse::<f64>()
        {
            return Ok(number * factor);
        }
    }
    bail!("{text:?} is no time")
}
