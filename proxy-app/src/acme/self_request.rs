//! Whether names lead here: each is asked for as the authority would, with a challenge of our own.
//!
//! An authority counts its failures; a request to oneself costs nothing. But it goes out and comes in again, which not
//! every network lets through, so it is looked at only where the node file says so (`acme.self_request`).

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use futures_util::StreamExt;
use http::{Method, StatusCode, header};
use openssl::sha::sha256;
use openssl::ssl::{Ssl, SslConnector, SslMethod, SslVerifyMode};
use tokio::net::TcpStream;
use tokio::time::{sleep, timeout};
use tokio_openssl::SslStream;

use crate::acme::account_key::encode;
use crate::acme::challenge_certificate::{ACME_TLS, ACME_TLS_LIST, challenge_context};
use crate::acme::challenges::{Challenges, OpenChallenge};
use crate::acme::dns::client::DnsClient;
use crate::acme::dns::name::DnsName;
use crate::acme::dns::proof::ProofFailure;
use crate::acme::exchange::{AGENT, exchange_on};
use crate::config::{ChallengeKind, SelfRequestPorts};

/// Names that are asked for at one time.
const AT_ONCE: usize = 8;
/// How long an address may take to answer.
const ANSWER_WAIT: Duration = Duration::from_secs(5);
/// Addresses of a name that are tried. Authorities begin with IPv6, too.
const ADDRESSES_MAX: usize = 4;
/// Most of an answer.
const ANSWER_MAX: usize = 1024;
/// Octets of a token.
const TOKEN: usize = 24;

/// Requests to ourselves.
pub(crate) struct SelfRequests<'s> {
    /// Where they are answered here.
    pub challenges: &'s Arc<Challenges>,
    /// Who knows the names' addresses.
    pub resolvers: &'s DnsClient,
    /// How names are shown, the preferred way first.
    pub kinds: &'s [ChallengeKind],
    /// Where names are asked for.
    pub ports: SelfRequestPorts,
}

/// What one address of a name has said.
enum Outcome {
    Here,
    /// The authority would ask elsewhere.
    Redirected,
    /// Somebody else has answered, or nobody can say.
    Elsewhere(String),
    /// It cannot be reached.
    Nobody(String),
}

impl SelfRequests<'_> {
    /// Asks for names for so long, and returns those of which something can be said. `answer` makes what a token is answered
    /// with by every node of this account.
    ///
    /// # Errors
    /// Inside: why a name does not lead here.
    pub(crate) async fn ask(
        &self,
        names: &[String],
        limit: Duration,
        answer: impl Fn(&str) -> Result<String, String>,
    ) -> Vec<(String, Result<(), ProofFailure>)> {
        let each: Vec<_> = names
            .iter()
            .map(|name| {
                let token = encode(&rand::random::<[u8; TOKEN]>());
                let answer = answer(&token);
                async move {
                    let said = self.ask_for(name, &token, &answer.ok()?).await?;
                    Some((name.clone(), said))
                }
            })
            .collect();
        let each = futures_util::stream::iter(each).buffer_unordered(AT_ONCE);
        let in_time = each.take_until(Box::pin(sleep(limit)));
        in_time.filter_map(std::future::ready).collect().await
    }

    /// `None`: no web port has to do with this name, its addresses are not known, or the authority may be asking for it.
    async fn ask_for(&self, name: &str, token: &str, answer: &str) -> Option<Result<(), ProofFailure>> {
        let kind = *self.kinds.iter().find(|kind| kind.can_show(name))?;
        let is_asked_for = kind == ChallengeKind::TlsAlpn01 && self.challenges.context(name).is_some();
        if kind == ChallengeKind::Dns01 || is_asked_for {
            return None;
        }
        let mut addresses = self.resolvers.addresses(&DnsName::parse(name)?).await.ok()?;
        addresses.sort_by_key(IpAddr::is_ipv4);
        addresses.truncate(ADDRESSES_MAX);
        self.ask_at(&addresses, kind, name, token, answer).await.transpose()
    }

    async fn ask_at(
        &self,
        addresses: &[IpAddr],
        kind: ChallengeKind,
        name: &str,
        token: &str,
        answer: &str,
    ) -> Result<Option<()>, ProofFailure> {
        let open = self.open(kind, name, token, answer).await;
        let _open = open.map_err(ProofFailure::ours)?;
        let mut nobody = ProofFailure::of_name("it has no address");
        for address in addresses {
            let port = match kind {
                ChallengeKind::TlsAlpn01 => self.ports.tls,
                _ => self.ports.http,
            };
            let at = SocketAddr::new(*address, port);
            let asked = async {
                match kind {
                    ChallengeKind::TlsAlpn01 => by_handshake(at, name, answer).await,
                    _ => by_file(at, name, token, answer).await,
                }
            };
            let outcome = timeout(ANSWER_WAIT, asked).await;
            match outcome.unwrap_or_else(|_| Outcome::Nobody("no answer in time".to_owned())) {
                Outcome::Here => return Ok(Some(())),
                Outcome::Redirected => return Ok(None),
                Outcome::Elsewhere(what) => {
                    let why = format!("{at} is not this Portico: {what}");
                    return Err(ProofFailure::of_name(why));
                }
                // It may be this network that does not let it through.
                Outcome::Nobody(why) => {
                    nobody = ProofFailure::ours(format!("{at} cannot be reached from here: {why}"));
                }
            }
        }
        Err(nobody)
    }

    /// Every node answers from now on.
    async fn open(&self, kind: ChallengeKind, name: &str, token: &str, answer: &str) -> Result<OpenChallenge, String> {
        let open = match kind {
            ChallengeKind::TlsAlpn01 => {
                let context = challenge_context(name, answer).map_err(|error| error.to_string())?;
                self.challenges.open_handshakes(name, context)
            }
            _ => self.challenges.open(token, answer.to_owned()),
        };
        Ok(open.everywhere(token, kind.word(), name, answer).await)
    }
}

