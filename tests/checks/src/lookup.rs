//! Responses of a lookup service, and requests of an old proxy on port 7072 with what they are answered.

use std::net::{IpAddr, Ipv4Addr};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use mail_directory::file::YamlDirectory;
use route_cache::addresses::Literal;
use route_cache::lookup::wire;
use route_cache::lookup_server::{self, Request};
use route_cache::{AddressBook, RouteCache, Settings};
use tokio::runtime::Runtime;

use crate::cuts;

thread_local! {
    static ASKED: Asked = Asked::new();
}

/// A request is what it is however it arrives, and whatever it says, the answer is one head.
pub(crate) fn request(bytes: &[u8]) {
    ASKED.with(|asked| asked.check(bytes));
}

/// A response is what it is however its bytes arrive, and nothing unbounded is waited for.
pub(crate) fn response(bytes: &[u8]) {
    chunks(bytes);
    match wire::response(bytes) {
        Ok(Some(response)) => {
            chunks(&bytes[response.head..]);
            assert!(response.head <= bytes.len() && response.head <= wire::MAX_HEAD);
            assert_eq!(wire::response(&bytes[..response.head]), Ok(Some(response.clone())));
            for cut in cuts(response.head) {
                assert_eq!(wire::response(&bytes[..cut]), Ok(None));
            }
            assert!((100..1000).contains(&response.status));
            for (name, value) in &response.fields {
                assert!(!name.is_empty() && !name.bytes().any(|byte| byte.is_ascii_uppercase() || byte <= b' '));
                assert!(!value.contains(['\r', '\n', '\0']));
            }
        }
        Ok(None) => assert!(bytes.len() < wire::MAX_HEAD),
        Err(error) => assert_eq!(wire::response(&[bytes, b"\r\n\r\n"].concat()), Err(error)),
    }
}

/// A body in chunks is what it is however its bytes arrive, and has an end.
fn chunks(bytes: &[u8]) {
    match wire::unchunked(bytes) {
        Ok(Some((content, end))) => {
            assert!(content.len() <= wire::MAX_BODY && end <= bytes.len().min(wire::MAX_CHUNKED));
            assert_eq!(wire::unchunked(&bytes[..end]), Ok(Some((content, end))));
            for cut in cuts(end) {
                assert_eq!(wire::unchunked(&bytes[..cut]), Ok(None));
            }
        }
        Ok(None) => assert!(bytes.len() < wire::MAX_CHUNKED),
        Err(error) => assert_eq!(wire::unchunked(&[bytes, b"0\r\n\r\n"].concat()), Err(error)),
    }
}

/// The server on port 7072.
struct Asked {
    runtime: Runtime,
    routes: RouteCache,
    book: Arc<AddressBook>,
}

impl Asked {
    /// With one server and one account.
    fn new() -> Self {
        let yaml = "
config: {zimbraDefaultDomainName: a.test}
servers: {store.test: {zimbraServiceEnabled: mailbox, zimbraServiceHostname: 127.0.0.2}}
domains: {a.test: {zimbraVirtualHostname: mail.a.test}}
accounts: {alice@a.test: {zimbraMailHost: store.test, zimbraId: id-alice}}
";
        let parsed = YamlDirectory::parse(yaml, Path::new("d.yaml"));
        let (directory, _) = parsed.unwrap_or_else(|problems| panic!("{problems}"));
        let settings = Settings {
            node: "proxy.test".to_owned(),
            capacity: 1000,
            ttl: Duration::from_secs(60),
            stale: Duration::from_secs(60),
            negative_ttl: Duration::from_secs(5),
        };
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
        Self {
            runtime: runtime.expect("a runtime can be made"),
            routes: RouteCache::new(settings, Arc::new(directory)),
            book: AddressBook::new(Arc::new(Literal)),
        }
    }

    fn check(&self, bytes: &[u8]) {
        let parsed = Request::parse(bytes);
        let response = match &parsed {
            Ok(Some(request)) => {
                let end = bytes.windows(4).position(|four| four == b"\r\n\r\n");
                let end = end.expect("a request has an end");
                let end = end + 4;
                assert!(end <= wire::MAX_HEAD);
                assert_eq!(Request::parse(&bytes[..end]), parsed);
                for cut in cuts(end) {
                    assert_eq!(Request::parse(&bytes[..cut]), Ok(None));
                }
                self.runtime
                    .block_on(lookup_server::answer(request, &self.routes, &self.book))
            }
            Ok(None) => return assert!(bytes.len() < wire::MAX_HEAD),
            Err(response) => {
                assert_eq!(Request::parse(&[bytes, b"\r\n\r\n"].concat()), parsed);
                response.clone()
            }
        };
        let head = response.encode(true);
        let ends = head.windows(4).filter(|four| four == b"\r\n\r\n").count();
        assert!(ends == 1 && head.ends_with(b"\r\n\r\n"));
        for line in head.split(|&byte| byte == b'\n') {
            let text = line.strip_suffix(b"\r").unwrap_or(line);
            assert!(
                !text.iter().any(u8::is_ascii_control),
                "{:?}",
                String::from_utf8_lossy(text)
            );
        }
        // Who reads it as the client does finds the same fields.
        let read = wire::response(&head).expect("well written").expect("whole");
        for (name, value) in &response.fields {
            assert_eq!(read.field(&name.to_ascii_lowercase()), Some(value.trim()), "{name}");
        }
        if let Some(server) = read.field("auth-server") {
            assert_eq!(server.parse(), Ok(IpAddr::from(Ipv4Addr::new(127, 0, 0, 2))));
        }
    }
}
