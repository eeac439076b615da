//! The other side of Zimbra's lookup protocol: proxies that are not replaced yet ask this node (MAIL §1.3–1.8).
//!
//! Every client that may ask learns which mailboxes exist and where, so the caller admits only chosen networks.
//! Nothing here checks a password: the field for it is not even looked at. Kerberos and certificates are not served.

use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;
use std::time::Duration;

use mail_directory::attributes;
use mail_directory::{System, domain_of, names};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::time::timeout;

use crate::addresses::AddressBook;
use crate::cache::RouteCache;
use crate::key::qualify;
use crate::lookup::BoxStream;
use crate::lookup::wire::MAX_HEAD;
use crate::percent::{escape, unescape};
use crate::protocol::Protocol;
use crate::route::{Lookup, Route, RouteError, Service, Subject};

/// Where the protocol is served.
pub const PATH: &str = "/service/extension/nginx-lookup";

/// How long a connection may take for a request, and may wait for the next one.
const REQUEST: Duration = Duration::from_secs(30);
/// How long a client may take to accept its answer.
const RESPONSE: Duration = Duration::from_secs(10);
/// Requests on one connection. An old proxy sends one; others come back.
const MAX_REQUESTS: usize = 10_000;
/// Bytes read at once.
const READ: usize = 2048;
/// Where the zx services of a mailbox server listen (HTTP §3.5).
const ZX_PORTS: (u16, u16) = (8742, 8743);

/// The head of a request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Request {
    /// Method and target.
    line: (String, String),
    /// Header fields; names in lower case.
    fields: Vec<(String, String)>,
    keep_alive: bool,
    length: usize,
}

/// What a proxy asks.
struct Inquiry {
    lookup: Lookup,
    protocol: Protocol,
    zx: bool,
}

/// The answer to it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HttpResponse {
    /// HTTP status and its text.
    pub status: &'static str,
    /// Header fields.
    pub fields: Vec<(&'static str, String)>,
}

/// Answers the requests of one connection until it ends.
pub async fn serve_lookup(mut stream: BoxStream, routes: &RouteCache, book: &Arc<AddressBook>) {
    let mut heard = Vec::new();
    for _ in 0..MAX_REQUESTS {
        let request = match timeout(REQUEST, next(&mut stream, &mut heard)).await {
            Ok(Ok(Some(request))) => request,
            Ok(Ok(None)) | Err(_) => return,
            Ok(Err(response)) => return finish(&mut stream, &response.encode(false)).await,
        };
        let response = answer(&request, routes, book).await;
        let bytes = response.encode(request.keep_alive);
        if !request.keep_alive {
            return finish(&mut stream, &bytes).await;
        }
        if !sent(&mut stream, &bytes).await {
            return;
        }
    }
}

/// The next request; `None`: the client has gone.
async fn next(stream: &mut BoxStream, heard: &mut Vec<u8>) -> Result<Option<Request>, HttpResponse> {
    loop {
        if let Some(request) = Request::parse(heard)? {
            heard.drain(..request.length);
            return Ok(Some(request));
        }
        heard.reserve(READ);
        match stream.read_buf(heard).await {
            Ok(0) | Err(_) => return Ok(None),
            Ok(_) => {}
        }
    }
}

async fn sent(stream: &mut BoxStream, bytes: &[u8]) -> bool {
    let written = timeout(RESPONSE, async {
        stream.write_all(bytes).await?;
        stream.flush().await
    });
    matches!(written.await, Ok(Ok(())))
}

async fn finish(stream: &mut BoxStream, bytes: &[u8]) {
    if sent(stream, bytes).await {
        let _ = timeout(RESPONSE, stream.shutdown()).await;
    }
}

