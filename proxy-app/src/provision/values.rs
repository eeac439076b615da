//! Single values: the form in which a directory keeps them, and whether a name is one.

use std::net::IpAddr;
use std::path::Path;

use mail_directory::attributes::{self, Attribute, Kind};
use mail_directory::names;

use crate::provision::ProvisionError;

/// In front of the path of a file with PEM text.
const FILE: &str = "file:";
/// Longest such file; the same as behind `!file` in a YAML directory.
const MAX_FILE: u64 = 1024 * 1024;
/// Longest host name (RFC 1035 §2.3.4, without the final dot).
const MAX_HOST: usize = 253;

/// The value as it is kept: `TRUE` and `FALSE` in capitals, words as the table spells them, PEM with whole lines.
///
/// # Errors
/// A file that cannot be read.
pub(crate) fn normal(attribute: &str, value: &str) -> Result<String, ProvisionError> {
    let kind = attributes::find(attribute).map(|known| known.kind);
    Ok(match kind {
        Some(Kind::Flag) => upper_if_flag(value),
        Some(Kind::Enum(words) | Kind::Words(words)) => {
            let word = words.iter().find(|word| word.eq_ignore_ascii_case(value));
            word.map_or(value, |word| word).to_owned()
        }
        Some(Kind::Pem(_)) => match value.strip_prefix(FILE) {
            Some(path) => whole_lines(&content(Path::new(path))?),
            None => whole_lines(value),
        },
        _ if is_one_of(attribute, &HOSTS) => in_letters_of_hosts(value),
        _ if is_one_of(attribute, &ADDRESSES) && !value.is_ascii() => names::account(value),
        _ => value.to_owned(),
    })
}

/// Attributes that hold names of hosts and domains, and such that hold addresses: international ones are kept in their
/// one form.
const HOSTS: [&Attribute; 5] = [
    &attributes::VIRTUAL_HOSTNAME,
    &attributes::SERVICE_HOSTNAME,
    &attributes::MAIL_HOST,
    &attributes::PUBLIC_SERVICE_HOSTNAME,
    &attributes::DEFAULT_DOMAIN_NAME,
];
const ADDRESSES: [&Attribute; 2] = [&attributes::MAIL_DELIVERY_ADDRESS, &attributes::MAIL_ALIAS];

fn is_one_of(name: &str, attributes: &[&Attribute]) -> bool {
    attributes
        .iter()
        .any(|attribute| attribute.name.eq_ignore_ascii_case(name))
}

fn in_letters_of_hosts(value: &str) -> String {
    match value.is_ascii() {
        true => value.to_owned(),
        false => names::host(value),
    }
}

fn upper_if_flag(value: &str) -> String {
    let upper = value.to_ascii_uppercase();
    match upper.as_str() {
        "TRUE" | "FALSE" => upper,
        _ => value.to_owned(),
    }
}

fn content(path: &Path) -> Result<String, ProvisionError> {
    use std::io::Read as _;
    let mut text = String::new();
    let read = std::fs::File::open(path).and_then(|file| file.take(MAX_FILE + 1).read_to_string(&mut text));
    match read {
        Ok(_) if text.len() as u64 > MAX_FILE => {
            Err(ProvisionError::request(format!("{} is too long", path.display())))
        }
        Ok(_) => Ok(text),
        Err(error) => Err(ProvisionError::request(format!("{}: {error}", path.display()))),
    }
}

/// Where a chain was put behind a certificate without a line end between them, there is one now.
pub(crate) fn whole_lines(pem: &str) -> String {
    pem.replace("\r\n", "\n")
        .replace('\r', "\n")
        .replace("----------BEGIN ", "-----\n-----BEGIN ")
}

