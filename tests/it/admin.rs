//! The admin socket of a running Portico, asked by its own command line and by hand.

use std::io::{Read, Write};
use std::net::SocketAddrV4;
use std::os::unix::net::UnixStream;
use std::process::Command;

use anyhow::{Context, Result, ensure};
use portico_tests::config::{Directory, Node};
use portico_tests::portico::{Portico, binary};
use portico_tests::table::rows;
use portico_tests::town::{Town, people};
use serde_json::Value;

use crate::scene::{Scene, play, play_with};

/// What a verb printed, and its exit code.
pub(crate) struct Said {
    pub(crate) out: String,
    pub(crate) err: String,
    pub(crate) code: i32,
}

/// Runs a verb against this Portico.
pub(crate) fn said(portico: &Portico, args: &[&str]) -> Result<Said> {
    let conf = portico.dir().join("portico.yaml");
    let out = Command::new(binary()?).arg("-c").arg(conf).args(args).output()?;
    Ok(Said {
        out: String::from_utf8(out.stdout)?,
        err: String::from_utf8(out.stderr)?,
        code: out.status.code().context("killed")?,
    })
}

/// The same for one that must succeed.
pub(crate) fn done(portico: &Portico, args: &[&str]) -> Result<String> {
    let said = said(portico, args)?;
    ensure!(said.code == 0, "{args:?}: {} {}", said.code, said.err);
    Ok(said.out)
}

pub(crate) fn json(portico: &Portico, args: &[&str]) -> Result<Value> {
    let out = done(portico, &[args, &["--json"]].concat())?;
    serde_json::from_str(&out).with_context(|| format!("{args:?}: {out}"))
}

/// The line that begins with this word.
fn line<'a>(out: &'a str, word: &str) -> Result<&'a str> {
    let found = out.lines().find(|line| line.starts_with(&format!("{word} ")));
    found.with_context(|| format!("no line {word} in {out}"))
}

/// One request by hand; the whole answer.
fn http(mut stream: impl Read + Write, request: &str) -> Result<String> {
    stream.write_all(request.as_bytes())?;
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer)?;
    Ok(String::from_utf8_lossy(&answer).into_owned())
}

/// Opens the admin API over TCP too.
fn open_tcp(town: &Town, node: &mut Node, _: &mut Directory) -> Result<()> {
    node.admin.push(format!("http: {}", town.admin));
    Ok(())
}

pub(crate) fn tcp(address: SocketAddrV4, line: &str, headers: &str) -> Result<String> {
    let stream = std::net::TcpStream::connect(address)?;
    http(
        stream,
        &format!("{line} HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\n{headers}\r\n"),
    )
}

#[test]
fn explain_says_all_and_leaves_nothing() -> Result<()> {
    play(|scene| {
        let portico = &scene.portico;
        let out = done(portico, &["route", "explain", "al/tb"])?;
        ensure!(line(&out, "login")?.contains("al, typed with /tb"), "{out}");
        ensure!(line(&out, "domain")?.contains("a.example: it is the default"), "{out}");
        ensure!(line(&out, "asked as")?.ends_with(" al@a.example"), "{out}");
        ensure!(
            line(&out, "account")?.contains("alice@a.example, of which the login is an alias"),
            "{out}"
        );
        ensure!(line(&out, "status")?.ends_with("active"), "{out}");
        ensure!(line(&out, "memory")?.ends_with("knows nothing"), "{out}");
        ensure!(
            line(&out, "directory")?.contains("alice@a.example is on store1.example.test"),
            "{out}"
        );
        let goes = format!(
            "127.0.0.2:{} in TLS as store1.example.test",
            scene.town.stores[0].dovecot.imaps
        );
        ensure!(line(&out, "goes to")?.contains(&goes), "{out}");
        ensure!(line(&out, "in the way")?.ends_with("nothing"), "{out}");
        // Nothing was kept: the first login asks the directory.
        drop(scene.login("alice")?);
        let record = portico.record(&[("event", "login"), ("outcome", "ok")])?;
        ensure!(record["tier"] == "directory", "{record}");
        let known = json(portico, &["route", "explain", "alice@a.example"])?;
        ensure!(known["tiers"][0]["says"] == "account", "{known}");
        ensure!(known["route"]["tier"] == "memory", "{known}");
        // Another protocol has another port, and another domain by the name in TLS.
        let pop = json(
            portico,
            &[
                "route",
                "explain",
                "dave",
                "--protocol",
                "pop3",
                "--host",
                "mail.b.example",
            ],
        )?;
        ensure!(pop["domain"]["found_by"] == "virtual_host", "{pop}");
        ensure!(pop["route"]["port"] == scene.town.stores[1].dovecot.pop3s, "{pop}");
        let nobody = done(portico, &["route", "explain", "nobody"])?;
        ensure!(
            line(&nobody, "goes to")?.contains("nowhere: no such account"),
            "{nobody}"
        );
        let by_id = json(portico, &["route", "explain", &scene.town.person("bob")?.id])?;
        ensure!(by_id["route"]["login"] == "bob@a.example", "{by_id}");
        Ok(())
    })
}

