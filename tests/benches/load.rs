//! Load on every listener: throughput, latency, CPU and memory of Portico, beside the same load straight on the servers.
//!
//! The web side is loaded by wrk and h2load and answered by nginx, the mail side by this project's own generator
//! ([`portico_tests::load`]) and simulator. It prints a table and judges nothing: machines differ, and what else
//! they do. Compare ratios within one run. docs/load-testing.md says more.
//!
//! Then the same is put on Portico, nginx, HAProxy and, for the web, the bare proxy in turns, for the ratios of their CPU.
//!
//! `cargo bench -p portico-tests --bench load -- --scale 0.1 --only imap` runs a tenth of it, of what has `imap` in
//! its name; `--only ratio` runs the second part alone, `--rounds 3` with three rounds.

use std::fmt::Write as _;
use std::net::{Ipv4Addr, SocketAddr, SocketAddrV4};
use std::process::Command;

use anyhow::{Context, Result, bail};
use portico_tests::Stage;
use portico_tests::certs::{Authority, Pair};
use portico_tests::config::{Directory, Listener, Node, Serve, Tls};
use portico_tests::load::{Act, Load, Mail};
use portico_tests::nginx::Nginx;
use portico_tests::portico::Portico;
use portico_tests::rivals::{self, Addresses, Endpoint, Rival};
use portico_tests::simulator;
use portico_tests::town::{Person, Town};
use tokio::net::TcpListener;
use tokio::runtime::Runtime;

const ACCOUNTS: usize = 200;
/// Accounts of the directory. Where each is to be new, no more are used.
const COLD_ACCOUNTS: usize = 20_000;
/// Octets of a TCP segment on Ethernet.
const ETHERNET: u32 = 1448;
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
            Stage::run(|stage| House::open(stage, &runtime, &[], case.certificate)?.measure(&case))?;
        }
    }
    imaptest(&wanted)?;
    compare(&wanted, &runtime)
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

/// CPU time of a unit through Portico, beside the same through other front doors: in turns, one thread each, without
/// access log.
fn compare(wanted: &Wanted, runtime: &Runtime) -> Result<()> {
    const ALONE: [(&str, &str); 2] = [("threads", "1"), ("log", "{access: off, audit: off}")];
    let loads = cases(wanted.scale).into_iter().filter(|case| {
        let name = format!("{}_ratio", case.name);
        name.contains(&wanted.only)
    });
    for (number, case) in loads.enumerate() {
        if number == 0 {
            let title = format!("CPU, {} rounds in turns", wanted.rounds);
            let [time, nginx, span, bare] = ["µs/unit", "to nginx", "least-most", "to bare"];
            println!(
                "\n{title:24} {:8} {time:>12} {nginx:>12} {span:>16} {bare:>12}",
                "through"
            );
        }
        Stage::run(|stage| {
            let house = House::open(stage, runtime, &ALONE, case.certificate)?;
            let rivals = Rivals::open(stage, &house, runtime, &case)?;
            // The first is not counted: buffers grow, connections to the server are opened.
            let mut rounds = Vec::new();
            for round in 0..=wanted.rounds {
                let times = rivals.round(&house, &case, round)?;
                if round > 0 {
                    rounds.push(times);
                }
            }
            show(&case, &rivals, &rounds);
            Ok(())
        })?;
    }
    Ok(())
}

/// One line for each front door.
fn show(case: &Case, rivals: &Rivals, rounds: &[Vec<f64>]) {
    let names: Vec<&str> = ["Portico"]
        .into_iter()
        .chain(rivals.0.iter().map(|rival| rival.name))
        .collect();
    let place = |name: &str| names.iter().position(|other| *other == name);
    for (number, name) in names.iter().enumerate() {
        let to = |base: &str| -> Option<Vec<f64>> {
            let base = place(base)?;
            let mut ratios: Vec<f64> = rounds.iter().map(|times| times[number] / times[base]).collect();
            ratios.sort_by(f64::total_cmp);
            Some(ratios)
        };
        let middle = |ratios: &[f64]| {
            ratios
                .get(ratios.len() / 2)
                .map_or_else(String::new, |at| format!("{at:.2}"))
        };
        let (nginx, bare) = (to("nginx").unwrap_or_default(), to("bare").unwrap_or_default());
        let span = match (nginx.first(), nginx.last()) {
            (Some(least), Some(most)) => format!("{least:.2}-{most:.2}"),
            _ => String::new(),
        };
        let time = median(rounds.iter().map(|times| times[number]).collect());
        println!(
            "{:24} {name:8} {time:12.1} {:>12} {span:>16} {:>12}",
            case.name,
            middle(&nginx),
            middle(&bare)
        );
    }
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied().unwrap_or(f64::NAN)
}

