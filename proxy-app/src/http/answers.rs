//! Answers of our own: error pages for users, short faults for programs, redirects, logouts, challenges.
//!
//! A browser that goes to a page gets HTML; everything else gets what a program can read: a SOAP fault where SOAP is
//! spoken, JSON elsewhere. An answer says no more of a failure than its status and the id under which the log has it.

use std::path::PathBuf;
use std::time::Duration;

use bytes::Bytes;
use http::header::{ACCEPT, ALLOW, CONTENT_LENGTH, CONTENT_TYPE, EXPECT, TRANSFER_ENCODING};
use http::request::Parts;
use http::{HeaderMap, Method, StatusCode, Version};
use pingora::http::ResponseHeader;
use pingora::{Error, Result};
use pingora_proxy::Session;

/// What our pages may do: display themselves.
const PAGE_POLICY: &str =
    "default-src 'none'; style-src 'unsafe-inline'; base-uri 'none'; form-action 'none'; frame-ancestors 'self'";
/// Methods that are accepted in general: the servers behind us know which of them a page accepts.
const METHODS: &str = "GET, HEAD, POST, PUT, PATCH, DELETE, OPTIONS";
/// Longest file of a challenge; one has some 90 bytes.
const CHALLENGE_MAX: u64 = 16 * 1024;
/// How much of a request is still read before an answer of our own, in bytes, and how long that may take.
const REST: usize = 64 * 1024;
const REST_PATIENCE: Duration = Duration::from_secs(1);
/// Where challenges are asked for (RFC 8555 §8.3).
const CHALLENGES: &str = "/.well-known/acme-challenge/";

/// The form in which a client gets an error.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum ErrorForm {
    /// A page.
    Page,
    /// JSON.
    Json,
    /// A SOAP fault in XML.
    Soap,
    /// A SOAP fault in JSON, as Zimbra's clients speak it.
    SoapJson,
}

impl ErrorForm {
    /// The form that a request wants.
    pub(crate) fn of(request: &Parts) -> Self {
        if is_navigation(request) {
            return Self::Page;
        }
        let path = request.uri.path();
        let soap = ["/service/soap", "/service/admin/soap", "/ews/", "/EWS/"];
        if !soap.iter().any(|start| path.starts_with(start)) {
            return Self::Json;
        }
        match says(&request.headers, CONTENT_TYPE, "json") || says(&request.headers, ACCEPT, "json") {
            true => Self::SoapJson,
            false => Self::Soap,
        }
    }
}

/// A user who goes to a page, as browsers report it: not a script that fetches something.
fn is_navigation(request: &Parts) -> bool {
    let mode = || request.headers.get("sec-fetch-mode").map(|mode| mode.as_bytes());
    matches!(request.method, Method::GET | Method::HEAD)
        && says(&request.headers, ACCEPT, "text/html")
        && matches!(mode(), None | Some(b"navigate"))
        && !request.headers.contains_key("x-requested-with")
}

fn says(headers: &HeaderMap, name: http::HeaderName, word: &str) -> bool {
    let is_word = |part: &[u8]| part.eq_ignore_ascii_case(word.as_bytes());
    let mut lines = headers.get_all(name).iter();
    lines.any(|line| line.as_bytes().windows(word.len()).any(is_word))
}

/// An answer that is ready to be sent.
pub(crate) struct LocalAnswer {
    /// Its head, without the length of the body.
    pub(crate) head: ResponseHeader,
    /// Its body.
    pub(crate) body: Bytes,
}

impl LocalAnswer {
    /// A text of a content type.
    pub(crate) fn text(status: u16, kind: &str, body: impl Into<Bytes>) -> Result<Self> {
        let mut head = ResponseHeader::build(status, Some(16))?;
        head.insert_header(CONTENT_TYPE, kind)?;
        let body = body.into();
        Ok(Self { head, body })
    }

    /// The answer to a request that failed.
    pub(crate) fn error(status: u16, form: ErrorForm, id: &str) -> Result<Self> {
        let (kind, body) = match form {
            ErrorForm::Page => ("text/html; charset=utf-8", error_page(status, id)),
            ErrorForm::Json => ("application/json", error_json(status, id)),
            ErrorForm::Soap => ("application/soap+xml; charset=utf-8", soap_fault(status, id)),
            ErrorForm::SoapJson => ("application/json", soap_fault_json(status, id)),
        };
        let mut answer = Self::text(status, kind, body)?;
        answer.head.insert_header("Cache-Control", "no-store")?;
        if form == ErrorForm::Page {
            answer.head.insert_header("Content-Security-Policy", PAGE_POLICY)?;
        }
        if matches!(status, 502..=504) {
            answer.head.insert_header("Retry-After", "30")?;
        }
        if status == 405 {
            answer.head.insert_header(ALLOW, METHODS)?;
        }
        Ok(answer)
    }

