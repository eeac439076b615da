//! Logins by a certificate of the client: Portico knows whose it is, and logs in as master user at a real Dovecot.

use std::cell::OnceCell;

use anyhow::{Context, Result, ensure};
use openssl::base64::encode_block;
use portico_tests::certs::{Authority, Pair};
use portico_tests::config::{Directory, Node};
use portico_tests::dovecot::Login;
use portico_tests::rustls_client::{HandshakeKind, Manners, RustlsClient};
use portico_tests::town::{FRONT, Person, people};
use portico_tests::until;
use portico_tests::wire::Wire;
use rustls::version::{TLS12, TLS13};

use crate::scene::{Scene, play_with};
use crate::shared_state::SOON;

const MASTER: Login<'_> = Login {
    name: "portico",
    password: b"m4ster c4n4ry",
};

const EVE: &str = "eve@xn--bcher-kva.example";

/// The certificates of clients.
struct Shown {
    /// Whose certificates they are.
    authority: Authority,
    alice: Pair,
    expired: Pair,
    /// Of somebody who has no account.
    nobody: Pair,
    /// Alice's, of an authority that nobody knows.
    foreign: Pair,
    /// Whose common name is Bob's address, and whose mail address is not known.
    bob: Pair,
    /// Whose only name has no domain.
    short: Pair,
    /// Of an international domain.
    eve: Pair,
}

fn play_external(test: impl FnOnce(&mut Scene, &Shown) -> Result<()>) -> Result<()> {
    play_external_with(|_, _| {}, test)
}

fn play_external_with(
    change: impl FnOnce(&mut Node, &mut Directory),
    test: impl FnOnce(&mut Scene, &Shown) -> Result<()>,
) -> Result<()> {
    let shown = OnceCell::new();
    let mut people = people();
    people.push(Person::new(EVE, 1, "eve-c4n4ry-five"));
    play_with(
        people,
        |town, node, directory| {
            let dir = town.ca.file().with_file_name("clients");
            let strangers = dir.join("strangers");
            std::fs::create_dir_all(&strangers)?;
            let ca = Authority::called("clients", &dir)?;
            let made = Shown {
                alice: ca.client_of("Alice", "alice@a.example")?,
                expired: ca.expired_client_of("Alice", "alice@a.example")?,
                nobody: ca.client_of("Nobody", "nobody@a.example")?,
                foreign: Authority::called("clients", &strangers)?.client_of("Alice", "alice@a.example")?,
                bob: ca.client_of("bob@a.example", "robert@elsewhere.example")?,
                short: ca.client("alice")?,
                eve: ca.client_of("Eve", EVE)?,
                authority: ca,
            };
            let _first = shown.set(made);
            let password = dir.join("master.password");
            std::fs::write(&password, MASTER.password)?;
            std::fs::set_permissions(&password, std::os::unix::fs::PermissionsExt::from_mode(0o600))?;
            let mail = format!(
                "{{external: {{authorities: {}, account: [email, cn]}}, master: {{user: {}, password_file: {}}}, max_logins: 20}}",
                dir.join("ca.pem").display(),
                MASTER.name,
                password.display()
            );
            node.more.push(("mail".to_owned(), mail));
            change(node, directory);
            Ok(())
        },
        |scene| {
            for store in &mut scene.town.stores {
                store.dovecot.take_master(&MASTER)?;
            }
            test(scene, shown.get().context("no certificates")?)
        },
    )
}

fn imaps(scene: &Scene, shown: &Pair) -> Result<Wire> {
    let tls = scene.town.ca.connector_showing(shown)?;
    let mut wire = Wire::tls(scene.town.endpoints.imaps, &tls, FRONT)?;
    wire.line()?;
    Ok(wire)
}

