//! The web console and the part of the admin API that is there for it: domains, their virtual hosts and certificates.
//! What the page shows and does is seen with a real browser.

use std::cell::Cell;
use std::io::{Read, Write};
use std::net::{Ipv4Addr, SocketAddrV4, TcpStream};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use nix::sys::signal::Signal;
use portico_tests::acme_authority::{AcmeAuthority, Resource};
use portico_tests::browser::Browser;
use portico_tests::certs::Pair;
use portico_tests::portico::Portico;
use portico_tests::redis::Redis;
use portico_tests::slapd::Slapd;
use portico_tests::town::{FRONT, Town, people};
use portico_tests::wire::Wire;
use portico_tests::{Stage, until};
use serde_json::{Value, json};

use crate::probes::{GONE, TwoNodes};
use crate::scene::{Scene, Source};
use crate::shared_state::{NAMES, SOON, Together, at};
use crate::{acme, acme_strict};

const TOKEN: &str = "0123456789abcdef0123";

/// How the admin API is reached over TCP.
struct Api {
    address: SocketAddrV4,
    token: Option<&'static str>,
}

/// What it answered.
#[derive(Debug)]
struct Answer {
    status: u16,
    head: String,
    text: String,
}

impl Answer {
    fn json(&self) -> Result<Value> {
        serde_json::from_str(&self.text).with_context(|| format!("{self:?}"))
    }

    fn done(&self) -> Result<Value> {
        ensure!(self.status == 200, "{self:?}");
        self.json()
    }
}

impl Api {
    fn ask(&self, method: &str, path: &str, body: Option<&Value>) -> Result<Answer> {
        let token = self.token.map(|token| format!("Authorization: Bearer {token}\r\n"));
        let body = body.map(Value::to_string).unwrap_or_default();
        let head = format!(
            "{method} {path} HTTP/1.1\r\nHost: {}\r\nConnection: close\r\n{}Content-Type: application/json\r\n\
             Content-Length: {}\r\n\r\n",
            self.address,
            token.unwrap_or_default(),
            body.len()
        );
        self.say(&(head + &body))
    }

    fn say(&self, request: &str) -> Result<Answer> {
        let mut stream = TcpStream::connect(self.address)?;
        stream.set_read_timeout(Some(Duration::from_secs(60)))?;
        stream.write_all(request.as_bytes())?;
        let mut answer = Vec::new();
        stream.read_to_end(&mut answer)?;
        let answer = String::from_utf8(answer)?;
        let (head, text) = answer.split_once("\r\n\r\n").context("no head")?;
        let status = head.split(' ').nth(1).context("no status")?.parse()?;
        Ok(Answer {
            status,
            head: head.to_ascii_lowercase(),
            text: text.to_owned(),
        })
    }

    /// All domains, without the days that a certificate lasts: one may pass meanwhile.
    fn all_domains(&self) -> Result<Value> {
        let mut list = self.ask("GET", "/v1/domains", None)?.done()?;
        for domain in list["domains"].as_array_mut().context("no list")? {
            domain["certificate"]["days_left"].take();
        }
        Ok(list)
    }

    fn domain(&self, name: &str) -> Result<Value> {
        let list = self.ask("GET", "/v1/domains", None)?.done()?;
        let all = list["domains"].as_array().context("no list")?;
        let found = all.iter().find(|domain| domain["name"] == name);
        found.cloned().with_context(|| format!("no {name} in {list}"))
    }
}

/// Plays a test on a node with `admin.http`, where a change needs a token, or is not possible.
fn play(source: Source, token: Option<&'static str>, test: impl FnOnce(&mut Scene, &Api) -> Result<()>) -> Result<()> {
    play_with(source, token, None, test)
}

/// The same with a throttle of its own.
fn play_with(
    source: Source,
    token: Option<&'static str>,
    throttle: Option<&str>,
    test: impl FnOnce(&mut Scene, &Api) -> Result<()>,
) -> Result<()> {
    let folder = tempfile::tempdir()?;
    // A port that no connection on its way out can take meanwhile.
    let ports = Stage::new()?;
    let address = Cell::new(SocketAddrV4::new(Ipv4Addr::LOCALHOST, 0));
    let change = |_: &_, node: &mut portico_tests::config::Node, _: &mut _| {
        address.set(SocketAddrV4::new(Ipv4Addr::LOCALHOST, ports.port()?));
        node.admin.push(format!("http: {}", address.get()));
        let throttle = throttle.map(|throttle| ("throttle".to_owned(), throttle.to_owned()));
        node.more.extend(throttle);
        if let Some(token) = token {
            let file = folder.path().join("token");
            std::fs::write(&file, token)?;
            node.admin.push(format!("token_file: {}", file.display()));
        }
        Ok(())
    };
    source.play_with(people(), change, |scene| {
        let address = address.get();
        test(scene, &Api { address, token })
    })
}

/// The common names of the certificates that HTTPS and IMAPS show for a name.
fn shown(scene: &Scene, name: &str) -> Result<[String; 2]> {
    let endpoints = scene.town.endpoints;
    Ok([
        scene.tls(endpoints.https, name)?.certificate_name()?,
        scene.tls(endpoints.imaps, name)?.certificate_name()?,
    ])
}

const NEW_NAME: &str = "new.a.example";
const HOSTS_OF_A: &str = "/v1/domains/a.example/virtual-hosts";
const CERTIFICATE_OF_A: &str = "/v1/domains/A.example/certificate";

/// The story of a domain that gets a virtual host and a certificate, and loses them again.
fn changes_count_at_once(source: Source) -> Result<()> {
    play(source, Some(TOKEN), |scene, api| {
        domains_are_shown(scene, api)?;
        a_virtual_host_is_added(scene, api)?;
        let key = a_certificate_is_stored(scene, api)?;
        a_certificate_is_taken_away(scene, api)?;
        let none = json!({"virtual_hosts": []});
        let none = api.ask("PUT", HOSTS_OF_A, Some(&none))?.done()?;
        assert_eq!(none["domain"]["virtual_hosts"], json!([]));
        no_key_in_logs(scene, &key)
    })
}

