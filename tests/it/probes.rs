//! `portico certificate probe`: what clients see of names, live, at every listener of every node.

use std::net::{SocketAddr, SocketAddrV4, TcpListener};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use nix::sys::signal::Signal;
use openssl::hash::MessageDigest;
use openssl::ssl::{SslAcceptor, SslFiletype, SslMethod};
use portico_tests::bind::{Bind, Zone};
use portico_tests::certs::Pair;
use portico_tests::config::{Listener, Node, Serve, Tls};
use portico_tests::portico::Portico;
use portico_tests::redis::Redis;
use portico_tests::town::{Endpoints, Town, people};
use portico_tests::{Stage, until};
use serde_json::{Value, json as value};

use crate::acme::{acme_section, shown};
use crate::admin::{done, json, said};
use crate::moves::prov;
use crate::shared_state::{NAMES, SOON, Together, at, node};

pub(crate) const MAIL: &str = "mail.a.example";
pub(crate) const IMAP: &str = "imap.a.example";
/// There is no such name, though the zone has a pattern for all others.
pub(crate) const GONE: &str = "gone.ns.a.example";

/// In the certificates that come later.
const RENEWED: &str = "renewed.a.example";

const SERVICES: [&str; 5] = ["HTTPS", "IMAP STARTTLS", "IMAPS", "POP3 STLS", "POP3S"];

/// The zone of the names.
pub(crate) const ZONE: Zone<'_> = Zone {
    name: "a.example",
    records: "imap CNAME front\nfront A 127.0.0.7\nfront AAAA ::7",
    changes: false,
};

/// Two nodes with a file for a directory each, and the name server that they ask.
pub(crate) struct TwoNodes {
    pub(crate) together: Together,
    _bind: Bind,
    _redis: Redis,
}

impl TwoNodes {
    pub(crate) fn start(stage: &Stage, change: impl Fn(&mut Node)) -> Result<Self> {
        let (bind, redis) = (Bind::start(stage, &[ZONE])?, Redis::start(stage)?);
        let town = Town::build(stage, people())?;
        let directory = Together::directory(&town, 2);
        let acme = acme_of(&town, stage, bind.address());
        let together = Together::start(stage, town, (&directory, 2), &at(&redis), |node| {
            node.more.push(acme.clone());
            change(node);
        })?;
        together.all_see_each_other()?;
        Ok(Self {
            together,
            _bind: bind,
            _redis: redis,
        })
    }

    /// Has this node, and no other one, show a new certificate for the names.
    pub(crate) fn renew(&self, at: usize) -> Result<()> {
        // The files of the first ones are those of both directories.
        let pair = self.together.town.ca.server(&[RENEWED, MAIL, IMAP])?;
        let [certificate, key] =
            [&pair.certificate_file, &pair.key_file].map(|file| format!("file:{}", file.display()));
        let words = [
            "md",
            "a.example",
            "zimbraSSLCertificate",
            &certificate,
            "zimbraSSLPrivateKey",
            &key,
        ];
        let before = self.fingerprint(at)?;
        prov(&self.together.nodes[at], &words)?;
        until("the new certificate", SOON, || {
            Ok((self.fingerprint(at)? != before).then_some(()))
        })
    }

    /// Gives the domain another name at this node, and at no other one.
    pub(crate) fn add_name(&self, at: usize, name: &str) -> Result<()> {
        prov(
            &self.together.nodes[at],
            &["md", "a.example", "+zimbraVirtualHostname", name],
        )?;
        until("the name is known", SOON, || {
            // That the name is shown no good certificate is an exit code of 1.
            let probed = said(
                &self.together.nodes[at],
                &["certificate", "probe", "a.example", "--local", "--json"],
            )?;
            let probe: Value = serde_json::from_str(&probed.out).unwrap_or_default();
            Ok(of_name(&probe, name).is_ok().then_some(()))
        })
    }

