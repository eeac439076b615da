//! Many at once: what the directory is asked when everybody comes at the same moment, and where they go while an
//! account moves from server to server.

use std::collections::HashSet;
use std::net::{Ipv4Addr, SocketAddr, SocketAddrV4};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use portico_tests::certs::Authority;
use portico_tests::config::{Directory, Listener, Node, Serve, Tls};
use portico_tests::load::Mail;
use portico_tests::portico::Portico;
use portico_tests::slapd::Slapd;
use portico_tests::{Stage, simulator, until};
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
use tokio::net::{TcpListener, TcpSocket};
use tokio::runtime::Runtime;
use tokio::sync::Semaphore;
use tokio::time::timeout;

const NODE: &str = "proxy1.example.test";
const LOGINS: usize = 10_000;
const USERS: usize = 100;
/// Descriptors that a process must be able to have: each client's, and those of the sessions with the stores, of
/// which the first end before the last begin.
const FILES: u64 = 20_000;
/// Connections that are being opened at one time: what the kernel's queue of a listener holds.
const OPENING: usize = 200;
/// No wait is longer than this, or something hangs.
const PATIENCE: Duration = Duration::from_secs(120);

/// Simulated stores, a slapd that writes down what it is asked, and Portico.
struct RunningNode {
    runtime: Runtime,
    slapd: Slapd,
    // Held: it is killed when dropped.
    _portico: Portico,
    imap: SocketAddrV4,
}

/// The simulated stores, by which their answers end, too. So many that each has room in its queue for its part of
/// those who come at once: who waits there for too long is a reason to ask the directory again.
const STORES: [&str; 12] = [
    "store0.example.test",
    "store1.example.test",
    "store2.example.test",
    "store3.example.test",
    "store4.example.test",
    "store5.example.test",
    "store6.example.test",
    "store7.example.test",
    "store8.example.test",
    "store9.example.test",
    "store10.example.test",
    "store11.example.test",
];

impl RunningNode {
    fn open(stage: &Stage, users: usize, poll: &str) -> Result<Self> {
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(2)
            .enable_all()
            .build()?;
        let ca = Authority::new(&stage.dir("ca")?)?;
        let pair = ca.server(&["mail.example.test"])?;
        let mut directory = Directory::default();
        directory
            .config("zimbraReverseProxySSLToUpstreamEnabled", "FALSE")
            .config("zimbraReverseProxyImapStartTlsMode", "on")
            .config("zimbraDefaultDomainName", "a.example");
        directory.node(NODE);
        for (name, last) in STORES.into_iter().zip(2..) {
            let address = SocketAddrV4::new(Ipv4Addr::new(127, 0, 0, last), stage.port()?);
            let entry = directory.store(name, address.ip());
            entry.insert("zimbraImapBindPort".into(), address.port().into());
            let listener = runtime.block_on(TcpListener::bind(SocketAddr::from(address)))?;
            runtime.spawn(simulator::serve_as(name, listener, Mail::Imap, None));
        }
        directory.users(users, &STORES);
        let slapd = Slapd::start(stage, "slapd", &directory)?;
        let imap = SocketAddrV4::new(Ipv4Addr::LOCALHOST, stage.port()?);
        let mut source = slapd.source(poll);
        // It is made to wait here, and that is no failure.
        source.push("  timeout: 60s".to_owned());
        let node = Node {
            name: NODE.into(),
            directory: source,
            listeners: vec![Listener {
                address: SocketAddr::V4(imap),
                serve: Serve::Imap,
                tls: Tls::StartTls,
                proxies: Vec::new(),
                more: Vec::new(),
            }],
            certificate: (pair.certificate_file, pair.key_file),
            upstream_ca: ca.file(),
            tls: Vec::new(),
            admin: Vec::new(),
            web: Vec::new(),
            more: vec![(
                "limits".to_owned(),
                "{connections: 30000, connections_per_address: 20000}".to_owned(),
            )],
        };
        let portico = Portico::start(stage, &node, &directory, "info")?;
        Ok(Self {
            runtime,
            slapd,
            _portico: portico,
            imap,
        })
    }
}

/// One login, up to the answer; `said` counts those whose command is out.
async fn login(to: SocketAddrV4, user: usize, said: &AtomicUsize, opening: &Semaphore) -> Result<String> {
    let permit = opening.acquire().await?;
    let socket = TcpSocket::new_v4()?;
    let tcp = socket.connect(SocketAddr::from(to)).await?;
    tcp.set_nodelay(true)?;
    let mut wire = BufReader::with_capacity(512, tcp);
    let mut line = String::new();
    wire.read_line(&mut line).await?;
    ensure!(line.starts_with("* OK"), "{line:?}");
    wire.write_all(format!("a LOGIN user{user}@a.example secret\r\n").as_bytes())
        .await?;
    drop(permit);
    said.fetch_add(1, Ordering::SeqCst);
    line.clear();
    wire.read_line(&mut line).await?;
    if line.starts_with("a OK") {
        wire.write_all(b"z LOGOUT\r\n").await?;
    }
    Ok(line)
}

