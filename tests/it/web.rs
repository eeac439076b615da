//! The web listeners: each request goes to its user's mailbox server, unharmed, and says truthfully where it came from.

use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use openssl::base64::encode_block;
use portico_tests::town::people;
use portico_tests::until;
use portico_tests::web::{auth_token, file_sha256, pattern_file, pattern_sha256};
use serde_json::Value;

use crate::scene::{Scene, play, play_with, soap_login};

pub(crate) const HOST: &str = "mail.a.example";
const BIG: u64 = 100 * 1024 * 1024;
/// How far memory may move while 100 MB pass.
const FLAT_KIB: u64 = 32 * 1024;

/// What curl got.
pub(crate) struct Answer {
    pub(crate) head: String,
    pub(crate) body: PathBuf,
}

impl Answer {
    pub(crate) fn status(&self) -> &str {
        let last = self.head.lines().rfind(|l| l.starts_with("HTTP/")).unwrap_or_default();
        last.split(' ').nth(1).unwrap_or_default()
    }

    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        let fields = self.head.lines().filter_map(|l| l.split_once(':'));
        fields
            .filter(|(n, _)| n.eq_ignore_ascii_case(name))
            .map(|(_, value)| value.trim())
            .next_back()
    }

    pub(crate) fn text(&self) -> Result<String> {
        Ok(String::from_utf8_lossy(&std::fs::read(&self.body)?).into_owned())
    }

    pub(crate) fn echo(&self) -> Result<Value> {
        let text = self.text()?;
        serde_json::from_str(&text).with_context(|| format!("{}{text}", self.head))
    }
}

/// The values of a header, as the mailbox server saw it.
pub(crate) fn seen<'a>(echo: &'a Value, name: &str) -> Vec<&'a str> {
    let headers = echo["headers"].as_array().map(Vec::as_slice).unwrap_or_default();
    let pairs = headers.iter().filter_map(|h| Some((h[0].as_str()?, h[1].as_str()?)));
    pairs
        .filter(|(n, _)| n.eq_ignore_ascii_case(name))
        .map(|(_, value)| value)
        .collect()
}

impl Scene<'_> {
    /// Asks `https://mail.a.example` for a path, with more arguments for curl.
    pub(crate) fn https(&self, path: &str, args: &[&str]) -> Result<Answer> {
        let endpoint = self.town.endpoints.https;
        let resolve = format!("{HOST}:{}:127.0.0.1", endpoint.port());
        let ca = self.town.ca.file();
        let always = [
            "--resolve",
            &resolve,
            "--cacert",
            ca.to_str().context("path")?,
            "--max-time",
            "120",
        ];
        self.curl(
            &format!("https://{HOST}:{}{path}", endpoint.port()),
            &[&always[..], args].concat(),
        )
    }

    pub(crate) fn curl(&self, url: &str, args: &[&str]) -> Result<Answer> {
        let (head, body) = (self.stage.path().join("head"), self.stage.path().join("body"));
        let mut curl = Command::new("curl");
        curl.args(["-sS", "-g", "--path-as-is", "-D"])
            .arg(&head)
            .arg("-o")
            .arg(&body)
            .args(args)
            .arg(url);
        let _old = (std::fs::write(&head, ""), std::fs::write(&body, ""));
        let out = curl.output().context("curl: try scripts/install")?;
        ensure!(
            out.status.success(),
            "curl {url} {args:?}: {}",
            String::from_utf8_lossy(&out.stderr)
        );
        Ok(Answer {
            head: std::fs::read_to_string(&head)?,
            body,
        })
    }

    fn store_of(&self, path: &str, args: &[&str]) -> Result<String> {
        let answer = self.https(path, args)?;
        let echo = answer.echo().with_context(|| format!("{path} {args:?}"))?;
        Ok(echo["server"].as_str().context("no server")?.to_owned())
    }
}

