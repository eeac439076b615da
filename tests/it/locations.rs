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
use portico_tests::table::rows;
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

/// Plays a test with the usual configuration.
fn play_usual(test: impl FnOnce(&mut Carbonio) -> Result<()>) -> Result<()> {
    play(|_, _| {}, test)
}

/// Plays a test with a changed configuration.
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
        services.extend(zoes_store(stage, &town, &mut directory)?);

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

/// Zoe's mailbox server: its extensions, its web side and its administration side. The extensions are at a fixed port, so
/// it has an address of its own.
fn zoes_store(stage: &Stage, town: &Town, directory: &mut Directory) -> Result<[WebBackend; 3]> {
    let [.., a, b] = std::process::id().to_be_bytes();
    let ip = Ipv4Addr::new(127, 83, a, b);
    let name = "store3.example.test";
    let pair = town.ca.server(&[name, &ip.to_string()])?;
    let at = |port| SocketAddrV4::new(ip, port);
    let extensions = WebBackend::echo("zx", at(8742), at(8743), &pair)?;
    let web = WebBackend::echo("store3", at(stage.port()?), at(stage.port()?), &pair)?;
    let admin = WebBackend::echo("admin", at(stage.port()?), at(stage.port()?), &pair)?;
    let server = directory.server(name);
    for (attribute, value) in [
        ("zimbraServiceHostname", ip.to_string()),
        ("zimbraMailPort", web.http.port().to_string()),
        ("zimbraMailSSLPort", web.https.port().to_string()),
        ("zimbraAdminPort", admin.https.port().to_string()),
        ("zimbraServiceEnabled", "mailbox".to_owned()),
        ("zimbraReverseProxyLookupTarget", "FALSE".to_owned()),
    ] {
        server.insert(attribute.into(), value.into());
    }
    let account = directory.account("zoe@a.example");
    account.insert("zimbraId".into(), ZOE.into());
    account.insert("zimbraMailHost".into(), name.into());
    Ok([extensions, web, admin])
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

    /// The header of a request that says whose it is, by the name that it has in the tables.
    fn header_of(&self, whose: &str) -> Result<String> {
        let bob = encode_block(b"bob@a.example:bob-c4n4ry-two");
        Ok(match whose {
            "" => "A: b".to_owned(),
            "zoe" => zoe(),
            "Basic bob" => format!("Authorization: Basic {bob}"),
            "basic bob" => format!("Authorization: basic {bob}"),
            "outlook" => "User-Agent: Microsoft ExchangeWebServices/15".to_owned(),
            "admin" => format!("Cookie: ZM_ADMIN_AUTH_TOKEN={}", auth_token(ZOE)),
            cookie if cookie.contains('=') => format!("Cookie: {cookie}"),
            name => self.cookie(name)?,
        })
    }

    /// Host and port as browsers write them.
    fn host(&self) -> String {
        format!("{HOST}:{}", self.scene.town.endpoints.https.port())
    }
}

fn zoe() -> String {
    format!("Cookie: ZM_AUTH_TOKEN={}", auth_token(ZOE))
}

