//! What mailbox servers are told of a client, and how TLS begins there: real Dovecots take it in each form, and have it in
//! their logs.

use std::net::IpAddr;

use anyhow::{Context, Result, ensure};
use portico_tests::config::{Directory, Node, Value};
use portico_tests::dovecot::Dovecot;
use portico_tests::town::{Town, people};
use portico_tests::wire::Wire;

use crate::scene::{Scene, greeted, play_with};

/// From here the client comes; Portico comes from 127.0.0.1.
const CLIENT: &str = "127.0.0.77";

/// What Dovecot logs of a login.
const LOGGED: &str = "login_log_format_elements = user=<%u> method=%m rip=%r rport=%b lip=%l lport=%a %c \
                      session=<%{session}> sni=<%{local_name}>\n";

/// Both Dovecots, one listener of each as the test wants it.
fn show_more(dovecot: &mut Dovecot, proxied: bool) -> Result<()> {
    let listener = |port: u16| format!("    port = {port}\n");
    let mut changes = vec![(
        "auth_verbose = yes\n".to_owned(),
        format!("auth_verbose = yes\n{LOGGED}"),
    )];
    if proxied {
        changes.push((
            "login_trusted_networks = 127.0.0.0/8\n".to_owned(),
            "haproxy_trusted_networks = 127.0.0.0/8\n".to_owned(),
        ));
        for port in [dovecot.imaps, dovecot.pop3s, dovecot.imap, dovecot.pop3] {
            changes.push((listener(port), format!("{}    haproxy = yes\n", listener(port))));
        }
    }
    let changes: Vec<(&str, &str)> = changes.iter().map(|(from, to)| (&**from, &**to)).collect();
    dovecot.set(&changes)
}

/// Plays a test at Dovecots that log all they are told, in the words of the node file.
fn play_telling(
    tell: &str,
    change: impl FnOnce(&Town, &mut Node, &mut Directory),
    test: impl FnOnce(&mut Scene) -> Result<()>,
) -> Result<()> {
    let rule = format!("{{servers: [{{name: '*.example.test', tell: {tell}}}]}}");
    play_with(
        people(),
        |town, node, directory| {
            if !tell.is_empty() {
                node.more.push(("mail".to_owned(), rule));
            }
            change(town, node, directory);
            Ok(())
        },
        |scene| {
            for store in &mut scene.town.stores {
                show_more(&mut store.dovecot, tell.contains("proxy") || tell.is_empty())?;
            }
            test(scene)
        },
    )
}

/// A connection of the client, and where it comes from as Dovecot writes it.
fn imaps(scene: &Scene) -> Result<(Wire, String)> {
    let from: IpAddr = CLIENT.parse()?;
    let wire = Wire::clear_from(from, scene.town.endpoints.imaps)?;
    let seen = format!("rip={CLIENT}, rport={}", wire.local()?.port());
    let wire = wire.start_tls_any_name(&scene.town.ca.connector(&[])?, "mail.a.example")?;
    Ok((greeted(wire, "* OK ")?, seen))
}

fn pop3s(scene: &Scene) -> Result<(Wire, String)> {
    let from: IpAddr = CLIENT.parse()?;
    let wire = Wire::clear_from(from, scene.town.endpoints.pop3s)?;
    let seen = format!("rip={CLIENT}, rport={}", wire.local()?.port());
    let wire = wire.start_tls_any_name(&scene.town.ca.connector(&[])?, "mail.a.example")?;
    Ok((greeted(wire, "+OK")?, seen))
}

/// Alice logs in over IMAP and POP3. Returns what her server must have logged of each.
fn log_in(scene: &mut Scene) -> Result<[String; 2]> {
    let person = scene.town.person("alice")?.clone();
    let (mut imap, of_imap) = imaps(scene)?;
    // What a client says of itself is not believed.
    imap.imap_ok("i ID (\"x-originating-ip\" \"198.51.100.66\" \"x-session-id\" \"forged\" \"x-proxy-ttl\" \"99\")")?;
    imap.imap_ok(&format!("l LOGIN {} {}", person.name, person.password()))?;
    imap.imap_ok("o LOGOUT")?;
    let (mut pop, of_pop) = pop3s(scene)?;
    pop.pop_ok("XCLIENT ADDR=198.51.100.66 SESSION=forged TTL=99")?;
    pop.pop_ok(&format!("USER {}", person.name))?;
    pop.pop_ok(&format!("PASS {}", person.password()))?;
    pop.pop_ok("QUIT")?;
    Ok([of_imap, of_pop])
}

/// The line of Dovecot's log that has this.
fn logged(dovecot: &Dovecot, text: &str) -> Result<String> {
    dovecot.wait_log(text)?;
    let log = dovecot.log();
    ensure!(!log.contains("198.51.100.66") && !log.contains("forged"), "{log}");
    let line = log.lines().find(|line| line.contains(text)).context("a line")?;
    Ok(line.to_owned())
}

/// The id of Alice's last connection in the audit log.
fn connection(scene: &mut Scene, proto: &str) -> Result<String> {
    let record = scene
        .portico
        .record(&[("event", "login"), ("proto", proto), ("outcome", "ok")])?;
    Ok(record["conn"].as_str().context("an id")?.to_owned())
}

#[test]
fn in_zimbras_words() -> Result<()> {
    play_telling(
        "zimbra",
        |_, _, _| (),
        |scene| {
            for seen in log_in(scene)? {
                // Neither has words for the port.
                let address = seen.split(',').next().unwrap_or_default();
                logged(&scene.town.stores[0].dovecot, address)?;
            }
            Ok(())
        },
    )
}

