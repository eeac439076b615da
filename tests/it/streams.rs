//! Stream listeners: TLS ends at Portico, by the name that the client asks for, and the bytes go on as they are.

use std::cell::{Cell, RefCell};
use std::io::{Read, Write};
use std::net::{Ipv4Addr, SocketAddr, SocketAddrV4, TcpListener};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use portico_tests::Stage;
use portico_tests::certs::Pair;
use portico_tests::child::Child;
use portico_tests::config::{Listener, Node, Serve, StreamTo, Tls};
use portico_tests::town::{Town, people};
use portico_tests::wire::Wire;

use crate::scene::{Scene, play_with};

const BASE: &str = "dc=example";

/// A small directory server that holds one person.
struct Slapd {
    ldap: SocketAddrV4,
    ldaps: SocketAddrV4,
    _child: Child,
}

impl Slapd {
    fn start(stage: &Stage, town: &Town, pair: &Pair) -> Result<Self> {
        let dir = stage.dir("slapd")?;
        let data = stage.dir("slapd/data")?;
        let config = format!(
            "include /etc/ldap/schema/core.schema\nmodulepath /usr/lib/ldap\nmoduleload back_mdb\n\
             TLSCACertificateFile {}\nTLSCertificateFile {}\nTLSCertificateKeyFile {}\n\
             database mdb\nsuffix {BASE}\ndirectory {}\n",
            town.ca.file().display(),
            pair.certificate_file.display(),
            pair.key_file.display(),
            data.display()
        );
        let config = stage.file("slapd/slapd.conf", config)?;
        let entries = format!(
            "dn: {BASE}\nobjectClass: dcObject\nobjectClass: organization\ndc: example\no: Example\n\n\
             dn: cn=Anna Rossi,{BASE}\nobjectClass: person\ncn: Anna Rossi\nsn: Rossi\n"
        );
        let entries = stage.file("slapd/entries.ldif", entries)?;
        let added = Command::new("/usr/sbin/slapadd")
            .arg("-f")
            .arg(&config)
            .arg("-l")
            .arg(&entries)
            .output();
        let added = added.context("slapadd: try scripts/install")?;
        ensure!(
            added.status.success(),
            "slapadd: {}",
            String::from_utf8_lossy(&added.stderr)
        );
        let ldap = SocketAddrV4::new(Ipv4Addr::LOCALHOST, stage.port()?);
        let ldaps = SocketAddrV4::new(Ipv4Addr::LOCALHOST, stage.port()?);
        let urls = format!("ldap://{ldap}/ ldaps://{ldaps}/");
        let args = ["-d", "0", "-h", &urls, "-f", config.to_str().context("path")?];
        let mut child = Child::spawn("slapd", "/usr/sbin/slapd", &args, &[], &dir.join("output.log"))?;
        child.wait_listening(&[ldap, ldaps])?;
        Ok(Self {
            ldap,
            ldaps,
            _child: child,
        })
    }
}

/// Adds a stream listener.
fn add(stage: &Stage, node: &mut Node, upstream: SocketAddrV4, tls: bool, send_proxy: bool) -> Result<SocketAddrV4> {
    let address = SocketAddrV4::new(Ipv4Addr::LOCALHOST, stage.port()?);
    node.listeners.push(Listener {
        address: SocketAddr::V4(address),
        serve: Serve::Stream(StreamTo {
            upstream: upstream.into(),
            tls,
            send_proxy,
        }),
        tls: Tls::Implicit,
        proxies: Vec::new(),
        more: Vec::new(),
    });
    Ok(address)
}

/// Plays with slapd behind two listeners, one that speaks clear text with it and one that speaks TLS.
fn play_with_slapd(test: impl FnOnce(&mut Scene, [SocketAddrV4; 2]) -> Result<()>) -> Result<()> {
    let stage = Stage::new()?;
    let behind = RefCell::new(None);
    play_with(
        people(),
        |town, node, _| {
            let slapd = Slapd::start(&stage, town, &town.ca.server(&["127.0.0.1"])?)?;
            let endpoints = [
                add(&stage, node, slapd.ldap, false, false)?,
                add(&stage, node, slapd.ldaps, true, false)?,
            ];
            *behind.borrow_mut() = Some((endpoints, slapd));
            Ok(())
        },
        |scene| {
            let behind = behind.borrow();
            let (endpoints, _slapd) = behind.as_ref().context("no listeners")?;
            test(scene, *endpoints)
        },
    )
}

