//! Logins by every mechanism and with every kind of name and password; and what a client whose login fails learns.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use openssl::base64::encode_block;
use portico_tests::config::Directory;
use portico_tests::town::{Person, people};
use portico_tests::wire::Wire;

use crate::scene::{Scene, Source, greeted, quoted, sasl_plain, timed};

type Login = fn(&mut Wire, &str, &[u8]) -> Result<()>;

const IMAP: [(&str, &str, Login); 8] = [
    ("quoted", "LOGIN", imap_quoted),
    ("literal", "LOGIN", imap_literal),
    ("literal plus", "LOGIN", imap_literal_plus),
    ("literal plus and quoted", "LOGIN", imap_mixed),
    ("PLAIN", "PLAIN", imap_plain),
    ("PLAIN with initial response", "PLAIN", imap_plain_at_once),
    ("LOGIN mechanism", "SASL-LOGIN", imap_sasl_login),
    (
        "LOGIN mechanism with initial response",
        "SASL-LOGIN",
        imap_sasl_login_at_once,
    ),
];

const POP3: [(&str, &str, Login); 5] = [
    ("USER", "USER", pop3_user),
    ("PLAIN", "PLAIN", pop3_plain),
    ("PLAIN with initial response", "PLAIN", pop3_plain_at_once),
    ("LOGIN mechanism", "SASL-LOGIN", pop3_sasl_login),
    (
        "LOGIN mechanism with initial response",
        "SASL-LOGIN",
        pop3_sasl_login_at_once,
    ),
];

/// All logins, wherever Portico learns who lives where.
macro_rules! on_every_source {
    ($($test:ident)*) => {
        on_every_source! { yaml Yaml: $($test)* }
        on_every_source! { ldap Ldap: $($test)* }
        on_every_source! { zimbra Zimbra: $($test)* }
        on_every_source! { nginx Nginx: $($test)* }
    };
    ($module:ident $source:ident: $($test:ident)*) => {
        mod $module {
            use crate::scene::Source;
            $(
                #[test]
                fn $test() -> anyhow::Result<()> {
                    super::$test(Source::$source)
                }
            )*
        }
    };
}

on_every_source! {
    every_imap_mechanism_reaches_the_right_store
    an_atom_will_do
    every_pop3_mechanism_reaches_the_right_store
    odd_passwords_pass_unharmed
    aliases_and_short_names_find_their_account
    wrong_password_and_unknown_user_look_alike
    no_password_in_clear_text_unless_allowed
    clear_text_all_the_way_where_the_directory_says_so
    a_second_try_on_the_same_connection_is_good
}

fn every_imap_mechanism_reaches_the_right_store(source: Source) -> Result<()> {
    source.play(|scene| {
        scene.deliver_marks()?;
        for local in ["alice", "bob"] {
            let person = scene.town.person(local)?.clone();
            for (what, mechanism, login) in IMAP {
                for connect in [Scene::imaps, Scene::imap_starttls] {
                    let mut wire = connect(scene)?;
                    login(&mut wire, &person.name, &person.password).with_context(|| format!("{what}, {local}"))?;
                    scene
                        .is_inbox_of(&mut wire, local)
                        .with_context(|| format!("{what}, {local}"))?;
                    wire.imap_ok("z LOGOUT")?;
                }
                let fields = [
                    ("event", "login"),
                    ("proto", "imap"),
                    ("mechanism", mechanism),
                    ("account", &person.name),
                ];
                scene.portico.record(&[&fields[..], &[("outcome", "ok")]].concat())?;
            }
        }
        Ok(())
    })
}

fn an_atom_will_do(source: Source) -> Result<()> {
    source.play(|scene| {
        let mut wire = scene.imaps()?;
        let answer = wire.imap_ok("A.1 login alice@a.example alice-c4n4ry-one")?;
        let last = answer.last().context("no answer")?;
        assert!(
            last.starts_with("A.1 OK [CAPABILITY IMAP4rev1"),
            "the server's own words: {last}"
        );
        Ok(())
    })
}

