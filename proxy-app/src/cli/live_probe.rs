//! How `portico certificate probe` prints what clients see of names: for each name its DNS, what each node shows by each
//! service, and in words what is not as it should be.

use std::collections::{BTreeSet, HashMap};
use std::fmt::Write as _;

use crate::admin::live_probes::{LiveProbe, ProbedCertificate, ProbedListener, ProbedName};
use crate::app::live_probe::SERVICES;
use crate::cli::asking::{printable, table};
use crate::cli::nodes::Everywhere;

/// Digits of a fingerprint by which people tell certificates apart.
const SHORT: usize = 12;

/// What a node is called that knows no other one.
pub(super) const HERE: &str = "this node";

/// What the nodes have seen.
pub(super) struct Seen<'a> {
    /// By node; the one that was asked comes first.
    probes: Vec<(&'a str, LiveProbe)>,
    certificates: HashMap<String, ProbedCertificate>,
    /// Nodes whose answer is of another form than ours.
    unread: usize,
}

impl<'a> Seen<'a> {
    /// Of these answers; `here` is the name of the node that does not say its own.
    pub(super) fn new(all: &'a Everywhere<LiveProbe>, here: &'a str) -> Self {
        let (mut probes, mut unread) = (vec![(all.node.as_deref().unwrap_or(here), all.here.clone())], 0);
        for (node, answer) in all.others() {
            match answer {
                // Without an answer it is a node that does not know the name.
                Ok(probe) => probes.push((node, probe.unwrap_or_default())),
                Err(_) => unread += 1,
            }
        }
        let certificates = probes.iter().flat_map(|(_, probe)| &probe.certificates);
        let certificates = certificates.map(|one| (one.fingerprint.clone(), one.clone()));
        Self {
            certificates: certificates.collect(),
            probes,
            unread,
        }
    }

    /// # Errors
    /// A name is not shown a certificate that is good for it, somewhere.
    pub(super) fn complete(&self) -> anyhow::Result<()> {
        let names = self.names();
        let each: Vec<bool> = names.iter().flat_map(|name| self.of(name).are_good()).collect();
        let bad = each.iter().filter(|is_good| !**is_good).count();
        anyhow::ensure!(bad == 0, "{bad} of {} are not as they should be", each.len());
        for (node, probe) in &self.probes {
            let listeners = probe.names.iter().map(|name| name.listeners.len()).sum::<usize>();
            anyhow::ensure!(
                listeners > 0,
                "0 listeners were looked at on {node}: none for web or mail clients has TLS"
            );
            let (seen, more) = (probe.names.len() as u64, probe.more);
            anyhow::ensure!(
                more == 0,
                "only {seen} of {} names were looked at on {node}",
                seen + more
            );
        }
        anyhow::ensure!(
            self.unread == 0,
            "a node answers in another form: it has another version"
        );
        Ok(())
    }

    /// All of it, as people read it.
    pub(super) fn text(&self) -> String {
        let mut out = String::new();
        let Some((_, first)) = self.probes.first() else {
            return out;
        };
        let _fits = writeln!(out, "domain {}", printable(&first.domain));
        let names = self.names();
        for name in &names {
            out += "\n";
            out += &self.of(name).text();
        }
        let more = self.probes.iter().map(|(_, probe)| probe.more).max().unwrap_or(0);
        if more > 0 {
            let _fits = writeln!(out, "\nand {more} more names, which were not looked at");
        }
        let listeners = self.probes.iter().flat_map(|(_, probe)| &probe.names);
        let listeners = listeners.flat_map(|name| &name.listeners);
        let shown: BTreeSet<&str> = listeners.filter_map(|one| one.fingerprint.as_deref()).collect();
        if !shown.is_empty() {
            out += "\ncertificates\n";
        }
        for certificate in shown.iter().filter_map(|one| self.certificates.get(*one)) {
            let text = format!("{}; {}", about(certificate), self.trust(&certificate.fingerprint));
            let _fits = writeln!(out, "  {}", printable(&text));
        }
        out
    }

    /// On which nodes the authorities vouch for a certificate, and why not on the others.
    fn trust(&self, fingerprint: &str) -> String {
        let mut said: Vec<(Option<&str>, Vec<&str>)> = Vec::new();
        for (node, probe) in &self.probes {
            let mut shown = probe.names.iter().flat_map(|name| &name.listeners);
            let Some(one) = shown.find(|one| one.fingerprint.as_deref() == Some(fingerprint)) else {
                continue;
            };
            let why = one.untrusted.as_deref();
            match said.iter_mut().find(|(known, _)| *known == why) {
                Some((_, nodes)) => nodes.push(node),
                None => said.push((why, vec![node])),
            }
        }
        let texts = said.into_iter().map(|(why, nodes)| match why {
            None => format!("known to the authorities of {}", nodes.join(", ")),
            Some(why) => format!("not known to the authorities of {} ({why})", nodes.join(", ")),
        });
        texts.collect::<Vec<_>>().join("; ")
    }

