//! `acme`: the authority that certificates of domains are got from, and the account there.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use mail_directory::Secret;
use mail_directory::yaml::{Mapping, Node};
use route_cache::lookup::{Dialect, HandlerUrl};

use super::LiveKey;
use super::acme_dns::AcmeDns;
use super::read::ConfigReader;
use crate::tls::upstream::UpstreamTrust;

pub(super) const LIVE: [LiveKey; 1] = [("acme", |now, new| now.acme.clone_from(&new.acme))];

/// Beside the other files that a node keeps; see `state_file`.
const ACCOUNT_KEY_FILE: &str = "/var/lib/portico/acme.key";
/// The ways that there are to show who controls a name.
const CHALLENGES: [ChallengeKind; 3] = [ChallengeKind::Http01, ChallengeKind::TlsAlpn01, ChallengeKind::Dns01];
/// Most addresses of administrators.
const CONTACTS: usize = 16;
/// Most resolvers, as in resolv.conf(5).
const RESOLVERS: usize = 3;
/// Longest word that an authority gives out: the id of an account, the name of a profile.
const WORD_MAX: usize = 256;

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
    /// The account of the authority's own that a new one is bound to.
    pub eab: Option<ExternalAccount>,
    /// Which of the authority's kinds of certificates is ordered.
    pub profile: Option<String>,
    /// By whom the authority's own certificate is signed.
    pub trust: Arc<UpstreamTrust>,
    /// The challenges that are answered, the preferred one first. At least one.
    pub challenges: Vec<ChallengeKind>,
    /// How records get into the DNS, where [`ChallengeKind::Dns01`] is among them.
    pub dns: Option<AcmeDns>,
    /// By whom the DNS is asked about names of certificates; none: the system's resolvers.
    pub resolvers: Vec<SocketAddr>,
    /// Whether names are looked at in the DNS before they are ordered.
    pub checks_names: bool,
    /// Where names are asked for to see whether they lead here, if they are.
    pub self_request: Option<SelfRequestPorts>,
    /// The kind of new keys.
    pub key: CertificateKeyKind,
    /// Which domains get certificates.
    pub domains: AcmeDomains,
}

/// `acme.self_request`: the ports at which this Portico is reached from here under the names of its domains.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct SelfRequestPorts {
    /// In clear text.
    pub http: u16,
    /// With TLS.
    pub tls: u16,
}

impl Default for SelfRequestPorts {
    /// Those that authorities come to.
    fn default() -> Self {
        Self { http: 80, tls: 443 }
    }
}

/// `acme.eab`: an account that the administrator has at the authority already (RFC 8555 §7.3.4).
#[derive(Debug, Clone)]
pub(crate) struct ExternalAccount {
    /// As the authority calls it.
    pub kid: String,
    /// The key that the authority has given out with it.
    pub hmac_key: Secret<Vec<u8>>,
}

/// A way to show an authority who controls a name.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum ChallengeKind {
    /// A file in clear text (RFC 8555 §8.3).
    Http01,
    /// A certificate in a handshake (RFC 8737).
    TlsAlpn01,
    /// A record in the DNS (RFC 8555 §8.4); for patterns the only way.
    Dns01,
}

impl ChallengeKind {
    /// Whether this name, or pattern of names, can be shown so.
    pub(crate) fn can_show(self, name: &str) -> bool {
        self == Self::Dns01 || !name.starts_with("*.")
    }

