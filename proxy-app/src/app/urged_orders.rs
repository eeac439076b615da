//! Certificates that an administrator orders, whenever they are due, and what such an order would be.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use futures_util::StreamExt;
use mail_directory::{View, attributes as a};
use tokio::time::timeout;

use crate::acme::account_key::AccountKey;
use crate::acme::care::{DomainCare, OrderUrge, WantedDomain};
use crate::acme::client;
use crate::acme::dns::client::DnsClient;
use crate::acme::self_request::SelfRequests;
use crate::app::App;
use crate::app::acme_orders::{at, now, wanted};
use crate::config::{AcmeConfig, AcmeDomains, ChallengeKind, ListenerTls, Serve};

/// How long the end of an order is waited for. Administrators are told that it is under way then.
const ORDERED_WAIT: Duration = Duration::from_secs(45);
/// How long the DNS may take for a name, and for all of them.
const NAME_WAIT: Duration = Duration::from_secs(3);
const NAMES_WAIT: Duration = Duration::from_secs(15);
/// Names that are looked up at one time.
const NAMES_AT_ONCE: usize = 8;

/// An order as it would be made now.
pub(crate) struct OrderPlan {
    /// The domain.
    pub domain: String,
    /// The URL of the authority.
    pub authority: String,
    /// The names to ask for.
    pub names: Vec<String>,
    /// Those that are not asked for, each with the reason.
    pub barred: Vec<(String, String)>,
    /// How each name is shown to be controlled, the preferred way first: at which of our listeners (without any: in the DNS), or why at none.
    pub challenges: Vec<(&'static str, Result<Vec<SocketAddr>, String>)>,
    urge: OrderUrge,
}

/// Why there is no order.
pub(crate) enum OrderRefusal {
    /// Nothing has this name.
    NoSuchName(String),
    /// It cannot be, or need not be; with each name that is not asked for.
    Conflict(String, Vec<String>),
}

/// What has become of an order.
pub(crate) enum OrderOutcome {
    /// A new certificate is in force; names that it is not good for, each with the reason.
    Issued(Vec<(String, String)>),
    /// There is none, and why.
    Failed(String),
    /// It has not ended.
    UnderWay,
}

fn conflict(why: impl Into<String>) -> OrderRefusal {
    OrderRefusal::Conflict(why.into(), Vec::new())
}

impl App {
    /// The order for a domain, which is known by its name or by one of its virtual host names.
    ///
    /// # Errors
    /// There would be none.
    pub(crate) fn plan_order(&self, name: &str, urge: OrderUrge) -> Result<OrderPlan, OrderRefusal> {
        let (config, system) = (self.config.load_full(), self.snapshot.load().system.clone());
        let acme = config.acme.as_ref();
        let acme = acme.ok_or_else(|| conflict("this node has no acme in its node file"))?;
        let domain = system.domain(name).or_else(|| system.domain_by_host(name));
        let unknown = || OrderRefusal::NoSuchName(format!("no domain and no virtual host name is {name}"));
        let domain = domain.ok_or_else(unknown)?;
        let found = wanted(acme, &system, &self.certificates.load(), &domain);
        let found = found.ok_or_else(|| conflict(why_unwanted(acme, &domain)))?;
        may_be_ordered(&found, urge)?;
        let listeners = self.listeners.current().listeners;
        let answered_at = |kind: ChallengeKind| {
            if kind == ChallengeKind::Dns01 {
                return Ok(Vec::new());
            }
            let is_tls = kind == ChallengeKind::TlsAlpn01;
            let fits = listeners
                .iter()
                .filter(|one| one.serve == Serve::Web && (one.tls == ListenerTls::Implicit) == is_tls);
            let at: Vec<SocketAddr> = fits.map(|one| one.address).collect();
            let with = if is_tls { "with" } else { "without" };
            match at.is_empty() {
                false => Ok(at),
                true => Err(format!("this node has no web listener {with} TLS")),
            }
        };
        let kinds = acme.challenges.iter().map(|kind| (kind.word(), answered_at(*kind)));
        Ok(OrderPlan {
            domain: found.name,
            authority: acme.directory_url.clone(),
            names: found.hosts,
            barred: found.barred.into_iter().collect(),
            challenges: kinds.collect(),
            urge,
        })
    }

