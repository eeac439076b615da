//! Guessing of passwords under attack: how many guesses reach a mailbox server, what honest users see of it meanwhile,
//! in which words each kind of client is told to wait, and how administrators see and steer it.

use std::net::{IpAddr, Ipv4Addr};
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use portico_tests::config::quote;
use portico_tests::portico::binary;
use portico_tests::town::{FRONT, Person, people};
use portico_tests::wire::Wire;
use portico_tests::{amount, percentile, until};

use crate::scene::{Scene, Source, greeted, play_with, soap_login};

/// Where the owners of accounts are known.
const HOME: IpAddr = IpAddr::V4(Ipv4Addr::LOCALHOST);
/// An address that nobody has seen.
const STRANGER: IpAddr = IpAddr::V4(Ipv4Addr::new(127, 0, 9, 9));
/// Users besides the usual people. The logs are searched for the password of each.
const PEOPLE: usize = 24;
/// The most that an honest login may take during an attack, on a busy machine.
const PATIENCE: Duration = Duration::from_secs(5);

/// Plays with these settings of the throttle; failed logins are answered at once, and passwords taken in clear text.
pub(crate) fn play(people: Vec<Person>, settings: &str, test: impl FnOnce(&mut Scene) -> Result<()>) -> Result<()> {
    let change = |_: &_, node: &mut portico_tests::config::Node, directory: &mut portico_tests::config::Directory| {
        node.more.push(("throttle".to_owned(), settings.to_owned()));
        directory
            .config("zimbraReverseProxyAuthWaitInterval", "10ms")
            .config("zimbraReverseProxyImapStartTlsMode", "on")
            .config("zimbraReverseProxyPop3StartTlsMode", "on");
        Ok(())
    };
    play_with(people, change, test)
}

/// The last line that an IMAP client hears.
pub(crate) fn imap(scene: &Scene, from: IpAddr, name: &str, password: &str) -> Result<String> {
    let mut wire = greeted(Wire::clear_from(from, scene.town.endpoints.imap)?, "* OK")?;
    let answer = wire.imap(&format!("a1 LOGIN {name} \"{password}\""))?;
    answer.last().cloned().context("no answer")
}

/// An honest login: it succeeds, soon. Returns how many milliseconds it took.
fn gets_in(scene: &Scene, from: IpAddr, local: &str) -> Result<u64> {
    let person = scene.town.person(local)?;
    let begun = Instant::now();
    let answer = imap(scene, from, &person.name, &person.password())?;
    ensure!(answer.starts_with("a1 OK"), "{local} from {from}: {answer}");
    let took = begun.elapsed();
    ensure!(took < PATIENCE, "{local} from {from}: {took:?}");
    Ok(took.as_millis() as u64)
}

fn address(number: usize) -> IpAddr {
    IpAddr::from([127, 1, (number / 250) as u8, (number % 250 + 1) as u8])
}

/// An attack: who guesses at which account with the guess of this number.
struct Attack {
    name: &'static str,
    /// From how many addresses.
    addresses: usize,
    guesses: usize,
    /// Who attacks at the same time.
    threads: usize,
    guess: fn(&Self, usize) -> (IpAddr, String),
    /// The most that may reach a server, besides those of which it is not known yet that they fail.
    most: usize,
    /// Settings of the throttle that differ from the defaults.
    settings: &'static str,
}

/// How long honest users took to log in during an attack, in milliseconds.
#[derive(Default)]
struct HonestLogins {
    /// The owner of the attacked account, at home.
    known: Vec<u64>,
    /// Others, each from an address that nobody has seen.
    new: Vec<u64>,
}

fn town() -> Vec<Person> {
    town_of(PEOPLE)
}

fn town_of(users: usize) -> Vec<Person> {
    let named = |n: usize| Person::new(&format!("user{n}@a.example"), n % 2, format!("user{n}-c4n4ry"));
    people().into_iter().chain((0..users).map(named)).collect()
}

fn at_alice(attack: &Attack, n: usize) -> (IpAddr, String) {
    (address(n % attack.addresses), "alice@a.example".to_owned())
}

/// The last one is left to honest users.
fn at_many(attack: &Attack, n: usize) -> (IpAddr, String) {
    (
        address(n % attack.addresses),
        format!("user{}@a.example", n % (PEOPLE - 1)),
    )
}

