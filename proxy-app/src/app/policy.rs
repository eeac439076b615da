//! The policy service of `throttle.policy`, by weakforced's protocol: `allow` before a login, `report` after it.
//!
//! A service that fails costs a login its time limit at most. After some failures in a row it is left alone for a while,
//! and then asked by one login first. Reports never make a login wait; where there are too many, some are lost.

use std::fmt::Write as _;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use mail_directory::Secret;
use mail_proxy::throttle::{LoginPolicy, Mode, PolicyAnswer, PolicyEnd, PolicyLogin, share_marks};
use openssl::sha::sha256;
use parking_lot::Mutex;
use prometheus::IntCounterVec;
use route_cache::lookup::{BoxStream, Dial, HandlerUrl, HttpService};
use serde::{Deserialize, Serialize};
use tokio::sync::Semaphore;
use tokio::time::{Instant, timeout};

use crate::app::App;
use crate::config::{Config, PolicyConfig};
use crate::tls::upstream::UpstreamTrust;
use crate::upstream::connect::connect_to_service;
use crate::upstream::dns::DnsCache;

/// Questions under way at one time.
const MAX_ASKING: usize = 64;
/// Reports that wait or are under way, and of these, those that are under way.
const MAX_REPORTS: usize = 1_000;
const MAX_REPORTING: usize = 8;
/// Room for what a request has besides its path, its secret and its body: no copy of the secret is left by growing.
const ROOM: usize = 512;
/// Failures in a row after which it is left alone.
const MOST_FAILURES: u32 = 3;

/// The service as it is asked.
pub(crate) struct PolicyService(Arc<PolicyState>);

struct PolicyState {
    config: PolicyConfig,
    /// The name of this node.
    node: String,
    service: HttpService,
    dial: PolicyDial,
    /// For questions, and for reports: a service may fail at one of them only.
    breakers: [Breaker; 2],
    asking: Semaphore,
    reports: Arc<Semaphore>,
    reporting: Semaphore,
    counts: IntCounterVec,
}

/// What it is asked for.
#[derive(Clone, Copy, PartialEq, Eq)]
enum PolicyCommand {
    Allow,
    Report,
}

impl PolicyCommand {
    fn name(self) -> &'static str {
        match self {
            Self::Allow => "allow",
            Self::Report => "report",
        }
    }
}

/// What is sent.
#[derive(Serialize)]
struct LoginTuple<'a> {
    login: &'a str,
    remote: String,
    pwhash: String,
    protocol: &'static str,
    tls: bool,
    device_id: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    success: Option<bool>,
    #[serde(skip_serializing_if = "Option::is_none")]
    policy_reject: Option<bool>,
    attrs: Attributes<'a>,
}

#[derive(Serialize)]
struct Attributes<'a> {
    node: &'a str,
}

/// What it says, as far as it is read.
#[derive(Deserialize)]
struct AllowAnswer {
    status: i64,
}

/// Leaves the service alone while it fails.
#[derive(Default)]
struct Breaker(Mutex<Failures>);

#[derive(Default)]
struct Failures {
    /// In a row.
    count: u32,
    /// Until then it is not asked.
    until: Option<Instant>,
}

impl Breaker {
    /// Whether it may be asked now. After a failure one asks first: the others wait until that one has an answer, or
    /// for another `retry`.
    fn may_ask(&self, retry: Duration) -> bool {
        let mut failures = self.0.lock();
        let Some(until) = failures.until else { return true };
        let now = Instant::now();
        if now < until {
            return false;
        }
        failures.until = Some(now + retry);
        true
    }

    /// It has answered. Returns whether it did not before.
    fn answered(&self) -> bool {
        let mut failures = self.0.lock();
        failures.count = 0;
        failures.until.take().is_some()
    }

    /// It has not. Returns whether it is left alone from now on.
    fn failed(&self, retry: Duration) -> bool {
        let mut failures = self.0.lock();
        failures.count = failures.count.saturating_add(1);
        if failures.count < MOST_FAILURES {
            return false;
        }
        failures.until.replace(Instant::now() + retry).is_none()
    }
}