fn domains_are_shown(scene: &Scene, api: &Api) -> Result<()> {
    let a = api.domain("a.example")?;
    assert_eq!(a["certificate"]["names"], json!(["mail.a.example", "imap.a.example"]));
    assert_eq!(a["uncovered"], json!([]));
    assert_eq!(
        a["virtual_hosts"][0],
        json!({"name": "mail.a.example", "shown": "own", "covered": true, "taken_by": null})
    );
    ensure!(a["certificate"]["days_left"].as_i64() > Some(300), "{a}");
    assert_eq!(a["certificate"]["issuer"], "CN=Portico development CA");
    assert_eq!(a["certificate"]["fingerprint"].as_str().map(str::len), Some(64));
    assert_eq!(api.domain("c.example")?["uncovered"], json!([]));
    assert_eq!(shown(scene, NEW_NAME)?, [FRONT, FRONT]);
    Ok(())
}

fn a_virtual_host_is_added(scene: &Scene, api: &Api) -> Result<()> {
    let names = json!({"virtual_hosts": ["mail.a.example", NEW_NAME], "before": ["mail.a.example"]});
    let changed = api.ask("PUT", HOSTS_OF_A, Some(&names))?.done()?;
    ensure!(changed["in_force"] == true, "{changed}");
    let warning = changed["warnings"][0].as_str().context("no warning")?;
    ensure!(
        warning.contains("is not good for") && warning.ends_with(NEW_NAME),
        "{warning}"
    );
    // What the list did not know of has stayed.
    let hosts = changed["domain"]["virtual_hosts"].as_array().context("no names")?;
    ensure!(hosts.iter().any(|host| host["name"] == "imap.a.example"), "{changed}");
    assert_eq!(changed["domain"]["uncovered"], json!([NEW_NAME]));
    // It has the certificate of its domain without waiting.
    assert_eq!(shown(scene, NEW_NAME)?, ["mail.a.example", "mail.a.example"]);
    Ok(())
}

/// Returns its private key.
fn a_certificate_is_stored(scene: &Scene, api: &Api) -> Result<String> {
    let pair = scene.town.ca.server(&[NEW_NAME, "mail.a.example", "imap.a.example"])?;
    let (leaf, chain) = pair
        .certificate
        .split_at(pair.certificate.rfind("-----BEGIN").context("no chain")?);
    // The wrong way round, and without a line end between them.
    let mut upload = json!({"certificate": chain.trim_end(), "chain": leaf.trim_end(), "key": pair.key});
    let stored = api.ask("PUT", CERTIFICATE_OF_A, Some(&upload))?;
    ensure!(!stored.text.contains("PRIVATE"), "{stored:?}");
    let stored = stored.done()?;
    assert_eq!((&stored["warnings"], &stored["in_force"]), (&json!([]), &json!(true)));
    assert_eq!(stored["domain"]["uncovered"], json!([]));
    assert_eq!(shown(scene, NEW_NAME)?, [NEW_NAME, NEW_NAME]);
    let tls = scene.tls(scene.town.endpoints.https, NEW_NAME)?;
    let expected = openssl::x509::X509::from_pem(leaf.as_bytes())?.to_der()?;
    assert_eq!(tls.certificate()?, expected);
    let act = "domain a.example: certificate stored, private key stored";
    let record = scene.portico.record(&[("event", "admin"), ("act", act)])?;
    let who = record["who"].as_str();
    ensure!(who.is_some_and(|who| who.starts_with("127.0.0.1:")), "{record}");
    let act = "domain a.example: virtual host names +new.a.example";
    scene.portico.record(&[("act", act)])?;
    // The same key counts for a certificate that comes alone.
    upload.as_object_mut().context("no object")?.remove("key");
    api.ask("PUT", CERTIFICATE_OF_A, Some(&upload))?.done()?;
    scene.portico.record(&[("act", "domain a.example: nothing changed")])?;
    Ok(pair.key)
}

fn a_certificate_is_taken_away(scene: &Scene, api: &Api) -> Result<()> {
    let gone = api.ask("DELETE", CERTIFICATE_OF_A, None)?.done()?;
    assert_eq!(gone["domain"]["certificate"], Value::Null);
    assert_eq!(gone["domain"]["virtual_hosts"][0]["shown"], "default");
    assert_eq!(shown(scene, NEW_NAME)?, [FRONT, FRONT]);
    Ok(())
}

/// A line from the middle of the key stands in no log.
fn no_key_in_logs(scene: &Scene, key: &str) -> Result<()> {
    let line = key.lines().nth(1).context("no key")?;
    for name in ["audit.log", "access.log", "output.log"] {
        let text = std::fs::read_to_string(scene.portico.dir().join(name)).unwrap_or_default();
        ensure!(!text.contains(line), "{name} holds the key");
    }
    Ok(())
}

#[test]
fn domains_of_a_file_are_changed_at_once() -> Result<()> {
    changes_count_at_once(Source::Yaml)
}

#[test]
fn domains_in_ldap_are_changed_at_once() -> Result<()> {
    changes_count_at_once(Source::Ldap)
}

/// What is sent to the certificate or the virtual hosts of a domain, and why it is refused.
fn bad_changes(good: &Pair, other: &Pair, old: &Pair) -> Vec<(&'static str, Value, u16, &'static str)> {
    let (of_a, to_a) = ("/v1/domains/a.example/certificate", HOSTS_OF_A);
    let (of_none, to_none) = (
        "/v1/domains/no.example/certificate",
        "/v1/domains/no.example/virtual-hosts",
    );
    let upload = |certificate: &str, key: &str| json!({"certificate": certificate, "key": key});
    let names = |names: &[&str]| json!({"virtual_hosts": names});
    let broken = good.certificate.replacen("\nMII", "\nAAA", 1);
    let with_key = good.certificate.clone() + &good.key;
    let other_key = "does not belong to the certificate";
    let not_a_name = "is not a host name with its domain";
    // That is a file of the machine to `portico prov`, and must not be one to the network.
    let file = format!("file:{}", good.key_file.display());
    let huge = "x".repeat(200_000);
    vec![
        (of_a, upload("nonsense", &good.key), 422, "expected PEM text"),
        (of_a, upload(&broken, &good.key), 422, "does not parse"),
        (of_a, upload(&good.certificate, &other.key), 422, other_key),
        (
            of_a,
            upload(&old.certificate, &old.key),
            422,
            "the certificate expired on",
        ),
        // The key that is there is another one's.
        (of_a, json!({"certificate": good.certificate}), 422, other_key),
        (of_a, upload(&with_key, &good.key), 422, "its own place"),
        (of_a, upload(&good.certificate, &file), 422, "expected PEM text"),
        (of_a, json!({"certificate": [good.key]}), 400, "the body is not {"),
        (of_a, upload(&good.certificate, &huge), 413, "longer than 64 KiB"),
        (
            to_a,
            names(&["mail.a.example", "mail.b.example"]),
            409,
            "mail.b.example (b.example)",
        ),
        (to_a, names(&["mail"]), 422, not_a_name),
        (to_a, names(&["<b>.example"]), 422, not_a_name),
        (to_none, names(&[]), 404, "no such domain: no.example"),
        (of_none, upload(&good.certificate, &good.key), 404, "no such domain"),
    ]
}

