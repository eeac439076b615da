//! Virtual hosts: what a client gets by the name it asks for in the handshake, the Host it asks for in the request,
//! and the certificate that it shows.

use std::net::SocketAddrV4;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use portico_tests::certs::{Authority, Pair};
use portico_tests::config::Directory;
use portico_tests::s_client::s_client;
use portico_tests::town::people;
use portico_tests::until;
use portico_tests::wire::Wire;
use serde_json::Value;

use crate::scene::{Scene, greeted, play, play_with};

/// How long a change of the directory may take to be in force.
const CHANGE: Duration = Duration::from_secs(30);
/// Of all that is looked at here, nothing takes longer.
const CURL_SECONDS: &str = "60";

/// What curl got: a status, or no connection at all.
#[derive(Debug, PartialEq)]
enum Got {
    Status(u16),
    NoConnection,
}

use Got::{NoConnection, Status};

/// A request of curl.
struct Ask<'a> {
    endpoint: SocketAddrV4,
    /// Scheme and name in the URL; with `https` also the name in the handshake.
    url: &'a str,
    host: Option<&'a str>,
    show: Option<&'a Pair>,
    more: &'a [&'a str],
}

impl Scene<'_> {
    /// The status, and the body.
    fn ask(&self, ask: &Ask) -> Result<(Got, String)> {
        let (_, name) = ask.url.split_once("://").context("no scheme")?;
        let port = ask.endpoint.port();
        let mut curl = Command::new("curl");
        curl.args(["-sS", "-k", "--max-time", CURL_SECONDS, "-w", "\n%{http_code}"])
            .args(["--resolve", &format!("{name}:{port}:{}", ask.endpoint.ip())])
            .args(ask.more);
        if let Some(host) = ask.host {
            curl.args(["-H", &format!("Host: {host}")]);
        }
        if let Some(pair) = ask.show {
            curl.arg("--cert")
                .arg(&pair.certificate_file)
                .arg("--key")
                .arg(&pair.key_file);
        }
        let out = curl
            .arg(format!("{}:{port}/echo", ask.url))
            .output()
            .context("curl: try scripts/install")?;
        let text = String::from_utf8_lossy(&out.stdout).into_owned();
        let (body, code) = text.rsplit_once('\n').context("no status")?;
        let got = match code.parse()? {
            0 => NoConnection,
            code => Status(code),
        };
        Ok((got, body.to_owned()))
    }

    fn visit(&self, name: &str, host: Option<&str>, show: Option<&Pair>, more: &[&str]) -> Result<(Got, String)> {
        self.ask(&Ask {
            endpoint: self.town.endpoints.https,
            url: &format!("https://{name}"),
            host,
            show,
            more,
        })
    }

    fn visit_in_clear(&self, name: &str) -> Result<Got> {
        let ask = Ask {
            endpoint: self.town.endpoints.http,
            url: &format!("http://{name}"),
            host: None,
            show: None,
            more: &[],
        };
        Ok(self.ask(&ask)?.0)
    }

    /// `openssl s_client` with a request for `host`; gives what it printed.
    fn s_client(&self, name: &str, host: &str, more: &[&str]) -> Result<String> {
        let request = format!("GET /echo HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n");
        s_client(self.town.endpoints.https, name, &request, more)
    }
}

/// Arguments for curl: these header lines.
fn headers<'a>(lines: &[&'a str]) -> Vec<&'a str> {
    lines.iter().flat_map(|line| ["-H", line]).collect()
}

fn status_in(printed: &str) -> Got {
    let line = printed.lines().find_map(|line| line.strip_prefix("HTTP/1.1 "));
    let code = line.and_then(|line| line.get(..3)?.parse().ok());
    code.map_or(NoConnection, Status)
}

fn seen(body: &str, name: &str) -> Result<Vec<String>> {
    let echo: Value = serde_json::from_str(body).with_context(|| body.to_owned())?;
    let headers = echo["headers"].as_array().context("no headers")?;
    let pairs = headers.iter().filter_map(|h| Some((h[0].as_str()?, h[1].as_str()?)));
    let own = pairs.filter(|(n, _)| n.eq_ignore_ascii_case(name));
    Ok(own.map(|(_, value)| value.to_owned()).collect())
}

/// Who shows what.
struct Clients {
    authority: Authority,
    good: Pair,
    expired: Pair,
    foreign: Pair,
}

impl Clients {
    /// They keep their files in this folder.
    fn new(dir: &Path) -> Result<Self> {
        let (ours, others) = (dir.join("clients"), dir.join("somebody"));
        std::fs::create_dir(&ours)?;
        std::fs::create_dir(&others)?;
        let authority = Authority::called("Clients of A", &ours)?;
        let foreign = Authority::called("Somebody", &others)?;
        Ok(Self {
            good: authority.client("rossi")?,
            expired: authority.expired_client("verdi")?,
            foreign: foreign.client("bianchi")?,
            authority,
        })
    }