    /// Whether the authority answers, without a word of an order or an account.
    ///
    /// # Errors
    /// Why it cannot be used.
    pub(crate) async fn look_at_authority(&self) -> Result<(), String> {
        let acme = self.config.load().acme.clone();
        let acme = acme.ok_or_else(|| "this node has no acme in its node file".to_owned())?;
        let found = client::directory_of(&acme, &self.authority_web(&acme)).await;
        found.map(drop).map_err(|failure| failure.why())
    }

    /// Whether names lead here, as far as this node can see: those of which something can be said, each with the reason if
    /// it does not. Nothing, where the node file does not want it: a name's address may be anybody's.
    pub(crate) async fn ask_ourselves(self: &Arc<Self>, names: &[String]) -> Vec<(String, Result<(), String>)> {
        let acme = self.config.load().acme.clone();
        let wanted = acme.and_then(|acme| Some((acme.self_request?, acme)));
        let Some((ports, acme)) = wanted else {
            return Vec::new();
        };
        let file = acme.account_key_file.clone();
        let key = self.off_the_runtime(move |_| AccountKey::load(&file)).await;
        let resolvers = DnsClient::of_resolvers(&acme.resolvers).await;
        let requests = SelfRequests {
            challenges: &self.challenges,
            resolvers: &resolvers,
            kinds: &acme.challenges,
            ports,
        };
        let answer = |token: &str| match &key {
            Ok(Some(key)) => key.key_authorization(token).map_err(|error| error.to_string()),
            // Without an account only this node can answer.
            _ => Ok(format!("{token}.{token}")),
        };
        let said = requests.ask(names, NAMES_WAIT, answer).await.into_iter();
        said.map(|(name, said)| (name, said.map_err(|failure| failure.why)))
            .collect()
    }

    /// Makes an order now, and waits some time for its end.
    pub(crate) async fn order_now(self: &Arc<Self>, plan: &OrderPlan) -> OrderOutcome {
        let domain = &plan.domain;
        let in_use = || {
            self.certificates
                .load()
                .of_domain(domain)
                .map(|pair| pair.fingerprint_text())
        };
        let before = in_use();
        let mut ended = self.orders_ended.subscribe();
        self.care.urge(domain, plan.urge, now());
        self.configured.notify_one();
        let end = async { while self.care.is_urged(domain) && ended.changed().await.is_ok() {} };
        if timeout(ORDERED_WAIT, end).await.is_err() {
            return OrderOutcome::UnderWay;
        }
        let care = self.care.of(domain);
        match in_use() == before {
            false => OrderOutcome::Issued(refused(&care)),
            true => OrderOutcome::Failed(self.why_failed(&care)),
        }
    }