/// HTTP §2.3 and Appendix A. The request's path; what says whose it is; the server that gets it; the path and the Host
/// that it sees (`=`: those of the request).
const WAYS: &str = "
    /services/files/graphql?q=1                        | alice     | files                        | /graphql?q=1       | files
    /services/files/link/x                             |           | files                        | /link/x            | files
    /services/files/a%20b%2Fc                          | alice     | files                        | /a%20b%2Fc         | files
    /services/chats/events                             |           | ws-collaboration             | /events            | =
    /services/chats/rooms/1                            |           | ws-collaboration             | /rooms/1           | ws-collaboration
    /services/messaging/ws-xmpp                        |           | message-dispatcher-http      | /ws-xmpp           | =
    /services/docs/x                                   |           | docs-connector               | /x                 | docs-connector
    /services/docs/logout-x/static/y                   |           | docs-connector               | /logout-x/static/y | docs-connector
    /services/docs/editor/x                            |           | docs-editor                  | =                  | =
    /services/tasks/x                                  |           | tasks                        | /x                 | tasks
    /services/storages/x                               |           | carbonio-storages            | /x                 | carbonio-storages
    /services/catalog/x                                |           | carbonio-catalog             | /x                 | carbonio-catalog
    /services/mobile/tokens                            |           | carbonio-notification-push   | /tokens            | carbonio-notification-push
    /services/certificate-manager/x                    |           | carbonio-certificate-manager | /x                 | carbonio-certificate-manager
    /zx/login/v3/config?domain=x                       |           | carbonio-auth                | =                  | =
    /zx/auth/supported                                 | alice     | carbonio-auth                | =                  | =
    /zx/ws-x                                           | zoe       | zx                           | =                  | =
    /zx/x/logout                                       | zoe       | zx                           | =                  | =
    /service/extension/drive/a/b                       | bob       | store2                       | =                  | =
    /service/soap/NoOpRequest                          | bob       | store2                       | =                  | =
    /service/soap/WaitSetRequest                       | alice     | store1                       | =                  | =
    /Autodiscover/Autodiscover.xml                     | bob       | store2                       | =                  | =
    /autodiscover/x                                    | outlook   | store2                       | =                  | =
    /EWS/exchange.asmx                                 | Basic bob | store2                       | =                  | =
    /.well-known/caldav                                | bob       | store2                       | =                  | =
    /.well-known/carddav                               | alice     | store1                       | =                  | =
    /service/upload?x                                  | bob       | store2                       | =                  | =
    /shf/x                                             | bob       | store2                       | =                  | =
    /user/x                                            | bob       | store2                       | =                  | =
    /modern                                            | bob       | store2                       | =                  | =
    /service                                           | bob       | store2                       | =                  | =
    /x/../service/%2e/y                                | bob       | store2                       | =                  | =
    # Appendix A
    /home/bob@a.example/calendar                       |           | store2                       | =                  | =
    /home/~bob/inbox                                   | alice     | store2                       | =                  | =
    /home/~/?auth=co&id=1                              | bob       | store2                       | =                  | =
    /home/alice                                        | bob       | store2                       | =                  | =
    /service/home/bob/x                                |           | store2                       | =                  | =
    /dav/bob@a.example/Calendar/                       | Basic bob | store2                       | =                  | =
    /principals/users/bob@a.example/                   | basic bob | store2                       | =                  | =
    /Microsoft-Server-ActiveSync?User=alice&DeviceId=1 | Basic bob | store2                       | =                  | =
";

#[test]
fn requests_go_where_the_table_says() -> Result<()> {
    play(store2_is_for_ews, |carbonio| {
        for [path, whose, server, target, host] in rows(WAYS) {
            let target = if target == "=" { path } else { target };
            let own_host = carbonio.host();
            let host = if host == "=" { &own_host } else { host };
            let header = carbonio.header_of(whose)?;
            for version in ["--http1.1", "--http2"] {
                let answer = carbonio.web(path, &["-H", &header, version])?;
                let echo = answer.echo().with_context(|| format!("{path} {header}"))?;
                assert_eq!(echo["server"], server, "{path} {header}");
                assert_eq!(echo["target"], target, "{path} {header}");
                assert_eq!(seen(&echo, "host"), [host], "{path} {header}");
                assert_eq!(seen(&echo, "x-forwarded-for"), ["127.0.0.1"], "{path}");
                assert_eq!(seen(&echo, "x-forwarded-proto"), ["https"], "{path}");
                let id = seen(&echo, "x-request-id");
                assert_eq!(answer.header("x-request-id").map(|id| vec![id]), Some(id), "{path}");
            }
        }
        Ok(())
    })
}

