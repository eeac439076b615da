//! Files that Portico serves itself, and compression, as a browser sees them.

use std::fs;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use portico_tests::config::quote;
use portico_tests::town::{FRONT, people};
use portico_tests::until;
use portico_tests::web::auth_token;
use portico_tests::wire::Wire;

use crate::scene::{Scene, play_with};

/// A large file of the tree.
const BIG: usize = 200 * 1024 * 1024;
/// How far memory may move while it passes.
const FLAT_KIB: u64 = 32 * 1024;

fn write_tree(root: &Path) -> Result<()> {
    fs::create_dir_all(root.join("abc"))?;
    fs::write(root.join("abc/index.html"), "<p>".repeat(200))?;
    fs::write(root.join("abc/app.js"), "let a = 1;".repeat(100))?;
    fs::write(root.join("abc/app.js.br"), "packed beforehand")?;
    fs::write(root.join("abc/style.css"), "a { b: c }".repeat(100))?;
    fs::write(root.join("abc/.secret"), "secret")?;
    std::os::unix::fs::symlink("abc", root.join("current"))?;
    std::os::unix::fs::symlink("/etc/passwd", root.join("abc/passwd"))?;
    fs::File::create(root.join("abc/big.bin"))?.set_len(BIG as u64)?;
    Ok(())
}

/// Plays with a tree below `/tree/`, and one file for all below `/app/`.
fn play_files(compress: bool, test: impl FnOnce(&mut Scene) -> Result<()>) -> Result<()> {
    play_with(
        people(),
        |town, node, _| {
            let folder = town.locations.parent().context("a folder")?;
            let root = folder.join("tree");
            write_tree(&root)?;
            let more = folder.join("files.yaml");
            let text = format!(
                "locations:\n- {{prefix: /tree/, static: {{root: {0}, cache_control: no-cache}}}}\n\
                 - {{prefix: /app/, static: {{root: {0}, file: current/index.html}}}}\n",
                quote(&root)
            );
            fs::write(&more, text)?;
            node.web = vec![
                (
                    "locations".to_owned(),
                    format!("[{}, {}]", quote(&more), quote(&town.locations)),
                ),
                ("compress_authenticated".to_owned(), compress.to_string()),
            ];
            Ok(())
        },
        test,
    )
}

#[test]
fn files_are_served_by_the_rules() -> Result<()> {
    play_files(false, |scene| {
        for version in ["--http1.1", "--http2"] {
            for (path, args, status, length) in [
                ("/tree/current/app.js", &[][..], "200", 1000),
                ("/tree/abc/", &[], "200", 600),
                ("/tree/abc", &[], "301", 0),
                ("/app/mails/folder/2", &[], "200", 600),
                ("/tree/abc/app.js", &["-H", "Range: bytes=0-9"], "206", 10),
                ("/tree/abc/app.js", &["-H", "Accept-Encoding: br"], "200", 17),
                ("/tree/abc/app.js", &["-X", "POST", "-d", "x"], "405", 0),
            ] {
                let answer = scene.https(path, &[&[version], args].concat())?;
                assert_eq!(answer.status(), status, "{version} {path} {args:?}");
                assert_eq!(
                    fs::read(&answer.body)?.len(),
                    length,
                    "{version} {path} {args:?}: {}",
                    answer.head
                );
            }
            let head = scene.https("/tree/abc/app.js", &[version, "-I"])?;
            assert_eq!((head.status(), head.header("content-length")), ("200", Some("1000")));
            let first = scene.https("/tree/abc/app.js", &[version])?;
            assert_eq!(first.header("cache-control"), Some("no-cache"));
            let tag = format!("If-None-Match: {}", first.header("etag").context("no tag")?);
            assert_eq!(scene.https("/tree/abc/app.js", &[version, "-H", &tag])?.status(), "304");
            assert_eq!(scene.https("/tree/abc", &[version])?.header("location"), Some("./abc/"));
            for path in [
                "/tree/none",
                "/tree/abc/passwd",
                "/tree/abc/.secret",
                "/tree/../locations/town.yaml",
                "/tree/%2e%2e/town.yaml",
                "/tree/..%2ftown.yaml",
                "/tree/%2e%2e%2f%2e%2e%2fetc/passwd",
                "/tree/abc/app.js%00",
            ] {
                let answer = scene.https(path, &[version])?;
                ensure!(
                    matches!(answer.status(), "404" | "400" | "200"),
                    "{version} {path}: {}",
                    answer.head
                );
                let text = answer.text()?;
                ensure!(
                    !text.contains("root:") && !text.contains("groups:"),
                    "{version} {path}: {text}"
                );
                ensure!(!text.contains("secret"), "{version} {path}: {text}");
            }
        }
        Ok(())
    })
}

#[test]
fn a_request_is_read_to_its_end_before_the_answer() -> Result<()> {
    play_files(false, |scene| {
        // Whether an answer crosses with the end of the request is a matter of chance.
        for _ in 0..20 {
            for version in ["--http1.1", "--http2"] {
                for length in ["X: y", "Transfer-Encoding: chunked"] {
                    let answer = scene.https("/tree/abc/app.js", &[version, "-H", length, "-d", "x"])?;
                    assert_eq!(answer.status(), "405", "{version} {length}");
                }
            }
        }
        Ok(())
    })
}

