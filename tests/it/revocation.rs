//! Client certificates that their authorities have taken back, by lists in a file that changes while the node runs.

use std::fs;
use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use portico_tests::certs::{Authority, Pair};
use portico_tests::config::{Directory, Node};
use portico_tests::portico::binary;
use portico_tests::rustls_client::{HandshakeKind, Manners, RustlsClient};
use portico_tests::town::people;
use portico_tests::until;
use portico_tests::wire::Wire;

use crate::admin::tcp;
use crate::scene::{Scene, play_with};

/// The file is looked at as often as the directory.
const SOON: Duration = Duration::from_secs(20);
const HOST: &str = "mail.a.example";
/// Of a domain whose authority publishes no list.
const UNLISTED: &str = "x.c.example";

/// Authorities and certificates of clients.
struct Clients {
    authority: Authority,
    below: Authority,
    other: Authority,
    rossi: Pair,
    verdi: Pair,
    /// Of the authority below.
    bianchi: Pair,
    /// Of the authority without a list.
    neri: Pair,
    list: PathBuf,
}

impl Clients {
    fn new(dir: &std::path::Path) -> Result<Self> {
        let (ours, others) = (dir.join("clients"), dir.join("others"));
        fs::create_dir(&ours)?;
        fs::create_dir(&others)?;
        let authority = Authority::called("Clients", &ours)?;
        let below = authority.intermediate("Below", &dir.join("below"))?;
        let other = Authority::called("Others", &others)?;
        Ok(Self {
            rossi: authority.client("rossi")?,
            verdi: authority.client("verdi")?,
            bianchi: below.client("bianchi")?,
            neri: other.client("neri")?,
            list: dir.join("clients.crl"),
            authority,
            below,
            other,
        })
    }

    fn configure(&self, node: &mut Node, directory: &mut Directory) {
        node.tls.push(format!("client_crl_file: {}", self.list.display()));
        for (domain, authority) in [("a.example", &self.authority), ("c.example", &self.other)] {
            let entry = directory.domain(domain);
            entry.insert("zimbraReverseProxyClientCertMode".into(), "on".into());
            entry.insert(
                "zimbraReverseProxyClientCertCA".into(),
                authority.file().as_path().into(),
            );
        }
    }

    /// Puts other lists into the file's place.
    fn publish(&self, lists: &[String]) -> Result<()> {
        let new = self.list.with_extension("new");
        fs::write(&new, lists.concat())?;
        Ok(fs::rename(new, &self.list)?)
    }
}

fn play_clients(test: impl FnOnce(&mut Scene, &Clients) -> Result<()>) -> Result<()> {
    let dir = tempfile::tempdir()?;
    let clients = Clients::new(dir.path())?;
    clients.publish(&[clients.authority.revoking(&[], 2)?, clients.below.revoking(&[], 2)?])?;
    play_with(
        people(),
        |town, node, directory| {
            clients.configure(node, directory);
            node.admin.push(format!("http: {}", town.admin));
            Ok(())
        },
        |scene| test(scene, &clients),
    )
}

fn request(host: &str, connection: &str) -> String {
    format!("GET /echo HTTP/1.1\r\nHost: {host}\r\nConnection: {connection}\r\n\r\n")
}

/// A client that shows this certificate.
fn client(scene: &Scene, pair: &Pair) -> Result<RustlsClient> {
    let manners = Manners {
        certificate: Some(pair),
        ..Manners::default()
    };
    RustlsClient::new(&scene.town.ca, &manners)
}

/// How it gets its page; an error: not at all.
fn page(scene: &Scene, client: &RustlsClient, host: &str) -> Result<HandshakeKind> {
    let got = client.ask(scene.town.endpoints.https, host, &request(host, "close"))?;
    ensure!(got.answer.starts_with("HTTP/1.1 200"), "{got:?}");
    Ok(got.kind)
}

fn is_admitted(scene: &Scene, pair: &Pair, host: &str) -> Result<bool> {
    Ok(page(scene, &client(scene, pair)?, host).is_ok())
}

#[test]
fn a_certificate_that_is_taken_back_opens_nothing_any_more() -> Result<()> {
    play_clients(|scene, clients| {
        let verdi = client(scene, &clients.verdi)?;
        assert_eq!(page(scene, &verdi, HOST)?, HandshakeKind::Full);
        assert_eq!(page(scene, &verdi, HOST)?, HandshakeKind::Resumed);
        let mut kept = Vec::new();
        for pair in [&clients.rossi, &clients.verdi] {
            let tls = scene.town.ca.connector_showing(pair)?;
            let mut wire = Wire::tls(scene.town.endpoints.https, &tls, HOST)?;
            wire.send(request(HOST, "keep-alive"))?;
            ensure!(wire.line()?.starts_with("HTTP/1.1 200"), "with a good certificate");
            kept.push(wire);
        }
        clients.publish(&[
            clients.authority.revoking(&[&clients.verdi], 2)?,
            clients.below.revoking(&[], 2)?,
        ])?;
        until("a list in force", SOON, || {
            Ok(page(scene, &verdi, HOST).is_err().then_some(()))
        })?;
        ensure!(!is_admitted(scene, &clients.verdi, HOST)?, "in a full handshake");
        until("the reason in the log", SOON, || {
            Ok(scene.portico.output().contains("certificate revoked").then_some(()))
        })?;
        for pair in [&clients.rossi, &clients.bianchi] {
            ensure!(is_admitted(scene, pair, HOST)?, "others: {:?}", pair.certificate_file);
        }
        ensure!(
            is_admitted(scene, &clients.neri, UNLISTED)?,
            "of an authority without a list"
        );
        // Connections that were there already: their certificates are to be looked at again.
        for mut wire in kept {
            wire.send(request(HOST, "close"))?;
            let rest = String::from_utf8_lossy(&wire.rest()?).into_owned();
            ensure!(rest.contains("HTTP/1.1 421"), "{rest}");
        }
        Ok(())
    })
}