/// `DOM\user` is found, though this little server does not know the form.
#[test]
fn names_with_a_domain_in_front_are_found() -> Result<()> {
    play(store2_is_for_ews, |carbonio| {
        let domain = format!(
            "Authorization: Basic {}",
            encode_block(b"a.example\\bob:bob-c4n4ry-two")
        );
        let before = carbonio.scene.town.stores[1].web.request_count();
        carbonio.web("/Microsoft-Server-ActiveSync?User=x", &["-H", &domain])?;
        carbonio.web("/Microsoft-Server-ActiveSync?DeviceId=1&User=bob%40a.example", &[])?;
        assert_eq!(carbonio.scene.town.stores[1].web.request_count(), before + 2);
        Ok(())
    })
}

/// A request without an account goes to no server that takes only its own accounts.
#[test]
fn unauthenticated_requests_go_to_lookup_targets() -> Result<()> {
    play(store2_is_for_ews, |carbonio| {
        for _ in 0..4 {
            let echo = carbonio.web("/service/soap/SearchRequest", &[])?.echo()?;
            ensure!(echo["server"] == "store1" || echo["server"] == "store2", "{echo}");
        }
        Ok(())
    })
}

fn store2_is_for_ews(_: &mut Node, directory: &mut Directory) {
    directory.config("zimbraReverseProxyUpstreamEwsServers", ["store2.example.test"]);
}

/// Path, whose request it is, status and `Location` of the answer.
fn check_answers(ask: impl Fn(&str, &[&str]) -> Result<Answer>, carbonio: &Carbonio, table: &str) -> Result<()> {
    for [path, whose, status, location] in rows(table) {
        let header = carbonio.header_of(whose)?;
        let answer = ask(path, &["-H", &header])?;
        let got = (answer.status(), answer.header("location").unwrap_or_default());
        assert_eq!(got, (status, location), "{path} {header}");
    }
    Ok(())
}

/// What the answer puts into the client's cookies.
fn cookies(answer: &Answer) -> Vec<&str> {
    let fields = answer.head.lines().filter_map(|line| line.split_once(": "));
    let cookies = fields.filter(|(name, _)| name.eq_ignore_ascii_case("set-cookie"));
    cookies.map(|(_, value)| value).collect()
}

/// HTTP §2.8.
#[test]
fn administrators_reach_their_servers() -> Result<()> {
    play_usual(|carbonio| {
        let token = carbonio.header_of("admin")?;
        let echo = carbonio.admin(ADMIN_SOAP, &["-H", &token])?.echo()?;
        assert_eq!((&echo["server"], &echo["tls"]), (&json!("admin"), &json!(true)));
        let admin = carbonio._services[GROUPS.len() + 2].https;
        assert_eq!(seen(&echo, "host"), [format!("localhost:{}", admin.port())]);
        // Its server names itself by the port of the Host that it got.
        let own = format!("https://localhost:{}/x", admin.port());
        let moved = format!("X-Answer: {}", json!({"status": 302, "headers": [["Location", own]]}));
        let moved = carbonio.admin(ADMIN_SOAP, &["-H", &token, "-H", &moved])?;
        let expected = format!("https://localhost:{}/x", carbonio.admin.port());
        assert_eq!(moved.header("location"), Some(expected.as_str()));
        // The web client's token is no administrator's, but the extensions know it.
        let echo = carbonio.admin("/zx/x", &["-H", &zoe()])?.echo()?;
        assert_eq!(echo["server"], "zx");
        let echo = carbonio.admin("/services/storages/x", &[])?.echo()?;
        assert_eq!(
            (&echo["server"], &echo["target"]),
            (&json!("carbonio-storages"), &json!("/x"))
        );
        Ok(())
    })
}

const ADMIN_SOAP: &str = "/service/admin/soap/GetDomainRequest";

