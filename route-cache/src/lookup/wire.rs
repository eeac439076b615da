//! The text of the lookup protocols, as their client sees it: a question becomes a request, a response an answer.
//! Pure functions; no socket, no time.
//!
//! Only as much HTTP/1.1 as a lookup needs, and strict: a response that can be read in two ways is not read.

use std::net::IpAddr;

use super::{Dialect, HandlerUrl};
use crate::host_port::{bracketed, without_zone};
use crate::percent::{escape, unescape};
use crate::protocol::Protocol;
use crate::route::Service;

/// Longest head of a response. The proxies that are replaced take 1 KiB, nginx 4 KiB.
pub const MAX_HEAD: usize = 16 * 1024;
/// Longest body that is read to its end, to use the connection again.
pub const MAX_BODY: usize = 16 * 1024;
/// Most header fields.
const MAX_FIELDS: usize = 100;

/// Stands where the protocols want a password. The real one is for the mailbox server alone.
pub(super) const PLACEHOLDER: &str = "_password_";

/// What is asked.
pub(crate) struct Question<'a> {
    pub(crate) by_id: bool,
    /// A name or an id.
    pub(crate) user: &'a str,
    pub(crate) protocol: Protocol,
    pub(crate) client: IpAddr,
    pub(crate) local: IpAddr,
    /// The host that a web client asked for.
    pub(crate) host: Option<&'a str>,
}

/// The bytes are no HTTP response that we read.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("its answer is not understood: {0}")]
pub struct Malformed(&'static str);

/// Why a body is not read.
pub(super) const NO_LENGTH: Malformed = Malformed("its body has no length that is certain, or is too long");
/// The same of one in chunks.
const BAD_CHUNKS: Malformed = Malformed("its body is in chunks that are not understood, or is too long");

/// Bytes of a body in chunks, with what is between them: four times that of the longest body. Chunks of a few bytes are
/// no answer.
pub const MAX_CHUNKED: usize = 4 * MAX_BODY;
/// Bytes of a line between chunks: a number, and an extension that nobody uses.
const MAX_CHUNK_LINE: usize = 256;

/// The head of a response.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Response {
    /// Status code.
    pub status: u16,
    /// Header fields; names in lower case.
    pub fields: Vec<(String, String)>,
    /// Length of the head in bytes.
    pub head: usize,
    /// Length of the body, if the connection can be used again after it.
    pub body: Option<usize>,
    /// Whether the connection can be used again after a body in chunks.
    pub(super) keeps_chunked: bool,
    /// The body, where it was wanted.
    pub content: Vec<u8>,
}

/// What a service says of an account.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ServiceAnswer {
    /// It lives there.
    Route {
        /// Address, or name of a server.
        server: String,
        /// TCP port.
        port: u16,
        /// Name to log in with.
        user: Option<String>,
        /// Whether the name that was asked for may be kept as another name of it.
        alias: bool,
    },
    /// There is no such account.
    Nobody,
    /// Not from this client address.
    NotAllowed,
    /// It exists, but there is no way to it.
    NoRoute(String),
    /// The service could not find out.
    CannotTell(String),
}

impl Question<'_> {
    /// The request, header fields in the order of MAIL §1.3 and §1.11.
    pub(crate) fn request(&self, dialect: Dialect, url: &HandlerUrl) -> Vec<u8> {
        let mut head = Head::get(url);
        let mut add = |name: &str, value: &str| head.add(name, value);
        add("Auth-Method", self.method(dialect));
        add("Auth-User", &escape(self.user));
        add("Auth-Pass", PLACEHOLDER);
        add("Auth-Protocol", self.protocol_word(dialect));
        add("Auth-Login-Attempt", if self.protocol.is_mail() { "1" } else { "0" });
        if dialect == Dialect::Zimbra {
            add("X-Proxy-IP", &self.local.to_canonical().to_string());
        }
        add("Client-IP", &self.client.to_canonical().to_string());
        if dialect == Dialect::Zimbra && self.protocol.service() == Service::Admin {
            add("Auth-Zimbra-Admin", "True");
        }
        let host = self
            .host
            .filter(|host| dialect == Dialect::Zimbra && !self.protocol.is_mail() && is_host(host));
        if let Some(host) = host {
            add("X-Proxy-Host", host);
        }
        let mut text = head.into_text();
        text.push_str("\r\n");
        text.into_bytes()
    }

    fn method(&self, dialect: Dialect) -> &'static str {
        match (dialect, self.by_id) {
            (Dialect::Nginx, _) => "plain",
            (Dialect::Zimbra, true) => "zimbraId",
            (Dialect::Zimbra, false) => "username",
        }
    }

    /// nginx's protocol has one word for a protocol with and without TLS, and none for the web.
    fn protocol_word(&self, dialect: Dialect) -> &'static str {
        match (dialect, self.protocol.service()) {
            (Dialect::Zimbra, _) => self.protocol.name(),
            (Dialect::Nginx, Service::Pop3) => "pop3",
            (Dialect::Nginx, Service::Imap | Service::Web | Service::Admin) => "imap",
        }
    }
}

