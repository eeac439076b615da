//! Clients that ask for much and read nothing: what waits for them does not fill the memory.

use std::net::{Ipv4Addr, SocketAddrV4, TcpListener};
use std::path::Path;
use std::time::Duration;

use anyhow::{Result, ensure};
use portico_tests::config::{Directory, Node, quote};
use portico_tests::h2::{DATA, END_HEADERS, HEADERS, Raw, block, frame, usual};
use portico_tests::nginx::Nginx;
use portico_tests::portico::Portico;
use portico_tests::town::{Town, people};
use portico_tests::wire::Wire;
use portico_tests::{Stage, until};

use crate::scene::Scene;
use crate::smuggling::{HOST, Recorder, connect, connect_with, play_recorded_with};

/// Unread answers before the measuring begins.
const FIRST: usize = 100;
/// Answers among which the growth of the memory is shared: an allocator grows by steps of MiB.
const MEASURED: usize = 300;
/// The same of answers that are compressed, of which there may be 240.
const FIRST_PACKED: usize = 20;
const MEASURED_PACKED: usize = 200;
/// Compressed answers that an address may have at once.
const PACKED_PER_ADDRESS: usize = 16;
const SOON: Duration = Duration::from_secs(30);
/// A file of the web clients that is larger than every buffer on the way.
const FILE: usize = 64 << 20;
/// A path of the real server that is never answered.
const SILENT: &str = "/h2/silent";
/// The most that an answer may cost by itself, in KiB, without its request and connections.
const OF_ITS_OWN: u64 = 64;
/// SETTINGS_INITIAL_WINDOW_SIZE: nothing.
const NO_WINDOW: [u8; 6] = [0, 4, 0, 0, 0, 0];
/// As much as there can be; so it is the socket that takes nothing.
const ALL_WINDOW: [u8; 6] = [0, 4, 0x7F, 0xFF, 0xFF, 0xFF];

/// A client that asks, hears the beginning of each answer, and then reads nothing.
enum Deaf {
    H2 { _open: Raw },
    H1 { _open: Wire },
}

/// How clients are deaf.
#[derive(Debug, Clone, Copy)]
enum How {
    /// Streams of HTTP/2 without a window, so many on each connection.
    NoWindow(usize),
    /// HTTP/2 on a socket that nothing is taken from.
    Stuck,
    /// HTTP/1 on such a socket.
    Stuck1,
}

impl How {
    /// Of an answer that does not come it hears no beginning.
    fn client(self, scene: &Scene, path: &str) -> Result<Deaf> {
        let comes = path != SILENT;
        let coding = coding(path);
        let accepts = [("accept-encoding", coding.unwrap_or("identity"))];
        let (settings, streams) = match self {
            Self::Stuck1 => {
                let mut wire = Wire::clear(scene.town.endpoints.http)?;
                ask(&mut wire, path)?;
                if comes {
                    let got = head(&mut wire)?;
                    ensure!(got.starts_with("http/1.1 200"), "{got}");
                    let packed = coding.is_none_or(|coding| got.contains(&format!("content-encoding: {coding}")));
                    ensure!(packed, "{path} is not compressed: {got}");
                }
                return Ok(Deaf::H1 { _open: wire });
            }
            Self::NoWindow(streams) => (&NO_WINDOW, streams),
            Self::Stuck => (&ALL_WINDOW, 1),
        };
        let mut raw = connect_with(scene, settings)?;
        for _ in 0..streams {
            let stream = raw.ask(path, &accepts, true)?;
            ensure!(!comes || raw.is_answered(stream)?, "{path} is not answered");
        }
        Ok(Deaf::H2 { _open: raw })
    }

    fn answers(self) -> usize {
        if let Self::NoWindow(streams) = self { streams } else { 1 }
    }
}

/// In which coding an answer is asked for: the query of its path says it.
fn coding(path: &str) -> Option<&str> {
    path.split_once('?').map(|(_, coding)| coding)
}

fn ask(wire: &mut Wire, path: &str) -> Result<()> {
    let coding = coding(path).unwrap_or("identity");
    wire.send(format!(
        "GET {path} HTTP/1.1\r\nHost: {HOST}\r\nAccept-Encoding: {coding}\r\n\r\n"
    ))
}

/// The head of an answer of HTTP/1, in small letters.
fn head(wire: &mut Wire) -> Result<String> {
    let mut head = String::new();
    loop {
        let line = wire.line()?;
        if line.is_empty() {
            return Ok(head);
        }
        head.push_str(&line.to_ascii_lowercase());
        head.push('\n');
    }
}