/// As many open files as may be, for this process and for Portico, which inherits them.
fn raise_limit() -> Result<()> {
    let (_, hard) = getrlimit(Resource::RLIMIT_NOFILE)?;
    ensure!(
        hard >= FILES,
        "this test needs {FILES} open files for each process; the hard limit is {hard}"
    );
    Ok(setrlimit(Resource::RLIMIT_NOFILE, hard, hard)?)
}

#[test]
fn ten_thousand_at_once_ask_once_for_each_account() -> Result<()> {
    raise_limit()?;
    Stage::run(|stage| {
        let running = RunningNode::open(stage, USERS, "60s")?;
        let asked_before = running.slapd.questions()?;
        // No login is answered before all have asked.
        running.slapd.freeze()?;
        let said = Arc::new(AtomicUsize::new(0));
        let opening = Arc::new(Semaphore::new(OPENING));
        let logins: Vec<_> = (0..LOGINS)
            .map(|number| {
                let (to, said, opening) = (running.imap, said.clone(), opening.clone());
                running
                    .runtime
                    .spawn(async move { timeout(PATIENCE, login(to, number % USERS, &said, &opening)).await? })
            })
            .collect();
        until("everybody to have asked", PATIENCE, || {
            Ok((said.load(Ordering::SeqCst) == LOGINS).then_some(()))
        })?;
        running.slapd.thaw()?;
        let mut refused = Vec::new();
        for login in logins {
            let answer = running.runtime.block_on(login)?.context("a login")?;
            if !answer.starts_with("a OK") {
                refused.push(answer);
            }
        }
        ensure!(
            refused.is_empty(),
            "{} refused, such as {:?}",
            refused.len(),
            refused[0]
        );
        let asked: Vec<String> = running.slapd.questions()?.split_off(asked_before.len());
        let distinct: HashSet<&String> = asked.iter().collect();
        ensure!(!asked.is_empty(), "the questions cannot be seen");
        ensure!(
            asked.len() <= USERS,
            "{} questions, {} of them different",
            asked.len(),
            distinct.len()
        );
        println!("{LOGINS} logins of {USERS} users: {} questions", asked.len());
        Ok(())
    })
}

const MOVES: usize = 200;
/// How soon a change must be seen; it is looked for every 100 ms.
const SEEN: Duration = Duration::from_secs(10);

/// Where the moving account is, for all who log in: a number that goes up with each step; where it is even the
/// account has arrived, on the store of its half.
#[derive(Default)]
struct Step(AtomicUsize);

impl Step {
    fn now(&self) -> usize {
        self.0.load(Ordering::SeqCst)
    }

    fn next(&self) {
        self.0.fetch_add(1, Ordering::SeqCst);
    }

    /// The store of a step at which the account has arrived.
    fn store(step: usize) -> Option<&'static str> {
        step.is_multiple_of(2).then(|| STORES[step / 2 % 2])
    }
}

#[test]
fn no_login_goes_to_the_server_that_an_account_has_left() -> Result<()> {
    Stage::run(|stage| {
        let running = RunningNode::open(stage, 1, "100ms")?;
        let (stop, step) = (Arc::new(AtomicBool::new(false)), Arc::new(Step::default()));
        let checked = Arc::new(AtomicUsize::new(0));
        let clients: Vec<_> = (0..4)
            .map(|_| {
                let (to, stop, step, checked) = (running.imap, stop.clone(), step.clone(), checked.clone());
                running.runtime.spawn(async move {
                    let (said, opening) = (AtomicUsize::new(0), Semaphore::new(1));
                    while !stop.load(Ordering::SeqCst) {
                        let before = step.now();
                        let answer = timeout(PATIENCE, login(to, 0, &said, &opening)).await??;
                        ensure!(answer.starts_with("a OK"), "{answer:?}");
                        // What began and ended at one step must have gone where the account is.
                        if let Some(store) = Step::store(before).filter(|_| step.now() == before) {
                            ensure!(answer.trim_end().ends_with(store), "{answer:?}, but it is at {store}");
                            checked.fetch_add(1, Ordering::SeqCst);
                        }
                    }
                    Ok(())
                })
            })
            .collect();
        let (said, opening) = (AtomicUsize::new(0), Semaphore::new(1));
        for number in 1..=MOVES {
            let store = STORES[number % 2];
            step.next();
            running.slapd.set_account("user0@a.example", "zimbraMailHost", store)?;
            until("the move to be seen", SEEN, || {
                let answer = running.runtime.block_on(login(running.imap, 0, &said, &opening))?;
                ensure!(answer.starts_with("a OK"), "{answer:?}");
                Ok(answer.trim_end().ends_with(store).then_some(()))
            })?;
            step.next();
            let enough = checked.load(Ordering::SeqCst) + 4;
            until("some logins at the new server", PATIENCE, || {
                let ended = clients.iter().any(|client| client.is_finished());
                Ok((ended || checked.load(Ordering::SeqCst) >= enough).then_some(()))
            })?;
        }
        stop.store(true, Ordering::SeqCst);
        for client in clients {
            running.runtime.block_on(client)??;
        }
        println!(
            "{MOVES} moves, {} logins at the right server",
            checked.load(Ordering::SeqCst)
        );
        Ok(())
    })
}