    /// The names that any node has.
    fn names(&self) -> Vec<&str> {
        let all = self.probes.iter().flat_map(|(_, probe)| &probe.names);
        let all: BTreeSet<&str> = all.map(|name| name.name.as_str()).collect();
        all.into_iter().collect()
    }

    fn of<'s>(&'s self, name: &'s str) -> NameOnNodes<'s> {
        let found = |probe: &'s LiveProbe| probe.names.iter().find(|one| one.name == name);
        // A node that has more names than it looks at may have it, too.
        let (left_out, others): (Vec<_>, Vec<_>) = self
            .probes
            .iter()
            .partition(|(_, probe)| found(probe).is_none() && probe.more > 0);
        let rows: Vec<_> = others.into_iter().map(|(node, probe)| (*node, found(probe))).collect();
        NameOnNodes {
            seen: self,
            name,
            usual: self.usual(&rows),
            rows,
            left_out: left_out.into_iter().map(|(node, _)| *node).collect(),
        }
    }

    fn days_left(&self, fingerprint: &str) -> i64 {
        self.certificates.get(fingerprint).map_or(0, |one| one.days_left)
    }

    /// The certificate that most listeners show for a name without fault; of two that as many show, the one that lasts
    /// longer.
    fn usual<'s>(&self, rows: &[(&str, Option<&'s ProbedName>)]) -> Option<&'s str> {
        let mut counts: Vec<(&str, usize)> = Vec::new();
        let good = listeners(rows).filter(|one| one.problem.is_none());
        for fingerprint in good.filter_map(|one| one.fingerprint.as_deref()) {
            match counts.iter_mut().find(|(known, _)| *known == fingerprint) {
                Some((_, count)) => *count += 1,
                None => counts.push((fingerprint, 1)),
            }
        }
        // Of several that are alike the first one: the last is what is taken of them.
        let usual = counts.into_iter().rev();
        let usual = usual.max_by_key(|(one, count)| (*count, self.days_left(one)));
        usual.map(|(fingerprint, _)| fingerprint)
    }
}

/// The listeners of all nodes.
fn listeners<'s>(rows: &[(&str, Option<&'s ProbedName>)]) -> impl Iterator<Item = &'s ProbedListener> {
    let found = rows.iter().filter_map(|(_, found)| *found);
    found.flat_map(|found| &found.listeners)
}

/// What the nodes have seen of one name.
struct NameOnNodes<'s> {
    seen: &'s Seen<'s>,
    name: &'s str,
    /// Each node with what it has of it; `None`: it does not know the name.
    rows: Vec<(&'s str, Option<&'s ProbedName>)>,
    usual: Option<&'s str>,
    /// Nodes that did not look at it, because they have so many.
    left_out: Vec<&'s str>,
}

