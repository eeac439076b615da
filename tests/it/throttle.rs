//! Guessing of passwords under attack: how many guesses reach a mailbox server, what honest users see of it meanwhile,
//! in which words each kind of client is told to wait, and how administrators see and steer it.

use std::net::{IpAddr, Ipv4Addr};
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use portico_tests::config::quote;
use portico_tests::portico::binary;
use portico_tests::town::{FRONT, Person, people};
use portico_tests::until;
use portico_tests::wire::Wire;

use crate::scene::{Scene, Source, greeted, play_with, soap_login};

/// Where the owners of accounts are known.
const HOME: IpAddr = IpAddr::V4(Ipv4Addr::LOCALHOST);
/// An address that nobody has seen.
const STRANGER: IpAddr = IpAddr::V4(Ipv4Addr::new(127, 0, 9, 9));
/// Who attacks at the same time.
const THREADS: usize = 8;
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

/// An honest login: it succeeds, soon.
fn gets_in(scene: &Scene, from: IpAddr, local: &str) -> Result<()> {
    let person = scene.town.person(local)?;
    let begun = Instant::now();
    let answer = imap(scene, from, &person.name, &person.password())?;
    ensure!(answer.starts_with("a1 OK"), "{local} from {from}: {answer}");
    ensure!(begun.elapsed() < PATIENCE, "{local} from {from}: {:?}", begun.elapsed());
    Ok(())
}

fn address(number: usize) -> IpAddr {
    IpAddr::from([127, 1, (number / 250) as u8, (number % 250 + 1) as u8])
}

/// An attack: who guesses at which account with the guess of this number.
struct Attack {
    name: &'static str,
    guesses: usize,
    guess: fn(usize) -> (IpAddr, String),
    /// The most that may reach a server.
    most: usize,
    /// Settings of the throttle that differ from the defaults.
    settings: &'static str,
}

fn town() -> Vec<Person> {
    let named = |n: usize| Person::new(&format!("user{n}@a.example"), n % 2, format!("user{n}-c4n4ry"));
    people().into_iter().chain((0..PEOPLE).map(named)).collect()
}

/// Fifty connections made a hundred guesses in a quarter of a minute, and none was refused.
const ATTACKS: [Attack; 4] = [
    Attack {
        name: "one address, one account",
        guesses: 150,
        guess: |_| (address(0), "alice@a.example".to_owned()),
        most: 12,
        settings: "{max_delay: 100ms}",
    },
    Attack {
        name: "one address, many accounts",
        guesses: 150,
        guess: |n| (address(0), format!("user{}@a.example", n % PEOPLE)),
        // Those that have no answer yet are not known to fail.
        most: 20 + THREADS,
        settings: "{max_delay: 100ms}",
    },
    Attack {
        name: "many addresses, one account",
        guesses: 150,
        guess: |n| (address(n), "alice@a.example".to_owned()),
        most: 60 + THREADS,
        settings: "{max_delay: 100ms}",
    },
    Attack {
        name: "many addresses, three tries each",
        guesses: 360,
        guess: |n| (address(n % 120), format!("user{}@a.example", n % (PEOPLE - 1))),
        most: 120 + 40 + THREADS,
        settings: "{max_delay: 100ms, many: {refuse_from: 40}}",
    },
];

#[test]
fn few_guesses_reach_a_server_and_honest_users_get_in() -> Result<()> {
    println!("{:36} {:>8} {:>8} {:>12}", "attack", "guesses", "reach", "honest ms");
    for attack in &ATTACKS {
        play(town(), attack.settings, |scene| {
            gets_in(scene, HOME, "alice")?;
            let honest = under(scene, attack)?;
            let ended = |outcome| scene.portico.count(&[("event", "login"), ("outcome", outcome)]);
            let reached = until("a record for each guess", PATIENCE, || {
                let (reached, refused) = (ended("bad_credentials")?, ended("throttled")?);
                Ok((reached + refused == attack.guesses).then_some(reached))
            })?;
            let (name, guesses) = (attack.name, attack.guesses);
            println!("{name:36} {guesses:>8} {reached:>8} {:>12}", honest.as_millis());
            ensure!(reached <= attack.most, "{name}: {reached}");
            gets_in(scene, HOME, "alice")?;
            gets_in(scene, STRANGER, "bob")
        })?;
    }
    Ok(())
}

/// Attacks, while honest users log in. Returns how long one of them took at most.
fn under(scene: &Scene, attack: &Attack) -> Result<Duration> {
    std::thread::scope(|scope| {
        let guess = |thread: usize| -> Result<()> {
            for n in (thread..attack.guesses).step_by(THREADS) {
                let (from, name) = (attack.guess)(n);
                let answer = imap(scene, from, &name, &format!("guess-{n}"))?;
                let is_told =
                    answer.starts_with("a1 NO [AUTHENTICATIONFAILED]") || answer.starts_with("a1 NO [LIMIT] ");
                ensure!(is_told, "{answer}");
            }
            Ok(())
        };
        let threads: Vec<_> = (0..THREADS).map(|thread| scope.spawn(move || guess(thread))).collect();
        let mut longest = Duration::ZERO;
        while threads.iter().any(|thread| !thread.is_finished()) {
            let begun = Instant::now();
            gets_in(scene, HOME, "alice")?;
            longest = longest.max(begun.elapsed());
        }
        threads
            .into_iter()
            .try_for_each(|thread| thread.join().expect("no panic"))?;
        Ok(longest)
    })
}