fn every_pop3_mechanism_reaches_the_right_store(source: Source) -> Result<()> {
    source.play(|scene| {
        scene.deliver_marks()?;
        for local in ["carol", "dave"] {
            let person = scene.town.person(local)?.clone();
            for (what, mechanism, login) in POP3 {
                for connect in [Scene::pop3s, Scene::pop3_stls] {
                    let mut wire = connect(scene)?;
                    login(&mut wire, &person.name, &person.password).with_context(|| format!("{what}, {local}"))?;
                    assert!(wire.pop_ok("STAT")?.starts_with("+OK 1 "));
                    wire.pop_ok("RETR 1")?;
                    while wire.line()? != "." {}
                    wire.pop_ok("QUIT")?;
                }
                let fields = [
                    ("event", "login"),
                    ("proto", "pop3"),
                    ("mechanism", mechanism),
                    ("account", &person.name),
                ];
                scene.portico.record(&[&fields[..], &[("outcome", "ok")]].concat())?;
            }
        }
        Ok(())
    })
}

fn odd_passwords_pass_unharmed(source: Source) -> Result<()> {
    let passwords = [
        "qu\"o\"te-c4n4ry",
        "back\\sl\\\\ash-c4n4ry",
        " blanks  c4n4ry ",
        "pässwörd-中文-🔑-c4n4ry",
        "brace{5}c4n4ry{3+}",
        "percent%20&<>'`$(x)-c4n4ry",
    ];
    // Longer than what Dovecot reads in a line before a login is in guesses.rs.
    let long = "l".repeat(200);
    let people = passwords.iter().copied().chain([long.as_str()]).enumerate();
    let people = people
        .map(|(n, password)| Person::new(&format!("odd{n}@a.example"), n % 2, password))
        .collect();
    source.play_with(
        people,
        |_, _, _| Ok(()),
        |scene| {
            for person in &scene.town.people {
                for (what, _, login) in IMAP {
                    let mut wire = scene.imaps()?;
                    login(&mut wire, &person.name, &person.password)
                        .with_context(|| format!("{what}, {:?}", person.password()))?;
                }
                for (what, _, login) in POP3 {
                    let mut wire = scene.pop3s()?;
                    login(&mut wire, &person.name, &person.password)
                        .with_context(|| format!("POP3 {what}, {:?}", person.password()))?;
                }
            }
            Ok(())
        },
    )
}

fn aliases_and_short_names_find_their_account(source: Source) -> Result<()> {
    source.play(|scene| {
        scene.deliver_marks()?;
        let cases = [
            ("al@a.example", "mail.example.test", "alice"),
            ("ALICE@A.Example", "mail.example.test", "alice"),
            ("david@a.example", "mail.example.test", "dave"),
            ("alice", "mail.a.example", "alice"),
            ("al", "imap.a.example", "alice"),
            ("carol", "mail.b.example", "carol"),
            ("bob", "mail.example.test", "bob"),
        ];
        for (typed, server_name, local) in cases {
            let mut wire = greeted(scene.tls(scene.town.endpoints.imaps, server_name)?, "* OK ")?;
            let person = scene.town.person(local)?;
            wire.imap_ok(&format!("a1 LOGIN {typed} {}", person.password()))
                .with_context(|| typed.to_owned())?;
            scene.is_inbox_of(&mut wire, local)?;
            let fields = [
                ("user", typed),
                ("account", &person.name),
                ("sni", server_name),
                ("outcome", "ok"),
            ];
            scene.portico.record(&fields)?;
        }
        Ok(())
    })
}

/// How long a failed login waits here: longer than a busy machine takes to ask a mailbox server.
const WAIT: Duration = Duration::from_secs(2);

fn wrong_password_and_unknown_user_look_alike(source: Source) -> Result<()> {
    let wait = |_: &_, _: &mut _, directory: &mut Directory| {
        directory.config("zimbraReverseProxyAuthWaitInterval", "2s");
        Ok(())
    };
    source.play_with(people(), wait, |scene| {
        let attempt = |name: &str| {
            let mut wire = scene.imaps()?;
            timed(|| wire.imap(&format!("a1 LOGIN {name} wr0ng-c4n4ry")))
        };
        let (known, unknown) = (attempt("alice@a.example")?, attempt("nobody@a.example")?);
        look_alike(&known, &unknown)?;
        ensure!(
            known
                .0
                .last()
                .is_some_and(|l| l.starts_with("a1 NO [AUTHENTICATIONFAILED]")),
            "{known:?}"
        );
        let attempt = |name: &str| {
            let mut wire = scene.pop3s()?;
            wire.pop_ok(&format!("USER {name}"))?;
            timed(|| wire.pop("PASS wr0ng-c4n4ry"))
        };
        let (known, unknown) = (attempt("bob@a.example")?, attempt("nobody@b.example")?);
        look_alike(&known, &unknown)?;
        ensure!(known.0.starts_with("-ERR"), "{known:?}");
        scene
            .portico
            .record(&[("user", "alice@a.example"), ("outcome", "bad_credentials")])?;
        scene
            .portico
            .record(&[("user", "nobody@a.example"), ("outcome", "unknown_user")])?;
        scene.portico.must_not_have_written(&[b"wr0ng-c4n4ry".to_vec()])
    })
}