/// Other front doors before the same servers.
struct Rivals(Vec<Rival>);

impl Rivals {
    fn open(stage: &Stage, house: &House, runtime: &Runtime, case: &Case) -> Result<Self> {
        let asked = SocketAddrV4::new(Ipv4Addr::LOCALHOST, stage.port()?);
        let listener = runtime.block_on(TcpListener::bind(asked))?;
        let servers = [Mail::Imap, Mail::Pop3].map(|mail| house.back.mail(mail, Endpoint::Plain));
        runtime.spawn(rivals::auth(listener, servers));
        let mut all = vec![
            Rival::nginx(stage, &house.pair, &house.back, asked)?,
            Rival::haproxy(stage, &house.pair, &house.back)?,
        ];
        if !matches!(case.load, Kind::Mail { .. }) {
            all.push(Rival::bare(stage, &house.pair, &house.back)?);
        }
        Ok(Self(all))
    }

    /// Microseconds of CPU for each unit: of Portico, and of each of the others. Who begins changes with the round.
    fn round(&self, house: &House, case: &Case, round: usize) -> Result<Vec<f64>> {
        let mut times = vec![0.0; self.0.len() + 1];
        for step in 0..times.len() {
            let number = (step + round) % times.len();
            let rival = number.checked_sub(1).and_then(|number| self.0.get(number));
            let ticks = || rival.map_or_else(|| house.portico.cpu_ticks(), Rival::cpu_ticks);
            let before = ticks()?;
            let figures = house.put(case, rival.map_or(&house.front, |rival| &rival.at), round)?;
            times[number] = (ticks()? - before) as f64 * 10_000.0 / figures.units;
        }
        Ok(times)
    }
}

/// What the command line asks for.
struct Wanted {
    scale: f64,
    rounds: usize,
    only: String,
}

impl Wanted {
    fn read() -> Result<Self> {
        let mut wanted = Self {
            scale: 1.0,
            rounds: 5,
            only: String::new(),
        };
        let mut words = std::env::args().skip(1);
        while let Some(word) = words.next() {
            match word.as_str() {
                "--scale" => wanted.scale = words.next().context("--scale N")?.parse()?,
                "--rounds" => wanted.rounds = words.next().context("--rounds N")?.parse()?,
                "--only" => wanted.only = words.next().context("--only PART")?,
                // Cargo says it to every benchmark.
                "--bench" => {}
                other => bail!("{other}? There are --scale N, --rounds N and --only PART"),
            }
        }
        Ok(wanted)
    }
}

/// One load, and the two places that it is put on.
struct Case {
    name: &'static str,
    load: Kind,
    certificate: Certificate,
}

/// The key of the front doors' certificate.
#[derive(Clone, Copy)]
enum Certificate {
    P256,
    Rsa2048,
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
        /// As on Ethernet, where it is not as on loopback.
        segment: Option<u32>,
        /// Each account is seen for the first time.
        cold: bool,
    },
}

fn cases(scale: f64) -> Vec<Case> {
    [web_cases(scale), login_cases(scale), fetch_cases(scale)]
        .into_iter()
        .flatten()
        .collect()
}

fn times(count: usize, scale: f64) -> usize {
    ((count as f64 * scale) as usize).max(64)
}

fn case(name: &'static str, load: Kind) -> Case {
    Case {
        name,
        load,
        certificate: Certificate::P256,
    }
}

fn web_cases(scale: f64) -> Vec<Case> {
    let seconds = ((10.0 * scale) as u64).max(2);
    let wrk = |endpoint, large, clients, new| Kind::Wrk {
        endpoint,
        large,
        clients,
        seconds,
        new,
    };
    vec![
        case("http_small", wrk(Endpoint::Plain, false, 32, false)),
        case("https_small", wrk(Endpoint::Tls, false, 32, false)),
        case("https_new_connections", wrk(Endpoint::Tls, false, 32, true)),
        Case {
            certificate: Certificate::Rsa2048,
            ..case("https_new_rsa", wrk(Endpoint::Tls, false, 32, true))
        },
        case("https_1MiB", wrk(Endpoint::Tls, true, 8, false)),
        case(
            "h2_small",
            Kind::H2 {
                requests: times(200_000, scale),
            },
        ),
    ]
}

