//! What an authority says (RFC 8555 §7.1), as far as it is read.

use std::collections::BTreeMap;

use serde::Deserialize;

/// Most of a reason that is kept, in characters.
const REASON_MAX: usize = 400;
/// How all kinds of problems begin (RFC 8555 §6.7).
const PROBLEM: &str = "urn:ietf:params:acme:error:";

/// Where which request goes.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct AcmeDirectory {
    pub new_nonce: String,
    pub new_account: String,
    pub new_order: String,
    /// Of an authority that says when to renew (RFC 9773 §4.1).
    pub renewal_info: Option<String>,
    #[serde(default)]
    pub meta: AcmeMeta,
}

/// What is said about the authority itself.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct AcmeMeta {
    pub terms_of_service: Option<String>,
    #[serde(default)]
    pub external_account_required: bool,
    /// By which names it stands in CAA records (RFC 8659 §4.2).
    #[serde(default)]
    pub caa_identities: Vec<String>,
    /// The kinds of certificates that it issues, each with what people may read about it (draft-ietf-acme-profiles §3).
    #[serde(default)]
    pub profiles: BTreeMap<String, serde_json::Value>,
}

/// An order, and an authorization, too.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum AcmeState {
    Pending,
    Ready,
    Processing,
    Valid,
    /// Or `expired`, `revoked`, `deactivated`.
    #[serde(other)]
    Invalid,
}

/// A request for a certificate.
#[derive(Debug, Deserialize)]
pub(crate) struct AcmeOrder {
    pub status: AcmeState,
    #[serde(default)]
    pub authorizations: Vec<String>,
    pub finalize: String,
    pub certificate: Option<String>,
    pub error: Option<AcmeProblem>,
}

/// Whether this account may have certificates for a name.
#[derive(Debug, Deserialize)]
pub(crate) struct AcmeAuthorization {
    pub identifier: AcmeIdentifier,
    pub status: AcmeState,
    /// It is for the pattern of all names below this one (RFC 8555 §7.1.4).
    #[serde(default)]
    pub wildcard: bool,
    #[serde(default)]
    pub challenges: Vec<AcmeChallenge>,
}

/// A name.
#[derive(Debug, Deserialize)]
pub(crate) struct AcmeIdentifier {
    pub value: String,
}

/// A way to show who controls a name.
#[derive(Debug, Deserialize)]
pub(crate) struct AcmeChallenge {
    #[serde(rename = "type")]
    pub kind: String,
    pub url: String,
    #[serde(default)]
    pub token: String,
    pub error: Option<AcmeProblem>,
}

/// Why an authority refuses something (RFC 7807).
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
pub(crate) struct AcmeProblem {
    #[serde(rename = "type", default)]
    pub kind: String,
    #[serde(default)]
    pub detail: String,
    #[serde(default)]
    pub subproblems: Vec<NameProblem>,
}

/// The part of a problem that is about one name (RFC 8555 §6.7.1).
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub(crate) struct NameProblem {
    #[serde(rename = "type", default)]
    pub kind: String,
    #[serde(default)]
    pub detail: String,
    pub identifier: Option<NamedIdentifier>,
}

/// The name of a [`NameProblem`].
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub(crate) struct NamedIdentifier {
    pub value: String,
}

impl AcmeProblem {
    /// Whether it is of this kind.
    pub(crate) fn is(&self, kind: &str) -> bool {
        self.kind.strip_prefix(PROBLEM) == Some(kind)
    }

    /// The names that it is about, each with its reason.
    pub(crate) fn names(&self) -> Vec<(String, String)> {
        let named = self.subproblems.iter().filter_map(|part| {
            let identifier = part.identifier.as_ref()?;
            Some((identifier.value.to_ascii_lowercase(), reason(&part.kind, &part.detail)))
        });
        named.collect()
    }

    /// Whether it is about the request as a whole: neither about names nor about how often there is one.
    pub(crate) fn is_of_request(&self) -> bool {
        self.names().is_empty() && !self.is("rateLimited")
    }

    /// For people.
    pub(crate) fn reason(&self) -> String {
        reason(&self.kind, &self.detail)
    }
}

/// The authority may say anything: no line ends, and not without end.
fn reason(kind: &str, detail: &str) -> String {
    let kind = kind.strip_prefix(PROBLEM).unwrap_or(kind);
    let text = match detail.is_empty() {
        true => kind.to_owned(),
        false => format!("{kind}: {detail}"),
    };
    plain(&text)
}

/// A reason that may quote what the authority has sent.
pub(crate) fn plain(text: &str) -> String {
    let plain = text.chars().map(|c| if c.is_control() { ' ' } else { c });
    plain.take(REASON_MAX).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_problem_names_its_names() {
        let text = r#"{"type": "urn:ietf:params:acme:error:malformed", "detail": "no", "status": 403, "subproblems": [
            {"type": "urn:ietf:params:acme:error:rejectedIdentifier", "detail": "not\nthis",
             "identifier": {"type": "dns", "value": "A.example"}},
            {"type": "urn:ietf:params:acme:error:caa", "detail": "about nothing"}]}"#;
        let problem: AcmeProblem = serde_json::from_str(text).unwrap();
        assert!(problem.is("malformed") && !problem.is("caa"));
        let expected = ("a.example".to_owned(), "rejectedIdentifier: not this".to_owned());
        assert_eq!(
            (problem.names(), problem.reason()),
            (vec![expected], "malformed: no".to_owned())
        );
        let long = AcmeProblem {
            detail: "x".repeat(10_000),
            ..AcmeProblem::default()
        };
        assert_eq!(long.reason().chars().count(), REASON_MAX);
    }

    #[test]
    fn unknown_states_are_no_good() {
        for (word, state) in [
            ("valid", AcmeState::Valid),
            ("deactivated", AcmeState::Invalid),
            ("new", AcmeState::Invalid),
        ] {
            assert_eq!(serde_json::from_value::<AcmeState>(word.into()).unwrap(), state);
        }
    }
}
