//! The client of a web connection, as far as it is known.

use std::net::{IpAddr, SocketAddr};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use bytes::Bytes;
use http::HeaderValue;
use mail_proxy::audit::{Event, Outcome, Record};
use mail_proxy::throttle::{PasswordMark, PolicyAnswer};
use mail_proxy::{ConnectionFacts, LoggedIn};
use parking_lot::Mutex;
use pingora::Result;
use pingora::protocols::raw_connect::ProxyDigest;
use route_cache::Route;
use tokio::time::timeout;

use crate::app::env::WebEnv;
use crate::http::headers;
use crate::http::login::LoginAttempt;
use crate::http::request_id::RequestId;
use crate::node::refusals::{Reason, RefusedConnection};
use crate::tls::client_certs::PresentedCert;
use crate::tls::vhosts::{Refusal, VirtualHost, VirtualHosts};
use crate::upstream::connection::Owner;
use crate::upstream::gathered::Gathered;
use crate::web::read_ahead::ClientReading;

/// Name and password.
type Credentials = (String, Option<PasswordMark>);

/// The last Basic credentials that were good on a connection, and the last that were not refused: a client that sends
/// them with every request is recorded once.
#[derive(Debug, Default)]
pub(crate) struct SeenUser {
    good: Mutex<Option<Credentials>>,
    not_refused: Mutex<Option<Credentials>>,
    /// What the policy service has said of a login that is to be judged once more.
    said: Mutex<Option<(Credentials, PolicyAnswer)>>,
}

impl SeenUser {
    /// True the first time for good credentials.
    fn is_new(&self, login: &LoginAttempt) -> bool {
        is_other(&mut self.good.lock(), login)
    }

    /// True the first time for credentials that were not refused.
    fn is_new_unproved(&self, login: &LoginAttempt) -> bool {
        !self.knows(login) && is_other(&mut self.not_refused.lock(), login)
    }

    /// Keeps what the policy service has said of a login until it is judged again.
    pub(crate) fn note_policy(&self, login: &LoginAttempt, said: Option<PolicyAnswer>) {
        *self.said.lock() = said.map(|said| ((login.user.clone(), login.mark), said));
    }

    /// What the policy service has said of this login, once.
    pub(crate) fn policy_said(&self, login: &LoginAttempt) -> Option<PolicyAnswer> {
        let (credentials, said) = self.said.lock().take()?;
        is_same(Some(&credentials), login).then_some(said)
    }

    /// Whether these are the credentials that were good: the name alone says nothing.
    pub(crate) fn knows(&self, login: &LoginAttempt) -> bool {
        is_same(self.good.lock().as_ref(), login)
    }
}

fn is_same(last: Option<&Credentials>, login: &LoginAttempt) -> bool {
    last.is_some_and(|(user, mark)| *user == login.user && mark.is_some() && *mark == login.mark)
}

fn is_other(last: &mut Option<Credentials>, login: &LoginAttempt) -> bool {
    if is_same(last.as_ref(), login) {
        return false;
    }
    *last = Some((login.user.clone(), login.mark));
    true
}

/// The values of `X-Forwarded-For` and `X-Forwarded-Port` towards servers: the same for nearly every request of a
/// connection.
#[derive(Debug, Default)]
pub(crate) struct ForwardedValues {
    client: OnceLock<(IpAddr, HeaderValue)>,
    port: OnceLock<(u16, HeaderValue)>,
}

impl ForwardedValues {
    /// The address of a client. Behind a trusted forwarder there may be several on one connection.
    pub(crate) fn client(&self, client: IpAddr) -> HeaderValue {
        let text = |client: IpAddr| {
            let text = client.to_canonical().to_string();
            HeaderValue::from_str(&text).unwrap_or_else(|_| unreachable!("an address can stand in a field"))
        };
        match self.client.get_or_init(|| (client, text(client))) {
            (known, value) if *known == client => value.clone(),
            _ => text(client),
        }
    }

    /// The port that it sees.
    pub(crate) fn port(&self, port: u16) -> HeaderValue {
        match self.port.get_or_init(|| (port, port.into())) {
            (known, value) if *known == port => value.clone(),
            _ => port.into(),
        }
    }
}

