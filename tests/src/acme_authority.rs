//! A small ACME authority of the tests' own: stricter with its client than a real one, and told how to misbehave.
//!
//! It checks signatures, nonces, URLs, payloads, the order of steps, requests for certificates, and challenges. It takes
//! down what it was asked, and what no client may do ([`AcmeAuthority::violations`]). What it does not have: DNS-01,
//! changes of accounts, revocation.

mod answer;
mod behaviour;
mod issuing;
mod jws;
mod ledger;
mod validation;

use std::io::Read;
use std::net::{Ipv4Addr, SocketAddrV4, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use openssl::ssl::SslAcceptor;

use crate::Stage;
use crate::certs::Authority;
use answer::{Answer, Refusal, Request};
pub use behaviour::{Behaviour, Lie, Resource};
pub use issuing::{ISSUER, time_text};
use jws::{SignedRequest, Signer};
use ledger::Ledger;
pub use validation::{ACME_TLS, ChallengeKind, ValidationPorts, acme_tls};

/// How long a client may be silent.
const PATIENCE: Duration = Duration::from_secs(10);
/// The size of an answer that is too large for any client.
const OVERSIZED: usize = 4 * 1024 * 1024;

/// A running authority. It ends when dropped.
pub struct AcmeAuthority {
    address: SocketAddrV4,
    shared: Arc<Shared>,
    ended: Arc<AtomicBool>,
}

struct Shared {
    tls: SslAcceptor,
    ledger: Mutex<Ledger>,
    asked: Mutex<Vec<Asked>>,
}

/// A request, as it was answered.
#[derive(Debug, Clone)]
pub struct Asked {
    /// What it was about.
    pub resource: Resource,
    /// Which of its kind: `0/http-01` is a challenge.
    pub place: String,
    /// When it was there.
    pub at: Instant,
    /// Its status, with the kind of a problem: `429 rateLimited`.
    pub answer: String,
    /// What no client may do.
    violation: Option<String>,
}

impl AcmeAuthority {
    /// Starts one that is known by this certificate authority, and looks at challenges at these ports of 127.0.0.1.
    pub fn start(stage: &Stage, ca: &Authority, ports: ValidationPorts) -> Result<Self> {
        let address = SocketAddrV4::new(Ipv4Addr::LOCALHOST, stage.port()?);
        let shared = Arc::new(Shared {
            tls: ca.server(&["127.0.0.1"])?.acceptor()?,
            ledger: Mutex::new(Ledger::new(format!("https://{address}"))?),
            asked: Mutex::default(),
        });
        let authority = Self {
            address,
            shared,
            ended: Arc::default(),
        };
        authority.behave(|behaviour| behaviour.ports = ports);
        let listener = TcpListener::bind(address).with_context(|| format!("listening on {address}"))?;
        let (shared, ended) = (authority.shared.clone(), authority.ended.clone());
        thread::spawn(move || {
            for tcp in listener.incoming().flatten() {
                if ended.load(Ordering::SeqCst) {
                    return;
                }
                let shared = shared.clone();
                thread::spawn(move || {
                    let _the_client_left = shared.talk(tcp);
                });
            }
        });
        Ok(authority)
    }

    /// Where a client begins.
    pub fn directory_url(&self) -> String {
        format!("https://{}/directory", self.address)
    }

    /// From now on it behaves like this.
    pub fn behave(&self, change: impl FnOnce(&mut Behaviour)) {
        change(&mut self.shared.ledger().behaviour);
        self.shared.look_at_challenges();
    }

    /// All requests so far.
    pub fn asked(&self) -> Vec<Asked> {
        self.shared.asked.lock().expect("nobody panics holding it").clone()
    }

    /// How many were about this.
    pub fn count(&self, resource: Resource) -> usize {
        self.asked().iter().filter(|asked| asked.resource == resource).count()
    }

    /// The names of each certificate that it has issued.
    pub fn issued(&self) -> Vec<Vec<String>> {
        let ledger = self.shared.ledger();
        let names = ledger
            .certificates
            .iter()
            .map(|issued| issued.names.iter().cloned().collect());
        names.collect()
    }

    /// Of which kind each of them is, where the order named one.
    pub fn profiles(&self) -> Vec<Option<String>> {
        let ledger = self.shared.ledger();
        ledger
            .certificates
            .iter()
            .map(|issued| issued.profile.clone())
            .collect()
    }

    /// How many of them others have replaced.
    pub fn replaced(&self) -> usize {
        let ledger = self.shared.ledger();
        ledger.certificates.iter().filter(|issued| issued.is_replaced).count()
    }

    /// What its clients have done that no client may do.
    pub fn violations(&self) -> Vec<String> {
        self.asked().into_iter().filter_map(|asked| asked.violation).collect()
    }
}

impl Drop for AcmeAuthority {
    fn drop(&mut self) {
        self.ended.store(true, Ordering::SeqCst);
        let _woken = TcpStream::connect(self.address);
    }
}

impl Shared {
    fn ledger(&self) -> MutexGuard<'_, Ledger> {
        self.ledger.lock().expect("nobody panics holding it")
    }

    /// One request, and its answer.
    fn talk(self: &Arc<Self>, tcp: TcpStream) -> Result<()> {
        tcp.set_read_timeout(Some(PATIENCE))?;
        tcp.set_write_timeout(Some(PATIENCE))?;
        let mut stream = self.tls.accept(tcp).map_err(|error| anyhow::anyhow!("{error}"))?;
        let request = Request::read(&mut stream)?;
        let at = Instant::now();
        let delay = self.ledger().behaviour.delay;
        thread::sleep(delay);
        let (resource, place) = resource_of(&request.path);
        let outcome = self
            .refused_at(resource)
            .and_then(|()| self.outcome(resource, place, &request));
        let refusal = outcome.as_ref().err();
        let violation = refusal.filter(|refusal| refusal.is_violation);
        let mut answer = outcome
            .as_ref()
            .map_or_else(Refusal::answer, |answer| self.falsified(resource, answer));
        if request.method == "HEAD" {
            answer.body.clear();
        }
        if request.method != "GET" {
            answer = answer.with("Replay-Nonce", self.ledger().new_nonce());
        }
        let kind = refusal.map_or_else(String::new, |refusal| format!(" {}", refusal.kind));
        self.asked.lock().expect("nobody panics holding it").push(Asked {
            resource,
            place: place.to_owned(),
            at,
            answer: format!("{}{kind}", answer.status),
            violation: violation.map(|why| format!("{resource:?}: {}: {}", why.kind, why.detail)),
        });
        self.look_at_challenges();
        answer.write(&mut stream)?;
        let _closed = stream.shutdown();
        stream.get_ref().shutdown(std::net::Shutdown::Write)?;
        let _its_end = stream.get_mut().read(&mut [0]);
        Ok(())
    }

    /// Whether anything is answered there.
    fn refused_at(&self, resource: Resource) -> Result<(), Refusal> {
        let behaviour = self.ledger().behaviour.clone();
        let (status, kind, retry_after) = match (behaviour.limit, behaviour.lie) {
            (Some((at, seconds)), _) if at == resource => (429, "rateLimited", seconds),
            (_, Some(Lie::Down(at, status, seconds))) if at == resource => (status, "serverInternal", seconds),
            _ => return Ok(()),
        };
        let mut refusal = Refusal::new(status, kind, "not now");
        refusal.retry_after = Some(retry_after);
        Err(refusal)
    }

    fn outcome(&self, resource: Resource, place: &str, request: &Request) -> Result<Answer, Refusal> {
        if request.field("user-agent").is_none() {
            return Err(Refusal::malformed("no User-Agent"));
        }
        match (resource, request.method.as_str()) {
            (Resource::Directory, "GET") => Ok(Answer::json(200, &self.ledger().directory())),
            (Resource::RenewalInfo, "GET") => self.ledger().renewal_info(place),
            (Resource::NewNonce, "HEAD") => Ok(Answer::of(200, "text/plain", "").with("Cache-Control", "no-store")),
            (Resource::Directory | Resource::NewNonce | Resource::RenewalInfo, _) => {
                Err(Refusal::malformed("only to be read"))
            }
            (_, "POST") => self.signed(resource, place, request),
            _ => Err(Refusal::violation(405, "malformed", "only by a signed request")),
        }
    }

    /// RFC 8555 §6.2 to §6.5
    fn signed(&self, resource: Resource, place: &str, request: &Request) -> Result<Answer, Refusal> {
        if request.field("content-type") != Some("application/jose+json") {
            return Err(Refusal::violation(415, "malformed", "not application/jose+json"));
        }
        let signed = SignedRequest::parse(&request.body)?;
        let mut ledger = self.ledger();
        if signed.url != format!("{}{}", ledger.base, request.path) {
            return Err(Refusal::violation(401, "unauthorized", "signed for another URL"));
        }
        match (&signed.by, resource) {
            (Signer::Key(key), Resource::NewAccount) => {
                signed.check(key)?;
                ledger.take_nonce(&signed.nonce)?;
                let payload = signed.payload.as_ref();
                let payload = payload.ok_or_else(|| Refusal::malformed("an account of nothing"))?;
                ledger.new_account(key, payload)
            }
            (Signer::Account(url), resource) if resource != Resource::NewAccount => {
                let (account, key) = ledger.account(url)?;
                signed.check(&key)?;
                ledger.take_nonce(&signed.nonce)?;
                ledger.done(resource, place, account, &signed)
            }
            _ => Err(Refusal::malformed("signed by the wrong one of jwk and kid")),
        }
    }

    /// The answer that the client gets in place of this one.
    fn falsified(&self, resource: Resource, answer: &Answer) -> Answer {
        let (body, kind) = match self.ledger().behaviour.lie {
            Some(Lie::Garbage(at)) if at == resource => ("<p>\u{1b}[31mno JSON\r\n</p>".to_owned(), "text/html"),
            Some(Lie::Oversized(at)) if at == resource => (" ".repeat(OVERSIZED), "application/json"),
            _ => (String::new(), ""),
        };
        let (fields, status) = (answer.fields.clone(), answer.status);
        match kind {
            "" => Answer {
                status,
                fields,
                body: answer.body.clone(),
            },
            kind => {
                let false_one = Answer::of(status, kind, body);
                let rest = fields.into_iter().filter(|(name, _)| *name != "Content-Type");
                rest.fold(false_one, |answer, (name, value)| answer.with(name, value))
            }
        }
    }

    fn look_at_challenges(self: &Arc<Self>) {
        let due = self.ledger().take_due();
        let ports = self.ledger().behaviour.ports;
        for due in due {
            let shared = self.clone();
            thread::spawn(move || {
                let seen = match due.is_unknown {
                    true => Err(anyhow::anyhow!("it is not found")),
                    false => due.kind.validate(&due.name, &due.token, &due.answer, ports),
                };
                shared.ledger().validated(&due, seen);
            });
        }
    }
}