    fn fingerprint(&self, at: usize) -> Result<String> {
        let certificate = shown(self.together.fronts[at].https, MAIL)?;
        let digest = certificate.digest(MessageDigest::sha256())?;
        Ok(digest.iter().map(|byte| format!("{byte:02x}")).collect())
    }
}

/// An authority that nobody asks, for the resolvers.
fn acme_of(town: &Town, stage: &Stage, resolver: SocketAddrV4) -> (String, String) {
    let key_file = stage.path().join("acme.key");
    let more = format!(", resolvers: ['{resolver}']");
    acme_section("https://127.0.0.1:1/directory", town, &key_file, &more)
}

/// What a probe says of a name.
fn of_name<'v>(probe: &'v Value, name: &str) -> Result<&'v Value> {
    let names = probe["names"].as_array().context("no names")?;
    let found = names.iter().find(|one| one["name"] == name);
    found.with_context(|| format!("no {name} in {probe}"))
}

fn listeners(found: &Value) -> Result<&Vec<Value>> {
    found["listeners"].as_array().context("no listeners")
}

/// The lines of a text that say this.
fn lines<'t>(text: &'t str, part: &str) -> Vec<&'t str> {
    text.lines().filter(|line| line.contains(part)).collect()
}

#[test]
fn what_every_node_shows_is_seen_and_what_differs_is_said() -> Result<()> {
    Stage::run(|stage| {
        let mut two = TwoNodes::start(stage, |_| ())?;
        all_is_well(&two)?;
        nothing_is_left_of_it(&two)?;
        a_new_certificate_is_not_everywhere(&two)?;
        a_name_is_not_everywhere(&two)?;
        a_port_is_taken_by_another_program(stage, &mut two)?;
        a_node_is_frozen(&two)
    })
}

fn all_is_well(two: &TwoNodes) -> Result<()> {
    let nodes = &two.together.nodes;
    let answer = json(&nodes[0], &["certificate", "probe", MAIL])?;
    assert_eq!(answer["node"], NAMES[0]);
    assert_eq!(answer["nodes"][0]["node"], NAMES[1]);
    let expected = two.fingerprint(0)?;
    for (probe, front) in [&answer, &answer["nodes"][0]["answer"]]
        .into_iter()
        .zip(&two.together.fronts)
    {
        assert_eq!((&probe["domain"], &probe["more"]), (&value!("a.example"), &value!(0)));
        for name in [MAIL, IMAP] {
            let found = of_name(probe, name)?;
            for listener in listeners(found)? {
                let (shows, problem) = (&listener["fingerprint"], &listener["problem"]);
                ensure!(*shows == *expected && problem.is_null(), "{name}: {listener}");
                ensure!(
                    listener["covered"] == true && listener["in_force"] == true,
                    "{listener}"
                );
            }
            let mut seen: Vec<&str> = listeners(found)?
                .iter()
                .filter_map(|one| one["service"].as_str())
                .collect();
            seen.sort_unstable();
            assert_eq!(seen, SERVICES);
            let at = front.imaps.to_string();
            ensure!(listeners(found)?.iter().any(|one| one["listener"] == *at), "{found}");
        }
        let (mail, imap) = (of_name(probe, MAIL)?, of_name(probe, IMAP)?);
        assert_eq!(
            (&mail["addresses"], &mail["dns_problem"]),
            (&value!(["127.0.0.1"]), &value!(null))
        );
        assert_eq!(imap["addresses"], value!(["127.0.0.7", "::7"]));
        assert_eq!(imap["aliases"], value!(["front.a.example"]));
        let certificates = probe["certificates"].as_array().context("no certificates")?;
        ensure!(
            certificates.len() == 1 && of_name(probe, MAIL)?["listeners"][0]["untrusted"].is_string(),
            "{probe}"
        );
    }
    let text = done(&nodes[1], &["certificate", "probe", "a.example"])?;
    println!("{text}");
    for part in [
        "domain a.example\n",
        "\nmail.a.example\n  DNS: 127.0.0.1\n",
        "\nimap.a.example\n  DNS: an alias of front.a.example: 127.0.0.7, ::7\n",
        "by CN=Portico development CA",
    ] {
        ensure!(text.contains(part), "{part:?} is not in {text}");
    }
    for name in &NAMES[..2] {
        assert_eq!(lines(&text, &format!("  {name}  ")).len(), 2, "{text}");
    }
    let one = done(&nodes[0], &["certificate", "probe", "a.example", "--node", NAMES[1]])?;
    ensure!(one.contains(NAMES[1]) && !one.contains(NAMES[0]), "{one}");
    let alone = done(&nodes[0], &["certificate", "probe", "a.example", "--local"])?;
    ensure!(alone.contains("this node") && !alone.contains(NAMES[1]), "{alone}");
    for (name, why) in [
        ("nobody.example", "no domain and no virtual host name is nobody.example"),
        ("example.test", "no domain"),
    ] {
        let refused = said(&nodes[0], &["certificate", "probe", name])?;
        ensure!(refused.code == 1 && refused.err.contains(why), "{}", refused.err);
    }
    // The other one has not heard of them.
    let heard = |name: &str| {
        nodes[1]
            .output()
            .contains(&format!("/v1/certificates/probe?name={name}"))
    };
    ensure!(
        heard("mail%2Ea%2Eexample") && !heard("nobody%2Eexample"),
        "{}",
        nodes[1].output()
    );
    Ok(())
}