#[test]
fn clear_text_is_redirected_with_path_and_query() -> Result<()> {
    play(|scene| {
        let (http, https) = (scene.town.endpoints.http.port(), scene.town.endpoints.https.port());
        for method in ["GET", "POST"] {
            let resolve = format!("{HOST}:{http}:127.0.0.1");
            let url = format!("http://{HOST}:{http}/some/path%20x?a=1&b=%2F");
            let answer = scene.curl(&url, &["--resolve", &resolve, "-X", method])?;
            assert_eq!(answer.status(), "302");
            let expected = format!("https://{HOST}:{https}/some/path%20x?a=1&b=%2F");
            assert_eq!(answer.header("location"), Some(expected.as_str()));
        }
        assert_eq!(
            scene.town.stores[0].web.request_count() + scene.town.stores[1].web.request_count(),
            0
        );
        Ok(())
    })
}

#[test]
fn in_https_mode_nothing_is_served_in_clear_text() -> Result<()> {
    play_with(
        people(),
        |_, node, directory| {
            // In this mode there is no clear-text listener, so the node file names none.
            node.listeners.retain(|l| {
                l.serve != portico_tests::config::Serve::Web || l.tls == portico_tests::config::Tls::Implicit
            });
            directory.config("zimbraReverseProxyMailMode", "https");
            Ok(())
        },
        |scene| {
            assert_eq!(scene.https("/any", &[])?.status(), "200");
            let clear = scene.curl(
                &format!("http://127.0.0.1:{}/any", scene.town.endpoints.https.port()),
                &[],
            );
            ensure!(
                clear.is_err() || clear.is_ok_and(|a| a.status() == "400"),
                "clear text was served on the TLS port"
            );
            Ok(())
        },
    )
}

#[test]
fn a_domain_admits_the_networks_that_it_names() -> Result<()> {
    let elsewhere = |_: &_, _: &mut _, directory: &mut portico_tests::config::Directory| {
        let entry = directory.domain("b.example");
        entry.insert("zimbraDomainAllowedIPs".into(), ["10.0.0.0/8"].into());
        Ok(())
    };
    play_with(people(), elsewhere, |scene| {
        let carol = scene.town.person("carol")?.clone();
        let cookie = format!("Cookie: ZM_AUTH_TOKEN={}", auth_token(&carol.id));
        let asked = scene.town.stores[0].web.request_count();
        for (path, args) in [
            ("/home/carol@b.example/x", vec![]),
            ("/service/soap/SearchRequest", vec!["-H", cookie.as_str()]),
        ] {
            assert_eq!(scene.https(path, &args)?.status(), "403", "{path}");
        }
        assert_eq!(scene.town.stores[0].web.request_count(), asked, "the server was asked");
        assert_eq!(scene.store_of("/home/alice@a.example/x", &[])?, "store1");
        // By mail it looks like any login that fails, and the log says why.
        let answer = scene
            .imaps()?
            .imap(&format!("a1 LOGIN {} {}", carol.name, carol.password()))?;
        ensure!(
            answer
                .last()
                .is_some_and(|l| l.starts_with("a1 NO [AUTHENTICATIONFAILED]")),
            "{answer:?}"
        );
        scene
            .portico
            .record(&[("event", "login"), ("user", &carol.name), ("outcome", "no_route")])
            .map(drop)
    })
}

