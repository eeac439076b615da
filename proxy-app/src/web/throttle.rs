//! Web logins and the throttle: it is asked before a server gets a login, and told of the answer.
//!
//! A login with Basic is known by its head. One in a body is known when the body has come: bodies of logins are short,
//! and are read before a server is chosen, so that no server connection is held while a login is delayed.

use std::future::pending;
use std::net::IpAddr;
use std::pin::pin;
use std::time::{Duration, Instant};

use http::HeaderMap;
use http::header::{CONTENT_LENGTH, EXPECT, USER_AGENT};
use mail_proxy::login_failure::THROTTLED_WAIT;
use mail_proxy::throttle::{Admitted, Claim, LoginChannel, Throttled};
use pingora::{Error, ErrorType, Result};
use pingora_proxy::Session;
use route_cache::{Lookup, Service, Subject};
use tokio::select;
use tokio::time::timeout;

use crate::app::env::WebEnv;
use crate::http::account;
use crate::http::login::{LoginAttempt, LoginBody, LoginForm};
use crate::node::limits::{Lease, LeaseKind};
use crate::web::client::{WebClient, client_of};
use crate::web::decision::RequestInfo;
use crate::web::request_context::{DRIPPING, RequestContext, body_time};

/// Longest body that is read before a server is chosen: what the engine keeps to send it again.
const AHEAD_MAX: u64 = 64 * 1024;
/// How long the canonical name of an account may take to be found. While the directory is down, spellings count apart.
const NAME: Duration = Duration::from_millis(500);

/// Has the throttle let the login of a request through, at once or after a delay.
///
/// # Errors
/// It does not; with the status of the answer.
pub(crate) async fn admit(
    env: &WebEnv,
    session: &mut Session,
    context: &mut RequestContext,
    info: &RequestInfo,
) -> Result<()> {
    let _held = read_ahead(env, session, context, info.client).await?;
    let Some(web) = client_of(session) else { return Ok(()) };
    let begun = Instant::now();
    let Some((seen, account)) = judged(env, web, info, context).await? else {
        return Ok(());
    };
    let device = device(&session.req_header().headers).to_owned();
    let claim = claim(&account, &seen, info, &device);
    let said = web.seen_user.policy_said(&seen);
    let admitting = pin!(env.throttle.admit_told(&claim, said));
    let admitted = select! {
        // Most need not wait, and their connection is not looked at.
        biased;
        admitted = admitting => admitted,
        left = client_left(session) => {
            context.gate.leave();
            return Err(left);
        }
    };
    wait_if_refused(&admitted, begun).await;
    settle(context, admitted)
}

/// Completes when the client has left, with the error that the engine makes of it. The delay of a login is no use to
/// one that does not wait for it, and its guess must not reach a server.
///
/// A client behind a long body that has not come cannot be heard.
async fn client_left(session: &mut Session) -> Box<Error> {
    let session = session.as_mut();
    if !session.is_http2() && !session.is_body_done() {
        if !is_short(&session.req_header().headers) {
            return pending().await;
        }
        session.enable_retry_buffering();
    }
    loop {
        let ended = session.is_body_done();
        match session.read_body_or_idle(ended || session.is_http2()).await {
            Ok(_) => {}
            Err(error) => return error.into_down(),
        }
    }
}

/// The same for a login that cannot wait: its server has been chosen.
///
/// # Errors
/// A rule delays or refuses it; with the status of the answer.
pub(crate) async fn admit_now(
    env: &WebEnv,
    web: &WebClient,
    context: &mut RequestContext,
    info: &RequestInfo,
    headers: &HeaderMap,
) -> Result<()> {
    let begun = Instant::now();
    let Some((seen, account)) = judged(env, web, info, context).await? else {
        return Ok(());
    };
    let admitted = env
        .throttle
        .admit_now(&claim(&account, &seen, info, device(headers)))
        .await;
    wait_if_refused(&admitted, begun).await;
    settle(context, admitted)
}

/// The same for an upgrade, which is not held up here: one that cannot pass at once is the engine's. `None`: this one is.
pub(crate) async fn admit_early(
    env: &WebEnv,
    web: &WebClient,
    context: &mut RequestContext,
    info: &RequestInfo,
    headers: &HeaderMap,
) -> Option<()> {
    let Some((seen, account)) = judged(env, web, info, context).await.ok()? else {
        return Some(());
    };
    let claim = claim(&account, &seen, info, device(headers));
    match env.throttle.admit_early(&claim).await {
        Ok(admitted) => context.gate.open(admitted),
        Err(said) => {
            web.seen_user.note_policy(&seen, said);
            return None;
        }
    }
    Some(())
}

/// An upgrade that has passed is the engine's after all: the policy service is not asked again.
pub(crate) fn withdraw(env: &WebEnv, web: &WebClient, context: &mut RequestContext) {
    let said = context.gate.withdraw(env);
    if let Some(seen) = &context.seen {
        web.seen_user.note_policy(seen, said);
    }
}