/// HTTP §2.8.
#[test]
fn administrators_get_their_own_pages() -> Result<()> {
    play_usual(|carbonio| {
        check_answers(
            |path, args| carbonio.admin(path, args),
            carbonio,
            "/                |       | 307 | /static/login/
             /anything        |       | 307 | /static/login/
             /anything        | admin | 307 | /carbonioAdmin
             /zx/powerstore/x | admin | 404 |
             /favicon.ico     |       | 404 |
             /logout          | admin | 307 | /static/login/",
        )?;
        for (path, text) in [
            ("/carbonioAdmin", "admin shell"),
            ("/carbonioAdmin/x/y", "admin shell"),
            ("/static/login/", "admin login page"),
            ("/login/", "admin login page"),
        ] {
            assert_eq!(carbonio.admin(path, &[])?.text()?, text, "{path}");
        }
        let logout = carbonio.admin("/logout", &[])?;
        let cookies = cookies(&logout);
        assert_eq!(cookies.len(), 8, "{}", logout.head);
        ensure!(cookies[0].contains("ZM_ADMIN_AUTH_TOKEN=; Path=/"), "{cookies:?}");
        // And none of it is served on the other listener.
        let refused = carbonio.web(ADMIN_SOAP, &["-H", &carbonio.header_of("admin")?])?;
        assert_eq!(refused.status(), "404");
        Ok(())
    })
}

/// HTTP §2.2.
#[test]
fn answers_of_our_own() -> Result<()> {
    play_usual(|carbonio| {
        check_answers(
            |path, args| carbonio.web(path, args),
            carbonio,
            "/favicon.ico                 |                  | 404 |
             /                            |                  | 307 | /static/login/
             /                            | XZM_AUTH_TOKEN=1 | 307 | /static/login/
             /                            | alice            | 307 | /carbonio/
             /carbonio/                   |                  | 307 | /static/login/
             /carbonio                    | ZX_AUTH_TOKEN=1  | 307 | /static/login/
             /services/files/x            |                  | 307 | /static/login/
             /logout                      | alice            | 307 | /static/login/
             /?loginOp=logout             | alice            | 307 | /static/login/
             /zx/powerstore/x             | alice            | 404 |
             /zmerror_upstream_502.html   |                  | 404 |
             /carbonio_error_404.html     |                  | 404 |
             /static/none                 |                  | 404 |
             /service/soap/%0aX           | alice            | 403 |
             /home/~/?x=%0D%0A            | alice            | 403 |
             /zx/x%0ay                    | alice            | 403 |
             /static/../../etc/passwd     |                  | 400 |
             /static/..%2f..%2fetc/passwd |                  | 400 |",
        )?;
        let robots = carbonio.web("/robots.txt", &[])?;
        assert_eq!(robots.text()?, "User-agent: *\nDisallow: /\n");
        assert_eq!(robots.header("content-type"), Some("text/plain"));
        let status = carbonio.web("/nginx_status", &[])?.text()?;
        ensure!(status.starts_with("Active connections: "), "{status}");
        let local = carbonio.web("/nginx_status", &["--interface", "127.0.0.1", "--http1.1"])?;
        assert_eq!(local.status(), "200");
        Ok(())
    })
}

/// Path, whose request it is, what the file holds, and whether clients may keep it (HTTP §2.2).
const FILES: &str = "
    /static/login/                          |       | login page    | kept
    /static/iris/components.json            |       | {}            | kept
    /.well-known/some.txt                   |       | well known    | kept
    /meeting                                |       | meeting       | kept
    /meeting/room/1                         |       | meeting       | kept
    /meetingXYZ                             |       | meeting       | kept
    /files/public/link/access/assets/x.js   |       | asset         |
    /files/public/link/access/abc/def       |       | public folder |
    /carbonio/focus-mode/meetings/x         |       | shell         | kept
    /carbonio/                              | alice | shell         | kept
    /carbonio/mails/folder/2                | alice | shell         | kept
";

#[test]
fn files_of_the_web_client_are_served() -> Result<()> {
    play_usual(|carbonio| {
        for [path, whose, text, kept] in rows(FILES) {
            let answer = carbonio.web(path, &["-H", &carbonio.header_of(whose)?])?;
            assert_eq!((answer.status(), answer.text()?.as_str()), ("200", text), "{path}");
            let cache = (kept == "kept").then_some("no-cache,must-revalidate,no-transform,max-age=604800");
            assert_eq!(answer.header("cache-control"), cache, "{path}");
        }
        Ok(())
    })
}

