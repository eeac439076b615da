//! What is refused before anybody knows who asks leaves a trace: address and reason, found by fail2ban, and so many for
//! an address.

use std::io::{Read, Write};
use std::net::{IpAddr, Ipv4Addr, SocketAddrV4, TcpStream};
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use portico_tests::config::{Directory, Node};
use portico_tests::town::{Town, people};
use portico_tests::until;
use portico_tests::wire::Wire;

use crate::scene::{Scene, play_with};
use crate::smuggling::connect;
use crate::web::HOST;

/// The token of the admin API.
const TOKEN: &str = "0123456789abcdef-token";
/// Who sends odd requests.
const SCANNER: IpAddr = IpAddr::V4(Ipv4Addr::new(127, 0, 0, 78));
/// As many as an address may leave records of at once.
const SHARE: usize = 10;

/// Requests, and the reason of their record.
const REQUESTS: [(&str, &str); 10] = [
    (
        "GET / HTTP/1.1\nHost: a\n\n",
        "a request head with bad line ends or control characters",
    ),
    (
        "GET / HTTP/1.1\r\nHost: a\r\n b\r\n\r\n",
        "a request head with bad line ends or control characters",
    ),
    (
        "GET / HTTP/1.1\r\nHost: LONG\r\n\r\n",
        "a request head that is too long",
    ),
    (
        "GET / HTTP/1.1\r\nHost: a\r\nX\x01: a\r\n\r\n",
        "a request head that cannot be read",
    ),
    (
        "GET / HTTP/1.1\r\nHost: a\r\nContent-Length: x\r\n\r\n",
        "a request head that cannot be read",
    ),
    (
        "GET http://b@a/ HTTP/1.1\r\nHost: a\r\n\r\n",
        "a request target that is a bad URL",
    ),
    (
        "GET a HTTP/1.1\r\nHost: a\r\n\r\n",
        "a request target that is a bad URL",
    ),
    (
        "GET ..\\..\\x HTTP/1.1\r\nHost: a\r\n\r\n",
        "a request target that is a bad URL",
    ),
    ("CONNECT a:443 HTTP/1.1\r\nHost: a\r\n\r\n", "CONNECT"),
    ("GET / HTTP/1.1\r\nHost: a\r\n\r\n", "clear text on a port with TLS"),
];

/// The same in HTTP/2, where most of it is refused by a reset: fields, and the reason.
const STREAMS: [(&[(&str, &str)], &str); 8] = [
    (&[(":method", "CONNECT"), (":authority", "a:443")], "CONNECT"),
    (&with_host("a@mail.a.example"), UNREADABLE),
    (&with_host("a/b"), UNREADABLE),
    (&[GET[0], GET[1], GET[2]], UNREADABLE),
    (&[GET[0], GET[1], GET[2], A_HOST, ("host", "b")], UNREADABLE),
    (
        &[
            GET[0],
            GET[1],
            GET[2],
            A_HOST,
            ("content-length", "1"),
            ("content-length", "2"),
        ],
        UNREADABLE,
    ),
    (&[GET[0], GET[1], GET[2], A_HOST, ("connection", "close")], UNREADABLE),
    // This ends the whole connection.
    (&[GET[0], GET[1], GET[2], A_HOST, ("X-UPPER", "a")], UNREADABLE),
];
const GET: [(&str, &str); 3] = [(":method", "GET"), (":scheme", "https"), (":path", "/")];
const A_HOST: (&str, &str) = (":authority", HOST);
const UNREADABLE: &str = "a request head that cannot be read";

const fn with_host(host: &str) -> [(&str, &str); 4] {
    [GET[0], GET[1], GET[2], (":authority", host)]
}

fn with_admin(town: &Town, node: &mut Node, _: &mut Directory) -> Result<()> {
    let file = town.locations.with_file_name("admin.token");
    std::fs::write(&file, TOKEN)?;
    node.admin.push(format!("http: \"{}\"", town.admin));
    node.admin
        .push(format!("token_file: {}", portico_tests::config::quote(&file)));
    Ok(())
}

#[test]
fn refused_requests_leave_a_trace() -> Result<()> {
    play_with(people(), with_admin, |scene| {
        for (request, why) in REQUESTS {
            let endpoint = match why.contains("TLS") {
                true => scene.town.endpoints.https,
                false => scene.town.endpoints.http,
            };
            let mut wire = Wire::clear_from(SCANNER, endpoint)?;
            wire.send(request.replace("LONG", &"x".repeat(40_000)))?;
            let client = wire.local()?.to_string();
            let answer = wire.rest().unwrap_or_default();
            ensure!(!answer.starts_with(b"HTTP/1.1 2"), "{request:?}");
            let record = scene.portico.record(&[("event", "refused"), ("client", &client)])?;
            ensure!(
                record["why"] == why && record["proto"] == "http",
                "{request:?}: {record}"
            );
            ensure!(record["listener"] == endpoint.to_string().as_str(), "{record}");
        }
        in_http2_too(scene)?;
        for scheme in ["Bearer", "Basic"] {
            let answer = admin(scene.town.admin, "/v1/status", &format!("{scheme} wrong"))?;
            ensure!(answer.starts_with("HTTP/1.1 401 "), "{answer}");
        }
        ensure!(admin(scene.town.admin, "/v1/status", &format!("bearer {TOKEN}"))?.starts_with("HTTP/1.1 200 "));
        let guess = [
            ("event", "admin"),
            ("outcome", "bad_credentials"),
            ("listener", "admin.http"),
        ];
        scene.portico.record(&guess)?;
        until("both guesses", Duration::from_secs(10), || {
            Ok((scene.portico.count(&guess)? == 2).then_some(()))
        })?;
        a_flood_is_a_few_records(scene)?;
        ensure!(found(scene, "portico")? == ["127.0.0.1"; 2], "guesses");
        let refused = found(scene, "portico-refused")?;
        ensure!(refused.len() == REQUESTS.len() + STREAMS.len() + SHARE, "{refused:?}");
        Ok(())
    })
}

