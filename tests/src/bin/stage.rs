//! The demo behind `make run`: two mailbox servers with people and mails, Portico in front, HAProxy in front of that.
//!
//! `stage` takes well-known unprivileged ports where they are free; `stage --any-ports` takes any. It prints
//! what to try, and ends all it started on SIGINT or SIGTERM.

use std::path::Path;
use std::time::Duration;

use anyhow::{Result, bail};
use portico_tests::Stage;
use portico_tests::config::quote;
use portico_tests::haproxy::Header;
use portico_tests::portico::{self, Portico};
use portico_tests::town::{Endpoints, Person, Ports, Town};
use tokio::signal::unix::{Signal, SignalKind, signal};

const FRONT: Ports = [8080, 8443, 1143, 1993, 1110, 1995];
/// What the console asks for.
const TOKEN: &str = "the-token-of-the-demo";
const BALANCER: Ports = [18080, 18443, 11143, 11993, 11110, 11995];

fn main() -> Result<()> {
    let any_ports = match std::env::args().nth(1).as_deref() {
        None => false,
        Some("--any-ports") => true,
        Some(other) => bail!("unknown argument {other}: there is only --any-ports"),
    };
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let ends = runtime.block_on(async { Ends::new() })?;
    portico::binary()?;
    let stage = Stage::new()?;
    let played = play(&stage, any_ports, |portico| runtime.block_on(ends.wait(portico)));
    if played.is_err() {
        stage.show_logs();
    }
    played
}

fn play(stage: &Stage, any_ports: bool, wait: impl FnOnce(&mut Portico) -> Result<()>) -> Result<()> {
    let ports = |wanted| (!any_ports).then_some(wanted);
    step("certificates, two Dovecot mailbox servers, two web mail servers …");
    let town = Town::build_with(stage, people(), [ports(FRONT), None])?;
    step("mails …");
    deliver(&town)?;
    step("Portico …");
    let token = stage.path().join("admin.token");
    std::fs::write(&token, format!("{TOKEN}\n"))?;
    let mut node = town.node();
    node.admin = vec![
        format!("http: {}", town.admin),
        format!("token_file: {}", quote(&token)),
    ];
    let mut portico = Portico::start(stage, &node, &town.directory(), "info")?;
    step("HAProxy …");
    let (_haproxy, balancer) = town.balancer(stage, Header::V2, ports(BALANCER))?;
    explain(&town, &balancer);
    look_in(&town, portico.dir())?;
    wait(&mut portico)?;
    step("ending all of it");
    Ok(())
}

fn step(what: &str) {
    println!("stage: {what}");
}

fn people() -> Vec<Person> {
    vec![
        Person::new("alice@a.example", 0, "wonderland").alias("al@a.example"),
        Person::new("bob@a.example", 1, "build it"),
        Person::new("carol@b.example", 0, "carols"),
        Person::new("dave@b.example", 1, "2001"),
    ]
}

fn deliver(town: &Town) -> Result<()> {
    for person in &town.people {
        for number in 1..=3 {
            let store = &town.stores[person.store];
            let message = format!(
                "From: The stage <stage@a.example>\r\nTo: {0}\r\nSubject: Mail {number} for {0}\r\n\
                 Date: Mon, 05 Jan 2026 10:00:0{number} +0000\r\nMessage-ID: <{number}.{0}>\r\n\r\n\
                 This mail lives on {1}.\r\n",
                person.name, store.name
            );
            store.dovecot.deliver(&person.name, &message)?;
        }
    }
    Ok(())
}

/// Prints ports, people and lines to try.
fn explain(town: &Town, balancer: &Endpoints) {
    let ca = town.ca.file();
    let curl = format!("curl -sS --cacert {}", ca.display());
    println!("\nPortico is up. Ctrl-C ends everything.\n\nPorts on 127.0.0.1");
    print_ports("Portico", &town.endpoints);
    print_ports("HAProxy", balancer);
    println!("\nPeople");
    for person in &town.people {
        println!(
            "  {:16}  password {:12}  on {}",
            person.name,
            person.password(),
            town.stores[person.store].name
        );
    }
    for person in &town.people[..2] {
        println!("\nTo try, as {}", person.name);
        print_lines(&curl, &ca, person, &town.endpoints);
    }
    let alice = &town.people[0];
    println!("\nThe web");
    println!(
        "  in a browser, which will warn of the development CA: {}",
        at("https", town.endpoints.https, "/").trim_matches('\'')
    );
    println!("  curl -sS -D - {}", at("http", town.endpoints.http, "/any/page"));
    println!(
        "  {curl} -D - {} -d '{}'",
        at("https", town.endpoints.https, "/service/soap/AuthRequest"),
        soap(alice)
    );
    println!("\nThrough HAProxy (send-proxy-v2); the audit log shows 127.0.0.1, and HAProxy's 127.0.0.9 as via");
    print_lines(&curl, &ca, alice, balancer);
}