#[test]
fn explain_names_what_stands_in_the_way() -> Result<()> {
    let change = |_: &_, _: &mut _, directory: &mut Directory| {
        let bob = directory.account("bob@a.example");
        bob.insert("zimbraAccountStatus".into(), "closed".into());
        bob.insert("zimbraImapEnabled".into(), "FALSE".into());
        let domain = directory.domain("b.example");
        domain.insert("zimbraDomainAllowedIPs".into(), ["10.0.0.0/8"].into());
        directory
            .account("carol@b.example")
            .insert("zimbraMailHost".into(), "gone.example".into());
        Ok(())
    };
    play_with(people(), change, |scene| {
        let portico = &scene.portico;
        let bob = done(portico, &["route", "explain", "bob"])?;
        ensure!(
            bob.contains("zimbraAccountStatus is closed") && bob.contains("zimbraImapEnabled is FALSE"),
            "{bob}"
        );
        let dave = done(portico, &["route", "explain", "dave@b.example"])?;
        ensure!(dave.contains("admits clients from 10.0.0.0/8 only"), "{dave}");
        let outside = done(portico, &["route", "explain", "dave@b.example", "--ip", "192.0.2.1"])?;
        ensure!(
            line(&outside, "goes to")?.contains("not allowed on domain b.example"),
            "{outside}"
        );
        let carol = done(portico, &["route", "explain", "carol@b.example", "--ip", "10.1.1.1"])?;
        ensure!(
            line(&carol, "goes to")?.contains("server gone.example is not in the directory"),
            "{carol}"
        );
        Ok(())
    })
}

#[test]
fn purge_forgets_every_name() -> Result<()> {
    play(|scene| {
        let portico = &scene.portico;
        let mut wire = scene.imaps()?;
        let alice = scene.town.person("alice")?;
        wire.imap_ok(&format!("a LOGIN al@a.example {}", alice.password()))?;
        let purged = done(portico, &["route", "purge", "alice@a.example"])?;
        for name in [
            "alice@a.example (it was in memory",
            "al@a.example (it was in memory",
            &alice.id,
        ] {
            ensure!(purged.contains(name), "no {name} in {purged}");
        }
        let after = json(portico, &["route", "explain", "al@a.example"])?;
        ensure!(after["tiers"][0]["says"] == "nothing", "{after}");
        let who = format!("uid {}", nix::unistd::getuid());
        portico.record(&[
            ("event", "admin"),
            ("act", "purge route of alice@a.example"),
            ("who", &who),
        ])?;
        drop(scene.login("bob")?);
        let all = json(portico, &["route", "purge", "--all"])?;
        ensure!(all["all"].as_u64() > Some(0), "{all}");
        let bad = said(portico, &["route", "purge", "a\nb"])?;
        ensure!(
            bad.code == 1 && bad.err.lines().count() == 1,
            "{} {}",
            bad.code,
            bad.err
        );
        ensure!(said(portico, &["route", "purge"])?.code == 2, "purge of nothing");
        Ok(())
    })
}