impl Request {
    /// Reads the head of a request from the beginning of `bytes`; `None` if it is not complete.
    ///
    /// # Errors
    /// It is no request that is served; the response says why.
    pub fn parse(bytes: &[u8]) -> Result<Option<Self>, HttpResponse> {
        let seen = &bytes[..bytes.len().min(MAX_HEAD)];
        let Some(end) = seen.windows(4).position(|four| four == b"\r\n\r\n") else {
            return match bytes.len() >= MAX_HEAD {
                true => Err(HttpResponse::status("431 Request Header Fields Too Large")),
                false => Ok(None),
            };
        };
        let bad = || HttpResponse::status("400 Bad Request");
        let head = std::str::from_utf8(&seen[..end]).map_err(|_| bad())?;
        let (line, rest) = head.split_once("\r\n").unwrap_or((head, ""));
        let mut words = line.split(' ');
        let (Some(method), Some(target), Some(version), None) =
            (words.next(), words.next(), words.next(), words.next())
        else {
            return Err(bad());
        };
        let lines = rest.split("\r\n").filter(|_| !rest.is_empty());
        let fields = lines
            .map(crate::lookup::wire::field)
            .collect::<Option<Vec<_>>>()
            .ok_or_else(bad)?;
        let mut request = Self {
            line: (method.to_owned(), target.to_owned()),
            fields,
            keep_alive: false,
            length: end + 4,
        };
        // A body would have to be told from the next request; no proxy sends one.
        let has_body =
            request.field("transfer-encoding").is_some() || request.field("content-length").is_some_and(|n| n != "0");
        if has_body || !matches!(version, "HTTP/1.0" | "HTTP/1.1") {
            return Err(bad());
        }
        let connection = request.field("connection").unwrap_or_default().to_ascii_lowercase();
        request.keep_alive = match version {
            "HTTP/1.1" => connection != "close",
            _ => connection == "keep-alive",
        };
        Ok(Some(request))
    }

    /// The value of a field; its name in lower case. Of several the first one counts.
    fn field(&self, name: &str) -> Option<&str> {
        self.fields
            .iter()
            .find(|(field, _)| field == name)
            .map(|(_, value)| value.as_str())
    }

    fn required(&self, name: &'static str) -> Result<&str, HttpResponse> {
        let value = self.field(&name.to_ascii_lowercase()).filter(|value| !value.is_empty());
        value.ok_or_else(|| HttpResponse::refusal(format!("missing header field {name}")))
    }

    /// An address, or the unspecified one: without it no list of allowed addresses and no virtual address fits.
    fn address(&self, name: &str) -> IpAddr {
        let address = self.field(name).and_then(|value| value.parse().ok());
        address.unwrap_or(IpAddr::V4(Ipv4Addr::UNSPECIFIED))
    }

    fn inquiry(&self) -> Result<Inquiry, HttpResponse> {
        if self.line.1.split('?').next() != Some(PATH) {
            return Err(HttpResponse::status("404 Not Found"));
        }
        if self.line.0 != "GET" {
            return Err(HttpResponse::status("405 Method Not Allowed"));
        }
        let user = self.required("Auth-User")?;
        let method = self.required("Auth-Method")?;
        let word = self.required("Auth-Protocol")?;
        let unknown = || HttpResponse::refusal(format!("user not found:{user}"));
        let user = unescape(user).ok_or_else(unknown)?;
        let subject = match method {
            "username" => Subject::Login(user),
            "zimbraId" => Subject::Id(user),
            other => return Err(HttpResponse::refusal(format!("unsupported Auth-Method {other}"))),
        };
        let protocol = Protocol::named(word);
        let protocol = protocol.ok_or_else(|| HttpResponse::refusal(format!("missing port for protocol {word}")))?;
        let says = |name: &str| self.field(name).is_some_and(|value| value.eq_ignore_ascii_case("true"));
        let protocol = match says("auth-zimbra-admin") && !protocol.is_mail() {
            true => Protocol::tls(Service::Admin),
            false => protocol,
        };
        let host = self.field("x-proxy-host").map(|host| without_port(host).to_owned());
        Ok(Inquiry {
            lookup: Lookup {
                subject,
                service: protocol.service(),
                client: self.address("client-ip"),
                local: self.address("x-proxy-ip"),
                // Mail proxies know no host; theirs would be one of another kind.
                host: host.filter(|_| !protocol.is_mail()),
            },
            protocol,
            zx: says("auth-zimbra-zx") && protocol.service() == Service::Web,
        })
    }
}

/// `name:443` → `name`.
fn without_port(host: &str) -> &str {
    match host.rsplit_once(':') {
        Some((name, port)) if port.bytes().all(|byte| byte.is_ascii_digit()) => name,
        _ => host,
    }
}