/// The story: fifty connections made a hundred guesses in a quarter of a minute, and none was refused.
const ATTACKS: [Attack; 4] = [
    Attack {
        name: "one address, one account",
        addresses: 1,
        guesses: 150,
        threads: 8,
        guess: at_alice,
        most: 12,
        settings: "{max_delay: 100ms}",
    },
    Attack {
        name: "one address, many accounts",
        addresses: 1,
        guesses: 150,
        threads: 8,
        guess: at_many,
        most: 20,
        settings: "{max_delay: 100ms}",
    },
    Attack {
        name: "many addresses, one account",
        addresses: 150,
        guesses: 150,
        threads: 8,
        guess: at_alice,
        most: 60,
        settings: "{max_delay: 100ms}",
    },
    Attack {
        name: "many addresses, three tries each",
        addresses: 120,
        guesses: 360,
        threads: 8,
        guess: at_many,
        most: 120 + 40,
        settings: "{max_delay: 100ms, many: {refuse_from: 40}}",
    },
];

/// The same in full size and with the defaults, which takes minutes: `PORTICO_ATTACKS=1` has it made.
const FULL_ATTACKS: [Attack; 4] = [
    Attack {
        settings: "{}",
        ..ATTACKS[0]
    },
    Attack {
        settings: "{}",
        ..ATTACKS[1]
    },
    Attack {
        name: "1,000 addresses, one account",
        addresses: 1_000,
        guesses: 3_000,
        threads: 64,
        settings: "{}",
        ..ATTACKS[2]
    },
    Attack {
        name: "10,000 addresses, three tries each",
        addresses: 10_000,
        guesses: 30_000,
        threads: 64,
        most: 10_000 + 1_000,
        settings: "{}",
        ..ATTACKS[3]
    },
];

#[test]
fn few_guesses_reach_a_server_and_honest_users_get_in() -> Result<()> {
    let columns = [
        "guesses", "seconds", "reach", "a minute", "alone", "known", "most", "new", "most",
    ];
    println!(
        "{:36} {}",
        "attack",
        columns.map(|column| format!("{column:>9}")).join("")
    );
    let attacks = if amount("PORTICO_ATTACKS", 0) == 0 {
        &ATTACKS
    } else {
        &FULL_ATTACKS
    };
    attacks.iter().try_for_each(suffer)
}

/// Suffers an attack, and prints what came of it. Times of honest logins are in milliseconds: half of those of the owner
/// of the attacked account took no longer than this before it, and meanwhile, and the longest took so much; then the
/// same of others from new addresses. They are those of this machine with all that it does; what the throttle has held
/// is in the audit log, and is nothing.
fn suffer(attack: &Attack) -> Result<()> {
    play(town(), attack.settings, |scene| {
        let alone = (0..20)
            .map(|_| gets_in(scene, HOME, "alice"))
            .collect::<Result<Vec<_>>>()?;
        let begun = Instant::now();
        let honest = under(scene, attack)?;
        let took = begun.elapsed();
        let ended = |outcome| scene.portico.count(&[("event", "login"), ("outcome", outcome)]);
        let reached = until("a record for each guess", PATIENCE, || {
            let (reached, refused) = (ended("bad_credentials")?, ended("throttled")?);
            Ok((reached + refused == attack.guesses).then_some(reached))
        })?;
        let (name, guesses, seconds) = (attack.name, attack.guesses, took.as_secs_f64());
        let minutes = (seconds / 60.0).max(1.0);
        let a_minute = reached as f64 / minutes;
        let [alone, _] = half_and_most(alone);
        let [known, known_most] = half_and_most(honest.known);
        let [new, new_most] = half_and_most(honest.new);
        println!(
            "{name:36} {guesses:>9}{seconds:>9.0}{reached:>9}{a_minute:>9.0}{alone:>9}{known:>9}{known_most:>9}{new:>9}\
             {new_most:>9}"
        );
        let audit = scene.portico.audit()?;
        let held = audit
            .iter()
            .find(|record| record["outcome"] == "ok" && record["rule"].is_string());
        ensure!(held.is_none(), "{name}: {held:?}");
        ensure!(reached <= attack.most + attack.threads, "{name}: {reached}");
        gets_in(scene, HOME, "alice")?;
        gets_in(scene, STRANGER, "bob").map(drop)
    })
}

/// The figure below which half of these are, and the largest.
fn half_and_most(mut series: Vec<u64>) -> [u64; 2] {
    series.sort_unstable();
    [percentile(&series, 50), percentile(&series, 100)]
}