/// The head of a request, as far as it is written.
pub(super) struct Head(String);

impl Head {
    /// A request for this URL.
    pub(super) fn get(url: &HandlerUrl) -> Self {
        let host = bracketed(without_zone(&url.host));
        Self(format!("GET {} HTTP/1.1\r\nHost: {host}\r\n", url.path))
    }

    /// One more field; its value is one line.
    pub(super) fn add(&mut self, name: &str, value: &str) {
        self.0.push_str(&format!("{name}: {value}\r\n"));
    }

    /// All fields so far, without the empty line.
    pub(super) fn into_text(self) -> String {
        self.0
    }
}

/// What may stand in a header field without being escaped.
pub(super) fn is_host(host: &str) -> bool {
    !host.is_empty()
        && host
            .bytes()
            .all(|byte| byte.is_ascii_alphanumeric() || b".-:[]_".contains(&byte))
}

/// Reads the head of a response from the beginning of `bytes`; `None` if it is not complete.
///
/// # Errors
/// It is too long, or cannot be read without a doubt.
pub fn response(bytes: &[u8]) -> Result<Option<Response>, Malformed> {
    let seen = &bytes[..bytes.len().min(MAX_HEAD)];
    let Some(end) = seen.windows(4).position(|four| four == b"\r\n\r\n") else {
        return if bytes.len() >= MAX_HEAD {
            Err(Malformed("its head is too long"))
        } else {
            Ok(None)
        };
    };
    let head = std::str::from_utf8(&seen[..end]).map_err(|_| Malformed("it is not in UTF-8"))?;
    let mut lines = head.split("\r\n");
    let (version, status) = status(lines.next().unwrap_or_default()).ok_or(Malformed("the status line"))?;
    let fields = lines
        .map(field)
        .collect::<Option<Vec<_>>>()
        .ok_or(Malformed("a header field"))?;
    if fields.len() > MAX_FIELDS {
        return Err(Malformed("too many header fields"));
    }
    let doubled = |(at, (name, _)): (usize, &(String, String))| {
        let counts = name.starts_with("auth-") || name == "content-length";
        counts && fields[..at].iter().any(|(other, _)| other == name)
    };
    if fields.iter().enumerate().any(doubled) {
        return Err(Malformed("a header field stands there twice"));
    }
    let mut response = Response {
        status,
        fields,
        head: end + 4,
        body: None,
        keeps_chunked: false,
        content: Vec::new(),
    };
    let stays = response.stays_open(version);
    response.body = response.length().filter(|_| stays);
    response.keeps_chunked = response.is_chunked() && stays;
    Ok(Some(response))
}

/// `HTTP/1.x NNN …`: the minor version and the status. There is none below 100 (RFC 9110 §15).
fn status(line: &str) -> Option<(u8, u16)> {
    let rest = line.strip_prefix("HTTP/1.")?;
    let minor = rest.bytes().next().filter(u8::is_ascii_digit)? - b'0';
    let code = rest.get(1..)?.strip_prefix(' ')?.get(..3)?;
    let rest = &rest[5..];
    let digits = code.bytes().all(|byte| byte.is_ascii_digit());
    let ends = rest.is_empty() || rest.starts_with(' ');
    let code = code.parse().ok().filter(|code| digits && ends && *code >= 100)?;
    Some((minor, code))
}

