//! What a change would do is said before it is made: by `portico prov --dry-run`, and by the admin API. It is what the
//! change then does, and nothing is written before.

use std::net::{Ipv4Addr, SocketAddrV4, TcpStream};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use portico_tests::portico::{Portico, binary};
use portico_tests::town::{NODE, Person, Town, people};
use portico_tests::wire::Wire;
use portico_tests::{Stage, until};
use serde_json::{Value, json};

use crate::scene::{Scene, Source, play_with};

const SOON: Duration = Duration::from_secs(10);

/// The words for nothing.
const NOTHING: &str = "no certificate, route, session or listener changes";

/// What a command said.
#[derive(Debug, PartialEq, Eq)]
struct Said {
    out: String,
    err: String,
    code: i32,
}

/// `portico prov` with the node file in this folder.
fn prov_in(dir: &Path, words: &[&str], lines: &str) -> Result<Said> {
    use std::io::Write;
    let mut child = Command::new(binary()?)
        .arg("prov")
        .arg("-c")
        .arg(dir.join("portico.yaml"))
        .args(words)
        .env("RUST_LOG", "off")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()?;
    child.stdin.take().context("stdin")?.write_all(lines.as_bytes())?;
    let output = child.wait_with_output()?;
    Ok(Said {
        out: String::from_utf8(output.stdout)?,
        err: String::from_utf8(output.stderr)?,
        code: output.status.code().context("killed")?,
    })
}

fn prov(scene: &Scene, words: &[&str]) -> Result<Said> {
    prov_in(scene.portico.dir(), words, "")
}

/// The lines of a preview behind the first one, which says of which node they are.
fn foreseen(scene: &Scene, words: &[&str]) -> Result<String> {
    let said = prov(scene, &[&["--dry-run"], words].concat())?;
    ensure!(said.code == 0 && said.err.is_empty(), "{words:?}: {said:?}");
    let (first, rest) = said.out.split_once('\n').context("no answer")?;
    let expected = format!("dry run: nothing was written; on {NODE}, beside configuration ");
    ensure!(first.starts_with(&expected), "{words:?}: {first}");
    Ok(rest.to_owned())
}

/// Asks the admin API over its socket; returns status and body.
fn socket_ask(scene: &Scene, method: &str, path: &str, body: &Value) -> Result<(u16, String)> {
    use std::io::{Read, Write};
    let mut stream = UnixStream::connect(scene.portico.dir().join("admin.sock"))?;
    let body = body.to_string();
    let head = format!(
        "{method} {path} HTTP/1.1\r\nHost: portico\r\nConnection: close\r\nContent-Type: application/json\r\n\
         Content-Length: {}\r\n\r\n",
        body.len()
    );
    stream.write_all((head + &body).as_bytes())?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    let (head, body) = answer.split_once("\r\n\r\n").context("no head")?;
    let status = head.split(' ').nth(1).context("no status")?.parse()?;
    Ok((status, body.to_owned()))
}

/// Everything that the directory says, with all secrets.
fn directory(scene: &Scene) -> Result<String> {
    let verbs = [
        &["gas", "-v", "-e"][..],
        &["gad", "-v", "-e"],
        &["gaa", "-v", "-e"],
        &["gacf"],
    ];
    let mut all = String::new();
    for verb in verbs {
        all += &prov(scene, &[&["-fd"], verb].concat())?.out;
    }
    Ok(all)
}

/// A change, and what must stand in the preview of it; `-` in front: what must not.
type Row<'a> = (Vec<&'a str>, Vec<&'a str>);

fn check(scene: &Scene, (words, expected): Row) -> Result<()> {
    let text = foreseen(scene, &words)?;
    for line in expected {
        let is_there = match line.strip_prefix('-') {
            None => text.contains(line),
            Some(line) => !text.contains(line),
        };
        ensure!(is_there, "{words:?}: {line:?} in\n{text}");
    }
    Ok(())
}