fn bad_changes_are_refused(source: Source) -> Result<()> {
    play(source, Some(TOKEN), |scene, api| {
        let before = api.all_domains()?;
        let ca = &scene.town.ca;
        let (good, other, old) = (
            ca.server(&["x.example"])?,
            ca.server(&["y.example"])?,
            ca.expired(&["z.example"])?,
        );
        for (path, body, status, why) in bad_changes(&good, &other, &old) {
            let answer = api.ask("PUT", path, Some(&body))?;
            ensure!(answer.status == status, "{path} {why}: {answer:?}");
            let error = answer.json()?["error"].as_str().unwrap_or_default().to_owned();
            ensure!(error.contains(why) && !error.contains("MIG"), "{why}: {error}");
        }
        let stranger = Api {
            address: api.address,
            token: Some("0123456789abcdef0124"),
        };
        let unproven = stranger.ask("PUT", HOSTS_OF_A, Some(&json!({"virtual_hosts": []})))?;
        ensure!(unproven.status == 401, "{unproven:?}");
        ensure!(
            stranger.ask("GET", "/v1/domains", None)?.status == 401,
            "domains without a token"
        );
        assert_eq!(api.all_domains()?, before);
        // The wrong tokens may have been recorded by now.
        let is_change = |record: &Value| record["event"] == "admin" && record["why"] != "a wrong token";
        let changes = scene.portico.audit()?;
        ensure!(!changes.iter().any(is_change), "{changes:?}");
        for pair in [&good, &other, &old] {
            no_key_in_logs(scene, &pair.key)?;
        }
        Ok(())
    })
}

#[test]
fn bad_changes_of_a_file_are_refused() -> Result<()> {
    bad_changes_are_refused(Source::Yaml)
}

#[test]
fn bad_changes_in_ldap_are_refused() -> Result<()> {
    bad_changes_are_refused(Source::Ldap)
}

/// Two domains ask for the same name at the same time, again and again: one gets it.
fn a_name_goes_to_one_domain(source: Source) -> Result<()> {
    play(source, Some(TOKEN), |_, api| {
        for round in 0..8 {
            let name = format!("race{round}.example");
            let take = |domain: &str| -> Result<u16> {
                let names = json!({"virtual_hosts": [name], "before": []});
                let path = format!("/v1/domains/{domain}/virtual-hosts");
                Ok(api.ask("PUT", &path, Some(&names))?.status)
            };
            let (one, other) = std::thread::scope(|scope| {
                let one = scope.spawn(|| take("a.example"));
                let other = take("b.example");
                (one.join(), other)
            });
            let mut statuses = [one.ok().context("it panicked")??, other?];
            statuses.sort_unstable();
            assert_eq!(statuses, [200, 409], "{name}");
        }
        Ok(())
    })
}

#[test]
fn a_name_goes_to_one_domain_of_a_file() -> Result<()> {
    a_name_goes_to_one_domain(Source::Yaml)
}

#[test]
fn a_name_goes_to_one_domain_in_ldap() -> Result<()> {
    a_name_goes_to_one_domain(Source::Ldap)
}

/// As many names as a request can hold are taken and given away, soon.
#[test]
fn very_many_names_are_changed() -> Result<()> {
    play(Source::Yaml, Some(TOKEN), |scene, api| {
        let names = |top: &str, many: usize| -> Vec<String> { (0..many).map(|n| format!("{n:x}.{top}")).collect() };
        let mut before = names("ab", 1);
        api.ask("PUT", HOSTS_OF_A, Some(&json!({"virtual_hosts": before})))?
            .done()?;
        let mut change = |new: Vec<String>| -> Result<u64> {
            let used = scene.portico.cpu_ticks()?;
            let body = json!({"virtual_hosts": new, "before": before});
            let changed = api.ask("PUT", HOSTS_OF_A, Some(&body))?.done()?;
            let hosts = changed["domain"]["virtual_hosts"].as_array().context("no names")?;
            let found: Vec<&str> = hosts.iter().filter_map(|host| host["name"].as_str()).collect();
            ensure!(found == new, "{} names", found.len());
            before = new;
            Ok(scene.portico.cpu_ticks()? - used)
        };
        // All names new, then two of three gone, each from between others.
        let mut used_by = |many: usize| -> Result<u64> {
            let new = names("ac", many);
            let some = new.iter().step_by(3).cloned().collect();
            Ok(change(names("ab", many))? + change(new)? + change(some)?)
        };
        // Ten times the names are about ten times the work. A hundred times were it if each was compared with each.
        let (few, many) = (used_by(300)?, used_by(3000)?);
        ensure!(many < 30 * few.max(10), "{few} and {many} ticks of the processor");
        Ok(())
    })
}

/// The body of a client without a token costs no memory, and is not waited for long.
#[test]
fn refused_bodies_are_not_kept() -> Result<()> {
    play(Source::Yaml, Some(TOKEN), |scene, api| {
        let before = scene.portico.rss_at_rest_kib()?;
        let mut streams = Vec::new();
        let body = vec![b'x'; 3 << 20];
        // One address has 16 seats.
        for number in 0..50_u8 {
            let socket = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None)?;
            socket.bind(&std::net::SocketAddr::from(([127, 0, 1, 1 + number % 5], 0)).into())?;
            socket.connect(&std::net::SocketAddr::from(api.address).into())?;
            let mut stream = TcpStream::from(socket);
            stream.set_read_timeout(Some(Duration::from_secs(40)))?;
            let length = body.len() + 1;
            write!(
                stream,
                "GET /metrics HTTP/1.1\r\nHost: x\r\nContent-Length: {length}\r\n\r\n"
            )?;
            stream.write_all(&body)?;
            streams.push(stream);
        }
        // What passes through is given back by the allocator a moment later; what was kept of a body, or with each
        // connection, would stay until the answers, which come after ten seconds.
        until("no body to be in memory", Duration::from_secs(9), || {
            Ok((scene.portico.rss_kib()? < before + 20 * 1024).then_some(()))
        })?;
        for mut stream in streams {
            let mut answer = [0; 12];
            stream.read_exact(&mut answer)?;
            assert_eq!(&answer, b"HTTP/1.1 413");
        }
        Ok(())
    })
}