/// `Name: value`, name in lower case. No continued lines, no control characters.
pub(crate) fn field(line: &str) -> Option<(String, String)> {
    let (name, value) = line.split_once(':')?;
    let token = |byte: u8| byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&byte);
    let bad = |c: char| c.is_control() && c != '\t';
    if name.is_empty() || !name.bytes().all(token) || value.contains(bad) {
        return None;
    }
    Some((name.to_ascii_lowercase(), value.trim_matches([' ', '\t']).to_owned()))
}

impl Response {
    /// The value of a field; its name in lower case.
    pub fn field(&self, name: &str) -> Option<&str> {
        self.fields
            .iter()
            .find(|(field, _)| field == name)
            .map(|(_, value)| value.as_str())
    }

    /// Whether the server wants another request.
    fn stays_open(&self, minor: u8) -> bool {
        let connection = self.field("connection").unwrap_or_default().to_ascii_lowercase();
        match minor {
            0 => connection == "keep-alive",
            _ => connection.is_empty() || connection == "keep-alive",
        }
    }

    /// Whether the body is in chunks, and nothing else says where it ends.
    pub(super) fn is_chunked(&self) -> bool {
        let mut codings = self.fields.iter().filter(|(name, _)| name == "transfer-encoding");
        let is_one = codings
            .next()
            .is_some_and(|(_, coding)| coding.eq_ignore_ascii_case("chunked"));
        is_one && codings.next().is_none() && self.field("content-length").is_none()
    }

    /// The length of the body, if it is certain where it ends.
    pub(super) fn length(&self) -> Option<usize> {
        let length = self
            .field("content-length")
            .filter(|text| text.bytes().all(|byte| byte.is_ascii_digit()))?;
        let length = length.parse().ok();
        length.filter(|_| self.field("transfer-encoding").is_none())
    }
}

/// The content of a body in chunks (RFC 9112 §7.1), and where it ends in `bytes`; `None` if it is not complete.
///
/// # Errors
/// It is too long, or cannot be read without a doubt.
pub fn unchunked(bytes: &[u8]) -> Result<Option<(Vec<u8>, usize)>, Malformed> {
    let (mut content, mut at) = (Vec::new(), 0);
    loop {
        let Some(line) = chunk_line(bytes, &mut at)? else {
            return Ok(None);
        };
        let size = chunk_size(line)
            .filter(|size| content.len() + size <= MAX_BODY)
            .ok_or(BAD_CHUNKS)?;
        if size == 0 {
            break;
        }
        let Some(chunk) = bytes.get(at..at + size + 2) else {
            return whole_enough(bytes);
        };
        let chunk = chunk.strip_suffix(b"\r\n").ok_or(BAD_CHUNKS)?;
        content.extend_from_slice(chunk);
        at += size + 2;
    }
    // Fields may follow, and mean nothing to us.
    while let Some(line) = chunk_line(bytes, &mut at)? {
        if line.is_empty() {
            return match at > MAX_CHUNKED {
                true => Err(BAD_CHUNKS),
                false => Ok(Some((content, at))),
            };
        }
    }
    Ok(None)
}

/// The next line of a body in chunks; `None` if its end has not come yet.
fn chunk_line<'a>(bytes: &'a [u8], at: &mut usize) -> Result<Option<&'a [u8]>, Malformed> {
    let rest = &bytes[*at..];
    let seen = &rest[..rest.len().min(MAX_CHUNK_LINE)];
    let Some(end) = seen.windows(2).position(|two| two == b"\r\n") else {
        return match rest.len() >= MAX_CHUNK_LINE {
            true => Err(BAD_CHUNKS),
            false => whole_enough(bytes),
        };
    };
    *at += end + 2;
    Ok(Some(&rest[..end]))
}

/// More may come, as long as it is not too much.
fn whole_enough<T>(bytes: &[u8]) -> Result<Option<T>, Malformed> {
    match bytes.len() >= MAX_CHUNKED {
        true => Err(BAD_CHUNKS),
        false => Ok(None),
    }
}

/// The number at the beginning of a chunk; what follows a semicolon is an extension.
fn chunk_size(line: &[u8]) -> Option<usize> {
    let number = line.split(|byte| *byte == b';').next()?;
    let number = std::str::from_utf8(number).ok()?.trim_end_matches([' ', '\t']);
    let digits = (1..=8).contains(&number.len()) && number.bytes().all(|byte| byte.is_ascii_hexdigit());
    usize::from_str_radix(number, 16).ok().filter(|_| digits)
}