fn each_kind_is_foreseen(source: Source) -> Result<()> {
    source.play(|scene| {
        let (mut alice, mut bob) = (scene.login("alice")?, scene.login("bob")?);
        let [one, two] = [0, 1].map(|at| scene.town.stores[at].name.clone());
        let http = scene.town.endpoints.http.to_string();
        let imap = scene.town.endpoints.imap.to_string();
        let before = (directory(scene)?, scene.portico.count(&[("event", "config")])?);
        let moves = format!("alice@a.example from {one} to {two} (imap, pop3, web)");
        let other_address = format!("alice@a.example from {one} at ");
        let on_one = format!("of alice@a.example on {one}");
        let (ends, stays) = (format!("{on_one} is ended"), format!("{on_one} stays"));
        let (serves, starttls) = (
            format!("  {http} changes: web, in clear text, serves (now web, in clear text, redirects to port "),
            format!("  {imap} changes: imap, STARTTLS 1.2 to 1.3, logins in clear text too (now imap, STARTTLS 1.2"),
        );
        for row in [
            (vec!["md", "a.example", "description", "nothing"], vec![NOTHING]),
            (
                vec!["md", "a.example", "+zimbraVirtualHostname", "IMAP.a.example"],
                vec![],
            ),
            (
                vec!["md", "a.example", "-zimbraVirtualHostname", "imap.a.example"],
                vec![
                    "certificates: 1 name changes\n  imap.a.example is removed: web and mail clients get the default",
                    "(now its own certificate (",
                    "-routes:",
                    "-sessions:",
                    "-listeners:",
                ],
            ),
            (
                vec!["md", "a.example", "zimbraSSLCertificate", "", "zimbraSSLPrivateKey", ""],
                vec![
                    "certificates: 2 names change",
                    "mail.a.example: web and mail clients get the default",
                ],
            ),
            (
                vec!["cd", "n.example", "zimbraVirtualHostname", "mail.n.example"],
                vec!["certificates: 1 name changes\n  mail.n.example is added: web and mail clients"],
            ),
            (
                vec!["ma", "al@a.example", "zimbraMailHost", &two],
                vec![
                    "routes: 1 account is sent elsewhere, of 1 compared",
                    &moves,
                    "sessions: 1 are ended within 30 s, 0 stay",
                    &ends,
                    "-bob",
                    "-certificates:",
                ],
            ),
            (
                vec!["ma", "alice@a.example", "zimbraAccountStatus", "closed"],
                vec![
                    "sessions: none is ended, 1 stay",
                    &stays,
                    "note: alice@a.example is closed to logins",
                ],
            ),
            (
                vec!["ma", "alice@a.example", "zimbraAccountStatus", "maintenance"],
                vec![
                    "note: alice@a.example is in maintenance: its new logins wait",
                    "-sessions:",
                ],
            ),
            (
                vec!["da", "alice@a.example"],
                vec![
                    "to no server (no such account)",
                    &stays,
                    "note: alice@a.example is deleted",
                ],
            ),
            (
                vec!["ms", &one, "zimbraServiceHostname", "127.0.0.77"],
                vec![
                    "routes: 1 account is sent elsewhere, of 2 compared",
                    &other_address,
                    "sessions: none is ended, 1 stay",
                    &stays,
                ],
            ),
            (
                vec!["ms", NODE, "zimbraReverseProxyMailMode", "both"],
                vec!["listeners:\n", &serves, "-routes:", "-certificates:"],
            ),
            (
                vec!["mcf", "zimbraReverseProxyImapStartTlsMode", "on"],
                vec!["listeners:\n", &starttls],
            ),
        ] {
            if row.1.is_empty() {
                let said = prov(scene, &[&["--dry-run"], &row.0[..]].concat())?;
                assert_eq!(
                    said.out,
                    "dry run: nothing was written; the directory says so already\n"
                );
            } else {
                check(scene, row)?;
            }
        }
        assert_eq!(
            (directory(scene)?, scene.portico.count(&[("event", "config")])?),
            before
        );
        alice.imap_ok("a1 NOOP")?;

        // It does what was foreseen.
        let said = prov(scene, &["ma", "al@a.example", "zimbraMailHost", &two])?;
        ensure!(said.code == 0, "{said:?}");
        let line = alice.line()?;
        ensure!(line.starts_with("* BYE your mailbox has moved"), "{line}");
        bob.imap_ok("b1 NOOP")?;
        Ok(())
    })
}

#[test]
fn each_kind_of_change_is_foreseen_in_a_file() -> Result<()> {
    each_kind_is_foreseen(Source::Yaml)
}

#[test]
fn each_kind_of_change_is_foreseen_in_ldap() -> Result<()> {
    each_kind_is_foreseen(Source::Ldap)
}

