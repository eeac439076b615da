//! Carbonio's web locations: each row of its table, and where its requests go; headers, gates, error pages, modes,
//! challenges; files of locations that change while Portico runs.

use std::net::{Ipv4Addr, SocketAddr, SocketAddrV4};
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use openssl::base64::encode_block;
use portico_tests::Stage;
use portico_tests::config::{Directory, Listener, Node, Serve, Tls, quote};
use portico_tests::portico::Portico;
use portico_tests::town::{Town, people};
use portico_tests::until;
use portico_tests::web::{WebBackend, auth_token};
use portico_tests::wire::Wire;
use serde_json::{Value, json};

use crate::scene::Scene;
use crate::web::{Answer, HOST, seen};

const CARBONIO: &str = include_str!("../../conf/carbonio.yaml");
const GROUPS: [&str; 11] = [
    "files",
    "ws-collaboration",
    "docs-connector",
    "docs-editor",
    "message-dispatcher-http",
    "tasks",
    "carbonio-auth",
    "carbonio-storages",
    "carbonio-notification-push",
    "carbonio-certificate-manager",
    "carbonio-catalog",
];
/// An upload of this size must neither cost memory nor much time.
const HUGE: u64 = 2 * 1024 * 1024 * 1024;
const FLAT_KIB: u64 = 32 * 1024;

/// The usual town with the services beside its mailbox servers, static trees, and a listener for administrators.
struct Carbonio<'a> {
    scene: Scene<'a>,
    admin: SocketAddrV4,
    /// The services, by group; and the extensions and the administration side of the first store.
    _services: Vec<WebBackend>,
}

fn play(change: impl FnOnce(&mut Node, &mut Directory), test: impl FnOnce(&mut Carbonio) -> Result<()>) -> Result<()> {
    Stage::run(|stage| {
        let town = Town::build(stage, people())?;
        let (mut node, mut directory) = (town.node(), town.directory());
        let mut services = Vec::new();
        let mut groups = String::from("groups:\n");
        for group in GROUPS {
            let address = || -> Result<SocketAddrV4> { Ok(SocketAddrV4::new(Ipv4Addr::LOCALHOST, stage.port()?)) };
            let service = WebBackend::echo(group, address()?, address()?, &town.default)?;
            groups.push_str(&format!("  {group}: {{servers: [\"{}\"]}}\n", service.http));
            services.push(service);
        }
        // The extensions are at a fixed port, so this store has an address of its own.
        let [.., a, b] = std::process::id().to_be_bytes();
        let ip = Ipv4Addr::new(127, 83, a, b);
        let name = "store3.example.test";
        let pair = town.ca.server(&[name, &ip.to_string()])?;
        let at = |port| SocketAddrV4::new(ip, port);
        services.push(WebBackend::echo("zx", at(8742), at(8743), &pair)?);
        services.push(WebBackend::echo("store3", at(stage.port()?), at(stage.port()?), &pair)?);
        services.push(WebBackend::echo("admin", at(stage.port()?), at(stage.port()?), &pair)?);
        let server = directory.server(name);
        for (attribute, value) in [
            ("zimbraServiceHostname", ip.to_string()),
            ("zimbraMailPort", services[GROUPS.len() + 1].http.port().to_string()),
            ("zimbraMailSSLPort", services[GROUPS.len() + 1].https.port().to_string()),
            ("zimbraAdminPort", services[GROUPS.len() + 2].https.port().to_string()),
            ("zimbraServiceEnabled", "mailbox".to_owned()),
            ("zimbraReverseProxyLookupTarget", "FALSE".to_owned()),
        ] {
            server.insert(attribute.into(), value.into());
        }
        let account = directory.account("zoe@a.example");
        account.insert("zimbraId".into(), ZOE.into());
        account.insert("zimbraMailHost".into(), name.into());

        let home = stage.dir("opt")?;
        build_trees(&home)?;
        let table = home.join("carbonio.yaml");
        std::fs::write(&table, CARBONIO.replace("/opt/zextras", home.to_str().context("path")?))?;
        let site = home.join("site.yaml");
        std::fs::write(&site, format!("{groups}locations:\n- include: {}\n", quote(&table)))?;
        let admin = SocketAddrV4::new(Ipv4Addr::LOCALHOST, stage.port()?);
        node.listeners.push(Listener {
            address: SocketAddr::V4(admin),
            serve: Serve::AdminConsole,
            tls: Tls::Implicit,
            proxies: Vec::new(),
            more: Vec::new(),
        });
        node.web = vec![("locations".to_owned(), quote(&site))];
        change(&mut node, &mut directory);
        let portico = Portico::start(stage, &node, &directory, "debug")?;
        let mut carbonio = Carbonio {
            scene: Scene { stage, town, portico },
            admin,
            _services: services,
        };
        test(&mut carbonio)?;
        carbonio.scene.end()
    })
}

const ZOE: &str = "99999999-2222-3333-4444-555555555555";

fn build_trees(home: &Path) -> Result<()> {
    for (file, text) in [
        ("web/login/index.html", "login page"),
        ("web/iris/carbonio-shell-ui/current/index.html", "shell"),
        ("web/iris/carbonio-chats-ui/current/meeting/index.html", "meeting"),
        ("web/iris/components.json", "{}"),
        ("web/carbonio-files-public-folder-ui/index.html", "public folder"),
        ("web/carbonio-files-public-folder-ui/assets/x.js", "asset"),
        (".well-known/some.txt", "well known"),
        ("admin/login/index.html", "admin login page"),
        ("admin/iris/carbonio-admin-ui/current/index.html", "admin shell"),
    ] {
        let file = home.join(file);
        std::fs::create_dir_all(file.parent().context("folder")?)?;
        std::fs::write(file, text)?;
    }
    Ok(())
}