impl ServiceAnswer {
    /// What a response with status 200 says.
    pub(crate) fn read(response: &Response, dialect: Dialect, question: &Question<'_>) -> Self {
        match response.field("auth-status") {
            None => Self::CannotTell("there is no Auth-Status in its answer".to_owned()),
            Some("OK") => Self::route(response).unwrap_or_else(|why| Self::CannotTell(why.to_owned())),
            Some(text) => match dialect {
                Dialect::Zimbra => Self::refused_by_zimbra(text, question.user),
                Dialect::Nginx => Self::refused_by_nginx(text, response),
            },
        }
    }

    fn route(response: &Response) -> Result<Self, &'static str> {
        let server = response.field("auth-server").filter(|server| !server.is_empty());
        let port = response
            .field("auth-port")
            .and_then(|port| port.parse().ok())
            .filter(|port| *port > 0);
        let user = response
            .field("auth-user")
            .map(|user| unescape(user).ok_or("its Auth-User is no name"))
            .transpose()?;
        let alias = response
            .field("auth-cache-alias")
            .is_some_and(|value| value.eq_ignore_ascii_case("true"));
        match (server, port) {
            (Some(server), Some(port)) => Ok(Self::Route {
                server: bare(server).to_owned(),
                port,
                user,
                alias,
            }),
            _ => Err("there is no Auth-Server or Auth-Port in its answer"),
        }
    }

    /// The texts of MAIL §1.8. What is not among them is an exception of the servlet, and says nothing about the
    /// user.
    fn refused_by_zimbra(text: &str, user: &str) -> Self {
        let nobody = [
            "user not found:",
            "account not found:",
            "domain not found for user:",
            "User '",
        ];
        let no_route = ["mailhost not found for user:", "missing port for protocol "];
        let begins = |starts: &[&str]| starts.iter().any(|start| text.starts_with(start));
        let named = text
            .strip_prefix("account ")
            .and_then(|rest| rest.strip_suffix(" not found"));
        if begins(&nobody) || named.is_some_and(|name| name.eq_ignore_ascii_case(user)) {
            return Self::Nobody;
        }
        if text.starts_with("Client-IP ") && text.ends_with(" is not allowed on this domain") {
            return Self::NotAllowed;
        }
        if begins(&no_route) || text.ends_with(" is not admin or delegated admin") {
            return Self::NoRoute(text.to_owned());
        }
        Self::CannotTell(text.to_owned())
    }

    /// Here the text is for the user, so any text is a no; but for `WAIT`, and for what says that it is temporary: a
    /// code of the 400s, or the word itself, as in nginx's own example.
    fn refused_by_nginx(text: &str, response: &Response) -> Self {
        let code = response.field("auth-error-code").unwrap_or_default();
        let temporary = text.to_ascii_lowercase().contains("temporar") || code.starts_with('4');
        match text == "WAIT" || temporary {
            true => Self::CannotTell(text.to_owned()),
            false => Self::Nobody,
        }
    }
}

/// An IPv6 address may come in brackets.
fn bare(host: &str) -> &str {
    host.strip_prefix('[')
        .and_then(|rest| rest.strip_suffix(']'))
        .unwrap_or(host)
}

#[cfg(test)]
mod tests {
    use super::*;

    const URL: &str = "https://10.0.0.11:7072/service/extension/nginx-lookup";