#[test]
fn without_a_token_everything_is_read_and_nothing_changed() -> Result<()> {
    play(Source::Yaml, None, |_, api| {
        let access = api.ask("GET", "/v1/access", None)?.done()?;
        let why = access["why_not"].as_str().context("no reason")?;
        ensure!(access["may_change"] == false && why.contains("read-only"), "{access}");
        ensure!(api.domain("a.example")?["certificate"].is_object(), "no certificate");
        let some = api.ask("GET", "/v1/domains?text=MAIL.b&limit=1", None)?.done()?;
        assert_eq!(
            (&some["domains"][0]["name"], &some["more"]),
            (&json!("b.example"), &json!(0))
        );
        let few = api.ask("GET", "/v1/domains?limit=1", None)?.done()?;
        assert_eq!(
            (few["domains"].as_array().map(Vec::len), &few["more"]),
            (Some(1), &json!(2))
        );
        for (method, path) in [
            ("PUT", "/v1/domains/a.example/virtual-hosts"),
            ("PUT", "/v1/domains/a.example/certificate"),
            ("DELETE", "/v1/domains/a.example/certificate"),
        ] {
            let answer = api.ask(method, path, Some(&json!({"virtual_hosts": []})))?;
            ensure!(answer.head.contains("x-content-type-options: nosniff"), "{answer:?}");
            ensure!(answer.status == 403 && answer.text.contains("read-only"), "{answer:?}");
        }
        Ok(())
    })
}

/// Plays on a node that reads from a replica, which takes no changes, and does not look again by itself.
fn play_behind(
    copy: impl FnOnce(&Slapd, &Stage) -> Result<Slapd>,
    test: impl FnOnce(&mut Scene, &Api) -> Result<()>,
) -> Result<()> {
    Stage::run(|stage| {
        let town = Town::build(stage, people())?;
        let (mut node, directory) = (town.node(), town.directory());
        let slapd = Slapd::start(stage, "slapd", &directory)?;
        let replica = copy(&slapd, stage)?;
        until("the replica to be filled", Duration::from_secs(30), || {
            let found = replica.search("(uid=zmnginx)", &["userPassword"]);
            Ok(found.ok().filter(|text| text.contains("userPassword")))
        })?;
        node.directory = slapd.source_of(&[&replica.url(), &slapd.url()], "1h");
        let address = SocketAddrV4::new(Ipv4Addr::LOCALHOST, stage.port()?);
        node.admin.push(format!("http: {address}"));
        node.admin
            .push(format!("token_file: {}", stage.file("token", TOKEN)?.display()));
        let portico = Portico::start(stage, &node, &directory, "info")?;
        let token = Some(TOKEN);
        test(&mut Scene { stage, town, portico }, &Api { address, token })
    })
}

#[test]
fn a_change_is_awaited_where_the_node_reads() -> Result<()> {
    let replica = |slapd: &Slapd, stage: &Stage| slapd.replica(stage, "replica");
    play_behind(replica, |scene, api| {
        let names = json!({"virtual_hosts": ["new.a.example"]});
        let changed = api
            .ask("PUT", "/v1/domains/a.example/virtual-hosts", Some(&names))?
            .done()?;
        ensure!(changed["in_force"] == true, "{changed}");
        assert_eq!(shown(scene, "new.a.example")?, ["mail.a.example", "mail.a.example"]);
        Ok(())
    })
}

#[test]
fn a_change_that_is_not_seen_yet_makes_no_new_configurations() -> Result<()> {
    let replica = |slapd: &Slapd, stage: &Stage| slapd.late_replica(stage, "replica");
    play_behind(replica, |scene, api| {
        let names = json!({"virtual_hosts": ["new.a.example"]});
        let changed = api
            .ask("PUT", "/v1/domains/a.example/virtual-hosts", Some(&names))?
            .done()?;
        ensure!(changed["in_force"] == false, "{changed}");
        let warning = changed["warnings"].to_string();
        ensure!(warning.contains("does not see it yet"), "{changed}");
        assert_eq!(changed["generation"], 1);
        let history = api.ask("GET", "/v1/generations", None)?.done()?;
        assert_eq!(history["generations"].as_array().map(Vec::len), Some(1), "{history}");
        assert_eq!(shown(scene, "new.a.example")?, [FRONT, FRONT]);
        Ok(())
    })
}

#[test]
fn a_directory_that_may_not_be_changed_says_so() -> Result<()> {
    Stage::run(|stage| {
        let town = Town::build(stage, people())?;
        let (mut node, directory) = (town.node(), town.directory());
        let slapd = Slapd::start(stage, "slapd", &directory)?;
        node.directory = slapd.source("200ms");
        // Nobody but who may read.
        node.directory.retain(|line| !line.contains("admin_"));
        let address = SocketAddrV4::new(Ipv4Addr::LOCALHOST, stage.port()?);
        node.admin.push(format!("http: {address}"));
        node.admin
            .push(format!("token_file: {}", stage.file("token", TOKEN)?.display()));
        let _portico = Portico::start(stage, &node, &directory, "info")?;
        let token = Some(TOKEN);
        let names = json!({"virtual_hosts": []});
        let refused = Api { address, token }.ask("PUT", "/v1/domains/a.example/virtual-hosts", Some(&names))?;
        ensure!(
            refused.status == 503 && refused.text.contains("permission denied"),
            "{refused:?}"
        );
        Ok(())
    })
}

/// A name that would do harm if it became markup.
const HOSTILE: &str = "<img src=x onerror=document.title='harmed'>";

/// What the page shows as text anywhere.
fn has_text(text: &str) -> String {
    format!("document.body.innerText.includes({})", json!(text))
}

/// Follows a link of the page's navigation and waits for the view.
fn go(browser: &Browser, view: &str, heading: &str) -> Result<()> {
    browser.click(&format!("nav a[href='#{view}']"))?;
    browser.must(&format!("document.querySelector('h1')?.textContent == '{heading}'"))
}

