//! Single sign-on by certificate: a client is logged in whose certificate a lookup service knows.

use std::net::{Ipv4Addr, SocketAddr, SocketAddrV4, TcpStream};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use portico_tests::certs::{Authority, Pair};
use portico_tests::config::{Directory, Listener, Node, Serve, Tls};
use portico_tests::lookup::{Holder, LookupService, PROXY_LOGIN};
use portico_tests::portico::Portico;
use portico_tests::town::{NODE, Town, people};
use portico_tests::{Stage, until};

use crate::scene::Scene;

/// Of all that is looked at here, nothing takes longer.
const CURL_SECONDS: &str = "60";
/// How long the listener may take to open.
const SOON: Duration = Duration::from_secs(30);
const TOKEN: &str = "0_5f2c4n4ry_69643d33363a;x=1";

/// The listener, its clients, and the services that it asks.
struct Endpoint<'a> {
    scene: &'a Scene<'a>,
    address: SocketAddrV4,
    service: Option<LookupService>,
    /// `rossi` has an account, `bianchi` has none, `verdi` has a token that no cookie can hold.
    rossi: Pair,
    bianchi: Pair,
    verdi: Pair,
    /// The authority of `d.example` calls its people what it likes: one as somebody of `a.example`.
    forged: Pair,
    neri: Pair,
    foreign: Pair,
}

/// What curl got.
#[derive(Debug, Default)]
struct Got {
    /// 0 without a connection.
    status: u16,
    location: Option<String>,
    cookies: Vec<String>,
}

impl Endpoint<'_> {
    fn get(&self, name: &str, path: &str, show: Option<&Pair>, more: &[&str]) -> Result<Got> {
        let (ip, port) = (self.address.ip(), self.address.port());
        let mut curl = Command::new("curl");
        curl.args([
            "-sS",
            "-k",
            "--max-time",
            CURL_SECONDS,
            "-D",
            "-",
            "-o",
            "/dev/null",
            "--path-as-is",
        ])
        .args(["--resolve", &format!("{name}:{port}:{ip}")])
        .args(more);
        if let Some(pair) = show {
            curl.arg("--cert").arg(&pair.certificate_file);
            curl.arg("--key").arg(&pair.key_file);
        }
        let out = curl.arg(format!("https://{name}:{port}{path}")).output();
        let text = String::from_utf8(out.context("curl: try scripts/install")?.stdout)?;
        let mut got = Got::default();
        for line in text.lines() {
            if let Some(rest) = line.strip_prefix("HTTP/") {
                got.status = rest.split(' ').nth(1).context("no status")?.parse()?;
            }
            match line
                .split_once(": ")
                .map(|(name, value)| (name.to_ascii_lowercase(), value))
            {
                Some((name, value)) if name == "location" => got.location = Some(value.to_owned()),
                Some((name, value)) if name == "set-cookie" => got.cookies.push(value.to_owned()),
                _ => {}
            }
        }
        Ok(got)
    }

    /// The status, and whether the client is logged in.
    #[track_caller]
    fn check(&self, name: &str, path: &str, show: Option<&Pair>, expected: (u16, bool)) -> Result<Got> {
        let got = self.get(name, path, show, &[])?;
        let who = show.map(|pair| &pair.certificate_file);
        let seen = (got.status, !got.cookies.is_empty());
        assert_eq!(seen, expected, "{name} {path} {who:?}: {got:?}");
        Ok(got)
    }

    fn service(&self) -> Result<&LookupService> {
        self.service.as_ref().context("nobody to ask")
    }

    /// Where a browser is sent.
    fn page(&self, name: &str) -> String {
        format!(
            "https://{name}:{}/?ignoreLoginURL=1",
            self.scene.town.endpoints.https.port()
        )
    }

    fn request_count(&self) -> Result<usize> {
        Ok(self.service()?.request_count())
    }
}

