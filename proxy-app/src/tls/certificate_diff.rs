//! What is different for clients between two stores of certificates: which names get another certificate.

use std::collections::BTreeSet;
use std::sync::Arc;

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::tls::certificate::CertKey;
use crate::tls::certificate_store::CertStore;

/// What clients get that ask for a name which no domain has, or for none.
const ANY_OTHER: &str = "any other name";

/// Names that get another certificate.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub(crate) struct NameChanges {
    /// How many.
    pub count: u64,
    /// The first of them.
    pub first: Vec<NameChange>,
}

/// A name that clients ask for in the TLS handshake, or the local address that they connect to.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub(crate) struct NameChange {
    /// The name, a pattern `*.name`, an address, or `any other name`.
    pub name: String,
    /// For which clients: `web and mail`, `web`, `mail`.
    pub clients: String,
    /// `added`: a domain has the name then and has not now; `removed`; `other`: it is another certificate.
    pub change: String,
    /// What they get now; absent: nothing, the handshake fails.
    pub before: Option<ShownCertificate>,
    /// What they would get.
    pub after: Option<ShownCertificate>,
}

/// A certificate as clients see it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub(crate) struct ShownCertificate {
    /// `own`: that of the domain of the name; `default`.
    pub kind: String,
    /// Its names, the first ones.
    pub names: Vec<String>,
    /// SHA-256 fingerprint, in hexadecimal.
    pub fingerprint: String,
    /// When it expires.
    pub not_after: String,
}

/// Names of a certificate that are shown.
const NAMES: usize = 3;

/// The names that get another certificate; at most `most` are named.
pub(crate) fn names(before: &CertStore, after: &CertStore, most: usize) -> NameChanges {
    let mut changes = NameChanges::default();
    let requested: BTreeSet<RequestedName> = asked_for(before).chain(asked_for(after)).collect();
    for asked in requested {
        let web = asked.on_web(before).change_to(&asked.on_web(after));
        let mail = asked.on_mail(before).change_to(&asked.on_mail(after));
        let both = web.is_some() && web == mail;
        let of_clients = [
            (both, web.clone(), "web and mail"),
            (!both, web, "web"),
            (!both, mail, "mail"),
        ];
        let of_clients = of_clients.into_iter().filter(|(counts, ..)| *counts);
        for (change, clients) in of_clients.filter_map(|(_, change, clients)| Some((change?, clients))) {
            changes.count += 1;
            if changes.first.len() < most {
                changes.first.push(change.shown(&asked, clients));
            }
        }
    }
    changes
}

/// What a client asks for.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord)]
enum RequestedName {
    Name(String),
    Address(std::net::IpAddr),
    Other,
}

fn asked_for(store: &CertStore) -> impl Iterator<Item = RequestedName> {
    let exact = store.exact.keys().cloned().map(RequestedName::Name);
    let patterns = store
        .wildcard
        .keys()
        .map(|parent| RequestedName::Name(format!("*.{parent}")));
    let addresses = store.by_address.keys().copied().map(RequestedName::Address);
    exact.chain(patterns).chain(addresses).chain([RequestedName::Other])
}

/// What a client gets.
#[derive(Clone, Default)]
struct Got {
    /// Whether a domain has the name.
    claimed: bool,
    own: bool,
    pair: Option<Arc<CertKey>>,
}

impl RequestedName {
    fn on_mail(&self, store: &CertStore) -> Got {
        let claim = match self {
            Self::Name(name) => store.claim(name),
            Self::Address(address) => store.by_address.get(address),
            Self::Other => None,
        };
        let own = claim.and_then(Option::as_ref);
        Got {
            claimed: claim.is_some(),
            own: own.is_some(),
            pair: own.or(store.default.as_ref()).cloned(),
        }
    }

    /// Where names are strict, the web refuses those that are not ours.
    fn on_web(&self, store: &CertStore) -> Got {
        let admits = store.vhosts.as_ref().is_none_or(|vhosts| match self {
            Self::Name(name) => vhosts.admits(name),
            Self::Address(_) => true,
            Self::Other => !vhosts.is_strict(),
        });
        match admits {
            true => self.on_mail(store),
            false => Got::default(),
        }
    }
}

