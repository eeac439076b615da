//! `throttle.policy`: another service that has a word on logins, by weakforced's protocol.

use std::sync::Arc;
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use mail_directory::Secret;
use mail_directory::yaml::{Mapping, Node};
use mail_proxy::throttle::Mode;
use route_cache::lookup::{Dialect, HandlerUrl};

use super::read::ConfigReader;
use crate::tls::upstream::UpstreamTrust;

/// The user of weakforced's API.
const USER: &str = "wforce";
/// A login waits no longer than this for the service, whatever the node file says.
const LONGEST: Duration = Duration::from_secs(10);

/// `throttle.policy`
#[derive(Debug, Clone)]
pub(crate) struct PolicyConfig {
    /// `on`, `dry_run` or `off`.
    pub mode: Mode,
    /// Where it is.
    pub url: HandlerUrl,
    /// The header field that it knows us by, a whole line.
    pub authorization: Option<Arc<Secret<String>>>,
    /// The longest time that a login waits for its answer.
    pub timeout: Duration,
    /// How long it is left alone after it has failed.
    pub retry: Duration,
    /// What becomes of logins meanwhile: they are let through, or refused.
    pub allows_on_failure: bool,
    /// Whether it is asked before a login.
    pub asks: bool,
    /// Whether it is told how logins end.
    pub reports: bool,
    /// The key of the hashes of passwords; `None`: it gets none.
    pub hash_key: Option<Arc<Secret<String>>>,
    /// The authorities that it must be known by; `None`: it is asked in clear text.
    pub trust: Option<Arc<UpstreamTrust>>,
}

impl ConfigReader {
    pub(super) fn policy(&mut self, throttle: &mut Mapping<'_>) -> Option<PolicyConfig> {
        let mut section = self.section(throttle, "policy")?;
        let mode = self.throttle_mode(&mut section).unwrap_or(Mode::On);
        let url = section.require("url", &mut self.problems);
        let url = url.and_then(|node| self.policy_url(&node));
        let authorization = self.policy_authorization(&mut section);
        if authorization.is_some()
            && let Some(url) = &url
            && !url.tls
            && !is_here(url)
        {
            let text = "the password goes over the network in clear text: use https";
            section.node().warning(text, &mut self.problems);
        }
        let (mut timeout, mut retry) = (Duration::from_secs(1), Duration::from_secs(5));
        if let Some(node) = section.take("timeout") {
            match node.duration(&mut self.problems) {
                Some(time) if time.is_zero() || time > LONGEST => {
                    node.error("a login waits for it: more than 0, at most 10s", &mut self.problems);
                }
                time => timeout = time.unwrap_or(timeout),
            }
        }
        self.duration(&mut section, "retry", &mut retry);
        let failures = [("allow", true), ("refuse", false)];
        let on_failure = section.take("on_failure");
        let on_failure = on_failure.and_then(|node| node.choice(&failures, &mut self.problems));
        let asks = section.take("allow").and_then(|node| node.bool(&mut self.problems));
        let reports = section.take("report").and_then(|node| node.bool(&mut self.problems));
        // It must always prove its identity: it learns who logs in from where.
        let trust = match url.as_ref().is_some_and(|url| url.tls) {
            true => self.service_trust(&mut section),
            // Nobody is to be known: what stands there has no effect.
            false => section.take("ca_file").and(None),
        };
        let hash_key = section.take("hash_key_file").and_then(|node| self.password(node));
        section.finish(&mut self.problems);
        Some(PolicyConfig {
            mode,
            url: url?,
            authorization: authorization.map(Arc::new),
            timeout,
            retry,
            allows_on_failure: on_failure.unwrap_or(true),
            asks: asks.unwrap_or(true),
            reports: reports.unwrap_or(true),
            hash_key: hash_key.map(Arc::new),
            trust,
        })
    }

    fn policy_url(&mut self, node: &Node<'_>) -> Option<HandlerUrl> {
        let url = HandlerUrl::parse(&node.text(&mut self.problems)?, Dialect::Nginx);
        url.map_err(|why| node.error(why, &mut self.problems)).ok()
    }