#[test]
fn reload_says_what_changed_or_what_is_wrong() -> Result<()> {
    play(|scene| {
        let portico = &scene.portico;
        let mut directory = scene.town.directory();
        directory.domain("new.example");
        directory.config("zimbraReverseProxyMailMode", "both");
        portico.replace_directory(&directory)?;
        // The file is looked at every few seconds, too, and may have been found changed already.
        let reloaded = done(portico, &["reload"])?;
        ensure!(reloaded.contains("is in force"), "{reloaded}");
        // Whoever brought it, what was different is remembered.
        let generations = done(portico, &["generations"])?;
        for part in [
            "\n    domain new.example: added\n",
            "\n    global config: zimbraReverseProxyMailMode changed\n",
            "\n1 since ",
        ] {
            ensure!(generations.contains(part), "{part:?} in {generations}");
        }
        let youngest = generations.split(' ').next().context("empty")?;
        ensure!(
            reloaded.contains(&format!("configuration {youngest} is in force")),
            "{generations}"
        );
        let path = portico.dir().join("directory.yaml");
        std::fs::write(&path, "servers: [\n")?;
        let wrong = said(portico, &["reload"])?;
        ensure!(
            wrong.code == 1 && wrong.err.contains("directory.yaml"),
            "{} {}",
            wrong.code,
            wrong.err
        );
        portico.replace_directory(&directory)?;
        done(portico, &["reload"])?;
        drop(scene.login("alice")?);
        portico.record(&[("event", "admin"), ("act", "reload")]).map(drop)
    })
}

#[test]
fn tcp_is_read_only_without_a_token_and_bounded() -> Result<()> {
    play_with(people(), open_tcp, |scene| {
        let address = scene.town.admin;
        let explained = tcp(address, "GET /v1/routes/explain?login=alice", "")?;
        ensure!(
            explained.starts_with("HTTP/1.1 200 ") && explained.contains("store1.example.test"),
            "{explained}"
        );
        let purge = tcp(address, "POST /v1/routes/purge", "Content-Length: 0\r\n")?;
        ensure!(purge.starts_with("HTTP/1.1 403 "), "{purge}");
        let nothing = tcp(address, "GET /nothing", "")?;
        ensure!(nothing.starts_with("HTTP/1.1 404 "), "{nothing}");
        let huge = tcp(
            address,
            "GET /v1/openapi.json",
            &format!("X: {}\r\n", "x".repeat(40_000)),
        )?;
        ensure!(!huge.starts_with("HTTP/1.1 200 "), "{}", &huge[..huge.len().min(200)]);
        let socket = UnixStream::connect(scene.portico.dir().join("admin.sock"))?;
        let api = http(
            socket,
            "GET /v1/openapi.json HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n",
        )?;
        ensure!(
            api.contains("/v1/routes/explain") && api.contains("\"openapi\":\"3.1"),
            "{api}"
        );
        Ok(())
    })
}

#[test]
fn commands_fail_without_a_running_node() -> Result<()> {
    play(|scene: &mut Scene<'_>| {
        let said = Command::new(binary()?)
            .args(["reload", "--socket", "/nowhere/admin.sock"])
            .output()?;
        ensure!(said.status.code() == Some(1), "{:?}", said.status);
        let text = String::from_utf8_lossy(&said.stderr).into_owned();
        ensure!(text.contains("no Portico answers at /nowhere/admin.sock"), "{text}");
        // A second one is not let in where a first one answers.
        let conf = scene.portico.dir().join("portico.yaml");
        let second = Command::new(binary()?).arg("-c").arg(conf).output()?;
        ensure!(second.status.code() == Some(1), "{:?}", second.status);
        Ok(())
    })
}