/// What a path is about, and which of its kind.
fn resource_of(path: &str) -> (Resource, &str) {
    let path = path.trim_start_matches('/');
    let (kind, place) = path.split_once('/').unwrap_or((path, ""));
    let resource = match kind {
        "directory" => Resource::Directory,
        "new-nonce" => Resource::NewNonce,
        "new-account" => Resource::NewAccount,
        "new-order" => Resource::NewOrder,
        "order" => Resource::Order,
        "authorization" => Resource::Authorization,
        "challenge" => Resource::Challenge,
        "finalize" => Resource::Finalize,
        "certificate" => Resource::Certificate,
        "renewal-info" => Resource::RenewalInfo,
        _ => Resource::Elsewhere,
    };
    (resource, place)
}

#[cfg(test)]
mod tests {
    use openssl::bn::{BigNum, BigNumContext};
    use openssl::ec::{EcGroup, EcKey};
    use openssl::ecdsa::EcdsaSig;
    use openssl::nid::Nid;
    use openssl::pkey::Private;
    use openssl::sha::sha256;
    use serde_json::{Value, json};

    use super::*;
    use jws::encoded;

    /// A client that may do anything.
    struct Client {
        key: EcKey<Private>,
        authority: AcmeAuthority,
    }

    impl Client {
        fn url(&self, path: &str) -> String {
            format!("https://{}/{path}", self.authority.address)
        }