/// A name that a client can ask for (HTTP §11.1): two labels or more, the last one of letters; the first may be `*`.
pub(crate) fn is_virtual_host(name: &str) -> bool {
    let rest = name.strip_prefix("*.").unwrap_or(name);
    let labels: Vec<&str> = rest.split('.').collect();
    let last = labels.last().copied().unwrap_or_default();
    let is_top = last.len() >= 2 && (last.chars().all(|c| c.is_ascii_alphabetic()) || last.starts_with("xn--"));
    name.len() <= MAX_HOST && labels.len() >= 2 && is_top && labels.iter().all(|label| is_label(label))
}

/// A host name or an address.
pub(crate) fn is_host(name: &str) -> bool {
    name.parse::<IpAddr>().is_ok() || is_host_name(name)
}

/// A host name of one label or more.
pub(crate) fn is_host_name(name: &str) -> bool {
    name.len() <= MAX_HOST && name.split('.').all(is_label)
}

fn is_label(label: &str) -> bool {
    let good = |c: char| c.is_ascii_alphanumeric() || c == '-';
    let ends = label.starts_with('-') || label.ends_with('-');
    (1..=63).contains(&label.len()) && label.chars().all(good) && !ends
}

/// An address of an account; what RFC 5321 allows in quotes is not meant.
pub(crate) fn is_address(address: &str) -> bool {
    let good = |c: char| !c.is_control() && !c.is_whitespace() && !"\"(),:;<>@[\\]".contains(c);
    match address.rsplit_once('@') {
        Some((user, domain)) => !user.is_empty() && user.len() <= 64 && user.chars().all(good) && is_host_name(domain),
        None => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_get_the_form_that_is_kept() {
        for (attribute, value, kept) in [
            ("zimbraReverseProxyMailEnabled", "true", "TRUE"),
            ("zimbraReverseProxyMailEnabled", "yes", "yes"),
            ("zimbraReverseProxyMailMode", "HTTPS", "https"),
            ("zimbraReverseProxySSLProtocols", "tlsv1.2", "TLSv1.2"),
            (
                "zimbraSSLCertificate",
                "-----END CERTIFICATE----------BEGIN CERTIFICATE-----\r\n",
                "-----END CERTIFICATE-----\n-----BEGIN CERTIFICATE-----\n",
            ),
            ("displayName", "file:x", "file:x"),
            ("displayName", "Bücher", "Bücher"),
            ("zimbraVirtualHostname", "*.Bücher.example", "*.xn--bcher-kva.example"),
            ("zimbramailalias", "Eve@bücher.example", "eve@xn--bcher-kva.example"),
            ("zimbraMailAlias", "Eve@a.example", "Eve@a.example"),
        ] {
            assert_eq!(normal(attribute, value).unwrap(), kept);
        }
        let missing = normal("zimbraSSLCertificate", "file:none.pem").unwrap_err();
        assert!(
            matches!(missing, ProvisionError::Service { message, .. } if message.contains("none.pem: No such file"))
        );
    }

    #[test]
    fn names_of_hosts_and_people() {
        let long = format!("{}.example", "a".repeat(64));
        for (name, virtual_host, host) in [
            ("mail.a.example", true, true),
            ("*.a.example", true, false),
            ("xn--mller-kva.example", true, true),
            ("a.xn--p1ai", true, true),
            ("a-b.c0.de", true, true),
            ("mail", false, true),
            ("*.example", false, false),
            ("a.*.example", false, false),
            ("-a.example", false, false),
            ("a_b.example", false, false),
            ("a..example", false, false),
            ("192.0.2.1", false, true),
            ("::1", false, true),
            ("a.example.", false, false),
            ("a.b1", false, true),
            ("", false, false),
            (&long, false, false),
        ] {
            assert_eq!(is_virtual_host(name), virtual_host, "{name}");
            assert_eq!(is_host(name), host, "{name}");
        }
        for (address, good) in [
            ("a@b.example", true),
            ("o'hara+x@b", true),
            ("a", false),
            ("@b", false),
            ("a b@c", false),
            ("a@b@c", false),
            ("a@", false),
        ] {
            assert_eq!(is_address(address), good, "{address}");
        }
    }
}