/// Nobody has failed at anything, and nobody has logged in. That connections have ended is written down of the first ones.
fn nothing_is_left_of_it(two: &TwoNodes) -> Result<()> {
    for node in &two.together.nodes {
        let ends = node
            .audit()?
            .iter()
            .filter(|record| record["event"] == "session_end")
            .count();
        ensure!(ends > 0, "no look by STARTTLS is in the audit log");
        ensure!(!node.output().contains("no TLS with"), "{}", node.output());
        for record in node.audit()? {
            let (event, outcome) = (&record["event"], &record["outcome"]);
            let is_gone = event == "session_end" && outcome == "client_gone" && !record["listener"].is_null();
            ensure!(
                is_gone || !["login", "session_end", "refused"].iter().any(|word| event == word),
                "{record}"
            );
        }
    }
    Ok(())
}

fn a_new_certificate_is_not_everywhere(two: &TwoNodes) -> Result<()> {
    two.renew(0)?;
    let text = done(&two.together.nodes[1], &["certificate", "probe", "a.example"])?;
    let new = two.fingerprint(0)?;
    let other = "another certificate than elsewhere";
    // Both are good, and one of the nodes is said to differ, for each name.
    let differing: Vec<&str> = NAMES
        .into_iter()
        .filter(|node| lines(&text, other).iter().all(|line| line.contains(node)))
        .collect();
    ensure!(lines(&text, other).len() == 2 && differing.len() == 1, "{text}");
    assert_eq!(lines(&text, " days *  ").len(), 2, "{text}");
    ensure!(text.contains(&new[..12]), "{text}");
    two.renew(1)?;
    let still = done(&two.together.nodes[1], &["certificate", "probe", "a.example"])?;
    ensure!(still.contains(other), "each has its own: {still}");
    Ok(())
}