impl Carbonio<'_> {
    fn web(&self, path: &str, args: &[&str]) -> Result<Answer> {
        self.scene.https(path, args)
    }

    /// Sends a request to the listener for administrators.
    fn admin(&self, path: &str, args: &[&str]) -> Result<Answer> {
        let ca = self.scene.town.ca.file();
        let always = ["--cacert", ca.to_str().context("path")?, "--max-time", "60"];
        let url = format!("https://localhost:{}{path}", self.admin.port());
        self.scene.curl(&url, &[&always[..], args].concat())
    }

    fn cookie(&self, local: &str) -> Result<String> {
        Ok(format!(
            "Cookie: a=b; ZM_AUTH_TOKEN={}",
            auth_token(&self.scene.town.person(local)?.id)
        ))
    }

    fn clear(&self, path: &str, args: &[&str]) -> Result<Answer> {
        let port = self.scene.town.endpoints.http.port();
        let resolve = format!("{HOST}:{port}:127.0.0.1");
        self.scene.curl(
            &format!("http://{HOST}:{port}{path}"),
            &[&["--resolve", &resolve], args].concat(),
        )
    }

    /// Host and port as browsers write them.
    fn host(&self) -> String {
        format!("{HOST}:{}", self.scene.town.endpoints.https.port())
    }
}

fn zoe() -> String {
    format!("Cookie: ZM_AUTH_TOKEN={}", auth_token(ZOE))
}

/// HTTP §2.3 and Appendix A: who gets a request, with which path and which Host.
#[test]
fn requests_go_where_the_table_says() -> Result<()> {
    play(
        |_, directory| {
            directory.config("zimbraReverseProxyUpstreamEwsServers", ["store2.example.test"]);
        },
        |carbonio| {
            let (alice, bob, zoe) = (carbonio.cookie("alice")?, carbonio.cookie("bob")?, zoe());
            let basic = format!("Authorization: Basic {}", encode_block(b"bob@a.example:bob-c4n4ry-two"));
            let domain = format!(
                "Authorization: Basic {}",
                encode_block(b"a.example\\bob:bob-c4n4ry-two")
            );
            let lower = format!("Authorization: basic {}", encode_block(b"bob@a.example:bob-c4n4ry-two"));
            let outlook = "User-Agent: Microsoft ExchangeWebServices/15";
            let keep = carbonio.host();
            let keep = keep.as_str();
            // Path, request header, who gets it, the path there, and Host there.
            let rows: Vec<(&str, &str, &str, &str, &str)> = vec![
                ("/services/files/graphql?q=1", &alice, "files", "/graphql?q=1", "files"),
                ("/services/files/link/x", "", "files", "/link/x", "files"),
                ("/services/files/a%20b%2Fc", &alice, "files", "/a%20b%2Fc", "files"),
                ("/services/chats/events", "", "ws-collaboration", "/events", keep),
                (
                    "/services/chats/rooms/1",
                    "",
                    "ws-collaboration",
                    "/rooms/1",
                    "ws-collaboration",
                ),
                (
                    "/services/messaging/ws-xmpp",
                    "",
                    "message-dispatcher-http",
                    "/ws-xmpp",
                    keep,
                ),
                ("/services/docs/x", "", "docs-connector", "/x", "docs-connector"),
                (
                    "/services/docs/logout-x/static/y",
                    "",
                    "docs-connector",
                    "/logout-x/static/y",
                    "docs-connector",
                ),
                (
                    "/services/docs/editor/x",
                    "",
                    "docs-editor",
                    "/services/docs/editor/x",
                    keep,
                ),
                ("/services/tasks/x", "", "tasks", "/x", "tasks"),
                (
                    "/services/storages/x",
                    "",
                    "carbonio-storages",
                    "/x",
                    "carbonio-storages",
                ),
                ("/services/catalog/x", "", "carbonio-catalog", "/x", "carbonio-catalog"),
                (
                    "/services/mobile/tokens",
                    "",
                    "carbonio-notification-push",
                    "/tokens",
                    "carbonio-notification-push",
                ),
                (
                    "/services/certificate-manager/x",
                    "",
                    "carbonio-certificate-manager",
                    "/x",
                    "carbonio-certificate-manager",
                ),
                (
                    "/zx/login/v3/config?domain=x",
                    "",
                    "carbonio-auth",
                    "/zx/login/v3/config?domain=x",
                    keep,
                ),
                (
                    "/zx/auth/supported",
                    &alice,
                    "carbonio-auth",
                    "/zx/auth/supported",
                    keep,
                ),
                ("/zx/ws-x", &zoe, "zx", "/zx/ws-x", keep),
                ("/zx/x/logout", &zoe, "zx", "/zx/x/logout", keep),
                (
                    "/service/extension/drive/a/b",
                    &bob,
                    "store2",
                    "/service/extension/drive/a/b",
                    keep,
                ),
                (
                    "/service/soap/NoOpRequest",
                    &bob,
                    "store2",
                    "/service/soap/NoOpRequest",
                    keep,
                ),
                (
                    "/service/soap/WaitSetRequest",
                    &alice,
                    "store1",
                    "/service/soap/WaitSetRequest",
                    keep,
                ),
                (
                    "/Autodiscover/Autodiscover.xml",
                    &bob,
                    "store2",
                    "/Autodiscover/Autodiscover.xml",
                    keep,
                ),
                ("/autodiscover/x", outlook, "store2", "/autodiscover/x", keep),
                ("/EWS/exchange.asmx", &basic, "store2", "/EWS/exchange.asmx", keep),
                ("/.well-known/caldav", &bob, "store2", "/.well-known/caldav", keep),
                ("/.well-known/carddav", &alice, "store1", "/.well-known/carddav", keep),
                ("/service/upload?x", &bob, "store2", "/service/upload?x", keep),
                ("/shf/x", &bob, "store2", "/shf/x", keep),
                ("/user/x", &bob, "store2", "/user/x", keep),
                ("/modern", &bob, "store2", "/modern", keep),
                ("/service", &bob, "store2", "/service", keep),
                ("/x/../service/%2e/y", &bob, "store2", "/x/../service/%2e/y", keep),
                // Appendix A.
                (
                    "/home/bob@a.example/calendar",
                    "",
                    "store2",
                    "/home/bob@a.example/calendar",
                    keep,
                ),
                ("/home/~bob/inbox", &alice, "store2", "/home/~bob/inbox", keep),
                ("/home/~/?auth=co&id=1", &bob, "store2", "/home/~/?auth=co&id=1", keep),
                ("/home/alice", &bob, "store2", "/home/alice", keep),
                ("/service/home/bob/x", "", "store2", "/service/home/bob/x", keep),
                (
                    "/dav/bob@a.example/Calendar/",
                    &basic,
                    "store2",
                    "/dav/bob@a.example/Calendar/",
                    keep,
                ),
                (
                    "/principals/users/bob@a.example/",
                    &lower,
                    "store2",
                    "/principals/users/bob@a.example/",
                    keep,
                ),
                (
                    "/Microsoft-Server-ActiveSync?User=alice&DeviceId=1",
                    &basic,
                    "store2",
                    "/Microsoft-Server-ActiveSync?User=alice&DeviceId=1",
                    keep,
                ),
            ];
            for (path, header, who, target, host) in rows {
                let args: Vec<&str> = if header.is_empty() { vec![] } else { vec!["-H", header] };
                for version in ["--http1.1", "--http2"] {
                    let answer = carbonio.web(path, &[&[version], &args[..]].concat())?;
                    let echo = answer.echo().with_context(|| format!("{path} {header}"))?;
                    assert_eq!(echo["server"], who, "{path} {header}");
                    assert_eq!(echo["target"], target, "{path} {header}");
                    assert_eq!(seen(&echo, "host"), [host], "{path} {header}");
                    assert_eq!(seen(&echo, "x-forwarded-for"), ["127.0.0.1"], "{path}");
                    assert_eq!(seen(&echo, "x-forwarded-proto"), ["https"], "{path}");
                    let id = seen(&echo, "x-request-id");
                    assert_eq!(answer.header("x-request-id").map(|id| vec![id]), Some(id), "{path}");
                }
            }
            // `DOM\user` is found, though this little server does not know the form.
            let before = carbonio.scene.town.stores[1].web.request_count();
            carbonio.web("/Microsoft-Server-ActiveSync?User=x", &["-H", &domain])?;
            carbonio.web("/Microsoft-Server-ActiveSync?DeviceId=1&User=bob%40a.example", &[])?;
            assert_eq!(carbonio.scene.town.stores[1].web.request_count(), before + 2);
            // Nobody's request goes to a server that takes nobody's requests.
            for _ in 0..4 {
                let echo = carbonio.web("/service/soap/SearchRequest", &[])?.echo()?;
                ensure!(echo["server"] == "store1" || echo["server"] == "store2", "{echo}");
            }
            Ok(())
        },
    )
}