/// How long a last answer may take to be written, and how long after it the rest of what its client sends is read and
/// dropped: a connection that is closed on unread bytes is reset, and the reset destroys answers that are on their way.
pub(crate) const FAREWELL: Duration = Duration::from_secs(2);

/// What is known of a web connection; reaches the phases of a request through its digest.
#[derive(Debug)]
pub(crate) struct WebClient {
    /// What is known of any connection.
    pub facts: Arc<ConnectionFacts>,
    /// The balancer in front has ended its TLS, and says so in the PROXY header.
    pub tls_in_front: bool,
    /// The certificate that the client has presented.
    pub shown: Option<PresentedCert>,
    /// Whether the listener is the administration console's.
    pub admin: bool,
    /// Whether the listener only logs in by certificate.
    pub sso: bool,
    /// Who is known to have logged in on it.
    pub seen_user: SeenUser,
    /// Its own server connections.
    pub owner: Arc<Owner>,
    /// Its last answer has no proper end, and the connection must not look as if it had.
    pub cut_short: AtomicBool,
    /// What servers hear of it.
    pub forwarded: ForwardedValues,
    /// Whether the engine has taken the last request.
    pub taken: AtomicBool,
    /// What is known of its reading.
    pub reading: Arc<ClientReading>,
    /// What its stream adds to the next head of HTTP/1.
    pub answer_lines: Mutex<Option<AnswerLines>>,
}

/// Lines for the head of an answer that the engine does not know of: as headers each of them would be copied, read and
/// entered into two tables, for every answer.
#[derive(Debug)]
pub(crate) struct AnswerLines {
    /// The id of its request.
    pub id: RequestId,
    /// The headers of its virtual host.
    pub host: Bytes,
}

impl AnswerLines {
    /// Adds them to a head, behind its first line. `None`: there is no first line.
    pub(crate) fn add_to(&self, head: &[u8], gathered: &mut Gathered, room: usize) -> Option<()> {
        let first = head.iter().position(|&byte| byte == b'\n').map(|end| end + 1)?;
        let (first, rest) = head.starts_with(b"HTTP/1.").then(|| head.split_at(first))?;
        for part in [
            first,
            headers::REQUEST_ID.as_bytes(),
            b": ",
            self.id.as_str().as_bytes(),
            b"\r\n",
            &self.host,
            rest,
        ] {
            gathered.add(part, room);
        }
        Some(())
    }
}

impl WebClient {
    /// Notes the account and the route of a request.
    pub(crate) fn note(&self, route: &Route) {
        let login = || LoggedIn {
            user: String::new(),
            account: route.account.to_string(),
            route: route.address().to_string(),
            server: route.server.to_string(),
        };
        self.facts.handle.log_in(login, &route.account, &route.server);
    }

    /// A record of a login in a request; its client is this one as trusted forwarders name it.
    pub(super) fn login_record(&self, client: IpAddr, generation: u64) -> Record {
        Record {
            client: SocketAddr::new(client, self.facts.client.addr.port()).to_string(),
            ..self.facts.record(Event::WebLogin, generation)
        }
    }

    /// The engine has taken a request.
    pub(crate) fn take(&self) {
        self.taken.store(true, Ordering::Relaxed);
        self.forget_lines();
    }

    /// A request is over: what was kept for it is not for the next one.
    pub(crate) fn end_request(&self) {
        self.taken.store(false, Ordering::Relaxed);
        self.forget_lines();
    }

    /// The head for which lines were kept is not sent.
    pub(crate) fn forget_lines(&self) {
        *self.answer_lines.lock() = None;
    }

    pub(crate) fn is_taken(&self) -> bool {
        self.taken.load(Ordering::Relaxed)
    }

    /// Whether a login with Basic that has ended so has been recorded on this connection.
    pub(crate) fn has_recorded(&self, login: &LoginAttempt, outcome: Outcome) -> bool {
        match outcome {
            Outcome::Ok => !self.seen_user.is_new(login),
            Outcome::NotRefused => !self.seen_user.is_new_unproved(login),
            Outcome::ClientGone => self.seen_user.knows(login),
            _ => false,
        }
    }

