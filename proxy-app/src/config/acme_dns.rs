//! `acme.dns`: how records get into the DNS by which an authority sees who controls a name.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use mail_directory::Secret;
use mail_directory::yaml::{Mapping, Node};
use route_cache::HostPort;

use super::read::ConfigReader;

/// Most name servers that are named, and most words of a command.
const SERVERS_MAX: usize = 16;
const WORDS_MAX: usize = 32;

/// `acme.dns`
#[derive(Debug, Clone)]
pub(crate) struct AcmeDns {
    /// By what means records get there.
    pub way: DnsWay,
    /// The name servers that must have a record before the authority is told; none: those of the zone.
    pub servers: Vec<HostPort>,
}

/// By what means records are put into a zone.
#[derive(Debug, Clone)]
pub(crate) enum DnsWay {
    /// A name server is told (RFC 2136).
    Update(DnsUpdateServer),
    /// The administrator's program is run, with these words first.
    Command(Vec<String>),
}

/// A name server that takes changes.
#[derive(Debug, Clone)]
pub(crate) struct DnsUpdateServer {
    /// Where it is.
    pub server: HostPort,
    /// The zone to change, if it is not looked for.
    pub zone: Option<String>,
    /// The key that signs changes.
    pub tsig: TsigKey,
}

/// A key that two share (RFC 8945).
#[derive(Debug, Clone)]
pub(crate) struct TsigKey {
    /// As both call it.
    pub name: String,
    /// How it signs.
    pub algorithm: TsigAlgorithm,
    /// The key itself.
    pub secret: Secret<Vec<u8>>,
}

/// How a key signs messages.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum TsigAlgorithm {
    /// `hmac-sha256`
    HmacSha256,
    /// `hmac-sha512`
    HmacSha512,
}

impl ConfigReader {
    pub(super) fn acme_dns(&mut self, acme: &mut Mapping<'_>) -> Option<AcmeDns> {
        let mut section = self.section(acme, "dns")?;
        let (update, command) = (self.update_server(&mut section), section.take("command"));
        let command = command.map(|node| self.dns_command(node));
        let servers = section.take("servers").map(|node| {
            let items = self.some_items(node, SERVERS_MAX).into_iter();
            items.filter_map(|item| self.host_and_port(item)).collect()
        });
        let way = match (update, command) {
            (Some(update), None) => update.map(DnsWay::Update),
            (None, Some(words)) => words.map(DnsWay::Command),
            _ => {
                section
                    .node()
                    .error("expected one of update and command", &mut self.problems);
                None
            }
        };
        section.finish(&mut self.problems);
        Some(AcmeDns {
            way: way?,
            servers: servers.unwrap_or_default(),
        })
    }

    /// None: it is not there; none in it: it is wrong.
    fn update_server(&mut self, dns: &mut Mapping<'_>) -> Option<Option<DnsUpdateServer>> {
        let mut section = self.section(dns, "update")?;
        let server = section.require("server", &mut self.problems);
        let server = server.and_then(|node| self.host_and_port(node));
        let zone = section.take("zone").map(|node| self.dns_name(node));
        let tsig = match section.require("tsig", &mut self.problems).is_some() {
            true => self.tsig(&mut section),
            false => None,
        };
        section.finish(&mut self.problems);
        let made = || {
            Some(DnsUpdateServer {
                server: server?,
                zone: match zone {
                    Some(zone) => Some(zone?),
                    None => None,
                },
                tsig: tsig?,
            })
        };
        Some(made())
    }

    fn tsig(&mut self, update: &mut Mapping<'_>) -> Option<TsigKey> {
        let mut section = self.section(update, "tsig")?;
        let name = section.require("name", &mut self.problems);
        let name = name.and_then(|node| self.dns_name(node));
        let algorithms = [
            ("hmac-sha256", TsigAlgorithm::HmacSha256),
            ("hmac-sha512", TsigAlgorithm::HmacSha512),
        ];
        let algorithm = match section.take("algorithm") {
            Some(node) => node.choice(&algorithms, &mut self.problems),
            None => Some(TsigAlgorithm::HmacSha256),
        };
        let file = section.require("key_file", &mut self.problems);
        let secret = file.and_then(|node| {
            let text = self.password(node)?;
            let wrong = |_| node.error("expected a key in base64, as tsig-keygen shows it", &mut self.problems);
            STANDARD.decode(text.expose()).map(Secret::new).map_err(wrong).ok()
        });
        section.finish(&mut self.problems);
        Some(TsigKey {
            name: name?,
            algorithm: algorithm?,
            secret: secret?,
        })
    }