/// The difference between what a client gets now and then.
#[derive(Clone)]
struct ShownChange {
    word: &'static str,
    before: Got,
    after: Got,
}

impl PartialEq for ShownChange {
    fn eq(&self, other: &Self) -> bool {
        self.before.is_as(&other.before) && self.after.is_as(&other.after)
    }
}

impl Got {
    fn change_to(&self, after: &Self) -> Option<ShownChange> {
        let word = match (self.claimed, after.claimed) {
            (false, true) => "added",
            (true, false) => "removed",
            _ if self.shows_same(after) => return None,
            _ => "other",
        };
        Some(ShownChange {
            word,
            before: self.clone(),
            after: after.clone(),
        })
    }

    fn is_as(&self, other: &Self) -> bool {
        self.claimed == other.claimed && self.own == other.own && self.shows_same(other)
    }

    fn shows_same(&self, other: &Self) -> bool {
        match (&self.pair, &other.pair) {
            (Some(one), Some(other)) => Arc::ptr_eq(one, other) || one.fingerprint() == other.fingerprint(),
            (one, other) => one.is_none() && other.is_none(),
        }
    }

    fn shown(&self) -> Option<ShownCertificate> {
        let pair = self.pair.as_ref()?;
        Some(ShownCertificate {
            kind: if self.own { "own" } else { "default" }.to_owned(),
            names: pair.names().iter().take(NAMES).cloned().collect(),
            fingerprint: pair.fingerprint().iter().map(|byte| format!("{byte:02x}")).collect(),
            not_after: pair.leaf().not_after().to_string(),
        })
    }
}

impl ShownChange {
    fn shown(&self, asked: &RequestedName, clients: &str) -> NameChange {
        NameChange {
            name: match asked {
                RequestedName::Name(name) => name.clone(),
                RequestedName::Address(address) => address.to_string(),
                RequestedName::Other => ANY_OTHER.to_owned(),
            },
            clients: clients.to_owned(),
            change: self.word.to_owned(),
            before: self.before.shown(),
            after: self.after.shown(),
        }
    }
}

impl NameChange {
    /// As one line.
    pub(crate) fn line(&self) -> String {
        let gets = |shown: &Option<ShownCertificate>| match shown {
            None => "no certificate".to_owned(),
            Some(shown) => {
                let kind = if shown.kind == "own" { "its own" } else { "the default" };
                let names = shown.names.join(" ");
                format!("{kind} certificate ({names}, until {})", shown.not_after)
            }
        };
        let Self { name, clients, .. } = self;
        let (before, after) = (gets(&self.before), gets(&self.after));
        match self.change.as_str() {
            "added" => format!("{name} is added: {clients} clients get {after} (now {before})"),
            "removed" => format!("{name} is removed: {clients} clients get {after} (now {before})"),
            _ => format!("{name}: {clients} clients get {after} (now {before})"),
        }
    }
}

#[cfg(test)]
mod tests {
    use mail_directory::yaml::Problems;
    use mail_directory::{Entry, System};
    use openssl::asn1::Asn1Time;
    use openssl::hash::MessageDigest;
    use openssl::pkey::PKey;
    use openssl::rsa::Rsa;
    use openssl::x509::extension::SubjectAlternativeName;
    use openssl::x509::{X509Builder, X509Name};

    use super::*;
    use crate::tls::vhosts::VirtualHosts;

    fn pair(name: &str) -> Arc<CertKey> {
        let key = PKey::from_rsa(Rsa::generate(2048).unwrap()).unwrap();
        let mut builder = X509Builder::new().unwrap();
        builder.set_version(2).unwrap();
        let subject = X509Name::builder().unwrap().build();
        builder.set_subject_name(&subject).unwrap();
        builder.set_issuer_name(&subject).unwrap();
        builder.set_not_before(&Asn1Time::days_from_now(0).unwrap()).unwrap();
        builder.set_not_after(&Asn1Time::days_from_now(9).unwrap()).unwrap();
        builder.set_pubkey(&key).unwrap();
        let names = SubjectAlternativeName::new()
            .dns(name)
            .build(&builder.x509v3_context(None, None));
        builder.append_extension(names.unwrap()).unwrap();
        builder.sign(&key, MessageDigest::sha256()).unwrap();
        let certificate = builder.build().to_pem().unwrap();
        let key = key.private_key_to_pem_pkcs8().unwrap();
        CertKey::read(&certificate, &key, None).unwrap()
    }