/// Where the listener is configured, and which services it asks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Given {
    /// The node file.
    Listener,
    /// The directory.
    Port,
    /// The node file, and there is no lookup service.
    NoService,
}

/// `a.example` wants certificates, `c.example` may have them, `d.example` has an authority of its own, `b.example`
/// knows nothing of it.
fn play(given: Given, test: impl FnOnce(&Endpoint) -> Result<()>) -> Result<()> {
    Stage::run(|stage| {
        let town = Town::build(stage, people())?;
        let (mut node, mut directory) = (town.node(), town.directory());
        let local = |stage: &Stage| anyhow::Ok(SocketAddrV4::new(Ipv4Addr::LOCALHOST, stage.port()?));
        let authority = Authority::called("Clients", &stage.dir("clients")?)?;
        let tenant = Authority::called("Tenant", &stage.dir("tenant")?)?;
        ask_for_certificates(&mut directory, &authority, &tenant);
        let address = local(stage)?;
        node.listeners.push(Listener {
            address: SocketAddr::V4(address),
            serve: Serve::Sso,
            tls: Tls::Implicit,
            proxies: Vec::new(),
            more: Vec::new(),
        });
        if given == Given::Port {
            node.listeners.clear();
            listen_by_directory(&town, stage.port()?, address.port(), &mut directory);
        }
        let service = match given {
            Given::NoService => None,
            Given::Listener | Given::Port => Some(service(stage, local(stage)?, &town, &mut node, &mut directory)?),
        };
        let portico = Portico::start(stage, &node, &directory, "debug")?;
        until("the listener", SOON, || Ok(TcpStream::connect(address).ok()))?;
        let mut scene = Scene { stage, town, portico };
        test(&Endpoint {
            scene: &scene,
            address,
            service,
            rossi: authority.client("rossi")?,
            bianchi: authority.client("bianchi")?,
            verdi: authority.client("verdi")?,
            forged: tenant.client("rossi")?,
            neri: tenant.client("neri")?,
            foreign: Authority::called("Somebody", &stage.dir("somebody")?)?.client("rossi")?,
        })?;
        for secret in [PROXY_LOGIN.1, "5f2c4n4ry"] {
            scene.portico.must_not_have_written(&[secret.into()])?;
        }
        scene.end()
    })
}

fn ask_for_certificates(directory: &mut Directory, authority: &Authority, tenant: &Authority) {
    let names = directory.domain("d.example");
    names.insert("zimbraVirtualHostname".into(), "mail.d.example".into());
    for (domain, mode, authority) in [
        ("a.example", "on", authority),
        ("c.example", "optional", authority),
        ("d.example", "on", tenant),
    ] {
        let entry = directory.domain(domain);
        entry.insert("zimbraReverseProxyClientCertMode".into(), mode.into());
        entry.insert(
            "zimbraReverseProxyClientCertCA".into(),
            authority.file().as_path().into(),
        );
    }
}

/// The listeners of the town, and one for certificates, as attributes of the node's server.
fn listen_by_directory(town: &Town, admin: u16, certificates: u16, directory: &mut Directory) {
    let endpoints = &town.endpoints;
    for (name, port) in [
        ("zimbraMailProxyPort", endpoints.http.port()),
        ("zimbraImapProxyBindPort", endpoints.imap.port()),
        ("zimbraImapSSLProxyBindPort", endpoints.imaps.port()),
        ("zimbraPop3ProxyBindPort", endpoints.pop3.port()),
        ("zimbraPop3SSLProxyBindPort", endpoints.pop3s.port()),
        ("carbonioAdminProxyPort", admin),
        ("zimbraMailSSLProxyClientCertPort", certificates),
    ] {
        directory.server(NODE).insert(name.to_owned(), port.into());
    }
}

