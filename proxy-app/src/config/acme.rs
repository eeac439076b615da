//! `acme`: the authority that certificates of domains are got from, and the account there.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use mail_directory::yaml::Mapping;
use route_cache::lookup::{Dialect, HandlerUrl};

use super::LiveKey;
use super::read::ConfigReader;
use crate::tls::upstream::UpstreamTrust;

pub(super) const LIVE: [LiveKey; 1] = [("acme", |now, new| now.acme.clone_from(&new.acme))];

/// Beside the other files that a node keeps; see `state_file`.
const ACCOUNT_KEY_FILE: &str = "/var/lib/portico/acme.key";
/// The ways that there are to show who controls a name.
const CHALLENGES: [ChallengeKind; 2] = [ChallengeKind::Http01, ChallengeKind::TlsAlpn01];
/// Most addresses of administrators.
const CONTACTS: usize = 16;

/// `acme`
#[derive(Debug, Clone)]
pub(crate) struct AcmeConfig {
    /// Where the authority says which request goes where.
    pub directory_url: String,
    /// Administrators, as `mailto:` URLs.
    pub contact: Vec<String>,
    /// Whether the authority's terms of service are accepted.
    pub accepts_terms: bool,
    /// The key of the account.
    pub account_key_file: PathBuf,
    /// By whom the authority's own certificate is signed.
    pub trust: Arc<UpstreamTrust>,
    /// The challenges that are answered, the preferred one first. At least one.
    pub challenges: Vec<ChallengeKind>,
    /// The kind of new keys.
    pub key: CertificateKeyKind,
    /// Which domains get certificates.
    pub domains: AcmeDomains,
}

/// A way to show an authority who controls a name.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum ChallengeKind {
    /// A file in clear text (RFC 8555 §8.3).
    Http01,
    /// A certificate in a handshake (RFC 8737).
    TlsAlpn01,
}

impl ChallengeKind {
    /// As authorities and the node file call it.
    pub(crate) fn word(self) -> &'static str {
        match self {
            Self::Http01 => "http-01",
            Self::TlsAlpn01 => "tls-alpn-01",
        }
    }
}

/// The kind of a certificate's key.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum CertificateKeyKind {
    /// `ecdsa-p256`
    EcdsaP256,
    /// `rsa-2048`
    Rsa2048,
}

/// Which domains get certificates, where the directory does not say so.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum AcmeDomains {
    /// None.
    Marked,
    /// Those with a virtual host name.
    All,
}

impl ConfigReader {
    pub(super) fn acme(&mut self, root: &mut Mapping<'_>) -> Option<AcmeConfig> {
        let mut section = self.section(root, "acme")?;
        let url = section.require("directory_url", &mut self.problems);
        let directory_url = url.and_then(|node| {
            let text = node.text(&mut self.problems)?;
            match HandlerUrl::parse(&text, Dialect::Nginx) {
                Ok(url) if !url.tls => node.error("an authority is asked by https only", &mut self.problems),
                Ok(_) => return Some(text.into_owned()),
                Err(why) => node.error(why, &mut self.problems),
            }
            None
        });
        let mut contact = Vec::new();
        if let Some(node) = section.take("contact") {
            for item in self.some_items(node, CONTACTS) {
                let text = item.text(&mut self.problems).unwrap_or_default();
                let address = text.strip_prefix("mailto:").unwrap_or(&text);
                match address.contains('@') && !address.contains(|c: char| c.is_whitespace() || c.is_control()) {
                    true => contact.push(format!("mailto:{address}")),
                    false => item.error("expected the address of an administrator", &mut self.problems),
                }
            }
        }
        let accepts_terms = section
            .take("accept_terms_of_service")
            .and_then(|node| node.bool(&mut self.problems));
        let file = section.take("account_key_file");
        let path = file.as_ref().and_then(|node| node.path_buf(&mut self.problems));
        let path = path.unwrap_or_else(|| Path::new(ACCOUNT_KEY_FILE).to_owned());
        self.warn_if_open(file.unwrap_or_else(|| section.node()), &path);
        let trust = self.service_trust(&mut section);
        let challenges = self.acme_challenges(&mut section);
        let kinds = [
            ("ecdsa-p256", CertificateKeyKind::EcdsaP256),
            ("rsa-2048", CertificateKeyKind::Rsa2048),
        ];
        let key = section
            .take("key")
            .and_then(|node| node.choice(&kinds, &mut self.problems));
        let which = [("marked", AcmeDomains::Marked), ("all", AcmeDomains::All)];
        let domains = section
            .take("domains")
            .and_then(|node| node.choice(&which, &mut self.problems));
        section.finish(&mut self.problems);
        Some(AcmeConfig {
            directory_url: directory_url?,
            contact,
            accepts_terms: accepts_terms.unwrap_or(false),
            account_key_file: path,
            trust: trust?,
            challenges,
            key: key.unwrap_or(CertificateKeyKind::EcdsaP256),
            domains: domains.unwrap_or(AcmeDomains::Marked),
        })
    }