        fn nonce(&self) -> String {
            self.authority.shared.ledger().new_nonce()
        }

        /// Sends this, signed. Returns the kind of the problem, or nothing; and the object of the answer.
        fn send(&self, path: &str, header: &Value, payload: &str) -> Result<(String, Value)> {
            let (header, payload) = (encoded(header.to_string().as_bytes()), encoded(payload.as_bytes()));
            let digest = sha256(format!("{header}.{payload}").as_bytes());
            let signature = EcdsaSig::sign(&digest, &self.key)?;
            let halves = [signature.r().to_vec_padded(32)?, signature.s().to_vec_padded(32)?].concat();
            let body = json!({"protected": header, "payload": payload, "signature": encoded(&halves)});
            self.send_raw(path, "application/jose+json", &body.to_string())
        }

        fn send_raw(&self, path: &str, kind: &str, body: &str) -> Result<(String, Value)> {
            let text = format!(
                "POST /{path} HTTP/1.1\r\nUser-Agent: test\r\nContent-Type: {kind}\r\nContent-Length: {}\r\n\r\n{body}",
                body.len()
            );
            let request = Request::read(&mut text.as_bytes())?;
            let (resource, place) = resource_of(&request.path);
            Ok(match self.authority.shared.outcome(resource, place, &request) {
                Ok(answer) => (String::new(), serde_json::from_slice(&answer.body)?),
                Err(refusal) => (refusal.kind.to_owned(), refusal.problem()),
            })
        }
    }

