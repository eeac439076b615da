//! The certificates of the configuration: the default one, and those of the domains.

use std::path::Path;
use std::sync::Arc;

use mail_directory::yaml::{Problem, Problems, problem, warning};
use mail_directory::{Entry, System, View, attributes as a, secret_file};

use crate::config::Config;
use crate::tls::certificate::{CertKey, WANTS_STAPLE};
use crate::tls::certificate_store::CertStore;

/// A certificate of an authority of which less than this part of its life is left has missed its renewal. Renewal begins
/// with a third of it left, and nobody may put it off beyond a quarter.
const LATE: i64 = 6;

/// The default certificate, and those of the domains under all their virtual host names. A pair of the directory that
/// cannot be used is left out, with a warning: the previous one stays, and where there was none the default is shown.
pub(crate) fn cert_store(
    config: &Config,
    system: &System,
    node: &View<'_>,
    before: &CertStore,
    problems: &mut Problems,
) -> CertStore {
    let mut store = CertStore::new(default_certificate(config, node, before, problems));
    for domain in system.domains() {
        let key = format!("domains.{}.zimbraSSLCertificate", domain.name());
        let kept = before.of_domain(domain.name());
        let fresh = own_pair(&domain, kept.as_ref()).transpose();
        if let Some(Err(why)) = &fresh {
            store.note_fault(domain.name(), why.clone());
        }
        let pair = usable(fresh, kept, key, problems);
        if pair.as_ref().is_some_and(|pair| pair.wants_staple()) {
            problems.push(warning(format!("domains.{}", domain.name()), WANTS_STAPLE));
        }
        let names: Vec<&str> = domain.list(&a::VIRTUAL_HOSTNAME);
        let default = store.default.clone();
        let of_authority = pair.as_ref().filter(|pair| is_from_authority(&domain, pair));
        if let Some(late) = of_authority.and_then(|pair| late_renewal(domain.name(), pair)) {
            problems.push(late);
        }
        let shows_default = |name: &str| {
            let lacks = of_authority.is_some_and(|pair| !pair.is_good_for(name));
            lacks && default.as_ref().is_some_and(|default| default.is_good_for(name))
        };
        let uncovered = pair.iter().flat_map(|pair| pair.uncovered(names.iter().copied()));
        for name in uncovered.filter(|name| !shows_default(name)) {
            problems.push(warning(
                format!("domains.{}", domain.name()),
                format!("its certificate is not good for {name}"),
            ));
        }
        // A bad name must not lose the default certificate because the others have got one without it.
        // Without a certificate, too: the names of this domain must not get the certificate of another.
        for name in names {
            store.add(name, pair.clone().filter(|_| !shows_default(name)));
        }
        for address in domain.addresses(&a::VIRTUAL_IP_ADDRESS) {
            store.add_address(address, pair.clone());
        }
        if let Some(pair) = pair {
            store.keep(domain.name(), pair);
        }
    }
    store
}

/// Warns of a certificate of an authority that should have been replaced long ago.
fn late_renewal(domain: &str, pair: &CertKey) -> Option<Problem> {
    // One that has expired is told of elsewhere.
    if !(0..pair.lifetime() / LATE).contains(&pair.seconds_left()) {
        return None;
    }
    let end = pair.leaf().not_after();
    let message = format!(
        "its certificate of the authority ends on {end}, and should have been renewed: portico certificates says why"
    );
    Some(warning(format!("domains.{domain}"), message))
}

/// Whether this certificate of a domain is the one that Portico has got from an authority, and nobody has replaced
/// since.
pub(crate) fn is_from_authority(domain: &View<'_>, pair: &CertKey) -> bool {
    is_noted(domain.text(&a::PORTICO_ACME_FINGERPRINT), pair)
}

fn is_noted(noted: Option<&str>, pair: &CertKey) -> bool {
    noted.is_some_and(|noted| noted.eq_ignore_ascii_case(&pair.fingerprint_text()))
}

/// Whether a certificate of an authority may take the place of what stands in the entry of a domain. It may where
/// nothing stands, where Portico has put both parts there, and where the whole pair has expired. A part alone may be
/// somebody's key, whose certificate is on its way.
///
/// # Errors
/// It may not, and why.
pub(crate) fn may_be_replaced(domain: &Entry) -> Result<(), String> {
    let parts = [&a::SSL_CERTIFICATE, &a::SSL_PRIVATE_KEY].map(|part| domain.first(part.name));
    let (certificate, key) = match parts {
        [None, None] => return Ok(()),
        [Some(certificate), Some(key)] => (certificate, key),
        [_, None] => return Err("a certificate without a key was stored: complete it, or remove it".to_owned()),
        [None, _] => return Err("a key without a certificate was stored: complete it, or remove it".to_owned()),
    };
    let pair = CertKey::from_pem(certificate.as_bytes(), key.as_bytes());
    let pair =
        pair.map_err(|error| format!("a certificate was stored that cannot be used: {error}; mend it, or remove it"))?;
    match is_noted(domain.first(a::PORTICO_ACME_FINGERPRINT.name), &pair) || pair.expired().is_some() {
        true => Ok(()),
        false => Err("another certificate was stored, and is valid".to_owned()),
    }
}

