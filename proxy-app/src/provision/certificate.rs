//! Certificates before they are stored: readable, with their key, in date, and good for which names.

use mail_directory::edit::EntryKind;
use mail_directory::{Entry, attributes as a};

use crate::provision::{CommandOutput, ProvisionError};
use crate::tls::certificate::{CertKey, WANTS_STAPLE};

/// Checks the pair that an entry would have. An invalid part is an error, a missing one a warning.
///
/// # Errors
/// The certificate cannot be read, is not that of the key, or is not in date.
pub(crate) fn check(
    kind: EntryKind,
    before: &Entry,
    after: &Entry,
    output: &mut CommandOutput,
) -> Result<(), ProvisionError> {
    let changed = |attribute: &a::Attribute| before.values(attribute.name) != after.values(attribute.name);
    let parts = (
        after.first(a::SSL_CERTIFICATE.name),
        after.first(a::SSL_PRIVATE_KEY.name),
    );
    let pair_changed = changed(&a::SSL_CERTIFICATE) || changed(&a::SSL_PRIVATE_KEY);
    if !pair_changed && !changed(&a::VIRTUAL_HOSTNAME) {
        return Ok(());
    }
    match parts {
        (Some(certificate), Some(key)) => {
            let pair = CertKey::from_pem(certificate.as_bytes(), key.as_bytes());
            match pair {
                Ok(pair) => whole(kind, &pair, after, pair_changed, output),
                // It was so before.
                Err(_) if !pair_changed => Ok(()),
                Err(error) => Err(ProvisionError::value(error)),
            }
        }
        (Some(certificate), None) if pair_changed => {
            CertKey::check_certificate(certificate.as_bytes()).map_err(ProvisionError::value)?;
            output.warn(missing(&a::SSL_PRIVATE_KEY, "certificate"));
            Ok(())
        }
        (None, Some(key)) if pair_changed => {
            CertKey::check_key(key.as_bytes()).map_err(ProvisionError::value)?;
            output.warn(missing(&a::SSL_CERTIFICATE, "private key"));
            Ok(())
        }
        _ => Ok(()),
    }
}

fn missing(attribute: &a::Attribute, what: &str) -> String {
    format!(
        "WARNING: there is no {}: the {what} has no effect without it",
        attribute.name
    )
}

fn whole(
    kind: EntryKind,
    pair: &CertKey,
    entry: &Entry,
    is_new: bool,
    output: &mut CommandOutput,
) -> Result<(), ProvisionError> {
    let dates = [
        pair.expired().map(|when| format!("the certificate expired on {when}")),
        pair.not_yet()
            .map(|when| format!("the certificate is not valid before {when}")),
    ];
    if let Some(message) = dates.into_iter().flatten().next().filter(|_| is_new) {
        return Err(ProvisionError::value(message));
    }
    if is_new && pair.wants_staple() {
        output.warn(["WARNING: ", WANTS_STAPLE].concat());
    }
    let names = entry.values(a::VIRTUAL_HOSTNAME.name).iter().map(String::as_str);
    let uncovered = pair.uncovered(names.filter(|_| kind == EntryKind::Domains));
    if !uncovered.is_empty() {
        output.warn(format!(
            "WARNING: the certificate of {} is not good for these virtual host names: {}",
            entry.name(),
            uncovered.join(", ")
        ));
    }
    Ok(())
}