fn service(
    stage: &Stage,
    address: SocketAddrV4,
    town: &Town,
    node: &mut Node,
    directory: &mut Directory,
) -> Result<LookupService> {
    let service = LookupService::start(address, town)?;
    let password = stage.dir("password")?.join("zmnginx");
    std::fs::write(&password, format!("{}\n", PROXY_LOGIN.1))?;
    node.directory = service.source("zimbra");
    let last = node.directory.last_mut().context("no section lookup")?;
    *last = last.replace(
        "]}",
        &format!("], admin_password_file: {:?}}}", password.display().to_string()),
    );
    directory.forget_accounts();
    let holder_of = |account: &str, token: &str, admin| Holder {
        account: account.to_owned(),
        token: token.to_owned(),
        admin,
    };
    let holder = |token: &str, admin| holder_of("alice@a.example", token, admin);
    service.give("CN=rossi", holder(TOKEN.trim_end_matches(";x=1"), true));
    service.give("CN=verdi", holder(TOKEN, false));
    service.give("CN=neri", holder_of("neri@d.example", "0_f2c4n4ry", false));
    Ok(service)
}

#[test]
fn a_client_with_a_certificate_and_an_account_is_logged_in() -> Result<()> {
    play(Given::Listener, |endpoint| {
        let rossi = Some(&endpoint.rossi);
        let got = endpoint.check("mail.a.example", "/certauth", rossi, (302, true))?;
        let cookie = "=0_5f2c4n4ry_69643d33363a; Path=/; Secure; HttpOnly; SameSite=Lax";
        assert_eq!(got.cookies, [format!("ZM_AUTH_TOKEN{cookie}")]);
        assert_eq!(got.location, Some(endpoint.page("mail.a.example")));
        let question = endpoint.service()?.last_question();
        for (name, value) in [
            ("auth-method", "certauth"),
            ("auth-user", "CN=rossi"),
            ("auth-protocol", "httpssl"),
            ("auth-pass", "_password_"),
            ("auth-admin-user", PROXY_LOGIN.0),
            ("auth-admin-pass", PROXY_LOGIN.1),
            ("x-proxy-ip", "127.0.0.1"),
            ("x-proxy-host", "mail.a.example"),
        ] {
            assert_eq!(question.get(name).map(String::as_str), Some(value), "{name}");
        }
        ensure!(!question.contains_key("auth-zimbra-admin"), "{question:?}");
        endpoint.scene.portico.record(&[
            ("event", "web_login"),
            ("mechanism", "certauth"),
            ("user", "CN=rossi"),
            ("account", "alice@a.example"),
            ("outcome", "ok"),
        ])?;

        let got = endpoint.check("mail.a.example", "/certauth/admin", rossi, (302, true))?;
        assert_eq!(got.cookies, [format!("ZM_ADMIN_AUTH_TOKEN{cookie}")]);
        assert_eq!(
            got.location.as_deref(),
            Some("https://mail.a.example:6071/?ignoreLoginURL=1")
        );
        let question = endpoint.service()?.last_question();
        assert_eq!(question.get("auth-zimbra-admin").map(String::as_str), Some("True"));

        // Each time again.
        let before = endpoint.request_count()?;
        endpoint.check("mail.a.example", "/certauth", rossi, (302, true))?;
        endpoint.check("x.c.example", "/certauth", rossi, (302, true))?;
        assert_eq!(endpoint.request_count()?, before + 2);
        let got = endpoint.get("mail.a.example", "/certauth", rossi, &["--http1.1"])?;
        assert_eq!((got.status, got.cookies.len()), (302, 1));
        Ok(())
    })
}