/// As HTTP-01 (RFC 8555 §8.3).
async fn by_file(at: SocketAddr, name: &str, token: &str, answer: &str) -> Outcome {
    let stream = match TcpStream::connect(at).await {
        Ok(stream) => stream,
        Err(error) => return Outcome::Nobody(error.to_string()),
    };
    let request = http::Request::builder()
        .method(Method::GET)
        .uri(format!("/.well-known/acme-challenge/{token}"))
        .header(header::HOST, name)
        .header(header::USER_AGENT, AGENT)
        .header(header::CONNECTION, "close");
    match exchange_on(stream, request, Vec::new(), ANSWER_MAX).await {
        Ok((head, body)) if head.status == StatusCode::OK && body.trim_ascii() == answer.as_bytes() => Outcome::Here,
        Ok((head, _)) if matches!(head.status.as_u16(), 301 | 302 | 303 | 307 | 308) => Outcome::Redirected,
        Ok((head, _)) if head.status == StatusCode::OK => {
            Outcome::Elsewhere("it answers with something else".to_owned())
        }
        Ok((head, _)) => Outcome::Elsewhere(format!("it answers {}", head.status.as_u16())),
        Err(error) => Outcome::Elsewhere(format!("{error:#}")),
    }
}

/// As TLS-ALPN-01 (RFC 8737 §3).
async fn by_handshake(at: SocketAddr, name: &str, answer: &str) -> Outcome {
    let stream = match TcpStream::connect(at).await {
        Ok(stream) => stream,
        Err(error) => return Outcome::Nobody(error.to_string()),
    };
    let Ok(mut tls) = client(name).and_then(|ssl| SslStream::new(ssl, stream)) else {
        return Outcome::Nobody("the TLS library has no memory".to_owned());
    };
    if let Err(error) = std::pin::Pin::new(&mut tls).connect().await {
        return Outcome::Elsewhere(format!("its handshake fails: {error}"));
    }
    let shown = tls.ssl().peer_certificate().and_then(|shown| shown.to_der().ok());
    let digest = sha256(answer.as_bytes());
    let is_ours = shown.is_some_and(|der| der.windows(digest.len()).any(|part| part == digest));
    match is_ours && tls.ssl().selected_alpn_protocol() == Some(ACME_TLS) {
        true => Outcome::Here,
        false => Outcome::Elsewhere("it shows another certificate".to_owned()),
    }
}