impl PolicyService {
    /// Nothing is connected yet.
    pub(crate) fn new(config: PolicyConfig, node: &str, dns: Arc<DnsCache>, counts: IntCounterVec) -> Self {
        Self(Arc::new(PolicyState {
            service: HttpService::reading(config.url.clone()),
            dial: PolicyDial {
                dns,
                trust: config.trust.clone(),
            },
            node: node.to_owned(),
            breakers: Default::default(),
            asking: Semaphore::new(MAX_ASKING),
            reports: Arc::new(Semaphore::new(MAX_REPORTS)),
            reporting: Semaphore::new(MAX_REPORTING),
            counts,
            config,
        }))
    }
}

impl App {
    /// Asks the policy service of this node file from now on.
    pub(super) fn set_policy(&self, config: &Config) {
        let wanted = config.throttle.policy.as_ref();
        let wanted = wanted.filter(|policy| policy.mode != Mode::Off);
        share_marks(wanted.and_then(|policy| policy.hash_key.as_deref()).map(key_of));
        let counts = self.metrics.policy();
        let service = wanted.map(|policy| -> Arc<dyn LoginPolicy> {
            Arc::new(PolicyService::new(
                policy.clone(),
                &config.node,
                self.dns.clone(),
                counts,
            ))
        });
        self.throttle.set_policy(service);
    }
}

/// The key of the hashes that nodes have in common, from what stands in their files.
fn key_of(secret: &Secret<String>) -> [u8; 16] {
    let digest = sha256(secret.expose().as_bytes());
    std::array::from_fn(|at| digest[at])
}

#[async_trait]
impl LoginPolicy for PolicyService {
    fn is_dry(&self) -> bool {
        self.0.config.mode == Mode::DryRun
    }

    async fn allow(&self, login: &PolicyLogin) -> PolicyAnswer {
        if !self.0.config.asks {
            return PolicyAnswer::Pass;
        }
        let heard = self.0.heard(PolicyCommand::Allow, || self.0.allowed(login)).await;
        let (answer, word) = match heard {
            Some(PolicyAnswer::Pass) => (PolicyAnswer::Pass, "passed"),
            Some(PolicyAnswer::Delay(time)) => (PolicyAnswer::Delay(time), "delayed"),
            Some(PolicyAnswer::Refuse) => (PolicyAnswer::Refuse, "refused"),
            None if self.0.config.allows_on_failure => return PolicyAnswer::Pass,
            None => return PolicyAnswer::Refuse,
        };
        self.0.count(PolicyCommand::Allow, word);
        answer
    }

    fn report(&self, login: &PolicyLogin, end: PolicyEnd) {
        if !self.0.config.reports {
            return;
        }
        let Ok(place) = self.0.reports.clone().try_acquire_owned() else {
            self.0.count(PolicyCommand::Report, "lost");
            return;
        };
        let (shared, login) = (self.0.clone(), login.clone());
        tokio::spawn(async move {
            let Ok(_turn) = shared.reporting.acquire().await else {
                return;
            };
            if shared
                .heard(PolicyCommand::Report, || shared.told(&login, end))
                .await
                .is_some()
            {
                shared.count(PolicyCommand::Report, "told");
            }
            drop(place);
        });
    }
}

impl PolicyState {
    fn count(&self, command: PolicyCommand, result: &str) {
        self.counts.with_label_values(&[command.name(), result]).inc();
    }

    /// What comes back within the time limit; `None`: nothing, or it was not asked.
    async fn heard<T, F>(&self, command: PolicyCommand, ask: impl FnOnce() -> F) -> Option<T>
    where
        F: Future<Output = Result<T, String>> + Send,
    {
        let breaker = &self.breakers[command as usize];
        if !breaker.may_ask(self.config.retry) {
            self.count(command, "skipped");
            return None;
        }
        let asked = timeout(self.config.timeout, ask()).await;
        match asked.unwrap_or_else(|_| Err("no answer in time".to_owned())) {
            Ok(answer) => {
                if breaker.answered() && command == PolicyCommand::Allow {
                    log::info!("policy service {} answers again", self.config.url.address());
                }
                Some(answer)
            }
            Err(why) => {
                self.count(command, "failed");
                if breaker.failed(self.config.retry) && command == PolicyCommand::Allow {
                    let becomes = if self.config.allows_on_failure {
                        "let through"
                    } else {
                        "refused"
                    };
                    let at = self.config.url.address();
                    log::warn!("policy service {at}: {why}; until it answers again, logins are {becomes}");
                }
                None
            }
        }
    }