/// What is refused is answered after the same time, whether the name had to be looked for or was known.
async fn wait_if_refused(admitted: &Result<Admitted, Throttled>, begun: Instant) {
    if admitted.is_err() {
        tokio::time::sleep(THROTTLED_WAIT.saturating_sub(begun.elapsed())).await;
    }
}

fn claim<'a>(account: &'a str, seen: &LoginAttempt, info: &RequestInfo, device: &'a str) -> Claim<'a> {
    Claim {
        account,
        client: info.client,
        password: seen.mark,
        channel: LoginChannel {
            protocol: "http",
            tls: info.scheme == "https",
            device,
            token: false,
        },
    }
}

/// What the client calls itself.
fn device(headers: &HeaderMap) -> &str {
    let agent = headers.get(USER_AGENT).and_then(|agent| agent.to_str().ok());
    agent.unwrap_or_default()
}

fn settle(context: &mut RequestContext, admitted: Result<Admitted, Throttled>) -> Result<()> {
    match admitted {
        Ok(admitted) => {
            context.gate.open(admitted);
            Ok(())
        }
        Err(throttled) => {
            context.gate.close(throttled);
            Error::e_explain(ErrorType::HTTPStatus(429), "too many logins have failed")
        }
    }
}

/// The login that is to be judged, with the name of its account. A client that sends the same good credentials with every
/// request is judged once for a connection, unless others may share it.
async fn judged(
    env: &WebEnv,
    web: &WebClient,
    info: &RequestInfo,
    context: &RequestContext,
) -> Result<Option<(LoginAttempt, String)>> {
    let Some(seen) = context.seen.as_ref().filter(|_| context.gate.is_undecided()) else {
        return Ok(None);
    };
    if seen.form == LoginForm::Basic && !info.relayed && web.seen_user.knows(seen) {
        return Ok(None);
    }
    if seen.form == LoginForm::Batch && seen.logins > 1 {
        return Error::e_explain(ErrorType::HTTPStatus(403), "a batch of logins");
    }
    let account = account_name(env, web, info, &seen.user).await;
    Ok(Some((seen.clone(), account)))
}

/// The canonical name of an account, or the name that no account has.
async fn account_name(env: &WebEnv, web: &WebClient, info: &RequestInfo, typed: &str) -> String {
    let lookup = Lookup {
        subject: Subject::Login(account::without_backslash(typed).into_owned()),
        service: Service::Web,
        client: info.client,
        local: web.facts.client.local.ip(),
        host: info.host.clone(),
    };
    match timeout(NAME, env.routes.route(&lookup)).await {
        Ok(Ok(route)) => route.account.to_string(),
        Ok(Err(_)) | Err(_) => env.routes.key_name(&lookup),
    }
}

/// Reads the body of what may be a login, if it is short and its length is known. The engine keeps a copy for the
/// server. A client that waits for us to ask for its body is judged when it comes.
///
/// # Errors
/// It does not come, cannot be read, or as many are held as may be; with the status of the answer.
async fn read_ahead(
    env: &WebEnv,
    session: &mut Session,
    context: &mut RequestContext,
    client: IpAddr,
) -> Result<Option<Lease>> {
    if !is_short(&session.req_header().headers) {
        return Ok(None);
    }
    let Some(mut body) = context.body.take() else {
        return Ok(None);
    };
    let Some(held) = env.limits.lease(LeaseKind::Body, client) else {
        return Error::e_explain(ErrorType::HTTPStatus(503), "too many logins wait");
    };
    let grace = env.config.load().web.client_body_timeout;
    session.as_mut().enable_retry_buffering();
    read_body(session, &mut body, context.begun, grace).await?;
    context.awaits_client = None;
    let seen = context.readable(body.read())?;
    context.seen = seen.or(context.seen.take());
    Ok(Some(held))
}

/// Whether a body comes that may be read ahead.
fn is_short(headers: &HeaderMap) -> bool {
    let length = headers.get(CONTENT_LENGTH);
    let length: Option<u64> = length.and_then(|length| length.to_str().ok()?.parse().ok());
    length.is_some_and(|length| (1..=AHEAD_MAX).contains(&length)) && !headers.contains_key(EXPECT)
}

async fn read_body(session: &mut Session, body: &mut LoginBody, begun: Instant, grace: Duration) -> Result<()> {
    let mut bytes = 0;
    loop {
        // As long as any other body may take.
        let left = body_time(bytes, grace).saturating_sub(begun.elapsed());
        match timeout(left, session.as_mut().read_request_body()).await {
            Ok(Ok(Some(chunk))) => {
                bytes += chunk.len() as u64;
                body.push(&chunk);
            }
            Ok(Ok(None)) => return Ok(()),
            Ok(Err(error)) => return Err(error.into_down()),
            Err(_) => return Error::e_explain(ErrorType::HTTPStatus(408), DRIPPING),
        }
    }
}