#[test]
fn sessions_are_listed_and_kicked() -> Result<()> {
    play(|scene| {
        let portico = &scene.portico;
        let (mut alice, mut bob) = (scene.login("alice")?, scene.login("bob")?);
        alice.imap_ok("a1 NOOP")?;
        let list = json(portico, &["sessions"])?;
        ensure!(list["sessions"].as_array().map(Vec::len) == Some(2), "{list}");
        let hers = json(portico, &["sessions", "--user", "ALICE@a.example"])?;
        let hers = &hers["sessions"][0];
        ensure!(hers["bytes_in"].as_u64() > Some(0) && hers["tls"] == true, "{hers}");
        ensure!(hers["logins"][0]["account"] == "alice@a.example", "{hers}");
        let text = done(portico, &["sessions", "--ip", "127.0.0.1"])?;
        ensure!(text.lines().count() == 3 && text.contains("bob@a.example"), "{text}");
        let status = done(portico, &["status"])?;
        ensure!(line(&status, "imap")?.contains("2 logged in"), "{status}");
        ensure!(line(&status, "ready")?.ends_with("yes"), "{status}");

        let kicked = json(portico, &["kick", "--user", "alice@a.example"])?;
        ensure!(kicked["sessions"].as_array().map(Vec::len) == Some(1), "{kicked}");
        let bye = alice.line()?;
        ensure!(bye.starts_with("* BYE session ended by the administrator"), "{bye}");
        ensure!(alice.line().is_err(), "it goes on");
        let end = portico.record(&[("event", "session_end"), ("account", "alice@a.example")])?;
        ensure!(end["ended_by"] == "kick", "{end}");
        portico.record(&[("event", "admin"), ("act", "kick user alice@a.example: 1 sessions")])?;
        // By an alias, as everywhere else.
        let mut alice = scene.login("alice")?;
        done(portico, &["kick", "--user", "al@a.example"])?;
        let bye = alice.line()?;
        ensure!(bye == "* BYE session ended by the administrator", "{bye}");
        bob.imap_ok("b1 NOOP")?;
        let number = json(portico, &["sessions"])?["sessions"][0]["session"]
            .as_str()
            .map(str::to_owned);
        let number = number.context("no number")?;
        done(portico, &["kick", "--session", &number])?;
        ensure!(bob.line()?.starts_with("* BYE"), "bob stays");
        let nobody = done(portico, &["kick", "--user", "bob@a.example"])?;
        ensure!(nobody.contains("no such session"), "{nobody}");
        ensure!(said(portico, &["kick"])?.code == 2, "kick of nobody in particular");
        let long = "x".repeat(600);
        for name in [["--user", "two\nlines"], ["--session", &long]] {
            let refused = said(portico, &[&["kick"], &name[..]].concat())?;
            ensure!(refused.err.contains("can have this name"), "{}", refused.err);
        }
        for log in ["audit.log", "output.log"] {
            let text = std::fs::read_to_string(portico.dir().join(log))?;
            ensure!(!text.contains("two") && !text.contains(&long), "{log}");
        }
        // Who is not logged in yet can be found by address.
        let mut silent = scene.imaps()?;
        done(portico, &["kick", "--ip", "127.0.0.1"])?;
        ensure!(silent.line()?.starts_with("* BYE session ended"), "silent stays");
        kick_a_login_under_way(scene)
    })
}

/// It is no session of the account yet, but will be one if the password is right.
fn kick_a_login_under_way(scene: &mut Scene) -> Result<()> {
    scene.town.stores[1].dovecot.delay_guesses()?;
    let portico = &scene.portico;
    let mut dave = scene.imaps()?;
    dave.say("d1 LOGIN david@a.example wr0ng-c4n4ry")?;
    portico_tests::until("the login", std::time::Duration::from_secs(10), || {
        let list = json(portico, &["sessions", "--user", "dave@b.example"])?;
        Ok(list["sessions"].get(0).is_some().then_some(()))
    })?;
    done(portico, &["kick", "--user", "Dave@b.example"])?;
    let bye = dave.line()?;
    ensure!(bye.starts_with("* BYE session ended"), "{bye}");
    let record = portico.record(&[("event", "login"), ("account", "dave@b.example")])?;
    ensure!(record["outcome"] == "ended" && record["why"] == "kick", "{record}");
    Ok(())
}

#[test]
fn a_kick_cuts_web_connections_too() -> Result<()> {
    play(|scene| {
        let portico = &scene.portico;
        let alice = scene.town.person("alice")?;
        let mut web = scene.tls(scene.town.endpoints.https, "mail.a.example")?;
        let basic = openssl::base64::encode_block(format!("{}:{}", alice.name, alice.password()).as_bytes());
        web.send(format!(
            "GET /home/alice@a.example/inbox HTTP/1.1\r\nHost: mail.a.example\r\nAuthorization: Basic {basic}\r\n\r\n"
        ))?;
        ensure!(web.line()?.starts_with("HTTP/1.1 "), "no answer");
        let found = portico_tests::until("her web connection", std::time::Duration::from_secs(10), || {
            let list = json(portico, &["sessions", "--user", "alice@a.example"])?;
            Ok(list["sessions"].get(0).filter(|one| one["proto"] == "http").cloned())
        })?;
        ensure!(
            found["logins"][0]["route"] == format!("127.0.0.2:{}", scene.town.stores[0].web.https.port()),
            "{found}"
        );
        done(portico, &["kick", "--user", "alice@a.example"])?;
        // What was sent before may still be read; then it ends.
        while web.line().is_ok() {}
        portico_tests::until("its end", std::time::Duration::from_secs(10), || {
            let list = json(portico, &["sessions"])?;
            Ok(list["sessions"].as_array().is_some_and(Vec::is_empty).then_some(()))
        })
    })
}