/// HTTP §2.2.
#[test]
fn a_logout_clears_all_cookies() -> Result<()> {
    play_usual(|carbonio| {
        let logout = carbonio.web("/logout", &["-H", &carbonio.cookie("alice")?])?;
        let cookies = cookies(&logout).into_iter();
        let names: Vec<&str> = cookies.filter_map(|cookie| cookie.split('=').next()).collect();
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
        assert_eq!(names, expected, "{}", logout.head);
        let part = "Expires=Thu, 01-Jan-1970 00:00:00 GMT; Max-Age=0; HttpOnly; Secure; SameSite=Strict";
        assert_eq!(logout.head.matches(part).count(), 8, "{}", logout.head);
        Ok(())
    })
}

fn own_pages_and_headers(_: &mut Node, directory: &mut Directory) {
    let domain = directory.domain("a.example");
    domain.insert("carbonioWebUILoginURL".into(), "https://sso.a.example/login".into());
    domain.insert("carbonioWebUILogoutURL".into(), "https://sso.a.example/bye".into());
    let headers = [
        "Strict-Transport-Security: max-age=99",
        "X-Frame-Options: sameorigin",
        "X-Own: \"yes\"",
    ];
    domain.insert("zimbraReverseProxyResponseHeaders".into(), headers.into());
    domain.insert(
        "carbonioReverseProxyResponseCSPHeader".into(),
        "default-src 'self'; connect-src 'self'".into(),
    );
}

/// A domain's own pages for logging in and out (HTTP §6.3).
#[test]
fn domains_have_their_own_pages() -> Result<()> {
    play(own_pages_and_headers, |carbonio| {
        let login = carbonio.web("/carbonio/", &[])?;
        assert_eq!(login.header("location"), Some("https://sso.a.example/login"));
        let logout = carbonio.web("/logout", &["-H", &carbonio.cookie("alice")?])?;
        assert_eq!((logout.status(), logout.header("location")), ("200", None));
        let expired = logout.head.matches("Max-Age=0").count();
        assert_eq!((logout.text()?.as_str(), expired), ("", 8));
        // Literally this page, whatever the domain says (HTTP §2.3, P1).
        let refused = carbonio.web("/services/files/x", &[])?;
        assert_eq!(refused.header("location"), Some("/static/login/"));
        Ok(())
    })
}

/// A domain's own headers stand once on every kind of answer (HTTP §12.2 no. 38).
#[test]
fn domains_have_their_own_headers() -> Result<()> {
    play(own_pages_and_headers, |carbonio| {
        let alice = carbonio.cookie("alice")?;
        let policy = "default-src 'self'; connect-src 'self' https://sso.a.example";
        let own =
            json!({"status": 200, "headers": [["X-Frame-Options", "DENY"], ["Content-Security-Policy", "sandbox"]]});
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
            for version in ["--http1.1", "--http2"] {
                let answer = carbonio.web(path, &["-H", header, version])?;
                let head = answer.head.to_ascii_lowercase();
                assert_eq!(answer.header("x-own"), Some("yes"), "{version} {path}");
                for (name, value) in [
                    ("strict-transport-security", "max-age=99"),
                    ("x-frame-options", frame),
                    ("content-security-policy", csp),
                ] {
                    assert_eq!(answer.header(name), Some(value), "{version} {path}");
                    assert_eq!(head.matches(&format!("{name}:")).count(), 1, "{path} {head}");
                }
                assert_eq!(head.matches("x-request-id:").count(), 1, "{path} {head}");
            }
        }
        Ok(())
    })
}

/// A browser gets a page, a program gets what it can read, and a server's own words reach programs.
#[test]
fn errors_have_the_form_that_the_client_understands() -> Result<()> {
    play_usual(|carbonio| {
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
        // The account's server is down: no other is asked, and each client hears so in its own form.
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
    })
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
    play_usual(|carbonio| {
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
    })
}

