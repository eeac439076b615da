//! Names as they stand in header fields and keys of Zimbra's protocols: blanks, controls and `%` as `%XX` (MAIL §1.3).

/// Longest name of a user, as everywhere in the workspace.
const MAX_USER: usize = 512;

/// Every byte up to the blank, and `%`, as `%XX` (MAIL §1.3).
pub(crate) fn escape(name: &str) -> String {
    let mut out = String::with_capacity(name.len());
    for letter in name.chars() {
        match letter {
            '\0'..=' ' | '%' => out.push_str(&format!("%{:02X}", u32::from(letter))),
            _ => out.push(letter),
        }
    }
    out
}

/// `%XX` to bytes. `None` if that is no name: not UTF-8, with control characters, or too long. A `%` that begins no
/// such triple stands for itself.
pub(crate) fn unescape(text: &str) -> Option<String> {
    let bytes = text.as_bytes();
    let mut out = Vec::with_capacity(bytes.len());
    let mut at = 0;
    while at < bytes.len() {
        let escaped = bytes[at..].strip_prefix(b"%").and_then(|rest| hex(rest.get(..2)?));
        out.push(escaped.unwrap_or(bytes[at]));
        at += if escaped.is_some() { 3 } else { 1 };
    }
    let name = String::from_utf8(out).ok()?;
    (name.len() <= MAX_USER && !name.contains(char::is_control)).then_some(name)
}

fn hex(digits: &[u8]) -> Option<u8> {
    let text = std::str::from_utf8(digits)
        .ok()
        .filter(|text| text.bytes().all(|byte| byte.is_ascii_hexdigit()))?;
    u8::from_str_radix(text, 16).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_unescaped_once() {
        for (text, expected) in [
            ("a%20b", Some("a b")),
            ("%2520", Some("%20")),
            ("50%", Some("50%")),
            ("%zz%4", Some("%zz%4")),
            ("%C3%A9", Some("é")),
            ("%2f%2F", Some("//")),
            ("%+1", Some("%+1")),
            ("%ff", None),
            ("%00", None),
            ("a%0Ab", None),
        ] {
            assert_eq!(unescape(text).as_deref(), expected, "{text}");
        }
    }
}