    /// Labels of letters, digits, `-` and `_`.
    fn dns_name(&mut self, node: Node<'_>) -> Option<String> {
        let text = node.text(&mut self.problems)?;
        let is_letter = |c: char| c.is_ascii_alphanumeric() || c == '-' || c == '_';
        let is_label = |label: &str| (1..=63).contains(&label.len()) && label.chars().all(is_letter);
        let is_name = text.len() < 254 && text.strip_suffix('.').unwrap_or(&text).split('.').all(is_label);
        if !is_name {
            node.error("expected a name of the DNS", &mut self.problems);
        }
        is_name.then(|| text.into_owned())
    }

    fn dns_command(&mut self, node: Node<'_>) -> Option<Vec<String>> {
        let items = self.some_items(node, WORDS_MAX);
        let words: Option<Vec<String>> = items
            .into_iter()
            .map(|item| Some(item.text(&mut self.problems)?.into_owned()))
            .collect();
        let words = words?;
        let is_path = words.first().is_some_and(|program| program.starts_with('/'));
        if !is_path {
            node.error(
                "expected the whole path of a program, and its arguments",
                &mut self.problems,
            );
        }
        is_path.then_some(words)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::AcmeConfig;
    use crate::config::tests::load;

    fn acme(more: &str) -> Result<AcmeConfig, Vec<String>> {
        let loaded = load(&format!("acme: {{directory_url: 'https://ca.test/', {more}}}\n"));
        loaded.map(|(config, _)| config.acme.unwrap())
    }

    #[test]
    fn records_get_there_by_updates_or_a_program() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("tsig.key");
        std::fs::write(&path, "+/8A\n").unwrap();
        let tsig = format!(
            "{{name: portico, algorithm: hmac-sha512, key_file: {}}}",
            path.display()
        );
        let update = format!("{{server: 'ns.test:53', zone: a.test, tsig: {tsig}}}");
        let read = acme(&format!(
            "challenges: [dns-01], dns: {{update: {update}, servers: ['192.0.2.1:53']}}"
        ));
        let dns = read.unwrap().dns.unwrap();
        let DnsWay::Update(server) = dns.way else {
            panic!("it is an update");
        };
        assert_eq!((server.server.port, server.zone.as_deref()), (53, Some("a.test")));
        assert_eq!(server.tsig.algorithm, TsigAlgorithm::HmacSha512);
        assert_eq!(server.tsig.secret.expose().as_slice(), [251, 255, 0]);
        assert_eq!(dns.servers.len(), 1);
        let read = acme("challenges: [http-01, dns-01], dns: {command: [/usr/bin/put, now]}");
        let DnsWay::Command(words) = read.unwrap().dns.unwrap().way else {
            panic!("it is a program");
        };
        assert_eq!(words, ["/usr/bin/put", "now"]);
    }

    #[test]
    fn what_is_wrong_with_it_is_said() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("tsig.key");
        std::fs::write(&path, "no base64\n").unwrap();
        let tsig = format!("{{name: k, key_file: {}}}", path.display());
        for (wrong, key) in [
            ("challenges: [dns-01]", "acme: dns-01 needs acme.dns"),
            ("dns: {command: [/bin/true]}", "acme.dns: is for dns-01"),
            ("challenges: [dns-01], dns: {}", "acme.dns: expected one of"),
            (
                "challenges: [dns-01], dns: {command: [put]}",
                "acme.dns.command: expected the whole path",
            ),
            ("challenges: [dns-01], dns: {command: []}", "acme.dns.command: "),
            (
                "challenges: [dns-01], dns: {update: {server: ns.test}}",
                "acme.dns.update.server: ",
            ),
            (
                "challenges: [dns-01], dns: {update: {server: 'ns.test:53'}}",
                "acme.dns.update",
            ),
            (
                "challenges: [dns-01], dns: {update: {server: 'a:53', zone: 'a..b', tsig: {}}}",
                "acme.dns.update.zone: ",
            ),
            (
                "challenges: [dns-01], dns: {update: {server: 'a:53', tsig: {name: k, algorithm: hmac-md5}}}",
                "acme.dns.update.tsig.algorithm: ",
            ),
            ("resolvers: [127.0.0.1]", "acme.resolvers[0]: "),
        ] {
            let problems = acme(wrong).unwrap_err();
            assert!(
                problems.iter().any(|problem| problem.contains(key)),
                "{wrong}: {problems:?}"
            );
        }
        let wrong = format!("challenges: [dns-01], dns: {{update: {{server: 'a:53', tsig: {tsig}}}}}");
        let problems = acme(&wrong).unwrap_err();
        assert!(problems.concat().contains("expected a key in base64"), "{problems:?}");
    }
}