    /// The same, with the seconds after which another try makes sense.
    pub(crate) fn retry_after(mut self, seconds: Option<u64>) -> Result<Self> {
        if let Some(seconds) = seconds {
            self.head.insert_header("Retry-After", seconds.to_string())?;
        }
        Ok(self)
    }

    /// The answer to `OPTIONS *`, which asks about the server and not about one of its pages (RFC 9110 §9.3.7).
    pub(crate) fn options() -> Result<Self> {
        let mut answer = Self::text(200, "text/plain; charset=utf-8", "")?;
        answer.head.insert_header(ALLOW, METHODS)?;
        Ok(answer)
    }

    /// Sends a browser elsewhere. The place stays as it is written: a relative one is right behind every balancer and
    /// port mapping (RFC 9110 §10.2.2).
    pub(crate) fn redirect(status: u16, to: &str) -> Result<Self> {
        let title = reason(status);
        let body = page(title, "<p>This page has moved.</p>");
        let mut answer = Self::text(status, "text/html; charset=utf-8", body)?;
        answer.head.insert_header("Location", to)?;
        answer.head.insert_header("Content-Security-Policy", PAGE_POLICY)?;
        Ok(answer)
    }

    /// Clears cookies (HTTP §2.5) and sends the browser on; without a place it stays where it is.
    pub(crate) fn logout(cookies: &[String], to: Option<&str>, secure: bool) -> Result<Self> {
        let mut answer = match to {
            Some(to) => Self::redirect(307, to)?,
            None => Self::text(200, "text/plain; charset=utf-8", "")?,
        };
        answer.head.insert_header("Cache-Control", "no-store")?;
        let secure = if secure { " Secure;" } else { "" };
        for name in cookies {
            let clear = format!(
                "{name}=; Path=/; Expires=Thu, 01-Jan-1970 00:00:00 GMT; Max-Age=0; HttpOnly;{secure} SameSite=Strict"
            );
            answer.head.append_header("Set-Cookie", clear)?;
        }
        Ok(answer)
    }

    /// Sends it.
    pub(crate) async fn send(mut self, session: &mut Session) -> Result<()> {
        self.head.insert_header("Content-Length", self.body.len().to_string())?;
        let head_only = session.req_header().method == Method::HEAD || self.body.is_empty();
        write_head(session, self.head, head_only).await?;
        if !head_only {
            write_body(session, Some(self.body), true).await?;
        }
        Ok(())
    }
}

/// Sends the head of an answer of our own. If that fails, it is the client that has gone: the engine does not say so.
pub(crate) async fn write_head(session: &mut Session, head: ResponseHeader, end: bool) -> Result<()> {
    let written = session.write_response_header(Box::new(head), end).await;
    written.map_err(Error::into_down)
}

/// The same of a part of its body.
pub(crate) async fn write_body(session: &mut Session, part: Option<Bytes>, end: bool) -> Result<()> {
    let written = session.write_response_body(part, end).await;
    written.map_err(Error::into_down)
}

/// Reads the rest of the client's request, if it is short and comes soon, and lets the connection end behind the
/// answer. For every answer of our own to a request whose body is not read: a client that is cut off in the middle of
/// its request may never look at the answer.
pub(crate) async fn hear_out(session: &mut Session) {
    let request = session.req_header();
    // HTTP/2 needs no header to announce a body. In HTTP/1 a request for another protocol has one without end.
    let announced = request.version == Version::HTTP_2
        || request.headers.contains_key(CONTENT_LENGTH)
        || request.headers.contains_key(TRANSFER_ENCODING);
    let waits_for_us = request.headers.contains_key(EXPECT);
    // What follows a CONNECT is for another server, and has no end.
    if !announced || request.method == Method::CONNECT || session.as_mut().is_body_done() {
        return;
    }
    session.set_keepalive(None);
    if waits_for_us {
        return;
    }
    let read = async {
        let mut left = REST;
        while left > 0 && !session.as_mut().is_body_done() {
            match session.as_mut().read_request_body().await {
                Ok(Some(bytes)) => left = left.saturating_sub(bytes.len()),
                Ok(None) | Err(_) => return,
            }
        }
    };
    let _what_comes_later_is_not_read = tokio::time::timeout(REST_PATIENCE, read).await;
}

