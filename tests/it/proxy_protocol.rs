//! Behind a balancer: only its PROXY header says who the client is.

use std::net::{IpAddr, Ipv4Addr, SocketAddrV4};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use portico_tests::haproxy::{HaProxy, Header};
use portico_tests::town::{BALANCER, FRONT, people};
use portico_tests::wire::Wire;

use crate::scene::{Scene, greeted, play, play_with, soap_login};
use crate::web::seen;

const CLIENT: &str = "127.0.0.77";
const SPOOFED: &str = "198.51.100.66";
const V2_SIGNATURE: &[u8] = b"\r\n\r\n\0\r\nQUIT\n";

#[test]
fn through_haproxy_with_version_1() -> Result<()> {
    play(|scene| through_haproxy(scene, Header::V1))
}

#[test]
fn through_haproxy_with_version_2() -> Result<()> {
    play(|scene| through_haproxy(scene, Header::V2))
}

/// Curl from the client's address, with its own certificates.
fn curl(scene: &Scene, args: &[&str]) -> Result<String> {
    let ca = scene.town.ca.file();
    let always = ["-sS", "--cacert", ca.to_str().context("path")?, "--interface", CLIENT];
    scene.run("curl", &[&always[..], args].concat())
}

fn through_haproxy(scene: &mut Scene, header: Header) -> Result<()> {
    let (_haproxy, front) = scene.town.balancer(scene.stage, header, None)?;
    for (scheme, endpoint, name, password) in [
        ("imaps", front.imaps, "alice@a.example", "alice-c4n4ry-one"),
        ("imap", front.imap, "bob@a.example", "bob-c4n4ry-two"),
        ("pop3s", front.pop3s, "carol@b.example", "carol-c4n4ry-three"),
        ("pop3", front.pop3, "dave@b.example", "dave-c4n4ry-four"),
    ] {
        let (url, user) = (format!("{scheme}://{endpoint}/"), format!("{name}:{password}"));
        curl(scene, &["--ssl-reqd", "--user", &user, &url])?;
        let login = [("event", "login"), ("account", name), ("outcome", "ok")];
        is_from_client(&scene.portico.record(&login)?)?;
    }
    scene.town.stores[0].dovecot.wait_log(&format!("rip={CLIENT}"))?;

    let url = format!("https://{}/service/soap/AuthRequest", front.https);
    let login = soap_login("alice@a.example", "alice-c4n4ry-one");
    curl(scene, &["-d", &login, &url])?;
    is_from_client(&scene.portico.record(&[("event", "web_login"), ("outcome", "ok")])?)?;
    let page = curl(scene, &[&format!("https://{}/x", front.https)])?;
    let expected = format!("[\"x-forwarded-for\",\"{CLIENT}\"]");
    ensure!(page.to_lowercase().contains(&expected), "{page}");
    let redirect = curl(scene, &["-D", "-", &format!("http://{}/x", front.http)])?;
    ensure!(redirect.starts_with("HTTP/1.1 302"), "{redirect}");
    Ok(())
}

fn is_from_client(record: &serde_json::Value) -> Result<()> {
    for (key, address) in [("client", CLIENT), ("via", &BALANCER.to_string())] {
        let found = record[key].as_str();
        ensure!(
            found.is_some_and(|found| found.starts_with(&format!("{address}:"))),
            "{key}: {record}"
        );
    }
    Ok(())
}