/// The side of a handshake that looks for a challenge. What it is shown is compared, and proves nothing else.
fn client(name: &str) -> Result<Ssl, openssl::error::ErrorStack> {
    let mut builder = SslConnector::builder(SslMethod::tls_client())?;
    builder.set_verify(SslVerifyMode::NONE);
    builder.set_alpn_protos(ACME_TLS_LIST)?;
    let configured = builder.build().configure()?.verify_hostname(false);
    configured.into_ssl(name)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::acme::care::Fault;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::TcpListener;

    /// A server that says this to whatever comes, or what the challenge is answered with.
    async fn server(says: &'static str, challenges: Arc<Challenges>) -> SocketAddr {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let at = listener.local_addr().unwrap();
        tokio::spawn(async move {
            while let Ok((mut stream, _)) = listener.accept().await {
                let mut head = vec![0; 1024];
                let read = stream.read(&mut head).await.unwrap();
                let asked = String::from_utf8_lossy(&head[..read]).into_owned();
                let token = asked.split([' ', '/']).nth(4).unwrap_or_default().to_owned();
                let answer = challenges.answer(&token).unwrap_or_default();
                let said = says.replace("ANSWER", &answer);
                let said = said.replace("LENGTH", &answer.len().to_string());
                let _gone = stream.write_all(said.as_bytes()).await;
            }
        });
        at
    }

    #[tokio::test]
    async fn a_name_leads_here_where_a_request_comes_back() {
        let resolvers = DnsClient::of_servers(vec!["127.0.0.1:1".parse().unwrap()]);
        let answer = "token.print";
        for (says, expected) in [
            ("HTTP/1.1 200 OK\r\nContent-Length: LENGTH\r\n\r\nANSWER", Ok(Some(()))),
            // The authority follows it; where it ends is nothing that is known here.
            (
                "HTTP/1.1 301 Moved\r\nLocation: https://a.test/\r\nContent-Length: 0\r\n\r\n",
                Ok(None),
            ),
            ("HTTP/1.1 304 Same\r\nContent-Length: 0\r\n\r\n", Err("it answers 304")),
            (
                "HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello",
                Err("something else"),
            ),
            ("HTTP/1.1 404 No\r\nContent-Length: 0\r\n\r\n", Err("it answers 404")),
            ("220 mail.a.test ESMTP\r\n", Err("is not this Portico")),
            (
                "HTTP/1.1 200 OK\r\nContent-Length: 99999\r\n\r\n",
                Err("is not this Portico"),
            ),
        ] {
            let challenges = Arc::new(Challenges::default());
            let at = server(says, challenges.clone()).await;
            let asked = SelfRequests {
                challenges: &challenges,
                resolvers: &resolvers,
                kinds: &[],
                ports: SelfRequestPorts {
                    http: at.port(),
                    tls: at.port(),
                },
            };
            let said = asked
                .ask_at(&[at.ip()], ChallengeKind::Http01, "a.test", "token", answer)
                .await;
            match (&said, expected) {
                (Ok(said), Ok(expected)) if *said == expected => {}
                (Err(failure), Err(part)) if failure.why.contains(part) && failure.fault == Fault::OfName => {}
                _ => panic!("{says}: {said:?}"),
            }
            // In clear text nobody shakes hands.
            let at = [at.ip()];
            let said = asked.ask_at(&at, ChallengeKind::TlsAlpn01, "a.test", "token", answer);
            assert!(said.await.is_err());
        }
        let challenges = Arc::new(Challenges::default());
        let closed = TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap();
        let asked = SelfRequests {
            challenges: &challenges,
            resolvers: &resolvers,
            kinds: &[ChallengeKind::Http01],
            ports: SelfRequestPorts {
                http: closed.port(),
                tls: 1,
            },
        };
        for (addresses, expected, fault) in [
            (&[closed.ip()][..], "cannot be reached", Fault::Ours),
            (&[], "no address", Fault::OfName),
        ] {
            let said = asked.ask_at(addresses, ChallengeKind::Http01, "a.test", "token", answer);
            let failure = said.await.unwrap_err();
            assert!(failure.why.contains(expected) && failure.fault == fault, "{failure:?}");
        }
        // What is not known of a name is no word against it.
        let own = |token: &str| Ok(token.to_owned());
        let said = asked.ask(&["a.test".to_owned()], ANSWER_WAIT, own).await;
        assert!(said.is_empty(), "{said:?}");
    }
}
