//! What holds for any bytes from memcached, from a lookup service, and from whoever asks on port 7072. The fuzz targets
//! and the test with random bytes check the same.

use std::net::{IpAddr, Ipv4Addr};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use route_cache::addresses::Literal;
use route_cache::directory::yaml::YamlDirectory;
use route_cache::lookup::serve::{self, Request};
use route_cache::lookup::wire;
use route_cache::memcached::wire::{Command, MAX_VALUE, Reply};
use route_cache::{AddressBook, RouteCache, Settings};
use tokio::runtime::Runtime;

/// Longest head of a reply of memcached, and what stands around a value.
const AROUND_VALUE: usize = 256 + 16;

/// A reply is what it is however its bytes arrive, and nothing unbounded is waited for.
pub(crate) fn memcached_reply(bytes: &[u8]) {
    let key = "k1".to_owned();
    let commands = [
        Command::Get { key: key.clone() },
        Command::Set {
            key: key.clone(),
            ttl: 60,
            value: "10.0.0.1:7993".to_owned(),
        },
        Command::Delete { key },
    ];
    for command in commands {
        match command.reply(bytes) {
            Ok(Some((reply, length))) => {
                assert!(length <= bytes.len());
                assert_eq!(command.reply(&bytes[..length]), Ok(Some((reply.clone(), length))));
                for cut in 0..length {
                    assert_eq!(command.reply(&bytes[..cut]), Ok(None));
                }
                if let Reply::Value(value) = reply {
                    assert!(value.len() <= MAX_VALUE && matches!(command, Command::Get { .. }));
                }
            }
            Ok(None) => assert!(bytes.len() < MAX_VALUE + AROUND_VALUE),
            Err(babble) => assert_eq!(command.reply(&[bytes, b"\r\nEND\r\n"].concat()), Err(babble)),
        }
    }
}

/// The same for the response of a lookup service.
pub(crate) fn lookup_response(bytes: &[u8]) {
    match wire::response(bytes) {
        Ok(Some(response)) => {
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

/// Somebody who is asked on port 7072.
pub(crate) struct House {
    runtime: Runtime,
    routes: RouteCache,
    book: Arc<AddressBook>,
}

impl House {
    /// With one server and one account.
    pub(crate) fn open() -> House {
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
        House {
            runtime: runtime.unwrap(),
            routes: RouteCache::new(settings, Arc::new(directory)),
            book: AddressBook::new(Arc::new(Literal)),
        }
    }

    /// A request is what it is however it arrives, and whatever it says, the answer is one head.
    pub(crate) fn lookup_request(&self, bytes: &[u8]) {
        let parsed = Request::parse(bytes);
        let response = match &parsed {
            Ok(Some(request)) => {
                let end = 4 + bytes.windows(4).position(|four| four == b"\r\n\r\n").unwrap();
                assert!(end <= wire::MAX_HEAD);
                assert_eq!(Request::parse(&bytes[..end]), parsed);
                for cut in cuts(end) {
                    assert_eq!(Request::parse(&bytes[..cut]), Ok(None));
                }
                self.runtime.block_on(serve::answer(request, &self.routes, &self.book))
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
        let read = wire::response(&head).unwrap().unwrap();
        for (name, value) in &response.fields {
            assert_eq!(read.field(&name.to_ascii_lowercase()), Some(value.trim()), "{name}");
        }
        if let Some(server) = read.field("auth-server") {
            assert_eq!(server.parse(), Ok(IpAddr::from(Ipv4Addr::new(127, 0, 0, 2))));
        }
    }
}

/// Some of the places before `end`, and all of the last ones.
fn cuts(end: usize) -> impl Iterator<Item = usize> {
    (0..end).step_by(97).chain(end.saturating_sub(8)..end)
}