    /// `user` with `password_file`, or `api_key_file`.
    fn policy_authorization(&mut self, section: &mut Mapping<'_>) -> Option<Secret<String>> {
        let user = self.text(section, "user");
        let (password, key) = (section.take("password_file"), section.take("api_key_file"));
        if user.is_some() && password.is_none() {
            section.node().error("user needs password_file", &mut self.problems);
        }
        if let (Some(_), Some(key)) = (&password, &key) {
            key.error("goes without password_file", &mut self.problems);
        }
        if let Some(node) = password {
            let password = self.password(node)?;
            let login = Secret::new(format!("{}:{}", user.as_deref().unwrap_or(USER), password.expose()));
            let login = Secret::new(STANDARD.encode(login.expose()));
            return Some(header("Authorization: Basic ", login.expose()));
        }
        let node = key?;
        let key = self.password(node)?;
        if !key.expose().bytes().all(|byte| byte.is_ascii_graphic()) {
            node.error("has letters that no header field takes", &mut self.problems);
            return None;
        }
        Some(header("X-API-Key: ", key.expose()))
    }
}

/// A header field with a secret value, as a whole line.
fn header(name: &str, value: &str) -> Secret<String> {
    Secret::new([name, value, "\r\n"].concat())
}

/// Whether it is on this machine.
fn is_here(url: &HandlerUrl) -> bool {
    url.host == "localhost"
        || url
            .host
            .parse::<std::net::IpAddr>()
            .is_ok_and(|address| address.is_loopback())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::tests::load;

    #[test]
    fn a_policy_has_a_place_and_a_secret() {
        let dir = tempfile::tempdir().unwrap();
        let file = |name: &str, text: &str| {
            let path = dir.path().join(name);
            std::fs::write(&path, text).unwrap();
            path.display().to_string()
        };
        let (good, bad) = (file("good", "super\n"), file("bad", "a b\n"));
        let policy = |text: &str| load(&format!("throttle: {{policy: {{{text}}}}}\n"));
        let (config, _) = policy(&format!(
            "url: 'http://127.0.0.1:8084/', password_file: {good}, on_failure: refuse, mode: dry_run"
        ))
        .unwrap();
        let policy_config = config.throttle.policy.unwrap();
        assert_eq!(
            policy_config.authorization.unwrap().expose(),
            "Authorization: Basic d2ZvcmNlOnN1cGVy\r\n"
        );
        assert_eq!(
            (policy_config.mode, policy_config.allows_on_failure, policy_config.asks),
            (Mode::DryRun, false, true)
        );
        let (config, _) = policy("url: 'http://127.0.0.1/', ca_file: /none/ca.pem").unwrap();
        assert!(config.throttle.policy.unwrap().trust.is_none());
        assert!(policy("url: 'https://a.test/', ca_file: /none/ca.pem").is_err());
        let (_, warnings) = policy(&format!("url: 'http://a.test/', api_key_file: {good}")).unwrap();
        assert!(
            warnings.iter().any(|text| text.message.contains("clear text")),
            "{warnings:?}"
        );
        for (wrong, text) in [
            (String::new(), "url is missing"),
            ("url: 'ftp://a'".to_owned(), "begins neither"),
            ("url: 'http://a', user: x".to_owned(), "user needs password_file"),
            ("url: 'http://a', timeout: 11s".to_owned(), "at most 10s"),
            ("url: 'http://a', timeout: 0s".to_owned(), "more than 0"),
            (
                "url: 'http://a', on_failure: perhaps".to_owned(),
                "throttle.policy.on_failure",
            ),
            (format!("url: 'http://a', api_key_file: {bad}"), "no header field"),
            (
                format!("url: 'http://a', api_key_file: {good}, password_file: {good}"),
                "goes without password_file",
            ),
            (
                "url: 'http://a', hash_key_file: none".to_owned(),
                "throttle.policy.hash_key_file",
            ),
        ] {
            let problems = policy(&wrong).unwrap_err();
            assert!(
                problems.iter().any(|problem| problem.contains(text)),
                "{wrong}: {problems:?}"
            );
        }
    }
}