/// HTTP §2.8.
#[test]
fn the_listener_for_administrators() -> Result<()> {
    play(
        |_, _| {},
        |carbonio| {
            let token = format!("Cookie: ZM_ADMIN_AUTH_TOKEN={}", auth_token(ZOE));
            let soap = "/service/admin/soap/GetDomainRequest";
            let echo = carbonio.admin(soap, &["-H", &token])?.echo()?;
            assert_eq!(
                (echo["server"].as_str(), echo["tls"].as_bool()),
                (Some("admin"), Some(true))
            );
            let admin = carbonio._services[GROUPS.len() + 2].https;
            assert_eq!(seen(&echo, "host"), [format!("localhost:{}", admin.port())]);
            // Its server calls itself by the port of the host that it was told.
            let told =
                json!({"status": 302, "headers": [["Location", format!("https://localhost:{}/x", admin.port())]]});
            let moved = carbonio.admin(soap, &["-H", &token, "-H", &format!("X-Answer: {told}")])?;
            let expected = format!("https://localhost:{}/x", carbonio.admin.port());
            assert_eq!(moved.header("location"), Some(expected.as_str()));
            // The web client's token is nobody's here, but the extensions know it.
            let echo = carbonio.admin("/zx/x", &["-H", &zoe()])?.echo()?;
            assert_eq!(echo["server"], "zx");
            let echo = carbonio.admin("/services/storages/x", &[])?.echo()?;
            assert_eq!(
                (&echo["server"], &echo["target"]),
                (&json!("carbonio-storages"), &json!("/x"))
            );
            for (path, header, status, location) in [
                ("/", "A: b", "307", Some("/static/login/")),
                ("/anything", "A: b", "307", Some("/static/login/")),
                ("/anything", token.as_str(), "307", Some("/carbonioAdmin")),
                ("/zx/powerstore/x", token.as_str(), "404", None),
                ("/favicon.ico", "A: b", "404", None),
                ("/logout", token.as_str(), "307", Some("/static/login/")),
            ] {
                let answer = carbonio.admin(path, &["-H", header])?;
                assert_eq!(
                    (answer.status(), answer.header("location")),
                    (status, location),
                    "{path}"
                );
            }
            for (path, text) in [
                ("/carbonioAdmin", "admin shell"),
                ("/carbonioAdmin/x/y", "admin shell"),
                ("/static/login/", "admin login page"),
                ("/login/", "admin login page"),
            ] {
                assert_eq!(carbonio.admin(path, &[])?.text()?, text, "{path}");
            }
            let first = carbonio.admin("/logout", &[])?;
            let cookies: Vec<&str> = first
                .head
                .lines()
                .filter(|l| l.to_ascii_lowercase().starts_with("set-cookie:"))
                .collect();
            assert_eq!(cookies.len(), 8, "{}", first.head);
            ensure!(cookies[0].contains("ZM_ADMIN_AUTH_TOKEN=; Path=/"), "{cookies:?}");
            // And none of it is served on the other listener.
            let refused = carbonio.web(soap, &["-H", &token])?;
            assert_eq!(refused.status(), "404");
            Ok(())
        },
    )
}