/// Opens the page with the token.
fn log_in(browser: &Browser, api: &Api) -> Result<()> {
    browser.open(&format!("http://{}/", api.address))?;
    browser.must("document.getElementById('token').open")?;
    browser.type_into("#token-value", TOKEN)?;
    browser.click("#token button")?;
    browser.must(&has_text("in service"))
}

/// The story of an administrator who looks at every view, and ends a session.
#[test]
fn a_browser_shows_the_state_of_the_node() -> Result<()> {
    play(Source::Yaml, Some(TOKEN), |scene, api| {
        let browser = Browser::start(scene.stage, &[])?;
        let mut alice = scene.login("alice")?;
        alice.imap_ok("a1 NOOP")?;
        let mut harm = scene.imaps()?;
        harm.imap(&format!("h LOGIN \"{HOSTILE}\" \"x\""))?;

        the_page_asks_for_the_token(&browser, api)?;
        sessions_are_filtered(&browser)?;
        logins_are_followed(&browser, scene)?;
        routes_are_explained(&browser)?;
        a_server_is_put_into_maintenance(&browser, scene)?;
        go(&browser, "certificates", "Certificates")?;
        browser.must(&format!(
            "{} && {}",
            has_text("domain a.example"),
            has_text("days left")
        ))?;
        a_session_is_ended(&browser, &mut alice)?;
        ensure!(browser.run("return document.title")? == TITLE, "harmed");
        let trouble = browser.run("return document.getElementById('trouble').hidden")?;
        ensure!(trouble == true, "{}", browser.text()?);

        // Another tab does not have the token.
        browser.run("sessionStorage.clear(); location.reload()")?;
        browser.must("document.getElementById('token').open")
    })
}

/// Where nodes act together, one page shows the sessions of all of them, ends each on its node, and names the node that
/// does not answer.
#[test]
fn a_browser_shows_the_sessions_of_all_nodes() -> Result<()> {
    Stage::run(|stage| {
        let (redis, port) = (Redis::start(stage)?, stage.port()?);
        let address = SocketAddrV4::new(Ipv4Addr::LOCALHOST, port);
        let token = stage.file("console.token", TOKEN)?;
        let together = Together::build(stage, 2, &at(&redis), |node| {
            if node.name == NAMES[0] {
                node.admin.push(format!("http: {address}"));
                node.admin.push(format!("token_file: {}", token.display()));
            }
        })?;
        together.all_see_each_other()?;
        let (mut alice, mut bob) = (together.login(0, "alice")?, together.login(1, "bob")?);
        let browser = Browser::start(stage, &[])?;
        let token = Some(TOKEN);
        log_in(&browser, &Api { address, token })?;
        go(&browser, "sessions", "Sessions")?;
        for text in [
            "alice@a.example",
            "bob@a.example",
            NAMES[0],
            NAMES[1],
            "2 sessions on 2 nodes",
        ] {
            browser.must(&has_text(text))?;
        }
        draw(&browser, "sessions")?;
        browser.type_into("#filter", "bob")?;
        browser.must("document.querySelectorAll('tbody tr').length == 1")?;
        browser.click("td.act button")?;
        browser.must("document.getElementById('confirm').open")?;
        browser.must(&has_text(&format!("on {}", NAMES[1])))?;
        browser.click("#confirm-yes")?;
        browser.must(&has_text("The session of bob@a.example ends."))?;
        let bye = bob.line()?;
        ensure!(bye.starts_with("* BYE session ended by the administrator"), "{bye}");
        browser.run("document.getElementById('filter').value = ''")?;
        browser.type_into("#filter", "alice")?;
        together.nodes[1].signal(Signal::SIGSTOP)?;
        browser.must_within(SOON, &has_text(&format!("{}: ", NAMES[1])))?;
        browser.must(&has_text("alice@a.example"))?;
        together.nodes[1].signal(Signal::SIGCONT)?;
        alice.imap_ok("a1 NOOP").map(drop)
    })
}

const TITLE: &str = "proxy1.example.test – Portico";

/// The page is there for everybody, and asks for the token.
fn the_page_asks_for_the_token(browser: &Browser, api: &Api) -> Result<()> {
    browser.open(&format!("http://{}/", api.address))?;
    browser.must("document.getElementById('token').open")?;
    ensure!(!browser.text()?.contains("in service"), "shown without a token");
    browser.type_into("#token-value", "not-the-token-at-all")?;
    browser.click("#token button")?;
    browser.must("document.getElementById('token').open && !document.getElementById('token-wrong').hidden")?;
    browser.type_into("#token-value", TOKEN)?;
    browser.click("#token button")?;
    browser.must(&has_text("in service"))?;
    browser.must(&format!("document.title == '{TITLE}'"))?;
    let kept = browser.run("return [localStorage.length, document.cookie, sessionStorage.length]")?;
    assert_eq!(kept, json!([0, "", 1]));
    Ok(())
}

fn sessions_are_filtered(browser: &Browser) -> Result<()> {
    go(browser, "sessions", "Sessions")?;
    browser.must(&has_text("alice@a.example"))?;
    browser.type_into("#filter", "nobody at all")?;
    browser.must(&has_text("No session matches."))
}

fn logins_are_followed(browser: &Browser, scene: &Scene) -> Result<()> {
    go(browser, "logins", "Logins")?;
    browser.must(&has_text(HOSTILE))?;
    browser.must(&has_text("unknown user"))?;
    let pictures = browser.run("return document.querySelectorAll('main img').length")?;
    ensure!(pictures == 0, "it became a picture");
    // They are told as they come.
    drop(scene.login("bob")?);
    browser.must(&has_text("bob@a.example"))?;
    browser.click("#failed")?;
    browser.must(&format!("{} && !{}", has_text(HOSTILE), has_text("bob@a.example")))
}

fn routes_are_explained(browser: &Browser) -> Result<()> {
    go(browser, "routes", "Routes")?;
    browser.type_into("#login", "al/tb")?;
    browser.click("#explain")?;
    browser.must(&has_text("alice@a.example is on store1.example.test"))?;
    browser.must(&has_text("typed with /tb"))?;
    browser.run("document.getElementById('login').value = ''")?;
    browser.type_into("#login", HOSTILE)?;
    browser.click("#explain")?;
    browser.must(&format!("{} && {}", has_text(HOSTILE), has_text("no route")))
}