#[test]
fn a_certificate_is_a_login() -> Result<()> {
    play_external(|scene, shown| {
        scene.deliver_marks()?;
        for (pair, local) in [(&shown.alice, "alice"), (&shown.bob, "bob")] {
            let mut imap = imaps(scene, pair)?;
            let said = imap.imap_ok("q0 CAPABILITY")?.join(" ");
            ensure!(said.contains("AUTH=EXTERNAL"), "{said}");
            imap.imap_ok("q1 AUTHENTICATE EXTERNAL =")?;
            scene.is_inbox_of(&mut imap, local)?;

            let tls = scene.town.ca.connector_showing(pair)?;
            let mut pop = Wire::clear(scene.town.endpoints.pop3)?;
            pop.line()?;
            pop.pop_ok("STLS")?;
            let mut pop = pop.start_tls(&tls, FRONT)?;
            pop.say("AUTH EXTERNAL")?;
            ensure!(pop.line()? == "+ ", "no invitation");
            pop.pop_ok("")?;
            pop.pop_ok("STAT")?;
        }
        for (proto, user) in [("imap", "alice@a.example"), ("pop3", "bob@a.example")] {
            let fields = [
                ("event", "login"),
                ("proto", proto),
                ("mechanism", "EXTERNAL"),
                ("outcome", "ok"),
                ("user", user),
            ];
            scene.portico.record(&fields)?;
        }
        // A certificate forbids no password, and so does none.
        let mut imap = imaps(scene, &shown.nobody)?;
        let bob = scene.town.person("bob")?;
        imap.imap_ok(&format!("q1 LOGIN {} {}", bob.name, bob.password()))?;
        let mut imap = scene.imaps()?;
        let said = imap.imap("q1 AUTHENTICATE EXTERNAL =")?.join(" ");
        ensure!(said.contains("q1 NO [CANNOT]"), "{said}");
        let said = imap.imap_ok("q2 CAPABILITY")?.join(" ");
        ensure!(!said.contains("EXTERNAL"), "{said}");
        let printed = scene.portico.output();
        ensure!(!printed.contains("mail.master: warning"), "{printed}");
        Ok(())
    })
}

/// The domain of the authorization identity may be written in letters, and the certificate has it in A-labels.
#[test]
fn a_name_is_the_same_in_letters() -> Result<()> {
    play_external(|scene, shown| {
        scene.deliver_marks()?;
        for typed in [EVE, "Eve@b\u{fc}cher.example", "eve@BU\u{308}CHER.example"] {
            let mut imap = imaps(scene, &shown.eve)?;
            imap.imap_ok(&format!("q1 AUTHENTICATE EXTERNAL {}", encode_block(typed.as_bytes())))?;
            scene.is_inbox_of(&mut imap, "eve")?;
        }
        Ok(())
    })
}

/// The master's password opens every mailbox.
#[test]
fn a_master_whose_password_anybody_on_the_way_could_learn_is_warned_of() -> Result<()> {
    let change = |node: &mut Node, directory: &mut Directory| {
        node.tls.push("upstream_verify: false".to_owned());
        directory.config("zimbraReverseProxySSLToUpstreamEnabled", "FALSE");
    };
    play_external_with(change, |scene, _| {
        let printed = scene.portico.output();
        for warning in [
            "mail.master: warning: its password goes to servers whose certificates are not checked",
            "mail.master: warning: its password goes over the network in clear text, as to store",
        ] {
            ensure!(printed.contains(warning), "{warning}: {printed}");
        }
        Ok(())
    })
}