#[test]
fn a_drained_node_serves_on_and_can_come_back() -> Result<()> {
    play(|scene| {
        let portico = &scene.portico;
        let mut alice = scene.login("alice")?;
        let out = done(portico, &["drain"])?;
        ensure!(out.contains("out of service; 1 sessions live"), "{out}");
        let status = json(portico, &["status"])?;
        ensure!(
            status["ready"] == false && status["not_ready"][0].as_str().is_some(),
            "{status}"
        );
        drop(scene.login("bob")?);
        alice.imap_ok("a1 NOOP")?;
        ensure!(done(portico, &["drain", "--undo"])?.contains("in service"), "not back");
        ensure!(json(portico, &["status"])?["ready"] == true, "not ready");
        done(portico, &["drain", "--end-sessions-over", "0"])?;
        ensure!(alice.line()?.starts_with("* BYE"), "alice stays");
        let end = portico.record(&[("event", "session_end"), ("account", "alice@a.example")])?;
        ensure!(end["ended_by"] == "portico" && end["why"] == "drain", "{end}");
        Ok(())
    })
}

#[test]
fn logins_are_followed() -> Result<()> {
    play(|scene| {
        let portico = &scene.portico;
        drop(scene.login("alice")?);
        portico.record(&[("event", "login"), ("outcome", "ok")])?;
        let recent = done(portico, &["logins"])?;
        ensure!(
            recent.contains("imap ok") && recent.contains("alice@a.example"),
            "{recent}"
        );
        let conf = portico.dir().join("portico.yaml");
        let mut watcher = Command::new(binary()?)
            .arg("-c")
            .arg(conf)
            .args(["logins", "--follow", "--failed", "--json"])
            .stdout(std::process::Stdio::piped())
            .spawn()?;
        let out = watcher.stdout.take().context("no output")?;
        let (send, lines) = std::sync::mpsc::channel();
        std::thread::spawn(move || {
            for line in std::io::BufRead::lines(std::io::BufReader::new(out)) {
                let Ok(line) = line else { return };
                if send.send(line).is_err() {
                    return;
                }
            }
        });
        let mut wire = scene.imaps()?;
        wire.say("a LOGIN bob@a.example wrong")?;
        let line = lines.recv_timeout(std::time::Duration::from_secs(20));
        watcher.kill()?;
        watcher.wait()?;
        let record: Value = serde_json::from_str(&line?)?;
        ensure!(
            record["outcome"] == "bad_credentials" && record["user"] == "bob@a.example",
            "{record}"
        );
        ensure!(
            record["time"].as_str().is_some_and(|time| time.ends_with('Z')),
            "{record}"
        );
        Ok(())
    })
}

/// The value of a metric with these labels, in the order in which they are written.
fn metric(text: &str, name: &str) -> Result<f64> {
    let line = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
    Ok(line.with_context(|| format!("no {name} in {text}"))?.trim().parse()?)
}

#[test]
fn metrics_count_and_name_no_account() -> Result<()> {
    play_with(people(), open_tcp, |scene| {
        let read = || tcp(scene.town.admin, "GET /metrics", "");
        metrics_before_any_login(&read()?)?;

        let mut alice = scene.login("alice")?;
        alice.imap_ok("a1 NOOP")?;
        drop(scene.login("alice")?);
        let mut bob = scene.imaps()?;
        bob.say("a LOGIN bob@a.example wrong")?;
        scene
            .portico
            .record(&[("event", "login"), ("outcome", "bad_credentials")])?;
        done(&scene.portico, &["route", "explain", "carol@b.example"])?;

        let after = read()?;
        let imaps = scene.town.endpoints.imaps;
        let upstream = format!("127.0.0.2:{}", scene.town.stores[0].dovecot.imaps);
        for [name, labels, expected] in rows(&metrics_after_logins(&imaps.to_string(), &upstream)) {
            let expected: f64 = expected.parse()?;
            let found = metric(&after, &format!("{name}{labels}"))?;
            ensure!(found == expected, "{name}{labels} is {found}, not {expected}: {after}");
        }
        let relayed = metric(&after, "portico_relay_bytes_total{direction=\"in\",protocol=\"imap\"}")?;
        ensure!(relayed > 0.0, "{after}");
        ensure!(!after.contains("alice") && !after.contains("bob@"), "{after}");
        Ok(())
    })
}

