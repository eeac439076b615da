//! What is agreed on in TLS handshakes with two other TLS libraries, `openssl s_client` and rustls: versions, groups,
//! ciphers, sessions, certificates of clients. Which certificate a name has is in `tls.rs`, what client certificates
//! open in `vhosts.rs`.

use std::net::SocketAddrV4;
use std::process::{Command, Stdio};

use anyhow::{Context, Result, ensure};
use portico_tests::certs::{Authority, Pair};
use portico_tests::config::{Directory, Value};
use portico_tests::rustls_client::{Agreed, HandshakeKind, Manners, NamedGroup, RustlsClient};
use portico_tests::town::people;
use rustls::SupportedProtocolVersion;
use rustls::version::{TLS12, TLS13};

use crate::scene::{Scene, play, play_with};

/// A request whose answer ends the connection, so that its tickets have been read.
const REQUEST: &str = "GET /echo HTTP/1.1\r\nHost: mail.b.example\r\nConnection: close\r\n\r\n";
/// A name on every listener, with a certificate of its own.
const NAME: &str = "mail.b.example";
const VERSIONS: [(&str, &SupportedProtocolVersion); 2] = [("TLSv1_3", &TLS13), ("TLSv1_2", &TLS12)];

impl Scene<'_> {
    /// Shakes hands and asks for a page.
    fn page(&self, client: &RustlsClient, name: &str) -> Result<Agreed> {
        let request = REQUEST.replace(NAME, name);
        client.ask(self.town.endpoints.https, name, &request)
    }

    fn rustls(&self, manners: &Manners) -> Result<RustlsClient> {
        RustlsClient::new(&self.town.ca, manners)
    }

    /// Puts a changed directory in force.
    fn change(&self, directory: &Directory, generation: &str) -> Result<()> {
        self.portico.replace_directory(directory)?;
        self.portico
            .record(&[("event", "config"), ("generation", generation)])
            .map(drop)
    }
}

/// What `openssl s_client` prints of a handshake.
fn s_client(endpoint: SocketAddrV4, more: &[&str]) -> Result<String> {
    let out = Command::new("openssl")
        .args(["s_client", "-servername", NAME, "-connect"])
        .arg(endpoint.to_string())
        .args(more)
        .stdin(Stdio::null())
        .output()
        .context("openssl: try scripts/install")?;
    let (printed, errors) = (
        String::from_utf8_lossy(&out.stdout),
        String::from_utf8_lossy(&out.stderr),
    );
    Ok(format!("{printed}{errors}"))
}

/// Whether a handshake that `openssl s_client` printed has come to its end.
fn has_agreed(printed: &str) -> bool {
    printed.contains("Server certificate") && !printed.contains("Cipher is (NONE)")
}

#[test]
fn keys_are_agreed_by_the_hybrid_group_where_the_client_knows_it() -> Result<()> {
    use NamedGroup::{X25519, X25519MLKEM768, secp256r1, secp384r1};
    play(|scene| {
        let endpoints = scene.town.endpoints;
        for (groups, agreed, kind) in [
            (&[X25519MLKEM768, X25519][..], X25519MLKEM768, HandshakeKind::Full),
            // It would be content with less, and is asked for a second ClientHello.
            (
                &[X25519, X25519MLKEM768],
                X25519MLKEM768,
                HandshakeKind::FullWithHelloRetryRequest,
            ),
            (&[X25519, secp256r1], X25519, HandshakeKind::Full),
            (&[secp256r1], secp256r1, HandshakeKind::Full),
            (&[secp384r1], secp384r1, HandshakeKind::Full),
        ] {
            for (endpoint, say) in [(endpoints.https, REQUEST), (endpoints.imaps, ""), (endpoints.pop3s, "")] {
                // One for each: a client remembers which group a name has taken.
                let client = scene.rustls(&Manners {
                    groups,
                    ..Manners::default()
                })?;
                let got = client.ask(endpoint, NAME, say)?;
                assert_eq!((got.group, got.kind), (Some(agreed), kind), "{groups:?} {endpoint}");
                ensure!(
                    ["HTTP/1.1 200", "* OK ", "+OK"]
                        .iter()
                        .any(|start| got.answer.starts_with(start)),
                    "{got:?}"
                );
            }
        }
        for (group, good) in [("X25519", true), ("P-256", true), ("P-384", true), ("X448", false)] {
            let printed = s_client(endpoints.imaps, &["-groups", group])?;
            assert_eq!(has_agreed(&printed), good, "{group}: {printed}");
        }
        Ok(())
    })
}