#[test]
fn requests_without_a_good_certificate_are_asked_of_no_service() -> Result<()> {
    play(Given::Listener, |endpoint| {
        let (rossi, foreign) = (Some(&endpoint.rossi), Some(&endpoint.foreign));
        let before = endpoint.request_count()?;
        // The handshake refuses them.
        endpoint.check("mail.a.example", "/certauth", None, (0, false))?;
        endpoint.check("mail.a.example", "/certauth", foreign, (0, false))?;
        endpoint.check("x.c.example", "/certauth", foreign, (0, false))?;
        // There is no certificate to ask about.
        let got = endpoint.check("x.c.example", "/certauth", None, (302, false))?;
        assert_eq!(got.location, Some(endpoint.page("x.c.example")));
        endpoint.check("mail.b.example", "/certauth", rossi, (403, false))?;
        for path in [
            "/",
            "/certauth/",
            "/certauth/x",
            "/service/soap",
            "/x/../certauth",
            "/static/login/",
        ] {
            endpoint.check("mail.a.example", path, rossi, (403, false))?;
            endpoint.check("x.c.example", path, None, (403, false))?;
        }
        for (name, path, args, status) in [
            (
                "mail.a.example",
                "/ws",
                &["--http1.1", "-H", "Connection: Upgrade", "-H", "Upgrade: websocket"][..],
                403,
            ),
            ("mail.a.example", "/certauth", &["-d", "x"], 403),
            ("x.c.example", "/certauth", &["-H", "Host: mail.a.example"], 421),
        ] {
            assert_eq!(endpoint.get(name, path, rossi, args)?.status, status, "{path} {args:?}");
        }
        assert_eq!(endpoint.request_count()?, before, "a service was asked");
        Ok(())
    })
}

#[test]
fn certificates_that_the_service_refuses_log_no_client_in() -> Result<()> {
    play(Given::Listener, |endpoint| {
        let (bianchi, verdi) = (Some(&endpoint.bianchi), Some(&endpoint.verdi));
        endpoint.check("mail.a.example", "/certauth", bianchi, (403, false))?;
        endpoint.check("x.c.example", "/certauth", bianchi, (302, false))?;
        endpoint.scene.portico.record(&[
            ("event", "web_login"),
            ("user", "CN=bianchi"),
            ("outcome", "refused"),
            ("why", "user not found:CN=bianchi"),
        ])?;
        // The answer is no good.
        endpoint.check("mail.a.example", "/certauth", verdi, (503, false))?;
        endpoint.check("x.c.example", "/certauth", verdi, (302, false))?;
        // No administrator.
        endpoint.check("mail.a.example", "/certauth/admin", verdi, (403, false))?;
        Ok(())
    })
}

#[test]
fn an_authority_counts_for_its_own_domain_only() -> Result<()> {
    play(Given::Listener, |endpoint| {
        let (neri, forged) = (Some(&endpoint.neri), Some(&endpoint.forged));
        endpoint.check("mail.d.example", "/certauth", neri, (302, true))?;
        endpoint.check("mail.a.example", "/certauth", forged, (0, false))?;
        for path in ["/certauth", "/certauth/admin"] {
            endpoint.check("mail.d.example", path, forged, (403, false))?;
        }
        let refused = [("event", "web_login"), ("user", "CN=rossi"), ("outcome", "refused")];
        let record = endpoint.scene.portico.record(&refused)?;
        let why = record["why"].as_str();
        ensure!(why.is_some_and(|why| why.contains("does not trust")), "{record}");
        Ok(())
    })
}

#[test]
fn without_a_lookup_service_certificates_log_no_client_in() -> Result<()> {
    play(Given::NoService, |endpoint| {
        endpoint.check("mail.a.example", "/certauth", Some(&endpoint.rossi), (403, false))?;
        endpoint.check("x.c.example", "/certauth", Some(&endpoint.rossi), (403, false))?;
        endpoint.check("x.c.example", "/certauth", None, (302, false))?;
        let log = endpoint.scene.portico.output();
        ensure!(log.contains("certificates log nobody in"), "{log}");
        Ok(())
    })
}

#[test]
fn the_directory_opens_the_listener() -> Result<()> {
    play(Given::Port, |endpoint| {
        endpoint.check("mail.a.example", "/certauth", Some(&endpoint.rossi), (302, true))?;
        endpoint
            .check("mail.a.example", "/", Some(&endpoint.rossi), (403, false))
            .map(drop)
    })
}