/// Prints how to see what Portico sees.
fn look_in(town: &Town, dir: &Path) -> Result<()> {
    let program = portico::binary()?;
    let verb = |words: &str| {
        println!(
            "  {} -c {} {words}",
            program.display(),
            dir.join("portico.yaml").display()
        )
    };
    println!("\nWhat Portico sees");
    println!("  the console, in a browser: http://{}/  token {TOKEN}", town.admin);
    verb("status");
    verb("route explain al");
    verb("logins");
    verb("sessions");
    verb("prov gd a.example zimbraVirtualHostname");
    println!("  curl -sS {}", at("http", town.admin, "/metrics"));
    println!(
        "\nLogs and configuration are in {}\n  tail -f {}",
        dir.display(),
        dir.join("audit.log").display()
    );
    Ok(())
}

fn print_ports(who: &str, d: &Endpoints) {
    let [http, https] = [d.http.port(), d.https.port()];
    let [imap, imaps, pop3, pop3s] = [d.imap, d.imaps, d.pop3, d.pop3s].map(|a| a.port());
    println!("  {who}  http {http}  https {https}  imap {imap}  imaps {imaps}  pop3 {pop3}  pop3s {pop3s}");
}

fn print_lines(curl: &str, ca: &Path, person: &Person, endpoints: &Endpoints) {
    let (name, password) = (&person.name, person.password());
    let login = format!("--user '{name}:{password}'");
    println!(
        "  {curl} {login} '{}'",
        at("imaps", endpoints.imaps, "/INBOX;MAILINDEX=1")
    );
    println!(
        "  {curl} {login} --ssl-reqd '{}'",
        at("imap", endpoints.imap, "/INBOX;MAILINDEX=1")
    );
    println!("  {curl} {login} '{}'", at("pop3s", endpoints.pop3s, "/1"));
    println!("  {curl} {login} --ssl-reqd '{}'", at("pop3", endpoints.pop3, "/1"));
    println!(
        "  {curl} '{}'",
        at("https", endpoints.https, &format!("/home/{name}/inbox"))
    );
    let openssl = format!(
        "openssl s_client -quiet -crlf -verify_return_error -CAfile {}",
        ca.display()
    );
    println!(
        "  printf '%s\\n' 'a LOGIN {name} \"{password}\"' 'b STATUS INBOX (MESSAGES)' 'c LOGOUT' | {openssl} -starttls imap -connect {}",
        endpoints.imap
    );
    println!(
        "  printf '%s\\n' 'USER {name}' 'PASS {password}' 'STAT' 'QUIT' | {openssl} -starttls pop3 -connect {}",
        endpoints.pop3
    );
}

fn at(scheme: &str, endpoint: std::net::SocketAddrV4, path: &str) -> String {
    format!("{scheme}://{endpoint}{path}")
}

fn soap(person: &Person) -> String {
    format!(
        "<soap:Envelope xmlns:soap=\"http://www.w3.org/2003/05/soap-envelope\"><soap:Body>\
         <AuthRequest xmlns=\"urn:zimbraAccount\"><account by=\"name\">{}</account><password>{}</password>\
         </AuthRequest></soap:Body></soap:Envelope>",
        person.name,
        person.password()
    )
}

/// What ends the demo. Made first, so that Ctrl-C while things start leaves nothing behind either.
struct Ends {
    interrupt: Signal,
    terminate: Signal,
}

impl Ends {
    fn new() -> Result<Self> {
        Ok(Self {
            interrupt: signal(SignalKind::interrupt())?,
            terminate: signal(SignalKind::terminate())?,
        })
    }

    async fn wait(mut self, portico: &mut Portico) -> Result<()> {
        let mut tick = tokio::time::interval(Duration::from_millis(500));
        loop {
            tokio::select! {
                _ = self.interrupt.recv() => return Ok(()),
                _ = self.terminate.recv() => return Ok(()),
                _ = tick.tick() => if !portico.is_running() { bail!("Portico has ended") },
            }
        }
    }
}
