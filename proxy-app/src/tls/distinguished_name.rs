//! Names in certificates, as text.

use std::fmt::Write as _;

use openssl::x509::X509NameRef;

/// Longest name that is passed on.
const NAME_MAX: usize = 1024;

/// A name as RFC 4514 writes it: the last part first, `,` between them. Only printable ASCII is left as it is, so
/// that nothing in it can end a header or a log line. Parts beyond the limit are left out; the second value says
/// whether there were none.
pub(super) fn name(name: &X509NameRef) -> (String, bool) {
    let mut parts: Vec<String> = name
        .entries()
        .map(|entry| {
            let object = entry.object();
            let key = object
                .nid()
                .short_name()
                .map_or_else(|_| object.to_string(), str::to_owned);
            let value = entry.data();
            let value = value
                .to_string()
                .unwrap_or_else(|_| String::from_utf8_lossy(value.as_slice()).into_owned());
            format!("{key}={}", escaped(&value))
        })
        .collect();
    parts.reverse();
    let mut text = String::new();
    for part in parts {
        if text.len() + part.len() > NAME_MAX {
            return (text, false);
        }
        if !text.is_empty() {
            text.push(',');
        }
        text.push_str(&part);
    }
    (text, true)
}

/// RFC 4514 §2.4.
fn escaped(value: &str) -> String {
    let mut text = String::new();
    let last = value.len().saturating_sub(1);
    for (at, byte) in value.bytes().enumerate() {
        let edge = (byte == b' ' && (at == 0 || at == last)) || (byte == b'#' && at == 0);
        match byte {
            b'"' | b'+' | b',' | b';' | b'<' | b'>' | b'\\' | b'=' => drop(write!(text, "\\{}", char::from(byte))),
            _ if edge => drop(write!(text, "\\{}", char::from(byte))),
            b' '..=b'~' => text.push(char::from(byte)),
            _ => drop(write!(text, "\\{byte:02X}")),
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use openssl::nid::Nid;
    use openssl::x509::X509Name;

    #[test]
    fn names_cannot_leave_their_place() {
        let mut builder = X509Name::builder().unwrap();
        builder.append_entry_by_text("C", "IT").unwrap();
        builder.append_entry_by_text("O", "Rossi, Bianchi + \"Figli\"").unwrap();
        builder.append_entry_by_nid(Nid::COMMONNAME, " Zoë\r\nX: y ").unwrap();
        assert_eq!(
            name(&builder.build()).0,
            r#"CN=\ Zo\C3\AB\0D\0AX: y\ ,O=Rossi\, Bianchi \+ \"Figli\",C=IT"#
        );
        assert_eq!(escaped("#1"), r"\#1");
        assert_eq!(escaped("a=b\0"), r"a\=b\00");
        assert_eq!(escaped(""), "");
    }
}