/// Plays a test in this mode, with a challenge to answer.
fn play_in_mode(mode: &str, test: impl FnOnce(&mut Carbonio) -> Result<()>) -> Result<()> {
    let change = |node: &mut Node, directory: &mut Directory| {
        directory.config("zimbraReverseProxyMailMode", mode);
        node.web.push(("acme_dir".to_owned(), "acme".to_owned()));
    };
    play(change, |carbonio| {
        let acme = carbonio.scene.portico.dir().join("acme");
        std::fs::create_dir(&acme)?;
        std::fs::write(acme.join("tok-1_X"), "tok-1_X.thumb")?;
        test(carbonio)
    })
}

/// What holds in every mode (HTTP §1.6, §2.6): a challenge is answered on both ports, and one that is not here goes on.
fn check_every_mode(carbonio: &Carbonio, other_in_clear: &str) -> Result<()> {
    let path = "/.well-known/acme-challenge/tok-1_X";
    for answer in [carbonio.clear(path, &[])?, carbonio.web(path, &[])?] {
        assert_eq!((answer.status(), answer.text()?.as_str()), ("200", "tok-1_X.thumb"));
    }
    let other = carbonio.clear("/.well-known/acme-challenge/other", &[])?;
    assert_eq!(other.status(), other_in_clear);
    assert_eq!(carbonio.web("/.well-known/some.txt", &[])?.status(), "200");

    let mut wire = Wire::clear(carbonio.scene.town.endpoints.https)?;
    wire.send(format!("GET / HTTP/1.1\r\nHost: {HOST}\r\n\r\n"))?;
    ensure!(wire.line()?.starts_with("HTTP/1.1 400 "), "clear text on the TLS port");
    let rest = String::from_utf8_lossy(&wire.rest()?).into_owned();
    ensure!(rest.contains("The plain HTTP request was sent to HTTPS port"), "{rest}");
    Ok(())
}

/// Alice's request to the clear port.
fn ask_in_clear(carbonio: &Carbonio) -> Result<Answer> {
    let cookie = carbonio.cookie("alice")?;
    carbonio.clear(
        "/Some/pa%20th?a=1&b=%2F",
        &["-H", &cookie, "-H", "Host: MAIL.a.example:80"],
    )
}

/// HTTP §1.5.
#[test]
fn the_mode_redirect_sends_clients_to_tls() -> Result<()> {
    play_in_mode("redirect", |carbonio| {
        check_every_mode(carbonio, "302")?;
        let clear = ask_in_clear(carbonio)?;
        assert_eq!(clear.status(), "302");
        let expected = format!("https://{}/Some/pa%20th?a=1&b=%2F", carbonio.host());
        assert_eq!(clear.header("location"), Some(expected.as_str()));
        ensure!(clear.header("x-frame-options").is_some(), "{}", clear.head);
        // A promise of TLS means nothing in clear text.
        ensure!(clear.header("strict-transport-security").is_none(), "{}", clear.head);
        assert_eq!(carbonio.clear("/logout", &["-d", "x"])?.status(), "302");
        Ok(())
    })
}

/// HTTP §1.5.
#[test]
fn the_mode_both_serves_in_clear_text() -> Result<()> {
    play_in_mode("both", |carbonio| {
        check_every_mode(carbonio, "404")?;
        let echo = ask_in_clear(carbonio)?.echo()?;
        assert_eq!(seen(&echo, "x-forwarded-proto"), ["http"]);
        let logout = carbonio.clear("/logout", &[])?;
        assert_eq!((logout.status(), logout.head.matches("Secure").count()), ("307", 0));
        Ok(())
    })
}

/// HTTP §1.5.
#[test]
fn the_mode_https_refuses_clear_text() -> Result<()> {
    play_in_mode("https", |carbonio| {
        check_every_mode(carbonio, "403")?;
        assert_eq!(ask_in_clear(carbonio)?.status(), "403");
        Ok(())
    })
}

/// Files of locations are followed; one that is bad changes nothing and is named in the log.
#[test]
fn locations_change_in_a_running_node() -> Result<()> {
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
    play_usual(|carbonio| {
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
    })
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

/// Who stands in front of us may say which id a request has, and that it came by TLS; no other client may.
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
    play_usual(|carbonio| {
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
    })
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
    play_usual(|carbonio| {
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
    })
}
