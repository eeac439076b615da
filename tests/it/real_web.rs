//! The web listeners with what people really use: a browser that lives in a web client, a calendar program, load
//! generators; and with real web servers behind.

use std::net::{Ipv4Addr, SocketAddrV4};
use std::path::{Path, PathBuf};
use std::process::{Child as Process, Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use portico_tests::browser::Browser;
use portico_tests::child::Child;
use portico_tests::config::{Directory, Node};
use portico_tests::fake::Fake;
use portico_tests::nginx::Nginx;
use portico_tests::portico::Portico;
use portico_tests::town::{FRONT, Person, Town, people};
use portico_tests::wire::Wire;
use portico_tests::{Stage, until};

use crate::scene::Scene;

const HOST: &str = "mail.a.example";
/// Longer than any proxy waits by default (nginx: 60 s).
const SILENCE: Duration = Duration::from_secs(180);

const LOGIN_PAGE: &str = r#"<!doctype html><meta charset="utf-8"><title>Log in</title>
<h1>Log in</h1><input id="user"><input id="password" type="password"><button id="go">Log in</button><p id="said"></p>
<script>
document.getElementById('go').onclick = async () => {
  const value = id => document.getElementById(id).value;
  const answer = await fetch('/service/soap/AuthRequest', {method: 'POST', body: JSON.stringify(
    {Body: {AuthRequest: {account: {by: 'name', _content: value('user')}, password: {_content: value('password')}}}})});
  if (answer.ok) location = '/'; else document.getElementById('said').textContent = 'wrong';
};
</script>"#;

const CLIENT_PAGE: &str = r#"<!doctype html><meta charset="utf-8"><title>Mail</title>
<h1>Mail</h1><p id="path"></p><p id="store"></p><p id="socket">closed</p><a id="out" href="/logout">Log out</a>
<script src="/static/iris/shell/abc123/app.js"></script>"#;

const CLIENT_SCRIPT: &str = r#"
const show = (id, text) => document.getElementById(id).textContent = text;
show('path', location.pathname);
fetch('/home/~/echo').then(a => a.json()).then(a => show('store', a.server));
const socket = new WebSocket(`wss://${location.host}/services/chats/events`);
socket.onopen = () => { show('socket', 'open'); socket.send('hello'); };
socket.onmessage = message => show('socket', message.data);
socket.onclose = () => show('socket', 'closed');
window.say = text => socket.send(text);
"#;

/// The files of a little web client, in the folders of the real one.
fn web_client(stage: &Stage) -> Result<PathBuf> {
    let root = stage.dir("web")?;
    let file = |path: &str, text: &str| -> Result<()> {
        let path = root.join(path);
        std::fs::create_dir_all(path.parent().context("no folder")?)?;
        Ok(std::fs::write(path, text)?)
    };
    file("login/index.html", LOGIN_PAGE)?;
    file("iris/carbonio-shell-ui/current/index.html", CLIENT_PAGE)?;
    file("iris/shell/abc123/app.js", CLIENT_SCRIPT)?;
    Ok(root)
}

/// Carbonio's table, with the files of this test and its own server for chats.
fn locations(stage: &Stage, root: &Path, chats: SocketAddrV4) -> Result<PathBuf> {
    let root = root.display();
    let text = format!(
        "groups:\n  ws-collaboration: {{servers: [\"{chats}\"]}}\n\
         locations:\n\
         \x20 - prefix: /static/\n    static: {{root: {root}}}\n\
         \x20 - prefix: /carbonio\n\
         \x20   gate: {{cookie: ZM_AUTH_TOKEN, to: /static/login/, attribute: carbonioWebUILoginURL}}\n\
         \x20   static: {{root: {root}, file: iris/carbonio-shell-ui/current/index.html}}\n\
         \x20 - include: carbonio\n"
    );
    stage.file("locations.yaml", text)
}

/// Plays a test with a changed configuration; `change` may start servers, which live as long as the test.
fn play<T>(
    change: impl FnOnce(&Stage, &Town, &mut Node, &mut Directory) -> Result<T>,
    test: impl FnOnce(&mut Scene, T) -> Result<()>,
) -> Result<()> {
    Stage::run(|stage| {
        let town = Town::build(stage, people())?;
        let (mut node, mut directory) = (town.node(), town.directory());
        let more = change(stage, &town, &mut node, &mut directory)?;
        let portico = Portico::start(stage, &node, &directory, "info")?;
        let mut scene = Scene { stage, town, portico };
        test(&mut scene, more)?;
        scene.end()
    })
}

#[test]
fn a_browser_lives_in_a_web_client() -> Result<()> {
    let change = |stage: &Stage, town: &Town, node: &mut Node, _: &mut Directory| {
        let root = web_client(stage)?;
        let file = locations(stage, &root, town.stores[0].web.http)?;
        node.web = vec![("locations".to_owned(), format!("\"{}\"", file.display()))];
        Ok(())
    };
    play(change, |scene, ()| {
        let bob = scene.town.person("bob")?.clone();
        let browser = Browser::start(scene.stage, &[(HOST, scene.town.endpoints.https)])?;
        browser.open(&format!("https://{HOST}/"))?;
        browser.must("location.pathname == '/static/login/'")?;

        browser.type_into("#user", &bob.name)?;
        browser.type_into("#password", "not it")?;
        browser.click("#go")?;
        browser.must("document.getElementById('said').textContent == 'wrong'")?;
        browser.run("document.getElementById('password').value = ''")?;
        browser.type_into("#password", &bob.password())?;
        browser.click("#go")?;
        browser.must("location.pathname == '/carbonio/'")?;
        browser.must("document.getElementById('store').textContent == 'store2'")?;
        browser.must("document.getElementById('socket').textContent == 'hello'")?;

        // A deep link is the same page.
        browser.open(&format!("https://{HOST}/carbonio/mails/folder/2"))?;
        browser.must("document.getElementById('path').textContent == '/carbonio/mails/folder/2'")?;
        browser.must("document.getElementById('socket').textContent == 'hello'")?;

        // The time itself is what is tested: neither side says a word or hangs up.
        std::thread::sleep(SILENCE);
        browser.run("say('still there')")?;
        browser.must("document.getElementById('socket').textContent == 'still there'")?;

        browser.click("#out")?;
        browser.must("location.pathname == '/static/login/'")?;
        browser.open(&format!("https://{HOST}/carbonio/"))?;
        browser.must("location.pathname == '/static/login/'")
    })
}

/// An nginx for each store in place of its web server, with what stands in their `server` blocks.
fn nginxes(
    stage: &Stage,
    town: &Town,
    directory: &mut Directory,
    locations: impl Fn(usize) -> String,
) -> Result<[Nginx; 2]> {
    let mut start = |at: usize| {
        let store = &town.stores[at];
        let address = || anyhow::Ok(SocketAddrV4::new(store.dovecot.ip, stage.port()?));
        let addresses = [address()?, address()?];
        let pair = town.ca.server(&[&store.name, &store.dovecot.ip.to_string()])?;
        let entry = directory.server(&store.name);
        entry.insert("zimbraMailPort".into(), addresses[0].port().into());
        entry.insert("zimbraMailSSLPort".into(), addresses[1].port().into());
        Nginx::start(stage, &store.name, addresses, &pair, &locations(at))
    };
    Ok([start(0)?, start(1)?])
}

/// A real calendar server, which both nginx ask.
fn radicale(stage: &Stage, town: &Town) -> Result<(Child, SocketAddrV4)> {
    let dir = stage.dir("radicale")?;
    let address = SocketAddrV4::new(Ipv4Addr::new(127, 0, 0, 4), stage.port()?);
    let users: String = town
        .people
        .iter()
        .map(|person| format!("{}:{}\n", person.name, person.password()))
        .collect();
    std::fs::write(dir.join("users"), users)?;
    let text = format!(
        "[server]\nhosts = {address}\n[auth]\ntype = htpasswd\nhtpasswd_filename = {dir}/users\n\
         htpasswd_encryption = plain\ndelay = 0\n[storage]\nfilesystem_folder = {dir}/collections\n",
        dir = dir.display()
    );
    let config = stage.file("radicale/config", text)?;
    let args = ["--config", config.to_str().context("path")?];
    let mut child = Child::spawn("radicale", "radicale", &args, &[], &dir.join("output.log"))?;
    child.wait_listening(&[address])?;
    Ok((child, address))
}

const EVENT: &str = "BEGIN:VCALENDAR\r\nVERSION:2.0\r\nPRODID:-//portico//test//EN\r\nBEGIN:VEVENT\r\nUID:one\r\n\
    DTSTAMP:20260101T000000Z\r\nDTSTART:20260102T100000Z\r\nDTEND:20260102T110000Z\r\nSUMMARY:Tea\r\n\
    END:VEVENT\r\nEND:VCALENDAR\r\n";

#[test]
fn a_calendar_program_finds_and_synchronises_calendars() -> Result<()> {
    let change = |stage: &Stage, town: &Town, _: &mut Node, directory: &mut Directory| {
        let (calendars, at) = radicale(stage, town)?;
        let nginxes = nginxes(stage, town, directory, |_| {
            format!(
                "location = /.well-known/caldav {{ return 301 /dav/; }}\n\
                 location /dav/ {{ proxy_pass http://{at}/; proxy_set_header X-Script-Name /dav;\n\
                 proxy_set_header Host $http_host; proxy_pass_header Authorization; }}"
            )
        })?;
        Ok((calendars, nginxes))
    };
    play(change, |scene, (_calendars, nginxes)| {
        let bob = scene.town.person("bob")?.clone();
        // Bob makes a calendar with an event in it, through Portico.
        let port = scene.town.endpoints.https.port();
        let calendar = format!("https://localhost:{port}/dav/{}/days/", bob.name);
        let event = format!("{calendar}one.ics");
        curl_as(scene, &bob, &["-X", "MKCALENDAR", &calendar])?;
        let body = ["-H", "Content-Type: text/calendar", "--data-binary", EVENT];
        curl_as(scene, &bob, &[&["-X", "PUT"], &body[..], &[&event]].concat())?;

        // A program that knows the host alone finds and fetches it.
        let (config, mine) = vdirsyncer(scene, &bob)?;
        // It asks whether to make the local folder.
        let sync = format!("yes | vdirsyncer -c {config} discover && vdirsyncer -c {config} sync");
        scene.run("sh", &["-c", &sync])?;
        let fetched = std::fs::read_to_string(&mine).with_context(|| format!("{}", mine.display()))?;
        ensure!(fetched.contains("SUMMARY:Tea"), "{fetched}");

        // And what changes here, changes there.
        std::fs::write(&mine, fetched.replace("SUMMARY:Tea", "SUMMARY:Coffee"))?;
        scene.run("vdirsyncer", &["-c", &config, "sync"])?;
        let there = curl_as(scene, &bob, &[&event])?;
        ensure!(there.contains("SUMMARY:Coffee"), "{there}");

        // All of it at Bob's server.
        let path = format!("/dav/{}/", bob.name);
        let [of_alice, of_bob] = [0, 1].map(|at: usize| nginxes[at].request_log());
        ensure!(of_bob.contains(&path), "{of_bob}");
        ensure!(!of_alice.contains(&path), "{of_alice}");
        Ok(())
    })
}

/// A request that must succeed, with the person's password; returns what came.
fn curl_as(scene: &Scene, person: &Person, args: &[&str]) -> Result<String> {
    let ca = scene.town.ca.file();
    let user = format!("{}:{}", person.name, person.password());
    let always = [
        "-sS",
        "--fail",
        "--cacert",
        ca.to_str().context("path")?,
        "--user",
        &user,
    ];
    scene.run("curl", &[&always[..], args].concat())
}

/// The configuration of a program that keeps the person's calendars in a folder, and the file of the event in there.
fn vdirsyncer(scene: &Scene, person: &Person) -> Result<(String, PathBuf)> {
    let dir = scene.stage.dir("vdirsyncer")?;
    let text = format!(
        "[general]\nstatus_path = \"{dir}/status\"\n\
         [pair days]\na = \"here\"\nb = \"there\"\ncollections = [\"from b\"]\n\
         [storage here]\ntype = \"filesystem\"\npath = \"{dir}/mine\"\nfileext = \".ics\"\n\
         [storage there]\ntype = \"caldav\"\nurl = \"https://localhost:{port}/\"\n\
         username = \"{name}\"\npassword = \"{password}\"\nverify = \"{ca}\"\n",
        dir = dir.display(),
        port = scene.town.endpoints.https.port(),
        name = person.name,
        password = person.password(),
        ca = scene.town.ca.file().display(),
    );
    let config = scene.stage.file("vdirsyncer/config", text)?;
    let config = config.to_str().context("path")?.to_owned();
    Ok((config, dir.join("mine/days/one.ics")))
}

#[test]
fn servers_are_spoken_to_in_http2_where_a_location_says_so() -> Result<()> {
    let change = |stage: &Stage, town: &Town, node: &mut Node, directory: &mut Directory| {
        let text = "locations:\n  - {prefix: /service/two/, mailbox: web, http2: true}\n  - include: carbonio\n";
        let file = stage.file("locations.yaml", text)?;
        node.web = vec![("locations".to_owned(), format!("\"{}\"", file.display()))];
        nginxes(stage, town, directory, |_| {
            "location / { return 200 $server_protocol; }".to_owned()
        })
    };
    play(change, |scene, _nginxes| {
        let endpoint = scene.town.endpoints.https;
        let ca = scene.town.ca.file();
        let ca = ca.to_str().context("path")?;
        for (path, expected) in [("/service/two/x", "HTTP/2.0"), ("/service/x", "HTTP/1.1")] {
            for version in ["--http1.1", "--http2"] {
                let url = format!("https://localhost:{}{path}", endpoint.port());
                let said = scene.run("curl", &["-sS", "--fail", "--cacert", ca, version, &url])?;
                ensure!(said == expected, "{path} {version}: {said}");
            }
        }
        Ok(())
    })
}

/// A server that takes its time, as a large Java program on a bad day: the head at once, then a piece every now and
/// then.
#[test]
fn a_slow_answer_arrives_as_it_is_made() -> Result<()> {
    const PIECES: usize = 8;
    let change = |stage: &Stage, town: &Town, _: &mut Node, directory: &mut Directory| {
        let store = &town.stores[1];
        let address = SocketAddrV4::new(store.dovecot.ip, stage.port()?);
        let pair = town.ca.server(&[&store.name, &store.dovecot.ip.to_string()])?;
        let entry = directory.server(&store.name);
        entry.insert("zimbraMailSSLPort".into(), address.port().into());
        Fake::start(address, Some(pair.acceptor()?), |peer| {
            loop {
                let mut request = peer.line()?;
                let slow = request.contains("/slow");
                while !request.is_empty() {
                    request = peer.line()?;
                }
                if !slow {
                    peer.send("HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}")?;
                    continue;
                }
                peer.send("HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\nTransfer-Encoding: chunked\r\n\r\n")?;
                for number in 0..PIECES {
                    peer.send(format!("7\r\npiece {number}\r\n"))?;
                    std::thread::sleep(Duration::from_millis(400));
                }
                peer.send("0\r\n\r\n")?;
            }
        })
    };
    play(change, |scene, _server| {
        let bob = scene.town.person("bob")?.clone();
        let mut wire = scene.tls(scene.town.endpoints.https, HOST)?;
        wire.send(format!("GET /home/{}/slow HTTP/1.1\r\nHost: {HOST}\r\n\r\n", bob.name))?;
        let start = std::time::Instant::now();
        let mut seen = Vec::new();
        while seen.len() < PIECES {
            let line = wire.line()?;
            if line.starts_with("piece") {
                seen.push((line.trim_end().to_owned(), start.elapsed()));
            }
        }
        // The first came long before the last was made.
        let (first, last) = (seen[0].1, seen[PIECES - 1].1);
        ensure!(last - first > Duration::from_millis(1500), "{seen:?}");
        Ok(())
    })
}

/// A load generator at work. It is killed when dropped.
struct Generator(Process);

impl Generator {
    fn start(program: &str, args: &[&str]) -> Result<Self> {
        let mut command = Command::new(program);
        let command = command.args(args).stdin(Stdio::null()).stdout(Stdio::piped());
        let started = command.stderr(Stdio::piped()).spawn();
        Ok(Self(
            started.with_context(|| format!("{program}: try scripts/install"))?,
        ))
    }

    fn is_running(&mut self) -> bool {
        matches!(self.0.try_wait(), Ok(None))
    }

    /// What it printed, when it is done.
    fn end(mut self) -> Result<String> {
        use std::io::Read;
        let mut text = String::new();
        self.0.stdout.take().context("taken")?.read_to_string(&mut text)?;
        self.0.stderr.take().context("taken")?.read_to_string(&mut text)?;
        let status = self.0.wait()?;
        ensure!(status.success(), "{status}: {text}");
        Ok(text)
    }
}

impl Drop for Generator {
    fn drop(&mut self) {
        let _gone = self.0.kill();
    }
}

/// So many bytes of its log a server writes for some hundred requests.
const SERVED: usize = 50_000;

/// The web listeners under load, while a mailbox server goes and comes back and a certificate is exchanged: nobody may
/// notice.
#[test]
fn load_sees_no_error_while_things_change() -> Result<()> {
    let change = |stage: &Stage, town: &Town, _: &mut Node, directory: &mut Directory| {
        nginxes(stage, town, directory, |at| {
            format!("location / {{ return 200 'store{}'; }}", at + 1)
        })
    };
    play(change, |scene, mut nginxes| {
        let endpoint = scene.town.endpoints.https;
        let url = format!("https://{endpoint}/service/x");
        let mut wrk = Generator::start("wrk", &["-t1", "-c16", "-d40s", "--timeout", "10s", &url])?;
        let mut h2load = Generator::start("h2load", &["-D", "40", "-c", "4", "-m", "8", "-t", "1", &url])?;
        let shown = || -> Result<Vec<u8>> {
            let wire = Wire::clear(endpoint)?.start_tls_any_name(&scene.town.ca.connector(&[])?, FRONT)?;
            wire.certificate()
        };
        let before = shown()?;
        for down in [0, 1] {
            a_server_goes_and_comes_back(&mut nginxes, down)?;
            the_certificate_is_exchanged(scene)?;
        }
        until("the new certificate", Duration::from_secs(20), || {
            Ok((shown()? != before).then_some(()))
        })?;
        ensure!(wrk.is_running() && h2load.is_running(), "the load ended too early");
        no_request_failed(&wrk.end()?, &h2load.end()?)
    })
}

/// The other one serves meanwhile, and it is asked again.
fn a_server_goes_and_comes_back(nginxes: &mut [Nginx], down: usize) -> Result<()> {
    nginxes[down].stop()?;
    let other = &nginxes[1 - down];
    let asked = other.request_log().len();
    until("the other server to serve", Duration::from_secs(30), || {
        Ok((other.request_log().len() > asked + SERVED).then_some(()))
    })?;
    let nginx = &mut nginxes[down];
    nginx.start_again()?;
    let asked = nginx.request_log().len();
    until("the server to be asked again", Duration::from_secs(30), || {
        Ok((nginx.request_log().len() > asked).then_some(()))
    })
}

fn the_certificate_is_exchanged(scene: &Scene) -> Result<()> {
    let fresh = scene.town.ca.server(&[FRONT, "localhost", "127.0.0.1"])?;
    for (new, old) in [
        (&fresh.certificate_file, &scene.town.default.certificate_file),
        (&fresh.key_file, &scene.town.default.key_file),
    ] {
        let beside = old.with_extension("new");
        std::fs::copy(new, &beside)?;
        std::fs::rename(&beside, old)?;
    }
    kill(Pid::from_raw(scene.portico.pid().cast_signed()), Signal::SIGHUP)?;
    Ok(())
}

/// By what the two programs print at their end.
fn no_request_failed(wrk: &str, h2load: &str) -> Result<()> {
    ensure!(
        !wrk.contains("Socket errors") && !wrk.contains("Non-2xx"),
        "wrk met errors:\n{wrk}"
    );
    for (start, good) in [
        ("requests:", " 0 failed, 0 errored, 0 timeout"),
        ("status codes:", "0 3xx, 0 4xx, 0 5xx"),
    ] {
        let line = h2load.lines().find(|line| line.starts_with(start));
        let line = line.with_context(|| h2load.to_owned())?;
        ensure!(line.contains(good), "h2load met errors:\n{h2load}");
    }
    println!("{wrk}\n{h2load}");
    Ok(())
}