/// Attacks, while honest users log in.
fn under(scene: &Scene, attack: &Attack) -> Result<HonestLogins> {
    std::thread::scope(|scope| {
        let guess = |thread: usize| -> Result<()> {
            for n in (thread..attack.guesses).step_by(attack.threads) {
                let (from, name) = (attack.guess)(attack, n);
                let answer = imap(scene, from, &name, &format!("guess-{n}"))?;
                let is_told =
                    answer.starts_with("a1 NO [AUTHENTICATIONFAILED]") || answer.starts_with("a1 NO [LIMIT] ");
                ensure!(is_told, "{answer}");
            }
            Ok(())
        };
        let threads: Vec<_> = (0..attack.threads)
            .map(|thread| scope.spawn(move || guess(thread)))
            .collect();
        let (mut honest, mut newcomers) = (HonestLogins::default(), 1..250);
        while threads.iter().any(|thread| !thread.is_finished()) {
            honest.known.push(gets_in(scene, HOME, "alice")?);
            if let Some(last) = newcomers.next() {
                let from = IpAddr::from([127, 2, 0, last]);
                honest.new.push(gets_in(scene, from, "bob")?);
            }
        }
        threads
            .into_iter()
            .try_for_each(|thread| thread.join().expect("no panic"))?;
        Ok(honest)
    })
}

/// Users of the office.
const OFFICE: usize = 200;

/// An office behind one address, all of it new, with three phones that have last year's passwords.
#[test]
fn an_office_is_not_delayed() -> Result<()> {
    play(town_of(OFFICE), "{}", |scene| {
        let office = address(0);
        let mut longest = 0;
        for n in 0..OFFICE {
            longest = longest.max(gets_in(scene, office, &format!("user{n}"))?);
            if n % 50 < 3 {
                let answer = imap(scene, office, &format!("user{}@a.example", n % 50), "last-year")?;
                ensure!(answer.starts_with("a1 NO [AUTHENTICATIONFAILED]"), "{n}: {answer}");
            }
        }
        println!("an office of {OFFICE} with 3 old phones: {} ms at most", longest);
        let held = scene
            .portico
            .audit()?
            .into_iter()
            .find(|record| record["rule"].is_string());
        ensure!(held.is_none(), "{held:?}");
        Ok(())
    })
}

/// Two wrong passwords for Alice that nobody has tried yet, from this address.
fn guess_twice(scene: &Scene, from: IpAddr) -> Result<()> {
    for n in 0..2 {
        let answer = imap(scene, from, "alice@a.example", &format!("guess-{n}-{from}"))?;
        ensure!(answer.starts_with("a1 NO [AUTHENTICATIONFAILED]"), "{answer}");
    }
    Ok(())
}

const STRICT: &str = "{pair: {delay_from: 0, refuse_from: 2}}";

#[test]
fn every_kind_of_client_is_told_to_wait() -> Result<()> {
    play(people(), STRICT, |scene| {
        let guesser = address(0);
        let interface = guesser.to_string();
        let password = scene.town.person("alice")?.password();
        guess_twice(scene, guesser)?;
        // Her alias is she.
        for name in ["alice@a.example", "al@a.example", "ALICE@A.example"] {
            let answer = imap(scene, guesser, name, &password)?;
            ensure!(
                answer == "a1 NO [LIMIT] Too many failed logins, please try again later",
                "{answer}"
            );
        }
        let mut pop3 = greeted(Wire::clear_from(guesser, scene.town.endpoints.pop3)?, "+OK")?;
        pop3.pop_ok("USER alice@a.example")?;
        let answer = pop3.pop(&format!("PASS {password}"))?;
        ensure!(answer.starts_with("-ERR [LOGIN-DELAY] "), "{answer}");
        let xml = soap_login("alice@a.example", &password);
        let json = format!(
            r#"{{"Body":{{"AuthRequest":{{"account":{{"by":"name","_content":"alice@a.example"}},"password":"{password}"}}}}}}"#
        );
        let basic = format!("alice@a.example:{password}");
        let (soap, dav) = ("/service/soap/AuthRequest", "/dav/alice@a.example/Calendar/");
        let before = asked(scene);
        for (path, args, words) in [
            (dav, vec!["-u", &basic], "\"status\":429"),
            (soap, vec!["-d", &xml], "service.TEMPORARILY_UNAVAILABLE"),
            (
                soap,
                vec!["-d", &json, "-H", "Content-Type: application/json"],
                "\"Fault\"",
            ),
        ] {
            for version in ["--http1.1", "--http2"] {
                let args = [&["--interface", &interface, version], args.as_slice()].concat();
                let answer = scene.https(path, &args)?;
                ensure!(answer.status() == "429", "{path} {version}: {}", answer.head);
                let seconds: u64 = answer.header("retry-after").context("no Retry-After")?.parse()?;
                ensure!((2..=1_800).contains(&seconds), "{seconds}");
                let text = answer.text()?;
                ensure!(text.contains(words), "{path}: {text}");
            }
        }
        ensure!(asked(scene) == before, "a server has got one");
        // Of a body whose length is not known a server gets all but the end.
        let chunked = [
            "--interface",
            &interface,
            "-d",
            &xml,
            "-H",
            "Transfer-Encoding: chunked",
        ];
        let answer = scene.https(soap, &[&chunked[..], &["--http1.1"]].concat())?;
        let is_refused = answer.status() == "429" && answer.header("set-cookie").is_none();
        ensure!(is_refused, "{}", answer.head);
        let throttled = [("event", "web_login"), ("outcome", "throttled"), ("rule", "pair")];
        until("seven records", PATIENCE, || {
            Ok((scene.portico.count(&throttled)? == 7).then_some(()))
        })?;
        // At home she is not touched, neither by mail nor on the web.
        gets_in(scene, HOME, "alice")?;
        let good = scene.https(soap, &["-d", &xml])?;
        ensure!(good.status() == "200", "{}", good.head);
        let good = scene.https(dav, &["-u", &basic])?;
        ensure!(good.status() == "200", "{}", good.head);
        Ok(())
    })
}