impl NameOnNodes<'_> {
    /// Whether each listener, and each node that does not know the name, is as it should be.
    fn are_good(&self) -> Vec<bool> {
        let unknown = self.rows.iter().filter(|(_, found)| found.is_none()).map(|_| false);
        let shown = listeners(&self.rows).map(|one| one.problem.is_none());
        shown.chain(unknown).collect()
    }

    fn text(&self) -> String {
        let asked = self.rows.iter().find_map(|(_, found)| found.as_ref()?.asked.as_deref());
        let asked = asked.map(|asked| format!(" (as {asked})")).unwrap_or_default();
        let mut out = printable(&format!("{}{asked}", self.name)) + "\n";
        let dns = dns(&self.rows).into_iter().map(|line| format!("DNS: {line}"));
        let table = self.table();
        let lines = dns.chain(table.lines().map(str::to_owned)).chain(self.notes());
        for line in lines {
            let _fits = writeln!(out, "  {}", printable(&line));
        }
        out
    }

    /// Nodes and services; empty where there is nothing to show.
    fn table(&self) -> String {
        let has = |service: &str| listeners(&self.rows).any(|one| one.service == service);
        let services: Vec<&str> = SERVICES.into_iter().filter(|service| has(service)).collect();
        if services.is_empty() {
            return String::new();
        }
        let row = |(node, found): &(&str, Option<&ProbedName>)| {
            let found = (*found)?;
            let cells = services.iter().map(|service| self.cell(found, service));
            Some(std::iter::once((*node).to_owned()).chain(cells).collect())
        };
        let head = std::iter::once("NODE").chain(services.iter().copied());
        let head: Vec<String> = head.map(str::to_owned).collect();
        let rows: Vec<Vec<String>> = std::iter::once(head).chain(self.rows.iter().filter_map(row)).collect();
        table(&rows)
    }

    /// What a node shows by a service, at one listener or more.
    fn cell(&self, found: &ProbedName, service: &str) -> String {
        let here = found.listeners.iter().filter(|one| one.service == service);
        let mut texts: Vec<String> = here.map(|one| self.mark(one)).collect();
        texts.dedup();
        match texts.is_empty() {
            true => "-".to_owned(),
            false => texts.join(", "),
        }
    }

    fn mark(&self, one: &ProbedListener) -> String {
        match (&one.problem, &one.fingerprint) {
            (Some(_), Some(_)) => "BAD".to_owned(),
            (Some(_), None) => "NONE".to_owned(),
            (None, fingerprint) => {
                let days = self.seen.days_left(fingerprint.as_deref().unwrap_or_default());
                let mark = if self.is_unusual(one) { " *" } else { "" };
                format!("{days} days{mark}")
            }
        }
    }

    /// Whether it shows another certificate than most.
    fn is_unusual(&self, one: &ProbedListener) -> bool {
        one.problem.is_none() && one.fingerprint.as_deref() != self.usual
    }

    /// What is not as it should be, or not the same everywhere, in words.
    fn notes(&self) -> Vec<String> {
        let of_node = |(node, found): &(&str, Option<&ProbedName>)| match found {
            Some(found) => self.notes_on(node, found),
            None => vec![format!("{node}: this name is not known there")],
        };
        let mut notes: Vec<String> = self.rows.iter().flat_map(of_node).collect();
        notes.extend(self.left_out.iter().map(|node| format!("{node}: not looked at there")));
        if listeners(&self.rows).next().is_none() {
            notes.push("no listener for web or mail clients has TLS".to_owned());
        }
        notes
    }

    /// What is to be said of several listeners is said once.
    fn notes_on(&self, node: &str, found: &ProbedName) -> Vec<String> {
        let mut said: Vec<(String, Vec<&ProbedListener>)> = Vec::new();
        for (one, note) in found.listeners.iter().filter_map(|one| Some((one, self.note(one)?))) {
            match said.iter_mut().find(|(known, _)| *known == note) {
                Some((_, those)) => those.push(one),
                None => said.push((note, vec![one])),
            }
        }
        let lines = said.into_iter().map(|(note, those)| match &those[..] {
            [one] => format!("{node}, {} at {}: {note}", one.service, one.listener),
            several => {
                let mut services: Vec<&str> = several.iter().map(|one| one.service.as_str()).collect();
                services.dedup();
                format!("{node}, {}: {note}", services.join(", "))
            }
        });
        lines.collect()
    }

    fn note(&self, one: &ProbedListener) -> Option<String> {
        let fingerprint = one.fingerprint.as_deref().map(short);
        match (&one.problem, fingerprint) {
            (Some(problem), Some(fingerprint)) => Some(format!("{problem} ({fingerprint})")),
            (Some(problem), None) => Some(problem.clone()),
            (None, Some(fingerprint)) if self.is_unusual(one) => {
                Some(format!("another certificate than elsewhere ({fingerprint})"))
            }
            (None, _) => None,
        }
    }
}

/// What the DNS says of a name, and who hears it where not all hear the same.
fn dns(rows: &[(&str, Option<&ProbedName>)]) -> Vec<String> {
    let mut heard: Vec<(String, Vec<&str>)> = Vec::new();
    for (node, found) in rows {
        let Some(found) = found else { continue };
        let text = records(found);
        match heard.iter_mut().find(|(known, _)| *known == text) {
            Some((_, nodes)) => nodes.push(node),
            None => heard.push((text, vec![node])),
        }
    }
    let is_one = heard.len() < 2;
    let lines = heard.into_iter().map(|(text, nodes)| match is_one {
        true => text,
        false => format!("{text} (says {})", nodes.join(", ")),
    });
    lines.collect()
}

fn records(found: &ProbedName) -> String {
    let what = match &found.dns_problem {
        Some(problem) => problem.clone(),
        None => {
            let mut addresses = found.addresses.clone();
            addresses.sort_unstable();
            addresses.join(", ")
        }
    };
    let what = match found.more_records {
        0 => what,
        more => format!("{what} and {more} more"),
    };
    match found.aliases.is_empty() {
        true => what,
        false => format!("an alias of {}: {what}", found.aliases.join(", then ")),
    }
}

fn about(certificate: &ProbedCertificate) -> String {
    format!(
        "{}: for {}; by {}; until {}, {} days left",
        short(&certificate.fingerprint),
        certificate.names.join(", "),
        certificate.issuer,
        certificate.not_after,
        certificate.days_left
    )
}

