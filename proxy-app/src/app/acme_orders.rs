//! Certificates of domains from the ACME authority of the node file: which are wanted, ordered when they are due,
//! stored where certificates of domains are stored, and in force at once.

use std::collections::HashSet;
use std::sync::Arc;
use std::time::Duration;

use futures_util::StreamExt;
use jiff::Timestamp;
use mail_directory::{Entry, System, View, attributes as a, names};
use tokio::sync::watch;

use crate::acme::account_key::AccountKey;
use crate::acme::care::{CertificateCare, DueOrder, RefusedName, WantedDomain};
use crate::acme::client::{AcmeClient, AcmeFailure, IssuedCertificate, life_of};
use crate::acme::exchange::AuthorityWeb;
use crate::acme::renewal_info::{RenewalAdvice, RenewalService};
use crate::app::App;
use crate::app::certificates::{is_from_authority, may_be_replaced};
use crate::app::stored::replace;
use crate::config::{AcmeConfig, AcmeDomains};
use crate::provision::{CommandOutput, ProvisionError, values};
use crate::tls::certificate_store::CertStore;

/// Orders under way at one time.
const AT_ONCE: usize = 4;
/// Most orders until the next look: a reload and new domains wait for those under way.
const IN_A_ROW: usize = 16;
/// How long an order may take in all, with the looks of the authority at each name.
const ORDER_WAIT: Duration = Duration::from_secs(10 * 60);
/// Most names of a certificate (Let's Encrypt).
const NAMES_MAX: usize = 100;
/// The longest pause between two looks, in seconds: the clock may have been set.
const LONGEST_PAUSE: i64 = 60 * 60;
/// Why a certificate is not followed by the next one at once.
const DUE_AT_ONCE: &str = "what the authority issues is due to be renewed at once";
/// What has failed is told to the other nodes at this pace while orders are under way.
const PAUSES_REST: Duration = Duration::from_secs(10);
/// Who has changed a domain, in the audit log.
const WHO: &str = "acme";

impl App {
    /// Orders certificates when they are due, until it is dropped. An order that has begun is then given up.
    pub(crate) async fn follow_certificates(self: Arc<Self>) {
        let mut turns = self.nodes.as_ref().map(|nodes| nodes.turns());
        let mut ordered = false;
        loop {
            let next = self.order_certificates(&mut ordered).await;
            self.orders_ended.send_replace(());
            let pause = next.saturating_sub(now()).clamp(1, LONGEST_PAUSE);
            tokio::select! {
                () = self.configured.notified() => {}
                () = turned(&mut turns) => {}
                () = tokio::time::sleep(Duration::from_secs(pause.unsigned_abs())) => {}
            }
        }
    }

    /// Makes the orders that are due, unless another node does. Returns when to look again, in seconds since 1970.
    /// `ordered` is whether this node was the one at the last look.
    async fn order_certificates(self: &Arc<Self>, ordered: &mut bool) -> i64 {
        let acme = self.config.load().acme.clone();
        let nodes = self.nodes.iter();
        nodes.for_each(|nodes| nodes.takes_part_in_orders(acme.is_some()));
        let Some(acme) = acme else {
            self.unstored.retain(|_| false, now());
            return self.care.due(&[], now()).1;
        };
        let wanted = {
            let acme = acme.clone();
            self.off_the_runtime(move |app| app.wanted_certificates(&acme)).await
        };
        let names: HashSet<&str> = wanted.iter().map(|domain| domain.name.as_str()).collect();
        self.unstored.retain(|domain| names.contains(domain), now());
        let orders_here = self.orders_certificates();
        match (std::mem::replace(ordered, orders_here), orders_here) {
            (false, true) => self.take_pauses().await,
            // The next one knows what has failed since.
            (true, false) => self.care.forget_failures(),
            _ => {}
        }
        let (mut orders, _) = self.care.due(&wanted, now());
        if !orders_here {
            // What an administrator wants of this very node does not wait for the engine.
            orders.retain(|order| self.care.is_urged(&order.domain));
            if orders.is_empty() {
                // Until it is this node's turn: what is due is the matter of the one that orders.
                return i64::MAX;
            }
        }
        let next = self.make_orders(&acme, &wanted, orders).await;
        // Another one may have taken over meanwhile, and knows more.
        if orders_here && self.orders_certificates() {
            self.keep_pauses().await;
        }
        next
    }

