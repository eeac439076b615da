//! Forwarders in front that are trusted: what they say of client, scheme, host and port is believed for answers of our
//! own as it is towards servers. What others say is not.

use anyhow::{Result, ensure};
use portico_tests::table::rows;
use portico_tests::town::people;
use portico_tests::wire::Wire;

use crate::scene::{Scene, play_with};
use crate::web::{Answer, HOST, seen};

const TRUSTED: &str = "127.0.0.50";
const HSTS: &str = "max-age=31536000";

fn play(mode: &str, test: impl FnOnce(&mut Scene) -> Result<()>) -> Result<()> {
    play_with(
        people(),
        |_, node, directory| {
            directory.config("zimbraReverseProxyMailMode", mode).config(
                "zimbraReverseProxyResponseHeaders",
                [format!("Strict-Transport-Security: {HSTS}").as_str()],
            );
            node.web.push(("trusted_forwarders".to_owned(), format!("[{TRUSTED}]")));
            Ok(())
        },
        test,
    )
}

/// Asks the clear port from an address, with these headers.
fn ask(scene: &Scene, from: &str, path: &str, headers: &[&str]) -> Result<Answer> {
    let port = scene.town.endpoints.http.port();
    let mut args = vec!["--interface", from];
    if !headers.iter().any(|header| header.starts_with("Host:")) {
        args.extend(["-H", "Host: mail.a.example:8080"]);
    }
    args.extend(headers.iter().flat_map(|header| ["-H", *header]));
    scene.curl(&format!("http://127.0.0.1:{port}{path}"), &args)
}

/// What the server heard: scheme, port, the host in two places.
fn heard(answer: &Answer) -> Result<[String; 4]> {
    let echo = answer.echo()?;
    Ok(["x-forwarded-proto", "x-forwarded-port", "x-forwarded-host", "host"].map(|name| seen(&echo, name).join(", ")))
}

/// What a forwarder says, its fields one behind the other; the scheme, the port and the host that the server hears.
const SAID: &str = r#"
    X-Forwarded-Proto: https                                                                 | https | 8080 | mail.a.example:8080
    X-Forwarded-Proto: https; Host: mail.a.example                                           | https | 443  | mail.a.example
    X-Forwarded-Proto: https; X-Forwarded-Port: 443                                          | https | 443  | mail.a.example:8080
    X-Forwarded-Proto: https; X-Forwarded-Host: mail.b.example                               | https | 443  | mail.b.example
    X-Forwarded-Proto: https; X-Forwarded-Host: mail.b.example; X-Forwarded-Port: 8443       | https | 8443 | mail.b.example:8443
    X-Forwarded-Proto: https; X-Forwarded-Host: mail.b.example:9443                          | https | 9443 | mail.b.example:9443
    X-Forwarded-Proto: https; X-Forwarded-Host: a b/c; X-Forwarded-Port: none                | https | 8080 | mail.a.example:8080
    Forwarded: for=198.51.100.7;proto=https;host="mail.b.example:8443"                       | https | 8443 | mail.b.example:8443
    Forwarded: for=198.51.100.7;proto=http, for=198.51.100.8;proto=https;host=mail.b.example | https | 443  | mail.b.example
"#;

#[test]
fn what_came_by_tls_is_not_sent_to_tls_again() -> Result<()> {
    play("redirect", |scene| {
        for [fields, scheme, port, host] in rows(SAID) {
            let headers: Vec<&str> = fields.split("; ").collect();
            let answer = ask(scene, TRUSTED, "/service/x", &headers)?;
            ensure!(answer.status() == "200", "{fields}: {}", answer.head);
            assert_eq!(heard(&answer)?, [scheme, port, host, host], "{fields}");
            assert_eq!(answer.header("strict-transport-security"), Some(HSTS), "{fields}");
            // The same from a client that is no forwarder is a request in clear text.
            let answer = ask(scene, "127.0.0.51", "/service/x", &headers)?;
            assert_eq!(answer.status(), "302", "{fields}");
            assert_eq!(answer.header("strict-transport-security"), None, "{fields}");
        }
        Ok(())
    })
}