/// An office behind one address, all of it new, with three phones that have last year's passwords.
#[test]
fn an_office_is_not_delayed() -> Result<()> {
    play(town(), "{}", |scene| {
        let office = address(0);
        for round in 0..3 {
            for n in 0..PEOPLE {
                gets_in(scene, office, &format!("user{n}"))?;
                if n < 3 {
                    let answer = imap(scene, office, &format!("user{n}@a.example"), "last-year")?;
                    ensure!(
                        answer.starts_with("a1 NO [AUTHENTICATIONFAILED]"),
                        "{round} {n}: {answer}"
                    );
                }
            }
        }
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
/// where the throttle refuses the account or the address. The directory is far away, where each name that nobody has
/// asked for costs a search; without the wait of mail, or that of the web, it tells all of them apart.
#[test]
fn time_does_not_tell_who_exists() -> Result<()> {
    let off = "mode: off".to_owned();
    let by_pair = "max_waiting: 1, pair: {delay_from: 0, refuse_from: 1}".to_owned();
    let by_address = "max_waiting: 1, address: {delay_from: 0, refuse_from: 1}".to_owned();
    // A wrong password waits for longer than the mailbox server takes for it on a busy machine.
    for (settings, wait, expected) in [
        (off, "1s", "NO [AUTHENTICATIONFAILED]"),
        (by_pair, "250ms", "NO [LIMIT]"),
        (by_address, "250ms", "NO [LIMIT]"),
    ] {
        let change =
            |_: &_, node: &mut portico_tests::config::Node, directory: &mut portico_tests::config::Directory| {
                node.more.push(("throttle".to_owned(), format!("{{{settings}}}")));
                directory
                    .config("zimbraReverseProxyAuthWaitInterval", wait)
                    .config("zimbraReverseProxyImapStartTlsMode", "on");
                Ok(())
            };
        Source::SlowLdap(FAR).play_with(town(), change, |scene| {
            let share = later_than_the_other(|n, name| refusal(scene, address(n), name, expected))?;
            // Of equal times it is a half, give or take three hundredths (one standard deviation).
            println!("{settings}: {share}");
            ensure!((0.35..=0.65).contains(&share), "{settings}: {share}");
            if expected == "NO [LIMIT]" {
                let share = later_than_the_other(|n, name| web_refusal(scene, name, n))?;
                println!("{settings}, on the web: {share}");
                ensure!((0.35..=0.65).contains(&share), "{settings}, on the web: {share}");
            }
            Ok(())
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

/// In how many of all pairs of an attempt with a name of nobody and one with a name of somebody the former took longer.
fn later_than_the_other(attempt: impl Fn(usize, &str) -> Result<Duration> + Sync) -> Result<f64> {
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
    let took: Vec<[Duration; 2]> = std::thread::scope(|scope| {
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
        Ok::<_, anyhow::Error>(all?.concat())
    })?;
    let pairs = took
        .iter()
        .flat_map(|[nobody, _]| took.iter().map(move |[_, somebody]| (nobody, somebody)));
    let later = pairs.filter(|(nobody, somebody)| nobody > somebody).count();
    Ok(later as f64 / (SAMPLES * SAMPLES) as f64)
}

/// How long this refusal takes. What makes the throttle refuse comes first, and is not measured.
fn refusal(scene: &Scene, from: IpAddr, name: &str, expected: &str) -> Result<Duration> {
    let attempt = || -> Result<(String, Duration)> {
        let mut wire = greeted(Wire::clear_from(from, scene.town.endpoints.imap)?, "* OK")?;
        let begun = Instant::now();
        let answer = wire.imap(&format!("a1 LOGIN {name} wr0ng-{from}"))?;
        Ok((answer.last().cloned().context("no answer")?, begun.elapsed()))
    };
    let (mut answer, mut took) = attempt()?;
    if !answer.contains(expected) {
        (answer, took) = attempt()?;
    }
    ensure!(answer.contains(expected), "{name} from {from}: {answer}");
    Ok(took)
}

/// The same for a web login, from an address that is refused already; a client that stays connected, so that only the
/// login is measured. Each name is asked for once.
fn web_refusal(scene: &Scene, name: &str, n: usize) -> Result<Duration> {
    let from = address(n);
    let tls = scene.town.ca.connector(&["http/1.1"])?;
    let mut wire = Wire::clear_from(from, scene.town.endpoints.https)?.start_tls(&tls, FRONT)?;
    let name = name.replace("nobody", "webnobody");
    for at in 0..2 {
        let body = soap_login(&name, &format!("wr0ng-{from}-{at}"));
        let begun = Instant::now();
        wire.send(format!(
            "POST /service/soap/AuthRequest HTTP/1.1\r\nHost: {FRONT}\r\nContent-Length: {}\r\n\r\n{body}",
            body.len()
        ))?;
        let status = wire.line()?;
        let took = begun.elapsed();
        if status.contains(" 429 ") {
            return Ok(took);
        }
        ensure!(status.contains(" 500 "), "{name}: {status}");
        wire = Wire::clear_from(from, scene.town.endpoints.https)?.start_tls(&tls, FRONT)?;
    }
    anyhow::bail!("{name} from {from} is not refused")
}
