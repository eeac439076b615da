//! A scene for a test: the usual town with Portico in front, and the usual ways to talk to it.

use std::net::{Ipv4Addr, SocketAddrV4};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use openssl::base64::encode_block;
use portico_tests::Stage;
use portico_tests::config::{Directory, Node};
use portico_tests::forwarder::Forwarder;
use portico_tests::lookup::LookupService;
use portico_tests::portico::Portico;
use portico_tests::slapd::Slapd;
use portico_tests::town::{FRONT, Person, Town, people};
use portico_tests::wire::Wire;
use tokio::runtime::{Builder, Runtime};

/// Everybody is in place.
pub(crate) struct Scene<'a> {
    pub(crate) stage: &'a Stage,
    pub(crate) town: Town,
    pub(crate) portico: Portico,
}

/// Plays a test with the usual people and the usual configuration.
pub(crate) fn play(test: impl FnOnce(&mut Scene) -> Result<()>) -> Result<()> {
    play_with(people(), |_, _, _| Ok(()), test)
}

/// Plays a test with a changed configuration.
pub(crate) fn play_with(
    people: Vec<Person>,
    change: impl FnOnce(&Town, &mut Node, &mut Directory) -> Result<()>,
    test: impl FnOnce(&mut Scene) -> Result<()>,
) -> Result<()> {
    Source::Yaml.play_with(people, change, test)
}

/// The server of [`play_before`].
pub(crate) const GUEST: &str = "guest.example.test";

/// Plays a test with a server of the test's own, in clear text, that takes all requests without an account; the clear
/// port serves.
pub(crate) fn play_before<T>(
    ip: Ipv4Addr,
    start: impl FnOnce(&Stage, SocketAddrV4) -> Result<T>,
    change: impl FnOnce(&Stage, &mut Node, &mut Directory) -> Result<()>,
    test: impl FnOnce(&mut Scene, &mut T) -> Result<()>,
) -> Result<()> {
    Stage::run(|stage| {
        let town = Town::build(stage, people())?;
        let at = SocketAddrV4::new(ip, stage.port()?);
        let mut server = start(stage, at)?;
        let (mut node, mut directory) = (town.node(), town.directory());
        directory
            .config("zimbraReverseProxyMailMode", "both")
            .config("zimbraReverseProxySSLToUpstreamEnabled", "FALSE");
        for store in &town.stores {
            let entry = directory.server(&store.name);
            entry.insert("zimbraReverseProxyLookupTarget".into(), "FALSE".into());
        }
        let entry = directory.store(GUEST, ip);
        entry.insert("zimbraReverseProxyLookupTarget".into(), "TRUE".into());
        entry.insert("zimbraMailPort".into(), at.port().into());
        change(stage, &mut node, &mut directory)?;
        let portico = Portico::start(stage, &node, &directory, "debug")?;
        let mut scene = Scene { stage, town, portico };
        test(&mut scene, &mut server)?;
        scene.end()
    })
}

/// Where Portico learns who lives where.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Source {
    /// The YAML file.
    Yaml,
    /// A real slapd.
    Ldap,
    /// The same far away: each question takes so much longer.
    SlowLdap(Duration),
    /// A lookup service that speaks Zimbra's protocol.
    Zimbra,
    /// A lookup service that speaks that of nginx's `auth_http`.
    Nginx,
}

impl Source {
    /// Plays a test with the usual people and the usual configuration.
    pub(crate) fn play(self, test: impl FnOnce(&mut Scene) -> Result<()>) -> Result<()> {
        self.play_with(people(), |_, _, _| Ok(()), test)
    }

    /// Plays a test with a changed configuration.
    pub(crate) fn play_with(
        self,
        people: Vec<Person>,
        change: impl FnOnce(&Town, &mut Node, &mut Directory) -> Result<()>,
        test: impl FnOnce(&mut Scene) -> Result<()>,
    ) -> Result<()> {
        Stage::run(|stage| {
            let town = Town::build(stage, people)?;
            let (mut node, mut directory) = (town.node(), town.directory());
            change(&town, &mut node, &mut directory)?;
            // Held until the test is over.
            let (mut _slapd, mut _service, mut _way) = (None, None, None);
            match self {
                Self::Yaml => {}
                Self::Ldap => {
                    let slapd = Slapd::start(stage, "slapd", &directory)?;
                    node.directory = slapd.source("200ms");
                    _slapd = Some(slapd);
                }
                Self::SlowLdap(late) => {
                    let slapd = Slapd::start(stage, "slapd", &directory)?;
                    let (runtime, forwarder) = long_way(slapd.address(), late)?;
                    node.directory = slapd.source_of(&[&forwarder.url()], "200ms");
                    _way = Some(runtime);
                    _slapd = Some(slapd);
                }
                Self::Zimbra | Self::Nginx => {
                    let address = SocketAddrV4::new(Ipv4Addr::LOCALHOST, stage.port()?);
                    let service = LookupService::start(address, &town)?;
                    let protocol = if self == Self::Zimbra { "zimbra" } else { "nginx" };
                    node.directory = service.source(protocol);
                    // The file has no accounts, so that reading it would show.
                    directory.forget_accounts();
                    _service = Some(service);
                }
            }
            let portico = Portico::start(stage, &node, &directory, "debug")?;
            let mut scene = Scene { stage, town, portico };
            test(&mut scene)?;
            scene.end()
        })
    }
}