    /// `a.example` wants certificates, `*.c.example` may have them, `b.example` knows nothing of it.
    fn ask_for_them(&self, directory: &mut Directory) {
        let authority = self.authority.file();
        for (domain, mode) in [("a.example", "on"), ("c.example", "optional")] {
            let entry = directory.domain(domain);
            entry.insert("zimbraReverseProxyClientCertMode".into(), mode.into());
            entry.insert("zimbraReverseProxyClientCertCA".into(), authority.as_path().into());
        }
    }
}

/// Plays with client certificates asked for.
fn play_with_clients(test: impl FnOnce(&mut Scene, &Clients) -> Result<()>) -> Result<()> {
    let dir = tempfile::tempdir()?;
    let clients = Clients::new(dir.path())?;
    play_with(
        people(),
        |_, _, directory| {
            clients.ask_for_them(directory);
            Ok(())
        },
        |scene| test(scene, &clients),
    )
}

#[test]
fn each_host_has_its_rules_for_client_certificates() -> Result<()> {
    play_with_clients(|scene, clients| {
        let (good, expired, foreign) = (Some(&clients.good), Some(&clients.expired), Some(&clients.foreign));
        let (ok, misdirected) = (Status(200), Status(421));
        for (name, host, show, expected) in [
            ("mail.a.example", None, None, &NoConnection),
            ("mail.a.example", None, good, &ok),
            ("mail.a.example", None, foreign, &NoConnection),
            ("mail.a.example", None, expired, &NoConnection),
            ("mail.b.example", None, None, &ok),
            ("mail.b.example", None, foreign, &ok),
            ("x.c.example", None, None, &ok),
            ("x.c.example", None, good, &ok),
            ("x.c.example", None, foreign, &NoConnection),
            ("unknown.example", None, None, &ok),
            // The name of the handshake is not the host of the request.
            ("mail.a.example", Some("imap.a.example"), good, &ok),
            ("mail.b.example", Some("unknown.example"), None, &ok),
            ("mail.b.example", Some("mail.a.example"), None, &misdirected),
            ("mail.b.example", Some("mail.a.example"), good, &misdirected),
            ("mail.b.example", Some("MAIL.A.example.:443"), good, &misdirected),
            ("unknown.example", Some("mail.a.example"), None, &misdirected),
            ("x.c.example", Some("mail.a.example"), good, &misdirected),
            ("mail.a.example", Some("mail.b.example"), good, &misdirected),
        ] {
            for version in ["--http1.1", "--http2"] {
                let (got, _) = scene.visit(name, host, show, &[version])?;
                let who = show.map(|pair| pair.certificate_file.clone());
                assert_eq!(&got, expected, "{name}, Host {host:?}, {who:?}, {version}");
            }
        }
        Ok(())
    })
}

#[test]
fn a_web_socket_is_no_way_around_the_rules() -> Result<()> {
    play_with_clients(|scene, _| {
        let mut upgrade = headers(&[
            "Connection: Upgrade",
            "Upgrade: websocket",
            "Sec-WebSocket-Version: 13",
            "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==",
        ]);
        upgrade.push("--http1.1");
        let (got, _) = scene.visit("mail.b.example", Some("mail.a.example"), None, &upgrade)?;
        assert_eq!(got, Status(421));
        Ok(())
    })
}

#[test]
fn the_upstream_gets_the_certificate_that_was_presented_and_no_claim_of_a_client() -> Result<()> {
    play_with_clients(|scene, clients| {
        let lies = headers(&[
            "X-Client-Verify: SUCCESS",
            "X-Client-S-DN: CN=admin",
            "X_Client_S_DN: CN=admin",
            "X-SSL-Client-Verify: SUCCESS",
            "Client-Cert: :AAAA:",
        ]);
        let (_, body) = scene.visit("mail.a.example", None, Some(&clients.good), &lies)?;
        let pem = std::fs::read(&clients.good.certificate_file)?;
        let certificate = openssl::x509::X509::from_pem(&pem)?;
        let digest = certificate.digest(openssl::hash::MessageDigest::sha256())?;
        let fingerprint: String = digest.iter().map(|byte| format!("{byte:02x}")).collect();
        let serial = certificate.serial_number().to_bn()?.to_hex_str()?.to_string();
        for (header, value) in [
            ("X-Client-Verify", "SUCCESS"),
            ("X-Client-S-DN", "CN=rossi"),
            ("X-Client-I-DN", "CN=Clients of A"),
            ("X-Client-Serial", &serial),
            ("X-Client-Fingerprint", &fingerprint),
        ] {
            assert_eq!(seen(&body, header)?, [value], "{header}");
        }
        let sent = seen(&body, "X-Client-Cert")?.pop().context("no certificate")?;
        let encoded = certificate
            .to_pem()?
            .into_iter()
            .map(|byte| match byte.is_ascii_alphanumeric() {
                true => char::from(byte).to_string(),
                false => format!("%{byte:02X}"),
            });
        assert_eq!(sent, encoded.collect::<String>());

        let (_, body) = scene.visit("x.c.example", None, None, &lies)?;
        assert_eq!(seen(&body, "X-Client-Verify")?, ["NONE"]);
        let (_, plain) = scene.visit("mail.b.example", None, Some(&clients.good), &lies)?;
        assert_eq!(seen(&plain, "X-Client-Verify")?, Vec::<String>::new());
        for body in [body, plain] {
            for header in ["X-Client-S-DN", "X_Client_S_DN", "X-SSL-Client-Verify", "Client-Cert"] {
                assert_eq!(seen(&body, header)?, Vec::<String>::new(), "{header}");
            }
        }
        Ok(())
    })
}