#[test]
fn each_request_goes_to_its_users_server() -> Result<()> {
    play(|scene| {
        let alice = scene.town.person("alice")?.clone();
        let bob = scene.town.person("bob")?.clone();
        let cookie = |id: &str| format!("Cookie: a=b; ZM_AUTH_TOKEN={}; c=d", auth_token(id));
        let (alice_cookie, bob_cookie) = (cookie(&alice.id), cookie(&bob.id));
        let unpadded = |text: String| {
            encode_block(text.as_bytes())
                .trim_end_matches('=')
                .replace('+', "-")
                .replace('/', "_")
        };
        let jwt = format!("e30.{}.c2ln", unpadded(format!("{{\"exp\":1,\"sub\":\"{}\"}}", bob.id)));
        let bearer = format!("Authorization: Bearer {jwt}");
        let basic = format!("Authorization: Basic {}", encode_block(b"bob@a.example:bob-c4n4ry-two"));
        let token = auth_token(&bob.id);
        let cases: Vec<(String, Vec<&str>, &str)> = vec![
            ("/service/soap/SearchRequest".into(), vec![&alice_cookie], "store1"),
            ("/service/soap/SearchRequest".into(), vec![&bob_cookie], "store2"),
            (format!("/service/x?zauthtoken={token}"), vec![], "store2"),
            ("/home/bob@a.example/calendar".into(), vec![], "store2"),
            ("/home/~bob/inbox".into(), vec![], "store2"),
            ("/home/alice@a.example/x".into(), vec![], "store1"),
            ("/service/home/bob/x".into(), vec![], "store2"),
            ("/service/home/~/?auth=co".into(), vec![&bob_cookie], "store2"),
            ("/home/bob".into(), vec![&alice_cookie], "store1"),
            ("/home/bob@a.example/x".into(), vec![&alice_cookie], "store2"),
            ("/dav/bob@a.example/Calendar/".into(), vec![&basic], "store2"),
            ("/principals/users/bob@a.example/".into(), vec![&basic], "store2"),
            ("/Microsoft-Server-ActiveSync?Cmd=Sync".into(), vec![&basic], "store2"),
            ("/ews/Exchange.asmx".into(), vec![&basic], "store2"),
            ("/service/x".into(), vec![&bearer], "store2"),
            (format!("/service/x?zjwt={jwt}"), vec![], "store2"),
        ];
        for (path, headers, server) in cases {
            let args: Vec<&str> = headers.iter().flat_map(|h| ["-H", h]).collect();
            assert_eq!(scene.store_of(&path, &args)?, server, "{path} {headers:?}");
        }
        // Without password this one is refused, by the right server: ask for the refusal's count.
        let before = scene.town.stores[1].web.request_count();
        scene.https("/Microsoft-Server-ActiveSync?Cmd=Sync&User=bob@a.example", &[])?;
        assert_eq!(scene.town.stores[1].web.request_count(), before + 1);
        Ok(())
    })
}

#[test]
fn unauthenticated_requests_go_to_a_healthy_server() -> Result<()> {
    play(|scene| {
        for n in 0..4 {
            assert_eq!(scene.https(&format!("/anything/{n}"), &[])?.status(), "200");
        }
        scene.town.stores[0].web.stop();
        for n in 0..10 {
            let from = format!("127.0.0.{}", 20 + n);
            assert_eq!(scene.store_of("/anything", &["--interface", &from])?, "store2");
        }
        let cookie = format!("Cookie: ZM_AUTH_TOKEN={}", auth_token(&scene.town.person("alice")?.id));
        let gone = scene.https("/service/x", &["-H", &cookie])?;
        ensure!(
            matches!(gone.status(), "502" | "503"),
            "Alice's server is down: {}",
            gone.head
        );
        scene.town.stores[0].web.start_again()?;
        until("Alice's server to serve again", Duration::from_secs(20), || {
            Ok((scene.https("/service/x", &["-H", &cookie])?.status() == "200").then_some(()))
        })
    })
}

#[test]
fn forwarded_headers_have_one_clean_value() -> Result<()> {
    play(|scene| {
        let lies = [
            "-H",
            "X-Forwarded-For: 198.51.100.66",
            "-H",
            "x-forwarded-for: 198.51.100.67, 10.0.0.1",
            "-H",
            "X-Forwarded-Proto: gopher",
            "-H",
            "X-Forwarded-Host: evil.example",
            "-H",
            "X-Forwarded-Port: 1",
        ];
        for version in ["--http1.1", "--http2"] {
            let args = [&["--interface", "127.0.0.77", version], &lies[..]].concat();
            let echo = scene.https("/x", &args)?.echo()?;
            assert_eq!(seen(&echo, "X-Forwarded-For"), ["127.0.0.77"], "{version} {echo}");
            assert_eq!(seen(&echo, "X-Forwarded-Proto"), ["https"], "{version}");
            let host = format!("{HOST}:{}", scene.town.endpoints.https.port());
            let forwarded = seen(&echo, "X-Forwarded-Host");
            ensure!(
                forwarded == [host.as_str()] || forwarded == [HOST],
                "{version} {forwarded:?}"
            );
            assert_eq!(seen(&echo, "Host"), [host.as_str()], "{version}");
            ensure!(!echo.to_string().contains("198.51.100.6"), "{echo}");
        }
        Ok(())
    })
}