/// HTTP §2.2.
#[test]
fn answers_of_our_own() -> Result<()> {
    play(
        |_, _| {},
        |carbonio| {
            let alice = carbonio.cookie("alice")?;
            let robots = carbonio.web("/robots.txt", &[])?;
            assert_eq!(robots.text()?, "User-agent: *\nDisallow: /\n");
            assert_eq!(robots.header("content-type"), Some("text/plain"));
            for (path, header, status, location) in [
                ("/favicon.ico", "A: b", "404", None),
                ("/", "A: b", "307", Some("/static/login/")),
                ("/", "Cookie: XZM_AUTH_TOKEN=1", "307", Some("/static/login/")),
                ("/", &alice, "307", Some("/carbonio/")),
                ("/carbonio/", "A: b", "307", Some("/static/login/")),
                ("/carbonio", "Cookie: ZX_AUTH_TOKEN=1", "307", Some("/static/login/")),
                ("/services/files/x", "A: b", "307", Some("/static/login/")),
                ("/logout", &alice, "307", Some("/static/login/")),
                ("/?loginOp=logout", &alice, "307", Some("/static/login/")),
                ("/zx/powerstore/x", &alice, "404", None),
                ("/zmerror_upstream_502.html", "A: b", "404", None),
                ("/carbonio_error_404.html", "A: b", "404", None),
                ("/static/none", "A: b", "404", None),
                ("/service/soap/%0aX", &alice, "403", None),
                ("/home/~/?x=%0D%0A", &alice, "403", None),
                ("/zx/x%0ay", &alice, "403", None),
                ("/static/../../etc/passwd", "A: b", "400", None),
                ("/static/..%2f..%2fetc/passwd", "A: b", "400", None),
            ] {
                let answer = carbonio.web(path, &["-H", header])?;
                assert_eq!(
                    (answer.status(), answer.header("location")),
                    (status, location),
                    "{path} {header}"
                );
            }
            for (path, header, text, cached) in [
                ("/static/login/", "A: b", "login page", true),
                ("/static/iris/components.json", "A: b", "{}", true),
                ("/.well-known/some.txt", "A: b", "well known", true),
                ("/meeting", "A: b", "meeting", true),
                ("/meeting/room/1", "A: b", "meeting", true),
                ("/meetingXYZ", "A: b", "meeting", true),
                ("/files/public/link/access/assets/x.js", "A: b", "asset", false),
                ("/files/public/link/access/abc/def", "A: b", "public folder", false),
                ("/carbonio/focus-mode/meetings/x", "A: b", "shell", true),
                ("/carbonio/", &alice, "shell", true),
                ("/carbonio/mails/folder/2", &alice, "shell", true),
            ] {
                let answer = carbonio.web(path, &["-H", header])?;
                assert_eq!((answer.status(), answer.text()?.as_str()), ("200", text), "{path}");
                let cache = cached.then_some("no-cache,must-revalidate,no-transform,max-age=604800");
                assert_eq!(answer.header("cache-control"), cache, "{path}");
            }
            let logout = carbonio.web("/logout", &["-H", &alice])?;
            let cookies: Vec<&str> = logout
                .head
                .lines()
                .filter_map(|l| {
                    l.split_once(": ")
                        .filter(|(name, _)| name.eq_ignore_ascii_case("set-cookie"))
                })
                .map(|(_, value)| value.split('=').next().unwrap_or_default())
                .collect();
            let expected = [
                "ZM_AUTH_TOKEN",
                "ZX_AUTH_TOKEN",
                "ZM_ADMIN_AUTH_TOKEN",
                "JSESSIONID",
                "AUTH_TOKEN_TYPE",
                "T",
                "Y",
                "ADMIN_AUTH_KEY",
            ];
            assert_eq!(cookies, expected, "{}", logout.head);
            let part = "Expires=Thu, 01-Jan-1970 00:00:00 GMT; Max-Age=0; HttpOnly; Secure; SameSite=Strict";
            assert_eq!(logout.head.matches(part).count(), 8, "{}", logout.head);
            let status = carbonio.web("/nginx_status", &[])?.text()?;
            ensure!(status.starts_with("Active connections: "), "{status}");
            let foreign = carbonio.web("/nginx_status", &["--interface", "127.0.0.1", "--http1.1"])?;
            assert_eq!(foreign.status(), "200");
            Ok(())
        },
    )
}