/// The token of a challenge of an ACME authority (RFC 8555 §8.3), if this path asks for one.
pub(crate) fn challenged(path: &str) -> Option<&str> {
    let token = path.strip_prefix(CHALLENGES)?;
    is_token(token).then_some(token)
}

/// Whether this is the token of a challenge (RFC 8555 §8.1): base64url, so it cannot lead out of a folder.
pub(crate) fn is_token(token: &str) -> bool {
    let good = |b: u8| b.is_ascii_alphanumeric() || b == b'-' || b == b'_';
    (1..=256).contains(&token.len()) && token.bytes().all(good)
}

/// The answer to a challenge from this file, if it exists.
pub(crate) async fn proof(file: PathBuf) -> Option<Vec<u8>> {
    let read = move || -> Option<Vec<u8>> {
        let known = std::fs::metadata(&file).ok()?;
        (known.is_file() && known.len() <= CHALLENGE_MAX).then(|| std::fs::read(&file).ok())?
    };
    tokio::task::spawn_blocking(read).await.ok()?
}

fn reason(status: u16) -> &'static str {
    let known = StatusCode::from_u16(status).ok();
    known.and_then(|status| status.canonical_reason()).unwrap_or("Error")
}

/// What a user can do about it.
fn advice(status: u16) -> (&'static str, &'static str) {
    match status {
        400 => (
            "This request is not valid",
            "Please check the address, or go back and try again.",
        ),
        403 => ("Access denied", "You cannot open this page, or not from your network."),
        404 => (
            "Page not found",
            "The page may have moved, or the address may be misspelt.",
        ),
        413 => (
            "This is too large",
            "The server does not accept this much data at once.",
        ),
        408 | 504 => (
            "The mail server takes too long",
            "It may be busy. Please try again in a minute.",
        ),
        429 => (
            "Too many failed logins",
            "Please wait a few minutes, and then try again with the right password.",
        ),
        502 => (
            "The mail server does not answer",
            "It may be restarting. Please try again in a minute.",
        ),
        503 => ("The mail service is not ready", "Please try again in a minute."),
        _ => ("Something went wrong", "Please try again in a minute."),
    }
}

fn error_page(status: u16, id: &str) -> String {
    let (title, text) = advice(status);
    let again = match status {
        408 | 429 | 500..=599 => "<a href=\"\">Try again</a>",
        _ => "<a href=\"/\">Go to the start page</a>",
    };
    let content = format!(
        "<p class=\"status\">{status} {reason}</p>\n<h1>{title}</h1>\n<p>{text}</p>\n<p class=\"act\">{again}</p>\n\
         <p class=\"id\">If you ask for help, quote this number:<br><code>{id}</code></p>",
        reason = reason(status),
    );
    page(&format!("{status}: {title}"), &content)
}

/// A page that needs no other file. Titles and contents are ours; ids are letters, digits and hyphens.
fn page(title: &str, content: &str) -> String {
    format!(
        "<!DOCTYPE html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\">\n\
         <meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">\n\
         <meta name=\"robots\" content=\"noindex\">\n<title>{title}</title>\n<style>{STYLE}</style>\n</head>\n\
         <body>\n<main>\n{content}\n</main>\n</body>\n</html>\n"
    )
}

/// Dark on light or light on dark as the reader's system has it, with contrasts above 7 to 1 for text.
const STYLE: &str = "\
:root{color-scheme:light dark;--back:#f3f5f8;--card:#fff;--text:#1c2430;--soft:#4a5566;--edge:#d8dee8;--link:#0b4f9e}\
@media(prefers-color-scheme:dark){:root{--back:#12161c;--card:#1b212a;--text:#edf1f7;--soft:#b4bfce;--edge:#323b48;\
--link:#9cc8ff}}\
*{box-sizing:border-box}\
body{margin:0;min-height:100vh;display:grid;place-items:center;padding:1.5rem;background:var(--back);\
color:var(--text);font:1.0625rem/1.55 system-ui,-apple-system,\"Segoe UI\",Roboto,Ubuntu,Cantarell,sans-serif}\
main{width:100%;max-width:33rem;padding:2.5rem 2.25rem;background:var(--card);border:1px solid var(--edge);\
border-radius:.9rem;border-top:.3rem solid var(--link)}\
h1{margin:.15rem 0 .75rem;font-size:1.6rem;line-height:1.25}\
p{margin:0 0 1.1rem}\
.status{margin:0;color:var(--soft);font-size:.95rem;letter-spacing:.02em}\
.act{margin:1.6rem 0}\
a{color:var(--card);background:var(--link);padding:.6rem 1.1rem;border-radius:.5rem;text-decoration:none;\
font-weight:600}\
a:hover{text-decoration:underline}\
a:focus-visible{outline:.2rem solid var(--text);outline-offset:.2rem}\
.id{margin:2rem 0 0;padding-top:1.1rem;border-top:1px solid var(--edge);color:var(--soft);font-size:.9rem}\
code{font-family:ui-monospace,Menlo,Consolas,monospace;overflow-wrap:anywhere}";

