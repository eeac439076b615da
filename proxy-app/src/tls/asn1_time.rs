//! Times in certificates and lists, as seconds.

use openssl::asn1::{Asn1Time, Asn1TimeRef};

const DAY: i64 = 24 * 60 * 60;

/// Seconds from `begin` to `end`, negative if that was before; `None`: one of them is no time.
pub(super) fn seconds_between(begin: &Asn1TimeRef, end: &Asn1TimeRef) -> Option<i64> {
    let between = begin.diff(end).ok()?;
    Some(i64::from(between.days) * DAY + i64::from(between.secs))
}

/// Seconds from now to this time, negative if it is past; `None`: it is no time.
pub(crate) fn seconds_until(time: &Asn1TimeRef) -> Option<i64> {
    seconds_between(&*Asn1Time::days_from_now(0).ok()?, time)
}