/// A domain's own pages for logging in and out, and its headers, on every kind of answer (HTTP §6.3, §12.2 no. 38).
#[test]
fn domains_have_their_own_pages_and_headers() -> Result<()> {
    play(
        |_, directory| {
            let domain = directory.domain("a.example");
            domain.insert("carbonioWebUILoginURL".into(), "https://sso.a.example/login".into());
            domain.insert("carbonioWebUILogoutURL".into(), "https://sso.a.example/bye".into());
            domain.insert(
                "zimbraReverseProxyResponseHeaders".into(),
                [
                    "Strict-Transport-Security: max-age=99",
                    "X-Frame-Options: sameorigin",
                    "X-Own: \"yes\"",
                ]
                .into(),
            );
            domain.insert(
                "carbonioReverseProxyResponseCSPHeader".into(),
                "default-src 'self'; connect-src 'self'".into(),
            );
        },
        |carbonio| {
            let alice = carbonio.cookie("alice")?;
            let login = carbonio.web("/carbonio/", &[])?;
            assert_eq!(login.header("location"), Some("https://sso.a.example/login"));
            let logout = carbonio.web("/logout", &["-H", &alice])?;
            assert_eq!((logout.status(), logout.header("location")), ("200", None));
            assert_eq!(
                (logout.text()?.as_str(), logout.head.matches("Max-Age=0").count()),
                ("", 8)
            );
            // Literally this page, whatever the domain says (HTTP §2.3, P1).
            assert_eq!(
                carbonio.web("/services/files/x", &[])?.header("location"),
                Some("/static/login/")
            );
            let policy = "default-src 'self'; connect-src 'self' https://sso.a.example";
            let own = json!({"status": 200, "headers": [["X-Frame-Options", "DENY"], ["Content-Security-Policy", "sandbox"]]});
            let own = format!("X-Answer: {own}");
            for (path, header, frame, csp) in [
                ("/carbonio/", alice.as_str(), "sameorigin", policy),
                ("/logout", &alice, "sameorigin", policy),
                ("/robots.txt", "A: b", "sameorigin", policy),
                ("/zx/powerstore/", "A: b", "sameorigin", policy),
                ("/static/none", "A: b", "sameorigin", policy),
                ("/service/soap/x", &alice, "sameorigin", policy),
                ("/service/soap/x", &own, "DENY", "sandbox"),
            ] {
                let answer = carbonio.web(path, &["-H", header])?;
                let head = answer.head.to_ascii_lowercase();
                assert_eq!(answer.header("strict-transport-security"), Some("max-age=99"), "{path}");
                assert_eq!(answer.header("x-own"), Some("yes"), "{path}");
                assert_eq!(answer.header("x-frame-options"), Some(frame), "{path}");
                assert_eq!(answer.header("content-security-policy"), Some(csp), "{path}");
                for name in [
                    "x-frame-options:",
                    "content-security-policy:",
                    "strict-transport-security:",
                ] {
                    assert_eq!(head.matches(name).count(), 1, "{path} {head}");
                }
            }
            Ok(())
        },
    )
}

/// Whoever goes to a page gets a page, a program gets what it can read, and a server's own words reach programs.
#[test]
fn errors_are_told_in_the_form_that_is_understood() -> Result<()> {
    play(
        |_, _| {},
        |carbonio| {
            let html = "Accept: text/html,application/xhtml+xml,*/*;q=0.8";
            let alice = carbonio.cookie("alice")?;
            let own = |status: u16| {
                let told =
                    json!({"status": status, "headers": [["Content-Type", "application/json"]], "body": "{\"own\":1}"});
                format!("X-Answer: {told}")
            };
            for status in [404_u16, 502, 503, 504] {
                let told = own(status);
                let program = carbonio.web("/service/home/~/x", &["-H", &alice, "-H", &told])?;
                assert_eq!(
                    (program.status(), program.text()?.as_str()),
                    (status.to_string().as_str(), "{\"own\":1}")
                );
                let script = ["-H", &alice, "-H", &told, "-H", html, "-H", "Sec-Fetch-Mode: cors"];
                assert_eq!(carbonio.web("/service/home/~/x", &script)?.text()?, "{\"own\":1}");
                for version in ["--http1.1", "--http2"] {
                    let person = ["-H", &alice, "-H", &told, "-H", html, version];
                    let page = carbonio.web("/service/home/~/x", &person)?;
                    is_page(&page, status)?;
                }
            }
            is_page(&carbonio.web("/static/none", &["-H", html])?, 404)?;
            let json = carbonio.web("/static/none", &[])?;
            assert_eq!(json.header("content-type"), Some("application/json"));
            assert_eq!(json.echo()?["error"]["status"], 404);
            // The account's server is down: nobody else is asked, and everybody is told so in their own words.
            carbonio.scene.town.stores[0].web.stop();
            let page = carbonio.web("/modern", &["-H", &alice, "-H", html])?;
            is_page(&page, 502)?;
            let soap = carbonio.web("/service/soap/SearchRequest", &["-H", &alice, "-d", "<x/>"])?;
            assert_eq!(soap.status(), "502");
            ensure!(soap.text()?.contains("<soap:Fault>"), "{}", soap.text()?);
            let kind = "Content-Type: application/json";
            let soap = carbonio.web("/service/soap/SearchRequest", &["-H", &alice, "-H", kind, "-d", "{}"])?;
            ensure!(soap.echo()?["Body"]["Fault"]["Code"].is_object(), "{}", soap.text()?);
            let id = soap.header("x-request-id").context("no id")?;
            ensure!(soap.text()?.contains(id), "{}", soap.text()?);
            Ok(())
        },
    )
}

