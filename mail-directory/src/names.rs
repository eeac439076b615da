//! The one form in which names of accounts, domains and hosts are compared, kept and written, however they are
//! spelled. Nothing else decides this.
//!
//! Domains are A-labels in lower case (RFC 5890 §2.3.2.1, by UTS #46), as LDAP, DNS, TLS and mailbox servers have
//! them; local parts are as RFC 8265 §3.3 maps user names: halfwidth and fullwidth letters are plain ones, lower
//! case, NFC. Blanks around a name are not part of it: LDAP ignores them (RFC 4518 §2.6.1), telephones add them.

use std::borrow::Cow;

use icu_normalizer::{ComposingNormalizer, ComposingNormalizerBorrowed};

const NFC: ComposingNormalizerBorrowed<'static> = ComposingNormalizer::new_nfc();
const NFKC: ComposingNormalizerBorrowed<'static> = ComposingNormalizer::new_nfkc();

/// A name to log in with: an address, or a local part alone.
pub fn account(name: &str) -> String {
    let name = name.trim();
    match name.rsplit_once('@') {
        Some((local, domain)) => format!("{}@{}", user(local), host(domain)),
        None => user(name),
    }
}

/// A domain, a host name, or a pattern of such; without the final dot. What is no name stays unchanged.
pub fn host(name: &str) -> String {
    let name = name.trim();
    let mut name = match name.is_ascii() {
        true => name.to_ascii_lowercase(),
        false => idna::domain_to_ascii(name).unwrap_or_else(|_| fold(name)),
    };
    // Only now: there are other dots than this one. Two dots do not end a name.
    if name.ends_with('.') && !name.ends_with("..") {
        name.pop();
    }
    name
}

/// A host name as it goes into DNS and TLS: its own spelling where that is possible, else A-labels.
pub fn reachable(name: &str) -> Cow<'_, str> {
    match name.is_ascii() {
        true => Cow::Borrowed(name),
        false => Cow::Owned(host(name)),
    }
}

/// Anything else: ids, words, values.
pub fn fold(text: &str) -> String {
    match text.is_ascii() {
        true => text.to_ascii_lowercase(),
        false => NFC.normalize(&text.to_lowercase()).into_owned(),
    }
}

/// The ways in which a directory may have written an address or a domain that is in its canonical form.
pub(crate) fn spellings(name: &str) -> Vec<String> {
    let (local, domain) = match name.rsplit_once('@') {
        Some((local, domain)) => (Some(local), domain),
        None => (None, name),
    };
    let mut all = vec![name.to_owned()];
    if domain.split('.').any(|label| label.starts_with("xn--"))
        && let (domain, Ok(())) = idna::domain_to_unicode(domain)
    {
        all.push(local.map_or_else(|| domain.clone(), |local| format!("{local}@{domain}")));
    }
    all
}

fn user(local: &str) -> String {
    if local.is_ascii() {
        return local.to_ascii_lowercase();
    }
    let plain: String = local.chars().map(plain_width).collect();
    fold(&plain)
}

/// RFC 8265 §3.3.1, width mapping: these alone are decomposed.
fn plain_width(letter: char) -> char {
    if !('\u{ff01}'..='\u{ffef}').contains(&letter) {
        return letter;
    }
    let text = letter.to_string();
    let mut plain = NFKC.normalize(&text).chars().collect::<Vec<_>>().into_iter();
    match (plain.next(), plain.next()) {
        (Some(plain), None) => plain,
        _ => letter,
    }
}

/// The domain of an address: what follows the last `@`.
pub fn domain_of(address: &str) -> Option<&str> {
    address.rsplit_once('@').map(|(_, domain)| domain)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_spelling_of_a_name_is_one() {
        for (spellings, canonical) in [
            (
                &[
                    "Eve@A.Example",
                    " eve@a.example",
                    "eve@a.example \t",
                    "eve@a.example.",
                    "Eve@A.Example\u{3002}",
                ][..],
                "eve@a.example",
            ),
            (
                &[
                    "eve@bücher.example",
                    "EVE@BÜCHER.example",
                    "eve@bu\u{308}cher.example",
                    "eve@xn--bcher-kva.example",
                    "Eve@XN--BCHER-KVA.Example",
                    "eve@bücher。example",
                    "eve@bücher.example.",
                    "eve@xn--bcher-kva.example.",
                    "eve@bücher.example\u{ff61}",
                ],
                "eve@xn--bcher-kva.example",
            ),
            (
                &[
                    "zoe\u{308}@a.example",
                    "zoë@a.example",
                    "ZOË@a.example",
                    "ZOE\u{308}@A.example",
                ],
                "zoë@a.example",
            ),
            (&["\u{ff45}\u{ff36}e", "eve", "EVE "], "eve"),
            // A letter is not another one because it looks like it.
            (&["ﬁ@a.example"], "ﬁ@a.example"),
            // A dot after a local part is a letter of it.
            (&["eve."], "eve."),
            (&["eve@a.example.."], "eve@a.example.."),
            (&["@", " @ "], "@"),
            (&[""], ""),
        ] {
            for name in spellings {
                assert_eq!(account(name), canonical, "{name:?}");
                assert_eq!(account(&account(name)), canonical, "{name:?}");
            }
        }
    }

    #[test]
    fn every_spelling_of_a_host_is_one() {
        for (name, canonical) in [
            ("Mail.A.Example.", "mail.a.example"),
            ("mail.bücher.example", "mail.xn--bcher-kva.example"),
            ("*.BÜCHER.example.", "*.xn--bcher-kva.example"),
            ("faß.example", "xn--fa-hia.example"),
            ("store_1.a.example", "store_1.a.example"),
            ("::1", "::1"),
            ("mail.a.example\u{3002}", "mail.a.example"),
            ("", ""),
            (".", ""),
            ("xn--a\u{fc}.example", "xn--a\u{fc}.example"),
        ] {
            assert_eq!(host(name), canonical);
            assert_eq!(host(&host(name)), canonical);
        }
        assert_eq!(reachable("Store.A.example"), "Store.A.example");
        assert_eq!(reachable("Störe.example"), "xn--stre-6qa.example");
    }

    #[test]
    fn a_directory_may_have_written_letters() {
        assert_eq!(spellings("eve@a.example"), ["eve@a.example"]);
        let both = ["eve@xn--bcher-kva.example", "eve@bücher.example"];
        assert_eq!(spellings(both[0]), both);
        assert_eq!(
            spellings("xn--bcher-kva.example"),
            ["xn--bcher-kva.example", "bücher.example"]
        );
    }
}