#[test]
fn ldap_passes_with_the_certificate_of_the_name_that_is_asked_for() -> Result<()> {
    play_with_slapd(|scene, endpoints| {
        for endpoint in endpoints {
            let found = Command::new("ldapsearch")
                .env("LDAPTLS_CACERT", scene.town.ca.file())
                .env("LDAPTLS_REQCERT", "demand")
                .args([
                    "-x",
                    "-LLL",
                    "-H",
                    &format!("ldaps://{endpoint}"),
                    "-b",
                    BASE,
                    "(sn=Rossi)",
                    "cn",
                ])
                .output()
                .context("ldapsearch: try scripts/install")?;
            let text = String::from_utf8_lossy(&found.stdout).into_owned();
            ensure!(
                text.contains("cn: Anna Rossi"),
                "{text}{}",
                String::from_utf8_lossy(&found.stderr)
            );
            for (asked, shown) in [
                ("mail.a.example", "mail.a.example"),
                ("x.c.example", "*.c.example"),
                ("unknown.example", "mail.example.test"),
            ] {
                assert_eq!(scene.tls(endpoint, asked)?.certificate_name()?, shown, "{asked}");
            }
            let record = scene.portico.record(&[
                ("event", "session_end"),
                ("proto", "stream"),
                ("listener", &endpoint.to_string()),
                ("ended_by", "client"),
            ])?;
            assert!(
                record["tls"].as_str().is_some_and(|tls| tls.starts_with("TLSv1.3")),
                "{record}"
            );
            // A browser that was lured here is turned away.
            let browser = scene.town.ca.connector(&["h2", "http/1.1"])?;
            assert!(
                Wire::clear(endpoint)?
                    .start_tls_any_name(&browser, "mail.a.example")
                    .is_err()
            );
        }
        Ok(())
    })
}

#[test]
fn the_upstream_gets_the_clients_address_and_bytes_pass_unharmed() -> Result<()> {
    let upstream = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
    let SocketAddr::V4(address) = upstream.local_addr()? else {
        anyhow::bail!("not IPv4")
    };
    let endpoints = Cell::new(None);
    let stage = Stage::new()?;
    play_with(
        people(),
        |_, node, _| {
            endpoints.set(Some(add(&stage, node, address, false, true)?));
            Ok(())
        },
        |scene| {
            let endpoint = endpoints.get().context("no listener")?;
            let client = Wire::clear(endpoint)?;
            let local = client.local()?;
            let mut client = client.start_tls_any_name(&scene.town.ca.connector(&[])?, "mail.a.example")?;
            let (mut server, _) = upstream.accept()?;
            server.set_read_timeout(Some(Duration::from_secs(20)))?;
            let mut header = [0; 28];
            server.read_exact(&mut header)?;
            let mut expected = b"\r\n\r\n\0\r\nQUIT\n\x21\x11\0\x0c\x7f\0\0\x01\x7f\0\0\x01".to_vec();
            expected.extend(local.port().to_be_bytes());
            expected.extend(endpoint.port().to_be_bytes());
            assert_eq!(header.as_slice(), expected);

            let sent: Vec<u8> = (0..=255).cycle().take(300_000).collect();
            let echo = std::thread::spawn(move || -> Result<()> {
                let mut bytes = vec![0; 300_000];
                server.read_exact(&mut bytes)?;
                Ok(server.write_all(&bytes)?)
            });
            client.send(&sent)?;
            assert!(client.bytes(sent.len())? == sent, "bytes have changed");
            echo.join().ok().context("the server has panicked")??;
            let record = scene.portico.record(&[("proto", "stream"), ("event", "session_end")])?;
            assert_eq!(
                (&record["bytes_in"], &record["bytes_out"]),
                (&300_000.into(), &300_000.into()),
                "{record}"
            );
            assert_eq!(record["route"], address.to_string());
            Ok(())
        },
    )
}

#[test]
fn a_server_that_is_down_ends_the_connection_with_a_record() -> Result<()> {
    let stage = Stage::new()?;
    let endpoints = Cell::new(None);
    play_with(
        people(),
        |_, node, _| {
            let nobody = SocketAddrV4::new(Ipv4Addr::LOCALHOST, stage.port()?);
            endpoints.set(Some(add(&stage, node, nobody, false, false)?));
            Ok(())
        },
        |scene| {
            let endpoint = endpoints.get().context("no listener")?;
            let mut wire = scene.tls(endpoint, "mail.a.example")?;
            assert_eq!(wire.rest()?, b"");
            scene
                .portico
                .record(&[("proto", "stream"), ("phase", "connect"), ("ended_by", "upstream")])?;
            Ok(())
        },
    )
}