/// Requests that the web servers have got.
fn asked(scene: &Scene) -> usize {
    scene.town.stores.iter().map(|store| store.web.request_count()).sum()
}

/// Web logins are counted by what their server answers, together with those of mail.
#[test]
fn web_logins_count_as_those_of_mail() -> Result<()> {
    play(people(), STRICT, |scene| {
        let interface = address(0).to_string();
        let wrong = |n: usize| soap_login("alice@a.example", &format!("guess-{n}"));
        let soap = |body: &str| {
            let answer = scene.https("/service/soap/AuthRequest", &["--interface", &interface, "-d", body])?;
            Ok::<_, anyhow::Error>(answer.status().to_owned())
        };
        // The same one counts once.
        for _ in 0..4 {
            ensure!(soap(&wrong(1))? == "500", "a wrong password");
        }
        ensure!(soap(&wrong(2))? == "500", "another one");
        ensure!(soap(&wrong(3))? == "429", "a third one");
        let answer = imap(scene, address(0), "alice@a.example", "guess-4")?;
        ensure!(answer.starts_with("a1 NO [LIMIT]"), "{answer}");
        let one = "<AuthRequest xmlns=\"urn:zimbraAccount\"><account>bob@b.example</account></AuthRequest>";
        let envelope = wrong(1);
        let (start, rest) = envelope.split_once("<AuthRequest").context("no login")?;
        let (_, end) = rest.split_once("</AuthRequest>").context("no login")?;
        let batch = format!("{start}<BatchRequest>{one}{one}</BatchRequest>{end}");
        ensure!(soap(&batch)? == "403", "two guesses in one request");
        Ok(())
    })
}

/// What the program prints.
fn verb(scene: &Scene, words: &[&str]) -> Result<String> {
    let conf = scene.portico.dir().join("portico.yaml");
    let out = Command::new(binary()?).arg("-c").arg(conf).args(words).output()?;
    let errors = String::from_utf8_lossy(&out.stderr).into_owned();
    ensure!(out.status.success(), "{words:?}: {errors}");
    Ok(String::from_utf8(out.stdout)?)
}

