//! What mailbox servers list in their answers to CAPA, and what of it a client is promised before its login.

use crate::learned::ListForm;

/// A server's lines, without the one that ends them.
pub(super) static FORM: ListForm = ListForm {
    separator: '\n',
    ours: &["USER"],
    is_theirs,
};

/// What depends on the channel or on us, and what is said before a login to the server itself: who the client is, and in
/// which language and letters it wants its answers (RFC 6856).
const NOT_THEIRS: [&str; 8] = [
    "USER",
    "SASL",
    "STLS",
    "IMPLEMENTATION",
    "XOIP",
    "XCLIENT",
    "UTF8",
    "LANG",
];

/// Lines that promise something of a server, the parameters included: mail may be kept for a month by one, and for ever by
/// another.
///
/// ```text
/// capability = keyword *(SP param); both of 1*VCHAR but "."       ; RFC 2449 section 3
/// ```
fn is_theirs(line: &str) -> bool {
    let keyword = line.split(' ').next().unwrap_or_default();
    let is_one = !keyword.is_empty() && !line.starts_with('.') && line.bytes().all(|byte| matches!(byte, b' '..=b'~'));
    is_one && !NOT_THEIRS.iter().any(|other| other.eq_ignore_ascii_case(keyword))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_promises_something_of_a_server() {
        let list = "TOP\nuidl\nUser\nSASL PLAIN\nSTLS\nEXPIRE 31 USER\nIMPLEMENTATION X\nUTF8 USER\nXOIP\n.\n..\n A\nA\u{7f}\n";
        let theirs: Vec<&str> = list.split('\n').filter(|line| is_theirs(line)).collect();
        assert_eq!(theirs, ["TOP", "uidl", "EXPIRE 31 USER"]);
    }
}