/// What memory one unread answer costs, in KiB, of [`MEASURED`]: with its request, and its share of the connection. The
/// clients stay: what they let go would be used for others.
fn cost(scene: &Scene, path: &str, how: How) -> Result<u64> {
    let mut clients = Vec::new();
    let (first, measured) = match coding(path) {
        None => (FIRST, MEASURED),
        Some(_) => (FIRST_PACKED, MEASURED_PACKED),
    };
    // What the first have brought in is there already.
    for _ in 0..first / how.answers() {
        clients.push(how.client(scene, path)?);
    }
    let before = scene.portico.rss_at_rest_kib()?;
    for _ in 0..measured / how.answers() {
        clients.push(how.client(scene, path)?);
    }
    let grown = scene.portico.rss_at_rest_kib()?.saturating_sub(before);
    let mut honest = connect(scene)?;
    let stream = honest.ask("/service/fine", &[], true)?;
    ensure!(honest.is_answered(stream)?, "an honest request is not answered");
    Ok(grown / measured as u64)
}

/// A node with the locations of the file, and no limit but that of each connection.
fn with_locations(stage: &Stage, node: &mut Node, locations: &str) -> Result<()> {
    let file = stage.file("locations.yaml", locations)?;
    node.web = vec![("locations".to_owned(), quote(&file))];
    Ok(())
}

/// An answer costs at most so many KiB. Each has a Portico of its own: what others have let go would be used again, and
/// hide the cost.
fn is_at_most(most: u64, path: &str, how: How) -> Result<()> {
    let change = |stage: &Stage, node: &mut Node, _: &mut Directory| {
        let root = stage.dir("web")?;
        std::fs::write(root.join("big"), vec![b'x'; FILE])?;
        write_script(&root)?;
        let locations = format!(
            "locations:\n  - prefix: /static/\n    static: {{root: {}}}\n  - include: carbonio\n",
            root.display()
        );
        with_locations(stage, node, &locations)
    };
    play_recorded_with(change, |scene, _| measured(scene, most, path, how))
}

/// A script that shrinks, but not to what the buffers on the way take.
fn write_script(root: &Path) -> Result<()> {
    let mut state = 1_u64;
    let mut digit = || {
        // Knuth's MMIX: what follows cannot be guessed from what came.
        state = state
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        b"0123456789abcdef"[(state >> 60) as usize]
    };
    let script: Vec<u8> = (0..FILE / 4).map(|_| digit()).collect();
    std::fs::write(root.join("script.js"), script)?;
    Ok(())
}

/// The same with a real nginx as server: over TLS, and below `/h2/` in HTTP/2.
fn of_a_tls_server_is_at_most(most: u64, path: &str, how: How) -> Result<()> {
    with_a_tls_server(|scene| measured(scene, most, path, how))
}

/// So many KiB of an answer of a server over HTTP/2 are not those of a request that waits there.
fn of_an_http2_server_is_at_most(most: u64, how: How) -> Result<()> {
    let mut waiting = 0;
    with_a_tls_server(|scene| {
        waiting = cost(scene, SILENT, how)?;
        Ok(())
    })?;
    with_a_tls_server(|scene| {
        let cost = cost(scene, "/h2/big", how)?;
        println!("{how:?}: {cost} KiB, a request that waits {waiting}");
        ensure!(cost <= most, "{how:?}: {cost} KiB");
        ensure!(
            cost <= waiting + OF_ITS_OWN,
            "{how:?}: {cost} KiB, without an answer {waiting}"
        );
        Ok(())
    })
}

fn with_a_tls_server(test: impl FnOnce(&mut Scene) -> Result<()>) -> Result<()> {
    Stage::run(|stage| {
        let town = Town::build(stage, people())?;
        let at = || -> Result<SocketAddrV4> { Ok(SocketAddrV4::new(Ipv4Addr::LOCALHOST, stage.port()?)) };
        let addresses = [at()?, at()?];
        let pair = town.ca.server(&["real.example.test", "127.0.0.1"])?;
        let root = stage.dir("web")?;
        std::fs::write(root.join("big"), vec![b'x'; FILE])?;
        let files = root.display();
        let silent = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
        let served = format!(
            "location / {{ alias {files}/; }} location /h2/ {{ alias {files}/; }} location = /service/fine {{ return 200; }} \
             location = {SILENT} {{ proxy_pass http://{}; proxy_connect_timeout 600; proxy_read_timeout 600; }}",
            silent.local_addr()?
        );
        let _nginx = Nginx::start(stage, "tls", addresses, &pair, &served)?;
        let locations = format!(
            "groups:\n  real: {{servers: [\"{}\"], tls: {{name: real.example.test}}}}\n\
             locations:\n- {{prefix: /h2/, group: real, http2: true}}\n- {{prefix: /, group: real}}\n",
            addresses[1]
        );
        let mut node = town.node();
        with_locations(stage, &mut node, &locations)?;
        let mut directory = town.directory();
        directory.config("zimbraReverseProxyMailMode", "both");
        let portico = Portico::start(stage, &node, &directory, "debug")?;
        let mut scene = Scene { stage, town, portico };
        test(&mut scene)?;
        scene.end()
    })
}