#[test]
fn versions_are_those_of_the_directory() -> Result<()> {
    play(|scene| {
        let versions: [(&str, &[&str]); 4] = [
            ("-tls1_3", &["TLSv1.3"]),
            ("-tls1_2", &["TLSv1.2"]),
            ("-tls1_1", &["TLSv1.1"]),
            ("-tls1", &["TLSv1"]),
        ];
        let agreed = |scene: &Scene| -> Result<Vec<&str>> {
            let mut agreed = Vec::new();
            for (version, _) in versions {
                // The program has to be talked into old versions.
                let more = [version, "-cipher", "ALL:@SECLEVEL=0"];
                for endpoint in [scene.town.endpoints.https, scene.town.endpoints.pop3s] {
                    if has_agreed(&s_client(endpoint, &more)?) {
                        agreed.push(version);
                    }
                }
            }
            agreed.dedup();
            Ok(agreed)
        };
        assert_eq!(agreed(scene)?, ["-tls1_3", "-tls1_2"], "by default");
        let mut directory = scene.town.directory();
        for (generation, (protocols, expected)) in [
            (&["TLSv1.3"][..], &["-tls1_3"][..]),
            (&["TLSv1.2"], &["-tls1_2"]),
            (
                &["TLSv1", "TLSv1.1", "TLSv1.2", "TLSv1.3"],
                &["-tls1_3", "-tls1_2", "-tls1_1", "-tls1"],
            ),
        ]
        .into_iter()
        .enumerate()
        {
            let protocols: Vec<String> = protocols.iter().map(|name| (*name).to_owned()).collect();
            directory.config("zimbraReverseProxySSLProtocols", Value::List(protocols.clone()));
            directory.config(
                "zimbraReverseProxySSLCiphers",
                "ECDHE-ECDSA-AES128-GCM-SHA256:ECDHE-ECDSA-AES128-SHA",
            );
            scene.change(&directory, &(generation + 2).to_string())?;
            assert_eq!(agreed(scene)?, expected, "{protocols:?}");
            for (version, rustls) in VERSIONS {
                let client = scene.rustls(&Manners {
                    versions: &[rustls],
                    ..Manners::default()
                })?;
                let got = scene.page(&client, NAME);
                let allowed = protocols.iter().any(|name| name.replace('.', "_") == version);
                assert_eq!(
                    got.is_ok_and(|got| got.version == version),
                    allowed,
                    "{protocols:?} {version}"
                );
            }
        }
        Ok(())
    })
}

/// The story: a list of OpenSSL's that AWS-LC refused as a whole, for one command, was silently replaced.
#[test]
fn ciphers_are_those_of_the_directory_as_far_as_they_are_known() -> Result<()> {
    let list = "@SECLEVEL=1:DHE-RSA-AES128-GCM-SHA256:ECDHE-ECDSA-AES256-GCM-SHA384:TLS_AES_128_GCM_SHA256";
    let change = |_: &_, _: &mut _, directory: &mut Directory| {
        directory.config("zimbraReverseProxySSLCiphers", list);
        Ok(())
    };
    play_with(people(), change, |scene| {
        let client = scene.rustls(&Manners {
            versions: &[&TLS12],
            ..Manners::default()
        })?;
        assert_eq!(
            scene.page(&client, NAME)?.suite,
            "TLS_ECDHE_ECDSA_WITH_AES_256_GCM_SHA384"
        );
        for endpoint in [scene.town.endpoints.https, scene.town.endpoints.imaps] {
            for (cipher, good) in [
                ("ECDHE-ECDSA-AES256-GCM-SHA384", true),
                ("ECDHE-ECDSA-AES128-GCM-SHA256", false),
            ] {
                let printed = s_client(endpoint, &["-tls1_2", "-cipher", cipher])?;
                assert_eq!(has_agreed(&printed), good, "{endpoint} {cipher}: {printed}");
            }
        }
        let checked = Command::new(portico_tests::portico::binary()?)
            .args(["check", "-c"])
            .arg(scene.portico.dir().join("portico.yaml"))
            .output()?;
        let said = String::from_utf8_lossy(&checked.stdout).into_owned() + &String::from_utf8_lossy(&checked.stderr);
        for expected in [
            "zimbraReverseProxySSLCiphers",
            "the TLS library does not know @SECLEVEL=1, DHE-RSA-AES128-GCM-SHA256: left out",
            "TLS_AES_128_GCM_SHA256: all suites of TLS 1.3 are offered, none can be chosen",
        ] {
            ensure!(said.contains(expected), "{expected}: {said}");
        }
        ensure!(checked.status.success(), "{said}");
        Ok(())
    })
}