fn login_cases(scale: f64) -> Vec<Case> {
    let login = |endpoint, mail, act, units| Kind::Mail {
        endpoint,
        mail,
        act,
        clients: 64,
        units: times(units, scale),
        segment: None,
        cold: false,
    };
    let cold = Kind::Mail {
        endpoint: Endpoint::Tls,
        mail: Mail::Imap,
        act: Act::Login,
        clients: 64,
        units: times(10_000, scale).min(COLD_ACCOUNTS / 8),
        segment: None,
        cold: true,
    };
    vec![
        case("imap_login", login(Endpoint::Plain, Mail::Imap, Act::Login, 20_000)),
        case("imaps_login", login(Endpoint::Tls, Mail::Imap, Act::Login, 10_000)),
        case("imaps_login_cold", cold),
        case("pop3s_login", login(Endpoint::Tls, Mail::Pop3, Act::Login, 10_000)),
        case("imaps_mixed", login(Endpoint::Tls, Mail::Imap, Act::Mixed, 2000)),
    ]
}

fn fetch_cases(scale: f64) -> Vec<Case> {
    let fetch = |endpoint, segment| Kind::Mail {
        endpoint,
        mail: Mail::Imap,
        act: Act::Fetch(LARGE),
        clients: 8,
        units: times(2000, scale),
        segment,
        cold: false,
    };
    vec![
        case("imap_bulk", fetch(Endpoint::Plain, None)),
        case("imaps_bulk", fetch(Endpoint::Tls, None)),
        case("imap_bulk_1448", fetch(Endpoint::Plain, Some(ETHERNET))),
        case("imaps_bulk_1448", fetch(Endpoint::Tls, Some(ETHERNET))),
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

fn url(at: &Addresses, endpoint: Endpoint, large: bool) -> String {
    let file = if large { "large" } else { "small" };
    match endpoint {
        Endpoint::Plain => format!("http://{}/service/{file}", at.http),
        Endpoint::Tls => format!("https://{}/service/{file}", at.https),
    }
}

impl House<'_> {
    fn open<'a>(
        stage: &Stage,
        runtime: &'a Runtime,
        more: &[(&str, &str)],
        certificate: Certificate,
    ) -> Result<House<'a>> {
        let ca = Authority::new(&stage.dir("ca")?)?;
        let pair = match certificate {
            Certificate::P256 => ca.server(&[FRONT])?,
            Certificate::Rsa2048 => ca.rsa_server(&[FRONT])?,
        };
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
            tls: Vec::new(),
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
        let direct = self.put(case, &self.back, 0)?;
        row(case.name, "direct", &direct, None);
        let before = self.portico.cpu_ticks()?;
        let through = self.put(case, &self.front, 0)?;
        let ticks = self.portico.cpu_ticks()? - before;
        let cpu = ticks as f64 * 10.0 / through.units;
        row(case.name, "portico", &through, Some((cpu, self.portico.rss_kib()?)));
        Ok(())
    }

    fn put(&self, case: &Case, at: &Addresses, round: usize) -> Result<Figures> {
        match case.load {
            Kind::Wrk {
                endpoint,
                large,
                clients,
                seconds,
                new,
            } => wrk(&url(at, endpoint, large), clients, seconds, new),
            Kind::H2 { requests } => h2load(&url(at, Endpoint::Tls, false), requests),
            Kind::Mail {
                endpoint,
                mail,
                act,
                clients,
                units,
                segment,
                cold,
            } => self.mail(Load {
                address: at.mail(mail, endpoint),
                mail,
                tls: matches!(endpoint, Endpoint::Tls),
                act,
                clients,
                units,
                accounts: if cold { COLD_ACCOUNTS } else { ACCOUNTS },
                first_account: if cold { round * units } else { 0 },
                segment,
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
    directory.users(COLD_ACCOUNTS, &["store1.example.test"]);
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
