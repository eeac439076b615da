//! The certificates of the configuration: the default one, and those of the domains.

use std::path::Path;
use std::sync::Arc;

use mail_directory::yaml::{Problems, problem, warning};
use mail_directory::{System, View, attributes as a, secret_file};

use crate::config::Config;
use crate::tls::certificate::CertKey;
use crate::tls::certificate_store::CertStore;

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
        let names: Vec<&str> = domain.list(&a::VIRTUAL_HOSTNAME);
        let uncovered = pair.iter().flat_map(|pair| pair.uncovered(names.iter().copied()));
        for name in uncovered {
            problems.push(warning(
                format!("domains.{}", domain.name()),
                format!("its certificate is not good for {name}"),
            ));
        }
        // Without a certificate, too: the names of this domain must not get the certificate of another.
        for name in names {
            store.add(name, pair.clone());
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

/// Whether this certificate of a domain is the one that Portico has got from an authority, and nobody has replaced
/// since.
pub(crate) fn is_from_authority(domain: &View<'_>, pair: &CertKey) -> bool {
    let noted = domain.text(&a::PORTICO_ACME_FINGERPRINT);
    noted.is_some_and(|noted| noted.eq_ignore_ascii_case(&pair.fingerprint_text()))
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
    if let Some(when) = pair.expired() {
        // Users can click a warning away; they cannot read mail at a listener that is not open.
        problems.push(warning("tls.certificate".to_owned(), format!("expired on {when}")));
    }
    Some(pair)
}