    fn store(default: &Arc<CertKey>, names: &[(&str, Option<&Arc<CertKey>>)]) -> CertStore {
        let mut store = CertStore::new(Some(default.clone()));
        names.iter().for_each(|(name, pair)| store.add(name, pair.cloned()));
        store
    }

    fn with_vhosts(mut store: CertStore, strict: &str, names: &[&str]) -> CertStore {
        let mut config = Entry::new("config");
        config.set("zimbraReverseProxyStrictServerNameEnabled", [strict]);
        let mut domain = Entry::new("a.test");
        domain.set("zimbraVirtualHostname", names.iter().copied());
        let system = System::new(config, [], [domain], []);
        let vhosts = VirtualHosts::build(&system, "proxy", &Arc::default(), None, &mut Problems::new());
        store.vhosts = Some(Arc::new(vhosts));
        store
    }

    fn shown(changes: &NameChanges) -> Vec<String> {
        let kind = |shown: &Option<ShownCertificate>| shown.as_ref().map_or("-".to_owned(), |shown| shown.kind.clone());
        let of = |one: &NameChange| {
            let (before, after) = (kind(&one.before), kind(&one.after));
            format!("{} {} {} {before} {after}", one.name, one.clients, one.change)
        };
        changes.first.iter().map(of).collect()
    }

    #[test]
    fn names_that_get_another_certificate_are_found() {
        let (default, a, b) = (pair("mail.test"), pair("a.test"), pair("b.test"));
        let before = store(
            &default,
            &[("m.a.test", Some(&a)), ("n.a.test", None), ("*.b.test", Some(&a))],
        );
        assert_eq!(names(&before, &before, 9), NameChanges::default());
        for (after, expected) in [
            (
                store(
                    &default,
                    &[("m.a.test", Some(&b)), ("n.a.test", None), ("*.b.test", Some(&a))],
                ),
                vec!["m.a.test web and mail other own own"],
            ),
            (
                store(
                    &default,
                    &[("m.a.test", Some(&a)), ("*.b.test", Some(&a)), ("x.b.test", Some(&a))],
                ),
                vec!["n.a.test web and mail removed default default"],
            ),
            (
                store(&default, &[("n.a.test", Some(&a)), ("o.a.test", Some(&a))]),
                vec![
                    "*.b.test web and mail removed own default",
                    "m.a.test web and mail removed own default",
                    "n.a.test web and mail other default own",
                    "o.a.test web and mail added default own",
                ],
            ),
            (
                store(
                    &b,
                    &[("m.a.test", Some(&a)), ("n.a.test", None), ("*.b.test", Some(&a))],
                ),
                vec![
                    "n.a.test web and mail other default default",
                    "any other name web and mail other default default",
                ],
            ),
        ] {
            assert_eq!(shown(&names(&before, &after, 9)), expected);
        }
        let few = names(&before, &store(&default, &[]), 1);
        assert_eq!((few.count, few.first.len()), (3, 1));
    }

    #[test]
    fn strict_names_are_refused_on_the_web_only() {
        let (default, a) = (pair("mail.test"), pair("a.test"));
        let of = |strict, names: &[&str]| {
            let claims: Vec<_> = names.iter().map(|name| (*name, Some(&a))).collect();
            with_vhosts(store(&default, &claims), strict, names)
        };
        let added = names(&of("TRUE", &[]), &of("TRUE", &["m.a.test"]), 9);
        assert_eq!(
            shown(&added),
            ["m.a.test web added - own", "m.a.test mail added default own"]
        );
        let strict = names(&of("FALSE", &["m.a.test"]), &of("TRUE", &["m.a.test"]), 9);
        assert_eq!(shown(&strict), ["any other name web other default -"]);
        let line = added.first[0].line();
        let expected = "m.a.test is added: web clients get its own certificate (a.test, until ";
        assert!(
            line.starts_with(expected) && line.ends_with("(now no certificate)"),
            "{line}"
        );
    }
}