/// Eight guesses are delayed; whose they are is seen, and forgotten again.
#[test]
fn a_browser_steers_the_throttle() -> Result<()> {
    play_with(Source::Yaml, Some(TOKEN), Some("{mode: on}"), |scene, api| {
        // A name that is nobody's is held off like any other.
        for name in ["alice@a.example", "x<b>@a.example"] {
            for guess in 0..5 {
                let mut wire = scene.imaps()?;
                wire.imap(&format!("a1 LOGIN \"{name}\" guess-{guess}"))?;
            }
        }
        let browser = Browser::start(scene.stage, &[])?;
        log_in(&browser, api)?;
        go(&browser, "throttle", "Throttle")?;
        let row = "[aria-label='Forget the failed logins of alice@a.example from 127.0.0.1']";
        browser.must(&format!("document.querySelector(\"{row}\")"))?;
        browser.must(&has_text("x<b>@a.example"))?;
        browser.type_into("#throttle-login", "al@a.example")?;
        browser.type_into("#throttle-ip", "127.0.0.1")?;
        browser.click("#throttle-explain")?;
        browser.must(&has_text("The throttle delays it for"))?;
        browser.type_into("#allow-network", "192.0.2.7")?;
        browser.type_into("#allow-reason", "new phones")?;
        browser.click("#allow")?;
        browser.must(&format!("{} && {}", has_text("192.0.2.7/32"), has_text("new phones")))?;
        browser.click("[aria-label='End the allowance of 192.0.2.7/32']")?;
        browser.must(&has_text("192.0.2.7/32 is not let through any more."))?;
        browser.must(&has_text("No network is let through for some time."))?;
        browser.click(row)?;
        browser.must("document.getElementById('confirm').open")?;
        browser.click("#confirm-yes")?;
        browser.must(&format!("!document.querySelector(\"{row}\")"))?;
        browser.click("#clear-all")?;
        browser.must("document.getElementById('confirm').open")?;
        browser.click("#confirm-yes")?;
        browser.must(&has_text("Nobody has been held off lately."))?;
        for act in [
            "allow 192.0.2.7/32 for 3600 s: new phones",
            "disallow 192.0.2.7/32",
            "clear failed logins of alice@a.example from 127.0.0.1",
            "clear all failed logins",
        ] {
            scene.portico.record(&[("event", "admin"), ("act", act)])?;
        }
        Ok(())
    })
}

fn a_server_is_put_into_maintenance(browser: &Browser, scene: &Scene) -> Result<()> {
    go(browser, "upstreams", "Upstreams")?;
    browser.must(&has_text("store1.example.test"))?;
    browser.click("[aria-label='Maintenance of store1.example.test in mailbox']")?;
    browser.must(&has_text("End maintenance"))?;
    let act = "upstream store1.example.test in mailbox: maintenance on";
    scene.portico.record(&[("event", "admin"), ("act", act)])?;
    Ok(())
}

fn a_session_is_ended(browser: &Browser, session: &mut Wire) -> Result<()> {
    go(browser, "sessions", "Sessions")?;
    browser.type_into("#filter", "alice")?;
    browser.must("document.querySelectorAll('tbody tr').length == 1")?;
    browser.click("td.act button")?;
    browser.must("document.getElementById('confirm').open")?;
    browser.click("#confirm-yes")?;
    let line = session.line()?;
    ensure!(line.starts_with("* BYE session ended by the administrator"), "{line}");
    browser.must(&has_text("The session of alice@a.example ends."))
}

#[test]
fn a_browser_gives_a_domain_a_name_and_a_certificate() -> Result<()> {
    play(Source::Ldap, Some(TOKEN), |scene, api| {
        let browser = Browser::start(scene.stage, &[])?;
        log_in(&browser, api)?;
        go(&browser, "domains", "Domains")?;
        let card = "section[data-domain='a.example']";
        browser.must(&format!("document.querySelector(\"{card}\")"))?;
        for (name, said) in [
            ("nonsense", "Please enter a valid virtual host name"),
            ("mail.a.example", "is already in the list"),
        ] {
            browser.type_into(&format!("{card} .new-host"), &format!("{name}\n"))?;
            browser.must(&has_text(said))?;
            browser.run(&format!("document.querySelector(\"{card} .new-host\").value = ''"))?;
        }
        // What the server refuses is shown as it says it.
        browser.type_into(&format!("{card} .new-host"), "mail.b.example\n")?;
        browser.click(&format!("{card} .save"))?;
        browser.must(&has_text(
            "already belong to another domain: mail.b.example (b.example)",
        ))?;
        browser.click(&format!("{card} [aria-label='Remove mail.b.example']"))?;

        let name = "new.a.example";
        browser.type_into(&format!("{card} .new-host"), &format!("{name}\n"))?;
        // What is not saved is not lost by a slip.
        browser.click("nav a[href='#overview']")?;
        browser.must("document.getElementById('confirm').open")?;
        browser.click("#confirm button[value='no']")?;
        browser.must("!document.getElementById('confirm').open && location.hash == '#domains'")?;
        browser.click(&format!("{card} .save"))?;
        // What it would do is shown first.
        browser.must(&has_text("new.a.example is added: web and mail clients get"))?;
        let before = with_new_name(api)?;
        browser.click("#confirm button[value='no']")?;
        browser.must("!document.getElementById('confirm').open")?;
        assert_eq!(with_new_name(api)?, before);
        browser.click(&format!("{card} .save"))?;
        confirm(&browser)?;
        browser.must(&has_text("The virtual host names are stored and in force."))?;
        browser.must(&has_text("is not good for these virtual host names: new.a.example"))?;
        assert_eq!(shown(scene, name)?, ["mail.a.example", "mail.a.example"]);

        // Certificate, chain and key are found in whatever files they come.
        let pair = scene.town.ca.server(&[name, "mail.a.example", "imap.a.example"])?;
        let files = format!("{}\n{}", pair.key_file.display(), pair.certificate_file.display());
        browser.click(&format!("{card} summary"))?;
        browser.type_into(&format!("{card} .files"), &files)?;
        browser.must(&format!(
            "document.querySelector(\"{card} .key\").value.includes('PRIVATE KEY')"
        ))?;
        browser.must(&format!(
            "document.querySelector(\"{card} .chain\").value.includes('CERTIFICATE')"
        ))?;
        browser.click(&format!("{card} .store"))?;
        browser.must(&has_text("new.a.example: web and mail clients get its own certificate"))?;
        confirm(&browser)?;
        browser.must(&has_text("The certificate is stored. The next handshake shows it."))?;
        assert_eq!(shown(scene, name)?, [name, name]);
        browser.must(&format!("!{}", has_text("not covered")))?;
        let typed = "[...document.querySelectorAll('textarea')].every(area => area.value == '')";
        browser.must(typed)?;
        let page = browser.run("return document.documentElement.outerHTML")?;
        ensure!(!page.to_string().contains("PRIVATE KEY"), "the key stays on the page");
        // Nothing is unsaved now.
        go(&browser, "overview", "Overview")?;
        no_key_in_logs(scene, &pair.key)
    })
}