#[test]
fn administrators_see_and_steer_it() -> Result<()> {
    play(people(), STRICT, |scene| {
        let guesser = address(0);
        let (ip, alice) = (guesser.to_string(), "alice@a.example");
        let refused = |scene: &Scene| -> Result<bool> {
            let password = scene.town.person("alice")?.password();
            Ok(imap(scene, guesser, alice, &password)?.starts_with("a1 NO [LIMIT]"))
        };
        guess_twice(scene, guesser)?;
        ensure!(refused(scene)?, "not refused");
        let list = verb(scene, &["throttle", "list"])?;
        let line = list
            .lines()
            .find(|line| line.contains(&ip))
            .context("not in the list")?;
        ensure!(line.starts_with("pair") && line.contains(alice), "{line}");
        let explained = verb(scene, &["throttle", "explain", "al@a.example", "--ip", &ip])?;
        ensure!(
            explained.contains("refuses it for") && explained.contains("rule pair, 2 failures"),
            "{explained}"
        );
        let route = verb(scene, &["route", "explain", "al@a.example", "--ip", &ip])?;
        ensure!(route.contains("in the way  the throttle refuses it for"), "{route}");
        let metrics = scene.metrics()?;
        let counted = "portico_throttled_total{action=\"refused\",mode=\"on\",rule=\"pair\"} 1";
        ensure!(metrics.contains(counted), "{metrics}");
        verb(scene, &["throttle", "allow", &ip, "--for", "1h", "--reason", "a fair"])?;
        ensure!(
            !refused(scene)? && verb(scene, &["throttle", "list"])?.contains("a fair"),
            "not allowed"
        );
        verb(scene, &["throttle", "disallow", &format!("{ip}/32")])?;
        // She has logged in from there.
        let explained = verb(scene, &["throttle", "explain", alice, "--ip", &ip])?;
        ensure!(explained.contains("known       yes"), "{explained}");
        let other = address(1);
        guess_twice(scene, other)?;
        let ip = other.to_string();
        let explained = verb(scene, &["throttle", "explain", alice, "--ip", &ip])?;
        ensure!(explained.contains("refuses it for"), "{explained}");
        verb(scene, &["throttle", "clear", alice, "--ip", &ip])?;
        gets_in(scene, other, "alice")?;
        for act in ["allow 127.1.0.1/32 for 3600 s: a fair", "disallow 127.1.0.1/32"] {
            scene.portico.record(&[("event", "admin"), ("act", act)])?;
        }
        Ok(())
    })
}

#[test]
fn it_is_remembered_over_a_restart_and_an_upgrade() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let file = dir.path().join("throttle");
    let settings = format!("{{pair: {{delay_from: 0, refuse_from: 2}}, file: {}}}", quote(&file));
    play(people(), &settings, |scene| {
        gets_in(scene, HOME, "alice")?;
        guess_twice(scene, address(0))?;
        scene.portico.restart("debug")?;
        let written = std::fs::read(&file)?;
        let is_in = |word: &str| written.windows(word.len()).any(|bytes| bytes == word.as_bytes());
        ensure!(!is_in("alice") && !is_in("127.1"), "names are in the file");
        let answer = imap(scene, address(0), "alice@a.example", "guess-3")?;
        ensure!(answer.starts_with("a1 NO [LIMIT]"), "{answer}");
        let explained = verb(scene, &["throttle", "explain", "alice@a.example", "--ip", "127.0.0.1"])?;
        ensure!(explained.contains("known       yes"), "{explained}");
        guess_twice(scene, address(1))?;
        let _old = scene.portico.upgrade("debug")?;
        for from in [address(0), address(1)] {
            let answer = imap(scene, from, "alice@a.example", "guess-4")?;
            ensure!(answer.starts_with("a1 NO [LIMIT]"), "{from}: {answer}");
        }
        // A file that is damaged is none.
        std::fs::write(&file, b"something else")?;
        scene.portico.kill();
        scene.portico.start_again("debug")?;
        gets_in(scene, address(0), "alice")?;
        ensure!(
            scene.portico.output().contains("is not used"),
            "{}",
            scene.portico.output()
        );
        Ok(())
    })
}

/// A rule in dry run records what it would do, and does nothing; a reload changes that.
#[test]
fn a_dry_run_only_records() -> Result<()> {
    play(
        people(),
        "{mode: dry_run, pair: {delay_from: 0, refuse_from: 2}}",
        |scene| {
            guess_twice(scene, address(0))?;
            let answer = imap(scene, address(0), "alice@a.example", "guess-3")?;
            ensure!(answer.starts_with("a1 NO [AUTHENTICATIONFAILED]"), "{answer}");
            let would = [
                ("outcome", "bad_credentials"),
                ("rule", "pair"),
                ("throttle", "would_refuse"),
            ];
            scene.portico.record(&would)?;
            let conf = scene.portico.dir().join("portico.yaml");
            let text = std::fs::read_to_string(&conf)?;
            std::fs::write(&conf, text.replace("mode: dry_run", "mode: on"))?;
            scene.portico.reload()?;
            let answer = imap(scene, address(0), "alice@a.example", "guess-4")?;
            ensure!(answer.starts_with("a1 NO [LIMIT]"), "{answer}");
            Ok(())
        },
    )
}

