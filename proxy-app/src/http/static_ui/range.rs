//! Which ranges of a file are requested (RFC 9110 §14), in the one form that tower-http accepts. It refuses with 416
//! what a server should ignore, and what is only larger than the file.

use http::header::{CONTENT_RANGE, HeaderMap, RANGE};
use http::{HeaderValue, Method, StatusCode};

/// Rewrites the Range of a request, or removes it where it means nothing: only a GET has one (§14.2), its unit must be
/// known (§14.1), and a malformed one may be ignored (§14.2).
pub(super) fn settle(method: &Method, headers: &mut HeaderMap) {
    let Some(range) = headers.get(RANGE) else { return };
    let understood = range
        .to_str()
        .ok()
        .filter(|_| method == Method::GET)
        .and_then(understood);
    match understood.and_then(|range| HeaderValue::from_str(&range).ok()) {
        Some(range) => drop(headers.insert(RANGE, range)),
        None => drop(headers.remove(RANGE)),
    }
}

/// Changes a range that was not answered as it should be. False where the answer is right.
///
/// More of a file's end than there is means the whole file (§14.1.2). An empty file has no ranges: it is answered as if
/// none had been requested (§14.2), as by Carbonio's proxy.
pub(super) fn instead(headers: &mut HeaderMap, status: StatusCode, answer: &HeaderMap) -> bool {
    let (Some(range), Some(answered)) = (headers.get(RANGE), answer.get(CONTENT_RANGE)) else {
        return false;
    };
    let is_suffix = range.as_bytes().starts_with(b"bytes=-") && range != "bytes=-0";
    if answered.as_bytes().ends_with(b"/0") {
        headers.remove(RANGE);
    } else if is_suffix && status == StatusCode::RANGE_NOT_SATISFIABLE {
        headers.insert(RANGE, HeaderValue::from_static("bytes=0-"));
    } else {
        return false;
    }
    true
}

/// `bytes=` and ranges without blanks and leading zeros.
fn understood(range: &str) -> Option<String> {
    let (unit, ranges) = range.split_once('=')?;
    if !unit.trim().eq_ignore_ascii_case("bytes") {
        return None;
    }
    // Empty elements of a list are no elements (§5.6.1).
    let ranges = ranges.split(',').map(str::trim).filter(|range| !range.is_empty());
    let ranges: Vec<String> = ranges.map(one).collect::<Option<_>>()?;
    (!ranges.is_empty()).then(|| format!("bytes={}", ranges.join(",")))
}

fn one(range: &str) -> Option<String> {
    let (first, last) = range.split_once('-')?;
    let (first, last) = (number(first)?, number(last)?);
    match (first, last) {
        (None, None) => None,
        (None, Some(count)) => Some(format!("-{count}")),
        (Some(first), None) => Some(format!("{first}-")),
        (Some(first), Some(last)) => (first <= last).then(|| format!("{first}-{last}")),
    }
}

/// Digits, or nothing. A number that is too large for any file counts as the largest number.
fn number(digits: &str) -> Option<Option<u64>> {
    if !digits.bytes().all(|digit| digit.is_ascii_digit()) {
        return None;
    }
    Some((!digits.is_empty()).then(|| digits.parse().unwrap_or(u64::MAX)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_in_one_form() {
        for (range, expected) in [
            ("bytes=0-4", Some("bytes=0-4")),
            ("Bytes = 0-4", Some("bytes=0-4")),
            ("bytes=007-", Some("bytes=7-")),
            ("bytes=-3", Some("bytes=-3")),
            ("bytes=0-1, ,4-4 ,", Some("bytes=0-1,4-4")),
            ("bytes=0-99999999999999999999999", Some("bytes=0-18446744073709551615")),
            ("bytes=-99999999999999999999999", Some("bytes=-18446744073709551615")),
            ("items=0-4", None),
            ("bytes", None),
            ("bytes=", None),
            ("bytes=-", None),
            ("bytes=4-2", None),
            ("bytes=+1-2", None),
            ("bytes=a-b", None),
            ("bytes=1-2-3", None),
        ] {
            assert_eq!(understood(range).as_deref(), expected, "{range}");
        }
    }
}