/// What is refused is refused in the same words and with the same exit code, and what was tried earlier counts.
#[test]
fn errors_are_those_of_the_change_itself() -> Result<()> {
    for source in [Source::Yaml, Source::Ldap] {
        source.play(|scene| {
            let one = scene.town.stores[0].name.clone();
            let key = scene.town.domains[1].1.key_file.display().to_string();
            let key = format!("file:{key}");
            for words in [
                vec!["ma", "no@body.example", "zimbraMailHost", &one],
                vec!["ma", "alice@a.example", "zimbraMailHost", "nowhere.example"],
                vec!["md", "nobody.example", "description", "x"],
                vec!["md", "a.example", "zimbraVirtualHostname", "bad_name"],
                vec!["md", "a.example", "zimbraSSLPrivateKey", &key],
                vec!["ms", NODE, "zimbraImapProxyBindPort", "993"],
                vec!["ms", NODE, "zimbraImapProxyBindPort", "many"],
                vec!["cd", "a.example"],
                vec!["ca", "al@a.example", ""],
                vec!["dd", "a.example"],
                vec!["ds", &one],
                vec!["md", "a.example"],
                vec!["frobnicate"],
            ] {
                let tried = prov(scene, &[&["--dry-run"], &words[..]].concat())?;
                ensure!(tried.code != 0 && !tried.out.contains("dry run"), "{words:?}: {tried:?}");
                assert_eq!(tried, prov(scene, &words)?, "{words:?}");
            }
            let lines = "cd n.example\nmd n.example zimbraVirtualHostname a.n.example\nmd no.example description x\n\
                         md n.example +zimbraVirtualHostname b.n.example\ncd n.example\nfc all\ngd -e n.example zimbraVirtualHostname\n";
            let said = prov_in(scene.portico.dir(), &["--dry-run"], lines)?;
            assert_eq!(said.code, 2);
            let errors = "ERROR: account.NO_SUCH_DOMAIN (no such domain: no.example)\nERROR: account.DOMAIN_EXISTS (domain \
                          already exists: n.example)\nWARNING: dry run: nothing was flushed\n";
            assert_eq!(said.err, errors);
            ensure!(said.out.contains("certificates: 2 names change\n"), "{said:?}");
            ensure!(said.out.contains("zimbraVirtualHostname: b.n.example\n"), "{said:?}");
            let said = prov(scene, &["gd", "n.example"])?;
            assert_eq!(said.code, 2, "{said:?}");
            Ok(())
        })?;
    }
    Ok(())
}

/// A renewed certificate is foreseen by its fingerprint, and its key is never seen again.
#[test]
fn keys_are_not_in_an_answer() -> Result<()> {
    play_with(
        people(),
        |_, _, _| Ok(()),
        |scene| {
            let pair = scene.town.ca.server(&["mail.a.example", "imap.a.example"])?;
            let words = pair.words_of_domain("a.example");
            let text = foreseen(scene, &words.each_ref().map(String::as_str))?;
            ensure!(
                text.contains("mail.a.example: web and mail clients get its own certificate"),
                "{text}"
            );
            let attributes = json!({"zimbraSSLCertificate": [pair.certificate], "zimbraSSLPrivateKey": [pair.key]});
            let changes = json!({"changes": [{"kind": "domain", "name": "a.example", "attributes": attributes}]});
            let answer = socket_ask(scene, "POST", "/v1/preview", &changes)?;
            ensure!(answer.0 == 200 && !answer.1.contains("PRIVATE"), "{answer:?}");
            let answer: Value = serde_json::from_str(&answer.1)?;
            assert_eq!(
                (&answer["names"]["count"], &answer["names"]["first"][0]["change"]),
                (&json!(2), &json!("other"))
            );
            // A body that is not understood may hold a key.
            let wrong = json!({"changes": [{"kind": pair.key, "name": "a.example"}]});
            let answer = socket_ask(scene, "POST", "/v1/preview", &wrong)?;
            ensure!(answer.0 == 400 && !answer.1.contains("PRIVATE"), "{answer:?}");
            // A pair that cannot be used: the node would go on with the one that it has.
            let attributes = json!({"zimbraSSLCertificate": ["no certificate"]});
            let changes = json!({"changes": [{"kind": "domain", "name": "a.example", "attributes": attributes}]});
            let answer = socket_ask(scene, "POST", "/v1/preview", &changes)?;
            let answer: Value = serde_json::from_str(&answer.1)?;
            assert_eq!(answer["names"]["count"], 0);
            let warning = answer["warnings"][0].as_str().context("no warning")?;
            ensure!(warning.contains("the previous certificate stays in use"), "{warning}");
            Ok(())
        },
    )
}

