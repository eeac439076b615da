//! Certificates of domains from the ACME authority of the node file: which are wanted, ordered when they are due,
//! stored where certificates of domains are stored, and in force at once.

use std::sync::Arc;
use std::time::Duration;

use futures_util::StreamExt;
use jiff::Timestamp;
use mail_directory::{System, View, attributes as a, names};

use crate::acme::account_key::AccountKey;
use crate::acme::care::{CurrentCertificate, DueOrder, WantedDomain};
use crate::acme::client::{AcmeClient, AcmeFailure, IssuedCertificate};
use crate::acme::exchange::AuthorityWeb;
use crate::app::App;
use crate::app::certificates::is_from_authority;
use crate::app::stored::replace;
use crate::config::{AcmeConfig, AcmeDomains};
use crate::provision::{CommandOutput, ProvisionError, values};
use crate::tls::certificate_store::CertStore;

/// Orders under way at one time.
const AT_ONCE: usize = 4;
/// Most names of a certificate (Let's Encrypt).
const NAMES_MAX: usize = 100;
/// The longest pause between two looks, in seconds: the clock may have been set.
const LONGEST_PAUSE: i64 = 60 * 60;
/// Who has changed a domain, in the audit log.
const WHO: &str = "acme";

impl App {
    /// Orders certificates when they are due, until it is dropped. An order that has begun is then given up.
    pub(crate) async fn follow_certificates(self: Arc<Self>) {
        loop {
            let next = self.order_certificates().await;
            let pause = next.saturating_sub(now()).clamp(1, LONGEST_PAUSE);
            tokio::select! {
                () = self.configured.notified() => {}
                () = tokio::time::sleep(Duration::from_secs(pause.unsigned_abs())) => {}
            }
        }
    }

    /// Makes the orders that are due. Returns when to look again, in seconds since 1970.
    async fn order_certificates(self: &Arc<Self>) -> i64 {
        let Some(acme) = self.config.load().acme.clone() else {
            return self.care.due(&[], now()).1;
        };
        let wanted = {
            let acme = acme.clone();
            self.off_the_runtime(move |app| app.wanted_certificates(&acme)).await
        };
        let (orders, next) = self.care.due(&wanted, now());
        if orders.is_empty() {
            return next;
        }
        match self.acme_client(&acme).await {
            Ok(client) => {
                self.care.authority_answers();
                let (client, acme) = (&client, &acme);
                let each = futures_util::stream::iter(orders);
                let ordered = each.for_each_concurrent(AT_ONCE, |order| self.order_certificate(client, acme, order));
                ordered.await;
            }
            Err(failure) => self.authority_failed(&failure),
        }
        now()
    }

    /// The domains that are to have certificates of the authority.
    fn wanted_certificates(&self, acme: &AcmeConfig) -> Vec<WantedDomain> {
        let (system, store) = (self.snapshot.load().system.clone(), self.certificates.load());
        let domains = system.domains();
        domains
            .filter_map(|domain| wanted(acme, &system, &store, &domain))
            .collect()
    }

    async fn acme_client(self: &Arc<Self>, acme: &AcmeConfig) -> Result<AcmeClient, AcmeFailure> {
        let file = acme.account_key_file.clone();
        let key = self.off_the_runtime(move |_| AccountKey::load_or_make(&file)).await;
        let key = key.map_err(|why| AcmeFailure::Authority { why, wait: None })?;
        let web = AuthorityWeb {
            dns: self.dns.clone(),
            trust: acme.trust.clone(),
        };
        AcmeClient::open(acme, key, web, self.challenges.clone()).await
    }

    fn authority_failed(&self, failure: &AcmeFailure) {
        let AcmeFailure::Authority { why, wait } = failure else {
            return;
        };
        if let Some(until) = self.care.authority_failed(why, *wait, now()) {
            let until = at(until);
            log::warn!("the ACME authority cannot be used: {why}; it is asked again at {until}, certificates stay");
        }
    }

    /// Orders a certificate for a domain. Where names are refused, the others are ordered without them.
    async fn order_certificate(self: &Arc<Self>, client: &AcmeClient, acme: &AcmeConfig, order: DueOrder) {
        let domain = &order.domain;
        let mut names = order.names.clone();
        while !names.is_empty() && !self.care.authority_rests(now()) {
            match client.obtain(&names, acme.key).await {
                Ok(issued) => {
                    match self.take_certificate(acme, domain, issued).await {
                        Ok(()) => {
                            self.care.succeeded(domain, &names);
                            log::info!(
                                "domain {domain}: a new certificate is in force, for {}",
                                names.join(", ")
                            );
                        }
                        Err(why) => self.order_failed(domain, &why, None),
                    }
                    return;
                }
                Err(AcmeFailure::Names(refused)) => {
                    let count = names.len();
                    for (name, why) in refused.iter().filter(|(name, _)| names.contains(name)) {
                        let until = at(self.care.name_failed(domain, name, why, now()));
                        log::warn!("domain {domain}: {name} gets no certificate: {why}; it is tried again at {until}");
                    }
                    names.retain(|name| !refused.iter().any(|(bad, _)| bad == name));
                    if names.len() == count {
                        let why = "the authority refuses names that were not asked for";
                        return self.order_failed(domain, why, None);
                    }
                    if order.kept.iter().any(|name| !names.contains(name)) {
                        // The certificate in use is good for that name, too.
                        return;
                    }
                }
                Err(AcmeFailure::Order { why, wait }) => return self.order_failed(domain, &why, wait),
                Err(failure) => return self.authority_failed(&failure),
            }
        }
    }