#[test]
fn an_authority_below_is_taken_back_or_takes_back_itself() -> Result<()> {
    play_clients(|scene, clients| {
        ensure!(is_admitted(scene, &clients.bianchi, HOST)?, "at first");
        clients.publish(&[
            clients.authority.revoking(&[], 2)?,
            clients.below.revoking(&[&clients.bianchi], 2)?,
        ])?;
        until("its own list", SOON, || {
            Ok((!is_admitted(scene, &clients.bianchi, HOST)?).then_some(()))
        })?;
        clients.publish(&[clients.authority.revoking(&[], 2)?, clients.below.revoking(&[], 2)?])?;
        until("the next list", SOON, || {
            Ok(is_admitted(scene, &clients.bianchi, HOST)?.then_some(()))
        })?;
        // What stands behind a certificate in its file is the one of its issuer.
        let issuer = clients
            .bianchi
            .certificate
            .split_inclusive("-----END CERTIFICATE-----\n")
            .nth(1);
        let below = Pair {
            certificate: issuer.context("no issuer")?.to_owned(),
            ..clients.bianchi.clone()
        };
        clients.publish(&[
            clients.authority.revoking(&[&below], 2)?,
            clients.below.revoking(&[], 2)?,
        ])?;
        until("the list above", SOON, || {
            Ok((!is_admitted(scene, &clients.bianchi, HOST)?).then_some(()))
        })?;
        ensure!(is_admitted(scene, &clients.rossi, HOST)?, "of the authority itself");
        Ok(())
    })
}

#[test]
fn a_list_that_is_damaged_or_over() -> Result<()> {
    play_clients(|scene, clients| {
        let of_verdi = clients.authority.revoking(&[&clients.verdi], 2)?;
        clients.publish(std::slice::from_ref(&of_verdi))?;
        until("a list in force", SOON, || {
            Ok((!is_admitted(scene, &clients.verdi, HOST)?).then_some(()))
        })?;
        let (half, _) = of_verdi.split_at(of_verdi.len() / 2);
        clients.publish(&[half.to_owned()])?;
        until("a warning", SOON, || {
            let said = scene.portico.output();
            Ok(said.contains("the previous lists stay in force").then_some(()))
        })?;
        ensure!(!is_admitted(scene, &clients.verdi, HOST)?, "taken back");
        ensure!(is_admitted(scene, &clients.rossi, HOST)?, "good");

        let checked = || -> Result<String> {
            let node_file = scene.portico.dir().join("portico.yaml");
            let out = Command::new(binary()?).args(["check", "-c"]).arg(node_file).output()?;
            Ok(String::from_utf8_lossy(&[out.stdout, out.stderr].concat()).into_owned())
        };
        let said = checked()?;
        ensure!(
            said.contains("tls.client_crl_file: ") && said.contains("does not parse"),
            "{said}"
        );

        // Of the same name, and another key: nothing is known of our certificates.
        let others = clients.list.with_file_name("namesakes");
        fs::create_dir(&others)?;
        clients.publish(&[Authority::called("Clients", &others)?.revoking(&[], 2)?])?;
        until("a list that does not fit", SOON, || {
            Ok((!is_admitted(scene, &clients.rossi, HOST)?).then_some(()))
        })?;
        clients.publish(std::slice::from_ref(&of_verdi))?;
        until("the list before", SOON, || {
            Ok(is_admitted(scene, &clients.rossi, HOST)?.then_some(()))
        })?;

        clients.publish(&[clients.authority.revoking(&[], -1)?])?;
        until("a list that is over", SOON, || {
            Ok((!is_admitted(scene, &clients.rossi, HOST)?).then_some(()))
        })?;
        let over = "the list of CN=Clients is over: no certificate of this authority is good";
        until("a message", SOON, || {
            Ok(scene.portico.output().contains(over).then_some(()))
        })?;
        let said = checked()?;
        ensure!(said.contains(over), "{said}");
        ensure!(
            said.contains("it has no list of CN=Others: none of its certificates counts as revoked"),
            "{said}"
        );
        let metrics = tcp(scene.town.admin, "GET /metrics", "")?;
        let left = "portico_revocation_list_expiry_seconds{issuer=\"CN=Clients\"} -8";
        ensure!(metrics.contains(left), "{metrics}");
        Ok(())
    })
}