fn error_json(status: u16, id: &str) -> String {
    let error = serde_json::json!({"status": status, "title": reason(status), "request_id": id});
    format!("{}\n", serde_json::json!({"error": error}))
}

/// The code that Zimbra's clients know for a service that does not answer.
const FAULT: &str = "service.PROXY_ERROR";
/// That for one that does so again later: nothing is wrong with the password.
const FAULT_LATER: &str = "service.TEMPORARILY_UNAVAILABLE";

fn fault(status: u16) -> &'static str {
    if status == 429 { FAULT_LATER } else { FAULT }
}

fn soap_fault(status: u16, id: &str) -> String {
    let (reason, fault) = (reason(status), fault(status));
    format!(
        "<soap:Envelope xmlns:soap=\"http://www.w3.org/2003/05/soap-envelope\"><soap:Body><soap:Fault><soap:Code>\
         <soap:Value>soap:Receiver</soap:Value></soap:Code><soap:Reason><soap:Text xml:lang=\"en\">{status} {reason}\
         </soap:Text></soap:Reason><soap:Detail><Error xmlns=\"urn:zimbra\"><Code>{fault}</Code><Trace>{id}</Trace>\
         </Error></soap:Detail></soap:Fault></soap:Body></soap:Envelope>\n"
    )
}

fn soap_fault_json(status: u16, id: &str) -> String {
    let fault = serde_json::json!({
        "Code": {"Value": "soap:Receiver"},
        "Reason": {"Text": format!("{status} {}", reason(status))},
        "Detail": {"Error": {"Code": fault(status), "Trace": id, "_jsns": "urn:zimbra"}},
    });
    format!(
        "{}\n",
        serde_json::json!({"Body": {"Fault": fault}, "_jsns": "urn:zimbraSoap"})
    )
}

/// A whole answer with a short text, for requests that the engine never sees.
pub(crate) fn plain_answer(status: &str, text: &str) -> String {
    format!(
        "HTTP/1.1 {status}\r\nContent-Type: text/plain; charset=utf-8\r\nContent-Length: {}\r\nConnection: close\r\n\r\n{text}\n",
        text.len() + 1
    )
}

#[cfg(test)]
mod tests {
    use http::Request;

    use super::*;

    #[track_caller]
    fn check(method: &str, target: &str, lines: &[(&str, &str)], expected: ErrorForm) {
        let mut request = Request::builder().method(method).uri(target);
        for (name, value) in lines {
            request = request.header(*name, *value);
        }
        let (parts, ()) = request.body(()).unwrap().into_parts();
        assert_eq!(ErrorForm::of(&parts), expected, "{method} {target} {lines:?}");
    }

    #[test]
    fn forms() {
        let html = ("accept", "text/html,application/xhtml+xml,*/*;q=0.8");
        check("GET", "/carbonio/", &[html], ErrorForm::Page);
        check("HEAD", "/carbonio/", &[html], ErrorForm::Page);
        check(
            "GET",
            "/carbonio/",
            &[html, ("sec-fetch-mode", "navigate")],
            ErrorForm::Page,
        );
        check("GET", "/x", &[html, ("sec-fetch-mode", "cors")], ErrorForm::Json);
        check(
            "GET",
            "/x",
            &[html, ("x-requested-with", "XMLHttpRequest")],
            ErrorForm::Json,
        );
        check("POST", "/x", &[html], ErrorForm::Json);
        check("GET", "/x", &[("accept", "*/*")], ErrorForm::Json);
        check("PROPFIND", "/dav/bob/", &[], ErrorForm::Json);
        check("POST", "/service/soap/AuthRequest", &[], ErrorForm::Soap);
        check(
            "POST",
            "/service/soap/AuthRequest",
            &[("content-type", "application/json")],
            ErrorForm::SoapJson,
        );
        check(
            "POST",
            "/service/admin/soap",
            &[("content-type", "text/xml")],
            ErrorForm::Soap,
        );
        check(
            "POST",
            "/ews/Exchange.asmx",
            &[("content-type", "text/xml")],
            ErrorForm::Soap,
        );
    }