/// Draws what is to be seen, where the variable names a folder for it.
fn draw(browser: &Browser, name: &str) -> Result<()> {
    match std::env::var_os("PORTICO_SCREENSHOTS") {
        Some(folder) => browser.screenshot(&std::path::Path::new(&folder).join(format!("{name}.png"))),
        None => Ok(()),
    }
}

const CHECKED: &str = "section[data-domain='a.example']";

/// Presses the button, and waits until the page says this.
fn check_live(browser: &Browser, verdict: &str) -> Result<()> {
    browser.click(&format!("{CHECKED} .check-live"))?;
    browser.must(&has_text("Every name is looked up, and asked for at every listener."))?;
    browser.must(&has_text(verdict))
}

/// What clients see of the names of a domain on both nodes; then one of them has another certificate, and a name that
/// the DNS and the other node do not know.
#[test]
fn a_browser_shows_what_clients_see_of_each_name_on_every_node() -> Result<()> {
    Stage::run(|stage| {
        let address = SocketAddrV4::new(Ipv4Addr::LOCALHOST, stage.port()?);
        let token_file = stage.file("console.token", TOKEN)?;
        let two = TwoNodes::start(stage, |node| {
            if node.name == NAMES[0] {
                node.admin.push(format!("http: {address}"));
                node.admin.push(format!("token_file: {}", token_file.display()));
            }
        })?;
        let browser = Browser::start(stage, &[])?;
        let token = Some(TOKEN);
        browser.resize(1280, 1400)?;
        log_in(&browser, &Api { address, token })?;
        go(&browser, "domains", "Domains")?;
        browser.type_into("#search", "a.example")?;
        browser.must(&format!(
            "document.querySelectorAll('section.domain').length == 1 && document.querySelector(\"{CHECKED}\")"
        ))?;
        check_live(&browser, "Every name is shown its certificate everywhere.")?;
        for text in [
            NAMES[0],
            NAMES[1],
            "127.0.0.7",
            "alias of front.a.example",
            "IMAP STARTTLS",
            "✓ 36",
        ] {
            browser.must(&has_text(text))?;
        }
        let count = |kind: &str| format!("document.querySelectorAll(\"{CHECKED} td .pill.{kind}\").length");
        browser.must(&format!("{} == 20 && {} == 0", count("good"), count("bad")))?;
        draw(&browser, "live-good")?;
        two.renew(1)?;
        check_live(&browser, "but not everywhere the same one.")?;
        browser.must(&format!("{} == 10 && {} == 10", count("good"), count("warn")))?;
        draw(&browser, "live-other")?;
        two.add_name(0, GONE)?;
        check_live(&browser, "6 of 26 are not as they should be.")?;
        for text in [
            "it is not in the DNS",
            "not known here",
            &format!("the certificate is not good for {GONE}"),
        ] {
            browser.must(&has_text(text))?;
        }
        for scheme in ["light", "dark"] {
            browser.prefer(scheme)?;
            for width in [1280, 390] {
                browser.resize(width, 1400)?;
                browser.must(&format!("document.documentElement.scrollWidth <= {width}"))?;
                browser.run(&format!("document.querySelector(\"{CHECKED} .live\").scrollIntoView()"))?;
                draw(&browser, &format!("live-{scheme}-{width}"))?;
            }
        }
        browser.resize(1280, 1400)?;
        // A node that does not answer is named.
        two.together.nodes[1].signal(Signal::SIGSTOP)?;
        two.together.sees(0, 1)?;
        check_live(&browser, "5 of 15 are not as they should be.")?;
        browser.must(&has_text(&format!("{}: ", NAMES[1])))?;
        two.together.nodes[1].signal(Signal::SIGCONT)
    })
}

/// An administrator sees what would be ordered, orders in vain, then with success, and renews.
#[test]
fn a_browser_orders_a_certificate() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let token_file = folder.path().join("token");
    std::fs::write(&token_file, TOKEN)?;
    let change = |town: &Town, authority: &AcmeAuthority, node: &mut portico_tests::config::Node, _: &mut _| {
        authority.behave(|behaviour| behaviour.limit = Some((Resource::NewOrder, 100_000)));
        node.admin.push(format!("http: {}", town.admin));
        node.admin.push(format!("token_file: {}", token_file.display()));
    };
    acme_strict::play(&[acme::MAIL, "*.d.example"], change, |scene, authority| {
        acme_strict::told(scene, "rateLimited")?;
        let (address, token) = (scene.town.admin, Some(TOKEN));
        let browser = Browser::start(scene.stage, &[])?;
        browser.resize(1000, 1000)?;
        log_in(&browser, &Api { address, token })?;
        failures_are_shown(&browser)?;
        go(&browser, "domains", "Domains")?;
        let button = "section[data-domain='d.example'] .order";
        browser.must(&format!(
            "document.querySelector(\"{button}\")?.textContent.startsWith('Get a certificate')"
        ))?;
        browser.click(button)?;
        browser.must("document.getElementById('confirm').open")?;
        for text in [
            "Order a certificate for d.example?",
            &format!("At {}:", authority.directory_url()),
            "\nfor mail.d.example: ",
            "\nnot for *.d.example: a pattern is proved by DNS-01 only",
            &format!("by http-01, answered at {}", scene.town.endpoints.http),
        ] {
            browser.must(&has_text(text))?;
        }
        draw(&browser, "order-asked")?;
        let before = authority.asked().len();
        browser.click("#confirm button[value='no']")?;
        browser.must("!document.getElementById('confirm').open")?;
        assert_eq!(authority.asked().len(), before, "nothing was ordered");
        browser.click(button)?;
        confirm(&browser)?;
        browser.must(&format!(
            "{} && {}",
            has_text("No new certificate: "),
            has_text("rateLimited")
        ))?;
        draw(&browser, "order-failed")?;
        authority.behave(|behaviour| behaviour.limit = None);
        browser.click(button)?;
        confirm(&browser)?;
        browser.must(&has_text("The new certificate is in force."))?;
        browser.must(&has_text("Not for *.d.example: a pattern is proved by DNS-01 only"))?;
        draw(&browser, "order-done")?;
        acme_strict::served(scene, &[acme::MAIL])?;
        browser.must(&format!(
            "document.querySelector(\"{button}\").textContent == 'Renew by ACME…'"
        ))?;
        browser.click(button)?;
        confirm(&browser)?;
        until("another certificate", SOON, || {
            Ok((authority.issued().len() == 2).then_some(()))
        })?;
        browser.must(&has_text("The new certificate is in force."))?;
        go(&browser, "certificates", "Certificates")?;
        browser.must(&format!(
            "{} && !{}",
            has_text("without some names"),
            has_text("rateLimited")
        ))?;
        draw(&browser, "orders-good")
    })
}