/// Reaching a limit is nothing special: every client gets an answer in its protocol.
#[test]
fn with_every_limit_at_one_there_are_answers() -> Result<()> {
    let one = ["pair", "address", "network", "account", "spray", "many"];
    let one = one.map(|rule| format!("{rule}: {{delay_from: 1, refuse_from: 1}}"));
    let sessions = ["account", "account_and_address", "address", "domain", "server"];
    let sessions = sessions.map(|what| format!("sessions_per_{what}: 1"));
    let change = |_: &_, node: &mut portico_tests::config::Node, directory: &mut portico_tests::config::Directory| {
        let throttle = format!("{{max_waiting: 1, max_delay: 1ms, {}}}", one.join(", "));
        node.more.push(("throttle".to_owned(), throttle));
        let others = "unread_answers: 1, unread_answers_per_address: 1, requests_per_address: 1, \
                      waiting_requests_per_address: 1";
        let limits = format!("{{exempt: [], {others}, {}}}", sessions.join(", "));
        node.more.push(("limits".to_owned(), limits));
        directory
            .config("zimbraReverseProxyAuthWaitInterval", "10ms")
            .config("zimbraReverseProxyImapStartTlsMode", "on");
        Ok(())
    };
    play_with(people(), change, |scene| {
        let _alice = scene.login("alice")?;
        for (n, local) in ["alice", "bob", "carol", "dave", "alice"].into_iter().enumerate() {
            let person = scene.town.person(local)?;
            for (from, password) in [(HOME, person.password()), (address(n), format!("guess-{n}"))] {
                let answer = imap(scene, from, &person.name, &password)?;
                let known = ["a1 OK", "a1 NO [LIMIT] ", "a1 NO [AUTHENTICATIONFAILED] "];
                ensure!(known.iter().any(|start| answer.starts_with(start)), "{answer}");
            }
            let credentials = format!("{}:guess-{n}", person.name);
            let path = format!("/dav/{}/Calendar/", person.name);
            let answer = scene.https(&path, &["-u", &credentials])?;
            ensure!(["401", "429"].contains(&answer.status()), "{}", answer.head);
            every_door_answers(scene, local, n)?;
        }
        Ok(())
    })
}

/// Over POP3 and in SOAP, with the right password and with a wrong one, and where requests come at once; and the admin
/// API answers as ever.
fn every_door_answers(scene: &Scene, local: &str, n: usize) -> Result<()> {
    let person = scene.town.person(local)?;
    for password in [person.password(), format!("other-guess-{n}")] {
        let mut pop3 = scene.pop3s()?;
        pop3.pop_ok(&format!("USER {}", person.name))?;
        let answer = pop3.pop(&format!("PASS {password}"))?;
        let known = [
            "+OK",
            "-ERR [IN-USE] ",
            "-ERR [LOGIN-DELAY] ",
            "-ERR [SYS/TEMP] ",
            "-ERR [AUTH] ",
        ];
        ensure!(known.iter().any(|start| answer.starts_with(start)), "{answer}");
        let body = soap_login(&person.name, &password);
        let ask = |_| -> Result<Wire> {
            let mut wire = scene.tls(scene.town.endpoints.https, FRONT)?;
            wire.send(format!(
                "POST /service/soap/AuthRequest HTTP/1.1\r\nHost: {FRONT}\r\nConnection: close\r\nContent-Length: \
                 {}\r\n\r\n{body}",
                body.len()
            ))?;
            Ok(wire)
        };
        for mut wire in (0..4).map(ask).collect::<Result<Vec<_>>>()? {
            let answer = String::from_utf8_lossy(&wire.rest()?).to_ascii_lowercase();
            let status = answer.split(' ').nth(1).unwrap_or_default();
            ensure!(["200", "429", "500", "503"].contains(&status), "{answer}");
            let waits = answer.contains("\r\nretry-after: ");
            ensure!(waits || !["429", "503"].contains(&status), "{answer}");
        }
    }
    let list = verb(scene, &["throttle", "list"])?;
    ensure!(list.contains("attempts wait now"), "{list}");
    Ok(())
}

/// Attempts with each of two names.
const SAMPLES: usize = 200;
/// Clients at the same time.
const CLIENTS: usize = 16;

/// How much longer the directory takes for each question: several times what else can differ between two attempts, and
/// less than refused clients wait.
const FAR: Duration = Duration::from_millis(100);

