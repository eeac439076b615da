//! What mailbox servers say over IMAP that they can, and what of it a client is promised before its login.

use super::response_code::{code, has_code};
use crate::learned::ListForm;

/// A server's words with blanks between.
pub(super) static FORM: ListForm = ListForm {
    separator: ' ',
    ours: &OURS,
    is_theirs,
};

/// What a client can do here before its login, whatever its server is.
const OURS: [&str; 4] = ["IMAP4rev1", "ID", "LITERAL+", "SASL-IR"];

/// What depends on the channel or on us, and what nobody can do through a proxy: to log in again as somebody else
/// (RFC 8437), or to be sent to another server (RFC 2221).
const NOT_THEIRS: [&str; 4] = ["STARTTLS", "LOGINDISABLED", "UNAUTHENTICATE", "LOGIN-REFERRALS"];

/// Atoms (RFC 9051 section 9) that promise something of a server.
fn is_theirs(name: &str) -> bool {
    let is_atom = name
        .bytes()
        .all(|byte| byte.is_ascii_graphic() && !b"(){%*\"\\]".contains(&byte));
    let mut others = OURS.iter().chain(&NOT_THEIRS);
    let is_other =
        others.any(|other| other.eq_ignore_ascii_case(name)) || name.to_ascii_uppercase().starts_with("AUTH=");
    is_atom && !name.is_empty() && !is_other
}

/// The list in the OK of a login (RFC 9051 section 7.1), or in an untagged line before it.
pub(super) fn list_of<'a>(answer: &'a [u8], untagged: &'a [u8]) -> Option<&'a str> {
    if has_code(answer, "CAPABILITY") {
        return code(answer)?.split_once(' ').map(|(_, list)| list);
    }
    let lines = untagged.split(|&byte| byte == b'\n');
    lines
        .filter_map(|line| std::str::from_utf8(line).ok())
        .find_map(|line| line.trim_end().strip_prefix("* CAPABILITY "))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lists() {
        let check = |answer: &str, untagged: &str, expected: Option<&str>| {
            assert_eq!(
                list_of(answer.as_bytes(), untagged.as_bytes()),
                expected,
                "{answer} {untagged}"
            );
        };
        check("OK Logged in", "* 3 EXISTS\r\n", None);
        check(
            "OK [CAPABILITY IDLE MOVE] in",
            "* CAPABILITY ACL\r\n",
            Some("IDLE MOVE"),
        );
        check("OK in", "* 3 EXISTS\r\n* CAPABILITY IDLE\r\n", Some("IDLE"));
        check("OK [ALERT] in", "\u{e9}\n", None);
    }

    #[test]
    fn what_promises_something_of_a_server() {
        let list = "IMAP4rev1 id AUTH=PLAIN starttls UNAUTHENTICATE IDLE Move X\u{1}Y ACL a]b";
        let theirs: Vec<&str> = list.split(' ').filter(|name| is_theirs(name)).collect();
        assert_eq!(theirs, ["IDLE", "Move", "ACL"]);
        assert!(!is_theirs(""));
    }
}