fn a_name_is_not_everywhere(two: &TwoNodes) -> Result<()> {
    two.add_name(0, GONE)?;
    let probed = said(&two.together.nodes[0], &["certificate", "probe", "a.example"])?;
    ensure!(
        probed.code == 1 && probed.err.contains("are not as they should be"),
        "{}",
        probed.err
    );
    for part in [
        &format!("\n{GONE}\n  DNS: it is not in the DNS\n"),
        &format!("{}: this name is not known there", NAMES[1]),
        &format!("the certificate is not good for {GONE}"),
    ] {
        ensure!(probed.out.contains(part), "{part:?} is not in {}", probed.out);
    }
    assert_eq!(lines(&probed.out, "  BAD  ").len(), 1, "{}", probed.out);
    // By that name the other node knows nothing.
    let unknown = said(&two.together.nodes[0], &["certificate", "probe", GONE])?;
    for name in [GONE, MAIL] {
        let expected = format!("\n{name}\n");
        ensure!(unknown.out.contains(&expected), "{}", unknown.out);
    }
    let expected = format!("{}: this name is not known there", NAMES[1]);
    assert_eq!(
        (unknown.code, lines(&unknown.out, &expected).len()),
        (1, 3),
        "{}",
        unknown.out
    );
    prov(
        &two.together.nodes[0],
        &["md", "a.example", "-zimbraVirtualHostname", GONE],
    )?;
    until("the name is gone", SOON, || {
        let answer = json(
            &two.together.nodes[0],
            &["certificate", "probe", "a.example", "--local"],
        );
        Ok(answer.ok().map(drop))
    })
}

/// One shows a certificate of its own, which is good; another one takes connections and says nothing.
fn a_port_is_taken_by_another_program(stage: &Stage, two: &mut TwoNodes) -> Result<()> {
    let pair = two.together.town.ca.server(&[RENEWED, MAIL, IMAP])?;
    let [foreign, silent] = [stage.port()?, stage.port()?].map(|port| TcpListener::bind(("127.0.0.1", port)));
    let (foreign, silent) = (foreign?, silent?);
    let taken = [foreign.local_addr()?, silent.local_addr()?];
    squat(foreign, &pair)?;
    let town = &two.together.town;
    let mut other = node(town, NAMES[1], &two.together.fronts[1]);
    let text = std::fs::read_to_string(two.together.nodes[1].dir().join("portico.yaml"))?;
    let kept = ["shared_state", "acme"].map(|key| {
        let line = text.lines().find_map(|line| line.strip_prefix(&format!("{key}: ")));
        line.map(|line| (key.to_owned(), line.to_owned()))
    });
    other.more.extend(kept.into_iter().flatten());
    other.listeners.extend(taken.map(|address| Listener {
        address,
        serve: Serve::Imap,
        tls: Tls::Implicit,
        proxies: Vec::new(),
        more: Vec::new(),
    }));
    two.together.nodes[1].replace_node(&other)?;
    two.together.nodes[1].signal(Signal::SIGHUP)?;
    until("the listeners are missed", SOON, || {
        let output = two.together.nodes[1].output();
        Ok(taken
            .iter()
            .all(|address| output.contains(&format!("cannot listen on {address}")))
            .then_some(()))
    })?;
    let probed = said(&two.together.nodes[0], &["certificate", "probe", "a.example"])?;
    println!("{}{}", probed.out, probed.err);
    ensure!(probed.code == 1, "{}", probed.out);
    for (address, why) in [
        (
            taken[0],
            "another certificate is in force on this node: another program answers there (",
        ),
        (taken[1], "no certificate within 3 s"),
    ] {
        let expected = format!("{}, IMAPS at {address}: {why}", NAMES[1]);
        assert_eq!(lines(&probed.out, &expected).len(), 2, "{expected}: {}", probed.out);
    }
    nobody_looks_beside_another_one(two)?;
    drop(silent);
    let probed = said(&two.together.nodes[0], &["certificate", "probe", "a.example"])?;
    // A node tries again to listen.
    let answers = lines(&probed.out, &taken[1].to_string());
    ensure!(
        answers.iter().all(|line| line.contains("Connection refused")),
        "{}",
        probed.out
    );
    let node = NAMES[1];
    until("the listener is the node's", SOON, || {
        let probed = said(
            &two.together.nodes[0],
            &["certificate", "probe", "a.example", "--node", node, "--json"],
        )?;
        let probe: Value = serde_json::from_str(&probed.out)?;
        let address = taken[1].to_string();
        let here = listeners(of_name(&probe, MAIL)?)?.iter();
        let mut here = here.filter(|one| one["listener"] == *address);
        Ok(here
            .any(|one| one["problem"].is_null() && one["in_force"] == true)
            .then_some(()))
    })
}