/// Which of two names has an account does not show by the time of an answer: neither where the password is wrong, nor
/// where the throttle refuses the account or the address. The directory is far away, and each name that nobody has
/// asked for lately costs a search; without the wait of mail, or that of the web, it tells all of them apart.
#[test]
fn time_does_not_tell_who_exists() -> Result<()> {
    let one = "{delay_from: 0, refuse_from: 1}";
    let off = "mode: off".to_owned();
    let by_account = format!("max_waiting: 1, pair: {one}, account: {one}");
    let by_address = format!("max_waiting: 1, address: {one}");
    // A wrong password waits for longer than the mailbox server takes for it on a busy machine.
    for (settings, wait) in [(off, "1s"), (by_account, "250ms"), (by_address, "250ms")] {
        let change =
            |_: &_, node: &mut portico_tests::config::Node, directory: &mut portico_tests::config::Directory| {
                node.more.push(("throttle".to_owned(), format!("{{{settings}}}")));
                directory
                    .config("zimbraReverseProxyAuthWaitInterval", wait)
                    .config("zimbraReverseProxyImapStartTlsMode", "on");
                Ok(())
            };
        Source::SlowLdap(FAR).play_with(town(), change, |scene| {
            let tells_nothing = |what: &str, took: Vec<[Duration; 2]>| -> Result<()> {
                let share = nobody_is_later(&took);
                // Of equal times it is a half, give or take three hundredths (one standard deviation).
                println!("{settings}, {what}: {share}");
                ensure!((0.35..=0.65).contains(&share), "{settings}, {what}: {share}");
                Ok(())
            };
            if settings == "mode: off" {
                let took = with_each_name(|n, name| failure(scene, address(n), name, "NO [AUTHENTICATIONFAILED]"))?;
                return tells_nothing("by mail", took);
            }
            // Whoever fails once is refused from then on; only that is measured.
            with_each_name(|n, name| guess_until_refused(scene, address(n), name))?;
            verb(scene, &["route", "purge", "--all"])?;
            let took = with_each_name(|n, name| failure(scene, address(n), name, "NO [LIMIT]"))?;
            tells_nothing("by mail", took)?;
            verb(scene, &["route", "purge", "--all"])?;
            tells_nothing(
                "on the web",
                with_each_name(|n, name| web_refusal(scene, address(n), name))?,
            )
        })?;
    }
    Ok(())
}

/// The story: a name that nobody has counted at once, and one that a mailbox server was asked about when that had
/// refused it, so a third guess was answered sooner for the former.
#[test]
fn when_a_failure_counts_does_not_tell_who_exists() -> Result<()> {
    let change = |_: &_, node: &mut portico_tests::config::Node, directory: &mut portico_tests::config::Directory| {
        let settings = "{max_delay: 8s, pair: {delay_from: 1, refuse_from: 0}}";
        node.more.push(("throttle".to_owned(), settings.to_owned()));
        directory
            // Longer than Dovecot takes, and than it is given in any case.
            .config("zimbraReverseProxyAuthWaitInterval", "6s")
            .config("zimbraReverseProxyImapStartTlsMode", "on");
        Ok(())
    };
    play_with(people(), change, |scene| {
        // Dovecot takes two seconds for each.
        scene.town.stores[0].dovecot.delay_guesses()?;
        let guess = |from: IpAddr, name: &str, password: &str| -> Result<Duration> {
            let mut wire = greeted(Wire::clear_from(from, scene.town.endpoints.imap)?, "* OK")?;
            wire.patience(Duration::from_secs(30))?;
            let begun = Instant::now();
            let answer = wire.imap(&format!("a1 LOGIN {name} {password}"))?;
            let is_told = answer
                .last()
                .is_some_and(|last| last.starts_with("a1 NO [AUTHENTICATIONFAILED]"));
            ensure!(is_told, "{answer:?}");
            Ok(begun.elapsed())
        };
        let guess = &guess;
        // The second one comes before the first has been answered.
        let second = |number: usize, name: &'static str| {
            std::thread::scope(|scope| {
                let first = scope.spawn(move || guess(address(number), name, "wr0ng-1"));
                std::thread::sleep(Duration::from_millis(500));
                let second = guess(address(number), name, "wr0ng-2");
                first.join().expect("no panic")?;
                second
            })
        };
        let (known, unknown) = std::thread::scope(|scope| {
            let known = scope.spawn(move || second(0, "alice@a.example"));
            let unknown = scope.spawn(move || second(1, "nobody@a.example"));
            (known.join().expect("no panic"), unknown.join().expect("no panic"))
        });
        let (known, unknown) = (known?, unknown?);
        let apart = known.abs_diff(unknown);
        ensure!(apart < Duration::from_millis(700), "{known:?} {unknown:?}");
        Ok(())
    })
}