    fn question(user: &str, protocol: Protocol) -> Question<'_> {
        Question {
            by_id: false,
            user,
            protocol,
            client: "203.0.113.7".parse().unwrap(),
            local: "::ffff:192.0.2.10".parse().unwrap(),
            host: Some("mail.example.com"),
        }
    }

    fn text(question: &Question<'_>, dialect: Dialect) -> String {
        let url = HandlerUrl::parse(URL, dialect).unwrap();
        String::from_utf8(question.request(dialect, &url)).unwrap()
    }

    #[test]
    fn a_mail_question_is_that_of_mail_1_4() {
        let expected = "GET /service/extension/nginx-lookup HTTP/1.1\r\nHost: 10.0.0.11\r\nAuth-Method: username\r\n\
            Auth-User: rossi%20b%25@example.com\r\nAuth-Pass: _password_\r\nAuth-Protocol: imapssl\r\n\
            Auth-Login-Attempt: 1\r\nX-Proxy-IP: 192.0.2.10\r\nClient-IP: 203.0.113.7\r\n\r\n";
        let asked = question("rossi b%@example.com", Protocol::tls(Service::Imap));
        assert_eq!(text(&asked, Dialect::Zimbra), expected);
    }

    #[test]
    fn web_questions_name_the_host_and_administrators() {
        let id = "11111111-2222-3333-4444-555555555555";
        let asked = Question {
            by_id: true,
            ..question(id, Protocol::tls(Service::Admin))
        };
        let head = text(&asked, Dialect::Zimbra);
        assert!(
            head.contains("Auth-Method: zimbraId\r\nAuth-User: 11111111-2222"),
            "{head}"
        );
        assert!(
            head.contains("Auth-Protocol: httpssl\r\nAuth-Login-Attempt: 0\r\n"),
            "{head}"
        );
        assert!(
            head.ends_with("Auth-Zimbra-Admin: True\r\nX-Proxy-Host: mail.example.com\r\n\r\n"),
            "{head}"
        );
        let evil = Question {
            host: Some("a\r\nX: y"),
            ..question("a@b", Protocol::tls(Service::Web))
        };
        assert!(!text(&evil, Dialect::Zimbra).contains("X: y"));
    }

    #[test]
    fn nginx_is_asked_in_its_own_words() {
        let expected = "GET /service/extension/nginx-lookup HTTP/1.1\r\nHost: 10.0.0.11\r\nAuth-Method: plain\r\n\
            Auth-User: a@b\r\nAuth-Pass: _password_\r\nAuth-Protocol: pop3\r\nAuth-Login-Attempt: 1\r\n\
            Client-IP: 203.0.113.7\r\n\r\n";
        assert_eq!(
            text(&question("a@b", Protocol::tls(Service::Pop3)), Dialect::Nginx),
            expected
        );
        let web = text(&question("a@b", Protocol::tls(Service::Web)), Dialect::Nginx);
        assert!(
            web.contains("Auth-Protocol: imap\r\n") && !web.contains("X-Proxy"),
            "{web}"
        );
    }

    #[test]
    fn heads_are_read_at_every_cut() {
        let head = b"HTTP/1.1 200 OK\r\nAuth-Status: OK\r\nX-Empty:\r\nContent-Length: 0\r\n\r\n";
        for cut in 0..head.len() {
            assert_eq!(response(&head[..cut]), Ok(None), "{cut}");
        }
        let read = response(&[head, b"more".as_slice()].concat()).unwrap().unwrap();
        assert_eq!((read.status, read.head, read.body), (200, head.len(), Some(0)));
        assert_eq!(
            (read.field("auth-status"), read.field("x-empty")),
            (Some("OK"), Some(""))
        );
    }

    #[test]
    fn a_connection_is_used_again_only_where_the_end_is_certain() {
        for (head, body) in [
            ("HTTP/1.1 200 OK\r\nContent-Length: 7", Some(7)),
            ("HTTP/1.1 503\r\nContent-Length: 7\r\nConnection: Keep-Alive", Some(7)),
            ("HTTP/1.1 200 OK\r\nContent-Length: 7\r\nConnection: close", None),
            ("HTTP/1.0 200 OK\r\nContent-Length: 7", None),
            (
                "HTTP/1.0 200 OK\r\nContent-Length: 7\r\nConnection: keep-alive",
                Some(7),
            ),
            ("HTTP/1.1 200 OK\r\nContent-Length: +7", None),
            (
                "HTTP/1.1 200 OK\r\nContent-Length: 7\r\nTransfer-Encoding: chunked",
                None,
            ),
            ("HTTP/1.1 200 OK", None),
        ] {
            let read = response(format!("{head}\r\n\r\n").as_bytes()).unwrap().unwrap();
            assert_eq!(read.body, body, "{head}");
        }
    }

    #[test]
    fn bodies_in_chunks_are_read_at_every_cut() {
        let check = |body: &str, content: &str| {
            for cut in 0..body.len() {
                assert_eq!(unchunked(&body.as_bytes()[..cut]), Ok(None), "{body:?} {cut}");
            }
            let more = format!("{body}HTTP/1.1");
            let expected = Some((content.as_bytes().to_vec(), body.len()));
            assert_eq!(unchunked(more.as_bytes()), Ok(expected), "{body:?}");
        };
        check("0\r\n\r\n", "");
        check("5\r\nhello\r\n0\r\n\r\n", "hello");
        check(
            "005;a=b\r\nhello\r\nA \r\n, world!!!\r\n0\r\nSum: x\r\n\r\n",
            "hello, world!!!",
        );
        let largest = format!("{MAX_BODY:x}\r\n{}\r\n0\r\n\r\n", "x".repeat(MAX_BODY));
        assert!(unchunked(largest.as_bytes()).unwrap().is_some());
        let long = format!("{:x}\r\n", MAX_BODY + 1);
        let drops = "1\r\nx\r\n".repeat(MAX_BODY);
        let line = "0".repeat(MAX_CHUNK_LINE);
        let fields = format!("0\r\n{}", "a: b\r\n".repeat(MAX_BODY));
        for bad in [
            "\r\n",
            "x\r\n",
            "-1\r\n",
            "+5\r\nhello\r\n",
            " 5\r\n",
            "0x5\r\n",
            "000000005\r\n",
            "5\r\nhello!\r\n",
            "5\r\nhello\n0\r\n",
            &long,
            &drops,
            &line,
            &fields,
            &format!("{fields}\r\n"),
        ] {
            assert!(unchunked(bad.as_bytes()).is_err(), "{:?}", &bad[..bad.len().min(40)]);
        }
    }

    #[test]
    fn where_chunks_end_is_certain_only_if_nothing_else_is_said() {
        for (fields, chunked, keeps) in [
            ("Transfer-Encoding: chunked", true, true),
            ("Transfer-Encoding: Chunked\r\nConnection: close", true, false),
            ("Transfer-Encoding: chunked\r\nContent-Length: 7", false, false),
            ("Transfer-Encoding: gzip, chunked", false, false),
            ("Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked", false, false),
            ("Content-Length: 7", false, false),
        ] {
            let read = response(format!("HTTP/1.1 200 OK\r\n{fields}\r\n\r\n").as_bytes());
            let read = read.unwrap().unwrap();
            assert_eq!((read.is_chunked(), read.keeps_chunked), (chunked, keeps), "{fields}");
        }
    }

    #[test]
    fn what_can_be_read_in_two_ways_is_not_read() {
        let long = format!("HTTP/1.1 200 OK\r\nX: {}", "x".repeat(MAX_HEAD));
        let many = format!("HTTP/1.1 200 OK{}", "\r\nX: y".repeat(MAX_FIELDS + 1));
        for head in [
            "",
            "HTTP/1.1",
            "HTTP/2 200 OK",
            "HTTP/1.1 2000",
            "HTTP/1.1 099",
            "HTTP/1.1 20",
            "HTTP/1.1 +20 OK",
            "HTTP/1.x 200",
            "SSH-2.0-x",
            "HTTP/1.1 200 OK\r\nno colon",
            "HTTP/1.1 200 OK\r\n: x",
            "HTTP/1.1 200 OK\r\nA b: x",
            "HTTP/1.1 200 OK\r\n a: x",
            "HTTP/1.1 200 OK\r\nA: x\n y",
            "HTTP/1.1 200 OK\r\nA: \0",
            "HTTP/1.1 200 é\r\nA : x",
            "HTTP/1.1 200 OK\r\nAuth-Port: 1\r\nauth-port: 2",
            "HTTP/1.1 200 OK\r\nContent-Length: 1\r\nContent-Length: 1",
            &long,
            &many,
        ] {
            assert!(response(format!("{head}\r\n\r\n").as_bytes()).is_err(), "{head:?}");
        }
        assert!(response(b"HTTP/1.1 200 OK\r\nA: \xff\r\n\r\n").is_err());
        assert!(response(&[b'x'; MAX_HEAD]).is_err());
    }

    fn answer(fields: &str, dialect: Dialect) -> ServiceAnswer {
        let head = format!("HTTP/1.1 200 OK\r\n{fields}\r\n\r\n");
        let response = response(head.as_bytes()).unwrap().unwrap();
        ServiceAnswer::read(
            &response,
            dialect,
            &question("foo@example.com", Protocol::tls(Service::Imap)),
        )
    }

    #[test]
    fn routes_are_read() {
        let route = |server: &str, port, user: Option<&str>, alias| ServiceAnswer::Route {
            server: server.to_owned(),
            port,
            user: user.map(str::to_owned),
            alias,
        };
        let full = "Auth-Status: OK\r\nAuth-Server: 10.0.0.11\r\nAuth-Port: 7993\r\nAuth-Cache-Alias: TRUE\r\nAuth-User: a%20b@c";
        let v6 = "Auth-Status: OK\r\nAuth-Server: [fd00::1]\r\nAuth-Port: 143";
        assert_eq!(
            answer(full, Dialect::Zimbra),
            route("10.0.0.11", 7993, Some("a b@c"), true)
        );
        assert_eq!(answer(v6, Dialect::Zimbra), route("fd00::1", 143, None, false));
        for broken in [
            "Auth-Status: OK\r\nAuth-Server: 10.0.0.11",
            "Auth-Status: OK\r\nAuth-Server:\r\nAuth-Port: 143",
            "Auth-Status: OK\r\nAuth-Server: a\r\nAuth-Port: 0",
            "Auth-Status: OK\r\nAuth-Server: a\r\nAuth-Port: 65536",
            "Auth-Status: OK\r\nAuth-Server: a\r\nAuth-Port: 1\r\nAuth-User: a%0D%0Ab",
            "X: y",
        ] {
            assert!(
                matches!(answer(broken, Dialect::Zimbra), ServiceAnswer::CannotTell(_)),
                "{broken}"
            );
        }
    }

    #[test]
    fn nobody_and_cannot_tell_are_told_apart() {
        for (text, kind) in [
            ("user not found:foo@example.com", "nobody"),
            ("account not found: foo@example.com", "nobody"),
            ("account foo@example.com not found", "nobody"),
            ("domain not found for user:foo@example.com", "nobody"),
            (
                "User 'foo@example.com' not found. No external route info on domain 'example.com' but 'x=TRUE'",
                "nobody",
            ),
            ("Client-IP 203.0.113.7 is not allowed on this domain", "not allowed"),
            ("mailhost not found for user: foo@example.com", "no route"),
            ("missing port for protocol imapssl on server s", "no route"),
            ("foo@example.com is not admin or delegated admin", "no route"),
            ("unable to search LDAP", "cannot tell"),
            ("query returned empty result: (x=y)", "cannot tell"),
            ("empty attribute: zimbraReverseProxyMailHostQuery", "cannot tell"),
            ("missing attr in config: x", "cannot tell"),
            ("missing attr in search result: x", "cannot tell"),
            ("missing header field Auth-User", "cannot tell"),
            ("admin account zmnginx not found", "cannot tell"),
            ("X-Proxy-IP 192.0.2.10 is not allowed", "cannot tell"),
            (
                "com.zimbra.common.service.ServiceException: system failure: account x not found",
                "cannot tell",
            ),
            ("java.net.UnknownHostException: store1", "cannot tell"),
            ("", "cannot tell"),
        ] {
            let found = match answer(&format!("Auth-Status: {text}\r\nAuth-Wait: 10"), Dialect::Zimbra) {
                ServiceAnswer::Route { .. } => "route",
                ServiceAnswer::Nobody => "nobody",
                ServiceAnswer::NotAllowed => "not allowed",
                ServiceAnswer::NoRoute(_) => "no route",
                ServiceAnswer::CannotTell(_) => "cannot tell",
            };
            assert_eq!(found, kind, "{text}");
        }
        for (fields, nobody) in [
            ("Auth-Status: Invalid login or password", true),
            (
                "Auth-Status: Invalid login or password\r\nAuth-Error-Code: 535 5.7.8",
                true,
            ),
            ("Auth-Status: Temporary server problem, try again later", false),
            ("Auth-Status: Oops\r\nAuth-Error-Code: 451 4.3.0", false),
            ("Auth-Status: WAIT\r\nAuth-Wait: 3", false),
        ] {
            assert_eq!(
                answer(fields, Dialect::Nginx) == ServiceAnswer::Nobody,
                nobody,
                "{fields}"
            );
        }
    }
}