fn metrics_before_any_login(text: &str) -> Result<()> {
    ensure!(
        text.starts_with("HTTP/1.1 200 ") && text.contains("text/plain"),
        "{text}"
    );
    ensure!(metric(text, "portico_ready")? == 1.0, "{text}");
    ensure!(metric(text, "portico_directory_age_seconds")? < 60.0, "{text}");
    let days = metric(text, "portico_certificate_expiry_seconds{certificate=\"default\"}")?;
    ensure!(days > 0.0, "{text}");
    Ok(())
}

/// After two logins and one with a wrong password. An explanation of a route is no question to the directory.
fn metrics_after_logins(imaps: &str, upstream: &str) -> String {
    format!(
        r#"
        portico_logins_total              | {{outcome="ok",protocol="imap"}}              | 2
        portico_logins_total              | {{outcome="bad_credentials",protocol="imap"}} | 1
        portico_lookups_total             | {{tier="directory"}}                          | 2
        portico_lookups_total             | {{tier="memory"}}                             | 1
        portico_directory_questions_total |                                             | 2
        portico_phase_seconds_count       | {{phase="login",protocol="imap"}}             | 3
        portico_phase_seconds_count       | {{phase="tls",protocol="imap"}}               | 3
        portico_connections_total         | {{listener="{imaps}"}}                        | 3
        portico_upstream_connects_total   | {{outcome="ok",upstream="{upstream}"}}        | 2
        "#
    )
}

#[test]
fn a_drained_node_is_alive_but_not_ready() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let change = |town: &Town, node: &mut Node, directory: &mut Directory| {
        open_tcp(town, node, directory)?;
        let token = folder.path().join("token");
        std::fs::write(&token, "0123456789abcdef0123\n")?;
        node.admin.push(format!("token_file: {}", token.display()));
        Ok(())
    };
    play_with(people(), change, |scene| {
        let address = scene.town.admin;
        ensure!(tcp(address, "GET /healthz", "")?.contains("alive"), "not alive");
        let ready = tcp(address, "GET /readyz", "")?;
        ensure!(ready.starts_with("HTTP/1.1 200 "), "{ready}");
        let unproven = tcp(address, "GET /v1/sessions", "")?;
        ensure!(unproven.starts_with("HTTP/1.1 401 "), "{unproven}");
        let metrics = tcp(address, "GET /metrics", "")?;
        ensure!(metrics.starts_with("HTTP/1.1 200 "), "{metrics}");

        let token =
            "Authorization: Bearer 0123456789abcdef0123\r\nContent-Type: application/json\r\nContent-Length: 2\r\n";
        let stream = std::net::TcpStream::connect(address)?;
        let drained = http(
            stream,
            &format!("POST /v1/drain HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\n{token}\r\n{{}}"),
        )?;
        ensure!(drained.starts_with("HTTP/1.1 200 "), "{drained}");
        let ready = tcp(address, "GET /readyz", "")?;
        ensure!(
            ready.starts_with("HTTP/1.1 503 ") && ready.contains("drained"),
            "{ready}"
        );
        Ok(())
    })
}

/// A server of the group of mailbox servers, as `portico upstreams` shows it.
pub(crate) fn mailbox_server(portico: &Portico, server: &str) -> Result<Value> {
    let list = json(portico, &["upstreams"])?;
    let all = list["upstreams"].as_array().context("no list")?;
    let found = all
        .iter()
        .find(|one| one["group"] == "mailbox" && one["server"] == server);
    found.cloned().with_context(|| format!("no {server} in {list}"))
}

#[test]
fn upstreams_are_shown_and_changed() -> Result<()> {
    play(|scene| {
        let portico = &scene.portico;
        let name = "store1.example.test";
        let change = ["upstreams", "mailbox", name];
        let shown = mailbox_server(portico, name)?;
        ensure!(shown["maintenance"] == false, "{shown}");

        let out = done(portico, &[&change[..], &["--maintenance", "on"]].concat())?;
        ensure!(out.contains("maintenance"), "{out}");
        let shown = mailbox_server(portico, name)?;
        ensure!(shown["maintenance"] == true, "{shown}");
        let explained = done(portico, &["route", "explain", "alice", "--protocol", "web"])?;
        ensure!(
            explained.contains("store1.example.test is in maintenance"),
            "{explained}"
        );

        let off = ["--maintenance", "off", "--weight", "7"];
        done(portico, &[&change[..], &off].concat())?;
        let shown = mailbox_server(portico, name)?;
        ensure!(shown["weight"] == 7, "{shown}");
        let act = "upstream store1.example.test in mailbox: maintenance off, weight 7";
        portico.record(&[("event", "admin"), ("act", act)])?;

        let missing = said(portico, &["upstreams", "mailbox", "nobody", "--weight", "1"])?;
        ensure!(
            missing.code == 1 && missing.err.contains("has no server nobody"),
            "{}",
            missing.err
        );
        Ok(())
    })
}