/// A forwarder that makes each question so much later, and what it runs on.
fn long_way(to: SocketAddrV4, late: Duration) -> Result<(Runtime, Forwarder)> {
    let runtime = Builder::new_multi_thread().worker_threads(1).enable_all().build()?;
    let forwarder = runtime.block_on(Forwarder::slow(to.into(), late))?;
    Ok((runtime, forwarder))
}

impl Scene<'_> {
    /// What must hold after every test: it still runs, and has written no password anywhere.
    pub(crate) fn end(&mut self) -> Result<()> {
        ensure!(self.portico.is_running(), "Portico has ended");
        self.portico.must_not_have_written(&self.town.secrets())
    }

    /// What the node counts and measures.
    pub(crate) fn metrics(&self) -> Result<String> {
        let socket = self.portico.dir().join("admin.sock").display().to_string();
        self.run("curl", &["-sS", "--unix-socket", &socket, "http://portico/metrics"])
    }

    /// IMAP in TLS, greeting read.
    pub(crate) fn imaps(&self) -> Result<Wire> {
        greeted(self.tls(self.town.endpoints.imaps, FRONT)?, "* OK ")
    }

    /// IMAP after STARTTLS.
    pub(crate) fn imap_starttls(&self) -> Result<Wire> {
        let mut wire = greeted(Wire::clear(self.town.endpoints.imap)?, "* OK ")?;
        wire.imap_ok("s0 STARTTLS")?;
        wire.start_tls(&self.town.ca.connector(&[])?, FRONT)
    }

    /// POP3 in TLS, greeting read.
    pub(crate) fn pop3s(&self) -> Result<Wire> {
        greeted(self.tls(self.town.endpoints.pop3s, FRONT)?, "+OK")
    }

    /// POP3 after STLS.
    pub(crate) fn pop3_stls(&self) -> Result<Wire> {
        let mut wire = greeted(Wire::clear(self.town.endpoints.pop3)?, "+OK")?;
        wire.pop_ok("STLS")?;
        wire.start_tls(&self.town.ca.connector(&[])?, FRONT)
    }

    /// TLS to a listener, asking for a name.
    pub(crate) fn tls(&self, endpoint: SocketAddrV4, name: &str) -> Result<Wire> {
        Wire::clear(endpoint)?.start_tls_any_name(&self.town.ca.connector(&[])?, name)
    }

    /// Logs a person in over IMAPS.
    pub(crate) fn login(&self, local: &str) -> Result<Wire> {
        let (mut wire, person) = (self.imaps()?, self.town.person(local)?);
        wire.imap_ok(&format!("l0 LOGIN {} {}", person.name, person.password()))
            .with_context(|| person.name.clone())?;
        Ok(wire)
    }

    /// Puts a message into everybody's inbox that says on which store it lies.
    pub(crate) fn deliver_marks(&self) -> Result<()> {
        for person in &self.town.people {
            let store = &self.town.stores[person.store];
            let message = format!(
                "Subject: {} on {}\r\n\r\nbody of {}\r\n",
                person.name, store.name, person.name
            );
            store.dovecot.deliver(&person.name, &message)?;
        }
        Ok(())
    }

    /// Checks by the mark that this logged-in IMAP session is this person's.
    pub(crate) fn is_inbox_of(&self, wire: &mut Wire, local: &str) -> Result<()> {
        let person = self.town.person(local)?;
        wire.imap_ok("m1 SELECT INBOX")?;
        let mail = wire.imap_ok("m2 FETCH 1 BODY.PEEK[HEADER.FIELDS (SUBJECT)]")?;
        let mark = format!("Subject: {} on {}", person.name, self.town.stores[person.store].name);
        ensure!(mail.contains(&mark), "expected {mark:?} in {mail:?}");
        Ok(())
    }

    /// Runs a program that must succeed; gives what it printed.
    pub(crate) fn run(&self, program: &str, args: &[&str]) -> Result<String> {
        let out = Command::new(program)
            .args(args)
            .output()
            .with_context(|| format!("{program}: try scripts/install"))?;
        let printed = String::from_utf8_lossy(&out.stdout).into_owned();
        let (status, errors) = (out.status, String::from_utf8_lossy(&out.stderr).into_owned());
        ensure!(status.success(), "{program} {args:?}: {status}\n{printed}\n{errors}");
        Ok(printed)
    }
}

/// Reads a greeting.
pub(crate) fn greeted(mut wire: Wire, start: &str) -> Result<Wire> {
    let line = wire.line()?;
    ensure!(line.starts_with(start), "greeting {line:?}");
    Ok(wire)
}

/// The message of SASL PLAIN.
pub(crate) fn sasl_plain(name: &str, password: &[u8]) -> String {
    encode_block(&[b"\0", name.as_bytes(), b"\0", password].concat())
}

/// A quoted string of IMAP.
pub(crate) fn quoted(text: &[u8]) -> Vec<u8> {
    let mut out = vec![b'"'];
    for byte in text {
        if matches!(byte, b'"' | b'\\') {
            out.push(b'\\');
        }
        out.push(*byte);
    }
    out.push(b'"');
    out
}

/// How long something took.
pub(crate) fn timed<T>(act: impl FnOnce() -> Result<T>) -> Result<(T, Duration)> {
    let start = std::time::Instant::now();
    Ok((act()?, start.elapsed()))
}

/// A web login.
pub(crate) fn soap_login(name: &str, password: &str) -> String {
    format!(
        "<soap:Envelope xmlns:soap=\"http://www.w3.org/2003/05/soap-envelope\"><soap:Body>\
         <AuthRequest xmlns=\"urn:zimbraAccount\"><account by=\"name\">{name}</account>\
         <password>{password}</password></AuthRequest></soap:Body></soap:Envelope>"
    )
}
