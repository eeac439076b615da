//! Response codes: `[CODE …]` behind the status word of a server (RFC 9051 section 7.1).

/// What stands between the brackets behind the status word.
pub(super) fn code(text: &[u8]) -> Option<&str> {
    let text = std::str::from_utf8(text).ok()?;
    let (_, behind) = text.split_once(' ')?;
    Some(behind.strip_prefix('[')?.split_once(']')?.0)
}

/// Whether the code there has this name.
pub(super) fn has_code(text: &[u8], name: &str) -> bool {
    let first = code(text).and_then(|code| code.split(' ').next());
    first.is_some_and(|first| first.eq_ignore_ascii_case(name))
}