/// Not a byte may differ, and the time no more than a network's would.
fn look_alike<T: PartialEq + std::fmt::Debug>(one: &(T, Duration), other: &(T, Duration)) -> Result<()> {
    ensure!(one.0 == other.0, "{one:?} {other:?}");
    ensure!(one.1 >= WAIT * 9 / 10 && other.1 >= WAIT * 9 / 10, "{one:?} {other:?}");
    ensure!(one.1.abs_diff(other.1) < WAIT / 4, "{one:?} {other:?}");
    Ok(())
}

fn no_password_in_clear_text_unless_allowed(source: Source) -> Result<()> {
    source.play(|scene| {
        let mut wire = greeted(Wire::clear(scene.town.endpoints.imap)?, "* OK ")?;
        let list = wire.imap_ok("a1 CAPABILITY")?.join(" ");
        assert!(
            list.contains(" STARTTLS") && list.contains(" LOGINDISABLED") && !list.contains("AUTH=PLAIN"),
            "{list}"
        );
        let refused = wire.imap("a2 LOGIN alice@a.example alice-c4n4ry-one")?;
        assert!(
            refused.last().is_some_and(|l| l.starts_with("a2 NO [PRIVACYREQUIRED]")),
            "{refused:?}"
        );
        drop(wire);
        let mut wire = greeted(Wire::clear(scene.town.endpoints.pop3)?, "+OK")?;
        let _user = wire.pop("USER alice@a.example")?;
        assert!(wire.pop("PASS alice-c4n4ry-one")?.starts_with("-ERR"));
        scene
            .portico
            .record(&[("proto", "imap"), ("outcome", "tls_required")])
            .map(drop)
    })
}

fn clear_text_all_the_way_where_the_directory_says_so(source: Source) -> Result<()> {
    source.play_with(
        people(),
        |_, _, directory| {
            directory
                .config("zimbraReverseProxyImapStartTlsMode", "on")
                .config("zimbraReverseProxyPop3StartTlsMode", "on");
            directory.config("zimbraReverseProxySSLToUpstreamEnabled", "FALSE");
            Ok(())
        },
        |scene| {
            scene.deliver_marks()?;
            let mut wire = greeted(Wire::clear(scene.town.endpoints.imap)?, "* OK ")?;
            imap_literal(&mut wire, "bob@a.example", b"bob-c4n4ry-two")?;
            scene.is_inbox_of(&mut wire, "bob")?;
            let mut wire = greeted(Wire::clear(scene.town.endpoints.pop3)?, "+OK")?;
            pop3_user(&mut wire, "alice@a.example", b"alice-c4n4ry-one")?;
            let clear = format!(
                "{}:{}",
                scene.town.stores[1].dovecot.ip, scene.town.stores[1].dovecot.imap
            );
            scene
                .portico
                .record(&[("account", "bob@a.example"), ("route", &clear)])
                .map(drop)
        },
    )
}

fn a_second_try_on_the_same_connection_is_good(source: Source) -> Result<()> {
    source.play(|scene| {
        let mut wire = scene.imaps()?;
        assert!(
            wire.imap("a1 LOGIN alice@a.example wr0ng-c4n4ry")?
                .last()
                .is_some_and(|l| l.starts_with("a1 NO"))
        );
        wire.imap_ok("a2 LOGIN alice@a.example alice-c4n4ry-one")?;
        Ok(())
    })
}

