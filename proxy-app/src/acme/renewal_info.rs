//! When an authority wants a certificate renewed (ARI, RFC 9773): how it is asked, and what its answer means.
//!
//! When a certificate is renewed is decided in `care.rs`.

use std::time::Duration;

use http::Method;
use jiff::Timestamp;
use openssl::x509::X509Ref;
use serde::Deserialize;

use crate::acme::account_key::encode;
use crate::acme::exchange::{AuthorityAnswer, AuthorityWeb};
use crate::acme::messages::{AcmeDirectory, plain};

/// How soon an authority is asked again if it does not say, or has not answered (RFC 9773 §4.3.3).
pub(crate) const UNSAID: Duration = Duration::from_secs(6 * 60 * 60);
/// The shortest and the longest pause that it may ask for.
const PACE: [Duration; 2] = [Duration::from_secs(60), Duration::from_secs(24 * 60 * 60)];

/// What an authority says about a certificate.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct RenewalAdvice {
    /// Begin and end of the time in which it wants it renewed, in seconds since 1970.
    pub window: [i64; 2],
    /// A page that says why.
    pub explanation: Option<String>,
    /// When it is asked again.
    pub pause: Duration,
}

/// The way to an authority that says so.
pub(crate) struct RenewalService {
    web: AuthorityWeb,
    url: String,
}

/// An answer (§4.2).
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct RenewalInfo {
    suggested_window: SuggestedWindow,
    #[serde(rename = "explanationURL")]
    explanation_url: Option<String>,
}

#[derive(Deserialize)]
struct SuggestedWindow {
    start: String,
    end: String,
}

impl RenewalService {
    /// The way to this authority. `None`: it does not say when to renew.
    ///
    /// # Errors
    /// It does not answer, or is none; the text says why.
    pub(crate) async fn find(web: AuthorityWeb, directory_url: &str) -> Result<Option<Self>, String> {
        let answer = good(web.ask(Method::GET, directory_url, Vec::new()).await?)?;
        let directory: AcmeDirectory = serde_json::from_slice(&answer.body).map_err(|error| error.to_string())?;
        Ok(directory.renewal_info.map(|url| Self { web, url }))
    }

    /// Asks about a certificate, by its [`certificate_id`].
    ///
    /// # Errors
    /// It does not answer, does not know it, or says nonsense; the text says why.
    pub(crate) async fn ask(&self, id: &str) -> Result<RenewalAdvice, String> {
        let url = format!("{}/{id}", self.url.trim_end_matches('/'));
        let answer = good(self.web.ask(Method::GET, &url, Vec::new()).await?)?;
        let [shortest, longest] = PACE;
        let pause = answer.retry_after().unwrap_or(UNSAID).clamp(shortest, longest);
        read(&answer.body, pause)
    }
}

fn good(answer: AuthorityAnswer) -> Result<AuthorityAnswer, String> {
    match answer.status.is_success() {
        true => Ok(answer),
        false => Err(format!("the authority answered {}", answer.status.as_u16())),
    }
}

fn read(body: &[u8], pause: Duration) -> Result<RenewalAdvice, String> {
    let info: RenewalInfo = serde_json::from_slice(body).map_err(|error| plain(&error.to_string()))?;
    let time = |text: &str| text.parse().map(|time: Timestamp| time.as_second());
    let window = info.suggested_window;
    match (time(&window.start), time(&window.end)) {
        (Ok(start), Ok(end)) if start < end => Ok(RenewalAdvice {
            window: [start, end],
            explanation: info.explanation_url.as_deref().map(plain),
            pause,
        }),
        _ => Err("the time that it suggests ends before it begins".to_owned()),
    }
}

/// By what an authority knows a certificate (§4.1). `None`: it does not say who has signed it.
pub(crate) fn certificate_id(leaf: &X509Ref) -> Option<String> {
    let serial = leaf.serial_number().to_bn().ok()?.to_vec();
    Some(id_of(leaf.authority_key_id()?.as_slice(), serial))
}

/// Of the key of the issuer, and a serial number without leading zeros.
fn id_of(issuer: &[u8], mut serial: Vec<u8>) -> String {
    // A positive number in DER begins with a zero bit.
    if serial.first().is_none_or(|first| first & 0x80 != 0) {
        serial.insert(0, 0);
    }
    format!("{}.{}", encode(issuer), encode(&serial))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The example of RFC 9773 §4.1.
    #[test]
    fn a_certificate_is_known_by_issuer_and_number() {
        let issuer = b"\x69\x88\x5b\x6b\x87\x46\x40\x41\xe1\xb3\x7b\x84\x7b\xa0\xae\x2c\xde\x01\xc8\xd4";
        let id = id_of(issuer, vec![0x87, 0x65, 0x43, 0x21]);
        assert_eq!(id, "aYhba4dGQEHhs3uEe6CuLN4ByNQ.AIdlQyE");
        assert_eq!(id_of(b"", vec![0x7f]), ".fw");
    }

    #[test]
    fn an_answer_without_a_window_is_none() {
        let answer = |start: &str, end: &str| {
            let body = format!(
                "{{\"suggestedWindow\": {{\"start\": \"{start}\", \"end\": \"{end}\"}}, \
                 \"explanationURL\": \"https://ca.test/\\u000awhy\"}}"
            );
            read(body.as_bytes(), UNSAID)
        };
        // The times of RFC 9773 §4.2.
        let good = answer("2025-01-02T04:00:00Z", "2025-01-03T04:00:00.5+00:00").unwrap();
        assert_eq!(good.window[1] - good.window[0], 24 * 60 * 60);
        assert_eq!(good.explanation.as_deref(), Some("https://ca.test/ why"));
        for (start, end) in [
            ("2025-01-02T04:00:00Z", "2025-01-02T04:00:00Z"),
            ("2025-01-03T04:00:00Z", "2025-01-02T04:00:00Z"),
            ("soon", "2025-01-02T04:00:00Z"),
            ("2025-01-02T04:00:00", "2025-01-03T04:00:00"),
        ] {
            assert!(answer(start, end).is_err(), "{start} {end}");
        }
        assert!(read(b"{}", UNSAID).is_err() && read(b"<p>", UNSAID).is_err());
    }
}