    fn acme_challenges(&mut self, section: &mut Mapping<'_>) -> Vec<ChallengeKind> {
        let words = CHALLENGES.map(|kind| (kind.word(), kind));
        let items = section
            .take("challenges")
            .map(|node| self.some_items(node, words.len()));
        let kinds = items.map(|items| {
            let kinds = items
                .into_iter()
                .filter_map(|item| item.choice(&words, &mut self.problems));
            kinds.collect()
        });
        kinds.unwrap_or_else(|| vec![ChallengeKind::Http01])
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::tests::load;

    #[test]
    fn an_authority_needs_no_more_than_its_url() {
        let (config, problems) = load("acme: {directory_url: 'https://ca.test/dir'}\n").unwrap();
        let acme = config.acme.unwrap();
        assert!(problems.is_empty() && !acme.accepts_terms && acme.contact.is_empty());
        assert_eq!(acme.account_key_file, Path::new(ACCOUNT_KEY_FILE));
        assert_eq!(
            (acme.key, acme.domains),
            (CertificateKeyKind::EcdsaP256, AcmeDomains::Marked)
        );
        assert_eq!(acme.challenges, [ChallengeKind::Http01]);
        assert!(load("").unwrap().0.acme.is_none());
        let all = "acme: {directory_url: 'https://ca.test:14000/dir', contact: [a@b.test, 'mailto:c@d.test'], \
                   accept_terms_of_service: true, account_key_file: a.key, key: rsa-2048, domains: all, \
                   challenges: [tls-alpn-01, http-01]}\n";
        let acme = load(all).unwrap().0.acme.unwrap();
        assert_eq!(acme.contact, ["mailto:a@b.test", "mailto:c@d.test"]);
        assert_eq!(acme.challenges, [ChallengeKind::TlsAlpn01, ChallengeKind::Http01]);
        assert!(acme.accepts_terms && acme.account_key_file.ends_with("a.key"));
        assert_eq!(
            (acme.key, acme.domains),
            (CertificateKeyKind::Rsa2048, AcmeDomains::All)
        );
    }

    #[test]
    fn what_is_wrong_with_an_authority_is_said() {
        for (wrong, key) in [
            ("{}", "acme"),
            ("{directory_url: 'http://ca.test/dir'}", "acme.directory_url"),
            ("{directory_url: ca.test}", "acme.directory_url"),
            (
                "{directory_url: 'https://ca.test/', contact: [nobody]}",
                "acme.contact[0]",
            ),
            ("{directory_url: 'https://ca.test/', ca_file: none.pem}", "acme.ca_file"),
            ("{directory_url: 'https://ca.test/', key: dsa}", "acme.key"),
            ("{directory_url: 'https://ca.test/', domains: some}", "acme.domains"),
            ("{directory_url: 'https://ca.test/', challenges: []}", "acme.challenges"),
            (
                "{directory_url: 'https://ca.test/', challenges: [dns-01]}",
                "acme.challenges[0]",
            ),
            ("{directory_url: 'https://ca.test/', dns: x}", "acme.dns"),
        ] {
            let problems = load(&format!("acme: {wrong}\n")).unwrap_err();
            assert!(problems[0].contains(&format!("{key}: ")), "{wrong}: {problems:?}");
        }
    }
}