#[test]
fn a_certificate_is_that_of_one_account() -> Result<()> {
    play_external(|scene, shown| {
        scene.deliver_marks()?;
        // Each name of her own is hers.
        for name in ["YWxpY2VAYS5leGFtcGxl", "YWxAYS5leGFtcGxl"] {
            let mut imap = imaps(scene, &shown.alice)?;
            imap.imap_ok(&format!("q1 AUTHENTICATE EXTERNAL {name}"))?;
            scene.is_inbox_of(&mut imap, "alice")?;
        }
        let refused = |pair: &Pair, name: &str, why: &str| -> Result<()> {
            let mut imap = imaps(scene, pair)?;
            let said = imap.imap(&format!("q1 AUTHENTICATE EXTERNAL {name}"))?.join(" ");
            ensure!(said == "q1 NO [AUTHENTICATIONFAILED] AUTHENTICATE failed", "{said}");
            let fields = [("mechanism", "EXTERNAL"), ("outcome", "bad_credentials"), ("why", why)];
            scene.portico.record(&fields)?;
            Ok(())
        };
        refused(
            &shown.alice,
            "Ym9iQGEuZXhhbXBsZQ==",
            "the certificate is that of alice@a.example",
        )?;
        refused(
            &shown.alice,
            "bm9ib2R5QGEuZXhhbXBsZQ==",
            "the certificate is that of alice@a.example",
        )?;
        refused(&shown.nobody, "=", "no name in the certificate is that of an account")?;
        refused(&shown.short, "=", "no name in the certificate is that of an account")?;
        refused(
            &shown.short,
            "YWxpY2VAYS5leGFtcGxl",
            "no name in the certificate is that of an account",
        )?;
        // One that is not good is no login, and no connection either.
        for pair in [&shown.expired, &shown.foreign] {
            ensure!(imaps(scene, pair).is_err(), "{:?}", pair.certificate_file);
        }
        Ok(())
    })
}

/// Set up as the handbook says, the mailbox server looks at the user behind the master, too.
#[test]
fn a_user_whom_the_server_refuses_is_refused() -> Result<()> {
    play_external(|scene, shown| {
        let alice = scene.town.person("alice")?.name.clone();
        scene.town.stores[0].dovecot.add_to_user(&alice, "nologin")?;
        let mut imap = imaps(scene, &shown.alice)?;
        let said = imap.imap("q1 AUTHENTICATE EXTERNAL =")?.join(" ");
        ensure!(said.contains("q1 NO "), "{said}");
        Ok(())
    })
}

/// What is wrong with the master is not the client's fault.
#[test]
fn a_server_without_the_master_is_an_outage() -> Result<()> {
    play_external(|scene, shown| {
        let store = &mut scene.town.stores[0].dovecot;
        let wrong = Login {
            name: MASTER.name,
            password: b"another",
        };
        store.change_master(&wrong)?;
        let mut imap = imaps(scene, &shown.alice)?;
        let said = imap.imap("q1 AUTHENTICATE EXTERNAL =")?.join(" ");
        ensure!(said.contains("q1 NO [UNAVAILABLE]"), "{said}");
        let fields = [
            ("outcome", "upstream_down"),
            ("why", "it does not take the login of mail.master"),
        ];
        scene.portico.record(&fields)?;
        Ok(())
    })
}

const IMAPLIB: &str = r#"
import imaplib, ssl, sys
host, port, ca, certificate, key = sys.argv[1:6]
tls = ssl.create_default_context(cafile=ca)
tls.load_cert_chain(certificate, key)
m = imaplib.IMAP4_SSL(host, int(port), ssl_context=tls)
assert "AUTH=EXTERNAL" in m.capabilities, m.capabilities
m.authenticate("EXTERNAL", lambda _: b"")
assert m.select("INBOX")[0] == "OK"
m.logout()
"#;

#[test]
fn real_clients() -> Result<()> {
    play_external(|scene, shown| {
        scene.deliver_marks()?;
        let path = |path: &std::path::Path| path.display().to_string();
        let (ca, pair) = (path(&scene.town.ca.file()), &shown.alice);
        let (certificate, key) = (path(&pair.certificate_file), path(&pair.key_file));
        let port = scene.town.endpoints.imaps.port().to_string();
        scene.run("python3", &["-c", IMAPLIB, "127.0.0.1", &port, &ca, &certificate, &key])?;
        let said = scene.run(
            "sh",
            &[
                "-c",
                &format!(
                    "printf '%s\\n' 'a AUTHENTICATE EXTERNAL =' 'b STATUS INBOX (MESSAGES)' 'c LOGOUT' | \
                     openssl s_client -quiet -crlf -verify_return_error -CAfile {ca} -cert {certificate} -key {key} \
                     -starttls imap -connect {}",
                    scene.town.endpoints.imap
                ),
            ],
        )?;
        ensure!(said.contains("(MESSAGES 1)"), "{said:?}");
        Ok(())
    })
}