    #[test]
    fn programs_can_read_their_errors() {
        let id = "0123456789abcdef";
        let json: serde_json::Value = serde_json::from_str(&error_json(502, id)).unwrap();
        assert_eq!(json["error"]["status"], 502);
        assert_eq!(json["error"]["request_id"], id);
        let fault: serde_json::Value = serde_json::from_str(&soap_fault_json(504, id)).unwrap();
        assert_eq!(fault["Body"]["Fault"]["Detail"]["Error"]["Code"], FAULT);
        assert!(soap_fault_json(429, id).contains(FAULT_LATER) && soap_fault(429, id).contains(FAULT_LATER));
        let xml = soap_fault(503, id);
        let mut reader = quick_xml::Reader::from_str(&xml);
        let mut depth = 0;
        loop {
            match reader.read_event().unwrap() {
                quick_xml::events::Event::Start(_) => depth += 1,
                quick_xml::events::Event::End(_) => depth -= 1,
                quick_xml::events::Event::Eof => break,
                _ => {}
            }
        }
        assert_eq!(depth, 0, "{xml}");
        assert!(xml.contains(id));
    }

    #[test]
    fn pages_need_nothing_else() {
        for status in [400, 403, 404, 413, 429, 500, 502, 503, 504] {
            let page = error_page(status, "abc-1");
            assert!(page.contains("abc-1") && page.contains("<html lang=\"en\">") && page.contains("<h1>"));
            assert!(
                !page.contains("src=") && !page.contains("http:") && !page.contains("https:"),
                "{page}"
            );
        }
    }

    #[test]
    fn logouts_clear_every_cookie() {
        let cookies = ["ZM_AUTH_TOKEN".to_owned(), "T".to_owned()];
        let answer = LocalAnswer::logout(&cookies, Some("/static/login/"), true).unwrap();
        let set: Vec<_> = answer.head.headers.get_all("set-cookie").iter().collect();
        assert_eq!(
            set,
            [
                "ZM_AUTH_TOKEN=; Path=/; Expires=Thu, 01-Jan-1970 00:00:00 GMT; Max-Age=0; HttpOnly; Secure; SameSite=Strict",
                "T=; Path=/; Expires=Thu, 01-Jan-1970 00:00:00 GMT; Max-Age=0; HttpOnly; Secure; SameSite=Strict",
            ]
        );
        assert_eq!(
            (answer.head.status.as_u16(), &answer.head.headers["location"]),
            (307, &"/static/login/".parse().unwrap())
        );
        let clear = LocalAnswer::logout(&cookies, None, false).unwrap();
        assert_eq!((clear.head.status.as_u16(), clear.body.len()), (200, 0));
        assert!(!clear.head.headers["set-cookie"].to_str().unwrap().contains("Secure"));
    }

    #[tokio::test]
    async fn challenges_are_files_of_one_folder() {
        let dir = tempfile::tempdir().unwrap();
        let folder = dir.path().join("acme");
        std::fs::create_dir(&folder).unwrap();
        std::fs::write(folder.join("tok-EN_1"), "tok-EN_1.thumb").unwrap();
        std::fs::write(dir.path().join("secret"), "no").unwrap();
        std::fs::create_dir(folder.join("folder")).unwrap();
        for (path, expected) in [
            ("/.well-known/acme-challenge/tok-EN_1", Some("tok-EN_1.thumb")),
            ("/.well-known/acme-challenge/none", None),
            ("/.well-known/acme-challenge/", None),
            ("/.well-known/acme-challenge/folder", None),
            ("/.well-known/acme-challenge/../secret", None),
            ("/.well-known/acme-challenge/..%2fsecret", None),
            ("/.well-known/other/tok-EN_1", None),
        ] {
            let found = match challenged(path) {
                Some(token) => proof(folder.join(token)).await,
                None => None,
            };
            assert_eq!(found.as_deref(), expected.map(str::as_bytes), "{path}");
        }
    }
}