/// Before anybody has logged in it is the list that every directory has; Dovecot has no QUOTA and no XLIST.
#[test]
fn clients_are_promised_what_their_servers_have() -> Result<()> {
    Source::Yaml.play(|scene| {
        let list = |scene: &Scene| Ok::<_, anyhow::Error>(scene.imaps()?.imap_ok("a1 CAPABILITY")?.join(" "));
        let before = list(scene)?;
        for name in [" QUOTA", " XLIST", " AUTH=PLAIN", " LITERAL+"] {
            ensure!(before.contains(name), "{before}");
        }
        for local in ["alice", "bob"] {
            scene.login(local)?;
        }
        let after = list(scene)?;
        for name in [" SASL-IR", " LITERAL+", " MOVE", " IDLE", " AUTH=PLAIN"] {
            ensure!(after.contains(name), "{after}");
        }
        for name in ["QUOTA", "XLIST", "LOGINDISABLED"] {
            ensure!(!after.contains(name), "{after}");
        }
        // The next process knows it, too, whether it comes after the old one or takes over from it.
        scene.portico.restart("info")?;
        ensure!(list(scene)? == after, "after a restart: {}", list(scene)?);
        let _old = scene.portico.upgrade("info")?;
        ensure!(list(scene)? == after, "after an upgrade: {}", list(scene)?);
        Ok(())
    })
}

/// The same over POP3: Dovecot has PIPELINING and response codes, and promises nobody how long mail is kept.
#[test]
fn pop3_clients_are_promised_what_their_servers_have() -> Result<()> {
    Source::Yaml.play(|scene| {
        let list = |scene: &Scene| scene.pop3s()?.pop_list("CAPA");
        let before = list(scene)?;
        ensure!(
            before == ["EXPIRE 31 USER", "TOP", "UIDL", "USER", "SASL PLAIN LOGIN"],
            "{before:?}"
        );
        for local in ["alice", "bob"] {
            let person = scene.town.person(local)?;
            let mut pop = scene.pop3s()?;
            pop.pop_ok(&format!("USER {}", person.name))?;
            pop.pop_ok(&format!("PASS {}", person.password()))?;
            // Behind the login the list is the server's own.
            let own = pop.pop_list("CAPA")?;
            ensure!(own.contains(&"PIPELINING".to_owned()), "{own:?}");
        }
        let after = list(scene)?;
        let learned = "USER CAPA TOP UIDL RESP-CODES PIPELINING AUTH-RESP-CODE";
        let expected: Vec<&str> = learned.split(' ').chain(["SASL PLAIN LOGIN"]).collect();
        ensure!(after == expected, "{after:?}");
        scene.portico.restart("info")?;
        ensure!(list(scene)? == after, "after a restart: {:?}", list(scene)?);
        Ok(())
    })
}

#[test]
fn a_list_of_the_directory_is_shown_as_it_is() -> Result<()> {
    let change = |_: &_, _: &mut _, directory: &mut Directory| {
        directory
            .config("zimbraReverseProxyImapEnabledCapability", ["IMAP4rev1", "ID", "XLIST"])
            .config("zimbraReverseProxyPop3EnabledCapability", ["USER", "EXPIRE NEVER"]);
        Ok(())
    };
    Source::Yaml.play_with(people(), change, |scene| {
        scene.login("alice")?;
        let alice = scene.town.person("alice")?;
        let mut pop = scene.pop3s()?;
        pop.pop_ok(&format!("USER {}", alice.name))?;
        pop.pop_ok(&format!("PASS {}", alice.password()))?;
        let said = scene.pop3s()?.pop_list("CAPA")?;
        ensure!(said == ["USER", "EXPIRE NEVER", "SASL PLAIN LOGIN"], "{said:?}");
        let said = scene.imaps()?.imap_ok("a1 CAPABILITY")?.join(" ");
        ensure!(said.starts_with("* CAPABILITY IMAP4rev1 ID XLIST AUTH=PLAIN"), "{said}");
        Ok(())
    })
}

fn imap_quoted(wire: &mut Wire, name: &str, password: &[u8]) -> Result<()> {
    wire.send(
        [
            b"q1 LOGIN ",
            &quoted(name.as_bytes())[..],
            b" ",
            &quoted(password),
            b"\r\n",
        ]
        .concat(),
    )?;
    imap_is_in(wire, "q1")
}

fn imap_literal(wire: &mut Wire, name: &str, password: &[u8]) -> Result<()> {
    wire.say(&format!("q1 LOGIN {{{}}}", name.len()))?;
    go_on(wire, "+")?;
    wire.say(&format!("{name} {{{}}}", password.len()))?;
    go_on(wire, "+")?;
    wire.send([password, b"\r\n"].concat())?;
    imap_is_in(wire, "q1")
}