/// A balancer that ends TLS says so in its header, and its clients are not sent to TLS again.
#[test]
fn tls_that_haproxy_has_ended_counts() -> Result<()> {
    const HSTS: &str = "Strict-Transport-Security: max-age=31536000";
    play_with(
        people(),
        |_, _, directory| {
            directory
                .config("zimbraReverseProxyMailMode", "redirect")
                .config("zimbraReverseProxyResponseHeaders", [HSTS]);
            Ok(())
        },
        |scene| {
            let pair = scene.town.ca.server(&[FRONT, "127.0.0.1"])?;
            let pem = scene
                .stage
                .file("balancer.pem", format!("{}{}", pair.certificate, pair.key))?;
            let local = || -> Result<SocketAddrV4> { Ok(SocketAddrV4::new(Ipv4Addr::LOCALHOST, scene.stage.port()?)) };
            let (tls, clear) = (local()?, local()?);
            let config = format!(
                "defaults\n  mode tcp\n  timeout connect 5s\n  timeout client 60s\n  timeout server 60s\nlisten web\n  \
                 bind {tls} ssl crt {}\n  bind {clear}\n  source {BALANCER}\n  server portico {} send-proxy-v2-ssl\n",
                pem.display(),
                scene.town.behind.http
            );
            let _haproxy = HaProxy::start_with(scene.stage, &config, &[tls, clear])?;
            let ca = scene.town.ca.file();
            let ca = ca.to_str().context("path")?;
            let answer = scene.curl(&format!("https://{tls}/service/x"), &["--cacert", ca])?;
            ensure!(answer.status() == "200", "{}", answer.head);
            ensure!(answer.header("strict-transport-security").is_some(), "{}", answer.head);
            let echo = answer.echo()?;
            assert_eq!(seen(&echo, "x-forwarded-proto"), ["https"]);
            assert_eq!(seen(&echo, "x-forwarded-port"), [tls.port().to_string()]);
            let answer = scene.curl(&format!("http://{clear}/service/x"), &[])?;
            ensure!(answer.status() == "302", "{}", answer.head);
            Ok(())
        },
    )
}

/// A header that arrives in pieces, with the client's first bytes right behind it, in clear text and before TLS.
#[test]
fn headers_of_all_forms_are_read() -> Result<()> {
    let v1 = v1_spoofed();
    let v1_ipv6 = b"PROXY TCP6 2001:db8::77 2001:db8::1 5555 143\r\n".to_vec();
    let v2 = v2_spoofed();
    let with_tlv = v2_with_tlv();
    let cases = [
        ("v1", v1, "198.51.100.66:5555"),
        ("v1 IPv6", v1_ipv6, "[2001:db8::77]:5555"),
        ("v1 UNKNOWN", b"PROXY UNKNOWN\r\n".to_vec(), "127.0.0.9:"),
        ("v2", v2, "198.51.100.66:5555"),
        ("v2 with TLV", with_tlv, "198.51.100.66:5556"),
        ("v2 LOCAL", v2_local(), "127.0.0.9:"),
    ];
    play_with(
        people(),
        |_, _, directory| {
            directory.config("zimbraReverseProxyImapStartTlsMode", "on");
            Ok(())
        },
        |scene| {
            for (number, (what, header, client)) in cases.iter().enumerate() {
                let name = format!("nobody{number}@a.example");
                let mut wire = from_balancer(scene.town.behind.imap)?;
                let (start, end) = header.split_at(header.len() / 2);
                wire.send(start)?;
                std::thread::sleep(Duration::from_millis(20));
                wire.send([end, format!("a1 LOGIN {name} c4n4ry-x\r\n").as_bytes()].concat())?;
                wire.imap_answer("a1").with_context(|| what.to_string())?;
                let record = scene.portico.record(&[("event", "login"), ("user", &name)])?;
                ensure!(
                    record["client"].as_str().is_some_and(|c| c.starts_with(client)),
                    "{what}: {record}"
                );

                let mut wire = from_balancer(scene.town.behind.imaps)?;
                wire.send(header)?;
                let mut wire = greeted(wire.start_tls(&scene.town.ca.connector(&[])?, FRONT)?, "* OK ")?;
                wire.imap_ok("a1 NOOP").with_context(|| what.to_string())?;
            }
            Ok(())
        },
    )
}

fn v2(version_command: u8, family: u8, addresses: &[u8]) -> Vec<u8> {
    let length = (addresses.len() as u16).to_be_bytes();
    [V2_SIGNATURE, &[version_command, family], &length, addresses].concat()
}

fn v2_local() -> Vec<u8> {
    v2(0x20, 0x00, &[])
}

fn v2_with_tlv() -> Vec<u8> {
    let addresses = [
        &[198, 51, 100, 66, 192, 0, 2, 1][..],
        &5556u16.to_be_bytes(),
        &143u16.to_be_bytes(),
    ]
    .concat();
    let unique_id = [&[0x05, 0, 8][..], b"balancer"].concat();
    v2(0x21, 0x11, &[addresses, unique_id].concat())
}

