//! Paths that two parsers may read differently: what a real Jetty makes of a path is what the table of locations made
//! of it, or the request is refused.

use std::net::Ipv4Addr;

use anyhow::{Context, Result, ensure};
use portico_tests::config::quote;
use portico_tests::jetty::Jetty;
use portico_tests::table::rows;
use portico_tests::wire::Wire;

use crate::scene::{Scene, play_before};

const HOST: &str = "mail.a.example";
/// One location for each servlet of [`Jetty`]; that of the administrators is closed, as in Carbonio's table.
const LOCATIONS: &str = "locations:
- {prefix: /service/admin, answer: {status: 404}, answer_headers: {X-Location: admin}}
- {exact: /old/admin, answer: {status: 404}, answer_headers: {X-Location: admin}}
- {prefix: /old/, mailbox: web, path: /service/, answer_headers: {X-Location: service}}
- {prefix: /service/extension, mailbox: web, answer_headers: {X-Location: extension}}
- {prefix: /service/, mailbox: web, answer_headers: {X-Location: service}}
- {prefix: /home, mailbox: web, answer_headers: {X-Location: home}}
- {prefix: /, mailbox: web, answer_headers: {X-Location: root}}
";

/// What became of a path.
#[derive(Debug)]
struct Got {
    status: String,
    /// The location that Portico chose, if it did not refuse.
    location: Option<String>,
    /// The servlet that Jetty chose, if it was asked.
    servlet: Option<String>,
}

/// A client that keeps its connection while it may.
struct Client<'a> {
    scene: &'a Scene<'a>,
    wire: Option<Wire>,
}

impl Client<'_> {
    fn ask(&mut self, path: &str) -> Result<Got> {
        let mut wire = match self.wire.take() {
            Some(wire) => wire,
            None => Wire::clear(self.scene.town.endpoints.http)?,
        };
        wire.send(format!("GET {path} HTTP/1.1\r\nHost: {HOST}\r\n\r\n"))?;
        let status = wire.line()?.split(' ').nth(1).unwrap_or_default().to_owned();
        let mut got = Got {
            status,
            location: None,
            servlet: None,
        };
        let (mut length, mut closes) = (0, false);
        loop {
            let line = wire.line()?;
            let Some((name, value)) = line.split_once(": ") else {
                break;
            };
            match name.to_ascii_lowercase().as_str() {
                "x-location" => got.location = Some(value.to_owned()),
                "x-servlet" => got.servlet = Some(value.to_owned()),
                "content-length" => length = value.parse()?,
                "connection" => closes = value == "close",
                _ => {}
            }
        }
        wire.bytes(length)?;
        self.wire = (!closes).then_some(wire);
        Ok(got)
    }

    /// Both have read the path alike, or it was refused.
    fn check(&mut self, path: &str) -> Result<Got> {
        let got = self.ask(path).with_context(|| path.to_owned())?;
        let agree = match (&got.location, &got.servlet) {
            (None, None) => matches!(got.status.as_str(), "400" | "403"),
            (Some(location), Some(servlet)) => location == servlet && servlet != "admin",
            // Closed here, or an answer of Jetty without a servlet.
            (Some(location), None) => location == "admin" || got.status != "200",
            (None, Some(_)) => false,
        };
        ensure!(agree, "{path}: {got:?}");
        Ok(got)
    }
}

/// Ways to write a segment, from which paths are made.
const SEGMENTS: [&str; 18] = [
    "service",
    "admin",
    "extension",
    "home",
    "x",
    "..",
    ".",
    "",
    "%2e%2e",
    "..;a",
    ";a",
    "..%2f",
    "%5c..",
    "service;a",
    "%61dmin",
    "%u0061dmin",
    "%c0%ae%c0%ae",
    "%252e%252e",
];

/// All paths of three segments, and some longer ones: always the same.
fn spellings() -> Vec<String> {
    let mut all = Vec::new();
    for first in SEGMENTS {
        for second in SEGMENTS {
            for third in SEGMENTS {
                all.push(format!("/{first}/{second}/{third}"));
            }
        }
    }
    // Knuth's generator is random enough to stir them.
    let mut state = 1_u64;
    let mut draw = || {
        state = state
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        SEGMENTS[(state >> 33) as usize % SEGMENTS.len()]
    };
    for length in [5, 6, 7] {
        for _ in 0..700 {
            let segments: Vec<&str> = (0..length).map(|_| draw()).collect();
            all.push(format!("/service/{}", segments.join("/")));
        }
    }
    all
}

/// Paths, and the servlet of Jetty that serves them.
const SERVED: &str = "
    /service/soap/SearchRequest               | service
    /service/home/~/?fmt=zip&list=1%          | service
    /service/a%20b/%e4/%c3%a4/x               | service
    /service/a%2fb                            | service
    /service//soap//x                         | service
    /service/x/../y                           | service
    /service/%2561dmin/x                      | service
    /service/upload;jsessionid=node01?fmt=raw | service
    /service/%61dministrator                  | service
    /service/extension/x                      | extension
    /service/extensio%6e/../extension/./x     | extension
    /home/nobody@a.example/inbox              | home
    /home/DOM%5cbob/x                         | home
    /homes                                    | root
    /old/x                                    | service
    /old/a%3bx                                | service
    /old//admin%3bx                           | service
    /old/./admin%3b%2fx                       | service
    /x/service/admin                          | root
";

/// Paths that are refused.
const REFUSED: [&str; 17] = [
    "/service/%u0061dmin/x",
    "/x/%u002e%u002e/service/admin/x",
    "/service//../admin/soap",
    "/service/admin//..//../x",
    "/service/extension//../../admin/q",
    "/service/x/;/../../admin/q",
    "/service;x/admin/q",
    "/service/..;/service/admin",
    "/service/x%2f..%2f../home/y",
    "/service/..%5cadmin",
    "/home/..%5c..%5cservice/admin",
    "/service/%c0%ae%c0%ae/service/admin/x",
    "/service/%e0%80%ae./admin/x",
    "/service/admin%",
    "/service/%6",
    "/%%61dmin",
    "//service/soap",
];

fn play(test: impl FnOnce(&mut Client) -> Result<()>) -> Result<()> {
    play_before(
        Ipv4Addr::new(127, 0, 0, 6),
        Jetty::start,
        |stage, node, _| {
            let locations = stage.file("locations.yaml", LOCATIONS)?;
            node.web = vec![("locations".to_owned(), quote(&locations))];
            Ok(())
        },
        |scene, _| test(&mut Client { scene, wire: None }),
    )
}

#[test]
fn jetty_reads_every_path_as_portico_does() -> Result<()> {
    play(|client| {
        for [path, servlet] in rows(SERVED) {
            let got = client.check(path)?;
            ensure!(got.servlet.as_deref() == Some(servlet), "{path}: {got:?}");
        }
        for path in REFUSED {
            let got = client.check(path)?;
            ensure!(got.status == "400", "{path}: {got:?}");
        }
        let mut served = 0;
        for path in spellings() {
            served += usize::from(client.check(&path)?.servlet.is_some());
        }
        ensure!(served > 1000, "hardly anything was served: {served}");
        Ok(())
    })
}