/// While a look takes seconds another one is refused at once; those of two nodes wait for each other.
fn nobody_looks_beside_another_one(two: &TwoNodes) -> Result<()> {
    let nodes = &two.together.nodes;
    let words = ["certificate", "probe", "a.example"];
    let passed_on = || nodes[1].output().matches("GET /v1/certificates/probe").count();
    std::thread::scope(|scope| {
        let before = passed_on();
        let [first, other] = [0, 1].map(|at| scope.spawn(move || said(&nodes[at], &words)));
        until("the first look on its way", SOON, || {
            Ok((passed_on() > before).then_some(()))
        })?;
        let refused = said(&nodes[0], &words)?;
        ensure!(
            refused.code == 1 && refused.err.contains("others are being looked at"),
            "{}{}",
            refused.out,
            refused.err
        );
        ensure!(!first.is_finished(), "the one that was refused has waited for it");
        for looked in [first, other] {
            let looked = looked.join().map_err(|_| anyhow::anyhow!("a look has panicked"))??;
            ensure!(!looked.err.contains("others are being looked at"), "{}", looked.err);
            ensure!(
                looked.out.contains(NAMES[0]) && looked.out.contains(NAMES[1]),
                "{}",
                looked.out
            );
        }
        Ok(())
    })
}

/// Speaks TLS at a port, with this certificate, until the test ends.
fn squat(port: TcpListener, pair: &Pair) -> Result<()> {
    let mut tls = SslAcceptor::mozilla_intermediate_v5(SslMethod::tls_server())?;
    tls.set_certificate_chain_file(&pair.certificate_file)?;
    tls.set_private_key_file(&pair.key_file, SslFiletype::PEM)?;
    let tls = tls.build();
    std::thread::spawn(move || {
        for stream in port.incoming().flatten() {
            let _whoever_it_is = tls.accept(stream);
        }
    });
    Ok(())
}

fn a_node_is_frozen(two: &TwoNodes) -> Result<()> {
    let nodes = &two.together.nodes;
    nodes[1].signal(Signal::SIGSTOP)?;
    // Before the other one is known to be silent: what is refused here is not passed on.
    let begun = Instant::now();
    let refused = said(&nodes[0], &["certificate", "probe", "nobody.example"])?;
    ensure!(
        refused.code == 1 && refused.err.contains("no domain and no virtual host name"),
        "{}",
        refused.err
    );
    ensure!(begun.elapsed() < Duration::from_secs(10), "it waits for the others");
    two.together.sees(0, 1)?;
    let probed = said(&nodes[0], &["certificate", "probe", "a.example"])?;
    ensure!(
        probed.code == 1 && probed.err.contains(&format!("not on every node: {}: ", NAMES[1])),
        "{}",
        probed.err
    );
    ensure!(
        probed.out.contains(NAMES[0]) && probed.out.contains("DNS: 127.0.0.1\n"),
        "{}",
        probed.out
    );
    nodes[1].signal(Signal::SIGCONT)
}