/// The story: in nginx, a TLS 1.3 session of one virtual host could be resumed at another, and the certificate that
/// the other one asks for was not asked for (CVE-2025-23419).
#[test]
fn a_session_is_not_resumed_where_other_rules_count() -> Result<()> {
    play_with_clients(|scene, clients| {
        let good = [
            "-cert",
            clients.good.certificate_file.to_str().context("path")?,
            "-key",
            clients.good.key_file.to_str().context("path")?,
        ];
        for version in ["-tls1_3", "-tls1_2"] {
            let file = scene.stage.path().join(format!("session{version}"));
            let file = file.to_str().context("path")?;
            let printed = scene.s_client("mail.b.example", "mail.b.example", &[version, "-sess_out", file])?;
            assert_eq!(status_in(&printed), Status(200), "{version}: {printed}");
            // It is a session that can be resumed, where it was made,
            let printed = scene.s_client("mail.b.example", "mail.b.example", &[version, "-sess_in", file])?;
            assert!(printed.contains("Reused, TLS"), "{version}: {printed}");
            assert_eq!(status_in(&printed), Status(200), "{version}: {printed}");
            // but it opens nothing else, with and without a certificate at hand, required or not.
            for (name, host) in [
                ("mail.a.example", "mail.a.example"),
                ("x.c.example", "x.c.example"),
                ("mail.b.example", "mail.a.example"),
            ] {
                for more in [&[][..], &good[..]] {
                    let arguments = [&[version, "-sess_in", file][..], more].concat();
                    let printed = scene.s_client(name, host, &arguments)?;
                    let got = status_in(&printed);
                    let fresh = printed.contains("New, TLS") && got == Status(200);
                    let refused = got == NoConnection || got == Status(421);
                    assert!(refused || fresh, "{version} {name} {host} {more:?}: {printed}");
                    let entitled = !more.is_empty() || name == "x.c.example";
                    assert!(!fresh || entitled, "{version} {name} {host} {more:?}: {printed}");
                }
            }
        }
        Ok(())
    })
}

/// The story: a session that was begun at one domain was resumed at another, with the first one's certificate (RFC 6066
/// §3, RFC 8446 §4.6.1).
#[test]
fn a_session_is_not_resumed_where_another_certificate_is_shown() -> Result<()> {
    play(|scene| {
        for version in ["-tls1_3", "-tls1_2"] {
            let file = scene.stage.path().join(format!("session{version}"));
            let file = file.to_str().context("path")?;
            let printed = scene.s_client("mail.a.example", "mail.a.example", &[version, "-sess_out", file])?;
            assert_eq!(status_in(&printed), Status(200), "{version}: {printed}");
            for (name, kind) in [
                ("mail.a.example", "Reused, TLS"),
                ("x.c.example", "New, TLS"),
                ("mail.b.example", "New, TLS"),
            ] {
                let printed = scene.s_client(name, name, &[version, "-sess_in", file])?;
                assert!(printed.contains(kind), "{version} {name}: {printed}");
                assert_eq!(status_in(&printed), Status(200), "{version} {name}: {printed}");
            }
        }
        Ok(())
    })
}

