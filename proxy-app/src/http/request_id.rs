//! The id of a request: in the header towards its server, in that of its answer, and in every log.

use bytes::Bytes;
use http::header::{HeaderMap, HeaderValue};

use crate::http::headers::REQUEST_ID;

/// The id of a request. As the value of a header it is not copied from one head to the next.
#[derive(Debug, Clone)]
pub(crate) struct RequestId(HeaderValue);

impl RequestId {
    /// 128 random bits, so that the logs of all nodes can be merged by it.
    pub(crate) fn random() -> Self {
        const DIGITS: &[u8; 16] = b"0123456789abcdef";
        let random = rand::random::<[u8; 16]>();
        let mut id = [0; 32];
        for (at, byte) in random.iter().enumerate() {
            id[2 * at] = DIGITS[usize::from(byte >> 4)];
            id[2 * at + 1] = DIGITS[usize::from(byte & 15)];
        }
        let value = HeaderValue::from_maybe_shared(Bytes::from_owner(id));
        Self(value.unwrap_or_else(|_| unreachable!("hexadecimal digits can stand in a field")))
    }

    /// The one that a trusted forwarder has set, if it can stand in every log.
    pub(crate) fn forwarded(headers: &HeaderMap) -> Option<Self> {
        let value = headers.get(REQUEST_ID)?;
        let id = value.to_str().ok()?;
        let good =
            (8..=128).contains(&id.len()) && id.bytes().all(|b| b.is_ascii_alphanumeric() || b"-_.".contains(&b));
        good.then(|| Self(value.clone()))
    }

    /// The id as a header has it.
    pub(crate) fn value(&self) -> &HeaderValue {
        &self.0
    }

    /// The id as logs have it.
    pub(crate) fn as_str(&self) -> &str {
        self.0.to_str().unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_of_forwarders() {
        let id = |value: &str| {
            let headers = HeaderMap::from_iter([(REQUEST_ID.parse().unwrap(), value.parse().unwrap())]);
            RequestId::forwarded(&headers).map(|id| id.as_str().to_owned())
        };
        assert_eq!(id("abc-DEF_1.2").as_deref(), Some("abc-DEF_1.2"));
        assert_eq!(id("short"), None);
        assert_eq!(id("a b c d e f g"), None);
        assert_eq!(id(&"x".repeat(129)), None);
    }

    #[test]
    fn ids_of_ours_are_random() {
        let (one, other) = (RequestId::random(), RequestId::random());
        assert_ne!(one.as_str(), other.as_str());
        for id in [one, other] {
            assert_eq!(id.as_str().len(), 32);
            assert!(id.as_str().bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f')));
        }
    }
}