fn is_page(answer: &Answer, status: u16) -> Result<()> {
    let text = answer.text()?;
    ensure!(answer.status() == status.to_string(), "{}", answer.head);
    ensure!(
        answer.header("content-type") == Some("text/html; charset=utf-8"),
        "{}",
        answer.head
    );
    let id = answer.header("x-request-id").context("no id")?;
    ensure!(text.contains("<html lang=\"en\">") && text.contains(id), "{text}");
    Ok(())
}

/// HTTP §2.4, and the server's own name.
#[test]
fn servers_send_browsers_back_to_us() -> Result<()> {
    play(
        |_, _| {},
        |carbonio| {
            let alice = carbonio.cookie("alice")?;
            let store = carbonio.scene.town.stores[0].web.https;
            let host = carbonio.host();
            for (sent, expected) in [
                (format!("http://{HOST}/x?y"), format!("https://{host}/x?y")),
                (format!("http://{host}/x"), format!("https://{host}/x")),
                (
                    format!("https://{HOST}:{}/x", store.port()),
                    format!("https://{host}/x"),
                ),
                (format!("https://{store}/x"), format!("https://{host}/x")),
                (
                    format!("https://store1.example.test:{}/x", store.port()),
                    format!("https://{host}/x"),
                ),
                (
                    "https://other.example/x".to_owned(),
                    "https://other.example/x".to_owned(),
                ),
                ("/x".to_owned(), "/x".to_owned()),
            ] {
                let told = json!({"status": 302, "headers": [["Location", sent]]});
                let answer = carbonio.web("/service/x", &["-H", &alice, "-H", &format!("X-Answer: {told}")])?;
                assert_eq!(answer.header("location"), Some(expected.as_str()), "{sent}");
            }
            Ok(())
        },
    )
}

/// HTTP §1.5, §1.6, §2.6.
#[test]
fn modes() -> Result<()> {
    for mode in ["redirect", "both", "https"] {
        play(
            |node, directory| {
                directory.config("zimbraReverseProxyMailMode", mode);
                node.web.push(("acme_dir".to_owned(), "acme".to_owned()));
            },
            |carbonio| {
                let port = carbonio.scene.town.endpoints.https.port();
                let acme = carbonio.scene.portico.dir().join("acme");
                std::fs::create_dir(&acme)?;
                std::fs::write(acme.join("tok-1_X"), "tok-1_X.thumb")?;
                // A challenge is answered on both ports in every mode, and one that is not here goes on.
                let path = "/.well-known/acme-challenge/tok-1_X";
                for answer in [carbonio.clear(path, &[])?, carbonio.web(path, &[])?] {
                    assert_eq!(
                        (answer.status(), answer.text()?.as_str()),
                        ("200", "tok-1_X.thumb"),
                        "{mode}"
                    );
                }
                let other = carbonio.clear("/.well-known/acme-challenge/other", &[])?;
                let expected = match mode {
                    "redirect" => "302",
                    "both" => "404",
                    _ => "403",
                };
                assert_eq!(other.status(), expected, "{mode}");
                assert_eq!(carbonio.web("/.well-known/some.txt", &[])?.status(), "200");
                let cookie = carbonio.cookie("alice")?;
                let clear = carbonio.clear(
                    "/Some/pa%20th?a=1&b=%2F",
                    &["-H", &cookie, "-H", "Host: MAIL.a.example:80"],
                )?;
                match mode {
                    "redirect" => {
                        assert_eq!(clear.status(), "302");
                        let expected = format!("https://{HOST}:{port}/Some/pa%20th?a=1&b=%2F");
                        assert_eq!(clear.header("location"), Some(expected.as_str()));
                        ensure!(clear.header("x-frame-options").is_some(), "{}", clear.head);
                        // A promise of TLS means nothing in clear text.
                        ensure!(clear.header("strict-transport-security").is_none(), "{}", clear.head);
                        assert_eq!(carbonio.clear("/logout", &["-d", "x"])?.status(), "302");
                    }
                    "both" => {
                        let echo = clear.echo()?;
                        assert_eq!(seen(&echo, "x-forwarded-proto"), ["http"]);
                        let logout = carbonio.clear("/logout", &[])?;
                        assert_eq!((logout.status(), logout.head.matches("Secure").count()), ("307", 0));
                    }
                    _ => assert_eq!(clear.status(), "403"),
                }
                let mut wire = Wire::clear(carbonio.scene.town.endpoints.https)?;
                wire.send(format!("GET / HTTP/1.1\r\nHost: {HOST}\r\n\r\n"))?;
                ensure!(wire.line()?.starts_with("HTTP/1.1 400 "), "clear text on the TLS port");
                let rest = String::from_utf8_lossy(&wire.rest()?).into_owned();
                ensure!(rest.contains("The plain HTTP request was sent to HTTPS port"), "{rest}");
                Ok(())
            },
        )?;
    }
    Ok(())
}

/// Files of locations are followed; one that is bad changes nothing and is named in the log.
#[test]
fn locations_change_while_we_run() -> Result<()> {
    play(
        |_, directory| {
            directory.config("zimbraReverseProxyMailMode", "both");
        },
        |carbonio| {
            let site = carbonio.scene.stage.path().join("opt/site.yaml");
            let before = std::fs::read_to_string(&site)?;
            let put = |text: &str| -> Result<()> {
                let new = site.with_extension("new");
                std::fs::write(&new, text)?;
                Ok(std::fs::rename(new, &site)?)
            };
            let own =
                "locations:\n- {exact: /own, answer: {body: mine}}\n- {prefix: /tasks-too/, group: tasks, path: /}\n";
            put(&before.replace("locations:\n", own))?;
            until("the new location", Duration::from_secs(30), || {
                Ok((carbonio.web("/own", &[])?.text()? == "mine").then_some(()))
            })?;
            assert_eq!(carbonio.web("/tasks-too/x", &[])?.echo()?["server"], "tasks");
            put(&before.replace("locations:\n", "locations:\n- {exact: /own, answer: {bodi: x}}\n"))?;
            let line = before.lines().count();
            let expected = format!("{}:{line}: locations[0].answer.bodi: ", site.display());
            until("the refusal in the log", Duration::from_secs(30), || {
                let log = std::fs::read_to_string(carbonio.scene.portico.dir().join("output.log"))?;
                Ok(log.contains(&expected).then_some(()))
            })?;
            assert_eq!(carbonio.web("/own", &[])?.text()?, "mine");
            Ok(())
        },
    )
}