fn short(fingerprint: &str) -> String {
    fingerprint.chars().take(SHORT).collect()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::admin::everywhere::NodeAnswer;

    fn listener(service: &str, fingerprint: Option<&str>, problem: Option<&str>) -> serde_json::Value {
        json!({"listener": "127.0.0.1:1", "service": service, "fingerprint": fingerprint, "covered": true,
               "in_force": true, "protocol": "TLSv1.3", "problem": problem})
    }

    fn probe(addresses: &[&str], listeners: &[serde_json::Value]) -> serde_json::Value {
        let certificate = |fingerprint: &str, days: i64| {
            json!({"fingerprint": fingerprint, "names": ["mail.a.test"], "subject": "", "issuer": "CN=x",
                   "not_after": "then", "days_left": days})
        };
        json!({"domain": "a.test", "more": 0, "certificates": [certificate("aaaa", 10), certificate("bbbb", 80)],
               "names": [{"name": "mail.a.test", "addresses": addresses, "dns_problem": null, "listeners": listeners}]})
    }

    fn seen(here: serde_json::Value, there: serde_json::Value) -> Everywhere<LiveProbe> {
        Everywhere {
            here: serde_json::from_value(here).unwrap(),
            node: Some("proxy1".to_owned()),
            nodes: vec![NodeAnswer {
                node: "proxy2".to_owned(),
                error: None,
                answer: Some(there).filter(|there| !there.is_null()),
            }],
        }
    }

    #[test]
    fn what_was_not_looked_at_is_no_success() {
        let good = || probe(&["192.0.2.1"], &[listener("HTTPS", Some("bbbb"), None)]);
        let mut many = good();
        many["more"] = json!(10);
        let mut other = many.clone();
        other["names"][0]["name"] = json!("other.a.test");
        let mut foreign = good();
        foreign["names"][0]["listeners"][0]["untrusted"] = json!("it is self-signed");
        for (there, failure, part) in [
            (good(), None, "; known to the authorities of proxy1, proxy2\n"),
            (
                many,
                Some("only 1 of 11 names were looked at on proxy2"),
                "and 10 more names",
            ),
            (
                other,
                Some("1 of 3 are not as they should be"),
                "  proxy2: not looked at there\n",
            ),
            (
                probe(&["192.0.2.1"], &[]),
                Some("0 listeners were looked at on proxy2: none for web or mail clients has TLS"),
                "proxy1  80 days\n",
            ),
            (
                foreign,
                None,
                "; known to the authorities of proxy1; not known to the authorities of proxy2 (it is self-signed)\n",
            ),
        ] {
            let all = seen(good(), there);
            let seen = Seen::new(&all, HERE);
            let text = seen.text();
            assert!(text.contains(part), "{part:?} is not in {text}");
            let said = seen.complete().err().map(|error| error.to_string());
            assert_eq!(said.as_deref(), failure, "{text}");
        }
    }

    #[test]
    fn what_differs_is_said() {
        let good = || {
            probe(
                &["192.0.2.1"],
                &[
                    listener("HTTPS", Some("bbbb"), None),
                    listener("IMAPS", Some("bbbb"), None),
                ],
            )
        };
        let old = probe(
            &["192.0.2.2"],
            &[
                listener("HTTPS", Some("aaaa"), None),
                listener("IMAPS", Some("aaaa"), None),
            ],
        );
        let broken = probe(
            &["192.0.2.1"],
            &[
                listener("HTTPS", Some("bbbb"), Some("no good")),
                listener("IMAPS", None, Some("refused")),
            ],
        );
        let unknown = json!({"domain": "a.test", "more": 0, "certificates": [], "names": []});
        for (there, is_fine, parts) in [
            (
                good(),
                true,
                &[
                    "  DNS: 192.0.2.1\n",
                    "  NODE    HTTPS    IMAPS\n",
                    "  proxy2  80 days  80 days\n",
                ][..],
            ),
            (
                old,
                true,
                &[
                    "  DNS: 192.0.2.2 (says proxy2)\n",
                    "  proxy1  80 days    80 days\n",
                    "  proxy2  10 days *  10 days *\n",
                    "proxy2, HTTPS, IMAPS: another certificate than elsewhere (aaaa)",
                ],
            ),
            (
                broken,
                false,
                &[
                    "  proxy2  BAD      NONE\n",
                    "proxy2, HTTPS at 127.0.0.1:1: no good (bbbb)",
                    "proxy2, IMAPS at 127.0.0.1:1: refused",
                ],
            ),
            (unknown, false, &["proxy2: this name is not known there"]),
            (
                serde_json::Value::Null,
                false,
                &["proxy2: this name is not known there"],
            ),
            (json!({"something": "else"}), false, &["proxy1  80 days"]),
        ] {
            let all = seen(good(), there);
            let seen = Seen::new(&all, HERE);
            let text = seen.text();
            for part in parts {
                assert!(text.contains(part), "{part:?} is not in {text}");
            }
            assert_eq!(seen.complete().is_ok(), is_fine, "{text}");
        }
    }
}