    async fn allowed(&self, login: &PolicyLogin) -> Result<PolicyAnswer, String> {
        let _place = self.asking.acquire().await.map_err(|error| error.to_string())?;
        let content = self.exchange(PolicyCommand::Allow, &self.tuple(login, None)).await?;
        let answer: AllowAnswer =
            serde_json::from_slice(&content).map_err(|_| "its answer has no status".to_owned())?;
        Ok(match answer.status {
            ..0 => PolicyAnswer::Refuse,
            0 => PolicyAnswer::Pass,
            seconds => PolicyAnswer::Delay(Duration::from_secs(seconds.unsigned_abs())),
        })
    }

    async fn told(&self, login: &PolicyLogin, end: PolicyEnd) -> Result<(), String> {
        self.exchange(PolicyCommand::Report, &self.tuple(login, Some(end)))
            .await
            .map(drop)
    }

    fn tuple<'a>(&'a self, login: &'a PolicyLogin, end: Option<PolicyEnd>) -> LoginTuple<'a> {
        LoginTuple {
            login: &login.account,
            remote: login.client.to_string(),
            pwhash: login.hash.map(|hash| format!("{hash:04x}")).unwrap_or_default(),
            protocol: login.protocol,
            tls: login.tls,
            device_id: &login.device,
            success: end.map(|end| end == PolicyEnd::Right),
            policy_reject: end.map(|end| end == PolicyEnd::Refused),
            attrs: Attributes { node: &self.node },
        }
    }

    async fn exchange(&self, command: PolicyCommand, tuple: &LoginTuple<'_>) -> Result<Vec<u8>, String> {
        let request = request(&self.config, command, tuple).map_err(|error| error.to_string())?;
        let response = self.service.ask(&self.dial, request.expose()).await;
        Ok(response.map_err(|fault| fault.to_string())?.content)
    }
}

fn request(
    config: &PolicyConfig,
    command: PolicyCommand,
    tuple: &LoginTuple<'_>,
) -> serde_json::Result<Secret<Vec<u8>>> {
    let body = serde_json::to_string(tuple)?;
    let HandlerUrl { path, .. } = &config.url;
    let more = if path.contains('?') { '&' } else { '?' };
    let (host, length, command) = (config.url.address(), body.len(), command.name());
    let authorization = config.authorization.as_deref().map_or("", |line| line.expose());
    let mut text = String::with_capacity(path.len() + authorization.len() + length + ROOM);
    let _fits = write!(text, "POST {path}{more}command={command} HTTP/1.1\r\nHost: {host}\r\n");
    let _fits = write!(text, "Content-Type: application/json\r\nContent-Length: {length}\r\n");
    for part in [authorization, "\r\n", &body] {
        text.push_str(part);
    }
    Ok(Secret::new(text.into_bytes()))
}

/// Connects to it. The caller sets the time limit.
struct PolicyDial {
    dns: Arc<DnsCache>,
    trust: Option<Arc<UpstreamTrust>>,
}

#[async_trait]
impl Dial for PolicyDial {
    async fn connect(&self, url: &HandlerUrl) -> io::Result<BoxStream> {
        let stream = connect_to_service(&self.dns, &url.host, url.port, self.trust.as_deref()).await?;
        Ok(Box::new(stream))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn after_failures_in_a_row_one_asks_first() {
        let (breaker, retry) = (Breaker::default(), Duration::from_secs(5));
        assert!(breaker.may_ask(retry));
        assert!(!breaker.failed(retry) && !breaker.failed(retry) && breaker.may_ask(retry));
        assert!(breaker.failed(retry) && !breaker.may_ask(retry));
        tokio::time::advance(retry).await;
        assert!(breaker.may_ask(retry) && !breaker.may_ask(retry));
        assert!(!breaker.failed(retry) && !breaker.may_ask(retry));
        tokio::time::advance(retry).await;
        assert!(breaker.may_ask(retry) && breaker.answered() && breaker.may_ask(retry));
        assert!(!breaker.failed(retry) && breaker.may_ask(retry));
    }
}