#[test]
fn big_bodies_stream() -> Result<()> {
    play(|scene| {
        scene.https("/warm/bytes-1000000", &[])?;
        let before = scene.portico.rss_at_rest_kib()?;
        let upload = scene.stage.path().join("upload");
        pattern_file(&upload, BIG)?;
        let file = upload.to_str().context("path")?;
        for version in ["--http1.1", "--http2"] {
            let down = scene.https(&format!("/service/x/bytes-{BIG}"), &[version])?;
            assert_eq!(down.status(), "200");
            assert_eq!(file_sha256(&down.body)?, pattern_sha256(BIG), "{version}");
            let up = scene.https("/service/upload", &[version, "-T", file])?.echo()?;
            assert_eq!(up["body_bytes"], BIG, "{version}");
            assert_eq!(up["body_sha256"], pattern_sha256(BIG), "{version}");
        }
        let chunked = scene.https(
            "/service/upload",
            &["--http1.1", "-H", "Transfer-Encoding: chunked", "-T", file],
        )?;
        assert_eq!(chunked.echo()?["body_sha256"], pattern_sha256(BIG));
        let grown = scene.portico.rss_kib()?.saturating_sub(before);
        ensure!(grown < FLAT_KIB, "memory has grown by {grown} KiB");
        Ok(())
    })
}

#[test]
fn websockets_pass() -> Result<()> {
    play(|scene| {
        let tls = scene.town.ca.connector(&["http/1.1"])?;
        let mut wire = portico_tests::wire::Wire::tls(scene.town.endpoints.https, &tls, HOST)?;
        wire.send(format!(
            "GET /ws/chat HTTP/1.1\r\nHost: {HOST}\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
             Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
        ))?;
        ensure!(wire.line()?.starts_with("HTTP/1.1 101"), "no upgrade");
        let mut head = Vec::new();
        while let line = wire.line()?
            && !line.is_empty()
        {
            head.push(line.to_ascii_lowercase());
        }
        ensure!(
            head.contains(&"sec-websocket-accept: s3pplmbitxaq9kygzzhzrbk+xoo=".to_owned()),
            "{head:?}"
        );
        for round in 0..3u8 {
            let text = format!("hello {round}");
            let masked: Vec<u8> = text
                .bytes()
                .zip([1u8, 2, 3, 4].iter().cycle())
                .map(|(b, m)| b ^ m)
                .collect();
            wire.send([&[0x81, 0x80 | masked.len() as u8, 1, 2, 3, 4], &masked[..]].concat())?;
            assert_eq!(
                wire.bytes(2 + text.len())?,
                [&[0x81, text.len() as u8], text.as_bytes()].concat()
            );
        }
        Ok(())
    })
}

#[test]
fn web_logins_are_in_the_audit_log() -> Result<()> {
    play(|scene| {
        let wrong = "wr0ng-c4n4ry";
        let soap = "/service/soap/AuthRequest";
        let good = scene.https(soap, &["-d", &soap_login("alice@a.example", "alice-c4n4ry-one")])?;
        assert_eq!(good.status(), "200");
        ensure!(
            good.header("set-cookie")
                .is_some_and(|c| c.starts_with("ZM_AUTH_TOKEN=0_")),
            "{}",
            good.head
        );
        let (zx, dav) = ("/zx/auth/v2/login", "/dav/carol@b.example/Calendar/");
        let tries = [
            (soap, "-d", soap_login("alice@a.example", wrong), "500"),
            (soap, "-d", soap_json("bob-c4n4ry-two"), "200"),
            (soap, "-d", soap_json(wrong), "500"),
            (zx, "-d", json("dave-c4n4ry-four"), "200"),
            (zx, "-d", json(wrong), "401"),
            (dav, "-u", "carol@b.example:carol-c4n4ry-three".to_owned(), "200"),
            (dav, "-u", format!("carol@b.example:{wrong}"), "401"),
        ];
        for (path, how, what, status) in tries {
            assert_eq!(scene.https(path, &[how, &what])?.status(), status, "{path} {what}");
        }
        for outcome in ["ok", "bad_credentials"] {
            is_recorded(scene, "SOAP", "alice@a.example", outcome)?;
            is_recorded(scene, "SOAP", "bob@a.example", outcome)?;
            is_recorded(scene, "JSON", "dave@b.example", outcome)?;
        }
        // A folder that is read may be one for everybody.
        for outcome in ["not_refused", "bad_credentials"] {
            is_recorded(scene, "BASIC", "carol@b.example", outcome)?;
        }
        let basic = encode_block(format!("carol@b.example:{wrong}").as_bytes()).into_bytes();
        scene.portico.must_not_have_written(&[wrong.into(), basic])
    })
}