    fn jwk(key: &EcKey<Private>) -> Result<Value> {
        let group = EcGroup::from_curve_name(Nid::X9_62_PRIME256V1)?;
        let (mut x, mut y) = (BigNum::new()?, BigNum::new()?);
        let mut context = BigNumContext::new()?;
        key.public_key()
            .affine_coordinates(&group, &mut x, &mut y, &mut context)?;
        let [x, y] = [encoded(&x.to_vec_padded(32)?), encoded(&y.to_vec_padded(32)?)];
        Ok(json!({"kty": "EC", "crv": "P-256", "x": x, "y": y}))
    }

    fn p256() -> Result<EcKey<Private>> {
        Ok(EcKey::generate(&*EcGroup::from_curve_name(Nid::X9_62_PRIME256V1)?)?)
    }

    fn play(test: impl FnOnce(&Client) -> Result<()>) -> Result<()> {
        Stage::run(|stage| {
            let ca = Authority::new(&stage.dir("ca")?)?;
            let authority = AcmeAuthority::start(stage, &ca, ValidationPorts { http: 1, tls: 1 })?;
            authority.behave(|behaviour| behaviour.refused_nonces = 0);
            test(&Client {
                key: p256()?,
                authority,
            })
        })
    }

    #[test]
    fn a_client_that_does_not_sign_well_is_refused() -> Result<()> {
        play(|client| {
            let (url, terms) = (client.url("new-account"), "{\"termsOfServiceAgreed\": true}");
            let good = || -> Result<Value> {
                Ok(json!({"alg": "ES256", "jwk": jwk(&client.key)?, "nonce": client.nonce(), "url": url}))
            };
            for (member, value, kind) in [
                ("alg", json!("none"), "badSignatureAlgorithm"),
                ("nonce", json!("AAAA"), "badNonce"),
                ("nonce", json!("no nonce"), "malformed"),
                ("url", json!(client.url("new-order")), "unauthorized"),
                ("kid", json!(client.url("account/0")), "malformed"),
                ("jwk", json!({"kty": "EC"}), "malformed"),
                ("b64", json!(false), "malformed"),
            ] {
                let mut header = good()?;
                header[member] = value;
                assert_eq!(client.send("new-account", &header, terms)?.0, kind, "{member}");
            }
            let mut header = good()?;
            header["jwk"] = jwk(&p256()?)?;
            assert_eq!(
                client.send("new-account", &header, terms)?.0,
                "malformed",
                "another's key"
            );
            assert_eq!(client.send("new-account", &good()?, "{}")?.0, "userActionRequired");
            assert_eq!(client.send_raw("new-account", "application/json", "{}")?.0, "malformed");
            let header = good()?;
            assert_eq!(client.send("new-account", &header, terms)?.0, "");
            assert_eq!(client.send("new-account", &header, terms)?.0, "badNonce", "used twice");
            Ok(())
        })
    }

    #[test]
    fn a_client_that_goes_ahead_of_the_steps_is_refused() -> Result<()> {
        play(|client| {
            let new = json!({"alg": "ES256", "jwk": jwk(&client.key)?, "nonce": client.nonce(),
                             "url": client.url("new-account")});
            client.send("new-account", &new, "{\"termsOfServiceAgreed\": true}")?;
            let send = |path: &str, payload: &str| {
                let header = json!({"alg": "ES256", "kid": client.url("account/0"), "nonce": client.nonce(),
                                    "url": client.url(path)});
                client.send(path, &header, payload)
            };
            let order = |names: &[&str]| {
                let names: Vec<Value> = names.iter().map(|name| json!({"type": "dns", "value": name})).collect();
                json!({"identifiers": names}).to_string()
            };
            for names in [
                &[][..],
                &["a.test", "a.test"],
                &["A.test"],
                &["*.a.test"],
                &["localhost"],
            ] {
                assert_eq!(send("new-order", &order(names))?.0, "malformed", "{names:?}");
            }
            let (_, made) = send("new-order", &order(&["a.test"]))?;
            assert_eq!(made["status"], "pending");
            for (path, payload, kind) in [
                ("order/0", "", ""),
                ("order/0", "{}", "malformed"),
                ("order/1", "", "malformed"),
                ("finalize/0", "{\"csr\": \"AAAA\"}", "orderNotReady"),
                ("challenge/0/http-01", "", "malformed"),
                ("challenge/0/http-01", "{\"answer\": 1}", "malformed"),
                ("challenge/0/other-01", "{}", "malformed"),
                ("certificate/0", "", "malformed"),
                ("challenge/0/http-01", "{}", ""),
                ("challenge/0/tls-alpn-01", "{}", "malformed"),
                ("elsewhere", "{}", "malformed"),
            ] {
                assert_eq!(send(path, payload)?.0, kind, "{path} {payload}");
            }
            Ok(())
        })
    }
}