/// At all addresses, behind a balancer that this machine could be, with names that are strict, a pattern, and a name that
/// wants certificates of its clients.
#[test]
fn listeners_of_every_kind_are_looked_at() -> Result<()> {
    Stage::run(|stage| {
        let town = Town::build(stage, people())?;
        let (mut node, mut directory) = (town.node(), town.directory());
        node.listeners = everywhere(&town.endpoints, "127.0.0.0/8");
        node.more.push(acme_of(&town, stage, "127.0.0.1:1".parse()?));
        directory.config("zimbraReverseProxyStrictServerNameEnabled", "TRUE");
        directory.config("zimbraReverseProxyImapStartTlsMode", "off");
        directory.domain("bare.example");
        let many = (0..60).map(|number| format!("n{number}.many.example"));
        let entry = directory.domain("many.example");
        entry.insert(
            "zimbraVirtualHostname".into(),
            portico_tests::config::Value::List(many.collect()),
        );
        let entry = directory.domain("c.example");
        entry.insert("zimbraReverseProxyClientCertMode".into(), "on".into());
        entry.insert("zimbraReverseProxyClientCertCA".into(), town.ca.file().as_path().into());
        let authorities = town.ca.file().display().to_string();
        let env = [("RUST_LOG", "debug"), ("SSL_CERT_FILE", authorities.as_str())];
        let portico = Portico::start_in(stage, &node, &directory, &env)?;
        let probe = json(&portico, &["certificate", "probe", "c.example"])?;
        ensure!(probe["node"].is_null(), "it knows no other node: {probe}");
        let found = of_name(&probe, "*.c.example")?;
        assert_eq!(found["asked"], "portico-probe.c.example");
        let why = found["dns_problem"].as_str().context("no resolver is there")?;
        ensure!(why.contains("the name server 127.0.0.1:1 does not answer"), "{why}");
        let mut services = Vec::new();
        for listener in listeners(found)? {
            ensure!(listener["problem"].is_null(), "{listener}");
            let at = listener["listener"].as_str().unwrap_or_default();
            ensure!(at.starts_with("0.0.0.0:"), "{listener}");
            services.push(listener["service"].as_str().unwrap_or_default());
        }
        // IMAP has no STARTTLS here.
        assert_eq!(services, ["HTTPS", "IMAPS", "POP3 STLS", "POP3S"]);
        ensure!(
            listeners(found)?.iter().all(|one| one["untrusted"].is_null()),
            "{probe}"
        );
        let text = done(&portico, &["certificate", "probe", "any.c.example"])?;
        println!("{text}");
        ensure!(text.contains("*.c.example (as portico-probe.c.example)\n"), "{text}");
        let bare = said(&portico, &["certificate", "probe", "bare.example"])?;
        let why = "the domain bare.example has no virtual host name";
        ensure!(bare.code == 1 && bare.err.contains(why), "{}", bare.err);
        very_many_names_are_looked_at(&portico)
    })
}

/// Of more names than are looked at the one that was named is among those that are. They have no certificate.
fn very_many_names_are_looked_at(portico: &Portico) -> Result<()> {
    let begun = Instant::now();
    let probed = said(portico, &["certificate", "probe", "n9.many.example", "--json"])?;
    println!("50 names in {:.1?}", begun.elapsed());
    ensure!(begun.elapsed() < Duration::from_secs(20), "{:?}", begun.elapsed());
    let probe: Value = serde_json::from_str(&probed.out)?;
    let names = probe["names"].as_array().context("no names")?;
    assert_eq!((names.len(), &probe["more"]), (50, &value!(10)));
    for name in names {
        for listener in listeners(name)? {
            let why = listener["problem"].as_str().unwrap_or_default();
            ensure!(why.starts_with("the certificate is not good for "), "{listener}");
        }
    }
    of_name(&probe, "n9.many.example")?;
    ensure!(
        probed.err.contains("200 of 200 are not as they should be"),
        "{}",
        probed.err
    );
    Ok(())
}

/// The endpoints at all addresses, with PROXY headers from these.
fn everywhere(endpoints: &Endpoints, proxies: &str) -> Vec<Listener> {
    let listener = |(address, serve, tls): (SocketAddrV4, Serve, Tls)| Listener {
        address: SocketAddr::from(([0, 0, 0, 0], address.port())),
        serve,
        tls,
        proxies: vec![proxies.to_owned()],
        more: Vec::new(),
    };
    endpoints.each().map(listener).into()
}