    /// As authorities and the node file call it.
    pub(crate) fn word(self) -> &'static str {
        match self {
            Self::Http01 => "http-01",
            Self::TlsAlpn01 => "tls-alpn-01",
            Self::Dns01 => "dns-01",
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
        let eab = self.external_account(&mut section);
        let profile = section.take("profile").and_then(|node| self.word_of_authority(node));
        let challenges = self.acme_challenges(&mut section);
        let dns = self.dns_of_challenges(&mut section, &challenges);
        let resolvers = section.take("resolvers").map(|node| {
            let items = self.some_items(node, RESOLVERS).into_iter();
            items.filter_map(|item| item.socket_addr(&mut self.problems)).collect()
        });
        let checks_names = section
            .take("check_names")
            .and_then(|node| node.bool(&mut self.problems));
        let self_request = self.self_request(&mut section);
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
            eab,
            profile,
            trust: trust?,
            challenges,
            dns,
            resolvers: resolvers.unwrap_or_default(),
            checks_names: checks_names.unwrap_or(true),
            self_request,
            key: key.unwrap_or(CertificateKeyKind::EcdsaP256),
            domains: domains.unwrap_or(AcmeDomains::Marked),
        })
    }

    /// `acme.dns`, which goes together with `dns-01`.
    fn dns_of_challenges(&mut self, section: &mut Mapping<'_>, challenges: &[ChallengeKind]) -> Option<AcmeDns> {
        let is_wanted = challenges.contains(&ChallengeKind::Dns01);
        let there = section.entries().find(|(key, node)| *key == "dns" && !node.is_null());
        match there {
            None if is_wanted => section.node().error("dns-01 needs acme.dns", &mut self.problems),
            Some((_, node)) if !is_wanted => node.error("is for dns-01 in acme.challenges", &mut self.problems),
            _ => {}
        }
        self.acme_dns(section)
    }

    fn self_request(&mut self, acme: &mut Mapping<'_>) -> Option<SelfRequestPorts> {
        let mut section = self.section(acme, "self_request")?;
        let mut ports = SelfRequestPorts::default();
        for (key, port) in [("http_port", &mut ports.http), ("tls_port", &mut ports.tls)] {
            let written = section.take(key);
            *port = written.and_then(|node| node.port(&mut self.problems)).unwrap_or(*port);
        }
        section.finish(&mut self.problems);
        Some(ports)
    }

    fn external_account(&mut self, acme: &mut Mapping<'_>) -> Option<ExternalAccount> {
        let mut section = self.section(acme, "eab")?;
        let kid = section.require("kid", &mut self.problems);
        let kid = kid.and_then(|node| self.word_of_authority(node));
        let file = section.require("hmac_key_file", &mut self.problems);
        let hmac_key = file.and_then(|node| {
            let text = self.password(node)?;
            // Some authorities show it with padding.
            let key = URL_SAFE_NO_PAD.decode(text.expose().trim_end_matches('='));
            let wrong = |_| {
                node.error(
                    "expected a key in base64url, as the authority shows it",
                    &mut self.problems,
                )
            };
            key.map(Secret::new).map_err(wrong).ok()
        });
        section.finish(&mut self.problems);
        let (kid, hmac_key) = (kid?, hmac_key?);
        Some(ExternalAccount { kid, hmac_key })
    }

    /// A word that the authority gives out.
    fn word_of_authority(&mut self, node: Node<'_>) -> Option<String> {
        let text = node.text(&mut self.problems)?;
        let is_word = (1..=WORD_MAX).contains(&text.len()) && !text.contains(char::is_control);
        if !is_word {
            node.error(format!("expected 1 to {WORD_MAX} letters"), &mut self.problems);
        }
        is_word.then(|| text.into_owned())
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
        assert!(acme.eab.is_none() && acme.profile.is_none() && acme.checks_names);
        assert!(load("").unwrap().0.acme.is_none());
        let all = "acme: {directory_url: 'https://ca.test:14000/dir', contact: [a@b.test, 'mailto:c@d.test'], \
                   accept_terms_of_service: true, account_key_file: a.key, key: rsa-2048, domains: all, \
                   challenges: [tls-alpn-01, http-01], profile: shortlived}\n";
        let acme = load(all).unwrap().0.acme.unwrap();
        assert_eq!(acme.contact, ["mailto:a@b.test", "mailto:c@d.test"]);
        assert_eq!(acme.challenges, [ChallengeKind::TlsAlpn01, ChallengeKind::Http01]);
        assert!(acme.accepts_terms && acme.account_key_file.ends_with("a.key"));
        assert_eq!(acme.profile.as_deref(), Some("shortlived"));
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
                "{directory_url: 'https://ca.test/', challenges: [dns-02]}",
                "acme.challenges[0]",
            ),
            ("{directory_url: 'https://ca.test/', dns: x}", "acme.dns"),
            ("{directory_url: 'https://ca.test/', profile: ''}", "acme.profile"),
            ("{directory_url: 'https://ca.test/', eab: {kid: a}}", "acme.eab"),
            (
                "{directory_url: 'https://ca.test/', eab: {kid: a, hmac_key_file: none.key}}",
                "acme.eab.hmac_key_file",
            ),
        ] {
            let problems = load(&format!("acme: {wrong}\n")).unwrap_err();
            assert!(problems[0].contains(&format!("{key}: ")), "{wrong}: {problems:?}");
        }
    }

    #[test]
    fn the_key_of_another_account_stands_in_a_file() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("eab.key");
        let acme = |content: &str| {
            std::fs::write(&path, content).unwrap();
            let eab = format!("eab: {{kid: ours, hmac_key_file: {}}}", path.display());
            load(&format!("acme: {{directory_url: 'https://ca.test/', {eab}}}\n"))
        };
        for written in ["-_8A\n", "-_8A==\n"] {
            let eab = acme(written).unwrap().0.acme.unwrap().eab.unwrap();
            assert_eq!(
                (eab.kid.as_str(), eab.hmac_key.expose().as_slice()),
                ("ours", &[251, 255, 0][..])
            );
        }
        let problems = acme("+/8A").unwrap_err();
        assert!(
            problems.concat().contains("expected a key in base64url"),
            "{problems:?}"
        );
    }
}