/// `portico check` refuses a bad file of locations with file, line and key.
#[test]
fn check_names_the_line() -> Result<()> {
    play(
        |_, _| {},
        |carbonio| {
            let dir = carbonio.scene.portico.dir().to_owned();
            let file = dir.join("bad.yaml");
            std::fs::write(
                &file,
                "locations:\n- exact: /a\n  group: nowhere\n- {prefix: b, answer: {}}\n",
            )?;
            let text = std::fs::read_to_string(dir.join("portico.yaml"))?;
            let site = carbonio.scene.stage.path().join("opt/site.yaml");
            std::fs::write(dir.join("other.yaml"), text.replace(&quote(&site), &quote(&file)))?;
            let out = Command::new(portico_tests::portico::binary()?)
                .args(["check", "-c"])
                .arg(dir.join("other.yaml"))
                .output()?;
            let said = format!(
                "{}{}",
                String::from_utf8_lossy(&out.stdout),
                String::from_utf8_lossy(&out.stderr)
            );
            assert_eq!(out.status.code(), Some(1), "{said}");
            for expected in [
                format!("{}:3: locations[0].group: there is no group nowhere", file.display()),
                format!("{}:4: locations[1].prefix: expected a path", file.display()),
            ] {
                ensure!(said.contains(&expected), "{said}");
            }
            Ok(())
        },
    )
}

/// A location's rules for what goes on: limits, headers, hosts, methods.
#[test]
fn rules_of_a_location() -> Result<()> {
    play(
        |node, _| {
            let site = node.web[0].1.clone();
            let own = "locations:\n\
                - {prefix: /small/, group: tasks, max_body: 1k}\n\
                - {prefix: /changed/, group: tasks, host: 'x.{host}', forwarded: false,\n   \
                   set_headers: {X-Set: here}, remove_headers: [x-gone, cookie], answer_headers: {X-Told: too}}\n\
                - {prefix: /inside/, allow: [192.0.2.0/24], answer: {}}\n\
                - {exact: /posted, methods: POST, answer: {body: posted}}\n";
            let file = site.trim_matches('"').replace("site.yaml", "own.yaml");
            std::fs::write(&file, own).expect("the folder is there");
            node.web = vec![("locations".to_owned(), format!("[{}, {site}]", quote(&file)))];
        },
        |carbonio| {
            let body = carbonio.scene.stage.path().join("two-kilobytes");
            std::fs::write(&body, [b'x'; 2048])?;
            let upload = body.to_str().context("path")?;
            for chunked in [&[][..], &["-H", "Transfer-Encoding: chunked"]] {
                let args = [&["-T", upload, "--http1.1", "-H", "Expect:"], chunked].concat();
                assert_eq!(carbonio.web("/small/x", &args)?.status(), "413", "{chunked:?}");
                assert_eq!(carbonio.web("/services/tasks/x", &args)?.status(), "200", "{chunked:?}");
            }
            let args = ["-H", "X-Gone: 1", "-H", "Cookie: a=b", "-H", "X-Kept: 1"];
            let answer = carbonio.web("/changed/x", &args)?;
            let echo = answer.echo()?;
            assert_eq!(seen(&echo, "host"), [format!("x.{HOST}")]);
            assert_eq!((seen(&echo, "x-set"), seen(&echo, "x-kept")), (vec!["here"], vec!["1"]));
            for gone in ["x-gone", "cookie", "x-forwarded-for", "x-forwarded-host"] {
                assert_eq!(seen(&echo, gone), Vec::<&str>::new(), "{gone}");
            }
            assert_eq!(answer.header("x-told"), Some("too"));
            assert_eq!(carbonio.web("/inside/x", &[])?.status(), "403");
            assert_eq!(carbonio.web("/posted", &["-d", "x"])?.text()?, "posted");
            ensure!(carbonio.web("/posted", &[])?.text()? != "posted", "a GET");
            Ok(())
        },
    )
}

/// Who stands in front of us may say which id a request has, and that it came by TLS; nobody else may.
#[test]
fn forwarders_that_are_trusted() -> Result<()> {
    play(
        |node, directory| {
            directory.config("zimbraReverseProxyMailMode", "both");
            node.web
                .push(("trusted_forwarders".to_owned(), "[127.0.0.50]".to_owned()));
        },
        |carbonio| {
            let said = [
                "-H",
                "X-Request-Id: given-by-balancer-1",
                "-H",
                "X-Forwarded-Proto: https",
                "-H",
                "X-Forwarded-For: 198.51.100.7",
            ];
            let trusted = carbonio.clear(
                "/services/tasks/x",
                &[&["--interface", "127.0.0.50"], &said[..]].concat(),
            )?;
            let echo = trusted.echo()?;
            assert_eq!(trusted.header("x-request-id"), Some("given-by-balancer-1"));
            assert_eq!(seen(&echo, "x-request-id"), ["given-by-balancer-1"]);
            assert_eq!(seen(&echo, "x-forwarded-proto"), ["https"]);
            assert_eq!(seen(&echo, "x-forwarded-for"), ["198.51.100.7"]);
            let other = carbonio.clear("/services/tasks/x", &said)?;
            let echo = other.echo()?;
            ensure!(
                other.header("x-request-id") != Some("given-by-balancer-1"),
                "{}",
                other.head
            );
            assert_eq!(seen(&echo, "x-request-id").len(), 1);
            assert_eq!(
                (seen(&echo, "x-forwarded-proto"), seen(&echo, "x-forwarded-for")),
                (vec!["http"], vec!["127.0.0.1"])
            );
            Ok(())
        },
    )
}