/// Where the certificate of a domain comes from.
pub(crate) fn source(domain: &View<'_>, pair: &CertKey) -> &'static str {
    match is_from_authority(domain, pair) {
        true => "acme",
        false => "directory",
    }
}

/// The certificate and key of an entry, if it has them.
fn own_pair(entry: &View<'_>, before: Option<&Arc<CertKey>>) -> Result<Option<Arc<CertKey>>, String> {
    match (entry.text(&a::SSL_CERTIFICATE), entry.text(&a::SSL_PRIVATE_KEY)) {
        (None, None) => Ok(None),
        (Some(certificate), Some(key)) => {
            let pair =
                CertKey::read(certificate.as_bytes(), key.as_bytes(), before).map_err(|error| error.to_string())?;
            match pair.expired() {
                Some(when) => Err(format!("the certificate expired on {when}")),
                None => Ok(Some(pair)),
            }
        }
        _ => Err("there is a certificate without a key, or a key without a certificate".to_owned()),
    }
}

/// The pair of an entry, or if that cannot be used its previous pair.
pub(crate) fn usable(
    fresh: Option<Result<Arc<CertKey>, String>>,
    before: Option<Arc<CertKey>>,
    key: String,
    problems: &mut Problems,
) -> Option<Arc<CertKey>> {
    match (fresh?, before) {
        (Ok(pair), _) => Some(pair),
        (Err(error), None) => {
            problems.push(warning(key, error));
            None
        }
        (Err(error), before) => {
            problems.push(warning(key, format!("{error}; the previous certificate stays in use")));
            before
        }
    }
}

fn default_certificate(
    config: &Config,
    node: &View<'_>,
    before: &CertStore,
    problems: &mut Problems,
) -> Option<Arc<CertKey>> {
    let Some((certificate, key)) = &config.tls.default else {
        let fresh = own_pair(node, before.default.as_ref()).transpose();
        return usable(
            fresh,
            before.default.clone(),
            "zimbraSSLCertificate of the node".to_owned(),
            problems,
        );
    };
    let read = |path: &Path| std::fs::read(path).map_err(|error| format!("{}: {error}", path.display()));
    let pair = match (read(certificate), read(key)) {
        (Ok(certificate), Ok(key)) => CertKey::read(&certificate, &key, before.default.as_ref()),
        (certificate, key) => {
            for error in [certificate.err(), key.err()].into_iter().flatten() {
                problems.push(problem("tls", error));
            }
            return None;
        }
    };
    let pair = pair
        .map_err(|error| problems.push(problem("tls.certificate", error)))
        .ok()?;
    if let Some(message) = secret_file::warning(key) {
        problems.push(warning("tls.key".to_owned(), message));
    }
    if pair.wants_staple() {
        problems.push(warning("tls.certificate".to_owned(), WANTS_STAPLE));
    }
    if let Some(when) = pair.expired() {
        // Users can click a warning away; they cannot read mail at a listener that is not open.
        problems.push(warning("tls.certificate".to_owned(), format!("expired on {when}")));
    }
    Some(pair)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Config;
    use crate::tls::certificate::samples::{pair, pair_with};
    use openssl::asn1::{Asn1Object, Asn1OctetString};
    use openssl::x509::X509Extension;

    #[test]
    fn a_name_that_an_authority_refuses_keeps_the_default_certificate() {
        let dir = tempfile::tempdir().unwrap();
        let file = |name: &str| dir.path().join(name);
        let ([certificate, key], [default, its_key]) = (pair(5_000, "good.test"), pair(5_000, "bad.test"));
        std::fs::write(file("default.pem"), default).unwrap();
        std::fs::write(file("default.key"), its_key).unwrap();
        let text = "tls: {certificate: default.pem, key: default.key}\n";
        std::fs::write(file("portico.yaml"), text).unwrap();
        let (config, _) = Config::load(&file("portico.yaml")).unwrap();
        let own = CertKey::from_pem(certificate.as_bytes(), key.as_bytes()).unwrap();
        for (noted, shows_default) in [(own.fingerprint_text(), true), (String::new(), false)] {
            let mut domain = Entry::new("a.test");
            domain.set(a::VIRTUAL_HOSTNAME.name, ["good.test", "bad.test", "other.test"]);
            domain.set(a::SSL_CERTIFICATE.name, [certificate.clone()]);
            domain.set(a::SSL_PRIVATE_KEY.name, [key.clone()]);
            domain.set(a::PORTICO_ACME_FINGERPRINT.name, [noted]);
            let system = System::new(Entry::new("config"), [], [domain], []);
            let mut problems = Problems::new();
            let (node, before) = (system.node("node.test"), CertStore::default());
            let store = cert_store(&config, &system, &node, &before, &mut problems);
            let is_own = |name: &str| store.of_name(name).unwrap().fingerprint() == own.fingerprint();
            assert_eq!((is_own("good.test"), is_own("bad.test")), (true, !shows_default));
            // No certificate is good for it: that of its domain is as good as another.
            assert!(is_own("other.test"));
        }
    }

    #[test]
    fn a_certificate_that_wants_a_staple_is_told() {
        let dir = tempfile::tempdir().unwrap();
        let file = |name: &str| dir.path().join(name);
        let feature = Asn1Object::from_str("1.3.6.1.5.5.7.1.24").unwrap();
        // A list of one feature, which is status_request.
        let value = Asn1OctetString::new_from_bytes(&[0x30, 3, 2, 1, 5]).unwrap();
        let must_staple = X509Extension::new_from_der(&feature, false, &value).unwrap();
        for (more, warnings) in [(Some(must_staple), 2), (None, 0)] {
            let [certificate, key] = pair_with(5_000, "a.test", more);
            std::fs::write(file("default.pem"), &certificate).unwrap();
            std::fs::write(file("default.key"), &key).unwrap();
            std::fs::write(
                file("portico.yaml"),
                "tls: {certificate: default.pem, key: default.key}\n",
            )
            .unwrap();
            let (config, _) = Config::load(&file("portico.yaml")).unwrap();
            let mut domain = Entry::new("a.test");
            domain.set(a::SSL_CERTIFICATE.name, [certificate]);
            domain.set(a::SSL_PRIVATE_KEY.name, [key]);
            let system = System::new(Entry::new("config"), [], [domain], []);
            let mut problems = Problems::new();
            cert_store(
                &config,
                &system,
                &system.node("node.test"),
                &CertStore::default(),
                &mut problems,
            );
            let told = problems.iter().filter(|problem| problem.message == WANTS_STAPLE);
            assert_eq!(told.count(), warnings, "{problems}");
        }
    }

    #[test]
    fn a_renewal_that_is_late_is_told() {
        for (left, is_late) in [(1_000, true), (-1_000, false), (90_000, false)] {
            // Its life began 10,000 seconds ago.
            let [certificate, key] = pair(left, "a.test");
            let pair = CertKey::from_pem(certificate.as_bytes(), key.as_bytes()).unwrap();
            let late = late_renewal("a.test", &pair).map(|late| late.to_string());
            assert_eq!(late.is_some(), is_late, "{left} of {}", pair.lifetime());
            let says = "should have been renewed: portico certificates says why";
            assert!(late.is_none_or(|late| late.ends_with(says) && late.contains("domains.a.test")));
        }
    }

    #[test]
    fn an_order_replaces_nothing_that_an_administrator_has_stored_and_needs() {
        let ([certificate, key], [expired, its_key]) = (pair(5_000, "a.test"), pair(-5_000, "a.test"));
        let noted = CertKey::from_pem(certificate.as_bytes(), key.as_bytes()).unwrap();
        let noted = noted.fingerprint_text().to_uppercase();
        let none = "";
        for (parts, noted, expected) in [
            ([none, none], none, Ok(())),
            ([&certificate, &key], &noted, Ok(())),
            ([&expired, &its_key], none, Ok(())),
            ([&certificate, &key], none, Err("another certificate was stored")),
            ([none, &key], none, Err("a key without")),
            ([&certificate, none], none, Err("a certificate without")),
            // The new key of somebody, beside the certificate that it is to replace.
            (
                [&certificate, &its_key],
                &noted,
                Err("a certificate was stored that cannot"),
            ),
            ([&expired, &key], none, Err("a certificate was stored that cannot")),
        ] {
            let mut entry = Entry::new("a.test");
            for (attribute, value) in [
                (&a::SSL_CERTIFICATE, parts[0]),
                (&a::SSL_PRIVATE_KEY, parts[1]),
                (&a::PORTICO_ACME_FINGERPRINT, noted),
            ] {
                entry.set(attribute.name, [value]);
            }
            let told = may_be_replaced(&entry);
            match (&told, expected) {
                (Ok(()), Ok(())) => {}
                (Err(why), Err(begin)) if why.starts_with(begin) => {}
                _ => panic!("{told:?}, and not {expected:?}"),
            }
        }
    }
}