#[test]
fn in_dovecots_words() -> Result<()> {
    play_telling(
        "[dovecot]",
        |_, _, _| (),
        |scene| {
            let [of_imap, of_pop] = log_in(scene)?;
            let (imap, pop) = (connection(scene, "imap")?, connection(scene, "pop3")?);
            let dovecot = &scene.town.stores[0].dovecot;
            let line = logged(dovecot, &of_imap)?;
            let local = scene.town.endpoints.imaps;
            let told = format!("lip={}, lport={}", local.ip(), local.port());
            ensure!(
                line.contains(&told) && line.contains(&format!("session=<{imap}>")),
                "{line}"
            );
            let line = logged(dovecot, &of_pop)?;
            ensure!(line.contains(&format!("session=<{pop}>")), "{line}");
            Ok(())
        },
    )
}

#[test]
fn by_a_proxy_header() -> Result<()> {
    for version in ["proxy_v1", "proxy_v2"] {
        play_telling(
            version,
            |_, _, _| (),
            |scene| {
                let seen = log_in(scene)?;
                let to = [scene.town.endpoints.imaps, scene.town.endpoints.pop3s];
                for (seen, local) in seen.iter().zip(to) {
                    let line = logged(&scene.town.stores[0].dovecot, seen)?;
                    ensure!(
                        line.contains(&format!("lip={}, lport={}", local.ip(), local.port())),
                        "{line}"
                    );
                }
                Ok(())
            },
        )?;
    }
    Ok(())
}

/// The directory says what its servers are told; Dovecot has the client's own SNI where TLS does not cover it.
#[test]
fn as_the_directory_says() -> Result<()> {
    play_telling(
        "",
        |town, _, directory| {
            directory.config("zimbraReverseProxySSLToUpstreamEnabled", "FALSE");
            let entry = directory.server(&town.stores[0].name);
            entry.insert("porticoServerTell".into(), Value::from(["proxy_v2"]));
        },
        |scene| {
            for seen in log_in(scene)? {
                let line = logged(&scene.town.stores[0].dovecot, &seen)?;
                ensure!(line.contains("sni=<mail.a.example>"), "{line}");
            }
            Ok(())
        },
    )
}

/// Only STARTTLS and STLS lead in at these servers, which want to know Portico by its certificate.
#[test]
fn tls_begins_with_starttls() -> Result<()> {
    play_with(
        people(),
        |town, node, directory| {
            let own = town.ca.client("proxy1.example.test")?;
            let (certificate, key) = (own.certificate_file.display(), own.key_file.display());
            // The section `tls` is written by the node file; these lines go into it.
            node.tls.push(format!("upstream_certificate: {certificate}"));
            node.tls.push(format!("upstream_key: {key}"));
            node.tls.push("upstream_min_version: TLSv1.3".to_owned());
            for store in &town.stores {
                let entry = directory.server(&store.name);
                entry.insert("porticoServerStartTls".into(), "TRUE".into());
                entry.insert("porticoServerTell".into(), "dovecot".into());
            }
            Ok(())
        },
        |scene| {
            let ca = scene.town.ca.file();
            for store in &mut scene.town.stores {
                let secured = format!(
                    "disable_plaintext_auth = yes\nssl = required\nssl_ca = <{}\nssl_verify_client_cert = yes\n\
                     auth_ssl_require_client_cert = yes\nssl_require_crl = no\n",
                    ca.display()
                );
                store.dovecot.set(&[
                    ("disable_plaintext_auth = no\n", &secured),
                    ("ssl = yes\n", ""),
                    // Addresses of these networks need no TLS.
                    ("login_trusted_networks = 127.0.0.0/8\n", ""),
                ])?;
                show_more(&mut store.dovecot, false)?;
            }
            log_in(scene)?;
            let log = scene.town.stores[0].dovecot.log();
            let logins: Vec<&str> = log.lines().filter(|line| line.contains("Login: ")).collect();
            ensure!(
                logins.len() == 2 && logins.iter().all(|line| line.contains(", TLS,")),
                "{log}"
            );
            ensure!(
                log.contains(&format!("lport={}", scene.town.stores[0].dovecot.imap)),
                "{log}"
            );
            Ok(())
        },
    )
}

/// A server whose certificate is not good hears no password. Transcripts have those that do not begin TLS.
#[test]
fn after_starttls_the_certificate_must_be_good() -> Result<()> {
    play_with(
        people(),
        |town, _, directory| {
            for store in &town.stores {
                let entry = directory.server(&store.name);
                entry.insert("porticoServerStartTls".into(), "TRUE".into());
            }
            Ok(())
        },
        |scene| {
            let other = scene.town.ca.server(&["other.example.test"])?;
            let store = &mut scene.town.stores[1];
            store.dovecot.show_certificate(&other)?;
            for _ in 0..2 {
                let person = scene.town.person("bob")?.clone();
                let mut imap = scene.imaps()?;
                let answer = imap.imap(&format!("l LOGIN {} {}", person.name, person.password()))?;
                ensure!(
                    answer.last().is_some_and(|line| line.starts_with("l NO [UNAVAILABLE]")),
                    "{answer:?}"
                );
                let mut pop = scene.pop3s()?;
                pop.pop_ok(&format!("USER {}", person.name))?;
                let said = pop.pop(&format!("PASS {}", person.password()))?;
                ensure!(said.starts_with("-ERR [SYS/TEMP]"), "{said}");
            }
            Ok(())
        },
    )
}