/// A failed order is no matter for the command line alone.
fn failures_are_shown(browser: &Browser) -> Result<()> {
    go(browser, "certificates", "Certificates")?;
    for text in [
        "From the authority (ACME)",
        "no new certificate",
        "rateLimited",
        "*.d.example: a pattern is proved by DNS-01 only",
    ] {
        browser.must(&has_text(text))?;
    }
    draw(browser, "orders-failing")
}

/// Confirms what is asked.
fn confirm(browser: &Browser) -> Result<()> {
    browser.must("document.getElementById('confirm').open")?;
    browser.click("#confirm-yes")
}

/// The domains with the new name.
fn with_new_name(api: &Api) -> Result<Value> {
    let domains = api.ask("GET", "/v1/domains?text=new.a.example", None)?.done()?;
    Ok(domains["domains"].clone())
}

#[test]
fn a_browser_without_a_token_only_looks() -> Result<()> {
    play(Source::Yaml, None, |scene, api| {
        let browser = Browser::start(scene.stage, &[("evil.example", api.address)])?;
        let _alice = scene.login("alice")?;
        browser.open(&format!("http://{}/", api.address))?;
        browser.must(&has_text("You can view everything but change nothing"))?;
        browser.must(&has_text("admin.http is read-only without admin.token_file"))?;
        for (view, heading) in VIEWS {
            go(&browser, view, heading)?;
            browser.must("document.querySelector('#view .card, #view table, #view form')")?;
            let count = "return document.querySelectorAll('#view td button, #view .danger, #view .new-host').length";
            ensure!(browser.run(count)? == 0, "{view} offers a change");
        }
        // A foreign page whose name points here sees nothing.
        browser.open(&format!("http://evil.example:{}/", api.address.port()))?;
        browser.must(&has_text("the Host is neither an address nor localhost nor this node"))
    })
}

const VIEWS: [(&str, &str); 8] = [
    ("overview", "Overview"),
    ("sessions", "Sessions"),
    ("logins", "Logins"),
    ("throttle", "Throttle"),
    ("routes", "Routes"),
    ("upstreams", "Upstreams"),
    ("domains", "Domains"),
    ("certificates", "Certificates"),
];

#[test]
fn the_page_fits_every_screen_by_day_and_by_night() -> Result<()> {
    play(Source::Yaml, Some(TOKEN), |scene, api| {
        let browser = Browser::start(scene.stage, &[])?;
        let _alice = scene.login("alice")?;
        log_in(&browser, api)?;
        for (scheme, is_light) in [("light", true), ("dark", false)] {
            browser.prefer(scheme)?;
            let brightness = "Number(getComputedStyle(document.body).backgroundColor.match(/[0-9]+/)[0])";
            browser.must(&format!("({brightness} > 128) == {is_light}"))?;
            for width in [1280, 390] {
                browser.resize(width, 844)?;
                for (view, heading) in VIEWS {
                    go(&browser, view, heading)?;
                    browser.must("document.querySelector('#view .card, #view table, #view form')")?;
                    browser.must(&format!("document.documentElement.scrollWidth <= {width}"))?;
                }
            }
        }
        // Every input says what it is for, and every view can be reached with the keyboard.
        let silent = "[...document.querySelectorAll('input, select, textarea')].filter(\
                      input => input.labels.length == 0 && !input.ariaLabel).length";
        go(&browser, "domains", "Domains")?;
        browser.must("document.querySelector('textarea')")?;
        browser.must(&format!("{silent} == 0"))?;
        browser.run("document.querySelector('nav a').focus()")?;
        browser.type_into("nav a", "\u{e007}")?;
        browser.must("document.querySelector('h1').textContent == 'Overview'")
    })
}

#[test]
fn the_page_lets_nothing_else_in() -> Result<()> {
    play(Source::Yaml, Some(TOKEN), |_, api| {
        let stranger = Api {
            address: api.address,
            token: None,
        };
        for (path, kind) in [
            ("/", "text/html; charset=utf-8"),
            ("/console/main.js", "text/javascript; charset=utf-8"),
            ("/console/style.css", "text/css; charset=utf-8"),
            ("/console/icon.svg", "image/svg+xml"),
        ] {
            let answer = stranger.ask("GET", path, None)?;
            ensure!(answer.status == 200, "{answer:?}");
            for header in [
                &format!("content-type: {kind}"),
                "content-security-policy: default-src 'none'; script-src 'self';",
                "require-trusted-types-for 'script'",
                "x-content-type-options: nosniff",
                "x-frame-options: deny",
                "referrer-policy: no-referrer",
            ] {
                ensure!(answer.head.contains(header), "{path} has no {header}: {}", answer.head);
            }
            ensure!(!answer.head.contains("set-cookie"), "{}", answer.head);
        }
        for path in [
            "/console/",
            "/console/nothing.js",
            "/console/../v1/status",
            "/console/..%2findex.html",
        ] {
            let answer = stranger.ask("GET", path, None)?;
            ensure!(answer.status == 404, "{path}: {answer:?}");
        }
        ensure!(
            stranger.ask("GET", "/v1/status", None)?.status == 401,
            "the API is open"
        );
        ensure!(stranger.ask("POST", "/", None)?.status == 401, "POST");
        Ok(())
    })
}