fn measured(scene: &mut Scene, most: u64, path: &str, how: How) -> Result<()> {
    let cost = cost(scene, path, how)?;
    println!("{path}, {how:?}: {cost} KiB");
    ensure!(cost <= most, "{path}, {how:?}: {cost} KiB");
    Ok(())
}

// What docs/threat-model.md says, and some for the machine.

#[test]
fn files_without_a_window_cost_little() -> Result<()> {
    is_at_most(50, "/static/big", How::NoWindow(20))
}

#[test]
fn a_file_on_a_stuck_connection_costs_little() -> Result<()> {
    is_at_most(90, "/static/big", How::Stuck)
}

#[test]
fn answers_without_a_window_cost_little() -> Result<()> {
    is_at_most(64, "/service/big", How::NoWindow(20))
}

#[test]
fn an_answer_on_a_stuck_connection_costs_little() -> Result<()> {
    is_at_most(125, "/service/big", How::Stuck)
}

#[test]
fn an_answer_over_http1_costs_little() -> Result<()> {
    is_at_most(80, "/service/big", How::Stuck1)
}

#[test]
fn answers_of_a_tls_server_without_a_window_cost_little() -> Result<()> {
    of_a_tls_server_is_at_most(105, "/big", How::NoWindow(20))
}

#[test]
fn an_answer_of_a_tls_server_over_http1_costs_little() -> Result<()> {
    of_a_tls_server_is_at_most(120, "/big", How::Stuck1)
}

#[test]
fn answers_of_an_http2_server_without_a_window_cost_little() -> Result<()> {
    of_an_http2_server_is_at_most(120, How::NoWindow(20))
}

#[test]
fn an_answer_of_an_http2_server_on_a_stuck_connection_costs_little() -> Result<()> {
    of_an_http2_server_is_at_most(165, How::Stuck)
}

#[test]
fn an_answer_of_an_http2_server_over_http1_costs_little() -> Result<()> {
    of_an_http2_server_is_at_most(135, How::Stuck1)
}

/// The most that a request whose body has stopped may cost, in KiB, with its share of the connections.
#[test]
fn a_body_that_stops_costs_little() -> Result<()> {
    const BEGUN: usize = 256 * 1024;
    for (http2, most) in [(false, 160), (true, 210)] {
        play_recorded_with(
            |_, _, _| Ok(()),
            |scene, _| {
                let mut clients = Vec::new();
                let mut begin = |count: usize| -> Result<()> {
                    for _ in 0..count {
                        clients.push(upload(scene, http2, BEGUN)?);
                    }
                    Ok(())
                };
                begin(FIRST)?;
                let before = scene.portico.rss_at_rest_kib()?;
                begin(MEASURED)?;
                let cost = scene.portico.rss_at_rest_kib()?.saturating_sub(before) / MEASURED as u64;
                println!("a body that stops, HTTP/2 {http2}: {cost} KiB");
                ensure!(cost <= most, "HTTP/2 {http2}: {cost} KiB");
                Ok(())
            },
        )?;
    }
    Ok(())
}

/// Begins a long body, and stops.
fn upload(scene: &Scene, http2: bool, begun: usize) -> Result<Deaf> {
    let body = vec![b'x'; begun];
    if http2 {
        let mut raw = connect(scene)?;
        let mut fields = usual(HOST, "/service/upload");
        fields[0].1 = "POST";
        raw.wire.send(frame(HEADERS, END_HEADERS, 1, &block(&fields)))?;
        // As much as the window takes before it is opened.
        for part in body[..60 * 1024].chunks(15 * 1024) {
            raw.wire.send(frame(DATA, 0, 1, part))?;
        }
        return Ok(Deaf::H2 { _open: raw });
    }
    let mut wire = Wire::clear(scene.town.endpoints.http)?;
    wire.send(format!(
        "POST /service/upload HTTP/1.1\r\nHost: {HOST}\r\nContent-Length: 100000000\r\n\r\n"
    ))?;
    wire.send(&body)?;
    Ok(Deaf::H1 { _open: wire })
}