/// Whoever authenticates for another account's mailbox is one person, however the name is written.
#[test]
fn spellings_of_who_authenticates_count_together() -> Result<()> {
    play(people(), STRICT, |scene| {
        let guess = |name: &str, password: &str| -> Result<String> {
            let mut wire = greeted(Wire::clear_from(address(0), scene.town.endpoints.imap)?, "* OK")?;
            let message = [b"bob@b.example\0", name.as_bytes(), b"\0", password.as_bytes()].concat();
            let message = openssl::base64::encode_block(&message);
            let answer = wire.imap(&format!("a1 AUTHENTICATE PLAIN {message}"))?;
            answer.last().cloned().context("no answer")
        };
        for (n, name) in ["alice@a.example", "al@a.example"].into_iter().enumerate() {
            let answer = guess(name, &format!("guess-{n}"))?;
            ensure!(answer.starts_with("a1 NO [AUTHENTICATIONFAILED]"), "{name}: {answer}");
        }
        for name in [
            "alice@a.example/tb",
            "ALICE@a.example",
            "al@a.example/wm",
            "alice@a.example",
        ] {
            until("the count", PATIENCE, || {
                Ok(guess(name, "guess")?.contains("[LIMIT]").then_some(()))
            })?;
            let answer = guess(name, "guess")?;
            ensure!(answer.starts_with("a1 NO [LIMIT]"), "{name}: {answer}");
        }
        Ok(())
    })
}

/// Attempts with names of nobody and with names of somebody, and how long they took.
fn with_each_name(attempt: impl Fn(usize, &str) -> Result<Duration> + Sync) -> Result<Vec<[Duration; 2]>> {
    let sample = |n: usize| -> Result<[Duration; 2]> {
        // In turns, so that the noise of the machine is the same for both.
        let names = [format!("nobody{n}@a.example"), format!("user{}@a.example", n % PEOPLE)];
        let mut took = [Duration::ZERO; 2];
        for at in [n % 2, 1 - n % 2] {
            took[at] = attempt(n, &names[at])?;
        }
        Ok(took)
    };
    let sample = &sample;
    std::thread::scope(|scope| {
        let all: Vec<_> = (0..CLIENTS)
            .map(|first| {
                scope.spawn(move || {
                    (first..SAMPLES)
                        .step_by(CLIENTS)
                        .map(sample)
                        .collect::<Result<Vec<_>>>()
                })
            })
            .collect();
        let all: Result<Vec<Vec<_>>> = all.into_iter().map(|one| one.join().expect("no panic")).collect();
        Ok(all?.concat())
    })
}

/// In how many of all pairs of an attempt with a name of nobody and one with a name of somebody the former took longer.
fn nobody_is_later(took: &[[Duration; 2]]) -> f64 {
    let pairs = took
        .iter()
        .flat_map(|[nobody, _]| took.iter().map(move |[_, somebody]| (nobody, somebody)));
    let later = pairs.filter(|(nobody, somebody)| nobody > somebody).count();
    later as f64 / (took.len() * took.len()) as f64
}

/// An attempt with a wrong password, how long it takes, and what it hears.
fn attempt(scene: &Scene, from: IpAddr, name: &str) -> Result<(Duration, String)> {
    let mut wire = greeted(Wire::clear_from(from, scene.town.endpoints.imap)?, "* OK")?;
    let begun = Instant::now();
    let answer = wire.imap(&format!("a1 LOGIN {name} wr0ng-{from}"))?;
    Ok((begun.elapsed(), answer.last().cloned().context("no answer")?))
}

/// How long this failure takes.
fn failure(scene: &Scene, from: IpAddr, name: &str, expected: &str) -> Result<Duration> {
    let (took, answer) = attempt(scene, from, name)?;
    ensure!(answer.contains(expected), "{name} from {from}: {answer}");
    Ok(took)
}

fn guess_until_refused(scene: &Scene, from: IpAddr, name: &str) -> Result<Duration> {
    until("a refusal", PATIENCE, || {
        let (took, answer) = attempt(scene, from, name)?;
        Ok(answer.contains("NO [LIMIT]").then_some(took))
    })
}

/// How long the refusal of a web login takes, on a connection that stands already.
fn web_refusal(scene: &Scene, from: IpAddr, name: &str) -> Result<Duration> {
    let tls = scene.town.ca.connector(&["http/1.1"])?;
    let mut wire = Wire::clear_from(from, scene.town.endpoints.https)?.start_tls(&tls, FRONT)?;
    let body = soap_login(name, &format!("wr0ng-{from}"));
    let begun = Instant::now();
    wire.send(format!(
        "POST /service/soap/AuthRequest HTTP/1.1\r\nHost: {FRONT}\r\nContent-Length: {}\r\n\r\n{body}",
        body.len()
    ))?;
    let status = wire.line()?;
    ensure!(status.contains(" 429 "), "{name} from {from}: {status}");
    Ok(begun.elapsed())
}