/// WebSockets go where the table lets them, with their path, and nowhere else.
#[test]
fn web_sockets_follow_the_table() -> Result<()> {
    play(
        |_, _| {},
        |carbonio| {
            let upgrade = |path: &str, cookie: &str| -> Result<String> {
                let tls = carbonio.scene.town.ca.connector(&["http/1.1"])?;
                let mut wire = Wire::tls(carbonio.scene.town.endpoints.https, &tls, HOST)?;
                wire.send(format!(
                    "GET {path} HTTP/1.1\r\nHost: {HOST}\r\n{cookie}Upgrade: websocket\r\nConnection: Upgrade\r\n\
                     Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
                ))?;
                wire.line()
            };
            let zoe = format!("{}\r\n", zoe());
            for (path, cookie, status) in [
                ("/services/chats/events", "", "101"),
                ("/services/messaging/ws-xmpp", "", "101"),
                ("/services/docs/editor/x", "", "101"),
                ("/zx/ws-x", zoe.as_str(), "101"),
                ("/ws/chat", "", "101"),
                // An ordinary answer: the server is not even asked for a web socket.
                ("/services/tasks/x", "", "200"),
                ("/zx/x", zoe.as_str(), "200"),
                ("/services/files/x", "", "307"),
            ] {
                let line = upgrade(path, cookie)?;
                ensure!(line.starts_with(&format!("HTTP/1.1 {status}")), "{path}: {line}");
            }
            Ok(())
        },
    )
}

/// Pings pass, and a quiet web socket lives for as long as its location says and no longer.
#[test]
fn quiet_web_sockets_end() -> Result<()> {
    play(
        |_, directory| {
            directory.config("zimbraReverseProxyUpstreamPollingTimeout", "3s");
        },
        |carbonio| {
            let tls = carbonio.scene.town.ca.connector(&["http/1.1"])?;
            let mut wire = Wire::tls(carbonio.scene.town.endpoints.https, &tls, HOST)?;
            wire.send(format!(
                "GET /services/chats/events HTTP/1.1\r\nHost: {HOST}\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
                 Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
            ))?;
            ensure!(wire.line()?.starts_with("HTTP/1.1 101"), "no upgrade");
            while !wire.line()?.is_empty() {}
            let ping = [0x89, 0x82, 1, 2, 3, 4, b'h' ^ 1, b'i' ^ 2];
            let begun = Instant::now();
            // Longer than the limit in all, never as long without a word.
            while begun.elapsed() < Duration::from_secs(5) {
                wire.send(ping)?;
                assert_eq!(wire.bytes(4)?, [0x89, 2, b'h', b'i']);
                ensure!(wire.is_silent(Duration::from_millis(500))?, "something came");
            }
            let quiet = Instant::now();
            wire.patience(Duration::from_secs(30))?;
            wire.rest()?;
            let lived = quiet.elapsed();
            ensure!(
                lived > Duration::from_secs(2) && lived < Duration::from_secs(25),
                "{lived:?}"
            );
            Ok(())
        },
    )
}

/// Uploads reach the server as they come: two gigabytes cost neither memory nor disk here.
#[test]
fn huge_uploads_stream() -> Result<()> {
    play(
        |_, _| {},
        |carbonio| {
            // A file without blocks: nothing but its length is on the disk.
            let file = carbonio.scene.stage.path().join("huge");
            std::fs::File::create(&file)?.set_len(HUGE)?;
            let cookie = carbonio.cookie("bob")?;
            carbonio.web("/service/upload", &["-H", &cookie, "-d", "warm"])?;
            let before = carbonio.scene.portico.rss_at_rest_kib()?;
            let begun = Instant::now();
            let file = file.to_str().context("path")?;
            let most = std::sync::atomic::AtomicU64::new(0);
            let done = std::sync::atomic::AtomicBool::new(false);
            let portico = &carbonio.scene.portico;
            let echo: Value = std::thread::scope(|scope| {
                scope.spawn(|| {
                    while !done.load(std::sync::atomic::Ordering::SeqCst) {
                        let now = portico.rss_kib().unwrap_or_default();
                        most.fetch_max(now, std::sync::atomic::Ordering::SeqCst);
                        std::thread::sleep(Duration::from_millis(20));
                    }
                });
                let echo = carbonio
                    .web("/service/upload", &["-H", &cookie, "-T", file, "--http1.1"])
                    .and_then(|a| a.echo());
                done.store(true, std::sync::atomic::Ordering::SeqCst);
                echo
            })?;
            let took = begun.elapsed();
            assert_eq!((&echo["body_bytes"], &echo["server"]), (&json!(HUGE), &json!("store2")));
            let grown = most.into_inner().saturating_sub(before);
            ensure!(grown < FLAT_KIB, "memory has grown by {grown} KiB");
            println!("2 GiB in {took:?}, {grown} KiB more memory");
            Ok(())
        },
    )
}