    /// Makes these orders; without any, those that the authority wants.
    async fn make_orders(
        self: &Arc<Self>,
        acme: &AcmeConfig,
        wanted: &[WantedDomain],
        mut orders: Vec<DueOrder>,
    ) -> i64 {
        if orders.is_empty() {
            // No order that is due waits for a service that may be slow.
            self.ask_for_advice(acme, wanted).await;
            let (advised, next) = self.care.due(wanted, now());
            if advised.is_empty() {
                return next;
            }
            orders = advised;
        }
        orders.truncate(IN_A_ROW);
        let mut unissued = Vec::new();
        for order in orders {
            match self.unstored.take(&order, &acme.directory_url, now()) {
                Some(issued) => {
                    self.certificate_issued(acme, &order.domain, issued).await;
                    self.order_ended(&order.domain);
                }
                None => unissued.push(order),
            }
        }
        if unissued.is_empty() {
            return now();
        }
        match self.acme_client(acme).await {
            Ok(client) => {
                let client = &client;
                let each = futures_util::stream::iter(unissued);
                let ordered = each.for_each_concurrent(AT_ONCE, |order| async move {
                    let domain = order.domain.clone();
                    // Those before it take their time, and another node may order since.
                    if self.orders_certificates() || self.care.is_urged(&domain) {
                        self.order_certificate(client, acme, order).await;
                    }
                    self.order_ended(&domain);
                    // A batch may take an hour, and this node may die in it.
                    if self.orders_certificates() {
                        self.keep_pauses_after(PAUSES_REST).await;
                    }
                });
                ordered.await;
            }
            Err(AcmeFailure::Authority { why, wait }) => {
                self.authority_failed(&why, self.care.authority_failed(&why, wait, now()));
                unissued.iter().for_each(|order| self.order_ended(&order.domain));
            }
            Err(AcmeFailure::Order { .. } | AcmeFailure::Names(_)) => {}
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

    /// Asks the authority when it wants certificates renewed, at the pace that it has asked for.
    async fn ask_for_advice(&self, acme: &AcmeConfig, wanted: &[WantedDomain]) {
        let unadvised = self.care.unadvised(wanted, IN_A_ROW, now());
        if unadvised.is_empty() || self.care.authority_rests(now()) {
            return;
        }
        let service = RenewalService::find(self.authority_web(acme), &acme.directory_url).await;
        let each = futures_util::stream::iter(unadvised);
        let asked = each.for_each_concurrent(AT_ONCE, |(domain, id)| {
            let service = &service;
            async move {
                let advice = match service {
                    Ok(Some(service)) => service.ask(&id).await.map(Some),
                    Ok(None) => Ok(None),
                    Err(why) => Err(why.clone()),
                };
                self.take_advice(&domain, &id, advice);
            }
        });
        asked.await;
    }

    fn take_advice(&self, domain: &str, id: &str, advice: Result<Option<RenewalAdvice>, String>) {
        let advice = advice.unwrap_or_else(|why| {
            log::debug!("domain {domain}: the authority does not say when to renew its certificate: {why}");
            None
        });
        let tells = self.care.advised(domain, id, advice.as_ref(), now());
        if let Some(RenewalAdvice {
            window, explanation, ..
        }) = advice.filter(|_| tells)
        {
            let [start, end] = window.map(at);
            let page = explanation.map(|url| format!(": {url}")).unwrap_or_default();
            log::info!("domain {domain}: the authority wants its certificate renewed from {start} to {end}{page}");
        }
    }

    /// An administrator may wait for it.
    fn order_ended(&self, domain: &str) {
        if self.care.urge_ended(domain) {
            self.orders_ended.send_replace(());
        }
    }

    pub(super) fn authority_web(&self, acme: &AcmeConfig) -> AuthorityWeb {
        AuthorityWeb {
            dns: self.dns.clone(),
            trust: acme.trust.clone(),
        }
    }

    async fn acme_client(self: &Arc<Self>, acme: &AcmeConfig) -> Result<AcmeClient, AcmeFailure> {
        let file = acme.account_key_file.clone();
        let key = self.off_the_runtime(move |_| AccountKey::load_or_make(&file)).await;
        let key = key.map_err(|why| AcmeFailure::Authority { why, wait: None })?;
        AcmeClient::open(acme, key, self.authority_web(acme), self.challenges.clone()).await
    }

    fn authority_failed(&self, why: &str, until: Option<i64>) {
        if let Some(until) = until {
            let until = at(until);
            log::warn!("the ACME authority cannot be used: {why}; it is asked again at {until}, certificates stay");
        }
    }

    /// Orders a certificate for a domain. Where names are refused, the others are ordered without them.
    async fn order_certificate(self: &Arc<Self>, client: &AcmeClient, acme: &AcmeConfig, order: DueOrder) {
        let domain = &order.domain;
        let mut names = order.names.clone();
        let mut refused = client.unobtainable(&order.names).await;
        // What our resolvers say takes no name away that has a certificate: there the authority decides.
        refused.retain(|refused| !order.covered.contains(&refused.name));
        self.leave_out(domain, &mut names, &refused);
        while order.is_due_for(&names) && !self.care.authority_rests(now()) {
            if self.unstored.is_full() {
                let why = "those that were issued for other domains cannot be stored";
                return self.order_failed(domain, why, None);
            }
            let obtained =
                tokio::time::timeout(ORDER_WAIT, client.obtain(&names, acme.key, order.replaces.as_deref())).await;
            let obtained = obtained.unwrap_or_else(|_| {
                let (why, wait) = ("the order was not done in time".to_owned(), None);
                Err(AcmeFailure::Order { why, wait })
            });
            let rests = order_ended(&self.care, domain, &obtained, now());
            match obtained {
                Ok(issued) => return self.certificate_issued(acme, domain, issued).await,
                Err(AcmeFailure::Names(refused)) => {
                    let count = names.len();
                    self.leave_out(domain, &mut names, &refused);
                    if names.len() == count {
                        let why = "the authority refuses names that were not asked for";
                        return self.order_failed(domain, why, None);
                    }
                }
                Err(AcmeFailure::Order { why, wait }) => return self.order_failed(domain, &why, wait),
                Err(AcmeFailure::Authority { why, .. }) => return self.authority_failed(&why, rests),
            }
        }
    }

    /// Goes on without the names that are refused.
    fn leave_out(&self, domain: &str, names: &mut Vec<String>, refused: &[RefusedName]) {
        for refused in refused {
            let RefusedName { name, why, .. } = refused;
            if names.contains(name) {
                let until = at(self.care.name_failed(domain, refused, now()));
                log::warn!("domain {domain}: {name} gets no certificate: {why}; it is tried again at {until}");
            }
        }
        names.retain(|name| refused.iter().all(|refused| refused.name != *name));
    }

    fn order_failed(&self, domain: &str, why: &str, wait: Option<Duration>) {
        let until = at(self.care.order_failed(domain, why, wait, now()));
        log::warn!("domain {domain}: no new certificate: {why}; it is ordered again at {until}");
    }

    /// Stores a certificate, and takes it up at the next look where that fails.
    async fn certificate_issued(self: &Arc<Self>, acme: &AcmeConfig, domain: &str, issued: IssuedCertificate) {
        let mut names: Vec<String> = issued.life.covers.iter().cloned().collect();
        names.sort_unstable();
        let is_due = issued.life.renews() <= now();
        match self.take_certificate(acme, domain, issued).await {
            Ok(()) => {
                let names_text = names.join(", ");
                log::info!("domain {domain}: a new certificate is in force, for {names_text}");
                match is_due {
                    // It is in use, and the next one would be as short.
                    true => self.order_failed(domain, DUE_AT_ONCE, None),
                    false => self.care.succeeded(domain, &names, now()),
                }
            }
            Err(why) => self.order_failed(domain, &why, None),
        }
    }

    /// Stores a certificate with its key, unless an administrator has stored one meanwhile, and waits until it is in
    /// force.
    async fn take_certificate(
        self: &Arc<Self>,
        acme: &AcmeConfig,
        domain: &str,
        issued: IssuedCertificate,
    ) -> Result<(), String> {
        let wanted = {
            let (system, store) = (self.snapshot.load().system.clone(), self.certificates.load());
            let now = self.config.load().acme.clone();
            let now = now.filter(|now| now.directory_url == acme.directory_url);
            now.and_then(|now| wanted(&now, &system, &store, &system.domain(domain)?))
        };
        let Some(wanted) = wanted.filter(|wanted| !wanted.hosts.is_empty()) else {
            return Err("it is no longer wanted, the domain has changed".to_owned());
        };
        if !issued.life.gains_on(wanted.current.as_ref(), now()) {
            return Err(DUE_AT_ONCE.to_owned());
        }
        let changes = [
            replace(&a::SSL_CERTIFICATE, Some(issued.certificate.clone())),
            replace(&a::SSL_PRIVATE_KEY, Some(issued.key.expose().clone())),
            replace(&a::PORTICO_ACME_FINGERPRINT, Some(issued.fingerprint.clone())),
        ];
        let mut output = CommandOutput::default();
        let mut is_taken = false;
        let allows = |entry: &Entry| may_be_replaced(entry).inspect_err(|_| is_taken = true);
        let stored = self.change_domain_if(domain, &changes, &mut output, allows);
        if let Err(error) = stored.await {
            if !is_taken {
                self.unstored.keep(domain, &acme.directory_url, issued);
            }
            return Err(told(error));
        }
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

/// Another node orders from now on, or this one.
async fn turned(turns: &mut Option<watch::Receiver<bool>>) {
    let turn = match turns {
        Some(turns) => turns.changed().await,
        None => std::future::pending().await,
    };
    if turn.is_err() {
        std::future::pending().await
    }
}

/// What a domain is to have, if it is one for this client.
pub(super) fn wanted(acme: &AcmeConfig, system: &System, store: &CertStore, domain: &View<'_>) -> Option<WantedDomain> {
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
    let mut names: Vec<String> = names.into_iter().map(names::host).collect();
    // A directory may return them in another order each time, and the limit would cut others off.
    names.sort_unstable();
    for name in names {
        match barred(acme, system, domain, &name) {
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
        life_of(&pair, is_from_authority(domain, &pair), covers.cloned().collect())
    });
    if store.fault_of(domain.name()).is_some()
        && let Some(Err(why)) = domain.entry().map(may_be_replaced)
    {
        let hosts = std::mem::take(&mut wanted.hosts).into_iter();
        wanted.barred.extend(hosts.map(|host| (host, why.clone())));
    }
    Some(wanted)
}

/// Remembers what the end of an order says about the authority. Returns when it is asked again, if it has failed: the
/// domain waits on its own, too, or one with which it always fails would stop all others. That it lets an account be
/// opened says little: only an order that it has decided shows that it works.
fn order_ended<T>(care: &CertificateCare, domain: &str, ended: &Result<T, AcmeFailure>, now: i64) -> Option<i64> {
    let Err(AcmeFailure::Authority { why, wait }) = ended else {
        care.authority_answers();
        return None;
    };
    care.order_failed(domain, why, *wait, now);
    care.authority_failed(why, *wait, now)
}

/// Why the authority is not asked for a name of this domain.
fn barred(acme: &AcmeConfig, system: &System, domain: &View<'_>, name: &str) -> Option<String> {
    if !acme.challenges.iter().any(|kind| kind.can_show(name)) {
        return Some("a pattern is proved by DNS-01 only: add dns-01 to acme.challenges".to_owned());
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
pub(super) fn now() -> i64 {
    Timestamp::now().as_second()
}

/// This time for people.
pub(crate) fn at(seconds: i64) -> String {
    Timestamp::from_second(seconds).map_or_else(|_| "-".to_owned(), |time| time.to_string())
}

#[cfg(test)]
pub(super) mod tests {
    use std::path::Path;

    use super::*;
    use crate::config::{CertificateKeyKind, ChallengeKind};
    use crate::tls::upstream::UpstreamTrust;

    const NOW: i64 = 1_000_000_000;

    fn authority() -> Result<(), AcmeFailure> {
        let (why, wait) = ("down".to_owned(), None);
        Err(AcmeFailure::Authority { why, wait })
    }

    #[test]
    fn an_authority_that_fails_at_each_order_is_asked_less_and_less() {
        let care = CertificateCare::default();
        let (mut time, mut pauses) = (NOW, Vec::new());
        for at in 0..12 {
            let until = order_ended(&care, &format!("{at}.test"), &authority(), time).unwrap();
            pauses.push(until - time);
            time = until;
        }
        assert!(pauses[11] >= 45 * 60, "{pauses:?}");
        order_ended(&care, "a.test", &Ok(()), time);
        assert_eq!(care.all().0, None);
        let refused = AcmeFailure::Names(Vec::new());
        order_ended(&care, "a.test", &authority(), time);
        order_ended(&care, "a.test", &Err::<(), _>(refused), time);
        assert_eq!(care.all().0, None, "it has decided");
    }

    #[test]
    fn a_domain_with_which_the_authority_fails_does_not_stop_the_others() {
        let care = CertificateCare::default();
        let wanted = ["a.test", "b.test"].map(|name| WantedDomain {
            name: name.to_owned(),
            hosts: vec![format!("mail.{name}")],
            ..WantedDomain::default()
        });
        assert_eq!(care.due(&wanted, NOW).0.len(), 2);
        let until = order_ended(&care, "a.test", &authority(), NOW).unwrap();
        let (orders, _) = care.due(&wanted, until);
        let domains: Vec<&str> = orders.iter().map(|order| order.domain.as_str()).collect();
        assert_eq!(domains, ["b.test"]);
    }

    /// An authority for all domains.
    pub(in crate::app) fn acme() -> AcmeConfig {
        AcmeConfig {
            directory_url: "https://ca.test/dir".to_owned(),
            contact: Vec::new(),
            accepts_terms: true,
            account_key_file: Path::new("acme.key").to_owned(),
            eab: None,
            profile: None,
            dns: None,
            resolvers: Vec::new(),
            checks_names: true,
            self_request: None,
            trust: Arc::new(UpstreamTrust::new(None, true).unwrap()),
            challenges: vec![ChallengeKind::Http01],
            key: CertificateKeyKind::EcdsaP256,
            domains: AcmeDomains::All,
        }
    }

    /// What is wanted of a domain with these values, where the store has found this fault.
    fn wanted_of(values: &[(&str, Vec<String>)], fault: Option<&str>) -> WantedDomain {
        let acme = acme();
        let mut domain = Entry::new("a.test");
        for (attribute, values) in values {
            domain.set(attribute, values.clone());
        }
        let system = System::new(Entry::new("config"), [], [domain], []);
        let mut store = CertStore::default();
        if let Some(why) = fault {
            store.note_fault("a.test", why.to_owned());
        }
        let domain = system.domain("a.test").unwrap();
        wanted(&acme, &system, &store, &domain).unwrap()
    }

    #[test]
    fn the_order_of_many_names_does_not_change_which_are_asked_for() {
        let mut names: Vec<String> = (0..NAMES_MAX + 5).map(|at| format!("n{at:03}.a.test")).collect();
        let one = wanted_of(&[("zimbraVirtualHostname", names.clone())], None);
        names.reverse();
        let other = wanted_of(&[("zimbraVirtualHostname", names)], None);
        assert_eq!((&one.hosts, &one.barred), (&other.hosts, &other.barred));
        assert_eq!((one.hosts.len(), one.barred.len()), (NAMES_MAX, 5));
    }

    #[test]
    fn a_key_that_waits_for_its_certificate_is_left_alone_and_said() {
        let names = ("zimbraVirtualHostname", vec!["mail.a.test".to_owned()]);
        let key = ("zimbraSSLPrivateKey", vec!["a key".to_owned()]);
        let wanted = wanted_of(&[names.clone(), key], Some("a key without a certificate"));
        assert!(wanted.hosts.is_empty());
        assert!(wanted.barred["mail.a.test"].starts_with("a key without a certificate was stored"));
        assert_eq!(wanted_of(&[names], None).hosts, ["mail.a.test"]);
    }
}