    fn order_failed(&self, domain: &str, why: &str, wait: Option<Duration>) {
        let until = at(self.care.order_failed(domain, why, wait, now()));
        log::warn!("domain {domain}: no new certificate: {why}; it is ordered again at {until}");
    }

    /// Stores a certificate with its key, unless an administrator has stored one meanwhile, and waits until it is in
    /// force.
    async fn take_certificate(
        self: &Arc<Self>,
        acme: &AcmeConfig,
        domain: &str,
        issued: IssuedCertificate,
    ) -> Result<(), String> {
        let is_wanted = {
            let (system, store) = (self.snapshot.load().system.clone(), self.certificates.load());
            let wanted = system
                .domain(domain)
                .and_then(|domain| wanted(acme, &system, &store, &domain));
            wanted.is_some_and(|wanted| {
                wanted
                    .current
                    .is_none_or(|current| current.is_ours || current.expires <= now())
            })
        };
        if !is_wanted {
            return Err("it is no longer wanted, the domain has changed".to_owned());
        }
        let changes = [
            replace(&a::SSL_CERTIFICATE, Some(issued.certificate)),
            replace(&a::SSL_PRIVATE_KEY, Some(issued.key.expose().clone())),
            replace(&a::PORTICO_ACME_FINGERPRINT, Some(issued.fingerprint.clone())),
        ];
        let mut output = CommandOutput::default();
        self.change_domain(domain, &changes, &mut output).await.map_err(told)?;
        self.audit_act(WHO, format!("domain {domain}: certificate stored, private key stored"));
        let seen = self.domain_in_force(domain, &changes).await;
        let in_use = self.certificates.load().of_domain(domain);
        match in_use.is_some_and(|pair| pair.fingerprint_text() == issued.fingerprint) {
            true => Ok(()),
            false => Err(match seen {
                Ok(()) => "it is stored, and not in use: portico check says why".to_owned(),
                Err(problems) => format!(
                    "it is stored, and this node does not see it: {}",
                    problems.first_error()
                ),
            }),
        }
    }
}

/// What a domain is to have, if it is one for this client.
fn wanted(acme: &AcmeConfig, system: &System, store: &CertStore, domain: &View<'_>) -> Option<WantedDomain> {
    let is_marked = match domain.choice(&a::PORTICO_ACME) {
        "" => acme.domains == AcmeDomains::All,
        word => word == "on",
    };
    let names = domain.list(&a::VIRTUAL_HOSTNAME);
    if !is_marked || names.is_empty() {
        return None;
    }
    let mut wanted = WantedDomain {
        name: domain.name().to_owned(),
        ..WantedDomain::default()
    };
    for name in names.into_iter().map(names::host) {
        match barred(system, domain, &name) {
            Some(why) => drop(wanted.barred.insert(name, why)),
            None if wanted.hosts.contains(&name) => {}
            None if wanted.hosts.len() == NAMES_MAX => {
                let why = format!("a certificate has at most {NAMES_MAX} names");
                wanted.barred.insert(name, why);
            }
            None => wanted.hosts.push(name),
        }
    }
    wanted.current = store.of_domain(domain.name()).map(|pair| {
        let uncovered = pair.uncovered(wanted.hosts.iter().map(String::as_str));
        let covers = wanted.hosts.iter().filter(|host| !uncovered.contains(&host.as_str()));
        CurrentCertificate {
            is_ours: is_from_authority(domain, &pair),
            expires: now().saturating_add(pair.seconds_left()),
            lifetime: pair.lifetime(),
            covers: covers.cloned().collect(),
            spread: pair.fingerprint().first().copied().unwrap_or_default(),
        }
    });
    Some(wanted)
}

/// Why the authority is not asked for a name of this domain.
fn barred(system: &System, domain: &View<'_>, name: &str) -> Option<String> {
    if name.starts_with("*.") {
        return Some("a pattern is proved by DNS-01 only, which Portico cannot do".to_owned());
    }
    if !values::is_virtual_host(name) {
        return Some("no authority knows such a name".to_owned());
    }
    let owner = system
        .domain_by_host(name)
        .filter(|owner| owner.name() != domain.name());
    owner.map(|owner| format!("it belongs to the domain {}", owner.name()))
}

fn told(error: ProvisionError) -> String {
    match error {
        ProvisionError::Usage(message) | ProvisionError::Plain(message) => message,
        ProvisionError::Service { message, .. } => message,
    }
}

/// Seconds since 1970.
fn now() -> i64 {
    Timestamp::now().as_second()
}

/// This time for people.
pub(crate) fn at(seconds: i64) -> String {
    Timestamp::from_second(seconds).map_or_else(|_| "-".to_owned(), |time| time.to_string())
}
