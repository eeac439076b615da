//! Clients that ask for much and read nothing: what waits for them does not fill the memory.

use std::time::Duration;

use anyhow::{Result, ensure};
use portico_tests::Stage;
use portico_tests::config::{Directory, Node};
use portico_tests::h2::Raw;
use portico_tests::until;
use portico_tests::wire::Wire;

use crate::scene::Scene;
use crate::smuggling::{HOST, Recorder, connect, connect_with, play_recorded_with};

/// Unread answers before the measuring begins.
const FIRST: usize = 100;
/// Answers among which the growth of the memory is shared: an allocator grows by steps of MiB.
const MEASURED: usize = 300;
const SOON: Duration = Duration::from_secs(30);
/// A file of the web clients that is larger than every buffer on the way.
const FILE: usize = 64 << 20;
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
    fn client(self, scene: &Scene, path: &str) -> Result<Deaf> {
        let (settings, streams) = match self {
            Self::Stuck1 => {
                let mut wire = Wire::clear(scene.town.endpoints.http)?;
                wire.send(format!("GET {path} HTTP/1.1\r\nHost: {HOST}\r\n\r\n"))?;
                let line = wire.line()?;
                ensure!(line.starts_with("HTTP/1.1 200"), "{line}");
                return Ok(Deaf::H1 { _open: wire });
            }
            Self::NoWindow(streams) => (&NO_WINDOW, streams),
            Self::Stuck => (&ALL_WINDOW, 1),
        };
        let mut raw = connect_with(scene, settings)?;
        for _ in 0..streams {
            let stream = raw.ask(path, &[], true)?;
            ensure!(raw.is_answered(stream)?, "{path} is not answered");
        }
        Ok(Deaf::H2 { _open: raw })
    }

    fn answers(self) -> usize {
        if let Self::NoWindow(streams) = self { streams } else { 1 }
    }
}

/// What memory one unread answer costs, in KiB, of [`MEASURED`]. The clients stay: what they let go would be
/// used for others.
fn cost(scene: &Scene, path: &str, how: How) -> Result<u64> {
    let mut clients = Vec::new();
    // What the first have brought in is there already.
    for _ in 0..FIRST / how.answers() {
        clients.push(how.client(scene, path)?);
    }
    let before = scene.portico.rss_at_rest_kib()?;
    for _ in 0..MEASURED / how.answers() {
        clients.push(how.client(scene, path)?);
    }
    let grown = scene.portico.rss_at_rest_kib()?.saturating_sub(before);
    let mut honest = connect(scene)?;
    let stream = honest.ask("/service/fine", &[], true)?;
    ensure!(honest.is_answered(stream)?, "an honest request is not answered");
    Ok(grown / MEASURED as u64)
}

/// A file to be asked for, and no limit but that of each connection.
fn with_files(stage: &Stage, node: &mut Node, _: &mut Directory) -> Result<()> {
    let root = stage.dir("web")?;
    std::fs::write(root.join("big"), vec![b'x'; FILE])?;
    let locations = format!(
        "locations:\n  - prefix: /static/\n    static: {{root: {}}}\n  - include: carbonio\n",
        root.display()
    );
    let file = stage.file("locations.yaml", locations)?;
    node.web = vec![("locations".to_owned(), format!("\"{}\"", file.display()))];
    Ok(())
}

#[test]
fn an_unread_answer_costs_little() -> Result<()> {
    // What docs/threat-model.md says, and some for the machine. Each has a Portico of its own: what others have let
    // go would be used again, and hide the cost.
    for (name, path, how, most) in [
        ("a file, no window", "/static/big", How::NoWindow(20), 155),
        ("a file, nothing is taken", "/static/big", How::Stuck, 135),
        ("a server's answer, no window", "/service/big", How::NoWindow(20), 140),
        ("a server's answer, nothing is taken", "/service/big", How::Stuck, 210),
        ("a server's answer over HTTP/1", "/service/big", How::Stuck1, 170),
    ] {
        play_recorded_with(with_files, |scene, _| {
            let cost = cost(scene, path, how)?;
            println!("{name}: {cost} KiB");
            ensure!(cost < most, "{name}: {cost} KiB");
            Ok(())
        })?;
    }
    Ok(())
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