#[test]
fn rules_follow_the_directory_and_sessions_outlive_other_changes() -> Result<()> {
    play(|scene| {
        let dir = scene.stage.dir("more")?;
        let clients = Clients::new(&dir)?;
        let file = dir.join("session");
        let file = file.to_str().context("path")?;
        scene.s_client("mail.a.example", "mail.a.example", &["-sess_out", file])?;
        let resumed = |scene: &Scene| scene.s_client("mail.a.example", "mail.a.example", &["-sess_in", file]);
        assert!(resumed(scene)?.contains("Reused, TLS"));

        let mut directory = scene.town.directory();
        directory
            .domain("d.example")
            .insert("zimbraVirtualHostname".into(), "mail.d.example".into());
        scene.portico.replace_directory(&directory)?;
        scene.portico.record(&[("event", "config"), ("generation", "2")])?;
        assert!(
            resumed(scene)?.contains("Reused, TLS"),
            "a change that concerns no rule ends no session"
        );

        clients.ask_for_them(&mut directory);
        scene.portico.replace_directory(&directory)?;
        scene.portico.record(&[("event", "config"), ("generation", "3")])?;
        let printed = resumed(scene)?;
        assert_eq!(status_in(&printed), NoConnection, "{printed}");
        assert_eq!(
            scene.visit("mail.a.example", None, Some(&clients.good), &[])?.0,
            Status(200)
        );
        Ok(())
    })
}

#[test]
fn strict_names_refuse_what_is_not_ours() -> Result<()> {
    play(|scene| {
        let unknown = ("unknown.example", Some("unknown.example"));
        assert_eq!(
            scene.visit(unknown.0, unknown.1, None, &[])?.0,
            Status(200),
            "the default"
        );

        let mut directory = scene.town.directory();
        directory
            .config("zimbraReverseProxyStrictServerNameEnabled", "TRUE")
            .config("zimbraReverseProxyMailMode", "both")
            .config("zimbraPublicServiceHostname", "public.example");
        scene.portico.replace_directory(&directory)?;
        until("strict names", CHANGE, || {
            let (got, _) = scene.visit(unknown.0, unknown.1, None, &[])?;
            Ok((got == NoConnection).then_some(()))
        })?;
        let printed = scene.s_client("unknown.example", "mail.b.example", &[])?;
        assert!(printed.contains("unrecognized name"), "{printed}");

        let (ok, bad) = (Status(200), Status(400));
        for (name, host, expected) in [
            ("mail.a.example", None, &ok),
            ("x.c.example", None, &ok),
            ("public.example", None, &ok),
            ("mail.a.example", Some("unknown.example"), &bad),
            ("mail.a.example", Some("mail.b.example"), &ok),
            // No name in the handshake: the Host decides.
            ("127.0.0.1", Some("mail.b.example"), &ok),
            ("127.0.0.1", None, &bad),
        ] {
            for version in ["--http1.1", "--http2"] {
                let (got, _) = scene.visit(name, host, None, &[version])?;
                assert_eq!(&got, expected, "{name}, Host {host:?}, {version}");
            }
        }
        for (host, expected) in [("mail.a.example", ok), ("unknown.example", bad)] {
            let got = scene.visit_in_clear(host)?;
            assert_eq!(got, expected, "http, {host}");
        }
        // A mail client may ask for whatever it likes.
        let wire = scene.tls(scene.town.endpoints.imaps, "unknown.example")?;
        greeted(wire, "* OK ").map(drop)
    })
}

#[test]
fn clear_text_serves_no_host_that_wants_certificates() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let clients = Clients::new(dir.path())?;
    let change = |_: &_, _: &mut _, directory: &mut Directory| {
        clients.ask_for_them(directory);
        directory.config("zimbraReverseProxyMailMode", "both");
        Ok(())
    };
    play_with(people(), change, |scene| {
        for (host, expected) in [("mail.a.example", 403), ("mail.b.example", 200), ("x.c.example", 200)] {
            let got = scene.visit_in_clear(host)?;
            assert_eq!(got, Status(expected), "{host}");
        }
        Ok(())
    })
}

#[test]
fn a_domain_with_an_address_needs_no_name() -> Result<()> {
    let change = |_: &_, _: &mut _, directory: &mut Directory| {
        directory
            .domain("b.example")
            .insert("zimbraVirtualIPAddress".into(), "127.0.0.1".into());
        Ok(())
    };
    play_with(people(), change, |scene| {
        for endpoint in [
            scene.town.endpoints.https,
            scene.town.endpoints.imaps,
            scene.town.endpoints.pop3s,
        ] {
            for (asked, shown) in [
                ("127.0.0.1", "mail.b.example"),
                ("unknown.example", "mail.b.example"),
                ("mail.a.example", "mail.a.example"),
            ] {
                assert_eq!(
                    scene.tls(endpoint, asked)?.certificate_name()?,
                    shown,
                    "{endpoint} {asked}"
                );
            }
        }
        let mut wire = greeted(Wire::clear(scene.town.endpoints.imap)?, "* OK ")?;
        wire.imap_ok("s1 STARTTLS")?;
        let wire = wire.start_tls_any_name(&scene.town.ca.connector(&[])?, "127.0.0.1")?;
        ensure!(wire.certificate_name()? == "mail.b.example", "STARTTLS");
        Ok(())
    })
}