#[test]
fn large_files_take_no_memory() -> Result<()> {
    play_files(false, |scene| {
        scene.https("/tree/abc/app.js", &[])?;
        let before = scene.portico.rss_at_rest_kib()?;
        for version in ["--http1.1", "--http2"] {
            let answer = scene.https("/tree/abc/big.bin", &[version])?;
            assert_eq!(fs::metadata(&answer.body)?.len(), BIG as u64);
        }
        let grown = scene.portico.rss_kib()?.saturating_sub(before);
        ensure!(grown < FLAT_KIB, "memory has grown by {grown} KiB");
        Ok(())
    })
}

/// Anybody can do that as often as he likes: it is no failure of the node, and no line of its log.
#[test]
fn clients_that_go_are_no_failure() -> Result<()> {
    const CLIENTS: usize = 20;
    play_files(false, |scene| {
        let tls = scene.town.ca.connector(&[])?;
        for _ in 0..CLIENTS {
            let mut wire = Wire::tls(scene.town.endpoints.https, &tls, FRONT)?;
            wire.send(format!("GET /tree/abc/big.bin HTTP/1.1\r\nHost: {FRONT}\r\n\r\n"))?;
            ensure!(wire.line()?.ends_with("200 OK"));
            // What it has not read makes this a reset.
        }
        until("all of them to have left", Duration::from_secs(20), || {
            let gone = scene.portico.access_log().matches("/tree/abc/big.bin HTTP").count();
            Ok((gone == CLIENTS).then_some(()))
        })?;
        let output = scene.portico.output();
        ensure!(!output.contains("request "), "{output}");
        Ok(())
    })
}

/// What the server shall answer: a text of this type that shrinks.
fn shrinking_answer(kind: &str, more: &str) -> String {
    let text = "the same again and again; ".repeat(100);
    format!("X-Answer: {{\"status\": 200, \"headers\": [[\"Content-Type\", \"{kind}\"]{more}], \"body\": \"{text}\"}}")
}

const ACCEPT: &str = "Accept-Encoding: gzip, br;q=0.5";

#[test]
fn answers_are_compressed_but_none_with_secrets() -> Result<()> {
    play_files(false, |scene| {
        let cookie = format!("Cookie: ZM_AUTH_TOKEN={}", auth_token(&scene.town.person("bob")?.id));
        for version in ["--http1.1", "--http2"] {
            for (kind, more, header, packed) in [
                ("text/html", "", "X: y", true),
                ("application/json", ", [\"ETag\", \"\\\"tag\\\"\"]", "X: y", true),
                ("image/png", "", "X: y", false),
                ("text/event-stream", "", "X: y", false),
                ("text/html", ", [\"Cache-Control\", \"no-transform\"]", "X: y", false),
                ("text/html", ", [\"Set-Cookie\", \"a=b\"]", "X: y", false),
                ("text/html", "", &cookie, false),
                ("application/json", "", &cookie, false),
                ("text/html", "", "Authorization: Basic eDp5", false),
                ("text/css", "", &cookie, true),
            ] {
                let told = shrinking_answer(kind, more);
                let args = [version, "-H", ACCEPT, "-H", &told, "-H", header];
                let answer = scene.https("/service/x", &args)?;
                let story = format!("{version} {kind} {more} {header}: {}", answer.head);
                assert_eq!(answer.status(), "200", "{story}");
                assert_eq!(answer.header("content-encoding").is_some(), packed, "{story}");
                let length = fs::read(&answer.body)?.len();
                ensure!((length < 1000) == packed, "{length} bytes: {story}");
                if packed {
                    assert_eq!(answer.header("content-encoding"), Some("gzip"), "{story}");
                    ensure!(
                        answer.head.to_ascii_lowercase().contains("vary: accept-encoding"),
                        "{story}"
                    );
                }
                if more.contains("ETag") {
                    assert_eq!(answer.header("etag"), Some("W/\"tag\""), "{story}");
                }
            }
            // curl unpacks what it has asked for.
            let told = shrinking_answer("text/html", "");
            let answer = scene.https("/service/x", &[version, "--compressed", "-H", &told])?;
            assert_eq!(answer.text()?, "the same again and again; ".repeat(100));
            let style = scene.https("/tree/abc/style.css", &[version, "-H", ACCEPT, "-H", &cookie])?;
            assert_eq!(style.header("content-encoding"), Some("gzip"), "{}", style.head);
            let page = scene.https("/tree/abc/style.css", &[version, "--compressed"])?;
            assert_eq!(page.text()?, "a { b: c }".repeat(100));
        }
        Ok(())
    })
}

#[test]
fn the_node_may_say_that_they_are() -> Result<()> {
    play_files(true, |scene| {
        let cookie = format!("Cookie: ZM_AUTH_TOKEN={}", auth_token(&scene.town.person("bob")?.id));
        let told = shrinking_answer("text/html", "");
        let answer = scene.https("/service/x", &["-H", ACCEPT, "-H", &told, "-H", &cookie])?;
        assert_eq!(answer.header("content-encoding"), Some("gzip"), "{}", answer.head);
        Ok(())
    })
}