#[test]
fn sessions_are_resumed_also_by_the_next_process() -> Result<()> {
    play(|scene| {
        for (version, rustls) in VERSIONS {
            let endpoints = scene.town.endpoints;
            let doors = [(endpoints.https, REQUEST), (endpoints.imaps, ""), (endpoints.pop3s, "")];
            let mut clients = Vec::new();
            for (endpoint, say) in doors {
                let client = scene.rustls(&Manners {
                    versions: &[rustls],
                    ..Manners::default()
                })?;
                for kind in [HandshakeKind::Full, HandshakeKind::Resumed, HandshakeKind::Resumed] {
                    assert_eq!(client.ask(endpoint, NAME, say)?.kind, kind, "{version} {endpoint}");
                }
                clients.push(client);
            }
            let _old = scene.portico.upgrade("debug")?;
            for ((endpoint, say), client) in doors.into_iter().zip(&clients) {
                let got = client.ask(endpoint, NAME, say)?;
                assert_eq!(got.kind, HandshakeKind::Resumed, "{version} {endpoint}");
            }
        }
        Ok(())
    })
}

/// `mail.a.example` and `imap.a.example` request certificates by the same rules, `x.c.example` by the same with another
/// certificate of ours.
fn request_certificates(directory: &mut Directory, authority: &Authority, depth: &str) {
    for domain in ["a.example", "c.example"] {
        let entry = directory.domain(domain);
        entry.insert("zimbraReverseProxyClientCertMode".into(), "on".into());
        entry.insert(
            "zimbraReverseProxyClientCertCA".into(),
            authority.file().as_path().into(),
        );
        entry.insert("zimbraReverseProxyClientCertDepth".into(), depth.into());
    }
}

fn authority(dir: &std::path::Path) -> Result<Authority> {
    std::fs::create_dir_all(dir)?;
    Authority::called("Clients", dir)
}

#[test]
fn a_session_with_a_client_certificate_is_resumed_under_its_rules_only() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let authority = authority(&dir.path().join("clients"))?;
    let rossi = authority.client("rossi")?;
    let change = |_: &_, _: &mut _, directory: &mut Directory| {
        request_certificates(directory, &authority, "1");
        Ok(())
    };
    play_with(people(), change, |scene| {
        for (version, rustls) in VERSIONS {
            let manners = Manners {
                versions: &[rustls],
                certificate: Some(&rossi),
                ..Manners::default()
            };
            let client = scene.rustls(&manners)?;
            for kind in [HandshakeKind::Full, HandshakeKind::Resumed] {
                let got = scene.page(&client, "mail.a.example")?;
                assert_eq!(got.kind, kind, "{version}");
                ensure!(got.answer.starts_with("HTTP/1.1 200"), "{got:?}");
                ensure!(
                    got.answer.contains("SUCCESS") && got.answer.contains("CN=rossi"),
                    "{got:?}"
                );
            }
            // rustls itself keeps sessions by name; `openssl` takes one anywhere (`vhosts.rs`).
            assert_eq!(
                scene.page(&client, "x.c.example")?.kind,
                HandshakeKind::Full,
                "{version}"
            );
            let nobody = scene.rustls(&Manners {
                versions: &[rustls],
                ..Manners::default()
            })?;
            ensure!(
                scene.page(&nobody, "mail.a.example").is_err(),
                "{version}: without a certificate"
            );
        }
        // The rules change: what was resumed is asked for its certificate again.
        let client = scene.rustls(&Manners {
            certificate: Some(&rossi),
            ..Manners::default()
        })?;
        scene.page(&client, "mail.a.example")?;
        assert_eq!(scene.page(&client, "mail.a.example")?.kind, HandshakeKind::Resumed);
        let mut directory = scene.town.directory();
        request_certificates(&mut directory, &authority, "2");
        scene.change(&directory, "2")?;
        assert_eq!(scene.page(&client, "mail.a.example")?.kind, HandshakeKind::Full);
        Ok(())
    })
}