#[test]
fn certificates_are_shown() -> Result<()> {
    play(|scene| {
        let certificates = json(&scene.portico, &["certificates"])?;
        let all = certificates["certificates"].as_array().context("no list")?;
        ensure!(all.len() == 4, "{certificates}");
        let of_a = all
            .iter()
            .find(|one| one["used_for"] == "domain a.example")
            .context("a.example")?;
        ensure!(
            of_a["names"][0] == "mail.a.example" && of_a["days_left"].as_i64() > Some(0),
            "{of_a}"
        );
        Ok(())
    })
}

#[test]
fn a_rotation_is_followed_at_a_signal() -> Result<()> {
    play(|scene| {
        let portico = &scene.portico;
        drop(scene.login("alice")?);
        portico.record(&[("event", "login"), ("account", "alice@a.example")])?;
        std::fs::rename(portico.dir().join("audit.log"), portico.dir().join("audit.log.1"))?;
        let pid = nix::unistd::Pid::from_raw(portico.pid().try_into()?);
        nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGUSR1)?;
        portico_tests::until("a new file", std::time::Duration::from_secs(10), || {
            Ok(portico.dir().join("audit.log").exists().then_some(()))
        })?;
        drop(scene.login("bob")?);
        portico.record(&[("event", "login"), ("account", "bob@a.example")])?;
        ensure!(
            portico.count(&[("event", "login"), ("account", "alice@a.example")])? == 0,
            "the old file"
        );
        Ok(())
    })
}

#[test]
fn admin_clients_that_say_nothing_are_closed() -> Result<()> {
    play(|scene| {
        let path = scene.portico.dir().join("admin.sock");
        let limit = Some(std::time::Duration::from_secs(40));
        let mut silent = UnixStream::connect(&path)?;
        let mut kept = UnixStream::connect(&path)?;
        let mut slow = UnixStream::connect(&path)?;
        for stream in [&silent, &kept, &slow] {
            stream.set_read_timeout(limit)?;
        }
        kept.write_all(b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n")?;
        slow.write_all(b"GET /healthz HTTP/1.1\r\nHost")?;
        let mut heard = Vec::new();
        silent.read_to_end(&mut heard)?;
        slow.read_to_end(&mut heard)?;
        ensure!(
            !heard.starts_with(b"HTTP/1.1 200"),
            "{}",
            String::from_utf8_lossy(&heard)
        );
        heard.clear();
        kept.read_to_end(&mut heard)?;
        ensure!(heard.ends_with(b"alive\n"), "{}", String::from_utf8_lossy(&heard));
        Ok(())
    })
}

#[test]
fn an_upgrade_takes_the_admin_socket_over() -> Result<()> {
    play_with(people(), open_tcp, |scene| {
        let address = scene.town.admin;
        let mut alice = scene.login("alice")?;
        let first = json(&scene.portico, &["status"])?["pid"].clone();
        let old = scene.portico.upgrade("info")?;
        let status = json(&scene.portico, &["status"])?;
        ensure!(
            status["pid"] == scene.portico.pid() && status["pid"] != first,
            "{status}"
        );
        // The old one keeps its session, and answers no more.
        alice.imap_ok("a1 NOOP")?;
        portico_tests::until("the new one alone on TCP", std::time::Duration::from_secs(20), || {
            let answers = (0..8).map(|_| tcp(address, "GET /v1/status", ""));
            let pid = format!("\"pid\":{}", scene.portico.pid());
            for answer in answers {
                if !answer?.contains(&pid) {
                    return Ok(None);
                }
            }
            Ok(Some(()))
        })?;
        alice.imap_ok("a2 LOGOUT")?;
        drop(old);
        drop(scene.login("bob")?);
        ensure!(json(&scene.portico, &["status"])?["ready"] == true, "not ready");
        Ok(())
    })
}
