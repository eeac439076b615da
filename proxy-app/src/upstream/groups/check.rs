//! Active checks: is this server up?
//!
//! A mailbox server is asked for its own state over a connection that is kept, so that it need not log a TLS handshake
//! every few seconds. For other servers it is enough that they take a connection, unless the file names a path.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use pingora::http::RequestHeader;
use pingora::protocols::http::client::HttpSession;
use pingora::upstreams::peer::HttpPeer;
use pingora::{Error, ErrorType};
use pingora_load_balancing::Backend;
use pingora_load_balancing::health_check::HealthCheck;
use tokio::time::timeout;

use crate::http::headers;
use crate::upstream::connection::{Demand, Repeatable};
use crate::upstream::dial::Dial;
use crate::upstream::groups::Shared;
use crate::upstream::groups::members::Members;
use crate::upstream::groups::server::{GroupServer, Health, ServerDescription};
use crate::upstream::groups::spec::Check;
use crate::upstream::pool::ServerKey;

/// How long one check may take.
const PATIENCE: Duration = Duration::from_secs(3);
/// How long the connection of a check is kept: until the next check, and less than Jetty keeps it.
const KEPT: Duration = Duration::from_secs(25);
/// Checks that must fail before a server is left out, and succeed before it is taken back. Requests find a dead one
/// earlier.
const FALL: usize = 2;
const RISE: usize = 2;
/// Most interim answers (RFC 9110 §15.2) before the one to a check.
const INTERIM_MAX: usize = 8;
/// The most that is read of an answer to a check.
const ANSWER_MAX: usize = 64 * 1024;

/// The check as Pingora's trait wants it.
pub(super) struct HealthProbe(pub(super) Arc<Members>);

#[async_trait]
impl HealthCheck for HealthProbe {
    async fn check(&self, target: &Backend) -> pingora::Result<()> {
        let Some(server) = target.addr.as_inet().and_then(|address| self.0.server(*address)) else {
            return Ok(());
        };
        let found = timeout(PATIENCE, self.ask(&server)).await;
        let found = found.unwrap_or_else(|_| Err(CheckFailure::Unreachable("it does not answer".to_owned())));
        let (health, why) = match found {
            Ok(()) => (Health::Up, None),
            Err(CheckFailure::NotReady(why)) => (Health::NotReady, Some(why)),
            Err(CheckFailure::Unreachable(why)) => (Health::Unreachable, Some(why)),
        };
        server.check_found(health, why.clone());
        match why {
            None => Ok(()),
            Some(why) => Error::e_explain(ErrorType::ConnectError, why),
        }
    }

    async fn health_status_change(&self, target: &Backend, healthy: bool) {
        let server = target.addr.as_inet().and_then(|address| self.0.server(*address));
        if let Some(server) = server.filter(|_| healthy) {
            server.is_back();
        }
    }

    fn backend_summary(&self, target: &Backend) -> String {
        let server = target.addr.as_inet().and_then(|address| self.0.server(*address));
        let name = server.map_or_else(String::new, |server| server.description().server.name.to_string());
        format!("{name} ({}) in group {}", target.addr, self.0.name)
    }

    fn health_threshold(&self, success: bool) -> usize {
        if success { RISE } else { FALL }
    }
}

enum CheckFailure {
    /// It answers, but not with a good status.
    NotReady(String),
    Unreachable(String),
}

impl HealthProbe {
    async fn ask(&self, server: &GroupServer) -> Result<(), CheckFailure> {
        let description = server.description();
        let dial = || dial(&self.0.shared, server, &description);
        let Check::Http { path } = self.0.check() else {
            let connected = dial().open().await;
            return connected.map(drop).map_err(|error| unreachable(&error));
        };
        let status = match get(&self.0.shared, dial(), &description, &path).await {
            // A kept connection may have ended in the meantime: that says nothing of the server.
            Err(FailedCheck { kept: true, .. }) => get(&self.0.shared, dial(), &description, &path).await,
            outcome => outcome,
        };
        match status.map_err(|failed| unreachable(&failed.error))? {
            200..400 => Ok(()),
            400..500 if self.0.tolerates_unknown_path() => Ok(()),
            status => Err(CheckFailure::NotReady(format!("{path} says {status}"))),
        }
    }
}

fn unreachable(error: &Error) -> CheckFailure {
    CheckFailure::Unreachable(match &error.context {
        Some(context) => format!("{}: {}", error.etype().as_str(), context.as_str()),
        None => error.etype().as_str().to_owned(),
    })
}

/// A check that was not answered.
struct FailedCheck {
    error: Box<Error>,
    /// It was sent over a kept connection.
    kept: bool,
}

/// The status of an answer.
async fn get(shared: &Shared, dial: Dial, description: &ServerDescription, path: &str) -> Result<u16, FailedCheck> {
    let failed = |kept| move |error| FailedCheck { error, kept };
    let dial = Arc::new(dial);
    let mut peer = HttpPeer::new(dial.server.address, false, String::new());
    peer.options.custom_l4 = Some(dial.clone());
    let session = shared.connector.get_http_session(&peer).await;
    let (mut session, _new_to_the_engine) = session.map_err(failed(false))?;
    let connection = dial.found();
    let kept = connection.is_some_and(|found| found.reused);
    let request = request(description, path).map_err(failed(false))?;
    session.set_write_timeout(Some(PATIENCE));
    session.set_read_timeout(Some(PATIENCE));
    session
        .write_request_header(Box::new(request))
        .await
        .map_err(failed(kept))?;
    session.finish_request_body().await.map_err(failed(kept))?;
    let status = final_status(&mut session).await.map_err(failed(kept))?;
    let mut length = 0;
    while let Some(chunk) = session.read_response_body().await.map_err(failed(kept))? {
        length += chunk.len();
        if length > ANSWER_MAX {
            // It is not read to the end, so the connection cannot be kept.
            return Ok(status);
        }
    }
    if let Some(found) = connection {
        found.connection.touch();
        if session
            .response_header()
            .is_some_and(|answer| headers::closes(&answer.headers))
        {
            found.connection.spend();
        }
    }
    shared.connector.release_http_session(session, &peer, None).await;
    Ok(status)
}

/// The status of the answer behind interim ones, which have no body: asked for it, the engine panics.
async fn final_status(session: &mut HttpSession) -> pingora::Result<u16> {
    for _ in 0..=INTERIM_MAX {
        session.read_response_header().await?;
        let status = session.response_header().map_or(0, |answer| answer.status.as_u16());
        match status {
            101 => return Error::e_explain(ErrorType::InvalidHTTPHeader, "it says 101, and nobody asked for it"),
            100..200 => {}
            last => return Ok(last),
        }
    }
    Error::e_explain(ErrorType::InvalidHTTPHeader, "it never comes to its answer")
}

fn request(description: &ServerDescription, path: &str) -> pingora::Result<RequestHeader> {
    let mut request = RequestHeader::build("GET", path.as_bytes(), Some(2))?;
    request.insert_header("Host", description.server.address().authority())?;
    request.insert_header("User-Agent", "Portico health check")?;
    Ok(request)
}

fn dial(shared: &Shared, server: &GroupServer, description: &ServerDescription) -> Dial {
    let key = ServerKey {
        address: server.address,
        tls: description.server.tls.name().cloned(),
        verify: description.verify,
        http2: false,
        owner: None,
    };
    let demand = Demand {
        keepalive: KEPT,
        repeatable: Repeatable::Yes,
    };
    let trust = shared.inputs.load().trust.clone();
    Dial::new(shared.dialer.clone(), key, trust, PATIENCE, demand)
}
