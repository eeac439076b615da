//! What orders over the admin API have in common: names, a reason, a time. Names and reasons go into logs.

use std::time::Duration;

use crate::admin::api_error::ApiError;
use crate::admin::caller::Caller;

/// Longest name and longest reason, in bytes.
const TEXT_MAX: usize = 512;

/// Text that may stand in a log line.
pub(crate) fn is_text(text: &str) -> bool {
    !text.trim().is_empty() && text.len() <= TEXT_MAX && !text.contains(char::is_control)
}

/// Who has given an order, for the audit log: the caller, and if that is a node, for whom it passes it on.
pub(crate) fn given_by(caller: &Caller, behind: Option<&str>) -> String {
    match (caller, behind.filter(|behind| is_text(behind))) {
        (Caller::Node { .. }, Some(behind)) => format!("{caller} for {behind}"),
        _ => caller.to_string(),
    }
}

/// # Errors
/// It says nothing, or does not fit into a log line.
pub(crate) fn check_reason(reason: &str) -> Result<(), ApiError> {
    match is_text(reason) {
        true => Ok(()),
        false => Err(ApiError::bad("expected a reason, in one line")),
    }
}

/// How long something ordered lasts.
///
/// # Errors
/// No time at all, or longer than the longest; `what` is its name in the message.
pub(crate) fn lasting(what: &str, seconds: u64, longest: Duration) -> Result<Duration, ApiError> {
    match (1..=longest.as_secs()).contains(&seconds) {
        true => Ok(Duration::from_secs(seconds)),
        false => {
            let longest = longest.as_secs();
            Err(ApiError::bad(format!("{what} lasts 1 to {longest} seconds")))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_fits_into_a_log_line() {
        for good in ["alice@a.test", "new disks", &"x".repeat(TEXT_MAX)] {
            assert!(is_text(good), "{good}");
        }
        for bad in ["", "  ", "a\nb", "\u{1b}[2J", "\u{9b}2J", &"x".repeat(TEXT_MAX + 1)] {
            assert!(!is_text(bad), "{bad:?}");
        }
    }

    #[test]
    fn who_is_behind_a_node_is_named() {
        let node = Caller::Node { name: "proxy2".into() };
        let uid = Caller::Socket { uid: Some(0) };
        assert_eq!(given_by(&node, Some("uid 7")), "node proxy2 for uid 7");
        assert_eq!(given_by(&node, Some("uid 7\n")), "node proxy2");
        assert_eq!(given_by(&node, None), "node proxy2");
        assert_eq!(given_by(&uid, Some("uid 7")), "uid 0");
    }

    #[test]
    fn a_time_is_more_than_none_and_at_most_the_longest() {
        let longest = Duration::from_secs(60);
        let of = |seconds| lasting("a hold", seconds, longest).ok();
        assert_eq!((of(1), of(60)), (Some(Duration::from_secs(1)), Some(longest)));
        assert_eq!((of(0), of(61), of(u64::MAX)), (None, None, None));
    }
}
