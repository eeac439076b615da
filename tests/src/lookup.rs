//! A lookup service: knows the store of each account, and answers in Zimbra's protocol (port 7072) and in that of
//! nginx's `auth_http`, whichever the request is in.
//!
//! Like Zimbra's servlet it qualifies names without domain by the default domain alone, and ignores
//! passwords. The account of a certificate is returned to clients that know the password of the proxies.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::io::{BufRead, BufReader, Write};
use std::net::{SocketAddrV4, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::thread;

use anyhow::{Context, Result};

use crate::config::yaml_source;
use crate::town::Town;

/// The user and password with which proxies look up the account of a certificate.
pub const PROXY_LOGIN: (&str, &str) = ("zmnginx", "zmnginx c4n4ry %");

/// A running service. It ends when dropped.
pub struct LookupService {
    address: SocketAddrV4,
    known: Arc<Known>,
    ended: Arc<AtomicBool>,
}

struct Known {
    default_domain: String,
    /// By name, alias and id.
    places: Mutex<BTreeMap<String, Place>>,
    /// By the subject of a certificate.
    certificates: Mutex<BTreeMap<String, Holder>>,
    last: Mutex<BTreeMap<String, String>>,
    asked: AtomicUsize,
}

/// The owner of a certificate.
#[derive(Debug, Clone)]
pub struct Holder {
    /// Name of the account.
    pub account: String,
    /// The token that proves it.
    pub token: String,
    /// Whether it may administrate.
    pub admin: bool,
}

#[derive(Clone)]
struct Place {
    account: String,
    ip: String,
    /// By the word of `Auth-Protocol`.
    ports: BTreeMap<&'static str, u16>,
}

impl LookupService {
    /// Starts one that knows the people of this town.
    pub fn start(address: SocketAddrV4, town: &Town) -> Result<Self> {
        let mut places = BTreeMap::new();
        for person in &town.people {
            let store = &town.stores[person.store];
            let place = Place {
                account: person.name.clone(),
                ip: store.dovecot.ip.to_string(),
                ports: [
                    ("imap", store.dovecot.imap),
                    ("imapssl", store.dovecot.imaps),
                    ("pop3", store.dovecot.pop3),
                    ("pop3ssl", store.dovecot.pop3s),
                    ("http", store.web.http.port()),
                    ("httpssl", store.web.https.port()),
                ]
                .into(),
            };
            let names = person.aliases.iter().chain([&person.name, &person.id]);
            places.extend(names.map(|name| (name.to_lowercase(), place.clone())));
        }
        let service = Self {
            address,
            known: Arc::new(Known {
                default_domain: "a.example".to_owned(),
                places: Mutex::new(places),
                certificates: Mutex::default(),
                last: Mutex::default(),
                asked: AtomicUsize::new(0),
            }),
            ended: Arc::default(),
        };
        let listener = TcpListener::bind(address).with_context(|| format!("listening on {address}"))?;
        let (known, ended) = (service.known.clone(), service.ended.clone());
        thread::spawn(move || {
            for tcp in listener.incoming().flatten() {
                if ended.load(Ordering::SeqCst) {
                    return;
                }
                let known = known.clone();
                thread::spawn(move || {
                    let _the_other_side_left = talk(tcp, &known);
                });
            }
        });
        Ok(service)
    }

    /// The lines of the section `directory` of a node that asks it in this protocol, beside the usual YAML file.
    pub fn source(&self, protocol: &str) -> Vec<String> {
        let mut lines = yaml_source("200ms");
        lines.push(format!(
            "lookup: {{protocol: {protocol}, handlers: [\"http://{}/service/extension/nginx-lookup\"]}}",
            self.address
        ));
        lines
    }

    /// From now on the certificate with this subject has this owner.
    pub fn give(&self, subject: &str, holder: Holder) {
        let mut certificates = self.known.certificates.lock().expect("nobody panics holding it");
        certificates.insert(subject.to_owned(), holder);
    }

    /// The header fields of the last question, names in lower case.
    pub fn last_question(&self) -> BTreeMap<String, String> {
        self.known.last.lock().expect("nobody panics holding it").clone()
    }

    /// How many requests it got.
    pub fn request_count(&self) -> usize {
        self.known.asked.load(Ordering::SeqCst)
    }
}

impl Drop for LookupService {
    fn drop(&mut self) {
        self.ended.store(true, Ordering::SeqCst);
        let _wakes_it = TcpStream::connect(self.address);
    }
}

fn talk(tcp: TcpStream, known: &Known) -> Result<()> {
    tcp.set_nodelay(true)?;
    let mut stream = BufReader::new(tcp);
    loop {
        let mut fields = BTreeMap::new();
        let mut line = String::new();
        if stream.read_line(&mut line)? == 0 {
            return Ok(());
        }
        loop {
            line.clear();
            stream.read_line(&mut line)?;
            let Some((name, value)) = line.trim_end().split_once(':') else {
                break;
            };
            fields.insert(name.to_ascii_lowercase(), value.trim().to_owned());
        }
        let answer = match fields.get("auth-method").map(String::as_str) {
            Some("certauth") => known.certificate(&fields),
            _ => known.answer(&fields),
        };
        *known.last.lock().expect("nobody panics holding it") = fields;
        known.asked.fetch_add(1, Ordering::SeqCst);
        stream.get_mut().write_all(answer.as_bytes())?;
    }
}

impl Known {
    fn certificate(&self, fields: &BTreeMap<String, String>) -> String {
        let field = |name: &str| fields.get(name).map(String::as_str).unwrap_or_default();
        let subject = decode(field("auth-user"));
        let holder = self
            .certificates
            .lock()
            .expect("nobody panics holding it")
            .get(&subject)
            .cloned();
        let said = match holder {
            _ if (field("auth-admin-user"), field("auth-admin-pass")) != PROXY_LOGIN => {
                "Auth-Status: authentication failed for zmnginx".to_owned()
            }
            None => format!("Auth-Status: user not found:{subject}\r\nAuth-Wait: 10"),
            Some(holder) if field("auth-zimbra-admin") == "True" && !holder.admin => {
                format!("Auth-Status: {} is not admin or delegated admin", holder.account)
            }
            Some(holder) => format!(
                "Auth-Status: OK\r\nAuth-Server: 127.0.0.1\r\nAuth-Port: 9999\r\nAuth-User: {}\r\nAuth-Pass: {}",
                holder.account, holder.token
            ),
        };
        format!("HTTP/1.1 200 OK\r\nContent-Length: 0\r\n{said}\r\n\r\n")
    }

    fn answer(&self, fields: &BTreeMap<String, String>) -> String {
        let field = |name: &str| fields.get(name).map(String::as_str).unwrap_or_default();
        let user = decode(field("auth-user"));
        let name = match user.contains('@') || field("auth-method") == "zimbraId" {
            true => user.to_lowercase(),
            false => format!("{}@{}", user.to_lowercase(), self.default_domain),
        };
        let place = self
            .places
            .lock()
            .expect("nobody panics holding it")
            .get(&name)
            .cloned();
        let mut head = String::from("HTTP/1.1 200 OK\r\nContent-Length: 0\r\n");
        let _fits = match place.and_then(|place| Some((place.ports.get(field("auth-protocol")).copied()?, place))) {
            Some((port, place)) => write!(
                head,
                "Auth-Status: OK\r\nAuth-Server: {}\r\nAuth-Port: {port}\r\nAuth-User: {}\r\nAuth-Cache-Alias: TRUE\r\n",
                place.ip, place.account
            ),
            None => write!(head, "Auth-Status: user not found:{name}\r\nAuth-Wait: 10\r\n"),
        };
        head.push_str("\r\n");
        head
    }
}

/// `%40` is `@`.
fn decode(text: &str) -> String {
    let mut out = Vec::new();
    let mut bytes = text.bytes();
    while let Some(byte) = bytes.next() {
        if byte != b'%' {
            out.push(byte);
            continue;
        }
        let digits: Vec<u8> = bytes.by_ref().take(2).collect();
        let digits = String::from_utf8_lossy(&digits).into_owned();
        out.push(u8::from_str_radix(&digits, 16).unwrap_or(b'?'));
    }
    String::from_utf8_lossy(&out).into_owned()
}