/// Listeners that the directory names.
#[test]
fn listeners_that_open_and_close_are_foreseen() -> Result<()> {
    Stage::run(|stage| {
        let town = Town::build(stage, people())?;
        let mut node = town.node();
        node.listeners.clear();
        let mut directory = town.directory();
        let mut ports = Vec::new();
        for name in [
            "zimbraMailProxyPort",
            "zimbraMailSSLProxyPort",
            "zimbraImapProxyBindPort",
            "zimbraImapSSLProxyBindPort",
            "zimbraPop3ProxyBindPort",
            "zimbraPop3SSLProxyBindPort",
            "carbonioAdminProxyPort",
        ] {
            let port = stage.port()?;
            directory.server(NODE).insert(name.to_owned(), port.into());
            ports.push(port);
        }
        directory.config("zimbraReverseProxyMailMode", "https");
        let mut portico = Portico::start(stage, &node, &directory, "info")?;
        let at = |port: u16| SocketAddrV4::new(Ipv4Addr::LOCALHOST, port);
        until("a listener", SOON, || {
            Ok(TcpStream::connect(at(ports[1])).ok().map(drop))
        })?;
        for (words, expected) in [
            (
                ["mcf", "zimbraReverseProxyMailMode", "redirect"],
                format!(
                    "0.0.0.0:{} opens: web, in clear text, redirects to port {}\n",
                    ports[0], ports[1]
                ),
            ),
            (
                ["mcf", "zimbraReverseProxyMailPop3Enabled", "FALSE"],
                format!(
                    "0.0.0.0:{} closes: pop3, STARTTLS 1.2 to 1.3, no login before it\n",
                    ports[4]
                ),
            ),
        ] {
            let said = prov_in(portico.dir(), &[&["--dry-run"], &words[..]].concat(), "")?;
            ensure!(said.out.contains(&expected) && said.code == 0, "{said:?}");
        }
        ensure!(TcpStream::connect(at(ports[0])).is_err() && TcpStream::connect(at(ports[4])).is_ok());
        ensure!(portico.is_running());
        Ok(())
    })
}

/// Where no node runs, the change is judged all the same.
#[test]
fn without_a_node_only_the_change_is_judged() -> Result<()> {
    Stage::run(|stage| {
        let town = Town::build(stage, people())?;
        let dir = stage.dir("alone")?;
        std::fs::write(dir.join("portico.yaml"), town.node().yaml(&dir))?;
        std::fs::write(dir.join("directory.yaml"), town.directory().yaml())?;
        let two = &town.stores[1].name;
        let change = ["ma", "alice@a.example", "zimbraMailHost", two];
        let said = prov_in(&dir, &[&["--dry-run"], &change[..]].concat(), "")?;
        assert_eq!(
            (said.out.as_str(), said.code),
            ("dry run: nothing was written; the change is valid\n", 0)
        );
        ensure!(
            said.err
                .starts_with("WARNING: no node was asked what it would do there: no Portico answers"),
            "{said:?}"
        );
        let said = prov_in(&dir, &[&["--dry-run", "--wait", "node"], &change[..]].concat(), "")?;
        assert_eq!(said.code, 3);
        let said = prov_in(&dir, &["--dry-run", "ma", "no@body.example", "zimbraMailHost", two], "")?;
        assert_eq!((said.out.as_str(), said.code), ("", 2));
        assert_eq!(
            std::fs::read_to_string(dir.join("directory.yaml"))?,
            town.directory().yaml()
        );
        Ok(())
    })
}

/// Many accounts on one server are counted and only the first are named.
#[test]
fn an_answer_about_many_routes_is_short() -> Result<()> {
    const MANY: usize = 300;
    let name = |i: usize| format!("u{i:03}@a.example");
    let users = (0..MANY).map(|i| Person::new(&name(i), 0, "many-c4n4ry-word"));
    let all = people().into_iter().chain(users).collect();
    let both = |_: &Town, _: &mut _, directory: &mut portico_tests::config::Directory| {
        directory.config("zimbraReverseProxyMailMode", "both");
        Ok(())
    };
    play_with(all, both, |scene| {
        let one = scene.town.stores[0].name.clone();
        for i in 0..MANY {
            let mut web = Wire::clear(scene.town.endpoints.http)?;
            let head = "HTTP/1.1\r\nHost: mail.a.example\r\nConnection: close\r\n\r\n";
            web.send(format!("GET /home/{}/x {head}", name(i)))?;
            web.rest()?;
        }
        let text = foreseen(scene, &["ms", &one, "zimbraServiceHostname", "127.0.0.77"])?;
        let first = format!("routes: {MANY} accounts are sent elsewhere, of {MANY} compared\n  u000@a.example from");
        ensure!(text.starts_with(&first), "{text}");
        ensure!(
            text.contains("u019@a.example") && !text.contains("u020@a.example"),
            "{text}"
        );
        ensure!(text.contains(&format!("  and {} more\n", MANY - 20)), "{text}");
        let attributes = json!({"zimbraServiceHostname": ["127.0.0.77"]});
        let changes = json!([{"kind": "server", "name": one, "attributes": attributes}]);
        let answer = socket_ask(scene, "POST", "/v1/preview", &json!({"changes": changes, "first": 3}))?;
        let answer: Value = serde_json::from_str(&answer.1)?;
        assert_eq!(answer["accounts"]["count"], MANY);
        assert_eq!(answer["accounts"]["first"].as_array().map(Vec::len), Some(3));
        Ok(())
    })
}