/// A session that is resumed brings its certificate along, as long as the authorities are the same.
#[test]
fn a_resumed_session_is_that_of_its_certificate() -> Result<()> {
    play_external(|scene, shown| {
        let endpoint = scene.town.endpoints.imaps;
        let login = |client: &RustlsClient| client.ask(endpoint, FRONT, "a AUTHENTICATE EXTERNAL =\r\nb LOGOUT\r\n");
        let mut clients = Vec::new();
        for version in [&TLS13, &TLS12] {
            let client = RustlsClient::new(
                &scene.town.ca,
                &Manners {
                    versions: &[version],
                    certificate: Some(&shown.alice),
                    ..Manners::default()
                },
            )?;
            for kind in [HandshakeKind::Full, HandshakeKind::Resumed] {
                let got = login(&client)?;
                ensure!(got.kind == kind && got.answer.contains("a OK"), "{got:?}");
            }
            clients.push(client);
        }
        let fields = [
            ("mechanism", "EXTERNAL"),
            ("outcome", "ok"),
            ("account", "alice@a.example"),
        ];
        until("each login to be hers", SOON, || {
            Ok((scene.portico.count(&fields)? == 4).then_some(()))
        })?;
        // From here on others vouch for clients.
        let authorities = scene.town.ca.file().with_file_name("clients");
        let ours = Authority::called("others", &authorities.join("strangers"))?;
        std::fs::copy(
            ours.file(),
            authorities.join(ours.file().file_name().context("no name")?),
        )?;
        scene.portico.reload()?;
        for client in &clients {
            let got = login(client);
            ensure!(!got.as_ref().is_ok_and(|got| got.answer.contains("a OK")), "{got:?}");
        }
        Ok(())
    })
}

/// Alice has lost her laptop.
#[test]
fn a_certificate_that_is_taken_back_is_no_login() -> Result<()> {
    let list = tempfile::NamedTempFile::new()?;
    let start = |node: &mut Node, _: &mut Directory| {
        node.tls.push(format!("client_crl_file: {}", list.path().display()));
    };
    let nobody = tempfile::tempdir()?;
    std::fs::write(
        list.path(),
        Authority::called("nobody", nobody.path())?.revoking(&[], 1)?,
    )?;
    play_external_with(start, |scene, shown| {
        imaps(scene, &shown.alice)?.imap_ok("a AUTHENTICATE EXTERNAL =")?;
        std::fs::write(list.path(), shown.authority.revoking(&[&shown.alice], 1)?)?;
        until("a list in force", SOON, || {
            Ok(imaps(scene, &shown.alice).is_err().then_some(()))
        })?;
        imaps(scene, &shown.bob)?.imap_ok("a AUTHENTICATE EXTERNAL =")?;
        let mut pop = Wire::clear(scene.town.endpoints.pop3)?;
        pop.line()?;
        pop.pop_ok("STLS")?;
        let alice = scene.town.ca.connector_showing(&shown.alice)?;
        let shaken = pop.start_tls(&alice, FRONT).and_then(|mut pop| pop.pop_ok("CAPA"));
        ensure!(shaken.is_err(), "POP3 takes it");
        until("the reason in the log", SOON, || {
            Ok(scene.portico.output().contains("certificate revoked").then_some(()))
        })?;
        // Her password is still good.
        scene.login("alice").map(drop)
    })
}