fn v1_spoofed() -> Vec<u8> {
    format!("PROXY TCP4 {SPOOFED} 192.0.2.1 5555 143\r\n").into_bytes()
}

fn v2_spoofed() -> Vec<u8> {
    let (from, to) = (5555u16.to_be_bytes(), 143u16.to_be_bytes());
    v2(
        0x21,
        0x11,
        &[&[198, 51, 100, 66, 192, 0, 2, 1][..], &from, &to].concat(),
    )
}

fn from_balancer(endpoint: SocketAddrV4) -> Result<Wire> {
    Wire::clear_from(IpAddr::V4(BALANCER), endpoint)
}

#[test]
fn only_trusted_proxies_may_name_the_client() -> Result<()> {
    let header = v1_spoofed();
    let v2 = v2_spoofed();
    play(|scene| {
        let (endpoints, behind) = (scene.town.endpoints, scene.town.behind);
        for header in [&header, &v2] {
            for endpoint in [
                endpoints.imap,
                behind.imap,
                endpoints.pop3,
                behind.pop3,
                endpoints.http,
                behind.http,
            ] {
                let mut wire = Wire::clear_from(Ipv4Addr::new(127, 0, 0, 77).into(), endpoint)?;
                wire.send(header)?;
                let _closed_already = wire.say("a1 LOGIN spoofer@a.example x");
                let _closed_already = wire.say("USER spoofer@a.example\r\nQUIT");
                let _closed_already = wire.shut();
                wire.rest().with_context(|| format!("{endpoint}"))?;
            }
            for endpoint in [
                endpoints.imaps,
                behind.imaps,
                endpoints.pop3s,
                endpoints.https,
                behind.https,
            ] {
                let mut wire = Wire::clear_from(Ipv4Addr::new(127, 0, 0, 77).into(), endpoint)?;
                wire.send(header)?;
                let tls = wire.start_tls_any_name(&scene.town.ca.connector(&[])?, FRONT);
                ensure!(tls.is_err(), "a header before TLS was taken on {endpoint}");
            }
        }
        let spoofed = scene
            .portico
            .audit()?
            .into_iter()
            .find(|r| r.to_string().contains(SPOOFED));
        ensure!(spoofed.is_none(), "{spoofed:?}");
        ensure!(
            !scene.portico.access_log().contains(SPOOFED),
            "{}",
            scene.portico.access_log()
        );
        scene.login("alice").map(drop)
    })
}

/// From the balancer's address nothing counts before the header, and the wait for it ends.
#[test]
fn the_balancer_must_send_a_header() -> Result<()> {
    play_with(
        people(),
        |_, node, _| {
            node.more.push(("mail".into(), "{login_deadline: 3s}".into()));
            Ok(())
        },
        |scene| {
            let behind = scene.town.behind;
            let bad: [&[u8]; 6] = [
                b"",
                b"a1 NOOP\r\n",
                b"PROXY TCP4 nonsense\r\n",
                b"PROXY ",
                &[b'P'; 300],
                b"\r\n\r\n\0\r\nQUIT\n\x21\x11\xFF\xFF",
            ];
            let endpoints = [behind.imap, behind.imaps, behind.pop3, behind.pop3s];
            std::thread::scope(|scope| {
                let tries = bad
                    .iter()
                    .flat_map(|bytes| endpoints.map(|endpoint| (*bytes, endpoint)));
                let tries: Vec<_> = tries
                    .map(|(bytes, endpoint)| scope.spawn(move || is_not_greeted(endpoint, bytes)))
                    .collect();
                tries.into_iter().try_for_each(|one| one.join().expect("no panic"))
            })
        },
    )
}

fn is_not_greeted(endpoint: SocketAddrV4, bytes: &[u8]) -> Result<()> {
    let mut wire = from_balancer(endpoint)?;
    // Less than the deadline of a login by default, more than a busy machine adds to the 3 seconds.
    wire.patience(Duration::from_secs(40))?;
    let _closed_already = wire.send(bytes);
    let said = wire.rest().with_context(|| format!("{endpoint} waits on {bytes:?}"))?;
    let greeted = said.starts_with(b"* OK") || said.starts_with(b"+OK");
    ensure!(!greeted, "{endpoint} greeted after {bytes:?}");
    Ok(())
}