#[test]
fn client_certificates_may_have_as_many_intermediates_as_the_rules_say() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let authority = authority(&dir.path().join("clients"))?;
    let direct = authority.client("direct")?;
    let below = authority.intermediate("Below", &dir.path().join("below"))?;
    let far = below.client("far")?;
    for (depth, far_is_good) in [("0", false), ("1", true)] {
        let change = |_: &_, _: &mut _, directory: &mut Directory| {
            request_certificates(directory, &authority, depth);
            Ok(())
        };
        play_with(people(), change, |scene| {
            let got = |pair: &Pair| -> Result<bool> {
                let client = scene.rustls(&Manners {
                    certificate: Some(pair),
                    ..Manners::default()
                })?;
                Ok(scene
                    .page(&client, "mail.a.example")
                    .is_ok_and(|got| got.answer.starts_with("HTTP/1.1 200")))
            };
            ensure!(got(&direct)?, "depth {depth}: issued by the authority itself");
            assert_eq!(got(&far)?, far_is_good, "depth {depth}: with one between them");
            Ok(())
        })?;
    }
    Ok(())
}

#[test]
fn alpn_is_agreed_with_rustls_too() -> Result<()> {
    play(|scene| {
        let endpoints = scene.town.endpoints;
        for (endpoint, say, offered, agreed) in [
            (endpoints.https, REQUEST, &["http/1.1"][..], Some("http/1.1")),
            (endpoints.https, REQUEST, &[], None),
            (endpoints.imaps, "", &["imap"], Some("imap")),
            (endpoints.pop3s, "", &["pop3", "imap"], Some("pop3")),
        ] {
            let client = scene.rustls(&Manners {
                alpn: offered,
                ..Manners::default()
            })?;
            assert_eq!(
                client.ask(endpoint, NAME, say)?.alpn.as_deref(),
                agreed,
                "{endpoint} {offered:?}"
            );
        }
        let lured = scene.rustls(&Manners {
            alpn: &["h2", "http/1.1"],
            ..Manners::default()
        })?;
        let refused = lured.ask(endpoints.imaps, NAME, "").expect_err("lured to a mail port");
        ensure!(format!("{refused:#}").contains("NoApplicationProtocol"), "{refused:#}");
        Ok(())
    })
}

/// The story: error texts of AWS-LC name the places in its sources, as they were called where it was built.
#[test]
fn what_goes_wrong_is_said_without_places_in_sources() -> Result<()> {
    play(|scene| {
        let endpoint = scene.town.endpoints.imaps;
        ensure!(
            !has_agreed(&s_client(endpoint, &["-groups", "X448"])?),
            "no group in common"
        );
        portico_tests::until(
            "the failed handshake in the log",
            std::time::Duration::from_secs(20),
            || Ok(scene.portico.output().contains("no TLS with").then_some(())),
        )?;
        let mut directory = scene.town.directory();
        let broken = "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n";
        let entry = directory.domain("a.example");
        entry.insert("zimbraSSLCertificate".into(), broken.into());
        scene.change(&directory, "2")?;
        let said = scene.portico.output();
        ensure!(said.contains("the certificate does not parse: "), "{said}");
        for place in ["OPENSSL_internal", ".cc:", ".c:", "aws-lc"] {
            let line = said.lines().find(|line| line.contains(place));
            ensure!(line.is_none(), "{place}: {line:?}");
        }
        Ok(())
    })
}
