//! Which certificate is used for which name.

use std::collections::{HashMap, HashSet};
use std::net::IpAddr;
use std::sync::Arc;

use arc_swap::ArcSwap;
use mail_directory::names;

use crate::tls::certificate::CertKey;
use crate::tls::client_certs::{ClientCerts, PolicyId};
use crate::tls::vhosts::VirtualHosts;

/// Names and the certificates for them.
#[derive(Default)]
pub(crate) struct CertStore {
    /// Used where no name matches, and for clients that ask for none.
    pub default: Option<Arc<CertKey>>,
    /// The rules of mail listeners for certificates of clients; `None`: they ask for none.
    pub mail_certs: Option<Arc<ClientCerts>>,
    /// What the names mean on web listeners; absent only before the first configuration.
    pub vhosts: Option<Arc<VirtualHosts>>,
    pub(crate) exact: HashMap<String, CertClaim>,
    pub(crate) wildcard: HashMap<String, CertClaim>,
    pub(crate) by_address: HashMap<IpAddr, CertClaim>,
    pub(crate) domains: HashMap<String, Arc<CertKey>>,
    pub(crate) faults: HashMap<String, String>,
}

/// The certificate of a domain for a name or address of its own; `None`: the default.
pub(crate) type CertClaim = Option<Arc<CertKey>>;

impl CertStore {
    /// A store with a default and nothing else.
    pub(crate) fn new(default: Option<Arc<CertKey>>) -> Self {
        Self {
            default,
            ..Self::default()
        }
    }

    /// Shows `certificate` to clients that ask for `name`, which may be `*.something`; `None`: the default. Where two
    /// domains claim a name, the first one has it, as in the rest of the directory.
    pub(crate) fn add(&mut self, name: &str, certificate: Option<Arc<CertKey>>) {
        let name = names::host(name);
        match name.strip_prefix("*.") {
            Some(parent) => self.wildcard.entry(parent.to_owned()).or_insert(certificate),
            None => self.exact.entry(name).or_insert(certificate),
        };
    }

    /// Every certificate, with its owner: `default`, or a domain.
    pub(crate) fn all(&self) -> Vec<(String, &Arc<CertKey>)> {
        let default = self.default.iter().map(|pair| ("default".to_owned(), pair));
        let domains = self.domains.iter().map(|(name, pair)| (format!("domain {name}"), pair));
        default.chain(domains).collect()
    }

    /// Shows `certificate` to clients that come to this local address and ask for no name that is known; `None`: the
    /// default.
    pub(crate) fn add_address(&mut self, local: IpAddr, certificate: Option<Arc<CertKey>>) {
        self.by_address.entry(local).or_insert(certificate);
    }

    /// Keeps no contexts for rules that no name has any more.
    pub(crate) fn forget_old_rules(&self) {
        let of_vhosts = self.vhosts.iter().flat_map(|vhosts| vhosts.policies());
        let of_mail = self.mail_certs.iter().map(|rules| rules.id());
        let rules: HashSet<PolicyId> = of_vhosts.chain(of_mail).chain([ClientCerts::off().id()]).collect();
        for (_, pair) in self.all() {
            pair.contexts.keep(&rules);
        }
    }

    /// Notes which certificate a domain has.
    pub(crate) fn keep(&mut self, domain: &str, certificate: Arc<CertKey>) {
        self.domains.insert(domain.to_owned(), certificate);
    }

    /// The certificate that was noted for a domain.
    pub(crate) fn of_domain(&self, domain: &str) -> Option<Arc<CertKey>> {
        self.domains.get(domain).cloned()
    }

    /// Notes why the certificate of a domain is not used.
    pub(crate) fn note_fault(&mut self, domain: &str, why: String) {
        self.faults.insert(domain.to_owned(), why);
    }

    /// Why the certificate of a domain is not used; `None` if nothing is wrong.
    pub(crate) fn fault_of(&self, domain: &str) -> Option<&str> {
        self.faults.get(domain).map(String::as_str)
    }

    /// The certificate for clients that ask for this name; for a pattern `*.name`, for names below it.
    pub(crate) fn of_name(&self, name: &str) -> Option<&Arc<CertKey>> {
        self.find(Some(&names::host(name)), None)
    }

    /// The certificate for a requested name (in lower case): that of the domain which has the name or the longest
    /// pattern; where no domain has it, that of the local address; else the default. A name of one domain
    /// never gets the certificate of another, whether or not its own domain has one.
    pub(crate) fn find(&self, name: Option<&str>, local: Option<IpAddr>) -> Option<&Arc<CertKey>> {
        let claim = match name.and_then(|name| self.claim(name)) {
            Some(claim) => claim.as_ref(),
            None => local.and_then(|local| self.by_address.get(&local)?.as_ref()),
        };
        claim.or(self.default.as_ref())
    }

    /// The certificate of a name's owner for it, if the name has an owner. No client accepts the certificate of a
    /// pattern for a name more than one level below.
    pub(crate) fn claim(&self, name: &str) -> Option<&CertClaim> {
        if let Some(claim) = self.exact.get(name) {
            return Some(claim);
        }
        let mut parents = name.match_indices('.').map(|(at, _)| &name[at + 1..]);
        let nearest = parents.next()?;
        let of_nearest = self.wildcard.get(nearest);
        of_nearest.or_else(|| {
            parents
                .any(|parent| self.wildcard.contains_key(parent))
                .then_some(&None)
        })
    }
}

/// The store that all listeners share.
pub(crate) type SharedCertStore = Arc<ArcSwap<CertStore>>;