fn imap_literal_plus(wire: &mut Wire, name: &str, password: &[u8]) -> Result<()> {
    let head = format!("q1 LOGIN {{{}+}}\r\n{name} {{{}+}}\r\n", name.len(), password.len());
    wire.send([head.as_bytes(), password, b"\r\n"].concat())?;
    imap_is_in(wire, "q1")
}

fn imap_mixed(wire: &mut Wire, name: &str, password: &[u8]) -> Result<()> {
    let head = format!("q1 LOGIN \"{name}\" {{{}+}}\r\n", password.len());
    wire.send([head.as_bytes(), password, b"\r\n"].concat())?;
    imap_is_in(wire, "q1")
}

fn imap_plain(wire: &mut Wire, name: &str, password: &[u8]) -> Result<()> {
    wire.say("q1 AUTHENTICATE PLAIN")?;
    go_on(wire, "+")?;
    wire.say(&sasl_plain(name, password))?;
    imap_is_in(wire, "q1")
}

fn imap_plain_at_once(wire: &mut Wire, name: &str, password: &[u8]) -> Result<()> {
    wire.say(&format!("q1 authenticate plain {}", sasl_plain(name, password)))?;
    imap_is_in(wire, "q1")
}

fn imap_sasl_login(wire: &mut Wire, name: &str, password: &[u8]) -> Result<()> {
    wire.say("q1 AUTHENTICATE LOGIN")?;
    go_on(wire, "+ VXNlcm5hbWU6")?;
    wire.say(&encode_block(name.as_bytes()))?;
    imap_sasl_password(wire, password)
}

fn imap_sasl_login_at_once(wire: &mut Wire, name: &str, password: &[u8]) -> Result<()> {
    wire.say(&format!("q1 AUTHENTICATE LOGIN {}", encode_block(name.as_bytes())))?;
    imap_sasl_password(wire, password)
}

fn imap_sasl_password(wire: &mut Wire, password: &[u8]) -> Result<()> {
    go_on(wire, "+ UGFzc3dvcmQ6")?;
    wire.say(&encode_block(password))?;
    imap_is_in(wire, "q1")
}

fn imap_is_in(wire: &mut Wire, tag: &str) -> Result<()> {
    let answer = wire.imap_answer(tag)?;
    ensure!(
        answer.last().is_some_and(|l| l.starts_with(&format!("{tag} OK"))),
        "{answer:?}"
    );
    Ok(())
}

fn pop3_user(wire: &mut Wire, name: &str, password: &[u8]) -> Result<()> {
    wire.pop_ok(&format!("USER {name}"))?;
    wire.send([b"PASS ", password, b"\r\n"].concat())?;
    go_on(wire, "+OK")
}

fn pop3_plain(wire: &mut Wire, name: &str, password: &[u8]) -> Result<()> {
    wire.say("AUTH PLAIN")?;
    go_on(wire, "+ ")?;
    wire.say(&sasl_plain(name, password))?;
    go_on(wire, "+OK")
}

fn pop3_plain_at_once(wire: &mut Wire, name: &str, password: &[u8]) -> Result<()> {
    wire.pop_ok(&format!("AUTH PLAIN {}", sasl_plain(name, password)))
        .map(drop)
}

fn pop3_sasl_login(wire: &mut Wire, name: &str, password: &[u8]) -> Result<()> {
    wire.say("AUTH LOGIN")?;
    go_on(wire, "+ VXNlcm5hbWU6")?;
    wire.say(&encode_block(name.as_bytes()))?;
    go_on(wire, "+ UGFzc3dvcmQ6")?;
    wire.say(&encode_block(password))?;
    go_on(wire, "+OK")
}

fn pop3_sasl_login_at_once(wire: &mut Wire, name: &str, password: &[u8]) -> Result<()> {
    wire.say(&format!("AUTH LOGIN {}", encode_block(name.as_bytes())))?;
    go_on(wire, "+ UGFzc3dvcmQ6")?;
    wire.say(&encode_block(password))?;
    go_on(wire, "+OK")
}

fn go_on(wire: &mut Wire, start: &str) -> Result<()> {
    let line = wire.line()?;
    ensure!(line.starts_with(start), "expected {start:?}, got {line:?}");
    Ok(())
}