    fn why_failed(&self, care: &DomainCare) -> String {
        let names = refused(care).into_iter().map(|(name, why)| format!("{name}: {why}"));
        let order = care.order.iter().map(|setback| &setback.why).cloned();
        let authority = self.care.all().0.map(|setback| setback.why);
        let reasons: Vec<String> = order.chain(authority).chain(names).collect();
        match reasons.first() {
            Some(first) => first.clone(),
            None => "there was nothing to order any more".to_owned(),
        }
    }
}

/// The addresses of names, as this machine finds them, in the order of the names.
pub(crate) async fn addresses_of(names: &[String]) -> Vec<Result<Vec<String>, String>> {
    let all = futures_util::stream::iter(names.iter().cloned().map(addresses)).buffered(NAMES_AT_ONCE);
    let mut found = Vec::new();
    let each = all.for_each(|one| {
        found.push(one);
        std::future::ready(())
    });
    let _those_that_are_late_are_not_found = timeout(NAMES_WAIT, each).await;
    found.resize_with(names.len(), || Err("the DNS does not answer".to_owned()));
    found
}

async fn addresses(name: String) -> Result<Vec<String>, String> {
    let found = timeout(NAME_WAIT, tokio::net::lookup_host((name.as_str(), 80))).await;
    let found = found.map_err(|_| "the DNS does not answer".to_owned())?;
    let found = found.map_err(|error| error.to_string())?;
    Ok(found.map(|address| address.ip().to_string()).collect())
}

/// The names that the authority has refused, each with its reason and the next try.
fn refused(care: &DomainCare) -> Vec<(String, String)> {
    let names = care.names.iter();
    let told = names.map(|(name, setback)| (name.clone(), format!("{}; again at {}", setback.why, at(setback.until))));
    told.collect()
}

/// Why a domain is none for the authority.
fn why_unwanted(acme: &AcmeConfig, domain: &View<'_>) -> String {
    let name = domain.name();
    if domain.list(&a::VIRTUAL_HOSTNAME).is_empty() {
        return format!("the domain {name} has no virtual host name");
    }
    let default = match acme.domains {
        AcmeDomains::All => "it has porticoAcme off",
        AcmeDomains::Marked => "it has no porticoAcme on",
    };
    format!(
        "the domain {name} gets no certificates of the authority, {default}: portico prov modifyDomain {name} porticoAcme on"
    )
}

/// Whether there would be an order.
fn may_be_ordered(domain: &WantedDomain, urge: OrderUrge) -> Result<(), OrderRefusal> {
    let barred = || {
        domain
            .barred
            .iter()
            .map(|(name, why)| format!("{name}: {why}"))
            .collect()
    };
    let name = &domain.name;
    let refusal = |why: String| Err(OrderRefusal::Conflict(why, barred()));
    if domain.hosts.is_empty() {
        return refusal(format!("no name of the domain {name} can be asked for"));
    }
    let Some(current) = domain.current.as_ref().filter(|current| current.expires > now()) else {
        return Ok(());
    };
    if !current.is_ours {
        let until = at(current.expires);
        return refusal(format!(
            "the domain {name} has another certificate, which is good until {until}: remove it first"
        ));
    }
    let lacks_none = domain.hosts.iter().all(|host| current.covers.contains(host));
    match urge == OrderUrge::Request && lacks_none && current.renews() > now() {
        true => refusal(format!(
            "the certificate of the domain {name} is good for all of its names until {}: to get another one all the same, \
             portico certificate renew {name}",
            at(current.expires)
        )),
        false => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;
    use crate::acme::care::CurrentCertificate;

    #[test]
    fn what_may_be_ordered() {
        let current = |is_ours, left: i64, covers: &[&str]| CurrentCertificate {
            is_ours,
            expires: now() + left,
            lifetime: 90,
            covers: covers.iter().map(|name| (*name).to_owned()).collect::<HashSet<_>>(),
            id: None,
            spread: 128,
        };
        for (hosts, current, request, renew) in [
            (&["a"][..], None, Ok(()), Ok(())),
            (&[], None, Err("can be asked for"), Err("can be asked for")),
            (&["a"], Some(current(true, 80, &["a"])), Err("all of its names"), Ok(())),
            (&["a", "b"], Some(current(true, 80, &["a"])), Ok(()), Ok(())),
            (&["a"], Some(current(true, 10, &["a"])), Ok(()), Ok(())),
            (
                &["a"],
                Some(current(false, 10, &["a"])),
                Err("remove it first"),
                Err("remove it first"),
            ),
            (&["a"], Some(current(false, -10, &["a"])), Ok(()), Ok(())),
        ] {
            let domain = WantedDomain {
                name: "a.test".to_owned(),
                hosts: hosts.iter().map(|host| (*host).to_owned()).collect(),
                current,
                ..WantedDomain::default()
            };
            for (urge, expected) in [(OrderUrge::Request, request), (OrderUrge::Renew, renew)] {
                match (may_be_ordered(&domain, urge), expected) {
                    (Ok(()), Ok(())) => {}
                    (Err(OrderRefusal::Conflict(why, _)), Err(part)) if why.contains(part) => {}
                    _ => panic!("{urge:?} {domain:?}: not {expected:?}"),
                }
            }
        }
    }
}