    /// Whether requests for this host, which is one of `vhost`, may be served on this connection.
    ///
    /// # Errors
    /// They may not, and why.
    pub(crate) fn may_ask_for(
        &self,
        host: Option<&str>,
        vhost: &VirtualHost,
        vhosts: &VirtualHosts,
    ) -> Result<(), Refusal> {
        let shown = self.shown.as_ref().map(|shown| shown.policy.id());
        vhosts.check(host, vhost, shown)
    }
}

/// What is known of the connection of a request.
pub(crate) fn client_of(session: &pingora_proxy::Session) -> Option<&WebClient> {
    client_in(session.digest()?.proxy_digest.as_ref()?)
}

/// Delivers the received part of an answer that breaks off, and ends the connection: in TLS without the closing message
/// that would make an answer of unknown length look whole (RFC 9112 §9.8). HTTP/2 has a reset for it.
pub(crate) async fn cut_short(session: &mut pingora_proxy::Session) {
    if session.req_header().version == http::Version::HTTP_2 {
        return;
    }
    if let Some(web) = client_of(session) {
        web.cut_short.store(true, Ordering::Relaxed);
    }
    let _who_does_not_read_gets_less = timeout(FAREWELL, session.as_downstream_mut().shutdown()).await;
}

pub(crate) fn client_in(carrier: &ProxyDigest) -> Option<&WebClient> {
    carrier.user_data.as_ref()?.downcast_ref()
}

pub(crate) fn note_refusal(env: &WebEnv, carrier: &ProxyDigest, reason: Reason) {
    if let Some(web) = client_in(carrier) {
        let refused = RefusedConnection::of(&web.facts);
        env.refusals.refused(refused, reason);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::http::login;
    use base64::Engine as _;
    use base64::prelude::BASE64_STANDARD;
    use std::task::Poll;

    #[test]
    fn credentials_are_known_by_their_password() {
        let login = |user: &str, password: &str| {
            let plain = format!("Basic {}", BASE64_STANDARD.encode(format!("{user}:{password}")));
            let headers = [(http::header::AUTHORIZATION, HeaderValue::from_str(&plain).unwrap())];
            let uri = http::Uri::from_static("/dav/a/");
            login::basic(&http::Method::POST, &uri, &headers.into_iter().collect())
                .unwrap()
                .unwrap()
        };
        let seen = SeenUser::default();
        let good = login("bob", "right");
        assert!(seen.is_new_unproved(&good) && !seen.is_new_unproved(&good) && !seen.knows(&good));
        assert!(seen.is_new(&good) && !seen.is_new(&good) && seen.knows(&good));
        assert!(!seen.knows(&login("bob", "guess")) && !seen.knows(&login("eve", "right")));
        assert!(!seen.is_new_unproved(&good) && seen.is_new_unproved(&login("bob", "guess")));
    }

    #[test]
    fn lines_stand_behind_the_first_of_a_head() {
        let lines = AnswerLines {
            id: RequestId::random(),
            host: Bytes::from_static(b"a: b\r\n"),
        };
        let added = |head: &[u8]| {
            let mut gathered = Gathered::default();
            lines.add_to(head, &mut gathered, 0).map(|()| {
                let mut sent = Vec::new();
                let polled = gathered.poll_out(|bytes| {
                    sent.extend_from_slice(bytes);
                    Poll::Ready(Ok(bytes.len()))
                });
                assert!(polled.is_ready());
                String::from_utf8(sent).unwrap()
            })
        };
        let expected = format!(
            "HTTP/1.1 200 OK\r\nx-request-id: {}\r\na: b\r\nc: d\r\n\r\n",
            lines.id.as_str()
        );
        assert_eq!(added(b"HTTP/1.1 200 OK\r\nc: d\r\n\r\n"), Some(expected));
        assert_eq!(added(b"HTTP/1.1 200 OK"), None);
        assert_eq!(added(b"text\nmore"), None);
    }

    #[test]
    fn a_connection_may_have_several_clients() {
        let forwarded = ForwardedValues::default();
        for (client, expected) in [
            ("::ffff:198.51.100.7", "198.51.100.7"),
            ("2001:db8::1", "2001:db8::1"),
            ("::ffff:198.51.100.7", "198.51.100.7"),
        ] {
            assert_eq!(forwarded.client(client.parse().unwrap()), expected);
        }
        for port in [443, 8443, 443] {
            assert_eq!(forwarded.port(port), port.to_string());
        }
    }
}