/// One record for each, with the address; and none for a request that is good.
fn in_http2_too(scene: &Scene) -> Result<()> {
    let mut good = connect(scene)?;
    let stream = good.ask("/", &[], true)?;
    ensure!(good.is_answered(stream)?, "a good request");
    for (fields, why) in STREAMS {
        let mut raw = connect(scene)?;
        let client = raw.wire.local()?.to_string();
        let _refused = raw.exchange(fields, &[]);
        let record = scene.portico.record(&[("event", "refused"), ("client", &client)])?;
        ensure!(record["why"] == why, "{fields:?}: {record}");
        ensure!(
            record["listener"] == scene.town.endpoints.https.to_string().as_str(),
            "{record}"
        );
    }
    let client = good.wire.local()?.to_string();
    ensure!(scene.portico.count(&[("event", "refused"), ("client", &client)])? == 0);
    Ok(())
}

/// From another address, which has a share of its own.
fn a_flood_is_a_few_records(scene: &Scene) -> Result<()> {
    let flooder = IpAddr::V4(Ipv4Addr::new(127, 0, 0, 79));
    for _ in 0..100 {
        let mut wire = Wire::clear_from(flooder, scene.town.endpoints.http)?;
        wire.send("GET / HTTP/1.1\n\n")?;
        wire.rest()?;
    }
    let metric = format!(
        "portico_requests_refused_total{{listener=\"{}\",reason=\"bad_head\"}} 102",
        scene.town.endpoints.http
    );
    let metrics = admin(scene.town.admin, "/metrics", "none")?;
    ensure!(metrics.contains(&metric), "{metrics}");
    let from = format!("\"client\":\"{flooder}:");
    let records = || -> Result<usize> {
        let log = std::fs::read_to_string(scene.portico.dir().join("audit.log"))?;
        Ok(log.lines().filter(|line| line.contains(&from)).count())
    };
    until("the records", Duration::from_secs(10), || {
        Ok((records()? == SHARE).then_some(()))
    })
}

/// The addresses that a filter of fail2ban finds in the audit log.
fn found(scene: &Scene, filter: &str) -> Result<Vec<String>> {
    let log = scene.portico.dir().join("audit.log");
    let file = format!("../conf/fail2ban/filter.d/{filter}.conf");
    let file = Path::new(env!("CARGO_MANIFEST_DIR")).join(file);
    let (log, file) = (log.to_str().context("path")?, file.to_str().context("path")?);
    let addresses = scene.run("fail2ban-regex", &["--out", "ip", log, file])?;
    Ok(addresses.split_whitespace().map(str::to_owned).collect())
}

fn admin(to: SocketAddrV4, path: &str, authorization: &str) -> Result<String> {
    ask(TcpStream::connect(to)?, path, authorization)
}

fn ask(mut stream: TcpStream, path: &str, authorization: &str) -> Result<String> {
    let head = format!(
        "GET {path} HTTP/1.1\r\nHost: 127.0.0.1\r\nAuthorization: {authorization}\r\nConnection: close\r\n\r\n"
    );
    stream.write_all(head.as_bytes())?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    Ok(answer)
}

/// 64 idle connections shut out everybody for 10 seconds, balancers too.
#[test]
fn idle_connections_do_not_shut_the_admin_port() -> Result<()> {
    play_with(people(), with_admin, |scene| {
        let (to, token) = (scene.town.admin, format!("Bearer {TOKEN}"));
        let idle: Vec<TcpStream> = (0..80).map(|_| TcpStream::connect(to)).collect::<Result<_, _>>()?;
        let begun = std::time::Instant::now();
        for path in ["/readyz", "/healthz", "/metrics"] {
            let answer = admin(to, path, "none")?;
            ensure!(answer.starts_with("HTTP/1.1 200 "), "{path}: {answer}");
        }
        let answer = admin(to, "/v1/status", &token)?;
        ensure!(answer.starts_with("HTTP/1.1 503 "), "{answer}");
        // Another address has a share of its own.
        let answer = ask(from_another_address(to)?, "/v1/status", &token)?;
        ensure!(answer.starts_with("HTTP/1.1 200 "), "{answer}");
        ensure!(begun.elapsed() < Duration::from_secs(5), "{:?}", begun.elapsed());
        drop(idle);
        until("a seat", Duration::from_secs(10), || {
            Ok(admin(to, "/v1/status", &token)?
                .starts_with("HTTP/1.1 200 ")
                .then_some(()))
        })
    })
}

fn from_another_address(to: SocketAddrV4) -> Result<TcpStream> {
    let socket = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None)?;
    socket.bind(&SocketAddrV4::new(Ipv4Addr::new(127, 0, 0, 80), 0).into())?;
    socket.connect(&to.into())?;
    Ok(socket.into())
}