#[test]
fn compressed_answers_without_a_window_cost_little() -> Result<()> {
    for (coding, most) in [("gzip", 330), ("zstd", 270), ("br", 490)] {
        is_at_most(most, &format!("/static/script.js?{coding}"), How::NoWindow(20))?;
    }
    Ok(())
}

#[test]
fn a_compressed_answer_over_http1_costs_little() -> Result<()> {
    for (coding, most) in [("gzip", 440), ("zstd", 320), ("br", 640)] {
        is_at_most(most, &format!("/static/script.js?{coding}"), How::Stuck1)?;
    }
    Ok(())
}

/// Further ones are sent as they are; and when one ends, there is room for another.
#[test]
fn an_address_has_so_many_compressed_answers() -> Result<()> {
    let change = |stage: &Stage, node: &mut Node, _: &mut Directory| {
        let root = stage.dir("web")?;
        write_script(&root)?;
        node.more.push(("limits".to_owned(), "{exempt: []}".to_owned()));
        let locations = format!(
            "locations:\n  - prefix: /static/\n    static: {{root: {}}}\n  - include: carbonio\n",
            root.display()
        );
        with_locations(stage, node, &locations)
    };
    play_recorded_with(change, |scene, _| {
        let stalled = || -> Result<(Wire, bool)> {
            let mut wire = Wire::clear(scene.town.endpoints.http)?;
            ask(&mut wire, "/static/script.js?zstd")?;
            let got = head(&mut wire)?;
            ensure!(got.contains("vary: accept-encoding"), "{got}");
            Ok((wire, got.contains("content-encoding: zstd")))
        };
        let mut all: Vec<_> = (0..2 * PACKED_PER_ADDRESS).map(|_| stalled()).collect::<Result<_>>()?;
        let packed: Vec<bool> = all.iter().map(|(_, packed)| *packed).collect();
        ensure!(
            packed.iter().filter(|&&packed| packed).count() == PACKED_PER_ADDRESS,
            "{packed:?}"
        );
        ensure!(packed.starts_with(&[true; PACKED_PER_ADDRESS]), "{packed:?}");
        drop(all.remove(0));
        until("an encoder to be let go", SOON, || Ok(stalled()?.1.then_some(())))
    })
}

/// Twenty answers on each of five connections, and how many of the connections are still open in the end.
fn stalled(scene: &Scene, recorder: &Recorder) -> Result<usize> {
    let mut clients: Vec<Raw> = Vec::new();
    for _ in 0..5 {
        let mut raw = connect_with(scene, &NO_WINDOW)?;
        for _ in 0..20 {
            raw.ask("/service/big", &[], true)?;
        }
        clients.push(raw);
    }
    until("connections to be counted", SOON, || {
        let _seen = recorder.take();
        let log = std::fs::read_to_string(scene.portico.dir().join("output.log"))?;
        Ok(log.contains("whose clients do not read their answers").then_some(()))
    })?;
    // All have come that will, and gone that must.
    scene.portico.rss_at_rest_kib()?;
    let mut open = 0;
    for raw in &mut clients {
        raw.wire.patience(Duration::from_secs(1))?;
        // All that there is to hear is heads; then comes the end, or nothing.
        while raw.frame().is_some() {}
        open += usize::from(raw.wire.is_silent(Duration::from_millis(500))?);
    }
    let mut honest = connect(scene)?;
    let stream = honest.ask("/service/fine", &[], true)?;
    ensure!(honest.is_answered(stream)?, "an honest request is not answered");
    Ok(open)
}

#[test]
fn unread_answers_are_limited() -> Result<()> {
    for limits in [
        "{unread_answers: 45}",
        "{unread_answers: 0, unread_answers_per_address: 45, exempt: []}",
    ] {
        let change = |_: &Stage, node: &mut Node, _: &mut Directory| {
            node.more.push(("limits".to_owned(), limits.to_owned()));
            Ok(())
        };
        play_recorded_with(change, |scene, recorder| {
            let open = stalled(scene, recorder)?;
            ensure!((1..=2).contains(&open), "{limits}: {open} connections are open");
            Ok(())
        })?;
    }
    Ok(())
}