#[test]
fn forwarders_say_where_the_client_is() -> Result<()> {
    play("redirect", |scene| {
        let field = "Forwarded: for=\"[2001:db8::7]:47011\";proto=https";
        let echo = ask(scene, TRUSTED, "/service/x", &[field])?.echo()?;
        assert_eq!(seen(&echo, "x-forwarded-for"), ["2001:db8::7"]);
        redirects_know_the_host(scene)?;
        servers_lead_back(scene)?;
        web_sockets_too(scene)
    })
}

/// A client in clear text is sent to the host that it asked the forwarder for.
fn redirects_know_the_host(scene: &Scene) -> Result<()> {
    let https = scene.town.endpoints.https.port();
    for (headers, host) in [
        (
            &["X-Forwarded-Proto: http", "X-Forwarded-Host: mail.b.example:8080"][..],
            "mail.b.example",
        ),
        (&["X-Forwarded-Host: mail.b.example"], "mail.b.example"),
        (&["Forwarded: proto=http;host=mail.b.example"], "mail.b.example"),
        (&["X-Forwarded-Proto: gopher"], HOST),
        (&["Forwarded: proto=https", "X-Forwarded-For: 198.51.100.7"], HOST),
    ] {
        let answer = ask(scene, TRUSTED, "/x?y", headers)?;
        let expected = format!("https://{host}:{https}/x?y");
        assert_eq!(
            (answer.status(), answer.header("location")),
            ("302", Some(expected.as_str())),
            "{headers:?}"
        );
    }
    Ok(())
}

/// A server that names itself leads back to where the client is.
fn servers_lead_back(scene: &Scene) -> Result<()> {
    let moved = r#"X-Answer: {"status": 302, "headers": [["Location", "http://mail.b.example/x"]]}"#;
    for (said, expected) in [
        (
            &["X-Forwarded-Proto: https", "X-Forwarded-Host: mail.b.example"][..],
            "https://mail.b.example/x",
        ),
        (
            &["Forwarded: proto=https;host=\"mail.b.example:8443\""],
            "https://mail.b.example:8443/x",
        ),
    ] {
        let answer = ask(scene, TRUSTED, "/service/x", &[said, &[moved]].concat())?;
        assert_eq!(answer.header("location"), Some(expected), "{said:?}");
    }
    Ok(())
}

fn web_sockets_too(scene: &Scene) -> Result<()> {
    for (from, status) in [(TRUSTED, "101"), ("127.0.0.51", "302")] {
        let mut wire = Wire::clear_from(from.parse()?, scene.town.endpoints.http)?;
        wire.send(format!(
            "GET /ws/chat HTTP/1.1\r\nHost: {HOST}\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
             X-Forwarded-Proto: https\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
        ))?;
        let line = wire.line()?;
        ensure!(line.starts_with(&format!("HTTP/1.1 {status}")), "{from}: {line}");
    }
    Ok(())
}

/// In clear text a promise of TLS means nothing (RFC 6797 §7.2), from the node or from a server.
#[test]
fn no_promise_of_tls_in_clear_text() -> Result<()> {
    play("both", |scene| {
        let promise = format!(r#"X-Answer: {{"status": 200, "headers": [["Strict-Transport-Security", "{HSTS}"]]}}"#);
        for path in ["/service/x", "/no/such//%2e%2e%2f", "/service/%"] {
            let clear = ask(scene, TRUSTED, path, &[&promise])?;
            assert_eq!(
                clear.header("strict-transport-security"),
                None,
                "{path}: {}",
                clear.head
            );
            let tls = scene.https(path, &["-H", &promise])?;
            assert_eq!(
                tls.header("strict-transport-security"),
                Some(HSTS),
                "{path}: {}",
                tls.head
            );
        }
        Ok(())
    })
}