fn soap_json(password: &str) -> String {
    let request = serde_json::json!({
        "_jsns": "urn:zimbraAccount", "account": {"by": "name", "_content": "bob@a.example"}, "password": password,
    });
    serde_json::json!({"Body": {"AuthRequest": request}}).to_string()
}

fn json(password: &str) -> String {
    serde_json::json!({"auth_method": "password", "user": "dave@b.example", "password": password}).to_string()
}

fn is_recorded(scene: &Scene, mechanism: &str, user: &str, outcome: &str) -> Result<()> {
    let fields = [
        ("event", "web_login"),
        ("mechanism", mechanism),
        ("user", user),
        ("outcome", outcome),
    ];
    let record = scene.portico.record(&fields)?;
    ensure!(
        record["client"].as_str().is_some_and(|c| c.starts_with("127.0.0.1:")),
        "{record}"
    );
    Ok(())
}

#[test]
fn every_request_has_its_line_in_the_access_log() -> Result<()> {
    play(|scene| {
        let token = auth_token(&scene.town.person("bob")?.id);
        let cookie = format!("Cookie: ZM_AUTH_TOKEN={token}");
        scene.https(
            "/home/bob@a.example/in%20box?x=1",
            &["-H", &cookie, "-A", "the agent", "--http1.1"],
        )?;
        scene.https(&format!("/service/x?zauthtoken={token}"), &[])?;
        let upstream = scene.town.stores[1].web.https.to_string();
        let line = until("a line", Duration::from_secs(5), || {
            let log = scene.portico.access_log();
            Ok(log
                .lines()
                .find(|l| l.contains("/home/bob@a.example/in%20box?x=1"))
                .map(str::to_owned))
        })?;
        for part in [
            "127.0.0.1:",
            "GET https://",
            "HTTP/1.1",
            " 200 ",
            "\"the agent\"",
            &upstream,
        ] {
            ensure!(line.contains(part), "{part:?} is missing in {line}");
        }
        until("the second line", Duration::from_secs(5), || {
            Ok(scene.portico.access_log().contains("/service/x").then_some(()))
        })?;
        scene.portico.must_not_have_written(&[token.into_bytes()])
    })
}

/// What two HTTP parsers may read differently is refused before a server hears of it.
#[test]
fn doubtful_requests_are_refused() -> Result<()> {
    play(|scene| {
        let tls = scene.town.ca.connector(&["http/1.1"])?;
        for (request, status) in [
            ("GET / HTTP/1.1\r\n\r\n".to_owned(), "400"),
            (format!("GET / HTTP/1.1\nHost: {HOST}\n\n"), "400"),
            (format!("GET / HTTP/1.1\r\nHost: {HOST}\r\nX: a\r\n b\r\n\r\n"), "400"),
            (
                format!("POST / HTTP/1.1\r\nHost: {HOST}\r\nContent-Length: 1\r\nContent-Length: 1\r\n\r\nx"),
                "400",
            ),
            (
                format!("POST / HTTP/1.1\r\nHost: {HOST}\r\nContent-Length: 1, 1\r\n\r\nx"),
                "400",
            ),
            (format!("TRACE / HTTP/1.1\r\nHost: {HOST}\r\n\r\n"), "405"),
            (
                format!("GET / HTTP/1.1\r\nHost: {HOST}\r\nX: {}\r\n\r\n", "x".repeat(40_000)),
                "431",
            ),
        ] {
            let mut wire = portico_tests::wire::Wire::tls(scene.town.endpoints.https, &tls, HOST)?;
            wire.send(&request)?;
            let answer = wire.line()?;
            ensure!(
                answer.starts_with(&format!("HTTP/1.1 {status} ")),
                "{request:.60?}: {answer}"
            );
        }
        Ok(())
    })
}
