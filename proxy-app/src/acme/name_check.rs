//! Names are looked at before the authority is asked for them: one that cannot be had costs no order.
//!
//! What cannot be found out keeps no name from its certificate: the authority looks for itself.

use std::time::Duration;

use futures_util::StreamExt;
use tokio::time::sleep;

use crate::acme::dns::client::DnsClient;
use crate::acme::dns::message::{RecordContent, RecordType};
use crate::acme::dns::name::DnsName;
use crate::config::ChallengeKind;

/// Names that are looked at at one time.
const AT_ONCE: usize = 8;
/// How long all names of an order may take. A resolver that is down holds nothing up for longer.
const CHECK_WAIT: Duration = Duration::from_secs(60);

/// By what names are judged.
pub(crate) struct NameCheck<'c> {
    /// Who is asked.
    pub resolvers: &'c DnsClient,
    /// By which names the authority stands in CAA records; none: it does not say.
    pub authority: &'c [String],
    /// How names are shown, the preferred way first.
    pub kinds: &'c [ChallengeKind],
}

/// A CAA record (RFC 8659 §4.1).
#[derive(Debug, Clone)]
struct CaaRecord {
    is_critical: bool,
    tag: String,
    value: String,
}

impl NameCheck<'_> {
    /// Those of the names for which there can be no certificate, each with the reason.
    pub(crate) async fn refused(&self, names: &[String]) -> Vec<(String, String)> {
        let each: Vec<_> = names.iter().map(|name| self.why_not(name)).collect();
        let each = futures_util::stream::iter(each).buffered(AT_ONCE);
        let in_time = each.take_until(Box::pin(sleep(CHECK_WAIT)));
        let looked: Vec<Option<String>> = in_time.collect().await;
        let looked = names.iter().zip(looked);
        looked.filter_map(|(name, why)| Some((name.clone(), why?))).collect()
    }

    async fn why_not(&self, name: &str) -> Option<String> {
        let (host, is_pattern) = match name.strip_prefix("*.") {
            Some(host) => (host, true),
            None => (name, false),
        };
        let host = DnsName::parse(host)?;
        let kind = self.kinds.iter().find(|kind| kind.can_show(name))?;
        let needs_address = *kind != ChallengeKind::Dns01;
        if needs_address
            && self
                .resolvers
                .addresses(&host)
                .await
                .is_ok_and(|found| found.is_empty())
        {
            return Some("it has no address in the DNS".to_owned());
        }
        if self.authority.is_empty() {
            return None;
        }
        let (place, records) = self.caa_of(host).await?;
        let allowed = why_forbidden(&records, self.authority, is_pattern)?;
        Some(format!(
            "the CAA record of {place} allows {allowed} and not this authority"
        ))
    }

    /// The records that count for a name, and where they stand: its own, or those of the next name above that has any
    /// (RFC 8659 §3).
    async fn caa_of(&self, host: DnsName) -> Option<(DnsName, Vec<CaaRecord>)> {
        let mut at = Some(host);
        while let Some(here) = at {
            let answer = self.resolvers.ask(&here, RecordType::Caa).await.ok()?;
            let records = answer.answers.into_iter().filter_map(|record| match record.content {
                RecordContent::Caa {
                    is_critical,
                    tag,
                    value,
                } => Some(CaaRecord {
                    is_critical,
                    tag,
                    value,
                }),
                _ => None,
            });
            let records: Vec<CaaRecord> = records.collect();
            if !records.is_empty() {
                return Some((here, records));
            }
            at = here.parent();
        }
        None
    }
}

/// Whom the records allow, if not one of these (RFC 8659 §4.2, §4.3).
fn why_forbidden(records: &[CaaRecord], authority: &[String], is_pattern: bool) -> Option<String> {
    let with = |tag: &'static str| records.iter().filter(move |record| record.tag == tag);
    let is_unknown = |tag: &str| {
        ![
            "issue",
            "issuewild",
            "iodef",
            "issuemail",
            "contactemail",
            "contactphone",
        ]
        .contains(&tag)
    };
    if let Some(unknown) = records.iter().find(|one| one.is_critical && is_unknown(&one.tag)) {
        let tag: String = unknown.tag.chars().filter(|c| !c.is_control()).take(32).collect();
        return Some(format!("only who understands {tag:?}"));
    }
    let counted = match is_pattern && with("issuewild").next().is_some() {
        true => "issuewild",
        false => "issue",
    };
    let allowed: Vec<&str> = with(counted)
        .map(|record| record.value.split(';').next().unwrap_or_default().trim())
        .collect();
    let is_ours = |name: &&str| authority.iter().any(|own| own.eq_ignore_ascii_case(name));
    if allowed.is_empty() || allowed.iter().any(is_ours) {
        return None;
    }
    let named: Vec<&str> = allowed.into_iter().filter(|name| !name.is_empty()).collect();
    Some(match named.is_empty() {
        true => "nobody".to_owned(),
        false => named.join(", "),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn caa_records_say_who_may_issue() {
        let authority = ["ca.example".to_owned()];
        for (records, name, pattern) in [
            (&[][..], None, None),
            (&["iodef mailto:a@b.test"][..], None, None),
            (&["issue ca.example"], None, None),
            (&["issue  CA.example ; accounturi=x"], None, None),
            (&["issue other.example"], Some("other.example"), Some("other.example")),
            (&["issue other.example", "issue ca.example"], None, None),
            (&["issue ;"], Some("nobody"), Some("nobody")),
            (&["issue ca.example", "issuewild ;"], None, Some("nobody")),
            (&["issuewild other.example"], None, Some("other.example")),
            (&["issue ;", "issuewild ca.example"], Some("nobody"), None),
            (
                &["!tbs x"],
                Some("only who understands \"tbs\""),
                Some("only who understands \"tbs\""),
            ),
            (&["tbs x"], None, None),
        ] {
            let read: Vec<CaaRecord> = records
                .iter()
                .map(|text| {
                    let (tag, value) = text.split_once(' ').unwrap();
                    CaaRecord {
                        is_critical: tag.starts_with('!'),
                        tag: tag.trim_start_matches('!').to_owned(),
                        value: value.to_owned(),
                    }
                })
                .collect();
            for (is_pattern, expected) in [(false, name), (true, pattern)] {
                let why = why_forbidden(&read, &authority, is_pattern);
                assert_eq!(why.as_deref(), expected, "{records:?} {is_pattern}");
            }
        }
    }
}
