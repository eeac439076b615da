//! Certificates that were issued and could not be stored: they are stored later, instead of being ordered again.

use std::collections::HashMap;

use parking_lot::Mutex;

use crate::acme::care::DueOrder;
use crate::acme::client::IssuedCertificate;

/// Most of them, each with a chain of some KiB. When there are so many, none is ordered: it would be lost.
const UNSTORED_MAX: usize = 256;

/// Certificates of domains, each with the URL of the authority that has issued it.
#[derive(Default)]
pub(crate) struct UnstoredCertificates(Mutex<HashMap<String, (String, IssuedCertificate)>>);

impl UnstoredCertificates {
    /// Whether there is no room for another one.
    pub(crate) fn is_full(&self) -> bool {
        self.0.lock().len() >= UNSTORED_MAX
    }

    /// Keeps a certificate of a domain. Orders under way may exceed the limit by their number.
    pub(crate) fn keep(&self, domain: &str, authority: &str, issued: IssuedCertificate) {
        let kept = (authority.to_owned(), issued);
        self.0.lock().insert(domain.to_owned(), kept);
    }

    /// Takes the certificate for this order out. One that does not do is wiped: of another authority, for other names,
    /// or due to be renewed.
    pub(crate) fn take(&self, order: &DueOrder, authority: &str, now: i64) -> Option<IssuedCertificate> {
        let (of, issued) = self.0.lock().remove(&order.domain)?;
        let names: Vec<String> = issued.life.covers.iter().cloned().collect();
        let does = of == authority
            && issued.life.renews() > now
            && names.iter().all(|name| order.names.contains(name))
            && order.is_due_for(&names);
        does.then_some(issued)
    }

    /// Wipes those of domains that are not among these, and those that have expired.
    pub(crate) fn retain(&self, is_wanted: impl Fn(&str) -> bool, now: i64) {
        let mut unstored = self.0.lock();
        unstored.retain(|domain, (_, issued)| is_wanted(domain) && issued.life.expires > now);
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use mail_directory::Secret;

    use super::*;
    use crate::acme::care::CurrentCertificate;

    const NOW: i64 = 1_000_000_000;
    const AUTHORITY: &str = "https://ca.test/dir";

    fn set(names: &[&str]) -> HashSet<String> {
        names.iter().map(|name| (*name).to_owned()).collect()
    }

    fn issued(names: &[&str]) -> IssuedCertificate {
        IssuedCertificate {
            certificate: String::new(),
            key: Secret::new(String::new()),
            fingerprint: names.concat(),
            life: CurrentCertificate {
                is_ours: true,
                expires: NOW + 90,
                lifetime: 90,
                covers: set(names),
                id: None,
                spread: 128,
            },
        }
    }

    fn order(names: &[&str], covered: &[&str]) -> DueOrder {
        DueOrder {
            domain: "a.test".to_owned(),
            names: names.iter().map(|name| (*name).to_owned()).collect(),
            kept: HashSet::new(),
            covered: set(covered),
            is_renewal: false,
            replaces: None,
        }
    }

    #[test]
    fn a_certificate_that_could_not_be_stored_is_stored_later_if_it_still_does() {
        for (names, order, authority, now, does) in [
            (&["a"][..], order(&["a"], &[]), AUTHORITY, NOW, true),
            // A bad name, which is tried again, is not in it.
            (&["a"], order(&["a", "bad"], &[]), AUTHORITY, NOW, true),
            (&["a", "gone"], order(&["a"], &[]), AUTHORITY, NOW, false),
            (&["a"], order(&["a", "new"], &["a"]), AUTHORITY, NOW, false),
            (&["a"], order(&["a"], &[]), "https://other.test/dir", NOW, false),
            (&["a"], order(&["a"], &[]), AUTHORITY, NOW + 60, false),
        ] {
            let unstored = UnstoredCertificates::default();
            unstored.keep("a.test", AUTHORITY, issued(names));
            let taken = unstored.take(&order, authority, now);
            assert_eq!(taken.is_some(), does, "{names:?} {order:?} {authority} {now}");
            assert!(unstored.take(&order, authority, now).is_none(), "it is taken once");
        }
    }

    #[test]
    fn they_are_bounded_and_forgotten_with_their_domains() {
        let unstored = UnstoredCertificates::default();
        for at in 0..UNSTORED_MAX {
            assert!(!unstored.is_full());
            unstored.keep(&format!("{at}.test"), AUTHORITY, issued(&["a"]));
        }
        assert!(unstored.is_full());
        unstored.retain(|domain| domain != "0.test", NOW);
        assert!(!unstored.is_full());
        unstored.retain(|_| true, NOW + 90);
        assert!(unstored.0.lock().is_empty(), "they have expired");
    }
}