/// The response to a request.
pub async fn answer(request: &Request, routes: &RouteCache, book: &Arc<AddressBook>) -> HttpResponse {
    let wanted = match request.inquiry() {
        Ok(wanted) => wanted,
        Err(response) => return response.with_wait(&routes.system(), routes.node()),
    };
    let system = routes.system();
    let response = match routes.route_by(&wanted.lookup, wanted.protocol, &system).await {
        Ok(route) => match book.resolve(&route.host).await {
            Some(address) => wanted.found(&route, address, &system),
            None => HttpResponse::cannot_tell(format!("java.net.UnknownHostException: {}", route.host)),
        },
        Err(error) => wanted.refused(error),
    };
    response.with_wait(&system, routes.node())
}

impl Inquiry {
    fn found(&self, route: &Route, address: IpAddr, system: &System) -> HttpResponse {
        let port = match (self.zx, self.protocol.name()) {
            (true, "http") => ZX_PORTS.0,
            (true, _) => ZX_PORTS.1,
            (false, _) => route.port,
        };
        let user = self.user(route, system);
        let default = system.global().text(&attributes::DEFAULT_DOMAIN_NAME);
        let alias = default.is_some()
            && domain_of(&user)
                .zip(default)
                .is_some_and(|(a, b)| names::host(a) == names::host(b));
        let fields = vec![
            ("Auth-Status", "OK".to_owned()),
            ("Auth-Server", address.to_string()),
            ("Auth-Port", port.to_string()),
            ("Auth-Cache-Alias", if alias { "TRUE" } else { "FALSE" }.to_owned()),
            ("Auth-User", escape(&user)),
        ];
        HttpResponse {
            status: "200 OK",
            fields,
        }
    }

    /// The name as typed, qualified; an id as it is; or another name where the server wants one (MAIL §1.7 step 8).
    fn user(&self, route: &Route, system: &System) -> String {
        match &self.lookup.subject {
            Subject::Id(id) => id.clone(),
            Subject::Login(_) if route.login != route.account => route.login.to_string(),
            Subject::Login(typed) => qualify(typed, &self.lookup, system).unwrap_or_else(|_| typed.clone()),
        }
    }

    fn refused(&self, error: RouteError) -> HttpResponse {
        let (Subject::Login(user) | Subject::Id(user)) = &self.lookup.subject;
        match error {
            RouteError::UnknownUser => HttpResponse::refusal(format!("user not found:{user}")),
            RouteError::NotAllowed { .. } => HttpResponse::refusal(format!(
                "Client-IP {} is not allowed on this domain",
                self.lookup.client
            )),
            RouteError::NoRoute(why) => HttpResponse::refusal(why),
            RouteError::DirectoryDown(_) => HttpResponse::cannot_tell("unable to search LDAP".to_owned()),
        }
    }
}

impl HttpResponse {
    fn status(status: &'static str) -> Self {
        Self {
            status,
            fields: Vec::new(),
        }
    }

    /// No, for good. Zimbra's protocol says it with status 200.
    fn refusal(text: String) -> Self {
        Self {
            status: "200 OK",
            fields: vec![("Auth-Status", printable(&text))],
        }
    }

    /// The text of Zimbra's servlet, but not its status: a proxy that reads "200" tells the user that the password is
    /// wrong. With any other status it says that something is broken, which is true.
    fn cannot_tell(text: String) -> Self {
        Self {
            status: "503 Service Unavailable",
            ..Self::refusal(text)
        }
    }

    /// Refusals carry the time that a client waits for them.
    fn with_wait(mut self, system: &System, node: &str) -> Self {
        let refused = self
            .fields
            .first()
            .is_some_and(|(name, value)| *name == "Auth-Status" && value != "OK");
        if refused {
            let wait = system
                .node(node)
                .duration(&attributes::REVERSE_PROXY_AUTH_WAIT_INTERVAL);
            self.fields.push(("Auth-Wait", wait.as_secs().to_string()));
        }
        self
    }

    /// The bytes.
    pub fn encode(&self, keep_alive: bool) -> Vec<u8> {
        let mut head = format!("HTTP/1.1 {}\r\n", self.status);
        for (name, value) in &self.fields {
            head.push_str(&format!("{name}: {value}\r\n"));
        }
        let connection = if keep_alive { "keep-alive" } else { "close" };
        head.push_str(&format!("Content-Length: 0\r\nConnection: {connection}\r\n\r\n"));
        head.into_bytes()
    }
}

/// A text with names in it, made fit for a header field.
fn printable(text: &str) -> String {
    text.replace(char::is_control, "?")
}
